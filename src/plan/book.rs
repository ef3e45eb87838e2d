//! The overrides of one pool, as members and the planner hold them: a malformed record changes nothing.

use std::collections::BTreeMap;

use super::RecordError;
use super::overrides::{Override, Target};
use crate::clock::UnixMillis;
use crate::quota::Grantee;

/// The overrides in force in one pool: per target the last good record.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct OverrideBook {
    records: BTreeMap<Target, Override>,
}

impl OverrideBook {
    /// Takes a record as written under its key.
    ///
    /// # Errors
    /// [`RecordError`] when it is malformed; the last good record of this target stays in force.
    pub fn put(&mut self, target: Target, value: &[u8]) -> Result<(), RecordError> {
        let record = Override::parse(value, &target)?;
        self.records.insert(target, record);
        Ok(())
    }

    /// Takes a record that was accepted before, for a target that has none.
    pub fn restore(&mut self, target: Target, record: Override) {
        self.records.entry(target).or_insert(record);
    }

    /// The record was removed.
    pub fn remove(&mut self, target: &Target) {
        self.records.remove(target);
    }

    /// The last good record of a target, expired or not.
    #[must_use]
    pub fn last_good(&self, target: &Target) -> Option<&Override> {
        self.records.get(target)
    }

    /// Keeps only the targets that are still written.
    pub fn retain(&mut self, keep: impl Fn(&Target) -> bool) {
        self.records.retain(|target, _| keep(target));
    }

    /// The targets whose record expired after `then`, at `now` at the latest; or, when the clock was set back, is in force
    /// again.
    pub fn ended_between(&self, then: UnixMillis, now: UnixMillis) -> impl Iterator<Item = &Target> {
        let changed = move |record: &Override| record.expired(then) != record.expired(now);
        self.records.iter().filter(move |(_, record)| changed(record)).map(|(target, _)| target)
    }

    /// The targets that have a record, in force or expired.
    pub fn targets(&self) -> impl Iterator<Item = &Target> {
        self.records.keys()
    }

    /// The record in force for `target` at `wall`.
    #[must_use]
    pub fn at(&self, target: &Target, wall: UnixMillis) -> Option<&Override> {
        self.records.get(target).filter(|record| !record.expired(wall))
    }

    /// The records in force for each tenant (`*`) and for this one.
    #[must_use]
    pub fn for_tenant(&self, grantee: &Grantee, wall: UnixMillis) -> (Option<&Override>, Option<&Override>) {
        (self.at(&Target::Every, wall), self.at(&Target::One(grantee.clone()), wall))
    }
}
