//! What the leader tells of itself when it is asked, `GET /v1/status`, and of a pool, `GET /v1/pools/<pool>`: the one feed of every
//! view. Fields are added, never taken away or given another meaning; readers pass over those that they do not know.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::law::Headers;
use super::signal::Role;
use crate::plan::{Mode, Override, Rate, Reason, Share};
use crate::quota::{Grantee, Meter, PoolId};

/// So many tenants of a pool are told of: those for whom most wait, and of those the ones that ask for most.
pub const TENANTS_TOLD_MAX: usize = 50;

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
    /// What it asks Prometheus, by the queries' names.
    #[serde(default)]
    pub signals: BTreeMap<String, SignalAccount>,
}

/// A pool as its leader sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PoolAccount {
    /// How its provider writes limits.
    pub dialect: String,
    /// What members make of its limits.
    #[serde(default)]
    pub mode: Mode,
    /// Why the last thresholds are as they are.
    pub reason: Reason,
    /// Tenants with a grant, `@default` among them.
    pub tenants: usize,
    /// Per meter.
    pub meters: BTreeMap<Meter, MeterAccount>,
    /// Who reported lately.
    pub members: Vec<MemberAccount>,
    /// Calls in flight, all members together.
    #[serde(default)]
    pub in_flight: u64,
    /// Calls in flight at a time, as latency or a congestion signal allows; `null` when neither limits.
    #[serde(default)]
    pub places: Option<f64>,
    /// How many times slower than usual answers came of late, where anything is usual yet.
    #[serde(default)]
    pub slowness: Option<f64>,
    /// The tenants for whom most wait, and of those the ones that ask for most; [`TENANTS_TOLD_MAX`] at most.
    #[serde(default)]
    pub busiest: BTreeMap<Grantee, TenantAccount>,
    /// The overrides that hold, by whom they are for.
    #[serde(default)]
    pub overrides: BTreeMap<String, OverrideAccount>,
}

impl PoolAccount {
    /// Who goes by shares where members count together, in a line.
    #[must_use]
    pub fn by_share(&self) -> Option<String> {
        let (apart, all) = (self.members.iter().filter(|member| member.by_share).count(), self.members.len());
        (apart > 0).then(|| format!("{apart} of {all} members do not count in Redis now: they go by shares"))
    }
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
    /// What is left at the provider, in units, where headers tell.
    #[serde(default)]
    pub level: Option<f64>,
    /// By how much thresholds may add up to more than the capacity, as part of each lies idle; a constant where members count
    /// together.
    #[serde(default = "one")]
    pub overcommit: f64,
    /// The pool's own bucket, where members count together; absent where each enforces its share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shared: Option<Rate>,
    /// What headers are good for; `null` before anything was decided.
    #[serde(default)]
    pub headers: Option<Headers>,
}

fn one() -> f64 {
    1.0
}

/// A tenant of a pool.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct TenantAccount {
    /// What it is granted, in units per window.
    pub thresholds: BTreeMap<Meter, f64>,
    /// What members make of that by the overrides.
    pub effective: BTreeMap<Meter, f64>,
    /// Calls in flight at a time, where they are limited.
    pub concurrency: Option<u32>,
    /// Requests that it could use, per second.
    pub demand_per_s: f64,
    /// Calls that wait to be admitted, or that a demand signal tells of.
    pub waiting: u64,
    /// Calls in flight.
    pub in_flight: u64,
    /// Requests admitted, by the members that are there, since each began: the difference of two answers is what was done, where the same
    /// members are there.
    pub admitted: u64,
    /// The same of those that waited first.
    pub waited: u64,
    /// The same of those refused before they were sent.
    pub refused: u64,
    /// The same of those that the provider throttled.
    pub throttled: u64,
}

/// An override that holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OverrideAccount {
    /// The record.
    pub record: Override,
    /// When it was first seen, by the leader's wall clock.
    pub since_unix_ms: u64,
}

/// A query to Prometheus.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SignalAccount {
    /// What its answers are for.
    pub role: Role,
    /// `fresh`, `stale` or `missing`.
    pub state: String,
    /// How long ago the newest answer was true; `null` before any.
    pub age_ms: Option<u64>,
    /// Series of that answer that feed a pool or a tenant.
    pub series: usize,
    /// What was wrong the last time, in a line.
    pub error: Option<String>,
}

/// A member of a pool.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MemberAccount {
    /// Its instance's name and its boot, with a slash between.
    pub member: String,
    /// How long ago it reported.
    pub report_age_ms: u64,
    /// Where members count together: it goes by its share, as the store that they count in does not answer it, or it knows none.
    #[serde(default)]
    pub by_share: bool,
    /// The leases it holds, by tenant.
    pub shares: BTreeMap<Grantee, Share>,
}
