//! What an error's body tells: which limit refused, for how long, and whether it was a limit at all.
//!
//! Providers copy each other's bodies more than their headers: `{"error":{"type","code","message"}}` with OpenAI's words is
//! written by a dozen. So one reader knows all the words. Words come from a table; numbers and waits from the message.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;

use super::class::exception_name;
use super::duration::parse_go_duration;
use super::head::Head;
use super::lines::Lines;
use super::reading::{self, Now};
use super::semantics::Semantics;
use super::table::Row;
use super::value::{leading_number, told_wait};
use super::{Class, Observation, ReceivedAt, Seen};
use crate::clock::UnixMillis;
use crate::observation::{MeterReading, ThrottleKind};
use crate::quota::{Meter, Unit, Window};

/// What a word means, wherever it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meaning {
    /// No credit, or a budget of the account's own is spent: more time does not lift it.
    Account,
    /// The provider has too much to do.
    Overloaded,
    /// A limit refused; which one is not said.
    Throttled,
    /// Calls at a time.
    Concurrency,
    /// The request alone is more than the limit.
    TooLarge,
    /// The caller's own making.
    Caller,
}

/// Of `type`, `code`, `status` and `param`, word for word.
const NAMES: [(&str, Meaning); 18] = [
    ("insufficient_quota", Meaning::Account),
    ("credit_balance_exhausted", Meaning::Account),
    ("organization_spend_limit_exceeded", Meaning::Account),
    ("project_spend_limit_exceeded", Meaning::Account),
    ("organization_usage_limit_exceeded", Meaning::Account),
    ("billing_hard_limit_reached", Meaning::Account),
    ("billing_not_active", Meaning::Account),
    ("ServiceQuotaExceededException", Meaning::Account),
    // Traffic rose too fast, though below the limits: every meter is meant.
    ("slow_down", Meaning::Throttled),
    ("ThrottlingException", Meaning::Throttled),
    ("overloaded", Meaning::Overloaded),
    ("overloaded_error", Meaning::Overloaded),
    ("capacity_exceeded", Meaning::Overloaded),
    ("capacity_exhausted", Meaning::Overloaded),
    ("temporarily_unavailable", Meaning::Overloaded),
    ("queue_exceeded", Meaning::Overloaded),
    ("ModelNotReadyException", Meaning::Overloaded),
    ("UNAVAILABLE", Meaning::Overloaded),
];

/// Whether the `type`, `code` or `status` of an error in the middle of an answer says that there is no room for the rest.
pub(super) fn breaks_off(name: &str) -> bool {
    // Of a refusal that comes at once, these say no more than its status does.
    const BESIDE: [&str; 2] = ["RESOURCE_EXHAUSTED", "429"];
    let means = |meaning: &Meaning| matches!(meaning, Meaning::Overloaded | Meaning::Throttled);
    BESIDE.contains(&name) || NAMES.iter().any(|(known, meaning)| *known == name && means(meaning))
}

/// Of messages, anywhere in them.
const PHRASES: [(&str, Meaning); 11] = [
    ("Request too large", Meaning::TooLarge),
    (": Limit 0,", Meaning::TooLarge),
    ("getting throttled", Meaning::Throttled),
    ("experiencing high demand", Meaning::Overloaded),
    ("odel is overloaded", Meaning::Overloaded),
    ("odel is at capacity", Meaning::Overloaded),
    ("queue is full", Meaning::Overloaded),
    ("maximum queue size", Meaning::Overloaded),
    ("oncurrent requests", Meaning::Concurrency),
    ("oncurrency limit", Meaning::Concurrency),
    // Fine-tuning jobs: "maximum of 1 active requests".
    ("active requests", Meaning::Caller),
];

/// Abbreviations of meters.
const ABBREVIATIONS: [(&str, Unit, Window); 12] = [
    ("(ITPM)", Unit::InputTokens, Window::Minute),
    ("(OTPM)", Unit::OutputTokens, Window::Minute),
    ("(RPM)", Unit::Requests, Window::Minute),
    ("(TPM)", Unit::Tokens, Window::Minute),
    ("(RPD)", Unit::Requests, Window::Day),
    ("(TPD)", Unit::Tokens, Window::Day),
    ("(RPS)", Unit::Requests, Window::Second),
    ("(QPS)", Unit::Requests, Window::Second),
    ("(QPH)", Unit::Requests, Window::Hour),
    ("limit_rpm/", Unit::Requests, Window::Minute),
    // Databricks: "Exceeded workspace QPS rate limit".
    (" QPS rate limit", Unit::Requests, Window::Second),
    (" QPH rate limit", Unit::Requests, Window::Hour),
];

/// Words that name a window. All in lower case.
const WINDOWS: [(&str, Window); 13] = [
    ("per day", Window::Day),
    ("per-day", Window::Day),
    ("/ day", Window::Day),
    ("per min", Window::Minute),
    ("per-min", Window::Minute),
    ("/ min", Window::Minute),
    ("/min", Window::Minute),
    ("per second", Window::Second),
    ("/ second", Window::Second),
    ("per hour", Window::Hour),
    ("/ hour", Window::Hour),
    ("per month", Window::Month),
    ("/ month", Window::Month),
];

/// Words that name a unit where no window is named. All in lower case.
const UNITS: [(&str, Unit); 4] = [
    ("token rate limit", Unit::Tokens),
    ("tokens rate limit", Unit::Tokens),
    ("call rate limit", Unit::Requests),
    ("requests rate limit", Unit::Requests),
];

/// What begins the names of limits on what none of our meters counts: "on input-images per min".
const OTHERS: [&str; 5] = ["input-images", "images", "audio", "ocr", "input-characters"];

/// A body, as far as it tells anything.
struct Told {
    root: Value,
    kind: String,
    code: String,
    status: String,
    param: String,
    message: String,
}

impl Told {
    fn parse(body: &[u8]) -> Self {
        let parsed = serde_json::from_slice::<Value>(body);
        // Streaming endpoints of Google's put their one object in an array.
        let root = match parsed {
            Ok(Value::Array(mut items)) if !items.is_empty() => items.swap_remove(0),
            Ok(value) => value,
            Err(_) => Value::String(std::str::from_utf8(body).unwrap_or_default().to_owned()),
        };
        let text = |paths: &[&str]| {
            let found = paths.iter().find_map(|path| match root.pointer(path)? {
                Value::String(text) => Some(text.clone()),
                Value::Number(number) => Some(number.to_string()),
                _ => None,
            });
            found.unwrap_or_default()
        };
        Self {
            kind: text(&["/error/type", "/error_type", "/__type", "/type"]),
            code: text(&["/error/code", "/code"]),
            status: text(&["/error/status", "/error_code"]),
            param: text(&["/error/param", "/param"]),
            message: text(&["/error/message", "/error", "/message", "/detail", "/title", ""]),
            root,
        }
    }

    fn meaning(&self) -> Option<Meaning> {
        let exception = exception_name(&self.kind);
        let words = [exception, &self.code, &self.status, &self.param];
        let named = NAMES.iter().find(|(name, _)| words.contains(name));
        let phrase = || PHRASES.iter().find(|(phrase, _)| self.message.contains(phrase));
        let told = named.or_else(phrase).map(|(_, meaning)| *meaning);
        told.or_else(|| self.more_than_the_limit().then_some(Meaning::TooLarge))
    }

    /// "Limit 7000, Used 0, Requested ~12903".
    fn more_than_the_limit(&self) -> bool {
        let after = |word: &str| {
            let (_, rest) = self.message.split_once(word)?;
            leading_number(rest.trim_start_matches('~')).map(|(n, _)| n)
        };
        matches!((after("Limit "), after("Requested ")), (Some(limit), Some(requested)) if requested > limit)
    }

    /// The unit that refused and its window, as far as each is said.
    fn unit(&self) -> Option<(Unit, Option<Window>)> {
        if self.of_others() {
            return None;
        }
        let short = ABBREVIATIONS.iter().find(|(short, ..)| self.message.contains(short));
        let short = short.map(|(_, unit, window)| (*unit, Some(*window)));
        let (sentence, _) = self.message.split_once(". ").unwrap_or((&self.message, ""));
        // After the limit's name stand its numbers: "Limit 5, Used 5, Requested 1" is not about requests.
        let (sentence, _) = sentence.split_once(": Limit ").unwrap_or((sentence, ""));
        let sentence = sentence.to_ascii_lowercase();
        let window = WINDOWS.iter().find(|(words, _)| sentence.contains(words)).map(|(_, window)| *window);
        let by_kind = match self.kind.as_str() {
            "requests" | "dynamic_request_limited" => Some(Unit::Requests),
            "dynamic_token_limited" => Some(Unit::Tokens),
            kind if kind.contains("tokens") => Some(Unit::Tokens),
            _ => None,
        };
        // Under the type `tokens` stand input and output tokens too.
        let agrees = |kind: Unit, unit: Unit| (kind == Unit::Requests) == (unit == Unit::Requests);
        let short = short.filter(|(unit, _)| by_kind.is_none_or(|kind| agrees(kind, *unit)));
        let by_words = || UNITS.iter().find(|(words, _)| sentence.contains(words)).map(|(_, unit)| *unit);
        let by_window = || match () {
            () if window.is_none() => None,
            () if sentence.contains("input token") => Some(Unit::InputTokens),
            () if sentence.contains("output token") => Some(Unit::OutputTokens),
            () if sentence.contains("token") => Some(Unit::Tokens),
            () if ["request", "call", "models"].iter().any(|word| sentence.contains(word)) => Some(Unit::Requests),
            () => None,
        };
        short.or_else(|| Some((by_kind.or_else(by_words).or_else(by_window)?, window)))
    }

    /// Whether the limit is of what none of our meters counts.
    fn of_others(&self) -> bool {
        OTHERS.iter().any(|word| self.kind.contains(word) || self.message.contains(&format!(" on {word}")))
    }

    /// The wait, where one is told.
    fn wait(&self) -> Option<Duration> {
        let seconds = self.root.pointer("/error/availability/retry_after").and_then(Value::as_f64);
        let seconds = seconds.and_then(|n| Duration::try_from_secs_f64(n).ok()).filter(|span| !span.is_zero());
        told_wait(&self.message).or(seconds).or_else(|| self.google_wait())
    }

    fn google(&self, kind: &str) -> impl Iterator<Item = &Value> {
        let details = self.root.pointer("/error/details").and_then(Value::as_array).map(Vec::as_slice);
        let kind = format!("type.googleapis.com/google.rpc.{kind}");
        details.unwrap_or_default().iter().filter(move |detail| detail["@type"] == kind.as_str())
    }

    /// `RetryInfo`: the floor of the wait, in 11 of 11 pairs with the message's.
    fn google_wait(&self) -> Option<Duration> {
        let told = self.google("RetryInfo").find_map(|info| parse_go_duration(info["retryDelay"].as_str()?))?;
        Some(if told.subsec_nanos() == 0 { told + Duration::from_secs(1) } else { told })
    }

    /// `QuotaFailure`: the limits that refused. A day's is the one that lasts.
    fn google_limits(&self) -> Vec<(Meter, Option<f64>)> {
        let violations = self.google("QuotaFailure").filter_map(|failure| failure["violations"].as_array()).flatten();
        let limit = |violation: &Value| {
            let id = violation["quotaId"].as_str()?;
            let value = violation["quotaValue"].as_str().and_then(|text| text.parse::<u32>().ok());
            Some((google_meter(id)?, value.map(f64::from).filter(|n| *n > 0.0)))
        };
        let info = self.google("ErrorInfo").filter_map(|info| info["metadata"]["quota_limit"].as_str());
        let mut limits: Vec<_> = violations.filter_map(limit).collect();
        if limits.is_empty() {
            limits.extend(info.filter_map(|id| Some((google_meter(id)?, None))));
        }
        if limits.iter().any(|(meter, _)| meter.window == Window::Day) {
            limits.retain(|(meter, _)| meter.window == Window::Day);
        }
        // The same limit may be listed for each of its dimensions, and in no order: the narrowest of a meter refuses first.
        let narrowest = |n: &Option<f64>| n.unwrap_or(f64::INFINITY);
        limits.sort_by(|(_, a), (_, b)| narrowest(a).total_cmp(&narrowest(b)));
        let mut once: Vec<(Meter, Option<f64>)> = Vec::new();
        for limit in limits {
            if once.iter().all(|(meter, _)| *meter != limit.0) {
                once.push(limit);
            }
        }
        once
    }
}

/// `GenerateContentPaidTierInputTokensPerModelPerMinute`.
fn google_meter(quota_id: &str) -> Option<Meter> {
    let has = |word: &str| quota_id.contains(word);
    let unit = match () {
        () if has("InputToken") => Unit::InputTokens,
        () if has("OutputToken") => Unit::OutputTokens,
        () if has("Token") => Unit::Tokens,
        () if has("Request") || has("GenerateContent") => Unit::Requests,
        () => return None,
    };
    let window = match () {
        () if has("PerDay") => Window::Day,
        () if has("PerHour") => Window::Hour,
        () if has("PerMinute") => Window::Minute,
        () if has("PerSecond") => Window::Second,
        () => return None,
    };
    Some(Meter { unit, window })
}

/// Adds what the body of an error tells.
pub(super) fn refine(row: &Row, seen: Observation, body: &[u8]) -> Observation {
    if !matches!(seen.class, Class::Throttled | Class::Overloaded) {
        return seen;
    }
    let told = Told::parse(body);
    match told.meaning() {
        Some(Meaning::Account) => return seen.in_vain(Class::Account),
        Some(Meaning::Overloaded) => return seen.waiting(told.wait()).overloaded(),
        Some(Meaning::Throttled) => return seen.waiting(told.wait()).throttled(Vec::new()),
        _ if seen.class == Class::Overloaded => return seen.waiting(told.wait()),
        Some(Meaning::Concurrency) => return seen.waiting(told.wait()).throttled_for(ThrottleKind::Concurrency),
        Some(Meaning::TooLarge) => return seen.in_vain(Class::TooLarge),
        Some(Meaning::Caller) => return seen.in_vain(Class::Ignored),
        None => {}
    }
    let seen = with_repeated_headers(row, seen, &told);
    let limits = told.google_limits();
    if !limits.is_empty() {
        return by_google(&row.semantics, seen, &told, &limits);
    }
    let unit = told.unit();
    // Who shows a full bucket of tokens alone means that one: whether the request ever fits in it, its size tells.
    let full = |reading: &MeterReading| reading.limit.is_some() && reading.remaining >= reading.limit;
    let tokens_only = seen.readings.iter().all(|reading| reading.meter.unit != Unit::Requests && full(reading));
    if unit.is_none() && !told.of_others() && !seen.readings.is_empty() && tokens_only {
        let shown = seen.readings.iter().map(|reading| reading.meter).collect();
        return seen.waiting(told.wait()).throttled(shown);
    }
    let seen = seen.waiting(told.wait());
    match unit {
        Some((unit, window)) => {
            let exhausted = meters(&row.semantics, &seen, unit, window);
            seen.throttled(exhausted)
        }
        // Whatever the head showed spent, this was another's limit: no meter of ours is to be held for it, or lowered.
        None if told.of_others() => seen.throttled_elsewhere(),
        None => seen,
    }
    .until_the_day_ends(&row.semantics)
}

/// The meters of a unit that a refusal means: over the window it says, else as the headers showed them.
fn meters(semantics: &Semantics, seen: &Observation, unit: Unit, window: Option<Window>) -> Vec<Meter> {
    if let Some(window) = window {
        return vec![Meter { unit, window }];
    }
    let shown: Vec<Meter> = seen.readings.iter().map(|r| r.meter).filter(|meter| meter.unit == unit).collect();
    if shown.is_empty() { vec![Meter { unit, window: semantics.default_window(unit) }] } else { shown }
}

fn by_google(
    semantics: &Semantics,
    mut seen: Observation,
    told: &Told,
    limits: &[(Meter, Option<f64>)],
) -> Observation {
    for (meter, limit) in limits.iter().filter(|(_, limit)| limit.is_some()) {
        let sent_at = seen.sent_at;
        let (meter, limit) = (*meter, *limit);
        seen.readings.push(MeterReading { meter, sent_at, limit, remaining: None, level: None, reset: None });
    }
    let meters = limits.iter().map(|(meter, _)| *meter).collect();
    seen.waiting(told.wait()).throttled(meters).until_the_day_ends(semantics)
}

/// `OpenRouter` repeats its headers in the body, and sends the body alone at times.
fn with_repeated_headers(row: &Row, mut seen: Observation, told: &Told) -> Observation {
    let Some(repeated) = told.root.pointer("/error/metadata/headers").and_then(Value::as_object) else { return seen };
    if !seen.readings.is_empty() {
        return seen;
    }
    let line = |(name, value): (&String, &Value)| {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        (name.to_ascii_lowercase(), value.into_bytes())
    };
    let headers: Vec<(String, Vec<u8>)> = repeated.iter().map(line).collect();
    let head = Head { status: 429, headers: &headers };
    let mut lines = Lines::default();
    lines.sort(&head, row.families, row.listed);
    let wall = seen.refused_at.and_then(unix);
    let now = Now::new(&lines, ReceivedAt { sent_at: seen.sent_at, wall });
    let Observation { readings, others, missing, .. } = &mut seen;
    reading::read(row, &lines, &now, &mut Seen { readings, others, missing });
    let spent = |reading: &&MeterReading| reading.level.is_some_and(|level| level < 1.0);
    let exhausted: Vec<Meter> = seen.readings.iter().filter(spent).map(|reading| reading.meter).collect();
    if exhausted.is_empty() { seen } else { seen.throttled(exhausted) }
}

impl Observation {
    /// A spent day lasts until it ends, whatever wait stands beside it.
    fn until_the_day_ends(self, semantics: &Semantics) -> Self {
        let by_day = !self.exhausted.is_empty() && self.exhausted.iter().all(|meter| meter.window == Window::Day);
        let Some(at) = self.refused_at.filter(|_| by_day).and_then(unix) else { return self };
        Self { retry_after: self.retry_after.max(semantics.day_left(at)), ..self }
    }
}

fn unix(at: Timestamp) -> Option<UnixMillis> {
    u64::try_from(at.as_millisecond()).ok().map(UnixMillis)
}
