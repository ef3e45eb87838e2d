//! The configuration file: the shipped one loads, and each mistake is named by line and key.

use std::path::Path;

use tidegate::config::{Config, Mistakes, reference};
use tidegate::controller::TenantParams;
use tidegate::plan::Rate;
use tidegate::plan::keyspace::Keyspace;
use tidegate::provider::Dialect;
use tidegate::quota::Meter;

/// A good pool, on lines 1–3; mistakes in tests begin below it.
const POOL: &str = "[pools.a]\ndialect = \"openai\"\ncapacity = { \"requests/minute\" = 600 }\n";

fn parse(text: &str) -> Result<Config, Mistakes> {
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
            "t.toml:3:15: pools.p.concurrency: found 2, expected at least 3 (one for each tenant and one for the default)"
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
fn the_shipped_file_loads_with_the_table_that_it_comments_out() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/tidegate.toml");
    let text = std::fs::read_to_string(path).expect("is there");
    let keys = ["# [etcd]", "# endpoints ="];
    assert!(keys.iter().all(|key| text.contains(key)));
    let text = keys.iter().fold(text, |text, key| text.replace(key, &key[2..]));
    assert_eq!(parse(&text).expect("loads").etcd.expect("has a table").endpoints, ["http://127.0.0.1:2379"]);
}

/// The reader refuses a key that it does not ask for, so every key of the table is one that it reads.
#[test]
fn the_reference_loads_and_each_of_its_values_is_read() {
    let config = parse(&reference()).expect("loads as it is");
    assert_eq!(config.warnings, Mistakes::default());
    assert_eq!(config.controller.name, "controller-a");
    assert_eq!(config.controller.listen.to_string(), "127.0.0.1:7676");
    assert_eq!(config.controller.advertise_url.as_deref(), Some("https://127.0.0.1:7676"));
    assert_eq!(config.controller.keyspace, Keyspace::default());
    assert_eq!(config.etcd.expect("has a table").endpoints, ["https://127.0.0.1:2379"]);
    let pool = &config.controller.pools[0];
    assert_eq!((pool.id.as_str(), pool.dialect, pool.concurrency), ("openai-gpt4o", Dialect::OpenAi, Some(64)));
    assert_eq!(pool.capacity[&Meter::TOKENS_PER_MINUTE], Rate { rate: 150_000.0, burst: 30_000.0 });
    for tenant in [&pool.tenants["acme"], &pool.default_tenant] {
        assert_eq!((tenant.weight, tenant.floor[&Meter::REQUESTS_PER_MINUTE]), (3.0, 60.0));
        assert_eq!(tenant.ceiling[&Meter::REQUESTS_PER_MINUTE], 400.0);
    }
}

#[test]
fn an_absent_key_means_its_default() {
    let config = parse(POOL).expect("good");
    assert_eq!(config.controller.listen.to_string(), "127.0.0.1:7676");
    assert_eq!(config.controller.keyspace, Keyspace::default());
    assert!(!config.controller.name.is_empty());
    assert_eq!((config.controller.advertise_url, config.etcd), (None, None));
    let pool = &config.controller.pools[0];
    assert_eq!((pool.concurrency, pool.tenants.len()), (None, 0));
    assert_eq!(pool.default_tenant, TenantParams::default());
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
    let expected = "expected at least one table [pools.<id>] with a dialect and a capacity";
    let example = "pools = { openai = { dialect = \"openai\", capacity = { \"requests/minute\" = 600 } } }";
    assert_eq!(mistakes(""), [format!("t.toml:1:1: \"pools\" is missing, {expected}, such as {example}")]);
    assert_eq!(mistakes("[pools]"), [format!("t.toml:1:1: pools: found [pools], {expected}")]);
}

#[test]
fn text_that_is_no_toml_is_refused_at_each_line() {
    assert_eq!(after_pool("[etcd\n"), "t.toml:4:6: not TOML: found [etcd: unclosed table, expected `]`");
    assert_eq!(after_pool("[pools.a]\n"), "t.toml:4:8: not TOML: found [pools.a]: duplicate key");
    assert_eq!(
        mistakes("listen = localhost\nrequests/minute = 5\nname =\n"),
        [
            "t.toml:1:10: not TOML: found listen = localhost: string values must be quoted, expected quotes, a number, \
             true, false, [ or {",
            "t.toml:2:9: not TOML: found requests/minute = 5: invalid unquoted key, expected letters, digits, - and _, \
             or quotes, such as \"requests/minute\"",
            "t.toml:3:7: not TOML: found name =: no value, expected one after the =",
        ]
    );
}

#[test]
fn an_unknown_key_is_named_with_its_nearest_neighbour() {
    assert_eq!(
        after_pool("[pools.a.tenants.acme]\nwieght = 3\n"),
        "t.toml:5:1: pools.a.tenants.acme.wieght: unknown key, expected weight, priority, floor or ceiling; did you mean \
         \"weight\"?"
    );
    assert_eq!(
        after_pool("[grafana]\n"),
        "t.toml:4:2: grafana: unknown key, expected controller, keys, etcd, prometheus or pools"
    );
}

#[test]
fn a_key_in_the_wrong_table_is_told_where_it_belongs() {
    let unknown = "unknown key, expected dialect, mode, concurrency, capacity, tenants or default";
    let found =
        mistakes(&POOL.replace("dialect", "weight = 2\nfloors = 3\n\"tokens/minute\" = 4\nlisten = 5\ndialect"));
    assert_eq!(
        found,
        [
            format!(
                "t.toml:2:1: pools.a.weight: {unknown}; \"weight\" belongs in [pools.<id>.tenants.<name>] or \
                 [pools.<id>.default]"
            ),
            format!(
                "t.toml:3:1: pools.a.floors: {unknown}; \"floor\" belongs in [pools.<id>.tenants.<name>] or \
                 [pools.<id>.default]"
            ),
            format!("t.toml:4:1: pools.a.\"tokens/minute\": {unknown}; a meter belongs in capacity"),
            format!("t.toml:5:1: pools.a.listen: {unknown}; \"listen\" belongs in [controller]"),
        ]
    );
    assert_eq!(
        mistakes("[pools]\ndialect = \"openai\"\n"),
        ["t.toml:2:11: pools.dialect: found \"openai\", expected a table; \"dialect\" belongs in [pools.<id>]"]
    );
}

#[test]
fn numbers_out_of_range_are_refused_with_the_range() {
    assert_eq!(
        after_pool("[pools.a.default]\nweight = -1\n"),
        "t.toml:5:10: pools.a.default.weight: found -1, expected a number from 0.001 to 1000"
    );
    assert_eq!(
        after_pool("[pools.a.default]\nweight = nan\n"),
        "t.toml:5:10: pools.a.default.weight: found nan, expected a number from 0.001 to 1000"
    );
    assert_eq!(
        mistakes(&POOL.replace("dialect", "concurrency = 0\ndialect")),
        ["t.toml:2:15: pools.a.concurrency: found 0, expected a whole number from 1 to 1000000 (calls in flight)"]
    );
    assert_eq!(
        mistakes(&POOL.replace("600", "{ rate = inf, burst = 0.5 }")),
        [
            "t.toml:3:43: pools.a.capacity.\"requests/minute\".rate: found inf, expected a number from 0.001 to 1e12 \
             (units per window)",
            "t.toml:3:56: pools.a.capacity.\"requests/minute\".burst: found 0.5, expected a number from 1 to 1e12 \
             (units)",
        ]
    );
}

#[test]
fn values_of_another_type_are_refused_as_written() {
    assert_eq!(
        mistakes(&POOL.replace("600", "\"many\"")),
        ["t.toml:3:34: pools.a.capacity.\"requests/minute\": found \"many\", expected a number from 0.001 to 1e12 \
          (units per window), or { rate, burst, algorithm, alignment, enforcement }"]
    );
    assert_eq!(after_pool("[pools]\nb = 5\n"), "t.toml:5:5: pools.b: found 5, expected a table");
    assert_eq!(
        after_pool("[pools.a.default]\nweight = \"2\"\n"),
        "t.toml:5:10: pools.a.default.weight: found \"2\", expected a number from 0.001 to 1000; did you mean 2?"
    );
}

#[test]
fn a_meter_counts_as_it_is_told() {
    let text = "[pools.a]\ndialect = \"openai\"\n[pools.a.capacity]\n\"requests/second\" = 5\n\
                \"requests/minute\" = { rate = 600, algorithm = \"token_bucket\" }\n\
                \"requests/hour\" = { rate = 1000, algorithm = \"sliding_log\" }\n\
                \"tokens/minute\" = { rate = 1e6, algorithm = \"sliding_window\" }\n\
                \"tokens/hour\" = { rate = 1e6, algorithm = \"fixed_window\" }\n\
                \"tokens/10s\" = { rate = 1e6, algorithm = \"fixed_window\", alignment = \"first_use\" }\n\
                \"tokens/month\" = { rate = 1e6, algorithm = \"fixed_window\", alignment = \"clock\" }\n\
                \"requests/day\" = { rate = 1e4, algorithm = \"fixed_window\", alignment = \"America/Los_Angeles\" }\n";
    let pool = parse(text).expect("good").controller.pools.remove(0);
    let algorithms: Vec<_> = pool.algorithms.iter().map(|(meter, how)| (meter.to_string(), how.as_str())).collect();
    let expected = [
        ("requests/hour", "sliding_log"),
        ("requests/day", "fixed_window"),
        ("tokens/10s", "fixed_window"),
        ("tokens/minute", "sliding_window"),
        ("tokens/hour", "fixed_window"),
        ("tokens/month", "fixed_window"),
    ];
    assert_eq!(algorithms, expected.map(|(meter, how)| (meter.to_owned(), how)));
    let zones: Vec<_> = pool.zones.iter().map(|(meter, zone)| (meter.to_string(), zone.iana_name())).collect();
    let expected = [("requests/day", Some("America/Los_Angeles")), ("tokens/month", Some("UTC"))];
    assert_eq!(zones, expected.map(|(meter, zone)| (meter.to_owned(), zone)));
}

#[test]
fn a_meter_is_counted_together_where_it_says_so() {
    let text = "[pools.a]\ndialect = \"openai\"\n[pools.a.capacity]\n\"requests/second\" = 5\n\
                \"requests/minute\" = { rate = 10, enforcement = \"shared\" }\n\
                \"requests/hour\" = { rate = 100, enforcement = \"local\" }\n\
                \"tokens/minute\" = { rate = 1e6, algorithm = \"sliding_window\", enforcement = \"shared\" }\n";
    let pool = parse(text).expect("good").controller.pools.remove(0);
    let shared: Vec<_> = pool.shared.iter().map(Meter::to_string).collect();
    assert_eq!(shared, ["requests/minute", "tokens/minute"]);
    let told = |table: &str| mistakes(&POOL.replace("600", &format!("{{ {table} }}")));
    let key = "pools.a.capacity.\"requests/minute\".enforcement";
    assert_eq!(
        told("rate = 6, enforcement = \"share\""),
        [format!("t.toml:3:60: {key}: found \"share\", expected \"local\" or \"shared\"; did you mean \"shared\"?")]
    );
    assert_eq!(
        told("rate = 6, enforcement = true"),
        [format!("t.toml:3:60: {key}: found true, expected \"local\" or \"shared\"")]
    );
    let lost = after_pool("[pools.a.default]\nenforcement = \"shared\"\n");
    assert!(lost.contains("\"enforcement\" belongs in [pools.<id>.capacity.<meter>]"), "{lost}");
}

#[test]
fn mistakes_in_how_a_meter_counts_are_told() {
    let told = |table: &str| mistakes(&POOL.replace("600", &format!("{{ {table} }}")));
    let key = "pools.a.capacity.\"requests/minute\"";
    assert_eq!(
        told("rate = 6, algorithm = \"fixed_windw\""),
        [format!(
            "t.toml:3:58: {key}.algorithm: found \"fixed_windw\", expected \"token_bucket\", \"fixed_window\", \
             \"sliding_window\" or \"sliding_log\"; did you mean \"fixed_window\"?"
        )]
    );
    for zone in ["America/Los_Angelos", "", "Etc/Unknown", "local", "UTC+1"] {
        let found = told(&format!("rate = 6, algorithm = \"fixed_window\", alignment = \"{zone}\""));
        let expected = "\"first_use\", \"clock\" or a time zone of the IANA database, such as \"America/Los_Angeles\"";
        assert_eq!(found, [format!("t.toml:3:86: {key}.alignment: found \"{zone}\", expected {expected}")]);
    }
    for (algorithm, column, written) in [("token_bucket", 58, ""), ("sliding_log", 85, ", algorithm = \"sliding_log\"")]
    {
        assert_eq!(
            told(&format!("rate = 6{written}, alignment = \"clock\"")),
            [format!(
                "t.toml:3:{column}: {key}.alignment: found \"clock\", expected no alignment for a {algorithm}: only a \
                 fixed_window has one"
            )]
        );
    }
    assert_eq!(
        told("rate = 1000.5, algorithm = \"sliding_log\""),
        [format!(
            "t.toml:3:43: {key}.rate: found 1000.5, expected at most 1000 (units per window) for a sliding_log, which \
             remembers each request"
        )]
    );
}

#[test]
fn an_unknown_dialect_is_refused_with_those_there_are() {
    assert_eq!(
        mistakes(&POOL.replace("\"openai\"", "\"opnai\"")),
        [
            "t.toml:2:11: pools.a.dialect: found \"opnai\", expected \"openai\", \"azure\", \"anthropic\" or another of the 30 that `tidegate schema --reference` lists, or { name, refill, reset_form, headers }; did you mean \
          \"openai\"?"
        ]
    );
    let found = mistakes(&POOL.replace("\"openai\"", "7")).concat();
    let several =
        format!("another of the {} that `tidegate schema --reference` lists, or {{ name,", Dialect::ALL.len());
    assert!(found.starts_with("t.toml:2:11: pools.a.dialect: found 7, expected \"openai\", "), "{found}");
    assert!(found.contains(&several), "{found}");
    for dialect in Dialect::ALL {
        assert!(tidegate::config::reference().contains(&format!("\"{dialect}\"")), "{dialect}");
    }
}

#[test]
fn a_pool_without_dialect_or_capacity_is_refused() {
    let meters = "at least one meter, for each a number from 0.001 to 1e12 (units per window), or { rate, burst, algorithm, alignment, enforcement }";
    assert_eq!(
        mistakes("\n[pools.a]\n"),
        [
            "t.toml:2:1: pools.a: \"dialect\" is missing, expected \"openai\", \"azure\", \"anthropic\" or another of the 30 that `tidegate schema --reference` lists, or { name, refill, reset_form, headers }, such as \
             dialect = \"openai\""
                .to_owned(),
            format!(
                "t.toml:2:1: pools.a: \"capacity\" is missing, expected {meters}, such as capacity = \
                 {{ \"requests/minute\" = 600, \"tokens/minute\" = {{ rate = 150000, burst = 30000 }} }}"
            ),
        ]
    );
    let empty = "[pools.a]\ndialect = \"openai\"\ncapacity = {}\n";
    assert_eq!(mistakes(empty), [format!("t.toml:3:12: pools.a.capacity: found {{}}, expected {meters}")]);
}

#[test]
fn a_misspelt_key_is_not_missing_too() {
    assert_eq!(
        mistakes(&POOL.replace("dialect", "dialct")),
        [
            "t.toml:2:1: pools.a.dialct: unknown key, expected dialect, mode, concurrency, capacity, tenants or default; did \
          you mean \"dialect\"?"
        ]
    );
}

#[test]
fn a_meter_that_is_none_is_refused_with_the_way_to_write_one() {
    assert_eq!(
        mistakes(&POOL.replace("requests/minute", "rpm")),
        ["t.toml:3:14: pools.a.capacity.rpm: meter \"rpm\": expected <unit>/<window> with unit requests, tokens, \
          input_tokens or output_tokens and window second, minute, hour, day, month or <n>s, for example \
          \"requests/minute\"; did you mean \"requests/minute\"?"]
    );
    assert_eq!(
        mistakes(&POOL.replace("\"requests/minute\"", "concurrency")),
        ["t.toml:3:14: pools.a.capacity.concurrency: concurrency is no meter, expected it as a key of the pool itself"]
    );
    assert_eq!(
        mistakes(&POOL.replace("= 600", "= 600, \"requests/60s\" = 600")),
        ["t.toml:3:39: pools.a.capacity.\"requests/60s\": the meter requests/minute is given twice, first on line 3"]
    );
}

#[test]
fn floors_and_ceilings_are_of_the_pools_meters_and_do_not_cross() {
    assert_eq!(
        after_pool("[pools.a.tenants.acme]\nceiling = { \"tokens/minute\" = 5 }\n"),
        "t.toml:5:13: pools.a.tenants.acme.ceiling.\"tokens/minute\": the pool's capacity has no such meter, expected one \
         of: requests/minute"
    );
    assert_eq!(
        after_pool("[pools.a.default]\nfloor = { \"requests/minute\" = 9 }\nceiling = { \"requests/minute\" = 8.5 }\n"),
        "t.toml:5:31: pools.a.default.floor.\"requests/minute\": found 9, expected at most the ceiling, 8.5"
    );
}

#[test]
fn names_that_are_not_allowed_are_refused() {
    let rule = "expected 1–64 of a–z, 0–9, '.', '_', '-', beginning with a letter or digit";
    assert_eq!(
        mistakes(&POOL.replace("pools.a", "pools.GPT")),
        [format!("t.toml:1:8: pools.GPT: pool id \"GPT\": {rule}; did you mean \"gpt\"?")]
    );
    assert_eq!(
        after_pool("[pools.a.tenants.\"\"]\n"),
        "t.toml:4:18: pools.a.tenants.\"\": tenant id \"\": expected 1–128 bytes without control characters"
    );
}

#[test]
fn listening_off_loopback_is_refused_with_the_reason() {
    assert_eq!(
        after_pool("[controller]\nlisten = \"0.0.0.0:7676\"\n"),
        "t.toml:5:10: controller.listen: found \"0.0.0.0:7676\", expected a loopback address, or \
         [controller.reporters.<name>] to say who may report, or client_ca_file in [controller.tls]: whoever reaches this \
         port could steer the limits"
    );
    // TLS alone says nothing of who reports.
    let tls =
        "[controller]\nlisten = \"10.0.0.5:7676\"\n[controller.tls]\ncert_file = \"c.pem\"\nkey_file = \"k.pem\"\n";
    assert!(after_pool(tls).contains("controller.listen: found \"10.0.0.5:7676\", expected a loopback address, or"));
    let mutual = parse(&format!("{POOL}{tls}client_ca_file = \"m.pem\"\n")).expect("good").controller.tls.expect("TLS");
    assert_eq!((mutual.certificate, mutual.key), ("c.pem".into(), "k.pem".into()));
    assert_eq!(mutual.client_authorities, Some("m.pem".into()));
    assert_eq!(
        after_pool("[controller]\nlisten = \"localhost\"\n"),
        "t.toml:5:10: controller.listen: found \"localhost\", expected an address and port, such as \"127.0.0.1:7676\""
    );
    assert!(parse(&format!("{POOL}[controller]\nlisten = \"[::1]:0\"\n")).is_ok());
}

#[test]
fn urls_and_prefixes_are_checked() {
    let expected = "expected an http:// or https:// URL, such as \"http://10.0.0.5:7676\"";
    let found = after_pool("[controller]\nadvertise_url = \"10.0.0.5\"\n");
    assert_eq!(found, format!("t.toml:5:17: controller.advertise_url: found \"10.0.0.5\", {expected}"));
    for url in ["http://h:1/#here", "http://h:1/@me", "http://me@h:1", "http://h:1/?a=b"] {
        let found = after_pool(&format!("[controller]\nadvertise_url = \"{url}\"\n"));
        assert!(found.contains("expected an http:// or https:// URL"), "{url}: {found}");
    }
    assert_eq!(
        after_pool("[keys]\nprefix = \"tidegate/\"\n"),
        "t.toml:5:10: keys.prefix: found \"tidegate/\", expected an absolute path of 2–128 printable ASCII characters without \
         a trailing slash, such as \"/tidegate/v1\""
    );
    let expected =
        "expected a URL of host and port, such as \"http://127.0.0.1:2379\"; https:// with a ca_file, http:// without";
    assert_eq!(
        mistakes(&format!(
            "{POOL}[etcd]\nendpoints = [\n  \"http://127.0.0.1:2379\",\n  \"https://b:2379\",\n  7,\n]\n"
        )),
        [
            format!("t.toml:7:3: etcd.endpoints: found \"https://b:2379\", {expected}"),
            format!("t.toml:8:3: etcd.endpoints: found 7, {expected}"),
        ]
    );
    let expected = "expected a list of at least one URL";
    assert_eq!(
        after_pool("[etcd]\n"),
        format!(
            "t.toml:4:1: etcd: \"endpoints\" is missing, {expected}, such as endpoints = [\"https://127.0.0.1:2379\"]"
        )
    );
    assert_eq!(after_pool("[etcd]\nendpoints = []\n"), format!("t.toml:5:13: etcd.endpoints: found [], {expected}"));
}

#[test]
fn floors_above_the_capacity_are_a_warning() {
    let text = format!(
        "{POOL}[pools.a.tenants.b]\nfloor = {{ \"requests/60s\" = 500 }}\n[pools.a.default]\nfloor = {{ \
         \"requests/minute\" = 101 }}\n"
    );
    let config = parse(&text).expect("a warning is no mistake");
    assert_eq!(
        config.warnings.to_string(),
        "t.toml:3:34: warning: pools.a.capacity.\"requests/minute\": found 600, expected at least 601, the sum of the \
         floors; with less, all floors shrink in proportion"
    );
    assert_eq!(parse(&text.replace("101", "100")).expect("fits").warnings, Mistakes::default());
}

#[test]
fn the_listing_of_mistakes_is_bounded_and_says_so() {
    let keys: Vec<String> = (0..1_200).map(|n| format!("k{n} = 1\n")).collect();
    let found = mistakes(&format!("{}{POOL}", keys.concat()));
    assert_eq!(found.len(), 1_001);
    assert!(found[999].starts_with("t.toml:1000:1: k999: unknown key"), "{}", found[999]);
    assert_eq!(found[1_000], "t.toml: too many mistakes; 200 more are not listed");
}

#[test]
fn columns_count_characters() {
    let found = mistakes(&POOL.replace("\"openai\"", "\"öpenäi\"").replace("dialect", "\"dialect\""));
    assert!(found[0].starts_with("t.toml:2:13: "), "{found:?}");
    let found = mistakes(&format!("{POOL}[pools.a.tenants]\n\"ö\" = {{ wieght = 1 }}\n"));
    assert!(found[0].starts_with("t.toml:5:9: "), "{found:?}");
}

#[test]
fn all_mistakes_are_found_at_once_in_the_order_of_the_file() {
    let text =
        "[pools.A]\ndialect = 1\nconcurency = 2\n[pools.A.capacity]\n\"requests/minute\" = 0\n[etcd]\nendpoint = 3\n";
    let mistakes = mistakes(text);
    let lines: Vec<&str> = mistakes.iter().map(|line| line.split(": ").next().expect("has one")).collect();
    assert_eq!(lines, ["t.toml:1:8", "t.toml:2:11", "t.toml:3:1", "t.toml:5:21", "t.toml:7:1"], "{mistakes:#?}");
}

#[test]
fn a_long_value_is_quoted_in_part() {
    let found = after_pool(&format!("[keys]\nprefix = \"{}\"\n", "x".repeat(500)));
    assert!(found.contains(&format!("found \"{}…, expected", "x".repeat(59))), "{found}");
}

#[test]
fn a_user_of_etcd_has_a_password_file_and_the_other_way_round() {
    let etcd = format!("{POOL}[etcd]\nendpoints = [\"http://127.0.0.1:2379\"]\n");
    let mistake = |text: &str| mistakes(&format!("{etcd}{text}")).concat();
    assert_eq!(mistake("user = \"c\"\n"), "t.toml:6:8: etcd.user: found \"c\", expected a password_file beside it");
    assert_eq!(
        mistake("password_file = \"/p\"\n"),
        "t.toml:6:17: etcd.password_file: found \"/p\", expected a user beside it"
    );
    assert!(mistake("user = \"\"\n").starts_with("t.toml:6:8: etcd.user: found \"\", expected a user's name"));
    let read = |file: &Path| {
        let text = format!("{etcd}user = \"c\"\npassword_file = {:?}\n", file.display().to_string());
        parse(&text).expect("good").etcd.expect("has a table").sign_in()
    };
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("password");
    assert!(read(&file).expect_err("is not there").contains("password: No such file"));
    for (text, password) in [("s\n", "s"), ("s\r\n", "s"), (" s t ", " s t "), ("", "")] {
        std::fs::write(&file, text).expect("written");
        assert_eq!(read(&file), Ok(Some(("c".to_owned(), password.to_owned()))));
    }
    assert_eq!(parse(&etcd).expect("good").etcd.expect("has a table").sign_in(), Ok(None));
}

const DIGEST: &str = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

#[test]
fn reporters_are_read_and_their_mistakes_named() {
    let other = "0".repeat(64);
    let text = format!(
        "{POOL}[controller]\nlisten = \"10.0.0.5:7676\"\n[controller.reporters.checkout]\n\
         token_sha256 = [\"{DIGEST}\", \"{other}\"]\npools = [\"openai-*\"]\nread = true\n[controller.reporters.batch]\n"
    );
    let reporters = parse(&text).expect("good").controller.reporters;
    let checkout = &reporters["checkout"];
    assert_eq!(checkout.tokens, [DIGEST.parse().expect("hex"), other.parse().expect("hex")]);
    assert_eq!(checkout.tokens[0].to_string(), DIGEST);
    assert!(checkout.read && checkout.pools[0].matches("openai-gpt4o") && !checkout.pools[0].matches("claude"));
    let batch = &reporters["batch"];
    assert!(batch.tokens.is_empty() && !batch.read, "nobody has its token, and it may not read");
    assert!(batch.pools[0].matches("any") && batch.tenants[0].matches("@default"));

    let of = |name: &str, keys: &str| after_pool(&format!("[controller.reporters.{name}]\n{keys}\n"));
    assert_eq!(
        of("a", "token_sha256 = [\"secret\"]"),
        "t.toml:5:17: controller.reporters.a.token_sha256: found \"secret\", expected 64 hex digits, the SHA-256 of a token"
    );
    assert_eq!(
        of("a", &format!("token_sha256 = [\"{DIGEST}\", \"{other}\", \"{}\"]", "1".repeat(64))),
        "t.toml:5:153: controller.reporters.a.token_sha256: a token too many, expected at most 2: the one in use and the next"
    );
    assert_eq!(
        of("a", &format!("token_sha256 = [\"{DIGEST}\"]\n[controller.reporters.b]\ntoken_sha256 = [\"{DIGEST}\"]")),
        "t.toml:7:17: controller.reporters.b.token_sha256: this is a's token already, expected one for each reporter"
    );
    assert!(of("a", "token_sha256 = []").contains("expected a list of one or two digests"));
    assert!(of("a", "pools = [\"\"]").contains("expected 1–128 bytes"));
    assert!(of("a", "read = 1").contains("found 1, expected true or false"));
    assert!(of("\"a b\"", "").contains("reporter \"a b\": expected 1–64 letters, digits"));
    assert!(
        after_pool("[controller.reporters]\n").contains("expected at least one table [controller.reporters.<name>]")
    );
    assert!(after_pool("[controller.tls]\ncert_file = \"c.pem\"\n").contains("\"key_file\" is missing"));
}

#[test]
fn an_address_that_no_member_can_reach_wants_another_beside_it() {
    let text =
        format!("[controller.reporters.a]\ntoken_sha256 = [\"{DIGEST}\"]\n[controller]\nlisten = \"0.0.0.0:7676\"\n");
    assert!(
        after_pool(&text)
            .contains("expected an address that members can reach, or that one as advertise_url beside it")
    );
    assert!(parse(&format!("{POOL}{text}advertise_url = \"https://tidegate.example:7676\"\n")).is_ok());
    // What speaks TLS is not to be called in the clear.
    let tls = "advertise_url = \"http://a:7676\"\n[controller.tls]\ncert_file = \"c.pem\"\nkey_file = \"k.pem\"\n";
    let warnings = parse(&format!("{POOL}{text}{tls}")).expect("good all the same").warnings.to_string();
    assert!(
        warnings.contains("warning: controller.advertise_url: found \"http://a:7676\", expected an https:// URL"),
        "{warnings}"
    );
}
