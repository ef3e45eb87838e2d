//! The watch session without its I/O: lists and changes in, updates to pool views out.
//!
//! - A list is *diffed* against what is known, never purged and refilled: there is no moment without limits.
//! - A pulse first seen in a list counts only if the leader key is in the same list.
//! - Another cluster id, a list at a lower revision (a restored backup), or one that holds something older than is known (a
//!   restored backup that has been written to since) restarts the order of records; levels stay.
//! - A malformed record changes nothing.
//! - Only what the process needs is followed: the leader, and of each pool the pulse, the overrides and the grants, of the
//!   tenants that it says it serves alone where they are few.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::member::{Order, PoolView};
use crate::clock::MonoTime;
use crate::plan::keyspace::{Key, Keyspace, LeaderRecord};
use crate::plan::{Grant, OverrideStatus, Pulse, Reply, Target};
use crate::quota::{Grantee, PoolId, TenantId};
use crate::store::{Change, Entry, Listing, Select};

/// More tenants than these are not followed one by one: each is a watch of its own to the store.
pub const TENANTS_FOLLOWED_MAX: usize = 64;

/// Something worth counting and saying once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// A record was malformed and changes nothing.
    RecordRefused {
        /// What kind of record.
        kind: &'static str,
        /// Its key.
        key: String,
        /// What is wrong.
        error: String,
    },
    /// The store is another one, or went back in time.
    OrderRestarted,
}

/// A reply of a leader that was deposed and does not know it yet: dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("reply of term {replied}: the leader key is of term {known}")]
pub struct OldTerm {
    /// The reply's term.
    pub replied: u64,
    /// The newest term that the store told of.
    pub known: u64,
}

/// The session of one process.
#[derive(Debug)]
pub struct Session {
    keys: Keyspace,
    /// The pools, and of each the tenants that are followed alone; none: all.
    pools: BTreeMap<PoolId, BTreeSet<TenantId>>,
    cluster_id: Option<u64>,
    revision: u64,
    leader: Option<LeaderRecord>,
    term: u64,
    /// When the store last said anything.
    heard_at: Option<MonoTime>,
}

impl Session {
    /// A session for these pools.
    #[must_use]
    pub fn new(keys: Keyspace, pools: impl IntoIterator<Item = PoolId>) -> Self {
        let pools = pools.into_iter().map(|pool| (pool, BTreeSet::new())).collect();
        Self { keys, pools, cluster_id: None, revision: 0, leader: None, term: 0, heard_at: None }
    }

    /// The same for one more pool, of which it serves these tenants; none: any.
    #[must_use]
    pub fn following(mut self, pool: PoolId, tenants: BTreeSet<TenantId>) -> Self {
        let few = tenants.len() <= TENANTS_FOLLOWED_MAX;
        self.pools.insert(pool, if few { tenants } else { BTreeSet::new() });
        self
    }

    /// What to list.
    #[must_use]
    pub fn list_selects(&self) -> Vec<Select> {
        let statuses = self.pools.keys().map(|pool| Select::Prefix(self.keys.override_statuses_of(pool)));
        self.watch_selects().into_iter().chain(statuses).collect()
    }

    /// What to watch: the leader, and per pool its pulse, overrides and grants.
    #[must_use]
    pub fn watch_selects(&self) -> Vec<Select> {
        let mut selects = vec![Select::Key(self.keys.key(&Key::Leader))];
        for (pool, tenants) in &self.pools {
            selects.push(Select::Key(self.keys.key(&Key::Pulse(pool.clone()))));
            selects.push(Select::Prefix(self.keys.overrides_of(pool)));
            if tenants.is_empty() {
                selects.push(Select::Prefix(self.keys.limits_of(pool)));
                continue;
            }
            let own = tenants.iter().cloned().map(Grantee::Tenant);
            let grant = |grantee| Select::Key(self.keys.key(&Key::Limits(pool.clone(), grantee)));
            selects.extend(own.chain([Grantee::Default]).map(grant));
        }
        selects
    }

    /// Where to watch from.
    #[must_use]
    pub fn next_revision(&self) -> u64 {
        self.revision + 1
    }

    /// Who leads, if anyone.
    #[must_use]
    pub fn leader(&self) -> Option<&LeaderRecord> {
        self.leader.as_ref()
    }

    /// The leader's term, 0 before any was seen.
    #[must_use]
    pub fn term(&self) -> u64 {
        self.term
    }

    /// The store said something on the watch. It may be no more than that it is alive, and never means that all is known.
    pub fn on_word(&mut self, now: MonoTime) {
        self.heard_at = Some(now);
    }

    /// How long ago the store last said anything; `None` before it ever did.
    #[must_use]
    pub fn silence(&self, now: MonoTime) -> Option<Duration> {
        self.heard_at.map(|at| now.since(at))
    }

    /// Takes a list: diffs it against the views.
    pub fn on_list(&mut self, listing: &Listing, views: &mut BTreeMap<PoolId, PoolView>, now: MonoTime) -> Vec<Notice> {
        self.on_word(now);
        let mut notices = Vec::new();
        let other_cluster = self.cluster_id.is_some_and(|id| id != listing.cluster_id);
        if other_cluster || listing.revision < self.revision {
            self.restart_order(views, &mut notices);
        }
        self.cluster_id = Some(listing.cluster_id);
        self.revision = listing.revision;

        let mut grants: BTreeSet<(PoolId, Grantee)> = BTreeSet::new();
        let mut overrides: BTreeSet<(PoolId, Target)> = BTreeSet::new();
        let mut pulses: BTreeSet<PoolId> = BTreeSet::new();
        let leader_key = self.keys.key(&Key::Leader);
        let led = listing.entries.iter().any(|entry| entry.key == leader_key);
        if !led {
            self.leader = None;
        }
        for entry in &listing.entries {
            match self.keys.parse(&entry.key) {
                Some(Key::Limits(pool, grantee)) => drop(grants.insert((pool, grantee))),
                Some(Key::Override(pool, target)) => drop(overrides.insert((pool, target))),
                Some(Key::Pulse(pool)) => drop(pulses.insert(pool)),
                _ => {}
            }
        }
        if self.take(listing, led, views, now, &mut notices) == Order::Older {
            notices.clear();
            self.restart_order(views, &mut notices);
            self.take(listing, led, views, now, &mut notices);
        }
        for (id, view) in views {
            if !pulses.contains(id) {
                view.on_pulse_removed();
            }
            view.retain(
                |grantee| grants.contains(&(id.clone(), grantee.clone())),
                |target| overrides.contains(&(id.clone(), target.clone())),
            );
        }
        notices
    }

    fn restart_order(&mut self, views: &mut BTreeMap<PoolId, PoolView>, notices: &mut Vec<Notice>) {
        views.values_mut().for_each(PoolView::restart_order);
        self.term = 0;
        notices.push(Notice::OrderRestarted);
    }

    /// Takes each record of a list; says whether any was older than what is known.
    fn take(
        &mut self,
        listing: &Listing,
        led: bool,
        views: &mut BTreeMap<PoolId, PoolView>,
        now: MonoTime,
        notices: &mut Vec<Notice>,
    ) -> Order {
        let orders = listing.entries.iter().map(|entry| self.on_put(entry, led, views, now, notices));
        orders.max().unwrap_or(Order::Newer)
    }

    /// Takes changes, in the order they came.
    pub fn on_changes(
        &mut self,
        changes: &[Change],
        revision: u64,
        views: &mut BTreeMap<PoolId, PoolView>,
        now: MonoTime,
    ) -> Vec<Notice> {
        let mut notices = Vec::new();
        for change in changes {
            match change {
                // A pulse that arrives as an event was written just now, by a leader: the fence saw to that.
                Change::Put(entry) => drop(self.on_put(entry, true, views, now, &mut notices)),
                Change::Delete { key, .. } => self.on_delete(key, views),
            }
        }
        self.revision = self.revision.max(revision);
        notices
    }

    /// Takes the leader's reply to a report that was sent at `asked_at`.
    ///
    /// # Errors
    /// [`OldTerm`]: nothing has changed.
    pub fn on_reply(
        &self,
        reply: &Reply,
        asked_at: MonoTime,
        views: &mut BTreeMap<PoolId, PoolView>,
    ) -> Result<(), OldTerm> {
        if reply.term < self.term {
            return Err(OldTerm { replied: reply.term, known: self.term });
        }
        // Counted from the question, not the answer: the leader's lease then never ends before ours.
        let until = asked_at + Duration::from_millis(reply.share_valid_ms);
        for (pool, view) in views {
            view.on_reply(reply.shares.get(pool).cloned().unwrap_or_default(), until);
        }
        Ok(())
    }

    fn on_put(
        &mut self,
        entry: &Entry,
        live: bool,
        views: &mut BTreeMap<PoolId, PoolView>,
        now: MonoTime,
        notices: &mut Vec<Notice>,
    ) -> Order {
        let mut refuse = |kind: &'static str, error: String| {
            notices.push(Notice::RecordRefused { kind, key: entry.key.clone(), error });
            Order::Newer
        };
        match self.keys.parse(&entry.key) {
            Some(Key::Leader) => return self.on_leader(entry, notices),
            Some(Key::Limits(pool, grantee)) => {
                let Some(view) = views.get_mut(&pool) else { return Order::Newer };
                return match Grant::parse(&entry.value) {
                    Ok(grant) => view.on_grant(grantee, grant),
                    Err(error) => refuse("grant", error.to_string()),
                };
            }
            Some(Key::Pulse(pool)) => {
                let Some(view) = views.get_mut(&pool) else { return Order::Newer };
                return match Pulse::parse(&entry.value) {
                    Ok(pulse) => view.on_pulse(pulse, live, now),
                    Err(error) => refuse("pulse", error.to_string()),
                };
            }
            Some(Key::Override(pool, target)) => {
                let Some(view) = views.get_mut(&pool) else { return Order::Newer };
                if let Err(error) = view.on_override(target, Some(&entry.value)) {
                    refuse("override", error.to_string());
                }
            }
            Some(Key::OverrideStatus(pool, target)) => {
                let status: Option<OverrideStatus> = serde_json::from_slice(&entry.value).ok();
                if let (Some(view), Some(record)) = (views.get_mut(&pool), status.and_then(|s| s.applied)) {
                    view.on_override_restored(target, record);
                }
            }
            // Policy is the leader's to judge: what members must know of it is in the pulse.
            Some(Key::Policy(_) | Key::PolicyStatus(_) | Key::Member(_) | Key::State(_) | Key::Audit { .. }) => {}
            None => drop(refuse("key", "names no pool and tenant".into())),
        }
        Order::Newer
    }

    fn on_leader(&mut self, entry: &Entry, notices: &mut Vec<Notice>) -> Order {
        match serde_json::from_slice(&entry.value) {
            Ok(leader) => {
                self.leader = Some(leader);
                let order = if entry.create_revision < self.term { Order::Older } else { Order::Newer };
                self.term = self.term.max(entry.create_revision);
                order
            }
            Err(error) => {
                let (key, error) = (entry.key.clone(), error.to_string());
                notices.push(Notice::RecordRefused { kind: "leader", key, error });
                Order::Newer
            }
        }
    }

    fn on_delete(&mut self, key: &str, views: &mut BTreeMap<PoolId, PoolView>) {
        match self.keys.parse(key) {
            Some(Key::Leader) => self.leader = None,
            Some(Key::Limits(pool, grantee)) => {
                if let Some(view) = views.get_mut(&pool) {
                    view.on_grant_removed(&grantee);
                }
            }
            Some(Key::Pulse(pool)) => {
                if let Some(view) = views.get_mut(&pool) {
                    view.on_pulse_removed();
                }
            }
            Some(Key::Override(pool, target)) => {
                if let Some(view) = views.get_mut(&pool) {
                    // Removing a record cannot fail.
                    let _ = view.on_override(target, None);
                }
            }
            _ => {}
        }
    }
}
