//! A real etcd of one member, to be killed and started again: on loopback, in a folder of its own.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::process::{POLL, Process, ProcessError, find_program, free_port};

/// How long etcd may take to answer.
const START_TIMEOUT: Duration = Duration::from_secs(20);
/// How long one health question may take.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(1);
/// Tries with other ports when somebody was quicker.
const PORT_TRIES: usize = 5;

/// The path of `etcdctl`.
///
/// # Errors
/// It is not installed.
pub fn etcdctl() -> Result<PathBuf, ProcessError> {
    find_program("etcdctl", "etcd-client")
}

/// The data folder, removed on drop unless the caller named it.
#[derive(Debug)]
struct DataDir {
    path: PathBuf,
    is_ours: bool,
}

impl Drop for DataDir {
    fn drop(&mut self) {
        if self.is_ours {
            // It is in the temporary folder; leaving it there is no harm.
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
        let folder = format!("tidegate-etcd-{}-{:016x}", std::process::id(), fastrand::u64(..));
        let path = std::env::temp_dir().join(folder);
        Self::start_with(DataDir { path, is_ours: true }).await
    }

    /// Starts etcd in `data_dir`, which stays, and waits until it answers.
    ///
    /// # Errors
    /// etcd is not installed, or does not come up.
    pub async fn start_in(data_dir: &Path) -> Result<Self, ProcessError> {
        Self::start_with(DataDir { path: data_dir.to_owned(), is_ours: false }).await
    }

    async fn start_with(data_dir: DataDir) -> Result<Self, ProcessError> {
        let http = reqwest::Client::builder().no_proxy().timeout(HEALTH_TIMEOUT).build().map_err(|error| {
            ProcessError::System { name: NAME.to_owned(), action: "ask", source: std::io::Error::other(error) }
        })?;
        let mut tries = 0;
        loop {
            tries += 1;
            let ports = Ports::free()?;
            let mut process = spawn(&data_dir.path, ports)?;
            let endpoint = format!("http://127.0.0.1:{}", ports.client);
            match wait_until_healthy(&mut process, &http, &endpoint).await {
                Ok(()) => return Ok(Self { process, data_dir, ports, endpoint, http }),
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
            self.process = spawn(&self.data_dir.path, self.ports)?;
            match wait_until_healthy(&mut self.process, &self.http, &self.endpoint).await {
                Err(error) if tries < PORT_TRIES && is_port_taken(&error) => {}
                ended => return ended,
            }
        }
    }
}

fn spawn(data_dir: &Path, ports: Ports) -> Result<Process, ProcessError> {
    let mut command = Command::new(find_program("etcd", "etcd-server")?);
    let client = format!("http://127.0.0.1:{}", ports.client);
    let peer = format!("http://127.0.0.1:{}", ports.peer);
    command
        .arg("--data-dir")
        .arg(data_dir)
        .args(["--name", "tidegate", "--logger", "zap"])
        .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
        .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
        .args(["--initial-cluster", &format!("tidegate={peer}")]);
    // The caller's ETCD_* would set what is not set here.
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("ETCD_")) {
        command.env_remove(name);
    }
    Process::spawn(NAME, command, None)
}

async fn wait_until_healthy(process: &mut Process, http: &reqwest::Client, endpoint: &str) -> Result<(), ProcessError> {
    let healthy = async {
        loop {
            if let Some(status) = process.status() {
                // Its last lines say why: let them arrive.
                let _ = process.wait(HEALTH_TIMEOUT).await;
                return Err(process.ended_with(status));
            }
            if is_healthy(http, endpoint).await {
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

fn is_port_taken(error: &ProcessError) -> bool {
    matches!(error, ProcessError::Ended { tail, .. } if tail.contains("address already in use"))
}
