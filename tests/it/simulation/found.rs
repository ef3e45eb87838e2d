//! What the simulation found, each as a test of its own: short, and without dice.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tidegate::client::{ClientParams, Core, PoolParams};
use tidegate::clock::{ManualClock, MonoTime};
use tidegate::plan::keyspace::{Key, Keyspace, LeaderRecord};
use tidegate::plan::{Grant, Reply};
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

/// A backup is restored under the same cluster id, and written to until its revision has passed the one that a member knows,
/// before that member lists again: no revision tells of it. It kept what it had, never took what the new leader wrote under a
/// lower term, and dropped its replies, for good.
#[test]
fn a_restored_backup_that_has_overtaken_a_member_is_noticed() {
    let mut stage = Stage::new();
    let backup = stage.kv.clone();
    stage.list();
    for epoch in 1..5 {
        stage.tell_grant(epoch, 60.0, 6.0);
    }
    let leader = LeaderRecord { name: "b".to_owned(), report_url: "http://c1".to_owned() };
    stage.kv.commit(Txn::delete(Keyspace::default().key(&Key::Leader)), Duration::ZERO).expect("deletes");
    stage.tell(&Key::Leader, &leader);
    let term = stage.kv.revision();
    stage.tell(&Key::Pulse(pool()), &pulse(stamp(term, 1)));

    stage.kv = backup;
    let known = term + 1;
    while stage.kv.revision() <= known {
        let epoch = stage.kv.revision();
        stage.put(&Key::Limits(pool(), grantee("acme")), &grant(stamp(2, epoch), rates(&[(RPM, 120.0, 12.0)])));
        stage.put(&Key::Pulse(pool()), &pulse(stamp(2, epoch)));
    }
    stage.list();
    let (state, granted) = stage.core.with_views(|views| {
        let view = &views[&pool()];
        let granted = view.stamps().map(|(_, stamp)| stamp).collect::<Vec<_>>();
        (view.pulse().map(|pulse| pulse.stamp.term), granted)
    });
    assert_eq!(state, Some(2), "the pulse of the restored store");
    assert_eq!(granted.len(), 1);
    assert_eq!(granted[0].term, 2);
    let reply = Reply { term: 2, epoch: 1, share_valid_ms: 5_000, next_report_ms: 250, shares: BTreeMap::new() };
    assert!(stage.core.on_reply(&reply, MonoTime::from_millis(3_600_000)).is_ok());
}
