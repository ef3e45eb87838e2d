//! Shares as leases: which part of a tenant's threshold each member enforces.
//!
//! *Invariant.* For each (pool, tenant), what members may be enforcing adds up to at most 1: a lease counts until it
//! expires, and a lowered one counts at its old value until the member has echoed the new. Nobody is raised before
//! there is room.
//! *After a change of leader* everybody keeps what it echoes until every lease of the old leader has expired.
//! Source: Doorman's rule (capacity − Σ has + own has), and its learning mode.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::clock::MonoTime;
use crate::plan::Share;

use super::apportion::divide_places;

/// How long a share holds from its receipt.
pub const SHARE_VALID: Duration = Duration::from_secs(5);
/// A member notices the end of its share this much late at the most; until then the share is not given to others.
const LATE: Duration = Duration::from_secs(1);
/// Part of a tenant's threshold that is divided evenly, whatever the demand: a quiet member keeps a little.
const EVEN: f64 = 0.2;
/// From so many times its share on a member is told what one more waiting request would bring.
const MUCH_MORE: f64 = 1.25;

/// A share of two digits: it is a forecast.
fn two_digits(share: f64) -> f64 {
    let step = 10_f64.powf(share.log10().floor() - 1.0);
    if step > 0.0 { (share / step).round() * step } else { 0.0 }
}

/// What a member asks for when it reports.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Wish {
    /// Its demand, in any unit common to the tenant's members.
    pub demand: f64,
    /// By how much one more waiting request would raise that.
    pub of_one_more: f64,
    /// The share it says is in force.
    pub echoed: Option<f64>,
    /// The concurrency it says is in force.
    pub echoed_concurrency: Option<u32>,
    /// It has requests waiting.
    pub waiting: bool,
}

#[derive(Debug, Clone)]
struct Lease {
    issued: f64,
    issued_concurrency: u32,
    /// The most it may be enforcing: the largest value issued or echoed since the last one was echoed.
    held: f64,
    held_concurrency: u32,
    expires_at: MonoTime,
    wish: Wish,
    seen_at: MonoTime,
}

/// The shares of one (pool, tenant).
#[derive(Debug, Clone, Default)]
pub struct Shares {
    leases: BTreeMap<String, Lease>,
}

impl Shares {
    /// Answers one member's report.
    ///
    /// `None` while there is no room and it holds nothing: it goes on with its part of the safe thresholds.
    ///
    /// `places` is the tenant's concurrency; `learning_until` ends the time in which nobody gets more than it echoes.
    pub fn answer(
        &mut self,
        member: &str,
        wish: Wish,
        places: Option<u32>,
        now: MonoTime,
        learning_until: Option<MonoTime>,
    ) -> Option<Share> {
        self.forget(now);
        let known = self.leases.entry(member.to_owned()).or_insert_with(|| Lease {
            issued: 0.0,
            issued_concurrency: 0,
            held: 0.0,
            held_concurrency: 0,
            expires_at: now,
            wish,
            seen_at: now,
        });
        known.wish = wish;
        known.seen_at = now;
        // It may be enforcing what it says, or what it was given last and has not said yet.
        known.held = wish.echoed.unwrap_or(0.0).max(known.issued);
        known.held_concurrency = wish.echoed_concurrency.unwrap_or(0).max(known.issued_concurrency);

        let learning = learning_until.is_some_and(|until| now < until);
        let total: f64 = self.leases.values().map(|lease| lease.wish.demand).sum();
        let target = self.part(wish.demand, total);
        let target_places = places.map_or(0, |places| self.target_places(member, places, total));
        // Who learns raises nobody.
        let with_one_more =
            (!learning).then(|| two_digits(self.part(wish.demand + wish.of_one_more, total + wish.of_one_more)));
        let others: f64 = self.others(member).map(|lease| lease.held).sum();
        let others_places: u32 = self.others(member).map(|lease| lease.held_concurrency).sum();
        let room = (1.0 - others).max(0.0);
        // A new leader leaves each member what it says it has: whose demand is heard of first must not take from one whose
        // is not yet, since nobody is raised again before the old leader's leases have run out.
        let share = if learning { wish.echoed.unwrap_or(0.0) } else { target }.min(room);
        let room_places = places.unwrap_or(0).saturating_sub(others_places);
        // Who holds a share, and none of places, has its part of the safe ones: the places may be new to the pool, or be held by
        // others who have not been heard of yet.
        let concurrency = if learning { wish.echoed_concurrency } else { Some(target_places) };
        let concurrency = concurrency.map(|places| places.min(room_places));

        if let Some(lease) = self.leases.get_mut(member) {
            lease.issued = share;
            lease.held = lease.held.max(share);
            lease.issued_concurrency = concurrency.unwrap_or(0);
            lease.held_concurrency = lease.held_concurrency.max(lease.issued_concurrency);
            lease.expires_at = now + SHARE_VALID + LATE;
        }
        // A lease of nothing would only take the safe thresholds from a member that holds no lease.
        (share > 0.0 || wish.echoed.is_some()).then(|| Share {
            share,
            concurrency: places.and(concurrency),
            with_one_more: with_one_more.filter(|more| *more > MUCH_MORE * share),
        })
    }

    /// A member has said that it enforces nothing any more.
    pub fn leave(&mut self, member: &str) {
        self.leases.remove(member);
    }

    /// The most that members may be enforcing now, for checking the invariant.
    #[must_use]
    pub fn outstanding(&self, now: MonoTime) -> f64 {
        self.leases.values().filter(|lease| lease.expires_at > now).map(|lease| lease.held).sum()
    }

    /// The leases in force, by member: what was given last.
    pub fn leases(&self, now: MonoTime) -> impl Iterator<Item = (&str, f64, u32)> {
        let valid = self.leases.iter().filter(move |(_, lease)| lease.expires_at > now);
        valid.map(|(member, lease)| (member.as_str(), lease.issued, lease.issued_concurrency))
    }

    fn others<'a>(&'a self, member: &'a str) -> impl Iterator<Item = &'a Lease> {
        self.leases.iter().filter(move |(name, _)| *name != member).map(|(_, lease)| lease)
    }

    /// Drops members whose lease has expired: what they held is free again.
    fn forget(&mut self, now: MonoTime) {
        self.leases.retain(|_, lease| lease.expires_at > now || lease.seen_at == now);
    }

    /// The share of a member with so much of the demand: an even part, and the rest by demand.
    fn part(&self, demand: f64, total: f64) -> f64 {
        #[allow(clippy::cast_precision_loss, reason = "a count of processes")]
        let even = EVEN / self.leases.len().max(1) as f64;
        let by_demand = if total > 0.0 { demand / total } else { even / EVEN };
        even + (1.0 - EVEN) * by_demand
    }

    /// The places that the member should have.
    fn target_places(&self, member: &str, places: u32, total: f64) -> u32 {
        // Those with waiters first: a place is worth nothing to a member without requests.
        let weight = |lease: &Lease| self.part(lease.wish.demand, total) * if lease.wish.waiting { 1.5 } else { 1.0 };
        let weights: Vec<f64> = self.leases.values().map(weight).collect();
        let index = self.leases.keys().position(|name| name == member).unwrap_or(0);
        divide_places(places, &weights).get(index).copied().unwrap_or(0)
    }
}
