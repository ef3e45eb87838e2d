//! What becomes of one request: its turn at the pool, its try, its answer; the queue's end of it.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use reqwest::Response;
use tokio::sync::{Semaphore, SemaphorePermit, watch};
use tokio::time::{sleep, timeout};
use tracing::{debug, info};

use super::lane::{Item, Lane, Serving, Stopped};
use super::letter::Letter;
use super::scripts::{Begun, Moved};
use super::worker::{Credentials, Delivered, Done, WORKER_TIMEOUT, WorkerParams, jittered};
use super::{Queue, added_at};
use crate::client::{AnswerStore, Ask, Permit, Pool, Refusal, keep_answer};
use crate::quota::{Cost, TenantId};
use crate::telemetry::Metric;

/// After a refusal of the limiter one asks again after this at the earliest, and at the latest.
const ASK_AGAIN: [Duration; 2] = [Duration::from_millis(20), Duration::from_secs(2)];
/// How long one waits when Redis has answered others, and not this question.
const AWAY_PAUSE: Duration = Duration::from_millis(100);
/// Longest reason that is written down, in characters.
const REASON_CHARS_MAX: usize = 200;

/// All that is needed to deliver.
pub(super) struct Courier {
    pub queue: Arc<Queue>,
    pub params: WorkerParams,
    pub pool: Pool,
    pub http: reqwest::Client,
    pub done: Box<dyn Done>,
    pub credentials: Credentials,
    pub answers: Option<Arc<dyn AnswerStore>>,
    pub slots: Semaphore,
    /// Whether Redis answered the last turn.
    pub reachable: watch::Sender<bool>,
}

/// Why a try did not end with an answer to hand on.
struct Fault {
    /// As metrics have it.
    kind: &'static str,
    reason: String,
    /// Whether another try may end better.
    again: bool,
}

impl Fault {
    fn new(kind: &'static str, reason: impl Into<String>, again: bool) -> Self {
        Self { kind, reason: reason.into(), again }
    }
}

/// Sends a tenant's requests, one after the other, until there is none or the lane is stopped.
pub(super) async fn serve(courier: Arc<Courier>, lane: Arc<Lane>, tenant: Vec<u8>, serving: Serving) {
    while let Some(item) = lane.next(&tenant) {
        if let Err(Stopped) = courier.deliver(&lane, &tenant, &item).await {
            break;
        }
        lane.done(&tenant);
    }
    drop(serving);
}

impl Courier {
    /// Brings an entry to its end: answered, a dead letter, or gone.
    async fn deliver(&self, lane: &Lane, tenant: &[u8], item: &Item) -> Result<(), Stopped> {
        let tenant = std::str::from_utf8(tenant).ok().and_then(|tenant| tenant.parse::<TenantId>().ok());
        let (Some(tenant), Some(cost)) = (tenant, item.cost) else {
            return self.bury(lane, item, Fault::new("unreadable", "cannot be read", false)).await;
        };
        loop {
            let (slot, admitted) = self.admitted(lane, &tenant, cost).await?;
            let (tries, fields) = match self.begin(lane, item).await? {
                Some(Begun::Try(tries, fields)) => (tries, fields),
                Some(Begun::Gone) => return Ok(()),
                Some(Begun::Lost) => return Err(Stopped),
                // The permit is lost; another is asked for when Redis answers again.
                None => continue,
            };
            let outcome = match admitted {
                _ if tries > self.params.tries_max.max(1) => {
                    Err(Fault::new("died", "no worker lived to tell what came of it", false))
                }
                Ok(permit) => match Letter::read(fields) {
                    Some(letter) => self.send(permit, letter, tries, item).await,
                    None => Err(Fault::new("unreadable", "cannot be read", false)),
                },
                Err(never) => Err(Fault::new("never", never, true)),
            };
            drop(slot);
            let fault = match outcome {
                Ok(()) => return self.finish(lane, item).await,
                Err(fault) if !fault.again || tries >= self.params.tries_max => {
                    return self.bury(lane, item, fault).await;
                }
                Err(fault) => fault,
            };
            debug!(queue = self.queue.name, tries, reason = fault.reason, "tried in vain");
            self.retried(fault.kind);
            lane.unless_stopped(sleep(self.pause_after(tries))).await?;
        }
    }

    fn retried(&self, kind: &'static str) {
        self.queue.telemetry.add(Metric::QueueRetried, &[self.queue.name.as_str(), kind], 1.0);
    }

    fn pause_after(&self, tries: u32) -> Duration {
        let doubled = 2_u32.saturating_pow(tries.saturating_sub(1));
        jittered(self.params.retry_first.saturating_mul(doubled).min(self.params.retry_max))
    }

    /// Waits for leave to send, however long it takes, and for a slot; or is told that there will never be one.
    async fn admitted(
        &self,
        lane: &Lane,
        tenant: &TenantId,
        cost: Cost,
    ) -> Result<(SemaphorePermit<'_>, Result<Permit, String>), Stopped> {
        loop {
            self.redis_is_back(lane).await?;
            let slot = lane.unless_stopped(self.slots.acquire()).await?.map_err(|_| Stopped)?;
            let ask = Ask { priority: self.params.priority, max_wait: self.params.admit_wait, cost };
            match lane.unless_stopped(self.pool.request(tenant, &ask).admitted()).await? {
                Ok(permit) => return Ok((slot, Ok(permit))),
                Err(Refusal::Never(never)) => return Ok((slot, Err(format!("it {never}")))),
                Err(Refusal::WaitUntil { after, .. }) => {
                    drop(slot);
                    let [earliest, latest] = ASK_AGAIN;
                    lane.unless_stopped(sleep(after.clamp(earliest, latest))).await?;
                }
            }
        }
    }

    /// Waits while Redis is known to be away.
    async fn redis_is_back(&self, lane: &Lane) -> Result<(), Stopped> {
        let mut reachable = self.reachable.subscribe();
        lane.unless_stopped(reachable.wait_for(|is| *is)).await?.map(drop).map_err(|_| Stopped)
    }

    /// Counts the try; none when Redis did not answer.
    async fn begin(&self, lane: &Lane, item: &Item) -> Result<Option<Begun>, Stopped> {
        match self.queue.ledger.begin(lane.number, &lane.token, &item.id, WORKER_TIMEOUT).await {
            Ok(begun) => Ok(Some(begun)),
            Err(error) => {
                debug!(queue = self.queue.name, %error, "not begun");
                lane.unless_stopped(sleep(AWAY_PAUSE)).await?;
                Ok(None)
            }
        }
    }

    /// Sends it, and hands its answer on.
    async fn send(&self, permit: Permit, letter: Letter, tries: u32, item: &Item) -> Result<(), Fault> {
        let Some(mut request) = letter.request() else {
            return Err(Fault::new("unreadable", "is no request", false));
        };
        (self.credentials)(&mut request, &letter.tenant);
        let call = async {
            let mut permit = permit;
            let answer = match self.http.execute(request).await {
                Ok(answer) => permit.attach(answer).await,
                Err(error) => {
                    permit.failed();
                    // Credentials may stand in the URL again.
                    return Err(Fault::new("unanswered", error.without_url().to_string(), true));
                }
            };
            judged(answer.status())?;
            self.hand_on(answer, letter, tries, item).await
        };
        let late = || Fault::new("unanswered", format!("no whole answer within {:?}", self.params.answer_max), true);
        timeout(self.params.answer_max, call).await.unwrap_or_else(|_| Err(late()))
    }

    async fn hand_on(&self, answer: Response, letter: Letter, tries: u32, item: &Item) -> Result<(), Fault> {
        let cache_key = letter.cache_key();
        let answer = match (&self.answers, &cache_key) {
            (Some(answers), Some(key)) => keep_answer(answers, &letter.tenant, key, answer),
            _ => answer,
        };
        let Letter { id, tenant, cost, head, body } = letter;
        let (method, url, added_at) = (head.method, head.url, added_at(&item.id));
        let delivered = Delivered { id, tenant, cost, cache_key, method, url, body, tries, added_at };
        let done = self.done.done(delivered, answer).await;
        done.map_err(|error| Fault::new("done", error.to_string(), true))
    }

    /// Takes an answered entry out. It is not begun with again, so this is tried until it is done or nobody waits any more.
    async fn finish(&self, lane: &Lane, item: &Item) -> Result<(), Stopped> {
        loop {
            match self.queue.ledger.finish(lane.number, &item.id, WORKER_TIMEOUT).await {
                Ok(was_there) => {
                    if was_there {
                        self.queue.telemetry.add(Metric::QueueDelivered, &[self.queue.name.as_str()], 1.0);
                    }
                    return Ok(());
                }
                Err(error) => {
                    debug!(queue = self.queue.name, %error, "answered, but still in the queue");
                    self.redis_again().await;
                }
            }
        }
    }

    /// Makes a dead letter of an entry; waits for room for it, if there is none.
    async fn bury(&self, lane: &Lane, item: &Item, fault: Fault) -> Result<(), Stopped> {
        let (name, most) = (self.queue.name.as_str(), self.queue.params.dead_max);
        let reason: String = fault.reason.chars().take(REASON_CHARS_MAX).collect();
        loop {
            match self.queue.ledger.bury(lane.number, &lane.token, &item.id, most, &reason, WORKER_TIMEOUT).await {
                Ok(Moved::Done) => {
                    info!(queue = name, reason, "a request was given up");
                    self.queue.telemetry.add(Metric::QueueDead, &[name, fault.kind], 1.0);
                    return Ok(());
                }
                Ok(Moved::Gone) => return Ok(()),
                Ok(Moved::Full) => {
                    self.retried("dead_letters_full");
                    lane.unless_stopped(sleep(jittered(self.params.retry_max))).await?;
                }
                Err(_) => {
                    lane.unless_stopped(self.redis_again()).await?;
                }
            }
        }
    }

    /// Pauses, and waits while Redis is known to be away.
    async fn redis_again(&self) {
        sleep(AWAY_PAUSE).await;
        let mut reachable = self.reachable.subscribe();
        let _ = reachable.wait_for(|is| *is).await;
    }
}

/// Whether an answer is one to hand on.
fn judged(status: StatusCode) -> Result<(), Fault> {
    if status.is_success() {
        return Ok(());
    }
    let (kind, again) = match status.as_u16() {
        429 => ("throttled", true),
        401 | 403 | 407 => ("denied", true),
        408 | 409 | 425 => ("status", true),
        500.. => ("server_error", true),
        _ => ("status", false),
    };
    Err(Fault::new(kind, format!("status {}", status.as_u16()), again))
}
