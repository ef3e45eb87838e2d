//! 10,000 grants that have all changed: the controller's turns until the last one is written, against the bare transactions.
//!
//! The controller's time is that of whole turns, by a clock of ours that does not wait for the second between two: reading what
//! operators wrote, planning, pulses, and as many grants as a turn writes. The peer puts the same values under other keys of
//! the same length, 128 in a transaction.

use std::sync::Arc;
use std::time::Duration;

use etcd_client::{Txn, TxnOp};
use tidegate::clock::{ManualClock, MonoTime};
use tidegate::controller::{Leading, Reign, TICK_EVERY, Won};
use tidegate::observation::{PoolReport, REPORT_SCHEMA, Report};
use tidegate::plan::keyspace::Keyspace;
use tidegate::quota::PoolId;
use tidegate::store::{Entry, EtcdStore, Select, Source, TXN_OPS_MAX};
use tokio::time::Instant;

use super::goal::{Bounds, Goals};
use super::{connect, file, params, pool_name, with_etcd};

const TENANTS: usize = 10_000;
const BOUNDS: Bounds = Bounds { goal: 1.1, must: 1.3 };

/// A controller whose turns are taken by hand.
struct Ours {
    leading: Leading,
    clock: Arc<ManualClock>,
    won: Won,
    reign: Reign,
    store: EtcdStore,
    pool: PoolId,
    /// A second member is there.
    joined: bool,
}

impl Ours {
    async fn start(endpoint: &str) -> Self {
        let clock = Arc::new(ManualClock::at(MonoTime::from_millis(3_600_000)));
        let store = connect(endpoint).await;
        let params = params(&file(endpoint, 1, TENANTS, 6e6));
        let url = "http://127.0.0.1:1".to_owned();
        let leading = Leading::new(params, url, Arc::new(store.clone()), clock.clone(), Arc::default());
        let won = leading.campaign().await.expect("etcd is there").expect("nobody else leads");
        leading.take_office(&won);
        let Ok(reign) = leading.begin(&won).await else { panic!("nothing was left to be read") };
        let pool = pool_name(0).parse().expect("valid");
        Self { leading, clock, won, reign, store, pool, joined: false }
    }

    fn report(&self, instance: &str, leaving: bool) {
        let pools = [(self.pool.clone(), PoolReport::default())].into();
        let (instance, boot) = (instance.to_owned(), "boot".to_owned());
        let report = Report { schema: REPORT_SCHEMA, instance, boot, leaving, pools };
        self.leading.answer(&report).expect("it leads");
    }

    /// The grants in the store.
    async fn grants(&self) -> Vec<Entry> {
        let all = [Select::Prefix(Keyspace::default().limits_of(&self.pool))];
        self.store.list(&all).await.expect("etcd is there").entries
    }

    /// A second member joins or leaves, which each grant tells of; then turns until all are written. How long these took, in ms.
    async fn publish(&mut self) -> f64 {
        let before = self.grants().await.iter().map(|entry| entry.mod_revision).max().unwrap_or(0);
        self.joined = !self.joined;
        let mut took = Duration::ZERO;
        loop {
            self.report("first", false);
            self.report("second", !self.joined);
            assert!(self.leading.keep(&self.won).await, "the lease lives");
            let begun = Instant::now();
            let turned = self.leading.turn(&mut self.reign, false).await;
            took += begun.elapsed();
            turned.expect("it leads");
            self.clock.advance(TICK_EVERY);
            if self.grants().await.iter().filter(|entry| entry.mod_revision > before).count() > TENANTS {
                return took.as_secs_f64() * 1e3;
            }
        }
    }
}

/// Puts what stands there under other keys; how long that took, in ms.
async fn bare(client: &mut etcd_client::Client, grants: &[Entry]) -> f64 {
    let put = |entry: &Entry| TxnOp::put(entry.key.replacen("limits", "stimil", 1), entry.value.clone(), None);
    let begun = Instant::now();
    for grants in grants.chunks(TXN_OPS_MAX) {
        let txn = Txn::new().and_then(grants.iter().map(put).collect::<Vec<_>>());
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
}
