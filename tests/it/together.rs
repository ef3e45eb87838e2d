//! Meters that members count together: what the leader grants and tells of them, and what operators are told.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::{Value, json};
use tidegate::client::{self, Client, ClientParams};
use tidegate::clock::{MonoTime, UnixMillis};
use tidegate::controller::law::LawParams;
use tidegate::controller::planner::PoolPlanner;
use tidegate::controller::{PoolParams, SHARED_HEADROOM};
use tidegate::observation::{Counters, MeterReport, PoolReport, TenantReport, UnitCounts};
use tidegate::plan::{Algorithm, Grant, Pulse, Rate, Target};
use tidegate::provider::Dialect;
use tidegate::quota::{Grantee, Meter, Unit, Window};
use tidegate::telemetry::Telemetry;

use crate::operators::{Office, POOL};
use crate::planner::{pool, tenant, tick};
use crate::stand::store;
use crate::world::{eventually, tidegate};

const RPM: Meter = Meter::REQUESTS_PER_MINUTE;
const TPM: Meter = Meter::TOKENS_PER_MINUTE;

fn at(s: u64) -> MonoTime {
    MonoTime::from_millis(s * 1_000)
}

/// A pool whose requests are counted together, under the law as it is shipped.
fn together(per_minute: f64) -> PoolParams {
    PoolParams { shared: BTreeSet::from([RPM]), law: LawParams::default(), ..pool(per_minute, &["a", "b"]) }
}

fn planner(params: PoolParams) -> PoolPlanner {
    PoolPlanner::new(params, 7, BTreeMap::new(), None, at(0))
}

/// Reports of two tenants that send 3 and 2 a second and ask for 40 each: much lies idle. With what headers tell, if anything.
fn report(planner: &mut PoolPlanner, s: u64, reading: Option<(f64, f64)>) {
    let of = |per_s: u64| {
        let sent = UnitCounts { requests: per_s * s, ..UnitCounts::default() };
        let (n, attempts) = (per_s * s, 40 * s);
        let counters = Counters { attempts, admitted: n, sent: n, succeeded: n, reserved: sent, ..Counters::default() };
        TenantReport { counters, ..TenantReport::default() }
    };
    let mut report =
        PoolReport { tenants: [(tenant("a"), of(3)), (tenant("b"), of(2))].into(), ..PoolReport::default() };
    if let Some((limit, level)) = reading {
        let told = MeterReport { limit: Some(limit), remaining: None, level: Some(level), reset_ms: None, age_ms: 10 };
        report.meters.insert(RPM, told);
    }
    planner.report("m", "boot", &report, at(s));
}

/// Ticks in these seconds; the last pulse.
fn drive(planner: &mut PoolPlanner, seconds: std::ops::Range<u64>, reading: Option<(f64, f64)>) -> Pulse {
    let mut last = None;
    for s in seconds {
        report(planner, s, reading);
        last = Some(tick(planner, s * 1_000).pulse);
    }
    last.expect("some seconds")
}

fn granted(planner: &PoolPlanner) -> &BTreeMap<Grantee, Grant> {
    planner.outbox().published()
}

/// What all thresholds add up to, against the capacity of the pulse.
fn times_the_capacity(planner: &PoolPlanner, pulse: &Pulse) -> f64 {
    granted(planner).values().map(|grant| grant.thresholds.rates[&RPM].rate).sum::<f64>() / pulse.capacity[&RPM]
}

#[track_caller]
fn near(found: f64, expected: f64) {
    // Grants that moved by less than 2 % stay as they are.
    assert!((found / expected - 1.0).abs() < 0.025, "{found}, not {expected}");
}

#[test]
fn thresholds_add_up_to_a_constant_however_much_lies_idle_and_the_pulse_tells_the_pools_bucket() {
    let mut planner = planner(together(600.0));
    for s in 0..40 {
        let pulse = drive(&mut planner, s..s + 1, None);
        assert_eq!(pulse.overcommit, BTreeMap::from([(RPM, SHARED_HEADROOM)]));
        assert_eq!(pulse.shared[&RPM].rate, pulse.capacity[&RPM], "at {s} s");
        near(times_the_capacity(&planner, &pulse), SHARED_HEADROOM);
        assert_eq!(Pulse::parse(&serde_json::to_vec(&pulse).unwrap()).unwrap(), pulse);
    }
    // What holds without a leader is no more than without the headroom.
    let safe: f64 = granted(&planner).values().map(|grant| grant.safe.rates[&RPM].rate).sum();
    assert!(safe <= 300.0 * 1.03, "{safe}");
    assert_eq!(planner.account(at(40), UnixMillis(1)).meters[&RPM].overcommit, SHARED_HEADROOM);
    let told = planner.explain(&tenant("a"), UnixMillis(1)).expect("it has a grant");
    let step = &told.steps[0].decided.meters[&RPM];
    assert_eq!((step.overcommit, step.shared), (SHARED_HEADROOM, Some(Rate { rate: 600.0, burst: 5.0 })));
}

#[test]
fn floors_and_ceilings_hold() {
    let mut params = together(60.0);
    params.tenants.get_mut("a").unwrap().ceiling = [(RPM, 10.0)].into();
    params.tenants.get_mut("b").unwrap().floor = [(RPM, 50.0)].into();
    let mut planner = planner(params);
    let pulse = drive(&mut planner, 0..20, None);
    let rate = |name| granted(&planner)[&tenant(name)].thresholds.rates[&RPM].rate;
    assert!(rate("a") <= 10.0 && rate("b") >= 50.0, "{} and {}", rate("a"), rate("b"));
    near(times_the_capacity(&planner, &pulse), SHARED_HEADROOM);
}

#[test]
fn the_pools_bucket_follows_the_capacity_and_a_cut_is_in_it_at_once() {
    let mut planner = planner(together(600.0));
    let steady = drive(&mut planner, 0..20, Some((600.0, 300.0)));
    assert_eq!((steady.shared[&RPM].rate, steady.scale), (steady.capacity[&RPM], BTreeMap::new()));
    let old = granted(&planner).clone();
    // The provider halves its limit.
    let cut = drive(&mut planner, 20..21, Some((300.0, 15.0)));
    assert!(cut.scale[&RPM] < 0.7, "{cut:?}");
    assert!(old.values().all(|grant| cut.scale_for(grant.stamp, RPM) < 0.7));
    assert_eq!(cut.shared[&RPM].rate, cut.capacity[&RPM]);
    assert!(cut.shared[&RPM].rate < 0.6 * steady.shared[&RPM].rate, "{cut:?}");
    assert_eq!(cut.overcommit[&RPM], SHARED_HEADROOM);
}

#[test]
fn an_operators_capacity_is_not_exceeded_and_has_no_headroom() {
    for record in [r#"{"set":{"requests/minute":300}}"#, r#"{"scale":0.5}"#] {
        let mut planner = planner(together(600.0));
        planner.overrides_mut().put(Target::Capacity, record.as_bytes()).unwrap();
        // A tenant's own record does not lift it.
        planner.overrides_mut().put(Target::One(tenant("a")), br#"{"set":{"requests/minute":900}}"#).unwrap();
        let pulse = drive(&mut planner, 0..20, None);
        let left = if record.contains("set") { 300.0 } else { pulse.capacity[&RPM] / 2.0 };
        assert!((pulse.shared[&RPM].rate - left).abs() < 0.001, "{record}: {pulse:?}");
        assert_eq!(pulse.overcommit, BTreeMap::new(), "{record}");
    }
    let mut planner = planner(together(600.0));
    planner.overrides_mut().put(Target::Capacity, br#"{"set":{"requests/minute":9000}}"#).unwrap();
    let pulse = drive(&mut planner, 0..2, None);
    assert_eq!(pulse.shared[&RPM].rate, pulse.capacity[&RPM], "more than there is changes nothing");
    planner.overrides_mut().put(Target::Capacity, br#"{"scale":0}"#).unwrap();
    assert_eq!(drive(&mut planner, 2..3, None).shared[&RPM], Rate { rate: 0.0, burst: 0.0 });
}

#[test]
fn what_operators_give_to_tenants_is_in_the_pools_bucket_where_it_is_more() {
    let rate_with = |records: &[(&str, &str)]| {
        let mut planner = planner(together(600.0));
        for (name, record) in records {
            let target = if *name == "*" { Target::Every } else { Target::One(tenant(name)) };
            planner.overrides_mut().put(target, record.as_bytes()).unwrap();
        }
        let pulse = drive(&mut planner, 0..1, None);
        (pulse.shared[&RPM].rate, pulse.capacity[&RPM])
    };
    let (rate, capacity) = rate_with(&[("a", r#"{"set":{"requests/minute":400}}"#)]);
    assert_eq!(rate, capacity, "it fits");
    assert_eq!(rate_with(&[("a", r#"{"set":{"requests/minute":900}}"#)]).0, 900.0);
    let (rate, capacity) = rate_with(&[("*", r#"{"scale":2}"#)]);
    assert!((rate - 2.0 * capacity).abs() < 0.01, "the headroom is not given twice: {rate} of {capacity}");
    let (rate, capacity) = rate_with(&[("a", r#"{"block":true}"#), ("b", r#"{"scale":0.5}"#)]);
    assert_eq!(rate, capacity);
}

#[test]
fn the_bucket_holds_half_a_second_and_always_a_request() {
    let burst_of = |rate: f64, burst: f64| {
        let mut params = together(rate);
        params.capacity = [(RPM, Rate { rate, burst })].into();
        drive(&mut planner(params), 0..1, None).shared[&RPM].burst
    };
    assert_eq!(burst_of(600.0, 600.0), 5.0);
    assert_eq!(burst_of(600.0, 12.0), 3.0, "a quarter of the depth");
    assert_eq!(burst_of(600.0, 2.0), 1.0);
    assert_eq!(burst_of(10.0, 1.0), 1.0);
    // A depth that headers have taught: they tell of at most 40.
    let mut taught = planner(together(600.0));
    let told = drive(&mut taught, 0..10, Some((600.0, 8.0))).shared[&RPM];
    assert!(told.burst >= 1.0 && told.burst <= 0.5 * told.rate / 60.0, "{told:?}");
}

#[test]
fn a_bucket_of_tokens_holds_what_tenants_bursts_are_cut_from_and_a_window_has_its_rate() {
    let day = Meter { unit: Unit::Requests, window: Window::Day };
    let mut params = together(600.0);
    params.capacity.insert(TPM, Rate { rate: 150_000.0, burst: 30_000.0 });
    params.capacity.insert(day, Rate { rate: 9_000.0, burst: 1.0 });
    params.algorithms = [(day, Algorithm::FixedWindow)].into();
    params.shared = BTreeSet::from([TPM, day]);
    let mut of_tokens = planner(params);
    let pulse = drive(&mut of_tokens, 0..1, None);
    assert_eq!(pulse.shared[&TPM], Rate { rate: 150_000.0, burst: 7_500.0 });
    assert_eq!(pulse.shared[&day], Rate { rate: 9_000.0, burst: 9_000.0 });
    let largest = granted(&of_tokens).values().map(|grant| grant.thresholds.rates[&TPM].burst).fold(0.0, f64::max);
    assert!(largest <= 7_500.0, "what a tenant's bucket holds the pool's does too: {largest}");

    // Where an answer's most is reserved and given back, all of the depth.
    let output = Meter { unit: Unit::OutputTokens, window: Window::Minute };
    let capacity = BTreeMap::from([(output, Rate { rate: 40_000.0, burst: 40_000.0 })]);
    let params = PoolParams {
        dialect: Dialect::Anthropic,
        capacity,
        shared: BTreeSet::from([output]),
        ..pool(600.0, &["a", "b"])
    };
    let mut corrected = planner(params);
    assert_eq!(drive(&mut corrected, 0..1, None).shared[&output].burst, 40_000.0);
}

#[test]
fn a_policy_switches_it_on_and_off_with_the_next_pulse() {
    let local = PoolParams { shared: BTreeSet::new(), ..together(600.0) };
    let mut planner = planner(local.clone());
    let lent = drive(&mut planner, 0..30, None);
    assert!(lent.overcommit[&RPM] > 1.5 && lent.shared.is_empty(), "{lent:?}");
    planner.adopt(PoolParams { shared: BTreeSet::from([RPM]), ..local.clone() });
    let on = drive(&mut planner, 30..31, None);
    assert_eq!(on.overcommit[&RPM], SHARED_HEADROOM);
    assert_eq!(on.shared[&RPM].rate, on.capacity[&RPM]);
    assert!(on.scale[&RPM] < 0.8, "thresholds of before are cut: {on:?}");
    let later = drive(&mut planner, 31..33, None);
    near(times_the_capacity(&planner, &later), SHARED_HEADROOM);
    // And back: shares alone hold then, so the headroom is gone with the same pulse.
    planner.adopt(local.clone());
    let off = drive(&mut planner, 33..34, None);
    assert!(off.shared.is_empty(), "{off:?}");
    assert!(off.overcommit.get(&RPM).is_none_or(|factor| *factor < 1.15), "it begins anew: {off:?}");
    // A cut of a twentieth is not worth a pulse's: the next grants have it.
    let later = drive(&mut planner, 34..36, None);
    near(times_the_capacity(&planner, &later), later.overcommit.get(&RPM).copied().unwrap_or(1.0));

    // The next leader does not take the constant for something that was learned.
    planner.adopt(PoolParams { shared: BTreeSet::from([RPM]), ..local.clone() });
    let last = drive(&mut planner, 36..38, None);
    let mut next = PoolPlanner::new(local, 8, granted(&planner).clone(), Some(&last), at(38));
    let first = next.tick(at(38), UnixMillis(1));
    assert_eq!((first.overcommit, first.shared), (BTreeMap::new(), BTreeMap::new()));
}

// === what operators are told ===

fn policy(enforcement: &str) -> Value {
    json!({
        "dialect": "openai",
        "capacity": { "requests/minute": { "rate": 600, "enforcement": enforcement }, "tokens/minute": 150_000 },
        "tenants": { "acme": { "weight": 3 }, "globex": { "ceiling": { "requests/minute": 30 } } },
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_switch_is_live_and_is_told_wherever_one_looks() {
    let office = Office::led().await;
    let switch = |to: &str| office.etcdctl(&["put", "/tidegate/v1/policy/openai-gpt4o", &policy(to).to_string()]);
    let pulse = || office.record("/tidegate/v1/pulse/openai-gpt4o").expect("a pulse");
    assert_eq!(pulse().get("shared"), None);
    switch("shared");
    let shared = eventually("the pulse tells it", async || pulse().get("shared").cloned()).await;
    let bucket = &shared["requests/minute"];
    assert_eq!(shared.as_object().map(serde_json::Map::len), Some(1), "{shared}");
    assert!(bucket["rate"].as_f64() > Some(0.0) && bucket["burst"].as_f64() >= Some(1.0), "{shared}");

    let told = office.json(&["limits", "get", POOL, "acme", "--effective"]);
    assert_eq!(told["shared"], shared);
    let said = office.run(&["limits", "get", POOL, "acme", "--effective"]);
    let line = "\nshared    requests/minute is counted together in Redis: all tenants of the pool take ";
    assert!(said.out.contains(line), "{said:?}");
    let told = office.json(&["status"]);
    let meter = &told["pools"][POOL]["meters"]["requests/minute"];
    assert_eq!((&meter["shared"], &meter["overcommit"]), (bucket, &json!(SHARED_HEADROOM)));
    assert_eq!(told["pools"][POOL]["meters"]["tokens/minute"].get("shared"), None);
    let step = eventually("a step tells it", async || {
        let told = office.json(&["explain", POOL, "acme"]);
        let step = told["steps"].as_array().and_then(|steps| steps.last()).cloned()?;
        step["meters"]["requests/minute"].get("shared").cloned()
    })
    .await;
    assert!(step["rate"].as_f64() > Some(0.0), "{step}");
    let said = office.run(&["explain", POOL, "acme", "--last", "1"]);
    assert!(said.out.contains("counted together in Redis: the pool's bucket of requests/minute gives "), "{said:?}");
    assert!(said.out.contains("add up to 1.1 × CAPACITY, a constant") && !said.out.contains("lent, for"), "{said:?}");

    // One that has nowhere to count goes by its share, and all can see it.
    let params = ClientParams::new(vec![client::PoolParams::new(POOL.parse().expect("valid"), Dialect::OpenAi)]);
    let endpoint = [office.etcd.endpoint().to_owned()];
    let apart = Client::start(params, Arc::new(store(&endpoint).await), Arc::new(Telemetry::new())).await;
    let said = eventually("status warns of it", async || {
        let told = office.json(&["status"]);
        told["warnings"].as_array()?.iter().find(|words| words.to_string().contains("Redis")).cloned()
    })
    .await;
    assert_eq!(said, format!("{POOL}: 1 of 1 members do not count in Redis now: they go by shares"));

    switch("local");
    eventually("the pulse tells it no more", async || pulse().get("shared").is_none().then_some(())).await;
    let told = office.json(&["limits", "get", POOL, "acme", "--effective"]);
    assert_eq!(told["shared"], json!({}));
    eventually("nobody has to count", async || (office.json(&["status"])["warnings"] == json!([])).then_some(())).await;
    apart.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn check_asks_etcd_how_many_processes_use_a_pool() {
    let office = Office::empty().await;
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("t.toml");
    let check = |endpoint: &str, args: &[&str]| {
        let text = format!(
            "[etcd]\nendpoints = [\"{endpoint}\"]\n[pools.a]\ndialect = \"openai\"\n\
             capacity = {{ \"requests/minute\" = 8 }}\n[pools.b]\ndialect = \"openai\"\ncapacity = {{ \"requests/minute\" = 8 }}\n"
        );
        std::fs::write(&file, text).expect("written");
        let output = tidegate(&["check", "t.toml"]).args(args).current_dir(folder.path()).output().expect("it runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
    };
    for n in 0..5 {
        let key = format!("/tidegate/v1/members/checkout-{n}");
        office.etcdctl(&["put", &key, r#"{"boot":"b1","pools":["a"]}"#]);
    }
    let (code, out, err) = check(office.etcd.endpoint(), &["--ask"]);
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!((code, lines.len()), (0, 3), "{out}{err}");
    assert!(
        lines[0].contains("warning: pools.a.") && lines[0].contains(" among 5 processes: less than 2 each;"),
        "{out}"
    );
    assert!(lines[1].contains("advice: pools.b.") && lines[1].contains(": from 5 processes on"), "{out}");
    assert!(lines[2].starts_with("t.toml: good: "), "{out}");
    // What one plans is more than what there is.
    let (_, out, _) = check(office.etcd.endpoint(), &["--ask", "--members", "3"]);
    assert_eq!(out.lines().count(), 1, "{out}");
    let (_, out, _) = check(office.etcd.endpoint(), &["--ask", "--json"]);
    let told: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!((&told["members"], &told["queries"]), (&json!({ "a": 5 }), &json!([])));
    assert_eq!(told["mistakes"][0]["severity"], "warning");
    // An etcd that is not there is a warning, and no more is known than without.
    let (code, out, err) = check("http://127.0.0.1:1", &["--ask"]);
    assert!(code == 0 && out.contains("t.toml: warning: etcd: ") && out.contains("--members says it"), "{out}{err}");
    assert!(out.contains("advice: pools.a."), "{out}");
}
