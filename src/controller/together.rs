//! Meters that members count together: what the pool's own bucket in Redis gives and holds.
//!
//! *Why.* A threshold of a few units is shared out into parts that are of no use to any member. Where all take from one
//! bucket, the pool is exact however many they are and whoever sends. Thresholds say who gets how much then, and the
//! pool's bucket how much there is.
//! *Thresholds* add up to [`SHARED_HEADROOM`] times the capacity, always: what one tenant leaves, another may take at once,
//! before the next division; the pool's bucket keeps both within the capacity. There is nothing to be learned.
//! *Rate.* The capacity, as published with the same pulse: a cut is in it at once, and the pulse's `scale` is not for it. An
//! operator's `@capacity` is in it too and is never exceeded. Without one, what operators gave to tenants is, where that is more:
//! an override is stronger than the law here as elsewhere.
//! *Burst* of a token bucket. Half a second of the rate, and at most a quarter of what the provider's bucket holds: members wait
//! for one another in one queue, so that a bucket has to bridge no more than a round trip, and after a quiet time nobody sends a
//! second helping. Of requests at least one. Tokens are taken by the thousand: a bucket that holds less than a tenant's may would
//! admit one request after the other, each into debt, whatever the rate. So it holds as much as tenants' bursts are cut from: a
//! quarter of the provider's depth or of the configured burst, whichever is more; all of it where more is reserved than used.
//! *Windows* have no burst; it is the rate.
//! Source: CONTROL §2.10, §2.11 (it has 1.05, and §2.17 1.2: in between tokens are divided more fairly than with the second, and urgent requests wait less than with either).

use std::collections::BTreeMap;

use super::division::{BURST_PART, Division, per_window, round};
use super::law::Step;
use crate::plan::{Algorithm, Grant, Rate, Target, Thresholds, capacity_factor, effective};
use crate::provider::TokenCharge;
use crate::quota::{Grantee, Meter, Unit};

/// Thresholds of a meter that members count together add up to so many times the capacity.
pub const SHARED_HEADROOM: f64 = 1.1;
/// What a pool's bucket stores of its rate, in seconds.
const BURST_S: f64 = 0.5;

/// The buckets of a pool's meters that are counted together, with what was planned for its tenants.
pub(super) fn buckets<'s>(
    division: &Division<'_>,
    steps: impl Iterator<Item = (&'s Meter, &'s Step)>,
    planned: &BTreeMap<Grantee, Grant>,
) -> BTreeMap<Meter, Rate> {
    let together = steps.filter(|(meter, _)| division.params.shared.contains(meter));
    together.map(|(meter, step)| (*meter, bucket(division, *meter, step, planned))).collect()
}

fn bucket(division: &Division<'_>, meter: Meter, step: &Step, planned: &BTreeMap<Grantee, Grant>) -> Rate {
    let capacity = per_window(meter, step.capacity_per_s);
    let rate = match division.overrides.at(&Target::Capacity, division.wall) {
        Some(record) => capacity * capacity_factor(Some(record), Some(round(capacity)), meter),
        None => capacity.max(given(division, meter, planned, division.overcommit(step))),
    };
    let burst = if rate > 0.0 { burst(division, meter, step, rate) } else { 0.0 };
    Rate { rate: round(rate), burst: round(burst) }
}

/// What a bucket of this rate, in units per window, holds.
fn burst(division: &Division<'_>, meter: Meter, step: &Step, rate: f64) -> f64 {
    if division.params.algorithms.get(&meter).is_some_and(|algorithm| *algorithm != Algorithm::TokenBucket) {
        return rate;
    }
    let brief = (BURST_S * meter.per_second(rate)).min(BURST_PART * step.burst);
    let configured = division.params.capacity.get(&meter).map_or(0.0, |nominal| nominal.burst);
    let is_corrected = division.params.dialect.semantics().token_charge == TokenCharge::Corrected;
    let room = match meter.unit {
        Unit::Requests => 1.0,
        Unit::Tokens | Unit::OutputTokens if is_corrected => step.burst.max(configured),
        _ => BURST_PART * step.burst.max(configured),
    };
    brief.max(room).max(1.0)
}

/// What operators gave to tenants, in units per window.
fn given(division: &Division<'_>, meter: Meter, planned: &BTreeMap<Grantee, Grant>, headroom: f64) -> f64 {
    if !division.is_overridden() {
        return 0.0;
    }
    let given = |(grantee, grant): (&Grantee, &Grant)| {
        let (star, own) = division.overrides.for_tenant(grantee, division.wall);
        star.or(own)?;
        let base = *grant.thresholds.rates.get(&meter)?;
        // Of what is theirs without an override the headroom is nobody's; a frozen threshold is what the operator saw.
        let base = if division.frozen(grantee).is_some() { base } else { base.scaled(1.0 / headroom) };
        let used = effective(&Thresholds { rates: [(meter, base)].into(), concurrency: None }, star, own);
        used.thresholds.rates.get(&meter).filter(|_| !used.blocked).map(|rate| rate.rate)
    };
    planned.iter().filter_map(given).sum()
}
