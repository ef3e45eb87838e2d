//! What it costs to read the limits in a response's head, against merely collecting its headers into a `HashMap` in the
//! same run. Reading must not allocate at all: allocations are counted.
//!
//! `make bench AREA=providers`

mod goal;

use std::alloc::System;
use std::collections::HashMap;
use std::hint::black_box;
use std::process::ExitCode;

use http::HeaderMap;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use tidegate::clock::{Clock, MonoTime, SystemClock};
use tidegate::provider::{Dialect, Head};

use goal::{Bounds, Goals};

/// Heads read in one measurement.
const HEADS: u32 = 20_000;
const SENT: MonoTime = MonoTime::from_millis(1_000);
/// Reading is to cost no more than collecting does.
const COLLECTING: Bounds = Bounds { goal: 1.0, must: 2.0 };

#[global_allocator]
static ALLOCATED: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// What stands in every head beside the limits, and is needed to measure instants.
const DATE: (&str, &str) = ("date", "Thu, 09 Oct 2025 21:49:43 GMT");

const OPENAI: [(&str, &str); 6] = [
    ("x-ratelimit-limit-requests", "10000"),
    ("x-ratelimit-limit-tokens", "30000000"),
    ("x-ratelimit-remaining-requests", "9999"),
    ("x-ratelimit-remaining-tokens", "29997738"),
    ("x-ratelimit-reset-requests", "6ms"),
    ("x-ratelimit-reset-tokens", "4ms"),
];

const ANTHROPIC: [(&str, &str); 12] = [
    ("anthropic-ratelimit-input-tokens-limit", "5000000"),
    ("anthropic-ratelimit-input-tokens-remaining", "4988000"),
    ("anthropic-ratelimit-input-tokens-reset", "2025-10-09T21:49:42Z"),
    ("anthropic-ratelimit-output-tokens-limit", "1000000"),
    ("anthropic-ratelimit-output-tokens-remaining", "1000000"),
    ("anthropic-ratelimit-output-tokens-reset", "2025-10-09T21:49:43Z"),
    ("anthropic-ratelimit-requests-limit", "20000"),
    ("anthropic-ratelimit-requests-remaining", "19999"),
    ("anthropic-ratelimit-requests-reset", "2025-10-09T21:49:41Z"),
    ("anthropic-ratelimit-tokens-limit", "6000000"),
    ("anthropic-ratelimit-tokens-remaining", "5988000"),
    ("anthropic-ratelimit-tokens-reset", "2025-10-09T21:49:42Z"),
];

fn head(limits: &[(&'static str, &'static str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in limits.iter().chain(&[DATE]) {
        map.insert(*name, http::HeaderValue::from_static(value));
    }
    map
}

/// Time of one of `HEADS` calls, in ns.
fn time_ns(mut call: impl FnMut()) -> f64 {
    let clock = SystemClock::new();
    let begun = clock.now();
    for _ in 0..HEADS {
        call();
    }
    clock.now().nanos_since(begun) / f64::from(HEADS)
}

fn measure(goals: &mut Goals, name: &str, dialect: Dialect, limits: &[(&'static str, &'static str)], most_ns: f64) {
    let map = head(limits);
    let read = || {
        let seen = dialect.read(&Head { status: 200, headers: black_box(&map) }, SENT);
        assert!(!seen.readings.is_empty() && seen.missing.is_empty(), "{seen:?}");
        black_box(seen);
    };
    let collect = || {
        let pairs = black_box(&map).iter();
        let collected: HashMap<String, String> = pairs
            .map(|(name, value)| (name.as_str().to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
            .collect();
        black_box(collected);
    };
    let median =
        goals.compare(&format!("providers_{name}"), "ns", Some(COLLECTING), || time_ns(read), || time_ns(collect));
    goals.at_most(&format!("providers_{name}_median"), "ns", median, most_ns);
    let region = Region::new(ALLOCATED);
    read();
    let allocations = region.change().allocations;
    #[allow(clippy::cast_precision_loss, reason = "a few")]
    goals.at_most(&format!("providers_{name}_allocations"), "", allocations as f64, 0.0);
}

fn main() -> ExitCode {
    let mut goals = Goals::default();
    measure(&mut goals, "openai_6", Dialect::OpenAi, &OPENAI, 400.0);
    measure(&mut goals, "anthropic_12", Dialect::Anthropic, &ANTHROPIC, 600.0);
    goals.verdict()
}
