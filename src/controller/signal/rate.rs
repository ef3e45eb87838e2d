//! A smoothed rate that follows up quickly and down slowly.

use crate::clock::MonoTime;

const TAU_UP_S: f64 = 2.0;
const TAU_DOWN_S: f64 = 10.0;

/// An exponentially weighted rate, per second. Time constants 2 s up, 10 s down: demand that appears is served at
/// once, demand that pauses keeps its place for a while.
#[derive(Debug, Clone, Copy, Default)]
pub struct SmoothRate {
    per_s: f64,
    updated: Option<MonoTime>,
}

impl SmoothRate {
    /// Adds what was counted since the last call.
    pub fn add(&mut self, count: f64, now: MonoTime) {
        let Some(updated) = self.updated else {
            // The first count has no span: it dates the beginning only.
            self.updated = Some(now);
            return;
        };
        let span_s = now.seconds_since(updated);
        if span_s <= 0.0 {
            return;
        }
        let measured = count / span_s;
        let tau_s = if measured > self.per_s { TAU_UP_S } else { TAU_DOWN_S };
        self.per_s += (measured - self.per_s) * (1.0 - (-span_s / tau_s).exp());
        self.updated = Some(now);
    }

    /// The rate, per second.
    #[must_use]
    pub fn per_s(&self) -> f64 {
        self.per_s
    }
}
