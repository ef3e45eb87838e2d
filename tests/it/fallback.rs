//! Fallbacks: what a caller of the middleware gets when its request is refused, and what is kept for that meanwhile.

use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{Response, StatusCode};
use axum::routing::{any, post};
use http::HeaderMap;
use parking_lot::Mutex;
use reqwest_middleware::{ClientBuilder, ClientWithMiddleware, RequestBuilder};
use tidegate::client::{
    AnswerCache, CacheKey, CacheParams, Client, ClientParams, FALLBACK_HEADER, Fallbacks, Limited, Pool, PoolParams,
    Refusal, Requeued,
};
use tidegate::clock::{ManualClock, MonoTime};
use tidegate::plan::Thresholds;
use tidegate::provider::{Dialect, Head};
use tidegate::quota::Cost;
use tidegate::store::MemoryStore;
use tidegate::telemetry::{Metric, Telemetry};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::by_hand::{RPM, TPM, rates, tenant};
use super::middleware::{futures_stream, http, serve};

/// A client without a controller, and its one pool.
struct Side {
    pool: Pool,
    telemetry: Arc<Telemetry>,
    _client: Client,
}

impl Side {
    async fn open(max_wait: Duration) -> Self {
        // One token is always there, so that only what a test says is refused.
        let bootstrap = Thresholds { concurrency: Some(1), ..rates(&[(RPM, 60e6, 60e6), (TPM, 60e9, 10_000.0)]) };
        let pool = PoolParams { bootstrap, ..PoolParams::new("main".parse().expect("valid"), Dialect::OpenAi) };
        let telemetry = Arc::new(Telemetry::new());
        let params = ClientParams { max_wait, ..ClientParams::new(vec![pool]) };
        let client = Client::start(params, Arc::new(MemoryStore::new()), telemetry.clone()).await;
        Self { pool: client.pool("main").expect("named"), telemetry, _client: client }
    }

    /// A pool whose provider has just refused: so does the pool, at once, for 50 s.
    async fn refusing() -> Self {
        let side = Self::open(Duration::from_secs(10)).await;
        side.refuse().await;
        side
    }

    async fn refuse(&self) {
        let mut permit = self.pool.admit(&tenant("acme"), Cost::request(0, 0)).await.expect("room");
        let headers = HeaderMap::from_iter([("retry-after".parse().expect("a name"), 50.into())]);
        let seen = permit.observe(&Head { status: 429, headers: &headers });
        permit.conclude(&seen);
    }

    fn limited(&self) -> Limited {
        Limited::new(self.pool.clone(), tenant("acme"))
    }

    fn with(&self, fallbacks: Fallbacks) -> ClientWithMiddleware {
        through(self.limited().with_fallbacks(fallbacks))
    }

    /// How often each kind served, or could not.
    fn counted(&self) -> Vec<String> {
        let samples = self.telemetry.snapshot();
        let ours = samples.into_iter().filter(|sample| sample.metric == Metric::Fallbacks);
        let mut counted: Vec<_> =
            ours.map(|sample| format!("{} {}", sample.labels.join(" "), sample.value.number())).collect();
        counted.sort();
        counted
    }
}

fn through(limited: Limited) -> ClientWithMiddleware {
    ClientBuilder::new(http()).with(limited).build()
}

/// Where nobody listens: who sends anything there gets an error that is no refusal.
const NOWHERE: &str = "http://127.0.0.1:1/v1";

async fn refusal(request: RequestBuilder) -> Refusal {
    let error = request.send().await.expect_err("refused");
    Refusal::of(&error).unwrap_or_else(|| panic!("expected a refusal, got {error:?}"))
}

fn key(name: &str) -> CacheKey {
    CacheKey(name.to_owned())
}

fn made_by(answer: &reqwest::Response) -> Option<&str> {
    answer.headers().get(FALLBACK_HEADER).and_then(|value| value.to_str().ok())
}

// === cached ===

fn cache(params: CacheParams) -> (AnswerCache, Arc<ManualClock>) {
    let clock = Arc::new(ManualClock::at(MonoTime::from_millis(1_000)));
    (AnswerCache::with_clock(params, clock.clone()), clock)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_request_gets_the_answer_that_was_given_before() {
    let answer = || async {
        let answer = Response::builder().status(201).header("content-type", "application/json");
        answer
            .header("set-cookie", "s=1")
            .header("x-ratelimit-remaining-requests", "9")
            .body(Body::from("[1, 2]"))
            .expect("a response")
    };
    let url = serve(Router::new().route("/a", any(answer))).await + "/a?b=c";
    let side = Side::open(Duration::from_secs(10)).await;
    let (cache, clock) = cache(CacheParams::default());
    let http = side.with(Fallbacks::new().cached(&cache));
    let first = http.get(&url).with_extension(key("k")).send().await.expect("admitted");
    assert_eq!((made_by(&first), first.url().as_str()), (None, url.as_str()));
    assert_eq!(first.bytes().await.expect("whole"), "[1, 2]");
    side.refuse().await;

    clock.advance(Duration::from_millis(7_900));
    let again = http.get(&url).with_extension(key("k")).send().await.expect("answered from before");
    assert_eq!((again.status(), again.url().as_str(), made_by(&again)), (StatusCode::CREATED, &*url, Some("cached")));
    assert_eq!(again.headers()["age"], "7");
    assert_eq!(again.headers()["content-type"], "application/json");
    // And nothing else: no cookie, no limits.
    assert_eq!(again.headers().len(), 3, "{:?}", again.headers());
    assert_eq!(again.bytes().await.expect("whole"), "[1, 2]");

    refusal(http.get(&url)).await;
    refusal(http.get(&url).with_extension(key("another"))).await;
    refusal(http.get(&url).with_extension(key("k")).with_extension(tenant("globex"))).await;
    // Five minutes since it was kept.
    clock.advance(Duration::from_millis(292_100));
    refusal(http.get(&url).with_extension(key("k"))).await;
    assert_eq!(cache.bytes(), 0, "what is too old is let go");
    assert_eq!(side.counted(), ["main cached failed 4", "main cached served 1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_whole_successful_answers_of_bounded_size_are_kept() {
    let params = CacheParams { answer_bytes_max: 10, ..CacheParams::default() };
    let chunked = |texts: &'static [&'static str]| {
        let mut texts = texts.iter();
        Body::new(futures_stream(move |_| {
            Poll::Ready(texts.next().map(|text| Ok(Bytes::from_static(text.as_bytes()))))
        }))
    };
    let broken = || {
        let mut polls = 0;
        Body::new(futures_stream(move |context| {
            polls += 1;
            match polls {
                1 => Poll::Ready(Some(Ok(Bytes::from_static(b"one")))),
                // The head is sent before the rest is asked for.
                2 => {
                    context.waker().wake_by_ref();
                    Poll::Pending
                }
                _ => Poll::Ready(Some(Err(std::io::Error::other("cut")))),
            }
        }))
    };
    let body = move |name: &str| match name {
        "long" => Body::from("more than ten"),
        "chunked" => chunked(&["just ", "ten b"]),
        "chunked-long" => chunked(&["eleven", "bytes"]),
        "broken" => broken(),
        _ => Body::from("ten bytes."),
    };
    let head = |name: &str| match name {
        "400" | "500" | "206" => (name.parse().expect("a status"), "application/json"),
        "events" => (200, "text/event-stream; charset=utf-8"),
        _ => (200, "application/json"),
    };
    let answer = move |axum::extract::Path(name): axum::extract::Path<String>| async move {
        let (status, content_type) = head(&name);
        Response::builder().status(status).header("content-type", content_type).body(body(&name)).expect("a response")
    };
    let url = serve(Router::new().route("/{name}", any(answer))).await;
    let side = Side::open(Duration::from_secs(10)).await;
    for name in ["400", "500", "206", "events", "long", "chunked-long", "broken", "dropped", "whole", "chunked"] {
        let (cache, _) = cache(params);
        let http = side.with(Fallbacks::new().cached(&cache));
        let answer = http.get(format!("{url}/{name}")).with_extension(key("k")).send().await.expect("admitted");
        if name == "dropped" {
            drop(answer);
        } else {
            assert_eq!(answer.bytes().await.is_err(), name == "broken", "{name}");
        }
        assert_eq!(cache.bytes() > 0, ["whole", "chunked"].contains(&name), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_kept_is_bounded_as_a_whole() {
    let url = serve(Router::new().route("/", any(|| async { vec![b'x'; 1_000] }))).await;
    let side = Side::open(Duration::from_secs(10)).await;
    let (cache, _) = cache(CacheParams { bytes_max: 10_000, ..CacheParams::default() });
    let http = side.with(Fallbacks::new().cached(&cache));
    for n in 0..30 {
        let answer = http.get(&url).with_extension(key(&n.to_string())).send().await.expect("admitted");
        answer.bytes().await.expect("whole");
        assert!((1_001..=10_000).contains(&cache.bytes()), "{} bytes", cache.bytes());
    }
    assert!(cache.bytes() > 5_000, "{} bytes", cache.bytes());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_kept_is_not_held_back() {
    let (sender, receiver) = mpsc::channel::<Result<Bytes, std::io::Error>>(1);
    let receiver = Arc::new(Mutex::new(Some(receiver)));
    let answer = move || {
        let mut body = receiver.lock().take().expect("asked once");
        let stream = futures_stream(move |context| body.poll_recv(context));
        async move { Response::new(Body::new(stream)) }
    };
    let url = serve(Router::new().route("/", any(answer))).await;
    let side = Side::open(Duration::from_secs(10)).await;
    let (cache, _) = cache(CacheParams::default());
    let http = side.with(Fallbacks::new().cached(&cache));
    let mut answer = http.get(&url).with_extension(key("k")).send().await.expect("a head");
    for text in ["one", "two"] {
        // Nothing more is sent until this has come.
        sender.send(Ok(Bytes::from_static(text.as_bytes()))).await.expect("somebody reads");
        assert_eq!(answer.chunk().await.expect("whole").expect("more"), text);
    }
    assert_eq!(cache.bytes(), 0);
    drop(sender);
    assert_eq!(answer.chunk().await.expect("whole"), None);
    assert!(cache.bytes() > 0);
}

// === requeued ===

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_request_is_put_into_the_queue_while_there_is_room() {
    let side = Side::refusing().await;
    let (queue, mut later) = mpsc::channel(1);
    let http = side.with(Fallbacks::new().requeue(queue));
    let ask = || http.post(NOWHERE).header("authorization", "Bearer secret").body("[1, 2]");
    let receipt = ask().with_extension(tenant("globex")).with_extension(key("k")).send().await.expect("queued");
    assert_eq!((receipt.status(), made_by(&receipt)), (StatusCode::ACCEPTED, Some("requeued")));
    assert_eq!(receipt.url().as_str(), NOWHERE);
    let after: u64 = receipt.headers()["retry-after"].to_str().expect("text").parse().expect("seconds");
    assert!((40..=61).contains(&after), "{after}");
    // There is one already.
    assert!(matches!(refusal(ask()).await, Refusal::WaitUntil { .. }));

    let requeued: Requeued = later.recv().await.expect("it is there");
    assert!(!format!("{requeued:?}").contains("secret"));
    assert_eq!(requeued.request.body().and_then(reqwest::Body::as_bytes), Some(&b"[1, 2]"[..]));
    assert_eq!(requeued.request.url().as_str(), NOWHERE);
    assert_eq!(requeued.request.headers()["authorization"], "Bearer secret");
    assert_eq!(
        (requeued.tenant, requeued.cost, requeued.cache_key),
        (tenant("globex"), Cost::request(2, 0), Some(key("k")))
    );

    // A body that cannot be copied, and a request that would wait in vain.
    let streamed = reqwest::Body::wrap(futures_stream(|_| Poll::Ready(None)));
    assert!(matches!(refusal(http.post(NOWHERE).body(streamed)).await, Refusal::WaitUntil { .. }));
    let never = ask().with_extension(Cost::request(20_000, 0));
    assert!(matches!(refusal(never).await, Refusal::Never(_)));
    assert_eq!(side.counted(), ["main requeue failed 3", "main requeue served 1"]);
}

// === another pool ===

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_request_is_sent_to_another_pool_as_it_is_rewritten() {
    let url =
        serve(Router::new().route("/mini", post(|text: String| async move { format!("to {text}") }))).await + "/mini";
    let (side, other) = (Side::refusing().await, Side::open(Duration::from_secs(10)).await);
    let to = url.clone();
    let fallbacks = Fallbacks::new().other_pool(other.pool.clone(), move |mut request| {
        *request.url_mut() = to.parse().expect("a URL");
        if request.body().is_some_and(|body| body.as_bytes().is_some()) {
            *request.body_mut() = Some("another model".into());
        }
        request
    });
    let http = side.with(fallbacks);
    let answer = http.post(NOWHERE).body("a model").send().await.expect("served");
    assert_eq!((answer.url().as_str(), made_by(&answer)), (url.as_str(), None));
    assert_eq!(answer.text().await.expect("whole"), "to another model");
    let traffic = || other.pool.traffic().into_values().next().expect("it has been seen");
    // 13 bytes: the cost is what was sent, not what was refused.
    assert_eq!((traffic().counters.sent, traffic().counters.settled.input_tokens), (1, 4));

    // A body that cannot be copied can still be sent once.
    let mut once = Some(Bytes::from_static(b"a stream"));
    let streamed = reqwest::Body::wrap(futures_stream(move |_| Poll::Ready(once.take().map(Ok))));
    let answer = http.post(NOWHERE).body(streamed).send().await.expect("served");
    assert_eq!(answer.text().await.expect("whole"), "to a stream");
    assert_eq!(traffic().in_flight, 0);
    other.refuse().await;
    refusal(http.post(NOWHERE).body("a model")).await;
    assert_eq!(side.counted(), ["main other_pool failed 1", "main other_pool served 2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn both_pools_together_take_no_longer_than_the_caller_waits() {
    let side = Side::open(Duration::from_secs(2)).await;
    let other = Side::open(Duration::from_secs(60)).await;
    let _places = [
        side.pool.admit(&tenant("acme"), Cost::request(0, 0)).await.expect("the only place"),
        other.pool.admit(&tenant("acme"), Cost::request(0, 0)).await.expect("the only place"),
    ];
    let http = side.with(Fallbacks::new().other_pool(other.pool.clone(), |request| request));
    let asked = Instant::now();
    refusal(http.get(NOWHERE)).await;
    let waited = asked.elapsed();
    assert!((Duration::from_millis(1_950)..Duration::from_millis(3_800)).contains(&waited), "{waited:?}");
}

// === the caller's own, and which are tried ===

fn told(text: &'static str) -> Fallbacks {
    Fallbacks::new().or_else(move |_, _| async move { Ok(Response::new(text).into()) })
}

#[tokio::test(flavor = "multi_thread")]
async fn fallbacks_are_tried_in_turn_and_each_is_counted() {
    let side = Side::refusing().await;
    let (cache, _) = cache(CacheParams::default());
    let (queue, mut later) = mpsc::channel(1);
    let seen: Arc<Mutex<Vec<Refusal>>> = Arc::default();
    let log = seen.clone();
    let own = move |request: reqwest::Request, refusal| {
        log.lock().push(refusal);
        let text = request.body().and_then(reqwest::Body::as_bytes).map(<[u8]>::to_vec);
        async move { if text.as_deref() == Some(b"fine") { Ok(Response::new("by hand").into()) } else { Err("no".into()) } }
    };
    let http = side.with(Fallbacks::new().cached(&cache).or_else(own).requeue(queue));
    let answer = http.post(NOWHERE).body("fine").send().await.expect("served");
    assert_eq!(answer.text().await.expect("whole"), "by hand");
    assert!(later.try_recv().is_err(), "the first that serves is the last that is tried");
    assert_eq!(http.post(NOWHERE).body("else").send().await.expect("queued").status(), StatusCode::ACCEPTED);
    let requeued = later.recv().await.expect("the same request");
    assert_eq!(requeued.request.body().and_then(reqwest::Body::as_bytes), Some(&b"else"[..]));
    // Neither does a refusal for good stand before all were asked.
    let never = http.post(NOWHERE).body("else").with_extension(Cost::request(20_000, 0));
    assert!(matches!(refusal(never).await, Refusal::Never(_)));
    // The own function takes a body that cannot be copied, and leaves nothing to queue.
    let streamed = reqwest::Body::wrap(futures_stream(|_| Poll::Ready(None)));
    refusal(http.post(NOWHERE).body(streamed)).await;
    assert!(matches!(seen.lock()[..], [Refusal::WaitUntil { .. }, Refusal::WaitUntil { .. }, Refusal::Never(_), _]));
    let expected = [
        "main cached failed 4",
        "main own failed 3",
        "main own served 1",
        "main requeue failed 2",
        "main requeue served 1",
    ];
    assert_eq!(side.counted(), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_calls_own_fallbacks_come_before_its_tenants_and_those_before_all_others() {
    let side = Side::refusing().await;
    let limited = side.limited().with_fallbacks(told("anyone"));
    let limited = limited.with_tenant_fallbacks(tenant("globex"), told("globex"));
    let http = through(limited.with_tenant_fallbacks(tenant("batch"), Fallbacks::new()));
    let text = async |request: RequestBuilder| request.send().await.expect("served").text().await.expect("whole");
    assert_eq!(text(http.get(NOWHERE)).await, "anyone");
    let globex = || http.get(NOWHERE).with_extension(tenant("globex"));
    assert_eq!(text(globex()).await, "globex");
    assert_eq!(text(globex().with_extension(told("this call"))).await, "this call");
    refusal(globex().with_extension(Fallbacks::new())).await;
    refusal(http.get(NOWHERE).with_extension(tenant("batch"))).await;
    // Without any, a refusal is as it was.
    refusal(through(side.limited()).get(NOWHERE)).await;
}
