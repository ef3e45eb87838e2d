//! A signal's value or its absence.

use std::time::Duration;

use crate::clock::MonoTime;
use crate::quota::Meter;

/// A signal's value or its absence.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Reading<T> {
    /// Seen recently enough to act on.
    Fresh(T),
    /// Seen, but too long ago to act on.
    Stale {
        /// How old.
        age: Duration,
    },
    /// Never seen, or not readable.
    Missing,
}

impl<T> Reading<T> {
    /// The value, when it is fresh.
    pub fn fresh(self) -> Option<T> {
        match self {
            Self::Fresh(value) => Some(value),
            Self::Stale { .. } | Self::Missing => None,
        }
    }
}

/// What one response said about one meter, dated by the moment its request was sent.
///
/// A field that the response did not carry, or that could not be read, is `None`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MeterReading {
    /// Which meter.
    pub meter: Meter,
    /// When the request was sent: the newest-*sent* reading is the freshest, whatever order answers come in.
    pub sent_at: MonoTime,
    /// The provider's limit, in units per window.
    pub limit: Option<f64>,
    /// What the provider says is left, in whole units (its floor of the level).
    pub remaining: Option<f64>,
    /// What is left, in units, at the finest resolution the response gives; negative when overdrawn.
    pub level: Option<f64>,
    /// The provider's reset, as a delay. Its meaning is the dialect's.
    pub reset: Option<Duration>,
}
