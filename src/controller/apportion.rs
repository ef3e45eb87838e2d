//! Division of a pool's capacity among tenants: weighted max-min on demand, floors first, ceilings always.
//!
//! *Why.* Inside one pool all tenants are ours, so fairness comes from the division and not from the law.
//! *Rule.* Each tenant gets its floor (all in proportion when they exceed the capacity); then the water level rises
//! until demand, ceiling or capacity stops it. What nobody asked for is handed out by weight, up to the ceilings:
//! room to burst, so that a returning tenant does not begin at zero.
//! Source: max-min fairness by progressive filling (Bertsekas & Gallager, Data Networks, §6.5.2).

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
}

/// Divides `capacity` among the claims; the parts add up to at most `capacity`.
#[must_use]
pub fn divide(capacity: f64, claims: &[Claim]) -> Vec<f64> {
    let floors: f64 = claims.iter().map(|c| c.floor.min(c.ceiling)).sum();
    let shrink = if floors > capacity { capacity / floors } else { 1.0 };
    let mut parts: Vec<f64> = claims.iter().map(|c| c.floor.min(c.ceiling) * shrink).collect();
    fill(capacity, claims, &mut parts, |c| c.demand.min(c.ceiling));
    let spare = capacity - parts.iter().sum::<f64>();
    if spare > 0.0 {
        hand_out(spare, claims, &mut parts);
    }
    parts
}

/// Raises the parts to one weighted level, each at most to `wanted`, until `capacity` is used.
fn fill(capacity: f64, claims: &[Claim], parts: &mut [f64], wanted: impl Fn(&Claim) -> f64) {
    // A part at the level v is max(what it has, min(wanted, v × weight)): monotone in v, so the level that uses the
    // capacity exactly lies between two break points and follows from a line.
    let has: Vec<f64> = parts.to_vec();
    let part = |i: usize, level: f64| has[i].max(wanted(&claims[i]).min(level * claims[i].weight));
    let used = |level: f64| (0..claims.len()).map(|i| part(i, level)).sum::<f64>();
    let mut breaks: Vec<f64> = (0..claims.len())
        .flat_map(|i| [has[i] / claims[i].weight, wanted(&claims[i]) / claims[i].weight])
        .filter(|level| level.is_finite())
        .collect();
    breaks.sort_by(f64::total_cmp);
    let mut below = 0.0;
    for above in breaks {
        let (used_below, used_above) = (used(below), used(above));
        if used_above >= capacity {
            let slope = (used_above - used_below) / (above - below);
            let level = if slope > 0.0 { below + (capacity - used_below).max(0.0) / slope } else { below };
            (0..claims.len()).for_each(|i| parts[i] = part(i, level));
            return;
        }
        below = above;
    }
    (0..claims.len()).for_each(|i| parts[i] = part(i, below));
}

/// Hands out what is spare by weight, up to the ceilings.
fn hand_out(spare: f64, claims: &[Claim], parts: &mut [f64]) {
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
