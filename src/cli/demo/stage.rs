//! The demo's processes, and what can be done to them.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use super::record::{Sample, TenantNow, WAYS};
use super::script::{Act, LIMIT, OVERRIDDEN, OVERRIDE, TENANTS};
use super::service::Told;
use crate::plan::Grant;
use crate::plan::keyspace::{Key, Keyspace, LeaderRecord};
use crate::quota::PoolId;
use crate::sim::emulator::EmulatorState;
use crate::sim::process::{Process, ProcessError};
use crate::sim::seat::Swept;
use crate::sim::{Etcd, Seat};
use crate::store::{EtcdStore, Listing, Select, Source, StoreError};

const POOL: &str = "demo";
const START_WAIT: Duration = Duration::from_secs(15);
const SERVICES: [&str; 2] = ["service-a", "service-b"];
const CONTROLLERS: [&str; 2] = ["controller-a", "controller-b"];

/// So often the records are asked for, each time for as long as one call may take.
const LIST_TRIES: usize = 4;

/// Why the demo could not go on.
#[derive(Debug, thiserror::Error)]
pub(super) enum StageError {
    /// A process.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// A file of the demo's.
    #[error("cannot write {0}: {1}")]
    File(PathBuf, std::io::Error),
    /// An emulator did not answer.
    #[error("the emulator's admin call failed: {0}")]
    Admin(#[from] reqwest::Error),
    /// etcd did not answer.
    #[error("cannot read the records in etcd: {0}")]
    Store(#[from] StoreError),
    /// etcdctl did not do it.
    #[error("{command} failed: {error}")]
    Etcdctl {
        /// The command.
        command: String,
        /// What it said.
        error: String,
    },
}

/// One member, and what it has said.
struct Member {
    process: Process,
    read: u64,
    last: Option<Told>,
}

/// A server of ours.
struct Server {
    process: Process,
    url: String,
}

/// All processes of the demo; dropping it kills them.
pub(super) struct Stage {
    // In the order of dying: those that call before those that are called, the seat's folder last.
    members: Vec<Member>,
    controllers: Vec<Server>,
    /// By way: the provider behind the adaptive limits, and the one behind the static ones.
    providers: Vec<Server>,
    store: EtcdStore,
    selects: [Select; 2],
    keys: Keyspace,
    etcd: Etcd,
    http: reqwest::Client,
    seat: Seat,
}

impl Stage {
    /// Starts everything and waits until it answers.
    pub(super) async fn set() -> Result<Self, StageError> {
        let seat = Seat::take().map_err(|error| StageError::File(std::env::temp_dir(), error))?;
        let etcd = Etcd::start().await?;

        let mut providers = Vec::new();
        for way in WAYS {
            let mut command = tidegate()?;
            command.args(["emulate", "--listen", "127.0.0.1:0", "--burst-seconds", "3", "--ttft-ms", "200"]);
            command.args(["--ms-per-token", "2", "--output-tokens", "30", "--tokens-per-minute", "300000"]);
            command.args(["--requests-per-minute", &LIMIT.to_string()]);
            providers.push(start(&format!("provider-{}", way.as_str()), command, &seat).await?);
        }

        let mut controllers = Vec::new();
        for name in CONTROLLERS {
            let config = seat.path().join(format!("{name}.toml"));
            std::fs::write(&config, config_text(name, etcd.endpoint()))
                .map_err(|error| StageError::File(config.clone(), error))?;
            let mut command = tidegate()?;
            command.arg("run").arg("--config").arg(&config);
            controllers.push(start(name, command, &seat).await?);
        }

        let mut members = Vec::new();
        for (slot, name) in SERVICES.iter().enumerate() {
            let mut command = tidegate()?;
            command.args(["demo-service", "--name", name, "--etcd", etcd.endpoint(), "--pool", POOL]);
            command.args(["--provider", &providers[0].url, "--static-provider", &providers[1].url]);
            command.args(["--seed", &(slot + 1).to_string()]);
            for offer in TENANTS {
                command.args(["--offer", &format!("{}={}", offer.tenant, offer.per_s / members_f64())]);
                command.args(["--static-quota", &format!("{}={}", offer.tenant, quota(offer.weight) / members_f64())]);
            }
            let process = Process::spawn(name, command, Some(&seat.path().join(format!("{name}.log"))))?;
            members.push(Member { process, read: 0, last: None });
        }
        let store = EtcdStore::connect(&[etcd.endpoint().to_owned()]).await?;
        let keys = Keyspace::default();
        let pool: PoolId =
            POOL.parse().map_err(|error: crate::quota::QuotaError| StoreError::Rejected(error.to_string()))?;
        let selects = [Select::Key(keys.key(&Key::Leader)), Select::Prefix(keys.limits_of(&pool))];
        let http = reqwest::Client::builder().no_proxy().build()?;
        Ok(Self { members, controllers, providers, store, selects, keys, etcd, http, seat })
    }

    /// What earlier runs that were killed had left, if anything.
    pub(super) fn swept(&self) -> Swept {
        self.seat.swept()
    }

    /// Where everything is, a line each.
    pub(super) fn addresses(&self) -> Vec<String> {
        let etcd = self.etcd.endpoint();
        let mut lines =
            vec![format!("etcd          {etcd}   look: etcdctl --endpoints {etcd} get --prefix /tidegate/v1/")];
        for (way, provider) in WAYS.iter().zip(&self.providers) {
            lines.push(format!(
                "provider      {}   {LIMIT} requests/minute, behind {} limits",
                provider.url,
                way.as_str()
            ));
        }
        for (name, controller) in CONTROLLERS.iter().zip(&self.controllers) {
            lines.push(format!("{name}  {}   metrics under /metrics", controller.url));
        }
        lines.push(format!("logs          {}", self.seat.path().display()));
        lines
    }

    /// Does what a phase begins with; returns the command, where an operator would have typed one.
    pub(super) async fn act(&mut self, act: Act) -> Result<Option<String>, StageError> {
        let change = match act {
            Act::Limit { to, spent } => serde_json::json!({ "requests_per_minute": to, "spend_requests": spent }),
            _ => serde_json::json!({}),
        };
        // Both at one moment; an empty change only marks it.
        let [adaptive, fixed] = [&self.providers[0], &self.providers[1]]
            .map(|provider| self.http.patch(format!("{}/admin", provider.url)).json(&change).send());
        let (adaptive, fixed) = tokio::try_join!(adaptive, fixed)?;
        adaptive.error_for_status()?;
        fixed.error_for_status()?;
        match act {
            Act::Nothing | Act::Limit { .. } => Ok(None),
            Act::Override => {
                let record =
                    format!(r#"{{"set":{{"requests/minute":{OVERRIDE}}},"by":"demo","reason":"noisy neighbour"}}"#);
                self.etcdctl(&["put", &override_key(), &record]).await.map(Some)
            }
            Act::Lift => self.etcdctl(&["del", &override_key()]).await.map(Some),
            Act::Kill => self.kill_leader().await.map(Some),
        }
    }

    /// Lists. An etcd on a busy disk may keep one waiting, which is no reason to end.
    async fn listed(&self, selects: &[Select]) -> Result<Listing, StoreError> {
        let mut tries = 1;
        loop {
            match self.store.list(selects).await {
                Err(StoreError::Unavailable { .. }) if tries < LIST_TRIES => tries += 1,
                listed => return listed,
            }
        }
    }

    async fn kill_leader(&mut self) -> Result<String, StageError> {
        let leader = self.listed(&self.selects[..1]).await?.entries.into_iter().next();
        let leader: Option<LeaderRecord> = leader.and_then(|entry| serde_json::from_slice(&entry.value).ok());
        let leads =
            |controller: &&mut Server| leader.as_ref().is_some_and(|leader| leader.report_url == controller.url);
        let Some(controller) = self.controllers.iter_mut().find(leads) else {
            return Ok("# nobody leads: there is no one to kill".to_owned());
        };
        let (pid, name) = (controller.process.pid(), controller.process.name().to_owned());
        controller.process.kill()?;
        Ok(format!("kill -9 {pid}   # {name}, which led"))
    }

    /// Runs etcdctl as an operator would; returns the command.
    async fn etcdctl(&self, args: &[&str]) -> Result<String, StageError> {
        let mut command = self.etcd.etcdctl()?;
        command.args(args);
        let quoted: Vec<String> =
            args.iter().map(|arg| if arg.contains('"') { format!("'{arg}'") } else { (*arg).to_owned() }).collect();
        let shown = format!("etcdctl --endpoints {} {}", self.etcd.endpoint(), quoted.join(" "));
        let failed = |error: String| StageError::Etcdctl { command: shown.clone(), error };
        let output =
            tokio::process::Command::from(command).output().await.map_err(|error| failed(error.to_string()))?;
        if output.status.success() {
            Ok(shown)
        } else {
            Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
        }
    }

    /// How things stand now. A process that has ended by itself ends the demo.
    pub(super) async fn sample(&mut self) -> Result<Sample, StageError> {
        let mut told: Vec<Vec<Told>> = Vec::new();
        for member in &mut self.members {
            let (lines, read) = member.process.lines_after(member.read);
            member.read = read;
            let news: Vec<Told> = lines.iter().filter_map(|line| serde_json::from_str(line).ok()).collect();
            if let Some(last) = news.last() {
                member.last = Some(last.clone());
            }
            told.push(news);
            member.process.check_running()?;
        }
        for provider in &mut self.providers {
            provider.process.check_running()?;
        }
        let state = async |provider: &Server| -> Result<EmulatorState, reqwest::Error> {
            self.http.get(format!("{}/admin/state", provider.url)).send().await?.error_for_status()?.json().await
        };
        let (adaptive, fixed) = tokio::try_join!(state(&self.providers[0]), state(&self.providers[1]))?;
        let mut tenants = BTreeMap::new();
        for offer in TENANTS {
            let last = || self.members.iter().filter_map(|member| member.last.as_ref());
            let now = TenantNow {
                threshold: last().filter_map(|told| told.requests_per_minute.get(offer.tenant)).sum(),
                waiting: last().filter_map(|told| told.waiting.get(offer.tenant)).sum(),
                quota: quota(offer.weight),
            };
            tenants.insert(offer.tenant, now);
        }
        let mut newest = None;
        let mut sample = Sample { ways: [adaptive, fixed], tenants, reason: String::new(), leader: None, told };
        for entry in self.listed(&self.selects).await?.entries {
            match self.keys.parse(&entry.key) {
                Some(Key::Leader) => {
                    let leader: Option<LeaderRecord> = serde_json::from_slice(&entry.value).ok();
                    sample.leader = leader.map(|leader| leader.name);
                }
                // All tenants' grants rest on the same capacity, and so on the same reason; the newest tells today's.
                _ => {
                    if let Ok(grant) = Grant::parse(&entry.value)
                        && newest < Some(grant.stamp)
                    {
                        newest = Some(grant.stamp);
                        sample.reason = grant.reason.text;
                    }
                }
            }
        }
        Ok(sample)
    }

    /// Stops everything, services first.
    pub(super) async fn strike(mut self) {
        let servers = self.controllers.iter_mut().chain(&mut self.providers).map(|server| &mut server.process);
        for process in self.members.iter_mut().map(|member| &mut member.process).chain(servers) {
            // One that cannot be stopped politely is killed when it is dropped.
            let _ = process.terminate().await;
        }
        let _ = self.etcd.process().terminate().await;
    }
}

/// A tenant's static quota in requests per minute: its weight's part of the limit that the documents told.
#[allow(clippy::cast_precision_loss, reason = "a small limit")]
fn quota(weight: f64) -> f64 {
    let weights: f64 = TENANTS.iter().map(|offer| offer.weight).sum();
    LIMIT as f64 * weight / weights
}

fn members_f64() -> f64 {
    f64::from(u32::try_from(SERVICES.len()).unwrap_or(u32::MAX))
}

fn override_key() -> String {
    format!("/tidegate/v1/overrides/{POOL}/{OVERRIDDEN}")
}

fn tidegate() -> Result<Command, StageError> {
    let path = std::env::current_exe().map_err(|error| StageError::File("tidegate".into(), error))?;
    Ok(Command::new(path))
}

async fn start(name: &str, command: Command, seat: &Seat) -> Result<Server, StageError> {
    let mut process = Process::spawn(name, command, Some(&seat.path().join(format!("{name}.log"))))?;
    let line = process.wait_for_line(|line| line.contains(" listening on http://"), START_WAIT).await?;
    let url = line.split_whitespace().find(|word| word.starts_with("http://")).unwrap_or_default().to_owned();
    Ok(Server { process, url })
}

fn config_text(name: &str, etcd: &str) -> String {
    let mut tenants = String::new();
    for offer in TENANTS {
        // Writing to a string cannot fail.
        let _ = writeln!(tenants, "[pools.{POOL}.tenants.{}]\nweight = {}", offer.tenant, offer.weight);
    }
    format!(
        "[controller]\nname = \"{name}\"\nlisten = \"127.0.0.1:0\"\n\n[etcd]\nendpoints = [\"{etcd}\"]\n\n\
         [pools.{POOL}]\ndialect = \"openai\"\n\n[pools.{POOL}.capacity]\n\
         \"requests/minute\" = {}\n\"tokens/minute\" = 300000\n\n{tenants}\n\
         [pools.{POOL}.default]\nweight = 0.1\n",
        LIMIT / 2
    )
}
