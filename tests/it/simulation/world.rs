//! The world: members, controllers and operators over one lossy store, and their story.

mod healing;
mod operators;
mod troubles;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tidegate::clock::{Clock, MonoTime};
use tidegate::config::policy;
use tidegate::controller::law::LawParams;
use tidegate::controller::{Params, PoolParams, TenantParams};
use tidegate::observation::Report;
use tidegate::plan::keyspace::{Key, Keyspace};
use tidegate::plan::{Mode, Rate, Reply, Target};
use tidegate::provider::Dialect;
use tidegate::quota::{Meter, PoolId};
use tidegate::sim::events::{Dice, DriftingClock, Timeline};
use tidegate::sim::lossy::{Call, Client, LossyStore, Reached, WatchId, Wire};
use tidegate::store::{Change, Kv, Txn, WatchEvent};

use super::controller::Controller;
use super::event::{Duty, Event, Kind, Of, Timer};
use super::laws::{Known, Truth};
use super::member::{Member, Wish};
use super::provider::Provider;

const RPM: Meter = Meter::REQUESTS_PER_MINUTE;
/// What each pool can take, requests a minute.
const CAPACITY: f64 = 600.0;
const PLACES: u32 = 12;
/// One whose overrides operators look after, one that they leave alone but for its policy, and one that exists by its policy.
const POOLS: [&str; 3] = ["minded", "quiet", "guest"];
/// The first of them are in the controllers' files.
const POOLS_OF_FILES: usize = 2;
/// So many members are told which tenants they serve, and follow those alone.
const NARROW: f64 = 0.3;

/// After the last trouble: a watch that is silent is given up after 9 s, a controller's too; the leader that comes of it leaves
/// everybody what it has for 7 s; a share follows.
const HEALED_WITHIN: Duration = Duration::from_secs(18);
/// How often what a member is told of comes once more.
const TOLD_AGAIN: f64 = 0.02;
/// How long shares of a store that is no more may be in force.
const LEASED_AFTER_RESTORE: Duration = Duration::from_secs(12);
const AGAIN_AFTER: Duration = Duration::from_millis(400);
/// How long an override may take to be in force where nothing is in its way.
const IN_FORCE_WITHIN: Duration = Duration::from_millis(100);

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
    pub policies: u64,
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
    restored_at: Option<MonoTime>,
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
        let provider = Provider::new(&pools, CAPACITY, dice.chance(0.7), timeline.now());
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
            restored_at: None,
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
            Event::Late { to, watch, restored, changes } => self.on_late(to, watch, restored, changes),
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
        if let Reached::Told(_, watch, Ok(WatchEvent::Changes { changes, .. })) = &reached {
            self.tell_again(client, *watch, changes);
        }
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

    /// Now and then what a member is told is told once more, later: grants and pulses alone, which have an order of their own.
    fn tell_again(&mut self, client: Client, watch: WatchId, changes: &[Change]) {
        let Some(to) = self.members.values().map(|m| m.of).find(|of| of.client() == client) else { return };
        if !self.dice.chance(TOLD_AGAIN) {
            return;
        }
        let keys = Keyspace::default();
        let ordered = |change: &&Change| matches!(keys.parse(change.key()), Some(Key::Limits(..) | Key::Pulse(_)));
        let changes =
            changes.iter().filter(|change| matches!(change, Change::Put(_))).filter(ordered).cloned().collect();
        let span = self.dice.span(&(Duration::from_millis(100)..Duration::from_secs(4)));
        self.timeline.after(span, Event::Late { to, watch, restored: self.truth.restored, changes });
    }

    fn on_late(&mut self, to: Of, watch: WatchId, restored: usize, mut changes: Vec<Change>) -> Result<(), String> {
        // What is gone is not told of again, nor what was before a backup.
        changes.retain(|change| self.store.kv().get(change.key()).is_some());
        let Some(revision) = changes.last().map(Change::mod_revision) else { return Ok(()) };
        let Some(member) = self.members.get_mut(&to.who).filter(|m| m.of == to) else { return Ok(()) };
        if restored != self.truth.restored {
            return Ok(());
        }
        let event = Ok(WatchEvent::Changes { changes, revision });
        let wish = member.on_told(watch, event, &mut self.timeline, &mut self.dice);
        self.wish(to, wish);
        self.keeps_order(to)
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
            self.outcome.policies += u64::from(matches!(keys.parse(change.key()), Some(Key::Policy(_))));
            if let Some(Key::Override(pool, target)) = keys.parse(change.key()) {
                self.outcome.overrides += 1;
                let well = |member: &&Member| member.watch.is_some_and(|watch| self.hears_at_once(member.of, watch));
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
            if self.hears_at_once(*of, *watch) {
                self.truth.has_overrides_of(member, pool, target).map_err(|why| format!("{why}, 100 ms later"))?;
            }
        }
        Ok(())
    }

    /// Whether nothing keeps from a member what its watch is told.
    fn hears_at_once(&self, of: Of, watch: WatchId) -> bool {
        let (client, now) = (of.client(), self.timeline.now());
        self.store.is_fair(client)
            && self.store.reaches(client)
            && !self.store.is_stalled(watch)
            && !self.store.is_behind(watch, now)
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
        let known = self.known.entry(of).or_default();
        let kept = self.truth.order(member, known).and_then(|()| self.truth.keeps_the_last_good(member, known));
        kept.map_err(|why| format!("{of}: {why}"))
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
        if let Ok(reply) = &reply {
            self.known.entry(to).or_default().told(reply);
        }
        let wish = member.on_reply(nth, reply, &mut self.timeline);
        self.wish(to, wish);
        // A store without a pool's first grants is restored: its leader knows of no lease to wait for.
        if self.restored_at.is_none_or(|at| self.timeline.now().since(at) > LEASED_AFTER_RESTORE) {
            self.truth.sums(self.members.values(), &self.known)?;
            let most = self.truth.shares(self.members.values(), self.timeline.now())?;
            self.outcome.most_shares = self.outcome.most_shares.max(most);
        }
        Ok(())
    }

    // === Lives ===

    fn born(&mut self, kind: Kind, who: usize) -> (Of, DriftingClock) {
        let life = self.lives.entry((kind, who)).or_default();
        let of = Of { kind, who, life: *life };
        *life += 1;
        let start = MonoTime::from_millis(3_600_000 + self.dice.number(0..1_000_000));
        let ppm = self.dice.number(0..10_000).cast_signed() - 5_000;
        let wall_off_ms = self.dice.number(0..400).cast_signed() - 200;
        (of, DriftingClock::new(self.timeline.time(), start, ppm, wall_off_ms))
    }

    fn start_member(&mut self, who: usize) {
        let (of, clock) = self.born(Kind::Member, who);
        self.tell(&of.to_string(), || format!("starts, {clock:?}"));
        let narrow = self.dice.chance(NARROW);
        let member = Member::new(of, &self.pools, narrow, clock, self.dice.part());
        member.start(&mut self.timeline, &mut self.dice);
        self.members.insert(who, member);
    }

    fn start_controller(&mut self, who: usize) {
        let (of, clock) = self.born(Kind::Controller, who);
        self.tell(&of.to_string(), || format!("starts, {clock:?}"));
        self.paused.remove(&who);
        let controller = Controller::new(of, params(who, &self.pools[..POOLS_OF_FILES]), clock);
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

pub fn params(who: usize, pools: &[PoolId]) -> Params {
    let tenant = |weight: f64| TenantParams { weight, ..TenantParams::default() };
    let pool = |id: &PoolId| PoolParams {
        id: id.clone(),
        dialect: Dialect::OpenAi,
        mode: Mode::Enforce,
        capacity: [(RPM, Rate { rate: CAPACITY, burst: CAPACITY / 10.0 })].into(),
        algorithms: BTreeMap::new(),
        shared: BTreeSet::new(),
        zones: BTreeMap::new(),
        concurrency: Some(PLACES),
        tenants: [("acme", 2.0), ("globex", 1.0)]
            .into_iter()
            .filter_map(|(name, weight)| Some((name.parse().ok()?, tenant(weight))))
            .collect(),
        law: LawParams::default(),
        default_tenant: tenant(0.5),
    };
    Params {
        prometheus: None,
        name: format!("c{who}"),
        listen: std::net::SocketAddr::from(([127, 0, 0, 1], 0)),
        reporters: BTreeMap::new(),
        tls: None,
        advertise_url: None,
        keyspace: Keyspace::default(),
        store_quota_bytes: u64::MAX,
        pools: pools.iter().map(pool).collect(),
        read_policy: |pool, value| policy(pool, value).map(|(read, _)| read).map_err(|mistakes| mistakes.to_string()),
    }
}
