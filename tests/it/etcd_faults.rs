//! What fails around etcd, on a real one: full, restored from a backup, its lease revoked by hand, out of reach, compacted under
//! a watch. A client offers more than it may all the while; what it was let send is held against what it was to enforce.

use std::time::Duration;

use tidegate::client::MemberState;
use tidegate::controller::Controller;
use tidegate::plan::Stamp;
use tidegate::plan::keyspace::{Key, Keyspace};
use tidegate::sim::{Etcd, EtcdSetup};
use tidegate::store::{EtcdStore, Op, Select, Source, Store, StoreError, Txn};
use tokio::time::Instant;

use super::stand::{BRAKES_AFTER, LOOKS_EVERY, Member, Offers, Proxy, TAKEOVER, Weather, controller, in_time};
use super::world::eventually;

/// A controller and a client on one etcd.
struct Stand {
    controller: Controller,
    member: Member,
}

impl Stand {
    /// The client's way to etcd may be another than the controller's.
    async fn on(etcd: &Etcd, clients_way: &str) -> Self {
        let controller = controller(&[etcd.endpoint().to_owned()], None).await;
        Self { controller, member: Member::on(&[clients_way.to_owned()]).await }
    }

    async fn close(self) {
        self.member.client.close().await;
        self.controller.stop().await;
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
    let offers = Offers::begin(&stand.member.pool);
    let store = EtcdStore::connect(&[etcd.endpoint().to_owned()]).await.expect("an endpoint");
    let full = loop {
        let put = Op::Put { key: "/elsewhere/heap".to_owned(), value: vec![b'x'; 1 << 20], lease: None };
        if let Err(error) = store.commit(Txn { conditions: Vec::new(), ops: vec![put] }).await {
            break error;
        }
    };
    assert_eq!(full, StoreError::NoSpace);
    stand.member.is(MemberState::Braking).await;
    offers.admit_more("it goes on, slower").await;
    let seen = stand.member.stamp();
    // What an operator does, as the README says.
    let revision = store.list(&[Select::Key("/elsewhere/heap".to_owned())]).await.expect("readable").revision;
    etcdctl(&etcd, &["compact", &revision.to_string()]);
    etcdctl(&etcd, &["defrag"]);
    etcdctl(&etcd, &["alarm", "disarm"]);
    stand.member.active_after(seen).await;
    offers.admit_more("it goes on").await;
    offers.hold();
    stand.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_revoked_by_hand_ends_the_term_and_the_next_one_follows_at_once() {
    let etcd = Etcd::start().await.expect("etcd starts");
    let stand = Stand::on(&etcd, etcd.endpoint()).await;
    let offers = Offers::begin(&stand.member.pool);
    let seen = stand.member.stamp();
    let leader = Keyspace::default().key(&Key::Leader);
    let record: serde_json::Value =
        serde_json::from_str(&etcdctl(&etcd, &["get", &leader, "--write-out", "json"])).expect("JSON");
    let lease = record["kvs"][0]["lease"].as_i64().expect("a lease");
    etcdctl(&etcd, &["lease", "revoke", &format!("{lease:x}")]);
    let next = Stamp { term: seen.term + 1, epoch: 0 };
    stand.member.active_after(next).await;
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
    let offers = Offers::begin(&stand.member.pool);
    // Written after the backup: it will never have been.
    let later = Stamp { epoch: stand.member.stamp().epoch + 3, ..stand.member.stamp() };
    stand.member.active_after(later).await;
    etcd.restore(&snapshot).await.expect("etcd comes back");
    offers.admit_more("it goes on").await;
    let seen = stand.member.stamp();
    stand.member.active_after(seen).await;
    offers.admit_more("it goes on").await;
    offers.hold_in_any_order();
    stand.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_cut_off_brakes_lapses_and_catches_up_though_its_history_was_compacted() {
    let etcd = Etcd::start().await.expect("etcd starts");
    let proxy = Proxy::to(etcd.endpoint()).await;
    let stand = Stand::on(&etcd, &proxy.url()).await;
    let offers = Offers::begin(&stand.member.pool);
    let (seen, cut_at) = (stand.member.stamp(), Instant::now());
    proxy.is(Weather::Cut);
    stand.member.is(MemberState::Braking).await;
    println!("braking after {:?}", cut_at.elapsed());
    offers.admit_more("it goes on, slower").await;
    stand.member.is(MemberState::Lapsed).await;
    println!("lapsed after {:?}", cut_at.elapsed());
    offers.admit_more("it goes on with its safe thresholds").await;
    // What it has missed is gone.
    let store = EtcdStore::connect(&[etcd.endpoint().to_owned()]).await.expect("an endpoint");
    let revision = store.list(&[Select::Key("/none".to_owned())]).await.expect("readable").revision;
    etcdctl(&etcd, &["compact", &revision.to_string()]);
    proxy.is(Weather::Clear);
    let healed_at = Instant::now();
    stand.member.active_after(Stamp { epoch: seen.epoch + 10, ..seen }).await;
    println!("active again after {:?}", healed_at.elapsed());
    offers.admit_more("it goes on").await;
    offers.hold();
    stand.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_that_is_killed_and_comes_back_leaves_no_gap_and_gives_no_burst() {
    let mut etcd = Etcd::start().await.expect("etcd starts");
    let stand = Stand::on(&etcd, etcd.endpoint()).await;
    let offers = Offers::begin(&stand.member.pool);
    stand.member.holds_most().await;
    offers.admit_more("it goes").await;
    let killed_at = Instant::now();
    etcd.kill().expect("kill -9");
    stand.member.is(MemberState::Braking).await;
    let braking = offers.first(MemberState::Braking, killed_at).await - offers.heard_before(killed_at);
    offers.admit_more("it goes on").await;
    let seen = stand.member.stamp();
    etcd.restart().await.expect("etcd comes back");
    let back_at = Instant::now();
    stand.member.active_after(seen).await;
    let active = back_at.elapsed();
    stand.member.holds_most().await;
    let whole = back_at.elapsed();
    offers.admit_more("it goes on").await;
    println!(
        "etcd killed: braking after {braking:.2?}; back: active after {active:.2?}, most is had again after {whole:.2?}; {}",
        offers.hold()
    );
    offers.hold_steady();
    in_time("braking", braking, BRAKES_AFTER + LOOKS_EVERY);
    // The lease of before has run out, and another term begun.
    in_time("active", active, TAKEOVER);
    stand.close().await;
}

/// The node that leads first: which everyone asks first.
fn leader_first(cluster: &mut [Etcd]) {
    let leads = |etcd: &Etcd| {
        let status: serde_json::Value =
            serde_json::from_str(&etcdctl(etcd, &["endpoint", "status", "--write-out", "json"])).expect("JSON");
        let status = &status[0]["Status"];
        status["leader"] == status["header"]["member_id"]
    };
    let leader = cluster.iter().position(leads).expect("one leads");
    cluster.swap(0, leader);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_three_etcd_nodes_the_leading_one_is_killed_and_nobody_brakes_for_longer_than_an_election() {
    let mut cluster = Etcd::start_cluster(3, &EtcdSetup::default()).await.expect("etcd starts");
    leader_first(&mut cluster);
    let endpoints: Vec<String> = cluster.iter().map(|etcd| etcd.endpoint().to_owned()).collect();
    let controller = controller(&endpoints, None).await;
    let member = Member::on(&endpoints).await;
    let offers = Offers::begin(&member.pool);
    member.holds_most().await;
    offers.admit_more("it goes").await;
    let bare = EtcdStore::connect(&endpoints[1..2]).await.expect("an endpoint");
    let (seen, killed_at) = (member.stamp(), Instant::now());
    cluster[0].kill().expect("kill -9");
    // Nothing can be written before the others have elected one of them.
    eventually("an election", async || bare.commit(Txn::put("/elsewhere/a".into(), Vec::new())).await.ok()).await;
    let election = killed_at.elapsed();
    member.active_after(seen).await;
    let heard = killed_at.elapsed();
    // Longer than a share lives.
    member.active_after(Stamp { epoch: seen.epoch + 7, ..seen }).await;
    let inactive = offers.inactive(killed_at);
    println!(
        "etcd's leading node killed: elected after {election:.2?}, heard after {heard:.2?}, not active for {inactive:.2?}; {}",
        offers.hold()
    );
    offers.hold_steady();
    // On a machine that is slow to elect the controller's lease may run out meanwhile: then a takeover comes on top.
    let again = member.stamp().term > seen.term;
    let most = election + if again { TAKEOVER } else { Duration::ZERO };
    assert!(inactive <= most, "{inactive:?} of {most:?}, another term: {again}");
    member.client.close().await;
    controller.stop().await;
}

/// The nodes answer whoever asks them, but hear nothing of each other: a watch has signs of life and no news.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_nodes_that_lose_each_other_brake_members_and_nothing_older_comes_back() {
    let (mut ways, setup) = (Vec::new(), EtcdSetup::default());
    let cluster = Etcd::start_cluster_behind(3, &setup, async |peer_url| {
        ways.push(Proxy::to(&peer_url).await);
        ways[ways.len() - 1].url()
    });
    let mut cluster = cluster.await.expect("etcd starts");
    leader_first(&mut cluster);
    let endpoints: Vec<String> = cluster.iter().map(|etcd| etcd.endpoint().to_owned()).collect();
    let controller = controller(&endpoints, None).await;
    let member = Member::on(&endpoints).await;
    let offers = Offers::begin(&member.pool);
    member.holds_most().await;

    let slow_at = Instant::now();
    for way in &ways {
        way.is(Weather::Slow(50, 150));
    }
    let seen = member.stamp();
    member.active_after(Stamp { epoch: seen.epoch + 5, ..seen }).await;
    println!("slow ways between etcd nodes: not active for {:.2?}; {}", offers.inactive(slow_at), offers.hold());

    let (seen, cut_at) = (member.stamp(), Instant::now());
    for way in &ways {
        way.is(Weather::Cut);
    }
    let braking = offers.first(MemberState::Braking, cut_at).await.duration_since(offers.heard_before(cut_at));
    offers.admit_more("it goes on").await;
    let healed_at = Instant::now();
    for way in &ways {
        way.is(Weather::Clear);
    }
    member.active_after(seen).await;
    let active = healed_at.elapsed();
    println!(
        "etcd nodes cut from each other: braking after {braking:.2?}, active {active:.2?} after; {}",
        offers.hold()
    );
    in_time("braking", braking, BRAKES_AFTER + LOOKS_EVERY);
    member.client.close().await;
    controller.stop().await;
}
