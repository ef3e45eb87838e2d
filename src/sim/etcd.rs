//! A real etcd of one member, to be killed and started again: on loopback, on ports of its own, in a folder of its own,
//! and never taken for another one that was quicker at a port.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use super::process::{POLL, Process, ProcessError, find_program, free_port};
use super::seat::{Seat, strip_environment};

/// How long etcd may take to answer.
const START_TIMEOUT: Duration = Duration::from_secs(20);
/// How long one health question may take.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(1);
/// Tries with other ports when somebody was quicker.
const PORT_TRIES: usize = 5;

/// The data folder, removed on drop unless the caller named it.
#[derive(Debug)]
struct DataDir {
    path: PathBuf,
    /// Where it is, if it is ours.
    seat: Option<Seat>,
}

impl Drop for DataDir {
    fn drop(&mut self) {
        if self.seat.is_some() {
            // Whatever stays goes with the seat.
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}

/// A running (or killed) etcd. Killed, reaped and, in a temporary folder, removed on drop.
#[derive(Debug)]
pub struct Etcd {
    // In this order on drop: first the process, then what it writes to.
    process: Process,
    data_dir: DataDir,
    /// Its member's name, which no other etcd has.
    name: String,
    ports: Ports,
    endpoint: String,
    http: reqwest::Client,
}

#[derive(Debug, Clone, Copy)]
struct Ports {
    client: u16,
    peer: u16,
}

impl Ports {
    fn free() -> Result<Self, ProcessError> {
        let failed = |source| ProcessError::System { name: NAME.to_owned(), action: "find a free port", source };
        let client = free_port().map_err(failed)?;
        loop {
            let peer = free_port().map_err(failed)?;
            if peer != client {
                return Ok(Self { client, peer });
            }
        }
    }
}

const NAME: &str = "etcd";

impl Etcd {
    /// Starts etcd in a temporary folder and waits until it answers.
    ///
    /// # Errors
    /// etcd is not installed, or does not come up.
    pub async fn start() -> Result<Self, ProcessError> {
        let failed = |source| ProcessError::System { name: NAME.to_owned(), action: "make its folder", source };
        let seat = Seat::take().map_err(failed)?;
        let path = seat.folder(NAME).map_err(failed)?;
        Self::start_with(DataDir { path, seat: Some(seat) }).await
    }

    /// Starts etcd in `data_dir`, which stays, and waits until it answers.
    ///
    /// # Errors
    /// etcd is not installed, or does not come up.
    pub async fn start_in(data_dir: &Path) -> Result<Self, ProcessError> {
        Self::start_with(DataDir { path: data_dir.to_owned(), seat: None }).await
    }

    async fn start_with(data_dir: DataDir) -> Result<Self, ProcessError> {
        let http = reqwest::Client::builder().no_proxy().timeout(HEALTH_TIMEOUT).build().map_err(|error| {
            ProcessError::System { name: NAME.to_owned(), action: "ask", source: std::io::Error::other(error) }
        })?;
        let name = format!("tidegate-{:016x}", fastrand::u64(..));
        let mut tries = 0;
        loop {
            tries += 1;
            let ports = Ports::free()?;
            let mut process = spawn(&data_dir.path, &name, ports)?;
            let endpoint = format!("http://127.0.0.1:{}", ports.client);
            match wait_until_healthy(&mut process, &http, &endpoint, &name).await {
                Ok(()) => return Ok(Self { process, data_dir, name, ports, endpoint, http }),
                Err(error) if tries < PORT_TRIES && is_port_taken(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The client URL, the same after every restart.
    #[must_use]
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// The process: to pause, resume, or read its log.
    pub const fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Whether etcd says it is healthy now.
    pub async fn is_healthy(&self) -> bool {
        is_healthy(&self.http, &self.endpoint).await
    }

    /// `etcdctl` against this etcd, whatever the user's environment says; to be given its arguments.
    ///
    /// # Errors
    /// It is not installed.
    pub fn etcdctl(&self) -> Result<Command, ProcessError> {
        let mut command = Command::new(find_program("etcdctl", "etcd-client")?);
        strip_environment(&mut command);
        command.env("ETCDCTL_API", "3").args(["--endpoints", &self.endpoint]);
        Ok(command)
    }

    /// Kills it at once (SIGKILL); data stays.
    ///
    /// # Errors
    /// It could not be reaped.
    pub fn kill(&mut self) -> Result<(), ProcessError> {
        self.process.kill().map(drop)
    }

    /// Starts it again on the same ports and data, killing it first if it runs, and waits until it answers.
    ///
    /// # Errors
    /// It does not come up.
    pub async fn restart(&mut self) -> Result<(), ProcessError> {
        self.kill()?;
        let mut tries = 0;
        loop {
            tries += 1;
            self.process = spawn(&self.data_dir.path, &self.name, self.ports)?;
            match wait_until_healthy(&mut self.process, &self.http, &self.endpoint, &self.name).await {
                Err(error) if tries < PORT_TRIES && is_port_taken(&error) => {}
                ended => return ended,
            }
        }
    }
}

fn spawn(data_dir: &Path, name: &str, ports: Ports) -> Result<Process, ProcessError> {
    let mut command = Command::new(find_program("etcd", "etcd-server")?);
    let client = format!("http://127.0.0.1:{}", ports.client);
    let peer = format!("http://127.0.0.1:{}", ports.peer);
    command
        .arg("--data-dir")
        .arg(data_dir)
        .args(["--name", name, "--logger", "zap"])
        .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
        .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
        .args(["--initial-cluster", &format!("{name}={peer}")]);
    Process::spawn(NAME, command, None)
}

async fn wait_until_healthy(
    process: &mut Process,
    http: &reqwest::Client,
    endpoint: &str,
    name: &str,
) -> Result<(), ProcessError> {
    let healthy = async {
        loop {
            if let Some(status) = process.status() {
                // Its last lines say why: let them arrive.
                let _ = process.wait(HEALTH_TIMEOUT).await;
                return Err(process.ended_with(status));
            }
            if is_healthy(http, endpoint).await && is_called(http, endpoint, name).await {
                return Ok(());
            }
            tokio::time::sleep(POLL).await;
        }
    };
    match tokio::time::timeout(START_TIMEOUT, healthy).await {
        Ok(outcome) => outcome,
        Err(_) => Err(process.timed_out("healthy answer", START_TIMEOUT)),
    }
}

async fn is_healthy(http: &reqwest::Client, endpoint: &str) -> bool {
    let answer = http.get(format!("{endpoint}/health")).send().await;
    answer.is_ok_and(|response| response.status().is_success())
}

/// Whether it is ours that answers: whoever was quicker at the port answers while ours is still finding that out.
async fn is_called(http: &reqwest::Client, endpoint: &str, name: &str) -> bool {
    let answer = http.post(format!("{endpoint}/v3/cluster/member/list")).json(&json!({})).send().await;
    let Ok(answer) = answer else { return false };
    answer.json::<Value>().await.is_ok_and(|list| list["members"][0]["name"] == name)
}

fn is_port_taken(error: &ProcessError) -> bool {
    matches!(error, ProcessError::Ended { tail, .. } if tail.contains("address already in use"))
}
