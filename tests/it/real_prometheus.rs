//! A real Prometheus as a child process, on loopback, with a folder of its own.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tidegate::sim::Seat;
use tidegate::sim::process::{Process, find_program, free_port};

use super::world::eventually;

/// Ports may be taken by others before it binds.
const PORT_TRIES: usize = 5;

pub struct RealPrometheus {
    pub process: Process,
    pub url: String,
    config: PathBuf,
    http: reqwest::Client,
    _seat: Seat,
}

impl RealPrometheus {
    /// Scrapes these targets (`job`, `http://host:port`) each second, and loads the file of rules.
    pub async fn start(targets: &[(&str, &str)], rules: Option<&Path>) -> Self {
        let program = find_program("prometheus", "prometheus").expect("prometheus is installed");
        let seat = Seat::take().expect("a seat");
        let folder = seat.folder("prometheus").expect("a folder");
        let config = folder.join("prometheus.yml");
        std::fs::write(&config, config_text(targets, rules)).expect("written");
        let http = reqwest::Client::builder().no_proxy().build().expect("an HTTP client");
        for nth in 0..PORT_TRIES {
            let port = free_port().expect("a free port");
            let mut command = Command::new(&program);
            command.arg(format!("--config.file={}", config.display()));
            command.arg(format!("--storage.tsdb.path={}", folder.join(format!("data-{nth}")).display()));
            command.args([&format!("--web.listen-address=127.0.0.1:{port}"), "--web.enable-lifecycle"]);
            let process = Process::spawn("prometheus", command, None).expect("it starts");
            let url = format!("http://127.0.0.1:{port}");
            let mut started = Self { process, url, config: config.clone(), http: http.clone(), _seat: seat.clone() };
            if started.is_ready().await {
                return started;
            }
        }
        panic!("prometheus did not come up on {PORT_TRIES} ports");
    }

    /// Whether it answers; not when it has ended.
    async fn is_ready(&mut self) -> bool {
        loop {
            let answer = self.http.get(format!("{}/-/ready", self.url)).send().await;
            if answer.is_ok_and(|answer| answer.status().is_success()) && self.process.is_running() {
                return true;
            }
            if !self.process.is_running() {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Scrapes others from now on.
    pub async fn retarget(&self, targets: &[(&str, &str)], rules: Option<&Path>) {
        std::fs::write(&self.config, config_text(targets, rules)).expect("written");
        let answer = self.http.post(format!("{}/-/reload", self.url)).send().await.expect("it answers");
        assert!(answer.status().is_success(), "{}", answer.text().await.unwrap_or_default());
    }

    pub async fn get(&self, path: &str) -> Value {
        self.http.get(format!("{}{path}", self.url)).send().await.expect("it answers").json().await.expect("JSON")
    }

    /// The series of an expression now.
    ///
    /// # Errors
    /// What it says of the expression.
    pub async fn query(&self, expr: &str) -> Result<Vec<Value>, String> {
        let form = [("query", expr)];
        let url = reqwest::Url::parse_with_params(&format!("{}/api/v1/query", self.url), form).expect("a URL");
        let answer: Value = self.http.get(url).send().await.expect("it answers").json().await.expect("JSON");
        match (&answer["status"], &answer["data"]["resultType"]) {
            (status, kind) if status == "success" && kind == "vector" => {
                Ok(answer["data"]["result"].as_array().expect("a list").clone())
            }
            (status, _) if status == "success" => Ok(vec![answer["data"]["result"].clone()]),
            _ => Err(answer["error"].as_str().unwrap_or_default().to_owned()),
        }
    }

    /// The value of an expression that has one series.
    pub async fn value(&self, expr: &str) -> Option<f64> {
        let series = self.query(expr).await.expect(expr);
        series.first().and_then(|series| series["value"][1].as_str()).and_then(|text| text.parse().ok())
    }

    /// Waits until an expression has a value that will do.
    pub async fn until(&self, what: &str, expr: &str, will_do: impl Fn(f64) -> bool) -> f64 {
        eventually(what, async || self.value(expr).await.filter(|value| will_do(*value))).await
    }
}

fn config_text(targets: &[(&str, &str)], rules: Option<&Path>) -> String {
    let mut jobs: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (job, url) in targets {
        jobs.entry(job).or_default().push(format!("'{}'", url.trim_start_matches("http://")));
    }
    let rules = rules.map(|rules| format!("rule_files: ['{}']\n", rules.display())).unwrap_or_default();
    let job = |(job, targets): (&&str, &Vec<String>)| {
        format!("  - job_name: {job}\n    static_configs: [{{ targets: [{}] }}]\n", targets.join(", "))
    };
    let jobs: String = jobs.iter().map(job).collect();
    format!(
        "global: {{ scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s }}\n{rules}scrape_configs:\n{jobs}"
    )
}
