//! Fallbacks: what a caller gets when its request is refused. Here an answer from before; else a smaller model's, in a pool
//! of its own; else a place in a queue.
//!
//! ```sh
//! tidegate emulate                      # in one terminal: a provider, at http://127.0.0.1:8787
//! cargo run --example fallback          # in another
//! ```
//!
//! `TIDEGATE_PROVIDER` names another provider.

use std::sync::Arc;
use std::time::Duration;

use reqwest_middleware::ClientBuilder;
use tidegate::client::{
    AnswerCache, CacheKey, CacheParams, Client, ClientParams, FALLBACK_HEADER, Fallbacks, Limited, PoolParams, Requeued,
};
use tidegate::plan::{Rate, Thresholds};
use tidegate::provider::Dialect;
use tidegate::quota::Meter;
use tidegate::store::MemoryStore;
use tidegate::telemetry::Telemetry;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let provider = std::env::var("TIDEGATE_PROVIDER").unwrap_or_else(|_| "http://127.0.0.1:8787".to_owned());

    // What holds until a controller says otherwise: a request each 5 s, and nobody waits that long.
    let pool = |name: &str| {
        let rates = [(Meter::REQUESTS_PER_MINUTE, Rate { rate: 12.0, burst: 1.0 })].into();
        let bootstrap = Thresholds { rates, concurrency: None };
        name.parse().map(|id| PoolParams { bootstrap, ..PoolParams::new(id, Dialect::OpenAi) })
    };
    let params = ClientParams::new(vec![pool("large")?, pool("small")?]);
    let params = ClientParams { max_wait: Duration::from_millis(100), ..params };
    let client = Client::start(params, Arc::new(MemoryStore::new()), Arc::new(Telemetry::new())).await;

    let cache = AnswerCache::new(CacheParams { ttl: Duration::from_secs(60), ..CacheParams::default() });
    let (queue, mut later) = tokio::sync::mpsc::channel::<Requeued>(100);
    let fallbacks = Fallbacks::new()
        .cached(&cache)
        .other_pool(client.pool("small")?, |mut request| {
            let text = request.body().and_then(reqwest::Body::as_bytes).map(String::from_utf8_lossy);
            if let Some(rewritten) = text.map(|text| text.replace("\"large\"", "\"small\"")) {
                *request.body_mut() = Some(rewritten.into());
            }
            request
        })
        .requeue(queue);

    // The emulator is on this machine: no proxy on the way to it.
    let http = reqwest::Client::builder().no_proxy().build()?;
    let limited = Limited::new(client.pool("large")?, "acme".parse()?);
    let ours = ClientBuilder::new(http.clone()).with(limited.clone().with_fallbacks(fallbacks)).build();
    let ask = async |prompt: &str| {
        let body = format!(r#"{{"model":"large","user":"acme","messages":[{{"role":"user","content":"{prompt}"}}]}}"#);
        let call = ours.post(format!("{provider}/v1/chat/completions")).header("content-type", "application/json");
        // Requests with this key have the same answer.
        let answer = call.body(body).with_extension(CacheKey(prompt.to_owned())).send().await?;
        let by =
            answer.headers().get(FALLBACK_HEADER).and_then(|by| by.to_str().ok()).unwrap_or("a provider").to_owned();
        let status = answer.status();
        let text = answer.text().await?;
        let model = ["large", "small"].into_iter().find(|name| text.contains(&format!(r#""model":"{name}""#)));
        println!("{prompt}: {status} by {by}, {}", model.unwrap_or("not answered yet"));
        Ok::<(), reqwest_middleware::Error>(())
    };
    for prompt in ["hello", "hello", "good day", "good night"] {
        ask(prompt).await?;
    }

    // Whoever reads the queue waits as long as it was told, and then in line: two clocks may differ by a moment. Its answers
    // are kept for those who ask again, once they have been read.
    let worker = ClientBuilder::new(http).with(limited.with_fallbacks(Fallbacks::new().cached(&cache))).build();
    while let Ok(Requeued { request, tenant, cost, cache_key, refusal }) = later.try_recv() {
        if let tidegate::client::Refusal::WaitUntil { after, .. } = refusal {
            tokio::time::sleep(after).await;
        }
        let call = reqwest_middleware::RequestBuilder::from_parts(worker.clone(), request);
        let call = call.with_extension(tenant).with_extension(cost);
        let call = match cache_key {
            Some(key) => call.with_extension(key),
            None => call,
        };
        let answer = call.send().await?;
        println!("from the queue: {}", answer.status());
        answer.bytes().await?;
    }
    ask("good night").await?;
    client.close().await;
    Ok(())
}
