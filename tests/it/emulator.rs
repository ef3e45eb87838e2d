//! The emulated provider, its arithmetic and its wire; and the harness that runs it and etcd as real processes.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::process::Command;
use std::time::Duration;

use reqwest::{Client, Response, StatusCode};
use serde_json::{Value, json};
use tidegate::clock::{MonoTime, UnixMillis};
use tidegate::provider::{Shown, go_duration};
use tidegate::quota::{Cost, Meter};
use tidegate::sim::Etcd;
use tidegate::sim::emulator::account::{MeterTruth, OTHER_USERS, USERS_MAX, input_tokens};
use tidegate::sim::emulator::latency::Latency;
use tidegate::sim::emulator::{
    Account, AccountParams, Emulated, Emulator, EmulatorError, EmulatorParams, EmulatorState, LatencyParams,
};
use tidegate::sim::process::{Process, ProcessError, find_program, free_port};

pub const DEADLINE: Duration = Duration::from_secs(20);

/// 60 requests/minute and 6,000 tokens/minute: one request and 100 tokens a second, in buckets of a minute.
const ONE_A_SECOND: AccountParams =
    AccountParams { requests_per_minute: 60, tokens_per_minute: Some(6_000), ..AccountParams::of(Emulated::OpenAi) };

fn at_ms(ms: u64) -> MonoTime {
    MonoTime::from_millis(1_000_000 + ms)
}

fn account(params: AccountParams) -> Account {
    Account::new(Emulated::OpenAi, params, at_ms(0), UnixMillis(0)).expect("valid")
}

fn tokens(count: u64) -> Cost {
    Cost::request(count, 0)
}

/// Requests and tokens.
fn levels(account: &Account) -> [f64; 2] {
    let levels = account.levels();
    [levels[&Meter::REQUESTS_PER_MINUTE], levels[&Meter::TOKENS_PER_MINUTE]]
}

fn requests_truth(account: &Account) -> MeterTruth {
    account.truth().meters[&Meter::REQUESTS_PER_MINUTE]
}

/// Takes requests of no tokens until one is refused; how many were admitted.
fn drain(account: &mut Account, now: MonoTime) -> u32 {
    let mut admitted = 0;
    while account.request(None, &tokens(0), now).refusal.is_none() {
        admitted += 1;
    }
    admitted
}

pub fn assert_close(found: f64, expected: f64, tolerance: f64) {
    assert!((found - expected).abs() <= tolerance, "found {found}, expected {expected} ± {tolerance}");
}

#[test]
fn a_full_account_admits_its_burst_and_then_what_refills() {
    let mut account = account(ONE_A_SECOND);
    assert_eq!(drain(&mut account, at_ms(0)), 60);
    assert_eq!(drain(&mut account, at_ms(999)), 0);
    assert_eq!(drain(&mut account, at_ms(1_000)), 1);
    assert_eq!(drain(&mut account, at_ms(11_000)), 10);
    // Never more than a full bucket.
    assert_eq!(drain(&mut account, at_ms(1_000_000)), 60);
}

#[test]
fn a_refused_request_is_charged_on_no_meter() {
    let mut account = account(ONE_A_SECOND);
    assert!(account.request(None, &tokens(6_000), at_ms(0)).refusal.is_none());
    let verdict = account.request(None, &tokens(50), at_ms(0));
    assert_eq!(verdict.refusal.expect("no tokens left").meter, Meter::TOKENS_PER_MINUTE);
    assert_eq!(levels(&account), [59.0, 0.0]);
}

#[test]
fn an_isolated_request_shows_the_limit_less_one() {
    let mut account = account(ONE_A_SECOND);
    let shown = account.request(None, &tokens(100), at_ms(0)).shown;
    let reset = Some(Duration::from_secs(1));
    assert_eq!(
        shown,
        [
            Shown { meter: Meter::REQUESTS_PER_MINUTE, limit: 60.0, remaining: 59.0, reset },
            Shown { meter: Meter::TOKENS_PER_MINUTE, limit: 6_000.0, remaining: 5_900.0, reset }
        ]
    );
}

#[test]
fn the_printed_reset_gives_the_level_for_any_burst() {
    for burst_seconds in [5.0, 60.0, 17.5] {
        let mut account = account(AccountParams { burst_seconds, ..ONE_A_SECOND });
        for step in 0_u32..40 {
            let shown = account.request(None, &tokens(7), at_ms(u64::from(step) * 137)).shown;
            for (shown, level) in shown.into_iter().zip(levels(&account)) {
                let limit = shown.limit;
                let reset_seconds = shown.reset.expect("told").as_secs_f64();
                // Half a millisecond of refill is what the rounding may hide.
                assert_close(limit - reset_seconds * limit / 60.0, level, limit / 60.0 * 0.000_501);
                assert_close(shown.remaining, level.max(0.0), 1.0);
            }
        }
    }
}

#[test]
fn halving_the_limits_keeps_what_was_used() {
    let mut account = account(ONE_A_SECOND);
    for _ in 0..40 {
        assert!(account.request(None, &tokens(0), at_ms(0)).refusal.is_none());
    }
    let halved = AccountParams { requests_per_minute: 30, ..ONE_A_SECOND };
    account.change(halved, at_ms(0)).expect("valid");
    assert_close(levels(&account)[0], -10.0, 1e-9);
    let verdict = account.request(None, &tokens(0), at_ms(0));
    // 11 units at half a unit a second; overdrawn, so the reset is more than a minute.
    assert_eq!(verdict.refusal.expect("overdrawn").retry_after_ms, Some(22_000));
    assert_eq!((verdict.shown[0].remaining, verdict.shown[0].reset), (0.0, Some(Duration::from_secs(80))));
    assert!(account.request(None, &tokens(0), at_ms(21_990)).refusal.is_some());
    assert!(account.request(None, &tokens(0), at_ms(22_000)).refusal.is_none());
}

#[test]
fn the_retry_time_is_the_time_to_fit_not_the_time_to_full() {
    let mut account = account(ONE_A_SECOND);
    assert!(account.request(None, &tokens(6_000), at_ms(0)).refusal.is_none());
    let refusal = account.request(None, &tokens(83), at_ms(0)).refusal.expect("no tokens left");
    // 83 tokens at 100 a second.
    assert_eq!(refusal.retry_after_ms, Some(830));
    assert_eq!((refusal.limit, refusal.used, refusal.requested), (6_000, 6_000, 83));
    assert!(account.request(None, &tokens(83), at_ms(829)).refusal.is_some());
    assert!(account.request(None, &tokens(83), at_ms(830)).refusal.is_none());
}

#[test]
fn every_retry_time_is_enough_and_a_millisecond_less_is_not() {
    let params = AccountParams { requests_per_minute: 977, tokens_per_minute: Some(70_001), ..ONE_A_SECOND };
    let mut random = fastrand::Rng::with_seed(7);
    let mut account = account(params);
    let (mut now_ms, mut refused) = (0, 0);
    for _ in 0..5_000 {
        now_ms += random.u64(0..60);
        let cost = tokens(random.u64(1..3_000));
        if let Some(refusal) = account.request(None, &cost, at_ms(now_ms)).refusal {
            refused += 1;
            let wait_ms = refusal.retry_after_ms.expect("fits one day");
            let admitted_after = |ms: u64| account.clone().request(None, &cost, at_ms(now_ms + ms)).refusal.is_none();
            assert!(admitted_after(wait_ms));
            assert!(!admitted_after(wait_ms - 1));
        }
    }
    assert!(refused > 1_000, "the test must see refusals, saw {refused}");
}

#[test]
fn the_longer_wait_of_two_meters_counts() {
    let mut account = account(ONE_A_SECOND);
    assert!(account.request(None, &tokens(6_000), at_ms(0)).refusal.is_none());
    assert_eq!(drain(&mut account, at_ms(0)), 59);
    let refusal = account.request(None, &tokens(300), at_ms(0)).refusal.expect("both empty");
    assert_eq!((refusal.meter, refusal.retry_after_ms), (Meter::TOKENS_PER_MINUTE, Some(3_000)));
    let refusal = account.request(None, &tokens(30), at_ms(0)).refusal.expect("both empty");
    assert_eq!((refusal.meter, refusal.retry_after_ms), (Meter::REQUESTS_PER_MINUTE, Some(1_000)));
}

#[test]
fn a_request_above_the_burst_or_the_limit_is_too_large_and_has_no_retry_time() {
    let mut account = account(ONE_A_SECOND);
    let refusal = account.request(Some("acme"), &tokens(6_001), at_ms(0)).refusal.expect("too large");
    assert_eq!((refusal.meter, refusal.limit, refusal.requested), (Meter::TOKENS_PER_MINUTE, 6_000, 6_001));
    assert_eq!(refusal.retry_after_ms, None);
    assert_eq!(levels(&account), [60.0, 6_000.0]);
    assert_eq!(account.truth().users["acme"].too_large_requests, 1);
    assert_eq!(account.first_refusal_at(), None);

    let small = AccountParams { burst_seconds: 1.0, ..ONE_A_SECOND };
    account.change(small, at_ms(0)).expect("valid");
    assert_eq!(account.request(None, &tokens(101), at_ms(0)).refusal.expect("above the burst").retry_after_ms, None);
    let long = AccountParams { burst_seconds: 120.0, ..ONE_A_SECOND };
    account.change(long, at_ms(0)).expect("valid");
    assert_eq!(account.request(None, &tokens(6_001), at_ms(0)).refusal.expect("above the limit").retry_after_ms, None);
}

#[test]
fn a_bucket_holds_at_least_one_request() {
    let tiny = AccountParams { requests_per_minute: 6, burst_seconds: 0.1, ..ONE_A_SECOND };
    assert_eq!(drain(&mut account(tiny), at_ms(0)), 1);
}

#[test]
fn hidden_use_takes_its_rate_and_leaves_the_rest() {
    let mut account = account(AccountParams { hidden_requests_per_minute: 45.0, ..ONE_A_SECOND });
    assert_eq!(drain(&mut account, at_ms(0)), 60);
    // A quarter of one request a second is left.
    assert_eq!(drain(&mut account, at_ms(40_000)), 10);
    let truth = requests_truth(&account);
    assert_close(truth.hidden_units, 30.0, 1e-9);
    assert_close(truth.capacity_units, 10.0, 1e-9);
}

#[test]
fn hidden_use_above_the_limit_empties_the_bucket_but_never_overdraws_it() {
    let mut account = account(AccountParams { hidden_requests_per_minute: 120.0, ..ONE_A_SECOND });
    account.advance(at_ms(30_000));
    assert_close(levels(&account)[0], 30.0, 1e-9);
    account.advance(at_ms(600_000));
    assert_close(levels(&account)[0], 0.0, 1e-9);
    let truth = requests_truth(&account);
    // Two a second for a minute, then all of the refill: the bucket's 60 went as well.
    assert_close(truth.hidden_units, 120.0 + 540.0, 1e-6);
    assert_close(truth.capacity_units, -60.0, 1e-6);
}

#[test]
fn hidden_use_takes_nothing_from_an_overdrawn_account() {
    let mut account = account(ONE_A_SECOND);
    assert_eq!(drain(&mut account, at_ms(0)), 60);
    let params = AccountParams { requests_per_minute: 30, hidden_requests_per_minute: 30.0, ..ONE_A_SECOND };
    account.change(params, at_ms(0)).expect("valid");
    account.advance(at_ms(60_000));
    assert_close(levels(&account)[0], 0.0, 1e-9);
    assert_close(requests_truth(&account).hidden_units, 0.0, 1e-9);
    account.advance(at_ms(120_000));
    assert_close(levels(&account)[0], 0.0, 1e-9);
    assert_close(requests_truth(&account).hidden_units, 30.0, 1e-9);
}

#[test]
fn one_long_step_is_the_same_as_many_short_ones() {
    let params = AccountParams { hidden_requests_per_minute: 90.0, ..ONE_A_SECOND };
    let (mut long, mut short) = (account(params), account(params));
    for account in [&mut long, &mut short] {
        assert_eq!(drain(account, at_ms(0)), 60);
        account.change(AccountParams { requests_per_minute: 40, ..params }, at_ms(0)).expect("valid");
    }
    long.advance(at_ms(100_000));
    for step in 1..=10_000 {
        short.advance(at_ms(step * 10));
    }
    assert_close(levels(&long)[0], levels(&short)[0], 1e-6);
    assert_close(requests_truth(&long).hidden_units, requests_truth(&short).hidden_units, 1e-6);
}

#[test]
fn what_was_admitted_never_exceeds_what_was_stored_and_offered() {
    let mut random = fastrand::Rng::with_seed(11);
    let mut account = account(AccountParams { hidden_tokens_per_minute: Some(2_500.0), ..ONE_A_SECOND });
    let mut now_ms = 0;
    for _ in 0..20_000 {
        now_ms += random.u64(0..2_000);
        account.request(None, &tokens(random.u64(0..400)), at_ms(now_ms));
        let truth = account.truth();
        let admitted = f64::from(u32::try_from(truth.total.admitted_tokens).expect("small"));
        assert!(admitted <= 6_000.0 + truth.meters[&Meter::TOKENS_PER_MINUTE].capacity_units + 1e-3);
        assert!(levels(&account)[1] >= -1e-3);
    }
}

#[test]
fn truth_is_counted_by_user_for_a_bounded_number_of_users() {
    let mut account = account(AccountParams { requests_per_minute: 100_000, ..ONE_A_SECOND });
    for user in 0..USERS_MAX + 10 {
        account.request(Some(&format!("user-{user}")), &tokens(1), at_ms(0));
    }
    account.request(None, &tokens(1), at_ms(0));
    account.request(Some(&"x".repeat(129)), &tokens(1), at_ms(0));
    account.request(Some("user-0"), &tokens(6_000), at_ms(0));
    let truth = account.truth();
    assert_eq!(truth.users.len(), USERS_MAX + 1);
    assert_eq!(truth.users[OTHER_USERS].admitted_requests, 12);
    let user = truth.users["user-0"];
    assert_eq!((user.admitted_requests, user.admitted_tokens, user.refused_requests), (1, 1, 1));
    assert_eq!(truth.total.admitted_requests, 76);
}

#[test]
fn the_first_refusal_is_the_first_since_the_mark() {
    let mut account = account(ONE_A_SECOND);
    drain(&mut account, at_ms(10));
    account.request(None, &tokens(0), at_ms(20));
    assert_eq!(account.first_refusal_at(), Some(at_ms(10)));
    account.mark(at_ms(30));
    assert_eq!((account.marked_at(), account.first_refusal_at()), (at_ms(30), None));
    account.request(None, &tokens(0), at_ms(40));
    assert_eq!(account.first_refusal_at(), Some(at_ms(40)));
}

#[test]
fn a_setting_outside_its_range_is_named_and_changes_nothing() {
    let mut account = account(ONE_A_SECOND);
    for (params, line) in [
        (
            AccountParams { requests_per_minute: 0, ..ONE_A_SECOND },
            "requests_per_minute 0: expected a whole number, 1–1000000000",
        ),
        (AccountParams { burst_seconds: f64::NAN, ..ONE_A_SECOND }, "burst_seconds NaN: expected 0.1–86400 seconds"),
        (
            AccountParams { hidden_tokens_per_minute: Some(-1.0), ..ONE_A_SECOND },
            "hidden_tokens_per_minute -1: expected 0–1000000000",
        ),
    ] {
        assert_eq!(account.change(params, at_ms(0)).expect_err("out of range").to_string(), line);
        assert_eq!(account.params(), ONE_A_SECOND);
    }
}

#[test]
fn a_body_counts_as_a_quarter_of_its_bytes_in_tokens_rounded_up() {
    assert_eq!((input_tokens(0), input_tokens(100), input_tokens(101)), (0, 25, 26));
}

#[test]
fn durations_are_printed_as_go_prints_them() {
    for (ms, text) in [
        (0, "0s"),
        (120, "120ms"),
        (1_112, "1.112s"),
        (8_000, "8s"),
        (60_000, "1m0s"),
        (61_230, "1m1.23s"),
        (432_000, "7m12s"),
        (4_147_077, "1h9m7.077s"),
        (3_600_000, "1h0m0s"),
        (299_439_057, "83h10m39.057s"),
    ] {
        assert_eq!(go_duration(ms), text);
    }
}

#[test]
fn the_same_seed_draws_the_same_answers_around_the_median() {
    let params = LatencyParams { ttft_ms: 300.0, ttft_sigma: 0.4, ms_per_token: 5.0, output_tokens: 40 };
    let draw = |seed| {
        let mut latency = Latency::new(params, seed).expect("valid");
        (0..1_001).map(|_| latency.draw(None)).collect::<Vec<_>>()
    };
    assert_eq!(draw(1), draw(1));
    assert_ne!(draw(1), draw(2));
    let mut draws = draw(1);
    draws.sort_by_key(|draw| draw.to_head);
    assert_close(draws[500].to_head.as_secs_f64(), 0.3, 0.03);
    draws.sort_by_key(|draw| draw.output_tokens);
    assert!((36..=44).contains(&draws[500].output_tokens));
    assert_eq!(draws[500].head_to_body, Duration::from_millis(5 * draws[500].output_tokens));
}

#[test]
fn max_tokens_cuts_an_answer_and_no_spread_makes_it_constant() {
    let params = LatencyParams { ttft_ms: 20.0, ttft_sigma: 0.0, ms_per_token: 0.0, output_tokens: 1_000 };
    let draw = Latency::new(params, 1).expect("valid").draw(Some(3));
    assert_eq!((draw.output_tokens, draw.is_cut, draw.to_head), (3, true, Duration::from_millis(20)));
    let params = LatencyParams { ttft_ms: 0.0, ..params };
    assert_eq!(Latency::new(params, 1).expect("valid").draw(None).to_head, Duration::ZERO);
}

/// The built command as a real process, answering.
pub struct Running {
    pub process: Process,
    pub url: String,
    http: Client,
}

impl Running {
    pub async fn start(arguments: &[&str]) -> Self {
        let mut process = spawn_emulator(&[&["--listen", "127.0.0.1:0"], arguments].concat());
        let line = process.wait_for_line(|line| line.starts_with("emulator listening on "), DEADLINE).await;
        let url = line.expect("it listens").replacen("emulator listening on ", "", 1);
        Self { process, url, http: Client::builder().no_proxy().timeout(DEADLINE).build().expect("a client") }
    }

    async fn ask(&self, body: Value) -> Response {
        self.post("/v1/chat/completions", body).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Response {
        self.http.post(format!("{}{path}", self.url)).json(&body).send().await.expect("an answer")
    }

    pub async fn patch(&self, body: Value) -> Response {
        self.http.patch(format!("{}/admin", self.url)).json(&body).send().await.expect("an answer")
    }

    pub async fn get(&self, path: &str) -> Response {
        self.http.get(format!("{}{path}", self.url)).send().await.expect("an answer")
    }

    pub async fn state(&self) -> EmulatorState {
        self.get("/admin/state").await.json().await.expect("a state")
    }
}

pub fn spawn_emulator(arguments: &[&str]) -> Process {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    command.arg("emulate").args(arguments);
    Process::spawn("emulator", command, None).expect("the command runs")
}

pub const QUICK: [&str; 4] = ["--ttft-ms", "0", "--ms-per-token", "0"];

fn hello() -> Value {
    json!({"model": "gpt-demo", "user": "acme", "messages": [{"role": "user", "content": "hello"}]})
}

pub fn header(response: &Response, name: &str) -> String {
    response.headers().get(name).unwrap_or_else(|| panic!("no {name}")).to_str().expect("text").to_owned()
}

fn rate_limit_headers(response: &Response) -> BTreeMap<String, String> {
    let names = response.headers().keys().map(http::HeaderName::as_str);
    let names = names.filter(|name| name.starts_with("x-ratelimit-") || name.starts_with("retry-after"));
    names.map(|name| (name.to_owned(), header(response, name))).collect()
}

#[tokio::test]
async fn an_answer_has_openai_s_shape_and_headers() {
    let emulator = Running::start(&QUICK).await;
    let response = emulator.ask(hello()).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(header(&response, "x-ratelimit-limit-requests"), "600");
    assert_eq!(header(&response, "x-ratelimit-remaining-requests"), "599");
    assert_eq!(header(&response, "x-ratelimit-reset-requests"), "100ms");
    assert_eq!(header(&response, "x-ratelimit-limit-tokens"), "200000");
    let tokens = input_tokens(hello().to_string().len());
    assert_eq!(header(&response, "x-ratelimit-remaining-tokens"), (200_000 - tokens).to_string());
    assert!(header(&response, "x-request-id").starts_with("req_"));
    assert_eq!(header(&response, "openai-processing-ms"), "0");
    let body: Value = response.json().await.expect("JSON");
    assert_eq!((&body["object"], &body["model"]), (&json!("chat.completion"), &json!("gpt-demo")));
    assert_eq!(body["choices"][0]["finish_reason"], "stop");
    let usage = |field: &str| body["usage"][field].as_u64().expect("a count");
    assert_eq!(usage("total_tokens"), usage("prompt_tokens") + usage("completion_tokens"));

    let cut = emulator.ask(json!({"model": "m", "messages": [{}], "max_tokens": 2})).await;
    let cut: Value = cut.json().await.expect("JSON");
    assert_eq!(
        (&cut["usage"]["completion_tokens"], &cut["choices"][0]["finish_reason"]),
        (&json!(2), &json!("length"))
    );
}

#[tokio::test]
async fn past_the_burst_comes_a_429_that_says_when_to_return() {
    let emulator =
        Running::start(&[&QUICK[..], &["--requests-per-minute", "6", "--burst-seconds", "30"]].concat()).await;
    for _ in 0..3 {
        assert_eq!(emulator.ask(hello()).await.status(), StatusCode::OK);
    }
    let response = emulator.ask(hello()).await;
    assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
    let wait_ms: u64 = header(&response, "retry-after-ms").parse().expect("a number");
    assert!((1..=10_000).contains(&wait_ms), "one request is ten seconds of refill, not {wait_ms} ms");
    assert_eq!(header(&response, "retry-after"), wait_ms.div_ceil(1_000).to_string());
    assert_eq!(header(&response, "x-ratelimit-limit-requests"), "6");
    assert_eq!(header(&response, "x-ratelimit-remaining-requests"), "0");
    let body: Value = response.json().await.expect("JSON");
    assert_eq!((&body["error"]["type"], &body["error"]["code"]), (&json!("requests"), &json!("rate_limit_exceeded")));
    let message = body["error"]["message"].as_str().expect("text");
    let wait = go_duration(wait_ms);
    for part in ["Rate limit reached for gpt-demo", "Limit 6, Used 6, Requested 1.", &format!("try again in {wait}.")] {
        assert!(message.contains(part), "{message}");
    }

    let state = emulator.state().await;
    let acme = state.truth.users["acme"];
    assert_eq!((acme.admitted_requests, acme.refused_requests), (3, 1));
    assert!(state.first_refusal.is_some_and(|first| first.uptime_ms <= state.now.uptime_ms));
    let metrics = emulator.get("/metrics").await.text().await.expect("text");
    for line in [
        "tidegate_emulator_requests_total{status=\"200\"} 3",
        "tidegate_emulator_requests_total{status=\"429\"} 1",
        "tidegate_emulator_admitted_units_total{unit=\"requests\"} 3",
        "tidegate_emulator_limit_units{meter=\"requests/minute\"} 6",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line} in {metrics}");
    }
}

#[tokio::test]
async fn a_request_that_never_fits_gets_a_429_without_a_retry_time() {
    let emulator =
        Running::start(&[&QUICK[..], &["--tokens-per-minute", "1000", "--charge-max-tokens"]].concat()).await;
    let mut body = hello();
    body["max_tokens"] = json!(1_000);
    let response = emulator.ask(body).await;
    assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
    assert!(!response.headers().contains_key("retry-after") && !response.headers().contains_key("retry-after-ms"));
    assert_eq!(header(&response, "x-ratelimit-reset-tokens"), "0s");
    let body: Value = response.json().await.expect("JSON");
    assert_eq!(body["error"]["type"], "tokens");
    assert!(body["error"]["message"].as_str().is_some_and(|text| text.starts_with("Request too large for gpt-demo")));
}

#[tokio::test]
async fn the_head_arrives_before_the_body() {
    let emulator = Running::start(&["--ttft-ms", "0", "--ms-per-token", "1000"]).await;
    let mut body = hello();
    body["max_tokens"] = json!(1);
    let mut response = emulator.ask(body).await;
    let early = tokio::time::timeout(Duration::from_millis(200), response.chunk()).await;
    assert!(early.is_err(), "the body came with the head");
    assert!(response.chunk().await.expect("a body").is_some());
}

#[tokio::test]
async fn a_patch_changes_the_limits_and_marks_the_moment() {
    let emulator = Running::start(&QUICK).await;
    for _ in 0..20 {
        assert_eq!(emulator.ask(hello()).await.status(), StatusCode::OK);
    }
    let response = emulator.patch(json!({"requests_per_minute": 10, "hidden_tokens_per_minute": 0.5})).await;
    assert_eq!(response.status(), StatusCode::OK);
    let state: EmulatorState = response.json().await.expect("a state");
    assert_eq!((state.account.requests_per_minute, state.account.tokens_per_minute), (10, Some(200_000)));
    assert_eq!((state.account.hidden_tokens_per_minute, state.first_refusal), (Some(0.5), None));
    let refused = emulator.ask(hello()).await;
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(header(&refused, "x-ratelimit-limit-requests"), "10");
    let state = emulator.state().await;
    let first = state.first_refusal.expect("refused since the mark");
    assert!(state.marked.uptime_ms <= first.uptime_ms && state.marked.unix_ms <= first.unix_ms);
    emulator.patch(json!({})).await;
    assert_eq!(emulator.state().await.first_refusal, None);
}

#[tokio::test]
async fn headers_can_be_switched_off_and_on() {
    let emulator = Running::start(&[&QUICK[..], &["--no-headers", "--requests-per-minute", "1"]].concat()).await;
    for expected in [StatusCode::OK, StatusCode::TOO_MANY_REQUESTS] {
        let response = emulator.ask(hello()).await;
        assert_eq!((response.status(), rate_limit_headers(&response)), (expected, BTreeMap::new()));
    }
    emulator.patch(json!({"headers": true})).await;
    assert_eq!(rate_limit_headers(&emulator.ask(hello()).await).len(), 8);
}

#[tokio::test]
async fn a_bad_patch_gets_one_line_that_names_the_field_and_changes_nothing() {
    let emulator = Running::start(&QUICK).await;
    let before = emulator.state().await;
    for (body, line) in [
        (
            json!({"tokens_per_minute": 5, "requests_per_minute": 0}),
            "requests_per_minute 0: expected a whole number, 1–1000000000",
        ),
        (json!({"requests_per_minute": "9"}), "requests_per_minute \"9\": expected a whole number, 1–1000000000"),
        (json!({"burst_seconds": 0}), "burst_seconds 0: expected 0.1–86400 seconds"),
        (json!({"hidden_requests_per_minute": -1}), "hidden_requests_per_minute -1: expected 0–1000000000"),
        (json!({"headers": "no"}), "headers \"no\": expected true or false"),
        (
            json!({"rpm": 9}),
            "unknown field \"rpm\": expected requests_per_minute, tokens_per_minute, hidden_requests_per_minute, hidden_tokens_per_minute, burst_seconds, spend_requests, overload_rate, stream_error_rate, slots, crowding or headers",
        ),
    ] {
        let response = emulator.patch(body).await;
        assert_eq!(response.status(), StatusCode::BAD_REQUEST);
        assert_eq!(response.text().await.expect("text"), format!("{line}\n"));
    }
    let after = emulator.state().await;
    assert_eq!((after.account, after.marked), (before.account, before.marked));
}

#[tokio::test]
async fn a_bad_request_gets_openai_s_error_shape() {
    let emulator = Running::start(&QUICK).await;
    for (body, status) in [
        (json!({"messages": [{}]}), StatusCode::BAD_REQUEST),
        (json!({"model": "m"}), StatusCode::BAD_REQUEST),
        (json!({"model": "m", "messages": ["x".repeat(1024 * 1024)]}), StatusCode::PAYLOAD_TOO_LARGE),
    ] {
        let response = emulator.ask(body).await;
        assert_eq!(response.status(), status);
        let body: Value = response.json().await.expect("JSON");
        assert_eq!(body["error"]["type"], "invalid_request_error");
        assert!(body["error"]["message"].is_string());
    }
    assert_eq!(emulator.get("/healthz").await.status(), StatusCode::OK);
    assert_eq!(emulator.get("/nowhere").await.status(), StatusCode::NOT_FOUND);
    assert_eq!(emulator.state().await.truth.total.admitted_requests, 0);
}

#[tokio::test]
async fn a_port_in_use_is_one_line_and_exit_code_1() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let addr = taken.local_addr().expect("an address").to_string();
    let mut process = spawn_emulator(&["--listen", &addr]);
    assert_eq!(process.wait(DEADLINE).await.expect("ends").code(), Some(1));
    assert_eq!(process.lines(), [format!("tidegate: cannot listen on {addr}: address in use")]);
}

#[tokio::test]
async fn settings_that_cannot_be_are_one_line_and_exit_code_2() {
    for (arguments, part) in [
        (["--listen", "0.0.0.0:0"], "loopback only"),
        (["--requests-per-minute", "0"], "requests_per_minute 0: expected"),
        (["--ttft-sigma", "9"], "ttft_sigma 9: expected 0–3"),
    ] {
        let mut process = spawn_emulator(&arguments);
        assert_eq!(process.wait(DEADLINE).await.expect("ends").code(), Some(2));
        let lines = process.lines();
        assert!(lines.len() == 1 && lines[0].contains(part), "{lines:?}");
    }
}

#[tokio::test]
async fn sigterm_lets_answers_under_way_finish_and_exits_with_0() {
    let mut emulator = Running::start(&["--ttft-ms", "0", "--ms-per-token", "300"]).await;
    let mut body = hello();
    body["max_tokens"] = json!(1);
    let under_way = emulator.ask(body).await;
    let (status, answer) = tokio::join!(emulator.process.terminate(), under_way.json::<Value>());
    assert_eq!(status.expect("reaped").code(), Some(0));
    assert_eq!(answer.expect("whole")["object"], "chat.completion");
    assert!(!emulator.process.is_running());
}

#[tokio::test]
async fn the_emulator_serves_as_a_library_too() {
    let emulator = Emulator::bind(([127, 0, 0, 1], 0).into(), EmulatorParams::default()).await.expect("a port");
    let addr = emulator.local_addr();
    let again = Emulator::bind(addr, EmulatorParams::default()).await.expect_err("taken");
    assert!(matches!(again, EmulatorError::Listen { .. }));
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving = tokio::spawn(emulator.serve(async { drop(stopped.await) }));
    let http = Client::builder().no_proxy().build().expect("a client");
    let answer = http.get(format!("http://{addr}/healthz")).send().await.expect("an answer");
    assert_eq!(answer.text().await.expect("text"), "ok\n");
    drop(stop);
    serving.await.expect("no panic").expect("a clean end");
}

fn shell(script: &str) -> Process {
    let mut command = Command::new("sh");
    command.args(["-c", script]);
    Process::spawn("shell", command, None).expect("sh runs")
}

/// The state letter of /proc/<pid>/stat; none once it is reaped.
fn process_state(pid: u32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next())
}

async fn until(condition: impl Fn() -> bool) {
    let poll = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(DEADLINE, poll).await.expect("the condition holds in time");
}

#[tokio::test]
async fn a_process_is_paused_resumed_and_terminated() {
    let mut process = shell("echo ready; exec sleep 60");
    process.wait_for_line(|line| line == "ready", DEADLINE).await.expect("ready");
    let pid = process.pid();
    process.pause().expect("running");
    until(|| process_state(pid) == Some('T')).await;
    assert!(process.is_running());
    process.resume().expect("running");
    until(|| process_state(pid) == Some('S')).await;
    process.pause().expect("running");
    // Even a paused one ends by SIGTERM.
    let status = process.terminate().await.expect("reaped");
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(15));
    assert_eq!(process_state(pid), None);
    assert!(matches!(process.pause(), Err(ProcessError::Ended { .. })));
}

#[tokio::test]
async fn a_dropped_process_is_gone_with_its_children() {
    let mut process = shell("sleep 60 & echo $!; wait");
    let child = process.wait_for_line(|line| line.parse::<u32>().is_ok(), DEADLINE).await.expect("a child");
    let (parent, child) = (process.pid(), child.parse().expect("a pid"));
    assert!(process_state(child).is_some());
    drop(process);
    assert_eq!(process_state(parent), None);
    // The orphan is killed at once; who reaps it is not up to us.
    until(|| matches!(process_state(child), None | Some('Z'))).await;
}

#[tokio::test]
async fn a_process_that_ignores_sigterm_is_killed() {
    let mut process = shell("trap '' TERM; echo ready; while :; do sleep 0.05; done");
    process.wait_for_line(|line| line == "ready", DEADLINE).await.expect("ready");
    let status = process.terminate().await.expect("reaped");
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9));
}

#[tokio::test]
async fn waiting_for_a_line_ends_with_the_process_and_with_the_deadline() {
    let mut ended = shell("echo one; echo two >&2; exit 3");
    let error = ended.wait_for_line(|line| line == "three", DEADLINE).await.expect_err("no such line");
    let ProcessError::Ended { status, tail, .. } = error else { panic!("{error}") };
    assert!(status.code() == Some(3) && tail.contains("one") && tail.contains("two"), "{tail}");
    let mut silent = shell("sleep 60");
    let error = silent.wait_for_line(|_| true, Duration::from_millis(50)).await.expect_err("silent");
    assert!(matches!(error, ProcessError::TimedOut { .. }));
}

#[tokio::test]
async fn waiting_from_a_line_on_skips_the_lines_before_it() {
    let log = tempfile::NamedTempFile::new().expect("a file");
    let mut command = Command::new("sh");
    command.args(["-c", "echo step 1; echo step 2; exec sleep 60"]);
    let mut process = Process::spawn("steps", command, Some(log.path())).expect("sh runs");
    let step = |line: &str| line.starts_with("step");
    assert_eq!(process.wait_for_line(step, DEADLINE).await.expect("a line"), "step 1");
    assert_eq!(process.wait_for_line_after(1, step, DEADLINE).await.expect("a line"), "step 2");
    assert_eq!(process.line_count(), 2);
    assert_eq!(std::fs::read_to_string(log.path()).expect("a log"), "step 1\nstep 2\n");
}

#[test]
fn a_missing_program_is_an_error_that_says_how_to_get_it() {
    let error = find_program("tidegate-no-such-program", "no-such-package").expect_err("missing");
    let line = "tidegate-no-such-program not found: apt-get install no-such-package, or run `make tools`";
    assert_eq!(error.to_string(), line);
}

#[test]
fn a_free_port_can_be_listened_on() {
    let port = free_port().expect("a port");
    TcpListener::bind(("127.0.0.1", port)).expect("it is free");
}

#[tokio::test]
async fn etcd_starts_is_killed_and_comes_back_with_its_data() {
    let mut etcd = Etcd::start().await.expect("etcd starts");
    let endpoint = etcd.endpoint().to_owned();
    let mut client = etcd_client::Client::connect([&endpoint], None).await.expect("connects");
    client.put("greeting", "hello", None).await.expect("a put");
    let pid = etcd.process().pid();
    etcd.kill().expect("reaped");
    assert_eq!(process_state(pid), None);
    assert!(!etcd.is_healthy().await);
    etcd.restart().await.expect("etcd comes back");
    assert_eq!(etcd.endpoint(), endpoint);
    let mut etcdctl = etcd.etcdctl().expect("installed");
    let output = etcdctl.args(["get", "--print-value-only", "greeting"]).output().expect("etcdctl runs");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "hello\n");
}

#[tokio::test]
async fn etcd_leaves_a_named_data_folder_in_place() {
    let folder = tempfile::tempdir().expect("a folder");
    let etcd = Etcd::start_in(folder.path()).await.expect("etcd starts");
    assert!(etcd.is_healthy().await);
    drop(etcd);
    assert!(folder.path().join("member").is_dir());
}
