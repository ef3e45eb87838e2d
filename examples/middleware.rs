//! The reqwest middleware: each call waits its turn, and each answer teaches the limiter. Nothing else in the service
//! changes.
//!
//! ```sh
//! tidegate emulate                      # in one terminal: a provider, at http://127.0.0.1:8787
//! cargo run --example middleware        # in another
//! ```
//!
//! `TIDEGATE_PROVIDER` names another provider; `TIDEGATE_ETCD` an etcd, by way of which a controller sets the limits.

use std::sync::Arc;
use std::time::Duration;

use reqwest_middleware::ClientBuilder;
use tidegate::client::{Client, ClientParams, Limited, PoolParams, Refusal};
use tidegate::plan::{Rate, Thresholds};
use tidegate::provider::Dialect;
use tidegate::quota::{Meter, TenantId};
use tidegate::store::{EtcdStore, MemoryStore, Store};
use tidegate::telemetry::Telemetry;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let provider = std::env::var("TIDEGATE_PROVIDER").unwrap_or_else(|_| "http://127.0.0.1:8787".to_owned());

    // What holds until a controller says otherwise: one request a second, two in flight.
    let rates = [(Meter::REQUESTS_PER_MINUTE, Rate { rate: 60.0, burst: 1.0 })].into();
    let bootstrap = Thresholds { rates, concurrency: Some(2) };
    let pool = PoolParams { bootstrap, ..PoolParams::new("openai-gpt4o".parse()?, Dialect::OpenAi) };
    // A call that would wait longer than this is refused at once.
    let params = ClientParams { max_wait: Duration::from_millis(1_500), ..ClientParams::new(vec![pool]) };

    // Without etcd no controller can reach this process; with one, this is all that changes.
    let store: Arc<dyn Store> = match std::env::var("TIDEGATE_ETCD") {
        Ok(endpoint) => Arc::new(EtcdStore::connect(&[endpoint]).await?),
        Err(_) => Arc::new(MemoryStore::new()),
    };
    let client = Client::start(params, store, Arc::new(Telemetry::new())).await;

    // The emulator is on this machine: no proxy on the way to it.
    let http = reqwest::Client::builder().no_proxy().build()?;
    let limited = Limited::new(client.pool("openai-gpt4o")?, "acme".parse()?);
    let http = ClientBuilder::new(http).with(limited).build();

    let mut calls = tokio::task::JoinSet::new();
    for tenant in ["acme", "acme", "acme", "globex", "globex"] {
        let body = format!(r#"{{"model":"m","user":"{tenant}","messages":[{{"role":"user","content":"hello"}}]}}"#);
        let call = http
            .post(format!("{provider}/v1/chat/completions"))
            .header("content-type", "application/json")
            .body(body)
            // Whose traffic this call is, where it is not the middleware's own tenant's.
            .with_extension(tenant.parse::<TenantId>()?);
        calls.spawn(async move { (tenant, call.send().await) });
    }
    while let Some(called) = calls.join_next().await {
        match called? {
            // The permit ends with the body: read it, or drop the response.
            (tenant, Ok(answer)) => println!("{tenant}: {}, {} bytes", answer.status(), answer.bytes().await?.len()),
            (tenant, Err(error)) => match Refusal::of(&error) {
                Some(refusal) => println!("{tenant}: not sent, {refusal}"),
                None => return Err(error.into()),
            },
        }
    }
    client.close().await;
    Ok(())
}
