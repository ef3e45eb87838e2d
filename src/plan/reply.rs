//! The reply to a report: shares, as leases.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::quota::{Grantee, PoolId};

/// What the leader answers to a report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reply {
    /// The leader's term; a reply with an older term than the member's leader key is dropped.
    pub term: u64,
    /// Counts the leader's replies within the term.
    pub epoch: u64,
    /// How long the shares hold, from receipt, in ms.
    pub share_valid_ms: u64,
    /// When to report next, in ms.
    pub next_report_ms: u64,
    /// Per pool and tenant.
    #[serde(default)]
    pub shares: BTreeMap<PoolId, BTreeMap<Grantee, Share>>,
}

/// The part of a tenant's effective threshold that one member enforces.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Share {
    /// 0–1.
    pub share: f64,
    /// Requests in flight at a time, where the tenant has a concurrency.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<u32>,
    /// What `share` would be, 0–1, with one more of its requests waiting, where that is much more: whether a request could be in
    /// time is judged by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub with_one_more: Option<f64>,
}

impl Share {
    /// Whether the other one is no news: the same, and little more or less with one more waiting.
    #[must_use]
    pub fn is_as_good_as(&self, other: &Self) -> bool {
        let near = match (self.with_one_more, other.with_one_more) {
            (Some(a), Some(b)) => (a - b).abs() <= 0.1 * a,
            (a, b) => a.is_none() && b.is_none(),
        };
        near && self.share == other.share && self.concurrency == other.concurrency
    }
}
