//! What sources beside the members' reports tell of a pool: queues, congestion on the far side, capacity.
//!
//! *Absence.* A signal that does not come is `Stale`, then `Missing`; neither is ever a number. What was learned from it holds.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clock::MonoTime;
use crate::observation::Reading;
use crate::quota::{Grantee, Meter};

/// What a signal is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// A tenant's queue, in requests: who needs more.
    Demand,
    /// The far side's queue, or how full it is: fewer at a time, before it refuses or slows down.
    Congestion,
    /// What a pool can take on a meter, in units per window.
    Capacity,
}

impl Role {
    /// All roles.
    pub const ALL: [Self; 3] = [Self::Demand, Self::Congestion, Self::Capacity];

    /// Its name in configuration.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Demand => "demand",
            Self::Congestion => "congestion",
            Self::Capacity => "capacity",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a congestion signal counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counts {
    /// Requests that wait on the far side.
    Requests,
    /// How full it is: a part that grows as more requests are in flight, 1 being full.
    Part,
}

impl Counts {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Requests, Self::Part];

    /// Its name in configuration.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Part => "part",
        }
    }
}

/// A number and when it was true.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measured {
    /// When.
    pub at: MonoTime,
    /// What.
    pub value: f64,
}

/// A congestion signal of a pool.
#[derive(Debug, Clone, PartialEq)]
pub struct Pressure {
    /// The query that told.
    pub query: String,
    /// What it counts.
    pub counts: Counts,
    /// What it is to be, above 0: a few requests that wait keep the far side busy.
    pub aim: f64,
    /// It may tell of how it was so long before.
    pub lag: Duration,
    /// What it told last.
    pub told: Reading<Measured>,
}

/// What is told of one pool.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Outside {
    /// Requests queued for a tenant, by whoever is to send them. Those that wait here may be among them.
    pub queued: BTreeMap<Grantee, f64>,
    /// In the order of their queries' names.
    pub pressures: Vec<Pressure>,
    /// What the pool can take, in units per window, where it is told now.
    pub capacity: BTreeMap<Meter, f64>,
}
