//! The reqwest middleware: admission before the call, the response head read after it, the permit held until the
//! body has been read.
//!
//! A refusal surfaces as [`reqwest_middleware::Error::Middleware`]; [`Refusal::of`](super::Refusal::of) takes it out. The
//! tenant and the cost come from the request's extensions when the caller put a [`TenantId`] or a [`Cost`] there.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::Extensions;
use http_body::{Body as HttpBody, Frame, SizeHint};
use reqwest::{Body, Request, Response};
use reqwest_middleware::{Middleware, Next};
use tokio::time::timeout;
use tracing::debug;

use super::{Permit, Pool};
use crate::observation::Ending;
use crate::provider::{BODY_BYTES_MAX, Head};
use crate::quota::{Cost, TenantId};

/// How long a refusal's body is waited for; error bodies come with their heads.
const BODY_WAIT_MAX: Duration = Duration::from_millis(500);

/// What a streamed request body of unknown length is taken for, in bytes: about 500 LLM tokens. A caller that streams
/// larger ones puts a [`Cost`] into the request's extensions.
const STREAMED_BYTES: usize = 2_000;

/// Limits a reqwest client to a pool's thresholds.
#[derive(Debug, Clone)]
pub struct Limited {
    pool: Pool,
    tenant: TenantId,
}

impl Limited {
    /// A middleware for one pool; `tenant` is whose traffic it is unless a request says otherwise.
    #[must_use]
    pub fn new(pool: Pool, tenant: TenantId) -> Self {
        Self { pool, tenant }
    }
}

#[async_trait::async_trait]
impl Middleware for Limited {
    async fn handle(
        &self,
        request: Request,
        extensions: &mut Extensions,
        next: Next<'_>,
    ) -> reqwest_middleware::Result<Response> {
        let tenant = extensions.get::<TenantId>().unwrap_or(&self.tenant).clone();
        let cost =
            extensions.get::<Cost>().copied().unwrap_or_else(|| self.pool.dialect().estimate(body_bytes(&request), 0));
        let mut permit = self.pool.admit(&tenant, cost).await.map_err(reqwest_middleware::Error::middleware)?;
        match next.run(request, extensions).await {
            Ok(response) => Ok(self.answered(permit, response).await),
            Err(error) => {
                permit.failed();
                Err(error)
            }
        }
    }
}

impl Limited {
    async fn answered(&self, mut permit: Permit, response: Response) -> Response {
        let status = response.status().as_u16();
        let observation = permit.observe(&Head { status, headers: response.headers() });
        let url = response.url().clone();
        let parts: http::Response<Body> = response.into();
        let (parts, body) = parts.into_parts();
        let mut body = HeldBody { ahead: VecDeque::new(), rest: Some(body), permit: None };
        if matches!(observation.ending, Ending::Throttled(_)) {
            // What a refusal means stands in its body. The caller gets the head late by this, if the body dawdles.
            let told = timeout(BODY_WAIT_MAX, body.read_ahead()).await;
            let bytes = body.bytes_ahead();
            debug!(status, bytes = bytes.len(), in_time = told.is_ok(), "the provider refused");
            permit.conclude(&self.pool.dialect().refine(observation, &bytes));
        } else {
            permit.conclude(&observation);
        }
        if body.rest.is_some() {
            body.permit = Some(permit);
        }
        rebuilt(parts, Body::wrap(body), &url)
    }
}

/// The body of a request in flight: the permit ends with it.
struct HeldBody {
    /// Read already, to be handed on as it came.
    ahead: VecDeque<Result<Frame<Bytes>, reqwest::Error>>,
    /// Gone when it has been read to its end.
    rest: Option<Body>,
    permit: Option<Permit>,
}

impl HeldBody {
    /// Reads the rest as far as it can matter. Cancel-safe.
    async fn read_ahead(&mut self) {
        let mut bytes = 0;
        while let Some(rest) = &mut self.rest
            && bytes < BODY_BYTES_MAX
        {
            match poll_fn(|context| Pin::new(&mut *rest).poll_frame(context)).await {
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

    fn poll_rest(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, reqwest::Error>>> {
        let Some(rest) = &mut self.rest else { return Poll::Ready(None) };
        let polled = Pin::new(&mut *rest).poll_frame(context);
        let over = matches!(polled, Poll::Ready(None | Some(Err(_)))) || (polled.is_ready() && rest.is_end_stream());
        if over {
            self.rest = None;
            self.permit = None;
        }
        polled
    }
}

impl HttpBody for HeldBody {
    type Data = Bytes;
    type Error = reqwest::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, reqwest::Error>>> {
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
fn rebuilt(parts: http::response::Parts, body: Body, url: &reqwest::Url) -> Response {
    use reqwest::ResponseBuilderExt;
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

/// A request's size as far as it is known: a body that is streamed without a length counts as a short prompt.
fn body_bytes(request: &Request) -> usize {
    let Some(body) = request.body() else { return 0 };
    let told = || request.headers().get(http::header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok();
    body.as_bytes().map(<[u8]>::len).or_else(told).unwrap_or(STREAMED_BYTES)
}
