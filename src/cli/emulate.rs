//! `tidegate emulate`: an LLM provider to test against.

use std::io::Write;
use std::net::SocketAddr;

use super::Failure;
use super::signals::Signals;
use crate::sim::emulator::{AccountParams, Emulator, EmulatorError, EmulatorParams, LatencyParams};

/// Arguments of `tidegate emulate`.
#[derive(Debug, clap::Args)]
pub(super) struct EmulateArgs {
    /// Loopback address and port to listen on; port 0 takes any free one.
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:8787")]
    listen: SocketAddr,
    /// Limit in requests per minute [range: 1–1000000000].
    #[arg(long, value_name = "N", default_value_t = 600)]
    requests_per_minute: u64,
    /// Limit in LLM tokens per minute [range: 1–1000000000].
    #[arg(long, value_name = "N", default_value_t = 200_000)]
    tokens_per_minute: u64,
    /// What the account's buckets hold, in seconds of refill [range: 0.1–86400].
    #[arg(long, value_name = "SECONDS", default_value_t = 60.0)]
    burst_seconds: f64,
    /// Requests per minute that somebody else uses up on the same account [range: 0–1000000000].
    #[arg(long, value_name = "N", default_value_t = 0.0)]
    hidden_requests_per_minute: f64,
    /// Send no rate-limit headers, on 429s neither: the client must find the limits out.
    #[arg(long)]
    no_headers: bool,
    /// Median time to the response head, in milliseconds [range: 0–600000].
    #[arg(long, value_name = "MS", default_value_t = 300.0)]
    ttft_ms: f64,
    /// Spread of that time, the standard deviation of its logarithm [range: 0–3; 0 is constant].
    #[arg(long, value_name = "SIGMA", default_value_t = 0.4)]
    ttft_sigma: f64,
    /// Time per output token after the head, in milliseconds [range: 0–10000].
    #[arg(long, value_name = "MS", default_value_t = 5.0)]
    ms_per_token: f64,
    /// Median length of an answer, in LLM tokens [range: 1–100000].
    #[arg(long, value_name = "N", default_value_t = 40)]
    output_tokens: u64,
    /// Charge a request's `max_tokens` at arrival, beside its estimated input.
    #[arg(long)]
    charge_max_tokens: bool,
    /// Seed of latencies, lengths and request ids.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
}

impl EmulateArgs {
    const fn params(&self) -> EmulatorParams {
        EmulatorParams {
            account: AccountParams {
                requests_per_minute: self.requests_per_minute,
                tokens_per_minute: self.tokens_per_minute,
                burst_seconds: self.burst_seconds,
                hidden_requests_per_minute: self.hidden_requests_per_minute,
                hidden_tokens_per_minute: 0.0,
            },
            latency: LatencyParams {
                ttft_ms: self.ttft_ms,
                ttft_sigma: self.ttft_sigma,
                ms_per_token: self.ms_per_token,
                output_tokens: self.output_tokens,
            },
            headers: !self.no_headers,
            charge_max_tokens: self.charge_max_tokens,
            seed: self.seed,
        }
    }
}

/// Serves until a signal.
pub(super) async fn emulate(args: EmulateArgs) -> Result<(), Failure> {
    let mut signals = Signals::watch()?;
    let emulator = Emulator::bind(args.listen, args.params()).await.map_err(|error| match error {
        EmulatorError::Params(_) | EmulatorError::NotLoopback(_) => Failure::Usage(error.to_string()),
        _ => Failure::Run(error.to_string()),
    })?;
    announce(emulator.local_addr());
    emulator.serve(signals.received()).await.map_err(|error| Failure::Run(error.to_string()))
}

fn announce(addr: SocketAddr) {
    let mut out = std::io::stdout().lock();
    // Nobody listening on stdout is no reason not to serve.
    let _ = writeln!(out, "emulator listening on http://{addr}");
    let _ = writeln!(
        out,
        r#"try: curl -i http://{addr}/v1/chat/completions -d '{{"model":"demo","messages":[{{"role":"user","content":"hello"}}]}}'"#
    );
    let _ = out.flush();
}
