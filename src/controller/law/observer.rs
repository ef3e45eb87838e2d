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
//! *Control.* u = η·r − x + k·(y − y*), y* = min(B/2, 3 s·r + 2·slack), within 5 %…200 % of r.
//!
//! *Bounds.* A new limit re-scales the depth and forgets x: it was learned against the old one.
//! *Rounded levels* (Anthropic's, to 1,000) count by their sharpness σ = r ÷ (r + slack): α and k by σ, β by σ², and the
//! reserve is larger by the rounding. With a limit of 2,000,000 that is nothing; with one of 4,000 the observer goes
//! mostly by what we sent, and a rounding does not look like others' use.
//! *What it ignores.* Cached headers and lying limits (a later issue's trust and quality gates).
//! Source: CONTROL §2.3, §2.14.

use serde::{Deserialize, Serialize};

use crate::clock::MonoTime;

/// α of the g–h filter, per second. Sweep 0.4–0.7 was flat.
const ALPHA: f64 = 0.5;
/// β of the g–h filter, per second. ζ ≈ 0.72 together with α.
const BETA: f64 = 0.12;
/// Gain of the level, per second: a reserve refills with τ = 6.7 s.
const LEVEL_GAIN: f64 = 0.15;
/// The reserve to hold, in seconds of refill: covers what others can take during one feedback delay.
const GUARD_S: f64 = 3.0;
/// Use of a bucket shallower than the guard: its noise reaches empty.
const SHALLOW_USE: f64 = 0.97;
/// From this part of its depth on, a bucket that should be full counts as full: rounding, and the request that brought
/// the reading, hide the rest.
const BRIM: f64 = 0.8;
/// Samples closer than this carry more noise than news.
const SAMPLE_GAP_S: f64 = 0.3;
/// A limit that moved by more than this fraction is a new limit.
const LIMIT_STEP: f64 = 0.01;

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
}

/// Whether a limit is another one, and not the same as it was told a while ago.
pub(super) fn is_news(from_per_s: f64, to_per_s: f64) -> bool {
    (to_per_s - from_per_s).abs() > LIMIT_STEP * from_per_s
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
    last: Sample,
    level: f64,
    others_per_s: f64,
    burst: f64,
}

impl Observer {
    /// Begins with a first sample, nothing assumed of others.
    #[must_use]
    pub fn new(sample: &Sample) -> Self {
        let burst = sample.level.max(sample.limit_per_s);
        Self { last: *sample, level: sample.level, others_per_s: 0.0, burst }
    }

    /// Goes on from what an earlier leader had learned, at the level that a first sample tells: what was sent between the two
    /// nobody has counted. Under another limit what was learned of others says nothing.
    #[must_use]
    pub fn resumed(sample: &Sample, learned: &Learned) -> Self {
        let limit_per_s = sample.limit_per_s;
        if is_news(learned.limit_per_s, limit_per_s) {
            return Self::new(sample);
        }
        let others_per_s = learned.others_per_s.clamp(-limit_per_s, limit_per_s);
        Self { others_per_s, burst: learned.burst.max(sample.level), ..Self::new(sample) }
    }

    /// What is worth telling the next leader.
    #[must_use]
    pub fn learned(&self) -> Learned {
        Learned { limit_per_s: self.last.limit_per_s, others_per_s: self.others_per_s, burst: self.burst }
    }

    /// Takes a newer-sent sample; an older one, or one too close, changes nothing but the limit.
    pub fn update(&mut self, sample: &Sample) {
        let limit_per_s = sample.limit_per_s;
        if sample.sent_at > self.last.sent_at && is_news(self.last.limit_per_s, limit_per_s) {
            // From a limit of nothing no depth follows.
            let ratio = if self.last.limit_per_s > 0.0 { limit_per_s / self.last.limit_per_s } else { 0.0 };
            self.burst = (self.burst * ratio).max(sample.level).max(limit_per_s);
            self.level = sample.level;
            self.others_per_s = 0.0;
            self.last = *sample;
        }
        let span_s = sample.sent_at.seconds_since(self.last.sent_at);
        if span_s < SAMPLE_GAP_S {
            return;
        }
        // The depth is learned: what was seen in the bucket fits in it. It does not fade: a pool in full use for hours
        // never shows its depth, and would lose its reserve.
        self.burst = self.burst.max(sample.level);
        // Below zero when more was given back than taken.
        let own = sample.own - self.last.own;
        let unbounded = self.level + (limit_per_s - self.others_per_s) * span_s - own;
        let predicted = unbounded.min(self.burst);
        let error = sample.level - predicted;
        let sharpness = sharpness(sample);
        self.level = (predicted + (1.0 - (1.0 - ALPHA * sharpness).powf(span_s)) * error).min(self.burst);
        // What flows over a full bucket's rim is nobody's use: near the rim a small miss teaches nothing about others.
        let brimming = unbounded >= self.burst && sample.level >= BRIM * self.burst;
        if !brimming {
            self.others_per_s = (self.others_per_s - BETA * sharpness.powi(2) * error).clamp(-limit_per_s, limit_per_s);
        }
        self.last = *sample;
    }

    /// The level at `now`, given the cumulative units sent until now.
    #[must_use]
    pub fn level_at(&self, now: MonoTime, own_now: f64) -> f64 {
        let span_s = now.seconds_since(self.last.sent_at);
        let own = own_now - self.last.own;
        (self.level + (self.last.limit_per_s - self.others_per_s) * span_s - own).clamp(0.0, self.burst)
    }

    /// What we may send, in units per second.
    #[must_use]
    pub fn capacity_per_s(&self, now: MonoTime, own_now: f64) -> f64 {
        let limit = self.last.limit_per_s;
        let wanted_level = (self.burst / 2.0).min(GUARD_S * limit + self.blur());
        let used = if self.burst > GUARD_S * limit { 1.0 } else { SHALLOW_USE };
        let excess = self.level_at(now, own_now) - wanted_level;
        (used * limit - self.others_per_s + LEVEL_GAIN * sharpness(&self.last) * excess)
            .clamp(0.05 * limit, 2.0 * limit)
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
