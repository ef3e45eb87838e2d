//! What limits follow from, term by term: what `tidegate limits get --effective` shows.

use crate::limiter::{Limits, MeterLimit};
use crate::plan::Rate;
use crate::quota::Meter;

/// What a meter's limit follows from, in the order in which the terms are put on each other:
/// (base × scale × capacity, overridden) × kept × brake × share.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MeterTerms {
    /// As granted, or the bootstrap's; `None` where only an operator limits it.
    pub base: Option<Rate>,
    /// The pulse's factor: a cut that went ahead of the grants.
    pub scale: f64,
    /// What `@capacity` leaves, 0–1.
    pub capacity: f64,
    /// What the overrides make of all that.
    pub overridden: Rate,
    /// What is kept on the way to the safe thresholds, 0–1.
    pub kept: f64,
    /// What the brake leaves, 0–1.
    pub brake: f64,
    /// This member's part.
    pub share: f64,
    /// What is enforced.
    pub limit: MeterLimit,
}

/// What a tenant's limits follow from.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Terms {
    /// Per meter.
    pub meters: Vec<(Meter, MeterTerms)>,
    /// Requests in flight at a time.
    pub concurrency: Option<u32>,
    /// Nothing is admitted.
    pub blocked: bool,
    /// The base is kept and does not lapse.
    pub frozen: bool,
    /// By how many times its rates would be larger with the share that the leader would give for a request that waits.
    pub share_to_come: Option<f64>,
}

impl From<Terms> for Limits {
    fn from(terms: Terms) -> Self {
        let meters = terms.meters.iter().map(|(meter, terms)| (*meter, terms.limit)).collect();
        let Terms { concurrency, blocked, share_to_come, .. } = terms;
        Self { meters, concurrency, blocked, share_to_come }
    }
}
