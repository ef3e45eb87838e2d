//! The outbox against a store that loses requests, and answers: what stands there never allows more than was planned.

use std::collections::BTreeMap;

use proptest::prelude::*;
use tidegate::clock::MonoTime;
use tidegate::controller::outbox::{Cut, Outbox};
use tidegate::plan::{GRANT_SCHEMA, Grant, PULSE_SCHEMA, Pulse, Rate, Reason, Stamp, Thresholds};
use tidegate::quota::{Grantee, Meter};

const RPM: Meter = Meter::REQUESTS_PER_MINUTE;
/// How much more than planned may stand: what falls by less is no cut, what moves by less is not rewritten.
const DEADBAND: f64 = 1.045;

fn grant(rate: f64) -> Grant {
    let thresholds = Thresholds { rates: [(RPM, Rate { rate, burst: 1.0 })].into(), concurrency: None };
    Grant {
        schema: GRANT_SCHEMA,
        stamp: Stamp::default(),
        safe: thresholds.scaled(0.5),
        thresholds,
        algorithms: BTreeMap::new(),
        bounded: std::collections::BTreeSet::new(),
        members: 1,
        reason: Reason { code: "test".into(), text: String::new() },
    }
}

fn planned(rates: &[f64]) -> BTreeMap<Grantee, Grant> {
    let named = rates.iter().enumerate().filter(|(_, rate)| **rate > 0.0);
    named.map(|(i, rate)| (Grantee::Tenant(format!("t{i:02}").parse().unwrap()), grant(*rate))).collect()
}

fn sum(grants: &BTreeMap<Grantee, Grant>) -> f64 {
    grants.values().map(|grant| grant.thresholds.rates[&RPM].rate).sum()
}

fn pulse(stamp: Stamp, cut: Cut) -> Pulse {
    Pulse {
        schema: PULSE_SCHEMA,
        stamp,
        valid_for_ms: 15_000,
        capacity: BTreeMap::new(),
        overcommit: BTreeMap::new(),
        shared: BTreeMap::new(),
        scale: cut.scale,
        scale_epoch: cut.epoch,
        hold_ms: BTreeMap::new(),
        window_left_ms: BTreeMap::new(),
        mode: tidegate::plan::Mode::Enforce,
        unix_ms: tidegate::clock::UnixMillis(0),
    }
}

/// What a transaction meets.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fate {
    Heard,
    /// Written, and the answer lost.
    Unheard,
    Lost,
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![6 => Just(Fate::Heard), 2 => Just(Fate::Unheard), 2 => Just(Fate::Lost)]
}

struct Store {
    outbox: Outbox,
    pulse: Option<Pulse>,
    grants: BTreeMap<Grantee, Grant>,
    now_ms: u64,
    /// The most that was allowed after any transaction of the last tick, once its pulse was written.
    peak: f64,
}

impl Store {
    fn new() -> Self {
        Self { outbox: Outbox::new(1, BTreeMap::new()), pulse: None, grants: BTreeMap::new(), now_ms: 0, peak: 0.0 }
    }

    /// One tick: the pulse, then at most `batches` of 3 grants, as the fates have it. Nothing follows what was not heard.
    fn tick(&mut self, rates: &[f64], batches: usize, fates: &mut dyn Iterator<Item = Fate>) {
        self.now_ms += 1_000;
        let now = MonoTime::from_millis(self.now_ms);
        let reason = Reason { code: "test".into(), text: String::new() };
        let (stamp, cut) = self.outbox.plan(&planned(rates), &reason, now);
        let mut next = || fates.next().unwrap_or(Fate::Heard);
        let met = next();
        if met != Fate::Lost {
            self.pulse = Some(pulse(stamp, cut));
        }
        self.peak = self.allowed();
        if met != Fate::Heard {
            return;
        }
        for _ in 0..batches {
            let batch = self.outbox.take(3);
            let met = next();
            if met != Fate::Lost {
                for (grantee, grant) in &batch {
                    match grant {
                        Some(grant) => {
                            let (safe, whole) = (grant.safe.rates[&RPM].rate, grant.thresholds.rates[&RPM].rate);
                            assert!(safe <= 0.5 * whole + 1e-9, "{safe} is called safe, of {whole}");
                            self.grants.insert(grantee.clone(), grant.clone());
                        }
                        None => drop(self.grants.remove(grantee)),
                    }
                }
            }
            self.peak = self.peak.max(self.allowed());
            if met != Fate::Heard {
                return;
            }
            self.outbox.committed(batch, now);
        }
    }

    /// What members that have read all of it grant together.
    fn allowed(&self) -> f64 {
        let scale = |grant: &Grant| self.pulse.as_ref().map_or(1.0, |pulse| pulse.scale_for(grant.stamp, RPM));
        self.grants.values().map(|grant| grant.thresholds.rates[&RPM].rate * scale(grant)).sum()
    }
}

proptest! {
    /// Members obey what stands in the store. Whatever gets lost, from the moment a pulse is written they grant no more than
    /// was planned then, and when nothing is lost any more the plan stands.
    #[test]
    fn what_stands_never_allows_more_than_was_planned(
        steps in prop::collection::vec((prop::collection::vec(0.0..100.0_f64, 8), 0..4_usize, prop::collection::vec(fate(), 4)), 1..30)
    ) {
        let mut store = Store::new();
        let mut most = 0.0_f64;
        for (rates, batches, fates) in &steps {
            let before = store.pulse.as_ref().map(|pulse| pulse.stamp);
            store.tick(rates, *batches, &mut fates.iter().copied());
            let told = store.pulse.as_ref().map(|pulse| pulse.stamp) != before;
            // A pulse that got lost leaves the last plan in force, or the one before it.
            most = if told { sum(&planned(rates)) } else { most.max(sum(&planned(rates))) };
            prop_assert!(store.peak <= most * DEADBAND + 0.01, "{} of {most}", store.peak);
        }
        let (rates, ..) = &steps[steps.len() - 1];
        for _ in 0..3 {
            store.tick(rates, 10, &mut std::iter::empty());
        }
        prop_assert!(store.pulse.as_ref().is_some_and(|pulse| pulse.scale.is_empty()));
        prop_assert!(store.grants.keys().eq(planned(rates).keys()));
        for (grantee, grant) in planned(rates) {
            prop_assert!(!grant.differs_from(&store.grants[&grantee], 0.021), "{grantee}");
        }
    }
}

#[test]
fn a_cut_stays_in_the_pulse_until_each_grant_contains_it_and_touches_none_that_does() {
    let mut store = Store::new();
    store.tick(&[100.0; 8], 10, &mut std::iter::empty());
    let mut cuts = Vec::new();
    for _ in 0..4 {
        // Three grants a tick: eight take three ticks.
        store.tick(&[50.0; 8], 1, &mut std::iter::empty());
        let pulse = store.pulse.as_ref().unwrap();
        cuts.push(pulse.scale.get(&RPM).copied());
        for grant in store.grants.values() {
            let rate = grant.thresholds.rates[&RPM].rate * pulse.scale_for(grant.stamp, RPM);
            assert!((rate - 50.0).abs() < 0.01, "each grant is halved, none twice: {rate}");
        }
    }
    assert_eq!(cuts, [Some(0.5), Some(0.5), Some(0.5), None]);
}

#[test]
fn batches_go_round_so_that_no_tenant_is_always_the_last() {
    let mut store = Store::new();
    let mut written = std::collections::BTreeSet::new();
    for i in 0..4_u32 {
        // Everybody's rises all the time, and only three are written each time.
        store.tick(&[100.0 + 50.0 * f64::from(i); 8], 1, &mut std::iter::empty());
        written.extend(store.grants.keys().cloned());
    }
    assert_eq!(written.len(), 8);
}
