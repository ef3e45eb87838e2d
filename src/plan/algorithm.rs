//! How a meter counts: a pool's policy chooses, per meter, what members enforce it with.

use serde::{Deserialize, Serialize};

/// How a meter's units are counted over its window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Algorithm {
    /// Refilled all the time, up to a burst.
    #[default]
    TokenBucket,
    /// A limit for each window, counted from nothing in the next.
    FixedWindow,
    /// The last window's worth of time, counted in two buckets.
    SlidingWindow,
    /// The last window's worth of time, counted exactly: for small limits.
    SlidingLog,
}

impl Algorithm {
    /// All algorithms.
    pub const ALL: [Self; 4] = [Self::TokenBucket, Self::FixedWindow, Self::SlidingWindow, Self::SlidingLog];

    /// Its name in records and configuration.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::TokenBucket => "token_bucket",
            Self::FixedWindow => "fixed_window",
            Self::SlidingWindow => "sliding_window",
            Self::SlidingLog => "sliding_log",
        }
    }
}
