//! The grant: `limits/<pool>/<tenant>`.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{Algorithm, RecordError, Stamp, Thresholds};
use crate::quota::Meter;

/// The grant format written and read here.
pub const GRANT_SCHEMA: u32 = 1;

/// One published record for (pool, tenant): the tenant's whole, all members together.
///
/// `safe` is what holds when nobody leads: at most half the threshold. Unknown fields are ignored, so an older
/// member reads a newer leader's grants.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Grant {
    /// [`GRANT_SCHEMA`].
    pub schema: u32,
    /// When it was decided.
    #[serde(flatten)]
    pub stamp: Stamp,
    /// Base thresholds: what holds with no override.
    pub thresholds: Thresholds,
    /// What holds without a leader.
    pub safe: Thresholds,
    /// How meters count, those that are no token buckets.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub algorithms: BTreeMap<Meter, Algorithm>,
    /// Meters on which the tenant has a ceiling: where members count together, it does not take what others leave.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub bounded: BTreeSet<Meter>,
    /// Live members when it was written.
    pub members: u32,
    /// Why.
    pub reason: Reason,
}

/// Why a grant is as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// One word for programs, e.g. `headers_capacity`.
    pub code: String,
    /// One line for people.
    pub text: String,
}

impl Grant {
    /// Reads a record.
    ///
    /// # Errors
    /// [`RecordError`] when it is not a grant of [`GRANT_SCHEMA`], or holds an impossible number.
    pub fn parse(value: &[u8]) -> Result<Self, RecordError> {
        let grant: Self = super::parse_versioned(value, GRANT_SCHEMA)?;
        grant.thresholds.check()?;
        if grant.thresholds.rates.is_empty() && grant.thresholds.concurrency.is_none() {
            // It would admit everything.
            return Err(RecordError::Range("thresholds: expected at least one meter".into()));
        }
        grant.safe.check()?;
        Ok(grant)
    }

    /// Whether it counts otherwise than `other`, or its numbers differ by more than `tolerance` (a fraction of the larger).
    #[must_use]
    pub fn differs_from(&self, other: &Self, tolerance: f64) -> bool {
        let moved = |x: f64, y: f64| (x - y).abs() > tolerance * x.abs().max(y.abs());
        let differ = |a: &Thresholds, b: &Thresholds| {
            a.concurrency != b.concurrency
                || a.rates.len() != b.rates.len()
                || a.rates.iter().any(|(meter, x)| {
                    b.rates.get(meter).is_none_or(|y| moved(x.rate, y.rate) || moved(x.burst, y.burst))
                })
        };
        self.algorithms != other.algorithms
            || self.bounded != other.bounded
            || self.members != other.members
            || differ(&self.thresholds, &other.thresholds)
            || differ(&self.safe, &other.safe)
    }
}
