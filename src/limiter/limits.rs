//! What a member enforces for one tenant.

use std::collections::BTreeMap;

use super::fixed::Alignment;
use crate::plan::Rate;
use crate::quota::Meter;

/// One meter of a member's limits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MeterLimit {
    /// What this member enforces.
    pub rate: Rate,
    /// The largest request that can ever be admitted, in units: what *never* is judged by.
    pub largest_request: f64,
    /// How it is counted.
    pub counting: Counting,
    /// What all members count together on it, if they do: then the rate above is for when they cannot.
    pub together: Option<Together>,
}

/// What members count together.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Together {
    /// What the tenant may take, all members together.
    pub tenant: Rate,
    /// What the pool may take, all tenants together.
    pub pool: Rate,
    /// Members that count, about.
    pub members: u32,
    /// Whether the tenant may take what others leave: nobody has said that this is all it may have.
    pub borrows: bool,
}

/// How a meter is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Counting {
    /// A [`Bucket`](super::Bucket) of the rate and the burst.
    #[default]
    TokenBucket,
    /// A [`FixedWindow`](super::FixedWindow) of the rate.
    FixedWindow(Alignment),
    /// A [`SlidingWindow`](super::SlidingWindow) of the rate.
    SlidingWindow,
    /// A [`SlidingLog`](super::SlidingLog) of the rate.
    SlidingLog,
}

/// What a member enforces for one tenant.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Limits {
    /// Per meter.
    pub meters: BTreeMap<Meter, MeterLimit>,
    /// Requests in flight at a time.
    pub concurrency: Option<u32>,
    /// Nothing is admitted.
    pub blocked: bool,
    /// By how many times its rates would be larger, above 1, with the share that this member would have for a request that waits.
    pub share_to_come: Option<f64>,
}
