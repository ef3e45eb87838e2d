//! How long the emulated provider takes: a log-normal time to the first byte, then a constant time per output token,
//! of which there is a log-normal number. One seed, one sequence.

use std::time::Duration;

use statrs::distribution::{ContinuousCDF, LogNormal};

use super::account::{OutOfRange, in_range};

/// Spread of the number of output tokens: the 84th percentile is e^0.5 ≈ 1.65 times the median.
const OUTPUT_TOKENS_SIGMA: f64 = 0.5;
/// Most output tokens of one answer.
pub const OUTPUT_TOKENS_MAX: u64 = 100_000;

/// How long answers take and how long they are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LatencyParams {
    /// Median time to the response head, in milliseconds, 0–600,000.
    pub ttft_ms: f64,
    /// Spread of that time: standard deviation of its logarithm, 0–3; 0 is constant.
    pub ttft_sigma: f64,
    /// Time per output token after the head, in milliseconds, 0–10,000.
    pub ms_per_token: f64,
    /// Median number of output tokens, 1–100,000.
    pub output_tokens: u64,
}

impl Default for LatencyParams {
    fn default() -> Self {
        Self { ttft_ms: 300.0, ttft_sigma: 0.4, ms_per_token: 5.0, output_tokens: 40 }
    }
}

/// One answer's plan.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Draw {
    /// From arrival, or from when a slot is had, to the response head.
    pub to_head: Duration,
    /// From the head to the body.
    pub head_to_body: Duration,
    /// Length of the answer.
    pub output_tokens: u64,
    /// Whether `max_tokens` cut it short.
    pub is_cut: bool,
}

impl Draw {
    /// The same answer of a server that takes so many times longer, at least 0.
    #[must_use]
    pub fn slowed(self, times: f64) -> Self {
        let slowed = |span: Duration| Duration::try_from_secs_f64(span.as_secs_f64() * times).unwrap_or(Duration::MAX);
        Self { to_head: slowed(self.to_head), head_to_body: slowed(self.head_to_body), ..self }
    }

    /// From the head to the end of the `nth` token, counted from 1.
    #[must_use]
    #[allow(clippy::cast_precision_loss, reason = "at most 100,000")]
    pub fn head_to_token(&self, nth: u64) -> Duration {
        self.head_to_body.mul_f64(nth.min(self.output_tokens) as f64 / self.output_tokens.max(1) as f64)
    }
}

/// Draws answers from a seed.
#[derive(Debug)]
pub struct Latency {
    params: LatencyParams,
    random: fastrand::Rng,
}

impl Latency {
    /// The same seed draws the same answers.
    ///
    /// # Errors
    /// A setting is outside its range.
    pub fn new(params: LatencyParams, seed: u64) -> Result<Self, OutOfRange> {
        in_range("ttft_ms", params.ttft_ms, 0.0..=600_000.0, "0–600000 milliseconds")?;
        in_range("ttft_sigma", params.ttft_sigma, 0.0..=3.0, "0–3")?;
        in_range("ms_per_token", params.ms_per_token, 0.0..=10_000.0, "0–10000 milliseconds")?;
        if !(1..=OUTPUT_TOKENS_MAX).contains(&params.output_tokens) {
            let found = params.output_tokens.to_string();
            return Err(OutOfRange { field: "output_tokens", found, range: "a whole number, 1–100000".into() });
        }
        Ok(Self { params, random: fastrand::Rng::with_seed(seed) })
    }

    /// The next answer, of at most `max_tokens`.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "rounded, in range, casts saturate")]
    #[allow(clippy::cast_precision_loss, reason = "at most 100,000")]
    pub fn draw(&mut self, max_tokens: Option<u64>) -> Draw {
        let to_head_ms = self.log_normal(self.params.ttft_ms, self.params.ttft_sigma);
        let wanted = self.log_normal(self.params.output_tokens as f64, OUTPUT_TOKENS_SIGMA).round() as u64;
        let wanted = wanted.clamp(1, OUTPUT_TOKENS_MAX);
        let output_tokens = wanted.min(max_tokens.unwrap_or(OUTPUT_TOKENS_MAX).max(1));
        Draw {
            to_head: Duration::from_secs_f64(to_head_ms / 1_000.0),
            head_to_body: Duration::from_secs_f64(self.params.ms_per_token * output_tokens as f64 / 1_000.0),
            output_tokens,
            is_cut: output_tokens < wanted,
        }
    }

    /// A request id as the providers write them.
    pub fn request_id(&mut self) -> String {
        format!("req_{:032x}", self.random.u128(..))
    }

    fn log_normal(&mut self, median: f64, sigma: f64) -> f64 {
        let uniform = self.random.f64();
        match LogNormal::new(median.ln(), sigma) {
            // A median of 0 has no logarithm and a spread of 0 no distribution: both are constants.
            Ok(distribution) if median > 0.0 => distribution.inverse_cdf(uniform),
            _ => median,
        }
    }
}
