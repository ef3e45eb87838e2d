//! Quirks of refusals, and what a member does about them: each was read wrong once.

use std::time::Duration;

use tidegate::observation::Ending;
use tidegate::provider::{Class, Dialect, Head, Observation, Reason, reflex};
use tidegate::quota::{Cost, Meter, Unit, Window};

use crate::provider_rows::{Pairs, SENT, map, missing, read};

const RPM: Meter = Meter::REQUESTS_PER_MINUTE;
const TPM: Meter = Meter::TOKENS_PER_MINUTE;

const fn meter(unit: Unit, window: Window) -> Meter {
    Meter { unit, window }
}

fn observe(dialect: Dialect, pairs: Pairs<'_>, body: &str) -> Observation {
    dialect.observe(&Head { status: 429, headers: &map(pairs) }, Some(body.as_bytes()), SENT)
}

fn holds(dialect: Dialect, seen: &Observation, cost: &Cost) -> Vec<(Meter, f64)> {
    let reaction = reflex(dialect, seen, cost);
    reaction.holds.iter().map(|hold| (hold.meter, hold.for_at_least.as_secs_f64())).collect()
}

#[test]
fn openrouters_day_is_no_hour() {
    // 20 minutes before midnight UTC.
    let pairs = [
        ("x-ratelimit-limit", "50"),
        ("x-ratelimit-remaining", "0"),
        ("x-ratelimit-reset", "1760054400000"),
        ("date", "Thu, 09 Oct 2025 23:40:00 GMT"),
    ];
    let seen = read(Dialect::OpenRouter, 429, &pairs);
    assert_eq!(seen.exhausted, [meter(Unit::Requests, Window::Day)]);
}

#[test]
fn a_fixed_window_is_held_until_its_reset_and_no_longer() {
    let pairs = [("x-ratelimit-limit", "60"), ("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "3")];
    let seen = read(Dialect::Bare, 429, &pairs);
    assert_eq!(holds(Dialect::Bare, &seen, &Cost::request(1, 0)), [(RPM, 3.0)]);
    let pairs = [
        ("x-ratelimit-limit-tokens-minute", "6000"),
        ("x-ratelimit-remaining-tokens-minute", "0"),
        ("x-ratelimit-reset-tokens-minute", "3.5"),
    ];
    let seen = read(Dialect::Cerebras, 429, &pairs);
    // A whole window's tokens; the next window holds them.
    assert_eq!(holds(Dialect::Cerebras, &seen, &Cost::request(6_000, 0)), [(TPM, 3.5)]);
}

#[test]
fn a_reset_that_tells_when_to_retry_is_waited_for() {
    let replicate = [("ratelimit-remaining", "0"), ("ratelimit-reset", "7")];
    let together = [("x-ratelimit-limit", "10"), ("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "2")];
    let ocean = [
        ("x-ratelimit-limit-tokens-per-minute", "1000"),
        ("x-ratelimit-remaining-tokens-per-minute", "0"),
        ("x-ratelimit-reset-tokens-per-minute", "1760046583"),
        ("date", "Thu, 09 Oct 2025 21:49:34 GMT"),
    ];
    for (dialect, pairs, wait) in [
        (Dialect::Replicate, &replicate[..], 7.0),
        (Dialect::Together, &together, 2.0),
        (Dialect::DigitalOcean, &ocean, 9.0),
    ] {
        let waits = holds(dialect, &read(dialect, 429, pairs), &Cost::request(1, 0));
        assert_eq!(waits.iter().map(|(_, wait)| *wait).collect::<Vec<_>>(), [wait], "{dialect}");
    }
}

#[test]
fn a_refusal_that_names_no_meter_waits_for_a_reset_that_tells_when_to_retry() {
    let pairs = [("x-ratelimit-limit", "10"), ("x-ratelimit-remaining", "5"), ("x-ratelimit-reset", "2")];
    let told = |dialect: Dialect| {
        let seen = read(dialect, 429, &pairs);
        assert!(seen.exhausted.is_empty(), "{dialect}: {:?}", seen.exhausted);
        dialect.semantics().told_wait(&seen, &Cost::request(1, 0))
    };
    assert_eq!(told(Dialect::Together), Some(Duration::from_secs(2)));
    assert_eq!(told(Dialect::Bare), None, "when a window ends that has room is nothing to wait for");
}

#[test]
fn a_window_that_ends_within_the_second_is_waited_for_by_a_second() {
    let pairs = [("x-ratelimit-limit", "60"), ("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "0")];
    let seen = read(Dialect::Bare, 429, &pairs);
    assert_eq!(holds(Dialect::Bare, &seen, &Cost::request(1, 0)), [(RPM, 1.0)]);
}

#[test]
fn of_two_policies_over_one_meter_the_one_with_less_left_counts() {
    let pairs = [
        ("ratelimit-policy", "\"key\";q=1000;w=60, \"model\";q=100;w=60"),
        ("ratelimit", "\"key\";r=900;t=5, \"model\";r=3;t=9"),
    ];
    let seen = read(Dialect::Ietf, 200, &pairs);
    let told: Vec<_> = seen.readings.iter().map(|reading| (reading.meter, reading.limit, reading.remaining)).collect();
    assert_eq!(told, [(RPM, Some(100.0), Some(3.0))]);
    // A policy of which nothing is told but its limit takes no measured level away.
    let pairs =
        [("ratelimit-limit", "100, 50;w=60, 1000;w=3600"), ("ratelimit-remaining", "90"), ("ratelimit-reset", "7")];
    let seen = read(Dialect::Ietf, 200, &pairs);
    let minute = seen.readings.iter().find(|reading| reading.meter == RPM);
    assert_eq!(minute.map(|reading| reading.remaining), Some(Some(90.0)), "{:?}", seen.readings);
}

#[test]
fn azures_refusal_is_of_the_window_that_its_renewal_period_tells() {
    let pairs = [
        ("x-ratelimit-limit-requests", "10"),
        ("x-ratelimit-remaining-requests", "0"),
        ("x-ratelimit-renewalperiod-requests", "10"),
        ("x-ratelimit-type", "Requests"),
        ("retry-after", "4"),
    ];
    let seen = read(Dialect::Azure, 429, &pairs);
    let ten = Window::from_seconds(10).expect("a window");
    assert_eq!(
        (seen.exhausted.as_slice(), seen.retry_after),
        ([meter(Unit::Requests, ten)].as_slice(), Some(Duration::from_secs(4)))
    );
    let pairs = [
        ("x-ratelimit-limit-tokens", "1000"),
        ("x-ratelimit-remaining-tokens", "0"),
        ("x-ratelimit-renewalperiod-tokens", "3600"),
        ("retry-after", "600"),
    ];
    let seen = read(Dialect::Azure, 429, &pairs);
    assert_eq!(seen.retry_after, Some(Duration::from_secs(600)), "an hour's limit may ask for ten minutes");
}

#[test]
fn azures_reset_alone_is_a_wait() {
    let pairs = [("x-rate-limit-reset-tokens", "9"), ("policy-id", "DeploymentRatelimit-Token")];
    let seen = read(Dialect::Azure, 429, &pairs);
    assert_eq!((seen.retry_after, seen.exhausted.as_slice()), (Some(Duration::from_secs(9)), [TPM].as_slice()));
    assert!(seen.missing.is_empty(), "{:?}", seen.missing);
    assert_eq!(read(Dialect::Azure, 200, &pairs).retry_after, None);
}

#[test]
fn an_invalid_request_is_the_callers_only_where_it_speaks_of_jobs() {
    let body = |message: &str| {
        format!(r#"{{"error":{{"type":"invalid_request_error","code":"rate_limit_exceeded","message":"{message}"}}}}"#)
    };
    let class = |message: &str| observe(Dialect::OpenAi, &[], &body(message)).class;
    assert_eq!(class("You have reached the maximum of 1 active requests (1 running, 0 pending)."), Class::Ignored);
    assert_eq!(class("Rate limit reached on requests per min (RPM): Limit 3, Used 3, Requested 1."), Class::Throttled);
}

#[test]
fn limits_on_images_and_audio_are_charged_to_no_meter_of_ours() {
    let pairs = [
        ("x-ratelimit-limit-requests", "60"),
        ("x-ratelimit-remaining-requests", "59"),
        ("x-ratelimit-reset-requests", "1s"),
    ];
    for (kind, what) in [("input-images", "input-images per min"), ("requests", "audio seconds per minute")] {
        let body = format!(
            r#"{{"error":{{"type":"{kind}","code":"rate_limit_exceeded","message":"Rate limit reached for m on {what}: Limit 5, Used 5, Requested 1. Please try again in 12s."}}}}"#
        );
        let seen = observe(Dialect::OpenAi, &pairs, &body);
        // Text that waits for images to be allowed again, or is lowered for them, would be held back for nothing.
        assert_eq!((seen.class, seen.ending), (Class::Throttled, Ending::Ignored), "{what}");
        assert!(seen.exhausted.is_empty() && holds(Dialect::OpenAi, &seen, &Cost::request(1, 0)).is_empty(), "{what}");
        assert_eq!(seen.retry_after, Some(Duration::from_secs(12)));
        let told = Dialect::OpenAi.semantics().told_wait(&seen, &Cost::request(1, 0));
        assert_eq!(told, Some(Duration::from_secs(12)), "whoever sent images knows when to come back");
    }
}

#[test]
fn input_and_output_tokens_stand_under_the_type_tokens() {
    for (short, unit) in [("ITPM", Unit::InputTokens), ("OTPM", Unit::OutputTokens), ("TPM", Unit::Tokens)] {
        let body = format!(
            r#"{{"error":{{"type":"tokens","code":"rate_limit_exceeded","message":"Rate limit reached on tokens per minute ({short}): Limit 100, Used 90, Requested 20."}}}}"#
        );
        assert_eq!(observe(Dialect::Groq, &[], &body).exhausted, [meter(unit, Window::Minute)], "{short}");
    }
}

#[test]
fn a_refusal_that_names_nothing_does_not_wait_for_a_days_end() {
    let pairs = [
        ("ratelimit-limit", "14400"),
        ("ratelimit-remaining", "14000"),
        ("ratelimit-reset", "40000"),
        ("ratelimit-policy", "14400;w=86400"),
    ];
    let seen = read(Dialect::Ietf, 429, &pairs);
    let reaction = reflex(Dialect::Ietf, &seen, &Cost::request(1, 0));
    assert_eq!((reaction.long, holds(Dialect::Ietf, &seen, &Cost::request(1, 0))), (None, vec![(RPM, 0.5)]));
}

#[test]
fn togethers_dynamic_rates_are_two_buckets() {
    let pairs = [
        ("x-ratelimit-limit-dynamic", "1"),
        ("x-ratelimit-remaining-dynamic", "0"),
        ("x-tokenlimit-limit-dynamic", "500"),
        ("x-tokenlimit-remaining-dynamic", "400"),
    ];
    let seen = read(Dialect::Together, 200, &pairs);
    let told: Vec<_> = seen.others.iter().map(|other| (other.what, other.limit, other.remaining)).collect();
    assert_eq!(told, [("dynamic_requests", Some(1.0), Some(0.0)), ("dynamic_tokens", Some(500.0), Some(400.0))]);
    assert!(seen.missing.is_empty(), "{:?}", seen.missing);
}

#[test]
fn mistrals_tokens_alone_are_not_taken_for_cerebras() {
    let looks = |pairs: Pairs<'_>| Dialect::detect(&Head { status: 429, headers: &map(pairs) }, None);
    let tokens = [("x-ratelimit-limit-tokens-minute", "500000"), ("x-ratelimit-remaining-tokens-minute", "500000")];
    assert_eq!(looks(&tokens), Some(Dialect::Mistral));
    let all = [tokens[0], ("x-ratelimit-limit-requests-day", "14400")];
    assert_eq!(looks(&all), Some(Dialect::Cerebras));
}

#[test]
fn limits_too_small_to_be_any_are_left_out_and_the_rest_is_read() {
    for tiny in ["0", "0.0", &format!("0.{}1", "0".repeat(310)), &format!("0.{}1", "0".repeat(320))] {
        let pairs = [("x-ratelimit-limit", tiny), ("x-ratelimit-remaining", "0"), ("x-ratelimit-limit-tokens", "500")];
        let seen = read(Dialect::Together, 200, &pairs);
        assert_eq!(seen.readings.len(), 1, "{tiny}");
        assert!(missing(&seen).contains(&("x-ratelimit-limit", Reason::Zero)), "{:?}", seen.missing);
    }
}

#[test]
fn gemini_lists_a_limit_several_times_and_the_narrowest_stands_once() {
    let id =
        |kind: &str, value: &str| format!(r#"{{"quotaId":"Generate{kind}PerModelPerMinute","quotaValue":"{value}"}}"#);
    let body = format!(
        r#"{{"error":{{"code":429,"status":"RESOURCE_EXHAUSTED","message":"","details":[{{"@type":"type.googleapis.com/google.rpc.QuotaFailure","violations":[{},{},{}]}}]}}}}"#,
        id("Requests", "15"),
        id("InputTokens", "1000"),
        id("Requests", "5"),
    );
    let seen = observe(Dialect::Gemini, &[], &body);
    let told: Vec<_> = seen.readings.iter().map(|r| (r.meter, r.limit)).collect();
    assert_eq!(told.len(), 2);
    assert!(told.contains(&(RPM, Some(5.0))), "{told:?}");
}

#[test]
fn ietf_policies_come_in_any_order_and_what_cannot_be_read_of_a_state_is_noted() {
    let pairs = [
        ("ratelimit", "\"day\";t=40000;r=900,\"burst\";r=5"),
        ("ratelimit-policy", "\"burst\";w=60;q=10"),
        ("ratelimit-policy", "\"day\";q=1000;w=86400"),
    ];
    let seen = read(Dialect::Ietf, 200, &pairs);
    let told: Vec<_> = seen.readings.iter().map(|r| (r.meter, r.limit, r.remaining, r.reset)).collect();
    let day = meter(Unit::Requests, Window::Day);
    assert_eq!(
        told,
        [(day, Some(1_000.0), Some(900.0), Some(Duration::from_secs(40_000))), (RPM, Some(10.0), Some(5.0), None)]
    );
    let seen = read(Dialect::Ietf, 200, &[("ratelimit", "\"a\";r=5;t=soon")]);
    assert_eq!(missing(&seen), [("ratelimit", Reason::NotANumber)]);
    // The limit's only item has its window with it.
    let seen = read(Dialect::Ietf, 200, &[("ratelimit-limit", "100;w=1"), ("ratelimit-remaining", "7")]);
    assert_eq!(seen.readings[0].meter, meter(Unit::Requests, Window::Second));
}

#[test]
fn times_with_a_character_in_a_digits_place_are_none_and_end_nothing() {
    let reset = |date: &str, reset: &str| {
        let pairs = [
            ("date", date),
            ("anthropic-ratelimit-requests-limit", "50"),
            ("anthropic-ratelimit-requests-remaining", "49"),
            ("anthropic-ratelimit-requests-reset", reset),
        ];
        // As lines: no HTTP library lets all of these through.
        let lines = pairs.map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec())).to_vec();
        let seen = Dialect::Anthropic.read(&Head { status: 200, headers: &lines }, SENT);
        let told = seen.missing.iter().map(|missing| missing.reason).next();
        (seen.readings[0].reset.map(|reset| reset.as_secs_f64()), told)
    };
    let date = "Sun, 06 Nov 1994 08:49:37 GMT";
    assert_eq!(reset(date, "1994-11-06T08:49:40Z"), (Some(3.0), None));
    let times = ["1994-11-06T08:49: 3Z", "1994- 1-06T08:49:03Z", "+994-11-06T08:49:03Z", "xxxx-11-06T08:49:03Z"];
    // As the memory of a minute that was read might begin: it is none that anybody sent.
    let zeros = format!("{}43Z", "\0".repeat(17));
    for odd in times.into_iter().chain([zeros.as_str()]) {
        assert_eq!(reset(date, odd), (None, Some(Reason::NotATime)), "{odd:?}");
    }
    for odd in ["Sun, xx Nov 1994 08:49:37 GMT", "Sun, 06 Nov 1994 08:49:~7 GMT"] {
        assert_eq!(reset(odd, "1994-11-06T08:49:40Z"), (None, Some(Reason::NoDate)), "{odd:?}");
    }
}
