//! When everything is mended, all agree after a while.

use std::collections::BTreeSet;
use std::time::Duration;

use tidegate::client::MemberState;
use tidegate::clock::Clock;
use tidegate::plan::keyspace::{Key, Keyspace};
use tidegate::plan::{Action, Grant, Mode, Override, Target};
use tidegate::quota::{Grantee, PoolId};
use tidegate::sim::lossy::Weather;
use tidegate::store::Txn;

use super::{CAPACITY, HEALED_WITHIN, IN_FORCE_WITHIN, POOLS_OF_FILES, RPM, World};
use crate::simulation::event::Of;
use crate::simulation::laws::Ruled;
use crate::simulation::member::Member;

impl World {
    /// Everything is mended, and after a while all agree.
    pub(super) fn heal(&mut self) -> Result<(), String> {
        self.troubled = false;
        self.tell("the world", || "everything is mended".to_owned());
        self.store.set_down(false, &mut self.timeline);
        self.store.set_full(false);
        for watch in self.store.watches() {
            self.store.set_stalled(watch, false, &mut self.timeline);
        }
        let everyone: Vec<Of> =
            self.members.values().map(|m| m.of).chain(self.controllers.values().map(|c| c.of)).collect();
        for of in everyone {
            *self.store.weather(of.client()) = Weather::fair();
        }
        self.roads.clear();
        // What a stopped controller was to do it does when it goes on, and no sooner.
        if let Some(last) = self.paused.values().max().copied() {
            self.wait(last.since(self.timeline.now()))?;
        }
        for who in 0..2 {
            if !self.controllers.contains_key(&who) {
                self.start_controller(who);
            }
            if !self.members.contains_key(&who) {
                self.start_member(who);
            }
        }
        for pool in self.pools.clone() {
            self.provider.set_limit(&pool, CAPACITY);
        }
        self.wait(HEALED_WITHIN)?;
        self.all_agree()?;
        if self.dice.chance(0.2) { self.override_once() } else { Ok(()) }
    }

    /// Nothing is overridden; then one tenant is, once.
    fn override_once(&mut self) -> Result<(), String> {
        let targets: Vec<(PoolId, Target)> = self.truth.targets().cloned().collect();
        for (pool, target) in targets {
            let key = Keyspace::default().key(&Key::Override(pool, target));
            let words = format!("takes {key} away");
            self.change(Txn::delete(key), words);
            self.wait(Duration::from_millis(50))?;
        }
        self.wait(Duration::from_secs(10))?;
        let before = self.base("minded", "acme")?;
        self.put_override("acme", &Override::new(Action::Scale(0.5)));
        // One tick or two, and not a third.
        self.wait(Duration::from_millis(1_900))?;
        let after = self.base("minded", "acme")?;
        // Whoever may send less is soon granted less, 0.597 of it in one world where demand fell as well; an override that is
        // applied twice leaves half at once.
        if after < 0.55 * before {
            return Err(format!("an override is applied twice: the base of minded/acme went from {before} to {after}"));
        }
        Ok(())
    }

    fn wait(&mut self, span: Duration) -> Result<(), String> {
        let until = self.timeline.now() + span;
        while self.timeline.now() < until {
            self.next()?;
        }
        Ok(())
    }

    /// What is granted, before overrides.
    fn base(&self, pool: &str, tenant: &str) -> Result<f64, String> {
        let key = Keyspace::default()
            .key(&Key::Limits(pool.parse().map_err(|_| "a pool")?, tenant.parse().map_err(|_| "a tenant")?));
        let entry = self.store.kv().get(&key).ok_or("no grant")?;
        let grant = Grant::parse(&entry.value).map_err(|error| error.to_string())?;
        Ok(grant.thresholds.rates.get(&RPM).map_or(0.0, |rate| rate.rate))
    }

    fn all_agree(&mut self) -> Result<(), String> {
        let leaders = self.controllers.values().filter(|controller| controller.leads()).count();
        if leaders != 1 {
            return Err(format!("{leaders} lead, after all has been well for a while"));
        }
        let keys = Keyspace::default();
        for member in self.members.values() {
            self.truth.has_overrides(member)?;
            let now = member.clock.now();
            member.core.with_views(|views| {
                for (id, view) in views {
                    self.follows_policy(member, id, view.state(now), view.mode())?;
                    for (grantee, stamp) in view.stamps() {
                        let key = keys.key(&Key::Limits(id.clone(), grantee.clone()));
                        let entry = self.store.kv().get(&key).ok_or(format!("{} keeps {key}", member.of))?;
                        let grant = Grant::parse(&entry.value).map_err(|error| error.to_string())?;
                        let since = self.truth.stands_since(&key).unwrap_or_default();
                        if grant.stamp != stamp && self.timeline.now().since(since) > IN_FORCE_WITHIN {
                            let (of, stands) = (member.of, grant.stamp);
                            return Err(format!("{of} has {key} of {stamp:?}, and {stands:?} stands"));
                        }
                    }
                }
                Ok(())
            })?;
        }
        // Who has just begun to use a tenant has a share of it after his next report.
        let without = self.without_share();
        self.wait(Duration::from_secs(1))?;
        match without.intersection(&self.without_share()).next() {
            Some((of, pool, grantee)) => Err(format!("{of} has no share of {pool}/{grantee}, after all has been well")),
            None => Ok(()),
        }
    }

    /// Whether a member is led, and by the policy that stands.
    fn follows_policy(&self, member: &Member, pool: &PoolId, state: MemberState, mode: Mode) -> Result<(), String> {
        let (of, stands) = (member.of, self.truth.policy(pool));
        let of_file = self.pools[..POOLS_OF_FILES].contains(pool);
        let expected = match stands {
            Ruled::Well(params) => (MemberState::Active, params.mode),
            Ruled::Not if of_file => (MemberState::Active, Mode::Enforce),
            // A backup without the policy was restored while its leader wrote: members stay on the safe thresholds of what it
            // wrote, and no leader knows that it did.
            Ruled::Not if self.truth.restored > 0 && state == MemberState::Lapsed => (state, Mode::Enforce),
            // Nobody leads it, and nothing of what its leaders wrote is left.
            Ruled::Not => (MemberState::Bootstrap, Mode::Enforce),
            // It depends on what a leader saw before.
            Ruled::Badly => return Ok(()),
        };
        if (state, mode) == expected {
            return Ok(());
        }
        Err(format!("{of} is {state:?} with {mode:?} in {pool}, after all has been well: expected {expected:?}"))
    }

    /// Who uses a tenant of a pool that is led, and has no share of it.
    fn without_share(&self) -> BTreeSet<(Of, PoolId, Grantee)> {
        let mut without = BTreeSet::new();
        for member in self.members.values() {
            let now = member.clock.now();
            for (id, pool) in &member.pools {
                let used = pool.traffic();
                member.core.with_views(|views| {
                    if views[id].state(now) == MemberState::Lapsed {
                        return;
                    }
                    let lacks = |grantee: &&Grantee| views[id].share_at(grantee, now).is_none();
                    let granted = views[id].stamps().map(|(grantee, _)| grantee);
                    let granted = granted.filter(|grantee| used.contains_key(*grantee)).filter(lacks);
                    without.extend(granted.map(|grantee| (member.of, id.clone(), grantee.clone())));
                });
            }
        }
        without
    }
}
