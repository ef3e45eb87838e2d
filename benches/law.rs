//! What a control tick costs: 10,000 tenants × 4 meters, and how it grows to 100,000; and how fast worlds are simulated.
//!
//! *Tick.* CPU time of a steady tick: everybody has traffic, nothing changes by enough to be written anew.
//! *Growth.* The time for ten times as many tenants, against n log n.
//! *Worlds.* Simulated seconds in a second of one core, of config/scenarios/steady.toml.
//!
//! `make bench AREA=law`

#![allow(clippy::cast_precision_loss, reason = "counts of a benchmark stay small")]

mod goal;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use tidegate::clock::{MonoTime, UnixMillis};
use tidegate::controller::law::LawParams;
use tidegate::controller::planner::PoolPlanner;
use tidegate::controller::{PoolParams, TenantParams};
use tidegate::observation::{Counters, MeterReport, PoolReport, TenantReport, UnitCounts};
use tidegate::plan::{Mode, Rate};
use tidegate::provider::Dialect;
use tidegate::quota::{Grantee, Meter, Unit, Window};
use tidegate::sim::world::laws::law;
use tidegate::sim::world::{Scenario, run};

use goal::Goals;

#[global_allocator]
static ALLOCATED: &StatsAlloc<std::alloc::System> = &INSTRUMENTED_SYSTEM;

const TICK_MS_MAX: f64 = 10.0;
/// Above n log n, for caches that are too small.
const GROWTH_MAX: f64 = 2.0;
/// Allocations of a steady tick for each tenant; less than one in a hundred are not each tenant's.
const ALLOCATIONS_MAX: f64 = 0.01;
const SPEED_MIN: f64 = 3_000.0;
const TICKS: u64 = 20;
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

/// A pool of so many tenants, whose grants are all written: CPU time and allocations of a tick after that.
fn tick(count: usize) -> (f64, f64) {
    let mut planner = planner(count);
    let (mut times, mut allocations) = (Vec::new(), Vec::new());
    for second in 1..=TICKS {
        let now = MonoTime::from_millis(second * 1_000);
        let wall = UnixMillis(second * 1_000);
        for member in 0..MEMBERS {
            planner.report(&format!("m{member}"), "boot", &report(count, member, second), now);
        }
        let region = Region::new(ALLOCATED);
        let begins = Instant::now();
        let pulse = planner.tick(now, wall);
        times.push(begins.elapsed().as_secs_f64() * 1e3);
        allocations.push(region.change().allocations as f64);
        planner.pulsed(pulse);
        while planner.may_grant() {
            let batch = planner.outbox_mut().take(usize::MAX);
            if batch.is_empty() {
                break;
            }
            planner.granted(batch, now);
        }
    }
    // The first ones find nothing, and write all.
    let half = times.len() / 2;
    let median = |of: &[f64]| {
        let mut sorted = of.to_vec();
        sorted.sort_by(f64::total_cmp);
        sorted[sorted.len() / 2]
    };
    (median(&times[half..]), median(&allocations[half..]) / count as f64)
}

/// Simulated seconds in a second.
fn speed() -> f64 {
    let scenario = Scenario::load(Path::new("config/scenarios/steady.toml")).expect("a scenario");
    let mut best = 0.0_f64;
    for seed in 0..5 {
        let begins = Instant::now();
        run(&scenario, seed, &mut *law("ours", &scenario).expect("ours")).expect("a world");
        best = best.max(scenario.seconds / begins.elapsed().as_secs_f64());
    }
    best
}

fn main() -> ExitCode {
    let mut goals = Goals::default();
    let (small, allocations) = tick(10_000);
    goals.at_most("law_tick_10000x4", "ms", small, TICK_MS_MAX);
    goals.at_most("law_tick_allocations_per_tenant", "", allocations, ALLOCATIONS_MAX);
    let (large, _) = tick(100_000);
    let n_log_n = 10.0 * 100_000_f64.ln() / 10_000_f64.ln();
    goals.at_most("law_tick_growth_over_n_log_n", "", large / small / n_log_n, GROWTH_MAX);
    let speed = speed();
    println!("# worlds: {speed:.0} simulated seconds a second");
    goals.at_most("law_worlds_slowness", "", SPEED_MIN / speed, 1.0);
    goals.verdict()
}
