//! The loop: what happens, in the order of virtual time.

use std::sync::Arc;
use std::time::Duration;

use super::laws::Law;
use super::measure::{Books, Outcome};
use super::plant::{Plant, Server, Verdict};
use super::scenario::{Happening, Scenario};
use crate::clock::MonoTime;
use crate::quota::Cost;
use crate::sim::events::{Dice, Timeline, TrueTime};

/// A request of a tenant, at the process that it came to.
#[derive(Debug, Clone)]
pub struct Request {
    /// Whose: in the order of the scenario's tenants.
    pub tenant: usize,
    /// At which process.
    pub member: usize,
    /// When it came.
    pub arrived_at: MonoTime,
    /// When it is not worth an answer any more.
    pub deadline: Option<MonoTime>,
    /// What it is known to need when it is sent: its input, and all the output that it allows.
    pub cost: Cost,
    /// What its answer really has, in LLM tokens.
    pub output_tokens: u64,
    /// Work until the first byte, and after it, in seconds.
    work_s: [f64; 2],
    pub(super) sent_at: MonoTime,
    done: bool,
    verdict: Option<Verdict>,
}

/// What a law asks for.
#[derive(Debug, Clone, Copy)]
pub enum Order {
    /// This request is sent now.
    Send(usize),
    /// It is not worth waiting for any more.
    GiveUp(usize),
    /// The law is called at this moment, with this word.
    Wake(MonoTime, u64),
}

/// A moment in a world, as a law sees it.
#[derive(Debug)]
pub struct Moment<'a> {
    /// Now.
    pub now: MonoTime,
    /// What clocks run by.
    pub time: &'a Arc<TrueTime>,
    /// All requests until now.
    pub requests: &'a [Request],
    /// The provider: for the oracle alone.
    pub plant: &'a mut Plant,
    /// What is to be done.
    pub orders: &'a mut Vec<Order>,
}

impl Moment<'_> {
    /// Asks to send a request.
    pub fn send(&mut self, request: usize) {
        self.orders.push(Order::Send(request));
    }

    /// Asks to be called.
    pub fn wake_at(&mut self, at: MonoTime, word: u64) {
        self.orders.push(Order::Wake(at, word));
    }

    /// Asks to be called after a while.
    pub fn wake_after(&mut self, span: Duration, word: u64) {
        self.wake_at(self.now + span, word);
    }
}

#[derive(Debug, Clone, Copy)]
enum Due {
    /// A tenant's next request at a process, unless its rate has changed since.
    Arrival {
        stream: usize,
        version: u32,
    },
    /// One of a rush.
    Rushed {
        stream: usize,
    },
    Others {
        version: u32,
    },
    Refused(usize),
    Head(usize),
    End(usize),
    /// The server may have finished something, unless something has changed since.
    Served(u32),
    Law(u64),
    Event(usize),
}

/// Requests of a tenant through a process.
#[derive(Debug)]
struct Stream {
    tenant: usize,
    member: usize,
    per_second: f64,
    version: u32,
    dice: Dice,
}

struct World<'a> {
    scenario: &'a Scenario,
    patience: Vec<Option<Duration>>,
    timeline: Timeline<Due>,
    began_at: MonoTime,
    plant: Plant,
    server: Option<Server>,
    served: u32,
    streams: Vec<Stream>,
    up: Vec<bool>,
    others: (f64, u32, Dice),
    requests: Vec<Request>,
    books: Books,
    orders: Vec<Order>,
    dice: Dice,
}

/// What came of a world.
#[derive(Debug, Clone)]
pub struct Run {
    /// The scenario's name.
    pub scenario: String,
    /// The law's name.
    pub law: String,
    /// The seed.
    pub seed: u64,
    /// What was counted.
    pub books: Books,
}

impl Run {
    /// What came of it, against what an oracle made of the same world.
    #[must_use]
    pub fn outcome(&self, oracle: &Self) -> Outcome {
        self.books.outcome(&self.scenario, &self.law, self.seed, &oracle.books)
    }
}

/// Where a world's time begins: an hour after zero, so that nothing is ever before the beginning of time.
const BEGIN: MonoTime = MonoTime::from_millis(3_600_000);

/// Lives through a scenario under a law.
///
/// # Errors
/// What the scenario asks for and the provider cannot be.
pub fn run(scenario: &Scenario, seed: u64, law: &mut dyn Law) -> Result<Run, String> {
    // What the code under test throws dice for by itself.
    fastrand::seed(seed);
    let mut world = World::new(scenario, seed)?;
    world.with(law, |law, moment| law.begin(moment));
    world.live(law);
    let offered = world.plant.others_kept();
    world.books.others = offered;
    let books = world.books;
    Ok(Run { scenario: scenario.name.clone(), law: law.name().to_owned(), seed, books })
}

impl<'a> World<'a> {
    fn new(scenario: &'a Scenario, seed: u64) -> Result<Self, String> {
        let timeline = Timeline::new(BEGIN);
        let plant = Plant::new(&scenario.provider, BEGIN)?;
        let members = scenario.members.split.len();
        let stream = |(n, (tenant, member)): (usize, (usize, usize))| Stream {
            tenant,
            member,
            per_second: 0.0,
            version: 0,
            dice: Dice::new(seed.wrapping_mul(1_000_003).wrapping_add(n as u64 + 1)),
        };
        let pairs = (0..scenario.tenants.len()).flat_map(|tenant| (0..members).map(move |member| (tenant, member)));
        let patience = scenario.tenants.values().map(|t| t.patience_s.map(Duration::from_secs_f64)).collect();
        let first_event_s = scenario.events.iter().map(|event| event.at_s).min_by(f64::total_cmp);
        let slots = scenario.provider.slots;
        let mut world = Self {
            scenario,
            patience,
            timeline,
            began_at: BEGIN,
            plant,
            server: slots.map(|slots| Server::new(slots, BEGIN)),
            served: 0,
            streams: pairs.enumerate().map(stream).collect(),
            up: vec![true; members],
            others: (0.0, 0, Dice::new(seed ^ 0x0FF0_F00D)),
            requests: Vec::new(),
            books: Books::new(scenario, first_event_s),
            orders: Vec::new(),
            dice: Dice::new(seed ^ 0xD1CE),
        };
        world.books.began(BEGIN);
        for (n, tenant) in scenario.tenants.values().enumerate() {
            world.set_traffic(n, tenant.per_second);
        }
        world.set_others(scenario.provider.others_per_second);
        for (n, event) in scenario.events.iter().enumerate() {
            world.timeline.at(BEGIN.after_seconds(event.at_s), Due::Event(n));
        }
        Ok(world)
    }

    fn live(&mut self, law: &mut dyn Law) {
        let end = self.began_at.after_seconds(self.scenario.seconds);
        while let Some(due) = self.timeline.pop() {
            if self.timeline.now() > end {
                break;
            }
            self.happen(due, law);
        }
        let waiting = self.requests.iter().filter(|request| !request.done);
        for request in waiting {
            self.books.left_waiting(request, end);
        }
    }

    /// Calls the law, and does what it asks for.
    fn with(&mut self, law: &mut dyn Law, call: impl FnOnce(&mut dyn Law, &mut Moment<'_>)) {
        let mut orders = std::mem::take(&mut self.orders);
        let now = self.timeline.now();
        let time = self.timeline.time();
        let mut moment =
            Moment { now, time: &time, requests: &self.requests, plant: &mut self.plant, orders: &mut orders };
        call(law, &mut moment);
        for order in orders.drain(..) {
            match order {
                Order::Send(id) => self.send(id),
                Order::GiveUp(id) => {
                    let request = &mut self.requests[id];
                    request.done = true;
                    self.books.gave_up(request);
                }
                Order::Wake(at, word) => self.timeline.at(at, Due::Law(word)),
            }
        }
        self.orders = orders;
    }

    fn happen(&mut self, due: Due, law: &mut dyn Law) {
        let now = self.timeline.now();
        match due {
            Due::Arrival { stream, version } => {
                if self.streams[stream].version == version {
                    self.arrive(stream, law);
                    self.plan_arrival(stream);
                }
            }
            Due::Rushed { stream } => self.arrive(stream, law),
            Due::Others { version } => {
                if self.others.1 == version {
                    let cost = self.scenario.requests.typical();
                    self.plant.others(&cost, now);
                    self.plan_others();
                }
            }
            Due::Refused(id) => {
                let Some(verdict) = self.requests[id].verdict.take() else { return };
                self.with(law, |law, moment| law.refused(id, &verdict, moment));
            }
            Due::Head(id) => {
                if let Some(server) = &mut self.server {
                    server.begin(2 * id as u64 + 1, self.requests[id].work_s[1], now);
                    self.plan_served();
                }
                if !self.scenario.provider.heads_at_end {
                    self.head(id, law);
                }
            }
            Due::End(id) => {
                if self.scenario.provider.heads_at_end {
                    self.head(id, law);
                }
                let request = &self.requests[id];
                self.books.ended(request, now);
                self.plant.settle(request.cost.output_tokens, request.output_tokens, now);
                self.with(law, |law, moment| law.ended(id, moment));
            }
            Due::Served(version) => {
                if version == self.served {
                    while let Some(job) = self.server.as_mut().and_then(|server| server.finished(now)) {
                        let id = usize::try_from(job / 2).unwrap_or(usize::MAX);
                        self.happen(if job % 2 == 0 { Due::Head(id) } else { Due::End(id) }, law);
                    }
                    self.plan_served();
                }
            }
            Due::Law(word) => self.with(law, |law, moment| law.woken(word, moment)),
            Due::Event(n) => self.event(n, law),
        }
    }

    fn head(&mut self, id: usize, law: &mut dyn Law) {
        let Some(verdict) = self.requests[id].verdict.take() else { return };
        let sent_at = self.requests[id].sent_at;
        self.with(law, |law, moment| law.answered(id, sent_at, &verdict, moment));
    }

    // === Requests ===

    fn arrive(&mut self, stream: usize, law: &mut dyn Law) {
        let now = self.timeline.now();
        let Stream { tenant, member, dice, .. } = &mut self.streams[stream];
        let (tenant, member) = (*tenant, *member);
        let (requests, provider) = (&self.scenario.requests, &self.scenario.provider);
        let input_tokens = whole(dice.log_normal(requests.input_tokens, requests.input_sigma)).max(1);
        let output_tokens = whole(dice.log_normal(requests.output_tokens, requests.output_sigma));
        let output_tokens = output_tokens.clamp(1, requests.max_output_tokens);
        let to_head_s = dice.log_normal(provider.ttft_ms.max(1e-3), provider.ttft_sigma) / 1e3;
        #[allow(clippy::cast_precision_loss, reason = "as many as a request allows")]
        let body_s = output_tokens as f64 * provider.ms_per_token / 1e3;
        let id = self.requests.len();
        self.requests.push(Request {
            tenant,
            member,
            arrived_at: now,
            deadline: self.patience[tenant].map(|patience| now + patience),
            cost: Cost::request(input_tokens, requests.max_output_tokens),
            output_tokens,
            work_s: [to_head_s, body_s],
            sent_at: now,
            done: false,
            verdict: None,
        });
        self.books.arrived(&self.requests[id]);
        self.with(law, |law, moment| law.arrived(id, moment));
    }

    fn send(&mut self, id: usize) {
        let now = self.timeline.now();
        let request = &mut self.requests[id];
        request.sent_at = now;
        let verdict = self.plant.request(&request.cost, now);
        let admitted = verdict.admitted;
        request.verdict = Some(verdict);
        request.done = admitted;
        self.books.sent(request, admitted, now);
        if !admitted {
            let refusal_s = self.scenario.network.refusal_ms / 1e3 * (0.8 + 0.4 * self.dice.part());
            self.timeline.at(now.after_seconds(refusal_s), Due::Refused(id));
            return;
        }
        let work_s = request.work_s;
        if let Some(server) = &mut self.server {
            server.begin(2 * id as u64, work_s[0], now);
            self.plan_served();
        } else {
            self.timeline.at(now.after_seconds(work_s[0]), Due::Head(id));
            self.timeline.at(now.after_seconds(work_s[0] + work_s[1]), Due::End(id));
        }
    }

    fn plan_served(&mut self) {
        self.served += 1;
        if let Some(at) = self.server.as_ref().and_then(Server::next) {
            self.timeline.at(at, Due::Served(self.served));
        }
    }

    // === Traffic ===

    fn plan_arrival(&mut self, stream: usize) {
        let Stream { per_second, version, dice, .. } = &mut self.streams[stream];
        if *per_second > 0.0 {
            let gap_s = dice.exponential(*per_second);
            let version = *version;
            self.timeline.at(self.timeline.now().after_seconds(gap_s), Due::Arrival { stream, version });
        }
    }

    fn plan_others(&mut self) {
        let (per_second, version, dice) = &mut self.others;
        if *per_second > 0.0 {
            let even = self.scenario.provider.others_even;
            let gap_s = if even { per_second.recip() } else { dice.exponential(*per_second) };
            let version = *version;
            self.timeline.at(self.timeline.now().after_seconds(gap_s), Due::Others { version });
        }
    }

    fn set_others(&mut self, per_second: f64) {
        self.others.0 = per_second;
        self.others.1 += 1;
        self.plan_others();
    }

    /// Sets a tenant's traffic; what would go through a process that is down goes through the others.
    fn set_traffic(&mut self, tenant: usize, per_second: f64) {
        let split = &self.scenario.members.split;
        let up: f64 = split.iter().zip(&self.up).filter(|(_, up)| **up).map(|(part, _)| part).sum();
        for stream in 0..self.streams.len() {
            let known = &mut self.streams[stream];
            if known.tenant == tenant {
                let part = if self.up[known.member] { split[known.member] / up.max(1e-9) } else { 0.0 };
                known.per_second = per_second * part;
                known.version += 1;
                self.plan_arrival(stream);
            }
        }
    }

    fn traffic_of(&self, tenant: usize) -> f64 {
        self.streams.iter().filter(|stream| stream.tenant == tenant).map(|stream| stream.per_second).sum()
    }

    // === Events ===

    fn event(&mut self, n: usize, law: &mut dyn Law) {
        let now = self.timeline.now();
        let scenario = self.scenario;
        let what = &scenario.events[n].what;
        match what {
            Happening::Limit(factor) => self.plant.scale(*factor, now),
            Happening::OthersPerSecond(per_second) => self.set_others(*per_second),
            Happening::Slots(slots) => {
                self.server.get_or_insert_with(|| Server::new(0, now)).resize(*slots, now);
                self.plan_served();
            }
            Happening::Traffic { tenant, per_second } => {
                if let Some(tenant) = scenario.tenants.keys().position(|name| name == tenant) {
                    self.set_traffic(tenant, *per_second);
                }
            }
            Happening::Rush(seconds) => {
                for stream in 0..self.streams.len() {
                    for _ in 0..whole(self.streams[stream].per_second * seconds) {
                        self.timeline.at(now, Due::Rushed { stream });
                    }
                }
            }
            Happening::Kill(member) | Happening::Start(member) => {
                let traffic: Vec<f64> = (0..self.patience.len()).map(|tenant| self.traffic_of(tenant)).collect();
                self.up[*member] = matches!(what, Happening::Start(_));
                for (tenant, per_second) in traffic.into_iter().enumerate() {
                    self.set_traffic(tenant, per_second);
                }
            }
            Happening::ControllerDown | Happening::ControllerUp => {}
        }
        self.with(law, |law, moment| law.happened(what, moment));
    }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "float-to-int casts saturate at 0 and MAX")]
fn whole(x: f64) -> u64 {
    x.round() as u64
}
