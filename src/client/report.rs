//! The report and its reply: no queue, one latest value, built when it is sent.

use std::collections::BTreeMap;

use super::gates::Gates;
use super::member::PoolView;
use crate::clock::MonoTime;
use crate::observation::{MeterReport, PoolReport, REPORT_SCHEMA, Report, TenantReport};
use crate::quota::{Grantee, PoolId};

/// A reading older than this is not news.
const READING_AGE_MAX_MS: u64 = 60_000;

/// What this process has to say now.
pub(super) fn report<'a>(
    instance: &str,
    boot: &str,
    pools: impl Iterator<Item = &'a Gates>,
    views: &BTreeMap<PoolId, PoolView>,
    counts_together: bool,
    sequence: u64,
    now: MonoTime,
) -> Report {
    let pools = pools.map(|gates| {
        let id = &gates.pool.id;
        let view = views.get(id);
        let by_share = !counts_together && view.is_some_and(PoolView::is_shared);
        (id.clone(), PoolReport { sequence, by_share, ..pool_report(gates, view, now) })
    });
    let pools = pools.collect();
    Report { schema: REPORT_SCHEMA, instance: instance.to_owned(), boot: boot.to_owned(), leaving: false, pools }
}

fn pool_report(gates: &Gates, view: Option<&PoolView>, now: MonoTime) -> PoolReport {
    let ms = |from: MonoTime, to: MonoTime| u64::try_from(to.since(from).as_millis()).unwrap_or(u64::MAX);
    let pool = &gates.pool;
    let meters = pool
        .readings
        .lock()
        .iter()
        .map(|(meter, reading)| {
            let report = MeterReport {
                limit: reading.limit,
                remaining: reading.remaining,
                level: reading.level,
                reset_ms: reading.reset.map(|reset| u64::try_from(reset.as_millis()).unwrap_or(u64::MAX)),
                age_ms: ms(reading.sent_at, now),
            };
            (*meter, report)
        })
        .filter(|(_, report)| report.age_ms <= READING_AGE_MAX_MS)
        .collect();
    let hold_ms = {
        let mut holds = pool.long_holds.lock();
        holds.retain(|_, until| *until > now);
        holds.iter().map(|(meter, until)| (*meter, ms(now, *until))).collect()
    };
    let mut tenants: BTreeMap<Grantee, TenantReport> = gates
        .traffic()
        .into_iter()
        .map(|(grantee, gate)| {
            let tenant = TenantReport {
                counters: gate.counters,
                in_flight: gate.in_flight,
                waiting: u32::try_from(gate.waiting).unwrap_or(u32::MAX),
                ..TenantReport::default()
            };
            (grantee, tenant)
        })
        .collect();
    // Every lease is echoed, of tenants without traffic here too: what is not echoed counts as given back.
    for (grantee, share, _) in view.into_iter().flat_map(|view| view.leases(now)) {
        let tenant = tenants.entry(grantee.clone()).or_default();
        tenant.share = Some(share.share);
        tenant.concurrency = share.concurrency;
    }
    PoolReport { meters, hold_ms, tenants, ..PoolReport::default() }
}
