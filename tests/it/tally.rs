//! Counting together in Redis: the script against its pure twin, and what members do with it.

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use tidegate::client::{Client, ClientParams, Pool, PoolParams, Refusal, Tally, Usage};
use tidegate::limiter::{Count, Question, Settlement, Taken, Tallies, TallyRule};
use tidegate::plan::{Algorithm, Grant, Pulse, Rate};
use tidegate::provider::Dialect;
use tidegate::quota::{Cost, Meter};
use tidegate::redis::{Redis, RedisParams, RedisTally, Topology};
use tidegate::sim::process::{Process, find_program, free_port};
use tidegate::sim::{RedisServer, RedisSetup, Seat};
use tidegate::telemetry::{Metric, Telemetry};
use tokio::time::Instant;

use super::by_hand::{Hand, RPM, TPM, grant, grantee, pool, pulse, rates, stamp, tenant};
use super::world::{PATIENCE, eventually};

pub async fn raw(server: &RedisServer) -> MultiplexedConnection {
    let client = redis::Client::open(server.url()).expect("a URL");
    client.get_multiplexed_async_connection().await.expect("redis answers")
}

pub fn tally(server: &RedisServer) -> RedisTally {
    RedisTally::new(Redis::new(RedisParams::new(&server.url())).expect("a URL"))
}

fn count(meter: Meter, rule: TallyRule, units: u64) -> Count {
    Count {
        pool: pool(),
        grantee: grantee("acme"),
        meter,
        tenant: rule,
        all: rule,
        units,
        extra: 0,
        owed: 0,
        borrows: false,
    }
}

fn question(counts: &[Count]) -> Question {
    Question { account: pool(), counts: counts.to_vec() }
}

async fn server_us(connection: &mut MultiplexedConnection) -> u64 {
    let (s, us): (u64, u64) = redis::cmd("TIME").query_async(connection).await.expect("redis answers");
    s * 1_000_000 + us
}

fn is_all(taken: &Taken) -> bool {
    matches!(taken, Taken::All { .. })
}

/// The same answer, but for what a few milliseconds make of a wait and of a window's end.
fn agree(theirs: &Taken, ours: &Taken) -> bool {
    let near = |a: u64, b: u64| a.abs_diff(b) <= 20;
    match (theirs, ours) {
        (Taken::All { marks: a, extra: x, .. }, Taken::All { marks: b, extra: y, .. }) => {
            x == y && a.iter().flatten().zip(b.iter().flatten()).all(|(a, b)| near(*a, *b))
        }
        (Taken::None { after: a, .. }, Taken::None { after: b, .. }) => match (a, b) {
            (Some(a), Some(b)) => a.abs_diff(*b) <= Duration::from_millis(8),
            (a, b) => a == b,
        },
        _ => false,
    }
}

/// What the script did at an instant that nobody knows exactly is what the twin does at one between these two.
#[tokio::test]
async fn the_script_answers_as_its_twin_does() {
    let server = RedisServer::start().await.expect("redis starts");
    let (tally, mut connection) = (tally(&server), raw(&server).await);
    let mut dice = fastrand::Rng::with_seed(7);
    let mut apart: Vec<String> = Vec::new();
    for round in 0..6 {
        let _: () = redis::cmd("FLUSHALL").query_async(&mut connection).await.expect("redis answers");
        let mut twin = Tallies::default();
        let mut reserved: Vec<(Question, Vec<[u64; 2]>)> = Vec::new();
        for nth in 0..400 {
            let kind = (round + usize::from(dice.u8(..) == 0)) % 3;
            let rule = |limit: f64| match kind {
                0 => TallyRule::TokenBucket { rate_per_s: limit, burst: limit / 2.0 },
                1 => TallyRule::FixedWindow { limit, window_ms: 1_000, left_ms: (round == 4).then_some(700) },
                _ => TallyRule::SlidingWindow { limit, window_ms: 1_000 },
            };
            let limits = if dice.u8(..) < 8 { (0.0, 90.0) } else { (30.0, 300.0) };
            let (mut requests, mut tokens) =
                (count(RPM, rule(limits.0), 1), count(TPM, rule(limits.1), dice.u64(0..60)));
            (requests.all, tokens.all) = (rule(40.0), rule(400.0));
            requests.extra = if dice.bool() { 3 } else { 0 };
            requests.owed = if dice.u8(..) < 10 { 2 } else { 0 };
            (requests.borrows, tokens.borrows) = (dice.bool(), dice.bool());
            tokens.units = if dice.u8(..) < 4 { 700 } else { tokens.units };
            let question = question(&[requests, tokens]);

            let before = server_us(&mut connection).await;
            let theirs = tally.take(&question).await.expect("redis answers");
            let after = server_us(&mut connection).await;
            // The twin keeps the time as well as it can be known, which is to a few thousandths of a second by now.
            // As near as it is known first.
            let between = (0..=10).map(|tenth| before + (after - before) * tenth / 10);
            let tried: Vec<(Tallies, Taken)> = between
                .chain([before - 3_000, after + 3_000])
                .map(|us| {
                    let mut one = twin.clone();
                    let taken = one.take(&question, us);
                    (one, taken)
                })
                .collect();
            let Some((same, _)) = tried.iter().find(|(_, taken)| agree(&theirs, taken)) else {
                // At an edge a thousandth of a second decides, and who waited is remembered for longer: both begin anew.
                let ours = &tried[0].1;
                apart.push(format!("round {round}, question {nth}: {question:?}\nredis: {theirs:?}\ntwin: {ours:?}"));
                let _: () = redis::cmd("FLUSHALL").query_async(&mut connection).await.expect("redis answers");
                (twin, reserved) = (Tallies::default(), Vec::new());
                continue;
            };
            twin = same.clone();
            if let Taken::All { marks, .. } = &theirs {
                reserved.push((question, marks.clone()));
            }
            if !reserved.is_empty() && dice.u8(..) < 80 {
                let (question, marks) = reserved.swap_remove(dice.usize(..reserved.len()));
                let counts = question.counts.into_iter().zip(marks);
                let counts = counts.map(|(count, marks)| (count, marks, dice.i64(-3..20))).collect();
                let settlement = Settlement { account: question.account, counts };
                tally.settle(&settlement).await.expect("redis answers");
                let now = server_us(&mut connection).await;
                twin.settle(&settlement, now);
            }
            if dice.u8(..) < 4 {
                tokio::time::sleep(Duration::from_millis(dice.u64(0..400))).await;
            }
        }
        let keys: Vec<String> = redis::cmd("KEYS").arg("*").query_async(&mut connection).await.expect("redis answers");
        assert!(!keys.is_empty());
        for key in keys {
            let left: i64 = redis::cmd("PTTL").arg(&key).query_async(&mut connection).await.expect("redis answers");
            assert!(left > 0, "{key} would stay for ever");
        }
    }
    assert!(apart.len() <= 24, "of 2,400 questions {} were answered otherwise, such as\n{}", apart.len(), apart[0]);
}

/// litellm #14204, apache/shenyu #6649: an expiry that each count pushes back, so that the window never ends.
#[tokio::test]
async fn a_window_ends_when_it_was_to_however_often_it_is_counted() {
    let server = RedisServer::start().await.expect("redis starts");
    let (tally, mut connection) = (tally(&server), raw(&server).await);
    let rule = TallyRule::FixedWindow { limit: 1e6, window_ms: 1_000, left_ms: None };
    let began = Instant::now();
    let mut ends = Vec::new();
    while began.elapsed() < Duration::from_millis(800) {
        let Taken::All { marks, .. } = tally.take(&question(&[count(RPM, rule, 1)])).await.expect("redis answers")
        else {
            panic!("there is room");
        };
        ends.push(marks[0][0]);
    }
    assert!(ends.len() > 20, "{} counts", ends.len());
    let (first, last) = (ends.iter().min().expect("some"), ends.iter().max().expect("some"));
    // Told by what is left and by what time it is, which a busy machine reads a little apart.
    assert!(last - first <= 20, "from {first} to {last}");
    eventually("the window is over", async || {
        let keys: Vec<String> = redis::cmd("KEYS").arg("*").query_async(&mut connection).await.expect("redis answers");
        keys.is_empty().then_some(())
    })
    .await;
    assert!(began.elapsed() < Duration::from_millis(1_600), "after {:?}", began.elapsed());
}

/// Counters without expiry: one that lost it gets it back, be there room or not.
#[tokio::test]
async fn a_count_whose_expiry_was_taken_away_has_one_again() {
    let server = RedisServer::start().await.expect("redis starts");
    let (tally, mut connection) = (tally(&server), raw(&server).await);
    let rule = TallyRule::FixedWindow { limit: 1.0, window_ms: 60_000, left_ms: None };
    let question = question(&[count(RPM, rule, 1)]);
    assert!(is_all(&tally.take(&question).await.expect("redis answers")));
    let keys: Vec<String> = redis::cmd("KEYS").arg("*").query_async(&mut connection).await.expect("redis answers");
    assert_eq!(keys.len(), 2);
    for key in &keys {
        let _: i64 = redis::cmd("PERSIST").arg(key).query_async(&mut connection).await.expect("redis answers");
    }
    assert!(!is_all(&tally.take(&question).await.expect("redis answers")));
    for key in &keys {
        let left: i64 = redis::cmd("PTTL").arg(key).query_async(&mut connection).await.expect("redis answers");
        assert!((1..=60_000).contains(&left), "{key}: {left}");
    }
}

/// A refund into a later window: a count below zero, and more than the limit after it.
#[tokio::test]
async fn what_is_given_back_of_a_window_that_is_over_goes_nowhere() {
    let server = RedisServer::start().await.expect("redis starts");
    let (tally, mut connection) = (tally(&server), raw(&server).await);
    let rule = TallyRule::FixedWindow { limit: 10.0, window_ms: 1_000, left_ms: None };
    let count = count(RPM, rule, 10);
    let Taken::All { marks, .. } = tally.take(&question(std::slice::from_ref(&count))).await.expect("redis answers")
    else {
        panic!("there is room");
    };
    eventually("the window is over", async || {
        let keys: Vec<String> = redis::cmd("KEYS").arg("*").query_async(&mut connection).await.expect("redis answers");
        keys.is_empty().then_some(())
    })
    .await;
    assert!(is_all(&tally.take(&question(std::slice::from_ref(&count))).await.expect("redis answers")));
    let counts = vec![(count.clone(), marks[0], 10)];
    tally.settle(&Settlement { account: pool(), counts }).await.expect("redis answers");
    let one = Count { units: 1, ..count };
    assert!(!is_all(&tally.take(&question(&[one])).await.expect("redis answers")), "the new window is full");
}

/// An outage of which many tenants of one pool tell in one question.
#[tokio::test]
async fn what_several_tenants_owe_is_all_taken_from_their_pool() {
    let server = RedisServer::start().await.expect("redis starts");
    let (tally, mut connection) = (tally(&server), raw(&server).await);
    let (mut twin, wide) = (Tallies::default(), TallyRule::TokenBucket { rate_per_s: 1e6, burst: 1e6 });
    let pools = [
        TallyRule::TokenBucket { rate_per_s: 1.0, burst: 100.0 },
        TallyRule::FixedWindow { limit: 20.0, window_ms: 86_400_000, left_ms: None },
        TallyRule::SlidingWindow { limit: 20.0, window_ms: 86_400_000 },
    ];
    for rule in pools {
        let of = |name: &str, units, owed| {
            let whose = Count { grantee: grantee(name), tenant: wide, units, owed, ..count(RPM, rule, 0) };
            [whose]
        };
        let owed = ["a", "b", "c"].map(|name| of(name, 0, 4)).concat();
        let mut ask = async |counts: &[Count]| {
            let question = question(counts);
            let ours = twin.take(&question, server_us(&mut connection).await);
            (tally.take(&question).await.expect("redis answers"), ours)
        };
        ask(&owed).await;
        let (theirs, ours) = ask(&of("d", 9, 0)).await;
        for taken in [&theirs, &ours] {
            let Taken::None { after, .. } = taken else { panic!("{rule:?}: twelve of twenty are gone: {taken:?}") };
            // The bucket began with one, and owes eleven.
            let is_bucket = matches!(rule, TallyRule::TokenBucket { .. });
            let is_due = |after: Duration| (19.0..=20.0).contains(&after.as_secs_f64());
            assert!(!is_bucket || after.is_some_and(is_due), "{rule:?}: {taken:?}");
        }
        let (theirs, ours) = ask(&of("d", 8, 0)).await;
        let fits = !matches!(rule, TallyRule::TokenBucket { .. });
        assert_eq!((is_all(&theirs), is_all(&ours)), (fits, fits), "{rule:?}: {theirs:?}, {ours:?}");
    }
}

/// A group of two that a sentinel watches: the one that leads is killed, the other leads on, and counts on from there.
#[tokio::test]
async fn where_a_sentinel_says_who_leads_the_next_one_counts_on() {
    let mut leads = RedisServer::start().await.expect("redis starts");
    let follows =
        RedisSetup { settings: vec![format!("replicaof 127.0.0.1 {}", leads.port())], ..RedisSetup::default() };
    let follows = RedisServer::start_as(&follows).await.expect("redis starts");
    let seat = Seat::take().expect("a seat");
    let (folder, port) = (seat.folder("sentinel").expect("a folder"), free_port().expect("a port"));
    let config = folder.join("sentinel.conf");
    let text = format!(
        "bind 127.0.0.1\nport {port}\ndir {}\nsentinel monitor front 127.0.0.1 {} 1\n\
         sentinel down-after-milliseconds front 500\nsentinel failover-timeout front 3000\n",
        folder.display(),
        leads.port()
    );
    std::fs::write(&config, text).expect("written");
    let mut command = Command::new(find_program("redis-server", "redis-server").expect("redis-server"));
    command.arg(&config).arg("--sentinel");
    let mut sentinel = Process::spawn("sentinel", command, None).expect("it starts");
    // It knows who follows by then.
    sentinel.wait_for_line(|line| line.contains("+slave "), PATIENCE).await.expect("it finds both");

    let params = RedisParams {
        topology: Topology::Sentinel("front".to_owned()),
        ..RedisParams::new(&format!("redis://127.0.0.1:{port}"))
    };
    let tally = RedisTally::new(Redis::new(params).expect("a URL"));
    let rule = TallyRule::FixedWindow { limit: 3.0, window_ms: 600_000, left_ms: None };
    let one = question(&[count(RPM, rule, 1)]);
    assert!(is_all(&tally.take(&one).await.expect("redis answers")));
    let mut second = raw(&follows).await;
    eventually("the one that follows has it", async || {
        let keys: Vec<String> = redis::cmd("KEYS").arg("*").query_async(&mut second).await.expect("redis answers");
        (keys.len() == 2).then_some(())
    })
    .await;
    leads.kill().expect("kill -9");
    let began = Instant::now();
    let taken = eventually("the next one answers", async || {
        let taken = tally.take(&one).await;
        if taken.is_err() {
            tally.start_over();
        }
        taken.ok()
    })
    .await;
    println!("the next one answers after {:.1?}", began.elapsed());
    assert!(is_all(&taken));
    assert!(is_all(&tally.take(&one).await.expect("redis answers")));
    assert!(!is_all(&tally.take(&one).await.expect("redis answers")), "three of three are counted");
    sentinel.terminate().await.expect("it ends");
}

/// All or nothing over meters: what one refuses is not taken from another.
#[tokio::test]
async fn what_one_meter_refuses_no_other_counts() {
    let server = RedisServer::start().await.expect("redis starts");
    let (tally, mut connection) = (tally(&server), raw(&server).await);
    let fixed = |limit| TallyRule::FixedWindow { limit, window_ms: 60_000, left_ms: None };
    let question = question(&[count(RPM, fixed(100.0), 1), count(TPM, fixed(50.0), 50)]);
    assert!(is_all(&tally.take(&question).await.expect("redis answers")));
    for _ in 0..5 {
        assert!(matches!(tally.take(&question).await.expect("redis answers"), Taken::None { count: 1, .. }));
    }
    let keys: Vec<String> =
        redis::cmd("KEYS").arg("*requests*").query_async(&mut connection).await.expect("redis answers");
    for key in keys {
        let counted: u64 = redis::cmd("GET").arg(&key).query_async(&mut connection).await.expect("redis answers");
        assert_eq!(counted, 1, "{key}");
    }
}

/// Members of one pool without a controller: a grant and pulses put by hand.
pub struct Side {
    _clients: Vec<Client>,
    pub pools: Vec<Pool>,
    pub telemetry: Arc<Telemetry>,
    beat: tokio::task::JoinHandle<()>,
}

impl Drop for Side {
    fn drop(&mut self) {
        self.beat.abort();
    }
}

/// What a pool's members count together.
#[derive(Debug, Clone)]
pub struct Plan {
    pub meters: Vec<(Meter, f64, f64)>,
    pub algorithm: Algorithm,
    pub members: u32,
}

impl Plan {
    fn grant(&self) -> Grant {
        let algorithms = self.meters.iter().map(|(meter, ..)| (*meter, self.algorithm));
        let thresholds = rates(&self.meters);
        Grant { members: self.members, algorithms: algorithms.collect(), ..grant(stamp(1, 1), thresholds) }
    }

    fn pulse(&self, epoch: u64) -> Pulse {
        let shared = self.meters.iter().map(|(meter, rate, burst)| (*meter, Rate { rate: *rate, burst: *burst }));
        let capacity = self.meters.iter().map(|(meter, rate, _)| (*meter, *rate)).collect();
        Pulse { shared: shared.collect(), capacity, ..pulse(stamp(1, epoch)) }
    }
}

impl Side {
    pub async fn open(plan: &Plan, clients: usize, tally: impl Fn() -> Option<Arc<dyn Tally>>) -> Self {
        let hand = Hand::new();
        hand.lead("http://127.0.0.1:9").await;
        hand.grant("acme", &plan.grant()).await;
        hand.pulse(&plan.pulse(1)).await;
        let telemetry = Arc::new(Telemetry::new());
        let (mut all, mut pools) = (Vec::new(), Vec::new());
        for nth in 0..clients {
            let params = ClientParams {
                instance: format!("m{nth}-{}", std::process::id()),
                tally: tally(),
                ..ClientParams::new(vec![PoolParams::new(pool(), Dialect::Anthropic)])
            };
            let client = Client::start(params, Arc::new(hand.store.clone()), telemetry.clone()).await;
            pools.push(client.pool("pool").expect("named"));
            all.push(client);
        }
        for pool in &pools {
            eventually("the grant is in force", async || {
                pool.tuning().limits.contains_key(&grantee("acme")).then_some(())
            })
            .await;
        }
        let (beating, told) = (hand.clone(), plan.clone());
        let beat = tokio::spawn(async move {
            for epoch in 2.. {
                tokio::time::sleep(Duration::from_secs(1)).await;
                beating.pulse(&told.pulse(epoch)).await;
            }
        });
        Self { _clients: all, pools, telemetry, beat }
    }

    pub fn counted(&self, metric: Metric, label: &str) -> f64 {
        let samples = self.telemetry.snapshot().into_iter();
        let ours = samples.filter(|sample| sample.metric == metric && sample.labels.iter().any(|has| has == label));
        ours.map(|sample| sample.value.number()).sum()
    }
}

pub fn redis_tally(server: &RedisServer) -> impl Fn() -> Option<Arc<dyn Tally>> {
    let url = server.url();
    move || Some(Arc::new(RedisTally::new(Redis::new(RedisParams::new(&url)).expect("a URL"))) as Arc<dyn Tally>)
}

/// litellm #27736, #40291: a limit that each of the processes counts for itself lets through as many times as much.
#[tokio::test]
async fn a_limit_is_of_all_members_together_and_not_of_each() {
    let server = RedisServer::start().await.expect("redis starts");
    let plan = Plan { meters: vec![(RPM, 40.0, 40.0)], algorithm: Algorithm::FixedWindow, members: 4 };
    let side = Side::open(&plan, 4, redis_tally(&server)).await;
    let (mut admitted, mut refused) = (Vec::new(), 0);
    for nth in 0..120 {
        match side.pools[nth % 4].admit_within(&tenant("acme"), Cost::request(0, 0), Duration::ZERO).await {
            Ok(permit) => admitted.push(permit),
            Err(Refusal::WaitUntil { after, .. }) => {
                assert!(after > Duration::from_secs(30) && after < Duration::from_secs(73), "{after:?}");
                refused += 1;
            }
            Err(never) => panic!("{never}"),
        }
    }
    assert_eq!((admitted.len(), refused), (40, 80));
    assert_eq!(side.counted(Metric::TallyDecisions, "admitted"), 40.0);
    assert_eq!(side.counted(Metric::TallyDecisions, "refused"), 80.0);
}

/// litellm PR #35422: a pool that limits tokens alone was never limited.
#[tokio::test]
async fn a_pool_that_limits_tokens_alone_is_limited_and_gets_back_what_was_not_used() {
    let server = RedisServer::start().await.expect("redis starts");
    let plan = Plan { meters: vec![(TPM, 1_000.0, 1_000.0)], algorithm: Algorithm::FixedWindow, members: 2 };
    let side = Side::open(&plan, 2, redis_tally(&server)).await;
    let ask = async |nth: usize, tokens: u64| {
        side.pools[nth].admit_within(&tenant("acme"), Cost::request(tokens, 0), Duration::ZERO).await
    };
    let first = ask(0, 600).await.expect("there is room");
    let second = ask(1, 400).await.expect("there is room");
    assert!(ask(0, 1).await.is_err());
    // Who charges what it estimated gives nothing back; this one corrects itself.
    first.settle(Usage { input_tokens: 100, output_tokens: 0 });
    let third = eventually("what was not used is back", async || ask(1, 500).await.ok()).await;
    assert!(ask(0, 1).await.is_err(), "to the unit");
    drop((second, third));
}

/// envoy ratelimit #462, #978: a Redis that hangs cost each request seconds.
#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_hangs_costs_two_requests_50_ms_and_is_back_by_itself() {
    let mut server = RedisServer::start().await.expect("redis starts");
    // Five seconds of it at once, and 50 a second.
    let plan = Plan { meters: vec![(RPM, 3_000.0, 250.0)], algorithm: Algorithm::TokenBucket, members: 1 };
    let side = Side::open(&plan, 1, redis_tally(&server)).await;
    let ask = async || side.pools[0].admit_within(&tenant("acme"), Cost::request(0, 0), Duration::ZERO).await;
    drop(eventually("somebody is admitted", async || ask().await.ok()).await);
    server.pause().expect("stopped");
    let mut took = Vec::new();
    for _ in 0..200 {
        let began = Instant::now();
        let _ = ask().await;
        took.push(began.elapsed());
    }
    took[..5].sort();
    took[5..].sort();
    assert!(took[4] <= Duration::from_millis(75), "{:?}", &took[..5]);
    // The machine may be busy with other tests: the long test measures closely.
    assert!(took[5 + 190] <= Duration::from_millis(10), "{:?}", took[5 + 190]);
    assert!(side.counted(Metric::TallyDecisions, "away") >= 1.0);
    assert_eq!(side.counted(Metric::TallyFailures, "late"), 2.0);

    server.resume().expect("goes on");
    let began = Instant::now();
    let before = side.counted(Metric::TallyDecisions, "admitted") + side.counted(Metric::TallyDecisions, "refused");
    eventually("it decides again", async || {
        let _ = ask().await;
        let now = side.counted(Metric::TallyDecisions, "admitted") + side.counted(Metric::TallyDecisions, "refused");
        (now > before).then_some(())
    })
    .await;
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
}

/// What the server was asked, as MONITOR tells it.
struct Watched(Process);

impl Watched {
    async fn start(server: &RedisServer) -> Self {
        let mut command = server.redis_cli().expect("redis-cli is there");
        command.arg("monitor");
        let mut process = Process::spawn("redis-cli monitor", command, None).expect("it runs");
        process.wait_for_line(|line| line.contains("OK"), Duration::from_secs(10)).await.expect("it watches");
        Self(process)
    }

    /// The commands of clients, without what scripts do.
    fn asked(&self) -> Vec<String> {
        self.0.lines().into_iter().filter(|line| line.contains('[') && !line.contains("lua]")).collect()
    }

    fn scripts(&self) -> usize {
        self.asked().iter().filter(|line| line.to_lowercase().contains("evalsha")).count()
    }
}

/// As MONITOR tells it: what a script does within is marked as `lua`, what was asked is not.
#[tokio::test]
async fn one_decision_is_one_round_trip_and_its_settlement_another() {
    let server = RedisServer::start().await.expect("redis starts");
    let plan = Plan {
        meters: vec![(RPM, 600.0, 600.0), (TPM, 600_000.0, 600_000.0)],
        algorithm: Algorithm::FixedWindow,
        members: 100,
    };
    let side = Side::open(&plan, 1, redis_tally(&server)).await;
    let ask = async || side.pools[0].admit(&tenant("acme"), Cost::request(100, 100)).await.expect("there is room");
    // The scripts are known from here on.
    ask().await.settle(Usage { input_tokens: 1, output_tokens: 1 });
    let mut connection = raw(&server).await;
    eventually("both scripts are known", async || {
        let memory: String = redis::cmd("INFO").arg("memory").query_async(&mut connection).await.ok()?;
        memory.contains("number_of_cached_scripts:2").then_some(())
    })
    .await;
    let watched = Watched::start(&server).await;
    let mut permits = Vec::new();
    for _ in 0..8 {
        permits.push(ask().await);
    }
    eventually("all were seen", async || (watched.scripts() >= 8).then_some(())).await;
    assert_eq!(watched.asked().len(), 8, "{:#?}", watched.asked());
    for permit in permits {
        permit.settle(Usage { input_tokens: 100, output_tokens: 1 });
    }
    eventually("all are settled", async || (watched.scripts() >= 16).then_some(())).await;
    assert_eq!(watched.asked().len(), 16, "{:#?}", watched.asked());
}

/// How long decisions take, and what is admitted, when Redis stops and when it is back: measured beside nothing.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "measured beside nothing: make test-full"]
async fn a_redis_that_stops_costs_60_ms_five_times_and_is_back_within_two_seconds() {
    let mut server = RedisServer::start().await.expect("redis starts");
    let (rate_s, burst) = (200.0, 100.0);
    let plan = Plan { meters: vec![(RPM, rate_s * 60.0, burst)], algorithm: Algorithm::TokenBucket, members: 1 };
    let side = Side::open(&plan, 1, redis_tally(&server)).await;
    let ask = async || side.pools[0].admit_within(&tenant("acme"), Cost::request(0, 0), Duration::ZERO).await;
    let decides = async || {
        let before = side.counted(Metric::TallyDecisions, "admitted") + side.counted(Metric::TallyDecisions, "refused");
        let _ = ask().await;
        let now = side.counted(Metric::TallyDecisions, "admitted") + side.counted(Metric::TallyDecisions, "refused");
        now > before
    };
    let (mut first, mut after, mut back) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..20 {
        eventually("it decides", async || decides().await.then_some(())).await;
        let (began, mut admitted) = (Instant::now(), 0_usize);
        if round % 2 == 0 {
            server.pause().expect("stopped");
        } else {
            server.kill().expect("killed");
        }
        for nth in 0..500 {
            let asked = Instant::now();
            admitted += usize::from(ask().await.is_ok());
            if nth < 5 { first.push(asked.elapsed()) } else { after.push(asked.elapsed()) }
        }
        if round % 2 == 0 {
            server.resume().expect("goes on");
        } else {
            server.start_again().await.expect("redis starts");
        }
        let returned = Instant::now();
        loop {
            let counted =
                side.counted(Metric::TallyDecisions, "admitted") + side.counted(Metric::TallyDecisions, "refused");
            admitted += usize::from(ask().await.is_ok());
            let now =
                side.counted(Metric::TallyDecisions, "admitted") + side.counted(Metric::TallyDecisions, "refused");
            if now > counted {
                break;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        back.push(returned.elapsed());
        // For a second more, as fast as may be.
        while returned.elapsed() < *back.last().expect("one") + Duration::from_secs(1) {
            admitted += usize::from(ask().await.is_ok());
        }
        let most = burst + rate_s * began.elapsed().as_secs_f64();
        assert!(admitted as f64 <= most + 1.0, "round {round}: {admitted} admitted, at most {most:.0}");
    }
    let p99 = |all: &mut Vec<Duration>| {
        all.sort();
        all[(all.len() * 99).div_ceil(100) - 1]
    };
    let (first, after, back) = (p99(&mut first), p99(&mut after), p99(&mut back));
    println!(
        "redis stopped or killed, 20 times: p99 of the first five decisions {first:.1?}, of those after {after:.1?}; it decides again after {back:.1?}"
    );
    assert!(first <= Duration::from_millis(60), "{first:?}");
    assert!(after <= Duration::from_millis(1), "{after:?}");
    assert!(back <= Duration::from_secs(2), "{back:?}");
}
