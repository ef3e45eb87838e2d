//! The report: what one member process has seen, `POST /v1/observations`, one body for all its pools.
//!
//! Counters are cumulative since the process's `boot`, so a lost report loses nothing; a new `boot` starts them
//! again at zero. Readings carry their age, not a time of day: no two machines' clocks are compared.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::quota::{Cost, Grantee, Meter, PoolId, Unit};

/// The report format written and understood here.
pub const REPORT_SCHEMA: u32 = 1;
/// Largest report body, in bytes.
pub const REPORT_BYTES_MAX: usize = 1024 * 1024;

/// The longest reporter's token, in bytes.
pub const TOKEN_BYTES_MAX: usize = 512;

/// The longest hold that one report can ask for, in ms: 15 minutes. Some providers say 86,400 s for a limit per minute;
/// after this long somebody looks again.
pub const HOLD_MS_MAX: u64 = 15 * 60 * 1_000;
/// The highest limit that is believed, in units per window.
const LIMIT_MAX: f64 = 1e15;
/// Longest instance or boot name, in bytes.
const NAME_BYTES_MAX: usize = 128;

/// Why a report was not taken.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// Larger than [`REPORT_BYTES_MAX`].
    #[error("report of {0} bytes: at most {REPORT_BYTES_MAX}")]
    TooLarge(usize),
    /// Not the JSON of a report.
    #[error("report is not valid: {0}")]
    Json(#[from] serde_json::Error),
    /// Another format than this one.
    #[error("report schema {0}: expected {REPORT_SCHEMA}")]
    Schema(u32),
    /// A name that is empty, too long, or not printable.
    #[error("report field {0}: expected 1–128 bytes without control characters")]
    Name(&'static str),
    /// A share above the whole.
    #[error("report field share is {0}: expected 0 to 1")]
    Share(f64),
    /// A limit that no provider has.
    #[error("report field limit is {0}: expected above 0, at most {LIMIT_MAX:e}")]
    Limit(f64),
    /// A number that cannot be: negative, or not finite.
    #[error("report field {field} is {value}: expected a finite number of a size that can be")]
    Number {
        /// Which field.
        field: &'static str,
        /// What it held.
        value: f64,
    },
}

/// One process's report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`REPORT_SCHEMA`].
    pub schema: u32,
    /// The member's name, unique among live processes.
    pub instance: String,
    /// Random per process start; counters are cumulative since it.
    pub boot: String,
    /// Its last report: it enforces nothing any more, and what it held is free at once.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub leaving: bool,
    /// Per pool.
    pub pools: BTreeMap<PoolId, PoolReport>,
}

/// What a member saw of one pool.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct PoolReport {
    /// Counts the process's reports: one with a lower number than another was overtaken by it on its way.
    #[serde(default)]
    pub sequence: u64,
    /// The newest-sent reading of each meter, none older than 60 s.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub meters: BTreeMap<Meter, MeterReport>,
    /// Long holds the provider asked for (over 60 s), in ms from now.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub hold_ms: BTreeMap<Meter, u64>,
    /// Where members count together: it does not, as the store for that does not answer, or as it has none.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub by_share: bool,
    /// How many tenants there are to tell of, where one report does not hold all of them: of the others the next ones tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenants_in_all: Option<usize>,
    /// Per tenant; `@default` gathers the undeclared ones.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tenants: BTreeMap<Grantee, TenantReport>,
}

/// A [`MeterReading`](super::MeterReading) on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct MeterReport {
    /// Units per window.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<f64>,
    /// Whole units left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remaining: Option<f64>,
    /// Units left, fine; negative when overdrawn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub level: Option<f64>,
    /// The provider's reset, in ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reset_ms: Option<u64>,
    /// Time since the request was sent, in ms.
    pub age_ms: u64,
}

/// What a member did for one tenant of a pool.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct TenantReport {
    /// Cumulative counts.
    #[serde(flatten)]
    pub counters: Counters,
    /// Requests in flight now.
    pub in_flight: u32,
    /// Requests waiting for admission now.
    pub waiting: u32,
    /// The share in force; absent when the member holds none that is valid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share: Option<f64>,
    /// The concurrency in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<u32>,
}

/// Cumulative counts since the process's boot.
// In this order: what the end of a call counts stands together, in few lines of the processor's cache.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[repr(C)]
pub struct Counters {
    /// Requests that asked to be admitted.
    pub attempts: u64,
    /// Requests admitted.
    pub admitted: u64,
    /// Of the admitted, those that waited first.
    pub waited: u64,
    /// Requests refused here.
    pub refused: u64,
    /// Requests sent to the provider.
    pub sent: u64,
    /// Answers that mean the provider took the request.
    pub succeeded: u64,
    /// Endings that say nothing about capacity.
    pub ignored: u64,
    /// Units after the calls, as their answers tell.
    pub settled: UnitCounts,
    /// Units taken before the calls, and after those that took more than was thought.
    pub reserved: UnitCounts,
    /// Of these, given back after the calls, where the provider gives them back too.
    #[serde(default, skip_serializing_if = "UnitCounts::is_zero")]
    pub returned: UnitCounts,
    /// Refusals by the provider, by kind. An answer that began well and broke off for overload counts here too.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub throttled: BTreeMap<ThrottleKind, u64>,
    /// Natural log of the time to first byte, in ms.
    pub ttfb_log_ms: LogSums,
    /// Natural log of the time per output token, in ms.
    pub tpot_log_ms: LogSums,
}

/// Units, cumulative.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct UnitCounts {
    /// Requests.
    pub requests: u64,
    /// Input LLM tokens.
    pub input_tokens: u64,
    /// Output LLM tokens.
    pub output_tokens: u64,
}

/// Sums from which mean and variance of a log-normal quantity follow.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct LogSums {
    /// How many.
    pub n: u64,
    /// Σ ln x.
    pub sum: f64,
    /// Σ (ln x)².
    pub sum_sq: f64,
}

/// How the provider refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ThrottleKind {
    /// The requests meter is spent.
    Requests,
    /// The tokens meter is spent.
    Tokens,
    /// The input-token meter is spent.
    InputTokens,
    /// The output-token meter is spent.
    OutputTokens,
    /// Too many calls at a time.
    Concurrency,
    /// Refused for rate, but which meter was not said.
    Unknown,
    /// A daily quota, or a wait longer than 60 s.
    Daily,
    /// The provider's own capacity, not our quota.
    Overload,
}

/// How a sent request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// The provider took it.
    Succeeded,
    /// The provider refused it for load or quota.
    Throttled(ThrottleKind),
    /// Says nothing about capacity: a bad request, no credit, a broken connection.
    Ignored,
}

impl ThrottleKind {
    /// The kind's name in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Tokens => "tokens",
            Self::InputTokens => "input_tokens",
            Self::OutputTokens => "output_tokens",
            Self::Concurrency => "concurrency",
            Self::Unknown => "unknown",
            Self::Daily => "daily",
            Self::Overload => "overload",
        }
    }

    /// Whether this kind speaks about the meter's unit. An unknown kind speaks about every unit.
    #[must_use]
    pub fn concerns(self, unit: Unit) -> bool {
        match self {
            // With fewer requests a second there are fewer at a time.
            Self::Requests | Self::Concurrency => unit == Unit::Requests,
            Self::Tokens => unit == Unit::Tokens,
            Self::InputTokens => unit == Unit::InputTokens,
            Self::OutputTokens => unit == Unit::OutputTokens,
            Self::Unknown => true,
            Self::Daily | Self::Overload => false,
        }
    }
}

impl UnitCounts {
    /// Adds a request's cost.
    pub fn add(&mut self, cost: &Cost) {
        self.requests = self.requests.saturating_add(u64::from(cost.requests));
        self.input_tokens = self.input_tokens.saturating_add(cost.input_tokens);
        self.output_tokens = self.output_tokens.saturating_add(cost.output_tokens);
    }

    /// Adds other counts.
    pub fn plus(&mut self, other: &Self) {
        self.requests = self.requests.saturating_add(other.requests);
        self.input_tokens = self.input_tokens.saturating_add(other.input_tokens);
        self.output_tokens = self.output_tokens.saturating_add(other.output_tokens);
    }

    /// What is left of these without `other`, not below zero.
    #[must_use]
    pub const fn minus(&self, other: &Self) -> Self {
        Self {
            requests: self.requests.saturating_sub(other.requests),
            input_tokens: self.input_tokens.saturating_sub(other.input_tokens),
            output_tokens: self.output_tokens.saturating_sub(other.output_tokens),
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_zero(&self) -> bool {
        *self == Self::default()
    }

    /// The count of a unit.
    #[must_use]
    #[allow(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
    pub fn of(&self, unit: Unit) -> f64 {
        match unit {
            Unit::Requests => self.requests as f64,
            Unit::Tokens => self.input_tokens.saturating_add(self.output_tokens) as f64,
            Unit::InputTokens => self.input_tokens as f64,
            Unit::OutputTokens => self.output_tokens as f64,
        }
    }
}

impl LogSums {
    /// Adds what was counted between two states of the same sums.
    pub fn add_since(&mut self, before: &Self, after: &Self) {
        self.n = self.n.saturating_add(after.n.saturating_sub(before.n));
        self.sum += after.sum - before.sum;
        self.sum_sq += after.sum_sq - before.sum_sq;
    }

    /// Adds one measurement, in ms; anything not above zero is left out.
    pub fn add(&mut self, ms: f64) {
        if ms > 0.0 && ms.is_finite() {
            let ln = ms.ln();
            self.n += 1;
            self.sum += ln;
            self.sum_sq += ln * ln;
        }
    }
}

impl Counters {
    /// Units taken and not given back: what the provider's buckets were charged, as far as a member can tell.
    #[must_use]
    pub const fn taken(&self) -> UnitCounts {
        self.reserved.minus(&self.returned)
    }

    /// Adds an ending.
    pub fn ended(&mut self, ending: Ending) {
        match ending {
            Ending::Succeeded => self.succeeded += 1,
            Ending::Throttled(kind) => *self.throttled.entry(kind).or_default() += 1,
            Ending::Ignored => self.ignored += 1,
        }
    }
}

impl Report {
    /// Reads a report body.
    ///
    /// # Errors
    /// [`ReportError`] when it is too large, not a report, or holds an impossible number. Unknown fields are ignored.
    pub fn parse(body: &[u8]) -> Result<Self, ReportError> {
        if body.len() > REPORT_BYTES_MAX {
            return Err(ReportError::TooLarge(body.len()));
        }
        let mut report: Self = serde_json::from_slice(body)?;
        if report.schema != REPORT_SCHEMA {
            return Err(ReportError::Schema(report.schema));
        }
        name("instance", &report.instance)?;
        name("boot", &report.boot)?;
        for pool in report.pools.values_mut() {
            pool.hold_ms.values_mut().for_each(|ms| *ms = (*ms).min(HOLD_MS_MAX));
            for meter in pool.meters.values() {
                number("limit", meter.limit)?;
                if let Some(limit) = meter.limit.filter(|limit| !(f64::MIN_POSITIVE..=LIMIT_MAX).contains(limit)) {
                    return Err(ReportError::Limit(limit));
                }
                number("remaining", meter.remaining)?;
                finite("level", meter.level)?;
            }
            for tenant in pool.tenants.values() {
                number("share", tenant.share)?;
                if let Some(share) = tenant.share.filter(|share| *share > 1.0) {
                    return Err(ReportError::Share(share));
                }
                finite("ttfb_log_ms.sum", Some(tenant.counters.ttfb_log_ms.sum))?;
                finite("tpot_log_ms.sum", Some(tenant.counters.tpot_log_ms.sum))?;
                number("ttfb_log_ms.sum_sq", Some(tenant.counters.ttfb_log_ms.sum_sq))?;
                number("tpot_log_ms.sum_sq", Some(tenant.counters.tpot_log_ms.sum_sq))?;
            }
        }
        Ok(report)
    }
}

fn name(field: &'static str, text: &str) -> Result<(), ReportError> {
    let valid = (1..=NAME_BYTES_MAX).contains(&text.len()) && !text.chars().any(char::is_control);
    if valid { Ok(()) } else { Err(ReportError::Name(field)) }
}

fn number(field: &'static str, value: Option<f64>) -> Result<(), ReportError> {
    match value {
        Some(value) if !(value.is_finite() && value >= 0.0) => Err(ReportError::Number { field, value }),
        _ => Ok(()),
    }
}

fn finite(field: &'static str, value: Option<f64>) -> Result<(), ReportError> {
    match value {
        // No bucket holds, or owes, more than the highest limit that is believed.
        Some(value) if !(-LIMIT_MAX..=LIMIT_MAX).contains(&value) => Err(ReportError::Number { field, value }),
        _ => Ok(()),
    }
}
