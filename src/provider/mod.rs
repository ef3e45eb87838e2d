//! A provider's response, read: head and error body in, observations out.
//!
//! A [`Dialect`] is a provider's way of writing limits: a row of one table, of names, forms and what the words mean
//! ([`Semantics`]). What takes code to read has a file of its own. [`Dialect::observe`] takes all that has arrived;
//! [`Dialect::read`] the head alone, so that a streaming caller knows at once, and [`Dialect::refine`] adds what an error
//! body tells; [`reflex`] is the member's own reaction. A pool is told its dialect, or each response is read as what it
//! looks like ([`Dialect::detect`]): by its headers, never by its host, for routers pass on the headers of others.
//!
//! Nothing here fails: a header that tells nothing is [`Missing`], with the reason, and otherwise as if it were not
//! there. Nothing is allocated for an ordinary answer. [`Dialect::print`] goes the other way, by the same table.
//!
//! Header names and meanings: <https://developers.openai.com/api/docs/guides/rate-limits>; `Retry-After`: RFC 9110
//! §10.2.3; status 429: RFC 6585 §4.
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
mod aws_stream;
mod class;
mod detect;
mod dialect;
mod duration;
mod head;
mod ietf;
mod level;
mod lines;
mod missing;
mod print;
mod reading;
mod reflex;
mod refusal;
mod retry_after;
mod semantics;
mod table;
mod taught;
mod usage;
mod value;

use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use smallvec::SmallVec;

pub use class::Class;
pub use detect::{Unread, unread};
pub use dialect::{Dialect, DialectError};
pub use duration::{go_duration, parse_go_duration};
pub use head::{Head, Headers};
pub use missing::{Missing, Reason};
pub use print::Shown;
pub use reflex::{HOLD_MAX, Hold, Reflex, reflex};
pub use semantics::{
    BYTES_PER_TOKEN, LimitOf, Refill, RemainingCounts, ResetMeaning, Semantics, TokenCharge, ToldWait,
};
pub use taught::{Taught, TaughtError, TaughtMeter, TaughtParams};
pub use usage::{Usage, UsageReader};
pub use value::ResetForm;

use crate::clock::{MonoTime, UnixMillis};
use crate::observation::{Ending, MeterReading, ThrottleKind};
use crate::quota::{Cost, Meter, Unit, Window};

/// Most of an error body that is read, in bytes. OpenAI's are below 2 KiB.
pub const BODY_BYTES_MAX: usize = 64 * 1024;

/// Readings of one response; an ordinary one has at most four.
pub type Readings = SmallVec<[MeterReading; 4]>;

/// When a response came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReceivedAt {
    /// When its request was sent: readings are dated by it.
    pub sent_at: MonoTime,
    /// When it came, by our wall clock, if times of day may be measured by that where the response has no `Date` of the
    /// provider's own.
    pub wall: Option<UnixMillis>,
}

impl From<MonoTime> for ReceivedAt {
    fn from(sent_at: MonoTime) -> Self {
        Self { sent_at, wall: None }
    }
}

/// What one response says of the provider's limits.
#[derive(Debug, Clone, PartialEq)]
pub struct Observation {
    /// How it was read: the pool's dialect, or the one it looked like.
    pub dialect: Dialect,
    /// One per meter that the response speaks about.
    pub readings: Readings,
    /// Buckets that none of our meters counts.
    pub others: Vec<OtherReading>,
    /// What kind of answer it is.
    pub class: Class,
    /// The same as far as capacity goes: how the request ended.
    pub ending: Ending,
    /// How long the provider asks us to wait; never zero, and only when it refused.
    pub retry_after: Option<Duration>,
    /// The meters that a refusal speaks about; empty when it does not tell.
    pub exhausted: Vec<Meter>,
    /// Headers that were there and told nothing.
    pub missing: Vec<Missing>,
    sent_at: MonoTime,
    /// Of a refusal: when, by the provider's own clock.
    refused_at: Option<Timestamp>,
}

/// What a response says of a bucket that none of our meters counts: images, audio, a project's own tokens.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OtherReading {
    /// What is counted.
    pub what: &'static str,
    /// Over what time, where it is told.
    pub window: Option<Window>,
    /// The limit, in units per window.
    pub limit: Option<f64>,
    /// What is left, in units.
    pub remaining: Option<f64>,
    /// The reset, as a delay.
    pub reset: Option<Duration>,
}

impl fmt::Display for OtherReading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.window {
            Some(window) => write!(f, "{}/{window}", self.what),
            None => f.write_str(self.what),
        }
    }
}

/// Where what a head tells is put while it is read: into the observation itself, which is too large to be handed about.
struct Seen<'o> {
    readings: &'o mut Readings,
    others: &'o mut Vec<OtherReading>,
    missing: &'o mut Vec<Missing>,
}

impl Seen<'_> {
    /// Of several policies over one meter the one with least left counts: it is the one that refuses first.
    fn add_tightest(&mut self, reading: MeterReading) {
        let Some(known) = self.readings.iter_mut().find(|known| known.meter == reading.meter) else {
            return self.readings.push(reading);
        };
        let tighter = match (reading.remaining, known.remaining) {
            (Some(left), Some(known)) => left < known,
            (None, None) => reading.limit < known.limit,
            // What is left was measured; a limit alone was not.
            (left, _) => left.is_some(),
        };
        if tighter {
            *known = reading;
        }
    }

    /// Two names of one meter are read once: the first stands.
    #[inline]
    fn add(&mut self, reading: MeterReading) {
        if self.readings.iter().all(|known| known.meter != reading.meter) {
            self.readings.push(reading);
        }
    }
}

impl Dialect {
    /// What this dialect's words mean.
    #[must_use]
    pub fn semantics(self) -> &'static Semantics {
        &table::row(self).semantics
    }

    /// Reads what has arrived of a response: its head, and its body if it is an error's.
    #[must_use]
    pub fn observe(self, head: &Head<'_>, body: Option<&[u8]>, received_at: impl Into<ReceivedAt>) -> Observation {
        let seen = self.read(head, received_at);
        match body {
            Some(body) if self.body_tells(head.status) => self.refine(seen, body),
            _ => seen,
        }
    }

    /// Reads a response's head. Readings are dated by the moment the request was sent.
    #[must_use]
    pub fn read(self, head: &Head<'_>, received_at: impl Into<ReceivedAt>) -> Observation {
        let received_at = received_at.into();
        let dialect = match self {
            Self::Auto => Self::detect(head, None).unwrap_or(self),
            known => known,
        };
        let row = table::row(dialect);
        let mut lines = lines::Lines::default();
        lines.sort(head, row.families, row.listed);
        let now = reading::Now::new(&lines, received_at);
        let mut observation = Observation {
            dialect,
            readings: Readings::new(),
            others: Vec::new(),
            class: Class::Ok,
            ending: Ending::Succeeded,
            retry_after: None,
            exhausted: Vec::new(),
            missing: Vec::new(),
            sent_at: received_at.sent_at,
            refused_at: None,
        };
        let Observation { readings, others, missing, .. } = &mut observation;
        let mut seen = Seen { readings, others, missing };
        reading::read(row, &lines, &now, &mut seen);
        if row.ietf {
            ietf::read(row, head, received_at, &mut seen);
        }
        let verdict = class::of_head(row, head.status, &lines, &observation.readings);
        let class = verdict.class;
        (observation.class, observation.ending, observation.exhausted) = (class, verdict.ending, verdict.exhausted);
        // Nine in ten recorded Retry-After headers sit on 2xx responses, others on 400s: they ask for nothing.
        if class.asks_to_wait() {
            observation.retry_after = retry_after::read(&lines, &now, &mut observation.missing);
            observation.refused_at = now.get();
        }
        if class == Class::Ok {
            return observation;
        }
        match dialect {
            Self::Anthropic => {
                let hopeless = lines.text(lines::Single::ShouldRetry) == Some("false");
                anthropic::judge(hopeless, observation)
            }
            _ => observation,
        }
        .bounded(&row.semantics)
    }

    /// Whether the body of an answer with this status tells more of its ending than its head does: read at most
    /// [`BODY_BYTES_MAX`] of it for [`Dialect::refine`].
    #[must_use]
    pub fn body_tells(self, status: u16) -> bool {
        match self {
            Self::Auto => matches!(status, 429 | 498 | 500 | 503 | 529),
            known => table::row(known).body_statuses.contains(&status),
        }
    }

    /// Adds what an error response's body tells; a body that tells nothing changes nothing. At most
    /// [`BODY_BYTES_MAX`] bytes are read.
    #[must_use]
    pub fn refine(self, observation: Observation, body: &[u8]) -> Observation {
        let body = body.get(..BODY_BYTES_MAX).unwrap_or(body);
        let dialect = match (self, observation.dialect) {
            (Self::Auto, Self::Auto) => detect::by_body(body).unwrap_or(Self::Auto),
            (Self::Auto, seen) => seen,
            (known, _) => known,
        };
        let row = table::row(dialect);
        let observation = Observation { dialect, ..observation };
        match dialect {
            Self::Anthropic => anthropic::refine(observation, body),
            _ => refusal::refine(row, observation, body),
        }
        .bounded(&row.semantics)
    }

    /// What the provider will charge before it answers, as far as a client can tell.
    ///
    /// All keep an estimate of the input, about a quarter of the request's bytes (median of 14,000 recordings of
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

impl Observation {
    /// Headers that could not be read.
    #[must_use]
    pub fn faults(&self) -> u32 {
        let faults = self.missing.iter().filter(|missing| missing.reason.is_fault()).count();
        u32::try_from(faults).unwrap_or(u32::MAX)
    }

    /// The same, if a request of this size fits into the limits that refused it; otherwise too large ever to be served.
    /// Only limits of LLM tokens over a minute or longer are compared: a limit per second stores more than a second's.
    #[must_use]
    pub fn for_request_of(self, cost: &Cost) -> Self {
        let whole = |meter: Meter| meter.unit != Unit::Requests && meter.window.seconds() >= Window::Minute.seconds();
        let refused_by = |reading: &&MeterReading| whole(reading.meter) && self.exhausted.contains(&reading.meter);
        let never = |reading: &MeterReading| reading.limit.is_some_and(|limit| cost.of(reading.meter.unit) > limit);
        let too_large = self.class == Class::Throttled && self.readings.iter().filter(refused_by).any(never);
        if too_large { self.in_vain(Class::TooLarge) } else { self }
    }

    /// No wait is longer than the dialect's limits last. One over [`HOLD_MAX`] is the controller's to spread, whatever the
    /// provider calls it.
    fn bounded(mut self, semantics: &Semantics) -> Self {
        let windows = self.exhausted.iter().map(|meter| meter.window.seconds());
        let longest = Duration::try_from_secs_f64(windows.fold(0.0, f64::max)).unwrap_or(semantics.wait_max);
        self.retry_after = self.retry_after.map(|wait| wait.min(semantics.wait_max.max(longest)));
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
    fn in_vain(mut self, class: Class) -> Self {
        self.readings.retain(|reading| reading.reset.is_some());
        Self { class, ending: Ending::Ignored, retry_after: None, exhausted: Vec::new(), ..self }
    }

    fn overloaded(self) -> Self {
        let ending = Ending::Throttled(ThrottleKind::Overload);
        Self { class: Class::Overloaded, ending, exhausted: Vec::new(), ..self }
    }

    fn throttled(self, exhausted: Vec<Meter>) -> Self {
        let ending = Ending::Throttled(kind_of(&exhausted));
        Self { class: Class::Throttled, ending, exhausted, ..self }
    }

    /// By a limit that none of our meters counts.
    fn throttled_elsewhere(self) -> Self {
        Self { class: Class::Throttled, ending: Ending::Ignored, exhausted: Vec::new(), ..self }
    }

    fn throttled_for(self, kind: ThrottleKind) -> Self {
        Self { class: Class::Throttled, ending: Ending::Throttled(kind), exhausted: Vec::new(), ..self }
    }

    /// A header's wait is stronger than a body's.
    fn waiting(self, wait: Option<Duration>) -> Self {
        Self { retry_after: self.retry_after.or(wait), ..self }
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
