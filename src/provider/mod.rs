//! A provider's response, read: head and error body in, observations out.
//!
//! A [`Dialect`] is a provider's way of writing limits. What its words mean is a row of one table ([`Semantics`]);
//! what takes code to read has a file of its own. [`Dialect::read`] takes the head alone, so that a streaming caller
//! knows at once; [`Dialect::refine`] adds what an error body tells; [`reflex`] is the member's own reaction.
//!
//! Nothing here fails: an unreadable header is counted in [`Observation::faults`] and otherwise as if it were not
//! there. Header names and meanings: <https://developers.openai.com/api/docs/guides/rate-limits>; `Retry-After`:
//! RFC 9110 §10.2.3; status 429: RFC 6585 §4.
//!
//! ```
//! use std::time::Duration;
//!
//! use tidegate::clock::MonoTime;
//! use tidegate::observation::Ending;
//! use tidegate::provider::{Dialect, Head, reflex};
//! use tidegate::quota::{Cost, Meter};
//!
//! let mut headers = http::HeaderMap::new();
//! headers.insert("x-ratelimit-limit-requests", "60".parse()?);
//! headers.insert("x-ratelimit-remaining-requests", "0".parse()?);
//! headers.insert("x-ratelimit-reset-requests", "59.75s".parse()?);
//! headers.insert("retry-after-ms", "750".parse()?);
//!
//! let seen = Dialect::OpenAi.read(&Head { status: 429, headers: &headers }, MonoTime::from_millis(0));
//! let reading = &seen.readings[0];
//! assert_eq!((reading.meter, reading.limit), (Meter::REQUESTS_PER_MINUTE, Some(60.0)));
//! // Nothing remains, but the reset tells that a quarter of a request does.
//! assert_eq!(reading.level, Some(0.25));
//! assert!(matches!(seen.ending, Ending::Throttled(_)));
//! // What a member does at once: hold that meter for as long as it was asked, not until the bucket is full.
//! let hold = reflex(Dialect::OpenAi, &seen, &Cost::request(100, 0)).holds[0];
//! assert_eq!((hold.meter, hold.for_at_least), (Meter::REQUESTS_PER_MINUTE, Duration::from_millis(750)));
//! # Ok::<(), http::header::InvalidHeaderValue>(())
//! ```

mod anthropic;
mod duration;
mod header;
mod level;
mod openai;
mod reflex;
mod retry_after;
mod semantics;
mod usage;

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use duration::parse_go_duration;
pub use reflex::{HOLD_MAX, Hold, Reflex, reflex};
pub use semantics::{BYTES_PER_TOKEN, Refill, Semantics, TokenCharge};
pub use usage::{Usage, UsageReader};

use crate::clock::MonoTime;
use crate::observation::{Ending, MeterReading, ThrottleKind};
use crate::quota::{Cost, Meter, Unit, Window};

/// Most of an error body that is read, in bytes. OpenAI's are below 2 KiB.
pub const BODY_BYTES_MAX: usize = 64 * 1024;

/// A provider's way of writing limits in headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dialect {
    /// `x-ratelimit-{limit,remaining,reset}-{requests,tokens}`.
    OpenAi,
    /// `anthropic-ratelimit-{requests,tokens,input-tokens,output-tokens}-{limit,remaining,reset}`.
    Anthropic,
}

/// A name that is no dialect's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("dialect {0:?}: expected one of: {names}", names = Dialect::ALL.map(Dialect::as_str).join(", "))]
pub struct DialectError(String);

/// What is read before the body arrives.
#[derive(Debug, Clone, Copy)]
pub struct Head<'a> {
    /// The status code.
    pub status: u16,
    /// The headers.
    pub headers: &'a http::HeaderMap,
}

/// What one response says of the provider's limits.
#[derive(Debug, Clone, PartialEq)]
pub struct Observation {
    /// One per meter that the response speaks about.
    pub readings: Vec<MeterReading>,
    /// How the request ended.
    pub ending: Ending,
    /// How long the provider asks us to wait; never zero, and only on 429, 503 and 529.
    pub retry_after: Option<Duration>,
    /// The meters that a refusal speaks about; empty when it does not tell.
    pub exhausted: Vec<Meter>,
    /// Headers that were there but could not be read.
    pub faults: u32,
}

impl Dialect {
    /// All dialects.
    pub const ALL: [Self; 2] = [Self::OpenAi, Self::Anthropic];

    /// What this dialect's words mean.
    #[must_use]
    pub const fn semantics(self) -> &'static Semantics {
        match self {
            Self::OpenAi => &semantics::OPENAI,
            Self::Anthropic => &semantics::ANTHROPIC,
        }
    }

    /// The dialect's name in configuration and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::OpenAi => "openai",
            Self::Anthropic => "anthropic",
        }
    }

    /// Reads a response's head. Readings are dated by `sent_at`, the moment the request was sent.
    #[must_use]
    pub fn read(self, head: &Head<'_>, sent_at: MonoTime) -> Observation {
        let mut faults = 0;
        let readings = match self {
            Self::OpenAi => openai::readings(self.semantics(), head.headers, sent_at, &mut faults),
            Self::Anthropic => anthropic::readings(head.headers, sent_at, &mut faults),
        };
        // Nine in ten recorded Retry-After headers sit on 2xx responses, others on 400s: they ask for nothing.
        let retry_after = match head.status {
            429 | 503 | 529 => retry_after::read(head.headers, &mut faults),
            _ => None,
        };
        let exhausted: Vec<Meter> = match head.status {
            429 => readings.iter().filter(|r| r.level.is_some_and(|level| level < 1.0)).map(|r| r.meter).collect(),
            _ => Vec::new(),
        };
        let ending = match head.status {
            200..=299 => Ending::Succeeded,
            429 => Ending::Throttled(kind_of(&exhausted)),
            503 | 529 => Ending::Throttled(ThrottleKind::Overload),
            _ => Ending::Ignored,
        };
        let observation = Observation { readings, ending, retry_after, exhausted, faults };
        match self {
            Self::OpenAi => observation,
            Self::Anthropic => anthropic::judge(head, observation),
        }
        .with_long_waits_as_daily()
    }

    /// Whether the body of an answer with this status tells more of its ending than its head does: read at most
    /// [`BODY_BYTES_MAX`] of it for [`Dialect::refine`].
    #[must_use]
    pub const fn body_tells(self, status: u16) -> bool {
        match self {
            Self::OpenAi => matches!(status, 429 | 503 | 529),
            Self::Anthropic => matches!(status, 429 | 500 | 503 | 529),
        }
    }

    /// Adds what an error response's body tells; a body that tells nothing changes nothing. At most
    /// [`BODY_BYTES_MAX`] bytes are read.
    #[must_use]
    pub fn refine(self, observation: Observation, body: &[u8]) -> Observation {
        let body = body.get(..BODY_BYTES_MAX).unwrap_or(body);
        match (self, observation.ending) {
            (Self::OpenAi, Ending::Throttled(_)) => openai::refine(self.semantics(), observation, body),
            (Self::Anthropic, Ending::Throttled(_) | Ending::Ignored) => anthropic::refine(observation, body),
            _ => observation,
        }
        .with_long_waits_as_daily()
    }

    /// What the provider will charge before it answers, as far as a client can tell.
    ///
    /// Both keep an estimate of the input, about a quarter of the request's bytes (median of 14,000 recordings of
    /// OpenAI: 4.28). OpenAI never corrects it. Its documents still speak of max(`max_tokens`, estimate), but few
    /// recordings do since 2025 (`max_tokens` was in the charge of 73 of 529, in 2026 of 1 of 80), so its output counts 0.
    /// Anthropic charges all the output that a request allows (documented), and gives back what was not used.
    #[must_use]
    pub fn estimate(self, body_bytes: usize, max_output_tokens: u64) -> Cost {
        let input_tokens = u64::try_from(body_bytes).unwrap_or(u64::MAX).div_ceil(BYTES_PER_TOKEN);
        match self.semantics().token_charge {
            TokenCharge::Estimate => Cost::request(input_tokens, 0),
            TokenCharge::Corrected => Cost::request(input_tokens, max_output_tokens),
        }
    }

    /// The output that a request allows, of its JSON body, where this dialect charges it; 0 where it does not, or where
    /// the body does not tell. Nothing of the body is copied.
    #[must_use]
    pub fn max_output_tokens(self, request_body: &[u8]) -> u64 {
        match self.semantics().token_charge {
            TokenCharge::Estimate => 0,
            TokenCharge::Corrected => anthropic::max_tokens(request_body),
        }
    }
}

impl fmt::Display for Dialect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Dialect {
    type Err = DialectError;

    fn from_str(text: &str) -> Result<Self, DialectError> {
        let found = Self::ALL.into_iter().find(|dialect| dialect.as_str() == text);
        found.ok_or_else(|| DialectError(text.chars().take(64).collect()))
    }
}

impl Observation {
    /// A wait over [`HOLD_MAX`] is the controller's to spread, whatever the provider calls it.
    fn with_long_waits_as_daily(mut self) -> Self {
        if let Ending::Throttled(kind) = self.ending
            && kind != ThrottleKind::Overload
            && self.retry_after.is_some_and(|wait| wait > HOLD_MAX)
        {
            self.ending = Ending::Throttled(ThrottleKind::Daily);
        }
        self
    }

    /// The request itself can never be served, or the account cannot: nothing is congested.
    ///
    /// Such refusals may carry zeros that were never measured (remaining 0 with reset `0s`), so only readings whose
    /// numbers agree are kept.
    fn ignored(mut self) -> Self {
        self.readings.retain(|reading| reading.reset.is_some());
        Self { ending: Ending::Ignored, retry_after: None, exhausted: Vec::new(), ..self }
    }
}

/// The kind of a refusal that speaks about these meters.
fn kind_of(exhausted: &[Meter]) -> ThrottleKind {
    let Some(first) = exhausted.first() else { return ThrottleKind::Unknown };
    if exhausted.iter().all(|meter| meter.window.seconds() >= Window::Day.seconds()) {
        return ThrottleKind::Daily;
    }
    if exhausted.iter().any(|meter| meter.unit != first.unit) {
        return ThrottleKind::Unknown;
    }
    match first.unit {
        Unit::Requests => ThrottleKind::Requests,
        Unit::Tokens => ThrottleKind::Tokens,
        Unit::InputTokens => ThrottleKind::InputTokens,
        Unit::OutputTokens => ThrottleKind::OutputTokens,
    }
}
