//! The tower layer, between a running client and services of the test's own; and over reqwest's types.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use axum::body::{Body as AxumBody, Bytes, to_bytes};
use http::{HeaderMap, Request, Response, StatusCode, Version};
use http_body::{Body, Frame, SizeHint};
use parking_lot::Mutex;
use tidegate::client::{Attached, BoxError, Limit, LimitLayer, Refusal, Traffic};
use tidegate::observation::ThrottleKind;
use tidegate::plan::Thresholds;
use tidegate::provider::Dialect;
use tidegate::quota::Cost;
use tokio::sync::mpsc;
use tower::{Layer, Service, ServiceExt, service_fn};

use super::admission::{Stage, eventually};
use super::by_hand::{RPM, TPM, grantee, rates, tenant};

fn wide() -> Thresholds {
    Thresholds { concurrency: Some(100), ..rates(&[(RPM, 60e6, 60e6), (TPM, 60e9, 60e9)]) }
}

fn one_at_a_time() -> Thresholds {
    Thresholds { concurrency: Some(1), ..wide() }
}

fn limited<S>(stage: &Stage, inner: S) -> Limit<S> {
    LimitLayer::new(stage.pool.clone(), tenant("acme")).layer(inner)
}

fn traffic(stage: &Stage, name: &str) -> Traffic {
    stage.pool.traffic().remove(&grantee(name)).expect("it has been seen")
}

fn usage(stage: &Stage) -> (u32, u64, u64) {
    let traffic = traffic(stage, "acme");
    (traffic.in_flight, traffic.counters.settled.input_tokens, traffic.counters.settled.output_tokens)
}

type Sent = Result<Frame<Bytes>, io::Error>;

/// A body of the frames that a test sends.
#[derive(Debug)]
struct Frames(mpsc::UnboundedReceiver<Sent>);

impl Body for Frames {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Sent>> {
        self.0.poll_recv(context)
    }

    fn size_hint(&self) -> SizeHint {
        let mut hint = SizeHint::new();
        hint.set_lower(3);
        hint
    }
}

fn data(text: &'static str) -> Frame<Bytes> {
    Frame::data(Bytes::from_static(text.as_bytes()))
}

fn trailers() -> HeaderMap {
    HeaderMap::from_iter([("grpc-status".parse().expect("a name"), "0".parse().expect("a value"))])
}

/// A service that answers once, with what the test sends then.
fn streaming(
    content_type: &'static str,
) -> (
    mpsc::UnboundedSender<Sent>,
    impl Service<Request<AxumBody>, Response = Response<Frames>, Error = Infallible, Future: Send> + Clone + Send,
) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let receiver = Arc::new(Mutex::new(Some(receiver)));
    let service = service_fn(move |_: Request<AxumBody>| {
        let body = Frames(receiver.lock().take().expect("asked once"));
        async move { Ok(Response::builder().header("content-type", content_type).body(body).expect("a response")) }
    });
    (sender, service)
}

fn ask() -> Request<AxumBody> {
    Request::new(AxumBody::from("a question"))
}

/// One poll, by nobody who could be woken.
fn poll<R: Body<Data = Bytes>>(body: &mut Attached<R>) -> Poll<Option<Result<Frame<Bytes>, R::Error>>> {
    Pin::new(body).poll_frame(&mut Context::from_waker(Waker::noop()))
}

fn frame_now(body: &mut Attached<Frames>) -> Frame<Bytes> {
    match poll(body) {
        Poll::Ready(Some(Ok(frame))) => frame,
        other => panic!("not handed on in the poll in which it came: {other:?}"),
    }
}

// === streams ===

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_in_flight_to_its_end_and_settled_with_what_its_events_tell() {
    let stage = Stage::open(&[("acme", wide())]).await;
    let (frames, service) = streaming("text/event-stream");
    let mut answer = limited(&stage, service).oneshot(ask()).await.expect("a head");
    let body = answer.body_mut();
    assert!(poll(body).is_pending());
    let events =
        ["data: {\"choices\":[]}\n\n", "data: {\"usage\":{\"prompt_tokens\":19,\"completion_tokens\":10}}\n\n"];
    for event in events {
        frames.send(Ok(data(event))).expect("somebody reads");
        assert_eq!(frame_now(body).into_data().expect("data"), event);
        assert_eq!(usage(&stage), (1, 0, 0));
    }
    frames.send(Ok(Frame::trailers(trailers()))).expect("somebody reads");
    assert_eq!(frame_now(body).into_trailers().expect("trailers"), trailers());
    drop(frames);
    assert!(matches!(poll(body), Poll::Ready(None)));
    // Though the caller still has the response.
    assert_eq!(usage(&stage), (0, 19, 10));
    assert!(body.is_end_stream());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_dropped_or_breaks_frees_its_place() {
    for breaks in [false, true] {
        let stage = Stage::open(&[("acme", one_at_a_time())]).await;
        let (frames, service) = streaming("text/event-stream");
        let mut answer = limited(&stage, service).oneshot(ask()).await.expect("a head");
        let next = stage.pool.admit_within(&tenant("acme"), Cost::request(0, 0), Duration::ZERO).await;
        assert!(matches!(next, Err(Refusal::WaitUntil { .. })), "{next:?}");
        frames.send(Ok(data("data: 1\n\n"))).expect("somebody reads");
        frame_now(answer.body_mut());
        if breaks {
            frames.send(Err(io::Error::other("cut"))).expect("somebody reads");
            assert!(matches!(poll(answer.body_mut()), Poll::Ready(Some(Err(_)))));
        } else {
            drop(answer);
            assert!(frames.is_closed(), "the service sees that nobody reads");
        }
        drop(stage.pool.admit_within(&tenant("acme"), Cost::request(0, 0), Duration::ZERO).await.expect("a place"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_answer_is_settled_with_its_last_frame() {
    let stage = Stage::open(&[("acme", wide())]).await;
    let text = r#"{"choices":[],"usage":{"prompt_tokens":11,"completion_tokens":22}}"#;
    let service = service_fn(move |_: Request<AxumBody>| async move {
        Response::builder().header("content-type", "application/json").body(AxumBody::from(text))
    });
    let mut answer = limited(&stage, service).oneshot(ask()).await.expect("a head");
    assert_eq!(answer.body().size_hint().exact(), Some(text.len() as u64));
    assert!(matches!(poll(answer.body_mut()), Poll::Ready(Some(Ok(frame))) if frame.data_ref().expect("data") == text));
    assert_eq!(usage(&stage), (0, 11, 22));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_is_handed_on_as_it_came_frame_by_frame() {
    for status in [200, 206, 400, 429, 503] {
        let stage = Stage::open(&[("acme", wide())]).await;
        let answer = service_fn(move |_: Request<AxumBody>| async move {
            let (sender, receiver) = mpsc::unbounded_channel();
            for text in ["one", "", "two, which is longer"] {
                sender.send(Ok(data(text))).expect("open");
            }
            sender.send(Ok(Frame::trailers(trailers()))).expect("open");
            let answer = Response::builder().status(status).version(Version::HTTP_2).header("x-mine", "yes");
            answer.extension("kept").body(Frames(receiver))
        });
        let plain = answer.oneshot(ask()).await.expect("answers");
        let ours = limited(&stage, answer).oneshot(ask()).await.expect("answers");
        assert_eq!((ours.status(), ours.version(), ours.headers()), (plain.status(), plain.version(), plain.headers()));
        assert_eq!(ours.extensions().get::<&str>(), Some(&"kept"));
        // A refusal has been read ahead.
        let read = if [429, 503].contains(&status) { 23 } else { 3 };
        assert_eq!(ours.body().size_hint().lower(), read);
        assert_eq!(frames_of(ours.into_body()), frames_of(plain.into_body()), "{status}");
    }
}

fn frames_of<R: Body<Data = Bytes, Error = io::Error>>(body: R) -> Vec<String> {
    let mut body = Box::pin(body);
    let mut frames = Vec::new();
    while let Poll::Ready(Some(frame)) = body.as_mut().poll_frame(&mut Context::from_waker(Waker::noop())) {
        frames.push(format!("{frame:?}"));
    }
    frames
}

// === errors ===

#[tokio::test(flavor = "multi_thread")]
async fn what_a_429s_body_says_counts_and_can_still_be_read() {
    let rate = r#"{"error":{"type":"requests","code":"rate_limit_exceeded","message":"Please try again in 9s."}}"#;
    let credit = r#"{"error":{"type":"insufficient_quota","code":"insufficient_quota","message":"No credit."}}"#;
    for (text, throttled) in [(rate, true), (credit, false)] {
        let stage = Stage::open(&[("acme", wide())]).await;
        let refuse = service_fn(move |_: Request<AxumBody>| async move {
            Response::builder().status(429).header("retry-after", "5").body(AxumBody::from(text))
        });
        let refused = limited(&stage, refuse).oneshot(ask()).await.expect("an answer");
        assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
        let body = to_bytes(AxumBody::new(refused.into_body()), 1_000).await.expect("it can be read");
        assert_eq!(body, text);
        assert_eq!(!stage.pool.tuning().holds.is_empty(), throttled, "{text}");
        let counters = traffic(&stage, "acme").counters;
        assert_eq!(counters.throttled.contains_key(&ThrottleKind::Requests), throttled, "{counters:?}");
        assert_eq!(counters.ignored, u64::from(!throttled));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_of_the_inner_service_is_its_own_and_says_nothing_of_capacity() {
    let stage = Stage::open(&[("acme", one_at_a_time())]).await;
    let fail = service_fn(|_: Request<AxumBody>| async { Err::<Response<AxumBody>, _>(io::Error::other("no route")) });
    let error = limited(&stage, fail).oneshot(ask()).await.expect_err("it fails");
    assert_eq!((Refusal::behind(&*error), error.to_string()), (None, "no route".to_owned()));
    let traffic = traffic(&stage, "acme");
    assert_eq!((traffic.in_flight, traffic.counters.sent, traffic.counters.ignored), (0, 1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_surfaces_and_nothing_is_sent() {
    #[derive(Debug, thiserror::Error)]
    #[error("another layer's")]
    struct Wrapped(#[source] BoxError);

    let stage = Stage::open(&[("acme", rates(&[(RPM, 60e6, 60e6), (TPM, 60_000.0, 100.0)]))]).await;
    let never = service_fn(|_: Request<AxumBody>| async { Err::<Response<AxumBody>, _>(io::Error::other("was sent")) });
    let large = Request::new(AxumBody::from(vec![b'x'; 404]));
    let error = limited(&stage, never).oneshot(large).await.expect_err("101 tokens");
    let refusal = Refusal::behind(&*error);
    assert!(matches!(refusal, Some(Refusal::Never(never)) if never.meter == TPM && never.needed == 101.0), "{error:?}");
    assert_eq!(Refusal::behind(&Wrapped(error)), refusal);
    assert_eq!(traffic(&stage, "acme").counters.sent, 0);
}

// === the call ===

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_leaves_while_it_waits_leaves_the_line() {
    let stage = Stage::open(&[("acme", one_at_a_time())]).await;
    let held = stage.pool.admit(&tenant("acme"), Cost::request(0, 0)).await.expect("the only place");
    let (_frames, service) = streaming("text/plain");
    let call = tokio::spawn(limited(&stage, service).oneshot(ask()));
    eventually("it waits", || traffic(&stage, "acme").waiting == 1).await;
    call.abort();
    eventually("it has left", || traffic(&stage, "acme").waiting == 0).await;
    drop(held);
    let traffic = traffic(&stage, "acme");
    // Nor did its time run out: nobody was there to be refused.
    assert_eq!((traffic.in_flight, traffic.counters.admitted, traffic.counters.refused), (0, 1, 0));
}

/// Its clone is not ready; to be called without being ready is an error.
#[derive(Debug)]
struct Picky {
    ready: bool,
}

impl Clone for Picky {
    fn clone(&self) -> Self {
        Self { ready: false }
    }
}

impl Picky {
    fn poll_ready<E>(&mut self) -> Poll<Result<(), E>> {
        self.ready = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self) -> Result<Response<&'static str>, &'static str> {
        let ready = std::mem::replace(&mut self.ready, false);
        if ready { Ok(Response::new("")) } else { Err("called without being ready") }
    }
}

impl Service<Request<AxumBody>> for Picky {
    type Response = Response<AxumBody>;
    type Error = &'static str;
    type Future = Ready<Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.poll_ready()
    }

    fn call(&mut self, _: Request<AxumBody>) -> Self::Future {
        ready(self.call().map(|answer| answer.map(AxumBody::from)))
    }
}

impl Service<reqwest::Request> for Picky {
    type Response = reqwest::Response;
    type Error = &'static str;
    type Future = Ready<Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.poll_ready()
    }

    fn call(&mut self, _: reqwest::Request) -> Self::Future {
        ready(self.call().map(reqwest::Response::from))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_service_that_was_polled_ready_is_the_one_that_is_called() {
    let stage = Stage::open(&[("acme", wide())]).await;
    let mut service = limited(&stage, Picky { ready: false });
    for _ in 0..2 {
        ServiceExt::<Request<AxumBody>>::ready(&mut service).await.expect("ready").call(ask()).await.expect("ready");
        let ask = reqwest::Request::new(reqwest::Method::GET, url());
        ServiceExt::<reqwest::Request>::ready(&mut service).await.expect("ready").call(ask).await.expect("ready");
    }
}

fn url() -> reqwest::Url {
    "http://127.0.0.1:1/a?b=c".parse().expect("a URL")
}

#[tokio::test(flavor = "multi_thread")]
async fn tenant_and_cost_come_from_the_extensions_else_from_the_layer_and_the_bodys_length() {
    let stage = Stage::open_with(Dialect::Anthropic, &[("acme", wide()), ("other", wide())]).await;
    let answer = service_fn(|_: Request<AxumBody>| async { Ok::<_, Infallible>(Response::new(AxumBody::empty())) });
    let cost_of = async |request: Request<AxumBody>, name: &str| {
        let reserved = |stage: &Stage| {
            let reserved = stage.pool.traffic().remove(&grantee(name)).map(|traffic| traffic.counters.reserved);
            reserved.map_or((0, 0), |reserved| (reserved.input_tokens, reserved.output_tokens))
        };
        let before = reserved(&stage);
        limited(&stage, answer).oneshot(request).await.expect("answers");
        let after = reserved(&stage);
        (after.0 - before.0, after.1 - before.1)
    };
    let streamed = || {
        let (_, receiver) = mpsc::unbounded_channel();
        AxumBody::new(Frames(receiver))
    };
    let told = Request::builder().extension(tenant("other")).extension(Cost::request(123, 4)).body(streamed());
    assert_eq!(cost_of(told.expect("a request"), "other").await, (123, 4));
    assert_eq!(cost_of(Request::new(AxumBody::from(vec![0; 400])), "acme").await, (100, 0));
    let long = Request::builder().header("content-length", "8000").body(streamed());
    assert_eq!(cost_of(long.expect("a request"), "acme").await, (2_000, 0));
    // Of unknown length: a short prompt.
    assert_eq!(cost_of(Request::new(streamed()), "acme").await, (500, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn over_reqwest_a_request_costs_what_its_body_says_and_its_answer_is_settled() {
    use reqwest::ResponseBuilderExt;

    let stage = Stage::open_with(Dialect::Anthropic, &[("acme", wide())]).await;
    let answer = service_fn(|request: reqwest::Request| async move {
        let text = r#"{"content":[],"usage":{"input_tokens":11,"output_tokens":22}}"#;
        let answer = Response::builder().url(request.url().clone()).header("content-type", "application/json");
        answer.body(text).map(reqwest::Response::from)
    });
    let mut request = reqwest::Request::new(reqwest::Method::POST, url());
    *request.body_mut() = Some(r#"{"max_tokens":4096}"#.into());
    let answer = limited(&stage, answer).oneshot(request).await.expect("answers");
    assert_eq!((answer.url(), traffic(&stage, "acme").counters.reserved.output_tokens), (&url(), 4_096));
    answer.bytes().await.expect("whole");
    assert_eq!(usage(&stage), (0, 11, 22));
}
