//! Durations as Go prints them (`time.Duration.String`): `120ms`, `1.112s`, `1m1.23s`, `83h10m39.057s`, `0s`.
//!
//! Hours are never folded into days. Stricter than Go's own parser: units in falling order, each at most once, and a
//! fraction on the last one only, as Go prints them; no sign, for no provider's delay is negative.

use std::time::Duration;

/// Longer spans (400 days) are errors, not delays.
pub(super) const SPAN_MAX: Duration = Duration::from_secs(400 * 86_400);

/// Units, falling, in nanoseconds. Longer names stand before those they begin with.
const UNITS: [(&str, u128); 8] = [
    ("h", 3_600_000_000_000),
    ("ms", 1_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("µs", 1_000),
    ("μs", 1_000),
    ("us", 1_000),
    ("ns", 1),
];

/// Reads a Go duration; `None` for anything that Go would not print, and for spans above 400 days.
#[must_use]
pub fn parse_go_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text;
    let mut total: u128 = 0;
    let mut last_unit = u128::MAX;
    let mut fraction_seen = false;
    loop {
        let (whole, after) = digits(rest)?;
        let (fraction, after) = match after.strip_prefix('.') {
            Some(after) => digits(after).map(|(fraction, after)| (Some(fraction), after))?,
            None => (None, after),
        };
        let (name, unit) = UNITS.into_iter().find(|(name, _)| after.starts_with(name))?;
        if fraction_seen || unit >= last_unit {
            return None;
        }
        total += whole.parse::<u128>().ok()? * unit;
        if let Some(fraction) = fraction {
            total += fraction.parse::<u128>().ok()? * unit / 10_u128.pow(u32::try_from(fraction.len()).ok()?);
            fraction_seen = true;
        }
        last_unit = unit;
        rest = &after[name.len()..];
        if rest.is_empty() {
            let span = Duration::from_nanos(u64::try_from(total).ok()?);
            return (span <= SPAN_MAX).then_some(span);
        }
    }
}

/// The digits that `text` begins with, 1–18 of them, and what follows.
fn digits(text: &str) -> Option<(&str, &str)> {
    let end = text.bytes().position(|b| !b.is_ascii_digit()).unwrap_or(text.len());
    (1..=18).contains(&end).then(|| text.split_at(end))
}
