//! The leader's lease, in time.

use std::time::Duration;

/// The leader's lease.
pub const LEADER_TTL: Duration = Duration::from_secs(3);
/// How long after a confirmed keep-alive a leader may write: the TTL less one second for doubt.
pub(super) const LEASE_FRESH_FOR: Duration = Duration::from_secs(2);
/// How often a leader keeps its lease alive.
pub const KEEP_ALIVE_EVERY: Duration = Duration::from_millis(700);
