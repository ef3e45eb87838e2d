//! Policy in the store: `policy/<pool>`, an operator's record of a whole pool, stronger than the one of the controller's
//! file; and what the leader says of it.
//!
//! The record has the keys of the file's table `[pools.<id>]`, as JSON. Who reads it is the controller's configuration,
//! so that both are checked by the same rules: here it is opaque.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Largest policy record, in bytes: some 1,500 tenants. It stands in an audit twice, and etcd takes 1.5 MiB at a time.
pub const POLICY_BYTES_MAX: usize = 64 << 10;

/// What the leader says of a policy: `policy-status/<pool>`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PolicyStatus {
    /// Whether the record is in force.
    pub accepted: bool,
    /// The revision of the record that this is said of.
    pub revision: u64,
    /// What is wrong with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The last good record: what is in force, for the next leader too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub applied: Option<Value>,
}
