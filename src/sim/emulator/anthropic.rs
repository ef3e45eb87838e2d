//! Anthropic's shapes: `POST /v1/messages`, `anthropic-ratelimit-*` with the time of full as an instant.

use std::time::Duration;

use axum::body::Bytes;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Json, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use super::account::{Refusal, Shown, Verdict};
use super::body::{Script, event};
use super::wire::{Answer, Ask, Wire, set};
use crate::clock::UnixMillis;
use crate::quota::Unit;

/// Token levels are shown to the nearest multiple of this.
const TOKENS_GRAIN: u64 = 1_000;
const OVERLOADED: &str = "Overloaded";

pub(super) struct Anthropic;

#[derive(Debug, Deserialize)]
struct MessagesRequest {
    model: Option<String>,
    messages: Option<Vec<Value>>,
    max_tokens: Option<u64>,
    metadata: Option<Metadata>,
    stream: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct Metadata {
    user_id: Option<String>,
}

/// What one group of headers says.
struct Group {
    limit: u64,
    remaining: u64,
    reset_unix_seconds: u64,
}

impl Wire for Anthropic {
    fn path(&self) -> &'static str {
        "/v1/messages"
    }

    fn read(&self, body: &[u8]) -> Result<Ask, String> {
        let request: MessagesRequest =
            serde_json::from_slice(body).map_err(|error| format!("request body: {error}"))?;
        let required = |field: &str| format!("{field}: Field required");
        let model = request.model.ok_or_else(|| required("model"))?;
        let messages = request.messages.ok_or_else(|| required("messages"))?;
        let max_tokens = request.max_tokens.ok_or_else(|| required("max_tokens"))?;
        if messages.is_empty() {
            return Err("messages: at least one message is required".to_owned());
        }
        if max_tokens == 0 {
            return Err("max_tokens: must be greater than or equal to 1".to_owned());
        }
        Ok(Ask {
            model,
            user: request.metadata.and_then(|metadata| metadata.user_id),
            max_tokens: Some(max_tokens),
            is_stream: request.stream == Some(true),
            wants_usage: true,
        })
    }

    fn whole(&self, answer: &Answer<'_>) -> Value {
        let mut message = message(answer, answer.output_tokens);
        message["content"] = json!([{"type": "text", "text": answer.text()}]);
        message["stop_reason"] = json!(stop_reason(answer));
        message
    }

    fn script(&self, _ask: &Ask, answer: &Answer<'_>) -> Script {
        let named = |data: Value| event(data["type"].as_str(), &data);
        let delta = |text: &str| {
            named(json!({
                "type": "content_block_delta",
                "index": 0,
                "delta": {"type": "text_delta", "text": text},
            }))
        };
        let block = json!({"type": "text", "text": ""});
        Script {
            opening: vec![
                // The first token is made by then: the provider counts it.
                named(json!({"type": "message_start", "message": message(answer, 1)})),
                named(json!({"type": "content_block_start", "index": 0, "content_block": block})),
                named(json!({"type": "ping"})),
            ],
            first_token: delta(Answer::WORD),
            next_token: delta(&format!(" {}", Answer::WORD)),
            tokens: answer.output_tokens,
            closing: vec![
                named(json!({"type": "content_block_stop", "index": 0})),
                named(json!({
                    "type": "message_delta",
                    "delta": {"stop_reason": stop_reason(answer), "stop_sequence": null},
                    "usage": {"output_tokens": answer.output_tokens},
                })),
                named(json!({"type": "message_stop"})),
            ],
        }
    }

    fn stream_error(&self) -> Bytes {
        event(Some("error"), &json!({"type": "error", "error": {"type": "overloaded_error", "message": OVERLOADED}}))
    }

    fn error(&self, status: StatusCode, message: &str, id: &str) -> Response {
        let kind = match status {
            StatusCode::NOT_FOUND => "not_found_error",
            StatusCode::PAYLOAD_TOO_LARGE => "request_too_large",
            _ => "invalid_request_error",
        };
        error(status, kind, message, id, false)
    }

    fn refusal(&self, _ask: &Ask, refusal: &Refusal, id: &str) -> Response {
        let unit = match refusal.unit {
            Unit::Requests => "requests",
            Unit::OutputTokens => "output tokens",
            _ => "input tokens",
        };
        let (limit, fits) = (with_commas(refusal.limit), refusal.retry_after_ms.is_some());
        let advice = match (refusal.unit, fits) {
            (_, true) => "Please try again later.",
            (Unit::OutputTokens, false) => "Ask for fewer max_tokens: the request alone exceeds the limit.",
            (_, false) => "Shorten the prompt: the request alone exceeds the limit.",
        };
        let message = format!(
            "This request would exceed your organization's rate limit of {limit} {unit} per minute (emulated account). \
             {advice}"
        );
        error(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", &message, id, fits)
    }

    fn overloaded(&self, id: &str) -> Response {
        // 529 is Anthropic's own.
        let status = StatusCode::from_u16(529).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
        error(status, "overloaded_error", OVERLOADED, id, true)
    }

    fn show(&self, verdict: &Verdict, at: UnixMillis, headers: &mut HeaderMap) {
        let never_fits = verdict.refusal.is_some_and(|refusal| refusal.retry_after_ms.is_none());
        let group = |unit: Unit| {
            let shown = verdict.shown.iter().find(|shown| shown.unit == unit)?;
            // A request that never fits is refused before the buckets are looked at: they are shown full, and "not
            // set" is 1970.
            Some(if never_fits {
                Group { limit: shown.limit, remaining: shown.limit, reset_unix_seconds: 0 }
            } else {
                let reset_unix_seconds = at.0.saturating_add(shown.reset_ms) / 1_000;
                Group { limit: shown.limit, remaining: remaining(shown), reset_unix_seconds }
            })
        };
        let requests = group(Unit::Requests);
        let (input, output) = (group(Unit::InputTokens), group(Unit::OutputTokens));
        let tokens = input.as_ref().zip(output.as_ref()).map(|(input, output)| Group {
            limit: input.limit + output.limit,
            remaining: input.remaining + output.remaining,
            reset_unix_seconds: input.reset_unix_seconds.min(output.reset_unix_seconds),
        });
        for (group, names) in [requests, tokens, input, output].into_iter().zip(HEADERS) {
            let (Some(group), [limit, remaining, reset]) = (group, names) else { continue };
            set(headers, limit, &group.limit);
            set(headers, remaining, &group.remaining);
            set(headers, reset, &rfc3339(group.reset_unix_seconds));
        }
        if let Some(ms) = verdict.refusal.and_then(|refusal| refusal.retry_after_ms) {
            set(headers, "retry-after", &ms.div_ceil(1_000));
        }
    }

    fn sign(&self, id: &str, _to_head: Duration, headers: &mut HeaderMap) {
        set(headers, "request-id", &id);
    }
}

/// Requests, tokens, input tokens, output tokens.
const HEADERS: [[&str; 3]; 4] = [
    [
        "anthropic-ratelimit-requests-limit",
        "anthropic-ratelimit-requests-remaining",
        "anthropic-ratelimit-requests-reset",
    ],
    ["anthropic-ratelimit-tokens-limit", "anthropic-ratelimit-tokens-remaining", "anthropic-ratelimit-tokens-reset"],
    [
        "anthropic-ratelimit-input-tokens-limit",
        "anthropic-ratelimit-input-tokens-remaining",
        "anthropic-ratelimit-input-tokens-reset",
    ],
    [
        "anthropic-ratelimit-output-tokens-limit",
        "anthropic-ratelimit-output-tokens-remaining",
        "anthropic-ratelimit-output-tokens-reset",
    ],
];

fn remaining(shown: &Shown) -> u64 {
    match shown.unit {
        Unit::Requests => shown.remaining,
        _ => shown.remaining.saturating_add(TOKENS_GRAIN / 2) / TOKENS_GRAIN * TOKENS_GRAIN,
    }
}

/// A message without its content.
fn message(answer: &Answer<'_>, output_tokens: u64) -> Value {
    json!({
        "id": answer.id_with("msg_"),
        "type": "message",
        "role": "assistant",
        "model": answer.model,
        "content": [],
        "stop_reason": null,
        "stop_sequence": null,
        "usage": {
            "input_tokens": answer.input_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": output_tokens,
        },
    })
}

fn stop_reason(answer: &Answer<'_>) -> &'static str {
    if answer.is_cut { "max_tokens" } else { "end_turn" }
}

fn error(status: StatusCode, kind: &str, message: &str, id: &str, should_retry: bool) -> Response {
    let body = json!({"type": "error", "error": {"type": kind, "message": message}, "request_id": id});
    let mut response = (status, Json(body)).into_response();
    set(response.headers_mut(), "x-should-retry", &should_retry);
    response
}

/// `450,000`, as Anthropic writes limits in messages.
fn with_commas(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `2026-01-06T02:53:18Z`; a time that the calendar does not reach is "not set", 1970.
fn rfc3339(unix_seconds: u64) -> String {
    let seconds = i64::try_from(unix_seconds).unwrap_or_default();
    jiff::Timestamp::from_second(seconds).unwrap_or_default().to_string()
}
