//! What a decision costs, against `governor`, `leaky-bucket` and tower's rate limit in the same run.
//!
//! A decision of ours is one, over requests and tokens together, all or nothing, with parameters that may be swapped at any
//! time. Of governor's it takes two, one for each meter, that know nothing of each other.
//!
//! `make bench AREA=limiter`

#![allow(clippy::cast_precision_loss, reason = "counts of a benchmark stay small")]

mod goal;

use std::collections::{BTreeMap, BTreeSet};
use std::hint::black_box;
use std::num::NonZeroU32;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use peak_alloc::PeakAlloc;
use tidegate::client::gate::Gate;
use tidegate::client::swap::{PoolWide, Swap};
use tidegate::client::{Client, ClientParams, MemberState, Permit, Pool, PoolParams, Priority};
use tidegate::clock::{Clock, MonoTime, SystemClock};
use tidegate::limiter::{Counting, Limiter, Limits, MeterLimit};
use tidegate::plan::keyspace::{Key, Keyspace};
use tidegate::plan::{Grant, Rate, Reason, Stamp, Thresholds};
use tidegate::provider::Dialect;
use tidegate::quota::{Cost, Grantee, Meter, TenantId};
use tidegate::store::{MemoryStore, Op, Store, Txn};
use tidegate::telemetry::Telemetry;
use tokio::runtime::Runtime;
use tokio::sync::Notify;

use goal::{Bounds, Goals};

const POOL: &str = "pool";
/// More than anything here takes: every decision is an admission.
const AMPLE: f64 = 4e9;
const TOKENS: u32 = 100;
const COST: Cost = Cost::request(TOKENS as u64, 0);
/// Decisions in one measurement, per thread.
const DECISIONS: usize = 300_000;
const DIRECT: Bounds = Bounds { goal: 0.75, must: 1.0 };
const KEYED: Bounds = Bounds { goal: 0.5, must: 0.6 };

#[global_allocator]
static ALLOCATED: PeakAlloc = PeakAlloc;

type OurGate = Gate<Arc<Notify>>;

fn limits(per_minute: f64) -> Limits {
    let limit = MeterLimit {
        rate: Rate { rate: per_minute, burst: per_minute },
        largest_request: AMPLE,
        counting: Counting::TokenBucket,
        together: None,
    };
    let meters = BTreeMap::from([Meter::REQUESTS_PER_MINUTE, Meter::TOKENS_PER_MINUTE].map(|meter| (meter, limit)));
    Limits { meters, ..Limits::default() }
}

fn gate(per_minute: f64, clock: &SystemClock) -> OurGate {
    Gate::new(Limiter::new(&limits(per_minute), clock.now()), clock.now())
}

/// What [`tidegate::client::Pool::try_admit`] asks a tenant's gate.
#[inline(always)]
#[allow(clippy::inline_always, reason = "as in the library")]
fn admits(gate: &OurGate, wide: &Swap<PoolWide>, now: MonoTime) -> bool {
    let decision = gate.decide(black_box(&Cost::request(1, 0)), Priority::Interactive, wide, now);
    decision.expect("nobody waits").is_ok()
}

fn ample() -> NonZeroU32 {
    NonZeroU32::new(4_000_000_000).expect("not zero")
}

fn tokens() -> NonZeroU32 {
    NonZeroU32::new(TOKENS).expect("not zero")
}

/// Nanoseconds that one of `DECISIONS` takes, done by this many threads at once.
fn ns_each(threads: usize, decide: impl Fn(usize) + Sync) -> f64 {
    let clock = SystemClock::new();
    let begun = clock.now();
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let decide = &decide;
            scope.spawn(move || {
                for n in 0..DECISIONS {
                    decide(thread * DECISIONS + n);
                }
            });
        }
    });
    clock.now().nanos_since(begun) / (DECISIONS * threads) as f64
}

/// One gate, one pair of limiters.
fn direct(goals: &mut Goals) {
    let clock = SystemClock::new();
    let wide: Swap<PoolWide> = Swap::new(PoolWide::new(MemberState::Active));
    for threads in [1, 2] {
        // A bucket begins with a second of its rate: 66 million requests, more than there are decisions.
        let ours = gate(AMPLE, &clock);
        let requests = RateLimiter::direct(Quota::per_second(ample()));
        let llm_tokens = RateLimiter::direct(Quota::per_second(ample()));
        let admit = || ns_each(threads, |_| assert!(admits(&ours, &wide, clock.now())));
        let governor = || {
            ns_each(threads, |_| {
                assert!(requests.check().is_ok());
                assert!(matches!(llm_tokens.check_n(black_box(tokens())), Ok(Ok(()))));
            })
        };
        goals.compare(&format!("limiter_decide_{threads}t"), "ns", Some(DIRECT), admit, governor);
        let full = gate(1e-3, &clock);
        let refuse = || ns_each(threads, |_| assert!(!admits(&full, &wide, clock.now())));
        let bounds = Bounds { goal: 1.0, must: 1.0 };
        goals.compare(&format!("limiter_refusal_to_admission_{threads}t"), "ns", Some(bounds), refuse, admit);
    }
}

/// Swaps a thousand times a second, by those who decide and by those who decide in peace.
fn swaps(goals: &mut Goals) {
    let clock = SystemClock::new();
    let wide: Swap<PoolWide> = Swap::new(PoolWide::new(MemberState::Active));
    let ours = gate(AMPLE, &clock);
    // A tenth of a second or more: a hundred swaps.
    let measure = || (0..10).map(|_| ns_each(1, |_| assert!(admits(&ours, &wide, clock.now())))).sum::<f64>() / 10.0;
    let swapping = AtomicBool::new(false);
    let over = AtomicBool::new(false);
    let swapped = std::sync::atomic::AtomicU64::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
            runtime.block_on(async {
                let mut every = tokio::time::interval(Duration::from_millis(1));
                while !over.load(Ordering::Relaxed) {
                    every.tick().await;
                    if swapping.load(Ordering::Relaxed) {
                        ours.retune(&limits(AMPLE), clock.now());
                        wide.update(|known| Some(known.clone()));
                        swapped.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        });
        let with = || {
            swapping.store(true, Ordering::Relaxed);
            let ns = measure();
            swapping.store(false, Ordering::Relaxed);
            ns
        };
        goals.compare("limiter_1000_swaps_a_second", "ns", Some(Bounds { goal: 1.05, must: 1.05 }), with, measure);
        over.store(true, Ordering::Relaxed);
    });
    println!("# {} swaps meanwhile", swapped.load(Ordering::Relaxed));
}

/// What others offer: one meter, no second one.
fn others(goals: &mut Goals) {
    let clock = SystemClock::new();
    let wide: Swap<PoolWide> = Swap::new(PoolWide::new(MemberState::Active));
    let ours = gate(AMPLE, &clock);
    let admit = || ns_each(1, |_| assert!(admits(&ours, &wide, clock.now())));
    let leaky = leaky_bucket::RateLimiter::builder()
        .max(1_000_000_000)
        .initial(1_000_000_000)
        .refill(1_000_000)
        .interval(Duration::from_millis(1))
        .build();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let leaky = || {
        let _context = runtime.enter();
        let begun = clock.now();
        for _ in 0..DECISIONS {
            assert!(leaky.try_acquire(black_box(1)));
        }
        clock.now().nanos_since(begun) / DECISIONS as f64
    };
    goals.compare("limiter_decide_to_leaky_bucket", "ns", None, admit, leaky);
    let service = tower::service_fn(|()| std::future::ready(Ok::<(), std::convert::Infallible>(())));
    let tower = || {
        use tower::Service;
        let _context = runtime.enter();
        let rate = tower::limit::rate::Rate::new(u64::MAX, Duration::from_secs(3_600));
        let mut limited = tower::limit::RateLimit::new(service, rate);
        let begun = clock.now();
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        for _ in 0..DECISIONS {
            assert!(limited.poll_ready(&mut context).is_ready());
            drop(black_box(limited.call(())));
        }
        clock.now().nanos_since(begun) / DECISIONS as f64
    };
    goals.compare("limiter_decide_to_tower_rate_limit", "ns", None, admit, tower);
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime")
}

/// A store with grants for all of them.
async fn store(tenants: &[TenantId]) -> (MemoryStore, Keyspace) {
    let (store, keys) = (MemoryStore::new(), Keyspace::default());
    let rate = Rate { rate: AMPLE, burst: AMPLE };
    let rates = [Meter::REQUESTS_PER_MINUTE, Meter::TOKENS_PER_MINUTE].map(|meter| (meter, rate)).into();
    let thresholds = Thresholds { rates, concurrency: None };
    let reason = Reason { code: "bench".into(), text: "ample".into() };
    let stamp = Stamp { term: 1, epoch: 1 };
    let algorithms = BTreeMap::new();
    let grant = Grant {
        schema: 1,
        stamp,
        safe: thresholds.clone(),
        thresholds,
        algorithms,
        bounded: BTreeSet::new(),
        members: 1,
        reason,
    };
    let value = serde_json::to_vec(&grant).expect("JSON");
    for batch in tenants.chunks(100) {
        let key =
            |tenant: &TenantId| keys.key(&Key::Limits(POOL.parse().expect("valid"), Grantee::Tenant(tenant.clone())));
        let ops = batch.iter().map(|tenant| Op::Put { key: key(tenant), value: value.clone(), lease: None });
        store.commit(Txn { conditions: Vec::new(), ops: ops.collect() }).await.expect("memory");
    }
    (store, keys)
}

async fn start(store: MemoryStore, keyspace: Keyspace) -> (Client, Pool) {
    let params = ClientParams {
        keyspace,
        ..ClientParams::new(vec![PoolParams::new(POOL.parse().expect("valid"), Dialect::OpenAi)])
    };
    let client = Client::start(params, Arc::new(store), Arc::new(Telemetry::new())).await;
    let pool = client.pool(POOL).expect("named");
    (client, pool)
}

/// In which order tenants are asked for.
#[derive(Debug, Clone, Copy)]
enum Order {
    /// One after another, as they were declared.
    Turn,
    /// So that no prefetcher foresees who comes: with very many tenants both sides wait for memory, and nothing else counts.
    Shuffled,
}

impl Order {
    fn of(self, tenants: usize) -> (&'static str, Vec<usize>) {
        let mut order: Vec<usize> = (0..tenants).collect();
        match self {
            Self::Turn => ("", order),
            Self::Shuffled => {
                fastrand::Rng::with_seed(7).shuffle(&mut order);
                ("_shuffled", order)
            }
        }
    }
}

/// By name, over many tenants.
fn keyed(goals: &mut Goals, tenants: usize, order: Order, bounds: Option<Bounds>) {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let names: Vec<String> = (0..tenants).map(|n| format!("tenant-{n:06}")).collect();
    let ids: Vec<TenantId> = names.iter().map(|name| name.parse().expect("valid")).collect();
    let (client, pool) = runtime.block_on(async {
        let (store, keys) = store(&ids).await;
        start(store, keys).await
    });
    let requests: DefaultKeyedRateLimiter<String> = RateLimiter::keyed(Quota::per_second(ample()));
    let llm_tokens: DefaultKeyedRateLimiter<String> = RateLimiter::keyed(Quota::per_second(ample()));
    let (called, order) = order.of(tenants);
    for id in &ids {
        drop(pool.try_admit(id, COST).expect("ample"));
    }
    for threads in [1, 2] {
        // The permits end after the clock was stopped: governor has nothing to end.
        let ours = || {
            let spans: Vec<f64> = std::thread::scope(|scope| {
                let walks: Vec<_> = (0..threads)
                    .map(|thread| {
                        let (pool, ids, order) = (&pool, &ids, &order);
                        scope.spawn(move || {
                            let clock = SystemClock::new();
                            let mut ns = 0.0;
                            let mut permits: Vec<Permit> = Vec::with_capacity(1_000);
                            for batch in 0..DECISIONS / 1_000 {
                                let begun = clock.now();
                                for n in 0..1_000 {
                                    let at = order[(thread * order.len() / threads + batch * 1_000 + n) % order.len()];
                                    permits.push(pool.try_admit(&ids[at], COST).expect("ample"));
                                }
                                ns += clock.now().nanos_since(begun);
                                permits.clear();
                            }
                            ns
                        })
                    })
                    .collect();
                walks.into_iter().map(|walk| walk.join().expect("no panic")).collect()
            });
            spans.iter().sum::<f64>() / (DECISIONS * threads * threads) as f64
        };
        let governor = || {
            ns_each(threads, |n| {
                let apart = n / DECISIONS * order.len() / threads;
                let name = &names[order[(apart + n % DECISIONS) % order.len()]];
                assert!(requests.check_key(name).is_ok());
                assert!(matches!(llm_tokens.check_key_n(name, tokens()), Ok(Ok(()))));
            })
        };
        goals.compare(&format!("limiter_keyed_{tenants}{called}_{threads}t"), "ns", bounds, ours, governor);
    }
    let whole = || ns_each(1, |n| drop(pool.try_admit(&ids[order[n % order.len()]], COST).expect("ample")));
    let governor = || {
        ns_each(1, |n| {
            let name = &names[order[n % order.len()]];
            assert!(requests.check_key(name).is_ok());
            assert!(matches!(llm_tokens.check_key_n(name, tokens()), Ok(Ok(()))));
        })
    };
    goals.compare(&format!("limiter_keyed_{tenants}{called}_with_the_permits_end"), "ns", None, whole, governor);
    runtime.block_on(client.close());
}

/// What a tenant takes: one that is only declared, and one that has been used.
fn memory(goals: &mut Goals) {
    const TENANTS: usize = 100_000;
    let runtime = runtime();
    let ids: Vec<TenantId> = (0..TENANTS).map(|n| format!("tenant-{n:06}").parse().expect("valid")).collect();
    // The store is in this process too: a client of no tenant at all, and the same store, are there before.
    let (store, keys) = runtime.block_on(store(&ids));
    let before = ALLOCATED.current_usage();
    let (client, pool) = runtime.block_on(start(store, keys));
    runtime.block_on(async {
        while pool.tuning().limits.len() <= TENANTS {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    let each = |bytes: usize| bytes.saturating_sub(before) as f64 / TENANTS as f64;
    let declared = each(ALLOCATED.current_usage());
    for id in &ids {
        drop(pool.try_admit(id, COST).expect("ample"));
    }
    let used = each(ALLOCATED.current_usage());
    // A hundred thousand are to fit into 64 MiB. One that has been idle for a while is declared again, with what was stored.
    goals.at_most("limiter_bytes_per_idle_tenant", "B", declared, 64.0 * 1_048_576.0 / TENANTS as f64);
    println!("limiter_bytes_per_tenant_in_use ours={used:.0}B");
    runtime.block_on(client.close());
}

/// The processor time that this process has used, in seconds.
fn processor_s() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("Linux");
    let after_name = stat.rsplit_once(')').expect("a name in brackets").1;
    let ticks: f64 = after_name.split_whitespace().skip(11).take(2).map(|n| n.parse::<f64>().expect("a number")).sum();
    ticks / 100.0
}

/// Ten thousand who wait, and what it takes to let one go.
fn waiting(goals: &mut Goals) {
    let runtime = runtime();
    let tenant: TenantId = "anyone".parse().expect("valid");
    // Without a controller the bootstrap thresholds hold: one at a time.
    let (client, pool) = runtime.block_on(async {
        let params = ClientParams::new(vec![PoolParams {
            bootstrap: Thresholds { concurrency: Some(1), ..Thresholds::default() },
            ..PoolParams::new("pool".parse().expect("valid"), Dialect::OpenAi)
        }]);
        let client = Client::start(params, Arc::new(MemoryStore::new()), Arc::new(Telemetry::new())).await;
        let pool = client.pool("pool").expect("named");
        (client, pool)
    });
    // What one takes from standing at the head to having ended, with so many behind him at first.
    let drained_ns = |waiters: usize, idle: &dyn Fn()| {
        let held = pool.try_admit(&tenant, COST).expect("free");
        runtime.block_on(async {
            let line: Vec<_> = (0..waiters)
                .map(|_| {
                    let (pool, tenant) = (pool.clone(), tenant.clone());
                    tokio::spawn(async move {
                        drop(pool.admit_within(&tenant, COST, Duration::from_secs(300)).await.expect("a turn"));
                    })
                })
                .collect();
            while pool.traffic().values().map(|traffic| traffic.waiting).sum::<usize>() < waiters {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            idle();
            let clock = SystemClock::new();
            let begun = clock.now();
            drop(held);
            for waiter in line {
                waiter.await.expect("no panic");
            }
            clock.now().nanos_since(begun) / waiters as f64
        })
    };
    let busy = std::cell::Cell::new(0.0);
    drained_ns(10_000, &|| {
        let (clock, before) = (SystemClock::new(), processor_s());
        let begun = clock.now();
        while clock.now().seconds_since(begun) < 3.0 {
            std::thread::park_timeout(Duration::from_millis(500));
        }
        busy.set((processor_s() - before) / 3.0 * 100.0);
    });
    goals.at_most("limiter_10000_waiters_processor", "%", busy.get(), 2.0);
    let bounds = Bounds { goal: 1.5, must: 2.0 };
    goals.compare(
        "limiter_turn_of_10000_to_turn_of_1000",
        "ns",
        Some(bounds),
        || drained_ns(10_000, &|| ()),
        || drained_ns(1_000, &|| ()),
    );
    runtime.block_on(client.close());
}

/// A part of the benchmark.
type Part = (&'static str, fn(&mut Goals));

const PARTS: [Part; 8] = [
    ("decide", direct),
    ("swaps", swaps),
    ("others", others),
    ("waiting", waiting),
    ("memory", memory),
    ("few", |goals| keyed(goals, 1_000, Order::Shuffled, None)),
    ("keyed", |goals| keyed(goals, 100_000, Order::Turn, Some(KEYED))),
    ("shuffled", |goals| keyed(goals, 100_000, Order::Shuffled, None)),
];

/// Measures the parts that are named, or all: `cargo bench --bench limiter -- decide keyed`.
fn main() -> ExitCode {
    let mut goals = Goals::default();
    let named: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    for (name, measure) in PARTS {
        if named.is_empty() || named.iter().any(|known| known == name) {
            measure(&mut goals);
        }
    }
    goals.verdict()
}
