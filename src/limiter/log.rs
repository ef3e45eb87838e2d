//! A sliding window with an exact log: what was taken counts for one window from the instant at which it was taken.
//!
//! Invariants: level = limit − the larger of what the log holds and what is owed; a retune keeps both; the log has at
//! most as many entries as the largest limit of the last window has whole units, at least one and at most
//! [`ENTRIES_MAX`]. A take beyond that joins the newest entry, whose units then leave as late as the take's: units
//! count longer than they should, never shorter. Takes of whole units within the limit, given back whole or not at
//! all, never come to it: for limits up to [`ENTRIES_MAX`] they are counted exactly. Otherwise it is safe and wastes
//! some of the limit.

use std::collections::VecDeque;

use super::owed::Owed;
use super::reach::{enough, first_instant, whole_windows, window_ns};
use crate::clock::MonoTime;

/// The most entries of a log, and so the largest limit, in units, for which it is exact: 1,000 entries are 16 kB, and a
/// look at all of them takes about a microsecond.
pub const ENTRIES_MAX: usize = 1_000;

/// A sliding window with an exact log.
#[derive(Debug, Clone, PartialEq)]
pub struct SlidingLog {
    window_ns: u64,
    /// Units and when they were taken, oldest first, no two at one instant.
    entries: VecDeque<(MonoTime, f64)>,
    owed: Owed,
}

impl SlidingLog {
    /// An empty log of `window_s` seconds, for `limit` units per window.
    #[must_use]
    pub fn new(limit: f64, window_s: f64, now: MonoTime) -> Self {
        let length = window_ns(window_s);
        Self { window_ns: length, entries: VecDeque::new(), owed: Owed::new(limit, length, now) }
    }

    /// When units taken at `at` leave the window.
    fn leaves(&self, at: MonoTime) -> MonoTime {
        MonoTime(at.0.saturating_add(self.window_ns))
    }

    /// What the log counts at `now`. Summed afresh from the newest on, so that no rounding is carried along.
    fn counted(&self, now: MonoTime) -> f64 {
        self.entries.iter().rev().take_while(|(at, _)| self.leaves(*at) > now).fold(0.0, |sum, (_, units)| sum + units)
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

    /// How many entries it remembers.
    #[must_use]
    pub fn entries(&self) -> usize {
        self.entries.len()
    }

    /// Changes the limit from `now` on; what was taken stays counted, so a lower limit may leave a negative level. A higher one
    /// rises over a window's length.
    pub fn retune(&mut self, limit: f64, now: MonoTime) {
        self.owed.retune(limit, now);
    }

    /// When the log leaves room for `units`.
    fn has_room(&self, units: f64, now: MonoTime) -> Option<MonoTime> {
        let (limit, wanted) = (self.owed.limit(), enough(units));
        if limit < wanted {
            return None;
        }
        if !self.owed.has_risen(now) {
            let newest = self.entries.back().map_or(now, |(at, _)| self.leaves(*at));
            let room = |at: MonoTime| self.owed.risen(at) - self.counted(at) >= wanted;
            return first_instant(now, newest.max(self.owed.risen_at()), room);
        }
        // The newest entry that leaves no room has to go.
        let mut counted = 0.0;
        for (at, units) in self.entries.iter().rev() {
            counted += units;
            if limit - counted < wanted {
                return Some(self.leaves(*at).max(now));
            }
        }
        Some(now)
    }

    /// The earliest instant at which `units` are there if nothing is taken till then; `None` when they never are.
    #[must_use]
    pub fn reaches_at(&self, units: f64, now: MonoTime) -> Option<MonoTime> {
        let from = self.owed.clamp(now);
        let ready = self.has_room(units, from)?.max(self.owed.leaves(units, from)?);
        Some(if ready == from { now } else { ready })
    }

    /// When what is there and what comes from now on will have added up to `units`, however many windows that takes,
    /// if each unit is taken as soon as it is there: for predicting a queue's wait. `None` when nothing comes.
    ///
    /// What a queue takes comes back a window later: a limit in each window, at the same instants.
    #[must_use]
    pub fn supplies_at(&self, units: f64, now: MonoTime) -> Option<MonoTime> {
        let from = self.owed.clamp(now);
        let owed = self.owed.supplies(units, from)?;
        let limit = self.owed.limit();
        // What the limit lacks now comes on top, as late as if it had been taken.
        let units = units + limit - self.owed.risen(from);
        // The queue takes so many limits before the last of its units, which come as if it had taken nothing.
        let full = ((enough(units) / limit).ceil() - 1.0).max(0.0);
        let room = self.has_room((units - limit * full).min(limit), from)?;
        let later = whole_windows(full)?.checked_mul(self.window_ns)?;
        let ready = MonoTime(room.0.checked_add(later)?).max(owed);
        Some(if ready == from { now } else { ready })
    }

    /// Takes `units`, into debt if need be.
    pub fn take(&mut self, units: f64, now: MonoTime) {
        let now = self.owed.clamp(now);
        while self.entries.front().is_some_and(|(at, _)| self.leaves(*at) <= now) {
            self.entries.pop_front();
        }
        if units <= 0.0 {
            self.owed.take(0.0, 0.0, now);
            return;
        }
        let full = self.entries.len() >= self.entries_max();
        match self.entries.back_mut() {
            Some((at, counted)) if full || *at == now => (*at, *counted) = (now, *counted + units),
            _ => self.entries.push_back((now, units)),
        }
        self.owed.take(units, self.counted(now), now);
    }

    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "float-to-int casts saturate")]
    fn entries_max(&self) -> usize {
        (self.owed.limit() as usize).clamp(1, ENTRIES_MAX)
    }

    /// Gives back `units` that were taken at `taken_at`; negative takes more, now. Units that have left the window give
    /// nothing.
    pub fn give_back(&mut self, units: f64, taken_at: MonoTime, now: MonoTime) {
        if units < 0.0 {
            return self.take(-units, now);
        }
        let now = self.owed.clamp(now);
        if self.leaves(taken_at) <= now {
            return;
        }
        // A take is in the entry of its own instant, or in a later one that it joined.
        let Some(place) = self.entries.iter().position(|(at, _)| *at >= taken_at) else { return };
        let counted = &mut self.entries[place].1;
        let given = units.min(*counted);
        *counted -= given;
        if *counted <= 0.0 {
            self.entries.remove(place);
        }
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
