//! A dialect that is taught: header names, units, windows and forms as data, for a provider that the table does not
//! know yet.
//!
//! It lives as long as the process, as the table does, so that a [`Dialect`](super::Dialect) stays a small copy: what is
//! taught is leaked, once for each dialect.

use std::cmp::Ordering;
use std::hash::{Hash, Hasher};
use std::time::Duration;

use super::lines::{Listed, Part, Single, Slot, Subject};
use super::semantics::{Refill, ResetMeaning, Semantics};
use super::table::{self, Resets, Row};
use super::value::{Number, ResetForm};
use crate::quota::Meter;

/// Longest name of a dialect or header, in bytes.
const NAME_BYTES_MAX: usize = 64;
/// Most meters of a dialect.
const METERS_MAX: usize = 16;

/// A taught dialect.
#[derive(Debug, Clone, Copy)]
pub struct Taught(&'static Lesson);

#[derive(Debug)]
struct Lesson {
    name: String,
    row: Row,
}

/// What a dialect is taught by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaughtParams {
    /// Its name: `[a-z0-9][a-z0-9._-]{0,63}`, and no other dialect's.
    pub name: String,
    /// How buckets fill. With it goes what a reset tells: the time to full, or to the next window.
    pub refill: Refill,
    /// How resets are written.
    pub reset_form: ResetForm,
    /// What stands in headers, 1–16 meters.
    pub meters: Vec<TaughtMeter>,
}

/// The headers of one meter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaughtMeter {
    /// Which meter.
    pub meter: Meter,
    /// The limit's header.
    pub limit: Option<String>,
    /// The header of what is left.
    pub remaining: Option<String>,
    /// The reset's header.
    pub reset: Option<String>,
}

/// Why a dialect cannot be taught so.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TaughtError {
    /// The name is no name, or another dialect's.
    #[error("dialect {0:?}: expected 1–64 of a–z, 0–9, '.', '_', '-', and not the name of a known dialect")]
    Name(String),
    /// No meter, too many, or one twice.
    #[error("dialect {0:?}: expected 1–{METERS_MAX} meters, each once")]
    Meters(String),
    /// A meter with no header.
    #[error("meter {0}: expected a header for limit or remaining")]
    NoHeader(Meter),
    /// What cannot be a header's name.
    #[error("header {0:?}: expected 1–{NAME_BYTES_MAX} of a–z, A–Z, 0–9 and !#$%&'*+-.^_`|~")]
    Header(String),
    /// What all dialects read already.
    #[error(
        "header {0:?}: expected one that tells a limit; this one is read for every dialect, as what it always means"
    )]
    Reserved(String),
    /// One header for two things.
    #[error("header {0:?}: expected it once")]
    Twice(String),
}

impl TaughtParams {
    /// Teaches the dialect.
    ///
    /// # Errors
    /// [`TaughtError`] names what is wrong.
    pub fn teach(&self) -> Result<Taught, TaughtError> {
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let good = (1..=NAME_BYTES_MAX).contains(&self.name.len())
            && self.name.bytes().next().is_some_and(plain)
            && self.name.bytes().all(|b| plain(b) || b"._-".contains(&b));
        if !good || self.name.parse::<super::Dialect>().is_ok() {
            return Err(TaughtError::Name(self.name.chars().take(NAME_BYTES_MAX).collect()));
        }
        let twice = |n: usize| self.meters[..n].iter().any(|known| known.meter == self.meters[n].meter);
        if self.meters.is_empty() || self.meters.len() > METERS_MAX || (0..self.meters.len()).any(twice) {
            return Err(TaughtError::Meters(self.name.clone()));
        }
        let mut listed: Vec<(String, Slot)> = Vec::new();
        for of in &self.meters {
            if of.limit.is_none() && of.remaining.is_none() {
                return Err(TaughtError::NoHeader(of.meter));
            }
            for (name, part) in [(&of.limit, Part::Limit), (&of.remaining, Part::Remaining), (&of.reset, Part::Reset)] {
                let Some(name) = name else { continue };
                let name = header_name(name)?;
                if Single::named(&name).is_some() {
                    return Err(TaughtError::Reserved(name));
                }
                if listed.iter().any(|(known, _)| *known == name) {
                    return Err(TaughtError::Twice(name));
                }
                let slot = Slot { subject: Subject::Unit(of.meter.unit), window: Some(of.meter.window), part };
                listed.push((name, slot));
            }
        }
        let listed: Vec<Listed> =
            listed.into_iter().map(|(name, slot)| Listed { name: String::leak(name), slot }).collect();
        let row = Row {
            semantics: self.semantics(),
            listed: Box::leak(listed.into_boxed_slice()),
            number: Number::Fraction,
            resets: Resets::Form(self.reset_form),
            ..table::PLAIN
        };
        Ok(Taught(Box::leak(Box::new(Lesson { name: self.name.clone(), row }))))
    }

    fn semantics(&self) -> Semantics {
        let exact = matches!(self.reset_form, ResetForm::GoDuration | ResetForm::DeltaMillis);
        Semantics {
            refill: self.refill,
            reset: match self.refill {
                Refill::Continuous => ResetMeaning::ToFull,
                Refill::FixedWindow => ResetMeaning::ToNextWindow,
            },
            reset_grain: if exact { Duration::from_millis(1) } else { table::SECOND },
            // Each meter is told with its own.
            windows: &[],
            wait_max: table::DAY,
            ..table::CONTINUOUS
        }
    }
}

fn header_name(name: &str) -> Result<String, TaughtError> {
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if !(1..=NAME_BYTES_MAX).contains(&name.len()) || !name.bytes().all(token) {
        return Err(TaughtError::Header(name.chars().take(NAME_BYTES_MAX).collect()));
    }
    Ok(name.to_ascii_lowercase())
}

impl Taught {
    /// The dialect's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.0.name.as_str()
    }

    pub(super) const fn row(self) -> &'static Row {
        &self.0.row
    }
}

// Two lessons are two dialects, whatever they are called; names put them in order.

impl PartialEq for Taught {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self.0, other.0)
    }
}

impl Eq for Taught {}

impl Hash for Taught {
    fn hash<H: Hasher>(&self, state: &mut H) {
        std::ptr::hash(self.0, state);
    }
}

impl Ord for Taught {
    fn cmp(&self, other: &Self) -> Ordering {
        self.name().cmp(other.name()).then_with(|| std::ptr::from_ref(self.0).cmp(&std::ptr::from_ref(other.0)))
    }
}

impl PartialOrd for Taught {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
