//! The reqwest middleware: admission before the call; from the response on, the permit goes with its body
//! ([`Permit::attach`](super::Permit::attach)).
//!
//! A refusal surfaces as [`reqwest_middleware::Error::Middleware`]; [`Refusal::of`](super::Refusal::of) takes it out. The
//! tenant, the cost and the priority come from the request's extensions when the caller put a [`TenantId`], a [`Cost`] or a
//! [`Priority`] there; else the cost is what the dialect makes of the body's length and of the output it allows.

use std::collections::HashMap;

use http::{Extensions, HeaderMap};
use reqwest::{Request, Response};
use reqwest_middleware::{Middleware, Next};

use super::fallback::Refused;
use super::{Ask, CacheKey, Fallbacks, Pool, Priority};
use crate::quota::{Cost, TenantId};

/// What a streamed request body of unknown length is taken for, in bytes: about 500 LLM tokens. A caller that streams
/// larger ones puts a [`Cost`] into the request's extensions.
pub(super) const STREAMED_BYTES: usize = 2_000;

/// Limits a reqwest client to a pool's thresholds.
#[derive(Debug, Clone)]
pub struct Limited {
    pool: Pool,
    tenant: TenantId,
    fallbacks: Fallbacks,
    tenant_fallbacks: HashMap<TenantId, Fallbacks>,
}

impl Limited {
    /// A middleware for one pool; `tenant` is whose traffic it is unless a request says otherwise.
    #[must_use]
    pub fn new(pool: Pool, tenant: TenantId) -> Self {
        Self { pool, tenant, fallbacks: Fallbacks::new(), tenant_fallbacks: HashMap::new() }
    }

    /// What is tried when a request is refused, unless its tenant has fallbacks of its own or the request's extensions
    /// have [`Fallbacks`].
    #[must_use]
    pub fn with_fallbacks(self, fallbacks: Fallbacks) -> Self {
        Self { fallbacks, ..self }
    }

    /// What is tried instead when a request of this tenant is refused.
    #[must_use]
    pub fn with_tenant_fallbacks(mut self, tenant: TenantId, fallbacks: Fallbacks) -> Self {
        self.tenant_fallbacks.insert(tenant, fallbacks);
        self
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
        let (tenant, told_cost, priority) = whose(extensions, &self.tenant);
        let of_call = extensions.get::<Fallbacks>().cloned();
        let fallbacks = of_call.as_ref().or_else(|| self.tenant_fallbacks.get(&tenant)).unwrap_or(&self.fallbacks);
        let cost = told_cost.unwrap_or_else(|| self.pool.cost_of(&request));
        let asked_at = self.pool.gates.pool.clock.now();
        match self.pool.request(&tenant, &Ask { priority, ..self.pool.asking(cost) }).admitted().await {
            Ok(permit) => {
                let key = extensions.get::<CacheKey>().cloned();
                // Dropped without an answer, the permit counts as sent and says nothing of capacity.
                let answer = permit.attach(next.run(request, extensions).await?).await;
                Ok(fallbacks.keep(&tenant, key, answer))
            }
            Err(refusal) => {
                let refused = Refused { pool: &self.pool, tenant: &tenant, cost, told_cost, refusal, asked_at, next };
                let served = fallbacks.serve(&refused, request, extensions).await;
                served.ok_or_else(|| reqwest_middleware::Error::middleware(refusal))
            }
        }
    }
}

/// Whose a request is, what it costs and how urgent it is, as far as the caller has said.
pub(super) fn whose(extensions: &Extensions, tenant: &TenantId) -> (TenantId, Option<Cost>, Priority) {
    let priority = extensions.get().copied().unwrap_or_default();
    (extensions.get().unwrap_or(tenant).clone(), extensions.get().copied(), priority)
}

/// What a request's headers say of its length.
pub(super) fn told_length(headers: &HeaderMap) -> Option<usize> {
    headers.get(http::header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

impl Pool {
    /// A request's cost as far as it is known: a body that is streamed without a length counts as a short prompt, and
    /// allows output that nobody can tell.
    #[must_use]
    pub fn cost_of(&self, request: &Request) -> Cost {
        let dialect = self.dialect();
        let Some(body) = request.body() else { return dialect.estimate(0, 0) };
        if let Some(bytes) = body.as_bytes() {
            return dialect.estimate(bytes.len(), dialect.max_output_tokens(bytes));
        }
        dialect.estimate(told_length(request.headers()).unwrap_or(STREAMED_BYTES), 0)
    }
}
