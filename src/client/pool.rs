//! What all users of one pool in this process share, whoever's traffic it is.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;

use super::admission::Refusal;
use super::swap::{PoolWide, Swap};
use super::together::Together;
use crate::clock::{Clock, MonoTime};
use crate::observation::MeterReading;
use crate::provider::Dialect;
use crate::quota::{Meter, PoolId};
use crate::telemetry::Telemetry;

/// What all users of one pool in this process share.
#[derive(Debug)]
pub(super) struct PoolShared {
    pub id: PoolId,
    pub dialect: Dialect,
    /// How long a call may last before its place in flight is given to another.
    pub call_max: Duration,
    /// How long a tenant may not have asked before its gate is dropped, once nothing that it owes would be forgotten.
    pub idle_after: Duration,
    pub clock: Arc<dyn ClockDebug>,
    pub wide: Swap<PoolWide>,
    /// The process's way to where members count together.
    pub together: Arc<Together>,
    pub telemetry: Arc<Telemetry>,
    pub refused_for: RefusedFor,
    /// The newest-sent reading of each meter.
    pub readings: Mutex<BTreeMap<Meter, MeterReading>>,
    /// Long waits the provider asked for.
    pub long_holds: Mutex<BTreeMap<Meter, MonoTime>>,
    /// Told of refusals by the provider; gone when the client is.
    pub throttled: Weak<dyn OnThrottled>,
}

/// Refusals by what stood in the way, since they were last told: counted where many are refused at a time.
#[derive(Debug, Default)]
pub(super) struct RefusedFor([AtomicU64; Refusal::KINDS.len()]);

impl RefusedFor {
    /// One more, by its number among [`Refusal::KINDS`].
    pub(super) fn count(&self, kind: usize) {
        self.0[kind].fetch_add(1, Ordering::Relaxed);
    }

    /// Those that there were, by kind.
    pub(super) fn take(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let counts =
            Refusal::KINDS.into_iter().zip(&self.0).map(|(kind, count)| (kind, count.swap(0, Ordering::Relaxed)));
        counts.filter(|(_, count)| *count > 0)
    }
}

/// A clock that can stand in a `Debug` struct.
pub(super) trait ClockDebug: Clock + fmt::Debug {}
impl<C: Clock + fmt::Debug> ClockDebug for C {}

/// What else happens in the process when the provider refuses.
pub(super) trait OnThrottled: Send + Sync + fmt::Debug {
    /// Brakes a member without a leader, and tells the leader if there is one.
    fn on_throttled(&self, pool: &PoolId, now: MonoTime);
}
