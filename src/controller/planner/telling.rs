//! What is told of a pool: to who asks, and as metrics. Measured when it is asked for, so that a leader that is none any more tells
//! nothing, and a tick pays for nobody's looking.

use std::collections::BTreeMap;

use super::{PoolPlanner, per_window};
use crate::clock::{MonoTime, UnixMillis};
use crate::controller::account::{
    MemberAccount, MeterAccount, OverrideAccount, PoolAccount, TENANTS_TOLD_MAX, TenantAccount,
};
use crate::controller::law::Headers;
use crate::plan::{Grant, Share, Thresholds};
use crate::quota::{Grantee, Meter};
use crate::telemetry::{Metric, OTHER_TENANTS, Sample, Telemetry};

impl PoolPlanner {
    /// What is told of the pool.
    #[must_use]
    pub fn account(&self, now: MonoTime, wall: UnixMillis) -> PoolAccount {
        let mut shares: BTreeMap<&str, BTreeMap<Grantee, Share>> = BTreeMap::new();
        for (grantee, leases) in &self.shares {
            let limited =
                self.outbox.published().get(grantee).is_some_and(|grant| grant.thresholds.concurrency.is_some());
            for (member, share, places) in leases.leases(now) {
                let lease = Share { share, concurrency: limited.then_some(places), with_one_more: None };
                shares.entry(member).or_default().insert(grantee.clone(), lease);
            }
        }
        let members = self.signal.heard(now).map(|(member, age, by_share)| MemberAccount {
            member: member.to_owned(),
            by_share,
            report_age_ms: u64::try_from(age.as_millis()).unwrap_or(u64::MAX),
            shares: shares.remove(member).unwrap_or_default(),
        });
        PoolAccount {
            dialect: self.params.dialect.to_string(),
            mode: self.params.mode,
            reason: self.reason(),
            tenants: self.outbox.published().len(),
            members: members.collect(),
            meters: self.meters(),
            in_flight: whole(self.rows.iter().map(|row| row.asked.in_flight).sum()),
            places: self.places(),
            slowness: self.latency_step.slowness,
            busiest: self.busiest(wall),
            overrides: self.overrides_told(wall),
        }
    }

    fn meters(&self) -> BTreeMap<Meter, MeterAccount> {
        let meter = |(meter, (inputs, step)): (&Meter, &(super::Inputs, super::Step))| {
            let window = |per_s: f64| per_window(*meter, per_s);
            let pulse = self.pulse.as_ref();
            let account = MeterAccount {
                capacity: window(step.capacity_per_s),
                limit: step.limit_per_s.map(window),
                used: window(inputs.traffic.sent_per_s),
                demand: window(inputs.traffic.demand_per_s),
                others: step.others_per_s.map(window),
                level: step.level,
                overcommit: pulse.map_or(step.overcommit, |pulse| pulse.overcommit_of(*meter)),
                shared: pulse.and_then(|pulse| pulse.shared.get(meter)).copied(),
                headers: Some(step.headers),
            };
            (*meter, account)
        };
        self.steps.iter().map(meter).collect()
    }

    /// The tenants for whom most wait, and of those the ones that ask for most.
    fn busiest(&self, wall: UnixMillis) -> BTreeMap<Grantee, TenantAccount> {
        let mut rows: Vec<&super::Row> = self.rows.iter().collect();
        let key = |row: &super::Row| (row.asked.waiting_in_all(), row.asked.requests_per_s());
        rows.sort_by(|a, b| key(b).partial_cmp(&key(a)).unwrap_or(std::cmp::Ordering::Equal));
        rows.truncate(TENANTS_TOLD_MAX);
        let tell = |row: &super::Row| {
            let counters = self.signal.counted(&row.grantee);
            let base = self.outbox.published().get(&row.grantee).map(|grant| &grant.thresholds);
            let rates = |thresholds: &Thresholds| {
                thresholds.rates.iter().map(|(meter, rate)| (*meter, rate.rate)).collect::<BTreeMap<Meter, f64>>()
            };
            let effective = base.map(|base| self.overridden(&row.grantee, base, wall));
            let account = TenantAccount {
                thresholds: base.map(rates).unwrap_or_default(),
                effective: match &effective {
                    Some(used) if used.blocked => used.thresholds.rates.keys().map(|meter| (*meter, 0.0)).collect(),
                    Some(used) => rates(&used.thresholds),
                    None => BTreeMap::new(),
                },
                concurrency: base.and_then(|base| base.concurrency),
                demand_per_s: row.asked.requests_per_s(),
                waiting: whole(row.asked.waiting_in_all()),
                in_flight: whole(row.asked.in_flight),
                admitted: counters.admitted,
                waited: counters.waited,
                refused: counters.refused,
                throttled: counters.throttled.values().sum(),
            };
            (row.grantee.clone(), account)
        };
        rows.into_iter().map(tell).collect()
    }

    fn overrides_told(&self, wall: UnixMillis) -> BTreeMap<String, OverrideAccount> {
        let told = |(target, since): (&super::Target, &UnixMillis)| {
            let record = self.overrides.at(target, wall)?.clone();
            Some((target.to_string(), OverrideAccount { record, since_unix_ms: since.0 }))
        };
        self.overridden_since.iter().filter_map(told).take(super::OVERRIDES_TOLD_MAX).collect()
    }

    /// What is told of the pool as metrics; counters are counted where things happen.
    #[must_use]
    pub fn measure(&self, now: MonoTime, wall: UnixMillis, telemetry: &Telemetry) -> Vec<Sample> {
        let id = self.params.id.as_str();
        let mut samples = Vec::new();
        let mut tell = |metric, value: f64| samples.push(Sample::number(metric, &[id], value));
        tell(Metric::Mode, self.params.mode.number());
        tell(Metric::Members, f64::from(u32::try_from(self.members(now)).unwrap_or(u32::MAX)));
        if let Some(age) = self.signal.heard(now).map(|(_, age, _)| age).max() {
            tell(Metric::ReportAge, age.as_secs_f64());
        }
        tell(Metric::PoolInFlight, self.rows.iter().map(|row| row.asked.in_flight).sum());
        if let Some(places) = self.places() {
            tell(Metric::PoolPlaces, places);
        }
        if let Some(slowness) = self.latency_step.slowness {
            tell(Metric::PoolSlowness, slowness);
        }
        for (meter, ms) in self.signal.holds_ms(now) {
            samples.push(Sample::number(Metric::PoolHold, &[id, &meter.to_string()], seconds(ms)));
        }
        samples.extend(self.meters().iter().flat_map(|(meter, account)| self.measure_meter(*meter, account)));
        samples.extend(self.measure_tenants(wall, telemetry));
        samples.extend(self.measure_overrides(wall));
        samples
    }

    fn measure_meter(&self, meter: Meter, account: &MeterAccount) -> Vec<Sample> {
        let (id, name) = (self.params.id.as_str(), meter.to_string());
        let floors: f64 = self.rows.iter().filter_map(|row| row.tenant.floor.get(&meter)).sum();
        let state = match account.headers {
            Some(Headers::Steer) => 0.0,
            Some(Headers::Coarse) => 1.0,
            Some(Headers::Contradicted) => 2.0,
            Some(Headers::None) | None => 3.0,
        };
        let told = [
            (Metric::PoolLimit, account.limit),
            (Metric::PoolLevel, account.level),
            (Metric::PoolCapacity, Some(account.capacity)),
            // The estimate may swing below zero; what others take cannot.
            (Metric::PoolOthers, account.others.map(|others| others.max(0.0))),
            (Metric::PoolUsed, Some(account.used)),
            (Metric::PoolDemand, Some(account.demand)),
            (Metric::PoolFloors, Some(floors)),
            (Metric::PoolOvercommit, Some(account.overcommit)),
            (Metric::ReadingState, Some(state)),
        ];
        let sample = |(metric, value): (Metric, Option<f64>)| Some(Sample::number(metric, &[id, &name], value?));
        told.into_iter().filter_map(sample).collect()
    }

    /// Each tenant's; of those that have no series of their own the sums.
    fn measure_tenants(&self, wall: UnixMillis, telemetry: &Telemetry) -> Vec<Sample> {
        let id = self.params.id.as_str();
        // Who has traffic is named first.
        let (mut rows, idle): (Vec<&super::Row>, Vec<&super::Row>) =
            self.rows.iter().partition(|row| row.asked.requests_per_s() > 0.0);
        rows.extend(idle);
        let mut sums: BTreeMap<(Metric, String, String), f64> = BTreeMap::new();
        let mut unnamed = 0.0;
        let overridden = self.overrides.targets().next().is_some();
        for row in rows {
            let name = row.grantee.to_string();
            let label = telemetry.tenant_label(id, &name);
            unnamed += if label == OTHER_TENANTS { 1.0 } else { 0.0 };
            let grant: Option<&Grant> = self.outbox.published().get(&row.grantee);
            let used = grant.filter(|_| overridden).map(|grant| self.overridden(&row.grantee, &grant.thresholds, wall));
            for (meter, rate) in grant.iter().flat_map(|grant| &grant.thresholds.rates) {
                if let Some(used) = &used {
                    let rates = &used.thresholds.rates;
                    let effective =
                        if used.blocked { 0.0 } else { rates.get(meter).map_or(rate.rate, |rate| rate.rate) };
                    let key = (Metric::ThresholdEffective, label.to_owned(), meter.to_string());
                    *sums.entry(key).or_default() += effective;
                }
                *sums.entry((Metric::Threshold, label.to_owned(), meter.to_string())).or_default() += rate.rate;
            }
            let told = [
                (Metric::TenantDemand, row.asked.requests_per_s()),
                (Metric::TenantWaiting, row.asked.waiting_in_all()),
                (Metric::TenantInFlight, row.asked.in_flight),
            ];
            for (metric, value) in told {
                *sums.entry((metric, label.to_owned(), String::new())).or_default() += value;
            }
        }
        let granted = sums.clone();
        sums.retain(|(metric, tenant, meter), value| {
            let base = granted.get(&(Metric::Threshold, tenant.clone(), meter.clone()));
            *metric != Metric::ThresholdEffective || base.is_none_or(|base| base != value)
        });
        let sample = |((metric, tenant, meter), value): ((Metric, String, String), f64)| match metric {
            Metric::Threshold | Metric::ThresholdEffective => Sample::number(metric, &[id, &tenant, &meter], value),
            _ => Sample::number(metric, &[id, &tenant], value),
        };
        let unnamed = Sample::number(Metric::TenantsUnnamed, &[id], unnamed);
        sums.into_iter().map(sample).chain([unnamed]).collect()
    }

    fn measure_overrides(&self, wall: UnixMillis) -> Vec<Sample> {
        let id = self.params.id.as_str();
        let mut samples = Vec::new();
        for (target, told) in self.overrides_told(wall) {
            let action = told.record.action.as_str();
            samples.push(Sample::number(Metric::OverrideInForce, &[id, &target, action], 1.0));
            let since = Sample::number(Metric::OverrideSince, &[id, &target], seconds(told.since_unix_ms));
            samples.push(since);
            if let Some(at) = told.record.expires_at {
                #[allow(clippy::cast_precision_loss, reason = "a time stamp in seconds")]
                let at = at.as_second() as f64;
                samples.push(Sample::number(Metric::OverrideExpires, &[id, &target], at));
            }
        }
        samples
    }
}

#[allow(clippy::cast_precision_loss, reason = "a time stamp in milliseconds is far below 2^53")]
fn seconds(unix_ms: u64) -> f64 {
    unix_ms as f64 / 1e3
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count, and casts saturate")]
fn whole(count: f64) -> u64 {
    count.round() as u64
}
