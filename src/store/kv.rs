//! etcd's semantics as a value: one revision for each transaction, create revisions kept over updates, a bounded history to
//! watch from, leases that take their keys with them. It reads no clock: `now` is a span since a start of the caller's choice.
//!
//! [`MemoryStore`](super::MemoryStore) is this behind a lock, and passes one conformance suite with a real etcd; a simulated
//! store with faults is this behind a network that loses and delays.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use super::{Change, Condition, Entry, LeaseId, Listing, Op, Outcome, Select, StoreError, Txn, disjoint};

/// Changes kept for those who watch from a past revision.
const HISTORY_MAX: usize = 10_000;

/// The longest lease; longer ones are cut, so that no deadline is beyond what an instant can hold.
const LEASE_MAX: Duration = Duration::from_secs(365 * 24 * 3_600);

/// Keys, values, their history and their leases. A clone is a snapshot.
#[derive(Debug, Clone)]
pub struct Kv {
    cluster_id: u64,
    revision: u64,
    entries: BTreeMap<String, Stored>,
    /// By revision, oldest first.
    history: VecDeque<Change>,
    /// The newest revision of which the history has lost a change.
    forgotten: u64,
    leases: HashMap<i64, Lease>,
    next_lease: i64,
}

#[derive(Debug, Clone)]
struct Stored {
    entry: Entry,
    lease: Option<LeaseId>,
}

#[derive(Debug, Clone, Copy)]
struct Lease {
    ttl: Duration,
    deadline: Duration,
}

impl Change {
    /// The revision that made it.
    #[must_use]
    pub fn mod_revision(&self) -> u64 {
        match self {
            Self::Put(entry) => entry.mod_revision,
            Self::Delete { mod_revision, .. } => *mod_revision,
        }
    }

    /// The key that changed.
    #[must_use]
    pub fn key(&self) -> &str {
        match self {
            Self::Put(entry) => &entry.key,
            Self::Delete { key, .. } => key,
        }
    }
}

impl Kv {
    /// Nothing. Like etcd, an empty store is at revision 1 and the first write makes 2.
    #[must_use]
    pub fn new(cluster_id: u64) -> Self {
        Self {
            cluster_id,
            revision: 1,
            entries: BTreeMap::new(),
            history: VecDeque::new(),
            forgotten: 0,
            leases: HashMap::new(),
            next_lease: 1,
        }
    }

    /// Which store this is.
    #[must_use]
    pub fn cluster_id(&self) -> u64 {
        self.cluster_id
    }

    /// The revision of the last write.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// What is stored under a key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Entry> {
        self.entries.get(key).map(|stored| &stored.entry)
    }

    /// Everything the selects match, by key, each once.
    ///
    /// # Errors
    /// [`StoreError::Rejected`] for a select of nothing.
    pub fn list(&self, selects: &[Select]) -> Result<Listing, StoreError> {
        let selects = disjoint(selects)?;
        let mut entries = Vec::new();
        for select in &selects {
            match select {
                Select::Key(key) => entries.extend(self.get(key).cloned()),
                Select::Prefix(prefix) => {
                    let from = self.entries.range(prefix.clone()..);
                    let within = from.take_while(|(key, _)| key.starts_with(prefix.as_str()));
                    entries.extend(within.map(|(_, stored)| stored.entry.clone()));
                }
            }
        }
        entries.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(Listing { entries, revision: self.revision, cluster_id: self.cluster_id })
    }

    /// Writes all operations at one revision if all conditions hold.
    ///
    /// # Errors
    /// What every store would refuse; [`StoreError::LeaseLost`] when a key is to be bound to a lease that is gone.
    pub fn commit(&mut self, txn: Txn, now: Duration) -> Result<Outcome, StoreError> {
        txn.check()?;
        let holds = |condition: &Condition| {
            let value = self.get(&condition.key).map(|entry| &entry.value);
            self.create_revision(&condition.key) == condition.create_revision
                && condition.value.as_ref().is_none_or(|expected| value == Some(expected))
        };
        if !txn.conditions.iter().all(holds) {
            return Ok(Outcome::Refused { revision: self.revision });
        }
        let mut leases = txn.ops.iter().filter_map(|op| match op {
            Op::Put { lease, .. } => *lease,
            Op::Delete { .. } => None,
        });
        if leases.any(|lease| !self.holds(lease, now)) {
            return Err(StoreError::LeaseLost);
        }
        self.apply(txn.ops);
        Ok(Outcome::Committed { revision: self.revision })
    }

    /// Grants a lease.
    pub fn lease(&mut self, ttl: Duration, now: Duration) -> LeaseId {
        let ttl = ttl.min(LEASE_MAX);
        let id = self.next_lease;
        self.next_lease += 1;
        self.leases.insert(id, Lease { ttl, deadline: now + ttl });
        LeaseId(id)
    }

    /// Gives a lease its whole time again.
    ///
    /// # Errors
    /// [`StoreError::LeaseLost`].
    pub fn keep_alive(&mut self, lease: LeaseId, now: Duration) -> Result<(), StoreError> {
        let held = self.leases.get_mut(&lease.0).filter(|held| held.deadline > now).ok_or(StoreError::LeaseLost)?;
        held.deadline = now + held.ttl;
        Ok(())
    }

    /// Ends a lease: its keys go, all at one revision. One that is gone already is not an error.
    pub fn revoke(&mut self, lease: LeaseId) {
        if self.leases.remove(&lease.0).is_some() {
            let bound = self.entries.values().filter(|stored| stored.lease == Some(lease));
            let ops = bound.map(|stored| Op::Delete { key: stored.entry.key.clone() }).collect();
            self.apply(ops);
        }
    }

    /// The server has started again: each lease has its whole time.
    pub fn restart(&mut self, now: Duration) {
        self.leases.values_mut().for_each(|held| held.deadline = now + held.ttl);
    }

    /// The same as another cluster's, as a restored snapshot is.
    #[must_use]
    pub fn as_cluster(self, cluster_id: u64) -> Self {
        Self { cluster_id, ..self }
    }

    /// When a lease ends unless it is kept alive; `None` when it is gone.
    #[must_use]
    pub fn lease_ends(&self, lease: LeaseId) -> Option<Duration> {
        self.leases.get(&lease.0).map(|held| held.deadline)
    }

    /// The leases that are not ended yet, expired or not.
    #[must_use]
    pub fn leases(&self) -> Vec<LeaseId> {
        let mut leases: Vec<LeaseId> = self.leases.keys().map(|id| LeaseId(*id)).collect();
        leases.sort_unstable();
        leases
    }

    /// What happened to what the selects match from a revision on, in order.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] when not all of that is known any more.
    pub fn since(&self, from_revision: u64, selects: &[Select]) -> Result<Vec<Change>, StoreError> {
        if from_revision <= self.forgotten {
            return Err(StoreError::Compacted { revision: self.forgotten + 1 });
        }
        let start = self.history.partition_point(|change| change.mod_revision() < from_revision);
        let matching = self.history.range(start..).filter(|change| selects.iter().any(|s| s.matches(change.key())));
        Ok(matching.cloned().collect())
    }

    /// Forgets the history up to and including `revision`.
    pub fn compact(&mut self, revision: u64) {
        let upto = revision.min(self.revision);
        self.forgotten = self.forgotten.max(upto);
        while self.history.front().is_some_and(|change| change.mod_revision() <= upto) {
            self.history.pop_front();
        }
    }

    fn create_revision(&self, key: &str) -> u64 {
        self.get(key).map_or(0, |entry| entry.create_revision)
    }

    /// Whether the lease is there; one past its time is not, even if its keys are yet to be deleted.
    fn holds(&self, lease: LeaseId, now: Duration) -> bool {
        self.lease_ends(lease).is_some_and(|deadline| deadline > now)
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
}
