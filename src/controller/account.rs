//! What the leader tells of itself and of a pool when it is asked: `GET /v1/pools` and `GET /v1/pools/<pool>`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::plan::{Reason, Share};
use crate::quota::{Grantee, Meter, PoolId};

/// A pool as its leader sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PoolAccount {
    /// How its provider writes limits.
    pub dialect: String,
    /// Why the last thresholds are as they are.
    pub reason: Reason,
    /// Tenants with a grant, `@default` among them.
    pub tenants: usize,
    /// Per meter.
    pub meters: BTreeMap<Meter, MeterAccount>,
    /// Who reported lately.
    pub members: Vec<MemberAccount>,
}

/// A meter of a pool, in units per its window.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct MeterAccount {
    /// What the pool can take, as estimated.
    pub capacity: f64,
    /// What the provider says it is, where it says so.
    pub limit: Option<f64>,
    /// What members use.
    pub used: f64,
    /// What members ask for.
    pub demand: f64,
    /// What others use, where headers tell.
    pub others: Option<f64>,
}

/// A member of a pool.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MemberAccount {
    /// Its instance's name and its boot, with a slash between.
    pub member: String,
    /// How long ago it reported.
    pub report_age_ms: u64,
    /// The leases it holds, by tenant.
    pub shares: BTreeMap<Grantee, Share>,
}

/// What the leader tells of itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LeaderAccount {
    /// Its name.
    pub name: String,
    /// The term.
    pub term: u64,
    /// How long it has led.
    pub led_for_ms: u64,
    /// Its pools.
    pub pools: BTreeMap<PoolId, PoolAccount>,
}
