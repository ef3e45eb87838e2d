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
    Other(&'static str),
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
    pub(super) prefix: &'static str,
    pub(super) order: Order,
    /// What is counted when no word says.
    pub(super) bare: Option<Subject>,
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
fn subject(word: &str) -> Option<Subject> {
    Some(match word {
        "requests" | "req" => unit(Unit::Requests),
        "tokens" => unit(Unit::Tokens),
        "input-tokens" | "tokens-prompt" => unit(Unit::InputTokens),
        "output-tokens" | "tokens-generated" => unit(Unit::OutputTokens),
        "input-images" => Subject::Other("input_images"),
        "project-tokens" => Subject::Other("project_tokens"),
        "project-requests" => Subject::Other("project_requests"),
        "tokens_usage_based" | "tokens-usage-based" => Subject::Other("usage_based_tokens"),
        "tokens-cache-adjusted-prompt" => Subject::Other("cache_adjusted_prompt_tokens"),
        "audio-seconds" => Subject::Other("audio_seconds"),
        "ocr-pages" => Subject::Other("ocr_pages"),
        "input-characters" => Subject::Other("input_characters"),
        "dynamic" => Subject::Other("dynamic_requests"),
        "tokens-dynamic" => Subject::Other("dynamic_tokens"),
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

fn subject_and_window(words: &str, bare: Option<Subject>) -> Option<(Subject, Option<Window>)> {
    let of = |words: &str| if words.is_empty() { bare } else { subject(words) };
    match of(words) {
        Some(subject) => Some((subject, None)),
        None => windowed(words).and_then(|(words, window)| Some((of(words)?, Some(window)))),
    }
}

impl Family {
    /// What the header of this name is, if it is one of the family's.
    #[inline]
    pub(super) fn slot(&self, name: &str) -> Option<Slot> {
        let words = name.strip_prefix(self.prefix)?;
        let (part, words) = match self.order {
            Order::PartFirst => words.split_once('-').unwrap_or((words, "")),
            Order::SubjectFirst => words.rsplit_once('-').map(|(words, part)| (part, words))?,
        };
        let part = match part {
            "limit" => Part::Limit,
            "remaining" => Part::Remaining,
            "reset" => Part::Reset,
            "renewalperiod" | "interval" => Part::Period,
            _ => return None,
        };
        let (subject, window) = subject_and_window(words, self.bare)?;
        Some(Slot { subject, window, part })
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
    fn add(cell: &mut Option<Self>, name: &'a str, value: &'a [u8]) {
        match cell {
            Some(cell) => cell.unanimous &= cell.value == value,
            None => *cell = Some(Self { name, value, unanimous: true }),
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
    /// Azure's, from the day it counts resets in seconds.
    LimitKey,
    /// Bedrock's exception.
    ErrorType,
    /// Which policy of Azure's refused.
    PolicyId,
}

const SINGLES: usize = 9;

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
            "x-ratelimit-key" => Self::LimitKey,
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

    fn add(&mut self, slot: Slot, name: &'a str, value: &'a [u8]) {
        let same = |bucket: &&mut Bucket<'_>| bucket.subject == slot.subject && bucket.window == slot.window;
        let known = self.buckets.iter_mut().find(same);
        let bucket = match known {
            Some(bucket) => bucket,
            None => {
                let Slot { subject, window, .. } = slot;
                let none = Bucket { subject, window, limit: None, remaining: None, reset: None, period: None };
                self.buckets.push(none);
                let last = self.buckets.len() - 1;
                &mut self.buckets[last]
            }
        };
        let cell = match slot.part {
            Part::Limit => &mut bucket.limit,
            Part::Remaining => &mut bucket.remaining,
            Part::Reset => &mut bucket.reset,
            Part::Period => &mut bucket.period,
        };
        Cell::add(cell, name, value);
    }

    pub(super) fn single(&self, single: Single) -> Option<&Cell<'a>> {
        self.singles[single as usize].as_ref()
    }

    /// A single's value, where it can be read at all.
    pub(super) fn text(&self, single: Single) -> Option<&'a str> {
        self.single(single).and_then(|cell| cell.text().ok())
    }
}
