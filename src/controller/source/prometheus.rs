//! Asks Prometheus: a task for each query, which no tick waits for.
//!
//! *Time stamps.* An instant query's answer bears the time of the question, and Prometheus looks back for five minutes: so it is asked
//! for `timestamp(query)` too, which of plain series is the time of the sample; of an expression it is that of the question, and newer
//! versions look no further back than `lookback_delta`. Whoever answers from a cache tells an older time, which counts: its age is
//! that against the answer's own `Date`, so that no clocks of two machines are compared.
//! *Bounds.* An answer of more than 4 MiB is none.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, DATE};
use http::{HeaderValue, Request, Response};
use http_body_util::Full;
use jiff::fmt::rfc2822;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{info, warn};

use super::answer::{AnswerError, read, stamps};
use super::board::{Board, News};
use super::{QueryParams, Told};
use crate::clock::Clock;
use crate::controller::desk::Desk;
use crate::https::{Https, Trust, Unanswered};
use crate::store::pem::pem;
use crate::telemetry::{Metric, Telemetry};

/// Larger answers are not read to their end.
const ANSWER_BYTES_MAX: usize = 4 * 1024 * 1024;
/// A secret is a line.
const SECRET_BYTES_MAX: u64 = 16 * 1024;
/// Server and sample may be a second apart by the rounding of the `Date` header.
const DATE_GRAIN_S: f64 = 1.0;

/// Where Prometheus is, and what it is asked.
#[derive(Debug, Clone, PartialEq)]
pub struct PrometheusParams {
    /// Its base URL, to which `/api/v1/query` is added.
    pub url: String,
    /// Who the controller is to it.
    pub sign_in: Option<SignIn>,
    /// For an `https://` URL.
    pub tls: Option<PrometheusTls>,
    /// By name, at least one.
    pub queries: BTreeMap<String, QueryParams>,
}

/// Who the controller is to Prometheus. Files are read at the start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SignIn {
    /// A user and the file with the password.
    Basic(String, PathBuf),
    /// The file with a bearer token.
    Bearer(PathBuf),
}

/// PEM files for TLS with Prometheus.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrometheusTls {
    /// The authorities that its certificate is to be signed by.
    pub authorities: PathBuf,
    /// A certificate of one's own, and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// Why a question was not answered.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody answered, or not in time.
    #[error("{0}")]
    Unreachable(String),
    /// Too slow.
    #[error("no answer within {0:?}")]
    Slow(Duration),
    /// Not with an answer.
    #[error("HTTP {0}")]
    Status(u16),
    /// Too long.
    #[error("an answer of more than {ANSWER_BYTES_MAX} bytes")]
    Long,
    /// Not one that can be used.
    #[error(transparent)]
    Answer(#[from] AnswerError),
}

impl AskError {
    /// Its name in metrics.
    #[must_use]
    pub const fn why(&self) -> &'static str {
        match self {
            Self::Unreachable(_) => "unreachable",
            Self::Slow(_) => "timeout",
            Self::Status(_) => "status",
            Self::Long => "too_long",
            Self::Answer(AnswerError::Refused { .. }) => "refused",
            Self::Answer(AnswerError::Malformed(_)) => "malformed",
            Self::Answer(AnswerError::Shape(_)) => "shape",
        }
    }
}

/// A Prometheus to ask.
#[derive(Clone)]
pub struct Prometheus {
    http: Https,
    url: String,
    authorization: Option<HeaderValue>,
}

impl fmt::Debug for Prometheus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Prometheus").field("url", &self.url).finish_non_exhaustive()
    }
}

impl Prometheus {
    /// Reads the files; asks nothing yet.
    ///
    /// # Errors
    /// Which file is no good and why, in one line.
    pub fn new(params: &PrometheusParams) -> Result<Self, String> {
        let trust = params.tls.as_ref().map(trust).transpose()?;
        let authorization = params.sign_in.as_ref().map(authorization).transpose()?;
        let url = format!("{}/api/v1/query", params.url.trim_end_matches('/'));
        Ok(Self { http: Https::new(trust.as_ref()), url, authorization })
    }

    /// Asks once. With the answer comes how long ago it was true when it was given.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn ask(&self, params: &QueryParams) -> Result<(Told, Duration), AskError> {
        let asked = tokio::time::timeout(params.timeout, self.ask_unhurried(params)).await;
        asked.map_err(|_| AskError::Slow(params.timeout))?
    }

    async fn ask_unhurried(&self, params: &QueryParams) -> Result<(Told, Duration), AskError> {
        let when = format!("timestamp({})", params.query);
        let (answer, dates) = tokio::join!(self.post(&params.query, params), self.post(&when, params));
        let answer = answer?;
        let stamps = dates.map(|dates| stamps(dates.body())).unwrap_or_default();
        let told = match read(answer.body(), &stamps, params) {
            // Prometheus says why in the body of a 400 or 422; a proxy has words of its own.
            Err(AnswerError::Malformed(_)) if !answer.status().is_success() => {
                return Err(AskError::Status(answer.status().as_u16()));
            }
            read => read?,
        };
        let date = answer.headers().get(DATE).and_then(|date| date.to_str().ok()).and_then(unix_s);
        let cached_s = date.map_or(0.0, |date| (date - told.stamp_s - DATE_GRAIN_S).max(0.0));
        let age_s = if told.fed.is_empty() { 0.0 } else { cached_s + told.age_s };
        Ok((told, Duration::try_from_secs_f64(age_s).unwrap_or(Duration::MAX)))
    }

    async fn post(&self, query: &str, params: &QueryParams) -> Result<Response<Bytes>, AskError> {
        let form = [
            ("query", query.to_owned()),
            ("timeout", format!("{}ms", params.timeout.as_millis())),
            ("lookback_delta", format!("{}ms", params.fresh_for.as_millis())),
        ];
        let pair = |(name, value): &(&str, String)| format!("{name}={}", utf8_percent_encode(value, NON_ALPHANUMERIC));
        let form = form.iter().map(pair).collect::<Vec<_>>().join("&");
        let request = Request::post(&self.url).header(CONTENT_TYPE, "application/x-www-form-urlencoded");
        let mut request =
            request.body(Full::new(Bytes::from(form))).map_err(|error| AskError::Unreachable(error.to_string()))?;
        if let Some(authorization) = &self.authorization {
            request.headers_mut().insert(AUTHORIZATION, authorization.clone());
        }
        self.http.ask(request, ANSWER_BYTES_MAX).await.map_err(|unanswered| match unanswered {
            Unanswered::Failed(why) => AskError::Unreachable(why),
            Unanswered::Long => AskError::Long,
        })
    }
}

/// Asks all queries, each at its own pace, until dropped.
pub(in crate::controller) async fn watch(
    prometheus: Prometheus,
    queries: BTreeMap<String, QueryParams>,
    desk: Arc<Desk>,
    clock: Arc<dyn Clock>,
    telemetry: Arc<Telemetry>,
) {
    let mut tasks = JoinSet::new();
    for (name, params) in queries {
        let (prometheus, desk) = (prometheus.clone(), desk.clone());
        let (clock, telemetry) = (clock.clone(), telemetry.clone());
        tasks.spawn(async move {
            let mut due = interval(params.every);
            due.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                due.tick().await;
                ask_once(&name, &params, &prometheus, &desk.board, &*clock, &telemetry).await;
            }
        });
    }
    while tasks.join_next().await.is_some() {}
}

async fn ask_once(
    name: &str,
    params: &QueryParams,
    prometheus: &Prometheus,
    board: &Board,
    clock: &dyn Clock,
    telemetry: &Telemetry,
) {
    let asked_at = clock.now();
    let asked = prometheus.ask(params).await;
    telemetry.observe(Metric::SignalSeconds, &[name], clock.now().seconds_since(asked_at));
    match asked {
        Ok((told, age)) => {
            for misfit in &told.misfits {
                telemetry.add(Metric::SignalFailures, &[name, misfit.why], 1.0);
            }
            match board.take(name, asked_at.before(age), told) {
                News::None => {}
                News::Back => info!(query = name, "the signal is back"),
                News::Worse(why) => warn!(query = name, "a signal tells nothing, what it taught holds: {why}"),
            }
        }
        Err(error) => {
            telemetry.add(Metric::SignalFailures, &[name, error.why()], 1.0);
            if board.fail(name, error.to_string()) {
                warn!(query = name, "a signal fails, what it taught holds until it is back: {error}");
            }
        }
    }
}

fn unix_s(date: &str) -> Option<f64> {
    #[allow(clippy::cast_precision_loss, reason = "seconds since 1970")]
    rfc2822::DateTimeParser::new().parse_timestamp(date).ok().map(|at| at.as_second() as f64)
}

fn authorization(sign_in: &SignIn) -> Result<HeaderValue, String> {
    let (file, value) = match sign_in {
        SignIn::Basic(user, file) => {
            (file, format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{}", secret(file)?))))
        }
        SignIn::Bearer(file) => (file, format!("Bearer {}", secret(file)?)),
    };
    let mut value = HeaderValue::try_from(value)
        .map_err(|_| format!("{}: found what no header can hold, expected one line of text", file.display()))?;
    // So that no library shows it either.
    value.set_sensitive(true);
    Ok(value)
}

fn secret(file: &Path) -> Result<String, String> {
    use std::io::Read;
    let failed = |error: std::io::Error| format!("{}: {error}", file.display());
    let mut text = String::new();
    std::fs::File::open(file).map_err(failed)?.take(SECRET_BYTES_MAX).read_to_string(&mut text).map_err(failed)?;
    let text = text.trim_end_matches(['\r', '\n']);
    if text.is_empty() { Err(format!("{}: it is empty", file.display())) } else { Ok(text.to_owned()) }
}

fn trust(tls: &PrometheusTls) -> Result<Trust, String> {
    let read = |file: &Path| pem(file).map_err(|error| error.to_string());
    let identity = match &tls.identity {
        None => None,
        Some((certificate, key)) => Some((read(certificate)?, read(key)?)),
    };
    Trust::new(&read(&tls.authorities)?, identity.as_ref().map(|(certificate, key)| (&certificate[..], &key[..])))
}
