//! Durations as Go prints them (`time.Duration.String`): `120ms`, `1.112s`, `1m1.23s`, `83h10m39.057s`, `0s`.
//!
//! Hours are never folded into days. Stricter than Go's own parser: units in falling order, each at most once, and a
//! fraction on the last one only, as Go prints them; no sign, for no provider's delay is negative.

use std::time::Duration;

/// Longer spans (400 days) are errors, not delays.
pub(super) const SPAN_MAX: Duration = Duration::from_secs(400 * 86_400);

/// A duration as Go prints it, in milliseconds: `0s`, `120ms`, `1.112s`, `1m1.23s`, `1h9m7.077s`.
#[must_use]
pub fn go_duration(ms: u64) -> String {
    if ms == 0 {
        return "0s".to_owned();
    }
    if ms < 1_000 {
        return format!("{ms}ms");
    }
    let (hours, minutes, seconds) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1_000 % 60);
    let before = match (hours, minutes) {
        (0, 0) => String::new(),
        (0, minutes) => format!("{minutes}m"),
        (hours, minutes) => format!("{hours}h{minutes}m"),
    };
    let fraction = format!(".{:03}", ms % 1_000);
    format!("{before}{seconds}{}s", fraction.trim_end_matches('0').trim_end_matches('.'))
}

/// The unit that a text begins with: its name's length, and the unit in nanoseconds.
fn unit(text: &str) -> Option<(usize, u64)> {
    Some(match text.as_bytes() {
        [b'h', ..] => (1, 3_600_000_000_000),
        [b'm', b's', ..] => (2, 1_000_000),
        [b'm', ..] => (1, 60_000_000_000),
        [b's', ..] => (1, 1_000_000_000),
        [b'u', b's', ..] => (2, 1_000),
        [b'n', b's', ..] => (2, 1),
        // The micro sign, or the Greek letter.
        _ if text.starts_with("µs") || text.starts_with("μs") => ("µs".len(), 1_000),
        _ => return None,
    })
}

/// A Go duration of few digits and one unit, as most are: `6ms`, `0s`. `None` where there may be more to it.
#[inline]
pub(super) fn plain_go_duration(text: &[u8]) -> Option<Duration> {
    let (digits, unit_ns) = match text {
        [digits @ .., b'm', b's'] => (digits, 1_000_000),
        [digits @ .., b's'] => (digits, 1_000_000_000),
        _ => return None,
    };
    if !(1..=6).contains(&digits.len()) {
        return None;
    }
    let next = |n: u64, byte: &u8| byte.is_ascii_digit().then(|| n * 10 + u64::from(byte - b'0'));
    Some(Duration::from_nanos(digits.iter().try_fold(0, next)? * unit_ns))
}

/// Reads a Go duration; `None` for anything that Go would not print, and for spans above 400 days.
#[must_use]
pub fn parse_go_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text;
    let mut total: u64 = 0;
    let mut last_unit = u64::MAX;
    let mut fraction_seen = false;
    loop {
        let (whole, after) = digits(rest)?;
        let (fraction, after) = match after.strip_prefix('.') {
            Some(after) => digits(after).map(|(fraction, after)| (Some(fraction), after))?,
            None => (None, after),
        };
        let (name_bytes, unit) = unit(after)?;
        if fraction_seen || unit >= last_unit {
            return None;
        }
        total = total.checked_add(whole.parse::<u64>().ok()?.checked_mul(unit)?)?;
        if let Some(fraction) = fraction {
            total = total.checked_add(part_of(fraction, unit)?)?;
            fraction_seen = true;
        }
        last_unit = unit;
        rest = &after[name_bytes..];
        if rest.is_empty() {
            let span = Duration::from_nanos(total);
            return (span <= SPAN_MAX).then_some(span);
        }
    }
}

/// Digits after a point, of a unit, in whole nanoseconds.
fn part_of(fraction: &str, unit: u64) -> Option<u64> {
    let (digits, places) = (fraction.parse::<u64>().ok()?, u32::try_from(fraction.len()).ok()?);
    match digits.checked_mul(unit) {
        Some(product) => Some(product / 10_u64.pow(places)),
        None => u64::try_from(u128::from(digits) * u128::from(unit) / 10_u128.pow(places)).ok(),
    }
}

/// The digits that `text` begins with, 1–18 of them, and what follows.
fn digits(text: &str) -> Option<(&str, &str)> {
    let end = text.bytes().position(|b| !b.is_ascii_digit()).unwrap_or(text.len());
    (1..=18).contains(&end).then(|| text.split_at(end))
}
