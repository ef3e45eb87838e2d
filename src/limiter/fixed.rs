//! A fixed window: a limit's worth of units in each window, none of them kept for the next.
//!
//! Invariants: `level ≤ limit`; debt (a negative level) is carried into the following windows, each of which begins with
//! the limit less the debt, until it is paid; no retune makes units.
//!
//! **What a retune may change.** A window gives its limit ahead, for all of its length. Its *entitlement* is the limit
//! averaged over that length, so a change of the limit while fraction r of the window is ahead changes the level by the
//! difference times r, and then cuts it to the new limit. Limits that flap give their average. A share that moves from
//! one member to another takes from the one, into debt if it has used its units, what it gives to the other. A
//! window that is created while it runs gets the limit times r, since whoever held the rest may have used it; one that begins
//! with its first use has all of its length ahead and gets the whole limit.
//!
//! **A new alignment** keeps what is used. The end that it names may be the running window's own, told anew: by a clock
//! that differs a little, in a day of 23 or 25 hours, in a month that has not 30 days. Then the end moves and the level
//! stays, for such a window gives one limit too. Ends count as the same within a twelfth of the window (2 h of a day,
//! 2.5 days of 30), measured from where the window's units were given to, so that corrections do not add up; nor do
//! they shorten a window below half of its length. Any other end is another alignment: brought forward, it takes
//! back the limit times the part of the window that was cut off; moved back, it gives nothing. So alignments that flap
//! without end give at most 4/3 of the limit: a full window lasts at least 3/4 of its length (a twelfth lost at its
//! end, up to two when it began as the one before was found to be over), one cut short at least half of it, where two
//! twelfths make a third.

use super::reach::{enough, first, whole_windows, window_ns, windows};
use crate::clock::MonoTime;

/// A window's end may differ by one part in so many from where it was expected and still be the same window's.
const SAME_END_PART: u64 = 12;

/// When fixed windows end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alignment {
    /// A window begins with the first take after the last one ended.
    FirstUse,
    /// Windows end at this instant and every window's length before and after. An instant ahead by up to a window and a
    /// twelfth of it is where the running window ends, even if it is longer than others: days have up to 25 hours,
    /// months up to 31 days.
    EndsAt(MonoTime),
}

/// A fixed window.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FixedWindow {
    /// Units per window.
    limit: f64,
    window_ns: u64,
    /// Whether windows follow each other without a first use.
    aligned: bool,
    /// Units left; negative is debt. The limit when no window runs.
    level: f64,
    /// The running window; none between windows that begin with their first use.
    running: Option<Span>,
    updated: MonoTime,
}

/// One window.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Span {
    began: MonoTime,
    /// Up to where its units were given ahead: its end, but for corrections.
    due: MonoTime,
    ends: MonoTime,
}

/// What a window begins with when the one before left this much: only debt is carried over.
fn level_after(left: f64, limit: f64) -> f64 {
    if left < 0.0 { limit + left } else { limit }
}

impl FixedWindow {
    /// A window of `window_s` seconds for `limit` units: all of them when it begins with its first use, the part for
    /// what is ahead of it when it runs already.
    #[must_use]
    pub fn new(limit: f64, window_s: f64, alignment: Alignment, now: MonoTime) -> Self {
        let length = window_ns(window_s);
        let mut window = Self { limit, window_ns: length, aligned: false, level: limit, running: None, updated: now };
        window.align(alignment);
        window
    }

    /// The state at `now`: every window that has ended by then is over.
    fn rolled(mut self, now: MonoTime) -> Self {
        self.updated = self.updated.max(now);
        let Some(span) = self.running.filter(|span| span.ends <= self.updated) else { return self };
        // Whole windows after the running one; the one after them is not over.
        let after = (self.updated.0 - span.ends.0) / self.window_ns;
        let began = MonoTime(span.ends.0 + after * self.window_ns);
        self.next(began, windows(after, 1));
        self
    }

    /// Ends the running window and `after` whole ones; the next begins at `began`.
    fn next(&mut self, began: MonoTime, after: f64) {
        let left = self.level + self.limit * after;
        self.level = level_after(left, self.limit);
        let due = self.end_of(began);
        // Debt is a use: windows that begin with one follow each other until it is paid.
        self.running = (self.aligned || left < 0.0).then_some(Span { began, due, ends: due });
    }

    fn end_of(&self, began: MonoTime) -> MonoTime {
        MonoTime(began.0.saturating_add(self.window_ns))
    }

    /// Units left in the window at `now`; negative is debt.
    #[must_use]
    pub fn level_at(&self, now: MonoTime) -> f64 {
        self.rolled(now).level
    }

    /// The most that one request can take without debt, in units: the limit.
    #[must_use]
    pub fn burst(&self) -> f64 {
        self.limit
    }

    /// Which part of a window's length is ahead of the last update, at most 1.
    fn ahead(&self, ends: MonoTime) -> f64 {
        windows(ends.0.saturating_sub(self.updated.0), self.window_ns).min(1.0)
    }

    /// Changes limit and alignment from `now` on; see the head of this file for what that gives and takes.
    pub fn retune(&mut self, limit: f64, alignment: Alignment, now: MonoTime) {
        *self = self.rolled(now);
        self.level = match self.running {
            Some(span) => (self.level + (limit - self.limit) * self.ahead(span.due)).min(limit),
            None => limit,
        };
        self.limit = limit;
        self.align(alignment);
    }

    /// Aligns the windows from the last update on.
    fn align(&mut self, alignment: Alignment) {
        let Alignment::EndsAt(at) = alignment else {
            // A window that runs ends when it was to.
            self.aligned = false;
            return;
        };
        self.aligned = true;
        let ends = self.first_end(at);
        let Some(mut span) = self.running else {
            self.level = self.limit.min(self.limit * self.ahead(ends));
            let began = MonoTime(ends.0.saturating_sub(self.window_ns));
            self.running = Some(Span { began, due: ends, ends });
            return;
        };
        let same = |told: MonoTime, due: MonoTime| told.0.abs_diff(due.0) <= self.window_ns / SAME_END_PART;
        let known = if same(ends, span.due) {
            Some(ends)
        } else if same(ends, self.end_of(span.due)) {
            // By the new alignment the next window runs: this one should be over, and now is.
            Some(self.updated)
        } else if same(self.end_of(ends), span.due) {
            // By the new alignment the one before runs: it is over here, and gives no second limit.
            Some(self.end_of(ends))
        } else {
            None
        };
        span.ends = known.unwrap_or(ends);
        if known.is_none() || span.ends.0.saturating_sub(span.began.0) < self.window_ns / 2 {
            self.level -= self.limit * windows(span.due.0.saturating_sub(span.ends.0), self.window_ns);
            span.due = span.ends;
        }
        self.running = Some(span);
        if span.ends <= self.updated {
            self.next(self.updated, 0.0);
            self.running = self.running.map(|span| Span { due: ends, ends, ..span });
        }
    }

    /// The end of the window that runs at the last update when windows end at `at`.
    fn first_end(&self, at: MonoTime) -> MonoTime {
        let (now, window) = (self.updated.0, self.window_ns);
        if at.0 <= now {
            MonoTime(at.0.saturating_add(((now - at.0) / window + 1).saturating_mul(window)))
        } else if at.0 - now <= window.saturating_add(window / SAME_END_PART) {
            at
        } else {
            MonoTime(now + (at.0 - now - 1) % window + 1)
        }
    }

    /// The end that comes first, of the running window or of the one that would begin now.
    fn next_end(&self) -> MonoTime {
        self.running.map_or(self.end_of(self.updated), |span| span.ends)
    }

    /// The `n`th end from now, the running window's being the first.
    fn nth_end(&self, n: u64) -> Option<MonoTime> {
        self.next_end().0.checked_add(n.saturating_sub(1).checked_mul(self.window_ns)?).map(MonoTime)
    }

    /// The earliest instant at which `units` are there if nothing is taken till then; `None` when they never are.
    #[must_use]
    pub fn reaches_at(&self, units: f64, now: MonoTime) -> Option<MonoTime> {
        let rolled = self.rolled(now);
        let wanted = enough(units);
        if rolled.level >= wanted {
            return Some(now);
        }
        let after = |n: u64| level_after(rolled.level + self.limit * windows(n - 1, 1), self.limit);
        let most = whole_windows((wanted - rolled.level) / self.limit)?.checked_add(2)?;
        rolled.nth_end(first(0, most, |n| after(n) >= wanted)?)
    }

    /// When what is there and what comes from now on will have added up to `units`, however many windows that takes,
    /// if each unit is taken as soon as it is there: for predicting a queue's wait. `None` when nothing comes.
    #[must_use]
    pub fn supplies_at(&self, units: f64, now: MonoTime) -> Option<MonoTime> {
        let rolled = self.rolled(now);
        let wanted = enough(units);
        if rolled.level >= wanted {
            return Some(now);
        }
        let most = whole_windows((wanted - rolled.level) / self.limit)?.checked_add(2)?;
        rolled.nth_end(first(0, most, |n| rolled.level + self.limit * windows(n, 1) >= wanted)?)
    }

    /// Takes `units`, into debt if need be.
    pub fn take(&mut self, units: f64, now: MonoTime) {
        *self = self.rolled(now);
        if units <= 0.0 {
            return;
        }
        if self.running.is_none() {
            let (began, due) = (self.updated, self.end_of(self.updated));
            self.running = Some(Span { began, due, ends: due });
        }
        self.level -= units;
    }

    /// Gives back `units` that were taken at `taken_at`; negative takes more, now. Units taken in a window that has
    /// ended give nothing: what that window had left is gone.
    pub fn give_back(&mut self, units: f64, taken_at: MonoTime, now: MonoTime) {
        if units < 0.0 {
            return self.take(-units, now);
        }
        *self = self.rolled(now);
        if self.running.is_some_and(|span| span.began <= taken_at) {
            self.level = (self.level + units).min(self.limit);
        }
    }

    /// Whether nothing that it remembers matters any more: a new one would hold no more than this.
    #[must_use]
    pub fn is_fresh_at(&self, now: MonoTime) -> bool {
        self.level_at(now) >= self.limit
    }
}
