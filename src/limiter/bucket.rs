//! The token bucket: a level in units, refilled at a rate up to a burst, that may go into debt.
//!
//! Invariants: `level ≤ burst`; a retune first accrues at the old rate, then lowers the level to the new burst; debt
//! (a negative level) stays.

use std::num::NonZeroU64;

use super::reach::{EPSILON, at_the_end_of, lesser, slack};
use crate::clock::MonoTime;

/// A token bucket.
#[derive(Debug, Clone, PartialEq)]
pub struct Bucket {
    /// Units per nanosecond.
    rate_per_ns: f64,
    /// Units.
    burst: f64,
    /// Units; negative is debt.
    level: f64,
    updated: Updated,
}

/// When a bucket was last touched: the nanosecond after. Never zero, so that whatever may stand in a bucket's place takes no
/// more room than the bucket, of which an admission reads all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Updated(NonZeroU64);

impl Updated {
    #[inline]
    fn at(now: MonoTime) -> Self {
        Self(NonZeroU64::MIN.saturating_add(now.0))
    }

    #[inline]
    fn time(self) -> MonoTime {
        MonoTime(self.0.get() - 1)
    }
}

impl Bucket {
    /// A bucket that starts with one second of rate, at most its burst: never a free burst.
    #[must_use]
    pub fn new(rate_per_s: f64, burst: f64, now: MonoTime) -> Self {
        let level = rate_per_s.min(burst);
        Self { rate_per_ns: rate_per_s / 1e9, burst, level, updated: Updated::at(now) }
    }

    /// The level at `now`, in units.
    #[must_use]
    #[inline]
    pub fn level_at(&self, now: MonoTime) -> f64 {
        lesser(self.level + self.rate_per_ns * now.nanos_since(self.updated.time()), self.burst)
    }

    /// The burst, in units.
    #[must_use]
    pub fn burst(&self) -> f64 {
        self.burst
    }

    #[inline]
    fn accrue(&mut self, now: MonoTime) {
        self.level = self.level_at(now);
        self.updated = self.updated.max(Updated::at(now));
    }

    /// Changes rate and burst from `now` on; the level stays, lowered to the new burst.
    pub fn retune(&mut self, rate_per_s: f64, burst: f64, now: MonoTime) {
        self.accrue(now);
        self.rate_per_ns = rate_per_s / 1e9;
        self.burst = burst;
        self.level = self.level.min(burst);
    }

    /// Goes on at `now` with the level it had when last touched: what would have flowed in since is lost.
    pub fn resume(&mut self, now: MonoTime) {
        self.updated = self.updated.max(Updated::at(now));
    }

    /// Lowers the level to what would be there at `now` had there been `seconds` of the rate, no more, at `since`: what was
    /// stored till then is not let go at once. Takes `most_s` seconds of the rate at the most.
    pub fn drain(&mut self, seconds: f64, most_s: f64, since: MonoTime, now: MonoTime) {
        // Then, or when it was last touched: what has flowed in since on top of a full bucket was lost for nothing.
        let then = since.max(self.updated.time()).min(now);
        self.accrue(then);
        let left = self.rate_per_ns * (seconds * 1e9 + then.nanos_since(since));
        let kept = self.level - self.rate_per_ns * most_s * 1e9;
        self.level = self.level.min(left.max(kept));
    }

    /// Takes `units` if they are there at `now`, to the billionth of a unit; so no more than the burst.
    #[inline(always)]
    #[allow(clippy::inline_always, reason = "see `Gate::decide`")]
    pub(super) fn take_if_there(&mut self, units: f64, now: MonoTime) -> bool {
        let left = self.level_at(now) - units;
        let there = left >= -EPSILON;
        if there {
            self.level = left;
            self.updated = self.updated.max(Updated::at(now));
        }
        there
    }

    /// When the level will have reached `units`; `None` when it never will at this rate and burst.
    #[must_use]
    #[inline]
    pub fn reaches_at(&self, units: f64, now: MonoTime) -> Option<MonoTime> {
        let (missing, slack) = (units - self.level_at(now), slack(units));
        if missing <= slack {
            Some(now)
        } else if units <= self.burst + slack {
            at_the_end_of(missing / self.rate_per_ns, now)
        } else {
            None
        }
    }

    /// When `units` more than the level would have flowed in, whatever the burst: for predicting a queue's wait.
    #[must_use]
    pub fn supplies_at(&self, units: f64, now: MonoTime) -> Option<MonoTime> {
        let missing = units - self.level_at(now);
        if missing <= slack(units) { Some(now) } else { at_the_end_of(missing / self.rate_per_ns, now) }
    }

    /// Takes `units`, into debt if need be.
    #[inline]
    pub fn take(&mut self, units: f64, now: MonoTime) {
        self.accrue(now);
        self.level -= units;
    }

    /// Gives `units` back (or takes more, when negative); never above the burst, so a late refund is not a burst.
    pub fn give_back(&mut self, units: f64, now: MonoTime) {
        self.accrue(now);
        self.level = (self.level + units).min(self.burst);
    }

    /// Raises the level to `units`, where anything flows at all.
    pub fn top_up(&mut self, units: f64, now: MonoTime) {
        self.accrue(now);
        if self.rate_per_ns > 0.0 {
            self.level = self.level.max(units).min(self.burst);
        }
    }

    /// Whether it is as full as it can be: then it remembers nothing that matters.
    #[must_use]
    pub fn is_full_at(&self, now: MonoTime) -> bool {
        let most = if self.rate_per_ns > 0.0 { self.burst } else { 0.0 };
        self.level_at(now) + slack(most) >= most
    }
}
