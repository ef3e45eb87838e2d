//! What is decided: grants, pulses, overrides, policy's mode and shares; their wire form; how they merge; and the keys they live
//! under.
//!
//! Client and controller meet here on the way down, as they meet in [`observation`](crate::observation) on the way
//! up. Records are JSON that a person can read and write with `etcdctl`.
//!
//! An operator's override, as it is read and as it applies:
//!
//! ```
//!
//! use tidegate::plan::{Override, Rate, Thresholds, effective};
//! use tidegate::quota::Meter;
//!
//! let record = br#"{"set":{"requests/minute":60},"by":"mori","reason":"incident 42"}"#;
//! let record: Override = serde_json::from_slice(record)?;
//!
//! let rates = [(Meter::REQUESTS_PER_MINUTE, Rate { rate: 120.0, burst: 12.0 })].into();
//! let base = Thresholds { rates, concurrency: Some(8) };
//! let used = effective(&base, None, Some(&record));
//! // A number alone keeps the ratio of burst to rate; what the record does not speak of stays.
//! assert_eq!(used.thresholds.rates[&Meter::REQUESTS_PER_MINUTE], Rate { rate: 60.0, burst: 6.0 });
//! assert_eq!(used.thresholds.concurrency, Some(8));
//!
//! // Mistakes are named, and change nothing: a member keeps the last good record.
//! let mistake = serde_json::from_slice::<Override>(br#"{"set":{"requests/minute":60},"block":true}"#);
//! assert!(mistake.unwrap_err().to_string().contains("exactly one of"));
//! # Ok::<(), serde_json::Error>(())
//! ```

mod algorithm;
mod audit;
mod book;
mod effective;
mod grant;
pub mod keyspace;
mod mode;
mod overrides;
mod policy;
mod pulse;
mod rates;
mod reply;
mod stamp;
mod thresholds;

pub use algorithm::Algorithm;
pub use audit::{Audit, Changed};
pub use book::OverrideBook;
pub use effective::{Effective, capacity_factor, effective};
pub use grant::{GRANT_SCHEMA, Grant, Reason};
pub use mode::Mode;
pub use overrides::{Action, Amount, Override, OverrideStatus, Target};
pub use policy::{POLICY_BYTES_MAX, PolicyStatus};
pub use pulse::{PULSE_SCHEMA, Pulse};
pub use rates::Rates;
pub use reply::{Reply, Share};
pub use stamp::Stamp;
pub use thresholds::{Rate, Thresholds};

/// Why a record was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Not the JSON of this record.
    #[error("not valid: {0}")]
    Json(String),
    /// Written by a newer tidegate; the last value stays in force until it lapses.
    #[error("schema {found}: this version reads {expected}")]
    Schema {
        /// What the record says.
        found: u32,
        /// What this version reads.
        expected: u32,
    },
    /// A value out of its range.
    #[error("{0}")]
    Range(String),
}

/// An error quotes a record that anyone may have written: one line of it, no more.
const ERROR_CHARS_MAX: usize = 300;

impl From<serde_json::Error> for RecordError {
    fn from(error: serde_json::Error) -> Self {
        let line = error.to_string();
        Self::Json(line.chars().map(|c| if c.is_control() { ' ' } else { c }).take(ERROR_CHARS_MAX).collect())
    }
}

/// Reads a record that carries a `schema`: the schema first, so that a newer format is named as such.
pub(crate) fn parse_versioned<T: serde::de::DeserializeOwned>(value: &[u8], expected: u32) -> Result<T, RecordError> {
    #[derive(serde::Deserialize)]
    struct Version {
        schema: u32,
    }
    let Version { schema: found } = serde_json::from_slice(value)?;
    if found != expected {
        return Err(RecordError::Schema { found, expected });
    }
    Ok(serde_json::from_slice(value)?)
}
