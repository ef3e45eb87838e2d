//! What counting together costs: a decision through the client, its one round trip included, against what `redis-benchmark` gets of
//! the same script with the same words from the same server; and with leases.
//!
//! `make bench AREA=redis`

#![allow(clippy::cast_precision_loss, reason = "counts of a benchmark stay small")]

#[allow(dead_code, reason = "other benchmarks use the rest")]
mod goal;

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tidegate::client::{Client, ClientParams, Pool, PoolParams};
use tidegate::clock::UnixMillis;
use tidegate::limiter::{Count, Question, TallyRule};
use tidegate::plan::keyspace::{Key, Keyspace, LeaderRecord};
use tidegate::plan::{Algorithm, GRANT_SCHEMA, Grant, Mode, PULSE_SCHEMA, Pulse, Rate, Reason, Stamp, Thresholds};
use tidegate::provider::Dialect;
use tidegate::quota::{Cost, Grantee, Meter, PoolId, TenantId};
use tidegate::redis::{Redis, RedisParams, RedisTally};
use tidegate::sim::RedisServer;
use tidegate::store::{MemoryStore, Store, Txn};
use tidegate::telemetry::Telemetry;
use tokio::runtime::Runtime;
use tokio::time::{Instant, sleep};

use goal::{Bounds, Goals};

/// Requests under way at a time, here and there.
const AT_A_TIME: usize = 50;
const SPAN: Duration = Duration::from_millis(900);
const ROUNDS: usize = 9;
const METERS: [Meter; 2] = [Meter::REQUESTS_PER_MINUTE, Meter::TOKENS_PER_MINUTE];
const COST: Cost = Cost::request(100, 0);

fn pool_id() -> PoolId {
    "pool".parse().expect("valid")
}

fn acme() -> TenantId {
    "acme".parse().expect("valid")
}

/// A client whose pool has so much that all is admitted, with as many members as make leases as large or as small as wanted.
async fn client(server: &RedisServer, rate: f64, members: u32) -> (Client, Pool) {
    let (store, keys) = (MemoryStore::new(), Keyspace::default());
    let stamp = Stamp { term: 1, epoch: 1 };
    // A second's worth: so much a bucket begins with.
    let rate = Rate { rate, burst: rate / 60.0 };
    let rates = METERS.map(|meter| (meter, rate));
    let thresholds = Thresholds { rates: rates.into(), concurrency: None };
    let reason = Reason { code: "bench".to_owned(), text: String::new() };
    let algorithms = METERS.map(|meter| (meter, Algorithm::TokenBucket)).into();
    let safe = thresholds.scaled(0.5);
    let grant = Grant {
        schema: GRANT_SCHEMA,
        stamp,
        thresholds,
        safe,
        algorithms,
        bounded: BTreeSet::default(),
        members,
        reason,
    };
    let pulse = Pulse {
        schema: PULSE_SCHEMA,
        stamp,
        valid_for_ms: 3_600_000,
        capacity: METERS.map(|meter| (meter, rate.rate)).into(),
        overcommit: BTreeMap::default(),
        shared: rates.into(),
        scale: BTreeMap::default(),
        scale_epoch: None,
        hold_ms: BTreeMap::default(),
        window_left_ms: BTreeMap::default(),
        mode: Mode::Enforce,
        unix_ms: UnixMillis(0),
    };
    let leader = LeaderRecord { name: "bench".to_owned(), report_url: "http://127.0.0.1:9".to_owned() };
    let grantee = Grantee::Tenant(acme());
    let puts = [
        (Key::Leader, serde_json::to_vec(&leader)),
        (Key::Limits(pool_id(), grantee.clone()), serde_json::to_vec(&grant)),
        (Key::Pulse(pool_id()), serde_json::to_vec(&pulse)),
    ];
    for (key, value) in puts {
        store.commit(Txn::put(keys.key(&key), value.expect("serialises"))).await.expect("memory");
    }
    let tally = RedisTally::new(Redis::new(RedisParams::new(&server.url())).expect("a URL"));
    let params = ClientParams {
        tally: Some(Arc::new(tally)),
        ..ClientParams::new(vec![PoolParams::new(pool_id(), Dialect::OpenAi)])
    };
    let client = Client::start(params, Arc::new(store), Arc::new(Telemetry::new())).await;
    let pool = client.pool("pool").expect("named");
    // The grant comes first, and that its meters are counted together with the pulse.
    let is_shared = || {
        let limits = pool.tuning().limits;
        limits.get(&grantee).is_some_and(|limits| limits.meters.values().all(|meter| meter.together.is_some()))
    };
    while !is_shared() {
        sleep(Duration::from_millis(1)).await;
    }
    (client, pool)
}

/// Microseconds for a decision, with so many under way at a time.
fn decisions(runtime: &Runtime, pool: &Pool, at_a_time: usize) -> f64 {
    runtime.block_on(async {
        let (began, decided) = (Instant::now(), Arc::new(AtomicU64::new(0)));
        let asking = (0..at_a_time).map(|_| {
            let (pool, decided) = (pool.clone(), decided.clone());
            tokio::spawn(async move {
                let tenant = acme();
                let mut own = 0;
                while began.elapsed() < SPAN {
                    // Settled as reserved: one round trip.
                    drop(pool.admit_within(&tenant, COST, Duration::ZERO).await.expect("there is room"));
                    own += 1;
                }
                decided.fetch_add(own, Ordering::Relaxed);
            })
        });
        let asking: Vec<_> = asking.collect();
        for task in asking {
            task.await.expect("it ends well");
        }
        began.elapsed().as_secs_f64() * 1e6 / decided.load(Ordering::Relaxed) as f64
    })
}

/// Microseconds that `redis-benchmark` takes for the script of one such decision.
fn benchmarked(server: &RedisServer, requests: u64) -> f64 {
    let tally = RedisTally::new(Redis::new(RedisParams::new(&server.url())).expect("a URL"));
    let rule = TallyRule::TokenBucket { rate_per_s: 1e9, burst: 1e9 };
    let count = |meter: Meter| Count {
        pool: pool_id(),
        grantee: Grantee::Tenant(acme()),
        meter,
        tenant: rule,
        all: rule,
        units: COST.units(meter.unit),
        extra: 0,
        owed: 0,
        borrows: false,
    };
    let (keys, words) = tally.words(&Question { account: pool_id(), counts: METERS.map(count).to_vec() });
    let mut command = Command::new("redis-benchmark");
    command.args(["-h", "127.0.0.1", "-p", &server.port().to_string(), "--csv", "-c", &AT_A_TIME.to_string()]);
    command.args(["-n", &requests.to_string(), "evalsha", tally.script_hash(), &keys.len().to_string()]);
    let output = command.args(keys).args(words).output().expect("redis-benchmark runs: apt-get install redis-server");
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().last().unwrap_or_default();
    let per_s: Option<f64> = line.split(',').nth(1).and_then(|per_s| per_s.trim_matches('"').parse().ok());
    1e6 / per_s.unwrap_or_else(|| panic!("redis-benchmark said: {text}{}", String::from_utf8_lossy(&output.stderr)))
}

fn main() -> ExitCode {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let mut goals = Goals::default();
    let server = runtime.block_on(RedisServer::start()).expect("redis-server starts: apt-get install redis-server");
    // So many members that a twentieth of a second's units is less than four requests for each: no leases.
    let (_client, exact) = runtime.block_on(client(&server, 60e9, u32::MAX));
    let (_other, leasing) = runtime.block_on(client(&server, 60e9, 1));
    // The script is known to the server from here on.
    decisions(&runtime, &exact, 1);
    let mut rounds = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        let ours = decisions(&runtime, &exact, AT_A_TIME);
        rounds.push((ours, benchmarked(&server, 40_000)));
    }
    let bounds = Bounds { goal: 1.0, must: 1.0 / 0.9 };
    let exact_us = goals.tell("redis/decision, redis-benchmark's EVALSHA", "us", Some(bounds), &rounds);
    println!("redis/decisions ours={:.0}/s", 1e6 / exact_us);
    let rounds: Vec<(f64, f64)> = (0..ROUNDS)
        .map(|_| (decisions(&runtime, &leasing, AT_A_TIME), decisions(&runtime, &exact, AT_A_TIME)))
        .collect();
    let leased_us = goals.tell("redis/leased decision, one round trip each", "us", Some(0.05.into()), &rounds);
    println!("redis/leased decisions ours={:.0}/s", 1e6 / leased_us);
    goals.verdict()
}
