//! The mode: what a gate does that observes, or is off; how a policy's word reaches those who wait; the kill switch.

use std::sync::Arc;
use std::time::Duration;

use tidegate::client::gate::{Answer, Asker, Gate, Traffic};
use tidegate::client::swap::{PoolWide, Swap};
use tidegate::client::{Client, ClientParams, MODE_VARIABLE, MemberState, PoolParams};
use tidegate::clock::MonoTime;
use tidegate::limiter::{Counting, Limiter, Limits, MeterLimit, Priority, Reservation};
use tidegate::plan::{Mode, Pulse, Rate, Thresholds};
use tidegate::provider::Dialect;
use tidegate::quota::{Cost, Meter};
use tidegate::sim::process::Process;
use tidegate::store::MemoryStore;
use tidegate::telemetry::{Metric, Telemetry};
use tokio::sync::Notify;

use super::admission::{Stage, eventually};
use super::by_hand::{POOL, RPM, pool, pulse, rates, stamp, tenant};
use super::world::{self, World, tidegate};

const ONE: Cost = Cost::request(0, 0);

fn s(seconds: u64) -> MonoTime {
    MonoTime::from_millis(seconds * 1_000)
}

/// One request a minute after the first, none larger than one.
struct Stand {
    gate: Gate<Arc<Notify>>,
    wide: Swap<PoolWide>,
}

impl Stand {
    fn new(mode: Mode) -> Self {
        let limit = MeterLimit {
            rate: Rate { rate: 1.0, burst: 1.0 },
            largest_request: 1.0,
            counting: Counting::TokenBucket,
            together: None,
        };
        let limits = Limits { meters: [(Meter::REQUESTS_PER_MINUTE, limit)].into(), ..Limits::default() };
        let mut limiter = Limiter::new(&limits, s(0));
        limiter.top_up_to_one_request(s(0));
        let wide = Swap::new(PoolWide { mode, ..PoolWide::new(MemberState::Active) });
        Self { gate: Gate::new(limiter, s(0)), wide }
    }

    fn turn(&self, mode: Mode) {
        self.wide.update(|known| Some(PoolWide { mode, ..known.clone() }));
    }

    fn ask(&self, cost: Cost, deadline: u64) -> Answer {
        self.gate.ask(&mut Asker::new(cost, Priority::Interactive, s(deadline)), &self.wide, None, s(0))
    }

    #[track_caller]
    fn admits(&self, cost: Cost, deadline: u64) -> Reservation {
        match self.ask(cost, deadline) {
            Answer::Admitted(reservation, None) => reservation,
            answer => panic!("{answer:?}"),
        }
    }
}

/// Attempts, admitted, refused, would have waited, would have been refused.
fn counts(traffic: &Traffic) -> (u64, u64, u64, u64, u64) {
    let counters = &traffic.counters;
    (counters.attempts, counters.admitted, counters.refused, traffic.would_wait, traffic.would_refuse)
}

#[test]
fn one_that_observes_admits_all_and_counts_what_enforcing_would_have_done() {
    let stand = Stand::new(Mode::Observe);
    let first = stand.admits(ONE, 0);
    // Its turn would be after a minute; the next one's after two.
    let _ = stand.admits(ONE, 60);
    let _ = stand.admits(ONE, 119);
    let _ = stand.admits(ONE, 120);
    let _ = stand.admits(Cost { requests: 2, ..ONE }, 1_000);
    assert_eq!(counts(&stand.gate.traffic()), (5, 5, 0, 2, 2));
    assert!(stand.gate.decide(&ONE, Priority::Interactive, &stand.wide, s(0)).is_none(), "ask");
    // What would have waited has taken its units: limits that hold again hold as if they always had.
    stand.turn(Mode::Enforce);
    let Answer::Wait(at) = stand.ask(ONE, 1_000) else { panic!("no room") };
    assert_eq!(at, s(180));
    stand.gate.settle(first, None, &ONE, s(0));
    assert_eq!(stand.gate.traffic().in_flight, 2, "who was not to go has no place in flight");
}

#[test]
fn one_that_is_off_admits_all_and_counts_nothing() {
    let stand = Stand::new(Mode::Enforce);
    let before = stand.admits(ONE, 0);
    stand.turn(Mode::Off);
    for _ in 0..3 {
        let reservation = stand.admits(ONE, 0);
        assert_eq!(reservation.cost(), ONE);
        stand.gate.count(|counters| counters.sent += 1);
        stand.gate.settle(reservation, Some(ONE), &ONE, s(0));
    }
    stand.gate.settle(before, None, &ONE, s(0));
    let traffic = stand.gate.traffic();
    assert_eq!((counts(&traffic), traffic.in_flight, traffic.counters.sent), ((1, 1, 0, 0, 0), 0, 0));
    assert_eq!(traffic.counters.settled.requests, 0);
    stand.turn(Mode::Enforce);
    assert!(matches!(stand.ask(ONE, 0), Answer::Late(_)), "the bucket is as it was");
}

#[test]
fn of_a_pool_and_its_parent_each_enforces_by_its_own_mode() {
    for (child, parent) in [(Mode::Observe, Mode::Enforce), (Mode::Off, Mode::Enforce), (Mode::Enforce, Mode::Observe)]
    {
        let (mine, theirs) = (Stand::new(child), Stand::new(parent));
        let ask = |deadline| {
            let mut asker = Asker::new(ONE, Priority::Interactive, s(deadline));
            mine.gate.ask(&mut asker, &mine.wide, Some((&theirs.gate, &theirs.wide)), s(0))
        };
        assert!(matches!(ask(0), Answer::Admitted(_, Some(_))), "{child:?} {parent:?}");
        let Answer::Late(late) = ask(0) else { panic!("one of them enforces: {child:?} {parent:?}") };
        assert_eq!(late.expected.at, Some(s(60)));
        let lenient = if child == Mode::Enforce { &theirs } else { &mine };
        let would = counts(&lenient.gate.traffic());
        assert_eq!((would.3, would.4), (0, 0), "who was not admitted was not decided on: {child:?} {parent:?}");
    }
    let (mine, theirs) = (Stand::new(Mode::Observe), Stand::new(Mode::Observe));
    for _ in 0..3 {
        let mut asker = Asker::new(ONE, Priority::Interactive, s(60));
        let answer = mine.gate.ask(&mut asker, &mine.wide, Some((&theirs.gate, &theirs.wide)), s(0));
        assert!(matches!(answer, Answer::Admitted(_, Some(_))), "{answer:?}");
    }
    for stand in [&mine, &theirs] {
        assert_eq!((stand.gate.traffic().would_wait, stand.gate.traffic().would_refuse), (1, 1));
    }
}

/// A pool that does not enforce refuses nothing for its own limits, even to those who wait for its parent.
#[test]
fn no_limit_of_its_own_refuses_who_waits_for_the_parent() {
    for mode in [Mode::Observe, Mode::Off] {
        let (mine, theirs) = (Stand::new(mode), Stand::new(Mode::Enforce));
        let large = Limits {
            meters: [(
                Meter::REQUESTS_PER_MINUTE,
                MeterLimit {
                    rate: Rate { rate: 1.0, burst: 10.0 },
                    largest_request: 10.0,
                    counting: Counting::TokenBucket,
                    together: None,
                },
            )]
            .into(),
            ..Limits::default()
        };
        theirs.gate.retune(&large, s(0));
        let ask = |asker: &mut Asker<_>| mine.gate.ask(asker, &mine.wide, Some((&theirs.gate, &theirs.wide)), s(0));
        let asker = |requests| Asker::new(Cost { requests, ..ONE }, Priority::Interactive, s(1_000));
        assert!(matches!(ask(&mut asker(1)), Answer::Admitted(..)));
        let (mut first, mut second) = (asker(1), asker(2));
        assert!(matches!(ask(&mut first), Answer::Wait(_)), "the parent has no room");
        let answer = ask(&mut second);
        assert!(matches!(answer, Answer::Wait(_)), "{mode:?}: {answer:?}");
        let place = mine.gate.standing(&second, Some(&theirs.gate), s(0)).expect("it waits");
        assert!(place.expected.at.is_some(), "the parent's time: {place:?}");
    }
}

/// What is given back was taken, and what was taken is given back, whatever the mode has become meanwhile.
#[test]
fn a_change_of_mode_keeps_what_is_reserved_and_returned_in_step() {
    let much = Cost::request(100, 4_096);
    let stand = Stand::new(Mode::Off);
    let uncounted = stand.admits(much, 0);
    stand.turn(Mode::Enforce);
    let counted = stand.admits(much, 0);
    stand.gate.settle(uncounted, Some(Cost::request(100, 10)), &much, s(0));
    let counters = stand.gate.traffic().counters;
    assert_eq!((counters.reserved.output_tokens, counters.returned.output_tokens), (4_096, 0));
    stand.turn(Mode::Off);
    let _ = stand.admits(much, 0);
    stand.gate.settle(counted, Some(Cost::request(100, 10)), &much, s(0));
    let counters = stand.gate.traffic().counters;
    assert_eq!((counters.reserved.output_tokens, counters.returned.output_tokens), (4_096, 4_086));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policys_word_lets_go_who_waits_and_holds_again() {
    let slow = Thresholds { concurrency: Some(1), ..rates(&[(RPM, 1.0, 1.0)]) };
    let stage = Stage::open(&[("acme", slow)]).await;
    let acme = tenant("acme");
    let waiting = |n: usize| {
        let traffic = stage.pool.traffic();
        traffic.values().map(|traffic| traffic.waiting).sum::<usize>() == n
    };
    let waiters: Vec<_> = (0..5)
        .map(|_| {
            let (pool, acme) = (stage.pool.clone(), acme.clone());
            tokio::spawn(async move { pool.admit_within(&acme, ONE, Duration::from_secs(3_600)).await.map(drop) })
        })
        .collect();
    eventually("they wait", || waiting(5) || waiting(4)).await;
    let said = |epoch, mode| Pulse { valid_for_ms: 3_600_000, mode, ..pulse(stamp(1, epoch)) };
    stage.hand.pulse(&said(100, Mode::Observe)).await;
    for waiter in waiters {
        assert_eq!(waiter.await.expect("no panic"), Ok(()));
    }
    assert_eq!(stage.pool.tuning().mode, Mode::Observe);
    let status = stage.client.status();
    let standing = &status.pools[POOL];
    assert_eq!((status.mode, standing.mode, standing.state), (None, Mode::Observe, MemberState::Active));
    assert!(standing.pulse_age.is_some() && status.store_silence.is_some() && status.leader.is_some());
    stage.hand.pulse(&said(101, Mode::Enforce)).await;
    eventually("limits hold again", || stage.pool.tuning().mode == Mode::Enforce).await;
    stage.pool.try_admit(&acme, ONE).expect_err("one a minute");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_programs_own_word_holds_before_anything_is_heard_and_is_told_in_metrics() {
    let telemetry = Arc::new(Telemetry::new());
    let params =
        ClientParams { mode: Some(Mode::Observe), ..ClientParams::new(vec![PoolParams::new(pool(), Dialect::OpenAi)]) };
    let client = Client::start(params, Arc::new(MemoryStore::new()), telemetry.clone()).await;
    let own = client.pool(POOL).expect("its own");
    // The bootstrap thresholds are one at a time, ten a minute.
    let permits: Vec<_> = (0..20).map(|_| own.try_admit(&tenant("acme"), ONE).expect("all go")).collect();
    let value = |metric: Metric| {
        let samples = telemetry.snapshot();
        samples.iter().filter(|sample| sample.metric == metric).map(|sample| sample.value.number()).sum::<f64>()
    };
    eventually("it is counted", || value(Metric::WouldRefuse) == 19.0).await;
    assert_eq!((value(Metric::Mode), value(Metric::Admitted)), (1.0, 20.0));
    eventually("the store's silence is told", || telemetry.snapshot().iter().any(|s| s.metric == Metric::WatchSilence))
        .await;
    assert_eq!(client.status().mode, Some(Mode::Observe));
    drop(permits);
    client.close().await;
}

/// Nothing else is alive: no etcd, no controller. The provider counts what comes.
#[tokio::test(flavor = "multi_thread")]
async fn the_environments_word_is_a_kill_switch_that_needs_nothing_else_to_be_alive() {
    let world = World::new(6_000).await;
    let folder = tempfile::tempdir().expect("a folder");
    let service = |word: &str| {
        let mut command = tidegate(&["demo-service", "--name", word, "--pool", "demo", "--offer", "acme=50"]);
        command.args(["--etcd", "http://127.0.0.1:1", "--provider", &world.provider]).env(MODE_VARIABLE, word);
        command.env("TIDEGATE_LOG", "info");
        Process::spawn(word, command, Some(&folder.path().join(word))).expect("it starts")
    };
    let seen = async || {
        let total = world.state().await.truth.total;
        total.admitted_requests + total.refused_requests
    };
    // A word that is none opens nothing: ten a minute.
    let mistaken = service("of");
    world::eventually("it says so", async || {
        let log = std::fs::read_to_string(folder.path().join("of")).unwrap_or_default();
        log.contains("TIDEGATE_MODE is \"of\", expected enforce, observe or off").then_some(())
    })
    .await;
    world::eventually("it sends", async || (seen().await >= 1).then_some(())).await;
    assert!(seen().await <= 3, "the bootstrap thresholds hold");
    drop(mistaken);
    let off = service("off");
    world::eventually("all of it goes", async || (seen().await >= 40).then_some(())).await;
    drop(off);
}
