//! An LLM provider to test against: a provider's wire shape, its limits with continuous refill or in fixed windows, and a
//! truth to judge by. One emulator is one account of one provider: [`Emulated`] says of which.
//!
//! [`account`] is the provider's arithmetic and its counters, with `meter` for one meter, [`latency`] draws how long
//! answers take, [`slots`] says how many are answered at a time, [`faults`] what goes wrong on purpose; all are pure. Each provider is an implementation of one trait,
//! `wire`; `chat` has the bodies that most copy. Limits are written by the table that clients read them by,
//! [`Dialect::print`](crate::provider::Dialect::print). [`server`] puts it all behind HTTP, `body` times what it sends, and [`admin`] changes the limits under a running
//! client — what real providers do without notice.
//!
//! In a test of your own, in its process:
//!
//! ```
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use tidegate::sim::emulator::{AccountParams, Emulated, Emulator, EmulatorParams};
//!
//! // One request, then one a minute.
//! let account = AccountParams { requests_per_minute: 1, burst_seconds: 0.1, ..AccountParams::of(Emulated::OpenAi) };
//! let params = EmulatorParams { account, ..EmulatorParams::of(Emulated::OpenAi) };
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
mod azure;
mod body;
mod chat;
mod emulated;
pub mod faults;
mod fixed_window;
mod gemini;
mod groq;
pub mod latency;
mod meter;
mod metrics;
mod openai;
pub mod server;
pub mod slots;
mod wire;

pub use account::{Account, AccountParams};
pub use admin::EmulatorState;
pub use emulated::{Emulated, NotEmulated};
pub use faults::FaultParams;
pub use latency::LatencyParams;
pub use server::{Emulator, EmulatorError, EmulatorParams};
pub use slots::ServerParams;
