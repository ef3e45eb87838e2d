//! The troubles that befall the world, and how they end.

use std::time::Duration;

use tidegate::sim::lossy::Weather;

use super::{CAPACITY, Roads, World};
use crate::simulation::event::{Event, Mend, Of};

impl World {
    pub(super) fn trouble(&mut self) -> Result<(), String> {
        let span = self.dice.span(&(Duration::from_millis(100)..Duration::from_millis(1_500)));
        self.timeline.after(span, Event::Trouble);
        if !self.troubled {
            return Ok(());
        }
        self.outcome.steps += 1;
        let long = self.dice.span(&(Duration::from_millis(300)..Duration::from_secs(12)));
        match self.dice.number(0..22) {
            0..=3 => self.bad_weather(long),
            4 | 5 => self.bad_roads(long),
            6..=8 => {
                let watches = self.store.watches();
                if !watches.is_empty() {
                    let watch = *self.dice.pick(&watches);
                    if self.dice.chance(0.5) {
                        self.tell("trouble", || format!("{watch:?} breaks"));
                        self.store.break_watch(watch, &mut self.timeline);
                    } else {
                        self.tell("trouble", || format!("{watch:?} stalls for {long:?}"));
                        self.store.set_stalled(watch, true, &mut self.timeline);
                        self.timeline.after(long, Event::Mend(Mend::Stalled(watch)));
                    }
                }
            }
            9 | 10 => {
                self.tell("trouble", || "the store is compacted".to_owned());
                self.store.compact(&mut self.timeline);
            }
            11 => {
                self.tell("trouble", || format!("the store is down for {long:?}"));
                self.store.set_down(true, &mut self.timeline);
                self.timeline.after(long, Event::Mend(Mend::Down));
            }
            12 => {
                self.tell("trouble", || format!("the store is full for {long:?}"));
                self.store.set_full(true);
                self.timeline.after(long, Event::Mend(Mend::Full));
            }
            13 => return self.backup(),
            14 => {
                let leases = self.store.kv().leases();
                if !leases.is_empty() {
                    let lease = *self.dice.pick(&leases);
                    self.tell("trouble", || format!("{lease:?} is revoked by hand"));
                    if let Some(reached) = self.store.revoke(lease, &mut self.timeline) {
                        return self.on_reached(reached);
                    }
                }
            }
            15..=17 => self.controller_trouble(long),
            18 | 19 => self.member_trouble(long),
            20 => {
                let off = self.dice.number(0..20_000).cast_signed() - 10_000;
                if let Some(member) = self.members.values().next() {
                    member.clock.set_wall_off(off);
                    let of = member.of;
                    self.tell(&of.to_string(), || format!("has its wall clock set, {off} ms off"));
                }
            }
            _ => {
                let pool = self.dice.pick(&self.pools).clone();
                let limit = CAPACITY * *self.dice.pick(&[0.25, 0.5, 1.0, 1.0, 2.0]);
                self.tell("the provider", || format!("takes {limit} requests a minute in {pool}"));
                self.provider.set_limit(&pool, limit);
            }
        }
        Ok(())
    }

    fn bad_weather(&mut self, long: Duration) {
        let everyone: Vec<Of> =
            self.members.values().map(|m| m.of).chain(self.controllers.values().map(|c| c.of)).collect();
        if everyone.is_empty() {
            return;
        }
        let of = *self.dice.pick(&everyone);
        let worst = Duration::from_millis(self.dice.number(5..900));
        let weather = Weather {
            delay: Duration::from_millis(1)..worst,
            loss: self.dice.part() * 0.3,
            twice: self.dice.part() * 0.3,
            cut: self.dice.chance(0.4),
        };
        self.tell(&of.to_string(), || format!("has bad weather for {long:?}: {weather:?}"));
        *self.store.weather(of.client()) = weather;
        self.timeline.after(long, Event::Mend(Mend::Weather(of)));
    }

    fn bad_roads(&mut self, long: Duration) {
        let members: Vec<usize> = self.members.keys().copied().collect();
        if members.is_empty() {
            return;
        }
        let who = *self.dice.pick(&members);
        let worst = Duration::from_millis(self.dice.number(5..4_000));
        let loss = *self.dice.pick(&[0.0, 0.1, 0.3, 1.0]);
        self.tell("trouble", || format!("reports of member {who} take up to {worst:?}, {loss} are lost, for {long:?}"));
        self.roads.insert(who, Roads { delay: Duration::from_millis(1)..worst, loss });
        self.timeline.after(long, Event::Mend(Mend::Roads(who)));
    }

    fn backup(&mut self) -> Result<(), String> {
        match self.snapshot.take() {
            // Of a store in use: the grants of some leader are in it.
            None if self.truth.is_led() => {
                self.tell("operator", || "takes a backup of the store".to_owned());
                self.snapshot = Some(self.store.kv().clone());
            }
            Some(kv) if self.dice.chance(0.4) => {
                let other = self.dice.chance(0.5);
                let kv = if other { kv.as_cluster(2 + self.truth.restored as u64) } else { kv };
                self.tell("operator", || {
                    format!(
                        "restores the backup of revision {}{}",
                        kv.revision(),
                        if other { ", as another cluster" } else { "" }
                    )
                });
                self.store.restore(kv, &mut self.timeline);
                self.restored_at = Some(self.timeline.now());
                return self.truth.restore(self.store.kv(), self.timeline.now());
            }
            kept => self.snapshot = kept,
        }
        Ok(())
    }

    fn controller_trouble(&mut self, long: Duration) {
        let controllers: Vec<usize> = self.controllers.keys().copied().collect();
        let leader = self.controllers.values().find(|c| c.leads()).map(|c| c.of.who);
        // Mostly the one that matters.
        let who = match leader.filter(|_| self.dice.chance(0.7)) {
            Some(leader) => leader,
            None if controllers.is_empty() => return,
            None => *self.dice.pick(&controllers),
        };
        let what = self.dice.number(0..4);
        match what {
            0 | 1 => {
                self.tell("trouble", || format!("controller {who} is stopped for {long:?}"));
                self.paused.insert(who, self.timeline.now() + long);
            }
            2 => {
                self.tell("trouble", || format!("controller {who} is killed"));
                self.controllers.remove(&who);
                self.timeline.after(long, Event::Mend(Mend::Controller(who)));
            }
            _ => {
                let Some(controller) = self.controllers.get_mut(&who) else { return };
                let of = controller.of;
                let said = controller.resign(&mut self.store, &mut self.timeline, &mut self.dice);
                self.say(of, said);
            }
        }
    }

    fn member_trouble(&mut self, long: Duration) {
        let members: Vec<usize> = self.members.keys().copied().collect();
        if members.len() > 1 && self.dice.chance(0.6) {
            let who = *self.dice.pick(&members);
            let Some(mut member) = self.members.remove(&who) else { return };
            if let Some(watch) = member.watch {
                self.store.close(watch);
            }
            if self.dice.chance(0.5) {
                self.tell("trouble", || format!("member {who} is killed"));
            } else {
                self.tell(&member.of.to_string(), || "leaves".to_owned());
                if let Some((to, report)) = member.leave() {
                    self.post(member.of, to, 0, report);
                }
            }
            self.timeline.after(long, Event::Mend(Mend::Member(who)));
        } else if members.len() < 6 {
            let who = (0..7).find(|who| !self.members.contains_key(who)).unwrap_or(0);
            self.start_member(who);
        }
    }

    pub(super) fn mend(&mut self, mend: Mend) {
        match mend {
            Mend::Weather(of) => *self.store.weather(of.client()) = Weather::fair(),
            Mend::Roads(who) => drop(self.roads.remove(&who)),
            Mend::Down => self.store.set_down(false, &mut self.timeline),
            Mend::Full => self.store.set_full(false),
            Mend::Stalled(watch) => self.store.set_stalled(watch, false, &mut self.timeline),
            Mend::Controller(who) => {
                if !self.controllers.contains_key(&who) {
                    self.start_controller(who);
                }
            }
            Mend::Member(who) => {
                if !self.members.contains_key(&who) {
                    self.start_member(who);
                }
            }
        }
    }
}
