//! What a gate counts, beside what its limiter does.

use super::{State, Wake};
use crate::observation::{Counters, UnitCounts};
use crate::plan::Mode;
use crate::quota::Cost;

/// What a gate did, and is doing.
#[derive(Debug, Clone)]
pub struct Traffic {
    /// Counted since the gate was made, which an idle tenant's is anew.
    pub counters: Counters,
    /// Requests in flight now.
    pub in_flight: u32,
    /// Requests that wait for admission now.
    pub waiting: usize,
    /// Reservations that nobody settled in time.
    pub expired: u64,
    /// Requests admitted at once that would have waited: limits were observed.
    pub would_wait: u64,
    /// Requests admitted that would have been refused.
    pub would_refuse: u64,
}

/// Some of a gate's [`Traffic`].
#[derive(Debug, Clone, Copy, Default)]
pub struct Glance {
    /// Requests admitted.
    pub admitted: u64,
    /// Requests refused here.
    pub refused: u64,
    /// Of the admitted, those that waited first.
    pub waited: u64,
    /// Requests that wait now.
    pub waiting: usize,
    /// Requests in flight now.
    pub in_flight: u32,
    /// Reservations that nobody settled in time.
    pub expired: u64,
    /// Requests admitted at once that would have waited.
    pub would_wait: u64,
    /// Requests admitted that would have been refused.
    pub would_refuse: u64,
}

impl Glance {
    /// With what was counted since an earlier one, and what is now.
    #[must_use]
    pub fn since(self, earlier: &Self) -> Self {
        Self {
            admitted: self.admitted.saturating_sub(earlier.admitted),
            refused: self.refused.saturating_sub(earlier.refused),
            waited: self.waited.saturating_sub(earlier.waited),
            expired: self.expired.saturating_sub(earlier.expired),
            would_wait: self.would_wait.saturating_sub(earlier.would_wait),
            would_refuse: self.would_refuse.saturating_sub(earlier.would_refuse),
            ..self
        }
    }
}

impl<W: Wake> State<W> {
    /// Where a decision looks anyway: two threads that are refused would hand one more line of memory to and fro.
    #[inline]
    pub(super) fn count_one_refused(&mut self) {
        if self.refused == u32::MAX {
            self.aside.counters.refused += u64::from(std::mem::take(&mut self.refused));
        }
        self.refused += 1;
    }

    pub(super) fn refusals(&self) -> u64 {
        self.aside.counters.refused + u64::from(self.refused)
    }

    /// Counts what an admission reserves.
    #[inline]
    pub(super) fn reserve(&mut self, cost: &Cost) {
        self.reserve_tokens(cost);
        if cost.requests != 1 {
            self.aside.requests += i64::from(cost.requests) - 1;
        }
    }

    #[inline]
    pub(super) fn reserve_tokens(&mut self, cost: &Cost) {
        self.input_tokens = self.input_tokens.saturating_add(cost.input_tokens);
        self.output_tokens = self.output_tokens.saturating_add(cost.output_tokens);
    }

    pub(super) fn counters(&self) -> Counters {
        let mut counters = self.aside.counters.clone();
        counters.admitted = self.limiter.admitted();
        counters.refused = self.refusals();
        counters.attempts = (counters.admitted + counters.refused).saturating_add_signed(self.aside.pending);
        counters.reserved = UnitCounts {
            requests: counters.admitted.saturating_add_signed(self.aside.requests),
            input_tokens: self.input_tokens,
            output_tokens: self.output_tokens,
        };
        counters
    }

    /// Counts a refusal, unless nothing is counted.
    pub(super) fn count_refusal(&mut self) {
        if self.mode != Mode::Off {
            self.count_one_refused();
        }
    }

    /// Counts what the last admission reserved, unless nothing is counted.
    pub(super) fn reserve_unless_off(&mut self, cost: &Cost) {
        if self.mode != Mode::Off {
            self.reserve(cost);
        }
    }
}
