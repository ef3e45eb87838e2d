//! Ways that are slow and break: a member's to etcd, a controller's to etcd, a member's to the controller. A member offers more
//! than it may all the while: nothing older replaces what is newer, and what it was let send is held against what it was to enforce.

use std::time::Duration;

use tidegate::client::MemberState;
use tidegate::plan::Stamp;
use tidegate::plan::keyspace::{Key, Keyspace};
use tidegate::sim::Etcd;
use tidegate::store::{Select, Source};
use tidegate::telemetry::Metric;
use tokio::time::Instant;

use super::stand::{Member, Offers, Proxy, TAKEOVER, Weather, Witness, controller, in_time, store};
use super::world::eventually;

/// How long a share holds that is not renewed.
const SHARE_HOLDS: Duration = Duration::from_secs(5);
/// 0.2 to 1 s each way.
const SLOW: Weather = Weather::Slow(200, 1_000);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_members_slow_and_broken_way_to_etcd_lets_nothing_older_in() {
    let etcd = Etcd::start().await.expect("etcd starts");
    let way = Proxy::to(etcd.endpoint()).await;
    let controller = controller(&[etcd.endpoint().to_owned()], None).await;
    let member = Member::on(&[way.url()]).await;
    let offers = Offers::begin(&member.pool);
    member.holds_most().await;
    let began_at = Instant::now();
    way.is(SLOW);
    for _ in 0..3 {
        let seen = member.stamp();
        member.active_after(Stamp { epoch: seen.epoch + 1, ..seen }).await;
        way.snap().await;
    }
    way.is(Weather::Held);
    member.is(MemberState::Braking).await;
    let seen = member.stamp();
    way.is(SLOW);
    member.active_after(seen).await;
    let seen = member.stamp();
    way.is(Weather::Clear);
    member.active_after(seen).await;
    offers.admit_more("it goes on").await;
    let (inactive, all) = (offers.inactive(began_at), began_at.elapsed());
    println!("member to etcd slow and broken for {all:.1?}: not active for {inactive:.2?}; {}", offers.hold());
    offers.hold_steady();
    member.client.close().await;
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controllers_slow_and_broken_way_to_etcd_lets_it_write_nothing_past_its_fence() {
    let etcd = Etcd::start().await.expect("etcd starts");
    let way = Proxy::to(etcd.endpoint()).await;
    let controller = controller(&[way.url()], None).await;
    let member = Member::on(&[etcd.endpoint().to_owned()]).await;
    let (witness, offers) = (Witness::of(etcd.endpoint()).await, Offers::begin(&member.pool));
    member.holds_most().await;
    let (first, began_at) = (member.stamp().term, Instant::now());
    // Asked so late, etcd cannot confirm a lease of 3 s in time.
    way.is(SLOW);
    member.is(MemberState::Braking).await;
    for _ in 0..3 {
        way.snap().await;
    }
    way.is(Weather::Held);
    // Its lease has run out: until then it may go on in the same term.
    let (etcds, leader) =
        (store(&[etcd.endpoint().to_owned()]).await, [Select::Key(Keyspace::default().key(&Key::Leader))]);
    eventually("nobody leads", async || {
        etcds.list(&leader).await.expect("etcd is there").entries.is_empty().then_some(())
    })
    .await;
    offers.admit_more("it goes on").await;
    way.is(Weather::Clear);
    let clear_at = Instant::now();
    member.active_after(Stamp { term: first + 1, epoch: 0 }).await;
    let active = clear_at.elapsed();
    offers.admit_more("it goes on").await;
    let (inactive, all) = (offers.inactive(began_at), began_at.elapsed());
    witness.hold();
    let mut terms: Vec<u64> = witness.written().iter().map(|one| one.stamp.term).collect();
    terms.dedup();
    assert!(terms[0] == first && terms.len() > 1, "it lost its lease: {terms:?}");
    println!(
        "controller to etcd slow and broken for {all:.1?}: {} terms, not active for {inactive:.2?}, active {active:.2?} after; {}",
        terms.len(),
        offers.hold()
    );
    offers.hold_steady();
    in_time("active again", active, TAKEOVER);
    member.client.close().await;
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_members_slow_and_broken_way_to_the_controller_costs_its_share_alone_and_brings_no_old_one() {
    let etcd = Etcd::start().await.expect("etcd starts");
    let endpoint = [etcd.endpoint().to_owned()];
    let way = Proxy::to("").await;
    let first = controller(&endpoint, Some(way.url())).await;
    way.turn_to(&first.local_addr().to_string());
    let member = Member::on(&endpoint).await;
    let second = controller(&endpoint, None).await;
    let offers = Offers::begin(&member.pool);
    member.holds_most().await;

    let began_at = Instant::now();
    way.is(SLOW);
    for _ in 0..3 {
        way.snap().await;
        let seen = member.stamp();
        member.active_after(seen).await;
    }
    offers.admit_more("it goes on").await;
    // Until its share is over; the leader is heard all the while.
    // What it had by then may be more than the capacity it began with: nobody refuses it anything. What is lent ends first, 1.6 times
    // what there is, and leaves more than half; a share that is over less.
    let had = member.rate();
    way.is(Weather::Held);
    let held_at = Instant::now();
    eventually("its share is over", async || {
        (held_at.elapsed() >= SHARE_HOLDS && member.rate() < 0.55 * had).then_some(())
    })
    .await;
    way.is(Weather::Clear);
    let clear_at = Instant::now();
    member.holds_most().await;
    let again = clear_at.elapsed();

    // A reply that is on its way while the one who gave it makes way for another.
    way.is(Weather::Slow(400, 400));
    let (seen, answered) = (member.stamp(), way.answered());
    eventually("a reply is on its way", async || (way.answered() > answered).then_some(())).await;
    // It stays on its way until then: who reported waits 2 s for it.
    way.is(Weather::Held);
    first.stop().await;
    member.active_after(Stamp { term: seen.term + 1, epoch: 0 }).await;
    way.is(Weather::Clear);
    eventually("it is dropped", async || (member.counted(Metric::RepliesDropped, "old_term") > 0.0).then_some(()))
        .await;
    offers.admit_more("it goes on").await;
    println!(
        "member to controller slow and broken: share lost, had again after {again:.2?}, not active for \
         {:.2?}; {}",
        offers.inactive(began_at),
        offers.hold()
    );
    offers.hold_steady();
    assert_eq!(offers.inactive(began_at), Duration::ZERO);
    member.client.close().await;
    second.stop().await;
}
