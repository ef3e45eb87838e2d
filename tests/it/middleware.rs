//! The reqwest middleware, between a running client and a provider on a socket.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{Response, StatusCode};
use axum::routing::{get, post};
use parking_lot::Mutex;
use reqwest_middleware::{ClientBuilder, ClientWithMiddleware, Error};
use serde_json::{Value, json};
use tidegate::client::{Limited, Permit, Refusal};
use tidegate::observation::{TenantReport, ThrottleKind};
use tidegate::plan::Thresholds;
use tidegate::provider::Dialect;
use tidegate::quota::{Cost, Meter, Unit, Window};
use tidegate::sim::emulator::{Emulator, EmulatorParams, LatencyParams};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use super::admission::{Stage, eventually};
use super::by_hand::{RPM, TPM, rates, tenant};

const PATIENCE: Duration = Duration::from_secs(20);
const OTPM: Meter = Meter { unit: Unit::OutputTokens, window: Window::Minute };

fn wide() -> Thresholds {
    Thresholds { concurrency: Some(100), ..rates(&[(RPM, 60e6, 60e6), (TPM, 60e9, 60e9)]) }
}

pub fn http() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().build().expect("an HTTP client")
}

fn limited(stage: &Stage) -> ClientWithMiddleware {
    ClientBuilder::new(http()).with(Limited::new(stage.pool.clone(), tenant("acme"))).build()
}

async fn emulator(requests_per_minute: u64) -> String {
    let mut params = EmulatorParams { seed: 1, ..EmulatorParams::default() };
    params.account.requests_per_minute = requests_per_minute;
    params.latency = LatencyParams { ttft_ms: 0.0, ms_per_token: 0.0, ..LatencyParams::default() };
    let emulator = Emulator::bind(SocketAddr::from(([127, 0, 0, 1], 0)), params).await.expect("binds");
    let url = format!("http://{}/v1/chat/completions", emulator.local_addr());
    tokio::spawn(emulator.serve(std::future::pending()));
    url
}

pub async fn serve(router: Router) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    tokio::spawn(async move { axum::serve(listener, router).await });
    url
}

fn chat() -> Value {
    json!({"model": "gpt-4o", "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 5})
}

fn error_body(kind: &str, code: &str, message: &str) -> String {
    json!({"error": {"message": message, "type": kind, "param": null, "code": code}}).to_string()
}

fn refusal_of(error: &Error) -> Refusal {
    Refusal::of(error).unwrap_or_else(|| panic!("expected a refusal, got {error:?}"))
}

#[test]
fn only_a_refusal_of_ours_is_taken_out_of_a_middleware_s_error() {
    let other = Error::middleware(std::io::Error::other("another middleware's"));
    assert_eq!(Refusal::of(&other), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_is_handed_on_as_it_came_and_its_url_too() {
    let answer = || async {
        Response::builder().header("x-mine", "yes").body(Body::from(vec![7_u8; 300_000])).expect("a response")
    };
    let url = serve(Router::new().route("/a", get(answer))).await;
    let stage = Stage::open(&[("acme", wide())]).await;
    let url = format!("{url}/a?b=c");
    let plain = http().get(&url).send().await.expect("answers");
    let ours = limited(&stage).get(&url).send().await.expect("answers");
    assert_eq!((ours.status(), ours.version(), ours.url()), (plain.status(), plain.version(), plain.url()));
    assert_eq!((ours.url().as_str(), ours.remote_addr()), (url.as_str(), plain.remote_addr()));
    assert_eq!((&ours.headers()["x-mine"], ours.content_length()), (&plain.headers()["x-mine"], Some(300_000)));
    assert_eq!(ours.bytes().await.expect("a body"), plain.bytes().await.expect("a body"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_emulator_is_observed_and_its_readings_are_kept() {
    let (url, stage) = (emulator(600).await, Stage::open(&[("acme", wide())]).await);
    let answer = limited(&stage).post(&url).body(chat().to_string()).send().await.expect("answers");
    assert_eq!(answer.status(), StatusCode::OK);
    assert!(answer.json::<Value>().await.expect("json")["choices"].is_array());
    let told = stage.reported("acme", "it succeeded", |told| told.counters.succeeded == 1).await;
    assert_eq!((told.counters.sent, told.counters.ttfb_log_ms.n), (1, 1));
    // A quarter of the body's bytes.
    assert_eq!(told.counters.reserved.input_tokens, (chat().to_string().len() as u64).div_ceil(4));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_permit_lives_until_the_body_has_been_read() {
    let (sender, receiver) = mpsc::channel::<Result<Bytes, std::io::Error>>(1);
    let receiver = Arc::new(Mutex::new(Some(receiver)));
    let answer = move || {
        let mut body = receiver.lock().take().expect("asked once");
        let stream = futures_stream(move |cx| body.poll_recv(cx));
        async move { Response::new(Body::new(stream)) }
    };
    let url = serve(Router::new().route("/", get(answer))).await;
    let stage = Stage::open(&[("acme", wide())]).await;
    let mut answer = limited(&stage).get(&url).send().await.expect("a head");
    sender.send(Ok(Bytes::from_static(b"one"))).await.expect("read");
    assert_eq!(answer.chunk().await.expect("a chunk").expect("some"), "one");
    let told = stage.reported("acme", "concluded", |told| told.counters.succeeded == 1).await;
    assert_eq!(told.in_flight, 1);
    drop(sender);
    assert_eq!(answer.chunk().await.expect("the end"), None);
    // Read to its end, though the caller keeps the response.
    stage.reported("acme", "settled", |told| told.in_flight == 0).await;
    drop(answer);
}

/// A body from a poll function: no crate for streams is needed.
pub fn futures_stream(
    poll: impl FnMut(&mut std::task::Context<'_>) -> std::task::Poll<Option<Result<Bytes, std::io::Error>>> + Unpin,
) -> impl http_body::Body<Data = Bytes, Error = std::io::Error> {
    struct Polled<P>(P);
    impl<P> http_body::Body for Polled<P>
    where
        P: FnMut(&mut std::task::Context<'_>) -> std::task::Poll<Option<Result<Bytes, std::io::Error>>> + Unpin,
    {
        type Data = Bytes;
        type Error = std::io::Error;

        fn poll_frame(
            mut self: std::pin::Pin<&mut Self>,
            context: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, std::io::Error>>> {
            (self.0)(context).map(|read| read.map(|read| read.map(http_body::Frame::data)))
        }
    }
    Polled(poll)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_of_the_emulator_is_handed_on_and_holds() {
    let (url, stage) = (emulator(6).await, Stage::open(&[("acme", wide())]).await);
    let client = limited(&stage);
    let refused = loop {
        let answer = client.post(&url).body(chat().to_string()).send().await.expect("answers");
        if answer.status() != StatusCode::OK {
            break answer;
        }
    };
    assert_eq!((refused.status(), refused.url().as_str()), (StatusCode::TOO_MANY_REQUESTS, url.as_str()));
    assert!(refused.headers().contains_key("x-ratelimit-limit-requests"));
    let body: Value = refused.json().await.expect("the body can still be read");
    assert_eq!(body["error"]["code"], "rate_limit_exceeded");
    eventually("the hold is in force", || stage.pool.tuning().holds.contains_key(&RPM)).await;
    // One a ten seconds: nothing is sent before.
    let again = stage.pool.admit_within(&tenant("acme"), Cost::request(0, 0), Duration::ZERO).await;
    assert!(matches!(again, Err(Refusal::WaitUntil { after, .. }) if after > Duration::from_secs(5)), "{again:?}");
    // A 429 is told of at once: the first report may still have the permit in flight.
    let landed = |told: &TenantReport| !told.counters.throttled.is_empty() && told.in_flight == 0;
    let told = stage.reported("acme", "it is told", landed).await;
    assert_eq!(told.counters.throttled.get(&ThrottleKind::Requests), Some(&1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_429_for_want_of_credit_is_ignored_chunked_or_not() {
    let text = error_body("insufficient_quota", "insufficient_quota", "You exceeded your current quota.");
    for chunked in [false, true] {
        let text = text.clone();
        let expected = text.clone();
        let answer = move || {
            let text = text.clone();
            async move {
                let mut once = Some(Bytes::from(text.clone()));
                let body = if chunked {
                    Body::new(futures_stream(move |_| std::task::Poll::Ready(once.take().map(Ok))))
                } else {
                    Body::from(text)
                };
                Response::builder().status(429).header("retry-after", "50").body(body).expect("a response")
            }
        };
        let url = serve(Router::new().route("/", post(answer))).await;
        let stage = Stage::open(&[("acme", wide())]).await;
        for _ in 0..2 {
            // Not held: the second is sent as the first was.
            let refused = limited(&stage).post(&url).send().await.expect("answers");
            assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
            assert_eq!(refused.text().await.expect("the body can still be read"), expected);
        }
        assert!(stage.pool.tuning().holds.is_empty());
        let told =
            stage.reported("acme", "both are told", |told| told.counters.ignored == 2 && told.in_flight == 0).await;
        assert!(told.counters.throttled.is_empty());
    }
}

async fn a_429_without_its_body() -> Response<Body> {
    let silent = futures_stream(|_| std::task::Poll::Pending);
    Response::builder().status(429).header("retry-after", "30").body(Body::new(silent)).expect("a response")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_429_whose_body_never_comes_is_handed_on_all_the_same() {
    let url = serve(Router::new().route("/", get(a_429_without_its_body))).await;
    let stage = Stage::open(&[("acme", wide())]).await;
    let refused = timeout(PATIENCE, limited(&stage).get(&url).send()).await.expect("soon").expect("a head");
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    assert!(!stage.pool.tuning().holds.is_empty());
    drop(refused);
    stage.reported("acme", "the permit is free", |told| told.in_flight == 0 && told.counters.sent == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_leaves_while_a_429s_body_dawdles_leaves_what_its_head_told() {
    let url = serve(Router::new().route("/", get(a_429_without_its_body))).await;
    let stage = Stage::open(&[("acme", wide())]).await;
    let http = reqwest::Client::builder().no_proxy().build().expect("an HTTP client");
    let permit = stage.pool.admit(&tenant("acme"), Cost::request(1, 0)).await.expect("room");
    let refused = http.get(&url).send().await.expect("a head");
    // Looked at once, and left.
    assert!(timeout(Duration::ZERO, permit.attach(refused)).await.is_err(), "its body never comes");
    assert!(!stage.pool.tuning().holds.is_empty());
    stage.reported("acme", "it is told", |told| told.in_flight == 0 && told.counters.throttled.len() == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_429_holds_for_as_long_as_its_body_says_and_then_lets_go() {
    let message = "Rate limit reached on requests per min (RPM): Limit 60. Please try again in 300ms.";
    let sent: Arc<Mutex<Vec<Instant>>> = Arc::default();
    let log = sent.clone();
    let answer = move || {
        let first = {
            let mut log = log.lock();
            log.push(Instant::now());
            log.len() == 1
        };
        let status = if first { 429 } else { 200 };
        let body = error_body("requests", "rate_limit_exceeded", message);
        async move { Response::builder().status(status).body(Body::from(body)).expect("a response") }
    };
    let url = serve(Router::new().route("/", get(answer))).await;
    let stage = Stage::open(&[("acme", wide())]).await;
    let client = limited(&stage);
    assert_eq!(client.get(&url).send().await.expect("answers").status(), StatusCode::TOO_MANY_REQUESTS);
    let again = timeout(PATIENCE, client.get(&url).send()).await.expect("the hold ends").expect("answers");
    assert_eq!(again.status(), StatusCode::OK);
    let sent = sent.lock();
    assert_eq!(sent.len(), 2);
    assert!(sent[1] - sent[0] >= Duration::from_millis(300), "{:?}", sent[1] - sent[0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn retry_after_on_a_success_is_ignored() {
    let answer = || async { Response::builder().header("retry-after", "60").body(Body::empty()).expect("a response") };
    let url = serve(Router::new().route("/", get(answer))).await;
    let stage = Stage::open(&[("acme", wide())]).await;
    for _ in 0..3 {
        limited(&stage).get(&url).send().await.expect("answers");
    }
    assert!(stage.pool.tuning().holds.is_empty());
    stage.reported("acme", "all are told", |told| told.counters.succeeded == 3 && told.in_flight == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_request_is_not_sent_and_says_why() {
    let stage = Stage::open(&[("acme", rates(&[(RPM, 60e6, 60e6), (TPM, 60_000.0, 100.0)]))]).await;
    let client = limited(&stage);
    // Nobody listens there: a refusal comes before any connection.
    let error = client.post("http://127.0.0.1:1").body(vec![b'x'; 404]).send().await.expect_err("101 tokens");
    assert!(matches!(refusal_of(&error), Refusal::Never(never) if never.meter == TPM && never.needed == 101.0));
    assert!(error.to_string().contains("never"), "{error}");
    let sent = stage.reported("acme", "it is told", |told| told.counters.refused == 1).await.counters.sent;
    assert_eq!(sent, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn tenant_and_cost_come_from_the_requests_extensions() {
    let url = serve(Router::new().route("/", post(|| async { "ok" }))).await;
    let stage = Stage::open(&[("acme", wide()), ("other", wide())]).await;
    let request = limited(&stage).post(&url).with_extension(tenant("other")).with_extension(Cost::request(123, 4));
    assert_eq!(request.send().await.expect("answers").text().await.expect("a body"), "ok");
    let counters = stage.reported("other", "it is told", |told| told.counters.succeeded == 1).await.counters;
    assert_eq!((counters.reserved.input_tokens, counters.reserved.output_tokens), (123, 4));
    assert_eq!(stage.desk.tenant("acme").counters.attempts, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_fails_is_ignored_and_its_permit_released() {
    let stage = Stage::open(&[("acme", wide())]).await;
    let error = limited(&stage).get("http://127.0.0.1:1").send().await.expect_err("nobody listens");
    assert!(matches!(error, Error::Reqwest(_)), "{error:?}");
    let told = stage.reported("acme", "it is told", |told| told.counters.sent == 1 && told.in_flight == 0).await;
    assert_eq!(told.counters.ignored, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_leaves_while_it_waits_for_the_answer_releases_the_permit() {
    let url = serve(Router::new().route("/", get(std::future::pending::<&'static str>))).await;
    let stage = Stage::open(&[("acme", wide())]).await;
    let client = limited(&stage);
    let call = tokio::spawn(async move { client.get(&url).send().await });
    stage.reported("acme", "in flight", |told| told.in_flight == 1).await;
    call.abort();
    let told = stage.reported("acme", "released", |told| told.in_flight == 0).await;
    assert_eq!((told.counters.sent, told.counters.ignored), (1, 1));
}

// === streams ===

type Frames = mpsc::Sender<Result<Bytes, std::io::Error>>;

/// A server that streams what the test sends, once: the sender's end is the stream's, an error breaks it.
async fn streaming(content_type: &'static str) -> (String, Frames) {
    let (sender, receiver) = mpsc::channel(1);
    let receiver = Arc::new(Mutex::new(Some(receiver)));
    let answer = move || {
        let mut body = receiver.lock().take().expect("asked once");
        let stream = futures_stream(move |cx| body.poll_recv(cx));
        async move { Response::builder().header("content-type", content_type).body(Body::new(stream)).expect("a response") }
    };
    (serve(Router::new().route("/", post(answer))).await, sender)
}

async fn send(frames: &Frames, text: &str) {
    frames.send(Ok(Bytes::copy_from_slice(text.as_bytes()))).await.expect("somebody reads");
}

/// Reads as much as `text` is long; fails when that does not come.
async fn receive(answer: &mut reqwest::Response, text: &str) {
    let mut got = Vec::new();
    while got.len() < text.len() {
        let chunk = timeout(PATIENCE, answer.chunk()).await.expect("handed on at once").expect("whole");
        got.extend_from_slice(&chunk.expect("more"));
    }
    assert_eq!(String::from_utf8(got).expect("text"), text);
}

/// A stream of each dialect, in events, that tells of 19 input tokens and 10 of output.
fn streams() -> [(Dialect, Vec<&'static str>); 2] {
    let openai = vec![
        "data: {\"choices\":[{\"delta\":{\"content\":\"Gr\u{fc}\u{df}e\"}}],\"usage\":null}\n\n",
        "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":19,\"completion_tokens\":10}}\n\n",
        "data: [DONE]\n\n",
    ];
    let anthropic = vec![
        "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":12,\
         \"cache_creation_input_tokens\":7,\"cache_read_input_tokens\":900,\"output_tokens\":1}}}\n\n",
        "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"delta\":{\"text\":\"Gr\u{fc}\u{df}e\"}}\n\n",
        "event: message_delta\ndata: {\"type\":\"message_delta\",\"usage\":{\"output_tokens\":10}}\n\n",
        "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n",
    ];
    [(Dialect::OpenAi, openai), (Dialect::Anthropic, anthropic)]
}

fn ask(max_tokens: u64) -> String {
    json!({"model": "m", "stream": true, "max_tokens": max_tokens, "messages": []}).to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_event_is_handed_on_before_the_next_is_sent_and_the_usage_settles() {
    for (dialect, events) in streams() {
        let (url, frames) = streaming("text/event-stream").await;
        let stage = Stage::open_with(dialect, &[("acme", wide())]).await;
        let mut answer = limited(&stage).post(&url).body(ask(4_096)).send().await.expect("a head");
        assert_eq!(answer.headers()["content-type"], "text/event-stream");
        for event in &events {
            // Nothing more is sent until this one has come.
            send(&frames, event).await;
            receive(&mut answer, event).await;
        }
        let told = stage.reported("acme", "still in flight", |told| told.counters.succeeded == 1).await;
        assert_eq!((told.in_flight, told.counters.settled.output_tokens), (1, 0), "{dialect}");
        drop(frames);
        assert_eq!(answer.chunk().await.expect("whole"), None);
        let told = stage.reported("acme", "landed", |told| told.in_flight == 0).await.counters;
        assert_eq!((told.settled.input_tokens, told.settled.output_tokens), (19, 10), "{dialect}");
        let input = (ask(4_096).len() as u64).div_ceil(4);
        // OpenAI keeps its own estimate; Anthropic charges what is allowed, then what was used.
        let (reserved, taken) = if dialect == Dialect::OpenAi { (0, (input, 0)) } else { (4_096, (19, 10)) };
        assert_eq!((told.reserved.output_tokens, told.sent), (reserved, 1), "{dialect}");
        assert_eq!((told.taken().input_tokens, told.taken().output_tokens), taken, "{dialect}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_answer_did_not_use_is_there_for_the_next_request() {
    let (url, frames) = streaming("text/event-stream").await;
    let full = Thresholds { concurrency: Some(100), ..rates(&[(OTPM, 6e6, 100_000.0)]) };
    let stage = Stage::open_with(Dialect::Anthropic, &[("acme", full)]).await;
    drop(stage.pool.admit(&tenant("acme"), Cost::request(0, 0)).await.expect("the bucket is there, and full"));
    // Hardly anything flows in from here on.
    let still = Thresholds { concurrency: Some(100), ..rates(&[(OTPM, 1.0, 100_000.0)]) };
    stage.regrant("acme", still.clone()).await;
    stage.enforced("acme", &still).await;
    let answer = limited(&stage).post(&url).body(ask(90_000)).send().await.expect("a head");
    let large = async || stage.pool.admit_within(&tenant("acme"), Cost::request(0, 50_000), Duration::ZERO).await;
    assert!(matches!(large().await, Err(Refusal::WaitUntil { .. })), "10,000 are left");
    let (_, events) = &streams()[1];
    let all = events.concat();
    let sending = async {
        send(&frames, &all).await;
        drop(frames);
    };
    let (text, ()) = tokio::join!(answer.text(), sending);
    assert_eq!(text.expect("whole"), all);
    drop(large().await.expect("99,990 are left"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_drops_a_stream_midway_lands_it_and_what_was_reserved_stands() {
    for (dialect, events) in streams() {
        let (url, frames) = streaming("text/event-stream").await;
        let stage = Stage::open_with(dialect, &[("acme", wide())]).await;
        let mut answer = limited(&stage).post(&url).body(ask(4_096)).send().await.expect("a head");
        send(&frames, events[0]).await;
        receive(&mut answer, events[0]).await;
        drop(answer);
        let told =
            stage.reported("acme", "landed", |told| told.in_flight == 0 && told.counters.sent == 1).await.counters;
        assert_eq!((told.settled, told.taken()), (told.reserved, told.reserved), "{dialect}");
        eventually("the provider sees that nobody reads", || frames.is_closed()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_breaks_midway_breaks_for_the_caller_and_what_was_reserved_stands() {
    for (dialect, events) in streams() {
        let (url, frames) = streaming("text/event-stream").await;
        let stage = Stage::open_with(dialect, &[("acme", wide())]).await;
        let mut answer = limited(&stage).post(&url).body(ask(4_096)).send().await.expect("a head");
        send(&frames, events[0]).await;
        receive(&mut answer, events[0]).await;
        frames.send(Err(std::io::Error::other("cut"))).await.expect("somebody reads");
        assert!(timeout(PATIENCE, answer.chunk()).await.expect("at once").is_err(), "{dialect}");
        let told =
            stage.reported("acme", "landed", |told| told.in_flight == 0 && told.counters.sent == 1).await.counters;
        assert_eq!((told.settled, told.taken()), (told.reserved, told.reserved), "{dialect}");
        assert_eq!((told.succeeded, told.throttled.len()), (1, 0), "{dialect}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_stops_reading_after_the_last_event_settles_all_the_same() {
    let (url, frames) = streaming("text/event-stream").await;
    let stage = Stage::open_with(Dialect::Anthropic, &[("acme", wide())]).await;
    let mut answer = limited(&stage).post(&url).body(ask(4_096)).send().await.expect("a head");
    for event in &streams()[1].1 {
        send(&frames, event).await;
        receive(&mut answer, event).await;
    }
    drop(answer);
    let told = stage.reported("acme", "landed", |told| told.in_flight == 0 && told.counters.sent == 1).await.counters;
    assert_eq!((told.taken().input_tokens, told.taken().output_tokens), (19, 10));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_overload_in_a_stream_that_began_well_counts_as_one() {
    let (url, frames) = streaming("text/event-stream").await;
    let stage = Stage::open_with(Dialect::Anthropic, &[("acme", wide())]).await;
    let mut answer = limited(&stage).post(&url).body(ask(4_096)).send().await.expect("a head");
    let error = "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\",\"message\":\"Overloaded\"}}\n\n";
    for event in [streams()[1].1[0], error] {
        send(&frames, event).await;
        receive(&mut answer, event).await;
    }
    drop(frames);
    assert_eq!(answer.chunk().await.expect("whole"), None);
    let told = stage.reported("acme", "landed", |told| told.in_flight == 0 && told.counters.sent == 1).await.counters;
    assert_eq!((told.succeeded, told.throttled.get(&ThrottleKind::Overload)), (1, Some(&1)));
    assert!(stage.pool.tuning().holds.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_answer_settles_by_what_it_tells_and_an_error_gives_its_output_back() {
    let usage = json!({"content": [], "usage": {"input_tokens": 11, "output_tokens": 22}}).to_string();
    let invalid = json!({"type": "error", "error": {"type": "invalid_request_error", "message": "No."}}).to_string();
    let full = json!({"type": "error", "error": {"type": "api_error", "message": "Overloaded"}}).to_string();
    let input = (ask(4_096).len() as u64).div_ceil(4);
    let overload = Some(ThrottleKind::Overload);
    for (status, body, taken, kind) in
        [(200, usage, (11, 22), None), (400, invalid, (input, 0), None), (500, full, (input, 0), overload)]
    {
        let text = body.clone();
        let answer = move || {
            let answer = Response::builder().status(status).header("content-type", "application/json");
            let answer = answer.body(Body::from(text.clone())).expect("a response");
            async move { answer }
        };
        let url = serve(Router::new().route("/", post(answer))).await;
        let stage = Stage::open_with(Dialect::Anthropic, &[("acme", wide())]).await;
        let answer = limited(&stage).post(&url).body(ask(4_096)).send().await.expect("answers");
        assert_eq!((answer.status().as_u16(), answer.text().await.expect("whole")), (status, body));
        let told =
            stage.reported("acme", "landed", |told| told.in_flight == 0 && told.counters.sent == 1).await.counters;
        assert_eq!((told.taken().input_tokens, told.taken().output_tokens), taken, "{status}");
        assert_eq!(told.throttled.keys().next().copied(), kind, "{status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_whose_allowance_cannot_be_read_is_admitted_as_allowing_none() {
    let url = serve(Router::new().route("/", post(|| async { "ok" }))).await;
    let stage = Stage::open_with(Dialect::Anthropic, &[("acme", wide())]).await;
    let streamed = reqwest::Body::wrap(futures_stream(|_| std::task::Poll::Ready(None)));
    for body in ["{\"max_tokens\":".into(), "{}".into(), reqwest::Body::default(), streamed] {
        limited(&stage).post(&url).body(body).send().await.expect("answers");
    }
    let told = stage.reported("acme", "all are told", |told| told.counters.succeeded == 4).await.counters;
    assert_eq!(told.reserved.output_tokens, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_by_hand_attaches_its_permit() {
    let (url, frames) = streaming("text/event-stream").await;
    let stage = Stage::open_with(Dialect::Anthropic, &[("acme", wide())]).await;
    let permit: Permit = stage.pool.admit(&tenant("acme"), Cost::request(50, 4_096)).await.expect("room");
    let mut answer = permit.attach(reqwest::Client::new().post(&url).send().await.expect("a head")).await;
    for event in &streams()[1].1 {
        send(&frames, event).await;
        receive(&mut answer, event).await;
    }
    drop(frames);
    assert_eq!(answer.chunk().await.expect("whole"), None);
    let told = stage.reported("acme", "landed", |told| told.in_flight == 0 && told.counters.sent == 1).await.counters;
    assert_eq!((told.settled.input_tokens, told.settled.output_tokens), (19, 10));
}
