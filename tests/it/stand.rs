//! What tests of failures stand on: members that ask for more than they may, controllers as processes, a way between any two that
//! can be cut, held or slowed, and a witness of all that is written.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tidegate::client::{Client, ClientParams, MemberState, Pool, PoolParams};
use tidegate::config::Config;
use tidegate::controller::Controller;
use tidegate::plan::keyspace::{Key, Keyspace};
use tidegate::plan::{Grant, Pulse, Stamp};
use tidegate::provider::Dialect;
use tidegate::quota::{Cost, Grantee, Meter};
use tidegate::sim::process::Process;
use tidegate::store::{Change, Entry, EtcdStore, Select, Source, StoreError, WatchEvent};
use tidegate::telemetry::{Metric, Telemetry};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

use super::by_hand::{grantee, tenant};
use super::world::{PATIENCE, eventually, listening, tidegate};

const RPM: Meter = Meter::REQUESTS_PER_MINUTE;
/// Requests per minute that the pool takes: fast, so that a part in a hundred is something.
pub const CAPACITY: f64 = 12_000.0;
/// What is enforced for so long is no burst and no gap, in seconds: a busy machine makes a task wait. A burst that was one was of
/// twice as many.
const UNSTEADY_S: f64 = 0.05;
const OFFER_EVERY: Duration = Duration::from_millis(1);
/// How much later than documented anything may happen on a machine that is busy with other tests: half as late again.
pub const NOISE: f64 = 1.5;
/// A member that has heard no leader for so long brakes, and then lapses; it looks at its clock every quarter of a second.
pub const BRAKES_AFTER: Duration = Duration::from_secs(3);
pub const LAPSES_AFTER: Duration = Duration::from_secs(15);
pub const LOOKS_EVERY: Duration = Duration::from_millis(250);
/// How long a leader's lease lives without it, and a second to notice and to be elected.
pub const TAKEOVER: Duration = Duration::from_secs(3 + 1);

/// That it took no longer than documented, noise aside.
pub fn in_time(what: &str, took: Duration, documented: Duration) {
    assert!(took <= documented.mul_f64(NOISE), "{what} after {took:.2?}; documented: {documented:?}");
}

/// A controller's file: one pool with one tenant, and whatever its own table has beside.
pub fn config(controller: &str, rest: &str) -> String {
    format!(
        "[controller]\nlisten = \"127.0.0.1:0\"\n{controller}\n[pools.pool]\ndialect = \"openai\"\n\
         capacity = {{ \"requests/minute\" = {CAPACITY} }}\n[pools.pool.tenants.acme]\n{rest}\n"
    )
}

pub async fn store(endpoints: &[String]) -> EtcdStore {
    EtcdStore::connect(endpoints).await.expect("endpoints")
}

/// A controller in this process, which members are told to find at `advertised`.
pub async fn controller(endpoints: &[String], advertised: Option<String>) -> Controller {
    let mut params = Config::parse("t.toml", &config("", "")).expect("good").controller;
    params.advertise_url = advertised;
    Controller::start(params, Arc::new(store(endpoints).await), Arc::new(Telemetry::new())).await.expect("it starts")
}

/// Controllers in processes of their own.
pub struct Controllers {
    folder: tempfile::TempDir,
}

impl Controllers {
    pub fn new() -> Self {
        Self { folder: tempfile::tempdir().expect("a folder") }
    }

    /// One more, with its way to etcd; it leads or stands by when this returns. Also its report address.
    pub async fn start(&self, name: &str, endpoint: &str) -> (Process, String) {
        let file = self.folder.path().join(format!("{name}.toml"));
        let text = config(&format!("name = \"{name}\""), &format!("[etcd]\nendpoints = [\"{endpoint}\"]"));
        std::fs::write(&file, text).expect("written");
        let mut command = tidegate(&["run", "--config"]);
        command.arg(file);
        let mut process = Process::spawn(name, command, None).expect("it starts");
        let url = listening(&mut process).await;
        let settled = |line: &str| line.contains(" leading") || line.contains("standing by");
        process.wait_for_line(settled, PATIENCE).await.expect("it leads or stands by");
        (process, url)
    }
}

/// A client's pool, and whoever asks it for more than there is.
pub struct Member {
    pub client: Client,
    pub pool: Pool,
    pub telemetry: Arc<Telemetry>,
}

impl Member {
    /// Waits until a leader is heard.
    pub async fn on(endpoints: &[String]) -> Self {
        let member = Self::start(endpoints).await;
        member.active_after(Stamp::default()).await;
        member
    }

    pub async fn start(endpoints: &[String]) -> Self {
        let params = ClientParams::new(vec![PoolParams::new("pool".parse().expect("valid"), Dialect::OpenAi)]);
        let telemetry = Arc::new(Telemetry::new());
        let client = Client::start(params, Arc::new(store(endpoints).await), telemetry.clone()).await;
        let pool = client.pool("pool").expect("named");
        Self { client, pool, telemetry }
    }

    pub fn stamp(&self) -> Stamp {
        self.pool.tuning().stamp
    }

    /// What it enforces of the tenant, in requests per minute; nothing before the first grant.
    pub fn rate(&self) -> f64 {
        enforced(&self.pool)
    }

    /// Waits until it follows a leader, by a pulse after `seen`.
    pub async fn active_after(&self, seen: Stamp) {
        eventually("the member follows a leader", async || {
            let tuning = self.pool.tuning();
            let granted = tuning.limits.contains_key(&grantee("acme"));
            (granted && tuning.state == MemberState::Active && tuning.stamp > seen).then_some(())
        })
        .await;
    }

    /// Waits until it enforces most of what there is, which it is given when it asks for it.
    pub async fn holds_most(&self) {
        eventually("the member holds most", async || (self.rate() > 0.8 * CAPACITY).then_some(())).await;
    }

    pub async fn is(&self, state: MemberState) {
        eventually(&format!("the member is {state:?}"), async || (self.pool.tuning().state == state).then_some(()))
            .await;
    }

    /// How often it counted this.
    pub fn counted(&self, metric: Metric, label: &str) -> f64 {
        let samples = self.telemetry.snapshot();
        let of = samples.iter().filter(|sample| sample.metric == metric && sample.labels == [label]);
        of.map(|sample| sample.value.number()).sum()
    }
}

fn enforced(pool: &Pool) -> f64 {
    let limits = pool.tuning().limits;
    limits.get(&grantee("acme")).map_or(0.0, |limits| limits.meters[&RPM].rate.rate)
}

/// What was admitted, and what was to be.
#[derive(Debug, Clone, Copy, Default)]
pub struct Account {
    pub admitted: f64,
    /// The threshold in force, over time.
    pub allowed: f64,
    /// The most that was admitted beyond what was allowed, from any moment to any later one: a burst.
    pub burst: f64,
    /// The most that was allowed while none was admitted: a gap.
    pub gap: f64,
    least_surplus: f64,
    dry: f64,
}

impl Account {
    fn add(&mut self, admitted: f64, allowed: f64) {
        self.admitted += admitted;
        self.allowed += allowed;
        let surplus = self.admitted - self.allowed;
        self.least_surplus = self.least_surplus.min(surplus);
        self.burst = self.burst.max(surplus - self.least_surplus);
        self.dry = if admitted > 0.0 { 0.0 } else { self.dry + allowed };
        self.gap = self.gap.max(self.dry);
    }
}

/// From when on a member stood so.
#[derive(Debug, Clone, Copy)]
pub struct Sighting {
    pub at: Instant,
    pub state: MemberState,
    pub stamp: Stamp,
    /// What it enforces of the tenant, in requests per minute.
    pub rate: f64,
}

/// Asks for more than there is, without a pause, and looks on.
pub struct Offers {
    account: Arc<Mutex<Account>>,
    sightings: Arc<Mutex<Vec<Sighting>>>,
    task: JoinHandle<()>,
}

impl Drop for Offers {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Offers {
    pub fn begin(pool: &Pool) -> Self {
        let (account, sightings) = (Arc::new(Mutex::new(Account::default())), Arc::new(Mutex::new(Vec::new())));
        let task = tokio::spawn(offer(pool.clone(), account.clone(), sightings.clone()));
        Self { account, sightings, task }
    }

    pub fn account(&self) -> Account {
        *self.account.lock()
    }

    /// What was seen from then on, and what stood then.
    pub fn since(&self, then: Instant) -> Vec<Sighting> {
        let all = self.sightings.lock();
        let first = all.iter().rposition(|seen| seen.at <= then).unwrap_or(0);
        all[first..].to_vec()
    }

    /// When it last heard a leader before `then`.
    pub fn heard_before(&self, then: Instant) -> Instant {
        let all = self.sightings.lock();
        let before = all.iter().rev().skip_while(|seen| seen.at > then);
        let stamp = before.clone().next().expect("it looks on").stamp;
        before.take_while(|seen| seen.stamp == stamp).last().expect("at least one").at
    }

    /// When it was first in this state after `then`: it may be so a moment before it is seen.
    pub async fn first(&self, state: MemberState, then: Instant) -> Instant {
        let seen = || self.since(then).into_iter().skip(1).find(|seen| seen.state == state);
        eventually(&format!("it is seen to be {state:?}"), async || seen()).await.at
    }

    /// How long it was not active after `then`, in all.
    pub fn inactive(&self, then: Instant) -> Duration {
        let seen = self.since(then);
        let ends = seen.iter().skip(1).map(|next| next.at).chain([Instant::now()]);
        let spans = seen.iter().zip(ends).filter(|(seen, _)| seen.state != MemberState::Active);
        spans.map(|(seen, end)| end.duration_since(seen.at.max(then))).sum()
    }

    /// Of all that was admitted, no more than one in a hundred was above what was to be enforced, and no pulse replaced a later
    /// one; returns it in words.
    pub fn hold(&self) -> String {
        for seen in self.sightings.lock().windows(2) {
            assert!(seen[0].stamp <= seen[1].stamp, "{seen:?}");
        }
        self.hold_in_any_order()
    }

    /// The same where etcd was put back to an earlier time.
    pub fn hold_in_any_order(&self) -> String {
        let Account { admitted, allowed, burst, gap, .. } = self.account();
        let said = format!("admitted {:+.2} %, burst {burst:.1}, gap {gap:.1}", (admitted / allowed - 1.0) * 100.0);
        assert!(admitted <= 1.01 * allowed + 1.0, "{said}: {admitted} of {allowed:.1}");
        said
    }

    /// Nor was there a moment in which nothing was admitted though it was allowed, or more than was allowed at once.
    pub fn hold_steady(&self) {
        let Account { burst, gap, .. } = self.account();
        // More than the capacity is enforced while a part of it lies idle.
        let most = self.sightings.lock().iter().map(|seen| seen.rate).fold(CAPACITY, f64::max) / 60.0;
        let unsteady = UNSTEADY_S * most;
        assert!(burst <= unsteady && gap <= unsteady, "a burst of {burst:.1}, a gap of {gap:.1} at {most:.0}/s");
    }

    /// Waits until so many more were admitted.
    pub async fn admit_more(&self, what: &str) {
        let before = self.account().admitted;
        eventually(what, async || (self.account().admitted >= before + 200.0).then_some(())).await;
    }
}

async fn offer(pool: Pool, account: Arc<Mutex<Account>>, sightings: Arc<Mutex<Vec<Sighting>>>) {
    let acme = tenant("acme");
    let mut every = tokio::time::interval(OFFER_EVERY);
    // What is stored already is not of the time that is looked at.
    while pool.try_admit(&acme, Cost::request(0, 0)).is_ok() {}
    let (mut then, mut before) = (Instant::now(), enforced(&pool));
    loop {
        every.tick().await;
        let mut admitted = 0.0;
        while pool.try_admit(&acme, Cost::request(0, 0)).is_ok() {
            admitted += 1.0;
        }
        let (now, tuning) = (Instant::now(), pool.tuning());
        let limits = tuning.limits_of(&acme).filter(|limits| !limits.blocked);
        let rate = limits.map_or(0.0, |limits| limits.meters[&RPM].rate.rate);
        // The larger of before and after: a retune may come between.
        let allowed = rate.max(before) / 60.0 * now.duration_since(then).as_secs_f64();
        account.lock().add(admitted, allowed);
        let mut seen = sightings.lock();
        let same = |last: &Sighting| last.state == tuning.state && last.stamp == tuning.stamp && last.rate == rate;
        if !seen.last().is_some_and(same) {
            seen.push(Sighting { at: now, state: tuning.state, stamp: tuning.stamp, rate });
        }
        (then, before) = (now, rate);
    }
}

/// How a way is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Weather {
    Clear,
    /// What goes through takes so long, in milliseconds, each piece anew, and stays in order.
    Slow(u64, u64),
    /// All is taken and nothing arrives, until the weather changes.
    Held,
    /// What goes through has ended, and nothing goes through any more.
    Cut,
}

/// What went through, in bytes.
#[derive(Debug, Default)]
struct Passed {
    /// Taken from who connects while the way was held.
    held: Vec<u8>,
    answered: u64,
    /// Connections that are open.
    open: usize,
}

/// A way to a server that can be cut, held and slowed.
pub struct Proxy {
    address: SocketAddr,
    target: Arc<Mutex<String>>,
    weather: watch::Sender<Weather>,
    passed: Arc<Mutex<Passed>>,
    task: JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Proxy {
    pub async fn to(url: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let (target, passed) = (Arc::new(Mutex::new(String::new())), Arc::new(Mutex::new(Passed::default())));
        let (weather, is) = watch::channel(Weather::Clear);
        let (to, through) = (target.clone(), passed.clone());
        let task = tokio::spawn(async move {
            // Dropped with this task, whatever is still on its way.
            let mut carried = JoinSet::new();
            while let Ok((near, _)) = listener.accept().await {
                let to = to.lock().clone();
                carried.spawn(carry(near, to, is.clone(), through.clone()));
                while carried.try_join_next().is_some() {}
            }
        });
        let proxy = Self { address, target, weather, passed, task };
        proxy.turn_to(url);
        proxy
    }

    /// Whoever connects from now on gets there.
    pub fn turn_to(&self, url: &str) {
        url.trim_start_matches("http://").clone_into(&mut self.target.lock());
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn is(&self, weather: Weather) {
        self.weather.send_replace(weather);
    }

    /// Ends what goes through now; the next gets through.
    pub async fn snap(&self) {
        let was = self.weather.send_replace(Weather::Cut);
        eventually("nothing goes through", async || (self.passed.lock().open == 0).then_some(())).await;
        self.is(was);
    }

    /// Whether such words are on their way and held.
    pub fn holds(&self, words: &str) -> bool {
        self.passed.lock().held.windows(words.len()).any(|window| window == words.as_bytes())
    }

    /// How many bytes have come back through it.
    pub fn answered(&self) -> u64 {
        self.passed.lock().answered
    }
}

async fn carry(near: TcpStream, to: String, mut is: watch::Receiver<Weather>, passed: Arc<Mutex<Passed>>) {
    if *is.borrow() == Weather::Cut {
        return;
    }
    let Ok(far) = TcpStream::connect(&to).await else { return };
    let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
    let there = pump(near_in, far_out, is.clone(), |bytes, held| {
        if held {
            passed.lock().held.extend(bytes);
        }
    });
    let back = pump(far_in, near_out, is.clone(), |bytes, _| passed.lock().answered += bytes.len() as u64);
    passed.lock().open += 1;
    tokio::select! {
        _ = async { tokio::join!(there, back) } => {}
        _ = is.wait_for(|weather| *weather == Weather::Cut) => {}
    }
    passed.lock().open -= 1;
}

/// Carries one direction until its end.
async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut is: watch::Receiver<Weather>,
    note: impl Fn(&[u8], bool),
) {
    let (sender, mut queue) = mpsc::unbounded_channel::<(Instant, Vec<u8>)>();
    let at_entry = is.clone();
    let take = async move {
        let mut buffer = vec![0; 16 << 10];
        while let Ok(read @ 1..) = from.read(&mut buffer).await {
            let weather = *at_entry.borrow();
            let delay = if let Weather::Slow(least, most) = weather { fastrand::u64(least..=most) } else { 0 };
            note(&buffer[..read], weather == Weather::Held);
            let due = Instant::now() + Duration::from_millis(delay);
            if sender.send((due, buffer[..read].to_vec())).is_err() {
                return;
            }
        }
    };
    let give = async move {
        while let Some((due, bytes)) = queue.recv().await {
            tokio::time::sleep_until(due).await;
            let arrives = is.wait_for(|weather| *weather != Weather::Held).await.is_ok();
            if !arrives || to.write_all(&bytes).await.is_err() {
                return;
            }
        }
    };
    tokio::join!(take, give);
}

/// A record that a leader wrote.
#[derive(Debug, Clone)]
pub struct Written {
    /// The leader key's create revision as it was then; 0 for none.
    pub led_by: u64,
    pub stamp: Stamp,
    /// The tenant's threshold in requests per minute, where it is a grant.
    pub granted: Option<f64>,
}

/// Sees everything that is written under the prefix, in etcd's own order.
pub struct Witness {
    written: Arc<Mutex<Vec<Written>>>,
    task: JoinHandle<()>,
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Witness {
    pub async fn of(endpoint: &str) -> Self {
        let (store, keys) = (store(&[endpoint.to_owned()]).await, Keyspace::default());
        // One select: within it etcd keeps the order, over several it need not.
        let all = [Select::Prefix("/tidegate/v1/".to_owned())];
        let listing = store.list(&all).await.expect("etcd is there");
        let mut watch = store.watch(&all, listing.revision + 1).await.expect("etcd is there");
        let written = Arc::new(Mutex::new(Vec::new()));
        let mut looks = Looks { keys, led_by: 0, written: written.clone() };
        let leader = looks.keys.key(&Key::Leader);
        if let Some(leads) = listing.entries.iter().find(|entry| entry.key == leader) {
            looks.on_put(leads);
        }
        let task = tokio::spawn(async move {
            loop {
                match watch.next().await {
                    Ok(WatchEvent::Changes { changes, .. }) => changes.iter().for_each(|change| looks.on(change)),
                    Ok(_) => {}
                    Err(StoreError::Over) => return,
                    Err(error) => panic!("the witness sees nothing any more: {error}"),
                }
            }
        });
        Self { written, task }
    }

    pub fn written(&self) -> Vec<Written> {
        assert!(!self.task.is_finished(), "the witness sees");
        self.written.lock().clone()
    }

    /// The tenant's threshold as it was granted last, or the time before if that was more: members hear of one after the other.
    pub fn threshold(&self) -> f64 {
        self.written.lock().iter().rev().filter_map(|one| one.granted).take(2).fold(0.0, f64::max)
    }

    /// Every record was written while its own term's leader held the key, and none after a later one.
    pub fn hold(&self) {
        let written = self.written();
        assert!(!written.is_empty());
        for one in &written {
            assert_eq!(one.stamp.term, one.led_by, "written past the fence: {one:?}");
        }
        let pulses: Vec<Stamp> = written.iter().filter(|w| w.granted.is_none()).map(|w| w.stamp).collect();
        assert!(pulses.is_sorted(), "{pulses:?}");
    }
}

struct Looks {
    keys: Keyspace,
    led_by: u64,
    written: Arc<Mutex<Vec<Written>>>,
}

impl Looks {
    fn on(&mut self, change: &Change) {
        match change {
            Change::Put(entry) => self.on_put(entry),
            Change::Delete { key, .. } if *key == self.keys.key(&Key::Leader) => self.led_by = 0,
            Change::Delete { .. } => {}
        }
    }

    fn on_put(&mut self, entry: &Entry) {
        let (stamp, granted) = match self.keys.parse(&entry.key) {
            Some(Key::Leader) => {
                self.led_by = entry.create_revision;
                return;
            }
            Some(Key::Pulse(_)) => (Pulse::parse(&entry.value).expect("a pulse").stamp, None),
            Some(Key::Limits(_, Grantee::Tenant(_))) => {
                let grant = Grant::parse(&entry.value).expect("a grant");
                (grant.stamp, Some(grant.thresholds.rates[&RPM].rate))
            }
            _ => return,
        };
        self.written.lock().push(Written { led_by: self.led_by, stamp, granted });
    }
}
