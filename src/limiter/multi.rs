//! One decision over all meters of a tenant: all of them, or none.
//!
//! - *admit*: every meter has room and a place in flight is free; units are taken from all at once.
//! - *wait until*: not now; the earliest instant at which it could be, and what that hangs on.
//! - *never*: above the largest request that any wait could admit.
//!
//! A cost above the member's own part of a burst, but not above the largest request, is admitted from a full bucket into
//! debt, one in flight per meter: dividing a burst over tenants and members makes no request impossible.

use std::time::Duration;

use smallvec::SmallVec;

use super::concurrency::{Concurrency, Slice};
use super::counter::Counter;
use super::hold::{Held, Hold};
use super::limits::{Limits, MeterLimit};
use crate::clock::MonoTime;
use crate::quota::{Cost, Meter, Unit};

/// How long a reservation may stay unsettled unless told otherwise: longer than any provider answers.
pub const CALL_MAX: Duration = Duration::from_secs(15 * 60);

/// The three answers: *admit*, or one of the two denials.
pub type Decision = Result<Reservation, Denial>;

/// The two answers that are no admission.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Denial {
    /// Not now.
    WaitUntil(Wait),
    /// Not at this size.
    Never(Never),
}

/// When to ask again, and why not now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wait {
    /// Not before this instant; `None` when only a retune or a settled request can help.
    pub at: Option<MonoTime>,
    /// What decided.
    pub by: Bound,
}

/// What a request waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// Room on this meter: of all, the one that takes longest.
    Meter(Meter),
    /// The provider refused on this meter, and its hold to end.
    Hold(Meter),
    /// A place in flight.
    Concurrency,
    /// An operator to lift a block.
    Block,
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

/// *Admit*: units taken for one request, to be settled with [`Limiter::settle`].
#[derive(Debug, PartialEq)]
#[must_use = "an unsettled reservation holds its place in flight until it expires"]
pub struct Reservation {
    cost: Cost,
    at: MonoTime,
    /// How many requests were admitted before this one.
    serial: u64,
    slice: Slice,
}

impl Reservation {
    /// What was taken.
    #[must_use]
    pub fn cost(&self) -> Cost {
        self.cost
    }
}

/// One meter. A decision reads all of it and nothing more: a line of the processor's cache.
#[derive(Debug)]
#[repr(C)]
struct Metered {
    meter: Meter,
    largest_request: f64,
    counter: Counter,
}

#[derive(Debug, Clone, Copy)]
struct Oversize {
    meter: Meter,
    serial: u64,
    slice: Slice,
}

/// What few limiters have at a time, and no admission at ease looks at.
#[derive(Debug, Default)]
#[repr(C)]
struct Aside {
    /// The last refusal, while it stands. Who is refused asks again, and a refusal is to be no dearer than an admission.
    refused: Option<(Cost, Bound)>,
    /// Requests in flight that are larger than a meter's burst.
    oversize: Vec<Oversize>,
    /// Meters that were added later: what was reserved before has nothing to get back from them.
    first_serials: Vec<(Meter, u64)>,
    /// Meters taken out of the limits, kept for one window: a meter that flaps must not refill.
    removed: Vec<(Metered, MonoTime)>,
    holds: Vec<Held>,
}

/// The limiter of one tenant in one member.
// In this order: what an admission reads and writes stands together, in few lines of the processor's cache.
#[derive(Debug)]
#[repr(C)]
pub struct Limiter {
    blocked: bool,
    /// There is a hold, or the end of one to be acted on.
    has_holds: bool,
    admitted: u64,
    /// Until when the last refusal stands; zero when something has changed since.
    refused_until: MonoTime,
    aside: Option<Box<Aside>>,
    meters: SmallVec<[Metered; 2]>,
    flights: Concurrency,
}

/// What the meters of a limiter had stored, in units.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Stored(SmallVec<[(Meter, f64); 2]>);

impl Stored {
    /// Lowers it to what other limits let be stored, as a retune lowers a level.
    pub fn retune(&mut self, limits: &Limits) {
        self.0.retain(|(meter, _)| limits.meters.contains_key(meter));
        for (meter, level) in &mut self.0 {
            if let Some(limit) = limits.meters.get(meter) {
                *level = level.min(limit.rate.burst);
            }
        }
    }
}

impl Limiter {
    /// A limiter whose buckets start with one second of rate.
    #[must_use]
    pub fn new(limits: &Limits, now: MonoTime) -> Self {
        Self::with_call_max(limits, CALL_MAX, now)
    }

    /// The same, with reservations that expire when they were not settled for `call_max` (up to a sixth longer).
    #[must_use]
    pub fn with_call_max(limits: &Limits, call_max: Duration, now: MonoTime) -> Self {
        let mut limiter = Self {
            blocked: false,
            has_holds: false,
            admitted: 0,
            refused_until: MonoTime::default(),
            aside: None,
            meters: SmallVec::new(),
            flights: Concurrency::new(call_max, now),
        };
        limiter.retune(limits, now);
        limiter
    }

    /// Lets one request go at once, as far as the rates allow any: for a process that knows of no grant yet, and whose first
    /// call would otherwise wait for what nobody else is sending.
    pub fn top_up_to_one_request(&mut self, now: MonoTime) {
        self.refused_until = MonoTime::default();
        for metered in &mut self.meters {
            if metered.meter.unit == Unit::Requests {
                metered.counter.top_up(1.0, now);
            }
        }
    }

    /// Takes the place of a limiter that [remembered nothing](Self::is_fresh_at), with what was stored there, if it could keep
    /// that. At the rates of now nothing flows in for the time between: nobody knows which they were.
    pub fn restock(&mut self, stored: &Stored, now: MonoTime) {
        for metered in &mut self.meters {
            let kept = stored.0.iter().find(|(meter, _)| *meter == metered.meter);
            metered.counter.restock(kept.map_or(0.0, |(_, level)| *level), now);
        }
    }

    /// What is stored.
    #[must_use]
    pub fn stored(&self, now: MonoTime) -> Stored {
        Stored(self.meters.iter().map(|metered| (metered.meter, metered.counter.level_at(now))).collect())
    }

    fn aside(&mut self) -> &mut Aside {
        self.aside.get_or_insert_default()
    }

    /// Puts new limits in force as of `since`; levels and debts stay.
    pub fn retune(&mut self, limits: &Limits, since: MonoTime) {
        self.refused_until = MonoTime::default();
        self.release_ended(since);
        let (known, gone): (SmallVec<[Metered; 2]>, SmallVec<[Metered; 2]>) = std::mem::take(&mut self.meters)
            .into_iter()
            .partition(|metered| limits.meters.contains_key(&metered.meter));
        self.meters = known;
        for (meter, limit) in &limits.meters {
            if let Some(metered) = self.meters.iter_mut().find(|metered| metered.meter == *meter) {
                metered.retune(limit, since);
                continue;
            }
            let mut metered = self.recall(*meter, since).unwrap_or_else(|| Metered {
                meter: *meter,
                counter: Counter::new(*meter, limit, since),
                largest_request: 0.0,
            });
            metered.retune(limit, since);
            // Another window for the same unit: what was counted in the old one counts in the new one.
            for old in gone.iter().filter(|old| old.meter.unit == meter.unit) {
                metered.counter.carry(&old.counter, since);
            }
            self.meters.push(metered);
            if self.admitted > 0 {
                let first = (*meter, self.admitted);
                let aside = self.aside();
                aside.first_serials.retain(|(known, _)| known != meter);
                aside.first_serials.push(first);
            }
        }
        if let Some(aside) = &mut self.aside {
            aside.removed.retain(|(metered, at)| since.seconds_since(*at) < metered.meter.window.seconds());
        }
        for mut metered in gone {
            metered.counter.pause(since);
            self.aside().removed.push((metered, since));
        }
        self.flights.retune(limits.concurrency);
        self.blocked = limits.blocked;
    }

    fn recall(&mut self, meter: Meter, since: MonoTime) -> Option<Metered> {
        let removed = &mut self.aside.as_mut()?.removed;
        let place = removed.iter().position(|(metered, _)| metered.meter == meter)?;
        let (mut metered, removed_at) = removed.swap_remove(place);
        metered.counter.resume(since);
        (since.seconds_since(removed_at) < meter.window.seconds()).then_some(metered)
    }

    /// Puts these holds in force as of `now`, and no others. A unit whose hold ends starts slowly: what was stored while
    /// nobody could send is not let go at once.
    pub fn hold(&mut self, holds: &[Hold], now: MonoTime) {
        if holds.is_empty() && !self.has_holds {
            return;
        }
        self.refused_until = MonoTime::default();
        self.release_ended(now);
        let told = holds.iter().copied().map(Held::new).collect();
        let ended = std::mem::replace(&mut self.aside().holds, told);
        for mut old in ended {
            match self.aside().holds.iter_mut().find(|held| held.meter == old.meter) {
                // Told again: what was released stays released.
                Some(held) if held.until == old.until => held.released = old.released,
                // Longer or shorter: it ends when it ends.
                Some(held) if held.until > now => {}
                _ => {
                    old.until = old.until.min(now);
                    self.release(&mut old, now);
                }
            }
        }
        self.has_holds = !holds.is_empty();
    }

    fn release(&mut self, held: &mut Held, now: MonoTime) {
        if !std::mem::replace(&mut held.released, true) {
            for metered in self.meters.iter_mut().filter(|metered| metered.meter.unit == held.meter.unit) {
                metered.counter.start_slowly(held.until, now);
            }
        }
    }

    fn holds(&self) -> &[Held] {
        self.aside.as_ref().map_or(&[], |aside| &aside.holds)
    }

    /// Releases the holds that have ended.
    fn release_ended(&mut self, now: MonoTime) {
        if self.has_holds {
            let mut holds = std::mem::take(&mut self.aside().holds);
            for ended in holds.iter_mut().filter(|held| held.until <= now) {
                self.release(ended, now);
            }
            self.has_holds = holds.iter().any(|held| !held.released);
            self.aside().holds = holds;
        }
    }

    /// Until when a request of this cost is held, and on which meter.
    fn held(&self, cost: &Cost, now: MonoTime) -> Option<(MonoTime, Meter)> {
        let holds = self.holds().iter().filter(|held| held.until > now && cost.of(held.meter.unit) > 0.0);
        holds.map(|held| (held.until, held.meter)).max()
    }

    /// Requests admitted, since the limiter began.
    #[must_use]
    pub fn admitted(&self) -> u64 {
        self.admitted
    }

    /// Requests in flight.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.flights.taken()
    }

    /// Reservations that nobody settled in time, since the limiter began.
    #[must_use]
    pub fn expired(&self) -> u64 {
        self.flights.expired()
    }

    /// The level of a meter, in units.
    #[must_use]
    pub fn level_at(&self, meter: Meter, now: MonoTime) -> Option<f64> {
        self.meters.iter().find(|metered| metered.meter == meter).map(|metered| metered.counter.level_at(now))
    }

    /// The longest window of its meters.
    #[must_use]
    pub fn longest_window(&self) -> Duration {
        let seconds = self.meters.iter().map(|metered| metered.meter.window.seconds());
        Duration::from_secs_f64(seconds.fold(0.0, f64::max))
    }

    /// Whether a new one that is [restocked](Self::restock) could take its place: it owes nothing, nothing is missing, nothing is in
    /// flight, and no meter is remembered.
    #[must_use]
    pub fn is_fresh_at(&self, now: MonoTime) -> bool {
        self.flights.taken() == 0
            && self.holds().iter().all(|held| held.until <= now)
            && self.meters.iter().all(|metered| metered.counter.is_fresh_at(now))
            && self
                .aside
                .iter()
                .flat_map(|aside| &aside.removed)
                .all(|(metered, removed_at)| now.seconds_since(*removed_at) >= metered.meter.window.seconds())
    }

    /// Frees the places of calls that began longer ago than any call takes.
    pub fn expire(&mut self, now: MonoTime) {
        self.flights.advance(now);
    }

    /// Decides, and on *admit* takes the units of every meter.
    ///
    /// # Errors
    /// What stands in the way; then nothing was taken.
    #[inline(always)]
    #[allow(clippy::inline_always, reason = "see `Gate::decide`")]
    pub fn decide(&mut self, cost: &Cost, now: MonoTime) -> Decision {
        if let Some(wait) = self.still_refused(cost, now) {
            return Err(Denial::WaitUntil(wait));
        }
        if self.is_open(now) && self.take_at_ease(cost, now) {
            return Ok(self.reservation(cost, now));
        }
        self.decide_with_care(cost, now)
    }

    #[inline(never)]
    fn decide_with_care(&mut self, cost: &Cost, now: MonoTime) -> Decision {
        self.room(cost, now)?;
        Ok(self.take(cost, now))
    }

    /// Decides over two limiters, a pool's and its parent's: both admit, or nothing is taken from either.
    ///
    /// # Errors
    /// What stands in the way; of two waits the later one, and one without an end is later than any.
    pub fn decide_both(
        &mut self,
        parent: &mut Self,
        cost: &Cost,
        now: MonoTime,
    ) -> Result<(Reservation, Reservation), Denial> {
        match (self.room(cost, now), parent.room(cost, now)) {
            (Ok(()), Ok(())) => Ok((self.take(cost, now), parent.take(cost, now))),
            (Err(Denial::Never(never)), _) | (_, Err(Denial::Never(never))) => Err(Denial::Never(never)),
            (Err(Denial::WaitUntil(mine)), Err(Denial::WaitUntil(theirs))) => {
                Err(Denial::WaitUntil(later(mine, theirs)))
            }
            (Err(wait), Ok(())) | (Ok(()), Err(wait)) => Err(wait),
        }
    }

    /// What the last refusal said to a request of the same cost, while it stands.
    #[inline]
    fn still_refused(&self, cost: &Cost, now: MonoTime) -> Option<Wait> {
        if now >= self.refused_until {
            return None;
        }
        let (refused, by) = self.aside.as_ref()?.refused?;
        (refused == *cost).then_some(Wait { at: Some(self.refused_until), by })
    }

    /// Whether nothing but the meters could stand in the way.
    #[inline]
    fn is_open(&self, now: MonoTime) -> bool {
        !self.blocked && !self.has_holds && self.refused_until <= now && self.flights.has_room()
    }

    /// Takes what is needed where every meter is a bucket that has it, in one pass: the way that most admissions take. Else
    /// takes nothing.
    #[inline(always)]
    #[allow(clippy::inline_always, reason = "see `Gate::decide`")]
    fn take_at_ease(&mut self, cost: &Cost, now: MonoTime) -> bool {
        let meters = self.meters.as_mut_slice();
        let takes = |metered: &mut Metered| match &mut metered.counter {
            Counter::Bucket(bucket) => {
                let needed = cost.of(metered.meter.unit);
                needed <= metered.largest_request && bucket.take_if_there(needed, now)
            }
            _ => false,
        };
        let refuses = meters.iter_mut().position(|metered| !takes(metered));
        if let Some(place) = refuses {
            give_back(&mut meters[..place], cost, now);
        }
        refuses.is_none()
    }

    /// Whether there is room on every meter and for one more in flight; nothing is taken.
    ///
    /// # Errors
    /// What stands in the way.
    #[inline(never)]
    pub fn room(&mut self, cost: &Cost, now: MonoTime) -> Result<(), Denial> {
        if let Some(wait) = self.still_refused(cost, now) {
            return Err(Denial::WaitUntil(wait));
        }
        // First: a hold that has ended changes levels.
        self.release_ended(now);
        let held = self.held(cost, now);
        let mut wait = held.map_or(Wait { at: Some(now), by: Bound::Concurrency }, |(until, meter)| Wait {
            at: Some(until),
            by: Bound::Hold(meter),
        });
        for metered in &mut self.meters {
            let needed = cost.of(metered.meter.unit);
            if needed <= 0.0 {
                continue;
            }
            let at = if metered.is_at_ease(needed) {
                metered.counter.reaches_at(needed, now)
            } else if needed > metered.largest_request {
                return Err(Denial::Never(metered.never(needed)));
            } else if metered.counter.burst() <= 0.0
                || oversize_flies(self.aside.as_deref(), &self.flights, metered.meter)
            {
                // A bucket that holds nothing is not full, it is no bucket: a member without a share admits nothing.
                None
            } else {
                let burst = metered.counter.burst();
                metered.counter.reaches_at(burst, now)
            };
            wait = later(wait, Wait { at, by: Bound::Meter(metered.meter) });
        }
        if !self.flights.has_room() {
            self.flights.advance(now);
            if !self.flights.has_room() {
                wait = later(wait, Wait { at: None, by: Bound::Concurrency });
            }
        }
        if self.blocked {
            wait = Wait { at: None, by: Bound::Block };
        }
        if wait.at == Some(now) {
            return Ok(());
        }
        // The end of a hold lowers levels: what is told of the time after it is not the last word.
        if let Some(at) = wait.at.filter(|_| !self.has_holds) {
            self.refused_until = at;
            self.aside().refused = Some((*cost, wait.by));
        }
        Err(Denial::WaitUntil(wait))
    }

    /// Whether no wait would help a request of this cost.
    #[must_use]
    pub fn never(&self, cost: &Cost) -> Option<Never> {
        let too_large = |metered: &&Metered| cost.of(metered.meter.unit) > metered.largest_request;
        self.meters.iter().find(too_large).map(|metered| metered.never(cost.of(metered.meter.unit)))
    }

    fn take(&mut self, cost: &Cost, now: MonoTime) -> Reservation {
        let reservation = self.reservation(cost, now);
        let Reservation { serial, slice, .. } = reservation;
        for metered in &mut self.meters {
            let needed = cost.of(metered.meter.unit);
            if !metered.is_at_ease(needed) {
                let oversize = Oversize { meter: metered.meter, serial, slice };
                self.aside.get_or_insert_default().oversize.push(oversize);
            }
            metered.counter.take(needed, now);
        }
        reservation
    }

    #[inline(always)]
    #[allow(clippy::inline_always, reason = "see `Gate::decide`")]
    fn reservation(&mut self, cost: &Cost, now: MonoTime) -> Reservation {
        self.refused_until = MonoTime::default();
        let serial = self.admitted;
        self.admitted += 1;
        Reservation { cost: *cost, at: now, serial, slice: self.flights.take(now) }
    }

    /// When everything `ahead` plus `cost` will have been supplied, and by which meter last: the honest wait of a newcomer to
    /// the line. How long places in flight are taken nobody knows: they are not counted.
    #[must_use]
    pub fn expected(&self, ahead: &Cost, cost: &Cost, now: MonoTime) -> Wait {
        if self.blocked {
            return Wait { at: None, by: Bound::Block };
        }
        let holds = self.holds().iter().filter(|held| held.until > now && cost.of(held.meter.unit) > 0.0);
        let held = holds.map(|held| Wait { at: Some(held.until), by: Bound::Hold(held.meter) });
        let metered = self.meters.iter().filter(|metered| cost.of(metered.meter.unit) > 0.0).map(|metered| {
            // As in `room`: what is above the member's burst is admitted from a full bucket.
            let own = cost.of(metered.meter.unit).min(metered.counter.burst());
            let at =
                if own > 0.0 { metered.counter.supplies_at(ahead.of(metered.meter.unit) + own, now) } else { None };
            Wait { at, by: Bound::Meter(metered.meter) }
        });
        held.chain(metered).fold(Wait { at: Some(now), by: Bound::Concurrency }, later)
    }

    /// Ends a request. With `charged`, the difference to what was reserved is given back or taken; without, usage is
    /// unknown and counts as fully used. Units of a window that has ended are not given back in a later one.
    #[allow(clippy::needless_pass_by_value, reason = "a reservation is settled once")]
    pub fn settle(&mut self, reservation: Reservation, charged: Option<Cost>, now: MonoTime) {
        self.refused_until = MonoTime::default();
        self.release_ended(now);
        let Reservation { cost, at, serial, slice } = reservation;
        self.flights.advance(now);
        self.flights.give_back(slice);
        let mut first_serials: &[(Meter, u64)] = &[];
        if let Some(aside) = &mut self.aside {
            aside.oversize.retain(|oversize| oversize.serial != serial && self.flights.lives(oversize.slice));
            first_serials = &aside.first_serials;
        }
        let Some(charged) = charged else { return };
        for metered in &mut self.meters {
            let unused = cost.of(metered.meter.unit) - charged.of(metered.meter.unit);
            let older = |(meter, first): &(Meter, u64)| *meter == metered.meter && serial < *first;
            if unused != 0.0 && !first_serials.iter().any(older) {
                metered.counter.give_back(unused, at, now);
            }
        }
    }
}

/// Whether a request larger than the meter's burst is in flight.
fn oversize_flies(aside: Option<&Aside>, flights: &Concurrency, meter: Meter) -> bool {
    let oversize = aside.map_or(&[][..], |aside| &aside.oversize);
    oversize.iter().any(|oversize| oversize.meter == meter && flights.lives(oversize.slice))
}

/// What was taken of these meters, all of them buckets.
#[cold]
fn give_back(meters: &mut [Metered], cost: &Cost, now: MonoTime) {
    for metered in meters {
        metered.counter.give_back(cost.of(metered.meter.unit), now, now);
    }
}

impl Metered {
    fn retune(&mut self, limit: &MeterLimit, since: MonoTime) {
        self.counter.retune(self.meter, limit, since);
        self.largest_request = limit.largest_request;
    }

    /// Whether a request is neither larger than the burst nor than any could be.
    fn is_at_ease(&self, needed: f64) -> bool {
        needed <= self.largest_request && needed <= self.counter.burst()
    }

    fn never(&self, needed: f64) -> Never {
        Never { meter: self.meter, needed, largest_request: self.largest_request }
    }
}

/// The wait that ends last; one whose end nobody knows ends last of all.
#[inline]
fn later(one: Wait, other: Wait) -> Wait {
    let end = |wait: &Wait| wait.at.unwrap_or(MonoTime(u64::MAX));
    if end(&one) >= end(&other) { one } else { other }
}
