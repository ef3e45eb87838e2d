//! An LLM provider to test against: OpenAI's or Anthropic's wire shape, continuous-refill limits, and a truth to judge
//! by. One emulator is one account of one provider.
//!
//! [`account`] is the provider's arithmetic and its counters, [`latency`] draws how long answers take, [`faults`] what
//! goes wrong on purpose; all three are pure. `openai` and `anthropic` are the two dialects of one trait, `wire`.
//! [`server`] puts it all behind HTTP, `body` times what it sends, and [`admin`] changes the limits under a running
//! client — what real providers do without notice.
//!
//! In a test of your own, in its process:
//!
//! ```
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use tidegate::provider::Dialect;
//! use tidegate::sim::emulator::{AccountParams, Emulator, EmulatorParams};
//!
//! // One request, then one a minute.
//! let account = AccountParams { requests_per_minute: 1, burst_seconds: 0.1, ..AccountParams::of(Dialect::OpenAi) };
//! let params = EmulatorParams { account, ..EmulatorParams::of(Dialect::OpenAi) };
//! let emulator = Emulator::bind("127.0.0.1:0".parse()?, params).await?;
//! let url = format!("http://{}/v1/chat/completions", emulator.local_addr());
//! tokio::spawn(emulator.serve(std::future::pending()));
//!
//! let http = reqwest::Client::builder().no_proxy().build()?;
//! let body = r#"{"model":"m","messages":[{"role":"user","content":"hello"}]}"#;
//! assert_eq!(http.post(&url).body(body).send().await?.status(), 200);
//! let refused = http.post(&url).body(body).send().await?;
//! assert_eq!(refused.status(), 429);
//! assert_eq!(refused.headers()["x-ratelimit-remaining-requests"], "0");
//! # Ok(()) }
//! ```

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
