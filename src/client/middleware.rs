//! The reqwest middleware: admission before the call, the response head read after it, the permit held until the
//! body has been read.
//!
//! A refusal surfaces as [`reqwest_middleware::Error::Middleware`] holding a [`Refusal`](super::Refusal). The tenant and the cost come
//! from the request's extensions when the caller put a [`TenantId`] or a [`Cost`] there.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::Extensions;
use http_body::{Body as HttpBody, Frame, SizeHint};
use reqwest::{Body, Request, Response};
use reqwest_middleware::{Middleware, Next};

use super::{Permit, Pool};
use crate::provider::{BODY_BYTES_MAX, Head};
use crate::quota::{Cost, TenantId};

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
        let cost = extensions.get::<Cost>().copied().unwrap_or_else(|| {
            let bytes = request.body().and_then(Body::as_bytes).map_or(0, <[u8]>::len);
            self.pool.dialect().estimate(bytes, 0)
        });
        let mut permit = self.pool.admit(&tenant, cost).await.map_err(reqwest_middleware::Error::middleware)?;
        match next.run(request, extensions).await {
            Ok(response) => Ok(self.answered(permit, response).await),
            Err(error) => {
                permit.failed();
                Err(error)
            }
        }
    }
}

impl Limited {
    async fn answered(&self, mut permit: Permit, response: Response) -> Response {
        let status = response.status().as_u16();
        let observation = permit.observe(&Head { status, headers: response.headers() });
        let refused = matches!(status, 429 | 503 | 529);
        let short = response.content_length().is_some_and(|bytes| bytes <= BODY_BYTES_MAX as u64);
        if !(refused && short) {
            permit.conclude(&observation);
            return with_body(response, |body| Body::wrap(HeldBody { body, _permit: permit }));
        }
        // What a refusal means stands in its body, so that is read here, and handed on as it was.
        let url = response.url().clone();
        let parts: http::Response<Body> = response.into();
        let (parts, body) = parts.into_parts();
        let bytes = collect(body).await.unwrap_or_default();
        permit.conclude(&self.pool.dialect().refine(observation, &bytes));
        rebuilt(parts, Body::from(bytes), &url)
    }
}

/// The body of a request in flight: the permit ends with it.
struct HeldBody {
    body: Body,
    _permit: Permit,
}

impl HttpBody for HeldBody {
    type Data = Bytes;
    type Error = reqwest::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, reqwest::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

async fn collect(mut body: Body) -> Option<Bytes> {
    let mut all = Vec::new();
    while let Some(frame) = std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
        if let Ok(data) = frame.ok()?.into_data() {
            all.extend_from_slice(&data);
        }
    }
    Some(all.into())
}

fn with_body(response: Response, wrap: impl FnOnce(Body) -> Body) -> Response {
    let url = response.url().clone();
    let parts: http::Response<Body> = response.into();
    let (parts, body) = parts.into_parts();
    rebuilt(parts, wrap(body), &url)
}

/// A response with its URL, which the conversion would lose.
fn rebuilt(parts: http::response::Parts, body: Body, url: &reqwest::Url) -> Response {
    use reqwest::ResponseBuilderExt;
    let mut rebuilt = http::Response::builder().url(url.clone()).body(body);
    if let Ok(response) = &mut rebuilt {
        *response.status_mut() = parts.status;
        *response.version_mut() = parts.version;
        *response.headers_mut() = parts.headers;
        response.extensions_mut().extend(parts.extensions);
    }
    rebuilt.map_or_else(|_| Response::from(http::Response::new(Body::default())), Response::from)
}
