//! `Retry-After` (RFC 9110 §10.2.3) and OpenAI's finer `retry-after-ms`, as really sent: delta seconds, fractions of
//! them (`7.66`), and HTTP dates.
//!
//! A date is measured against the same response's `Date`, so no clock of ours is compared with the provider's. Zero
//! says nothing and counts as absent.

use std::time::Duration;

use super::lines::{Lines, Single};
use super::missing::{Missing, Reason};
use super::reading::Now;
use super::value::ResetForm;

/// How long the response asks us to wait.
pub(super) fn read(lines: &Lines<'_>, now: &Now<'_>, missing: &mut Vec<Missing>) -> Option<Duration> {
    let mut told = |single, parse: &dyn Fn(&str) -> Result<Duration, Reason>| {
        lines.single(single)?.read(missing, parse).filter(|span| !span.is_zero())
    };
    told(Single::RetryAfterMs, &|text| ResetForm::DeltaMillis.read(text, None))
        .or_else(|| told(Single::RetryAfter, &|text| delta_or_date(text, now)))
        .or_else(|| told(Single::TimeRemaining, &|text| ResetForm::DeltaSeconds.read(text, None)))
        .or_else(|| told(Single::ResetTokens, &|text| ResetForm::DeltaSeconds.read(text, None)))
}

fn delta_or_date(text: &str, now: &Now<'_>) -> Result<Duration, Reason> {
    let date = text.starts_with(|c: char| c.is_ascii_alphabetic());
    match ResetForm::DeltaSeconds.read(text, None) {
        Err(_) if date => ResetForm::HttpDate.read(text, now.get()),
        read => read,
    }
}
