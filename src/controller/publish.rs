//! Records to transactions: each at most etcd's 128 operations, each fenced by the leader key's create revision.

use std::collections::BTreeMap;

use serde::Serialize;

use super::checkpoint::Checkpoint;
use super::outbox::Batch;
use super::policies;
use crate::plan::keyspace::{Key, Keyspace};
use crate::plan::{OverrideStatus, Pulse, Target};
use crate::quota::PoolId;
use crate::store::{Condition, Op, Outcome, Store, StoreError, TXN_OPS_MAX, Txn};

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

/// Grants that are best written at a time: those of the transactions that are under way together.
pub(super) const GRANTS_AT_A_TIME: usize = 2 * TXN_OPS_MAX;

/// Writes a term's records.
pub(super) struct Publisher<'a> {
    pub store: &'a dyn Store,
    pub keys: &'a Keyspace,
    /// The leader key's create revision, and what was put there: the fence. In a store that was restored from a backup another
    /// leader's key may be of the same revision.
    pub term: u64,
    pub leader: Vec<u8>,
}

impl Publisher<'_> {
    /// Writes the pulses of many pools.
    ///
    /// # Errors
    /// [`PublishError`]; the next tick's pulses say it all again.
    pub(super) async fn pulses(&self, pulses: &BTreeMap<PoolId, Pulse>) -> Result<(), PublishError> {
        let put = |(pool, pulse): (&PoolId, &Pulse)| self.put(&Key::Pulse(pool.clone()), pulse);
        self.commit(pulses.iter().map(put).collect::<Result<_, _>>()?).await
    }

    /// Writes grants of some pools.
    ///
    /// # Errors
    /// [`PublishError`]; what is not acknowledged is sent again.
    pub(super) async fn grants(&self, batches: &[(PoolId, Batch)]) -> Result<(), PublishError> {
        let mut ops = Vec::new();
        for (pool, batch) in batches {
            for (grantee, grant) in batch {
                let key = Key::Limits(pool.clone(), grantee.clone());
                ops.push(match grant {
                    Some(grant) => self.put(&key, grant)?,
                    None => Op::Delete { key: self.keys.key(&key) },
                });
            }
        }
        self.commit(ops).await
    }

    /// Writes what the leader says of overrides; `None` takes the status away.
    ///
    /// # Errors
    /// [`PublishError`].
    pub(super) async fn statuses(
        &self,
        statuses: Vec<(PoolId, Target, Option<OverrideStatus>)>,
    ) -> Result<(), PublishError> {
        let op = |(pool, target, status)| {
            let key = Key::OverrideStatus(pool, target);
            match status {
                Some(status) => self.put(&key, &status),
                None => Ok(Op::Delete { key: self.keys.key(&key) }),
            }
        };
        self.commit(statuses.into_iter().map(op).collect::<Result<_, _>>()?).await
    }

    /// Writes what the leader says of policies; `None` takes the status away.
    ///
    /// # Errors
    /// [`PublishError`].
    pub(super) async fn policy_statuses(&self, said: &[policies::Said]) -> Result<(), PublishError> {
        let op = |(pool, status): &policies::Said| {
            let key = Key::PolicyStatus(pool.clone());
            match status {
                Some(status) => self.put(&key, status),
                None => Ok(Op::Delete { key: self.keys.key(&key) }),
            }
        };
        self.commit(said.iter().map(op).collect::<Result<_, _>>()?).await
    }

    /// Writes what the next leader is to know.
    ///
    /// # Errors
    /// [`PublishError`].
    pub(super) async fn checkpoints(&self, checkpoints: &[(PoolId, Checkpoint)]) -> Result<(), PublishError> {
        let put = |(pool, checkpoint): &(PoolId, Checkpoint)| self.put(&Key::State(pool.clone()), checkpoint);
        self.commit(checkpoints.iter().map(put).collect::<Result<_, _>>()?).await
    }

    /// Deletes keys.
    ///
    /// # Errors
    /// [`PublishError`].
    pub(super) async fn remove(&self, gone: Vec<String>) -> Result<(), PublishError> {
        self.commit(gone.into_iter().map(|key| Op::Delete { key }).collect()).await
    }

    fn put(&self, key: &Key, record: &impl Serialize) -> Result<Op, PublishError> {
        Ok(Op::Put { key: self.keys.key(key), value: serde_json::to_vec(record)?, lease: None })
    }

    /// Commits two transactions at a time: etcd writes both to its disk at once. What comes of the second when the first fails
    /// is not known, as when an answer is lost.
    async fn commit(&self, mut ops: Vec<Op>) -> Result<(), PublishError> {
        while !ops.is_empty() {
            let mut next = || {
                let rest = ops.split_off(ops.len().min(TXN_OPS_MAX));
                std::mem::replace(&mut ops, rest)
            };
            let (first, second) = (next(), next());
            tokio::try_join!(self.commit_one(first), self.commit_one(second))?;
        }
        Ok(())
    }

    async fn commit_one(&self, ops: Vec<Op>) -> Result<(), PublishError> {
        if ops.is_empty() {
            return Ok(());
        }
        let value = Some(self.leader.clone());
        let fence = Condition { key: self.keys.key(&Key::Leader), create_revision: self.term, value };
        match self.store.commit(Txn { conditions: vec![fence], ops }).await? {
            Outcome::Committed { .. } => Ok(()),
            Outcome::Refused { .. } => Err(PublishError::Deposed),
        }
    }
}
