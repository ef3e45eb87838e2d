//! What a member knows of one pool, and what it therefore enforces. Pure: records and `now` in, limits out.
//!
//! States: *bootstrap* (no grant yet), *active* (the pulse is fresh), *braking* (the pulse is older than 3 s: ×0.7 per
//! second with 429s, +1 %/s after 8 clean seconds, never above the last base; what thresholds add up to beyond the capacity ends
//! within 3 s more), *lapsed* (older than its `valid_for_ms`:
//! exponentially to the safe thresholds, τ 30 s).
//!
//! The order in which numbers are put on each other: the grant's base × the pulse's scale × `@capacity` → overrides
//! (once) → brake and lapse → this member's share. What an operator `set` is not braked and does not lapse. A member
//! without a valid share enforces `safe ÷ members` (`safe ÷ (members + 1)` if it never held one).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::heard::{Heard, MemberState};
use super::terms::{MeterTerms, Terms};
use crate::clock::{MonoTime, UnixMillis};
use crate::limiter::{Alignment, Counting, ENTRIES_MAX, Limits, MeterLimit, Together};
use crate::plan::{
    Action, Algorithm, Grant, Mode, OverrideBook, Pulse, Rate, RecordError, Share, Stamp, Target, Thresholds,
    capacity_factor, effective,
};
use crate::quota::{Grantee, Meter, Unit};

const BRAKE_EVERY_S: f64 = 1.0;
const BRAKE_PER_S: f64 = 0.7;
/// The brake never closes: with nothing sent, nothing would tell that the provider takes requests again.
const BRAKE_MIN: f64 = 0.05;
const RELEASE_PER_S: f64 = 0.01;
const CLEAN_BEFORE_RELEASE_S: f64 = 8.0;
/// One lost report is none to retune every tenant for, but so many in a row are.
const UNANSWERED_MAX: u8 = 2;
/// Ends of a window that are told no further apart than this are one: pulses travel.
const SAME_WINDOW_END: Duration = Duration::from_millis(500);

/// What a member keeps of a grant: a process may hold a hundred thousand.
#[derive(Debug, PartialEq)]
struct Granted {
    stamp: Stamp,
    members: u32,
    concurrency: Option<u32>,
    safe_concurrency: Option<u32>,
    meters: Box<[GrantedMeter]>,
}

#[derive(Debug, PartialEq)]
struct GrantedMeter {
    meter: Meter,
    rate: Rate,
    /// What part of it holds without a leader, 0–1.
    safe: f64,
    algorithm: Algorithm,
    /// The tenant has a ceiling there.
    bounded: bool,
}

impl From<Grant> for Granted {
    fn from(grant: Grant) -> Self {
        let Grant { stamp, members, thresholds, safe, algorithms, bounded, .. } = grant;
        let meters = thresholds.rates.iter().map(|(meter, rate)| {
            let kept = safe.rates.get(meter).filter(|_| rate.rate > 0.0);
            let safe = kept.map_or(0.0, |safe| (safe.rate / rate.rate).min(1.0));
            GrantedMeter {
                meter: *meter,
                rate: *rate,
                safe,
                algorithm: algorithms.get(meter).copied().unwrap_or_default(),
                bounded: bounded.contains(meter),
            }
        });
        let meters = meters.collect();
        Self { stamp, members, concurrency: thresholds.concurrency, safe_concurrency: safe.concurrency, meters }
    }
}

impl Granted {
    fn of(&self, meter: Meter) -> Option<&GrantedMeter> {
        self.meters.iter().find(|granted| granted.meter == meter)
    }

    /// What part of its threshold a meter keeps without a leader.
    fn safe_part(&self, meter: Meter) -> f64 {
        // Only an operator limits one that is not granted: nothing that the leader decided can lapse.
        self.of(meter).map_or(1.0, |granted| granted.safe)
    }

    fn algorithm(&self, meter: Meter) -> Algorithm {
        self.of(meter).map(|granted| granted.algorithm).unwrap_or_default()
    }
}

/// What a process enforced of a tenant when it last ran.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Remembered {
    /// Its own part.
    pub thresholds: Thresholds,
    /// The largest request of each meter that it would have admitted, which is no matter of its part.
    pub largest_request: BTreeMap<Meter, f64>,
}

/// How a record stands to what is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Order {
    /// Known already, or newer.
    Newer,
    /// Older, and not taken. A store never shows one after the newer one, unless it was restored from a backup.
    Older,
}

/// Whose limits may have changed since they were last asked for.
#[derive(Debug, Default, PartialEq)]
pub struct Changes {
    /// Everyone's.
    pub all: bool,
    /// These tenants', if they still have limits of their own.
    pub some: BTreeSet<Grantee>,
}

/// What limits follow from beside records: told apart so that time alone changes none.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Moving {
    brake: f64,
    /// How much is left of the way from safe to the threshold.
    kept: f64,
    /// How much is left of what thresholds add up to beyond the capacity.
    lent: f64,
    /// Whether a share for what waits is a report away.
    awaiting: bool,
}

#[derive(Debug, Clone, Copy)]
struct Lease {
    share: Share,
    until: MonoTime,
}

/// A pool as one member sees it.
#[derive(Debug)]
pub struct PoolView {
    bootstrap: Thresholds,
    /// What this process enforced before it was started again, less what is not trusted; until the first grant.
    last_known: BTreeMap<Grantee, Remembered>,
    grants: BTreeMap<Grantee, Granted>,
    overrides: OverrideBook,
    heard: Heard,
    newest: Stamp,
    /// The most that each meter's pool was ever said to take, in units per window.
    roomiest: BTreeMap<Meter, f64>,
    /// When the running windows end that have an alignment.
    window_ends: BTreeMap<Meter, MonoTime>,
    leases: BTreeMap<Grantee, Lease>,
    /// How many reports in a row were not.
    unanswered: u8,
    /// Whether this process can count together with others, and what the pool may take on the meters that are counted so.
    counts_together: bool,
    shared: BTreeMap<Meter, Rate>,
    brake: f64,
    braked_at: MonoTime,
    throttled_at: Option<MonoTime>,
    changes: Changes,
    /// When changes were last taken, and what held then.
    taken: (MonoTime, UnixMillis, Moving),
}

impl PoolView {
    /// A pool of which nothing is known but its bootstrap thresholds.
    #[must_use]
    pub fn new(bootstrap: Thresholds, now: MonoTime) -> Self {
        Self {
            bootstrap,
            last_known: BTreeMap::new(),
            grants: BTreeMap::new(),
            overrides: OverrideBook::default(),
            heard: Heard::default(),
            newest: Stamp::default(),
            roomiest: BTreeMap::new(),
            window_ends: BTreeMap::new(),
            leases: BTreeMap::new(),
            unanswered: 0,
            counts_together: false,
            shared: BTreeMap::new(),
            brake: 1.0,
            braked_at: now,
            throttled_at: None,
            changes: Changes { all: true, some: BTreeSet::new() },
            taken: (now, UnixMillis::default(), Moving { brake: 1.0, kept: 0.0, lent: 0.0, awaiting: false }),
        }
    }

    /// The same, with what holds instead of the bootstrap thresholds for some tenants until the first grant comes.
    #[must_use]
    pub fn with_last_known(mut self, last_known: BTreeMap<Grantee, Remembered>) -> Self {
        self.changes.some.extend(last_known.keys().cloned());
        self.last_known = last_known;
        self
    }

    /// The same in a process that can count together with others.
    #[must_use]
    pub fn counting_together(self, counts_together: bool) -> Self {
        Self { counts_together, ..self }
    }

    /// Whether members count any meter together.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        !self.shared.is_empty()
    }

    /// Takes what the pool may take on the meters that members count together. Each change is a retune of every tenant: one that is
    /// hardly more is left for later, and one that is less is not, but for rounding.
    fn on_shared(&mut self, told: &BTreeMap<Meter, Rate>) {
        let near = |known: f64, told: f64| told <= known * 1.01 && told >= known * 0.998;
        let same = |(meter, told): (&Meter, &Rate)| {
            self.shared.get(meter).is_some_and(|known| near(known.rate, told.rate) && near(known.burst, told.burst))
        };
        if self.shared.len() != told.len() || !told.iter().all(same) {
            self.shared.clone_from(told);
            self.changes.all = true;
        }
    }

    /// Whose limits may have changed since this was last asked, by records or by time.
    pub fn take_changes(&mut self, now: MonoTime, wall: UnixMillis) -> Changes {
        let mut changes = std::mem::take(&mut self.changes);
        let (then, then_wall, moving) = self.taken;
        let moving_now = Moving {
            brake: self.brake,
            kept: self.heard.kept_at(now),
            lent: self.heard.lent_at(now),
            awaiting: self.awaits_shares(now),
        };
        changes.all |= moving != moving_now;
        let ended = self.leases.iter().filter(|(_, lease)| lease.until > then && lease.until <= now);
        changes.some.extend(ended.map(|(grantee, _)| grantee.clone()));
        for target in self.overrides.ended_between(then_wall, wall) {
            match target {
                Target::One(grantee) => drop(changes.some.insert(grantee.clone())),
                Target::Every | Target::Capacity => changes.all = true,
            }
        }
        self.taken = (now, wall, moving_now);
        changes
    }

    fn on_target(&mut self, target: &Target) {
        match target {
            Target::One(grantee) => drop(self.changes.some.insert(grantee.clone())),
            Target::Every | Target::Capacity => self.changes.all = true,
        }
    }

    /// A grant was read. An older one never replaces a newer one.
    pub fn on_grant(&mut self, grantee: Grantee, grant: Grant) -> Order {
        let known = self.grants.get(&grantee).map(|known| known.stamp);
        if known.is_none_or(|known| known < grant.stamp) {
            self.changes.some.insert(grantee.clone());
            self.grants.insert(grantee, grant.into());
            // Told by a leader: what is remembered counts no more.
            self.changes.some.extend(std::mem::take(&mut self.last_known).into_keys());
        } else if known.is_some_and(|known| known > grant.stamp) {
            return Order::Older;
        }
        Order::Newer
    }

    /// A grant was deleted: its tenant goes to `@default`.
    pub fn on_grant_removed(&mut self, grantee: &Grantee) {
        if self.grants.remove(grantee).is_some() {
            self.changes.some.insert(grantee.clone());
        }
    }

    /// A pulse was read; `live` says whether a leader was seen living with it. A known stamp renews nothing.
    pub fn on_pulse(&mut self, pulse: Pulse, live: bool, now: MonoTime) -> Order {
        if pulse.stamp < self.newest {
            return Order::Older;
        }
        if pulse.stamp > self.newest {
            self.newest = pulse.stamp;
            for (meter, capacity) in &pulse.capacity {
                let most = self.roomiest.entry(*meter).or_insert(0.0);
                self.changes.all |= *capacity > *most;
                *most = most.max(*capacity);
            }
            self.on_shared(&pulse.shared);
            let told = |pulse: &Pulse| (pulse.scale.clone(), pulse.scale_epoch, pulse.overcommit.clone());
            self.changes.all |= match self.heard.pulse() {
                Some(known) => {
                    told(known) != told(&pulse)
                        || (known.capacity != pulse.capacity && self.overrides.last_good(&Target::Capacity).is_some())
                }
                None => true,
            };
            if live {
                self.on_window_left(&pulse, now);
            }
            self.heard.take(pulse, live.then_some(now));
        }
        Order::Newer
    }

    /// The pulse was deleted: the pool is gone, and with it whatever its policy said of not enforcing. A pool that nobody speaks
    /// of is never open.
    pub fn on_pulse_removed(&mut self) {
        self.heard.enforce();
    }

    /// What the pool's policy makes of its limits, as its last pulse said.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.pulse().map(|pulse| pulse.mode).unwrap_or_default()
    }

    /// Windows end when the leader last said, and each window's length after; what differs by no more than a pulse's way is
    /// the same end.
    fn on_window_left(&mut self, pulse: &Pulse, now: MonoTime) {
        let before = self.window_ends.len();
        self.window_ends.retain(|meter, _| pulse.window_left_ms.contains_key(meter));
        self.changes.all |= self.window_ends.len() != before;
        for (meter, left_ms) in &pulse.window_left_ms {
            let told = now + Duration::from_millis(*left_ms);
            let known = self.window_ends.get(meter);
            // As far apart as from a whole number of windows.
            let apart_s = known.map_or(f64::INFINITY, |known| {
                let (apart_s, window_s) =
                    (told.seconds_since(*known) + known.seconds_since(told), meter.window.seconds());
                (apart_s - (apart_s / window_s).round() * window_s).abs()
            });
            if apart_s > SAME_WINDOW_END.as_secs_f64() {
                self.window_ends.insert(*meter, told);
                self.changes.all = true;
            }
        }
    }

    /// How a meter that is granted so is counted here.
    fn counting(&self, meter: Meter, algorithm: Algorithm, rate: Rate) -> Counting {
        match algorithm {
            Algorithm::TokenBucket => Counting::TokenBucket,
            Algorithm::FixedWindow => {
                let ends = self.window_ends.get(&meter);
                Counting::FixedWindow(ends.map_or(Alignment::FirstUse, |ends| Alignment::EndsAt(*ends)))
            }
            // An operator may have set more than a log is kept for.
            #[allow(clippy::cast_precision_loss, reason = "a thousand")]
            Algorithm::SlidingLog if rate.rate <= ENTRIES_MAX as f64 => Counting::SlidingLog,
            Algorithm::SlidingLog | Algorithm::SlidingWindow => Counting::SlidingWindow,
        }
    }

    /// An operator's record was written or removed.
    ///
    /// # Errors
    /// [`RecordError`] when it is malformed; the last good one stays.
    pub fn on_override(&mut self, target: Target, value: Option<&[u8]>) -> Result<(), RecordError> {
        self.on_target(&target);
        if let Some(value) = value {
            self.overrides.put(target, value)
        } else {
            self.overrides.remove(&target);
            Ok(())
        }
    }

    /// The last good record of a target was found in `overrides-status`.
    pub fn on_override_restored(&mut self, target: Target, record: crate::plan::Override) {
        self.on_target(&target);
        self.overrides.restore(target, record);
    }

    /// Forgets the order of records: the store is another one, or was restored from a backup.
    pub fn restart_order(&mut self) {
        self.newest = Stamp::default();
        for grant in self.grants.values_mut() {
            grant.stamp = Stamp::default();
        }
    }

    /// Diffs against a list: what it does not hold is gone.
    pub fn retain(&mut self, has_grant: impl Fn(&Grantee) -> bool, has_override: impl Fn(&Target) -> bool) {
        let gone: Vec<Grantee> = self.grants.keys().filter(|grantee| !has_grant(grantee)).cloned().collect();
        for grantee in &gone {
            self.on_grant_removed(grantee);
        }
        let gone: Vec<Target> = self.overrides.targets().filter(|target| !has_override(target)).cloned().collect();
        for target in gone {
            self.on_target(&target);
            self.overrides.remove(&target);
        }
    }

    /// The leader answered a report, perhaps with shares; they hold from when it was sent. One outside 0–1 changes nothing.
    pub fn on_reply(&mut self, shares: BTreeMap<Grantee, Share>, until: MonoTime) {
        self.unanswered = 0;
        for (grantee, share) in shares {
            if (0.0..=1.0).contains(&share.share) {
                let (then, ..) = self.taken;
                let known =
                    self.leases.get(&grantee).filter(|lease| lease.until > then && lease.share.is_as_good_as(&share));
                // As it was: each change is a retune.
                let share = known.map_or(share, |lease| lease.share);
                if known.is_none() {
                    self.changes.some.insert(grantee.clone());
                }
                self.leases.insert(grantee, Lease { share, until });
            }
        }
    }

    /// The leader did not answer the last report.
    pub fn on_no_reply(&mut self) {
        self.unanswered = self.unanswered.saturating_add(1);
    }

    /// Whether a tenant gets the share for one more waiting request in a moment: who leads hears of it with the next report.
    fn awaits_shares(&self, now: MonoTime) -> bool {
        self.unanswered < UNANSWERED_MAX && self.state(now) == MemberState::Active
    }

    /// This process is closing: it gives its shares back, and enforces none from now on.
    pub fn give_shares_back(&mut self) {
        self.unanswered = UNANSWERED_MAX;
        self.changes.some.extend(std::mem::take(&mut self.leases).into_keys());
    }

    /// The provider refused.
    pub fn on_throttled(&mut self, now: MonoTime) {
        self.throttled_at = Some(now);
    }

    /// The share in force, to be echoed.
    #[must_use]
    pub fn share_at(&self, grantee: &Grantee, now: MonoTime) -> Option<Share> {
        self.leases.get(grantee).filter(|lease| lease.until > now).map(|lease| lease.share)
    }

    /// The shares in force, and until when each is.
    pub fn leases(&self, now: MonoTime) -> impl Iterator<Item = (&Grantee, Share, MonoTime)> {
        let valid = self.leases.iter().filter(move |(_, lease)| lease.until > now);
        valid.map(|(grantee, lease)| (grantee, lease.share, lease.until))
    }

    /// What is enforced for the tenants that this process has shares of, and for `@default`: what is worth remembering. Empty
    /// unless a leader lives.
    #[must_use]
    pub fn worth_remembering(&self, now: MonoTime, wall: UnixMillis) -> BTreeMap<Grantee, Remembered> {
        if self.state(now) != MemberState::Active {
            return BTreeMap::new();
        }
        let used = self.leases(now).map(|(grantee, ..)| grantee).chain([&Grantee::Default]);
        let enforced = |grantee: &Grantee| {
            let Limits { meters, concurrency, blocked, .. } = self.limits_of(grantee, now, wall)?;
            // A block is remembered as a rate of nothing.
            let rate = |rate: Rate| if blocked { rate.scaled(0.0) } else { rate };
            let largest_request = meters.iter().map(|(meter, limit)| (*meter, limit.largest_request)).collect();
            let rates = meters.into_iter().map(|(meter, limit)| (meter, rate(limit.rate))).collect();
            Some((grantee.clone(), Remembered { thresholds: Thresholds { rates, concurrency }, largest_request }))
        };
        used.filter_map(enforced).collect()
    }

    /// Who has a grant, and from when it is.
    pub fn stamps(&self) -> impl Iterator<Item = (&Grantee, Stamp)> {
        self.grants.iter().map(|(grantee, grant)| (grantee, grant.stamp))
    }

    /// When less is left of what thresholds add up to beyond the capacity, unless a pulse comes.
    #[must_use]
    pub fn lent_until(&self, now: MonoTime) -> Option<MonoTime> {
        self.heard.lent_until(now)
    }

    /// How this member stands to the leader.
    #[must_use]
    pub fn state(&self, now: MonoTime) -> MemberState {
        if self.grants.is_empty() {
            return MemberState::Bootstrap;
        }
        self.heard.state(now)
    }

    /// Moves the brake: once a second however often it is called, so that a second with one 429 counts like one with
    /// many, and a process that slept does not brake for the seconds it slept through.
    pub fn brake(&mut self, now: MonoTime) {
        let span_s = now.seconds_since(self.braked_at);
        if span_s < BRAKE_EVERY_S {
            return;
        }
        let throttled = self.throttled_at.is_some_and(|at| at > self.braked_at);
        let clean_s = self.throttled_at.map_or(f64::INFINITY, |at| now.seconds_since(at));
        self.braked_at = now;
        self.brake = match self.state(now) {
            MemberState::Bootstrap | MemberState::Active => 1.0,
            MemberState::Braking | MemberState::Lapsed if throttled => (self.brake * BRAKE_PER_S).max(BRAKE_MIN),
            _ if clean_s >= CLEAN_BEFORE_RELEASE_S => (self.brake + RELEASE_PER_S * span_s).min(1.0),
            _ => self.brake,
        };
    }

    /// The operators' records, as far as they are in force here.
    #[must_use]
    pub fn overrides(&self) -> &OverrideBook {
        &self.overrides
    }

    /// Holds that the leader tells of, and the capacity it publishes.
    #[must_use]
    pub fn pulse(&self) -> Option<&Pulse> {
        self.heard.pulse()
    }

    /// When the newest pulse came.
    #[must_use]
    pub fn pulse_at(&self) -> Option<MonoTime> {
        self.heard.at()
    }

    /// What to enforce, per tenant with a grant, and for all others together under `@default`.
    #[must_use]
    pub fn limits(&self, now: MonoTime, wall: UnixMillis) -> HashMap<Grantee, Limits> {
        let blocked = self.overrides.targets().filter_map(|target| match target {
            Target::One(grantee) => Some(grantee),
            Target::Every | Target::Capacity => None,
        });
        let named = self.grants.keys().chain(blocked).chain([&Grantee::Default]);
        let named = named.chain(self.last_known.keys());
        named.filter_map(|grantee| Some((grantee.clone(), self.limits_of(grantee, now, wall)?))).collect()
    }

    /// What to enforce for a tenant; `None` when it has no limits of its own, and shares those of `@default`.
    #[must_use]
    pub fn limits_of(&self, grantee: &Grantee, now: MonoTime, wall: UnixMillis) -> Option<Limits> {
        self.terms_of(grantee, now, wall).map(Limits::from)
    }

    /// What a tenant's limits follow from; `None` as for [`PoolView::limits_of`].
    #[must_use]
    pub fn terms_of(&self, grantee: &Grantee, now: MonoTime, wall: UnixMillis) -> Option<Terms> {
        if let Some(grant) = self.grants.get(grantee) {
            return Some(self.granted_terms(grantee, grant, now, wall));
        }
        if let Some(Remembered { thresholds, largest_request }) = self.last_known.get(grantee) {
            return Some(self.bootstrap_terms(grantee, thresholds, largest_request, wall));
        }
        // Undeclared tenants are never open: without a grant for them they have the bootstrap thresholds.
        if *grantee == Grantee::Default {
            return Some(self.bootstrap_terms(grantee, &self.bootstrap, &BTreeMap::new(), wall));
        }
        // A block reaches a tenant without a grant too. Nothing else does: it would multiply capacity.
        let own = self.overrides.at(&Target::One(grantee.clone()), wall);
        let blocked = matches!(own.map(|record| &record.action), Some(Action::Block));
        blocked.then(|| Terms { blocked, ..Terms::default() })
    }

    /// The bootstrap thresholds, or what was last known, an operator's record being stronger.
    fn bootstrap_terms(
        &self,
        grantee: &Grantee,
        thresholds: &Thresholds,
        largest: &BTreeMap<Meter, f64>,
        wall: UnixMillis,
    ) -> Terms {
        let (star, own) = self.overrides.for_tenant(grantee, wall);
        let left = |(meter, rate): (&Meter, &Rate)| (*meter, rate.scaled(self.capacity_left(*meter, wall)));
        let rates = thresholds.rates.iter().map(left).collect();
        let used = effective(&Thresholds { rates, concurrency: thresholds.concurrency }, star, own);
        let meters = used.thresholds.rates.iter().map(|(meter, rate)| {
            let limit = Rate { rate: rate.rate, burst: rate.burst.max(least_burst(*meter)) };
            let largest_request = largest.get(meter).map_or(limit.burst, |largest| largest.max(limit.burst));
            let terms = MeterTerms {
                base: thresholds.rates.get(meter).copied(),
                scale: 1.0,
                capacity: self.capacity_left(*meter, wall),
                overridden: *rate,
                kept: 1.0,
                brake: 1.0,
                share: 1.0,
                limit: MeterLimit { rate: limit, largest_request, counting: Counting::TokenBucket, together: None },
            };
            (*meter, terms)
        });
        let meters = meters.collect();
        let concurrency = used.thresholds.concurrency;
        Terms { meters, concurrency, blocked: used.blocked, frozen: used.frozen, share_to_come: None }
    }

    /// What `@capacity` leaves of a meter's base, 0–1.
    fn capacity_left(&self, meter: Meter, wall: UnixMillis) -> f64 {
        let told = self.pulse().and_then(|pulse| pulse.capacity.get(&meter).copied());
        capacity_factor(self.overrides.at(&Target::Capacity, wall), told, meter)
    }

    fn granted_terms(&self, grantee: &Grantee, grant: &Granted, now: MonoTime, wall: UnixMillis) -> Terms {
        let (star, own) = self.overrides.for_tenant(grantee, wall);
        let base = self.base(grant, wall);
        let used = effective(&base, star, own);
        let lease = self.share_at(grantee, now);
        let members = f64::from(grant.members.max(1));
        let held_once = self.leases.contains_key(grantee);
        let share = match lease {
            Some(share) => share.share,
            None if held_once => 1.0 / members,
            None => 1.0 / (members + 1.0),
        };
        let left = if used.frozen { 1.0 } else { self.heard.kept_at(now) };
        let still_lent = self.heard.lent_at(now);
        let is_active = self.state(now) == MemberState::Active;
        let meters: Vec<(Meter, MeterTerms)> = used
            .thresholds
            .rates
            .iter()
            .map(|(meter, rate)| {
                let safe = grant.safe_part(*meter);
                let is_set = used.set.contains(meter) || used.frozen;
                let kept_with = |beyond| safe + (self.heard.covered(*meter, beyond) - safe).max(0.0) * left;
                let pool = self.shared.get(meter).copied();
                // What members count together adds up to more than there is, because the pool is counted too; shares do not.
                let beyond = if pool.is_some() { 0.0 } else { still_lent };
                let (kept, brake) = match (is_set, lease) {
                    (true, _) => (1.0, 1.0),
                    (false, Some(_)) => (kept_with(beyond), self.brake),
                    (false, None) => (safe, self.brake),
                };
                let mine = rate.scaled(kept * brake * share);
                let one_request = least_burst(*meter);
                let rate_now = Rate { rate: mine.rate, burst: mine.burst.max(one_request) };
                // Never is for what the provider itself could not take: a tenant that is granted little at the moment, or
                // a pool that was cut, still admits a large request, into debt that its own rate pays off.
                let roomiest = self.roomiest.get(meter).copied().unwrap_or(0.0);
                let largest_request = rate.burst.max(one_request).max(roomiest);
                let together = pool.filter(|_| self.counts_together).map(|pool| {
                    let tenant = rate.scaled(if is_set { 1.0 } else { kept_with(still_lent) * self.brake });
                    let tenant = Rate { burst: tenant.burst.max(one_request), ..tenant };
                    // Nobody watches without a leader, and an operator's word or a ceiling is all that the tenant may have.
                    let bounded = is_set || star.or(own).is_some() || grant.of(*meter).is_some_and(|of| of.bounded);
                    let borrows = is_active && !bounded;
                    Together { tenant, pool, members: grant.members.max(1), borrows }
                });
                let counting = self.counting(*meter, grant.algorithm(*meter), rate_now);
                let terms = MeterTerms {
                    base: grant.of(*meter).map(|granted| granted.rate),
                    scale: self.scale_of(grant, *meter),
                    capacity: self.capacity_left(*meter, wall),
                    overridden: *rate,
                    kept,
                    brake,
                    share,
                    limit: MeterLimit { rate: rate_now, largest_request, counting, together },
                };
                (*meter, terms)
            })
            .collect();
        let share_to_come = self.awaits_shares(now).then(|| match lease {
            Some(share) => share.with_one_more.unwrap_or(0.0) / share.share,
            // Any part of it may come: of all meters, the most.
            None => meters.iter().map(|(_, terms)| terms.kept * terms.brake * share).fold(1.0, f64::min).recip(),
        });
        let share_to_come = share_to_come.filter(|times| *times > 1.0 && times.is_finite());
        let concurrency = used.thresholds.concurrency.map(|_| {
            lease.and_then(|share| share.concurrency).unwrap_or_else(|| {
                let safe = f64::from(grant.safe_concurrency.unwrap_or(0));
                #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small count, floored")]
                let divided = (safe * share).floor() as u32;
                divided.max(1)
            })
        });
        Terms { meters, concurrency, blocked: used.blocked, frozen: used.frozen, share_to_come }
    }

    /// The grant's thresholds after the pulse's scale and `@capacity`.
    fn base(&self, grant: &Granted, wall: UnixMillis) -> Thresholds {
        let rates = grant.meters.iter().map(|GrantedMeter { meter, rate, .. }| {
            (*meter, rate.scaled(self.scale_of(grant, *meter)).scaled(self.capacity_left(*meter, wall)))
        });
        Thresholds { rates: rates.collect(), concurrency: grant.concurrency }
    }

    /// The newest pulse's factor for a meter of a grant.
    fn scale_of(&self, grant: &Granted, meter: Meter) -> f64 {
        self.pulse().map_or(1.0, |pulse| pulse.scale_for(grant.stamp, meter))
    }
}

/// A member's burst holds at least one request.
fn least_burst(meter: Meter) -> f64 {
    if meter.unit == Unit::Requests { 1.0 } else { 0.0 }
}
