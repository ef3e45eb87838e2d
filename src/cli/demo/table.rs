//! The demo's judgement: what the emulator counted, against what would have been right.

use std::collections::BTreeMap;

use super::stage::{MemberRetunes, Offer};
use crate::controller::apportion::{Claim, divide};
use crate::sim::emulator::EmulatorState;

/// A member counts as retuned when what it enforces has moved by this fraction.
const MOVED: f64 = 0.25;

/// What came of one phase.
#[derive(Debug, Clone)]
pub(super) struct Outcome {
    name: &'static str,
    /// Requests admitted ÷ the provider's true capacity.
    used: f64,
    /// Share of the requests sent that were answered 429.
    refused: f64,
    /// Weighted Jain index: of what each tenant got ÷ its weighted max-min share.
    jain: f64,
    /// What each tenant got ÷ its weighted max-min share.
    shares: Vec<f64>,
    retuned: Option<Retune>,
}

/// How long the members took.
#[derive(Debug, Clone, Copy)]
struct Retune {
    /// From the change to the last member, in ms; `None` when one never moved.
    from_change_ms: Option<u64>,
    /// From the first 429 to the last member, in ms; `None` without a 429 before it.
    from_429_ms: Option<u64>,
}

impl Outcome {
    /// Judges a phase by the emulator's state before and after it.
    #[allow(clippy::too_many_arguments, reason = "one call, and each is a different fact")]
    pub(super) fn judge(
        name: &'static str,
        limit: u64,
        overridden: Option<u64>,
        changed: bool,
        offers: &[Offer],
        before: &EmulatorState,
        after: &EmulatorState,
        retunes: &BTreeMap<&'static str, MemberRetunes>,
    ) -> Self {
        let seconds = precise(after.now.uptime_ms - before.now.uptime_ms) / 1e3;
        let total = |state: &EmulatorState| (state.truth.total.admitted_requests, state.truth.total.refused_requests);
        let (admitted, refused) = (total(after).0 - total(before).0, total(after).1 - total(before).1);
        // What the bucket held is not counted: over a phase it is stored and spent again.
        let capacity = precise(limit) / 60.0 * seconds;

        let claims: Vec<Claim> = offers
            .iter()
            .map(|offer| Claim {
                weight: offer.weight,
                demand: offer.per_s,
                floor: 0.0,
                ceiling: overridden.filter(|_| offer.tenant == "noisy").map_or(f64::INFINITY, |n| precise(n) / 60.0),
            })
            .collect();
        let fair: Vec<f64> = divide(precise(limit) / 60.0, &claims)
            .into_iter()
            .zip(&claims)
            .map(|(part, claim)| part.min(claim.demand))
            .collect();
        let got =
            |state: &EmulatorState, tenant: &str| state.truth.users.get(tenant).map_or(0, |u| u.admitted_requests);
        let shares: Vec<f64> = offers
            .iter()
            .zip(&fair)
            .map(|(o, fair)| precise(got(after, o.tenant) - got(before, o.tenant)) / seconds / fair)
            .collect();
        let (sum, squares) = shares.iter().fold((0.0, 0.0), |(s, q), x| (s + x, q + x * x));
        let n = precise(shares.len() as u64);
        Self {
            name,
            used: precise(admitted) / capacity,
            refused: precise(refused) / precise((admitted + refused).max(1)),
            jain: if squares > 0.0 { sum * sum / (n * squares) } else { 0.0 },
            shares,
            retuned: changed.then(|| Retune::judge(overridden.is_some() || name == "lifted", after, retunes)),
        }
    }
}

impl Retune {
    fn judge(of_noisy: bool, after: &EmulatorState, retunes: &BTreeMap<&'static str, MemberRetunes>) -> Self {
        let value = |retuned: &super::service::Retuned| -> f64 {
            let rates = &retuned.requests_per_minute;
            if of_noisy { rates.get("noisy").copied().unwrap_or(0.0) } else { rates.values().sum() }
        };
        let last = retunes
            .values()
            .map(|member| {
                let was = member.before.as_ref().map_or(0.0, value);
                member.since.iter().find(|now| (value(now) / was - 1.0).abs() >= MOVED).map(|now| now.unix_ms)
            })
            .try_fold(0, |last: u64, moved| moved.map(|at| last.max(at)));
        let first_429 = after.first_refusal.as_ref().map(|moment| moment.unix_ms);
        Self {
            from_change_ms: last.map(|at| at.saturating_sub(after.marked.unix_ms)),
            from_429_ms: last.zip(first_429).and_then(|(at, first)| at.checked_sub(first)),
        }
    }
}

/// Prints the table.
pub(super) fn print_table(outcomes: &[Outcome], offers: &[Offer]) {
    println!("as counted by the provider               each tenant ÷ its fair share     last member retuned");
    print!("{:<10}{:>8}{:>8}{:>8}      ", "phase", "use", "429s", "Jain");
    for offer in offers {
        print!("{:>9}", offer.tenant);
    }
    println!("{:>16}{:>12}", "after change", "after 429");
    for outcome in outcomes {
        print!(
            "{:<10}{:>7.1}%{:>7.2}%{:>8.3}      ",
            outcome.name,
            100.0 * outcome.used,
            100.0 * outcome.refused,
            outcome.jain
        );
        for share in &outcome.shares {
            print!("{:>8.1}%", 100.0 * share);
        }
        if let Some(retune) = outcome.retuned {
            let seconds = |ms: Option<u64>, without: &str| {
                ms.map_or_else(|| without.to_owned(), |ms| format!("{:.2} s", precise(ms) / 1e3))
            };
            print!("{:>16}{:>12}", seconds(retune.from_change_ms, "never"), seconds(retune.from_429_ms, "no 429"));
        }
        println!();
    }
    println!();
    println!(
        "use        requests admitted ÷ the provider's limit × time; above 100 % where its bucket held some at the start"
    );
    println!("429s       of the requests that were sent");
    println!("Jain       fairness: 1 when every tenant got the same part of its fair share");
    println!("fair share weighted max-min of what is offered: {}", weights(offers));
    println!("retuned    when the last member's thresholds had followed; without a 429 the headers told of the change");
}

fn weights(offers: &[Offer]) -> String {
    let each: Vec<String> =
        offers.iter().map(|o| format!("{} weight {} offers {}/s", o.tenant, o.weight, o.per_s)).collect();
    each.join(", ")
}

#[allow(clippy::cast_precision_loss, reason = "counts and milliseconds of one minute")]
fn precise(n: u64) -> f64 {
    n as f64
}
