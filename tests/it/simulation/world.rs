//! The world: members, controllers and operators over one lossy store, the troubles that befall them, and their story.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use tidegate::clock::{Clock, MonoTime};
use tidegate::controller::{Params, PoolParams, TenantParams};
use tidegate::observation::Report;
use tidegate::plan::keyspace::{Key, Keyspace};
use tidegate::plan::{Action, Amount, Override, Rate, Reply, Target};
use tidegate::provider::Dialect;
use tidegate::quota::{Grantee, Meter, PoolId};
use tidegate::sim::events::{Dice, DriftingClock, Timeline};
use tidegate::sim::lossy::{Ask, Call, Client, LossyStore, Reached, WatchId, Weather, Wire};
use tidegate::store::{Change, Kv, StoreError, Txn};

use super::controller::Controller;
use super::laws::{Known, Truth};
use super::member::{Member, Wish};

const RPM: Meter = Meter::REQUESTS_PER_MINUTE;
/// What each pool can take, requests a minute.
const CAPACITY: f64 = 600.0;
const PLACES: u32 = 12;
/// Two pools: one that operators look after, and one that they leave alone.
const POOLS: [&str; 2] = ["minded", "quiet"];

/// What somebody is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Member,
    Controller,
    Operator,
}

/// Somebody, in one of its lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Of {
    pub kind: Kind,
    pub who: usize,
    pub life: usize,
}

impl Of {
    /// Its number at the store.
    pub fn client(self) -> Client {
        (self.kind as usize * 100 + self.who) * 100 + self.life
    }
}

impl fmt::Display for Of {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Member => "member",
            Kind::Controller => "controller",
            Kind::Operator => "operator",
        };
        write!(f, "{kind} {}", self.who)?;
        if self.life > 0 { write!(f, "'{}", self.life) } else { Ok(()) }
    }
}

/// A member's timers.
#[derive(Debug, Clone, Copy)]
pub enum Timer {
    House,
    Reopen,
    Report,
    ReportGivenUp(u64),
    Presence,
    Load,
    Ends(u64),
}

/// A controller's.
#[derive(Debug, Clone, Copy)]
pub enum Duty {
    Campaign,
    Keep(tidegate::store::LeaseId),
    Tick(tidegate::store::LeaseId),
    EarlyTick(tidegate::store::LeaseId),
}

/// What a trouble leaves to be mended.
#[derive(Debug, Clone)]
pub enum Mend {
    Weather(Of),
    Roads(usize),
    Down,
    Full,
    Stalled(WatchId),
    Controller(usize),
    Member(usize),
}

/// What happens.
#[derive(Debug)]
pub enum Event {
    Wire(Wire),
    Member(Of, Timer),
    Controller(Of, Duty),
    /// A report reaches a controller.
    Report {
        to: usize,
        from: Of,
        nth: u64,
        report: Box<Report>,
    },
    /// Its answer reaches the member.
    Reply {
        to: Of,
        nth: u64,
        reply: Result<Reply, Option<String>>,
    },
    Operator,
    /// An operator tries once more what failed.
    Again,
    Trouble,
    Mend(Mend),
    /// An override was written a while ago.
    IsInForce {
        pool: PoolId,
        target: Target,
        revision: u64,
        watches: BTreeSet<(Of, WatchId)>,
    },
}

impl From<Wire> for Event {
    fn from(wire: Wire) -> Self {
        Self::Wire(wire)
    }
}

/// After the last trouble: a watch that is silent is given up after 9 s, and listed anew within 4 s; a share follows.
const HEALED_WITHIN: Duration = Duration::from_secs(15);
const AGAIN_AFTER: Duration = Duration::from_millis(400);
/// How long an override may take to be in force where nothing is in its way.
const IN_FORCE_WITHIN: Duration = Duration::from_millis(100);

/// The provider: a limit of each pool, and what it says of it.
#[derive(Debug)]
pub struct Provider {
    limits: BTreeMap<PoolId, (f64, f64, MonoTime)>,
    headers: bool,
}

impl Provider {
    /// Answers a request: status and headers.
    pub fn answer(&mut self, pool: &PoolId, now: MonoTime) -> (u16, Vec<(String, Vec<u8>)>) {
        let Some((limit, level, at)) = self.limits.get_mut(pool) else { return (404, Vec::new()) };
        let burst = *limit / 10.0;
        *level = (*level + *limit / 60.0 * now.seconds_since(*at)).min(burst);
        *at = now;
        let status = if *level >= 1.0 { 200 } else { 429 };
        if status == 200 {
            *level -= 1.0;
        }
        let head = |name: &str, value: String| (format!("x-ratelimit-{name}-requests"), value.into_bytes());
        let headers = if self.headers {
            let reset_s = (burst - *level) / (*limit / 60.0);
            vec![
                head("limit", format!("{limit:.0}")),
                head("remaining", format!("{:.0}", level.floor())),
                head("reset", format!("{:.0}ms", reset_s * 1e3)),
            ]
        } else {
            Vec::new()
        };
        (status, headers)
    }
}

/// How reports of a member go, both ways.
#[derive(Debug, Clone)]
struct Roads {
    delay: std::ops::Range<Duration>,
    loss: f64,
}

impl Roads {
    fn fair() -> Self {
        Self { delay: Duration::from_micros(200)..Duration::from_millis(3), loss: 0.0 }
    }
}

/// A change that an operator is making: sent again until it is answered.
struct Making {
    call: Call,
    txn: Txn,
    words: String,
}

/// What a run came to.
#[derive(Debug, Default, Clone, Copy)]
pub struct Outcome {
    pub steps: u64,
    pub seconds: f64,
    pub most_shares: f64,
    pub terms: u64,
    pub restored: usize,
    pub overrides: u64,
}

/// The world.
pub struct World {
    dice: Dice,
    timeline: Timeline<Event>,
    store: LossyStore,
    members: BTreeMap<usize, Member>,
    known: BTreeMap<Of, Known>,
    lives: BTreeMap<(Kind, usize), usize>,
    controllers: BTreeMap<usize, Controller>,
    paused: BTreeMap<usize, MonoTime>,
    roads: BTreeMap<usize, Roads>,
    provider: Provider,
    truth: Truth,
    operator: Option<Making>,
    snapshot: Option<Kv>,
    troubled: bool,
    pools: Vec<PoolId>,
    outcome: Outcome,
    story: Option<Vec<String>>,
}

impl World {
    pub fn new(seed: u64, telling: bool) -> Self {
        // What the code under test throws dice for by itself.
        fastrand::seed(seed);
        let mut dice = Dice::new(seed);
        let mut timeline = Timeline::new(MonoTime::from_millis(3_600_000));
        let store = LossyStore::new(1, &mut timeline);
        let pools: Vec<PoolId> = POOLS.iter().filter_map(|name| name.parse().ok()).collect();
        let limit = |pool: &PoolId| (pool.clone(), (CAPACITY, CAPACITY / 10.0, timeline.now()));
        let provider = Provider { limits: pools.iter().map(limit).collect(), headers: dice.chance(0.7) };
        let mut world = Self {
            dice,
            timeline,
            store,
            members: BTreeMap::new(),
            known: BTreeMap::new(),
            lives: BTreeMap::new(),
            controllers: BTreeMap::new(),
            paused: BTreeMap::new(),
            roads: BTreeMap::new(),
            provider,
            truth: Truth::default(),
            operator: None,
            snapshot: None,
            troubled: true,
            pools,
            outcome: Outcome::default(),
            story: telling.then(Vec::new),
        };
        for who in 0..world.dice.number(2..4) as usize {
            world.start_controller(who);
        }
        for who in 0..world.dice.number(2..5) as usize {
            world.start_member(who);
        }
        world.timeline.after(Duration::from_secs(2), Event::Operator);
        world.timeline.after(Duration::from_secs(3), Event::Trouble);
        world
    }

    /// Lives through `steps` deliveries with all their troubles, then mends everything and looks whether all is well.
    pub fn run(mut self, steps: u64) -> Result<Outcome, (String, Vec<String>)> {
        let began = self.timeline.now();
        let lived = self.live(steps).and_then(|()| self.heal());
        self.outcome.seconds = self.timeline.now().seconds_since(began);
        self.outcome.restored = self.truth.restored;
        match lived {
            Ok(()) => Ok(self.outcome),
            Err(why) => {
                self.tell("the law", || why.clone());
                Err((why, self.story.unwrap_or_default()))
            }
        }
    }

    fn live(&mut self, steps: u64) -> Result<(), String> {
        while self.outcome.steps < steps {
            self.next()?;
        }
        Ok(())
    }

    /// Everything is mended, and after a while all agree.
    fn heal(&mut self) -> Result<(), String> {
        self.troubled = false;
        self.tell("the world", || "everything is mended".to_owned());
        self.store.set_down(false, &mut self.timeline);
        self.store.set_full(false);
        for watch in self.store.watches() {
            self.store.set_stalled(watch, false, &mut self.timeline);
        }
        let everyone: Vec<Of> =
            self.members.values().map(|m| m.of).chain(self.controllers.values().map(|c| c.of)).collect();
        for of in everyone {
            *self.store.weather(of.client()) = Weather::fair();
        }
        self.roads.clear();
        self.paused.clear();
        for who in 0..2 {
            if !self.controllers.contains_key(&who) {
                self.start_controller(who);
            }
            if !self.members.contains_key(&who) {
                self.start_member(who);
            }
        }
        self.provider.limits.values_mut().for_each(|limit| limit.0 = CAPACITY);
        self.wait(HEALED_WITHIN)?;
        self.all_agree()?;
        if self.dice.chance(0.2) { self.override_once() } else { Ok(()) }
    }

    /// Nothing is overridden; then one tenant is, once.
    fn override_once(&mut self) -> Result<(), String> {
        let targets: Vec<(PoolId, Target)> = self.truth.targets().cloned().collect();
        for (pool, target) in targets {
            let key = Keyspace::default().key(&Key::Override(pool, target));
            let words = format!("takes {key} away");
            self.change(Txn::delete(key), words);
            self.wait(Duration::from_millis(50))?;
        }
        self.wait(Duration::from_secs(10))?;
        let before = self.base("minded", "acme")?;
        self.put_override("acme", &Override::new(Action::Scale(0.5)));
        self.wait(Duration::from_secs(6))?;
        self.all_agree()?;
        let after = self.base("minded", "acme")?;
        if after < 0.7 * before {
            return Err(format!("an override is applied twice: the base of minded/acme went from {before} to {after}"));
        }
        Ok(())
    }

    fn wait(&mut self, span: Duration) -> Result<(), String> {
        let until = self.timeline.now() + span;
        while self.timeline.now() < until {
            self.next()?;
        }
        Ok(())
    }

    /// What is granted, before overrides.
    fn base(&self, pool: &str, tenant: &str) -> Result<f64, String> {
        let key = Keyspace::default()
            .key(&Key::Limits(pool.parse().map_err(|_| "a pool")?, tenant.parse().map_err(|_| "a tenant")?));
        let entry = self.store.kv().get(&key).ok_or("no grant")?;
        let grant = tidegate::plan::Grant::parse(&entry.value).map_err(|error| error.to_string())?;
        Ok(grant.thresholds.rates.get(&RPM).map_or(0.0, |rate| rate.rate))
    }

    fn all_agree(&mut self) -> Result<(), String> {
        let leaders = self.controllers.values().filter(|controller| controller.leads()).count();
        if leaders != 1 {
            return Err(format!("{leaders} lead, after all has been well for a while"));
        }
        let keys = Keyspace::default();
        for member in self.members.values() {
            self.truth.has_overrides(member)?;
            let now = member.clock.now();
            member.core.with_views(|views| {
                for (id, view) in views {
                    if view.state(now) != tidegate::client::MemberState::Active {
                        return Err(format!("{} is {:?} in {id}, after all has been well", member.of, view.state(now)));
                    }
                    for (grantee, stamp) in view.stamps() {
                        let key = keys.key(&Key::Limits(id.clone(), grantee.clone()));
                        let entry = self.store.kv().get(&key).ok_or(format!("{} keeps {key}", member.of))?;
                        let grant = tidegate::plan::Grant::parse(&entry.value).map_err(|error| error.to_string())?;
                        let since = self.truth.stands_since(&key).unwrap_or_default();
                        if grant.stamp != stamp && self.timeline.now().since(since) > IN_FORCE_WITHIN {
                            let (of, stands) = (member.of, grant.stamp);
                            return Err(format!("{of} has {key} of {stamp:?}, and {stands:?} stands"));
                        }
                    }
                }
                Ok(())
            })?;
        }
        // Who has just begun to use a tenant has a share of it after his next report.
        let without = self.without_share();
        self.wait(Duration::from_secs(1))?;
        match without.intersection(&self.without_share()).next() {
            Some((of, pool, grantee)) => Err(format!("{of} has no share of {pool}/{grantee}, after all has been well")),
            None => Ok(()),
        }
    }

    /// Who uses a tenant and has no share of it.
    fn without_share(&self) -> BTreeSet<(Of, PoolId, Grantee)> {
        let mut without = BTreeSet::new();
        for member in self.members.values() {
            let now = member.clock.now();
            for (id, pool) in &member.pools {
                let used = pool.traffic();
                member.core.with_views(|views| {
                    let lacks = |grantee: &&Grantee| views[id].share_at(grantee, now).is_none();
                    let granted = views[id].stamps().map(|(grantee, _)| grantee);
                    let granted = granted.filter(|grantee| used.contains_key(*grantee)).filter(lacks);
                    without.extend(granted.map(|grantee| (member.of, id.clone(), grantee.clone())));
                });
            }
        }
        without
    }

    // === Events ===

    fn next(&mut self) -> Result<(), String> {
        let Some(event) = self.timeline.pop() else { return Err("nothing happens any more".to_owned()) };
        match event {
            Event::Wire(wire) => self.on_wire(wire),
            Event::Member(of, timer) => self.on_timer(of, timer),
            Event::Controller(of, duty) => {
                if let Some(until) = self.paused_until(of) {
                    self.timeline.at(until, Event::Controller(of, duty));
                    return Ok(());
                }
                let Some(controller) = self.controllers.get_mut(&of.who).filter(|c| c.of == of) else { return Ok(()) };
                let said = controller.on_duty(duty, &mut self.store, &mut self.timeline, &mut self.dice);
                self.say(of, said);
                Ok(())
            }
            Event::Report { to, from, nth, report } => self.on_report(to, from, nth, report),
            Event::Reply { to, nth, reply } => self.on_reply(to, nth, reply),
            Event::Operator => {
                self.operate();
                Ok(())
            }
            Event::Again => {
                if let Some(change) = self.operator.take() {
                    self.change(change.txn, change.words);
                }
                Ok(())
            }
            Event::Trouble => self.trouble(),
            Event::Mend(mend) => {
                self.mend(mend);
                Ok(())
            }
            Event::IsInForce { pool, target, revision, watches } => {
                self.is_in_force(&pool, &target, revision, &watches)
            }
        }
    }

    fn paused_until(&self, of: Of) -> Option<MonoTime> {
        let until = self.paused.get(&of.who).filter(|_| of.kind == Kind::Controller)?;
        (*until > self.timeline.now()).then_some(*until)
    }

    fn on_wire(&mut self, wire: Wire) -> Result<(), String> {
        if let Some(client) = self.store.addressee(&wire)
            && let Some(until) = self.controller_of(client).and_then(|of| self.paused_until(of))
        {
            self.timeline.at(until, wire);
            return Ok(());
        }
        let Some(reached) = self.store.on_wire(wire, &mut self.timeline, &mut self.dice) else { return Ok(()) };
        self.outcome.steps += 1;
        self.on_reached(reached)
    }

    fn controller_of(&self, client: Client) -> Option<Of> {
        self.controllers.values().map(|c| c.of).find(|of| of.client() == client)
    }

    fn on_reached(&mut self, reached: Reached) -> Result<(), String> {
        let client = match &reached {
            Reached::Written(changes) => return self.on_written(changes),
            Reached::Answer(client, ..) | Reached::Told(client, ..) => *client,
        };
        let (store, timeline, dice) = (&mut self.store, &mut self.timeline, &mut self.dice);
        if let Some(member) = self.members.values_mut().find(|m| m.of.client() == client) {
            let wish = match reached {
                Reached::Answer(_, call, answer) => member.on_answer(call, answer, store, timeline, dice),
                Reached::Told(_, watch, event) => member.on_told(watch, event, timeline, dice),
                Reached::Written(_) => None,
            };
            let of = member.of;
            self.wish(of, wish);
            return self.keeps_order(of);
        }
        if let Some(controller) = self.controllers.values_mut().find(|c| c.of.client() == client) {
            let said = match reached {
                Reached::Answer(_, call, answer) => controller.on_answer(call, answer, store, timeline, dice),
                Reached::Told(_, watch, event) => controller.on_told(watch, &event, store, timeline),
                Reached::Written(_) => None,
            };
            let of = controller.of;
            self.say(of, said);
        } else if let Reached::Answer(_, call, answer) = reached {
            self.on_operator_answer(call, &answer);
        }
        Ok(())
    }

    fn on_written(&mut self, changes: &[Change]) -> Result<(), String> {
        let now = self.timeline.now();
        self.truth.written(changes, self.store.kv(), now)?;
        if self.story.is_some() {
            let text = |change: &Change| match change {
                Change::Put(entry) => format!("{} = {}", entry.key, String::from_utf8_lossy(&entry.value)),
                Change::Delete { key, .. } => format!("{key} is gone"),
            };
            let revision = self.store.kv().revision();
            let all = changes.iter().map(text).collect::<Vec<_>>().join("\n                ");
            self.tell("the store", || format!("revision {revision}: {all}"));
        }
        let keys = Keyspace::default();
        for change in changes {
            if let Some(Key::Override(pool, target)) = keys.parse(change.key()) {
                self.outcome.overrides += 1;
                let well = |member: &&Member| {
                    self.store.reaches(member.of.client())
                        && self.store.is_fair(member.of.client())
                        && member.watch.is_some_and(|watch| !self.store.is_stalled(watch))
                };
                let watches = self.members.values().filter(well).filter_map(|m| Some((m.of, m.watch?))).collect();
                let revision = change.mod_revision();
                self.timeline.after(IN_FORCE_WITHIN, Event::IsInForce { pool, target, revision, watches });
            }
        }
        Ok(())
    }

    fn is_in_force(
        &self,
        pool: &PoolId,
        target: &Target,
        revision: u64,
        watches: &BTreeSet<(Of, WatchId)>,
    ) -> Result<(), String> {
        // Written over since, or of a store that is no more.
        if self.truth.last_written(pool, target) != Some(revision) {
            return Ok(());
        }
        for (of, watch) in watches {
            let Some(member) = self.members.get(&of.who).filter(|m| m.of == *of && m.watch == Some(*watch)) else {
                continue;
            };
            if self.store.is_fair(of.client()) && self.store.reaches(of.client()) && !self.store.is_stalled(*watch) {
                self.truth.has_overrides_of(member, pool, target).map_err(|why| format!("{why}, 100 ms later"))?;
            }
        }
        Ok(())
    }

    fn on_timer(&mut self, of: Of, timer: Timer) -> Result<(), String> {
        let Some(member) = self.members.get_mut(&of.who).filter(|m| m.of == of) else { return Ok(()) };
        let wish = member.on_timer(timer, &mut self.store, &mut self.timeline, &mut self.dice, &mut self.provider);
        let wish = wish.map_err(|why| format!("{of}: {why}"))?;
        self.wish(of, wish);
        if matches!(timer, Timer::House) { self.judge(of) } else { Ok(()) }
    }

    fn keeps_order(&mut self, of: Of) -> Result<(), String> {
        let Some(member) = self.members.get(&of.who) else { return Ok(()) };
        self.truth.order(member, self.known.entry(of).or_default()).map_err(|why| format!("{of}: {why}"))
    }

    /// Whether what a member enforces follows from what was written.
    fn judge(&self, of: Of) -> Result<(), String> {
        let Some(member) = self.members.get(&of.who) else { return Ok(()) };
        let (now, wall) = (member.clock.now(), member.clock.wall());
        self.truth.terms(member, now, wall).map_err(|why| format!("{of}: {why}"))
    }

    fn wish(&mut self, of: Of, wish: Option<Wish>) {
        match wish {
            Some(Wish::Say(what)) => self.tell(&of.to_string(), || what),
            Some(Wish::Post { to, nth, report }) => self.post(of, to, nth, report),
            None => {}
        }
    }

    fn post(&mut self, from: Of, to: usize, nth: u64, report: Box<Report>) {
        let roads = self.roads.get(&from.who).cloned().unwrap_or_else(Roads::fair);
        if self.dice.chance(roads.loss) {
            self.tell(&from.to_string(), || format!("reports to controller {to}; that is lost"));
        } else {
            let span = self.dice.span(&roads.delay);
            self.timeline.after(span, Event::Report { to, from, nth, report });
        }
    }

    fn on_report(&mut self, to: usize, from: Of, nth: u64, report: Box<Report>) -> Result<(), String> {
        if let Some(until) = self.paused.get(&to).filter(|until| **until > self.timeline.now()) {
            self.timeline.at(*until, Event::Report { to, from, nth, report });
            return Ok(());
        }
        self.outcome.steps += 1;
        let Some(controller) = self.controllers.get_mut(&to) else { return Ok(()) };
        let body = serde_json::to_vec(&report).map_err(|error| error.to_string())?;
        let report = Report::parse(&body).map_err(|error| format!("{from} reports what cannot be read: {error}"))?;
        let reply = controller.answer(&report, &mut self.store, &mut self.timeline, &mut self.dice);
        let roads = self.roads.get(&from.who).cloned().unwrap_or_else(Roads::fair);
        if !self.dice.chance(roads.loss) {
            let span = self.dice.span(&roads.delay);
            self.timeline.after(span, Event::Reply { to: from, nth, reply });
        }
        Ok(())
    }

    fn on_reply(&mut self, to: Of, nth: u64, reply: Result<Reply, Option<String>>) -> Result<(), String> {
        self.outcome.steps += 1;
        let Some(member) = self.members.get_mut(&to.who).filter(|m| m.of == to) else { return Ok(()) };
        let wish = member.on_reply(nth, reply, &mut self.timeline);
        self.wish(to, wish);
        let most = self.truth.shares(self.members.values(), self.timeline.now())?;
        self.outcome.most_shares = self.outcome.most_shares.max(most);
        Ok(())
    }

    // === Operators ===

    fn operate(&mut self) {
        let span = self.dice.span(&(Duration::from_millis(200)..Duration::from_secs(3)));
        self.timeline.after(span, Event::Operator);
        if !self.troubled || self.operator.is_some() {
            return;
        }
        let name = *self.dice.pick(&["acme", "acme", "globex", "*", "@capacity", "@default", "stranger"]);
        let Ok(target) = name.parse::<Target>() else { return };
        let number = 10.0 * self.dice.number(0..60) as f64;
        let map = |rate: f64| [(RPM, Amount::from(rate))].into();
        let choice = self.dice.number(0..9);
        let action = match (&target, choice) {
            (_, 0) | (Target::Capacity, 4..) => Action::Scale(self.dice.number(0..8) as f64 / 4.0),
            (_, 1) => Action::Set(map(number)),
            (Target::Capacity, _) => Action::Set(map(number)),
            (_, 2) => Action::Floor(map(number)),
            (_, 3) => Action::Ceiling(map(number)),
            (_, 4) => Action::Freeze,
            (_, 5) => Action::Block,
            (_, 6) => {
                let key = Keyspace::default().key(&Key::Override(self.pools[0].clone(), target));
                return self
                    .change(Txn::put(key, b"{\"set\":60}".to_vec()), format!("mistypes the override of {name}"));
            }
            _ => {
                let key = Keyspace::default().key(&Key::Override(self.pools[0].clone(), target));
                return self.change(Txn::delete(key), format!("takes the override of {name} away"));
            }
        };
        let record = Override::new(action).by("mori").because("a test");
        let record = if self.dice.chance(0.3) {
            let clock = DriftingClock::new(self.timeline.time(), MonoTime(0), 0, 0);
            record.until(clock.wall() + self.dice.span(&(Duration::from_secs(1)..Duration::from_secs(15))))
        } else {
            record
        };
        self.put_override(name, &record);
    }

    fn put_override(&mut self, name: &str, record: &Override) {
        let Ok(target) = name.parse::<Target>() else { return };
        let Ok(value) = record.to_json(&target) else { return };
        let words = format!("overrides {name}: {}", String::from_utf8_lossy(&value));
        let key = Keyspace::default().key(&Key::Override(self.pools[0].clone(), target));
        self.change(Txn::put(key, value), words);
    }

    fn change(&mut self, txn: Txn, words: String) {
        self.tell("operator", || words.clone());
        let of = Of { kind: Kind::Operator, who: 0, life: 0 };
        let call = self.store.ask(of.client(), Ask::Commit(txn.clone()), &mut self.timeline, &mut self.dice);
        self.operator = Some(Making { call, txn, words });
    }

    fn on_operator_answer<T>(&mut self, call: Call, answer: &Result<T, StoreError>) {
        let Some(change) = self.operator.take_if(|change| change.call == call) else { return };
        if matches!(answer, Err(StoreError::Unavailable { .. } | StoreError::NoSpace)) {
            self.operator = Some(change);
            self.timeline.after(AGAIN_AFTER, Event::Again);
        }
    }

    // === Troubles ===

    fn trouble(&mut self) -> Result<(), String> {
        let span = self.dice.span(&(Duration::from_millis(100)..Duration::from_millis(1_500)));
        self.timeline.after(span, Event::Trouble);
        if !self.troubled {
            return Ok(());
        }
        self.outcome.steps += 1;
        let long = self.dice.span(&(Duration::from_millis(300)..Duration::from_secs(12)));
        match self.dice.number(0..22) {
            0..=3 => self.bad_weather(long),
            4 | 5 => self.bad_roads(long),
            6..=8 => {
                let watches = self.store.watches();
                if !watches.is_empty() {
                    let watch = *self.dice.pick(&watches);
                    if self.dice.chance(0.5) {
                        self.tell("trouble", || format!("{watch:?} breaks"));
                        self.store.break_watch(watch, &mut self.timeline);
                    } else {
                        self.tell("trouble", || format!("{watch:?} stalls for {long:?}"));
                        self.store.set_stalled(watch, true, &mut self.timeline);
                        self.timeline.after(long, Event::Mend(Mend::Stalled(watch)));
                    }
                }
            }
            9 | 10 => {
                self.tell("trouble", || "the store is compacted".to_owned());
                self.store.compact(&mut self.timeline);
            }
            11 => {
                self.tell("trouble", || format!("the store is down for {long:?}"));
                self.store.set_down(true, &mut self.timeline);
                self.timeline.after(long, Event::Mend(Mend::Down));
            }
            12 => {
                self.tell("trouble", || format!("the store is full for {long:?}"));
                self.store.set_full(true);
                self.timeline.after(long, Event::Mend(Mend::Full));
            }
            13 => return self.backup(),
            14 => {
                let leases = self.store.kv().leases();
                if !leases.is_empty() {
                    let lease = *self.dice.pick(&leases);
                    self.tell("trouble", || format!("{lease:?} is revoked by hand"));
                    if let Some(reached) = self.store.revoke(lease, &mut self.timeline) {
                        return self.on_reached(reached);
                    }
                }
            }
            15..=17 => self.controller_trouble(long),
            18 | 19 => self.member_trouble(long),
            20 => {
                let off = self.dice.number(0..20_000) as i64 - 10_000;
                if let Some(member) = self.members.values().next() {
                    member.clock.set_wall_off(off);
                    let of = member.of;
                    self.tell(&of.to_string(), || format!("has its wall clock set, {off} ms off"));
                }
            }
            _ => {
                let pool = self.dice.pick(&self.pools).clone();
                let limit = CAPACITY * *self.dice.pick(&[0.25, 0.5, 1.0, 1.0, 2.0]);
                self.tell("the provider", || format!("takes {limit} requests a minute in {pool}"));
                if let Some(known) = self.provider.limits.get_mut(&pool) {
                    known.0 = limit;
                }
            }
        }
        Ok(())
    }

    fn bad_weather(&mut self, long: Duration) {
        let everyone: Vec<Of> =
            self.members.values().map(|m| m.of).chain(self.controllers.values().map(|c| c.of)).collect();
        if everyone.is_empty() {
            return;
        }
        let of = *self.dice.pick(&everyone);
        let worst = Duration::from_millis(self.dice.number(5..900));
        let weather = Weather {
            delay: Duration::from_millis(1)..worst,
            loss: self.dice.part() * 0.3,
            twice: self.dice.part() * 0.3,
            cut: self.dice.chance(0.4),
        };
        self.tell(&of.to_string(), || format!("has bad weather for {long:?}: {weather:?}"));
        *self.store.weather(of.client()) = weather;
        self.timeline.after(long, Event::Mend(Mend::Weather(of)));
    }

    fn bad_roads(&mut self, long: Duration) {
        let members: Vec<usize> = self.members.keys().copied().collect();
        if members.is_empty() {
            return;
        }
        let who = *self.dice.pick(&members);
        let worst = Duration::from_millis(self.dice.number(5..4_000));
        let loss = *self.dice.pick(&[0.0, 0.1, 0.3, 1.0]);
        self.tell("trouble", || format!("reports of member {who} take up to {worst:?}, {loss} are lost, for {long:?}"));
        self.roads.insert(who, Roads { delay: Duration::from_millis(1)..worst, loss });
        self.timeline.after(long, Event::Mend(Mend::Roads(who)));
    }

    fn backup(&mut self) -> Result<(), String> {
        match self.snapshot.take() {
            // Of a store in use: the grants of some leader are in it.
            None if self.truth.is_led() => {
                self.tell("operator", || "takes a backup of the store".to_owned());
                self.snapshot = Some(self.store.kv().clone());
            }
            Some(kv) if self.dice.chance(0.4) => {
                let other = self.dice.chance(0.5);
                let kv = if other { kv.as_cluster(2 + self.truth.restored as u64) } else { kv };
                self.tell("operator", || {
                    format!(
                        "restores the backup of revision {}{}",
                        kv.revision(),
                        if other { ", as another cluster" } else { "" }
                    )
                });
                self.store.restore(kv, &mut self.timeline);
                return self.truth.restore(self.store.kv(), self.timeline.now());
            }
            kept => self.snapshot = kept,
        }
        Ok(())
    }

    fn controller_trouble(&mut self, long: Duration) {
        let controllers: Vec<usize> = self.controllers.keys().copied().collect();
        let leader = self.controllers.values().find(|c| c.leads()).map(|c| c.of.who);
        // Mostly the one that matters.
        let who = match leader.filter(|_| self.dice.chance(0.7)) {
            Some(leader) => leader,
            None if controllers.is_empty() => return,
            None => *self.dice.pick(&controllers),
        };
        let what = self.dice.number(0..4);
        match what {
            0 | 1 => {
                self.tell("trouble", || format!("controller {who} is stopped for {long:?}"));
                self.paused.insert(who, self.timeline.now() + long);
            }
            2 => {
                self.tell("trouble", || format!("controller {who} is killed"));
                self.controllers.remove(&who);
                self.timeline.after(long, Event::Mend(Mend::Controller(who)));
            }
            _ => {
                let Some(controller) = self.controllers.get_mut(&who) else { return };
                let of = controller.of;
                let said = controller.resign(&mut self.store, &mut self.timeline, &mut self.dice);
                self.say(of, said);
            }
        }
    }

    fn member_trouble(&mut self, long: Duration) {
        let members: Vec<usize> = self.members.keys().copied().collect();
        if members.len() > 1 && self.dice.chance(0.6) {
            let who = *self.dice.pick(&members);
            let Some(mut member) = self.members.remove(&who) else { return };
            if let Some(watch) = member.watch {
                self.store.close(watch);
            }
            if self.dice.chance(0.5) {
                self.tell("trouble", || format!("member {who} is killed"));
            } else {
                self.tell(&member.of.to_string(), || "leaves".to_owned());
                if let Some((to, report)) = member.leave() {
                    self.post(member.of, to, 0, report);
                }
            }
            self.timeline.after(long, Event::Mend(Mend::Member(who)));
        } else if members.len() < 6 {
            let who = (0..7).find(|who| !self.members.contains_key(who)).unwrap_or(0);
            self.start_member(who);
        }
    }

    fn mend(&mut self, mend: Mend) {
        match mend {
            Mend::Weather(of) => *self.store.weather(of.client()) = Weather::fair(),
            Mend::Roads(who) => drop(self.roads.remove(&who)),
            Mend::Down => self.store.set_down(false, &mut self.timeline),
            Mend::Full => self.store.set_full(false),
            Mend::Stalled(watch) => self.store.set_stalled(watch, false, &mut self.timeline),
            Mend::Controller(who) => {
                if !self.controllers.contains_key(&who) {
                    self.start_controller(who);
                }
            }
            Mend::Member(who) => {
                if !self.members.contains_key(&who) {
                    self.start_member(who);
                }
            }
        }
    }

    // === Lives ===

    fn born(&mut self, kind: Kind, who: usize) -> (Of, DriftingClock) {
        let life = self.lives.entry((kind, who)).or_default();
        let of = Of { kind, who, life: *life };
        *life += 1;
        let start = MonoTime::from_millis(3_600_000 + self.dice.number(0..1_000_000));
        let ppm = self.dice.number(0..10_000) as i64 - 5_000;
        let wall_off_ms = self.dice.number(0..400) as i64 - 200;
        (of, DriftingClock::new(self.timeline.time(), start, ppm, wall_off_ms))
    }

    fn start_member(&mut self, who: usize) {
        let (of, clock) = self.born(Kind::Member, who);
        self.tell(&of.to_string(), || format!("starts, {clock:?}"));
        let member = Member::new(of, &self.pools, clock, self.dice.part());
        member.start(&mut self.timeline, &mut self.dice);
        self.members.insert(who, member);
    }

    fn start_controller(&mut self, who: usize) {
        let (of, clock) = self.born(Kind::Controller, who);
        self.tell(&of.to_string(), || format!("starts, {clock:?}"));
        self.paused.remove(&who);
        let controller = Controller::new(of, params(who, &self.pools), clock);
        self.controllers.insert(who, controller);
        self.timeline.after(Duration::from_millis(10), Event::Controller(of, Duty::Campaign));
    }

    fn say(&mut self, of: Of, said: Option<String>) {
        if let Some(said) = said {
            if said.contains("wins") {
                self.outcome.terms += 1;
            }
            self.tell(&of.to_string(), || said);
        }
    }

    fn tell(&mut self, who: &str, what: impl FnOnce() -> String) {
        if let Some(story) = &mut self.story {
            let at = self.timeline.now().seconds_since(MonoTime::from_millis(3_600_000));
            story.push(format!("{at:9.3} s  {who}: {}", what()));
        }
    }
}

fn params(who: usize, pools: &[PoolId]) -> Params {
    let tenant = |weight: f64| TenantParams { weight, ..TenantParams::default() };
    let pool = |id: &PoolId| PoolParams {
        id: id.clone(),
        dialect: Dialect::OpenAi,
        capacity: [(RPM, Rate { rate: CAPACITY, burst: CAPACITY / 10.0 })].into(),
        algorithms: BTreeMap::new(),
        zones: BTreeMap::new(),
        concurrency: Some(PLACES),
        tenants: [("acme", 2.0), ("globex", 1.0)]
            .into_iter()
            .filter_map(|(name, weight)| Some((name.parse().ok()?, tenant(weight))))
            .collect(),
        default_tenant: tenant(0.5),
    };
    Params {
        name: format!("c{who}"),
        listen: std::net::SocketAddr::from(([127, 0, 0, 1], 0)),
        advertise_url: None,
        keyspace: Keyspace::default(),
        store_quota_bytes: u64::MAX,
        pools: pools.iter().map(pool).collect(),
    }
}
