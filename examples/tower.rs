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

use reqwest::{Method, Request, Response};
use tidegate::client::{Client, ClientParams, Pool, PoolParams, Refusal};
use tidegate::plan::{Rate, Thresholds};
use tidegate::provider::Dialect;
use tidegate::quota::{Meter, TenantId};
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
    S::Error: Into<BoxError> + Send,
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
        let cost = pool.cost_of(&request);
        Box::pin(async move {
            // A refusal becomes the service's error. A caller that leaves meanwhile leaves the line too.
            let mut permit = pool.admit(&tenant, cost).await?;
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

    // What holds until a controller says otherwise: one request a second, and none of more than 1,000 tokens, ever.
    let requests = (Meter::REQUESTS_PER_MINUTE, Rate { rate: 60.0, burst: 1.0 });
    let tokens = (Meter::TOKENS_PER_MINUTE, Rate { rate: 6_000.0, burst: 1_000.0 });
    let bootstrap = Thresholds { rates: [requests, tokens].into(), concurrency: Some(1) };
    let pool = PoolParams { bootstrap, ..PoolParams::new("openai-gpt4o".parse()?, Dialect::OpenAi) };
    let store = Arc::new(MemoryStore::new());
    let client = Client::start(ClientParams::new(vec![pool]), store, Arc::new(Telemetry::new())).await;

    // The emulator is on this machine: no proxy on the way to it.
    let http = reqwest::Client::builder().no_proxy().build()?;
    let limit = LimitLayer { pool: client.pool("openai-gpt4o")?, tenant: "acme".parse()? };
    let mut service = ServiceBuilder::new().layer(limit).service(http);

    for prompt in ["hello", "hello again", &"far too long ".repeat(1_000)] {
        let body = format!(r#"{{"model":"m","user":"acme","messages":[{{"role":"user","content":"{prompt}"}}]}}"#);
        let mut request = Request::new(Method::POST, format!("{provider}/v1/chat/completions").parse()?);
        request.headers_mut().insert("content-type", "application/json".parse()?);
        *request.body_mut() = Some(body.into());
        match service.ready().await?.call(request).await {
            Ok(answer) => println!("{}, {} bytes", answer.status(), answer.bytes().await?.len()),
            Err(error) => println!("not sent, {}", error.downcast::<Refusal>()?),
        }
    }
    client.close().await;
    Ok(())
}
