//! Groq: OpenAI's bodies and names. Headers tell of requests by the day and tokens by the minute; a minute's requests are
//! limited too, and only the refusal says so.

use axum::http::StatusCode;
use axum::response::{IntoResponse, Json, Response};
use serde_json::json;

use super::account::Refusal;
use super::chat;
use super::wire::{Ask, Wire};

pub(super) struct Groq;

impl Wire for Groq {
    fn routes(&self) -> &'static [&'static str] {
        &["/openai/v1/chat/completions"]
    }

    fn refusal(&self, ask: &Ask, refusal: &Refusal, _id: &str) -> Response {
        // A prompt that never fits is 413 there.
        let fits = refusal.retry_after_ms.is_some();
        let status = if fits { StatusCode::TOO_MANY_REQUESTS } else { StatusCode::PAYLOAD_TOO_LARGE };
        let body = chat::error(chat::unit(refusal), &chat::refusal(ask, refusal), &json!("rate_limit_exceeded"));
        (status, Json(body)).into_response()
    }
}
