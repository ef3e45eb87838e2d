//! A smoothed rate that follows up quickly and down slowly.

use crate::clock::MonoTime;

const TAU_UP_S: f64 = 2.0;
const TAU_DOWN_S: f64 = 10.0;
/// A rate is not judged over less than this, in seconds: one early request is not four per second.
const AGE_MIN_S: f64 = 1.0;
/// e to the minus of this is less than a float's last digit.
const SPANS_MAX: f64 = 37.0;

/// An exponentially weighted mean of arrivals. Linear in what was counted, so it does not depend on how the counts
/// were cut into reports.
#[derive(Debug, Clone, Copy, Default)]
struct Mean {
    per_s: f64,
}

impl Mean {
    fn add(&mut self, count: f64, span_s: f64, tau_s: f64) {
        let kept = (-span_s / tau_s).exp();
        let weight_per_s = if span_s > 0.0 { (1.0 - kept) / span_s } else { 1.0 / tau_s };
        self.per_s = self.per_s * kept + count * weight_per_s;
    }

    /// Without what the mean owes to having begun at zero.
    fn since(self, age_s: f64, tau_s: f64) -> f64 {
        let spans = age_s.max(AGE_MIN_S) / tau_s;
        // After so many it owes nothing, and there may be many to ask.
        if spans > SPANS_MAX { self.per_s } else { self.per_s / (1.0 - (-spans).exp()) }
    }
}

/// A rate per second: the larger of a mean over 2 s and one over 10 s. Demand that appears is served at once, demand
/// that pauses keeps its place for a while.
///
/// Not one mean with two time constants: that one settles at twice the rate of a few random arrivals per second.
#[derive(Debug, Clone, Copy, Default)]
pub struct SmoothRate {
    quick: Mean,
    slow: Mean,
    began: Option<MonoTime>,
    updated: MonoTime,
}

impl SmoothRate {
    /// Adds what was counted since the last call.
    pub fn add(&mut self, count: f64, now: MonoTime) {
        if self.began.is_none() {
            (self.began, self.updated) = (Some(now), now);
        }
        let span_s = now.seconds_since(self.updated);
        self.quick.add(count, span_s, TAU_UP_S);
        self.slow.add(count, span_s, TAU_DOWN_S);
        self.updated = self.updated.max(now);
    }

    /// The rate, per second.
    #[must_use]
    pub fn per_s(&self) -> f64 {
        let age_s = self.began.map_or(0.0, |began| self.updated.seconds_since(began));
        self.quick.since(age_s, TAU_UP_S).max(self.slow.since(age_s, TAU_DOWN_S))
    }
}
