//! Admission, asynchronously: ask the tenant's gate, or wait in line for it.
//!
//! Only the head of a line asks; it sleeps until the instant the limiter named, or until a retune or a settled request
//! wakes it. A caller that leaves (its future is dropped) leaves the line too.

use std::sync::Arc;
use std::time::Duration;

use super::Permit;
use super::gate::{Answer, Asker, Late};
use super::gates::{Account, Gates, Waker};
use crate::clock::MonoTime;
use crate::limiter::{Bound, Denial, Never, Priority, Wait};
use crate::quota::{Cost, Meter, TenantId};
use crate::telemetry::Metric;

/// What a refusal says when nothing flows and nobody knows for how long.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// Why a request was not admitted.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// Not in time. Worth another try after this.
    #[error("not before {after:.1?} ({why})")]
    WaitUntil {
        /// From now.
        after: Duration,
        /// What it waits for.
        why: Why,
    },
    /// Not at this size, however long the wait.
    #[error("never: {0}")]
    Never(Never),
}

impl Refusal {
    /// What stood in the way, in a word, as metrics have it: one of [`Refusal::KINDS`].
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        Self::KINDS[self.number()]
    }

    /// All that [`Refusal::kind`] says.
    pub const KINDS: [&'static str; 6] = ["rate", "held", "concurrency", "blocked", "line_full", "never"];

    const fn number(&self) -> usize {
        match self {
            Self::WaitUntil { why: Why::Rate(_), .. } => 0,
            Self::WaitUntil { why: Why::Held(_), .. } => 1,
            Self::WaitUntil { why: Why::Concurrency, .. } => 2,
            Self::WaitUntil { why: Why::Blocked, .. } => 3,
            Self::WaitUntil { why: Why::LineFull, .. } => 4,
            Self::Never(_) => 5,
        }
    }

    /// The refusal in a middleware's error, if it is one of ours.
    #[must_use]
    pub fn of(error: &reqwest_middleware::Error) -> Option<Self> {
        match error {
            reqwest_middleware::Error::Middleware(inner) => inner.downcast_ref().copied(),
            reqwest_middleware::Error::Reqwest(_) => None,
        }
    }
}

/// What a refused request would have waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// Room under the rate of this meter.
    Rate(Meter),
    /// The end of a hold: the provider has just refused on this meter.
    Held(Meter),
    /// A place in flight.
    Concurrency,
    /// An operator to lift the block.
    Blocked,
    /// A shorter line.
    LineFull,
}

impl std::fmt::Display for Why {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Rate(meter) => write!(f, "no room in {meter}"),
            Self::Held(meter) => write!(f, "held, the provider refused for {meter}"),
            Self::Concurrency => f.write_str("no place for one more in flight"),
            Self::Blocked => f.write_str("blocked by an operator"),
            Self::LineFull => f.write_str("too many are waiting"),
        }
    }
}

impl From<Bound> for Why {
    fn from(bound: Bound) -> Self {
        match bound {
            Bound::Meter(meter) => Self::Rate(meter),
            Bound::Hold(meter) => Self::Held(meter),
            Bound::Concurrency => Self::Concurrency,
            Bound::Block => Self::Blocked,
        }
    }
}

/// What a request asks of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ask {
    /// What it needs.
    pub cost: Cost,
    /// How urgent it is among its tenant's requests that wait.
    pub priority: Priority,
    /// How long it waits at most; zero asks without waiting.
    pub max_wait: Duration,
}

/// Where a waiting request stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// How many of its tenant's requests go before it.
    pub ahead: usize,
    /// When it could be its turn, from now, as far as one can tell; `None` when nobody can, because nothing flows.
    pub expected: Option<Duration>,
    /// What that hangs on.
    pub why: Why,
}

/// A request on its way to a permit, in line perhaps. Dropped, it leaves the line.
#[derive(Debug)]
pub struct Admission {
    gates: Arc<Gates>,
    tenant: TenantId,
    asker: Asker<Waker>,
    /// When it first asked.
    began: MonoTime,
    /// When it asks.
    now: MonoTime,
    deadline: MonoTime,
    /// The gates it was last told to wait at.
    at: Option<At>,
}

/// The gates that a request asks.
#[derive(Debug)]
struct At {
    account: Arc<Account>,
    declared: u64,
    parent: Option<(Arc<Account>, u64)>,
}

impl At {
    fn find(gates: &Gates, tenant: &TenantId) -> Self {
        let (account, declared) = gates.account_of(tenant);
        Self { account, declared, parent: gates.parent.as_ref().map(|parent| parent.account_of(tenant)) }
    }

    fn is_current(&self, gates: &Gates) -> bool {
        let parents = gates.parent.as_ref().zip(self.parent.as_ref());
        gates.is_current(&self.account, self.declared)
            && parents.is_none_or(|(gates, (account, declared))| gates.is_current(account, *declared))
    }

    /// Whether these are the same gates: then a place in line is kept, whoever else got one of his own.
    fn is_same(&self, other: &Self) -> bool {
        let parents = (self.parent_account(), other.parent_account());
        Arc::ptr_eq(&self.account, &other.account)
            && match parents {
                (Some(mine), Some(theirs)) => Arc::ptr_eq(mine, theirs),
                (mine, theirs) => mine.is_none() && theirs.is_none(),
            }
    }

    fn parent_account(&self) -> Option<&Arc<Account>> {
        self.parent.as_ref().map(|(account, _)| account)
    }

    fn ask(&self, asker: &mut Asker<Waker>, now: MonoTime) -> Answer {
        let parent = self.parent_account().map(|parent| (&parent.gate, &parent.pool.wide));
        self.account.gate.ask(asker, &self.account.pool.wide, parent, now)
    }

    fn leave(&self, asker: &mut Asker<Waker>) {
        self.account.gate.leave(asker, self.parent_account().map(|parent| &parent.gate));
    }
}

enum Step {
    Done(Result<Permit, Refusal>),
    /// Ask again when woken, or after this long.
    Wait(Waker, Duration),
}

impl Admission {
    pub(super) fn new(gates: Arc<Gates>, tenant: TenantId, ask: &Ask) -> Self {
        let now = gates.pool.clock.now();
        let deadline = now + ask.max_wait;
        let asker = Asker::new(ask.cost, ask.priority, deadline);
        Self { gates, tenant, asker, began: now, now, deadline, at: None }
    }

    /// Waits for the permit. Cancel-safe: the future may be dropped and asked for again, and the place in line is kept.
    ///
    /// # Errors
    /// [`Refusal`]: *wait until*, when it cannot be in time; *never*, when no wait helps.
    pub async fn admitted(&mut self) -> Result<Permit, Refusal> {
        loop {
            match self.step() {
                Step::Done(result) => return result,
                Step::Wait(wake, at_most) => tokio::select! {
                    () = wake.notified() => {}
                    () = tokio::time::sleep(at_most) => {}
                },
            }
            self.now = self.gates.pool.clock.now();
        }
    }

    /// Asks once, now, without a runtime: the answer, or after how long to ask again if nothing changes before. For who keeps
    /// time by himself, as a simulation does: when a permit ends or limits change, whoever stands first is to ask again.
    ///
    /// # Errors
    /// After how long to ask again; it stands in line.
    pub fn ask(&mut self) -> Result<Result<Permit, Refusal>, Duration> {
        self.now = self.gates.pool.clock.now();
        match self.step() {
            Step::Done(answer) => Ok(answer),
            Step::Wait(_, at_most) => Err(at_most),
        }
    }

    /// Asks once, now; a request that would have to wait is refused when it may not wait, and else stands in line.
    fn step(&mut self) -> Step {
        loop {
            let mut at = self.at.take().unwrap_or_else(|| At::find(&self.gates, &self.tenant));
            let answer = at.ask(&mut self.asker, self.now);
            if let Answer::Admitted(mine, theirs) = answer {
                let pool = &self.gates.pool;
                if self.now > self.began {
                    pool.telemetry.observe(
                        Metric::WaitSeconds,
                        &[pool.id.as_str()],
                        self.now.seconds_since(self.began),
                    );
                }
                let parent = at.parent.map(|(account, _)| account).zip(theirs);
                return Step::Done(Ok(Permit::new(at.account, mine, parent, self.now)));
            }
            // Asked first, and looked then: who joined the shared line after everyone in it was woken asks again.
            if matches!(answer, Answer::Moved) {
                at.leave(&mut self.asker);
                continue;
            }
            if !at.is_current(&self.gates) {
                let found = At::find(&self.gates, &self.tenant);
                if !found.is_same(&at) {
                    at.leave(&mut self.asker);
                    continue;
                }
                at = found;
            }
            return match (answer, self.asker.wake()) {
                (Answer::Never(never), _) => Step::Done(Err(self.gates.refused(Refusal::Never(never)))),
                (Answer::Late(late), _) => Step::Done(Err(self.gates.refused(refusal(late, self.now)))),
                (Answer::Wait(until), Some(wake)) => {
                    let step = Step::Wait(wake.clone(), until.min(self.deadline).since(self.now));
                    self.at = Some(at);
                    step
                }
                _ => continue,
            };
        }
    }

    /// Where it stands; `None` when it does not wait.
    #[must_use]
    pub fn place(&self) -> Option<Place> {
        let now = self.gates.pool.clock.now();
        let at = self.at.as_ref()?;
        let parent = at.parent_account().map(|parent| &parent.gate);
        let standing = at.account.gate.standing(&self.asker, parent, now)?;
        let Wait { at, by } = standing.expected;
        Some(Place { ahead: standing.ahead, expected: at.map(|at| at.since(now)), why: by.into() })
    }
}

fn refusal(Late { expected, line_is_full }: Late, now: MonoTime) -> Refusal {
    let after = expected.at.filter(|at| *at > now).map_or(ASK_AGAIN, |at| at.since(now));
    Refusal::WaitUntil { after, why: if line_is_full { Why::LineFull } else { expected.by.into() } }
}

impl Drop for Admission {
    fn drop(&mut self) {
        if let Some(at) = &self.at {
            at.leave(&mut self.asker);
        }
    }
}

impl Gates {
    /// Waits for admission.
    pub(super) async fn admit(self: &Arc<Self>, tenant: &TenantId, ask: &Ask) -> Result<Permit, Refusal> {
        if let Some(permit) = self.admit_at_once(tenant, &ask.cost, ask.priority, self.pool.clock.now()) {
            return Ok(permit);
        }
        Admission::new(self.clone(), tenant.clone(), ask).admitted().await
    }

    /// Asks without waiting.
    pub(super) fn try_admit(&self, tenant: &TenantId, cost: Cost) -> Result<Permit, Refusal> {
        let now = self.pool.clock.now();
        if self.parent.is_none() {
            let (account, _) = self.account_of(tenant);
            match account.gate.decide(&cost, Priority::default(), &self.pool.wide, now) {
                Some(Ok(reservation)) => return Ok(Permit::new(account, reservation, None, now)),
                Some(Err(Denial::Never(never))) => return Err(self.refused(Refusal::Never(never))),
                Some(Err(Denial::WaitUntil(expected))) => {
                    return Err(self.refused(refusal(Late { expected, line_is_full: false }, now)));
                }
                None => {}
            }
        }
        self.ask_once(tenant, cost, now)
    }

    /// The way of most requests that may wait: there is room, and nobody waits.
    #[inline]
    fn admit_at_once(&self, tenant: &TenantId, cost: &Cost, priority: Priority, now: MonoTime) -> Option<Permit> {
        if self.parent.is_some() {
            return None;
        }
        let (account, _) = self.account_of(tenant);
        let reservation = account.gate.admit_at_once(cost, priority, &self.pool.wide, now)?;
        Some(Permit::new(account, reservation, None, now))
    }

    /// Counts what stood in the way.
    fn refused(&self, refusal: Refusal) -> Refusal {
        self.pool.refused_for.count(refusal.number());
        refusal
    }

    fn ask_once(&self, tenant: &TenantId, cost: Cost, now: MonoTime) -> Result<Permit, Refusal> {
        let mut asker = Asker::new(cost, Priority::default(), now);
        loop {
            let at = At::find(self, tenant);
            match at.ask(&mut asker, now) {
                Answer::Admitted(mine, theirs) => {
                    let parent = at.parent.map(|(account, _)| account).zip(theirs);
                    return Ok(Permit::new(at.account, mine, parent, now));
                }
                Answer::Never(never) => return Err(self.refused(Refusal::Never(never))),
                Answer::Late(late) => return Err(self.refused(refusal(late, now))),
                Answer::Moved => {}
                // His deadline is now: nobody tells him to wait.
                Answer::Wait(_) => at.leave(&mut asker),
            }
        }
    }
}
