//! The emulated provider as an Anthropic account: what it charges and corrects, and its wire.

use reqwest::{Response, StatusCode};
use serde_json::{Value, json};
use tidegate::clock::{MonoTime, UnixMillis};
use tidegate::quota::{Cost, Meter, Unit, Window};
use tidegate::sim::emulator::account::input_tokens;
use tidegate::sim::emulator::faults::Faults;
use tidegate::sim::emulator::{Account, AccountParams, Emulated, FaultParams};

use crate::emulator::{DEADLINE, QUICK, Running, assert_close, header, spawn_emulator};

/// Per second: one request, 100 input tokens, 10 output tokens; in buckets of a minute.
const ONE_A_SECOND: AccountParams = AccountParams {
    requests_per_minute: 60,
    input_tokens_per_minute: Some(6_000),
    output_tokens_per_minute: Some(600),
    ..AccountParams::of(Emulated::Anthropic)
};

const INPUT: Meter = Meter { unit: Unit::InputTokens, window: Window::Minute };
const OUTPUT: Meter = Meter { unit: Unit::OutputTokens, window: Window::Minute };

const GROUPS: [&str; 4] = ["requests", "tokens", "input-tokens", "output-tokens"];

fn at_seconds(seconds: u64) -> MonoTime {
    MonoTime::from_millis((1_000 + seconds) * 1_000)
}

fn account() -> Account {
    Account::new(Emulated::Anthropic, ONE_A_SECOND, at_seconds(0), UnixMillis(0)).expect("valid")
}

fn output_level(account: &Account) -> f64 {
    account.levels()[&OUTPUT]
}

/// An Anthropic account that answers at once, without stray retry-afters.
async fn anthropic(arguments: &[&str]) -> Running {
    let exact = ["--dialect", "anthropic", "--stray-retry-after-rate", "0"];
    Running::start(&[&QUICK[..], &exact, arguments].concat()).await
}

async fn ask(emulator: &Running, body: Value) -> Response {
    emulator.post("/v1/messages", body).await
}

fn hello() -> Value {
    json!({
        "model": "claude-demo",
        "max_tokens": 100,
        "metadata": {"user_id": "acme"},
        "messages": [{"role": "user", "content": "hello"}],
    })
}

fn limit_header(response: &Response, group: &str, word: &str) -> String {
    header(response, &format!("anthropic-ratelimit-{group}-{word}"))
}

fn limit_headers(response: &Response) -> usize {
    response.headers().keys().filter(|name| name.as_str().starts_with("anthropic-ratelimit-")).count()
}

/// Seconds since 1970 of an RFC 3339 time in whole seconds and UTC.
fn unix_seconds(text: &str) -> i64 {
    assert!(text.len() == "1970-01-01T00:00:00Z".len() && text.ends_with('Z'), "{text}");
    text.parse::<jiff::Timestamp>().expect("RFC 3339").as_second()
}

/// Seconds since 1970 of the response's `Date`.
fn date(response: &Response) -> i64 {
    let date = header(response, "date").replace("GMT", "+0000");
    jiff::fmt::rfc2822::parse(&date).expect("a date").timestamp().as_second()
}

#[test]
fn output_is_charged_by_max_tokens_and_corrected_when_the_answer_ends() {
    let mut account = account();
    assert!(account.request(Some("acme"), &Cost::request(100, 400), at_seconds(0)).refusal.is_none());
    assert_close(account.levels()[&INPUT], 5_900.0, 1e-9);
    assert_close(output_level(&account), 200.0, 1e-9);
    // What is left takes 150 tokens once; a second time only when the first answer has turned out short.
    assert!(account.request(None, &Cost::request(0, 150), at_seconds(0)).refusal.is_none());
    let refusal = account.request(None, &Cost::request(0, 150), at_seconds(0)).refusal.expect("held by max_tokens");
    assert_eq!((refusal.meter, refusal.retry_after_ms), (OUTPUT, Some(10_000)));
    account.settle(Some("acme"), 400, 30, at_seconds(0));
    assert_close(output_level(&account), 420.0, 1e-9);
    assert!(account.request(None, &Cost::request(0, 150), at_seconds(0)).refusal.is_none());
    let truth = account.truth();
    assert_eq!((truth.users["acme"].admitted_tokens, truth.total.admitted_tokens), (130, 430));
}

#[test]
fn a_correction_never_makes_a_bucket_more_than_full() {
    let mut account = account();
    assert!(account.request(None, &Cost::request(0, 100), at_seconds(0)).refusal.is_none());
    // Ten seconds later the whole charge has leaked away: there is nothing to give back.
    account.settle(None, 100, 20, at_seconds(10));
    assert_close(output_level(&account), 600.0, 1e-9);
}

#[test]
fn an_anthropic_account_never_admits_more_output_than_was_stored_and_offered() {
    let mut random = fastrand::Rng::with_seed(5);
    let mut account = account();
    let mut under_way: Vec<(u64, u64)> = Vec::new();
    let (mut now, mut written, mut refused) = (0, 0, 0);
    for _ in 0..5_000 {
        now += random.u64(0..8);
        let charged = random.u64(1..300);
        match account.request(None, &Cost::request(0, charged), at_seconds(now)).refusal {
            None => under_way.push((charged, random.u64(0..=charged))),
            Some(_) => refused += 1,
        }
        if !under_way.is_empty() && random.bool() {
            let (charged, output) = under_way.swap_remove(random.usize(0..under_way.len()));
            account.settle(None, charged, output, at_seconds(now));
            written += output;
        }
        let offered = account.truth().meters[&OUTPUT].capacity_units;
        assert!(written as f64 <= 600.0 + offered + 1e-3);
        assert!((-1e-3..=600.0 + 1e-3).contains(&output_level(&account)));
    }
    assert!(refused > 500, "the test must see refusals, saw {refused}");
}

#[test]
fn a_setting_of_another_dialect_is_one_line() {
    let line =
        |dialect, params| Account::new(dialect, params, at_seconds(0), UnixMillis(0)).expect_err("refused").to_string();
    assert_eq!(
        line(Emulated::Anthropic, AccountParams { tokens_per_minute: Some(5), ..ONE_A_SECOND }),
        "tokens_per_minute 5: expected none: an account of anthropic counts requests/minute, input_tokens/minute, \
         output_tokens/minute"
    );
    let openai = AccountParams::of(Emulated::OpenAi);
    assert_eq!(
        line(Emulated::OpenAi, AccountParams { hidden_output_tokens_per_minute: Some(5.0), ..openai }),
        "hidden_output_tokens_per_minute 5: expected none: an account of openai counts requests/minute, tokens/minute"
    );
    assert_eq!(
        line(Emulated::Anthropic, AccountParams { output_tokens_per_minute: None, ..ONE_A_SECOND }),
        "output_tokens_per_minute 0: expected a whole number, 1–1000000000"
    );
}

#[test]
fn one_success_in_ten_carries_a_retry_after_and_a_rate_moves_no_other_fault() {
    let draw = |params: FaultParams| {
        let mut faults = Faults::new(params, 1);
        (0..10_000).map(|_| faults.draw()).collect::<Vec<_>>()
    };
    let usual = draw(FaultParams::of(Emulated::Anthropic));
    let stray = usual.iter().filter(|fate| fate.has_stray_retry_after).count();
    assert!((900..=1_100).contains(&stray), "{stray} of 10000");
    assert!(usual.iter().all(|fate| !fate.is_overloaded && fate.breaks_after.is_none()));
    let loaded = draw(FaultParams { overload_rate: 0.25, ..FaultParams::of(Emulated::Anthropic) });
    let overloaded = loaded.iter().filter(|fate| fate.is_overloaded).count();
    assert!((2_300..=2_700).contains(&overloaded), "{overloaded} of 10000");
    assert!(usual.iter().zip(&loaded).all(|(a, b)| a.has_stray_retry_after == b.has_stray_retry_after));
}

#[tokio::test]
async fn an_answer_has_anthropic_s_shape_and_headers() {
    let emulator = anthropic(&[]).await;
    let response = ask(&emulator, hello()).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(limit_headers(&response), 12);
    let shown =
        GROUPS.map(|group| (limit_header(&response, group, "limit"), limit_header(&response, group, "remaining")));
    let pair = |limit: &str, remaining: &str| (limit.to_owned(), remaining.to_owned());
    // A small request does not show in tokens.
    assert_eq!(shown, [pair("600", "599"), pair("240000", "240000"), pair("200000", "200000"), pair("40000", "40000")]);
    for group in GROUPS {
        let ahead = unix_seconds(&limit_header(&response, group, "reset")) - date(&response);
        assert!((-1..=1).contains(&ahead), "{group}: {ahead} s");
    }
    assert!(!response.headers().contains_key("retry-after") && !response.headers().contains_key("x-should-retry"));
    assert!(header(&response, "request-id").starts_with("req_"));
    let body: Value = response.json().await.expect("JSON");
    assert!(body["id"].as_str().is_some_and(|id| id.starts_with("msg_")));
    assert_eq!(
        (&body["type"], &body["role"], &body["model"]),
        (&json!("message"), &json!("assistant"), &json!("claude-demo"))
    );
    assert_eq!((&body["content"][0]["type"], &body["stop_reason"]), (&json!("text"), &json!("end_turn")));
    assert_eq!(body["usage"]["input_tokens"], input_tokens(hello().to_string().len()));
    let output = body["usage"]["output_tokens"].as_u64().expect("a count");
    assert_eq!(body["content"][0]["text"].as_str().expect("text").split(' ').count() as u64, output);

    // What was charged beyond the real output is given back, and the user is the one in the metadata.
    let state = emulator.state().await;
    assert_eq!(state.truth.users["acme"].admitted_tokens, input_tokens(hello().to_string().len()) + output);
    let metrics = emulator.get("/metrics").await.text().await.expect("text");
    let line = format!("tidegate_emulator_admitted_units_total{{unit=\"output_tokens\"}} {output}");
    assert!(metrics.lines().any(|found| found == line), "{line} in {metrics}");

    let mut short = hello();
    short["max_tokens"] = json!(2);
    let body: Value = ask(&emulator, short).await.json().await.expect("JSON");
    assert_eq!((&body["usage"]["output_tokens"], &body["stop_reason"]), (&json!(2), &json!("max_tokens")));
}

#[tokio::test]
async fn token_levels_are_rounded_to_the_nearest_thousand_and_summed() {
    let emulator = anthropic(&[]).await;
    let mut body = hello();
    body["messages"][0]["content"] = json!("x".repeat(4 * 1_600));
    body["max_tokens"] = json!(20_400);
    let response = ask(&emulator, body).await;
    let remaining = |group| limit_header(&response, group, "remaining");
    // 198,3xx and 19,600 are what is left.
    assert_eq!((remaining("input-tokens"), remaining("output-tokens")), ("198000".to_owned(), "20000".to_owned()));
    assert_eq!(remaining("tokens"), "218000");
    // Each in its own time, the sum as the first of them: 30.6 s of output, half a second of input.
    let reset = |group| unix_seconds(&limit_header(&response, group, "reset"));
    assert!((29..=31).contains(&(reset("output-tokens") - reset("requests"))));
    assert_eq!(reset("tokens"), reset("input-tokens"));
}

#[tokio::test]
async fn the_resets_of_a_long_answer_lie_before_its_date() {
    let slow = ["--ttft-ms", "1500", "--ttft-sigma", "0"];
    let emulator = Running::start(&[&["--dialect", "anthropic", "--ms-per-token", "0"], &slow[..]].concat()).await;
    let response = ask(&emulator, hello()).await;
    // The request alone is full again after 100 ms.
    assert!(unix_seconds(&limit_header(&response, "requests", "reset")) < date(&response));
}

#[tokio::test]
async fn a_refusal_names_its_limit_and_when_to_return() {
    let emulator = anthropic(&["--requests-per-minute", "2", "--burst-seconds", "30"]).await;
    assert_eq!(ask(&emulator, hello()).await.status(), StatusCode::OK);
    let response = ask(&emulator, hello()).await;
    assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
    let wait: u64 = header(&response, "retry-after").parse().expect("whole seconds");
    assert!((1..=30).contains(&wait), "one request is thirty seconds of refill, not {wait} s");
    assert_eq!((header(&response, "x-should-retry"), limit_headers(&response)), ("true".to_owned(), 12));
    assert_eq!(limit_header(&response, "requests", "remaining"), "0");
    let id = header(&response, "request-id");
    let body: Value = response.json().await.expect("JSON");
    assert_eq!((&body["type"], &body["error"]["type"]), (&json!("error"), &json!("rate_limit_error")));
    assert_eq!(body["request_id"], id);
    let message = body["error"]["message"].as_str().expect("text");
    let begin = "This request would exceed your organization's rate limit of 2 requests per minute";
    assert!(message.starts_with(begin), "{message}");
    assert_eq!(emulator.state().await.truth.users["acme"].refused_requests, 1);
}

#[tokio::test]
async fn a_request_that_alone_exceeds_a_limit_finds_the_buckets_full() {
    let emulator = anthropic(&["--output-tokens-per-minute", "450000"]).await;
    let mut body = hello();
    body["max_tokens"] = json!(450_001);
    let response = ask(&emulator, body).await;
    assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(header(&response, "x-should-retry"), "false");
    assert!(!response.headers().contains_key("retry-after"));
    for group in GROUPS {
        assert_eq!(limit_header(&response, group, "remaining"), limit_header(&response, group, "limit"));
        assert_eq!(limit_header(&response, group, "reset"), "1970-01-01T00:00:00Z");
    }
    let body: Value = response.json().await.expect("JSON");
    let message = body["error"]["message"].as_str().expect("text");
    assert!(message.contains("rate limit of 450,000 output tokens per minute"), "{message}");
    let state = emulator.state().await;
    assert_eq!((state.truth.total.too_large_requests, state.first_refusal), (1, None));
}

#[tokio::test]
async fn a_stray_retry_after_counts_to_the_next_minute() {
    let emulator = anthropic(&[]).await;
    assert!(!ask(&emulator, hello()).await.headers().contains_key("retry-after"));
    emulator.patch(json!({"stray_retry_after_rate": 1})).await;
    let response = ask(&emulator, hello()).await;
    assert_eq!(response.status(), StatusCode::OK);
    let seconds: i64 = header(&response, "retry-after").parse().expect("whole seconds");
    // The date is written at the same second, or at the next.
    assert!((1..=60).contains(&seconds) && (date(&response) + seconds) % 60 <= 1, "{seconds} s");
}

#[tokio::test]
async fn an_overloaded_provider_answers_529_and_charges_nothing() {
    let emulator = anthropic(&["--overload-rate", "1"]).await;
    let response = ask(&emulator, hello()).await;
    assert_eq!((response.status().as_u16(), limit_headers(&response)), (529, 0));
    assert_eq!(header(&response, "x-should-retry"), "true");
    assert!(!response.headers().contains_key("retry-after"));
    let body: Value = response.json().await.expect("JSON");
    assert_eq!(body["error"], json!({"type": "overloaded_error", "message": "Overloaded"}));
    let truth = emulator.state().await.truth;
    assert_eq!((truth.users["acme"].overloaded_requests, truth.total.admitted_requests), (1, 0));
    let changed = emulator.patch(json!({"overload_rate": 0})).await;
    assert_eq!(changed.status(), StatusCode::OK);
    assert_eq!(ask(&emulator, hello()).await.status(), StatusCode::OK);
    assert_eq!(emulator.state().await.faults.overload_rate, 0.0);
}

#[tokio::test]
async fn an_overloaded_openai_answers_503_without_limits() {
    let emulator = Running::start(&[&QUICK[..], &["--overload-rate", "1"]].concat()).await;
    let response = emulator.post("/v1/chat/completions", json!({"model": "m", "messages": [{}]})).await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(!response.headers().keys().any(|name| name.as_str().starts_with("x-ratelimit-")));
    let body: Value = response.json().await.expect("JSON");
    assert_eq!(body["error"]["message"], "The server is overloaded or not ready yet.");
    assert_eq!(emulator.state().await.truth.total.overloaded_requests, 1);
}

#[tokio::test]
async fn a_bad_request_gets_anthropic_s_error_shape() {
    let emulator = anthropic(&[]).await;
    let big = json!({"model": "m", "max_tokens": 1, "messages": ["x".repeat(1024 * 1024)]});
    for (path, body, status, kind, part) in [
        (
            "/v1/messages",
            json!({"model": "m", "messages": [{}]}),
            400,
            "invalid_request_error",
            "max_tokens: Field required",
        ),
        (
            "/v1/messages",
            json!({"model": "m", "max_tokens": 0, "messages": [{}]}),
            400,
            "invalid_request_error",
            "max_tokens: ",
        ),
        (
            "/v1/messages",
            json!({"model": "m", "max_tokens": 1, "messages": []}),
            400,
            "invalid_request_error",
            "messages: ",
        ),
        ("/v1/messages", json!([]), 400, "invalid_request_error", "request body: "),
        ("/v1/messages", big, 413, "request_too_large", "at most 1048576 bytes"),
        ("/v1/chat/completions", hello(), 404, "not_found_error", "expected POST /v1/messages"),
    ] {
        let response = emulator.post(path, body).await;
        assert_eq!(response.status().as_u16(), status);
        assert_eq!(header(&response, "x-should-retry"), "false");
        let id = header(&response, "request-id");
        let body: Value = response.json().await.expect("JSON");
        assert_eq!((&body["type"], &body["error"]["type"]), (&json!("error"), &json!(kind)));
        assert_eq!(body["request_id"], id);
        assert!(body["error"]["message"].as_str().is_some_and(|text| text.contains(part)), "{body}");
    }
    assert_eq!(emulator.state().await.truth.total.admitted_requests, 0);
}

#[tokio::test]
async fn a_patch_changes_the_limits_of_the_dialect_and_no_others() {
    let emulator = anthropic(&[]).await;
    let changed = emulator.patch(json!({"input_tokens_per_minute": 1000, "output_tokens_per_minute": 2000})).await;
    assert_eq!(changed.status(), StatusCode::OK);
    let response = ask(&emulator, hello()).await;
    assert_eq!(
        (limit_header(&response, "tokens", "limit"), limit_header(&response, "input-tokens", "limit")),
        ("3000".to_owned(), "1000".to_owned())
    );
    let before = emulator.state().await;
    for (patch, line) in [
        (
            json!({"tokens_per_minute": 5}),
            "tokens_per_minute 5: expected none: an account of anthropic counts requests/minute, input_tokens/minute, output_tokens/minute",
        ),
        (json!({"overload_rate": 2}), "overload_rate 2: expected 0–1"),
        (
            json!({"itpm": 5}),
            "unknown field \"itpm\": expected requests_per_minute, input_tokens_per_minute, output_tokens_per_minute, hidden_requests_per_minute, hidden_input_tokens_per_minute, hidden_output_tokens_per_minute, burst_seconds, spend_requests, overload_rate, stream_error_rate, stray_retry_after_rate, slots, crowding or headers",
        ),
    ] {
        let response = emulator.patch(patch).await;
        assert_eq!(response.status(), StatusCode::BAD_REQUEST);
        assert_eq!(response.text().await.expect("text"), format!("{line}\n"));
    }
    let after = emulator.state().await;
    assert_eq!((after.account, after.faults, after.marked), (before.account, before.faults, before.marked));
    assert_eq!((after.dialect, after.account.tokens_per_minute), (Emulated::Anthropic, None));
}

#[tokio::test]
async fn headers_that_are_switched_off_are_off_on_refusals_too() {
    let emulator = anthropic(&["--no-headers", "--requests-per-minute", "1"]).await;
    for expected in [StatusCode::OK, StatusCode::TOO_MANY_REQUESTS] {
        let response = ask(&emulator, hello()).await;
        assert_eq!((response.status(), limit_headers(&response)), (expected, 0));
        assert!(!response.headers().contains_key("retry-after"));
    }
}

#[tokio::test]
async fn a_flag_of_another_dialect_is_one_line_and_exit_code_2() {
    for (arguments, part) in [
        (
            &["--dialect", "anthropic", "--tokens-per-minute", "5"][..],
            "tokens_per_minute 5: expected none: an account of",
        ),
        (&["--input-tokens-per-minute", "5"], "input_tokens_per_minute 5: expected none"),
        (&["--output-tokens-per-minute", "5"], "output_tokens_per_minute 5: expected none"),
        (&["--stray-retry-after-rate", "0.5"], "stray_retry_after_rate 0.5: expected 0"),
        (&["--dialect", "anthropic", "--charge-max-tokens"], "charge_max_tokens true: expected false"),
        (&["--stream-error-rate", "1.5"], "stream_error_rate 1.5: expected 0–1"),
    ] {
        let mut process = spawn_emulator(arguments);
        assert_eq!(process.wait(DEADLINE).await.expect("ends").code(), Some(2));
        let lines = process.lines();
        assert!(lines.len() == 1 && lines[0].contains(part), "{lines:?}");
    }
}
