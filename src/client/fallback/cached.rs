//! Answers from before, kept as they pass: whole successful ones, by the caller's own key.
//!
//! Of an answer its status, its bytes and what is needed to read them are kept, for a while and up to a weight; no other
//! header, so neither cookies nor limits, and nothing of the request but the key. Errors and event streams are not kept.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::header::{AGE, CONTENT_ENCODING, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, StatusCode};
use http_body::{Body as HttpBody, Frame, SizeHint};
use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{DefaultHashBuilder, OptionsBuilder, Weighter};
use reqwest::{Body, Response};

use super::super::answer::rebuilt;
use super::FALLBACK_HEADER;
use crate::clock::{Clock, MonoTime, SystemClock};
use crate::quota::TenantId;

/// What an answer's bookkeeping weighs, about.
const ENTRY_BYTES: u64 = 256;
/// The headers without which an answer's bytes cannot be read.
const KEPT_HEADERS: [http::HeaderName; 2] = [CONTENT_TYPE, CONTENT_ENCODING];

/// Put into a request's extensions, it says which answers answer it as well: those to the same tenant's requests with an
/// equal key. A request without one has no kept answer, and its answer is not kept.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CacheKey(pub String);

/// An answer from before: all of it, and of its headers those without which its bytes cannot be read.
#[derive(Clone, PartialEq, Eq)]
pub struct KeptAnswer {
    /// Its status, a successful one.
    pub status: StatusCode,
    /// `content-type` and `content-encoding`, where it has them.
    pub headers: HeaderMap,
    /// Its bytes.
    pub body: Bytes,
    /// How long ago it was kept.
    pub age: Duration,
}

/// Not what is in it: answers are their callers' own.
impl fmt::Debug for KeptAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeptAnswer").field("status", &self.status).field("age", &self.age).finish_non_exhaustive()
    }
}

/// Where answers are kept for the [`cached`](super::Fallbacks::cached) fallback: in this process ([`AnswerCache`]), or where other
/// processes have them too (with the feature `redis`, in `AnswersInRedis`).
#[async_trait]
pub trait AnswerStore: fmt::Debug + Send + Sync + 'static {
    /// The answer for a tenant's key. None, too, when it cannot be had soon: a refused caller waits for this.
    async fn get(&self, tenant: &TenantId, key: &CacheKey) -> Option<KeptAnswer>;

    /// Keeps an answer, in place of an earlier one. Called as the answer's last bytes pass, so it neither waits nor blocks; what
    /// cannot be kept is let go.
    fn put(&self, tenant: &TenantId, key: &CacheKey, answer: KeptAnswer);

    /// Larger answers are not put, in bytes of their bodies.
    fn answer_bytes_max(&self) -> usize;
}

/// How much an [`AnswerCache`] keeps, and for how long.
#[derive(Debug, Clone, Copy)]
pub struct CacheParams {
    /// How old an answer may be.
    pub ttl: Duration,
    /// Most that all answers weigh together, in bytes.
    pub bytes_max: u64,
    /// Larger answers are not kept.
    pub answer_bytes_max: usize,
}

impl Default for CacheParams {
    /// Five minutes, 64 MiB, 1 MiB an answer.
    fn default() -> Self {
        Self { ttl: Duration::from_secs(300), bytes_max: 64 << 20, answer_bytes_max: 1 << 20 }
    }
}

/// A cache of answers in this process. Cheap to clone; clones share what they keep.
#[derive(Clone)]
pub struct AnswerCache {
    kept: Arc<Kept>,
}

type Key = (TenantId, CacheKey);

struct Kept {
    params: CacheParams,
    clock: Arc<dyn Clock>,
    answers: Cache<Key, Arc<Answer>, Weight>,
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
    at: MonoTime,
}

#[derive(Clone)]
struct Weight;

impl Weighter<Key, Arc<Answer>> for Weight {
    fn weight(&self, (tenant, key): &Key, answer: &Arc<Answer>) -> u64 {
        let headers: usize = answer.headers.values().map(HeaderValue::len).sum();
        let bytes = tenant.as_str().len() + key.0.len() + headers + answer.body.len();
        ENTRY_BYTES + bytes as u64
    }
}

/// Not what is in it: answers are their callers' own.
impl fmt::Debug for AnswerCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AnswerCache").field("params", &self.kept.params).finish_non_exhaustive()
    }
}

impl AnswerCache {
    /// An empty cache.
    #[must_use]
    pub fn new(params: CacheParams) -> Self {
        Self::with_clock(params, Arc::new(SystemClock::new()))
    }

    /// An empty cache that reads another clock.
    #[must_use]
    #[allow(clippy::missing_panics_doc, reason = "both capacities are given")]
    pub fn with_clock(params: CacheParams, clock: Arc<dyn Clock>) -> Self {
        let items = usize::try_from(params.bytes_max / ENTRY_BYTES).unwrap_or(usize::MAX).clamp(1, 10_000);
        // One shard: the weight is then bounded as a whole, and a lock per refused or finished call is nothing beside it.
        let mut options = OptionsBuilder::new();
        let options = options.shards(1).estimated_items_capacity(items).weight_capacity(params.bytes_max).build();
        let options = options.expect("both capacities are given");
        let answers = Cache::with_options(options, Weight, DefaultHashBuilder::default(), DefaultLifecycle::default());
        Self { kept: Arc::new(Kept { params, clock, answers }) }
    }

    /// What all answers weigh now, in bytes. One that is too old is let go when it is asked for, or crowded out.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.kept.answers.weight()
    }
}

#[async_trait]
impl AnswerStore for AnswerCache {
    async fn get(&self, tenant: &TenantId, key: &CacheKey) -> Option<KeptAnswer> {
        let key = (tenant.clone(), key.clone());
        let answer = self.kept.answers.get(&key)?;
        let age = self.kept.clock.now().since(answer.at);
        if age >= self.kept.params.ttl {
            // Unless a younger one has come meanwhile.
            self.kept.answers.remove_if(&key, |kept| kept.at == answer.at);
            return None;
        }
        let Answer { status, headers, body, .. } = &*answer;
        Some(KeptAnswer { status: *status, headers: headers.clone(), body: body.clone(), age })
    }

    fn put(&self, tenant: &TenantId, key: &CacheKey, answer: KeptAnswer) {
        let KeptAnswer { status, headers, body, age } = answer;
        let at = self.kept.clock.now().before(age);
        self.kept.answers.insert((tenant.clone(), key.clone()), Arc::new(Answer { status, headers, body, at }));
    }

    fn answer_bytes_max(&self) -> usize {
        self.kept.params.answer_bytes_max
    }
}

/// Keeps a copy of the answer in the store once it has passed whole, if it is one to keep: a successful one, no event stream, not
/// too large. Nothing of it is delayed or changed. [`Fallbacks::cached`](super::Fallbacks::cached) does so for the middleware.
#[must_use]
pub fn keep_answer(store: &Arc<dyn AnswerStore>, tenant: &TenantId, key: &CacheKey, answer: Response) -> Response {
    let streamed = answer.headers().get(CONTENT_TYPE).is_some_and(is_event_stream);
    let told = answer.content_length().unwrap_or(0);
    let whole = answer.status().is_success() && answer.status() != StatusCode::PARTIAL_CONTENT && !streamed;
    let bytes_max = store.answer_bytes_max();
    if !whole || told > bytes_max as u64 {
        return answer;
    }
    let url = answer.url().clone();
    let answer: http::Response<Body> = answer.into();
    let headers = KEPT_HEADERS.into_iter().filter_map(|name| Some((answer.headers().get(&name)?.clone(), name)));
    let copy = Copy {
        store: store.clone(),
        tenant: tenant.clone(),
        key: key.clone(),
        status: answer.status(),
        headers: headers.map(|(value, name)| (name, value)).collect(),
        bytes: Vec::new(),
        bytes_max,
    };
    rebuilt(answer.map(|body| Body::wrap(Copied { body, copy: Some(copy) })), &url)
}

/// The kept answer as a refused request gets it.
pub(super) fn response(answer: KeptAnswer) -> http::Response<Body> {
    let mut response = http::Response::new(Body::from(answer.body));
    *response.status_mut() = answer.status;
    *response.headers_mut() = answer.headers;
    response.headers_mut().insert(FALLBACK_HEADER, HeaderValue::from_static("cached"));
    response.headers_mut().insert(AGE, answer.age.as_secs().into());
    response
}

fn is_event_stream(content_type: &HeaderValue) -> bool {
    content_type.as_bytes().to_ascii_lowercase().starts_with(b"text/event-stream")
}

/// What has passed of an answer.
struct Copy {
    store: Arc<dyn AnswerStore>,
    tenant: TenantId,
    key: CacheKey,
    status: StatusCode,
    headers: HeaderMap,
    bytes: Vec<u8>,
    bytes_max: usize,
}

impl Copy {
    fn keep(self) {
        let Self { store, tenant, key, status, headers, bytes, .. } = self;
        store.put(&tenant, &key, KeptAnswer { status, headers, body: bytes.into(), age: Duration::ZERO });
    }
}

/// A body that is copied as it passes; one that breaks, is dropped or grows too large leaves nothing.
struct Copied {
    body: Body,
    copy: Option<Copy>,
}

impl HttpBody for Copied {
    type Data = Bytes;
    type Error = reqwest::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, reqwest::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        let over = match &polled {
            Poll::Pending => return polled,
            Poll::Ready(None) => true,
            Poll::Ready(Some(Err(_))) => {
                self.copy = None;
                true
            }
            Poll::Ready(Some(Ok(frame))) => {
                if let (Some(data), Some(copy)) = (frame.data_ref(), &mut self.copy) {
                    copy.bytes.extend_from_slice(data);
                    if copy.bytes.len() > copy.bytes_max {
                        self.copy = None;
                    }
                }
                self.body.is_end_stream()
            }
        };
        if over && let Some(copy) = self.copy.take() {
            copy.keep();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
