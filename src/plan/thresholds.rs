//! Thresholds: per meter a rate and a burst, and a concurrency.

use std::fmt;

use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use serde::ser::{SerializeMap, Serializer};
use serde::{Deserialize, Serialize};

use super::{Rates, RecordError};
use crate::quota::Meter;

const CONCURRENCY: &str = "concurrency";

/// A refill rate and the most that may be stored.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// Units per the meter's window.
    pub rate: f64,
    /// Units.
    pub burst: f64,
}

impl Rate {
    /// Both numbers times `factor`.
    #[must_use]
    pub fn scaled(self, factor: f64) -> Self {
        Self { rate: self.rate * factor, burst: self.burst * factor }
    }

    /// This rate with the burst-to-rate ratio of `like`, the burst at least 1. Without a `like` the burst is one window's
    /// rate, so that it makes no request impossible.
    #[must_use]
    pub fn with_ratio_of(rate: f64, like: Option<Self>) -> Self {
        let ratio = like.map_or(1.0, |r| if r.rate > 0.0 { r.burst / r.rate } else { 0.0 });
        Self { rate, burst: (rate * ratio).max(1.0) }
    }

    pub(super) fn check(self, what: &str) -> Result<Self, RecordError> {
        let good = |x: f64| x.is_finite() && x >= 0.0;
        if good(self.rate) && good(self.burst) {
            Ok(self)
        } else {
            Err(RecordError::Range(format!("{what}: expected finite numbers, 0 or more, for rate and burst")))
        }
    }
}

/// What a tenant is granted: rates per meter, and a concurrency when one is set.
///
/// On the wire one map: `{"requests/minute":{"rate":120.0,"burst":12.0},"concurrency":8}`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Thresholds {
    /// Per meter.
    pub rates: Rates,
    /// Requests in flight at a time; `None` is no limit of its own.
    pub concurrency: Option<u32>,
}

impl Thresholds {
    /// Rates and bursts times `factor`; the concurrency rounded down, at least 1 unless it was 0 or factor is 0.
    #[must_use]
    pub fn scaled(&self, factor: f64) -> Self {
        Self {
            rates: self.rates.iter().map(|(meter, rate)| (*meter, rate.scaled(factor))).collect(),
            concurrency: self.concurrency.map(|n| scale_count(n, factor)),
        }
    }

    /// Becomes what [`Thresholds::scaled`] of another returns, in place.
    pub fn be_scaled(&mut self, of: &Self, factor: f64) {
        if !self.rates.keys().eq(of.rates.keys()) {
            self.rates.clone_from(&of.rates);
        }
        for (own, rate) in self.rates.values_mut().zip(of.rates.values()) {
            *own = rate.scaled(factor);
        }
        self.concurrency = of.concurrency.map(|n| scale_count(n, factor));
    }

    /// The stricter of both on each meter; one that only one of them limits is limited by it.
    #[must_use]
    pub fn lower_of(&self, other: &Self) -> Self {
        let mut lower = self.clone();
        for (meter, theirs) in &other.rates {
            let own = lower.rates.get(meter).copied().unwrap_or(*theirs);
            let both = Rate { rate: own.rate.min(theirs.rate), burst: own.burst.min(theirs.burst) };
            lower.rates.insert(*meter, both);
        }
        lower.concurrency = self.concurrency.into_iter().chain(other.concurrency).min();
        lower
    }

    /// The looser of both on each meter; one that only one of them limits is not limited.
    #[must_use]
    pub fn higher_of(&self, other: &Self) -> Self {
        let both = |(meter, own): (&Meter, &Rate)| {
            let theirs = other.rates.get(meter)?;
            Some((*meter, Rate { rate: own.rate.max(theirs.rate), burst: own.burst.max(theirs.burst) }))
        };
        Self {
            rates: self.rates.iter().filter_map(both).collect(),
            concurrency: self.concurrency.zip(other.concurrency).map(|(own, theirs)| own.max(theirs)),
        }
    }

    pub(super) fn check(&self) -> Result<(), RecordError> {
        self.rates.iter().try_for_each(|(meter, rate)| rate.check(&meter.to_string()).map(drop))
    }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "floored, not negative")]
fn scale_count(n: u32, factor: f64) -> u32 {
    if n == 0 || factor <= 0.0 { 0 } else { ((f64::from(n) * factor).floor() as u32).max(1) }
}

impl Serialize for Thresholds {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (meter, rate) in &self.rates {
            map.serialize_entry(meter, rate)?;
        }
        if let Some(n) = self.concurrency {
            map.serialize_entry(CONCURRENCY, &n)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Thresholds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Thresholds;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of meter to {rate, burst}, and optionally \"concurrency\"")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Thresholds, A::Error> {
                let mut thresholds = Thresholds::default();
                while let Some(key) = map.next_key::<String>()? {
                    if key == CONCURRENCY {
                        thresholds.concurrency = Some(map.next_value()?);
                    } else {
                        let meter = key.parse().map_err(A::Error::custom)?;
                        thresholds.rates.insert(meter, map.next_value()?);
                    }
                }
                Ok(thresholds)
            }
        }
        deserializer.deserialize_map(Entries)
    }
}
