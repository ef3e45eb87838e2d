//! A pool's gates: one for each tenant that is used here, made on first use and dropped when idle; and one that all tenants
//! without limits of their own share, so that a flood of made-up names neither multiplies capacity nor fills memory.
//!
//! *Order of locks*, none held across an await: the views, a shard, a gate.

use std::collections::BTreeMap;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use hashbrown::{DefaultHashBuilder, HashTable};
use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;

use super::gate::{Counted, Gate, Glance, Returned, Traffic, Untold, Wake};
use super::heard::MemberState;
use super::member::{Changes, PoolView};
use super::pool::PoolShared;
use super::swap::Tuning;
use crate::clock::{MonoTime, UnixMillis};
use crate::limiter::{Claimed, Count, Limiter, Limits, Settlement, Stored};
use crate::observation::ThrottleKind;
use crate::quota::{Grantee, Meter, PoolId, TenantId};
use crate::telemetry::Metric;

/// What the process knows of its pools.
pub(super) type Views = Arc<Mutex<BTreeMap<PoolId, PoolView>>>;

const SHARDS: usize = 64;
/// How many shards are looked after at a time, when there are more gates than these: nobody's caches are emptied four times a
/// second for the sake of counts.
const SHARDS_SWEPT: usize = 4;
const FEW_GATES: usize = 2_000;

/// How a caller is woken: the permit of a [`Notify`] waits for one who does not listen yet.
pub(super) type Waker = Arc<Notify>;

impl Wake for Waker {
    fn wake(&self) {
        self.notify_one();
    }
}

/// A tenant's gate, and the pool that it belongs to.
// In this order: a request finds the name that it looks for and what it decides by side by side.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Account {
    grantee: Grantee,
    pub(super) pool: Arc<PoolShared>,
    pub(super) gate: Gate<Waker>,
    /// Its counts as they were last told.
    told: Mutex<Glance>,
}

impl Account {
    fn new(grantee: Grantee, gate: Gate<Waker>, pool: Arc<PoolShared>) -> Self {
        Self { grantee, pool, gate, told: Mutex::default() }
    }

    /// Counts a refusal of the provider's as a metric.
    pub(super) fn count_throttled(&self, kind: ThrottleKind) {
        let (telemetry, pool, tenant) = (&self.pool.telemetry, self.pool.id.as_str(), self.grantee.to_string());
        let label = telemetry.tenant_label(pool, &tenant);
        telemetry.add(Metric::Throttled, &[pool, label, kind.as_str()], 1.0);
    }

    /// What has happened since this was last asked, and what is now.
    fn news(&self) -> Glance {
        let glance = self.gate.glance();
        glance.since(&std::mem::replace(&mut *self.told.lock(), glance))
    }

    /// What is asked where members count together.
    pub(super) fn counts(&self, counted: &[Counted]) -> Vec<Count> {
        counted
            .iter()
            .map(|counted| self.count(&counted.claimed, counted.claimed.units, counted.extra, counted.owed))
            .collect()
    }

    fn count(&self, claimed: &Claimed, units: u64, extra: u64, owed: u64) -> Count {
        let (pool, grantee) = (self.pool.id.clone(), self.grantee.clone());
        let Claimed { meter, tenant, all, borrows, .. } = *claimed;
        Count { pool, grantee, meter, tenant, all, units, extra, owed, borrows }
    }

    /// What is to be told where members count together.
    pub(super) fn take_untold(&self, account: &PoolId, all: bool, now: MonoTime) -> Option<ToTell> {
        let Untold { owed, returned } = self.gate.take_untold(all, now)?;
        let back = |returned: &Returned| {
            let units = i64::try_from(returned.units).unwrap_or(i64::MAX);
            (self.count(&returned.claimed, returned.units, 0, 0), returned.marks, units)
        };
        let settlement = (!returned.is_empty())
            .then(|| Settlement { account: account.clone(), counts: returned.iter().map(back).collect() });
        let counts = owed.iter().map(|counted| self.count(&counted.claimed, 0, 0, counted.owed)).collect();
        Some(ToTell { counts, owed, settlement })
    }

    fn is_of(&self, tenant: &TenantId) -> bool {
        matches!(&self.grantee, Grantee::Tenant(known) if known == tenant)
    }
}

/// What a gate has to tell where members count together.
#[derive(Debug)]
pub(super) struct ToTell {
    /// What is owed.
    pub(super) counts: Vec<Count>,
    /// The same as the gate has it, to which it returns if it cannot be told.
    pub(super) owed: Vec<Counted>,
    /// What goes back.
    pub(super) settlement: Option<Settlement>,
}

/// A part of the tenants.
#[derive(Debug, Default)]
struct Shard {
    /// Who has limits of its own, and was used. Each takes no more than a pointer here: a request that looks for one of very
    /// many should find the way to it in the processor's caches.
    in_use: HashTable<Arc<Account>>,
    others: HashTable<Other>,
}

impl Shard {
    fn accounts(&self) -> impl Iterator<Item = &Arc<Account>> {
        self.in_use.iter().chain(self.others.iter().filter_map(|other| match other {
            Other::Declared(..) => None,
            Other::Leaving(account, _) => Some(account),
        }))
    }
}

/// A tenant that is not asked for at its own gate.
#[derive(Debug)]
enum Other {
    /// Has limits of its own, and was not used for a while: never, or since its gate was dropped.
    Declared(TenantId, Option<Box<Dropped>>),
    /// Has no limits of its own any more, since then, and is still owed or owing.
    Leaving(Arc<Account>, MonoTime),
}

/// A gate that was dropped when it was as full as it could be.
#[derive(Debug)]
struct Dropped {
    at: MonoTime,
    /// What was stored in it, or could be still after the tenant's limits have changed since.
    stored: Stored,
    /// How often everyone's limits had changed.
    retunes: u64,
}

impl Other {
    fn is_of(&self, tenant: &TenantId) -> bool {
        match self {
            Self::Declared(known, _) => known == tenant,
            Self::Leaving(account, _) => account.is_of(tenant),
        }
    }
}

/// The gates of one pool.
#[derive(Debug)]
pub(super) struct Gates {
    pub(super) pool: Arc<PoolShared>,
    /// The pool over this one: both admit, or neither.
    pub(super) parent: Option<Arc<Gates>>,
    views: Views,
    hasher: DefaultHashBuilder,
    shards: Vec<RwLock<Shard>>,
    /// A bit for each shard that something was ever put into: most processes have a few tenants.
    occupied: AtomicU64,
    default: Arc<Account>,
    /// How often a tenant got or lost limits of its own.
    declared: AtomicU64,
    /// How often limits changed,
    generation: AtomicU64,
    /// and everyone's at once.
    retunes: AtomicU64,
    /// How many gates tenants have of their own, those included that are to be dropped.
    live: AtomicUsize,
    /// Whether members ever counted any of its meters together.
    tallied: AtomicBool,
    /// Which shard is looked after next, and how many wait and are in flight in each, the shared gate's being the last.
    sweep: Mutex<(usize, Vec<(u64, u64)>)>,
}

impl Gates {
    /// The gates of a pool whose view is among the views already.
    pub(super) fn new(pool: Arc<PoolShared>, views: Views, parent: Option<Arc<Gates>>) -> Self {
        let (now, wall) = (pool.clock.now(), pool.clock.wall());
        let limits = views.lock().get(&pool.id).and_then(|view| view.limits_of(&Grantee::Default, now, wall));
        let mut limiter = Limiter::with_call_max(&limits.unwrap_or_default(), pool.call_max, now);
        if pool.wide.load().state == MemberState::Bootstrap {
            limiter.top_up_to_one_request(now);
        }
        let gate = Gate::new(limiter, now);
        let default = Arc::new(Account::new(Grantee::Default, gate, pool.clone()));
        Self {
            pool,
            parent,
            views,
            hasher: DefaultHashBuilder::default(),
            shards: (0..SHARDS).map(|_| RwLock::default()).collect(),
            occupied: AtomicU64::new(0),
            default,
            declared: AtomicU64::new(0),
            generation: AtomicU64::new(1),
            retunes: AtomicU64::new(0),
            live: AtomicUsize::new(0),
            tallied: AtomicBool::new(false),
            sweep: Mutex::new((0, vec![(0, 0); SHARDS + 1])),
        }
    }

    fn hash(&self, tenant: &TenantId) -> u64 {
        self.hasher.hash_one(tenant)
    }

    fn hash_of(&self, account: &Account) -> u64 {
        match &account.grantee {
            Grantee::Tenant(tenant) => self.hash(tenant),
            Grantee::Default => 0,
        }
    }

    #[allow(clippy::cast_possible_truncation, reason = "the low bits choose a shard")]
    fn shard(&self, hash: u64) -> &RwLock<Shard> {
        // The table takes the high bits.
        &self.shards[hash as usize % SHARDS]
    }

    /// A tenant's gate: its own, or the one that all without limits of their own share. With it a number for
    /// [`Gates::is_current`].
    pub(super) fn account_of(&self, tenant: &TenantId) -> (Arc<Account>, u64) {
        let declared = self.declared.load(Ordering::Acquire);
        let hash = self.hash(tenant);
        let shard = self.shard(hash).read();
        if let Some(account) = shard.in_use.find(hash, |account| account.is_of(tenant)) {
            return (account.clone(), declared);
        }
        let is_declared = matches!(shard.others.find(hash, |other| other.is_of(tenant)), Some(Other::Declared(..)));
        drop(shard);
        (if is_declared { self.first_use(tenant, hash) } else { self.default.clone() }, declared)
    }

    /// Whether the gate that was found by this number may still be asked: one's own can say so itself, but the shared one
    /// may be no longer that of a tenant that got limits of its own meanwhile.
    pub(super) fn is_current(&self, account: &Arc<Account>, declared: u64) -> bool {
        !Arc::ptr_eq(account, &self.default) || self.declared.load(Ordering::Acquire) == declared
    }

    #[cold]
    fn first_use(&self, tenant: &TenantId, hash: u64) -> Arc<Account> {
        let views = self.views.lock();
        let mut shard = self.shard(hash).write();
        if let Some(account) = shard.in_use.find(hash, |account| account.is_of(tenant)) {
            return account.clone();
        }
        let (now, wall) = (self.pool.clock.now(), self.pool.clock.wall());
        let grantee = Grantee::Tenant(tenant.clone());
        // A block that is just over has left it without limits of its own: not open, but one of the others.
        let Some(limits) = views.get(&self.pool.id).and_then(|view| view.limits_of(&grantee, now, wall)) else {
            return self.default.clone();
        };
        let declared = |other: &Other| matches!(other, Other::Declared(known, _) if known == tenant);
        let Ok(place) = shard.others.find_entry(hash, declared) else {
            return self.default.clone();
        };
        let dropped = match place.remove().0 {
            Other::Declared(_, dropped) => dropped,
            Other::Leaving(..) => None,
        };
        let since = dropped.as_ref().map_or(now, |dropped| dropped.at);
        let mut limiter = Limiter::with_call_max(&limits, self.pool.call_max, since);
        if let Some(Dropped { stored, retunes, .. }) = dropped.map(|dropped| *dropped) {
            // Who is not here is not asked what a change of everyone's limits leaves him: he begins as one who is new. More than
            // he had is never his: a raise in between would be a burst.
            let unchanged = retunes == self.retunes.load(Ordering::Acquire);
            limiter.restock(&if unchanged { stored } else { Stored::default() }, now);
        }
        let gate = Gate::new(limiter, now);
        // As it would be now: whether there is a share yet is not the limiter's.
        gate.retune(&limits, now);
        let account = Arc::new(Account::new(grantee, gate, self.pool.clone()));
        self.live.fetch_add(1, Ordering::Relaxed);
        self.put_in_use(&mut shard, hash, account.clone());
        account
    }

    /// Said before the views are let go, whose lock a retune of all holds too; a sweep may see it a moment late.
    fn occupy(&self, hash: u64) {
        self.occupied.fetch_or(1 << (hash % SHARDS as u64), Ordering::Relaxed);
    }

    fn is_occupied(&self, shard: usize) -> bool {
        self.occupied.load(Ordering::Relaxed) & (1 << shard) != 0
    }

    fn put_in_use(&self, shard: &mut Shard, hash: u64, account: Arc<Account>) {
        self.occupy(hash);
        shard.in_use.insert_unique(hash, account, |account| self.hash_of(account));
    }

    fn put_aside(&self, shard: &mut Shard, hash: u64, other: Other) {
        self.occupy(hash);
        shard.others.insert_unique(hash, other, |other| match other {
            Other::Declared(tenant, _) => self.hash(tenant),
            Other::Leaving(account, _) => self.hash_of(account),
        });
    }

    /// Puts in force what changed in the pool's view, which the caller has locked; says whether anything did.
    pub(super) fn retune(&self, view: &PoolView, changes: &Changes, now: MonoTime, wall: UnixMillis) -> bool {
        let mut any = changes.all;
        if view.is_shared() {
            self.tallied.store(true, Ordering::Relaxed);
        }
        if changes.all {
            for account in self.accounts() {
                if let Some(limits) = view.limits_of(&account.grantee, now, wall) {
                    account.gate.retune(&limits, now);
                }
            }
            // After them: a gate that is dropped meanwhile counts as one that this did not reach.
            self.retunes.fetch_add(1, Ordering::Release);
        }
        let mut declared = false;
        for grantee in &changes.some {
            any = true;
            let limits = view.limits_of(grantee, now, wall);
            match grantee {
                Grantee::Default => self.default.gate.retune(&limits.unwrap_or_default(), now),
                Grantee::Tenant(tenant) => declared |= self.retune_one(tenant, limits.as_ref(), now),
            }
        }
        if declared {
            // Before they are woken: who asks the shared gate by an older number asks again.
            self.declared.fetch_add(1, Ordering::Release);
            self.default.gate.wake_all();
        }
        if any {
            self.generation.fetch_add(1, Ordering::Release);
        }
        any
    }

    /// Whether a tenant got or lost limits of its own by this.
    fn retune_one(&self, tenant: &TenantId, limits: Option<&Limits>, now: MonoTime) -> bool {
        let hash = self.hash(tenant);
        let mut shard = self.shard(hash).write();
        match (shard.in_use.find_entry(hash, |account| account.is_of(tenant)), limits) {
            (Ok(place), Some(limits)) => {
                let account = place.get().clone();
                drop(shard);
                account.gate.retune(limits, now);
                return false;
            }
            (Ok(place), None) => {
                let account = place.remove().0;
                account.gate.close(now);
                self.put_aside(&mut shard, hash, Other::Leaving(account, now));
                return true;
            }
            (Err(_), _) => {}
        }
        let other = shard.others.find_entry(hash, |other| other.is_of(tenant)).ok().map(|place| place.remove().0);
        match (other, limits) {
            (None, None) => false,
            (Some(leaving @ Other::Leaving(..)), None) => {
                self.put_aside(&mut shard, hash, leaving);
                false
            }
            (Some(Other::Declared(..)), None) => true,
            (Some(Other::Leaving(account, _)), Some(limits)) => {
                account.gate.retune(limits, now);
                self.put_in_use(&mut shard, hash, account);
                true
            }
            (Some(Other::Declared(tenant, mut dropped)), Some(limits)) => {
                if let Some(dropped) = &mut dropped {
                    dropped.stored.retune(limits);
                }
                self.put_aside(&mut shard, hash, Other::Declared(tenant, dropped));
                false
            }
            (None, Some(_)) => {
                self.put_aside(&mut shard, hash, Other::Declared(tenant.clone(), None));
                true
            }
        }
    }

    /// Under which name all that it shares with its parent is counted together.
    pub(super) fn account(&self) -> &PoolId {
        self.parent.as_ref().map_or(&self.pool.id, |parent| &parent.pool.id)
    }

    /// Whether members count any of its meters together, or did.
    pub(super) fn is_tallied(&self) -> bool {
        self.tallied.load(Ordering::Relaxed)
    }

    /// The accounts that exist.
    pub(super) fn accounts(&self) -> Vec<Arc<Account>> {
        let mut accounts = vec![self.default.clone()];
        for (_, shard) in self.shards.iter().enumerate().filter(|(nth, _)| self.is_occupied(*nth)) {
            accounts.extend(shard.read().accounts().cloned());
        }
        accounts
    }

    /// What each gate did and is doing.
    pub(super) fn traffic(&self) -> BTreeMap<Grantee, Traffic> {
        self.accounts().iter().map(|account| (account.grantee.clone(), account.gate.traffic())).collect()
    }

    /// Those at the heads of all lines ask again.
    pub(super) fn wake_heads(&self) {
        self.accounts().iter().for_each(|account| account.gate.wake_head());
    }

    /// Looks after the gates, a part of them when they are many: frees what has expired, drops gates that nobody uses and that
    /// remember nothing, and tells what the others have counted since. Returns how many wait and how many are in flight, of all.
    pub(super) fn look_after(&self, now: MonoTime, mut tell: impl FnMut(&Grantee, Glance)) -> (u64, u64) {
        let mut sweep = self.sweep.lock();
        let (next, sums) = &mut *sweep;
        let few = self.live.load(Ordering::Relaxed) <= FEW_GATES;
        let swept = if few { SHARDS } else { SHARDS_SWEPT };
        for _ in 0..swept {
            if self.is_occupied(*next) {
                sums[*next] = self.sweep_shard(*next, now, &mut tell);
            }
            *next = (*next + 1) % SHARDS;
        }
        self.default.gate.expire(now);
        let news = self.default.news();
        tell(&Grantee::Default, news);
        sums[SHARDS] = (news.waiting as u64, u64::from(news.in_flight));
        sums.iter().fold((0, 0), |sum, shard| (sum.0 + shard.0, sum.1 + shard.1))
    }

    fn sweep_shard(&self, shard: usize, now: MonoTime, tell: &mut impl FnMut(&Grantee, Glance)) -> (u64, u64) {
        let since = now.before(self.pool.idle_after);
        let (mut sum, mut any_idle) = ((0, 0), false);
        let shard = &self.shards[shard];
        let found = shard.read();
        any_idle |= found
            .others
            .iter()
            .any(|other| matches!(other, Other::Leaving(account, left_at) if account.gate.is_over(*left_at, now)));
        for account in found.accounts() {
            account.gate.expire(now);
            let news = account.news();
            sum = (sum.0 + news.waiting as u64, sum.1 + u64::from(news.in_flight));
            tell(&account.grantee, news);
            any_idle |= account.gate.is_idle(since, now);
        }
        drop(found);
        if any_idle {
            // Nobody can get at one while the shard is locked: who has it already is counted.
            let unused = |account: &Arc<Account>| Arc::strong_count(account) == 1;
            let mut shard = shard.write();
            let others = shard.others.len();
            shard.others.retain(|other| match other {
                Other::Declared(..) => true,
                Other::Leaving(account, left_at) => {
                    !(unused(account) && (account.gate.is_idle(since, now) || account.gate.is_over(*left_at, now)))
                }
            });
            let left = others - shard.others.len();
            let idle = shard.in_use.extract_if(|account| unused(account) && account.gate.is_idle(since, now));
            let idle: Vec<Arc<Account>> = idle.collect();
            self.live.fetch_sub(left + idle.len(), Ordering::Relaxed);
            let retunes = self.retunes.load(Ordering::Acquire);
            for account in idle {
                if let Grantee::Tenant(tenant) = &account.grantee {
                    let dropped = Box::new(Dropped { at: now, stored: account.gate.stored(now), retunes });
                    self.put_aside(&mut shard, self.hash(tenant), Other::Declared(tenant.clone(), Some(dropped)));
                }
            }
        }
        sum
    }

    /// What is enforced now.
    pub(super) fn tuning(&self) -> Tuning {
        let views = self.views.lock();
        let (now, wall) = (self.pool.clock.now(), self.pool.clock.wall());
        let limits = views.get(&self.pool.id).map(|view| view.limits(now, wall)).unwrap_or_default();
        let wide = self.pool.wide.load();
        let in_force = |holds: &BTreeMap<Meter, MonoTime>| {
            holds.iter().filter(|(_, until)| **until > now).map(|(meter, until)| (*meter, *until)).collect()
        };
        Tuning {
            generation: self.generation.load(Ordering::Acquire),
            limits,
            holds: in_force(&wide.holds),
            told: in_force(&wide.told),
            mode: wide.mode,
            state: wide.state,
            stamp: wide.stamp,
        }
    }
}
