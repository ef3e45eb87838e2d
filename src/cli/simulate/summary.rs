//! Many outcomes in a few numbers: means, and what all but a tenth of them are.

use crate::sim::world::Outcome;

/// A number of an outcome, where it has one.
pub(super) type Of = fn(&Outcome) -> Option<f64>;

/// Efficiency; what others lost is no merit.
pub(super) const EFFICIENCY: Of = |outcome| Some(outcome.efficiency.min(1.0));
pub(super) const THROTTLED: Of = |outcome| Some(outcome.throttled_ratio);
pub(super) const UNFAIRNESS: Of = |outcome| Some(outcome.unfairness);
pub(super) const JAIN: Of = |outcome| Some(outcome.jain);
pub(super) const MISSED: Of = |outcome| Some(outcome.slo_miss_ratio);
pub(super) const OTHERS: Of = |outcome| outcome.others_kept;

/// Two names, and the outcomes that have them.
pub(super) type Group<'a> = ((&'a str, &'a str), Vec<&'a Outcome>);

/// The mean; `None` of nothing.
#[allow(clippy::cast_precision_loss, reason = "a number of outcomes")]
pub(super) fn mean(outcomes: &[&Outcome], of: Of) -> Option<f64> {
    let all: Vec<f64> = outcomes.iter().filter_map(|outcome| of(outcome)).collect();
    (!all.is_empty()).then(|| all.iter().sum::<f64>() / all.len() as f64)
}

/// What this part of them are below, 0–1; `None` of nothing.
#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index")]
pub(super) fn quantile(outcomes: &[&Outcome], part: f64, of: Of) -> Option<f64> {
    let mut all: Vec<f64> = outcomes.iter().filter_map(|outcome| of(outcome)).collect();
    all.sort_by(f64::total_cmp);
    let nth = (part * all.len() as f64) as usize;
    all.get(nth.min(all.len().checked_sub(1)?)).copied()
}

/// Outcomes by something, in the order in which it first appears.
pub(super) fn groups(outcomes: &[Outcome], by: impl Fn(&Outcome) -> (&str, &str)) -> Vec<Group<'_>> {
    let mut groups: Vec<((&str, &str), Vec<&Outcome>)> = Vec::new();
    for outcome in outcomes {
        let key = by(outcome);
        match groups.iter_mut().find(|(known, _)| *known == key) {
            Some((_, group)) => group.push(outcome),
            None => groups.push((key, vec![outcome])),
        }
    }
    groups
}
