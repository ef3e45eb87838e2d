//! A head's lines, sorted once: which bucket a header speaks of, and which part of it.
//!
//! Most providers build names from the same three words: a part (limit, remaining, reset), a unit, and perhaps a window:
//! `x-ratelimit-remaining-tokens-minute`. So a dialect's names are a prefix and an order of words, and a window that no
//! model had yesterday is read today. Names that follow no pattern are listed one by one. One pass over the head, no
//! hashing, nothing copied.

use smallvec::SmallVec;
use smol_str::SmolStr;

use super::head::Head;
use super::missing::{Missing, Reason};
use crate::quota::{Unit, Window};

/// What a bucket counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Subject {
    /// What one of our meters counts.
    Unit(Unit),
    /// What none does: images, audio, a project's own bucket.
    Other(Other),
}

/// What a provider counts and no meter of ours does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Other {
    InputImages,
    ProjectTokens,
    ProjectRequests,
    UsageBasedTokens,
    CacheAdjustedPromptTokens,
    AudioSeconds,
    OcrPages,
    InputCharacters,
    DynamicRequests,
    DynamicTokens,
    PriorityInputTokens,
    PriorityOutputTokens,
    ContentBytes,
    ConcurrentRequests,
    Units,
}

impl Other {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::InputImages => "input_images",
            Self::ProjectTokens => "project_tokens",
            Self::ProjectRequests => "project_requests",
            Self::UsageBasedTokens => "usage_based_tokens",
            Self::CacheAdjustedPromptTokens => "cache_adjusted_prompt_tokens",
            Self::AudioSeconds => "audio_seconds",
            Self::OcrPages => "ocr_pages",
            Self::InputCharacters => "input_characters",
            Self::DynamicRequests => "dynamic_requests",
            Self::DynamicTokens => "dynamic_tokens",
            Self::PriorityInputTokens => "priority_input_tokens",
            Self::PriorityOutputTokens => "priority_output_tokens",
            Self::ContentBytes => "content_bytes",
            Self::ConcurrentRequests => "concurrent_requests",
            Self::Units => "units",
        }
    }
}

/// What a header tells of a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Limit,
    Remaining,
    Reset,
    /// The length of the window, in seconds.
    Period,
}

impl Part {
    /// The word for it in names that are built from words.
    #[inline]
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Limit => "limit",
            Self::Remaining => "remaining",
            Self::Reset => "reset",
            Self::Period => "renewalperiod",
        }
    }
}

/// What one header is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slot {
    pub(super) subject: Subject,
    pub(super) window: Option<Window>,
    pub(super) part: Part,
}

/// Names that are built from words.
#[derive(Debug, Clone, Copy)]
pub(super) struct Family {
    pub(super) prefix: Prefix,
    pub(super) order: Order,
    /// What is counted when no word says.
    pub(super) bare: Option<Subject>,
}

/// How names begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Prefix {
    /// `x-ratelimit-`.
    RateLimit,
    /// `anthropic-ratelimit-`.
    Anthropic,
    Other(&'static str),
}

impl Prefix {
    const RATE_LIMIT: &str = "x-ratelimit-";
    const ANTHROPIC: &str = "anthropic-ratelimit-";

    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::RateLimit => Self::RATE_LIMIT,
            Self::Anthropic => Self::ANTHROPIC,
            Self::Other(prefix) => prefix,
        }
    }

    /// What follows in a name that begins so. Nearly all that do begin with a constant: it is compared as a few machine
    /// words, without a call.
    #[inline]
    fn strip(self, name: &str) -> Option<&str> {
        match self {
            Self::RateLimit => name.strip_prefix(Self::RATE_LIMIT),
            Self::Anthropic => name.strip_prefix(Self::ANTHROPIC),
            Self::Other(prefix) => name.strip_prefix(prefix),
        }
    }
}

/// The order of words after the prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// `limit-tokens`.
    PartFirst,
    /// `tokens-limit`.
    SubjectFirst,
}

/// A name that follows no pattern.
#[derive(Debug, Clone, Copy)]
pub(super) struct Listed {
    pub(super) name: &'static str,
    pub(super) slot: Slot,
}

const fn unit(unit: Unit) -> Subject {
    Subject::Unit(unit)
}

/// What the words for a unit mean.
#[inline(always)]
#[allow(
    clippy::inline_always,
    reason = "most of what it takes to sort a line, and it is called in several places: measured"
)]
fn subject(word: &str) -> Option<Subject> {
    Some(match word {
        "requests" | "req" => unit(Unit::Requests),
        "tokens" => unit(Unit::Tokens),
        "input-tokens" | "tokens-prompt" => unit(Unit::InputTokens),
        "output-tokens" | "tokens-generated" => unit(Unit::OutputTokens),
        "input-images" => Subject::Other(Other::InputImages),
        "project-tokens" => Subject::Other(Other::ProjectTokens),
        "project-requests" => Subject::Other(Other::ProjectRequests),
        "tokens_usage_based" | "tokens-usage-based" => Subject::Other(Other::UsageBasedTokens),
        "tokens-cache-adjusted-prompt" => Subject::Other(Other::CacheAdjustedPromptTokens),
        "audio-seconds" => Subject::Other(Other::AudioSeconds),
        "ocr-pages" => Subject::Other(Other::OcrPages),
        "input-characters" => Subject::Other(Other::InputCharacters),
        _ => return None,
    })
}

/// The window that ends a name: `tokens-minute`, `tokens-5-minute`, `tokens-per-day`, or a window alone.
fn windowed(words: &str) -> Option<(&str, Window)> {
    let (before, last) = words.rsplit_once('-').unwrap_or(("", words));
    let seconds: u64 = match last {
        "second" => 1,
        "minute" => 60,
        "hour" => 3_600,
        "day" => 86_400,
        "month" => 2_592_000,
        _ => return None,
    };
    let (before, times) = match before.rsplit_once('-') {
        Some((before, "per")) => (before, 1),
        Some((before, n)) if n.bytes().all(|b| b.is_ascii_digit()) => (before, n.parse().ok()?),
        _ => (before, 1),
    };
    Some((before, Window::from_seconds(seconds.checked_mul(times)?)?))
}

#[inline(always)]
#[allow(
    clippy::inline_always,
    reason = "most of what it takes to sort a line, and it is called in several places: measured"
)]
fn subject_and_window(words: &str, bare: Option<Subject>) -> Option<(Subject, Option<Window>)> {
    let of = |words: &str| if words.is_empty() { bare } else { subject(words) };
    match of(words) {
        Some(subject) => Some((subject, None)),
        None => windowed(words).and_then(|(words, window)| Some((of(words)?, Some(window)))),
    }
}

// Each word by itself, not split off and looked up, nor in a loop: compared with a constant, it is a few machine words.

#[inline]
fn part_first(words: &str) -> Option<(Part, &str)> {
    if let Some(rest) = words.strip_prefix(Part::Limit.word()) {
        return Some((Part::Limit, after_dash(rest)?));
    }
    if let Some(rest) = words.strip_prefix(Part::Remaining.word()) {
        return Some((Part::Remaining, after_dash(rest)?));
    }
    if let Some(rest) = words.strip_prefix(Part::Reset.word()) {
        return Some((Part::Reset, after_dash(rest)?));
    }
    let rest = words.strip_prefix(Part::Period.word()).or_else(|| words.strip_prefix("interval"))?;
    Some((Part::Period, after_dash(rest)?))
}

/// What follows a part's word: nothing, or more words.
#[inline]
fn after_dash(rest: &str) -> Option<&str> {
    if rest.is_empty() { Some(rest) } else { rest.strip_prefix('-') }
}

#[inline]
fn part_last(words: &str) -> Option<(Part, &str)> {
    if let Some(rest) = words.strip_suffix(Part::Limit.word()) {
        return Some((Part::Limit, rest.strip_suffix('-')?));
    }
    if let Some(rest) = words.strip_suffix(Part::Remaining.word()) {
        return Some((Part::Remaining, rest.strip_suffix('-')?));
    }
    let rest = words.strip_suffix(Part::Reset.word())?;
    Some((Part::Reset, rest.strip_suffix('-')?))
}

impl Family {
    /// What the header of this name is, if it is one of the family's.
    #[inline(always)]
    #[allow(clippy::inline_always, reason = "handed over in memory, a slot is slow to be read: measured")]
    pub(super) fn slot(&self, name: &str) -> Option<Slot> {
        let words = self.prefix.strip(name)?;
        let (part, words) = match self.order {
            Order::PartFirst => part_first(words)?,
            Order::SubjectFirst => part_last(words)?,
        };
        let (subject, window) = self.meant(words)?;
        Some(Slot { subject, window, part })
    }

    /// The bucket that words mean.
    #[inline]
    pub(super) fn meant(&self, words: &str) -> Option<(Subject, Option<Window>)> {
        subject_and_window(words, self.bare)
    }

    /// The name of a part of the bucket that these words mean.
    pub(super) fn name(&self, part: Part, words: &str) -> String {
        let (prefix, part) = (self.prefix.as_str(), part.word());
        match self.order {
            _ if words.is_empty() => format!("{prefix}{part}"),
            Order::PartFirst => format!("{prefix}{part}-{words}"),
            Order::SubjectFirst => format!("{prefix}{words}-{part}"),
        }
    }
}

/// One header: its lines must agree.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cell<'a> {
    pub(super) name: &'a str,
    value: &'a [u8],
    unanimous: bool,
}

impl<'a> Cell<'a> {
    const fn new(name: &'a str, value: &'a [u8]) -> Self {
        Self { name, value, unanimous: true }
    }

    fn add(cell: &mut Option<Self>, name: &'a str, value: &'a [u8]) {
        match cell {
            Some(cell) => cell.unanimous &= cell.value == value,
            None => *cell = Some(Self::new(name, value)),
        }
    }

    /// The value, without blanks around it.
    pub(super) fn text(&self) -> Result<&'a str, Reason> {
        if !self.unanimous {
            return Err(Reason::Repeated);
        }
        let text = std::str::from_utf8(self.value).map_err(|_| Reason::NotText)?;
        Ok(match self.value {
            [b' ' | b'\t', ..] | [.., b' ' | b'\t'] => text.trim_matches([' ', '\t']),
            _ => text,
        })
    }

    /// The value as it came, if all its lines agree.
    #[inline]
    pub(super) fn bytes(&self) -> Option<&'a [u8]> {
        self.unanimous.then_some(self.value)
    }

    /// The number, where the value is plain digits: most are, and need not be looked at as text.
    #[inline]
    #[allow(clippy::cast_precision_loss, reason = "15 digits are below 2^53")]
    pub(super) fn digits(&self) -> Option<f64> {
        const PLACES_MAX: usize = 15;
        if !self.unanimous || self.value.is_empty() || self.value.len() > PLACES_MAX {
            return None;
        }
        // A signed number: the machine makes a float of it in one step.
        let n = self.value.iter().try_fold(0_i64, |n, byte| {
            let digit = byte.wrapping_sub(b'0');
            (digit < 10).then(|| n * 10 + i64::from(digit))
        });
        n.map(|n| n as f64)
    }

    /// What `parse` takes from the value; what it does not take is noted.
    pub(super) fn read<T>(
        &self,
        missing: &mut Vec<Missing>,
        parse: impl FnOnce(&'a str) -> Result<T, Reason>,
    ) -> Option<T> {
        match self.text().and_then(parse) {
            Ok(value) => Some(value),
            Err(reason) => {
                self.miss(missing, reason);
                None
            }
        }
    }

    /// Notes why nothing was taken.
    pub(super) fn miss(&self, missing: &mut Vec<Missing>, reason: Reason) {
        missing.push(Missing { header: SmolStr::new(self.name), reason });
    }
}

/// What the head tells of one bucket.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bucket<'a> {
    pub(super) subject: Subject,
    pub(super) window: Option<Window>,
    pub(super) limit: Option<Cell<'a>>,
    pub(super) remaining: Option<Cell<'a>>,
    pub(super) reset: Option<Cell<'a>>,
    pub(super) period: Option<Cell<'a>>,
}

impl<'a> Bucket<'a> {
    const EMPTY: Self =
        Self { subject: unit(Unit::Requests), window: None, limit: None, remaining: None, reset: None, period: None };

    fn cell(&mut self, part: Part) -> &mut Option<Cell<'a>> {
        match part {
            Part::Limit => &mut self.limit,
            Part::Remaining => &mut self.remaining,
            Part::Reset => &mut self.reset,
            Part::Period => &mut self.period,
        }
    }
}

/// Headers that are not of a bucket.
#[derive(Debug, Clone, Copy)]
pub(super) enum Single {
    Date,
    RetryAfter,
    RetryAfterMs,
    ShouldRetry,
    /// Which limit refused: Azure, GitHub Models.
    LimitType,
    TimeRemaining,
    /// Azure's, of 2023: on refusals, alone, in seconds.
    ResetTokens,
    /// Azure's, from the day it counts resets in seconds.
    LimitKey,
    /// Bedrock's exception.
    ErrorType,
    /// Which policy of Azure's refused.
    PolicyId,
}

const SINGLES: usize = 10;
/// [`Single::LimitKey`].
pub(super) const LIMIT_KEY: &str = "x-ratelimit-key";

impl Single {
    #[inline]
    pub(super) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "date" => Self::Date,
            "retry-after" => Self::RetryAfter,
            "retry-after-ms" => Self::RetryAfterMs,
            "x-should-retry" => Self::ShouldRetry,
            "x-ratelimit-type" => Self::LimitType,
            "x-ratelimit-timeremaining" => Self::TimeRemaining,
            "x-rate-limit-reset-tokens" => Self::ResetTokens,
            LIMIT_KEY => Self::LimitKey,
            "x-amzn-errortype" => Self::ErrorType,
            "policy-id" => Self::PolicyId,
            _ => return None,
        })
    }
}

/// A head's lines, sorted.
#[derive(Debug, Default)]
pub(super) struct Lines<'a> {
    pub(super) buckets: SmallVec<[Bucket<'a>; 6]>,
    singles: [Option<Cell<'a>>; SINGLES],
}

impl<'a> Lines<'a> {
    /// Sorts the lines of a head by a dialect's names. In place: it is too large to be handed about.
    pub(super) fn sort(&mut self, head: &Head<'a>, families: &[Family], listed: &[Listed]) {
        let lines = self;
        head.headers.for_each(&mut |name, value| {
            let listed = || listed.iter().find(|listed| listed.name == name).map(|listed| listed.slot);
            if let Some(slot) = families.iter().find_map(|family| family.slot(name)).or_else(listed) {
                lines.add(slot, name, value);
            } else if let Some(single) = Single::named(name) {
                Cell::add(&mut lines.singles[single as usize], name, value);
            }
        });
    }

    #[inline]
    fn add(&mut self, slot: Slot, name: &'a str, value: &'a [u8]) {
        let Slot { subject, window, part } = slot;
        // From the end: most heads tell one bucket after another.
        let mut known = self.buckets.iter_mut().rev();
        if let Some(bucket) = known.find(|bucket| bucket.subject == subject && bucket.window == window) {
            return Cell::add(bucket.cell(part), name, value);
        }
        // Copied from a constant: what was just put together is slow to be copied.
        self.buckets.push(Bucket::EMPTY);
        if let Some(bucket) = self.buckets.last_mut() {
            (bucket.subject, bucket.window) = (subject, window);
            *bucket.cell(part) = Some(Cell::new(name, value));
        }
    }

    pub(super) fn single(&self, single: Single) -> Option<&Cell<'a>> {
        self.singles[single as usize].as_ref()
    }

    /// A single's value, where it can be read at all.
    pub(super) fn text(&self, single: Single) -> Option<&'a str> {
        self.single(single).and_then(|cell| cell.text().ok())
    }
}
