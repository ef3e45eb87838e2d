//! The controller's HTTP side: `POST /v1/observations`; what operators ask of the leader, `GET /v1/status`,
//! `/v1/pools/<pool>` and `/v1/explain/<pool>/<tenant>`; `/metrics`, `/healthz`.
//!
//! Where reporters are declared, all but `/healthz` is for them alone: without a token of theirs a request's body is not even
//! read. Each refusal is counted, and said once for each kind and reporter.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use axum::http::{StatusCode, Uri};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use parking_lot::Mutex;
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tracing::warn;

use super::access::{Access, Caller, Denied};
use super::connections::Bounded;
use super::desk::{Desk, NotLeading, Unknown};
use super::params::Params;
use super::tls::TlsListener;
use crate::clock::Clock;
use crate::exposition;
use crate::observation::{REPORT_BYTES_MAX, Report};
use crate::quota::Grantee;
use crate::telemetry::{Metric, Telemetry};

/// Why the controller cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The port is taken, or the address is not this machine's.
    #[error("cannot listen on {0}: {1}")]
    Bind(SocketAddr, std::io::Error),
    /// Nothing says who may report, so only this machine may.
    #[error(
        "cannot listen on {0}: whoever reaches it could steer the limits, so it must be loopback (127.0.0.1 or ::1), or \
         [controller.reporters.<name>] say who may report, or client_ca_file in [controller.tls]"
    )]
    OffLoopback(SocketAddr),
    /// The files of `[prometheus]` are no good.
    #[error("cannot ask Prometheus: {0}")]
    Prometheus(String),
    /// The files of `[controller.tls]` are no good.
    #[error("cannot listen with TLS: {0}")]
    Tls(String),
}

/// The port that reports come to.
pub(super) struct Port {
    local_addr: SocketAddr,
    listening: Listening,
}

enum Listening {
    Plain(TcpListener),
    Tls(TlsListener),
}

/// Binds the listener.
///
/// # Errors
/// [`ListenError`]: off loopback though nobody is asked who they are, a file that is no good, or the address is taken.
pub(super) async fn bind(params: &Params, telemetry: &Arc<Telemetry>) -> Result<Port, ListenError> {
    let addr = params.listen;
    let certified = params.tls.as_ref().is_some_and(|tls| tls.client_authorities.is_some());
    if !addr.ip().is_loopback() && params.reporters.is_empty() && !certified {
        return Err(ListenError::OffLoopback(addr));
    }
    let tls = params.tls.as_ref().map(|tls| tls.read().map_err(ListenError::Tls)).transpose()?;
    if tls.is_none() && !addr.ip().is_loopback() {
        warn!(
            "reporters' tokens come in the clear to {addr}: set [controller.tls], or let nothing but a proxy that ends TLS \
             reach it"
        );
    }
    let in_use = |error| ListenError::Bind(addr, error);
    let tcp = TcpListener::bind(addr).await.map_err(in_use)?;
    let local_addr = tcp.local_addr().map_err(in_use)?;
    let listening = match tls {
        None => Listening::Plain(tcp),
        Some(config) => Listening::Tls(TlsListener::new(tcp, local_addr, config, telemetry.clone())),
    };
    Ok(Port { local_addr, listening })
}

impl Port {
    pub(super) fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    pub(super) fn is_tls(&self) -> bool {
        matches!(self.listening, Listening::Tls(_))
    }

    /// Serves until it is told to stop.
    pub(super) async fn serve(self, app: Router, mut stopped: watch::Receiver<bool>) {
        let until = async move { drop(stopped.wait_for(|stop| *stop).await) };
        let ended = match self.listening {
            Listening::Plain(tcp) => axum::serve(Bounded::new(tcp), app).with_graceful_shutdown(until).await,
            Listening::Tls(tls) => axum::serve(Bounded::new(tls), app).with_graceful_shutdown(until).await,
        };
        if let Err(error) = ended {
            tracing::error!("report server ended: {error}");
        }
    }
}

pub(super) struct Front {
    /// The controller's name.
    name: String,
    access: Access,
    desk: Arc<Desk>,
    clock: Arc<dyn Clock>,
    telemetry: Arc<Telemetry>,
    /// What was said of whom; at most a few kinds of each reporter.
    said: Mutex<BTreeSet<(Metric, &'static str, Option<String>)>>,
}

impl Front {
    pub(super) fn new(
        name: String,
        access: Access,
        desk: Arc<Desk>,
        clock: Arc<dyn Clock>,
        telemetry: Arc<Telemetry>,
    ) -> Self {
        Self { name, access, desk, clock, telemetry, said: Mutex::default() }
    }

    /// Whether the request may go on, and whose it is.
    fn caller(&self, request: &Request) -> Result<Caller, Denied> {
        self.access.caller(request.headers().get(AUTHORIZATION).map(axum::http::HeaderValue::as_bytes))
    }

    /// Counts a refusal, and says it the first time.
    fn refused(&self, metric: Metric, why: &'static str, caller: Option<&Caller>, what: &str) {
        self.telemetry.add(metric, &[why], 1.0);
        let reporter = caller.and_then(Caller::name);
        if self.said.lock().insert((metric, why, reporter.map(str::to_owned))) {
            let reporter = reporter.unwrap_or("unknown");
            warn!(reporter, "{what}; said once");
        }
    }

    fn deny(&self, metric: Metric, denied: Denied, caller: Option<&Caller>) -> Response {
        let what = if metric == Metric::ReadsRefused { "a question" } else { "a report" };
        self.refused(metric, denied.why(), caller, &format!("{what} is refused: {denied}"));
        let body = format!("{denied}\n");
        match denied {
            Denied::NoToken | Denied::UnknownToken => {
                (StatusCode::UNAUTHORIZED, [(WWW_AUTHENTICATE, "Bearer")], body).into_response()
            }
            Denied::Read | Denied::Report => (StatusCode::FORBIDDEN, body).into_response(),
        }
    }
}

pub(super) fn router(front: Arc<Front>) -> Router {
    let reporting = Router::new()
        .route("/v1/observations", post(observations))
        .route_layer(from_fn_with_state(front.clone(), reports));
    let reading = Router::new()
        .route("/v1/status", get(status))
        .route("/v1/pools/{pool}", get(pool))
        .route("/v1/explain/{pool}/{tenant}", get(explain))
        .route("/metrics", get(metrics))
        .route_layer(from_fn_with_state(front.clone(), reads));
    let open = Router::new().route("/healthz", get(|| async { "ok\n" }));
    reporting.merge(reading).merge(open).layer(DefaultBodyLimit::max(REPORT_BYTES_MAX)).with_state(front)
}

async fn reports(State(front): State<Arc<Front>>, mut request: Request, next: Next) -> Response {
    match front.caller(&request) {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(denied) => front.deny(Metric::ReportsRefused, denied, None),
    }
}

async fn reads(State(front): State<Arc<Front>>, request: Request, next: Next) -> Response {
    let caller = match front.caller(&request) {
        Ok(caller) => caller,
        Err(denied) => return front.deny(Metric::ReadsRefused, denied, None),
    };
    match caller.may_read() {
        Ok(()) => next.run(request).await,
        Err(denied) => front.deny(Metric::ReadsRefused, denied, Some(&caller)),
    }
}

async fn observations(State(front): State<Arc<Front>>, Extension(caller): Extension<Caller>, body: Bytes) -> Response {
    let mut report = match Report::parse(&body) {
        Ok(report) => report,
        Err(error) => {
            front.telemetry.add(Metric::ReportsRefused, &["malformed"], 1.0);
            return (StatusCode::BAD_REQUEST, format!("{error}\n")).into_response();
        }
    };
    match caller.cut(&mut report) {
        Ok(false) => {}
        Ok(true) => {
            let what = "a report is taken without the pools and tenants that its reporter may not report of";
            front.refused(Metric::ReportsRefused, Denied::Report.why(), Some(&caller), what);
        }
        Err(denied) => return front.deny(Metric::ReportsRefused, denied, Some(&caller)),
    }
    match front.desk.answer(&report, front.clock.now()) {
        Ok(reply) => Json(reply).into_response(),
        Err(error) => elsewhere(error),
    }
}

fn elsewhere(error: NotLeading) -> Response {
    match error {
        NotLeading::Nobody => (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")).into_response(),
        NotLeading::Other(url) => {
            (StatusCode::MISDIRECTED_REQUEST, Json(serde_json::json!({ "leader": url }))).into_response()
        }
    }
}

async fn status(State(front): State<Arc<Front>>) -> Response {
    front
        .desk
        .account(&front.name, front.clock.now(), front.clock.wall())
        .map_or_else(elsewhere, |told| Json(told).into_response())
}

async fn pool(State(front): State<Arc<Front>>, uri: Uri) -> Response {
    let now = front.clock.now();
    let [_, pool] = last_segments(&uri);
    found(front.desk.look(pool, now, |planner| Ok(planner.account(now, front.clock.wall()))))
}

async fn explain(State(front): State<Arc<Front>>, uri: Uri) -> Response {
    let [pool, tenant] = last_segments(&uri);
    found(front.desk.look(pool, front.clock.now(), |planner| {
        let wall = front.clock.wall();
        let explained = tenant.parse().ok().and_then(|grantee: Grantee| planner.explain(&grantee, wall));
        explained.ok_or_else(|| {
            let names: Vec<String> = planner.outbox().published().keys().map(Grantee::to_string).collect();
            Unknown::new("tenant", tenant, names.iter().map(String::as_str))
        })
    }))
}

/// The path's last two segments as they came: names in them are encoded as in keys, so that no tenant is `@default`.
fn last_segments(uri: &Uri) -> [&str; 2] {
    let mut segments = uri.path().rsplit('/');
    let last = segments.next().unwrap_or_default();
    [segments.next().unwrap_or_default(), last]
}

fn found<T: Serialize>(looked: Result<Result<T, Unknown>, NotLeading>) -> Response {
    match looked {
        Ok(Ok(told)) => Json(told).into_response(),
        Ok(Err(unknown)) => (StatusCode::NOT_FOUND, Json(unknown)).into_response(),
        Err(error) => elsewhere(error),
    }
}

async fn metrics(State(front): State<Arc<Front>>) -> Response {
    let measured = front.desk.measure(front.clock.now(), front.clock.wall());
    match exposition::text(&front.telemetry, measured) {
        Ok(text) => ([("content-type", "text/plain; version=0.0.4")], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}
