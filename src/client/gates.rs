//! A pool's gates: one for each tenant that is used here, made on first use and dropped when idle; and one that all tenants
//! without limits of their own share, so that a flood of made-up names neither multiplies capacity nor fills memory.
//!
//! *Order of locks*, none held across an await: the views, a shard, a gate.

use std::collections::BTreeMap;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use hashbrown::{DefaultHashBuilder, HashTable};
use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;

use super::gate::{Gate, Glance, Traffic, Wake};
use super::member::{Changes, MemberState, PoolView};
use super::pool::PoolShared;
use super::swap::Tuning;
use crate::clock::{MonoTime, UnixMillis};
use crate::limiter::{Limiter, Limits};
use crate::quota::{Grantee, Meter, PoolId, TenantId};

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
#[derive(Debug)]
pub(super) struct Account {
    pub(super) pool: Arc<PoolShared>,
    pub(super) gate: Gate<Waker>,
}

/// A tenant that has limits of its own, or had them and is still owed or owing; its gate once it was used.
#[derive(Debug)]
struct Entry {
    tenant: TenantId,
    declared: bool,
    account: Option<Arc<Account>>,
}

/// The gates of one pool.
#[derive(Debug)]
pub(super) struct Gates {
    pub(super) pool: Arc<PoolShared>,
    /// The pool over this one: both admit, or neither.
    pub(super) parent: Option<Arc<Gates>>,
    views: Views,
    hasher: DefaultHashBuilder,
    shards: Vec<RwLock<HashTable<Entry>>>,
    default: Arc<Account>,
    /// How often a tenant got or lost limits of its own.
    declared: AtomicU64,
    /// How often limits changed.
    generation: AtomicU64,
    /// How many gates there are.
    live: AtomicUsize,
    /// Which shard is looked after next, and how many wait and have expired in each, the shared gate's being the last.
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
        let default = Arc::new(Account { pool: pool.clone(), gate: Gate::new(limiter, now) });
        Self {
            pool,
            parent,
            views,
            hasher: DefaultHashBuilder::default(),
            shards: (0..SHARDS).map(|_| RwLock::default()).collect(),
            default,
            declared: AtomicU64::new(0),
            generation: AtomicU64::new(1),
            live: AtomicUsize::new(0),
            sweep: Mutex::new((0, vec![(0, 0); SHARDS + 1])),
        }
    }

    #[allow(clippy::cast_possible_truncation, reason = "the low bits choose a shard")]
    fn shard(&self, hash: u64) -> &RwLock<HashTable<Entry>> {
        // The table takes the high bits.
        &self.shards[hash as usize % SHARDS]
    }

    /// A tenant's gate: its own, or the one that all without limits of their own share. With it a number for
    /// [`Gates::is_current`].
    pub(super) fn account_of(&self, tenant: &TenantId) -> (Arc<Account>, u64) {
        let declared = self.declared.load(Ordering::Acquire);
        let hash = self.hasher.hash_one(tenant);
        let account = match self.shard(hash).read().find(hash, |entry| entry.tenant == *tenant) {
            Some(Entry { declared: true, account, .. }) => account.clone(),
            _ => Some(self.default.clone()),
        };
        (account.unwrap_or_else(|| self.first_use(tenant, hash)), declared)
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
        let Some(entry) = shard.find_mut(hash, |entry| entry.tenant == *tenant && entry.declared) else {
            return self.default.clone();
        };
        if let Some(account) = &entry.account {
            return account.clone();
        }
        let (now, wall) = (self.pool.clock.now(), self.pool.clock.wall());
        let grantee = Grantee::Tenant(tenant.clone());
        let limits = views.get(&self.pool.id).and_then(|view| view.limits_of(&grantee, now, wall)).unwrap_or_default();
        let limiter = Limiter::with_call_max(&limits, self.pool.call_max, now);
        let account = Arc::new(Account { pool: self.pool.clone(), gate: Gate::new(limiter, now) });
        entry.account = Some(account.clone());
        self.live.fetch_add(1, Ordering::Relaxed);
        account
    }

    /// Puts in force what changed in the pool's view, which the caller has locked; says whether anything did.
    pub(super) fn retune(&self, view: &PoolView, changes: &Changes, now: MonoTime, wall: UnixMillis) -> bool {
        let mut any = changes.all;
        if changes.all {
            for (grantee, account) in self.accounts() {
                if let Some(limits) = view.limits_of(&grantee, now, wall) {
                    account.gate.retune(&limits, now);
                }
            }
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
        let hash = self.hasher.hash_one(tenant);
        let mut shard = self.shard(hash).write();
        let entry = match (shard.find_entry(hash, |entry| entry.tenant == *tenant), limits) {
            (Ok(place), _) => place.into_mut(),
            (Err(_), None) => return false,
            (Err(_), Some(_)) => {
                let entry = Entry { tenant: tenant.clone(), declared: false, account: None };
                shard.insert_unique(hash, entry, |entry| self.hasher.hash_one(&entry.tenant)).into_mut()
            }
        };
        let was_declared = std::mem::replace(&mut entry.declared, limits.is_some());
        let account = entry.account.clone();
        drop(shard);
        match (account, limits) {
            (Some(account), Some(limits)) => account.gate.retune(limits, now),
            (Some(account), None) => account.gate.close(),
            (None, _) => {}
        }
        was_declared != limits.is_some()
    }

    /// The gates that are in use, with whom they are for.
    pub(super) fn accounts(&self) -> Vec<(Grantee, Arc<Account>)> {
        let mut accounts = vec![(Grantee::Default, self.default.clone())];
        for shard in &self.shards {
            let shard = shard.read();
            let used = shard.iter().filter_map(|entry| Some((entry.tenant.clone(), entry.account.clone()?)));
            accounts.extend(used.map(|(tenant, account)| (Grantee::Tenant(tenant), account)));
        }
        accounts
    }

    /// What each gate did and is doing.
    pub(super) fn traffic(&self) -> BTreeMap<Grantee, Traffic> {
        self.accounts().into_iter().map(|(grantee, account)| (grantee, account.gate.traffic())).collect()
    }

    /// Those at the heads of all lines ask again.
    pub(super) fn wake_heads(&self) {
        self.accounts().iter().for_each(|(_, account)| account.gate.wake_head());
    }

    /// Looks after the gates, a part of them when they are many: frees what has expired, drops gates that nobody uses and that
    /// remember nothing, and tells what the others count. Returns how many wait and how many have expired, of all.
    pub(super) fn look_after(&self, now: MonoTime, mut tell: impl FnMut(&Grantee, Glance)) -> (u64, u64) {
        let mut sweep = self.sweep.lock();
        let (next, sums) = &mut *sweep;
        let few = self.live.load(Ordering::Relaxed) <= FEW_GATES;
        let swept = if few { SHARDS } else { SHARDS_SWEPT };
        for _ in 0..swept {
            sums[*next] = self.sweep_shard(*next, now, &mut tell);
            *next = (*next + 1) % SHARDS;
        }
        self.default.gate.expire(now);
        let glance = self.default.gate.glance();
        tell(&Grantee::Default, glance);
        sums[SHARDS] = (glance.waiting as u64, glance.expired);
        sums.iter().fold((0, 0), |sum, shard| (sum.0 + shard.0, sum.1 + shard.1))
    }

    fn sweep_shard(&self, shard: usize, now: MonoTime, tell: &mut impl FnMut(&Grantee, Glance)) -> (u64, u64) {
        let since = now.before(self.pool.idle_after);
        let (mut sum, mut idle) = ((0, 0), false);
        for entry in self.shards[shard].read().iter() {
            let Some(account) = &entry.account else {
                idle |= !entry.declared;
                continue;
            };
            account.gate.expire(now);
            let glance = account.gate.glance();
            sum = (sum.0 + glance.waiting as u64, sum.1 + glance.expired);
            tell(&Grantee::Tenant(entry.tenant.clone()), glance);
            idle |= account.gate.is_idle(since, now);
        }
        if idle {
            self.shards[shard].write().retain(|entry| {
                // Nobody can get at it while the shard is locked: who has it already is counted.
                let idle =
                    |account: &mut Arc<Account>| Arc::strong_count(account) == 1 && account.gate.is_idle(since, now);
                if entry.account.take_if(idle).is_some() {
                    self.live.fetch_sub(1, Ordering::Relaxed);
                }
                entry.declared || entry.account.is_some()
            });
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
            state: wide.state,
            stamp: wide.stamp,
        }
    }
}
