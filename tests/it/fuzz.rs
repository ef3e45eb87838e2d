//! Eight targets of what comes from outside: nothing upsets the reader, and what it takes is within bounds. A few hundred cases
//! each in the suite, a minute each in `make test-full`.

use std::fs;
use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseResult, TestRunner};
use tidegate::clock::{Clock, SystemClock};
use tidegate::observation::Report;
use tidegate::plan::keyspace::Keyspace;
use tidegate::plan::{Grant, Override, Target};
use tidegate::provider::{Dialect, Head, Refill, ResetForm, TaughtMeter, TaughtParams};
use tidegate::quota::{Cost, Meter};

use crate::provider_bodies::{any_dialect, any_head, any_value, body, no_value_upsets, nothing_upsets, sane, text};
use crate::provider_rows::SENT;

/// Cases of each target in the suite, and at a time in `make test-full`.
const CASES: u32 = 400;
/// Lessons stay for as long as the process: no more than so many are given in a minute.
const LESSONS_MAX: u32 = 20_000;

/// One target.
struct Reader {
    name: &'static str,
    /// Runs so many cases.
    run: fn(&mut TestRunner) -> Result<(), String>,
    cases_max: u32,
}

const TARGETS: [Reader; 8] = [
    Reader { name: "values", run: |runner| told(runner.run(&any_value(), no_value_upsets)), cases_max: u32::MAX },
    Reader { name: "heads", run: |runner| told(runner.run(&any_head(), nothing_upsets)), cases_max: u32::MAX },
    Reader { name: "bodies", run: |runner| told(runner.run(&(any_dialect(), body()), a_body)), cases_max: u32::MAX },
    Reader { name: "generic dialect", run: |runner| told(runner.run(&lesson(), a_lesson)), cases_max: LESSONS_MAX },
    Reader {
        name: "report",
        run: |runner| told(runner.run(&mutated("report"), |bytes| a_report(&bytes))),
        cases_max: u32::MAX,
    },
    Reader {
        name: "grant",
        run: |runner| told(runner.run(&mutated("grant"), |bytes| a_grant(&bytes))),
        cases_max: u32::MAX,
    },
    Reader {
        name: "override",
        run: |runner| told(runner.run(&mutated("override_set"), |bytes| an_override(&bytes))),
        cases_max: u32::MAX,
    },
    Reader { name: "key", run: |runner| told(runner.run(&key(), a_key)), cases_max: u32::MAX },
];

fn told<T>(result: Result<(), proptest::test_runner::TestError<T>>) -> Result<(), String>
where
    T: std::fmt::Debug,
{
    result.map_err(|error| error.to_string())
}

fn runner() -> TestRunner {
    TestRunner::new(Config { cases: CASES, failure_persistence: None, ..Config::default() })
}

#[test]
fn nothing_from_outside_upsets_a_reader() {
    for Reader { name, run, .. } in TARGETS {
        assert_eq!(run(&mut runner()), Ok(()), "{name}");
    }
}

#[test]
#[ignore = "takes eight minutes: make test-full"]
fn a_minute_of_each_target() {
    let clock = SystemClock::new();
    for Reader { name, run, cases_max } in TARGETS {
        let (begun, mut cases) = (clock.now(), 0_u32);
        while clock.now().since(begun) < Duration::from_secs(60) && cases < cases_max {
            assert_eq!(run(&mut runner()), Ok(()), "{name}");
            cases = cases.saturating_add(CASES);
        }
        eprintln!("{name}: {cases} cases");
    }
}

fn a_body((dialect, body): (Dialect, Vec<u8>)) -> TestCaseResult {
    let headers = vec![("date".to_owned(), b"Thu, 25 Dec 2025 09:13:46 GMT".to_vec())];
    for status in [400, 403, 429, 498, 500, 503, 529] {
        let seen = dialect.observe(&Head { status, headers: &headers }, Some(&body), SENT);
        sane(dialect, &seen, &Cost::request(100, 100))?;
    }
    Ok(())
}

// === a dialect that is taught ===

fn lesson() -> impl Strategy<Value = (TaughtParams, String)> {
    let header = || proptest::option::of("[A-Za-z-]{0,6}|[ -~]{0,5}");
    let meters = prop_oneof![Just(Meter::REQUESTS_PER_MINUTE), Just(Meter::TOKENS_PER_MINUTE)];
    let meter = (meters, header(), header(), header()).prop_map(|(meter, limit, remaining, reset)| TaughtMeter {
        meter,
        limit,
        remaining,
        reset,
    });
    let form = prop::sample::select(ResetForm::ALL.to_vec());
    let refill = prop_oneof![Just(Refill::Continuous), Just(Refill::FixedWindow)];
    let params = ("[a-z]{0,8}|\\PC{0,4}", refill, form, prop::collection::vec(meter, 0..3))
        .prop_map(|(name, refill, reset_form, meters)| TaughtParams { name, refill, reset_form, meters });
    (params, text())
}

fn a_lesson((params, value): (TaughtParams, String)) -> TestCaseResult {
    let Ok(taught) = params.teach() else { return Ok(()) };
    let dialect = Dialect::Taught(taught);
    let names = params.meters.iter().flat_map(|meter| [&meter.limit, &meter.remaining, &meter.reset]).flatten();
    let headers: Vec<(String, Vec<u8>)> =
        names.map(|name| (name.to_ascii_lowercase(), value.clone().into_bytes())).collect();
    for status in [200, 429] {
        let seen = dialect.read(&Head { status, headers: &headers }, SENT);
        sane(dialect, &seen, &Cost::request(7, 7))?;
        // Each header is read, or it is said why not: a reset alone is of nothing, a bad limit spoils the rest.
        prop_assert!(seen.readings.len() <= params.meters.len());
        prop_assert!(!seen.readings.is_empty() || !seen.missing.is_empty());
    }
    Ok(())
}

// === records ===

/// A good record with some bytes changed, cut out or doubled.
fn mutated(record: &'static str) -> impl Strategy<Value = Vec<u8>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/records/{record}.json"));
    let good = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let pieces = prop_oneof!["[0-9]{1,20}", "-|null|true|\"|\\{|\\[|1e999|1e-999|,|:", "\\PC{0,3}"];
    prop::collection::vec((any::<prop::sample::Index>(), 0_usize..6, pieces), 0..4).prop_map(move |changes| {
        let mut bytes = good.clone();
        for (at, cut, piece) in changes {
            let at = at.index(bytes.len().max(1)).min(bytes.len());
            let end = (at + cut).min(bytes.len());
            bytes.splice(at..end, piece.into_bytes());
        }
        bytes
    })
}

fn a_report(bytes: &[u8]) -> TestCaseResult {
    let Ok(report) = Report::parse(bytes) else { return Ok(()) };
    for meter in report.pools.values().flat_map(|pool| pool.meters.values()) {
        prop_assert!(meter.limit.is_none_or(|limit| limit > 0.0 && limit.is_finite()));
        prop_assert!(meter.level.is_none_or(f64::is_finite));
    }
    Ok(())
}

fn a_grant(bytes: &[u8]) -> TestCaseResult {
    let Ok(grant) = Grant::parse(bytes) else { return Ok(()) };
    for rate in grant.thresholds.rates.values().chain(grant.safe.rates.values()) {
        prop_assert!(rate.rate.is_finite() && rate.rate >= 0.0 && rate.burst.is_finite() && rate.burst >= 0.0);
    }
    Ok(())
}

fn an_override(bytes: &[u8]) -> TestCaseResult {
    for target in [Target::Capacity, Target::Every] {
        if let Ok(taken) = Override::parse(bytes, &target) {
            prop_assert!(taken.to_json(&target).is_ok(), "{taken:?}");
        }
    }
    Ok(())
}

fn key() -> impl Strategy<Value = String> {
    "(/tidegate/v1/)?(limits|pulse|overrides|leader|policy|members|state)(/[a-z%@*0-9A-F.]{0,12}){0,3}|\\PC{0,40}"
}

fn a_key(text: String) -> TestCaseResult {
    let keys = Keyspace::default();
    if let Some(key) = keys.parse(&text) {
        // One name, one key.
        prop_assert_eq!(keys.key(&key), text);
    }
    Ok(())
}

/// Each sign once took a call: a header of dashes ended the process.
#[test]
fn a_header_of_dashes_is_no_number() {
    let mut headers = http::HeaderMap::new();
    headers.insert("x-ratelimit-limit-requests", "-".repeat(100_000).parse().expect("valid"));
    headers.insert("x-ratelimit-remaining-requests", "0".parse().expect("valid"));
    let head = tidegate::provider::Head { status: 200, headers: &headers };
    let observation = tidegate::provider::Dialect::OpenAi.read(&head, tidegate::clock::MonoTime::from_millis(0));
    assert!(observation.readings.is_empty());
}
