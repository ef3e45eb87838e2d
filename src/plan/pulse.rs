//! The pulse: `pulse/<pool>`, the leader's heartbeat. Grants live by it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Mode, Rate, RecordError, Stamp};
use crate::clock::UnixMillis;
use crate::quota::Meter;

/// The pulse format written and read here.
pub const PULSE_SCHEMA: u32 = 1;

/// A pool's heartbeat. Members count `valid_for_ms` from the receipt of a pulse with a newer stamp than any seen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pulse {
    /// [`PULSE_SCHEMA`].
    pub schema: u32,
    /// Its place in the order.
    #[serde(flatten)]
    pub stamp: Stamp,
    /// How long the pool's grants live after this, in ms.
    pub valid_for_ms: u64,
    /// The estimate of what the pool can take, in units per window.
    #[serde(default)]
    pub capacity: BTreeMap<Meter, f64>,
    /// By how much grants add up to more than the capacity, as part of each lies idle: 1 when absent. Without a leader members
    /// give that up.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub overcommit: BTreeMap<Meter, f64>,
    /// Meters that members count together, and the pool's own bucket of each: what all tenants together may take, in units per
    /// window, and the most that it holds, in units. Thresholds add up to more. `scale` and an operator's `@capacity` are in it
    /// already: members put neither on it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub shared: BTreeMap<Meter, Rate>,
    /// Factors for grants older than (term, `scale_epoch`): a cut that reaches every member in one record.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub scale: BTreeMap<Meter, f64>,
    /// The epoch of the cut.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale_epoch: Option<u64>,
    /// Meters on which nobody may send, for this long.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub hold_ms: BTreeMap<Meter, u64>,
    /// Time to the end of fixed windows.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub window_left_ms: BTreeMap<Meter, u64>,
    /// What members make of the pool's limits.
    #[serde(default, skip_serializing_if = "Mode::enforces")]
    pub mode: Mode,
    /// The leader's wall clock, to show skew only.
    pub unix_ms: UnixMillis,
}

impl Pulse {
    /// Reads a record.
    ///
    /// # Errors
    /// [`RecordError`] when it is not a pulse of [`PULSE_SCHEMA`], or holds an impossible number.
    pub fn parse(value: &[u8]) -> Result<Self, RecordError> {
        let pulse: Self = super::parse_versioned(value, PULSE_SCHEMA)?;
        let bad = |map: &BTreeMap<Meter, f64>| map.values().any(|x| !x.is_finite() || *x < 0.0);
        if bad(&pulse.capacity) || bad(&pulse.scale) {
            return Err(RecordError::Range("capacity and scale: expected finite numbers, 0 or more".into()));
        }
        pulse.shared.iter().try_for_each(|(meter, rate)| rate.check(&format!("shared {meter}")).map(drop))?;
        if pulse.overcommit.values().any(|x| !x.is_finite() || *x < 1.0) {
            return Err(RecordError::Range("overcommit: expected finite numbers, 1 or more".into()));
        }
        Ok(pulse)
    }

    /// By how much a meter's grants add up to more than the capacity, 1 or more.
    #[must_use]
    pub fn overcommit_of(&self, meter: Meter) -> f64 {
        self.overcommit.get(&meter).copied().unwrap_or(1.0)
    }

    /// The factor this pulse puts on a meter of a grant with `stamp`: 1 unless the grant is older than the cut.
    #[must_use]
    pub fn scale_for(&self, stamp: Stamp, meter: Meter) -> f64 {
        match self.scale_epoch {
            Some(epoch) if stamp < (Stamp { term: self.stamp.term, epoch }) => {
                self.scale.get(&meter).copied().unwrap_or(1.0)
            }
            _ => 1.0,
        }
    }
}
