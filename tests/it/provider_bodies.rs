//! Refusals as providers write them, and what comes of each: which limit, for how long, and whether it was a limit at all.
//! Then dialects that are taught, and values, heads and bodies that nobody wrote.

use std::time::Duration;

use proptest::prelude::*;
use serde_json::json;
use tidegate::config::Config;
use tidegate::observation::{Ending, ThrottleKind};
use tidegate::provider::{
    BODY_BYTES_MAX, Class, Dialect, HOLD_MAX, Head, Observation, Reason, Refill, ResetForm, TaughtError, TaughtMeter,
    TaughtParams, reflex, unread,
};
use tidegate::quota::{Cost, Meter, Unit, Window};

use crate::provider_rows::{Pairs, SENT, map, missing, read};

const RPM: Meter = Meter::REQUESTS_PER_MINUTE;
const TPM: Meter = Meter::TOKENS_PER_MINUTE;
const RPD: Meter = Meter { unit: Unit::Requests, window: Window::Day };
const TPD: Meter = Meter { unit: Unit::Tokens, window: Window::Day };
const ITPM: Meter = Meter { unit: Unit::InputTokens, window: Window::Minute };
const RPS: Meter = Meter { unit: Unit::Requests, window: Window::Second };

fn observe(dialect: Dialect, status: u16, pairs: Pairs<'_>, body: &str) -> Observation {
    dialect.observe(&Head { status, headers: &map(pairs) }, Some(body.as_bytes()), SENT)
}

#[allow(clippy::unnecessary_wraps, reason = "compared with what may be absent")]
fn wait(seconds: f64) -> Option<Duration> {
    Some(Duration::from_secs_f64(seconds))
}

/// Which dialect, status, body; class, meters that refused, wait.
type Row<'a> = (Dialect, u16, &'a str, Class, &'a [Meter], Option<Duration>);

#[test]
fn each_providers_refusals_are_told_apart() {
    let table: &[Row<'_>] = &[
        // Azure.
        (
            Dialect::Azure,
            429,
            r#"{"error":{"code":"RateLimitReached","message":"Your requests to gpt-4 for gpt-4 in East US have exceeded token rate limit. Please retry after 20 seconds."}}"#,
            Class::Throttled,
            &[TPM],
            wait(20.0),
        ),
        // A sentinel, for a limit by the minute.
        (
            Dialect::Azure,
            429,
            r#"{"error":{"code":"429","message":"Requests have exceeded call rate limit of your tier. Please retry after 86400 seconds."}}"#,
            Class::Throttled,
            &[RPM],
            wait(60.0),
        ),
        (
            Dialect::Azure,
            429,
            r#"{"error":{"code":"429","message":"The system is currently experiencing high demand. Please retry after 20 seconds."}}"#,
            Class::Overloaded,
            &[],
            wait(20.0),
        ),
        // Groq: the limit that stands in no header; thousands of a prompt that never fits.
        (
            Dialect::Groq,
            429,
            r#"{"error":{"message":"Rate limit reached for model `m` on requests per minute (RPM): Limit 30, Used 30, Requested 1. Please try again in 2s.","type":"requests","code":"rate_limit_exceeded"}}"#,
            Class::Throttled,
            &[RPM],
            wait(2.0),
        ),
        (
            Dialect::Groq,
            429,
            r#"{"error":{"message":"Rate limit reached on tokens per day (TPD): Limit 500000, Used 499000, Requested 3000. Please try again in 6m0.5s.","type":"tokens","code":"rate_limit_exceeded"}}"#,
            Class::Throttled,
            &[TPD],
            wait(360.5),
        ),
        (
            Dialect::Groq,
            429,
            r#"{"error":{"message":"on tokens per minute (TPM): Limit 7000, Used 0, Requested ~12903","type":"tokens"}}"#,
            Class::TooLarge,
            &[],
            None,
        ),
        (Dialect::Groq, 498, r#"{"error":{"code":"capacity_exceeded"}}"#, Class::Overloaded, &[], None),
        (Dialect::Groq, 413, "", Class::TooLarge, &[], None),
        // Mistral: one a second, and no header says so.
        (Dialect::Mistral, 429, r#"{"message":"Requests rate limit exceeded"}"#, Class::Throttled, &[RPS], None),
        (
            Dialect::Mistral,
            429,
            r#"{"object":"error","message":"Rate limit exceeded","type":"rate_limited","param":null,"code":"1300"}"#,
            Class::Throttled,
            &[],
            None,
        ),
        // Bedrock throttles under two statuses.
        (
            Dialect::Bedrock,
            503,
            r#"{"message":"Model is getting throttled. Try your request again."}"#,
            Class::Throttled,
            &[],
            None,
        ),
        (
            Dialect::Bedrock,
            429,
            r#"{"__type":"com.amazon.coral#ThrottlingException","message":"Too many requests"}"#,
            Class::Throttled,
            &[],
            None,
        ),
        // Cerebras: two kinds of 429.
        (
            Dialect::Cerebras,
            429,
            r#"{"message":"Requests per minute limit exceeded","type":"too_many_requests_error","param":"quota","code":"request_quota_exceeded"}"#,
            Class::Throttled,
            &[RPM],
            None,
        ),
        (
            Dialect::Cerebras,
            429,
            r#"{"message":"We're experiencing high traffic","param":"queue","code":"queue_exceeded"}"#,
            Class::Overloaded,
            &[],
            None,
        ),
        // OpenRouter: its own, upstream's, and what it told itself.
        (
            Dialect::OpenRouter,
            429,
            r#"{"error":{"message":"Rate limit exceeded: free-models-per-min. ","code":429}}"#,
            Class::Throttled,
            &[RPM],
            None,
        ),
        (
            Dialect::OpenRouter,
            429,
            r#"{"error":{"message":"Rate limit exceeded: free-models-per-day. Add 10 credits","code":429}}"#,
            Class::Throttled,
            &[RPD],
            None,
        ),
        (
            Dialect::OpenRouter,
            429,
            r#"{"error":{"message":"Provider returned error","code":"429","metadata":{"raw":"m is temporarily rate-limited upstream"}}}"#,
            Class::Throttled,
            &[],
            None,
        ),
        (
            Dialect::OpenRouter,
            429,
            r#"{"error":{"code":"capacity_exhausted","message":"No.","availability":{"retry_after":7.5,"retryable":true}}}"#,
            Class::Overloaded,
            &[],
            wait(7.5),
        ),
        (Dialect::OpenRouter, 402, r#"{"error":{"code":402}}"#, Class::Account, &[], None),
        // Together.
        (
            Dialect::Together,
            429,
            r#"{"error":{"message":"You exceeded it.","type":"dynamic_token_limited"}}"#,
            Class::Throttled,
            &[Meter { unit: Unit::Tokens, window: Window::Second }],
            None,
        ),
        // Cohere: the message is at the top.
        (
            Dialect::Cohere,
            429,
            r#"{"message":"You are using a Trial key, which is limited to 20 API calls / minute."}"#,
            Class::Throttled,
            &[RPM],
            None,
        ),
        // xAI: the error is a text.
        (
            Dialect::Xai,
            503,
            r#"{"code":"The service is currently unavailable","error":"Service temporarily unavailable. The model is at capacity"}"#,
            Class::Overloaded,
            &[],
            None,
        ),
        (
            Dialect::Replicate,
            429,
            r#"{"detail":"Request was throttled. Expected available in 1 second."}"#,
            Class::Throttled,
            &[],
            wait(1.0),
        ),
        (Dialect::Nvidia, 429, r#"{"status":429,"title":"Too Many Requests"}"#, Class::Throttled, &[], None),
        // Servers of one's own.
        (
            Dialect::SelfHosted,
            429,
            r#"{"error":"Model is overloaded","error_type":"overloaded"}"#,
            Class::Overloaded,
            &[],
            None,
        ),
        (Dialect::SelfHosted, 503, "The request queue is full.", Class::Overloaded, &[], None),
        (Dialect::SelfHosted, 429, r#"{"error":"exceeds maximum queue size"}"#, Class::Overloaded, &[], None),
        // A gateway's prose.
        (
            Dialect::Bare,
            429,
            r#"{"error":{"message":"Usage limit. Resets in 4hr 59min"}}"#,
            Class::Throttled,
            &[],
            wait(17_940.0),
        ),
        (Dialect::Bare, 429, r#"{"error":{"message":"Resets in 40 days"}}"#, Class::Throttled, &[], wait(86_400.0)),
        (Dialect::Bare, 429, r#"{"error":{"message":"Please try again in 5"}}"#, Class::Throttled, &[], None),
    ];
    for (dialect, status, body, class, exhausted, wait) in table {
        let seen = observe(*dialect, *status, &[], body);
        assert_eq!((seen.class, seen.exhausted.as_slice(), seen.retry_after), (*class, *exhausted, *wait), "{body}");
        let throttled = matches!(seen.ending, Ending::Throttled(kind) if kind != ThrottleKind::Overload);
        assert_eq!(throttled, *class == Class::Throttled, "{body}");
    }
}

// === Google ===

fn google(message: &str, details: &serde_json::Value) -> String {
    json!({"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "message": message, "details": details}}).to_string()
}

fn quota(violations: &[(&str, &str)]) -> serde_json::Value {
    let violation = |(id, value): &(&str, &str)| json!({"quotaMetric": "m", "quotaId": id, "quotaValue": value});
    json!({"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": violations.iter().map(violation).collect::<Vec<_>>()})
}

fn retry(delay: &str) -> serde_json::Value {
    json!({"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay})
}

#[test]
fn gemini_tells_the_limit_and_a_delay_that_is_a_floor() {
    let paid = ("GenerateContentPaidTierInputTokensPerModelPerMinute", "1000000");
    let told = google(
        "You exceeded your current quota, please check your plan.\nPlease retry in 16.302655129s.",
        &json!([quota(&[paid]), retry("16s")]),
    );
    let seen = observe(Dialect::Gemini, 429, &[], &told);
    assert_eq!((seen.class, seen.exhausted.clone()), (Class::Throttled, vec![ITPM]), "no matter of billing");
    assert_eq!(seen.retry_after, Some(Duration::from_micros(16_302_655)));
    assert_eq!((seen.readings[0].meter, seen.readings[0].limit), (ITPM, Some(1e6)));
    // A prompt larger than the limit gets the same answer.
    assert_eq!(seen.clone().for_request_of(&Cost::request(1_500_000, 0)).class, Class::TooLarge);
    assert_eq!(seen.clone().for_request_of(&Cost::request(900_000, 0)), seen);
    // The delay alone is rounded down; the streaming endpoints put the object in an array.
    let bare = format!("[{}]", google("No.", &json!([quota(&[paid]), retry("16s")])));
    assert_eq!(observe(Dialect::Gemini, 429, &[], &bare).retry_after, wait(17.0));
    let fraction = google("No.", &json!([retry("3.5s")]));
    assert_eq!(observe(Dialect::Gemini, 429, &[], &fraction).retry_after, wait(3.5));
    for message in ["Resource has been exhausted (e.g. check quota).", "Resource exhausted. Please try again later."] {
        let seen = observe(Dialect::Gemini, 429, &[], &google(message, &json!([])));
        assert_eq!((seen.ending, seen.retry_after), (Ending::Throttled(ThrottleKind::Unknown), None));
    }
    let unavailable = json!({"error": {"code": 503, "status": "UNAVAILABLE", "message": "The model is overloaded."}});
    assert_eq!(observe(Dialect::Gemini, 503, &[], &unavailable.to_string()).class, Class::Overloaded);
}

#[test]
fn geminis_days_end_at_midnight_in_california() {
    let day = ("GenerateRequestsPerDayPerProjectPerModel-FreeTier", "50");
    let minute = ("GenerateRequestsPerMinutePerProjectPerModel-FreeTier", "10");
    let told = google("Please retry in 36s.", &json!([quota(&[minute, day]), retry("36s")]));
    // 11:31:40 there, in winter; in summer an hour later.
    for (date, hours) in [("Thu, 12 Feb 2026 19:31:40 GMT", 12.0), ("Thu, 13 Aug 2026 19:31:40 GMT", 11.0)] {
        let seen = observe(Dialect::Gemini, 429, &[("date", date)], &told);
        assert_eq!((seen.ending, seen.exhausted), (Ending::Throttled(ThrottleKind::Daily), vec![RPD]));
        assert_eq!(seen.retry_after, wait(hours * 3_600.0 + 28.0 * 60.0 + 20.0), "{date}");
    }
}

// === what heads tell of refusals ===

#[test]
fn a_spent_azure_bucket_is_not_asked_again_at_once() {
    let pairs = [
        ("x-ratelimit-limit-tokens", "60000"),
        ("x-ratelimit-remaining-tokens", "0"),
        ("x-ratelimit-reset-tokens", "0"),
        ("x-ratelimit-renewalperiod-tokens", "60"),
        ("retry-after", "1"),
        ("retry-after-ms", "0"),
    ];
    let seen = read(Dialect::Azure, 429, &pairs);
    let hold = |tokens| reflex(Dialect::Azure, &seen, &Cost::request(tokens, 0)).holds[0];
    assert_eq!(hold(10_000).meter, TPM);
    assert!((hold(10_000).for_at_least.as_secs_f64() - 10.0).abs() < 1e-6);
    assert_eq!(hold(10).for_at_least, Duration::from_secs(1), "never shorter than it asks");
    assert_eq!(missing(&seen), [("x-ratelimit-reset-tokens", Reason::Contradicts)]);
    // Which meter refused, where a header tells.
    for (name, value, meter) in [
        ("x-ratelimit-type", "Tokens", TPM),
        ("x-ratelimit-type", "Requests", RPM),
        ("policy-id", "DeploymentRatelimit-Token", TPM),
        ("policy-id", "DeploymentRatelimit-Call", RPM),
    ] {
        assert_eq!(read(Dialect::Azure, 429, &[(name, value)]).exhausted, [meter], "{value}");
    }
    let spelt = [("x-rate-limit-reset-tokens", "9"), ("retry-after", "9")];
    assert_eq!(Dialect::detect(&Head { status: 429, headers: &map(&spelt) }, None), Some(Dialect::Azure));
}

#[test]
fn bedrocks_exceptions_stand_in_a_header() {
    let class = |status, name: &str| read(Dialect::Bedrock, status, &[("x-amzn-errortype", name)]).class;
    let url = "http://internal.amazon.com/coral/com.amazon.bedrock/";
    assert_eq!(class(429, &format!("ThrottlingException:{url}")), Class::Throttled);
    assert_eq!(class(503, &format!("ServiceUnavailableException:{url}")), Class::Overloaded);
    assert_eq!(class(400, "ServiceQuotaExceededException"), Class::Account);
    assert_eq!(class(408, "ModelTimeoutException"), Class::Failed);
    assert_eq!(class(429, "ModelNotReadyException"), Class::Overloaded);
    assert_eq!(class(400, "ValidationException"), Class::Ignored);
    assert_eq!(class(400, &format!("com.amazon.bedrock#ThrottlingException:{url}")), Class::Throttled);
    let named = r#"{"__type":"com.amazon.bedrock#ModelNotReadyException:http://x/","message":"Wait."}"#;
    assert_eq!(observe(Dialect::Bedrock, 429, &[], named).class, Class::Overloaded);
}

#[test]
fn a_full_bucket_of_tokens_refuses_for_good_only_what_is_above_its_limit() {
    let full = [("x-ratelimit-limit-tokens-minute", "500000"), ("x-ratelimit-remaining-tokens-minute", "500000")];
    let told = r#"{"object":"error","message":"Rate limit exceeded","type":"rate_limited","code":"1300"}"#;
    let seen = observe(Dialect::Mistral, 429, &full, told);
    // Its being full is no evidence: another limit may have refused. The request's size is.
    assert_eq!((seen.class, seen.exhausted.as_slice()), (Class::Throttled, [TPM].as_slice()));
    assert_eq!(seen.clone().for_request_of(&Cost::request(500_000, 0)).class, Class::Throttled);
    assert_eq!(seen.for_request_of(&Cost::request(500_001, 0)).class, Class::TooLarge);
    let spent = [("x-ratelimit-limit-req-minute", "60"), ("x-ratelimit-remaining-req-minute", "0")];
    let seen = observe(Dialect::Mistral, 429, &spent, told);
    assert_eq!((seen.class, seen.exhausted), (Class::Throttled, vec![RPM]));
}

#[test]
fn openrouter_repeats_its_headers_in_the_body() {
    let body = json!({"error": {"message": "Rate limit exceeded: free-models-per-min. ", "code": 429,
        "metadata": {"headers": {"X-RateLimit-Limit": "16", "X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "1766654040000"}}}});
    let date = [("date", "Thu, 25 Dec 2025 09:13:46 GMT")];
    let seen = observe(Dialect::OpenRouter, 429, &date, &body.to_string());
    assert_eq!((seen.exhausted.clone(), seen.readings[0].reset), (vec![RPM], wait(14.0)));
    assert_eq!(reflex(Dialect::OpenRouter, &seen, &Cost::request(1, 0)).holds[0].for_at_least, Duration::from_secs(14));
}

#[test]
fn bodies_tell_the_dialect_where_heads_do_not() {
    let by = |body: &str| Dialect::detect(&Head { status: 429, headers: &map(&[]) }, Some(body.as_bytes()));
    assert_eq!(by(r#"{"type":"error","error":{"type":"rate_limit_error"}}"#), Some(Dialect::Anthropic));
    assert_eq!(by(&google("No.", &json!([]))), Some(Dialect::Gemini));
    assert_eq!(by(r#"{"error":{"code":429,"metadata":{"raw":"x"}}}"#), Some(Dialect::OpenRouter));
    assert_eq!(by(r#"{"error":{"type":"tokens","code":"rate_limit_exceeded"}}"#), Some(Dialect::OpenAi));
    let unpaid = r#"{"error":{"message":"No credit.","type":"insufficient_quota","param":null,"code":null}}"#;
    assert_eq!(by(unpaid), Some(Dialect::OpenAi));
    assert_eq!(by(r#"{"error":"x","error_type":"overloaded"}"#), Some(Dialect::SelfHosted));
    assert_eq!(by("<html>"), None);
    let seen = observe(Dialect::Auto, 429, &[], r#"{"type":"error","error":{"type":"overloaded_error"}}"#);
    assert_eq!((seen.dialect, seen.class), (Dialect::Anthropic, Class::Overloaded));
}

// === taught ===

const ACME: Pairs<'static> = &[
    ("date", "Thu, 25 Dec 2025 09:13:46 GMT"),
    ("Acme-Limit", "60"),
    ("Acme-Left", "12"),
    ("Acme-Again", "1766654040"),
];

/// A provider that nobody knew, from a configuration alone.
#[test]
fn a_new_provider_is_taught_in_the_configuration() {
    let text = r#"
        [pools.acme]
        capacity = { "requests/minute" = 60 }
        [pools.acme.dialect]
        name = "acme"
        reset_form = "epoch_seconds"
        headers = { "requests/minute" = { limit = "Acme-Limit", remaining = "acme-left", reset = "acme-again" } }
    "#;
    let config = Config::parse("t.toml", text).expect("good");
    let dialect = config.controller.pools[0].dialect;
    assert_eq!((dialect.as_str(), dialect.semantics().refill), ("acme", Refill::FixedWindow));
    let seen = read(dialect, 200, ACME);
    let reading = seen.readings[0];
    assert_eq!((reading.meter, reading.limit, reading.remaining), (RPM, Some(60.0), Some(12.0)));
    assert_eq!((reading.reset, seen.missing.len()), (wait(14.0), 0));
    assert_eq!(read(dialect, 429, &[("retry-after", "3")]).retry_after, wait(3.0));
    let wrong = |line: &str| {
        let mistakes = Config::parse("t.toml", &text.replace("name = \"acme\"", line)).expect_err("a mistake");
        mistakes.to_string()
    };
    assert!(wrong("name = \"openai\"").contains("not the name of a known dialect"), "{}", wrong("name = \"openai\""));
    assert!(wrong("name = \"acme\"\nrefill = \"often\"").contains("\"continuous\" or \"fixed_window\""));
}

fn acme(refill: Refill, reset_form: ResetForm) -> TaughtParams {
    let header = |name: &str| Some(name.to_owned());
    let meter = TaughtMeter {
        meter: TPM,
        limit: header("acme-limit"),
        remaining: header("acme-left"),
        reset: header("acme-again"),
    };
    TaughtParams { name: "acme".to_owned(), refill, reset_form, meters: vec![meter] }
}

#[test]
fn a_taught_dialect_reads_levels_as_the_others_do() {
    let taught = Dialect::Taught(acme(Refill::Continuous, ResetForm::GoDuration).teach().expect("good"));
    let seen = read(taught, 200, &[("acme-limit", "6000"), ("acme-left", "5989"), ("acme-again", "105ms")]);
    let reading = seen.readings[0];
    assert_eq!((reading.meter, reading.level, reading.reset), (TPM, Some(5_989.5), wait(0.105)));
    let left = unread(taught, &Head { status: 200, headers: &map(&[("x-ratelimit-left", "7"), ("acme-left", "7")]) });
    assert_eq!((left.unknown, left.taken), (vec!["x-ratelimit-left".to_owned()], vec!["acme-left".to_owned()]));
    // Two lessons are two dialects.
    let again = Dialect::Taught(acme(Refill::Continuous, ResetForm::GoDuration).teach().expect("good"));
    assert!(taught != again && taught.as_str() == again.as_str());
    assert!("acme".parse::<Dialect>().is_err(), "it has no name but where it was taught");
}

#[test]
fn what_cannot_be_taught_is_refused_with_the_reason() {
    let good = acme(Refill::Continuous, ResetForm::GoDuration);
    let with = |change: &dyn Fn(&mut TaughtParams)| {
        let mut params = good.clone();
        change(&mut params);
        params.teach().map(|_| ()).expect_err("is wrong")
    };
    assert!(matches!(with(&|p| p.name = "Acme".into()), TaughtError::Name(_)));
    assert!(matches!(with(&|p| p.name = "groq".into()), TaughtError::Name(_)));
    assert!(matches!(with(&|p| p.name = String::new()), TaughtError::Name(_)));
    assert!(matches!(with(&|p| p.meters.clear()), TaughtError::Meters(_)));
    assert!(matches!(with(&|p| p.meters.push(p.meters[0].clone())), TaughtError::Meters(_)));
    assert!(matches!(with(&|p| p.meters[0].limit = Some("a b".into())), TaughtError::Header(_)));
    assert!(matches!(with(&|p| p.meters[0].limit = Some("ACME-left".into())), TaughtError::Twice(_)));
    for name in ["Retry-After", "retry-after-ms", "Date", "x-should-retry"] {
        let error = with(&|p| p.meters[0].reset = Some(name.into()));
        assert!(matches!(error, TaughtError::Reserved(_)), "{error}");
    }
    let bare = |p: &mut TaughtParams| (p.meters[0].limit, p.meters[0].remaining) = (None, None);
    assert!(matches!(with(&bare), TaughtError::NoHeader(meter) if meter == TPM));
}

// === whatever comes ===

fn name() -> impl Strategy<Value = String> {
    let words = "(x-ratelimit-|anthropic-ratelimit-|ratelimit-|ratelimitbysize-|x-rate-limit-)\
                 (limit|remaining|reset|renewalperiod)(-(requests|tokens|req|input-tokens|dynamic))?\
                 (-(minute|day|[0-9]{1,22}-second|per-day))?";
    let others = "ratelimit|ratelimit-policy|retry-after|retry-after-ms|date|x-should-retry|x-ratelimit-type|\
                  x-ratelimit-key|x-amzn-errortype|requests-limit";
    prop_oneof![4 => words, 1 => others]
}

pub fn text() -> impl Strategy<Value = String> {
    let numbers = "[0-9]{1,24}|-1|[0-9]{1,9}\\.[0-9]{1,12}|[0-9]{1,4}, ?[0-9]{1,4}";
    let times = "[0-9]{1,7}(h|m|s|ms)|20[0-9]{2}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z|\
                 [A-Z][a-z]{2}, [0-9]{2} [A-Z][a-z]{2} [0-9]{4} [0-9]{2}:[0-9]{2}:[0-9]{2} (GMT|UTC)";
    let fields = "\"[a-z]{0,4}\";[a-z]{1,2}=[0-9]{0,12}(, ?[a-z]{0,3};w=[0-9]{1,9})?|limit=[0-9]{1,3}, reset=[0-9]";
    prop_oneof![numbers, times, fields, "[ -~]{0,40}"]
}

pub fn body() -> impl Strategy<Value = Vec<u8>> {
    let words = "(insufficient_quota|tokens|requests|slow_down|overloaded|\\PC{0,9})";
    let message = "(Limit [0-9]{1,9}, Requested ~?[0-9]{1,9}|try again in [0-9.]{1,9}(s|ms|m0s|hr| days)|per (day|min)|\\PC{0,30})";
    let told = (words, words, message, "[0-9.]{0,6}s?").prop_map(|(kind, code, message, delay)| {
        let details = json!([retry(&delay), quota(&[(&message, &delay)])]);
        json!({"type": "error", "error": {"type": kind, "code": code, "message": message, "details": details,
            "metadata": {"headers": {"X-RateLimit-Limit": delay}}, "availability": {"retry_after": 1e300}}})
        .to_string()
        .into_bytes()
    });
    prop_oneof![told, prop::collection::vec(any::<u8>(), 0..200), "\\PC{0,60}".prop_map(String::into_bytes)]
}

pub fn sane(dialect: Dialect, seen: &Observation, cost: &Cost) -> Result<(), TestCaseError> {
    for reading in &seen.readings {
        prop_assert!(reading.limit.is_none_or(|limit| limit.is_finite() && limit > 0.0), "{reading:?}");
        prop_assert!(reading.remaining.is_none_or(|left| left.is_finite() && left >= 0.0), "{reading:?}");
        prop_assert!(reading.level.is_none_or(f64::is_finite), "{reading:?}");
    }
    prop_assert!(seen.retry_after.is_none_or(|wait| !wait.is_zero()));
    let throttled = matches!(seen.ending, Ending::Throttled(_));
    prop_assert_eq!(throttled, matches!(seen.class, Class::Throttled | Class::Overloaded));
    prop_assert_eq!(seen.ending == Ending::Succeeded, seen.class == Class::Ok);
    let reaction = reflex(dialect, seen, cost);
    prop_assert_eq!(throttled, reaction.overload.is_some() || !reaction.holds.is_empty());
    prop_assert!(reaction.holds.iter().all(|hold| !hold.for_at_least.is_zero() && hold.for_at_least <= HOLD_MAX));
    Ok(())
}

pub fn any_dialect() -> impl Strategy<Value = Dialect> {
    let taught = acme(Refill::FixedWindow, ResetForm::BySize).teach().expect("good");
    let all: Vec<Dialect> = Dialect::ALL.into_iter().chain([Dialect::Taught(taught)]).collect();
    prop::sample::select(all)
}

pub type AnyHead = (Dialect, u16, Vec<(String, String)>, Vec<u8>, u64);

pub fn any_head() -> impl Strategy<Value = AnyHead> {
    let lines = prop::collection::vec((name(), text()), 0..10);
    let status = prop_oneof![Just(200_u16), Just(429), Just(498), Just(500), Just(503), Just(529), any::<u16>()];
    (any_dialect(), status, lines, body(), any::<u64>())
}

/// Nothing that arrives upsets the reader, whatever dialect it is read as, and each known header is taken by some rule.
pub fn nothing_upsets((dialect, status, lines, body, tokens): AnyHead) -> Result<(), TestCaseError> {
    let headers: Vec<(String, Vec<u8>)> = lines.into_iter().map(|(name, value)| (name, value.into_bytes())).collect();
    let head = Head { status, headers: &headers };
    let cost = Cost::request(tokens, tokens);
    let seen = dialect.read(&head, SENT);
    sane(dialect, &seen, &cost)?;
    sane(dialect, &dialect.observe(&head, Some(&body), SENT), &cost)?;
    sane(dialect, &dialect.refine(seen, &body).for_request_of(&cost), &cost)?;
    let _ = unread(dialect, &head);
    let _ = Dialect::detect(&head, Some(&body));
    Ok(())
}

/// Any reset form takes or refuses any text, with every other header good.
pub fn no_value_upsets((form, value, refill): (ResetForm, String, bool)) -> Result<(), TestCaseError> {
    thread_local! {
        static TAUGHT: Vec<(ResetForm, bool, Dialect)> = ResetForm::ALL
            .into_iter()
            .flat_map(|form| [true, false].map(|fixed| {
                let refill = if fixed { Refill::FixedWindow } else { Refill::Continuous };
                (form, fixed, Dialect::Taught(acme(refill, form).teach().expect("good")))
            }))
            .collect();
    }
    let dialect = TAUGHT.with(|taught| taught.iter().find(|(f, r, _)| (*f, *r) == (form, refill)).expect("all").2);
    let headers = vec![
        ("date".to_owned(), b"Thu, 25 Dec 2025 09:13:46 GMT".to_vec()),
        ("acme-limit".to_owned(), b"100".to_vec()),
        ("acme-left".to_owned(), b"50".to_vec()),
        ("acme-again".to_owned(), value.into_bytes()),
    ];
    let seen = dialect.read(&Head { status: 429, headers: &headers }, SENT);
    prop_assert_eq!(seen.readings[0].remaining, Some(50.0));
    // A reset is taken, or the reason is told.
    prop_assert_eq!(seen.readings[0].reset.is_some(), seen.missing.is_empty(), "{:?}", seen);
    sane(dialect, &seen, &Cost::request(1, 0))
}

pub fn any_value() -> impl Strategy<Value = (ResetForm, String, bool)> {
    (prop::sample::select(ResetForm::ALL.to_vec()), text(), any::<bool>())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_500))]

    /// An instant is measured to the second, whatever the calendar.
    #[test]
    fn instants_are_measured_from_the_date(at in 1_000_000_000_i64..4_000_000_000, ahead in 0_i64..30_000_000) {
        let text = |seconds| jiff::Timestamp::from_second(seconds).expect("a time");
        let date = jiff::fmt::rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&text(at)).expect("a date");
        let pairs = [
            ("date", date.as_str()),
            ("anthropic-ratelimit-requests-limit", "9"),
            ("anthropic-ratelimit-requests-reset", &text(at + ahead).to_string()),
        ];
        let seen = read(Dialect::Anthropic, 200, &pairs);
        prop_assert_eq!(seen.readings[0].reset.map(|span| span.as_secs()), u64::try_from(ahead).ok(), "{:?}", pairs);
    }
}

#[test]
fn a_long_body_and_a_long_head_cost_little() {
    let commas = "1,".repeat(100_000);
    let items = "\"a\";q=1;w=1,".repeat(20_000);
    let headers = vec![
        ("ratelimit-limit".to_owned(), commas.clone().into_bytes()),
        ("ratelimit-policy".to_owned(), items.into_bytes()),
        ("ratelimit-remaining".to_owned(), commas.into_bytes()),
        ("retry-after".to_owned(), "9".repeat(100_000).into_bytes()),
    ];
    let head = Head { status: 429, headers: &headers };
    let body = "[".repeat(4 * BODY_BYTES_MAX);
    for dialect in Dialect::ALL {
        let seen = dialect.observe(&head, Some(body.as_bytes()), SENT);
        assert!(seen.readings.len() < 100, "{dialect}");
    }
}
