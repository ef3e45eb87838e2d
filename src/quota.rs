//! Ids, units, windows and meters: the words every other module speaks.
//!
//! A *meter* is what one number limits: a unit counted over a window, such as `requests/minute`. Pools and tenants
//! are named by validated newtypes, so a string that reached this far can go into a key, a metric or a log line.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use serde::{Deserialize, Serialize};
use smol_str::SmolStr;

/// Longest pool id, in bytes.
pub const POOL_ID_BYTES_MAX: usize = 64;
/// Longest tenant id, in bytes.
pub const TENANT_ID_BYTES_MAX: usize = 128;

/// Why a name, meter or window was not accepted. The text says what was found and what is allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuotaError {
    /// Not `[a-z0-9][a-z0-9._-]{0,63}`.
    #[error("pool id {0:?}: expected 1–64 of a–z, 0–9, '.', '_', '-', beginning with a letter or digit")]
    PoolId(String),
    /// Empty, too long, or with control characters.
    #[error("tenant id {0:?}: expected 1–128 bytes without control characters")]
    TenantId(String),
    /// A tenant's name in a key or record that is not percent-encoded as tidegate writes it.
    #[error(
        "tenant segment {0:?}: expected all but letters, digits, '-', '.', '_' and '~' as upper-case %XX, or @default"
    )]
    Segment(String),
    /// Not `<unit>/<window>`.
    #[error(
        "meter {0:?}: expected <unit>/<window> with unit requests, tokens, input_tokens or output_tokens and window \
         second, minute, hour, day, month or <n>s, for example \"requests/minute\""
    )]
    Meter(String),
}

/// What one provider limit applies to: account × model (family). `[a-z0-9][a-z0-9._-]{0,63}`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PoolId(Arc<str>);

/// Whose traffic it is: 1–128 bytes, no control characters.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TenantId(SmolStr);

impl FromStr for PoolId {
    type Err = QuotaError;

    fn from_str(text: &str) -> Result<Self, QuotaError> {
        let bytes = text.as_bytes();
        let plain = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let valid = bytes.len() <= POOL_ID_BYTES_MAX
            && bytes.first().is_some_and(plain)
            && bytes.iter().all(|b| plain(b) || matches!(b, b'.' | b'_' | b'-'));
        if valid { Ok(Self(text.into())) } else { Err(QuotaError::PoolId(clip(text))) }
    }
}

impl FromStr for TenantId {
    type Err = QuotaError;

    fn from_str(text: &str) -> Result<Self, QuotaError> {
        let valid = !text.is_empty() && text.len() <= TENANT_ID_BYTES_MAX && !text.chars().any(char::is_control);
        if valid { Ok(Self(text.into())) } else { Err(QuotaError::TenantId(clip(text))) }
    }
}

/// Errors quote what they found, but never more than a line of it.
fn clip(text: &str) -> String {
    text.chars().take(POOL_ID_BYTES_MAX).collect()
}

macro_rules! id_traits {
    ($id:ty) => {
        impl $id {
            /// The id as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $id {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl Borrow<str> for $id {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
        impl TryFrom<String> for $id {
            type Error = QuotaError;
            fn try_from(text: String) -> Result<Self, QuotaError> {
                text.parse()
            }
        }
        impl From<$id> for String {
            fn from(id: $id) -> Self {
                id.as_str().to_owned()
            }
        }
    };
}

id_traits!(PoolId);
id_traits!(TenantId);

/// Who a grant is for: a declared tenant, or all undeclared ones together (`@default`).
///
/// As text (in keys, reports and metrics) a tenant's name is percent-encoded, `@` and `*` too, so no tenant can be
/// called `@default`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Grantee {
    /// All tenants without a grant of their own, sharing one bucket.
    Default,
    /// One declared tenant.
    Tenant(TenantId),
}

/// What is encoded in a key segment: everything but unreserved characters (RFC 3986 §2.3).
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
const DEFAULT_SEGMENT: &str = "@default";

/// A name from outside as a key segment.
pub(crate) fn encode_segment(name: &str) -> String {
    utf8_percent_encode(name, SEGMENT).to_string()
}

/// The name in a key segment. One name, one key: a segment that [`encode_segment`] would not write is refused.
pub(crate) fn decode_segment(segment: &str) -> Option<String> {
    let name = percent_decode_str(segment).decode_utf8().ok()?;
    (encode_segment(&name) == segment).then(|| name.into_owned())
}

impl fmt::Display for Grantee {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str(DEFAULT_SEGMENT),
            Self::Tenant(id) => f.write_str(&encode_segment(id.as_str())),
        }
    }
}

impl FromStr for Grantee {
    type Err = QuotaError;

    fn from_str(segment: &str) -> Result<Self, QuotaError> {
        if segment == DEFAULT_SEGMENT {
            return Ok(Self::Default);
        }
        let name = decode_segment(segment).ok_or_else(|| QuotaError::Segment(clip(segment)))?;
        Ok(Self::Tenant(name.parse()?))
    }
}

impl TryFrom<String> for Grantee {
    type Error = QuotaError;
    fn try_from(text: String) -> Result<Self, QuotaError> {
        text.parse()
    }
}

impl From<Grantee> for String {
    fn from(grantee: Grantee) -> Self {
        grantee.to_string()
    }
}

/// What is counted (IETF: quota unit).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Unit {
    /// Calls.
    Requests,
    /// LLM tokens, input and output together.
    Tokens,
    /// LLM tokens sent.
    InputTokens,
    /// LLM tokens received.
    OutputTokens,
}

impl Unit {
    /// All units.
    pub const ALL: [Self; 4] = [Self::Requests, Self::Tokens, Self::InputTokens, Self::OutputTokens];

    /// The unit's name in meters, records and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Tokens => "tokens",
            Self::InputTokens => "input_tokens",
            Self::OutputTokens => "output_tokens",
        }
    }
}

/// The time a limit counts over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Window {
    /// `<n>s`, 1–86,400 seconds; `1s` and `60s` are read as `second` and `minute`.
    Seconds(u32),
    /// 1 s.
    Second,
    /// 60 s.
    Minute,
    /// 3,600 s.
    Hour,
    /// 86,400 s.
    Day,
    /// Counted as 30 days.
    Month,
}

impl Window {
    /// The window's length, in seconds. A month counts 30 days.
    #[must_use]
    pub fn seconds(self) -> f64 {
        match self {
            Self::Seconds(n) => f64::from(n),
            Self::Second => 1.0,
            Self::Minute => 60.0,
            Self::Hour => 3_600.0,
            Self::Day => 86_400.0,
            Self::Month => 2_592_000.0,
        }
    }

    /// The window of so many seconds: by its name if it has one, `None` when it is no window that a meter can have.
    #[must_use]
    pub const fn from_seconds(seconds: u64) -> Option<Self> {
        Some(match seconds {
            1 => Self::Second,
            60 => Self::Minute,
            3_600 => Self::Hour,
            86_400 => Self::Day,
            2_592_000 => Self::Month,
            #[allow(clippy::cast_possible_truncation, reason = "at most a day")]
            n @ 2..=86_400 => Self::Seconds(n as u32),
            _ => return None,
        })
    }
}

/// A unit over a window, written `requests/minute`, `tokens/day`, `requests/10s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Meter {
    /// What is counted.
    pub unit: Unit,
    /// Over what time.
    pub window: Window,
}

impl Meter {
    /// `requests/minute`.
    pub const REQUESTS_PER_MINUTE: Self = Self { unit: Unit::Requests, window: Window::Minute };
    /// `tokens/minute`.
    pub const TOKENS_PER_MINUTE: Self = Self { unit: Unit::Tokens, window: Window::Minute };

    /// A rate in units per this meter's window, as units per second.
    #[must_use]
    pub fn per_second(self, per_window: f64) -> f64 {
        per_window / self.window.seconds()
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Seconds(n) => return write!(f, "{n}s"),
            Self::Second => "second",
            Self::Minute => "minute",
            Self::Hour => "hour",
            Self::Day => "day",
            Self::Month => "month",
        })
    }
}

impl fmt::Display for Meter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.unit.as_str(), self.window)
    }
}

impl FromStr for Meter {
    type Err = QuotaError;

    fn from_str(text: &str) -> Result<Self, QuotaError> {
        let refused = || QuotaError::Meter(clip(text));
        let (unit, window) = text.split_once('/').ok_or_else(refused)?;
        let unit = Unit::ALL.into_iter().find(|u| u.as_str() == unit).ok_or_else(refused)?;
        let window = match window {
            "second" => Window::Second,
            "minute" => Window::Minute,
            "hour" => Window::Hour,
            "day" => Window::Day,
            "month" => Window::Month,
            other => {
                let digits = other.strip_suffix('s').filter(|n| n.starts_with(|c: char| matches!(c, '1'..='9')));
                let seconds = digits.and_then(|n| n.parse().ok()).filter(|n| *n <= 86_400);
                seconds.and_then(Window::from_seconds).ok_or_else(refused)?
            }
        };
        Ok(Self { unit, window })
    }
}

impl TryFrom<String> for Meter {
    type Error = QuotaError;
    fn try_from(text: String) -> Result<Self, QuotaError> {
        text.parse()
    }
}

impl From<Meter> for String {
    fn from(meter: Meter) -> Self {
        meter.to_string()
    }
}

/// What one request takes: one request and an estimate of its LLM tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cost {
    /// Calls; 1 for an ordinary request.
    pub requests: u32,
    /// LLM tokens sent, estimated.
    pub input_tokens: u64,
    /// LLM tokens expected back.
    pub output_tokens: u64,
}

impl Cost {
    /// One request with this many input and output tokens.
    #[must_use]
    pub const fn request(input_tokens: u64, output_tokens: u64) -> Self {
        Self { requests: 1, input_tokens, output_tokens }
    }

    /// Both together.
    #[must_use]
    pub const fn plus(&self, other: &Self) -> Self {
        Self {
            requests: self.requests.saturating_add(other.requests),
            input_tokens: self.input_tokens.saturating_add(other.input_tokens),
            output_tokens: self.output_tokens.saturating_add(other.output_tokens),
        }
    }

    /// What is left of this without `other`, not below zero.
    #[must_use]
    pub const fn minus(&self, other: &Self) -> Self {
        Self {
            requests: self.requests.saturating_sub(other.requests),
            input_tokens: self.input_tokens.saturating_sub(other.input_tokens),
            output_tokens: self.output_tokens.saturating_sub(other.output_tokens),
        }
    }

    /// The part of the cost that a unit counts.
    #[must_use]
    #[inline]
    pub fn of(&self, unit: Unit) -> f64 {
        // A decision asks this of each meter.
        if unit == Unit::Requests {
            return self.requests.into();
        }
        precise(self.units(unit))
    }

    /// The same, as the whole number that it is.
    #[must_use]
    #[inline]
    pub fn units(&self, unit: Unit) -> u64 {
        match unit {
            Unit::Requests => self.requests.into(),
            Unit::Tokens => self.input_tokens.saturating_add(self.output_tokens),
            Unit::InputTokens => self.input_tokens,
            Unit::OutputTokens => self.output_tokens,
        }
    }
}

/// A count as a float.
#[inline]
#[allow(clippy::cast_precision_loss, reason = "token counts stay far below 2^53")]
fn precise(tokens: u64) -> f64 {
    // By way of a signed number, which the machine converts in one step: with one bit less, and twice that.
    tokens.try_into().map_or_else(|_| (tokens / 2).cast_signed() as f64 * 2.0, |tokens: i64| tokens as f64)
}
