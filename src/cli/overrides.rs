//! `tidegate override`: an operator's records, put, taken away and listed.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use clap::Subcommand;
use jiff::{SignedDuration, Span, SpanRelativeTo, Timestamp};
use serde_json::{Value, json};

use super::change::{Author, AuthorArgs, Change, json_of, left, write};
use super::reach::{Leader, Reach, ReachArgs, meant};
use super::table::{NONE, number, span, table};
use super::{Failure, print, print_json, say};
use crate::clock::{Clock, SystemClock, UnixMillis};
use crate::controller::nearest;
use crate::plan::keyspace::Key;
use crate::plan::{Action, Amount, Changed, Mode, Override, OverrideStatus, Pulse, Rate, Target};
use crate::quota::{Grantee, Meter, PoolId, TenantId};
use crate::store::{Change as Seen, Entry, Select, Source, StoreError, WatchEvent};

/// The leader looks at overrides once a second.
const VERDICT_WAIT: Duration = Duration::from_secs(2);

#[derive(Debug, Subcommand)]
pub(super) enum OverrideCommand {
    /// Put an override, and wait for the leader's word on it.
    #[command(after_long_help = super::help::OVERRIDE_SET, override_usage = super::help::OVERRIDE_SET_USAGE)]
    Set(Box<SetArgs>),
    /// Take an override away.
    #[command(after_long_help = super::help::OVERRIDE_CLEAR)]
    Clear(ClearArgs),
    /// List the overrides: who put them, why, until when, and what the leader says of them.
    #[command(after_long_help = super::help::OVERRIDE_LIST)]
    List(ListArgs),
}

/// Arguments of `tidegate override set`.
#[derive(Debug, clap::Args)]
pub(super) struct SetArgs {
    #[command(flatten)]
    place: PlaceArgs,
    #[command(flatten)]
    action: ActionArgs,
    #[command(flatten)]
    author: AuthorArgs,
    /// How long it holds, such as 30m, 2h or 1d; else until it is cleared.
    #[arg(long = "for", value_name = "SPAN", value_parser = parse_span, conflicts_with = "until")]
    lasting: Option<SignedDuration>,
    /// Until when it holds, such as 2026-12-31T00:00:00Z.
    #[arg(long, value_name = "TIME")]
    until: Option<Timestamp>,
    /// Print what would be written, and write nothing.
    #[arg(long)]
    dry_run: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reach: ReachArgs,
}

/// Arguments of `tidegate override clear`.
#[derive(Debug, clap::Args)]
pub(super) struct ClearArgs {
    #[command(flatten)]
    place: PlaceArgs,
    #[command(flatten)]
    author: AuthorArgs,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reach: ReachArgs,
}

/// Arguments of `tidegate override list`.
#[derive(Debug, clap::Args)]
pub(super) struct ListArgs {
    /// Only this pool's.
    #[arg(value_name = "POOL")]
    pool: Option<PoolId>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reach: ReachArgs,
}

/// Whom an override is for.
#[derive(Debug, clap::Args)]
struct PlaceArgs {
    /// The pool.
    #[arg(value_name = "POOL")]
    pool: PoolId,
    /// A tenant; '*' for each tenant; @default for those not declared; @capacity for the pool itself.
    #[arg(value_name = "TARGET", value_parser = parse_target)]
    target: Target,
}

/// What an override does: exactly one of these.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct ActionArgs {
    /// This rate: units per window, and perhaps the burst; repeat it for more meters.
    #[arg(long, value_name = "METER=RATE[:BURST]", value_parser = parse_amount)]
    set: Vec<(Meter, Amount)>,
    /// Every rate and burst times this, 0 to 10.
    #[arg(long, value_name = "FACTOR")]
    scale: Option<f64>,
    /// At least this rate; written like --set.
    #[arg(long, value_name = "METER=RATE[:BURST]", value_parser = parse_amount)]
    floor: Vec<(Meter, Amount)>,
    /// At most this rate; written like --set.
    #[arg(long, value_name = "METER=RATE[:BURST]", value_parser = parse_amount)]
    ceiling: Vec<(Meter, Amount)>,
    /// What was granted last, also when the controller is gone.
    #[arg(long)]
    freeze: bool,
    /// Nothing at all.
    #[arg(long)]
    block: bool,
}

impl ActionArgs {
    fn action(&self) -> Result<Action, Failure> {
        let amounts = |given: &[(Meter, Amount)]| {
            let map: BTreeMap<Meter, Amount> = given.iter().copied().collect();
            let twice = || Failure::Usage("a meter is given twice".into());
            if map.len() == given.len() { Ok(map) } else { Err(twice()) }
        };
        Ok(match self {
            Self { scale: Some(factor), .. } => Action::Scale(*factor),
            Self { freeze: true, .. } => Action::Freeze,
            Self { block: true, .. } => Action::Block,
            Self { floor, .. } if !floor.is_empty() => Action::Floor(amounts(floor)?),
            Self { ceiling, .. } if !ceiling.is_empty() => Action::Ceiling(amounts(ceiling)?),
            Self { set, .. } => Action::Set(amounts(set)?),
        })
    }
}

/// A target as an operator writes it: a tenant by its own name, not as keys encode it.
pub(super) fn parse_target(text: &str) -> Result<Target, String> {
    match text {
        "*" => Ok(Target::Every),
        "@capacity" => Ok(Target::Capacity),
        "@default" => Ok(Target::One(Grantee::Default)),
        special if special.starts_with('@') => {
            let near = nearest(special, ["@capacity", "@default"], 1);
            Err(format!("expected a tenant, '*', @default or @capacity{}", meant(&near)))
        }
        tenant => tenant.parse::<TenantId>().map(Target::from).map_err(|error| error.to_string()),
    }
}

/// A target as an operator writes it.
pub(super) fn target_name(target: &Target) -> String {
    match target {
        Target::Every => "*".to_owned(),
        Target::Capacity => "@capacity".to_owned(),
        Target::One(grantee) => tenant_name(grantee),
    }
}

/// A tenant by its own name.
pub(super) fn tenant_name(grantee: &Grantee) -> String {
    match grantee {
        Grantee::Default => "@default".to_owned(),
        Grantee::Tenant(id) => id.as_str().to_owned(),
    }
}

fn parse_amount(text: &str) -> Result<(Meter, Amount), String> {
    let (meter, amount) = text.split_once('=').ok_or("expected METER=RATE[:BURST], such as requests/minute=60")?;
    let units = |text: &str| {
        let parsed = text.trim().parse::<f64>().ok().filter(|n| n.is_finite() && *n >= 0.0);
        parsed.ok_or_else(|| format!("{text:?}: expected a number of units, 0 or more"))
    };
    let meter = meter.trim().parse::<Meter>().map_err(|error| error.to_string())?;
    Ok(match amount.split_once(':') {
        Some((rate, burst)) => (meter, Amount::Rate(Rate { rate: units(rate)?, burst: units(burst)? })),
        None => (meter, Amount::Number(units(amount)?)),
    })
}

/// A span of time, above nothing; a day has 24 hours.
pub(super) fn parse_span(text: &str) -> Result<SignedDuration, String> {
    let span: Option<Span> = text.parse().ok();
    let span = span.and_then(|span| span.to_duration(SpanRelativeTo::days_are_24_hours()).ok());
    span.filter(SignedDuration::is_positive).ok_or_else(|| "expected a span such as 30m, 2h or 1d".to_owned())
}

/// Runs a command on overrides.
pub(super) async fn overrides(command: OverrideCommand) -> Result<(), Failure> {
    match command {
        OverrideCommand::Set(args) => set(*args).await,
        OverrideCommand::Clear(args) => clear(args).await,
        OverrideCommand::List(args) => list(args).await,
    }
}

async fn set(args: SetArgs) -> Result<(), Failure> {
    let PlaceArgs { pool, target } = args.place;
    let action = args.action.action()?;
    let reach = Reach::open(&args.reach).await?;
    let author = args.author.settle(None)?;
    let wall = SystemClock::new().wall();
    let end = match (args.lasting, args.until) {
        (Some(lasting), _) => Some(wall + lasting.unsigned_abs()),
        (None, until) => until.map(UnixMillis::from),
    };
    let mut record = Override::new(action).by(&author.by).because(&author.reason);
    if let Some(end) = end {
        record = record.until(end);
        // What has no place on the calendar is too far ahead in any case.
        left(record.expires_at.unwrap_or(Timestamp::MAX), wall)?;
    }
    let value = record.to_json(&target).map_err(|error| Failure::Usage(error.to_string()))?;
    let key = reach.keys.key(&Key::Override(pool.clone(), target.clone()));
    let known = Known::read(&reach, &pool, &target).await?;
    let warnings = known.warnings(&reach, &pool, &target).await?;
    let status = known.status;
    for warning in &warnings {
        say(&format!("warning: {warning}"));
    }

    let shown = json!({
        "key": key, "record": json_of(&value), "before": known.standing.as_ref().map(|entry| json_of(&entry.value)),
        "warnings": warnings,
    });
    let change = Change { key, what: Changed::OverrideSet, from: known.standing, to: Some((value, record.expires_at)) };
    if args.dry_run {
        return told(args.json, shown, &Verdict::DryRun, &summary(&pool, &target, &change, status.as_ref(), wall));
    }
    let revision = write(&reach, &author, std::slice::from_ref(&change), wall).await?;
    let verdict = match known.leader {
        Some(_) => verdict(&reach, pool.clone(), target.clone(), revision).await?,
        None if known.granted || known.pools.contains(&pool) => Verdict::Unanswered,
        None => Verdict::Unheard,
    };
    told(args.json, shown, &verdict, &summary(&pool, &target, &change, status.as_ref(), wall))
}

/// What becomes of an override that was put.
enum Verdict {
    DryRun,
    /// With what the leader finds odd about it.
    Accepted(Option<String>),
    /// What is wrong, and whether an earlier record holds instead.
    Rejected {
        error: String,
        earlier: bool,
    },
    Unanswered,
    /// Nobody leads, and nobody has ever granted in such a pool.
    Unheard,
}

fn told(json: bool, mut shown: Value, verdict: &Verdict, summary: &str) -> Result<(), Failure> {
    let (word, sentence) = match verdict {
        Verdict::DryRun => ("dry_run", "nothing is written: a dry run"),
        Verdict::Accepted(_) => ("accepted", "accepted by the leader"),
        Verdict::Rejected { earlier: true, .. } => (
            "rejected",
            "written, and rejected by the leader; the last good record stays in force until this is cleared",
        ),
        Verdict::Rejected { .. } => {
            ("rejected", "written, and rejected by the leader; nothing is in force: clear it, or put a good one")
        }
        Verdict::Unanswered => ("unanswered", "written; no leader answers: members apply it all the same"),
        Verdict::Unheard => ("unanswered", "written; no leader answers, and it reaches nobody as far as is known"),
    };
    if let Verdict::Accepted(Some(warning)) = verdict {
        // Said already where it was seen before.
        let warned = shown["warnings"].as_array_mut().filter(|warnings| warnings.is_empty());
        if let Some(warnings) = warned {
            warnings.push(warning.as_str().into());
            say(&format!("warning: {warning}"));
        }
    }
    if json {
        shown["status"] = word.into();
        if let Verdict::Rejected { error, .. } = verdict {
            shown["error"] = error.as_str().into();
        }
        print_json(&shown)?;
    } else {
        print(&format!("{summary}{sentence}\n"))?;
    }
    match verdict {
        Verdict::Rejected { error, .. } => Err(Failure::Run(format!("rejected: {error}"))),
        _ => Ok(()),
    }
}

fn summary(
    pool: &PoolId,
    target: &Target,
    change: &Change,
    status: Option<&OverrideStatus>,
    wall: UnixMillis,
) -> String {
    let described = |value: &[u8]| match Override::parse(value, target) {
        Ok(record) => describe(&record, wall),
        Err(_) => match in_force(status, wall) {
            Some(earlier) => format!("a record that is not well formed; in force: {}", describe(earlier, wall)),
            None => "a record that is not well formed".to_owned(),
        },
    };
    let mut text = format!("{pool} {}\n", target_name(target));
    if let Some(entry) = &change.from {
        let _ = writeln!(text, "  was  {}", described(&entry.value));
    }
    if let Some((value, _)) = &change.to {
        let _ = writeln!(text, "  now  {}", described(value));
    }
    text
}

/// What an override does, in a line.
pub(super) fn act(action: &Action) -> String {
    let amounts = |name: &str, map: &BTreeMap<Meter, Amount>| {
        let amount = |(meter, amount): (&Meter, &Amount)| match amount {
            Amount::Number(rate) => format!("{meter} {}", number(*rate)),
            Amount::Rate(rate) => format!("{meter} {} burst {}", number(rate.rate), number(rate.burst)),
        };
        format!("{name} {}", map.iter().map(amount).collect::<Vec<_>>().join(", "))
    };
    match action {
        Action::Set(map) => amounts("set", map),
        Action::Scale(factor) => format!("scale {factor}"),
        Action::Floor(map) => amounts("floor", map),
        Action::Ceiling(map) => amounts("ceiling", map),
        Action::Freeze => "freeze".to_owned(),
        Action::Block => "block".to_owned(),
    }
}

/// An override in a line: what it does, by whom, why, and how long yet.
pub(super) fn describe(record: &Override, wall: UnixMillis) -> String {
    let mut text = act(&record.action);
    if let Some(by) = &record.by {
        let _ = write!(text, ", by {by}");
    }
    if let Some(reason) = &record.reason {
        let _ = write!(text, ": {reason}");
    }
    if let Some(end) = record.expires_at {
        let _ = write!(text, " ({})", ends(end, wall));
    }
    text
}

fn ends(end: Timestamp, wall: UnixMillis) -> String {
    let now = wall.timestamp().unwrap_or(Timestamp::MAX);
    let left_ms = end.as_millisecond().saturating_sub(now.as_millisecond());
    if left_ms > 0 { format!("ends in {}", span(left_ms)) } else { format!("ended {} ago", span(-left_ms)) }
}

/// What is known of a target before something is changed.
struct Known {
    /// The record that stands there.
    standing: Option<Entry>,
    /// What the leader says of it.
    status: Option<OverrideStatus>,
    leader: Option<Leader>,
    pools: Vec<PoolId>,
    /// What becomes of the pool's limits.
    mode: Mode,
    granted: bool,
}

impl Known {
    async fn read(reach: &Reach, pool: &PoolId, target: &Target) -> Result<Self, Failure> {
        let keys = &reach.keys;
        let key = keys.key(&Key::Override(pool.clone(), target.clone()));
        let status_key = keys.key(&Key::OverrideStatus(pool.clone(), target.clone()));
        let pulse_key = keys.key(&Key::Pulse(pool.clone()));
        let mut selects = vec![
            Select::Key(key.clone()),
            Select::Key(status_key.clone()),
            Select::Key(keys.key(&Key::Leader)),
            Select::Prefix(keys.pulses()),
        ];
        if let Target::One(grantee) = target {
            selects.push(Select::Key(keys.key(&Key::Limits(pool.clone(), grantee.clone()))));
        }
        let listing = reach.list(&selects).await?;
        let parsed = || listing.entries.iter().map(|entry| keys.parse(&entry.key));
        let pools = parsed().filter_map(|key| if let Some(Key::Pulse(pool)) = key { Some(pool) } else { None });
        let at = |key: &str| listing.entries.iter().find(|entry| entry.key == key);
        let pulse = at(&pulse_key).and_then(|entry| Pulse::parse(&entry.value).ok());
        Ok(Self {
            status: at(&status_key).and_then(|entry| serde_json::from_slice(&entry.value).ok()),
            mode: pulse.map(|pulse| pulse.mode).unwrap_or_default(),
            pools: pools.collect(),
            granted: parsed().any(|key| matches!(key, Some(Key::Limits(..)))),
            leader: Leader::find(&listing, keys),
            standing: at(&key).cloned(),
        })
    }

    /// What is odd about the target; the record is written all the same, as etcdctl would.
    async fn warnings(&self, reach: &Reach, pool: &PoolId, target: &Target) -> Result<Vec<String>, Failure> {
        if !self.granted && !self.pools.contains(pool) {
            let near = nearest(pool.as_str(), self.pools.iter().map(PoolId::as_str), 3);
            let mut warnings = vec![format!("no controller has a pool {pool}{}", meant(&near))];
            if self.pools.is_empty() {
                warnings.push(format!(
                    "nobody has granted anything under {}: is it the right --prefix?",
                    reach.keys.prefix()
                ));
            }
            return Ok(warnings);
        }
        let idle = format!("the pool's mode is {}: members enforce none of its limits, nor this", self.mode.as_str());
        let mut warnings: Vec<String> = (!self.mode.enforces()).then_some(idle).into_iter().collect();
        let Target::One(grantee @ Grantee::Tenant(_)) = target else { return Ok(warnings) };
        if self.granted {
            return Ok(warnings);
        }
        let tenants = grantees(reach, pool).await?;
        let names: Vec<String> = tenants.iter().map(tenant_name).collect();
        let name = tenant_name(grantee);
        let near = nearest(&name, names.iter().map(String::as_str), 3);
        warnings.push(format!("{name} has no grant in {pool}, so only a block reaches it{}", meant(&near)));
        Ok(warnings)
    }
}

/// The tenants that a pool has grants for.
pub(super) async fn grantees(reach: &Reach, pool: &PoolId) -> Result<Vec<Grantee>, Failure> {
    let listing = reach.list(&[Select::Prefix(reach.keys.limits_of(pool))]).await?;
    let grantee = |entry: &Entry| match reach.keys.parse(&entry.key) {
        Some(Key::Limits(_, grantee)) => Some(grantee),
        _ => None,
    };
    Ok(listing.entries.iter().filter_map(grantee).collect())
}

/// Waits for what the leader says of the record of this revision, or a later one.
async fn verdict(reach: &Reach, pool: PoolId, target: Target, revision: u64) -> Result<Verdict, Failure> {
    let key = reach.keys.key(&Key::OverrideStatus(pool, target));
    let said = async {
        let mut watch = reach.store.watch(&[Select::Key(key)], revision + 1).await?;
        loop {
            let WatchEvent::Changes { changes, .. } = watch.next().await? else { continue };
            for change in changes {
                let Seen::Put(entry) = change else { continue };
                let Ok(status) = serde_json::from_slice::<OverrideStatus>(&entry.value) else { continue };
                if status.revision >= revision {
                    return Ok::<_, StoreError>(status);
                }
            }
        }
    };
    Ok(match tokio::time::timeout(VERDICT_WAIT, said).await {
        Ok(Ok(OverrideStatus { accepted: true, warning, .. })) => Verdict::Accepted(warning),
        Ok(Ok(OverrideStatus { error, applied, .. })) => {
            Verdict::Rejected { error: error.unwrap_or_default(), earlier: applied.is_some() }
        }
        // It is written: that nobody speaks of it is no failure.
        Ok(Err(_)) | Err(_) => Verdict::Unanswered,
    })
}

async fn clear(args: ClearArgs) -> Result<(), Failure> {
    let PlaceArgs { pool, target } = args.place;
    let reach = Reach::open(&args.reach).await?;
    let author: Author = args.author.settle(None)?;
    let wall = SystemClock::new().wall();
    let key = reach.keys.key(&Key::Override(pool.clone(), target.clone()));
    let known = Known::read(&reach, &pool, &target).await?;
    let name = target_name(&target);
    let status = known.status;
    let Some(standing) = known.standing else {
        return Err(Failure::Run(format!("{pool} {name} has no override")));
    };
    let change = Change { key, what: Changed::OverrideClear, from: Some(standing), to: None };
    write(&reach, &author, std::slice::from_ref(&change), wall).await?;
    if args.json {
        let before = change.from.as_ref().map(|entry| json_of(&entry.value));
        return print_json(&json!({ "key": change.key, "before": before, "status": "cleared" }));
    }
    print(&format!("{}cleared\n", summary(&pool, &target, &change, status.as_ref(), wall)))
}

/// The record that holds, perhaps instead of the one that stands.
fn in_force(status: Option<&OverrideStatus>, wall: UnixMillis) -> Option<&Override> {
    status.and_then(|told| told.applied.as_ref()).filter(|record| !record.expired(wall))
}

/// An override that stands in the store.
pub(super) struct Standing {
    pub pool: PoolId,
    pub target: Target,
    pub value: Vec<u8>,
    /// The record, or what is wrong with it.
    pub record: Result<Override, String>,
    pub status: Option<OverrideStatus>,
    revision: u64,
}

impl Standing {
    /// The overrides, of a pool or of all, by pool and target.
    pub(super) async fn all(reach: &Reach, pool: Option<&PoolId>) -> Result<Vec<Self>, Failure> {
        let keys = &reach.keys;
        let selects = match pool {
            Some(pool) => [keys.overrides_of(pool), keys.override_statuses_of(pool)],
            None => [keys.overrides(), keys.override_statuses()],
        };
        let listing = reach.list(&selects.map(Select::Prefix)).await?;
        let (mut statuses, mut found) = (BTreeMap::new(), Vec::new());
        for entry in listing.entries {
            match keys.parse(&entry.key) {
                Some(Key::OverrideStatus(pool, target)) => {
                    let status: Option<OverrideStatus> = serde_json::from_slice(&entry.value).ok();
                    statuses.insert((pool, target), status);
                }
                Some(Key::Override(pool, target)) => {
                    let record = Override::parse(&entry.value, &target).map_err(|error| error.to_string());
                    let Entry { value, mod_revision: revision, .. } = entry;
                    found.push(Self { pool, target, value, record, status: None, revision });
                }
                _ => say(&format!("warning: {} names no pool and target", entry.key.escape_debug())),
            }
        }
        for standing in &mut found {
            standing.status = statuses.remove(&(standing.pool.clone(), standing.target.clone())).flatten();
        }
        Ok(found)
    }

    /// How it stands: for people, with what is wrong, or is odd about it.
    pub(super) fn word(&self, wall: UnixMillis) -> (&'static str, Option<String>) {
        match (&self.record, &self.status) {
            (Err(error), _) => ("rejected", Some(error.clone())),
            (Ok(record), _) if record.expired(wall) => ("ended", None),
            // What it says of an earlier record says nothing of this one.
            (Ok(_), Some(status)) if status.revision == self.revision => {
                if status.accepted {
                    ("accepted", status.warning.clone())
                } else {
                    ("rejected", status.error.clone())
                }
            }
            (Ok(_), _) => ("unanswered", None),
        }
    }

    fn row(&self, wall: UnixMillis) -> Vec<String> {
        let (word, error) = self.word(wall);
        let record = self.record.as_ref().ok();
        let text = |field: Option<&String>| field.cloned().unwrap_or_else(|| NONE.to_owned());
        let end = record.and_then(|record| record.expires_at);
        let mut status = error.map_or_else(|| word.to_owned(), |error| format!("{word}: {error}"));
        if let Some(earlier) = in_force(self.status.as_ref(), wall).filter(|_| word == "rejected") {
            let _ = write!(status, "; in force: {}", act(&earlier.action));
        }
        vec![
            self.pool.to_string(),
            target_name(&self.target),
            record.map_or_else(|| NONE.to_owned(), |record| act(&record.action)),
            text(record.and_then(|record| record.by.as_ref())),
            end.map_or_else(|| NONE.to_owned(), |end| ends(end, wall)),
            status,
            text(record.and_then(|record| record.reason.as_ref())),
        ]
    }

    fn json(&self, wall: UnixMillis) -> Value {
        let (status, error) = self.word(wall);
        json!({
            "pool": self.pool, "target": target_name(&self.target), "record": json_of(&self.value),
            "status": status, "error": error.as_ref().filter(|_| status == "rejected"),
            "warning": error.as_ref().filter(|_| status != "rejected"),
            "applied": in_force(self.status.as_ref(), wall),
        })
    }
}

async fn list(args: ListArgs) -> Result<(), Failure> {
    let reach = Reach::open(&args.reach).await?;
    let wall = SystemClock::new().wall();
    let found = Standing::all(&reach, args.pool.as_ref()).await?;
    if args.json {
        return print_json(&found.iter().map(|standing| standing.json(wall)).collect::<Vec<_>>());
    }
    if found.is_empty() {
        return print("no overrides\n");
    }
    let rows: Vec<Vec<String>> = found.iter().map(|standing| standing.row(wall)).collect();
    print(&table(&["POOL", "TARGET", "ACTION", "BY", "ENDS", "STATUS", "REASON"], &rows))
}
