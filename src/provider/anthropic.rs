//! Anthropic's headers and error bodies.
//!
//! Not read: `anthropic-priority-*`, the bucket of another service tier, and `anthropic-ratelimit-unified-*`, that of
//! subscriptions. Meanings: <https://platform.claude.com/docs/en/api/rate-limits>.

use std::time::Duration;

use http::HeaderMap;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;

use super::duration::SPAN_MAX;
use super::header::{Names, Told};
use super::{Head, Observation, kind_of, retry_after};
use crate::clock::MonoTime;
use crate::observation::{Ending, MeterReading, ThrottleKind};
use crate::quota::{Meter, Unit, Window};

/// All four are read, and a pool steers by those it has meters for. `tokens` is not independent: in all but one of
/// 5,972 recordings it is the sum of input and output; but it shows a workspace's own limit where that is the narrower.
const NAMES: [Names; 4] = [
    Names {
        unit: Unit::Requests,
        limit: "anthropic-ratelimit-requests-limit",
        remaining: "anthropic-ratelimit-requests-remaining",
        reset: "anthropic-ratelimit-requests-reset",
    },
    Names {
        unit: Unit::Tokens,
        limit: "anthropic-ratelimit-tokens-limit",
        remaining: "anthropic-ratelimit-tokens-remaining",
        reset: "anthropic-ratelimit-tokens-reset",
    },
    Names {
        unit: Unit::InputTokens,
        limit: "anthropic-ratelimit-input-tokens-limit",
        remaining: "anthropic-ratelimit-input-tokens-remaining",
        reset: "anthropic-ratelimit-input-tokens-reset",
    },
    Names {
        unit: Unit::OutputTokens,
        limit: "anthropic-ratelimit-output-tokens-limit",
        remaining: "anthropic-ratelimit-output-tokens-remaining",
        reset: "anthropic-ratelimit-output-tokens-reset",
    },
];

/// How a refusal's message calls each unit; longer names stand before those they contain.
const UNITS: [(&str, Unit); 5] = [
    ("input tokens", Unit::InputTokens),
    ("output tokens", Unit::OutputTokens),
    ("request tokens", Unit::Tokens),
    ("tokens per", Unit::Tokens),
    ("requests", Unit::Requests),
];

/// What the headers say of each meter.
pub(super) fn readings(headers: &HeaderMap, sent_at: MonoTime, faults: &mut u32) -> Vec<MeterReading> {
    let date = retry_after::date(headers);
    NAMES.iter().filter_map(|names| reading(names, headers, date, sent_at, faults)).collect()
}

/// The level is what remains: a reset is of the moment of admission, `Date` of the answer's first byte, and what lies
/// between them may be minutes of generating.
fn reading(
    names: &Names,
    headers: &HeaderMap,
    date: Option<Timestamp>,
    sent_at: MonoTime,
    faults: &mut u32,
) -> Option<MeterReading> {
    let Told { limit, remaining, reset } = names.read(headers, faults, |text| until(text, date))?;
    let meter = Meter { unit: names.unit, window: Window::Minute };
    Some(MeterReading { meter, sent_at, limit, remaining, level: remaining, reset: reset.flatten() })
}

/// From the response's own `Date` to an instant; one that has passed is zero. The epoch means "not set".
#[allow(clippy::option_option, reason = "unreadable, or readable and not told")]
fn until(text: &str, date: Option<Timestamp>) -> Option<Option<Duration>> {
    let at: Timestamp = text.parse().ok()?;
    let Some(date) = date.filter(|_| at != Timestamp::UNIX_EPOCH) else { return Some(None) };
    let span = Duration::try_from(at.duration_since(date)).unwrap_or_default();
    (span <= SPAN_MAX).then_some(Some(span))
}

/// What the head alone tells of a refusal: one that no retry helps, with every bucket full, is of a request that is
/// larger than a bucket.
pub(super) fn judge(head: &Head<'_>, observation: Observation) -> Observation {
    let hopeless = head.headers.get("x-should-retry").is_some_and(|value| value == "false");
    let tokens = || observation.readings.iter().filter(|reading| reading.meter.unit != Unit::Requests);
    if head.status == 429 && hopeless && tokens().next().is_some() && tokens().all(full) {
        return observation.ignored();
    }
    observation
}

/// Full as far as it is told: the level is rounded.
fn full(reading: &MeterReading) -> bool {
    reading.limit.is_some() && reading.remaining >= reading.limit
}

/// Adds what the body of an error tells: `{"type":"error","error":{"type","message","details"}}`.
pub(super) fn refine(observation: Observation, body: &[u8]) -> Observation {
    let Ok(body) = serde_json::from_slice::<Value>(body) else { return observation };
    let field = |name: &str| body.pointer(name).and_then(Value::as_str).unwrap_or_default();
    let (kind, message) = (field("/error/type"), field("/error/message"));

    if overloaded(kind, message) {
        let ending = Ending::Throttled(ThrottleKind::Overload);
        return Observation { ending, exhausted: Vec::new(), ..observation };
    }
    let refused = matches!(observation.ending, Ending::Throttled(kind) if kind != ThrottleKind::Overload);
    if !refused {
        return observation;
    }
    if field("/error/details/error_code") == "enforced_spend_limit_reached" {
        return observation.ignored();
    }
    let (sentence, _) = message.split_once(". ").unwrap_or((message, ""));
    let Some((before, unit)) = UNITS.iter().find_map(|(name, unit)| Some((sentence.split_once(name)?.0, *unit))) else {
        return observation;
    };
    // "would exceed your organization's rate limit of 450,000 input tokens per minute", and all of them are there.
    let limit_named = before.trim_end().ends_with(|c: char| c.is_ascii_digit());
    if limit_named && observation.readings.iter().any(|reading| reading.meter.unit == unit && full(reading)) {
        return observation.ignored();
    }
    let window = if sentence.contains("daily rate limit") { Window::Day } else { Window::Minute };
    let exhausted = vec![Meter { unit, window }];
    Observation { ending: Ending::Throttled(kind_of(&exhausted)), exhausted, ..observation }
}

/// Whether an error means that the provider itself has too much to do, whatever status it came with.
pub(super) fn overloaded(kind: &str, message: &str) -> bool {
    kind == "overloaded_error" || (kind == "api_error" && message == "Overloaded")
}

/// `max_tokens` of a request's body.
pub(super) fn max_tokens(body: &[u8]) -> u64 {
    #[derive(Deserialize)]
    struct Asked {
        max_tokens: u64,
    }
    serde_json::from_slice::<Asked>(body).map_or(0, |asked| asked.max_tokens)
}
