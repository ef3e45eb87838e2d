//! Operators, who write overrides, good ones and mistyped ones, and take them away.

use std::time::Duration;

use serde_json::json;
use tidegate::clock::{Clock, MonoTime};
use tidegate::plan::keyspace::{Key, Keyspace};
use tidegate::plan::{Action, Amount, Override, Target};
use tidegate::sim::events::DriftingClock;
use tidegate::sim::lossy::{Ask, Call};
use tidegate::store::{StoreError, Txn};

use super::{AGAIN_AFTER, CAPACITY, Making, PLACES, RPM, World};
use crate::simulation::event::{Event, Kind, Of};

impl World {
    pub(super) fn operate(&mut self) {
        let span = self.dice.span(&(Duration::from_millis(200)..Duration::from_secs(3)));
        self.timeline.after(span, Event::Operator);
        if !self.troubled || self.operator.is_some() {
            return;
        }
        if self.dice.chance(0.2) {
            return self.rule();
        }
        let name = *self.dice.pick(&["acme", "acme", "globex", "*", "@capacity", "@default", "stranger"]);
        let Ok(target) = name.parse::<Target>() else { return };
        let number = 10.0 * self.dice.number(0..60) as f64;
        let map = |rate: f64| [(RPM, Amount::from(rate))].into();
        let choice = self.dice.number(0..9);
        let action = match (&target, choice) {
            (_, 0) | (Target::Capacity, 4..) => Action::Scale(self.dice.number(0..8) as f64 / 4.0),
            (_, 1) | (Target::Capacity, _) => Action::Set(map(number)),
            (_, 2) => Action::Floor(map(number)),
            (_, 3) => Action::Ceiling(map(number)),
            (_, 4) => Action::Freeze,
            (_, 5) => Action::Block,
            (_, 6) => {
                let key = Keyspace::default().key(&Key::Override(self.pools[0].clone(), target));
                return self
                    .change(Txn::put(key, b"{\"set\":60}".to_vec()), format!("mistypes the override of {name}"));
            }
            _ => {
                let key = Keyspace::default().key(&Key::Override(self.pools[0].clone(), target));
                return self.change(Txn::delete(key), format!("takes the override of {name} away"));
            }
        };
        let record = Override::new(action).by("mori").because("a test");
        let record = if self.dice.chance(0.3) {
            let clock = DriftingClock::new(self.timeline.time(), MonoTime(0), 0, 0);
            record.until(clock.wall() + self.dice.span(&(Duration::from_secs(1)..Duration::from_secs(15))))
        } else {
            record
        };
        self.put_override(name, &record);
    }

    /// A policy is put, well or badly, or taken away: of a pool that a file has too, or of one that is there by its policy alone.
    fn rule(&mut self) {
        let pool = self.dice.pick(&self.pools[1..]).clone();
        let key = Keyspace::default().key(&Key::Policy(pool.clone()));
        match self.dice.number(0..6) {
            0 => self
                .change(Txn::put(key, b"{\"dialect\":\"opanai\"}".to_vec()), format!("mistypes the policy of {pool}")),
            1 | 2 => self.change(Txn::delete(key), format!("takes the policy of {pool} away")),
            _ => {
                let mode = *self.dice.pick(&["enforce", "enforce", "enforce", "observe", "off"]);
                let record = json!({
                    "dialect": "openai", "mode": mode, "concurrency": PLACES,
                    "capacity": { "requests/minute": CAPACITY * *self.dice.pick(&[0.5, 1.0]) },
                    "tenants": { "acme": { "weight": self.dice.number(1..4) }, "globex": { "weight": 1 } },
                });
                self.change(Txn::put(key, record.to_string().into_bytes()), format!("rules {pool}: {record}"));
            }
        }
    }

    pub(super) fn put_override(&mut self, name: &str, record: &Override) {
        let Ok(target) = name.parse::<Target>() else { return };
        let Ok(value) = record.to_json(&target) else { return };
        let words = format!("overrides {name}: {}", String::from_utf8_lossy(&value));
        let key = Keyspace::default().key(&Key::Override(self.pools[0].clone(), target));
        self.change(Txn::put(key, value), words);
    }

    pub(super) fn change(&mut self, txn: Txn, words: String) {
        self.tell("operator", || words.clone());
        let of = Of { kind: Kind::Operator, who: 0, life: 0 };
        let call = self.store.ask(of.client(), Ask::Commit(txn.clone()), &mut self.timeline, &mut self.dice);
        self.operator = Some(Making { call, txn, words });
    }

    pub(super) fn on_operator_answer<T>(&mut self, call: Call, answer: &Result<T, StoreError>) {
        let Some(change) = self.operator.take_if(|change| change.call == call) else { return };
        if matches!(answer, Err(StoreError::Unavailable { .. } | StoreError::NoSpace)) {
            self.operator = Some(change);
            self.timeline.after(AGAIN_AFTER, Event::Again);
        }
    }
}
