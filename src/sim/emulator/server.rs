//! The emulated provider over HTTP: its paths, and on the same listener an admin interface without a
//! password — so it listens on loopback only. Keys and version headers are not asked for, and never looked at.
//!
//! *Admitted.* Charged at arrival, and the header numbers are those of that moment. The head leaves at the time to
//! first byte, then a stream's events each when its token is done, or the whole body when the last one is — but
//! Anthropic's whole answers leave head and body together, so their numbers are as old as the answer is long.
//! *Slots.* With [`ServerParams::slots`], an admitted request waits in a line until it has one; its times begin then, and
//! its slot is free again when its last byte is sent or its caller has gone. No caller is sent away from the line.
//! *Refused, overloaded.* Answered within milliseconds. *Admin.* `GET /admin/state` is an [`EmulatorState`];
//! `PATCH /admin` changes any of its settings and marks the moment, so that `first_refusal` is the first one after the
//! change (an empty `{}` only marks). `GET /metrics`, `GET /healthz`.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, patch, post};
use axum::serve::ListenerExt;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::account::{Account, AccountParams, OutOfRange, USER_BYTES_MAX, input_tokens};
use super::admin::{EmulatorState, Moment, Settings};
use super::body::{DelayedBody, StreamBody, Ticket};
use super::emulated::Emulated;
use super::faults::{Fate, FaultParams, Faults};
use super::latency::{Draw, Latency, LatencyParams};
use super::metrics::Metrics;
use super::slots::{Place, ServerParams, Slots};
use super::wire::{Answer, Ask, Wire, set, wire};
use crate::clock::{Clock, MonoTime, SystemClock};
use crate::quota::Cost;

/// Largest request body, in bytes.
pub const BODY_BYTES_MAX: usize = 1024 * 1024;
/// How long a shutdown waits for answers under way.
const DRAIN: Duration = Duration::from_secs(2);

/// Everything an emulator is started with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EmulatorParams {
    /// Whom it plays: whose shapes it speaks, and what its account counts.
    pub dialect: Emulated,
    /// Limits and hidden use.
    pub account: AccountParams,
    /// How long answers take.
    pub latency: LatencyParams,
    /// What goes wrong on purpose.
    pub faults: FaultParams,
    /// How many requests are answered at a time, as a server of one's own does.
    pub server: ServerParams,
    /// Whether answers carry rate-limit headers and `retry-after`; the body of a 429 always tells.
    pub headers: bool,
    /// Whether `max_tokens` is charged at arrival, as OpenAI did until 2024. Anthropic always does, and corrects it.
    pub charge_max_tokens: bool,
    /// Seed of latencies, lengths, faults and request ids.
    pub seed: u64,
}

impl EmulatorParams {
    /// A middling account of this provider.
    #[must_use]
    pub fn of(dialect: Emulated) -> Self {
        Self {
            dialect,
            account: AccountParams::of(dialect),
            latency: LatencyParams::default(),
            faults: FaultParams::of(dialect),
            server: ServerParams::default(),
            headers: true,
            charge_max_tokens: false,
            seed: 1,
        }
    }
}

impl Default for EmulatorParams {
    fn default() -> Self {
        Self::of(Emulated::OpenAi)
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
    /// The listener broke.
    #[error("the emulator stopped serving: {0}")]
    Serve(io::Error),
}

struct Provider {
    clock: SystemClock,
    started_at: MonoTime,
    /// Wall time is read once: moments a millisecond apart stay so, whatever happens to the wall clock.
    started_unix_ms: u64,
    dialect: Emulated,
    wire: &'static dyn Wire,
    charge_max_tokens: bool,
    metrics: Metrics,
    desk: Mutex<Desk>,
}

/// What requests and the admin change, under one lock that is never held across an await.
struct Desk {
    account: Account,
    latency: Latency,
    faults: Faults,
    slots: Slots<oneshot::Sender<f64>>,
    headers: bool,
}

impl Desk {
    /// Gives free slots to those who wait. One that has gone meanwhile gives its slot back by itself.
    fn call_up(&mut self) {
        while let Some((turn, slowness)) = self.slots.call() {
            let _ = turn.send(slowness);
        }
    }
}

/// A request in the line or in a slot. However it ends, the next one moves up.
struct Guest {
    provider: Arc<Provider>,
    place: Place,
}

impl Guest {
    /// Settles the output where its charge is corrected at all, and ends the guest's stay.
    fn ticket(self, ask: &Ask, charged_tokens: u64) -> Ticket<impl FnOnce(u64) + Send + Unpin + use<>> {
        let user = ask.user.clone();
        Ticket::new(move |output_tokens| {
            let provider = &self.provider;
            if provider.dialect.corrects_output() {
                let now = provider.clock.now();
                provider.desk.lock().account.settle(user.as_deref(), charged_tokens, output_tokens, now);
                provider.metrics.settled(output_tokens);
            }
        })
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let mut desk = self.provider.desk.lock();
        desk.slots.leave(self.place);
        desk.call_up();
    }
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
        let dialect = params.dialect;
        let clock = SystemClock::new();
        let started_at = clock.now();
        let account = Account::new(dialect, params.account, started_at, clock.wall())?;
        let latency = Latency::new(params.latency, params.seed)?;
        params.faults.validate(dialect)?;
        let faults = Faults::new(params.faults, params.seed);
        let slots = Slots::new(params.server)?;
        if params.charge_max_tokens && dialect.corrects_output() {
            let range = format!("false: an account of {dialect} charges max_tokens anyway").into();
            return Err(OutOfRange { field: "charge_max_tokens", found: "true".to_owned(), range }.into());
        }
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
            dialect,
            wire: wire(dialect),
            charge_max_tokens: params.charge_max_tokens,
            metrics: Metrics::new(dialect),
            desk: Mutex::new(Desk { account, latency, faults, slots, headers: params.headers }),
        };
        Ok(Self { listener, local_addr, provider: Arc::new(provider) })
    }

    /// A command to try it with.
    #[must_use]
    pub fn example(&self) -> String {
        let (path, body) = self.provider.wire.example();
        format!("curl -i 'http://{}{path}' -d '{body}'", self.local_addr)
    }

    /// Where it listens.
    #[must_use]
    pub const fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Answers until `shutdown` ends, then gives answers under way two seconds, streams too.
    ///
    /// # Errors
    /// The listener broke.
    pub async fn serve(self, shutdown: impl Future<Output = ()> + Send) -> Result<(), EmulatorError> {
        let routes = self.provider.wire.routes().iter();
        let app = routes
            .fold(Router::new(), |app, route| app.route(route, post(complete)))
            .route("/admin/state", get(state))
            .route("/admin", patch(change))
            .route("/metrics", get(metrics))
            .route("/healthz", get(async || "ok\n"))
            .fallback(nowhere)
            .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
            .with_state(self.provider);
        // Head and body are two writes; Nagle would hold the second back.
        let listener = self.listener.tap_io(|stream| drop(stream.set_nodelay(true)));
        let (stop, stopped) = oneshot::channel::<()>();
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

async fn complete(State(provider): State<Arc<Provider>>, uri: Uri, body: Result<Bytes, BytesRejection>) -> Response {
    let id = provider.desk.lock().latency.request_id();
    let (mut response, to_head) = match provider.read(&uri, body) {
        Ok((ask, input_tokens)) => provider.decide(&ask, input_tokens, &id).await,
        Err((status, message)) => (provider.wire.error(status, &message, &id), Duration::ZERO),
    };
    provider.wire.sign(&id, to_head, response.headers_mut());
    provider.metrics.answered(response.status());
    response
}

async fn nowhere(State(provider): State<Arc<Provider>>) -> Response {
    let id = provider.desk.lock().latency.request_id();
    let message = format!("no such path; expected POST {}", provider.wire.routes().join(" or "));
    let mut response = provider.wire.error(StatusCode::NOT_FOUND, &message, &id);
    provider.wire.sign(&id, Duration::ZERO, response.headers_mut());
    response
}

impl Provider {
    /// What is asked for and what its input counts as; or the status and line of what is wrong with it.
    fn read(&self, uri: &Uri, body: Result<Bytes, BytesRejection>) -> Result<(Ask, u64), (StatusCode, String)> {
        let body = body.map_err(|rejection| match rejection.status() {
            StatusCode::PAYLOAD_TOO_LARGE => {
                (StatusCode::PAYLOAD_TOO_LARGE, format!("request body: expected at most {BODY_BYTES_MAX} bytes"))
            }
            _ => (StatusCode::BAD_REQUEST, rejection.body_text()),
        })?;
        let mut ask = self.wire.read(uri, &body).map_err(|message| (StatusCode::BAD_REQUEST, message))?;
        ask.user = ask.user.filter(|user| user.len() <= USER_BYTES_MAX);
        // What a tokenizer would make of it is not emulated: usage and charge are the same estimate.
        Ok((ask, input_tokens(body.len())))
    }

    /// Admits, refuses or fails a request; the answer, and how long it took to its first byte.
    async fn decide(self: &Arc<Self>, ask: &Ask, input_tokens: u64, id: &str) -> (Response, Duration) {
        let charges_output = self.charge_max_tokens || self.dialect.corrects_output();
        let cost = Cost::request(input_tokens, ask.max_tokens.filter(|_| charges_output).unwrap_or(0));
        let user = ask.user.as_deref();
        let (mut verdict, fate, draw, headers, at) = {
            let mut desk = self.desk.lock();
            let (fate, draw, headers) = (desk.faults.draw(), desk.latency.draw(ask.max_tokens), desk.headers);
            if fate.is_overloaded {
                desk.account.overloaded(user);
                return (self.wire.overloaded(id), Duration::ZERO);
            }
            (desk.account.request(user, &cost, self.clock.now()), fate, draw, headers, self.clock.wall())
        };
        let (mut response, to_head) = if let Some(refusal) = &verdict.refusal {
            (self.wire.refusal(ask, refusal, id), Duration::ZERO)
        } else {
            self.metrics.admitted(&cost);
            self.answer(ask, &cost, draw, fate, id).await
        };
        if headers {
            verdict.shown.retain(|shown| self.dialect.tells(shown.meter));
            for (name, value) in self.dialect.dialect().print(&self.wire.told(&verdict), at) {
                set(response.headers_mut(), &name, &value);
            }
            if let Some(refusal) = &verdict.refusal {
                self.wire.mark(refusal, response.headers_mut());
            }
            if verdict.refusal.is_none() && fate.has_stray_retry_after {
                // To the next full minute on the wall's clock.
                set(response.headers_mut(), "retry-after", &(60 - at.0 / 1_000 % 60));
            }
        }
        (response, to_head)
    }

    /// Answers an admitted request, in its turn and its time; the answer, and how long it took to its first byte from
    /// when it had a slot.
    async fn answer(
        self: &Arc<Self>,
        ask: &Ask,
        cost: &Cost,
        draw: Draw,
        fate: Fate,
        id: &str,
    ) -> (Response, Duration) {
        let (guest, turn) = self.join();
        let mut ticket = guest.ticket(ask, cost.output_tokens);
        // The sender stands in the line as long as the guest does, so the turn always comes.
        let draw = draw.slowed(turn.await.unwrap_or(1.0));
        let answer = Answer {
            id,
            model: &ask.model,
            unix_seconds: self.clock.wall().0 / 1_000,
            input_tokens: cost.input_tokens,
            output_tokens: draw.output_tokens,
            is_cut: draw.is_cut,
        };
        if ask.is_stream {
            let mut script = self.wire.script(ask, &answer);
            if let Some(part) = fate.breaks_after {
                script.break_after(part, self.wire.stream_error());
                self.desk.lock().account.stream_broken(ask.user.as_deref());
            }
            tokio::time::sleep(draw.to_head).await;
            let mut response = Response::new(Body::new(StreamBody::new(script, draw, ticket)));
            let kind = HeaderValue::from_static("text/event-stream; charset=utf-8");
            response.headers_mut().insert(header::CONTENT_TYPE, kind);
            response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
            return (response, draw.to_head);
        }
        let (before, after) = match self.dialect {
            Emulated::Anthropic => (draw.to_head + draw.head_to_body, Duration::ZERO),
            _ => (draw.to_head, draw.head_to_body),
        };
        tokio::time::sleep(before).await;
        ticket.wrote(draw.output_tokens);
        let whole = Bytes::from(self.wire.whole(&answer).to_string());
        let mut response = Response::new(Body::new(DelayedBody::new(whole, after, ticket)));
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        (response, draw.to_head)
    }

    /// Takes the last place in the line; its turn is told by how many times longer its answer takes.
    fn join(self: &Arc<Self>) -> (Guest, oneshot::Receiver<f64>) {
        let (turn, comes) = oneshot::channel();
        let mut desk = self.desk.lock();
        let guest = Guest { provider: Arc::clone(self), place: desk.slots.join(turn) };
        desk.call_up();
        (guest, comes)
    }

    fn state(&self, desk: &mut Desk) -> EmulatorState {
        let now = self.clock.now();
        desk.account.advance(now);
        let moment = |at: MonoTime| {
            let uptime_ms = millis(at.since(self.started_at));
            Moment { uptime_ms, unix_ms: self.started_unix_ms + uptime_ms }
        };
        EmulatorState {
            dialect: self.dialect,
            account: desk.account.params(),
            headers: desk.headers,
            faults: desk.faults.params(),
            server: desk.slots.params(),
            running: desk.slots.running(),
            queued: desk.slots.queued(),
            levels: desk.account.levels(),
            truth: desk.account.truth(),
            marked: moment(desk.account.marked_at()),
            first_refusal: desk.account.first_refusal_at().map(moment),
            now: moment(now),
        }
    }

    /// Applies a `PATCH` whole or not at all.
    fn change(&self, desk: &mut Desk, body: &[u8]) -> Result<(), String> {
        let (account, faults, server) = (desk.account.params(), desk.faults.params(), desk.slots.params());
        let mut settings = Settings { account, faults, server, headers: desk.headers, spend_requests: 0.0 };
        settings.patch(self.dialect, body)?;
        let now = self.clock.now();
        settings.faults.validate(self.dialect).map_err(|error| error.to_string())?;
        settings.server.validate().map_err(|error| error.to_string())?;
        desk.account.change(settings.account, now).map_err(|error| error.to_string())?;
        desk.account.spend_requests(settings.spend_requests);
        desk.account.mark(now);
        desk.faults.change(settings.faults);
        desk.slots.change(settings.server);
        desk.call_up();
        desk.headers = settings.headers;
        Ok(())
    }
}

async fn state(State(provider): State<Arc<Provider>>) -> Json<EmulatorState> {
    Json(provider.state(&mut provider.desk.lock()))
}

async fn change(State(provider): State<Arc<Provider>>, body: Result<Bytes, BytesRejection>) -> Response {
    let mut desk = provider.desk.lock();
    let body = body.map_err(|rejection| rejection.body_text());
    match body.and_then(|body| provider.change(&mut desk, &body)) {
        Ok(()) => Json(provider.state(&mut desk)).into_response(),
        Err(line) => (StatusCode::BAD_REQUEST, line + "\n").into_response(),
    }
}

async fn metrics(State(provider): State<Arc<Provider>>) -> Response {
    let text = {
        let mut desk = provider.desk.lock();
        desk.account.advance(provider.clock.now());
        provider.metrics.text(&desk.account, &desk.slots)
    };
    match text {
        Ok(text) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}
