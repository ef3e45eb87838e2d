//! What fails around etcd, on a real one: full, restored from a backup, its lease revoked by hand, out of reach, compacted under
//! a watch. A client offers more than it may all the while; what it was let send is held against what it was to enforce.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tidegate::client::{Client, ClientParams, MemberState, Pool, PoolParams};
use tidegate::config::Config;
use tidegate::controller::Controller;
use tidegate::plan::Stamp;
use tidegate::plan::keyspace::{Key, Keyspace};
use tidegate::provider::Dialect;
use tidegate::quota::{Cost, Meter};
use tidegate::sim::{Etcd, EtcdSetup};
use tidegate::store::{EtcdStore, Op, Select, Source, Store, StoreError, Txn};
use tidegate::telemetry::Telemetry;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::by_hand::{grantee, tenant};
use super::world::eventually;

const RPM: Meter = Meter::REQUESTS_PER_MINUTE;
/// Fast, so that a part in a hundred is something.
const CONFIG: &str = "[controller]\nlisten = \"127.0.0.1:0\"\n[pools.pool]\ndialect = \"openai\"\n\
                      capacity = { \"requests/minute\" = 12000 }\n[pools.pool.tenants.acme]\n";
const OFFER_EVERY: Duration = Duration::from_millis(1);

/// A controller and a client on one etcd.
struct Stand {
    controller: Controller,
    client: Client,
    pool: Pool,
}

impl Stand {
    /// The client's way to etcd may be another than the controller's.
    async fn on(etcd: &Etcd, clients_way: &str) -> Self {
        let controller = controller(etcd.endpoint()).await;
        let store = EtcdStore::connect(&[clients_way.to_owned()]).await.expect("an endpoint");
        let params = ClientParams::new(vec![PoolParams::new("pool".parse().expect("valid"), Dialect::OpenAi)]);
        let client = Client::start(params, Arc::new(store), Arc::new(Telemetry::new())).await;
        let pool = client.pool("pool").expect("named");
        let stand = Self { controller, client, pool };
        stand.active_after(Stamp::default()).await;
        stand
    }

    fn state(&self) -> MemberState {
        self.pool.tuning().state
    }

    fn stamp(&self) -> Stamp {
        self.pool.tuning().stamp
    }

    /// Waits until it follows a leader again, by a pulse after `seen`.
    async fn active_after(&self, seen: Stamp) {
        eventually("the member follows a leader", async || {
            let tuning = self.pool.tuning();
            let granted = tuning.limits.contains_key(&grantee("acme"));
            (granted && tuning.state == MemberState::Active && tuning.stamp > seen).then_some(())
        })
        .await;
    }

    async fn is(&self, state: MemberState) {
        eventually(&format!("the member is {state:?}"), async || (self.state() == state).then_some(())).await;
    }

    async fn close(self) {
        self.client.close().await;
        self.controller.stop().await;
    }
}

async fn controller(endpoint: &str) -> Controller {
    let store = EtcdStore::connect(&[endpoint.to_owned()]).await.expect("an endpoint");
    let config = Config::parse("t.toml", CONFIG).expect("good");
    Controller::start(config.controller, Arc::new(store), Arc::new(Telemetry::new())).await.expect("it starts")
}

/// What was admitted, and what was to be.
#[derive(Debug, Clone, Copy, Default)]
struct Account {
    admitted: f64,
    /// The threshold in force, over time.
    allowed: f64,
}

/// Asks for more than there is, without a pause.
struct Offers {
    account: Arc<Mutex<Account>>,
    task: JoinHandle<()>,
}

impl Drop for Offers {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Offers {
    fn begin(pool: &Pool) -> Self {
        let (pool, account) = (pool.clone(), Arc::new(Mutex::new(Account::default())));
        let counted = account.clone();
        let task = tokio::spawn(async move {
            let acme = tenant("acme");
            let mut every = tokio::time::interval(OFFER_EVERY);
            // What is stored already is not of the time that is looked at.
            while pool.try_admit(&acme, Cost::request(0, 0)).is_ok() {}
            let mut then = Instant::now();
            loop {
                every.tick().await;
                // The larger of before and after: a retune may come between.
                let rate =
                    |pool: &Pool| pool.tuning().limits_of(&acme).map_or(0.0, |limits| limits.meters[&RPM].rate.rate);
                let before = rate(&pool);
                let mut admitted = 0.0;
                while pool.try_admit(&acme, Cost::request(0, 0)).is_ok() {
                    admitted += 1.0;
                }
                let now = Instant::now();
                let allowed = rate(&pool).max(before) / 60.0 * now.duration_since(then).as_secs_f64();
                then = now;
                let mut account = counted.lock();
                account.admitted += admitted;
                account.allowed += allowed;
            }
        });
        Self { account, task }
    }

    fn account(&self) -> Account {
        *self.account.lock()
    }

    /// Of all that was admitted, no more than one in a hundred was above what was to be enforced.
    fn hold(&self) {
        let Account { admitted, allowed } = self.account();
        println!("admitted {admitted} of {allowed:.1} that were allowed: {:+.2} %", (admitted / allowed - 1.0) * 100.0);
        assert!(admitted <= 1.01 * allowed + 1.0, "{admitted} of {allowed:.1}");
    }

    /// Waits until so many more were admitted.
    async fn admit_more(&self, what: &str) {
        let before = self.account().admitted;
        eventually(what, async || (self.account().admitted >= before + 200.0).then_some(())).await;
    }
}

/// A way to a server that can be cut.
struct Proxy {
    address: SocketAddr,
    cut: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Proxy {
    async fn to(endpoint: &str) -> Self {
        let target = endpoint.trim_start_matches("http://").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let (cut, is_cut) = watch::channel(false);
        let task = tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let (mut is_cut, target) = (is_cut.clone(), target.clone());
                tokio::spawn(async move {
                    if *is_cut.borrow() {
                        return;
                    }
                    let Ok(mut far) = TcpStream::connect(&target).await else { return };
                    tokio::select! {
                        _ = copy_bidirectional(&mut near, &mut far) => {}
                        _ = is_cut.wait_for(|cut| *cut) => {}
                    }
                });
            }
        });
        Self { address, cut, task }
    }

    fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Ends what goes through, and lets nothing through any more; or again.
    fn cut(&self, cut: bool) {
        self.cut.send_replace(cut);
    }
}

fn etcdctl(etcd: &Etcd, args: &[&str]) -> String {
    let output = etcd.etcdctl().expect("it is there").args(args).output().expect("it runs");
    assert!(output.status.success(), "etcdctl {args:?}: {output:?}");
    String::from_utf8(output.stdout).expect("text")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_etcd_brakes_members_which_go_on_and_recover_when_there_is_room() {
    let etcd =
        Etcd::start_as(&EtcdSetup { quota_bytes: Some(16 << 20), ..EtcdSetup::default() }).await.expect("starts");
    let stand = Stand::on(&etcd, etcd.endpoint()).await;
    let offers = Offers::begin(&stand.pool);
    let store = EtcdStore::connect(&[etcd.endpoint().to_owned()]).await.expect("an endpoint");
    let full = loop {
        let put = Op::Put { key: "/elsewhere/heap".to_owned(), value: vec![b'x'; 1 << 20], lease: None };
        if let Err(error) = store.commit(Txn { conditions: Vec::new(), ops: vec![put] }).await {
            break error;
        }
    };
    assert_eq!(full, StoreError::NoSpace);
    stand.is(MemberState::Braking).await;
    offers.admit_more("it goes on, slower").await;
    let seen = stand.stamp();
    // What an operator does, as the README says.
    let revision = store.list(&[Select::Key("/elsewhere/heap".to_owned())]).await.expect("readable").revision;
    etcdctl(&etcd, &["compact", &revision.to_string()]);
    etcdctl(&etcd, &["defrag"]);
    etcdctl(&etcd, &["alarm", "disarm"]);
    stand.active_after(seen).await;
    offers.admit_more("it goes on").await;
    offers.hold();
    stand.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_revoked_by_hand_ends_the_term_and_the_next_one_follows_at_once() {
    let etcd = Etcd::start().await.expect("etcd starts");
    let stand = Stand::on(&etcd, etcd.endpoint()).await;
    let offers = Offers::begin(&stand.pool);
    let seen = stand.stamp();
    let leader = Keyspace::default().key(&Key::Leader);
    let record: serde_json::Value =
        serde_json::from_str(&etcdctl(&etcd, &["get", &leader, "--write-out", "json"])).expect("JSON");
    let lease = record["kvs"][0]["lease"].as_i64().expect("a lease");
    etcdctl(&etcd, &["lease", "revoke", &format!("{lease:x}")]);
    let next = Stamp { term: seen.term + 1, epoch: 0 };
    stand.active_after(next).await;
    offers.admit_more("it goes on").await;
    offers.hold();
    stand.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_restored_from_a_backup_is_taken_as_it_is_and_gives_no_burst() {
    let mut etcd = Etcd::start().await.expect("etcd starts");
    let stand = Stand::on(&etcd, etcd.endpoint()).await;
    let folder = tempfile::tempdir().expect("a folder");
    let snapshot = folder.path().join("snapshot.db");
    etcdctl(&etcd, &["snapshot", "save", snapshot.to_str().expect("text")]);
    let offers = Offers::begin(&stand.pool);
    // Written after the backup: it will never have been.
    let later = Stamp { epoch: stand.stamp().epoch + 3, ..stand.stamp() };
    stand.active_after(later).await;
    etcd.restore(&snapshot).await.expect("etcd comes back");
    offers.admit_more("it goes on").await;
    let seen = stand.stamp();
    stand.active_after(seen).await;
    offers.admit_more("it goes on").await;
    offers.hold();
    stand.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_cut_off_brakes_lapses_and_catches_up_though_its_history_was_compacted() {
    let etcd = Etcd::start().await.expect("etcd starts");
    let proxy = Proxy::to(etcd.endpoint()).await;
    let stand = Stand::on(&etcd, &proxy.endpoint()).await;
    let offers = Offers::begin(&stand.pool);
    let (seen, cut_at) = (stand.stamp(), Instant::now());
    proxy.cut(true);
    stand.is(MemberState::Braking).await;
    println!("braking after {:?}", cut_at.elapsed());
    offers.admit_more("it goes on, slower").await;
    stand.is(MemberState::Lapsed).await;
    println!("lapsed after {:?}", cut_at.elapsed());
    offers.admit_more("it goes on with its safe thresholds").await;
    // What it has missed is gone.
    let store = EtcdStore::connect(&[etcd.endpoint().to_owned()]).await.expect("an endpoint");
    let revision = store.list(&[Select::Key("/none".to_owned())]).await.expect("readable").revision;
    etcdctl(&etcd, &["compact", &revision.to_string()]);
    proxy.cut(false);
    let healed_at = Instant::now();
    stand.active_after(Stamp { epoch: seen.epoch + 10, ..seen }).await;
    println!("active again after {:?}", healed_at.elapsed());
    offers.admit_more("it goes on").await;
    offers.hold();
    stand.close().await;
}
