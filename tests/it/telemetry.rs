//! Telemetry: the names are well formed, the text parses, the bound holds.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tidegate::exposition::{TelemetryCollector, text};
use tidegate::telemetry::{
    Kind, Metric, OTHER_TENANTS, SECONDS_BOUNDS, SERIES_MAX, Sample, TENANTS_NAMED_MAX, Telemetry,
};

/// The value of one series, if it exists.
fn value(telemetry: &Telemetry, metric: Metric, labels: &[&str]) -> Option<f64> {
    let is_it = |sample: &Sample| {
        sample.metric == metric && sample.labels.iter().map(String::as_str).eq(labels.iter().copied())
    };
    telemetry.snapshot().into_iter().find(is_it).map(|sample| sample.value.number())
}

/// A telemetry with one series of every metric.
fn one_of_each() -> Telemetry {
    let telemetry = Telemetry::new();
    for metric in Metric::ALL {
        let labels = vec!["a\\b\"c\nd"; metric.labels().len()];
        match metric.kind() {
            Kind::Histogram => telemetry.observe(*metric, &labels, 2.5),
            Kind::Counter | Kind::Gauge => telemetry.add(*metric, &labels, 2.5),
        }
    }
    telemetry
}

#[test]
fn metric_names_are_unique_and_in_the_order_of_all() {
    let names: BTreeSet<_> = Metric::ALL.iter().map(|metric| metric.name()).collect();
    assert_eq!(names.len(), Metric::ALL.len());
    assert!(Metric::ALL.iter().enumerate().all(|(n, metric)| *metric as usize == n));
}

/// The rules of `promtool check metrics`, as far as they apply to counters and gauges.
#[test]
fn metric_names_follow_the_rules_of_promtool() {
    let snake = |text: &str| {
        text.starts_with(|c: char| c.is_ascii_lowercase())
            && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
            && !text.contains("__")
            && !text.ends_with('_')
    };
    for metric in Metric::ALL {
        let name = metric.name();
        assert!(name.starts_with("tidegate_") && snake(name), "{name}: not snake case under our prefix");
        assert_eq!(name.ends_with("_total"), metric.kind() == Kind::Counter, "{name}: _total is for counters");
        let words: Vec<&str> = name.split('_').collect();
        for word in [
            "count",
            "sum",
            "bucket",
            "info",
            "counter",
            "gauge",
            "histogram",
            "ms",
            "milliseconds",
            "minutes",
            "percent",
        ] {
            assert!(!words.contains(&word), "{name}: {word} is a suffix of other types, a type, or no base unit");
        }
        assert!(metric.help().ends_with('.') && metric.help().len() > 10, "{name}: help is one sentence");
        let labels: BTreeSet<_> = metric.labels().iter().collect();
        assert_eq!(labels.len(), metric.labels().len(), "{name}: a label twice");
        assert!(labels.iter().all(|label| snake(label) && !["le", "quantile"].contains(label)), "{name}: {labels:?}");
    }
}

#[test]
fn the_text_parses_and_says_what_was_counted() {
    let text = text(&one_of_each(), Vec::new()).expect("encodes");
    let mut samples = BTreeMap::new();
    let mut types = BTreeMap::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a name and a type");
            assert!(types.insert(name.to_owned(), kind.to_owned()).is_none(), "{name}: TYPE twice");
        } else if !line.starts_with("# HELP ") {
            let (series, value) = line.rsplit_once(' ').expect("a series and a value");
            assert!(
                samples.insert(series.to_owned(), value.parse::<f64>().expect("a number")).is_none(),
                "{series} twice"
            );
        }
    }
    // A histogram is a series for each bound, for the rest, for the sum and for the count.
    let histograms = Metric::ALL.iter().filter(|metric| metric.kind() == Kind::Histogram).count();
    assert_eq!(samples.len(), Metric::ALL.len() + histograms * (SECONDS_BOUNDS.len() + 2));
    assert_eq!(types["tidegate_ticks_total"], "counter");
    assert_eq!(types["tidegate_tick_seconds"], "histogram");
    assert_eq!(samples[r#"tidegate_tick_seconds_bucket{le="1"}"#], 0.0);
    assert_eq!(samples[r#"tidegate_tick_seconds_bucket{le="10"}"#], 1.0);
    assert_eq!(samples[r#"tidegate_tick_seconds_bucket{le="+Inf"}"#], 1.0);
    assert_eq!((samples["tidegate_tick_seconds_sum"], samples["tidegate_tick_seconds_count"]), (2.5, 1.0));
    assert_eq!(samples["tidegate_ticks_total"], 2.5);
    assert_eq!(samples[r#"tidegate_pool_level_units{pool="a\\b\"c\nd",meter="a\\b\"c\nd"}"#], 2.5);
}

#[test]
fn a_registry_takes_the_collector_and_gathers_every_metric() {
    let registry = prometheus::Registry::new();
    let collector = TelemetryCollector::try_new(Arc::new(one_of_each())).expect("well-formed names");
    registry.register(Box::new(collector)).expect("registers");
    assert_eq!(registry.gather().len(), Metric::ALL.len());
}

#[test]
fn the_first_tenants_have_series_of_their_own_and_keep_them() {
    let telemetry = Telemetry::new();
    let name = |n: usize| format!("tenant-{n}");
    for n in 0..TENANTS_NAMED_MAX + 50 {
        let name = name(n);
        let label = telemetry.tenant_label("pool", &name);
        assert_eq!(label, if n < TENANTS_NAMED_MAX { name.as_str() } else { OTHER_TENANTS });
    }
    assert_eq!(telemetry.tenant_label("pool", &name(0)), name(0));
    assert_eq!(telemetry.tenant_label("another", &name(0)), OTHER_TENANTS, "each is counted in each pool");
    assert_eq!(telemetry.tenant_label("pool", OTHER_TENANTS), OTHER_TENANTS);
}

#[test]
fn a_span_is_counted_in_the_first_bucket_that_holds_it() {
    let telemetry = Telemetry::new();
    for seconds in [0.0, 0.001, 0.0011, 29.0, 31.0, f64::NAN, -1.0, f64::INFINITY] {
        telemetry.observe(Metric::WaitSeconds, &["p"], seconds);
    }
    telemetry.set(Metric::WaitSeconds, &["p"], 7.0);
    telemetry.add(Metric::WaitSeconds, &["p"], 7.0);
    telemetry.observe(Metric::Ticks, &[], 1.0);
    let text = text(&telemetry, Vec::new()).expect("encodes");
    let bucket = |le: &str, n: u64| format!("tidegate_wait_seconds_bucket{{pool=\"p\",le=\"{le}\"}} {n}\n");
    for (le, n) in [("0.001", 2), ("0.0025", 3), ("10", 3), ("30", 4), ("+Inf", 5)] {
        assert!(text.contains(&bucket(le, n)), "{le}: {text}");
    }
    assert!(text.contains("tidegate_wait_seconds_count{pool=\"p\"} 5\n") && !text.contains("tidegate_ticks_total"));
}

#[test]
fn what_is_measured_stands_among_what_is_counted_in_order() {
    let telemetry = Telemetry::new();
    telemetry.set(Metric::Mode, &["b"], 1.0);
    let measured = vec![Sample::number(Metric::Mode, &["a"], 2.0), Sample::number(Metric::Ticks, &[], 3.0)];
    let text = text(&telemetry, measured).expect("encodes");
    assert_eq!(text.matches("# TYPE tidegate_mode gauge").count(), 1);
    assert!(text.contains("tidegate_mode{pool=\"a\"} 2\ntidegate_mode{pool=\"b\"} 1\n"), "{text}");
}

#[test]
fn a_new_telemetry_says_that_nothing_was_dropped() {
    let only = Sample::number(Metric::SeriesDropped, &[], 0.0);
    assert_eq!(Telemetry::new().snapshot(), [only]);
}

#[test]
fn at_most_10_000_series_are_kept_and_the_rest_is_counted() {
    let telemetry = Telemetry::new();
    // One series is the count of dropped ones.
    for n in 0..SERIES_MAX + 6 {
        telemetry.add(Metric::Admitted, &["pool", &format!("tenant-{n}")], 1.0);
    }
    assert_eq!(telemetry.snapshot().len(), SERIES_MAX);
    assert_eq!(value(&telemetry, Metric::SeriesDropped, &[]), Some(7.0));
    telemetry.add(Metric::Admitted, &["pool", "tenant-0"], 1.0);
    assert_eq!(value(&telemetry, Metric::Admitted, &["pool", "tenant-0"]), Some(2.0), "known series still count");
}

#[test]
fn a_counter_never_goes_down_and_nothing_becomes_nan() {
    let telemetry = Telemetry::new();
    telemetry.add(Metric::Ticks, &[], 3.0);
    telemetry.add(Metric::Ticks, &[], -1.0);
    telemetry.add(Metric::Ticks, &[], f64::NAN);
    telemetry.set(Metric::Ticks, &[], 2.0);
    assert_eq!(value(&telemetry, Metric::Ticks, &[]), Some(3.0));
    telemetry.set(Metric::Ticks, &[], 9.0);
    assert_eq!(value(&telemetry, Metric::Ticks, &[]), Some(9.0));
    telemetry.set(Metric::Waiting, &["p"], 5.0);
    telemetry.set(Metric::Waiting, &["p"], f64::INFINITY);
    telemetry.add(Metric::Waiting, &["p"], -2.0);
    assert_eq!(value(&telemetry, Metric::Waiting, &["p"]), Some(3.0));
}

#[test]
fn series_with_the_same_letters_in_other_places_stay_apart() {
    let telemetry = Telemetry::new();
    telemetry.add(Metric::Admitted, &["ab", "c"], 1.0);
    telemetry.add(Metric::Admitted, &["a", "bc"], 2.0);
    assert_eq!(value(&telemetry, Metric::Admitted, &["ab", "c"]), Some(1.0));
    assert_eq!(value(&telemetry, Metric::Admitted, &["a", "bc"]), Some(2.0));
}

#[test]
fn no_count_is_lost_between_threads() {
    let telemetry = Telemetry::new();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..1_000).for_each(|n| telemetry.add(Metric::Swaps, &[["a", "b"][n % 2]], 1.0)));
        }
    });
    assert_eq!(value(&telemetry, Metric::Swaps, &["a"]), Some(2_000.0));
    assert_eq!(value(&telemetry, Metric::Swaps, &["b"]), Some(2_000.0));
    assert_eq!(telemetry.snapshot().len(), 3);
}
