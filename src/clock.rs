//! Time: a monotonic instant that tests can write as a number, and the only place that reads the OS clock.
//!
//! Everything that decides takes a [`MonoTime`]. Wall time ([`UnixMillis`]) serves two ends only: an override's
//! `expires_at`, and showing clock skew.

use std::ops::{Add, AddAssign};
use std::sync::atomic::{AtomicU64, Ordering};
#[allow(clippy::disallowed_types, reason = "the one place that reads wall time")]
use std::time::SystemTime;
use std::time::{Duration, UNIX_EPOCH};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// A monotonic instant: nanoseconds since an arbitrary start of this process's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct MonoTime(pub u64);

/// Wall time, milliseconds since 1970-01-01T00:00:00Z.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UnixMillis(pub u64);

impl UnixMillis {
    /// The same on the calendar; `None` after its end, the year 9999.
    #[must_use]
    pub fn timestamp(self) -> Option<Timestamp> {
        Timestamp::from_millisecond(i64::try_from(self.0).ok()?).ok()
    }
}

impl From<Timestamp> for UnixMillis {
    /// To the millisecond; what is before 1970 is 1970.
    fn from(timestamp: Timestamp) -> Self {
        Self(u64::try_from(timestamp.as_millisecond()).unwrap_or(0))
    }
}

impl MonoTime {
    /// Milliseconds since the clock's start, for tests and tables.
    #[must_use]
    pub const fn from_millis(ms: u64) -> Self {
        Self(ms * 1_000_000)
    }

    /// Time passed since `earlier`; zero when `earlier` lies ahead.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// Seconds passed since `earlier`; zero when `earlier` lies ahead.
    #[must_use]
    pub fn seconds_since(self, earlier: Self) -> f64 {
        self.since(earlier).as_secs_f64()
    }

    /// Nanoseconds passed since `earlier`; zero when `earlier` lies ahead. For the arithmetic of a decision, which a
    /// [`Duration`]'s seconds and fractions would slow down.
    #[must_use]
    #[inline]
    #[allow(clippy::cast_precision_loss, reason = "exact below 104 days, and to a part in 2^53 beyond")]
    pub fn nanos_since(self, earlier: Self) -> f64 {
        // By way of a signed number, which the machine converts in one step: no two instants are 292 years apart.
        self.0.wrapping_sub(earlier.0).cast_signed().max(0) as f64
    }

    /// The instant `span` before this one, not before the clock's start.
    #[must_use]
    pub fn before(self, span: Duration) -> Self {
        Self(self.0.saturating_sub(nanos(span)))
    }

    /// The instant `seconds` ahead; a negative or non-finite span counts as zero, a huge one as forever.
    #[must_use]
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "float-to-int casts saturate")]
    pub fn after_seconds(self, seconds: f64) -> Self {
        // Rounded up: a caller that sleeps until this instant finds its units there, so no wait spins at zero.
        let ns = (seconds.max(0.0) * 1e9).ceil();
        Self(self.0.saturating_add(ns as u64))
    }
}

fn nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

impl Add<Duration> for MonoTime {
    type Output = Self;
    fn add(self, span: Duration) -> Self {
        Self(self.0.saturating_add(nanos(span)))
    }
}

impl Add<Duration> for UnixMillis {
    type Output = Self;
    fn add(self, span: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(span.as_millis()).unwrap_or(u64::MAX)))
    }
}

impl AddAssign<Duration> for MonoTime {
    fn add_assign(&mut self, span: Duration) {
        *self = *self + span;
    }
}

/// Where the shells read time. Pure code never holds one.
pub trait Clock: Send + Sync + 'static {
    /// Monotonic now.
    fn now(&self) -> MonoTime;
    /// Wall-clock now.
    fn wall(&self) -> UnixMillis;
}

/// The machine's clocks, read through `quanta`.
#[derive(Debug, Clone)]
pub struct SystemClock {
    clock: quanta::Clock,
    /// The clock's own reading at the start.
    start: u64,
}

impl SystemClock {
    /// A clock that starts one hour into its own time, so that "a minute ago" never underflows.
    #[must_use]
    pub fn new() -> Self {
        let clock = quanta::Clock::new();
        let start = clock.raw();
        Self { clock, start }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

const START_OFFSET_NS: u64 = 3_600_000_000_000;

impl Clock for SystemClock {
    #[inline]
    fn now(&self) -> MonoTime {
        MonoTime(START_OFFSET_NS + self.clock.delta_as_nanos(self.start, self.clock.raw()))
    }

    #[allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "the one place that reads wall time")]
    fn wall(&self) -> UnixMillis {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        UnixMillis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }
}

/// A clock that moves only when told to.
#[derive(Debug, Default)]
pub struct ManualClock {
    ns: AtomicU64,
    wall_ms: AtomicU64,
}

impl ManualClock {
    /// A clock at `now`, with wall time 0.
    #[must_use]
    pub const fn at(now: MonoTime) -> Self {
        Self { ns: AtomicU64::new(now.0), wall_ms: AtomicU64::new(0) }
    }

    /// Moves both times ahead.
    pub fn advance(&self, span: Duration) {
        self.ns.fetch_add(nanos(span), Ordering::SeqCst);
        self.wall_ms.fetch_add(nanos(span) / 1_000_000, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> MonoTime {
        MonoTime(self.ns.load(Ordering::SeqCst))
    }

    fn wall(&self) -> UnixMillis {
        UnixMillis(self.wall_ms.load(Ordering::SeqCst))
    }
}
