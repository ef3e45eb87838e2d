//! The hot swap: what holds for all tenants of a pool now, behind one atomic pointer.
//!
//! A decision reads the version, and the pointer only when that has moved. Readers never wait; writers follow one
//! another, so none undoes what another did.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;

use super::cells::{Cells, Lock, Native, Number, Pointer};
use super::heard::MemberState;
use crate::clock::MonoTime;
use crate::limiter::{Hold, Limits};
use crate::plan::{Mode, Stamp};
use crate::quota::{Grantee, Meter, TenantId};

/// What a pool enforces now, as [`Pool::tuning`](super::Pool::tuning) tells it.
#[derive(Debug, Clone)]
pub struct Tuning {
    /// Counts changes of the limits.
    pub generation: u64,
    /// Per tenant with a grant, and `@default`.
    pub limits: HashMap<Grantee, Limits>,
    /// Meters on which this process does not send until then: its own reflexes.
    pub holds: BTreeMap<Meter, MonoTime>,
    /// Meters that the leader holds; each pulse replaces the last one's, so what it no longer tells is lifted.
    pub told: BTreeMap<Meter, MonoTime>,
    /// What becomes of the limits: by this member's own word, or the pool's policy.
    pub mode: Mode,
    /// How this member stands to the leader.
    pub state: MemberState,
    /// The stamp of the pulse it rests on.
    pub stamp: Stamp,
}

impl Tuning {
    /// What this member enforces for a tenant: its own limits, or those that all without a grant share.
    #[must_use]
    pub fn limits_of(&self, tenant: &TenantId) -> Option<&Limits> {
        self.limits.get(&Grantee::Tenant(tenant.clone())).or_else(|| self.limits.get(&Grantee::Default))
    }
}

/// What holds for all tenants of a pool.
#[derive(Debug, Clone, PartialEq)]
pub struct PoolWide {
    /// This process's own reflexes: no calls that these meters count until then.
    pub holds: BTreeMap<Meter, MonoTime>,
    /// What the leader holds.
    pub told: BTreeMap<Meter, MonoTime>,
    /// What becomes of the limits.
    pub mode: Mode,
    /// How this member stands to the leader.
    pub state: MemberState,
    /// The stamp of the pulse it rests on.
    pub stamp: Stamp,
}

impl PoolWide {
    /// Before anything was read.
    #[must_use]
    pub fn new(state: MemberState) -> Self {
        Self { holds: BTreeMap::new(), told: BTreeMap::new(), mode: Mode::default(), state, stamp: Stamp::default() }
    }

    /// The holds of both kinds, of each meter the one that ends last.
    #[must_use]
    pub fn all_holds(&self) -> Vec<Hold> {
        let mut all = self.told.clone();
        later_of_each(&mut all, self.holds.iter().map(|(meter, until)| (*meter, *until)));
        all.into_iter().map(|(meter, until)| Hold { meter, until }).collect()
    }
}

/// A second hold never shortens the first.
fn later_of_each(holds: &mut BTreeMap<Meter, MonoTime>, more: impl IntoIterator<Item = (Meter, MonoTime)>) {
    for (meter, until) in more {
        let held = holds.entry(meter).or_insert(until);
        *held = (*held).max(until);
    }
}

/// A value that is replaced while others read it.
#[derive(Debug)]
pub struct Swap<T: Send + Sync + fmt::Debug, C: Cells = Native> {
    value: C::Pointer<T>,
    version: C::Number,
    writer: C::Lock<()>,
}

impl<T: Send + Sync + fmt::Debug, C: Cells> Swap<T, C> {
    /// Begins with `value`, as version 1.
    #[must_use]
    pub fn new(value: T) -> Self {
        Self { value: C::Pointer::new(Arc::new(value)), version: C::Number::new(1), writer: C::Lock::new(()) }
    }

    /// How often the value was replaced. Who reads a version, then loads, has that version's value or a later one.
    #[must_use]
    #[inline]
    pub fn version(&self) -> u64 {
        self.version.get()
    }

    /// The value now.
    #[must_use]
    pub fn load(&self) -> Arc<T> {
        self.value.load()
    }

    /// Puts in force what `change` makes of the value; returns what it replaced and what it became, if anything.
    pub fn update(&self, change: impl FnOnce(&T) -> Option<T>) -> Option<(Arc<T>, Arc<T>)> {
        self.writer.with(|()| {
            let known = self.value.load();
            let changed = Arc::new(change(&known)?);
            self.value.store(changed.clone());
            // After the value: the version is what tells of it.
            self.version.set(self.version.get() + 1);
            Some((known, changed))
        })
    }
}

impl<C: Cells> Swap<PoolWide, C> {
    /// Holds these meters until then; a second hold never shortens the first.
    pub fn hold(&self, holds: &[(Meter, MonoTime)]) {
        if !holds.is_empty() {
            self.update(|known| {
                let mut wide = known.clone();
                later_of_each(&mut wide.holds, holds.iter().copied());
                Some(wide)
            });
        }
    }
}
