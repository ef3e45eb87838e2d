//! Which window a limit counts over, and how full its bucket is, from limit, remaining and reset.
//!
//! With continuous refill `reset = (limit - level) / limit × window`, and remaining is the level rounded down. So the
//! three numbers together tell the window, and reset tells the level to a fraction of a unit, also below zero.

use std::time::Duration;

use crate::quota::Window;

/// How far off a window may be, besides rounding, and still be meant.
const WINDOW_TOLERANCE: f64 = 0.1;
/// A bucket is not overdrawn by more than this many times its limit (recorded: 1.05).
const OVERDRAFT_MAX: f64 = 2.0;
/// A window that has just begun may last this much longer than a window: clocks and rounding.
const WINDOW_SLACK: Duration = Duration::from_secs(2);

/// What is known of a bucket before its numbers are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Frame<'a> {
    /// What it may count over, shortest first.
    pub(super) windows: &'a [Window],
    /// What it counts over when the numbers do not tell.
    pub(super) default: Window,
    /// Remaining is a multiple of this.
    pub(super) grain: f64,
    /// Reset is within this of the truth.
    pub(super) reset_grain: Duration,
}

/// A meter's window and level.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) window: Window,
    pub(super) level: f64,
    /// The reset, unless it contradicts the rest.
    pub(super) reset: Option<Duration>,
}

impl Frame<'_> {
    /// Of a bucket that refills all the time; a reset that fits no window is left out, and the level is then what remains.
    pub(super) fn continuous(&self, limit: f64, remaining: f64, reset: Option<Duration>) -> Place {
        let unknown = Place { window: self.default, level: remaining, reset: None };
        let Some(reset) = reset else { return unknown };
        if remaining >= limit {
            return Place { reset: Some(reset).filter(Duration::is_zero), ..unknown };
        }
        let Some(window) = self.window(limit, remaining, reset) else { return unknown };
        let fine = limit - reset.as_secs_f64() * limit / window.seconds();
        let top = (remaining + self.grain).min(limit);
        let level = if remaining == 0.0 { fine.min(top) } else { fine.clamp(remaining, top) };
        Place { window, level, reset: Some(reset) }
    }

    /// Of a bucket that is filled when a window begins: no window ends later than it lasts. A reset that lies further
    /// ahead than any of the windows is left out.
    pub(super) fn fixed(&self, remaining: f64, reset: Option<Duration>) -> Place {
        let lasts = |window: Window| Duration::try_from_secs_f64(window.seconds()).unwrap_or(Duration::MAX);
        let holds = |window: &Window| reset.is_none_or(|reset| reset <= lasts(*window) + WINDOW_SLACK);
        let longer = |window: &&Window| lasts(**window) >= lasts(self.default);
        let window = Some(self.default).filter(holds);
        let window = window.or_else(|| self.windows.iter().filter(longer).copied().find(holds));
        let reset = reset.filter(|_| window.is_some());
        Place { window: window.unwrap_or(self.default), level: remaining, reset }
    }

    fn window(&self, limit: f64, remaining: f64, reset: Duration) -> Option<Window> {
        // "1m0s" with nearly all left: a fixed window, of one organisation in autumn 2025. Tells nothing of the level.
        if reset.as_secs_f64() == self.default.seconds() && remaining > limit / 2.0 {
            return None;
        }
        let spent = limit - remaining;
        let (reset, reset_grain) = (reset.as_secs_f64(), self.reset_grain.as_secs_f64());
        // Remaining is rounded down, so a unit less may be spent: of the last one any part, when this request was refused.
        let longest = (reset + reset_grain) * limit / (spent - self.grain).max(0.0);
        // An empty bucket may be overdrawn, and the window shorter for it.
        let most_spent = if remaining == 0.0 { spent * OVERDRAFT_MAX } else { spent };
        let shortest = (reset - reset_grain).max(0.0) * limit / most_spent;
        let seen = reset * limit / spent;
        let fits = |window: &&Window| (shortest..=longest).contains(&window.seconds());
        let close = |window: &&Window| (seen / window.seconds() - 1.0).abs() <= WINDOW_TOLERANCE;
        self.windows.iter().find(fits).or_else(|| self.windows.iter().find(close)).copied()
    }
}
