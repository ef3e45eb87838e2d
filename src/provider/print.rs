//! The other way round: what a dialect writes of its meters, by the names and forms that the table reads it by.
//!
//! A number is rounded as the dialect rounds it, so what is read again is the same within the dialect's grain. A meter
//! that the dialect has no words for is left out.

use std::time::Duration;

use super::Dialect;
use super::ietf;
use super::lines::{LIMIT_KEY, Part, Subject};
use super::semantics::{ResetMeaning, Semantics};
use super::table::{self, Resets, Row, Written};
use super::value::{Number, ResetForm, Rounding};
use crate::clock::UnixMillis;
use crate::quota::Meter;

/// What is to be told of one meter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shown {
    /// Which one.
    pub meter: Meter,
    /// The limit, in units per window.
    pub limit: f64,
    /// What is left, in units.
    pub remaining: f64,
    /// The time until what the dialect's resets mean: until it is full, or until the next window. `None` is "not set".
    pub reset: Option<Duration>,
}

impl Dialect {
    /// The headers by which this dialect tells what is shown, in an answer given `at` this time: names and values.
    ///
    /// Of two meters under one name the first is told.
    #[must_use]
    pub fn print(self, shown: &[Shown], at: UnixMillis) -> Vec<(String, String)> {
        let row = table::row(self);
        if row.ietf {
            return ietf::print(shown);
        }
        let mut lines: Vec<(String, String)> = Vec::new();
        for shown in shown {
            for (part, name) in row.names(shown.meter) {
                let value = row.value(part, shown, at);
                if let Some(value) = value.filter(|_| lines.iter().all(|(known, _)| *known != name)) {
                    lines.push((name, value));
                }
            }
        }
        if matches!(row.resets, Resets::Azure) && !lines.is_empty() {
            // Its resets count seconds since it writes this.
            lines.push((LIMIT_KEY.to_owned(), "0".to_owned()));
        }
        lines
    }
}

impl Row {
    /// The headers of a meter, each with what it tells.
    fn names(&self, meter: Meter) -> Vec<(Part, String)> {
        let family = self.families.first();
        let window_of = |written: &&Written| {
            let (subject, window) = family?.meant(written.words)?;
            (subject == Subject::Unit(meter.unit)).then_some(window)
        };
        let exact = self.written.iter().find(|written| window_of(written) == Some(Some(meter.window)));
        let written = exact.or_else(|| {
            let untold = |written: &&Written| window_of(written) == Some(None);
            self.written.iter().find(|written| untold(written) && self.tells_window(written, meter))
        });
        if let (Some(family), Some(written)) = (family, written) {
            return written.parts.iter().map(|part| (*part, family.name(*part, written.words))).collect();
        }
        let (subject, window) = (Subject::Unit(meter.unit), Some(meter.window));
        let listed = self.listed.iter().filter(|listed| (listed.slot.subject, listed.slot.window) == (subject, window));
        listed.map(|listed| (listed.slot.part, listed.name.to_owned())).collect()
    }

    /// Whether names that have no window can be meant to be of this meter's.
    fn tells_window(&self, written: &Written, meter: Meter) -> bool {
        let default = self.semantics.default_window(meter.unit);
        let by_reset = match self.semantics.reset {
            ResetMeaning::ToFull => !matches!(self.resets, Resets::Form(form) if form.is_instant()),
            // Of one that lasts longer than is usual, a reset can lie further ahead.
            ResetMeaning::ToNextWindow => meter.window.seconds() > default.seconds(),
            ResetMeaning::WhenToRetry | ResetMeaning::Untold => false,
        };
        meter.window == default
            || written.parts.contains(&Part::Period)
            || (by_reset && written.parts.contains(&Part::Reset) && self.semantics.windows.contains(&meter.window))
    }

    fn value(&self, part: Part, shown: &Shown, at: UnixMillis) -> Option<String> {
        let Semantics { reset_grain, .. } = self.semantics;
        match part {
            Part::Limit => Some(self.number(shown.limit)),
            Part::Remaining => {
                let grain = self.semantics.remaining_grain(shown.meter.unit);
                let left = shown.remaining.max(0.0);
                Some(self.number(if grain > 1.0 { (left / grain).round() * grain } else { left }))
            }
            Part::Reset => {
                let rounding = match self.semantics.reset {
                    ResetMeaning::ToFull => Rounding::Down,
                    // Who comes back by it must not come too early.
                    _ => Rounding::Up,
                };
                match self.resets {
                    Resets::Azure => shown.reset.map(|reset| reset.as_secs().to_string()),
                    Resets::Form(form) => match shown.reset {
                        Some(reset) => Some(form.write(reset, at, reset_grain, rounding)),
                        None if form == ResetForm::Rfc3339 => {
                            Some(form.write(Duration::ZERO, UnixMillis(0), reset_grain, rounding))
                        }
                        None => None,
                    },
                }
            }
            Part::Period => Some(format!("{:.0}", shown.meter.window.seconds())),
        }
    }

    fn number(&self, n: f64) -> String {
        match self.number {
            Number::Whole => format!("{:.0}", n.floor()),
            Number::Fraction => n.to_string(),
        }
    }
}
