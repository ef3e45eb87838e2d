//! Which dialect a response is written in, by its headers and, for errors, its body; and which of its headers no rule
//! takes.
//!
//! The host does not count: routers and gateways pass on the headers of whoever answered them.

use serde_json::Value;

use super::dialect::Dialect;
use super::head::Head;
use super::ietf;
use super::lines::Single;
use super::missing::{Missing, Reason};
use super::table::{self, Row};
use super::value::{Number, number};
use crate::clock::MonoTime;
use crate::quota::{Meter, Unit, Window};

/// What was seen among a head's names. A flag each: which dialects share which names is no hierarchy.
#[derive(Debug, Default)]
#[allow(clippy::struct_excessive_bools, reason = "a set of independent marks")]
struct Marks<'a> {
    openai: bool,
    anthropic: bool,
    azure: bool,
    github_models: bool,
    amazon: bool,
    nebius: bool,
    fireworks: bool,
    mistral: bool,
    together: bool,
    cohere: bool,
    by_period: bool,
    requests_by_period: bool,
    per_period: bool,
    github: bool,
    fixed_window: bool,
    structured: bool,
    over_limit: bool,
    images: bool,
    /// `x-ratelimit-limit-tokens`, `-remaining-…`.
    unit_limit: bool,
    unit_remaining: bool,
    unit_reset: Option<&'a str>,
    /// `x-ratelimit-limit`, `-remaining`, `-reset`.
    bare: bool,
    bare_reset: Option<&'a str>,
    /// `ratelimit-limit`, `-remaining`, `-reset`.
    plain_limit: bool,
    plain_remaining: bool,
    plain_reset: bool,
}

impl Dialect {
    /// The dialect that a response looks like; `None` when it says nothing that any dialect says.
    #[must_use]
    pub fn detect(head: &Head<'_>, body: Option<&[u8]>) -> Option<Self> {
        let mut marks = Marks::default();
        head.headers.for_each(&mut |name, value| marks.add(name, std::str::from_utf8(value).unwrap_or_default()));
        match marks.dialect() {
            // Who only uses OpenAI's names is told by what they count: requests by the day, and tokens by the minute.
            Some(Self::Groq) => {
                let shown = Self::Groq.read(head, MonoTime::default()).readings;
                let has = |unit, window| shown.iter().any(|reading| reading.meter == Meter { unit, window });
                let full = shown.iter().all(|reading| reading.remaining == reading.limit);
                let groq = has(Unit::Requests, Window::Day) && !has(Unit::Tokens, Window::Day) && !full;
                Some(if groq && !marks.images { Self::Groq } else { Self::OpenAi })
            }
            known => known.or_else(|| body.and_then(by_body)),
        }
    }
}

impl<'a> Marks<'a> {
    fn add(&mut self, name: &str, value: &'a str) {
        match name {
            "ratelimit" | "ratelimit-policy" => {
                self.structured = true;
                self.fixed_window |= value.starts_with("\"fixed window\"");
            }
            "ratelimit-limit" => self.plain_limit = true,
            "ratelimit-remaining" => self.plain_remaining = true,
            "ratelimit-reset" => self.plain_reset = true,
            "x-ratelimit" | "x-inference-time" => self.together = true,
            "x-ratelimit-timeremaining" => self.github_models = true,
            "x-ratelimit-type" if value.starts_with("User") => self.github_models = true,
            "x-ratelimit-type" | "x-ratelimit-key" | "x-ratelimit-abusepenalty-active" | "x-ms-error-code" => {
                self.azure = true;
            }
            "x-rate-limit-reset-tokens" => self.azure = true,
            "policy-id" => self.azure |= value.starts_with("DeploymentRatelimit"),
            "x-ratelimit-used" | "x-ratelimit-resource" => self.github = true,
            "x-ratelimit-over-limit" => self.over_limit = true,
            "x-endpoint-monthly-call-limit" => self.cohere = true,
            _ => self.add_by_prefix(name, value),
        }
    }

    fn add_by_prefix(&mut self, name: &str, value: &'a str) {
        let begins = |prefix: &str| name.starts_with(prefix);
        self.openai |= begins("openai-");
        self.anthropic |= begins("anthropic-ratelimit-") || begins("anthropic-priority-");
        self.amazon |= begins("x-amzn-errortype") || begins("x-amzn-bedrock-");
        self.fireworks |= begins("fireworks-");
        self.cohere |= begins("x-trial-endpoint-");
        self.together |= begins("x-tokenlimit-");
        self.mistral |= begins("ratelimitbysize") || begins("x-ratelimitbysize");
        let Some(rest) = name.strip_prefix("x-ratelimit-") else { return };
        if rest.starts_with("dynamic-") {
            self.nebius = true;
        } else if rest.starts_with("renewalperiod-") {
            self.azure = true;
        } else if rest.ends_with("query-cost") {
            self.mistral = true;
        } else if matches!(rest, "requests" | "tokens") {
            // A gateway's way of writing OpenAI's limits.
            self.openai = true;
        } else {
            self.add_part(rest, value);
        }
    }

    fn add_part(&mut self, rest: &str, value: &'a str) {
        let (part, words) = rest.split_once('-').unwrap_or((rest, ""));
        match (part, words) {
            ("limit" | "remaining", "requests" | "tokens") => {
                self.unit_limit |= part == "limit";
                self.unit_remaining |= part == "remaining";
            }
            ("reset", "requests" | "tokens") => self.unit_reset = Some(value),
            ("limit" | "remaining", "") => self.bare = true,
            ("reset", "") => {
                self.bare = true;
                self.bare_reset = Some(value);
            }
            (_, "dynamic") => self.together = true,
            (_, "input-images") => self.images = true,
            (_, "tokens-prompt" | "tokens-generated" | "tokens-cache-adjusted-prompt") => self.fireworks = true,
            (_, "audio-seconds-minute" | "ocr-pages-minute" | "input-characters-minute") => self.mistral = true,
            _ if words.contains("-per-") => self.per_period = true,
            _ if words.starts_with("req-") || words == "tokens-5-minute" || words == "tokens-month" => {
                self.mistral = true;
            }
            _ if ["-minute", "-hour", "-day"].iter().any(|window| words.ends_with(window)) => {
                self.by_period = true;
                // Mistral shows the tokens of a minute alone, when they refused; and never a reset.
                self.requests_by_period |= words.starts_with("requests") || part == "reset";
            }
            _ => {}
        }
    }

    /// The first rule that holds. Marks of one provider stand before names that many share.
    fn dialect(&self) -> Option<Dialect> {
        let by_unit = self.unit_limit || self.unit_remaining || self.unit_reset.is_some();
        let digits = |text: &str| number(text, Number::Fraction).ok();
        Some(match () {
            () if self.anthropic => Dialect::Anthropic,
            () if self.nebius => Dialect::Nebius,
            () if self.github_models => Dialect::GitHubModels,
            () if self.azure => Dialect::Azure,
            () if self.amazon => Dialect::Bedrock,
            () if self.fireworks => Dialect::Fireworks,
            () if self.mistral => Dialect::Mistral,
            () if self.cohere => Dialect::Cohere,
            () if self.openai && (by_unit || !self.bare) => Dialect::OpenAi,
            () if self.together || (self.bare && (self.unit_limit || self.unit_remaining)) => Dialect::Together,
            () if self.per_period => Dialect::DigitalOcean,
            () if self.by_period && by_unit => Dialect::SambaNova,
            () if self.by_period && !self.plain_limit && !self.requests_by_period => Dialect::Mistral,
            () if self.by_period && !self.plain_limit => Dialect::Cerebras,
            () if by_unit => self.of_openais_names(),
            () if self.over_limit => Dialect::Fireworks,
            () if self.fixed_window => Dialect::HuggingFace,
            () if self.structured || self.plain_limit => Dialect::Ietf,
            () if self.plain_remaining && self.plain_reset => Dialect::Replicate,
            () if self.plain_remaining || self.plain_reset => Dialect::Ietf,
            () if self.github => Dialect::GitHub,
            () if self.bare => match self.bare_reset {
                Some(reset) if digits(reset).is_some_and(|n| n >= 1e12) => Dialect::OpenRouter,
                Some(reset) if reset.contains('.') && digits(reset).is_some_and(|n| n >= 1e9) => Dialect::Bfl,
                _ => Dialect::Bare,
            },
            () => return None,
        })
    }

    /// `x-ratelimit-{limit,remaining,reset}-{requests,tokens}` and no mark of anyone: the resets tell.
    fn of_openais_names(&self) -> Dialect {
        match self.unit_reset {
            Some(reset) => match number(reset, Number::Fraction) {
                Ok(n) if n >= 1e9 => Dialect::SambaNova,
                Ok(_) => Dialect::Azure,
                // OpenAI names itself in other headers; who only uses its names is Groq, or reads the same.
                Err(_) => Dialect::Groq,
            },
            None if self.unit_limit => Dialect::Xai,
            None => Dialect::Azure,
        }
    }
}

/// The dialect that an error's body looks like.
pub(super) fn by_body(body: &[u8]) -> Option<Dialect> {
    let parsed = serde_json::from_slice::<Value>(body).ok()?;
    let root = if let Value::Array(items) = &parsed { items.first()? } else { &parsed };
    let error = &root["error"];
    let text = |value: &Value| value.as_str().map(str::to_owned).unwrap_or_default();
    Some(match () {
        () if root["type"] == "error" && error["type"].is_string() => Dialect::Anthropic,
        () if error["status"].is_string() && error["code"].is_number() => Dialect::Gemini,
        () if error["metadata"].is_object() || error["availability"].is_object() => Dialect::OpenRouter,
        () if text(&error["message"]).starts_with("Rate limit exceeded: ") && error["code"].is_number() => {
            Dialect::OpenRouter
        }
        () if root["__type"].is_string() => Dialect::Bedrock,
        () if root["error_type"].is_string() => Dialect::SelfHosted,
        () if root["object"] == "error" => Dialect::Mistral,
        () if root["error_code"] == "REQUEST_LIMIT_EXCEEDED" => Dialect::Databricks,
        // Written in full, with nulls for what is not there.
        () if error["type"].is_string() && (!error["code"].is_null() || error.get("param").is_some()) => {
            Dialect::OpenAi
        }
        () => return None,
    })
}

/// What of a head the rules of its dialect take, and what not.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Unread {
    /// Of another dialect, and so of somebody between: a gateway's own limiter.
    pub foreign: Vec<Missing>,
    /// They look like limits, and no dialect knows them.
    pub unknown: Vec<String>,
    /// The others that look like limits, or that the dialect lists: rules take them.
    pub taken: Vec<String>,
}

/// What begins the names of APISIX's own limiter, which end with the name of one of its instances.
const APISIX: &str = "x-ai-ratelimit-";

/// Which of a head's headers no rule takes, when it is read by this dialect.
#[must_use]
pub fn unread(dialect: Dialect, head: &Head<'_>) -> Unread {
    let mut unread = Unread::default();
    let own = table::row(dialect);
    head.headers.for_each(&mut |name, _| {
        // A dialect's own list, above all a taught one's, has names that look like anything.
        let listed = own.listed.iter().any(|listed| listed.name == name);
        if !listed && !looks_like_a_limit(name) {
            return;
        }
        if takes(own, name) {
            unread.taken.push(name.to_owned());
            return;
        }
        // LiteLLM puts this before the headers that it passes on.
        let passed_on = name.strip_prefix("llm_provider-").unwrap_or(name);
        let foreign =
            name.starts_with(APISIX) || Dialect::ALL.into_iter().any(|other| takes(table::row(other), passed_on));
        if foreign {
            unread.foreign.push(Missing { header: name.into(), reason: Reason::Foreign });
        } else {
            unread.unknown.push(name.to_owned());
        }
    });
    unread
}

/// Whether a name speaks of limits.
fn looks_like_a_limit(name: &str) -> bool {
    ["ratelimit", "rate-limit", "rate_limit", "tokenlimit", "retry-after", "-call-limit", "anthropic-priority-"]
        .iter()
        .any(|word| name.contains(word))
}

/// Whether some rule of the row takes a header of this name.
fn takes(row: &Row, name: &str) -> bool {
    let noted = |pattern: &&str| match pattern.split_once('*') {
        Some((begin, end)) => name.len() >= begin.len() + end.len() && name.starts_with(begin) && name.ends_with(end),
        None => name == *pattern,
    };
    Single::named(name).is_some()
        || row.families.iter().any(|family| family.slot(name).is_some())
        || row.listed.iter().any(|listed| listed.name == name)
        || (row.ietf && ietf::FIELDS.contains(&name))
        || row.noted.iter().any(noted)
}
