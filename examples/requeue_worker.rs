//! A queue in Redis: what a service's limit refuses is written down there, and a worker sends it when there is room. Here both are
//! one process; they are usually two, and of each there are many.
//!
//! ```sh
//! tidegate emulate                          # in one terminal: a provider, at http://127.0.0.1:8787
//! redis-server --appendonly yes             # in another: a Redis, at redis://127.0.0.1:6379
//! cargo run --example requeue_worker        # in a third
//! ```
//!
//! `TIDEGATE_PROVIDER` and `TIDEGATE_REDIS` name others.

use std::sync::Arc;
use std::time::Duration;

use reqwest_middleware::ClientBuilder;
use tidegate::client::{CacheKey, Client, ClientParams, FALLBACK_HEADER, Fallbacks, Limited, PoolParams};
use tidegate::plan::{Rate, Thresholds};
use tidegate::provider::Dialect;
use tidegate::quota::Meter;
use tidegate::redis::{
    AnswersInRedis, AnswersParams, Delivered, QueueParams, Redis, RedisParams, RequeueStream, Worker, WorkerParams,
};
use tidegate::store::MemoryStore;
use tidegate::telemetry::Telemetry;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let provider = std::env::var("TIDEGATE_PROVIDER").unwrap_or_else(|_| "http://127.0.0.1:8787".to_owned());
    let redis = std::env::var("TIDEGATE_REDIS").unwrap_or_else(|_| "redis://127.0.0.1:6379".to_owned());

    // What holds until a controller says otherwise: a request each 2 s, and nobody waits that long.
    let rates = [(Meter::REQUESTS_PER_MINUTE, Rate { rate: 30.0, burst: 1.0 })].into();
    let bootstrap = Thresholds { rates, concurrency: None };
    let pool = PoolParams { bootstrap, ..PoolParams::new("gpt-4o".parse()?, Dialect::OpenAi) };
    let params = ClientParams { max_wait: Duration::from_millis(100), ..ClientParams::new(vec![pool]) };
    let telemetry = Arc::new(Telemetry::new());
    let client = Client::start(params, Arc::new(MemoryStore::new()), telemetry.clone()).await;
    let pool = client.pool("gpt-4o")?;

    // The same in services and workers. Answers are kept there too, for whoever asks again.
    let redis = Redis::new(RedisParams::new(&redis))?;
    let queue = RequeueStream::new(redis.clone(), QueueParams::new("gpt-4o"), telemetry.clone())?;
    let answers = AnswersInRedis::new(redis, AnswersParams::default(), telemetry);
    // A Redis that is not there is told by an error here; later refusals only become refusals again.
    println!("in the queue before: {}", queue.lengths().await?.waiting);

    // The emulator is on this machine: no proxy on the way to it.
    let http = reqwest::Client::builder().no_proxy().build()?;
    let fallbacks = Fallbacks::new().cached(&answers).requeue(queue.clone());
    let limited = Limited::new(pool.clone(), "acme".parse()?).with_fallbacks(fallbacks);
    let service = ClientBuilder::new(http.clone()).with(limited).build();
    let ask = async |prompt: &str| {
        let body = format!(r#"{{"model":"gpt-4o","user":"acme","messages":[{{"role":"user","content":"{prompt}"}}]}}"#);
        let call = service.post(format!("{provider}/v1/chat/completions")).header("content-type", "application/json");
        // The key is in no request that is written down.
        let call = call.header("authorization", "Bearer secret").with_extension(CacheKey(prompt.to_owned()));
        let answer = call.body(body).send().await?;
        let by = answer.headers().get(FALLBACK_HEADER).and_then(|by| by.to_str().ok()).unwrap_or("a provider");
        println!("{prompt}: {} by {by}", answer.status());
        answer.bytes().await.map_err(reqwest_middleware::Error::from)
    };
    for prompt in ["good morning", "good day", "good night"] {
        ask(prompt).await?;
    }

    // Gets each answer once at least. When it has returned, the request leaves the queue.
    let (delivered, mut told) = tokio::sync::mpsc::channel(10);
    let done = move |request: Delivered, answer: reqwest::Response| {
        let delivered = delivered.clone();
        async move {
            let (status, bytes) = (answer.status(), answer.bytes().await?.len());
            println!(
                "from the queue: {status}, try {}, {}",
                request.tries,
                if bytes > 0 { "answered" } else { "empty" }
            );
            Ok(delivered.send(()).await?)
        }
    };
    let worker = Worker::new(&queue, WorkerParams::default(), pool, http, done).keeping(&answers);
    let worker = worker.with_credentials(|request, _tenant| {
        request.headers_mut().insert("authorization", "Bearer secret".parse().expect("a key"));
    });
    // This one works until two have been answered; yours until its process is told to stop.
    worker
        .run(async {
            for _ in 0..2 {
                told.recv().await;
            }
        })
        .await;
    println!("left in the queue: {}", queue.lengths().await?.waiting);
    ask("good night").await?;
    client.close().await;
    Ok(())
}
