//! Gemini: `POST /v1beta/models/<model>:generateContent`, and `:streamGenerateContent?alt=sse`.
//!
//! No header tells anything. A refusal's body has which limits were met (`QuotaFailure`), and for how long (`RetryInfo`,
//! rounded down, and exact in the message). A prompt that never fits is refused as any other.

use std::time::Duration;

use axum::body::Bytes;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Json, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use super::account::Refusal;
use super::body::{Script, event};
use super::wire::{Answer, Ask, Wire};
use crate::quota::{Meter, Unit, Window};

/// What a prompt that never fits is asked to wait.
const NEVER_MS: u64 = 60_000;
const OVERLOADED: &str = "The model is overloaded. Please try again later.";

pub(super) struct Gemini;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct GenerateRequest {
    contents: Option<Vec<Value>>,
    generation_config: Option<GenerationConfig>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct GenerationConfig {
    max_output_tokens: Option<u64>,
}

impl Wire for Gemini {
    fn routes(&self) -> &'static [&'static str] {
        &["/v1beta/models/{call}"]
    }

    fn example(&self) -> (&'static str, &'static str) {
        ("/v1beta/models/demo:generateContent", r#"{"contents":[{"parts":[{"text":"hello"}]}]}"#)
    }

    fn read(&self, uri: &Uri, body: &[u8]) -> Result<Ask, String> {
        let call = uri.path().rsplit('/').next().unwrap_or_default();
        let as_events = uri.query().is_some_and(|query| query.split('&').any(|pair| pair == "alt=sse"));
        let (model, is_stream) = match call.split_once(':') {
            Some((model, "generateContent")) => (model, false),
            Some((model, "streamGenerateContent")) if as_events => (model, true),
            _ => return Err(format!("{call}: expected <model>:generateContent, or :streamGenerateContent?alt=sse")),
        };
        let request: GenerateRequest =
            serde_json::from_slice(body).map_err(|error| format!("request body: {error}"))?;
        if request.contents.is_none_or(|contents| contents.is_empty()) {
            return Err("* GenerateContentRequest.contents: contents is not specified".to_owned());
        }
        let max_tokens = request.generation_config.and_then(|config| config.max_output_tokens);
        Ok(Ask { model: model.to_owned(), user: None, max_tokens, is_stream, wants_usage: true })
    }

    fn whole(&self, answer: &Answer<'_>) -> Value {
        part(answer, &answer.text(), true)
    }

    fn script(&self, _ask: &Ask, answer: &Answer<'_>) -> Script {
        Script {
            opening: Vec::new(),
            first_token: event(None, &part(answer, Answer::WORD, false)),
            next_token: event(None, &part(answer, &format!(" {}", Answer::WORD), false)),
            tokens: answer.output_tokens,
            closing: vec![event(None, &part(answer, "", true))],
        }
    }

    fn stream_error(&self) -> Bytes {
        event(None, &error(StatusCode::SERVICE_UNAVAILABLE, OVERLOADED, &[]))
    }

    fn error(&self, status: StatusCode, message: &str, _id: &str) -> Response {
        (status, Json(error(status, message, &[]))).into_response()
    }

    fn refusal(&self, ask: &Ask, refusal: &Refusal, _id: &str) -> Response {
        let (metric, id) = quota(refusal.meter);
        let (limit, ms) = (refusal.limit, refusal.retry_after_ms.unwrap_or(NEVER_MS));
        let message = format!(
            "You exceeded your current quota in this emulated account.\n* Quota exceeded for metric: {metric}, limit: \
             {limit}\nPlease retry in {}.{:03}s.",
            ms / 1_000,
            ms % 1_000
        );
        let violation = json!({
            "quotaMetric": metric,
            "quotaId": id,
            "quotaDimensions": {"location": "global", "model": ask.model_quoted()},
            "quotaValue": limit.to_string(),
        });
        let details = [
            json!({"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [violation]}),
            json!({"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": format!("{}s", ms / 1_000)}),
        ];
        let status = StatusCode::TOO_MANY_REQUESTS;
        (status, Json(error(status, &message, &details))).into_response()
    }

    fn overloaded(&self, _id: &str) -> Response {
        let status = StatusCode::SERVICE_UNAVAILABLE;
        (status, Json(error(status, OVERLOADED, &[]))).into_response()
    }

    fn mark(&self, _refusal: &Refusal, _headers: &mut HeaderMap) {}

    fn sign(&self, _id: &str, _to_head: Duration, _headers: &mut HeaderMap) {}
}

/// A part of an answer; the last one says why it ends.
fn part(answer: &Answer<'_>, text: &str, is_last: bool) -> Value {
    let mut candidate = json!({"content": {"parts": [{"text": text}], "role": "model"}, "index": 0});
    let mut usage = json!({"promptTokenCount": answer.input_tokens, "totalTokenCount": answer.input_tokens});
    if is_last {
        candidate["finishReason"] = json!(if answer.is_cut { "MAX_TOKENS" } else { "STOP" });
        usage["candidatesTokenCount"] = json!(answer.output_tokens);
        usage["totalTokenCount"] = json!(answer.input_tokens + answer.output_tokens);
    }
    json!({
        "candidates": [candidate],
        "usageMetadata": usage,
        "modelVersion": answer.model,
        "responseId": answer.id_with(""),
    })
}

/// The metric and the id of a quota.
const fn quota(meter: Meter) -> (&'static str, &'static str) {
    match (meter.unit, meter.window) {
        (Unit::Requests, Window::Day) => (
            "generativelanguage.googleapis.com/generate_requests_per_model_per_day",
            "GenerateRequestsPerDayPerProjectPerModel",
        ),
        (Unit::Requests, _) => (
            "generativelanguage.googleapis.com/generate_requests_per_model",
            "GenerateRequestsPerMinutePerProjectPerModel",
        ),
        _ => (
            "generativelanguage.googleapis.com/generate_content_paid_tier_input_token_count",
            "GenerateContentPaidTierInputTokensPerModelPerMinute",
        ),
    }
}

fn error(status: StatusCode, message: &str, details: &[Value]) -> Value {
    let name = match status {
        StatusCode::TOO_MANY_REQUESTS => "RESOURCE_EXHAUSTED",
        StatusCode::SERVICE_UNAVAILABLE => "UNAVAILABLE",
        StatusCode::NOT_FOUND => "NOT_FOUND",
        _ => "INVALID_ARGUMENT",
    };
    let mut body = json!({"error": {"code": status.as_u16(), "message": message, "status": name}});
    if !details.is_empty() {
        body["error"]["details"] = json!(details);
    }
    body
}
