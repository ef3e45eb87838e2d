//! What could not be read, and why: each a value that is counted, never a guess.

use std::fmt;

use smol_str::SmolStr;

/// A header that told nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// The header's name, in lower case.
    pub header: SmolStr,
    /// Why nothing was taken from it.
    pub reason: Reason,
}

/// Why a header told nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Reason {
    /// No value.
    Empty,
    /// Not text.
    NotText,
    /// No number in the form that this dialect writes: a placeholder, or another dialect's value.
    NotANumber,
    /// Below zero: some write -1 for what they do not know.
    Negative,
    /// A limit of zero, which limits nothing that could be sent.
    Zero,
    /// So large that "no limit" is meant (`u64::MAX`), or that it cannot be exact.
    Unlimited,
    /// No duration in the form that this dialect writes.
    NotADuration,
    /// No time of day in the form that this dialect writes.
    NotATime,
    /// A delay of more than 400 days.
    TooLong,
    /// Repeated, or joined by commas, with values that differ: it cannot be told which is meant.
    Repeated,
    /// Not the syntax of the field.
    Malformed,
    /// The epoch, where a time should be: not set.
    Unset,
    /// A time of day, and no `Date` of the same clock to measure it by.
    NoDate,
    /// A reset that limit and remaining contradict.
    Contradicts,
    /// Of a bucket whose limit could not be read.
    NoLimit,
    /// Of another dialect than the response's: a gateway's own limiter, say.
    Foreign,
}

impl Reason {
    /// All reasons.
    pub const ALL: [Self; 16] = [
        Self::Empty,
        Self::NotText,
        Self::NotANumber,
        Self::Negative,
        Self::Zero,
        Self::Unlimited,
        Self::NotADuration,
        Self::NotATime,
        Self::TooLong,
        Self::Repeated,
        Self::Malformed,
        Self::Unset,
        Self::NoDate,
        Self::Contradicts,
        Self::NoLimit,
        Self::Foreign,
    ];

    /// The reason's name in metrics and JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::NotText => "not_text",
            Self::NotANumber => "not_a_number",
            Self::Negative => "negative",
            Self::Zero => "zero",
            Self::Unlimited => "unlimited",
            Self::NotADuration => "not_a_duration",
            Self::NotATime => "not_a_time",
            Self::TooLong => "too_long",
            Self::Repeated => "repeated",
            Self::Malformed => "malformed",
            Self::Unset => "unset",
            Self::NoDate => "no_date",
            Self::Contradicts => "contradicts",
            Self::NoLimit => "no_limit",
            Self::Foreign => "foreign",
        }
    }

    /// The reason as a sentence's end.
    #[must_use]
    pub const fn explained(self) -> &'static str {
        match self {
            Self::Empty => "it is empty",
            Self::NotText => "it is not text",
            Self::NotANumber => "it is not a number as this dialect writes them",
            Self::Negative => "it is below zero, which means \"not known\"",
            Self::Zero => "a limit of zero is no limit that could be used",
            Self::Unlimited => "so large a number means that there is no limit",
            Self::NotADuration => "it is not a duration as this dialect writes them",
            Self::NotATime => "it is not a time of day as this dialect writes them",
            Self::TooLong => "it lies more than 400 days ahead",
            Self::Repeated => "it is there more than once, with values that differ",
            Self::Malformed => "it has not the syntax of this field",
            Self::Unset => "the epoch stands for \"not set\"",
            Self::NoDate => "it is a time of day, and there is no Date header to measure it by",
            Self::Contradicts => "it fits neither limit nor remaining",
            Self::NoLimit => "the limit that it belongs to could not be read",
            Self::Foreign => "it is of another dialect, so of somebody in between",
        }
    }

    /// Whether the header itself is at fault. The others are readable, and tell nothing all the same.
    #[must_use]
    pub const fn is_fault(self) -> bool {
        !matches!(self, Self::Unset | Self::NoDate | Self::Contradicts | Self::NoLimit | Self::Foreign)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
