//! Whether the store that counts is asked: pure, `now` in.

use std::time::Duration;

use crate::clock::MonoTime;

/// Failures in a row after which it is not asked any more.
const FAILURES_MAX: u8 = 2;
/// How often it is hailed then.
const HAIL_EVERY: Duration = Duration::from_millis(250);
/// How long everybody tells what it owes before the store decides again: each hails it within [`HAIL_EVERY`] and half a second.
const TELL_FOR: Duration = Duration::from_secs(1);

/// How a member stands to the store that counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stance {
    /// It decides.
    Decides,
    /// It does not answer: requests go by the member's share.
    Away,
    /// It is back, and is told what went meanwhile; requests still go by the share.
    Told,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum State {
    #[default]
    Decides,
    Away {
        hailed_at: MonoTime,
    },
    Told {
        since: MonoTime,
    },
}

/// A circuit breaker.
#[derive(Debug, Default)]
pub struct Breaker {
    state: State,
    failures: u8,
}

impl Breaker {
    /// How it stands.
    #[must_use]
    pub fn stance(&self) -> Stance {
        match self.state {
            State::Decides => Stance::Decides,
            State::Away { .. } => Stance::Away,
            State::Told { .. } => Stance::Told,
        }
    }

    /// A question was answered.
    pub fn succeeded(&mut self) {
        if self.state == State::Decides {
            self.failures = 0;
        }
    }

    /// One was not. Says whether that was the one too many.
    pub fn failed(&mut self, now: MonoTime) -> bool {
        self.failures = self.failures.saturating_add(1);
        let was = self.stance();
        if self.failures >= FAILURES_MAX && was != Stance::Away {
            self.state = State::Away { hailed_at: now };
        }
        was == Stance::Decides && self.stance() == Stance::Away
    }

    /// Whether it is time to see if it is back.
    #[must_use]
    pub fn is_to_be_hailed(&self, now: MonoTime) -> bool {
        matches!(self.state, State::Away { hailed_at } if now.since(hailed_at) >= HAIL_EVERY)
    }

    /// It answered a hail.
    pub fn hailed(&mut self, now: MonoTime) {
        if matches!(self.state, State::Away { .. }) {
            // One more failure, and it is away again.
            (self.state, self.failures) = (State::Told { since: now }, FAILURES_MAX - 1);
        }
    }

    /// It did not.
    pub fn not_hailed(&mut self, now: MonoTime) {
        if matches!(self.state, State::Away { .. }) {
            self.state = State::Away { hailed_at: now };
        }
    }

    /// It decides again once everybody has had the time to tell.
    pub fn move_on(&mut self, now: MonoTime) {
        if matches!(self.state, State::Told { since } if now.since(since) >= TELL_FOR) {
            (self.state, self.failures) = (State::Decides, 0);
        }
    }
}
