//! What the leader decided of late and from what: the last publications of a pool that changed something.
//!
//! *Bounds.* [`PUBLICATIONS_MAX`] publications, and [`GRANTS_MAX`] grants in them, whatever the number of tenants: the
//! oldest go first. *What it leaves out*: what members do by themselves, the brake and the lapse; they do it when nobody
//! leads, and then nobody could be asked.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use super::law::{Headers, Inputs, Mode, Step};
use crate::clock::UnixMillis;
use crate::observation::Reading;
use crate::plan::{Override, Rate, Reason, Stamp};
use crate::quota::{Grantee, Meter, PoolId};

/// So many publications are remembered.
pub const PUBLICATIONS_MAX: usize = 64;
/// So many grants are remembered in all publications of a pool together: about 10 MB.
pub const GRANTS_MAX: usize = 50_000;

/// A reading as it is told.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReadingTold {
    /// It steered.
    Fresh {
        /// The provider's limit, in units per window.
        limit: f64,
        /// The provider's level, in units.
        level: f64,
        /// How long ago the request was sent that brought it.
        age_ms: u64,
    },
    /// It is too old to steer.
    Stale {
        /// How old.
        age_ms: u64,
    },
    /// None was ever told.
    Missing,
}

/// What the law was told of a meter, and what it made of that. Amounts are in units per the meter's window.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MeterDecided {
    /// The newest reading of the provider's headers.
    pub reading: ReadingTold,
    /// Requests that ended, of late and since the last cut.
    pub ended: u64,
    /// Of these, refused by the provider for this meter.
    pub refused: u64,
    /// What was used.
    pub used: f64,
    /// What was asked for.
    pub demand: f64,
    /// What others use of it, where headers tell; below zero when the limit is better than told.
    pub others: Option<f64>,
    /// The provider's level as estimated, in units, where headers tell.
    pub level: Option<f64>,
    /// How the law decided.
    pub mode: Mode,
    /// What headers were good for.
    pub headers: Headers,
    /// By how much thresholds may add up to more than the capacity, as part of each lies idle; a constant where members count
    /// together.
    pub overcommit: f64,
    /// The pool's own bucket, where members count together; absent where each enforces its share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shared: Option<Rate>,
    /// What it decided that the pool can take.
    pub capacity: f64,
    /// What a signal said of that; absent when none did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub told: Option<f64>,
}

impl MeterDecided {
    /// What the law was told, and its step; of a meter that is not counted together.
    #[must_use]
    pub fn new(meter: Meter, inputs: &Inputs, step: &Step) -> Self {
        let per_window = |per_s: f64| per_s * meter.window.seconds();
        let millis = |age: std::time::Duration| u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        let reading = match inputs.sample {
            Reading::Fresh(sample) => ReadingTold::Fresh {
                limit: per_window(sample.limit_per_s),
                level: sample.level,
                age_ms: millis(inputs.now.since(sample.sent_at)),
            },
            Reading::Stale { age } => ReadingTold::Stale { age_ms: millis(age) },
            Reading::Missing => ReadingTold::Missing,
        };
        Self {
            reading,
            ended: inputs.traffic.resolved,
            refused: inputs.traffic.refused,
            used: per_window(inputs.traffic.sent_per_s),
            demand: per_window(inputs.traffic.demand_per_s),
            others: step.others_per_s.map(per_window),
            level: step.level,
            mode: step.mode,
            headers: step.headers,
            overcommit: step.overcommit,
            shared: None,
            capacity: per_window(step.capacity_per_s),
            told: inputs.told_per_s.map(per_window),
        }
    }
}

/// Who decided a tenant's threshold on a meter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DecidedBy {
    /// The law and the division.
    Law,
    /// The operator's policy: the tenant's floor or ceiling.
    Policy,
    /// An operator's override.
    Override,
}

/// A tenant's threshold on a meter, and what is made of it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ThresholdDecided {
    /// As granted: what holds with no override.
    pub base: Rate,
    /// With the overrides of that moment.
    pub effective: Rate,
    /// Who decided it.
    pub by: DecidedBy,
}

/// What a publication decided for the pool.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Decided {
    /// When, by the leader's clock.
    pub unix_ms: UnixMillis,
    /// Its place in the order.
    #[serde(flatten)]
    pub stamp: Stamp,
    /// Why.
    pub reason: Reason,
    /// Factors of a cut that went ahead of the grants.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub scale: BTreeMap<Meter, f64>,
    /// What the law was told and decided.
    pub meters: BTreeMap<Meter, MeterDecided>,
    /// What congestion signals told, by their queries; `null` of one that was silent.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub pressures: BTreeMap<String, Option<f64>>,
    /// Calls in flight at a time, as latency or a congestion signal allowed; absent when neither limited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub places: Option<f64>,
    /// Calls that were in flight.
    #[serde(default)]
    pub in_flight: f64,
}

/// A tenant's thresholds in a publication.
pub type Granted = Box<[(Meter, ThresholdDecided)]>;

#[derive(Debug)]
struct Publication {
    decided: Decided,
    /// In the order in which they were written; of a tenant's the last one counts.
    granted: Vec<(Grantee, Granted)>,
}

/// The last publications of one pool.
#[derive(Debug, Default)]
pub struct History {
    publications: VecDeque<Publication>,
    grants: usize,
}

/// One step as it concerns a tenant.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepTold {
    /// What was decided for the pool.
    #[serde(flatten)]
    pub decided: Decided,
    /// The tenant's thresholds, where they changed.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub thresholds: BTreeMap<Meter, ThresholdDecided>,
}

/// What `GET /v1/explain/<pool>/<tenant>` tells.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Explained {
    /// The pool.
    pub pool: PoolId,
    /// The tenant.
    pub tenant: Grantee,
    /// What becomes of its limits.
    #[serde(default)]
    pub mode: crate::plan::Mode,
    /// Requests that wait elsewhere to be sent, where a demand signal tells of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queued: Option<f64>,
    /// Overrides in force now, by target: `*`, the tenant's, `@capacity`.
    pub overrides: BTreeMap<String, Override>,
    /// Overrides of other tenants: what they use is taken out before the rest is divided.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub elsewhere: BTreeMap<String, Override>,
    /// What holds now.
    pub now: BTreeMap<Meter, ThresholdDecided>,
    /// The steps that concern it, the oldest first.
    pub steps: Vec<StepTold>,
}

impl History {
    /// Remembers a publication and its grants; one that changed nothing is not worth it. Grants that go with a pulse which is
    /// remembered already join it.
    pub fn push(&mut self, decided: Decided, granted: Vec<(Grantee, Granted)>) {
        if granted.is_empty() && decided.scale.is_empty() {
            return;
        }
        self.grants += granted.len();
        match self.publications.back_mut().filter(|last| last.decided.stamp == decided.stamp) {
            Some(last) => last.granted.extend(granted),
            None => self.publications.push_back(Publication { decided, granted }),
        }
        while self.publications.len() > PUBLICATIONS_MAX || (self.grants > GRANTS_MAX && self.publications.len() > 1) {
            let Some(oldest) = self.publications.pop_front() else { return };
            self.grants -= oldest.granted.len();
        }
    }

    /// The steps that concern a tenant, the oldest first: its own grants, and the pool's cuts.
    #[must_use]
    pub fn of(&self, grantee: &Grantee) -> Vec<StepTold> {
        let told = |publication: &Publication| {
            let own = publication.granted.iter().rfind(|(known, _)| known == grantee).map(|(_, granted)| granted);
            let concerns = own.is_some() || !publication.decided.scale.is_empty();
            let thresholds = own.into_iter().flat_map(|granted| granted.iter().copied()).collect();
            concerns.then(|| StepTold { decided: publication.decided.clone(), thresholds })
        };
        self.publications.iter().filter_map(told).collect()
    }
}
