//! What counts on one meter: the algorithm that policy chose for it.

use super::Bucket;
use super::limits::MeterLimit;
use crate::clock::MonoTime;
use crate::quota::Meter;

/// What a bucket may hold when a hold ends, in seconds of its rate. Those who waited go at the pace of the rate, and not
/// together; the provider, who had just said that it is empty, has not stored more for them either.
const SLOW_START_S: f64 = 0.25;

/// A meter's state.
#[derive(Debug)]
pub(super) enum Counter {
    Bucket(Bucket),
}

impl Counter {
    pub(super) fn new(meter: Meter, limit: &MeterLimit, now: MonoTime) -> Self {
        Self::Bucket(Bucket::new(meter.per_second(limit.rate.rate), limit.rate.burst, now))
    }

    pub(super) fn retune(&mut self, meter: Meter, limit: &MeterLimit, since: MonoTime) {
        match self {
            Self::Bucket(bucket) => bucket.retune(meter.per_second(limit.rate.rate), limit.rate.burst, since),
        }
    }

    #[inline]
    pub(super) fn level_at(&self, now: MonoTime) -> f64 {
        match self {
            Self::Bucket(bucket) => bucket.level_at(now),
        }
    }

    #[inline]
    pub(super) fn burst(&self) -> f64 {
        match self {
            Self::Bucket(bucket) => bucket.burst(),
        }
    }

    /// Whether `units` are there.
    #[inline]
    pub(super) fn has(&mut self, units: f64, now: MonoTime) -> bool {
        match self {
            Self::Bucket(bucket) => bucket.has(units, now),
        }
    }

    #[inline]
    pub(super) fn reaches_at(&self, units: f64, now: MonoTime) -> Option<MonoTime> {
        match self {
            Self::Bucket(bucket) => bucket.reaches_at(units, now),
        }
    }

    pub(super) fn supplies_at(&self, units: f64, now: MonoTime) -> Option<MonoTime> {
        match self {
            Self::Bucket(bucket) => bucket.supplies_at(units, now),
        }
    }

    #[inline]
    pub(super) fn take(&mut self, units: f64, now: MonoTime) {
        match self {
            Self::Bucket(bucket) => bucket.take(units, now),
        }
    }

    /// Gives back what was taken at `taken_at`, or takes more.
    pub(super) fn give_back(&mut self, units: f64, _taken_at: MonoTime, now: MonoTime) {
        match self {
            Self::Bucket(bucket) => bucket.give_back(units, now),
        }
    }

    pub(super) fn is_fresh_at(&self, now: MonoTime) -> bool {
        match self {
            Self::Bucket(bucket) => bucket.is_fresh_at(now),
        }
    }

    /// Raises the level to `units` where anything flows at all.
    pub(super) fn top_up(&mut self, units: f64, now: MonoTime) {
        match self {
            Self::Bucket(bucket) => bucket.top_up(units, now),
        }
    }

    /// The meter is taken out of the limits.
    pub(super) fn pause(&mut self, now: MonoTime) {
        match self {
            Self::Bucket(bucket) => bucket.take(0.0, now),
        }
    }

    /// The meter is back: nothing was taken while it was away, so nothing flowed in either.
    pub(super) fn resume(&mut self, now: MonoTime) {
        match self {
            Self::Bucket(bucket) => bucket.resume(now),
        }
    }

    /// A hold has ended.
    pub(super) fn start_slowly(&mut self, at: MonoTime) {
        match self {
            Self::Bucket(bucket) => bucket.drain(SLOW_START_S, at),
        }
    }

    /// Goes on from a counter of the same unit over another window: never with more than that one had.
    pub(super) fn carry(&mut self, old: &Self, now: MonoTime) {
        let more = self.level_at(now) - old.level_at(now);
        if more > 0.0 {
            self.take(more, now);
        }
    }
}
