//! Admission, asynchronously: ask the limiter, or wait in line for it.
//!
//! A gate is one tenant's limiter and line in this process; tenants without a grant share the `@default` gate. Only
//! the head of a line asks; it sleeps until the instant the limiter named, or until a retune or a settled request
//! wakes it. A caller that leaves (its future is dropped) leaves the line too.
//!
//! *No wake-up is lost*: limits are swapped first and waiters woken after, under the gate's lock; who is about to wait
//! looks, under the same lock, whether the limits he asked by are still the ones in force.
//!
//! *Locks*, in this order and never across an await: the views, the session, the swap's writer, the map of gates, one
//! gate.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;

use super::Permit;
use super::member::MemberState;
use super::swap::{Swap, Tuning};
use crate::clock::{Clock, MonoTime};
use crate::limiter::{Decision, Limiter, Limits, Line, Never, Reservation, Ticket};
use crate::observation::{Counters, MeterReading};
use crate::provider::Dialect;
use crate::quota::{Cost, Grantee, Meter, PoolId, TenantId};
use crate::telemetry::Telemetry;

/// Most that may wait in one line; the next one is refused at once.
pub const LINE_MAX: usize = 10_000;
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
    /// Room under a rate, or a place in flight.
    Limit,
    /// An operator to lift the block.
    Blocked,
    /// A shorter line.
    LineFull,
}

impl std::fmt::Display for Why {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Limit => "no room under its rate or for one more in flight",
            Self::Blocked => "blocked by an operator",
            Self::LineFull => "too many are waiting",
        })
    }
}

#[derive(Debug)]
struct GateState {
    limiter: Limiter,
    generation: u64,
    line: Line<Arc<Notify>>,
    counters: Counters,
}

/// One tenant's limiter and line in this process.
#[derive(Debug)]
pub(super) struct Gate {
    grantee: Grantee,
    state: Mutex<GateState>,
}

/// What this process did, and is doing, for one tenant of a pool.
#[derive(Debug, Clone)]
pub struct Traffic {
    /// Counted since the process began.
    pub counters: Counters,
    /// Requests in flight now.
    pub in_flight: u32,
    /// Requests that wait for admission now.
    pub waiting: usize,
}

/// Who looks again after a retune.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wake {
    /// Numbers changed: they matter to the head of each line alone.
    Heads,
    /// Tenants got or lost a gate of their own, or a block: that matters to all.
    Everyone,
}

impl Gate {
    fn new(grantee: Grantee, tuning: &Tuning, now: MonoTime) -> Self {
        let none = Limits::default();
        let limits = tuning.limits.get(&grantee).unwrap_or(&none);
        let limiter = match tuning.state {
            MemberState::Bootstrap => Limiter::with_one_request(limits, now),
            _ => Limiter::new(limits, now),
        };
        let state =
            GateState { limiter, generation: tuning.generation, line: Line::default(), counters: Counters::default() };
        Self { grantee, state: Mutex::new(state) }
    }

    fn traffic(&self) -> Traffic {
        let state = self.state.lock();
        Traffic { counters: state.counters.clone(), in_flight: state.limiter.in_flight(), waiting: state.line.len() }
    }

    fn wake(&self, whom: Wake) {
        let state = self.state.lock();
        let many = if whom == Wake::Everyone { usize::MAX } else { 1 };
        for waiter in state.line.all().take(many) {
            waiter.notify_one();
        }
    }

    pub(super) fn count(&self, count: impl FnOnce(&mut Counters)) {
        count(&mut self.state.lock().counters);
    }

    /// Ends a request in flight; the head of the line may have its place.
    pub(super) fn settle(&self, reservation: Reservation, charged: Option<Cost>, used: &Cost, now: MonoTime) {
        let mut state = self.state.lock();
        let reserved = reservation.cost();
        if let Some(charged) = charged {
            state.counters.reserved.add(&charged.minus(&reserved));
            state.counters.returned.add(&reserved.minus(&charged));
        }
        state.limiter.settle(reservation, charged, now);
        state.counters.settled.add(used);
        if let Some(head) = state.line.head() {
            head.notify_one();
        }
    }
}

impl GateState {
    fn retune(&mut self, limits: Option<&Limits>, tuning: &Tuning) {
        if self.generation != tuning.generation
            && let Some(limits) = limits
        {
            self.limiter.retune(limits, tuning.since);
            self.generation = tuning.generation;
        }
    }

    /// The limiter's answer to who may ask it; to others, that it is not their turn.
    fn decide(
        &mut self,
        request: &Request,
        limits: Option<&Limits>,
        held: Option<MonoTime>,
        now: MonoTime,
    ) -> Decision {
        let may_ask = match &request.place {
            Some(place) => self.line.is_head(place.ticket),
            None => self.line.is_empty(),
        };
        if !may_ask {
            // No turn of his would help: that need not wait for it.
            return never(limits, &request.cost).map_or(Decision::WaitUntil(None), Decision::Never);
        }
        let metered = limits.is_some_and(|limits| limits.meters.keys().any(|m| request.cost.of(m.unit) > 0.0));
        match held.filter(|until| *until > now) {
            // The provider may refuse on a meter that no grant speaks of.
            Some(until) if !metered => Decision::WaitUntil(Some(until)),
            held => self.limiter.try_admit(&request.cost, now, |_| held),
        }
    }

    /// When the request could be admitted, as far as one can tell; `at` is the limiter's own word.
    fn expected_at(&self, request: &Request, at: Option<MonoTime>, now: MonoTime) -> Option<MonoTime> {
        if at.is_some() {
            return at;
        }
        let waiting = self.line.cost_waiting();
        let ahead = if request.place.is_some() { waiting.minus(&request.cost) } else { waiting };
        self.limiter.expected_at(&ahead, &request.cost, now)
    }
}

fn never(limits: Option<&Limits>, cost: &Cost) -> Option<Never> {
    limits?.meters.iter().find_map(|(meter, limit)| {
        let (needed, largest_request) = (cost.of(meter.unit), limit.largest_request);
        (needed > largest_request).then_some(Never { meter: *meter, needed, largest_request })
    })
}

/// Until when a request of this cost is held, whatever limits there are.
fn held_until(tuning: &Tuning, cost: &Cost) -> Option<MonoTime> {
    tuning.all_holds().filter(|(meter, _)| cost.of(meter.unit) > 0.0).map(|(_, until)| *until).max()
}

/// What all users of one pool in this process share.
#[derive(Debug)]
pub(super) struct PoolShared {
    pub id: PoolId,
    pub dialect: Dialect,
    pub clock: Arc<dyn ClockDebug>,
    pub swap: Swap,
    pub telemetry: Arc<Telemetry>,
    /// The newest-sent reading of each meter.
    pub readings: Mutex<BTreeMap<Meter, MeterReading>>,
    /// Long waits the provider asked for.
    pub long_holds: Mutex<BTreeMap<Meter, MonoTime>>,
    /// Told of refusals by the provider; gone when the client is.
    pub throttled: Weak<dyn OnThrottled>,
    gates: RwLock<HashMap<Grantee, Arc<Gate>>>,
}

/// A clock that can stand in a `Debug` struct.
pub(super) trait ClockDebug: Clock + std::fmt::Debug {}
impl<C: Clock + std::fmt::Debug> ClockDebug for C {}

/// What else happens in the process when the provider refuses.
pub(super) trait OnThrottled: Send + Sync + std::fmt::Debug {
    /// Brakes a member without a leader, and tells the leader if there is one.
    fn on_throttled(&self, pool: &PoolId, now: MonoTime);
}

/// One request on its way to admission.
struct Request {
    wanted: Grantee,
    cost: Cost,
    deadline: MonoTime,
    place: Option<Place>,
    counted: bool,
    waited: bool,
}

enum Answer {
    Admitted(Permit),
    Refused(Refusal),
    /// To be asked again when woken, or after this long.
    Wait(Arc<Notify>, Duration),
    /// The limits were swapped meanwhile.
    AskAgain,
}

impl PoolShared {
    pub(super) fn new(
        id: PoolId,
        dialect: Dialect,
        clock: Arc<dyn ClockDebug>,
        tuning: Tuning,
        telemetry: Arc<Telemetry>,
        throttled: Weak<dyn OnThrottled>,
    ) -> Self {
        Self {
            id,
            dialect,
            clock,
            swap: Swap::new(tuning),
            telemetry,
            readings: Mutex::default(),
            long_holds: Mutex::default(),
            throttled,
            gates: RwLock::default(),
        }
    }

    /// The gate of a tenant: its own if it has a grant, else the one all others share.
    fn gate_of(&self, grantee: &Grantee, tuning: &Tuning, now: MonoTime) -> Arc<Gate> {
        let grantee = if tuning.limits.contains_key(grantee) { grantee } else { &Grantee::Default };
        if let Some(gate) = self.gates.read().get(grantee) {
            return gate.clone();
        }
        let mut gates = self.gates.write();
        gates.entry(grantee.clone()).or_insert_with(|| Arc::new(Gate::new(grantee.clone(), tuning, now))).clone()
    }

    /// Those to whom a retune matters look again.
    pub(super) fn wake(&self, whom: Wake) {
        for gate in self.gates.read().values() {
            gate.wake(whom);
        }
    }

    /// What each gate did and is doing.
    pub(super) fn traffic(&self) -> Vec<(Grantee, Traffic)> {
        self.gates.read().iter().map(|(grantee, gate)| (grantee.clone(), gate.traffic())).collect()
    }

    /// Waits for admission, at most `max_wait`.
    pub(super) async fn admit(
        self: &Arc<Self>,
        tenant: &TenantId,
        cost: Cost,
        max_wait: Duration,
    ) -> Result<Permit, Refusal> {
        let wanted = Grantee::Tenant(tenant.clone());
        let deadline = self.clock.now() + max_wait;
        let mut request = Request { wanted, cost, deadline, place: None, counted: false, waited: false };
        loop {
            match self.ask(&mut request) {
                Answer::Admitted(permit) => return Ok(permit),
                Answer::Refused(refusal) => return Err(refusal),
                Answer::AskAgain => {}
                Answer::Wait(wake, at_most) => tokio::select! {
                    () = wake.notified() => {}
                    () = tokio::time::sleep(at_most) => {}
                },
            }
        }
    }

    fn ask(self: &Arc<Self>, request: &mut Request) -> Answer {
        let now = self.clock.now();
        let tuning = self.swap.load();
        let gate = self.gate_of(&request.wanted, &tuning, now);
        if request.place.as_ref().is_some_and(|place| !Arc::ptr_eq(&place.gate, &gate)) {
            // The tenant got, or lost, a grant of its own: on to the other line.
            request.place = None;
        }
        let mut state = gate.state.lock();
        if self.swap.load().generation != tuning.generation {
            return Answer::AskAgain;
        }
        let limits = tuning.limits.get(&gate.grantee);
        state.retune(limits, &tuning);
        if !std::mem::replace(&mut request.counted, true) {
            state.counters.attempts += 1;
        }
        let held = held_until(&tuning, &request.cost);
        match state.decide(request, limits, held, now) {
            Decision::Admit(reservation) => {
                state.counters.admitted += 1;
                state.counters.waited += u64::from(request.waited);
                state.counters.reserved.add(&request.cost);
                drop(state);
                request.place = None;
                Answer::Admitted(Permit::new(self.clone(), gate, reservation, now))
            }
            Decision::Never(never) => {
                state.counters.refused += 1;
                Answer::Refused(Refusal::Never(never))
            }
            Decision::WaitUntil(at) => {
                let expected = state.expected_at(request, at, now).max(held);
                let blocked = limits.is_some_and(|limits| limits.blocked);
                let late = request.place.is_none() && expected.is_some_and(|at| at > request.deadline);
                let full = request.place.is_none() && state.line.len() >= LINE_MAX;
                let why = match () {
                    () if blocked => Some(Why::Blocked),
                    () if now >= request.deadline || late => Some(Why::Limit),
                    () if full => Some(Why::LineFull),
                    () => None,
                };
                if let Some(why) = why {
                    state.counters.refused += 1;
                    let after = expected.filter(|at| *at > now).map_or(ASK_AGAIN, |at| at.since(now));
                    return Answer::Refused(Refusal::WaitUntil { after, why });
                }
                request.waited = true;
                let wake = request.stand_in_line(&gate, &mut state);
                Answer::Wait(wake, at.unwrap_or(request.deadline).min(request.deadline).since(now))
            }
        }
    }
}

impl Request {
    fn stand_in_line(&mut self, gate: &Arc<Gate>, state: &mut GateState) -> Arc<Notify> {
        if let Some(place) = &self.place {
            return place.wake.clone();
        }
        let wake = Arc::new(Notify::new());
        let ticket = state.line.join(self.cost, wake.clone());
        self.place = Some(Place { gate: gate.clone(), ticket, wake: wake.clone() });
        wake
    }
}

/// A place in a gate's line; dropping it leaves the line.
struct Place {
    gate: Arc<Gate>,
    ticket: Ticket,
    wake: Arc<Notify>,
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(next) = self.gate.state.lock().line.leave(self.ticket) {
            next.notify_one();
        }
    }
}
