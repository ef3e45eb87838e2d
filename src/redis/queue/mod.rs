//! A queue of refused requests in Redis, behind the [`requeue`](crate::client::Fallbacks::requeue) fallback, and the worker that
//! sends them when there is capacity.
//!
//! ```text
//! refusal ─► RequeueStream ─► letter (no secrets) ─► lanes in Redis, by tenant ─► worker's desk ─► courier, a tenant at a time
//!                                                        dead letters ◄──────────────────────────────┘   │
//!                                                             pool ◄─ waits its turn ────────────────────┘
//! ```

mod delivery;
mod lane;
mod letter;
mod scripts;
mod worker;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use http::HeaderName;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tracing::debug;

use letter::{Discretion, Letter, is_secret, named};
use scripts::{LANES, Ledger, Moved, StreamEntry};

pub use worker::{Delivered, Done, Worker, WorkerParams};

use super::connection::{Redis, Unreachable};
use crate::client::{NotQueued, Requeue, Requeued};
use crate::clock::UnixMillis;
use crate::quota::{PoolId, TenantId};
use crate::telemetry::{Metric, Telemetry};

/// How long an addition is followed whose caller was told that it is late.
const LATE_MAX: Duration = Duration::from_secs(5);
/// Additions under way at a time, in this process: each holds a body.
const ADDING_MAX: usize = 256;
/// How long operators wait.
const OPERATOR_TIMEOUT: Duration = Duration::from_secs(5);

/// A queue's parameters. All who use it have the same.
#[derive(Debug, Clone)]
pub struct QueueParams {
    /// Its name, a pool's best: `[a-z0-9][a-z0-9._-]{0,63}`. It is sent through one pool.
    pub name: String,
    /// Most requests in it, those being sent included.
    pub length_max: usize,
    /// Most dead letters. When there are so many, what should become one stays in the queue, its tenant's others behind it, until
    /// some have been revived or discarded.
    pub dead_max: usize,
    /// Larger bodies are not taken, in bytes.
    pub body_bytes_max: usize,
    /// Headers that are written down, beside `content-type`, `accept`, versions, organisations and the like. What is known to
    /// carry credentials is a mistake here.
    pub headers: Vec<HeaderName>,
    /// Parameters of URLs that are not written down, beside `key`, `token`, `signature` and the like.
    pub secret_parameters: Vec<String>,
    /// How long a caller waits for Redis to take its request.
    pub add_timeout: Duration,
}

impl QueueParams {
    /// A queue for 10,000 requests of 1 MiB each and as many dead letters, and 50 ms to take one.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            length_max: 10_000,
            dead_max: 10_000,
            body_bytes_max: 1 << 20,
            headers: Vec::new(),
            secret_parameters: Vec::new(),
            add_timeout: Duration::from_millis(50),
        }
    }
}

/// Why a queue cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QueueError {
    /// Not a name.
    #[error("queue {0:?}: expected 1–64 of a–z, 0–9, '.', '_', '-', beginning with a letter or digit")]
    Name(String),
    /// Credentials stand in this header.
    #[error("header {0}: credentials are never written down; whoever sends puts them in (Worker::with_credentials)")]
    SecretHeader(HeaderName),
}

/// A queue of refused requests, to add to and to look after; a [`Worker`] sends them. Cheap to clone; clones are the same one.
///
/// ```no_run
/// # use tidegate::client::{Fallbacks, Limited, Pool};
/// # use tidegate::redis::{Delivered, QueueParams, Redis, RedisParams, RequeueStream, Worker, WorkerParams};
/// # async fn run(pool: Pool, telemetry: std::sync::Arc<tidegate::telemetry::Telemetry>) -> Result<(), Box<dyn std::error::Error>> {
/// let redis = Redis::new(RedisParams::new("redis://127.0.0.1:6379"))?;
/// let queue = RequeueStream::new(redis, QueueParams::new("gpt-4o"), telemetry)?;
/// // In each service:
/// let limited = Limited::new(pool.clone(), "acme".parse()?).with_fallbacks(Fallbacks::new().requeue(queue.clone()));
/// // In workers, as many as you like:
/// let worker = Worker::new(&queue, WorkerParams::default(), pool, reqwest::Client::new(), |delivered: Delivered, answer: reqwest::Response| async move {
///     println!("{}: {}", delivered.tenant, answer.text().await?);
///     Ok(())
/// });
/// let worker = worker.with_credentials(|request, _tenant| {
///     request.headers_mut().insert("authorization", "Bearer …".parse().expect("a key"));
/// });
/// worker.run(async { drop(tokio::signal::ctrl_c().await) }).await;
/// # Ok(()) }
/// ```
///
/// # What it promises
///
/// - *At least once.* A request leaves the queue when its answer has been handed on, or as a dead letter. A worker that dies between
///   sending and that sends again; the `idempotency-key` header, the same each time, tells who wants to know. So does a
///   Redis that dies between writing a request down and saying so: its caller is told no, and the request is there.
/// - *Order.* A tenant's requests are sent one after the other, in the order in which they were added, whichever worker it is; the
///   others wait for the one that is tried again, other tenants' do not. Revived dead letters come last.
/// - *No credentials.* Only headers on a list are written down, no secrets of URLs; [`Worker::with_credentials`] puts them in again.
///   Bodies are written down as they are: Redis holds your callers' prompts.
/// - *Bounds.* A full queue takes nothing more and says so. Nothing is let go to make room, nor are dead letters.
///
/// What Redis has written down when it said yes is Redis's to promise: with `appendonly yes` and `appendfsync always` all, with
/// `everysec` what is older than a second, after a failover what the replica had. It must not evict what has no time to live: a
/// `maxmemory-policy` of `noeviction` or `volatile-…` (`noeviction` alone where members count together in the same Redis); a full
/// one takes no requests, and is emptied all the same. A queue is on one node of a cluster. Redis 7.0 or newer.
#[derive(Clone)]
pub struct RequeueStream(Arc<Queue>);

/// What queue and worker know.
struct Queue {
    name: String,
    params: QueueParams,
    discretion: Discretion,
    ledger: Ledger,
    adding: Arc<Semaphore>,
    telemetry: Arc<Telemetry>,
}

impl fmt::Debug for RequeueStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequeueStream").field("name", &self.0.name).finish_non_exhaustive()
    }
}

/// A request that was given up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// Its id, to [revive](RequeueStream::revive) it by, or to list on from.
    pub id: String,
    /// Its `idempotency-key`; empty if it could not be read.
    pub message: String,
    /// Whose it is; none if it could not be read.
    pub tenant: Option<TenantId>,
    /// Its method and URL; empty if it could not be read.
    pub request: String,
    /// Its body, in bytes.
    pub body_bytes: usize,
    /// How often it was tried.
    pub tries: u32,
    /// Why it was given up.
    pub reason: String,
    /// When it was added.
    pub added_at: UnixMillis,
    /// When it was given up.
    pub died_at: UnixMillis,
}

/// How much is in a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueLengths {
    /// Requests, those included that are being sent.
    pub waiting: u64,
    /// Dead letters.
    pub dead: u64,
}

/// Why a dead letter was not put back.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotRevived {
    /// There is none of this id.
    #[error("no dead letter {0:?}")]
    Unknown(String),
    /// The queue is full.
    #[error("the queue is full")]
    Full,
    /// Redis did not answer; it may have been put back all the same.
    #[error(transparent)]
    Unreachable(#[from] Unreachable),
}

impl RequeueStream {
    /// The queue of this name. Redis is not asked before there is something to add.
    ///
    /// # Errors
    /// [`QueueError`]: the parameters are no good.
    pub fn new(redis: Redis, params: QueueParams, telemetry: Arc<Telemetry>) -> Result<Self, QueueError> {
        let name: PoolId = params.name.parse().map_err(|_| QueueError::Name(params.name.chars().take(64).collect()))?;
        if let Some(secret) = params.headers.iter().find(|header| is_secret(header)) {
            return Err(QueueError::SecretHeader(secret.clone()));
        }
        let discretion = Discretion {
            headers: params.headers.clone(),
            secret_parameters: params.secret_parameters.iter().map(|name| name.to_lowercase()).collect(),
            body_bytes_max: params.body_bytes_max,
        };
        let (name, adding) = (name.as_str().to_owned(), Arc::new(Semaphore::new(ADDING_MAX)));
        let ledger = Ledger::new(redis, &name);
        Ok(Self(Arc::new(Queue { name, params, discretion, ledger, adding, telemetry })))
    }

    /// Up to `count` dead letters in the order in which they died, after the one whose id is `after`.
    ///
    /// # Errors
    /// [`Unreachable`]: Redis did not answer within 5 s.
    pub async fn dead_letters(&self, after: Option<&str>, count: usize) -> Result<Vec<DeadLetter>, Unreachable> {
        let entries = self.0.ledger.dead_after(after, count, OPERATOR_TIMEOUT).await?;
        Ok(entries.into_iter().map(dead_letter).collect())
    }

    /// Puts a dead letter back into the queue, behind all others, its tries forgotten.
    ///
    /// # Errors
    /// [`NotRevived`].
    pub async fn revive(&self, id: &str) -> Result<(), NotRevived> {
        match self.0.ledger.revive(id, self.0.params.length_max, OPERATOR_TIMEOUT).await? {
            Moved::Done => Ok(()),
            Moved::Gone => Err(NotRevived::Unknown(id.chars().take(64).collect())),
            Moved::Full => Err(NotRevived::Full),
        }
    }

    /// Removes a dead letter for good; whether there was one of this id.
    ///
    /// # Errors
    /// [`Unreachable`]: Redis did not answer within 5 s.
    pub async fn discard(&self, id: &str) -> Result<bool, Unreachable> {
        self.0.ledger.discard(id, OPERATOR_TIMEOUT).await
    }

    /// How much is in it now.
    ///
    /// # Errors
    /// [`Unreachable`]: Redis did not answer within 5 s.
    pub async fn lengths(&self) -> Result<QueueLengths, Unreachable> {
        let (waiting, dead) = self.0.ledger.lengths(OPERATOR_TIMEOUT).await?;
        Ok(QueueLengths { waiting, dead })
    }

    /// Why not, in a word and in a sentence.
    async fn added(&self, requeued: &Requeued) -> Result<(), (&'static str, String)> {
        let queue = self.0.clone();
        let id = format!("{:016x}{:016x}", fastrand::u64(..), fastrand::u64(..));
        let letter = Letter::write(id, requeued, &queue.discretion).map_err(|why| (why.kind(), why.to_string()))?;
        let Ok(place) = queue.adding.clone().try_acquire_owned() else {
            return Err(("busy", "too many requests are on their way into the queue".to_owned()));
        };
        let (within, lane) = (queue.params.add_timeout, lane_of(&letter.tenant));
        // Goes on when the caller has gone: a question once asked may have been answered with yes.
        let mut adding = tokio::spawn(async move {
            let _place = place;
            let most = queue.params.length_max;
            queue.ledger.add(lane, most, &letter.fields(), LATE_MAX.max(within)).await
        });
        match timeout(within, &mut adding).await {
            Ok(Ok(Ok(Some(_)))) => Ok(()),
            Ok(Ok(Ok(None))) => Err(("full", "the queue is full".to_owned())),
            Ok(Ok(Err(error))) => Err((error.kind(), error.to_string())),
            Ok(Err(error)) => Err(("failed", error.to_string())),
            Err(_) => {
                let queue = self.0.clone();
                // The caller was told no: what is added yet is taken out again, if nobody has begun to send it.
                tokio::spawn(async move {
                    if let Ok(Ok(Some(entry))) = adding.await {
                        let withdrawn = queue.ledger.withdraw(lane, &entry, LATE_MAX).await;
                        debug!(queue = queue.name, ?withdrawn, "added too late for its caller");
                    }
                });
                Err(("late", Unreachable::Late(within).to_string()))
            }
        }
    }
}

#[async_trait]
impl Requeue for RequeueStream {
    async fn requeue(&self, requeued: Requeued) -> Result<(), NotQueued> {
        let (added, name) = (self.added(&requeued).await, self.0.name.as_str());
        match &added {
            Ok(()) => self.0.telemetry.add(Metric::QueueAdded, &[name], 1.0),
            Err((why, _)) => self.0.telemetry.add(Metric::QueueRefused, &[name, *why], 1.0),
        }
        added.map_err(|(_, why)| NotQueued(why))
    }
}

/// A tenant's lane; the same in every process and version.
fn lane_of(tenant: &TenantId) -> usize {
    // FNV-1a.
    let mix = |hash: u32, byte: &u8| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
    tenant.as_str().as_bytes().iter().fold(0x811c_9dc5, mix) as usize % LANES
}

/// When an entry was added, as its id says: `<ms>-<n>`.
fn added_at(entry: &str) -> UnixMillis {
    UnixMillis(entry.split_once('-').and_then(|(ms, _)| ms.parse().ok()).unwrap_or(0))
}

fn dead_letter((id, fields): StreamEntry) -> DeadLetter {
    let mut about = named(fields.clone());
    let mut text = |name: &str| about.remove(name).map(|text| String::from_utf8_lossy(&text).into_owned());
    let (reason, tries, entry) = (text("reason"), text("tries"), text("entry"));
    let letter = Letter::read(fields);
    DeadLetter {
        died_at: added_at(&id),
        id,
        message: letter.as_ref().map(|letter| letter.id.clone()).unwrap_or_default(),
        tenant: letter.as_ref().map(|letter| letter.tenant.clone()),
        request: letter
            .as_ref()
            .map(|letter| format!("{} {}", letter.head.method, letter.head.url))
            .unwrap_or_default(),
        body_bytes: letter.as_ref().map_or(0, |letter| letter.body.len()),
        tries: tries.and_then(|tries| tries.parse().ok()).unwrap_or(0),
        reason: reason.unwrap_or_default(),
        added_at: added_at(&entry.unwrap_or_default()),
    }
}
