//! All tests that need more than one module.

#![allow(unreachable_pub, reason = "the crate is a test: nothing is reachable, and pub says what a file offers")]
#![allow(clippy::too_many_lines, reason = "a story is told in one piece, a table of cases too")]

mod apportion;
mod architecture;
mod config;
mod emulator;
mod law;
mod limiter;
mod planner;
mod provider;
mod records;
mod shares;
mod store;
mod telemetry;
