//! Answers from before in Redis: shared by processes, bounded, in nobody's way; and the connection, with TLS and a user.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::Response;
use axum::routing::any;
use bytes::Bytes;
use http::StatusCode;
use reqwest_middleware::{ClientBuilder, ClientWithMiddleware};
use tidegate::client::{
    AnswerStore, CacheKey, Client, ClientParams, FALLBACK_HEADER, Fallbacks, KeptAnswer, Limited, Pool, PoolParams,
    Refusal,
};
use tidegate::provider::{Dialect, Head};
use tidegate::quota::Cost;
use tidegate::redis::{AnswersInRedis, AnswersParams, Redis, RedisParams, RedisTls};
use tidegate::sim::{RedisServer, RedisServerTls, RedisSetup};
use tidegate::store::MemoryStore;
use tidegate::telemetry::{Metric, Telemetry};
use tokio::time::Instant;

use super::by_hand::tenant;
use super::etcd_tls::Papers;
use super::middleware::{http, serve};
use super::requeue::{cli, redis, wide};
use super::world::eventually;

/// On a machine that is busy with other tests.
fn patient() -> AnswersParams {
    AnswersParams { get_timeout: Duration::from_secs(5), ..AnswersParams::default() }
}

/// A process: a pool, and answers in Redis.
struct Side {
    pool: Pool,
    answers: AnswersInRedis,
    telemetry: Arc<Telemetry>,
    _client: Client,
}

impl Side {
    async fn open(redis: RedisParams, params: AnswersParams) -> Self {
        let pool = PoolParams { bootstrap: wide(), ..PoolParams::new("main".parse().expect("valid"), Dialect::OpenAi) };
        let telemetry = Arc::new(Telemetry::new());
        let client =
            Client::start(ClientParams::new(vec![pool]), Arc::new(MemoryStore::new()), telemetry.clone()).await;
        let answers = AnswersInRedis::new(Redis::new(redis).expect("good parameters"), params, telemetry.clone());
        Self { pool: client.pool("main").expect("named"), answers, telemetry, _client: client }
    }

    async fn at(redis: &RedisServer, params: AnswersParams) -> Self {
        Self::open(RedisParams::new(&redis.url()), params).await
    }

    fn http(&self) -> ClientWithMiddleware {
        let limited = Limited::new(self.pool.clone(), tenant("acme"));
        ClientBuilder::new(http()).with(limited.with_fallbacks(Fallbacks::new().cached(&self.answers))).build()
    }

    async fn refuse(&self) {
        let mut permit = self.pool.admit(&tenant("acme"), Cost::request(0, 0)).await.expect("room");
        let headers = http::HeaderMap::from_iter([("retry-after".parse().expect("a name"), 50.into())]);
        let seen = permit.observe(&Head { status: 429, headers: &headers });
        permit.conclude(&seen);
    }

    /// What could not be had or kept, by why.
    fn failed(&self) -> Vec<String> {
        let samples = self.telemetry.snapshot().into_iter().filter(|sample| sample.metric == Metric::AnswersFailed);
        samples.map(|sample| format!("{} {}", sample.labels.join(" "), sample.value.number())).collect()
    }

    async fn get(&self, whose: &str, name: &str) -> Option<KeptAnswer> {
        self.answers.get(&tenant(whose), &key(name)).await
    }

    fn put(&self, whose: &str, name: &str, text: &'static str) {
        let (status, body) = (StatusCode::OK, Bytes::from_static(text.as_bytes()));
        let answer = KeptAnswer { status, headers: http::HeaderMap::new(), body, age: Duration::ZERO };
        self.answers.put(&tenant(whose), &key(name), answer);
    }

    async fn kept(&self, whose: &str, name: &str) -> KeptAnswer {
        eventually("it is kept", async || self.get(whose, name).await).await
    }
}

fn key(name: &str) -> CacheKey {
    CacheKey(name.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_process_was_answered_another_has_when_it_is_refused() {
    let redis = redis().await;
    let answer = || async {
        let answer = Response::builder().status(201).header("content-type", "application/json");
        answer.header("set-cookie", "s=1").body(axum::body::Body::from("[1, 2]")).expect("a response")
    };
    let url = serve(Router::new().route("/a", any(answer))).await + "/a";
    let (one, other) = (Side::at(&redis, patient()).await, Side::at(&redis, patient()).await);
    other.refuse().await;
    let ask = |side: &Side, name: &str| side.http().get(&url).with_extension(key(name)).send();
    let missed = ask(&other, "a prompt").await.expect_err("refused");
    assert!(Refusal::of(&missed).is_some(), "{missed:?}");

    let first = ask(&one, "a prompt").await.expect("admitted");
    assert_eq!(first.bytes().await.expect("whole"), "[1, 2]");
    other.kept("acme", "a prompt").await;
    let again = ask(&other, "a prompt").await.expect("answered from before");
    assert_eq!(
        (again.status(), &again.headers()[FALLBACK_HEADER]),
        (StatusCode::CREATED, &"cached".parse().expect("text"))
    );
    assert_eq!(
        (&again.headers()["content-type"], again.headers().len()),
        (&"application/json".parse().expect("text"), 3)
    );
    assert!(again.headers()["age"].to_str().expect("text").parse::<u64>().expect("seconds") < 60);
    assert_eq!(again.bytes().await.expect("whole"), "[1, 2]");
    // Neither another key's nor another tenant's.
    assert!(other.get("acme", "a prompt of another").await.is_none());
    assert!(other.get("globex", "a prompt").await.is_none());

    // Nobody reads keys' names and knows who asked what.
    let names = cli(&redis, &["--scan"]);
    assert_eq!(names.lines().count(), 1);
    assert!(
        names.starts_with("tidegate:1:{answer:") && !names.contains("acme") && !names.contains("prompt"),
        "{names}"
    );
    assert!((1..=300_000).contains(&cli(&redis, &["pttl", &names]).parse::<u64>().expect("ms")));
    assert!(one.failed().is_empty() && other.failed().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_are_bounded_in_age_and_size_and_what_is_none_is_none() {
    let redis = redis().await;
    let params = AnswersParams { ttl: Duration::from_millis(400), answer_bytes_max: 10, ..patient() };
    let side = Side::at(&redis, params).await;
    side.put("acme", "large", "more than ten");
    side.put("acme", "k", "ten bytes.");
    let kept = side.kept("acme", "k").await;
    assert_eq!((&kept.body[..], kept.status), (&b"ten bytes."[..], StatusCode::OK));
    assert!(kept.age < Duration::from_millis(400), "{:?}", kept.age);
    eventually("redis lets it go", async || (cli(&redis, &["dbsize"]) == "0").then_some(())).await;
    assert!(side.get("acme", "k").await.is_none() && side.get("acme", "large").await.is_none());
    // An age is counted on, and what has had its time is not kept again.
    let old = KeptAnswer { age: Duration::from_millis(400), ..kept.clone() };
    side.answers.put(&tenant("acme"), &key("old"), old);
    let lasting = Side::at(&redis, patient()).await;
    let aged = KeptAnswer { age: Duration::from_secs(100), ..kept };
    lasting.answers.put(&tenant("acme"), &key("aged"), aged);
    let aged = lasting.kept("acme", "aged").await;
    assert!((Duration::from_secs(100)..Duration::from_secs(130)).contains(&aged.age), "{:?}", aged.age);
    assert!(lasting.get("acme", "old").await.is_none());

    let names = cli(&redis, &["--scan"]);
    for nonsense in ["nonsense", "{\"status\": 1}\n", "", "{\"status\":99,\"headers\":[],\"ttl_ms\":1,\"age_ms\":0}\nx"]
    {
        cli(&redis, &["set", &names, nonsense]);
        assert!(lasting.get("acme", "aged").await.is_none(), "{nonsense}");
    }
    assert_eq!(lasting.failed(), ["get unreadable 4"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_does_not_answer_delays_no_answer_and_a_refusal_by_50_ms() {
    let mut redis = redis().await;
    let url = serve(Router::new().route("/", any(|| async { "fine" }))).await;
    let side = Side::at(&redis, AnswersParams { puts_max: 1, ..AnswersParams::default() }).await;
    side.put("acme", "k", "kept");
    side.kept("acme", "k").await;
    let failed_before = side.failed().len();
    redis.pause().expect("paused");
    let ask = async || {
        let asked = Instant::now();
        let answer = side.http().get(&url).with_extension(key("k")).send().await;
        (answer, asked.elapsed())
    };
    // The second finds the first still on its way into Redis, and is let go.
    for _ in 0..2 {
        let (answer, took) = ask().await;
        let answer = answer.expect("admitted");
        assert_eq!(answer.text().await.expect("whole"), "fine");
        assert!(took < Duration::from_secs(1), "{took:?}");
    }
    eventually("it is told", async || side.failed().contains(&"put busy 1".to_owned()).then_some(())).await;
    side.refuse().await;
    let (refused, took) = ask().await;
    assert!(refused.is_err_and(|error| Refusal::of(&error).is_some()));
    assert!((Duration::from_millis(50)..Duration::from_secs(1)).contains(&took), "{took:?}");
    assert!(side.failed().contains(&"get late 1".to_owned()), "{:?}", side.failed());
    redis.kill().expect("killed");
    assert!(ask().await.0.is_err());
    eventually("that it failed is told", async || (side.failed().len() > failed_before + 2).then_some(())).await;
    // And by itself it is there again.
    redis.start_again().await.expect("redis starts again");
    eventually("it is kept again", async || {
        side.put("acme", "k", "again");
        side.get("acme", "k").await
    })
    .await;
}

// === the connection ===

#[tokio::test(flavor = "multi_thread")]
async fn redis_is_spoken_to_over_tls_as_a_user_and_not_otherwise() {
    let papers = Papers::draw_up();
    let [authorities, certificate, private] = ["ca.pem", "server.pem", "server-key.pem"].map(|name| papers.file(name));
    let tls = RedisServerTls { authorities, certificate, key: private, asks_clients: true };
    let user = Some(("tidegate".to_owned(), "s3cret".to_owned()));
    let setup = RedisSetup { tls: Some(tls), user, ..RedisSetup::default() };
    let redis = RedisServer::start_as(&setup).await.expect("redis starts");
    let file = |name: &str| std::fs::read(papers.file(name)).expect("readable");
    let identity_pem = Some((file("client.pem"), file("client-key.pem")));
    let trusted = RedisTls { authorities_pem: Some(file("ca.pem")), identity_pem };
    let good = || RedisParams { tls: trusted.clone(), ..RedisParams::new(&redis.url()) };
    assert!(redis.url().starts_with("rediss://tidegate:s3cret@127.0.0.1:"), "{}", redis.url());
    assert!(!format!("{:?}", good()).contains("s3cret"));

    let side = Side::open(good(), patient()).await;
    side.put("acme", "k", "kept");
    assert_eq!(&side.kept("acme", "k").await.body[..], b"kept");
    assert!(side.failed().is_empty());
    assert!(cli(&redis, &["client", "list"]).contains("user=tidegate"));

    let stranger = Papers::draw_up();
    let strange = |name: &str| std::fs::read(stranger.file(name)).expect("readable");
    let bad = [
        ("another password", RedisParams { urls: vec![redis.url().replace("s3cret", "guess")], ..good() }),
        ("no user", RedisParams { urls: vec![redis.url().replace("tidegate:s3cret@", "")], ..good() }),
        ("no TLS", RedisParams::new(&redis.url().replace("rediss", "redis"))),
        (
            "no certificate of one's own",
            RedisParams { tls: RedisTls { identity_pem: None, ..trusted.clone() }, ..good() },
        ),
        (
            "another authority",
            RedisParams { tls: RedisTls { authorities_pem: Some(strange("ca.pem")), ..trusted.clone() }, ..good() },
        ),
        (
            "a certificate of another authority",
            RedisParams {
                tls: RedisTls {
                    identity_pem: Some((strange("client.pem"), strange("client-key.pem"))),
                    ..trusted.clone()
                },
                ..good()
            },
        ),
    ];
    for (what, params) in bad {
        let side = Side::open(params, patient()).await;
        assert!(side.get("acme", "k").await.is_none(), "{what}");
        assert_eq!(side.failed().len(), 1, "{what}: {:?}", side.failed());
    }
    // Words that are no URL are told at once, without their password.
    let wrong = Redis::new(RedisParams::new("redis//tidegate:s3cret@host")).expect_err("no URL");
    assert!(!wrong.to_string().contains("s3cret") && wrong.to_string().contains("redis://"), "{wrong}");
}
