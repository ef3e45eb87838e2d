//! Holds: the provider refused, and for a while nobody sends.

use crate::clock::MonoTime;
use crate::quota::Meter;

/// Until when nothing is sent that the meter's unit counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hold {
    /// Which meter.
    pub meter: Meter,
    /// Until then.
    pub until: MonoTime,
}

/// A hold in force at one limiter, or just over.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) meter: Meter,
    pub(super) until: MonoTime,
    /// It has ended, and the meters of its unit have started slowly.
    pub(super) released: bool,
}

impl Held {
    pub(super) fn new(hold: Hold) -> Self {
        Self { meter: hold.meter, until: hold.until, released: false }
    }
}
