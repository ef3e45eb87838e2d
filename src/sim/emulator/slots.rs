//! A server of one's own, as vLLM is one: so many requests at a time, the others in a line; and the more at a time, the
//! slower each. Pure: who waits is told of its turn by whoever calls.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::account::{OutOfRange, in_range};

/// Most requests answered at a time, where that is limited.
pub const SLOTS_MAX: u32 = 100_000;

/// How many requests the server answers at a time, and what that costs each.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerParams {
    /// Requests answered at a time, 1–100,000 (vLLM: `max_num_seqs`); none is no limit, and no crowding.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slots: Option<u32>,
    /// How much slower an answer is when all slots are taken, 0–100: its times are those of [`LatencyParams`] times
    /// 1 + crowding × running ÷ slots, itself among the running, as of when it gets its slot.
    ///
    /// [`LatencyParams`]: super::LatencyParams
    pub crowding: f64,
}

impl Default for ServerParams {
    fn default() -> Self {
        Self { slots: None, crowding: 1.0 }
    }
}

impl ServerParams {
    /// Checks every range.
    ///
    /// # Errors
    /// The first setting outside its range.
    pub fn validate(&self) -> Result<(), OutOfRange> {
        if let Some(slots) = self.slots {
            in_range("slots", f64::from(slots), 1.0..=f64::from(SLOTS_MAX), "a whole number, 1–100000")?;
        }
        in_range("crowding", self.crowding, 0.0..=100.0, "0–100")
    }

    /// How many times longer an answer takes than of an idle server, with so many running, itself among them; at least 1.
    #[must_use]
    pub fn slowness(&self, running: u32) -> f64 {
        self.slots.map_or(1.0, |slots| 1.0 + self.crowding * f64::from(running) / f64::from(slots))
    }
}

/// A request's place: in the line first, in a slot then. Given back once, by [`Slots::leave`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place(u64);

/// The slots, and the line before them. `W` is how one that waits is told that it has its turn.
#[derive(Debug)]
pub struct Slots<W> {
    params: ServerParams,
    running: u32,
    joined: u64,
    /// Whoever joined first stands first.
    line: BTreeMap<Place, W>,
}

impl<W> Slots<W> {
    /// Nobody is there yet.
    ///
    /// # Errors
    /// A setting is outside its range.
    pub fn new(params: ServerParams) -> Result<Self, OutOfRange> {
        params.validate()?;
        Ok(Self { params, running: 0, joined: 0, line: BTreeMap::new() })
    }

    /// The settings in force.
    #[must_use]
    pub const fn params(&self) -> ServerParams {
        self.params
    }

    /// Other settings from now on, taken as valid. With fewer slots than are taken, those who have one keep it.
    pub const fn change(&mut self, params: ServerParams) {
        self.params = params;
    }

    /// Takes the last place in the line, a free slot or not: [`Slots::call`] gives slots out.
    pub fn join(&mut self, waiter: W) -> Place {
        let place = Place(self.joined);
        self.joined += 1;
        self.line.insert(place, waiter);
        place
    }

    /// If a slot is free, gives it to the first in the line, and tells how many times longer its answer takes. To be called
    /// until there is none, whenever somebody joined or left or settings changed.
    pub fn call(&mut self) -> Option<(W, f64)> {
        if self.params.slots.is_some_and(|slots| self.running >= slots) {
            return None;
        }
        let (_, waiter) = self.line.pop_first()?;
        self.running += 1;
        Some((waiter, self.params.slowness(self.running)))
    }

    /// Gives a place back: out of the line, or a slot for another.
    pub fn leave(&mut self, place: Place) {
        if self.line.remove(&place).is_none() {
            self.running = self.running.saturating_sub(1);
        }
    }

    /// Requests that have a slot.
    #[must_use]
    pub const fn running(&self) -> u32 {
        self.running
    }

    /// Requests that stand in the line.
    #[must_use]
    pub fn queued(&self) -> u32 {
        u32::try_from(self.line.len()).unwrap_or(u32::MAX)
    }

    /// The part of the slots that is taken, 0–1; none where they are not limited.
    #[must_use]
    pub fn usage(&self) -> Option<f64> {
        // Above one for a while when slots were taken away.
        self.params.slots.map(|slots| (f64::from(self.running) / f64::from(slots)).min(1.0))
    }
}
