//! The reqwest middleware: admission before the call; from the response on, the permit goes with its body
//! ([`Permit::attach`](super::Permit::attach)).
//!
//! A refusal surfaces as [`reqwest_middleware::Error::Middleware`]; [`Refusal::of`](super::Refusal::of) takes it out. The
//! tenant and the cost come from the request's extensions when the caller put a [`TenantId`] or a [`Cost`] there; else
//! the cost is what the dialect makes of the body's length and of the output it allows.

use http::{Extensions, HeaderMap};
use reqwest::{Request, Response};
use reqwest_middleware::{Middleware, Next};

use super::Pool;
use crate::quota::{Cost, TenantId};

/// What a streamed request body of unknown length is taken for, in bytes: about 500 LLM tokens. A caller that streams
/// larger ones puts a [`Cost`] into the request's extensions.
pub(super) const STREAMED_BYTES: usize = 2_000;

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
        let (tenant, cost) = whose(extensions, &self.tenant);
        let cost = cost.unwrap_or_else(|| self.pool.cost_of(&request));
        let permit = self.pool.admit(&tenant, cost).await.map_err(reqwest_middleware::Error::middleware)?;
        // Dropped without an answer, the permit counts as sent and says nothing of capacity.
        Ok(permit.attach(next.run(request, extensions).await?).await)
    }
}

/// Whose a request is and what it costs, as far as the caller has said.
pub(super) fn whose(extensions: &Extensions, tenant: &TenantId) -> (TenantId, Option<Cost>) {
    (extensions.get().unwrap_or(tenant).clone(), extensions.get().copied())
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
