//! All tests that need more than one module.

mod architecture;
mod config;
mod telemetry;
