//! The newest reading of each meter, and whether it is to be believed: one reporter does not steer a pool.
//!
//! A limit more than twice, or less than half, of the last accepted one takes three readings of at least two members, where
//! at least two have told of the meter lately. A member that is alone with its traffic is believed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::clock::MonoTime;
use crate::quota::Meter;

/// A limit off by more than this factor is doubted.
const FAR: f64 = 2.0;
/// So many readings end the doubt,
const READINGS_MIN: u32 = 3;
/// of so many members.
const MEMBERS_MIN: usize = 2;
/// Who has sent no request for this long is not asked.
const LATELY: Duration = Duration::from_secs(10);
/// Members tell of a reading until they have a newer one, and how long it was on its way differs: so much later it is another.
const SAME: Duration = Duration::from_millis(100);

/// A reading, with the time by the leader's clock.
#[derive(Debug, Clone, Copy)]
pub(super) struct NewestReading {
    pub sent_at: MonoTime,
    pub limit: f64,
    pub level: f64,
    /// The provider's reset, as it was told then.
    pub reset: Option<Duration>,
}

/// A limit that is not believed yet.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DoubtedLimit {
    /// Of which meter.
    pub meter: Meter,
    /// What was told, in units per window.
    pub told: f64,
    /// What holds meanwhile.
    pub accepted: f64,
}

/// What members have told of one meter.
#[derive(Debug)]
struct Told {
    accepted: NewestReading,
    /// When each member's newest was sent.
    tellers: BTreeMap<String, MonoTime>,
    doubt: Option<Doubt>,
}

/// A limit that is far from the accepted one.
#[derive(Debug)]
struct Doubt {
    newest: NewestReading,
    readings: u32,
    members: BTreeSet<String>,
}

/// What members have told of a pool's meters.
#[derive(Debug, Default)]
pub(super) struct Readings(BTreeMap<Meter, Told>);

impl Readings {
    /// The newest accepted one of a meter.
    pub(super) fn newest(&self, meter: Meter) -> Option<&NewestReading> {
        self.0.get(&meter).map(|told| &told.accepted)
    }

    /// Takes a member's newest reading of a meter.
    ///
    /// # Errors
    /// [`DoubtedLimit`]: it is not believed, for now at least.
    pub(super) fn take(&mut self, meter: Meter, member: &str, reading: NewestReading) -> Result<(), DoubtedLimit> {
        let told =
            self.0.entry(meter).or_insert_with(|| Told { accepted: reading, tellers: BTreeMap::new(), doubt: None });
        let sent_at = reading.sent_at;
        told.tellers.insert(member.to_owned(), sent_at);
        told.tellers.retain(|_, at| sent_at.since(*at) <= LATELY);
        if sent_at <= told.accepted.sent_at {
            return Ok(());
        }
        let alone = told.tellers.len() < MEMBERS_MIN;
        if !alone && is_far(reading.limit, told.accepted.limit) && !told.is_confirmed(member, reading) {
            return Err(DoubtedLimit { meter, told: reading.limit, accepted: told.accepted.limit });
        }
        told.accepted = reading;
        told.doubt = told.doubt.take().filter(|doubt| is_far(doubt.newest.limit, reading.limit));
        Ok(())
    }
}

impl Told {
    /// Whether enough members have told of about this limit by now.
    fn is_confirmed(&mut self, member: &str, reading: NewestReading) -> bool {
        let same = |doubt: &Doubt| {
            reading.sent_at.since(doubt.newest.sent_at) <= LATELY && !is_far(doubt.newest.limit, reading.limit)
        };
        let known = self.doubt.take().filter(same);
        let doubt =
            self.doubt.insert(known.unwrap_or(Doubt { newest: reading, readings: 0, members: BTreeSet::new() }));
        let unheard = doubt.members.insert(member.to_owned());
        if unheard || reading.sent_at > doubt.newest.sent_at + SAME {
            doubt.readings += 1;
            if reading.sent_at > doubt.newest.sent_at {
                doubt.newest = reading;
            }
        }
        doubt.readings >= READINGS_MIN && doubt.members.len() >= MEMBERS_MIN
    }
}

fn is_far(a: f64, b: f64) -> bool {
    a > FAR * b || b > FAR * a
}
