//! What a caller gets when its request is refused: an answer from before, a receipt for the queue, another pool's answer,
//! or what a function of its own makes of it.
//!
//! ```no_run
//! # use tidegate::client::{AnswerCache, CacheParams, Fallbacks, Limited, Pool, Requeued};
//! # fn build(gpt4o: Pool, mini: Pool) -> Result<(), Box<dyn std::error::Error>> {
//! let cache = AnswerCache::new(CacheParams::default());
//! let (queue, later) = tokio::sync::mpsc::channel::<Requeued>(1_000);
//! // Tried in this order, until one serves.
//! let fallbacks = Fallbacks::new().cached(&cache).other_pool(mini, |request| request).requeue(queue);
//! let limited = Limited::new(gpt4o, "acme".parse()?).with_fallbacks(fallbacks);
//! // A tenant's own come before these, and those in a request's extensions before both; none at all is a choice too.
//! let limited = limited.with_tenant_fallbacks("batch".parse()?, Fallbacks::new());
//! # Ok(()) }
//! ```

mod cached;
mod requeue;

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;

use http::Extensions;
use reqwest::{Request, Response};
use reqwest_middleware::Next;
use tracing::debug;

pub use cached::{AnswerCache, AnswerStore, CacheKey, CacheParams, KeptAnswer, keep_answer};
pub use requeue::{NotQueued, Requeue, Requeued};

use super::answer::rebuilt;
use super::{BoxError, Pool, Refusal};
use crate::clock::MonoTime;
use crate::quota::{Cost, TenantId};
use crate::telemetry::Metric;

/// Says which fallback made an answer that no provider has given just now: `cached` or `requeued`.
pub const FALLBACK_HEADER: &str = "x-tidegate-fallback";

type Rewrite = Arc<dyn Fn(Request) -> Request + Send + Sync>;
type Answering = Pin<Box<dyn Future<Output = Result<Response, BoxError>> + Send>>;

/// Fallbacks in the order in which they are tried. When none serves, the refusal stands.
///
/// Set for all requests, for a tenant's, or for one: the strongest is a `Fallbacks` in the request's extensions.
#[derive(Debug, Clone, Default)]
pub struct Fallbacks {
    steps: Vec<Step>,
}

#[derive(Clone)]
enum Step {
    Cached(Arc<dyn AnswerStore>),
    Requeue(Arc<dyn Requeue>),
    OtherPool(Pool, Rewrite),
    Own(Arc<dyn Fn(Request, Refusal) -> Answering + Send + Sync>),
}

impl Step {
    /// The metric's label.
    const fn kind(&self) -> &'static str {
        match self {
            Self::Cached(_) => "cached",
            Self::Requeue(_) => "requeue",
            Self::OtherPool(..) => "other_pool",
            Self::Own(_) => "own",
        }
    }
}

impl fmt::Debug for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind())
    }
}

impl Fallbacks {
    /// None yet: a refusal stands.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Then the answer that the store has for the [`CacheKey`] in the request's extensions, with the headers
    /// `x-tidegate-fallback: cached` and `age`. Answers to admitted requests with a key are kept there as they pass.
    #[must_use]
    pub fn cached<S: AnswerStore + Clone>(self, answers: &S) -> Self {
        self.then(Step::Cached(Arc::new(answers.clone())))
    }

    /// Then a place in the queue: `202 Accepted` with the headers `x-tidegate-fallback: requeued` and `retry-after`.
    ///
    /// Not for a request whose body is streamed, because it cannot be copied, and not for one that would never be admitted.
    #[must_use]
    pub fn requeue(self, queue: impl Requeue + 'static) -> Self {
        self.then(Step::Requeue(Arc::new(queue)))
    }

    /// Then the same request in another pool, as `rewrite` makes it: another model, another URL and key. It waits there for
    /// as long as is left of the caller's time. Its answer is handed on as it comes, whatever its status.
    #[must_use]
    pub fn other_pool(self, pool: Pool, rewrite: impl Fn(Request) -> Request + Send + Sync + 'static) -> Self {
        self.then(Step::OtherPool(pool, Arc::new(rewrite)))
    }

    /// Then what the caller's own function makes of it; its error is as good as no answer.
    #[must_use]
    pub fn or_else<F, A>(self, answer: F) -> Self
    where
        F: Fn(Request, Refusal) -> A + Send + Sync + 'static,
        A: Future<Output = Result<Response, BoxError>> + Send + 'static,
    {
        self.then(Step::Own(Arc::new(move |request, refusal| Box::pin(answer(request, refusal)))))
    }

    fn then(mut self, step: Step) -> Self {
        self.steps.push(step);
        self
    }

    /// Keeps a copy of the answer where an answer is kept; nothing of it is delayed or changed.
    pub(super) fn keep(&self, tenant: &TenantId, key: Option<CacheKey>, answer: Response) -> Response {
        let Some(key) = key else { return answer };
        self.steps.iter().fold(answer, |answer, step| match step {
            Step::Cached(answers) => keep_answer(answers, tenant, &key, answer),
            _ => answer,
        })
    }

    /// The first answer that a fallback has; none when the refusal stands.
    pub(super) async fn serve(
        &self,
        refused: &Refused<'_>,
        request: Request,
        extensions: &mut Extensions,
    ) -> Option<Response> {
        let url = request.url().clone();
        // Gone when it could not be copied and a fallback took it without an answer.
        let mut request = Some(request);
        for step in &self.steps {
            let key = extensions.get::<CacheKey>().cloned();
            let served = match step {
                Step::Cached(answers) => match key {
                    Some(key) => {
                        let kept = answers.get(refused.tenant, &key).await;
                        kept.map(|answer| rebuilt(cached::response(answer), &url))
                    }
                    None => None,
                },
                Step::Requeue(queue) => match request.as_ref().and_then(Request::try_clone) {
                    Some(copy) => {
                        let receipt = requeue::receipt(&**queue, refused.requeued(copy, key)).await;
                        receipt.map(|answer| rebuilt(answer, &url))
                    }
                    None => None,
                },
                Step::OtherPool(pool, rewrite) => refused.elsewhere(pool, rewrite, &mut request, extensions).await,
                Step::Own(answer) => match spent(&mut request) {
                    Some(request) => answer(request, refused.refusal).await.ok(),
                    None => None,
                },
            };
            let id = refused.pool.id().as_str();
            let outcome = if served.is_some() { "served" } else { "failed" };
            refused.pool.gates.pool.telemetry.add(Metric::Fallbacks, &[id, step.kind(), outcome], 1.0);
            debug!(pool = id, kind = step.kind(), outcome, "a refused request's fallback");
            if served.is_some() {
                return served;
            }
        }
        None
    }
}

/// A request's last chance: a copy of it where its body can be copied, else itself.
fn spent(request: &mut Option<Request>) -> Option<Request> {
    request.as_ref()?.try_clone().or_else(|| request.take())
}

/// A call that was refused.
pub(super) struct Refused<'a> {
    pub pool: &'a Pool,
    pub tenant: &'a TenantId,
    pub cost: Cost,
    /// The caller's own word on its cost, wherever it is sent.
    pub told_cost: Option<Cost>,
    pub refusal: Refusal,
    pub asked_at: MonoTime,
    pub next: Next<'a>,
}

impl Refused<'_> {
    fn requeued(&self, request: Request, cache_key: Option<CacheKey>) -> Requeued {
        Requeued { request, tenant: self.tenant.clone(), cost: self.cost, cache_key, refusal: self.refusal }
    }

    async fn elsewhere(
        &self,
        pool: &Pool,
        rewrite: &Rewrite,
        request: &mut Option<Request>,
        extensions: &mut Extensions,
    ) -> Option<Response> {
        let original = request.as_ref()?;
        let rewritten = original.try_clone().map(|copy| rewrite(copy));
        let cost = self.told_cost.unwrap_or_else(|| pool.cost_of(rewritten.as_ref().unwrap_or(original)));
        let left = self.pool.max_wait.saturating_sub(self.pool.gates.pool.clock.now().since(self.asked_at));
        let permit = pool.admit_within(self.tenant, cost, left).await.ok()?;
        let request = rewritten.or_else(|| request.take().map(|streamed| rewrite(streamed)))?;
        Some(permit.attach(self.next.clone().run(request, extensions).await.ok()?).await)
    }
}
