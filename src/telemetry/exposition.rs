//! [`Telemetry`] for `prometheus`: as a collector in the host's own registry, and as text for `/metrics`.

use std::sync::Arc;

use prometheus::core::{Collector, Desc};
use prometheus::proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric as Row, MetricFamily, MetricType};
use prometheus::{Error, TextEncoder};

use crate::telemetry::{Kind, Metric, SECONDS_BOUNDS, Sample, Telemetry, Value};

/// What a service registers to see tidegate's metrics among its own.
#[derive(Debug)]
pub struct TelemetryCollector {
    telemetry: Arc<Telemetry>,
    descs: Vec<Desc>,
}

impl TelemetryCollector {
    /// A collector of `telemetry`.
    ///
    /// # Errors
    /// When `prometheus` does not accept a metric's name; the tests hold that it accepts them all.
    pub fn try_new(telemetry: Arc<Telemetry>) -> Result<Self, Error> {
        let desc = |metric: &Metric| {
            let labels = metric.labels().iter().map(|label| (*label).to_owned()).collect();
            Desc::new(metric.name().to_owned(), metric.help().to_owned(), labels, std::collections::HashMap::new())
        };
        Ok(Self { telemetry, descs: Metric::ALL.iter().map(desc).collect::<Result<_, _>>()? })
    }
}

impl Collector for TelemetryCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.descs.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        families(&self.telemetry.snapshot())
    }
}

/// The text that `/metrics` answers, in Prometheus' text format: what was counted, and what is measured as it is asked for.
///
/// # Errors
/// When `prometheus` cannot encode a family; the tests hold that it can.
pub fn text(telemetry: &Telemetry, measured: Vec<Sample>) -> Result<String, Error> {
    let mut samples = telemetry.snapshot();
    samples.extend(measured);
    samples.sort_by(|a, b| (a.metric, &a.labels).cmp(&(b.metric, &b.labels)));
    // A process that leads and is a member knows some of its pools in both ways.
    samples.dedup_by(|a, b| (a.metric, &a.labels) == (b.metric, &b.labels));
    TextEncoder::new().encode_to_string(&families(&samples))
}

/// One family per metric that has series, in [`Metric::ALL`]'s order.
fn families(samples: &[Sample]) -> Vec<MetricFamily> {
    samples.chunk_by(|a, b| a.metric == b.metric).filter_map(family).collect()
}

fn family(samples: &[Sample]) -> Option<MetricFamily> {
    let metric = samples.first()?.metric;
    let mut family = MetricFamily::default();
    family.set_name(metric.name().to_owned());
    family.set_help(metric.help().to_owned());
    family.set_field_type(match metric.kind() {
        Kind::Counter => MetricType::COUNTER,
        Kind::Gauge => MetricType::GAUGE,
        Kind::Histogram => MetricType::HISTOGRAM,
    });
    family.set_metric(samples.iter().map(row).collect());
    Some(family)
}

fn row(sample: &Sample) -> Row {
    let pair = |(name, value): (&&str, &String)| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).to_owned());
        pair.set_value(value.clone());
        pair
    };
    let mut row = Row::from_label(sample.metric.labels().iter().zip(&sample.labels).map(pair).collect());
    match (&sample.value, sample.metric.kind()) {
        (Value::Number(value), Kind::Counter) => {
            let mut counter = Counter::default();
            counter.set_value(*value);
            row.set_counter(counter);
        }
        (Value::Number(value), _) => {
            let mut gauge = Gauge::default();
            gauge.set_value(*value);
            row.set_gauge(gauge);
        }
        (Value::Spans { counts, sum }, _) => row.set_histogram(histogram(counts, *sum)),
    }
    row
}

/// With the counts added up, as the format wants them.
fn histogram(counts: &[u64], sum: f64) -> Histogram {
    let mut histogram = Histogram::default();
    let mut below = 0;
    let bucket = |(bound, count): (&f64, &u64)| {
        below += count;
        let mut bucket = Bucket::default();
        bucket.set_cumulative_count(below);
        bucket.set_upper_bound(*bound);
        bucket
    };
    histogram.set_bucket(SECONDS_BOUNDS.iter().zip(counts).map(bucket).collect());
    histogram.set_sample_count(counts.iter().sum());
    histogram.set_sample_sum(sum);
    histogram
}
