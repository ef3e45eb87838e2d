//! What each query told last, and what that is worth now.

use std::collections::BTreeMap;
use std::time::Duration;

use parking_lot::Mutex;

use super::{Fed, Named, QueryParams, Told};
use crate::clock::MonoTime;
use crate::controller::account::SignalAccount;
use crate::controller::signal::{Counts, Measured, Outside, Pressure, Role};
use crate::observation::Reading;
use crate::quota::{Grantee, PoolId};
use crate::telemetry::{Metric, Sample};

/// What is older than this is not told of any more.
const STALE_MAX: Duration = Duration::from_secs(60);

/// What the queries told.
#[derive(Debug)]
pub(in crate::controller) struct Board(Mutex<BTreeMap<String, Standing>>);

#[derive(Debug)]
struct Standing {
    params: QueryParams,
    told: Option<Known>,
    error: Option<String>,
}

/// What was told last.
#[derive(Debug)]
struct Known {
    /// When it was true.
    at: MonoTime,
    stamp_s: f64,
    fed: BTreeMap<PoolId, Vec<Fed>>,
    series: usize,
}

impl Standing {
    fn reading(&self, now: MonoTime) -> Reading<MonoTime> {
        // No series at all is how a metric that is gone looks; of queues it is how none looks.
        let known = self.told.as_ref().filter(|known| known.series > 0 || self.params.role == Role::Demand);
        let Some(Known { at, .. }) = known else { return Reading::Missing };
        match now.since(*at) {
            age if age <= self.params.fresh_for => Reading::Fresh(*at),
            age if age <= self.params.fresh_for.saturating_add(STALE_MAX) => Reading::Stale { age },
            _ => Reading::Missing,
        }
    }

    /// What it told of a pool.
    fn of<'a>(&'a self, pool: &PoolId) -> impl Iterator<Item = &'a Fed> {
        self.told.iter().filter_map(|known| known.fed.get(pool)).flatten()
    }

    fn pressure(&self, query: &str, pool: &PoolId, now: MonoTime) -> Option<Pressure> {
        // One whose label names pools may be about any of them, whether it answers or not.
        let is_about = match &self.params.pool {
            Named::Fixed(of) => of == pool,
            Named::Label(_) => true,
        };
        let values = self.of(pool).map(|fed| fed.value);
        let value = match self.params.counts {
            // The servers behind a pool have a queue each,
            Counts::Requests => values.fold(None, |sum: Option<f64>, value| Some(sum.unwrap_or(0.0) + value)),
            // and the fullest is where the next one may not fit.
            Counts::Part => {
                values.fold(None, |most: Option<f64>, value| Some(most.map_or(value, |most| most.max(value))))
            }
        };
        if value.is_none() && !is_about {
            return None;
        }
        let told = match (self.reading(now), value) {
            (Reading::Fresh(at), Some(value)) => Reading::Fresh(Measured { at, value }),
            (Reading::Stale { age }, Some(_)) => Reading::Stale { age },
            _ => Reading::Missing,
        };
        let QueryParams { counts, aim, scrape, every, .. } = self.params;
        Some(Pressure { query: query.to_owned(), counts, aim, lag: scrape.saturating_add(every), told })
    }
}

/// What an answer changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::controller) enum News {
    /// Nothing that is worth a line.
    None,
    /// It tells something again.
    Back,
    /// It tells nothing any more, and why.
    Worse(String),
}

impl Board {
    /// Nothing was told yet.
    pub(in crate::controller) fn new(queries: &BTreeMap<String, QueryParams>) -> Self {
        let blank = |(name, params): (&String, &QueryParams)| {
            (name.clone(), Standing { params: params.clone(), told: None, error: None })
        };
        Self(Mutex::new(queries.iter().map(blank).collect()))
    }

    /// A query was answered with what was true at `at`; one whose time stamps have not moved renews nothing. An answer may be one
    /// to complain of.
    pub(in crate::controller) fn take(&self, query: &str, at: MonoTime, told: Told) -> News {
        let mut board = self.0.lock();
        let Some(standing) = board.get_mut(query) else { return News::None };
        let complaint = told.complaint(&standing.params);
        // Unless its clock was set back.
        let fresh_s = standing.params.fresh_for.as_secs_f64();
        let is_known = |known: &Known| (0.0..fresh_s).contains(&(known.stamp_s - told.stamp_s));
        if told.fed.is_empty() || !standing.told.as_ref().is_some_and(is_known) {
            let (stamp_s, series) = (told.stamp_s, told.fed.len());
            let mut fed: BTreeMap<PoolId, Vec<Fed>> = BTreeMap::new();
            told.fed.into_iter().for_each(|one| fed.entry(one.pool.clone()).or_default().push(one));
            standing.told = Some(Known { at, stamp_s, fed, series });
        }
        match (std::mem::replace(&mut standing.error, complaint.clone()), complaint) {
            (None, Some(complaint)) => News::Worse(complaint),
            (Some(_), None) => News::Back,
            _ => News::None,
        }
    }

    /// A query was not answered; says whether that is news.
    pub(in crate::controller) fn fail(&self, query: &str, error: String) -> bool {
        let mut board = self.0.lock();
        board.get_mut(query).is_some_and(|standing| standing.error.replace(error).is_none())
    }

    /// What is told of a pool now.
    pub(in crate::controller) fn outside(&self, pool: &PoolId, now: MonoTime) -> Outside {
        let mut outside = Outside::default();
        for (name, standing) in &*self.0.lock() {
            let is_fresh = standing.reading(now).fresh().is_some();
            match (standing.params.role, standing.params.meter) {
                (Role::Congestion, _) => outside.pressures.extend(standing.pressure(name, pool, now)),
                (Role::Demand, _) if is_fresh => {
                    let mut queued: BTreeMap<Grantee, f64> = BTreeMap::new();
                    for fed in standing.of(pool) {
                        *queued.entry(fed.tenant.clone().unwrap_or(Grantee::Default)).or_default() += fed.value;
                    }
                    // Two queries may see the same queue.
                    for (tenant, requests) in queued {
                        let known = outside.queued.entry(tenant).or_default();
                        *known = known.max(requests);
                    }
                }
                (Role::Capacity, Some(meter)) if is_fresh => {
                    let sum: f64 = standing.of(pool).map(|fed| fed.value).sum();
                    // Nothing at all is a signal that has lost its series, not a pool without room.
                    if sum > 0.0 {
                        let known = outside.capacity.entry(meter).or_insert(sum);
                        *known = known.min(sum);
                    }
                }
                _ => {}
            }
        }
        outside
    }

    /// What is told of the queries.
    pub(in crate::controller) fn account(&self, now: MonoTime) -> BTreeMap<String, SignalAccount> {
        let tell = |(name, standing): (&String, &Standing)| {
            let (state, _) = state(standing.reading(now));
            let age = standing.told.as_ref().map(|known| now.since(known.at));
            let account = SignalAccount {
                role: standing.params.role,
                state: state.to_owned(),
                age_ms: age.map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
                series: standing.told.as_ref().map_or(0, |known| known.series),
                error: standing.error.clone(),
            };
            (name.clone(), account)
        };
        self.0.lock().iter().map(tell).collect()
    }

    /// The same as metrics.
    pub(in crate::controller) fn measure(&self, now: MonoTime) -> Vec<Sample> {
        let mut samples = Vec::new();
        for (name, standing) in &*self.0.lock() {
            let (_, number) = state(standing.reading(now));
            samples.push(Sample::number(Metric::SignalState, &[name], number));
            if let Some(known) = &standing.told {
                samples.push(Sample::number(Metric::SignalAge, &[name], now.since(known.at).as_secs_f64()));
                #[allow(clippy::cast_precision_loss, reason = "a few thousand")]
                samples.push(Sample::number(Metric::SignalSeries, &[name], known.series as f64));
            }
        }
        samples
    }
}

fn state(reading: Reading<MonoTime>) -> (&'static str, f64) {
    match reading {
        Reading::Fresh(_) => ("fresh", 0.0),
        Reading::Stale { .. } => ("stale", 1.0),
        Reading::Missing => ("missing", 2.0),
    }
}
