//! The one pure function that applies overrides to a base.

use std::collections::BTreeSet;

use super::overrides::{Action, Amount, Override};
use super::{Rate, Rates, Thresholds};
use crate::quota::Meter;

/// What holds for a tenant once overrides are applied.
#[derive(Debug, Clone, PartialEq)]
pub struct Effective {
    /// The thresholds.
    pub thresholds: Thresholds,
    /// Nothing is admitted.
    pub blocked: bool,
    /// The base is kept and does not lapse.
    pub frozen: bool,
    /// Meters whose rate an operator has `set`: no brake or lapse moves them.
    pub set: BTreeSet<Meter>,
}

/// Applies the overrides for `*` (`star`) and for the tenant itself (`own`) to its base.
///
/// `block` and `freeze` at either level win; otherwise, per meter, the tenant's own record replaces `*`'s. Applied
/// **once**: by members on the base, and by the planner to reserve what will be used.
#[must_use]
pub fn effective(base: &Thresholds, star: Option<&Override>, own: Option<&Override>) -> Effective {
    let either = |wanted: &Action| [star, own].into_iter().flatten().any(|o| o.action == *wanted);
    let (blocked, frozen) = (either(&Action::Block), either(&Action::Freeze));
    let star = star.map(|o| &o.action);
    let own = own.map(|o| &o.action);

    let mut thresholds = Thresholds { rates: Rates::default(), concurrency: base.concurrency };
    let mut set = BTreeSet::new();
    for meter in base.rates.keys().copied().chain(named(star)).chain(named(own)) {
        let action = if touches(own, meter) { own } else { star };
        if matches!(action, Some(Action::Set(map)) if map.contains_key(&meter)) {
            set.insert(meter);
        }
        if let Some(rate) = apply(action, meter, base.rates.get(&meter).copied()) {
            thresholds.rates.insert(meter, rate);
        }
    }
    Effective { thresholds, blocked, frozen, set }
}

/// What `@capacity` leaves of a meter's base, 0–1: min(1, override ÷ the pulse's capacity).
#[must_use]
pub fn capacity_factor(record: Option<&Override>, capacity: Option<f64>, meter: Meter) -> f64 {
    match record.map(|o| &o.action) {
        Some(Action::Scale(factor)) => factor.min(1.0),
        Some(Action::Set(map)) => match (map.get(&meter), capacity) {
            (Some(amount), Some(capacity)) if capacity > 0.0 => (amount.rate() / capacity).min(1.0),
            _ => 1.0,
        },
        _ => 1.0,
    }
}

fn named(action: Option<&Action>) -> impl Iterator<Item = Meter> + '_ {
    action.and_then(Action::amounts).into_iter().flat_map(|map| map.keys().copied())
}

fn touches(action: Option<&Action>, meter: Meter) -> bool {
    matches!(action, Some(Action::Scale(_)))
        || action.and_then(Action::amounts).is_some_and(|map| map.contains_key(&meter))
}

fn apply(action: Option<&Action>, meter: Meter, base: Option<Rate>) -> Option<Rate> {
    match action {
        Some(Action::Set(map)) => map.get(&meter).map(|amount| amount.resolve(base)).or(base),
        Some(Action::Scale(factor)) => base.map(|rate| rate.scaled(*factor)),
        // A meter without a base has no limit: above any floor, and under a ceiling exactly that.
        Some(Action::Floor(map)) => base.map(|base| match map.get(&meter) {
            Some(Amount::Rate(floor)) => Rate { rate: base.rate.max(floor.rate), burst: base.burst.max(floor.burst) },
            Some(floor) if floor.rate() > base.rate => floor.resolve(Some(base)),
            _ => base,
        }),
        Some(Action::Ceiling(map)) => match (base, map.get(&meter)) {
            (Some(base), Some(Amount::Rate(ceiling))) => {
                Some(Rate { rate: base.rate.min(ceiling.rate), burst: base.burst.min(ceiling.burst) })
            }
            (Some(base), Some(ceiling)) if base.rate <= ceiling.rate() => Some(base),
            (base, ceiling) => ceiling.map(|ceiling| ceiling.resolve(base)).or(base),
        },
        Some(Action::Freeze | Action::Block) | None => base,
    }
}
