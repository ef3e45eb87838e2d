//! The bugs of others in following a store, each named with where it was reported or, where it was only read in their code,
//! with whose it is. A client follows a store that fails at the worst moment.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tidegate::client::{Client, ClientParams, Pool, PoolParams, Refusal};
use tidegate::plan::{Pulse, Thresholds};
use tidegate::provider::Dialect;
use tidegate::quota::Cost;
use tidegate::sim::Etcd;
use tidegate::store::{
    EtcdStore, LeaseId, Listing, MemoryStore, Outcome, Select, Source, Store, StoreError, Txn, Watch,
};
use tidegate::telemetry::{Metric, Telemetry};
use tokio::sync::Notify;

use super::admission::eventually;
use super::by_hand::{Hand, POOL, RPM, grant, grantee, pool, pulse, rates, stamp, target, tenant};

const ONE: Cost = Cost::request(0, 0);

/// What the store does wrong next.
#[derive(Debug)]
enum Fault {
    /// Something is written after a list has been read, and before it is answered.
    WriteBehindTheList(Txn),
    /// The watch's history is compacted away.
    Compacted,
}

/// A store in memory with faults, one for each list or watch, in order.
#[derive(Debug, Default)]
struct Faults {
    list: Mutex<VecDeque<Fault>>,
    watch: Mutex<VecDeque<Fault>>,
    /// Each watch ends as soon as it has begun,
    watches_break: AtomicBool,
    /// and the one that runs ends now.
    breaks: Notify,
    lists: AtomicUsize,
}

#[derive(Debug, Clone)]
struct FaultyStore {
    inner: MemoryStore,
    faults: Arc<Faults>,
}

#[async_trait]
impl Source for FaultyStore {
    async fn list(&self, selects: &[Select]) -> Result<Listing, StoreError> {
        let listing = self.inner.list(selects).await?;
        self.faults.lists.fetch_add(1, Ordering::SeqCst);
        let fault = self.faults.list.lock().pop_front();
        if let Some(Fault::WriteBehindTheList(txn)) = fault {
            self.inner.commit(txn).await?;
        }
        Ok(listing)
    }

    async fn watch(&self, selects: &[Select], from_revision: u64) -> Result<Watch, StoreError> {
        if self.faults.watches_break.load(Ordering::SeqCst) {
            return Ok(Watch::driven(|sender| async move {
                let broken = StoreError::Rejected("watch canceled".to_owned());
                let _ = sender.send(Err(broken)).await;
            }));
        }
        if let Some(Fault::Compacted) = self.faults.watch.lock().pop_front() {
            return Err(StoreError::Compacted { revision: from_revision + 1 });
        }
        let mut watch = self.inner.watch(selects, from_revision).await?;
        let faults = self.faults.clone();
        Ok(Watch::driven(|sender| async move {
            loop {
                let event = tokio::select! {
                    event = watch.next() => event,
                    () = faults.breaks.notified() => Err(StoreError::Rejected("watch canceled".to_owned())),
                };
                let over = event.is_err();
                if sender.send(event).await.is_err() || over {
                    return;
                }
            }
        }))
    }
}

#[async_trait]
impl Store for FaultyStore {
    async fn commit(&self, txn: Txn) -> Result<Outcome, StoreError> {
        self.inner.commit(txn).await
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

/// A pool with one tenant's grant, in a store with these faults.
struct Stage {
    hand: Hand,
    faults: Arc<Faults>,
    telemetry: Arc<Telemetry>,
    client: Client,
    pool: Pool,
}

fn per_minute(rate: f64) -> Thresholds {
    rates(&[(RPM, rate, 1.0)])
}

impl Stage {
    async fn open(faults: Faults) -> Self {
        let (hand, faults, telemetry) = (Hand::new(), Arc::new(faults), Arc::new(Telemetry::new()));
        hand.grant("acme", &grant(stamp(1, 1), per_minute(60.0))).await;
        hand.lead("http://127.0.0.1:1").await;
        hand.pulse(&Pulse { valid_for_ms: 3_600_000, ..pulse(stamp(1, 1)) }).await;
        let store = FaultyStore { inner: hand.store.clone(), faults: faults.clone() };
        let params = ClientParams::new(vec![PoolParams::new(pool(), Dialect::OpenAi)]);
        let client = Client::start(params, Arc::new(store), telemetry.clone()).await;
        let pool = client.pool(POOL).expect("named");
        Self { hand, faults, telemetry, client, pool }
    }

    /// Requests per minute that are granted to the tenant; its share is a third, of the safe half.
    fn granted(&self) -> Option<f64> {
        self.pool.tuning().limits.get(&grantee("acme")).map(|limits| (limits.meters[&RPM].rate.rate * 6.0).round())
    }

    async fn has(&self, rate: f64) {
        eventually("the grant is in force", || self.granted() == Some(rate)).await;
    }

    fn reopened(&self, why: &str) -> f64 {
        reopened(&self.telemetry, why)
    }
}

/// How often a watch was opened again, for this reason.
fn reopened(telemetry: &Telemetry, why: &str) -> f64 {
    let samples = telemetry.snapshot();
    let of = samples.iter().filter(|sample| sample.metric == Metric::WatchReopened && sample.labels == [why]);
    of.map(|sample| sample.value.number()).sum()
}

fn put(hand: &Hand, epoch: u64, rate: f64) -> Txn {
    use tidegate::plan::keyspace::Key;
    let record = serde_json::to_vec(&grant(stamp(1, epoch), per_minute(rate))).expect("serialises");
    Txn::put(hand.keys.key(&Key::Limits(pool(), grantee("acme"))), record)
}

#[tokio::test(flavor = "multi_thread")]
async fn sentinel_java_an_update_between_the_list_and_the_watch_is_lost() {
    let faults = Faults::default();
    let hand = Hand::new();
    faults.list.lock().push_back(Fault::WriteBehindTheList(put(&hand, 2, 600.0)));
    let stage = Stage::open(faults).await;
    stage.has(600.0).await;
    assert_eq!(stage.faults.lists.load(Ordering::SeqCst), 1, "from the watch, not from a second list");
}

#[tokio::test(flavor = "multi_thread")]
async fn aperture_2477_a_compacted_history_ends_following_for_good() {
    let faults = Faults::default();
    faults.watch.lock().push_back(Fault::Compacted);
    let stage = Stage::open(faults).await;
    stage.has(60.0).await;
    eventually("it was compacted", || stage.reopened("compacted") == 1.0).await;
    stage.hand.store.commit(put(&stage.hand, 2, 600.0)).await.expect("memory");
    stage.has(600.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn aperture_a_list_again_purges_first_and_lets_everything_through_meanwhile() {
    let stage = Stage::open(Faults::default()).await;
    stage.hand.override_of(target("acme"), r#"{"block":true}"#).await;
    let blocked = || stage.pool.tuning().limits.get(&grantee("acme")).is_some_and(|limits| limits.blocked);
    eventually("the block is in force", blocked).await;
    let before = stage.faults.lists.load(Ordering::SeqCst);
    stage.faults.watches_break.store(true, Ordering::SeqCst);
    stage.faults.breaks.notify_one();
    let five_lists = async {
        let mut asked = 0_u64;
        while stage.faults.lists.load(Ordering::SeqCst) < before + 5 {
            let answer = stage.pool.try_admit(&tenant("acme"), ONE);
            assert!(matches!(answer, Err(Refusal::WaitUntil { .. })), "{answer:?}");
            asked += 1;
            tokio::task::yield_now().await;
        }
        asked
    };
    let asked = tokio::time::timeout(Duration::from_secs(20), five_lists).await.expect("five lists");
    assert!(asked > 5, "{asked}");
}

#[tokio::test(flavor = "multi_thread")]
async fn sentinel_java_a_deleted_rule_leaves_no_limit() {
    let stage = Stage::open(Faults::default()).await;
    stage.has(60.0).await;
    stage.hand.delete(&tidegate::plan::keyspace::Key::Limits(pool(), grantee("acme"))).await;
    eventually("it is one of the others", || stage.granted().is_none()).await;
    // The others have the bootstrap thresholds, one at a time and ten a minute: never nothing.
    let admitted = (0..100).filter(|_| stage.pool.try_admit(&tenant("acme"), ONE).is_ok()).count();
    assert!(admitted <= 2, "{admitted}");
}

#[tokio::test(flavor = "multi_thread")]
async fn sentinel_rust_a_client_that_closes_deletes_the_rule_for_all() {
    let stage = Stage::open(Faults::default()).await;
    stage.has(60.0).await;
    let keys = || async {
        let all = stage.hand.store.list(&[Select::Prefix("/tidegate/".to_owned())]).await.expect("memory");
        let keys = all.entries.into_iter().map(|entry| entry.key);
        keys.filter(|key| !key.contains("/members/")).collect::<Vec<_>>()
    };
    let before = keys().await;
    stage.client.close().await;
    assert_eq!(keys().await, before);
}

/// And calico #11802: that the store is gone is counted at once, not found out after half an hour.
#[tokio::test(flavor = "multi_thread")]
async fn aperture_2464_an_agent_that_loses_its_store_crashes_again_and_again() {
    let mut etcd = Etcd::start().await.expect("etcd starts");
    let store = EtcdStore::connect(&[etcd.endpoint().to_owned()]).await.expect("a store");
    let hand = Hand::new();
    store.commit(put(&hand, 1, 60.0)).await.expect("etcd is there");
    let telemetry = Arc::new(Telemetry::new());
    let params = ClientParams::new(vec![PoolParams::new(pool(), Dialect::OpenAi)]);
    let client = Client::start(params, Arc::new(store.clone()), telemetry.clone()).await;
    let pool = client.pool(POOL).expect("named");
    let granted = || pool.tuning().limits.get(&grantee("acme")).map(|limits| limits.meters[&RPM].rate.rate);
    eventually("the grant is in force", || granted().is_some()).await;
    let before = granted();

    etcd.kill().expect("kill -9");
    let lost = || reopened(&telemetry, "unavailable") > 1.0;
    eventually("the store is missed", lost).await;
    assert_eq!(granted(), before, "what it had, it has");

    etcd.restart().await.expect("etcd starts again");
    let raised = put(&hand, 2, 600.0);
    while store.commit(raised.clone()).await.is_err() {
        tokio::task::yield_now().await;
    }
    eventually("it follows again", || granted().zip(before).is_some_and(|(now, then)| now > 5.0 * then)).await;
}
