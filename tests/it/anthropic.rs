//! Anthropic's responses, read. The header sets are of the forms that public test suites recorded from 2024 to 2026.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use proptest::prelude::*;
use serde_json::json;
use tidegate::clock::MonoTime;
use tidegate::observation::{Ending, MeterReading, ThrottleKind};
use tidegate::provider::{Dialect, HOLD_MAX, Head, Hold, Observation, Reflex, TokenCharge, reflex};
use tidegate::quota::{Cost, Meter, Unit, Window};

const RPM: Meter = Meter::REQUESTS_PER_MINUTE;
const TPM: Meter = Meter::TOKENS_PER_MINUTE;
const ITPM: Meter = Meter { unit: Unit::InputTokens, window: Window::Minute };
const OTPM: Meter = Meter { unit: Unit::OutputTokens, window: Window::Minute };
const SENT: MonoTime = MonoTime::from_millis(5_000);
const DATE: (&str, &str) = ("date", "Thu, 09 Oct 2025 21:49:43 GMT");
const NOW: &str = "2025-10-09T21:49:43Z";
const UNSET: &str = "1970-01-01T00:00:00Z";

/// Header names and values.
type Headers = Vec<(String, String)>;

/// Limit, remaining and reset of some dimensions, after a `Date`.
fn heads(dimensions: &[(&str, &str, &str, &str)]) -> Headers {
    let mut all = vec![(DATE.0.to_owned(), DATE.1.to_owned())];
    for (name, limit, remaining, reset) in dimensions {
        for (what, value) in [("limit", limit), ("remaining", remaining), ("reset", reset)] {
            all.push((format!("anthropic-ratelimit-{name}-{what}"), (*value).to_owned()));
        }
    }
    all
}

fn with(mut headers: Headers, name: &str, value: &str) -> Headers {
    headers.push((name.to_owned(), value.to_owned()));
    headers
}

fn read(status: u16, headers: &Headers) -> Observation {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.append(name.parse::<HeaderName>().expect("a name"), HeaderValue::from_str(value).expect("a value"));
    }
    Dialect::Anthropic.read(&Head { status, headers: &map }, SENT)
}

/// All four buckets full, as an ordinary small request shows them.
fn ordinary() -> Headers {
    heads(&[
        ("requests", "4000", "3999", "2025-10-09T21:49:42Z"),
        ("tokens", "2400000", "2388000", "2025-10-09T21:49:37Z"),
        ("input-tokens", "2000000", "1988000", "2025-10-09T21:49:37Z"),
        ("output-tokens", "400000", "400000", NOW),
    ])
}

fn refusal(kind: &str, message: &str) -> Vec<u8> {
    json!({"type": "error", "error": {"type": kind, "message": message}, "request_id": "req"}).to_string().into_bytes()
}

// === heads ===

#[test]
fn an_ordinary_answer_gives_four_meters() {
    let seen = read(200, &ordinary());
    assert_eq!((seen.ending, seen.retry_after, seen.faults()), (Ending::Succeeded, None, 0));
    let reading = |meter, limit, level, reset| MeterReading {
        meter,
        sent_at: SENT,
        limit: Some(limit),
        remaining: Some(level),
        level: Some(level),
        reset,
    };
    let expected = [
        reading(RPM, 4e3, 3_999.0, Some(Duration::ZERO)),
        reading(TPM, 2.4e6, 2.388e6, Some(Duration::ZERO)),
        reading(ITPM, 2e6, 1.988e6, Some(Duration::ZERO)),
        reading(OTPM, 4e5, 4e5, Some(Duration::ZERO)),
    ];
    assert_eq!(seen.readings.as_slice(), expected);
}

#[test]
fn a_reset_is_measured_against_the_responses_own_date() {
    let reset = |text: &str| {
        let seen = read(200, &heads(&[("requests", "50", "49", text)]));
        assert_eq!(seen.readings.len(), 1, "{text}");
        (seen.readings[0].reset, seen.faults())
    };
    assert_eq!(reset(NOW), (Some(Duration::ZERO), 0));
    assert_eq!(reset("2025-10-09T21:50:40Z"), (Some(Duration::from_secs(57)), 0));
    // Taken at admission, dated when the answer began.
    assert_eq!(reset("2025-10-09T21:47:29Z"), (Some(Duration::ZERO), 0));
    assert_eq!(reset(UNSET), (None, 0));
    for garbage in ["", "soon", "57", "1m0s", "2025-10-09", "2025-13-09T21:49:43Z", "REDACTED", "9999-01-01T00:00:00Z"]
    {
        assert_eq!(reset(garbage), (None, 1), "{garbage:?}");
    }
    let mut undated = heads(&[("requests", "50", "49", NOW)]);
    undated.remove(0);
    let seen = read(200, &undated);
    assert_eq!((seen.readings[0].reset, seen.readings[0].level, seen.faults()), (None, Some(49.0), 0));
}

#[test]
fn sets_of_other_times_are_read_as_far_as_they_go() {
    let minute = "2024-03-10T07:55:00Z";
    let meters = |headers: &Headers| read(200, headers).readings.iter().map(|r| r.meter).collect::<Vec<_>>();
    // 2024: a fixed window, and no input or output.
    let old = heads(&[("requests", "5", "4", minute), ("tokens", "25000", "25000", minute)]);
    assert_eq!(meters(&old), [RPM, TPM]);
    let tokens = [("tokens", "10000", "8000", NOW), ("input-tokens", "50000", "50000", NOW)];
    assert_eq!(meters(&heads(&tokens)), [TPM, ITPM]);
    assert_eq!(meters(&heads(&[("requests", "4000", "3999", NOW)])), [RPM]);
    assert_eq!(meters(&heads(&[])), []);
    // More than full, once.
    let over = read(200, &heads(&[("tokens", "25000", "28000", NOW)]));
    assert_eq!((over.readings[0].remaining, over.readings[0].level), (Some(28e3), Some(28e3)));
}

#[test]
fn other_buckets_headers_are_not_taken_for_ours() {
    let mut others = heads(&[]);
    for name in [
        "anthropic-priority-input-tokens-limit",
        "anthropic-priority-input-tokens-remaining",
        "anthropic-priority-output-tokens-limit",
        "anthropic-ratelimit-unified-limit",
        "anthropic-ratelimit-unified-5h-limit",
        "anthropic-ratelimit-limit-requests",
        "x-ratelimit-limit-requests",
        "x-ratelimit-remaining-requests",
    ] {
        others.push((name.to_owned(), "1000".to_owned()));
    }
    let seen = read(200, &others);
    assert_eq!((seen.readings.len(), seen.faults()), (0, 0));
}

#[test]
fn an_unreadable_limit_is_a_fault_and_no_reading() {
    for limit in ["", "0", "-1", "1e3", "REDACTED", "18446744073709551615"] {
        let seen = read(200, &heads(&[("input-tokens", limit, "5000", NOW)]));
        assert_eq!((seen.readings.len(), seen.faults()), (0, 1), "{limit:?}");
    }
    let seen = read(200, &heads(&[("input-tokens", "50000", "many", NOW)]));
    assert_eq!((seen.readings[0].limit, seen.readings[0].level, seen.faults()), (Some(5e4), None, 1));
}

/// 590 of 6,163 recorded successes carry one.
#[test]
fn retry_after_on_a_success_is_ignored() {
    let seen = read(200, &with(ordinary(), "retry-after", "47"));
    assert_eq!((seen.ending, seen.retry_after), (Ending::Succeeded, None));
    assert_eq!(reflex(Dialect::Anthropic, &seen, &Cost::request(9, 9)), Reflex::default());
}

// === refusals ===

const OVERSIZED: &str = "This request would exceed your organization's rate limit of 450,000 input tokens per minute. \
                         For details, refer to the documentation. You can see the response headers for current usage.";

fn full(reset: &str) -> Headers {
    heads(&[("requests", "4000", "3999", reset), ("input-tokens", "450000", "450000", reset)])
}

#[test]
fn a_request_larger_than_the_bucket_is_no_congestion() {
    // The head tells already.
    let hopeless = with(full(UNSET), "x-should-retry", "false");
    let seen = read(429, &hopeless);
    assert_eq!((seen.ending, seen.retry_after), (Ending::Ignored, None));
    let seen = Dialect::Anthropic.refine(seen, &refusal("rate_limit_error", OVERSIZED));
    assert_eq!(seen.ending, Ending::Ignored);
    // Or the body: the bucket it names is full.
    let hopeful = with(with(full(UNSET), "x-should-retry", "true"), "retry-after", "47");
    let seen = read(429, &hopeful);
    assert_eq!(seen.ending, Ending::Throttled(ThrottleKind::Unknown));
    let seen = Dialect::Anthropic.refine(seen, &refusal("rate_limit_error", OVERSIZED));
    assert_eq!((seen.ending, seen.retry_after), (Ending::Ignored, None));
    assert_eq!(reflex(Dialect::Anthropic, &seen, &Cost::request(500_000, 0)), Reflex::default());
    // With something out of it, or nothing told of it, it is congestion.
    let busy = heads(&[("requests", "4000", "3999", NOW), ("input-tokens", "450000", "449000", NOW)]);
    for headers in [with(busy, "x-should-retry", "false"), heads(&[("requests", "4000", "3999", NOW)])] {
        let seen = Dialect::Anthropic.refine(read(429, &headers), &refusal("rate_limit_error", OVERSIZED));
        assert_eq!(seen.ending, Ending::Throttled(ThrottleKind::InputTokens), "{headers:?}");
    }
}

#[test]
fn the_body_tells_what_a_429_is_about() {
    let throttled = Ending::Throttled;
    let limit_of =
        |unit: &str| format!("This request would exceed the rate limit for your organization (x) of 8,000 {unit}.");
    let day = |unit| Meter { unit, window: Window::Day };
    let table = [
        (limit_of("input tokens per minute"), throttled(ThrottleKind::InputTokens), vec![ITPM]),
        (limit_of("output tokens per minute"), throttled(ThrottleKind::OutputTokens), vec![OTPM]),
        (limit_of("tokens per minute"), throttled(ThrottleKind::Tokens), vec![TPM]),
        (limit_of("requests per minute"), throttled(ThrottleKind::Requests), vec![RPM]),
        (
            "Number of request tokens has exceeded your per-minute rate limit (x); see the headers.".to_owned(),
            throttled(ThrottleKind::Tokens),
            vec![TPM],
        ),
        (
            "Number of request tokens has exceeded your daily rate limit (x); see the headers.".to_owned(),
            throttled(ThrottleKind::Daily),
            vec![day(Unit::Tokens)],
        ),
        (
            "Number of requests has exceeded your per-minute rate limit (x). Please reduce the tokens requested."
                .to_owned(),
            throttled(ThrottleKind::Requests),
            vec![RPM],
        ),
        (
            "Number of concurrent connections has exceeded your rate limit. Fewer requests, please.".to_owned(),
            throttled(ThrottleKind::Unknown),
            vec![],
        ),
        // Too sharp a rise: the bucket may well be full.
        (
            "This request would exceed your organization's maximum usage increase rate for input tokens per minute."
                .to_owned(),
            throttled(ThrottleKind::InputTokens),
            vec![ITPM],
        ),
        (
            "This request would exceed your account's rate limit. Please try again later.".to_owned(),
            throttled(ThrottleKind::Unknown),
            vec![],
        ),
        ("Rate limited".to_owned(), throttled(ThrottleKind::Unknown), vec![]),
    ];
    for (message, ending, exhausted) in table {
        // The input bucket is full, the others are not told of.
        let headers = heads(&[("input-tokens", "450000", "450000", NOW)]);
        let headers = if message.contains("of 8,000") { heads(&[]) } else { headers };
        let seen = Dialect::Anthropic.refine(read(429, &headers), &refusal("rate_limit_error", &message));
        assert_eq!((seen.ending, seen.exhausted), (ending, exhausted), "{message}");
    }
}

#[test]
fn a_spend_cap_is_no_congestion() {
    let body = json!({"type": "error", "error": {"type": "rate_limit_error", "message": "Spend limit reached.",
        "details": {"error_code": "enforced_spend_limit_reached"}}});
    let seen = Dialect::Anthropic.refine(read(429, &ordinary()), body.to_string().as_bytes());
    assert_eq!((seen.ending, seen.exhausted), (Ending::Ignored, vec![]));
}

#[test]
fn overload_comes_as_529_as_503_and_as_500() {
    let overload = Ending::Throttled(ThrottleKind::Overload);
    let retry = with(heads(&[]), "x-should-retry", "true");
    for status in [503, 529] {
        assert_eq!(read(status, &retry).ending, overload, "{status}");
    }
    assert_eq!(read(500, &retry).ending, Ending::Ignored);
    let refined = |status, body: &[u8]| Dialect::Anthropic.refine(read(status, &retry), body).ending;
    assert_eq!(refined(529, &refusal("overloaded_error", "Overloaded")), overload);
    assert_eq!(refined(500, &refusal("api_error", "Overloaded")), overload);
    assert_eq!(refined(500, &refusal("api_error", "Internal server error")), Ending::Ignored);
    assert_eq!(refined(400, &refusal("invalid_request_error", "Overloaded")), Ending::Ignored);
    assert_eq!(refined(200, &refusal("overloaded_error", "Overloaded")), Ending::Succeeded);
    assert!([429, 500, 503, 529].iter().all(|status| Dialect::Anthropic.body_tells(*status)));
    assert!([200, 400, 401, 404, 502].iter().all(|status| !Dialect::Anthropic.body_tells(*status)));
    assert!(!Dialect::OpenAi.body_tells(500));
    let left_alone = reflex(Dialect::Anthropic, &read(529, &retry), &Cost::request(9, 9));
    assert!(left_alone.holds.is_empty() && left_alone.overload.is_some());
}

#[test]
fn a_body_that_tells_nothing_changes_nothing() {
    let head = read(429, &with(ordinary(), "retry-after", "3"));
    for body in
        ["", "null", "[]", "<html>", r#"{"error":"x"}"#, r#"{"error":{"type":1,"message":[]}}"#, r#"{"error":{"#]
    {
        assert_eq!(Dialect::Anthropic.refine(head.clone(), body.as_bytes()), head, "{body}");
    }
}

#[test]
fn a_refusal_of_2024_is_told_by_its_spent_bucket() {
    let spent = heads(&[("requests", "5", "0", "2025-10-09T21:50:00Z"), ("tokens", "25000", "24000", NOW)]);
    let seen = read(429, &with(spent, "x-should-retry", "true"));
    assert_eq!((seen.ending, seen.exhausted.clone()), (Ending::Throttled(ThrottleKind::Requests), vec![RPM]));
    let hold = Hold { meter: RPM, for_at_least: Duration::from_secs(12) };
    assert_eq!(reflex(Dialect::Anthropic, &seen, &Cost::request(9, 9)).holds, [hold]);
}

#[test]
fn a_rounded_level_is_taken_at_its_lowest() {
    let seen = read(429, &heads(&[("output-tokens", "8000", "1000", NOW)]));
    let seen = Dialect::Anthropic.refine(
        seen,
        &refusal("rate_limit_error", "This request would exceed your rate limit of 8,000 output tokens per minute."),
    );
    // 1,100 needed of 500 to 1,499: 600 are missing, 4.5 s of refill.
    let hold = Hold { meter: OTPM, for_at_least: Duration::from_millis(4_500) };
    assert_eq!(reflex(Dialect::Anthropic, &seen, &Cost::request(10, 1_100)).holds, [hold]);
}

// === what it charges ===

#[test]
fn anthropic_charges_all_the_output_a_request_allows_and_corrects_it() {
    let semantics = Dialect::Anthropic.semantics();
    assert_eq!(semantics.token_charge, TokenCharge::Corrected);
    assert_eq!(Dialect::Anthropic.estimate(4_001, 1_024), Cost::request(1_001, 1_024));
    let grains = Unit::ALL.map(|unit| (semantics.remaining_grain(unit), semantics.level_slack(unit)));
    assert_eq!(grains, [(1.0, 0.0), (1e3, 500.0), (1e3, 500.0), (1e3, 500.0)]);
    let exact = Unit::ALL.map(|unit| Dialect::OpenAi.semantics().level_slack(unit));
    assert_eq!(exact, [0.0; 4]);
}

#[test]
fn the_output_a_request_allows_stands_in_its_body() {
    let table = [
        (r#"{"model":"m","max_tokens":1024,"messages":[{"role":"user","content":"max_tokens \"9\""}]}"#, 1_024),
        (r#"{"metadata":{"max_tokens":7},"max_tokens":18446744073709551615}"#, u64::MAX),
        (r#"{"model":"m"}"#, 0),
        (r#"{"max_tokens":-1}"#, 0),
        (r#"{"max_tokens":"9"}"#, 0),
        (r#"{"max_tokens":null}"#, 0),
        (r#"{"max_tokens":9"#, 0),
        ("", 0),
        ("null", 0),
        ("\u{feff}x", 0),
    ];
    for (body, tokens) in table {
        assert_eq!(Dialect::Anthropic.max_output_tokens(body.as_bytes()), tokens, "{body}");
        assert_eq!(Dialect::OpenAi.max_output_tokens(body.as_bytes()), 0, "{body}");
    }
}

// === whatever comes ===

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn no_header_can_upset_the_reader(
        values in prop::collection::vec((0_usize..15, "[ -~]{0,24}|[0-9]{1,20}|20[0-9]{2}-0[1-9]-1[0-9]T0[0-9]:30:0[0-9]Z"), 0..16),
        status in prop_oneof![Just(200_u16), Just(429), Just(500), Just(529), any::<u16>()],
        message in "would exceed .{0,9}[0-9]{0,3} (input tokens|requests|output tokens|) per minute. \\PC{0,9}",
        kind in "overloaded_error|api_error|rate_limit_error|\\PC{0,9}",
        tokens in any::<u64>(),
    ) {
        let names: Vec<String> = ["requests", "tokens", "input-tokens", "output-tokens"]
            .iter()
            .flat_map(|unit| ["limit", "remaining", "reset"].map(|what| format!("anthropic-ratelimit-{unit}-{what}")))
            .chain(["retry-after", "x-should-retry", "date"].map(str::to_owned))
            .collect();
        let headers: Headers = values.into_iter().map(|(name, value)| (names[name].clone(), value)).collect();
        let seen = read(status, &headers);
        for seen in [seen.clone(), Dialect::Anthropic.refine(seen, &refusal(&kind, &message))] {
            for reading in &seen.readings {
                prop_assert!(reading.limit.is_none_or(|limit| limit.is_finite() && limit > 0.0), "{reading:?}");
                prop_assert!(reading.level.is_none_or(|level| level.is_finite() && level >= 0.0), "{reading:?}");
            }
            let reaction = reflex(Dialect::Anthropic, &seen, &Cost::request(tokens, tokens));
            for hold in &reaction.holds {
                prop_assert!(!hold.for_at_least.is_zero() && hold.for_at_least <= HOLD_MAX, "{reaction:?}");
            }
            prop_assert_eq!(matches!(seen.ending, Ending::Throttled(_)), reaction != Reflex::default());
        }
    }
}
