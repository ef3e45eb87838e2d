//! What others do, each by what is published of it.

use std::time::Duration;

use super::clients::Client;
use crate::clock::MonoTime;

/// A token bucket that begins full.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    per_s: f64,
    burst: f64,
    level: f64,
    at: Option<MonoTime>,
}

impl Bucket {
    fn new(per_s: f64, burst: f64) -> Self {
        Self { per_s, burst, level: burst, at: None }
    }

    fn refill(&mut self, now: MonoTime) {
        let span_s = self.at.map_or(0.0, |at| now.seconds_since(at));
        self.level = (self.level + self.per_s * span_s).min(self.burst);
        self.at = Some(now);
    }

    /// When one may go.
    fn ready_at(&mut self, now: MonoTime) -> MonoTime {
        self.refill(now);
        // A hair less: of what was waited for, rounding may lack some.
        if self.level >= 1.0 - 1e-6 {
            now
        } else {
            now.after_seconds(((1.0 - self.level) / self.per_s.max(1e-3)).max(1e-3))
        }
    }

    fn take(&mut self) {
        self.level -= 1.0;
    }
}

/// Nothing but retries with back-off, as client libraries do them.
#[derive(Debug)]
pub struct Retry;

impl Client for Retry {
    const NAME: &'static str = "retry";
    const OF_A_TENANT: bool = true;

    fn new(_part_per_s: f64) -> Self {
        Self
    }
    fn ready_at(&mut self, _in_flight: usize, now: MonoTime) -> MonoTime {
        now
    }
    fn sent(&mut self, _now: MonoTime) {}
    fn answered(&mut self, _took: Duration, _in_flight: usize, _now: MonoTime) {}
    fn refused(&mut self, _retry_after_s: Option<f64>, _now: MonoTime) {}
}

/// Weighted parts of what the operator believes the limit to be, an equal one for each process, and back-off.
#[derive(Debug)]
pub struct Fixed(Bucket);

impl Client for Fixed {
    const NAME: &'static str = "static";
    const OF_A_TENANT: bool = true;

    fn new(part_per_s: f64) -> Self {
        Self(Bucket::new(part_per_s, part_per_s.max(1.0)))
    }
    fn ready_at(&mut self, _in_flight: usize, now: MonoTime) -> MonoTime {
        self.0.ready_at(now)
    }
    fn sent(&mut self, _now: MonoTime) {
        self.0.take();
    }
    fn answered(&mut self, _took: Duration, _in_flight: usize, _now: MonoTime) {}
    fn refused(&mut self, _retry_after_s: Option<f64>, _now: MonoTime) {}
}

/// Additive increase and multiplicative decrease, each process for each tenant by itself: once a second ×0.5 if there was a
/// refusal, else more by a twentieth of what it began with. Begins with its static part.
///
/// Source: Chiu and Jain 1989; a decision for each window of a second as in lance's object store.
#[derive(Debug)]
pub struct Aimd {
    bucket: Bucket,
    step_per_s: f64,
    window_from: Option<MonoTime>,
    throttled: bool,
}

impl Aimd {
    const DECREASE: f64 = 0.5;
    const STEP: f64 = 0.05;

    /// What it sends now, a second.
    #[must_use]
    pub fn per_s(&self) -> f64 {
        self.bucket.per_s
    }

    fn turn(&mut self, now: MonoTime) {
        let from = *self.window_from.get_or_insert(now);
        if now.seconds_since(from) < 1.0 {
            return;
        }
        self.window_from = Some(now);
        self.bucket.refill(now);
        let per_s = if std::mem::take(&mut self.throttled) {
            (self.bucket.per_s * Self::DECREASE).max(1.0 / 60.0)
        } else {
            self.bucket.per_s + self.step_per_s
        };
        (self.bucket.per_s, self.bucket.burst) = (per_s, per_s.max(1.0));
    }
}

impl Client for Aimd {
    const NAME: &'static str = "aimd";
    const OF_A_TENANT: bool = true;
    const BACKS_OFF: bool = false;

    fn new(part_per_s: f64) -> Self {
        let bucket = Bucket::new(part_per_s, part_per_s.max(1.0));
        Self { bucket, step_per_s: Self::STEP * part_per_s, window_from: None, throttled: false }
    }
    fn ready_at(&mut self, _in_flight: usize, now: MonoTime) -> MonoTime {
        self.turn(now);
        self.bucket.ready_at(now)
    }
    fn sent(&mut self, _now: MonoTime) {
        self.bucket.take();
    }
    fn answered(&mut self, _took: Duration, _in_flight: usize, now: MonoTime) {
        self.turn(now);
    }
    fn refused(&mut self, _retry_after_s: Option<f64>, now: MonoTime) {
        self.throttled = true;
        self.turn(now);
    }
}

/// The adaptive retry mode of the AWS SDKs: CUBIC on the rate that was measured, off until the first refusal.
///
/// Source: the SDKs' published algorithm (W(t) = C·(t − K)³ + Wmax, K = ∛(Wmax·(1 − β)/C), β 0.7, C 0.4, rates measured by half
/// seconds with a weight of 0.8, at most twice what was measured, at least 0.5 a second).
#[derive(Debug)]
pub struct AwsAdaptive {
    bucket: Bucket,
    enabled: bool,
    began_at: Option<MonoTime>,
    measured_per_s: f64,
    counted: f64,
    counted_from_s: f64,
    max_per_s: f64,
    throttled_at_s: f64,
}

impl AwsAdaptive {
    const BETA: f64 = 0.7;
    const SCALE: f64 = 0.4;
    const SMOOTH: f64 = 0.8;
    const FILL_MIN: f64 = 0.5;

    fn seconds(&mut self, now: MonoTime) -> f64 {
        now.seconds_since(*self.began_at.get_or_insert(now))
    }

    fn measure(&mut self, now: MonoTime) {
        let half_s = (self.seconds(now) * 2.0).floor() / 2.0;
        self.counted += 1.0;
        if half_s > self.counted_from_s {
            let rate = self.counted / (half_s - self.counted_from_s);
            self.measured_per_s = rate * Self::SMOOTH + self.measured_per_s * (1.0 - Self::SMOOTH);
            (self.counted, self.counted_from_s) = (0.0, half_s);
        }
    }

    fn set(&mut self, per_s: f64, now: MonoTime) {
        let per_s = per_s.min(2.0 * self.measured_per_s);
        self.bucket.refill(now);
        (self.bucket.per_s, self.bucket.burst) = (per_s.max(Self::FILL_MIN), per_s.max(1.0));
        self.bucket.level = self.bucket.level.min(self.bucket.burst);
    }

    /// The rate `t` seconds after a refusal at `max_per_s`.
    #[must_use]
    pub fn cubic(max_per_s: f64, t: f64) -> f64 {
        let k = (max_per_s * (1.0 - Self::BETA) / Self::SCALE).cbrt();
        Self::SCALE * (t - k).powi(3) + max_per_s
    }
}

impl Client for AwsAdaptive {
    const NAME: &'static str = "aws_adaptive";
    const OF_A_TENANT: bool = true;

    fn new(_part_per_s: f64) -> Self {
        Self {
            bucket: Bucket::new(0.0, 0.0),
            enabled: false,
            began_at: None,
            measured_per_s: 0.0,
            counted: 0.0,
            counted_from_s: 0.0,
            max_per_s: 0.0,
            throttled_at_s: 0.0,
        }
    }
    fn ready_at(&mut self, _in_flight: usize, now: MonoTime) -> MonoTime {
        if self.enabled { self.bucket.ready_at(now) } else { now }
    }
    fn sent(&mut self, _now: MonoTime) {
        if self.enabled {
            self.bucket.take();
        }
    }
    fn answered(&mut self, _took: Duration, _in_flight: usize, now: MonoTime) {
        self.measure(now);
        let t = self.seconds(now) - self.throttled_at_s;
        self.set(Self::cubic(self.max_per_s, t), now);
    }
    fn refused(&mut self, _retry_after_s: Option<f64>, now: MonoTime) {
        self.measure(now);
        let rate = if self.enabled { self.measured_per_s.min(self.bucket.per_s) } else { self.measured_per_s };
        self.max_per_s = rate;
        self.throttled_at_s = self.seconds(now);
        self.enabled = true;
        self.set(Self::BETA * rate, now);
    }
}

/// A proxy's cooldown: after a refusal all wait 5 s, or as long as it asks. Source: `LiteLLM`'s router.
#[derive(Debug)]
pub struct Cooldown(MonoTime);

impl Cooldown {
    const COOLDOWN_S: f64 = 5.0;
}

impl Client for Cooldown {
    const NAME: &'static str = "litellm_cooldown";
    const OF_A_TENANT: bool = false;
    const BACKS_OFF: bool = false;

    fn new(_part_per_s: f64) -> Self {
        Self(MonoTime::default())
    }
    fn ready_at(&mut self, _in_flight: usize, _now: MonoTime) -> MonoTime {
        self.0
    }
    fn sent(&mut self, _now: MonoTime) {}
    fn answered(&mut self, _took: Duration, _in_flight: usize, _now: MonoTime) {}
    fn refused(&mut self, retry_after_s: Option<f64>, now: MonoTime) {
        self.0 = self.0.max(now.after_seconds(retry_after_s.unwrap_or(Self::COOLDOWN_S)));
    }
}

/// Adaptive concurrency by round-trip times: once a round trip one more, or a tenth less.
///
/// Source: Vector's adaptive request concurrency (decrease 0.9, weight of the newest 0.4, 2.5 deviations, from 1 up to 200).
#[derive(Debug)]
pub struct Arc {
    limit: usize,
    mean_s: Option<f64>,
    variance: f64,
    reached: bool,
    pushed_back: bool,
    turns_at: Option<MonoTime>,
    window: (f64, u32),
}

impl Arc {
    const DECREASE: f64 = 0.9;
    const ALPHA: f64 = 0.4;
    const DEVIATIONS: f64 = 2.5;
    const MAX: usize = 200;

    /// How many it lets be in flight.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.limit
    }

    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "1 to 200")]
    fn turn(&mut self, now: MonoTime) {
        let turns_at = *self.turns_at.get_or_insert(now);
        if now < turns_at || (self.window.1 == 0 && !self.pushed_back) {
            return;
        }
        let taken = (self.window.1 > 0).then(|| self.window.0 / f64::from(self.window.1));
        let mean_s = self.mean_s.or(taken).unwrap_or(0.0);
        let slow = taken.is_some_and(|s| s >= mean_s + Self::DEVIATIONS * self.variance.sqrt().max(1e-9));
        if self.pushed_back || (slow && self.mean_s.is_some()) {
            self.limit = ((self.limit as f64 * Self::DECREASE) as usize).max(1);
        } else if self.reached && self.limit < Self::MAX && taken.is_some_and(|s| s <= mean_s) {
            self.limit += 1;
        }
        if let Some(taken) = taken {
            let off = taken - mean_s;
            self.mean_s = Some(mean_s + Self::ALPHA * off);
            self.variance = (1.0 - Self::ALPHA) * (self.variance + Self::ALPHA * off * off);
        }
        self.turns_at = Some(now.after_seconds(self.mean_s.unwrap_or(0.1).max(1e-3)));
        (self.reached, self.pushed_back, self.window) = (false, false, (0.0, 0));
    }
}

impl Client for Arc {
    const NAME: &'static str = "vector_arc";
    const OF_A_TENANT: bool = true;

    fn new(_part_per_s: f64) -> Self {
        Self {
            limit: 1,
            mean_s: None,
            variance: 0.0,
            reached: false,
            pushed_back: false,
            turns_at: None,
            window: (0.0, 0),
        }
    }
    fn ready_at(&mut self, in_flight: usize, now: MonoTime) -> MonoTime {
        if in_flight < self.limit {
            return now;
        }
        self.reached = true;
        // Asked again when one ends.
        now + Duration::from_secs(3_600)
    }
    fn sent(&mut self, _now: MonoTime) {}
    fn answered(&mut self, took: Duration, in_flight: usize, now: MonoTime) {
        self.reached |= in_flight >= self.limit;
        self.window = (self.window.0 + took.as_secs_f64(), self.window.1 + 1);
        self.turn(now);
    }
    fn refused(&mut self, _retry_after_s: Option<f64>, now: MonoTime) {
        self.pushed_back = true;
        self.turn(now);
    }
}
