//! 10,000 grants that have all changed: the controller's publishing, against the bare transactions.
//!
//! The controller takes its turns by a clock of ours, which does not wait for the second between two. Its time is what passes
//! between the answers to its transactions that put grants, from the one to the pulses before them on: taking grants from the
//! outbox, JSON, the fence, etcd, metrics and history. Planning is not in it; whole turns are told too. The peer puts the same
//! values under other keys of the same length, 128 in a transaction.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use etcd_client::TxnOp;
use parking_lot::Mutex;
use tidegate::clock::{ManualClock, MonoTime};
use tidegate::controller::{Leading, Reign, TICK_EVERY, Won};
use tidegate::observation::{PoolReport, REPORT_SCHEMA, Report};
use tidegate::plan::keyspace::Keyspace;
use tidegate::quota::PoolId;
use tidegate::store::{
    Entry, EtcdStore, LeaseId, Listing, Op, Outcome, Select, Source, Store, StoreError, TXN_OPS_MAX, Txn, Watch,
};
use tokio::time::Instant;

use super::goal::{Bounds, Goals};
use super::{connect, file, params, percentile, pool_name, with_etcd};

const TENANTS: usize = 10_000;
const BOUNDS: Bounds = Bounds { goal: 1.1, must: 1.3 };

/// A store that times the transactions with grants.
struct Timed {
    inner: EtcdStore,
    prefix: String,
    /// When the last transaction was answered, and how long those with grants took.
    times: Mutex<(Instant, Duration)>,
}

#[async_trait]
impl Source for Timed {
    async fn list(&self, selects: &[Select]) -> Result<Listing, StoreError> {
        self.inner.list(selects).await
    }

    async fn watch(&self, selects: &[Select], from_revision: u64) -> Result<Watch, StoreError> {
        self.inner.watch(selects, from_revision).await
    }
}

#[async_trait]
impl Store for Timed {
    async fn commit(&self, txn: Txn) -> Result<Outcome, StoreError> {
        let grants = txn.ops.iter().any(|op| matches!(op, Op::Put { key, .. } if key.starts_with(&self.prefix)));
        let outcome = self.inner.commit(txn).await;
        let (answered, now) = (&mut *self.times.lock(), Instant::now());
        if grants {
            answered.1 += now - answered.0;
        }
        answered.0 = now;
        outcome
    }

    async fn lease(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.inner.lease(ttl).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.inner.keep_alive(lease).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.inner.revoke(lease).await
    }
}

/// A controller whose turns are taken by hand.
struct Ours {
    leading: Leading,
    clock: Arc<ManualClock>,
    won: Won,
    reign: Reign,
    store: Arc<Timed>,
    pool: PoolId,
    /// A second member is there.
    joined: bool,
    /// How long whole turns took, of each round, in ms.
    turns: Vec<f64>,
}

impl Ours {
    async fn start(endpoint: &str) -> Self {
        let clock = Arc::new(ManualClock::at(MonoTime::from_millis(3_600_000)));
        let pool: PoolId = pool_name(0).parse().expect("valid");
        let (inner, prefix) = (connect(endpoint).await, Keyspace::default().limits_of(&pool));
        let store = Arc::new(Timed { inner, prefix, times: Mutex::new((Instant::now(), Duration::ZERO)) });
        let params = params(&file(endpoint, 1, TENANTS, 6e6));
        let url = "http://127.0.0.1:1".to_owned();
        let leading = Leading::new(params, url, store.clone(), clock.clone(), Arc::default());
        let won = leading.campaign().await.expect("etcd is there").expect("nobody else leads");
        leading.take_office(&won);
        let Ok(reign) = leading.begin(&won).await else { panic!("nothing was left to be read") };
        Self { leading, clock, won, reign, store, pool, joined: false, turns: Vec::new() }
    }

    fn report(&self, instance: &str, leaving: bool) {
        let pools = [(self.pool.clone(), PoolReport::default())].into();
        let (instance, boot) = (instance.to_owned(), "boot".to_owned());
        let report = Report { schema: REPORT_SCHEMA, instance, boot, leaving, pools };
        self.leading.answer(&report).expect("it leads");
    }

    /// The grants in the store.
    async fn grants(&self) -> Vec<Entry> {
        let all = [Select::Prefix(self.store.prefix.clone())];
        self.store.list(&all).await.expect("etcd is there").entries
    }

    /// A second member joins or leaves, which each grant tells of; then turns until all are written. How long that took, in ms.
    async fn publish(&mut self) -> f64 {
        let before = self.grants().await.iter().map(|entry| entry.mod_revision).max().unwrap_or(0);
        self.joined = !self.joined;
        let mut turns = Duration::ZERO;
        self.store.times.lock().1 = Duration::ZERO;
        loop {
            self.report("first", false);
            self.report("second", !self.joined);
            assert!(self.leading.keep(&self.won).await, "the lease lives");
            let begun = Instant::now();
            let turned = self.leading.turn(&mut self.reign, false).await;
            turns += begun.elapsed();
            turned.expect("it leads");
            self.clock.advance(TICK_EVERY);
            if self.grants().await.iter().filter(|entry| entry.mod_revision > before).count() > TENANTS {
                self.turns.push(turns.as_secs_f64() * 1e3);
                return self.store.times.lock().1.as_secs_f64() * 1e3;
            }
        }
    }
}

/// Puts what stands there under other keys; how long that took, in ms.
async fn bare(client: &mut etcd_client::Client, grants: &[Entry]) -> f64 {
    let put = |entry: &Entry| TxnOp::put(entry.key.replacen("limits", "stimil", 1), entry.value.clone(), None);
    let begun = Instant::now();
    for grants in grants.chunks(TXN_OPS_MAX) {
        let txn = etcd_client::Txn::new().and_then(grants.iter().map(put).collect::<Vec<_>>());
        assert!(client.txn(txn).await.expect("etcd is there").succeeded());
    }
    begun.elapsed().as_secs_f64() * 1e3
}

pub(crate) fn publishing(goals: &mut Goals) {
    let (runtime, etcd) = with_etcd(2);
    let (mut ours, mut client, grants) = runtime.block_on(async {
        let mut ours = Ours::start(etcd.endpoint()).await;
        ours.publish().await;
        let client = etcd_client::Client::connect([etcd.endpoint()], None).await.expect("etcd is there");
        let grants = ours.grants().await;
        (ours, client, grants)
    });
    let publish = || runtime.block_on(ours.publish());
    let bare = || runtime.block_on(bare(&mut client, &grants));
    goals.compare("protocol_10000_grants", "ms", Some(BOUNDS), publish, bare);
    println!("# publishing: whole turns take {:.1} ms", percentile(&mut ours.turns, 0.5));
}
