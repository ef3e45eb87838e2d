//! A seat: what one running demo or test process holds on this machine, so that two never collide, and so that what
//! one leaves behind when it is killed is found and cleaned up by the next.
//!
//! It is a folder `tidegate-<pid>-<random>` in the temporary folder, with a lock file that the kernel unlocks when its
//! owner dies, `kill -9` included. Every child carries the folder's name in its environment, under [`MARK`]: a mark needs
//! no list that a kill could cut short, children's children have it too, and no reused process id is ever taken for
//! theirs. Who takes a seat first sweeps those whose lock is free: their marked processes are killed, their folder is
//! removed. What is not provably the user's own leftover is left alone, and no leftover ever fails a start.
//!
//! Without a Linux `/proc` no environment can be read, so nothing is killed; folders are removed all the same.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Weak};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use parking_lot::Mutex;

use super::process::POLL;

/// The environment variable in which each child has the name of its seat's folder, after those of the seats that its
/// owner was itself started at: `<outer>/<inner>`.
pub const MARK: &str = "TIDEGATE_SEAT";
/// The lock file's name.
pub const LOCK: &str = "lock";
const NAME_START: &str = "tidegate-";
const RANDOM_DIGITS: usize = 16;
/// Its folder's mode: its user's alone.
const MODE: u32 = 0o700;
/// Most folders of one name.
const SAME_NAME_MAX: usize = 10_000;
/// How often a sweep looks whether what it killed is gone: for 2 s.
const SWEEP_POLLS: usize = 200;
/// Variables that would turn loopback calls, or the programs that make them, elsewhere.
const INTERFERES: [&str; 6] = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"];
const INTERFERES_BEGINNING: [&str; 2] = ["ETCD_", "ETCDCTL_"];

/// The seat that this process holds now, if any.
static HELD: Mutex<Weak<Held>> = Mutex::new(Weak::new());

/// A process's seat. Clones are the same one; the folder goes with the last.
#[derive(Debug, Clone)]
pub struct Seat(Arc<Held>);

#[derive(Debug)]
struct Held {
    mark: String,
    path: PathBuf,
    swept: Swept,
    /// Locked as long as it is open.
    _lock: File,
}

impl Drop for Held {
    fn drop(&mut self) {
        // Locked still, so that no sweep comes between. A child that was killed itself has left its own children, and with
        // this folder the seat by which a sweep would find them goes. What cannot be removed is what the next sweep finds.
        if let Some(name) = self.path.file_name().and_then(|name| name.to_str()) {
            clean(&self.path, name);
        }
    }
}

/// What was left behind by runs that were killed, and is gone now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Swept {
    /// Processes killed.
    pub processes: usize,
    /// Folders removed.
    pub folders: usize,
}

impl Swept {
    /// Whether there was nothing to clean.
    #[must_use]
    pub const fn is_nothing(self) -> bool {
        self.processes == 0 && self.folders == 0
    }
}

impl fmt::Display for Swept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = |n: usize, one: &str, more: &str| format!("{n} {}", if n == 1 { one } else { more });
        let (processes, folders) =
            (count(self.processes, "process", "processes"), count(self.folders, "folder", "folders"));
        write!(f, "cleaned up after an earlier run that was killed: {processes}, {folders}")
    }
}

impl Seat {
    /// This process's seat: the one it holds, or a new one in the temporary folder.
    ///
    /// # Errors
    /// The folder cannot be made or locked.
    pub fn take() -> io::Result<Self> {
        // Held while sweeping too: one sweep a process.
        let mut held = HELD.lock();
        if let Some(seat) = held.upgrade() {
            return Ok(Self(seat));
        }
        let seat = Self::take_in(&std::env::temp_dir())?;
        *held = Arc::downgrade(&seat.0);
        Ok(seat)
    }

    /// A new seat in `temp`, after a sweep of it, whatever seat this process has elsewhere.
    ///
    /// # Errors
    /// The folder cannot be made or locked.
    pub fn take_in(temp: &Path) -> io::Result<Self> {
        let (name, path, lock) = make(temp)?;
        let mark = std::env::var(MARK).map_or_else(|_| name.clone(), |outer| format!("{outer}/{name}"));
        let swept = lock.metadata().map_or_else(|_| Swept::default(), |own| sweep(temp, own.uid()));
        Ok(Self(Arc::new(Held { mark, path, swept, _lock: lock })))
    }

    /// Its folder, readable for this user alone.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// What was cleaned up when it was taken.
    #[must_use]
    pub fn swept(&self) -> Swept {
        self.0.swept
    }

    /// A new folder in it; `name` is what it is called, with a number where there is one already.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn folder(&self, name: &str) -> io::Result<PathBuf> {
        let names = std::iter::once(name.to_owned()).chain((2..=SAME_NAME_MAX).map(|n| format!("{name}-{n}")));
        for name in names {
            let path = self.path().join(name);
            match fs::create_dir(&path) {
                Ok(()) => return Ok(path),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    /// Marks what `command` will start as a child of this seat.
    pub fn mark(&self, command: &mut Command) {
        command.env(MARK, &self.0.mark);
    }
}

/// Takes out of a command's environment what it would inherit from the user's shell and what would turn it elsewhere:
/// the settings of another etcd, proxies. What the caller has set stays.
pub(super) fn strip_environment(command: &mut Command) {
    let set: Vec<_> = command.get_envs().map(|(name, _)| name.to_owned()).collect();
    for (name, _) in std::env::vars_os().filter(|(name, _)| !set.contains(name)) {
        let text = name.to_string_lossy();
        if INTERFERES.contains(&&*text) || INTERFERES_BEGINNING.iter().any(|start| text.starts_with(start)) {
            command.env_remove(name);
        }
    }
}

/// A new folder with its lock file locked. Nobody looks at it under its first name, so no sweep finds it unlocked.
fn make(temp: &Path) -> io::Result<(String, PathBuf, File)> {
    let name = format!("{NAME_START}{}-{:0RANDOM_DIGITS$x}", std::process::id(), fastrand::u64(..));
    let (unlocked, path) = (temp.join(format!(".{name}")), temp.join(&name));
    DirBuilder::new().mode(MODE).create(&unlocked)?;
    let lock = File::create_new(unlocked.join(LOCK)).and_then(|lock| {
        lock.try_lock()?;
        fs::rename(&unlocked, &path)?;
        Ok(lock)
    });
    match lock {
        Ok(lock) => Ok((name, path, lock)),
        Err(error) => {
            let _ = fs::remove_dir_all(&unlocked);
            Err(error)
        }
    }
}

/// Cleans up what dead owners with this user id have left in `temp`.
fn sweep(temp: &Path, uid: u32) -> Swept {
    let mut swept = Swept::default();
    loop {
        let before = swept.folders;
        for entry in fs::read_dir(temp).into_iter().flatten().flatten() {
            let name = entry.file_name();
            if let Some(name) = name.to_str().filter(|name| is_seat(name))
                && let Some(_lock) = lock_of_dead(&entry.path(), uid)
            {
                let cleaned = clean(&entry.path(), name);
                swept.processes += cleaned.processes;
                swept.folders += cleaned.folders;
            }
        }
        // A process that was killed here may have had a seat itself, which is free now.
        if swept.folders == before {
            return swept;
        }
    }
}

fn is_seat(name: &str) -> bool {
    let parts = name.strip_prefix(NAME_START).and_then(|rest| rest.split_once('-'));
    parts.is_some_and(|(pid, random)| {
        !pid.is_empty()
            && pid.bytes().all(|b| b.is_ascii_digit())
            && random.len() == RANDOM_DIGITS
            && random.bytes().all(|b| b.is_ascii_hexdigit())
    })
}

/// The lock of a folder that is this user's alone and whose owner is dead; it holds other sweeps off.
fn lock_of_dead(path: &Path, uid: u32) -> Option<File> {
    let folder = fs::symlink_metadata(path).ok()?;
    let file = path.join(LOCK);
    let is_ours = folder.is_dir() && folder.uid() == uid && folder.mode() & 0o777 == MODE;
    if !is_ours || !fs::symlink_metadata(&file).ok()?.is_file() {
        return None;
    }
    let lock = File::open(file).ok()?;
    // An owner that has just ended well has taken the file away.
    let is_left = lock.try_lock().is_ok() && lock.metadata().ok()?.nlink() > 0;
    is_left.then_some(lock)
}

#[allow(clippy::disallowed_methods, reason = "who takes or leaves a seat has nothing to do before it is clean")]
fn clean(path: &Path, name: &str) -> Swept {
    let mut killed = BTreeSet::new();
    for _ in 0..SWEEP_POLLS {
        let marked = marked_with(name);
        killed.extend(marked.iter().filter(|pid| kill(**pid, Signal::SIGKILL).is_ok()).copied());
        // One that is just dying may still write.
        if marked.is_empty() && remove(path).is_ok() {
            return Swept { processes: killed.len(), folders: 1 };
        }
        std::thread::sleep(POLL);
    }
    Swept { processes: killed.len(), folders: 0 }
}

/// Removes a seat's folder, its lock last: a folder without one is nobody's to clean.
fn remove(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_name() == LOCK {
            continue;
        }
        if entry.file_type()?.is_dir() { fs::remove_dir_all(entry.path())? } else { fs::remove_file(entry.path())? }
    }
    fs::remove_file(path.join(LOCK))?;
    fs::remove_dir(path)
}

/// Living processes whose environment carries the mark of this seat, but for this one.
fn marked_with(name: &str) -> Vec<Pid> {
    let variable = format!("{MARK}=");
    let is_marked = |pid: &Pid| {
        // Readable for its own user alone; empty once it is a zombie.
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let mut marks =
            environment.split(|byte| *byte == 0).filter_map(|entry| entry.strip_prefix(variable.as_bytes()));
        marks.any(|mark| mark.split(|byte| *byte == b'/').any(|seat| seat == name.as_bytes()))
    };
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).map(Pid::from_raw);
    pids.filter(|pid| *pid != Pid::this() && is_marked(pid)).collect()
}
