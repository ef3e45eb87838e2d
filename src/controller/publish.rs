//! Publications to transactions: each at most etcd's 128 operations, each fenced by the leader key's create revision.

use crate::plan::keyspace::{Key, Keyspace};
use crate::plan::{OverrideStatus, Target};
use crate::quota::PoolId;
use crate::store::{Condition, Op, Outcome, Store, StoreError, TXN_OPS_MAX, Txn};

use super::planner::Publication;

/// Why records were not written.
#[derive(Debug, thiserror::Error)]
pub(super) enum PublishError {
    /// Another leader rules: the fence refused the transaction.
    #[error("deposed: the leader key is not ours any more")]
    Deposed,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A record could not be written as JSON.
    #[error("cannot write a record: {0}")]
    Record(#[from] serde_json::Error),
}

/// Writes a publication: the pulse first, alone, so that a cut overtakes the grants.
///
/// # Errors
/// [`PublishError`]; what was not written is planned again at the next tick.
pub(super) async fn publish(
    store: &dyn Store,
    keys: &Keyspace,
    term: u64,
    pool: &PoolId,
    publication: &Publication,
) -> Result<(), PublishError> {
    let put = |key: Key, value: Vec<u8>| Op::Put { key: keys.key(&key), value, lease: None };
    commit(store, keys, term, vec![put(Key::Pulse(pool.clone()), serde_json::to_vec(&publication.pulse)?)]).await?;
    let mut ops = Vec::with_capacity(publication.grants.len() + publication.removed.len());
    for (grantee, grant) in &publication.grants {
        ops.push(put(Key::Limits(pool.clone(), grantee.clone()), serde_json::to_vec(grant)?));
    }
    for grantee in &publication.removed {
        ops.push(Op::Delete { key: keys.key(&Key::Limits(pool.clone(), grantee.clone())) });
    }
    commit(store, keys, term, ops).await
}

/// Writes what the leader says of overrides; `None` takes the status away.
///
/// # Errors
/// [`PublishError`].
pub(super) async fn publish_statuses(
    store: &dyn Store,
    keys: &Keyspace,
    term: u64,
    statuses: Vec<(PoolId, Target, Option<OverrideStatus>)>,
) -> Result<(), PublishError> {
    let mut ops = Vec::with_capacity(statuses.len());
    for (pool, target, status) in statuses {
        let key = keys.key(&Key::OverrideStatus(pool, target));
        ops.push(match status {
            Some(status) => Op::Put { key, value: serde_json::to_vec(&status)?, lease: None },
            None => Op::Delete { key },
        });
    }
    commit(store, keys, term, ops).await
}

/// Deletes keys.
///
/// # Errors
/// [`PublishError`].
pub(super) async fn remove(
    store: &dyn Store,
    keys: &Keyspace,
    term: u64,
    gone: Vec<String>,
) -> Result<(), PublishError> {
    commit(store, keys, term, gone.into_iter().map(|key| Op::Delete { key }).collect()).await
}

async fn commit(store: &dyn Store, keys: &Keyspace, term: u64, mut ops: Vec<Op>) -> Result<(), PublishError> {
    while !ops.is_empty() {
        let rest = ops.split_off(ops.len().min(TXN_OPS_MAX));
        let fence = Condition { key: keys.key(&Key::Leader), create_revision: term };
        match store.commit(Txn { conditions: vec![fence], ops }).await? {
            Outcome::Committed { .. } => ops = rest,
            Outcome::Refused { .. } => return Err(PublishError::Deposed),
        }
    }
    Ok(())
}
