//! Admission by a running client over a store in memory; the leader's records are put by hand, and the leader's side of
//! the reports is a server in the test. Time is real: nothing waits for a moment, everything for a condition.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use parking_lot::Mutex;
use tidegate::client::{
    Ask, Client, ClientParams, LINE_MAX, MemberState, Permit, Pool, PoolParams, Priority, Refusal, Usage, Why,
};
use tidegate::clock::{Clock, SystemClock};
use tidegate::observation::{Report, TenantReport};
use tidegate::plan::keyspace::Key;
use tidegate::plan::{Pulse, Rate, Reply, Share, Target, Thresholds};
use tidegate::provider::{Dialect, Head};
use tidegate::quota::{Cost, Grantee};
use tidegate::store::{Select, Source, Store};
use tidegate::telemetry::Telemetry;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::by_hand::{Hand, POOL, RPM, TPM, grant, grantee, pool, pulse, rates, stamp, target, tenant};

/// Far longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(20);
/// A wait no test sits through.
const LONG: Duration = Duration::from_secs(15);
/// A rate at which nothing but concurrency and bursts limits.
const AMPLE: f64 = 60_000_000.0;

pub async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        sleep(Duration::from_millis(2)).await;
    }
}

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("not within {PATIENCE:?}: {what}"))
}

// === the leader's side of the reports ===

#[derive(Debug, Default)]
struct DeskState {
    reports: Vec<(Instant, Report)>,
    shares: BTreeMap<Grantee, Share>,
    term: u64,
    /// Answer 421 with this instead.
    leader: Option<String>,
}

/// Takes reports, and answers with the shares it was given.
#[derive(Clone)]
pub struct Desk {
    pub url: String,
    state: Arc<Mutex<DeskState>>,
}

impl Desk {
    pub async fn open() -> Self {
        let state: Arc<Mutex<DeskState>> = Arc::default();
        state.lock().term = u64::MAX;
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let router = Router::new().route("/v1/observations", post(answer)).with_state(state.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { url, state }
    }

    pub fn share(&self, name: &str, share: f64, concurrency: Option<u32>) {
        self.state.lock().shares.insert(grantee(name), Share { share, concurrency, with_one_more: None });
    }

    pub fn reports(&self) -> usize {
        self.state.lock().reports.len()
    }

    pub fn tenant(&self, name: &str) -> TenantReport {
        let state = self.state.lock();
        let told = state.reports.last().and_then(|(_, report)| report.pools[POOL].tenants.get(&grantee(name)));
        told.cloned().unwrap_or_default()
    }
}

#[allow(clippy::unused_async, reason = "a handler is async")]
async fn answer(State(state): State<Arc<Mutex<DeskState>>>, Json(report): Json<Report>) -> Response {
    let mut state = state.lock();
    state.reports.push((Instant::now(), report));
    if let Some(leader) = &state.leader {
        return (StatusCode::MISDIRECTED_REQUEST, Json(serde_json::json!({ "leader": leader }))).into_response();
    }
    let shares = BTreeMap::from([(pool(), state.shares.clone())]);
    let term = state.term;
    Json(Reply { term, epoch: 1, share_valid_ms: 60_000, next_report_ms: 100, shares }).into_response()
}

// === a client with a store and a desk ===

pub struct Stage {
    pub hand: Hand,
    pub desk: Desk,
    pub client: Client,
    pub pool: Pool,
    epoch: Mutex<u64>,
}

impl Stage {
    /// A client whose tenants have these grants, whole to it; with concurrency as granted.
    pub async fn open(grants: &[(&str, Thresholds)]) -> Self {
        Self::open_with(Dialect::OpenAi, grants).await
    }

    /// The same at another provider.
    pub async fn open_with(dialect: Dialect, grants: &[(&str, Thresholds)]) -> Self {
        let (hand, desk) = (Hand::new(), Desk::open().await);
        for (name, thresholds) in grants {
            desk.share(name, 1.0, thresholds.concurrency);
            hand.grant(name, &grant(stamp(1, 1), thresholds.clone())).await;
        }
        hand.lead(&desk.url).await;
        // Not to be renewed within a test.
        hand.pulse(&Pulse { valid_for_ms: 3_600_000, ..pulse(stamp(1, 1)) }).await;
        let params = ClientParams::new(vec![PoolParams::new(pool(), dialect)]);
        let client = Client::start(params, Arc::new(hand.store.clone()), Arc::new(Telemetry::new())).await;
        let pool = client.pool(POOL).expect("named");
        let stage = Self { hand, desk, client, pool, epoch: Mutex::new(1) };
        for (name, thresholds) in grants {
            stage.enforced(name, thresholds).await;
        }
        stage
    }

    /// Waits until the tenant's whole is what this client enforces.
    pub async fn enforced(&self, name: &str, thresholds: &Thresholds) {
        eventually(&format!("{name} has its share of {thresholds:?}"), || {
            self.pool.tuning().limits.get(&grantee(name)).is_some_and(|limits| {
                limits.concurrency == thresholds.concurrency
                    && thresholds.rates.iter().all(|(m, rate)| limits.meters.get(m).is_some_and(|l| l.rate == *rate))
            })
        })
        .await;
    }

    pub async fn regrant(&self, name: &str, thresholds: Thresholds) {
        let epoch = {
            let mut epoch = self.epoch.lock();
            *epoch += 1;
            *epoch
        };
        self.desk.share(name, 1.0, thresholds.concurrency);
        self.hand.grant(name, &grant(stamp(1, epoch), thresholds)).await;
    }

    fn spawn(&self, name: &str, cost: Cost, max_wait: Duration) -> JoinHandle<Result<Permit, Refusal>> {
        let (pool, tenant) = (self.pool.clone(), tenant(name));
        tokio::spawn(async move { pool.admit_within(&tenant, cost, max_wait).await })
    }

    /// A caller that stands in line before this returns.
    async fn waiter(&self, name: &str, cost: Cost) -> JoinHandle<Result<Permit, Refusal>> {
        let before = self.settled_report(name).await.waiting;
        let waiter = self.spawn(name, cost, LONG);
        self.reported(name, "one more waits", |told| told.waiting > before).await;
        waiter
    }

    async fn settled_report(&self, name: &str) -> TenantReport {
        let seen = self.desk.reports();
        eventually("another report", || self.desk.reports() > seen + 1).await;
        self.desk.tenant(name)
    }

    pub async fn reported(&self, name: &str, what: &str, holds: impl Fn(&TenantReport) -> bool) -> TenantReport {
        eventually(what, || holds(&self.desk.tenant(name))).await;
        self.desk.tenant(name)
    }

    async fn now(&self, name: &str, cost: Cost) -> Result<Permit, Refusal> {
        self.pool.admit_within(&tenant(name), cost, Duration::ZERO).await
    }
}

fn one() -> Cost {
    Cost::request(0, 0)
}

fn at_a_time(concurrency: u32) -> Thresholds {
    Thresholds { concurrency: Some(concurrency), ..rates(&[(RPM, AMPLE, AMPLE)]) }
}

fn wait_of(refusal: Result<Permit, Refusal>) -> (Duration, Why) {
    match refusal {
        Err(Refusal::WaitUntil { after, why }) => (after, why),
        other => panic!("expected a wait, got {other:?}"),
    }
}

async fn admitted(what: &str, waiter: JoinHandle<Result<Permit, Refusal>>) -> Permit {
    within(what, waiter).await.expect("no panic").unwrap_or_else(|refusal| panic!("{what}: {refusal}"))
}

async fn refused(what: &str, waiter: JoinHandle<Result<Permit, Refusal>>) -> (Duration, Why) {
    wait_of(within(what, waiter).await.expect("no panic"))
}

// === the line ===

#[tokio::test(flavor = "multi_thread")]
async fn those_who_wait_are_admitted_first_come_first_served() {
    let stage = Stage::open(&[("acme", at_a_time(1))]).await;
    let first = stage.now("acme", one()).await.expect("free");
    let order: Arc<Mutex<Vec<usize>>> = Arc::default();
    let mut tasks = Vec::new();
    for n in 0..4 {
        let (pool, order) = (stage.pool.clone(), order.clone());
        tasks.push(tokio::spawn(async move {
            let permit = pool.admit_within(&tenant("acme"), one(), LONG).await.expect("a turn");
            order.lock().push(n);
            drop(permit);
        }));
        stage.reported("acme", "in line", |told| told.waiting as usize == n + 1).await;
    }
    // A newcomer without patience overtakes nobody.
    wait_of(stage.now("acme", one()).await);
    drop(first);
    for task in tasks {
        within("its turn", task).await.expect("admitted");
    }
    assert_eq!(*order.lock(), [0, 1, 2, 3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn under_contention_nobody_is_forgotten_and_the_counters_add_up() {
    const CALLERS: u64 = 300;
    let stage = Stage::open(&[("acme", at_a_time(3))]).await;
    let (most, now) = (Arc::new(Mutex::new(0)), Arc::new(Mutex::new(0)));
    let tasks: Vec<_> = (0..CALLERS)
        .map(|n| {
            let (pool, most, now) = (stage.pool.clone(), most.clone(), now.clone());
            tokio::spawn(async move {
                let permit = pool.admit_within(&tenant("acme"), one(), PATIENCE).await.expect("a turn");
                {
                    let mut now = now.lock();
                    *now += 1;
                    let mut most = most.lock();
                    *most = (*most).max(*now);
                }
                tokio::task::yield_now().await;
                if n % 10 == 0 {
                    sleep(Duration::from_millis(1)).await;
                }
                *now.lock() -= 1;
                permit.settle(Usage::default());
            })
        })
        .collect();
    for task in tasks {
        within("a turn", task).await.expect("admitted");
    }
    assert!(*most.lock() <= 3, "{} at a time", most.lock());
    let told =
        stage.reported("acme", "all are told", |told| told.counters.sent == CALLERS && told.in_flight == 0).await;
    assert_eq!((told.counters.attempts, told.counters.admitted, told.counters.refused), (CALLERS, CALLERS, 0));
    assert_eq!(told.waiting, 0);
    assert!(told.counters.waited < CALLERS);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_who_leaves_frees_his_place_and_the_next_is_woken() {
    let stage = Stage::open(&[("acme", at_a_time(1))]).await;
    let held = stage.now("acme", one()).await.expect("free");
    let first = stage.waiter("acme", one()).await;
    let next = stage.waiter("acme", one()).await;
    first.abort();
    stage.reported("acme", "one is left", |told| told.waiting == 1).await;
    drop(held);
    drop(admitted("the next in line", next).await);
    let told = stage.reported("acme", "all settled", |told| told.in_flight == 0 && told.waiting == 0).await;
    assert_eq!((told.counters.attempts, told.counters.admitted, told.counters.refused), (3, 2, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_head_that_leaves_lets_the_small_ones_behind_it_go() {
    // 600 tokens/minute: the large one would wait about 10 s for its 100; the small one needs none.
    let stage = Stage::open(&[("acme", rates(&[(RPM, AMPLE, AMPLE), (TPM, 600.0, 100.0)]))]).await;
    let large = stage.waiter("acme", Cost::request(100, 0)).await;
    let small = stage.waiter("acme", one()).await;
    large.abort();
    drop(admitted("the small one", small).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_line_refuses_the_next_at_once() {
    let stage = Stage::open(&[("acme", at_a_time(1))]).await;
    let held = stage.now("acme", one()).await.expect("free");
    let waiters: Vec<_> = (0..LINE_MAX).map(|_| stage.spawn("acme", one(), Duration::from_secs(300))).collect();
    stage.reported("acme", "the line is full", |told| told.waiting as usize == LINE_MAX).await;
    let (after, why) = refused("the one too many", stage.spawn("acme", one(), LONG)).await;
    assert_eq!(why, Why::LineFull);
    assert!(after > Duration::ZERO);
    for waiter in &waiters {
        waiter.abort();
    }
    drop(held);
    stage.reported("acme", "all are gone", |told| told.waiting == 0 && told.in_flight == 0).await;
}

// === refusals ===

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_in_time_is_refused_at_once_with_an_honest_wait() {
    // One request a second, and one in hand.
    let stage = Stage::open(&[("acme", rates(&[(RPM, 60.0, 1.0)]))]).await;
    drop(stage.now("acme", one()).await.expect("one in hand"));
    let asked = Instant::now();
    let (after, why) = wait_of(stage.pool.admit_within(&tenant("acme"), one(), Duration::from_millis(100)).await);
    assert!(asked.elapsed() < Duration::from_millis(90), "it did not wait to know");
    assert_eq!(why, Why::Rate(RPM));
    assert!(after > Duration::from_millis(100) && after <= Duration::from_secs(1), "{after:?}");
    // Who waits that long is admitted.
    drop(within("the honest wait", stage.pool.admit_within(&tenant("acme"), one(), after * 2)).await.expect("in time"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_wait_told_counts_those_in_line() {
    let stage = Stage::open(&[("acme", rates(&[(RPM, 60.0, 1.0)]))]).await;
    drop(stage.now("acme", one()).await.expect("one in hand"));
    let _waiters: Vec<_> = (0..8).map(|_| stage.spawn("acme", one(), LONG)).collect();
    stage.reported("acme", "most are in line", |told| told.waiting >= 6).await;
    for max_wait in [Duration::ZERO, Duration::from_secs(1)] {
        let (after, _) = wait_of(stage.pool.admit_within(&tenant("acme"), one(), max_wait).await);
        assert!(after > Duration::from_secs(3), "{after:?} with six or so ahead, one a second");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_that_passes_in_line_is_a_refusal_worth_another_try() {
    let stage = Stage::open(&[("acme", at_a_time(1))]).await;
    let _held = stage.now("acme", one()).await.expect("free");
    let asked = Instant::now();
    let (after, why) = refused("the deadline", stage.spawn("acme", one(), Duration::from_millis(100))).await;
    assert!(asked.elapsed() >= Duration::from_millis(100));
    assert_eq!(why, Why::Concurrency);
    assert!(after >= Duration::from_millis(100), "no caller is sent into a tight loop: {after:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_larger_than_the_largest_request_is_never_admitted_wherever_it_stands() {
    let stage = Stage::open(&[("acme", Thresholds { concurrency: Some(1), ..rates(&[(TPM, AMPLE, 1_000.0)]) })]).await;
    let large = Cost::request(1_001, 0);
    assert!(matches!(stage.now("acme", large).await, Err(Refusal::Never(never)) if never.meter == TPM));
    let _held = stage.now("acme", one()).await.expect("free");
    let _waiter = stage.waiter("acme", one()).await;
    let behind = within("no turn is waited for", stage.spawn("acme", large, LONG)).await.expect("no panic");
    assert!(matches!(behind, Err(Refusal::Never(_))), "{behind:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_above_the_members_burst_is_not_refused_for_the_debt_it_will_make() {
    let stage = Stage::open(&[("acme", rates(&[(RPM, AMPLE, AMPLE), (TPM, 60_000.0, 2_000.0)]))]).await;
    // A tenth of it: 100/s, bursts of 200; 2,000 at once is the tenant's right, out of a full bucket into debt.
    stage.desk.share("acme", 0.1, None);
    stage.enforced("acme", &rates(&[(TPM, 6_000.0, 200.0)])).await;
    let wait = Duration::from_secs(5);
    let acme = tenant("acme");
    let large = stage.pool.admit_within(&acme, Cost::request(2_000, 0), wait);
    drop(within("a full bucket", large).await.expect("into debt"));
    let (after, _) = wait_of(stage.now("acme", Cost::request(100, 0)).await);
    assert!(after > Duration::from_secs(15), "the debt is paid first: {after:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_refuses_newcomers_at_once_and_those_in_line_go_on_in_order_when_it_is_lifted() {
    let stage = Stage::open(&[("acme", at_a_time(1))]).await;
    let held = stage.now("acme", one()).await.expect("free");
    let waiters = [stage.waiter("acme", one()).await, stage.waiter("acme", one()).await];
    stage.hand.override_of(target("acme"), r#"{"block":true}"#).await;
    eventually("the block", || stage.pool.tuning().limits[&grantee("acme")].blocked).await;
    assert_eq!(refused("the block", stage.spawn("acme", one(), LONG)).await.1, Why::Blocked);
    drop(held);
    let told = stage.settled_report("acme").await;
    assert_eq!((told.waiting, told.in_flight), (2, 0), "they wait though a place is free");
    stage.hand.delete(&Key::Override(pool(), target("acme"))).await;
    let [first, second] = waiters;
    let permit = admitted("the first in line", first).await;
    assert_eq!(stage.settled_report("acme").await.waiting, 1, "one at a time");
    drop(permit);
    drop(admitted("the second", second).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_reaches_undeclared_tenants_without_any_grant() {
    let stage = Stage::open(&[]).await;
    stage.hand.override_of(Target::Every, r#"{"block":true}"#).await;
    eventually("blocked", || stage.pool.tuning().limits[&Grantee::Default].blocked).await;
    assert_eq!(wait_of(stage.now("anyone", one()).await).1, Why::Blocked);
}

/// Who waits at the gate that undeclared tenants share keeps his place when another tenant gets one of its own.
#[tokio::test(flavor = "multi_thread")]
async fn those_in_line_keep_their_places_when_others_get_gates_of_their_own() {
    let stage = Stage::open(&[("@default", at_a_time(1))]).await;
    let held = stage.now("first", one()).await.expect("free");
    let ask = Ask { max_wait: LONG, ..stage.pool.asking(one()) };
    let names: Vec<_> = (0..20).map(|n| tenant(&format!("made-up-{n}"))).collect();
    let mut waiting = Vec::new();
    for name in &names {
        let mut request = stage.pool.request(name, &ask);
        assert!(timeout(Duration::from_millis(1), request.admitted()).await.is_err());
        waiting.push(request);
    }
    for n in 0..3 {
        stage.regrant(&format!("declared-{n}"), at_a_time(1)).await;
        stage.enforced(&format!("declared-{n}"), &at_a_time(1)).await;
        // All of them ask again, the last one first.
        for request in waiting.iter_mut().rev() {
            assert!(timeout(Duration::from_millis(1), request.admitted()).await.is_err());
        }
    }
    let places: Vec<_> = waiting.iter().map(|request| request.place().expect("in line").ahead).collect();
    assert_eq!(places, (0..20).collect::<Vec<_>>());
    drop(held);
}

// === urgency, place, parents, time ===

#[tokio::test(flavor = "multi_thread")]
async fn interactive_goes_before_batch_and_each_sees_where_it_stands() {
    let stage = Stage::open(&[("acme", at_a_time(1))]).await;
    let held = stage.now("acme", one()).await.expect("free");
    let ask = |priority| Ask { priority, max_wait: LONG, ..stage.pool.asking(one()) };
    let acme = tenant("acme");
    let mut batch = stage.pool.request(&acme, &ask(Priority::Batch));
    assert_eq!(batch.place(), None, "it has not asked");
    assert!(timeout(Duration::from_millis(1), batch.admitted()).await.is_err());
    assert_eq!(batch.place().expect("in line").ahead, 0);
    let mut interactive = stage.pool.request(&acme, &ask(Priority::Interactive));
    assert!(timeout(Duration::from_millis(1), interactive.admitted()).await.is_err());
    assert_eq!((batch.place().expect("in line").ahead, interactive.place().expect("in line").ahead), (1, 0));
    assert_eq!(batch.place().expect("in line").why, Why::Concurrency);
    drop(held);
    assert!(timeout(Duration::from_millis(1), batch.admitted()).await.is_err(), "not before the interactive one");
    let permit = within("its turn", interactive.admitted()).await.expect("admitted");
    drop(permit);
    drop(within("the batch's turn", batch.admitted()).await.expect("admitted"));
    assert!(stage.pool.try_admit(&acme, one()).is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_and_its_parent_admit_both_or_neither() {
    let hand = Hand::new();
    let bootstrap = |concurrency| Thresholds { concurrency: Some(concurrency), ..Thresholds::default() };
    let id = |name: &str| name.parse().expect("valid");
    let model = |name| PoolParams {
        bootstrap: bootstrap(10),
        parent: Some(id("account")),
        ..PoolParams::new(id(name), Dialect::OpenAi)
    };
    let account = PoolParams { bootstrap: bootstrap(2), ..PoolParams::new(id("account"), Dialect::OpenAi) };
    let params = ClientParams::new(vec![model("large"), account, model("small")]);
    let client = Client::start(params, Arc::new(hand.store.clone()), Arc::new(Telemetry::new())).await;
    let [large, small, account] = ["large", "small", "account"].map(|name| client.pool(name).expect("named"));
    let in_flight = |pool: &Pool| pool.traffic()[&Grantee::Default].in_flight;
    let anyone = tenant("anyone");
    let first = large.try_admit(&anyone, one()).expect("free");
    let _second = small.try_admit(&anyone, one()).expect("free");
    assert_eq!(wait_of(small.try_admit(&anyone, one())).1, Why::Concurrency, "the account takes two");
    assert_eq!((in_flight(&large), in_flight(&small), in_flight(&account)), (1, 1, 2), "nothing was taken");
    let waiter = tokio::spawn({
        let (small, anyone) = (small.clone(), anyone.clone());
        async move { small.admit_within(&anyone, one(), LONG).await }
    });
    eventually("it waits in both lines", || account.traffic()[&Grantee::Default].waiting == 1).await;
    // A place in the account that the other model's request gives back.
    drop(first);
    let third = admitted("the account's place", waiter).await;
    assert_eq!((in_flight(&large), in_flight(&small), in_flight(&account)), (0, 2, 2));
    drop(third);
    assert_eq!((in_flight(&small), in_flight(&account)), (1, 1));
    let waiting = |pool: &Pool| pool.traffic()[&Grantee::Default].waiting;
    assert_eq!((waiting(&small), waiting(&account)), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_permit_that_nobody_ends_gives_its_place_back_and_is_counted() {
    let hand = Hand::new();
    let telemetry = Arc::new(Telemetry::new());
    let pool = PoolParams { call_max: Duration::from_millis(60), ..PoolParams::new(pool(), Dialect::OpenAi) };
    let bootstrap = Thresholds { concurrency: Some(1), ..Thresholds::default() };
    let params = ClientParams::new(vec![PoolParams { bootstrap, ..pool }]);
    let client = Client::start(params, Arc::new(hand.store.clone()), telemetry).await;
    let pool = client.pool(POOL).expect("named");
    let lost = pool.try_admit(&tenant("anyone"), one()).expect("free");
    let next =
        within("the lost one's place", pool.admit_within(&tenant("anyone"), one(), LONG)).await.expect("a place");
    assert_eq!(pool.traffic()[&Grantee::Default].expired, 1);
    drop(lost);
    assert_eq!(pool.traffic()[&Grantee::Default].in_flight, 1, "it has no place to give back any more");
    drop(next);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_tenant_is_forgotten_and_one_in_debt_is_not() {
    let (hand, desk) = (Hand::new(), Desk::open().await);
    // A burst as large as what a second gives: full at once, unless it is in debt.
    for name in ["idle", "debtor"] {
        desk.share(name, 1.0, None);
        hand.grant(name, &grant(stamp(1, 1), rates(&[(RPM, AMPLE, 100.0), (TPM, 60_000.0, 100.0)]))).await;
    }
    hand.lead(&desk.url).await;
    hand.pulse(&Pulse { valid_for_ms: 3_600_000, ..pulse(stamp(1, 1)) }).await;
    let params = ClientParams {
        idle_after: Duration::ZERO,
        ..ClientParams::new(vec![PoolParams::new(pool(), Dialect::Anthropic)])
    };
    let client = Client::start(params, Arc::new(hand.store.clone()), Arc::new(Telemetry::new())).await;
    let pool = client.pool(POOL).expect("named");
    let shares =
        || pool.tuning().limits.get(&grantee("debtor")).is_some_and(|limits| limits.meters[&TPM].rate.burst == 100.0);
    eventually("its shares", shares).await;
    let wait = Duration::from_secs(5);
    drop(within("room", pool.admit_within(&tenant("idle"), one(), wait)).await.expect("room"));
    let permit = within("room", pool.admit_within(&tenant("debtor"), Cost::request(100, 0), wait)).await.expect("room");
    // It used a million tokens: owed for a thousand seconds.
    permit.settle(Usage { input_tokens: 1_000_000, output_tokens: 0 });
    // Each time all gates were looked at.
    for _ in 0..3 {
        eventually("the idle one is forgotten", || !pool.traffic().contains_key(&grantee("idle"))).await;
        drop(pool.try_admit(&tenant("idle"), one()).expect("made anew"));
    }
    assert!(pool.traffic().contains_key(&grantee("debtor")));
    let (after, why) = wait_of(pool.admit_within(&tenant("debtor"), Cost::request(100, 0), Duration::ZERO).await);
    assert!(after > Duration::from_secs(900), "{after:?}");
    assert_eq!(why, Why::Rate(TPM));
}

/// A tenant that is used now and then has what flowed in between: its gate is dropped meanwhile, and that takes nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_that_was_forgotten_has_what_has_flowed_in_since() {
    let (hand, desk) = (Hand::new(), Desk::open().await);
    desk.share("acme", 1.0, None);
    // A hundred a second, and the request needs three hundred.
    hand.grant("acme", &grant(stamp(1, 1), rates(&[(TPM, 6_000.0, 400.0)]))).await;
    hand.lead(&desk.url).await;
    hand.pulse(&Pulse { valid_for_ms: 3_600_000, ..pulse(stamp(1, 1)) }).await;
    let params = ClientParams {
        idle_after: Duration::ZERO,
        ..ClientParams::new(vec![PoolParams::new(pool(), Dialect::Anthropic)])
    };
    let client = Client::start(params, Arc::new(hand.store.clone()), Arc::new(Telemetry::new())).await;
    let pool = client.pool(POOL).expect("named");
    let shares =
        || pool.tuning().limits.get(&grantee("acme")).is_some_and(|limits| limits.meters[&TPM].rate.burst == 400.0);
    eventually("its share", shares).await;
    // Asked for now and then, and dropped in between.
    eventually("it has saved enough", || {
        !pool.traffic().contains_key(&grantee("acme")) && pool.try_admit(&tenant("acme"), Cost::request(300, 0)).is_ok()
    })
    .await;
    assert!(pool.try_admit(&tenant("acme"), Cost::request(300, 0)).is_err(), "and no more than that");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_that_is_over_leaves_nobody_open() {
    let stage = Stage::open(&[("@default", rates(&[(RPM, 0.0, 1.0)]))]).await;
    // What the pool began with.
    drop(stage.now("another", one()).await);
    let clock = SystemClock::new();
    let end = clock.wall() + Duration::from_millis(300);
    let expires_at = jiff::Timestamp::from_millisecond(end.0.cast_signed()).expect("a time of today");
    let block = format!(r#"{{"block":true,"expires_at":"{expires_at}"}}"#);
    stage.hand.override_of(target("made-up"), &block).await;
    eventually("blocked", || stage.pool.tuning().limits.get(&grantee("made-up")).is_some_and(|l| l.blocked)).await;
    // The first use, right after the end: nothing is granted to those without limits of their own.
    eventually("it is over", || clock.wall() > end).await;
    assert!(wait_of(stage.now("made-up", one()).await).1 != Why::Blocked);
}

// === retunes ===

#[tokio::test(flavor = "multi_thread")]
async fn a_retune_wakes_those_who_wait_at_once() {
    // One request an hour and it is gone: without the retune nobody is admitted within the test.
    let stage = Stage::open(&[("acme", at_a_time(1))]).await;
    let _held = stage.now("acme", one()).await.expect("free");
    let waiter = stage.waiter("acme", one()).await;
    stage.regrant("acme", at_a_time(2)).await;
    let _second = admitted("the retune", waiter).await;
    wait_of(stage.now("acme", one()).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_wake_up_is_lost_between_asking_and_standing_in_line() {
    // Nothing flows, then everything does, while one caller arrives: nobody else's settling would wake him.
    let (closed, open) = (rates(&[(RPM, 0.0, 1.0)]), rates(&[(RPM, AMPLE, AMPLE)]));
    let stage = Stage::open(&[("acme", closed.clone())]).await;
    for round in 0..300 {
        let opened = stage.regrant("acme", open.clone());
        let (pool, delay) = (stage.pool.clone(), round % 40);
        let caller = tokio::spawn(async move {
            for _ in 0..delay * 50 {
                std::hint::spin_loop();
            }
            pool.admit_within(&tenant("acme"), one(), LONG).await
        });
        opened.await;
        drop(admitted("the retune", caller).await);
        stage.regrant("acme", closed.clone()).await;
        stage.enforced("acme", &closed).await;
        while let Ok(left_over) = stage.now("acme", one()).await {
            drop(left_over);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retune_hands_out_no_burst() {
    let stage = Stage::open(&[("acme", rates(&[(RPM, 1.0, 10.0)]))]).await;
    // A burst of 10 at one request a minute: the bucket begins with one second of rate.
    wait_of(stage.now("acme", one()).await);
    let raised = rates(&[(RPM, 2.0, 100.0)]);
    stage.regrant("acme", raised.clone()).await;
    stage.enforced("acme", &raised).await;
    wait_of(stage.now("acme", one()).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_changes_gates_with_its_grant_and_so_do_those_who_wait() {
    let stage = Stage::open(&[("@default", at_a_time(1))]).await;
    let held = stage.now("acme", one()).await.expect("free");
    let waiter = stage.waiter("@default", one()).await;
    let (pool, acme) = (stage.pool.clone(), tenant("acme"));
    let own = tokio::spawn(async move { pool.admit_within(&acme, one(), LONG).await });
    stage.reported("@default", "two wait", |told| told.waiting == 2).await;

    // The grant appears: acme no longer stands behind the others.
    stage.regrant("acme", at_a_time(1)).await;
    let mine = admitted("its own gate", own).await;
    let told = stage.reported("acme", "it is counted there", |told| told.counters.admitted == 1).await;
    assert_eq!((told.counters.waited, told.in_flight), (1, 1));

    // The grant goes: a waiter for it stands behind the others again.
    let (pool, acme) = (stage.pool.clone(), tenant("acme"));
    let back = tokio::spawn(async move { pool.admit_within(&acme, one(), LONG).await });
    stage.reported("acme", "it waits", |told| told.waiting == 1).await;
    stage.hand.delete(&Key::Limits(super::by_hand::pool(), grantee("acme"))).await;
    stage.reported("@default", "two wait again", |told| told.waiting == 2).await;
    drop(mine);
    drop(held);
    drop(admitted("the first in line", waiter).await);
    drop(admitted("the one that came back", back).await);
    let told = stage.reported("@default", "all settled", |told| told.in_flight == 0 && told.waiting == 0).await;
    assert_eq!(told.counters.waited, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_that_gets_its_grant_back_finds_its_gate_open_and_as_it_was() {
    let stage = Stage::open(&[("@default", at_a_time(1)), ("acme", at_a_time(1))]).await;
    let held = stage.now("acme", one()).await.expect("free");
    stage.hand.delete(&Key::Limits(super::by_hand::pool(), grantee("acme"))).await;
    eventually("the grant is gone", || !stage.pool.tuning().limits.contains_key(&grantee("acme"))).await;
    stage.regrant("acme", at_a_time(1)).await;
    eventually("it is back", || stage.pool.tuning().limits.contains_key(&grantee("acme"))).await;

    let acme = tenant("acme");
    let next = within("an answer", stage.pool.admit_within(&acme, one(), Duration::from_millis(10))).await;
    assert!(next.is_err(), "the place that was taken before is taken: {next:?}");
    drop(held);
    drop(within("its turn", stage.pool.admit_within(&acme, one(), LONG)).await.expect("the place is free again"));
}

#[tokio::test(flavor = "multi_thread")]
async fn undeclared_tenants_share_one_bucket() {
    let stage = Stage::open(&[("@default", rates(&[(RPM, 120.0, 3.0)]))]).await;
    let mut admitted = 0;
    for n in 0..50 {
        admitted += usize::from(stage.now(&format!("made-up-{n}"), one()).await.is_ok());
    }
    assert!((1..=4).contains(&admitted), "{admitted} of 50 made-up names");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leaders_hold_stops_sends_on_meters_no_grant_speaks_of_too() {
    let stage = Stage::open(&[("acme", at_a_time(10))]).await;
    let hold = Pulse { hold_ms: [(TPM, 400)].into(), valid_for_ms: 3_600_000, ..pulse(stamp(1, 2)) };
    stage.hand.pulse(&hold).await;
    eventually("held", || stage.pool.tuning().told.contains_key(&TPM)).await;
    let (after, _) = wait_of(stage.now("acme", Cost::request(10, 0)).await);
    assert!(after <= Duration::from_millis(481), "told, and a fifth of it to spread: {after:?}");
    drop(stage.now("acme", one()).await.expect("it costs no tokens"));
    let acme = tenant("acme");
    let later = stage.pool.admit_within(&acme, Cost::request(10, 0), LONG);
    drop(within("the hold ends", later).await.expect("over"));
}

// === permits and reports ===

#[tokio::test(flavor = "multi_thread")]
async fn the_counters_of_a_report_add_up() {
    let stage = Stage::open(&[("acme", at_a_time(100))]).await;
    let conclude = |mut permit: Permit, status: u16| {
        let headers = axum::http::HeaderMap::new();
        let observation = permit.observe(&Head { status, headers: &headers });
        permit.conclude(&observation);
        permit.conclude(&observation);
        permit.settle(Usage { input_tokens: 5, output_tokens: 7 });
    };
    for status in [200, 200, 400, 500] {
        conclude(stage.now("acme", Cost::request(10, 0)).await.expect("free"), status);
    }
    let mut failed = stage.now("acme", one()).await.expect("free");
    failed.failed();
    drop(failed);
    drop(stage.now("acme", Cost::request(100, 0)).await.expect("free"));
    let in_flight = stage.now("acme", one()).await.expect("free");
    conclude(stage.now("acme", one()).await.expect("free"), 429);

    let told = stage.reported("acme", "all are told", |told| told.counters.sent == 7 && told.in_flight == 1).await;
    let counters = &told.counters;
    assert_eq!((counters.attempts, counters.admitted, counters.waited, counters.refused), (8, 8, 0, 0));
    assert_eq!((counters.succeeded, counters.ignored, counters.throttled.values().sum::<u64>()), (2, 4, 1));
    assert_eq!(counters.admitted, counters.sent + u64::from(told.in_flight));
    assert_eq!((counters.reserved.requests, counters.reserved.input_tokens), (8, 140));
    // Told: 5 + 7 each; not told: as reserved.
    assert_eq!((counters.settled.requests, counters.settled.input_tokens), (7, 5 * 5 + 100));
    assert_eq!((told.share, told.concurrency), (Some(1.0), Some(100)), "the share in force is echoed");
    drop(in_flight);
    assert!(stage.reported("acme", "all settled", |told| told.in_flight == 0).await.counters.sent == 8);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_by_the_provider_is_reported_at_once_but_not_ten_times_in_a_row() {
    let stage = Stage::open(&[("acme", at_a_time(100))]).await;
    let permits: Vec<_> = {
        let mut permits = Vec::new();
        for _ in 0..50 {
            permits.push(stage.now("acme", one()).await.expect("free"));
        }
        permits
    };
    let (before, asked) = (stage.desk.reports(), Instant::now());
    for mut permit in permits {
        let headers = axum::http::HeaderMap::new();
        let observation = permit.observe(&Head { status: 429, headers: &headers });
        permit.conclude(&observation);
    }
    stage.reported("acme", "all are told", |told| told.counters.throttled.values().sum::<u64>() == 50).await;
    let most = 2 + asked.elapsed().as_millis() / 100;
    assert!(stage.desk.reports() - before <= usize::try_from(most).expect("small"));
}

#[tokio::test(flavor = "multi_thread")]
async fn holds_are_kept_when_the_client_is_gone() {
    let Stage { client, pool, .. } = Stage::open(&[("acme", at_a_time(100))]).await;
    let mut permit = pool.admit_within(&tenant("acme"), one(), Duration::ZERO).await.expect("free");
    drop(client);
    let headers = axum::http::HeaderMap::from_iter([(axum::http::header::RETRY_AFTER, "30".parse().expect("valid"))]);
    let observation = permit.observe(&Head { status: 429, headers: &headers });
    permit.conclude(&observation);
    let (after, _) = wait_of(pool.admit_within(&tenant("acme"), one(), Duration::ZERO).await);
    assert!(after > Duration::from_secs(29), "{after:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_overloaded_provider_is_left_alone_for_as_long_as_it_asks() {
    let stage = Stage::open(&[("acme", at_a_time(100))]).await;
    let conclude = |mut permit: Permit, headers: axum::http::HeaderMap| {
        let observation = permit.observe(&Head { status: 503, headers: &headers });
        permit.conclude(&observation);
    };
    conclude(stage.now("acme", one()).await.expect("free"), axum::http::HeaderMap::new());
    let permit = stage.now("acme", one()).await.expect("it asked for nothing");
    conclude(permit, [(axum::http::header::RETRY_AFTER, "20".parse().expect("valid"))].into_iter().collect());
    let (after, _) = wait_of(stage.now("acme", one()).await);
    assert!(after > Duration::from_secs(19) && after < Duration::from_secs(25), "{after:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_sends_the_client_on_and_it_stays_with_the_leader() {
    let (hand, follower, leader) = (Hand::new(), Desk::open().await, Desk::open().await);
    follower.state.lock().leader = Some(leader.url.clone());
    hand.lead(&follower.url).await;
    let params = ClientParams::new(vec![PoolParams::new(pool(), Dialect::OpenAi)]);
    let _client = Client::start(params, Arc::new(hand.store.clone()), Arc::new(Telemetry::new())).await;
    eventually("reports reach the leader", || leader.reports() > 5).await;
    assert_eq!(follower.reports(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn followers_that_point_at_each_other_are_not_stormed() {
    let (hand, one, other) = (Hand::new(), Desk::open().await, Desk::open().await);
    one.state.lock().leader = Some(other.url.clone());
    other.state.lock().leader = Some(one.url.clone());
    hand.lead(&one.url).await;
    let params = ClientParams::new(vec![PoolParams::new(pool(), Dialect::OpenAi)]);
    let begun = Instant::now();
    let _client = Client::start(params, Arc::new(hand.store.clone()), Arc::new(Telemetry::new())).await;
    eventually("both are asked", || one.reports() > 1 && other.reports() > 1).await;
    let most = 3 + begun.elapsed().as_millis() / 500;
    assert!(one.reports() + other.reports() <= usize::try_from(most).expect("small"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deposed_leaders_shares_are_dropped() {
    let stage = Stage::open(&[("acme", rates(&[(RPM, 120.0, 12.0)]))]).await;
    stage.desk.state.lock().term = 1;
    stage.desk.share("acme", 0.5, None);
    let seen = stage.desk.reports();
    eventually("three more replies", || stage.desk.reports() > seen + 3).await;
    let tuning = stage.pool.tuning();
    assert_eq!(tuning.limits[&grantee("acme")].meters[&RPM].rate, Rate { rate: 120.0, burst: 12.0 });
    assert_eq!(tuning.limits_of(&tenant("acme")), tuning.limits.get(&grantee("acme")));
    assert_eq!(tuning.limits_of(&tenant("undeclared")), tuning.limits.get(&Grantee::Default));
}

// === life and death ===

async fn keys(hand: &Hand) -> Vec<String> {
    let listing = hand.store.list(&[Select::Prefix("/".to_owned())]).await.expect("memory");
    listing.entries.into_iter().map(|entry| entry.key).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn close_takes_away_its_own_presence_and_nothing_else() {
    let Stage { hand, client, desk, .. } = Stage::open(&[("acme", at_a_time(1))]).await;
    let member = hand.keys.key(&Key::Member(client.instance().to_owned()));
    hand.put(&Key::Member("neighbour".to_owned()), b"{}").await;
    let deadline = Instant::now() + PATIENCE;
    while !keys(&hand).await.contains(&member) {
        assert!(Instant::now() < deadline, "no presence");
        sleep(Duration::from_millis(2)).await;
    }
    let before = keys(&hand).await;
    client.close().await;
    let left: Vec<String> = before.into_iter().filter(|key| *key != member).collect();
    assert_eq!(keys(&hand).await, left);
    drop(desk);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_closed_as_it_starts_leaves_no_presence() {
    for _ in 0..20 {
        let hand = Hand::new();
        let params = ClientParams::new(vec![PoolParams::new(pool(), Dialect::OpenAi)]);
        let client = Client::start(params, Arc::new(hand.store.clone()), Arc::new(Telemetry::new())).await;
        client.close().await;
        assert_eq!(keys(&hand).await, [""; 0]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_run_as_long_as_the_client_or_a_pool_of_it_lives() {
    let store: Arc<dyn Store> = Arc::new(Hand::new().store);
    let telemetry = Arc::new(Telemetry::new());
    let params = ClientParams::new(vec![PoolParams::new(pool(), Dialect::OpenAi)]);
    let client = Client::start(params, store.clone(), telemetry.clone()).await;
    let pool = client.pool(POOL).expect("named");
    let (weak_store, weak_telemetry) = (Arc::downgrade(&store), Arc::downgrade(&telemetry));
    drop((store, telemetry, client));
    // A pool without tasks would enforce for ever what it last heard.
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(weak_store.upgrade().is_some());
    assert_eq!(pool.tuning().state, MemberState::Bootstrap);
    drop(pool);
    eventually("the tasks let go of the store", || weak_store.upgrade().is_none()).await;
    eventually("and of all else", || weak_telemetry.upgrade().is_none()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_starts_without_store_contents_or_leader_and_has_its_bootstrap() {
    let hand = Hand::new();
    let params = ClientParams::new(vec![PoolParams::new(pool(), Dialect::OpenAi)]);
    let begun = Instant::now();
    let client = Client::start(params, Arc::new(hand.store.clone()), Arc::new(Telemetry::new())).await;
    assert!(begun.elapsed() < Duration::from_secs(5));
    let pool = client.pool(POOL).expect("named");
    let limits = pool.tuning().limits[&Grantee::Default].clone();
    assert_eq!((limits.meters[&RPM].rate, limits.concurrency), (Rate { rate: 10.0, burst: 1.0 }, Some(1)));
    assert!(client.pool("other").is_err());
}
