//! From a response on: its head is read at once, and the permit goes with its body until that ends.
//!
//! Usage is read from the frames as they pass, each handed on in the poll in which it came: nothing is buffered, held
//! back or changed.

use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use reqwest::{Body, Response, Url};
use tokio::time::timeout;
use tracing::debug;

use super::Permit;
use crate::provider::{BODY_BYTES_MAX, Head, Observation, UsageReader};

/// How long a refusal's body is waited for; error bodies come with their heads.
const BODY_WAIT_MAX: Duration = Duration::from_millis(500);

impl Permit {
    /// Learns from a response's head, and gives the response back with the permit in its body: it ends, settled with the
    /// usage that the answer told, when the body ends or is dropped. Frames are handed on as they come, unchanged.
    ///
    /// Only an error whose body tells what it means is waited for, a moment, and then handed on with it.
    pub async fn attach(self, response: Response) -> Response {
        let url = response.url().clone();
        let attached = self.attach_to(http::Response::<Body>::from(response)).await;
        rebuilt(attached.map(Body::wrap), &url)
    }

    /// [`attach`](Self::attach) for the response of any other HTTP library, as far as it speaks `http` and `http-body`.
    pub async fn attach_to<R>(mut self, response: http::Response<R>) -> http::Response<Attached<R>>
    where
        R: HttpBody<Data = Bytes>,
    {
        let dialect = self.dialect();
        let (parts, body) = response.into_parts();
        let status = parts.status.as_u16();
        let observation = self.observe(&Head { status, headers: &parts.headers });
        let mut body = Attached { ahead: VecDeque::new(), rest: Some(Box::pin(body)), flight: None };
        let mut usage = usage_reader(&parts.headers);
        if dialect.body_tells(status) {
            // What stands in it is concluded from here, and no usage is told.
            usage = UsageReader::new(None);
            // The caller gets the head late by this, if the body dawdles.
            let mut refused = Refused { permit: &mut self, observation };
            let told = timeout(BODY_WAIT_MAX, body.read_ahead()).await;
            let bytes = body.bytes_ahead();
            debug!(status, bytes = bytes.len(), in_time = told.is_ok(), "the provider refused");
            refused.observation = dialect.refine(refused.observation.clone(), &bytes);
        } else {
            self.conclude(&observation);
        }
        if body.rest.is_some() {
            body.flight = Some(Flight { permit: self, usage });
        }
        http::Response::from_parts(parts, body)
    }
}

/// A refusal whose body is still to tell what it means; concluded when dropped, so that a caller who leaves meanwhile
/// leaves what the head told: a 429 that nobody waits for is one all the same.
struct Refused<'a> {
    permit: &'a mut Permit,
    observation: Observation,
}

impl Drop for Refused<'_> {
    fn drop(&mut self) {
        self.permit.conclude(&self.observation);
    }
}

fn usage_reader(headers: &HeaderMap) -> UsageReader {
    let plain = !headers.contains_key(http::header::CONTENT_ENCODING);
    let form = headers.get(http::header::CONTENT_TYPE).filter(|_| plain);
    UsageReader::new(form.and_then(|form| form.to_str().ok()))
}

/// A request in flight.
struct Flight {
    permit: Permit,
    usage: UsageReader,
}

impl Flight {
    fn landed(self) {
        let Self { mut permit, usage } = self;
        if usage.overloaded() {
            permit.overloaded();
        }
        match usage.usage() {
            Some(usage) => permit.settle(usage),
            // What it used is not known: what was reserved stands.
            None => drop(permit),
        }
    }
}

/// The body of a request in flight, with its permit: made by [`Permit::attach_to`].
pub struct Attached<R: HttpBody> {
    /// Read already, to be handed on as it came.
    ahead: VecDeque<Result<Frame<Bytes>, R::Error>>,
    /// Gone when it has been read to its end. Boxed, because it may be read from before it is handed on.
    rest: Option<Pin<Box<R>>>,
    /// Lands with the last frame, whatever becomes of the body then.
    flight: Option<Flight>,
}

/// Not what is in it: answers are their callers' own.
impl<R: HttpBody> fmt::Debug for Attached<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attached").field("in_flight", &self.flight.is_some()).finish_non_exhaustive()
    }
}

impl<R: HttpBody> Drop for Attached<R> {
    fn drop(&mut self) {
        self.land();
    }
}

impl<R: HttpBody> Attached<R> {
    fn land(&mut self) {
        if let Some(flight) = self.flight.take() {
            flight.landed();
        }
    }
}

impl<R: HttpBody<Data = Bytes>> Attached<R> {
    /// Reads the rest as far as it can matter. Cancel-safe.
    async fn read_ahead(&mut self) {
        let mut bytes = 0;
        while let Some(rest) = &mut self.rest
            && bytes < BODY_BYTES_MAX
        {
            match poll_fn(|context| rest.as_mut().poll_frame(context)).await {
                Some(frame) => {
                    bytes += frame.as_ref().ok().and_then(Frame::data_ref).map_or(0, Bytes::len);
                    if frame.is_err() || rest.is_end_stream() {
                        self.rest = None;
                    }
                    self.ahead.push_back(frame);
                }
                None => self.rest = None,
            }
        }
    }

    fn bytes_ahead(&self) -> Vec<u8> {
        let frames = self.ahead.iter().filter_map(|frame| frame.as_ref().ok().and_then(Frame::data_ref));
        frames.flat_map(|data| data.iter().copied()).collect()
    }

    fn poll_rest(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, R::Error>>> {
        let Some(rest) = &mut self.rest else { return Poll::Ready(None) };
        let polled = rest.as_mut().poll_frame(context);
        if let (Poll::Ready(Some(Ok(frame))), Some(flight)) = (&polled, &mut self.flight)
            && let Some(data) = frame.data_ref()
        {
            flight.usage.feed(data);
        }
        let over = matches!(polled, Poll::Ready(None | Some(Err(_)))) || (polled.is_ready() && rest.is_end_stream());
        if over {
            self.rest = None;
            self.land();
        }
        polled
    }
}

/// Nothing in it is pinned in place: the rest is, behind its box.
impl<R: HttpBody> Unpin for Attached<R> {}

impl<R: HttpBody<Data = Bytes>> HttpBody for Attached<R> {
    type Data = Bytes;
    type Error = R::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, R::Error>>> {
        match self.ahead.pop_front() {
            Some(frame) => Poll::Ready(Some(frame)),
            None => self.poll_rest(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ahead.is_empty() && self.rest.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let ahead: u64 = self.ahead.iter().flatten().filter_map(Frame::data_ref).map(|data| data.len() as u64).sum();
        let rest = self.rest.as_ref().map_or_else(|| SizeHint::with_exact(0), HttpBody::size_hint);
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower() + ahead);
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper + ahead);
        }
        hint
    }
}

/// A response with its URL, which the conversion would lose.
pub(super) fn rebuilt(response: http::Response<Body>, url: &Url) -> Response {
    use reqwest::ResponseBuilderExt;
    let (parts, body) = response.into_parts();
    let mut rebuilt = http::Response::builder().url(url.clone()).body(body);
    if let Ok(response) = &mut rebuilt {
        *response.status_mut() = parts.status;
        *response.version_mut() = parts.version;
        *response.headers_mut() = parts.headers;
        response.extensions_mut().extend(parts.extensions);
    }
    rebuilt.map_or_else(
        |_| {
            // Cannot be, the URL was one already; but if it is, it must not look like an answer.
            let mut broken = http::Response::new(Body::default());
            *broken.status_mut() = http::StatusCode::BAD_GATEWAY;
            Response::from(broken)
        },
        Response::from,
    )
}
