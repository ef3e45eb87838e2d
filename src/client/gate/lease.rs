//! Leases: a busy gate takes more units than its request needs, and goes by them for a moment without asking again.
//!
//! *Bound.* Leased units are counted where members count together before they are used, so nothing is admitted that was not
//! counted; but what was counted in one moment may be used in a later one, by up to a quarter of a second, and not after the window
//! in which it was counted. All members' leases together are at most a twentieth of what the tally lets go at once: each takes no
//! more than that divided by the members. So in any span a bucket's members send at most burst + rate × span + burst ÷ 20, and in a
//! fixed window, beyond its limit, at most what was leased before, as far as clocks run apart meanwhile. Where that is less than
//! four requests, nothing is leased: small limits stay exact.

use std::time::Duration;

use super::tallying::Counted;
use crate::clock::MonoTime;
use crate::limiter::Claimed;

/// How long leased units are kept.
const KEPT: Duration = Duration::from_millis(250);
/// What all members may have leased, of what goes at once.
const PART: f64 = 0.05;
/// Fewer requests than this are not worth a lease.
const REQUESTS_MIN: f64 = 4.0;
/// Over which span it is counted how busy the gate is; a lease is for a quarter of it.
const SPAN: Duration = Duration::from_millis(100);
const OF_SPAN: f64 = 0.25;

/// What a gate has leased.
#[derive(Debug, Default)]
pub(super) struct Lease {
    /// What is left.
    units: Vec<Leased>,
    until: MonoTime,
    /// When the span began in which requests are counted, how many there were, and in the span before.
    began: MonoTime,
    asked: u32,
    asked_before: u32,
    /// More is being asked for: by one request at a time, or leases would add up.
    asks_for_more: bool,
    /// What is to be given back.
    pub(super) returned: Vec<Returned>,
}

#[derive(Debug, Clone, Copy)]
struct Leased {
    claimed: Claimed,
    marks: [u64; 2],
    units: u64,
    most: u64,
}

/// Units to be given back where members count together.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Returned {
    /// As it was counted.
    pub claimed: Claimed,
    /// In which windows.
    pub marks: [u64; 2],
    /// How many.
    pub units: u64,
}

impl Lease {
    /// Counts a request.
    fn on_asked(&mut self, now: MonoTime) {
        let spans = now.since(self.began).as_secs_f64() / SPAN.as_secs_f64();
        if spans >= 1.0 {
            self.asked_before = if spans < 2.0 { self.asked } else { 0 };
            (self.began, self.asked) = (now, 0);
        }
        self.asked = self.asked.saturating_add(1);
    }

    /// Takes what a request needs, if all of it is here.
    pub(super) fn take(&mut self, needs: &[Counted], now: MonoTime) -> bool {
        self.on_asked(now);
        if self.units.is_empty() {
            return false;
        }
        if now >= self.until {
            self.give_up();
            return false;
        }
        let has = |need: &Counted| {
            need.claimed.units == 0
                || self.units.iter().any(|leased| leased.is_for(&need.claimed) && leased.units >= need.claimed.units)
        };
        let there = needs.iter().all(has);
        if there {
            for need in needs {
                if let Some(leased) = self.units.iter_mut().find(|leased| leased.is_for(&need.claimed)) {
                    leased.units -= need.claimed.units;
                }
            }
        }
        there
    }

    /// How much more to take with a request that needs this.
    pub(super) fn ask_for_more(&mut self, needs: &mut [Counted]) {
        if self.asks_for_more {
            return;
        }
        let busy = f64::from(self.asked_before.max(self.asked));
        let mut requests = (busy * OF_SPAN).floor();
        for Counted { claimed, .. } in needs.iter().filter(|need| need.claimed.units > 0) {
            requests = requests.min((most(claimed) / precise(claimed.units)).floor());
        }
        if requests >= REQUESTS_MIN {
            self.asks_for_more = true;
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count")]
            let requests = requests as u64;
            for need in needs {
                need.extra = need.claimed.units.saturating_mul(requests);
            }
        }
    }

    /// Whoever asked was answered, or was not.
    pub(super) fn answered(&mut self, needs: &[Counted]) {
        if needs.iter().any(|need| need.extra > 0) {
            self.asks_for_more = false;
        }
    }

    /// They were taken.
    pub(super) fn taken(
        &mut self,
        needs: &[Counted],
        marks: &[[u64; 2]],
        window_left: Option<Duration>,
        now: MonoTime,
    ) {
        self.give_up();
        self.until = now + window_left.map_or(KEPT, |left| left.min(KEPT));
        let leased = needs.iter().zip(marks).filter(|(need, _)| need.extra > 0);
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count of units")]
        let leased = leased.map(|(Counted { claimed, extra, .. }, marks)| Leased {
            claimed: *claimed,
            marks: *marks,
            units: *extra,
            most: most(claimed) as u64,
        });
        self.units = leased.collect();
    }

    /// A request that went by a lease used less: what is left of it is there for the next ones.
    pub(super) fn put_back(&mut self, claimed: &Claimed, units: u64, now: MonoTime) {
        let lives = now < self.until;
        if let Some(leased) = self.units.iter_mut().find(|leased| lives && leased.is_for(claimed)) {
            let kept = units.min(leased.most.saturating_sub(leased.units));
            leased.units += kept;
            if units > kept {
                let (claimed, marks) = (leased.claimed, leased.marks);
                self.give_back(Returned { claimed, marks, units: units - kept });
            }
        } else {
            // A bucket takes it at any time; a window that may be over does not.
            self.give_back(Returned { claimed: *claimed, marks: [0; 2], units });
        }
    }

    /// Gives back what is left of it, if its time is over.
    pub(super) fn end(&mut self, now: MonoTime) {
        if !self.units.is_empty() && now >= self.until {
            self.give_up();
        }
    }

    /// Gives back what is left of it.
    pub(super) fn give_up(&mut self) {
        for Leased { claimed, marks, units, .. } in std::mem::take(&mut self.units) {
            self.give_back(Returned { claimed, marks, units });
        }
    }

    fn give_back(&mut self, returned: Returned) {
        if returned.units == 0 {
            return;
        }
        let same =
            |known: &&mut Returned| known.claimed.meter == returned.claimed.meter && known.marks == returned.marks;
        match self.returned.iter_mut().find(same) {
            Some(known) => known.units += returned.units,
            None => self.returned.push(returned),
        }
    }
}

impl Leased {
    fn is_for(&self, claimed: &Claimed) -> bool {
        self.claimed.meter == claimed.meter
    }
}

/// What this member may lease of a meter, in units.
fn most(claimed: &Claimed) -> f64 {
    (PART * claimed.tenant.at_once().min(claimed.all.at_once()) / f64::from(claimed.members.max(1))).floor()
}

#[allow(clippy::cast_precision_loss, reason = "units stay far below 2^53")]
fn precise(units: u64) -> f64 {
    units as f64
}
