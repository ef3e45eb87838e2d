//! Everybody's grant: what the law's steps allow, divided on what each asks for. What overrides will use is reserved first.
//!
//! The grants are kept from tick to tick and changed in place: a tick that changes little allocates little, however many tenants
//! there are.

use std::collections::{BTreeMap, BTreeSet};

use super::apportion::{Claim, divide, divide_places};
use super::law::Step;
use super::params::{PoolParams, TenantParams};
use super::signal::Asked;
use crate::clock::UnixMillis;
use crate::plan::{
    Action, GRANT_SCHEMA, Grant, OverrideBook, Rate, Reason, Stamp, Target, Thresholds, capacity_factor, effective,
};
use crate::provider::TokenCharge;
use crate::quota::{Grantee, Meter, Unit};

/// A tenant may store this much of its rate, in seconds.
const REQUEST_BURST_S: f64 = 6.0;
const TOKEN_BURST_S: f64 = 12.0;
/// All tenants' bursts together are at most this part of the provider's.
pub(super) const BURST_PART: f64 = 0.25;
/// A tenant without traffic counts with this many requests per second, so that its first request finds a threshold;
const IDLE_PER_S: f64 = 0.1;
/// all of them together with at most this part of the capacity, so that the idle do not starve the busy.
const IDLE_PART: f64 = 0.1;
/// Places that moved by one, and one of so many more, stay what they are,
const PLACES_KEPT: u32 = 10;
/// as long as all together are no more than they may be, and at least this part of it.
const PLACES_USED: f64 = 0.97;
/// Without a leader a tenant keeps this part of its threshold.
const SAFE_PART: f64 = 0.5;

/// A tenant and what it has told, in the order of tenants.
#[derive(Debug, Clone)]
pub(super) struct Row {
    pub grantee: Grantee,
    pub tenant: TenantParams,
    pub asked: Asked,
}

/// What a pool's capacity is divided by.
#[derive(Debug, Clone, Copy)]
pub(super) struct Division<'a> {
    pub params: &'a PoolParams,
    pub rows: &'a [Row],
    pub overrides: &'a OverrideBook,
    pub published: &'a BTreeMap<Grantee, Grant>,
    /// A new leader has not heard of all demand yet.
    pub learning: bool,
    /// Requests in flight at a time, all together, as latency says.
    pub places: Option<u32>,
    /// How many members divide the safe thresholds.
    pub members: u32,
    pub wall: UnixMillis,
}

impl Division<'_> {
    /// Makes the grants what they should be; stamp and reason are filled in when they are written.
    pub(super) fn fill<'s>(
        &self,
        steps: impl Iterator<Item = (&'s Meter, &'s Step)> + Clone,
        planned: &mut BTreeMap<Grantee, Grant>,
    ) {
        if !planned.keys().eq(self.rows.iter().map(|row| &row.grantee)) {
            *planned = self.rows.iter().map(|row| (row.grantee.clone(), self.blank())).collect();
        }
        let weights: f64 = self.rows.iter().map(|row| row.tenant.weight).sum();
        let part = |(meter, step): (&Meter, &'s Step)| Part {
            meter: *meter,
            step,
            lent: self.overcommit(step),
            rates_per_s: self.meter(*meter, step),
            nominal: self.params.capacity.get(meter).map_or(f64::INFINITY, |nominal| nominal.rate),
            is_corrected: self.params.dialect.semantics().token_charge == TokenCharge::Corrected,
        };
        let parts: Vec<Part<'_>> = steps.map(part).collect();
        let places = self.all_places();
        let is_overridden = self.is_overridden();
        for (nth, (row, grant)) in self.rows.iter().zip(planned.values_mut()).enumerate() {
            if !(self.params.shared.is_empty() && grant.bounded.is_empty()) {
                grant.bounded =
                    self.params.shared.iter().filter(|meter| row.tenant.ceiling.contains_key(meter)).copied().collect();
            }
            if !grant.thresholds.rates.keys().eq(parts.iter().map(|part| &part.meter)) {
                let none = Rate { rate: 0.0, burst: 0.0 };
                grant.thresholds.rates = parts.iter().map(|part| (part.meter, none)).collect();
            }
            let weight_part = row.tenant.weight / weights;
            for (rate, part) in grant.thresholds.rates.values_mut().zip(&parts) {
                *rate = part.rate(nth, weight_part);
            }
            grant.thresholds.concurrency = places[nth];
            if is_overridden && let Some(frozen) = self.frozen(&row.grantee) {
                grant.thresholds = frozen.thresholds.clone();
            }
            grant.members = self.members;
            grant.safe.be_scaled(&grant.thresholds, SAFE_PART);
            for (meter, rate) in &mut grant.safe.rates {
                if let Some(part) = parts.iter().find(|part| part.meter == *meter) {
                    part.keep_safe(rate, weight_part);
                }
            }
        }
    }

    fn blank(&self) -> Grant {
        Grant {
            schema: GRANT_SCHEMA,
            stamp: Stamp::default(),
            thresholds: Thresholds::default(),
            safe: Thresholds::default(),
            algorithms: self.params.algorithms.clone(),
            bounded: BTreeSet::new(),
            members: self.members,
            reason: Reason { code: String::new(), text: String::new() },
        }
    }

    pub(super) fn is_overridden(&self) -> bool {
        self.overrides.targets().next().is_some()
    }

    /// By how much thresholds add up to more than the capacity. What an operator sets is not exceeded.
    pub(super) fn overcommit(&self, step: &Step) -> f64 {
        if self.overrides.at(&Target::Capacity, self.wall).is_some() { 1.0 } else { step.overcommit }
    }

    /// The grant that an operator wants kept as it is.
    pub(super) fn frozen(&self, grantee: &Grantee) -> Option<&Grant> {
        let (star, own) = self.overrides.for_tenant(grantee, self.wall);
        let frozen = [star, own].into_iter().flatten().any(|record| record.action == Action::Freeze);
        self.published.get(grantee).filter(|_| frozen)
    }

    /// Everybody's places: as the operator says, by weight, and as latency says, by need.
    fn all_places(&self) -> Vec<Option<u32>> {
        // One each, as a tenant without a place would wait for ever.
        let fixed = self.params.concurrency.map(|places| {
            let rest = places.saturating_sub(u32::try_from(self.rows.len()).unwrap_or(u32::MAX));
            let weights: Vec<f64> = self.rows.iter().map(|row| row.tenant.weight).collect();
            divide_places(rest, &weights).into_iter().map(|n| n + 1).collect::<Vec<u32>>()
        });
        let needed = self.places.map(|places| self.needed_places(places));
        let of = |places: &Option<Vec<u32>>, nth: usize| places.as_ref().map(|places| places[nth]);
        (0..self.rows.len()).map(|nth| of(&fixed, nth).into_iter().chain(of(&needed, nth)).min()).collect()
    }

    /// Places by what each could use; who has no traffic has one all the same.
    fn needed_places(&self, places: u32) -> Vec<u32> {
        let busy: Vec<&Row> = self.rows.iter().filter(|row| row.asked.places() > 0.0).collect();
        let claim = |row: &&Row| Claim {
            weight: row.tenant.weight,
            demand: row.asked.places(),
            floor: 0.0,
            ceiling: f64::INFINITY,
            priority: row.tenant.priority,
        };
        let parts = divide(f64::from(places), &busy.iter().map(claim).collect::<Vec<_>>());
        let mut parts = divide_places(places, &parts).into_iter();
        let part = |row: &Row| if row.asked.places() > 0.0 { parts.next().unwrap_or(0).max(1) } else { 1 };
        let parts: Vec<u32> = self.rows.iter().map(part).collect();
        // Needs move all the time: it is not worth a write.
        let kept = |(row, part): (&Row, &u32)| {
            let known = self.published.get(&row.grantee).and_then(|grant| grant.thresholds.concurrency);
            known.filter(|known| known.abs_diff(*part) <= 1 + known / PLACES_KEPT).unwrap_or(*part)
        };
        let kept: Vec<u32> = self.rows.iter().zip(&parts).map(kept).collect();
        // Of the busy: the places of the idle are on top.
        let busy = |parts: &[u32]| -> f64 {
            let of = self.rows.iter().zip(parts).filter(|(row, _)| row.asked.places() > 0.0);
            of.map(|(_, part)| f64::from(*part)).sum()
        };
        let most = busy(&parts);
        if (PLACES_USED * most..=most).contains(&busy(&kept)) { kept } else { parts }
    }

    /// What each tenant brings to the division of one meter.
    fn claims(&self, meter: Meter, capacity_per_s: f64) -> Vec<Claim> {
        #[allow(clippy::cast_precision_loss, reason = "a count of tenants")]
        let idle_most = IDLE_PART * capacity_per_s / self.rows.len() as f64;
        let claim = |row: &Row| {
            let idle = (IDLE_PER_S * row.asked.cost(meter.unit)).min(idle_most);
            let seen = row.asked.per_s(meter.unit) + idle;
            let granted = || self.published.get(&row.grantee).and_then(|grant| grant.thresholds.rates.get(&meter));
            // What was granted stands for demand that was not heard of yet.
            let demand = match if self.learning { granted() } else { None } {
                Some(rate) => seen.max(meter.per_second(rate.rate)),
                None => seen,
            };
            Claim {
                weight: row.tenant.weight,
                demand,
                floor: row.tenant.floor.get(&meter).map_or(0.0, |floor| meter.per_second(*floor)),
                ceiling: row.tenant.ceiling.get(&meter).map_or(f64::INFINITY, |ceiling| meter.per_second(*ceiling)),
                priority: row.tenant.priority,
            }
        };
        self.rows.iter().map(claim).collect()
    }

    /// One meter's capacity over the tenants, in units per second: base for each, with what overrides will use
    /// reserved first.
    ///
    /// Members put the factor of `@capacity` on each base themselves, so that it works without a leader: the bases
    /// divide the whole capacity, and what an override uses counts as the base that the factor would turn into it.
    fn meter(&self, meter: Meter, step: &Step) -> Vec<f64> {
        let capacity = step.capacity_per_s * self.overcommit(step);
        let claims = self.claims(meter, capacity);
        let mut parts = divide(capacity, &claims);
        if !self.is_overridden() {
            return parts;
        }
        let told = per_window(meter, step.capacity_per_s);
        let factor = capacity_factor(self.overrides.at(&Target::Capacity, self.wall), Some(told), meter);
        for (row, part) in self.rows.iter().zip(&mut parts) {
            if let Some(rate) = self.frozen(&row.grantee).and_then(|grant| grant.thresholds.rates.get(&meter)) {
                *part = meter.per_second(rate.rate);
            }
        }
        // What an override uses is taken out before the others share the rest; its own base stays what it would be.
        let reserved: Vec<Option<f64>> = self
            .rows
            .iter()
            .zip(&parts)
            .map(|(row, part)| {
                let (star, own) = self.overrides.for_tenant(&row.grantee, self.wall);
                star.or(own)?;
                let rate = Rate { rate: per_window(meter, *part) * factor, burst: 1.0 };
                let base = Thresholds { rates: [(meter, rate)].into(), concurrency: None };
                let used = effective(&base, star, own);
                let rate = used.thresholds.rates.get(&meter).map_or(0.0, |r| meter.per_second(r.rate));
                Some(if used.blocked || factor <= 0.0 { 0.0 } else { rate / factor })
            })
            .collect();
        if reserved.iter().any(Option::is_some) {
            let left = (capacity - reserved.iter().flatten().sum::<f64>()).max(0.0);
            let free: Vec<usize> = (0..claims.len()).filter(|i| reserved[*i].is_none()).collect();
            let shared = divide(left, &free.iter().map(|i| claims[*i]).collect::<Vec<_>>());
            free.into_iter().zip(shared).for_each(|(i, part)| parts[i] = part);
        }
        parts
    }
}

/// One meter, divided.
struct Part<'s> {
    meter: Meter,
    step: &'s Step,
    /// By how much thresholds add up to more than the capacity.
    lent: f64,
    /// Of each row.
    rates_per_s: Vec<f64>,
    /// The static capacity, per window.
    nominal: f64,
    /// Whether what is reserved is corrected to what was used.
    is_corrected: bool,
}

impl Part<'_> {
    /// The threshold of a row.
    fn rate(&self, nth: usize, weight_part: f64) -> Rate {
        let rate_per_s = self.rates_per_s[nth];
        // What is lent adds no bursts.
        let burst = self.burst(rate_per_s / self.lent, weight_part);
        Rate { rate: round(per_window(self.meter, rate_per_s)), burst: round(burst) }
    }

    /// What a tenant may store, in units.
    fn burst(&self, rate_per_s: f64, weight_part: f64) -> f64 {
        let part = self.step.burst * rate_per_s / self.step.capacity_per_s.max(f64::MIN_POSITIVE);
        let by_weight = BURST_PART * self.step.burst * weight_part;
        match self.meter.unit {
            Unit::Requests => (REQUEST_BURST_S * rate_per_s).min(BURST_PART * part).max(1.0),
            // Reserved is what an answer may be at most, many times what it is: bursts made for what is used would admit one
            // request after the other.
            Unit::Tokens | Unit::OutputTokens if self.is_corrected => part.max(by_weight).max(1.0),
            // An idle tenant keeps room for an ordinary request by its weight; a larger one goes into debt.
            _ => (TOKEN_BURST_S * rate_per_s).min(BURST_PART * part).max(by_weight).max(1.0),
        }
    }

    /// What holds without a leader: at most half of what the capacity covers, and at most the static capacity by weight.
    fn keep_safe(&self, rate: &mut Rate, weight_part: f64) {
        *rate = rate.scaled(1.0 / self.lent);
        let most = self.nominal * weight_part;
        if rate.rate > most {
            *rate = Rate { rate: round(most), burst: round(rate.burst * most / rate.rate) };
        }
    }
}

pub(super) fn per_window(meter: Meter, per_s: f64) -> f64 {
    per_s * meter.window.seconds()
}

/// Records are read by people: three decimals are enough for a rate.
pub(super) fn round(x: f64) -> f64 {
    (x * 1e3).round() / 1e3
}
