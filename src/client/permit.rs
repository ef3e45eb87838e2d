//! A permit: leave to send one request, and what came of it.
//!
//! Nothing is concluded from a response's head alone when its body is still to tell what a refusal means: a 429 for want
//! of credit is no congestion, and its zeros were never measured.

use std::sync::Arc;
use std::time::Duration;

use super::gates::Account;
use crate::clock::MonoTime;
use crate::limiter::{Question, Reservation, Settlement};
use crate::observation::{Ending, HOLD_MS_MAX, ThrottleKind};
use crate::provider::{Class, Dialect, HOLD_MAX, Head, Hold, Observation, TokenCharge, Usage, reflex};
use crate::quota::{Cost, Meter};
use crate::telemetry::Metric;

/// A hold is released over this fraction of its length, so that members do not return at one instant.
const HOLD_JITTER: f64 = 0.2;

/// Leave to send one request. [`attach`](Permit::attach) it to reqwest's response; or else [`observe`](Permit::observe) a
/// response's head, [`conclude`](Permit::conclude) from it, then [`settle`](Permit::settle). A permit that is dropped
/// frees its place in flight and counts as fully used; one that was told of no answer counts as sent and ignored.
#[derive(Debug)]
#[must_use = "a dropped permit frees its place in flight at once"]
pub struct Permit {
    account: Arc<Account>,
    reservation: Option<Reservation>,
    /// The same taken from the parent pool.
    parent: Option<Box<(Arc<Account>, Reservation)>>,
    sent_at: MonoTime,
    first_byte_at: Option<MonoTime>,
    concluded: bool,
    /// An error was answered.
    refused: bool,
    /// What was taken where members count together, and in which windows.
    counted: Option<Box<(Question, Vec<[u64; 2]>)>>,
}

impl Permit {
    pub(super) fn new(
        account: Arc<Account>,
        reservation: Reservation,
        parent: Option<(Arc<Account>, Reservation)>,
        now: MonoTime,
    ) -> Self {
        let (reservation, parent) = (Some(reservation), parent.map(Box::new));
        let (first_byte_at, concluded, refused, counted) = (None, false, false, None);
        Self { account, reservation, parent, sent_at: now, first_byte_at, concluded, refused, counted }
    }

    /// With what was taken where members count together.
    pub(super) fn counted(mut self, counted: Option<(Question, Vec<[u64; 2]>)>) -> Self {
        self.counted = counted.map(Box::new);
        self
    }

    /// How the provider writes limits.
    #[must_use]
    pub fn dialect(&self) -> Dialect {
        self.account.pool.dialect
    }

    /// What was reserved.
    #[must_use]
    pub fn cost(&self) -> Cost {
        self.reservation.as_ref().map(Reservation::cost).unwrap_or_default()
    }

    /// Reads a response's head as it arrives.
    ///
    /// Pass the result to [`Permit::conclude`] at once, or refined by [`Dialect::refine`] where
    /// [the body tells](Dialect::body_tells) more.
    pub fn observe(&mut self, head: &Head<'_>) -> Observation {
        self.first_byte_at = Some(self.account.pool.clock.now());
        self.account.pool.dialect.read(head, self.sent_at)
    }

    /// Learns from a response: keeps its readings, counts how the request ended, and holds at once what the provider
    /// refused; nothing, if the request alone is [more than the limit](Observation::for_request_of). Only the first call
    /// counts.
    pub fn conclude(&mut self, observation: &Observation) {
        if std::mem::replace(&mut self.concluded, true) {
            return;
        }
        // Of a request that is larger than the limit which refused it, nothing is learned but that.
        let judged = (observation.class == Class::Throttled).then(|| observation.clone().for_request_of(&self.cost()));
        let observation = judged.as_ref().unwrap_or(observation);
        self.refused = observation.ending != Ending::Succeeded;
        {
            let mut readings = self.account.pool.readings.lock();
            for reading in &observation.readings {
                let known = readings.entry(reading.meter).or_insert(*reading);
                if reading.sent_at >= known.sent_at {
                    *known = *reading;
                }
            }
        }
        let id = self.account.pool.id.as_str();
        for missing in observation.missing.iter().filter(|missing| missing.reason.is_fault()) {
            self.account.pool.telemetry.add(Metric::HeaderFaults, &[id, missing.reason.as_str()], 1.0);
        }
        if let Ending::Throttled(kind) = observation.ending {
            self.account.count_throttled(kind);
            self.hold(observation);
        }
        let first_byte_ms = self.first_byte_at.map(|at| at.seconds_since(self.sent_at) * 1e3);
        self.account.gate.count(|counters| {
            counters.sent += 1;
            counters.ended(observation.ending);
            // A refusal comes quickly: it says nothing of how long answers take.
            if let (Ending::Succeeded, Some(ms)) = (observation.ending, first_byte_ms) {
                counters.ttfb_log_ms.add(ms);
            }
        });
        // Counted before it is told of: the report that goes at once has it.
        if let Ending::Throttled(kind) = observation.ending
            && kind != ThrottleKind::Overload
            && let Some(process) = self.account.pool.throttled.upgrade()
        {
            process.on_throttled(&self.account.pool.id, self.account.pool.clock.now());
        }
    }

    fn hold(&self, observation: &Observation) {
        let now = self.account.pool.clock.now();
        let reaction = reflex(self.account.pool.dialect, observation, &self.cost());
        // An overloaded provider is left alone for as long as it asks. Every request costs one.
        let overload = reaction.overload.and(observation.retry_after);
        let overload =
            overload.map(|asked| Hold { meter: Meter::REQUESTS_PER_MINUTE, for_at_least: asked.min(HOLD_MAX) });
        let jitter = 1.0 + HOLD_JITTER * fastrand::f64();
        let until = |hold: &Hold| (hold.meter, now.after_seconds(hold.for_at_least.as_secs_f64() * jitter));
        let holds: Vec<(Meter, MonoTime)> = reaction.holds.iter().chain(&overload).map(until).collect();
        if let Some(long) = reaction.long {
            let until = now + long.min(Duration::from_millis(HOLD_MS_MAX));
            let mut long_holds = self.account.pool.long_holds.lock();
            // Of the meters meant, those whose own wait is long.
            for Hold { meter, .. } in reaction.holds.iter().filter(|hold| hold.for_at_least >= HOLD_MAX) {
                // A second one never shortens the first.
                let held = long_holds.entry(*meter).or_insert(until);
                *held = (*held).max(until);
            }
        }
        self.account.pool.wide.hold(&holds);
    }

    /// An answer that began well broke off because the provider is overloaded: counts as a refusal for overload.
    pub fn overloaded(&mut self) {
        let kind = ThrottleKind::Overload;
        self.account.count_throttled(kind);
        self.account.gate.count(|counters| counters.ended(Ending::Throttled(kind)));
    }

    /// The call failed without an answer: says nothing about capacity.
    pub fn failed(&mut self) {
        if !std::mem::replace(&mut self.concluded, true) {
            self.account.gate.count(|counters| {
                counters.sent += 1;
                counters.ended(Ending::Ignored);
            });
        }
    }

    /// Ends the permit with the real usage; above [`Usage::TOKENS_MAX`] it counts as unknown. What the provider does not charge is given back, as far as its dialect
    /// corrects its own estimate at all.
    pub fn settle(mut self, usage: Usage) {
        self.release(Some(usage));
    }

    fn release(&mut self, usage: Option<Usage>) {
        let Some(reservation) = self.reservation.take() else { return };
        // A caller that left while its request was under way has told nothing, but it did send.
        self.failed();
        let reserved = reservation.cost();
        let usage = usage.filter(|usage| usage.input_tokens.max(usage.output_tokens) <= Usage::TOKENS_MAX);
        let used = match (usage, self.account.pool.dialect.semantics().token_charge) {
            (Some(Usage { input_tokens, output_tokens }), _) => Some(Cost { input_tokens, output_tokens, ..reserved }),
            // An error has generated nothing, and the charge for output is corrected when the answer ends.
            (None, TokenCharge::Corrected) if self.refused => Some(Cost { output_tokens: 0, ..reserved }),
            (None, _) => None,
        };
        let charged = match self.account.pool.dialect.semantics().token_charge {
            // The provider keeps its own estimate, so giving tokens back would only make the bucket lie.
            TokenCharge::Estimate => None,
            TokenCharge::Corrected => used,
        };
        if let (Some(counted), Some(charged)) = (self.counted.take(), charged) {
            self.settle_counted(*counted, &charged);
        }
        let used = used.unwrap_or(reserved);
        let now = self.account.pool.clock.now();
        self.account.gate.settle(reservation, charged, &used, now);
        if let Some((account, reservation)) = self.parent.take().map(|parent| *parent) {
            account.gate.settle(reservation, charged, &used, now);
        }
    }
}

impl Permit {
    /// Settles where members count together, if anything is to be.
    fn settle_counted(&self, (question, marks): (Question, Vec<[u64; 2]>), charged: &Cost) {
        let counts = question.counts.into_iter().zip(marks).filter_map(|(count, marks)| {
            let used = charged.units(count.meter.unit);
            let back = i64::try_from(count.units).unwrap_or(i64::MAX) - i64::try_from(used).unwrap_or(i64::MAX);
            (back != 0).then_some((count, marks, back))
        });
        let counts: Vec<_> = counts.collect();
        if !counts.is_empty() {
            self.account.pool.together.settle(Settlement { account: question.account, counts });
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.release(None);
    }
}
