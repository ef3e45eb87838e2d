//! Requests in flight: a place for each, given back when it ends, or when it has been away for too long.
//!
//! Places are counted by the slice of time in which they were taken, not one by one: a place whose holder never comes back
//! is free again after [`Concurrency::call_max`], at most a sixth of it later, and costs no memory meanwhile.
//!
//! Invariant: the places taken are at most as many as the limit was when the last of them was taken.

use std::time::Duration;

use crate::clock::MonoTime;

/// Slices of time in which a call may have begun that has not expired, beside the current one. All fit on the ring.
const SLICES: u32 = 6;
const RING: usize = 8;

/// The slice of time in which a place was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slice(u32);

/// Requests in flight, and how many may be.
#[derive(Debug)]
pub(super) struct Concurrency {
    most: u32,
    taken: u32,
    /// The current slice. What was taken in no slice before was taken in it.
    current: u32,
    slice_ms: u32,
    current_until: MonoTime,
    /// Made when a slice ends before the calls that began in it.
    past: Option<Box<Past>>,
}

#[derive(Debug, Default)]
struct Past {
    expired: u64,
    /// How many of the expired came to give their places back after all.
    came_back: u64,
    /// How many were taken in each of the slices before, and are not given back.
    taken: [u32; RING],
}

impl Concurrency {
    /// No limit of its own.
    const UNLIMITED: u32 = u32::MAX;

    pub(super) fn new(call_max: Duration, now: MonoTime) -> Self {
        let slice_ms = call_max.as_nanos().div_ceil(u128::from(SLICES) * 1_000_000);
        let slice_ms = u32::try_from(slice_ms).unwrap_or(u32::MAX).max(1);
        let (most, current_until) = (Self::UNLIMITED, MonoTime::default());
        let mut new = Self { most, taken: 0, current: 0, slice_ms, current_until, past: None };
        new.advance(now);
        new
    }

    pub(super) fn retune(&mut self, most: Option<u32>) {
        self.most = most.unwrap_or(Self::UNLIMITED);
    }

    /// Requests in flight.
    pub(super) fn taken(&self) -> u32 {
        self.taken
    }

    /// Places that nobody gave back in time, since the beginning.
    pub(super) fn expired(&self) -> u64 {
        self.past.as_ref().map_or(0, |past| past.expired)
    }

    /// Requests that may still end: those in flight, and those that have expired and not come back.
    pub(super) fn unended(&self) -> u64 {
        u64::from(self.taken) + self.past.as_ref().map_or(0, |past| past.expired - past.came_back)
    }

    #[inline]
    pub(super) fn has_room(&self) -> bool {
        self.taken < self.most
    }

    /// Frees the places of calls that began longer ago than any call takes. Cheap when a slice has not ended.
    #[inline]
    pub(super) fn advance(&mut self, now: MonoTime) {
        if now >= self.current_until {
            self.next_slice(now);
        }
    }

    #[cold]
    fn next_slice(&mut self, now: MonoTime) {
        let slice_ns = u64::from(self.slice_ms) * 1_000_000;
        let slice = u32::try_from(now.0 / slice_ns).unwrap_or(u32::MAX);
        if self.taken > 0 {
            let past = self.past.get_or_insert_default();
            past.taken[ring(self.current)] = self.taken - past.taken.iter().sum::<u32>();
            // A slice is over for good when every call of it has lasted longer than a call may.
            let known = self.current.saturating_sub(SLICES)..=self.current;
            for over in known.take_while(|begun| begun.saturating_add(SLICES) < slice) {
                let left = std::mem::take(&mut past.taken[ring(over)]);
                self.taken -= left;
                past.expired += u64::from(left);
            }
        }
        self.current = slice;
        self.current_until = MonoTime((u64::from(slice) + 1).saturating_mul(slice_ns));
    }

    /// Whether calls that began in this slice have not expired.
    pub(super) fn lives(&self, slice: Slice) -> bool {
        slice.0.saturating_add(SLICES) >= self.current
    }

    #[inline]
    pub(super) fn take(&mut self, now: MonoTime) -> Slice {
        self.advance(now);
        self.taken += 1;
        Slice(self.current)
    }

    /// Gives a place back; one that has expired is free already.
    #[inline]
    pub(super) fn give_back(&mut self, slice: Slice) {
        if self.lives(slice) {
            self.taken -= 1;
            if let Some(past) = self.past.as_mut().filter(|_| slice.0 != self.current) {
                past.taken[ring(slice.0)] -= 1;
            }
        } else if let Some(past) = &mut self.past {
            past.came_back += 1;
        }
    }
}

#[inline]
fn ring(slice: u32) -> usize {
    slice as usize % RING
}
