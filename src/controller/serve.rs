//! The controller's HTTP side: `POST /v1/observations`; what operators ask of the leader, `GET /v1/pools`,
//! `/v1/pools/<pool>` and `/v1/explain/<pool>/<tenant>`; `/metrics`, `/healthz`.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Json;
use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::Serialize;
use tokio::net::TcpListener;

use super::desk::{Desk, NotLeading, Unknown};
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
    /// Reports are not authenticated, so only this machine may send them.
    #[error("cannot listen on {0}: reports are not authenticated, so the address must be loopback (127.0.0.1 or ::1)")]
    OffLoopback(SocketAddr),
}

/// Binds the listener.
///
/// # Errors
/// [`ListenError`]: off loopback, or the address is taken.
pub(super) async fn bind(addr: SocketAddr) -> Result<TcpListener, ListenError> {
    if !addr.ip().is_loopback() {
        return Err(ListenError::OffLoopback(addr));
    }
    TcpListener::bind(addr).await.map_err(|error| ListenError::Bind(addr, error))
}

pub(super) struct Front {
    /// The controller's name.
    pub name: String,
    pub desk: Arc<Desk>,
    pub clock: Arc<dyn Clock>,
    pub telemetry: Arc<Telemetry>,
}

pub(super) fn router(front: Arc<Front>) -> Router {
    Router::new()
        .route("/v1/observations", post(observations))
        .route("/v1/pools", get(pools))
        .route("/v1/pools/{pool}", get(pool))
        .route("/v1/explain/{pool}/{tenant}", get(explain))
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .layer(DefaultBodyLimit::max(REPORT_BYTES_MAX))
        .with_state(front)
}

async fn observations(State(front): State<Arc<Front>>, body: Bytes) -> Response {
    let report = match Report::parse(&body) {
        Ok(report) => report,
        Err(error) => {
            front.telemetry.add(Metric::ReportsRefused, &["malformed"], 1.0);
            return (StatusCode::BAD_REQUEST, format!("{error}\n")).into_response();
        }
    };
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

async fn pools(State(front): State<Arc<Front>>) -> Response {
    front.desk.account(&front.name, front.clock.now()).map_or_else(elsewhere, |told| Json(told).into_response())
}

async fn pool(State(front): State<Arc<Front>>, uri: Uri) -> Response {
    let now = front.clock.now();
    let [_, pool] = last_segments(&uri);
    found(front.desk.look(pool, now, |planner| Ok(planner.account(now))))
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
    match exposition::text(&front.telemetry) {
        Ok(text) => ([("content-type", "text/plain; version=0.0.4")], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}
