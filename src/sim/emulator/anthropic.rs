//! Anthropic's shapes: `POST /v1/messages`, `anthropic-ratelimit-*` with the time of full as an instant.

use std::time::Duration;

use axum::body::Bytes;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Json, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use super::account::{Refusal, Verdict};
use super::body::{Script, event};
use super::emulated::Emulated;
use super::wire::{Answer, Ask, Wire, set};
use crate::provider::Shown;
use crate::quota::{Meter, Unit};

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

impl Wire for Anthropic {
    fn routes(&self) -> &'static [&'static str] {
        &["/v1/messages"]
    }

    fn example(&self) -> (&'static str, &'static str) {
        ("/v1/messages", r#"{"model":"demo","max_tokens":100,"messages":[{"role":"user","content":"hello"}]}"#)
    }

    fn read(&self, _uri: &Uri, body: &[u8]) -> Result<Ask, String> {
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
        let unit = match refusal.meter.unit {
            Unit::Requests => "requests",
            Unit::OutputTokens => "output tokens",
            _ => "input tokens",
        };
        let (limit, fits) = (with_commas(refusal.limit), refusal.retry_after_ms.is_some());
        let advice = match (refusal.meter.unit, fits) {
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

    fn told(&self, verdict: &Verdict) -> Vec<Shown> {
        let never_fits = verdict.refusal.is_some_and(|refusal| refusal.retry_after_ms.is_none());
        // A request that never fits is refused before the buckets are looked at: they are shown full, since never.
        let told = |shown: &Shown| {
            if never_fits { Shown { remaining: shown.limit, reset: None, ..*shown } } else { *shown }
        };
        let mut told: Vec<Shown> = verdict.shown.iter().map(told).collect();
        // The sum of what is shown, so of rounded numbers.
        let grain = Emulated::Anthropic.semantics().token_grain;
        let rounded = |shown: &Shown| (shown.remaining / grain).round() * grain;
        let of = |unit| told.iter().find(|shown| shown.meter.unit == unit);
        if let (Some(input), Some(output)) = (of(Unit::InputTokens), of(Unit::OutputTokens)) {
            told.push(Shown {
                meter: Meter { unit: Unit::Tokens, ..input.meter },
                limit: input.limit + output.limit,
                remaining: rounded(input) + rounded(output),
                reset: input.reset.min(output.reset),
            });
        }
        told
    }

    fn sign(&self, id: &str, _to_head: Duration, headers: &mut HeaderMap) {
        set(headers, "request-id", &id);
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
