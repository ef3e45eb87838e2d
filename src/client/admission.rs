//! Admission, asynchronously: ask the tenant's gate, or wait in line for it.
//!
//! Only the head of a line asks; it sleeps until the instant the limiter named, or until a retune or a settled request
//! wakes it. A caller that leaves (its future is dropped) leaves the line too.

use std::sync::Arc;
use std::time::Duration;

use super::Permit;
use super::gate::{Answer, Asker, Asking, Late, Outcome};
use super::gates::{Account, Gates, Waker};
use crate::clock::MonoTime;
use crate::limiter::{Bound, Denial, Never, Priority, Question, Reservation, Taken, Wait};
use crate::quota::{Cost, Meter, TenantId};
use crate::telemetry::Metric;

/// What a refusal says when nothing flows and nobody knows for how long.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// Who was told elsewhere to wait asks again up to this much later, so that members do not ask at one instant. No more: what is there
/// and not asked for meanwhile is lost where little is stored.
const ASK_AGAIN_SPREAD: Duration = Duration::from_millis(20);
/// Who waits for long asks again all the same after a tenth of it, and within this: what others did not use is given back.
const ASK_AGAIN_LATEST: Duration = Duration::from_secs(10);
/// The spread as a part of the wait.
const ASK_AGAIN_SPREAD_PART: f64 = 0.2;

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
    /// It is being asked where members count together.
    asking: Option<(At, Asking)>,
    /// What was asked there.
    asked: Option<Question>,
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

    /// Tells the gates what was answered where members count together.
    fn told(&self, asker: &mut Asker<Waker>, asking: Asking, answer: Option<&Taken>, now: MonoTime) -> Answer {
        let outcome = match answer {
            None => Outcome::Silent,
            Some(Taken::All { marks, extra, window_left }) => Outcome::Taken(marks, *extra, *window_left),
            Some(Taken::None { after, count }) => {
                let meters = asking.counted.iter().flatten().map(|counted| counted.claimed.meter);
                let meter = meters.into_iter().nth(*count).unwrap_or(Meter::REQUESTS_PER_MINUTE);
                let spread = |after: Duration| ASK_AGAIN_SPREAD.min(after.mul_f64(ASK_AGAIN_SPREAD_PART));
                let at = after.map(|after| now + after + spread(after).mul_f64(fastrand::f64()));
                let again = after.map_or(ASK_AGAIN_LATEST, |after| after / 10).clamp(ASK_AGAIN, ASK_AGAIN_LATEST);
                let again = now + again.mul_f64(1.0 - ASK_AGAIN_SPREAD_PART * fastrand::f64());
                let asks_at = at.map_or(again, |at| at.min(again));
                Outcome::Not(Wait { at, by: Bound::Meter(meter) }, asks_at, *count)
            }
        };
        let parent = self.parent_account().map(|parent| &parent.gate);
        self.account.gate.told(asker, asking, outcome, parent, now)
    }

    /// What is to be asked where members count together.
    fn question(&self, gates: &Gates, asking: &Asking) -> Question {
        let [mine, theirs] = &asking.counted;
        let parent = self.parent_account();
        let mut counts = self.account.counts(mine);
        if let Some(parent) = parent {
            counts.extend(parent.counts(theirs));
        }
        Question { account: gates.account().clone(), counts }
    }

    fn leave(&self, asker: &mut Asker<Waker>) {
        self.account.gate.leave(asker, self.parent_account().map(|parent| &parent.gate));
    }
}

enum Step {
    Done(Result<Permit, Refusal>),
    /// Ask again when woken, or after this long.
    Wait(Waker, Duration),
    /// Ask where members count together, and hand the answer to [`Admission::take_answer`].
    Ask(Question),
}

/// What a request that keeps time by itself is to do.
#[derive(Debug)]
pub enum Asked {
    /// It is answered.
    Answered(Result<Permit, Refusal>),
    /// It stands in line: ask again after this long, if nothing changes before.
    Wait(Duration),
    /// Ask this where members count together, and tell the answer with [`Admission::told`].
    Question(Question),
}

impl From<Step> for Asked {
    fn from(step: Step) -> Self {
        match step {
            Step::Done(answer) => Self::Answered(answer),
            Step::Wait(_, at_most) => Self::Wait(at_most),
            Step::Ask(question) => Self::Question(question),
        }
    }
}

impl Admission {
    pub(super) fn new(gates: Arc<Gates>, tenant: TenantId, ask: &Ask) -> Self {
        let now = gates.pool.clock.now();
        let deadline = now + ask.max_wait;
        let asker = Asker::new(ask.cost, ask.priority, deadline);
        Self { gates, tenant, asker, began: now, now, deadline, at: None, asking: None, asked: None }
    }

    /// Waits for the permit. Cancel-safe: the future may be dropped and asked for again, and the place in line is kept.
    ///
    /// # Errors
    /// [`Refusal`]: *wait until*, when it cannot be in time; *never*, when no wait helps.
    pub async fn admitted(&mut self) -> Result<Permit, Refusal> {
        let mut step = self.step();
        loop {
            step = match step {
                Step::Done(result) => return result,
                Step::Wait(wake, at_most) => {
                    tokio::select! {
                        () = wake.notified() => {}
                        () = tokio::time::sleep(at_most) => {}
                    }
                    self.now = self.gates.pool.clock.now();
                    self.step()
                }
                Step::Ask(question) => {
                    let answer = self.gates.pool.together.take(question).await;
                    self.now = self.gates.pool.clock.now();
                    self.take_answer(answer.as_ref())
                }
            };
        }
    }

    /// Asks once, now, without a runtime. For who keeps time by himself, as a simulation does: when a permit ends or limits change,
    /// whoever stands first is to ask again.
    pub fn ask(&mut self) -> Asked {
        self.now = self.gates.pool.clock.now();
        self.step().into()
    }

    /// Tells what the question was answered, or nothing when it was not; for who keeps time by himself.
    pub fn told(&mut self, answer: Option<&Taken>) -> Asked {
        self.now = self.gates.pool.clock.now();
        self.take_answer(answer).into()
    }

    /// Goes on with what was answered elsewhere.
    fn take_answer(&mut self, answer: Option<&Taken>) -> Step {
        let Some((at, asking)) = self.asking.take() else { return self.step() };
        let told = at.told(&mut self.asker, asking, answer, self.now);
        if let Some(taken) = answer {
            self.count_tally(if matches!(taken, Taken::All { .. }) { "admitted" } else { "refused" });
        }
        if let Answer::Moved = told {
            // Nobody answered, or things have changed meanwhile: this member's own part decides, or another gate. In line it keeps
            // its place.
            self.at = Some(at);
            self.asker.count_together(answer.is_some());
            return self.next_step();
        }
        match self.judge(at, told, answer) {
            Some(step) => step,
            None => self.step(),
        }
    }

    fn count_tally(&self, outcome: &str) {
        let pool = &self.gates.pool;
        pool.telemetry.add(Metric::TallyDecisions, &[pool.id.as_str(), outcome], 1.0);
    }

    /// Asks once, now; a request that would have to wait is refused when it may not wait, and else stands in line.
    fn step(&mut self) -> Step {
        if let Some((at, asking)) = self.asking.take() {
            // Whoever waited for the answer has left, and asks anew.
            let _ = at.told(&mut self.asker, asking, None, self.now);
            self.at = Some(at);
        }
        self.asker.count_together(self.gates.pool.together.decides());
        self.next_step()
    }

    fn next_step(&mut self) -> Step {
        loop {
            let at = self.at.take().unwrap_or_else(|| At::find(&self.gates, &self.tenant));
            let answer = at.ask(&mut self.asker, self.now);
            if let Some(step) = self.judge(at, answer, None) {
                return step;
            }
        }
    }

    /// What an answer comes to; `None` when it is to be asked again.
    fn judge(&mut self, mut at: At, answer: Answer, counted: Option<&Taken>) -> Option<Step> {
        if let Answer::Admitted(mine, theirs) = answer {
            if mine.is_owed() || theirs.as_ref().is_some_and(Reservation::is_owed) {
                self.count_tally("away");
            }
            let pool = &self.gates.pool;
            if self.now > self.began {
                pool.telemetry.observe(Metric::WaitSeconds, &[pool.id.as_str()], self.now.seconds_since(self.began));
            }
            let parent = at.parent.map(|(account, _)| account).zip(theirs);
            let marks = counted.and_then(|taken| self.asked.take().zip(marks_of(taken)));
            return Some(Step::Done(Ok(Permit::new(at.account, mine, parent, self.now).counted(marks))));
        }
        if let Answer::Ask(asking) = answer {
            let question = at.question(&self.gates, &asking);
            self.asked = Some(question.clone());
            self.asking = Some((at, asking));
            return Some(Step::Ask(question));
        }
        // Asked first, and looked then: who joined the shared line after everyone in it was woken asks again.
        if matches!(answer, Answer::Moved) {
            at.leave(&mut self.asker);
            return None;
        }
        if !at.is_current(&self.gates) {
            let found = At::find(&self.gates, &self.tenant);
            if !found.is_same(&at) {
                at.leave(&mut self.asker);
                return None;
            }
            at = found;
        }
        match (answer, self.asker.wake()) {
            (Answer::Never(never), _) => Some(Step::Done(Err(self.gates.refused(Refusal::Never(never))))),
            (Answer::Late(late), _) => Some(Step::Done(Err(self.gates.refused(refusal(late, self.now))))),
            (Answer::Wait(until), Some(wake)) => {
                let step = Step::Wait(wake.clone(), until.min(self.deadline).since(self.now));
                self.at = Some(at);
                Some(step)
            }
            _ => None,
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
        if let Some((at, asking)) = self.asking.take() {
            // What was taken elsewhere is given back by whoever hears that nobody listens.
            let _ = at.told(&mut self.asker, asking, None, self.gates.pool.clock.now());
            self.asker.count_together(false);
            at.leave(&mut self.asker);
        }
        if let Some(at) = &self.at {
            at.leave(&mut self.asker);
        }
    }
}

/// In which windows a reservation was counted.
fn marks_of(taken: &Taken) -> Option<Vec<[u64; 2]>> {
    match taken {
        Taken::All { marks, .. } => Some(marks.clone()),
        Taken::None { .. } => None,
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
                // It is not asked to count together: there is nobody to wait for the answer.
                Answer::Moved | Answer::Ask(_) => {}
                // His deadline is now: nobody tells him to wait.
                Answer::Wait(_) => at.leave(&mut asker),
            }
        }
    }
}
