//! An LLM provider to test against: OpenAI's or Anthropic's wire shape, continuous-refill limits, and a truth to judge
//! by. One emulator is one account of one provider.
//!
//! [`account`] is the provider's arithmetic and its counters, [`latency`] draws how long answers take, [`faults`] what
//! goes wrong on purpose; all three are pure. `openai` and `anthropic` are the two dialects of one trait, `wire`.
//! [`server`] puts it all behind HTTP, `body` times what it sends, and [`admin`] changes the limits under a running
//! client — what real providers do without notice.

pub mod account;
pub mod admin;
mod anthropic;
mod body;
pub mod faults;
pub mod latency;
mod metrics;
pub mod openai;
pub mod server;
mod wire;

pub use account::{Account, AccountParams};
pub use admin::EmulatorState;
pub use faults::FaultParams;
pub use latency::LatencyParams;
pub use server::{Emulator, EmulatorError, EmulatorParams};
