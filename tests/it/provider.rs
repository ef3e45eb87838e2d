//! A provider's responses, read. The fixtures are the forms that OpenAI documents and that public test suites
//! recorded; the numbers in them are those of recorded responses, or follow the same arithmetic.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use proptest::prelude::*;
use serde_json::json;
use tidegate::clock::MonoTime;
use tidegate::observation::{Ending, MeterReading, ThrottleKind};
use tidegate::provider::{
    BODY_BYTES_MAX, Dialect, HOLD_MAX, Head, Hold, Observation, Refill, Reflex, Semantics, TokenCharge,
    parse_go_duration, reflex,
};
use tidegate::quota::{Cost, Meter, Unit, Window};

const RPM: Meter = Meter::REQUESTS_PER_MINUTE;
const TPM: Meter = Meter::TOKENS_PER_MINUTE;
const RPD: Meter = Meter { unit: Unit::Requests, window: Window::Day };
const TPD: Meter = Meter { unit: Unit::Tokens, window: Window::Day };
const SENT: MonoTime = MonoTime::from_millis(5_000);

fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in pairs {
        let value = HeaderValue::from_bytes(value.as_bytes()).expect(value);
        map.append(name.parse::<HeaderName>().expect(name), value);
    }
    map
}

fn read(status: u16, pairs: &[(&str, &str)]) -> Observation {
    Dialect::OpenAi.read(&Head { status, headers: &headers(pairs) }, SENT)
}

/// The three headers of one unit.
fn bucket<'a>(unit: &str, limit: &'a str, remaining: &'a str, reset: &'a str) -> [(&'static str, &'a str); 3] {
    match unit {
        "requests" => [
            ("x-ratelimit-limit-requests", limit),
            ("x-ratelimit-remaining-requests", remaining),
            ("x-ratelimit-reset-requests", reset),
        ],
        _ => [
            ("x-ratelimit-limit-tokens", limit),
            ("x-ratelimit-remaining-tokens", remaining),
            ("x-ratelimit-reset-tokens", reset),
        ],
    }
}

fn reading(unit: &str, limit: &str, remaining: &str, reset: &str) -> MeterReading {
    let observation = read(200, &bucket(unit, limit, remaining, reset));
    assert_eq!(observation.faults(), 0);
    assert_eq!(observation.readings.len(), 1);
    observation.readings[0]
}

fn error_body(kind: &str, code: &str, message: &str) -> Vec<u8> {
    json!({"error": {"message": message, "type": kind, "param": null, "code": code}}).to_string().into_bytes()
}

fn near(a: f64, b: f64) -> bool {
    (a - b).abs() < 1e-6
}

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

// === heads ===

#[test]
fn an_ordinary_answer_gives_both_meters_with_a_fine_level() {
    let mut pairs = bucket("requests", "500", "499", "120ms").to_vec();
    pairs.extend(bucket("tokens", "30000", "29977", "46ms"));
    pairs.push(("openai-processing-ms", "321"));
    let seen = read(200, &pairs);
    assert_eq!((seen.ending, seen.retry_after, seen.faults()), (Ending::Succeeded, None, 0));
    assert!(seen.exhausted.is_empty());
    let [requests, tokens] = seen.readings[..] else { panic!("two meters: {seen:?}") };
    let expected = MeterReading {
        meter: RPM,
        sent_at: SENT,
        limit: Some(500.0),
        remaining: Some(499.0),
        level: requests.level,
        reset: Some(ms(120)),
    };
    assert_eq!(requests, expected);
    assert!(near(requests.level.unwrap(), 499.0));
    assert_eq!((tokens.meter, tokens.remaining), (TPM, Some(29_977.0)));
    assert!(near(tokens.level.unwrap(), 29_977.0));
}

#[test]
fn the_level_is_finer_than_what_remains() {
    let table = [
        ("500", "490", "1.14s", 490.5),
        ("100", "49", "30.3s", 49.5),
        ("500", "0", "59.94s", 0.5),
        // Overdrawn: more time to full than a window.
        ("10000", "0", "1m1.268s", -211.333_333),
        ("200000", "0", "1m3.176s", -10_586.666_667),
        // Reset is to the millisecond only: what remains is then the finer of the two.
        ("30000000", "29999992", "0s", 29_999_993.0),
        ("150000000", "149999226", "0s", 149_999_227.0),
        ("30000000", "29990000", "20ms", 29_990_000.0),
    ];
    for (limit, remaining, reset, level) in table {
        let seen = reading("tokens", limit, remaining, reset);
        assert_eq!(seen.meter, TPM, "{limit} {remaining} {reset}");
        assert!(near(seen.level.unwrap(), level), "{limit} {remaining} {reset}: {:?}", seen.level);
        assert!(seen.reset.is_some());
    }
}

#[test]
fn the_window_follows_from_limit_remaining_and_reset() {
    let month = Meter { unit: Unit::Tokens, window: Window::Month };
    let table = [
        ("requests", "10000", "9999", "6ms", RPM),
        ("requests", "30000", "29999", "2ms", RPM),
        ("requests", "3", "2", "20s", RPM),
        ("requests", "60", "0", "59.2s", RPM),
        ("requests", "10000", "9999", "8.64s", RPD),
        ("requests", "10000", "9980", "2m52.8s", RPD),
        ("requests", "10000", "9980", "2m48.9s", RPD),
        ("requests", "200", "199", "7m12s", RPD),
        ("requests", "100", "0", "23h59m59.5s", RPD),
        ("tokens", "90000", "89000", "16m0s", TPD),
        ("tokens", "100000", "99611", "2h47m48.417s", month),
        ("tokens", "100000", "88447", "83h10m39.057s", month),
    ];
    for (unit, limit, remaining, reset, meter) in table {
        let seen = reading(unit, limit, remaining, reset);
        assert_eq!(seen.meter, meter, "{limit} {remaining} {reset}");
        let (level, remaining) = (seen.level.unwrap(), seen.remaining.unwrap());
        assert!((remaining..=remaining + 1.0).contains(&level), "{limit} {remaining} {reset}: {level}");
    }
}

#[test]
fn where_the_window_cannot_be_told_it_is_a_minute_and_remaining_is_the_level() {
    let table = [
        ("100", "100", "0s", Some(Duration::ZERO)),
        ("100", "100", "3s", None),
        // A fixed window, of one organisation.
        ("10000", "9999", "1m0s", None),
        ("2000", "1998", "1m0s", None),
        ("30000000", "29999921", "1m0s", None),
        // Fits no window.
        ("500", "250", "10m0s", None),
        ("100", "0", "0s", None),
        // More than full.
        ("100", "150", "0s", Some(Duration::ZERO)),
    ];
    for (limit, remaining, reset, kept) in table {
        let seen = reading("requests", limit, remaining, reset);
        assert_eq!((seen.meter, seen.level, seen.reset), (RPM, seen.remaining, kept), "{limit} {remaining} {reset}");
    }
    let seen = read(200, &[("x-ratelimit-limit-tokens", "100"), ("x-ratelimit-remaining-tokens", "40")]);
    assert_eq!((seen.readings[0].level, seen.readings[0].reset), (Some(40.0), None));
}

#[test]
fn a_part_may_be_missing() {
    let seen = read(200, &bucket("requests", "500", "499", "120ms"));
    assert_eq!(seen.readings.len(), 1, "audio answers carry requests only");
    let seen = read(200, &[("x-ratelimit-remaining-requests", "7")]);
    let only = seen.readings[0];
    assert_eq!((only.limit, only.remaining, only.level), (None, Some(7.0), Some(7.0)));
    let seen = read(200, &[("x-ratelimit-limit-requests", "7")]);
    let only = seen.readings[0];
    assert_eq!((only.limit, only.remaining, only.level), (Some(7.0), None, None));
    let none = read(200, &[]);
    assert!(none.readings.is_empty());
    assert_eq!((none.ending, none.faults()), (Ending::Succeeded, 0));
}

#[test]
fn other_buckets_headers_are_not_taken_for_ours() {
    let others = [
        ("x-ratelimit-limit-input-images", "50000"),
        ("x-ratelimit-remaining-input-images", "49999"),
        ("x-ratelimit-limit-tokens_usage_based", "300000"),
        ("x-ratelimit-limit-project-tokens", "1000"),
        ("x-ratelimit-limit", "5"),
    ];
    let seen = read(200, &others);
    assert_eq!((seen.readings.len(), seen.faults()), (0, 0));
}

#[test]
fn an_unreadable_limit_is_a_fault_and_no_reading() {
    let absurd = [
        "",
        " ",
        "REDACTED",
        "**REDACTED**",
        "0",
        "-1",
        "+5",
        "1.5",
        "1e3",
        "0x10",
        "1,000",
        "٣",
        "NaN",
        "inf",
        "1000000000000001",
        "18446744073709551615",
        "99999999999999999999999999",
        "10, 10;w=1",
    ];
    for limit in absurd {
        let seen = read(200, &bucket("requests", limit, "5", "1s"));
        assert!(seen.readings.is_empty(), "{limit:?}: {seen:?}");
        assert_eq!((seen.faults(), seen.ending), (1, Ending::Succeeded), "{limit:?}");
    }
    let seen = read(200, &bucket("requests", "1000000000000000", "5", "1m0s"));
    assert_eq!((seen.readings.len(), seen.faults()), (1, 0), "the largest limit");
}

#[test]
fn an_unreadable_part_is_a_fault_and_missing() {
    let seen = read(200, &bucket("requests", "500", "-1", "120ms"));
    assert_eq!((seen.faults(), seen.readings[0].limit, seen.readings[0].level), (1, Some(500.0), None));
    let seen = read(200, &bucket("requests", "500", "499", "120"));
    assert_eq!((seen.faults(), seen.readings[0].level, seen.readings[0].reset), (1, Some(499.0), None));
    let all = read(200, &bucket("tokens", "REDACTED", "REDACTED", "REDACTED"));
    assert_eq!((all.faults(), all.readings.len()), (3, 0));
    let mut map = HeaderMap::new();
    map.insert("x-ratelimit-limit-requests", HeaderValue::from_bytes(b"\xff\xfe").unwrap());
    let bytes = Dialect::OpenAi.read(&Head { status: 200, headers: &map }, SENT);
    assert_eq!((bytes.faults(), bytes.readings.len()), (1, 0));
}

#[test]
fn repeated_headers_must_agree() {
    let mut pairs = bucket("requests", "500", "499", "120ms").to_vec();
    pairs.extend(bucket("requests", "500", "499", "120ms"));
    let seen = read(200, &pairs);
    assert_eq!((seen.readings.len(), seen.faults()), (1, 0));
    pairs.push(("x-ratelimit-remaining-requests", "3"));
    let seen = read(200, &pairs);
    assert_eq!((seen.readings[0].remaining, seen.faults()), (None, 1));
    pairs.push(("x-ratelimit-limit-requests", "60"));
    let seen = read(200, &pairs);
    assert_eq!((seen.readings.len(), seen.faults()), (0, 2));
}

#[test]
fn blanks_around_a_value_do_not_matter() {
    let mut map = headers(&bucket("requests", "500", "499", "120ms"));
    map.insert("x-ratelimit-limit-requests", HeaderValue::from_static(" 500\t"));
    let seen = Dialect::OpenAi.read(&Head { status: 200, headers: &map }, SENT);
    assert_eq!((seen.readings[0].limit, seen.faults()), (Some(500.0), 0));
}

// === endings ===

#[test]
fn the_status_tells_the_ending() {
    let overload = Ending::Throttled(ThrottleKind::Overload);
    let table = [
        (200, Ending::Succeeded),
        (201, Ending::Succeeded),
        (204, Ending::Succeeded),
        (100, Ending::Ignored),
        (304, Ending::Ignored),
        (400, Ending::Ignored),
        (401, Ending::Ignored),
        (403, Ending::Ignored),
        (404, Ending::Ignored),
        (408, Ending::Ignored),
        (413, Ending::Ignored),
        (429, Ending::Throttled(ThrottleKind::Unknown)),
        (500, Ending::Ignored),
        (502, Ending::Ignored),
        (503, overload),
        (504, Ending::Ignored),
        (529, overload),
        (0, Ending::Ignored),
        (u16::MAX, Ending::Ignored),
    ];
    for (status, ending) in table {
        assert_eq!(read(status, &[]).ending, ending, "{status}");
    }
}

#[test]
fn a_refusals_head_tells_the_kind_by_what_is_spent() {
    let kind = |requests: [&str; 3], tokens: [&str; 3]| {
        let mut pairs = bucket("requests", requests[0], requests[1], requests[2]).to_vec();
        pairs.extend(bucket("tokens", tokens[0], tokens[1], tokens[2]));
        let seen = read(429, &pairs);
        (seen.ending, seen.exhausted)
    };
    let room = ["500", "499", "120ms"];
    let spent = ["500", "0", "59.95s"];
    let tokens_room = ["30000", "29977", "46ms"];
    let tokens_over = ["10000", "0", "1m1.268s"];
    let throttled = Ending::Throttled;
    assert_eq!(kind(spent, tokens_room), (throttled(ThrottleKind::Requests), vec![RPM]));
    assert_eq!(kind(room, tokens_over), (throttled(ThrottleKind::Tokens), vec![TPM]));
    assert_eq!(kind(spent, tokens_over), (throttled(ThrottleKind::Unknown), vec![RPM, TPM]));
    assert_eq!(kind(room, tokens_room), (throttled(ThrottleKind::Unknown), vec![]));
    let day = ["200", "0", "23h59m59s"];
    assert_eq!(kind(day, tokens_room), (throttled(ThrottleKind::Daily), vec![RPD]));
}

// === Retry-After: RFC 9110 §10.2.3 ===

#[test]
fn retry_after_counts_on_refusals_only() {
    let pairs = [("retry-after", "7"), ("retry-after-ms", "6500")];
    for status in [429, 503, 529] {
        assert_eq!(read(status, &pairs).retry_after, Some(ms(6_500)), "{status}");
    }
    for status in [200, 202, 301, 400, 401, 403, 404, 500, 502] {
        let seen = read(status, &pairs);
        assert_eq!((seen.retry_after, seen.faults()), (None, 0), "{status}");
        assert_eq!(reflex(Dialect::OpenAi, &seen, &Cost::request(10, 0)), Reflex::default(), "{status}");
    }
}

#[test]
fn retry_after_is_read_in_every_form_really_sent() {
    let date = ("date", "Sun, 06 Nov 1994 08:49:37 GMT");
    type Row<'a> = (&'a [(&'a str, &'a str)], Option<Duration>, u32);
    let table: &[Row<'_>] = &[
        (&[("retry-after", "20")], Some(ms(20_000)), 0),
        (&[("retry-after", "7.66")], Some(ms(7_660)), 0),
        (&[("retry-after-ms", "837"), ("retry-after", "1")], Some(ms(837)), 0),
        (&[("retry-after-ms", "837.5")], Some(Duration::from_micros(837_500)), 0),
        // Zero says nothing.
        (&[("retry-after", "0")], None, 0),
        (&[("retry-after-ms", "0"), ("retry-after", "1")], Some(ms(1_000)), 0),
        // Against the response's own date.
        (&[date, ("retry-after", "Sun, 06 Nov 1994 08:50:07 GMT")], Some(ms(30_000)), 0),
        (&[date, ("retry-after", "Sun, 06 Nov 1994 08:49:07 GMT")], None, 0),
        // Readable, and nothing to measure it by: missing, but no fault of the header's.
        (&[("retry-after", "Sun, 06 Nov 1994 08:50:07 GMT")], None, 0),
        (&[date, ("retry-after", "Sun, 06 Nov 1994 08:50:07 UTC")], Some(ms(30_000)), 0),
        (&[date, ("retry-after", "Sunday, 06-Nov-94 08:50:07 GMT")], Some(ms(30_000)), 0),
        (&[date, ("retry-after", "Sun Nov  6 08:50:07 1994")], Some(ms(30_000)), 0),
        (&[date, ("retry-after", "soon")], None, 1),
        (&[("retry-after", "-5")], None, 1),
        (&[("retry-after", "")], None, 1),
        (&[("retry-after", "1e3")], None, 1),
        (&[("retry-after", "1.2.3")], None, 1),
        (&[("retry-after", "inf")], None, 1),
        (&[("retry-after", "99999999999999999999999999")], None, 1),
        (&[("retry-after", "REDACTED"), ("retry-after-ms", "837")], Some(ms(837)), 0),
        (&[("retry-after", "2"), ("retry-after-ms", "REDACTED")], Some(ms(2_000)), 1),
        (&[("retry-after", "2"), ("retry-after", "3")], None, 1),
    ];
    for (pairs, expected, faults) in table {
        let seen = read(429, pairs);
        assert_eq!((seen.retry_after, seen.faults()), (*expected, *faults), "{pairs:?}");
    }
}

#[test]
fn a_429_that_asks_for_over_a_minute_is_daily_and_an_overload_never_is() {
    let short = read(429, &[("retry-after", "60")]);
    assert_eq!(short.ending, Ending::Throttled(ThrottleKind::Unknown));
    assert_eq!(reflex(Dialect::OpenAi, &short, &Cost::request(1, 0)).long, None);
    let long = read(429, &[("retry-after", "61")]);
    assert_eq!(long.ending, Ending::Throttled(ThrottleKind::Daily));
    let reaction = reflex(Dialect::OpenAi, &long, &Cost::request(1, 0));
    assert_eq!(reaction.long, Some(ms(61_000)));
    assert_eq!(reaction.holds, [Hold { meter: RPM, for_at_least: HOLD_MAX }]);
    // The provider's own trouble says nothing about our quota; one proxy's 503 must not silence every member.
    let overload = read(503, &[("retry-after", "86400")]);
    assert_eq!(overload.ending, Ending::Throttled(ThrottleKind::Overload));
    assert_eq!(reflex(Dialect::OpenAi, &overload, &Cost::request(1, 0)).long, None);
}

// === bodies ===

fn refined(pairs: &[(&str, &str)], body: &[u8]) -> Observation {
    Dialect::OpenAi.refine(read(429, pairs), body)
}

#[test]
fn the_body_tells_what_a_429_is_about() {
    let reached = "Rate limit reached for gpt-4o on tokens per min (TPM): Limit 30000, Used 29900, \
                   Requested 519. Please try again in 837ms. Visit https://platform.openai.com to learn more.";
    let too_large = "Request too large for gpt-4o on tokens per min (TPM): Limit 200000, Requested \
                     2500013. The input or output tokens must be reduced in order to run successfully.";
    let no_images = "Request too large for gpt-4o on input-images per min: Limit 0, Requested 1.";
    let by_day = "Rate limit reached for gpt-4 on requests per day (RPD): Limit 200, Used 200, Requested 1. Please try \
                  again in 7m12s.";
    let quota = "You exceeded your current quota, please check your plan and billing details.";
    let jobs = "Your organization has reached the maximum of 1 active requests (1 running, 0 pending).";
    let (limited, ignored) = ("rate_limit_exceeded", Ending::Ignored);
    let throttled = Ending::Throttled;
    type Row<'a> = (&'a str, &'a str, &'a str, Ending, &'a [Meter], Option<Duration>);
    let table: &[Row<'_>] = &[
        ("tokens", limited, reached, throttled(ThrottleKind::Tokens), &[TPM], Some(ms(837))),
        ("requests", limited, "Slow.", throttled(ThrottleKind::Requests), &[RPM], None),
        ("tokens_usage_based", limited, "", throttled(ThrottleKind::Tokens), &[TPM], None),
        ("requests", limited, by_day, throttled(ThrottleKind::Daily), &[RPD], Some(ms(432_000))),
        ("input-images", limited, "", ignored, &[], None),
        ("slow_down", "", "", throttled(ThrottleKind::Unknown), &[], None),
        ("requests", "slow_down", "", throttled(ThrottleKind::Unknown), &[], None),
        ("tokens", limited, too_large, ignored, &[], None),
        ("input-images", limited, no_images, ignored, &[], None),
        ("insufficient_quota", "insufficient_quota", quota, ignored, &[], None),
        ("insufficient_quota", "", quota, ignored, &[], None),
        ("requests", "insufficient_quota", quota, ignored, &[], None),
        ("insufficient_quota", "credit_balance_exhausted", "", ignored, &[], None),
        ("x", "credit_balance_exhausted", "", ignored, &[], None),
        ("x", "organization_spend_limit_exceeded", "", ignored, &[], None),
        ("x", "project_spend_limit_exceeded", "", ignored, &[], None),
        ("x", "organization_usage_limit_exceeded", "", ignored, &[], None),
        ("invalid_request_error", limited, jobs, ignored, &[], None),
        ("some_new_error", "some_new_code", "", throttled(ThrottleKind::Unknown), &[], None),
    ];
    for (kind, code, message, ending, exhausted, retry_after) in table {
        let seen = refined(&[], &error_body(kind, code, message));
        assert_eq!(seen.ending, *ending, "{kind} {code} {message}");
        assert_eq!(seen.exhausted, *exhausted, "{kind} {code} {message}");
        assert_eq!(seen.retry_after, *retry_after, "{kind} {code} {message}");
    }
}

#[test]
fn the_body_is_stronger_than_the_head_but_a_header_wait_stays() {
    let mut pairs = bucket("requests", "500", "0", "59.95s").to_vec();
    pairs.extend(bucket("tokens", "30000", "81", "59.838s"));
    pairs.push(("retry-after-ms", "837"));
    assert_eq!(read(429, &pairs).ending, Ending::Throttled(ThrottleKind::Requests));
    let seen = refined(&pairs, &error_body("tokens", "rate_limit_exceeded", "Please try again in 9s."));
    assert_eq!(seen.ending, Ending::Throttled(ThrottleKind::Tokens));
    assert_eq!((seen.exhausted, seen.retry_after), (vec![TPM], Some(ms(837))));
    assert_eq!(seen.readings.len(), 2);
}

#[test]
fn a_refusal_for_the_accounts_or_requests_sake_holds_nothing() {
    let pairs = [("retry-after", "86400")];
    for body in [
        error_body("insufficient_quota", "insufficient_quota", "No credit."),
        error_body("tokens", "rate_limit_exceeded", "Request too large for gpt-4o."),
    ] {
        let seen = refined(&pairs, &body);
        assert_eq!((seen.ending, seen.retry_after), (Ending::Ignored, None));
        assert_eq!(reflex(Dialect::OpenAi, &seen, &Cost::request(1_000, 0)), Reflex::default());
    }
}

#[test]
fn zeros_of_a_refusal_that_measured_nothing_are_no_readings() {
    let mut pairs = bucket("requests", "100", "0", "0s").to_vec();
    pairs.extend(bucket("tokens", "6000", "0", "0s"));
    let body = error_body("input-images", "rate_limit_exceeded", "Request too large … per min: Limit 0, Requested 1.");
    assert!(refined(&pairs, &body).readings.is_empty());
    let pairs = bucket("tokens", "200000", "200000", "0s");
    let body = error_body("tokens", "rate_limit_exceeded", "Request too large for gpt-4o: Limit 200000.");
    assert_eq!(refined(&pairs, &body).readings.len(), 1, "a full bucket is a reading");
}

#[test]
fn a_body_that_tells_nothing_changes_nothing() {
    let head = read(429, &bucket("requests", "500", "0", "59.95s"));
    let nested = "[".repeat(BODY_BYTES_MAX);
    let bodies: Vec<Vec<u8>> = vec![
        vec![],
        b"null".to_vec(),
        b"[]".to_vec(),
        b"upstream connect error or disconnect/reset before headers".to_vec(),
        b"<html>429 Too Many Requests</html>".to_vec(),
        br#"{"error":"tokens"}"#.to_vec(),
        br#"{"error":{"type":7,"code":429,"message":[]}}"#.to_vec(),
        br#"{"error":{"type":"tokens""#.to_vec(),
        vec![0xff; 100],
        nested.into_bytes(),
    ];
    for body in bodies {
        assert_eq!(Dialect::OpenAi.refine(head.clone(), &body), head, "{}", String::from_utf8_lossy(&body));
    }
}

#[test]
fn a_body_is_read_up_to_its_bound() {
    let body = |pad: usize| {
        let mut body = error_body("tokens", "rate_limit_exceeded", "");
        body.resize(pad, b' ');
        body
    };
    assert_eq!(refined(&[], &body(BODY_BYTES_MAX)).ending, Ending::Throttled(ThrottleKind::Tokens));
    let hidden = error_body("tokens", "x", &"x".repeat(BODY_BYTES_MAX));
    assert_eq!(refined(&[], &hidden).ending, Ending::Throttled(ThrottleKind::Unknown));
}

#[test]
fn bodies_of_answers_that_were_no_refusals_are_not_asked() {
    let body = error_body("tokens", "rate_limit_exceeded", "Please try again in 9s.");
    for status in [200, 400, 500] {
        let head = read(status, &[]);
        assert_eq!(Dialect::OpenAi.refine(head.clone(), &body), head, "{status}");
    }
    let overloaded = Dialect::OpenAi.refine(read(503, &[]), &body);
    assert_eq!(overloaded.ending, Ending::Throttled(ThrottleKind::Overload));
    let slow_down = Dialect::OpenAi.refine(read(503, &[]), &error_body("server_error", "slow_down", "Slow down."));
    assert_eq!(slow_down.ending, Ending::Throttled(ThrottleKind::Unknown));
}

// === reflex: DESIGN §4.6 ===

fn hold(meter: Meter, for_at_least: Duration) -> Hold {
    Hold { meter, for_at_least }
}

fn reaction(pairs: &[(&str, &str)], cost: Cost) -> Reflex {
    reflex(Dialect::OpenAi, &read(429, pairs), &cost)
}

#[test]
fn a_short_retry_after_holds_the_spent_meter_that_long() {
    let mut pairs = bucket("requests", "500", "499", "120ms").to_vec();
    pairs.extend(bucket("tokens", "10000", "0", "1m1.268s"));
    pairs.push(("retry-after-ms", "1268"));
    let got = reaction(&pairs, Cost::request(10, 0));
    assert_eq!(got, Reflex { holds: vec![hold(TPM, ms(1_268))], long: None, overload: None });
}

#[test]
fn without_retry_after_the_hold_is_the_time_to_fit_never_the_time_to_full() {
    let only = |unit: &str, limit: &str, remaining: &str, reset: &str, cost: Cost| {
        let got = reaction(&bucket(unit, limit, remaining, reset), cost);
        assert_eq!((got.holds.len(), got.long), (1, None));
        got.holds[0].for_at_least.as_secs_f64()
    };
    let one = Cost::request(1, 0);
    assert!(near(only("requests", "60", "0", "1m0s", one), 1.0));
    assert!(near(only("requests", "500", "0", "1m0s", one), 0.12));
    assert!(near(only("requests", "500", "0", "59.94s", one), 0.12), "half a unit is there: still one is waited for");
    // (used + requested - limit) / limit × 60 s, as the provider itself reckons.
    assert!(near(only("tokens", "10000", "0", "1m1.268s", Cost::request(1_000, 0)), 7.268));
    // Reset 0 with remaining 0 is no measure.
    assert!(near(only("tokens", "10000", "0", "0s", Cost::request(1_000, 0)), 6.0));
    // What can never fit is not waited for longer than a window.
    assert!(near(only("tokens", "10000", "0", "1m0s", Cost::request(50_000, 0)), 60.0));
    assert!(near(only("tokens", "10000", "0", "1m0s", Cost::request(0, 0)), 0.006));
}

#[test]
fn a_refusal_that_names_no_meter_holds_all_that_are_known() {
    let mut pairs = bucket("requests", "60", "30", "30s").to_vec();
    pairs.extend(bucket("tokens", "6000", "3000", "30s"));
    let got = reaction(&pairs, Cost::request(100, 0));
    assert_eq!(got.holds, [hold(RPM, ms(1_000)), hold(TPM, ms(1_000))]);
    pairs.push(("retry-after", "4"));
    let got = reaction(&pairs, Cost::request(100, 0));
    assert_eq!(got.holds, [hold(RPM, ms(4_000)), hold(TPM, ms(4_000))]);
}

#[test]
fn a_refusal_without_any_header_holds_requests_for_half_a_second() {
    assert_eq!(reaction(&[], Cost::request(100, 0)).holds, [hold(RPM, ms(500))]);
    assert_eq!(reaction(&[("retry-after", "3")], Cost::request(100, 0)).holds, [hold(RPM, ms(3_000))]);
    let told = refined(&[], &error_body("tokens", "rate_limit_exceeded", "No limit said."));
    assert_eq!(reflex(Dialect::OpenAi, &told, &Cost::request(1, 0)).holds, [hold(TPM, ms(500))]);
}

#[test]
fn a_spent_day_goes_to_the_controller_and_is_held_a_minute_here() {
    // 200 a day come back one in 432 s.
    let got = reaction(&bucket("requests", "200", "0", "24h0m0s"), Cost::request(1, 0));
    assert_eq!(got.holds, [hold(RPD, HOLD_MAX)]);
    assert_eq!(got.long, Some(ms(432_000)));
    // 10,000 a day come back one in 8.64 s.
    let got = reaction(&bucket("requests", "10000", "0", "24h0m0s"), Cost::request(1, 0));
    assert_eq!((got.holds, got.long), (vec![hold(RPD, ms(8_640))], None));
}

#[test]
fn an_overload_backs_off_and_holds_no_meter() {
    let got = reflex(Dialect::OpenAi, &read(503, &[("retry-after", "5")]), &Cost::request(1, 0));
    assert_eq!(got, Reflex { holds: vec![], long: None, overload: Some(ms(5_000)) });
    let got = reflex(Dialect::OpenAi, &read(529, &[]), &Cost::request(1, 0));
    assert_eq!(got.overload, Some(ms(500)));
}

#[test]
fn a_fixed_window_is_held_until_its_end() {
    let fixed = Semantics { refill: Refill::FixedWindow, ..*Dialect::OpenAi.semantics() };
    let mut seen = read(429, &bucket("requests", "60", "0", "1m0s"));
    seen.readings[0].reset = Some(ms(42_000));
    assert_eq!(fixed.reflex(&seen, &Cost::request(1, 0)).holds, [hold(RPM, ms(42_000))]);
    // A window that begins now is waited for no longer than keeps a loop from being tight: a unit's time would be beyond it.
    seen.readings[0].reset = Some(Duration::ZERO);
    assert_eq!(fixed.reflex(&seen, &Cost::request(1, 0)).holds, [hold(RPM, ms(500))]);
    seen.readings[0].reset = None;
    assert_eq!(fixed.reflex(&seen, &Cost::request(1, 0)).holds, [hold(RPM, ms(1_000))]);
}

// === the dialect ===

#[test]
fn dialects_go_by_name() {
    assert_eq!("openai".parse::<Dialect>().unwrap(), Dialect::OpenAi);
    assert_eq!(Dialect::OpenAi.to_string(), "openai");
    assert_eq!(serde_json::to_value(Dialect::OpenAi).unwrap(), json!(Dialect::OpenAi.as_str()));
    let error = "OpenAI".parse::<Dialect>().unwrap_err().to_string();
    assert!(error.starts_with("dialect \"OpenAI\": expected one of: openai, azure, anthropic, "), "{error}");
    assert!("x".repeat(100_000).parse::<Dialect>().unwrap_err().to_string().len() < 500);
    for dialect in Dialect::ALL {
        assert_eq!(dialect.as_str().parse::<Dialect>(), Ok(dialect));
    }
}

#[test]
fn openai_charges_a_quarter_of_the_bytes_and_no_output() {
    assert_eq!(Dialect::OpenAi.semantics().token_charge, TokenCharge::Estimate);
    for (bytes, tokens) in [(0, 0), (1, 1), (4, 1), (5, 2), (4_000, 1_000)] {
        assert_eq!(Dialect::OpenAi.estimate(bytes, 4_096), Cost::request(tokens, 0));
    }
    assert_eq!(Dialect::OpenAi.estimate(usize::MAX, u64::MAX).output_tokens, 0);
}

// === Go durations ===

#[test]
fn go_durations_are_read() {
    let table = [
        ("0s", 0),
        ("0", 0),
        ("1ns", 1),
        ("15us", 15_000),
        ("15µs", 15_000),
        ("15μs", 15_000),
        ("1.5µs", 1_500),
        ("120ms", 120_000_000),
        ("172.799999ms", 172_799_999),
        ("1s", 1_000_000_000),
        ("1.112s", 1_112_000_000),
        ("1m0s", 60_000_000_000),
        ("1m1.23s", 61_230_000_000),
        ("7m12s", 432_000_000_000),
        ("21m10.997s", 1_270_997_000_000),
        ("1h", 3_600_000_000_000),
        ("1h9m7.077s", 4_147_077_000_000),
        ("1h0m0.5s", 3_600_500_000_000),
        ("83h10m39.057s", 299_439_057_000_000),
        ("720h0m0s", 2_592_000_000_000_000),
        ("0.000000000000000001s", 0),
    ];
    for (text, ns) in table {
        assert_eq!(parse_go_duration(text), Some(Duration::from_nanos(ns)), "{text}");
    }
}

#[test]
fn what_go_would_not_print_is_no_duration() {
    let garbage = [
        "",
        " ",
        "s",
        "ms",
        ".",
        ".s",
        "1.s",
        ".5s",
        "1",
        "60",
        "1 s",
        " 1s",
        "1s ",
        "-1s",
        "+1s",
        "1m-1s",
        "1S",
        "1d",
        "1w",
        "1y",
        "1e3s",
        "1,5s",
        "1s1m",
        "1s1s",
        "1m1m",
        "1ms1s",
        "1.5m1s",
        "1.5h0m",
        "1s.",
        "1s1",
        "NaN",
        "inf",
        "0x1s",
        "1h2",
        "٣s",
        "1m1.23",
        "REDACTED",
        "1970-01-01T00:00:00Z",
        "1.2.3s",
        "1µ",
        "9601h",
        "9600h0m0.1s",
        "99999999999999999999h",
        "999999999999999999h",
        "0.0000000000000000001s",
    ];
    for text in garbage {
        assert_eq!(parse_go_duration(text), None, "{text:?}");
    }
    assert_eq!(parse_go_duration("9600h"), Some(Duration::from_secs(400 * 86_400)));
}

/// As Go's `time.Duration.String` writes it.
fn go_text(span: Duration) -> String {
    let trimmed = |n: u128, unit: u128| {
        let text = format!("{}.{:09}", n / unit, n % unit * 1_000_000_000 / unit);
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    };
    let ns = span.as_nanos();
    match ns {
        0 => "0s".to_owned(),
        1..=999 => format!("{ns}ns"),
        1_000..=999_999 => format!("{}µs", trimmed(ns, 1_000)),
        1_000_000..=999_999_999 => format!("{}ms", trimmed(ns, 1_000_000)),
        _ => {
            let (minutes, rest) = (ns / 60_000_000_000, ns % 60_000_000_000);
            let seconds = trimmed(rest, 1_000_000_000);
            match (minutes / 60, minutes % 60) {
                (0, 0) => format!("{seconds}s"),
                (0, minutes) => format!("{minutes}m{seconds}s"),
                (hours, minutes) => format!("{hours}h{minutes}m{seconds}s"),
            }
        }
    }
}

// === whatever comes ===

fn value() -> impl Strategy<Value = Vec<u8>> {
    let bytes = prop::collection::vec(any::<u8>(), 0..24).prop_map(|mut bytes| {
        bytes.retain(|b| HeaderValue::from_bytes(&[*b]).is_ok());
        bytes
    });
    prop_oneof![
        bytes,
        any::<u64>().prop_map(|n| n.to_string().into_bytes()),
        (0_u64..100_000).prop_map(|n| n.to_string().into_bytes()),
        any::<f64>().prop_map(|n| n.to_string().into_bytes()),
        any::<u64>().prop_map(|ns| go_text(Duration::from_nanos(ns)).into_bytes()),
        (0_u64..200_000_000).prop_map(|ms| go_text(Duration::from_millis(ms)).into_bytes()),
    ]
}

fn sane(seen: &Observation, cost: &Cost) -> Result<(), TestCaseError> {
    for reading in &seen.readings {
        for number in [reading.limit, reading.remaining].into_iter().flatten() {
            prop_assert!(number.is_finite() && number >= 0.0, "{reading:?}");
        }
        prop_assert!(reading.limit.is_none_or(|limit| limit > 0.0), "{reading:?}");
        prop_assert!(reading.level.is_none_or(f64::is_finite), "{reading:?}");
        if let (Some(level), Some(remaining), Some(limit)) = (reading.level, reading.remaining, reading.limit) {
            prop_assert!(level <= remaining + 1.0 && level >= -1.1 * limit, "{reading:?}");
            prop_assert!(remaining == 0.0 || level >= remaining, "{reading:?}");
        }
    }
    prop_assert!(seen.retry_after.is_none_or(|wait| !wait.is_zero()));
    let reaction = reflex(Dialect::OpenAi, seen, cost);
    for hold in &reaction.holds {
        prop_assert!(!hold.for_at_least.is_zero() && hold.for_at_least <= HOLD_MAX, "{reaction:?}");
    }
    prop_assert_eq!(reaction.long.is_none() || !reaction.holds.is_empty(), true);
    let refusal = matches!(seen.ending, Ending::Throttled(_));
    prop_assert_eq!(refusal, reaction != Reflex::default());
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn no_header_can_upset_the_reader(
        values in prop::collection::vec((0_usize..9, value()), 0..12),
        status in prop_oneof![Just(200_u16), Just(429), Just(503), any::<u16>()],
        body in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..64),
            ("[a-z_]{0,8}|tokens|requests|slow_down", "[a-z_]{0,8}", "\\PC{0,20}")
                .prop_map(|(kind, code, message)| error_body(&kind, &code, &format!("try again in {message}"))),
        ],
        tokens in any::<u64>(),
    ) {
        const NAMES: [&str; 9] = [
            "x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests",
            "x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens",
            "retry-after", "retry-after-ms", "date",
        ];
        let mut map = HeaderMap::new();
        for (name, value) in &values {
            if let Ok(value) = HeaderValue::from_bytes(value) {
                map.append(NAMES[*name], value);
            }
        }
        let cost = Cost::request(tokens, tokens);
        let seen = Dialect::OpenAi.read(&Head { status, headers: &map }, SENT);
        sane(&seen, &cost)?;
        sane(&Dialect::OpenAi.refine(seen, &body), &cost)?;
    }

    /// What a provider with the documented arithmetic prints is read back to within its rounding.
    #[test]
    fn a_continuous_bucket_is_read_back(
        limit in 1_u32..2_000_000, part in 0.0..1.3_f64, day in any::<bool>(),
    ) {
        let (limit, window) = (f64::from(limit), if day { 86_400.0 } else { 60.0 });
        let spent = (limit * part).max(1.0);
        let level = limit - spent;
        let remaining = level.max(0.0).floor();
        let reset = (spent / limit * window * 1_000.0).round();
        // Rounded to nothing, or one window's answer being also another's, a window cannot be told.
        prop_assume!(!day || (reset > 60.0 * limit / spent && reset > 150_000.0));
        let text = go_text(Duration::from_millis(reset as u64));
        prop_assume!(text != "1m0s");
        let seen = reading("tokens", &limit.to_string(), &remaining.to_string(), &text);
        prop_assert_eq!(seen.meter.window.seconds(), window);
        let off = (seen.level.unwrap() - level).abs();
        let rounding = 0.001 * limit / window + 1e-6;
        let bound = if level < 0.0 { rounding } else { rounding.min(1.0) };
        prop_assert!(off <= bound, "off by {}", off);
    }

    #[test]
    fn go_durations_round_trip(ns in 0_u64..34_000_000_000_000_000) {
        let span = Duration::from_nanos(ns);
        prop_assert_eq!(parse_go_duration(&go_text(span)), Some(span));
    }
}
