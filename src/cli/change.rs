//! What an operator changes: who, why, and the records with their audit, written together.

use std::io::{self, BufRead, IsTerminal, Read, Write};
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;

use super::Failure;
use super::reach::Reach;
use crate::clock::UnixMillis;
use crate::plan::keyspace::Key;
use crate::plan::{Audit, Changed};
use crate::store::{Condition, Entry, Op, Outcome, Store, TXN_OPS_MAX, Txn};

const REASON_CHARS_MAX: usize = 500;
const BY_CHARS_MAX: usize = 128;
/// A record that ends goes this much after its end: readers judge by their own clocks, the lease is only a broom.
const BROOM_AFTER: Duration = Duration::from_secs(60);
/// The longest that a record may be meant for: what is meant for longer has no end.
const SPAN_MAX: Duration = Duration::from_secs(366 * 24 * 3_600);
/// Nobody writes an override, or a policy, of more than this.
pub(super) const RECORD_BYTES_MAX: usize = 64 << 10;
const RECORD_CHARS_SHOWN: usize = 300;
/// Each change takes two operations: the record and its audit.
const CHANGES_MAX: usize = TXN_OPS_MAX / 2;

/// Who changes something, and why.
#[derive(Debug, clap::Args)]
pub(super) struct AuthorArgs {
    /// Why; it stands in the record and in the audit. Asked for on a terminal; an import has one of its own.
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Who; $USER when not given.
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
}

/// Who changes something, and why.
#[derive(Debug)]
pub(super) struct Author {
    pub by: String,
    pub reason: String,
}

impl AuthorArgs {
    /// Asks for what was not given. `otherwise` is the reason when none is.
    pub(super) fn settle(&self, otherwise: Option<String>) -> Result<Author, Failure> {
        let by = self.by.clone().or_else(|| std::env::var("USER").ok().filter(|user| !user.is_empty()));
        let by = by.ok_or_else(|| Failure::Usage("--by is missing, and USER is not set".into()))?;
        let reason = match self.reason.clone().or(otherwise) {
            Some(reason) => reason,
            None => ask("Reason: ")?
                .ok_or_else(|| Failure::Usage("--reason is missing, and there is no terminal to ask on".into()))?,
        };
        Ok(Author { by: line("--by", &by, BY_CHARS_MAX)?, reason: line("--reason", &reason, REASON_CHARS_MAX)? })
    }
}

/// A line of text, neither empty nor endless.
fn line(name: &str, text: &str, most: usize) -> Result<String, Failure> {
    let text = text.trim();
    if (1..=most).contains(&text.chars().count()) && !text.chars().any(char::is_control) {
        Ok(text.to_owned())
    } else {
        Err(Failure::Usage(format!("{name}: expected a line of 1 to {most} characters")))
    }
}

/// Asks on the terminal; `None` without one.
pub(super) fn ask(question: &str) -> Result<Option<String>, Failure> {
    let failed = |error: io::Error| Failure::Run(format!("cannot ask on the terminal: {error}"));
    if !io::stdin().is_terminal() {
        return Ok(None);
    }
    let mut err = io::stderr();
    err.write_all(question.as_bytes()).and_then(|()| err.flush()).map_err(failed)?;
    let mut answer = String::new();
    io::stdin().lock().take(4_096).read_line(&mut answer).map_err(failed)?;
    Ok(Some(answer.trim().to_owned()))
}

/// One record that changes.
#[derive(Debug)]
pub(super) struct Change {
    pub key: String,
    pub what: Changed,
    /// What stands there now.
    pub from: Option<Entry>,
    /// What it becomes, and when it ends; `None` takes it away.
    pub to: Option<(Vec<u8>, Option<Timestamp>)>,
}

/// A record as JSON for people and programs; what is none, or is longer than a record is, as the beginning of its text.
pub(super) fn json_of(value: &[u8]) -> Value {
    let text = || Value::String(String::from_utf8_lossy(value).chars().take(RECORD_CHARS_SHOWN).collect());
    if value.len() > RECORD_BYTES_MAX { text() } else { serde_json::from_slice(value).unwrap_or_else(|_| text()) }
}

/// How long from now on: something, and no longer than a lease is asked for.
pub(super) fn left(end: Timestamp, wall: UnixMillis) -> Result<Duration, Failure> {
    let ms = UnixMillis::from(end).0.saturating_sub(wall.0);
    let left = Duration::from_millis(ms);
    if ms == 0 {
        Err(Failure::Usage(format!("{end} is not ahead")))
    } else if left > SPAN_MAX {
        Err(Failure::Usage(format!("{end} is more than {} days ahead", SPAN_MAX.as_secs() / 86_400)))
    } else {
        Ok(left)
    }
}

/// Writes the changes, each with its audit in the same transaction; returns the last revision.
pub(super) async fn write(
    reach: &Reach,
    author: &Author,
    changes: &[Change],
    wall: UnixMillis,
) -> Result<u64, Failure> {
    let mut last = 0;
    for (n, chunk) in changes.chunks(CHANGES_MAX).enumerate() {
        let (mut txn, mut leases) = (Txn::default(), Vec::new());
        for change in chunk {
            // As it was shown to whoever decided this: not one word of another operator is written over unseen.
            let create_revision = change.from.as_ref().map_or(0, |entry| entry.create_revision);
            let value = change.from.as_ref().map(|entry| entry.value.clone());
            txn.conditions.push(Condition { key: change.key.clone(), create_revision, value });
            txn.ops.push(match &change.to {
                Some((value, end)) => {
                    let lease = match end.and_then(|end| left(end, wall).ok()) {
                        Some(left) => Some(reach.store.lease(left + BROOM_AFTER).await?),
                        None => None,
                    };
                    leases.extend(lease);
                    Op::Put { key: change.key.clone(), value: value.clone(), lease }
                }
                None => Op::Delete { key: change.key.clone() },
            });
            txn.ops.push(audit(reach, author, change, wall)?);
        }
        match reach.store.commit(txn).await? {
            Outcome::Committed { revision } => last = revision,
            Outcome::Refused { .. } => {
                for lease in leases {
                    reach.store.revoke(lease).await?;
                }
                let written = n * CHANGES_MAX;
                let done = if written > 0 { format!("{written} were written; ") } else { String::new() };
                return Err(Failure::Run(format!("{done}somebody else changed a record just now: look again")));
            }
        }
    }
    Ok(last)
}

fn audit(reach: &Reach, author: &Author, change: &Change, wall: UnixMillis) -> Result<Op, Failure> {
    let audit = Audit {
        at: wall.timestamp().unwrap_or(Timestamp::MAX),
        by: author.by.clone(),
        what: change.what,
        key: change.key.clone(),
        from: change.from.as_ref().map(|entry| json_of(&entry.value)),
        to: change.to.as_ref().map(|(value, _)| json_of(value)),
        reason: author.reason.clone(),
    };
    let value = serde_json::to_vec(&audit).map_err(|error| Failure::Run(error.to_string()))?;
    Ok(Op::Put { key: reach.keys.key(&Key::Audit { at: wall, id: fastrand::u32(..) }), value, lease: None })
}
