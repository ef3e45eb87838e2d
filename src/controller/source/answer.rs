//! Prometheus' answer to an instant query, and which pool and tenant each of its series feeds.
//!
//! Source: Prometheus, HTTP API, "Expression queries" and "Expression query result formats".

use std::collections::BTreeMap;
use std::str::FromStr;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::{Named, QueryParams};
use crate::controller::signal::Role;
use crate::quota::{Grantee, PoolId};

/// So many series are taken of an answer.
const SERIES_TAKEN_MAX: usize = 10_000;

/// What an answer told.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Told {
    /// The newest time stamp in it, in seconds of Prometheus' clock.
    pub stamp_s: f64,
    /// How much older than that the newest sample behind a series is, in seconds, as far as that is told.
    pub age_s: f64,
    /// What its series feed.
    pub fed: Vec<Fed>,
    /// Its other series.
    pub misfits: Vec<Misfit>,
}

/// A series that feeds something.
#[derive(Debug, Clone, PartialEq)]
pub struct Fed {
    /// Whose.
    pub pool: PoolId,
    /// Whose queue; `None` where the role asks for none.
    pub tenant: Option<Grantee>,
    /// What.
    pub value: f64,
}

/// A series that feeds nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Misfit {
    /// Its labels, as PromQL writes them.
    pub series: String,
    /// Why, as a metric's label has it.
    pub why: &'static str,
}

impl Misfit {
    /// The same in words.
    #[must_use]
    pub fn words(&self, params: &QueryParams) -> String {
        match self.why {
            "no_label" => {
                let pool = if let Named::Label(name) = &params.pool { Some(name) } else { None };
                let tenant = if let Named::Label(name) = &params.tenant { Some(name) } else { None };
                let wanted: Vec<&str> = pool.into_iter().chain(tenant).map(String::as_str).collect();
                format!("it lacks a label, expected {}", wanted.join(" and "))
            }
            "pool_name" => "its label is no pool's id".to_owned(),
            "tenant_name" => "its label is no tenant's name".to_owned(),
            "not_finite" => "its value is no number".to_owned(),
            "negative" => "its value is below zero".to_owned(),
            "zero" => "0 is no capacity, what was told last holds".to_owned(),
            "histogram" => "it is a native histogram".to_owned(),
            "old" => format!("its sample is older than {} s", params.fresh_for.as_secs()),
            _ => format!("there are more than {SERIES_TAKEN_MAX}"),
        }
    }
}

impl Told {
    /// Why it feeds nothing, where that is no good sign: of queues it is how none looks.
    #[must_use]
    pub fn complaint(&self, params: &QueryParams) -> Option<String> {
        match (self.fed.is_empty(), self.misfits.first()) {
            (false, _) => None,
            (true, Some(first)) => {
                let more = if self.misfits.len() > 1 {
                    format!(" and {} more", self.misfits.len() - 1)
                } else {
                    String::new()
                };
                Some(format!("not taken: {}{more}: {}", first.series, first.words(params)))
            }
            (true, None) if params.role == Role::Demand => None,
            (true, None) => Some("the answer is empty: no series now".to_owned()),
        }
    }
}

/// Why a body is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AnswerError {
    /// It is none of Prometheus'.
    #[error("not an answer of Prometheus: {0}")]
    Malformed(String),
    /// Prometheus says why.
    #[error("{kind}: {text}")]
    Refused {
        /// Its name for it, such as `bad_data`.
        kind: String,
        /// Its words.
        text: String,
    },
    /// There is nothing to read off it now.
    #[error("the result is a {0}, expected an instant vector or a scalar")]
    Shape(&'static str),
}

#[derive(Deserialize)]
#[serde(tag = "status", rename_all = "lowercase")]
enum Body {
    Success {
        data: Data,
    },
    Error {
        #[serde(default, rename = "errorType")]
        kind: String,
        #[serde(default)]
        error: String,
    },
}

#[derive(Deserialize)]
#[serde(tag = "resultType", content = "result", rename_all = "lowercase")]
enum Data {
    Vector(Vec<Series>),
    Scalar(Value),
    Matrix(IgnoredAny),
    String(IgnoredAny),
}

/// A time stamp, and the number as a text.
type Value = (f64, String);

#[derive(Deserialize)]
struct Series {
    metric: BTreeMap<String, String>,
    /// Absent of a native histogram.
    value: Option<Value>,
}

/// When the samples behind an answer's series were taken, by the series' labels.
pub(super) type Stamps = BTreeMap<BTreeMap<String, String>, f64>;

/// Reads the answer to `timestamp(query)`. Nothing where there is none, as of a scalar.
pub(super) fn stamps(body: &[u8]) -> Stamps {
    let stamp = |series: Series| {
        let (_, text) = series.value?;
        Some((unnamed(series.metric), text.parse().ok().filter(|stamp: &f64| stamp.is_finite())?))
    };
    vector(body).unwrap_or_default().into_iter().take(SERIES_TAKEN_MAX).filter_map(stamp).collect()
}

/// Reads the answer to a query. A series whose sample is older than what counts as fresh is not taken.
///
/// # Errors
/// [`AnswerError`].
pub(super) fn read(body: &[u8], stamps: &Stamps, params: &QueryParams) -> Result<Told, AnswerError> {
    let mut told = Told { age_s: f64::INFINITY, ..Told::default() };
    for (nth, series) in vector(body)?.into_iter().enumerate() {
        let told_s = series.value.as_ref().map_or(0.0, |(at_s, _)| *at_s);
        told.stamp_s = told.stamp_s.max(told_s);
        let shown = shown(&series.metric);
        let fed = if nth < SERIES_TAKEN_MAX { feed(&series, params) } else { Err("too_many") };
        let age_s = stamps.get(&unnamed(series.metric)).map_or(0.0, |taken_s| (told_s - taken_s).max(0.0));
        match fed {
            Ok(_) if age_s > params.fresh_for.as_secs_f64() => told.misfits.push(Misfit { series: shown, why: "old" }),
            Ok(fed) => {
                told.fed.push(fed);
                told.age_s = told.age_s.min(age_s);
            }
            Err(why) => told.misfits.push(Misfit { series: shown, why }),
        }
    }
    told.age_s = if told.fed.is_empty() { 0.0 } else { told.age_s };
    Ok(told)
}

fn vector(body: &[u8]) -> Result<Vec<Series>, AnswerError> {
    let body: Body = serde_json::from_slice(body).map_err(|error| AnswerError::Malformed(line(&error.to_string())))?;
    match body {
        Body::Error { kind, error } => Err(AnswerError::Refused { kind: line(&kind), text: line(&error) }),
        Body::Success { data: Data::Vector(series) } => Ok(series),
        Body::Success { data: Data::Scalar(value) } => Ok(vec![Series { metric: BTreeMap::new(), value: Some(value) }]),
        Body::Success { data: Data::Matrix(_) } => Err(AnswerError::Shape("range vector, as [5m] at its end makes it")),
        Body::Success { data: Data::String(_) } => Err(AnswerError::Shape("string")),
    }
}

/// So much of what Prometheus says is said on.
const SAID_CHARS_MAX: usize = 300;

/// Anyone's text as a part of a line.
fn line(text: &str) -> String {
    text.chars().take(SAID_CHARS_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Functions take a series' name away.
fn unnamed(mut labels: BTreeMap<String, String>) -> BTreeMap<String, String> {
    labels.remove(NAME);
    labels
}

fn feed(series: &Series, params: &QueryParams) -> Result<Fed, &'static str> {
    let (_, text) = series.value.as_ref().ok_or("histogram")?;
    let value: f64 = text.parse().map_err(|_| "not_finite")?;
    if !value.is_finite() {
        return Err("not_finite");
    }
    if value < 0.0 {
        return Err("negative");
    }
    // As likely a count of what could not be scraped; who means it blocks the pool.
    if value == 0.0 && params.role == Role::Capacity {
        return Err("zero");
    }
    let pool = named(&params.pool, &series.metric, "pool_name")?;
    let tenant = match params.role {
        Role::Demand => Some(named_tenant(&params.tenant, &series.metric)?),
        Role::Congestion | Role::Capacity => None,
    };
    Ok(Fed { pool, tenant, value })
}

fn named<T: Clone + FromStr>(
    named: &Named<T>,
    labels: &BTreeMap<String, String>,
    misnamed: &'static str,
) -> Result<T, &'static str> {
    match named {
        Named::Fixed(one) => Ok(one.clone()),
        Named::Label(label) => labels.get(label).ok_or("no_label")?.parse().map_err(|_| misnamed),
    }
}

/// A label has the name as it is, so that no tenant is `@default`.
fn named_tenant(named: &Named<Grantee>, labels: &BTreeMap<String, String>) -> Result<Grantee, &'static str> {
    match named {
        Named::Fixed(one) => Ok(one.clone()),
        Named::Label(label) => {
            let name = labels.get(label).ok_or("no_label")?;
            name.parse().map(Grantee::Tenant).map_err(|_| "tenant_name")
        }
    }
}

/// The label that holds a series' name.
const NAME: &str = "__name__";
/// So many labels of a series are shown.
const LABELS_SHOWN: usize = 8;

fn shown(labels: &BTreeMap<String, String>) -> String {
    let name = labels.get(NAME).map_or("", String::as_str);
    let others = labels.iter().filter(|(label, _)| *label != NAME).take(LABELS_SHOWN);
    let others: Vec<String> = others.map(|(label, value)| format!("{label}={value:?}")).collect();
    format!("{name}{{{}}}", others.join(","))
}
