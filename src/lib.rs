//! Adaptive limits for services that share LLM provider accounts.
//!
//! ```text
//! provider ─► observation ─► report ~~HTTP~~► controller: signal ─► law ─► apportion ─► planner ─► publish
//!    ▲                                                                                              │
//! limiter ◄─ swap ◄─ member ◄─ session ◄─ watch ◄~~~~~~~~~~~~~~~~~ etcd ◄───────────────────────────┘
//! ```
//!
//! Services embed the [`client`]: it admits requests, reads response heads, and retunes by what it watches in the
//! [`store`]. The [`controller`] computes thresholds from the members' reports. The two never import each other: they
//! meet in [`observation`] on the way up and in [`plan`] on the way down.
//!
//! Architecture, each line held by a test (`tests/it/architecture.rs`):
//!
//! 1. Imports point one way; there is no circle.
//! 2. The modules above the line below do no I/O, are not async, and read no clock but in [`clock`]: everything that
//!    decides takes `now` and can be replayed.
//! 3. `cfg(feature)` stands in this file only; a folder is a feature.
//! 4. The thin client (`--no-default-features --features client`) pulls in no crate of the controller's own.
//!
//! Words: a *pool* is what one provider limit applies to; a *tenant* is whose traffic it is; a *meter* is a unit over a
//! window (`requests/minute`); the *limit* is what the provider says, the *capacity* our estimate of it; a *threshold*
//! is what a tenant is granted on one meter, a *grant* the record that says so; a *share* is the part of it that one
//! *member* (a live client process) enforces. A *level* is what is in a bucket; a *token* is always an LLM token.

#![forbid(unsafe_code)]

// Always compiled; pure.
pub mod quota;
pub mod clock;
pub mod observation;
pub mod plan;
pub mod provider;
pub mod limiter;
pub mod telemetry;

// What does I/O.
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

/// The README's example, compiled.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct Readme;
