//! What goes wrong on purpose. Drawn from a sequence of its own, and for every request alike: a rate that is changed
//! moves neither the latencies nor the other faults.

use serde::{Deserialize, Serialize};

use super::account::{OutOfRange, in_range};
use super::emulated::Emulated;

/// Which part of the requests each fault strikes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct FaultParams {
    /// Requests answered "overloaded" (503; Anthropic 529, Azure 429) and not charged, 0–1.
    pub overload_rate: f64,
    /// Streams that end in an error event after status 200, 0–1.
    pub stream_error_rate: f64,
    /// Successful answers with a `retry-after` that asks for nothing, 0–1; only Anthropic sends such.
    pub stray_retry_after_rate: f64,
}

impl FaultParams {
    /// Nothing goes wrong, but for what the provider does every day: 590 of 6,163 recorded successes of Anthropic
    /// carry a `retry-after`.
    #[must_use]
    pub const fn of(emulated: Emulated) -> Self {
        let stray_retry_after_rate = match emulated {
            Emulated::Anthropic => 0.1,
            _ => 0.0,
        };
        Self { overload_rate: 0.0, stream_error_rate: 0.0, stray_retry_after_rate }
    }

    /// Checks every range.
    ///
    /// # Errors
    /// The first setting outside its range.
    pub fn validate(&self, emulated: Emulated) -> Result<(), OutOfRange> {
        in_range("overload_rate", self.overload_rate, 0.0..=1.0, "0–1")?;
        in_range("stream_error_rate", self.stream_error_rate, 0.0..=1.0, "0–1")?;
        let (most, range) = match emulated {
            Emulated::Anthropic => (1.0, "0–1"),
            _ => (0.0, "0: only anthropic sends retry-after with answers"),
        };
        in_range("stray_retry_after_rate", self.stray_retry_after_rate, 0.0..=most, range)
    }
}

/// What strikes one request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fate {
    /// It is answered "overloaded".
    pub is_overloaded: bool,
    /// Its stream, if it is one, breaks off after this part of the answer, 0–1.
    pub breaks_after: Option<f64>,
    /// Its success carries a `retry-after`.
    pub has_stray_retry_after: bool,
}

/// Draws fates from a seed.
#[derive(Debug)]
pub struct Faults {
    params: FaultParams,
    random: fastrand::Rng,
}

impl Faults {
    /// The same seed draws the same fates. The settings are taken as valid.
    #[must_use]
    pub fn new(params: FaultParams, seed: u64) -> Self {
        Self { params, random: fastrand::Rng::with_seed(!seed) }
    }

    /// The rates in force.
    #[must_use]
    pub const fn params(&self) -> FaultParams {
        self.params
    }

    /// Other rates from now on, taken as valid.
    pub const fn change(&mut self, params: FaultParams) {
        self.params = params;
    }

    /// The next request's.
    pub fn draw(&mut self) -> Fate {
        let [overload, stream, part, stray] = std::array::from_fn(|_| self.random.f64());
        Fate {
            is_overloaded: overload < self.params.overload_rate,
            breaks_after: (stream < self.params.stream_error_rate).then_some(part),
            has_stray_retry_after: stray < self.params.stray_retry_after_rate,
        }
    }
}
