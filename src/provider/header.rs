//! One header's value: absent, readable, or a fault.
//!
//! A line that is repeated with the same value counts once; with different values it cannot be told which is meant.

use http::HeaderMap;

/// Larger numbers are placeholders for "unlimited" (`u64::MAX`) or errors, and no longer exact as `f64` from 2^53 on.
pub(super) const NUMBER_MAX: u64 = 1_000_000_000_000_000;

/// A header's value, if it is there and `parse` takes it. What it does not take is counted as a fault.
pub(super) fn read<T>(
    headers: &HeaderMap,
    name: &str,
    faults: &mut u32,
    parse: impl FnOnce(&str) -> Option<T>,
) -> Option<T> {
    let mut values = headers.get_all(name).iter();
    let first = values.next()?;
    let unanimous = values.all(|value| value == first);
    let value = std::str::from_utf8(first.as_bytes()).ok().filter(|_| unanimous);
    let parsed = value.and_then(|text| parse(text.trim_matches([' ', '\t'])));
    *faults += u32::from(parsed.is_none());
    parsed
}

/// Decimal digits only, at most [`NUMBER_MAX`].
#[allow(clippy::cast_precision_loss, reason = "NUMBER_MAX is below 2^53")]
pub(super) fn uint(text: &str) -> Option<f64> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let n: u64 = text.parse().ok().filter(|_| digits)?;
    (n <= NUMBER_MAX).then_some(n as f64)
}
