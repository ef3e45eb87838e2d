//! The audit record: `audit/<time>-<id>`, who changed what, from what to what, and why.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What an operator did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Changed {
    /// Put an override.
    OverrideSet,
    /// Took an override away.
    OverrideClear,
    /// Put records from a file.
    Import,
    /// Put a pool's policy.
    PolicyPut,
    /// Took a pool's policy away.
    PolicyClear,
}

impl Changed {
    /// Its name in records and tables.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::OverrideSet => "override_set",
            Self::OverrideClear => "override_clear",
            Self::Import => "import",
            Self::PolicyPut => "policy_put",
            Self::PolicyClear => "policy_clear",
        }
    }
}

/// One change, written in the transaction that made it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Audit {
    /// When, by the clock of who wrote it.
    pub at: Timestamp,
    /// Who.
    pub by: String,
    /// What was done.
    pub what: Changed,
    /// The record's key.
    pub key: String,
    /// The record before; `None` when there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Value>,
    /// The record after; `None` when it was taken away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Value>,
    /// Why.
    pub reason: String,
}
