//! Meters that all members count together: they are asked elsewhere, and here only debited, so that this member's own part is
//! at its true level whenever it has to go by that.

use super::{By, Limiter, Reservation};
use crate::clock::MonoTime;
use crate::limiter::{Counting, Denial, MeterLimit, TallyRule, Together};
use crate::quota::{Cost, Meter};

/// A meter that is counted together.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tallied {
    meter: Meter,
    counting: Counting,
    together: Together,
}

impl Tallied {
    pub(super) fn of(meter: Meter, limit: &MeterLimit) -> Option<Self> {
        Some(Self { meter, counting: limit.counting, together: limit.together? })
    }

    pub(super) fn meter(&self) -> Meter {
        self.meter
    }
}

/// One meter of a request, as it is counted together.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Claimed {
    /// What is counted.
    pub meter: Meter,
    /// What the tenant may take.
    pub tenant: TallyRule,
    /// What the pool may take.
    pub all: TallyRule,
    /// Members that count, about.
    pub members: u32,
    /// Whether it may take what others leave.
    pub borrows: bool,
    /// Units that the request needs.
    pub units: u64,
}

impl Limiter {
    fn tallied(&self) -> &[Tallied] {
        self.rare.as_ref().map_or(&[], |rare| &rare.tallied)
    }

    /// Whether any of its meters is counted together.
    #[must_use]
    pub fn is_tallied(&self) -> bool {
        !self.tallied().is_empty()
    }

    /// Says whether meters that are counted together are asked where they are, or whether this member's own part decides.
    pub fn ask_together(&mut self, asks: bool) {
        if let Some(rare) = &mut self.rare {
            rare.asked_together = asks;
        }
    }

    /// How much flows in on a meter that is asked elsewhere, in units per second: for whoever of all members stands there.
    pub(super) fn supplies_together(&self, meter: Meter) -> Option<f64> {
        let rare = self.rare.as_ref().filter(|rare| rare.asked_together)?;
        let tallied = rare.tallied.iter().find(|tallied| tallied.meter == meter)?;
        Some(meter.per_second(tallied.together.tenant.rate))
    }

    /// What of a request of this cost is counted together.
    pub fn claimed(&self, cost: &Cost, now: MonoTime) -> impl Iterator<Item = Claimed> {
        self.tallied().iter().map(move |Tallied { meter, counting, together }| Claimed {
            meter: *meter,
            tenant: TallyRule::new(*meter, *counting, together.tenant, now),
            all: TallyRule::new(*meter, *counting, together.pool, now),
            members: together.members,
            borrows: together.borrows,
            units: cost.units(meter.unit),
        })
    }

    /// As [`Limiter::room`], where meters that are counted together are asked elsewhere.
    ///
    /// # Errors
    /// What stands in the way.
    pub fn room_apart(&mut self, cost: &Cost, now: MonoTime) -> Result<(), Denial> {
        self.room_of(cost, true, now)
    }

    /// Takes the units for a request that is still being decided on elsewhere: it is not counted as admitted before it is
    /// [confirmed](Self::confirm).
    pub fn take_for_now(&mut self, cost: &Cost, now: MonoTime) -> Reservation {
        self.rare().unconfirmed += 1;
        self.take(cost, now)
    }

    /// It was admitted elsewhere.
    pub fn confirm(&mut self, reservation: &mut Reservation, now: MonoTime) {
        self.rare().unconfirmed -= 1;
        reservation.by = By::Tally;
        self.forgive(now);
    }

    /// Bounds what this member's own parts owe: a busy one takes more than its part of what all count together, and is not to pay
    /// for that for hours when it has to go by its part again. A bucket owes its burst at the most, a window nothing.
    pub fn forgive(&mut self, now: MonoTime) {
        let tallied: Vec<Meter> = self.tallied().iter().map(|tallied| tallied.meter).collect();
        for (_, counter) in self.meters_mut().filter(|(rule, _)| tallied.contains(&rule.meter)) {
            let (level, burst) = (counter.level_at(now), counter.burst());
            let least = if counter.bucket().is_some() { -burst } else { 0.0 };
            if level < least {
                counter.give_back(least - level, now, now);
            }
        }
    }

    /// It was not, or nobody can tell: all that was taken is given back.
    pub fn undo(&mut self, reservation: Reservation, now: MonoTime) {
        self.settle(reservation, Some(Cost { requests: 0, input_tokens: 0, output_tokens: 0 }), now);
    }
}
