//! What was taken for one request.

use crate::clock::MonoTime;
use crate::limiter::concurrency::Slice;
use crate::quota::Cost;

/// *Admit*: units taken for one request, to be settled with [`Limiter::settle`](super::Limiter::settle).
#[derive(Debug, PartialEq)]
#[must_use = "an unsettled reservation holds its place in flight until it expires"]
pub struct Reservation {
    pub(super) cost: Cost,
    pub(super) at: MonoTime,
    /// How many requests were admitted before this one.
    pub(super) serial: u64,
    /// `None`: nothing was taken.
    pub(super) slice: Option<Slice>,
    /// It is one of those admitted.
    pub(super) counted: bool,
    pub(super) by: By,
}

/// What decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum By {
    /// This limiter alone.
    Itself,
    /// It was counted together with those of all members.
    Tally,
    /// It went by units that were counted together before.
    Lease,
    /// It went by this member's own part, though others count together.
    Share,
}

impl Reservation {
    /// For a request that goes without being asked for: nothing is taken, and nothing is to be given back.
    pub fn of_nothing(cost: &Cost, now: MonoTime) -> Self {
        Self { cost: *cost, at: now, serial: 0, slice: None, counted: false, by: By::Itself }
    }

    /// Whether it was counted together with those of all members.
    #[must_use]
    pub fn is_tallied(&self) -> bool {
        self.by == By::Tally
    }

    /// Whether it went by units that were counted together before.
    #[must_use]
    pub fn is_leased(&self) -> bool {
        self.by == By::Lease
    }

    /// Whether it went by this member's own part, and is still to be counted together.
    #[must_use]
    pub fn is_owed(&self) -> bool {
        self.by == By::Share
    }

    /// It went by this member's own part, and is still to be counted together.
    pub fn go_by_share(&mut self) {
        self.by = By::Share;
    }

    /// It goes by units that were counted together before.
    pub fn go_by_lease(&mut self) {
        self.by = By::Lease;
    }

    /// Whether its request was counted as admitted.
    #[must_use]
    pub fn is_counted(&self) -> bool {
        self.counted
    }

    /// What it was made for; taken, but where limits do not hold.
    #[must_use]
    pub fn cost(&self) -> Cost {
        self.cost
    }
}
