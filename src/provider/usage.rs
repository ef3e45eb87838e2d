//! What a request really used, as its answer tells.

/// What the provider says a request really used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// LLM tokens sent.
    pub input_tokens: u64,
    /// LLM tokens received.
    pub output_tokens: u64,
}
