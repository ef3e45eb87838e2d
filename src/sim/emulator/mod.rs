//! An LLM provider to test against: OpenAI's wire shape, continuous-refill limits, and a truth to judge by.
//!
//! [`account`] is the provider's arithmetic and its counters, pure; [`latency`] draws how long answers take;
//! [`server`] puts both behind HTTP, with an admin interface that changes the limits under a running client — what
//! real providers do without notice.

pub mod account;
pub mod latency;
pub mod server;

pub use account::{Account, AccountParams};
pub use latency::LatencyParams;
pub use server::{Emulator, EmulatorError, EmulatorParams, EmulatorState};
