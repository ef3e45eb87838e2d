//! What must hold, judged by slow and obvious means from what the store was seen to hold.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use tidegate::client::PoolView;
use tidegate::clock::{Clock, MonoTime, UnixMillis};
use tidegate::config::policy;
use tidegate::controller::PoolParams;
use tidegate::plan::keyspace::{Key, Keyspace};
use tidegate::plan::{Action, Grant, Mode, Override, Pulse, Rate, Reply, Stamp, Target};
use tidegate::quota::{Grantee, Meter, PoolId, TenantId};
use tidegate::store::{Change, Kv};

use super::event::Of;
use super::member::Member;

const RPM: Meter = Meter::REQUESTS_PER_MINUTE;
/// How long a place may still be used after a grant took it away: a lease, what a member may notice late, and the way of a
/// report.
const PLACES_KEPT: Duration = Duration::from_secs(9);
/// Gates that were not used for this long may have been made anew.
const IDLE: Duration = Duration::from_secs(3);
const EPSILON: f64 = 1e-6;
/// The most of a threshold that is safe.
const SAFE: f64 = 0.5;

/// What one gate may have stored: a bucket that follows the limits in force and forgets nothing.
#[derive(Debug, Clone, Copy)]
struct Stored {
    level: f64,
    rate_per_s: f64,
    burst: f64,
    at: MonoTime,
    used_at: Option<MonoTime>,
    present: bool,
}

impl Stored {
    fn accrue(&mut self, now: MonoTime) {
        self.level = (self.level + self.rate_per_s * now.seconds_since(self.at)).min(self.burst.max(self.level));
        self.at = now;
    }
}

/// What each gate of a member may have stored.
#[derive(Debug, Default)]
pub struct Twin {
    stored: BTreeMap<(PoolId, Grantee), Stored>,
}

impl Twin {
    /// Follows what was just put in force.
    pub fn retune(&mut self, views: &BTreeMap<PoolId, PoolView>, now: MonoTime, wall: UnixMillis) {
        for (id, view) in views {
            let limits = view.limits(now, wall);
            for ((_, grantee), stored) in self.stored.iter_mut().filter(|((pool, _), _)| pool == id) {
                if !limits.contains_key(grantee) && stored.present {
                    stored.accrue(now);
                    (stored.present, stored.rate_per_s) = (false, 0.0);
                }
            }
            for (grantee, limits) in limits {
                let Some(limit) = limits.meters.get(&RPM) else { continue };
                let (rate_per_s, burst) = (RPM.per_second(limit.rate.rate), limit.rate.burst);
                let first = rate_per_s.min(burst);
                // A process that knows nothing yet may send one request.
                let first = if grantee == Grantee::Default { first.max(1.0) } else { first };
                let stored = self.stored.entry((id.clone(), grantee)).or_insert(Stored {
                    level: first,
                    rate_per_s,
                    burst,
                    at: now,
                    used_at: None,
                    present: true,
                });
                stored.accrue(now);
                if !std::mem::replace(&mut stored.present, true) {
                    stored.level = stored.level.max(first);
                }
                (stored.rate_per_s, stored.burst) = (rate_per_s, burst);
                stored.level = stored.level.min(burst);
            }
        }
    }

    /// A request asks: its gate may be a new one, which begins with a second's worth.
    pub fn asked(&mut self, pool: &PoolId, tenant: &TenantId, view: &PoolView, now: MonoTime, wall: UnixMillis) {
        let Some((grantee, stored)) = self.of(pool, tenant, view, now) else { return };
        if stored.used_at.is_none_or(|at| now.since(at) >= IDLE) {
            // Of the limits of now: what has just expired is put in force elsewhere with the next look at the clock.
            let limits = view.limits_of(&grantee, now, wall).unwrap_or_default();
            if let Some(limit) = limits.meters.get(&RPM) {
                stored.rate_per_s = stored.rate_per_s.max(RPM.per_second(limit.rate.rate));
                stored.burst = stored.burst.max(limit.rate.burst);
            }
            stored.level = stored.level.max(stored.rate_per_s.min(stored.burst));
        }
        stored.used_at = Some(now);
    }

    fn of(
        &mut self,
        pool: &PoolId,
        tenant: &TenantId,
        view: &PoolView,
        now: MonoTime,
    ) -> Option<(Grantee, &mut Stored)> {
        let own = (pool.clone(), Grantee::Tenant(tenant.clone()));
        let has_own = self.stored.get(&own).is_some_and(|stored| stored.present)
            && view.limits_of(&own.1, now, UnixMillis(0)).is_some();
        let key = if has_own { own } else { (pool.clone(), Grantee::Default) };
        let stored = self.stored.get_mut(&key)?;
        stored.accrue(now);
        Some((key.1, stored))
    }

    /// A request was admitted: there must have been one stored.
    pub fn admitted(&mut self, pool: &PoolId, tenant: &TenantId, view: &PoolView, now: MonoTime) -> Result<(), String> {
        if view.mode() != Mode::Enforce {
            // Nothing is refused there.
            return Ok(());
        }
        let Some((grantee, stored)) = self.of(pool, tenant, view, now) else { return Ok(()) };
        if stored.level < 1.0 - 1e-3 {
            return Err(format!(
                "a burst: {pool}/{grantee} admits a request with {:.3} stored, at {:.3}/s and a burst of {:.3}",
                stored.level, stored.rate_per_s, stored.burst
            ));
        }
        stored.level -= 1.0;
        Ok(())
    }
}

/// An operator's record as it was written: bytes, good or not; `None` when it was taken away.
type Written = (MonoTime, u64, Option<Vec<u8>>);

/// Places granted, one grant after another, and until when each was.
type Places = VecDeque<(u32, Option<MonoTime>)>;

/// What the store was seen to hold.
#[derive(Debug, Default)]
pub struct Truth {
    /// Every grant ever written: a stamp may come again after a backup was restored.
    grants: BTreeMap<(PoolId, Grantee, Stamp), Vec<Grant>>,
    /// The newest stamp under each key, and since when.
    stamps: BTreeMap<String, (Stamp, MonoTime)>,
    /// The places granted, and until when; the last is granted now.
    places: BTreeMap<(PoolId, Grantee), Places>,
    /// What operators wrote, in order.
    overrides: BTreeMap<(PoolId, Target), Vec<Written>>,
    /// And the last policy of each pool.
    policies: BTreeMap<PoolId, Option<Vec<u8>>>,
    /// How often a backup was restored.
    pub restored: usize,
}

/// What the policy of a pool that stands is.
pub enum Ruled {
    Not,
    Badly,
    Well(Box<PoolParams>),
}

/// What members enforce of one tenant.
#[derive(Debug, Default)]
struct Sum {
    enforced: f64,
    whole: f64,
    parts: f64,
    who: Vec<String>,
}

/// How a member stands to the order of records.
#[derive(Debug, Default)]
pub struct Known {
    grants: BTreeMap<(PoolId, Grantee), Stamp>,
    pulses: BTreeMap<PoolId, Stamp>,
    /// The last good overrides that it had.
    overrides: BTreeMap<(PoolId, Target), Override>,
    /// Of whom it ever had a share.
    held: BTreeSet<(PoolId, Grantee)>,
}

impl Known {
    /// It was told of shares.
    pub fn told(&mut self, reply: &Reply) {
        for (pool, shares) in &reply.shares {
            self.held.extend(shares.keys().map(|grantee| (pool.clone(), grantee.clone())));
        }
    }
}

impl Truth {
    /// The store is another one: what it holds is read anew.
    pub fn restore(&mut self, kv: &Kv, now: MonoTime) -> Result<(), String> {
        self.restored += 1;
        self.stamps.clear();
        let keys = Keyspace::default();
        let listing = kv.list(&[tidegate::store::Select::Prefix("/".to_owned())]).map_err(|error| error.to_string())?;
        let standing: BTreeSet<&str> = listing.entries.iter().map(|entry| entry.key.as_str()).collect();
        let gone = |(pool, target): &(PoolId, Target)| {
            !standing.contains(keys.key(&Key::Override(pool.clone(), target.clone())).as_str())
        };
        for (key, history) in &mut self.overrides {
            if gone(key) {
                history.push((now, kv.revision(), None));
            }
        }
        self.policies.clear();
        for entry in &listing.entries {
            self.note(&keys, &entry.key, Some(&entry.value), entry.mod_revision, now)?;
        }
        Ok(())
    }

    /// Something was written: by the leader, as far as it is for leaders to write, and in order.
    pub fn written(&mut self, changes: &[Change], kv: &Kv, now: MonoTime) -> Result<(), String> {
        let keys = Keyspace::default();
        let leader = kv.get(&keys.key(&Key::Leader)).map(|entry| entry.create_revision);
        for change in changes {
            let (key, value) = match change {
                Change::Put(entry) => (&entry.key, Some(entry.value.as_slice())),
                Change::Delete { key, .. } => (key, None),
            };
            let stamp = self.note(&keys, key, value, change.mod_revision(), now)?;
            if let Some(stamp) = stamp.filter(|stamp| Some(stamp.term) != leader) {
                return Err(format!(
                    "a write without right: {key} of term {}, and the leader key is of {leader:?}",
                    stamp.term
                ));
            }
        }
        Ok(())
    }

    fn note(
        &mut self,
        keys: &Keyspace,
        key: &str,
        value: Option<&[u8]>,
        revision: u64,
        now: MonoTime,
    ) -> Result<Option<Stamp>, String> {
        let stamp = match (keys.parse(key), value) {
            (Some(Key::Limits(pool, grantee)), Some(value)) => {
                let grant = Grant::parse(value).map_err(|error| format!("{key}: {error}"))?;
                let stamp = grant.stamp;
                is_safe(&grant).map_err(|why| format!("{key}: {why}"))?;
                let places = self.places.entry((pool.clone(), grantee.clone())).or_default();
                if let (Some(last), Some(now_places)) = (places.back_mut(), grant.thresholds.concurrency)
                    && last.0 != now_places
                {
                    last.1 = Some(now);
                    places.push_back((now_places, None));
                } else if let (true, Some(first)) = (places.is_empty(), grant.thresholds.concurrency) {
                    places.push_back((first, None));
                }
                self.grants.entry((pool, grantee, stamp)).or_default().push(grant);
                stamp
            }
            (Some(Key::Pulse(_)), Some(value)) => Pulse::parse(value).map_err(|error| format!("{key}: {error}"))?.stamp,
            (Some(Key::Policy(pool)), value) => {
                self.policies.insert(pool, value.map(<[u8]>::to_vec));
                return Ok(None);
            }
            (Some(Key::Override(pool, target)), value) => {
                let written = (now, revision, value.map(<[u8]>::to_vec));
                self.overrides.entry((pool, target)).or_default().push(written);
                return Ok(None);
            }
            _ => return Ok(None),
        };
        if self.stamps.insert(key.to_owned(), (stamp, now)).is_some_and(|(before, _)| before >= stamp) {
            return Err(format!("an older record over a newer one: {key} of {stamp:?}"));
        }
        Ok(Some(stamp))
    }

    /// No older grant or pulse replaces a newer one, and each grant is one that was written.
    pub fn order(&self, member: &Member, known: &mut Known) -> Result<(), String> {
        // After a restored backup the order begins anew, for each member when it lists next.
        let strict = self.restored == 0;
        member.core.with_views(|views| {
            for (id, view) in views {
                let stamp = view.pulse().map(|pulse| pulse.stamp).unwrap_or_default();
                if known.pulses.insert(id.clone(), stamp).is_some_and(|before| before > stamp) && strict {
                    return Err(format!("an older pulse is taken: {id}, {stamp:?}"));
                }
                for (grantee, stamp) in view.stamps() {
                    let key = (id.clone(), grantee.clone());
                    if known.grants.insert(key, stamp).is_some_and(|before| before > stamp) && strict {
                        return Err(format!("an older grant is taken: {id}/{grantee}, {stamp:?}"));
                    }
                }
            }
            Ok(())
        })
    }

    /// A malformed record takes no good one away.
    pub fn keeps_the_last_good(&self, member: &Member, known: &mut Known) -> Result<(), String> {
        member.core.with_views(|views| {
            for (pool, target) in self.targets() {
                let key = (pool.clone(), target.clone());
                let Some(has) = views.get(pool).map(|view| view.overrides().last_good(target).cloned()) else {
                    continue;
                };
                let had = known.overrides.remove(&key);
                if has.is_none() && had.is_some() && self.is_mistyped_over_a_good_one(pool, target) {
                    return Err(format!("a malformed record has taken the last good override of {pool}/{target} away"));
                }
                known.overrides.extend(has.map(|has| (key, has)));
            }
            Ok(())
        })
    }

    /// Whether what stands is malformed, and no record was taken away before it since the last good one.
    fn is_mistyped_over_a_good_one(&self, pool: &PoolId, target: &Target) -> bool {
        let history = self.overrides.get(&(pool.clone(), target.clone())).map(Vec::as_slice).unwrap_or_default();
        let is_good = |value: &[u8]| Override::parse(value, target).is_ok();
        let malformed = |value: &&Option<Vec<u8>>| value.as_deref().is_some_and(|value| !is_good(value));
        let mut newest_first = history.iter().rev().map(|(_, _, value)| value);
        newest_first.clone().next().is_some_and(|newest| malformed(&newest))
            && newest_first.find(|value| !malformed(value)).is_some_and(Option::is_some)
    }

    /// What a member enforces follows from a grant that was written, with overrides applied once.
    pub fn terms(&self, member: &Member, now: MonoTime, wall: UnixMillis) -> Result<(), String> {
        member.core.with_views(|views| {
            for (id, view) in views {
                for (grantee, stamp) in view.stamps() {
                    let Some(terms) = view.terms_of(grantee, now, wall) else { continue };
                    let Some((_, rpm)) = terms.meters.iter().find(|(meter, _)| *meter == RPM) else { continue };
                    let base = rpm.base.unwrap_or(Rate { rate: 0.0, burst: 0.0 });
                    let key = (id.clone(), grantee.clone(), stamp);
                    let grants = self.grants.get(&key).map(Vec::as_slice).unwrap_or_default();
                    let grant = grants.iter().find(|grant| grant.thresholds.rates.get(&RPM) == Some(&base));
                    // A stamp of nothing: the order has just been restarted.
                    if grant.is_none() && stamp != Stamp::default() {
                        return Err(format!("a grant that nobody wrote: {id}/{grantee} {stamp:?} of {base:?}"));
                    }
                    let (star, own) = view.overrides().for_tenant(grantee, wall);
                    let before = base.rate * rpm.scale * rpm.capacity;
                    let after = once(before, star.map(|o| &o.action), own.map(|o| &o.action));
                    if (rpm.overridden.rate - after).abs() > EPSILON * after.max(1.0) {
                        return Err(format!(
                            "overrides are not applied once: {id}/{grantee} has {before} before, {} after, and it should \
                             be {after}",
                            rpm.overridden.rate
                        ));
                    }
                    let most = after * rpm.share * 1.0_f64.max(rpm.kept);
                    if rpm.limit.rate.rate > most + EPSILON {
                        return Err(format!("more than its part: {id}/{grantee} {} of {most}", rpm.limit.rate.rate));
                    }
                }
            }
            Ok(())
        })
    }

    /// What members enforce of one tenant, those without a share too, adds up to no more than what is documented: a whole, and
    /// for each without a share his part of the safe one.
    pub fn sums<'a>(
        &self,
        members: impl Iterator<Item = &'a Member>,
        known: &BTreeMap<Of, Known>,
    ) -> Result<(), String> {
        let mut sums: BTreeMap<(PoolId, Grantee), Sum> = BTreeMap::new();
        for member in members {
            let (now, wall) = (member.clock.now(), member.clock.wall());
            let held = known.get(&member.of).map(|known| &known.held);
            member.core.with_views(|views| {
                for (id, view) in views {
                    for (grantee, stamp) in view.stamps() {
                        let Some(terms) = view.terms_of(grantee, now, wall) else { continue };
                        let Some((_, rpm)) = terms.meters.iter().find(|(meter, _)| *meter == RPM) else { continue };
                        let key = (id.clone(), grantee.clone());
                        let part = if let Some(share) = view.share_at(grantee, now) {
                            share.share
                        } else {
                            let written = self.grants.get(&(id.clone(), grantee.clone(), stamp));
                            let fewest = written.into_iter().flatten().map(|grant| grant.members.max(1)).min();
                            let others = f64::from(fewest.unwrap_or(1))
                                + f64::from(u8::from(!held.is_some_and(|held| held.contains(&key))));
                            let (star, own) = view.overrides().for_tenant(grantee, wall);
                            let named = own.filter(|record| !matches!(record.action, Action::Freeze | Action::Block));
                            let set = |record: &Override| matches!(record.action, Action::Set(_));
                            let is_set = terms.frozen || named.or(star).is_some_and(set);
                            if is_set { 1.0 / others } else { SAFE / others }
                        };
                        let sum = sums.entry(key).or_default();
                        sum.enforced += rpm.limit.rate.rate;
                        sum.whole = sum.whole.max(rpm.overridden.rate);
                        sum.parts += part;
                        sum.who.push(format!("{} {:.2} of {:.2}", member.of, rpm.limit.rate.rate, rpm.overridden.rate));
                    }
                }
            });
        }
        for ((pool, grantee), Sum { enforced, whole, parts, who }) in sums {
            if enforced > whole * parts + EPSILON * whole.max(1.0) {
                let who = who.join(", ");
                return Err(format!("{enforced:.3} of {pool}/{grantee} may be sent, {parts:.3} × {whole}: {who}"));
            }
        }
        Ok(())
    }

    /// The policy of a pool that stands.
    pub fn policy(&self, pool: &PoolId) -> Ruled {
        match self.policies.get(pool) {
            Some(Some(value)) => policy(pool, value).map_or(Ruled::Badly, |(params, _)| Ruled::Well(Box::new(params))),
            _ => Ruled::Not,
        }
    }

    /// What members may enforce of one tenant adds up to no more than the whole, and places to no more than were granted.
    pub fn shares<'a>(&self, members: impl Iterator<Item = &'a Member>, now: MonoTime) -> Result<f64, String> {
        let mut sums: BTreeMap<(PoolId, Grantee), (f64, u32, Vec<String>)> = BTreeMap::new();
        for member in members {
            let own_now = member.clock.now();
            member.core.with_views(|views| {
                for (id, view) in views {
                    for (grantee, share, _) in view.leases(own_now) {
                        let sum = sums.entry((id.clone(), grantee.clone())).or_default();
                        sum.0 += share.share;
                        sum.1 += share.concurrency.unwrap_or(0);
                        sum.2.push(format!("{} {:.3} {:?}", member.of, share.share, share.concurrency));
                    }
                }
            });
        }
        let mut most: f64 = 0.0;
        for ((pool, grantee), (share, places, who)) in sums {
            most = most.max(share);
            if share > 1.0 + EPSILON {
                return Err(format!("shares of {pool}/{grantee} add up to {share:.4}: {}", who.join(", ")));
            }
            let recent = self.places.get(&(pool.clone(), grantee.clone())).into_iter().flatten();
            let recent = recent.filter(|(_, until)| until.is_none_or(|until| now.since(until) <= PLACES_KEPT));
            let granted = recent.map(|(places, _)| *places).max().unwrap_or(0);
            if places > granted {
                return Err(format!("{places} places of {pool}/{grantee}, {granted} granted: {}", who.join(", ")));
            }
        }
        Ok(most)
    }

    /// The good record that stands for a target; `Err` when what stands is malformed: then the last good one depends on what a
    /// reader saw.
    pub fn standing(&self, pool: &PoolId, target: &Target) -> Result<Option<Override>, ()> {
        let history = self.overrides.get(&(pool.clone(), target.clone()));
        match history.and_then(|history| history.last()) {
            Some((_, _, Some(value))) => Override::parse(value, target).map(Some).map_err(drop),
            _ => Ok(None),
        }
    }

    /// The revision under which a target was last written.
    pub fn last_written(&self, pool: &PoolId, target: &Target) -> Option<u64> {
        Some(self.overrides.get(&(pool.clone(), target.clone()))?.last()?.1)
    }

    /// Every target that was ever written.
    pub fn targets(&self) -> impl Iterator<Item = &(PoolId, Target)> {
        self.overrides.keys()
    }

    /// Since when a grant or pulse has stood.
    pub fn stands_since(&self, key: &str) -> Option<MonoTime> {
        self.stamps.get(key).map(|(_, since)| *since)
    }

    /// Whether some leader has granted something.
    pub fn is_led(&self) -> bool {
        !self.grants.is_empty()
    }

    /// Whether a member has the operators' records that stand, none lost and none left over.
    pub fn has_overrides(&self, member: &Member) -> Result<(), String> {
        self.targets().try_for_each(|(pool, target)| self.has_overrides_of(member, pool, target))
    }

    /// The same of one target.
    pub fn has_overrides_of(&self, member: &Member, pool: &PoolId, target: &Target) -> Result<(), String> {
        member.core.with_views(|views| {
            let Some(known) = views.get(pool).map(|view| view.overrides().last_good(target)) else { return Ok(()) };
            match self.standing(pool, target) {
                Ok(standing) if known != standing.as_ref() => {
                    Err(format!("{} has {known:?} of the override {pool}/{target}, and {standing:?} stands", member.of))
                }
                _ => Ok(()),
            }
        })
    }
}

/// What is safe is at most half of the threshold.
fn is_safe(grant: &Grant) -> Result<(), String> {
    match (grant.safe.rates.get(&RPM), grant.thresholds.rates.get(&RPM)) {
        (Some(safe), Some(whole)) if safe.rate > SAFE * whole.rate + EPSILON => {
            Err(format!("{} is called safe, of {}", safe.rate, whole.rate))
        }
        _ => Ok(()),
    }
}

/// The rate of requests a minute after overrides, applied once.
fn once(base: f64, star: Option<&Action>, own: Option<&Action>) -> f64 {
    let of = |action: &Action| match action {
        Action::Set(map) => map.get(&RPM).map(|amount| amount.rate()),
        Action::Scale(factor) => Some(base * factor),
        Action::Floor(map) => map.get(&RPM).map(|amount| base.max(amount.rate())),
        Action::Ceiling(map) => map.get(&RPM).map(|amount| base.min(amount.rate())),
        Action::Freeze | Action::Block => None,
    };
    own.and_then(of).or_else(|| star.and_then(of)).unwrap_or(base)
}
