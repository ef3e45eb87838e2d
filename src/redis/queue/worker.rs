//! Who empties a queue: holds lanes, reads what is in them, and sends each request when its turn at the pool comes.

use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use reqwest::{Request, Response};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use super::delivery::{Courier, serve};
use super::lane::Lane;
use super::scripts::{LANES, LaneTurn, Turn};
use super::{Queue, RequeueStream, Unreachable};
use crate::client::{AnswerStore, BoxError, CacheKey, Pool, Priority};
use crate::clock::UnixMillis;
use crate::quota::{Cost, TenantId};
use crate::telemetry::Metric;

/// How long Redis may take to answer a worker.
pub(super) const WORKER_TIMEOUT: Duration = Duration::from_secs(2);
/// Pauses between turns while Redis is away: the first, and the longest.
const AWAY_PAUSES: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(2)];

/// How a worker works.
#[derive(Debug, Clone)]
pub struct WorkerParams {
    /// What it is called in the leases of its lanes, for operators; made up when empty.
    pub name: String,
    /// Most tenants served at a time, one request of each in flight.
    pub in_flight_max: usize,
    /// So many sends that fail make a dead letter; what the limiter would never admit counts as one, and so does a send that was
    /// not begun because Redis counted it without saying so in time. At least 1.
    pub tries_max: u32,
    /// The pause after the first try that failed; doubled after each further one.
    pub retry_first: Duration,
    /// The longest pause.
    pub retry_max: Duration,
    /// How long a request waits in its tenant's line at a time; it asks again after that.
    pub admit_wait: Duration,
    /// How long a call may last, until its answer has been handed on.
    pub answer_max: Duration,
    /// For how long a lane is held that is not heard of: so long it lies idle when a worker dies. Less than 3 times
    /// `poll` counts as that.
    pub lease: Duration,
    /// How often new requests are looked for.
    pub poll: Duration,
    /// How long a worker that is to stop brings to an end what is in flight.
    pub drain_max: Duration,
    /// How urgent its requests are among their tenant's own.
    pub priority: Priority,
}

impl Default for WorkerParams {
    /// 256 tenants at a time; 5 tries, 1 s to 60 s apart; calls of 10 minutes; leases of 10 s, five looks a second; behind
    /// interactive requests.
    fn default() -> Self {
        Self {
            name: String::new(),
            in_flight_max: 256,
            tries_max: 5,
            retry_first: Duration::from_secs(1),
            retry_max: Duration::from_secs(60),
            admit_wait: Duration::from_secs(2),
            answer_max: Duration::from_secs(600),
            lease: Duration::from_secs(10),
            poll: Duration::from_millis(200),
            drain_max: Duration::from_secs(30),
            priority: Priority::Batch,
        }
    }
}

/// A request that has an answer.
#[derive(Clone, PartialEq, Eq)]
pub struct Delivered {
    /// Its id, sent as `idempotency-key` unless its caller had one: the same when it comes again.
    pub id: String,
    /// Whose it is.
    pub tenant: TenantId,
    /// What it was to cost.
    pub cost: Cost,
    /// Under which its answer may be kept.
    pub cache_key: Option<CacheKey>,
    /// Its method.
    pub method: String,
    /// Its URL, without what is secret in it.
    pub url: String,
    /// Its body.
    pub body: Bytes,
    /// How often it was sent, this time included.
    pub tries: u32,
    /// When it was added.
    pub added_at: UnixMillis,
}

/// Not what was asked: that is the caller's own.
impl fmt::Debug for Delivered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, tenant, tries, .. } = self;
        let mut shown = f.debug_struct("Delivered");
        shown.field("id", id).field("tenant", tenant).field("tries", tries).finish_non_exhaustive()
    }
}

/// Who gets the answers. A closure `|delivered, answer| async { Ok(()) }` is one.
#[async_trait]
pub trait Done: Send + Sync + 'static {
    /// Takes a successful answer. Only when this has returned the request leaves the queue: a worker that dies before sends it
    /// again, and so does an error.
    ///
    /// # Errors
    /// The answer could not be read or handed on: it is asked for again, as a try that failed.
    async fn done(&self, delivered: Delivered, answer: Response) -> Result<(), BoxError>;
}

#[async_trait]
impl<F, A> Done for F
where
    F: Fn(Delivered, Response) -> A + Send + Sync + 'static,
    A: Future<Output = Result<(), BoxError>> + Send,
{
    async fn done(&self, delivered: Delivered, answer: Response) -> Result<(), BoxError> {
        self(delivered, answer).await
    }
}

/// Puts credentials into a request.
pub(super) type Credentials = Box<dyn Fn(&mut Request, &TenantId) + Send + Sync>;

/// A worker: sends a queue's requests through a pool. Several share the queue among them.
///
/// An answer of status 2xx is handed on. One of 408, 409, 425, 429 and 5xx is asked for again, after a pause, and so is one of 401
/// and 403, as credentials are put right without the request; any other makes a dead letter at once.
pub struct Worker {
    courier: Courier,
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker").field("queue", &self.courier.queue.name).finish_non_exhaustive()
    }
}

impl Worker {
    /// A worker for this queue that sends through this pool. `http` is a plain client: the worker asks the pool itself.
    #[must_use]
    pub fn new(
        queue: &RequeueStream,
        params: WorkerParams,
        pool: Pool,
        http: reqwest::Client,
        done: impl Done,
    ) -> Self {
        let slots = Semaphore::new(params.in_flight_max.max(1));
        Self {
            courier: Courier {
                queue: queue.0.clone(),
                params,
                pool,
                http,
                done: Box::new(done),
                credentials: Box::new(|_, _| {}),
                answers: None,
                slots,
                reachable: watch::Sender::new(true),
            },
        }
    }

    /// What puts the credentials in again that were not written down: headers, or parameters of the URL.
    #[must_use]
    pub fn with_credentials(mut self, credentials: impl Fn(&mut Request, &TenantId) + Send + Sync + 'static) -> Self {
        self.courier.credentials = Box::new(credentials);
        self
    }

    /// Answers to requests with a [`CacheKey`] are kept there as they are read, for those who ask again.
    #[must_use]
    pub fn keeping<S: AnswerStore + Clone>(mut self, answers: &S) -> Self {
        self.courier.answers = Some(Arc::new(answers.clone()));
        self
    }

    /// Works until `until` is over, and then brings to an end what is in flight, for up to
    /// [`drain_max`](WorkerParams::drain_max). While Redis is away it waits for it.
    ///
    /// Dropped, it stops at once: what it had in hand waits for its leases to end.
    pub async fn run(self, until: impl Future<Output = ()>) {
        let mut desk = Desk::new(self.courier);
        let mut until = pin!(until);
        loop {
            let pause = desk.turn(true).await;
            tokio::select! {
                biased;
                () = &mut until => break,
                () = sleep(pause) => {}
            }
        }
        desk.drain().await;
    }
}

/// So many turns after one that was not answered.
const READS_AGAIN_AFTER: u64 = 8;

/// A worker at work.
struct Desk {
    courier: Arc<Courier>,
    /// Which no other worker is called.
    name: String,
    lanes: [Option<Held>; LANES],
    /// Turns that were answered.
    turns: u64,
    /// Turns in a row that were not.
    failures: u32,
    /// At which turn everything that was read and is not done is read again: a turn that was given up may have been taken late,
    /// after the next one.
    reads_again_at: Option<u64>,
    serving: JoinSet<()>,
}

/// A lane, and how far it has been read.
struct Held {
    lane: Arc<Lane>,
    /// As [`Ledger::turn`](super::scripts::Ledger::turn) wants it.
    cursor: String,
    /// The last entry that was seen.
    last: String,
}

impl Held {
    /// Nothing was heard of a turn, which may have read all the same: what it read is among what was read before, after the last
    /// that was seen.
    fn look_back(&mut self) {
        if self.cursor == ">" {
            self.cursor.clone_from(&self.last);
        }
    }
}

impl Desk {
    fn new(courier: Courier) -> Self {
        let name = if courier.params.name.is_empty() { "worker" } else { courier.params.name.as_str() };
        let name = format!("{name}-{}-{:08x}", std::process::id(), fastrand::u32(..));
        let courier = Arc::new(courier);
        let lanes = std::array::from_fn(|_| None);
        Self { courier, name, lanes, turns: 0, failures: 0, reads_again_at: None, serving: JoinSet::new() }
    }

    fn queue(&self) -> &Queue {
        &self.courier.queue
    }

    /// The token of lanes that are taken in this turn. A turn that is not answered may have taken some: the next asks with the
    /// same.
    fn fresh(&self) -> String {
        format!("{}:{}", self.name, self.turns)
    }

    /// One turn; how long to pause before the next.
    async fn turn(&mut self, works: bool) -> Duration {
        let fresh = self.fresh();
        let lanes = self.lanes.iter().map(|held| match held {
            Some(Held { lane, .. }) if !lane.is_held() => (lane.token.as_str(), "-"),
            Some(Held { lane, cursor, .. }) => (lane.token.as_str(), cursor.as_str()),
            None => (fresh.as_str(), FROM_THE_START),
        });
        let ledger = &self.courier.queue.ledger;
        let WorkerParams { lease, poll, .. } = self.courier.params;
        let lease = lease.max(poll.saturating_mul(3));
        let turn = match ledger.turn(&self.name, lease, works, &fresh, lanes, WORKER_TIMEOUT).await {
            Ok(turn) => turn,
            Err(error) => return self.unanswered(&error),
        };
        if self.failures > 0 {
            info!(queue = self.queue().name, "redis answers again");
            self.reads_again_at = Some(self.turns + READS_AGAIN_AFTER);
        }
        self.failures = 0;
        self.turns += 1;
        let reads_again = self.reads_again_at.take_if(|at| *at <= self.turns).is_some();
        self.courier.reachable.send_replace(true);
        let Turn { now_ms, length, dead, part, more, lanes } = turn;
        for (number, lane) in lanes.into_iter().enumerate().take(LANES) {
            self.apply(number, lane, &fresh);
            if let Some(held) = self.lanes[number].as_mut().filter(|_| reads_again) {
                FROM_THE_START.clone_into(&mut held.cursor);
            }
        }
        self.tell(now_ms, length, dead);
        self.give_way(part);
        self.release_left().await;
        while self.serving.try_join_next().is_some() {}
        if more { Duration::ZERO } else { self.courier.params.poll }
    }

    fn unanswered(&mut self, error: &Unreachable) -> Duration {
        if self.failures == 0 {
            warn!(queue = self.queue().name, %error, "redis does not answer");
        }
        if matches!(error, Unreachable::Late(_)) {
            self.queue().ledger.reconnect();
        }
        self.courier.reachable.send_replace(false);
        self.lanes.iter_mut().flatten().for_each(Held::look_back);
        self.failures = self.failures.saturating_add(1);
        let [first, longest] = AWAY_PAUSES;
        jittered(first.saturating_mul(1 << self.failures.min(10)).min(longest))
    }

    #[allow(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
    fn tell(&self, now_ms: u64, length: u64, dead: u64) {
        let (telemetry, name) = (&self.queue().telemetry, self.queue().name.as_str());
        let oldest = self.lanes.iter().flatten().filter_map(|held| held.lane.oldest_ms()).min();
        let oldest_ms = oldest.map_or(0, |oldest| now_ms.saturating_sub(oldest));
        telemetry.set(Metric::QueueLength, &[name], length as f64);
        telemetry.set(Metric::QueueDeadLetters, &[name], dead as f64);
        telemetry.set(Metric::QueueOldest, &[name], oldest_ms as f64 / 1e3);
    }

    /// Does what a turn says of a lane.
    fn apply(&mut self, number: usize, (state, cursor, entries): LaneTurn, fresh: &str) {
        let known = &mut self.lanes[number];
        // Not held, or not held all the time: somebody else may have had it meanwhile.
        if state != 1
            && let Some(lost) = known.take()
        {
            lost.lane.stop();
        }
        if state == 0 {
            return;
        }
        let held = known.get_or_insert_with(|| Held {
            lane: Lane::new(number, fresh.to_owned()),
            cursor: String::new(),
            last: FROM_THE_START.to_owned(),
        });
        if held.lane.is_held() {
            held.cursor = cursor;
        }
        if let Some((last, ..)) = entries.last() {
            held.last.clone_from(last);
        }
        for (tenant, serving) in held.lane.take_in(entries) {
            self.serving.spawn(serve(self.courier.clone(), held.lane.clone(), tenant, serving));
        }
    }

    /// Stops lanes that are more than one's part, idle ones first.
    fn give_way(&mut self, part: usize) {
        let mut going_on: Vec<&Arc<Lane>> = self.lanes.iter().flatten().map(|held| &held.lane).collect();
        going_on.retain(|lane| lane.is_held());
        going_on.sort_by_key(|lane| lane.serving());
        let more = going_on.len().saturating_sub(part);
        going_on.iter().take(more).for_each(|lane| lane.stop());
    }

    /// Lets go of lanes that were stopped and in which nobody is at work any more.
    async fn release_left(&mut self) {
        let left = |held: &Held| !held.lane.is_held() && held.lane.serving() == 0;
        let numbers: Vec<usize> = (0..LANES).filter(|n| self.lanes[*n].as_ref().is_some_and(left)).collect();
        self.release(&numbers, true).await;
    }

    async fn release(&mut self, numbers: &[usize], stays: bool) {
        let lanes = numbers.iter().filter_map(|n| Some((*n, self.lanes[*n].take()?.lane.token.clone())));
        let lanes: Vec<(usize, String)> = lanes.collect();
        if !lanes.is_empty() || !stays {
            // What is not released runs out.
            let _ = self.queue().ledger.release(&self.name, stays, &lanes, WORKER_TIMEOUT).await;
        }
    }

    /// Begins with nothing more, and waits for what is in flight.
    async fn drain(&mut self) {
        self.lanes.iter().flatten().for_each(|held| held.lane.stop());
        let until = Instant::now() + self.courier.params.drain_max;
        while !self.serving.is_empty() && Instant::now() < until {
            let pause = self.turn(false).await.min(until.saturating_duration_since(Instant::now()));
            let all_ended = async { while self.serving.join_next().await.is_some() {} };
            let _ = timeout(pause, all_ended).await;
        }
        self.serving.shutdown().await;
        let held: Vec<usize> = (0..LANES).filter(|n| self.lanes[*n].is_some()).collect();
        self.release(&held, false).await;
    }
}

/// Before all entries.
const FROM_THE_START: &str = "0-0";

/// A span, a fifth longer or shorter: so that workers do not come at one instant.
pub(super) fn jittered(span: Duration) -> Duration {
    span.mul_f64(0.8 + 0.4 * fastrand::f64())
}
