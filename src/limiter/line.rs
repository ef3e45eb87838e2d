//! The line of those who wait: first come, first served, each until its own deadline.
//!
//! Only the head of the line asks the limiter; a small request behind a large one does not overtake it, so a large
//! one cannot starve.

use std::collections::VecDeque;

use crate::quota::Cost;

/// A place in the line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(u64);

#[derive(Debug)]
struct Waiter<T> {
    ticket: Ticket,
    cost: Cost,
    wake: T,
}

/// A line of waiters; `T` is how a waiter is woken.
#[derive(Debug)]
pub struct Line<T> {
    waiters: VecDeque<Waiter<T>>,
    next: u64,
    cost_waiting: Cost,
}

impl<T> Default for Line<T> {
    fn default() -> Self {
        Self { waiters: VecDeque::new(), next: 0, cost_waiting: Cost::default() }
    }
}

impl<T> Line<T> {
    /// How many wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.waiters.len()
    }

    /// Whether nobody waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiters.is_empty()
    }

    /// What all who wait need together.
    #[must_use]
    pub fn cost_waiting(&self) -> Cost {
        self.cost_waiting
    }

    /// Joins at the end.
    pub fn join(&mut self, cost: Cost, wake: T) -> Ticket {
        let ticket = Ticket(self.next);
        self.next += 1;
        self.cost_waiting = self.cost_waiting.plus(&cost);
        self.waiters.push_back(Waiter { ticket, cost, wake });
        ticket
    }

    /// Whether this ticket is at the head.
    #[must_use]
    pub fn is_head(&self, ticket: Ticket) -> bool {
        self.waiters.front().is_some_and(|waiter| waiter.ticket == ticket)
    }

    /// Leaves the line, admitted or not. Returns the new head's wake when the head changed.
    pub fn leave(&mut self, ticket: Ticket) -> Option<&T> {
        let place = self.waiters.iter().position(|waiter| waiter.ticket == ticket)?;
        let waiter = self.waiters.remove(place)?;
        self.cost_waiting = self.cost_waiting.minus(&waiter.cost);
        if place == 0 { self.head() } else { None }
    }

    /// The head's wake.
    #[must_use]
    pub fn head(&self) -> Option<&T> {
        self.waiters.front().map(|waiter| &waiter.wake)
    }

    /// Everyone's wake, first come first.
    pub fn all(&self) -> impl Iterator<Item = &T> {
        self.waiters.iter().map(|waiter| &waiter.wake)
    }
}
