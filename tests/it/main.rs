//! All tests that need more than one module.

mod architecture;
mod config;
mod emulator;
mod provider;
mod records;
mod store;
mod telemetry;
