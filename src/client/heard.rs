//! The last pulse that a member heard: how the member stands by its age, and what that leaves of what was granted.

use std::time::Duration;

use crate::clock::MonoTime;
use crate::plan::{Mode, Pulse};
use crate::quota::Meter;

/// A pulse older than this means nobody leads.
pub const PULSE_QUIET: Duration = Duration::from_secs(3);
const LAPSE_TAU_S: f64 = 30.0;
const LAPSE_STEPS: f64 = 100.0;
const LENT_STEPS: f64 = 4.0;

/// How a member stands to its pool's leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum MemberState {
    /// No grant yet: the configured bootstrap thresholds hold.
    Bootstrap,
    /// The pulse is fresh.
    Active,
    /// The pulse is older than 3 s.
    Braking,
    /// The pulse is older than its validity, or no leader lives.
    Lapsed,
}

impl MemberState {
    /// The state's name in logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Bootstrap => "bootstrap",
            Self::Active => "active",
            Self::Braking => "braking",
            Self::Lapsed => "lapsed",
        }
    }
}

/// The newest pulse of a pool.
#[derive(Debug, Default)]
pub(super) struct Heard {
    pulse: Option<Pulse>,
    /// When the last one that counts came; one found in a list without a leader does not count.
    at: Option<MonoTime>,
}

impl Heard {
    /// Takes a newer one; one without a living leader says what was last decided, but renews nothing.
    pub(super) fn take(&mut self, pulse: Pulse, counts_at: Option<MonoTime>) {
        self.pulse = Some(pulse);
        self.at = counts_at.or(self.at);
    }

    /// Whatever it said of not enforcing holds no more.
    pub(super) fn enforce(&mut self) {
        if let Some(pulse) = &mut self.pulse {
            pulse.mode = Mode::Enforce;
        }
    }

    pub(super) fn pulse(&self) -> Option<&Pulse> {
        self.pulse.as_ref()
    }

    pub(super) fn at(&self) -> Option<MonoTime> {
        self.at
    }

    /// How a member with grants stands.
    pub(super) fn state(&self, now: MonoTime) -> MemberState {
        let Some((pulse, at)) = self.pulse.as_ref().zip(self.at) else { return MemberState::Lapsed };
        let age = now.since(at);
        if age > Duration::from_millis(pulse.valid_for_ms) {
            MemberState::Lapsed
        } else if age > PULSE_QUIET {
            MemberState::Braking
        } else {
            MemberState::Active
        }
    }

    /// How much is left of what thresholds add up to beyond the capacity: nobody takes it back without a leader, so it ends by
    /// itself, within as long again as a pulse may be late.
    pub(super) fn lent_at(&self, now: MonoTime) -> f64 {
        self.lent_steps(now).map_or(0.0, |(_, steps)| steps / LENT_STEPS)
    }

    /// Since when the pulse is late and how many steps are left: each is a retune of every tenant.
    fn lent_steps(&self, now: MonoTime) -> Option<(MonoTime, f64)> {
        let late_from = self.at? + PULSE_QUIET;
        let left = 1.0 - now.seconds_since(late_from) / PULSE_QUIET.as_secs_f64();
        Some((late_from, (left * LENT_STEPS).ceil().clamp(0.0, LENT_STEPS)))
    }

    /// When less of it is left than now, unless a pulse comes.
    pub(super) fn lent_until(&self, now: MonoTime) -> Option<MonoTime> {
        let (late_from, steps) = self.lent_steps(now).filter(|(_, steps)| *steps > 0.0)?;
        Some(late_from + PULSE_QUIET.mul_f64((LENT_STEPS + 1.0 - steps) / LENT_STEPS))
    }

    /// What part of a meter's threshold the capacity covers, with so much left of what is beyond it.
    pub(super) fn covered(&self, meter: Meter, lent: f64) -> f64 {
        let overcommit = self.pulse().map_or(1.0, |pulse| pulse.overcommit_of(meter));
        (1.0 + (overcommit - 1.0) * lent) / overcommit
    }

    /// How much of the way from safe to the threshold is left: 1 until the grants lapse, then exponentially to 0.
    pub(super) fn kept_at(&self, now: MonoTime) -> f64 {
        let Some((pulse, at)) = self.pulse.as_ref().zip(self.at) else { return 0.0 };
        let late_s = now.seconds_since(at + Duration::from_millis(pulse.valid_for_ms));
        // In steps: each is a retune of every tenant.
        ((-late_s / LAPSE_TAU_S).exp() * LAPSE_STEPS).round() / LAPSE_STEPS
    }
}
