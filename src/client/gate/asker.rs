//! Who asks a gate.

use std::fmt;

use crate::clock::MonoTime;
use crate::limiter::{Priority, Ticket, Wait};
use crate::quota::Cost;

/// How one who waits is told to ask again.
pub trait Wake: Clone + Default + Send + Sync + fmt::Debug {
    /// Ask again. One that is told before he listens must hear it all the same.
    fn wake(&self);
}

/// What a request was told elsewhere: not to ask again before then.
#[derive(Debug, Clone, Copy)]
pub(super) struct NotBefore {
    /// What it was told.
    pub(super) wait: Wait,
    /// When it asks again all the same: others give back what they did not use.
    pub(super) asks_at: MonoTime,
    /// How often limits had changed.
    pub(super) retunes: u64,
    /// Whether it was the parent's part that was not there.
    pub(super) by_parent: bool,
}

/// One request on its way to admission.
#[derive(Debug)]
pub struct Asker<W> {
    pub(super) cost: Cost,
    pub(super) priority: Priority,
    pub(super) deadline: MonoTime,
    /// Made when he joins a line: most never do.
    pub(super) wake: Option<W>,
    pub(super) ticket: Option<Ticket>,
    /// Its place in the parent's line, which it leaves whenever it is not its turn here, and then comes back to.
    pub(super) parent_ticket: Option<Ticket>,
    /// Its gate counts it as neither admitted nor refused.
    pub(super) pending: bool,
    pub(super) waited: bool,
    /// Whether what members count together is asked where they count it.
    pub(super) together: bool,
    pub(super) not_before: Option<NotBefore>,
}

impl<W: Wake> Asker<W> {
    /// A request of this cost that waits until then.
    #[must_use]
    pub fn new(cost: Cost, priority: Priority, deadline: MonoTime) -> Self {
        let (wake, ticket, parent_ticket) = (None, None, None);
        let (pending, waited, together, not_before) = (false, false, false, None);
        Self { cost, priority, deadline, wake, ticket, parent_ticket, pending, waited, together, not_before }
    }

    /// Says whether what members count together is asked where they count it; if not, this member's own part of it decides.
    pub fn count_together(&mut self, together: bool) {
        self.together = together;
    }

    /// How it is told to ask again; `None` while it was not told to wait.
    pub fn wake(&self) -> Option<&W> {
        self.wake.as_ref()
    }

    pub(super) fn waker(&mut self) -> W {
        self.wake.get_or_insert_default().clone()
    }
}
