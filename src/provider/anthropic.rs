//! Anthropic's refusals. Meanings: <https://platform.claude.com/docs/en/api/rate-limits>.

use serde::Deserialize;
use serde_json::Value;

use super::{Class, Observation};
use crate::observation::MeterReading;
use crate::quota::{Meter, Unit, Window};

/// How a refusal's message calls each unit; longer names stand before those they contain.
const UNITS: [(&str, Unit); 5] = [
    ("input tokens", Unit::InputTokens),
    ("output tokens", Unit::OutputTokens),
    ("request tokens", Unit::Tokens),
    ("tokens per", Unit::Tokens),
    ("requests", Unit::Requests),
];

/// What the head alone tells of a refusal: one that no retry helps, with every bucket full, is of a request that is
/// larger than a bucket.
pub(super) fn judge(hopeless: bool, observation: Observation) -> Observation {
    let tokens = || observation.readings.iter().filter(|reading| reading.meter.unit != Unit::Requests);
    if observation.class == Class::Throttled && hopeless && tokens().next().is_some() && tokens().all(full) {
        return observation.in_vain(Class::TooLarge);
    }
    observation
}

/// Full as far as it is told: the level is rounded.
fn full(reading: &MeterReading) -> bool {
    reading.limit.is_some() && reading.remaining >= reading.limit
}

/// Adds what the body of an error tells: `{"type":"error","error":{"type","message","details"}}`.
pub(super) fn refine(observation: Observation, body: &[u8]) -> Observation {
    if matches!(observation.class, Class::Ok | Class::Account | Class::Ignored) {
        return observation;
    }
    let Ok(body) = serde_json::from_slice::<Value>(body) else { return observation };
    let field = |name: &str| body.pointer(name).and_then(Value::as_str).unwrap_or_default();
    let (kind, message) = (field("/error/type"), field("/error/message"));

    if overloaded(kind, message) {
        return observation.overloaded();
    }
    if observation.class != Class::Throttled {
        return observation;
    }
    if field("/error/details/error_code") == "enforced_spend_limit_reached" {
        return observation.in_vain(Class::Account);
    }
    let (sentence, _) = message.split_once(". ").unwrap_or((message, ""));
    let Some((before, unit)) = UNITS.iter().find_map(|(name, unit)| Some((sentence.split_once(name)?.0, *unit))) else {
        return observation;
    };
    // "would exceed your organization's rate limit of 450,000 input tokens per minute", and all of them are there.
    let limit_named = before.trim_end().ends_with(|c: char| c.is_ascii_digit());
    if limit_named && observation.readings.iter().any(|reading| reading.meter.unit == unit && full(reading)) {
        return observation.in_vain(Class::TooLarge);
    }
    let window = if sentence.contains("daily rate limit") { Window::Day } else { Window::Minute };
    observation.throttled(vec![Meter { unit, window }])
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
