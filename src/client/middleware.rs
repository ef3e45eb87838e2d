//! The reqwest middleware: admission before the call; from the response on, the permit goes with its body
//! ([`Permit::attach`](super::Permit::attach)).
//!
//! A refusal surfaces as [`reqwest_middleware::Error::Middleware`]; [`Refusal::of`](super::Refusal::of) takes it out. The
//! tenant and the cost come from the request's extensions when the caller put a [`TenantId`] or a [`Cost`] there; else
//! the cost is what the dialect makes of the body's length and of the output it allows.

use http::Extensions;
use reqwest::{Request, Response};
use reqwest_middleware::{Middleware, Next};

use super::Pool;
use crate::quota::{Cost, TenantId};

/// What a streamed request body of unknown length is taken for, in bytes: about 500 LLM tokens. A caller that streams
/// larger ones puts a [`Cost`] into the request's extensions.
const STREAMED_BYTES: usize = 2_000;

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
        let tenant = extensions.get::<TenantId>().unwrap_or(&self.tenant).clone();
        let cost = extensions.get::<Cost>().copied().unwrap_or_else(|| self.pool.cost_of(&request));
        let mut permit = self.pool.admit(&tenant, cost).await.map_err(reqwest_middleware::Error::middleware)?;
        match next.run(request, extensions).await {
            Ok(response) => Ok(permit.attach(response).await),
            Err(error) => {
                permit.failed();
                Err(error)
            }
        }
    }
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
        let told = || request.headers().get(http::header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok();
        dialect.estimate(told().unwrap_or(STREAMED_BYTES), 0)
    }
}
