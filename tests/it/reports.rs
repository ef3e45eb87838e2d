//! Reports of processes with more tenants than one report can hold, and how often members report.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use tidegate::client::{ClientParams, Core, Permit, PoolParams};
use tidegate::clock::{Clock as _, ManualClock, MonoTime};
use tidegate::config::Config;
use tidegate::controller::signal::PoolSignal;
use tidegate::controller::{Leading, Reign, Won};
use tidegate::observation::{Counters, PoolReport, REPORT_BYTES_MAX, Report, TenantReport, ThrottleKind};
use tidegate::provider::{Dialect, Head, Usage};
use tidegate::quota::{Cost, PoolId};
use tidegate::store::{MemoryStore, Source as _};
use tidegate::telemetry::Telemetry;

use crate::by_hand::{RPM, grantee, pool, tenant};

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

/// A controller that leads, stepped by hand.
struct Court {
    store: MemoryStore,
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
        let (store, clock) = (MemoryStore::new(), Arc::new(ManualClock::at(MonoTime::from_millis(3_600_000))));
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
    (0..others).for_each(|other| drop(court.leading.answer(&empty(other, BTreeMap::new()))));
    let began = court.clock.now();
    let (mut ticked, mut reports) = (began, 0_u32);
    let mut heard = BTreeSet::new();
    while court.clock.now().since(began) < SPAN {
        let (report, pause) = court.report(&core);
        assert!(report.pools[&pool()].partial);
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
            assert_eq!(shares, TENANTS + 1, "each, and @default, after {:?}", now.since(began));
        }
    }
    assert_eq!(heard.len(), TENANTS + 1);
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
    assert!(reports <= 20, "{reports} in {SPAN:?}: no more than it takes");
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

/// One that takes the lead hears of everybody's counts one report after the other: they are old.
#[test]
fn what_a_partial_report_tells_of_first_is_no_news() {
    let told = |sequence: u64, partial: bool, of: &[(&str, u64)]| {
        let tenants = of.iter().map(|(name, n)| {
            let throttled = BTreeMap::from([(ThrottleKind::Requests, *n)]);
            let counters = Counters { attempts: *n, sent: *n, throttled, ..Counters::default() };
            (grantee(name), TenantReport { counters, ..TenantReport::default() })
        });
        PoolReport { sequence, partial, tenants: tenants.collect(), ..PoolReport::default() }
    };
    let at = |n: u64| MonoTime::from_millis(n * 250);
    let mut signal = PoolSignal::default();
    for (n, of) in [("a", 900), ("b", 700)].into_iter().enumerate() {
        let urgency = signal.ingest("m", &told(1 + n as u64, true, &[of]), at(n as u64));
        assert!(!urgency.throttled, "{of:?} was refused long ago");
        assert_eq!(signal.demand_per_s(&grantee(of.0), RPM), 0.0);
    }
    assert!(signal.ingest("m", &told(3, true, &[("a", 901)]), at(3)).throttled, "that is news");
    // Fewer now, and all of them in one report: one that was not told of yet is still not news, from now on it is.
    assert!(!signal.ingest("m", &told(4, false, &[("a", 901), ("b", 700), ("c", 5)]), at(4)).throttled);
    assert!(signal.ingest("m", &told(5, false, &[("a", 901), ("b", 700), ("c", 5), ("d", 1)]), at(5)).throttled);
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
