//! `tidegate emulate`: an LLM provider to test against.

use std::io::Write;
use std::net::SocketAddr;

use clap::builder::{PossibleValuesParser, TypedValueParser};

use super::Failure;
use super::signals::Signals;
use crate::sim::emulator::{
    AccountParams, Emulated, Emulator, EmulatorError, EmulatorParams, FaultParams, LatencyParams, ServerParams,
};

/// Known by name, so that a shell can complete them.
fn dialects() -> impl TypedValueParser<Value = Emulated> {
    PossibleValuesParser::new(Emulated::ALL.map(Emulated::as_str)).try_map(|name| name.parse::<Emulated>())
}

/// Arguments of `tidegate emulate`.
#[derive(Debug, clap::Args)]
pub(super) struct EmulateArgs {
    /// Whose account it is.
    #[arg(long, value_name = "NAME", default_value_t = Emulated::OpenAi, value_parser = dialects())]
    dialect: Emulated,
    /// Loopback address and port to listen on; port 0 takes any free one.
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:8787")]
    listen: SocketAddr,
    /// Seed of latencies, lengths, faults and request ids; the same seed, the same answers.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,

    /// Limit in requests per minute [range: 1–1000000000].
    #[arg(long, value_name = "N", default_value_t = 600, help_heading = "Limits")]
    requests_per_minute: u64,
    /// groq, gemini, fixed-window: limit in requests per day [range: 1–1000000000] [default: 14400, 10000, 12000].
    #[arg(long, value_name = "N", help_heading = "Limits")]
    requests_per_day: Option<u64>,
    /// openai, azure, groq: limit in LLM tokens per minute [range: 1–1000000000] [default: 200000].
    #[arg(long, value_name = "N", help_heading = "Limits")]
    tokens_per_minute: Option<u64>,
    /// fixed-window: limit in LLM tokens per day [range: 1–1000000000] [default: 20000000].
    #[arg(long, value_name = "N", help_heading = "Limits")]
    tokens_per_day: Option<u64>,
    /// anthropic, gemini: limit in input LLM tokens per minute [range: 1–1000000000] [default: 200000].
    #[arg(long, value_name = "N", help_heading = "Limits")]
    input_tokens_per_minute: Option<u64>,
    /// anthropic: limit in output LLM tokens per minute [range: 1–1000000000] [default: 40000].
    #[arg(long, value_name = "N", help_heading = "Limits")]
    output_tokens_per_minute: Option<u64>,
    /// What the account's buckets hold, in seconds of refill [range: 0.1–86400].
    ///
    /// A request that asks for more than that, or for more than a minute's limit, never fits. A day's bucket holds the
    /// same part of its limit; a fixed window holds all of it.
    #[arg(long, value_name = "SECONDS", default_value_t = 60.0, help_heading = "Limits")]
    burst_seconds: f64,
    /// Requests per minute that somebody else uses up on the same account [range: 0–1000000000].
    #[arg(long, value_name = "N", default_value_t = 0.0, help_heading = "Limits")]
    hidden_requests_per_minute: f64,
    /// Not anthropic, which always does: charge a request's `max_tokens` at arrival, beside its estimated input, and never correct it.
    #[arg(long, help_heading = "Limits")]
    charge_max_tokens: bool,

    /// Median time to the response head, in milliseconds [range: 0–600000].
    #[arg(long, value_name = "MS", default_value_t = 300.0, help_heading = "Answers")]
    ttft_ms: f64,
    /// Spread of that time, the standard deviation of its logarithm [range: 0–3; 0 is constant].
    #[arg(long, value_name = "SIGMA", default_value_t = 0.4, help_heading = "Answers")]
    ttft_sigma: f64,
    /// Time per output token after the head, in milliseconds [range: 0–10000].
    #[arg(long, value_name = "MS", default_value_t = 5.0, help_heading = "Answers")]
    ms_per_token: f64,
    /// Median length of an answer, in LLM tokens [range: 1–100000].
    #[arg(long, value_name = "N", default_value_t = 40, help_heading = "Answers")]
    output_tokens: u64,
    /// Requests answered at a time, as vLLM's `max_num_seqs`; the others wait in a line, without a 429
    /// [range: 1–100000] [default: no limit].
    ///
    /// Times count from when a request has its slot. A slot is free when the answer's last byte is sent, or its caller
    /// has gone.
    #[arg(long, value_name = "N", help_heading = "Answers")]
    slots: Option<u32>,
    /// How much slower answers are with all slots taken: times are 1 + FACTOR × running ÷ slots times longer, as of
    /// when a request gets its slot [range: 0–100].
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0, requires = "slots", help_heading = "Answers")]
    crowding: f64,
    /// Send no rate-limit headers and no retry-after, on 429s neither: the client must find the limits out.
    #[arg(long, help_heading = "Answers")]
    no_headers: bool,

    /// Part of the requests answered "overloaded" and not charged: 503, 529 from anthropic, 429 from azure [range: 0–1].
    #[arg(long, value_name = "RATE", default_value_t = 0.0, help_heading = "Faults")]
    overload_rate: f64,
    /// Part of the streams that end in an error event, somewhere after status 200 [range: 0–1].
    #[arg(long, value_name = "RATE", default_value_t = 0.0, help_heading = "Faults")]
    stream_error_rate: f64,
    /// anthropic: part of the successes with a `retry-after` that asks for nothing, as the real one sends
    /// [range: 0–1; 0 is never] [default: 0.1].
    #[arg(long, value_name = "RATE", help_heading = "Faults")]
    stray_retry_after_rate: Option<f64>,
}

impl EmulateArgs {
    /// What is not given is as the dialect has it; what is given and not the dialect's is refused where it is used.
    fn params(&self) -> EmulatorParams {
        let usual = EmulatorParams::of(self.dialect);
        EmulatorParams {
            dialect: self.dialect,
            account: AccountParams {
                requests_per_minute: self.requests_per_minute,
                requests_per_day: self.requests_per_day.or(usual.account.requests_per_day),
                tokens_per_minute: self.tokens_per_minute.or(usual.account.tokens_per_minute),
                tokens_per_day: self.tokens_per_day.or(usual.account.tokens_per_day),
                input_tokens_per_minute: self.input_tokens_per_minute.or(usual.account.input_tokens_per_minute),
                output_tokens_per_minute: self.output_tokens_per_minute.or(usual.account.output_tokens_per_minute),
                burst_seconds: self.burst_seconds,
                hidden_requests_per_minute: self.hidden_requests_per_minute,
                ..usual.account
            },
            latency: LatencyParams {
                ttft_ms: self.ttft_ms,
                ttft_sigma: self.ttft_sigma,
                ms_per_token: self.ms_per_token,
                output_tokens: self.output_tokens,
            },
            faults: FaultParams {
                overload_rate: self.overload_rate,
                stream_error_rate: self.stream_error_rate,
                stray_retry_after_rate: self.stray_retry_after_rate.unwrap_or(usual.faults.stray_retry_after_rate),
            },
            server: ServerParams { slots: self.slots, crowding: self.crowding },
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
    announce(&emulator);
    emulator.serve(signals.received()).await.map_err(|error| Failure::Run(error.to_string()))
}

fn announce(emulator: &Emulator) {
    let mut out = std::io::stdout().lock();
    // Nobody listening on stdout is no reason not to serve.
    let _ = writeln!(out, "emulator listening on http://{}", emulator.local_addr());
    let _ = writeln!(out, "try: {}", emulator.example());
    let _ = out.flush();
}
