//! What a dialect's words mean: the columns of the table in `table`, which the law, the reflexes and the readers go by.
//! Nothing else asks for a dialect's name.

use std::time::Duration;

use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};

use crate::clock::UnixMillis;
use crate::quota::{Meter, Unit, Window};

/// Request bytes per estimated LLM token.
pub const BYTES_PER_TOKEN: u64 = 4;

/// How a provider's bucket fills.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refill {
    /// Limit ÷ window per second, all the time.
    Continuous,
    /// All at once, when the next window begins.
    FixedWindow,
}

/// What a reset tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResetMeaning {
    /// The time until the bucket is full: never a time to wait, but, with continuous refill, a finer measure of the level
    /// than remaining is.
    ToFull,
    /// The time until the next window.
    ToNextWindow,
    /// When to come again; says nothing of the level.
    WhenToRetry,
    /// There is none.
    Untold,
}

/// What remaining counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RemainingCounts {
    /// This request too.
    This,
    /// What was known a little earlier: this request may not be in it.
    Lately,
    /// Nothing exact: it moves both ways between requests.
    About,
}

/// What one limit applies to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LimitOf {
    /// A model, or a family of models, within an account.
    Model,
    /// All of an account.
    Account,
    /// A deployment, or a server of one's own.
    Deployment,
}

/// What LLM tokens a provider's meter counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenCharge {
    /// The estimate made when the request came, [`BYTES_PER_TOKEN`]; real usage corrects nothing.
    Estimate,
    /// The input, and all the output that the request allows, when it comes; real usage when the answer ends.
    Corrected,
}

/// How far a wait that a refusal asks for can be relied on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ToldWait {
    /// It is the time until the request fits.
    Fits,
    /// It may be too short: at least the time until an empty bucket holds the request.
    AtLeastPhysical,
}

/// One row of the table.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Semantics {
    /// How buckets fill.
    pub refill: Refill,
    /// What a reset tells.
    pub reset: ResetMeaning,
    /// What remaining counts.
    pub remaining: RemainingCounts,
    /// Remaining counts LLM tokens in multiples of this, and requests one by one.
    pub token_grain: f64,
    /// Reset is within this of the truth.
    pub reset_grain: Duration,
    /// What a response's limits may count over, shortest first, for each unit it speaks about.
    pub windows: &'static [Window],
    /// The window when a response does not tell: the one nearly all limits count over.
    pub default_window: Window,
    /// The same for requests, which some count by the day.
    pub default_request_window: Window,
    /// What one limit applies to.
    pub limit_of: LimitOf,
    /// What limits too, and stands in no header.
    pub hidden: &'static [Meter],
    /// What the tokens meter counts.
    pub token_charge: TokenCharge,
    /// How far a told wait can be relied on.
    pub told_wait: ToldWait,
    /// Longer waits are not meant: some write 86,400 s for a limit per minute.
    pub wait_max: Duration,
    /// By which clock a day's limit begins anew, as a POSIX time zone, where no reset tells it.
    pub day_ends: Option<&'static str>,
}

impl Semantics {
    /// The window of a unit when a response does not tell.
    #[must_use]
    pub const fn default_window(&self, unit: Unit) -> Window {
        match unit {
            Unit::Requests => self.default_request_window,
            Unit::Tokens | Unit::InputTokens | Unit::OutputTokens => self.default_window,
        }
    }

    /// Remaining is a multiple of this, in units.
    #[must_use]
    pub const fn remaining_grain(&self, unit: Unit) -> f64 {
        match unit {
            Unit::Requests => 1.0,
            Unit::Tokens | Unit::InputTokens | Unit::OutputTokens => self.token_grain,
        }
    }

    /// How much of a day's limit's time is left, where the provider's own clock ends it.
    pub(crate) fn day_left(&self, at: UnixMillis) -> Option<Duration> {
        let at = Timestamp::from_millisecond(i64::try_from(at.0).ok()?).ok()?;
        let here = at.to_zoned_datetime(TimeZone::posix(self.day_ends?).ok()?);
        let end = here.checked_add(1.day()).ok()?.start_of_day().ok()?;
        Duration::try_from(end.timestamp().duration_since(at)).ok()
    }

    /// How far off the level of a reading may be, in units. Whole units are no error: the bucket was charged in them. A
    /// coarser remaining is rounded to the nearest multiple.
    #[must_use]
    pub const fn level_slack(&self, unit: Unit) -> f64 {
        let grain = self.remaining_grain(unit);
        if grain > 1.0 { grain / 2.0 } else { 0.0 }
    }
}
