//! Leading: the campaign, the lease, the tick loop.
//!
//! A campaign is a transaction: put `leader`, bound to a 3 s lease, if nobody has. The key's create revision is the
//! term. Whoever loses watches for the key's DELETE. A leader whose last confirmed keep-alive is older than TTL − 1 s
//! by its own monotonic clock stops writing and answers 503.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tracing::{info, warn};

use super::Params;
use super::desk::{Desk, Office};
use super::planner::{PoolPlanner, Publication};
use super::publish::{PublishError, publish, publish_statuses};
use crate::clock::Clock;
use crate::plan::keyspace::{Key, Keyspace, LeaderRecord};
use crate::plan::{Grant, OverrideStatus, Target};
use crate::quota::{Grantee, PoolId};
use crate::store::{Change, Condition, LeaseId, Op, Outcome, Select, Store, StoreError, Txn, WatchEvent};
use crate::telemetry::{Metric, Telemetry};

/// The leader's lease.
pub const LEADER_TTL: Duration = Duration::from_secs(3);
/// How long after a confirmed keep-alive a leader may write: the TTL less one second for doubt.
pub(super) const LEASE_FRESH_FOR: Duration = Duration::from_secs(2);
const KEEP_ALIVE_EVERY: Duration = Duration::from_millis(700);
const TICK_EVERY: Duration = Duration::from_secs(1);
/// Early ticks are at least this far apart.
const EARLY_TICK_GAP: Duration = Duration::from_millis(100);
const RETRY_AFTER: Duration = Duration::from_millis(500);

pub(super) struct Leading {
    pub params: Params,
    pub report_url: String,
    pub store: Arc<dyn Store>,
    pub clock: Arc<dyn Clock>,
    pub desk: Arc<Desk>,
    pub telemetry: Arc<Telemetry>,
    pub stop: watch::Receiver<bool>,
}

/// Why a term ended.
enum Ended {
    Stopped,
    Deposed,
    LeaseStale,
}

impl Leading {
    /// Campaigns and leads until told to stop; resigns then.
    pub(super) async fn run(mut self) {
        let mut store_complained = false;
        while !*self.stop.borrow() {
            match self.campaign().await {
                Ok(Some((term, lease))) => {
                    store_complained = false;
                    let ended = self.lead(term, lease).await;
                    self.desk.leave_office();
                    self.telemetry.set(Metric::Leader, &[], 0.0);
                    let why = match ended {
                        Ended::Stopped => "stopping",
                        Ended::Deposed => "deposed",
                        Ended::LeaseStale => "the lease was not confirmed in time",
                    };
                    info!(term, "resigned: {why}");
                    // Frees the key at once; when the store is gone the lease runs out by itself.
                    let _ = timeout(Duration::from_secs(1), self.store.revoke(lease)).await;
                }
                Ok(None) => store_complained = false,
                Err(error) => {
                    // Said once per outage, not once per try.
                    if !store_complained {
                        warn!("waiting for the store: {error}");
                        store_complained = true;
                    }
                    self.pause(RETRY_AFTER).await;
                }
            }
        }
    }

    async fn pause(&mut self, span: Duration) {
        tokio::select! {
            () = sleep(span) => {}
            _ = self.stop.changed() => {}
        }
    }

    fn keys(&self) -> &Keyspace {
        &self.params.keyspace
    }

    /// Tries to become the leader; when another leads, waits until that ends and returns `None`.
    async fn campaign(&mut self) -> Result<Option<(u64, LeaseId)>, StoreError> {
        let lease = self.store.lease(LEADER_TTL).await?;
        let key = self.keys().key(&Key::Leader);
        let record = LeaderRecord { name: self.params.name.clone(), report_url: self.report_url.clone() };
        let value = serde_json::to_vec(&record).unwrap_or_default();
        let txn = Txn {
            conditions: vec![Condition { key: key.clone(), create_revision: 0 }],
            ops: vec![Op::Put { key: key.clone(), value, lease: Some(lease) }],
        };
        match self.store.commit(txn).await? {
            Outcome::Committed { revision } => {
                self.desk.set_leader(None);
                Ok(Some((revision, lease)))
            }
            Outcome::Refused { .. } => {
                self.store.revoke(lease).await?;
                self.follow(&key).await?;
                Ok(None)
            }
        }
    }

    /// Another leads: remembers where, and waits for the key's DELETE.
    async fn follow(&mut self, key: &str) -> Result<(), StoreError> {
        let selects = [Select::Key(key.to_owned())];
        let listing = self.store.list(&selects).await?;
        let Some(entry) = listing.entries.first() else { return Ok(()) };
        let leader: Option<LeaderRecord> = serde_json::from_slice(&entry.value).ok();
        if let Some(leader) = &leader {
            info!(name = leader.name, "standing by: another controller leads");
        }
        self.desk.set_leader(leader);
        let mut watch = self.store.watch(&selects, listing.revision + 1).await?;
        loop {
            let event = tokio::select! {
                event = watch.next() => event?,
                _ = self.stop.changed() => return Ok(()),
            };
            if let WatchEvent::Changes { changes, .. } = event
                && changes.iter().any(|change| matches!(change, Change::Delete { .. }))
            {
                self.desk.set_leader(None);
                return Ok(());
            }
        }
    }

    async fn lead(&mut self, term: u64, lease: LeaseId) -> Ended {
        let began = self.clock.now();
        let left = match self.grants_left().await {
            Ok(left) => left,
            Err(error) => {
                warn!("cannot read the earlier leader's grants: {error}");
                return Ended::LeaseStale;
            }
        };
        info!(term, name = self.params.name, "leading");
        self.telemetry.set(Metric::Leader, &[], 1.0);
        self.telemetry.set(Metric::Term, &[], precise(term));
        let pools = self
            .params
            .pools
            .iter()
            .map(|pool| {
                let left = left.get(&pool.id).cloned().unwrap_or_default();
                (pool.id.clone(), PoolPlanner::new(pool.clone(), term, left, began))
            })
            .collect();
        self.desk.take_office(Office::new(term, began, pools));
        let keeper = tokio::spawn(keep_alive(self.store.clone(), self.desk.clone(), self.clock.clone(), lease));
        let ended = self.tick_until_ended(term).await;
        keeper.abort();
        ended
    }

    /// Grants that an earlier leader left, by pool.
    async fn grants_left(&self) -> Result<BTreeMap<PoolId, BTreeMap<Grantee, Grant>>, StoreError> {
        let selects: Vec<Select> =
            self.params.pools.iter().map(|pool| Select::Prefix(self.keys().limits_of(&pool.id))).collect();
        let mut left: BTreeMap<PoolId, BTreeMap<Grantee, Grant>> = BTreeMap::new();
        for entry in self.store.list(&selects).await?.entries {
            let Some(Key::Limits(pool, grantee)) = self.keys().parse(&entry.key) else { continue };
            match Grant::parse(&entry.value) {
                Ok(grant) => drop(left.entry(pool).or_default().insert(grantee, grant)),
                Err(error) => {
                    self.telemetry.add(Metric::RecordsRefused, &["grant"], 1.0);
                    warn!(key = entry.key, "ignoring a grant: {error}");
                }
            }
        }
        Ok(left)
    }

    async fn tick_until_ended(&mut self, term: u64) -> Ended {
        let mut regular = interval(TICK_EVERY);
        regular.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut book = OverrideDesk::default();
        let desk = self.desk.clone();
        loop {
            let early = tokio::select! {
                _ = regular.tick() => false,
                () = desk.early.notified() => true,
                _ = self.stop.changed() => return Ended::Stopped,
            };
            if !desk.leads(self.clock.now()) {
                return Ended::LeaseStale;
            }
            match self.tick(term, early, &mut book).await {
                Ok(()) => {}
                Err(PublishError::Deposed) => return Ended::Deposed,
                Err(error) => {
                    self.telemetry.add(Metric::PublishFailures, &["store"], 1.0);
                    warn!("cannot publish, will plan again: {error}");
                }
            }
            if early {
                // The first 429 after quiet is acted on at once, the following ones at most this often.
                sleep(EARLY_TICK_GAP).await;
            }
        }
    }

    async fn tick(&self, term: u64, early: bool, book: &mut OverrideDesk) -> Result<(), PublishError> {
        let began = self.clock.now();
        if !early {
            self.refresh_overrides(term, book).await?;
        }
        let ids: Vec<PoolId> = self.params.pools.iter().map(|pool| pool.id.clone()).collect();
        for id in ids {
            let planned = self.desk.with_office(|office| {
                office.pools.get_mut(&id).map(|pool| pool.tick(self.clock.now(), self.clock.wall()))
            });
            let Some(Some(publication)) = planned else { continue };
            publish(&*self.store, self.keys(), term, &id, &publication).await?;
            let now = self.clock.now();
            self.desk.with_office(|office| {
                if let Some(pool) = office.pools.get_mut(&id) {
                    pool.committed(&publication, now);
                    self.record(&id, pool, &publication);
                }
            });
        }
        self.telemetry.add(Metric::Ticks, &[], 1.0);
        self.telemetry.set(Metric::TickSeconds, &[], self.clock.now().seconds_since(began));
        Ok(())
    }

    /// One decision, one record: what was decided goes to metrics and the log from the same values.
    fn record(&self, id: &PoolId, pool: &PoolPlanner, publication: &Publication) {
        let id = id.as_str();
        for (meter, step) in pool.steps() {
            let meter_name = meter.to_string();
            let labels = [id, meter_name.as_str()];
            let window_s = meter.window.seconds();
            self.telemetry.set(Metric::PoolCapacity, &labels, step.capacity_per_s * window_s);
            if let Some(others) = step.others_per_s {
                self.telemetry.set(Metric::PoolOthers, &labels, others * window_s);
            }
            if let Some(level) = step.level {
                self.telemetry.set(Metric::PoolLevel, &labels, level);
            }
        }
        self.telemetry.add(Metric::Publishes, &[id, "pulse"], 1.0);
        for (grantee, grant) in &publication.grants {
            self.telemetry.add(Metric::Publishes, &[id, "grant"], 1.0);
            let tenant = grantee.to_string();
            for (meter, rate) in &grant.thresholds.rates {
                self.telemetry.set(Metric::Threshold, &[id, &tenant, &meter.to_string()], rate.rate);
            }
        }
        self.telemetry.set(Metric::Members, &[id], precise(pool.members(self.clock.now()) as u64));
        if !publication.pulse.scale.is_empty()
            && let Some(grant) = pool.published().values().next()
        {
            info!(pool = id, reason = grant.reason.text, "capacity cut: {:?}", publication.pulse.scale);
        }
    }

    /// Reads the operators' records and says of each new one whether it is in force.
    async fn refresh_overrides(&self, term: u64, book: &mut OverrideDesk) -> Result<(), PublishError> {
        let keys = self.keys();
        let mut selects: Vec<Select> =
            self.params.pools.iter().map(|pool| Select::Prefix(keys.overrides_of(&pool.id))).collect();
        if !book.restored {
            let statuses = self.params.pools.iter().map(|pool| Select::Prefix(keys.override_statuses_of(&pool.id)));
            selects.extend(statuses);
        }
        let entries = self.store.list(&selects).await?.entries;
        let mut seen = BTreeMap::new();
        let mut restored = Vec::new();
        for entry in entries {
            match keys.parse(&entry.key) {
                Some(Key::Override(pool, target)) => drop(seen.insert((pool, target), entry)),
                Some(Key::OverrideStatus(pool, target)) => {
                    if let Ok(OverrideStatus { applied: Some(record), .. }) = serde_json::from_slice(&entry.value) {
                        restored.push((pool, target, record));
                    }
                }
                _ => {
                    if book.refused.insert(entry.key.clone()) {
                        self.telemetry.add(Metric::RecordsRefused, &["key"], 1.0);
                        warn!(key = entry.key, "ignoring a key that names no pool and tenant");
                    }
                }
            }
        }
        let statuses = self.desk.with_office(|office| {
            for (pool, target, record) in restored {
                if let Some(pool) = office.pools.get_mut(&pool) {
                    pool.overrides_mut().restore(target, record);
                }
            }
            let mut statuses = Vec::new();
            for ((id, target), entry) in &seen {
                let Some(pool) = office.pools.get_mut(id) else { continue };
                if book.revisions.get(&(id.clone(), target.clone())) == Some(&entry.mod_revision) {
                    continue;
                }
                let error = pool.overrides_mut().put(target.clone(), &entry.value).err();
                if let Some(error) = &error {
                    self.telemetry.add(Metric::OverridesRejected, &[id.as_str()], 1.0);
                    warn!(key = entry.key, "override rejected, the last good one stays: {error}");
                } else {
                    info!(key = entry.key, "override in force");
                }
                let status = OverrideStatus {
                    accepted: error.is_none(),
                    error: error.map(|e| e.to_string()),
                    applied: pool.overrides_mut().last_good(target).cloned(),
                };
                statuses.push((id.clone(), target.clone(), Some(status), entry.mod_revision));
            }
            for (id, pool) in &mut office.pools {
                pool.overrides_mut().retain(|target| seen.contains_key(&(id.clone(), target.clone())));
            }
            statuses
        });
        let mut statuses = statuses.unwrap_or_default();
        let gone: Vec<(PoolId, Target)> =
            book.revisions.keys().filter(|key| !seen.contains_key(key)).cloned().collect();
        statuses.extend(gone.iter().map(|(pool, target)| (pool.clone(), target.clone(), None, 0)));
        book.restored = true;
        if statuses.is_empty() {
            return Ok(());
        }
        let records = statuses.iter().map(|(p, t, s, _)| (p.clone(), t.clone(), s.clone())).collect();
        publish_statuses(&*self.store, keys, term, records).await?;
        for (pool, target, status, revision) in statuses {
            if status.is_some() {
                book.revisions.insert((pool, target), revision);
            } else {
                info!(%pool, "override removed");
                book.revisions.remove(&(pool, target));
            }
        }
        Ok(())
    }
}

/// What this leader has said of overrides so far.
#[derive(Default)]
struct OverrideDesk {
    restored: bool,
    revisions: BTreeMap<(PoolId, Target), u64>,
    refused: std::collections::BTreeSet<String>,
}

async fn keep_alive(store: Arc<dyn Store>, desk: Arc<Desk>, clock: Arc<dyn Clock>, lease: LeaseId) {
    let mut every = interval(KEEP_ALIVE_EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        // Confirmed as of when it was asked: the answer may have been long on its way.
        let asked_at = clock.now();
        match store.keep_alive(lease).await {
            Ok(()) => desk.confirmed(asked_at),
            Err(StoreError::LeaseLost) => return,
            Err(_) => {}
        }
    }
}

#[allow(clippy::cast_precision_loss, reason = "revisions and counts stay far below 2^53")]
fn precise(n: u64) -> f64 {
    n as f64
}
