//! Whom the emulator can play: what each counts, and how it tells it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::provider::{Dialect, Refill, Semantics, TokenCharge};
use crate::quota::{Meter, Unit, Window};

/// A provider that the emulator can play.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Emulated {
    /// OpenAI: requests and tokens by the minute.
    #[serde(rename = "openai")]
    OpenAi,
    /// Anthropic: requests, input and output tokens by the minute.
    #[serde(rename = "anthropic")]
    Anthropic,
    /// Azure OpenAI: as OpenAI, with waits that are too short.
    #[serde(rename = "azure")]
    Azure,
    /// Groq: requests by the day and tokens by the minute, and requests by the minute of which no header tells.
    #[serde(rename = "groq")]
    Groq,
    /// Gemini: requests and input tokens by the minute, requests by the day; told in the bodies of refusals alone.
    #[serde(rename = "gemini")]
    Gemini,
    /// Windows that refill at their end: requests by the minute and the day, tokens by the day. `SambaNova`'s headers.
    #[serde(rename = "fixed-window")]
    FixedWindow,
}

/// A name that is nobody's whom the emulator can play.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("dialect {0:?}: the emulator speaks {names}", names = Emulated::ALL.map(Emulated::as_str).join(", "))]
pub struct NotEmulated(String);

const RPM: Meter = Meter::REQUESTS_PER_MINUTE;
const TPM: Meter = Meter::TOKENS_PER_MINUTE;
const ITPM: Meter = Meter { unit: Unit::InputTokens, window: Window::Minute };
const OTPM: Meter = Meter { unit: Unit::OutputTokens, window: Window::Minute };
const RPD: Meter = Meter { unit: Unit::Requests, window: Window::Day };
const TPD: Meter = Meter { unit: Unit::Tokens, window: Window::Day };

impl Emulated {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::OpenAi, Self::Anthropic, Self::Azure, Self::Groq, Self::Gemini, Self::FixedWindow];

    /// The name on the command line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::OpenAi => "openai",
            Self::Anthropic => "anthropic",
            Self::Azure => "azure",
            Self::Groq => "groq",
            Self::Gemini => "gemini",
            Self::FixedWindow => "fixed-window",
        }
    }

    /// How a client reads it.
    #[must_use]
    pub const fn dialect(self) -> Dialect {
        match self {
            Self::OpenAi => Dialect::OpenAi,
            Self::Anthropic => Dialect::Anthropic,
            Self::Azure => Dialect::Azure,
            Self::Groq => Dialect::Groq,
            Self::Gemini => Dialect::Gemini,
            Self::FixedWindow => Dialect::SambaNova,
        }
    }

    /// What its accounts count.
    #[must_use]
    pub const fn meters(self) -> &'static [Meter] {
        match self {
            Self::OpenAi | Self::Azure => &[RPM, TPM],
            Self::Anthropic => &[RPM, ITPM, OTPM],
            Self::Groq => &[RPM, RPD, TPM],
            Self::Gemini => &[RPM, RPD, ITPM],
            Self::FixedWindow => &[RPM, RPD, TPD],
        }
    }

    pub(super) fn semantics(self) -> &'static Semantics {
        self.dialect().semantics()
    }

    /// How the bucket of one of its meters fills.
    pub(super) fn refill(self, meter: Meter) -> Refill {
        let Semantics { refill, day_ends, .. } = self.semantics();
        if meter.window == Window::Day && day_ends.is_some() { Refill::FixedWindow } else { *refill }
    }

    /// Whether headers tell of one of its meters.
    pub(super) fn tells(self, meter: Meter) -> bool {
        !self.semantics().hidden.contains(&meter)
    }

    /// Whether it charges all the output that a request allows, and corrects that when the answer ends.
    pub(super) fn corrects_output(self) -> bool {
        self.semantics().token_charge == TokenCharge::Corrected
    }
}

impl fmt::Display for Emulated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Emulated {
    type Err = NotEmulated;

    fn from_str(text: &str) -> Result<Self, NotEmulated> {
        let found = Self::ALL.into_iter().find(|known| known.as_str() == text);
        found.ok_or_else(|| NotEmulated(text.chars().take(64).collect()))
    }
}
