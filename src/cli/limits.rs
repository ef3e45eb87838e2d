//! `tidegate limits`: what is granted, and term by term what is enforced, by the code that members enforce it with.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::Subcommand;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::overrides::{describe, parse_target, target_name, tenant_name};
use super::reach::{Leader, LeaderArgs, Reach, ReachArgs, meant};
use super::signals::Signals;
use super::table::{NONE, number, table};
use super::{Failure, is_read, print, print_json, say};
use crate::client::{LeaderHttp, MeterTerms, PoolParams, PoolView, Session, Terms};
use crate::clock::{Clock, MonoTime, SystemClock, UnixMillis};
use crate::controller::{PoolAccount, nearest};
use crate::plan::keyspace::{Key, Keyspace};
use crate::plan::{Grant, Mode, Override, Pulse, Rate, Share, Target, Thresholds};
use crate::provider::Dialect;
use crate::quota::{Grantee, Meter, PoolId};
use crate::store::{Change, Entry, Listing, Select, Source, StoreError, WatchEvent};

/// How often what time alone changes is looked at: ends of overrides, the lapse.
const LOOK_EVERY: Duration = Duration::from_secs(1);
const REOPEN_AFTER: Duration = Duration::from_secs(1);
/// A share that is put in for a moment's look.
const LOOK: Duration = Duration::from_secs(1);

#[derive(Debug, Subcommand)]
pub(super) enum LimitsCommand {
    /// Print what tenants are granted, or what is enforced and why.
    #[command(after_long_help = super::help::LIMITS_GET)]
    Get(GetArgs),
    /// Print each change as it happens, until Ctrl-C.
    #[command(after_long_help = super::help::LIMITS_WATCH)]
    Watch(WatchArgs),
}

/// Whose limits.
#[derive(Debug, clap::Args)]
struct WhoseArgs {
    /// The pool.
    #[arg(value_name = "POOL")]
    pool: PoolId,
    /// Only this tenant, or @default.
    #[arg(value_name = "TENANT", value_parser = parse_tenant)]
    tenant: Option<Grantee>,
    /// What is enforced, term by term, instead of what is granted.
    #[arg(long)]
    effective: bool,
}

/// Arguments of `tidegate limits get`.
#[derive(Debug, clap::Args)]
pub(super) struct GetArgs {
    #[command(flatten)]
    whose: WhoseArgs,
    /// With this member's share, instead of the whole tenant.
    #[arg(long, value_name = "INSTANCE", requires = "effective")]
    member: Option<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reach: ReachArgs,
    #[command(flatten)]
    leader: LeaderArgs,
}

/// Arguments of `tidegate limits watch`.
#[derive(Debug, clap::Args)]
pub(super) struct WatchArgs {
    #[command(flatten)]
    whose: WhoseArgs,
    /// Print a JSON object a line.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reach: ReachArgs,
}

/// A tenant as an operator writes it.
pub(super) fn parse_tenant(text: &str) -> Result<Grantee, String> {
    match parse_target(text)? {
        Target::One(grantee) => Ok(grantee),
        Target::Every | Target::Capacity => Err("expected a tenant or @default".to_owned()),
    }
}

/// Runs a command on limits.
pub(super) async fn limits(command: LimitsCommand) -> Result<(), Failure> {
    match command {
        LimitsCommand::Get(args) => get(args).await,
        LimitsCommand::Watch(args) => watch(args).await,
    }
}

/// A pool, followed as a member follows it.
struct Followed {
    pool: PoolId,
    keys: Keyspace,
    session: Session,
    views: BTreeMap<PoolId, PoolView>,
    /// Whole: a view does not keep their reasons.
    grants: BTreeMap<Grantee, Grant>,
    /// The newest pulse: a view does not tell what the pool's own buckets are.
    pulse: Option<Pulse>,
    /// What is wrong with overrides that are no records.
    malformed: BTreeMap<Target, String>,
}

impl Followed {
    fn new(keys: &Keyspace, pool: &PoolId, now: MonoTime) -> Self {
        // A member's own configuration says what holds before a grant; this is what it says unless told otherwise.
        let bootstrap = PoolParams::new(pool.clone(), Dialect::Auto).bootstrap;
        Self {
            pool: pool.clone(),
            keys: keys.clone(),
            session: Session::new(keys.clone(), [pool.clone()]),
            views: BTreeMap::from([(pool.clone(), PoolView::new(bootstrap, now))]),
            grants: BTreeMap::new(),
            pulse: None,
            malformed: BTreeMap::new(),
        }
    }

    fn on_list(&mut self, listing: &Listing, now: MonoTime) {
        self.grants.clear();
        self.malformed.clear();
        listing.entries.iter().for_each(|entry| self.on_put(entry));
        self.session.on_list(listing, &mut self.views, now);
    }

    fn on_changes(&mut self, changes: &[Change], revision: u64, now: MonoTime) {
        for change in changes {
            match change {
                Change::Put(entry) => self.on_put(entry),
                Change::Delete { key, .. } => match self.keys.parse(key) {
                    Some(Key::Limits(_, grantee)) => drop(self.grants.remove(&grantee)),
                    Some(Key::Override(_, target)) => drop(self.malformed.remove(&target)),
                    _ => {}
                },
            }
        }
        self.session.on_changes(changes, revision, &mut self.views, now);
    }

    /// What is malformed changes nothing, as in a member.
    fn on_put(&mut self, entry: &Entry) {
        match self.keys.parse(&entry.key) {
            Some(Key::Limits(_, grantee)) => {
                if let Ok(grant) = Grant::parse(&entry.value) {
                    self.grants.insert(grantee, grant);
                }
            }
            Some(Key::Pulse(_)) => {
                let read = Pulse::parse(&entry.value).ok();
                let known = self.pulse.as_ref().map(|known| known.stamp);
                if let Some(pulse) = read.filter(|pulse| known.is_none_or(|known| known < pulse.stamp)) {
                    self.pulse = Some(pulse);
                }
            }
            Some(Key::Override(_, target)) => match Override::parse(&entry.value, &target) {
                Ok(_) => drop(self.malformed.remove(&target)),
                Err(error) => drop(self.malformed.insert(target, error.to_string())),
            },
            _ => {}
        }
    }

    /// What is enforced for each tenant that is shown, with these shares put in.
    fn look(&mut self, tenant: Option<&Grantee>, whose: &Whose, now: MonoTime, wall: UnixMillis) -> Vec<Shown> {
        let undivided =
            |grant: &Grant| Share { share: 1.0, concurrency: grant.thresholds.concurrency, with_one_more: None };
        let shares = match whose {
            Whose::Tenant => self.grants.iter().map(|(grantee, grant)| (grantee.clone(), undivided(grant))).collect(),
            Whose::Member { shares, .. } => shares.clone(),
        };
        if let Some(view) = self.views.get_mut(&self.pool) {
            view.on_reply(shares, now + LOOK);
        }
        let view = self.views.get(&self.pool);
        let named = tenant.map_or_else(|| self.grants.keys().cloned().collect(), |tenant| vec![tenant.clone()]);
        let shown = |grantee: Grantee| {
            // Who has no grant shares what those have that are not declared, unless it is blocked itself.
            let grant = self.grants.get(&grantee).or_else(|| self.grants.get(&Grantee::Default));
            let own = view.and_then(|view| view.terms_of(&grantee, now, wall));
            let terms = match own {
                Some(terms) if !terms.meters.is_empty() => Some(terms),
                own => view
                    .and_then(|view| view.terms_of(&Grantee::Default, now, wall))
                    .map(|shared| Terms { blocked: shared.blocked || own.is_some_and(|own| own.blocked), ..shared }),
            };
            Shown { grant: grant.cloned(), terms, overrides: self.standing(&grantee, wall), grantee }
        };
        named.into_iter().map(shown).collect()
    }

    /// The overrides in force for a tenant, in a line each.
    fn standing(&self, grantee: &Grantee, wall: UnixMillis) -> Vec<String> {
        let targets = [Target::Every, Target::One(grantee.clone()), Target::Capacity];
        let lines = |target: &Target| {
            let name = target_name(target);
            let malformed = self.malformed.get(target).map(|error| format!("{name}: rejected: {error}"));
            let record = self.views.get(&self.pool).and_then(|view| view.overrides().at(target, wall));
            let record = record.map(|record| format!("{name}: {}", describe(record, wall)));
            malformed.into_iter().chain(record).collect::<Vec<_>>()
        };
        targets.iter().flat_map(lines).collect()
    }

    fn leader(&self) -> Option<Leader> {
        Some(Leader { record: self.session.leader()?.clone(), term: self.session.term() })
    }

    fn state(&self, now: MonoTime) -> &'static str {
        self.views.get(&self.pool).map_or(NONE, |view| view.state(now).as_str())
    }

    /// The pool's own buckets, of the meters that members count together.
    fn shared(&self) -> BTreeMap<Meter, Rate> {
        self.pulse.as_ref().map(|pulse| pulse.shared.clone()).unwrap_or_default()
    }

    fn mode(&self) -> Mode {
        self.views.get(&self.pool).map(PoolView::mode).unwrap_or_default()
    }
}

/// Whose part is looked at.
enum Whose {
    /// The whole tenant.
    Tenant,
    /// One member, with its shares.
    Member { name: String, shares: BTreeMap<Grantee, Share> },
}

/// A tenant's limits as they are shown.
struct Shown {
    grantee: Grantee,
    grant: Option<Grant>,
    /// Of one that is not declared: what `@default` has.
    terms: Option<Terms>,
    overrides: Vec<String>,
}

async fn get(args: GetArgs) -> Result<(), Failure> {
    let WhoseArgs { pool, tenant, effective } = args.whose;
    let reach = Reach::open(&args.reach).await?;
    let clock = SystemClock::new();
    let mut followed = Followed::new(&reach.keys, &pool, clock.now());
    followed.on_list(&reach.list(&followed.session.list_selects()).await?, clock.now());
    if followed.grants.is_empty() {
        return Err(unknown_pool(&reach, &pool).await?);
    }
    let whose = match args.member {
        Some(member) => member_of(&args.leader.http()?, followed.leader().as_ref(), &pool, &member).await?,
        None => Whose::Tenant,
    };
    let warning = tenant.as_ref().filter(|tenant| !followed.grants.contains_key(tenant)).map(|tenant| {
        let names: Vec<String> = followed.grants.keys().map(tenant_name).collect();
        let name = tenant_name(tenant);
        let near = nearest(&name, names.iter().map(String::as_str), 3);
        format!("{name} has no grant in {pool}: it shares @default's{}", meant(&near))
    });
    if let Some(warning) = &warning {
        say(&format!("warning: {warning}"));
    }
    let (now, wall) = (clock.now(), clock.wall());
    let shown = followed.look(tenant.as_ref(), &whose, now, wall);
    if args.json {
        let mut json = json(&followed, &whose, &shown, now);
        json["warnings"] = warning.into_iter().collect();
        return print_json(&json);
    }
    let text = if effective { effective_text(&followed, &whose, &shown, now) } else { granted_text(&shown) };
    let why = if let [one] = &shown[..] { why(one, effective) } else { String::new() };
    print(&format!("{text}{why}"))
}

/// There are no grants: is there such a pool at all?
async fn unknown_pool(reach: &Reach, pool: &PoolId) -> Result<Failure, Failure> {
    let listing = reach.list(&[Select::Prefix(reach.keys.pulses())]).await?;
    let pools = listing.entries.iter().filter_map(|entry| match reach.keys.parse(&entry.key) {
        Some(Key::Pulse(pool)) => Some(pool),
        _ => None,
    });
    let pools: Vec<PoolId> = pools.collect();
    let near = nearest(pool.as_str(), pools.iter().map(PoolId::as_str), 3);
    let what = "nothing is granted: members serve their bootstrap thresholds";
    if pools.is_empty() {
        let prefix = reach.keys.prefix();
        return Ok(Failure::Run(format!(
            "{pool}: {what}; no pool has grants under {prefix}: is it the right --prefix?"
        )));
    }
    Ok(Failure::Run(format!("{pool}: {what}{}", meant(&near))))
}

/// A member with the shares that the leader says it holds.
async fn member_of(http: &LeaderHttp, leader: Option<&Leader>, pool: &PoolId, name: &str) -> Result<Whose, Failure> {
    let leader = leader.ok_or_else(|| Failure::Run("no leader: nobody knows what members hold".into()))?;
    let account: PoolAccount = leader.ask(http, &format!("/v1/pools/{pool}")).await?;
    let instance = |member: &str| member.rsplit_once('/').map_or(member, |(instance, _)| instance).to_owned();
    let names: Vec<String> = account.members.iter().map(|member| instance(&member.member)).collect();
    let called = account.members.into_iter().filter(|member| member.member == name || instance(&member.member) == name);
    // Of two processes with one name, who was heard last.
    let Some(member) = called.min_by_key(|member| member.report_age_ms) else {
        let near = nearest(name, names.iter().map(String::as_str), 3);
        return Err(Failure::Run(format!("no member {name} reports for {pool}{}", meant(&near))));
    };
    Ok(Whose::Member { name: member.member, shares: member.shares })
}

fn granted_text(shown: &[Shown]) -> String {
    let rows = shown.iter().flat_map(|Shown { grantee, grant, .. }| {
        let tenant = tenant_name(grantee);
        let rows = grant.iter().flat_map(|grant| {
            let meters = grant.thresholds.rates.iter().map(|(meter, rate)| {
                let safe = grant.safe.rates.get(meter).map_or_else(|| NONE.to_owned(), |safe| number(safe.rate));
                let algorithm = grant.algorithms.get(meter).copied().unwrap_or_default();
                let (rate, burst) = (number(rate.rate), number(rate.burst));
                vec![meter.to_string(), rate, burst, safe, algorithm.as_str().to_owned(), grant.reason.code.clone()]
            });
            let places = grant.thresholds.concurrency.map(|places| {
                let safe = grant.safe.concurrency.map_or_else(|| NONE.to_owned(), |places| places.to_string());
                let none = || NONE.to_owned();
                vec!["concurrency".to_owned(), places.to_string(), none(), safe, none(), grant.reason.code.clone()]
            });
            meters.chain(places).collect::<Vec<_>>()
        });
        rows.map(|row| [vec![tenant.clone()], row].concat()).collect::<Vec<_>>()
    });
    table(&["TENANT", "METER", "RATE", "BURST", "SAFE", "COUNTED", "REASON"], &rows.collect::<Vec<_>>())
}

/// The terms, in the order in which they are put on each other.
fn effective_text(followed: &Followed, whose: &Whose, shown: &[Shown], now: MonoTime) -> String {
    let head =
        ["TENANT", "METER", "BASE", "PULSE", "@CAPACITY", "OVERRIDDEN", "KEPT", "BRAKE", "SHARE", "RATE", "BURST"];
    let rows = shown.iter().flat_map(|Shown { grantee, grant, terms, .. }| {
        let tenant = tenant_name(grantee);
        let rows = terms.iter().flat_map(|terms| {
            let blocked = |text: String| if terms.blocked { "blocked".to_owned() } else { text };
            let meters = terms.meters.iter().map(move |(meter, t)| {
                let limit = t.limit.rate;
                let base = t.base.map_or_else(|| NONE.to_owned(), |base| number(base.rate));
                let factors = [t.kept, t.brake, t.share, limit.burst].map(number);
                let [kept, brake, share, burst] = factors;
                let (pulse, capacity) = (number(t.scale), number(t.capacity));
                let none = if terms.frozen { "frozen" } else { NONE };
                let overridden = overridden(t).map_or_else(|| none.to_owned(), |rate| number(rate.rate));
                let (rate, burst) = (blocked(number(limit.rate)), if terms.blocked { NONE.to_owned() } else { burst });
                vec![meter.to_string(), base, pulse, capacity, blocked(overridden), kept, brake, share, rate, burst]
            });
            let granted = grant.as_ref().and_then(|grant| grant.thresholds.concurrency);
            let places = terms.concurrency.map(|places| {
                let mut row = vec![NONE.to_owned(); 10];
                "concurrency".clone_into(&mut row[0]);
                row[1] = granted.map_or_else(|| NONE.to_owned(), |places| places.to_string());
                row[8] = blocked(places.to_string());
                row
            });
            meters.chain(places).collect::<Vec<_>>()
        });
        rows.map(|row| [vec![tenant.clone()], row].concat()).collect::<Vec<_>>()
    });
    let text = table(&head, &rows.collect::<Vec<_>>());
    let of = match whose {
        Whose::Tenant => "the whole tenant: all members together".to_owned(),
        Whose::Member { name, .. } => format!("member {name}"),
    };
    let leader = followed.leader().map_or_else(
        || "nobody leads: so begins a member that starts now; others brake, and fall to it".to_owned(),
        |leader| format!("{} leads, term {}", leader.record.name, leader.term),
    );
    let mode = match followed.mode() {
        Mode::Enforce => String::new(),
        mode => format!("mode      {}: none of it is enforced\n", mode.as_str()),
    };
    let together = followed.shared().into_iter().map(|(meter, bucket)| {
        let (rate, burst) = (number(bucket.rate), number(bucket.burst));
        format!(
            "shared    {meter} is counted together in Redis: all tenants of the pool take {rate}, {burst} at once\n"
        )
    });
    let together: String = together.collect();
    format!("{text}\nshare     {of}\nstate     {}; {leader}\n{mode}{together}", followed.state(now))
}

/// What an override makes of a rate, if it makes anything else of it.
fn overridden(terms: &MeterTerms) -> Option<Rate> {
    let without = terms.base.map(|base| base.scaled(terms.scale).scaled(terms.capacity));
    (without != Some(terms.overridden)).then_some(terms.overridden)
}

fn why(shown: &Shown, effective: bool) -> String {
    let grant = shown.grant.iter().map(|grant| {
        let gap = if effective { "" } else { "\n" };
        format!("{gap}grant     {}: {}; members: {}\n", grant.reason.code, grant.reason.text, grant.members)
    });
    let overrides = shown.overrides.iter().map(|line| format!("override  {line}\n"));
    grant.chain(overrides).collect()
}

fn json(followed: &Followed, whose: &Whose, shown: &[Shown], now: MonoTime) -> Value {
    let tenant = |shown: &Shown| {
        let meters = |terms: &Terms| {
            let meters = terms.meters.iter().map(|(meter, terms)| (meter.to_string(), MeterJson::from(terms)));
            meters.collect::<BTreeMap<_, _>>()
        };
        json!({
            "tenant": tenant_name(&shown.grantee),
            "granted": shown.grant,
            "effective": shown.terms.as_ref().map(|terms| json!({
                "meters": meters(terms),
                "concurrency": terms.concurrency,
                "blocked": terms.blocked,
                "frozen": terms.frozen,
            })),
            "overrides": shown.overrides,
        })
    };
    json!({
        "pool": followed.pool,
        "leader": followed.leader().map(|leader| json!({ "name": leader.record.name, "term": leader.term })),
        "state": followed.state(now),
        "mode": followed.mode(),
        "shared": followed.shared(),
        "member": if let Whose::Member { name, .. } = whose { Some(name) } else { None },
        "tenants": shown.iter().map(tenant).collect::<Vec<_>>(),
    })
}

/// A meter's terms for programs.
#[derive(Serialize)]
struct MeterJson {
    base: Option<Rate>,
    pulse: f64,
    capacity: f64,
    overridden: Option<Rate>,
    kept: f64,
    brake: f64,
    share: f64,
    rate: f64,
    burst: f64,
}

impl From<&MeterTerms> for MeterJson {
    fn from(terms: &MeterTerms) -> Self {
        Self {
            base: terms.base,
            pulse: terms.scale,
            capacity: terms.capacity,
            overridden: overridden(terms),
            kept: terms.kept,
            brake: terms.brake,
            share: terms.share,
            rate: terms.limit.rate.rate,
            burst: terms.limit.rate.burst,
        }
    }
}

/// What stands in a line of `limits watch`: a tenant's limit on a meter.
type Line = (Grantee, Option<Meter>);

/// A limit: a rate, or places in flight.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Limit {
    rate: f64,
    burst: Option<f64>,
}

async fn watch(args: WatchArgs) -> Result<(), Failure> {
    let WhoseArgs { pool, tenant, effective } = args.whose;
    let reach = Reach::open(&args.reach).await?;
    let mut signals = Signals::watch()?;
    let clock = SystemClock::new();
    let mut followed = Followed::new(&reach.keys, &pool, clock.now());
    let mut printed: BTreeMap<Line, Limit> = BTreeMap::new();
    let mut tell = |followed: &mut Followed| {
        let (now, wall) = (clock.now(), clock.wall());
        let shown = followed.look(tenant.as_ref(), &Whose::Tenant, now, wall);
        let found = if effective { enforced(&shown) } else { granted(&shown) };
        let text = changes(&printed, &found, &shown, args.json, wall);
        printed = found;
        if text.is_empty() { Ok(true) } else { is_read(&text) }
    };
    let mut complained = false;
    loop {
        let followed = async {
            let listing = reach.store.list(&followed.session.list_selects()).await?;
            followed.on_list(&listing, clock.now());
            if followed.grants.is_empty() {
                say(&format!("nothing is granted in {} yet", followed.pool));
            }
            if complained {
                say("the store answers again");
                complained = false;
            }
            follow(&reach, &clock, &mut followed, &mut tell).await
        };
        let error = tokio::select! {
            () = signals.received() => return Ok(()),
            ended = followed => match ended {
                Ok(ended) => return ended,
                Err(error) => error,
            },
        };
        if !complained {
            say(&format!("{error}; trying again"));
            complained = true;
        }
        tokio::select! {
            () = signals.received() => return Ok(()),
            () = sleep(REOPEN_AFTER) => {}
        }
    }
}

/// Tells of changes until nobody reads them, or the watch breaks.
async fn follow(
    reach: &Reach,
    clock: &SystemClock,
    followed: &mut Followed,
    tell: &mut impl FnMut(&mut Followed) -> Result<bool, Failure>,
) -> Result<Result<(), Failure>, StoreError> {
    let mut watch = reach.store.watch(&followed.session.watch_selects(), followed.session.next_revision()).await?;
    let mut look = interval(LOOK_EVERY);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        match tell(followed) {
            Ok(true) => {}
            Ok(false) => return Ok(Ok(())),
            Err(failure) => return Ok(Err(failure)),
        }
        tokio::select! {
            event = watch.next() => {
                if let WatchEvent::Changes { changes, revision } = event? {
                    followed.on_changes(&changes, revision, clock.now());
                }
            }
            _ = look.tick() => {}
        }
    }
}

fn granted(shown: &[Shown]) -> BTreeMap<Line, Limit> {
    let lines = shown.iter().filter_map(|shown| Some((shown, shown.grant.as_ref()?))).flat_map(|(shown, grant)| {
        let Thresholds { rates, concurrency } = &grant.thresholds;
        let rates =
            rates.iter().map(|(meter, rate)| (Some(*meter), Limit { rate: rate.rate, burst: Some(rate.burst) }));
        let places = concurrency.map(|places| (None, Limit { rate: f64::from(places), burst: None }));
        rates.chain(places).map(|(meter, limit)| ((shown.grantee.clone(), meter), limit)).collect::<Vec<_>>()
    });
    lines.collect()
}

fn enforced(shown: &[Shown]) -> BTreeMap<Line, Limit> {
    let lines = shown.iter().filter_map(|shown| Some((shown, shown.terms.as_ref()?))).flat_map(|(shown, terms)| {
        let open = |x: f64| if terms.blocked { 0.0 } else { x };
        let meters = terms.meters.iter().map(|(meter, terms)| {
            let Rate { rate, burst } = terms.limit.rate;
            (Some(*meter), Limit { rate: open(rate), burst: Some(open(burst)) })
        });
        let places = terms.concurrency.map(|places| (None, Limit { rate: open(f64::from(places)), burst: None }));
        meters.chain(places).map(|(meter, limit)| ((shown.grantee.clone(), meter), limit)).collect::<Vec<_>>()
    });
    lines.collect()
}

/// A line for each limit that is another than it was.
fn changes(
    was: &BTreeMap<Line, Limit>,
    is: &BTreeMap<Line, Limit>,
    shown: &[Shown],
    as_json: bool,
    wall: UnixMillis,
) -> String {
    let mut names: Vec<&Line> = was.keys().chain(is.keys()).collect();
    names.sort();
    names.dedup();
    let time = wall.timestamp().map_or_else(|| NONE.to_owned(), |time| format!("{time:.3}"));
    let text = |limit: Option<&Limit>| match limit {
        Some(Limit { rate, burst: Some(burst) }) => format!("{} burst {}", number(*rate), number(*burst)),
        Some(Limit { rate, burst: None }) => number(*rate),
        None => NONE.to_owned(),
    };
    let line = |name: &&Line| {
        let (was, is) = (was.get(*name), is.get(*name));
        if was == is || !as_json && text(was) == text(is) {
            return None;
        }
        let (grantee, meter) = *name;
        let (tenant, meter) = (tenant_name(grantee), meter.map_or_else(|| "concurrency".to_owned(), |m| m.to_string()));
        let of = shown.iter().find(|shown| shown.grantee == *grantee);
        let reason = of.and_then(|shown| shown.grant.as_ref()).map(|grant| grant.reason.text.clone());
        let overrides = of.map_or(&[][..], |shown| &shown.overrides[..]);
        if as_json {
            let limit = |limit: Option<&Limit>| limit.map(|l| json!({ "rate": l.rate, "burst": l.burst }));
            let line = json!({
                "time": time, "tenant": tenant, "meter": meter, "was": limit(was), "is": limit(is),
                "reason": reason, "overrides": overrides,
            });
            return Some(format!("{line}\n"));
        }
        let why = overrides.iter().map(|line| format!("override {line}")).chain(reason).collect::<Vec<_>>().join("; ");
        let plain: String = why.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        Some(format!("{time}  {tenant}  {meter}  {} -> {}  {plain}\n", text(was), text(is)))
    };
    names.iter().filter_map(line).collect()
}
