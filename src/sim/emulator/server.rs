//! The emulated provider over HTTP: `POST /v1/chat/completions` in OpenAI's shape, and on the same listener an admin
//! interface without a password — so it listens on loopback only.
//!
//! *Admitted.* Charged at arrival, and the header numbers are those of that moment; the head leaves at the time to
//! first byte, the body when its last token is done. *Refused.* 429 within milliseconds. *Admin.* `GET /admin/state`
//! is an [`EmulatorState`]; `PATCH /admin` changes any of its settings and marks the moment, so that
//! `first_refusal` is the first one after the change (an empty `{}` only marks). `GET /metrics`, `GET /healthz`.

use std::fmt::Write as _;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, patch, post};
use axum::serve::ListenerExt;
use http_body::{Frame, SizeHint};
use parking_lot::Mutex;
use prometheus::{Encoder, GaugeVec, IntCounterVec, Opts, Registry, TextEncoder};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::account::{Account, AccountParams, OutOfRange, Refusal, Shown, ShownMeters, Truth, precharge_tokens};
use super::latency::{Draw, Latency, LatencyParams};
use crate::clock::{Clock, MonoTime, SystemClock};
use crate::quota::Unit;

/// Largest request body, in bytes.
pub const BODY_BYTES_MAX: usize = 1024 * 1024;
/// How long a shutdown waits for answers under way.
const DRAIN: Duration = Duration::from_secs(2);
/// Most characters of a model's name that an error quotes.
const MODEL_CHARS_QUOTED: usize = 64;

/// Everything an emulator is started with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EmulatorParams {
    /// Limits and hidden use.
    pub account: AccountParams,
    /// How long answers take.
    pub latency: LatencyParams,
    /// Whether answers carry rate-limit headers (`x-ratelimit-*`, `retry-after*`); the body of a 429 always tells.
    pub headers: bool,
    /// Whether `max_tokens` is charged at arrival, as OpenAI did until 2024.
    pub charge_max_tokens: bool,
    /// Seed of latencies, lengths and request ids.
    pub seed: u64,
}

impl Default for EmulatorParams {
    fn default() -> Self {
        Self {
            account: AccountParams::default(),
            latency: LatencyParams::default(),
            headers: true,
            charge_max_tokens: false,
            seed: 1,
        }
    }
}

/// Why an emulator did not start or stopped. One line each.
#[derive(Debug, thiserror::Error)]
pub enum EmulatorError {
    /// A setting is outside its range.
    #[error(transparent)]
    Params(#[from] OutOfRange),
    /// The admin interface has no password.
    #[error("cannot listen on {0}: the emulator's admin interface is open, so it listens on loopback only")]
    NotLoopback(SocketAddr),
    /// The operating system refused the address.
    #[error("cannot listen on {addr}: {}", source.kind())]
    Listen {
        /// The address asked for.
        addr: SocketAddr,
        /// What the operating system said.
        source: io::Error,
    },
    /// Metrics could not be set up.
    #[error("cannot register the emulator's metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    /// The listener broke.
    #[error("the emulator stopped serving: {0}")]
    Serve(io::Error),
}

/// A moment on both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    /// Milliseconds since the emulator's start.
    pub uptime_ms: u64,
    /// Milliseconds since 1970-01-01T00:00:00Z: the wall time of the start plus `uptime_ms`.
    pub unix_ms: u64,
}

/// The true levels, in units; below zero when a change of limits left the account overdrawn.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Levels {
    /// Requests.
    pub requests: f64,
    /// LLM tokens.
    pub tokens: f64,
}

/// The answer of `GET /admin/state` and `PATCH /admin`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EmulatorState {
    /// The settings in force.
    pub account: AccountParams,
    /// Whether answers carry rate-limit headers.
    pub headers: bool,
    /// What is in the buckets.
    pub levels: Levels,
    /// Counters since the start.
    pub truth: Truth,
    /// The last `PATCH`, or the start.
    pub marked: Moment,
    /// The first refusal for want of room since then.
    pub first_refusal: Option<Moment>,
    /// Now.
    pub now: Moment,
}

struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    admitted: IntCounterVec,
    level: GaugeVec,
    limit: GaugeVec,
}

impl Metrics {
    fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let opts = |name: &str, help: &str| Opts::new(format!("tidegate_emulator_{name}"), help);
        let requests = IntCounterVec::new(opts("requests_total", "Completion requests answered."), &["status"])?;
        let admitted = IntCounterVec::new(opts("admitted_units_total", "Units charged."), &["unit"])?;
        let level = GaugeVec::new(opts("level_units", "Units in the bucket; below zero: overdrawn."), &["unit"])?;
        let limit = GaugeVec::new(opts("limit_units_per_minute", "Limit."), &["unit"])?;
        registry.register(Box::new(requests.clone()))?;
        registry.register(Box::new(admitted.clone()))?;
        registry.register(Box::new(level.clone()))?;
        registry.register(Box::new(limit.clone()))?;
        Ok(Self { registry, requests, admitted, level, limit })
    }

    fn answered(&self, status: StatusCode) {
        self.requests.with_label_values(&[status.as_str()]).inc();
    }

    fn admitted(&self, tokens: u64) {
        self.admitted.with_label_values(&[Unit::Requests.as_str()]).inc();
        self.admitted.with_label_values(&[Unit::Tokens.as_str()]).inc_by(tokens);
    }

    fn text(&self, account: &Account) -> Result<Vec<u8>, prometheus::Error> {
        let shown = account.shown();
        let limits = [shown.requests.limit, shown.tokens.limit];
        for ((unit, level), limit) in [Unit::Requests, Unit::Tokens].into_iter().zip(account.levels()).zip(limits) {
            self.level.with_label_values(&[unit.as_str()]).set(level);
            #[allow(clippy::cast_precision_loss, reason = "at most a billion")]
            self.limit.with_label_values(&[unit.as_str()]).set(limit as f64);
        }
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}

struct Provider {
    clock: SystemClock,
    started_at: MonoTime,
    /// Wall time is read once: moments a millisecond apart stay so, whatever happens to the wall clock.
    started_unix_ms: u64,
    charge_max_tokens: bool,
    metrics: Metrics,
    desk: Mutex<Desk>,
}

/// What requests and the admin change, under one lock that is never held across an await.
struct Desk {
    account: Account,
    latency: Latency,
    headers: bool,
}

/// A provider that has a port and answers once served.
pub struct Emulator {
    listener: tokio::net::TcpListener,
    local_addr: SocketAddr,
    provider: Arc<Provider>,
}

impl std::fmt::Debug for Emulator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Emulator").field("local_addr", &self.local_addr).finish_non_exhaustive()
    }
}

impl Emulator {
    /// Checks the settings and takes the port; port 0 is any free one.
    ///
    /// # Errors
    /// A setting outside its range, an address off loopback, or one that cannot be listened on.
    pub async fn bind(addr: SocketAddr, params: EmulatorParams) -> Result<Self, EmulatorError> {
        let clock = SystemClock::new();
        let started_at = clock.now();
        let account = Account::new(params.account, started_at)?;
        let latency = Latency::new(params.latency, params.seed)?;
        if !addr.ip().is_loopback() {
            return Err(EmulatorError::NotLoopback(addr));
        }
        let refused = |source| EmulatorError::Listen { addr, source };
        let listener = tokio::net::TcpListener::bind(addr).await.map_err(refused)?;
        let local_addr = listener.local_addr().map_err(refused)?;
        let started_unix_ms = clock.wall().0.saturating_sub(millis(clock.now().since(started_at)));
        let provider = Provider {
            clock,
            started_at,
            started_unix_ms,
            charge_max_tokens: params.charge_max_tokens,
            metrics: Metrics::new()?,
            desk: Mutex::new(Desk { account, latency, headers: params.headers }),
        };
        Ok(Self { listener, local_addr, provider: Arc::new(provider) })
    }

    /// Where it listens.
    #[must_use]
    pub const fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Answers until `shutdown` ends, then gives answers under way two seconds.
    ///
    /// # Errors
    /// The listener broke.
    pub async fn serve(self, shutdown: impl Future<Output = ()> + Send) -> Result<(), EmulatorError> {
        let app = Router::new()
            .route("/v1/chat/completions", post(complete))
            .route("/admin/state", get(state))
            .route("/admin", patch(change))
            .route("/metrics", get(metrics))
            .route("/healthz", get(async || "ok\n"))
            .fallback(async || error(StatusCode::NOT_FOUND, "invalid_request_error", "no such path", &Value::Null))
            .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
            .with_state(self.provider);
        // Head and body are two writes; Nagle would hold the second back.
        let listener = self.listener.tap_io(|stream| drop(stream.set_nodelay(true)));
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let serving = axum::serve(listener, app).with_graceful_shutdown(async { drop(stopped.await) });
        let mut serving = pin!(serving.into_future());
        tokio::select! {
            ended = &mut serving => ended.map_err(EmulatorError::Serve),
            () = shutdown => {
                drop(stop);
                match tokio::time::timeout(DRAIN, serving).await {
                    Ok(ended) => ended.map_err(EmulatorError::Serve),
                    Err(_) => Ok(()),
                }
            }
        }
    }
}

/// The part of a chat completion request that matters here; other fields are accepted and ignored.
#[derive(Debug, Deserialize)]
struct ChatRequest {
    model: String,
    messages: Vec<Value>,
    user: Option<String>,
    max_tokens: Option<u64>,
    max_completion_tokens: Option<u64>,
    #[serde(default)]
    stream: Option<bool>,
}

impl ChatRequest {
    fn parse(body: &[u8]) -> Result<Self, String> {
        let request: Self = serde_json::from_slice(body).map_err(|error| format!("request body: {error}"))?;
        if request.messages.is_empty() {
            return Err("messages: expected at least one".to_owned());
        }
        if request.stream == Some(true) {
            return Err("stream: this emulator answers whole completions only".to_owned());
        }
        Ok(request)
    }

    fn max_tokens(&self) -> Option<u64> {
        self.max_completion_tokens.or(self.max_tokens)
    }
}

async fn complete(State(provider): State<Arc<Provider>>, body: Result<Bytes, BytesRejection>) -> Response {
    let response = provider.complete(body).await;
    provider.metrics.answered(response.status());
    response
}

impl Provider {
    async fn complete(&self, body: Result<Bytes, BytesRejection>) -> Response {
        let invalid = "invalid_request_error";
        let body = match body {
            Ok(body) => body,
            Err(rejection) if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE => {
                let message = format!("request body: expected at most {BODY_BYTES_MAX} bytes");
                return error(StatusCode::PAYLOAD_TOO_LARGE, invalid, &message, &Value::Null);
            }
            Err(rejection) => return error(StatusCode::BAD_REQUEST, invalid, &rejection.body_text(), &Value::Null),
        };
        let request = match ChatRequest::parse(&body) {
            Ok(request) => request,
            Err(message) => return error(StatusCode::BAD_REQUEST, invalid, &message, &Value::Null),
        };
        let charged = request.max_tokens().filter(|_| self.charge_max_tokens);
        let tokens = precharge_tokens(body.len(), charged);
        let (verdict, draw, id, headers) = {
            let mut desk = self.desk.lock();
            let verdict = desk.account.request(request.user.as_deref(), tokens, self.clock.now());
            (verdict, desk.latency.draw(request.max_tokens()), desk.latency.request_id(), desk.headers)
        };
        let mut response = if let Some(refusal) = verdict.refusal {
            Self::refuse(&request, &refusal, headers)
        } else {
            self.metrics.admitted(tokens);
            tokio::time::sleep(draw.to_head).await;
            self.answer(&request, &body, draw, &id)
        };
        if headers {
            show(&verdict.shown, &mut response);
        }
        set(&mut response, "x-request-id", &id);
        response
    }

    fn answer(&self, request: &ChatRequest, body: &[u8], draw: Draw, id: &str) -> Response {
        // What a tokenizer would make of it is not emulated: bytes / 4, like the charge.
        let prompt_tokens = precharge_tokens(body.len(), None);
        let words = usize::try_from(draw.output_tokens).unwrap_or(usize::MAX);
        let completion = json!({
            "id": id.replacen("req_", "chatcmpl-", 1),
            "object": "chat.completion",
            "created": self.clock.wall().0 / 1_000,
            "model": request.model,
            "choices": [{
                "index": 0,
                "message": {"role": "assistant", "content": vec!["tide"; words].join(" ")},
                "finish_reason": if draw.is_cut { "length" } else { "stop" },
            }],
            "usage": {
                "prompt_tokens": prompt_tokens,
                "completion_tokens": draw.output_tokens,
                "total_tokens": prompt_tokens + draw.output_tokens,
            },
        });
        let body = DelayedBody {
            delay: Box::pin(tokio::time::sleep(draw.head_to_body)),
            bytes: Some(Bytes::from(completion.to_string())),
        };
        let mut response = Response::new(Body::new(body));
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        set(&mut response, "openai-processing-ms", &draw.to_head.as_millis());
        response
    }

    fn refuse(request: &ChatRequest, refusal: &Refusal, headers: bool) -> Response {
        let (kind, long, short) = match refusal.unit {
            Unit::Requests => ("requests", "requests per min", "RPM"),
            _ => ("tokens", "tokens per min", "TPM"),
        };
        let Refusal { limit, used, requested, retry_after_ms, .. } = *refusal;
        let model: String = request.model.chars().take(MODEL_CHARS_QUOTED).collect();
        let message = match retry_after_ms {
            Some(ms) => format!(
                "Rate limit reached for {model} in this emulated account on {long} ({short}): Limit {limit}, \
                 Used {used}, Requested {requested}. Please try again in {}.",
                go_duration(ms)
            ),
            None => format!(
                "Request too large for {model} in this emulated account on {long} ({short}): Limit {limit}, \
                 Requested {requested}. Send fewer input tokens or ask for fewer output tokens."
            ),
        };
        let mut response = error(StatusCode::TOO_MANY_REQUESTS, kind, &message, &json!("rate_limit_exceeded"));
        if let Some(ms) = retry_after_ms.filter(|_| headers) {
            set(&mut response, "retry-after-ms", &ms);
            set(&mut response, "retry-after", &ms.div_ceil(1_000));
        }
        response
    }

    fn state(&self, desk: &mut Desk) -> EmulatorState {
        let now = self.clock.now();
        desk.account.advance(now);
        let moment = |at: MonoTime| {
            let uptime_ms = millis(at.since(self.started_at));
            Moment { uptime_ms, unix_ms: self.started_unix_ms + uptime_ms }
        };
        let [requests, tokens] = desk.account.levels();
        EmulatorState {
            account: desk.account.params(),
            headers: desk.headers,
            levels: Levels { requests, tokens },
            truth: desk.account.truth(),
            marked: moment(desk.account.marked_at()),
            first_refusal: desk.account.first_refusal_at().map(moment),
            now: moment(now),
        }
    }
}

async fn state(State(provider): State<Arc<Provider>>) -> Json<EmulatorState> {
    Json(provider.state(&mut provider.desk.lock()))
}

async fn change(State(provider): State<Arc<Provider>>, body: Result<Bytes, BytesRejection>) -> Response {
    let mut desk = provider.desk.lock();
    let changed = body.map_err(|rejection| rejection.body_text()).and_then(|body| {
        let settings = Settings::changed_by(&body, desk.account.params(), desk.headers)?;
        let now = provider.clock.now();
        desk.account.change(settings.params, now).map_err(|error| error.to_string())?;
        desk.account.spend_requests(settings.spend_requests);
        desk.account.mark(now);
        desk.headers = settings.headers;
        Ok(())
    });
    match changed {
        Ok(()) => Json(provider.state(&mut desk)).into_response(),
        Err(line) => (StatusCode::BAD_REQUEST, line + "\n").into_response(),
    }
}

/// The settings after a `PATCH`.
struct Settings {
    params: AccountParams,
    headers: bool,
    spend_requests: f64,
}

impl Settings {
    /// Applies the fields of a `PATCH` body; the error is one line that names the field.
    fn changed_by(body: &[u8], params: AccountParams, headers: bool) -> Result<Self, String> {
        let fields: Map<String, Value> = serde_json::from_slice(body).map_err(|error| format!("body: {error}"))?;
        let mut settings = Self { params, headers, spend_requests: 0.0 };
        for (field, value) in &fields {
            let whole =
                || value.as_u64().ok_or_else(|| format!("{field} {value}: expected a whole number, 1–1000000000"));
            let number = || value.as_f64().ok_or_else(|| format!("{field} {value}: expected a number"));
            match field.as_str() {
                "requests_per_minute" => settings.params.requests_per_minute = whole()?,
                "tokens_per_minute" => settings.params.tokens_per_minute = whole()?,
                "burst_seconds" => settings.params.burst_seconds = number()?,
                "hidden_requests_per_minute" => settings.params.hidden_requests_per_minute = number()?,
                "hidden_tokens_per_minute" => settings.params.hidden_tokens_per_minute = number()?,
                "spend_requests" => settings.spend_requests = whole_or_zero(field, value)?,
                "headers" => {
                    settings.headers =
                        value.as_bool().ok_or_else(|| format!("headers {value}: expected true or false"))?;
                }
                unknown => {
                    return Err(format!(
                        "unknown field {unknown:?}: expected requests_per_minute, tokens_per_minute, burst_seconds, \
                         hidden_requests_per_minute, hidden_tokens_per_minute, spend_requests or headers"
                    ));
                }
            }
        }
        Ok(settings)
    }
}

fn whole_or_zero(field: &str, value: &Value) -> Result<f64, String> {
    let n = value.as_u64().and_then(|n| u32::try_from(n).ok()).filter(|n| *n <= 1_000_000_000);
    n.map(f64::from).ok_or_else(|| format!("{field} {value}: expected a whole number, 0–1000000000"))
}

async fn metrics(State(provider): State<Arc<Provider>>) -> Response {
    let text = {
        let mut desk = provider.desk.lock();
        desk.account.advance(provider.clock.now());
        provider.metrics.text(&desk.account)
    };
    match text {
        Ok(text) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

/// An error in OpenAI's shape.
fn error(status: StatusCode, kind: &str, message: &str, code: &Value) -> Response {
    let body = json!({"error": {"message": message, "type": kind, "param": null, "code": code}});
    (status, Json(body)).into_response()
}

fn show(shown: &ShownMeters, response: &mut Response) {
    let mut meter = |names: [&'static str; 3], shown: &Shown| {
        let [limit, remaining, reset] = names;
        set(response, limit, &shown.limit);
        set(response, remaining, &shown.remaining);
        set(response, reset, &go_duration(shown.reset_ms));
    };
    let requests = ["x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"];
    meter(requests, &shown.requests);
    let tokens = ["x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"];
    meter(tokens, &shown.tokens);
}

fn set(response: &mut Response, name: &'static str, value: &impl ToString) {
    // Numbers, durations and hexadecimal ids are always valid header values.
    if let Ok(value) = HeaderValue::from_str(&value.to_string()) {
        response.headers_mut().insert(HeaderName::from_static(name), value);
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// A duration as Go prints it: `0s`, `120ms`, `1.112s`, `1m1.23s`, `1h9m7.077s`; hours are not folded into days.
#[must_use]
pub fn go_duration(ms: u64) -> String {
    if ms == 0 {
        return "0s".to_owned();
    }
    if ms < 1_000 {
        return format!("{ms}ms");
    }
    let (hours, minutes) = (ms / 3_600_000, ms / 60_000 % 60);
    let mut text = String::new();
    // Writing to a String cannot fail.
    if hours > 0 {
        let _ = write!(text, "{hours}h");
    }
    if hours > 0 || minutes > 0 {
        let _ = write!(text, "{minutes}m");
    }
    let _ = write!(text, "{}", ms / 1_000 % 60);
    let fraction = format!("{:03}", ms % 1_000);
    let fraction = fraction.trim_end_matches('0');
    if !fraction.is_empty() {
        let _ = write!(text, ".{fraction}");
    }
    text + "s"
}

/// A body of known length that arrives in one piece, later than the head.
struct DelayedBody {
    delay: Pin<Box<tokio::time::Sleep>>,
    bytes: Option<Bytes>,
}

impl HttpBody for DelayedBody {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if self.bytes.is_none() {
            return Poll::Ready(None);
        }
        ready!(self.delay.as_mut().poll(context));
        Poll::Ready(self.bytes.take().map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.bytes.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.bytes.as_ref().map_or(0, |bytes| u64::try_from(bytes.len()).unwrap_or(u64::MAX)))
    }
}
