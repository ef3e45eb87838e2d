//! Real processes under control: what `tidegate demo` and the tests start, pause, kill and wait for.
//!
//! A [`Process`] leads its own process group, so a signal reaches its children too and a Ctrl-C in the terminal does
//! not. Its output goes into a bounded ring (and a file if wanted), never to the terminal. Whatever happens to the
//! test, dropping it kills and reaps; if the test's process is itself killed, the next one's [`Seat`] does. Waiting is
//! polling the real condition with a deadline.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use parking_lot::Mutex;

use super::seat::{Seat, strip_environment};

/// Output lines kept for each process.
pub const LINES_KEPT: usize = 4_096;
/// Longest line kept, in bytes; the rest is cut.
pub const LINE_BYTES_MAX: usize = 4_096;
/// How long [`Process::terminate`] waits before it kills.
pub const TERMINATE_GRACE: Duration = Duration::from_secs(3);
/// How often conditions are looked at.
pub(super) const POLL: Duration = Duration::from_millis(10);
/// Output lines an error quotes.
const LINES_QUOTED: usize = 5;
/// Ports to draw from, below the range from which Linux takes ports for outgoing connections: a client that keeps
/// connecting to a dead server's port there may end up connected to itself, and hold the port.
const PORTS: std::ops::Range<u16> = 20_000..32_000;
const PORT_TRIES: usize = 200;

/// Why a process did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// A program that must be installed is not.
    #[error("{program} not found: apt-get install {package}, or run `make tools`")]
    Missing {
        /// The program looked for.
        program: &'static str,
        /// The package that has it.
        package: &'static str,
    },
    /// It could not be started, signalled or read.
    #[error("{name}: cannot {action}: {source}")]
    System {
        /// The process's name.
        name: String,
        /// What was tried.
        action: &'static str,
        /// What the operating system said.
        source: io::Error,
    },
    /// It ended while something was expected of it.
    #[error("{name}: ended ({status}); its last lines: {tail}")]
    Ended {
        /// The process's name.
        name: String,
        /// How it ended.
        status: ExitStatus,
        /// Its last lines.
        tail: String,
    },
    /// What was waited for did not come.
    #[error("{name}: no {what} within {} ms; its last lines: {tail}", timeout.as_millis())]
    TimedOut {
        /// The process's name.
        name: String,
        /// What was waited for.
        what: &'static str,
        /// For how long.
        timeout: Duration,
        /// Its last lines.
        tail: String,
    },
}

/// The last lines of a process, from stdout and stderr as they came.
#[derive(Debug, Default)]
struct Ring {
    lines: VecDeque<String>,
    /// Lines that have left the ring.
    dropped: u64,
    open_streams: usize,
    log: Option<File>,
}

impl Ring {
    fn push(&mut self, line: String) {
        if let Some(log) = &mut self.log {
            // A full disk must not stop the process that writes.
            let _ = writeln!(log, "{line}");
        }
        if self.lines.len() == LINES_KEPT {
            self.lines.pop_front();
            self.dropped += 1;
        }
        self.lines.push_back(line);
    }
}

/// A child process in its own process group. Killed and reaped on drop.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    group: Pid,
    ended: Option<ExitStatus>,
    ring: Arc<Mutex<Ring>>,
    /// Given up after the process is reaped.
    _seat: Seat,
}

impl Process {
    /// Starts `command` under a name for errors, at this process's [`Seat`] and without what would turn it elsewhere in
    /// the user's environment (`ETCD_*`, `ETCDCTL_*`, proxies); its lines also go to the file `log` if given.
    ///
    /// # Errors
    /// The program cannot be started or the log file not be created.
    pub fn spawn(name: &str, mut command: Command, log: Option<&Path>) -> Result<Self, ProcessError> {
        let failed = |action| move |source| ProcessError::System { name: name.to_owned(), action, source };
        let log = log.map(File::create).transpose().map_err(failed("create its log file"))?;
        let seat = Seat::take().map_err(failed("take a seat in the temporary folder for it"))?;
        seat.mark(&mut command);
        strip_environment(&mut command);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let mut child = command.spawn().map_err(failed("start"))?;
        let group = i32::try_from(child.id()).map(Pid::from_raw).map_err(io::Error::other).map_err(failed("start"))?;
        let ring = Arc::new(Mutex::new(Ring { open_streams: 2, log, ..Ring::default() }));
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        // From here on, an error drops the process and thereby kills it.
        let process = Self { name: name.to_owned(), child, group, ended: None, ring, _seat: seat };
        for stream in [stdout.map(|s| Box::new(s) as Stream), stderr.map(|s| Box::new(s) as Stream)] {
            let ring = Arc::clone(&process.ring);
            let read = move || {
                if let Some(stream) = stream {
                    collect(stream, &ring);
                }
                ring.lock().open_streams -= 1;
            };
            std::thread::Builder::new().name(format!("{name}-output")).spawn(read).map_err(failed("read output"))?;
        }
        Ok(process)
    }

    /// The name it was given.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id, also its group's.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has not ended. A paused process is running.
    pub fn is_running(&mut self) -> bool {
        self.status().is_none()
    }

    /// How it ended, if it has.
    pub fn status(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            // The only error is "no such child", which cannot be while `ended` is none.
            self.ended = self.child.try_wait().ok().flatten();
        }
        self.ended
    }

    /// The lines still in the ring, oldest first.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.ring.lock().lines.iter().cloned().collect()
    }

    /// The lines after the first `count`, as far as they are still in the ring, and the count to ask with next.
    #[must_use]
    pub fn lines_after(&self, count: u64) -> (Vec<String>, u64) {
        let ring = self.ring.lock();
        let skipped = usize::try_from(count.saturating_sub(ring.dropped)).unwrap_or(usize::MAX);
        (ring.lines.iter().skip(skipped).cloned().collect(), ring.dropped + ring.lines.len() as u64)
    }

    /// That it has not ended.
    ///
    /// # Errors
    /// It has, with its last words.
    pub fn check_running(&mut self) -> Result<(), ProcessError> {
        self.status().map_or(Ok(()), |status| Err(self.ended_with(status)))
    }

    /// Lines written so far: a place to wait from, with [`Process::wait_for_line_after`].
    #[must_use]
    pub fn line_count(&self) -> u64 {
        let ring = self.ring.lock();
        ring.dropped + ring.lines.len() as u64
    }

    /// The first line, past ones included, that `matches`.
    ///
    /// # Errors
    /// It ended without such a line, or none came in time.
    pub async fn wait_for_line(
        &mut self,
        matches: impl Fn(&str) -> bool,
        timeout: Duration,
    ) -> Result<String, ProcessError> {
        self.wait_for_line_after(0, matches, timeout).await
    }

    /// The first line after the first `count` that `matches`.
    ///
    /// # Errors
    /// It ended without such a line, or none came in time.
    pub async fn wait_for_line_after(
        &mut self,
        count: u64,
        matches: impl Fn(&str) -> bool,
        timeout: Duration,
    ) -> Result<String, ProcessError> {
        let mut seen = count;
        let search = async {
            loop {
                // Ended is looked at first: then the lines are all there once the streams are closed.
                let ended = self.status().filter(|_| self.ring.lock().open_streams == 0);
                if let Some(line) = self.find_line(&mut seen, &matches) {
                    return Ok(line);
                }
                if let Some(status) = ended {
                    return Err(self.ended_with(status));
                }
                tokio::time::sleep(POLL).await;
            }
        };
        match tokio::time::timeout(timeout, search).await {
            Ok(found) => found,
            Err(_) => Err(self.timed_out("such line", timeout)),
        }
    }

    fn find_line(&self, seen: &mut u64, matches: impl Fn(&str) -> bool) -> Option<String> {
        let ring = self.ring.lock();
        let skipped = usize::try_from(seen.saturating_sub(ring.dropped)).unwrap_or(usize::MAX);
        *seen = (*seen).max(ring.dropped + ring.lines.len() as u64);
        ring.lines.iter().skip(skipped).find(|line| matches(line)).cloned()
    }

    /// Waits until it has ended by itself and its output is read.
    ///
    /// # Errors
    /// It had not ended in time.
    pub async fn wait(&mut self, timeout: Duration) -> Result<ExitStatus, ProcessError> {
        let end = async {
            loop {
                if let Some(status) = self.status().filter(|_| self.ring.lock().open_streams == 0) {
                    return status;
                }
                tokio::time::sleep(POLL).await;
            }
        };
        match tokio::time::timeout(timeout, end).await {
            Ok(status) => Ok(status),
            Err(_) => Err(self.timed_out("end", timeout)),
        }
    }

    /// Stops it where it stands (SIGSTOP); when this returns, all its threads have stopped.
    ///
    /// # Errors
    /// It has ended.
    pub fn pause(&mut self) -> Result<(), ProcessError> {
        self.signal(Signal::SIGSTOP, "pause")?;
        // The signal only asks: a busy thread may answer one more request before the stop is complete. Waiting for
        // stops alone leaves the exit status to be read by `status`.
        let stopped = WaitPidFlag::WSTOPPED | WaitPidFlag::WNOWAIT;
        waitid(Id::Pid(self.group), stopped).map(drop).map_err(|errno| self.failed("pause", errno.into()))
    }

    /// Lets it go on (SIGCONT).
    ///
    /// # Errors
    /// It has ended.
    pub fn resume(&mut self) -> Result<(), ProcessError> {
        self.signal(Signal::SIGCONT, "resume")
    }

    /// Asks it to end (SIGTERM), kills it after [`TERMINATE_GRACE`], and reaps it.
    ///
    /// # Errors
    /// It could not be signalled. Having ended already is none.
    pub async fn terminate(&mut self) -> Result<ExitStatus, ProcessError> {
        // A paused process would not see the signal. One that is quick has ended between the two.
        let asked = self.signal(Signal::SIGTERM, "terminate").and_then(|()| self.signal(Signal::SIGCONT, "terminate"));
        if let Some(status) = ended_or_failed(asked)? {
            return Ok(status);
        }
        let grace = async {
            loop {
                if let Some(status) = self.status() {
                    return status;
                }
                tokio::time::sleep(POLL).await;
            }
        };
        match tokio::time::timeout(TERMINATE_GRACE, grace).await {
            Ok(status) => Ok(status),
            Err(_) => self.kill(),
        }
    }

    /// Kills it and its group (SIGKILL) and reaps it; paused or not, it is gone when this returns.
    ///
    /// # Errors
    /// It could not be reaped. Having ended already is none.
    pub fn kill(&mut self) -> Result<ExitStatus, ProcessError> {
        if let Some(status) = ended_or_failed(self.signal(Signal::SIGKILL, "kill"))? {
            return Ok(status);
        }
        let status = self.child.wait().map_err(|source| self.failed("reap", source))?;
        self.ended = Some(status);
        Ok(status)
    }

    /// Until it is reaped its id is not given to another process, so the group is ours.
    fn signal(&mut self, signal: Signal, action: &'static str) -> Result<(), ProcessError> {
        if let Some(status) = self.status() {
            return Err(self.ended_with(status));
        }
        killpg(self.group, signal).map_err(|errno| self.failed(action, errno.into()))
    }

    fn failed(&self, action: &'static str, source: io::Error) -> ProcessError {
        ProcessError::System { name: self.name.clone(), action, source }
    }

    pub(super) fn ended_with(&self, status: ExitStatus) -> ProcessError {
        ProcessError::Ended { name: self.name.clone(), status, tail: self.tail() }
    }

    pub(super) fn timed_out(&self, what: &'static str, timeout: Duration) -> ProcessError {
        ProcessError::TimedOut { name: self.name.clone(), what, timeout, tail: self.tail() }
    }

    fn tail(&self) -> String {
        let ring = self.ring.lock();
        let lines = ring.lines.iter().skip(ring.lines.len().saturating_sub(LINES_QUOTED));
        lines.map(String::as_str).collect::<Vec<_>>().join(" | ")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Nobody is left to tell.
        let _ = self.kill();
    }
}

type Stream = Box<dyn Read + Send>;

fn collect(stream: Stream, ring: &Mutex<Ring>) {
    let mut reader = BufReader::new(stream);
    let mut bytes = Vec::new();
    // An unreadable stream is a finished one.
    while reader.read_until(b'\n', &mut bytes).is_ok_and(|read| read > 0) {
        let end = if bytes.last() == Some(&b'\n') { bytes.len() - 1 } else { bytes.len() };
        ring.lock().push(String::from_utf8_lossy(&bytes[..end.min(LINE_BYTES_MAX)]).into_owned());
        bytes.clear();
    }
}

/// How it had ended when it was to be signalled, if it had.
fn ended_or_failed(signalled: Result<(), ProcessError>) -> Result<Option<ExitStatus>, ProcessError> {
    match signalled {
        Ok(()) => Ok(None),
        Err(ProcessError::Ended { status, .. }) => Ok(Some(status)),
        Err(error) => Err(error),
    }
}

/// A loopback TCP port on which nothing listens now.
///
/// # Errors
/// None was found.
pub fn free_port() -> io::Result<u16> {
    let mut last = io::ErrorKind::AddrInUse.into();
    for _ in 0..PORT_TRIES {
        match TcpListener::bind(("127.0.0.1", fastrand::u16(PORTS))) {
            Ok(listener) => return Ok(listener.local_addr()?.port()),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// The first of `program` on PATH, in `/usr/sbin` or in `/usr/bin`.
///
/// # Errors
/// It is in none of them; the text says how to get it, from the Debian `package`.
pub fn find_program(program: &'static str, package: &'static str) -> Result<PathBuf, ProcessError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/usr/bin"].map(PathBuf::from))
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
        .ok_or(ProcessError::Missing { program, package })
}
