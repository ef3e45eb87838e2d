//! What a controller tells of itself as metrics: bounded whatever the number of tenants, and told by the leader alone.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tidegate::client::{Client, ClientParams, PoolParams};
use tidegate::config::Config;
use tidegate::controller::Controller;
use tidegate::provider::Dialect;
use tidegate::quota::{Cost, TenantId};
use tidegate::store::MemoryStore;
use tidegate::telemetry::{Metric, Sample, TENANTS_NAMED_MAX, Telemetry};
use tokio::time::Instant;

use super::world::eventually;

const TENANTS: usize = 1_000;

fn config(name: &str, tenants: usize) -> Config {
    let mut text = format!(
        "[controller]\nname = \"{name}\"\nlisten = \"127.0.0.1:0\"\n[pools.big]\ndialect = \"openai\"\n[pools.big.capacity]\n\
         \"requests/minute\" = 60000\n\"tokens/minute\" = 60000000\n[pools.big.default]\n"
    );
    for n in 0..tenants {
        let _ = writeln!(text, "[pools.big.tenants.tenant-{n:04}]");
    }
    Config::parse("t.toml", &text).expect("good")
}

/// A report of the last tenants only: who has traffic is named first.
fn report(tenants: std::ops::Range<usize>, attempts: u64) -> Value {
    let blank = json!({ "n": 0, "sum": 0.0, "sum_sq": 0.0 });
    let units = json!({ "requests": attempts, "input_tokens": 100 * attempts, "output_tokens": 50 * attempts });
    let tenant = json!({
        "attempts": attempts, "admitted": attempts, "waited": 0, "refused": 0, "sent": attempts, "succeeded": attempts,
        "ignored": 0, "settled": units, "reserved": units, "ttfb_log_ms": blank, "tpot_log_ms": blank, "in_flight": 2,
        "waiting": 1
    });
    let tenants: BTreeMap<String, &Value> = tenants.map(|n| (format!("tenant-{n:04}"), &tenant)).collect();
    json!({ "schema": 1, "instance": "m", "boot": "b", "pools": { "big": { "sequence": attempts, "tenants": tenants } } })
}

struct Told {
    text: String,
    took: Duration,
}

impl Told {
    async fn by(url: &str) -> Self {
        let http = reqwest::Client::builder().no_proxy().build().expect("an HTTP client");
        let began = Instant::now();
        let text = http.get(format!("{url}/metrics")).send().await.expect("it answers").text().await.expect("text");
        Self { text, took: began.elapsed() }
    }

    fn series(&self) -> impl Iterator<Item = &str> {
        self.text.lines().filter(|line| !line.starts_with('#'))
    }

    fn of(&self, metric: &str) -> Vec<(&str, f64)> {
        let of = self.series().filter_map(|line| line.rsplit_once(' '));
        let of = of.filter(|(series, _)| series.split('{').next() == Some(metric));
        of.map(|(series, value)| (series, value.parse().expect("a number"))).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_thousand_tenants_two_hundred_have_series_of_their_own_and_the_rest_one_together() {
    let store = Arc::new(MemoryStore::new());
    let config = config("a", TENANTS).controller;
    let controller = Controller::start(config, store, Arc::new(Telemetry::new())).await.expect("it starts");
    let url = controller.url();
    let http = reqwest::Client::builder().no_proxy().build().expect("an HTTP client");
    let busy = TENANTS - 150..TENANTS;
    let mut attempts = 0;
    // Their traffic is heard of before anybody looks,
    eventually("the traffic is heard of", async || {
        attempts += 10;
        let report = report(busy.clone(), attempts);
        let answer = http.post(format!("{url}/v1/observations")).json(&report).send().await.expect("it answers");
        let status = http.get(format!("{url}/v1/status")).send().await.expect("it answers");
        let status: Value = status.json().await.unwrap_or_default();
        let heard = answer.status() == 200 && status["pools"]["big"]["in_flight"] == 2 * busy.len();
        heard.then_some(())
    })
    .await;
    // and thresholds of all are granted.
    let told = eventually("all is told", async || {
        attempts += 10;
        let report = report(busy.clone(), attempts);
        let answer = http.post(format!("{url}/v1/observations")).json(&report).send().await.expect("it answers");
        let told = Told::by(&url).await;
        let named = told.of("tidegate_threshold_units").len() == 2 * (TENANTS_NAMED_MAX + 1);
        (answer.status() == 200 && named && !told.of("tidegate_tenant_waiting").is_empty()).then_some(told)
    })
    .await;
    let mut fastest = told.took;
    for _ in 0..10 {
        fastest = fastest.min(Told::by(&url).await.took);
    }
    let told = Told::by(&url).await;
    let series = told.series().count();
    println!("{TENANTS} tenants × 2 meters: {} bytes, {series} series, scraped in {fastest:.1?}", told.text.len());
    assert!(series < 2_000, "{series}");
    assert_eq!(told.of("tidegate_tenants_unnamed")[0].1, (TENANTS + 1 - TENANTS_NAMED_MAX) as f64);

    let waiting = told.of("tidegate_tenant_waiting");
    assert_eq!(waiting.len(), TENANTS_NAMED_MAX + 1);
    let is_named = |n: usize| waiting.iter().any(|(series, _)| series.contains(&format!("\"tenant-{n:04}\"")));
    assert!(busy.clone().all(is_named), "who has traffic when it is first looked at has a series of its own");
    let sum: f64 = waiting.iter().map(|(_, value)| value).sum();
    assert_eq!(sum, busy.len() as f64, "nobody is lost and nobody counted twice");
    // The thresholds of all others are in one sum.
    let rates = told.of("tidegate_threshold_units");
    let all: f64 = rates.iter().filter(|(series, _)| series.contains("requests/minute")).map(|(_, rate)| rate).sum();
    let capacity = told.of("tidegate_pool_capacity_units");
    let capacity = capacity.iter().find(|(series, _)| series.contains("requests/minute")).expect("told").1;
    assert!((0.9..=4.01).contains(&(all / capacity)), "{all} of {capacity}");
    assert_eq!(told.of("tidegate_series_dropped_total")[0].1, 0.0);
    // The newest stay what they are called: no series moves.
    let later = Told::by(&url).await;
    let names = |told: &Told| {
        told.of("tidegate_tenant_waiting").iter().map(|(series, _)| (*series).to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names(&told), names(&later));
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_lead_tells_nothing_of_pools() {
    let store = Arc::new(MemoryStore::new());
    let first = config("a", 3).controller;
    let first = Controller::start(first, store.clone(), Arc::new(Telemetry::new())).await.expect("it starts");
    let is_told = async |url: &str| !Told::by(url).await.of("tidegate_pool_capacity_units").is_empty();
    eventually("the first leads", async || is_told(&first.url()).await.then_some(())).await;
    let second = config("b", 3).controller;
    let second = Controller::start(second, store, Arc::new(Telemetry::new())).await.expect("it starts");
    assert!(!is_told(&second.url()).await, "it stands by");
    first.stop().await;
    eventually("the second leads", async || is_told(&second.url()).await.then_some(())).await;
    let told = Told::by(&second.url()).await;
    assert_eq!(told.of("tidegate_leader"), [("tidegate_leader", 1.0)]);
    // What takes time is a histogram, and what counts begins at zero.
    assert!(told.of("tidegate_store_seconds_count").iter().any(|(series, n)| series.contains("commit") && *n > 0.0));
    assert_eq!(told.of("tidegate_limit_changes_total").len(), 2);
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_tells_what_it_did_without_any_metrics_system() {
    // Nobody leads: one call at a time, ten a minute.
    let params = ClientParams::new(vec![PoolParams::new("pool".parse().unwrap(), Dialect::OpenAi)]);
    let client = Client::start(params, Arc::new(MemoryStore::new()), Arc::new(Telemetry::new())).await;
    let pool = client.pool("pool").expect("named");
    let acme: TenantId = "acme".parse().unwrap();
    let permit = pool.admit(&acme, Cost::request(10, 10)).await.expect("the first one");
    pool.try_admit(&acme, Cost::request(10, 10)).expect_err("one at a time");
    let said = |stats: &[Sample], metric: Metric, labels: &[&str]| {
        let is_it = |sample: &&Sample| sample.metric == metric && sample.labels == labels;
        stats.iter().find(is_it).map(|sample| sample.value.number())
    };
    let stats = client.stats();
    assert_eq!(said(&stats, Metric::Admitted, &["pool", "@default"]), Some(1.0));
    assert_eq!(said(&stats, Metric::Refused, &["pool", "@default"]), Some(1.0));
    assert_eq!(said(&stats, Metric::RefusedFor, &["pool", "concurrency"]), Some(1.0));
    assert_eq!(said(&stats, Metric::InFlight, &["pool"]), Some(1.0));
    assert_eq!(said(&stats, Metric::WaitSeconds, &["pool"]), None, "nobody waited yet");
    // Who waits for the place waits for as long as it takes.
    let waiting = tokio::spawn(async move {
        let admitted = pool.admit_within(&acme, Cost::request(10, 10), Duration::from_secs(30)).await;
        admitted.map(drop)
    });
    eventually("somebody waits", async || {
        (said(&client.stats(), Metric::Waiting, &["pool"]) == Some(1.0)).then_some(())
    })
    .await;
    drop(permit);
    waiting.await.expect("no panic").expect("its turn");
    let stats = client.stats();
    assert_eq!(said(&stats, Metric::Waited, &["pool", "@default"]), Some(1.0));
    assert_eq!(said(&stats, Metric::WaitSeconds, &["pool"]), Some(1.0));
    assert_eq!(said(&stats, Metric::Waiting, &["pool"]), Some(0.0));
    client.close().await;
}
