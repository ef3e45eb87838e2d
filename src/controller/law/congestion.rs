//! Concurrency from what the far side tells of itself: a queue, or how full it is.
//!
//! *Why.* A server of one's own sends no limits and no 429s: past its knee it queues, and in the end calls time out. Its queue is
//! seen before that.
//! *Cut.* A queue of w at N in flight means that N − w are worked at: N = N − w + aim at once, however large the surplus. Of a part
//! u that is full: N = N·aim ÷ u. What is told is old by a scrape, and calls in flight end slowly, so N is the most that were in
//! flight within that time: it may be cut too little, and again by the next answer, but not below what the far side can work at.
//! A queue longer than all that we have in flight is that of others: N = 0.7·N, once within that time.
//! *Growth.* For some seconds after an answer by which nothing waits there, while the places are used: by 3 % a second, by a half at
//! least; a tenth of that about where it was last cut, so that it stays there most of the time; and half as fast after each try that
//! was cut back to the same place, as what nobody has freed is not free sooner for being asked after.
//! *Hold.* While an answer is between nothing and the aim; while the query that cut last is silent: what it taught goes on to hold,
//! and answers that become slow lower it still ([`LatencyLaw`](super::LatencyLaw)). While no member tells how many are in flight.
//! *End.* Places that are not half used for 30 s limit nobody.
//! Source: the queue of a window flow control, as in L. S. Brakmo and L. L. Peterson, IEEE JSAC 13 (1995): what is in flight above
//! what is worked at stands in a queue.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::span_s;
use crate::clock::MonoTime;
use crate::controller::signal::{Counts, Measured, Pressure};

/// Constants of [`CongestionLaw`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CongestionParams {
    /// Never fewer in flight, 1 or more.
    pub places_min: f64,
    /// Never more: no server of one pool has so many slots.
    pub places_max: f64,
    /// Below this part of its aim a part leaves room to grow, 0–1.
    pub room: f64,
    /// From this part of the whole places on they count as used, 0–1.
    pub used: f64,
    /// Growth, in parts a second. Larger finds freed room sooner, and overshoots by as much as the signal is late.
    pub growth_per_s: f64,
    /// At least so many places a second.
    pub growth_min_per_s: f64,
    /// What is left of that about the last cut, 0–1. Smaller finds freed room later, larger has others wait more often.
    pub growth_at_knee: f64,
    /// So often that is halved at most, by tries that came to nothing. More leaves a server's queue alone for longer, and finds
    /// freed room later.
    pub halvings_max: u8,
    /// From where it was cut to so many times it, and by one place at least.
    pub knee: f64,
    /// For so long after an answer. Longer grows on what may be no longer so.
    pub growth_for: Duration,
    /// What is left by a queue that is not ours, 0–1. Smaller leaves others more.
    pub for_others: f64,
    /// Of which no more than this part is used,
    pub spare: f64,
    /// for so long, end.
    pub spare_for: Duration,
}

impl Default for CongestionParams {
    fn default() -> Self {
        Self {
            places_min: 1.0,
            places_max: 1e6,
            room: 0.9,
            used: 0.9,
            growth_per_s: 0.03,
            growth_min_per_s: 0.5,
            growth_at_knee: 0.1,
            halvings_max: 3,
            knee: 1.02,
            growth_for: Duration::from_secs(10),
            for_others: 0.7,
            spare: 0.5,
            spare_for: Duration::from_secs(30),
        }
    }
}

impl CongestionParams {
    /// Whether so many places are those of the last cut or a try beyond them.
    fn is_about(&self, knee: f64, places: f64) -> bool {
        places >= knee && self.is_same(knee, places)
    }

    /// Whether two cuts led to the same place.
    fn is_same(&self, knee: f64, again: f64) -> bool {
        (again - knee).abs() < ((self.knee - 1.0) * knee).max(1.0)
    }
}

/// By which answer places were last cut.
#[derive(Debug, Clone, PartialEq)]
pub struct CutBy {
    /// The query.
    pub query: String,
    /// What it told.
    pub told: f64,
    /// What it was to be.
    pub aim: f64,
    /// Whether it tells anything now.
    pub is_silent: bool,
}

/// What was decided.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct CongestionStep {
    /// In flight at a time, all tenants together; `None` when it sets no limit.
    pub places: Option<f64>,
    /// By what; `None` of those that an earlier leader had set.
    pub by: Option<CutBy>,
}

/// The law of one pool's concurrency by congestion signals.
#[derive(Debug, Clone)]
pub struct CongestionLaw {
    params: CongestionParams,
    step: CongestionStep,
    stepped_at: Option<MonoTime>,
    /// The newest answer of each query that was taken.
    heard_at: BTreeMap<String, MonoTime>,
    /// How many were in flight, of late.
    in_flight: VecDeque<(MonoTime, f64)>,
    /// Until then not all members have told a new leader what they have in flight.
    unheard_until: Option<MonoTime>,
    /// To where it was last cut.
    knee: Option<f64>,
    /// How many tries in turn were cut back to there.
    tries: u8,
    /// When a queue of others was last given way to.
    gave_way_at: Option<MonoTime>,
    spare_since: Option<MonoTime>,
}

impl CongestionLaw {
    /// There is no limit.
    #[must_use]
    pub fn new(params: CongestionParams) -> Self {
        Self {
            params,
            step: CongestionStep::default(),
            stepped_at: None,
            heard_at: BTreeMap::new(),
            in_flight: VecDeque::new(),
            unheard_until: None,
            knee: None,
            tries: 0,
            gave_way_at: None,
            spare_since: None,
        }
    }

    /// Goes on from what an earlier leader allowed; members will have told what they have in flight by then.
    pub fn resume(&mut self, places: f64, heard_by: MonoTime) {
        self.step.places = Some(places.clamp(self.params.places_min, self.params.places_max));
        self.unheard_until = Some(heard_by);
    }

    /// One tick, with what is in flight now; `None` where no member tells.
    pub fn step(&mut self, now: MonoTime, in_flight: Option<f64>, pressures: &[Pressure]) -> CongestionStep {
        let span_s = span_s(self.stepped_at, now);
        self.stepped_at = Some(now);
        if pressures.is_empty() {
            // No longer configured: nothing would ever lift it.
            *self = Self { stepped_at: Some(now), ..Self::new(self.params) };
            return self.step.clone();
        }
        let silent = |query: &str| !pressures.iter().any(|one| one.query == query && one.told.fresh().is_some());
        if let Some(by) = &mut self.step.by {
            by.is_silent = silent(&by.query);
            // Nobody tells any more what a try beyond the knee came to.
            if let (true, Some(places), Some(knee)) = (by.is_silent, &mut self.step.places, self.knee)
                && self.params.is_about(knee, *places)
            {
                *places = knee;
            }
        }
        let Some(in_flight) = in_flight else {
            self.in_flight.clear();
            return self.step.clone();
        };
        let lag = pressures.iter().map(|pressure| pressure.lag).max().unwrap_or_default();
        self.in_flight.push_back((now, in_flight));
        while self.in_flight.front().is_some_and(|(at, _)| now.since(*at) > lag) && self.in_flight.len() > 1 {
            self.in_flight.pop_front();
        }
        if self.unheard_until.is_none_or(|until| now >= until) {
            for pressure in pressures {
                let Some(told) = pressure.told.fresh() else { continue };
                let known = self.heard_at.insert(pressure.query.clone(), told.at);
                if known.is_none_or(|known| told.at > known) {
                    self.cut(now, pressure, told.value);
                }
            }
        }
        self.heard_at.retain(|query, _| pressures.iter().any(|pressure| pressure.query == *query));
        self.grow_or_end(now, in_flight, span_s, pressures);
        self.step.clone()
    }

    fn cut(&mut self, now: MonoTime, pressure: &Pressure, value: f64) {
        if value <= pressure.aim {
            return;
        }
        let most = self.in_flight.iter().map(|(_, n)| *n).fold(0.0, f64::max);
        let mut is_ours = true;
        let bound = match pressure.counts {
            Counts::Part => most * pressure.aim / value,
            Counts::Requests if value - pressure.aim < most => most - value + pressure.aim,
            Counts::Requests => {
                if self.gave_way_at.is_some_and(|at| now.since(at) <= pressure.lag) {
                    return;
                }
                (self.gave_way_at, is_ours) = (Some(now), false);
                self.params.for_others * self.step.places.unwrap_or(most).min(most)
            }
        };
        // A part of a place is nobody's; nor is it to be so much of one that the next is tried at once.
        let bound = if is_ours { bound.min(bound.floor() + 0.5) } else { bound };
        let bound = bound.clamp(self.params.places_min, self.params.places_max);
        if self.step.places.is_none_or(|places| bound < places) {
            let is_again = is_ours && self.knee.is_some_and(|knee| self.params.is_same(knee, bound));
            let has_tried = self.step.places.zip(self.knee).is_some_and(|(places, knee)| places >= knee.floor() + 1.0);
            self.tries = if is_again { self.tries.saturating_add(has_tried.into()) } else { 0 };
            let (query, aim) = (pressure.query.clone(), pressure.aim);
            self.step =
                CongestionStep { places: Some(bound), by: Some(CutBy { query, told: value, aim, is_silent: false }) };
            (self.knee, self.spare_since) = (Some(bound), None);
        }
    }

    fn grow_or_end(&mut self, now: MonoTime, in_flight: f64, span_s: f64, pressures: &[Pressure]) {
        let params = self.params;
        let fresh = || pressures.iter().filter_map(|pressure| Some((pressure, pressure.told.fresh()?)));
        let has_room = self.step.by.as_ref().is_none_or(|by| !by.is_silent)
            && fresh().next().is_some()
            && fresh().all(|(pressure, told)| leaves_room(&params, pressure, told));
        let Some(places) = &mut self.step.places else { return };
        let is_recent = fresh().any(|(_, told)| now.since(told.at) <= params.growth_for);
        // A part of a place is nobody's.
        if has_room && is_recent && in_flight >= params.used * places.floor() {
            let slowly = match self.knee.filter(|knee| params.is_about(*knee, *places)) {
                // Another place is given: it is a try until an answer has come, or this has been left.
                Some(knee) if *places >= knee.floor() + 1.0 => params.growth_at_knee,
                Some(_) => params.growth_at_knee * 0.5_f64.powi(self.tries.min(params.halvings_max).into()),
                None => 1.0,
            };
            *places += (params.growth_per_s * *places).max(params.growth_min_per_s) * slowly * span_s;
            *places = places.min(params.places_max);
        }
        if !has_room || in_flight > params.spare * places.floor() {
            self.spare_since = None;
        } else if now.since(*self.spare_since.get_or_insert(now)) >= params.spare_for {
            self.step = CongestionStep::default();
        }
    }
}

fn leaves_room(params: &CongestionParams, pressure: &Pressure, told: Measured) -> bool {
    match pressure.counts {
        Counts::Requests => told.value < 1.0_f64.min(pressure.aim),
        Counts::Part => told.value < params.room * pressure.aim,
    }
}
