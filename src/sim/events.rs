//! The core of a simulation: virtual time, a queue of what is to happen, one die for all that is random, and clocks that drift.
//!
//! Everything follows from the seed: what is due at the same instant happens in the order in which it was planned.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use crate::clock::{Clock, MonoTime, UnixMillis};

/// What is to happen, and the time that it is.
#[derive(Debug)]
pub struct Timeline<E> {
    time: Arc<TrueTime>,
    planned: u64,
    queue: BinaryHeap<Reverse<Due<E>>>,
}

#[derive(Debug)]
struct Due<E> {
    at: MonoTime,
    nth: u64,
    event: E,
}

impl<E> PartialEq for Due<E> {
    fn eq(&self, other: &Self) -> bool {
        self.nth == other.nth
    }
}

impl<E> Eq for Due<E> {}

impl<E> PartialOrd for Due<E> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> Ord for Due<E> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.nth).cmp(&(other.at, other.nth))
    }
}

impl<E> Timeline<E> {
    /// Nothing is planned, and it is `start`.
    #[must_use]
    pub fn new(start: MonoTime) -> Self {
        Self { time: Arc::new(TrueTime(AtomicU64::new(start.0))), planned: 0, queue: BinaryHeap::new() }
    }

    /// The time that it is.
    #[must_use]
    pub fn now(&self) -> MonoTime {
        self.time.get()
    }

    /// The time that it is, for clocks to run by.
    #[must_use]
    pub fn time(&self) -> Arc<TrueTime> {
        self.time.clone()
    }

    /// Plans something for an instant; for now, if that has passed.
    pub fn at(&mut self, at: MonoTime, event: impl Into<E>) {
        self.planned += 1;
        let at = at.max(self.now());
        self.queue.push(Reverse(Due { at, nth: self.planned, event: event.into() }));
    }

    /// Plans something for a while ahead.
    pub fn after(&mut self, span: Duration, event: impl Into<E>) {
        self.at(self.now() + span, event);
    }

    /// What happens next; it is its time then. `None` when nothing is planned.
    pub fn pop(&mut self) -> Option<E> {
        let Reverse(due) = self.queue.pop()?;
        self.time.0.store(due.at.0, Ordering::Relaxed);
        Some(due.event)
    }
}

/// A simulation's time, which each process sees through its own clock.
#[derive(Debug)]
pub struct TrueTime(AtomicU64);

impl TrueTime {
    fn get(&self) -> MonoTime {
        MonoTime(self.0.load(Ordering::Relaxed))
    }
}

/// A process's clock: it began at its own zero, gains or loses, and its wall time is off.
pub struct DriftingClock {
    time: Arc<TrueTime>,
    began_at: MonoTime,
    start: MonoTime,
    ppm: i64,
    wall_off_ms: AtomicI64,
}

impl fmt::Debug for DriftingClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DriftingClock({} ppm, wall {:+} ms)", self.ppm, self.wall_off_ms.load(Ordering::Relaxed))
    }
}

/// The wall time at a simulation's time 0: 2026-11-26T00:00:00Z.
const WALL_START_MS: u64 = 1_795_651_200_000;

impl DriftingClock {
    /// A clock that shows `start` now, gains `ppm` microseconds a second, and whose wall time is off by that much.
    #[must_use]
    pub fn new(time: Arc<TrueTime>, start: MonoTime, ppm: i64, wall_off_ms: i64) -> Self {
        let began_at = time.get();
        Self { time, began_at, start, ppm, wall_off_ms: AtomicI64::new(wall_off_ms) }
    }

    /// Somebody sets the wall clock.
    pub fn set_wall_off(&self, ms: i64) {
        self.wall_off_ms.store(ms, Ordering::Relaxed);
    }

    /// How far the wall time is off, in ms.
    #[must_use]
    pub fn wall_off_ms(&self) -> i64 {
        self.wall_off_ms.load(Ordering::Relaxed)
    }
}

impl Clock for DriftingClock {
    fn now(&self) -> MonoTime {
        let true_ns = self.time.get().0.saturating_sub(self.began_at.0);
        let gained = i128::from(true_ns) * i128::from(self.ppm) / 1_000_000;
        MonoTime(self.start.0 + u64::try_from(i128::from(true_ns) + gained).unwrap_or(0))
    }

    fn wall(&self) -> UnixMillis {
        UnixMillis((WALL_START_MS + self.time.get().0 / 1_000_000).saturating_add_signed(self.wall_off_ms()))
    }
}

/// All that is random in a simulation.
#[derive(Debug)]
pub struct Dice(fastrand::Rng);

impl Dice {
    /// Dice that fall the same way for the same seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        // Seeds are counted up from 0: neighbours are to differ in more than the first throw.
        Self(fastrand::Rng::with_seed(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0x5DEE_CE66))
    }

    /// Whether something of this probability happens.
    pub fn chance(&mut self, probability: f64) -> bool {
        self.0.f64() < probability
    }

    /// 0–1.
    pub fn part(&mut self) -> f64 {
        self.0.f64()
    }

    /// The next gap of a Poisson process of this rate, in seconds.
    pub fn exponential(&mut self, per_second: f64) -> f64 {
        -(1.0 - self.0.f64()).ln() / per_second
    }

    /// A number whose logarithm is normal around that of `median`. (Box and Muller 1958.)
    pub fn log_normal(&mut self, median: f64, sigma: f64) -> f64 {
        let (radius, angle) = ((-2.0 * (1.0 - self.0.f64()).ln()).sqrt(), std::f64::consts::TAU * self.0.f64());
        median * (sigma * radius * angle.cos()).exp()
    }

    /// A whole number of a range.
    pub fn number(&mut self, of: Range<u64>) -> u64 {
        self.0.u64(of)
    }

    /// One of these.
    ///
    /// # Panics
    /// When there is none.
    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.0.usize(0..of.len())]
    }

    /// A span within a range.
    pub fn span(&mut self, of: &Range<Duration>) -> Duration {
        of.start + of.end.saturating_sub(of.start).mul_f64(self.0.f64())
    }
}
