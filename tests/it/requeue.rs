//! The queue in Redis: what is written down and what is not, who sends it and in which order, what becomes of what fails.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::any;
use parking_lot::Mutex;
use reqwest::{Method, Request, Response};
use reqwest_middleware::ClientBuilder;
use tidegate::client::{
    AnswerCache, CacheKey, CacheParams, Client, ClientParams, FALLBACK_HEADER, Fallbacks, Limited, NotQueued, Pool,
    PoolParams, Refusal, Requeue, Requeued, Why,
};
use tidegate::plan::Thresholds;
use tidegate::provider::{Dialect, Head};
use tidegate::quota::Cost;
use tidegate::redis::{
    Delivered, NotRevived, QueueError, QueueLengths, QueueParams, Redis, RedisParams, RequeueStream, Topology, Worker,
    WorkerParams,
};
use tidegate::sim::{RedisServer, RedisSetup};
use tidegate::store::MemoryStore;
use tidegate::telemetry::{Metric, Telemetry};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use super::by_hand::{RPM, TPM, rates, tenant};
use super::middleware::{futures_stream, http, serve};
use super::world::{PATIENCE, eventually};

/// Room for all that a test sends.
pub fn wide() -> Thresholds {
    Thresholds { concurrency: Some(100), ..rates(&[(RPM, 60e6, 60e6), (TPM, 60e9, 60e9)]) }
}

/// A client without a controller, its one pool, and a queue.
pub struct Side {
    pub pool: Pool,
    pub queue: RequeueStream,
    pub telemetry: Arc<Telemetry>,
    _client: Client,
}

impl Side {
    pub async fn open(url: &str, bootstrap: Thresholds, params: QueueParams) -> Self {
        Self::open_at(RedisParams::new(url), bootstrap, params).await
    }

    async fn open_at(redis: RedisParams, bootstrap: Thresholds, params: QueueParams) -> Self {
        let pool = PoolParams { bootstrap, ..PoolParams::new("main".parse().expect("valid"), Dialect::OpenAi) };
        let telemetry = Arc::new(Telemetry::new());
        let client =
            Client::start(ClientParams::new(vec![pool]), Arc::new(MemoryStore::new()), telemetry.clone()).await;
        let redis = Redis::new(redis).expect("a URL");
        let queue = RequeueStream::new(redis, params, telemetry.clone()).expect("good parameters");
        Self { pool: client.pool("main").expect("named"), queue, telemetry, _client: client }
    }

    async fn wide(redis: &RedisServer) -> Self {
        Self::wide_at(&redis.url()).await
    }

    pub async fn wide_at(url: &str) -> Self {
        Self::open(url, wide(), patient()).await
    }

    /// As if the provider had refused: so does the pool, for 50 s.
    async fn refuse(&self) {
        let mut permit = self.pool.admit(&tenant("acme"), Cost::request(0, 0)).await.expect("room");
        let headers = http::HeaderMap::from_iter([("retry-after".parse().expect("a name"), 50.into())]);
        let seen = permit.observe(&Head { status: 429, headers: &headers });
        permit.conclude(&seen);
    }

    async fn add(&self, whose: &str, url: &str, body: &str) {
        self.queue.requeue(requeued(whose, url, body)).await.expect("queued");
    }

    /// What a queue's metric says, by its labels but the queue's name.
    fn told(&self, metric: Metric) -> BTreeMap<String, f64> {
        let samples = self.telemetry.snapshot().into_iter().filter(|sample| sample.metric == metric);
        samples.map(|sample| (sample.labels[1..].join(" "), sample.value.number())).collect()
    }

    async fn has_lengths(&self, waiting: u64, dead: u64) {
        let expected = QueueLengths { waiting, dead };
        eventually("the queue's lengths", async || {
            (self.queue.lengths().await.expect("redis answers") == expected).then_some(())
        })
        .await;
    }
}

/// A queue on a machine that is busy with other tests.
pub fn patient() -> QueueParams {
    QueueParams { add_timeout: Duration::from_secs(5), ..QueueParams::new("main") }
}

/// A worker that is in a hurry.
pub fn quick() -> WorkerParams {
    WorkerParams {
        tries_max: 3,
        retry_first: Duration::from_millis(20),
        retry_max: Duration::from_millis(100),
        lease: Duration::from_secs(2),
        poll: Duration::from_millis(20),
        drain_max: PATIENCE,
        ..WorkerParams::default()
    }
}

pub fn requeued(whose: &str, url: &str, body: &str) -> Requeued {
    let mut request = Request::new(Method::POST, url.parse().expect("a URL"));
    *request.body_mut() = Some(body.to_owned().into());
    let refusal = Refusal::WaitUntil { after: Duration::from_secs(1), why: Why::Concurrency };
    Requeued { request, tenant: tenant(whose), cost: Cost::request(2, 3), cache_key: None, refusal }
}

/// A worker at work.
struct AtWork {
    stop: oneshot::Sender<()>,
    ended: JoinHandle<()>,
}

impl AtWork {
    fn begin(worker: Worker) -> Self {
        let (stop, stopped) = oneshot::channel::<()>();
        Self { stop, ended: tokio::spawn(worker.run(async move { drop(stopped.await) })) }
    }

    async fn end(self) {
        drop(self.stop);
        timeout(PATIENCE, self.ended).await.expect("it ends").expect("it did not panic");
    }
}

type Answered = mpsc::UnboundedReceiver<(Delivered, StatusCode, String)>;

/// A worker that tells of what it delivered.
fn worker(side: &Side, params: WorkerParams) -> (Worker, Answered) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let done = move |delivered: Delivered, answer: Response| {
        let sender = sender.clone();
        async move {
            let (status, text) = (answer.status(), answer.text().await?);
            sender.send((delivered, status, text)).map_err(|_| "nobody reads")?;
            Ok(())
        }
    };
    (Worker::new(&side.queue, params, side.pool.clone(), http(), done), receiver)
}

async fn next(answered: &mut Answered) -> (Delivered, StatusCode, String) {
    timeout(PATIENCE, answered.recv()).await.expect("in time").expect("the worker lives")
}

/// A provider that notes what it is sent, and answers what it is told to: of each body, the number of the call.
#[derive(Clone, Default)]
struct Provider {
    calls: Arc<Mutex<Vec<(String, HeaderMap, String)>>>,
}

impl Provider {
    /// Its URL; `answer` gets a call's body and the number of earlier ones with the same.
    async fn serve<A>(&self, answer: impl Fn(String, usize) -> A + Clone + Send + Sync + 'static) -> String
    where
        A: Future<Output = u16> + Send + 'static,
    {
        let calls = self.calls.clone();
        let handle = move |uri: axum::http::Uri, headers: HeaderMap, body: String| {
            let (calls, answer) = (calls.clone(), answer.clone());
            async move {
                let before = {
                    let mut calls = calls.lock();
                    let before = calls.iter().filter(|(.., earlier)| *earlier == body).count();
                    calls.push((uri.to_string(), headers, body.clone()));
                    before
                };
                let status = answer(body.clone(), before).await;
                (StatusCode::from_u16(status).expect("a status"), format!("to {body}"))
            }
        };
        serve(Router::new().route("/v1", any(handle))).await + "/v1"
    }

    fn bodies(&self) -> Vec<String> {
        self.calls.lock().iter().map(|(.., body)| body.clone()).collect()
    }
}

pub async fn redis() -> RedisServer {
    RedisServer::start().await.expect("redis starts")
}

pub fn cli(redis: &RedisServer, args: &[&str]) -> String {
    let output = redis.redis_cli().expect("installed").args(args).output().expect("it runs");
    assert!(output.status.success(), "redis-cli {args:?}: {output:?}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

// === from a refusal to an answer ===

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_call_is_sent_by_a_worker_with_its_credentials_and_answered_once() {
    let (redis, provider) = (redis().await, Provider::default());
    let url = provider.serve(async |_, _| 200).await;
    let service = Side::wide(&redis).await;
    service.refuse().await;
    let (cache, fallbacks) = (AnswerCache::new(CacheParams::default()), Fallbacks::new());
    let fallbacks = fallbacks.cached(&cache).requeue(service.queue.clone());
    let limited = Limited::new(service.pool.clone(), tenant("acme")).with_fallbacks(fallbacks);
    let calling = ClientBuilder::new(http()).with(limited).build();
    let ask = || {
        let call = calling.post(format!("{url}?version=1&key=secret")).bearer_auth("secret").body("[1, 2]");
        call.header("anthropic-version", "2023-06-01").with_extension(CacheKey("k".to_owned()))
    };
    let receipt = ask().send().await.expect("queued");
    assert_eq!(
        (receipt.status(), &receipt.headers()[FALLBACK_HEADER]),
        (StatusCode::ACCEPTED, &"requeued".parse().expect("text"))
    );
    assert!(provider.bodies().is_empty());

    // Another process, whose pool has room.
    let side = Side::wide(&redis).await;
    let (worker, mut answered) = worker(&side, quick());
    let worker = worker.keeping(&cache).with_credentials(|request, whose| {
        assert_eq!(whose.as_str(), "acme");
        request.headers_mut().insert("authorization", "Bearer secret".parse().expect("text"));
    });
    let at_work = AtWork::begin(worker);
    let (delivered, status, text) = next(&mut answered).await;
    assert_eq!((status, text.as_str(), delivered.tries), (StatusCode::OK, "to [1, 2]", 1));
    assert_eq!((delivered.method.as_str(), delivered.url), ("POST", format!("{url}?version=1")));
    assert_eq!((delivered.tenant, delivered.cost), (tenant("acme"), Cost::request(2, 0)));
    assert_eq!((delivered.cache_key, &delivered.body[..]), (Some(CacheKey("k".to_owned())), &b"[1, 2]"[..]));
    assert!(delivered.added_at.0 > 1_600_000_000_000);
    side.has_lengths(0, 0).await;
    at_work.end().await;
    assert!(answered.try_recv().is_err());

    let calls = provider.calls.lock().clone();
    let [(uri, headers, body)] = &calls[..] else { panic!("{calls:?}") };
    assert_eq!((uri.as_str(), body.as_str()), ("/v1?version=1", "[1, 2]"));
    assert_eq!(
        (&headers["authorization"], &headers["anthropic-version"]),
        (&"Bearer secret".parse().expect("text"), &"2023-06-01".parse().expect("text"))
    );
    assert_eq!(headers["idempotency-key"].to_str().expect("text"), delivered.id);
    assert_eq!(service.told(Metric::QueueAdded), [(String::new(), 1.0)].into());
    assert_eq!(side.told(Metric::QueueDelivered), [(String::new(), 1.0)].into());
    assert_eq!(side.told(Metric::QueueLength), [(String::new(), 0.0)].into());
    // Who asks again has the answer now.
    let again = ask().send().await.expect("answered");
    assert_eq!(&again.headers()[FALLBACK_HEADER], "cached");
    assert_eq!(again.text().await.expect("whole"), "to [1, 2]");
    // All that is left says who worked how far, and holds nothing.
    assert!(!cli(&redis, &["--scan"]).contains("lease"), "leases were given back");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_credentials_come_into_redis() {
    let redis = RedisServer::start_as(&RedisSetup { appendonly: true, ..RedisSetup::default() }).await.expect("starts");
    let params = QueueParams {
        headers: vec!["x-mine".parse().expect("a name"), "x-marked".parse().expect("a name")],
        secret_parameters: vec!["Mine".to_owned()],
        ..patient()
    };
    let side = Side::open(&redis.url(), wide(), params).await;
    let url = "http://user:s3cret@127.0.0.1:1/v1?key=s3cret&a=b&API_KEY=s3cret&access_token=s3cret&mine=s3cret&k%65y=s3cret&c#s3cret";
    let mut told = requeued("acme", url, "[]");
    let headers = told.request.headers_mut();
    for name in [
        "authorization",
        "x-api-key",
        "api-key",
        "x-goog-api-key",
        "cookie",
        "proxy-authorization",
        "x-unknown",
        "x-auth-token",
    ] {
        headers.insert(name, "s3cret".parse().expect("text"));
    }
    for (name, value) in
        [("content-type", "application/json"), ("openai-organization", "org"), ("x-mine", "yes"), ("accept", "*/*")]
    {
        headers.insert(name, value.parse().expect("text"));
    }
    // What its caller marked as a secret is one, wherever it stands.
    let mut marked: http::HeaderValue = "s3cret".parse().expect("text");
    marked.set_sensitive(true);
    headers.insert("x-marked", marked);
    side.queue.requeue(told).await.expect("queued");

    let folder = cli(&redis, &["config", "get", "dir"]).lines().last().expect("a folder").to_owned();
    let everything = written_in(folder.as_ref());
    let has = |text: &str| everything.windows(text.len()).any(|window| window == text.as_bytes());
    assert!(has("openai-organization") && has("content-type") && has("x-mine") && has("127.0.0.1:1/v1?a=b&c"));
    assert!(!has("s3cret") && !has("user"), "{}", String::from_utf8_lossy(&everything));
    let keys = cli(&redis, &["--scan"]);
    assert!(!keys.contains("acme") && keys.contains("{queue:main}"), "{keys}");

    // Nor could one ask for it.
    let secret = QueueParams { headers: vec!["x-api-key".parse().expect("a name")], ..patient() };
    let connection = || Redis::new(RedisParams::new(&redis.url())).expect("a URL");
    let refused = RequeueStream::new(connection(), secret, side.telemetry.clone()).expect_err("refused");
    assert!(matches!(&refused, QueueError::SecretHeader(name) if name == "x-api-key"), "{refused}");
    let nameless = RequeueStream::new(connection(), QueueParams::new("A queue"), side.telemetry.clone());
    assert!(matches!(nameless, Err(QueueError::Name(_))));
    assert!(!format!("{:?}", side.queue).contains("s3cret"));
}

/// All that Redis ever wrote down.
fn written_in(folder: &std::path::Path) -> Vec<u8> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            all.extend(written_in(&path));
        } else if path.is_file() {
            all.extend(std::fs::read(&path).expect("readable"));
        }
    }
    all
}

// === what is not taken ===

async fn refusal(side: &Side, requeued: Requeued) -> String {
    let NotQueued(why) = side.queue.requeue(requeued).await.expect_err("not queued");
    why
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_is_not_taken_and_neither_is_anything_when_the_queue_is_full() {
    const NOWHERE: &str = "http://127.0.0.1:1/v1";
    let redis = redis().await;
    let params = QueueParams { length_max: 3, body_bytes_max: 10, ..patient() };
    let side = Side::open(&redis.url(), wide(), params).await;
    assert_eq!(
        refusal(&side, requeued("acme", NOWHERE, "eleven bytes")).await,
        "its body is larger than the queue takes"
    );
    let long = format!("{NOWHERE}?q={}", "x".repeat(40_000));
    assert_eq!(
        refusal(&side, requeued("acme", &long, "")).await,
        "its URL and headers are larger than the queue takes"
    );
    let mut streamed = requeued("acme", NOWHERE, "");
    *streamed.request.body_mut() = Some(reqwest::Body::wrap(futures_stream(|_| std::task::Poll::Ready(None))));
    assert_eq!(refusal(&side, streamed).await, "its body is streamed");
    // Whosever it is, there is room for three.
    for whose in ["acme", "globex", "initech"] {
        side.add(whose, NOWHERE, "ten bytes.").await;
    }
    for whose in ["acme", "hooli"] {
        assert_eq!(refusal(&side, requeued(whose, NOWHERE, "one more")).await, "the queue is full");
    }
    side.has_lengths(3, 0).await;
    let expected = [("body_too_large", 1.0), ("full", 2.0), ("head_too_large", 1.0), ("streamed", 1.0)];
    assert_eq!(side.told(Metric::QueueRefused), expected.map(|(why, n)| (why.to_owned(), n)).into());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_does_not_answer_costs_its_caller_50_ms_and_takes_nothing() {
    let mut redis = redis().await;
    let side = Side::open(&redis.url(), wide(), QueueParams::new("main")).await;
    // The first makes the connection, whoever waits for it.
    eventually("it is reached", async || {
        side.queue.requeue(requeued("acme", "http://127.0.0.1:1/", "before")).await.ok()
    })
    .await;
    redis.pause().expect("paused");
    let asked = Instant::now();
    let why = refusal(&side, requeued("acme", "http://127.0.0.1:1/", "late")).await;
    let took = asked.elapsed();
    assert_eq!(why, "redis did not answer within 50 ms");
    assert!((Duration::from_millis(50)..Duration::from_millis(500)).contains(&took), "{took:?}");
    redis.resume().expect("resumed");
    // Redis has it now; and then no more, as its caller was told no.
    eventually("it was added late", async || {
        let added: u64 = cli(&redis, &["info", "commandstats"])
            .lines()
            .find_map(|line| line.strip_prefix("cmdstat_xdel:calls=")?.split(',').next()?.parse().ok())
            .unwrap_or(0);
        (added > 0).then_some(())
    })
    .await;
    let left = side.queue.lengths().await.expect("redis answers").waiting;
    let added = side.told(Metric::QueueAdded)[""];
    assert_eq!(left as f64, added, "those alone that were taken in time");
    redis.kill().expect("killed");
    let why = refusal(&side, requeued("acme", "http://127.0.0.1:1/", "gone")).await;
    assert!(why.starts_with("redis"), "{why}");
}

// === order, and what is tried again ===

#[tokio::test(flavor = "multi_thread")]
async fn a_tenants_requests_are_sent_in_order_and_others_do_not_wait_for_one_that_is_tried_again() {
    let (redis, provider) = (redis().await, Provider::default());
    let (open, opened) = watch::channel(false);
    // One tenant's second request fails until all others have been answered; of those each third fails once.
    let answer = move |body: String, before: usize| {
        let is_open = *opened.borrow();
        async move {
            match body.as_str() {
                "stuck 1" => {
                    if is_open {
                        200
                    } else {
                        503
                    }
                }
                _ if body.ends_with(['3', '6', '9']) && before == 0 => 500,
                _ => 200,
            }
        }
    };
    let url = provider.serve(answer).await;
    let side = Side::wide(&redis).await;
    let tenants: Vec<String> = (0..10).map(|n| format!("tenant-{n}")).collect();
    for n in 0..10 {
        for whose in tenants.iter().map(String::as_str).chain(["stuck"]) {
            side.add(whose, &url, &format!("{whose} {n}")).await;
        }
    }
    let (worker, mut answered) = worker(&side, WorkerParams { tries_max: 1_000, ..quick() });
    let at_work = AtWork::begin(worker);
    let mut order: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut take = async |count: usize| {
        for _ in 0..count {
            let (delivered, _, _) = next(&mut answered).await;
            let body = String::from_utf8(delivered.body.to_vec()).expect("text");
            order.entry(delivered.tenant.to_string()).or_default().push(body);
        }
        order.clone()
    };
    let before = take(101).await;
    assert_eq!(before["stuck"], ["stuck 0"]);
    open.send(true).expect("the provider lives");
    let all = take(9).await;
    assert_eq!(all.len(), 11);
    for (whose, bodies) in &all {
        let expected: Vec<String> = (0..10).map(|n| format!("{whose} {n}")).collect();
        assert_eq!(*bodies, expected);
    }
    side.has_lengths(0, 0).await;
    at_work.end().await;
    let sent = provider.bodies();
    let of_stuck: Vec<&String> = sent.iter().filter(|body| body.starts_with("stuck")).collect();
    let first_later = of_stuck.iter().position(|body| *body == "stuck 2").expect("sent");
    assert!(of_stuck[1..first_later].iter().all(|body| *body == "stuck 1"), "nothing overtakes: {of_stuck:?}");
    assert_eq!(side.told(Metric::QueueRetried).into_keys().collect::<Vec<_>>(), ["server_error"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_is_tried_three_times_and_then_a_dead_letter_that_can_be_revived() {
    let (redis, provider) = (redis().await, Provider::default());
    let (heal, healed) = watch::channel(false);
    let answer = move |body: String, _| {
        let status = if *healed.borrow() { 200 } else { body.parse().expect("a status") };
        async move { status }
    };
    let url = provider.serve(answer).await;
    let side = Side::wide(&redis).await;
    // Nobody listens there.
    side.add("nobody", "http://127.0.0.1:1/v1?a=b", "0").await;
    for status in ["500", "503", "401", "403", "408", "400", "404"] {
        side.add(status, &format!("{url}?of={status}"), status).await;
    }
    let (first, mut answered) = worker(&side, quick());
    let first = first.with_credentials(|request, _| {
        request.url_mut().query_pairs_mut().append_pair("key", "s3cret");
    });
    let at_work = AtWork::begin(first);
    side.has_lengths(0, 8).await;
    at_work.end().await;
    let dead = side.queue.dead_letters(None, 100).await.expect("redis answers");
    let told: BTreeSet<_> = dead
        .iter()
        .map(|letter| (letter.tenant.as_ref().expect("readable").to_string(), letter.tries, letter.reason.as_str()))
        .collect();
    let expected = [
        ("400", 1, "status 400"),
        ("401", 3, "status 401"),
        ("403", 3, "status 403"),
        ("404", 1, "status 404"),
        ("408", 3, "status 408"),
        ("500", 3, "status 500"),
        ("503", 3, "status 503"),
        ("nobody", 3, "error sending request"),
    ];
    assert_eq!(told, expected.map(|(whose, tries, reason)| (whose.to_owned(), tries, reason)).into());
    for letter in &dead {
        assert!(letter.died_at >= letter.added_at && letter.added_at.0 > 0, "{letter:?}");
        assert!(letter.request.starts_with("POST http://127.0.0.1") && !letter.message.is_empty(), "{letter:?}");
        assert!(!format!("{letter:?}").contains("s3cret"), "{letter:?}");
    }
    let counted = side.told(Metric::QueueDead);
    let expected = [("denied", 2.0), ("server_error", 2.0), ("status", 3.0), ("unanswered", 1.0)];
    assert_eq!(counted, expected.map(|(why, n)| (why.to_owned(), n)).into());
    assert_eq!(provider.bodies().len(), 5 * 3 + 2);

    // Listed in parts, and put back.
    let page = side.queue.dead_letters(Some(&dead[4].id), 2).await.expect("redis answers");
    assert_eq!(page, dead[5..7]);
    heal.send(true).expect("the provider lives");
    let (again, mut answers) = worker(&side, quick());
    let at_work = AtWork::begin(again);
    for letter in dead.iter().filter(|letter| letter.reason.starts_with("status")) {
        side.queue.revive(&letter.id).await.expect("there is room");
    }
    for _ in 0..7 {
        let (delivered, _, _) = next(&mut answers).await;
        assert_eq!(delivered.tries, 1, "those before are forgotten");
    }
    side.has_lengths(0, 1).await;
    at_work.end().await;
    let gone = side.queue.revive(&dead[0].id).await;
    let nobody = dead.iter().position(|letter| letter.reason == "error sending request");
    assert!(nobody == Some(0) || matches!(gone, Err(NotRevived::Unknown(_))), "{gone:?}");
    assert!(matches!(side.queue.revive("1-1").await, Err(NotRevived::Unknown(_))));
    assert!(answered.try_recv().is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_waits_for_its_turn_and_a_refusal_of_the_limiter_is_no_try() {
    let (redis, provider) = (redis().await, Provider::default());
    let url = provider.serve(async |_, _| 200).await;
    // Ten a second, one at a time, for whoever asks.
    let slow = Thresholds { concurrency: Some(1), ..rates(&[(RPM, 600.0, 1.0), (TPM, 60e9, 100.0)]) };
    let side = Side::open(&redis.url(), slow, patient()).await;
    for n in 0..20 {
        side.add(["acme", "globex"][n % 2], &url, &n.to_string()).await;
    }
    // Never admitted, whoever waits how long: it is larger than the bucket.
    let never = Requeued { cost: Cost::request(1_000, 0), ..requeued("initech", &url, "never") };
    side.queue.requeue(never).await.expect("queued");
    let began = Instant::now();
    // It does not wait in line, so each is refused some times before.
    let params = WorkerParams { tries_max: 1, admit_wait: Duration::ZERO, ..quick() };
    let (worker, mut answered) = worker(&side, params);
    let at_work = AtWork::begin(worker);
    for _ in 0..20 {
        assert_eq!(next(&mut answered).await.0.tries, 1);
    }
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(1_850), "{took:?}: faster than there is capacity");
    side.has_lengths(0, 1).await;
    at_work.end().await;
    let dead = side.queue.dead_letters(None, 10).await.expect("redis answers");
    assert!(dead[0].reason.starts_with("it needs "), "{dead:?}");
    assert_eq!(side.told(Metric::QueueDead), [("never".to_owned(), 1.0)].into());
    assert!(side.told(Metric::QueueRetried).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_cannot_be_handed_on_is_asked_for_again() {
    let (redis, provider) = (redis().await, Provider::default());
    let url = provider.serve(async |_, _| 200).await;
    let side = Side::wide(&redis).await;
    side.add("refuses", &url, "refuses").await;
    side.add("panics", &url, "panics").await;
    side.add("panics", &url, "behind").await;
    let (sender, mut answered) = mpsc::unbounded_channel();
    let done = move |delivered: Delivered, answer: Response| {
        let sender = sender.clone();
        async move {
            let body = String::from_utf8_lossy(&delivered.body).into_owned();
            match (body.as_str(), delivered.tries) {
                ("refuses", 1) => return Err("disk full".into()),
                ("panics", 1) => panic!("meant, by the test: an answer is handed to code that panics"),
                _ => {}
            }
            sender.send((delivered, answer.status(), body)).map_err(|_| "nobody reads")?;
            Ok(())
        }
    };
    let at_work = AtWork::begin(Worker::new(&side.queue, quick(), side.pool.clone(), http(), done));
    let mut tries = BTreeMap::new();
    for _ in 0..3 {
        let (delivered, _, body) = next(&mut answered).await;
        tries.insert(body, (delivered.tries, tries.len()));
    }
    assert_eq!((tries["refuses"].0, tries["panics"].0, tries["behind"].0), (2, 2, 1));
    assert!(tries["panics"].1 < tries["behind"].1, "in order all the same");
    side.has_lengths(0, 0).await;
    at_work.end().await;
    assert_eq!(side.told(Metric::QueueRetried), [("done".to_owned(), 1.0)].into());
}

// === dead letters that are many, entries that are none ===

#[tokio::test(flavor = "multi_thread")]
async fn what_has_no_room_among_the_dead_letters_stays_and_strangers_entries_are_put_there() {
    let (redis, provider) = (redis().await, Provider::default());
    let url = provider.serve(async |_, _| 400).await;
    let side = Side::open(&redis.url(), wide(), QueueParams { dead_max: 2, ..patient() }).await;
    // Whatever it is, it is kept, and is in nobody's way.
    cli(&redis, &["xadd", "tidegate:1:{queue:main}:lane:3", "*", "nonsense", "1"]);
    let (first, _answered) = worker(&side, quick());
    let at_work = AtWork::begin(first);
    side.has_lengths(0, 1).await;
    let dead = side.queue.dead_letters(None, 10).await.expect("redis answers");
    assert_eq!((dead[0].reason.as_str(), &dead[0].tenant, dead[0].tries), ("cannot be read", &None, 0));
    side.add("acme", &url, "one").await;
    side.has_lengths(0, 2).await;
    side.add("acme", &url, "two").await;
    eventually("there is no room", async || side.told(Metric::QueueRetried).get("dead_letters_full").copied()).await;
    side.has_lengths(1, 2).await;
    assert!(side.queue.discard(&dead[0].id).await.expect("redis answers"));
    side.has_lengths(0, 2).await;
    assert!(!side.queue.discard(&dead[0].id).await.expect("redis answers"), "it is gone already");
    at_work.end().await;
    assert_eq!(provider.bodies(), ["one", "two"], "sent once each");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_without_memory_takes_no_requests_and_is_emptied_all_the_same() {
    let (redis, provider) = (redis().await, Provider::default());
    let url = provider.serve(async |body, _| if body == "bad" { 400 } else { 200 }).await;
    let side = Side::wide(&redis).await;
    for body in ["one", "bad", "two"] {
        side.add("acme", &url, body).await;
    }
    cli(&redis, &["config", "set", "maxmemory", "1"]);
    let why = refusal(&side, requeued("acme", &url, "three")).await;
    assert!(why.contains("maxmemory"), "{why}");
    let (worker, mut answered) = worker(&side, quick());
    let at_work = AtWork::begin(worker);
    assert_eq!((next(&mut answered).await.2, next(&mut answered).await.2), ("to one".to_owned(), "to two".to_owned()));
    side.has_lengths(0, 1).await;
    at_work.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_is_in_one_place_of_a_cluster() {
    let settings = ["cluster-enabled yes", "cluster-announce-ip 127.0.0.1"].map(str::to_owned).to_vec();
    let redis = RedisServer::start_as(&RedisSetup { settings, ..RedisSetup::default() }).await.expect("redis starts");
    cli(&redis, &["cluster", "addslotsrange", "0", "16383"]);
    eventually("it is a cluster", async || {
        cli(&redis, &["cluster", "info"]).contains("cluster_state:ok").then_some(())
    })
    .await;
    let provider = Provider::default();
    let url = provider.serve(async |body, _| if body == "bad" { 400 } else { 200 }).await;
    let side =
        Side::open_at(RedisParams { topology: Topology::Cluster, ..RedisParams::new(&redis.url()) }, wide(), patient())
            .await;
    for (n, body) in ["one", "bad", "two", "three"].into_iter().enumerate() {
        side.add(&format!("tenant-{n}"), &url, body).await;
    }
    let (worker, mut answered) = worker(&side, quick());
    let at_work = AtWork::begin(worker);
    for _ in 0..3 {
        next(&mut answered).await;
    }
    side.has_lengths(0, 1).await;
    let dead = side.queue.dead_letters(None, 1).await.expect("redis answers");
    side.queue.revive(&dead[0].id).await.expect("there is room");
    side.has_lengths(0, 1).await;
    at_work.end().await;
}

// === several workers, and their ends ===

#[tokio::test(flavor = "multi_thread")]
async fn workers_share_a_queue_and_one_that_stops_finishes_what_it_has_in_flight() {
    let (redis, provider) = (redis().await, Provider::default());
    let (open, opened) = watch::channel(false);
    let answer = move |body: String, _| {
        let mut opened = opened.clone();
        async move {
            if body.starts_with("slow") {
                let _ = opened.wait_for(|open| *open).await;
            }
            200
        }
    };
    let url = provider.serve(answer).await;
    let (left, right) = (Side::wide(&redis).await, Side::wide(&redis).await);
    let ((one, mut by_one), (other, mut by_other)) = (worker(&left, quick()), worker(&right, quick()));
    let (one, other) = (AtWork::begin(one), AtWork::begin(other));
    // Half of the lanes each, when both know of each other.
    let leases = || {
        let keys = cli(&redis, &["--scan", "--pattern", "*lease*"]);
        let holders = keys.lines().map(|key| cli(&redis, &["get", key]));
        let mut of_each: BTreeMap<String, usize> = BTreeMap::new();
        for holder in holders {
            *of_each.entry(holder.split(':').next().unwrap_or_default().to_owned()).or_default() += 1;
        }
        of_each.into_values().collect::<Vec<_>>()
    };
    eventually("each has its part", async || (leases() == [16, 16]).then_some(())).await;
    let tenants: Vec<String> = (0..20).map(|n| format!("tenant-{n}")).collect();
    for whose in &tenants {
        left.add(whose, &url, &format!("slow {whose}")).await;
        left.add(whose, &url, &format!("then {whose}")).await;
    }
    eventually("all are in flight", async || (provider.bodies().len() == 20).then_some(())).await;
    // One is to stop, and waits for what it has in flight; what is behind that is the other's.
    drop(one.stop);
    eventually("it has stopped to begin", async || {
        open.send(true).expect("the provider lives");
        one.ended.is_finished().then_some(())
    })
    .await;
    let mut all = BTreeSet::new();
    let mut of_one = 0;
    while let Ok((delivered, ..)) = by_one.try_recv() {
        assert!(all.insert(delivered.body));
        of_one += 1;
    }
    while all.len() < 40 {
        let (delivered, ..) = next(&mut by_other).await;
        assert!(all.insert(delivered.body), "none twice");
    }
    assert!((1..40).contains(&of_one), "{of_one} of 40");
    left.has_lengths(0, 0).await;
    other.end().await;
    assert_eq!(provider.bodies().len(), 40);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_goes_on_by_itself_when_redis_is_back() {
    let setup = RedisSetup { appendonly: true, ..RedisSetup::default() };
    let (mut redis, provider) = (RedisServer::start_as(&setup).await.expect("redis starts"), Provider::default());
    let url = provider.serve(async |_, _| 200).await;
    let side = Side::wide(&redis).await;
    side.add("acme", &url, "before").await;
    let (worker, mut answered) = worker(&side, quick());
    let at_work = AtWork::begin(worker);
    assert_eq!(next(&mut answered).await.2, "to before");
    redis.kill().expect("killed");
    assert!(side.queue.requeue(requeued("acme", &url, "meanwhile")).await.is_err());
    redis.start_again().await.expect("redis starts again");
    eventually("the queue takes requests again", async || {
        side.queue.requeue(requeued("acme", &url, "after")).await.ok()
    })
    .await;
    assert_eq!(next(&mut answered).await.2, "to after");
    redis.pause().expect("paused");
    let pausing = side.queue.requeue(requeued("acme", &url, "paused"));
    let (added, resumed) = tokio::join!(pausing, async { redis.resume() });
    resumed.expect("resumed");
    added.expect("it waited");
    assert_eq!(next(&mut answered).await.2, "to paused");
    side.has_lengths(0, 0).await;
    at_work.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_read_by_a_turn_whose_answer_did_not_come_is_read_again() {
    let (mut redis, provider) = (redis().await, Provider::default());
    let url = provider.serve(async |_, _| 200).await;
    let side = Side::wide(&redis).await;
    // The lanes stay its own all the time: nothing else would make it look at them again.
    let params = WorkerParams { lease: Duration::from_secs(60), poll: Duration::from_millis(300), ..quick() };
    let (worker, mut answered) = worker(&side, params);
    let at_work = AtWork::begin(worker);
    side.add("acme", &url, "before").await;
    next(&mut answered).await;
    side.add("acme", &url, "meanwhile").await;
    // The next turn finds Redis so. It is done when Redis goes on, and nobody listens to its answer any more.
    redis.pause().expect("paused");
    tokio::time::sleep(Duration::from_secs(3)).await;
    redis.resume().expect("resumed");
    assert_eq!(next(&mut answered).await.2, "to meanwhile");
    side.has_lengths(0, 0).await;
    at_work.end().await;
    assert_eq!(provider.bodies(), ["before", "meanwhile"]);
}
