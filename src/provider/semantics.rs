//! What a dialect's words mean: one table, a row per dialect, and only columns that something here reads.

use std::time::Duration;

use crate::quota::{Unit, Window};

/// Request bytes per estimated LLM token.
pub const BYTES_PER_TOKEN: u64 = 4;

/// How a provider's bucket fills, and with it what its reset means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refill {
    /// Limit ÷ window per second, all the time. Reset is the time to *full*, so never a time to wait; it is also a
    /// finer measure of the level than remaining is.
    Continuous,
    /// All at once. Reset is the time to the next window.
    FixedWindow,
}

/// What LLM tokens a provider's meter counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenCharge {
    /// The estimate made when the request came, [`BYTES_PER_TOKEN`]; real usage corrects nothing.
    Estimate,
    /// The input, and all the output that the request allows, when it comes; real usage when the answer ends.
    Corrected,
}

/// One row of the table.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Semantics {
    /// How buckets fill.
    pub refill: Refill,
    /// Remaining counts LLM tokens in multiples of this, and requests one by one.
    pub token_grain: f64,
    /// Reset is within this of the truth.
    pub reset_grain: Duration,
    /// What a response's limits may count over, shortest first, for each unit it speaks about.
    pub windows: &'static [Window],
    /// The window when a response does not tell: the one nearly all limits count over.
    pub default_window: Window,
    /// What the tokens meter counts.
    pub token_charge: TokenCharge,
}

impl Semantics {
    /// Remaining is a multiple of this, in units.
    #[must_use]
    pub const fn remaining_grain(&self, unit: Unit) -> f64 {
        match unit {
            Unit::Requests => 1.0,
            Unit::Tokens | Unit::InputTokens | Unit::OutputTokens => self.token_grain,
        }
    }

    /// How far off the level of a reading may be, in units. Whole units are no error: the bucket was charged in them. A
    /// coarser remaining is rounded to the nearest multiple.
    #[must_use]
    pub const fn level_slack(&self, unit: Unit) -> f64 {
        let grain = self.remaining_grain(unit);
        if grain > 1.0 { grain / 2.0 } else { 0.0 }
    }
}

/// 25,509 of 25,523 request readings and 24,436 of 24,502 token readings, recorded 2023–2026, have
/// `(limit - remaining - 1) / limit × window - 1 ms ≤ reset ≤ (limit - remaining) / limit × window + 1 ms`:
/// continuous refill, remaining rounded down, reset to the ms. 627 count a day, 3 (free tier) 30 days, all others
/// a minute.
pub(super) const OPENAI: Semantics = Semantics {
    refill: Refill::Continuous,
    token_grain: 1.0,
    reset_grain: Duration::from_millis(1),
    windows: &[Window::Minute, Window::Day, Window::Month],
    default_window: Window::Minute,
    token_charge: TokenCharge::Estimate,
};

/// Continuous refill (documented). Each of 18,036 recorded token values is a multiple of 1,000; requests are exact. A
/// reset is an instant in whole seconds, dated by when the request was admitted, and `Date` by when the answer began:
/// it is no measure of the level.
pub(super) const ANTHROPIC: Semantics = Semantics {
    refill: Refill::Continuous,
    token_grain: 1_000.0,
    reset_grain: Duration::from_secs(1),
    windows: &[Window::Minute],
    default_window: Window::Minute,
    token_charge: TokenCharge::Corrected,
};
