//! One suite for both stores: what holds for memory holds for a real etcd. Then what only an etcd can do: be away,
//! hang, die and come back.

use std::future::Future;
use std::slice;
use std::sync::Arc;
use std::time::Duration;

use tidegate::client::{Client, ClientParams, Pool, PoolParams};
use tidegate::plan::keyspace::{Key, Keyspace};
use tidegate::plan::{Grant, Reason};
use tidegate::provider::Dialect;
use tidegate::quota::Grantee;
use tidegate::sim::Etcd;
use tidegate::sim::process::free_port;
use tidegate::store::{
    Change, Condition, EtcdStore, LeaseId, MemoryStore, Op, Outcome, Select, Source, Store, StoreError, TXN_OPS_MAX,
    Txn, Watch, WatchEvent,
};
use tokio::time::{Instant, sleep, timeout};

use super::by_hand::{POOL, RPM, grant, grantee, pool, rates, stamp};

/// Longer than anything here takes; reaching it is a failure.
const PATIENCE: Duration = Duration::from_secs(20);

async fn start_etcd() -> Etcd {
    Etcd::start().await.expect("etcd starts")
}

async fn store_on(etcd: &Etcd) -> EtcdStore {
    EtcdStore::connect(&[etcd.endpoint().to_owned()]).await.expect("a valid endpoint")
}

// ---- words of the tests ----

fn key(text: &str) -> Select {
    Select::Key(text.to_owned())
}

fn prefix(text: &str) -> Select {
    Select::Prefix(text.to_owned())
}

fn put(key: &str, value: &str) -> Op {
    Op::Put { key: key.to_owned(), value: value.as_bytes().to_vec(), lease: None }
}

fn bound(key: &str, lease: LeaseId) -> Op {
    Op::Put { key: key.to_owned(), value: Vec::new(), lease: Some(lease) }
}

fn delete(key: &str) -> Op {
    Op::Delete { key: key.to_owned() }
}

fn when(key: &str, create_revision: u64) -> Vec<Condition> {
    vec![Condition { key: key.to_owned(), create_revision, value: None }]
}

async fn write(store: &impl Store, ops: impl Into<Vec<Op>>) -> u64 {
    match store.commit(Txn { conditions: Vec::new(), ops: ops.into() }).await {
        Ok(Outcome::Committed { revision }) => revision,
        other => panic!("not committed: {other:?}"),
    }
}

async fn keys(store: &impl Store, select: Select) -> Vec<String> {
    let listing = store.list(&[select]).await.expect("a listing");
    listing.entries.into_iter().map(|entry| entry.key).collect()
}

async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("{what}: not within {PATIENCE:?}"))
}

/// The next `count` changes, as (what, key, revision).
async fn changes(watch: &mut Watch, count: usize) -> Vec<(&'static str, String, u64)> {
    let mut seen = Vec::new();
    in_time("changes", async {
        while seen.len() < count {
            if let WatchEvent::Changes { changes, revision } = watch.next().await.expect("an open watch") {
                assert!(!changes.is_empty());
                for change in changes {
                    seen.push(match change {
                        Change::Put(entry) => ("put", entry.key, entry.mod_revision),
                        Change::Delete { key, mod_revision } => ("delete", key, mod_revision),
                    });
                }
                assert_eq!(seen.last().map(|(_, _, last)| *last), Some(revision));
            }
        }
    })
    .await;
    seen
}

/// What ends the watch.
async fn end(watch: &mut Watch) -> StoreError {
    in_time("the end of a watch", async {
        loop {
            if let Err(error) = watch.next().await {
                return error;
            }
        }
    })
    .await
}

// ---- the suite ----

async fn a_list_reads_several_selects_at_one_revision(store: impl Store) {
    let empty = store.list(&[key("/a/1"), prefix("/b/")]).await.expect("a listing");
    assert!(empty.entries.is_empty());
    let first = write(&store, [put("/a/1", "one"), put("/b/1", "two"), put("/b/2", "three"), put("/c", "other")]).await;
    let second = write(&store, [put("/a/1", "four"), delete("/b/2")]).await;
    assert_eq!(second, first + 1);
    let listing = store.list(&[prefix("/b/"), key("/a/1"), key("/b/1"), key("/none")]).await.expect("a listing");
    let found: Vec<_> = listing
        .entries
        .iter()
        .map(|entry| (entry.key.as_str(), entry.value.as_slice(), entry.create_revision, entry.mod_revision))
        .collect();
    assert_eq!(found, [("/a/1", &b"four"[..], first, second), ("/b/1", &b"two"[..], first, first)]);
    assert_eq!((listing.revision, listing.cluster_id), (second, empty.cluster_id));
    assert_ne!(listing.cluster_id, 0);
}

async fn more_keys_than_a_page_are_listed_whole(store: impl Store) {
    let all: Vec<String> = (0..2_300).map(|n| format!("/limits/p/{n:05}")).collect();
    // Together more than the 4 MiB of a gRPC message.
    let value = "x".repeat(2_048);
    for chunk in all.chunks(TXN_OPS_MAX) {
        write(&store, chunk.iter().map(|key| put(key, &value)).collect::<Vec<_>>()).await;
    }
    write(&store, [put("/limits/p", "before"), put("/limits/p0", "behind")]).await;
    assert_eq!(keys(&store, prefix("/limits/p/")).await, all);
    // More selects than a transaction takes.
    let some: Vec<Select> = all.iter().take(300).map(|text| key(text)).collect();
    let listing = store.list(&some).await.expect("a listing");
    assert_eq!(listing.entries.len(), 300);
    let mut watch = store.watch(&[prefix("/limits/p/")], 1).await.expect("a watch");
    let seen: Vec<String> = changes(&mut watch, all.len()).await.into_iter().map(|(_, key, _)| key).collect();
    assert_eq!(seen, all);
}

async fn a_watch_sees_each_change_once_and_in_order(store: impl Store) {
    write(&store, [put("/a/1", "before")]).await;
    let listing = store.list(&[prefix("/a/")]).await.expect("a listing");
    // Between list and watch: no gap.
    let one = write(&store, [put("/a/2", "between"), put("/elsewhere", "unseen")]).await;
    let two = write(&store, [delete("/a/1")]).await;
    let selects = [prefix("/a/"), key("/b"), key("/a/1")];
    let mut watch = store.watch(&selects, listing.revision + 1).await.expect("a watch");
    assert_eq!(changes(&mut watch, 2).await, [("put", "/a/2".into(), one), ("delete", "/a/1".into(), two)]);
    let mut expected = Vec::new();
    for n in 0..200 {
        let name = format!("/a/{n}");
        let revision = write(&store, [put(&name, "after")]).await;
        expected.push(("put", name, revision));
    }
    assert_eq!(changes(&mut watch, 200).await, expected);
    let last = write(&store, [put("/b", "the other select")]).await;
    assert_eq!(changes(&mut watch, 1).await, [("put", "/b".into(), last)]);
}

async fn a_watch_from_a_past_revision_sees_history(store: impl Store) {
    let first = write(&store, [put("/a", "1")]).await;
    let second = write(&store, [put("/a", "2")]).await;
    let mut from_second = store.watch(&[key("/a")], second).await.expect("a watch");
    assert_eq!(changes(&mut from_second, 1).await, [("put", "/a".into(), second)]);
    let mut from_start = store.watch(&[key("/a")], 0).await.expect("a watch");
    assert_eq!(changes(&mut from_start, 2).await, [("put", "/a".into(), first), ("put", "/a".into(), second)]);
    // One that goes on from all there is waits for what comes.
    let mut next = store.watch(&[key("/a")], second + 1).await.expect("a watch");
    let seen = write(&store, [put("/a", "seen")]).await;
    assert_eq!(changes(&mut next, 1).await, [("put", "/a".into(), seen)]);
}

async fn a_quiet_watch_says_that_it_is_alive(store: impl Store) {
    let mut watch = store.watch(&[key("/a")], 1).await.expect("a watch");
    // The first two may come with the watch's opening.
    for _ in 0..3 {
        assert_eq!(in_time("a sign of life", watch.next()).await, Ok(WatchEvent::Alive));
    }
}

async fn a_watch_is_cancel_safe(store: impl Store) {
    let listing = store.list(&[prefix("/a/")]).await.expect("a listing");
    let mut watch = store.watch(&[prefix("/a/")], listing.revision + 1).await.expect("a watch");
    let mut seen = 0;
    for n in 0..50 {
        write(&store, [put(&format!("/a/{n}"), "x")]).await;
        if let Ok(Ok(WatchEvent::Changes { changes, .. })) = timeout(Duration::from_micros(n * 40), watch.next()).await
        {
            seen += changes.len();
        }
    }
    seen += changes(&mut watch, 50 - seen).await.len();
    assert_eq!(seen, 50);
}

async fn a_fenced_commit_needs_the_create_revision(store: impl Store) {
    let term = write(&store, [put("/leader", "me")]).await;
    write(&store, [put("/leader", "me, again")]).await;
    let fenced = |create_revision| Txn { conditions: when("/leader", create_revision), ops: vec![put("/limits", "x")] };
    let refused = store.commit(fenced(term + 1)).await;
    assert_eq!(refused, Ok(Outcome::Refused { revision: term + 1 }));
    assert!(keys(&store, key("/limits")).await.is_empty());
    assert_eq!(store.commit(fenced(term)).await, Ok(Outcome::Committed { revision: term + 2 }));
    assert_eq!(keys(&store, key("/limits")).await, ["/limits"]);
    // The deposed leader's fence: the key was created anew.
    write(&store, [delete("/leader")]).await;
    write(&store, [put("/leader", "you")]).await;
    assert!(matches!(store.commit(fenced(term)).await, Ok(Outcome::Refused { .. })));
}

async fn a_condition_may_name_what_stands_there(store: impl Store) {
    let revision = write(&store, [put("/leader", "me")]).await;
    let fenced = |value: &str| {
        let mut conditions = when("/leader", revision);
        conditions[0].value = Some(value.as_bytes().to_vec());
        Txn { conditions, ops: vec![put("/limits", "x")] }
    };
    assert_eq!(store.commit(fenced("you")).await, Ok(Outcome::Refused { revision }));
    assert_eq!(store.commit(fenced("me")).await, Ok(Outcome::Committed { revision: revision + 1 }));
}

async fn a_campaign_is_won_once(store: impl Store) {
    let campaign = |name: &str| Txn { conditions: when("/leader", 0), ops: vec![put("/leader", name)] };
    let Ok(Outcome::Committed { revision }) = store.commit(campaign("one")).await else { panic!("not elected") };
    assert_eq!(store.commit(campaign("two")).await, Ok(Outcome::Refused { revision }));
    let listing = store.list(&[key("/leader")]).await.expect("a listing");
    assert_eq!((listing.entries[0].create_revision, listing.entries[0].value.as_slice()), (revision, &b"one"[..]));
    write(&store, [delete("/leader")]).await;
    assert!(matches!(store.commit(campaign("two")).await, Ok(Outcome::Committed { .. })));
}

async fn a_transaction_without_effect_makes_no_revision(store: impl Store) {
    let revision = write(&store, [put("/a", "x")]).await;
    assert_eq!(write(&store, [delete("/none")]).await, revision);
    assert_eq!(store.list(&[]).await.map(|listing| listing.revision), Ok(revision));
}

async fn an_unfit_transaction_is_refused(store: impl Store) {
    let ops: Vec<Op> = (0..=TXN_OPS_MAX).map(|n| put(&format!("/a/{n}"), "x")).collect();
    let large = Txn { conditions: Vec::new(), ops };
    assert_eq!(store.commit(large).await, Err(StoreError::TooManyOps { ops: TXN_OPS_MAX + 1 }));
    let twice = Txn { conditions: Vec::new(), ops: vec![put("/a", "x"), delete("/a")] };
    assert!(matches!(store.commit(twice).await, Err(StoreError::Rejected(_))));
    let unbound = Txn { conditions: Vec::new(), ops: vec![bound("/a", LeaseId(77))] };
    assert_eq!(store.commit(unbound).await, Err(StoreError::LeaseLost));
    assert!(keys(&store, prefix("/a")).await.is_empty());
}

async fn an_expired_lease_takes_its_keys(store: impl Store) {
    let lease = store.lease(Duration::from_secs(2)).await.expect("a lease");
    let from = write(&store, [bound("/m/1", lease), bound("/m/2", lease), bound("/m/3", lease)]).await + 1;
    // One is unbound again.
    write(&store, [put("/m/3", "free")]).await;
    let mut watch = store.watch(&[prefix("/m/")], from).await.expect("a watch");
    let seen = changes(&mut watch, 3).await;
    let gone: Vec<_> = seen[1..].iter().map(|(what, key, _)| (*what, key.as_str())).collect();
    assert_eq!(gone, [("delete", "/m/1"), ("delete", "/m/2")]);
    assert_eq!(seen[1].2, seen[2].2, "all at one revision");
    assert_eq!(keys(&store, prefix("/m/")).await, ["/m/3"]);
    assert_eq!(store.keep_alive(lease).await, Err(StoreError::LeaseLost));
}

async fn a_lease_kept_alive_keeps_its_keys(store: impl Store) {
    let lease = store.lease(Duration::from_secs(2)).await.expect("a lease");
    let dropped = store.lease(Duration::from_secs(2)).await.expect("a lease");
    let from = write(&store, [bound("/m/kept", lease), bound("/m/dropped", dropped)]).await + 1;
    let mut watch = store.watch(&[prefix("/m/")], from).await.expect("a watch");
    // The other lease, as old, tells when this one would have expired.
    tokio::select! {
        gone = changes(&mut watch, 1) => assert_eq!(gone[0].1, "/m/dropped"),
        () = async {
            loop {
                store.keep_alive(lease).await.expect("alive");
                sleep(Duration::from_millis(300)).await;
            }
        } => {}
    }
    store.keep_alive(lease).await.expect("alive");
    assert_eq!(keys(&store, prefix("/m/")).await, ["/m/kept"]);
}

async fn a_revoked_lease_takes_its_keys_at_once(store: impl Store) {
    let lease = store.lease(Duration::from_secs(60)).await.expect("a lease");
    let revision = write(&store, [bound("/leader", lease)]).await;
    store.revoke(lease).await.expect("revoked");
    assert!(keys(&store, key("/leader")).await.is_empty());
    let mut watch = store.watch(&[key("/leader")], revision + 1).await.expect("a watch");
    assert_eq!(changes(&mut watch, 1).await, [("delete", "/leader".into(), revision + 1)]);
    assert_eq!(store.keep_alive(lease).await, Err(StoreError::LeaseLost));
    assert_eq!(store.revoke(lease).await, Ok(()));
}

/// Each case against both stores, under its own name.
macro_rules! for_both {
    ($($case:ident),* $(,)?) => {
        mod memory {
            use super::*;
            $(#[tokio::test] async fn $case() { super::$case(MemoryStore::new()).await; })*
        }
        mod etcd {
            use super::*;
            $(#[tokio::test] async fn $case() {
                let etcd = start_etcd().await;
                super::$case(store_on(&etcd).await).await;
            })*
        }
    };
}

for_both![
    a_list_reads_several_selects_at_one_revision,
    more_keys_than_a_page_are_listed_whole,
    a_watch_sees_each_change_once_and_in_order,
    a_watch_from_a_past_revision_sees_history,
    a_quiet_watch_says_that_it_is_alive,
    a_watch_is_cancel_safe,
    a_fenced_commit_needs_the_create_revision,
    a_condition_may_name_what_stands_there,
    a_campaign_is_won_once,
    a_transaction_without_effect_makes_no_revision,
    an_unfit_transaction_is_refused,
    an_expired_lease_takes_its_keys,
    a_lease_kept_alive_keeps_its_keys,
    a_revoked_lease_takes_its_keys_at_once,
];

// ---- compaction: each store's own way to it ----

#[tokio::test]
async fn a_watch_from_before_the_history_in_memory_is_compacted() {
    let store = MemoryStore::new();
    let first = write(&store, [put("/a", "x")]).await;
    for n in 0..80 {
        write(&store, (0..TXN_OPS_MAX).map(|m| put(&format!("/b/{n}/{m}"), "x")).collect::<Vec<_>>()).await;
    }
    let mut watch = store.watch(&[key("/a")], first).await.expect("a watch");
    assert!(matches!(end(&mut watch).await, StoreError::Compacted { revision } if revision > first));
    assert_eq!(watch.next().await, Err(StoreError::Over));
    let listing = store.list(&[key("/a")]).await.expect("a listing");
    assert_eq!(listing.entries.len(), 1);
    let mut watch = store.watch(&[key("/a")], listing.revision + 1).await.expect("a watch");
    let revision = write(&store, [put("/a", "y")]).await;
    assert_eq!(changes(&mut watch, 1).await, [("put", "/a".into(), revision)]);
    store.compact(revision);
    let mut watch = store.watch(&[key("/a")], revision).await.expect("a watch");
    assert_eq!(end(&mut watch).await, StoreError::Compacted { revision: revision + 1 });
}

#[tokio::test]
async fn a_watch_from_before_etcds_compaction_is_compacted() {
    let etcd = start_etcd().await;
    let store = store_on(&etcd).await;
    let first = write(&store, [put("/a", "1")]).await;
    let last = write(&store, [put("/a", "2")]).await;
    let mut operator = etcd_client::Client::connect([etcd.endpoint()], None).await.expect("a client");
    operator.compact(i64::try_from(last).expect("a revision"), None).await.expect("compacted");
    let mut watch = store.watch(&[key("/a"), key("/b")], first).await.expect("a watch");
    assert_eq!(end(&mut watch).await, StoreError::Compacted { revision: last });
    assert_eq!(watch.next().await, Err(StoreError::Over));
}

// ---- as many grants as one etcd is to carry ----

const GRANTS: usize = 10_000;
/// The largest message that a store takes.
const MESSAGE_MAX: usize = 64 << 20;

fn granted() -> Vec<Grantee> {
    (0..GRANTS).map(|n| grantee(&format!("tenant-{n:05}"))).collect()
}

fn grant_keys() -> Vec<String> {
    granted().into_iter().map(|grantee| Keyspace::default().key(&Key::Limits(pool(), grantee))).collect()
}

/// What all tenants may store, by the epoch of their grants.
fn burst(epoch: u64) -> f64 {
    [0.0, 100.0, 200.0][usize::try_from(epoch).expect("small")]
}

/// Puts everyone's grant, in transactions as large as etcd takes them.
async fn grant_all(store: &EtcdStore, epoch: u64) {
    // A long word of explanation: all together are more than goes into one message.
    let reason = Reason { code: "test".to_owned(), text: "x".repeat(7_000) };
    let grant = Grant { reason, ..grant(stamp(1, epoch), rates(&[(RPM, 600.0, burst(epoch))])) };
    let value = serde_json::to_string(&grant).expect("serialises");
    assert!(value.len() * GRANTS > MESSAGE_MAX);
    for keys in grant_keys().chunks(TXN_OPS_MAX) {
        write(store, keys.iter().map(|key| put(key, &value)).collect::<Vec<_>>()).await;
    }
}

/// Waits until a member has everyone's grant of this epoch.
async fn has_all(member: &Pool, epoch: u64) {
    // Without a pulse that tells of more, the largest request is the tenant's whole burst.
    let whole = |limits: &tidegate::limiter::Limits| limits.meters[&RPM].largest_request;
    in_time("everyone's grant", async {
        loop {
            let limits = member.tuning().limits;
            if granted().iter().all(|tenant| limits.get(tenant).map(whole) == Some(burst(epoch))) {
                break;
            }
            sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
}

/// Waits until a watch has told of every grant; of each once, in the order in which they were put.
async fn tells_of_all(watch: &mut Watch) {
    let seen: Vec<String> = changes(watch, GRANTS).await.into_iter().map(|(_, key, _)| key).collect();
    assert_eq!(seen.len(), GRANTS);
    assert_eq!(seen, grant_keys());
}

/// Ten thousand grants are some megabytes, and more than one message of any size some day: pages and fragments carry them.
#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_grants_are_listed_in_pages_and_followed_in_fragments() {
    let etcd = start_etcd().await;
    let store = store_on(&etcd).await;
    grant_all(&store, 1).await;
    let all = prefix(&Keyspace::default().limits_of(&pool()));
    let listed = store.list(slice::from_ref(&all)).await.expect("a listing");
    assert_eq!(listed.entries.into_iter().map(|entry| entry.key).collect::<Vec<_>>(), grant_keys());

    let params = ClientParams::new(vec![PoolParams::new(pool(), Dialect::OpenAi)]);
    let client = Client::start(params, Arc::new(store.clone()), Arc::default()).await;
    let member = client.pool(POOL).expect("named");
    has_all(&member, 1).await;
    let mut open = store.watch(slice::from_ref(&all), listed.revision + 1).await.expect("a watch");
    tokio::join!(grant_all(&store, 2), tells_of_all(&mut open));
    has_all(&member, 2).await;

    // One that begins where the list ended is told of all of it at once.
    let mut late = store.watch(&[all], listed.revision + 1).await.expect("a watch");
    tells_of_all(&mut late).await;
    client.close().await;
}

// ---- etcd away, hung, dead and back ----

#[tokio::test]
async fn a_store_made_before_its_etcd_works_once_it_comes_up() {
    let mut etcd = start_etcd().await;
    etcd.kill().expect("kill -9");
    let store = store_on(&etcd).await;
    let asked = Instant::now();
    let lost = store.list(&[key("/a")]).await;
    assert!(matches!(lost, Err(StoreError::Unavailable { .. })), "{lost:?}");
    let lost = store.commit(Txn { conditions: Vec::new(), ops: vec![put("/a", "x")] }).await;
    assert!(matches!(lost, Err(StoreError::Unavailable { .. })), "{lost:?}");
    assert!(matches!(store.watch(&[key("/a")], 1).await, Err(StoreError::Unavailable { .. })));
    assert!(asked.elapsed() < Duration::from_secs(3), "{:?}", asked.elapsed());
    etcd.restart().await.expect("etcd comes back");
    write(&store, [put("/a", "x")]).await;
    assert_eq!(keys(&store, key("/a")).await, ["/a"]);
}

#[tokio::test]
async fn a_killed_etcd_ends_the_watch_and_is_found_again() {
    let mut etcd = start_etcd().await;
    let store = store_on(&etcd).await;
    let revision = write(&store, [put("/a", "1")]).await;
    let before = store.list(&[key("/a")]).await.expect("a listing");
    let mut watch = store.watch(&[key("/a")], revision).await.expect("a watch");
    assert_eq!(changes(&mut watch, 1).await.len(), 1);
    etcd.kill().expect("kill -9");
    let ended = end(&mut watch).await;
    assert!(matches!(ended, StoreError::Unavailable { .. }), "{ended:?}");
    etcd.restart().await.expect("etcd comes back");
    let after = store.list(&[key("/a")]).await.expect("a listing");
    assert_eq!(after, before);
    let mut watch = store.watch(&[key("/a")], after.revision + 1).await.expect("a watch");
    let revision = write(&store, [put("/a", "2")]).await;
    assert_eq!(changes(&mut watch, 1).await, [("put", "/a".into(), revision)]);
}

#[tokio::test]
async fn a_hung_etcd_is_unavailable_and_its_watch_silent() {
    let mut etcd = start_etcd().await;
    let store = store_on(&etcd).await;
    let mut watch = store.watch(&[key("/a")], 1).await.expect("a watch");
    etcd.process().pause().expect("paused");
    let asked = Instant::now();
    let lost = store.list(&[key("/a")]).await;
    assert!(matches!(lost, Err(StoreError::Unavailable { .. })), "{lost:?}");
    assert!(asked.elapsed() < Duration::from_secs(3), "{:?}", asked.elapsed());
    assert_eq!(end(&mut watch).await, StoreError::Silent { seconds: 9 });
    etcd.process().resume().expect("resumed");
    in_time("an answer", async {
        while store.list(&[key("/a")]).await.is_err() {
            sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_dead_endpoint_among_others_is_passed_over() {
    let etcd = start_etcd().await;
    let dead = format!("http://127.0.0.1:{}", free_port().expect("a free port"));
    let store = EtcdStore::connect(&[dead, etcd.endpoint().to_owned()]).await.expect("valid endpoints");
    assert!(store.list(&[key("/a")]).await.is_ok());
    write(&store, [put("/a", "x")]).await;
}

/// Told nothing, whoever watched an older store from where the list of a newer one ended would wait for its revisions, and miss
/// all that is written meanwhile. `--data-dir` emptied is a backup of nothing, of the same cluster id.
#[tokio::test]
async fn a_watch_ends_where_the_store_is_older_than_the_list_was() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data");
    let mut etcd = Etcd::start_in(&data).await.expect("etcd starts");
    let store = store_on(&etcd).await;
    for value in ["1", "2", "3"] {
        write(&store, [put("/a", value)]).await;
    }
    let listed = store.list(&[key("/a")]).await.expect("a listing");
    etcd.kill().expect("kill -9");
    std::fs::remove_dir_all(&data).expect("removed");
    etcd.restart().await.expect("etcd comes back");
    let mut watch = store.watch(&[key("/a")], listed.revision + 1).await.expect("a watch");
    assert_eq!(end(&mut watch).await, StoreError::Restored);
    let again = store.list(&[key("/a")]).await.expect("a listing");
    assert_eq!((again.cluster_id, again.entries.len()), (listed.cluster_id, 0));
}

#[tokio::test]
async fn a_watch_ends_where_another_cluster_answers_than_was_listed() {
    let mut first = start_etcd().await;
    let second = start_etcd().await;
    // Ahead of the first: its revision tells nothing.
    let other = store_on(&second).await;
    for value in ["1", "2", "3"] {
        write(&other, [put("/a", value)]).await;
    }
    let endpoints = [first.endpoint().to_owned(), second.endpoint().to_owned()];
    let store = EtcdStore::connect(&endpoints).await.expect("valid endpoints");
    let listed = store.list(&[key("/a")]).await.expect("a listing");
    first.kill().expect("kill -9");
    let mut watch = in_time("the other", async {
        loop {
            if let Ok(watch) = store.watch(&[key("/a")], listed.revision + 1).await {
                break watch;
            }
        }
    })
    .await;
    assert_eq!(end(&mut watch).await, StoreError::Restored);
    let again = store.list(&[key("/a")]).await.expect("a listing");
    assert_eq!(again.entries.len(), 1);
}

#[tokio::test]
async fn a_full_etcd_says_so_in_one_line() {
    let etcd = start_etcd().await;
    let mut operator = etcd_client::Client::connect([etcd.endpoint()], None).await.expect("a client");
    let (arm, kind) = (etcd_client::AlarmAction::Activate, etcd_client::AlarmType::Nospace);
    operator.alarm(arm, kind, None).await.expect("an alarm");
    let store = store_on(&etcd).await;
    let full = store.commit(Txn { conditions: Vec::new(), ops: vec![put("/a", "x")] }).await;
    assert_eq!(full, Err(StoreError::NoSpace));
    assert!(store.list(&[key("/a")]).await.is_ok());
}

// ---- what is refused before anything is asked ----

#[tokio::test]
async fn endpoints_are_plain_http_urls_and_at_least_one() {
    assert_eq!(EtcdStore::connect(&[]).await.err(), Some(StoreError::NoEndpoints));
    assert!(EtcdStore::connect(&["http://127.0.0.1:2379/".to_owned()]).await.is_ok());
    for wrong in ["", "127.0.0.1:2379", "https://etcd:2379", "http://", "http://a/b", "http://u:p@a:1", "unix:/x"] {
        let refused = EtcdStore::connect(&[wrong.to_owned()]).await;
        assert!(matches!(refused, Err(StoreError::Endpoint { .. })), "{wrong}");
    }
}

#[tokio::test]
async fn a_key_that_several_selects_cover_is_listed_once_and_none_between_is_hidden() {
    let store = MemoryStore::new();
    write(&store, ["/a/x", "/a!", "/a/b/c", "/b", "/b/x", "/c1"].map(|key| put(key, "v")).to_vec()).await;
    let selects = [key("/a/x"), prefix("/a/"), key("/b"), key("/b"), prefix("/a/b/"), prefix("/c"), key("/c1")];
    let listing = store.list(&selects).await.expect("a listing");
    let mut listed: Vec<String> = listing.entries.into_iter().map(|entry| entry.key).collect();
    listed.sort();
    assert_eq!(listed, ["/a/b/c", "/a/x", "/b", "/c1"]);
    let listing = store.list(&[prefix("/a"), key("/a!"), prefix("/a/b")]).await.expect("a listing");
    assert_eq!(listing.entries.len(), 3);
    assert!(matches!(store.list(&[prefix("")]).await, Err(StoreError::Rejected(_))));
}
