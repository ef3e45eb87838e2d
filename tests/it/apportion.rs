//! The division against a dumb twin, and its promises.

use tidegate::controller::apportion::{Claim, divide, divide_places};
use tidegate::limiter::Priority;

/// Raises everyone's water by tiny steps.
fn twin(capacity: f64, claims: &[Claim]) -> Vec<f64> {
    let floor = |c: &Claim| c.floor.min(c.ceiling);
    let floors: f64 = claims.iter().map(floor).sum();
    if floors > capacity {
        return claims.iter().map(|c| floor(c) * capacity / floors).collect();
    }
    let raised = |parts: &[f64], level: f64, most: &dyn Fn(&Claim) -> f64| -> Vec<f64> {
        claims.iter().zip(parts).map(|(c, part)| part.max(most(c).min(level * c.weight))).collect()
    };
    let water = |parts: Vec<f64>, capacity: f64, most: &dyn Fn(&Claim) -> f64| -> Vec<f64> {
        let (mut level, mut step) = (0.0, 1.0);
        while step > 1e-12 {
            if raised(&parts, level + step, most).iter().sum::<f64>() <= capacity && level < 1e4 {
                level += step;
            } else {
                step /= 2.0;
                if level >= 1e4 {
                    break;
                }
            }
        }
        raised(&parts, level, most)
    };
    let of = |class| move |c: &Claim| if c.priority == class { c.demand.min(c.ceiling) } else { 0.0 };
    let parts = water(claims.iter().map(floor).collect(), capacity, &of(Priority::Interactive));
    let parts = water(parts, capacity, &of(Priority::Batch));
    let spare = capacity - parts.iter().sum::<f64>();
    let rooms: Vec<f64> = claims.iter().zip(&parts).map(|(c, part)| (c.ceiling - part).max(0.0)).collect();
    let extra = |level: f64| claims.iter().zip(&rooms).map(|(c, room)| room.min(level * c.weight)).collect::<Vec<_>>();
    let (mut level, mut step) = (0.0, 1.0);
    while step > 1e-12 && level < 1e4 {
        if extra(level + step).iter().sum::<f64>() <= spare { level += step } else { step /= 2.0 }
    }
    parts.iter().zip(extra(level)).map(|(part, e)| part + e).collect()
}

fn random_case(rng: &mut fastrand::Rng) -> (f64, Vec<Claim>) {
    let n = rng.usize(1..7);
    let claims = (0..n).map(|_| Claim {
        weight: [0.5, 1.0, 1.0, 2.0, 3.5][rng.usize(0..5)],
        demand: if rng.u8(0..4) == 0 { 0.0 } else { 40.0 * rng.f64() },
        floor: if rng.u8(0..3) == 0 { 20.0 * rng.f64() } else { 0.0 },
        ceiling: if rng.u8(0..3) == 0 { 25.0 * rng.f64() } else { f64::INFINITY },
        priority: if rng.u8(0..3) == 0 { Priority::Batch } else { Priority::Interactive },
    });
    let claims = claims.collect();
    (if rng.u8(0..20) == 0 { 0.0 } else { 100.0 * rng.f64() }, claims)
}

#[test]
fn the_division_is_that_of_its_dumb_twin() {
    let mut rng = fastrand::Rng::with_seed(1);
    for case in 0..50_000 {
        let (capacity, claims) = random_case(&mut rng);
        let (fast, slow) = (divide(capacity, &claims), twin(capacity, &claims));
        for (a, b) in fast.iter().zip(&slow) {
            assert!((a - b).abs() < 1e-6, "case {case}: {capacity} {claims:?}\n{fast:?}\n{slow:?}");
        }
    }
}

#[test]
fn the_parts_use_the_capacity_and_keep_the_ceilings() {
    let mut rng = fastrand::Rng::with_seed(2);
    for _ in 0..20_000 {
        let (capacity, claims) = random_case(&mut rng);
        let parts = divide(capacity, &claims);
        let sum: f64 = parts.iter().sum();
        let ceilings: f64 = claims.iter().map(|c| c.ceiling).sum();
        assert!((sum - capacity.min(ceilings)).abs() < 1e-6, "{sum} of {capacity}: {claims:?}");
        assert!(parts.iter().zip(&claims).all(|(part, c)| (-1e-12..=c.ceiling + 1e-9).contains(part)));
        let floor = |c: &Claim| c.floor.min(c.ceiling);
        let floors: f64 = claims.iter().map(floor).sum();
        let shrink = if floors > capacity { capacity / floors } else { 1.0 };
        assert!(parts.iter().zip(&claims).all(|(part, c)| *part >= floor(c) * shrink - 1e-9));
    }
}

/// Max-min: who is left short of its demand could only gain from someone with no larger part per weight.
#[test]
fn nobody_short_of_its_demand_sees_another_with_more_per_weight() {
    let mut rng = fastrand::Rng::with_seed(3);
    for _ in 0..20_000 {
        let (capacity, claims) = random_case(&mut rng);
        let parts = divide(capacity, &claims);
        for (short, c) in parts.iter().zip(&claims).filter(|(part, c)| **part < c.demand.min(c.ceiling) - 1e-6) {
            let above = |(part, o): &(&f64, &Claim)| **part > o.floor.min(o.ceiling) + 1e-6;
            for (other, o) in parts.iter().zip(&claims).filter(above) {
                // Batch work stands behind, whatever its weight.
                assert!(c.priority == Priority::Batch || o.priority == Priority::Interactive);
                if c.priority != o.priority {
                    continue;
                }
                assert!(other / o.weight <= short / c.weight + 1e-6, "{capacity} {claims:?} {parts:?}");
            }
        }
    }
}

#[test]
fn places_add_up_and_each_part_is_within_one_of_exact() {
    let mut rng = fastrand::Rng::with_seed(4);
    for _ in 0..20_000 {
        let weights: Vec<f64> = (0..rng.usize(1..9)).map(|_| 0.1 + rng.f64()).collect();
        let places = rng.u32(0..50);
        let parts = divide_places(places, &weights);
        assert_eq!(parts.iter().sum::<u32>(), places);
        let total: f64 = weights.iter().sum();
        assert!(
            parts.iter().zip(&weights).all(|(p, w)| (f64::from(*p) - f64::from(places) * w / total).abs() < 1.0 + 1e-9)
        );
    }
}
