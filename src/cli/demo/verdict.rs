//! The demo's judgement: what the providers counted, against what would have been right.

use serde::Serialize;
use std::collections::BTreeMap;

use super::record::{Played, Record, Sample, WAYS, Way, precise};
use super::script::{Act, OVERRIDDEN, OVERRIDE, Phase, TENANTS};
use super::service::Told;
use crate::controller::apportion::{Claim, divide};
use crate::limiter::Priority;

/// A member counts as retuned when what it enforces has moved by this fraction.
const MOVED: f64 = 0.25;

/// What came of a run. Serialised, it is the demo's `--json`.
#[derive(Debug, Serialize)]
pub(super) struct Verdict {
    /// How long it lasted, in seconds.
    pub seconds: f64,
    /// By phase, in order.
    pub phases: Vec<Outcome>,
    /// All phases after the first, in which members still join.
    pub whole: Pair<Judged>,
}

/// The same of both ways.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Pair<T> {
    /// Through limits that tidegate retunes.
    pub adaptive: T,
    /// Through limits that were set once.
    #[serde(rename = "static")]
    pub fixed: T,
}

/// What came of one phase.
#[derive(Debug, Serialize)]
pub(super) struct Outcome {
    /// The phase.
    pub phase: &'static str,
    /// How long it lasted, in seconds.
    pub seconds: f64,
    /// The provider's limit, in requests per minute.
    pub limit: u64,
    /// Of both ways.
    #[serde(flatten)]
    pub ways: Pair<Judged>,
    /// When the last member had followed; absent where there was nothing to follow.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retuned: Option<Retuned>,
    /// How long nobody led, in seconds, to the samples' quarter of a second; absent where no leader was killed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub led_again_s: Option<f64>,
}

/// How one way did.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct Judged {
    /// Requests admitted ÷ what limit, demand and override allowed together.
    pub used: f64,
    /// Share of the requests sent that were answered 429.
    pub throttled: f64,
    /// Weighted Jain index, of what each tenant got ÷ its fair share; 1 is fair.
    pub fairness: f64,
    /// What each tenant got ÷ its weighted max-min share.
    pub tenants: BTreeMap<&'static str, f64>,
    /// Requests admitted.
    pub admitted: u64,
    /// Requests answered 429.
    pub refused: u64,
}

/// How long the members took.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Retuned {
    /// From the change to the last member, in seconds; `None` when one never moved.
    pub after_change_s: Option<f64>,
    /// From the first 429 to the last member, in seconds; `None` without a 429 before it.
    pub after_429_s: Option<f64>,
}

impl Verdict {
    /// Judges a run.
    pub(super) fn of(record: &Record) -> Self {
        let phases: Vec<Outcome> = record.played().iter().map(|played| Outcome::of(record, played)).collect();
        let judged = record.played().iter().zip(&phases).skip(1);
        let whole = |way: Way| {
            let mut whole = Judged::default();
            let (mut allowed, mut seconds) = (0.0, 0.0);
            for (played, outcome) in judged.clone() {
                let of_phase = outcome.ways.of(way);
                whole.admitted += of_phase.admitted;
                whole.refused += of_phase.refused;
                allowed += fair_shares(way, &played.phase).iter().sum::<f64>() * outcome.seconds;
                seconds += outcome.seconds;
                // Unfair to one tenant now and to another later is unfair twice: means of phases, not of what each got.
                whole.fairness += of_phase.fairness * outcome.seconds;
                for (tenant, got) in &of_phase.tenants {
                    *whole.tenants.entry(tenant).or_default() += got * outcome.seconds;
                }
            }
            whole.fairness /= seconds.max(1e-3);
            whole.tenants.values_mut().for_each(|got| *got /= seconds.max(1e-3));
            whole.with_ratios(allowed)
        };
        Self {
            seconds: record.elapsed_s(),
            whole: Pair { adaptive: whole(Way::Adaptive), fixed: whole(Way::Static) },
            phases,
        }
    }
}

impl<T> Pair<T> {
    /// One of the two.
    pub(super) const fn of(&self, way: Way) -> &T {
        match way {
            Way::Adaptive => &self.adaptive,
            Way::Static => &self.fixed,
        }
    }
}

impl Outcome {
    fn of(record: &Record, played: &Played) -> Self {
        let (before, after) = record.ends(played);
        let [adaptive, fixed] = WAYS.map(|way| Judged::of(way, &played.phase, before, after));
        let retuned = match played.phase.act {
            Act::Nothing | Act::Kill => None,
            Act::Limit { .. } => Some(false),
            Act::Override | Act::Lift => Some(true),
        };
        Self {
            phase: played.phase.name,
            seconds: seconds_between(Way::Adaptive, before, after),
            limit: played.phase.limit,
            ways: Pair { adaptive, fixed },
            retuned: retuned.map(|of_one| Retuned::of(of_one, after, &record.told_in(played))),
            led_again_s: (played.phase.act == Act::Kill).then(|| led_again_s(record.samples_of(played))).flatten(),
        }
    }
}

impl Judged {
    fn of(way: Way, phase: &Phase, before: &Sample, after: &Sample) -> Self {
        let seconds = seconds_between(way, before, after).max(1e-3);
        let (was, is) = (&before.ways[way as usize].truth, &after.ways[way as usize].truth);
        let fair = fair_shares(way, phase);
        let got = |tenant: &str| {
            let admitted = |users: &BTreeMap<String, crate::sim::emulator::account::UserTruth>| {
                users.get(tenant).map_or(0, |user| user.admitted_requests)
            };
            precise(admitted(&is.users) - admitted(&was.users)) / seconds
        };
        let tenants: BTreeMap<&'static str, f64> =
            TENANTS.iter().zip(&fair).map(|(offer, fair)| (offer.tenant, got(offer.tenant) / fair)).collect();
        let judged = Self {
            fairness: jain(tenants.values().copied()),
            tenants,
            admitted: is.total.admitted_requests - was.total.admitted_requests,
            refused: is.total.refused_requests - was.total.refused_requests,
            ..Self::default()
        };
        // What the bucket held is not counted: over a phase it is stored and spent again.
        judged.with_ratios(fair.iter().sum::<f64>() * seconds)
    }

    fn with_ratios(mut self, allowed: f64) -> Self {
        self.used = precise(self.admitted) / allowed.max(1e-3);
        self.throttled = precise(self.refused) / precise((self.admitted + self.refused).max(1));
        self
    }
}

fn jain(parts: impl ExactSizeIterator<Item = f64>) -> f64 {
    let n = precise(parts.len() as u64);
    let (sum, squares) = parts.fold((0.0, 0.0), |(s, q), x| (s + x, q + x * x));
    if squares > 0.0 { sum * sum / (n * squares) } else { 0.0 }
}

/// Weighted max-min shares of what each tenant offers, in requests per second. The override is the adaptive way's alone:
/// static limits are not judged by what they were never told.
fn fair_shares(way: Way, phase: &Phase) -> Vec<f64> {
    let ceiling = |tenant: &str| match way {
        Way::Adaptive if phase.overridden && tenant == OVERRIDDEN => precise(OVERRIDE) / 60.0,
        _ => f64::INFINITY,
    };
    let claims: Vec<Claim> = TENANTS
        .iter()
        .map(|offer| Claim {
            weight: offer.weight,
            demand: offer.per_s,
            floor: 0.0,
            ceiling: ceiling(offer.tenant),
            priority: Priority::Interactive,
        })
        .collect();
    let parts = divide(precise(phase.limit) / 60.0, &claims);
    parts.into_iter().zip(&claims).map(|(part, claim)| part.min(claim.demand)).collect()
}

fn seconds_between(way: Way, before: &Sample, after: &Sample) -> f64 {
    precise(after.ways[way as usize].now.uptime_ms - before.ways[way as usize].now.uptime_ms) / 1e3
}

/// From the first sample to the one in which another leads; `None` when none did.
fn led_again_s(samples: &[Sample]) -> Option<f64> {
    let first = samples.first()?;
    // The killed one's lease runs for a while: its key still stands in the first samples.
    let killed = first.leader.as_ref();
    let led = samples.iter().find(|sample| sample.leader.is_some() && sample.leader.as_ref() != killed)?;
    Some(seconds_between(Way::Adaptive, first, led))
}

impl Retuned {
    fn of(of_one: bool, after: &Sample, told: &[(Option<&Told>, Vec<&Told>)]) -> Self {
        let value = |told: &Told| -> f64 {
            let rates = &told.requests_per_minute;
            if of_one { rates.get(OVERRIDDEN).copied().unwrap_or(0.0) } else { rates.values().sum() }
        };
        let moved_at = |(before, since): &(Option<&Told>, Vec<&Told>)| {
            let was = before.map_or(0.0, value);
            since.iter().find(|now| (value(now) / was - 1.0).abs() >= MOVED).map(|now| now.unix_ms)
        };
        let last = told.iter().map(moved_at).try_fold(0, |last: u64, moved| moved.map(|at| last.max(at)));
        let provider = &after.ways[Way::Adaptive as usize];
        let first_429 = provider.first_refusal.map(|moment| moment.unix_ms);
        let seconds = |ms: u64| precise(ms) / 1e3;
        Self {
            after_change_s: last.map(|at| seconds(at.saturating_sub(provider.marked.unix_ms))),
            after_429_s: last.zip(first_429).and_then(|(at, first)| at.checked_sub(first)).map(seconds),
        }
    }
}

// === The table ===

/// The table, in lines of at most 80 columns.
pub(super) fn table(verdict: &Verdict) -> Vec<String> {
    let mut lines = vec![
        "counted by the providers  used            429s            fairness      followed".to_owned(),
        "phase        time  limit  adapt.  static  adapt.  static  adapt. static after".to_owned(),
    ];
    for outcome in &verdict.phases {
        let followed = match (&outcome.retuned, outcome.led_again_s) {
            (Some(retuned), _) => retuned.after_change_s.map_or_else(|| "never".into(), |s| format!("{s:.2} s")),
            (None, Some(s)) => format!("{s:.1} s"),
            (None, None) => String::new(),
        };
        let name = format!("{:<10}{:>5.0} s{:>7}", outcome.phase, outcome.seconds, outcome.limit);
        lines.push(row(&name, &outcome.ways, &followed));
    }
    lines.push(row("all but ramp-up", &verdict.whole, ""));
    lines
}

fn row(name: &str, ways: &Pair<Judged>, followed: &str) -> String {
    let [a, s] = [&ways.adaptive, &ways.fixed];
    let line = format!(
        "{name:<24}{:>6.1} %{:>6.1} %{:>6.2} %{:>6.2} %{:>8.3}{:>7.3} {followed}",
        100.0 * a.used,
        100.0 * s.used,
        100.0 * a.throttled,
        100.0 * s.throttled,
        a.fairness,
        s.fairness
    );
    line.trim_end().to_owned()
}

/// What the table's words mean, in lines of at most 80 columns.
pub(super) fn legend() -> Vec<String> {
    let weights: Vec<String> = TENANTS.iter().map(|o| format!("{} {}", o.tenant, o.weight)).collect();
    let offers: Vec<String> = TENANTS.iter().map(|o| format!("{} {}/s", o.tenant, o.per_s)).collect();
    vec![
        "used      requests admitted, of what limit and demand allowed (adaptive: and the".to_owned(),
        "          override); above 100 % where the bucket held some at the start".to_owned(),
        "429s      of the requests that were sent".to_owned(),
        "fairness  Jain's index: 1 when every tenant got the same part of its fair share,".to_owned(),
        "          the weighted max-min of what is offered".to_owned(),
        "followed  when the last member's limits had moved; killed: when another led".to_owned(),
        format!("offered   {}; weights {}", offers.join(", "), weights.join(", ")),
        "static    each tenant's part of the first limit, by weight; half in each service".to_owned(),
    ]
}
