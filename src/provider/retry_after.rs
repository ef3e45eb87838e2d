//! `Retry-After` (RFC 9110 §10.2.3) and OpenAI's finer `retry-after-ms`, as really sent: delta seconds, fractions of
//! them (`7.66`), and HTTP dates.
//!
//! A date is measured against the same response's `Date`, so no clock of ours is compared with the provider's. Zero
//! says nothing and counts as absent.

use std::time::Duration;

use http::HeaderMap;
use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimeParser;

use super::duration::SPAN_MAX;
use super::header;

/// How long the response asks us to wait.
pub(super) fn read(headers: &HeaderMap, faults: &mut u32) -> Option<Duration> {
    let wait = |span: Duration| Some(span).filter(|span| *span <= SPAN_MAX);
    let fine = header::read(headers, "retry-after-ms", faults, |text| seconds(text, 1_000.0).and_then(wait));
    if let Some(span) = fine.filter(|span| !span.is_zero()) {
        return Some(span);
    }
    let coarse = header::read(headers, "retry-after", faults, |text| {
        seconds(text, 1.0).or_else(|| until(text, headers)).and_then(wait)
    });
    coarse.filter(|span| !span.is_zero())
}

/// Digits, perhaps with a fraction, `per_second` to the second.
fn seconds(text: &str, per_second: f64) -> Option<Duration> {
    let plain = text.starts_with(|c: char| c.is_ascii_digit()) && text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    let n: f64 = text.parse().ok().filter(|_| plain)?;
    Duration::try_from_secs_f64(n / per_second).ok()
}

/// From the response's own `Date` to the date in `text`; a date that has passed is zero.
fn until(text: &str, headers: &HeaderMap) -> Option<Duration> {
    let span = instant(text)?.duration_since(date(headers)?);
    Some(Duration::try_from(span).unwrap_or_default())
}

/// The response's own time of day.
pub(super) fn date(headers: &HeaderMap) -> Option<Timestamp> {
    instant(headers.get(http::header::DATE)?.to_str().ok()?)
}

fn instant(text: &str) -> Option<Timestamp> {
    DateTimeParser::new().parse_timestamp(text).ok()
}
