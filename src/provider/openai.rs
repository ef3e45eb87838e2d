//! OpenAI's headers and error bodies.
//!
//! Only requests and tokens are read. `input-images` counts what no meter of ours does, `tokens_usage_based` was a
//! second bucket in 2024 only, and `project-tokens` is a wider bucket than the pool's: its 429s are read, as any are.

use std::time::Duration;

use http::HeaderMap;
use serde_json::Value;

use super::duration::parse_go_duration;
use super::header::{Names, Told};
use super::{Observation, Semantics, kind_of, level};
use crate::clock::MonoTime;
use crate::observation::{Ending, MeterReading, ThrottleKind};
use crate::quota::{Meter, Unit, Window};

const NAMES: [Names; 2] = [
    Names {
        unit: Unit::Requests,
        limit: "x-ratelimit-limit-requests",
        remaining: "x-ratelimit-remaining-requests",
        reset: "x-ratelimit-reset-requests",
    },
    Names {
        unit: Unit::Tokens,
        limit: "x-ratelimit-limit-tokens",
        remaining: "x-ratelimit-remaining-tokens",
        reset: "x-ratelimit-reset-tokens",
    },
];

/// `type` or `code` of refusals that more time does not lift: no credit, or a budget of the account's own is spent.
const BILLING: [&str; 7] = [
    "insufficient_quota",
    "credit_balance_exhausted",
    "organization_spend_limit_exceeded",
    "project_spend_limit_exceeded",
    "organization_usage_limit_exceeded",
    "billing_hard_limit_reached",
    "billing_not_active",
];

/// What the headers say of each meter.
pub(super) fn readings(
    semantics: &Semantics,
    headers: &HeaderMap,
    sent_at: MonoTime,
    faults: &mut u32,
) -> Vec<MeterReading> {
    NAMES.iter().filter_map(|names| reading(semantics, names, headers, sent_at, faults)).collect()
}

fn reading(
    semantics: &Semantics,
    names: &Names,
    headers: &HeaderMap,
    sent_at: MonoTime,
    faults: &mut u32,
) -> Option<MeterReading> {
    let Told { limit, remaining, reset } = names.read(headers, faults, parse_go_duration)?;
    let meter = |window| Meter { unit: names.unit, window };
    let (Some(full), Some(left)) = (limit, remaining) else {
        let meter = meter(semantics.default_window);
        return Some(MeterReading { meter, sent_at, limit, remaining, level: remaining, reset: None });
    };
    let place = level::place(semantics, names.unit, full, left, reset);
    let level = Some(place.level);
    Some(MeterReading { meter: meter(place.window), sent_at, limit, remaining, level, reset: place.reset })
}

/// Adds what the body of a refusal tells: `{"error":{"message","type","param","code"}}`.
pub(super) fn refine(semantics: &Semantics, observation: Observation, body: &[u8]) -> Observation {
    let Ok(body) = serde_json::from_slice::<Value>(body) else { return observation };
    let field = |name: &str| body.pointer(name).and_then(Value::as_str).unwrap_or_default();
    let (kind, code, message) = (field("/error/type"), field("/error/code"), field("/error/message"));

    if BILLING.contains(&kind) || BILLING.contains(&code) {
        return observation.ignored();
    }
    if kind == "slow_down" || code == "slow_down" {
        // Traffic rose too fast, though below the limits: every meter is meant.
        return Observation { ending: Ending::Throttled(ThrottleKind::Unknown), exhausted: Vec::new(), ..observation };
    }
    if observation.ending == Ending::Throttled(ThrottleKind::Overload) {
        return observation;
    }
    // Job concurrency ("maximum of 1 active requests") comes as invalid_request_error.
    if never_fits(message) || kind == "invalid_request_error" {
        return observation.ignored();
    }
    let retry_after = observation.retry_after.or_else(|| told_wait(message));
    let exhausted = match kind {
        "requests" => meters(semantics, &observation, Unit::Requests, message),
        kind if kind.contains("tokens") => meters(semantics, &observation, Unit::Tokens, message),
        _ => return Observation { retry_after, ..observation },
    };
    Observation { ending: Ending::Throttled(kind_of(&exhausted)), exhausted, retry_after, ..observation }
}

fn never_fits(message: &str) -> bool {
    message.contains("Request too large") || message.contains(": Limit 0,")
}

/// The meters of a unit that a refusal means: by the day when it says so, else as the headers showed them.
fn meters(semantics: &Semantics, observation: &Observation, unit: Unit, message: &str) -> Vec<Meter> {
    if message.contains(" per day") {
        return vec![Meter { unit, window: Window::Day }];
    }
    let seen: Vec<Meter> = observation.readings.iter().map(|r| r.meter).filter(|meter| meter.unit == unit).collect();
    if seen.is_empty() { vec![Meter { unit, window: semantics.default_window }] } else { seen }
}

/// "Please try again in 837ms." For 429s that come without headers.
fn told_wait(message: &str) -> Option<Duration> {
    let (_, after) = message.split_once("try again in ")?;
    let span = parse_go_duration(after.split_whitespace().next()?.trim_end_matches(['.', ',']))?;
    Some(span).filter(|span| !span.is_zero())
}
