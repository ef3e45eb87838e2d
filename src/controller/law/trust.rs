//! Whether headers are believed: 429s that are more than chance while the level leaves room contradict them.
//!
//! The headers are wrong then, or have fallen silent just as the limit moved. They are not believed for a while, or until they
//! tell another limit: that is news, believed until it is contradicted too. Headers that lie low need no distrust, the observer
//! makes up for them.
//! Source: CONTROL §2.5.

use std::time::Duration;

use super::observer::is_news;
use crate::clock::MonoTime;

/// Constants of [`Trust`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TrustParams {
    /// How long contradicted headers are not believed, 1 s or more. Shorter runs into the same wall again sooner.
    pub distrust: Duration,
    /// A level above this many units, and above one second of refill, leaves room, 0 or more. Smaller takes the last 429s of an
    /// empty bucket for a contradiction.
    pub room_units: f64,
}

impl Default for TrustParams {
    fn default() -> Self {
        Self { distrust: Duration::from_secs(30), room_units: 3.0 }
    }
}

/// Headers that were contradicted.
#[derive(Debug, Clone, Copy)]
struct Distrust {
    until: MonoTime,
    limit_per_s: f64,
}

/// The trust in one meter's headers.
#[derive(Debug, Clone)]
pub struct Trust {
    params: TrustParams,
    /// [`ObserverParams::limit_step`](super::ObserverParams::limit_step).
    limit_step: f64,
    distrust: Option<Distrust>,
}

impl Trust {
    /// They are believed. A limit that moved by more than `limit_step`, a part of it, is another one.
    #[must_use]
    pub fn new(params: TrustParams, limit_step: f64) -> Self {
        Self { params, limit_step, distrust: None }
    }

    /// Goes on from an earlier leader's: they told this limit, and are not believed for so long yet.
    pub fn resume(&mut self, left: Duration, limit_per_s: f64, now: MonoTime) {
        self.distrust = Some(Distrust { until: now + left.min(self.params.distrust), limit_per_s });
    }

    /// For how long they are not believed yet; `None` when they are.
    #[must_use]
    pub fn left(&self, now: MonoTime) -> Option<Duration> {
        self.distrust.filter(|distrust| now < distrust.until).map(|distrust| distrust.until.since(now))
    }

    /// Whether they are believed, given a level that they tell, how far that may be off, and whether there is congestion.
    pub fn believes(&mut self, now: MonoTime, limit_per_s: f64, level: f64, blur: f64, congested: bool) -> bool {
        let room = level > self.params.room_units.max(limit_per_s) + blur;
        if room && congested {
            self.distrust = Some(Distrust { until: now + self.params.distrust, limit_per_s });
        }
        let step = self.limit_step;
        self.distrust = self.distrust.filter(|d| now < d.until && !is_news(d.limit_per_s, limit_per_s, step));
        self.distrust.is_none()
    }
}
