//! Seeded worlds, the provider emulator, and the real processes (our own, etcd) that the demo and the tests run.

pub mod emulator;
mod etcd;
pub mod process;
pub mod seat;

pub use etcd::{Etcd, EtcdServerTls, EtcdSetup};
pub use seat::Seat;
