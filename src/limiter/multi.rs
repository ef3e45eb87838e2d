//! One decision over all meters of a tenant: all of them, or none.
//!
//! - *admit*: every meter has room and a place in flight is free; units are taken from all at once.
//! - *wait until*: not now; the earliest instant at which it could be.
//! - *never*: above the largest request that any wait could admit.
//!
//! A cost above the member's own part of a burst, but not above the largest request, is admitted from a full bucket into
//! debt, one in flight per meter: dividing a burst over tenants and members makes no request impossible.

use std::collections::BTreeMap;

use super::Bucket;
use crate::clock::MonoTime;
use crate::plan::Rate;
use crate::quota::{Cost, Meter, Unit};

/// One meter of a member's limits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MeterLimit {
    /// What this member enforces.
    pub rate: Rate,
    /// The largest request that can ever be admitted, in units: what *never* is judged by.
    pub largest_request: f64,
}

/// What a member enforces for one tenant.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Limits {
    /// Per meter.
    pub meters: BTreeMap<Meter, MeterLimit>,
    /// Requests in flight at a time.
    pub concurrency: Option<u32>,
    /// Nothing is admitted.
    pub blocked: bool,
}

/// The three answers.
#[derive(Debug, PartialEq)]
pub enum Decision {
    /// Go; settle the reservation afterwards.
    Admit(Reservation),
    /// Not before this instant; `None` when only a retune or a settled request can help.
    WaitUntil(Option<MonoTime>),
    /// Not at this size.
    Never(Never),
}

/// Why a request can never be admitted.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error("needs {needed} of {meter} at once, and the largest request that can be admitted is {largest_request}")]
pub struct Never {
    /// Which meter.
    pub meter: Meter,
    /// Units needed.
    pub needed: f64,
    /// The largest that could be admitted, in units.
    pub largest_request: f64,
}

/// Units taken for one request, to be settled with [`Limiter::settle`].
#[derive(Debug, PartialEq)]
#[must_use = "an unsettled reservation holds its place in flight"]
pub struct Reservation {
    cost: Cost,
    oversize: Vec<Meter>,
    /// How many requests were admitted before this one.
    serial: u64,
}

impl Reservation {
    /// What was taken.
    #[must_use]
    pub fn cost(&self) -> Cost {
        self.cost
    }
}

#[derive(Debug)]
struct Metered {
    bucket: Bucket,
    largest_request: f64,
    oversize_in_flight: bool,
    /// The first reservation that took from this bucket; an older one has nothing to get back.
    first_serial: u64,
}

/// The limiter of one tenant in one member.
#[derive(Debug)]
pub struct Limiter {
    meters: BTreeMap<Meter, Metered>,
    /// Meters taken out of the limits, kept for one window: a meter that flaps must not refill.
    removed: BTreeMap<Meter, (Metered, MonoTime)>,
    concurrency: Option<u32>,
    in_flight: u32,
    blocked: bool,
    admitted: u64,
}

impl Limiter {
    /// A limiter whose buckets start with one second of rate.
    #[must_use]
    pub fn new(limits: &Limits, now: MonoTime) -> Self {
        let mut limiter = Self {
            meters: BTreeMap::new(),
            removed: BTreeMap::new(),
            concurrency: None,
            in_flight: 0,
            blocked: false,
            admitted: 0,
        };
        limiter.retune(limits, now);
        limiter
    }

    /// A limiter that holds one request at once, as far as its rates allow any: for a process that knows of no grant yet, and
    /// whose first call would otherwise wait for what nobody else is sending.
    #[must_use]
    pub fn with_one_request(limits: &Limits, now: MonoTime) -> Self {
        let mut limiter = Self::new(limits, now);
        for (meter, metered) in &mut limiter.meters {
            if meter.unit == Unit::Requests && limits.meters.get(meter).is_some_and(|limit| limit.rate.rate > 0.0) {
                metered.bucket.give_back((1.0 - metered.bucket.level_at(now)).max(0.0), now);
            }
        }
        limiter
    }

    /// Puts new limits in force as of `since`; levels and debts stay.
    pub fn retune(&mut self, limits: &Limits, since: MonoTime) {
        for (meter, limit) in &limits.meters {
            let rate_per_s = meter.per_second(limit.rate.rate);
            if !self.meters.contains_key(meter) {
                let metered = self.recall(*meter, since).unwrap_or_else(|| Metered {
                    bucket: Bucket::new(rate_per_s, limit.rate.burst, since),
                    largest_request: limit.largest_request,
                    oversize_in_flight: false,
                    first_serial: self.admitted,
                });
                self.meters.insert(*meter, metered);
            }
            if let Some(metered) = self.meters.get_mut(meter) {
                metered.bucket.retune(rate_per_s, limit.rate.burst, since);
                metered.largest_request = limit.largest_request;
            }
        }
        let gone: Vec<Meter> = self.meters.keys().filter(|meter| !limits.meters.contains_key(meter)).copied().collect();
        for meter in gone {
            if let Some(mut metered) = self.meters.remove(&meter) {
                metered.bucket.take(0.0, since);
                self.removed.insert(meter, (metered, since));
            }
        }
        self.concurrency = limits.concurrency;
        self.blocked = limits.blocked;
    }

    fn recall(&mut self, meter: Meter, since: MonoTime) -> Option<Metered> {
        let (mut metered, removed_at) = self.removed.remove(&meter)?;
        // Nothing was taken while it was away, so nothing flowed in either.
        metered.bucket.resume(since);
        metered.first_serial = self.admitted;
        (since.seconds_since(removed_at) < meter.window.seconds()).then_some(metered)
    }

    /// Requests in flight.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// The level of a meter, in units.
    #[must_use]
    pub fn level_at(&self, meter: Meter, now: MonoTime) -> Option<f64> {
        self.meters.get(&meter).map(|metered| metered.bucket.level_at(now))
    }

    /// Decides, and on *admit* takes the units of every meter.
    ///
    /// `held_until` says until when a meter is held by a reflex, if it is.
    pub fn try_admit(
        &mut self,
        cost: &Cost,
        now: MonoTime,
        held_until: impl Fn(Meter) -> Option<MonoTime>,
    ) -> Decision {
        if let Some(never) = self.never(cost) {
            return Decision::Never(never);
        }
        if self.blocked || self.concurrency.is_some_and(|most| self.in_flight >= most) {
            return Decision::WaitUntil(None);
        }
        let mut ready = now;
        let mut oversize = Vec::new();
        for (meter, metered) in &self.meters {
            let needed = cost.of(meter.unit);
            if needed <= 0.0 {
                continue;
            }
            let is_oversize = needed > metered.bucket.burst();
            // A bucket that holds nothing is not full, it is no bucket: a member without a share admits nothing.
            if is_oversize && (metered.oversize_in_flight || metered.bucket.burst() <= 0.0) {
                return Decision::WaitUntil(None);
            }
            let Some(at) = metered.bucket.reaches_at(needed.min(metered.bucket.burst()), now) else {
                return Decision::WaitUntil(None);
            };
            ready = ready.max(at).max(held_until(*meter).unwrap_or(now));
            if is_oversize {
                oversize.push(*meter);
            }
        }
        if ready > now {
            return Decision::WaitUntil(Some(ready));
        }
        for (meter, metered) in &mut self.meters {
            metered.bucket.take(cost.of(meter.unit), now);
            metered.oversize_in_flight |= oversize.contains(meter);
        }
        self.in_flight += 1;
        self.admitted += 1;
        Decision::Admit(Reservation { cost: *cost, oversize, serial: self.admitted - 1 })
    }

    fn never(&self, cost: &Cost) -> Option<Never> {
        self.meters.iter().find_map(|(meter, metered)| {
            let needed = cost.of(meter.unit);
            let largest_request = metered.largest_request;
            (needed > largest_request).then_some(Never { meter: *meter, needed, largest_request })
        })
    }

    /// When everything `ahead` plus `cost` will have been supplied: the honest wait of a newcomer to the line.
    /// `None` when nothing flows.
    #[must_use]
    pub fn expected_at(&self, ahead: &Cost, cost: &Cost, now: MonoTime) -> Option<MonoTime> {
        if self.blocked {
            return None;
        }
        self.meters.iter().try_fold(now, |latest, (meter, metered)| {
            let needed = cost.of(meter.unit);
            if needed <= 0.0 {
                return Some(latest);
            }
            // As in `try_admit`: what is above the member's burst is admitted from a full bucket.
            let from = needed.min(metered.bucket.burst());
            if from <= 0.0 {
                return None;
            }
            metered.bucket.supplies_at(ahead.of(meter.unit) + from, now).map(|at| latest.max(at))
        })
    }

    /// Ends a request. With `charged`, the difference to what was reserved is given back or taken; without, usage is
    /// unknown and counts as fully used.
    #[allow(clippy::needless_pass_by_value, reason = "a reservation is settled once")]
    pub fn settle(&mut self, reservation: Reservation, charged: Option<Cost>, now: MonoTime) {
        self.in_flight = self.in_flight.saturating_sub(1);
        for (meter, metered) in &mut self.meters {
            if let Some(charged) = charged
                && reservation.serial >= metered.first_serial
            {
                metered.bucket.give_back(reservation.cost.of(meter.unit) - charged.of(meter.unit), now);
            }
        }
        for meter in &reservation.oversize {
            let away = self.removed.get_mut(meter).map(|(metered, _)| metered);
            for metered in self.meters.get_mut(meter).into_iter().chain(away) {
                metered.oversize_in_flight = false;
            }
        }
    }
}
