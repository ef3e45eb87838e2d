//! The arithmetic of one meter: what is used of it, and how that is given back — all the time, or when its window ends.

use std::collections::VecDeque;
use std::time::Duration;

use super::account::{MeterTruth, Refusal};
use crate::clock::{MonoTime, UnixMillis};
use crate::provider::{Refill, Semantics, Shown};
use crate::quota::{Meter, Window};

/// Below this, a difference in units is floating-point dust.
const DUST_UNITS: f64 = 1e-6;

/// When windows end: at whole multiples of their length since 1970 by UTC, but days by the provider's own clock where it
/// has one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Calendar {
    pub(super) began_at: MonoTime,
    pub(super) began_unix: UnixMillis,
    pub(super) semantics: &'static Semantics,
}

impl Calendar {
    fn end_of(&self, window: Window, at: MonoTime) -> MonoTime {
        let unix = self.began_unix + at.since(self.began_at);
        let day_left = if window == Window::Day { self.semantics.day_left(unix) } else { None };
        let whole = || {
            let window_ms = whole(window.seconds() * 1e3);
            Duration::from_millis(window_ms - unix.0 % window_ms)
        };
        at + day_left.unwrap_or_else(whole)
    }
}

/// How what is used is given back.
#[derive(Debug, Clone)]
enum Fill {
    /// limit ÷ window per second.
    Continuous,
    /// All of it, at this moment and at each end of a window after it.
    At(MonoTime),
    /// Each unit when it is a window old.
    Log(VecDeque<(MonoTime, f64)>),
}

/// One meter.
#[derive(Debug, Clone)]
pub(super) struct Tally {
    pub(super) meter: Meter,
    pub(super) truth: MeterTruth,
    fill: Fill,
    calendar: Calendar,
    limit: f64,
    hidden_per_second: f64,
    /// The most that can be there.
    burst: f64,
    used: f64,
}

impl Tally {
    /// A meter of which nothing is used and nothing is set.
    pub(super) fn new(meter: Meter, refill: Refill, calendar: Calendar) -> Self {
        let fill = match refill {
            Refill::Continuous => Fill::Continuous,
            Refill::FixedWindow => Fill::At(calendar.end_of(meter.window, calendar.began_at)),
        };
        Self::filling(meter, fill, calendar)
    }

    /// The same, of which the use within the last window counts.
    pub(super) fn sliding(meter: Meter, calendar: Calendar) -> Self {
        Self::filling(meter, Fill::Log(VecDeque::new()), calendar)
    }

    fn filling(meter: Meter, fill: Fill, calendar: Calendar) -> Self {
        let truth = MeterTruth::default();
        Self { meter, truth, fill, calendar, limit: 1.0, hidden_per_second: 0.0, burst: 1.0, used: 0.0 }
    }

    /// New limits; what is used stays used. A bucket holds this part of its limit, a fixed window all of it.
    pub(super) fn set(&mut self, limit: f64, hidden_per_second: f64, part_stored: f64) {
        (self.limit, self.hidden_per_second) = (limit, hidden_per_second);
        self.burst = match self.fill {
            Fill::Continuous => (limit * part_stored).max(1.0),
            Fill::At(_) | Fill::Log(_) => limit,
        };
    }

    /// So much is left, as far as it fits; of a window what is used stays used.
    pub(super) fn keep_level(&mut self, level: f64) {
        if matches!(self.fill, Fill::Continuous) {
            self.used = self.burst - level.min(self.burst);
        }
    }

    /// Units per second.
    fn rate(&self) -> f64 {
        self.limit / self.meter.window.seconds()
    }

    pub(super) fn level(&self) -> f64 {
        self.burst - self.used
    }

    /// Whether anything is used.
    pub(super) fn is_touched(&self) -> bool {
        self.used > 0.0
    }

    pub(super) fn fits(&self, cost: f64) -> bool {
        self.used + cost <= self.burst + DUST_UNITS
    }

    pub(super) fn is_too_large(&self, cost: f64) -> bool {
        cost > self.largest() + DUST_UNITS
    }

    fn largest(&self) -> f64 {
        self.burst.min(self.limit)
    }

    pub(super) fn charge(&mut self, cost: f64, now: MonoTime) {
        self.used += cost;
        if let Fill::Log(log) = &mut self.fill {
            log.push_back((now, cost));
        }
    }

    /// What was charged becomes what it really was. What was given back meanwhile stays so: it is never more than full.
    pub(super) fn correct(&mut self, charged: f64, used: f64) {
        self.used = (self.used + used - charged).max(0.0);
        if let Fill::Log(log) = &mut self.fill
            && let Some((_, units)) = log.back_mut()
        {
            // Of whichever request: it is the sum that counts.
            *units += used - charged;
        }
    }

    /// Somebody else takes so much, as far as it is there.
    pub(super) fn spend(&mut self, units: f64) {
        let taken = units.min(self.level()).max(0.0);
        self.used += taken;
        self.truth.hidden_units += taken;
        self.truth.capacity_units -= taken;
    }

    pub(super) fn seconds_to_fit(&self, cost: f64, now: MonoTime) -> f64 {
        match &self.fill {
            _ if self.fits(cost) => 0.0,
            Fill::Continuous => (self.used + cost - self.burst) / self.rate(),
            Fill::At(end) => end.seconds_since(now),
            Fill::Log(log) => {
                let mut used = self.used;
                let fits = log.iter().find(|(_, units)| {
                    used -= units;
                    used + cost <= self.burst + DUST_UNITS
                });
                let window = self.meter.window.seconds();
                fits.map_or(window, |(at, _)| (window - now.seconds_since(*at)).max(0.0))
            }
        }
    }

    pub(super) fn advance(&mut self, from: MonoTime, now: MonoTime) {
        let mut from = from;
        while let Fill::At(end) = self.fill
            && end <= now
        {
            self.spend(self.hidden_per_second * end.seconds_since(from));
            self.used = 0.0;
            self.truth.capacity_units += self.limit;
            self.fill = Fill::At(self.calendar.end_of(self.meter.window, end));
            from = end;
        }
        let seconds = now.seconds_since(from);
        let window = self.meter.window.seconds();
        match &mut self.fill {
            Fill::Continuous => self.leak(seconds),
            Fill::At(_) => self.spend(self.hidden_per_second * seconds),
            Fill::Log(log) => {
                while let Some((_, units)) = log.front().filter(|(at, _)| now.seconds_since(*at) >= window) {
                    self.used = (self.used - units).max(0.0);
                    self.truth.capacity_units += units;
                    log.pop_front();
                }
            }
        }
    }

    /// Moves `seconds` ahead, exactly: the rates are constant in between, only the two bounds cut the path in pieces.
    fn leak(&mut self, seconds: f64) {
        let (leak, hidden) = (self.rate(), self.hidden_per_second);
        let mut left = seconds;
        let mut taken = 0.0;
        // Overdrawn: hidden use finds no room.
        if self.used > self.burst {
            let alone = ((self.used - self.burst) / leak).min(left);
            self.used = (self.used - leak * alone).max(self.burst);
            left -= alone;
        }
        if hidden > leak {
            // Fills up, then takes just what leaks away.
            let filling = ((self.burst - self.used).max(0.0) / (hidden - leak)).min(left);
            self.used = (self.used + (hidden - leak) * filling).min(self.burst.max(self.used));
            taken += hidden * filling + leak * (left - filling);
        } else {
            self.used = (self.used - (leak - hidden) * left).max(0.0);
            taken += hidden * left;
        }
        self.truth.hidden_units += taken;
        self.truth.capacity_units += leak * seconds - taken;
    }

    pub(super) fn shown(&self, now: MonoTime) -> Shown {
        let reset = match &self.fill {
            Fill::Continuous => {
                let seconds = (self.limit - self.level()) / self.rate();
                Duration::from_millis(whole((seconds * 1_000.0).round()))
            }
            Fill::At(end) => end.since(now),
            Fill::Log(_) => Duration::from_secs_f64(self.seconds_to_fit(1.0, now)),
        };
        let remaining = (self.level() + DUST_UNITS).floor().max(0.0);
        Shown { meter: self.meter, limit: self.limit, remaining, reset: Some(reset) }
    }

    /// A refusal of a request that fits after this time; of one that never does when there is none.
    pub(super) fn refusal(&self, cost: f64, seconds_to_fit: Option<f64>) -> Refusal {
        let retry_after_ms = seconds_to_fit.map(|seconds| whole((seconds * 1_000.0 - DUST_UNITS).ceil().max(1.0)));
        Refusal {
            meter: self.meter,
            limit: whole(if retry_after_ms.is_some() { self.limit } else { self.largest().floor() }),
            used: whole((self.limit - self.level()).ceil()),
            requested: whole(cost),
            retry_after_ms,
        }
    }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "float-to-int casts saturate at 0 and MAX")]
const fn whole(value: f64) -> u64 {
    value as u64
}
