//! Whether meters are counted in the way that fits their size: what each process would have of a threshold.
//!
//! *What is compared*: the smallest threshold that a tenant has of the capacity in the file while nobody asks for more, shared
//! out evenly. Processes that do not use the tenant need none of it, so it may be less bad than that.

use std::collections::BTreeMap;

use crate::cli::overrides::tenant_name;
use crate::cli::table::number;
use crate::config::{Mistake, Severity};
use crate::controller::apportion::{Claim, divide};
use crate::controller::{PoolParams, TenantParams};
use crate::quota::{Grantee, Meter, PoolId, Unit};

/// With less than so many requests in a window each, a share is mostly less than the next request.
const LEAST: f64 = 2.0;
/// With more than so many each, what lies idle in one share is nothing beside what is used of the others.
const MUCH: f64 = 1_000.0;
/// As many tokens as a short request has.
const TOKENS_A_REQUEST: f64 = 500.0;
/// Advice is given for so many processes where nobody says how many there are.
const SUPPOSED: u32 = 10;

/// How many processes use the pools.
#[derive(Debug)]
pub(super) enum Members {
    /// Nobody knows.
    Unknown,
    /// So many will use each.
    Planned(u32),
    /// So many live now; a pool that is not named has none yet.
    Live(BTreeMap<PoolId, u32>),
}

impl Members {
    fn of(&self, pool: &PoolId) -> Option<u32> {
        match self {
            Self::Unknown => None,
            Self::Planned(members) => Some(*members),
            Self::Live(of) => of.get(pool).copied(),
        }
    }
}

/// What would be counted better in the other way, in the order of pools and meters.
pub(super) fn advice(pools: &[PoolParams], file: &str, members: &Members) -> Vec<Mistake> {
    pools.iter().flat_map(|pool| of_pool(pool, file, members.of(&pool.id))).collect()
}

fn of_pool(pool: &PoolParams, file: &str, members: Option<u32>) -> Vec<Mistake> {
    let smallest = pool.capacity.iter().map(|(meter, rate)| (*meter, smallest(pool, *meter, rate.rate)));
    let smallest: Vec<(Meter, (String, f64))> = smallest.collect();
    let each = f64::from(members.unwrap_or(SUPPOSED));
    let is_ample = |meter: Meter, threshold: f64| threshold > MUCH * a_request(meter) * each;
    // The round trip is made for all of a pool's meters at once: one that needs it pays for all.
    let is_idle = smallest.iter().all(|(meter, (_, rate))| !pool.shared.contains(meter) || is_ample(*meter, *rate));
    let said = |(meter, (tenant, threshold)): &(Meter, (String, f64))| {
        let (severity, suggestion, message) = if pool.shared.contains(meter) {
            if !is_idle {
                return None;
            }
            (Severity::Advice, "local", ample(*meter, tenant, *threshold, members))
        } else {
            let severity = if members.is_some() { Severity::Warning } else { Severity::Advice };
            (severity, "shared", scarce(*meter, tenant, *threshold, members)?)
        };
        let suggestion = Some(format!("enforcement = \"{suggestion}\""));
        let key = key(&pool.id, *meter);
        Some(Mistake { severity, suggestion, ..Mistake::of_what_it_names(file, &key, message) })
    };
    smallest.iter().filter_map(said).collect()
}

/// Why it is better counted together; `None` where it is not.
fn scarce(meter: Meter, tenant: &str, threshold: f64, members: Option<u32>) -> Option<String> {
    let least = LEAST * a_request(meter);
    if threshold >= least * f64::from(members.unwrap_or(SUPPOSED)) {
        return None;
    }
    let gets = format!("{tenant} gets {} {meter}", number(threshold));
    let less = match meter.unit {
        Unit::Requests => format!("less than {least} each"),
        _ => format!("less than {least} each, two short requests"),
    };
    let among = match members {
        Some(members) => format!("{gets} among {}: {less}", processes(f64::from(members))),
        None => format!("{gets}: from {} on that is {less}", processes((threshold / least).floor() + 1.0)),
    };
    Some(format!("{among}; enforcement = \"shared\" counts it together, in Redis"))
}

/// Why it is as well enforced by shares.
fn ample(meter: Meter, tenant: &str, threshold: f64, members: Option<u32>) -> String {
    let each = number((threshold / f64::from(members.unwrap_or(SUPPOSED))).floor());
    let among = processes(f64::from(members.unwrap_or(SUPPOSED)));
    format!(
        "{tenant} gets {} {meter}, {each} for each of {among}: a round trip to Redis for each request buys nothing; \
         enforcement = \"local\" does as well",
        number(threshold)
    )
}

/// `1 process`, `12 processes`.
fn processes(count: f64) -> String {
    format!("{count} process{}", if count > 1.0 { "es" } else { "" })
}

fn a_request(meter: Meter) -> f64 {
    if meter.unit == Unit::Requests { 1.0 } else { TOKENS_A_REQUEST }
}

/// Who gets least of a meter, and how much in a window.
fn smallest(pool: &PoolParams, meter: Meter, capacity: f64) -> (String, f64) {
    let declared = pool.tenants.iter().map(|(id, tenant)| (Grantee::Tenant(id.clone()), tenant));
    let all: Vec<_> = declared.chain([(Grantee::Default, &pool.default_tenant)]).collect();
    let claim = |tenant: &TenantParams| Claim {
        weight: tenant.weight,
        demand: 0.0,
        floor: tenant.floor.get(&meter).copied().unwrap_or(0.0),
        ceiling: tenant.ceiling.get(&meter).copied().unwrap_or(f64::INFINITY),
        priority: tenant.priority,
    };
    let parts = divide(capacity, &all.iter().map(|(_, tenant)| claim(tenant)).collect::<Vec<_>>());
    let least = all.iter().zip(parts).min_by(|a, b| a.1.total_cmp(&b.1));
    least
        .map_or_else(|| (tenant_name(&Grantee::Default), capacity), |((grantee, _), part)| (tenant_name(grantee), part))
}

/// The key of a meter's capacity, as the file's reader names it.
fn key(pool: &PoolId, meter: Meter) -> String {
    let id = pool.as_str();
    let id = if id.contains('.') { format!("{id:?}") } else { id.to_owned() };
    format!("pools.{id}.capacity.\"{meter}\"")
}
