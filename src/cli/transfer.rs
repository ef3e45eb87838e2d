//! `tidegate export` and `tidegate import`: operators' records as one document.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::change::{AuthorArgs, Change, RECORD_BYTES_MAX, ask, json_of, write};
use super::overrides::{Standing, target_name};
use super::reach::{Reach, ReachArgs};
use super::table::counted;
use super::{Failure, policy, print, print_json, say};
use crate::clock::{Clock, SystemClock, UnixMillis};
use crate::config;
use crate::plan::keyspace::Key;
use crate::plan::{Changed, Override, Target};
use crate::quota::{PoolId, QuotaError};
use crate::store::{Entry, Select};

/// The document's format written and read here.
const SCHEMA: u32 = 1;
/// Largest document: 10,000 overrides with every field.
const DOCUMENT_BYTES_MAX: usize = 8 << 20;
/// Names standard input.
const STDIN: &str = "-";

/// Arguments of `tidegate export`.
#[derive(Debug, clap::Args)]
pub(super) struct ExportArgs {
    #[command(flatten)]
    reach: ReachArgs,
}

/// Arguments of `tidegate import`.
#[derive(Debug, clap::Args)]
pub(super) struct ImportArgs {
    /// A document as `tidegate export` prints it; - reads standard input.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    author: AuthorArgs,
    /// Write without asking.
    #[arg(long)]
    yes: bool,
    /// Print what would change, and write nothing.
    #[arg(long, conflicts_with = "yes")]
    dry_run: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reach: ReachArgs,
}

/// Operators' records. A target is written as in keys: a tenant's name percent-encoded.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    schema: u32,
    #[serde(default)]
    overrides: BTreeMap<PoolId, BTreeMap<String, Value>>,
    /// As in the store.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    policy: BTreeMap<PoolId, Value>,
}

/// Prints the document. A record that is not well formed is left out, said, and makes it fail.
pub(super) async fn export(args: ExportArgs) -> Result<(), Failure> {
    let reach = Reach::open(&args.reach).await?;
    let mut document = Document { schema: SCHEMA, overrides: BTreeMap::new(), policy: BTreeMap::new() };
    let mut left_out = 0;
    for Standing { pool, target, value, record, .. } in Standing::all(&reach, None).await? {
        match record {
            Ok(_) => drop(document.overrides.entry(pool).or_default().insert(target.to_string(), json_of(&value))),
            Err(error) => {
                say(&format!("warning: the override of {pool} {} is left out: {error}", target_name(&target)));
                left_out += 1;
            }
        }
    }
    for (pool, standing) in policy::Standing::all(&reach).await? {
        match (standing.word(&pool), standing.record()) {
            ((_, None), Ok(record)) => drop(document.policy.insert(pool, record)),
            ((_, error), record) => {
                let error = error.or_else(|| Some(record.err()?.to_string())).unwrap_or_default();
                say(&format!("warning: the policy of {pool} is left out: {error}"));
                left_out += 1;
            }
        }
    }
    print_json(&document)?;
    if left_out == 0 { Ok(()) } else { Err(Failure::Run(format!("left out: {}", counted(left_out, "record")))) }
}

/// Checks the whole document, shows what would change, and writes it when told to.
pub(super) async fn import(args: ImportArgs) -> Result<(), Failure> {
    let wall = SystemClock::new().wall();
    let reach = Reach::open(&args.reach).await?;
    let author = args.author.settle(Some(format!("import of {}", args.file.display())))?;
    let document: Document = serde_json::from_slice(&read(&args.file)?)
        .map_err(|error| Failure::Usage(format!("{}: {error}", args.file.display())))?;
    let wanted = wanted(&reach, &document, wall)?;
    let changes = differing(&reach, wanted).await?;
    if args.json {
        print_json(&changes.iter().map(shown).collect::<Vec<_>>())?;
    } else {
        print(&diff(&changes))?;
    }
    if args.dry_run || changes.is_empty() {
        return Ok(());
    }
    if !args.yes {
        let question = format!("Write {}? [y/N] ", counted(changes.len(), "record"));
        match ask(&question)?.as_deref() {
            Some("y" | "yes") => {}
            Some(_) => return Err(Failure::Run("nothing is written".into())),
            None => return Err(Failure::Usage("no terminal to ask on: --yes writes, --dry-run only looks".into())),
        }
    }
    write(&reach, &author, &changes, wall).await?;
    if args.json { Ok(()) } else { print(&format!("{} written\n", changes.len())) }
}

pub(super) fn read(file: &Path) -> Result<Vec<u8>, Failure> {
    let unreadable = |error: io::Error| Failure::Usage(format!("{}: cannot be read: {error}", file.display()));
    let most = u64::try_from(DOCUMENT_BYTES_MAX).unwrap_or(u64::MAX) + 1;
    let mut bytes = Vec::new();
    if file == Path::new(STDIN) {
        io::stdin().lock().take(most).read_to_end(&mut bytes).map_err(unreadable)?;
    } else {
        File::open(file).map_err(unreadable)?.take(most).read_to_end(&mut bytes).map_err(unreadable)?;
    }
    if bytes.len() > DOCUMENT_BYTES_MAX {
        return Err(Failure::Usage(format!("{}: more than {DOCUMENT_BYTES_MAX} bytes", file.display())));
    }
    Ok(bytes)
}

/// The document's records by key, all of them checked; each mistake on a line of its own.
fn wanted(reach: &Reach, document: &Document, wall: UnixMillis) -> Result<BTreeMap<String, Wanted>, Failure> {
    let (mut wanted, mut mistakes) = (BTreeMap::new(), Vec::new());
    if document.schema != SCHEMA {
        mistakes.push(format!("schema {}: this version reads {SCHEMA}", document.schema));
    }
    for (pool, records) in &document.overrides {
        for (segment, record) in records {
            match checked(segment, record) {
                Ok((_, to)) if to.end.is_some_and(|end| UnixMillis::from(end) <= wall) => {
                    say(&format!("warning: overrides.{pool}.{segment:?} has ended, and is left out"));
                }
                Ok((target, to)) => {
                    drop(wanted.insert(reach.keys.key(&Key::Override(pool.clone(), target)), to));
                }
                Err(mistake) => mistakes.push(format!("overrides.{pool}.{segment:?}: {mistake}")),
            }
        }
    }
    for (pool, record) in &document.policy {
        let value = record.to_string().into_bytes();
        match config::policy(pool, &value) {
            Ok((_, warnings)) => warnings.list.iter().for_each(|warning| say(&warning.to_string())),
            Err(wrong) => mistakes.extend(wrong.list.iter().map(ToString::to_string)),
        }
        wanted.insert(reach.keys.key(&Key::Policy(pool.clone())), Wanted { value, end: None });
    }
    if mistakes.is_empty() {
        return Ok(wanted);
    }
    for mistake in &mistakes {
        say(mistake);
    }
    Err(Failure::Usage(format!("{}; nothing is written", counted(mistakes.len(), "mistake"))))
}

/// What a record is to be, and when it ends.
struct Wanted {
    value: Vec<u8>,
    end: Option<Timestamp>,
}

fn checked(segment: &str, record: &Value) -> Result<(Target, Wanted), String> {
    let target: Target = segment.parse().map_err(|error: QuotaError| error.to_string())?;
    let value = record.to_string().into_bytes();
    if value.len() > RECORD_BYTES_MAX {
        return Err(format!("more than {RECORD_BYTES_MAX} bytes"));
    }
    let parsed = Override::parse(&value, &target).map_err(|error| error.to_string())?;
    Ok((target, Wanted { value, end: parsed.expires_at }))
}

/// What stands otherwise, or not at all. What the document does not speak of stays.
async fn differing(reach: &Reach, wanted: BTreeMap<String, Wanted>) -> Result<Vec<Change>, Failure> {
    let listing = reach.list(&[Select::Prefix(reach.keys.overrides()), Select::Prefix(reach.keys.policies())]).await?;
    let mut standing: BTreeMap<String, Entry> =
        listing.entries.into_iter().map(|entry| (entry.key.clone(), entry)).collect();
    let change = |(key, Wanted { value, end }): (String, Wanted)| {
        let from = standing.remove(&key);
        let same = from.as_ref().is_some_and(|entry| alike(&json_of(&entry.value), &json_of(&value)));
        (!same).then_some(Change { key, what: Changed::Import, from, to: Some((value, end)) })
    };
    Ok(wanted.into_iter().filter_map(change).collect())
}

/// Whether two records say the same: 60 and 60.0 are one number, however they were written.
fn alike(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a == b || a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| alike(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| alike(a, b)))
        }
        (a, b) => a == b,
    }
}

fn shown(change: &Change) -> Value {
    serde_json::json!({
        "key": change.key,
        "from": change.from.as_ref().map(|entry| json_of(&entry.value)),
        "to": change.to.as_ref().map(|(value, _)| json_of(value)),
    })
}

fn diff(changes: &[Change]) -> String {
    if changes.is_empty() {
        return "nothing to change\n".to_owned();
    }
    let lines = changes.iter().flat_map(|change| {
        let from = change.from.iter().map(|entry| format!("  - {}\n", json_of(&entry.value)));
        let to = change.to.iter().map(|(value, _)| format!("  + {}\n", json_of(value)));
        std::iter::once(format!("{}\n", change.key)).chain(from).chain(to).collect::<Vec<_>>()
    });
    lines.collect()
}
