//! The admin interface's words: the state that it tells and the settings that it changes.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::account::{AccountParams, Levels, Truth};
use super::emulated::Emulated;
use super::faults::FaultParams;
use super::slots::ServerParams;

/// A moment on both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    /// Milliseconds since the emulator's start.
    pub uptime_ms: u64,
    /// Milliseconds since 1970-01-01T00:00:00Z: the wall time of the start plus `uptime_ms`.
    pub unix_ms: u64,
}

/// The answer of `GET /admin/state` and `PATCH /admin`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EmulatorState {
    /// Whom it plays.
    pub dialect: Emulated,
    /// The account's settings in force.
    pub account: AccountParams,
    /// Whether answers carry rate-limit headers.
    pub headers: bool,
    /// What goes wrong on purpose.
    pub faults: FaultParams,
    /// How many requests are answered at a time, and what that costs each.
    pub server: ServerParams,
    /// Requests being answered.
    pub running: u32,
    /// Requests that wait for a slot.
    pub queued: u32,
    /// What is in the buckets, by meter.
    pub levels: Levels,
    /// Counters since the start.
    pub truth: Truth,
    /// The last `PATCH`, or the start.
    pub marked: Moment,
    /// The first refusal for want of room since then.
    pub first_refusal: Option<Moment>,
    /// Now.
    pub now: Moment,
}

/// What a `PATCH` changes.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) account: AccountParams,
    pub(super) faults: FaultParams,
    pub(super) server: ServerParams,
    pub(super) headers: bool,
    /// Requests that somebody else spends at this moment.
    pub(super) spend_requests: f64,
}

impl Settings {
    /// Applies the fields of a `PATCH` body; the error is one line that names the field. Ranges are checked by those
    /// who own the settings.
    pub(super) fn patch(&mut self, emulated: Emulated, body: &[u8]) -> Result<(), String> {
        let fields: Map<String, Value> = serde_json::from_slice(body).map_err(|error| format!("body: {error}"))?;
        for (field, value) in &fields {
            let expected = |what: &str| format!("{field} {value}: expected {what}");
            let limit = || value.as_u64().ok_or_else(|| expected("a whole number, 1–1000000000"));
            let number = || value.as_f64().ok_or_else(|| expected("a number"));
            let (account, faults, server) = (&mut self.account, &mut self.faults, &mut self.server);
            match field.as_str() {
                "requests_per_minute" => account.requests_per_minute = limit()?,
                "requests_per_day" => account.requests_per_day = Some(limit()?),
                "tokens_per_minute" => account.tokens_per_minute = Some(limit()?),
                "tokens_per_day" => account.tokens_per_day = Some(limit()?),
                "input_tokens_per_minute" => account.input_tokens_per_minute = Some(limit()?),
                "output_tokens_per_minute" => account.output_tokens_per_minute = Some(limit()?),
                "burst_seconds" => account.burst_seconds = number()?,
                "hidden_requests_per_minute" => account.hidden_requests_per_minute = number()?,
                "hidden_tokens_per_minute" => account.hidden_tokens_per_minute = Some(number()?),
                "hidden_input_tokens_per_minute" => account.hidden_input_tokens_per_minute = Some(number()?),
                "hidden_output_tokens_per_minute" => account.hidden_output_tokens_per_minute = Some(number()?),
                "overload_rate" => faults.overload_rate = number()?,
                "stream_error_rate" => faults.stream_error_rate = number()?,
                "stray_retry_after_rate" => faults.stray_retry_after_rate = number()?,
                "slots" if value.is_null() => server.slots = None,
                "slots" => {
                    let slots = value.as_u64().and_then(|slots| u32::try_from(slots).ok());
                    server.slots = Some(slots.ok_or_else(|| expected("a whole number, 1–100000, or null"))?);
                }
                "crowding" => server.crowding = number()?,
                "headers" => self.headers = value.as_bool().ok_or_else(|| expected("true or false"))?,
                "spend_requests" => {
                    let spent = value.as_u64().and_then(|n| u32::try_from(n).ok()).filter(|n| *n <= 1_000_000_000);
                    self.spend_requests = f64::from(spent.ok_or_else(|| expected("a whole number, 0–1000000000"))?);
                }
                unknown => return Err(format!("unknown field {unknown:?}: expected {}", fields_of(emulated))),
            }
        }
        Ok(())
    }
}

/// The fields that a `PATCH` may have, as an error lists them.
fn fields_of(emulated: Emulated) -> String {
    let mut fields = AccountParams::names(emulated);
    fields.extend(["spend_requests", "overload_rate", "stream_error_rate"]);
    fields.extend((emulated == Emulated::Anthropic).then_some("stray_retry_after_rate"));
    fields.extend(["slots", "crowding"]);
    format!("{} or headers", fields.join(", "))
}
