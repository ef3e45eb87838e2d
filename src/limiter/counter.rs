//! What counts on one meter: the algorithm that policy chose for it.

use super::limits::{Counting, MeterLimit};
use super::log::ENTRIES_MAX;
use super::{Alignment, Bucket, FixedWindow, SlidingLog, SlidingWindow};
use crate::clock::MonoTime;
use crate::quota::Meter;

/// What a bucket may hold when a hold ends, in seconds of its rate. Those who waited go at the pace of the rate, and not
/// together; the provider, who had just said that it is empty, has not stored more for them either.
const SLOW_START_S: f64 = 0.25;
/// A fixed window that somebody waited for lets its limit go over this part of its length, and over no more than the
/// second, in seconds.
const PACE_PART: f64 = 0.1;
const PACE_MAX_S: f64 = 10.0;

/// A log stays one up to so many times the limit that it is made for.
const LOG_KEPT_UP_TO: f64 = 2.0;
/// What a hold's end takes from a bucket at the most, in seconds of its rate: as much as a tenant is usually let store. One
/// with little rate, that saves up for a request for longer than holds are apart, would never be admitted otherwise.
const DRAINED_MAX_S: f64 = 12.0;

/// A meter's state. Only the bucket stands in place: it is what nearly all meters are, and of its size is this.
#[derive(Debug)]
pub(super) enum Counter {
    Bucket(Bucket),
    Window(Box<Window>),
}

#[derive(Debug)]
pub(super) enum Window {
    Fixed(Paced),
    Sliding(SlidingWindow),
    Log(SlidingLog),
}

/// What every kind of window does under the same name.
macro_rules! any {
    ($window:expr, $kind:ident => $does:expr) => {
        match $window {
            Window::Fixed($kind) => $does,
            Window::Sliding($kind) => $does,
            Window::Log($kind) => $does,
        }
    };
}

/// A fixed window, and the pace at which those who waited for it go.
#[derive(Debug)]
pub(super) struct Paced {
    window: FixedWindow,
    window_s: f64,
    /// The one that runs, or that will.
    pace: Option<Pace>,
    /// When the next one begins: the end of a window that somebody waits for while the pace of the last one runs.
    next: Option<MonoTime>,
}

/// From an instant on, no more than what flows in.
#[derive(Debug)]
struct Pace {
    from: MonoTime,
    flow: Bucket,
}

impl Paced {
    fn pace_per_s(&self) -> f64 {
        self.window.burst() / (self.window_s * PACE_PART).min(PACE_MAX_S)
    }

    fn pace_from(&mut self, from: MonoTime) {
        let mut flow = Bucket::new(self.pace_per_s(), self.window.burst(), from);
        flow.take(flow.level_at(from), from);
        self.pace = Some(Pace { from, flow });
    }

    /// Goes over to the next pace when its window has begun; one that holds nobody up any more is over.
    fn advance(&mut self, now: MonoTime) {
        if let Some(next) = self.next.take_if(|next| now >= *next) {
            self.pace_from(next);
        }
        self.pace.take_if(|pace| now > pace.from && pace.flow.level_at(now) >= pace.flow.burst());
    }

    /// Somebody waits for the window that begins then, and he may not be alone.
    fn expect(&mut self, begins: MonoTime) {
        match &self.pace {
            None => self.pace_from(begins),
            Some(pace) if pace.from < begins => self.next = Some(begins),
            Some(_) => {}
        }
    }

    /// A hold has ended, at `at`. What begins later still begins then.
    fn start_slowly(&mut self, at: MonoTime) {
        match &self.pace {
            Some(pace) if pace.from > at => {
                self.next = self.next.max(Some(pace.from));
                self.pace_from(at);
            }
            _ => self.pace_from(at),
        }
    }

    fn is_fresh_at(&self, now: MonoTime) -> bool {
        let paced = self.pace.as_ref().is_some_and(|pace| pace.flow.level_at(now) < pace.flow.burst());
        !paced && self.window.is_fresh_at(now)
    }

    /// What the window says, and from its beginning on what the pace says too.
    fn later(
        &self,
        window: Option<MonoTime>,
        now: MonoTime,
        pace: impl Fn(&Bucket, MonoTime) -> Option<MonoTime>,
    ) -> Option<MonoTime> {
        match (&self.pace, window?) {
            (Some(Pace { from, flow }), at) if at >= *from => Some(at.max(pace(flow, now.max(*from))?)),
            (_, at) => Some(at),
        }
    }

    fn retune(&mut self, limit: f64, alignment: Alignment, since: MonoTime) {
        self.window.retune(limit, alignment, since);
        let per_s = self.pace_per_s();
        // One that has not begun was for an end that may have moved; who finds no room sets another.
        self.advance(since);
        self.pace.take_if(|pace| since < pace.from);
        self.next = None;
        if let Some(pace) = &mut self.pace {
            pace.flow.retune(per_s, limit, since);
        }
    }

    fn reaches_at(&mut self, units: f64, now: MonoTime) -> Option<MonoTime> {
        self.advance(now);
        let at = self.window.reaches_at(units, now);
        if let Some(at) = at.filter(|at| *at > now) {
            self.expect(at);
        }
        self.later(at, now, |flow, now| flow.reaches_at(units, now))
    }

    fn take(&mut self, units: f64, now: MonoTime) {
        self.advance(now);
        self.window.take(units, now);
        if let Some(pace) = self.pace.as_mut().filter(|pace| now >= pace.from) {
            pace.flow.take(units, now);
        }
    }

    fn give_back(&mut self, units: f64, taken_at: MonoTime, now: MonoTime) {
        self.window.give_back(units, taken_at, now);
        let counts = |pace: &&mut Pace| now >= pace.from && (units < 0.0 || taken_at >= pace.from);
        if let Some(pace) = self.pace.as_mut().filter(counts) {
            pace.flow.give_back(units, now);
        }
    }

    fn level_at(&self, now: MonoTime) -> f64 {
        self.window.level_at(now)
    }

    fn burst(&self) -> f64 {
        self.window.burst()
    }

    fn supplies_at(&self, units: f64, now: MonoTime) -> Option<MonoTime> {
        self.later(self.window.supplies_at(units, now), now, |flow, now| flow.supplies_at(units, now))
    }
}

impl Counter {
    pub(super) fn new(meter: Meter, limit: &MeterLimit, now: MonoTime) -> Self {
        let (units, window_s) = (limit.rate.rate, meter.window.seconds());
        let window = match limit.counting {
            Counting::TokenBucket => {
                return Self::Bucket(Bucket::new(meter.per_second(units), limit.rate.burst, now));
            }
            Counting::FixedWindow(alignment) => {
                let window = FixedWindow::new(units, window_s, alignment, now);
                Window::Fixed(Paced { window, window_s, pace: None, next: None })
            }
            // They begin with a second's rate, as a bucket does, and rise from there.
            Counting::SlidingWindow => {
                let mut window = SlidingWindow::new(meter.per_second(units), window_s, now);
                window.retune(units, now);
                Window::Sliding(window)
            }
            Counting::SlidingLog => {
                let mut log = SlidingLog::new(meter.per_second(units), window_s, now);
                log.retune(units, now);
                Window::Log(log)
            }
        };
        Self::Window(Box::new(window))
    }

    /// The bucket, if it is one.
    #[inline]
    pub(super) fn bucket(&mut self) -> Option<&mut Bucket> {
        match self {
            Self::Bucket(bucket) => Some(bucket),
            Self::Window(_) => None,
        }
    }

    pub(super) fn retune(&mut self, meter: Meter, limit: &MeterLimit, since: MonoTime) {
        if !self.is_retuned(meter, limit, since) {
            let mut other = Self::new(meter, limit, since);
            other.carry(self, since);
            *self = other;
        }
    }

    /// Puts the limit in force, where it is counted as it was.
    fn is_retuned(&mut self, meter: Meter, limit: &MeterLimit, since: MonoTime) -> bool {
        let units = limit.rate.rate;
        let window = match (self, limit.counting) {
            (Self::Bucket(bucket), Counting::TokenBucket) => {
                bucket.retune(meter.per_second(units), limit.rate.burst, since);
                return true;
            }
            (Self::Bucket(_), _) => return false,
            (Self::Window(window), _) => &mut **window,
        };
        match (window, limit.counting) {
            (Window::Fixed(paced), Counting::FixedWindow(alignment)) => paced.retune(units, alignment, since),
            (Window::Sliding(window), Counting::SlidingWindow) => window.retune(units, since),
            (Window::Log(log), Counting::SlidingLog) => log.retune(units, since),
            // A limit about as large as a log is kept for does not go to and fro between the two: each time, all that is counted
            // would count from then on.
            #[allow(clippy::cast_precision_loss, reason = "a thousand")]
            (Window::Log(log), Counting::SlidingWindow) if units <= LOG_KEPT_UP_TO * ENTRIES_MAX as f64 => {
                log.retune(units, since);
            }
            _ => return false,
        }
        true
    }

    pub(super) fn level_at(&self, now: MonoTime) -> f64 {
        match self {
            Self::Bucket(bucket) => bucket.level_at(now),
            Self::Window(window) => any!(&**window, window => window.level_at(now)),
        }
    }

    pub(super) fn burst(&self) -> f64 {
        match self {
            Self::Bucket(bucket) => bucket.burst(),
            Self::Window(window) => any!(&**window, window => window.burst()),
        }
    }

    pub(super) fn reaches_at(&mut self, units: f64, now: MonoTime) -> Option<MonoTime> {
        match self {
            Self::Bucket(bucket) => bucket.reaches_at(units, now),
            Self::Window(window) => any!(&mut **window, window => window.reaches_at(units, now)),
        }
    }

    pub(super) fn supplies_at(&self, units: f64, now: MonoTime) -> Option<MonoTime> {
        match self {
            Self::Bucket(bucket) => bucket.supplies_at(units, now),
            Self::Window(window) => any!(&**window, window => window.supplies_at(units, now)),
        }
    }

    pub(super) fn take(&mut self, units: f64, now: MonoTime) {
        match self {
            Self::Bucket(bucket) => bucket.take(units, now),
            Self::Window(window) => any!(&mut **window, window => window.take(units, now)),
        }
    }

    /// Gives back what was taken at `taken_at`, or takes more.
    pub(super) fn give_back(&mut self, units: f64, taken_at: MonoTime, now: MonoTime) {
        match self {
            Self::Bucket(bucket) => bucket.give_back(units, now),
            Self::Window(window) => any!(&mut **window, window => window.give_back(units, taken_at, now)),
        }
    }

    pub(super) fn is_fresh_at(&self, now: MonoTime) -> bool {
        match self {
            Self::Bucket(bucket) => bucket.is_full_at(now),
            Self::Window(window) => any!(&**window, window => window.is_fresh_at(now)),
        }
    }

    /// Goes on for one that was as full as it could be: a bucket with what was stored in it, and nothing of what may have flowed
    /// in since; a window as full as it can be. What was counted still counts.
    pub(super) fn restock(&mut self, stored: f64, now: MonoTime) {
        match self {
            Self::Bucket(bucket) => {
                bucket.resume(now);
                bucket.top_up(stored, now);
            }
            Self::Window(window) => match &mut **window {
                Window::Fixed(_) => {}
                Window::Sliding(window) => window.raise(),
                Window::Log(log) => log.raise(),
            },
        }
    }

    /// Raises the level to `units` where anything flows at all; a window has given what it gives.
    pub(super) fn top_up(&mut self, units: f64, now: MonoTime) {
        if let Self::Bucket(bucket) = self {
            bucket.top_up(units, now);
        }
    }

    /// The meter is taken out of the limits. Windows go on: they end wherever they are.
    pub(super) fn pause(&mut self, now: MonoTime) {
        if let Self::Bucket(bucket) = self {
            bucket.take(0.0, now);
        }
    }

    /// Nothing flows in any more. Windows go on, as above.
    pub(super) fn halt(&mut self, now: MonoTime) {
        if let Self::Bucket(bucket) = self {
            bucket.retune(0.0, bucket.burst(), now);
        }
    }

    /// The meter is back: nothing was taken while it was away, so nothing flowed in either.
    pub(super) fn resume(&mut self, now: MonoTime) {
        if let Self::Bucket(bucket) = self {
            bucket.resume(now);
        }
    }

    /// A hold has ended, at `at`. What a sliding window lets go follows what was taken before: it is spread already.
    pub(super) fn start_slowly(&mut self, at: MonoTime, now: MonoTime) {
        match self {
            Self::Bucket(bucket) => bucket.drain(SLOW_START_S, DRAINED_MAX_S, at, now),
            Self::Window(window) => {
                if let Window::Fixed(paced) = &mut **window {
                    paced.start_slowly(at);
                }
            }
        }
    }

    /// Goes on from a counter of the same unit over another window, or of another kind: what a window has counted counts
    /// in the new one too; and a bucket holds no more than before.
    pub(super) fn carry(&mut self, old: &Self, now: MonoTime) {
        let counted = match (&*self, old) {
            (Self::Bucket(_), _) | (_, Self::Bucket(_)) => self.level_at(now) - old.level_at(now),
            _ => old.burst() - old.level_at(now),
        };
        if counted > 0.0 {
            self.take(counted, now);
        }
    }
}
