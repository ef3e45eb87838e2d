//! What the leader looks after now and then, behind the tick: what the next one is to know, old audit records, and how full the
//! store is.

use std::time::Duration;

use tracing::{info, warn};

use super::checkpoint::CHECKPOINT_EVERY;
use super::lead::{Leading, precise};
use super::publish::PublishError;
use crate::clock::{MonoTime, UnixMillis};
use crate::plan::keyspace::Key;
use crate::store::{Select, StoreError};
use crate::telemetry::Metric;

/// How long an audit record is kept.
pub const AUDIT_KEPT: Duration = Duration::from_secs(30 * 24 * 3_600);
const SWEEP_EVERY: Duration = Duration::from_secs(3_600);
const WEIGH_EVERY: Duration = Duration::from_secs(60);

/// When what was last looked after.
#[derive(Default)]
pub(super) struct Upkeep {
    checkpointed_at: Option<MonoTime>,
    swept_at: Option<MonoTime>,
    weighed_at: Option<MonoTime>,
    /// What was last said of the store's size.
    worried: Worry,
}

/// How much there is to worry about in the store's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
enum Worry {
    #[default]
    None,
    /// Half of the quota is used.
    Half,
    /// It takes no writes any more.
    Full,
}

impl Upkeep {
    /// Does what is due.
    pub(super) async fn attend(&mut self, leading: &Leading, term: u64, now: MonoTime) -> Result<(), PublishError> {
        let due = |at: Option<MonoTime>, every: Duration| at.is_none_or(|at| now.since(at) >= every);
        if due(self.checkpointed_at, CHECKPOINT_EVERY) {
            self.checkpointed_at = Some(now);
            checkpoint(leading, term, now).await?;
        }
        if due(self.weighed_at, WEIGH_EVERY) {
            self.weighed_at = Some(now);
            self.weigh(leading).await?;
        }
        if due(self.swept_at, SWEEP_EVERY) {
            self.swept_at = Some(now);
            sweep(leading, term, leading.clock.wall()).await?;
        }
        Ok(())
    }

    /// Looks how full the store is, and says so when that has changed.
    async fn weigh(&mut self, leading: &Leading) -> Result<(), StoreError> {
        let Some(health) = leading.store.health().await? else { return Ok(()) };
        leading.telemetry.set(Metric::StoreBytes, &[], precise(health.file_bytes));
        let quota_bytes = health.quota_bytes.unwrap_or(leading.params.store_quota_bytes);
        leading.telemetry.set(Metric::StoreQuota, &[], precise(quota_bytes));
        leading.telemetry.set(Metric::StoreFull, &[], if health.no_space() { 1.0 } else { 0.0 });
        let worry = match health {
            _ if health.no_space() => Worry::Full,
            _ if health.file_bytes >= quota_bytes / 2 => Worry::Half,
            _ => Worry::None,
        };
        if worry != self.worried {
            let file_bytes = health.file_bytes;
            match worry {
                Worry::Full => {
                    warn!(
                        file_bytes,
                        quota_bytes, "the store is full and takes no writes: compact, defragment, disarm"
                    );
                }
                Worry::Half => {
                    warn!(file_bytes, quota_bytes, "the store is more than half full: does it compact by itself?");
                }
                Worry::None => info!(file_bytes, quota_bytes, "the store has room again"),
            }
            self.worried = worry;
        }
        Ok(())
    }
}

/// Writes what the next leader is to know of each pool.
async fn checkpoint(leading: &Leading, term: u64, now: MonoTime) -> Result<(), PublishError> {
    let wall = leading.clock.wall();
    let checkpoints = leading.desk.with_office(|office| {
        office.pools.iter().map(|(id, pool)| (id.clone(), pool.checkpoint(now, wall))).collect::<Vec<_>>()
    });
    leading.publisher(term).checkpoints(&checkpoints.unwrap_or_default()).await
}

/// Deletes audit records that are too old.
async fn sweep(leading: &Leading, term: u64, wall: UnixMillis) -> Result<(), PublishError> {
    let keys = leading.keys();
    let kept_ms = u64::try_from(AUDIT_KEPT.as_millis()).unwrap_or(u64::MAX);
    let oldest = UnixMillis(wall.0.saturating_sub(kept_ms));
    let listing = leading.store.list(&[Select::Prefix(keys.audits())]).await?;
    let old = listing.entries.into_iter().map(|entry| entry.key);
    let old = old.filter(|key| matches!(keys.parse(key), Some(Key::Audit { at, .. }) if at < oldest));
    leading.publisher(term).remove(old.collect()).await
}
