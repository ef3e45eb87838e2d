//! Level control where the provider tells its level.
//!
//! *Why.* A provider's bucket is an integrator, dy/dt = r − x − u: capacity is lost only while it is full, a 429
//! happens only while it is empty. Holding the level between the two gives full use without 429s.
//!
//! *Observer.* A g–h filter over readings dated by the *send* time of their request, with what we sent since counted
//! in: y is the level, x what others take (or what our cost estimates miss):
//!
//! ```text
//! y⁻ = min(B, y + (r − x)·Δ − own)      e = m − y⁻
//! y  = min(B, y⁻ + (1 − (1−α)^Δ)·e)     x = clip(x − β·e, −r, r)
//! ```
//!
//! *Control.* u = η·r − x + k·(y − y*), y* = min(B/2, 3 s·r + 2·slack), within 5 % of r and twice r (twice r − x where the
//! headers lie low and x is below zero).
//!
//! *Fixed windows* fill at their end alone: dy/dt = − x − u, and y is what the first reading of the next one tells. Control is
//! pacing, u = (y − 1 % of the window) ÷ what is left of it − x. When it is over, and nobody has told of the next yet, u = r − x.
//!
//! *Bounds.* A new limit re-scales the depth and forgets x: it was learned against the old one.
//! *Rounded levels* (Anthropic's, to 1,000) count by their sharpness σ = r ÷ (r + slack): α and k by σ, β by σ², and the
//! reserve is larger by the rounding. With a limit of 2,000,000 that is nothing; with one of 4,000 the observer goes
//! mostly by what we sent, and a rounding does not look like others' use.
//! Source: CONTROL §2.3, §2.14.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Room;
use crate::clock::MonoTime;

/// Constants of [`Observer`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ObserverParams {
    /// α of the g–h filter, per second, 0–1. Smaller believes a reading less, larger its noise. Sweep 0.4–0.7 was flat.
    pub alpha: f64,
    /// β of the g–h filter, per second, 0–1; 0 sees no others. ζ ≈ 0.72 together with α.
    pub beta: f64,
    /// k, per second, 0–2. Smaller refills the reserve later, larger swings. τ = 6.7 s.
    pub level_gain: f64,
    /// The reserve to hold, in seconds of refill, 0–60: what others can take during one feedback delay. Smaller is refused more,
    /// larger leaves more unused, once.
    pub guard_s: f64,
    /// Part of the refill that is used of a bucket shallower than the reserve, 0–1: its noise reaches empty.
    pub shallow_use: f64,
    /// From this part of its depth on, a bucket that should be full counts as full, 0–1: rounding, and the request that brought
    /// the reading, hide the rest.
    pub brim: f64,
    /// Below this part of the reserve there is too little, 0–1.
    pub short: f64,
    /// For how long members go on with what is lent after they last heard of a leader, in seconds, above 0.
    pub lent_s: f64,
    /// Samples closer than this carry more noise than news, in seconds, 0 or more.
    pub sample_gap_s: f64,
    /// A limit that moved by more than this part is a new one, 0–1.
    pub limit_step: f64,
    /// Of a full bucket no more than this many times the refill is used at once, 1–10.
    pub rate_max: f64,
    /// And never less than this part of it, 0–1: who sends nothing is told nothing.
    pub rate_min: f64,
    /// So much of a fixed window is left for what is not counted, in parts of the limit, 0–1.
    pub window_reserve: f64,
    /// What is left of a window is spread over this long at least, in seconds, above 0.
    pub window_left_min_s: f64,
}

impl Default for ObserverParams {
    fn default() -> Self {
        Self {
            alpha: 0.5,
            beta: 0.12,
            level_gain: 0.15,
            guard_s: 3.0,
            shallow_use: 0.97,
            brim: 0.8,
            short: 0.7,
            lent_s: 6.0,
            sample_gap_s: 0.3,
            limit_step: 0.01,
            rate_max: 2.0,
            rate_min: 0.05,
            window_reserve: 0.01,
            window_left_min_s: 1.0,
        }
    }
}

/// One reading of the provider's level with what we had sent by then.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    /// When the request that brought it was sent.
    pub sent_at: MonoTime,
    /// The provider's limit, in units per second.
    pub limit_per_s: f64,
    /// The provider's level, in units.
    pub level: f64,
    /// How far off that may be: the provider rounds.
    pub slack: f64,
    /// Units we had sent by `sent_at`, cumulative.
    pub own: f64,
    /// When what is used is given back.
    pub refill: Refilled,
}

/// When a provider gives back what is used.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Refilled {
    /// All the time.
    Always,
    /// All at once, when this window ends.
    AtEndOf(OpenWindow),
    /// All at once, and it does not tell when.
    Untold,
}

impl Refilled {
    fn window(self) -> Option<OpenWindow> {
        if let Self::AtEndOf(window) = self { Some(window) } else { None }
    }
}

/// A fixed window under way.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OpenWindow {
    /// When all is given back, as told.
    pub ends_at: MonoTime,
    /// How long it is.
    pub length: Duration,
}

impl OpenWindow {
    /// Whether this is a later one, and not the same with its end told a little differently.
    fn is_after(&self, other: &Self) -> bool {
        self.ends_at.since(other.ends_at) > self.length / 2
    }
}

/// Whether a limit is another one, and not the same as it was told a while ago.
pub(super) fn is_news(from_per_s: f64, to_per_s: f64, limit_step: f64) -> bool {
    (to_per_s - from_per_s).abs() > limit_step * from_per_s
}

/// What took time to learn of a meter.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Learned {
    /// The limit that it was learned under, in units per second.
    pub limit_per_s: f64,
    /// What others take, in units per second.
    pub others_per_s: f64,
    /// The depth seen so far, in units.
    pub burst: f64,
}

/// How much a reading counts: all, or less where its slack is not small against a second of refill.
fn sharpness(sample: &Sample) -> f64 {
    if sample.slack > 0.0 { sample.limit_per_s / (sample.limit_per_s + sample.slack) } else { 1.0 }
}

/// The observer of one meter.
#[derive(Debug, Clone)]
pub struct Observer {
    params: ObserverParams,
    last: Sample,
    level: f64,
    others_per_s: f64,
    burst: f64,
}

impl Observer {
    /// Begins with a first sample, nothing assumed of others.
    #[must_use]
    pub fn new(sample: &Sample, params: ObserverParams) -> Self {
        let burst = sample.level.max(sample.limit_per_s);
        Self { params, last: *sample, level: sample.level, others_per_s: 0.0, burst }
    }

    /// Goes on from what an earlier leader had learned, at the level that a first sample tells: what was sent between the two
    /// nobody has counted. Under another limit what was learned of others says nothing.
    #[must_use]
    pub fn resumed(sample: &Sample, learned: &Learned, params: ObserverParams) -> Self {
        let limit_per_s = sample.limit_per_s;
        if is_news(learned.limit_per_s, limit_per_s, params.limit_step) {
            return Self::new(sample, params);
        }
        let others_per_s = learned.others_per_s.clamp(-limit_per_s, limit_per_s);
        Self { others_per_s, burst: learned.burst.max(sample.level), ..Self::new(sample, params) }
    }

    /// Where a reading's level should be, if that says anything: not of another limit or window, nor of a full bucket. (An empty
    /// one that stays so while requests are taken is none.)
    #[must_use]
    pub fn predicted(&self, sample: &Sample) -> Option<f64> {
        let news = is_news(self.last.limit_per_s, sample.limit_per_s, self.params.limit_step) || self.is_other(sample);
        let brimming = self.last.refill == Refilled::Always && sample.level >= self.params.brim * self.burst;
        (!brimming && !news).then(|| self.level_at(sample.sent_at, sample.own))
    }

    /// Whether a reading is of another window than the last one, or of another kind of bucket.
    fn is_other(&self, sample: &Sample) -> bool {
        match (sample.refill.window(), self.last.refill.window()) {
            (Some(new), Some(old)) => new.is_after(&old),
            (None, None) => false,
            _ => true,
        }
    }

    /// When the request of the last reading was sent.
    #[must_use]
    pub fn sampled_at(&self) -> MonoTime {
        self.last.sent_at
    }

    /// What is worth telling the next leader.
    #[must_use]
    pub fn learned(&self) -> Learned {
        Learned { limit_per_s: self.last.limit_per_s, others_per_s: self.others_per_s, burst: self.burst }
    }

    /// Takes a newer-sent sample; an older one, or one too close, changes nothing but the limit.
    pub fn update(&mut self, sample: &Sample) {
        let limit_per_s = sample.limit_per_s;
        if sample.sent_at > self.last.sent_at && is_news(self.last.limit_per_s, limit_per_s, self.params.limit_step) {
            // From a limit of nothing no depth follows.
            let ratio = if self.last.limit_per_s > 0.0 { limit_per_s / self.last.limit_per_s } else { 0.0 };
            self.burst = (self.burst * ratio).max(sample.level).max(limit_per_s);
            self.level = sample.level;
            self.others_per_s = 0.0;
            self.last = *sample;
        }
        let span_s = sample.sent_at.seconds_since(self.last.sent_at);
        if sample.refill.window().zip(self.last.refill.window()).is_some_and(|(new, old)| old.is_after(&new)) {
            // Sent later, and counted in the window before.
            return;
        }
        if span_s > 0.0 && self.is_other(sample) {
            // All was given back, or it fills otherwise than was thought. What others take is what it was.
            (self.level, self.last) = (sample.level, *sample);
            self.burst = self.burst.max(sample.level);
            return;
        }
        if span_s < self.params.sample_gap_s {
            return;
        }
        // The depth is learned: what was seen in the bucket fits in it. It does not fade: a pool in full use for hours
        // never shows its depth, and would lose its reserve.
        self.burst = self.burst.max(sample.level);
        // Below zero when more was given back than taken.
        let own = sample.own - self.last.own;
        let unbounded = self.level + (self.refill_per_s(limit_per_s) - self.others_per_s) * span_s - own;
        let predicted = unbounded.min(self.burst);
        let error = sample.level - predicted;
        let sharpness = sharpness(sample);
        self.level = (predicted + (1.0 - (1.0 - self.params.alpha * sharpness).powf(span_s)) * error).min(self.burst);
        // What flows over a full bucket's rim is nobody's use: near the rim a small miss teaches nothing about others.
        let brimming = unbounded >= self.burst && sample.level >= self.params.brim * self.burst;
        if !brimming {
            self.others_per_s =
                (self.others_per_s - self.params.beta * sharpness.powi(2) * error).clamp(-limit_per_s, limit_per_s);
        }
        self.last = *sample;
    }

    /// The level at `now`, given the cumulative units sent until now.
    #[must_use]
    pub fn level_at(&self, now: MonoTime, own_now: f64) -> f64 {
        let span_s = now.seconds_since(self.last.sent_at);
        let own = own_now - self.last.own;
        let filled = (self.refill_per_s(self.last.limit_per_s) - self.others_per_s) * span_s;
        (self.level + filled - own).clamp(0.0, self.burst)
    }

    /// What flows in all the time: of a fixed window nothing does.
    fn refill_per_s(&self, limit_per_s: f64) -> f64 {
        if self.last.refill.window().is_some() { 0.0 } else { limit_per_s }
    }

    /// Whether the window that the last reading was of has ended: nobody has told of the new one yet.
    #[must_use]
    pub fn is_over(&self, now: MonoTime) -> bool {
        self.last.refill.window().is_some_and(|window| now >= window.ends_at)
    }

    /// What we may send, in units per second.
    #[must_use]
    pub fn capacity_per_s(&self, now: MonoTime, own_now: f64) -> f64 {
        let limit = self.last.limit_per_s;
        // Headers that lie low are outdone by as much as they are off.
        let most = self.params.rate_max * (limit - self.others_per_s.min(0.0));
        if let Some(window) = self.last.refill.window() {
            let reserve = self.params.window_reserve * limit * window.length.as_secs_f64();
            let left_s = window.ends_at.seconds_since(now).max(self.params.window_left_min_s);
            let paced = if self.is_over(now) { limit } else { (self.level_at(now, own_now) - reserve) / left_s };
            return (paced - self.others_per_s).clamp(self.params.rate_min * limit, most);
        }
        let wanted_level = self.wanted_level();
        let used = if self.burst > self.params.guard_s * limit { 1.0 } else { self.params.shallow_use };
        let excess = self.level_at(now, own_now) - wanted_level;
        (used * limit - self.others_per_s + self.params.level_gain * sharpness(&self.last) * excess)
            .clamp(self.params.rate_min * limit, most)
    }

    /// The level to hold, in units.
    fn wanted_level(&self) -> f64 {
        (self.burst / 2.0).min(self.params.guard_s * self.last.limit_per_s + self.blur())
    }

    /// What there is, against the level to hold.
    #[must_use]
    pub fn room(&self, now: MonoTime, own_now: f64) -> Room {
        let level = self.level_at(now, own_now);
        if self.last.refill.window().is_some() {
            return if level > self.last.limit_per_s { Room::Above(0.0) } else { Room::Short };
        }
        let wanted = self.wanted_level();
        match level / wanted.max(f64::MIN_POSITIVE) {
            part if part < self.params.short => Room::Short,
            part if part < 1.0 => Room::Little,
            _ => {
                Room::Above(self.last.limit_per_s - self.others_per_s.max(0.0) + (level - wanted) / self.params.lent_s)
            }
        }
    }

    /// How far the level and its estimate can lie apart unseen, in units: a rounding up, and one down.
    #[must_use]
    pub fn blur(&self) -> f64 {
        2.0 * self.last.slack
    }

    /// The provider's limit, in units per second.
    #[must_use]
    pub fn limit_per_s(&self) -> f64 {
        self.last.limit_per_s
    }

    /// What others take, in units per second.
    #[must_use]
    pub fn others_per_s(&self) -> f64 {
        self.others_per_s
    }

    /// The depth seen so far, in units.
    #[must_use]
    pub fn burst(&self) -> f64 {
        self.burst
    }
}
