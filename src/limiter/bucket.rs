//! One token bucket: a level in units, refilled at a rate up to a burst, that may go into debt.
//!
//! Invariants: `level ≤ burst`; a retune first accrues at the old rate, then lowers the level to the new burst; debt
//! (a negative level) stays.

use crate::clock::MonoTime;

/// Slack for sums of floats: a billionth of a unit, and of the amount where that is larger than a unit.
const EPSILON: f64 = 1e-9;

fn slack(units: f64) -> f64 {
    EPSILON * units.abs().max(1.0)
}

/// A token bucket.
#[derive(Debug, Clone, PartialEq)]
pub struct Bucket {
    /// Units per second.
    rate_per_s: f64,
    /// Units.
    burst: f64,
    /// Units; negative is debt.
    level: f64,
    updated: MonoTime,
}

impl Bucket {
    /// A bucket that starts with one second of rate, at most its burst: never a free burst.
    #[must_use]
    pub fn new(rate_per_s: f64, burst: f64, now: MonoTime) -> Self {
        Self { rate_per_s, burst, level: rate_per_s.min(burst), updated: now }
    }

    /// The level at `now`, in units.
    #[must_use]
    pub fn level_at(&self, now: MonoTime) -> f64 {
        (self.level + self.rate_per_s * now.seconds_since(self.updated)).min(self.burst)
    }

    /// The burst, in units.
    #[must_use]
    pub fn burst(&self) -> f64 {
        self.burst
    }

    fn accrue(&mut self, now: MonoTime) {
        self.level = self.level_at(now);
        self.updated = self.updated.max(now);
    }

    /// Changes rate and burst from `now` on; the level stays, lowered to the new burst.
    pub fn retune(&mut self, rate_per_s: f64, burst: f64, now: MonoTime) {
        self.accrue(now);
        self.rate_per_s = rate_per_s;
        self.burst = burst;
        self.level = self.level.min(burst);
    }

    /// Goes on at `now` with the level it had when last touched: what would have flowed in since is lost.
    pub fn resume(&mut self, now: MonoTime) {
        self.updated = self.updated.max(now);
    }

    /// When the level will have reached `units`; `None` when it never will at this rate and burst.
    #[must_use]
    pub fn reaches_at(&self, units: f64, now: MonoTime) -> Option<MonoTime> {
        let missing = units - self.level_at(now);
        if missing <= slack(units) {
            Some(now)
        } else if self.rate_per_s > 0.0 && units <= self.burst + slack(units) {
            Some(now.after_seconds(missing / self.rate_per_s))
        } else {
            None
        }
    }

    /// When `units` more than the level would have flowed in, whatever the burst: for predicting a queue's wait.
    #[must_use]
    pub fn supplies_at(&self, units: f64, now: MonoTime) -> Option<MonoTime> {
        let missing = units - self.level_at(now);
        if missing <= slack(units) {
            Some(now)
        } else if self.rate_per_s > 0.0 {
            Some(now.after_seconds(missing / self.rate_per_s))
        } else {
            None
        }
    }

    /// Takes `units`, into debt if need be.
    pub fn take(&mut self, units: f64, now: MonoTime) {
        self.accrue(now);
        self.level -= units;
    }

    /// Gives `units` back (or takes more, when negative); never above the burst, so a late refund is not a burst.
    pub fn give_back(&mut self, units: f64, now: MonoTime) {
        self.accrue(now);
        self.level = (self.level + units).min(self.burst);
    }
}
