//! AIMD where nothing is told: grow while used, halve on congestion.
//!
//! *Increase.* +2 %/s of max(rate, static capacity) while the rate is used; 15 %/s until the first congestion.
//! *Decrease.* ×0.5, at most once per 2 s, when the 429s among what was sent since the last decrease are more than
//! chance: at least two, and a binomial test at 1 % against a tolerated 1 %. Of a rate that was not used, what was used is
//! halved, for a rate that grew beyond what was asked for would take several cuts to be felt; a cut leaves a quarter at least.
//! *Hold.* A rate that nobody uses does not grow.
//! *Cold start.* The static capacity, or what an earlier leader had granted.
//! *Bounds.* Never below 1/60 unit per second.
//! Source: Chiu & Jain 1989; constants from the sweep in CONTROL §2.4.

use statrs::distribution::{Binomial, DiscreteCDF};

use super::{Mode, span_s};
use crate::clock::MonoTime;

/// Constants of [`Aimd`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AimdParams {
    /// Growth after a first congestion, in parts of the larger of rate and nominal rate a second, 0.001–0.1. Smaller finds a raised
    /// limit later, larger runs into it more often. Of 1–3 % on random worlds 2 % was best.
    pub increase_per_s: f64,
    /// Growth until the first congestion, in parts of the rate a second, 0.01–1. Smaller begins slowly, larger overshoots further.
    pub slow_start_per_s: f64,
    /// What a cut leaves of what was used, 0.1–0.95, and its square of the rate at the least. Larger is used better and refused
    /// more: 0.7 had half as much again of 429s.
    pub decrease: f64,
    /// No second cut sooner, in seconds, 0.5–30: before the first could be felt. Smaller cuts twice for one congestion.
    pub react_s: f64,
    /// From this part of it on a rate counts as used, above 0 to 1; a cut starts from what was used by it. Smaller grows where
    /// nobody asks, larger not where all is used.
    pub used: f64,
    /// The same while more is asked for than the rate: divided limits are never used to the last unit. Below it something else holds
    /// requests back (another meter, a ceiling), and growing would go on without end.
    pub used_with_backlog: f64,
    /// Part of requests whose refusal is tolerated, 0–1. Larger takes a congestion for noise.
    pub tolerated: f64,
    /// The chance of a cut by mistake, 0–1. Larger cuts for noise, smaller later.
    pub significance: f64,
    /// Fewer 429s never cut, 1 or more: one is a pause at the member, not a cut of the pool.
    pub refusals_min: u64,
    /// The least rate, in units per second, above 0: without a request nothing would ever be learned again.
    pub floor_per_s: f64,
}

impl Default for AimdParams {
    fn default() -> Self {
        Self {
            increase_per_s: 0.02,
            slow_start_per_s: 0.15,
            decrease: 0.5,
            react_s: 2.0,
            used: 0.8,
            used_with_backlog: 0.6,
            tolerated: 0.01,
            significance: 0.01,
            refusals_min: 2,
            floor_per_s: 1.0 / 60.0,
        }
    }
}

/// What members asked for and how it went, for one meter.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Traffic {
    /// Units per second that were asked for.
    pub demand_per_s: f64,
    /// Units per second that were sent.
    pub sent_per_s: f64,
    /// Whether that is known well: not where a few requests were all, or a leader has only just begun to listen.
    pub use_is_known: bool,
    /// Requests that ended, of those sent after the last decrease.
    pub resolved: u64,
    /// Of these, refused by the provider for this meter.
    pub refused: u64,
}

/// The AIMD state of one meter.
#[derive(Debug, Clone)]
pub struct Aimd {
    params: AimdParams,
    rate_per_s: f64,
    decreased_at: Option<MonoTime>,
    stepped_at: Option<MonoTime>,
}

impl Aimd {
    /// Begins at a rate, in units per second.
    #[must_use]
    pub fn new(start_per_s: f64, params: AimdParams) -> Self {
        let rate_per_s = start_per_s.max(params.floor_per_s);
        Self { params, rate_per_s, decreased_at: None, stepped_at: None }
    }

    /// The rate, in units per second.
    #[must_use]
    pub fn rate_per_s(&self) -> f64 {
        self.rate_per_s
    }

    /// When it last decreased.
    #[must_use]
    pub fn decreased_at(&self) -> Option<MonoTime> {
        self.decreased_at
    }

    /// An earlier leader decreased then: whoever knows of no congestion grows as if there had never been any.
    pub fn resume(&mut self, decreased_at: MonoTime) {
        self.decreased_at = Some(decreased_at);
    }

    /// Follows a better source, so that losing it moves nothing.
    pub fn follow(&mut self, rate_per_s: f64) {
        self.rate_per_s = rate_per_s.max(self.params.floor_per_s);
        self.stepped_at = None;
    }

    /// The pool has so many times the capacity that it had.
    pub fn scale(&mut self, factor: f64) {
        self.rate_per_s = (self.rate_per_s * factor).max(self.params.floor_per_s);
    }

    /// Never above this, in units per second.
    pub fn cap(&mut self, most_per_s: f64) {
        self.rate_per_s = self.rate_per_s.min(most_per_s).max(self.params.floor_per_s);
    }

    /// Whether the refusals are more than chance.
    #[must_use]
    pub fn congested(&self, traffic: &Traffic) -> bool {
        let resolved = traffic.resolved.max(traffic.refused);
        traffic.refused >= self.params.refusals_min
            && Binomial::new(self.params.tolerated, resolved)
                .is_ok_and(|chance| chance.sf(traffic.refused - 1) < self.params.significance)
    }

    /// One tick.
    pub fn step(&mut self, now: MonoTime, nominal_per_s: f64, traffic: &Traffic) -> Mode {
        let span_s = span_s(self.stepped_at, now);
        self.stepped_at = Some(now);
        let reacting = self.decreased_at.is_some_and(|at| now.seconds_since(at) < self.params.react_s);
        if reacting {
            return Mode::Hold;
        }
        if self.congested(traffic) {
            // A rate that nobody used was not what the provider refused, but no more than one step is known of that, and
            // nothing where a few requests are all that was seen.
            let used_per_s = if traffic.use_is_known { traffic.sent_per_s / self.params.used } else { self.rate_per_s };
            let was = used_per_s.min(self.rate_per_s).max(self.rate_per_s * self.params.decrease);
            self.rate_per_s = (was * self.params.decrease).max(self.params.floor_per_s);
            self.decreased_at = Some(now);
            return Mode::Cut;
        }
        let backlog = traffic.demand_per_s > self.rate_per_s;
        let used_from = if backlog { self.params.used_with_backlog } else { self.params.used };
        let used = traffic.sent_per_s >= used_from * self.rate_per_s;
        if !used {
            return Mode::Hold;
        }
        if self.decreased_at.is_none() && backlog {
            self.rate_per_s *= 1.0 + self.params.slow_start_per_s * span_s;
        } else {
            self.rate_per_s += self.params.increase_per_s * self.rate_per_s.max(nominal_per_s) * span_s;
        }
        Mode::Increase
    }
}
