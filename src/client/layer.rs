//! The tower layer: the same as the [middleware](super::Limited) for services that speak `http` and `http-body`, as
//! hyper's, axum's and tonic's do, and for `Service<reqwest::Request>`, as reqwest's client is.
//!
//! A refusal surfaces as the service's error; [`Refusal::behind`] takes it out. The service that was polled ready is the
//! one that is called, once the request has been admitted; until then what its readiness holds is held. A caller that
//! drops the call's future leaves the line.
//!
//! ```
//! use bytes::Bytes;
//! use tidegate::client::{BoxError, Attached, Limit, LimitLayer, Pool};
//! use tower::{Layer, Service, ServiceExt};
//!
//! async fn ask<S, B, R>(pool: Pool, inner: S, request: http::Request<B>) -> Result<http::Response<Attached<R>>, BoxError>
//! where
//!     S: Service<http::Request<B>, Response = http::Response<R>> + Clone + Send + 'static,
//!     S::Error: Into<BoxError>,
//!     S::Future: Send,
//!     B: http_body::Body + Send + 'static,
//!     R: http_body::Body<Data = Bytes> + Send + 'static,
//!     R::Error: Send,
//! {
//!     let mut service: Limit<S> = LimitLayer::new(pool, "acme".parse()?).layer(inner);
//!     service.ready().await?.call(request).await
//! }
//! ```

use std::error::Error;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::Body;
use tower_layer::Layer;
use tower_service::Service;

use super::middleware::{STREAMED_BYTES, told_length, whose};
use super::{Ask, Attached, Pool, Refusal};
use crate::quota::{Cost, TenantId};

/// Any error, as tower's own layers box them.
pub type BoxError = Box<dyn Error + Send + Sync>;

type Answer<R> = Pin<Box<dyn Future<Output = Result<R, BoxError>> + Send>>;

/// Limits services to a pool's thresholds.
///
/// With `http` requests, tenant, cost and priority are what the request's extensions have as [`TenantId`], [`Cost`] and
/// [`Priority`](super::Priority), else the layer's tenant, an interactive request, and what can be told from the length of the body: a generic body cannot be read. The output that a
/// request allows stands in its body, so where the provider charges that at once, as Anthropic does, put a [`Cost`] there:
/// [`Dialect::estimate`](crate::provider::Dialect::estimate) makes one.
///
/// reqwest's requests show their bodies but not their extensions: their cost is [`Pool::cost_of`], their tenant the layer's.
#[derive(Debug, Clone)]
pub struct LimitLayer {
    pool: Pool,
    tenant: TenantId,
}

impl LimitLayer {
    /// A layer for one pool; `tenant` is whose traffic it is unless a request says otherwise.
    #[must_use]
    pub fn new(pool: Pool, tenant: TenantId) -> Self {
        Self { pool, tenant }
    }
}

impl<S> Layer<S> for LimitLayer {
    type Service = Limit<S>;

    fn layer(&self, inner: S) -> Limit<S> {
        Limit { inner, layer: self.clone() }
    }
}

/// A service limited by a [`LimitLayer`].
#[derive(Debug, Clone)]
pub struct Limit<S> {
    inner: S,
    layer: LimitLayer,
}

impl<S: Clone> Limit<S> {
    /// The service that was polled ready; its clone waits for the next poll.
    fn take_ready(&mut self) -> S {
        let next = self.inner.clone();
        std::mem::replace(&mut self.inner, next)
    }
}

impl<S, B, R> Service<http::Request<B>> for Limit<S>
where
    S: Service<http::Request<B>, Response = http::Response<R>> + Clone + Send + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send,
    B: Body + Send + 'static,
    R: Body<Data = Bytes> + Send + 'static,
    R::Error: Send,
{
    type Response = http::Response<Attached<R>>;
    type Error = BoxError;
    type Future = Answer<Self::Response>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let mut inner = self.take_ready();
        let pool = self.layer.pool.clone();
        let (tenant, cost, priority) = whose(request.extensions(), &self.layer.tenant);
        let cost = cost.unwrap_or_else(|| cost_by_length(&pool, &request));
        Box::pin(async move {
            let permit = pool.request(&tenant, &Ask { priority, ..pool.asking(cost) }).admitted().await?;
            // Dropped without an answer, the permit counts as sent and says nothing of capacity.
            Ok(permit.attach_to(inner.call(request).await.map_err(Into::into)?).await)
        })
    }
}

impl<S> Service<reqwest::Request> for Limit<S>
where
    S: Service<reqwest::Request, Response = reqwest::Response> + Clone + Send + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send,
{
    type Response = reqwest::Response;
    type Error = BoxError;
    type Future = Answer<Self::Response>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, request: reqwest::Request) -> Self::Future {
        let mut inner = self.take_ready();
        let LimitLayer { pool, tenant } = self.layer.clone();
        Box::pin(async move {
            let permit = pool.admit(&tenant, pool.cost_of(&request)).await?;
            Ok(permit.attach(inner.call(request).await.map_err(Into::into)?).await)
        })
    }
}

fn cost_by_length<B: Body>(pool: &Pool, request: &http::Request<B>) -> Cost {
    let hint = request.body().size_hint();
    let exact = hint.exact().and_then(|bytes| usize::try_from(bytes).ok());
    let at_least = usize::try_from(hint.lower()).unwrap_or(usize::MAX);
    let bytes = exact.or_else(|| told_length(request.headers())).unwrap_or(STREAMED_BYTES.max(at_least));
    pool.dialect().estimate(bytes, 0)
}

impl Refusal {
    /// The refusal behind a service's error, if it is one of ours, whatever layers have wrapped it since.
    #[must_use]
    pub fn behind(error: &(dyn Error + 'static)) -> Option<Self> {
        let mut error = Some(error);
        while let Some(outer) = error {
            if let Some(refusal) = outer.downcast_ref() {
                return Some(*refusal);
            }
            error = outer.source();
        }
        None
    }
}
