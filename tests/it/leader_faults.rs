//! What fails around leaders, as processes on a real etcd: one stopped past its lease, killed, asked to end, gone for good. Members
//! offer more than they may all the while; what they were let send is held against what they were to enforce.

use std::time::Duration;

use serde_json::{Value, json};
use tidegate::client::{MemberState, PULSE_QUIET, Refusal, Why};
use tidegate::plan::Stamp;
use tidegate::plan::keyspace::{Key, Keyspace};
use tidegate::quota::Cost;
use tidegate::sim::Etcd;
use tidegate::store::{Store, Txn};
use tokio::time::Instant;

use super::by_hand::{pool, target, tenant};
use super::stand::{
    BRAKES_AFTER, CAPACITY, Controllers, LAPSES_AFTER, LOOKS_EVERY, Member, Offers, Proxy, TAKEOVER, Weather, Witness,
    Written, in_time, store,
};
use super::world::{PATIENCE, eventually};

/// What a tick may add where no header tells of a limit and all is used.
const ORDINARY_STEP: f64 = 1.15;

fn next_term(seen: Stamp) -> Stamp {
    Stamp { term: seen.term + 1, epoch: 0 }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controller_stopped_past_its_lease_changes_nothing_when_it_goes_on_and_sends_members_to_the_other() {
    let etcd = Etcd::start().await.expect("etcd starts");
    let way = Proxy::to(etcd.endpoint()).await;
    let controllers = Controllers::new();
    let (mut old, old_url) = controllers.start("old", &way.url()).await;
    let (_new, new_url) = controllers.start("new", etcd.endpoint()).await;
    let member = Member::on(&[etcd.endpoint().to_owned()]).await;
    let (witness, offers) = (Witness::of(etcd.endpoint()).await, Offers::begin(&member.pool));
    member.holds_most().await;
    offers.admit_more("it goes").await;

    // It stops with a pulse on its way.
    let (seen, held_at) = (member.stamp(), Instant::now());
    way.is(Weather::Held);
    eventually("a pulse is on its way", async || way.holds("/pulse/pool").then_some(())).await;
    old.pause().expect("SIGSTOP");
    let (said, answered) = (old.line_count(), way.answered());
    member.active_after(next_term(seen)).await;
    let takeover = held_at.elapsed();
    way.is(Weather::Clear);
    eventually("etcd answers the late pulse", async || (way.answered() > answered).then_some(())).await;
    offers.admit_more("it goes on").await;

    old.resume().expect("SIGCONT");
    let resumed_at = Instant::now();
    let http = reqwest::Client::builder().no_proxy().build().expect("an HTTP client");
    let report = json!({"schema":1,"instance":"a","boot":"b","pools":{"pool":{}}});
    let answer = eventually("it sends members to the other", async || {
        let answer = http.post(format!("{old_url}/v1/observations")).json(&report).send().await.expect("it answers");
        // Never a share.
        assert!([421, 503].contains(&answer.status().as_u16()), "{answer:?}");
        if answer.status() == 421 { Some(answer.json::<Value>().await.expect("JSON")) } else { None }
    })
    .await;
    assert_eq!(answer["leader"], new_url);
    let follows = resumed_at.elapsed();
    let resigned = old.wait_for_line_after(said, |line| line.contains("resigned"), PATIENCE).await.expect("it resigns");
    offers.admit_more("it goes on").await;
    witness.hold();
    println!(
        "leader stopped: another after {takeover:.2?}, follows {follows:.2?} after it goes on; {}\n{resigned}",
        offers.hold()
    );
    offers.hold_steady();
    in_time("another leads", takeover, TAKEOVER);
    in_time("it follows", follows, Duration::from_secs(1));
}

/// The largest change from one grant to the next: within a term, and where the term changed.
fn largest_moves(written: &[Written]) -> (f64, f64) {
    let (mut within, mut across) = (0.0_f64, 0.0_f64);
    let grants: Vec<(Stamp, f64)> = written.iter().filter_map(|one| Some((one.stamp, one.granted?))).collect();
    for pair in grants.windows(2) {
        let [(then, was), (now, is)] = [pair[0], pair[1]];
        let moved = (is / was).ln().abs();
        let of = if then.term == now.term { &mut within } else { &mut across };
        *of = of.max(moved);
    }
    (within, across)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_killed_or_asked_to_end_is_followed_in_time_and_no_threshold_jumps() {
    let etcd = Etcd::start().await.expect("etcd starts");
    let controllers = Controllers::new();
    let mut standing = Vec::new();
    for name in ["first", "second", "third"] {
        standing.push(controllers.start(name, etcd.endpoint()).await.0);
    }
    let member = Member::on(&[etcd.endpoint().to_owned()]).await;
    let (witness, offers) = (Witness::of(etcd.endpoint()).await, Offers::begin(&member.pool));
    member.holds_most().await;
    let seen = member.stamp();
    member.active_after(Stamp { epoch: seen.epoch + 3, ..seen }).await;

    for (how, documented) in [("killed", TAKEOVER), ("asked to end", Duration::from_secs(1))] {
        // In this order: what is looked at after `then` is no older than `before`.
        let (seen, before, then) = (member.stamp(), member.rate(), Instant::now());
        let leads = standing.iter().position(|one| one.lines().iter().any(|line| line.contains(" leading")));
        let mut leader = standing.remove(leads.expect("one leads"));
        if how == "killed" {
            leader.kill().expect("kill -9");
        } else {
            assert!(leader.terminate().await.expect("SIGTERM").success());
        }
        member.active_after(next_term(seen)).await;
        let took = then.elapsed();
        // Longer than what the old leader gave lives on.
        let later = member.stamp();
        member.active_after(Stamp { epoch: later.epoch + 7, ..later }).await;
        let rates: Vec<f64> = offers.since(then).iter().skip(1).map(|seen| seen.rate).collect();
        let (least, most) =
            rates.iter().fold((before, before), |(least, most), rate| (least.min(*rate), most.max(*rate)));
        println!(
            "leader {how}: another after {took:.2?}; {before:.0} enforced became {least:.0} to {most:.0}; {}",
            offers.hold()
        );
        in_time("another leads", took, documented);
        // What was lent of idle parts, at most 1.6 times the capacity, ends step by step when no leader is heard of for 3 s: since
        // its last pulse, which may have come a second before it was killed.
        let heard = offers.heard_before(then + Duration::from_secs(1));
        let silence = (then + took).saturating_duration_since(heard);
        let covered = if silence > PULSE_QUIET { before / 1.6 } else { before };
        assert!(least >= 0.99 * covered, "{least} of {before} is left");
    }
    let (within, across) = largest_moves(&witness.written());
    println!("a threshold moved by at most {within:.3} within a term, {across:.3} from one to the next");
    assert!(across <= ORDINARY_STEP.ln() * 1.01, "{across}");
    offers.hold_steady();
    witness.hold();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_any_controller_members_brake_and_lapse_and_operators_are_obeyed_at_once() {
    let etcd = Etcd::start().await.expect("etcd starts");
    let endpoint = [etcd.endpoint().to_owned()];
    let controllers = Controllers::new();
    let (mut controller, _) = controllers.start("only", etcd.endpoint()).await;
    let member = Member::on(&endpoint).await;
    let offers = Offers::begin(&member.pool);
    member.holds_most().await;
    offers.admit_more("it goes").await;
    let killed_at = Instant::now();
    controller.kill().expect("kill -9");
    let store = store(&endpoint).await;
    let key = Keyspace::default().key(&Key::Override(pool(), target("acme")));
    let mut obeyed = Vec::new();
    let blocked = || {
        let answer = member.pool.try_admit(&tenant("acme"), Cost::request(0, 0));
        matches!(answer, Err(Refusal::WaitUntil { why: Why::Blocked, .. }))
    };
    for state in [MemberState::Braking, MemberState::Lapsed] {
        member.is(state).await;
        for _ in 0..3 {
            let put_at = Instant::now();
            store
                .commit(Txn::put(key.clone(), br#"{"block":true,"by":"mori"}"#.to_vec()))
                .await
                .expect("etcd is there");
            eventually("nobody is let through", async || blocked().then_some(())).await;
            obeyed.push(put_at.elapsed());
            store.commit(Txn::delete(key.clone())).await.expect("etcd is there");
            eventually("all is as before", async || (!blocked()).then_some(())).await;
        }
        offers.admit_more("it goes on").await;
    }
    let heard = offers.heard_before(killed_at + Duration::from_secs(2));
    let braking = offers.first(MemberState::Braking, killed_at).await - heard;
    let lapsed = offers.first(MemberState::Lapsed, killed_at).await - heard;
    obeyed.sort();
    let (median, worst) = (obeyed[obeyed.len() / 2], obeyed[obeyed.len() - 1]);
    println!(
        "controller gone: braking after {braking:.2?}, lapsed after {lapsed:.2?}, an override enforced after {median:.1?} \
         (at most {worst:.1?}); {}",
        offers.hold()
    );
    for (what, took, documented) in [("braking", braking, BRAKES_AFTER), ("lapsed", lapsed, LAPSES_AFTER)] {
        assert!(took + Duration::from_millis(100) >= documented, "{what} after {took:?}");
        in_time(what, took, documented + LOOKS_EVERY);
    }
    assert!(median <= Duration::from_millis(100), "{obeyed:?}");
    assert!(member.rate() <= 0.51 * CAPACITY, "at no more than the safe half");
    offers.hold_steady();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_together_enforce_no_more_than_the_threshold_while_the_leader_changes_and_shares_move() {
    let etcd = Etcd::start().await.expect("etcd starts");
    let endpoint = [etcd.endpoint().to_owned()];
    let controllers = Controllers::new();
    let (mut leader, _) = controllers.start("first", etcd.endpoint()).await;
    let (_next, _) = controllers.start("second", etcd.endpoint()).await;
    let witness = Witness::of(etcd.endpoint()).await;
    let [one, two] = [Member::on(&endpoint).await, Member::on(&endpoint).await];
    let (first, second) = (Offers::begin(&one.pool), Offers::begin(&two.pool));
    let part = |members: &[&Member]| members.iter().map(|member| member.rate()).sum::<f64>() / witness.threshold();
    // A member that has never asked for anything has no share, and joins when it does.
    eventually("both hold shares", async || {
        let (one, two) = (part(&[&one]), part(&[&two]));
        (one > 0.4 && two > 0.4 && one + two <= 1.001).then_some(())
    })
    .await;
    let said = first.hold();
    drop(first);
    let (mut most, mut most_joining) = (0.0_f64, 0.0_f64);
    eventually("shares move", async || {
        most = most.max(part(&[&one, &two]));
        (part(&[&two]) > 0.6).then_some(())
    })
    .await;

    let seen = one.stamp();
    leader.kill().expect("kill -9");
    let killed_at = Instant::now();
    eventually("another leads", async || {
        most = most.max(part(&[&one, &two]));
        (one.stamp() > next_term(seen)).then_some(())
    })
    .await;
    let takeover = killed_at.elapsed();
    eventually("both have reported to it", async || {
        most = most.max(part(&[&one, &two]));
        (one.stamp().epoch >= 3).then_some(())
    })
    .await;
    let joiner = Member::start(&endpoint).await;
    let last = Offers::begin(&joiner.pool);
    // Longer than the old leader's shares live on.
    let later = Stamp { epoch: one.stamp().epoch + 9, ..one.stamp() };
    eventually("shares move again", async || {
        most_joining = most_joining.max(part(&[&one, &two, &joiner]));
        (one.stamp() >= later && joiner.rate() > 0.25 * witness.threshold()).then_some(())
    })
    .await;
    println!(
        "leader killed while shares move: another after {takeover:.2?}, members together enforce at most {:+.2} %, while a third \
         joins {:+.2} %; {}; {}; {}",
        (most - 1.0) * 100.0,
        (most_joining - 1.0) * 100.0,
        said,
        second.hold(),
        last.hold()
    );
    witness.hold();
    in_time("another leads", takeover, TAKEOVER);
    assert!(most <= 1.01, "{most}");
    // One joins two: it has its part of the safe half, as long as the leader has not heard of it.
    assert!(most_joining <= 1.01 * (1.0 + 1.0 / 6.0), "{most_joining}");
}
