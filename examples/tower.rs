//! A tower layer: limits any `Service<reqwest::Request, Response = reqwest::Response>`. A reqwest client is one; so is
//! whatever stack of retries, timeouts and metrics stands on it.
//!
//! ```sh
//! tidegate emulate                      # in one terminal: a provider, at http://127.0.0.1:8787
//! cargo run --example tower             # in another
//! ```
//!
//! `TIDEGATE_PROVIDER` names another provider.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use reqwest::{Method, Request, Response};
use tidegate::client::{Client, ClientParams, Pool, PoolParams, Refusal};
use tidegate::provider::Dialect;
use tidegate::quota::TenantId;
use tidegate::store::MemoryStore;
use tidegate::telemetry::Telemetry;
use tower::{BoxError, Layer, Service, ServiceBuilder, ServiceExt};

/// Limits a service to a pool's thresholds, on one tenant's account.
#[derive(Clone)]
struct LimitLayer {
    pool: Pool,
    tenant: TenantId,
}

impl<S> Layer<S> for LimitLayer {
    type Service = Limit<S>;

    fn layer(&self, inner: S) -> Limit<S> {
        Limit { inner, layer: self.clone() }
    }
}

#[derive(Clone)]
struct Limit<S> {
    inner: S,
    layer: LimitLayer,
}

impl<S> Service<Request> for Limit<S>
where
    S: Service<Request, Response = Response> + Clone + Send + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send,
{
    type Response = Response;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        // It is this one that is ready, not its clone.
        let next = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, next);
        let LimitLayer { pool, tenant } = self.layer.clone();
        Box::pin(async move {
            let bytes = request.body().and_then(|body| body.as_bytes()).map_or(0, <[u8]>::len);
            // A refusal becomes the service's error. A caller that leaves meanwhile leaves the line too.
            let mut permit = pool.admit(&tenant, pool.dialect().estimate(bytes, 0)).await?;
            match inner.call(request).await {
                // The permit goes with the body, and is settled with the usage in it when that ends.
                Ok(response) => Ok(permit.attach(response).await),
                Err(error) => {
                    permit.failed();
                    Err(error.into())
                }
            }
        })
    }
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let provider = std::env::var("TIDEGATE_PROVIDER").unwrap_or_else(|_| "http://127.0.0.1:8787".to_owned());

    // Without a controller the bootstrap thresholds hold: one request at a time, 10 a minute. See `middleware.rs`.
    let params = ClientParams::new(vec![PoolParams::new("openai-gpt4o".parse()?, Dialect::OpenAi)]);
    let params = ClientParams { max_wait: Duration::from_secs(2), ..params };
    let client = Client::start(params, Arc::new(MemoryStore::new()), Arc::new(Telemetry::new())).await;
    let limit = LimitLayer { pool: client.pool("openai-gpt4o")?, tenant: "acme".parse()? };

    // The emulator is on this machine: no proxy on the way to it.
    let http = reqwest::Client::builder().no_proxy().build()?;
    let mut service = ServiceBuilder::new().layer(limit).service(http);

    for _ in 0..2 {
        let mut request = Request::new(Method::POST, format!("{provider}/v1/chat/completions").parse()?);
        request.headers_mut().insert("content-type", "application/json".parse()?);
        *request.body_mut() =
            Some(r#"{"model":"m","user":"acme","messages":[{"role":"user","content":"hello"}]}"#.into());
        match service.ready().await?.call(request).await {
            Ok(answer) => println!("{}, {} bytes", answer.status(), answer.bytes().await?.len()),
            // The second one's turn comes in 6 s, later than it may wait.
            Err(error) => println!("not sent, {}", error.downcast::<Refusal>()?),
        }
    }
    client.close().await;
    Ok(())
}
