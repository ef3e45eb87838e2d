//! One test for each provider: header values as they were recorded or documented, and what is read of them. With these the
//! suite passes without the recordings; `corpus` reads those.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use tidegate::clock::{MonoTime, UnixMillis};
use tidegate::observation::{Ending, ThrottleKind};
use tidegate::provider::{
    Class, Dialect, Head, LimitOf, Observation, Reason, ReceivedAt, Refill, RemainingCounts, ResetMeaning, unread,
};
use tidegate::quota::Meter;

pub const SENT: MonoTime = MonoTime::from_millis(5_000);

pub type Pairs<'a> = &'a [(&'a str, &'a str)];

pub fn map(pairs: Pairs<'_>) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in pairs {
        let value = HeaderValue::from_bytes(value.as_bytes()).expect(value);
        map.append(name.parse::<HeaderName>().expect(name), value);
    }
    map
}

pub fn read(dialect: Dialect, status: u16, pairs: Pairs<'_>) -> Observation {
    dialect.read(&Head { status, headers: &map(pairs) }, SENT)
}

/// What the headers look like.
fn detected(pairs: Pairs<'_>) -> Option<Dialect> {
    Dialect::detect(&Head { status: 200, headers: &map(pairs) }, None)
}

/// A reading, or a bucket that is no meter's: name, limit, remaining, reset in ms.
type Line<'a> = (&'a str, Option<f64>, Option<f64>, Option<u64>);

type Told = (String, Option<f64>, Option<f64>, Option<u64>);

fn told(seen: &Observation) -> Vec<Told> {
    let ms = |reset: Option<Duration>| reset.map(|reset| u64::try_from(reset.as_millis()).expect("short"));
    let ours = seen.readings.iter().map(|r| (r.meter.to_string(), r.limit, r.remaining, ms(r.reset)));
    let others = seen.others.iter().map(|r| (r.to_string(), r.limit, r.remaining, ms(r.reset)));
    ours.chain(others).collect()
}

pub fn missing(seen: &Observation) -> Vec<(&str, Reason)> {
    seen.missing.iter().map(|missing| (missing.header.as_str(), missing.reason)).collect()
}

/// An answer that looks like `dialect`, is read as told, and of which nothing is left.
fn reads(dialect: Dialect, pairs: Pairs<'_>, lines: &[Line<'_>]) -> Observation {
    assert_eq!(detected(pairs), Some(dialect), "{pairs:?}");
    let seen = read(dialect, 200, pairs);
    let expected: Vec<_> = lines.iter().map(|(name, l, r, reset)| ((*name).to_owned(), *l, *r, *reset)).collect();
    assert_eq!(told(&seen), expected, "{pairs:?}");
    let left = unread(dialect, &Head { status: 200, headers: &map(pairs) });
    assert!(left.unknown.is_empty() && left.foreign.is_empty(), "{left:?}");
    assert_eq!((seen.class, seen.ending, seen.retry_after), (Class::Ok, Ending::Succeeded, None));
    // As the one it looks like, it is read the same.
    let auto = read(Dialect::Auto, 200, pairs);
    assert_eq!((auto.dialect, &auto.readings), (dialect, &seen.readings));
    seen
}

const fn full(limit: f64, remaining: f64, reset_ms: u64) -> (Option<f64>, Option<f64>, Option<u64>) {
    (Some(limit), Some(remaining), Some(reset_ms))
}

fn line(name: &str, (limit, remaining, reset): (Option<f64>, Option<f64>, Option<u64>)) -> Line<'_> {
    (name, limit, remaining, reset)
}

const fn left(limit: f64, remaining: f64) -> (Option<f64>, Option<f64>, Option<u64>) {
    (Some(limit), Some(remaining), None)
}

#[test]
fn openai() {
    let pairs = [
        ("openai-processing-ms", "508"),
        ("x-ratelimit-limit-input-images", "50000"),
        ("x-ratelimit-limit-requests", "500"),
        ("x-ratelimit-limit-tokens", "200000"),
        ("x-ratelimit-remaining-input-images", "49999"),
        ("x-ratelimit-remaining-requests", "497"),
        ("x-ratelimit-remaining-tokens", "199208"),
        ("x-ratelimit-reset-input-images", "1ms"),
        ("x-ratelimit-reset-requests", "241ms"),
        ("x-ratelimit-reset-tokens", "237ms"),
    ];
    let seen = reads(
        Dialect::OpenAi,
        &pairs,
        &[
            line("requests/minute", full(500.0, 497.0, 241)),
            line("tokens/minute", full(200_000.0, 199_208.0, 237)),
            line("input_images/minute", full(50_000.0, 49_999.0, 1)),
        ],
    );
    assert!(seen.missing.is_empty());
    let more = [
        ("openai-version", "1"),
        ("x-ratelimit-limit-project-tokens", "1000"),
        ("x-ratelimit-remaining-project-tokens", "999"),
    ];
    assert_eq!(told(&read(Dialect::OpenAi, 200, &more))[0].0, "project_tokens/minute");
    for spelling in ["x-ratelimit-limit-tokens_usage_based", "x-ratelimit-limit-tokens-usage-based"] {
        assert_eq!(told(&read(Dialect::OpenAi, 200, &[(spelling, "7")]))[0].0, "usage_based_tokens/minute");
    }
    // A fixed window, of one organisation: the reset tells nothing of the level, and says so.
    let odd = [
        ("x-ratelimit-limit-requests", "30000"),
        ("x-ratelimit-remaining-requests", "29999"),
        ("x-ratelimit-reset-requests", "1m0s"),
    ];
    assert_eq!(missing(&read(Dialect::OpenAi, 200, &odd)), [("x-ratelimit-reset-requests", Reason::Contradicts)]);
}

/// Units of Azure's reset: ms until spring 2026, whole seconds rounded down since.
#[test]
fn azure() {
    let head = |limit, remaining, reset, key: &[(&'static str, &'static str)]| {
        let mut pairs = vec![
            ("x-ratelimit-limit-requests", limit),
            ("x-ratelimit-remaining-requests", remaining),
            ("x-ratelimit-reset-requests", reset),
            ("x-ratelimit-renewalperiod-requests", "60"),
            ("x-ratelimit-abusepenalty-active", "False"),
        ];
        pairs.extend(key);
        pairs
    };
    let key = [("x-ratelimit-key", "gpt-4.1")];
    type Row = (&'static str, &'static str, &'static str, bool, Option<u64>);
    let table: [Row; 8] = [
        ("120", "119", "500", false, Some(500)),
        ("1000", "999", "60", false, Some(60)),
        ("50", "48", "1971", false, Some(1_971)),
        ("50000", "49910", "108", false, Some(108)),
        ("50", "49", "1", true, Some(1_000)),
        ("250000", "249988", "0", true, Some(0)),
        // The same without the key: the one unit that fits.
        ("50", "49", "1", false, Some(1_000)),
        // Neither: cached too long.
        ("1000", "999", "7300", false, None),
    ];
    for (limit, remaining, reset, keyed, ms) in table {
        let pairs = head(limit, remaining, reset, if keyed { &key } else { &[] });
        let number = |text: &str| text.parse::<f64>().expect(text);
        let seen =
            reads(Dialect::Azure, &pairs, &[("requests/minute", Some(number(limit)), Some(number(remaining)), ms)]);
        let level = seen.readings[0].level.expect("is told");
        assert!((number(remaining)..=number(remaining) + 1.0).contains(&level), "{limit} {remaining} {reset}: {level}");
        let reason: &[_] = if ms.is_none() { &[("x-ratelimit-reset-requests", Reason::Contradicts)] } else { &[] };
        assert_eq!(missing(&seen), reason);
    }
    // Older versions of the API: two headers, no limit.
    reads(
        Dialect::Azure,
        &[("x-ratelimit-remaining-requests", "119"), ("x-ratelimit-remaining-tokens", "119998")],
        &[("requests/minute", None, Some(119.0), None), ("tokens/minute", None, Some(119_998.0), None)],
    );
    // -1 is "not known".
    let unknown = read(Dialect::Azure, 200, &head("-1", "-1", "0", &[]));
    assert!(unknown.readings.is_empty());
    let reasons: Vec<Reason> = unknown.missing.iter().map(|missing| missing.reason).collect();
    assert_eq!(reasons, [Reason::Negative, Reason::Negative, Reason::NoLimit]);
}

#[test]
fn anthropic() {
    let pairs = [
        ("date", "Tue, 21 Apr 2026 19:25:31 GMT"),
        ("anthropic-ratelimit-input-tokens-limit", "5000000"),
        ("anthropic-ratelimit-input-tokens-remaining", "4999000"),
        ("anthropic-ratelimit-input-tokens-reset", "2026-04-21T19:25:30Z"),
        ("anthropic-ratelimit-requests-limit", "20000"),
        ("anthropic-ratelimit-requests-remaining", "19999"),
        ("anthropic-ratelimit-requests-reset", "2026-04-21T19:25:33Z"),
        ("anthropic-priority-input-tokens-limit", "10000"),
        ("anthropic-priority-input-tokens-remaining", "9000"),
        ("anthropic-ratelimit-unified-status", "allowed"),
        ("retry-after", "37"),
    ];
    reads(
        Dialect::Anthropic,
        &pairs,
        &[
            // In the past: taken at admission, and Date is of the answer.
            line("input_tokens/minute", full(5e6, 4.999e6, 0)),
            line("requests/minute", full(20_000.0, 19_999.0, 2_000)),
            line("priority_input_tokens/minute", left(10_000.0, 9_000.0)),
        ],
    );
    // Without Date there is nothing to measure an instant by, but our own clock if it may be used.
    let undated = map(&pairs[4..7]);
    let head = Head { status: 200, headers: &undated };
    let seen = Dialect::Anthropic.read(&head, SENT);
    assert_eq!(missing(&seen), [("anthropic-ratelimit-requests-reset", Reason::NoDate)]);
    let wall = Some(UnixMillis(1_776_799_531_000));
    let seen = Dialect::Anthropic.observe(&head, None, ReceivedAt { sent_at: SENT, wall });
    assert_eq!(seen.readings[0].reset, Some(Duration::from_secs(2)));
    // The epoch is "not set".
    let unset = [pairs[0], pairs[4], pairs[5], ("anthropic-ratelimit-requests-reset", "1970-01-01T00:00:00Z")];
    let seen = read(Dialect::Anthropic, 200, &unset);
    assert_eq!((seen.readings[0].reset, seen.faults()), (None, 0));
}

#[test]
fn groq() {
    let pairs = [
        ("x-ratelimit-limit-requests", "14400"),
        ("x-ratelimit-limit-tokens", "6000"),
        ("x-ratelimit-remaining-requests", "14370"),
        ("x-ratelimit-remaining-tokens", "5983"),
        ("x-ratelimit-reset-requests", "2m59.999999999s"),
        ("x-ratelimit-reset-tokens", "172.799999ms"),
    ];
    reads(
        Dialect::Groq,
        &pairs,
        &[line("requests/day", full(14_400.0, 14_370.0, 179_999)), line("tokens/minute", full(6_000.0, 5_983.0, 172))],
    );
    // Full buckets: requests are by the day all the same.
    let fresh = [("x-ratelimit-limit-requests", "14400"), ("x-ratelimit-remaining-requests", "14400")];
    assert_eq!(told(&read(Dialect::Groq, 200, &fresh))[0].0, "requests/day");
    let hidden = Dialect::Groq.semantics().hidden;
    assert!(hidden.contains(&Meter::REQUESTS_PER_MINUTE));
}

#[test]
fn mistral() {
    reads(
        Dialect::Mistral,
        &[
            ("x-ratelimit-limit-req-60-second", "360"),
            ("x-ratelimit-limit-tokens-5-minute", "600000"),
            ("x-ratelimit-limit-tokens-month", "200000000000"),
            ("x-ratelimit-remaining-req-60-second", "337"),
            ("x-ratelimit-remaining-tokens-5-minute", "594073"),
            ("x-ratelimit-remaining-tokens-month", "199999985600"),
            ("x-ratelimit-tokens-query-cost", "50"),
        ],
        &[
            line("requests/minute", left(360.0, 337.0)),
            line("tokens/300s", left(600_000.0, 594_073.0)),
            line("tokens/month", left(2e11, 199_999_985_600.0)),
        ],
    );
    reads(
        Dialect::Mistral,
        &[("x-ratelimit-limit-req-10-second", "60"), ("x-ratelimit-remaining-req-10-second", "58")],
        &[line("requests/10s", left(60.0, 58.0))],
    );
    // 2024.
    reads(
        Dialect::Mistral,
        &[
            ("ratelimitbysize-limit", "2000000"),
            ("ratelimitbysize-query-cost", "32004"),
            ("ratelimitbysize-remaining", "1583879"),
            ("ratelimitbysize-reset", "39"),
            ("x-ratelimitbysize-limit-month", "10000000000"),
            ("x-ratelimitbysize-remaining-month", "9998399515"),
        ],
        &[line("tokens/minute", full(2e6, 1_583_879.0, 39_000)), line("tokens/month", left(1e10, 9_998_399_515.0))],
    );
    reads(
        Dialect::Mistral,
        &[
            ("x-ratelimit-limit-ocr-pages-minute", "60"),
            ("x-ratelimit-remaining-ocr-pages-minute", "59"),
            ("x-ratelimit-ocr-pages-query-cost", "1"),
        ],
        &[line("ocr_pages/minute", left(60.0, 59.0))],
    );
}

#[test]
fn together() {
    let pairs = [
        ("retry-after", "2"),
        ("x-ratelimit", "false"),
        ("x-ratelimit-limit", "0.1666666667"),
        ("x-ratelimit-limit-dynamic", "1"),
        ("x-ratelimit-limit-tokens", "33333.333333333336"),
        ("x-ratelimit-remaining", "19"),
        ("x-ratelimit-remaining-dynamic", "0"),
        ("x-ratelimit-remaining-tokens", "33333.333333333336"),
        ("x-ratelimit-reset", "2"),
    ];
    reads(
        Dialect::Together,
        &pairs,
        &[
            // More than the limit: what is stored is limit × reset, and bursts.
            line("requests/second", full(0.166_666_666_7, 19.0, 2_000)),
            line("tokens/second", left(33_333.333_333_333_336, 33_333.333_333_333_336)),
            line("dynamic_requests/second", left(1.0, 0.0)),
        ],
    );
    // A token limit of 0 is not told.
    let none = [("x-ratelimit-limit-tokens", "0"), ("x-ratelimit-remaining-tokens", "0")];
    let seen = read(Dialect::Together, 200, &none);
    assert_eq!(
        missing(&seen),
        [("x-ratelimit-limit-tokens", Reason::Zero), ("x-ratelimit-remaining-tokens", Reason::NoLimit)]
    );
    reads(
        Dialect::Together,
        &[("x-tokenlimit-limit", "4000"), ("x-tokenlimit-remaining", "3900")],
        &[line("tokens/second", left(4_000.0, 3_900.0))],
    );
}

#[test]
fn fireworks() {
    reads(
        Dialect::Fireworks,
        &[
            ("x-ratelimit-limit-tokens-prompt", "60000"),
            ("x-ratelimit-remaining-tokens-prompt", "59000"),
            ("x-ratelimit-limit-tokens-generated", "600"),
            ("x-ratelimit-limit-tokens-cache-adjusted-prompt", "30000"),
            ("x-ratelimit-over-limit", "no"),
            ("fireworks-prompt-tokens", "35"),
        ],
        &[
            line("input_tokens/second", left(60_000.0, 59_000.0)),
            ("output_tokens/second", Some(600.0), None, None),
            ("cache_adjusted_prompt_tokens/second", Some(30_000.0), None, None),
        ],
    );
}

#[test]
fn cerebras() {
    reads(
        Dialect::Cerebras,
        &[
            ("x-ratelimit-limit-requests-day", "14400"),
            ("x-ratelimit-limit-tokens-minute", "60000"),
            ("x-ratelimit-remaining-requests-day", "14398"),
            ("x-ratelimit-remaining-tokens-minute", "60000"),
            ("x-ratelimit-reset-requests-day", "15741.915870666504"),
            ("x-ratelimit-reset-tokens-minute", "21.915870666503906"),
        ],
        &[
            line("requests/day", full(14_400.0, 14_398.0, 15_741_915)),
            // Fixed windows: a full one ends too.
            line("tokens/minute", full(60_000.0, 60_000.0, 21_915)),
        ],
    );
    let unlimited = read(Dialect::Cerebras, 200, &[("x-ratelimit-remaining-tokens-day", "9223372036854767616")]);
    assert_eq!(missing(&unlimited), [("x-ratelimit-remaining-tokens-day", Reason::Unlimited)]);
    let semantics = Dialect::Cerebras.semantics();
    assert_eq!((semantics.refill, semantics.remaining), (Refill::FixedWindow, RemainingCounts::Lately));
}

#[test]
fn openrouter() {
    let pairs = [
        ("date", "Thu, 25 Dec 2025 09:13:46 GMT"),
        ("x-ratelimit-limit", "16"),
        ("x-ratelimit-remaining", "0"),
        ("x-ratelimit-reset", "1766654040000"),
    ];
    assert_eq!(detected(&pairs), Some(Dialect::OpenRouter));
    let seen = read(Dialect::OpenRouter, 429, &pairs);
    assert_eq!(told(&seen), [("requests/minute".to_owned(), Some(16.0), Some(0.0), Some(14_000))]);
    assert_eq!((seen.class, seen.exhausted), (Class::Throttled, vec![Meter::REQUESTS_PER_MINUTE]));
}

#[test]
fn xai() {
    let pairs = [
        ("x-ratelimit-limit-requests", "1800"),
        ("x-ratelimit-remaining-requests", "1799"),
        ("x-ratelimit-limit-tokens", "18446744073709551615"),
        ("x-ratelimit-remaining-tokens", "18446744073709548853"),
    ];
    let seen = reads(Dialect::Xai, &pairs, &[line("requests/minute", left(1_800.0, 1_799.0))]);
    assert!(seen.missing.iter().all(|missing| missing.reason == Reason::Unlimited) && seen.missing.len() == 2);
    assert_eq!(Dialect::Xai.semantics().reset, ResetMeaning::Untold);
}

#[test]
fn cohere() {
    reads(
        Dialect::Cohere,
        &[
            ("num_tokens", "73"),
            ("x-endpoint-monthly-call-limit", "1000"),
            ("x-trial-endpoint-call-limit", "40"),
            ("x-trial-endpoint-call-remaining", "39"),
        ],
        &[("requests/month", Some(1_000.0), None, None), line("requests/minute", left(40.0, 39.0))],
    );
}

#[test]
fn github_models() {
    let refused = [
        ("retry-after", "44"),
        ("x-ms-error-code", "RateLimitReached"),
        ("x-ratelimit-timeremaining", "44"),
        ("x-ratelimit-type", "UserByModelByMinute"),
    ];
    assert_eq!(detected(&refused), Some(Dialect::GitHubModels));
    let seen = read(Dialect::GitHubModels, 429, &refused);
    assert_eq!((seen.retry_after, seen.exhausted), (Some(Duration::from_secs(44)), vec![Meter::REQUESTS_PER_MINUTE]));
    let by_day = [("x-ratelimit-timeremaining", "7200"), ("x-ratelimit-type", "UserByModelByDay")];
    let seen = read(Dialect::GitHubModels, 429, &by_day);
    assert_eq!(
        (seen.ending, seen.retry_after),
        (Ending::Throttled(ThrottleKind::Daily), Some(Duration::from_secs(7_200)))
    );
    let at_a_time = [("retry-after", "0"), ("x-ratelimit-type", "UserConcurrentRequests")];
    let seen = read(Dialect::GitHubModels, 429, &at_a_time);
    assert_eq!((seen.ending, seen.retry_after), (Ending::Throttled(ThrottleKind::Concurrency), None));
}

#[test]
fn huggingface() {
    reads(
        Dialect::HuggingFace,
        &[("ratelimit", "\"api\";r=499;t=112"), ("ratelimit-policy", "\"fixed window\";\"api\";q=500;w=300")],
        &[line("requests/300s", full(500.0, 499.0, 112_000))],
    );
    // Kong's names beside the drafts'.
    reads(
        Dialect::Ietf,
        &[
            ("ratelimit-limit", "400"),
            ("ratelimit-remaining", "399"),
            ("ratelimit-reset", "19"),
            ("x-ratelimit-limit-minute", "400"),
            ("x-ratelimit-remaining-minute", "399"),
        ],
        &[line("requests/minute", left(400.0, 399.0))],
    );
}

#[test]
fn nebius() {
    reads(
        Dialect::Nebius,
        &[
            ("x-ratelimit-dynamic-period-remaining", "477s"),
            ("x-ratelimit-dynamic-scale-requests", "1.00"),
            ("x-ratelimit-limit-requests", "600"),
            ("x-ratelimit-limit-tokens", "400000"),
            ("x-ratelimit-over-limit", "no"),
            ("x-ratelimit-remaining-requests", "599"),
            ("x-ratelimit-remaining-tokens", "399460"),
            ("x-ratelimit-reset-requests", "1s"),
            ("x-ratelimit-reset-tokens", "1s"),
        ],
        &[line("requests/minute", full(600.0, 599.0, 1_000)), line("tokens/minute", full(400_000.0, 399_460.0, 1_000))],
    );
    let untold = read(Dialect::Nebius, 200, &[("x-ratelimit-limit-requests", "10000000000")]);
    assert_eq!(missing(&untold), [("x-ratelimit-limit-requests", Reason::Unlimited)]);
}

#[test]
fn sambanova() {
    let pairs = [
        ("date", "Thu, 25 Dec 2025 09:13:46 GMT"),
        ("x-ratelimit-limit-requests", "60"),
        ("x-ratelimit-remaining-requests", "59"),
        ("x-ratelimit-reset-requests", "1766654040"),
        ("x-ratelimit-limit-requests-day", "12000"),
        ("x-ratelimit-remaining-requests-day", "11000"),
        ("x-ratelimit-reset-requests-day", "1766707200"),
    ];
    reads(
        Dialect::SambaNova,
        &pairs,
        &[
            line("requests/minute", full(60.0, 59.0, 14_000)),
            line("requests/day", full(12_000.0, 11_000.0, 53_174_000)),
        ],
    );
}

#[test]
fn replicate() {
    reads(
        Dialect::Replicate,
        &[("ratelimit-remaining", "599"), ("ratelimit-reset", "1")],
        &[("requests/minute", None, Some(599.0), Some(1_000))],
    );
}

#[test]
fn bfl() {
    let pairs = [
        ("date", "Tue, 03 Jun 2025 13:27:13 GMT"),
        ("retry-after", "1"),
        ("x-ratelimit-limit", "1200"),
        ("x-ratelimit-remaining", "1199"),
        ("x-ratelimit-reset", "1748957234.1498647"),
    ];
    reads(Dialect::Bfl, &pairs, &[line("requests/minute", full(1_200.0, 1_199.0, 1_149))]);
}

#[test]
fn cloudflare_and_the_drafts() {
    reads(
        Dialect::Ietf,
        &[("ratelimit", "\"default\";r=1199;t=1"), ("ratelimit-policy", "\"default\";q=1200;w=300")],
        &[line("requests/300s", full(1_200.0, 1_199.0, 1_000))],
    );
    let of = |dialect: Dialect, pairs: Pairs<'_>| told(&read(dialect, 200, pairs));
    let cloudflare = of(Dialect::Cloudflare, &[("ratelimit", "\"default\";r=0;t=9")]);
    assert_eq!(cloudflare, [("requests/minute".to_owned(), None, Some(0.0), Some(9_000))]);
    type Row<'a> = (Pairs<'a>, &'a [Line<'a>], usize);
    let only = |limit| (Some(limit), None, None);
    let table: &[Row<'_>] = &[
        // 00–05: three fields, policies behind the limit.
        (
            &[("ratelimit-limit", "10, 10;w=1, 50;w=60"), ("ratelimit-remaining", "9"), ("ratelimit-reset", "1")],
            &[line("requests/second", full(10.0, 9.0, 1_000)), line("requests/minute", only(50.0))],
            0,
        ),
        // Two lines are one list.
        (
            &[("ratelimit-limit", "10, 10;w=1"), ("ratelimit-limit", "50;w=60"), ("ratelimit-remaining", "9")],
            &[line("requests/second", left(10.0, 9.0)), line("requests/minute", only(50.0))],
            0,
        ),
        // The reset tells at least how long the window is.
        (
            &[("ratelimit-limit", "5000"), ("ratelimit-remaining", "100"), ("ratelimit-reset", "36000")],
            &[line("requests/day", full(5_000.0, 100.0, 36_000_000))],
            0,
        ),
        // The limit in force is another than the policy's.
        (
            &[("ratelimit-limit", "10, 100;w=60"), ("ratelimit-remaining", "9"), ("ratelimit-reset", "50")],
            &[line("requests/minute", full(10.0, 9.0, 50_000))],
            0,
        ),
        // 06: policies in a field of their own.
        (
            &[("ratelimit-limit", "100"), ("ratelimit-policy", "100;w=10, 1000;w=3600"), ("ratelimit-remaining", "7")],
            &[line("requests/10s", left(100.0, 7.0)), line("requests/hour", only(1_000.0))],
            0,
        ),
        // 07: a dictionary.
        (
            &[("ratelimit", "limit=100, remaining=50, reset=5"), ("ratelimit-policy", "100;w=60")],
            &[line("requests/minute", full(100.0, 50.0, 5_000))],
            0,
        ),
        // 08 on: lists, several policies at once, without a blank after the comma, other units, partition keys.
        (
            &[
                ("ratelimit-policy", "\"burst\";q=100;w=60,\"daily\";q=1000;w=86400"),
                ("ratelimit", "\"daily\";r=10;t=3600, \"burst\";r=99;pk=:cHsdsRa894==:"),
            ],
            &[line("requests/day", full(1_000.0, 10.0, 3_600_000)), line("requests/minute", left(100.0, 99.0))],
            0,
        ),
        (
            &[("ratelimit-policy", "\"peruser\";q=65535;qu=\"content-bytes\";w=10;pk=:sdfjLJUOUH==:")],
            &[line("content_bytes/10s", only(65_535.0))],
            0,
        ),
        (
            &[("ratelimit-policy", "quota;q=100;w=1"), ("ratelimit", "quota;r=3;t=1")],
            &[line("requests/second", full(100.0, 3.0, 1_000))],
            0,
        ),
        // Malformed fields are ignored, and said to be.
        (&[("ratelimit", "quota;t=1")], &[], 1),
        (&[("ratelimit", "limit=12,    \\")], &[], 1),
        (&[("ratelimit", "\"default;r=5")], &[], 1),
        (&[("ratelimit-remaining", "6          ; using 50% of throughput, that is 6 units/s")], &[], 1),
        (&[("ratelimit-reset", "50")], &[], 1),
    ];
    for (pairs, lines, lost) in table {
        let seen = read(Dialect::Ietf, 200, pairs);
        let expected: Vec<_> = lines.iter().map(|(name, l, r, reset)| ((*name).to_owned(), *l, *r, *reset)).collect();
        assert_eq!((told(&seen), seen.missing.len()), (expected, *lost), "{pairs:?}");
        assert_eq!(detected(pairs), Some(Dialect::Ietf), "{pairs:?}");
    }
    // A limit that is 0 for now, and a date to wait for.
    let now = [
        ("date", "Mon, 05 Aug 2019 09:27:00 GMT"),
        ("retry-after", "Mon, 05 Aug 2019 09:27:05 GMT"),
        ("ratelimit-limit", "0, 15;w=20"),
        ("ratelimit-remaining", "0"),
        ("ratelimit-reset", "20"),
    ];
    let seen = read(Dialect::Ietf, 429, &now);
    assert_eq!(told(&seen), [("requests/20s".to_owned(), None, Some(0.0), Some(20_000))]);
    assert_eq!(seen.retry_after, Some(Duration::from_secs(5)));
}

#[test]
fn github_and_other_bare_names() {
    let github = [
        ("date", "Thu, 25 Dec 2025 09:13:46 GMT"),
        ("x-ratelimit-limit", "60"),
        ("x-ratelimit-remaining", "0"),
        ("x-ratelimit-reset", "1766657626"),
        ("x-ratelimit-used", "60"),
        ("x-ratelimit-resource", "core"),
    ];
    reads(Dialect::GitHub, &github, &[line("requests/hour", full(60.0, 0.0, 3_600_000))]);
    assert_eq!(read(Dialect::GitHub, 403, &github).class, Class::Throttled);
    assert_eq!(read(Dialect::GitHub, 403, &github[..1]).class, Class::Account);
    let exa = [
        ("date", "Wed, 11 Feb 2026 01:02:58 GMT"),
        ("x-ratelimit-limit", "450"),
        ("x-ratelimit-remaining", "405"),
        ("x-ratelimit-reset", "1770771778"),
    ];
    reads(Dialect::Bare, &exa, &[line("requests/minute", full(450.0, 405.0, 0))]);
    let crossref = [("x-rate-limit-limit", "150"), ("x-rate-limit-interval", "1s")];
    assert_eq!(told(&read(Dialect::Bare, 200, &crossref)), [("requests/second".to_owned(), Some(150.0), None, None)]);
    let ocean = [("x-ratelimit-limit-tokens-per-day", "1000"), ("x-ratelimit-remaining-tokens-per-day", "900")];
    reads(Dialect::DigitalOcean, &ocean, &[line("tokens/day", left(1_000.0, 900.0))]);
}

/// Nothing in 4,000 recorded answers; what limits is written down.
#[test]
fn those_that_send_nothing() {
    let silent = [
        Dialect::Gemini,
        Dialect::Bedrock,
        Dialect::DeepSeek,
        Dialect::Databricks,
        Dialect::Nvidia,
        Dialect::Perplexity,
        Dialect::SelfHosted,
    ];
    for dialect in silent {
        let seen = read(dialect, 200, &[("date", "Thu, 25 Dec 2025 09:13:46 GMT"), ("x-ratelimit-limit-tokens", "7")]);
        assert!(seen.readings.is_empty() && seen.missing.is_empty(), "{dialect}");
        assert_eq!(seen.class, Class::Ok);
        let statuses = [429, 503, 529, 500, 402, 404].map(|status| read(dialect, status, &[]).class);
        let expected =
            [Class::Throttled, Class::Overloaded, Class::Overloaded, Class::Failed, Class::Account, Class::Ignored];
        assert_eq!(statuses, expected, "{dialect}");
    }
    assert_eq!(detected(&[("date", "Thu, 25 Dec 2025 09:13:46 GMT")]), None);
    assert_eq!(Dialect::SelfHosted.semantics().limit_of, LimitOf::Deployment);
    let at_a_time = read(Dialect::DeepSeek, 429, &[]).ending;
    assert_eq!(at_a_time, Ending::Throttled(ThrottleKind::Concurrency));
}

/// Two sets of headers: the provider's, and a gateway's own.
#[test]
fn a_gateways_own_limiter_is_not_taken_for_the_providers() {
    let pairs = [
        ("openai-processing-ms", "630"),
        ("x-ratelimit-limit-requests", "5000"),
        ("x-ratelimit-remaining-requests", "4999"),
        ("x-ratelimit-reset-requests", "12ms"),
        ("x-ratelimit-limit", "100"),
        ("x-ratelimit-reset", "1769759896"),
        ("llm_provider-x-ratelimit-limit-requests", "5000"),
        ("x-ai-ratelimit-remaining-east", "99"),
        ("acme-ratelimit-left", "7"),
    ];
    assert_eq!(detected(&pairs), Some(Dialect::OpenAi));
    let left = unread(Dialect::OpenAi, &Head { status: 200, headers: &map(&pairs) });
    let foreign: Vec<&str> = left.foreign.iter().map(|missing| missing.header.as_str()).collect();
    let between = ["llm_provider-x-ratelimit-limit-requests", "x-ai-ratelimit-remaining-east"];
    assert_eq!(foreign, [&["x-ratelimit-limit", "x-ratelimit-reset"][..], &between].concat());
    assert_eq!(left.unknown, ["acme-ratelimit-left"]);
}
