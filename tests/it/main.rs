//! All tests that need more than one module.

#![allow(unreachable_pub, reason = "the crate is a test: nothing is reachable, and pub says what a file offers")]
#![allow(clippy::too_many_lines, reason = "a story is told in one piece, a table of cases too")]

mod architecture;
mod closed_loop;
mod config;
mod emulator;
mod provider;
mod records;
mod store;
mod telemetry;
mod world;
