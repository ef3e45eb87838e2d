//! The dialects by name.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::taught::Taught;

/// A provider's way of writing limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
#[non_exhaustive]
pub enum Dialect {
    /// `x-ratelimit-{limit,remaining,reset}-{requests,tokens}`, resets as Go durations.
    OpenAi,
    /// Azure OpenAI and AI Foundry: OpenAI's names, resets in ms or seconds, the window told.
    Azure,
    /// `anthropic-ratelimit-{requests,tokens,input-tokens,output-tokens}-{limit,remaining,reset}`.
    Anthropic,
    /// Gemini and Vertex: `RetryInfo` and `QuotaFailure` in error bodies.
    Gemini,
    /// Bedrock: names of exceptions.
    Bedrock,
    /// OpenAI's names; requests count by the day.
    Groq,
    /// A window in each name.
    Mistral,
    /// `x-ratelimit-limit` and `-limit-tokens`, per second.
    Together,
    /// Three kinds of tokens, per second.
    Fireworks,
    /// `x-ratelimit-{limit,remaining,reset}-{requests,tokens}-{minute,hour,day}`, fixed windows.
    Cerebras,
    /// `x-ratelimit-{limit,remaining,reset}` on refusals, resets in ms since 1970.
    OpenRouter,
    /// OpenAI's names without resets.
    Xai,
    /// Calls of trial keys.
    Cohere,
    /// No header; 429 is for calls at a time.
    DeepSeek,
    /// Azure's headers, and which limit refused.
    GitHubModels,
    /// The IETF's fields, nearly.
    HuggingFace,
    /// OpenAI's names with a rate that is scaled.
    Nebius,
    /// No header.
    Databricks,
    /// OpenAI's names, by the day too, resets in seconds since 1970.
    SambaNova,
    /// No header.
    Nvidia,
    /// No header.
    Perplexity,
    /// `ratelimit-{remaining,reset}`, and no limit.
    Replicate,
    /// Black Forest Labs: three bare names, resets in fractions of seconds since 1970.
    Bfl,
    /// The IETF's fields, draft 09.
    Cloudflare,
    /// OpenAI's names with windows; a reset tells when this request fits.
    DigitalOcean,
    /// GitHub's REST API.
    GitHub,
    /// The IETF's drafts.
    Ietf,
    /// `x-ratelimit-{limit,remaining,reset}`, as many gateways write them.
    Bare,
    /// Servers of one's own, which send nothing: vLLM, `SGLang`, TGI.
    SelfHosted,
    /// Each response is read as what it looks like.
    Auto,
    /// Learned from configuration.
    Taught(Taught),
}

/// A name that is no dialect's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("dialect {0:?}: expected one of: {names}", names = Dialect::ALL.map(Dialect::as_str).join(", "))]
pub struct DialectError(String);

impl Dialect {
    /// All dialects that need no teaching.
    pub const ALL: [Self; 30] = [
        Self::OpenAi,
        Self::Azure,
        Self::Anthropic,
        Self::Gemini,
        Self::Bedrock,
        Self::Groq,
        Self::Mistral,
        Self::Together,
        Self::Fireworks,
        Self::Cerebras,
        Self::OpenRouter,
        Self::Xai,
        Self::Cohere,
        Self::DeepSeek,
        Self::GitHubModels,
        Self::HuggingFace,
        Self::Nebius,
        Self::Databricks,
        Self::SambaNova,
        Self::Nvidia,
        Self::Perplexity,
        Self::Replicate,
        Self::Bfl,
        Self::Cloudflare,
        Self::DigitalOcean,
        Self::GitHub,
        Self::Ietf,
        Self::Bare,
        Self::SelfHosted,
        Self::Auto,
    ];

    /// The dialect's name in configuration and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::OpenAi => "openai",
            Self::Azure => "azure",
            Self::Anthropic => "anthropic",
            Self::Gemini => "gemini",
            Self::Bedrock => "bedrock",
            Self::Groq => "groq",
            Self::Mistral => "mistral",
            Self::Together => "together",
            Self::Fireworks => "fireworks",
            Self::Cerebras => "cerebras",
            Self::OpenRouter => "openrouter",
            Self::Xai => "xai",
            Self::Cohere => "cohere",
            Self::DeepSeek => "deepseek",
            Self::GitHubModels => "github-models",
            Self::HuggingFace => "huggingface",
            Self::Nebius => "nebius",
            Self::Databricks => "databricks",
            Self::SambaNova => "sambanova",
            Self::Nvidia => "nvidia",
            Self::Perplexity => "perplexity",
            Self::Replicate => "replicate",
            Self::Bfl => "bfl",
            Self::Cloudflare => "cloudflare",
            Self::DigitalOcean => "digitalocean",
            Self::GitHub => "github",
            Self::Ietf => "ietf",
            Self::Bare => "bare",
            Self::SelfHosted => "self-hosted",
            Self::Auto => "auto",
            Self::Taught(taught) => taught.name(),
        }
    }
}

impl fmt::Display for Dialect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Dialect {
    type Err = DialectError;

    fn from_str(text: &str) -> Result<Self, DialectError> {
        let found = Self::ALL.into_iter().find(|dialect| dialect.as_str() == text);
        found.ok_or_else(|| DialectError(text.chars().take(64).collect()))
    }
}

impl TryFrom<String> for Dialect {
    type Error = DialectError;

    fn try_from(text: String) -> Result<Self, DialectError> {
        text.parse()
    }
}

impl From<Dialect> for String {
    fn from(dialect: Dialect) -> Self {
        dialect.as_str().to_owned()
    }
}
