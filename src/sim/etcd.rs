//! A real etcd of one member, or of several, to be killed and started again: on loopback, on ports of its own, in a folder of
//! its own, and never taken for another one that was quicker at a port.

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

impl DataDir {
    fn temporary() -> Result<Self, ProcessError> {
        let failed = |source| ProcessError::System { name: NAME.to_owned(), action: "make its folder", source };
        let seat = Seat::take().map_err(failed)?;
        Ok(Self { path: seat.folder(NAME).map_err(failed)?, seat: Some(seat) })
    }
}

impl Drop for DataDir {
    fn drop(&mut self) {
        if self.seat.is_some() {
            // Whatever stays goes with the seat.
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}

/// How an etcd is to be, beside where it is.
#[derive(Debug, Clone, Default)]
pub struct EtcdSetup {
    /// Speaks TLS, with clients and among its members, and wants a certificate of everyone.
    pub tls: Option<EtcdServerTls>,
    /// How large its database may become, in bytes; etcd's own 2 GiB otherwise.
    pub quota_bytes: Option<u64>,
}

/// PEM files of an etcd.
#[derive(Debug, Clone)]
pub struct EtcdServerTls {
    /// Who is to have signed everyone's certificate.
    pub authorities: PathBuf,
    /// Its own, for 127.0.0.1, as a server and as a client of other members.
    pub certificate: PathBuf,
    /// That certificate's key.
    pub key: PathBuf,
}

impl EtcdSetup {
    fn url(&self, port: u16) -> String {
        format!("{}://127.0.0.1:{port}", if self.tls.is_some() { "https" } else { "http" })
    }
}

/// How a member is started, and started again.
#[derive(Debug, Clone)]
struct Start {
    /// Which no other etcd has.
    name: String,
    ports: Ports,
    /// Where the other members find it.
    peer_url: String,
    /// All members, as etcd wants them named.
    cluster: String,
    setup: EtcdSetup,
}

/// A running (or killed) etcd. Killed, reaped and, in a temporary folder, removed on drop.
#[derive(Debug)]
pub struct Etcd {
    // In this order on drop: first the process, then what it writes to.
    process: Process,
    data_dir: DataDir,
    start: Start,
    endpoint: String,
    http: reqwest::Client,
}

#[derive(Debug, Clone, Copy)]
struct Ports {
    client: u16,
    peer: u16,
    /// Where it tells of its health without TLS.
    health: u16,
}

impl Ports {
    fn free() -> Result<Self, ProcessError> {
        let failed = |source| ProcessError::System { name: NAME.to_owned(), action: "find a free port", source };
        loop {
            let mut ports = [0; 3];
            for port in &mut ports {
                *port = free_port().map_err(failed)?;
            }
            let [client, peer, health] = ports;
            if client != peer && peer != health && health != client {
                return Ok(Self { client, peer, health });
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
        Self::start_as(&EtcdSetup::default()).await
    }

    /// The same with a setup.
    ///
    /// # Errors
    /// etcd is not installed, or does not come up.
    pub async fn start_as(setup: &EtcdSetup) -> Result<Self, ProcessError> {
        Self::start_alone(setup, DataDir::temporary).await
    }

    /// Starts etcd in `data_dir`, which stays, and waits until it answers.
    ///
    /// # Errors
    /// etcd is not installed, or does not come up.
    pub async fn start_in(data_dir: &Path) -> Result<Self, ProcessError> {
        Self::start_alone(&EtcdSetup::default(), || Ok(DataDir { path: data_dir.to_owned(), seat: None })).await
    }

    async fn start_alone(
        setup: &EtcdSetup,
        folder: impl Fn() -> Result<DataDir, ProcessError>,
    ) -> Result<Self, ProcessError> {
        let mut tries = 0;
        loop {
            tries += 1;
            let name = new_name();
            let ports = Ports::free()?;
            let peer_url = setup.url(ports.peer);
            let cluster = format!("{name}={peer_url}");
            let mut etcd = Self::spawn(folder()?, Start { name, ports, peer_url, cluster, setup: setup.clone() })?;
            match etcd.healthy().await {
                Err(error) if tries < PORT_TRIES && is_port_taken(&error) => {}
                ended => return ended.map(|()| etcd),
            }
        }
    }

    /// Starts so many members of one cluster, each in a temporary folder, and waits until all answer.
    ///
    /// # Errors
    /// etcd is not installed, or one does not come up.
    pub async fn start_cluster(members: usize, setup: &EtcdSetup) -> Result<Vec<Self>, ProcessError> {
        Self::start_cluster_behind(members, setup, async |peer_url| peer_url).await
    }

    /// The same, where members find each other by a way that leads to the URL it is made for.
    ///
    /// # Errors
    /// etcd is not installed, or one does not come up.
    pub async fn start_cluster_behind(
        members: usize,
        setup: &EtcdSetup,
        mut way: impl AsyncFnMut(String) -> String,
    ) -> Result<Vec<Self>, ProcessError> {
        let mut planned = Vec::with_capacity(members);
        for _ in 0..members {
            let ports = Ports::free()?;
            planned.push((new_name(), ports, way(setup.url(ports.peer)).await));
        }
        let named = planned.iter().map(|(name, _, peer_url)| format!("{name}={peer_url}"));
        let cluster = named.collect::<Vec<_>>().join(",");
        let mut started = Vec::with_capacity(members);
        for (name, ports, peer_url) in planned {
            let start = Start { name, ports, peer_url, cluster: cluster.clone(), setup: setup.clone() };
            started.push(Self::spawn(DataDir::temporary()?, start)?);
        }
        for member in &mut started {
            member.healthy().await?;
        }
        Ok(started)
    }

    fn spawn(data_dir: DataDir, start: Start) -> Result<Self, ProcessError> {
        let http = reqwest::Client::builder().no_proxy().timeout(HEALTH_TIMEOUT).build().map_err(|error| {
            ProcessError::System { name: NAME.to_owned(), action: "ask", source: std::io::Error::other(error) }
        })?;
        let process = spawn(&data_dir.path, &start)?;
        Ok(Self { process, data_dir, endpoint: start.setup.url(start.ports.client), start, http })
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
        let answer = self.http.get(format!("http://127.0.0.1:{}/health", self.start.ports.health)).send().await;
        answer.is_ok_and(|response| response.status().is_success())
    }

    /// Whether it is ours that answers: whoever was quicker at the port answers while ours is still finding that out.
    async fn is_ours(&self) -> bool {
        if self.start.setup.tls.is_some() {
            // Nobody else has such a certificate.
            return true;
        }
        let answer = self.http.post(format!("{}/v3/cluster/member/list", self.endpoint)).json(&json!({})).send().await;
        let Ok(answer) = answer else { return false };
        let list = answer.json::<Value>().await.unwrap_or_default();
        list["members"].as_array().is_some_and(|members| members.iter().any(|one| one["name"] == self.start.name))
    }

    /// Waits until it answers.
    async fn healthy(&mut self) -> Result<(), ProcessError> {
        let healthy = async {
            loop {
                if let Some(status) = self.process.status() {
                    // Its last lines say why: let them arrive.
                    let _ = self.process.wait(START_TIMEOUT).await;
                    return Err(self.process.ended_with(status));
                }
                if self.is_healthy().await && self.is_ours().await {
                    return Ok(());
                }
                tokio::time::sleep(POLL).await;
            }
        };
        match tokio::time::timeout(START_TIMEOUT, healthy).await {
            Ok(outcome) => outcome,
            Err(_) => Err(self.process.timed_out("healthy answer", START_TIMEOUT)),
        }
    }

    /// `etcdctl` against this etcd, whatever the user's environment says; to be given its arguments.
    ///
    /// # Errors
    /// It is not installed.
    pub fn etcdctl(&self) -> Result<Command, ProcessError> {
        let mut command = Command::new(find_program("etcdctl", "etcd-client")?);
        strip_environment(&mut command);
        command.env("ETCDCTL_API", "3").args(["--endpoints", &self.endpoint]);
        if let Some(tls) = &self.start.setup.tls {
            command
                .arg("--cacert")
                .arg(&tls.authorities)
                .arg("--cert")
                .arg(&tls.certificate)
                .arg("--key")
                .arg(&tls.key);
        }
        Ok(command)
    }

    /// Kills it at once (SIGKILL); data stays.
    ///
    /// # Errors
    /// It could not be reaped.
    pub fn kill(&mut self) -> Result<(), ProcessError> {
        self.process.kill().map(drop)
    }

    /// Kills it, puts the data of a backup in place of its own, and starts it again on the same ports. For one member alone.
    ///
    /// # Errors
    /// The backup cannot be read, or etcd does not come up.
    pub async fn restore(&mut self, snapshot: &Path) -> Result<(), ProcessError> {
        self.kill()?;
        let failed = |source| ProcessError::System { name: NAME.to_owned(), action: "restore a backup", source };
        std::fs::remove_dir_all(&self.data_dir.path).map_err(failed)?;
        let Start { name, peer_url, cluster, .. } = &self.start;
        let mut command = self.etcdctl()?;
        command.args(["snapshot", "restore"]).arg(snapshot).arg("--data-dir").arg(&self.data_dir.path);
        command.args(["--name", name, "--initial-cluster", cluster]);
        command.args(["--initial-advertise-peer-urls", peer_url]);
        let output = command.output().map_err(failed)?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(failed(std::io::Error::other(said)));
        }
        self.restart().await
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
            self.process = spawn(&self.data_dir.path, &self.start)?;
            match self.healthy().await {
                Err(error) if tries < PORT_TRIES && is_port_taken(&error) => {}
                ended => return ended,
            }
        }
    }
}

/// A member's name, which no other etcd has.
fn new_name() -> String {
    format!("tidegate-{:016x}", fastrand::u64(..))
}

fn spawn(data_dir: &Path, Start { name, ports, peer_url, cluster, setup }: &Start) -> Result<Process, ProcessError> {
    let mut command = Command::new(find_program("etcd", "etcd-server")?);
    let (client, peer) = (setup.url(ports.client), setup.url(ports.peer));
    command
        .arg("--data-dir")
        .arg(data_dir)
        .args(["--name", name, "--logger", "zap"])
        .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
        .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", peer_url])
        .args(["--listen-metrics-urls", &format!("http://127.0.0.1:{}", ports.health)])
        .args(["--initial-cluster", cluster]);
    if let Some(bytes) = setup.quota_bytes {
        command.args(["--quota-backend-bytes", &bytes.to_string()]);
    }
    if let Some(tls) = &setup.tls {
        command.args(["--client-cert-auth", "--peer-client-cert-auth"]);
        command.arg("--trusted-ca-file").arg(&tls.authorities).arg("--peer-trusted-ca-file").arg(&tls.authorities);
        command.arg("--cert-file").arg(&tls.certificate).arg("--peer-cert-file").arg(&tls.certificate);
        command.arg("--key-file").arg(&tls.key).arg("--peer-key-file").arg(&tls.key);
    }
    Process::spawn(NAME, command, None)
}

fn is_port_taken(error: &ProcessError) -> bool {
    matches!(error, ProcessError::Ended { tail, .. } if tail.contains("address already in use"))
}
