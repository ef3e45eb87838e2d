//! Seeded worlds, the provider emulator, and the real processes (our own, etcd, Redis) that the demo and the tests run.
//!
//! A seeded world is made of `events` (virtual time, what is to happen, dice, clocks that drift), `lossy` (etcd behind a bad
//! network) and `errand` (code that waits for a store, run by hand).

pub mod emulator;
pub mod errand;
mod etcd;
pub mod events;
pub mod lossy;
pub mod process;
mod redis;
pub mod seat;
pub mod world;

pub use self::redis::{RedisServer, RedisServerTls, RedisSetup};
pub use etcd::{Etcd, EtcdServerTls, EtcdSetup};
pub use seat::Seat;
