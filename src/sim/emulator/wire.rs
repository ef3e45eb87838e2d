//! What a dialect reads and writes.

use std::time::Duration;

use axum::body::Bytes;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::Response;
use serde_json::Value;

use super::account::{Refusal, Verdict};
use super::anthropic::Anthropic;
use super::body::Script;
use super::openai::OpenAi;
use crate::clock::UnixMillis;
use crate::provider::Dialect;

/// Most characters of a model's name that an error quotes.
const MODEL_CHARS_QUOTED: usize = 64;

/// What a request asks for, as far as it matters here; a dialect's other fields are accepted and ignored.
#[derive(Debug)]
pub(super) struct Ask {
    pub(super) model: String,
    pub(super) user: Option<String>,
    pub(super) max_tokens: Option<u64>,
    pub(super) is_stream: bool,
    /// Whether an OpenAI stream tells its usage.
    pub(super) wants_usage: bool,
}

impl Ask {
    /// The model's name, as an error quotes it.
    pub(super) fn model_quoted(&self) -> String {
        self.model.chars().take(MODEL_CHARS_QUOTED).collect()
    }
}

/// An answer's content.
#[derive(Debug)]
pub(super) struct Answer<'a> {
    /// The request's id.
    pub(super) id: &'a str,
    pub(super) model: &'a str,
    pub(super) unix_seconds: u64,
    pub(super) input_tokens: u64,
    pub(super) output_tokens: u64,
    /// Whether `max_tokens` cut it short.
    pub(super) is_cut: bool,
}

impl Answer<'_> {
    /// Every token is this word; all but the first follow a space.
    pub(super) const WORD: &'static str = "tide";

    pub(super) fn text(&self) -> String {
        vec![Self::WORD; usize::try_from(self.output_tokens).unwrap_or(usize::MAX)].join(" ")
    }

    /// The answer's id in the dialect's way: the request's with another prefix.
    pub(super) fn id_with(&self, prefix: &str) -> String {
        self.id.replacen("req_", prefix, 1)
    }
}

/// One provider's shapes.
pub(super) trait Wire: Send + Sync {
    /// Where requests are posted.
    fn path(&self) -> &'static str;
    /// Reads a request; the error is one line.
    fn read(&self, body: &[u8]) -> Result<Ask, String>;
    /// A whole answer.
    fn whole(&self, answer: &Answer<'_>) -> Value;
    /// The same answer as events.
    fn script(&self, ask: &Ask, answer: &Answer<'_>) -> Script;
    /// The event that breaks a stream off.
    fn stream_error(&self) -> Bytes;
    /// The answer to a request that is wrong.
    fn error(&self, status: StatusCode, message: &str, id: &str) -> Response;
    /// The answer to a request that finds no room.
    fn refusal(&self, ask: &Ask, refusal: &Refusal, id: &str) -> Response;
    /// The answer of a provider that cannot keep up.
    fn overloaded(&self, id: &str) -> Response;
    /// Writes the rate-limit headers of a verdict given `at` this time.
    fn show(&self, verdict: &Verdict, at: UnixMillis, headers: &mut HeaderMap);
    /// Writes the headers that every response has; it took this long to the first byte.
    fn sign(&self, id: &str, to_head: Duration, headers: &mut HeaderMap);
}

/// The dialect's shapes.
pub(super) const fn wire(dialect: Dialect) -> &'static dyn Wire {
    match dialect {
        Dialect::Anthropic => &Anthropic,
        _ => &OpenAi,
    }
}

pub(super) fn set(headers: &mut HeaderMap, name: &'static str, value: &impl ToString) {
    // Numbers, times and hexadecimal ids are always valid header values.
    if let Ok(value) = HeaderValue::from_str(&value.to_string()) {
        headers.insert(HeaderName::from_static(name), value);
    }
}
