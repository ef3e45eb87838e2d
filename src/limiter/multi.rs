//! One decision over all meters of a tenant: all of them, or none.
//!
//! - *admit*: every meter has room and a place in flight is free; units are taken from all at once.
//! - *wait until*: not now; the earliest instant at which it could be, and what that hangs on.
//! - *never*: above the largest request that any wait could admit.
//!
//! A cost above the member's own part of a burst, but not above the largest request, is admitted from a full bucket into
//! debt, one in flight per meter: dividing a burst over tenants and members makes no request impossible.

mod reservation;
mod tallied;

use std::time::Duration;

use reservation::By;
pub use reservation::Reservation;
use smallvec::SmallVec;
pub use tallied::Claimed;
use tallied::Tallied;

use super::concurrency::{Concurrency, Slice};
use super::counter::Counter;
use super::decision::{Bound, Decision, Denial, Never, Wait, later};
use super::hold::{Held, Hold};
use super::limits::Limits;
use super::reach::{at_the_end_of, slack};
use crate::clock::MonoTime;
use crate::quota::{Cost, Meter, Unit};

/// How long a reservation may stay unsettled unless told otherwise: longer than any provider answers.
pub const CALL_MAX: Duration = Duration::from_secs(15 * 60);

/// One meter, put together: a limiter keeps the parts apart.
#[derive(Debug)]
struct Metered {
    rule: Rule,
    counter: Counter,
}

/// What no count changes of a meter.
#[derive(Debug, Clone, Copy)]
struct Rule {
    meter: Meter,
    largest_request: f64,
}

#[derive(Debug, Clone, Copy)]
struct Oversize {
    meter: Meter,
    serial: u64,
    slice: Slice,
}

/// What a refusal said. Who is refused asks again, and a refusal is to be no dearer than an admission.
#[derive(Debug, Clone, Copy)]
struct Refused {
    cost: Cost,
    by: Bound,
    until: MonoTime,
}

/// What few limiters have at a time.
#[derive(Debug, Default)]
struct Rare {
    /// Requests in flight that are larger than a meter's burst.
    oversize: Vec<Oversize>,
    /// Meters that were added later, and how many requests were admitted before, which have nothing to get back from
    /// them; while any such may end.
    first_serials: Vec<(Meter, u64)>,
    /// Meters taken out of the limits, kept for one window: a meter that flaps must not refill.
    removed: Vec<(Metered, MonoTime)>,
    holds: Vec<Held>,
    /// Meters that all members count together.
    tallied: Vec<Tallied>,
    /// Whether these are asked where members count them.
    asked_together: bool,
    /// Requests taken for that were not admitted, or are not yet.
    unconfirmed: u64,
}

/// With so many meters an admission may be at ease.
const EASY_METERS: usize = 3;

/// The limiter of one tenant in one member.
// In this order: what an admission at ease reads and writes stands together, in few lines of the processor's cache. Of very many
// tenants none is in the caches; and what two threads write goes to and fro between theirs.
#[derive(Debug)]
#[repr(C)]
pub struct Limiter {
    /// Nothing but a level and places in flight could stand in the way of a request, and nothing but them would change.
    at_ease: bool,
    /// Of each meter, when at ease.
    units: [Unit; EASY_METERS],
    flights: Concurrency,
    admitted: u64,
    counters: SmallVec<[Counter; 2]>,
    /// The last refusal, while it stands.
    refused: Option<Refused>,
    /// Of each meter, in the order of the counters.
    rules: SmallVec<[Rule; 2]>,
    blocked: bool,
    /// There is a hold, or the end of one to be acted on.
    has_holds: bool,
    /// A meter is no bucket, or its burst is more than its largest request; or there are too many meters to be at ease.
    needs_care: bool,
    rare: Option<Box<Rare>>,
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
            at_ease: false,
            units: [Unit::Requests; EASY_METERS],
            flights: Concurrency::new(call_max, now),
            admitted: 0,
            counters: SmallVec::new(),
            refused: None,
            rules: SmallVec::new(),
            blocked: false,
            has_holds: false,
            needs_care: false,
            rare: None,
        };
        limiter.retune(limits, now);
        limiter
    }

    /// Lets one request go at once, as far as the rates allow any: for a process that knows of no grant yet, and whose first
    /// call would otherwise wait for what nobody else is sending.
    pub fn top_up_to_one_request(&mut self, now: MonoTime) {
        self.forget_refusal();
        for (_, counter) in self.meters_mut().filter(|(rule, _)| rule.meter.unit == Unit::Requests) {
            counter.top_up(1.0, now);
        }
    }

    /// Takes the place of a limiter that [remembered nothing](Self::is_fresh_at), with what was stored there, if it could keep
    /// that. At the rates of now nothing flows in for the time between: nobody knows which they were.
    pub fn restock(&mut self, stored: &Stored, now: MonoTime) {
        for (rule, counter) in self.meters_mut() {
            let kept = stored.0.iter().find(|(meter, _)| *meter == rule.meter);
            counter.restock(kept.map_or(0.0, |(_, level)| *level), now);
        }
    }

    /// Nothing flows in from `now` on, until the next retune.
    pub fn halt(&mut self, now: MonoTime) {
        self.counters.iter_mut().for_each(|counter| counter.halt(now));
    }

    /// What is stored.
    #[must_use]
    pub fn stored(&self, now: MonoTime) -> Stored {
        Stored(self.meters().map(|(rule, counter)| (rule.meter, counter.level_at(now))).collect())
    }

    fn meters(&self) -> impl Iterator<Item = (&Rule, &Counter)> {
        self.rules.iter().zip(&self.counters)
    }

    fn meters_mut(&mut self) -> impl Iterator<Item = (&Rule, &mut Counter)> {
        self.rules.iter().zip(&mut self.counters)
    }

    fn rare(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }

    /// Something has changed: the last refusal does not stand any more.
    fn forget_refusal(&mut self) {
        self.refused = None;
        self.judge_ease();
    }

    fn judge_ease(&mut self) {
        let is_in_the_way = |rare: &Rare| !rare.oversize.is_empty() || !rare.first_serials.is_empty();
        self.at_ease = !self.blocked
            && !self.has_holds
            && !self.needs_care
            && self.refused.is_none()
            && !self.rare.as_deref().is_some_and(is_in_the_way);
    }

    fn add(&mut self, Metered { rule, counter }: Metered) {
        self.rules.push(rule);
        self.counters.push(counter);
    }

    /// Puts new limits in force as of `since`; levels and debts stay.
    pub fn retune(&mut self, limits: &Limits, since: MonoTime) {
        self.release_ended(since);
        let rules = std::mem::take(&mut self.rules).into_iter();
        let known = rules.zip(std::mem::take(&mut self.counters)).map(|(rule, counter)| Metered { rule, counter });
        let (known, gone): (SmallVec<[Metered; 2]>, SmallVec<[Metered; 2]>) =
            known.partition(|metered| limits.meters.contains_key(&metered.rule.meter));
        known.into_iter().for_each(|metered| self.add(metered));
        for (meter, limit) in &limits.meters {
            let rule = Rule { meter: *meter, largest_request: limit.largest_request };
            if let Some(place) = self.rules.iter().position(|known| known.meter == *meter) {
                self.counters[place].retune(*meter, limit, since);
                self.rules[place] = rule;
                continue;
            }
            let mut counter = self.recall(*meter, since).unwrap_or_else(|| Counter::new(*meter, limit, since));
            counter.retune(*meter, limit, since);
            // Another window for the same unit: what was counted in the old one counts in the new one.
            for old in gone.iter().filter(|old| old.rule.meter.unit == meter.unit) {
                counter.carry(&old.counter, since);
            }
            self.add(Metered { rule, counter });
            if self.flights.unended() > 0 {
                let first = (*meter, self.admitted);
                let first_serials = &mut self.rare().first_serials;
                first_serials.retain(|(known, _)| known != meter);
                first_serials.push(first);
            }
        }
        if let Some(rare) = &mut self.rare {
            rare.removed.retain(|(metered, at)| since.seconds_since(*at) < metered.rule.meter.window.seconds());
        }
        for mut metered in gone {
            metered.counter.pause(since);
            self.rare().removed.push((metered, since));
        }
        let tallied = limits.meters.iter().filter_map(|(meter, limit)| Tallied::of(*meter, limit));
        let tallied: Vec<Tallied> = tallied.collect();
        if !tallied.is_empty() || self.is_tallied() {
            self.rare().tallied = tallied;
        }
        self.flights.retune(limits.concurrency);
        self.blocked = limits.blocked;
        self.judge_meters();
        self.forget_refusal();
    }

    fn judge_meters(&mut self) {
        let by_burst = |(rule, counter): (&Rule, &mut Counter)| {
            counter.bucket().is_some_and(|bucket| bucket.burst() <= rule.largest_request)
        };
        self.needs_care = self.counters.len() > EASY_METERS || self.is_tallied() || !self.meters_mut().all(by_burst);
        for (unit, rule) in self.units.iter_mut().zip(&self.rules) {
            *unit = rule.meter.unit;
        }
    }

    fn recall(&mut self, meter: Meter, since: MonoTime) -> Option<Counter> {
        let removed = &mut self.rare.as_mut()?.removed;
        let place = removed.iter().position(|(metered, _)| metered.rule.meter == meter)?;
        let (mut metered, removed_at) = removed.swap_remove(place);
        metered.counter.resume(since);
        (since.seconds_since(removed_at) < meter.window.seconds()).then_some(metered.counter)
    }

    /// Puts these holds in force as of `now`, and no others. A unit whose hold ends starts slowly: what was stored while
    /// nobody could send is not let go at once.
    pub fn hold(&mut self, holds: &[Hold], now: MonoTime) {
        if holds.is_empty() && !self.has_holds {
            return;
        }
        self.release_ended(now);
        let told = holds.iter().copied().map(Held::new).collect();
        let ended = std::mem::replace(&mut self.rare().holds, told);
        for mut old in ended {
            match self.rare().holds.iter_mut().find(|held| held.meter == old.meter) {
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
        self.forget_refusal();
    }

    fn release(&mut self, held: &mut Held, now: MonoTime) {
        if !std::mem::replace(&mut held.released, true) {
            for (_, counter) in self.meters_mut().filter(|(rule, _)| rule.meter.unit == held.meter.unit) {
                counter.start_slowly(held.until, now);
            }
        }
    }

    /// Releases the holds that have ended.
    fn release_ended(&mut self, now: MonoTime) {
        if self.has_holds {
            let mut holds = std::mem::take(&mut self.rare().holds);
            for ended in holds.iter_mut().filter(|held| held.until <= now) {
                self.release(ended, now);
            }
            self.has_holds = holds.iter().any(|held| !held.released);
            self.rare().holds = holds;
            self.judge_ease();
        }
    }

    /// The holds that such a request waits for, and until when.
    fn held(&self, cost: &Cost, now: MonoTime) -> impl Iterator<Item = Wait> {
        let holds = self
            .rare
            .iter()
            .flat_map(|rare| &rare.holds)
            .filter(move |held| held.until > now && cost.of(held.meter.unit) > 0.0);
        holds.map(|held| Wait { at: Some(held.until), by: Bound::Hold(held.meter) })
    }

    /// Requests admitted, since the limiter began.
    #[must_use]
    pub fn admitted(&self) -> u64 {
        self.admitted - self.rare.as_ref().map_or(0, |rare| rare.unconfirmed)
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
        self.meters().find(|(rule, _)| rule.meter == meter).map(|(_, counter)| counter.level_at(now))
    }

    /// The longest window of its meters.
    #[must_use]
    pub fn longest_window(&self) -> Duration {
        let seconds = self.rules.iter().map(|rule| rule.meter.window.seconds());
        Duration::from_secs_f64(seconds.fold(0.0, f64::max))
    }

    /// Whether a new one that is [restocked](Self::restock) could take its place: it owes nothing, nothing is missing, nothing is in
    /// flight, and no meter is remembered.
    #[must_use]
    pub fn is_fresh_at(&self, now: MonoTime) -> bool {
        let is_past =
            |(metered, at): &(Metered, MonoTime)| now.seconds_since(*at) >= metered.rule.meter.window.seconds();
        self.flights.taken() == 0
            && self.counters.iter().all(|counter| counter.is_fresh_at(now))
            && self
                .rare
                .as_ref()
                .is_none_or(|rare| rare.holds.iter().all(|held| held.until <= now) && rare.removed.iter().all(is_past))
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
        if !self.at_ease {
            if let Some(wait) = self.still_refused(cost, now) {
                return Err(Denial::WaitUntil(wait));
            }
        } else if self.flights.has_room() && self.take_at_ease(cost, now) {
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
        let Refused { until, by, .. } = self.refused.filter(|refused| refused.until > now && refused.cost == *cost)?;
        Some(Wait { at: Some(until), by })
    }

    /// Takes what is needed where every bucket has it, in one pass: the way that most admissions take. Else takes nothing.
    #[inline(always)]
    #[allow(clippy::inline_always, reason = "see `Gate::decide`")]
    fn take_at_ease(&mut self, cost: &Cost, now: MonoTime) -> bool {
        let counters = self.counters.as_mut_slice();
        let mut meters = self.units.iter().zip(&mut *counters);
        let takes = |(unit, counter): (&Unit, &mut Counter)| {
            counter.bucket().is_some_and(|bucket| bucket.take_if_there(cost.of(*unit), now))
        };
        let refuses = meters.position(|meter| !takes(meter));
        if let Some(place) = refuses {
            give_back(&self.units[..place], counters, cost, now);
        }
        refuses.is_none()
    }

    /// Whether there is room on every meter and for one more in flight; nothing is taken.
    ///
    /// # Errors
    /// What stands in the way.
    pub fn room(&mut self, cost: &Cost, now: MonoTime) -> Result<(), Denial> {
        self.room_of(cost, false, now)
    }

    /// `apart`: meters that are counted together are asked elsewhere.
    #[inline(never)]
    fn room_of(&mut self, cost: &Cost, apart: bool, now: MonoTime) -> Result<(), Denial> {
        if let Some(wait) = self.still_refused(cost, now).filter(|_| !apart) {
            return Err(Denial::WaitUntil(wait));
        }
        // First: a hold that has ended changes levels.
        self.release_ended(now);
        let mut wait = self.held(cost, now).fold(Wait { at: Some(now), by: Bound::Concurrency }, later);
        for (rule, counter) in self.rules.iter().zip(&mut self.counters) {
            let needed = cost.of(rule.meter.unit);
            if needed <= 0.0 {
                continue;
            }
            let burst = counter.burst();
            let at = if rule.is_exceeded_by(needed) {
                return Err(Denial::Never(rule.never(needed)));
            } else if apart && is_tallied(self.rare.as_deref(), rule.meter) {
                Some(now)
            } else if needed <= burst + slack(needed) {
                counter.reaches_at(needed, now)
            } else if burst <= 0.0 || oversize_flies(self.rare.as_deref(), &self.flights, rule.meter) {
                // A bucket that holds nothing is not full, it is no bucket: a member without a share admits nothing.
                None
            } else {
                counter.reaches_at(burst, now)
            };
            wait = later(wait, Wait { at, by: Bound::Meter(rule.meter) });
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
        if let Some(until) = wait.at.filter(|_| !self.has_holds && !apart) {
            self.refused = Some(Refused { cost: *cost, by: wait.by, until });
            self.at_ease = false;
        }
        Err(Denial::WaitUntil(wait))
    }

    /// Whether no wait would help a request of this cost.
    #[must_use]
    pub fn never(&self, cost: &Cost) -> Option<Never> {
        let too_large = |rule: &&Rule| rule.is_exceeded_by(cost.of(rule.meter.unit));
        self.rules.iter().find(too_large).map(|rule| rule.never(cost.of(rule.meter.unit)))
    }

    /// Takes the units whatever is there, into debt if need be: for one who goes before its time.
    pub fn take(&mut self, cost: &Cost, now: MonoTime) -> Reservation {
        let (serial, slice) = self.place(now);
        for (rule, counter) in self.rules.iter().zip(&mut self.counters) {
            let needed = cost.of(rule.meter.unit);
            if needed > counter.burst() + slack(needed) {
                let rare = self.rare.get_or_insert_default();
                rare.oversize.push(Oversize { meter: rule.meter, serial, slice });
            }
            counter.take(needed, now);
        }
        self.forget_refusal();
        Reservation { cost: *cost, at: now, serial, slice: Some(slice), counted: true, by: By::Itself }
    }

    /// Counts a request that goes without anything being taken for it.
    pub fn let_pass(&mut self, cost: &Cost, now: MonoTime) -> Reservation {
        self.admitted += 1;
        Reservation { counted: true, ..Reservation::of_nothing(cost, now) }
    }

    #[inline(always)]
    #[allow(clippy::inline_always, reason = "see `Gate::decide`")]
    fn reservation(&mut self, cost: &Cost, now: MonoTime) -> Reservation {
        let (serial, slice) = self.place(now);
        Reservation { cost: *cost, at: now, serial, slice: Some(slice), counted: true, by: By::Itself }
    }

    /// A number and a place in flight for one more.
    #[inline(always)]
    #[allow(clippy::inline_always, reason = "see `Gate::decide`")]
    fn place(&mut self, now: MonoTime) -> (u64, Slice) {
        let serial = self.admitted;
        self.admitted += 1;
        (serial, self.flights.take(now))
    }

    /// When everything `ahead` plus `cost` will have been supplied, and by which meter last: the honest wait of a newcomer to
    /// the line. How long places in flight are taken nobody knows: they are not counted.
    #[must_use]
    pub fn expected(&self, ahead: &Cost, cost: &Cost, now: MonoTime) -> Wait {
        self.expected_at_times(1.0, ahead, cost, now)
    }

    /// The soonest that it could be if every rate were as many times larger from now on, 1 or more: each meter's wait divided by
    /// that. A provider's hold is not shorter.
    #[must_use]
    pub fn expected_at_times(&self, growth: f64, ahead: &Cost, cost: &Cost, now: MonoTime) -> Wait {
        if self.blocked {
            return Wait { at: None, by: Bound::Block };
        }
        let metered = self.meters().filter(|(rule, _)| cost.of(rule.meter.unit) > 0.0).map(|(rule, counter)| {
            // As in `room`: what is above the member's burst is admitted from a full bucket.
            let own = cost.of(rule.meter.unit).min(counter.burst());
            let all = ahead.of(rule.meter.unit) + own;
            let at = match self.supplies_together(rule.meter) {
                Some(rate_per_s) if own > 0.0 => at_the_end_of(all / rate_per_s * 1e9, now),
                _ if own > 0.0 => counter.supplies_at(all, now),
                _ => None,
            };
            let at = at.map(|at| if growth > 1.0 { now + at.since(now).div_f64(growth) } else { at });
            Wait { at, by: Bound::Meter(rule.meter) }
        });
        self.held(cost, now).chain(metered).fold(Wait { at: Some(now), by: Bound::Concurrency }, later)
    }

    /// Ends a request. With `charged`, the difference to what was reserved is given back or taken; without, usage is
    /// unknown and counts as fully used. Units of a window that has ended are not given back in a later one.
    #[allow(clippy::needless_pass_by_value, reason = "a reservation is settled once")]
    pub fn settle(&mut self, reservation: Reservation, charged: Option<Cost>, now: MonoTime) {
        let Reservation { cost, at, serial, slice: Some(slice), .. } = reservation else { return };
        self.flights.advance(now);
        self.flights.give_back(slice);
        if self.at_ease {
            let Some(charged) = charged else { return };
            for (unit, counter) in self.units.iter().zip(&mut self.counters) {
                give_back_unused(counter, cost.of(*unit) - charged.of(*unit), at, now);
            }
            return;
        }
        self.release_ended(now);
        if let Some(rare) = &mut self.rare {
            rare.oversize.retain(|oversize| oversize.serial != serial && self.flights.lives(oversize.slice));
        }
        let first_serials = self.rare.as_ref().map_or(&[][..], |rare| &rare.first_serials);
        if let Some(charged) = charged {
            for (rule, counter) in self.rules.iter().zip(&mut self.counters) {
                let unused = cost.of(rule.meter.unit) - charged.of(rule.meter.unit);
                let older = |(meter, first): &(Meter, u64)| *meter == rule.meter && serial < *first;
                if !first_serials.iter().any(older) {
                    give_back_unused(counter, unused, at, now);
                }
            }
        }
        if let Some(rare) = self.rare.as_mut().filter(|_| self.flights.unended() == 0) {
            rare.first_serials.clear();
        }
        self.forget_refusal();
    }
}

#[inline]
fn give_back_unused(counter: &mut Counter, units: f64, taken_at: MonoTime, now: MonoTime) {
    if units != 0.0 {
        counter.give_back(units, taken_at, now);
    }
}

/// Whether a request larger than the meter's burst is in flight.
fn oversize_flies(rare: Option<&Rare>, flights: &Concurrency, meter: Meter) -> bool {
    let mut oversize = rare.iter().flat_map(|rare| &rare.oversize);
    oversize.any(|oversize| oversize.meter == meter && flights.lives(oversize.slice))
}

fn is_tallied(rare: Option<&Rare>, meter: Meter) -> bool {
    rare.is_some_and(|rare| rare.tallied.iter().any(|tallied| tallied.meter() == meter))
}

/// What was taken of the first of these buckets, whose units these are.
#[cold]
fn give_back(units: &[Unit], counters: &mut [Counter], cost: &Cost, now: MonoTime) {
    for (unit, counter) in units.iter().zip(counters) {
        counter.give_back(cost.of(*unit), now, now);
    }
}

impl Rule {
    /// By more than the last places of a float that was scaled.
    fn is_exceeded_by(&self, needed: f64) -> bool {
        needed > self.largest_request + slack(needed)
    }

    fn never(&self, needed: f64) -> Never {
        Never { meter: self.meter, needed, largest_request: self.largest_request }
    }
}
