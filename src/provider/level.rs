//! Which window a limit counts over, and how full its bucket is, from limit, remaining and reset.
//!
//! With continuous refill `reset = (limit - level) / limit × window`, and remaining is the level rounded down. So the
//! three numbers together tell the window, and reset tells the level to a fraction of a unit, also below zero.

use std::time::Duration;

use super::semantics::{Refill, Semantics};
use crate::quota::{Unit, Window};

/// How far off a window may be, besides rounding, and still be meant.
const WINDOW_TOLERANCE: f64 = 0.1;
/// A bucket is not overdrawn by more than this many times its limit (recorded: 1.05).
const OVERDRAFT_MAX: f64 = 2.0;

/// A meter's window and level.
pub(super) struct Place {
    pub(super) window: Window,
    pub(super) level: f64,
    /// The reset, unless it contradicts the rest.
    pub(super) reset: Option<Duration>,
}

/// Places a meter; a reset that fits no window of the dialect is left out, and the level is then what remains.
pub(super) fn place(semantics: &Semantics, unit: Unit, limit: f64, remaining: f64, reset: Option<Duration>) -> Place {
    let unknown = Place { window: semantics.default_window, level: remaining, reset: None };
    let Some(reset) = reset else { return unknown };
    match semantics.refill {
        Refill::FixedWindow => return Place { reset: Some(reset), ..unknown },
        Refill::Continuous if remaining >= limit => {
            return Place { reset: Some(reset).filter(Duration::is_zero), ..unknown };
        }
        Refill::Continuous => {}
    }
    let grain = semantics.remaining_grain(unit);
    let Some(window) = window(semantics, grain, limit, remaining, reset) else { return unknown };
    let fine = limit - reset.as_secs_f64() * limit / window.seconds();
    let top = (remaining + grain).min(limit);
    let level = if remaining == 0.0 { fine.min(top) } else { fine.clamp(remaining, top) };
    Place { window, level, reset: Some(reset) }
}

fn window(semantics: &Semantics, grain: f64, limit: f64, remaining: f64, reset: Duration) -> Option<Window> {
    // "1m0s" with nearly all left: a fixed window, of one organisation in autumn 2025. Tells nothing of the level.
    if reset.as_secs_f64() == semantics.default_window.seconds() && remaining > limit / 2.0 {
        return None;
    }
    let spent = limit - remaining;
    let (reset, reset_grain) = (reset.as_secs_f64(), semantics.reset_grain.as_secs_f64());
    // Remaining is rounded down, so a unit less may be spent; but one is: the request itself.
    let longest = (reset + reset_grain) * limit / (spent - grain).max(1.0);
    // An empty bucket may be overdrawn, and the window shorter for it.
    let most_spent = if remaining == 0.0 { spent * OVERDRAFT_MAX } else { spent };
    let shortest = (reset - reset_grain).max(0.0) * limit / most_spent;
    let seen = reset * limit / spent;
    let fits = |window: &&Window| (shortest..=longest).contains(&window.seconds());
    let close = |window: &&Window| (seen / window.seconds() - 1.0).abs() <= WINDOW_TOLERANCE;
    semantics.windows.iter().find(fits).or_else(|| semantics.windows.iter().find(close)).copied()
}
