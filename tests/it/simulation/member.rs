//! A member of the world: the real client without its sockets and timers, and the services that call through it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tidegate::client::{ClientParams, Core, Permit, Pool, PoolParams, Refusal};
use tidegate::clock::{Clock, MonoTime};
use tidegate::observation::Report;
use tidegate::plan::Reply;
use tidegate::plan::keyspace::{Key, Keyspace};
use tidegate::provider::{Dialect, Head, Usage};
use tidegate::quota::{Cost, PoolId, TenantId};
use tidegate::sim::events::{Dice, DriftingClock, Timeline};
use tidegate::sim::lossy::{Answer, Ask, Call, LossyStore, WatchId};
use tidegate::store::{LeaseId, Op, StoreError, Txn, WatchEvent};
use tidegate::telemetry::Telemetry;

use super::event::{Event, Of, Timer};
use super::laws::Twin;
use super::provider::Provider;

const HOUSE_EVERY: Duration = Duration::from_millis(250);
const PRESENCE_EVERY: Duration = Duration::from_secs(3);
const PRESENCE_TTL: Duration = Duration::from_secs(10);
const REPORT_EVERY: Duration = Duration::from_millis(500);
const REPORT_TIMEOUT: Duration = Duration::from_secs(2);
/// Gates that nobody uses are dropped soon, so that they are made again often.
const IDLE_AFTER: Duration = Duration::from_secs(3);
const NARROWED: [&str; 2] = ["acme", "globex"];

/// Why a call to the store was made.
#[derive(Debug, Clone, Copy)]
enum Why {
    List,
    Lease,
    Announce(LeaseId),
    KeepAlive,
}

/// A report under way.
#[derive(Debug, Clone, Copy)]
struct Posted {
    nth: u64,
    asked_at: MonoTime,
}

/// One member.
pub struct Member {
    pub of: Of,
    pub core: Arc<Core>,
    pub clock: Arc<DriftingClock>,
    pub pools: BTreeMap<PoolId, Pool>,
    /// What each gate may have stored, kept apart.
    pub twin: Twin,
    key: String,
    calls: BTreeMap<Call, Why>,
    pub watch: Option<WatchId>,
    /// Where the list said to watch from.
    from: u64,
    reopen_after: Duration,
    lease: Option<LeaseId>,
    posted: Option<Posted>,
    posts: u64,
    redirected: Option<usize>,
    permits: BTreeMap<u64, Permit>,
    sent: u64,
}

/// What a member's step asks the world to do beyond what it has planned itself.
#[derive(Debug)]
pub enum Wish {
    /// A report to a controller, by its number.
    Post { to: usize, nth: u64, report: Box<Report> },
    /// Something worth telling.
    Say(String),
}

impl Member {
    /// A `narrow` one says which tenants it serves, and follows these alone.
    pub fn new(of: Of, pools: &[PoolId], narrow: bool, clock: DriftingClock, jitter: f64) -> Self {
        let tenants =
            if narrow { NARROWED.iter().filter_map(|name| name.parse().ok()).collect() } else { BTreeSet::new() };
        let params =
            |id: &PoolId| PoolParams { tenants: tenants.clone(), ..PoolParams::new(id.clone(), Dialect::OpenAi) };
        let params = ClientParams {
            instance: format!("m{}", of.who),
            idle_after: IDLE_AFTER,
            ..ClientParams::new(pools.iter().map(params).collect())
        };
        let (clock, telemetry) = (Arc::new(clock), Arc::new(Telemetry::new()));
        let boot = format!("boot-{}", of.life);
        let core = Core::new(&params, boot, jitter, clock.clone(), telemetry);
        let pools = pools.iter().filter_map(|id| Some((id.clone(), core.pool(id)?))).collect();
        let mut member = Self {
            of,
            core,
            clock,
            pools,
            twin: Twin::default(),
            key: Keyspace::default().key(&Key::Member(params.instance)),
            calls: BTreeMap::new(),
            watch: None,
            from: 0,
            reopen_after: Duration::from_millis(100),
            lease: None,
            posted: None,
            posts: 0,
            redirected: None,
            permits: BTreeMap::new(),
            sent: 0,
        };
        member.retuned();
        member
    }

    /// The timers of a process that has started.
    pub fn start(&self, timeline: &mut Timeline<Event>, dice: &mut Dice) {
        for timer in [Timer::Reopen, Timer::House, Timer::Report, Timer::Presence, Timer::Load] {
            timeline.after(dice.span(&(Duration::ZERO..HOUSE_EVERY)), Event::Member(self.of, timer));
        }
    }

    /// The core put something in force: what each gate may store follows.
    fn retuned(&mut self) {
        let (now, wall) = (self.clock.now(), self.clock.wall());
        self.core.with_views(|views| self.twin.retune(views, now, wall));
    }

    pub fn on_timer(
        &mut self,
        timer: Timer,
        store: &mut LossyStore,
        timeline: &mut Timeline<Event>,
        dice: &mut Dice,
        provider: &mut Provider,
    ) -> Result<Option<Wish>, String> {
        let client = self.of.client();
        match timer {
            Timer::House => {
                self.core.keep_house();
                self.retuned();
                timeline.after(HOUSE_EVERY, Event::Member(self.of, Timer::House));
            }
            Timer::Reopen => {
                let (list, _) = self.core.selects();
                let call = store.ask(client, Ask::List(list), timeline, dice);
                self.calls.insert(call, Why::List);
            }
            Timer::Presence => {
                timeline.after(PRESENCE_EVERY, Event::Member(self.of, Timer::Presence));
                let (ask, why) = match self.lease {
                    Some(lease) => (Ask::KeepAlive(lease), Why::KeepAlive),
                    None => (Ask::Lease(PRESENCE_TTL), Why::Lease),
                };
                self.calls.insert(store.ask(client, ask, timeline, dice), why);
            }
            Timer::Report => {
                let leader = self.core.leader().and_then(|leader| controller_at(&leader.report_url));
                let Some(to) = self.redirected.or(leader) else {
                    timeline.after(REPORT_EVERY, Event::Member(self.of, Timer::Report));
                    return Ok(None);
                };
                self.posts += 1;
                let (report, asked_at) = self.core.tell();
                self.posted = Some(Posted { nth: self.posts, asked_at });
                timeline.after(REPORT_TIMEOUT, Event::Member(self.of, Timer::ReportGivenUp(self.posts)));
                return Ok(Some(Wish::Post { to, nth: self.posts, report: Box::new(report) }));
            }
            Timer::ReportGivenUp(nth) => {
                if self.posted.is_some_and(|posted| posted.nth == nth) {
                    self.posted = None;
                    self.redirected = None;
                    timeline.after(REPORT_EVERY, Event::Member(self.of, Timer::Report));
                }
            }
            Timer::Load => {
                let span = dice.span(&(Duration::from_millis(50)..Duration::from_millis(500)));
                timeline.after(span, Event::Member(self.of, Timer::Load));
                return self.call(timeline, dice, provider).map(|()| None);
            }
            Timer::Ends(nth) => {
                if let Some(permit) = self.permits.remove(&nth) {
                    permit.settle(Usage { input_tokens: 10, output_tokens: 10 });
                }
            }
        }
        Ok(None)
    }

    /// Services call: a few requests at once, of one tenant.
    fn call(&mut self, timeline: &mut Timeline<Event>, dice: &mut Dice, provider: &mut Provider) -> Result<(), String> {
        let ids: Vec<PoolId> = self.pools.keys().cloned().collect();
        let id = dice.pick(&ids).clone();
        let tenant: TenantId = (*dice.pick(&["acme", "acme", "globex", "stranger"])).parse().map_err(|_| "a tenant")?;
        let pool = self.pools[&id].clone();
        for _ in 0..dice.number(1..5) {
            let (now, wall) = (self.clock.now(), self.clock.wall());
            self.core.with_views(|views| self.twin.asked(&id, &tenant, &views[&id], now, wall));
            match pool.try_admit(&tenant, Cost::request(10, 10)) {
                Ok(mut permit) => {
                    self.core.with_views(|views| self.twin.admitted(&id, &tenant, &views[&id], now))?;
                    let (status, headers) = provider.answer(&id, timeline.now());
                    let observation = permit.observe(&Head { status, headers: &headers });
                    permit.conclude(&observation);
                    self.sent += 1;
                    self.permits.insert(self.sent, permit);
                    let span = dice.span(&(Duration::from_millis(50)..Duration::from_secs(2)));
                    timeline.after(span, Event::Member(self.of, Timer::Ends(self.sent)));
                }
                Err(Refusal::WaitUntil { .. } | Refusal::Never(_)) => break,
            }
        }
        Ok(())
    }

    pub fn on_answer(
        &mut self,
        call: Call,
        answer: Result<Answer, StoreError>,
        store: &mut LossyStore,
        timeline: &mut Timeline<Event>,
        dice: &mut Dice,
    ) -> Option<Wish> {
        let client = self.of.client();
        match (self.calls.remove(&call)?, answer) {
            (Why::List, Ok(Answer::Listed(listing))) => {
                self.from = self.core.on_list(&listing);
                self.retuned();
                let (_, watch) = self.core.selects();
                self.watch = Some(store.watch(client, watch, self.from, timeline));
                let overrides = listing.entries.iter().filter(|entry| entry.key.contains("/overrides/")).count();
                return Some(Wish::Say(format!(
                    "listed revision {}: {} records, {overrides} overrides",
                    listing.revision,
                    listing.entries.len()
                )));
            }
            (Why::List, _) => self.reopen(timeline, dice),
            (Why::Lease, Ok(Answer::Leased(lease))) => {
                self.lease = Some(lease);
                let value = serde_json::to_vec(&self.core.presence()).unwrap_or_default();
                let ops = vec![Op::Put { key: self.key.clone(), value, lease: Some(lease) }];
                let put = Ask::Commit(Txn { conditions: Vec::new(), ops });
                self.calls.insert(store.ask(client, put, timeline, dice), Why::Announce(lease));
            }
            (Why::Announce(lease), Err(_)) if self.lease == Some(lease) => self.lease = None,
            (Why::KeepAlive, Err(_)) => self.lease = None,
            _ => {}
        }
        None
    }

    fn reopen(&mut self, timeline: &mut Timeline<Event>, dice: &mut Dice) {
        self.watch = None;
        timeline.after(self.reopen_after.mul_f64(0.5 + dice.part()), Event::Member(self.of, Timer::Reopen));
        self.reopen_after = (self.reopen_after * 2).min(Duration::from_secs(2));
    }

    pub fn on_told(
        &mut self,
        watch: WatchId,
        event: Result<WatchEvent, StoreError>,
        timeline: &mut Timeline<Event>,
        dice: &mut Dice,
    ) -> Option<Wish> {
        if self.watch != Some(watch) {
            return None;
        }
        match event {
            Ok(WatchEvent::Changes { changes, revision }) => {
                self.reopen_after = Duration::from_millis(100);
                self.core.on_changes(&changes, revision);
                self.retuned();
                let keys: Vec<&str> = changes.iter().map(tidegate::store::Change::key).collect();
                Some(Wish::Say(format!("is told of {} at revision {revision}", keys.join(", "))))
            }
            Ok(WatchEvent::Alive) => None,
            Err(error) => {
                self.reopen(timeline, dice);
                Some(Wish::Say(format!("loses its watch: {error}")))
            }
        }
    }

    /// The leader's answer to a report.
    pub fn on_reply(
        &mut self,
        nth: u64,
        reply: Result<Reply, Option<String>>,
        timeline: &mut Timeline<Event>,
    ) -> Option<Wish> {
        let posted = self.posted.filter(|posted| posted.nth == nth)?;
        self.posted = None;
        let (next, said) = match reply {
            Ok(reply) => match self.core.on_reply(&reply, posted.asked_at) {
                Ok(next) => {
                    self.retuned();
                    (next, format!("takes its shares of term {}: {}", reply.term, shares(&reply)))
                }
                Err(error) => (REPORT_EVERY, format!("drops a {error}")),
            },
            Err(elsewhere) => {
                let was = self.redirected.is_some();
                self.redirected = elsewhere.as_deref().and_then(controller_at);
                let next = if was || self.redirected.is_none() { REPORT_EVERY } else { Duration::from_millis(100) };
                (next, "is answered: not the leader".to_owned())
            }
        };
        timeline.after(next, Event::Member(self.of, Timer::Report));
        Some(Wish::Say(said))
    }

    /// The process ends as it should: its last report.
    pub fn leave(&mut self) -> Option<(usize, Box<Report>)> {
        let report = self.core.leave();
        self.permits.clear();
        let leader = self.core.leader().and_then(|leader| controller_at(&leader.report_url));
        Some((leader?, Box::new(report)))
    }
}

fn shares(reply: &Reply) -> String {
    let all = reply.shares.iter().flat_map(|(pool, shares)| {
        shares.iter().map(move |(grantee, share)| match share.concurrency {
            Some(places) => format!("{pool}/{grantee} {:.3} and {places} places", share.share),
            None => format!("{pool}/{grantee} {:.3}", share.share),
        })
    });
    all.collect::<Vec<_>>().join(", ")
}

/// Controllers listen at `http://c<number>`.
fn controller_at(url: &str) -> Option<usize> {
    url.strip_prefix("http://c")?.parse().ok()
}
