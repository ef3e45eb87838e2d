//! The client's tasks: watch the store, report to the leader, keep presence, and put what follows into force.
//!
//! What happens inside is decided by [`Session`](super::session::Session) and [`PoolView`](super::member::PoolView);
//! here are only the sockets and the timers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tracing::{info, warn};

use super::gates::{Gates, Views};
use super::member::{MemberState, PoolView};
use super::params::MODE_VARIABLE;
use super::pool::{ClockDebug, OnThrottled, PoolShared};
use super::report::report;
use super::session::{Notice, Session};
use super::swap::PoolWide;
use crate::clock::MonoTime;
use crate::observation::Report;
use crate::plan::keyspace::Presence;
use crate::plan::{Mode, Reply};
use crate::quota::{Meter, PoolId};
use crate::store::{LeaseId, Op, Store, StoreError, Txn, WatchEvent};
use crate::telemetry::{Metric, Telemetry};

/// How often brake, lapse and expiries are looked at.
const HOUSEKEEPING_EVERY: Duration = Duration::from_millis(250);
const REPORT_TIMEOUT: Duration = Duration::from_secs(2);
/// A process that closes does not wait for a leader that is slow.
const FAREWELL_TIMEOUT: Duration = Duration::from_millis(500);
/// When to report next while no leader says so.
const REPORT_EVERY: Duration = Duration::from_millis(500);
/// 429s are reported at once, but not more often than this.
const REPORT_GAP_MIN: Duration = Duration::from_millis(100);
/// A leader that asks for longer pauses than this is asked again all the same.
const REPORT_GAP_MAX: Duration = Duration::from_secs(5);
const REOPEN_AFTER_MIN: Duration = Duration::from_millis(100);
const REOPEN_AFTER_MAX: Duration = Duration::from_secs(2);
/// A hold told by the leader is released over this fraction of its length, but not over more than the second.
const HOLD_SPREAD: f64 = 0.2;
const HOLD_SPREAD_MAX: Duration = Duration::from_secs(5);
/// How long a hold that is over is told of: a gate that nobody asked meanwhile is to start slowly too.
const HOLD_REMEMBERED: Duration = Duration::from_secs(60);
const PRESENCE_TTL: Duration = Duration::from_secs(10);
const PRESENCE_EVERY: Duration = Duration::from_secs(3);

/// What the tasks of one client share.
#[derive(Debug)]
pub(super) struct Core {
    pub instance: String,
    pub boot: String,
    /// This process's own word on whether limits hold.
    pub mode: Option<Mode>,
    pub clock: Arc<dyn ClockDebug>,
    pub telemetry: Arc<Telemetry>,
    pub session: Mutex<Session>,
    pub views: Views,
    /// Filled once, when the client starts.
    pub pools: std::sync::OnceLock<BTreeMap<PoolId, Arc<Gates>>>,
    /// How many reports were made.
    pub reports: AtomicU64,
    /// Something must reach the leader at once.
    pub urgent: Notify,
    /// The first shares have come.
    pub joined: Notify,
    /// 0–1, this process's own: where in the spread of a hold's release it stands.
    pub jitter: f64,
}

impl Core {
    /// What this process has to say; each report has the next number.
    fn report(&self, views: &BTreeMap<PoolId, PoolView>, now: MonoTime) -> Report {
        let sequence = self.reports.fetch_add(1, Ordering::Relaxed) + 1;
        report(&self.instance, &self.boot, self.pools().map(|gates| &**gates), views, sequence, now)
    }

    fn pools(&self) -> impl Iterator<Item = &Arc<Gates>> {
        self.pools.get().into_iter().flat_map(BTreeMap::values)
    }

    /// Puts into force what the views now say. Called under the views' lock, so that what is put in force follows in order.
    pub(super) fn retune(&self, views: &mut BTreeMap<PoolId, PoolView>, now: MonoTime) {
        let wall = self.clock.wall();
        for gates in self.pools() {
            let pool = &gates.pool;
            let Some(view) = views.get_mut(&pool.id) else { continue };
            let changes = view.take_changes(now, wall);
            let (state, stamp) = (view.state(now), view.pulse().map(|pulse| pulse.stamp).unwrap_or_default());
            let told = self.holds_told(view, now);
            let mode = self.mode_of(view);
            let wide = pool.wide.update(|known| {
                let mut wide = PoolWide { told, mode, state, stamp, ..known.clone() };
                wide.holds.retain(|_, until| *until + HOLD_REMEMBERED > now);
                (wide != *known).then_some(wide)
            });
            if let Some((before, after)) = wide {
                if after.state != before.state {
                    self.tell_state(pool, before.state, after.state);
                }
                if after.mode != before.mode {
                    self.tell_mode(pool, after.mode);
                }
                if after.told != before.told || after.mode != before.mode {
                    // What is no longer told is lifted; where limits do not hold any more, nobody waits.
                    gates.wake_heads();
                }
            }
            if gates.retune(view, &changes, now, wall) {
                self.telemetry.add(Metric::Swaps, &[pool.id.as_str()], 1.0);
            }
        }
    }

    /// The holds that the leader tells of, released over some time so that members do not return at one instant.
    fn holds_told(&self, view: &PoolView, now: MonoTime) -> BTreeMap<Meter, MonoTime> {
        let Some((pulse, at)) = view.pulse().zip(view.pulse_at()) else { return BTreeMap::new() };
        let until = |ms: u64| {
            let spread = Duration::from_millis(ms).mul_f64(HOLD_SPREAD).min(HOLD_SPREAD_MAX);
            at + Duration::from_millis(ms) + spread.mul_f64(self.jitter)
        };
        pulse
            .hold_ms
            .iter()
            .map(|(meter, ms)| (*meter, until(*ms)))
            .filter(|(_, until)| *until + HOLD_REMEMBERED > now)
            .collect()
    }

    /// What becomes of a pool's limits here: this process's own word, else what its last pulse said.
    pub(super) fn mode_of(&self, view: &PoolView) -> Mode {
        self.mode.unwrap_or(view.mode())
    }

    pub(super) fn tell_mode(&self, pool: &PoolShared, mode: Mode) {
        let (pool, by) = (pool.id.as_str(), if self.mode.is_some() { "this process" } else { "the pool's policy" });
        match mode {
            Mode::Enforce => info!(pool, "limits are enforced, says {by}"),
            Mode::Observe => warn!(pool, "limits are observed and refuse nothing, says {by}"),
            Mode::Off => warn!(pool, "limits are off, says {by}"),
        }
    }

    fn tell_state(&self, pool: &PoolShared, from: MemberState, to: MemberState) {
        let number = match to {
            MemberState::Bootstrap => 0.0,
            MemberState::Active => 1.0,
            MemberState::Braking => 2.0,
            MemberState::Lapsed => 3.0,
        };
        self.telemetry.set(Metric::MemberState, &[pool.id.as_str()], number);
        let pool = pool.id.as_str();
        if to == MemberState::Active {
            info!(pool, "member is active (was {})", from.as_str());
        } else {
            warn!(pool, "member is {} (was {}): no leader heard", to.as_str(), from.as_str());
        }
    }

    /// Looks after the gates; their own counts are shown as metrics: the hot path counts once.
    fn look_after(&self, gates: &Gates, now: MonoTime) {
        #[allow(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
        let precise = |n: u64| n as f64;
        let id = gates.pool.id.as_str();
        let (waiting, expired) = gates.look_after(now, |grantee, glance| {
            let tenant = grantee.to_string();
            self.telemetry.set(Metric::Admitted, &[id, &tenant], precise(glance.admitted));
            self.telemetry.set(Metric::Refused, &[id, &tenant], precise(glance.refused));
            if glance.would_wait + glance.would_refuse > 0 {
                self.telemetry.set(Metric::WouldWait, &[id, &tenant], precise(glance.would_wait));
                self.telemetry.set(Metric::WouldRefuse, &[id, &tenant], precise(glance.would_refuse));
            }
        });
        self.telemetry.set(Metric::Mode, &[id], gates.pool.wide.load().mode.number());
        self.telemetry.set(Metric::Waiting, &[id], precise(waiting));
        self.telemetry.set(Metric::ReservationsExpired, &[id], precise(expired));
    }

    fn note(&self, notices: Vec<Notice>) {
        for notice in notices {
            match notice {
                Notice::RecordRefused { kind, key, error } => {
                    self.telemetry.add(Metric::RecordsRefused, &[kind], 1.0);
                    warn!(key, "ignoring a {kind}: {error}");
                }
                Notice::OrderRestarted => {
                    self.telemetry.add(Metric::WatchReopened, &["order_restarted"], 1.0);
                    warn!("the store is another one or was restored: taking its records as they are, levels stay");
                }
            }
        }
    }
}

impl OnThrottled for Core {
    fn on_throttled(&self, pool: &PoolId, now: MonoTime) {
        if let Some(view) = self.views.lock().get_mut(pool) {
            view.on_throttled(now);
        }
        self.urgent.notify_one();
    }
}

/// Lists, watches, and does so again whenever the watch breaks.
pub(super) async fn watch(core: Arc<Core>, store: Arc<dyn Store>) {
    let mut pause = REOPEN_AFTER_MIN;
    let mut complained = false;
    loop {
        let error = match follow(&core, &*store, &mut || {
            pause = REOPEN_AFTER_MIN;
            complained = false;
        })
        .await
        {
            Ok(never) => match never {},
            Err(error) => error,
        };
        let why = match &error {
            StoreError::Compacted { .. } => "compacted",
            StoreError::Silent { .. } => "silent",
            StoreError::Unavailable { .. } => "unavailable",
            _ => "other",
        };
        core.telemetry.add(Metric::WatchReopened, &[why], 1.0);
        if !complained {
            warn!("store: {error}; members go on with what they have");
            complained = true;
        }
        // Spread: after an outage not all members list at one instant.
        sleep(pause.mul_f64(0.5 + fastrand::f64())).await;
        pause = (pause * 2).min(REOPEN_AFTER_MAX);
    }
}

async fn follow(
    core: &Core,
    store: &dyn Store,
    opened: &mut (dyn FnMut() + Send),
) -> Result<std::convert::Infallible, StoreError> {
    let (list, selects) = {
        let session = core.session.lock();
        (session.list_selects(), session.watch_selects())
    };
    let listing = store.list(&list).await?;
    let from = {
        let now = core.clock.now();
        let mut views = core.views.lock();
        let mut session = core.session.lock();
        let notices = session.on_list(&listing, &mut views, now);
        core.retune(&mut views, now);
        core.note(notices);
        for (pool, _) in views.iter().filter(|(_, view)| view.state(now) == MemberState::Bootstrap) {
            warn!(%pool, "no grants in the store for this pool: the bootstrap thresholds hold until a controller comes");
        }
        session.next_revision()
    };
    // As large as all the records together: not to be kept as long as the watch lasts.
    drop(listing);
    core.urgent.notify_one();
    let mut watch = store.watch(&selects, from).await?;
    loop {
        let event = watch.next().await?;
        // Only now: a store that lists but refuses to be watched is not listed ten times a second.
        opened();
        let now = core.clock.now();
        core.session.lock().on_word(now);
        if let WatchEvent::Changes { changes, revision } = event {
            let mut views = core.views.lock();
            let notices = core.session.lock().on_changes(&changes, revision, &mut views, now);
            core.retune(&mut views, now);
            core.note(notices);
        }
    }
}

/// The environment's word, else the program's.
pub(super) fn own_mode(params: Option<Mode>) -> Option<Mode> {
    let Some(word) = std::env::var_os(MODE_VARIABLE).filter(|word| !word.is_empty()) else { return params };
    let mode = word.to_str().and_then(Mode::named);
    if mode.is_none() {
        // A mistake must not open what is closed.
        warn!("{MODE_VARIABLE} is {word:?}, expected enforce, observe or off: it is ignored");
    }
    mode.or(params)
}

/// Moves brake and lapse, ends shares and overrides whose time is over.
pub(super) async fn housekeeping(core: Arc<Core>) {
    let mut every = interval(HOUSEKEEPING_EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        let now = core.clock.now();
        let mut views = core.views.lock();
        for view in views.values_mut() {
            view.brake(now);
        }
        core.retune(&mut views, now);
        drop(views);
        if let Some(silence) = core.session.lock().silence(now) {
            core.telemetry.set(Metric::WatchSilence, &[], silence.as_secs_f64());
        }
        for gates in core.pools() {
            core.look_after(gates, now);
        }
    }
}

/// Reports to the leader, at the pace the leader asks for; refusals at once.
pub(super) async fn reporting(core: Arc<Core>, report_url: Option<String>) {
    // The leader is on the inside; a proxy for the way out has no business here.
    let http = reqwest::Client::builder().no_proxy().timeout(REPORT_TIMEOUT).build().unwrap_or_default();
    // Where a follower sent us; forgotten as soon as that fails.
    let mut redirected: Option<String> = None;
    let mut next = Duration::ZERO;
    // Said once per outage: a member that cannot report has no share, and somebody should know.
    let mut complained = false;
    loop {
        tokio::select! {
            () = sleep(next) => {}
            () = core.urgent.notified() => {}
        }
        next = REPORT_EVERY;
        let leader = core.session.lock().leader().map(|leader| leader.report_url.clone());
        let was_redirected = redirected.is_some();
        let Some(url) = redirected.clone().or_else(|| report_url.clone()).or(leader) else { continue };
        match post(&core, &http, &url).await {
            Ok(reply) => {
                if std::mem::take(&mut complained) {
                    info!(url, "reports are answered again");
                }
                next = Duration::from_millis(reply.next_report_ms).clamp(REPORT_GAP_MIN, REPORT_GAP_MAX);
            }
            Err(PostError::Elsewhere(other)) => {
                core.telemetry.add(Metric::ReportFailures, &["follower"], 1.0);
                // A configured address is the operator's word.
                redirected = Some(other).filter(|_| report_url.is_none());
                // On at once, but followers that send us to each other see us at the ordinary pace.
                next = if was_redirected { REPORT_EVERY } else { REPORT_GAP_MIN };
            }
            Err(PostError::Failed(why)) => {
                core.telemetry.add(Metric::ReportFailures, &[why], 1.0);
                if !std::mem::replace(&mut complained, true) {
                    warn!(url, "reports are not answered ({why}): without a share the safe thresholds hold");
                }
                redirected = None;
            }
        }
        sleep(REPORT_GAP_MIN).await;
        next = next.saturating_sub(REPORT_GAP_MIN);
    }
}

/// The last report: what this process held is free at once, and not when its leases run out, so that one that takes its
/// place, in a deployment say, need not wait for them.
pub(super) async fn farewell(core: &Core, report_url: Option<&str>) {
    let now = core.clock.now();
    let body = {
        let mut views = core.views.lock();
        views.values_mut().for_each(PoolView::give_shares_back);
        // A pool that somebody still holds is on its part of the safe thresholds.
        core.retune(&mut views, now);
        let last = core.report(&views, now);
        Report { leaving: true, ..last }
    };
    let leader = core.session.lock().leader().map(|leader| leader.report_url.clone());
    let Some(url) = report_url.map(str::to_owned).or(leader) else { return };
    let http = reqwest::Client::builder().no_proxy().timeout(FAREWELL_TIMEOUT).build().unwrap_or_default();
    // Whoever does not hear it waits for the leases.
    if http.post(format!("{}/v1/observations", url.trim_end_matches('/'))).json(&body).send().await.is_err() {
        core.telemetry.add(Metric::ReportFailures, &["farewell"], 1.0);
    }
}

enum PostError {
    Elsewhere(String),
    Failed(&'static str),
}

async fn post(core: &Core, http: &reqwest::Client, url: &str) -> Result<Reply, PostError> {
    let asked_at = core.clock.now();
    let body: Report = {
        let views = core.views.lock();
        core.report(&views, asked_at)
    };
    let url = format!("{}/v1/observations", url.trim_end_matches('/'));
    let response = http.post(url).json(&body).send().await.map_err(|_| PostError::Failed("unreachable"))?;
    match response.status().as_u16() {
        200 => {}
        421 => {
            let body: serde_json::Value = response.json().await.map_err(|_| PostError::Failed("malformed_reply"))?;
            let leader = body.get("leader").and_then(serde_json::Value::as_str);
            return Err(leader.map_or(PostError::Failed("malformed_reply"), |url| PostError::Elsewhere(url.to_owned())));
        }
        503 => return Err(PostError::Failed("no_leader")),
        _ => return Err(PostError::Failed("refused")),
    }
    let reply: Reply = response.json().await.map_err(|_| PostError::Failed("malformed_reply"))?;
    if reply.term < core.session.lock().term() {
        // A deposed leader that does not know it yet.
        core.telemetry.add(Metric::RepliesDropped, &["old_term"], 1.0);
        return Err(PostError::Failed("old_term"));
    }
    // Counted from the question, not the answer: the leader's lease then never ends before ours.
    let until = asked_at + Duration::from_millis(reply.share_valid_ms);
    let now = core.clock.now();
    let mut views = core.views.lock();
    for (pool, shares) in &reply.shares {
        if let Some(view) = views.get_mut(pool) {
            view.on_shares(shares.clone(), until);
        }
    }
    core.retune(&mut views, now);
    drop(views);
    core.joined.notify_one();
    Ok(reply)
}

/// Keeps `members/<instance>` alive: one key, one lease.
pub(super) async fn presence(core: Arc<Core>, store: Arc<dyn Store>, key: String, lease: Arc<Mutex<Option<LeaseId>>>) {
    let mut every = interval(PRESENCE_EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        let held = *lease.lock();
        let alive = match held {
            Some(id) => store.keep_alive(id).await.is_ok(),
            None => false,
        };
        if !alive && announce(&core, &*store, &key, &lease).await.is_err() {
            // An outage is said by the watch; presence just comes back.
            *lease.lock() = None;
        }
    }
}

async fn announce(core: &Core, store: &dyn Store, key: &str, lease: &Mutex<Option<LeaseId>>) -> Result<(), StoreError> {
    let granted = store.lease(PRESENCE_TTL).await?;
    // Known before the key is there, so that a client closed in between takes the key away.
    *lease.lock() = Some(granted);
    let presence = Presence {
        boot: core.boot.clone(),
        pools: core.pools().map(|gates| gates.pool.id.clone()).collect(),
        mode: core.mode,
    };
    let value = serde_json::to_vec(&presence).unwrap_or_default();
    let put = Op::Put { key: key.to_owned(), value, lease: Some(granted) };
    store.commit(Txn { conditions: Vec::new(), ops: vec![put] }).await.map(drop)
}

/// Waits until the first shares have come, but not long: without a leader the bootstrap thresholds hold.
pub(super) async fn joined(core: &Core, at_most: Duration) {
    let _ = timeout(at_most, core.joined.notified()).await;
}
