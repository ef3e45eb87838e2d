//! What this process enforced, in a file: so that one that starts while store and controller are gone need not begin with the
//! bootstrap thresholds.
//!
//! Kept is what was enforced here, shares and overrides included, of the tenants that this process had shares of, as long as
//! a leader lives. Believed is half of it, for 24 hours, by the wall clock: a file outlives the clock of a process. The file
//! is replaced as a whole, so that there is always a whole one. What cannot be read is said, and ignored.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::time::{MissedTickBehavior, interval};
use tracing::{info, warn};

use super::member::Remembered;
use super::process::Core;
use crate::clock::{MonoTime, UnixMillis};
use crate::quota::{Grantee, PoolId};

const SCHEMA: u32 = 1;
/// What is believed of it.
const PART: f64 = 0.5;
const AGE_MAX_MS: u64 = 24 * 3_600 * 1_000;
/// A file from the future is of a clock that was wrong; so much of it is no news between two clocks.
const SKEW_MAX_MS: u64 = 60_000;
const KEEP_EVERY: Duration = Duration::from_secs(10);
/// 10,000 tenants of three meters take less than half.
const BYTES_MAX: u64 = 8 << 20;

type Pools = BTreeMap<PoolId, BTreeMap<Grantee, Remembered>>;

#[derive(Debug, Serialize, Deserialize)]
struct LastKnown {
    schema: u32,
    unix_ms: UnixMillis,
    pools: Pools,
}

/// What a process that begins now may enforce of the file.
pub(super) fn read(file: &Path, wall: UnixMillis) -> Pools {
    match trusted(file, wall) {
        Ok(Some((pools, age_ms))) => {
            let hours = Duration::from_millis(age_ms).as_secs() / 3_600;
            info!(file = %file.display(), "half of what was last known, {hours} h ago, holds until a controller is heard");
            pools
        }
        Ok(None) => Pools::new(),
        Err(why) => {
            warn!(file = %file.display(), "ignoring what was last known: {why}");
            Pools::new()
        }
    }
}

/// With its age in milliseconds; `None` when there is no file.
fn trusted(file: &Path, wall: UnixMillis) -> Result<Option<(Pools, u64)>, String> {
    let mut bytes = Vec::new();
    match File::open(file).and_then(|file| file.take(BYTES_MAX).read_to_end(&mut bytes)) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
    }
    let LastKnown { schema, unix_ms, pools } = serde_json::from_slice(&bytes).map_err(|error| error.to_string())?;
    if schema != SCHEMA {
        return Err(format!("schema {schema}: this version reads {SCHEMA}"));
    }
    if unix_ms.0 > wall.0.saturating_add(SKEW_MAX_MS) {
        return Err("it is from the future".to_owned());
    }
    let age_ms = wall.0.saturating_sub(unix_ms.0);
    if age_ms > AGE_MAX_MS {
        return Err("it is older than 24 hours".to_owned());
    }
    let half = |(grantee, known): (Grantee, Remembered)| {
        (grantee, Remembered { thresholds: known.thresholds.scaled(PART), ..known })
    };
    let units = |units: &f64| units.is_finite() && *units >= 0.0;
    let good = |known: &Remembered| {
        let mut rates = known.thresholds.rates.values();
        rates.all(|rate| units(&rate.rate) && units(&rate.burst)) && known.largest_request.values().all(units)
    };
    if !pools.values().flat_map(BTreeMap::values).all(good) {
        return Err("a rate, burst or request is no number of units, 0 or more".to_owned());
    }
    Ok(Some((pools.into_iter().map(|(pool, known)| (pool, known.into_iter().map(half).collect())).collect(), age_ms)))
}

/// Keeps the file up to date.
pub(super) async fn keep(core: Arc<Core>, notebook: Arc<Notebook>) {
    let mut every = interval(KEEP_EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        note(&core, &notebook).await;
    }
}

/// Writes down what is enforced now, if a leader lives.
pub(super) async fn note(core: &Core, notebook: &Arc<Notebook>) {
    let (now, unix_ms) = (core.clock.now(), core.clock.wall());
    let pools: Pools = {
        let views = core.views.lock();
        let known = views.iter().map(|(id, view)| (id.clone(), view.worth_remembering(now, unix_ms)));
        known.filter(|(_, known)| !known.is_empty()).collect()
    };
    if pools.is_empty() {
        return;
    }
    let record = LastKnown { schema: SCHEMA, unix_ms, pools };
    let writing = notebook.clone();
    // One that cannot be awaited is of a runtime that ends.
    if let Ok(Err(error)) = tokio::task::spawn_blocking(move || writing.replace(&record, now)).await {
        warn!(file = %notebook.file.display(), "cannot keep what is known: {error}");
    }
}

/// The file, and who writes it. What is being written goes on though nobody waits for it any more, when the client closes and
/// writes for the last time: one after the other, and nothing older over it.
#[derive(Debug)]
pub(super) struct Notebook {
    file: PathBuf,
    /// A name in the same folder that no other process uses.
    beside: PathBuf,
    /// From when what was written last is.
    written: Mutex<Option<MonoTime>>,
}

impl Notebook {
    pub(super) fn new(file: PathBuf, boot: &str) -> Self {
        let mut name = file.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{boot}"));
        Self { beside: file.with_file_name(name), file, written: Mutex::default() }
    }

    /// All of the new one, or the old one: whenever the process dies.
    fn replace(&self, record: &LastKnown, now: MonoTime) -> io::Result<()> {
        let bytes = serde_json::to_vec(record)?;
        let mut written = self.written.lock();
        if written.is_some_and(|written| now < written) {
            return Ok(());
        }
        let replaced = File::create(&self.beside).and_then(|mut new| {
            new.write_all(&bytes)?;
            new.sync_all()?;
            fs::rename(&self.beside, &self.file)
        });
        match replaced {
            Ok(()) => *written = Some(now),
            // Of no use to anybody.
            Err(_) => drop(fs::remove_file(&self.beside)),
        }
        replaced
    }
}
