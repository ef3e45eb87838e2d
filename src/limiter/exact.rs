//! How exact "exact" is, in floats.

use crate::clock::MonoTime;

/// Slack for sums of floats: a billionth of a unit, and of the amount where that is larger than a unit.
pub(super) const EPSILON: f64 = 1e-9;

/// A span that an operation on floats overshot by their last places is not a nanosecond longer for it. What this takes away
/// is within [`slack`].
const EXACT: f64 = 1.0 - 1e-15;

/// What a level may lack of `units` and still reach them.
#[inline]
pub(super) fn slack(units: f64) -> f64 {
    if units > 1.0 { EPSILON * units } else { EPSILON }
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
