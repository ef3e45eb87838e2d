//! What a process enforced, kept in a file for its next start; and a process that follows its own tenants alone.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tidegate::client::{Client, ClientParams, MemberState, PoolParams, PoolView, Remembered};
use tidegate::clock::{Clock, MonoTime, SystemClock, UnixMillis};
use tidegate::limiter::Limits;
use tidegate::plan::{Share, Thresholds};
use tidegate::provider::Dialect;
use tidegate::store::MemoryStore;
use tidegate::telemetry::Telemetry;

use super::admission::{Desk, eventually};
use super::by_hand::{Hand, POOL, RPM, grant, grantee, pool, pulse, rates, stamp, target, tenant};

const WALL: UnixMillis = UnixMillis(0);

fn at(ms: u64) -> MonoTime {
    MonoTime::from_millis(ms)
}

fn rate(limits: Option<Limits>) -> Option<f64> {
    limits.map(|limits| if limits.blocked { -1.0 } else { limits.meters[&RPM].rate.rate })
}

fn remembered(rate: f64, burst: f64) -> Remembered {
    Remembered { thresholds: rates(&[(RPM, rate, burst)]), largest_request: [(RPM, 50.0)].into() }
}

#[test]
fn what_is_remembered_holds_until_the_first_grant_and_overrides_apply_to_it() {
    let known = BTreeMap::from([(grantee("acme"), remembered(60.0, 6.0)), (grantee("globex"), remembered(40.0, 4.0))]);
    let mut view = PoolView::new(rates(&[(RPM, 10.0, 1.0)]), at(0)).with_last_known(known);
    let limits = |view: &PoolView, name: &str| rate(view.limits_of(&grantee(name), at(0), WALL));
    assert_eq!(view.state(at(0)), MemberState::Bootstrap);
    assert_eq!(
        (limits(&view, "acme"), limits(&view, "@default"), limits(&view, "other")),
        (Some(60.0), Some(10.0), None)
    );
    let all = view.limits(at(0), WALL);
    assert_eq!(all[&grantee("acme")].meters[&RPM].largest_request, 50.0, "never is for what no tenant could send");
    assert!(all.contains_key(&grantee("globex")) && all.contains_key(&grantee("@default")));
    let told = view.take_changes(at(0), WALL);
    assert!(told.some.contains(&grantee("acme")) && told.some.contains(&grantee("globex")));
    view.on_override(target("acme"), Some(br#"{"scale":0.5}"#)).expect("good");
    view.on_override(target("globex"), Some(br#"{"block":true}"#)).expect("good");
    assert_eq!((limits(&view, "acme"), limits(&view, "globex")), (Some(30.0), Some(-1.0)));
    view.on_override(target("globex"), None).expect("good");
    let _ = view.take_changes(at(0), WALL);
    view.on_grant(grantee("acme"), grant(stamp(1, 1), rates(&[(RPM, 120.0, 12.0)])));
    assert_eq!(limits(&view, "globex"), None, "a leader has not granted it: one of all others");
    assert!(view.take_changes(at(0), WALL).some.contains(&grantee("globex")));
}

#[test]
fn worth_remembering_is_this_members_part_while_a_leader_lives() {
    let mut view = PoolView::new(rates(&[(RPM, 10.0, 1.0)]), at(0));
    assert_eq!(view.worth_remembering(at(0), WALL), BTreeMap::new());
    for name in ["acme", "blocked", "others"] {
        view.on_grant(grantee(name), grant(stamp(1, 1), rates(&[(RPM, 120.0, 12.0)])));
    }
    view.on_pulse(pulse(stamp(1, 1)), true, at(0));
    let share = Share { share: 0.25, concurrency: None, with_one_more: None };
    view.on_reply([(grantee("acme"), share), (grantee("blocked"), share)].into(), at(60_000));
    view.on_override(target("blocked"), Some(br#"{"block":true}"#)).expect("good");
    let known = view.worth_remembering(at(1_000), WALL);
    let rate = |name: &str| known.get(&grantee(name)).map(|known| known.thresholds.rates[&RPM].rate);
    assert_eq!(
        (rate("acme"), rate("blocked"), rate("others"), rate("@default")),
        (Some(30.0), Some(0.0), None, Some(10.0))
    );
    assert_eq!(known[&grantee("acme")].largest_request[&RPM], 600.0, "the pool's, not this member's part");
    assert_eq!(view.worth_remembering(at(4_000), WALL), BTreeMap::new(), "braking");
}

async fn start(store: &MemoryStore, file: &Path) -> Client {
    let params = ClientParams {
        last_known: Some(file.to_owned()),
        ..ClientParams::new(vec![PoolParams::new(pool(), Dialect::OpenAi)])
    };
    Client::start(params, Arc::new(store.clone()), Arc::new(Telemetry::new())).await
}

fn enforced(client: &Client, name: &str) -> Option<f64> {
    rate(client.pool(POOL).expect("its own").tuning().limits.remove(&grantee(name)))
}

/// What is being written when a client closes goes on beside what it writes for the last time.
#[tokio::test(start_paused = true)]
async fn of_a_process_that_closes_while_it_writes_the_last_word_is_kept_whole() {
    let folder = tempfile::tempdir().expect("a folder");
    let hand = Hand::new();
    let others = |rate: f64, epoch: u64| grant(stamp(1, epoch), rates(&[(RPM, rate, rate / 10.0)]));
    let others_turn = async || {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    };
    hand.lead("http://127.0.0.1:1").await;
    for n in 1..100 {
        let file = folder.path().join(n.to_string());
        let client = start(&hand.store, &file).await;
        hand.grant("@default", &others(123_456.789, 2 * n)).await;
        hand.pulse(&pulse(stamp(1, 2 * n))).await;
        others_turn().await;
        // It is time to write.
        tokio::time::advance(Duration::from_secs(10)).await;
        others_turn().await;
        hand.grant("@default", &others(60.0, 2 * n + 1)).await;
        others_turn().await;
        client.close().await;
        let kept: Value = serde_json::from_slice(&std::fs::read(&file).expect("kept")).expect("JSON");
        // Half of it is safe, for one more than the two members that there are.
        assert_eq!(kept["pools"][POOL]["@default"]["thresholds"]["requests/minute"]["rate"], 10.0, "{kept}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_starts_with_nobody_alive_begins_with_half_of_what_it_had() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("last-known.json");
    let (hand, desk) = (Hand::new(), Desk::open().await);
    desk.share("acme", 0.5, Some(6));
    hand.grant("acme", &grant(stamp(1, 1), Thresholds { concurrency: Some(8), ..rates(&[(RPM, 600.0, 60.0)]) })).await;
    hand.lead(&desk.url).await;
    hand.pulse(&pulse(stamp(1, 1))).await;
    let client = start(&hand.store, &file).await;
    eventually("its share is in force", || enforced(&client, "acme") == Some(300.0)).await;
    client.close().await;
    let kept: Value = serde_json::from_slice(&std::fs::read(&file).expect("kept")).expect("JSON");
    assert_eq!(
        kept["pools"][POOL]["acme"]["thresholds"],
        json!({ "requests/minute": { "rate": 300.0, "burst": 30.0 }, "concurrency": 6 })
    );
    assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 1, "nothing else is left");

    let client = start(&MemoryStore::new(), &file).await;
    eventually("half of it holds", || enforced(&client, "acme") == Some(150.0)).await;
    let tuning = client.pool(POOL).expect("its own").tuning();
    assert_eq!((tuning.state, tuning.limits[&grantee("acme")].concurrency), (MemberState::Bootstrap, Some(3)));
    client.close().await;
    let again: Value = serde_json::from_slice(&std::fs::read(&file).expect("kept")).expect("JSON");
    assert_eq!(again, kept, "what is only remembered is not written again, and halved once more");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_old_from_the_future_or_no_such_file_is_ignored() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("last-known.json");
    let wall = SystemClock::new().wall().0;
    let day = 24 * 3_600_000;
    let record = |unix_ms: u64, rate: f64| {
        let thresholds = json!({ "requests/minute": { "rate": rate, "burst": 30.0 } });
        let known = json!({ "acme": { "thresholds": thresholds, "largest_request": {} } });
        json!({ "schema": 1, "unix_ms": unix_ms, "pools": { POOL: known } }).to_string()
    };
    let newer = json!({ "schema": 2, "unix_ms": wall, "pools": {} }).to_string();
    let cases = [
        (record(wall, 300.0), Some(150.0)),
        (record(wall - day + 60_000, 300.0), Some(150.0)),
        (record(wall - day - 60_000, 300.0), None),
        (record(wall + 3_600_000, 300.0), None),
        (record(wall, -1.0), None),
        (newer, None),
        ("{".to_owned(), None),
    ];
    for (text, expected) in cases {
        std::fs::write(&file, &text).expect("written");
        let client = start(&MemoryStore::new(), &file).await;
        eventually(&format!("{expected:?} of {text}"), || enforced(&client, "acme") == expected).await;
        assert_eq!(enforced(&client, "@default"), Some(10.0));
        client.close().await;
        assert_eq!(std::fs::read_to_string(&file).expect("stays"), text);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_names_its_tenants_follows_them_alone_and_counts_others_as_undeclared() {
    let (hand, desk) = (Hand::new(), Desk::open().await);
    for name in ["acme", "globex", "@default"] {
        hand.grant(name, &grant(stamp(1, 1), rates(&[(RPM, 600.0, 60.0)]))).await;
    }
    hand.lead(&desk.url).await;
    hand.pulse(&pulse(stamp(1, 1))).await;
    let pools = vec![PoolParams { tenants: [tenant("acme")].into(), ..PoolParams::new(pool(), Dialect::OpenAi) }];
    let client =
        Client::start(ClientParams::new(pools), Arc::new(hand.store.clone()), Arc::new(Telemetry::new())).await;
    let own = client.pool(POOL).expect("its own");
    eventually("its tenant's grant is in force", || enforced(&client, "acme").is_some()).await;
    assert_eq!(enforced(&client, "globex"), None);
    let permit = own.try_admit(&tenant("globex"), tidegate::quota::Cost::request(0, 0)).expect("there is room");
    assert_eq!(own.traffic()[&grantee("@default")].counters.admitted, 1);
    drop(permit);
    // Live: the one that it follows changes.
    hand.grant("acme", &grant(stamp(1, 2), rates(&[(RPM, 60.0, 6.0)]))).await;
    eventually("it is retuned", || enforced(&client, "acme").is_some_and(|rate| rate <= 30.0)).await;
    client.close().await;
}
