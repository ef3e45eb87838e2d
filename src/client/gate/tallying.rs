//! A gate whose meters members count together: it finds that there is room as far as it can tell, takes places and debits its own
//! part, and is told then what was answered elsewhere. Whatever that is, what it holds is as if it had decided at that moment.

use super::asker::NotBefore;
use super::{Answer, Asker, Gate, State, Wake};
use crate::client::cells::{Cells, Lock};
use crate::clock::MonoTime;
use crate::limiter::{Claimed, Denial, Reservation, Wait};
use crate::quota::{Cost, Meter};

pub use super::lease::Returned;

/// One meter of a request that is being asked elsewhere.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Counted {
    /// What is counted.
    pub claimed: Claimed,
    /// Units on top: a lease.
    pub extra: u64,
    /// Units that went without being counted.
    pub owed: u64,
}

/// A request that is being asked elsewhere.
#[derive(Debug)]
#[must_use = "places were taken for it"]
pub struct Asking {
    mine: Reservation,
    theirs: Option<Reservation>,
    /// What to ask for: of this gate, and of the parent's.
    pub counted: [Vec<Counted>; 2],
}

/// What was answered elsewhere.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Outcome<'a> {
    /// Taken: in which windows, and whether the extra units were too; when the first window ends.
    Taken(&'a [[u64; 2]], bool, Option<std::time::Duration>),
    /// Not before then, says the count of this number: first come this gate's, then the parent's. To be asked again at the second
    /// instant at the latest.
    Not(Wait, MonoTime, usize),
    /// Nothing: nobody answered in time.
    Silent,
}

/// What a gate has to tell where members count together.
#[derive(Debug, Default, PartialEq)]
pub struct Untold {
    /// What went by its own part.
    pub owed: Vec<Counted>,
    /// What is to be given back.
    pub returned: Vec<Returned>,
}

impl<W: Wake, C: Cells> Gate<W, C> {
    /// Learns what was answered elsewhere. With [`Outcome::Silent`] the answer is [`Answer::Moved`]: ask again, for this member's own
    /// part to decide.
    pub fn told(
        &self,
        asker: &mut Asker<W>,
        asking: Asking,
        outcome: Outcome<'_>,
        parent: Option<&Self>,
        now: MonoTime,
    ) -> Answer {
        self.state.with(|state| {
            let answer = match parent {
                None => state.told(asker, asking, outcome, None, now),
                Some(parent) => parent.state.with(|parent| state.told(asker, asking, outcome, Some(parent), now)),
            };
            state.note_pending(asker, &answer);
            answer
        })
    }

    /// What is to be told where members count together, which is told then; `None` when nothing is.
    /// With `all`, what is leased goes back too though its time is not over.
    pub fn take_untold(&self, all: bool, now: MonoTime) -> Option<Untold> {
        self.state.with(|state| state.take_untold(all, now))
    }

    /// It could not be told.
    pub fn not_told(&self, owed: &[Counted]) {
        self.state.with(|state| state.owe_again(owed));
    }
}

impl<W: Wake> State<W> {
    /// Counts a request as neither admitted nor refused while it is neither.
    pub(super) fn note_pending(&mut self, asker: &mut Asker<W>, answer: &Answer) {
        if self.mode == crate::plan::Mode::Off && !asker.pending {
            return;
        }
        let pending = matches!(answer, Answer::Wait(_) | Answer::Moved | Answer::Ask(_));
        if asker.pending != pending {
            self.aside.pending += if pending { 1 } else { -1 };
        }
        asker.pending = pending;
    }

    /// There is room here: takes it, for now.
    pub(super) fn ask_elsewhere(&mut self, asker: &mut Asker<W>, parent: Option<&mut Self>, now: MonoTime) -> Answer {
        let mut mine = self.needs(&asker.cost, now);
        if parent.is_none() && self.aside.lease.take(&mine, now) {
            let mut reservation = self.limiter.take(&asker.cost, now);
            reservation.go_by_lease();
            self.limiter.forgive(now);
            self.admitted(asker);
            return Answer::Admitted(reservation, None);
        }
        self.add_owed(&mut mine);
        let (theirs, counted) = match parent {
            None => {
                self.aside.lease.ask_for_more(&mut mine);
                (None, [mine, Vec::new()])
            }
            Some(parent) => {
                let mut theirs = parent.needs(&asker.cost, now);
                parent.add_owed(&mut theirs);
                (Some(parent.limiter.take_for_now(&asker.cost, now)), [mine, theirs])
            }
        };
        Answer::Ask(Asking { mine: self.limiter.take_for_now(&asker.cost, now), theirs, counted })
    }

    /// What it was told, unless limits have changed since: woken for a place that is free, it need not ask again.
    pub(super) fn told_to_wait(&self, asker: &Asker<W>, now: MonoTime) -> Option<NotBefore> {
        asker.not_before.filter(|told| told.asks_at > now && told.retunes == self.aside.retunes)
    }

    fn needs(&self, cost: &Cost, now: MonoTime) -> Vec<Counted> {
        self.limiter.claimed(cost, now).map(|claimed| Counted { claimed, extra: 0, owed: 0 }).collect()
    }

    /// Tells of what is owed with a question.
    fn add_owed(&mut self, needs: &mut [Counted]) {
        if self.aside.owed.is_empty() {
            return;
        }
        for need in needs {
            let known = self.aside.owed.iter_mut().find(|(meter, _)| *meter == need.claimed.meter);
            need.owed = known.map_or(0, |(_, owed)| std::mem::take(owed));
        }
        self.aside.owed.clear();
    }

    fn owe_again(&mut self, counted: &[Counted]) {
        for counted in counted.iter().filter(|counted| counted.owed > 0) {
            self.owe_units(counted.claimed.meter, counted.owed);
        }
    }

    fn owe_units(&mut self, meter: Meter, units: u64) {
        match self.aside.owed.iter_mut().find(|(known, _)| *known == meter) {
            Some((_, owed)) => *owed = owed.saturating_add(units),
            None => self.aside.owed.push((meter, units)),
        }
    }

    /// A request went by this member's own part.
    pub(super) fn owe(&mut self, reservation: &mut Reservation, now: MonoTime) {
        if self.mode.enforces() && self.limiter.is_tallied() {
            reservation.go_by_share();
            let cost = reservation.cost();
            let claimed: Vec<Claimed> = self.limiter.claimed(&cost, now).filter(|claimed| claimed.units > 0).collect();
            for Claimed { meter, units, .. } in claimed {
                self.owe_units(meter, units);
            }
        }
    }

    /// A request ends that was not counted together by itself: the difference goes to what is owed, or leased.
    pub(super) fn settle_apart(&mut self, reservation: &Reservation, charged: &Cost, now: MonoTime) {
        if !self.limiter.is_tallied() || !(reservation.is_owed() || reservation.is_leased()) {
            return;
        }
        let reserved = reservation.cost();
        let claimed: Vec<Claimed> = self.limiter.claimed(&reserved, now).collect();
        for claimed in claimed {
            let used = charged.units(claimed.meter.unit);
            if used > claimed.units {
                self.owe_units(claimed.meter, used - claimed.units);
                continue;
            }
            let mut back = claimed.units - used;
            if let Some((_, owed)) = self.aside.owed.iter_mut().find(|(meter, _)| *meter == claimed.meter) {
                let paid = back.min(*owed);
                (*owed, back) = (*owed - paid, back - paid);
            }
            if back > 0 && reservation.is_leased() {
                self.aside.lease.put_back(&claimed, back, now);
            }
        }
    }

    fn told(
        &mut self,
        asker: &mut Asker<W>,
        asking: Asking,
        outcome: Outcome<'_>,
        mut parent: Option<&mut Self>,
        now: MonoTime,
    ) -> Answer {
        let Asking { mut mine, mut theirs, counted: [my_counts, their_counts] } = asking;
        self.aside.lease.answered(&my_counts);
        if let Outcome::Taken(marks, extra, window_left) = outcome {
            if extra {
                self.aside.lease.taken(&my_counts, marks, window_left, now);
            }
            self.limiter.confirm(&mut mine, now);
            match (parent, &mut theirs) {
                (Some(parent), Some(theirs)) => {
                    parent.limiter.confirm(theirs, now);
                    self.both_admitted(asker, parent);
                }
                (Some(parent), None) => theirs = Some(self.admitted_beside(asker, parent, now)),
                (None, _) => self.admitted(asker),
            }
            return Answer::Admitted(mine, theirs);
        }
        self.limiter.undo(mine, now);
        // One that only observes was not asked.
        parent = parent.filter(|_| theirs.is_some());
        // A place is free again, for whoever stands first if that is another.
        if let Some((parent, theirs)) = parent.as_deref_mut().zip(theirs) {
            parent.limiter.undo(theirs, now);
            if !asker.parent_ticket.is_some_and(|ticket| parent.aside.line.is_head(ticket)) {
                parent.wake_head();
            }
        }
        if !asker.ticket.is_some_and(|ticket| self.aside.line.is_head(ticket)) {
            self.wake_head();
        }
        let Outcome::Not(wait, asks_at, nth) = outcome else {
            self.owe_again(&my_counts);
            if let Some(parent) = parent {
                parent.owe_again(&their_counts);
            }
            return Answer::Moved;
        };
        if self.closed || !self.mode.enforces() || parent.as_ref().is_some_and(|parent| parent.closed) {
            return Answer::Moved;
        }
        let by_parent = parent.is_some() && nth >= my_counts.len();
        let not_before = NotBefore { wait, asks_at, retunes: self.aside.retunes, by_parent };
        asker.not_before = Some(not_before);
        self.denied_elsewhere(asker, not_before, parent, now)
    }

    /// Stands where it was refused: in the parent's line only for the parent's part, so that it holds nobody up there for its own.
    pub(super) fn denied_elsewhere(
        &mut self,
        asker: &mut Asker<W>,
        told: NotBefore,
        parent: Option<&mut Self>,
        now: MonoTime,
    ) -> Answer {
        let denial = Denial::WaitUntil(told.wait);
        let answer = match parent {
            Some(parent) if told.by_parent => self.denied_by_parent(asker, denial, parent, now),
            Some(parent) => {
                parent.leave_as_child(asker);
                self.denied(asker, denial, None, now)
            }
            None => self.denied(asker, denial, None, now),
        };
        match answer {
            Answer::Wait(until) => Answer::Wait(until.min(told.asks_at)),
            answer => answer,
        }
    }

    fn take_untold(&mut self, all: bool, now: MonoTime) -> Option<Untold> {
        if !self.limiter.is_tallied() {
            self.aside.owed.clear();
        }
        if all || !self.limiter.is_tallied() {
            self.aside.lease.give_up();
        }
        self.aside.lease.end(now);
        let returned = std::mem::take(&mut self.aside.lease.returned);
        let mut owed = Vec::new();
        if !self.aside.owed.is_empty() {
            owed = self.needs(&Cost { requests: 0, input_tokens: 0, output_tokens: 0 }, now);
            self.add_owed(&mut owed);
            owed.retain(|counted| counted.owed > 0);
        }
        (!owed.is_empty() || !returned.is_empty()).then_some(Untold { owed, returned })
    }
}
