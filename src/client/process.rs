//! One member process without its sockets and timers.
//!
//! What it knows is in [`Session`] and [`PoolView`]; here that is put in force: pushed to the gates that it concerns, or swapped
//! where it holds for a whole pool.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tracing::{info, warn};

use super::gates::{Gates, Views};
use super::heard::MemberState;
use super::member::PoolView;
use super::params::{ClientParams, MODE_VARIABLE, PoolParams};
use super::pool::{ClockDebug, OnThrottled, PoolShared, RefusedFor};
use super::report::report;
use super::rota::Rota;
use super::session::{Notice, OldTerm, Session};
use super::swap::{PoolWide, Swap};
use super::together::{Stance, Together};
use super::{Pool, Tasks, last_known};
use crate::clock::{Clock, MonoTime, UnixMillis};
use crate::observation::Report;
use crate::plan::keyspace::{LeaderRecord, Presence};
use crate::plan::{Mode, Reply};
use crate::quota::{Grantee, Meter, PoolId};
use crate::store::{Change, Listing, Select};
use crate::telemetry::{Metric, Sample, Telemetry};

/// 429s are reported at once, but in the long run not more often than this.
pub(super) const REPORT_GAP_MIN: Duration = Duration::from_millis(100);
/// A leader that asks for longer pauses than this is asked again all the same.
const REPORT_GAP_MAX: Duration = Duration::from_secs(5);
/// A tenant that is told of in turn has its turn so often while its share holds.
const ROUNDS_IN_A_SHARE: u32 = 3;
/// A hold told by the leader is released over this fraction of its length, but not over more than the second.
const HOLD_SPREAD: f64 = 0.2;
const HOLD_SPREAD_MAX: Duration = Duration::from_secs(5);
/// How long a hold that is over is told of: a gate that nobody asked meanwhile is to start slowly too.
const HOLD_REMEMBERED: Duration = Duration::from_secs(60);

/// Clocks that are further apart are told of, in seconds.
const SKEW_WORTH_TELLING_S: f64 = 5.0;
/// By a pulse that is no older than this.
const SKEW_TOLD_FOR: Duration = Duration::from_secs(15);

/// How a pool stands, as metrics tell it.
#[derive(Debug, Default)]
struct Standing {
    /// How long ago the last pulse came, and how far ahead its clock was then.
    pulse: Option<(Duration, f64)>,
    shares: BTreeMap<Grantee, f64>,
}

impl Standing {
    #[allow(clippy::cast_precision_loss, reason = "milliseconds since 1970 are far below 2^53")]
    fn of(view: &PoolView, now: MonoTime, wall: UnixMillis) -> Self {
        let pulse = view.pulse().zip(view.pulse_at()).map(|(pulse, at)| {
            let age = now.since(at);
            (age, pulse.unix_ms.0 as f64 / 1e3 - (wall.0 as f64 / 1e3 - age.as_secs_f64()))
        });
        Self { pulse, shares: view.leases(now).map(|(grantee, share, _)| (grantee.clone(), share.share)).collect() }
    }
}

/// A client without its sockets and timers: what its tasks share, and what a simulation drives in their place. What arrives is
/// put in force at once; the tasks carry it, and say when.
#[derive(Debug)]
pub struct Core {
    pub(super) instance: String,
    pub(super) boot: String,
    /// This process's own word on whether limits hold.
    pub(super) mode: Option<Mode>,
    pub(super) clock: Arc<dyn ClockDebug>,
    pub(super) telemetry: Arc<Telemetry>,
    pub(super) together: Arc<Together>,
    pub(super) session: Mutex<Session>,
    pub(super) views: Views,
    /// Filled once, when the client starts.
    pub(super) pools: std::sync::OnceLock<BTreeMap<PoolId, Arc<Gates>>>,
    /// How many reports were made.
    reports: AtomicU64,
    rota: Mutex<Rota>,
    /// Whether it was said that there are too many tenants for the rota.
    crowded: AtomicBool,
    /// Whether it was said that this member cannot count together with others.
    apart: AtomicBool,
    /// Whether it was said that the leader's clock and this one's are apart.
    skewed: AtomicBool,
    /// Whose shares were last told of, by pool.
    shares_told: Mutex<BTreeMap<String, BTreeSet<Grantee>>>,
    /// Something must reach the leader at once.
    pub(super) urgent: Notify,
    /// The first shares have come.
    pub(super) joined: Notify,
    /// 0–1, this process's own: where in the spread of a hold's release it stands.
    jitter: f64,
}

impl Core {
    /// A client of which nothing runs yet. `boot` tells this start of the process from its others; `jitter`, 0–1, says where
    /// in the spread of a hold's release it stands.
    #[must_use]
    pub fn new(
        params: &ClientParams,
        boot: String,
        jitter: f64,
        clock: Arc<impl Clock + fmt::Debug>,
        telemetry: Arc<Telemetry>,
    ) -> Arc<Self> {
        let clock: Arc<dyn ClockDebug> = clock;
        let (now, wall) = (clock.now(), clock.wall());
        let mut remembered = params.last_known.as_deref().map(|file| last_known::read(file, wall)).unwrap_or_default();
        let view = |pool: &PoolParams, remembered| {
            let view = PoolView::new(pool.bootstrap.clone(), now).with_last_known(remembered);
            view.counting_together(params.tally.is_some())
        };
        let views = params.pools.iter().map(|pool| {
            let remembered = remembered.remove(&pool.id).unwrap_or_default();
            (pool.id.clone(), view(pool, remembered))
        });
        let session = Session::new(params.keyspace.clone(), []);
        let follow = |session: Session, pool: &PoolParams| session.following(pool.id.clone(), pool.tenants.clone());
        let core = Arc::new(Self {
            instance: params.instance.clone(),
            boot,
            mode: params.mode,
            together: Arc::new(Together::new(params.tally.clone(), clock.clone(), telemetry.clone())),
            clock,
            telemetry,
            session: Mutex::new(params.pools.iter().fold(session, follow)),
            views: Arc::new(Mutex::new(views.collect())),
            pools: std::sync::OnceLock::new(),
            reports: AtomicU64::new(0),
            rota: Mutex::default(),
            crowded: AtomicBool::new(false),
            skewed: AtomicBool::new(false),
            apart: AtomicBool::new(false),
            shares_told: Mutex::default(),
            urgent: Notify::new(),
            joined: Notify::new(),
            jitter,
        });
        let pools = gates_of(params, &core);
        if let Some(mode) = core.mode {
            pools.values().map(|gates| &gates.pool).for_each(|pool| core.tell_mode(pool, mode));
        }
        let _ = core.pools.set(pools);
        core
    }

    /// One of the client's pools, from which nothing is admitted after a wait: that takes the client's tasks.
    #[must_use]
    pub fn pool(&self, id: &PoolId) -> Option<Pool> {
        let gates = self.pools.get()?.get(id)?.clone();
        Some(Pool { gates, max_wait: Duration::ZERO, _tasks: Arc::new(Tasks(Mutex::default())) })
    }

    /// What to list; then, what to watch.
    #[must_use]
    pub fn selects(&self) -> (Vec<Select>, Vec<Select>) {
        let session = self.session.lock();
        (session.list_selects(), session.watch_selects())
    }

    /// Who leads, if anyone.
    #[must_use]
    pub fn leader(&self) -> Option<LeaderRecord> {
        self.session.lock().leader().cloned()
    }

    /// Takes a list; returns the revision to watch from.
    pub fn on_list(&self, listing: &Listing) -> u64 {
        let now = self.clock.now();
        let mut views = self.views.lock();
        let mut session = self.session.lock();
        let notices = session.on_list(listing, &mut views, now);
        self.retune(&mut views, now);
        self.note(notices);
        for (pool, _) in views.iter().filter(|(_, view)| view.state(now) == MemberState::Bootstrap) {
            warn!(%pool, "no grants in the store for this pool: the bootstrap thresholds hold until a controller comes");
        }
        session.next_revision()
    }

    /// The store has said anything at all on the watch: it is alive.
    pub fn on_word(&self) {
        self.session.lock().on_word(self.clock.now());
    }

    /// Takes what a watch told of.
    pub fn on_changes(&self, changes: &[Change], revision: u64) {
        let now = self.clock.now();
        let mut views = self.views.lock();
        let notices = self.session.lock().on_changes(changes, revision, &mut views, now);
        self.retune(&mut views, now);
        self.note(notices);
    }

    /// Moves brake and lapse, ends shares, overrides and what was lent as their time is over. Returns in how long the next share
    /// ends or less is lent, if any is in force.
    pub fn keep_house(&self) -> Option<Duration> {
        let now = self.clock.now();
        let mut views = self.views.lock();
        for view in views.values_mut() {
            view.brake(now);
        }
        self.retune(&mut views, now);
        let shares = views.values().flat_map(|view| view.leases(now)).map(|(.., until)| until);
        let ends = shares.chain(views.values().filter_map(|view| view.lent_until(now))).min();
        let wall = self.clock.wall();
        let standing: Vec<Standing> = self
            .pools()
            .map(|gates| views.get(&gates.pool.id).map_or_else(Standing::default, |view| Standing::of(view, now, wall)))
            .collect();
        drop(views);
        if let Some(silence) = self.session.lock().silence(now) {
            self.telemetry.set(Metric::WatchSilence, &[], silence.as_secs_f64());
        }
        self.tell_skew(&standing);
        for (gates, standing) in self.pools().zip(&standing) {
            self.look_after(gates, standing, now);
        }
        ends.map(|ends| ends.since(self.clock.now()))
    }

    /// Every metric of this process as it is now.
    #[must_use]
    pub fn stats(&self) -> Vec<Sample> {
        self.keep_house();
        self.telemetry.snapshot()
    }

    /// What to tell the leader, and when that is: to be handed to [`Core::on_reply`] with its reply.
    #[must_use]
    pub fn tell(&self) -> (Report, MonoTime) {
        let asked_at = self.clock.now();
        let mut report = self.report(&self.views.lock(), asked_at);
        self.rota.lock().fit(&mut report);
        (report, asked_at)
    }

    /// Takes the leader's reply; returns how long to wait until the next report.
    ///
    /// # Errors
    /// [`OldTerm`]: nothing has changed.
    pub fn on_reply(&self, reply: &Reply, asked_at: MonoTime) -> Result<Duration, OldTerm> {
        let now = self.clock.now();
        let mut views = self.views.lock();
        let taken = self.session.lock().on_reply(reply, asked_at, &mut views);
        taken.inspect_err(|_| self.telemetry.add(Metric::RepliesDropped, &["old_term"], 1.0))?;
        self.retune(&mut views, now);
        drop(views);
        self.joined.notify_one();
        let round = {
            let mut rota = self.rota.lock();
            rota.taken();
            rota.round()
        };
        // Who tells of its tenants in turn tells of each three times within its share's life, so that one lost report ends none.
        let in_turn = Duration::from_millis(reply.share_valid_ms) / ROUNDS_IN_A_SHARE / round;
        if in_turn < REPORT_GAP_MIN && !self.crowded.swap(true, Ordering::Relaxed) {
            warn!(
                reports = round,
                "more tenants than can be told of while a share holds: some are on the safe thresholds now and then"
            );
        }
        Ok(Duration::from_millis(reply.next_report_ms).min(in_turn).clamp(REPORT_GAP_MIN, REPORT_GAP_MAX))
    }

    /// No reply came to the last report.
    pub fn on_no_reply(&self) {
        let now = self.clock.now();
        let mut views = self.views.lock();
        views.values_mut().for_each(PoolView::on_no_reply);
        self.retune(&mut views, now);
    }

    /// Gives the shares back; returns the last report.
    pub fn leave(&self) -> Report {
        let now = self.clock.now();
        let mut views = self.views.lock();
        views.values_mut().for_each(PoolView::give_shares_back);
        // A pool that somebody still holds is on its part of the safe thresholds.
        self.retune(&mut views, now);
        let mut report = Report { leaving: true, ..self.report(&views, now) };
        self.rota.lock().fit(&mut report);
        report
    }

    /// What stands under this member's key.
    #[must_use]
    pub fn presence(&self) -> Presence {
        Presence {
            boot: self.boot.clone(),
            pools: self.pools().map(|gates| gates.pool.id.clone()).collect(),
            mode: self.mode,
        }
    }

    /// Looks at what is known of each pool.
    pub fn with_views<T>(&self, look: impl FnOnce(&BTreeMap<PoolId, PoolView>) -> T) -> T {
        look(&self.views.lock())
    }

    /// What this process has to say; each report has the next number.
    fn report(&self, views: &BTreeMap<PoolId, PoolView>, now: MonoTime) -> Report {
        let sequence = self.reports.fetch_add(1, Ordering::Relaxed) + 1;
        let counts_together = self.together.stance() == Some(Stance::Decides);
        report(&self.instance, &self.boot, self.pools().map(|gates| &**gates), views, counts_together, sequence, now)
    }

    pub(super) fn pools(&self) -> impl Iterator<Item = &Arc<Gates>> {
        self.pools.get().into_iter().flat_map(BTreeMap::values)
    }

    /// Puts into force what the views now say. Called under the views' lock, so that what is put in force follows in order.
    fn retune(&self, views: &mut BTreeMap<PoolId, PoolView>, now: MonoTime) {
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
            if view.is_shared() && !self.together.is_there() && !self.apart.swap(true, Ordering::Relaxed) {
                let pool = pool.id.as_str();
                warn!(
                    pool,
                    "members count together here, and this one has nowhere to: it goes by its share, on top of theirs"
                );
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

    fn tell_mode(&self, pool: &PoolShared, mode: Mode) {
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
    fn look_after(&self, gates: &Gates, standing: &Standing, now: MonoTime) {
        #[allow(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
        let precise = |n: u64| n as f64;
        let id = gates.pool.id.as_str();
        let (waiting, in_flight) = gates.look_after(now, |grantee, news| {
            let tenant = grantee.to_string();
            let label = self.telemetry.tenant_label(id, &tenant);
            let count = |metric, n: u64| self.telemetry.add(metric, &[id, label], precise(n));
            count(Metric::Admitted, news.admitted);
            count(Metric::Refused, news.refused);
            count(Metric::Waited, news.waited);
            if news.would_wait + news.would_refuse > 0 {
                count(Metric::WouldWait, news.would_wait);
                count(Metric::WouldRefuse, news.would_refuse);
            }
            if news.expired > 0 {
                self.telemetry.add(Metric::ReservationsExpired, &[id], precise(news.expired));
            }
        });
        self.tell_shares(id, &standing.shares);
        let tell = |metric, value: f64| self.telemetry.set(metric, &[id], value);
        tell(Metric::Mode, gates.pool.wide.load().mode.number());
        tell(Metric::Waiting, precise(waiting));
        tell(Metric::InFlight, precise(in_flight));
        if let Some((age, skew_s)) = standing.pulse {
            tell(Metric::PulseAge, age.as_secs_f64());
            tell(Metric::ClockSkew, skew_s);
        }
        for (why, n) in gates.pool.refused_for.take() {
            self.telemetry.add(Metric::RefusedFor, &[id, why], precise(n));
        }
    }

    /// The shares that are in force, and of those that were and are not any more that they are nothing.
    fn tell_shares(&self, pool: &str, shares: &BTreeMap<Grantee, f64>) {
        let mut told = self.shares_told.lock();
        let told = told.entry(pool.to_owned()).or_default();
        let ended: Vec<Grantee> = told.iter().filter(|grantee| !shares.contains_key(*grantee)).cloned().collect();
        for (grantee, share) in
            shares.iter().map(|(grantee, share)| (grantee, *share)).chain(ended.iter().map(|grantee| (grantee, 0.0)))
        {
            let tenant = grantee.to_string();
            // Parts of different tenants add up to nothing.
            if self.telemetry.tenant_label(pool, &tenant) == tenant {
                self.telemetry.set(Metric::Share, &[pool, &tenant], share);
            }
        }
        *told = shares.keys().cloned().collect();
    }

    /// Overrides end by each one's own clock: who is far off is told so, once.
    fn tell_skew(&self, standing: &[Standing]) {
        let lives = |(age, skew_s): (Duration, f64)| (age < SKEW_TOLD_FOR).then_some(skew_s);
        let all = standing.iter().filter_map(|standing| standing.pulse.and_then(lives));
        let Some(skew_s) = all.max_by(|a, b| a.abs().total_cmp(&b.abs())) else { return };
        let is_far = skew_s.abs() > SKEW_WORTH_TELLING_S;
        if is_far && !self.skewed.swap(true, Ordering::Relaxed) {
            warn!("the leader's clock and this machine's are {skew_s:.1} s apart: overrides end by one's own clock");
        } else if !is_far {
            self.skewed.store(false, Ordering::Relaxed);
        }
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

/// The gates of each pool, with what holds before anything is heard.
fn gates_of(params: &ClientParams, core: &Arc<Core>) -> BTreeMap<PoolId, Arc<Gates>> {
    let process: std::sync::Weak<Core> = Arc::downgrade(core);
    let shared = |pool: &PoolParams| PoolShared {
        id: pool.id.clone(),
        dialect: pool.dialect,
        call_max: pool.call_max,
        idle_after: params.idle_after,
        clock: core.clock.clone(),
        // Whoever turned limits off wants them off at once.
        wide: Swap::new(PoolWide { mode: core.mode.unwrap_or_default(), ..PoolWide::new(MemberState::Bootstrap) }),
        together: core.together.clone(),
        telemetry: core.telemetry.clone(),
        refused_for: RefusedFor::default(),
        readings: Mutex::default(),
        long_holds: Mutex::default(),
        throttled: process.clone(),
    };
    let mut pools: BTreeMap<PoolId, Arc<Gates>> = BTreeMap::new();
    // Parents before their children.
    let by_rank = params.pools.iter().filter(|pool| pool.parent.is_none());
    for pool in by_rank.chain(params.pools.iter().filter(|pool| pool.parent.is_some())) {
        let parent = pool.parent.as_ref().and_then(|parent| pools.get(parent)).cloned();
        let gates = Gates::new(Arc::new(shared(pool)), core.views.clone(), parent);
        pools.insert(pool.id.clone(), Arc::new(gates));
    }
    pools
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
