//! Over-commitment: thresholds may add up to more than the capacity, as divided ones are never used to the last unit.
//!
//! *Why.* A threshold is divided once more among members, and requests come at random: while one member's part lies idle
//! another's is short. What is measured to be unused is lent out.
//! *Rule.* While more is asked for than there is and less is used: ω ×= 1 + g·(1 − used ÷ capacity) each second, up to 1.6, or as
//! much as the provider's bucket would last for until members give it up without a leader, up to 4.
//! *Taken back* at once, ω = 1, when the level falls short of its reserve or 429s cut the rate; a tenth a second when nobody
//! asks for more than there is.
//! *Fixed* where members count together: nothing of a pool's own bucket lies idle with one member while another is short, so
//! there is nothing to learn, and what was learned before is forgotten.
//! Source: Breakwater (OSDI 2020) over-commits credits in the same way; constants from CONTROL §2.10.

use super::{Traffic, span_s};
use crate::clock::MonoTime;

/// Constants of [`Overcommit`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OvercommitParams {
    /// g, per second, 0–1; 0 lends nothing. Smaller leaves unused for longer, larger swings.
    pub gain_per_s: f64,
    /// The most, 1–4. What is lent may all be asked for at once, so larger is refused more when idle members return.
    pub most: f64,
    /// The most while the provider's bucket would last until it is taken back, `most` to 10.
    pub most_stored: f64,
    /// What is taken back when nobody asks for more than there is, in parts a second, 0–1.
    pub decay_per_s: f64,
}

impl Default for OvercommitParams {
    fn default() -> Self {
        Self { gain_per_s: 0.25, most: 1.6, most_stored: 4.0, decay_per_s: 0.1 }
    }
}

/// What the provider has left, as far as it tells.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Room {
    /// Its reserve and more, or nothing is known and nothing refused: what could be sent until all that is lent has been given up,
    /// in units per second; 0 where nobody knows.
    Above(f64),
    /// About its reserve.
    Little,
    /// Less than its reserve.
    Short,
}

/// The factor of one meter.
#[derive(Debug, Clone)]
pub struct Overcommit {
    params: OvercommitParams,
    factor: f64,
    /// What it is without being learned.
    fixed: Option<f64>,
    stepped_at: Option<MonoTime>,
}

impl Overcommit {
    /// Nothing is lent yet.
    #[must_use]
    pub fn new(params: OvercommitParams) -> Self {
        Self { params, factor: 1.0, fixed: None, stepped_at: None }
    }

    /// Goes on from what an earlier leader's was.
    pub fn resume(&mut self, factor: f64) {
        self.factor = factor.clamp(1.0, self.params.most_stored.max(self.params.most));
    }

    /// It is this, 1 or more, until told otherwise; `None` learns it, from nothing lent on.
    pub fn fix(&mut self, factor: Option<f64>) {
        self.fixed = factor;
    }

    /// One tick: by how much thresholds may add up to more than the capacity; 1–4.
    pub fn step(&mut self, now: MonoTime, capacity_per_s: f64, traffic: &Traffic, room: Room) -> f64 {
        let span_s = span_s(self.stepped_at, now);
        self.stepped_at = Some(now);
        if let Some(fixed) = self.fixed {
            self.factor = 1.0;
            return fixed;
        }
        let backlog = traffic.demand_per_s > capacity_per_s;
        let unused = 1.0 - traffic.sent_per_s / capacity_per_s.max(f64::MIN_POSITIVE);
        let OvercommitParams { gain_per_s, most, most_stored, decay_per_s } = self.params;
        let most = match room {
            Room::Above(per_s) => (per_s / capacity_per_s.max(f64::MIN_POSITIVE)).clamp(most, most_stored.max(most)),
            _ => most,
        };
        self.factor = match room {
            Room::Short => 1.0,
            _ if !backlog => 1.0 + (self.factor - 1.0) * (1.0 - decay_per_s * span_s),
            Room::Little => self.factor,
            Room::Above(_) => self.factor * (1.0 + gain_per_s * unused.clamp(-1.0, 1.0) * span_s),
        };
        self.factor = self.factor.clamp(1.0, most);
        self.factor
    }
}
