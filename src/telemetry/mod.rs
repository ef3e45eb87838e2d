//! What tidegate counts about itself: every metric's name, unit and labels in one enum, and the values behind them.
//!
//! *Why one enum*: logs, `/metrics` and the dashboards must mean the same thing by the same name, and a test can
//! check a list. *Bounds*: at most [`SERIES_MAX`] series (a metric with one set of label values is one series), so
//! made-up tenants cannot fill the memory; what is dropped is counted in [`Metric::SeriesDropped`]. The first
//! [`TENANTS_NAMED_MAX`] tenants have series of their own, the others one together. *What it leaves out*: how the values are
//! served. That is `exposition`, behind the feature `metrics`.

mod metric;

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering as Memory};

use parking_lot::{Mutex, RwLock};

pub use metric::{Kind, Metric, SECONDS_BOUNDS};

/// The most series that are kept. At about 100 bytes each this is a megabyte; a pool of 200 tenants on 3 meters
/// takes some 1,500.
pub const SERIES_MAX: usize = 10_000;

/// So many tenants of a process have series of their own, each counted in each pool; the label of all others is
/// [`OTHER_TENANTS`].
pub const TENANTS_NAMED_MAX: usize = 200;
/// What the tenants are called that have no series of their own. A tenant of that name is one of them.
pub const OTHER_TENANTS: &str = "other";

/// One series of a [`snapshot`](Telemetry::snapshot).
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Which metric.
    pub metric: Metric,
    /// Its label values, in the order of [`Metric::labels`].
    pub labels: Vec<String>,
    /// Its value.
    pub value: Value,
}

impl Sample {
    /// A gauge's or counter's sample.
    #[must_use]
    pub fn number(metric: Metric, labels: &[&str], value: f64) -> Self {
        Self { metric, labels: labels.iter().map(|label| (*label).to_owned()).collect(), value: Value::Number(value) }
    }
}

/// What a series says.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Of a counter or a gauge.
    Number(f64),
    /// Of a histogram.
    Spans {
        /// How many were at most each of [`SECONDS_BOUNDS`] and above the one before; the last: above all.
        counts: Vec<u64>,
        /// The sum of all, in seconds.
        sum: f64,
    },
}

impl Value {
    /// A counter's or gauge's value; of a histogram, how many it has seen.
    #[must_use]
    #[allow(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
    pub fn number(&self) -> f64 {
        match self {
            Self::Number(number) => *number,
            Self::Spans { counts, .. } => counts.iter().sum::<u64>() as f64,
        }
    }
}

/// The values. Shared by `Arc`; adding to a series that exists takes a read lock and no allocation.
#[derive(Debug)]
pub struct Telemetry {
    /// By [`Metric::ALL`]'s order; each sorted by label values.
    families: [RwLock<Vec<Series>>; Metric::ALL.len()],
    series: AtomicUsize,
    /// Of each pool, the tenants that have series of their own.
    named: Mutex<BTreeMap<Box<str>, BTreeSet<Box<str>>>>,
}

#[derive(Debug)]
struct Series {
    labels: Box<[Box<str>]>,
    /// An `f64`'s bits; a histogram's sum.
    bits: AtomicU64,
    /// A histogram's counts, else empty.
    counts: Box<[AtomicU64]>,
}

impl Default for Telemetry {
    fn default() -> Self {
        Self::new()
    }
}

impl Telemetry {
    /// Without series, but for the count of dropped ones at 0.
    #[must_use]
    pub fn new() -> Self {
        let families = std::array::from_fn(|_| RwLock::new(Vec::new()));
        let telemetry = Self { families, series: AtomicUsize::new(0), named: Mutex::default() };
        telemetry.add(Metric::SeriesDropped, &[], 0.0);
        telemetry
    }

    /// Adds `n` to a series, which begins at 0. Ignored when `n` is not finite, or negative on a counter.
    ///
    /// `labels` are the values for [`Metric::labels`], in that order; another number of them is a mistake in the
    /// program: caught in a debug build, dropped and counted in a release build.
    pub fn add(&self, metric: Metric, labels: &[&str], n: f64) {
        let counts = match metric.kind() {
            Kind::Gauge => true,
            Kind::Counter => n >= 0.0,
            Kind::Histogram => false,
        };
        if n.is_finite() && counts {
            self.with_series(metric, labels, |series| series.change(|value| value + n));
        }
    }

    /// Counts a span in a histogram, in seconds. Ignored when it is not finite or negative, or the metric no histogram.
    ///
    /// `labels` as in [`add`](Self::add).
    pub fn observe(&self, metric: Metric, labels: &[&str], seconds: f64) {
        if metric.kind() == Kind::Histogram && seconds.is_finite() && seconds >= 0.0 {
            self.with_series(metric, labels, |series| {
                let bucket = SECONDS_BOUNDS.partition_point(|bound| *bound < seconds);
                series.counts[bucket].fetch_add(1, Memory::Relaxed);
                series.change(|sum| sum + seconds);
            });
        }
    }

    /// The label of a pool's tenant: its name, or [`OTHER_TENANTS`] when there are too many to have series of their own. Whoever
    /// comes first keeps it, so that no series moves from one to the other.
    pub fn tenant_label<'a>(&self, pool: &str, tenant: &'a str) -> &'a str {
        let mut named = self.named.lock();
        if named.get(pool).is_some_and(|tenants| tenants.contains(tenant)) {
            return tenant;
        }
        if tenant == OTHER_TENANTS || named.values().map(BTreeSet::len).sum::<usize>() >= TENANTS_NAMED_MAX {
            return OTHER_TENANTS;
        }
        named.entry(pool.into()).or_default().insert(tenant.into());
        tenant
    }

    /// Sets a gauge; raises a counter to `value`, and leaves one that is higher. Ignored when `value` is not finite.
    ///
    /// `labels` as in [`add`](Self::add).
    pub fn set(&self, metric: Metric, labels: &[&str], value: f64) {
        if value.is_finite() {
            match metric.kind() {
                Kind::Gauge => self.with_series(metric, labels, |series| series.change(|_| value)),
                Kind::Counter => self.with_series(metric, labels, |series| series.change(|old| old.max(value))),
                Kind::Histogram => {}
            }
        }
    }

    /// All series, by metric and label values.
    #[must_use]
    pub fn snapshot(&self) -> Vec<Sample> {
        let mut samples = Vec::with_capacity(self.series.load(Memory::Relaxed));
        for (metric, family) in Metric::ALL.iter().zip(&self.families) {
            samples.extend(family.read().iter().map(|series| Sample {
                metric: *metric,
                labels: series.labels.iter().map(|label| String::from(label.as_ref())).collect(),
                value: series.value(),
            }));
        }
        samples
    }

    fn with_series(&self, metric: Metric, labels: &[&str], change: impl Fn(&Series)) {
        debug_assert_eq!(labels.len(), metric.labels().len(), "label values of {}", metric.name());
        let family = &self.families[metric as usize];
        {
            let known = family.read();
            if let Ok(at) = find(&known, labels) {
                return change(&known[at]);
            }
        }
        if labels.len() != metric.labels().len() || !self.reserve_series() {
            return self.add(Metric::SeriesDropped, &[], 1.0);
        }
        let mut known = family.write();
        match find(&known, labels) {
            // Another thread came first: give the place back.
            Ok(at) => {
                self.series.fetch_sub(1, Memory::Relaxed);
                change(&known[at]);
            }
            Err(at) => {
                let series = Series::new(metric, labels);
                change(&series);
                known.insert(at, series);
            }
        }
    }

    fn reserve_series(&self) -> bool {
        self.series.fetch_update(Memory::Relaxed, Memory::Relaxed, |n| (n < SERIES_MAX).then_some(n + 1)).is_ok()
    }
}

impl Series {
    fn new(metric: Metric, labels: &[&str]) -> Self {
        let buckets = if metric.kind() == Kind::Histogram { SECONDS_BOUNDS.len() + 1 } else { 0 };
        Self {
            labels: labels.iter().map(|label| Box::from(*label)).collect(),
            bits: AtomicU64::new(0.0_f64.to_bits()),
            counts: (0..buckets).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    fn change(&self, to: impl Fn(f64) -> f64) {
        let next = |bits| Some(to(f64::from_bits(bits)).to_bits());
        // The closure never answers `None`, so this never fails.
        let _ = self.bits.fetch_update(Memory::Relaxed, Memory::Relaxed, next);
    }

    fn value(&self) -> Value {
        let number = f64::from_bits(self.bits.load(Memory::Relaxed));
        if self.counts.is_empty() {
            return Value::Number(number);
        }
        Value::Spans { counts: self.counts.iter().map(|count| count.load(Memory::Relaxed)).collect(), sum: number }
    }
}

fn find(known: &[Series], labels: &[&str]) -> Result<usize, usize> {
    known.binary_search_by(|series| -> Ordering { series.labels.iter().map(AsRef::as_ref).cmp(labels.iter().copied()) })
}
