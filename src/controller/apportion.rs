//! Division of a pool's capacity among tenants: weighted max-min on demand, floors first, ceilings always.
//!
//! *Why.* Inside one pool all tenants are ours, so fairness comes from the division and not from the law.
//! *Rule.* Each tenant gets its floor (all in proportion when they exceed the capacity); then the water level of those for whom
//! somebody waits rises until demand, ceiling or capacity stops it, and after that the level of batch work. What nobody asked
//! for is handed out by weight, up to the ceilings: room to burst, so that a returning tenant does not begin at zero.
//! Source: max-min fairness by progressive filling (Bertsekas & Gallager, Data Networks, §6.5.2).

use crate::limiter::Priority;

/// What one tenant brings to the division, in units per second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Claim {
    /// Above 0.
    pub weight: f64,
    /// What it could use.
    pub demand: f64,
    /// What it gets first.
    pub floor: f64,
    /// What it never gets more than; infinity for none.
    pub ceiling: f64,
    /// Beyond their floors all batch work stands behind all that somebody waits for.
    pub priority: Priority,
}

/// Divides `capacity` among the claims; the parts add up to at most `capacity`.
#[must_use]
pub fn divide(capacity: f64, claims: &[Claim]) -> Vec<f64> {
    let floors: f64 = claims.iter().map(|c| c.floor.min(c.ceiling)).sum();
    let shrink = if floors > capacity { capacity / floors } else { 1.0 };
    let mut parts: Vec<f64> = claims.iter().map(|c| c.floor.min(c.ceiling) * shrink).collect();
    for class in [Priority::Interactive, Priority::Batch] {
        fill(capacity, claims, &mut parts, |c| if c.priority == class { c.demand.min(c.ceiling) } else { 0.0 });
    }
    let spare = capacity - parts.iter().sum::<f64>();
    if spare > 0.0 {
        hand_out(spare, claims, &mut parts);
    }
    parts
}

/// Raises the parts to one weighted level, each at most to `wanted`, until `capacity` is used.
fn fill(capacity: f64, claims: &[Claim], parts: &mut [f64], wanted: impl Fn(&Claim) -> f64) {
    let (all_wanted, all_had): (f64, f64) =
        claims.iter().zip(&*parts).fold((0.0, 0.0), |(all, had), (c, has)| (all + has.max(wanted(c)), had + has));
    // Mostly there is enough.
    if all_wanted <= capacity {
        claims.iter().zip(parts).for_each(|(c, part)| *part = part.max(wanted(c)));
        return;
    }
    // A part at the level v is max(what it has, min(wanted, v × weight)): it begins to rise at one break point and
    // stops at another, so what is used is a chain of lines, walked once in the order of the break points.
    let has: Vec<f64> = parts.to_vec();
    let part = |i: usize, level: f64| has[i].max(wanted(&claims[i]).min(level * claims[i].weight));
    let mut breaks: Vec<(f64, f64)> = (0..claims.len())
        .filter(|i| wanted(&claims[*i]) > has[*i])
        .flat_map(|i| {
            let weight = claims[i].weight;
            [(has[i] / weight, weight), (wanted(&claims[i]) / weight, -weight)]
        })
        .collect();
    breaks.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (mut level, mut slope, mut used) = (0.0, 0.0_f64, all_had);
    for (at, turn) in breaks {
        let rise = slope.max(0.0) * (at - level);
        if used + rise >= capacity {
            if slope > 0.0 {
                level += (capacity - used).max(0.0) / slope;
            }
            break;
        }
        (level, slope, used) = (at, slope + turn, used + rise);
    }
    (0..claims.len()).for_each(|i| parts[i] = part(i, level));
}

/// Hands out what is spare by weight, up to the ceilings.
fn hand_out(spare: f64, claims: &[Claim], parts: &mut [f64]) {
    // Mostly no ceiling is near.
    let level = spare / claims.iter().map(|c| c.weight).sum::<f64>();
    if claims.iter().zip(&*parts).all(|(c, part)| c.ceiling - part >= level * c.weight) {
        claims.iter().zip(parts).for_each(|(c, part)| *part += level * c.weight);
        return;
    }
    let rooms: Vec<Claim> = claims
        .iter()
        .zip(parts.iter())
        .map(|(c, part)| Claim { floor: 0.0, demand: f64::INFINITY, ceiling: (c.ceiling - part).max(0.0), ..*c })
        .collect();
    let mut extra = vec![0.0; claims.len()];
    // Nobody can use more than all of it, so an endless room counts as that and the filling ends.
    fill(spare, &rooms, &mut extra, |c| c.ceiling.min(spare));
    parts.iter_mut().zip(extra).for_each(|(part, e)| *part += e);
}

/// Divides a whole number of places by weight: largest remainder, ties to the first.
#[must_use]
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "floored, between 0 and places")]
pub fn divide_places(places: u32, weights: &[f64]) -> Vec<u32> {
    let total: f64 = weights.iter().sum();
    if total <= 0.0 {
        return vec![0; weights.len()];
    }
    let exact: Vec<f64> = weights.iter().map(|w| f64::from(places) * w / total).collect();
    let mut parts: Vec<u32> = exact.iter().map(|x| x.floor() as u32).collect();
    let mut order: Vec<usize> = (0..weights.len()).collect();
    order.sort_by(|&a, &b| exact[b].fract().total_cmp(&exact[a].fract()));
    let left = places.saturating_sub(parts.iter().sum());
    order.into_iter().take(left as usize).for_each(|i| parts[i] += 1);
    parts
}
