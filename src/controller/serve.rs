//! The controller's HTTP side: `POST /v1/observations`, `/metrics`, `/healthz`.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Json;
use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use tokio::net::TcpListener;

use super::desk::{Desk, NotLeading};
use crate::clock::Clock;
use crate::exposition;
use crate::observation::{REPORT_BYTES_MAX, Report};
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
    pub desk: Arc<Desk>,
    pub clock: Arc<dyn Clock>,
    pub telemetry: Arc<Telemetry>,
}

pub(super) fn router(front: Arc<Front>) -> Router {
    Router::new()
        .route("/v1/observations", post(observations))
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
        Err(error @ NotLeading::Nobody) => (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")).into_response(),
        Err(NotLeading::Other(url)) => {
            (StatusCode::MISDIRECTED_REQUEST, Json(serde_json::json!({ "leader": url }))).into_response()
        }
    }
}

async fn metrics(State(front): State<Arc<Front>>) -> Response {
    match exposition::text(&front.telemetry) {
        Ok(text) => ([("content-type", "text/plain; version=0.0.4")], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}
