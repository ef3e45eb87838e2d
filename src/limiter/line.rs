//! The line of those who wait: two classes of urgency, each first come, first served, and nobody starves.
//!
//! A waiter's *rank* is the instant it arrived; for a batch request, [`BATCH_STEPS_BACK`] later. The lowest rank is
//! served first. An interactive request so goes before the batch requests that came up to 30 s ahead of it, and before
//! no others: a batch request that has waited longer goes before whatever arrives then, however many arrive.
//!
//! Only the head of the line asks the limiter; a small request behind a large one does not overtake it, so a large
//! one cannot starve.
//!
//! Invariants:
//! - A rank never changes, so neither does the order of two who wait.
//! - The line's time never goes back: who joins at an earlier `now` than the one before him counts as arrived with him.
//!   Within a class, rank order is therefore the order of joining.
//! - Everything but [`Line::all`] takes O(log n) steps in the worst case, whoever leaves from wherever. Memory is one
//!   allocation for each who waits, and none for an empty line.

use std::iter;
use std::time::Duration;

use crate::clock::MonoTime;
use crate::quota::Cost;

/// How much later than it came a batch request counts as arrived: the most that an interactive request may come after
/// it and still go before it.
pub const BATCH_STEPS_BACK: Duration = Duration::from_secs(30);

/// How urgent a request is. In this order when ranks are equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum Priority {
    /// Someone waits for the answer.
    #[default]
    Interactive,
    /// Steps back for interactive requests, up to [`BATCH_STEPS_BACK`].
    Batch,
}

impl Priority {
    const fn steps_back(self) -> Duration {
        match self {
            Self::Interactive => Duration::ZERO,
            Self::Batch => BATCH_STEPS_BACK,
        }
    }
}

/// A place in a line: never given twice by one line. Of two tickets of a line, the lower is served first.
// The order of the fields is the order of the line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket {
    rank: MonoTime,
    priority: Priority,
    number: u64,
}

/// What stands before someone in line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ahead {
    /// How many wait.
    pub waiters: usize,
    /// What they need together; a part that does not fit its number is that number's largest value.
    pub cost: Cost,
}

impl Ahead {
    // Saturating sums of what is never negative come out the same in any order, and nothing is ever subtracted here:
    // a sum that was too large is exact again when those who made it so have left.
    const fn plus(&self, other: &Self) -> Self {
        Self { waiters: self.waiters + other.waiters, cost: self.cost.plus(&other.cost) }
    }
}

/// A line of waiters; `T` is how a waiter is woken.
///
/// The line tells nobody that his turn came: the caller compares [`Line::head`] before and after a change.
#[derive(Debug)]
pub struct Line<T> {
    root: Link<T>,
    /// The next ticket's number.
    next: u64,
    /// The line's time: the latest arrival.
    latest: MonoTime,
}

impl<T> Default for Line<T> {
    fn default() -> Self {
        Self { root: None, next: 0, latest: MonoTime::default() }
    }
}

impl<T> Line<T> {
    /// How many wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.root.as_ref().map_or(0, |root| root.sum.waiters)
    }

    /// Whether nobody waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.root.is_none()
    }

    /// Joins behind all of its class.
    pub fn join(&mut self, cost: Cost, priority: Priority, now: MonoTime, wake: T) -> Ticket {
        let ticket = self.newcomer(priority, now);
        self.rejoin(ticket, cost, wake);
        ticket
    }

    /// Comes back to the place of a ticket that left, as if it had never gone. A ticket that still stands there keeps
    /// its place, with the new cost and wake.
    ///
    /// A ticket of another line may come too, if all such come from one line: two lines may give equal tickets. Who
    /// joins after it stands behind it.
    pub fn rejoin(&mut self, ticket: Ticket, cost: Cost, wake: T) {
        self.next = self.next.max(ticket.number.saturating_add(1));
        self.latest = self.latest.max(ticket.rank.before(ticket.priority.steps_back()));
        insert(&mut self.root, Box::new(Node::new(ticket, cost, wake)));
    }

    /// Leaves the line, admitted or not. Returns its wake if it stood there.
    pub fn leave(&mut self, ticket: Ticket) -> Option<T> {
        remove(&mut self.root, ticket).map(|node| node.wake)
    }

    /// Who is served next, and its wake.
    #[must_use]
    pub fn head(&self) -> Option<(Ticket, &T)> {
        let mut node = self.root.as_deref()?;
        while let Some(before) = node.children[BEFORE].as_deref() {
            node = before;
        }
        Some((node.ticket, &node.wake))
    }

    /// Whether this ticket is at the head.
    #[must_use]
    pub fn is_head(&self, ticket: Ticket) -> bool {
        self.head().is_some_and(|(head, _)| head == ticket)
    }

    /// Whether this ticket stands in line.
    #[must_use]
    pub fn contains(&self, ticket: Ticket) -> bool {
        self.find(ticket).1
    }

    /// What stands before this ticket, if it stands in line.
    #[must_use]
    pub fn ahead_of(&self, ticket: Ticket) -> Option<Ahead> {
        let (ahead, stands) = self.find(ticket);
        stands.then_some(ahead)
    }

    /// What would stand before one who joined now.
    #[must_use]
    pub fn ahead_of_newcomer(&self, priority: Priority, now: MonoTime) -> Ahead {
        self.find(self.newcomer(priority, now)).0
    }

    /// Whether one who joined now would be the head.
    #[must_use]
    pub fn newcomer_is_head(&self, priority: Priority, now: MonoTime) -> bool {
        self.head().is_none_or(|(head, _)| self.newcomer(priority, now) < head)
    }

    /// Everyone's wake, in the order of service.
    pub fn all(&self) -> impl Iterator<Item = &T> {
        let mut way: Vec<&Node<T>> = Vec::new();
        let mut below = self.root.as_deref();
        iter::from_fn(move || {
            while let Some(node) = below {
                way.push(node);
                below = node.children[BEFORE].as_deref();
            }
            let node = way.pop()?;
            below = node.children[AFTER].as_deref();
            Some(&node.wake)
        })
    }

    /// The ticket of one who joined now.
    fn newcomer(&self, priority: Priority, now: MonoTime) -> Ticket {
        let arrival = self.latest.max(now);
        Ticket { rank: arrival + priority.steps_back(), priority, number: self.next }
    }

    /// What stands before a ticket, and whether the ticket stands there itself.
    fn find(&self, ticket: Ticket) -> (Ahead, bool) {
        let mut ahead = Ahead::default();
        let mut below = self.root.as_deref();
        while let Some(node) = below {
            if ticket <= node.ticket {
                if ticket == node.ticket {
                    return (ahead.plus(&node.below(BEFORE)), true);
                }
                below = node.children[BEFORE].as_deref();
            } else {
                ahead = ahead.plus(&node.below(BEFORE)).plus(&node.own());
                below = node.children[AFTER].as_deref();
            }
        }
        (ahead, false)
    }
}

// === The tree ===
//
// A search tree by ticket in which every node holds the sum of its subtree, balanced by the number of nodes: a subtree
// weighs one more than it has nodes, and of two siblings neither weighs more than `HEAVIER_MAX` times the other. So a
// child weighs at most 3/4 of its parent, and n nodes are at most 2.41 · log2(n + 1) deep: recursion is safe. That one
// rotation restores the balance, with these two numbers, is shown in Hirai and Yamamoto, "Balancing weight-balanced
// trees" (2011).

/// Most that a subtree may weigh, times its sibling.
const HEAVIER_MAX: usize = 3;
/// A heavy child is lifted as it is while its inner child weighs less than this many times its outer one.
const INNER_MAX: usize = 2;

/// The child with the lower tickets.
const BEFORE: usize = 0;
/// The child with the higher tickets.
const AFTER: usize = 1;

type Link<T> = Option<Box<Node<T>>>;

#[derive(Debug)]
struct Node<T> {
    ticket: Ticket,
    cost: Cost,
    wake: T,
    /// Itself and all below it.
    sum: Ahead,
    children: [Link<T>; 2],
}

impl<T> Node<T> {
    fn new(ticket: Ticket, cost: Cost, wake: T) -> Self {
        Self { ticket, cost, wake, sum: Ahead { waiters: 1, cost }, children: [None, None] }
    }

    fn own(&self) -> Ahead {
        Ahead { waiters: 1, cost: self.cost }
    }

    /// All on that side of it.
    fn below(&self, side: usize) -> Ahead {
        self.children[side].as_ref().map_or_else(Ahead::default, |child| child.sum)
    }

    fn weight(&self, side: usize) -> usize {
        self.below(side).waiters + 1
    }

    fn sum_up(&mut self) {
        self.sum = self.own().plus(&self.below(BEFORE)).plus(&self.below(AFTER));
    }
}

fn insert<T>(link: &mut Link<T>, new: Box<Node<T>>) {
    let Some(node) = link else {
        *link = Some(new);
        return;
    };
    if new.ticket == node.ticket {
        (node.cost, node.wake) = (new.cost, new.wake);
    } else {
        insert(&mut node.children[usize::from(new.ticket > node.ticket)], new);
    }
    settle(link);
}

fn remove<T>(link: &mut Link<T>, ticket: Ticket) -> Option<Box<Node<T>>> {
    let node = link.as_mut()?;
    if ticket != node.ticket {
        let removed = remove(&mut node.children[usize::from(ticket > node.ticket)], ticket)?;
        settle(link);
        return Some(removed);
    }
    let mut removed = link.take()?;
    let [before, mut after] = std::mem::take(&mut removed.children);
    *link = match take_first(&mut after) {
        Some(mut heir) => {
            heir.children = [before, after];
            Some(heir)
        }
        None => before,
    };
    settle(link);
    Some(removed)
}

fn take_first<T>(link: &mut Link<T>) -> Option<Box<Node<T>>> {
    let node = link.as_mut()?;
    if let Some(first) = take_first(&mut node.children[BEFORE]) {
        settle(link);
        return Some(first);
    }
    let mut first = link.take()?;
    *link = first.children[AFTER].take();
    Some(first)
}

/// Restores the sum and the balance of a subtree in which one node came or went below the top.
fn settle<T>(link: &mut Link<T>) {
    let Some(node) = link else { return };
    node.sum_up();
    for heavy in [BEFORE, AFTER] {
        let light = 1 - heavy;
        if node.weight(heavy) <= HEAVIER_MAX * node.weight(light) {
            continue;
        }
        if let Some(child) = &node.children[heavy]
            && child.weight(light) >= INNER_MAX * child.weight(heavy)
        {
            lift(&mut node.children[heavy], light);
        }
        lift(link, heavy);
        return;
    }
}

/// Lifts the top's child on that side to the top: a rotation.
fn lift<T>(link: &mut Link<T>, side: usize) {
    let Some(mut node) = link.take() else { return };
    let Some(mut child) = node.children[side].take() else {
        *link = Some(node);
        return;
    };
    node.children[side] = child.children[1 - side].take();
    node.sum_up();
    child.children[1 - side] = Some(node);
    child.sum_up();
    *link = Some(child);
}
