//! Chat completions: OpenAI's bodies, which others copy. Whole answers, streams, and what errors say.

use serde::Deserialize;
use serde_json::{Value, json};

use super::account::Refusal;
use super::body::{Script, event};
use super::wire::{Answer, Ask};
use crate::provider::go_duration;
use crate::quota::{Unit, Window};

/// A request to try it with.
pub(super) const EXAMPLE: &str = r#"{"model":"demo","messages":[{"role":"user","content":"hello"}]}"#;

#[derive(Debug, Deserialize)]
struct ChatRequest {
    model: Option<String>,
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

/// Reads a request for this model, or else for the one that it names.
pub(super) fn read(body: &[u8], model: Option<&str>) -> Result<Ask, String> {
    let request: ChatRequest = serde_json::from_slice(body).map_err(|error| format!("request body: {error}"))?;
    let model = model.map(str::to_owned).or(request.model).ok_or("request body: missing field `model`")?;
    if request.messages.is_empty() {
        return Err("messages: expected at least one".to_owned());
    }
    Ok(Ask {
        model,
        user: request.user,
        max_tokens: request.max_completion_tokens.or(request.max_tokens),
        is_stream: request.stream == Some(true),
        wants_usage: request.stream_options.is_some_and(|options| options.include_usage == Some(true)),
    })
}

/// A whole answer.
pub(super) fn whole(answer: &Answer<'_>) -> Value {
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

/// The same answer as events.
pub(super) fn script(ask: &Ask, answer: &Answer<'_>) -> Script {
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

/// What `type` says of the meter that refused.
pub(super) const fn unit(refusal: &Refusal) -> &'static str {
    match refusal.meter.unit {
        Unit::Requests => "requests",
        Unit::Tokens | Unit::InputTokens | Unit::OutputTokens => "tokens",
    }
}

/// The message of a refusal.
pub(super) fn refusal(ask: &Ask, refusal: &Refusal) -> String {
    let (window, letter) = match refusal.meter.window {
        Window::Day => ("day", 'D'),
        _ => ("min", 'M'),
    };
    let unit = unit(refusal);
    let initial = if unit == "requests" { 'R' } else { 'T' };
    let meter = format!("{unit} per {window} ({initial}P{letter})");
    let Refusal { limit, used, requested, retry_after_ms, .. } = *refusal;
    let model = ask.model_quoted();
    match retry_after_ms {
        Some(ms) => format!(
            "Rate limit reached for {model} in this emulated account on {meter}: Limit {limit}, Used {used}, Requested \
             {requested}. Please try again in {}.",
            go_duration(ms)
        ),
        None => format!(
            "Request too large for {model} in this emulated account on {meter}: Limit {limit}, Requested {requested}. \
             Send fewer input tokens or ask for fewer output tokens."
        ),
    }
}

/// The body of a provider that cannot keep up.
pub(super) fn overloaded() -> Value {
    error("server_error", "The server is overloaded or not ready yet.", &Value::Null)
}

pub(super) fn error(kind: &str, message: &str, code: &Value) -> Value {
    json!({"error": {"message": message, "type": kind, "param": null, "code": code}})
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
