//! Admission, asynchronously: ask the limiter, wait in line, hold a permit, settle it.
//!
//! A gate is one tenant's limiter and line in this process; tenants without a grant share the `@default` gate. Only
//! the head of a line asks; it sleeps until the instant the limiter named, or until a retune or a settled request
//! wakes it. A caller that leaves (its future is dropped) leaves the line too.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;

use super::swap::{Swap, Tuning};
use crate::clock::{Clock, MonoTime};
use crate::limiter::{Decision, Limiter, Limits, Line, Never, Reservation, Ticket};
use crate::observation::{Counters, Ending, MeterReading};
use crate::provider::{Dialect, Head, Hold, Observation, TokenCharge, reflex};
use crate::quota::{Cost, Grantee, Meter, PoolId, TenantId};
use crate::telemetry::{Metric, Telemetry};

/// Most that may wait in one line; the next one is refused at once.
pub const LINE_MAX: usize = 10_000;
/// What a refusal says when nothing flows and nobody knows for how long.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// A hold is released over this fraction of its length, so that members do not return at one instant.
const HOLD_JITTER: f64 = 0.2;

/// Why a request was not admitted.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// Not in time. Worth another try after this.
    #[error("not before {after:?} ({why})")]
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
            Self::Limit => "the limit is used up",
            Self::Blocked => "blocked by an operator",
            Self::LineFull => "too many are waiting",
        })
    }
}

/// What the provider says a request really used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// LLM tokens sent.
    pub input_tokens: u64,
    /// LLM tokens received.
    pub output_tokens: u64,
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

/// What a gate reports.
#[derive(Debug, Clone)]
pub(super) struct GateReport {
    pub counters: Counters,
    pub in_flight: u32,
    pub waiting: usize,
}

impl Gate {
    fn new(grantee: Grantee, tuning: &Tuning, now: MonoTime) -> Self {
        let none = Limits::default();
        let limits = tuning.limits.get(&grantee).unwrap_or(&none);
        let state = GateState {
            limiter: Limiter::new(limits, now),
            generation: tuning.generation,
            line: Line::default(),
            counters: Counters::default(),
        };
        Self { grantee, state: Mutex::new(state) }
    }

    fn report(&self) -> GateReport {
        let state = self.state.lock();
        GateReport { counters: state.counters.clone(), in_flight: state.limiter.in_flight(), waiting: state.line.len() }
    }

    fn wake_all(&self) {
        self.state.lock().line.all().for_each(|waiter| waiter.notify_one());
    }
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

/// What happens in the process when the provider refuses.
pub(super) trait OnThrottled: Send + Sync + std::fmt::Debug {
    /// Puts the holds in force at once, and tells the leader.
    fn on_throttled(&self, pool: &PoolId, holds: &[(Meter, MonoTime)], now: MonoTime);
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

    /// Everyone who waits looks again.
    pub(super) fn wake_all(&self) {
        self.gates.read().values().for_each(|gate| gate.wake_all());
    }

    /// What each gate has to report.
    pub(super) fn gate_reports(&self) -> Vec<(Grantee, GateReport)> {
        self.gates.read().iter().map(|(grantee, gate)| (grantee.clone(), gate.report())).collect()
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
        let mut place: Option<Place> = None;
        let mut attempted = false;
        loop {
            let now = self.clock.now();
            let (wake, sleep_until) = {
                let tuning = self.swap.load();
                let gate = self.gate_of(&wanted, &tuning, now);
                if place.as_ref().is_some_and(|place| !Arc::ptr_eq(&place.gate, &gate)) {
                    // The tenant got, or lost, a grant of its own: on to the other line.
                    place = None;
                }
                let mut guard = gate.state.lock();
                let state = &mut *guard;
                if !std::mem::replace(&mut attempted, true) {
                    state.counters.attempts += 1;
                }
                if state.generation != tuning.generation
                    && let Some(limits) = tuning.limits.get(&gate.grantee)
                {
                    state.limiter.retune(limits, tuning.since);
                    state.generation = tuning.generation;
                }
                let may_ask = match &place {
                    Some(place) => state.line.is_head(place.ticket),
                    None => state.line.is_empty(),
                };
                let decision = if may_ask {
                    state.limiter.try_admit(&cost, now, |meter| tuning.holds.get(&meter).copied())
                } else {
                    Decision::WaitUntil(None)
                };
                match decision {
                    Decision::Admit(reservation) => {
                        state.counters.admitted += 1;
                        state.counters.reserved.add(&cost);
                        if place.is_some() {
                            state.counters.waited += 1;
                        }
                        drop(guard);
                        drop(place);
                        return Ok(Permit::new(self.clone(), gate, reservation, now));
                    }
                    Decision::Never(never) => {
                        state.counters.refused += 1;
                        return Err(Refusal::Never(never));
                    }
                    Decision::WaitUntil(at) => {
                        let blocked = tuning.limits.get(&gate.grantee).is_some_and(|limits| limits.blocked);
                        let refusal = |until: Option<MonoTime>| Refusal::WaitUntil {
                            after: until.map_or(ASK_AGAIN, |until| until.since(now)),
                            why: if blocked { Why::Blocked } else { Why::Limit },
                        };
                        if now >= deadline {
                            state.counters.refused += 1;
                            let expected = state.limiter.expected_at(&Cost::default(), &cost, now);
                            return Err(refusal(expected.max(at)));
                        }
                        if place.is_none() {
                            // The honest wait of a newcomer: refuse now what cannot be in time.
                            let expected = state.limiter.expected_at(&state.line.cost_waiting(), &cost, now).max(at);
                            if blocked || expected.is_some_and(|at| at > deadline) {
                                state.counters.refused += 1;
                                return Err(refusal(expected));
                            }
                            if state.line.len() >= LINE_MAX {
                                state.counters.refused += 1;
                                let after = expected.map_or(ASK_AGAIN, |until| until.since(now));
                                return Err(Refusal::WaitUntil { after, why: Why::LineFull });
                            }
                            let wake = Arc::new(Notify::new());
                            let ticket = state.line.join(cost, wake.clone());
                            place = Some(Place { gate: gate.clone(), ticket, wake });
                        }
                        let wake = place.as_ref().map(|place| place.wake.clone()).unwrap_or_default();
                        (wake, at.unwrap_or(deadline).min(deadline))
                    }
                }
            };
            tokio::select! {
                () = wake.notified() => {}
                () = tokio::time::sleep(sleep_until.since(now)) => {}
            }
        }
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

/// Leave to send one request. Tell it what came back, then settle it; a permit that is dropped counts as fully used.
#[derive(Debug)]
#[must_use = "a dropped permit frees its place in flight at once"]
pub struct Permit {
    pool: Arc<PoolShared>,
    gate: Arc<Gate>,
    reservation: Option<Reservation>,
    sent_at: MonoTime,
    answered: bool,
}

impl Permit {
    fn new(pool: Arc<PoolShared>, gate: Arc<Gate>, reservation: Reservation, now: MonoTime) -> Self {
        Self { pool, gate, reservation: Some(reservation), sent_at: now, answered: false }
    }

    /// What was reserved.
    #[must_use]
    pub fn cost(&self) -> Cost {
        self.reservation.as_ref().map(Reservation::cost).unwrap_or_default()
    }

    /// Reads a response's head: learns the provider's limits, and holds at once what it refused.
    ///
    /// Pass the result to [`Permit::conclude`], refined by [`Dialect::refine`] where there is an error body.
    pub fn observe(&mut self, head: &Head<'_>) -> Observation {
        let now = self.pool.clock.now();
        let observation = self.pool.dialect.read(head, self.sent_at);
        {
            let mut readings = self.pool.readings.lock();
            for reading in &observation.readings {
                let known = readings.entry(reading.meter).or_insert(*reading);
                if reading.sent_at >= known.sent_at {
                    *known = *reading;
                }
            }
        }
        let id = self.pool.id.as_str();
        if observation.faults > 0 {
            self.pool.telemetry.add(Metric::HeaderFaults, &[id], f64::from(observation.faults));
        }
        {
            let mut state = self.gate.state.lock();
            state.counters.ttfb_log_ms.add(now.seconds_since(self.sent_at) * 1e3);
        }
        if matches!(observation.ending, Ending::Throttled(_)) {
            let reaction = reflex(self.pool.dialect, &observation, &self.cost());
            let jitter = 1.0 + HOLD_JITTER * fastrand::f64();
            let holds: Vec<(Meter, MonoTime)> = reaction
                .holds
                .iter()
                .map(|Hold { meter, for_at_least }| (*meter, now.after_seconds(for_at_least.as_secs_f64() * jitter)))
                .collect();
            if let Some(long) = reaction.long {
                let mut long_holds = self.pool.long_holds.lock();
                for (meter, _) in &holds {
                    // A second one never shortens the first.
                    let held = long_holds.entry(*meter).or_insert(now + long);
                    *held = (*held).max(now + long);
                }
            }
            if let Some(process) = self.pool.throttled.upgrade() {
                process.on_throttled(&self.pool.id, &holds, now);
            }
        }
        observation
    }

    /// Counts how the request ended.
    pub fn conclude(&mut self, observation: &Observation) {
        if std::mem::replace(&mut self.answered, true) {
            return;
        }
        if let Ending::Throttled(kind) = observation.ending {
            self.pool.telemetry.add(Metric::Throttled, &[self.pool.id.as_str(), kind.as_str()], 1.0);
        }
        self.end(observation.ending);
    }

    /// The call failed without an answer: says nothing about capacity.
    pub fn failed(&mut self) {
        if !std::mem::replace(&mut self.answered, true) {
            self.end(Ending::Ignored);
        }
    }

    fn end(&self, ending: Ending) {
        let mut state = self.gate.state.lock();
        state.counters.sent += 1;
        state.counters.ended(ending);
    }

    /// Ends the permit with the real usage. What the provider does not charge is given back, as far as its dialect
    /// corrects its own estimate at all.
    pub fn settle(mut self, usage: Usage) {
        self.release(Some(usage));
    }

    fn release(&mut self, usage: Option<Usage>) {
        let Some(reservation) = self.reservation.take() else { return };
        let now = self.pool.clock.now();
        let reserved = reservation.cost();
        let charged = match self.pool.dialect.semantics().token_charge {
            // The provider keeps its own estimate, so giving tokens back would only make the bucket lie.
            TokenCharge::Estimate => None,
        };
        let mut state = self.gate.state.lock();
        state.limiter.settle(reservation, charged, now);
        let used = usage.map_or(reserved, |usage| Cost {
            requests: reserved.requests,
            input_tokens: usage.input_tokens,
            output_tokens: usage.output_tokens,
        });
        state.counters.settled.add(&used);
        if let Some(head) = state.line.head() {
            head.notify_one();
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.release(None);
    }
}
