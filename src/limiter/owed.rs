//! The limit of a sliding window, and what was taken and is not earned yet: how such windows carry debt further than they
//! look back.
//!
//! A sliding window forgets what has left it. A request larger than the limit, or one that used more than was
//! reserved, would be forgotten half paid. So beside its count it keeps this: every unit taken is owed, and the limit
//! pays a window's worth in a window's time. What is left of a window is the limit less the larger of count and owed.
//!
//! While no window's length holds more than the limit, owed never exceeds an exact count of the last window, so it
//! changes nothing: owed is the largest of (taken since s) − (limit × windows since s) over all s. For an s within the
//! window that is at most the count; for an earlier one, each whole or begun window before this one added at most the
//! limit to what was taken, and all of that but a limit is paid. The two-bucket count falls by at most the limit in a
//! window, from a height of at least owed, and so stays above it too.
//!
//! *Rising.* A limit that is raised rises over one window's length, from where it was: what was not granted in the last
//! window is not handed out at once. Lowered, it is lower at once. So shares that move to and fro give each member its average
//! at the most.

use super::reach::{enough, first_instant, whole_windows, windows};
use crate::clock::MonoTime;

/// Units taken and not earned yet, under a limit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Owed {
    /// Units per window.
    limit: f64,
    window_ns: u64,
    /// Units owed when last updated, 0 or more.
    units: f64,
    /// Whether the count has been above the limit since nothing was owed.
    in_debt: bool,
    updated: MonoTime,
    /// What the limit lacked when it was last raised, in units per window, and when that was.
    lacked: f64,
    raised_at: MonoTime,
}

impl Owed {
    pub(super) fn new(limit: f64, window_ns: u64, now: MonoTime) -> Self {
        Self { limit, window_ns, units: 0.0, in_debt: false, updated: now, lacked: 0.0, raised_at: now }
    }

    /// The limit, in units per window.
    pub(super) fn limit(&self) -> f64 {
        self.limit
    }

    /// The limit as far as it has risen by `now`, in units per window.
    pub(super) fn risen(&self, now: MonoTime) -> f64 {
        if self.lacked <= 0.0 {
            return self.limit;
        }
        let ahead = self.window_ns.saturating_sub(now.0.saturating_sub(self.raised_at.0));
        self.limit - self.lacked * windows(ahead, self.window_ns)
    }

    /// Whether the limit has risen all the way by `now`.
    pub(super) fn has_risen(&self, now: MonoTime) -> bool {
        self.lacked <= 0.0 || now.0.saturating_sub(self.raised_at.0) >= self.window_ns
    }

    /// When the limit will have risen all the way.
    pub(super) fn risen_at(&self) -> MonoTime {
        MonoTime(self.raised_at.0.saturating_add(self.window_ns))
    }

    /// Lets the limit be all there.
    pub(super) fn raise(&mut self) {
        self.lacked = 0.0;
    }

    /// `now`, unless the state is newer: time does not go back.
    pub(super) fn clamp(&self, now: MonoTime) -> MonoTime {
        self.updated.max(now)
    }

    /// Units owed at `now`.
    pub(super) fn at(&self, now: MonoTime) -> f64 {
        (self.units - self.limit * windows(now.0.saturating_sub(self.updated.0), self.window_ns)).max(0.0)
    }

    fn accrue(&mut self, now: MonoTime) {
        self.units = self.at(now);
        self.in_debt &= self.units > 0.0;
        self.updated = self.clamp(now);
    }

    /// Owes `units` more; the window's count is `counted` with them. Where that is above the limit they begin a debt, and
    /// with them is owed what is counted of others, up to the limit: what was taken under a higher limit is none of it.
    pub(super) fn take(&mut self, units: f64, counted: f64, now: MonoTime) {
        self.accrue(now);
        self.units += units;
        if enough(counted) > self.limit {
            self.units = self.units.max(counted.min(self.limit + units));
            self.in_debt = true;
        }
    }

    /// Takes `units` back, of which the window's count falls to `counted`. Not below what is still counted, unless it
    /// was: else units given back after they were paid for would pay for others.
    pub(super) fn give_back(&mut self, units: f64, counted: f64, now: MonoTime) {
        self.accrue(now);
        self.units = (self.units - units).max(self.units.min(counted)).max(0.0);
    }

    /// Changes the limit. What is owed in debt stays; else it was rightly taken under the old limit, is still counted, and
    /// does not become debt under the new one.
    pub(super) fn retune(&mut self, limit: f64, now: MonoTime) {
        self.accrue(now);
        if !self.in_debt {
            self.units = self.units.min(limit);
        }
        // As of the last change that it has seen: time does not go back.
        self.lacked = (limit - self.risen(self.updated)).max(0.0);
        self.raised_at = self.updated;
        self.limit = limit;
    }

    /// The first instant at which what is owed leaves room for `units`; `None` when it never will.
    pub(super) fn leaves(&self, units: f64, now: MonoTime) -> Option<MonoTime> {
        let wanted = enough(units);
        let most = whole_windows((self.units - (self.limit - wanted)) / self.limit)
            .and_then(|n| self.window_ns.checked_mul(n.checked_add(1)?)?.checked_add(self.updated.0));
        let most = most.map(|most| most.max(self.risen_at().0));
        first_instant(now, MonoTime(most.unwrap_or(0)), |at| self.risen(at) - self.at(at) >= wanted)
    }

    /// The first instant at which the limit has earned what is owed and `units`, less one limit given ahead.
    pub(super) fn supplies(&self, units: f64, now: MonoTime) -> Option<MonoTime> {
        let owed = self.at(now);
        let wanted = enough(units);
        let supplied = |at: MonoTime| self.limit - owed + self.limit * windows(at.0 - now.0, self.window_ns);
        let most = whole_windows((wanted - self.limit + owed) / self.limit)
            .and_then(|n| self.window_ns.checked_mul(n.checked_add(1)?)?.checked_add(now.0));
        first_instant(now, MonoTime(most.unwrap_or(0)), |at| supplied(at) >= wanted)
    }
}
