//! What threads share, behind a thin shim: a lock, a swapped pointer and a number.
//!
//! The gate is written over [`Cells`], so that a model checker can run it in every order that threads could.

use std::fmt;
use std::ops::DerefMut;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use parking_lot::{Mutex, MutexGuard};

/// A kind of shared memory.
pub trait Cells: 'static {
    /// A mutual exclusion.
    type Lock<T: Send + fmt::Debug>: Lock<T>;
    /// A pointer that is read while it is replaced.
    type Pointer<T: Send + Sync + fmt::Debug>: Pointer<T>;
    /// A number that tells of what was written before it.
    type Number: Number;
}

/// A mutual exclusion.
pub trait Lock<T>: fmt::Debug {
    /// Access to the value, which ends when it is dropped.
    type Guard<'a>: DerefMut<Target = T>
    where
        Self: 'a;
    /// Around this value.
    fn new(value: T) -> Self;
    /// Waits until nobody else has access.
    fn lock(&self) -> Self::Guard<'_>;
    /// Does something with the value, alone.
    fn with<R>(&self, work: impl FnOnce(&mut T) -> R) -> R {
        work(&mut self.lock())
    }
}

/// A pointer that is read while it is replaced.
pub trait Pointer<T>: fmt::Debug {
    /// To this value.
    fn new(value: Arc<T>) -> Self;
    /// The value now.
    fn load(&self) -> Arc<T>;
    /// Replaces the value; readers of the old one keep it.
    fn store(&self, value: Arc<T>);
}

/// A number: who reads one sees everything that was written before it was set.
pub trait Number: fmt::Debug {
    /// Begins with this.
    fn new(value: u64) -> Self;
    /// The number now.
    fn get(&self) -> u64;
    /// Sets it.
    fn set(&self, value: u64);
}

/// The machine's own: `parking_lot` and `arc_swap`.
#[derive(Debug)]
pub struct Native;

impl Cells for Native {
    type Lock<T: Send + fmt::Debug> = Mutex<T>;
    type Pointer<T: Send + Sync + fmt::Debug> = ArcSwap<T>;
    type Number = AtomicU64;
}

impl<T: fmt::Debug> Lock<T> for Mutex<T> {
    type Guard<'a>
        = MutexGuard<'a, T>
    where
        Self: 'a;

    fn new(value: T) -> Self {
        Self::new(value)
    }

    #[inline]
    fn lock(&self) -> MutexGuard<'_, T> {
        self.lock()
    }
}

impl<T: fmt::Debug> Pointer<T> for ArcSwap<T> {
    fn new(value: Arc<T>) -> Self {
        Self::new(value)
    }

    fn load(&self) -> Arc<T> {
        self.load_full()
    }

    fn store(&self, value: Arc<T>) {
        self.store(value);
    }
}

impl Number for AtomicU64 {
    fn new(value: u64) -> Self {
        Self::new(value)
    }

    #[inline]
    fn get(&self) -> u64 {
        self.load(Ordering::Acquire)
    }

    fn set(&self, value: u64) {
        self.store(value, Ordering::Release);
    }
}
