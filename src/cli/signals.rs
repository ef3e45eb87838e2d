//! The signals that end a command.

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::Failure;

/// SIGINT, SIGTERM, SIGQUIT, and SIGHUP unless it is ignored, as `nohup` has it: what ends a command must not leave its
/// children behind.
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    quit: Signal,
    hangup: Option<Signal>,
}

impl Signals {
    /// Begins to watch; to be called before a command says that it is ready, since whoever reads that may signal.
    pub(super) fn watch() -> Result<Self, Failure> {
        let failed = |error| Failure::Run(format!("cannot watch for signals: {error}"));
        Ok(Self {
            interrupt: signal(SignalKind::interrupt()).map_err(failed)?,
            terminate: signal(SignalKind::terminate()).map_err(failed)?,
            quit: signal(SignalKind::quit()).map_err(failed)?,
            hangup: if hangup_is_ignored() { None } else { Some(signal(SignalKind::hangup()).map_err(failed)?) },
        })
    }

    /// Waits for the first one.
    pub(super) async fn received(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.quit.recv() => {}
            () = async {
                match &mut self.hangup {
                    Some(hangup) => drop(hangup.recv().await),
                    None => std::future::pending().await,
                }
            } => {}
        }
    }
}

/// Whether this process was started to outlive its terminal. Where there is no Linux `/proc` to ask, it was not.
fn hangup_is_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    // SIGHUP is signal 1: the lowest bit.
    ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 == 1)
}
