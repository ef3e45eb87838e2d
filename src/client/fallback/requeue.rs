//! A refused request's place in a queue, to be sent later by whoever reads that.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use http::header::RETRY_AFTER;
use http::{HeaderValue, StatusCode};
use reqwest::{Body, Request};
use tokio::sync::mpsc;

use super::super::Refusal;
use super::{CacheKey, FALLBACK_HEADER};
use crate::quota::{Cost, TenantId};

/// A refused request on its way into a queue. Whoever takes it out sends it through a client with a
/// [`Limited`](crate::client::Limited) of its own, without this queue among its fallbacks, and with tenant, cost and cache
/// key as extensions.
pub struct Requeued {
    /// The request, with the headers that its caller gave it, a provider's key too.
    pub request: Request,
    /// Whose it is.
    pub tenant: TenantId,
    /// What it was to cost.
    pub cost: Cost,
    /// Under which its answer may be kept.
    pub cache_key: Option<CacheKey>,
    /// Why it is here.
    pub refusal: Refusal,
}

/// Without headers and URL, where providers' keys stand.
impl fmt::Debug for Requeued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tenant, cost, refusal, .. } = self;
        let mut shown = f.debug_struct("Requeued");
        shown.field("tenant", tenant).field("cost", cost).field("refusal", refusal).finish_non_exhaustive()
    }
}

/// Why a queue did not take a request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not queued: {0}")]
pub struct NotQueued(pub String);

/// Where refused requests go. A bounded [`tokio::sync::mpsc`] channel is one, and with the feature `redis` a `RequeueStream`. A queue that writes requests down leaves their
/// credentials out, and whoever sends them puts them in again.
#[async_trait]
pub trait Requeue: fmt::Debug + Send + Sync {
    /// Takes the request, or says why not, without waiting for room: its caller waits.
    async fn requeue(&self, requeued: Requeued) -> Result<(), NotQueued>;
}

#[async_trait]
impl Requeue for mpsc::Sender<Requeued> {
    async fn requeue(&self, requeued: Requeued) -> Result<(), NotQueued> {
        self.try_send(requeued).map_err(|error| NotQueued(error.to_string()))
    }
}

/// The receipt for a request that the queue took.
pub(super) async fn receipt(queue: &dyn Requeue, requeued: Requeued) -> Option<http::Response<Body>> {
    // What would never be admitted would be promised in vain.
    let Refusal::WaitUntil { after, .. } = requeued.refusal else { return None };
    queue.requeue(requeued).await.ok()?;
    let mut receipt = http::Response::new(Body::default());
    *receipt.status_mut() = StatusCode::ACCEPTED;
    receipt.headers_mut().insert(FALLBACK_HEADER, HeaderValue::from_static("requeued"));
    // In whole seconds, not before it can be admitted.
    let seconds = (after + Duration::from_nanos(999_999_999)).as_secs();
    receipt.headers_mut().insert(RETRY_AFTER, seconds.max(1).into());
    Some(receipt)
}
