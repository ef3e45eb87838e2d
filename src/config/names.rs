//! The names that a file's author chooses, and what was probably meant by a misspelt one.

use crate::controller;
use crate::quota::{Meter, PoolId, Unit, Window};

/// What providers' documents call the meters.
const ABBREVIATIONS: [(&str, Meter); 8] = [
    ("rps", Meter { unit: Unit::Requests, window: Window::Second }),
    ("rpm", Meter { unit: Unit::Requests, window: Window::Minute }),
    ("rpd", Meter { unit: Unit::Requests, window: Window::Day }),
    ("tpm", Meter { unit: Unit::Tokens, window: Window::Minute }),
    ("tpd", Meter { unit: Unit::Tokens, window: Window::Day }),
    ("itpm", Meter { unit: Unit::InputTokens, window: Window::Minute }),
    ("otpm", Meter { unit: Unit::OutputTokens, window: Window::Minute }),
    ("itpd", Meter { unit: Unit::InputTokens, window: Window::Day }),
];

const WINDOWS: [Window; 5] = [Window::Second, Window::Minute, Window::Hour, Window::Day, Window::Month];

/// Whose names the keys of a table are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Names {
    Pools,
    Tenants,
    Meters,
    Reporters,
    Queries,
}

impl Names {
    /// How messages write any one of them.
    pub(super) const fn placeholder(self) -> &'static str {
        match self {
            Self::Pools => "<id>",
            Self::Tenants | Self::Reporters | Self::Queries => "<name>",
            Self::Meters => "<meter>",
        }
    }

    /// One of them, as a key.
    pub(super) const fn example(self) -> &'static str {
        match self {
            Self::Pools => "openai-gpt4o",
            Self::Tenants => "acme",
            Self::Meters => "\"requests/minute\"",
            Self::Reporters => "checkout",
            Self::Queries => "waiting",
        }
    }

    /// A regular expression for editors; the code that reads the names is stricter where it counts bytes or seconds.
    pub(super) fn pattern(self) -> String {
        match self {
            Self::Pools => "^[a-z0-9][a-z0-9._-]{0,63}$".to_owned(),
            Self::Reporters | Self::Queries => "^[A-Za-z0-9._-]{1,64}$".to_owned(),
            Self::Tenants => "^[^\\u0000-\\u001f\\u007f-\\u009f]{1,128}$".to_owned(),
            Self::Meters => {
                let units = Unit::ALL.map(Unit::as_str).join("|");
                let written = WINDOWS.map(|window| Meter { unit: Unit::Requests, window }.to_string());
                let windows = written.each_ref().map(|meter| meter.trim_start_matches("requests/")).join("|");
                format!("^({units})/({windows}|[1-9][0-9]{{0,4}}s)$")
            }
        }
    }

    /// The good name that `name` was probably meant to be.
    pub(super) fn meant(self, name: &str) -> Option<String> {
        match self {
            Self::Pools => {
                let name: String = name.chars().map(|c| if c.is_whitespace() || c == '/' { '-' } else { c }).collect();
                name.to_ascii_lowercase().parse::<PoolId>().ok().map(String::from)
            }
            Self::Tenants | Self::Reporters | Self::Queries => None,
            Self::Meters => {
                let abbreviated = ABBREVIATIONS.into_iter().find(|(short, _)| name.eq_ignore_ascii_case(short));
                let all = || {
                    let of = |unit| WINDOWS.map(|window| Meter { unit, window }.to_string());
                    Unit::ALL.into_iter().flat_map(of).collect::<Vec<_>>()
                };
                let near = || nearest(name, all().iter().map(String::as_str)).map(str::to_owned);
                abbreviated.map(|(_, meter)| meter.to_string()).or_else(near)
            }
        }
    }
}

/// The known name nearest to a misspelt one, if it is near at all.
pub(super) fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    controller::nearest(name, known, 1).first().copied()
}
