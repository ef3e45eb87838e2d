//! The checkpoint: `state/<pool>`, what a leader has learned of a pool and the next one would have to learn again.
//!
//! Thresholds and demand need none: the grants stand in the store, and stand for the demand until members have been heard.
//! What is lost without it is what others take of the account, how deep the provider's bucket is, and that there was
//! congestion: a new leader would hand out the others' part for some seconds, and grow as if it were the first.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::law::LawState;
use crate::clock::UnixMillis;
use crate::plan::{RecordError, parse_versioned};
use crate::quota::Meter;

/// The checkpoint format written and read here.
pub const CHECKPOINT_SCHEMA: u32 = 1;
/// The largest checkpoint that is read, in bytes.
pub const CHECKPOINT_BYTES_MAX: usize = 64 * 1024;
/// How often one is written.
pub const CHECKPOINT_EVERY: Duration = Duration::from_secs(10);
/// An older one is ignored: others come and go within minutes.
pub const CHECKPOINT_AGE_MAX: Duration = Duration::from_secs(60);

/// What a leader has learned of a pool.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// [`CHECKPOINT_SCHEMA`].
    pub schema: u32,
    /// When it was written, by the leader's wall clock.
    pub unix_ms: UnixMillis,
    /// Each meter's law.
    pub meters: BTreeMap<Meter, LawState>,
}

impl Checkpoint {
    /// Reads a record.
    ///
    /// # Errors
    /// [`RecordError`] when it is too large, no checkpoint of [`CHECKPOINT_SCHEMA`], or holds an impossible number.
    pub fn parse(value: &[u8]) -> Result<Self, RecordError> {
        if value.len() > CHECKPOINT_BYTES_MAX {
            let size = value.len();
            return Err(RecordError::Range(format!("{size} bytes: expected at most {CHECKPOINT_BYTES_MAX}")));
        }
        let checkpoint: Self = parse_versioned(value, CHECKPOINT_SCHEMA)?;
        let learned = checkpoint.meters.values().filter_map(|law| law.learned);
        // No negative limit, no bucket without a bottom. JSON knows no NaN, but 1e999.
        let possible = |x: f64| x.is_finite() && x >= 0.0;
        for learned in learned {
            if !possible(learned.limit_per_s) || !possible(learned.burst) || !learned.others_per_s.is_finite() {
                let expected = "limit_per_s and burst: expected finite numbers, 0 or more; others_per_s: a finite one";
                return Err(RecordError::Range(expected.into()));
            }
        }
        Ok(checkpoint)
    }

    /// How old it is by this wall clock; `None` when that is too old, or lies as far ahead: two machines' clocks differ.
    #[must_use]
    pub fn age(&self, wall: UnixMillis) -> Option<Duration> {
        let apart = Duration::from_millis(wall.0.abs_diff(self.unix_ms.0));
        let age = Duration::from_millis(wall.0.saturating_sub(self.unix_ms.0));
        (apart <= CHECKPOINT_AGE_MAX).then_some(age)
    }
}
