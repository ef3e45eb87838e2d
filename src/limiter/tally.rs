//! Counting together: what members ask of a store that counts for all of them, and what that answers.
//!
//! A [`Question`] is one reservation: all of its counts are taken, or none. Each count is taken twice, from what the tenant may take
//! and from what the pool may, so that the pool is exact whatever its tenants' thresholds add up to. [`Tallies`] answers as the store
//! does, number for number: simulations count with it, and tests hold the store's script against it. Time is the store's own, in
//! microseconds: members' clocks matter to nothing.
//!
//! *Token bucket*: a level that begins with a second of the rate; a change of the rate first lets flow in what the old one gave.
//! *Fixed window*: a count, begun by its first use, that ends when its time is over and never later: how long it lasts is set with
//! its first unit and never again. What is larger than the limit begins a window alone, which lasts as many windows as it uses up.
//! *Sliding window*: two counts, of the window that runs by the store's clock and the one before, by the part that is still covered.
//!
//! *Borrowing.* Of buckets, what no tenant needs that still has some of its own is left over: the pool holds much, and none of these
//! has been told to wait for it of late. A tenant that may takes from there, at no cost to its own part. Without it, what one tenant
//! leaves is lost until the next division; if all took freely, small pools would be unfair by a fifth (CONTROL §2.11).
//!
//! What went by a member's share while the store was away is *owed*: it is counted with the next question, whatever that is
//! answered. Nobody knows when it went: of a bucket it is taken before what has flowed in meanwhile is cut to the burst, and leaves
//! a burst's debt at the most; of a window it takes no more than is left of that one. An answer that came too late is as good as
//! none: what was owed is told again, and counted twice within these bounds, on the safe side.

use std::collections::HashMap;
use std::time::Duration;

use super::reach::{EPSILON, slack};
use super::{Alignment, Counting};
use crate::clock::MonoTime;
use crate::plan::Rate;
use crate::quota::{Grantee, Meter, PoolId};

/// How one tally counts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum TallyRule {
    /// A level in units, refilled at a rate.
    TokenBucket {
        /// Units per second.
        rate_per_s: f64,
        /// Units.
        burst: f64,
    },
    /// A limit's worth of units in each window.
    FixedWindow {
        /// Units per window.
        limit: f64,
        /// A window's length, in ms.
        window_ms: u64,
        /// When a window that begins now is over, in ms; its length from now on when absent.
        left_ms: Option<u64>,
    },
    /// A limit's worth of units in any window, counted in two.
    SlidingWindow {
        /// Units per window.
        limit: f64,
        /// A window's length, in ms.
        window_ms: u64,
    },
}

impl TallyRule {
    /// How a meter is counted together that is counted so by one.
    #[must_use]
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a window of whole seconds")]
    pub fn new(meter: Meter, counting: Counting, rate: Rate, now: MonoTime) -> Self {
        let window_ms = (meter.window.seconds() * 1e3) as u64;
        match counting {
            Counting::TokenBucket => Self::TokenBucket { rate_per_s: meter.per_second(rate.rate), burst: rate.burst },
            Counting::FixedWindow(alignment) => {
                let left_ms = match alignment {
                    Alignment::FirstUse => None,
                    Alignment::EndsAt(end) => Some(left_ms(end, window_ms, now)),
                };
                Self::FixedWindow { limit: rate.rate, window_ms, left_ms }
            }
            // A log of all members' requests would be as long as all that they send.
            Counting::SlidingWindow | Counting::SlidingLog => Self::SlidingWindow { limit: rate.rate, window_ms },
        }
    }

    /// What it lets go at once at the most, in units.
    #[must_use]
    pub fn at_once(&self) -> f64 {
        match *self {
            Self::TokenBucket { burst, .. } => burst,
            Self::FixedWindow { limit, .. } | Self::SlidingWindow { limit, .. } => limit,
        }
    }
}

/// To the end of the window that runs now, one of which ends then: more than 0, in ms.
fn left_ms(end: MonoTime, window_ms: u64, now: MonoTime) -> u64 {
    let (end, now) = (end.0 / 1_000_000, now.0 / 1_000_000);
    let left = if end > now {
        // The one that runs may be longer than others, and is told of to its own end.
        let ahead = end - now;
        if ahead <= window_ms + window_ms / 12 { ahead } else { (ahead - 1) % window_ms + 1 }
    } else {
        window_ms - (now - end) % window_ms
    };
    // Members are told of an end a little sooner or later. What begins just before one's own end is the next window already: a short
    // one would give its whole limit, and the next one again.
    if left <= (window_ms / 12).min(1_000) { left + window_ms } else { left }
}

/// One meter of a question.
#[derive(Debug, Clone, PartialEq)]
pub struct Count {
    /// Whose pool.
    pub pool: PoolId,
    /// Whose traffic.
    pub grantee: Grantee,
    /// What is counted.
    pub meter: Meter,
    /// What the tenant may take.
    pub tenant: TallyRule,
    /// What the pool may take.
    pub all: TallyRule,
    /// Units that are needed.
    pub units: u64,
    /// Units that are taken on top if they are there in every tally: a lease.
    pub extra: u64,
    /// Units that went without being counted, taken whatever the answer is.
    pub owed: u64,
    /// Whether a tenant that has used up its own part may take what is left over of the pool.
    pub borrows: bool,
}

/// One reservation, asked of all tallies at once.
#[derive(Debug, Clone, PartialEq)]
pub struct Question {
    /// What all its tallies stand under, in one node of a cluster.
    pub account: PoolId,
    /// What is counted.
    pub counts: Vec<Count>,
}

/// What a question was answered.
#[derive(Debug, Clone, PartialEq)]
pub enum Taken {
    /// All of it was taken.
    All {
        /// Of each count, in which window it was counted, the tenant's and the pool's: for [`Settlement`].
        marks: Vec<[u64; 2]>,
        /// Whether the extra units were taken too.
        extra: bool,
        /// How long the first of the fixed windows that it was counted in still runs.
        window_left: Option<Duration>,
    },
    /// None of it.
    None {
        /// When it could be, from now, if nobody else takes anything; `None` when nobody can tell.
        after: Option<Duration>,
        /// Which count stands in the way for longest.
        count: usize,
    },
}

/// What is given back of a reservation, or was used beyond it.
#[derive(Debug, Clone, PartialEq)]
pub struct Settlement {
    /// As in the question.
    pub account: PoolId,
    /// Of each count its marks, and the units to be given back; below zero for what was used beyond.
    pub counts: Vec<(Count, [u64; 2], i64)>,
}

/// Whose tally, of which meter, counted how.
type Key = (PoolId, Option<Grantee>, Meter, u8);

#[derive(Debug, Clone, Copy)]
enum State {
    Bucket { level: f64, at_us: u64, rate_per_s: f64, burst: f64, waited_us: u64 },
    Fixed { count: u64, ends_ms: u64 },
    Sliding { index: u64, current: u64, earlier: u64 },
}

/// All tallies of a store, in memory.
#[derive(Debug, Clone, Default)]
pub struct Tallies {
    all: HashMap<Key, State>,
}

/// A tally that a question looks at.
struct Looked {
    key: Key,
    state: State,
    rule: TallyRule,
    /// Somebody who has some of his own was told to wait for it now.
    waits: bool,
}

/// Whether there is room now: if not, after how many ms there is, unless nobody can tell.
enum Room {
    Now,
    After(Option<f64>),
}

impl Tallies {
    /// `before` are those that this question has looked at already: what is owed by several tenants is taken from one pool.
    fn look(&self, before: &[[Looked; 2]], count: &Count, nth: usize, now_us: u64) -> Looked {
        let (grantee, rule) = if nth == 0 { (Some(count.grantee.clone()), count.tenant) } else { (None, count.all) };
        let kind = match rule {
            TallyRule::TokenBucket { .. } => 0,
            TallyRule::FixedWindow { .. } => 1,
            TallyRule::SlidingWindow { .. } => 2,
        };
        let key = (count.pool.clone(), grantee, count.meter, kind);
        let earlier = before.iter().rev().flatten().find(|one| one.key == key);
        let known = earlier.map(|one| one.state).or_else(|| self.all.get(&key).copied());
        let state = match (rule, known) {
            (
                TallyRule::TokenBucket { rate_per_s, burst },
                Some(State::Bucket { level, at_us, rate_per_s: was, burst: held, waited_us }),
            ) => {
                let filled =
                    (level + was * seconds(now_us.saturating_sub(at_us)) - float(count.owed)).min(held).min(burst);
                let level = filled.max(level.min(-burst));
                State::Bucket { level, at_us: now_us, rate_per_s, burst, waited_us }
            }
            (TallyRule::TokenBucket { rate_per_s, burst }, _) => {
                let level = (rate_per_s.min(burst) - float(count.owed)).max(-burst);
                State::Bucket { level, at_us: now_us, rate_per_s, burst, waited_us: 0 }
            }
            (TallyRule::FixedWindow { .. }, Some(running @ State::Fixed { ends_ms, .. }))
                if ends_ms > now_us / 1000 =>
            {
                running
            }
            (TallyRule::FixedWindow { .. }, _) => State::Fixed { count: 0, ends_ms: 0 },
            (TallyRule::SlidingWindow { window_ms, .. }, known) => {
                let index = now_us / 1000 / window_ms;
                let (current, earlier) = match known {
                    Some(State::Sliding { index: was, current, earlier }) if was == index => (current, earlier),
                    Some(State::Sliding { index: was, current, .. }) if was + 1 == index => (0, current),
                    _ => (0, 0),
                };
                State::Sliding { index, current, earlier }
            }
        };
        Looked { key, state, rule, waits: false }
    }

    /// Answers a question at `now_us` of the store's clock.
    pub fn take(&mut self, question: &Question, now_us: u64) -> Taken {
        let mut looked: Vec<[Looked; 2]> = Vec::with_capacity(question.counts.len());
        let (mut longest, mut extra, mut fits) = ((Some(0.0), 0), true, true);
        let mut borrowed = Vec::with_capacity(question.counts.len());
        for (nth, count) in question.counts.iter().enumerate() {
            let mut pair = [0, 1].map(|of| {
                let mut one = self.look(&looked, count, of, now_us);
                one.take_owed(count.owed, now_us);
                extra &= matches!(one.room(count.units.saturating_add(count.extra), false, now_us), Room::Now);
                one
            });
            let (room, borrows) = room_of(&mut pair, count, now_us);
            borrowed.push(borrows);
            if let Room::After(after) = room {
                fits = false;
                longest = match (longest, after) {
                    ((None, _), _) => longest,
                    ((Some(most), _), Some(ms)) if ms <= most => longest,
                    (_, after) => (after, nth),
                };
            }
            looked.push(pair);
        }
        extra &= question.counts.iter().any(|count| count.extra > 0);
        let mut marks = Vec::with_capacity(looked.len());
        let mut window_left: Option<u64> = None;
        for ((count, pair), borrows) in question.counts.iter().zip(looked).zip(borrowed) {
            marks.push(pair.map(|mut one| {
                if fits && !(borrows && one.key.1.is_some()) {
                    one.take(count.units + if extra { count.extra } else { 0 }, now_us);
                }
                let mark = if borrows && one.key.1.is_some() { BORROWED } else { one.mark() };
                if let State::Fixed { ends_ms, .. } = one.state
                    && ends_ms > now_us / 1000
                {
                    let left = ends_ms.saturating_sub(now_us / 1000);
                    window_left = Some(window_left.map_or(left, |least| least.min(left)));
                }
                // A bucket that is new begins to fill now, be there room or not.
                let is_bucket = matches!(one.state, State::Bucket { .. });
                if fits || count.owed > 0 || (is_bucket && (one.waits || !self.all.contains_key(&one.key))) {
                    self.all.insert(one.key, one.state);
                }
                mark
            }));
        }
        if fits {
            return Taken::All { marks, extra, window_left: window_left.map(Duration::from_millis) };
        }
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "not negative; casts saturate")]
        let after = longest.0.map(|ms| Duration::from_millis(ms.ceil() as u64));
        Taken::None { after, count: longest.1 }
    }

    /// Settles at `now_us` of the store's clock. Units of a window that is over are given back in no other one.
    pub fn settle(&mut self, settlement: &Settlement, now_us: u64) {
        for (count, marks, back) in &settlement.counts {
            for (of, mark) in marks.iter().enumerate() {
                let mut one = self.look(&[], count, of, now_us);
                let is_fresh = !self.all.contains_key(&one.key);
                one.settle(*mark, *back, now_us);
                // Of a bucket that is not known nothing is missing.
                if !(is_fresh && *back >= 0) {
                    self.all.insert(one.key, one.state);
                }
            }
        }
    }
}

#[allow(clippy::cast_precision_loss, reason = "2^53 us are 285 years")]
fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

#[allow(clippy::cast_precision_loss, reason = "units stay far below 2^53")]
fn float(units: u64) -> f64 {
    units as f64
}

/// Which part of its length a window has behind it.
fn part(now_us: u64, window_ms: u64) -> f64 {
    float(now_us / 1000 % window_ms) / float(window_ms)
}

/// The later of two waits.
fn later(one: Option<f64>, other: Option<f64>) -> Option<f64> {
    Some(one?.max(other?))
}

/// The sooner of two waits.
fn sooner(one: Option<f64>, other: Option<f64>) -> Option<f64> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

/// Whether there is room in the tenant's tally and in the pool's; or what is left over of the pool's is borrowed.
fn room_of([tenant, pool]: &mut [Looked; 2], count: &Count, now_us: u64) -> (Room, bool) {
    let kept = pool.kept_from(tenant, count.units);
    let (own, all) = (tenant.room(count.units, true, now_us), pool.room_above(kept, count.units, true, now_us));
    match (own, all) {
        (Room::Now, Room::Now) => (Room::Now, false),
        (Room::Now, Room::After(after)) => {
            if let State::Bucket { waited_us, .. } = &mut pool.state {
                (*waited_us, pool.waits) = (now_us, true);
            }
            (Room::After(after), false)
        }
        (Room::After(own), all) => {
            let all = if let Room::After(after) = all { after } else { Some(0.0) };
            match pool.left_over(count, now_us) {
                Room::Now => (Room::Now, true),
                Room::After(left) => (Room::After(sooner(later(own, all), left)), false),
            }
        }
    }
}

impl Looked {
    /// Whether so many units are left over of a pool's bucket.
    fn left_over(&self, count: &Count, now_us: u64) -> Room {
        let State::Bucket { level, rate_per_s, burst, waited_us, .. } = self.state else { return Room::After(None) };
        if !count.borrows || burst <= 0.0 || rate_per_s <= 0.0 {
            return Room::After(None);
        }
        let needed = float(count.units).min(burst);
        let much = if burst < 2.0 * needed { needed } else { (2.0 * needed).max(LEFT_OVER * burst) };
        let filled_ms = (much - level) / rate_per_s * 1e3;
        let quiet_ms = (3.0 * needed / rate_per_s).min(QUIET_S) * 1e3;
        let waited_ms = if waited_us == 0 { f64::INFINITY } else { seconds(now_us.saturating_sub(waited_us)) * 1e3 };
        let after_ms = filled_ms.max(quiet_ms - waited_ms);
        if after_ms <= rate_slack_ms(much, rate_per_s) { Room::Now } else { Room::After(Some(after_ms)) }
    }

    /// What of a pool's bucket is kept from this tenant, in units: all of it that is kept from one that has used up its own part,
    /// and nothing from one that has used none.
    fn kept_from(&self, tenant: &Self, units: u64) -> f64 {
        let (State::Bucket { burst, .. }, State::Bucket { level: own, burst: most, .. }) = (self.state, tenant.state)
        else {
            return 0.0;
        };
        let needed = float(units).min(burst);
        if burst < KEPT_FROM * needed || most <= 0.0 {
            return 0.0;
        }
        (KEPT * burst).min(burst - needed) * (1.0 - (own / most).clamp(0.0, 1.0))
    }

    /// Whether so many units are there; what is more than can be at once is admitted from a full one where that is `alone`.
    fn room(&self, units: u64, alone: bool, now_us: u64) -> Room {
        self.room_above(0.0, units, alone, now_us)
    }

    /// The same, where a bucket is to hold so much more.
    fn room_above(&self, kept: f64, units: u64, alone: bool, now_us: u64) -> Room {
        let units = float(units);
        match (self.state, self.rule) {
            (State::Bucket { level, rate_per_s, burst, .. }, _) => {
                let needed = if alone { units.min(burst) } else { units } + kept;
                if burst > 0.0 && level + slack(needed) >= needed {
                    Room::Now
                } else {
                    Room::After((rate_per_s > 0.0 && burst > 0.0).then(|| (needed - level) / rate_per_s * 1e3))
                }
            }
            (State::Fixed { count, ends_ms }, TallyRule::FixedWindow { limit, .. }) => {
                let opens = alone && count == 0 && limit > 0.0;
                if opens || float(count) + units <= limit + EPSILON {
                    Room::Now
                } else {
                    Room::After((limit > 0.0).then(|| float(ends_ms.saturating_sub(now_us / 1000).max(1))))
                }
            }
            (State::Sliding { current, earlier, .. }, TallyRule::SlidingWindow { limit, window_ms }) => {
                let (current, earlier, past) = (float(current), float(earlier), part(now_us, window_ms));
                let counted = earlier * (1.0 - past) + current;
                let needed = if alone { units.min(limit) } else { units };
                if limit > 0.0 && counted + needed <= limit + EPSILON {
                    return Room::Now;
                }
                if limit <= 0.0 {
                    return Room::After(None);
                }
                // In this window, when enough of the one before is out; else in the next one.
                let window = float(window_ms);
                let from = if current + needed <= limit {
                    (1.0 - (limit - current - needed) / earlier - past).max(0.0)
                } else {
                    let later = if current > 0.0 { (1.0 - (limit - needed) / current).max(0.0) } else { 0.0 };
                    1.0 - past + later
                };
                Room::After(Some(from * window))
            }
            _ => Room::After(None),
        }
    }

    /// Of a bucket it is taken already.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "not negative; casts saturate")]
    fn take_owed(&mut self, owed: u64, now_us: u64) {
        let left = match (self.state, self.rule) {
            (State::Fixed { count, .. }, TallyRule::FixedWindow { limit, .. }) => limit - float(count),
            (State::Sliding { current, .. }, TallyRule::SlidingWindow { limit, .. }) => limit - float(current),
            _ => return,
        };
        self.take(owed.min(left.max(0.0).floor() as u64), now_us);
    }

    fn take(&mut self, units: u64, now_us: u64) {
        match (&mut self.state, self.rule) {
            (State::Bucket { level, .. }, _) => *level -= float(units),
            (State::Fixed { count, ends_ms }, TallyRule::FixedWindow { limit, window_ms, left_ms }) if units > 0 => {
                if *ends_ms == 0 {
                    let more = whole_windows_beyond(units, limit);
                    *ends_ms = now_us / 1000 + left_ms.unwrap_or(window_ms) + more * window_ms;
                }
                *count += units;
            }
            (State::Sliding { current, .. }, _) => *current += units,
            _ => {}
        }
    }

    fn mark(&self) -> u64 {
        match self.state {
            State::Bucket { .. } => 0,
            State::Fixed { ends_ms, .. } => ends_ms,
            State::Sliding { index, .. } => index,
        }
    }

    fn settle(&mut self, mark: u64, back: i64, now_us: u64) {
        let given = back.max(0).unsigned_abs();
        match &mut self.state {
            #[allow(clippy::cast_precision_loss, reason = "units stay far below 2^53")]
            State::Bucket { level, burst, .. } if mark != BORROWED => *level = (*level + back as f64).min(*burst),
            State::Fixed { count, ends_ms } => {
                // An end is told by what is left, and by what time it is: a busy store reads the two a little apart.
                if back > 0 && ends_ms.abs_diff(mark) <= SAME_END_MS {
                    *count = count.saturating_sub(given);
                }
            }
            State::Sliding { index, current, earlier } if back > 0 => {
                if *index == mark {
                    *current = current.saturating_sub(given);
                } else if *index == mark + 1 {
                    *earlier = earlier.saturating_sub(given);
                }
            }
            State::Bucket { .. } | State::Sliding { .. } => {}
        }
        if back < 0 && !matches!(self.state, State::Bucket { .. }) {
            self.take(back.unsigned_abs(), now_us);
        }
    }
}

/// The mark of a tenant's bucket from which nothing was taken: it borrowed from the pool.
const BORROWED: u64 = 1;
/// Which part of a pool's burst is kept for tenants that have not used up their own: they hardly wait, however long the others'
/// lines are.
const KEPT: f64 = 0.4;
/// Nothing is kept of a burst of fewer such requests.
const KEPT_FROM: f64 = 4.0;
/// From which part of a pool's burst on something of it is left over.
const LEFT_OVER: f64 = 0.6;
/// For how long nobody may have waited who has some of his own, in seconds; less where three such requests take less.
const QUIET_S: f64 = 3.0;

/// The slack of a level, in ms of its rate.
fn rate_slack_ms(units: f64, rate_per_s: f64) -> f64 {
    slack(units) / rate_per_s * 1e3
}

/// Ends of a window that are told no further apart than this are one.
const SAME_END_MS: u64 = 20;

/// How many windows after its own a request uses up that is larger than the limit.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "not negative; casts saturate")]
fn whole_windows_beyond(units: u64, limit: f64) -> u64 {
    if limit > 0.0 { ((float(units) / limit - EPSILON).ceil() - 1.0).max(0.0) as u64 } else { 0 }
}
