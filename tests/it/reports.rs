//! Reports of processes with more tenants than one report can hold, and how often members report.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use tidegate::client::{ClientParams, Core, Permit, PoolParams};
use tidegate::clock::{Clock as _, ManualClock, MonoTime};
use tidegate::config::Config;
use tidegate::controller::signal::PoolSignal;
use tidegate::controller::{Leading, Reign, Won};
use tidegate::observation::{Counters, PoolReport, REPORT_BYTES_MAX, Report, TenantReport, ThrottleKind};
use tidegate::plan::keyspace::Keyspace;
use tidegate::plan::{Reply, Share};
use tidegate::provider::{Dialect, Head, Usage};
use tidegate::quota::{Cost, PoolId, Unit};
use tidegate::store::{LeaseId, Listing, MemoryStore, Outcome, Select, Source, Store, StoreError, Txn, Watch};
use tidegate::telemetry::Telemetry;

use crate::by_hand::{grantee, pool, tenant};

/// Many more than fit into one report, or into two.
const TENANTS: usize = 10_000;

/// Longer than a share lives.
const SPAN: Duration = Duration::from_secs(8);
/// Within so many reports each of them is told of, even where half the room is for refusals.
const TURNS: usize = 10;

fn name(n: usize) -> String {
    // As long as names of tenants are that come out of a database.
    format!("customer-{n:05}-4f1c2f60-77aa-4c46-9a0e-5a8d8c2f3b6e")
}

/// A store whose commits can take their time, by the clock that is moved by hand.
#[derive(Clone)]
struct SlowStore {
    store: MemoryStore,
    clock: Arc<ManualClock>,
    commit_ms: Arc<AtomicU64>,
}

impl SlowStore {
    fn commits_take(&self, span: Duration) {
        self.commit_ms.store(u64::try_from(span.as_millis()).expect("short"), Ordering::SeqCst);
    }
}

#[async_trait]
impl Source for SlowStore {
    async fn list(&self, selects: &[Select]) -> Result<Listing, StoreError> {
        self.store.list(selects).await
    }

    async fn watch(&self, selects: &[Select], from_revision: u64) -> Result<Watch, StoreError> {
        self.store.watch(selects, from_revision).await
    }
}

#[async_trait]
impl Store for SlowStore {
    async fn commit(&self, txn: Txn) -> Result<Outcome, StoreError> {
        self.clock.advance(Duration::from_millis(self.commit_ms.load(Ordering::SeqCst)));
        self.store.commit(txn).await
    }

    async fn lease(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.store.lease(ttl).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.store.keep_alive(lease).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.store.revoke(lease).await
    }
}

/// A controller that leads, stepped by hand.
struct Court {
    store: SlowStore,
    clock: Arc<ManualClock>,
    leading: Leading,
    won: Won,
    reign: Reign,
}

impl Court {
    /// Of so many pools with `tenants` tenants each.
    async fn new(pools: usize, tenants: usize) -> Self {
        let mut file = "[controller]\nlisten = \"127.0.0.1:0\"\n".to_owned();
        for pool in 0..pools {
            let id = pool_id(pool);
            let capacity = "capacity = { \"requests/minute\" = 60_000_000 }";
            writeln!(file, "[pools.{id}]\ndialect = \"openai\"\n{capacity}").expect("a string");
            for n in 0..tenants {
                writeln!(file, "[pools.{id}.tenants.{}]", name(n)).expect("a string");
            }
        }
        let params = Config::parse("t.toml", &file).expect("good").controller;
        let clock = Arc::new(ManualClock::at(MonoTime::from_millis(3_600_000)));
        let store = SlowStore { store: MemoryStore::new(), clock: clock.clone(), commit_ms: Arc::default() };
        let telemetry = Arc::new(Telemetry::new());
        let store_of_it = Arc::new(store.clone());
        let leading = Leading::new(params, "http://c".to_owned(), store_of_it, clock.clone(), telemetry);
        let won = leading.campaign().await.expect("a store").expect("nobody leads");
        leading.take_office(&won);
        let reign = leading.begin(&won).await.expect("readable");
        let mut court = Self { store, clock, leading, won, reign };
        court.tick().await;
        court
    }

    async fn tick(&mut self) {
        assert!(self.leading.keep(&self.won).await);
        self.leading.turn(&mut self.reign, false).await.expect("it leads");
    }

    /// A member of these pools that has read the store.
    async fn member(&self, instance: &str, pools: &[PoolId]) -> Arc<Core> {
        let pools = pools.iter().map(|id| PoolParams::new(id.clone(), Dialect::OpenAi)).collect();
        let params = ClientParams { instance: instance.to_owned(), ..ClientParams::new(pools) };
        let core = Core::new(&params, "boot".to_owned(), 0.5, self.clock.clone(), Arc::new(Telemetry::new()));
        core.on_list(&self.store.list(&core.selects().0).await.expect("lists"));
        core
    }

    /// Reports, and takes the reply; returns the report, and when the next one is due.
    fn report(&self, core: &Core) -> (Report, Duration) {
        let (report, asked_at) = core.tell();
        let body = serde_json::to_vec(&report).expect("serialises");
        assert!(body.len() <= REPORT_BYTES_MAX, "a body of {} bytes", body.len());
        let read = Report::parse(&body).expect("a report");
        let reply = self.leading.answer(&read).expect("it leads");
        (report, core.on_reply(&reply, asked_at).expect("of this term"))
    }
}

/// The first one is what records written by hand are of.
fn pool_id(n: usize) -> PoolId {
    if n == 0 { pool() } else { format!("pool-{n}").parse().expect("valid") }
}

fn admit(core: &Core, tenant_of: usize) -> Permit {
    let pool = core.pool(&pool()).expect("its pool");
    pool.try_admit(&tenant(&name(tenant_of)), Cost::request(1, 1)).expect("there is room")
}

fn refused(mut permit: Permit) {
    let observation = permit.observe(&Head { status: 429, headers: &vec![("retry-after".to_owned(), b"1".to_vec())] });
    permit.conclude(&observation);
    permit.settle(Usage::default());
}

/// A report of a member with these pools.
fn empty(member: usize, pools: BTreeMap<PoolId, PoolReport>) -> Report {
    Report { schema: 1, instance: format!("m{member}"), boot: "b".to_owned(), leaving: false, pools }
}

fn told(report: &Report) -> BTreeSet<String> {
    report.pools[&pool()].tenants.keys().map(ToString::to_string).collect()
}

/// A member reports for longer than a share lives, beside so many others; returns how often.
async fn shares_are_held_beside(others: usize) -> u32 {
    let mut court = Court::new(1, TENANTS).await;
    let core = court.member("m", &[pool()]).await;
    for n in 0..TENANTS {
        admit(&core, n).settle(Usage::default());
    }
    (0..others)
        .for_each(|other| drop(court.leading.answer(&empty(other, BTreeMap::from([(pool(), PoolReport::default())])))));
    let began = court.clock.now();
    let (mut ticked, mut reports) = (began, 0_u32);
    let mut heard = BTreeSet::new();
    while court.clock.now().since(began) < SPAN {
        let (report, pause) = court.report(&core);
        assert_eq!(report.pools[&pool()].tenants_in_all, Some(TENANTS));
        heard.extend(told(&report));
        reports += 1;
        let due = court.clock.now() + pause;
        while court.clock.now() < due {
            court.clock.advance(due.since(court.clock.now()).min(Duration::from_millis(500)));
            if court.clock.now().since(ticked) >= Duration::from_secs(1) {
                ticked = court.clock.now();
                court.tick().await;
            }
        }
        let now = court.clock.now();
        if now.since(began) > Duration::from_secs(3) {
            let shares = core.with_views(|views| views[&pool()].leases(now).count());
            assert_eq!(shares, TENANTS, "after {:?}", now.since(began));
        }
    }
    assert_eq!(heard.len(), TENANTS);
    reports
}

/// A report of all of them would be refused, and with it each of their shares.
#[tokio::test]
async fn a_process_with_thousands_of_tenants_holds_a_share_of_each() {
    let reports = shares_are_held_beside(0).await;
    assert!(reports <= 32, "{reports} in {SPAN:?}: four a second are asked for");
}

#[tokio::test]
async fn who_is_asked_to_report_seldom_renews_the_shares_of_thousands_of_tenants_all_the_same() {
    let reports = shares_are_held_beside(2_500).await;
    assert!(reports <= 30, "{reports} in {SPAN:?}: no more than it takes");
}

#[tokio::test]
async fn a_refusal_is_told_of_before_its_tenants_turn() {
    let court = Court::new(1, TENANTS).await;
    let core = court.member("m", &[pool()]).await;
    let permits: Vec<Permit> = (0..TENANTS).map(|n| admit(&core, n)).collect();
    let (first, _) = court.report(&core);
    let told_first = told(&first);
    // One that was told of a moment ago, and whose turn comes last.
    let (due, permit) =
        permits.into_iter().enumerate().find(|(n, _)| told_first.contains(&name(*n))).expect("somebody");
    refused(permit);
    let (second, _) = court.report(&core);
    let tenant = &second.pools[&pool()].tenants[&grantee(&name(due))];
    assert_eq!(tenant.counters.throttled.values().sum::<u64>(), 1);
    assert_eq!(told(&second).intersection(&told_first).count(), 1, "whose turn it is not");
    let (third, _) = court.report(&core);
    assert!(!told(&third).contains(&name(due)), "it was told of");
}

/// A fleet's refusals of everybody at once do not end the turns: each share is echoed all the same.
#[tokio::test]
async fn those_that_are_refused_leave_room_for_those_whose_turn_it_is() {
    let court = Court::new(1, TENANTS).await;
    let core = court.member("m", &[pool()]).await;
    let refused_ones = 0..TENANTS / 2;
    // One after the other is refused, of each before each report.
    let mut permits: Vec<Vec<Permit>> =
        (0..TURNS).map(|_| refused_ones.clone().map(|n| admit(&core, n)).collect()).collect();
    for n in refused_ones.end..TENANTS {
        admit(&core, n).settle(Usage::default());
    }
    let mut heard = BTreeSet::new();
    while heard.len() < TENANTS {
        permits
            .pop()
            .unwrap_or_else(|| panic!("{} of {TENANTS} were told of", heard.len()))
            .into_iter()
            .for_each(refused);
        heard.extend(told(&court.report(&core).0));
    }
}

/// The way to the leader is cut for a while, or another takes the lead: nobody loses its turn.
#[tokio::test]
async fn what_the_leader_did_not_take_is_told_again() {
    let court = Court::new(1, TENANTS).await;
    let core = court.member("m", &[pool()]).await;
    let permits: Vec<Permit> = (0..TENANTS).map(|n| admit(&core, n)).collect();
    court.report(&core);
    refused(permits.into_iter().next().expect("the first"));
    let (lost, _) = core.tell();
    let (again, _) = court.report(&core);
    assert_eq!(told(&lost), told(&again));
    assert_eq!(again.pools[&pool()].tenants[&grantee(&name(0))].counters.throttled.values().sum::<u64>(), 1);
}

/// Refusals of everybody do not make a report partial that holds everybody.
#[tokio::test]
async fn a_report_that_holds_everybody_is_whole() {
    let court = Court::new(1, 1_000).await;
    let core = court.member("m", &[pool()]).await;
    let permits: Vec<Permit> = (0..1_000).map(|n| admit(&core, n)).collect();
    permits.into_iter().for_each(refused);
    let (report, _) = court.report(&core);
    assert_eq!((told(&report).len(), report.pools[&pool()].tenants_in_all), (1_001, None), "and @default");
}

/// A share alone is nothing to tell of where there is no room: else whoever was served once would be told of for ever.
#[tokio::test]
async fn who_is_not_used_any_more_makes_room() {
    let court = Court::new(1, TENANTS).await;
    let core = court.member("m", &[pool()]).await;
    let reply_shares = (0..TENANTS)
        .map(|n| (grantee(&name(n)), Share { share: 0.5, concurrency: None, with_one_more: None }))
        .collect();
    let used = TENANTS / 2;
    for n in 0..used {
        admit(&core, n).settle(Usage::default());
    }
    let (_, asked_at) = core.tell();
    let shares = BTreeMap::from([(pool(), reply_shares)]);
    let reply = Reply { term: u64::MAX, epoch: 1, share_valid_ms: 5_000, next_report_ms: 250, shares };
    core.on_reply(&reply, asked_at).expect("of a later term");
    assert_eq!(core.tell().0.pools[&pool()].tenants_in_all, Some(used));
}

/// What one member tells of some of its tenants.
fn partly(sequence: u64, in_all: Option<usize>, of: &[(&str, u64)]) -> PoolReport {
    let tenants = of.iter().map(|(name, n)| {
        let throttled = BTreeMap::from([(ThrottleKind::Requests, *n)]);
        let counters = Counters { attempts: *n, sent: *n, throttled, ..Counters::default() };
        (grantee(name), TenantReport { counters, ..TenantReport::default() })
    });
    PoolReport { sequence, tenants_in_all: in_all, tenants: tenants.collect(), ..PoolReport::default() }
}

/// One that takes the lead hears of everybody's counts one report after the other: they are old.
#[test]
fn what_is_told_in_turn_is_no_news_until_all_were_told_of_and_then_it_is() {
    let at = |n: u64| MonoTime::from_millis(n * 1_000);
    let mut signal = PoolSignal::default();
    for (n, of) in [("a", 900), ("b", 700)].into_iter().enumerate() {
        let urgency = signal.ingest("m", &partly(1 + n as u64, Some(3), &[of]), at(n as u64));
        assert!(!urgency.throttled, "{of:?} was refused long ago");
        let asked = signal
            .asked()
            .find(|(who, _)| **who == grantee(of.0))
            .map_or(0.0, |(_, asked)| asked.per_s(Unit::Requests));
        assert_eq!(asked, 0.0);
    }
    assert!(signal.ingest("m", &partly(3, Some(3), &[("a", 901)]), at(2)).throttled, "that is news");
    assert!(!signal.ingest("m", &partly(4, Some(3), &[("c", 5)]), at(6)).throttled, "the third");
    let known = signal.own_at(Unit::Requests, at(6));
    assert!(signal.ingest("m", &partly(5, Some(4), &[("d", 1)]), at(7)).throttled, "a tenant that is new");
    assert_eq!(signal.own_at(Unit::Requests, at(7)), known);

    // So many were heard of, but others may have come, of which not all are new.
    let mut signal = PoolSignal::default();
    signal.ingest("m", &partly(1, Some(3), &[("a", 900), ("b", 1), ("c", 2)]), at(0));
    assert!(!signal.ingest("m", &partly(2, Some(3), &[("d", 700)]), at(1)).throttled, "not yet a round");

    // Long enough, but not of so many.
    let mut signal = PoolSignal::default();
    for (n, of) in [("a", 900), ("b", 700)].into_iter().enumerate() {
        let n = n as u64;
        assert!(!signal.ingest("m", &partly(1 + n, Some(3), &[of]), at(6 * n)).throttled, "{of:?}");
    }
    assert!(!signal.ingest("m", &partly(3, Some(3), &[("c", 800)]), at(12)).throttled, "the third");
}

/// At most a thousand posts a second, however the members are spread over pools.
#[tokio::test]
async fn members_of_all_pools_together_report_a_thousand_times_a_second() {
    let pools = 4;
    let court = Court::new(pools, 1).await;
    let mut last = Duration::ZERO;
    for member in 0..1_000 {
        let report = empty(member, BTreeMap::from([(pool_id(member % pools), PoolReport::default())]));
        last = Duration::from_millis(court.leading.answer(&report).expect("it leads").next_report_ms);
    }
    assert_eq!(last, Duration::from_secs(1));
}

/// A pool that is refused again and again does not put off what there is to write of another.
#[tokio::test]
async fn an_early_tick_goes_on_with_what_another_pool_has_left_to_write() {
    let mut court = Court::new(2, TENANTS / 5).await;
    let rewritten = async |court: &Court| {
        let grants = Select::Prefix(Keyspace::default().limits_of(&pool_id(1)));
        let entries = court.store.list(&[grants]).await.expect("lists").entries;
        entries.iter().filter(|entry| entry.mod_revision > entry.create_revision).count()
    };
    court.clock.advance(Duration::from_secs(1));
    court.tick().await;
    // A member more is news for every grant of the second pool; the first one is refused.
    let before = rewritten(&court).await;
    for n in 0..2 {
        court.leading.answer(&empty(n, BTreeMap::from([(pool_id(1), PoolReport::default())]))).expect("it leads");
    }
    court.clock.advance(Duration::from_secs(1));
    court.store.commits_take(Duration::from_millis(100));
    court.tick().await;
    let written = rewritten(&court).await;
    assert!((before + 1..TENANTS / 5).contains(&written), "{written}, {before} before: not all in one tick");
    for n in 1..=2 {
        let refused = partly(n, None, &[(&name(0), n)]);
        court.leading.answer(&empty(9, BTreeMap::from([(pool_id(0), refused)]))).expect("it leads");
    }
    assert!(court.leading.keep(&court.won).await);
    court.leading.turn(&mut court.reign, true).await.expect("it leads");
    assert!(rewritten(&court).await > written, "it goes on");
}
