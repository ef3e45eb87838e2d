//! A sliding window counted in two buckets: the one that runs, and the one before it by the part that the window
//! still covers.
//!
//! Invariants: level = limit − the larger of the weighted count and what is owed; a retune keeps both; nothing is
//! allocated. A cost above the limit is taken into debt, and the level is whole again only when the limit has earned all of it.
//!
//! **How far it is off.** At fraction f of the running bucket the window of the last W covers all of the running
//! bucket and the last 1 − f of the one before, which holds p units. The count takes (1 − f)·p of them, as if they had
//! been taken evenly. In truth between none and all of them lie in the covered part, so
//!
//! - it may count up to f·p too few: any interval of length W that ends at fraction f of a bucket admits at most
//!   limit + f·p, where p ≤ limit unless there was debt or a higher limit in the bucket before. That is less than two
//!   limits, and never at once: the part above the limit comes no faster than the old bucket's weight falls;
//! - it may count up to (1 − f)·p too many: it may refuse what an exact log would admit when that log holds more than
//!   limit − (1 − f)·p already;
//! - with units taken evenly in each bucket it is exact.

use super::owed::Owed;
use super::reach::{enough, first_instant, whole_windows, window_ns, windows};
use crate::clock::MonoTime;

/// A sliding window in two buckets.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SlidingWindow {
    window_ns: u64,
    /// When the running bucket began; buckets follow each other from the first one on.
    began: MonoTime,
    /// Units taken in the bucket before.
    earlier: f64,
    /// Units taken in the running bucket.
    current: f64,
    owed: Owed,
}

impl SlidingWindow {
    /// A window of `window_s` seconds with nothing taken, for `limit` units per window.
    #[must_use]
    pub fn new(limit: f64, window_s: f64, now: MonoTime) -> Self {
        let length = window_ns(window_s);
        Self { window_ns: length, began: now, earlier: 0.0, current: 0.0, owed: Owed::new(limit, length, now) }
    }

    /// The state at `now`, which is not before its last update.
    fn rolled(mut self, now: MonoTime) -> Self {
        let past = now.0.saturating_sub(self.began.0) / self.window_ns;
        if past > 0 {
            self.earlier = if past == 1 { self.current } else { 0.0 };
            self.current = 0.0;
            self.began = MonoTime(self.began.0 + past * self.window_ns);
        }
        self
    }

    /// The weighted count at `now`.
    fn counted(&self, now: MonoTime) -> f64 {
        let rolled = self.rolled(now);
        rolled.earlier * rolled.covered(now) + rolled.current
    }

    /// Which part of the bucket before the window still covers.
    fn covered(&self, now: MonoTime) -> f64 {
        windows(self.window_ns.saturating_sub(now.0.saturating_sub(self.began.0)), self.window_ns)
    }

    /// Units left in the window at `now`; negative is debt.
    #[must_use]
    pub fn level_at(&self, now: MonoTime) -> f64 {
        let now = self.owed.clamp(now);
        self.owed.risen(now) - self.counted(now).max(self.owed.at(now))
    }

    /// The most that one request can take without debt, in units: the limit.
    #[must_use]
    pub fn burst(&self) -> f64 {
        self.owed.limit()
    }

    /// Changes the limit from `now` on; what was taken stays counted, so a lower limit may leave a negative level. A higher one
    /// rises over a window's length.
    pub fn retune(&mut self, limit: f64, now: MonoTime) {
        self.owed.retune(limit, now);
    }

    /// The earliest instant at which `units` are there if nothing is taken till then; `None` when they never are.
    #[must_use]
    pub fn reaches_at(&self, units: f64, now: MonoTime) -> Option<MonoTime> {
        let from = self.owed.clamp(now);
        let wanted = enough(units);
        let forgotten = MonoTime(self.rolled(from).began.0.saturating_add(self.window_ns.saturating_mul(2)));
        let latest = forgotten.max(self.owed.risen_at());
        let room = |at: MonoTime| self.owed.risen(at) - self.counted(at) >= wanted;
        let counted = first_instant(from, latest, room)?;
        let ready = counted.max(self.owed.leaves(units, from)?);
        Some(if ready == from { now } else { ready })
    }

    /// When what is there and what comes from now on will have added up to `units`, however many windows that takes,
    /// if each unit is taken as soon as it is there: for predicting a queue's wait. `None` when nothing comes.
    ///
    /// A queue fills the running bucket to the limit, whatever was in it; from then on the old bucket's weight falls
    /// evenly and sets a limit free in each window, or what it held where that was more.
    #[must_use]
    pub fn supplies_at(&self, units: f64, now: MonoTime) -> Option<MonoTime> {
        let from = self.owed.clamp(now);
        let rolled = self.rolled(from);
        // What the limit lacks now comes on top, as late as if it had been taken.
        let (limit, wanted) = (self.owed.limit(), enough(units) + self.owed.limit() - self.owed.risen(from));
        let ends = MonoTime(rolled.began.0.saturating_add(self.window_ns));
        let supplied = |at: MonoTime| {
            if at < ends {
                limit - (rolled.earlier * rolled.covered(at) + rolled.current)
            } else {
                let after = windows(at.0 - ends.0, self.window_ns);
                limit - rolled.current + rolled.current.max(limit) * after.min(1.0) + limit * (after - 1.0).max(0.0)
            }
        };
        let most = whole_windows((wanted - limit + rolled.current) / limit)
            .and_then(|n| self.window_ns.checked_mul(n.checked_add(1)?)?.checked_add(ends.0));
        let counted = first_instant(from, MonoTime(most.unwrap_or(0)), |at| supplied(at) >= wanted)?;
        let ready = counted.max(self.owed.supplies(units, from)?);
        Some(if ready == from { now } else { ready })
    }

    /// Takes `units`, into debt if need be.
    pub fn take(&mut self, units: f64, now: MonoTime) {
        let now = self.owed.clamp(now);
        *self = self.rolled(now);
        self.current += units.max(0.0);
        self.owed.take(units.max(0.0), self.counted(now), now);
    }

    /// Gives back `units` that were taken at `taken_at`; negative takes more, now. They leave the bucket in which they
    /// were counted; units older than a window give nothing.
    pub fn give_back(&mut self, units: f64, taken_at: MonoTime, now: MonoTime) {
        if units < 0.0 {
            return self.take(-units, now);
        }
        let now = self.owed.clamp(now);
        *self = self.rolled(now);
        if now.0.saturating_sub(taken_at.0) >= self.window_ns {
            return;
        }
        let bucket = if taken_at >= self.began { &mut self.current } else { &mut self.earlier };
        let given = units.min(*bucket);
        *bucket -= given;
        self.owed.give_back(given, self.counted(now), now);
    }

    /// Lets the limit be all there, which it is not yet in a window that began or was raised less than a window ago.
    pub fn raise(&mut self) {
        self.owed.raise();
    }

    /// Whether nothing that it remembers matters any more: a new one would hold no more than this.
    #[must_use]
    pub fn is_fresh_at(&self, now: MonoTime) -> bool {
        self.level_at(now) >= self.owed.limit()
    }
}
