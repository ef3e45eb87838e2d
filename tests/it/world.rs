//! A whole tidegate as processes: etcd, the emulator, controllers, and members that offer load.
//!
//! Everything starts on free loopback ports, is waited for, and is killed when the world is dropped.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tidegate::sim::emulator::EmulatorState;
use tidegate::sim::process::Process;
use tidegate::sim::{Etcd, Seat};
use tokio::time::Instant;

/// How long anything may take before a test fails.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// The pool of every world.
pub const POOL: &str = "demo";

/// The tidegate command under test.
pub fn tidegate(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    command.args(args);
    command
}

/// Waits until `check` gives something; fails with `what` when it never does.
pub async fn eventually<T>(what: &str, mut check: impl AsyncFnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = check().await {
            return found;
        }
        assert!(began.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The processes.
pub struct World {
    pub etcd: Etcd,
    pub provider: String,
    _emulator: Process,
    pub members: Vec<Process>,
    pub config: PathBuf,
    http: reqwest::Client,
    folder: PathBuf,
    _seat: Seat,
}

impl World {
    /// etcd and the emulator; controllers and members are started by the test.
    pub async fn new(requests_per_minute: u64) -> Self {
        let etcd = Etcd::start().await.expect("etcd starts");
        let limit = requests_per_minute.to_string();
        let mut emulator = Process::spawn(
            "emulator",
            tidegate(
                &["emulate", "--listen", "127.0.0.1:0", "--requests-per-minute", &limit, "--burst-seconds", "3"]
                    .into_iter()
                    .chain(["--ttft-ms", "100", "--ms-per-token", "1", "--tokens-per-minute", "300000"])
                    .collect::<Vec<_>>(),
            ),
            None,
        )
        .expect("emulator starts");
        let provider = listening(&mut emulator).await;
        let seat = Seat::take().expect("a seat");
        let folder = seat.folder("world").expect("a folder");
        let config = folder.join("tidegate.toml");
        std::fs::write(&config, config_text(etcd.endpoint(), requests_per_minute)).expect("config is written");
        let http = reqwest::Client::builder().no_proxy().build().expect("an HTTP client");
        Self { etcd, provider, _emulator: emulator, members: Vec::new(), config, http, folder, _seat: seat }
    }

    /// A controller, waited for until it listens.
    pub async fn controller(&self, name: &str) -> (Process, String) {
        let mut command = tidegate(&["run", "--config"]);
        command.arg(&self.config);
        let log = self.folder.join(format!("{name}.log"));
        let mut process = Process::spawn(name, command, Some(&log)).expect("controller starts");
        let url = listening(&mut process).await;
        (process, url)
    }

    /// A member that offers `tenant=rate` loads.
    pub fn join(&mut self, name: &str, offers: &[&str]) {
        let mut command = tidegate(&["demo-service", "--name", name, "--pool", POOL]);
        command.args(["--etcd", self.etcd.endpoint(), "--provider", &self.provider]);
        for offer in offers {
            command.args(["--offer", offer]);
        }
        self.members.push(Process::spawn(name, command, None).expect("member starts"));
    }

    /// What each member enforces now, as it last said.
    pub fn tunings(&self) -> Vec<Option<Value>> {
        self.members
            .iter()
            .map(|member| member.lines().iter().rev().find_map(|line| serde_json::from_str(line).ok()))
            .collect()
    }

    /// Waits until every member's last word satisfies `check`.
    pub async fn all_members(&self, what: &str, check: impl Fn(&Value) -> bool) {
        eventually(what, async || {
            let tunings = self.tunings();
            tunings.iter().all(|tuning| tuning.as_ref().is_some_and(&check)).then_some(())
        })
        .await;
    }

    /// The emulator's account of itself.
    pub async fn state(&self) -> EmulatorState {
        let url = format!("{}/admin/state", self.provider);
        self.http.get(url).send().await.expect("the emulator answers").json().await.expect("its state")
    }

    /// Changes the emulator.
    pub async fn patch(&self, change: Value) {
        let url = format!("{}/admin", self.provider);
        let answer = self.http.patch(url).json(&change).send().await.expect("the emulator answers");
        assert_eq!(answer.status(), 200, "{change}");
    }

    /// Runs for a while and tells what the provider counted meanwhile: admitted, refused, seconds.
    pub async fn measure(&self, span: Duration) -> Measured {
        let before = self.state().await;
        tokio::time::sleep(span).await;
        let after = self.state().await;
        let got = |state: &EmulatorState| {
            state.truth.users.iter().map(|(name, user)| (name.clone(), user.admitted_requests)).collect()
        };
        let (was, is): (BTreeMap<String, u64>, BTreeMap<String, u64>) = (got(&before), got(&after));
        Measured {
            admitted: after.truth.total.admitted_requests - before.truth.total.admitted_requests,
            refused: after.truth.total.refused_requests - before.truth.total.refused_requests,
            seconds: (after.now.uptime_ms - before.now.uptime_ms) as f64 / 1e3,
            by_tenant: is.into_iter().map(|(name, n)| (name.clone(), n - was.get(&name).unwrap_or(&0))).collect(),
        }
    }

    /// etcdctl, as an operator would.
    pub fn etcdctl(&self, args: &[&str]) -> String {
        let mut command = self.etcd.etcdctl().expect("etcdctl is there");
        let output = command.args(args).output().expect("etcdctl runs");
        assert!(output.status.success(), "etcdctl {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

/// What the provider counted over a while.
#[derive(Debug)]
pub struct Measured {
    pub admitted: u64,
    pub refused: u64,
    pub seconds: f64,
    pub by_tenant: BTreeMap<String, u64>,
}

impl Measured {
    /// Requests per second that were admitted.
    pub fn per_s(&self) -> f64 {
        self.admitted as f64 / self.seconds
    }

    /// Share of what was sent that was answered 429.
    pub fn refused_part(&self) -> f64 {
        self.refused as f64 / (self.admitted + self.refused).max(1) as f64
    }
}

/// Requests per minute that a member enforces, all tenants.
pub fn total(tuning: &Value) -> f64 {
    tuning["requests_per_minute"].as_object().map_or(0.0, |rates| rates.values().filter_map(Value::as_f64).sum())
}

/// The URL that a server of ours says it listens on.
pub async fn listening(process: &mut Process) -> String {
    let line = process
        .wait_for_line(|line| line.contains(" listening on http://"), PATIENCE)
        .await
        .expect("it says where it listens");
    line.split_whitespace().find(|word| word.starts_with("http://")).expect("a URL").to_owned()
}

fn config_text(etcd: &str, requests_per_minute: u64) -> String {
    format!(
        r#"
[controller]
listen = "127.0.0.1:0"
[etcd]
endpoints = ["{etcd}"]
[pools.{POOL}]
dialect = "openai"
[pools.{POOL}.capacity]
"requests/minute" = {requests_per_minute}
"tokens/minute" = 300000
[pools.{POOL}.tenants.alpha]
weight = 3
[pools.{POOL}.tenants.beta]
weight = 1
[pools.{POOL}.default]
weight = 0.1
"#
    )
}
