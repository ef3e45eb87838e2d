//! What others write for the leader to read once a tick: operators' overrides and policies, and who is present.
//!
//! A malformed override changes nothing: the last good one stays, also across a change of leader, and
//! `overrides-status` says what is wrong. A status whose override is gone goes too, so that a removed override cannot
//! come back as the last good one of a later malformed record. The same of policies.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tracing::{info, warn};

use super::lead::Leading;
use super::nearest;
use super::params::PoolParams;
use super::policies::{Policies, Standing};
use super::publish::PublishError;
use crate::clock::{MonoTime, UnixMillis};
use crate::plan::keyspace::{Key, Presence};
use crate::plan::{Action, Override, OverrideStatus, Target};
use crate::quota::{Grantee, PoolId, TenantId};
use crate::store::{Entry, Select, StoreError};
use crate::telemetry::Metric;

/// A record is anyone's text: a line of it is shown, no more.
const RECORD_CHARS_SHOWN: usize = 300;

/// How often it is looked whether the store has records of pools that nobody knows.
const ORPHANS_EVERY: Duration = Duration::from_secs(3_600);

type OverrideKey = (PoolId, Target);

/// What this leader has read and said so far.
pub(super) struct Overseer {
    policies: Policies,
    /// Pools that are gone, whose records are to be taken away.
    leaving: BTreeSet<PoolId>,
    /// Pools that the store had records of, and nobody knew, when that was last looked at.
    orphans: BTreeSet<PoolId>,
    orphans_at: Option<MonoTime>,
    /// Where the order of their records stood, of those too that have been taken away.
    epochs: BTreeMap<PoolId, u64>,
    /// Whether it knows what an earlier leader has said.
    oversaw: bool,
    /// The revision of each override that a status was written for.
    judged: BTreeMap<OverrideKey, u64>,
    /// Since when each record has stood there.
    since: BTreeMap<OverrideKey, (u64, UnixMillis)>,
    refused: BTreeSet<String>,
}

/// What stands in the store.
#[derive(Default)]
struct Written {
    overrides: BTreeMap<OverrideKey, Entry>,
    /// What an earlier leader has said something of, the revision and since when it knew it; read once, by a new one.
    statuses: BTreeMap<OverrideKey, Option<(u64, UnixMillis)>>,
    policies: BTreeMap<PoolId, Standing>,
    present: BTreeMap<PoolId, usize>,
}

/// A status to write, with the revision it judges; `None` takes it away.
type Said = (OverrideKey, Option<OverrideStatus>, u64);

impl Overseer {
    /// Begins a term with what holds at its beginning; with the pools whose policy was taken away, and whose records an earlier
    /// leader may not have taken away yet.
    pub(super) fn new(policies: Policies, leaving: BTreeSet<PoolId>) -> Self {
        Self {
            policies,
            leaving,
            orphans: BTreeSet::new(),
            orphans_at: None,
            epochs: BTreeMap::new(),
            oversaw: false,
            judged: BTreeMap::new(),
            since: BTreeMap::new(),
            refused: BTreeSet::new(),
        }
    }

    /// Reads, takes what is new into the planners, and says what holds.
    pub(super) async fn oversee(&mut self, leading: &Leading, term: u64) -> Result<(), PublishError> {
        let written = self.read(leading).await?;
        if let Err(error) = self.look_for_orphans(leading, &written).await {
            // It comes round again.
            warn!("cannot look for records of pools that nobody knows: {error}");
        }
        self.rule(leading, term, &written.policies).await?;
        self.date(leading.clock.wall(), &written);
        let mut said = self.judge(leading, &written);
        let gone = self.judged.keys().chain(written.statuses.keys()).filter(|key| !written.overrides.contains_key(key));
        let gone: BTreeSet<OverrideKey> = gone.cloned().collect();
        said.extend(gone.into_iter().map(|key| (key, None, 0)));
        if said.is_empty() {
            self.oversaw = true;
            return Ok(());
        }
        let records = said.iter().map(|((pool, target), status, _)| (pool.clone(), target.clone(), status.clone()));
        leading.publisher(term).statuses(records.collect()).await?;
        self.oversaw = true;
        for (key, status, revision) in said {
            if status.is_some() {
                self.judged.insert(key, revision);
            } else {
                info!(key = leading.keys().key(&Key::Override(key.0.clone(), key.1.clone())), "override removed");
                self.judged.remove(&key);
            }
        }
        Ok(())
    }

    async fn read(&mut self, leading: &Leading) -> Result<Written, StoreError> {
        let keys = leading.keys();
        // All of them: an operator who mistypes a pool must hear of it.
        let mut selects =
            vec![Select::Prefix(keys.overrides()), Select::Prefix(keys.policies()), Select::Prefix(keys.members())];
        if !self.oversaw {
            selects.push(Select::Prefix(keys.override_statuses()));
        }
        let mut written = Written::default();
        for entry in leading.store.list(&selects).await?.entries {
            match keys.parse(&entry.key) {
                Some(Key::Override(pool, target)) => drop(written.overrides.insert((pool, target), entry)),
                Some(Key::OverrideStatus(pool, target)) => {
                    let status: Option<OverrideStatus> = serde_json::from_slice(&entry.value).ok();
                    let known = status.and_then(|status| Some((status.revision, status.since_unix_ms?)));
                    written.statuses.insert((pool, target), known);
                }
                Some(Key::Policy(pool)) => {
                    let standing = Standing { value: entry.value, revision: entry.mod_revision };
                    written.policies.insert(pool, standing);
                }
                Some(Key::Member(_)) => {
                    let presence: Option<Presence> = serde_json::from_slice(&entry.value).ok();
                    for pool in presence.into_iter().flat_map(|presence| presence.pools) {
                        *written.present.entry(pool).or_default() += 1;
                    }
                }
                _ if self.refused.insert(entry.key.clone()) => {
                    leading.telemetry.add(Metric::RecordsRefused, &["key"], 1.0);
                    warn!(key = entry.key, "ignoring a key that names no pool and tenant");
                }
                _ => {}
            }
        }
        Ok(written)
    }

    /// Puts policies in force, and says what holds: pools come, change and go.
    async fn rule(
        &mut self,
        leading: &Leading,
        term: u64,
        standing: &BTreeMap<PoolId, Standing>,
    ) -> Result<(), PublishError> {
        for (pool, error) in self.policies.judge(standing) {
            reject(leading, &pool, &error);
        }
        let in_force = self.policies.in_force();
        let now = leading.clock.now();
        let (mut fresh, mut gone, mut adopted) = (Vec::new(), Vec::new(), BTreeSet::new());
        let began_at = leading.desk.with_office(|office| {
            for (id, params) in &in_force {
                match office.pools.get_mut(*id) {
                    Some(planner) if planner.params() == *params => {}
                    Some(planner) => {
                        info!(pool = %id, mode = params.mode.as_str(), "another policy is in force");
                        planner.adopt((*params).clone());
                        adopted.insert((*id).clone());
                    }
                    None => fresh.push((*params).clone()),
                }
            }
            gone.extend(office.pools.keys().filter(|id| !in_force.contains_key(id)).cloned());
            for id in &gone {
                info!(pool = %id, "the pool's policy was taken away, and the pool with it");
                self.epochs.extend(office.pools.remove(id).map(|planner| (id.clone(), planner.outbox().epoch())));
            }
            office.began_at
        });
        // Overrides of a pool that came, went or has another policy are to be judged again.
        let changed: BTreeSet<&PoolId> = fresh.iter().map(|params| &params.id).chain(&gone).chain(&adopted).collect();
        self.judged.retain(|(pool, _), _| !changed.contains(pool));
        self.leaving.extend(gone);
        if !fresh.is_empty() {
            let mut left = leading.left(fresh.iter().map(|params| &params.id)).await?;
            for params in fresh {
                info!(pool = %params.id, mode = params.mode.as_str(), "a pool by its policy");
                let (id, left) = (params.id.clone(), left.remove(&params.id).unwrap_or_default());
                let mut planner = left.planner(params, term, now, leading.clock.wall());
                // A leader that was deposed may have read the policy too, before it noticed.
                planner.learn(began_at.unwrap_or(now));
                if let Some(epoch) = self.epochs.get(&id) {
                    // Members may hold what they were given before it went.
                    planner.outbox_mut().go_on_behind(*epoch);
                    planner.learn(now);
                }
                self.leaving.remove(&id);
                leading.desk.with_office(|office| office.pools.insert(id, planner));
            }
        }
        self.see_off(leading, term).await?;
        let said = self.policies.unsaid();
        if !said.is_empty() {
            leading.publisher(term).policy_statuses(&said).await?;
            self.policies.said(&said);
        }
        Ok(())
    }

    /// Pools may be taken out of the file while nobody leads. Whose records an hour later still no policy, no file and no member
    /// has a word for, is gone.
    async fn look_for_orphans(&mut self, leading: &Leading, written: &Written) -> Result<(), StoreError> {
        let now = leading.clock.now();
        if self.orphans_at.is_some_and(|at| now.since(at) < ORPHANS_EVERY) {
            return Ok(());
        }
        let keys = leading.keys();
        let pulses = leading.store.list(&[Select::Prefix(keys.pulses())]).await?.entries;
        self.orphans_at = Some(now);
        let known = self.policies.in_force();
        let orphans = pulses.iter().filter_map(|entry| match keys.parse(&entry.key) {
            Some(Key::Pulse(pool)) => Some(pool),
            _ => None,
        });
        let orphans: BTreeSet<PoolId> = orphans
            .filter(|pool| {
                let spoken_of = written.policies.contains_key(pool) || written.present.contains_key(pool);
                !known.contains_key(pool) && !spoken_of
            })
            .collect();
        let again = orphans.intersection(&self.orphans);
        self.leaving.extend(again.inspect(|pool| info!(%pool, "nobody knows this pool: its records go")).cloned());
        self.orphans = orphans;
        Ok(())
    }

    /// Takes away the grants and pulses of pools that are gone: their members fall to their bootstrap thresholds.
    async fn see_off(&mut self, leading: &Leading, term: u64) -> Result<(), PublishError> {
        if self.leaving.is_empty() {
            return Ok(());
        }
        let keys = leading.keys();
        let of = |pool: &PoolId| {
            let one = [Key::Pulse(pool.clone()), Key::State(pool.clone())].map(|key| Select::Key(keys.key(&key)));
            one.into_iter().chain([Select::Prefix(keys.limits_of(pool))])
        };
        let selects: Vec<Select> = self.leaving.iter().flat_map(of).collect();
        let left = leading.store.list(&selects).await?.entries;
        leading.publisher(term).remove(left.into_iter().map(|entry| entry.key).collect()).await?;
        for pool in std::mem::take(&mut self.leaving) {
            self.epochs.entry(pool).or_default();
        }
        Ok(())
    }

    /// Remembers since when each record has stood there: as an earlier leader knew it, or since now.
    fn date(&mut self, wall: UnixMillis, written: &Written) {
        let known = written.statuses.iter().filter_map(|(key, known)| Some((key.clone(), (*known)?)));
        self.since.extend(known);
        self.since.retain(|key, _| written.overrides.contains_key(key));
        for (key, entry) in &written.overrides {
            let since = self.since.entry(key.clone()).or_insert((entry.mod_revision, wall));
            if since.0 != entry.mod_revision {
                // Of a malformed one the last good record holds on.
                let holds_on = Override::parse(&entry.value, &key.1).is_err();
                *since = (entry.mod_revision, if holds_on { since.1 } else { wall });
            }
        }
    }

    /// Takes what is new into the planners; the outcome is what there is to say.
    fn judge(&self, leading: &Leading, written: &Written) -> Vec<Said> {
        let judged = leading.desk.with_office(|office| {
            for (id, pool) in &mut office.pools {
                pool.set_present(written.present.get(id).copied().unwrap_or(0));
                pool.overrides_mut().retain(|target| written.overrides.contains_key(&(id.clone(), target.clone())));
                let of_pool = self.since.iter().filter(|((pool, _), _)| pool == id);
                pool.set_overridden_since(of_pool.map(|((_, target), (_, at))| (target.clone(), *at)).collect());
            }
            let mut said = Vec::new();
            for (key, entry) in &written.overrides {
                if self.judged.get(key) == Some(&entry.mod_revision) {
                    continue;
                }
                let Some(pool) = office.pools.get_mut(&key.0) else {
                    let error = format!("no pool {}: expected one of {}", key.0, names(office.pools.keys()));
                    warn!(key = entry.key, "override without effect: {error}");
                    let revision = entry.mod_revision;
                    let status = OverrideStatus {
                        accepted: false,
                        revision,
                        error: Some(error),
                        warning: None,
                        applied: None,
                        since_unix_ms: None,
                    };
                    said.push((key.clone(), Some(status), entry.mod_revision));
                    continue;
                };
                let error = pool.overrides_mut().put(key.1.clone(), &entry.value).err();
                let applied = pool.overrides_mut().last_good(&key.1).cloned();
                let warning = applied.as_ref().filter(|_| error.is_none());
                let warning = warning.and_then(|record| oddity(&key.1, record, pool.params()));
                if let Some(error) = &error {
                    leading.telemetry.add(Metric::OverridesRejected, &[key.0.as_str()], 1.0);
                    warn!(key = entry.key, "override rejected, the last good one stays: {error}");
                } else {
                    let record: String =
                        String::from_utf8_lossy(&entry.value).chars().take(RECORD_CHARS_SHOWN).collect();
                    info!(key = entry.key, %record, "override in force");
                }
                if let Some(warning) = &warning {
                    warn!(key = entry.key, "override: {warning}");
                }
                let status = OverrideStatus {
                    accepted: error.is_none(),
                    revision: entry.mod_revision,
                    error: error.map(|error| error.to_string()),
                    warning,
                    applied,
                    since_unix_ms: self.since.get(key).map(|(_, at)| *at),
                };
                said.push((key.clone(), Some(status), entry.mod_revision));
            }
            said
        });
        judged.unwrap_or_default()
    }
}

/// What is odd about an override, though it is in force: it was meant for something else.
fn oddity(target: &Target, record: &Override, params: &PoolParams) -> Option<String> {
    let near = |name: &str, known: &[String]| {
        let near = nearest(name, known.iter().map(String::as_str), 1);
        near.first().map_or_else(String::new, |near| format!("; did you mean {near}?"))
    };
    if let Target::One(Grantee::Tenant(tenant)) = target
        && !params.tenants.contains_key(tenant)
        && record.action != Action::Block
    {
        let known: Vec<String> = params.tenants.keys().map(TenantId::to_string).collect();
        let near = near(tenant.as_str(), &known);
        return Some(format!("{tenant} is no declared tenant, so only a block reaches it{near}"));
    }
    let strange = record.action.amounts()?.keys().find(|meter| !params.capacity.contains_key(meter))?;
    let known: Vec<String> = params.capacity.keys().map(ToString::to_string).collect();
    let near = near(&strange.to_string(), &known);
    Some(format!("the pool has no meter {strange}{near}"))
}

/// Counts and tells of a policy that is not taken.
pub(super) fn reject(leading: &Leading, pool: &PoolId, error: &str) {
    leading.telemetry.add(Metric::PoliciesRejected, &[pool.as_str()], 1.0);
    warn!(%pool, "policy rejected, the last good one stays: {error}");
}

fn names<'a>(pools: impl Iterator<Item = &'a PoolId>) -> String {
    pools.map(PoolId::as_str).collect::<Vec<_>>().join(", ")
}
