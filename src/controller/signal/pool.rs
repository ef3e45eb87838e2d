//! What is known of one pool from its members' reports.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::SmoothRate;
use super::readings::{DoubtedLimit, NewestReading, Readings};
use crate::clock::MonoTime;
use crate::controller::law::{Latencies, OpenWindow, READING_AGE_MAX, Refilled, Sample, Traffic};
use crate::observation::{Counters, PoolReport, Reading, ThrottleKind, UnitCounts};
use crate::provider::{Refill, ResetMeaning, Semantics};
use crate::quota::{Cost, Grantee, Meter, Unit};

/// A member that has not reported for this long is not counted any more.
pub(in crate::controller) const MEMBER_SILENT_MAX: Duration = Duration::from_secs(10);
/// A member that tells of its tenants in turn has told of each within this, though a report was lost.
const ROUNDS: Duration = Duration::from_secs(5);
/// How far back own use can be looked up: longer than a reading may be old.
const HISTORY: Duration = Duration::from_secs(30);
/// Endings are judged over this long at least.
const ENDINGS_S: f64 = 3.0;
/// A waiting request counts as demand to be served within this long, in seconds.
const DRAIN_S: f64 = 5.0;
/// What one waiting request adds to a demand, in requests per second.
pub(crate) const DEMAND_OF_ONE_WAITING: f64 = 1.0 / DRAIN_S;
/// Demand is granted with this headroom: a member's part is never used to the last unit.
const HEADROOM: f64 = 1.15;
/// Arrivals are random: over this long, one standard deviation more than the mean is room they can use, in seconds.
const SPREAD_S: f64 = 4.0;
/// Use is measured over this long, in seconds.
const USE_S: f64 = 5.0;
/// It is known where that many requests or more would be sent in that time if all of the rate were used.
const USE_TOLD_BY: f64 = 10.0;
/// The line along which use is continued beyond a report spans at least this long: two reports may be close together.
const LINE_MIN: Duration = Duration::from_secs(1);
/// A queue elsewhere counts as demand up to so many times what is asked for here,
const QUEUE_TIMES: f64 = 2.0;
/// and so many requests per second, or places: whoever sends nothing must not hold what others could use by a long queue alone.
const QUEUE_FIRST: f64 = 1.0;
/// A tenant's cost per request before any was seen.
const COST_UNSEEN: Cost = Cost::request(500, 0);
/// Its output before any was seen, in LLM tokens: where output is limited apart. Without a guess a tenant that was never
/// admitted would ask for none, get none, and never be seen.
const OUTPUT_UNSEEN: f64 = 200.0;

#[derive(Debug, Default)]
struct TenantSignal {
    counters: Counters,
    /// Units taken by these counters: asked for at every tick.
    taken: UnitCounts,
    attempts: SmoothRate,
    waiting: u32,
    in_flight: u32,
}

/// What each member has told of one tenant, in the order of their names: in one piece of memory, as a tick looks at all.
#[derive(Debug, Default)]
struct Told(Vec<(String, TenantSignal)>);

impl Told {
    fn find(&self, name: &str) -> Result<usize, usize> {
        self.0.binary_search_by(|(known, _)| known.as_str().cmp(name))
    }

    fn of(&self, name: &str) -> Option<&TenantSignal> {
        self.find(name).ok().map(|at| &self.0[at].1)
    }

    /// What a member has told, to be changed.
    fn by(&mut self, name: &str, first: impl FnOnce() -> TenantSignal) -> &mut TenantSignal {
        let at = self.find(name).unwrap_or_else(|at| {
            // Mostly there is one, and a vector that grows by itself begins with four.
            if self.0.is_empty() {
                self.0.reserve_exact(1);
            }
            self.0.insert(at, (name.to_owned(), first()));
            at
        });
        &mut self.0[at].1
    }

    fn forget(&mut self, name: &str) {
        if let Ok(at) = self.find(name) {
            self.0.remove(at);
        }
    }
}

#[derive(Debug)]
struct Member {
    seen_at: MonoTime,
    /// As it said in its newest report.
    by_share: bool,
    /// Whose traffic it has told of.
    tenants: BTreeSet<Grantee>,
    /// Cumulative units taken and not given back, over time. Below zero when more came back than was taken since it was
    /// first heard of.
    history: VecDeque<(MonoTime, Units)>,
    /// Of its newest report.
    sequence: u64,
    /// Since when it is heard of.
    since: MonoTime,
    /// Whether it has told of all the tenants that it had when it was first heard of: what a further one counts is news.
    told_all: bool,
}

/// Units of each unit, in the order of [`Unit::ALL`].
type Units = [f64; Unit::ALL.len()];

#[derive(Debug, Clone, Copy)]
struct Ended {
    at: MonoTime,
    resolved: u64,
    refused: [u64; Unit::ALL.len()],
}

/// What a tenant asks for, through all members.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Asked {
    requests_per_s: f64,
    /// Of one request, in the order of [`Unit::ALL`].
    costs: Units,
    /// Requests in flight.
    pub in_flight: f64,
    /// Requests that wait for admission.
    pub waiting: f64,
    /// Requests that wait elsewhere to be sent, as a signal tells.
    pub queued: f64,
}

/// Nothing was told.
impl Default for Asked {
    fn default() -> Self {
        Self::of(std::iter::empty())
    }
}

impl Asked {
    fn of<'a>(told: impl Iterator<Item = &'a TenantSignal>) -> Self {
        let mut units = UnitCounts::default();
        let (mut requests_per_s, mut in_flight, mut waiting) = (0.0, 0.0, 0.0);
        for tenant in told {
            units.plus(&tenant.taken);
            requests_per_s += request_demand(tenant);
            in_flight += f64::from(tenant.in_flight);
            waiting += f64::from(tenant.waiting);
        }
        let cost = |unit| match unit {
            // Refusals give their output back: that nothing was taken does not mean that nothing is wanted.
            Unit::OutputTokens if units.of(unit) <= 0.0 => OUTPUT_UNSEEN,
            _ if units.requests == 0 => COST_UNSEEN.of(unit),
            _ => units.of(unit) / units.of(Unit::Requests),
        };
        Self { requests_per_s, costs: Unit::ALL.map(cost), in_flight, waiting, queued: 0.0 }
    }

    /// With a queue that a signal tells of, in requests. Those that wait here may be a part of it, so the longer of the two counts.
    #[must_use]
    pub fn with_queue(self, queued: f64) -> Self {
        let more = (queued - self.waiting).max(0.0);
        let most_per_s = QUEUE_TIMES * self.requests_per_s + QUEUE_FIRST;
        Self {
            requests_per_s: self.requests_per_s + (more * DEMAND_OF_ONE_WAITING).min(most_per_s),
            queued: more,
            ..self
        }
    }

    /// Requests that it could use, per second.
    #[must_use]
    pub fn requests_per_s(&self) -> f64 {
        self.requests_per_s
    }

    /// Requests that wait, here or elsewhere.
    #[must_use]
    pub fn waiting_in_all(&self) -> f64 {
        self.waiting + self.queued
    }

    /// Requests that could be in flight: those that are, and those that wait; of those that wait elsewhere so many as count as
    /// demand too.
    #[must_use]
    pub fn places(&self) -> f64 {
        let here = self.in_flight + self.waiting;
        here + self.queued.min(QUEUE_TIMES * here + QUEUE_FIRST)
    }

    /// What it takes of a unit per request, on average; a guess before anything was seen.
    #[must_use]
    pub fn cost(&self, unit: Unit) -> f64 {
        self.costs[unit as usize]
    }

    /// What it could use of a unit, per second: arrivals with headroom, and its queue drained in 5 s.
    #[must_use]
    pub fn per_s(&self, unit: Unit) -> f64 {
        self.requests_per_s * self.cost(unit)
    }
}

/// The signals of one pool.
#[derive(Debug, Default)]
pub struct PoolSignal {
    members: BTreeMap<String, Member>,
    /// Of each tenant, what each member has told of it. By tenant first: a tick asks for every tenant's, and few of the members
    /// may have any.
    tenants: BTreeMap<Grantee, Told>,
    readings: Readings,
    endings: VecDeque<Ended>,
    holds: BTreeMap<Meter, MonoTime>,
    /// Units of members that are gone, so that the pool's cumulative use never runs backwards.
    departed: Units,
    /// Sums over all answers until now.
    latencies: Latencies,
    /// Since when anything is told.
    told_since: Option<MonoTime>,
}

/// What one report brought that cannot wait for the tick, or is to be counted.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Urgency {
    /// The provider refused something since the member's last report.
    pub throttled: bool,
    /// A later one came before it, and has said all of it.
    pub overtaken: bool,
    /// A limit that it told of and that is not believed yet.
    pub doubted: Option<DoubtedLimit>,
}

impl PoolSignal {
    /// Takes one member's report of this pool.
    pub fn ingest(&mut self, name: &str, report: &PoolReport, now: MonoTime) -> Urgency {
        self.forget_silent(now);
        self.told_since.get_or_insert(now);
        let doubted = self.take_readings(name, report, now);
        let member = self.members.entry(name.to_owned()).or_insert_with(|| Member {
            seen_at: now,
            by_share: report.by_share,
            tenants: BTreeSet::new(),
            history: VecDeque::from([(now, Units::default())]),
            sequence: report.sequence,
            since: now,
            told_all: false,
        });
        member.seen_at = now;
        if report.sequence < member.sequence {
            return Urgency { doubted, overtaken: true, ..Urgency::default() };
        }
        (member.sequence, member.by_share) = (report.sequence, report.by_share);

        let mut ended = Ended { at: now, resolved: 0, refused: [0; Unit::ALL.len()] };
        let mut total = member.history.back().map_or_else(Units::default, |(_, units)| *units);
        for (grantee, tenant) in &report.tenants {
            let known = self.tenants.entry(grantee.clone()).or_default().by(name, || {
                member.tenants.insert(grantee.clone());
                // What it counted before it was first heard of (by this leader) is where counting begins, not news.
                let counters = if member.told_all { Counters::default() } else { tenant.counters.clone() };
                TenantSignal { counters, ..TenantSignal::default() }
            });
            if runs_backwards(&known.counters, &tenant.counters) {
                // Nobody used the tenant there for a while, and the member counts it anew.
                known.counters = Counters::default();
            }
            let (old, new) = (&known.counters, &tenant.counters);
            known.attempts.add(delta(old.attempts, new.attempts), now);
            known.waiting = tenant.waiting;
            known.in_flight = tenant.in_flight;
            self.latencies.ttfb.add_since(&old.ttfb_log_ms, &new.ttfb_log_ms);
            self.latencies.tpot.add_since(&old.tpot_log_ms, &new.tpot_log_ms);
            let refused = |counters: &Counters, unit: Unit| {
                counters.throttled.iter().filter(|(kind, _)| kind.concerns(unit)).map(|(_, n)| n).sum::<u64>()
            };
            for (slot, unit) in Unit::ALL.into_iter().enumerate() {
                ended.refused[slot] += refused(new, unit).saturating_sub(refused(old, unit));
                total[slot] += new.taken().of(unit) - old.taken().of(unit);
            }
            // An overload says nothing of our limits, and one within a stream was counted as a success before.
            let throttled = |counters: &Counters| {
                let of_limits = counters.throttled.iter().filter(|(kind, _)| **kind != ThrottleKind::Overload);
                of_limits.map(|(_, n)| n).sum::<u64>()
            };
            ended.resolved = ended
                .resolved
                .saturating_add(new.succeeded.saturating_sub(old.succeeded))
                .saturating_add(throttled(new).saturating_sub(throttled(old)));
            known.counters = tenant.counters.clone();
            known.taken = known.counters.taken();
        }
        member.told_all |= match report.tenants_in_all {
            None => true,
            Some(in_all) => member.tenants.len() >= in_all && now.since(member.since) >= ROUNDS,
        };
        member.history.push_back((now, total));
        while member.history.len() > 2 && member.history.get(1).is_some_and(|(at, _)| now.since(*at) > HISTORY) {
            member.history.pop_front();
        }
        let throttled = ended.refused.iter().any(|n| *n > 0);
        if ended.resolved > 0 || throttled {
            self.endings.push_back(ended);
        }
        while self.endings.front().is_some_and(|old| now.since(old.at) > HISTORY) {
            self.endings.pop_front();
        }
        Urgency { throttled, doubted, overtaken: false }
    }

    /// Returns a limit that is doubted, if any is.
    fn take_readings(&mut self, name: &str, report: &PoolReport, now: MonoTime) -> Option<DoubtedLimit> {
        let mut doubted = None;
        // One that restarts again and again is one.
        let instance = name.rsplit_once('/').map_or(name, |(instance, _)| instance);
        for (meter, reading) in &report.meters {
            let (Some(limit), Some(level)) = (reading.limit, reading.level) else { continue };
            let sent_at = now.before(Duration::from_millis(reading.age_ms));
            let reset = reading.reset_ms.map(Duration::from_millis);
            let newest = NewestReading { sent_at, limit, level, reset };
            doubted = self.readings.take(*meter, instance, newest).err().or(doubted);
        }
        for (meter, ms) in &report.hold_ms {
            let until = now + Duration::from_millis(*ms);
            let known = self.holds.entry(*meter).or_insert(until);
            *known = (*known).max(until);
        }
        doubted
    }

    /// Forgets members that have not reported lately, and with them their demand.
    pub fn forget_silent(&mut self, now: MonoTime) {
        let silent: Vec<String> = self
            .members
            .iter()
            .filter(|(_, member)| now.since(member.seen_at) > MEMBER_SILENT_MAX)
            .map(|(name, _)| name.clone())
            .collect();
        for name in &silent {
            self.depart(name);
        }
    }

    /// A member has left, or fallen silent: what it took stays counted, its demand does not.
    pub fn depart(&mut self, instance: &str) {
        let Some(member) = self.members.remove(instance) else { return };
        if self.members.is_empty() {
            self.told_since = None;
        }
        for grantee in &member.tenants {
            if let Some(members) = self.tenants.get_mut(grantee) {
                members.forget(instance);
                if members.0.is_empty() {
                    self.tenants.remove(grantee);
                }
            }
        }
        if let Some((_, units)) = member.history.back() {
            for (departed, units) in self.departed.iter_mut().zip(units) {
                *departed += units;
            }
        }
    }

    /// Members that have reported lately.
    #[must_use]
    pub fn members(&self, now: MonoTime) -> usize {
        self.members.values().filter(|member| now.since(member.seen_at) <= MEMBER_SILENT_MAX).count()
    }

    /// Members that have reported lately, how long ago, and whether each goes by its share where others count together.
    pub fn heard(&self, now: MonoTime) -> impl Iterator<Item = (&str, Duration, bool)> {
        let heard = self.members.iter().map(move |(name, of)| (name.as_str(), now.since(of.seen_at), of.by_share));
        heard.filter(|(_, age, _)| *age <= MEMBER_SILENT_MAX)
    }

    /// Units that all members had taken by `at`, less what was given back, cumulative; between reports on a straight line, after the last one
    /// along the line of the last second.
    #[must_use]
    pub fn own_at(&self, unit: Unit, at: MonoTime) -> f64 {
        let slot = unit as usize;
        self.departed[slot] + self.members.values().map(|member| interpolate(&member.history, slot, at)).sum::<f64>()
    }

    /// The newest-sent reading of a meter, of a provider whose words mean this.
    #[must_use]
    pub fn sample(&self, meter: Meter, semantics: &Semantics, now: MonoTime) -> Reading<Sample> {
        let Some(reading) = self.readings.newest(meter) else { return Reading::Missing };
        let age = now.since(reading.sent_at);
        if age > READING_AGE_MAX {
            return Reading::Stale { age };
        }
        let length = Duration::from_secs_f64(meter.window.seconds());
        let end = reading.reset.filter(|reset| semantics.reset == ResetMeaning::ToNextWindow && *reset <= length);
        let refill = match (semantics.refill, end) {
            (Refill::Continuous, _) => Refilled::Always,
            (Refill::FixedWindow, None) => Refilled::Untold,
            (Refill::FixedWindow, Some(reset)) => {
                Refilled::AtEndOf(OpenWindow { ends_at: reading.sent_at + reset, length })
            }
        };
        Reading::Fresh(Sample {
            sent_at: reading.sent_at,
            limit_per_s: meter.per_second(reading.limit),
            level: reading.level,
            slack: semantics.level_slack(meter.unit),
            own: self.own_at(meter.unit, reading.sent_at),
            refill,
        })
    }

    /// Demand, use and endings for a meter; endings since `decreased_at`.
    #[must_use]
    pub fn traffic(
        &self,
        meter: Meter,
        demand_per_s: f64,
        rate_per_s: f64,
        decreased_at: Option<MonoTime>,
        now: MonoTime,
    ) -> Traffic {
        // A slow pool needs longer until a handful of requests has ended.
        let span_s = (16.0 / rate_per_s.max(0.01)).clamp(ENDINGS_S, HISTORY.as_secs_f64());
        let sent = |unit| self.own_at(unit, now) - self.own_at(unit, now.before(Duration::from_secs_f64(USE_S)));
        // Nobody knows what was sent before the first report.
        let is_told = self.told_since.is_some_and(|since| now.seconds_since(since) >= USE_S);
        let slot = meter.unit as usize;
        let recent = self
            .endings
            .iter()
            .filter(|e| now.seconds_since(e.at) <= span_s && decreased_at.is_none_or(|decreased| e.at > decreased));
        let (resolved, refused) = recent.fold((0, 0), |(n, k), e| (n + e.resolved, k + e.refused[slot]));
        Traffic {
            demand_per_s,
            sent_per_s: sent(meter.unit) / USE_S,
            // Of a few requests chance makes half or twice as many; and nothing is not a number of them.
            use_is_known: is_told && sent(Unit::Requests) * rate_per_s * USE_S / sent(meter.unit) >= USE_TOLD_BY,
            resolved,
            refused,
        }
    }

    /// What each tenant asks for, in order.
    pub fn asked(&self) -> impl Iterator<Item = (&Grantee, Asked)> {
        self.tenants.iter().map(|(grantee, members)| (grantee, Asked::of(members.0.iter().map(|(_, told)| told))))
    }

    /// What the members that are there have counted of a tenant.
    #[must_use]
    pub fn counted(&self, grantee: &Grantee) -> Counters {
        let mut sum = Counters::default();
        for (_, told) in self.tenants.get(grantee).into_iter().flat_map(|told| &told.0) {
            let counters = &told.counters;
            sum.admitted = sum.admitted.saturating_add(counters.admitted);
            sum.waited = sum.waited.saturating_add(counters.waited);
            sum.refused = sum.refused.saturating_add(counters.refused);
            for (kind, n) in &counters.throttled {
                let known = sum.throttled.entry(*kind).or_default();
                *known = known.saturating_add(*n);
            }
        }
        sum
    }

    /// One member's demand for a tenant, in requests per second.
    #[must_use]
    pub fn member_demand(&self, instance: &str, grantee: &Grantee) -> f64 {
        self.tenants.get(grantee).and_then(|told| told.of(instance)).map_or(0.0, request_demand)
    }

    /// How long answers took until now.
    #[must_use]
    pub fn latencies(&self) -> Latencies {
        self.latencies
    }

    /// Long holds still running, in ms from now.
    #[must_use]
    pub fn holds_ms(&self, now: MonoTime) -> BTreeMap<Meter, u64> {
        self.holds
            .iter()
            .filter(|(_, until)| **until > now)
            .map(|(meter, until)| (*meter, u64::try_from(until.since(now).as_millis()).unwrap_or(u64::MAX)))
            .collect()
    }
}

fn request_demand(tenant: &TenantSignal) -> f64 {
    let per_s = tenant.attempts.per_s();
    HEADROOM * per_s + (per_s / SPREAD_S).sqrt() + f64::from(tenant.waiting) * DEMAND_OF_ONE_WAITING
}

#[allow(clippy::cast_precision_loss, reason = "counts between two reports are small")]
fn delta(old: u64, new: u64) -> f64 {
    new.saturating_sub(old) as f64
}

/// Whether any count of `new` is below that of `old`.
fn runs_backwards(old: &Counters, new: &Counters) -> bool {
    new.attempts < old.attempts
        || new.sent < old.sent
        || new.succeeded < old.succeeded
        || new.reserved.requests < old.reserved.requests
        || new.throttled.values().sum::<u64>() < old.throttled.values().sum::<u64>()
}

fn interpolate(history: &VecDeque<(MonoTime, Units)>, slot: usize, at: MonoTime) -> f64 {
    let after = history.partition_point(|(t, _)| *t <= at);
    let point = |i: usize| history.get(i).map(|(t, units)| (*t, units[slot]));
    let (left, right) = match after {
        0 => return point(0).map_or(0.0, |(_, units)| units),
        n if n < history.len() => (point(n - 1), point(n)),
        // Beyond the last report: on along the line of the last second, for at most one second.
        n => {
            let last = history.get(n - 1).map_or(at, |(t, _)| *t);
            let far = history.iter().take(n - 1).rposition(|(t, _)| last.since(*t) >= LINE_MIN);
            (point(far.unwrap_or(0)), point(n - 1))
        }
    };
    match (left, right) {
        (Some((t0, u0)), Some((t1, u1))) if t1 > t0 => {
            let span_s = t1.seconds_since(t0);
            let ahead_s = at.seconds_since(t0).min(span_s + 1.0);
            u0 + (u1 - u0) * ahead_s / span_s
        }
        (_, Some((_, units))) => units,
        _ => 0.0,
    }
}
