//! What a control tick costs: 10,000 tenants × 4 meters, and how it grows to 100,000.
//!
//! *Tick.* Time of a steady tick: everybody has traffic, nothing changes by enough to be written anew. The peer is what it must
//! do at least: a weighted max-min division for each of the four meters, over as many claims.
//! *Growth.* The time for ten times as many tenants, against n log n.
//!
//! What has no peer is the best of all rounds: whatever else runs on a machine only takes time away.
//!
//! `make bench AREA=law`

#![allow(clippy::cast_precision_loss, reason = "counts of a benchmark stay small")]

mod goal;

use std::collections::{BTreeMap, BTreeSet};
use std::hint::black_box;
use std::process::ExitCode;

use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use tidegate::clock::{Clock, MonoTime, SystemClock, UnixMillis};
use tidegate::controller::apportion::{Claim, divide};
use tidegate::controller::law::LawParams;
use tidegate::controller::planner::PoolPlanner;
use tidegate::controller::{PoolParams, TenantParams};
use tidegate::limiter::Priority;
use tidegate::observation::{Counters, MeterReport, PoolReport, TenantReport, UnitCounts};
use tidegate::plan::{Mode, Rate};
use tidegate::provider::Dialect;
use tidegate::quota::{Grantee, Meter, Unit, Window};

use goal::Goals;

#[global_allocator]
static ALLOCATED: &StatsAlloc<std::alloc::System> = &INSTRUMENTED_SYSTEM;

const TICK_MS_MAX: f64 = 10.0;
/// Above n log n, for caches that are too small.
const GROWTH_MAX: f64 = 2.0;
/// Allocations of a steady tick for each tenant; less than one in a hundred are not each tenant's.
const ALLOCATIONS_MAX: f64 = 0.01;
const WARM: u32 = 8;
const MEMBERS: u64 = 4;

fn meters() -> [Meter; 4] {
    Unit::ALL.map(|unit| Meter { unit, window: Window::Minute })
}

fn tenants(count: usize) -> impl Iterator<Item = String> {
    (0..count).map(|n| format!("tenant-{n:06}"))
}

fn planner(count: usize) -> PoolPlanner {
    let rate = 100.0 * count as f64;
    let params = PoolParams {
        id: "pool".parse().expect("a name"),
        dialect: Dialect::OpenAi,
        mode: Mode::Enforce,
        capacity: meters().map(|meter| (meter, Rate { rate, burst: rate / 10.0 })).into(),
        algorithms: BTreeMap::new(),
        shared: BTreeSet::new(),
        zones: BTreeMap::new(),
        concurrency: None,
        law: LawParams::default(),
        tenants: tenants(count).map(|name| (name.parse().expect("a name"), TenantParams::default())).collect(),
        default_tenant: TenantParams::default(),
    };
    PoolPlanner::new(params, 1, BTreeMap::new(), None, MonoTime::default())
}

/// A member's report of all tenants that are its own, a second later each time.
fn report(count: usize, member: u64, second: u64) -> PoolReport {
    let used = UnitCounts { requests: second, input_tokens: 40 * second, output_tokens: 40 * second };
    let counters = Counters {
        attempts: second,
        admitted: second,
        sent: second,
        succeeded: second,
        reserved: used,
        settled: used,
        ..Counters::default()
    };
    let own = tenants(count).enumerate().filter(|(n, _)| *n as u64 % MEMBERS == member);
    let told = own.map(|(_, name)| {
        let grantee = Grantee::Tenant(name.parse().expect("a name"));
        (grantee, TenantReport { counters: counters.clone(), ..TenantReport::default() })
    });
    let limit = 100.0 * count as f64;
    let reading =
        MeterReport { limit: Some(limit), remaining: None, level: Some(limit / 2.0), reset_ms: None, age_ms: 100 };
    PoolReport {
        sequence: second,
        meters: meters().map(|meter| (meter, reading)).into(),
        tenants: told.collect(),
        ..PoolReport::default()
    }
}

/// A pool of so many tenants, whose grants are all written.
struct Pool {
    planner: PoolPlanner,
    count: usize,
    second: u64,
}

impl Pool {
    fn new(count: usize) -> Self {
        let mut pool = Self { planner: planner(count), count, second: 0 };
        // The first ticks find nothing, and write all.
        for _ in 0..WARM {
            pool.tick();
        }
        pool
    }

    /// A second of reports, and a tick: how long it takes in ms, and how often it allocates for each tenant where it is a steady
    /// one, after which nothing is to be written.
    fn tick(&mut self) -> (f64, Option<f64>) {
        self.second += 1;
        let now = MonoTime::from_millis(self.second * 1_000);
        for member in 0..MEMBERS {
            self.planner.report(&format!("m{member}"), "boot", &report(self.count, member, self.second), now);
        }
        let region = Region::new(ALLOCATED);
        let (clock, begins) = started();
        let pulse = self.planner.tick(now, UnixMillis(self.second * 1_000));
        let took_ms = clock.now().seconds_since(begins) * 1e3;
        let allocations = region.change().allocations as f64 / self.count as f64;
        self.planner.pulsed(pulse);
        let steady = !self.planner.may_grant();
        while self.planner.may_grant() {
            let batch = self.planner.outbox_mut().take(usize::MAX);
            if batch.is_empty() {
                break;
            }
            self.planner.granted(batch, now);
        }
        (took_ms, steady.then_some(allocations))
    }
}

/// A clock, and what it shows.
fn started() -> (SystemClock, MonoTime) {
    let clock = SystemClock::new();
    let now = clock.now();
    (clock, now)
}

/// Four divisions over as many claims, in ms.
fn divisions(claims: &[Claim]) -> f64 {
    let (clock, begins) = started();
    for _ in meters() {
        black_box(divide(1.5 * claims.len() as f64, black_box(claims)));
    }
    clock.now().seconds_since(begins) * 1e3
}

fn main() -> ExitCode {
    let mut goals = Goals::default();
    let claims: Vec<Claim> = (0..10_000_u32)
        .map(|n| Claim {
            weight: 1.0,
            demand: f64::from(n % 97) / 30.0,
            floor: 0.0,
            ceiling: f64::INFINITY,
            priority: Priority::Interactive,
        })
        .collect();
    let (mut small, mut large) = (Pool::new(10_000), Pool::new(100_000));
    let mut steady: Vec<f64> = Vec::new();
    let mut least_ms = f64::INFINITY;
    let tick = || {
        let (took_ms, allocations) = small.tick();
        steady.extend(allocations);
        least_ms = least_ms.min(took_ms);
        took_ms
    };
    goals.compare("law_tick_10000x4_to_divisions", "ms", None, tick, || divisions(&claims));
    goals.at_most("law_tick_10000x4", "ms", least_ms, TICK_MS_MAX);
    println!("# allocations: of {} steady ticks", steady.len());
    assert!(!steady.is_empty(), "no tick was steady");
    let most = steady.into_iter().fold(0.0, f64::max);
    goals.at_most("law_tick_allocations_per_tenant", "", most, ALLOCATIONS_MAX);
    let n_log_n = 10.0 * 100_000_f64.ln() / 10_000_f64.ln();
    let growth = Some(GROWTH_MAX.into());
    goals.compare("law_tick_100000x4", "ms", growth, || large.tick().0, || small.tick().0 * n_log_n);
    goals.verdict()
}
