//! What should stand in the store against what does: one pool's pulse and grants, as values. It never sees a store.
//!
//! *Stored.* What was acknowledged is known; what was sent and not acknowledged may stand there too, and counts as the
//! larger of both until it has been written again. So a lost answer, a retry or half a batch needs no case of its own: what
//! is in doubt is simply sent again.
//! *Cut.* A fall of what is planned leaves first, as the factor of one pulse: Σ planned ÷ Σ stored of the grants older than
//! the cut. They are rewritten as fast as the store is to be burdened; those that are, contain the cut already, and when the
//! last one is, the pulse drops the factor. A further fall begins a new cut over all of them.
//! *Order.* What falls is written, and acknowledged, before anything is raised; a grant that falls on one meter and rises on
//! another is written twice. So at no moment does what stands in the store allow more than was planned (but for the 2 % that
//! are not worth a write).

use std::collections::BTreeMap;
use std::ops::Bound;
use std::time::Duration;

use super::joined::joined;
use crate::clock::MonoTime;
use crate::plan::{Grant, Rate, Reason, Stamp, Thresholds};
use crate::quota::{Grantee, Meter};

/// Grants are rewritten at most this often.
const GRANTS_EVERY: Duration = Duration::from_millis(950);
/// A threshold that moved by less than this fraction is not rewritten.
const REWRITE_TOLERANCE: f64 = 0.02;
/// A fall by more than this fraction is a cut, sent ahead of the grants.
const CUT: f64 = 0.02;

/// The most of a threshold that may be safe.
const SAFE_MAX: f64 = 0.5;

/// Grants to write in one transaction; `None` deletes.
pub type Batch = Vec<(Grantee, Option<Grant>)>;

/// What a pulse says of a cut.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Cut {
    /// Factors for grants older than `epoch`.
    pub scale: BTreeMap<Meter, f64>,
    /// The epoch of the cut; `None` without one.
    pub epoch: Option<u64>,
}

/// One pool's records.
#[derive(Debug)]
pub struct Outbox {
    term: u64,
    epoch: u64,
    published: BTreeMap<Grantee, Grant>,
    /// Sent without an answer: each of them may stand in the store, or what was published may still. One more a tick at the
    /// most, as long as the store answers to pulses and not to grants.
    doubtful: BTreeMap<Grantee, Vec<Grant>>,
    /// To be written first: what falls, as far as it falls, and what is in doubt. `None` deletes.
    falls: BTreeMap<Grantee, Option<Grant>>,
    /// To be written when nothing falls any more.
    raises: BTreeMap<Grantee, Option<Grant>>,
    /// Grants older than this are scaled by the pulse,
    cut: Option<Stamp>,
    /// by these factors.
    scale: BTreeMap<Meter, f64>,
    grants_at: Option<MonoTime>,
    /// Where the last batch ended: the next one goes on behind it, so that no tenant is always the last.
    last: Option<Grantee>,
}

impl Outbox {
    /// Begins a term with the grants that an earlier leader left.
    #[must_use]
    pub fn new(term: u64, left: BTreeMap<Grantee, Grant>) -> Self {
        Self {
            term,
            epoch: 0,
            published: left,
            doubtful: BTreeMap::new(),
            falls: BTreeMap::new(),
            raises: BTreeMap::new(),
            cut: None,
            scale: BTreeMap::new(),
            grants_at: None,
            last: None,
        }
    }

    /// Where the order of this term's records stands.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Goes on behind `epoch`: the pool was there before in this term, and members know what it said.
    pub fn go_on_behind(&mut self, epoch: u64) {
        self.epoch = self.epoch.max(epoch);
    }

    /// Grants as last acknowledged.
    #[must_use]
    pub fn published(&self) -> &BTreeMap<Grantee, Grant> {
        &self.published
    }

    /// Compares what should stand in the store, and why, with what does. Returns the next pulse's stamp and cut; what grants are
    /// to be written is then taken with [`Outbox::take`], after the pulse is written.
    pub fn plan(&mut self, planned: &BTreeMap<Grantee, Grant>, reason: &Reason, now: MonoTime) -> (Stamp, Cut) {
        let stamp = self.next_stamp();
        // None if none is needed, the one that is under way if that will do, else a new one, which is over all of them.
        let sums = self.add_up(planned, self.cut);
        (self.cut, self.scale) = if sums.are_within(&BTreeMap::new()) {
            (None, BTreeMap::new())
        } else {
            let scale = sums.factors();
            if self.cut.is_some() && sums.are_within(&scale) {
                (self.cut, scale)
            } else {
                (Some(stamp), self.add_up(planned, Some(stamp)).factors())
            }
        };
        self.falls.clear();
        self.raises.clear();
        if self.grants_at.is_none_or(|at| now.since(at) >= GRANTS_EVERY) {
            self.compare(planned, reason);
        }
        (stamp, Cut { epoch: self.cut.map(|cut| cut.epoch), scale: self.scale.clone() })
    }

    /// Whether there are grants to write now.
    #[must_use]
    pub fn is_open(&self) -> bool {
        !self.falls.is_empty() || (self.doubtful.is_empty() && !self.raises.is_empty())
    }

    /// The next grants to write, `most` at the most; empty when nothing is left, or when what falls is still in doubt. Until
    /// [`Outbox::committed`] the batch is in doubt.
    pub fn take(&mut self, most: usize) -> Batch {
        let wanted = match (self.falls.is_empty(), self.doubtful.is_empty()) {
            (false, _) => &mut self.falls,
            (true, true) => &mut self.raises,
            (true, false) => return Batch::new(),
        };
        let keys = next_keys(wanted, self.last.as_ref(), most);
        let grants: Vec<Option<Grant>> = keys.iter().map(|key| wanted.remove(key).flatten()).collect();
        let Some(last) = keys.last() else { return Batch::new() };
        self.last = Some(last.clone());
        let stamp = self.next_stamp();
        let batch: Batch = keys
            .into_iter()
            .zip(grants)
            .map(|(key, grant)| (key, grant.map(|grant| Grant { stamp, ..grant })))
            .collect();
        for (grantee, grant) in &batch {
            self.doubtful.entry(grantee.clone()).or_default().extend(grant.clone());
        }
        batch
    }

    /// The batch was written.
    pub fn committed(&mut self, batch: Batch, now: MonoTime) {
        self.grants_at = Some(now);
        for (grantee, grant) in batch {
            self.doubtful.remove(&grantee);
            match grant {
                Some(grant) => drop(self.published.insert(grantee, grant)),
                None => drop(self.published.remove(&grantee)),
            }
        }
    }

    fn next_stamp(&mut self) -> Stamp {
        self.epoch += 1;
        Stamp { term: self.term, epoch: self.epoch }
    }

    /// Sorts what is planned and does not stand yet.
    fn compare(&mut self, planned: &BTreeMap<Grantee, Grant>, reason: &Reason) {
        let (mut falling, mut raising) = (BTreeMap::new(), BTreeMap::new());
        let written = |grant: &Grant| Grant { reason: reason.clone(), ..grant.clone() };
        for (grantee, known, grant) in joined(&self.published, planned) {
            let doubted = self.is_doubted(grantee);
            let (grant, known) = match (grant, known) {
                (None, _) => {
                    falling.insert(grantee.clone(), None);
                    continue;
                }
                (Some(grant), None) if !doubted => {
                    raising.insert(grantee.clone(), Some(written(grant)));
                    continue;
                }
                (Some(grant), known) => (grant, known),
            };
            if doubted || known.is_some_and(|known| self.falls(known, &grant.thresholds)) {
                // Where it may have been deleted, nothing may stand.
                let allowed = self.allowed(grantee).unwrap_or_else(|| grant.thresholds.clone());
                let thresholds = allowed.lower_of(&grant.thresholds);
                if thresholds != grant.thresholds {
                    raising.insert(grantee.clone(), Some(written(grant)));
                }
                let safe = grant.safe.lower_of(&thresholds.scaled(SAFE_MAX));
                falling.insert(grantee.clone(), Some(Grant { thresholds, safe, ..written(grant) }));
            } else if known.is_some_and(|known| {
                // After a cut each scaled grant is rewritten, so that the pulse can drop the factor.
                self.cut.is_some_and(|cut| known.stamp < cut)
                    || known.reason.code != reason.code
                    || grant.differs_from(known, REWRITE_TOLERANCE)
            }) {
                raising.insert(grantee.clone(), Some(written(grant)));
            }
        }
        let gone = self.doubtful.keys().filter(|grantee| !planned.contains_key(*grantee));
        falling.extend(gone.map(|grantee| (grantee.clone(), None)));
        (self.falls, self.raises) = (falling, raising);
    }

    /// Whether something was sent for a tenant without an answer, be it that it is to be deleted.
    fn is_doubted(&self, grantee: &Grantee) -> bool {
        !self.doubtful.is_empty() && self.doubtful.contains_key(grantee)
    }

    /// What was sent for a tenant without an answer.
    fn doubted(&self, grantee: &Grantee) -> &[Grant] {
        // Mostly there is nothing, and this is asked for every tenant.
        if self.doubtful.is_empty() { &[] } else { self.doubtful.get(grantee).map_or(&[], Vec::as_slice) }
    }

    /// What the cut makes of a meter of a grant.
    fn factor(&self, grant: &Grant, meter: Meter) -> f64 {
        factor(grant, meter, self.cut, &self.scale)
    }

    /// Whether `next` is stricter than a grant by more than is not worth a write.
    fn falls(&self, grant: &Grant, next: &Thresholds) -> bool {
        let places = |thresholds: &Thresholds| thresholds.concurrency.unwrap_or(u32::MAX);
        let falls = |(meter, next): (&Meter, &Rate)| {
            let now = grant.thresholds.rates.get(meter);
            now.is_none_or(|now| next.rate < now.rate * self.factor(grant, *meter) * (1.0 - REWRITE_TOLERANCE))
        };
        places(next) < places(&grant.thresholds) || next.rates.iter().any(falls)
    }

    /// The most that what stands in the store allows a tenant.
    fn allowed(&self, grantee: &Grantee) -> Option<Thresholds> {
        let standing = self.published.get(grantee).into_iter().chain(self.doubted(grantee));
        most(standing.map(|grant| scaled(grant, self.cut, &self.scale)))
    }

    /// What is planned and what may stand in the store, in one walk over both.
    fn add_up<'a>(&'a self, planned: &'a BTreeMap<Grantee, Grant>, cut: Option<Stamp>) -> Totals<'a> {
        let is_older = |grant: &Grant| cut.is_some_and(|cut| grant.stamp < cut);
        let mut totals = Totals { cut, ..Totals::default() };
        for (grantee, known, wanted) in joined(&self.published, planned) {
            if let Some(wanted) = wanted {
                totals.planned.add(&wanted.thresholds);
            }
            let Some(known) = known.filter(|_| !self.is_doubted(grantee)) else { continue };
            if is_older(known) {
                totals.older.add(&known.thresholds);
                if let Some(wanted) = wanted {
                    totals.planned_of_older.add(&wanted.thresholds);
                }
            } else {
                totals.newer.add(&known.thresholds);
            }
        }
        for (grantee, doubted) in &self.doubtful {
            let all: Vec<&Grant> = self.published.get(grantee).into_iter().chain(doubted).collect();
            if all.iter().any(|grant| is_older(grant))
                && let Some(wanted) = planned.get(grantee)
            {
                totals.planned_of_older.add(&wanted.thresholds);
            }
            totals.doubted.push(all);
        }
        totals
    }
}

/// What is planned, and what may stand in the store: rates per meter, with what is older than a cut apart.
#[derive(Debug, Default)]
struct Totals<'a> {
    cut: Option<Stamp>,
    planned: Sums,
    /// Of those of whom something stands that is older than the cut.
    planned_of_older: Sums,
    /// What stands and is older than the cut,
    older: Sums,
    /// and what is not.
    newer: Sums,
    /// Of whom something is in doubt: of all that may stand, the most does.
    doubted: Vec<Vec<&'a Grant>>,
}

impl Totals<'_> {
    /// Whether what stands, with what is older scaled, allows no more than is planned.
    fn are_within(&self, scale: &BTreeMap<Meter, f64>) -> bool {
        let mut standing = Sums::default();
        let mut stands = |meter: Meter, rate: f64| *standing.of(meter) += rate;
        self.newer.0.iter().for_each(|(meter, rate)| stands(*meter, *rate));
        self.older.0.iter().for_each(|(meter, rate)| stands(*meter, rate * scale.get(meter).unwrap_or(&1.0)));
        self.doubted
            .iter()
            .filter_map(|all| most(all.iter().map(|grant| scaled(grant, self.cut, scale))))
            .for_each(|thresholds| thresholds.rates.iter().for_each(|(meter, rate)| stands(*meter, rate.rate)));
        // A meter that nobody is limited by any more is no cut to nothing.
        self.planned.0.iter().all(|(meter, new)| standing.get(*meter).is_none_or(|rate| rate * (1.0 - CUT) <= *new))
    }

    /// Per meter Σ planned ÷ Σ standing of what is older than the cut, where that is less.
    fn factors(&self) -> BTreeMap<Meter, f64> {
        let Some(cut) = self.cut else { return BTreeMap::new() };
        let mut older = self.older.clone();
        for all in &self.doubted {
            let before = all.iter().filter(|grant| grant.stamp < cut);
            if let Some(most) = most(before.map(|grant| grant.thresholds.clone())) {
                older.add(&most);
            }
        }
        let part = |(meter, stored): (Meter, f64)| (meter, self.planned_of_older.get(meter).unwrap_or(0.0) / stored);
        older
            .0
            .into_iter()
            .filter(|(meter, stored)| *stored > 0.0 && self.planned.get(*meter).is_some())
            .map(part)
            .filter(|(_, factor)| *factor < 1.0 - CUT)
            .map(|(meter, factor)| (meter, super::division::round(factor)))
            .collect()
    }
}

/// The most that any of them allows.
fn most(of: impl Iterator<Item = Thresholds>) -> Option<Thresholds> {
    of.reduce(|a, b| a.higher_of(&b))
}

/// What a cut makes of a meter of a grant.
fn factor(grant: &Grant, meter: Meter, cut: Option<Stamp>, scale: &BTreeMap<Meter, f64>) -> f64 {
    if cut.is_some_and(|cut| grant.stamp < cut) { scale.get(&meter).copied().unwrap_or(1.0) } else { 1.0 }
}

/// A grant's thresholds under a cut.
fn scaled(grant: &Grant, cut: Option<Stamp>, scale: &BTreeMap<Meter, f64>) -> Thresholds {
    let mut thresholds = grant.thresholds.clone();
    for (meter, rate) in &mut thresholds.rates {
        *rate = rate.scaled(factor(grant, *meter, cut, scale));
    }
    thresholds
}

/// Rates added up per meter.
#[derive(Debug, Clone, Default)]
struct Sums(Vec<(Meter, f64)>);

impl Sums {
    fn get(&self, meter: Meter) -> Option<f64> {
        // There are a few of them.
        self.0.iter().find(|(known, _)| *known == meter).map(|(_, sum)| *sum)
    }

    fn of(&mut self, meter: Meter) -> &mut f64 {
        let nth = self.0.iter().position(|(known, _)| *known == meter).unwrap_or_else(|| {
            self.0.push((meter, 0.0));
            self.0.len() - 1
        });
        &mut self.0[nth].1
    }

    fn add(&mut self, thresholds: &Thresholds) {
        thresholds.rates.iter().for_each(|(meter, rate)| *self.of(*meter) += rate.rate);
    }
}

/// The first keys behind `last`, or from the start when none is.
fn next_keys<V>(of: &BTreeMap<Grantee, V>, last: Option<&Grantee>, most: usize) -> Vec<Grantee> {
    let behind = last.map_or(Bound::Unbounded, Bound::Excluded);
    let keys: Vec<Grantee> =
        of.range::<Grantee, _>((behind, Bound::Unbounded)).map(|(key, _)| key.clone()).take(most).collect();
    if keys.is_empty() { of.keys().take(most).cloned().collect() } else { keys }
}
