//! The planner: signals and law in, records out. One value per pool, driven by ticks; it never sees a store or a clock.
//!
//! A tick ends in a pulse to write at once, and in grants that wait in the [`Outbox`].

mod telling;

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::tz::TimeZone;

use super::alignment::window_left;
use super::checkpoint::{CHECKPOINT_SCHEMA, Checkpoint};
use super::division::{Division, Row, per_window, round};
use super::history::{Decided, DecidedBy, Explained, Granted, History, MeterDecided, ThresholdDecided};
use super::joined::joined;
use super::law::{
    CongestionLaw, CongestionStep, CutBy, HEARD_WITHIN, Headers, Inputs, Latencies, LatencyLaw, LatencyStep, MeterLaw,
    Mode, Step,
};
use super::lease::LEASE_FRESH_FOR;
use super::outbox::{Batch, Cut, Outbox};
use super::params::{PoolParams, TenantParams};
use super::shares::{SHARE_VALID, Shares, Wish};
use super::signal::{Asked, DEMAND_OF_ONE_WAITING, Outside, PoolSignal, Pressure, Urgency};
use super::together::{SHARED_HEADROOM, buckets};
use crate::clock::{MonoTime, UnixMillis};
use crate::observation::PoolReport;
use crate::plan::{
    Action, Effective, Grant, Override, OverrideBook, PULSE_SCHEMA, Pulse, Rate, Reason, Share, Target, Thresholds,
    capacity_factor, effective,
};
use crate::quota::{Grantee, Meter, Unit};

/// How long grants live after the last pulse.
pub const VALID_FOR: Duration = Duration::from_secs(15);
/// Thresholds this much above the provider's limit want a word of explanation.
const ABOVE_LIMIT: f64 = 1.02;
/// So many overrides of other tenants are told of with a tenant's steps.
const OVERRIDES_TOLD_MAX: usize = 50;

/// The planner of one pool.
#[derive(Debug)]
pub struct PoolPlanner {
    params: PoolParams,
    outbox: Outbox,
    /// As last written.
    pulse: Option<Pulse>,
    /// Whether that is the one of the last tick.
    is_pulsed: bool,
    signal: PoolSignal,
    laws: BTreeMap<Meter, MeterLaw>,
    /// What the law was told at the last tick, and its step.
    steps: BTreeMap<Meter, (Inputs, Step)>,
    /// The meters whose limit the provider has changed by the last tick.
    changed_limits: Vec<Meter>,
    /// Everybody, in order, with what was asked for at the last tick.
    rows: Vec<Row>,
    /// The same of all together, in the order of [`Unit::ALL`].
    demand_per_s: [f64; Unit::ALL.len()],
    /// The grants as they should be, by the last tick.
    planned: BTreeMap<Grantee, Grant>,
    latency: LatencyLaw,
    /// Its last step.
    latency_step: LatencyStep,
    congestion: CongestionLaw,
    /// Its last step.
    congestion_step: CongestionStep,
    /// What sources tell beside the reports, as of the next tick.
    outside: Outside,
    shares: BTreeMap<Grantee, Shares>,
    overrides: OverrideBook,
    /// Since when each override holds, by the wall clock.
    overridden_since: BTreeMap<Target, UnixMillis>,
    history: History,
    learning_until: Option<MonoTime>,
    present: usize,
    urgent: bool,
}

/// When the last lease has run out that another leader gave: one whose own was taken from it answers on for as long as it thinks
/// it fresh.
fn learned(now: MonoTime) -> MonoTime {
    now + LEASE_FRESH_FOR + SHARE_VALID
}

/// Each tenant's queue; those of tenants without limits of their own are the queue of all these together.
fn queued(params: &PoolParams, told: &BTreeMap<Grantee, f64>) -> BTreeMap<Grantee, f64> {
    let mut queued = BTreeMap::new();
    for (grantee, requests) in told {
        let of = if params.of(grantee).is_some() { grantee } else { &Grantee::Default };
        *queued.entry(of.clone()).or_default() += requests;
    }
    queued
}

/// Everybody, in order.
fn rows(params: &PoolParams) -> Vec<Row> {
    let row = |grantee, tenant: &TenantParams| Row { grantee, tenant: tenant.clone(), asked: Asked::default() };
    let declared = params.tenants.iter().map(|(id, tenant)| row(Grantee::Tenant(id.clone()), tenant));
    std::iter::once(row(Grantee::Default, &params.default_tenant)).chain(declared).collect()
}

impl PoolPlanner {
    /// A planner for a new term, from the grants and the last pulse that an earlier leader left.
    #[must_use]
    pub fn new(
        params: PoolParams,
        term: u64,
        left: BTreeMap<Grantee, Grant>,
        pulse: Option<&Pulse>,
        now: MonoTime,
    ) -> Self {
        // Nobody can hold a lease from an earlier leader when no leader ever granted anything.
        let learning_until = (!left.is_empty()).then(|| learned(now));
        let laws = params
            .capacity
            .iter()
            .map(|(meter, nominal)| {
                let granted: f64 = left.values().filter_map(|g| g.thresholds.rates.get(meter)).map(|r| r.rate).sum();
                // Bases of overridden tenants come on top of the capacity, so their sum is only an upper bound.
                let told = pulse.and_then(|pulse| pulse.capacity.get(meter)).copied().unwrap_or(granted);
                let start = if granted > 0.0 { told.min(granted) } else { nominal.rate };
                let mut law = MeterLaw::new(meter.per_second(start), params.law);
                // What was a constant teaches nothing.
                let learned = pulse.filter(|pulse| !pulse.shared.contains_key(meter));
                law.resume_overcommit(learned.map_or(1.0, |pulse| pulse.overcommit_of(*meter)));
                (*meter, law)
            })
            .collect();
        let mut congestion = CongestionLaw::new(params.law.congestion);
        let places: u32 = left.values().filter_map(|grant| grant.thresholds.concurrency).sum();
        if places > 0 && params.concurrency.is_none() {
            congestion.resume(f64::from(places), now + HEARD_WITHIN);
        }
        Self {
            rows: rows(&params),
            demand_per_s: [0.0; Unit::ALL.len()],
            planned: BTreeMap::new(),
            latency: LatencyLaw::new(params.law.latency),
            latency_step: LatencyStep::default(),
            congestion,
            congestion_step: CongestionStep::default(),
            outside: Outside::default(),
            params,
            outbox: Outbox::new(term, left),
            pulse: None,
            is_pulsed: false,
            signal: PoolSignal::default(),
            laws,
            steps: BTreeMap::new(),
            changed_limits: Vec::new(),
            shares: BTreeMap::new(),
            overrides: OverrideBook::default(),
            overridden_since: BTreeMap::new(),
            history: History::default(),
            learning_until,
            present: 0,
            urgent: false,
        }
    }

    /// Goes on from what an earlier leader had learned, unless that is too long ago.
    pub fn resume(&mut self, checkpoint: &Checkpoint, now: MonoTime, wall: UnixMillis) {
        let Some(age) = checkpoint.age(wall) else { return };
        for (meter, law) in &mut self.laws {
            if let Some(state) = checkpoint.meters.get(meter) {
                law.resume(state, age, now);
            }
        }
    }

    /// What the next leader is to know.
    #[must_use]
    pub fn checkpoint(&self, now: MonoTime, wall: UnixMillis) -> Checkpoint {
        let meters = self.laws.iter().map(|(meter, law)| (*meter, law.state(now)));
        Checkpoint { schema: CHECKPOINT_SCHEMA, unix_ms: wall, meters: meters.collect() }
    }

    /// Members may hold leases that others gave until `then`: nobody gets more than it has until these have run out.
    pub fn learn(&mut self, then: MonoTime) {
        self.learning_until = self.learning_until.max(Some(learned(then)));
    }

    /// The overrides, to be kept up to date by the loop.
    pub fn overrides_mut(&mut self) -> &mut OverrideBook {
        &mut self.overrides
    }

    /// Since when overrides hold: one that is not among them any more does not.
    pub fn set_overridden_since(&mut self, since: BTreeMap<Target, UnixMillis>) {
        self.overridden_since = since;
    }

    /// What it is told of the pool.
    #[must_use]
    pub fn params(&self) -> &PoolParams {
        &self.params
    }

    /// Goes on under another policy of the same pool. What was learned of meters, tenants and members that stay is kept;
    /// where no headers tell, a changed capacity is begun from anew.
    pub fn adopt(&mut self, params: PoolParams) {
        let old = std::mem::replace(&mut self.params, params);
        let capacity = &self.params.capacity;
        self.laws.retain(|meter, _| capacity.contains_key(meter));
        self.steps.retain(|meter, _| capacity.contains_key(meter));
        for (meter, nominal) in capacity {
            let start_per_s = meter.per_second(nominal.rate);
            let law = self.laws.entry(*meter).or_insert_with(|| MeterLaw::new(start_per_s, self.params.law));
            if old.capacity.get(meter).is_none_or(|old| old.rate != nominal.rate) {
                law.restart_without_headers(start_per_s);
            }
        }
        self.shares.retain(|grantee, _| self.params.of(grantee).is_some());
        self.rows = rows(&self.params);
        self.planned.clear();
    }

    /// What sources tell beside the members' reports, until they tell otherwise.
    pub fn hear(&mut self, outside: Outside) {
        self.outside = outside;
    }

    /// How many members of this pool the store knows to be alive.
    pub fn set_present(&mut self, members: usize) {
        self.present = members;
    }

    /// The last tick's step of each meter.
    pub fn steps(&self) -> impl Iterator<Item = (&Meter, &Step)> + Clone {
        self.steps.iter().map(|(meter, (_, step))| (meter, step))
    }

    /// The meters whose limit the provider has changed by the last tick.
    #[must_use]
    pub fn changed_limits(&self) -> &[Meter] {
        &self.changed_limits
    }

    /// The grants on their way to the store.
    #[must_use]
    pub fn outbox(&self) -> &Outbox {
        &self.outbox
    }

    /// The grants, to be taken and acknowledged by the loop.
    pub fn outbox_mut(&mut self) -> &mut Outbox {
        &mut self.outbox
    }

    /// Members that have reported lately.
    #[must_use]
    pub fn members(&self, now: MonoTime) -> usize {
        self.signal.members(now)
    }

    /// Takes one member's report and answers with its shares, and with what cannot wait: a refusal asks for an early tick.
    pub fn report(
        &mut self,
        instance: &str,
        boot: &str,
        report: &PoolReport,
        now: MonoTime,
    ) -> (BTreeMap<Grantee, Share>, Urgency) {
        // Two processes under one name are two members, and so is one that restarted: its old lease still counts.
        let member = format!("{instance}/{boot}");
        let urgency = self.signal.ingest(&member, report, now);
        if urgency.overtaken {
            // The share that it echoes is not the one in force any more.
            return (BTreeMap::new(), urgency);
        }
        // A member without a tenant's traffic needs no part of its threshold.
        let answered = report
            .tenants
            .iter()
            .filter(|(grantee, _)| self.params.of(grantee).is_some())
            .filter_map(|(grantee, tenant)| {
                let wish = Wish {
                    demand: self.signal.member_demand(&member, grantee),
                    of_one_more: DEMAND_OF_ONE_WAITING,
                    echoed: tenant.share,
                    echoed_concurrency: tenant.concurrency,
                    waiting: tenant.waiting > 0,
                };
                let places = self.outbox.published().get(grantee).and_then(|grant| grant.thresholds.concurrency);
                let shares = self.shares.entry(grantee.clone()).or_default();
                let share = shares.answer(&member, wish, places, now, self.learning_until)?;
                Some((grantee.clone(), share))
            })
            .collect();
        self.urgent |= urgency.throttled;
        (answered, urgency)
    }

    /// Whether there are grants to write now: a pulse goes before those that were planned with it.
    #[must_use]
    pub fn may_grant(&self) -> bool {
        self.is_pulsed && self.outbox.is_open()
    }

    /// Whether a report has asked for an early tick.
    #[must_use]
    pub fn is_urgent(&self) -> bool {
        self.urgent
    }

    /// Whether a report asked for an early tick since this was last asked.
    pub fn take_urgent(&mut self) -> bool {
        std::mem::take(&mut self.urgent)
    }

    /// A member that has just reported enforces nothing any more.
    pub fn leave(&mut self, instance: &str, boot: &str) {
        let member = format!("{instance}/{boot}");
        self.shares.values_mut().for_each(|shares| shares.leave(&member));
        self.signal.depart(&member);
    }

    /// One tick: steps the law, and plans what to publish.
    pub fn tick(&mut self, now: MonoTime, wall: UnixMillis) -> Pulse {
        self.is_pulsed = false;
        self.signal.forget_silent(now);
        let in_flight = self.listen();
        self.step_laws(now);
        self.latency_step = self.latency.step(now, &Latencies { in_flight, ..self.signal.latencies() });
        let is_heard = self.members(now) > 0;
        self.congestion_step = self.congestion.step(now, is_heard.then_some(in_flight), &self.outside.pressures);
        let mut planned = std::mem::take(&mut self.planned);
        let division = self.division(now, wall);
        division.fill(self.steps(), &mut planned);
        let lent = |(meter, step): (&Meter, &Step)| (*meter, round(division.overcommit(step)));
        let overcommit = self.steps().map(lent).filter(|(_, factor)| *factor > 1.0).collect();
        let shared = buckets(&division, self.steps(), &planned);
        let (stamp, Cut { scale, epoch: scale_epoch }) = self.outbox.plan(&planned, &self.reason(), now);
        self.planned = planned;
        let capacity = |(meter, step): (&Meter, &Step)| (*meter, round(per_window(*meter, step.capacity_per_s)));
        Pulse {
            schema: PULSE_SCHEMA,
            stamp,
            valid_for_ms: u64::try_from(VALID_FOR.as_millis()).unwrap_or(u64::MAX),
            capacity: self.steps().map(capacity).collect(),
            overcommit,
            shared,
            scale_epoch,
            scale,
            hold_ms: self.signal.holds_ms(now),
            window_left_ms: self.window_left_ms(wall),
            mode: self.params.mode,
            unix_ms: wall,
        }
    }

    /// Takes what every tenant asks for; returns how many requests are in flight.
    fn listen(&mut self) -> f64 {
        let rows = self.rows.iter_mut().map(|row| (&row.grantee, &mut row.asked));
        let mut in_flight = 0.0;
        self.demand_per_s = [0.0; Unit::ALL.len()];
        let queued = queued(&self.params, &self.outside.queued);
        for (grantee, known, asked) in joined(rows, self.signal.asked()) {
            let mut asked = asked.unwrap_or_default();
            if let Some(queued) = queued.get(grantee) {
                asked = asked.with_queue(*queued);
            }
            in_flight += asked.in_flight;
            for (sum, unit) in self.demand_per_s.iter_mut().zip(Unit::ALL) {
                *sum += asked.per_s(unit);
            }
            if let Some(known) = known {
                *known = asked;
            }
        }
        in_flight
    }

    fn division(&self, now: MonoTime, wall: UnixMillis) -> Division<'_> {
        Division {
            params: &self.params,
            rows: &self.rows,
            overrides: &self.overrides,
            published: self.outbox.published(),
            learning: self.learning_until.is_some_and(|until| now < until),
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at least 1")]
            places: self.places().map(|places| places.max(1.0) as u32),
            // Those that are there but cannot report count too: they divide the safe thresholds.
            members: u32::try_from(self.members(now).max(self.present)).unwrap_or(u32::MAX).max(1),
            wall,
        }
    }

    /// In flight at a time, all together, as latency and congestion allow.
    fn places(&self) -> Option<f64> {
        let both = [self.latency_step.places, self.congestion_step.places];
        both.into_iter().flatten().min_by(f64::total_cmp)
    }

    /// What is left of the windows that end by a clock.
    fn window_left_ms(&self, wall: UnixMillis) -> BTreeMap<Meter, u64> {
        let left = |(meter, zone): (&Meter, &TimeZone)| {
            (*meter, u64::try_from(window_left(zone, meter.window, wall).as_millis()).unwrap_or(u64::MAX))
        };
        self.params.zones.iter().map(left).collect()
    }

    /// The pulse was written.
    pub fn pulsed(&mut self, pulse: Pulse) {
        self.pulse = Some(pulse);
        self.is_pulsed = true;
        self.remember(Vec::new());
    }

    /// Grants were written, after the pulse of the same tick.
    pub fn granted(&mut self, batch: Batch, now: MonoTime) {
        let wall = self.pulse.as_ref().map_or_else(UnixMillis::default, |pulse| pulse.unix_ms);
        let puts = batch.iter().filter_map(|(grantee, grant)| Some((grantee, grant.as_ref()?)));
        let granted = puts.map(|(grantee, grant)| (grantee.clone(), self.decided(grantee, &grant.thresholds, wall)));
        let granted = granted.collect();
        self.remember(granted);
        self.outbox.committed(batch, now);
    }

    fn remember(&mut self, granted: Vec<(Grantee, Granted)>) {
        let Some(pulse) = &self.pulse else { return };
        let decided = |(meter, (inputs, step)): (&Meter, &(Inputs, Step))| {
            let (overcommit, shared) = (pulse.overcommit_of(*meter), pulse.shared.get(meter).copied());
            (*meter, MeterDecided { overcommit, shared, ..MeterDecided::new(*meter, inputs, step) })
        };
        let meters = self.steps.iter().map(decided);
        let (unix_ms, stamp, scale) = (pulse.unix_ms, pulse.stamp, pulse.scale.clone());
        let told = |pressure: &Pressure| (pressure.query.clone(), pressure.told.fresh().map(|told| told.value));
        let decided = Decided {
            unix_ms,
            stamp,
            reason: self.reason(),
            scale,
            meters: meters.collect(),
            pressures: self.outside.pressures.iter().map(told).collect(),
            places: self.places(),
            in_flight: self.rows.iter().map(|row| row.asked.in_flight).sum(),
        };
        self.history.push(decided, granted);
    }

    /// A tenant's thresholds, what overrides make of them, and who decided that.
    fn decided(&self, grantee: &Grantee, base: &Thresholds, wall: UnixMillis) -> Granted {
        // Asked of each grant that is rewritten, and mostly there are none.
        let overridden = self.overrides.targets().next().is_some();
        let used = overridden.then(|| self.overridden(grantee, base, wall));
        let policy = self.params.of(grantee);
        let at_bound = |meter: &Meter, rate: f64| {
            let bounds = policy.into_iter().flat_map(|policy| [policy.floor.get(meter), policy.ceiling.get(meter)]);
            bounds.flatten().any(|bound| round(*bound) == rate)
        };
        let decide = |(meter, base): (&Meter, &Rate)| {
            let (effective, overridden) = match &used {
                Some(used) if used.blocked => (Rate { rate: 0.0, burst: 0.0 }, true),
                Some(used) => {
                    let rate = used.thresholds.rates.get(meter).copied().unwrap_or(*base);
                    (rate, used.frozen || rate != *base)
                }
                None => (*base, false),
            };
            let by = match overridden {
                true => DecidedBy::Override,
                false if at_bound(meter, base.rate) => DecidedBy::Policy,
                false => DecidedBy::Law,
            };
            (*meter, ThresholdDecided { base: *base, effective, by })
        };
        base.rates.iter().map(decide).collect()
    }

    /// What members make of a tenant's base by the overrides, that of `@capacity` among them.
    fn overridden(&self, grantee: &Grantee, base: &Thresholds, wall: UnixMillis) -> Effective {
        let (star, own) = self.overrides.for_tenant(grantee, wall);
        let capacity = self.overrides.at(&Target::Capacity, wall);
        let left = |(meter, rate): (&Meter, &Rate)| {
            let told = self.pulse.as_ref().and_then(|pulse| pulse.capacity.get(meter)).copied();
            (*meter, rate.scaled(capacity_factor(capacity, told, *meter)))
        };
        let rates = base.rates.iter().map(left).collect();
        effective(&Thresholds { rates, concurrency: base.concurrency }, star, own)
    }

    /// The last steps that concern a tenant; `None` when it has no grant and no override names it. Who has none shares what
    /// undeclared tenants have, unless it is blocked.
    #[must_use]
    pub fn explain(&self, grantee: &Grantee, wall: UnixMillis) -> Option<Explained> {
        let own = Target::One(grantee.clone());
        let published = self.outbox.published();
        let (of, grant) = match (published.get(grantee), self.overrides.at(&own, wall)) {
            (Some(grant), _) => (grantee, grant),
            (None, Some(_)) => (&Grantee::Default, published.get(&Grantee::Default)?),
            (None, None) => return None,
        };
        let blocked = self.overrides.at(&own, wall).is_some_and(|record| record.action == Action::Block);
        let (about, elsewhere) = self
            .overrides
            .targets()
            .filter_map(|target| Some((target, self.overrides.at(target, wall)?.clone())))
            .partition(|(target, _)| [&Target::Every, &own, &Target::Capacity].contains(target));
        let named = |records: Vec<(&Target, Override)>| {
            records.into_iter().map(|(target, record)| (target.to_string(), record)).take(OVERRIDES_TOLD_MAX).collect()
        };
        Some(Explained {
            pool: self.params.id.clone(),
            tenant: grantee.clone(),
            mode: self.params.mode,
            queued: self.outside.queued.get(grantee).copied(),
            overrides: named(about),
            elsewhere: named(elsewhere),
            now: self.decided(if blocked { grantee } else { of }, &grant.thresholds, wall).into_iter().collect(),
            steps: self.history.of(of),
        })
    }

    fn step_laws(&mut self, now: MonoTime) {
        let semantics = self.params.dialect.semantics();
        self.changed_limits.clear();
        for (meter, law) in &mut self.laws {
            law.fix_overcommit(self.params.shared.contains(meter).then_some(SHARED_HEADROOM));
            let nominal = self.params.capacity.get(meter).copied().unwrap_or(Rate { rate: 0.0, burst: 0.0 });
            let rate_per_s =
                self.steps.get(meter).map_or(meter.per_second(nominal.rate), |(_, step)| step.capacity_per_s);
            let inputs = Inputs {
                now,
                sample: self.signal.sample(*meter, semantics, now),
                own_now: self.signal.own_at(meter.unit, now),
                traffic: self.signal.traffic(
                    *meter,
                    self.demand_per_s[meter.unit as usize],
                    rate_per_s,
                    law.decreased_at(),
                    now,
                ),
                nominal_per_s: Rate { rate: meter.per_second(nominal.rate), burst: nominal.burst },
                told_per_s: self.outside.capacity.get(meter).map(|told| meter.per_second(*told)),
            };
            let step = law.step(&inputs);
            let known = self.steps.get(meter).and_then(|(_, step)| step.limit_per_s);
            let moved = |(old, new): (f64, f64)| (new - old).abs() > self.params.law.observer.limit_step * old;
            if known.zip(step.limit_per_s).is_some_and(moved) {
                self.changed_limits.push(*meter);
            }
            self.steps.insert(*meter, (inputs, step));
        }
    }

    /// Why the grants are as they are: said of the meter with the least room.
    #[must_use]
    pub fn reason(&self) -> Reason {
        let places = self.places();
        if let Some(places) = places.filter(|places| self.congestion_step.places == Some(*places)) {
            let why = match &self.congestion_step.by {
                None => "the far side was congested under an earlier leader".to_owned(),
                Some(CutBy { query, told, aim, is_silent }) => {
                    let now = if *is_silent { ", and is silent now" } else { "" };
                    format!("{query} told {told:.1}, more than {aim}{now}")
                }
            };
            return Reason {
                code: "congestion".into(),
                text: format!("{why}: at most {:.0} at a time", places.floor()),
            };
        }
        if let Some(places) = places {
            let slowness = self.latency_step.slowness.unwrap_or(1.0);
            let text = format!("answers take {slowness:.1} times as long as usual: at most {places:.0} at a time");
            return Reason { code: "latency".into(), text };
        }
        let room = |step: &Step| step.level.map_or(f64::INFINITY, |level| level / step.burst.max(1.0));
        let Some((meter, step)) = self.steps().min_by(|a, b| room(a.1).total_cmp(&room(b.1))) else {
            return Reason { code: "no_meter".into(), text: "no meter is configured".into() };
        };
        let now = per_window(*meter, step.capacity_per_s);
        let why = match step.headers {
            Headers::None | Headers::Steer => "no headers of late",
            Headers::Coarse => "headers tell too little of so small a bucket",
            Headers::Contradicted => "429s contradict the headers",
        };
        let is_told = self.outside.capacity.contains_key(meter);
        let (code, text) = match (step.mode, step.limit_per_s) {
            (Mode::Headers, Some(limit)) => {
                let others = (100.0 * step.others_per_s.unwrap_or(0.0) / limit).max(0.0);
                let limit = per_window(*meter, limit);
                // Above the limit for a while: the bucket has more in it than is kept in reserve.
                let stored = if now > ABOVE_LIMIT * limit { ", and its bucket holds some to be used" } else { "" };
                ("headers_capacity", format!("provider limit {limit:.0} {meter}, others use {others:.0} %{stored}"))
            }
            (Mode::Hold | Mode::Increase, _) if is_told => {
                ("told_capacity", format!("a capacity signal tells {now:.0} {meter}"))
            }
            (Mode::Cut, _) => ("aimd_cut", format!("{why}, too many 429s: cut to {now:.0} {meter}")),
            (Mode::Increase, _) => ("aimd_increase", format!("{why}, used and no 429s: growing, {now:.0} {meter}")),
            _ => ("aimd_hold", format!("{why}, nothing to learn: {now:.0} {meter}")),
        };
        Reason { code: code.into(), text }
    }
}
