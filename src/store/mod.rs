//! Where records live: etcd, or memory within one process.
//!
//! Owns the contract with the store and nothing of what is kept there: keys and values are opaque (`plan` builds and
//! reads them). A [`Source`] lists and watches; a [`Store`] also commits, fenced by create revisions, and grants
//! leases. [`EtcdStore`] and [`MemoryStore`] pass one conformance suite, so what holds for one holds for the other.
//!
//! How to follow a set of keys: [`Source::list`], then [`Source::watch`] from the listing's revision + 1. When a watch
//! ends, **list again and diff**: the revision of the last event is no place to resume, because the selects of one
//! watch are delivered independently of each other, and one revision may come in several messages. A watch ends by itself when
//! the store that it watches is not the one that was listed.
//!
//! An override, written from code; with [`EtcdStore`] it would reach every member:
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use tidegate::plan::keyspace::{Key, Keyspace};
//! use tidegate::plan::{Action, Override, Target};
//! use tidegate::quota::TenantId;
//! use tidegate::store::{MemoryStore, Select, Source, Store, Txn};
//!
//! let store = MemoryStore::new();
//! let acme: Target = "acme".parse::<TenantId>()?.into();
//! let record = Override::new(Action::Scale(0.5)).by("deploy").because("half for the night").to_json(&acme)?;
//! let key = Keyspace::default().key(&Key::Override("openai-gpt4o".parse()?, acme));
//! store.commit(Txn::put(key.clone(), record)).await?;
//!
//! let found = store.list(&[Select::Key(key)]).await?;
//! assert_eq!(found.entries[0].value, br#"{"scale":0.5,"by":"deploy","reason":"half for the night"}"#);
//! # Ok(()) }
//! ```

mod etcd;
mod kv;
mod memory;
pub(crate) mod pem;

use std::collections::HashSet;
use std::future::Future;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

pub use etcd::{EtcdAccess, EtcdStore, EtcdTls, EtcdUser};
pub use kv::Kv;
pub use memory::MemoryStore;

/// The most operations, and the most conditions, of one transaction: etcd's default limit.
pub const TXN_OPS_MAX: usize = 128;

/// How often a quiet watch says that it is alive.
pub const ALIVE_EVERY: Duration = Duration::from_secs(3);

/// A watch without any message for so long is over: three requests for progress went unanswered.
pub const WATCH_SILENT_MAX: Duration = Duration::from_secs(9);

/// The longest a call may take, repetitions included.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(2);

/// Messages a watch holds for a slow reader; beyond them the store itself is slowed down.
const WATCH_BACKLOG: usize = 256;

/// A key and what is stored under it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The whole key, prefix included.
    pub key: String,
    /// The value as stored.
    pub value: Vec<u8>,
    /// The revision that created the key; kept over updates.
    pub create_revision: u64,
    /// The revision that last wrote the key.
    pub mod_revision: u64,
}

/// What a list found, all of it at one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// The entries, by key, each once.
    pub entries: Vec<Entry>,
    /// The revision that was read.
    pub revision: u64,
    /// Which store answered; another one means that revisions must not be compared.
    pub cluster_id: u64,
}

/// Which keys.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Select {
    /// This key.
    Key(String),
    /// Every key that begins so.
    Prefix(String),
}

/// A change of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Created or updated.
    Put(Entry),
    /// Deleted, by request or with its lease.
    Delete {
        /// The key that is gone.
        key: String,
        /// The revision that deleted it.
        mod_revision: u64,
    },
}

/// One message of a watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WatchEvent {
    /// Changes in the order they happened.
    Changes {
        /// At least one.
        changes: Vec<Change>,
        /// The revision of the last of them.
        revision: u64,
    },
    /// A message that carries no events. The store answers; it never means *caught up*.
    Alive,
}

/// A lease: the keys bound to it go when it is not kept alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LeaseId(pub i64);

/// What must hold for a transaction to be committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// The key looked at.
    pub key: String,
    /// The revision that must have created it; 0: the key must not exist.
    pub create_revision: u64,
    /// What must stand there, byte for byte; `None`: whatever does.
    pub value: Option<Vec<u8>>,
}

/// One write of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Creates or updates a key.
    Put {
        /// The key.
        key: String,
        /// Its new value.
        value: Vec<u8>,
        /// What the key is bound to from now on; `None` unbinds it.
        lease: Option<LeaseId>,
    },
    /// Deletes a key; one that is not there is not an error.
    Delete {
        /// The key.
        key: String,
    },
}

/// Writes that happen all at one revision, or not at all.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Txn {
    /// All must hold.
    pub conditions: Vec<Condition>,
    /// The writes, no key twice.
    pub ops: Vec<Op>,
}

/// How a transaction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Written.
    Committed {
        /// The revision of the writes.
        revision: u64,
    },
    /// A condition did not hold; nothing was written.
    Refused {
        /// The store's revision at that moment.
        revision: u64,
    },
}

/// Why the store did not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The configuration names no endpoint.
    #[error("no store endpoint is configured")]
    NoEndpoints,
    /// An endpoint that cannot be used.
    #[error("store endpoint {endpoint:?}: {detail}")]
    Endpoint {
        /// The endpoint as written.
        endpoint: String,
        /// What is wrong with it.
        detail: String,
    },
    /// A file of certificates, or of a key, that cannot be used.
    #[error("{file}: {detail}; expected certificates or a key as PEM")]
    File {
        /// Its path.
        file: String,
        /// What is wrong with it.
        detail: String,
    },
    /// No answer; worth another attempt. A commit that ends so may have been applied.
    #[error("store at {endpoints} is unavailable: {detail}")]
    Unavailable {
        /// Where it was looked for.
        endpoints: String,
        /// What happened.
        detail: String,
    },
    /// The history asked for is gone: list again.
    #[error("store history before revision {revision} is compacted")]
    Compacted {
        /// What the store says is the oldest it still has.
        revision: u64,
    },
    /// The store is another one than was listed, or older: restored from a backup since. List again.
    #[error("store was restored from a backup, or is another one")]
    Restored,
    /// A watch without any message for too long.
    #[error("store sent nothing on the watch for {seconds} s")]
    Silent {
        /// For how long.
        seconds: u64,
    },
    /// The lease has expired or was revoked; its keys are gone.
    #[error("lease is lost: it expired or was revoked")]
    LeaseLost,
    /// The store takes no more writes until an operator makes room.
    #[error("store is full: its database space is exceeded")]
    NoSpace,
    /// A transaction larger than [`TXN_OPS_MAX`].
    #[error("transaction of {ops} operations or conditions: the store takes {TXN_OPS_MAX}")]
    TooManyOps {
        /// How many there were.
        ops: usize,
    },
    /// The store, or the check before it, refuses the request as it is; another attempt is in vain.
    #[error("store rejected the request: {0}")]
    Rejected(String),
    /// This watch has already ended.
    #[error("watch is over: list again and open another")]
    Over,
}

/// Something that can be listed and watched.
#[async_trait]
pub trait Source: Send + Sync + 'static {
    /// Everything the selects match, all at one revision.
    async fn list(&self, selects: &[Select]) -> Result<Listing, StoreError>;

    /// Every change of what the selects match, from `from_revision` on (inclusive), each once; in order per select.
    /// That the history is compacted is told by the watch's first [`Watch::next`] at the latest.
    async fn watch(&self, selects: &[Select], from_revision: u64) -> Result<Watch, StoreError>;
}

/// A source that can be written to.
#[async_trait]
pub trait Store: Source {
    /// Writes all operations at one revision if all conditions hold. Sent once: after
    /// [`StoreError::Unavailable`] it is not known whether it was applied.
    async fn commit(&self, txn: Txn) -> Result<Outcome, StoreError>;

    /// Grants a lease. etcd counts whole seconds (rounded up) and has a minimum: 2 s by its defaults.
    async fn lease(&self, ttl: Duration) -> Result<LeaseId, StoreError>;

    /// Gives the lease its whole time again; [`StoreError::LeaseLost`] when it is gone.
    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError>;

    /// Ends the lease and deletes its keys, at one revision. A lease that is gone already is not an error.
    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError>;

    /// How the server is; `None` where there is none.
    async fn health(&self) -> Result<Option<Health>, StoreError> {
        Ok(None)
    }
}

/// How a store's server is, as the node that answers says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// The server's version.
    pub version: String,
    /// The size of its database file; what was freed within stays in it until it is defragmented.
    pub file_bytes: u64,
    /// What of that is used.
    pub used_bytes: u64,
    /// At which size of the file it takes no more writes, where it tells (etcd from 3.6 on).
    pub quota_bytes: Option<u64>,
    /// What is wrong in its own words, alarms among it.
    pub errors: Vec<String>,
}

impl Health {
    /// Whether it takes no writes, for want of room.
    #[must_use]
    pub fn no_space(&self) -> bool {
        self.errors.iter().any(|error| error.contains("NOSPACE"))
    }
}

/// An open watch. Dropping it closes it.
#[derive(Debug)]
pub struct Watch {
    events: mpsc::Receiver<Result<WatchEvent, StoreError>>,
    driver: JoinHandle<()>,
}

/// Where the driver of a [`Watch`] puts what it hears.
pub type WatchSender = mpsc::Sender<Result<WatchEvent, StoreError>>;

impl Watch {
    /// A watch fed by the task that `drive` describes; for those who write a [`Source`]. The task is aborted when
    /// the watch is dropped; it ends itself after it has sent an error.
    pub fn driven<F, D>(drive: F) -> Self
    where
        F: FnOnce(WatchSender) -> D,
        D: Future<Output = ()> + Send + 'static,
    {
        let (sender, events) = mpsc::channel(WATCH_BACKLOG);
        Self { events, driver: tokio::spawn(drive(sender)) }
    }

    /// The next message. Cancel-safe. After an error the watch is over.
    ///
    /// # Errors
    /// Whatever ended the watch; from then on [`StoreError::Over`].
    pub async fn next(&mut self) -> Result<WatchEvent, StoreError> {
        let event = self.events.recv().await.unwrap_or(Err(StoreError::Over));
        if event.is_err() {
            self.events.close();
            while self.events.try_recv().is_ok() {}
        }
        event
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Select {
    /// Whether it matches `key`.
    #[must_use]
    pub fn matches(&self, key: &str) -> bool {
        match self {
            Self::Key(own) => own == key,
            Self::Prefix(prefix) => key.starts_with(prefix.as_str()),
        }
    }

    fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Prefix(wide), Self::Key(text) | Self::Prefix(text)) => text.starts_with(wide.as_str()),
            (Self::Key(_), _) => self == other,
        }
    }

    fn text(&self) -> &str {
        match self {
            Self::Key(text) | Self::Prefix(text) => text,
        }
    }
}

/// The fewest selects that match the same keys: with them no key is listed, and no change seen, twice.
fn disjoint(selects: &[Select]) -> Result<Vec<Select>, StoreError> {
    if selects.iter().any(|select| select.text().is_empty()) {
        return Err(StoreError::Rejected("a select is empty".to_owned()));
    }
    let mut sorted = selects.to_vec();
    // By text, a prefix before the key of the same text: whatever covers a select stands before it, and the last one
    // kept covers it if any does.
    sorted.sort_by(|a, b| a.text().cmp(b.text()).then_with(|| b.cmp(a)));
    let mut kept: Vec<Select> = Vec::with_capacity(sorted.len());
    let mut prefix: Option<Select> = None;
    for select in sorted {
        let covered = prefix.as_ref().is_some_and(|wide| wide.covers(&select)) || kept.last() == Some(&select);
        if covered {
            continue;
        }
        if matches!(select, Select::Prefix(_)) {
            prefix = Some(select.clone());
        }
        kept.push(select);
    }
    Ok(kept)
}

impl Txn {
    /// One unconditional write that is bound to no lease.
    #[must_use]
    pub fn put(key: String, value: Vec<u8>) -> Self {
        Self { conditions: Vec::new(), ops: vec![Op::Put { key, value, lease: None }] }
    }

    /// One unconditional delete.
    #[must_use]
    pub fn delete(key: String) -> Self {
        Self { conditions: Vec::new(), ops: vec![Op::Delete { key }] }
    }

    /// What every store would refuse is refused here, in the same words.
    fn check(&self) -> Result<(), StoreError> {
        // One for each thing that is compared.
        let compared = self.conditions.iter().map(|condition| 1 + usize::from(condition.value.is_some())).sum();
        let ops = self.ops.len().max(compared);
        if ops > TXN_OPS_MAX {
            return Err(StoreError::TooManyOps { ops });
        }
        let mut seen = HashSet::with_capacity(self.ops.len());
        for op in &self.ops {
            let (Op::Put { key, .. } | Op::Delete { key }) = op;
            if !seen.insert(key) {
                return Err(StoreError::Rejected(format!("key {key:?} is written twice in one transaction")));
            }
        }
        if seen.iter().any(|key| key.is_empty()) || self.conditions.iter().any(|condition| condition.key.is_empty()) {
            return Err(StoreError::Rejected("a key is empty".to_owned()));
        }
        Ok(())
    }
}
