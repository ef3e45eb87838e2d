//! The demo's processes, and what can be done to them.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use super::service::Retuned;
use crate::sim::emulator::EmulatorState;
use crate::sim::process::{Process, ProcessError};
use crate::sim::{Etcd, etcdctl};

const POOL: &str = "demo";
const START_WAIT: Duration = Duration::from_secs(15);
const SERVICES: [&str; 2] = ["service-a", "service-b"];

/// What one tenant offers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Offer {
    /// Whose.
    pub tenant: &'static str,
    /// Its weight in the division.
    pub weight: f64,
    /// Requests per second, all services together.
    pub per_s: f64,
}

/// Why the demo could not go on.
#[derive(Debug, thiserror::Error)]
pub(super) enum StageError {
    /// A process.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// A file of the demo's.
    #[error("cannot write {0}: {1}")]
    File(PathBuf, std::io::Error),
    /// The emulator did not answer.
    #[error("the emulator's admin call failed: {0}")]
    Admin(#[from] reqwest::Error),
    /// etcdctl did not do it.
    #[error("{command} failed: {error}")]
    Etcdctl {
        /// The command.
        command: String,
        /// What it said.
        error: String,
    },
}

/// A member's limits moved.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct MemberRetunes {
    /// What it enforced when the phase began.
    pub before: Option<Retuned>,
    /// Every change since.
    pub since: Vec<Retuned>,
}

/// All processes of the demo; dropping it kills them.
pub(super) struct Stage {
    services: Vec<Process>,
    read: Vec<u64>,
    retunes: Vec<Vec<Retuned>>,
    marked: Vec<usize>,
    controller: Process,
    controller_url: String,
    emulator: Process,
    provider_url: String,
    etcd: Etcd,
    folder: Folder,
    http: reqwest::Client,
}

/// A temporary folder, removed at the end.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Stage {
    /// Starts everything and waits until it answers.
    pub(super) async fn set(limit: u64, offers: &[Offer]) -> Result<Self, StageError> {
        let folder = std::env::temp_dir().join(format!("tidegate-demo-{}", std::process::id()));
        std::fs::create_dir_all(&folder).map_err(|error| StageError::File(folder.clone(), error))?;
        let folder = Folder(folder);
        let etcd = Etcd::start().await?;

        let mut command = tidegate()?;
        command.args(["emulate", "--listen", "127.0.0.1:0", "--burst-seconds", "3", "--ttft-ms", "200"]);
        command.args(["--ms-per-token", "2", "--output-tokens", "30", "--tokens-per-minute", "300000"]);
        command.args(["--requests-per-minute", &limit.to_string()]);
        let (emulator, provider_url) = start("emulator", command, &folder).await?;

        let config = folder.0.join("tidegate.toml");
        std::fs::write(&config, config_text(etcd.endpoint(), limit / 2, offers))
            .map_err(|error| StageError::File(config.clone(), error))?;
        let mut command = tidegate()?;
        command.arg("run").arg("--config").arg(&config);
        let (controller, controller_url) = start("controller", command, &folder).await?;

        let mut services = Vec::new();
        for (slot, name) in SERVICES.iter().enumerate() {
            let mut command = tidegate()?;
            command.args(["demo-service", "--name", name, "--etcd", etcd.endpoint(), "--provider", &provider_url]);
            command.args(["--pool", POOL, "--seed", &(slot + 1).to_string()]);
            for offer in offers {
                let each = offer.per_s / f64_of(SERVICES.len());
                command.args(["--offer", &format!("{}={each}", offer.tenant)]);
            }
            let log = folder.0.join(format!("{name}.log"));
            services.push(Process::spawn(name, command, Some(&log))?);
        }
        let members = services.len();
        Ok(Self {
            services,
            read: vec![0; members],
            retunes: vec![Vec::new(); members],
            marked: vec![0; members],
            controller,
            controller_url,
            emulator,
            provider_url,
            etcd,
            folder,
            http: reqwest::Client::builder().no_proxy().build()?,
        })
    }

    /// etcd's client URL.
    pub(super) fn etcd_endpoint(&self) -> &str {
        self.etcd.endpoint()
    }

    /// The provider's base URL.
    pub(super) fn provider_url(&self) -> &str {
        &self.provider_url
    }

    /// The controller's base URL.
    pub(super) fn controller_url(&self) -> &str {
        &self.controller_url
    }

    /// The emulator's account of itself.
    pub(super) async fn state(&self) -> Result<EmulatorState, StageError> {
        let url = format!("{}/admin/state", self.provider_url);
        Ok(self.http.get(url).send().await?.error_for_status()?.json().await?)
    }

    /// Begins a phase in which nothing is done.
    pub(super) async fn mark(&mut self) -> Result<(), StageError> {
        self.patch(&serde_json::json!({})).await
    }

    /// Changes the provider's limit; nobody is told. `spent` requests of the bucket are gone at that moment.
    pub(super) async fn change_limit(&mut self, requests_per_minute: u64, spent: u64) -> Result<(), StageError> {
        self.patch(&serde_json::json!({ "requests_per_minute": requests_per_minute, "spend_requests": spent })).await
    }

    async fn patch(&mut self, change: &serde_json::Value) -> Result<(), StageError> {
        self.collect()?;
        self.marked = self.retunes.iter().map(Vec::len).collect();
        self.http.patch(format!("{}/admin", self.provider_url)).json(change).send().await?.error_for_status()?;
        Ok(())
    }

    /// Puts an override as an operator would; returns the command.
    pub(super) async fn put_override(&mut self, tenant: &str, requests_per_minute: u64) -> Result<String, StageError> {
        let record =
            format!(r#"{{"set":{{"requests/minute":{requests_per_minute}}},"by":"demo","reason":"noisy neighbour"}}"#);
        self.mark().await?;
        self.etcdctl(&["put", &override_key(tenant), &record])
    }

    /// Removes it.
    pub(super) async fn remove_override(&mut self, tenant: &str) -> Result<String, StageError> {
        self.mark().await?;
        self.etcdctl(&["del", &override_key(tenant)])
    }

    fn etcdctl(&self, args: &[&str]) -> Result<String, StageError> {
        let mut command = Command::new(etcdctl()?);
        command.env("ETCDCTL_API", "3").args(["--endpoints", self.etcd.endpoint()]).args(args);
        let quoted: Vec<String> =
            args.iter().map(|arg| if arg.contains('"') { format!("'{arg}'") } else { (*arg).to_owned() }).collect();
        let shown = format!("etcdctl --endpoints {} {}", self.etcd.endpoint(), quoted.join(" "));
        let failed = |error: String| StageError::Etcdctl { command: shown.clone(), error };
        let output = command.output().map_err(|error| failed(error.to_string()))?;
        if output.status.success() {
            Ok(shown)
        } else {
            Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
        }
    }

    /// Takes in what the services have said; a process that has ended ends the demo.
    pub(super) fn collect(&mut self) -> Result<(), StageError> {
        for (slot, service) in self.services.iter_mut().enumerate() {
            let (lines, read) = service.lines_after(self.read[slot]);
            self.read[slot] = read;
            self.retunes[slot].extend(lines.iter().filter_map(|line| serde_json::from_str(line).ok()));
            service.check_running()?;
        }
        self.emulator.check_running()?;
        self.controller.check_running()?;
        Ok(())
    }

    /// What each member's limits did since the phase began.
    pub(super) fn retunes_since_mark(&self) -> BTreeMap<&'static str, MemberRetunes> {
        let of = |slot: usize| {
            let (before, since) = self.retunes[slot].split_at(self.marked[slot].min(self.retunes[slot].len()));
            MemberRetunes { before: before.last().cloned(), since: since.to_vec() }
        };
        SERVICES.iter().enumerate().map(|(slot, name)| (*name, of(slot))).collect()
    }

    /// Stops everything, services first.
    pub(super) async fn strike(mut self) {
        for process in self.services.iter_mut().chain([&mut self.controller, &mut self.emulator]) {
            // One that cannot be stopped politely is killed when it is dropped.
            let _ = process.terminate().await;
        }
        let _ = self.etcd.process().terminate().await;
        drop(self.folder);
    }
}

fn override_key(tenant: &str) -> String {
    format!("/tidegate/v1/overrides/{POOL}/{tenant}")
}

fn tidegate() -> Result<Command, StageError> {
    let path = std::env::current_exe().map_err(|error| StageError::File("tidegate".into(), error))?;
    Ok(Command::new(path))
}

async fn start(name: &str, command: Command, folder: &Folder) -> Result<(Process, String), StageError> {
    let mut process = Process::spawn(name, command, Some(&folder.0.join(format!("{name}.log"))))?;
    let line = process.wait_for_line(|line| line.contains(" listening on http://"), START_WAIT).await?;
    let url = line.split_whitespace().find(|word| word.starts_with("http://")).unwrap_or_default().to_owned();
    Ok((process, url))
}

fn config_text(etcd: &str, requests_per_minute: u64, offers: &[Offer]) -> String {
    let mut tenants = String::new();
    for Offer { tenant, weight, .. } in offers {
        // Writing to a string cannot fail.
        let _ = writeln!(tenants, "[pools.{POOL}.tenants.{tenant}]\nweight = {weight}");
    }
    format!(
        "[controller]\nname = \"demo\"\nlisten = \"127.0.0.1:0\"\n\n[etcd]\nendpoints = [\"{etcd}\"]\n\n\
         [pools.{POOL}]\ndialect = \"openai\"\n\n[pools.{POOL}.capacity]\n\
         \"requests/minute\" = {requests_per_minute}\n\"tokens/minute\" = 300000\n\n{tenants}\n\
         [pools.{POOL}.default]\nweight = 0.1\n"
    )
}

fn f64_of(n: usize) -> f64 {
    f64::from(u32::try_from(n).unwrap_or(u32::MAX))
}
