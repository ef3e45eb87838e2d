//! What people on call see: a real Prometheus scrapes controllers, members and the provider while load runs, each expression of
//! each panel and rule is asked of it, and a tenant's queue that it tells of brings the tenant more.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::routing::get;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tidegate::clock::{Clock, SystemClock};
use tidegate::sim::process::Process;
use tidegate::sim::{Etcd, Seat};
use tokio::time::Instant;

use super::dashboards::panel_expressions;
use super::real_prometheus::RealPrometheus;
use super::world::{eventually, listening, tidegate};

/// A service that exports how many jobs of each tenant are queued.
struct Exporter {
    url: String,
    queued: Arc<Mutex<BTreeMap<String, f64>>>,
}

impl Exporter {
    async fn start() -> Self {
        let queued: Arc<Mutex<BTreeMap<String, f64>>> = Arc::default();
        async fn metrics(State(queued): State<Arc<Mutex<BTreeMap<String, f64>>>>) -> String {
            let line = |(tenant, n): (&String, &f64)| format!("jobs_queued{{tenant=\"{tenant}\"}} {n}\n");
            // An exporter that dates its samples: Prometheus looks back for them for five minutes.
            let old = SystemClock::new().wall().0 - 120_000;
            queued.lock().iter().map(line).chain([format!("jobs_dated{{tenant=\"beta\"}} 7 {old}\n")]).collect()
        }
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let app = Router::new().route("/metrics", get(metrics)).with_state(queued.clone());
        tokio::spawn(async move { axum::serve(listener, app).await.expect("serves") });
        Self { url, queued }
    }

    fn set(&self, tenant: &str, jobs: f64) {
        self.queued.lock().insert(tenant.to_owned(), jobs);
    }
}

/// etcd, an emulator with 600 requests a minute, two controllers that ask Prometheus, two members, an exporter, and Prometheus.
struct Sight {
    prometheus: RealPrometheus,
    controllers: Vec<(Process, String)>,
    members: Vec<Process>,
    exporter: Exporter,
    provider: String,
    _emulator: Process,
    etcd: Etcd,
    config: PathBuf,
    http: reqwest::Client,
    targets: Vec<(&'static str, String)>,
    _seat: Seat,
}

fn rules() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("dashboards/alerts.yml")
}

impl Sight {
    async fn new() -> Self {
        let etcd = Etcd::start().await.expect("etcd starts");
        let exporter = Exporter::start().await;
        exporter.set("alpha", 0.0);
        let arguments = ["emulate", "--listen", "127.0.0.1:0", "--requests-per-minute", "600", "--burst-seconds", "3"];
        let more = ["--ttft-ms", "100", "--ms-per-token", "1", "--tokens-per-minute", "300000"];
        let arguments: Vec<&str> = arguments.into_iter().chain(more).collect();
        let mut emulator = Process::spawn("emulator", tidegate(&arguments), None).expect("emulator starts");
        let provider = listening(&mut emulator).await;
        let seat = Seat::take().expect("a seat");
        let folder = seat.folder("sight").expect("a folder");
        let mut targets = vec![("jobs", exporter.url.clone()), ("tidegate-emulator", provider.clone())];
        let prometheus = RealPrometheus::start(&borrowed(&targets), Some(&rules())).await;
        let config = folder.join("tidegate.toml");
        std::fs::write(&config, config_text(etcd.endpoint(), &prometheus.url)).expect("written");
        let mut controllers = Vec::new();
        for name in ["controller-a", "controller-b"] {
            let mut command = tidegate(&["run", "--config"]);
            command.arg(&config);
            let mut process = Process::spawn(name, command, None).expect("controller starts");
            let url = listening(&mut process).await;
            targets.push(("tidegate-controller", url.clone()));
            controllers.push((process, url));
        }
        let mut members = Vec::new();
        for name in ["service-a", "service-b"] {
            let mut command = tidegate(&["demo-service", "--name", name, "--pool", "demo"]);
            command.args(["--etcd", etcd.endpoint(), "--provider", &provider]);
            for offer in ["alpha=6", "beta=0.5", "gamma=0.5"] {
                command.args(["--offer", offer]);
            }
            let mut process = Process::spawn(name, command, None).expect("member starts");
            targets.push(("tidegate-member", listening(&mut process).await));
            members.push(process);
        }
        prometheus.retarget(&borrowed(&targets), Some(&rules())).await;
        let http = reqwest::Client::builder().no_proxy().build().expect("an HTTP client");
        Self {
            prometheus,
            controllers,
            members,
            exporter,
            provider,
            _emulator: emulator,
            etcd,
            config,
            http,
            targets,
            _seat: seat,
        }
    }

    /// A threshold as Prometheus knows it.
    async fn threshold(&self, tenant: &str, will_do: impl Fn(f64) -> bool) -> f64 {
        let expr = format!(r#"max(tidegate_threshold_units{{tenant="{tenant}",meter="requests/minute"}})"#);
        self.prometheus.until(&format!("the threshold of {tenant}"), &expr, will_do).await
    }

    async fn status(&self) -> Value {
        for (_, url) in &self.controllers {
            let answer = self.http.get(format!("{url}/v1/status")).send().await;
            if let Ok(answer) = answer
                && answer.status() == 200
            {
                return answer.json().await.expect("JSON");
            }
        }
        Value::Null
    }

    fn put_override(&self, target: &str, record: &Value) {
        let key = format!("/tidegate/v1/overrides/demo/{target}");
        let mut command = self.etcd.etcdctl().expect("etcdctl is there");
        let output = command.args(["put", &key, &record.to_string()]).output().expect("it runs");
        assert!(output.status.success());
    }
}

fn borrowed<'a>(targets: &'a [(&'static str, String)]) -> Vec<(&'a str, &'a str)> {
    targets.iter().map(|(job, url)| (*job, url.as_str())).collect()
}

fn config_text(etcd: &str, prometheus: &str) -> String {
    format!(
        r#"
[controller]
listen = "127.0.0.1:0"
[etcd]
endpoints = ["{etcd}"]
[prometheus]
url = "{prometheus}"
[prometheus.queries.jobs]
query = "sum by (tenant) (jobs_queued)"
role = "demand"
pool = "demo"
tenant_label = "tenant"
every_s = 1
scrape_s = 1
[prometheus.queries.dated]
query = "jobs_dated"
role = "demand"
pool = "demo"
tenant_label = "tenant"
every_s = 1
scrape_s = 1
[pools.demo]
dialect = "openai"
[pools.demo.capacity]
"requests/minute" = 600
"tokens/minute" = 300000
[pools.demo.tenants.alpha]
weight = 1
[pools.demo.tenants.beta]
weight = 1
[pools.demo.tenants.beta.ceiling]
"requests/minute" = 360
[pools.demo.tenants.gamma]
weight = 1
[pools.demo.default]
weight = 0.1
"#
    )
}

/// What need not have a series in so short and healthy a run, by the metric, and why.
const EMPTY: &[(&str, &str)] = &[
    ("tidegate_pool_hold_seconds", "only holds of over 60 s are told of, and the emulator asks for seconds"),
    ("tidegate_pool_places", "neither latency nor a congestion signal limits this pool"),
    ("tidegate_pool_slowness_ratio", "nothing is usual before four windows of 6 s and 100 answers"),
    ("tidegate_limits_doubted_total", "all members tell of the same limit"),
    ("tidegate_header_faults_total", "every header can be read"),
    ("tidegate_fallbacks_total", "these services have no fallbacks"),
    ("tidegate_would_wait_total", "limits are enforced, not observed"),
    ("tidegate_would_refuse_total", "limits are enforced, not observed"),
    ("tidegate_store_errors_total", "etcd answers each question"),
    ("tidegate_reports_refused_total", "every report is good"),
    ("tidegate_report_failures_total", "members found the next leader before their next report"),
    ("tidegate_records_refused_total", "every record is well formed"),
    ("tidegate_replies_dropped_total", "no reply came of an earlier term"),
    ("tidegate_watch_reopened_total", "no watch broke"),
    ("tidegate_reads_refused_total", "nobody has to say who he is"),
    ("tidegate_connections_refused_total", "the port speaks no TLS"),
    ("tidegate_reservations_expired_total", "every call is settled"),
    ("tidegate_tally_decisions_total", "no meter of this pool is shared"),
    ("tidegate_tally_seconds", "no meter of this pool is shared"),
    ("tidegate_tally_failures_total", "no meter of this pool is shared"),
    ("tidegate_tally_away", "no meter of this pool is shared"),
];

fn why_empty(expr: &str) -> Option<&'static str> {
    EMPTY.iter().find(|(metric, _)| expr.contains(metric)).map(|(_, why)| *why)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_expression_runs_against_a_real_prometheus_and_a_queue_brings_its_tenant_more() {
    let mut sight = Sight::new().await;
    // The queue: beta's service exports one, and beta gets more, within its ceiling.
    let before = sight.threshold("beta", |rate| rate > 30.0 && rate < 200.0).await;
    sight.exporter.set("beta", 400.0);
    let with_queue = sight.threshold("beta", |rate| rate > 1.3 * before).await;
    let most = sight
        .prometheus
        .value(r#"max(max_over_time(tidegate_threshold_units{tenant="beta",meter="requests/minute"}[5m]))"#)
        .await;
    assert!(most.is_some_and(|most| most <= 360.5), "never beyond the ceiling: {most:?}");
    println!(
        "beta without a queue {before:.0}, with 400 queued {with_queue:.0} requests/minute, at most {most:?} of 360"
    );

    // Something of everything: an override, a lower limit, another leader.
    let wall = i64::try_from(SystemClock::new().wall().0).expect("now");
    let expires = jiff::Timestamp::from_millisecond(wall + 1_800_000).expect("in half an hour");
    sight.put_override(
        "gamma",
        &json!({"set": {"requests/minute": 20}, "by": "test", "expires_at": expires.to_string()}),
    );
    let change = json!({ "requests_per_minute": 300, "spend_requests": 40 });
    let patched = sight.http.patch(format!("{}/admin", sight.provider)).json(&change).send().await;
    assert!(patched.expect("the emulator answers").status().is_success());
    sight.prometheus.until("a call was throttled", "sum(tidegate_throttled_total)", |n| n > 0.0).await;
    sight.prometheus.until("the limit's change is seen", "max(tidegate_limit_changes_total)", |n| n > 0.0).await;
    let leader = sight.status().await["name"].clone();
    assert!(leader.is_string(), "somebody leads");
    let led = sight.controllers.iter_mut().find(|(process, _)| leader == process.name());
    if let Some((process, _)) = led {
        process.terminate().await.expect("it stops");
    }
    sight.prometheus.until("another leads", "count(count by (tidegate) (tidegate_leader == 1))", |n| n > 0.0).await;
    // What looks back over some minutes has them from the first two samples on; a few more make it steady.
    let until = Instant::now() + Duration::from_secs(8);
    let enough = async || (Instant::now() >= until).then_some(());
    eventually("some more samples", enough).await;

    let old = r#"sum(tidegate_signal_failures_total{query="dated",why="old"})"#;
    sight.prometheus.until("an old sample is not taken", old, |n| n > 0.0).await;
    let empty = run_all(&sight).await;
    let unexplained: Vec<&(String, String)> = empty.iter().filter(|(_, expr)| why_empty(expr).is_none()).collect();
    assert!(unexplained.is_empty(), "no series, and no reason known: {unexplained:#?}");

    // Prometheus goes: the loop goes on, and says so.
    sight.prometheus.process.kill().expect("killed");
    eventually("the signal is said to be gone", async || {
        let status = sight.status().await;
        let signal = &status["signals"]["jobs"];
        (signal["error"].is_string() && signal["state"] != "fresh").then_some(())
    })
    .await;
    let output = tidegate(&["status", "--etcd", sight.etcd.endpoint()]).output().expect("it runs");
    let page = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(page.contains("warning the signal jobs is "), "{page}");
    assert!(page.contains("SIGNAL") && page.contains("demand"), "{page}");
    let ticks = async || {
        let mut sum = 0.0;
        for (_, url) in &sight.controllers {
            let text = match sight.http.get(format!("{url}/metrics")).send().await {
                Ok(answer) => answer.text().await.unwrap_or_default(),
                Err(_) => continue,
            };
            let line = text.lines().find_map(|line| line.strip_prefix("tidegate_ticks_total "));
            sum += line.and_then(|n| n.parse::<f64>().ok()).unwrap_or(0.0);
        }
        sum
    };
    let then = ticks().await;
    eventually("it ticks on", async || (ticks().await >= then + 3.0).then_some(())).await;
    assert!(sight.members.iter_mut().all(Process::is_running));
    let _ = (&sight.config, &sight.targets);
}

/// The first few series, as a panel would show them.
fn shown(series: &[Value]) -> String {
    let one = |series: &Value| {
        let labels = series["metric"].as_object().into_iter().flatten();
        let labels = labels.filter(|(name, _)| !["__name__", "instance", "job"].contains(&name.as_str()));
        let labels: Vec<&str> = labels.filter_map(|(_, value)| value.as_str()).collect();
        format!("{} {}", labels.join(" "), series["value"][1].as_str().unwrap_or_default()).trim().to_owned()
    };
    let first: Vec<String> = series.iter().take(4).map(one).collect();
    format!("{} series: {}", series.len(), first.join("; "))
}

/// Asks every expression; prints how many have series, and returns those that have none.
async fn run_all(sight: &Sight) -> Vec<(String, String)> {
    let (mut asked, mut empty) = (0, Vec::new());
    for (name, expr) in panel_expressions() {
        let series = sight.prometheus.query(&expr).await.unwrap_or_else(|error| panic!("{name}: {error}\n{expr}"));
        asked += 1;
        println!("{name}: {}", shown(&series));
        if series.is_empty() {
            empty.push((name, expr));
        }
    }
    println!("panels and annotations: {asked} expressions, {} with series", asked - empty.len());
    let rules = sight.prometheus.get("/api/v1/rules").await;
    let groups = rules["data"]["groups"].as_array().expect("groups").clone();
    let (mut recorded, mut alerts, mut quiet) = (0, 0, Vec::new());
    for rule in groups.iter().flat_map(|group| group["rules"].as_array().expect("rules")) {
        let (name, expr) = (rule["name"].as_str().expect("a name"), rule["query"].as_str().expect("an expression"));
        assert_eq!(rule["health"], "ok", "{name}: {}", rule["lastError"]);
        let series = sight.prometheus.query(expr).await.unwrap_or_else(|error| panic!("{name}: {error}"));
        if rule["type"] == "recording" {
            recorded += 1;
            if series.is_empty() {
                empty.push((name.to_owned(), expr.to_owned()));
            }
        } else {
            alerts += 1;
            if series.is_empty() {
                quiet.push(name.to_owned());
            }
        }
    }
    println!(
        "recording rules: {recorded}; alerts: {alerts}, of which {} have nothing to say: {}",
        quiet.len(),
        quiet.join(", ")
    );
    for (name, expr) in &empty {
        println!("without series: {name}: {}", why_empty(expr).unwrap_or("?"));
    }
    empty
}
