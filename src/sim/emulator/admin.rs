//! The admin interface's words: the state that it tells and the settings that it changes.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::account::{AccountParams, Levels, Truth, meters};
use super::faults::FaultParams;
use crate::provider::Dialect;
use crate::quota::Unit;

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
    /// Whose shapes it speaks.
    pub dialect: Dialect,
    /// The account's settings in force.
    pub account: AccountParams,
    /// Whether answers carry rate-limit headers.
    pub headers: bool,
    /// What goes wrong on purpose.
    pub faults: FaultParams,
    /// What is in the buckets.
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
    pub(super) headers: bool,
    /// Requests that somebody else spends at this moment.
    pub(super) spend_requests: f64,
}

impl Settings {
    /// Applies the fields of a `PATCH` body; the error is one line that names the field. Ranges are checked by those
    /// who own the settings.
    pub(super) fn patch(&mut self, dialect: Dialect, body: &[u8]) -> Result<(), String> {
        let fields: Map<String, Value> = serde_json::from_slice(body).map_err(|error| format!("body: {error}"))?;
        for (field, value) in &fields {
            let expected = |what: &str| format!("{field} {value}: expected {what}");
            let limit = || value.as_u64().ok_or_else(|| expected("a whole number, 1–1000000000"));
            let number = || value.as_f64().ok_or_else(|| expected("a number"));
            let (account, faults) = (&mut self.account, &mut self.faults);
            match field.as_str() {
                "requests_per_minute" => account.requests_per_minute = limit()?,
                "tokens_per_minute" => account.tokens_per_minute = Some(limit()?),
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
                "headers" => self.headers = value.as_bool().ok_or_else(|| expected("true or false"))?,
                "spend_requests" => {
                    let spent = value.as_u64().and_then(|n| u32::try_from(n).ok()).filter(|n| *n <= 1_000_000_000);
                    self.spend_requests = f64::from(spent.ok_or_else(|| expected("a whole number, 0–1000000000"))?);
                }
                unknown => return Err(format!("unknown field {unknown:?}: expected {}", fields_of(dialect))),
            }
        }
        Ok(())
    }
}

/// The fields that a `PATCH` may have, as an error lists them.
fn fields_of(dialect: Dialect) -> String {
    let units = || meters(dialect).iter().copied().map(Unit::as_str);
    let limits = units().map(|unit| format!("{unit}_per_minute"));
    let hidden = units().map(|unit| format!("hidden_{unit}_per_minute"));
    let others = ["burst_seconds", "spend_requests", "overload_rate", "stream_error_rate"].map(str::to_owned);
    let stray = (dialect == Dialect::Anthropic).then(|| "stray_retry_after_rate".to_owned());
    let fields: Vec<String> = limits.chain(hidden).chain(others).chain(stray).collect();
    format!("{} or headers", fields.join(", "))
}
