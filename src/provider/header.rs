//! One header's value: absent, readable, or a fault.
//!
//! A line that is repeated with the same value counts once; with different values it cannot be told which is meant.

use http::HeaderMap;

use crate::quota::Unit;

/// Larger numbers are placeholders for "unlimited" (`u64::MAX`) or errors, and no longer exact as `f64` from 2^53 on.
pub(super) const NUMBER_MAX: u64 = 1_000_000_000_000_000;

/// One meter's three headers, by name.
pub(super) struct Names {
    pub(super) unit: Unit,
    pub(super) limit: &'static str,
    pub(super) remaining: &'static str,
    pub(super) reset: &'static str,
}

/// What a meter's headers say, each as far as it could be read.
pub(super) struct Told<R> {
    pub(super) limit: Option<f64>,
    pub(super) remaining: Option<f64>,
    pub(super) reset: Option<R>,
}

impl Names {
    /// Reads the three; `None` when they tell nothing of the meter.
    pub(super) fn read<R>(
        &self,
        headers: &HeaderMap,
        faults: &mut u32,
        reset: impl FnOnce(&str) -> Option<R>,
    ) -> Option<Told<R>> {
        let positive = |text: &str| uint(text).filter(|n| *n > 0.0);
        let limit = read(headers, self.limit, faults, positive);
        let remaining = read(headers, self.remaining, faults, uint);
        let reset = read(headers, self.reset, faults, reset);
        // A limit that is there but makes no sense discredits what stands beside it.
        let told = limit.is_some() || (remaining.is_some() && !headers.contains_key(self.limit));
        told.then_some(Told { limit, remaining, reset })
    }
}

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
