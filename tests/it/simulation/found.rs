//! What the simulation found, each as a test of its own: short, and without dice.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tidegate::client::{ClientParams, Core, PoolParams};
use tidegate::clock::{ManualClock, MonoTime};
use tidegate::plan::keyspace::{Key, Keyspace, LeaderRecord};
use tidegate::plan::Grant;
use tidegate::provider::{Dialect, Usage};
use tidegate::quota::Cost;
use tidegate::store::{Change, Entry, Kv, Op, Select, Txn};
use tidegate::telemetry::Telemetry;

use crate::by_hand::{RPM, grant, grantee, pool, pulse, rates, stamp, tenant};

/// One member, and a store to follow.
struct Stage {
    kv: Kv,
    clock: Arc<ManualClock>,
    core: Arc<Core>,
}

impl Stage {
    fn new() -> Self {
        let clock = Arc::new(ManualClock::at(MonoTime::from_millis(3_600_000)));
        let params = ClientParams {
            idle_after: Duration::from_secs(3),
            ..ClientParams::new(vec![PoolParams::new(pool(), Dialect::OpenAi)])
        };
        let core = Core::new(&params, "boot".to_owned(), 0.5, clock.clone(), Arc::new(Telemetry::new()));
        let mut stage = Self { kv: Kv::new(1), clock, core };
        let leader = LeaderRecord { name: "c".to_owned(), report_url: "http://c0".to_owned() };
        stage.put(&Key::Leader, &leader);
        stage
    }

    fn put(&mut self, key: &Key, value: &impl Serialize) -> Change {
        let key = Keyspace::default().key(key);
        let value = serde_json::to_vec(value).expect("serialises");
        let ops = vec![Op::Put { key: key.clone(), value, lease: None }];
        self.kv.commit(Txn { conditions: Vec::new(), ops }, Duration::ZERO).expect("a store that takes it");
        Change::Put(Entry::clone(self.kv.get(&key).expect("was put")))
    }

    /// Writes, and tells the member.
    fn tell(&mut self, key: &Key, value: &impl Serialize) {
        let change = self.put(key, value);
        self.core.on_changes(&[change], self.kv.revision());
    }

    fn tell_grant(&mut self, epoch: u64, rpm: f64, burst: f64) {
        let grant: Grant = grant(stamp(2, epoch), rates(&[(RPM, rpm, burst)]));
        self.tell(&Key::Limits(pool(), grantee("acme")), &grant);
        self.tell(&Key::Pulse(pool()), &pulse(stamp(2, epoch)));
    }

    fn list(&self) {
        let listing = self.kv.list(&[Select::Prefix("/".to_owned())]).expect("lists");
        self.core.on_list(&listing);
    }

    fn pass(&self, span: Duration) {
        let end = span.as_millis() / 250;
        for _ in 0..end {
            self.clock.advance(Duration::from_millis(250));
            self.core.keep_house();
        }
    }

    /// How many requests are admitted at once.
    fn admits(&self) -> usize {
        let pool = self.core.pool(&pool()).expect("its pool");
        let permits: Vec<_> =
            std::iter::from_fn(|| pool.try_admit(&tenant("acme"), Cost::request(1, 1)).ok()).take(1_000).collect();
        let admitted = permits.len();
        permits.into_iter().for_each(|permit| permit.settle(Usage { input_tokens: 1, output_tokens: 1 }));
        admitted
    }
}

/// An idle gate is dropped; one in its place was as full as the limits of *now* allow, also when these had just been raised.
#[test]
fn a_tenant_that_comes_back_after_a_raise_gets_no_burst_for_it() {
    let mut stage = Stage::new();
    stage.list();
    stage.tell_grant(1, 60.0, 6.0);
    assert!(stage.admits() <= 1);
    stage.tell_grant(2, 0.0, 1.0);
    stage.pass(Duration::from_secs(5));
    stage.tell_grant(3, 6_000.0, 600.0);
    let admitted = stage.admits();
    // A part of a second's worth, and not 600 ÷ the members.
    assert!(admitted <= 20, "{admitted} at once");
}

/// The other side of it: who only was away has what he had.
#[test]
fn a_tenant_that_comes_back_has_what_was_stored() {
    let mut stage = Stage::new();
    stage.list();
    stage.tell_grant(1, 600.0, 60.0);
    assert!(stage.admits() <= 2);
    for epoch in 2..100 {
        stage.tell(&Key::Pulse(pool()), &pulse(stamp(2, epoch)));
        stage.pass(Duration::from_secs(1));
    }
    // Without a share: a third of half of the burst.
    assert_eq!(stage.admits(), 10);
}
