//! AIMD where nothing is told: grow while used, halve on congestion.
//!
//! *Increase.* +2 %/s of max(rate, static capacity) while the rate is used; 15 %/s until the first congestion.
//! *Decrease.* ×0.5, at most once per 2 s, when the 429s among what was sent since the last decrease are more than
//! chance: at least two, and a binomial test at 1 % against a tolerated 1 %.
//! *Hold.* A rate that nobody uses does not grow.
//! *Cold start.* The static capacity, or what an earlier leader had granted.
//! *Bounds.* Never below 1/60 unit per second.
//! Source: Chiu & Jain 1989; constants from the sweep in CONTROL §2.4.

use statrs::distribution::{Binomial, DiscreteCDF};

use super::Mode;
use crate::clock::MonoTime;

const INCREASE_PER_S: f64 = 0.02;
const SLOW_START_PER_S: f64 = 0.15;
const DECREASE: f64 = 0.5;
/// No second cut before the first could be felt, in seconds.
const REACT_S: f64 = 2.0;
/// A rate counts as used from this fraction on.
const USED: f64 = 0.8;
/// With more asked for than the rate, divided limits are never used to the last unit. Below this something else holds
/// the requests back (another meter, a ceiling), and growing would go on without end.
const USED_WITH_BACKLOG: f64 = 0.6;
/// Share of 429s that is tolerated, and the chance of a false cut.
const TOLERATED: f64 = 0.01;
const SIGNIFICANCE: f64 = 0.01;
/// One 429 is a pause at the member, never a cut of the pool.
const REFUSALS_MIN: u64 = 2;
const FLOOR_PER_S: f64 = 1.0 / 60.0;

/// What members asked for and how it went, for one meter.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Traffic {
    /// Units per second that were asked for.
    pub demand_per_s: f64,
    /// Units per second that were sent.
    pub sent_per_s: f64,
    /// Requests that ended, of those sent after the last decrease.
    pub resolved: u64,
    /// Of these, refused by the provider for this meter.
    pub refused: u64,
}

/// The AIMD state of one meter.
#[derive(Debug, Clone)]
pub struct Aimd {
    rate_per_s: f64,
    decreased_at: Option<MonoTime>,
    stepped_at: Option<MonoTime>,
}

impl Aimd {
    /// Begins at a rate, in units per second.
    #[must_use]
    pub fn new(start_per_s: f64) -> Self {
        Self { rate_per_s: start_per_s.max(FLOOR_PER_S), decreased_at: None, stepped_at: None }
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
        self.rate_per_s = rate_per_s.max(FLOOR_PER_S);
        self.stepped_at = None;
    }

    /// Never above this, in units per second.
    pub fn cap(&mut self, most_per_s: f64) {
        self.rate_per_s = self.rate_per_s.min(most_per_s).max(FLOOR_PER_S);
    }

    /// Whether the refusals are more than chance.
    #[must_use]
    pub fn congested(&self, traffic: &Traffic) -> bool {
        let resolved = traffic.resolved.max(traffic.refused);
        traffic.refused >= REFUSALS_MIN
            && Binomial::new(TOLERATED, resolved).is_ok_and(|chance| chance.sf(traffic.refused - 1) < SIGNIFICANCE)
    }

    /// One tick.
    pub fn step(&mut self, now: MonoTime, nominal_per_s: f64, traffic: &Traffic) -> Mode {
        let span_s = self.stepped_at.map_or(0.0, |last| now.seconds_since(last)).min(2.0);
        self.stepped_at = Some(now);
        let reacting = self.decreased_at.is_some_and(|at| now.seconds_since(at) < REACT_S);
        if reacting {
            return Mode::Hold;
        }
        if self.congested(traffic) {
            self.rate_per_s = (self.rate_per_s * DECREASE).max(FLOOR_PER_S);
            self.decreased_at = Some(now);
            return Mode::Cut;
        }
        let backlog = traffic.demand_per_s > self.rate_per_s;
        let used = traffic.sent_per_s >= if backlog { USED_WITH_BACKLOG } else { USED } * self.rate_per_s;
        if !used {
            return Mode::Hold;
        }
        if self.decreased_at.is_none() && backlog {
            self.rate_per_s *= 1.0 + SLOW_START_PER_S * span_s;
        } else {
            self.rate_per_s += INCREASE_PER_S * self.rate_per_s.max(nominal_per_s) * span_s;
        }
        Mode::Increase
    }
}
