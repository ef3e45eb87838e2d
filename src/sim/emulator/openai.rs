//! OpenAI's shapes: `POST /v1/chat/completions`, `x-ratelimit-*` with the time to full as a Go duration.

use std::fmt::Write as _;
use std::time::Duration;

use axum::body::Bytes;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Json, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use super::account::{Refusal, Verdict};
use super::body::{Script, event};
use super::wire::{Answer, Ask, Wire, set};
use crate::clock::UnixMillis;
use crate::quota::Unit;

const OVERLOADED: &str = "The server is overloaded or not ready yet.";

pub(super) struct OpenAi;

#[derive(Debug, Deserialize)]
struct ChatRequest {
    model: String,
    messages: Vec<Value>,
    user: Option<String>,
    max_tokens: Option<u64>,
    max_completion_tokens: Option<u64>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
}

#[derive(Debug, Deserialize)]
struct StreamOptions {
    include_usage: Option<bool>,
}

impl Wire for OpenAi {
    fn path(&self) -> &'static str {
        "/v1/chat/completions"
    }

    fn read(&self, body: &[u8]) -> Result<Ask, String> {
        let request: ChatRequest = serde_json::from_slice(body).map_err(|error| format!("request body: {error}"))?;
        if request.messages.is_empty() {
            return Err("messages: expected at least one".to_owned());
        }
        Ok(Ask {
            model: request.model,
            user: request.user,
            max_tokens: request.max_completion_tokens.or(request.max_tokens),
            is_stream: request.stream == Some(true),
            wants_usage: request.stream_options.is_some_and(|options| options.include_usage == Some(true)),
        })
    }

    fn whole(&self, answer: &Answer<'_>) -> Value {
        json!({
            "id": answer.id_with("chatcmpl-"),
            "object": "chat.completion",
            "created": answer.unix_seconds,
            "model": answer.model,
            "choices": [{
                "index": 0,
                "message": {"role": "assistant", "content": answer.text()},
                "finish_reason": finish_reason(answer),
            }],
            "usage": usage(answer),
        })
    }

    fn script(&self, ask: &Ask, answer: &Answer<'_>) -> Script {
        let id = answer.id_with("chatcmpl-");
        let chunk = |choices: Value, told: Value| {
            let mut chunk = json!({
                "id": id,
                "object": "chat.completion.chunk",
                "created": answer.unix_seconds,
                "model": answer.model,
                "choices": choices,
            });
            // A stream that tells its usage tells it in its last chunk, and in every other one that it does not yet.
            if ask.wants_usage
                && let Some(fields) = chunk.as_object_mut()
            {
                fields.insert("usage".to_owned(), told);
            }
            event(None, &chunk)
        };
        let delta = |delta: Value, finish_reason: Value| {
            chunk(json!([{"index": 0, "delta": delta, "finish_reason": finish_reason}]), Value::Null)
        };
        let mut closing = vec![delta(json!({}), json!(finish_reason(answer)))];
        if ask.wants_usage {
            closing.push(chunk(json!([]), usage(answer)));
        }
        closing.push(event(None, &"[DONE]"));
        Script {
            opening: vec![delta(json!({"role": "assistant", "content": ""}), Value::Null)],
            first_token: delta(json!({"content": Answer::WORD}), Value::Null),
            next_token: delta(json!({"content": format!(" {}", Answer::WORD)}), Value::Null),
            tokens: answer.output_tokens,
            closing,
        }
    }

    fn stream_error(&self) -> Bytes {
        event(None, &error_body("server_error", OVERLOADED, &Value::Null))
    }

    fn error(&self, status: StatusCode, message: &str, _id: &str) -> Response {
        (status, Json(error_body("invalid_request_error", message, &Value::Null))).into_response()
    }

    fn refusal(&self, ask: &Ask, refusal: &Refusal, _id: &str) -> Response {
        let (kind, long, short) = match refusal.unit {
            Unit::Requests => ("requests", "requests per min", "RPM"),
            _ => ("tokens", "tokens per min", "TPM"),
        };
        let Refusal { limit, used, requested, retry_after_ms, .. } = *refusal;
        let model = ask.model_quoted();
        let message = match retry_after_ms {
            Some(ms) => format!(
                "Rate limit reached for {model} in this emulated account on {long} ({short}): Limit {limit}, \
                 Used {used}, Requested {requested}. Please try again in {}.",
                go_duration(ms)
            ),
            None => format!(
                "Request too large for {model} in this emulated account on {long} ({short}): Limit {limit}, \
                 Requested {requested}. Send fewer input tokens or ask for fewer output tokens."
            ),
        };
        let body = error_body(kind, &message, &json!("rate_limit_exceeded"));
        (StatusCode::TOO_MANY_REQUESTS, Json(body)).into_response()
    }

    fn overloaded(&self, _id: &str) -> Response {
        let body = error_body("server_error", OVERLOADED, &Value::Null);
        (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response()
    }

    fn show(&self, verdict: &Verdict, _at: UnixMillis, headers: &mut HeaderMap) {
        for shown in &verdict.shown {
            let [limit, remaining, reset] = match shown.unit {
                Unit::Requests => {
                    ["x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"]
                }
                _ => ["x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"],
            };
            set(headers, limit, &shown.limit);
            set(headers, remaining, &shown.remaining);
            set(headers, reset, &go_duration(shown.reset_ms));
        }
        if let Some(ms) = verdict.refusal.and_then(|refusal| refusal.retry_after_ms) {
            set(headers, "retry-after-ms", &ms);
            set(headers, "retry-after", &ms.div_ceil(1_000));
        }
    }

    fn sign(&self, id: &str, to_head: Duration, headers: &mut HeaderMap) {
        set(headers, "x-request-id", &id);
        set(headers, "openai-processing-ms", &to_head.as_millis());
    }
}

fn finish_reason(answer: &Answer<'_>) -> &'static str {
    if answer.is_cut { "length" } else { "stop" }
}

fn usage(answer: &Answer<'_>) -> Value {
    json!({
        "prompt_tokens": answer.input_tokens,
        "completion_tokens": answer.output_tokens,
        "total_tokens": answer.input_tokens + answer.output_tokens,
    })
}

fn error_body(kind: &str, message: &str, code: &Value) -> Value {
    json!({"error": {"message": message, "type": kind, "param": null, "code": code}})
}

/// A duration as Go prints it: `0s`, `120ms`, `1.112s`, `1m1.23s`, `1h9m7.077s`; hours are not folded into days.
#[must_use]
pub fn go_duration(ms: u64) -> String {
    if ms == 0 {
        return "0s".to_owned();
    }
    if ms < 1_000 {
        return format!("{ms}ms");
    }
    let (hours, minutes) = (ms / 3_600_000, ms / 60_000 % 60);
    let mut text = String::new();
    // Writing to a String cannot fail.
    if hours > 0 {
        let _ = write!(text, "{hours}h");
    }
    if hours > 0 || minutes > 0 {
        let _ = write!(text, "{minutes}m");
    }
    let _ = write!(text, "{}", ms / 1_000 % 60);
    let fraction = format!("{:03}", ms % 1_000);
    let fraction = fraction.trim_end_matches('0');
    if !fraction.is_empty() {
        let _ = write!(text, ".{fraction}");
    }
    text + "s"
}
