//! What kind of answer a response is, as far as its head tells.

use super::kind_of;
use super::lines::{Lines, Single};
use super::table::Row;
use crate::observation::{Ending, MeterReading, ThrottleKind};
use crate::quota::{Meter, Unit, Window};

/// What kind of answer a response is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// The provider took the request.
    Ok,
    /// A limit of ours refused it.
    Throttled,
    /// The provider itself has too much to do.
    Overloaded,
    /// No credit, or no permission: more time helps as little as fewer requests.
    Account,
    /// This request alone is more than a limit: it can never be served.
    TooLarge,
    /// It broke: says nothing of limits.
    Failed,
    /// Of the caller's own making.
    Ignored,
}

impl Class {
    /// All classes.
    pub const ALL: [Self; 7] =
        [Self::Ok, Self::Throttled, Self::Overloaded, Self::Account, Self::TooLarge, Self::Failed, Self::Ignored];

    /// The class's name in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Throttled => "throttled",
            Self::Overloaded => "overloaded",
            Self::Account => "account",
            Self::TooLarge => "too_large",
            Self::Failed => "failed",
            Self::Ignored => "ignored",
        }
    }

    /// Whether a wait that such an answer asks for is meant.
    pub(super) const fn asks_to_wait(self) -> bool {
        matches!(self, Self::Throttled | Self::Overloaded)
    }

    const fn of_status(status: u16) -> Self {
        match status {
            200..=299 => Self::Ok,
            401..=403 => Self::Account,
            413 => Self::TooLarge,
            429 => Self::Throttled,
            503 | 529 => Self::Overloaded,
            408 | 500..=599 => Self::Failed,
            _ => Self::Ignored,
        }
    }
}

/// What a head says of its kind.
#[derive(Debug)]
pub(super) struct Verdict {
    pub(super) class: Class,
    pub(super) ending: Ending,
    pub(super) exhausted: Vec<Meter>,
}

pub(super) fn of_head(row: &Row, status: u16, lines: &Lines<'_>, readings: &[MeterReading]) -> Verdict {
    let spent = |reading: &&MeterReading| reading.level.is_some_and(|level| level < 1.0);
    let class = match lines.text(Single::ErrorType).and_then(exception) {
        Some(class) => class,
        None if row.refuses_by == Some(status) => match status {
            // Not known elsewhere: a tier that waits for room.
            498 => Class::Overloaded,
            _ if lines.single(Single::RetryAfter).is_some() || readings.iter().any(|r| spent(&r)) => Class::Throttled,
            _ => Class::of_status(status),
        },
        None => Class::of_status(status),
    };
    let mut exhausted = Vec::new();
    let ending = match class {
        Class::Ok => Ending::Succeeded,
        Class::Overloaded => Ending::Throttled(ThrottleKind::Overload),
        Class::Throttled => match named(lines, row, readings) {
            Some(Named::Concurrency) => Ending::Throttled(ThrottleKind::Concurrency),
            Some(Named::Meter(meter)) => {
                exhausted.push(meter);
                Ending::Throttled(kind_of(&exhausted))
            }
            None => {
                exhausted.extend(readings.iter().filter(spent).map(|reading| reading.meter));
                Ending::Throttled(if exhausted.is_empty() { row.untold } else { kind_of(&exhausted) })
            }
        },
        Class::Account | Class::TooLarge | Class::Failed | Class::Ignored => Ending::Ignored,
    };
    Verdict { class, ending, exhausted }
}

/// The name of one of AWS's exceptions, without the namespace before it and the URL after it:
/// `com.amazon.bedrock#ThrottlingException:http://…`.
pub(super) fn exception_name(text: &str) -> &str {
    let name = text.split(':').next().unwrap_or_default();
    name.rsplit('#').next().unwrap_or_default()
}

fn exception(text: &str) -> Option<Class> {
    Some(match exception_name(text) {
        "ThrottlingException" => Class::Throttled,
        "ServiceUnavailableException" | "ModelNotReadyException" => Class::Overloaded,
        "ServiceQuotaExceededException" | "AccessDeniedException" => Class::Account,
        "ModelTimeoutException" | "InternalServerException" => Class::Failed,
        _ => return None,
    })
}

enum Named {
    Concurrency,
    Meter(Meter),
}

/// Which limit refused, where a header of its own tells: Azure's `Tokens` or `Requests`, GitHub's `UserByModelByDay`.
fn named(lines: &Lines<'_>, row: &Row, readings: &[MeterReading]) -> Option<Named> {
    let text = lines.text(Single::LimitType).or_else(|| lines.text(Single::PolicyId))?;
    if text.contains("Concurrent") {
        return Some(Named::Concurrency);
    }
    // The head tells the window of a unit, where it shows that unit at all.
    let shown = |unit: Unit| {
        let reading = readings.iter().find(|reading| reading.meter.unit == unit);
        (unit, reading.map_or(row.semantics.default_window(unit), |reading| reading.meter.window))
    };
    let (unit, window) = match text {
        "Tokens" => shown(Unit::Tokens),
        "Requests" => shown(Unit::Requests),
        _ if text.ends_with("-Token") => shown(Unit::Tokens),
        _ if text.ends_with("-Call") => shown(Unit::Requests),
        _ if text.ends_with("ByMinute") => (Unit::Requests, Window::Minute),
        _ if text.ends_with("ByDay") => (Unit::Requests, Window::Day),
        _ => return None,
    };
    Some(Named::Meter(Meter { unit, window }))
}
