//! What of the past is kept beside the last account: what was counted of late, and how thresholds moved. All of it is
//! bounded.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use crate::clock::MonoTime;
use crate::controller::{MeterAccount, PoolAccount, TenantAccount};
use crate::quota::{Grantee, Meter};

/// So many steps a threshold is drawn in, the last [`TRACE_OF`] long together.
pub(super) const TRACE_CELLS: usize = 10;
/// Over how long a threshold is drawn.
const TRACE_OF: Duration = Duration::from_secs(60);
/// Rates are of so long. Members report twice a second, at moments of their own: less than a few seconds tells little.
const RATES_OF: Duration = Duration::from_secs(10);
/// Tenants are sorted anew no more often, so that a row can be read.
const SORTED_EVERY: Duration = Duration::from_secs(5);
/// Most tenants of a pool of whom a past is kept: the leader tells of fifty, and not always of the same.
const TENANTS_MAX: usize = 200;

/// What is counted of a tenant, or of all of a pool: admitted, refused before sending, throttled by the provider.
pub(super) type Counts = [u64; 3];
/// The same per second.
pub(super) type Rates = [f64; 3];

/// What was counted in the last seconds.
#[derive(Debug, Default)]
struct Recent {
    /// How long each step took, and what was counted in it; the oldest first.
    steps: VecDeque<(u64, Counts)>,
    span_ms: u64,
}

impl Recent {
    fn add(&mut self, span_ms: u64, counts: Counts) {
        self.steps.push_back((span_ms, counts));
        self.span_ms = self.span_ms.saturating_add(span_ms);
        // The newest stays, however long it took.
        while let Some((oldest_ms, _)) = self.steps.front().copied().filter(|_| self.steps.len() > 1) {
            if u128::from(self.span_ms - oldest_ms) < RATES_OF.as_millis() {
                break;
            }
            self.steps.pop_front();
            self.span_ms -= oldest_ms;
        }
    }

    #[allow(clippy::cast_precision_loss, reason = "counts of seconds")]
    fn rates(&self) -> Option<Rates> {
        let seconds = self.span_ms as f64 / 1e3;
        let sum = |n: usize| self.steps.iter().map(|(_, counts)| counts[n] as f64).sum::<f64>();
        (self.span_ms > 0).then(|| [0, 1, 2].map(|n| sum(n) / seconds))
    }
}

/// How a threshold moved: its last value in each step of the time that is drawn.
#[derive(Debug, Default)]
struct Trace {
    /// Number of the step, and the value; the oldest first.
    cells: VecDeque<(u64, f64)>,
}

impl Trace {
    #[allow(clippy::cast_possible_truncation, reason = "a minute in nanoseconds")]
    const CELL_NS: u64 = TRACE_OF.as_nanos() as u64 / TRACE_CELLS as u64;

    fn add(&mut self, value: f64, now: MonoTime) {
        let cell = now.0 / Self::CELL_NS;
        match self.cells.back_mut() {
            Some(last) if last.0 == cell => last.1 = value,
            _ => self.cells.push_back((cell, value)),
        }
        while self.cells.len() > TRACE_CELLS {
            self.cells.pop_front();
        }
    }

    fn drawn(&self, now: MonoTime) -> [Option<f64>; TRACE_CELLS] {
        let last = now.0 / Self::CELL_NS;
        let mut drawn = [None; TRACE_CELLS];
        for (cell, value) in &self.cells {
            let ago = usize::try_from(last.saturating_sub(*cell)).unwrap_or(usize::MAX);
            if let Some(place) = (TRACE_CELLS - 1).checked_sub(ago) {
                drawn[place] = Some(*value);
            }
        }
        drawn
    }
}

/// A tenant's past.
#[derive(Debug, Default)]
struct TenantHistory {
    /// What it is counted from: the leader's time, and the counts.
    base: Option<(u64, Counts)>,
    recent: Recent,
    traces: BTreeMap<Meter, Trace>,
    seen_at: MonoTime,
}

impl TenantHistory {
    /// Takes what is told now; returns what was counted since what was told before, where the two can be compared.
    fn add(&mut self, told: &TenantAccount, led_ms: u64, whole_since_ms: u64, now: MonoTime) -> Option<Counts> {
        self.seen_at = now;
        for (meter, threshold) in told.held() {
            self.traces.entry(*meter).or_default().add(*threshold, now);
        }
        self.traces.retain(|meter, _| told.held().contains_key(meter));
        let counts = [told.admitted, told.refused, told.throttled];
        let before = self.base.filter(|(at, _)| *at >= whole_since_ms);
        // The same account again: what is counted from stays.
        if before.is_some_and(|(at, _)| at >= led_ms) {
            return None;
        }
        self.base = Some((led_ms, counts));
        let (at, old) = before?;
        // Less than before: a member is gone, and with it what it had counted. What the others did is not known.
        let less = counts.iter().zip(old).any(|(new, old)| *new < old);
        let grown = [0, 1, 2].map(|n| counts[n].saturating_sub(old[n]));
        (!less).then(|| {
            self.recent.add(led_ms - at, grown);
            grown
        })
    }
}

/// A tenant's thresholds as members hold them.
pub(super) trait Held {
    /// With overrides, where they are told so.
    fn held(&self) -> &BTreeMap<Meter, f64>;
}

impl Held for TenantAccount {
    fn held(&self) -> &BTreeMap<Meter, f64> {
        if self.effective.is_empty() { &self.thresholds } else { &self.effective }
    }
}

/// A pool's past.
#[derive(Debug, Default)]
pub(super) struct PoolHistory {
    tenants: BTreeMap<Grantee, TenantHistory>,
    members: BTreeSet<String>,
    /// The leader's time when a member last came, with all that it had counted before: what is older is not compared.
    whole_since_ms: u64,
    /// The leader's time of the last account.
    led_ms: Option<u64>,
    recent: Recent,
    order: Vec<Grantee>,
    sorted_at: Option<MonoTime>,
    /// The meter that is shown of each tenant.
    pub meter: Option<Meter>,
}

impl PoolHistory {
    /// Another leads: it counts for itself.
    pub(super) fn begin_anew(&mut self) {
        self.led_ms = None;
        self.whole_since_ms = 0;
        self.recent = Recent::default();
        for tenant in self.tenants.values_mut() {
            tenant.base = None;
            tenant.recent = Recent::default();
        }
    }

    /// Takes what the leader told of the pool when it had led for so long.
    pub(super) fn add(&mut self, told: &PoolAccount, led_ms: u64, now: MonoTime) {
        let members: BTreeSet<String> = told.members.iter().map(|member| member.member.clone()).collect();
        if !members.is_subset(&self.members) {
            self.whole_since_ms = led_ms;
        }
        self.members = members;
        let (mut sum, mut whole) = ([0_u64; 3], true);
        for (name, account) in &told.busiest {
            let tenant = self.tenants.entry(name.clone()).or_default();
            match tenant.add(account, led_ms, self.whole_since_ms, now) {
                Some(grown) => [0, 1, 2].into_iter().for_each(|n| sum[n] = sum[n].saturating_add(grown[n])),
                None => whole = false,
            }
        }
        if let Some(before) = self.led_ms.filter(|before| *before >= self.whole_since_ms && *before < led_ms)
            && (whole || sum != [0; 3])
        {
            self.recent.add(led_ms - before, sum);
        }
        self.led_ms = Some(led_ms);
        self.tenants.retain(|name, tenant| told.busiest.contains_key(name) || now.since(tenant.seen_at) <= TRACE_OF);
        if self.tenants.len() > TENANTS_MAX {
            self.tenants.retain(|name, _| told.busiest.contains_key(name));
        }
        self.sort(told, now);
        if self.meter.is_none_or(|meter| !told.meters.contains_key(&meter)) {
            self.meter = binding(told).map(|(meter, _)| meter);
        }
    }

    /// Those first for whom most wait. Between two sortings each keeps its place, and who is new comes last.
    fn sort(&mut self, told: &PoolAccount, now: MonoTime) {
        let by_need = |names: &mut Vec<Grantee>| {
            names.sort_by(|a, b| {
                let need = |name: &Grantee| told.busiest.get(name).map_or((0, 0.0), |t| (t.waiting, t.demand_per_s));
                let ((waiting_a, demand_a), (waiting_b, demand_b)) = (need(a), need(b));
                Reverse(waiting_a).cmp(&Reverse(waiting_b)).then(demand_b.total_cmp(&demand_a)).then(a.cmp(b))
            });
        };
        if self.sorted_at.is_none_or(|at| now.since(at) >= SORTED_EVERY) {
            self.order = told.busiest.keys().cloned().collect();
            by_need(&mut self.order);
            self.sorted_at = Some(now);
            return;
        }
        self.order.retain(|name| told.busiest.contains_key(name));
        let known: BTreeSet<&Grantee> = self.order.iter().collect();
        let mut new: Vec<Grantee> = told.busiest.keys().filter(|name| !known.contains(name)).cloned().collect();
        by_need(&mut new);
        self.order.extend(new);
    }

    /// The next meter of the pool, round and round.
    pub(super) fn next_meter(&mut self, told: &PoolAccount) {
        let after = told.meters.keys().find(|meter| self.meter.is_some_and(|now| **meter > now));
        self.meter = after.or_else(|| told.meters.keys().next()).copied();
    }

    /// The tenants that are told of, as they are shown.
    pub(super) fn order(&self) -> &[Grantee] {
        &self.order
    }

    /// What was counted of the tenants that are told of, per second, of late.
    pub(super) fn rates(&self) -> Option<Rates> {
        self.recent.rates()
    }

    /// What was counted of a tenant, per second, of late.
    pub(super) fn rates_of(&self, tenant: &Grantee) -> Option<Rates> {
        self.tenants.get(tenant)?.recent.rates()
    }

    /// How a tenant's threshold moved in the last minute, the newest last.
    pub(super) fn trace(&self, tenant: &Grantee, meter: Meter, now: MonoTime) -> [Option<f64>; TRACE_CELLS] {
        let trace = self.tenants.get(tenant).and_then(|tenant| tenant.traces.get(&meter));
        trace.map_or([None; TRACE_CELLS], |trace| trace.drawn(now))
    }
}

/// The meter that has least left of what the pool can take.
pub(super) fn binding(pool: &PoolAccount) -> Option<(Meter, &MeterAccount)> {
    let part = |of: &MeterAccount| if of.used > 0.0 { of.used / of.capacity } else { 0.0 };
    // Of equals the first.
    let fullest = pool.meters.iter().rev().max_by(|(_, a), (_, b)| part(a).total_cmp(&part(b)));
    fullest.map(|(meter, of)| (*meter, of))
}

/// Calls that wait in a pool, of the tenants that are told of.
pub(super) fn waiting(pool: &PoolAccount) -> u64 {
    pool.busiest.values().fold(0, |sum, tenant| sum.saturating_add(tenant.waiting))
}
