//! Counting together: the members of a pool count its requests in one place, where shares of a threshold are not exact enough.
//!
//! The store that counts is asked at each request, for 50 ms at the most. When it failed twice in a row it is left alone: requests
//! go by this member's own share, which has been debited all along, and what goes is owed: it is counted when the store is back.
//! Then everybody tells what it owes for a moment, and only after that the store decides again, so that its return is no burst.

mod breaker;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::{info, warn};

pub use breaker::{Breaker, Stance};

use super::gate::Counted;
use super::gates::{Account, Gates};
use super::pool::ClockDebug;
use super::process::Core;
use crate::limiter::{Count, Question, Settlement, Taken};
use crate::telemetry::{Metric, Telemetry};

/// How long a request waits for the answer.
pub const TALLY_TIMEOUT: Duration = Duration::from_millis(50);
/// How long an answer that came too late to decide anything is waited for, so that what it took can be given back.
const LATE_MAX: Duration = Duration::from_secs(2);
/// How long a store that was away may take to answer again: a new connection and its handshake.
const HAIL_TIMEOUT: Duration = Duration::from_millis(500);
/// What is to be given back while the store is away: more is forgotten, on the safe side.
const SETTLEMENTS_MAX: usize = 10_000;
/// Counts of one question that tells what is owed.
const TOLD_AT_A_TIME: usize = 100;
/// Settlements under way at a time.
const SETTLED_AT_A_TIME: usize = 64;

/// Why nobody counted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct Uncounted {
    /// In a word, as metrics have it.
    pub kind: &'static str,
    /// In a line.
    pub what: String,
}

/// A store that counts for all members: `redis::RedisTally` of the feature `redis`, or another.
#[async_trait]
pub trait Tally: fmt::Debug + Send + Sync {
    /// Takes all that a question asks for, or none of it.
    async fn take(&self, question: &Question) -> Result<Taken, Uncounted>;
    /// Gives back what a reservation did not use, or takes what it used beyond.
    async fn settle(&self, settlement: &Settlement) -> Result<(), Uncounted>;
    /// Whether anybody is there.
    async fn hail(&self) -> Result<(), Uncounted>;
    /// Begins anew with whatever it takes to get there: it has not answered for a while.
    fn start_over(&self);
}

/// A process's way to the store that counts.
#[derive(Debug)]
pub(super) struct Together {
    tally: Option<Arc<dyn Tally>>,
    /// Whether it decides now.
    decides: AtomicBool,
    breaker: Mutex<Breaker>,
    settlements: Mutex<Vec<Settlement>>,
    /// There is something to settle.
    pub work: Notify,
    clock: Arc<dyn ClockDebug>,
    telemetry: Arc<Telemetry>,
}

impl Together {
    pub(super) fn new(tally: Option<Arc<dyn Tally>>, clock: Arc<dyn ClockDebug>, telemetry: Arc<Telemetry>) -> Self {
        let decides = AtomicBool::new(tally.is_some());
        let (breaker, settlements, work) = (Mutex::default(), Mutex::default(), Notify::new());
        Self { tally, decides, breaker, settlements, work, clock, telemetry }
    }

    /// Whether there is a store to count in at all.
    pub(super) fn is_there(&self) -> bool {
        self.tally.is_some()
    }

    /// Whether it is to be asked now.
    pub(super) fn decides(&self) -> bool {
        self.decides.load(Ordering::Relaxed)
    }

    /// How the store stands.
    pub(super) fn stance(&self) -> Option<Stance> {
        self.tally.as_ref().map(|_| self.breaker.lock().stance())
    }

    /// Asks; `None` when it did not answer in time. What it took for a caller that has gone meanwhile is given back.
    pub(super) async fn take(self: &Arc<Self>, question: Question) -> Option<Taken> {
        let tally = self.tally.clone()?;
        let (tell, told) = oneshot::channel();
        let (together, question) = (self.clone(), Arc::new(question));
        let mut heard = Heard { told, together: self.clone(), question: question.clone() };
        tokio::spawn(async move {
            let began = together.clock.now();
            let mut asking = tally.take(&question);
            let Ok(answer) = timeout(TALLY_TIMEOUT, &mut asking).await else {
                together.failed("late", "no answer within 50 ms");
                drop(tell);
                if let Ok(Ok(taken)) = timeout(LATE_MAX, asking).await {
                    together.return_unused(&question, taken);
                }
                return;
            };
            match answer {
                Ok(taken) => {
                    let took = together.clock.now().seconds_since(began);
                    together.telemetry.observe(Metric::TallySeconds, &[], took);
                    together.breaker.lock().succeeded();
                    if let Err(taken) = tell.send(taken) {
                        together.return_unused(&question, taken);
                    }
                }
                Err(error) => together.failed(error.kind, &error.what),
            }
        });
        (&mut heard.told).await.ok()
    }

    /// Nobody goes by this answer: what it took goes back. Not what was owed, of which nobody knows how much was taken.
    fn return_unused(&self, question: &Question, taken: Taken) {
        let Taken::All { marks, extra, .. } = taken else { return };
        let counts = question.counts.iter().zip(marks).map(|(count, marks)| {
            let units = count.units + if extra { count.extra } else { 0 };
            (count.clone(), marks, i64::try_from(units).unwrap_or(i64::MAX))
        });
        let counts: Vec<_> = counts.filter(|(_, _, units)| *units > 0).collect();
        if !counts.is_empty() {
            self.settle(Settlement { account: question.account.clone(), counts });
        }
    }

    /// Settles, in a moment.
    pub(super) fn settle(&self, settlement: Settlement) {
        let mut settlements = self.settlements.lock();
        let settlement = if settlements.len() < SETTLEMENTS_MAX { Some(settlement) } else { beyond(settlement) };
        if let Some(settlement) = settlement.filter(|_| settlements.len() < 2 * SETTLEMENTS_MAX) {
            settlements.push(settlement);
            drop(settlements);
            self.work.notify_one();
        }
    }

    /// What is to be settled, for who keeps time by himself.
    pub(super) fn take_settlements(&self) -> Vec<Settlement> {
        std::mem::take(&mut *self.settlements.lock())
    }

    fn failed(&self, kind: &'static str, what: &str) {
        self.telemetry.add(Metric::TallyFailures, &[kind], 1.0);
        let opened = self.breaker.lock().failed(self.clock.now());
        if opened {
            warn!("the store that members count in fails: {what}; requests go by this member's share until it is back");
        }
        self.judge();
    }

    fn judge(&self) {
        let decides = self.breaker.lock().stance() == Stance::Decides;
        if self.decides.swap(decides, Ordering::Relaxed) != decides && decides {
            info!("the store that members count in decides again");
        }
        self.telemetry.set(Metric::TallyAway, &[], if decides { 0.0 } else { 1.0 });
    }

    /// Moves on with time: looks whether a store that was away is back. Says whether it can be told of what is owed.
    pub(super) async fn look(&self) -> bool {
        let Some(tally) = &self.tally else { return false };
        let now = self.clock.now();
        if self.breaker.lock().is_to_be_hailed(now) {
            let hailed = timeout(HAIL_TIMEOUT, tally.hail()).await;
            if matches!(hailed, Ok(Ok(()))) {
                self.breaker.lock().hailed(self.clock.now());
            } else {
                self.breaker.lock().not_hailed(self.clock.now());
                tally.start_over();
            }
        }
        self.breaker.lock().move_on(self.clock.now());
        self.judge();
        self.breaker.lock().stance() != Stance::Away
    }

    /// Sends what is to be settled; what fails is tried again.
    pub(super) async fn send_settlements(&self) {
        let Some(tally) = &self.tally else { return };
        let mut under_way = JoinSet::new();
        let mut waiting = self.take_settlements().into_iter();
        loop {
            while under_way.len() < SETTLED_AT_A_TIME
                && self.stance() != Some(Stance::Away)
                && let Some(settlement) = waiting.next()
            {
                let tally = tally.clone();
                under_way.spawn(async move {
                    match timeout(LATE_MAX, tally.settle(&settlement)).await {
                        Ok(Ok(())) => None,
                        // An answer that did not come says nothing: once more would give back twice.
                        Err(_) => Some((Uncounted { kind: "late", what: "no answer".to_owned() }, beyond(settlement))),
                        Ok(Err(error)) => Some((error, beyond(settlement))),
                    }
                });
            }
            let Some(done) = under_way.join_next().await else { break };
            if let Ok(Some((error, settlement))) = done {
                self.failed(error.kind, &error.what);
                self.settlements.lock().extend(settlement);
            }
        }
        // It went away meanwhile.
        let left: Vec<Settlement> = waiting.collect();
        self.settlements.lock().splice(..0, left);
    }
}

/// What is told once more when nobody knows whether it was heard: what was used beyond a reservation. What was given back is
/// forgotten, on the safe side.
fn beyond(mut settlement: Settlement) -> Option<Settlement> {
    settlement.counts.retain(|(.., back)| *back < 0);
    (!settlement.counts.is_empty()).then_some(settlement)
}

/// Waits for an answer. One that is dropped when the answer is there already gives back what it took.
struct Heard {
    told: oneshot::Receiver<Taken>,
    together: Arc<Together>,
    question: Arc<Question>,
}

impl Drop for Heard {
    fn drop(&mut self) {
        self.told.close();
        if let Ok(taken) = self.told.try_recv() {
            self.together.return_unused(&self.question, taken);
        }
    }
}

impl Core {
    /// What is to be settled where members count together, idle leases too; for who keeps time by himself.
    #[must_use]
    pub fn take_settlements(&self) -> Vec<Settlement> {
        let now = self.clock.now();
        for gates in self.pools().filter(|gates| gates.is_tallied()) {
            for used in gates.accounts() {
                let Some(to_tell) = used.take_untold(gates.account(), false, now) else { continue };
                used.gate.not_told(&to_tell.owed);
                if let Some(settlement) = to_tell.settlement {
                    self.together.settle(settlement);
                }
            }
        }
        self.together.take_settlements()
    }

    /// A question was answered, and whoever asked is gone; for who keeps time by himself.
    pub fn nobody_listens(&self, question: &Question, taken: Taken) {
        self.together.return_unused(question, taken);
    }

    /// Tells where members count together what was not told with a request; with `all`, gives back what is leased too.
    pub(super) async fn tell_tally(&self, all: bool) {
        for gates in self.pools().filter(|gates| gates.is_tallied()) {
            let (mut counts, mut owing) = (Vec::new(), Vec::new());
            for used in gates.accounts() {
                let Some(to_tell) = used.take_untold(gates.account(), all, self.clock.now()) else { continue };
                if let Some(settlement) = to_tell.settlement {
                    self.together.settle(settlement);
                }
                counts.extend(to_tell.counts);
                owing.push((used, to_tell.owed));
                if counts.len() >= TOLD_AT_A_TIME {
                    self.tell_owed(gates, &mut counts, &mut owing).await;
                }
                if self.together.stance() == Some(Stance::Away) {
                    return;
                }
            }
            self.tell_owed(gates, &mut counts, &mut owing).await;
        }
    }

    async fn tell_owed(&self, gates: &Gates, counts: &mut Vec<Count>, owing: &mut Vec<(Arc<Account>, Vec<Counted>)>) {
        let (counts, owing) = (std::mem::take(counts), std::mem::take(owing));
        if counts.is_empty() {
            return;
        }
        let question = Question { account: gates.account().clone(), counts };
        if self.together.take(question).await.is_none() {
            for (account, owed) in owing {
                account.gate.not_told(&owed);
            }
        }
    }
}
