//! All tests that need more than one module.

#![allow(unreachable_pub, reason = "the crate is a test: nothing is reachable, and pub says what a file offers")]
#![allow(clippy::too_many_lines, reason = "a story is told in one piece, a table of cases too")]

mod admission;
mod architecture;
mod by_hand;
mod config;
mod emulator;
mod member;
mod middleware;
mod provider;
mod records;
mod session;
mod store;
mod telemetry;
