//! Azure OpenAI: OpenAI's bodies under a deployment's path, windows told, resets in whole seconds.
//!
//! It asks to come back too early when tokens are spent: after a second, or no time at all. Recorded so, and kept, for a
//! client must not believe it.

use std::time::Duration;

use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Json, Response};
use serde_json::{Value, json};

use super::account::{Refusal, Verdict};
use super::chat;
use super::wire::{Ask, Wire, set};
use crate::provider::Shown;
use crate::quota::Unit;

/// What some refusals say though the limit is by the minute.
const SENTINEL_SECONDS: u64 = 86_400;

pub(super) struct Azure;

impl Wire for Azure {
    fn routes(&self) -> &'static [&'static str] {
        &["/openai/deployments/{deployment}/chat/completions", "/openai/v1/chat/completions"]
    }

    fn example(&self) -> (&'static str, &'static str) {
        ("/openai/deployments/demo/chat/completions?api-version=2024-10-21", chat::EXAMPLE)
    }

    fn read(&self, uri: &Uri, body: &[u8]) -> Result<Ask, String> {
        let deployment = uri.path().strip_prefix("/openai/deployments/").and_then(|path| path.split('/').next());
        chat::read(body, deployment)
    }

    fn error(&self, status: StatusCode, message: &str, _id: &str) -> Response {
        (status, Json(error(&status.as_u16().to_string(), message))).into_response()
    }

    fn refusal(&self, _ask: &Ask, refusal: &Refusal, _id: &str) -> Response {
        let limit = if spent_tokens(refusal) { "token" } else { "call" };
        let message = format!(
            "Requests to the ChatCompletions_Create Operation under Azure OpenAI API version 2024-10-21 have exceeded \
             {limit} rate limit of your current emulated pricing tier. Please retry after {} seconds.",
            wait_seconds(refusal)
        );
        (StatusCode::TOO_MANY_REQUESTS, Json(error("429", &message))).into_response()
    }

    fn overloaded(&self, _id: &str) -> Response {
        let message = "The system is currently experiencing high demand and cannot process your request. Please retry \
                       after 20 seconds.";
        (StatusCode::TOO_MANY_REQUESTS, Json(error("429", message))).into_response()
    }

    fn told(&self, verdict: &Verdict) -> Vec<Shown> {
        // Of a spent bucket it says that it is full at once.
        let told = |shown: &Shown| match shown.meter.unit {
            Unit::Tokens if shown.remaining == 0.0 => Shown { reset: Some(Duration::ZERO), ..*shown },
            _ => *shown,
        };
        verdict.shown.iter().map(told).collect()
    }

    fn mark(&self, refusal: &Refusal, headers: &mut HeaderMap) {
        let of_tokens = spent_tokens(refusal);
        set(headers, "x-ratelimit-type", &if of_tokens { "Tokens" } else { "Requests" });
        set(headers, "x-ms-error-code", &"RateLimitReached");
        set(headers, "retry-after", &wait_seconds(refusal));
        let ms = refusal.retry_after_ms.filter(|_| !of_tokens).unwrap_or(0);
        set(headers, "retry-after-ms", &ms);
    }

    fn sign(&self, id: &str, _to_head: Duration, headers: &mut HeaderMap) {
        set(headers, "apim-request-id", &id);
    }
}

fn spent_tokens(refusal: &Refusal) -> bool {
    refusal.meter.unit == Unit::Tokens
}

fn wait_seconds(refusal: &Refusal) -> u64 {
    match refusal.retry_after_ms {
        None => SENTINEL_SECONDS,
        Some(_) if spent_tokens(refusal) => 1,
        Some(ms) => ms.div_ceil(1_000),
    }
}

fn error(code: &str, message: &str) -> Value {
    json!({"error": {"code": code, "message": message}})
}
