//! The tower layer: limits whatever stack of retries, timeouts and metrics stands on an HTTP client. Here that is reqwest's
//! client itself.
//!
//! ```sh
//! tidegate emulate                      # in one terminal: a provider, at http://127.0.0.1:8787
//! cargo run --example tower             # in another
//! ```
//!
//! `TIDEGATE_PROVIDER` names another provider.

use std::sync::Arc;

use reqwest::{Method, Request};
use tidegate::client::{Client, ClientParams, LimitLayer, PoolParams, Refusal};
use tidegate::plan::{Rate, Thresholds};
use tidegate::provider::Dialect;
use tidegate::quota::Meter;
use tidegate::store::MemoryStore;
use tidegate::telemetry::Telemetry;
use tower::{BoxError, Service, ServiceBuilder, ServiceExt};

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
    let limit = LimitLayer::new(client.pool("openai-gpt4o")?, "acme".parse()?);
    let mut service = ServiceBuilder::new().layer(limit).service(http);

    for prompt in ["hello", "hello again", &"far too long ".repeat(1_000)] {
        let body = format!(r#"{{"model":"m","user":"acme","messages":[{{"role":"user","content":"{prompt}"}}]}}"#);
        let mut request = Request::new(Method::POST, format!("{provider}/v1/chat/completions").parse()?);
        request.headers_mut().insert("content-type", "application/json".parse()?);
        *request.body_mut() = Some(body.into());
        match service.ready().await?.call(request).await {
            // The permit ends with the body: read it, or drop the response.
            Ok(answer) => println!("{}, {} bytes", answer.status(), answer.bytes().await?.len()),
            Err(error) => match Refusal::behind(&*error) {
                Some(refusal) => println!("not sent, {refusal}"),
                None => return Err(error),
            },
        }
    }
    client.close().await;
    Ok(())
}
