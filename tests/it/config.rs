//! The configuration file: the shipped one loads, and each mistake is named by line and key.

use std::path::Path;

use tidegate::config::{Config, ConfigError};
use tidegate::plan::Rate;
use tidegate::provider::Dialect;
use tidegate::quota::Meter;

/// A good pool, on lines 1–3; mistakes in tests begin below it.
const POOL: &str = "[pools.a]\ndialect = \"openai\"\ncapacity = { \"requests/minute\" = 600 }\n";

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse("t.toml", text)
}

/// The lines of the error that `text` gives.
#[track_caller]
fn mistakes(text: &str) -> Vec<String> {
    parse(text).expect_err("has mistakes").to_string().lines().map(str::to_owned).collect()
}

/// The one mistake of a good pool followed by `text`, which begins on line 4.
#[track_caller]
fn after_pool(text: &str) -> String {
    let mistakes = mistakes(&format!("{POOL}{text}"));
    assert_eq!(mistakes.len(), 1, "{mistakes:#?}");
    mistakes.concat()
}

#[test]
fn a_concurrency_below_one_for_each_tenant_is_a_mistake() {
    let text = "[pools.p]\ndialect = \"openai\"\nconcurrency = 2\n[pools.p.capacity]\n\"requests/minute\" = 60\n\
                [pools.p.tenants.a]\n[pools.p.tenants.b]\n";
    let error = Config::parse("t.toml", text).expect_err("three share two places").to_string();
    assert!(
        error.contains(
            "t.toml:3: pools.p.concurrency: found 2, expected at least 3 (one for each tenant and one for the default)"
        ),
        "{error}"
    );
}

#[test]
fn the_shipped_file_loads_and_says_what_it_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/tidegate.toml");
    let config = Config::load(&path).expect("loads as it is");
    assert_eq!(config.controller.listen.to_string(), "127.0.0.1:7676");
    assert_eq!(config.controller.advertise_url, None);
    assert!(!config.controller.name.is_empty());
    assert_eq!(config.etcd, None);
    let pool = &config.controller.pools[0];
    assert_eq!((pool.id.as_str(), pool.dialect, pool.concurrency), ("openai-gpt4o", Dialect::OpenAi, Some(64)));
    assert_eq!(pool.capacity[&Meter::REQUESTS_PER_MINUTE], Rate { rate: 600.0, burst: 30.0 });
    assert_eq!(pool.capacity[&Meter::TOKENS_PER_MINUTE], Rate { rate: 150_000.0, burst: 30_000.0 });
    let acme = &pool.tenants["acme"];
    assert_eq!((acme.weight, acme.floor[&Meter::REQUESTS_PER_MINUTE]), (3.0, 60.0));
    assert_eq!(acme.ceiling[&Meter::TOKENS_PER_MINUTE], 120_000.0);
    assert_eq!(pool.default_tenant.weight, 0.5);
}

#[test]
fn the_shipped_file_loads_with_every_key_that_it_comments_out() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/tidegate.toml");
    let text = std::fs::read_to_string(path).expect("is there");
    let keys = ["# name =", "# advertise_url =", "# [etcd]", "# endpoints ="];
    assert!(keys.iter().all(|key| text.contains(key)));
    let text = keys.iter().fold(text, |text, key| text.replace(key, &key[2..]));
    let config = parse(&text).expect("loads");
    assert_eq!(config.controller.name, "controller-a");
    assert_eq!(config.controller.advertise_url.as_deref(), Some("http://127.0.0.1:7676"));
    assert_eq!(config.etcd.expect("has a table").endpoints, ["http://127.0.0.1:2379"]);
}

#[test]
fn a_burst_not_given_is_what_the_rate_gives_in_3_seconds_at_least_1() {
    let text = POOL.replace("= 600", "= { rate = 600 }, \"tokens/day\" = 10, \"requests/second\" = 1.5");
    let capacity = parse(&text).expect("good").controller.pools.remove(0).capacity;
    let bursts: Vec<_> = capacity.iter().map(|(meter, rate)| (meter.to_string(), rate.burst)).collect();
    let expected = [("requests/second", 4.5), ("requests/minute", 30.0), ("tokens/day", 1.0)];
    assert_eq!(bursts, expected.map(|(meter, burst)| (meter.to_owned(), burst)));
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let error = Config::load(Path::new("no/such.toml")).expect_err("missing");
    assert_eq!(error.to_string(), "no/such.toml: cannot be read: No such file or directory (os error 2)");
}

#[test]
fn a_file_without_pools_is_refused() {
    let expected = ["t.toml:1: no pools; expected at least one table [pools.<id>] with a dialect and a capacity"];
    assert_eq!(mistakes(""), expected);
    let expected = "t.toml:1: pools: no pools; expected at least one table [pools.<id>] with a dialect and a capacity";
    assert_eq!(mistakes("[pools]"), [expected]);
}

#[test]
fn text_that_is_no_toml_is_refused_at_its_line() {
    assert_eq!(after_pool("[etcd\n"), "t.toml:4: not TOML: unclosed table, expected `]`");
    assert_eq!(after_pool("[pools.a]\n"), "t.toml:4: not TOML: duplicate key");
}

#[test]
fn an_unknown_key_is_named_with_its_nearest_neighbour() {
    assert_eq!(
        after_pool("[pools.a.tenants.acme]\nwieght = 3\n"),
        "t.toml:5: pools.a.tenants.acme.wieght: unknown key; did you mean \"weight\"? Allowed: ceiling, floor, weight"
    );
    assert_eq!(after_pool("[metrics]\n"), "t.toml:4: metrics: unknown key; allowed: controller, etcd, keys, pools");
}

#[test]
fn numbers_out_of_range_are_refused_with_the_range() {
    assert_eq!(
        after_pool("[pools.a.default]\nweight = -1\n"),
        "t.toml:5: pools.a.default.weight: found -1, expected a number from 0.001 to 1000"
    );
    assert_eq!(
        after_pool("[pools.a.default]\nweight = nan\n"),
        "t.toml:5: pools.a.default.weight: found nan, expected a number from 0.001 to 1000"
    );
    assert_eq!(
        mistakes(&POOL.replace("dialect", "concurrency = 0\ndialect")),
        ["t.toml:2: pools.a.concurrency: found 0, expected a whole number from 1 to 1000000 (calls in flight)"]
    );
    assert_eq!(
        mistakes(&POOL.replace("600", "{ rate = inf, burst = 0.5 }")),
        [
            "t.toml:3: pools.a.capacity.\"requests/minute\".burst: found 0.5, expected a number from 1 to 1e12 (units)",
            "t.toml:3: pools.a.capacity.\"requests/minute\".rate: found inf, expected a number from 0.001 to 1e12 \
             (units per window)",
        ]
    );
}

#[test]
fn values_of_another_type_are_refused_as_written() {
    assert_eq!(
        mistakes(&POOL.replace("600", "\"many\"")),
        ["t.toml:3: pools.a.capacity.\"requests/minute\": found \"many\", expected a number from 0.001 to 1e12 \
          (units per window), or { rate, burst }"]
    );
    assert_eq!(after_pool("[pools]\nb = 5\n"), "t.toml:5: pools.b: found 5, expected a table");
}

#[test]
fn an_unknown_dialect_is_refused_with_those_there_are() {
    let found = mistakes(&POOL.replace("\"openai\"", "\"opnai\"")).concat();
    assert!(found.starts_with("t.toml:2: pools.a.dialect: found \"opnai\", expected "), "{found}");
    assert!(found.contains("`openai`"), "{found}");
}

#[test]
fn a_pool_without_dialect_or_capacity_is_refused() {
    assert_eq!(
        mistakes("\n[pools.a]\n"),
        [
            "t.toml:2: pools.a: \"capacity\" is missing; expected meters, such as capacity = { \"requests/minute\" = 600 }",
            "t.toml:2: pools.a: \"dialect\" is missing; expected how the provider writes its limits, such as \
             dialect = \"openai\"",
        ]
    );
    let empty = "[pools.a]\ndialect = \"openai\"\ncapacity = {}\n";
    let expected = "t.toml:3: pools.a.capacity: no meters; expected at least one, such as \"requests/minute\" = 600";
    assert_eq!(mistakes(empty), [expected]);
}

#[test]
fn a_meter_that_is_none_is_refused_with_the_way_to_write_one() {
    assert_eq!(
        mistakes(&POOL.replace("requests/minute", "rpm")),
        ["t.toml:3: pools.a.capacity.rpm: meter \"rpm\": expected <unit>/<window> with unit requests, tokens, \
          input_tokens or output_tokens and window second, minute, hour, day, month or <n>s, for example \
          \"requests/minute\""]
    );
    assert_eq!(
        mistakes(&POOL.replace("\"requests/minute\"", "concurrency")),
        ["t.toml:3: pools.a.capacity.concurrency: concurrency is no meter; expected it as a key of the pool itself"]
    );
    assert_eq!(
        mistakes(&POOL.replace("= 600", "= 600, \"requests/60s\" = 600")),
        ["t.toml:3: pools.a.capacity.\"requests/60s\": the meter requests/minute is given twice"]
    );
}

#[test]
fn floors_and_ceilings_are_of_the_pools_meters_and_do_not_cross() {
    assert_eq!(
        after_pool("[pools.a.tenants.acme]\nceiling = { \"tokens/minute\" = 5 }\n"),
        "t.toml:5: pools.a.tenants.acme.ceiling.\"tokens/minute\": the pool's capacity has no such meter; expected one \
         of: requests/minute"
    );
    assert_eq!(
        after_pool("[pools.a.default]\nfloor = { \"requests/minute\" = 9 }\nceiling = { \"requests/minute\" = 8.5 }\n"),
        "t.toml:5: pools.a.default.floor.\"requests/minute\": found 9, expected at most the ceiling, 8.5"
    );
}

#[test]
fn names_that_are_not_allowed_are_refused() {
    let rule = "expected 1–64 of a–z, 0–9, '.', '_', '-', beginning with a letter or digit";
    assert_eq!(
        mistakes(&POOL.replace("pools.a", "pools.GPT")),
        [format!("t.toml:1: pools.GPT: pool id \"GPT\": {rule}")]
    );
    assert_eq!(
        after_pool("[pools.a.tenants.\"\"]\n"),
        "t.toml:4: pools.a.tenants.\"\": tenant id \"\": expected 1–128 bytes without control characters"
    );
}

#[test]
fn listening_off_loopback_is_refused_with_the_reason() {
    assert_eq!(
        after_pool("[controller]\nlisten = \"0.0.0.0:7676\"\n"),
        "t.toml:5: controller.listen: found \"0.0.0.0:7676\", expected a loopback address: reports are not authenticated \
         yet, so whoever reaches this port could steer the limits"
    );
    assert_eq!(
        after_pool("[controller]\nlisten = \"localhost\"\n"),
        "t.toml:5: controller.listen: found \"localhost\", expected an address and port, such as \"127.0.0.1:7676\""
    );
    assert!(parse(&format!("{POOL}[controller]\nlisten = \"[::1]:0\"\n")).is_ok());
}

#[test]
fn urls_and_prefixes_are_checked() {
    let expected = "expected an http:// or https:// URL, such as \"http://10.0.0.5:7676\"";
    let found = after_pool("[controller]\nadvertise_url = \"10.0.0.5\"\n");
    assert_eq!(found, format!("t.toml:5: controller.advertise_url: found \"10.0.0.5\", {expected}"));
    assert_eq!(
        after_pool("[keys]\nprefix = \"tidegate/\"\n"),
        "t.toml:5: keys.prefix: found \"tidegate/\", expected an absolute path of 2–128 printable ASCII characters without \
         a trailing slash, such as \"/tidegate/v1\""
    );
    let expected = "expected an http:// URL of host and port, such as \"http://127.0.0.1:2379\" (no TLS in this build)";
    assert_eq!(
        mistakes(&format!(
            "{POOL}[etcd]\nendpoints = [\n  \"http://127.0.0.1:2379\",\n  \"https://b:2379\",\n  7,\n]\n"
        )),
        [
            format!("t.toml:7: etcd.endpoints: found \"https://b:2379\", {expected}"),
            format!("t.toml:8: etcd.endpoints: found 7, {expected}"),
        ]
    );
    let expected = "a list of URLs, such as [\"http://127.0.0.1:2379\"]";
    assert_eq!(after_pool("[etcd]\n"), format!("t.toml:4: etcd: \"endpoints\" is missing; expected {expected}"));
    let found = after_pool("[etcd]\nendpoints = []\n");
    assert_eq!(found, format!("t.toml:5: etcd.endpoints: found [], expected {expected}"));
}

#[test]
fn all_mistakes_are_found_at_once_in_the_order_of_the_file() {
    let text =
        "[pools.A]\ndialect = 1\nconcurency = 2\n[pools.A.capacity]\n\"requests/minute\" = 0\n[etcd]\nendpoint = 3\n";
    let mistakes = mistakes(text);
    let lines: Vec<&str> = mistakes.iter().map(|line| line.split(": ").next().expect("has one")).collect();
    assert_eq!(lines, ["t.toml:1", "t.toml:2", "t.toml:3", "t.toml:5", "t.toml:6", "t.toml:7"], "{mistakes:#?}");
}

#[test]
fn a_long_value_is_quoted_in_part() {
    let found = after_pool(&format!("[keys]\nprefix = \"{}\"\n", "x".repeat(500)));
    assert!(found.contains(&format!("found \"{}…, expected", "x".repeat(59))), "{found}");
}
