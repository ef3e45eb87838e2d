//! The law: what one meter of a pool can take now. Pure; one [`Step`] per tick, with its inputs and its reason.
//!
//! - *With headers* the provider's bucket is an integrator whose level we are told: hold the level a little above
//!   empty ([`Observer`]). The limit minus what others use is the ceiling.
//! - *Without* (never seen, or older than 15 s) only demand and 429s speak: additive increase, multiplicative
//!   decrease ([`Aimd`]), capped by the last known limit.
//! - *Against* the headers: 429s that are more than chance while the readings leave room. The headers are wrong, or have
//!   fallen silent just as the limit moved; AIMD decides for 30 s, or until they tell another limit.
//! - The two are kept in step, so that losing the headers moves nothing.
//!
//! Source: CONTROL §2.3 (observer), §2.4 (AIMD), §2.5 (trust), §2.7 (the test for congestion).

mod aimd;
mod observer;

use std::time::Duration;

pub use aimd::{Aimd, Traffic};
use observer::is_news;
pub use observer::{Learned, Observer, Sample};

use serde::{Deserialize, Serialize};

use crate::clock::MonoTime;
use crate::observation::Reading;
use crate::plan::Rate;

/// A reading older than this no longer steers.
pub const READING_AGE_MAX: Duration = Duration::from_secs(15);

/// What the law is told at a tick, for one meter.
#[derive(Debug, Clone, Copy)]
pub struct Inputs {
    /// Now.
    pub now: MonoTime,
    /// The newest-sent reading of the provider's level.
    pub sample: Reading<Sample>,
    /// Units all members have sent until now, cumulative.
    pub own_now: f64,
    /// What members ask for and how their requests ended.
    pub traffic: Traffic,
    /// The static capacity, in units per second, and its burst.
    pub nominal_per_s: Rate,
}

/// How a step was decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Level control on the provider's headers.
    Headers,
    /// AIMD: growing while used.
    Increase,
    /// AIMD: cut on significant 429s.
    Cut,
    /// AIMD: nothing to do.
    Hold,
}

/// One decision for one meter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// How.
    pub mode: Mode,
    /// What the pool can take now, in units per second.
    pub capacity_per_s: f64,
    /// What the provider says it is, in units per second, when it says so.
    pub limit_per_s: Option<f64>,
    /// What others use of it, in units per second (negative: the limit is better than told).
    pub others_per_s: Option<f64>,
    /// The provider's level as estimated now, in units.
    pub level: Option<f64>,
    /// The provider's burst as seen so far, in units.
    pub burst: f64,
}

/// How long contradicted headers are not believed.
const DISTRUST: Duration = Duration::from_secs(30);
/// A level above this many units, and above one second of refill, leaves room: a 429 then contradicts it.
const ROOM_UNITS: f64 = 3.0;

/// Headers that 429s contradicted.
#[derive(Debug, Clone, Copy)]
struct Distrust {
    until: MonoTime,
    limit_per_s: f64,
}

/// Members have found a new leader within this, and told it what they last read.
const HEARD_WITHIN: Duration = Duration::from_secs(3);

/// The law of one meter.
#[derive(Debug, Clone)]
pub struct MeterLaw {
    observer: Option<Observer>,
    /// What an earlier leader had learned, until a first sample.
    learned: Option<Learned>,
    /// Until then a rate above the learned limit may well be what the account's bucket holds, as members are about to tell.
    unheard_until: Option<MonoTime>,
    aimd: Aimd,
    distrust: Option<Distrust>,
}

/// What the law of one meter tells the next leader: times as they are left, no clock is compared.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LawState {
    /// How long ago the last decrease was; absent when there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decreased_ms_ago: Option<u64>,
    /// What headers have taught.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub learned: Option<Learned>,
    /// How long the headers are not believed yet; absent when they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distrusted_ms: Option<u64>,
}

impl MeterLaw {
    /// A law that begins at `start_per_s`: the static capacity, or what an earlier leader had granted.
    #[must_use]
    pub fn new(start_per_s: f64) -> Self {
        Self { observer: None, learned: None, unheard_until: None, aimd: Aimd::new(start_per_s), distrust: None }
    }

    /// Goes on from what an earlier leader's law was `age` ago.
    pub fn resume(&mut self, state: &LawState, age: Duration, now: MonoTime) {
        if let Some(ms) = state.decreased_ms_ago {
            self.aimd.resume(now.before(Duration::from_millis(ms).saturating_add(age)));
        }
        self.learned = state.learned;
        self.unheard_until = Some(now + HEARD_WITHIN);
        self.distrust = state.distrusted_ms.zip(state.learned).map(|(ms, learned)| Distrust {
            until: now + Duration::from_millis(ms).min(DISTRUST).saturating_sub(age),
            limit_per_s: learned.limit_per_s,
        });
    }

    /// What is worth telling the next leader.
    #[must_use]
    pub fn state(&self, now: MonoTime) -> LawState {
        let ms = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        let distrust = self.distrust.filter(|distrust| now < distrust.until);
        LawState {
            decreased_ms_ago: self.decreased_at().map(|at| ms(now.since(at))),
            learned: self.learned(),
            distrusted_ms: distrust.map(|distrust| ms(distrust.until.since(now))),
        }
    }

    /// Begins again at another static capacity, where no headers tell what holds; where they do, nothing moves.
    pub fn restart_without_headers(&mut self, start_per_s: f64) {
        self.aimd = Aimd::new(start_per_s);
    }

    /// When the last decrease was.
    #[must_use]
    pub fn decreased_at(&self) -> Option<MonoTime> {
        self.aimd.decreased_at()
    }

    fn learned(&self) -> Option<Learned> {
        self.observer.as_ref().map(Observer::learned).or(self.learned)
    }

    /// One tick.
    pub fn step(&mut self, inputs: &Inputs) -> Step {
        let nominal = inputs.nominal_per_s;
        if let Some(sample) = inputs.sample.fresh() {
            if let Some(observer) = &mut self.observer {
                observer.update(&sample);
            } else {
                let learned = self.learned.take();
                self.observer =
                    Some(learned.map_or_else(|| Observer::new(&sample), |l| Observer::resumed(&sample, &l)));
            }
            let believed = self.believes(inputs);
            if let Some(observer) = self.observer.as_ref().filter(|_| believed) {
                let capacity_per_s = observer.capacity_per_s(inputs.now, inputs.own_now);
                self.aimd.follow(observer.limit_per_s() - observer.others_per_s());
                return Step {
                    mode: Mode::Headers,
                    capacity_per_s,
                    limit_per_s: Some(observer.limit_per_s()),
                    others_per_s: Some(observer.others_per_s()),
                    level: Some(observer.level_at(inputs.now, inputs.own_now)),
                    burst: observer.burst(),
                };
            }
        }
        let mode = self.aimd.step(inputs.now, nominal.rate, &inputs.traffic);
        let heard = self.observer.is_some() || self.unheard_until.is_none_or(|until| inputs.now >= until);
        if let Some(learned) = self.learned().filter(|_| heard) {
            self.aimd.cap(learned.limit_per_s);
        }
        Step {
            mode,
            capacity_per_s: self.aimd.rate_per_s(),
            limit_per_s: None,
            others_per_s: None,
            level: None,
            burst: self.learned().map_or(nominal.burst, |learned| learned.burst),
        }
    }

    /// Whether the headers are to be believed.
    fn believes(&mut self, inputs: &Inputs) -> bool {
        let Some(observer) = &self.observer else { return false };
        let limit_per_s = observer.limit_per_s();
        let room = observer.level_at(inputs.now, inputs.own_now) > ROOM_UNITS.max(limit_per_s) + observer.blur();
        if room && self.aimd.congested(&inputs.traffic) {
            self.distrust = Some(Distrust { until: inputs.now + DISTRUST, limit_per_s });
        }
        // Another limit is news, believed until it is contradicted too.
        self.distrust = self.distrust.filter(|d| inputs.now < d.until && !is_news(d.limit_per_s, limit_per_s));
        self.distrust.is_none()
    }
}
