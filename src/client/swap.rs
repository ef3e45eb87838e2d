//! The hot swap: what a pool enforces now, behind one atomic pointer.
//!
//! Each decision loads the pointer exactly once. A gate compares the generation with its own and retunes its limiter
//! under its own lock, at its next decision.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};
use parking_lot::Mutex;

use super::member::MemberState;
use crate::clock::MonoTime;
use crate::limiter::Limits;
use crate::plan::Stamp;
use crate::quota::{Grantee, Meter, TenantId};

/// What a pool enforces now.
#[derive(Debug, Clone)]
pub struct Tuning {
    /// Counts changes of the limits.
    pub generation: u64,
    /// When the limits came into force.
    pub since: MonoTime,
    /// Per tenant with a grant, and `@default`.
    pub limits: Arc<HashMap<Grantee, Limits>>,
    /// Meters on which this process does not send until then: its own reflexes.
    pub holds: BTreeMap<Meter, MonoTime>,
    /// Meters that the leader holds; each pulse replaces the last one's, so what it no longer tells is lifted.
    pub told: BTreeMap<Meter, MonoTime>,
    /// How this member stands to the leader.
    pub state: MemberState,
    /// The stamp of the pulse it rests on.
    pub stamp: Stamp,
}

impl Tuning {
    /// What holds before anything was read.
    #[must_use]
    pub fn first(limits: HashMap<Grantee, Limits>, state: MemberState, now: MonoTime) -> Self {
        Self {
            generation: 1,
            since: now,
            limits: Arc::new(limits),
            holds: BTreeMap::new(),
            told: BTreeMap::new(),
            state,
            stamp: Stamp::default(),
        }
    }

    /// What this member enforces for a tenant: its own limits, or those that all without a grant share.
    #[must_use]
    pub fn limits_of(&self, tenant: &TenantId) -> Option<&Limits> {
        self.limits.get(&Grantee::Tenant(tenant.clone())).or_else(|| self.limits.get(&Grantee::Default))
    }

    /// Every hold, a meter perhaps twice.
    pub fn all_holds(&self) -> impl Iterator<Item = (&Meter, &MonoTime)> {
        self.holds.iter().chain(&self.told)
    }

    pub(super) fn hold(&mut self, holds: &[(Meter, MonoTime)]) {
        for (meter, until) in holds {
            let held = self.holds.entry(*meter).or_insert(*until);
            *held = (*held).max(*until);
        }
    }
}

/// The atomic pointer to a [`Tuning`]. Readers never wait; writers follow one another, so none undoes what another did.
#[derive(Debug)]
pub(super) struct Swap {
    tuning: ArcSwap<Tuning>,
    writer: Mutex<()>,
}

impl Swap {
    /// Begins with `tuning`.
    #[must_use]
    pub(super) fn new(tuning: Tuning) -> Self {
        Self { tuning: ArcSwap::from_pointee(tuning), writer: Mutex::new(()) }
    }

    /// The tuning now; load once a decision.
    #[must_use]
    pub(super) fn load(&self) -> Guard<Arc<Tuning>> {
        self.tuning.load()
    }

    /// Puts in force what `change` makes of the tuning; returns what it replaced and what it became, if anything.
    pub(super) fn update(&self, change: impl FnOnce(&Tuning) -> Option<Tuning>) -> Option<(Arc<Tuning>, Arc<Tuning>)> {
        let _one_at_a_time = self.writer.lock();
        let known = self.tuning.load_full();
        let changed = Arc::new(change(&known)?);
        self.tuning.store(changed.clone());
        Some((known, changed))
    }

    /// Holds these meters until then; a second hold never shortens the first.
    pub(super) fn hold(&self, holds: &[(Meter, MonoTime)]) {
        if !holds.is_empty() {
            self.update(|known| {
                let mut tuning = known.clone();
                tuning.hold(holds);
                Some(tuning)
            });
        }
    }
}
