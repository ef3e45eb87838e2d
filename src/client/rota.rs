//! Who is told of in a report that cannot hold all: a process with thousands of tenants tells of them in turn.
//!
//! A report is bounded ([`REPORT_BYTES_MAX`]), and so is how many there are. Whoever's requests the provider has refused since
//! it was last told of comes first, then goes on who is next; so each tenant's share is echoed, and renewed, once a round.

use std::collections::BTreeMap;
use std::io;

use crate::observation::{REPORT_BYTES_MAX, Report, TenantReport};
use crate::quota::{Grantee, PoolId};

/// More than what is told of a tenant can take up, in bytes: each number at its longest, and its name.
const TENANT_BYTES_MAX: usize = 1_800;
/// More than what is told of a pool beside its tenants can take up, in bytes: each meter at its longest.
const POOL_BYTES_MAX: usize = 8_192;
/// Quotes, colon and comma around a name.
const PUNCTUATION_BYTES: usize = 4;

type Of = (PoolId, Grantee);

/// Whose turn it is.
#[derive(Debug, Default)]
pub(super) struct Rota {
    /// The last one that was told of in its turn.
    last: Option<Of>,
    /// Of how many refusals of each tenant's requests the leader was told.
    refusals_told: BTreeMap<Of, u64>,
    /// How many reports tell of everybody.
    round: u32,
}

impl Rota {
    /// How many reports tell of everybody, as the last one was filled; 1 where each one does.
    pub(super) fn round(&self) -> u32 {
        self.round.max(1)
    }

    /// Takes those out of a report of everybody whose turn it is not.
    pub(super) fn fit(&mut self, report: &mut Report) {
        let all: usize = report.pools.values().map(|pool| pool.tenants.len()).sum();
        if report.pools.len() * POOL_BYTES_MAX + all * TENANT_BYTES_MAX <= REPORT_BYTES_MAX {
            *self = Self::default();
            return;
        }
        let mut tenants: BTreeMap<Of, TenantReport> = BTreeMap::new();
        for (id, pool) in &mut report.pools {
            let of = |(grantee, tenant)| ((id.clone(), grantee), tenant);
            tenants.extend(std::mem::take(&mut pool.tenants).into_iter().map(of));
            pool.partial = true;
        }
        self.refusals_told.retain(|of, _| tenants.contains_key(of));
        let mut left = REPORT_BYTES_MAX.saturating_sub(bytes(&*report) + POOL_BYTES_MAX);

        let refused =
            |of: &Of, tenant: &TenantReport| refusals(tenant) > self.refusals_told.get(of).copied().unwrap_or(0);
        let urgent = tenants.iter().filter(|(of, tenant)| refused(of, tenant)).map(|(of, _)| of);
        // Half is for those whose turn it is, however many are refused.
        let urgent = filled(urgent, &tenants, left / 2, &mut left);
        let behind = tenants.keys().filter(|of| self.last.as_ref().is_none_or(|last| *of > last));
        let before = tenants.keys().filter(|of| self.last.as_ref().is_some_and(|last| *of <= last));
        let most = left;
        let in_turn = filled(behind.chain(before), &tenants, most, &mut left);
        let turns = in_turn.len().max(1);
        self.last = in_turn.last().cloned();
        self.round = u32::try_from(all.div_ceil(turns)).unwrap_or(u32::MAX);
        for of in urgent.into_iter().chain(in_turn) {
            let Some(tenant) = tenants.remove(&of) else { continue };
            self.refusals_told.insert(of.clone(), refusals(&tenant));
            if let Some(pool) = report.pools.get_mut(&of.0) {
                pool.tenants.insert(of.1, tenant);
            }
        }
        if tenants.is_empty() {
            report.pools.values_mut().for_each(|pool| pool.partial = false);
        }
    }
}

/// The first ones that fit into `most` bytes, which are taken off `left`.
fn filled<'a>(
    of: impl Iterator<Item = &'a Of>,
    tenants: &BTreeMap<Of, TenantReport>,
    mut most: usize,
    left: &mut usize,
) -> Vec<Of> {
    let fits = |of: &&Of| {
        let bytes = bytes(&of.1) + tenants.get(*of).map_or(0, bytes) + PUNCTUATION_BYTES;
        let fits = bytes <= most;
        if fits {
            most -= bytes;
            *left -= bytes;
        }
        fits
    };
    of.take_while(fits).cloned().collect()
}

fn refusals(tenant: &TenantReport) -> u64 {
    tenant.counters.throttled.values().sum()
}

/// How long a value is in JSON.
fn bytes(value: &impl serde::Serialize) -> usize {
    struct Count(usize);
    impl io::Write for Count {
        fn write(&mut self, written: &[u8]) -> io::Result<usize> {
            self.0 += written.len();
            Ok(written.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    // What is not told of takes no room: numbers and names can be written.
    serde_json::to_writer(&mut count, value).map_or(0, |()| count.0)
}
