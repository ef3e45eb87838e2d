//! What a dialect reads and writes.

use std::time::Duration;

use axum::body::Bytes;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri};
use axum::response::{IntoResponse, Json, Response};
use serde_json::{Value, json};

use super::account::{Refusal, Verdict};
use super::anthropic::Anthropic;
use super::azure::Azure;
use super::body::{Script, event};
use super::chat;
use super::emulated::Emulated;
use super::fixed_window::FixedWindow;
use super::gemini::Gemini;
use super::groq::Groq;
use super::openai::OpenAi;
use crate::provider::Shown;

/// Most characters of a model's name that an error quotes.
const MODEL_CHARS_QUOTED: usize = 64;

/// What a request asks for, as far as it matters here; a dialect's other fields are accepted and ignored.
#[derive(Debug)]
pub(super) struct Ask {
    pub(super) model: String,
    pub(super) user: Option<String>,
    pub(super) max_tokens: Option<u64>,
    pub(super) is_stream: bool,
    /// Whether a stream in OpenAI's shape tells its usage.
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

/// One provider's shapes; what is not said otherwise is as OpenAI does it, whom many copy.
pub(super) trait Wire: Send + Sync {
    /// Where requests are posted, as routes.
    fn routes(&self) -> &'static [&'static str];
    /// A request to try it with: path and body.
    fn example(&self) -> (&'static str, &'static str) {
        (self.routes()[0], chat::EXAMPLE)
    }
    /// Reads a request; the error is one line.
    fn read(&self, _uri: &Uri, body: &[u8]) -> Result<Ask, String> {
        chat::read(body, None)
    }
    /// A whole answer.
    fn whole(&self, answer: &Answer<'_>) -> Value {
        chat::whole(answer)
    }
    /// The same answer as events.
    fn script(&self, ask: &Ask, answer: &Answer<'_>) -> Script {
        chat::script(ask, answer)
    }
    /// The event that breaks a stream off.
    fn stream_error(&self) -> Bytes {
        event(None, &chat::overloaded())
    }
    /// The answer to a request that is wrong.
    fn error(&self, status: StatusCode, message: &str, _id: &str) -> Response {
        (status, Json(chat::error("invalid_request_error", message, &Value::Null))).into_response()
    }
    /// The answer to a request that finds no room.
    fn refusal(&self, ask: &Ask, refusal: &Refusal, _id: &str) -> Response {
        let body = chat::error(chat::unit(refusal), &chat::refusal(ask, refusal), &json!("rate_limit_exceeded"));
        (StatusCode::TOO_MANY_REQUESTS, Json(body)).into_response()
    }
    /// The answer of a provider that cannot keep up.
    fn overloaded(&self, _id: &str) -> Response {
        (StatusCode::SERVICE_UNAVAILABLE, Json(chat::overloaded())).into_response()
    }
    /// What headers tell of a verdict, of the meters that they tell of at all.
    fn told(&self, verdict: &Verdict) -> Vec<Shown> {
        verdict.shown.clone()
    }
    /// Writes the other headers of a refusal: what it asks to wait.
    fn mark(&self, refusal: &Refusal, headers: &mut HeaderMap) {
        if let Some(ms) = refusal.retry_after_ms {
            set(headers, "retry-after", &ms.div_ceil(1_000));
        }
    }
    /// Writes the headers that every response has; it took this long to the first byte.
    fn sign(&self, id: &str, _to_head: Duration, headers: &mut HeaderMap) {
        set(headers, "x-request-id", &id);
    }
}

/// The provider's shapes.
pub(super) const fn wire(emulated: Emulated) -> &'static dyn Wire {
    match emulated {
        Emulated::OpenAi => &OpenAi,
        Emulated::Anthropic => &Anthropic,
        Emulated::Azure => &Azure,
        Emulated::Groq => &Groq,
        Emulated::Gemini => &Gemini,
        Emulated::FixedWindow => &FixedWindow,
    }
}

pub(super) fn set(headers: &mut HeaderMap, name: &str, value: &impl ToString) {
    // Names of the table, numbers, times and hexadecimal ids are always valid in a head.
    if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), HeaderValue::from_str(&value.to_string())) {
        headers.insert(name, value);
    }
}
