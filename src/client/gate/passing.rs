//! A gate that does not enforce: it admits all.
//!
//! One that observes decides first. Who would have waited, and been in time, takes its units now, into debt, as it would
//! have taken them in its turn; who would have been refused takes nothing. So what is counted is what enforcing would have
//! done. Only of what calls in flight must give back (a place, or the leave for one more that is larger than a burst) nobody
//! knows how long it is waited for: who waits for that counts as refused.

use super::{Answer, Asker, State, Wake};
use crate::clock::MonoTime;
use crate::limiter::{Bound, Denial, Never, Reservation, Wait};
use crate::plan::Mode;
use crate::quota::Cost;

impl<W: Wake> State<W> {
    /// Whether it decides for itself, and what it decides holds.
    pub(super) fn is_plain(&self) -> bool {
        !self.closed && self.mode.enforces()
    }

    /// Admits one whom nothing holds back: units are taken of one who could have gone in time, and of nobody else.
    pub(super) fn let_pass(&mut self, cost: &Cost, deadline: MonoTime, now: MonoTime) -> Reservation {
        if self.mode == Mode::Off {
            return Reservation::of_nothing(cost, now);
        }
        match self.limiter.decide(cost, now) {
            Ok(reservation) => reservation,
            Err(Denial::WaitUntil(Wait { at: Some(at), .. })) if at <= deadline => {
                self.aside.would_wait += 1;
                self.limiter.take(cost, now)
            }
            Err(_) => {
                self.aside.would_refuse += 1;
                self.limiter.let_pass(cost, now)
            }
        }
    }

    /// Both gates, or neither, as far as they enforce.
    pub(super) fn ask_both(&mut self, asker: &mut Asker<W>, parent: &mut Self, now: MonoTime) -> Answer {
        if parent.mode.enforces() {
            return self.ask_with_parent(asker, parent, now);
        }
        parent.leave_as_child(asker);
        match self.ask(asker, now) {
            Answer::Admitted(mine, _) => {
                let theirs = parent.let_pass(&asker.cost, asker.deadline, now);
                parent.reserve_unless_off(&asker.cost);
                Answer::Admitted(mine, Some(theirs))
            }
            answer => answer,
        }
    }

    /// One that was decided on without the parent, which only observes, is admitted here, and passes there.
    pub(super) fn admitted_beside(&mut self, asker: &mut Asker<W>, parent: &mut Self, now: MonoTime) -> Reservation {
        let theirs = parent.let_pass(&asker.cost, asker.deadline, now);
        parent.reserve_unless_off(&asker.cost);
        self.admitted(asker);
        theirs
    }

    /// Why it would never admit such a request, if it enforces.
    pub(super) fn never_fits(&self, cost: &Cost) -> Option<Never> {
        self.limiter.never(cost).filter(|_| self.mode.enforces())
    }

    /// When everything `ahead` and `cost` could go; now, where nothing is enforced.
    pub(super) fn expected(&self, ahead: &Cost, cost: &Cost, now: MonoTime) -> Wait {
        if self.mode.enforces() {
            self.limiter.expected(ahead, cost, now)
        } else {
            Wait { at: Some(now), by: Bound::Concurrency }
        }
    }
}
