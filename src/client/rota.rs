//! Who is told of in a report that cannot hold all: a process with thousands of tenants tells of them in turn.
//!
//! A report is bounded ([`REPORT_BYTES_MAX`]), and so is how many there are. Whoever's requests the provider has refused since
//! it was last told of comes first, then goes on who is next; so each tenant's share is echoed, and renewed, once a round.
//! A turn is over when the leader has replied: what it has not taken is told again.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use crate::observation::{Counters, REPORT_BYTES_MAX, Report, TenantReport};
use crate::quota::{Grantee, PoolId};

/// More than what is told of a tenant can take up, in bytes: each number at its longest, and its name;
const TENANT_BYTES_MAX: usize = 1_800;
/// and less than it does.
const TENANT_BYTES_MIN: usize = 300;
/// More than what is told of a pool beside its tenants can take up, in bytes: each meter at its longest.
const POOL_BYTES_MAX: usize = 8_192;
/// Quotes, colon and comma around a name.
const PUNCTUATION_BYTES: usize = 4;

type Of = (PoolId, Grantee);
type Tenants = BTreeMap<Of, TenantReport>;

/// Whose turn it is.
#[derive(Debug, Default)]
pub(super) struct Rota {
    /// The last one that was told of in its turn.
    last: Option<Of>,
    /// Of how many refusals of each tenant's requests the leader was told.
    refusals_told: BTreeMap<Of, u64>,
    /// What the leader has been told when it has taken the last report.
    telling: Telling,
    /// How many reports tell of everybody.
    round: u32,
}

#[derive(Debug, Default)]
struct Telling {
    last: Option<Of>,
    refusals: Vec<(Of, u64)>,
}

impl Rota {
    /// How many reports tell of everybody, as the last one was filled; 1 where each one does.
    pub(super) fn round(&self) -> u32 {
        self.round.max(1)
    }

    /// The leader has taken the last report.
    pub(super) fn taken(&mut self) {
        let Telling { last, refusals } = std::mem::take(&mut self.telling);
        self.last = last.or(self.last.take());
        self.refusals_told.extend(refusals);
    }

    /// Takes those out of a report of everybody whose turn it is not.
    pub(super) fn fit(&mut self, report: &mut Report) {
        if fits(report) {
            *self = Self::default();
            return;
        }
        let tenants = self.take_all(report);
        let mut left = REPORT_BYTES_MAX.saturating_sub(bytes(&*report) + POOL_BYTES_MAX);
        // Half is for those whose turn it is, however many are refused.
        let mut half = left / 2;
        let refused = tenants.iter().filter(|(of, tenant)| {
            let told = self.refusals_told.get(*of).copied().unwrap_or(0);
            refusals(tenant) > told && spend(&mut half, of, tenant)
        });
        let mut told: BTreeSet<&Of> = refused.map(|(of, _)| of).collect();
        left = left / 2 + half;

        let behind = tenants.iter().filter(|(of, _)| self.last.as_ref().is_none_or(|last| *of > last));
        let before = tenants.iter().filter(|(of, _)| self.last.as_ref().is_some_and(|last| *of <= last));
        let mut walked = 0_usize;
        let mut last = None;
        for (of, tenant) in behind.chain(before) {
            if !told.contains(of) && !spend(&mut left, of, tenant) {
                break;
            }
            told.insert(of);
            last = Some(of.clone());
            walked += 1;
        }
        self.round = u32::try_from(tenants.len().div_ceil(walked.max(1))).unwrap_or(u32::MAX);
        let refusals = told.iter().map(|of| ((*of).clone(), tenants.get(*of).map_or(0, refusals))).collect();
        self.telling = Telling { last, refusals };
        for (of, tenant) in told.into_iter().filter_map(|of| tenants.get_key_value(of)) {
            if let Some(pool) = report.pools.get_mut(&of.0) {
                pool.tenants.insert(of.1.clone(), tenant.clone());
            }
        }
    }

    /// Those that there is something to tell of. Of whom only a share is held, nothing is: it runs out, and comes again with the
    /// first request.
    fn take_all(&mut self, report: &mut Report) -> Tenants {
        let mut tenants = Tenants::new();
        for (id, pool) in &mut report.pools {
            let is_used = |tenant: &TenantReport| {
                tenant.in_flight > 0 || tenant.waiting > 0 || tenant.counters != Counters::default()
            };
            let used = std::mem::take(&mut pool.tenants).into_iter().filter(|(_, tenant)| is_used(tenant));
            let before = tenants.len();
            tenants.extend(used.map(|(grantee, tenant)| ((id.clone(), grantee), tenant)));
            pool.tenants_in_all = Some(tenants.len() - before);
        }
        self.refusals_told.retain(|of, _| tenants.contains_key(of));
        tenants
    }
}

/// Whether a report is no longer than it may be. Most are far from it, and are not written to see that.
fn fits(report: &Report) -> bool {
    let all: usize = report.pools.values().map(|pool| pool.tenants.len()).sum();
    report.pools.len() * POOL_BYTES_MAX + all * TENANT_BYTES_MAX <= REPORT_BYTES_MAX
        || (all * TENANT_BYTES_MIN <= REPORT_BYTES_MAX && bytes(report) <= REPORT_BYTES_MAX)
}

/// Whether what is told of a tenant fits into what is left, and takes it off.
fn spend(left: &mut usize, of: &Of, tenant: &TenantReport) -> bool {
    let rest = left.checked_sub(bytes(&of.1) + bytes(tenant) + PUNCTUATION_BYTES);
    *left = rest.unwrap_or(*left);
    rest.is_some()
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
    // What cannot be written takes no room; numbers and names can be.
    serde_json::to_writer(&mut count, value).map_or(0, |()| count.0)
}
