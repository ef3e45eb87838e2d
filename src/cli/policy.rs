//! `tidegate policy`: pools' policies in the store, looked at, put, taken away and compared with a file.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Subcommand;
use serde_json::{Value, json};

use super::change::{Author, AuthorArgs, Change, json_of, write};
use super::reach::{Reach, ReachArgs};
use super::table::{NONE, table};
use super::transfer::read;
use super::{Failure, print, print_json, say};
use crate::clock::{Clock, SystemClock};
use crate::config::{Mistakes, policy};
use crate::plan::keyspace::Key;
use crate::plan::{Changed, PolicyStatus};
use crate::quota::PoolId;
use crate::store::{Change as Seen, Entry, Select, Source, StoreError, WatchEvent};

/// The leader looks at policies once a second.
const VERDICT_WAIT: Duration = Duration::from_secs(3);

#[derive(Debug, Subcommand)]
pub(super) enum PolicyCommand {
    /// Print a pool's policy as it stands in etcd, or list all.
    #[command(after_long_help = super::help::POLICY_GET)]
    Get(GetArgs),
    /// Put a pool's policy, checked, and wait for the leader's word on it.
    #[command(after_long_help = super::help::POLICY_PUT)]
    Put(PutArgs),
    /// Take a pool's policy away: the file's holds again, or the pool is gone.
    #[command(after_long_help = super::help::POLICY_CLEAR)]
    Clear(ClearArgs),
    /// Show how the policies in etcd differ from a file's.
    #[command(after_long_help = super::help::POLICY_DIFF)]
    Diff(DiffArgs),
}

/// Arguments of `tidegate policy get`.
#[derive(Debug, clap::Args)]
pub(super) struct GetArgs {
    /// The pool; all are listed when it is not given.
    #[arg(value_name = "POOL")]
    pool: Option<PoolId>,
    /// Print JSON: what the leader says too.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reach: ReachArgs,
}

/// Arguments of `tidegate policy put`.
#[derive(Debug, clap::Args)]
pub(super) struct PutArgs {
    /// The pool.
    #[arg(value_name = "POOL")]
    pool: PoolId,
    /// A policy as JSON, or a controller's configuration (.toml) with [pools.POOL]; - reads JSON from standard input.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    author: AuthorArgs,
    /// Print what would change, and write nothing.
    #[arg(long)]
    dry_run: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reach: ReachArgs,
}

/// Arguments of `tidegate policy clear`.
#[derive(Debug, clap::Args)]
pub(super) struct ClearArgs {
    /// The pool.
    #[arg(value_name = "POOL")]
    pool: PoolId,
    #[command(flatten)]
    author: AuthorArgs,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reach: ReachArgs,
}

/// Arguments of `tidegate policy diff`.
#[derive(Debug, clap::Args)]
pub(super) struct DiffArgs {
    /// A controller's configuration.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Only this pool.
    #[arg(value_name = "POOL")]
    pool: Option<PoolId>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reach: ReachArgs,
}

/// Runs a command on policies.
pub(super) async fn policies(command: PolicyCommand) -> Result<(), Failure> {
    match command {
        PolicyCommand::Get(args) => get(args).await,
        PolicyCommand::Put(args) => put(args).await,
        PolicyCommand::Clear(args) => clear(args).await,
        PolicyCommand::Diff(args) => diff(args).await,
    }
}

/// A policy that stands in the store.
pub(super) struct Standing {
    entry: Entry,
    status: Option<PolicyStatus>,
}

impl Standing {
    /// The policies, by pool.
    pub(super) async fn all(reach: &Reach) -> Result<BTreeMap<PoolId, Self>, Failure> {
        let selects = [Select::Prefix(reach.keys.policies()), Select::Prefix(reach.keys.policy_statuses())];
        let (mut statuses, mut found) = (BTreeMap::new(), BTreeMap::new());
        for entry in reach.list(&selects).await?.entries {
            match reach.keys.parse(&entry.key) {
                Some(Key::PolicyStatus(pool)) => drop(statuses.insert(pool, serde_json::from_slice(&entry.value).ok())),
                Some(Key::Policy(pool)) => drop(found.insert(pool, Self { entry, status: None })),
                _ => say(&format!("warning: {} names no pool", entry.key.escape_debug())),
            }
        }
        for (pool, standing) in &mut found {
            standing.status = statuses.remove(pool).flatten();
        }
        Ok(found)
    }

    /// How it stands, with what is wrong.
    pub(super) fn word(&self, pool: &PoolId) -> (&'static str, Option<String>) {
        match &self.status {
            // What is said of an earlier record says nothing of this one.
            Some(status) if status.revision == self.entry.mod_revision => {
                (if status.accepted { "accepted" } else { "rejected" }, status.error.clone())
            }
            _ => match policy(pool, &self.entry.value) {
                Ok(_) => ("unanswered", None),
                Err(mistakes) => ("rejected", Some(mistakes.in_one_line())),
            },
        }
    }

    /// The record, as JSON if it is any.
    pub(super) fn record(&self) -> Result<Value, serde_json::Error> {
        serde_json::from_slice(&self.entry.value)
    }

    fn json(&self, pool: &PoolId) -> Value {
        let (status, error) = self.word(pool);
        json!({
            "pool": pool, "record": json_of(&self.entry.value), "revision": self.entry.mod_revision,
            "status": status, "error": error, "applied": self.status.as_ref().and_then(|status| status.applied.as_ref()),
        })
    }
}

async fn get(args: GetArgs) -> Result<(), Failure> {
    let reach = Reach::open(&args.reach).await?;
    let mut found = Standing::all(&reach).await?;
    let Some(pool) = &args.pool else {
        if args.json {
            return print_json(&found.iter().map(|(pool, standing)| standing.json(pool)).collect::<Vec<_>>());
        }
        if found.is_empty() {
            return print("no policies in etcd: those of the controller's file hold\n");
        }
        let row = |(pool, standing): (&PoolId, &Standing)| {
            let (word, error) = standing.word(pool);
            let mode = match policy(pool, &standing.entry.value) {
                Ok((params, _)) => params.mode.as_str(),
                Err(_) => NONE,
            };
            vec![pool.to_string(), mode.to_owned(), error.map_or(word.to_owned(), |error| format!("{word}: {error}"))]
        };
        return print(&table(&["POOL", "MODE", "STATUS"], &found.iter().map(row).collect::<Vec<_>>()));
    };
    let none =
        || Failure::Run(format!("{pool} has no policy in etcd: the controller's file says what holds, if it has it"));
    let standing = found.remove(pool).ok_or_else(none)?;
    if args.json {
        return print_json(&standing.json(pool));
    }
    print_json(&json_of(&standing.entry.value))?;
    match standing.word(pool) {
        ("rejected", error) => {
            say(&format!("warning: rejected, the last good one holds: {}", error.unwrap_or_default()));
            Ok(())
        }
        _ => Ok(()),
    }
}

/// What a file says of a pool.
fn of_file(file: &Path, pool: &PoolId) -> Result<Value, Failure> {
    let wrong = |why: String| Failure::Usage(format!("{}: {why}", file.display()));
    let bytes = read(file)?;
    if file.extension().is_none_or(|extension| extension != "toml") {
        return serde_json::from_slice(&bytes).map_err(|error| wrong(format!("not JSON: {error}")));
    }
    pools_of(file, &bytes)?.remove(pool.as_str()).ok_or_else(|| wrong(format!("has no [pools.{pool}]")))
}

/// The pools of a configuration, as they are written.
fn pools_of(file: &Path, bytes: &[u8]) -> Result<serde_json::Map<String, Value>, Failure> {
    let wrong = |why: String| Failure::Usage(format!("{}: {why}; `tidegate check` tells more", file.display()));
    let text = std::str::from_utf8(bytes).map_err(|_| wrong("not UTF-8".into()))?;
    let mut whole: serde_json::Map<String, Value> =
        toml::from_str(text).map_err(|error| wrong(format!("not TOML: {}", error.message())))?;
    match whole.remove("pools") {
        Some(Value::Object(pools)) => Ok(pools),
        _ => Err(wrong("has no [pools]".into())),
    }
}

async fn put(args: PutArgs) -> Result<(), Failure> {
    let PutArgs { pool, file, .. } = &args;
    let record = of_file(file, pool)?;
    let value = record.to_string().into_bytes();
    let warnings = match policy(pool, &value) {
        Ok((_, warnings)) => warnings,
        Err(mistakes) => return Err(refused(&mistakes)),
    };
    for warning in &warnings.list {
        say(&warning.to_string());
    }
    let reach = Reach::open(&args.reach).await?;
    let author: Author = args.author.settle(None)?;
    let from = Standing::all(&reach).await?.remove(pool).map(|standing| standing.entry);
    let before = from.as_ref().map(|entry| json_of(&entry.value));
    let key = reach.keys.key(&Key::Policy(pool.clone()));
    let change = Change { key: key.clone(), what: Changed::PolicyPut, from, to: Some((value, None)) };
    let verdict = if args.dry_run {
        Verdict::DryRun
    } else {
        let led = reach.leader().await?.is_some();
        let wall = SystemClock::new().wall();
        let revision = write(&reach, &author, std::slice::from_ref(&change), wall).await?;
        if led { verdict(&reach, pool, revision).await } else { Verdict::Unanswered }
    };
    let (word, sentence) = match &verdict {
        Verdict::DryRun => ("dry_run", "nothing is written: a dry run"),
        Verdict::Accepted => ("accepted", "accepted by the leader"),
        Verdict::Rejected(_) => {
            ("rejected", "written, and rejected by the leader; the last good policy stays in force")
        }
        Verdict::Unanswered => ("unanswered", "written; no leader answers: it holds when one does"),
    };
    let error = if let Verdict::Rejected(error) = &verdict { Some(error) } else { None };
    if args.json {
        let warnings: Vec<&String> = warnings.list.iter().map(|warning| &warning.message).collect();
        let shown = json!({ "key": key, "record": record, "before": before, "warnings": warnings, "status": word, "error": error });
        print_json(&shown)?;
    } else {
        let differing = differing(before.as_ref(), Some(&record));
        let what = if differing.is_empty() {
            "nothing changes\n".to_owned()
        } else {
            side_by_side("BEFORE", "NOW", &differing)
        };
        print(&format!("{pool}\n{what}{sentence}\n"))?;
    }
    error.map_or(Ok(()), |error| Err(Failure::Run(error.clone())))
}

fn refused(mistakes: &Mistakes) -> Failure {
    for mistake in &mistakes.list {
        say(&mistake.to_string());
    }
    Failure::Usage(format!("{}; nothing is written", super::check::count(mistakes)))
}

/// What becomes of a policy that was put.
enum Verdict {
    DryRun,
    Accepted,
    Rejected(String),
    Unanswered,
}

/// Waits for what the leader says of the record of this revision, or a later one.
async fn verdict(reach: &Reach, pool: &PoolId, revision: u64) -> Verdict {
    let key = reach.keys.key(&Key::PolicyStatus(pool.clone()));
    let said = async {
        let mut watch = reach.store.watch(&[Select::Key(key)], revision + 1).await?;
        loop {
            let WatchEvent::Changes { changes, .. } = watch.next().await? else { continue };
            for change in changes {
                let Seen::Put(entry) = change else { continue };
                let Ok(status) = serde_json::from_slice::<PolicyStatus>(&entry.value) else { continue };
                if status.revision >= revision {
                    return Ok::<_, StoreError>(status);
                }
            }
        }
    };
    match tokio::time::timeout(VERDICT_WAIT, said).await {
        Ok(Ok(PolicyStatus { accepted: true, .. })) => Verdict::Accepted,
        Ok(Ok(PolicyStatus { error, .. })) => Verdict::Rejected(error.unwrap_or_default()),
        // It is written: that nobody speaks of it is no failure.
        Ok(Err(_)) | Err(_) => Verdict::Unanswered,
    }
}

async fn clear(args: ClearArgs) -> Result<(), Failure> {
    let pool = &args.pool;
    let reach = Reach::open(&args.reach).await?;
    let author: Author = args.author.settle(None)?;
    let standing = Standing::all(&reach).await?.remove(pool);
    let standing = standing.ok_or_else(|| Failure::Run(format!("{pool} has no policy in etcd")))?;
    let key = reach.keys.key(&Key::Policy(pool.clone()));
    let before = json_of(&standing.entry.value);
    let change = Change { key: key.clone(), what: Changed::PolicyClear, from: Some(standing.entry), to: None };
    let leads = reach.leader().await?.is_some();
    write(&reach, &author, &[change], SystemClock::new().wall()).await?;
    if args.json {
        return print_json(&json!({ "key": key, "before": before, "status": "cleared" }));
    }
    let when = if leads { "" } else { "no leader answers: when one does, " };
    print(&format!(
        "{pool}: cleared; {when}the policy of the controller's file holds again, or the pool is gone if it has none\n"
    ))
}

async fn diff(args: DiffArgs) -> Result<(), Failure> {
    let of_file = pools_of(&args.file, &read(&args.file)?)?;
    let reach = Reach::open(&args.reach).await?;
    let stored = Standing::all(&reach).await?;
    let wanted = |pool: &PoolId| args.pool.as_ref().is_none_or(|only| only == pool);
    let (mut text, mut shown, mut differ) = (String::new(), serde_json::Map::new(), BTreeSet::new());
    for (pool, standing) in stored.iter().filter(|(pool, _)| wanted(pool)) {
        let in_etcd = standing.record().unwrap_or_else(|_| json_of(&standing.entry.value));
        let differing = differing(of_file.get(pool.as_str()), Some(&in_etcd));
        if !differing.is_empty() {
            differ.insert(pool.to_string());
        }
        let said = if of_file.contains_key(pool.as_str()) { "" } else { ", which the file has not" };
        let _ = match differing.len() {
            0 => writeln!(text, "{pool}: the same in etcd"),
            _ => write!(text, "{pool}{said}\n{}", side_by_side("FILE", "ETCD", &differing)),
        };
        let rows = differing.into_iter().map(|(key, file, etcd)| json!({ "key": key, "file": file, "etcd": etcd }));
        shown.insert(pool.to_string(), rows.collect());
    }
    for pool in of_file.keys().filter(|pool| args.pool.as_ref().is_none_or(|only| only.as_str() == **pool)) {
        if !shown.contains_key(pool) {
            let _ = writeln!(text, "{pool}: not in etcd, the file's holds");
            shown.insert(pool.clone(), json!([]));
        }
    }
    if let Some(pool) = args.pool.as_ref().filter(|pool| !shown.contains_key(pool.as_str())) {
        return Err(Failure::Usage(format!("{pool} is neither in {} nor in etcd", args.file.display())));
    }
    if args.json {
        print_json(&shown)?;
    } else {
        print(&text)?;
    }
    if differ.is_empty() {
        return Ok(());
    }
    Err(Failure::Run(format!(
        "etcd's policy differs from the file's: {}",
        differ.into_iter().collect::<Vec<_>>().join(", ")
    )))
}

/// A key, and its value at either side.
type Difference = (String, Option<Value>, Option<Value>);

/// What two records say otherwise, key by key.
fn differing(one: Option<&Value>, other: Option<&Value>) -> Vec<Difference> {
    let flat = |record: Option<&Value>| {
        let mut flat = BTreeMap::new();
        if let Some(record) = record {
            flatten("", record, &mut flat);
        }
        flat
    };
    let (mut one, mut other) = (flat(one), flat(other));
    let keys: BTreeSet<String> = one.keys().chain(other.keys()).cloned().collect();
    let pairs = keys.into_iter().map(|key| {
        let sides = (one.remove(&key), other.remove(&key));
        (key, sides.0, sides.1)
    });
    pairs.filter(|(_, one, other)| !same(one.as_ref(), other.as_ref())).collect()
}

/// 600 and 600.0 are one number.
fn same(one: Option<&Value>, other: Option<&Value>) -> bool {
    let number = |value: Option<&Value>| value.and_then(Value::as_f64);
    one == other || (number(one).is_some() && number(one) == number(other))
}

/// Values by their dotted keys, written as in messages.
fn flatten(path: &str, value: &Value, flat: &mut BTreeMap<String, Value>) {
    match value {
        Value::Object(entries) if !entries.is_empty() || path.is_empty() => {
            for (name, value) in entries {
                let bare = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
                let name = if bare { name.clone() } else { format!("{name:?}") };
                flatten(&if path.is_empty() { name } else { format!("{path}.{name}") }, value, flat);
            }
        }
        // What is no record at all differs as a whole.
        value => drop(flat.insert(if path.is_empty() { "all of it" } else { path }.to_owned(), value.clone())),
    }
}

fn side_by_side(one: &str, other: &str, differing: &[Difference]) -> String {
    let cell = |value: &Option<Value>| value.as_ref().map_or_else(|| NONE.to_owned(), Value::to_string);
    let row = |(key, one, other): &Difference| vec![format!("  {key}"), cell(one), cell(other)];
    table(&["  KEY", one, other], &differing.iter().map(row).collect::<Vec<_>>())
}
