//! The gate: one tenant's limiter and line in this process. It decides, and says whom to wake; it never waits itself.
//!
//! *No wake-up is lost.* Whoever changes what a decision rests on does so first and wakes the head of the line after, under
//! the gate's lock; whoever must wait joins the line under the same lock in which he was told to. So either the change
//! comes first and the decision knows of it, or the waiter stands in line when the head is woken. What holds for all
//! tenants of the pool is swapped outside the lock, and read inside it: the same argument.
//!
//! *Order of locks*: a gate's, then its parent's.

mod asker;
mod counting;
mod lease;
mod passing;
mod tallying;

pub use asker::{Asker, Wake};
pub use counting::{Glance, Traffic};
use lease::Lease;
pub use tallying::{Asking, Counted, Outcome, Returned, Untold};

use super::cells::{Cells, Lock, Native};
use super::swap::{PoolWide, Swap};
use crate::clock::MonoTime;
use crate::limiter::{
    Bound, Decision, Denial, Limiter, Limits, Line, Never, Priority, Reservation, Stored, Ticket, Wait,
};
use crate::observation::Counters;
use crate::plan::Mode;
use crate::quota::{Cost, Meter};

/// Most that may wait in one line; the next one is refused at once.
pub const LINE_MAX: usize = 10_000;

/// What a gate answers.
#[derive(Debug)]
pub enum Answer {
    /// Go. With a parent, its reservation too.
    Admitted(Reservation, Option<Reservation>),
    /// There is room here, and places were taken: to be asked where members count together, and then
    /// [told](Gate::told).
    Ask(Asking),
    /// Not in time.
    Late(Late),
    /// Not at this size.
    Never(Never),
    /// Stands in line. To be asked again when woken, at this instant at the latest.
    Wait(MonoTime),
    /// The tenant has another gate now, here or in the parent: leave this one.
    Moved,
}

/// Why a request is not let wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Late {
    /// When it could be admitted, as far as one can tell.
    pub expected: Wait,
    /// Too many wait already.
    pub line_is_full: bool,
}

/// The one that comes later; what nobody can tell comes last.
fn later(a: Wait, b: Wait) -> Wait {
    match (a.at, b.at) {
        (None, _) => a,
        (_, None) => b,
        (Some(first), Some(second)) => {
            if second > first {
                b
            } else {
                a
            }
        }
    }
}

/// Where one who waits stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// How many go before.
    pub ahead: usize,
    /// When it could be its turn, as far as one can tell, and what that hangs on.
    pub expected: Wait,
}

// In this order, for the reason that `Limiter` gives: what no admission at once looks at comes last.
#[derive(Debug)]
#[repr(C)]
struct State<W> {
    /// Which version of what holds for the pool the limiter knows.
    version: u64,
    asked_at: MonoTime,
    /// It enforces, is not closed, and nobody waits.
    open: bool,
    closed: bool,
    mode: Mode,
    /// Refused, beyond those in [`Aside::counters`].
    refused: u32,
    /// Reserved, as is what [`Aside::requests`] tells.
    input_tokens: u64,
    output_tokens: u64,
    limiter: Limiter,
    aside: Aside<W>,
}

/// What no admission at once looks at.
#[derive(Debug)]
struct Aside<W> {
    line: Line<W>,
    /// All that is counted, but the admissions, which the limiter counts, and what was reserved.
    counters: Counters,
    /// Requests reserved, beyond one of each admission.
    requests: i64,
    /// Requests that asked and were neither admitted nor refused. Below zero when they asked at a gate that this one replaced.
    pending: i64,
    would_wait: u64,
    would_refuse: u64,
    /// By how many times rates would be larger with the share for one more waiting request, 1 or more.
    growth: f64,
    /// What went by this member's own part and is not counted together yet, in units.
    owed: Vec<(Meter, u64)>,
    lease: Lease,
    /// How often limits changed.
    retunes: u64,
}

// Derived, it would ask a default of `W` too.
impl<W> Default for Aside<W> {
    fn default() -> Self {
        let (line, counters) = (Line::default(), Counters::default());
        let (owed, lease) = (Vec::new(), Lease::default());
        Self {
            line,
            counters,
            requests: 0,
            pending: 0,
            would_wait: 0,
            would_refuse: 0,
            growth: 1.0,
            owed,
            lease,
            retunes: 0,
        }
    }
}

/// One tenant's limiter and line in this process.
#[derive(Debug)]
pub struct Gate<W: Wake, C: Cells = Native> {
    state: C::Lock<State<W>>,
}

impl<W: Wake, C: Cells> Gate<W, C> {
    /// A gate with this limiter.
    #[must_use]
    pub fn new(limiter: Limiter, now: MonoTime) -> Self {
        let state = State {
            version: 0,
            asked_at: now,
            open: true,
            closed: false,
            mode: Mode::Enforce,
            refused: 0,
            input_tokens: 0,
            output_tokens: 0,
            limiter,
            aside: Aside::default(),
        };
        Self { state: C::Lock::new(state) }
    }

    /// Decides on a request that does not wait, here where there is no parent: what [`Gate::ask`] would do for it, in less time.
    /// `None` says nothing and counts nothing: it is not its turn, or the tenant has another gate; ask.
    #[inline(always)]
    #[allow(clippy::inline_always, reason = "what a call stores has to reach memory before the lock is left: measured")]
    pub fn decide(&self, cost: &Cost, priority: Priority, wide: &Swap<PoolWide, C>, now: MonoTime) -> Option<Decision> {
        // No closure: one that is used in several places is called.
        let mut state = self.state.lock();
        state.catch_up(wide, now);
        if !state.open && !state.is_next(priority, now) {
            return None;
        }
        match state.limiter.decide(cost, now) {
            Ok(reservation) => {
                state.reserve(cost);
                Some(Ok(reservation))
            }
            Err(denial) => Some(Err(state.refused_at_once(denial, cost, now))),
        }
    }

    /// Asks for admission; whoever is told to wait stands in line, until he is admitted or refused, or [leaves](Gate::leave).
    pub fn ask(
        &self,
        asker: &mut Asker<W>,
        wide: &Swap<PoolWide, C>,
        parent: Option<(&Self, &Swap<PoolWide, C>)>,
        now: MonoTime,
    ) -> Answer {
        self.state.with(|state| {
            state.catch_up(wide, now);
            if state.closed {
                return Answer::Moved;
            }
            state.limiter.ask_together(asker.together);
            let answer = match parent {
                None => state.ask(asker, now),
                Some((gate, wide)) => gate.state.with(|parent| {
                    parent.catch_up(wide, now);
                    parent.limiter.ask_together(asker.together);
                    if parent.closed { Answer::Moved } else { state.ask_both(asker, parent, now) }
                }),
            };
            if state.mode == Mode::Off {
                return answer;
            }
            state.note_pending(asker, &answer);
            answer
        })
    }

    /// Admits a request that need not wait, here where there is no parent: what [`Gate::ask`] would do for it, in less time.
    /// `None` says nothing and counts nothing: ask.
    #[inline]
    pub fn admit_at_once(
        &self,
        cost: &Cost,
        priority: Priority,
        wide: &Swap<PoolWide, C>,
        now: MonoTime,
    ) -> Option<Reservation> {
        let mut state = self.state.lock();
        state.catch_up(wide, now);
        if !state.open && !state.is_next(priority, now) {
            return None;
        }
        let reservation = state.limiter.decide(cost, now).ok()?;
        state.reserve(cost);
        Some(reservation)
    }

    /// Leaves the line, and the parent's.
    pub fn leave(&self, asker: &mut Asker<W>, parent: Option<&Self>) {
        if asker.ticket.is_some() || asker.parent_ticket.is_some() {
            self.state.with(|state| state.leave(asker));
            if let Some(parent) = parent {
                parent.state.with(|parent| parent.leave_as_child(asker));
            }
            // It may ask at another parent next, whose line has given other tickets.
            asker.parent_ticket = None;
        }
    }

    /// Where one who waits stands; `None` when he does not.
    pub fn standing(&self, asker: &Asker<W>, parent: Option<&Self>, now: MonoTime) -> Option<Standing> {
        self.state.with(|state| {
            let ahead = state.aside.line.ahead_of(asker.ticket?)?;
            let mut expected = state.expected(&ahead.cost, &asker.cost, now);
            if let Some(parent) = parent {
                expected = later(expected, parent.state.with(|parent| parent.expected(&ahead.cost, &asker.cost, now)));
            }
            Some(Standing { ahead: ahead.waiters, expected })
        })
    }

    /// Puts new limits in force; the head of the line asks again. Opens a gate that was closed.
    pub fn retune(&self, limits: &Limits, now: MonoTime) {
        self.state.with(|state| {
            state.limiter.retune(limits, now);
            state.aside.growth = limits.share_to_come.unwrap_or(1.0);
            state.aside.retunes += 1;
            state.closed = false;
            state.judge_open();
            state.wake_head();
        });
    }

    /// The head of the line asks again.
    pub fn wake_head(&self) {
        self.state.with(|state| state.wake_head());
    }

    /// Everyone in line asks again: their tenants may have gates of their own now.
    pub fn wake_all(&self) {
        self.state.with(|state| state.aside.line.all().for_each(Wake::wake));
    }

    /// Admits nobody any more, and nothing flows in: the tenant has another gate. What is in flight is settled here.
    pub fn close(&self, now: MonoTime) {
        self.state.with(|state| {
            state.limiter.halt(now);
            state.closed = true;
            state.judge_open();
            state.aside.line.all().for_each(Wake::wake);
        });
    }

    /// Ends a request in flight; the head of the line may have its place.
    pub fn settle(&self, reservation: Reservation, charged: Option<Cost>, used: &Cost, now: MonoTime) {
        self.state.with(|state| {
            // As it was counted when it was admitted, whatever the mode is now: what is given back was taken.
            if let Some(charged) = charged.filter(|_| reservation.is_counted()) {
                let reserved = reservation.cost();
                let more = charged.minus(&reserved);
                state.reserve_tokens(&more);
                state.aside.requests += i64::from(more.requests);
                state.aside.counters.returned.add(&reserved.minus(&charged));
                state.settle_apart(&reservation, &charged, now);
            }
            if state.mode != Mode::Off {
                state.aside.counters.settled.add(used);
            }
            state.limiter.settle(reservation, charged, now);
            state.wake_head();
        });
    }

    /// Counts something of the tenant's traffic, unless limits are off.
    pub fn count(&self, count: impl FnOnce(&mut Counters)) {
        self.state.with(|state| {
            if state.mode != Mode::Off {
                count(&mut state.aside.counters);
            }
        });
    }

    /// Frees the places of calls that nobody settled. The head of the line asks again, whoever freed them: a decision may
    /// have, and has woken nobody.
    pub fn expire(&self, now: MonoTime) {
        self.state.with(|state| {
            state.limiter.expire(now);
            state.wake_head();
        });
    }

    /// What it did and is doing.
    pub fn traffic(&self) -> Traffic {
        self.state.with(|state| Traffic {
            counters: state.counters(),
            in_flight: state.limiter.in_flight(),
            waiting: state.aside.line.len(),
            expired: state.limiter.expired(),
            would_wait: state.aside.would_wait,
            would_refuse: state.aside.would_refuse,
        })
    }

    /// The few counts that are looked at often, of a tenant among very many.
    pub fn glance(&self) -> Glance {
        self.state.with(|state| Glance {
            admitted: state.limiter.admitted(),
            refused: state.refusals(),
            waited: state.aside.counters.waited,
            waiting: state.aside.line.len(),
            in_flight: state.limiter.in_flight(),
            expired: state.limiter.expired(),
            would_wait: state.aside.would_wait,
            would_refuse: state.aside.would_refuse,
        })
    }

    /// Whether nothing that happened before `left_at`, when it was closed, counts any more: not even debt that nothing pays.
    pub fn is_over(&self, left_at: MonoTime, now: MonoTime) -> bool {
        self.state.with(|state| {
            let window = state.limiter.longest_window();
            state.aside.line.is_empty() && state.limiter.in_flight() == 0 && now.since(left_at) >= window
        })
    }

    /// What is stored here.
    pub fn stored(&self, now: MonoTime) -> Stored {
        self.state.with(|state| state.limiter.stored(now))
    }

    /// Whether nobody has asked since `since`, and a new gate, restocked, could take its place.
    pub fn is_idle(&self, since: MonoTime, now: MonoTime) -> bool {
        self.state
            .with(|state| state.asked_at <= since && state.aside.line.is_empty() && state.limiter.is_fresh_at(now))
    }
}

impl<W: Wake> State<W> {
    /// Counts a request that does not wait, and is told when it could be admitted.
    fn refused_at_once(&mut self, denial: Denial, cost: &Cost, now: MonoTime) -> Denial {
        self.count_one_refused();
        match denial {
            Denial::WaitUntil(Wait { at: None, by }) => {
                Denial::WaitUntil(Wait { by, ..self.limiter.expected(&Cost::default(), cost, now) })
            }
            denial => denial,
        }
    }

    /// Learns what holds for all tenants of the pool, if that has changed.
    #[inline]
    fn catch_up<C: Cells>(&mut self, wide: &Swap<PoolWide, C>, now: MonoTime) {
        let version = wide.version();
        if self.version != version {
            self.learn(version, wide, now);
        }
        self.asked_at = now;
    }

    #[cold]
    fn learn<C: Cells>(&mut self, version: u64, wide: &Swap<PoolWide, C>, now: MonoTime) {
        let wide = wide.load();
        self.limiter.hold(&wide.all_holds(), now);
        self.mode = wide.mode;
        self.version = version;
        self.judge_open();
    }

    fn judge_open(&mut self) {
        self.open = self.is_plain() && self.aside.line.is_empty() && !self.limiter.is_tallied();
    }

    /// Whether one who asks now goes before all others, and what is decided here holds.
    #[cold]
    fn is_next(&self, priority: Priority, now: MonoTime) -> bool {
        self.is_plain() && !self.limiter.is_tallied() && self.has_turn(None, priority, now)
    }

    fn wake_head(&self) {
        // Nobody waits at an open gate: the line, far off in memory, is not looked at.
        if let Some((_, wake)) = (!self.open).then(|| self.aside.line.head()).flatten() {
            wake.wake();
        }
    }

    /// Whether it is his turn: nobody waits who goes before him.
    fn has_turn(&self, ticket: Option<Ticket>, priority: Priority, now: MonoTime) -> bool {
        match ticket {
            Some(ticket) => self.aside.line.head().is_none_or(|(head, _)| ticket <= head),
            None => self.aside.line.newcomer_is_head(priority, now),
        }
    }

    fn ask(&mut self, asker: &mut Asker<W>, now: MonoTime) -> Answer {
        if !self.mode.enforces() {
            let reservation = self.let_pass(&asker.cost, asker.deadline, now);
            self.admitted(asker);
            return Answer::Admitted(reservation, None);
        }
        if !self.has_turn(asker.ticket, asker.priority, now) {
            return self.no_turn(asker, None, now);
        }
        if asker.together && self.limiter.is_tallied() {
            if let Some(told) = self.told_to_wait(asker, now) {
                return self.denied_elsewhere(asker, told, None, now);
            }
            return match self.limiter.room_apart(&asker.cost, now) {
                Ok(()) => self.ask_elsewhere(asker, None, now),
                Err(denial) => self.denied(asker, denial, None, now),
            };
        }
        match self.limiter.decide(&asker.cost, now) {
            Ok(mut reservation) => {
                self.owe(&mut reservation, now);
                self.admitted(asker);
                Answer::Admitted(reservation, None)
            }
            Err(denial) => self.denied(asker, denial, None, now),
        }
    }

    /// Both gates, or neither; of this one's room nothing hangs if it does not enforce. He stands in the parent's line only
    /// while it is his turn here.
    fn ask_with_parent(&mut self, asker: &mut Asker<W>, parent: &mut Self, now: MonoTime) -> Answer {
        if !self.has_turn(asker.ticket, asker.priority, now) {
            parent.leave_as_child(asker);
            return match parent.limiter.never(&asker.cost) {
                Some(never) => self.never(asker, never),
                None => self.no_turn(asker, Some(parent), now),
            };
        }
        // One that only observes is not counted together with others, and its parent goes by its own part for it.
        asker.together &= self.mode.enforces();
        if let Some(told) = self.told_to_wait(asker, now).filter(|_| asker.together) {
            return self.denied_elsewhere(asker, told, Some(parent), now);
        }
        let room = match (self.mode.enforces(), asker.together) {
            (false, _) => Ok(()),
            (true, true) => self.limiter.room_apart(&asker.cost, now),
            (true, false) => self.limiter.room(&asker.cost, now),
        };
        let decided = match room {
            Err(denial) => {
                parent.leave_as_child(asker);
                return self.denied(asker, denial, None, now);
            }
            Ok(()) if parent.has_turn(asker.parent_ticket, asker.priority, now) => {
                if asker.together && (self.limiter.is_tallied() || parent.limiter.is_tallied()) {
                    match parent.limiter.room_apart(&asker.cost, now) {
                        Ok(()) => return self.ask_elsewhere(asker, Some(parent), now),
                        Err(denial) => Err(denial),
                    }
                } else if self.mode.enforces() {
                    self.limiter.decide_both(&mut parent.limiter, &asker.cost, now)
                } else {
                    let theirs = parent.limiter.decide(&asker.cost, now);
                    theirs.map(|theirs| (self.let_pass(&asker.cost, asker.deadline, now), theirs))
                }
            }
            Ok(()) => Err(parent.denial_out_of_turn(asker, now)),
        };
        match decided {
            Ok((mut mine, mut theirs)) => {
                self.owe(&mut mine, now);
                parent.owe(&mut theirs, now);
                self.both_admitted(asker, parent);
                Answer::Admitted(mine, Some(theirs))
            }
            Err(denial) => self.denied_by_parent(asker, denial, parent, now),
        }
    }

    fn both_admitted(&mut self, asker: &mut Asker<W>, parent: &mut Self) {
        parent.leave_as_child(asker);
        parent.reserve(&asker.cost);
        self.admitted(asker);
    }

    fn denied_by_parent(&mut self, asker: &mut Asker<W>, denial: Denial, parent: &mut Self, now: MonoTime) -> Answer {
        let answer = self.denied(asker, denial, Some(parent), now);
        if matches!(answer, Answer::Wait(_)) {
            parent.stand_as_child(asker, now);
        } else {
            parent.leave_as_child(asker);
        }
        answer
    }

    /// A child's request stands in this line; one that has left comes back to its place.
    fn stand_as_child(&mut self, asker: &mut Asker<W>, now: MonoTime) {
        let wake = asker.waker();
        match asker.parent_ticket {
            None => asker.parent_ticket = Some(self.aside.line.join(asker.cost, asker.priority, now, wake)),
            Some(ticket) if !self.aside.line.contains(ticket) => self.aside.line.rejoin(ticket, asker.cost, wake),
            Some(_) => {}
        }
        self.judge_open();
    }

    /// What the parent says to a child's request whose turn it is not: no turn makes too large a request fit.
    fn denial_out_of_turn(&self, asker: &Asker<W>, now: MonoTime) -> Denial {
        if let Some(never) = self.limiter.never(&asker.cost) {
            return Denial::Never(never);
        }
        let ahead = self.aside.line.ahead_of_newcomer(asker.priority, now);
        Denial::WaitUntil(Wait { at: None, ..self.limiter.expected(&ahead.cost, &asker.cost, now) })
    }

    fn denied(&mut self, asker: &mut Asker<W>, denial: Denial, parent: Option<&Self>, now: MonoTime) -> Answer {
        match denial {
            Denial::Never(never) => self.never(asker, never),
            Denial::WaitUntil(wait) => self.wait(asker, wait, parent, now),
        }
    }

    fn admitted(&mut self, asker: &mut Asker<W>) {
        self.reserve_unless_off(&asker.cost);
        if asker.waited && self.mode != Mode::Off {
            self.aside.counters.waited += 1;
        }
        self.leave(asker);
    }

    fn never(&mut self, asker: &mut Asker<W>, never: Never) -> Answer {
        self.count_refusal();
        self.leave(asker);
        Answer::Never(never)
    }

    /// It is not his turn; but no turn makes too large a request fit.
    fn no_turn(&mut self, asker: &mut Asker<W>, parent: Option<&Self>, now: MonoTime) -> Answer {
        if let Some(never) = self.never_fits(&asker.cost) {
            return self.never(asker, never);
        }
        let ahead = match asker.ticket.and_then(|ticket| self.aside.line.ahead_of(ticket)) {
            Some(ahead) => ahead,
            None => self.aside.line.ahead_of_newcomer(asker.priority, now),
        };
        let mut expected = self.expected(&ahead.cost, &asker.cost, now);
        let mut soonest = self.soonest(expected, &ahead.cost, asker, now);
        if let Some(parent) = parent {
            // Those ahead need room in both.
            let theirs = parent.expected(&ahead.cost, &asker.cost, now);
            expected = later(expected, theirs);
            soonest = later(soonest, parent.soonest(theirs, &ahead.cost, asker, now));
        }
        self.stand(asker, expected, soonest, None, now)
    }

    /// It is his turn, and there is no room.
    fn wait(&mut self, asker: &mut Asker<W>, wait: Wait, parent: Option<&Self>, now: MonoTime) -> Answer {
        // The parent is asked only where there is room here.
        let bounding = parent.unwrap_or(self);
        let ahead = match (wait.at, parent) {
            (None, Some(parent)) => match asker.parent_ticket.and_then(|ticket| parent.aside.line.ahead_of(ticket)) {
                Some(ahead) => ahead.cost,
                None => parent.aside.line.ahead_of_newcomer(asker.priority, now).cost,
            },
            _ => Cost::default(),
        };
        let expected = match wait.at {
            Some(_) => wait,
            None => Wait { by: wait.by, ..bounding.limiter.expected(&ahead, &asker.cost, now) },
        };
        let soonest = bounding.soonest(expected, &ahead, asker, now);
        self.stand(asker, expected, soonest, wait.at, now)
    }

    /// What is expected here if the share for one more waiting request comes at once; of newcomers, who alone are judged by it.
    fn soonest(&self, expected: Wait, ahead: &Cost, asker: &Asker<W>, now: MonoTime) -> Wait {
        if asker.ticket.is_none() && self.mode.enforces() && self.aside.growth > 1.0 {
            self.limiter.expected_at_times(self.aside.growth, ahead, &asker.cost, now)
        } else {
            expected
        }
    }

    /// Lets him stand in line, if it can be in time.
    fn stand(
        &mut self,
        asker: &mut Asker<W>,
        expected: Wait,
        soonest: Wait,
        ask_at: Option<MonoTime>,
        now: MonoTime,
    ) -> Answer {
        let newcomer = asker.ticket.is_none();
        // Nobody knows when a block ends: who does not wait yet need not begin to.
        let late = newcomer && (expected.by == Bound::Block || soonest.at.is_some_and(|at| at > asker.deadline));
        let line_is_full = newcomer && self.aside.line.len() >= LINE_MAX;
        if late || line_is_full || now >= asker.deadline {
            self.count_refusal();
            self.leave(asker);
            return Answer::Late(Late { expected, line_is_full: line_is_full && !late && now < asker.deadline });
        }
        asker.waited = true;
        if newcomer {
            let displaced = self.aside.line.head().map(|(_, wake)| wake.clone());
            let ticket = self.aside.line.join(asker.cost, asker.priority, now, asker.waker());
            asker.ticket = Some(ticket);
            self.judge_open();
            // Who is no longer the first must leave the parent's line.
            if let Some(displaced) = displaced.filter(|_| self.aside.line.is_head(ticket)) {
                displaced.wake();
            }
        }
        Answer::Wait(ask_at.map_or(asker.deadline, |at| at.min(asker.deadline)))
    }

    fn leave(&mut self, asker: &mut Asker<W>) {
        if let Some(ticket) = asker.ticket.take() {
            self.give_up(ticket);
        }
    }

    /// A child's request leaves this line, perhaps to come back: it keeps its ticket.
    fn leave_as_child(&mut self, asker: &Asker<W>) {
        if let Some(ticket) = asker.parent_ticket {
            self.give_up(ticket);
        }
    }

    fn give_up(&mut self, ticket: Ticket) {
        let was_head = self.aside.line.is_head(ticket);
        self.aside.line.leave(ticket);
        self.judge_open();
        if was_head {
            self.wake_head();
        }
    }
}
