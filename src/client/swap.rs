//! The hot swap: what a pool enforces now, behind one atomic pointer.
//!
//! Each decision loads the pointer exactly once. A gate compares the generation with its own and retunes its limiter
//! under its own lock; a swap therefore costs the same whatever the number of tenants waiting behind it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};

use super::member::MemberState;
use crate::clock::MonoTime;
use crate::limiter::Limits;
use crate::plan::Stamp;
use crate::quota::{Grantee, Meter};

/// What a pool enforces now.
#[derive(Debug, Clone)]
pub struct Tuning {
    /// Counts changes of the limits.
    pub generation: u64,
    /// When the limits came into force.
    pub since: MonoTime,
    /// Per tenant with a grant, and `@default`.
    pub limits: Arc<HashMap<Grantee, Limits>>,
    /// Meters on which nobody sends until then.
    pub holds: BTreeMap<Meter, MonoTime>,
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
            state,
            stamp: Stamp::default(),
        }
    }
}

/// The atomic pointer to a [`Tuning`].
#[derive(Debug)]
pub(super) struct Swap(ArcSwap<Tuning>);

impl Swap {
    /// Begins with `tuning`.
    #[must_use]
    pub(super) fn new(tuning: Tuning) -> Self {
        Self(ArcSwap::from_pointee(tuning))
    }

    /// The tuning now; load once a decision.
    #[must_use]
    pub(super) fn load(&self) -> Guard<Arc<Tuning>> {
        self.0.load()
    }

    /// Puts a new tuning in force.
    pub(super) fn store(&self, tuning: Tuning) {
        self.0.store(Arc::new(tuning));
    }
}
