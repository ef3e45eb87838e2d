//! The demo's script: what happens when, in phases.

use std::time::Duration;

/// The provider's limit at the beginning, in requests per minute. It is also what the static limits were set to, by an
/// operator who read it in the provider's documents.
pub(super) const LIMIT: u64 = 1_200;
/// The operator's override, in requests per minute.
pub(super) const OVERRIDE: u64 = 120;
/// Whom it is for.
pub(super) const OVERRIDDEN: &str = "noisy";
/// The tenants, and what they offer.
pub(super) const TENANTS: [Offer; 3] = [
    Offer { tenant: "alpha", weight: 3.0, per_s: 16.0 },
    Offer { tenant: "beta", weight: 1.0, per_s: 3.0 },
    Offer { tenant: OVERRIDDEN, weight: 1.0, per_s: 13.0 },
];
/// The shortest demo: below it, phases end before members can be judged.
pub(super) const SHORTEST: Duration = Duration::from_secs(20);
/// The longest one.
pub(super) const LONGEST: Duration = Duration::from_secs(600);

/// A takeover may take the lease's 3 s and one more; a phase that shows one lasts at least this long, in seconds.
const TAKEOVER_S: f64 = 6.0;

/// What one tenant offers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Offer {
    /// Whose.
    pub tenant: &'static str,
    /// Its weight in the division.
    pub weight: f64,
    /// Requests per second, all services together.
    pub per_s: f64,
}

/// What is done at the start of a phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Act {
    /// Nothing.
    Nothing,
    /// The provider's limit becomes this, in requests per minute; so many requests in its bucket are gone.
    Limit {
        /// The new limit.
        to: u64,
        /// What is gone.
        spent: u64,
    },
    /// An operator's override is put.
    Override,
    /// It is removed.
    Lift,
    /// The leading controller is killed, as by `kill -9`.
    Kill,
}

/// One phase of the run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Phase {
    /// One word, for the table.
    pub name: &'static str,
    /// How long it lasts, in seconds.
    pub seconds: f64,
    /// What is done at its start.
    pub act: Act,
    /// The provider's limit in it, in requests per minute.
    pub limit: u64,
    /// Whether the override is in force.
    pub overridden: bool,
    /// What happens, in words.
    pub words: &'static str,
    /// The mark in the chart, two short lines; empty when nothing is done.
    pub mark: [&'static str; 2],
}

const RAISED: u64 = LIMIT / 4 * 5;

/// The phases of a run of a minute.
const PHASES: [Phase; 7] = [
    Phase {
        name: "ramp-up",
        seconds: 8.0,
        act: Act::Nothing,
        limit: LIMIT,
        overridden: false,
        words: "members join; the controller's file tells half of the provider's limit",
        mark: ["", ""],
    },
    Phase {
        name: "steady",
        seconds: 10.0,
        act: Act::Nothing,
        limit: LIMIT,
        overridden: false,
        words: "three tenants offer 1.6 times what the provider takes",
        mark: ["", ""],
    },
    Phase {
        name: "halved",
        seconds: 10.0,
        act: Act::Limit { to: LIMIT / 2, spent: LIMIT },
        limit: LIMIT / 2,
        overridden: false,
        words: "the provider halves its limit, unannounced; its bucket is empty",
        mark: ["limit", "halved"],
    },
    Phase {
        name: "raised",
        seconds: 10.0,
        act: Act::Limit { to: RAISED, spent: 0 },
        limit: RAISED,
        overridden: false,
        words: "the provider raises it to 1500, unannounced: more than ever before",
        mark: ["limit", "raised"],
    },
    Phase {
        name: "override",
        seconds: 7.0,
        act: Act::Override,
        limit: RAISED,
        overridden: true,
        words: "an operator puts noisy at 120 requests/minute",
        mark: ["override:", "noisy 120"],
    },
    Phase {
        name: "lifted",
        seconds: 6.0,
        act: Act::Lift,
        limit: RAISED,
        overridden: false,
        words: "the operator removes the override",
        mark: ["override", "lifted"],
    },
    Phase {
        name: "killed",
        seconds: 9.0,
        act: Act::Kill,
        limit: RAISED,
        overridden: false,
        words: "kill -9 of the leading controller; the other one stands by",
        mark: ["controller", "killed"],
    },
];

/// The phases of a run of this length: all shrink or grow alike, but that a takeover takes its time.
pub(super) fn phases(duration: Duration) -> Vec<Phase> {
    let wanted = duration.as_secs_f64();
    let usual: f64 = PHASES.iter().map(|phase| phase.seconds).sum();
    let fixed = |phase: &Phase| phase.act == Act::Kill && phase.seconds * wanted / usual < TAKEOVER_S;
    let kept: f64 = PHASES.iter().filter(|phase| fixed(phase)).map(|_| TAKEOVER_S).sum();
    let scaled: f64 = PHASES.iter().filter(|phase| !fixed(phase)).map(|phase| phase.seconds).sum();
    PHASES
        .into_iter()
        .map(|phase| {
            let seconds = if fixed(&phase) { TAKEOVER_S } else { phase.seconds * (wanted - kept) / scaled };
            Phase { seconds, ..phase }
        })
        .collect()
}
