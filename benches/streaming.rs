//! What the middleware adds to the time until a stream's first event is in the caller's hands.
//!
//! One provider in this process, on a thread of its own; one caller, who asks through the middleware and without it in
//! turn, over the same connection that is kept alive. Prints one line per percentile; fails when a byte differs, or when
//! the median adds more than [`GOAL_US`].
//!
//! `make bench AREA=streaming`

use std::pin::Pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::Response;
use axum::routing::post;
use axum::serve::ListenerExt;
use http_body::Frame;
use reqwest_middleware::{ClientBuilder, ClientWithMiddleware};
use tidegate::client::{Client, ClientParams, Limited, PoolParams};
use tidegate::plan::{Rate, Thresholds};
use tidegate::provider::Dialect;
use tidegate::quota::{Meter, Unit};
use tidegate::store::MemoryStore;
use tidegate::telemetry::Telemetry;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::time::Instant;

const GOAL_US: f64 = 200.0;
const PAIRS: usize = 4_000;
const WARM_UP_PAIRS: usize = 500;
/// Deltas of text in the stream.
const DELTAS: usize = 20;

const HEADERS: [(&str, &str); 14] = [
    ("content-type", "text/event-stream; charset=utf-8"),
    ("cache-control", "no-cache"),
    ("anthropic-ratelimit-requests-limit", "4000"),
    ("anthropic-ratelimit-requests-remaining", "3999"),
    ("anthropic-ratelimit-requests-reset", "2025-10-09T21:49:43Z"),
    ("anthropic-ratelimit-tokens-limit", "2400000"),
    ("anthropic-ratelimit-tokens-remaining", "2400000"),
    ("anthropic-ratelimit-tokens-reset", "2025-10-09T21:49:43Z"),
    ("anthropic-ratelimit-input-tokens-limit", "2000000"),
    ("anthropic-ratelimit-input-tokens-remaining", "2000000"),
    ("anthropic-ratelimit-input-tokens-reset", "2025-10-09T21:49:43Z"),
    ("anthropic-ratelimit-output-tokens-limit", "400000"),
    ("anthropic-ratelimit-output-tokens-remaining", "400000"),
    ("anthropic-ratelimit-output-tokens-reset", "2025-10-09T21:49:43Z"),
];

fn events() -> Vec<Bytes> {
    let event = |name: &str, rest: &str| Bytes::from(format!("event: {name}\ndata: {{\"type\":\"{name}\"{rest}}}\n\n"));
    let start = r#","message":{"id":"m","content":[],"usage":{"input_tokens":500,"output_tokens":1}}"#;
    let delta = r#","index":0,"delta":{"type":"text_delta","text":"as many words as go into one event"}"#;
    let end = r#","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":180}"#;
    let mut events = vec![event("message_start", start)];
    events.extend((0..DELTAS).map(|_| event("content_block_delta", delta)));
    events.extend([event("message_delta", end), event("message_stop", "")]);
    events
}

/// A stream whose events come one by one: between two of them others get their turn.
struct Stream {
    events: Arc<Vec<Bytes>>,
    next: usize,
    paused: bool,
}

impl http_body::Body for Stream {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.paused = !self.paused;
        if self.paused {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let event = self.events.get(self.next).cloned();
        self.next += 1;
        Poll::Ready(event.map(|event| Ok(Frame::data(event))))
    }
}

/// Starts the provider on a thread of its own; gives its URL.
fn provider(events: Arc<Vec<Bytes>>) -> String {
    let (told, url) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        runtime().block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            told.send(format!("http://{}", listener.local_addr().expect("bound"))).expect("the bench waits");
            // As providers do: no event waits for the last one's acknowledgement.
            let listener = listener.tap_io(|connection| connection.set_nodelay(true).expect("a TCP option"));
            let answer = move || {
                let answer =
                    HEADERS.iter().fold(Response::builder(), |answer, (name, value)| answer.header(*name, *value));
                let body = Stream { events: events.clone(), next: 0, paused: false };
                std::future::ready(answer.body(Body::new(body)).expect("a response"))
            };
            axum::serve(listener, Router::new().route("/v1/messages", post(answer))).await.expect("serves");
        });
    });
    format!("{}/v1/messages", url.recv().expect("the provider starts"))
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// A member of a pool that takes anything.
async fn member() -> Client {
    let wide = Rate { rate: 6e9, burst: 6e9 };
    let minute = |unit| Meter { unit, window: tidegate::quota::Window::Minute };
    let rates = Unit::ALL.map(|unit| (minute(unit), wide)).into();
    let bootstrap = Thresholds { rates, concurrency: Some(100) };
    let pool = PoolParams { bootstrap, ..PoolParams::new("pool".parse().expect("valid"), Dialect::Anthropic) };
    Client::start(ClientParams::new(vec![pool]), Arc::new(MemoryStore::new()), Arc::new(Telemetry::new())).await
}

/// The time until the first event came, in µs; the whole answer is compared with `expected`.
async fn first_event_us(http: &ClientWithMiddleware, url: &str, body: &str, expected: &[u8]) -> f64 {
    let request = http.post(url).header("content-type", "application/json").body(body.to_owned());
    let asked = Instant::now();
    let mut answer = request.send().await.expect("answers");
    let first = answer.chunk().await.expect("whole").expect("an event");
    let took = asked.elapsed();
    let mut got = first.to_vec();
    while let Some(more) = answer.chunk().await.expect("whole") {
        got.extend_from_slice(&more);
    }
    assert!(got == expected, "the bytes differ from those sent");
    took.as_secs_f64() * 1e6
}

fn percentile(sorted: &[f64], part: f64) -> f64 {
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        clippy::cast_sign_loss,
        reason = "thousands"
    )]
    let at = (part * sorted.len() as f64) as usize;
    sorted[at.min(sorted.len() - 1)]
}

async fn measure(url: &str, expected: &[u8]) -> [Vec<f64>; 2] {
    let member = member().await;
    let pool = member.pool("pool").expect("named");
    let http = reqwest::Client::new();
    let limited = Limited::new(pool, "bench".parse().expect("valid"));
    // The same wrapper and the same connections around both.
    let clients = [ClientBuilder::new(http.clone()).with(limited).build(), ClientBuilder::new(http).build()];
    let prompt = "Tell me of the tides, and of the gates that hold them. ".repeat(40);
    let messages = serde_json::json!([{"role": "user", "content": prompt}]);
    let body = serde_json::json!({"model": "m", "stream": true, "max_tokens": 1024, "messages": messages}).to_string();
    let mut times = [Vec::new(), Vec::new()];
    for pair in 0..WARM_UP_PAIRS + PAIRS {
        // Who is first has the colder caches: each in turn.
        for who in [pair % 2, 1 - pair % 2] {
            let took = first_event_us(&clients[who], url, &body, expected).await;
            if pair >= WARM_UP_PAIRS {
                times[who].push(took);
            }
        }
    }
    member.close().await;
    times.map(|mut times| {
        times.sort_by(f64::total_cmp);
        times
    })
}

fn main() -> ExitCode {
    let events = Arc::new(events());
    let expected = events.concat();
    let url = provider(events);
    let [ours, peer] = runtime().block_on(measure(&url, &expected));
    let at = |part: f64| (percentile(&ours, part), percentile(&peer, part));
    let (p50, p99) = (at(0.5), at(0.99));
    let line = |(ours, peer): (f64, f64)| format!("ours={ours:.0}us peer={peer:.0}us added={:.0}us", ours - peer);
    println!("streaming_first_event {} goal<={GOAL_US:.0}us", line(p50));
    println!("streaming_first_event_p99 {}", line(p99));
    if p50.0 - p50.1 <= GOAL_US { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
