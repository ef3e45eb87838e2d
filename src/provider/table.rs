//! The table of dialects: a row each, of names, forms and [`Semantics`]. Counts are of recorded responses.

use std::time::Duration;

use super::dialect::Dialect;
use super::lines::{Family, Listed, Order, Other, Part, Prefix, Slot, Subject};
use super::semantics::{LimitOf, Refill, RemainingCounts, ResetMeaning, Semantics, TokenCharge, ToldWait};
use super::value::{Number, ResetForm};
use crate::observation::ThrottleKind;
use crate::quota::{Meter, Unit, Window};

/// How a dialect's resets are written.
#[derive(Debug, Clone, Copy)]
pub(super) enum Resets {
    Form(ResetForm),
    /// Milliseconds or seconds under one name: whichever fits.
    Azure,
}

/// A bucket that a dialect writes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Written {
    /// What its names have beside the part, as they are read: `tokens-minute`.
    pub(super) words: &'static str,
    pub(super) parts: &'static [Part],
}

/// One dialect.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) semantics: Semantics,
    pub(super) families: &'static [Family],
    pub(super) listed: &'static [Listed],
    /// The buckets that it writes today, in words of the first family. What it does not write so, it writes by listed names.
    pub(super) written: &'static [Written],
    /// Whether the IETF's fields are read too; then those are written.
    pub(super) ietf: bool,
    pub(super) number: Number,
    pub(super) resets: Resets,
    /// Limits from here on mean that there is none.
    pub(super) unlimited_from: f64,
    /// Headers that are about limits and hold nothing that a meter has: known, and left. A trailing `*` is any ending.
    pub(super) noted: &'static [&'static str],
    /// Statuses whose body tells more of the ending than the head does.
    pub(super) body_statuses: &'static [u16],
    /// What a refusal is for that tells nothing of it.
    pub(super) untold: ThrottleKind,
    /// A status besides 429 and the overloads that may refuse for a limit.
    pub(super) refuses_by: Option<u16>,
}

/// A wait of more than a day is no limit's.
pub(super) const DAY: Duration = Duration::from_secs(86_400);
pub(super) const SECOND: Duration = Duration::from_secs(1);

const fn meter(unit: Unit, window: Window) -> Meter {
    Meter { unit, window }
}

const RPS: Meter = meter(Unit::Requests, Window::Second);
const RPM: Meter = Meter::REQUESTS_PER_MINUTE;
const TPM: Meter = Meter::TOKENS_PER_MINUTE;
const RPD: Meter = meter(Unit::Requests, Window::Day);
const TPD: Meter = meter(Unit::Tokens, Window::Day);
const ITPM: Meter = meter(Unit::InputTokens, Window::Minute);
const OTPM: Meter = meter(Unit::OutputTokens, Window::Minute);

/// Continuous refill, everything told exactly.
pub(super) const CONTINUOUS: Semantics = Semantics {
    refill: Refill::Continuous,
    reset: ResetMeaning::ToFull,
    remaining: RemainingCounts::This,
    token_grain: 1.0,
    reset_grain: Duration::from_millis(1),
    windows: &[Window::Minute, Window::Day, Window::Month],
    default_window: Window::Minute,
    default_request_window: Window::Minute,
    limit_of: LimitOf::Model,
    hidden: &[],
    token_charge: TokenCharge::Estimate,
    told_wait: ToldWait::Fits,
    wait_max: super::duration::SPAN_MAX,
    day_ends: None,
};

/// Windows that are filled as they begin.
const FIXED: Semantics = Semantics {
    refill: Refill::FixedWindow,
    reset: ResetMeaning::ToNextWindow,
    reset_grain: SECOND,
    windows: &[Window::Minute, Window::Hour, Window::Day, Window::Month],
    limit_of: LimitOf::Account,
    wait_max: DAY,
    ..CONTINUOUS
};

/// No header at all: what is limited is known from documents, or not.
const SILENT: Semantics = Semantics { reset: ResetMeaning::Untold, wait_max: DAY, ..CONTINUOUS };

/// Nothing told but by status and body.
pub(super) const PLAIN: Row = Row {
    semantics: SILENT,
    families: &[],
    listed: &[],
    written: &[],
    ietf: false,
    number: Number::Whole,
    resets: Resets::Form(ResetForm::DeltaSeconds),
    unlimited_from: f64::INFINITY,
    noted: &[],
    body_statuses: &[429, 503, 529],
    untold: ThrottleKind::Unknown,
    refuses_by: None,
};

/// `x-ratelimit-limit-requests`.
const OPENAI_NAMES: Family = Family { prefix: Prefix::RateLimit, order: Order::PartFirst, bare: None };
/// `x-ratelimit-limit`, and with a unit or a window too.
const BARE_NAMES: Family =
    Family { prefix: Prefix::RateLimit, order: Order::PartFirst, bare: Some(Subject::Unit(Unit::Requests)) };

const ALL_THREE: &[Part] = &[Part::Limit, Part::Remaining, Part::Reset];
const WITHOUT_RESET: &[Part] = &[Part::Limit, Part::Remaining];
const WITH_PERIOD: &[Part] = &[Part::Limit, Part::Remaining, Part::Reset, Part::Period];

const fn written(words: &'static str, parts: &'static [Part]) -> Written {
    Written { words, parts }
}

static BY_UNIT_ALONE: [Written; 2] = [written("requests", ALL_THREE), written("tokens", ALL_THREE)];
static BARE_ALONE: [Written; 1] = [written("", ALL_THREE)];

/// 25,509 of 25,523 request readings and 24,436 of 24,502 token readings, recorded 2023–2026, have
/// `(limit - remaining - 1) / limit × window - 1 ms ≤ reset ≤ (limit - remaining) / limit × window + 1 ms`:
/// continuous refill, remaining rounded down, reset to the ms. 627 count a day, 3 (free tier) 30 days, all others
/// a minute. Limits may be enforced over shorter windows (documented: 60 a minute as 1 a second).
static OPENAI: Row = Row {
    semantics: Semantics { hidden: &[RPS], ..CONTINUOUS },
    families: &[OPENAI_NAMES],
    written: &BY_UNIT_ALONE,
    listed: &BY_UNIT,
    resets: Resets::Form(ResetForm::GoDuration),
    noted: &["openai-*"],
    ..PLAIN
};

/// Limits under the unit's name alone, as some gateways write them beside OpenAI's.
static BY_UNIT: [Listed; 2] = [
    listed("x-ratelimit-requests", Unit::Requests, None, Part::Limit),
    listed("x-ratelimit-tokens", Unit::Tokens, None, Part::Limit),
];

const fn listed(name: &'static str, unit: Unit, window: Option<Window>, part: Part) -> Listed {
    Listed { name, slot: Slot { subject: Subject::Unit(unit), window, part } }
}

/// 106 resets of spring 2026 count ms, 103 later ones whole seconds rounded down. A spent token bucket says reset 0,
/// retry-after 1 and retry-after-ms 0: obeyed, the next request meets the same empty minute. "86400 seconds" stands in
/// bodies for limits per minute. Requests are enforced over 1 or 10 s too (documented).
static AZURE: Row = Row {
    semantics: Semantics {
        windows: &[Window::Minute],
        limit_of: LimitOf::Deployment,
        hidden: &[RPS],
        told_wait: ToldWait::AtLeastPhysical,
        wait_max: Duration::from_secs(60),
        reset_grain: SECOND,
        ..CONTINUOUS
    },
    families: &[OPENAI_NAMES],
    written: &[written("requests", WITH_PERIOD), written("tokens", WITH_PERIOD)],
    resets: Resets::Azure,
    noted: &["x-ratelimit-abusepenalty-active", "x-ms-*"],
    ..PLAIN
};

/// Azure's headers; waits may be of a day. The advertised limits are not the binding ones (reported).
static GITHUB_MODELS: Row = Row {
    semantics: Semantics { hidden: &[RPM, RPD], told_wait: ToldWait::Fits, wait_max: DAY, ..AZURE_SEMANTICS },
    families: &[OPENAI_NAMES],
    written: &[written("requests", WITH_PERIOD), written("tokens", WITH_PERIOD)],
    resets: Resets::Azure,
    noted: &["x-ratelimit-abusepenalty-active", "x-ms-*"],
    ..PLAIN
};
const AZURE_SEMANTICS: Semantics =
    Semantics { windows: &[Window::Minute], limit_of: LimitOf::Model, reset_grain: SECOND, ..CONTINUOUS };

/// Continuous refill (documented). Each of 18,036 recorded token values is a multiple of 1,000; requests are exact. A
/// reset is an instant in whole seconds, dated by when the request was admitted, and `Date` by when the answer began:
/// it is no measure of the level. `tokens` is not independent: in all but one of 5,972 recordings it is the sum of input
/// and output; but it shows a workspace's own limit where that is the narrower. Not read: `anthropic-ratelimit-unified-*`,
/// of subscriptions.
static ANTHROPIC: Row = Row {
    semantics: Semantics {
        token_grain: 1_000.0,
        reset_grain: SECOND,
        windows: &[Window::Minute],
        token_charge: TokenCharge::Corrected,
        ..CONTINUOUS
    },
    families: &[Family { prefix: Prefix::Anthropic, order: Order::SubjectFirst, bare: None }],
    written: &[
        written("requests", ALL_THREE),
        written("tokens", ALL_THREE),
        written("input-tokens", ALL_THREE),
        written("output-tokens", ALL_THREE),
    ],
    listed: &PRIORITY,
    resets: Resets::Form(ResetForm::Rfc3339),
    noted: &["anthropic-ratelimit-unified-*", "anthropic-fast-*"],
    body_statuses: &[429, 500, 503, 529],
    ..PLAIN
};

/// The bucket of another service tier.
static PRIORITY: [Listed; 6] = [
    other("anthropic-priority-input-tokens-limit", Other::PriorityInputTokens, Part::Limit),
    other("anthropic-priority-input-tokens-remaining", Other::PriorityInputTokens, Part::Remaining),
    other("anthropic-priority-input-tokens-reset", Other::PriorityInputTokens, Part::Reset),
    other("anthropic-priority-output-tokens-limit", Other::PriorityOutputTokens, Part::Limit),
    other("anthropic-priority-output-tokens-remaining", Other::PriorityOutputTokens, Part::Remaining),
    other("anthropic-priority-output-tokens-reset", Other::PriorityOutputTokens, Part::Reset),
];

const fn other(name: &'static str, what: Other, part: Part) -> Listed {
    Listed { name, slot: Slot { subject: Subject::Other(what), window: None, part } }
}

/// All is in the body of a 429, in 2,603 and 423 recordings nothing is in a header. Days end at midnight in California.
static GEMINI: Row = Row {
    semantics: Semantics { hidden: &[RPM, ITPM, RPD], day_ends: Some("PST8PDT,M3.2.0,M11.1.0"), ..SILENT },
    ..PLAIN
};

/// Exception names only, in 907 recordings; 429 and 503 both throttle. The output is charged ahead (documented).
static BEDROCK: Row = Row {
    semantics: Semantics { hidden: &[RPM, TPM], token_charge: TokenCharge::Corrected, ..SILENT },
    noted: &["x-amzn-*"],
    ..PLAIN
};

/// Requests by the day and tokens by the minute, in 1,357 of 1,357 recordings each. What else limits stands in bodies.
static GROQ: Row = Row {
    semantics: Semantics {
        windows: &[Window::Minute, Window::Day],
        default_request_window: Window::Day,
        hidden: &[RPM, TPD],
        ..CONTINUOUS
    },
    families: &[OPENAI_NAMES],
    written: &BY_UNIT_ALONE,
    resets: Resets::Form(ResetForm::GoDuration),
    noted: &["x-groq-*"],
    body_statuses: &[429, 498, 503],
    refuses_by: Some(498),
    ..PLAIN
};

/// The window stands in the name; no reset since 2025, and never a retry-after (22 of 22). Counters are approximate:
/// remaining rises within one minute in 37 % of neighbours.
static MISTRAL: Row = Row {
    semantics: Semantics {
        reset: ResetMeaning::Untold,
        remaining: RemainingCounts::About,
        // Of requests that no header speaks of: 1 a second, in all 20 refusals that were recorded.
        default_request_window: Window::Second,
        hidden: &[RPS],
        token_charge: TokenCharge::Corrected,
        wait_max: DAY,
        ..CONTINUOUS
    },
    families: &[
        OPENAI_NAMES,
        Family {
            prefix: Prefix::Other("x-ratelimitbysize-"),
            order: Order::PartFirst,
            bare: Some(Subject::Unit(Unit::Tokens)),
        },
    ],
    written: &[
        written("req-minute", WITHOUT_RESET),
        written("req-10-second", WITHOUT_RESET),
        written("tokens-minute", WITHOUT_RESET),
        written("tokens-5-minute", WITHOUT_RESET),
        written("tokens-month", WITHOUT_RESET),
    ],
    listed: &BY_SIZE,
    noted: &["ratelimitbysize-query-cost", "x-ratelimit-*query-cost", "x-max-retry-attempts-reached"],
    ..PLAIN
};

/// 2024's names.
static BY_SIZE: [Listed; 3] = [
    listed("ratelimitbysize-limit", Unit::Tokens, Some(Window::Minute), Part::Limit),
    listed("ratelimitbysize-remaining", Unit::Tokens, Some(Window::Minute), Part::Remaining),
    listed("ratelimitbysize-reset", Unit::Tokens, Some(Window::Minute), Part::Reset),
];

/// Per second. Remaining is above the limit in 1,167 of 1,575: what is stored is limit × reset, and bursts. A
/// retry-after of 2 s stands on each success. A token limit of 0 is not told.
static TOGETHER: Row = Row {
    semantics: Semantics {
        reset: ResetMeaning::WhenToRetry,
        remaining: RemainingCounts::About,
        windows: &[Window::Second],
        default_window: Window::Second,
        default_request_window: Window::Second,
        reset_grain: SECOND,
        wait_max: DAY,
        ..CONTINUOUS
    },
    families: &[
        BARE_NAMES,
        Family {
            prefix: Prefix::Other("x-tokenlimit-"),
            order: Order::PartFirst,
            bare: Some(Subject::Unit(Unit::Tokens)),
        },
    ],
    written: &[written("", ALL_THREE), written("tokens", WITHOUT_RESET)],
    listed: &DYNAMIC,
    number: Number::Fraction,
    noted: &["x-ratelimit"],
    ..PLAIN
};

/// The rates in force just now; a 429 is above them, a 503 at or below them (documented).
static DYNAMIC: [Listed; 6] = [
    other("x-ratelimit-limit-dynamic", Other::DynamicRequests, Part::Limit),
    other("x-ratelimit-remaining-dynamic", Other::DynamicRequests, Part::Remaining),
    other("x-ratelimit-limit-tokens-dynamic", Other::DynamicTokens, Part::Limit),
    other("x-ratelimit-remaining-tokens-dynamic", Other::DynamicTokens, Part::Remaining),
    other("x-tokenlimit-limit-dynamic", Other::DynamicTokens, Part::Limit),
    other("x-tokenlimit-remaining-dynamic", Other::DynamicTokens, Part::Remaining),
];

/// Limits per second that grow and shrink with use (documented).
static FIREWORKS: Row = Row {
    semantics: Semantics {
        reset: ResetMeaning::Untold,
        windows: &[Window::Second],
        default_window: Window::Second,
        default_request_window: Window::Second,
        wait_max: DAY,
        ..CONTINUOUS
    },
    families: &[OPENAI_NAMES],
    written: &[
        written("requests", WITHOUT_RESET),
        written("tokens-prompt", WITHOUT_RESET),
        written("tokens-generated", WITHOUT_RESET),
    ],
    number: Number::Fraction,
    noted: &["x-ratelimit-over-limit", "fireworks-*"],
    ..PLAIN
};

/// Fixed windows: 860 of 897 resets end on a whole minute or at midnight UTC. Counters lag in 31 %. Tokens are charged by
/// an estimate that has the output in it (documented).
static CEREBRAS: Row = Row {
    semantics: Semantics { remaining: RemainingCounts::Lately, token_charge: TokenCharge::Corrected, ..FIXED },
    families: &[OPENAI_NAMES],
    written: &[
        written("requests-minute", ALL_THREE),
        written("requests-hour", ALL_THREE),
        written("requests-day", ALL_THREE),
        written("tokens-minute", ALL_THREE),
        written("tokens-hour", ALL_THREE),
        written("tokens-day", ALL_THREE),
    ],
    number: Number::Fraction,
    ..PLAIN
};

/// Nothing on a success; on its own refusals the next minute or day, in ms since 1970 (38 of 38).
static OPENROUTER: Row = Row {
    semantics: Semantics { windows: &[Window::Minute, Window::Day], ..FIXED },
    families: &[BARE_NAMES],
    written: &BARE_ALONE,
    resets: Resets::Form(ResetForm::EpochMillis),
    ..PLAIN
};

/// Never a reset. Counters lag in 73 %. The largest integers mean "no limit" (57 of 460).
static XAI: Row = Row {
    semantics: Semantics {
        reset: ResetMeaning::Untold,
        remaining: RemainingCounts::Lately,
        hidden: &[RPS],
        wait_max: DAY,
        ..CONTINUOUS
    },
    families: &[OPENAI_NAMES],
    written: &[written("requests", WITHOUT_RESET), written("tokens", WITHOUT_RESET)],
    ..PLAIN
};

/// Calls per minute and month with trial keys, nothing with others; in 2023 the three bare names.
static COHERE: Row = Row {
    semantics: Semantics { refill: Refill::FixedWindow, hidden: &[RPM], ..FIXED },
    families: &[BARE_NAMES],
    listed: &TRIAL,
    resets: Resets::Form(ResetForm::BySize),
    noted: &["num_tokens", "num_chars", "x-api-warning"],
    ..PLAIN
};

static TRIAL: [Listed; 3] = [
    listed("x-endpoint-monthly-call-limit", Unit::Requests, Some(Window::Month), Part::Limit),
    listed("x-trial-endpoint-call-limit", Unit::Requests, Some(Window::Minute), Part::Limit),
    listed("x-trial-endpoint-call-remaining", Unit::Requests, Some(Window::Minute), Part::Remaining),
];

/// The account's calls at a time are limited, and nothing tells of it (344 recordings).
static DEEPSEEK: Row =
    Row { semantics: Semantics { limit_of: LimitOf::Account, ..SILENT }, untold: ThrottleKind::Concurrency, ..PLAIN };

/// Hub and router: the IETF's fields, windows of five minutes. The router passes upstream's headers on as they are.
static HUGGING_FACE: Row = Row {
    semantics: FIXED,
    families: &[Family { prefix: Prefix::RateLimit, ..BARE_NAMES }],
    ietf: true,
    noted: &["x-error-message"],
    ..PLAIN
};

/// OpenAI's names with resets in whole seconds, and a rate that is scaled every 15 minutes (131). 1e10 is "not told".
/// Counters lag: full after a request in 32 of 85.
static NEBIUS: Row = Row {
    semantics: Semantics {
        remaining: RemainingCounts::Lately,
        reset_grain: SECOND,
        windows: &[Window::Minute],
        wait_max: DAY,
        ..CONTINUOUS
    },
    families: &[OPENAI_NAMES],
    written: &BY_UNIT_ALONE,
    resets: Resets::Form(ResetForm::GoDuration),
    unlimited_from: 1e10,
    noted: &["x-ratelimit-dynamic-*", "x-ratelimit-over-limit"],
    ..PLAIN
};

/// Input and output tokens by the minute, queries by the hour; output is charged ahead (documented). No header in 20.
static DATABRICKS: Row = Row {
    semantics: Semantics {
        hidden: &[ITPM, OTPM, meter(Unit::Requests, Window::Hour)],
        token_charge: TokenCharge::Corrected,
        ..SILENT
    },
    ..PLAIN
};

/// Requests by the minute and day, tokens by the day; resets in seconds since 1970 (documented, not recorded).
static SAMBANOVA: Row = Row {
    semantics: FIXED,
    families: &[OPENAI_NAMES],
    written: &[written("requests", ALL_THREE), written("requests-day", ALL_THREE), written("tokens-day", ALL_THREE)],
    resets: Resets::Form(ResetForm::BySize),
    number: Number::Fraction,
    ..PLAIN
};

/// Nothing; about 40 a minute, recovered after 62 s (reported).
static NVIDIA: Row = Row { semantics: Semantics { hidden: &[RPM], ..SILENT }, ..PLAIN };

/// Nothing in 245; a leaky bucket per key (documented).
static PERPLEXITY: Row = Row { semantics: Semantics { hidden: &[RPM], limit_of: LimitOf::Account, ..SILENT }, ..PLAIN };

/// Remaining and reset, and no limit (253): 600 a minute to post, 3,000 to get (documented).
static REPLICATE: Row = Row {
    semantics: Semantics {
        reset: ResetMeaning::WhenToRetry,
        reset_grain: SECOND,
        limit_of: LimitOf::Account,
        wait_max: DAY,
        ..CONTINUOUS
    },
    families: &[Family { prefix: Prefix::Other("ratelimit-"), ..BARE_NAMES }],
    written: &[written("", &[Part::Remaining, Part::Reset])],
    ..PLAIN
};

/// Three bare names, and a retry-after of 0 or 1 on each success (364).
static BARE: Row = Row {
    semantics: FIXED,
    families: &[BARE_NAMES, Family { prefix: Prefix::Other("x-rate-limit-"), ..BARE_NAMES }],
    written: &BARE_ALONE,
    number: Number::Fraction,
    resets: Resets::Form(ResetForm::BySize),
    ..PLAIN
};

/// A window that ends at an hour's end; a 403 refuses too, when nothing remains.
static GITHUB: Row = Row {
    semantics: Semantics { default_window: Window::Hour, default_request_window: Window::Hour, ..FIXED },
    families: &[BARE_NAMES],
    written: &BARE_ALONE,
    resets: Resets::Form(ResetForm::EpochSeconds),
    noted: &["x-ratelimit-used", "x-ratelimit-resource"],
    refuses_by: Some(403),
    ..PLAIN
};

/// The reset is when a request of this size fits (documented).
static DIGITALOCEAN: Row = Row {
    semantics: Semantics { reset: ResetMeaning::WhenToRetry, reset_grain: SECOND, wait_max: DAY, ..CONTINUOUS },
    families: &[OPENAI_NAMES],
    written: &[
        written("requests", ALL_THREE),
        written("tokens-per-minute", ALL_THREE),
        written("tokens-per-day", ALL_THREE),
    ],
    resets: Resets::Form(ResetForm::BySize),
    ..PLAIN
};

/// The drafts' own three fields, dictionary or list; servers that write them often add Kong's names.
static IETF: Row = Row {
    semantics: FIXED,
    families: &[BARE_NAMES, Family { prefix: Prefix::Other("x-rate-limit-"), ..BARE_NAMES }],
    ietf: true,
    resets: Resets::Form(ResetForm::BySize),
    ..PLAIN
};

/// vLLM, `SGLang`, TGI, Triton, llama.cpp, Ollama: a status, and how long it took.
static SELF_HOSTED: Row = Row { semantics: Semantics { limit_of: LimitOf::Deployment, ..SILENT }, ..PLAIN };

/// The row of a dialect.
pub(super) fn row(dialect: Dialect) -> &'static Row {
    match dialect {
        Dialect::OpenAi => &OPENAI,
        Dialect::Azure => &AZURE,
        Dialect::Anthropic => &ANTHROPIC,
        Dialect::Gemini => &GEMINI,
        Dialect::Bedrock => &BEDROCK,
        Dialect::Groq => &GROQ,
        Dialect::Mistral => &MISTRAL,
        Dialect::Together => &TOGETHER,
        Dialect::Fireworks => &FIREWORKS,
        Dialect::Cerebras => &CEREBRAS,
        Dialect::OpenRouter => &OPENROUTER,
        Dialect::Xai => &XAI,
        Dialect::Cohere => &COHERE,
        Dialect::DeepSeek => &DEEPSEEK,
        Dialect::GitHubModels => &GITHUB_MODELS,
        Dialect::HuggingFace => &HUGGING_FACE,
        Dialect::Nebius => &NEBIUS,
        Dialect::Databricks => &DATABRICKS,
        Dialect::SambaNova => &SAMBANOVA,
        Dialect::Nvidia => &NVIDIA,
        Dialect::Perplexity => &PERPLEXITY,
        Dialect::Replicate => &REPLICATE,
        Dialect::Bfl | Dialect::Bare => &BARE,
        Dialect::GitHub => &GITHUB,
        Dialect::DigitalOcean => &DIGITALOCEAN,
        Dialect::Cloudflare | Dialect::Ietf => &IETF,
        Dialect::SelfHosted | Dialect::Auto => &SELF_HOSTED,
        Dialect::Taught(taught) => taught.row(),
    }
}
