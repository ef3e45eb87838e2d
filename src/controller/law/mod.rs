//! The law: what one meter of a pool can take now. Pure; one [`Step`] per tick, with its inputs and its reason.
//!
//! - *With headers* the provider's bucket is an integrator whose level we are told: hold the level a little above
//!   empty ([`Observer`]). The limit minus what others use is the ceiling.
//! - *Without* (never seen, or older than 15 s) only demand and 429s speak: additive increase, multiplicative
//!   decrease ([`Aimd`]), capped by the last known limit.
//! - *Too coarse* ([`Quality`]): rounding, caching or age hide as much as the bucket holds. AIMD decides.
//! - *Against* the headers ([`Trust`]): 429s that are more than chance while the readings leave room. AIMD decides.
//! - The two are kept in step, so that losing the headers moves nothing.
//! - On top of either, what divided thresholds leave unused is lent out ([`Overcommit`]); a constant where members count
//!   together.
//!
//! Of a pool as a whole, answers that become slow lower its concurrency ([`LatencyLaw`]), and so does a queue on the far side
//! ([`CongestionLaw`]).
//!
//! Every constant is a field of [`LawParams`].
//!
//! Source: CONTROL §2.3 (observer, quality), §2.4 (AIMD), §2.5 (trust), §2.6 (latency), §2.7 (tests), §2.10 (over-commitment).

mod aimd;
mod congestion;
mod latency;
mod observer;
mod overcommit;
mod quality;
mod trust;

use std::time::Duration;

pub use aimd::{Aimd, AimdParams, Traffic};
pub use congestion::{CongestionLaw, CongestionParams, CongestionStep, CutBy};
pub use latency::{Latencies, LatencyLaw, LatencyParams, LatencyStep};
pub use observer::{Learned, Observer, ObserverParams, OpenWindow, Refilled, Sample};
pub use overcommit::{Overcommit, OvercommitParams, Room};
pub use quality::{Quality, QualityParams};
use serde::{Deserialize, Serialize};
pub use trust::{Trust, TrustParams};

use crate::clock::MonoTime;
use crate::observation::Reading;
use crate::plan::Rate;

/// A reading older than this no longer steers.
pub const READING_AGE_MAX: Duration = Duration::from_secs(15);

/// A told capacity that moves by less than this part has not moved.
const TOLD_STEP: f64 = 0.01;
/// A tick that was missed is not made up for, in seconds.
const SPAN_MAX_S: f64 = 2.0;

/// How long it is since the last tick, as far as that counts; nothing at the first.
fn span_s(last: Option<MonoTime>, now: MonoTime) -> f64 {
    last.map_or(0.0, |last| now.seconds_since(last)).min(SPAN_MAX_S)
}

/// The law's constants.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct LawParams {
    /// Level control on headers.
    pub observer: ObserverParams,
    /// Without them.
    pub aimd: AimdParams,
    /// Whether they are good enough.
    pub quality: QualityParams,
    /// Whether they are believed.
    pub trust: TrustParams,
    /// What is lent of what lies idle.
    pub overcommit: OvercommitParams,
    /// Concurrency, of the pool and not of a meter.
    pub latency: LatencyParams,
    /// The same from what the far side tells.
    pub congestion: CongestionParams,
}

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
    /// What a signal says that the pool can take, in units per second, while it says so.
    pub told_per_s: Option<f64>,
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

/// What headers were good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Headers {
    /// There are none, or none of late.
    None,
    /// They steer.
    Steer,
    /// Rounding, caching or age hide as much as the bucket holds.
    Coarse,
    /// 429s contradict them.
    Contradicted,
}

/// One decision for one meter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// How.
    pub mode: Mode,
    /// What headers were good for.
    pub headers: Headers,
    /// What the pool can take now, in units per second.
    pub capacity_per_s: f64,
    /// By how much thresholds may add up to more, as part of each lies idle: 1–4; the constant where it is fixed.
    pub overcommit: f64,
    /// What the provider says it is, in units per second, when it says so.
    pub limit_per_s: Option<f64>,
    /// What others use of it, in units per second (negative: the limit is better than told).
    pub others_per_s: Option<f64>,
    /// The provider's level as estimated now, in units.
    pub level: Option<f64>,
    /// The provider's burst as seen so far, in units.
    pub burst: f64,
}

/// Members have found a new leader within this, and told it what they last read.
pub(super) const HEARD_WITHIN: Duration = Duration::from_secs(3);

/// The law of one meter.
#[derive(Debug, Clone)]
pub struct MeterLaw {
    params: LawParams,
    observer: Option<Observer>,
    /// What an earlier leader had learned, until a first sample.
    learned: Option<Learned>,
    /// Until then a rate above the learned limit may well be what the account's bucket holds, as members are about to tell.
    unheard_until: Option<MonoTime>,
    quality: Quality,
    trust: Trust,
    aimd: Aimd,
    /// The capacity that a signal last told, in units per second.
    told_per_s: Option<f64>,
    overcommit: Overcommit,
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
    pub fn new(start_per_s: f64, params: LawParams) -> Self {
        Self {
            params,
            observer: None,
            learned: None,
            unheard_until: None,
            quality: Quality::new(params.quality),
            trust: Trust::new(params.trust, params.observer.limit_step),
            aimd: Aimd::new(start_per_s, params.aimd),
            told_per_s: None,
            overcommit: Overcommit::new(params.overcommit),
        }
    }

    /// An earlier leader's thresholds added up to so many times the capacity.
    pub fn resume_overcommit(&mut self, factor: f64) {
        self.overcommit.resume(factor);
    }

    /// Thresholds add up to so many times the capacity, 1 or more, whatever is used; `None` learns it.
    pub fn fix_overcommit(&mut self, factor: Option<f64>) {
        self.overcommit.fix(factor);
    }

    /// Goes on from what an earlier leader's law was `age` ago.
    pub fn resume(&mut self, state: &LawState, age: Duration, now: MonoTime) {
        if let Some(ms) = state.decreased_ms_ago {
            self.aimd.resume(now.before(Duration::from_millis(ms).saturating_add(age)));
        }
        self.learned = state.learned;
        self.unheard_until = Some(now + HEARD_WITHIN);
        if let Some((ms, learned)) = state.distrusted_ms.zip(state.learned) {
            self.trust.resume(Duration::from_millis(ms).saturating_sub(age), learned.limit_per_s, now);
        }
    }

    /// What is worth telling the next leader.
    #[must_use]
    pub fn state(&self, now: MonoTime) -> LawState {
        let ms = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        LawState {
            decreased_ms_ago: self.decreased_at().map(|at| ms(now.since(at))),
            learned: self.learned(),
            distrusted_ms: self.trust.left(now).map(ms),
        }
    }

    /// Begins again at another static capacity, where no headers tell what holds; where they do, nothing moves.
    pub fn restart_without_headers(&mut self, start_per_s: f64) {
        self.told_per_s = None;
        self.aimd = Aimd::new(start_per_s, self.params.aimd);
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
        let headers = self.observe(inputs);
        self.be_told(inputs.told_per_s);
        match (&self.observer, headers) {
            (Some(observer), Headers::Steer) => {
                let capacity_per_s = observer.capacity_per_s(inputs.now, inputs.own_now);
                let room = observer.room(inputs.now, inputs.own_now);
                self.aimd.follow(observer.limit_per_s() - observer.others_per_s());
                Step {
                    mode: Mode::Headers,
                    headers,
                    capacity_per_s,
                    overcommit: self.overcommit.step(inputs.now, capacity_per_s, &inputs.traffic, room),
                    limit_per_s: Some(observer.limit_per_s()),
                    others_per_s: Some(observer.others_per_s()),
                    level: Some(observer.level_at(inputs.now, inputs.own_now)),
                    burst: observer.burst(),
                }
            }
            _ => self.grope(inputs, headers),
        }
    }

    /// Takes the newest reading, and says what it is good for.
    fn observe(&mut self, inputs: &Inputs) -> Headers {
        let Some(sample) = inputs.sample.fresh() else { return Headers::None };
        if let Some(observer) = &mut self.observer {
            if sample.sent_at > observer.sampled_at() {
                let predicted = observer.predicted(&sample);
                if let Some(sample) = self.quality.take(&sample, predicted, inputs.now) {
                    observer.update(&sample);
                }
            }
        } else {
            let params = self.params.observer;
            let first = match self.learned.take() {
                Some(learned) => Observer::resumed(&sample, &learned, params),
                None => Observer::new(&sample, params),
            };
            self.observer = Some(first);
        }
        let Some(observer) = &self.observer else { return Headers::None };
        let limit_per_s = observer.limit_per_s();
        // Of a window that is over nobody knows what is left of the next one.
        let over = observer.is_over(inputs.now);
        let level = if over { 0.0 } else { observer.level_at(inputs.now, inputs.own_now) };
        let congested = self.aimd.congested(&inputs.traffic);
        if !self.trust.believes(inputs.now, limit_per_s, level, observer.blur(), congested) {
            return Headers::Contradicted;
        }
        let coarse = sample.refill == Refilled::Untold || self.quality.is_too_coarse(observer.burst(), limit_per_s);
        if coarse { Headers::Coarse } else { Headers::Steer }
    }

    /// Takes what a signal says of the capacity. AIMD's rate moves with it, and begins there when no 429 has taught it otherwise;
    /// while it is told, and for as long as it is silent after that, nothing grows beyond it. 429s still cut.
    fn be_told(&mut self, told_per_s: Option<f64>) {
        let Some(told) = told_per_s else { return };
        match self.told_per_s {
            Some(known) if (told - known).abs() <= TOLD_STEP * known => return,
            Some(known) => self.aimd.scale(told / known),
            None if self.decreased_at().is_none() => self.aimd.follow(told),
            None => {}
        }
        self.told_per_s = Some(told);
    }

    /// A step of AIMD.
    fn grope(&mut self, inputs: &Inputs, headers: Headers) -> Step {
        let nominal = inputs.nominal_per_s;
        let mode = self.aimd.step(inputs.now, nominal.rate, &inputs.traffic);
        if let Some(told) = self.told_per_s {
            self.aimd.cap(told);
        }
        let heard = self.observer.is_some() || self.unheard_until.is_none_or(|until| inputs.now >= until);
        if let Some(learned) = self.learned().filter(|_| heard) {
            self.aimd.cap(learned.limit_per_s);
        }
        let capacity_per_s = self.aimd.rate_per_s();
        let room = if mode == Mode::Cut { Room::Short } else { Room::Above(0.0) };
        Step {
            mode,
            headers,
            capacity_per_s,
            overcommit: self.overcommit.step(inputs.now, capacity_per_s, &inputs.traffic, room),
            limit_per_s: None,
            others_per_s: None,
            level: None,
            burst: self.learned().map_or(nominal.burst, |learned| learned.burst),
        }
    }
}
