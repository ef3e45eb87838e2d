//! The records: their wire form (golden files), what is refused and how it is said, their keys, and how overrides
//! apply.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tidegate::clock::UnixMillis;
use tidegate::observation::{Counters, Ending, Report, ReportError, ThrottleKind, UnitCounts};
use tidegate::plan::keyspace::{DEFAULT_PREFIX, Key, Keyspace, LeaderRecord};
use tidegate::plan::{
    Action, Algorithm, Audit, Changed, Effective, Grant, Mode, Override, OverrideStatus, Pulse, Rate, RecordError,
    Reply, Stamp, Target, Thresholds, capacity_factor, effective,
};
use tidegate::quota::{Cost, Grantee, Meter, TenantId, Unit, Window};

const RPM: Meter = Meter::REQUESTS_PER_MINUTE;
const TPM: Meter = Meter::TOKENS_PER_MINUTE;

// === wire forms ===

fn golden(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/records").join(format!("{name}.json"));
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Parses a golden file, checks that it is written back as it stands, and returns it.
fn round_trip<T: Serialize, E: std::fmt::Display>(name: &str, parse: impl Fn(&[u8]) -> Result<T, E>) -> T {
    let file = golden(name);
    let record = parse(&file).unwrap_or_else(|error| panic!("{name}: {error}"));
    let expected: Value = serde_json::from_slice(&file).expect("golden files are JSON");
    assert_eq!(serde_json::to_value(&record).expect("records serialise"), expected, "{name}");
    record
}

fn plain<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, serde_json::Error> {
    serde_json::from_slice(bytes)
}

fn rate(rate: f64, burst: f64) -> Rate {
    Rate { rate, burst }
}

#[test]
fn a_grant_is_written_as_it_was_read() {
    let grant = round_trip("grant", Grant::parse);
    assert_eq!(grant.stamp, Stamp { term: 7, epoch: 1843 });
    assert_eq!(grant.thresholds.rates[&RPM], rate(120.0, 12.0));
    assert_eq!(grant.thresholds.rates[&TPM], rate(40_000.0, 8_000.0));
    assert_eq!(grant.thresholds.concurrency, Some(8));
    assert_eq!(grant.safe, grant.thresholds.scaled(0.5));
    assert_eq!((grant.members, grant.reason.code.as_str()), (4, "headers_capacity"));
}

#[test]
fn a_grant_says_how_meters_count_and_those_not_named_are_token_buckets() {
    assert_eq!(Grant::parse(&golden("grant")).unwrap().algorithms, BTreeMap::new());
    let grant = round_trip("grant_windows", Grant::parse);
    let expected = [(RPM, Algorithm::FixedWindow), (TPM, Algorithm::SlidingWindow)];
    assert_eq!(grant.algorithms, BTreeMap::from(expected));
    for algorithm in Algorithm::ALL {
        assert_eq!(serde_json::to_value(algorithm).unwrap(), algorithm.as_str());
    }
    let unknown = String::from_utf8(golden("grant_windows")).unwrap().replace("sliding_window", "leaky_bucket");
    let refused = Grant::parse(unknown.as_bytes()).unwrap_err().to_string();
    assert!(refused.starts_with("not valid: unknown variant `leaky_bucket`"), "{refused}");
}

#[test]
fn a_pulse_is_written_as_it_was_read() {
    let pulse = round_trip("pulse", Pulse::parse);
    assert_eq!((pulse.valid_for_ms, pulse.unix_ms), (15_000, UnixMillis(1_795_463_999_000)));
    let scaled = round_trip("pulse_scaled", Pulse::parse);
    assert!(pulse.stamp < scaled.stamp);
    assert_eq!((scaled.scale[&RPM], scaled.scale_epoch), (0.5, Some(1844)));
    assert_eq!((pulse.mode, scaled.mode), (Mode::Enforce, Mode::Observe));
    assert_eq!(scaled.hold_ms[&TPM], 4_000);
    assert_eq!(scaled.window_left_ms[&Meter { unit: Unit::Requests, window: Window::Day }], 51_840_000);
}

#[test]
fn every_override_is_written_as_it_was_read() {
    for kind in ["set", "scale", "floor", "ceiling", "freeze", "block"] {
        let record = round_trip(&format!("override_{kind}"), |bytes| Override::parse(bytes, &Target::Every));
        let same = match record.action {
            Action::Set(_) => "set",
            Action::Scale(_) => "scale",
            Action::Floor(_) => "floor",
            Action::Ceiling(_) => "ceiling",
            Action::Freeze => "freeze",
            Action::Block => "block",
        };
        assert_eq!(same, kind);
    }
    let status: OverrideStatus = round_trip("override_status", plain);
    assert!(!status.accepted && status.applied.is_some());
}

#[test]
fn reports_replies_and_the_leaders_record_are_written_as_they_were_read() {
    let report = round_trip("report", Report::parse);
    let pool = &report.pools["openai-gpt4o"];
    assert_eq!(pool.meters[&TPM].level, Some(-10_587.5));
    let acme = &pool.tenants[&"acme".parse::<Grantee>().unwrap()];
    assert_eq!((acme.share, acme.concurrency), (Some(0.31), Some(3)));
    assert_eq!(acme.counters.throttled[&ThrottleKind::Tokens], 4);
    assert_eq!(pool.tenants[&Grantee::Default].share, None);

    let reply: Reply = round_trip("reply", plain);
    assert_eq!(reply.shares["openai-gpt4o"][&Grantee::Default].concurrency, None);
    let audit: Audit = round_trip("audit", plain);
    assert_eq!((audit.what, audit.reason.as_str()), (Changed::OverrideSet, "incident 42"));
    let leader: LeaderRecord = round_trip("leader", plain);
    assert_eq!(leader.report_url, "http://127.0.0.1:7676");
}

#[test]
fn a_person_may_write_whole_numbers() {
    let by_hand = parsed(
        r#"{"set":{"requests/minute":60},"by":"mori","reason":"incident 42","expires_at":"2026-11-24T00:00:00Z"}"#,
    );
    let written = Override::parse(&golden("override_set"), &Target::Every).unwrap();
    assert_eq!(by_hand, written);
    let mixed = parsed(r#"{"ceiling":{"requests/60s":90,"tokens/day":{"burst":500000,"rate":5e6}}}"#);
    assert_eq!(mixed.action, Override::parse(&golden("override_ceiling"), &Target::Every).unwrap().action);
}

#[test]
fn grants_pulses_and_reports_ignore_fields_they_do_not_know() {
    let with_extra = |name: &str| {
        let mut value: Value = serde_json::from_slice(&golden(name)).unwrap();
        value["colour"] = json!("green");
        serde_json::to_vec(&value).unwrap()
    };
    assert_eq!(Grant::parse(&with_extra("grant")).unwrap(), Grant::parse(&golden("grant")).unwrap());
    assert_eq!(Pulse::parse(&with_extra("pulse")).unwrap(), Pulse::parse(&golden("pulse")).unwrap());
    assert_eq!(Report::parse(&with_extra("report")).unwrap(), Report::parse(&golden("report")).unwrap());
}

// === what is refused ===

fn refused(error: &impl std::fmt::Display, parts: &[&str], input: &str) {
    let line = error.to_string();
    assert!(!line.contains('\n') && line.len() < 500, "one line, please: {line}");
    for part in parts {
        assert!(line.contains(part), "{input}\n  says: {line}\n  not:  {part}");
    }
}

#[test]
fn a_malformed_override_is_refused_with_one_clear_line() {
    let meters = "requests/minute";
    let table: &[(&str, &[&str])] = &[
        ("", &["not valid", "EOF"]),
        ("[]", &["not valid"]),
        ("{}", &["exactly one of set, scale, floor, ceiling, freeze and block"]),
        (r#"{"scale":1,"block":true}"#, &["exactly one of"]),
        (r#"{"scael":0.5}"#, &["unknown field `scael`", "`scale`"]),
        (r#"{"scale":1,"colour":"green"}"#, &["unknown field `colour`"]),
        (r#"{"scale":11}"#, &["scale is 11: expected 0 to 10"]),
        (r#"{"scale":-0.1}"#, &["scale is -0.1: expected 0 to 10"]),
        (r#"{"scale":"half"}"#, &["invalid type: string \"half\""]),
        (r#"{"scale":1e999}"#, &["not valid", "number out of range"]),
        (r#"{"freeze":false}"#, &["freeze is false"]),
        (r#"{"block":1}"#, &["invalid type: integer `1`, expected a boolean"]),
        (r#"{"set":{}}"#, &["set: expected at least one meter"]),
        (r#"{"set":60}"#, &["expected a map"]),
        (r#"{"set":{"requests":60}}"#, &["meter \"requests\": expected <unit>/<window>", meters]),
        (r#"{"set":{"requests/fortnight":60}}"#, &["meter \"requests/fortnight\"", meters]),
        (r#"{"set":{"bytes/minute":60}}"#, &["meter \"bytes/minute\"", "requests, tokens, input_tokens or output"]),
        (r#"{"set":{"requests/minute":"60"}}"#, &["string \"60\"", "units per window", "{\"rate\":…,\"burst\":…}"]),
        (r#"{"set":{"requests/minute":null}}"#, &["null", "units per window"]),
        (r#"{"set":{"requests/minute":-1}}"#, &["set requests/minute is -1: expected a finite number, 0 or more"]),
        (r#"{"floor":{"requests/minute":{"rate":5}}}"#, &["missing field `burst`"]),
        (r#"{"floor":{"requests/minute":{"rate":5,"brust":1}}}"#, &["unknown field `brust`", "`rate` or `burst`"]),
        (r#"{"ceiling":{"tokens/day":{"rate":5,"burst":-1}}}"#, &["ceiling tokens/day", "0 or more"]),
        (r#"{"block":true,"expires_at":"tomorrow"}"#, &["expires_at \"tomorrow\"", "2026-11-24T00:00:00Z"]),
        (r#"{"block":true,"expires_at":"2026-11-24T00:00:00"}"#, &["expires_at", "with its offset"]),
        (r#"{"block":true,"block":true}"#, &["duplicate field `block`"]),
        ("{\"a\\nb\":1}", &["unknown field `a b`"]),
    ];
    for (input, parts) in table {
        let error = Override::parse(input.as_bytes(), &Target::Every).expect_err(input);
        refused(&error, parts, input);
    }
    let long = format!("{{\"{}\":1}}", "x".repeat(100_000));
    refused(&Override::parse(long.as_bytes(), &Target::Every).unwrap_err(), &["unknown field `xxx"], "a long key");
}

#[test]
fn capacity_takes_set_or_scale_only() {
    for good in [r#"{"set":{"requests/minute":60}}"#, r#"{"scale":0.5}"#] {
        assert!(Override::parse(good.as_bytes(), &Target::Capacity).is_ok(), "{good}");
    }
    for bad in ["freeze", "block"] {
        let input = format!("{{\"{bad}\":true}}");
        let error = Override::parse(input.as_bytes(), &Target::Capacity).expect_err(&input);
        refused(&error, &["@capacity: expected set or scale"], &input);
    }
    for bad in ["floor", "ceiling"] {
        let input = format!("{{\"{bad}\":{{\"requests/minute\":1}}}}");
        let error = Override::parse(input.as_bytes(), &Target::Capacity).expect_err(&input);
        refused(&error, &["@capacity: expected set or scale"], &input);
    }
}

/// The golden record with one field replaced; `null` removes it.
fn with(name: &str, pointer: &str, to: Value) -> Vec<u8> {
    let mut value: Value = serde_json::from_slice(&golden(name)).unwrap();
    let (parent, field) = pointer.rsplit_once('/').unwrap();
    let parent = value.pointer_mut(parent).unwrap().as_object_mut().unwrap();
    match to {
        Value::Null => drop(parent.remove(field)),
        to => drop(parent.insert(field.replace("~1", "/"), to)),
    }
    serde_json::to_vec(&value).unwrap()
}

#[test]
fn a_malformed_grant_is_refused_with_one_clear_line() {
    let table: &[(&str, Value, &[&str])] = &[
        ("/schema", json!(2), &["schema 2: this version reads 1"]),
        ("/schema", Value::Null, &["missing field `schema`"]),
        ("/schema", json!("1"), &["invalid type: string \"1\""]),
        ("/term", Value::Null, &["missing field `term`"]),
        ("/epoch", json!(-1), &["-1"]),
        ("/safe", Value::Null, &["missing field `safe`"]),
        ("/members", json!(1.5), &["1.5"]),
        ("/thresholds", json!([]), &["a map of meter to {rate, burst}"]),
        ("/thresholds", json!({"concurrency": -1}), &["-1"]),
        ("/thresholds", json!({"requests": {"rate": 1, "burst": 1}}), &["meter \"requests\"", "<unit>/<window>"]),
        ("/thresholds", json!({"requests/minute": {"rate": -1, "burst": 1}}), &["requests/minute", "0 or more"]),
        ("/safe", json!({"tokens/minute": {"rate": 1, "burst": -1}}), &["tokens/minute", "0 or more"]),
        ("/safe", json!({"tokens/minute": 5}), &["expected struct Rate"]),
    ];
    for (pointer, to, parts) in table {
        let error = Grant::parse(&with("grant", pointer, to.clone())).expect_err(pointer);
        refused(&error, parts, &format!("{pointer} = {to}"));
    }
    assert_eq!(
        Grant::parse(br#"{"schema":9,"shape":"of things to come"}"#).unwrap_err(),
        RecordError::Schema { found: 9, expected: 1 },
        "a newer format is named as such, whatever else it holds"
    );
}

#[test]
fn a_malformed_pulse_is_refused_with_one_clear_line() {
    let table: &[(&str, Value, &[&str])] = &[
        ("/schema", json!(2), &["schema 2: this version reads 1"]),
        ("/valid_for_ms", Value::Null, &["missing field `valid_for_ms`"]),
        ("/valid_for_ms", json!(-1), &["-1"]),
        ("/capacity", json!({"requests/minute": -600}), &["capacity and scale", "0 or more"]),
        ("/scale", json!({"requests/minute": -0.5}), &["capacity and scale", "0 or more"]),
        ("/scale", json!({"requests/minute": "half"}), &["invalid type: string \"half\""]),
        ("/hold_ms", json!({"minute/requests": 1}), &["meter \"minute/requests\""]),
    ];
    for (pointer, to, parts) in table {
        let error = Pulse::parse(&with("pulse_scaled", pointer, to.clone())).expect_err(pointer);
        refused(&error, parts, &format!("{pointer} = {to}"));
    }
}

#[test]
fn a_malformed_report_is_refused_with_one_clear_line() {
    let rpm = "/pools/openai-gpt4o/meters/requests~1minute";
    let acme = "/pools/openai-gpt4o/tenants/acme";
    let table: &[(String, Value, &[&str])] = &[
        ("/schema".into(), json!(2), &["report schema 2: expected 1"]),
        ("/boot".into(), Value::Null, &["missing field `boot`"]),
        ("/pools/Open AI".into(), json!({}), &["pool id \"Open AI\": expected 1–64 of a–z"]),
        ("/pools/openai-gpt4o/tenants/a b".into(), json!({}), &["tenant segment \"a b\"", "%XX"]),
        (format!("{rpm}/limit"), json!(-1), &["report field limit is -1"]),
        (format!("{rpm}/remaining"), json!(-1), &["report field remaining is -1"]),
        (format!("{rpm}/level"), json!(1e300), &["report field level is 1000"]),
        (format!("{rpm}/age_ms"), Value::Null, &["missing field `age_ms`"]),
        (format!("{acme}/share"), json!(-0.1), &["report field share is -0.1"]),
        (format!("{acme}/sent"), json!(-3), &["invalid value: integer `-3`"]),
        (format!("{acme}/throttled"), json!({"sulking": 1}), &["unknown variant `sulking`", "`overload`"]),
        (format!("{acme}/ttfb_log_ms/sum_sq"), json!(-1), &["report field ttfb_log_ms.sum_sq is -1"]),
    ];
    for (pointer, to, parts) in table {
        let error = Report::parse(&with("report", pointer, to.clone())).expect_err(pointer);
        refused(&error, parts, &format!("{pointer} = {to}"));
    }
    refused(&Report::parse(b"not json").unwrap_err(), &["report is not valid"], "not json");
    let huge = vec![b' '; 1024 * 1024 + 1];
    assert!(matches!(Report::parse(&huge), Err(ReportError::TooLarge(1_048_577))));
}

#[test]
fn counts_that_no_counter_reaches_do_not_overflow() {
    let counts = UnitCounts { requests: u64::MAX, input_tokens: u64::MAX, output_tokens: u64::MAX };
    assert!(counts.of(Unit::Tokens) > 1e19);
    let mut sum = counts;
    sum.add(&Cost::request(u64::MAX, 1));
    assert_eq!(sum, counts);
    assert!(Cost::request(u64::MAX, u64::MAX).of(Unit::Tokens) > 1e19);
}

#[test]
fn every_ending_is_counted_once() {
    let mut counters = Counters::default();
    let daily = Ending::Throttled(ThrottleKind::Daily);
    for ending in [Ending::Succeeded, Ending::Ignored, daily, daily] {
        counters.ended(ending);
    }
    assert_eq!((counters.succeeded, counters.ignored), (1, 1));
    assert_eq!(counters.throttled, BTreeMap::from([(ThrottleKind::Daily, 2)]));
}

// === meters ===

#[test]
fn meters_are_read_and_written() {
    let table = [
        ("requests/minute", Unit::Requests, Window::Minute, "requests/minute"),
        ("requests/60s", Unit::Requests, Window::Minute, "requests/minute"),
        ("tokens/1s", Unit::Tokens, Window::Second, "tokens/second"),
        ("tokens/second", Unit::Tokens, Window::Second, "tokens/second"),
        ("input_tokens/hour", Unit::InputTokens, Window::Hour, "input_tokens/hour"),
        ("output_tokens/day", Unit::OutputTokens, Window::Day, "output_tokens/day"),
        ("requests/month", Unit::Requests, Window::Month, "requests/month"),
        ("requests/10s", Unit::Requests, Window::Seconds(10), "requests/10s"),
        // One meter has one name: a limit written in seconds meets the header that says an hour.
        ("requests/3600s", Unit::Requests, Window::Hour, "requests/hour"),
        ("requests/86400s", Unit::Requests, Window::Day, "requests/day"),
    ];
    for (text, unit, window, written) in table {
        let meter: Meter = text.parse().unwrap();
        assert_eq!(meter, Meter { unit, window }, "{text}");
        assert_eq!(meter.to_string(), written);
        assert_eq!(written.parse::<Meter>().unwrap(), meter, "written once, read alike");
    }
    assert!((RPM.per_second(120.0) - 2.0).abs() < 1e-12);
}

#[test]
fn what_is_not_a_meter_is_refused_with_the_allowed_forms() {
    let bad = [
        "",
        "/",
        "requests",
        "requests/",
        "/minute",
        "Requests/minute",
        "requests/Minute",
        "requests /minute",
        "requests/minute/1",
        "requests/0s",
        "requests/86401s",
        "requests/-5s",
        "requests/+5s",
        "requests/05s",
        "requests/060s",
        "requests/1.5s",
        "requests/5",
        "requests/s",
        "requests/5m",
        "requests/99999999999s",
    ];
    for text in bad {
        let error = text.parse::<Meter>().expect_err(text);
        refused(&error, &[&format!("meter {text:?}"), "\"requests/minute\""], text);
    }
    refused(&"x".repeat(1_000_000).parse::<Meter>().unwrap_err(), &["meter \"xxx"], "a long one");
}

// === keys ===

fn tenants() -> Vec<&'static str> {
    vec![
        "acme",
        "@default",
        "@capacity",
        "*",
        "a/b",
        "100%",
        "%40default",
        "a b",
        " ",
        ".",
        "..",
        "naïve-団体-🦀",
        "~._-",
    ]
}

#[test]
fn every_kind_of_key_is_parsed_back() {
    let keys = Keyspace::default();
    let pool = || "openai-gpt4o".parse().unwrap();
    let plain = [
        (Key::Leader, "leader"),
        (Key::Pulse(pool()), "pulse/openai-gpt4o"),
        (Key::Limits(pool(), Grantee::Default), "limits/openai-gpt4o/@default"),
        (Key::Override(pool(), Target::Every), "overrides/openai-gpt4o/*"),
        (Key::Override(pool(), Target::Capacity), "overrides/openai-gpt4o/@capacity"),
        (Key::Override(pool(), Target::One(Grantee::Default)), "overrides/openai-gpt4o/@default"),
        (Key::OverrideStatus(pool(), Target::Every), "overrides-status/openai-gpt4o/*"),
        (Key::OverrideStatus(pool(), Target::Capacity), "overrides-status/openai-gpt4o/@capacity"),
        (Key::Policy("openai-gpt4o".parse().unwrap()), "policy/openai-gpt4o"),
        (Key::PolicyStatus("openai-gpt4o".parse().unwrap()), "policy-status/openai-gpt4o"),
        (Key::State(pool()), "state/openai-gpt4o"),
        (Key::Member("checkout-1".into()), "members/checkout-1"),
        (Key::Member("host:80/a b".into()), "members/host%3A80%2Fa%20b"),
        (Key::Audit { at: UnixMillis(1_795_478_400_125), id: 10 }, "audit/2026-11-24T00:00:00.125Z-0000000a"),
        (Key::Audit { at: UnixMillis(0), id: u32::MAX }, "audit/1970-01-01T00:00:00.000Z-ffffffff"),
    ];
    for (key, text) in plain {
        let full = format!("{DEFAULT_PREFIX}/{text}");
        assert_eq!(keys.key(&key), full);
        assert_eq!(keys.parse(&full), Some(key), "{full}");
    }
    for name in tenants() {
        let grantee = || Grantee::Tenant(name.parse().unwrap());
        let made = [
            Key::Limits(pool(), grantee()),
            Key::Override(pool(), Target::One(grantee())),
            Key::OverrideStatus(pool(), Target::One(grantee())),
        ];
        for key in made {
            let text = keys.key(&key);
            assert_eq!(text.matches('/').count(), 5, "a tenant is one segment: {text}");
            assert!(text.is_ascii() && !text.ends_with('*') && !text.contains('@'), "{text}");
            assert_eq!(keys.parse(&text), Some(key), "{text}");
        }
    }
}

#[test]
fn lists_and_their_keys_agree() {
    let keys = Keyspace::new("/t").unwrap();
    let pool = "p".parse().unwrap();
    let under = |prefix: String, key: Key| assert!(keys.key(&key).starts_with(&prefix), "{prefix} {key:?}");
    under(keys.limits_of(&pool), Key::Limits(pool.clone(), Grantee::Default));
    under(keys.overrides_of(&pool), Key::Override(pool.clone(), Target::Every));
    under(keys.override_statuses_of(&pool), Key::OverrideStatus(pool.clone(), Target::Every));
    under(keys.overrides(), Key::Override(pool.clone(), Target::Every));
    under(keys.override_statuses(), Key::OverrideStatus(pool.clone(), Target::Every));
    under(keys.pulses(), Key::Pulse(pool.clone()));
    under(keys.policies(), Key::Policy("p".parse().unwrap()));
    under(keys.policy_statuses(), Key::PolicyStatus("p".parse().unwrap()));
    under(keys.members(), Key::Member("m".into()));
    under(keys.audits(), Key::Audit { at: UnixMillis(1), id: 1 });
    let other = "p2".parse().unwrap();
    assert!(!keys.key(&Key::Limits(other, Grantee::Default)).starts_with(&keys.limits_of(&pool)));
}

#[test]
fn no_tenant_can_be_called_default() {
    let keys = Keyspace::default();
    let forged = Grantee::Tenant("@default".parse().unwrap());
    assert_eq!(forged.to_string(), "%40default");
    assert_ne!(forged, Grantee::Default);
    let text = keys.key(&Key::Limits("p".parse().unwrap(), forged.clone()));
    assert_eq!(text, "/tidegate/v1/limits/p/%40default");
    assert_eq!(keys.parse(&text), Some(Key::Limits("p".parse().unwrap(), forged)));
}

#[test]
fn keys_that_were_not_written_here_are_none() {
    let keys = Keyspace::default();
    let foreign = [
        "",
        "/",
        "leader",
        "/tidegate/v1",
        "/tidegate/v1/",
        "/tidegate/v10/leader",
        "/tidegate/v2/leader",
        "/tidegate/v1leader",
        "tidegate/v1/leader",
        "/x/tidegate/v1/leader",
        "/tidegate/v1//leader",
        "/tidegate/v1/leader/",
        "/tidegate/v1/Leader",
        "/tidegate/v1/audit/2026-11-24T00:00:00Z-0000000a",
        "/tidegate/v1/audit/2026-11-24T00:00:00.125Z-a",
        "/tidegate/v1/audit/0000000a",
        "/tidegate/v1/limits",
        "/tidegate/v1/limits/p",
        "/tidegate/v1/limits/p/",
        "/tidegate/v1/limits/p/t/",
        "/tidegate/v1/limits/p/t/u",
        "/tidegate/v1/limits/P/t",
        "/tidegate/v1/limits//t",
        "/tidegate/v1/pulse/",
        "/tidegate/v1/pulse/p/t",
        "/tidegate/v1/members/",
        "/tidegate/v1/members/a b",
        "/tidegate/v1/members/a/b",
        "/tidegate/v1/policy/",
        "/tidegate/v1/policy/A",
        "/tidegate/v1/policy/a/b",
        "/tidegate/v1/state/p/t",
        // A target that a grant cannot have.
        "/tidegate/v1/limits/p/*",
        "/tidegate/v1/limits/p/@capacity",
        "/tidegate/v1/overrides/p/@other",
    ];
    for key in foreign {
        assert_eq!(keys.parse(key), None, "{key}");
    }
    // One name, one key: other spellings of "a b", "é", "a", and what is no name at all.
    for segment in ["a b", "a+b/", "%c3%a9", "é", "%61", "%4", "%", "%zz", "a%20b%", "%FF", "%00", "%0A", "@Default"] {
        assert_eq!(keys.parse(&format!("/tidegate/v1/limits/p/{segment}")), None, "{segment}");
        let error = segment.parse::<Grantee>().expect_err(segment);
        refused(&error, &["tenant ", "expected"], segment);
    }
}

#[test]
fn names_out_of_shape_are_refused_with_the_allowed_shape() {
    for bad in ["", "A", "-a", ".a", "_a", "a b", "a/b", "é", "@default", &"a".repeat(65)] {
        let error = bad.parse::<tidegate::quota::PoolId>().expect_err(bad);
        refused(&error, &["pool id", "1–64 of a–z, 0–9"], bad);
    }
    for bad in ["", "a\nb", "\u{7f}", &"a".repeat(129)] {
        let error = bad.parse::<tidegate::quota::TenantId>().expect_err(bad);
        refused(&error, &["tenant id", "1–128 bytes without control characters"], bad);
    }
    for bad in ["", "/", "tidegate", "/tidegate/", "/tide gate", "/é"] {
        refused(&Keyspace::new(bad).expect_err(bad), &["key prefix", "absolute path"], bad);
    }
}

// === order ===

#[test]
fn stamps_order_by_term_then_epoch() {
    let stamp = |term, epoch| Stamp { term, epoch };
    let ordered = [stamp(0, 0), stamp(0, 9), stamp(6, 1_000_000), stamp(7, 1), stamp(7, 2), stamp(8, 1)];
    assert!(ordered.is_sorted_by(|a, b| a < b));
    assert_eq!(Stamp::default(), stamp(0, 0));
}

#[test]
fn a_pulses_scale_is_for_grants_older_than_the_cut() {
    let pulse = Pulse::parse(&golden("pulse_scaled")).unwrap();
    let scale = |term, epoch, meter| pulse.scale_for(Stamp { term, epoch }, meter);
    assert_eq!(scale(7, 1843, RPM), 0.5);
    assert_eq!(scale(6, 99_999, RPM), 0.5, "a former leader's grant is older");
    assert_eq!(scale(7, 1844, RPM), 1.0, "decided with the cut");
    assert_eq!(scale(7, 1845, RPM), 1.0);
    assert_eq!(scale(8, 1, RPM), 1.0, "a later leader's grant is newer");
    assert_eq!(scale(7, 1843, TPM), 1.0, "a meter that was not cut");
    let steady = Pulse::parse(&golden("pulse")).unwrap();
    assert_eq!(steady.scale_for(Stamp::default(), RPM), 1.0);
}

#[test]
fn a_grant_differs_when_any_of_its_numbers_moved() {
    let grant = Grant::parse(&golden("grant")).unwrap();
    assert!(!grant.differs_from(&grant, 0.0));
    let changed = |change: fn(&mut Grant)| {
        let mut other = grant.clone();
        change(&mut other);
        grant.differs_from(&other, 0.02)
    };
    assert!(!changed(|g| g.stamp.epoch += 1));
    assert!(!changed(|g| g.reason.text.clear()));
    assert!(!changed(|g| g.thresholds.rates.get_mut(&RPM).unwrap().rate = 121.0), "within tolerance");
    assert!(changed(|g| g.thresholds.rates.get_mut(&RPM).unwrap().rate = 130.0));
    assert!(changed(|g| g.thresholds.rates.get_mut(&RPM).unwrap().burst = 1.0));
    assert!(changed(|g| {
        g.thresholds.rates.remove(&TPM);
    }));
    assert!(changed(|g| g.thresholds.concurrency = None));
    assert!(changed(|g| g.safe.rates.get_mut(&RPM).unwrap().rate = 10.0));
    assert!(changed(|g| g.members = 5));
    assert!(changed(|g| {
        g.algorithms.insert(RPM, Algorithm::FixedWindow);
    }));
}

// === overrides written from code ===

#[test]
fn an_override_written_from_code_is_what_an_operator_would_have_put() {
    let acme: Target = "acme".parse::<TenantId>().expect("valid").into();
    let action = || Action::Set([(RPM, 60.0.into())].into());
    let end = UnixMillis(1_795_478_400_000 - 5_000) + Duration::from_secs(5);
    let record = Override::new(action()).by("mori").because("incident 42").until(end);
    let text =
        r#"{"set":{"requests/minute":60.0},"by":"mori","reason":"incident 42","expires_at":"2026-11-24T00:00:00Z"}"#;
    assert_eq!(String::from_utf8(record.to_json(&acme).expect("valid")).expect("text"), text);
    assert_eq!(Override::parse(text.as_bytes(), &acme), Ok(record));
    assert_eq!(Override::new(action()).until(UnixMillis(u64::MAX)).expires_at, None);

    for (action, target, part) in [
        (Action::Scale(11.0), &acme, "scale is 11: expected 0 to 10"),
        (Action::Scale(f64::NAN), &acme, "expected exactly one of set"),
        (Action::Set([(RPM, (-1.0).into())].into()), &acme, "set requests/minute is -1"),
        (Action::Floor(BTreeMap::new()), &acme, "floor: expected at least one meter"),
        (Action::Block, &Target::Capacity, "@capacity: expected set or scale"),
    ] {
        let error = Override::new(action).to_json(target).expect_err(part);
        assert!(error.to_string().contains(part), "{part:?} in {error}");
    }
}

// === overrides applied ===

fn parsed(text: &str) -> Override {
    Override::parse(text.as_bytes(), &Target::Every).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn base() -> Thresholds {
    Thresholds { rates: [(RPM, rate(120.0, 12.0)), (TPM, rate(40_000.0, 8_000.0))].into(), concurrency: Some(8) }
}

fn apply(star: &str, own: &str) -> Effective {
    let read = |text: &str| (!text.is_empty()).then(|| parsed(text));
    effective(&base(), read(star).as_ref(), read(own).as_ref())
}

#[test]
fn overrides_apply_as_the_table_says() {
    let rpm = |n: &str| format!("\"requests/minute\":{n}");
    let set = |n: &str| format!("{{\"set\":{{{}}}}}", rpm(n));
    let floor = |n: &str| format!("{{\"floor\":{{{}}}}}", rpm(n));
    let ceiling = |n: &str| format!("{{\"ceiling\":{{{}}}}}", rpm(n));
    let none = String::new;
    let table = [
        // (star, own, requests/minute, tokens/minute)
        (none(), none(), (120.0, 12.0), (40_000.0, 8_000.0)),
        (set("60"), none(), (60.0, 6.0), (40_000.0, 8_000.0)),
        (none(), set("60"), (60.0, 6.0), (40_000.0, 8_000.0)),
        // The tenant's own replaces *'s, per meter.
        (set("60"), set("90"), (90.0, 9.0), (40_000.0, 8_000.0)),
        (ceiling("10"), set("90"), (90.0, 9.0), (40_000.0, 8_000.0)),
        (r#"{"set":{"tokens/minute":1000}}"#.into(), set("90"), (90.0, 9.0), (1_000.0, 200.0)),
        (r#"{"scale":0.5}"#.into(), set("90"), (90.0, 9.0), (20_000.0, 4_000.0)),
        (set("60"), r#"{"scale":0.5}"#.into(), (60.0, 6.0), (20_000.0, 4_000.0)),
        // A number keeps the burst's ratio, the burst at least 1; a whole rate is taken as it is.
        (none(), set("5"), (5.0, 1.0), (40_000.0, 8_000.0)),
        (none(), set("0"), (0.0, 1.0), (40_000.0, 8_000.0)),
        (none(), set(r#"{"rate":5,"burst":0.5}"#), (5.0, 0.5), (40_000.0, 8_000.0)),
        (none(), r#"{"scale":0}"#.into(), (0.0, 0.0), (0.0, 0.0)),
        (none(), r#"{"scale":1}"#.into(), (120.0, 12.0), (40_000.0, 8_000.0)),
        (none(), r#"{"scale":10}"#.into(), (1_200.0, 120.0), (400_000.0, 80_000.0)),
        (none(), floor("60"), (120.0, 12.0), (40_000.0, 8_000.0)),
        (none(), floor("240"), (240.0, 24.0), (40_000.0, 8_000.0)),
        (none(), floor(r#"{"rate":60,"burst":20}"#), (120.0, 20.0), (40_000.0, 8_000.0)),
        (none(), floor(r#"{"rate":240,"burst":1}"#), (240.0, 12.0), (40_000.0, 8_000.0)),
        (none(), ceiling("240"), (120.0, 12.0), (40_000.0, 8_000.0)),
        (none(), ceiling("60"), (60.0, 6.0), (40_000.0, 8_000.0)),
        (none(), ceiling(r#"{"rate":240,"burst":3}"#), (120.0, 3.0), (40_000.0, 8_000.0)),
        (none(), ceiling(r#"{"rate":60,"burst":50}"#), (60.0, 12.0), (40_000.0, 8_000.0)),
        (none(), r#"{"freeze":true}"#.into(), (120.0, 12.0), (40_000.0, 8_000.0)),
        (set("60"), r#"{"freeze":true}"#.into(), (60.0, 6.0), (40_000.0, 8_000.0)),
    ];
    for (star, own, (rpm_rate, rpm_burst), (tpm_rate, tpm_burst)) in table {
        let result = apply(&star, &own);
        let what = format!("star {star} own {own}");
        assert_eq!(result.thresholds.rates[&RPM], rate(rpm_rate, rpm_burst), "{what}");
        assert_eq!(result.thresholds.rates[&TPM], rate(tpm_rate, tpm_burst), "{what}");
        assert_eq!(result.thresholds.concurrency, Some(8), "{what}");
        assert!(!result.blocked, "{what}");
    }
}

#[test]
fn block_and_freeze_win_at_either_level() {
    let (block, freeze, set) = (r#"{"block":true}"#, r#"{"freeze":true}"#, r#"{"set":{"requests/minute":60}}"#);
    let table = [
        ("", "", false, false),
        (set, set, false, false),
        (block, "", true, false),
        ("", block, true, false),
        (block, set, true, false),
        (set, block, true, false),
        (freeze, "", false, true),
        ("", freeze, false, true),
        (freeze, set, false, true),
        (block, freeze, true, true),
        (freeze, block, true, true),
    ];
    for (star, own, blocked, frozen) in table {
        let result = apply(star, own);
        assert_eq!((result.blocked, result.frozen), (blocked, frozen), "star {star} own {own}");
    }
}

#[test]
fn an_override_may_name_a_meter_that_the_base_has_not() {
    let day = Meter { unit: Unit::Tokens, window: Window::Day };
    let of = |own: &str| apply("", own).thresholds.rates.get(&day).copied();
    // Without a ratio to keep, the burst is a window's rate: with a burst of 1 every request of tokens would be refused.
    assert_eq!(of(r#"{"set":{"tokens/day":1000}}"#), Some(rate(1_000.0, 1_000.0)));
    assert_eq!(of(r#"{"ceiling":{"tokens/day":1000}}"#), Some(rate(1_000.0, 1_000.0)));
    assert_eq!(of(r#"{"ceiling":{"tokens/day":{"rate":1000,"burst":100}}}"#), Some(rate(1_000.0, 100.0)));
    assert_eq!(of(r#"{"floor":{"tokens/day":1000}}"#), None, "no limit is above any floor");
    assert_eq!(of(r#"{"scale":0.5}"#), None);
}

#[test]
fn capacity_overrides_take_the_smaller_of_one_and_their_part() {
    let factor = |text: &str, capacity: Option<f64>| capacity_factor(Some(&parsed(text)), capacity, RPM);
    assert_eq!(capacity_factor(None, Some(600.0), RPM), 1.0);
    assert_eq!(factor(r#"{"scale":0.25}"#, None), 0.25);
    assert_eq!(factor(r#"{"scale":4}"#, None), 1.0, "an override of capacity never opens members up");
    let set = r#"{"set":{"requests/minute":60}}"#;
    assert_eq!(factor(set, Some(600.0)), 0.1);
    assert_eq!(factor(set, Some(30.0)), 1.0);
    assert_eq!(factor(set, Some(0.0)), 1.0);
    assert_eq!(factor(set, None), 1.0, "no pulse, nothing to measure against");
    assert_eq!(factor(r#"{"set":{"requests/minute":0}}"#, Some(600.0)), 0.0);
    assert_eq!(factor(r#"{"set":{"requests/minute":{"rate":300,"burst":1}}}"#, Some(600.0)), 0.5);
    assert_eq!(factor(r#"{"set":{"tokens/minute":1}}"#, Some(600.0)), 1.0, "another meter's");
}

#[test]
fn an_override_ends_by_the_readers_clock() {
    let record = parsed(r#"{"block":true,"expires_at":"2026-11-24T00:00:00Z"}"#);
    let end = 1_795_478_400_000;
    assert!(!record.expired(UnixMillis(end - 1)));
    assert!(record.expired(UnixMillis(end)));
    assert!(!parsed(r#"{"block":true}"#).expired(UnixMillis(u64::MAX)));
    assert!(parsed(r#"{"block":true,"expires_at":"1960-01-01T00:00:00Z"}"#).expired(UnixMillis(0)));
}

#[test]
fn scaled_thresholds_keep_one_request_in_flight() {
    let scaled = |n, factor| Thresholds { concurrency: Some(n), ..Thresholds::default() }.scaled(factor).concurrency;
    assert_eq!(scaled(8, 0.5), Some(4));
    assert_eq!(scaled(3, 0.5), Some(1));
    assert_eq!(scaled(1, 0.1), Some(1));
    assert_eq!(scaled(8, 0.0), Some(0));
    assert_eq!(scaled(0, 0.5), Some(0));
}

fn rates() -> impl Strategy<Value = Rate> {
    (0.0..1e6_f64, 0.0..1e5_f64).prop_map(|(rate, burst)| Rate { rate, burst })
}

fn thresholds() -> impl Strategy<Value = Thresholds> {
    let meters = prop::sample::subsequence(vec![RPM, TPM, Meter { unit: Unit::Tokens, window: Window::Day }], 0..=3);
    meters.prop_flat_map(|meters| {
        let n = meters.len();
        prop::collection::vec(rates(), n)
            .prop_map(move |rates| Thresholds { rates: meters.iter().copied().zip(rates).collect(), concurrency: None })
    })
}

fn overrides() -> impl Strategy<Value = Option<Override>> {
    let amount = || {
        prop_oneof![
            (0.0..1e6_f64).prop_map(|n| json!(n)),
            rates().prop_map(|r| json!({"rate": r.rate, "burst": r.burst}))
        ]
    };
    let named = |name: &'static str| amount().prop_map(move |n| json!({name: {"requests/minute": n}}));
    prop_oneof![
        Just(Value::Null),
        (0.0..=10.0_f64).prop_map(|n| json!({"scale": n})),
        Just(json!({"freeze": true})),
        Just(json!({"block": true})),
        named("set"),
        named("floor"),
        named("ceiling"),
    ]
    .prop_map(|value| (!value.is_null()).then(|| parsed(&value.to_string())))
}

proptest! {
    #[test]
    fn ceilings_floors_and_blocks_hold_whatever_else_is_there(
        base in thresholds(), star in overrides(), own in overrides(),
    ) {
        let result = effective(&base, star.as_ref(), own.as_ref());
        let blocks = [&star, &own].into_iter().flatten().any(|o| o.action == Action::Block);
        prop_assert_eq!(result.blocked, blocks);
        let names = |o: &Option<Override>| {
            o.as_ref().is_some_and(|o| !matches!(o.action, Action::Freeze | Action::Block))
        };
        let ruling = if names(&own) { &own } else { &star };
        let got = result.thresholds.rates.get(&RPM);
        match ruling.as_ref().map(|o| &o.action) {
            Some(Action::Ceiling(map)) => {
                let got = got.expect("a ceiling limits even what was not limited");
                prop_assert!(got.rate <= map[&RPM].rate());
                prop_assert!(got.burst <= map[&RPM].resolve(base.rates.get(&RPM).copied()).burst.max(
                    base.rates.get(&RPM).map_or(0.0, |base| base.burst)));
                if let Some(base) = base.rates.get(&RPM) {
                    prop_assert!(got.rate <= base.rate);
                }
            }
            Some(Action::Floor(map)) => match (got, base.rates.get(&RPM)) {
                (Some(got), Some(base)) => prop_assert!(got.rate >= map[&RPM].rate() && got.rate >= base.rate),
                (got, base) => prop_assert!(got.is_none() && base.is_none()),
            },
            Some(Action::Set(map)) => prop_assert_eq!(got.map(|got| got.rate), Some(map[&RPM].rate())),
            _ => {}
        }
        for rate in result.thresholds.rates.values() {
            prop_assert!(rate.rate.is_finite() && rate.burst.is_finite() && rate.rate >= 0.0 && rate.burst >= 0.0);
        }
    }

    #[test]
    fn any_tenant_has_one_key(name in "\\PC{1,32}") {
        prop_assume!(name.len() <= 128);
        let keys = Keyspace::default();
        let key = Key::Limits("p".parse().unwrap(), Grantee::Tenant(name.parse().unwrap()));
        prop_assert_eq!(keys.parse(&keys.key(&key)), Some(key));
    }

    #[test]
    fn any_bytes_are_a_record_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        let _ = Grant::parse(&bytes);
        let _ = Pulse::parse(&bytes);
        let _ = Report::parse(&bytes);
        let _ = Override::parse(&bytes, &Target::Capacity);
        let _ = Keyspace::default().parse(&String::from_utf8_lossy(&bytes));
    }
}
