//! Ours: the production code. Members are the real client without its sockets, the leader is the real planner behind the real
//! desk; between them messages take their time, and some are lost.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::Law;
use super::elsewhere::Elsewhere;
use crate::client::{Admission, Ask, Asked, ClientParams, Core, Permit, Pool, PoolParams, Priority, Tally, Usage};
use crate::clock::{Clock, MonoTime};
use crate::controller::law::LawParams;
use crate::controller::planner::PoolPlanner;
use crate::controller::{self, EARLY_TICK_GAP, LEADER_TTL, Office, TICK_EVERY, TenantParams};
use crate::limiter::{Question, Settlement, Taken, Tallies};
use crate::observation::Report;
use crate::plan::keyspace::{Key, Keyspace, LeaderRecord};
use crate::plan::{Grant, Mode, Pulse, Rate, Reply};
use crate::quota::{Grantee, Meter, PoolId, TenantId, Unit, Window};
use crate::sim::events::{Dice, DriftingClock, TrueTime};
use crate::sim::world::plant::{Verdict, head, headers, limits};
use crate::sim::world::run::{Moment, Order};
use crate::sim::world::scenario::{Happening, Scenario};
use crate::store::{Change, Entry, Listing};
use crate::telemetry::Telemetry;

const HOUSE_EVERY: Duration = Duration::from_millis(250);
/// A report that nobody answers is given up, and told anew a while later.
const REPORT_TIMEOUT: Duration = Duration::from_secs(2);
const REPORT_AGAIN: Duration = Duration::from_millis(500);
const REPORT_GAP: Duration = Duration::from_millis(100);
/// A request without a deadline waits for as long as any world lasts.
const ENDLESS: Duration = Duration::from_secs(86_400);
/// What a bucket of the configured capacity holds, in seconds of it, as where a file says nothing.
const BURST_S: f64 = 3.0;
/// Grants of one transaction.
const BATCH: usize = 128;
const NAME: &str = "leader";
/// To where members count together, one way, in ms.
const TALLY_MS: f64 = 0.5;

/// What a word of [`Moment::wake_at`] means: its lowest bits, and then a number.
#[derive(Debug, Clone, Copy)]
enum Word {
    House,
    Report,
    GiveUpReport,
    Message,
    Tick,
    Early,
    Line,
    Deadline,
    LeaseEnds,
}

const WORDS: [Word; 9] = [
    Word::House,
    Word::Report,
    Word::GiveUpReport,
    Word::Message,
    Word::Tick,
    Word::Early,
    Word::Line,
    Word::Deadline,
    Word::LeaseEnds,
];

fn word(word: Word, number: usize) -> u64 {
    number as u64 * WORDS.len() as u64 + word as u64
}

/// A request in line.
#[derive(Debug)]
struct Waiting {
    request: usize,
    admission: Admission,
    /// Whether it stands in the client's own line too: in both lines all stand in the same order.
    asked: bool,
    /// It is being asked where members count together.
    asking: bool,
}

#[derive(Debug)]
struct Member {
    core: Arc<Core>,
    pool: Pool,
    lines: Vec<VecDeque<Waiting>>,
    wakes_at: Vec<MonoTime>,
    in_flight: Vec<usize>,
    permits: HashMap<usize, Permit>,
    /// The report that is under way: its number, and when it was made.
    reported: Option<(usize, MonoTime)>,
    reported_at: MonoTime,
    reports_at: MonoTime,
}

#[derive(Debug)]
enum Message {
    Changes { to: usize, life: u64, changes: Vec<Change>, revision: u64 },
    Report { from: usize, life: u64, nth: usize, report: Box<Report> },
    Reply { to: usize, life: u64, nth: usize, reply: Box<Reply> },
    Question { from: usize, life: u64, request: usize, question: Box<Question> },
    Answer { to: usize, life: u64, request: usize, question: Box<Question>, taken: Taken },
    Settlement(Box<Settlement>),
}

/// The production code.
#[derive(Debug)]
pub struct Ours {
    name: &'static str,
    scenario: Scenario,
    /// Whether members read headers.
    reads: bool,
    pool: PoolId,
    tenants: Vec<TenantId>,
    params: controller::PoolParams,
    keys: Keyspace,
    telemetry: Arc<Telemetry>,
    members: Vec<Option<Member>>,
    lives: Vec<u64>,
    office: Option<Office>,
    /// What stands in the store.
    entries: BTreeMap<String, Entry>,
    /// What members count together, if they do.
    tallies: Option<Tallies>,
    revision: u64,
    ticked_at: MonoTime,
    early_at: Option<MonoTime>,
    messages: HashMap<usize, Message>,
    sent: usize,
    clock: Option<Arc<DriftingClock>>,
    dice: Dice,
}

impl Ours {
    /// Our law in this world, under a name; one that reads no headers is AIMD with a fair division.
    ///
    /// # Errors
    /// A tenant's name that is none.
    pub fn new(scenario: &Scenario, name: &'static str, reads: bool) -> Result<Self, String> {
        let pool: PoolId = "pool".parse().map_err(|error| format!("{error}"))?;
        let tenants: Result<Vec<TenantId>, String> = scenario
            .tenants
            .keys()
            .map(|name| name.parse().map_err(|error| format!("tenant {name}: {error}")))
            .collect();
        let tenants = tenants?;
        let dialect = scenario.provider.dialect.dialect();
        let believed = scenario.configured() / scenario.provider.requests_per_minute;
        let nominal = |rate: f64| Rate { rate, burst: (rate / 60.0 * BURST_S).max(1.0) };
        let mut capacity = BTreeMap::from([(Meter::REQUESTS_PER_MINUTE, nominal(scenario.configured()))]);
        for meter in scenario.provider.dialect.meters() {
            let counts = meter.window == Window::Minute && meter.unit != Unit::Requests;
            if let Some(tokens) =
                scenario.provider.tokens_per_minute.filter(|_| counts && limits(&scenario.provider, meter.unit))
            {
                capacity.insert(*meter, nominal(tokens * believed));
            }
        }
        let of_policy = |bound: Option<f64>| bound.map(|rate| (Meter::REQUESTS_PER_MINUTE, rate)).into_iter().collect();
        let params = controller::PoolParams {
            id: pool.clone(),
            dialect,
            mode: Mode::Enforce,
            capacity,
            algorithms: BTreeMap::new(),
            shared: BTreeSet::new(),
            zones: BTreeMap::new(),
            concurrency: None,
            law: LawParams::default(),
            tenants: tenants
                .iter()
                .zip(scenario.tenants.values())
                .map(|(id, tenant)| {
                    let (floor, ceiling) = (of_policy(tenant.floor), of_policy(tenant.ceiling));
                    let params = TenantParams {
                        weight: tenant.weight,
                        floor,
                        ceiling,
                        priority: if tenant.batch { Priority::Batch } else { Priority::Interactive },
                    };
                    (id.clone(), params)
                })
                .collect(),
            default_tenant: TenantParams::default(),
        };
        let members = scenario.members.split.len();
        Ok(Self {
            name,
            scenario: scenario.clone(),
            reads,
            pool,
            tenants,
            params,
            keys: Keyspace::default(),
            telemetry: Arc::new(Telemetry::new()),
            members: (0..members).map(|_| None).collect(),
            lives: vec![0; members],
            office: None,
            entries: BTreeMap::new(),
            tallies: None,
            revision: 1,
            ticked_at: MonoTime::default(),
            early_at: None,
            messages: HashMap::new(),
            sent: 0,
            clock: None,
            dice: Dice::new(scenario.seed ^ 0x00_0005),
        })
    }

    /// With other constants.
    #[must_use]
    pub fn with_law(mut self, law: LawParams) -> Self {
        self.params.law = law;
        self
    }

    /// With members that count together on every meter.
    #[must_use]
    pub fn counting_together(mut self) -> Self {
        self.params.shared = self.params.capacity.keys().copied().collect();
        self.tallies = Some(Tallies::default());
        self
    }

    // === Messages ===

    fn post(&mut self, message: Message, ms: f64, moment: &mut Moment<'_>) {
        self.sent += 1;
        self.messages.insert(self.sent, message);
        moment.wake_at(moment.now.after_seconds(ms / 1e3), word(Word::Message, self.sent));
    }

    fn is_lost(&mut self) -> bool {
        self.scenario.network.loss > 0.0 && self.dice.chance(self.scenario.network.loss)
    }

    fn arrive(&mut self, message: Message, moment: &mut Moment<'_>) {
        match message {
            Message::Changes { to, life, changes, revision } => {
                if let Some(member) = self.members[to].as_ref().filter(|_| self.lives[to] == life) {
                    member.core.on_changes(&changes, revision);
                    self.serve_all(to, moment);
                }
            }
            Message::Report { from, life, nth, report } => {
                let Some(clock) = &self.clock else { return };
                let Some(office) = &mut self.office else { return };
                let (reply, early) = office.take(&report, clock.now(), &self.telemetry);
                if early && self.early_at.is_none() {
                    let at = moment.now.max(self.ticked_at + EARLY_TICK_GAP);
                    self.early_at = Some(at);
                    moment.wake_at(at, word(Word::Early, 0));
                }
                if !self.is_lost() {
                    let reply = Box::new(reply);
                    self.post(Message::Reply { to: from, life, nth, reply }, self.scenario.network.report_ms, moment);
                }
            }
            Message::Reply { to, life, nth, reply } => {
                let Some(member) = self.members[to].as_mut().filter(|_| self.lives[to] == life) else { return };
                let Some((_, asked_at)) = member.reported.filter(|(known, _)| *known == nth) else { return };
                member.reported = None;
                let next = member.core.on_reply(&reply, asked_at).unwrap_or(REPORT_AGAIN);
                self.plan_report(to, moment.now + next, moment);
                self.serve_all(to, moment);
            }
            Message::Question { from, life, request, question } => {
                let Some(tallies) = &mut self.tallies else { return };
                let taken = tallies.take(&question, moment.now.0 / 1000);
                self.post(Message::Answer { to: from, life, request, question, taken }, TALLY_MS, moment);
            }
            Message::Answer { to, life, request, question, taken } => {
                if self.lives[to] == life {
                    self.take_answer(to, request, &question, taken, moment);
                }
            }
            Message::Settlement(settlement) => {
                if let Some(tallies) = &mut self.tallies {
                    tallies.settle(&settlement, moment.now.0 / 1000);
                }
            }
        }
    }

    // === The leader ===

    fn put(&mut self, key: &Key, value: Vec<u8>, changes: &mut Vec<Change>) {
        self.revision += 1;
        let key = self.keys.key(key);
        let create_revision = self.entries.get(&key).map_or(self.revision, |known| known.create_revision);
        let entry = Entry { key: key.clone(), value, create_revision, mod_revision: self.revision };
        changes.push(Change::Put(entry.clone()));
        self.entries.insert(key, entry);
    }

    /// Somebody leads, by what stands in the store.
    fn lead(&mut self, moment: &mut Moment<'_>) {
        let Some(clock) = self.clock.clone() else { return };
        let mut changes = Vec::new();
        self.entries.remove(&self.keys.key(&Key::Leader));
        let record = LeaderRecord { name: NAME.to_owned(), report_url: "http://leader".to_owned() };
        self.put(&Key::Leader, serde_json::to_vec(&record).unwrap_or_default(), &mut changes);
        let term = self.revision;
        let mut left: BTreeMap<Grantee, Grant> = BTreeMap::new();
        let mut pulse = None;
        for entry in self.entries.values() {
            match self.keys.parse(&entry.key) {
                Some(Key::Limits(_, grantee)) => {
                    left.extend(Grant::parse(&entry.value).ok().map(|grant| (grantee, grant)));
                }
                Some(Key::Pulse(_)) => pulse = Pulse::parse(&entry.value).ok(),
                _ => {}
            }
        }
        let now = clock.now();
        let planner = PoolPlanner::new(self.params.clone(), term, left, pulse.as_ref(), now);
        let mut office = Office::new(term, now);
        office.pools.insert(self.pool.clone(), planner);
        self.office = Some(office);
        self.tell(&changes, moment);
        self.tick(false, moment);
    }

    fn tick(&mut self, early: bool, moment: &mut Moment<'_>) {
        let Some(clock) = self.clock.clone() else { return };
        let (now, wall) = (clock.now(), clock.wall());
        let present = self.members.iter().flatten().count();
        let Some(mut office) = self.office.take() else { return };
        let mut changes = Vec::new();
        if let Some(planner) = office.pools.get_mut(&self.pool)
            && (planner.take_urgent() || !early)
        {
            planner.set_present(present);
            let pulse = planner.tick(now, wall);
            self.put(&Key::Pulse(self.pool.clone()), serde_json::to_vec(&pulse).unwrap_or_default(), &mut changes);
            planner.pulsed(pulse);
            while planner.may_grant() {
                let batch = planner.outbox_mut().take(BATCH);
                for (grantee, grant) in &batch {
                    if let Some(grant) = grant {
                        let value = serde_json::to_vec(grant).unwrap_or_default();
                        self.put(&Key::Limits(self.pool.clone(), grantee.clone()), value, &mut changes);
                    }
                }
                if batch.is_empty() {
                    break;
                }
                planner.granted(batch, now);
            }
        }
        self.office = Some(office);
        self.ticked_at = moment.now;
        self.tell(&changes, moment);
    }

    fn tell(&mut self, changes: &[Change], moment: &mut Moment<'_>) {
        if changes.is_empty() {
            return;
        }
        for to in 0..self.members.len() {
            if self.members[to].is_some() {
                let (life, changes, revision) = (self.lives[to], changes.to_vec(), self.revision);
                self.post(Message::Changes { to, life, changes, revision }, self.scenario.network.grant_ms, moment);
            }
        }
    }

    // === Members ===

    fn start(&mut self, n: usize, time: &Arc<TrueTime>, moment: &mut Moment<'_>) {
        self.lives[n] += 1;
        let dialect = self.scenario.provider.dialect.dialect();
        let tally = self.tallies.as_ref().map(|_| Arc::new(Elsewhere) as Arc<dyn Tally>);
        let params = ClientParams {
            instance: format!("m{n}"),
            tally,
            ..ClientParams::new(vec![PoolParams::new(self.pool.clone(), dialect)])
        };
        let members = &self.scenario.members;
        let clock = DriftingClock::new(time.clone(), moment.now, members.drift_ppm, members.skew_ms);
        let boot = format!("boot-{}", self.lives[n]);
        let core = Core::new(&params, boot, self.dice.part(), Arc::new(clock), self.telemetry.clone());
        let Some(pool) = core.pool(&self.pool) else { return };
        let entries = self.entries.values().cloned().collect();
        core.on_list(&Listing { entries, revision: self.revision, cluster_id: 1 });
        let tenants = self.tenants.len();
        self.members[n] = Some(Member {
            core,
            pool,
            lines: (0..tenants).map(|_| VecDeque::new()).collect(),
            wakes_at: vec![MonoTime::default(); tenants],
            in_flight: vec![0; tenants],
            permits: HashMap::new(),
            reported: None,
            reported_at: MonoTime::default(),
            reports_at: MonoTime::default(),
        });
        self.plan_report(n, moment.now, moment);
    }

    fn plan_report(&mut self, n: usize, at: MonoTime, moment: &mut Moment<'_>) {
        if let Some(member) = &mut self.members[n] {
            member.reports_at = at;
            moment.wake_at(at, word(Word::Report, n));
        }
    }

    fn report(&mut self, n: usize, moment: &mut Moment<'_>) {
        let nth = self.sent + 1;
        let Some(member) = self.members[n].as_mut().filter(|m| m.reported.is_none() && m.reports_at <= moment.now)
        else {
            return;
        };
        let (report, asked_at) = member.core.tell();
        (member.reported, member.reported_at) = (Some((nth, asked_at)), moment.now);
        member.reports_at = MonoTime(u64::MAX);
        moment.wake_after(REPORT_TIMEOUT, word(Word::GiveUpReport, n));
        if !self.is_lost() {
            let message = Message::Report { from: n, life: self.lives[n], nth, report: Box::new(report) };
            self.post(message, self.scenario.network.report_ms, moment);
        }
    }

    // === Requests ===

    fn ask(&mut self, request: usize, moment: &mut Moment<'_>) {
        let of = &moment.requests[request];
        let tenant = of.tenant;
        let Some(member) = &mut self.members[of.member] else { return };
        let max_wait = of.deadline.map_or(ENDLESS, |deadline| deadline.since(moment.now));
        let ask = Ask { cost: of.cost, priority: Priority::Interactive, max_wait };
        let admission = member.pool.request(&self.tenants[tenant], &ask);
        let line = &mut member.lines[tenant];
        let behind_one_that_waits = line.back().is_some_and(|last| last.asked);
        line.push_back(Waiting { request, admission, asked: false, asking: false });
        let is_first = line.len() == 1;
        let member = of.member;
        if let Some(deadline) = of.deadline {
            moment.wake_at(deadline, word(Word::Deadline, request));
        }
        if behind_one_that_waits {
            self.stand_in_line(member, tenant, moment);
        } else if is_first {
            self.serve(member, tenant, moment);
        }
    }

    /// Who has not asked yet asks, the first one first: they stand in line from now on, or hear that it is no use.
    fn stand_in_line(&mut self, n: usize, tenant: usize, moment: &mut Moment<'_>) {
        loop {
            let Some(member) = &mut self.members[n] else { return };
            let line = &mut member.lines[tenant];
            let nth = line.iter().rposition(|waiting| waiting.asked).map_or(0, |last| last + 1);
            let Some(waiting) = line.get_mut(nth) else { return };
            waiting.asked = true;
            let asked = waiting.admission.ask();
            self.on_asked(n, tenant, nth, asked, moment);
        }
    }

    fn serve_all(&mut self, n: usize, moment: &mut Moment<'_>) {
        (0..self.tenants.len()).for_each(|tenant| self.serve(n, tenant, moment));
    }

    /// Who stands first asks, and the next one, until one has to wait.
    fn serve(&mut self, n: usize, tenant: usize, moment: &mut Moment<'_>) {
        while let Some(member) = &mut self.members[n]
            && member.in_flight[tenant] < self.scenario.members.workers
            && let Some(first) = member.lines[tenant].front_mut().filter(|first| !first.asking)
        {
            first.asked = true;
            let asked = first.admission.ask();
            if !self.on_asked(n, tenant, 0, asked, moment) {
                return;
            }
        }
    }

    /// Does what the client said to one in line; whether that one is gone from it.
    fn on_asked(&mut self, n: usize, tenant: usize, nth: usize, asked: Asked, moment: &mut Moment<'_>) -> bool {
        let tenants = self.tenants.len();
        let Some(member) = &mut self.members[n] else { return false };
        let line = &mut member.lines[tenant];
        let request = line[nth].request;
        match asked {
            Asked::Answered(answer) => {
                line.remove(nth);
                if let Ok(permit) = answer {
                    member.permits.insert(request, permit);
                    member.in_flight[tenant] += 1;
                    moment.send(request);
                } else {
                    moment.orders.push(Order::GiveUp(request));
                }
                return true;
            }
            Asked::Question(question) => {
                line[nth].asking = true;
                let message = Message::Question { from: n, life: self.lives[n], request, question: Box::new(question) };
                self.post(message, TALLY_MS, moment);
            }
            Asked::Wait(after) if nth == 0 => {
                let at = moment.now + after.max(Duration::from_micros(100));
                let known = member.wakes_at[tenant];
                if known <= moment.now || at < known {
                    member.wakes_at[tenant] = at;
                    moment.wake_at(at, word(Word::Line, n * tenants + tenant));
                }
                self.stand_in_line(n, tenant, moment);
            }
            Asked::Wait(_) => {}
        }
        false
    }

    /// What a request was answered where members count together.
    fn take_answer(&mut self, n: usize, request: usize, question: &Question, taken: Taken, moment: &mut Moment<'_>) {
        let tenant = moment.requests[request].tenant;
        let Some(member) = &mut self.members[n] else { return };
        let line = &mut member.lines[tenant];
        let Some(nth) = line.iter().position(|waiting| waiting.request == request && waiting.asking) else {
            // It was given up meanwhile.
            member.core.nobody_listens(question, taken);
            return self.settle(n, moment);
        };
        line[nth].asking = false;
        let asked = line[nth].admission.told(Some(&taken));
        self.on_asked(n, tenant, nth, asked, moment);
        self.serve(n, tenant, moment);
    }

    /// Sends what is to be settled where members count together.
    fn settle(&mut self, n: usize, moment: &mut Moment<'_>) {
        let settlements = self.members[n].as_ref().map(|member| member.core.take_settlements());
        for settlement in settlements.into_iter().flatten() {
            self.post(Message::Settlement(Box::new(settlement)), TALLY_MS, moment);
        }
    }

    /// A request that waits is not worth it any more.
    fn deadline(&mut self, request: usize, moment: &mut Moment<'_>) {
        let of = &moment.requests[request];
        let Some(member) = &mut self.members[of.member] else { return };
        let line = &mut member.lines[of.tenant];
        let Some(place) = line.iter().position(|waiting| waiting.request == request) else { return };
        line.remove(place);
        moment.orders.push(Order::GiveUp(request));
        if place == 0 {
            self.serve(of.member, of.tenant, moment);
        }
    }

    /// What the head of an answer tells; whether it is a refusal.
    fn observe(&mut self, request: usize, verdict: &Verdict, moment: &Moment<'_>) {
        let Some(member) = &mut self.members[moment.requests[request].member] else { return };
        let Some(permit) = member.permits.get_mut(&request) else { return };
        let unread = Verdict { shown: Vec::new(), ..verdict.clone() };
        let lines = headers(self.scenario.provider.dialect, if self.reads { verdict } else { &unread });
        let observation = permit.observe(&head(verdict.admitted, &lines));
        permit.conclude(&observation);
    }

    fn freed(&mut self, n: usize, tenant: usize, moment: &mut Moment<'_>) {
        if let Some(member) = &mut self.members[n] {
            member.in_flight[tenant] = member.in_flight[tenant].saturating_sub(1);
        }
        self.settle(n, moment);
        self.serve(n, tenant, moment);
    }
}

impl Law for Ours {
    fn name(&self) -> &'static str {
        self.name
    }

    fn begin(&mut self, moment: &mut Moment<'_>) {
        let time = moment.time.clone();
        self.clock = Some(Arc::new(DriftingClock::new(time.clone(), moment.now, 0, 0)));
        self.lead(moment);
        for n in 0..self.members.len() {
            self.start(n, &time, moment);
            // Once for all its lives.
            moment.wake_after(HOUSE_EVERY.mul_f64(self.dice.part()), word(Word::House, n));
        }
        moment.wake_after(TICK_EVERY, word(Word::Tick, 0));
    }

    fn arrived(&mut self, request: usize, moment: &mut Moment<'_>) {
        self.ask(request, moment);
    }

    fn refused(&mut self, request: usize, verdict: &Verdict, moment: &mut Moment<'_>) {
        self.observe(request, verdict, moment);
        let (n, tenant) = (moment.requests[request].member, moment.requests[request].tenant);
        let Some(member) = &mut self.members[n] else { return };
        // Of a process that died meanwhile nobody asks again.
        let Some(permit) = member.permits.remove(&request) else { return };
        drop(permit);
        let at = moment.now.max(member.reported_at + REPORT_GAP);
        if member.reports_at > at {
            self.plan_report(n, at, moment);
        }
        self.freed(n, tenant, moment);
        if moment.requests[request].deadline.is_some_and(|deadline| deadline <= moment.now) {
            moment.orders.push(Order::GiveUp(request));
        } else {
            self.ask(request, moment);
        }
    }

    fn answered(&mut self, request: usize, _sent_at: MonoTime, verdict: &Verdict, moment: &mut Moment<'_>) {
        self.observe(request, verdict, moment);
    }

    fn ended(&mut self, request: usize, moment: &mut Moment<'_>) {
        let of = &moment.requests[request];
        if let Some(permit) = self.members[of.member].as_mut().and_then(|member| member.permits.remove(&request)) {
            permit.settle(Usage { input_tokens: of.cost.input_tokens, output_tokens: of.output_tokens });
            self.freed(of.member, of.tenant, moment);
        }
    }

    #[allow(clippy::cast_possible_truncation, reason = "made from an index")]
    fn woken(&mut self, told: u64, moment: &mut Moment<'_>) {
        let words = WORDS.len() as u64;
        let number = (told / words) as usize;
        match WORDS[(told % words) as usize] {
            Word::House => {
                if let Some(member) = &self.members[number] {
                    member.core.keep_house();
                    self.settle(number, moment);
                    self.serve_all(number, moment);
                }
                moment.wake_after(HOUSE_EVERY, told);
            }
            Word::Report => self.report(number, moment),
            Word::GiveUpReport => {
                let overdue =
                    |m: &&mut Member| m.reported.is_some() && moment.now.since(m.reported_at) >= REPORT_TIMEOUT;
                if let Some(member) = self.members[number].as_mut().filter(overdue) {
                    member.reported = None;
                    member.core.on_no_reply();
                    self.plan_report(number, moment.now + REPORT_AGAIN, moment);
                    self.serve_all(number, moment);
                }
            }
            Word::Message => {
                if let Some(message) = self.messages.remove(&number) {
                    self.arrive(message, moment);
                }
            }
            Word::Tick => {
                self.tick(false, moment);
                moment.wake_after(TICK_EVERY, told);
            }
            Word::Early => {
                self.early_at = None;
                self.tick(true, moment);
            }
            Word::Line => {
                let (n, tenant) = (number / self.tenants.len(), number % self.tenants.len());
                if self.members[n].as_ref().is_some_and(|member| member.wakes_at[tenant] <= moment.now) {
                    self.serve(n, tenant, moment);
                }
            }
            Word::Deadline => self.deadline(number, moment),
            Word::LeaseEnds => {
                if self.office.is_none() {
                    let key = self.keys.key(&Key::Leader);
                    self.entries.remove(&key);
                    self.revision += 1;
                    self.tell(&[Change::Delete { key, mod_revision: self.revision }], moment);
                }
            }
        }
    }

    fn happened(&mut self, what: &Happening, moment: &mut Moment<'_>) {
        match what {
            Happening::Kill(n) => self.members[*n] = None,
            Happening::Start(n) => {
                let time = moment.time.clone();
                self.start(*n, &time, moment);
            }
            Happening::ControllerDown => {
                self.office = None;
                moment.wake_after(LEADER_TTL, word(Word::LeaseEnds, 0));
            }
            Happening::ControllerUp => self.lead(moment),
            _ => {}
        }
    }
}
