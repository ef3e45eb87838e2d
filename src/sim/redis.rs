//! A real Redis, to be killed and started again: on loopback, on a port of its own, in a folder of its own, and never taken for
//! another one that was quicker at a port.
//!
//! It is asked through a socket in its folder, which nobody else has, whatever it speaks at its port. It opens that one after the
//! port: who answers there has the port too.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::process::{POLL, Process, ProcessError, find_program, free_port};
use super::seat::{Seat, strip_environment};

/// How long Redis may take to answer, what it has written down read again.
const START_TIMEOUT: Duration = Duration::from_secs(20);
/// How long one PING may take.
const PING_TIMEOUT: Duration = Duration::from_secs(1);
/// Tries with other ports when somebody was quicker.
const PORT_TRIES: usize = 5;
/// Its socket's name. Short, as the whole path may have some hundred bytes only.
const SOCKET: &str = "s";
const CONFIGURATION: &str = "redis.conf";
const NAME: &str = "redis";

/// How a Redis is to be, beside where it is.
#[derive(Debug, Clone, Default)]
pub struct RedisSetup {
    /// Writes each change down before it answers (`appendonly yes`, `appendfsync always`). Otherwise nothing outlives a kill.
    pub appendonly: bool,
    /// Speaks TLS at its port, and nothing else.
    pub tls: Option<RedisServerTls>,
    /// The only user, and its password; otherwise everyone may do everything.
    pub user: Option<(String, String)>,
    /// Further lines of its configuration file.
    pub settings: Vec<String>,
}

/// PEM files of a Redis.
#[derive(Debug, Clone)]
pub struct RedisServerTls {
    /// Who is to have signed clients' certificates.
    pub authorities: PathBuf,
    /// Its own, for 127.0.0.1.
    pub certificate: PathBuf,
    /// That certificate's key.
    pub key: PathBuf,
    /// Whether it wants a certificate of everyone.
    pub asks_clients: bool,
}

impl RedisSetup {
    /// The configuration file, for a port and a folder.
    fn configuration(&self, port: u16, folder: &Path) -> String {
        let quoted =
            |path: &Path| format!("\"{}\"", path.display().to_string().replace('\\', "\\\\").replace('"', "\\\""));
        let mut lines = vec![
            "bind 127.0.0.1".to_owned(),
            format!("dir {}", quoted(folder)),
            format!("unixsocket {}", quoted(&folder.join(SOCKET))),
            "save \"\"".to_owned(),
        ];
        if self.appendonly {
            lines.extend(["appendonly yes", "appendfsync always"].map(str::to_owned));
        }
        match &self.tls {
            None => lines.push(format!("port {port}")),
            Some(tls) => {
                lines.extend(["port 0".to_owned(), format!("tls-port {port}")]);
                lines.push(format!("tls-ca-cert-file {}", quoted(&tls.authorities)));
                lines.push(format!("tls-cert-file {}", quoted(&tls.certificate)));
                lines.push(format!("tls-key-file {}", quoted(&tls.key)));
                lines.push(format!("tls-auth-clients {}", if tls.asks_clients { "yes" } else { "no" }));
            }
        }
        if let Some((name, password)) = &self.user {
            lines.push("user default off".to_owned());
            lines.push(format!("user {name} on >{password} ~* &* +@all"));
        }
        lines.extend(self.settings.iter().cloned());
        lines.push(String::new());
        lines.join("\n")
    }
}

/// A running (or killed) Redis. Killed, reaped and its folder removed on drop.
#[derive(Debug)]
pub struct RedisServer {
    // In this order on drop: first the process, then what it writes to.
    process: Process,
    folder: Folder,
    setup: RedisSetup,
    port: u16,
}

#[derive(Debug)]
struct Folder {
    path: PathBuf,
    _seat: Seat,
}

impl Folder {
    fn make() -> Result<Self, ProcessError> {
        let seat = Seat::take().map_err(failed("make its folder"))?;
        Ok(Self { path: seat.folder(NAME).map_err(failed("make its folder"))?, _seat: seat })
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Whatever stays goes with the seat.
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

fn failed(action: &'static str) -> impl Fn(io::Error) -> ProcessError {
    move |source| ProcessError::System { name: NAME.to_owned(), action, source }
}

impl RedisServer {
    /// Starts a Redis that forgets all when it is killed, and waits until it answers.
    ///
    /// # Errors
    /// redis-server is not installed, or does not come up.
    pub async fn start() -> Result<Self, ProcessError> {
        Self::start_as(&RedisSetup::default()).await
    }

    /// The same with a setup.
    ///
    /// # Errors
    /// redis-server is not installed, or does not come up.
    pub async fn start_as(setup: &RedisSetup) -> Result<Self, ProcessError> {
        let mut tries = 0;
        loop {
            tries += 1;
            let (folder, port) = (Folder::make()?, free_port().map_err(failed("find a free port"))?);
            let configuration = setup.configuration(port, &folder.path);
            std::fs::write(folder.path.join(CONFIGURATION), configuration)
                .map_err(failed("write its configuration"))?;
            let process = spawn(&folder.path)?;
            let mut server = Self { process, folder, setup: setup.clone(), port };
            match server.answering().await {
                Err(error) if tries < PORT_TRIES && is_port_taken(&error) => {}
                ended => return ended.map(|()| server),
            }
        }
    }

    /// Where it is, with the user and the password if there is one: the same after every start.
    #[must_use]
    pub fn url(&self) -> String {
        let scheme = if self.setup.tls.is_some() { "rediss" } else { "redis" };
        let user = self.setup.user.as_ref().map(|(name, password)| format!("{name}:{password}@")).unwrap_or_default();
        format!("{scheme}://{user}127.0.0.1:{}", self.port)
    }

    /// Its port on 127.0.0.1.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// The process, to read its log.
    pub const fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// `redis-cli` on this Redis, as its user, whatever the environment says; to be given its arguments.
    ///
    /// # Errors
    /// It is not installed.
    pub fn redis_cli(&self) -> Result<Command, ProcessError> {
        let mut command = Command::new(find_program("redis-cli", "redis-tools")?);
        strip_environment(&mut command);
        command.env_remove("REDISCLI_AUTH").arg("-s").arg(self.folder.path.join(SOCKET));
        if let Some((name, password)) = &self.setup.user {
            command.env("REDISCLI_AUTH", password).args(["--user", name, "--no-auth-warning"]);
        }
        Ok(command)
    }

    /// Kills it at once (SIGKILL). What it has written down stays.
    ///
    /// # Errors
    /// It could not be reaped.
    pub fn kill(&mut self) -> Result<(), ProcessError> {
        self.process.kill().map(drop)
    }

    /// Asks it to end (SIGTERM), kills it if it does not in 3 s, and reaps it.
    ///
    /// # Errors
    /// It could not be signalled.
    pub async fn terminate(&mut self) -> Result<ExitStatus, ProcessError> {
        self.process.terminate().await
    }

    /// Stops it where it stands (SIGSTOP): connections stay, nothing is answered.
    ///
    /// # Errors
    /// It has ended.
    pub fn pause(&mut self) -> Result<(), ProcessError> {
        self.process.pause()
    }

    /// Lets it go on (SIGCONT).
    ///
    /// # Errors
    /// It has ended.
    pub fn resume(&mut self) -> Result<(), ProcessError> {
        self.process.resume()
    }

    /// Starts it again at the same port and in the same folder, killing it first if it runs, and waits until it answers.
    ///
    /// # Errors
    /// It does not come up.
    pub async fn start_again(&mut self) -> Result<(), ProcessError> {
        self.kill()?;
        let mut tries = 0;
        loop {
            tries += 1;
            self.process = spawn(&self.folder.path)?;
            match self.answering().await {
                Err(error) if tries < PORT_TRIES && is_port_taken(&error) => {}
                ended => return ended,
            }
        }
    }

    /// Whether it answers now: not while it reads what it had written down.
    pub async fn answers(&self) -> bool {
        matches!(tokio::time::timeout(PING_TIMEOUT, self.ping()).await, Ok(Ok(true)))
    }

    async fn ping(&self) -> io::Result<bool> {
        let mut socket = UnixStream::connect(self.folder.path.join(SOCKET)).await?;
        let auth = self.setup.user.as_ref().map(|(name, password)| format!("AUTH {name} {password}\r\n"));
        socket.write_all(format!("{}PING\r\nQUIT\r\n", auth.unwrap_or_default()).as_bytes()).await?;
        let mut said = String::new();
        socket.read_to_string(&mut said).await?;
        Ok(said.lines().any(|line| line == "+PONG"))
    }

    /// Waits until it answers.
    async fn answering(&mut self) -> Result<(), ProcessError> {
        let answering = async {
            loop {
                if let Some(status) = self.process.status() {
                    // Its last lines say why: let them arrive.
                    let _ = self.process.wait(START_TIMEOUT).await;
                    return Err(self.process.ended_with(status));
                }
                if self.answers().await {
                    return Ok(());
                }
                tokio::time::sleep(POLL).await;
            }
        };
        match tokio::time::timeout(START_TIMEOUT, answering).await {
            Ok(outcome) => outcome,
            Err(_) => Err(self.process.timed_out("answer to PING", START_TIMEOUT)),
        }
    }
}

fn spawn(folder: &Path) -> Result<Process, ProcessError> {
    let mut command = Command::new(find_program("redis-server", "redis-server")?);
    command.arg(folder.join(CONFIGURATION));
    Process::spawn(NAME, command, None)
}

fn is_port_taken(error: &ProcessError) -> bool {
    matches!(error, ProcessError::Ended { tail, .. } if tail.contains("Address already in use"))
}
