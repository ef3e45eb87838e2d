//! `tidegate status`: who leads, who is there, how pools and the store are.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use serde::ser::Error as _;
use serde::{Serialize, Serializer};
use tokio::time::timeout;

use super::overrides::{Standing, target_name};
use super::reach::{Leader, LeaderArgs, Reach, ReachArgs};
use super::table::{NONE, number, span, table};
use super::{Failure, policy, print, print_json};
use crate::client::LeaderHttp;
use crate::client::PULSE_QUIET;
use crate::clock::{Clock, SystemClock, UnixMillis};
use crate::controller::{LeaderAccount, MeterAccount, PoolAccount, SignalAccount};
use crate::plan::keyspace::{Key, Presence};
use crate::plan::{Mode, Pulse, Stamp};
use crate::quota::{Meter, PoolId};
use crate::store::{Change, Health, Listing, Select, Source, Store, StoreError, WatchEvent};

/// etcd's own default.
const QUOTA_BYTES: u64 = 2 << 30;
/// How long etcd may take to say that its history is compacted.
const COMPACTED_WAIT: Duration = Duration::from_millis(300);
/// A key that nobody writes.
const NO_KEY: &str = "\0";

/// Arguments of `tidegate status`.
#[derive(Debug, clap::Args)]
pub(super) struct StatusArgs {
    /// How large etcd's database may become, in bytes; else what etcd tells (from 3.6 on) or --config says, else 2 GiB.
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(1_000_000..))]
    etcd_quota: Option<u64>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reach: ReachArgs,
    #[command(flatten)]
    leader: LeaderArgs,
}

/// All that is told.
#[derive(Debug, Serialize)]
struct Status {
    /// What makes it end with 1.
    problems: Vec<String>,
    warnings: Vec<String>,
    leader: Option<LeaderStatus>,
    etcd: EtcdStatus,
    pools: BTreeMap<PoolId, PoolStatus>,
    members: Vec<MemberStatus>,
    /// What the leader asks Prometheus, by the queries' names.
    signals: BTreeMap<String, SignalAccount>,
}

#[derive(Debug, Serialize)]
struct LeaderStatus {
    name: String,
    url: String,
    term: u64,
    led_for_ms: Option<u64>,
}

#[derive(Debug, Serialize)]
struct EtcdStatus {
    endpoints: Vec<String>,
    version: String,
    file_bytes: u64,
    used_bytes: u64,
    quota_bytes: u64,
    revision: u64,
    /// The oldest revision that it still has, where it was ever compacted.
    compacted_revision: Option<u64>,
    errors: Vec<String>,
}

#[derive(Debug, Serialize)]
struct PoolStatus {
    /// Below zero: the leader's clock is ahead.
    pulse_age_ms: i64,
    stale: bool,
    /// What members make of its limits.
    mode: Mode,
    /// Whose policy holds: `file`, `etcd`, or `rejected` when that in etcd is malformed and the last good one holds.
    policy: &'static str,
    overrides: usize,
    /// As the leader tells; nothing when it does not.
    #[serde(flatten, serialize_with = "told")]
    account: Option<PoolAccount>,
}

/// What the leader tells, without what is said beside it.
#[allow(clippy::ref_option, reason = "as serde calls it")]
fn told<S: Serializer>(account: &Option<PoolAccount>, serializer: S) -> Result<S::Ok, S::Error> {
    let told = serde_json::to_value(account).map_err(S::Error::custom)?;
    let told = told.as_object().into_iter().flatten().filter(|(key, _)| !["mode", "overrides"].contains(&key.as_str()));
    told.collect::<BTreeMap<_, _>>().serialize(serializer)
}

#[derive(Debug, Serialize)]
struct MemberStatus {
    instance: String,
    pools: Vec<PoolId>,
    /// Its own word on whether limits hold; `null` when the pools' policies say it.
    mode: Option<Mode>,
    /// When it last reported to the leader; `null` when the leader does not tell, or has not heard of it.
    report_age_ms: Option<u64>,
}

/// Looks, prints, and fails when nobody leads or a pulse is stale.
pub(super) async fn status(args: StatusArgs) -> Result<(), Failure> {
    let http = args.leader.http()?;
    let reach = Reach::open(&args.reach).await?;
    let status = look(&reach, &http, args.etcd_quota).await?;
    let printed = if args.json { print_json(&status) } else { print(&text(&status)) };
    printed?;
    if status.problems.is_empty() { Ok(()) } else { Err(Failure::Run(status.problems.join("; "))) }
}

async fn look(reach: &Reach, http: &LeaderHttp, quota_bytes: Option<u64>) -> Result<Status, Failure> {
    let keys = &reach.keys;
    let selects = [Select::Key(keys.key(&Key::Leader)), Select::Prefix(keys.pulses()), Select::Prefix(keys.members())];
    let (listing, standing, policies) =
        tokio::try_join!(reach.list(&selects), Standing::all(reach, None), policy::Standing::all(reach))?;
    let wall = SystemClock::new().wall();
    let leader = Leader::find(&listing, keys);
    let (account, health, compacted) = tokio::join!(ask(http, leader.as_ref()), reach.store.health(), compacted(reach));

    let (mut problems, mut warnings) = (Vec::new(), Vec::new());
    let account = match account {
        Some(Ok(account)) => Some(account),
        Some(Err(error)) => {
            warnings.push(error);
            None
        }
        None => {
            problems.push("nobody leads".to_owned());
            None
        }
    };
    let health = health?.ok_or_else(|| Failure::Run("the store tells nothing of itself".into()))?;
    let etcd = etcd(reach, health, quota_bytes, listing.revision, compacted);
    etcd_worries(&etcd, &mut problems, &mut warnings);

    let mut pools = pulses(reach, &listing, wall).await?;
    // The last pulse of a pool that is not configured any more stays, and is no trouble.
    pools.retain(|pool, _| account.as_ref().is_none_or(|account| account.pools.contains_key(pool)));
    for (pool, status) in &mut pools {
        let in_force =
            |one: &&Standing| one.pool == *pool && one.record.as_ref().is_ok_and(|record| !record.expired(wall));
        status.overrides = standing.iter().filter(in_force).count();
        status.account = account.as_ref().and_then(|account| account.pools.get(pool)).cloned();
        if status.stale {
            problems.push(format!("the pulse of {pool} is {} old", span(status.pulse_age_ms)));
        }
    }
    for one in &standing {
        let target = target_name(&one.target);
        match one.word(wall) {
            ("rejected", Some(error)) => {
                warnings.push(format!("the override of {} {target} is rejected: {error}", one.pool));
            }
            (_, Some(warning)) => warnings.push(format!("the override of {} {target}: {warning}", one.pool)),
            (_, None) => {}
        }
    }
    let members = members(reach, &listing, account.as_ref());
    mode_worries(&pools, &members, &mut warnings);
    let signals = account.as_ref().map(|account| account.signals.clone()).unwrap_or_default();
    for (query, signal) in signals.iter().filter(|(_, signal)| signal.state != "fresh" || signal.error.is_some()) {
        let why = signal.error.as_ref().map_or_else(String::new, |error| format!(": {error}"));
        warnings.push(format!("the signal {query} is {}{why}", signal.state));
    }
    for (pool, told) in account.iter().flat_map(|account| &account.pools) {
        warnings.extend(told.by_share().map(|words| format!("{pool}: {words}")));
    }
    policy_worries(&policies, &mut pools, &mut warnings);
    let leader = leader.map(|Leader { record, term }| LeaderStatus {
        name: record.name,
        url: record.report_url,
        term,
        led_for_ms: account.as_ref().map(|account| account.led_for_ms),
    });
    Ok(Status { problems, warnings, leader, etcd, pools, members, signals })
}

async fn ask(http: &LeaderHttp, leader: Option<&Leader>) -> Option<Result<LeaderAccount, String>> {
    Some(leader?.ask(http, "/v1/status").await.map_err(|error| error.to_string()))
}

/// From which revision on etcd still has its history: it says so to who watches from the beginning.
async fn compacted(reach: &Reach) -> Option<u64> {
    let asked = async {
        let mut watch = reach.store.watch(&[Select::Key(NO_KEY.to_owned())], 1).await.ok()?;
        loop {
            match watch.next().await {
                Ok(_) => {}
                Err(StoreError::Compacted { revision }) => return Some(revision),
                Err(_) => return None,
            }
        }
    };
    timeout(COMPACTED_WAIT, asked).await.ok().flatten()
}

fn etcd(reach: &Reach, health: Health, told: Option<u64>, revision: u64, compacted: Option<u64>) -> EtcdStatus {
    EtcdStatus {
        endpoints: reach.endpoints.clone(),
        version: health.version,
        file_bytes: health.file_bytes,
        used_bytes: health.used_bytes,
        quota_bytes: told.or(health.quota_bytes).or(reach.quota_bytes).unwrap_or(QUOTA_BYTES),
        revision,
        compacted_revision: compacted,
        errors: health.errors,
    }
}

fn etcd_worries(etcd: &EtcdStatus, problems: &mut Vec<String>, warnings: &mut Vec<String>) {
    problems.extend(etcd.errors.iter().map(|error| format!("etcd: {}", error.trim())));
    if etcd.file_bytes >= etcd.quota_bytes / 2 {
        warnings.push(format!("etcd's database has {} of {} bytes", etcd.file_bytes, etcd.quota_bytes));
    }
}

/// Where limits do not hold, or hold by somebody else's word.
fn mode_worries(pools: &BTreeMap<PoolId, PoolStatus>, members: &[MemberStatus], warnings: &mut Vec<String>) {
    for (pool, status) in pools.iter().filter(|(_, status)| !status.mode.enforces()) {
        warnings.push(format!("the limits of {pool} are not enforced: its mode is {}", status.mode.as_str()));
    }
    for (member, mode) in members.iter().filter_map(|member| Some((member, member.mode?))) {
        warnings.push(format!("{} has a mode of its own: {}", member.instance, mode.as_str()));
    }
}

/// Whose policy holds, and what is wrong with those in the store.
fn policy_worries(
    policies: &BTreeMap<PoolId, policy::Standing>,
    pools: &mut BTreeMap<PoolId, PoolStatus>,
    warnings: &mut Vec<String>,
) {
    for (pool, standing) in policies {
        let (word, error) = standing.word(pool);
        let rejected = word == "rejected";
        if let Some(status) = pools.get_mut(pool) {
            status.policy = if rejected { "rejected" } else { "etcd" };
        }
        if rejected {
            warnings.push(format!("the policy of {pool} is rejected: {}", error.unwrap_or_default()));
        }
    }
}

/// The pools by their pulses. Where clocks do not agree that one is fresh, the next one is waited for.
async fn pulses(reach: &Reach, listing: &Listing, wall: UnixMillis) -> Result<BTreeMap<PoolId, PoolStatus>, Failure> {
    let quiet_ms = i64::try_from(PULSE_QUIET.as_millis()).unwrap_or(i64::MAX);
    let (mut pools, mut doubted) = (BTreeMap::new(), BTreeMap::new());
    for entry in &listing.entries {
        let Some(Key::Pulse(pool)) = reach.keys.parse(&entry.key) else { continue };
        let Ok(pulse) = Pulse::parse(&entry.value) else { continue };
        let ms = |at: UnixMillis| i64::try_from(at.0).unwrap_or(i64::MAX);
        let pulse_age_ms = ms(wall).saturating_sub(ms(pulse.unix_ms));
        if pulse_age_ms.abs() > quiet_ms {
            doubted.insert(pool.clone(), pulse.stamp);
        }
        pools.insert(
            pool,
            PoolStatus { pulse_age_ms, stale: false, mode: pulse.mode, policy: "file", overrides: 0, account: None },
        );
    }
    if !doubted.is_empty() {
        let _ = timeout(PULSE_QUIET, newer(reach, &mut doubted, listing.revision)).await;
        for pool in doubted.keys() {
            if let Some(status) = pools.get_mut(pool) {
                status.stale = true;
            }
        }
    }
    Ok(pools)
}

/// Waits until each of these has a newer pulse; those that have one are taken out.
async fn newer(reach: &Reach, doubted: &mut BTreeMap<PoolId, Stamp>, revision: u64) -> Result<(), StoreError> {
    let mut watch = reach.store.watch(&[Select::Prefix(reach.keys.pulses())], revision + 1).await?;
    while !doubted.is_empty() {
        let WatchEvent::Changes { changes, .. } = watch.next().await? else { continue };
        for change in changes {
            let Change::Put(entry) = change else { continue };
            if let (Some(Key::Pulse(pool)), Ok(pulse)) = (reach.keys.parse(&entry.key), Pulse::parse(&entry.value))
                && doubted.get(&pool).is_some_and(|known| *known < pulse.stamp)
            {
                doubted.remove(&pool);
            }
        }
    }
    Ok(())
}

fn members(reach: &Reach, listing: &Listing, account: Option<&LeaderAccount>) -> Vec<MemberStatus> {
    let heard = |member: &str| {
        let pools = account.into_iter().flat_map(|account| account.pools.values());
        // Where reporters are declared, the member's name ends with its reporter's.
        let is_it =
            |heard: &str| heard.strip_prefix(member).is_some_and(|rest| rest.is_empty() || rest.starts_with('@'));
        let ages = pools.flat_map(|pool| pool.members.iter()).filter(|heard| is_it(&heard.member));
        ages.map(|heard| heard.report_age_ms).min()
    };
    let member = |(key, value): (Option<Key>, &[u8])| {
        let Some(Key::Member(instance)) = key else { return None };
        let Presence { boot, pools, mode } = serde_json::from_slice(value).ok()?;
        let report_age_ms = heard(&format!("{instance}/{boot}"));
        Some(MemberStatus { instance, pools, mode, report_age_ms })
    };
    let keyed = listing.entries.iter().map(|entry| (reach.keys.parse(&entry.key), &entry.value[..]));
    keyed.filter_map(member).collect()
}

fn text(status: &Status) -> String {
    let mut text = match &status.leader {
        Some(LeaderStatus { name, url, term, led_for_ms }) => {
            let since = led_for_ms.map_or_else(String::new, |ms| format!(", for {}", span(signed(ms))));
            format!("leader  {name} at {url}, term {term}{since}\n")
        }
        None => "leader  nobody\n".to_owned(),
    };
    let EtcdStatus { endpoints, version, file_bytes, quota_bytes, revision, .. } = &status.etcd;
    let history = status.etcd.compacted_revision.map_or_else(String::new, |from| format!(", history from {from} on"));
    let (file, quota, endpoints) = (mebibytes(*file_bytes), mebibytes(*quota_bytes), endpoints.join(", "));
    let _ = writeln!(text, "etcd    {version} at {endpoints}, {file} of {quota} MiB, revision {revision}{history}");
    for (word, lines) in [("problem", &status.problems), ("warning", &status.warnings)] {
        for line in lines {
            let _ = writeln!(text, "{word} {line}");
        }
    }
    if !status.pools.is_empty() {
        let rows: Vec<Vec<String>> = status.pools.iter().flat_map(|(id, pool)| pool_rows(id, pool)).collect();
        let head = [
            "POOL",
            "MODE",
            "POLICY",
            "DIALECT",
            "TENANTS",
            "MEMBERS",
            "OVERRIDES",
            "PULSE",
            "METER",
            "CAPACITY",
            "USED",
            "ASKED",
            "OTHERS",
        ];
        let _ = write!(text, "\n{}", table(&head, &rows));
    }
    if !status.members.is_empty() {
        let rows: Vec<Vec<String>> = status.members.iter().map(member_row).collect();
        let _ = write!(text, "\n{}", table(&["MEMBER", "REPORTED", "MODE", "POOLS"], &rows));
    }
    if !status.signals.is_empty() {
        let rows: Vec<Vec<String>> = status.signals.iter().map(signal_row).collect();
        let _ = write!(text, "\n{}", table(&["SIGNAL", "ROLE", "STATE", "AGE", "SERIES"], &rows));
    }
    text
}

/// A line for each meter; the pool itself in the first.
fn pool_rows(id: &PoolId, pool: &PoolStatus) -> Vec<Vec<String>> {
    let told = |tell: fn(&PoolAccount) -> String| pool.account.as_ref().map_or_else(|| NONE.to_owned(), tell);
    let age = span(pool.pulse_age_ms);
    let first = vec![
        id.to_string(),
        pool.mode.as_str().to_owned(),
        pool.policy.to_owned(),
        told(|account| account.dialect.clone()),
        told(|account| account.tenants.to_string()),
        told(|account| account.members.len().to_string()),
        pool.overrides.to_string(),
        if pool.stale { format!("{age}, stale") } else { age },
    ];
    let meter = |(meter, of): (&Meter, &MeterAccount)| {
        // Below zero where the limit is better than told: nobody else uses any.
        let others = of.others.map_or_else(|| NONE.to_owned(), |others| number(others.max(0.0)));
        vec![meter.to_string(), number(of.capacity), number(of.used), number(of.demand), others]
    };
    let mut meters: Vec<Vec<String>> =
        pool.account.iter().flat_map(|account| account.meters.iter().map(meter)).collect();
    if meters.is_empty() {
        meters.push(vec![NONE.to_owned(); 5]);
    }
    let blank = vec![String::new(); first.len()];
    let lead = std::iter::once(first).chain(std::iter::repeat(blank));
    lead.zip(meters).map(|(lead, meter)| [lead, meter].concat()).collect()
}

fn member_row(member: &MemberStatus) -> Vec<String> {
    let reported =
        member.report_age_ms.map_or_else(|| "not heard".to_owned(), |ms| format!("{} ago", span(signed(ms))));
    let pools = member.pools.iter().map(PoolId::as_str).collect::<Vec<_>>().join(", ");
    let mode = member.mode.map_or(NONE, Mode::as_str);
    vec![member.instance.clone(), reported, mode.to_owned(), pools]
}

fn signal_row((query, signal): (&String, &SignalAccount)) -> Vec<String> {
    let age = signal.age_ms.map_or_else(|| NONE.to_owned(), |ms| span(signed(ms)));
    vec![query.clone(), signal.role.to_string(), signal.state.clone(), age, signal.series.to_string()]
}

fn signed(ms: u64) -> i64 {
    i64::try_from(ms).unwrap_or(i64::MAX)
}

#[allow(clippy::cast_precision_loss, reason = "far below 2^53")]
fn mebibytes(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / f64::from(1 << 20))
}
