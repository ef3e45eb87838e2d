//! The three answers of a limiter: *admit*, *wait until*, *never*.

use super::multi::Reservation;
use crate::clock::MonoTime;
use crate::quota::Meter;

/// The three answers: *admit*, or one of the two denials.
pub type Decision = Result<Reservation, Denial>;

/// The two answers that are no admission.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Denial {
    /// Not now.
    WaitUntil(Wait),
    /// Not at this size.
    Never(Never),
}

/// When to ask again, and why not now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wait {
    /// Not before this instant; `None` when only a retune or a settled request can help.
    pub at: Option<MonoTime>,
    /// What decided.
    pub by: Bound,
}

/// What a request waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// Room on this meter: of all, the one that takes longest.
    Meter(Meter),
    /// The provider refused on this meter, and its hold to end.
    Hold(Meter),
    /// A place in flight.
    Concurrency,
    /// An operator to lift a block.
    Block,
}

/// Why a request can never be admitted.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error("needs {needed} of {meter} at once, and the largest request that can be admitted is {largest_request}")]
pub struct Never {
    /// Which meter.
    pub meter: Meter,
    /// Units needed.
    pub needed: f64,
    /// The largest that could be admitted, in units.
    pub largest_request: f64,
}

/// The wait that ends last; one whose end nobody knows ends last of all.
#[inline]
pub(super) fn later(one: Wait, other: Wait) -> Wait {
    let end = |wait: &Wait| wait.at.unwrap_or(MonoTime(u64::MAX));
    if end(&one) >= end(&other) { one } else { other }
}
