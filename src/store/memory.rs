//! A store within one process: for a single instance without etcd, and for tests.
//!
//! Owns an etcd's worth of semantics without an etcd: one revision for each transaction, create revisions kept over
//! updates, watches from a past revision as far as a bounded history goes, leases that take their keys with them.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::{
    ALIVE_EVERY, Change, Entry, LeaseId, Listing, Op, Outcome, Select, Source, Store, StoreError, Txn, Watch,
    WatchEvent, WatchSender, disjoint,
};

/// Changes kept for those who watch from a past revision.
const HISTORY_MAX: usize = 10_000;

/// The longest lease; longer ones are cut, so that no deadline is beyond what an instant can hold.
const LEASE_MAX: Duration = Duration::from_secs(365 * 24 * 3_600);

/// A store in memory. A clone is the same store.
#[derive(Debug, Clone)]
pub struct MemoryStore {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Says that there is a new revision.
    revision: watch::Sender<u64>,
    cluster_id: u64,
}

#[derive(Debug)]
struct State {
    revision: u64,
    entries: BTreeMap<String, Stored>,
    /// By revision, oldest first.
    history: VecDeque<Change>,
    /// The newest revision of which the history has lost a change.
    forgotten: u64,
    leases: HashMap<i64, Lease>,
    next_lease: i64,
}

#[derive(Debug)]
struct Stored {
    entry: Entry,
    lease: Option<LeaseId>,
}

#[derive(Debug)]
struct Lease {
    ttl: Duration,
    deadline: Instant,
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryStore {
    /// An empty store, with a cluster id of its own.
    #[must_use]
    pub fn new() -> Self {
        // Like etcd, an empty store is at revision 1 and the first write makes 2.
        let state = State {
            revision: 1,
            entries: BTreeMap::new(),
            history: VecDeque::new(),
            forgotten: 0,
            leases: HashMap::new(),
            next_lease: 1,
        };
        let shared =
            Shared { state: Mutex::new(state), revision: watch::Sender::new(1), cluster_id: fastrand::u64(1..) };
        Self { shared: Arc::new(shared) }
    }

    /// Forgets the history up to and including `revision`; who watches from there on learns that it is compacted.
    pub fn compact(&self, revision: u64) {
        let mut state = self.shared.state.lock();
        let upto = revision.min(state.revision);
        state.forgotten = state.forgotten.max(upto);
        while state.history.front().is_some_and(|change| change.mod_revision() <= upto) {
            state.history.pop_front();
        }
    }
}

impl Change {
    fn mod_revision(&self) -> u64 {
        match self {
            Self::Put(entry) => entry.mod_revision,
            Self::Delete { mod_revision, .. } => *mod_revision,
        }
    }

    fn key(&self) -> &str {
        match self {
            Self::Put(entry) => &entry.key,
            Self::Delete { key, .. } => key,
        }
    }
}

impl State {
    fn create_revision(&self, key: &str) -> u64 {
        self.entries.get(key).map_or(0, |stored| stored.entry.create_revision)
    }

    /// Whether the lease is there; one past its time is not, even if its keys are yet to be deleted.
    fn holds(&self, lease: LeaseId) -> bool {
        self.leases.get(&lease.0).is_some_and(|held| held.deadline > Instant::now())
    }

    /// Applies all operations at one new revision; nothing written, no new revision.
    fn apply(&mut self, ops: Vec<Op>) {
        let revision = self.revision + 1;
        let before = self.history.len();
        for op in ops {
            match op {
                Op::Put { key, value, lease } => {
                    let create_revision = match self.create_revision(&key) {
                        0 => revision,
                        known => known,
                    };
                    let entry = Entry { key: key.clone(), value, create_revision, mod_revision: revision };
                    self.history.push_back(Change::Put(entry.clone()));
                    self.entries.insert(key, Stored { entry, lease });
                }
                Op::Delete { key } => {
                    if self.entries.remove(&key).is_some() {
                        self.history.push_back(Change::Delete { key, mod_revision: revision });
                    }
                }
            }
        }
        if self.history.len() == before {
            return;
        }
        self.revision = revision;
        while self.history.len() > HISTORY_MAX {
            if let Some(change) = self.history.pop_front() {
                self.forgotten = change.mod_revision();
            }
        }
    }

    /// Ends a lease: its keys go, all at one revision.
    fn end(&mut self, lease: LeaseId) {
        self.leases.remove(&lease.0);
        let bound = self.entries.values().filter(|stored| stored.lease == Some(lease));
        let ops = bound.map(|stored| Op::Delete { key: stored.entry.key.clone() }).collect();
        self.apply(ops);
    }

    /// What happened from a revision on.
    fn since(&self, from_revision: u64, selects: &[Select]) -> Result<Vec<Change>, StoreError> {
        if from_revision <= self.forgotten {
            return Err(StoreError::Compacted { revision: self.forgotten + 1 });
        }
        let start = self.history.partition_point(|change| change.mod_revision() < from_revision);
        let matching = self.history.range(start..).filter(|change| selects.iter().any(|s| s.matches(change.key())));
        Ok(matching.cloned().collect())
    }
}

impl Shared {
    /// Changes the state and tells the watches about it.
    fn change<T>(&self, with: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state.lock();
        let before = state.revision;
        let out = with(&mut state);
        if state.revision != before {
            self.revision.send_replace(state.revision);
        }
        out
    }

    /// Feeds one watch until it is dropped or falls behind the history.
    async fn feed(self: Arc<Self>, selects: Vec<Select>, from_revision: u64, sender: WatchSender) {
        let mut news = self.revision.subscribe();
        let mut alive = interval(ALIVE_EVERY);
        alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut from = from_revision.max(1);
        loop {
            news.borrow_and_update();
            let found = {
                let state = self.state.lock();
                let found = state.since(from, &selects);
                from = from.max(state.revision + 1);
                found
            };
            match found {
                Ok(changes) => {
                    if let Some(revision) = changes.last().map(Change::mod_revision)
                        && sender.send(Ok(WatchEvent::Changes { changes, revision })).await.is_err()
                    {
                        return;
                    }
                }
                Err(error) => {
                    let _ = sender.send(Err(error)).await;
                    return;
                }
            }
            tokio::select! {
                biased;
                changed = news.changed() => if changed.is_err() { return },
                _ = alive.tick() => if sender.send(Ok(WatchEvent::Alive)).await.is_err() { return },
            }
        }
    }
}

#[async_trait]
impl Source for MemoryStore {
    async fn list(&self, selects: &[Select]) -> Result<Listing, StoreError> {
        let selects = disjoint(selects)?;
        let state = self.shared.state.lock();
        let mut entries = Vec::new();
        for select in &selects {
            match select {
                Select::Key(key) => entries.extend(state.entries.get(key).map(|stored| stored.entry.clone())),
                Select::Prefix(prefix) => {
                    let from = state.entries.range(prefix.clone()..);
                    let within = from.take_while(|(key, _)| key.starts_with(prefix.as_str()));
                    entries.extend(within.map(|(_, stored)| stored.entry.clone()));
                }
            }
        }
        entries.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(Listing { entries, revision: state.revision, cluster_id: self.shared.cluster_id })
    }

    async fn watch(&self, selects: &[Select], from_revision: u64) -> Result<Watch, StoreError> {
        let selects = disjoint(selects)?;
        if selects.is_empty() {
            return Err(StoreError::Rejected("a watch of nothing".to_owned()));
        }
        let shared = Arc::clone(&self.shared);
        Ok(Watch::driven(|sender| shared.feed(selects, from_revision, sender)))
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn commit(&self, txn: Txn) -> Result<Outcome, StoreError> {
        txn.check()?;
        self.shared.change(|state| {
            if txn.conditions.iter().any(|c| state.create_revision(&c.key) != c.create_revision) {
                return Ok(Outcome::Refused { revision: state.revision });
            }
            let mut leases = txn.ops.iter().filter_map(|op| match op {
                Op::Put { lease, .. } => *lease,
                Op::Delete { .. } => None,
            });
            if leases.any(|lease| !state.holds(lease)) {
                return Err(StoreError::LeaseLost);
            }
            state.apply(txn.ops);
            Ok(Outcome::Committed { revision: state.revision })
        })
    }

    async fn lease(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        let ttl = ttl.min(LEASE_MAX);
        let deadline = Instant::now() + ttl;
        let lease = self.shared.change(|state| {
            let id = state.next_lease;
            state.next_lease += 1;
            state.leases.insert(id, Lease { ttl, deadline });
            LeaseId(id)
        });
        let weak = Arc::downgrade(&self.shared);
        tokio::spawn(async move {
            let mut deadline = deadline;
            loop {
                sleep_until(deadline).await;
                let Some(shared) = weak.upgrade() else { return };
                let later = shared.change(|state| {
                    let later = state.leases.get(&lease.0)?.deadline;
                    if later > Instant::now() {
                        return Some(later);
                    }
                    state.end(lease);
                    None
                });
                match later {
                    Some(later) => deadline = later,
                    None => return,
                }
            }
        });
        Ok(lease)
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.shared.change(|state| {
            if !state.holds(lease) {
                return Err(StoreError::LeaseLost);
            }
            let held = state.leases.get_mut(&lease.0).ok_or(StoreError::LeaseLost)?;
            held.deadline = Instant::now() + held.ttl;
            Ok(())
        })
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.shared.change(|state| {
            if state.leases.contains_key(&lease.0) {
                state.end(lease);
            }
        });
        Ok(())
    }
}
