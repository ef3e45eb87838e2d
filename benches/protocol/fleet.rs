//! A 429 at one of many members: when has the last of them a pulse that knows of it.
//!
//! The real way: a permit is settled with the refusal, the member reports at once, the controller ticks before its time and
//! writes the pulse, etcd tells every member. All pools are refused at one moment, each at another member: so that most of the
//! reports come while the controller is busy with the first one, and wait for the gap between early ticks.
//!
//! A round begins behind an ordinary tick: until the next one, each pulse is one that a 429 asked for.

use std::sync::Arc;
use std::time::Duration;

use tidegate::client::{Client, ClientParams, Permit, PoolParams};
use tidegate::controller::Controller;
use tidegate::provider::{Dialect, Head, Usage};
use tidegate::quota::Cost;
use tokio::time::{Instant, sleep};

use super::goal::{Bounds, Goals};
use super::{connect, file, params, percentile, pool_name, tenant, with_etcd};

const MEMBERS: usize = 20;
const POOLS: usize = 20;
const EVENTS: usize = 10;
/// How often members are looked at. When a pulse came they tell to the microsecond.
const POLL: Duration = Duration::from_millis(5);
/// A round is over within this, and the next ordinary tick is not yet due.
const ROUND: Duration = Duration::from_millis(600);
const BOUNDS: Bounds = Bounds { goal: 150.0, must: 250.0 };

/// How old the last pulse of a pool is at a member.
fn pulse_age(member: &Client, pool: usize) -> Option<Duration> {
    member.status().pools.get(pool_name(pool).as_str())?.pulse_age
}

/// Leave for a call.
async fn admitted(member: &Client, pool: usize) -> Permit {
    let handle = member.pool(&pool_name(pool)).expect("named");
    handle.admit(&tenant(pool), Cost::request(0, 0)).await.expect("there is room")
}

/// The call is refused.
fn refused(mut permit: Permit) {
    let headers = vec![("retry-after".to_owned(), b"2".to_vec())];
    let observation = permit.observe(&Head { status: 429, headers: &headers });
    permit.conclude(&observation);
    permit.settle(Usage::default());
}

/// Waits until an ordinary tick has just reached everybody.
async fn ordinary_tick(members: &[Client]) {
    let fresh = |age: Option<Duration>| age.is_some_and(|age| age < Duration::from_millis(50));
    while !members.iter().all(|member| (0..POOLS).all(|pool| fresh(pulse_age(member, pool)))) {
        sleep(POLL).await;
    }
}

/// Refuses one call of each pool; of each pool, when the last member has its next pulse, in ms.
async fn round(members: &[Client], round: usize) -> Vec<f64> {
    ordinary_tick(members).await;
    // Members report four times a second: at another moment of that each time.
    sleep(Duration::from_millis(fastrand::u64(20..270))).await;
    let mut permits = Vec::with_capacity(POOLS);
    for pool in 0..POOLS {
        permits.push(admitted(&members[(pool + round) % MEMBERS], pool).await);
    }
    let begun = Instant::now();
    permits.into_iter().for_each(refused);
    let mut last = [Duration::ZERO; POOLS];
    let mut open: Vec<(usize, &Client)> =
        (0..POOLS).flat_map(|pool| members.iter().map(move |member| (pool, member))).collect();
    while !open.is_empty() {
        sleep(POLL).await;
        open.retain(|(pool, member)| {
            let (age, since) = (pulse_age(member, *pool), begun.elapsed());
            let came = age.and_then(|age| since.checked_sub(age));
            last[*pool] = last[*pool].max(came.unwrap_or_default());
            came.is_none()
        });
        assert!(begun.elapsed() < ROUND, "no pulse within {ROUND:?} for {} of pools and members", open.len());
    }
    sleep(ROUND.saturating_sub(begun.elapsed())).await;
    last.map(|took| took.as_secs_f64() * 1e3).to_vec()
}

pub(crate) fn fleet(goals: &mut Goals) {
    let (runtime, etcd) = with_etcd(2);
    let mut times = runtime.block_on(async {
        let params = params(&file(etcd.endpoint(), POOLS, 1, 60_000.0));
        let store = Arc::new(connect(etcd.endpoint()).await);
        let controller = Controller::start(params, store, Arc::default()).await.expect("it listens");
        let pool = |pool: usize| PoolParams::new(pool_name(pool).parse().expect("valid"), Dialect::OpenAi);
        let mut members = Vec::with_capacity(MEMBERS);
        for _ in 0..MEMBERS {
            let params = ClientParams::new((0..POOLS).map(pool).collect());
            members.push(Client::start(params, Arc::new(connect(etcd.endpoint()).await), Arc::default()).await);
        }
        sleep(Duration::from_secs(2)).await;
        let mut times = Vec::new();
        for event in 0..EVENTS {
            times.extend(round(&members, event).await);
        }
        controller.stop().await;
        times
    });
    let p50 = percentile(&mut times, 0.5);
    println!("protocol_fleet_p50 ours={p50:.1}ms");
    goals.at_most("protocol_fleet_p99", "ms", percentile(&mut times, 0.99), BOUNDS);
}
