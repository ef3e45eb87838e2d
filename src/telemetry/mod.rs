//! What tidegate counts about itself: every metric's name, unit and labels in one enum, and the values behind them.
//!
//! *Why one enum*: logs, `/metrics` and the dashboards must mean the same thing by the same name, and a test can
//! check a list. *Bounds*: at most [`SERIES_MAX`] series (a metric with one set of label values is one series), so
//! made-up tenants cannot fill the memory; what is dropped is counted in [`Metric::SeriesDropped`]. *What it leaves
//! out*: how the values are served. That is `exposition`, behind the feature `metrics`.

mod metric;

use std::cmp::Ordering;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering as Memory};

use parking_lot::RwLock;

pub use metric::{Kind, Metric};

/// The most series that are kept. At about 100 bytes each this is a megabyte; a pool of 200 tenants on 3 meters
/// takes some 1,500.
pub const SERIES_MAX: usize = 10_000;

/// One series of a [`snapshot`](Telemetry::snapshot).
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Which metric.
    pub metric: Metric,
    /// Its label values, in the order of [`Metric::labels`].
    pub labels: Vec<String>,
    /// Its value.
    pub value: f64,
}

/// The values. Shared by `Arc`; adding to a series that exists takes a read lock and no allocation.
#[derive(Debug)]
pub struct Telemetry {
    /// By [`Metric::ALL`]'s order; each sorted by label values.
    families: [RwLock<Vec<Series>>; Metric::ALL.len()],
    series: AtomicUsize,
}

#[derive(Debug)]
struct Series {
    labels: Box<[Box<str>]>,
    /// An `f64`'s bits.
    bits: AtomicU64,
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
        let telemetry =
            Self { families: std::array::from_fn(|_| RwLock::new(Vec::new())), series: AtomicUsize::new(0) };
        telemetry.add(Metric::SeriesDropped, &[], 0.0);
        telemetry
    }

    /// Adds `n` to a series, which begins at 0. Ignored when `n` is not finite, or negative on a counter.
    ///
    /// `labels` are the values for [`Metric::labels`], in that order; another number of them is a mistake in the
    /// program: caught in a debug build, dropped and counted in a release build.
    pub fn add(&self, metric: Metric, labels: &[&str], n: f64) {
        if n.is_finite() && (metric.kind() == Kind::Gauge || n >= 0.0) {
            self.change(metric, labels, |value| value + n);
        }
    }

    /// Sets a gauge; raises a counter to `value`, and leaves one that is higher. Ignored when `value` is not finite.
    ///
    /// `labels` as in [`add`](Self::add).
    pub fn set(&self, metric: Metric, labels: &[&str], value: f64) {
        if value.is_finite() {
            match metric.kind() {
                Kind::Gauge => self.change(metric, labels, |_| value),
                Kind::Counter => self.change(metric, labels, |old| old.max(value)),
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
                value: f64::from_bits(series.bits.load(Memory::Relaxed)),
            }));
        }
        samples
    }

    fn change(&self, metric: Metric, labels: &[&str], to: impl Fn(f64) -> f64) {
        debug_assert_eq!(labels.len(), metric.labels().len(), "label values of {}", metric.name());
        let family = &self.families[metric as usize];
        {
            let known = family.read();
            if let Ok(at) = find(&known, labels) {
                return known[at].change(&to);
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
                known[at].change(&to);
            }
            Err(at) => {
                let labels = labels.iter().map(|label| Box::from(*label)).collect();
                known.insert(at, Series { labels, bits: AtomicU64::new(to(0.0).to_bits()) });
            }
        }
    }

    fn reserve_series(&self) -> bool {
        self.series.fetch_update(Memory::Relaxed, Memory::Relaxed, |n| (n < SERIES_MAX).then_some(n + 1)).is_ok()
    }
}

impl Series {
    fn change(&self, to: &impl Fn(f64) -> f64) {
        let next = |bits| Some(to(f64::from_bits(bits)).to_bits());
        // The closure never answers `None`, so this never fails.
        let _ = self.bits.fetch_update(Memory::Relaxed, Memory::Relaxed, next);
    }
}

fn find(known: &[Series], labels: &[&str]) -> Result<usize, usize> {
    known.binary_search_by(|series| -> Ordering { series.labels.iter().map(AsRef::as_ref).cmp(labels.iter().copied()) })
}
