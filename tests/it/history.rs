//! What the leader remembers of its decisions: what concerns a tenant, within bounds.

use std::collections::BTreeMap;

use tidegate::clock::UnixMillis;
use tidegate::controller::history::{
    Decided, DecidedBy, GRANTS_MAX, Granted, History, PUBLICATIONS_MAX, ThresholdDecided,
};
use tidegate::plan::{Rate, Reason, Stamp};
use tidegate::quota::{Grantee, Meter};

fn decided(epoch: u64, scale: &[(Meter, f64)]) -> Decided {
    Decided {
        pressures: BTreeMap::new(),
        places: None,
        in_flight: 0.0,
        unix_ms: UnixMillis(epoch),
        stamp: Stamp { term: 1, epoch },
        reason: Reason { code: "r".into(), text: "t".into() },
        scale: scale.iter().copied().collect(),
        meters: BTreeMap::new(),
    }
}

fn granted(rate: f64) -> Granted {
    let rate = Rate { rate, burst: 1.0 };
    Box::new([(Meter::REQUESTS_PER_MINUTE, ThresholdDecided { base: rate, effective: rate, by: DecidedBy::Law })])
}

fn tenant(n: usize) -> Grantee {
    Grantee::Tenant(format!("t{n:06}").parse().expect("a tenant"))
}

fn epochs(history: &History, n: usize) -> Vec<u64> {
    history.of(&tenant(n)).iter().map(|step| step.decided.stamp.epoch).collect()
}

#[test]
fn a_tenant_is_told_of_its_own_grants_and_of_the_pools_cuts() {
    let mut history = History::default();
    history.push(decided(1, &[]), vec![(tenant(0), granted(1.0)), (tenant(1), granted(2.0))]);
    history.push(decided(2, &[]), vec![]);
    history.push(decided(3, &[]), vec![(tenant(1), granted(3.0))]);
    history.push(decided(4, &[(Meter::REQUESTS_PER_MINUTE, 0.5)]), vec![]);
    assert_eq!((epochs(&history, 0), epochs(&history, 1)), (vec![1, 4], vec![1, 3, 4]));
    let steps = history.of(&tenant(1));
    assert_eq!(steps[1].thresholds[&Meter::REQUESTS_PER_MINUTE].base.rate, 3.0);
    assert!(steps[2].thresholds.is_empty());
}

#[test]
fn the_oldest_goes_when_there_are_too_many_publications_or_grants() {
    let mut history = History::default();
    for epoch in 0..100 {
        history.push(decided(epoch, &[]), vec![(tenant(0), granted(1.0))]);
    }
    assert_eq!(epochs(&history, 0), (36..100).collect::<Vec<_>>());
    assert_eq!(epochs(&history, 0).len(), PUBLICATIONS_MAX);
    let all = |n: usize| (0..n).map(|n| (tenant(n), granted(1.0))).collect::<Vec<_>>();
    for epoch in 100..110 {
        history.push(decided(epoch, &[]), all(GRANTS_MAX / 4));
    }
    assert_eq!(epochs(&history, 0), [106, 107, 108, 109]);
    // One publication is remembered whatever its size.
    history.push(decided(110, &[]), all(GRANTS_MAX + 1));
    assert_eq!(epochs(&history, 0), [110]);
}
