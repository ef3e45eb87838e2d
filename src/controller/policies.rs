//! Which policy holds for each pool: the store's over the file's, the last good one over a malformed one. Pure: what stands
//! in the store in, what holds and what is to be said of it out.
//!
//! A policy in the store replaces the file's of its pool as a whole, and may be of a pool that the file has not. Taken away,
//! the file's holds again, or the pool is gone.

use std::collections::{BTreeMap, BTreeSet};

use super::params::{PoolParams, ReadPolicy};
use crate::plan::PolicyStatus;
use crate::quota::PoolId;

/// A policy as it stands in the store.
#[derive(Debug, Clone, PartialEq)]
pub struct Standing {
    /// The record.
    pub value: Vec<u8>,
    /// Its revision.
    pub revision: u64,
}

/// A status to write; `None` takes it away.
pub type Said = (PoolId, Option<PolicyStatus>);

/// The policies of all pools.
#[derive(Debug)]
pub struct Policies {
    file: BTreeMap<PoolId, PoolParams>,
    read: ReadPolicy,
    stored: BTreeMap<PoolId, Stored>,
    /// What is still to be said.
    unsaid: BTreeMap<PoolId, Option<PolicyStatus>>,
}

/// What is known of a policy in the store.
#[derive(Debug)]
struct Stored {
    /// The record that was judged last.
    revision: u64,
    /// The last good one, as read and as written; `None` when none ever was good.
    good: Option<(PoolParams, serde_json::Value)>,
}

impl Policies {
    /// The file's alone.
    #[must_use]
    pub fn new(file: &[PoolParams], read: ReadPolicy) -> Self {
        let file = file.iter().map(|pool| (pool.id.clone(), pool.clone())).collect();
        Self { file, read, stored: BTreeMap::new(), unsaid: BTreeMap::new() }
    }

    /// What an earlier leader said: its last good records hold while those in the store are malformed.
    pub fn restore(&mut self, statuses: BTreeMap<PoolId, PolicyStatus>) {
        for (pool, PolicyStatus { applied, .. }) in statuses {
            let good =
                applied.and_then(|applied| Some((self.parse(&pool, &applied.to_string().into_bytes()).ok()?, applied)));
            // Revision 0: what stands is judged again.
            self.stored.entry(pool).or_insert(Stored { revision: 0, good });
        }
    }

    /// Judges what is new in the store; returns what is wrong with those that were rejected just now.
    pub fn judge(&mut self, standing: &BTreeMap<PoolId, Standing>) -> Vec<(PoolId, String)> {
        let mut rejected = Vec::new();
        let gone: BTreeSet<PoolId> = self.stored.keys().filter(|pool| !standing.contains_key(*pool)).cloned().collect();
        for pool in gone {
            self.stored.remove(&pool);
            self.unsaid.insert(pool, None);
        }
        for (pool, Standing { value, revision }) in standing {
            if self.stored.get(pool).is_some_and(|stored| stored.revision == *revision) {
                continue;
            }
            let good = self.stored.remove(pool).and_then(|stored| stored.good);
            let (good, error) = match self.parse(pool, value) {
                // What was read as a policy is JSON.
                Ok(params) => (Some((params, serde_json::from_slice(value).unwrap_or_default())), None),
                Err(error) => (good, Some(error)),
            };
            let applied = good.as_ref().map(|(_, applied)| applied.clone());
            let status = PolicyStatus { accepted: error.is_none(), revision: *revision, error: error.clone(), applied };
            self.unsaid.insert(pool.clone(), Some(status));
            self.stored.insert(pool.clone(), Stored { revision: *revision, good });
            rejected.extend(error.map(|error| (pool.clone(), error)));
        }
        rejected
    }

    fn parse(&self, pool: &PoolId, value: &[u8]) -> Result<PoolParams, String> {
        (self.read)(pool, value)
    }

    /// What holds, by pool.
    #[must_use]
    pub fn in_force(&self) -> BTreeMap<&PoolId, &PoolParams> {
        let stored = self.stored.iter().filter_map(|(pool, stored)| Some((pool, &stored.good.as_ref()?.0)));
        self.file.iter().chain(stored).collect()
    }

    /// What is to be written of the policies, until it [was](Self::said).
    #[must_use]
    pub fn unsaid(&self) -> Vec<Said> {
        self.unsaid.iter().map(|(pool, status)| (pool.clone(), status.clone())).collect()
    }

    /// It was written.
    pub fn said(&mut self, said: &[Said]) {
        for (pool, status) in said {
            if self.unsaid.get(pool) == Some(status) {
                self.unsaid.remove(pool);
            }
        }
    }
}
