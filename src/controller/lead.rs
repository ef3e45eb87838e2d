//! Leading: the campaign, the lease, the tick loop.
//!
//! A campaign is a transaction: put `leader`, bound to a 3 s lease, if nobody has. The key's create revision is the
//! term. Whoever loses watches for the key's DELETE. A leader whose last confirmed keep-alive is older than TTL − 1 s
//! by its own monotonic clock stops writing and answers 503.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tracing::{debug, info, warn};

use super::checkpoint::Checkpoint;
use super::desk::{Desk, NotLeading, Office};
use super::lease::{KEEP_ALIVE_EVERY, LEADER_TTL, LEASE_FRESH_FOR};
use super::outbox::Batch;
use super::overseer::{Overseer, reject};
use super::planner::PoolPlanner;
use super::policies::{Policies, Standing};
use super::publish::{GRANTS_AT_A_TIME, PublishError, Publisher};
use super::source::{self, Board, Prometheus};
use super::upkeep::Upkeep;
use super::{Params, PoolParams};
use crate::clock::{Clock, MonoTime, UnixMillis};
use crate::observation::Report;
use crate::plan::keyspace::{Key, Keyspace, LeaderRecord};
use crate::plan::{Grant, Override, OverrideStatus, PolicyStatus, Pulse, Reply, Target};
use crate::quota::{Grantee, PoolId};
use crate::store::{Change, Condition, LeaseId, Op, Outcome, Select, Store, StoreError, Txn, WatchEvent};
use crate::telemetry::{Metric, Telemetry};

/// How often a leader plans and publishes.
pub const TICK_EVERY: Duration = Duration::from_secs(1);
/// Early ticks begin at least this far apart.
pub const EARLY_TICK_GAP: Duration = Duration::from_millis(100);
/// A store that is slow has this long without an early tick, at least.
const STORE_RESTS: Duration = Duration::from_millis(20);
/// A tick writes grants for at most this long: the store has others to serve.
const GRANTS_FOR: Duration = Duration::from_millis(500);
/// A cut to less than this is said at the ordinary log level.
const NEWSWORTHY_CUT: f64 = 0.8;
/// A store that stays away is spoken of this often.
const COMPLAIN_EVERY: Duration = Duration::from_secs(30);
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// A controller without its sockets and timers: the steps of a campaign and of a term, as its loop takes them, or a simulation in
/// its place.
pub struct Leading {
    pub(super) params: Params,
    pub(super) report_url: String,
    pub(super) store: Arc<dyn Store>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) desk: Arc<Desk>,
    pub(super) telemetry: Arc<Telemetry>,
    /// Asked while this controller leads.
    pub(super) prometheus: Option<Prometheus>,
}

/// Why a term ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The controller stops.
    Stopped,
    /// Another leads: the fence has refused a write.
    Deposed,
    /// The lease was not confirmed in time: another may lead.
    LeaseStale,
    /// What the earlier leader left cannot be read.
    Unread,
}

/// A campaign that was won.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Won {
    /// The leader key's create revision.
    pub term: u64,
    /// What the leader key is bound to.
    pub lease: LeaseId,
    /// When the lease was asked for: it may be running since then.
    asked_at: MonoTime,
}

/// A term that has begun.
pub struct Reign {
    /// The leader key's create revision.
    pub term: u64,
    overseer: Overseer,
    upkeep: Upkeep,
}

/// What goes on for as long as a term, however it ends: a leader that is gone must not keep the key.
struct Aide(tokio::task::JoinHandle<()>);

impl Drop for Aide {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Leading {
    /// A controller that reads this clock; members are told to report to `report_url`.
    #[must_use]
    pub fn new(
        params: Params,
        report_url: String,
        store: Arc<dyn Store>,
        clock: Arc<dyn Clock>,
        telemetry: Arc<Telemetry>,
    ) -> Self {
        let board = params.prometheus.as_ref().map_or_else(BTreeMap::new, |prometheus| prometheus.queries.clone());
        let desk = Arc::new(Desk::new(LEASE_FRESH_FOR, Board::new(&board), telemetry.clone()));
        Self { params, report_url, store, clock, desk, telemetry, prometheus: None }
    }

    /// Campaigns and leads until told to stop; resigns then.
    pub(super) async fn run(self, mut stop: watch::Receiver<bool>) {
        let mut complained_at: Option<MonoTime> = None;
        while !*stop.borrow() {
            let tried = match self.campaign().await {
                Ok(None) => self.follow(&mut stop).await.map(|()| None),
                tried => tried,
            };
            match tried {
                Ok(Some(won)) => {
                    complained_at = None;
                    let ended = self.lead(won, &mut stop).await;
                    self.leave();
                    let Won { term, lease, .. } = won;
                    self.telemetry.set(Metric::Leader, &[], 0.0);
                    let why = match ended {
                        Ended::Stopped => "stopping",
                        Ended::Deposed => "deposed",
                        Ended::LeaseStale => "the lease was not confirmed in time",
                        Ended::Unread => "what the earlier leader left cannot be read",
                    };
                    info!(term, "resigned: {why}");
                    // Frees the key at once; when the store is gone the lease runs out by itself.
                    let _ = timeout(Duration::from_secs(1), self.store.revoke(lease)).await;
                    if !matches!(ended, Ended::Stopped) {
                        pause(RETRY_AFTER, &mut stop).await;
                    }
                }
                Ok(None) => complained_at = None,
                Err(error) => {
                    // Said when an outage begins and now and then after, not at each try.
                    let now = self.clock.now();
                    if complained_at.is_none_or(|at| now.since(at) >= COMPLAIN_EVERY) {
                        warn!("waiting for the store, trying on: {error}");
                        complained_at = Some(now);
                    }
                    pause(RETRY_AFTER, &mut stop).await;
                }
            }
        }
    }

    /// Whether this controller leads with a fresh lease, by its own clock.
    #[must_use]
    pub fn leads(&self) -> bool {
        self.desk.leads(self.clock.now())
    }

    /// Answers a member's report.
    ///
    /// # Errors
    /// [`NotLeading`] with where to go instead.
    pub fn answer(&self, report: &Report) -> Result<Reply, NotLeading> {
        self.desk.answer(report, self.clock.now())
    }

    /// Waits until a report asks for a tick before its time.
    pub async fn asked_early(&self) {
        self.desk.early.notified().await;
    }

    /// The term is over: nothing is answered any more.
    pub fn leave(&self) {
        // The next leader tells.
        self.telemetry.set(Metric::StoreFull, &[], 0.0);
        self.desk.leave_office();
    }

    pub(super) fn keys(&self) -> &Keyspace {
        &self.params.keyspace
    }

    /// What it puts under the leader key.
    fn leader(&self) -> Vec<u8> {
        let record = LeaderRecord { name: self.params.name.clone(), report_url: self.report_url.clone() };
        serde_json::to_vec(&record).unwrap_or_default()
    }

    /// Tries to become the leader; `None` when another leads.
    ///
    /// # Errors
    /// [`StoreError`]: whether it leads is not known, and the lease ends by itself.
    pub async fn campaign(&self) -> Result<Option<Won>, StoreError> {
        let asked_at = self.clock.now();
        let lease = self.store.lease(LEADER_TTL).await?;
        let key = self.keys().key(&Key::Leader);
        let txn = Txn {
            conditions: vec![Condition { key: key.clone(), create_revision: 0, value: None }],
            ops: vec![Op::Put { key: key.clone(), value: self.leader(), lease: Some(lease) }],
        };
        match self.store.commit(txn).await? {
            Outcome::Committed { revision } => {
                self.desk.set_leader(None);
                Ok(Some(Won { term: revision, lease, asked_at }))
            }
            Outcome::Refused { .. } => {
                self.store.revoke(lease).await?;
                Ok(None)
            }
        }
    }

    /// Another leads: remembers where, and waits for the key's DELETE.
    async fn follow(&self, stop: &mut watch::Receiver<bool>) -> Result<(), StoreError> {
        let selects = [Select::Key(self.keys().key(&Key::Leader))];
        let listing = self.store.list(&selects).await?;
        let Some(entry) = listing.entries.first() else { return Ok(()) };
        let leader: Option<LeaderRecord> = serde_json::from_slice(&entry.value).ok();
        let other = leader.filter(|leader| {
            let own = leader.report_url == self.report_url;
            if own {
                // Its lease has a few seconds to run; until then it sends nobody to itself.
                info!(
                    url = leader.report_url,
                    "standing by: the leader's key is of an earlier term of this controller"
                );
            } else {
                info!(leader = leader.name, url = leader.report_url, "standing by: another controller leads");
            }
            !own
        });
        self.desk.set_leader(other);
        let mut watch = self.store.watch(&selects, listing.revision + 1).await?;
        loop {
            let event = tokio::select! {
                event = watch.next() => event?,
                _ = stop.changed() => return Ok(()),
            };
            if let WatchEvent::Changes { changes, .. } = event
                && changes.iter().any(|change| matches!(change, Change::Delete { .. }))
            {
                self.desk.set_leader(None);
                return Ok(());
            }
        }
    }

    async fn lead(&self, won: Won, stop: &mut watch::Receiver<bool>) -> Ended {
        let keep_alive = keep_alive(self.store.clone(), self.desk.clone(), self.clock.clone(), won.lease);
        self.take_office(&won);
        let _keeper = Aide(tokio::spawn(keep_alive));
        let _asker = self.prometheus.clone().zip(self.params.prometheus.as_ref()).map(|(prometheus, params)| {
            let (desk, queries) = (self.desk.clone(), params.queries.clone());
            Aide(tokio::spawn(source::watch(prometheus, queries, desk, self.clock.clone(), self.telemetry.clone())))
        });
        match self.begin(&won).await {
            Ok(reign) => self.tick_until_ended(reign, stop).await,
            Err(ended) => ended,
        }
    }

    /// From now on the lease is to be kept alive.
    pub fn take_office(&self, won: &Won) {
        self.desk.take_office(Office::new(won.term, won.asked_at));
    }

    /// Begins a term with what an earlier leader left.
    ///
    /// # Errors
    /// [`Ended::Unread`].
    pub async fn begin(&self, won: &Won) -> Result<Reign, Ended> {
        let term = won.term;
        // Before anything is planned: nobody is to be led by the file for the moment until the store's policy is read.
        let (policies, leaving, mut left) = match self.take_over().await {
            Ok(found) => found,
            Err(error) => {
                warn!("cannot read the earlier leader's records: {error}");
                return Err(Ended::Unread);
            }
        };
        info!(term, name = self.params.name, "leading");
        self.telemetry.set(Metric::Leader, &[], 1.0);
        self.telemetry.set(Metric::Term, &[], precise(term));
        let ruled = !left.is_empty();
        let planner = |(id, params): (&PoolId, &PoolParams)| {
            let left = left.remove(id).unwrap_or_default();
            (id.clone(), left.planner(params.clone(), term, self.clock.now(), self.clock.wall()))
        };
        let mut pools: BTreeMap<PoolId, PoolPlanner> = policies.in_force().into_iter().map(planner).collect();
        if ruled {
            // A pool of which nothing is left may have been taken away a moment ago, and have come back.
            for pool in pools.values_mut() {
                pool.learn(self.clock.now());
            }
        }
        self.begin_counting(&pools);
        self.desk.with_office(|office| office.pools = pools);
        Ok(Reign { term, overseer: Overseer::new(policies, leaving), upkeep: Upkeep::default() })
    }

    /// Counters that begin at 0 show their first event; one that begins with it shows none.
    fn begin_counting(&self, pools: &BTreeMap<PoolId, PoolPlanner>) {
        for why in ["store", "overrides"] {
            self.telemetry.add(Metric::PublishFailures, &[why], 0.0);
        }
        for (id, pool) in pools {
            self.telemetry.add(Metric::PoliciesRejected, &[id.as_str()], 0.0);
            self.telemetry.add(Metric::OverridesRejected, &[id.as_str()], 0.0);
            for meter in pool.params().capacity.keys() {
                self.telemetry.add(Metric::LimitChanges, &[id.as_str(), &meter.to_string()], 0.0);
            }
        }
    }

    /// Which policies hold, which pools are gone with theirs, and what an earlier leader left of the pools that are there.
    async fn take_over(&self) -> Result<(Policies, BTreeSet<PoolId>, BTreeMap<PoolId, Left>), StoreError> {
        let keys = self.keys();
        let selects = [Select::Prefix(keys.policies()), Select::Prefix(keys.policy_statuses())];
        let (mut standing, mut statuses) = (BTreeMap::new(), BTreeMap::new());
        for entry in self.store.list(&selects).await?.entries {
            match keys.parse(&entry.key) {
                Some(Key::Policy(pool)) => {
                    standing.insert(pool, Standing { value: entry.value, revision: entry.mod_revision });
                }
                Some(Key::PolicyStatus(pool)) => {
                    let status: Option<PolicyStatus> = serde_json::from_slice(&entry.value).ok();
                    statuses.extend(status.map(|status| (pool, status)));
                }
                _ => {}
            }
        }
        let mut policies = Policies::new(&self.params.pools, self.params.read_policy);
        let mut leaving: BTreeSet<PoolId> = statuses.keys().cloned().collect();
        policies.restore(statuses);
        for (pool, error) in policies.judge(&standing) {
            reject(self, &pool, &error);
        }
        let in_force = policies.in_force();
        leaving.retain(|pool| !in_force.contains_key(pool));
        let left = self.left(in_force.into_keys()).await?;
        Ok((policies, leaving, left))
    }

    /// What an earlier leader left of these pools.
    pub(super) async fn left(
        &self,
        pools: impl Iterator<Item = &PoolId>,
    ) -> Result<BTreeMap<PoolId, Left>, StoreError> {
        let keys = self.keys();
        let of = |pool: &PoolId| {
            [
                Select::Prefix(keys.limits_of(pool)),
                Select::Key(keys.key(&Key::Pulse(pool.clone()))),
                Select::Key(keys.key(&Key::State(pool.clone()))),
                Select::Prefix(keys.override_statuses_of(pool)),
            ]
        };
        let selects: Vec<Select> = pools.flat_map(of).collect();
        let mut left: BTreeMap<PoolId, Left> = BTreeMap::new();
        for entry in self.store.list(&selects).await?.entries {
            let refused = match keys.parse(&entry.key) {
                Some(Key::Limits(pool, grantee)) => Grant::parse(&entry.value)
                    .map(|grant| drop(left.entry(pool).or_default().grants.insert(grantee, grant)))
                    .map_err(|error| ("grant", error)),
                Some(Key::Pulse(pool)) => Pulse::parse(&entry.value)
                    .map(|pulse| left.entry(pool).or_default().pulse = Some(pulse))
                    .map_err(|error| ("pulse", error)),
                Some(Key::State(pool)) => Checkpoint::parse(&entry.value)
                    .map(|checkpoint| left.entry(pool).or_default().checkpoint = Some(checkpoint))
                    .map_err(|error| ("checkpoint", error)),
                Some(Key::OverrideStatus(pool, target)) => {
                    let status: Option<OverrideStatus> = serde_json::from_slice(&entry.value).ok();
                    let applied = status.and_then(|status| status.applied).map(|last_good| (target, last_good));
                    left.entry(pool).or_default().overrides.extend(applied);
                    Ok(())
                }
                _ => Ok(()),
            };
            if let Err((kind, error)) = refused {
                self.telemetry.add(Metric::RecordsRefused, &[kind], 1.0);
                warn!(key = entry.key, "ignoring a {kind}: {error}");
            }
        }
        Ok(left)
    }

    async fn tick_until_ended(&self, mut reign: Reign, stop: &mut watch::Receiver<bool>) -> Ended {
        let mut regular = interval(TICK_EVERY);
        regular.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // In this order: what is due is not put off by 429s without end.
            let early = tokio::select! {
                biased;
                _ = stop.changed() => return Ended::Stopped,
                _ = regular.tick() => false,
                () = self.asked_early() => true,
            };
            let began = self.clock.now();
            if let Err(ended) = self.turn(&mut reign, early).await {
                return ended;
            }
            if early {
                // The first 429 after quiet is acted on at once, the following ones at most this often.
                let rest = EARLY_TICK_GAP.saturating_sub(self.clock.now().since(began));
                sleep(rest.max(STORE_RESTS)).await;
            }
        }
    }

    /// One tick, and what comes up behind it.
    ///
    /// # Errors
    /// [`Ended`]: the term is over.
    pub async fn turn(&self, reign: &mut Reign, early: bool) -> Result<(), Ended> {
        if !self.leads() {
            return Err(Ended::LeaseStale);
        }
        if let Err(Deposed) = self.tick(reign.term, early, &mut reign.overseer).await {
            return Err(Ended::Deposed);
        }
        let now = self.clock.now();
        self.desk.with_office(|office| office.ticked(now));
        match reign.upkeep.attend(self, reign.term, now).await {
            Err(PublishError::Deposed) => return Err(Ended::Deposed),
            // It comes round again.
            Err(error) => warn!("cannot look after the store: {error}"),
            Ok(()) => {}
        }
        Ok(())
    }

    /// Keeps the lease alive once; whether there is a reason to go on.
    pub async fn keep(&self, won: &Won) -> bool {
        keep(&*self.store, &self.desk, &*self.clock, won.lease).await
    }

    /// One tick. What cannot be written is said, and planned again at the next one.
    async fn tick(&self, term: u64, early: bool, overseer: &mut Overseer) -> Result<(), Deposed> {
        let began = self.clock.now();
        if !early {
            match overseer.oversee(self, term).await {
                Err(PublishError::Deposed) => return Err(Deposed),
                // What operators wrote waits; the pulse does not.
                Err(error) => {
                    self.telemetry.add(Metric::PublishFailures, &["overrides"], 1.0);
                    warn!("cannot read overrides or say what holds: {error}");
                }
                Ok(()) => {}
            }
        }
        let (now, wall) = (self.clock.now(), self.clock.wall());
        let planned = self.desk.with_office(|office| {
            let tick = |(id, pool): (&PoolId, &mut PoolPlanner)| {
                (pool.take_urgent() || !early).then(|| {
                    pool.hear(self.desk.board.outside(id, now));
                    (id.clone(), pool.tick(now, wall))
                })
            };
            office.pools.iter_mut().filter_map(tick).collect::<BTreeMap<PoolId, Pulse>>()
        });
        let pulses = planned.unwrap_or_default();
        let publisher = self.publisher(term);
        // The pulses first: a cut overtakes the grants.
        match publisher.pulses(&pulses).await {
            Ok(()) => self.record_pulses(&pulses),
            Err(error) => return self.cannot_publish(&error),
        }
        if let Err(error) = self.write_grants(&publisher, began).await {
            return self.cannot_publish(&error);
        }
        self.telemetry.add(Metric::Ticks, &[], 1.0);
        self.telemetry.observe(Metric::TickSeconds, &[], self.clock.now().seconds_since(began));
        Ok(())
    }

    /// Writes grants, as far as there is time: the next pulse is not to wait for them, and one that a 429 asks for still less.
    async fn write_grants(&self, publisher: &Publisher<'_>, began: MonoTime) -> Result<(), PublishError> {
        let until = self.clock.now() + GRANTS_FOR;
        loop {
            let (batches, urgent) = self.desk.with_office(next_grants).unwrap_or_default();
            if batches.is_empty() {
                return Ok(());
            }
            publisher.grants(&batches).await?;
            self.record_grants(&batches);
            let now = self.clock.now();
            for (id, batch) in batches {
                self.with_pool(&id, |pool| pool.granted(batch, now));
            }
            if now >= until || (urgent && now.since(began) >= EARLY_TICK_GAP) {
                return Ok(());
            }
        }
    }

    pub(super) fn publisher(&self, term: u64) -> Publisher<'_> {
        Publisher { store: &*self.store, keys: self.keys(), term, leader: self.leader() }
    }

    fn with_pool<T>(&self, id: &PoolId, work: impl FnOnce(&mut PoolPlanner) -> T) -> Option<T> {
        self.desk.with_office(|office| office.pools.get_mut(id).map(work)).flatten()
    }

    /// What is not acknowledged is planned again at the next tick.
    fn cannot_publish(&self, error: &PublishError) -> Result<(), Deposed> {
        if matches!(error, PublishError::Deposed) {
            return Err(Deposed);
        }
        self.telemetry.add(Metric::PublishFailures, &["store"], 1.0);
        warn!("cannot publish, will plan again: {error}");
        Ok(())
    }

    /// One decision, one record: what was decided goes to metrics and the log from the same values.
    fn record_pulses(&self, pulses: &BTreeMap<PoolId, Pulse>) {
        for (id, pulse) in pulses {
            self.telemetry.add(Metric::Publishes, &[id.as_str(), "pulse"], 1.0);
            self.with_pool(id, |pool| {
                self.record_pulse(id.as_str(), pool, pulse);
                pool.pulsed(pulse.clone());
            });
        }
    }

    fn record_pulse(&self, id: &str, pool: &PoolPlanner, pulse: &Pulse) {
        self.telemetry.add(Metric::Steps, &[id, &pool.reason().code], 1.0);
        for meter in pool.changed_limits() {
            self.telemetry.add(Metric::LimitChanges, &[id, &meter.to_string()], 1.0);
        }
        if pulse.scale_epoch == Some(pulse.stamp.epoch) {
            let cuts: Vec<String> = pulse.scale.iter().map(|(meter, factor)| format!("{meter} × {factor}")).collect();
            let reason = pool.reason().text;
            // The level control moves by a few percent all the time; that is no news.
            if pulse.scale.values().any(|factor| *factor < NEWSWORTHY_CUT) {
                info!(pool = id, reason, "thresholds cut: {}", cuts.join(", "));
            } else {
                debug!(pool = id, reason, "thresholds trimmed: {}", cuts.join(", "));
            }
        }
    }

    fn record_grants(&self, batches: &[(PoolId, Batch)]) {
        for (id, batch) in batches {
            self.telemetry.add(Metric::Publishes, &[id.as_str(), "grant"], precise(batch.len() as u64));
        }
    }
}

/// The next grants to write at a time, a part of each pool's: one with ten thousand changes does not hold up the others. With it
/// whether a pool wants a pulse before its time.
fn next_grants(office: &mut Office) -> (Vec<(PoolId, Batch)>, bool) {
    let urgent = office.pools.values().any(PoolPlanner::is_urgent);
    let open = office.pools.iter_mut().filter(|(_, pool)| pool.may_grant());
    let open: Vec<_> = open.take(GRANTS_AT_A_TIME).collect();
    let part = GRANTS_AT_A_TIME / open.len().max(1);
    (open.into_iter().map(|(id, pool)| (id.clone(), pool.outbox_mut().take(part))).collect(), urgent)
}

/// Another leader rules.
struct Deposed;

/// What an earlier leader left of a pool.
#[derive(Default)]
pub(super) struct Left {
    pub grants: BTreeMap<Grantee, Grant>,
    pub pulse: Option<Pulse>,
    pub checkpoint: Option<Checkpoint>,
    /// The last good record of each override that it spoke of.
    pub overrides: BTreeMap<Target, Override>,
}

impl Left {
    /// The planner that goes on from it.
    pub(super) fn planner(self, params: PoolParams, term: u64, now: MonoTime, wall: UnixMillis) -> PoolPlanner {
        let mut planner = PoolPlanner::new(params, term, self.grants, self.pulse.as_ref(), now);
        if let Some(checkpoint) = &self.checkpoint {
            planner.resume(checkpoint, now, wall);
        }
        self.overrides.into_iter().for_each(|(target, last)| planner.overrides_mut().restore(target, last));
        planner
    }
}

async fn keep_alive(store: Arc<dyn Store>, desk: Arc<Desk>, clock: Arc<dyn Clock>, lease: LeaseId) {
    let mut every = interval(KEEP_ALIVE_EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        if !keep(&*store, &desk, &*clock, lease).await {
            return;
        }
    }
}

async fn keep(store: &dyn Store, desk: &Desk, clock: &dyn Clock, lease: LeaseId) -> bool {
    // Confirmed as of when it was asked: the answer may have been long on its way.
    let asked_at = clock.now();
    // A loop that hangs or is gone must lose its lease, or nobody could take over.
    if !desk.ticks(asked_at) {
        return false;
    }
    match store.keep_alive(lease).await {
        Ok(()) => desk.confirmed(asked_at),
        Err(StoreError::LeaseLost) => return false,
        Err(_) => {}
    }
    true
}

async fn pause(span: Duration, stop: &mut watch::Receiver<bool>) {
    tokio::select! {
        () = sleep(span) => {}
        _ = stop.changed() => {}
    }
}

#[allow(clippy::cast_precision_loss, reason = "revisions and counts stay far below 2^53")]
pub(super) fn precise(n: u64) -> f64 {
    n as f64
}
