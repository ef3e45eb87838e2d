//! Adaptive limits for services that share LLM provider accounts.

#![forbid(unsafe_code)]
#![warn(missing_docs)]

// Always compiled; pure: no async, no I/O, no OS clock but in `clock`.
pub mod quota;
pub mod clock;
pub mod observation;
pub mod plan;
pub mod provider;
pub mod limiter;
pub mod telemetry;

#[cfg(feature = "store")]
pub mod store;
#[cfg(feature = "client")]
pub mod client;
#[cfg(feature = "metrics")]
#[path = "telemetry/exposition.rs"]
pub mod exposition;
#[cfg(feature = "controller")]
pub mod controller;
#[cfg(feature = "sim")]
pub mod sim;
#[cfg(feature = "cli")]
pub mod config;
#[cfg(feature = "cli")]
pub mod cli;
