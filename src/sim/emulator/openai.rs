//! OpenAI: `POST /v1/chat/completions`, resets as Go durations, and waits to the millisecond.

use std::time::Duration;

use axum::http::HeaderMap;

use super::account::Refusal;
use super::wire::{Wire, set};

pub(super) struct OpenAi;

impl Wire for OpenAi {
    fn routes(&self) -> &'static [&'static str] {
        &["/v1/chat/completions"]
    }

    fn mark(&self, refusal: &Refusal, headers: &mut HeaderMap) {
        if let Some(ms) = refusal.retry_after_ms {
            set(headers, "retry-after-ms", &ms);
            set(headers, "retry-after", &ms.div_ceil(1_000));
        }
    }

    fn sign(&self, id: &str, to_head: Duration, headers: &mut HeaderMap) {
        set(headers, "x-request-id", &id);
        set(headers, "openai-processing-ms", &to_head.as_millis());
    }
}
