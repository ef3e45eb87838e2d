//! A member's own reaction to one response, with no network between: which meters to hold, and for how long.
//!
//! *Hold*: what the provider asks, up to [`HOLD_MAX`]; without that, as long as the bucket needs to hold the request
//! (continuous refill) or until the window ends (fixed). The time to *full* is never a time to wait: the recorded
//! one was 1m1s where 837 ms were asked. *Long*: goes on to the controller. *Ignores*: everything that is not a
//! refusal. Jitter on release is the caller's.

use std::time::Duration;

use super::{Class, Dialect, Observation, Refill, ResetMeaning, Semantics, ToldWait};
use crate::observation::{Ending, MeterReading, ThrottleKind};
use crate::quota::{Cost, Meter};

/// The longest hold that a member decides by itself. Longer ones are spread by the controller, so that one response
/// (some say 86,400 s) does not silence a member for a day.
pub const HOLD_MAX: Duration = Duration::from_secs(60);

/// The hold when neither a limit nor a wait is known: below any limit's grain that matters, above a tight loop.
const HOLD_UNTOLD: Duration = Duration::from_millis(500);

/// A meter on which nothing is to be sent for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hold {
    /// Which meter.
    pub meter: Meter,
    /// For how long, without jitter.
    pub for_at_least: Duration,
}

/// What a member does at once.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reflex {
    /// What to hold, none longer than [`HOLD_MAX`].
    pub holds: Vec<Hold>,
    /// The whole wait, when it is longer than [`HOLD_MAX`]: for the controller, on the meters in `holds`.
    pub long: Option<Duration>,
    /// The provider is overloaded: how long to back off. No meter of ours is spent.
    pub overload: Option<Duration>,
}

/// The reaction to one response of a request that cost `cost`.
#[must_use]
pub fn reflex(dialect: Dialect, observation: &Observation, cost: &Cost) -> Reflex {
    let dialect = if dialect == Dialect::Auto { observation.dialect } else { dialect };
    dialect.semantics().reflex(observation, cost)
}

impl Semantics {
    /// The reaction to one response of a request that cost `cost`.
    #[must_use]
    pub fn reflex(&self, observation: &Observation, cost: &Cost) -> Reflex {
        match observation.ending {
            Ending::Succeeded | Ending::Ignored => Reflex::default(),
            Ending::Throttled(ThrottleKind::Overload) => {
                Reflex { overload: Some(observation.retry_after.unwrap_or(HOLD_UNTOLD)), ..Reflex::default() }
            }
            Ending::Throttled(_) => {
                let waits: Vec<Hold> = self
                    .meant(observation, cost)
                    .into_iter()
                    .map(|meter| Hold { meter, for_at_least: self.wait(observation, meter, cost) })
                    .collect();
                let longest = waits.iter().map(|hold| hold.for_at_least).max();
                let cap = |hold: Hold| Hold { for_at_least: hold.for_at_least.min(HOLD_MAX), ..hold };
                Reflex {
                    holds: waits.into_iter().map(cap).collect(),
                    long: longest.filter(|wait| *wait > HOLD_MAX),
                    overload: None,
                }
            }
        }
    }

    /// How long a refusal says to wait, whole, for a request that costs `cost`: what it asks, or else what the numbers of
    /// the meters that it names demand. `None` when nothing says so.
    #[must_use]
    pub fn told_wait(&self, observation: &Observation, cost: &Cost) -> Option<Duration> {
        match observation.ending {
            // A limit on what none of our meters counts says when to come back all the same.
            Ending::Ignored if observation.class == Class::Throttled => observation.retry_after,
            Ending::Succeeded | Ending::Ignored => None,
            Ending::Throttled(ThrottleKind::Overload) => observation.retry_after,
            Ending::Throttled(_) if observation.exhausted.is_empty() => {
                let resets = observation.readings.iter().filter_map(|reading| reading.reset);
                let when_to_retry = || resets.max().filter(|_| self.reset == ResetMeaning::WhenToRetry);
                observation.retry_after.or_else(when_to_retry).filter(|wait| !wait.is_zero())
            }
            Ending::Throttled(_) => {
                let waits = observation.exhausted.iter().filter_map(|meter| self.known_wait(observation, *meter, cost));
                waits.max().filter(|wait| !wait.is_zero())
            }
        }
    }

    fn known_wait(&self, observation: &Observation, meter: Meter, cost: &Cost) -> Option<Duration> {
        let physical = || {
            let reading = observation.readings.iter().find(|reading| reading.meter == meter)?;
            let told = match (self.reset, self.refill) {
                // A window that has been filled again holds nobody back, however much the request needs.
                // Rounded down to nothing, it is less than a whole grain.
                (ResetMeaning::WhenToRetry, _) | (_, Refill::FixedWindow) => reading.reset.map(|reset| {
                    if reset.is_zero() && self.reset_grain > HOLD_UNTOLD { self.reset_grain } else { reset }
                }),
                (_, Refill::Continuous) => None,
            };
            told.or_else(|| self.time_to_fit(reading, cost))
        };
        match self.told_wait {
            ToldWait::Fits => observation.retry_after.or_else(physical),
            ToldWait::AtLeastPhysical => observation.retry_after.max(physical()),
        }
    }

    fn wait(&self, observation: &Observation, meter: Meter, cost: &Cost) -> Duration {
        // Of an enormous limit the time to fit is nothing; but it refused.
        self.known_wait(observation, meter, cost).filter(|wait| !wait.is_zero()).unwrap_or(HOLD_UNTOLD)
    }

    /// Needed ÷ limit × window. What is needed is the cost less the level, as low as it may be; the whole cost when there
    /// seemed to be room, and never less than one unit, so that no rounding makes a wait of zero.
    fn time_to_fit(&self, reading: &MeterReading, cost: &Cost) -> Option<Duration> {
        let limit = reading.limit.filter(|limit| *limit > 0.0)?;
        let cost = cost.of(reading.meter.unit).clamp(1.0, limit.max(1.0));
        let slack = self.level_slack(reading.meter.unit);
        let level = reading.level.map(|level| level - slack).filter(|level| *level < cost).unwrap_or(0.0);
        let needed = (cost - level).max(1.0);
        Duration::try_from_secs_f64(needed / limit * reading.meter.window.seconds()).ok()
    }

    /// The meters a refusal means: those it names, else all that are known, else requests per minute. A fixed window that
    /// has room for the request did not refuse it, and its end, which may be a day away, is nothing to wait for.
    fn meant(&self, observation: &Observation, cost: &Cost) -> Vec<Meter> {
        if !observation.exhausted.is_empty() {
            return observation.exhausted.clone();
        }
        let room =
            |reading: &MeterReading| reading.level.is_some_and(|level| level >= cost.of(reading.meter.unit).max(1.0));
        let may_refuse = |reading: &&MeterReading| self.refill == Refill::Continuous || !room(reading);
        let known: Vec<Meter> = observation.readings.iter().filter(may_refuse).map(|reading| reading.meter).collect();
        if known.is_empty() { vec![Meter::REQUESTS_PER_MINUTE] } else { known }
    }
}
