//! A store within one process: for a single instance without etcd, and for tests: a [`Kv`] behind a lock.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::kv::Kv;
use super::{
    ALIVE_EVERY, Change, LeaseId, Listing, Outcome, Select, Source, Store, StoreError, Txn, Watch, WatchEvent,
    WatchSender, disjoint,
};

/// A store in memory. A clone is the same store.
#[derive(Debug, Clone)]
pub struct MemoryStore {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    kv: Mutex<Kv>,
    /// Says that there is a new revision.
    revision: watch::Sender<u64>,
    started: Instant,
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
        let kv = Kv::new(fastrand::u64(1..));
        let revision = watch::Sender::new(kv.revision());
        Self { shared: Arc::new(Shared { kv: Mutex::new(kv), revision, started: Instant::now() }) }
    }

    /// Forgets the history up to and including `revision`; who watches from there on learns that it is compacted.
    pub fn compact(&self, revision: u64) {
        self.shared.kv.lock().compact(revision);
    }
}

impl Shared {
    /// The time since the store was made.
    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// Changes what is stored and tells the watches about it.
    fn change<T>(&self, with: impl FnOnce(&mut Kv) -> T) -> T {
        let mut kv = self.kv.lock();
        let before = kv.revision();
        let out = with(&mut kv);
        if kv.revision() != before {
            self.revision.send_replace(kv.revision());
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
                let kv = self.kv.lock();
                let found = kv.since(from, &selects);
                from = from.max(kv.revision() + 1);
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
        self.shared.kv.lock().list(selects)
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
        self.shared.change(|kv| kv.commit(txn, self.shared.now()))
    }

    async fn lease(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        let lease = self.shared.change(|kv| kv.lease(ttl, self.shared.now()));
        let weak = Arc::downgrade(&self.shared);
        tokio::spawn(async move {
            loop {
                let Some(shared) = weak.upgrade() else { return };
                let Some(deadline) = shared.kv.lock().lease_ends(lease) else { return };
                if deadline <= shared.now() {
                    shared.change(|kv| kv.revoke(lease));
                    return;
                }
                let deadline = shared.started + deadline;
                drop(shared);
                sleep_until(deadline).await;
            }
        });
        Ok(lease)
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.shared.change(|kv| kv.keep_alive(lease, self.shared.now()))
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.shared.change(|kv| kv.revoke(lease));
        Ok(())
    }
}
