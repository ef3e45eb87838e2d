//! Each provider that the emulator can play: what its account counts and when that is given back, and what a client reads
//! of its answers.

use std::time::Duration;

use reqwest::{Response, StatusCode};
use serde_json::{Value, json};
use tidegate::clock::{MonoTime, UnixMillis};
use tidegate::observation::{Ending, ThrottleKind};
use tidegate::provider::{Class, Dialect, Head, Observation, ReceivedAt, reflex};
use tidegate::quota::{Cost, Meter, Unit, Window};
use tidegate::sim::emulator::{Account, AccountParams, Emulated, Emulator, EmulatorParams, LatencyParams};

use crate::admission::Stage;
use crate::by_hand::{RPM, TPM, rates, tenant};
use crate::emulator::{DEADLINE, QUICK, Running, assert_close, spawn_emulator};
use crate::middleware::http;

const RPD: Meter = Meter { unit: Unit::Requests, window: Window::Day };
const TPD: Meter = Meter { unit: Unit::Tokens, window: Window::Day };
const ITPM: Meter = Meter { unit: Unit::InputTokens, window: Window::Minute };
const OTPM: Meter = Meter { unit: Unit::OutputTokens, window: Window::Minute };

/// 2026-07-01T12:00:20Z: 20 s into a minute, 5 o'clock in California.
const NOON: UnixMillis = UnixMillis(1_782_907_220_000);

fn at_ms(ms: u64) -> MonoTime {
    MonoTime::from_millis(1_000_000 + ms)
}

fn at_seconds(seconds: u64) -> MonoTime {
    at_ms(seconds * 1_000)
}

fn account(emulated: Emulated, change: impl FnOnce(&mut AccountParams)) -> Account {
    let mut params = AccountParams::of(emulated);
    change(&mut params);
    Account::new(emulated, params, at_ms(0), NOON).expect("valid")
}

/// Requests that are admitted at this moment, one after another.
fn drain(account: &mut Account, now: MonoTime) -> u32 {
    let mut admitted = 0;
    while account.request(None, &Cost::request(0, 0), now).refusal.is_none() {
        admitted += 1;
    }
    admitted
}

// === accounts ===

#[test]
fn a_fixed_window_gives_all_back_when_it_ends_and_nothing_before() {
    let mut account = account(Emulated::FixedWindow, |params| params.requests_per_minute = 60);
    assert_eq!(drain(&mut account, at_ms(0)), 60);
    assert_eq!(drain(&mut account, at_ms(39_999)), 0);
    // The minute ends by the clock, 40 s after the account began; and the next one a minute later.
    assert_eq!(drain(&mut account, at_ms(40_000)), 60);
    assert_eq!(drain(&mut account, at_ms(99_999)), 0);
    assert_eq!(drain(&mut account, at_seconds(100)), 60);
    // However long nobody asks, a window holds its limit.
    assert_eq!(drain(&mut account, at_seconds(10_000)), 60);
    let shown = account.shown();
    let refusal = account.request(None, &Cost::request(0, 0), at_seconds(10_001)).refusal.expect("empty");
    assert_eq!((refusal.meter, refusal.retry_after_ms), (RPM, Some(59_000)));
    assert_eq!((shown[0].remaining, shown[0].reset), (0.0, Some(Duration::from_secs(60))));
}

#[test]
fn a_day_that_is_spent_lasts_until_midnight_where_the_provider_is() {
    for (emulated, seconds_left) in [(Emulated::FixedWindow, 12 * 3_600 - 20), (Emulated::Gemini, 19 * 3_600 - 20)] {
        let mut account = account(emulated, |params| {
            (params.requests_per_minute, params.requests_per_day) = (1_000, Some(5));
        });
        assert_eq!(drain(&mut account, at_ms(0)), 5);
        let refusal = account.request(None, &Cost::request(0, 0), at_seconds(10)).refusal.expect("spent");
        assert_eq!((refusal.meter, refusal.retry_after_ms), (RPD, Some((seconds_left - 10) * 1_000)), "{emulated}");
        assert_eq!(drain(&mut account, at_ms(seconds_left * 1_000 - 1)), 0);
        assert_eq!(drain(&mut account, at_seconds(seconds_left)), 5);
    }
    // Groq's days leak away: a request in 17,280 s.
    let mut account = account(Emulated::Groq, |params| params.requests_per_day = Some(5));
    assert_eq!(drain(&mut account, at_ms(0)), 5);
    assert_eq!(drain(&mut account, at_seconds(17_279)), 0);
    assert_eq!(drain(&mut account, at_seconds(17_280)), 1);
}

#[test]
fn hidden_use_takes_from_each_meter_of_its_unit_and_no_more_than_a_window_has() {
    let mut account = account(Emulated::FixedWindow, |params| {
        (params.requests_per_minute, params.hidden_requests_per_minute) = (60, 90.0);
    });
    account.advance(at_seconds(30));
    assert_close(account.levels()[&RPM], 60.0 - 45.0, 1e-9);
    assert_close(account.levels()[&RPD], 12_000.0 - 45.0, 1e-9);
    account.advance(at_seconds(39));
    assert_close(account.levels()[&RPM], 60.0 - 58.5, 1e-9);
    // The window ends, and the next is used up in 40 s.
    account.advance(at_seconds(99));
    assert_close(account.levels()[&RPM], 0.0, 1e-9);
    let truth = account.truth().meters[&RPM];
    assert_close(truth.hidden_units, 60.0 + 60.0, 1e-9);
    assert_close(truth.capacity_units, 60.0 - 120.0, 1e-9);
    assert_close(account.truth().meters[&RPD].hidden_units, 99.0 * 1.5, 1e-9);
}

#[test]
fn a_limit_that_is_lowered_leaves_a_window_overdrawn_until_it_ends() {
    let mut account = account(Emulated::FixedWindow, |params| params.requests_per_minute = 60);
    assert_eq!(drain(&mut account, at_ms(0)), 60);
    let params = AccountParams { requests_per_minute: 10, ..account.params() };
    account.change(params, at_seconds(1)).expect("valid");
    assert_close(account.levels()[&RPM], -50.0, 1e-9);
    assert_eq!(account.shown()[0].remaining, 0.0);
    assert_eq!((drain(&mut account, at_ms(39_999)), drain(&mut account, at_seconds(40))), (0, 10));
}

#[test]
fn every_retry_time_of_every_account_is_enough_and_a_millisecond_less_is_not() {
    for emulated in Emulated::ALL {
        let mut random = fastrand::Rng::with_seed(7);
        let mut account = account(emulated, |params| {
            params.requests_per_minute = 977;
            let smaller =
                [&mut params.tokens_per_minute, &mut params.tokens_per_day, &mut params.input_tokens_per_minute];
            for limit in smaller {
                *limit = limit.map(|_| 70_001);
            }
            params.requests_per_day = params.requests_per_day.map(|_| 3_001);
        });
        let (mut now_ms, mut refused) = (0, 0);
        for _ in 0..4_000 {
            now_ms += random.u64(0..60);
            let cost = Cost::request(random.u64(1..3_000), 1);
            if let Some(refusal) = account.request(None, &cost, at_ms(now_ms)).refusal {
                refused += 1;
                let wait_ms = refusal.retry_after_ms.expect("fits one day");
                let admitted_after = |ms| account.clone().request(None, &cost, at_ms(now_ms + ms)).refusal.is_none();
                assert!(admitted_after(wait_ms), "{emulated} {refusal:?}");
                assert!(!admitted_after(wait_ms - 1), "{emulated} {refusal:?}");
            }
        }
        assert!(refused > 1_000, "{emulated}: the test must see refusals, saw {refused}");
    }
}

// === answers ===

/// An emulator in this process that answers at once; its address.
async fn play(emulated: Emulated, change: impl FnOnce(&mut AccountParams)) -> String {
    let mut params = EmulatorParams::of(emulated);
    change(&mut params.account);
    params.latency = LatencyParams { ttft_ms: 0.0, ms_per_token: 0.0, ..LatencyParams::default() };
    let emulator = Emulator::bind(([127, 0, 0, 1], 0).into(), params).await.expect("binds");
    let url = format!("http://{}", emulator.local_addr());
    tokio::spawn(emulator.serve(std::future::pending()));
    url
}

/// Where its requests go, and one of some 100 bytes.
fn request(emulated: Emulated) -> (&'static str, Value) {
    let messages = json!([{"role": "user", "content": "Tell me of the tides, and why there are two of them a day."}]);
    let chat = json!({"model": "demo", "max_tokens": 9, "messages": messages});
    let path = match emulated {
        Emulated::OpenAi | Emulated::FixedWindow => "/v1/chat/completions",
        Emulated::Anthropic => "/v1/messages",
        Emulated::Azure => "/openai/deployments/demo/chat/completions?api-version=2024-10-21",
        Emulated::Groq => "/openai/v1/chat/completions",
        Emulated::Gemini => {
            let contents =
                json!([{"role": "user", "parts": [{"text": "Tell me of the tides, and why they are two."}]}]);
            return ("/v1beta/models/demo:generateContent", json!({"contents": contents}));
        }
    };
    (path, chat)
}

async fn ask(url: &str, emulated: Emulated) -> Response {
    let (path, body) = request(emulated);
    http().post(format!("{url}{path}")).body(body.to_string()).send().await.expect("an answer")
}

/// What a client makes of an answer, read by this dialect.
async fn seen(response: Response, dialect: Dialect) -> Observation {
    let status = response.status().as_u16();
    let headers = response.headers().clone();
    let body = response.bytes().await.expect("a body");
    let body = (status != 200).then_some(&*body);
    let received_at = ReceivedAt { sent_at: MonoTime::from_millis(1), wall: None };
    dialect.observe(&Head { status, headers: &headers }, body, received_at)
}

#[tokio::test]
async fn what_an_answer_tells_is_read_as_it_is_meant_by_name_and_by_looks() {
    for (emulated, meters) in [
        (Emulated::OpenAi, &[RPM, TPM][..]),
        (Emulated::Anthropic, &[RPM, ITPM, OTPM, TPM]),
        (Emulated::Azure, &[RPM, TPM]),
        (Emulated::Groq, &[RPD, TPM]),
        (Emulated::Gemini, &[]),
        (Emulated::FixedWindow, &[RPM, RPD, TPD]),
    ] {
        let url = play(emulated, |_| {}).await;
        for dialect in [emulated.dialect(), Dialect::Auto] {
            let seen = seen(ask(&url, emulated).await, dialect).await;
            assert_eq!((seen.class, &*seen.missing), (Class::Ok, &[][..]), "{emulated} {seen:?}");
            let mut found: Vec<Meter> = seen.readings.iter().map(|reading| reading.meter).collect();
            let mut expected = meters.to_vec();
            found.sort();
            expected.sort();
            assert_eq!(found, expected, "{emulated} {seen:?}");
            assert!(dialect != Dialect::Auto || meters.is_empty() || seen.dialect == emulated.dialect(), "{seen:?}");
            let semantics = emulated.dialect().semantics();
            for reading in &seen.readings {
                assert_ne!((reading.limit, reading.remaining, reading.reset), (None, None, None));
                let taken = reading.limit.zip(reading.remaining).map(|(limit, left)| limit - left).expect("both");
                let grain = semantics.remaining_grain(reading.meter.unit);
                assert!((0.0..=120.0 + grain).contains(&taken), "{emulated} {reading:?}");
            }
        }
    }
}

#[tokio::test]
async fn a_refusal_is_read_as_of_the_meter_that_refused_and_lasts_as_long_as_it_must() {
    type Change = fn(&mut AccountParams);
    let cases: [(Emulated, Change, Meter, ThrottleKind, f64, f64); 9] = [
        (Emulated::OpenAi, |params| params.requests_per_minute = 3, RPM, ThrottleKind::Requests, 15.0, 20.1),
        (Emulated::Anthropic, |params| params.requests_per_minute = 3, RPM, ThrottleKind::Requests, 15.0, 21.0),
        (Emulated::Azure, |params| params.requests_per_minute = 3, RPM, ThrottleKind::Requests, 15.0, 21.0),
        // It asks for a second: what is believed is the time that the bucket takes.
        (Emulated::Azure, |params| params.tokens_per_minute = Some(100), TPM, ThrottleKind::Tokens, 10.0, 60.0),
        (Emulated::Groq, |params| params.requests_per_day = Some(3), RPD, ThrottleKind::Daily, 28_000.0, 28_801.0),
        // No header tells of it.
        (Emulated::Groq, |params| params.requests_per_minute = 3, RPM, ThrottleKind::Requests, 15.0, 21.0),
        (Emulated::Gemini, |params| params.requests_per_minute = 3, RPM, ThrottleKind::Requests, 15.0, 21.0),
        (Emulated::Gemini, |params| params.requests_per_day = Some(3), RPD, ThrottleKind::Daily, 1.0, 90_001.0),
        (Emulated::FixedWindow, |params| params.tokens_per_day = Some(100), TPD, ThrottleKind::Daily, 1.0, 86_402.0),
    ];
    for (emulated, change, meter, kind, least, most) in cases {
        let url = play(emulated, change).await;
        let mut answered = 0;
        let refused = loop {
            let answer = ask(&url, emulated).await;
            if answer.status() != StatusCode::OK {
                break answer;
            }
            answered += 1;
        };
        assert!(answered >= 1, "{emulated}: one of them fits");
        assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
        let seen = seen(refused, emulated.dialect()).await;
        assert_eq!((seen.class, seen.ending), (Class::Throttled, Ending::Throttled(kind)), "{emulated} {seen:?}");
        assert!(seen.exhausted.contains(&meter), "{emulated} {seen:?}");
        let cost = Cost::request(40, 9);
        let reflex = reflex(emulated.dialect(), &seen, &cost);
        let hold = reflex.holds.iter().find(|hold| hold.meter == meter).expect("it is held").for_at_least;
        let wait = reflex.long.unwrap_or(hold).as_secs_f64();
        assert!((least..=most).contains(&wait), "{emulated} {meter}: {wait} s, of {seen:?}");
    }
}

#[tokio::test]
async fn an_overload_is_read_as_one() {
    for emulated in Emulated::ALL {
        let emulator =
            Running::start(&[&QUICK[..], &["--dialect", emulated.as_str(), "--overload-rate", "1"]].concat()).await;
        let seen = seen(ask(&emulator.url, emulated).await, emulated.dialect()).await;
        assert_eq!((seen.class, &*seen.exhausted), (Class::Overloaded, &[][..]), "{emulated} {seen:?}");
    }
}

#[tokio::test]
async fn gemini_streams_when_events_are_asked_for_and_tells_the_usage_last() {
    let url = play(Emulated::Gemini, |_| {}).await;
    let mut body = request(Emulated::Gemini).1;
    body["generationConfig"] = json!({"maxOutputTokens": 3});
    let post = async |call: &str| {
        let request = http().post(format!("{url}/v1beta/models/{call}")).body(body.to_string());
        request.send().await.expect("an answer")
    };
    let whole: Value = post("demo:generateContent").await.json().await.expect("JSON");
    assert_eq!(whole["candidates"][0]["content"]["parts"][0]["text"], "tide tide tide");
    assert_eq!(
        (&whole["candidates"][0]["finishReason"], &whole["modelVersion"]),
        (&json!("MAX_TOKENS"), &json!("demo"))
    );
    assert_eq!(whole["usageMetadata"]["candidatesTokenCount"], 3);

    let stream = post("demo:streamGenerateContent?alt=sse").await;
    assert!(stream.headers()["content-type"].to_str().expect("text").starts_with("text/event-stream"));
    let events = stream.text().await.expect("text");
    let parts: Vec<Value> = events
        .split("\n\n")
        .filter_map(|event| event.strip_prefix("data: "))
        .map(|data| serde_json::from_str(data).expect("JSON"))
        .collect();
    let text = |part: &Value| part["candidates"][0]["content"]["parts"][0]["text"].as_str().expect("text").to_owned();
    assert_eq!(parts.iter().map(text).collect::<String>(), "tide tide tide");
    let last = parts.last().expect("some");
    assert_eq!(last["usageMetadata"]["totalTokenCount"], whole["usageMetadata"]["totalTokenCount"]);
    assert_eq!(last["candidates"][0]["finishReason"], "MAX_TOKENS");

    for call in ["demo:streamGenerateContent", "demo:countTokens", "demo"] {
        let wrong = post(call).await;
        assert_eq!(wrong.status(), StatusCode::BAD_REQUEST);
        let wrong: Value = wrong.json().await.expect("JSON");
        assert_eq!(wrong["error"]["status"], "INVALID_ARGUMENT");
        assert!(wrong["error"]["message"].as_str().is_some_and(|text| text.contains(":generateContent")), "{wrong}");
    }
}

#[tokio::test]
async fn azure_is_asked_by_deployment_or_by_model() {
    let url = play(Emulated::Azure, |_| {}).await;
    let post = async |path: &str, body: Value| {
        let answer = http().post(format!("{url}{path}")).body(body.to_string()).send().await.expect("an answer");
        (answer.status(), answer.json::<Value>().await.expect("JSON"))
    };
    let messages = json!([{"role": "user", "content": "hello"}]);
    let (_, by_path) = post("/openai/deployments/mine/chat/completions", json!({"messages": messages})).await;
    let (_, by_name) = post("/openai/v1/chat/completions", json!({"model": "mine", "messages": messages})).await;
    assert_eq!((&by_path["model"], &by_name["model"]), (&json!("mine"), &json!("mine")));
    let (status, nameless) = post("/openai/v1/chat/completions", json!({"messages": messages})).await;
    assert_eq!((status, &nameless["error"]["code"]), (StatusCode::BAD_REQUEST, &json!("400")));
}

// === a request that never fits ===

/// Azure and Gemini refuse it as any other, and ask for a day or a minute: but it never fits, and nobody need wait for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_larger_than_the_limit_that_is_told_holds_nobody_back() {
    for (emulated, meter) in [(Emulated::Azure, TPM), (Emulated::Gemini, ITPM)] {
        let url = play(emulated, |params| {
            let limit = if emulated == Emulated::Azure {
                &mut params.tokens_per_minute
            } else {
                &mut params.input_tokens_per_minute
            };
            *limit = Some(10);
        })
        .await;
        let wide = rates(&[(RPM, 60e6, 60e6), (meter, 60e9, 60e9)]);
        let stage = Stage::open_with(emulated.dialect(), &[("acme", wide)]).await;
        for _ in 0..2 {
            // Not held: the second is sent as the first was.
            let permit = stage.pool.admit(&tenant("acme"), Cost::request(40, 0)).await.expect("there is room");
            let answer = permit.attach(ask(&url, emulated).await).await;
            assert_eq!(answer.status(), StatusCode::TOO_MANY_REQUESTS);
        }
        let told = stage.reported("acme", "both are told", |told| told.counters.ignored == 2).await;
        assert!(told.counters.throttled.is_empty(), "{emulated} {:?}", told.counters.throttled);
        assert!(stage.pool.tuning().holds.is_empty(), "{emulated}");
        // One that would fit by itself is refused for want of room: that is held.
        let permit = stage.pool.admit(&tenant("acme"), Cost::request(9, 0)).await.expect("there is room");
        drop(permit.attach(ask(&url, emulated).await).await);
        stage.reported("acme", "it is told", |told| !told.counters.throttled.is_empty()).await;
        assert!(stage.pool.tuning().holds.contains_key(&meter), "{emulated}");
    }
}

// === the command ===

#[tokio::test]
async fn a_dialect_that_the_emulator_does_not_speak_is_an_error_that_lists_those_it_does() {
    for dialect in ["mistral", "auto", "sambanova", ""] {
        let mut process = spawn_emulator(&["--dialect", dialect]);
        assert_eq!(process.wait(DEADLINE).await.expect("ends").code(), Some(2));
        let lines = process.lines().join("\n");
        for emulated in Emulated::ALL {
            assert!(lines.contains(emulated.as_str()), "{lines}");
        }
    }
    let error = "mistral".parse::<Emulated>().expect_err("not spoken").to_string();
    assert_eq!(error, "dialect \"mistral\": the emulator speaks openai, anthropic, azure, groq, gemini, fixed-window");
}

#[tokio::test]
async fn the_request_that_the_emulator_proposes_is_answered() {
    for emulated in Emulated::ALL {
        let mut emulator = Running::start(&[&QUICK[..], &["--dialect", emulated.as_str()]].concat()).await;
        let line = emulator.process.wait_for_line(|line| line.starts_with("try: "), DEADLINE).await.expect("a line");
        let (address, body) = line.split_once("' -d '").expect("a body");
        let path = address.rsplit_once(&emulator.url).expect("its own address").1.to_owned();
        let body = serde_json::from_str(body.trim_end_matches('\'')).expect("JSON");
        assert_eq!(emulator.post(&path, body).await.status(), StatusCode::OK, "{emulated}");
    }
}

#[tokio::test]
async fn limits_by_the_day_are_flags_and_settings_and_shown_by_meter() {
    let days = ["--dialect", "fixed-window", "--requests-per-day", "7", "--tokens-per-day", "9000"];
    let emulator = Running::start(&[&QUICK[..], &days].concat()).await;
    let state = emulator.state().await;
    assert_eq!((state.dialect, state.levels[&RPD], state.levels[&TPD]), (Emulated::FixedWindow, 7.0, 9_000.0));
    let changed = emulator.patch(json!({"requests_per_day": 5, "tokens_per_day": 8_000})).await;
    assert_eq!(changed.status(), StatusCode::OK);
    assert_eq!(emulator.state().await.levels[&RPD], 5.0);
    let metrics = emulator.get("/metrics").await.text().await.expect("text");
    assert!(metrics.contains("tidegate_emulator_limit_units{meter=\"requests/day\"} 5"), "{metrics}");

    let mut process = spawn_emulator(&["--dialect", "openai", "--requests-per-day", "7"]);
    assert_eq!(process.wait(DEADLINE).await.expect("ends").code(), Some(2));
    let lines = process.lines().join("\n");
    assert!(
        lines.contains("requests_per_day 7: expected none: an account of openai counts requests/minute, tokens/minute"),
        "{lines}"
    );
}
