//! What the algorithms share: when a float counts as enough, and the exact instant at which something becomes true.

use crate::clock::MonoTime;

/// Slack for sums of floats: a billionth of a unit, and of the amount where that is larger than a unit.
pub(super) const EPSILON: f64 = 1e-9;

/// A span that an operation on floats overshot by their last places is not a nanosecond longer for it. What this takes away
/// is within [`slack`].
const EXACT: f64 = 1.0 - 1e-15;

/// What a level may lack of `units` and still reach them.
#[inline]
pub(super) fn slack(units: f64) -> f64 {
    EPSILON * units.abs().max(1.0)
}

/// The level from which `units` count as there.
pub(super) fn enough(units: f64) -> f64 {
    units - slack(units)
}

/// The lesser of two numbers that are numbers: what the machine compares in one step, and `f64::min` in five.
#[inline]
pub(super) fn lesser(a: f64, b: f64) -> f64 {
    if a < b { a } else { b }
}

/// The first whole nanosecond at which a span from `now` is over; never, when the span is infinite.
#[inline]
pub(super) fn at_the_end_of(ns: f64, now: MonoTime) -> Option<MonoTime> {
    // A span is never whole after `EXACT`: the next nanosecond is the one above it, without a call to round it up.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "float-to-int casts saturate")]
    let whole = (ns * EXACT) as u64;
    if whole == u64::MAX { None } else { Some(MonoTime(now.0.saturating_add(whole).saturating_add(1))) }
}

/// A window's length in whole nanoseconds, at least one.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "rounded; float-to-int casts saturate")]
pub(super) fn window_ns(window_s: f64) -> u64 {
    ((window_s * 1e9).round() as u64).max(1)
}

/// `ns ÷ window_ns`, as a float.
#[allow(clippy::cast_precision_loss, reason = "2^53 ns are 104 days, and a rounding beyond is far below the slack")]
pub(super) fn windows(ns: u64, window_ns: u64) -> f64 {
    ns as f64 / window_ns as f64
}

/// A count of windows rounded up to whole ones; `None` when there are more than any clock can count.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked")]
pub(super) fn whole_windows(windows: f64) -> Option<u64> {
    const COUNTABLE: f64 = 9e18;
    let up = windows.max(0.0).ceil();
    (up < COUNTABLE).then_some(up as u64)
}

/// The least number after `from` and up to `most` for which `holds`, which once true stays true; `None` when it holds
/// for none. Halving instead of a formula: whatever the floats inside do, the answer holds and the one before does not.
pub(super) fn first(from: u64, most: u64, holds: impl Fn(u64) -> bool) -> Option<u64> {
    let (mut refused, mut held) = (from, most);
    if most <= from || !holds(most) {
        return None;
    }
    while held - refused > 1 {
        let middle = refused + (held - refused) / 2;
        if holds(middle) { held = middle } else { refused = middle }
    }
    Some(held)
}

/// [`first`] for instants: `now` itself when it holds already.
pub(super) fn first_instant(now: MonoTime, most: MonoTime, holds: impl Fn(MonoTime) -> bool) -> Option<MonoTime> {
    if holds(now) { Some(now) } else { first(now.0, most.0, |ns| holds(MonoTime(ns))).map(MonoTime) }
}
