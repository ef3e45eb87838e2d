//! What is counted of a run, and what that comes to against the oracle's.

use serde::Serialize;

use super::run::Request;
use super::scenario::{Bands, Scenario};
use crate::clock::MonoTime;
use crate::quota::Unit;

/// How long after an event its refusals are counted apart.
const AFTER_EVENT_S: f64 = 30.0;
/// Goodput is compared with the oracle's over this many seconds,
const MEAN_S: usize = 8;
/// and has converged at this part of it,
const CONVERGED: f64 = 0.9;
/// with no more refusals than this part of what is sent,
const CALM: f64 = 0.05;
/// for this many seconds.
const CALM_S: usize = 10;

/// What was counted.
#[derive(Debug, Clone)]
pub struct Books {
    began_at: Option<MonoTime>,
    event_s: Option<f64>,
    in_tokens: bool,
    patient: Vec<bool>,
    sent: u64,
    refused: u64,
    sent_after_event: u64,
    refused_after_event: u64,
    impatient: u64,
    missed: u64,
    /// What each tenant got: requests, or LLM tokens where these are what is short.
    goodput: Vec<f64>,
    waits_s: Vec<f32>,
    urgent_waits_s: Vec<f32>,
    answers_s: Vec<f32>,
    seconds: Vec<Second>,
    /// Others' requests, and how many of them were admitted.
    pub(super) others: (u64, u64),
}

/// A second of a run.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Second {
    /// What was got: requests, or LLM tokens where these are what is short.
    pub got: f64,
    /// Requests sent.
    pub sent: f64,
    /// Of these, refused.
    pub refused: f64,
}

/// What a run came to.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Outcome {
    /// The scenario's name.
    pub scenario: String,
    /// The law's.
    pub law: String,
    /// The seed.
    pub seed: u64,
    /// What was got, against what the oracle got; more than 1 where others lost it.
    pub efficiency: f64,
    /// Refusals by the provider, as a part of what was sent to it.
    pub throttled_ratio: f64,
    /// The same of the 30 s after the first event; `null` without one.
    pub throttled_after_event: Option<f64>,
    /// Half the sum of what tenants got more or less than of the oracle, as a part of all that it gave.
    pub unfairness: f64,
    /// Jain's index of what tenants got, each against what the oracle gave it; 1 is even.
    pub jain: f64,
    /// How long requests waited before the provider took them, in seconds: half of them less.
    pub wait_p50_s: f64,
    /// 99 of 100 of them less.
    pub wait_p99_s: f64,
    /// The same of those that have a deadline.
    pub urgent_wait_p99_s: f64,
    /// Requests with a deadline that were not sent in time, as a part of all such.
    pub slo_miss_ratio: f64,
    /// From the first event until goodput is near the oracle's and few are refused, in seconds; `null` when that was never, or
    /// there is no event.
    pub convergence_s: Option<f64>,
    /// Others' requests that were admitted, as a part of those that they made; `null` when they made none.
    pub others_kept: Option<f64>,
    /// How long whole answers took from when their requests were sent, in seconds: 95 of 100 of them less.
    pub answer_p95_s: f64,
}

impl Books {
    pub(super) fn new(scenario: &Scenario, event_s: Option<f64>) -> Self {
        let tenants = scenario.tenants.len();
        Self {
            began_at: None,
            event_s,
            in_tokens: super::limits(&scenario.provider, Unit::Tokens),
            patient: scenario.tenants.values().map(|tenant| tenant.patience_s.is_none()).collect(),
            sent: 0,
            refused: 0,
            sent_after_event: 0,
            refused_after_event: 0,
            impatient: 0,
            missed: 0,
            goodput: vec![0.0; tenants],
            waits_s: Vec::new(),
            urgent_waits_s: Vec::new(),
            answers_s: Vec::new(),
            seconds: Vec::new(),
            others: (0, 0),
        }
    }

    pub(super) fn began(&mut self, at: MonoTime) {
        self.began_at = Some(at);
    }

    pub(super) fn arrived(&mut self, request: &Request) {
        self.impatient += u64::from(!self.patient[request.tenant]);
    }

    #[allow(clippy::cast_precision_loss, reason = "counts of a run")]
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "seconds of a run")]
    pub(super) fn sent(&mut self, request: &Request, admitted: bool, now: MonoTime) {
        let at_s = self.began_at.map_or(0.0, |began| now.seconds_since(began));
        self.sent += 1;
        self.refused += u64::from(!admitted);
        if self.event_s.is_some_and(|event_s| (event_s..event_s + AFTER_EVENT_S).contains(&at_s)) {
            self.sent_after_event += 1;
            self.refused_after_event += u64::from(!admitted);
        }
        let second = at_s as usize;
        if self.seconds.len() <= second {
            self.seconds.resize(second + 1, Second::default());
        }
        let second = &mut self.seconds[second];
        second.sent += 1.0;
        if admitted {
            let units = if self.in_tokens { (request.cost.input_tokens + request.output_tokens) as f64 } else { 1.0 };
            second.got += units;
            self.goodput[request.tenant] += units;
            let waited_s = now.seconds_since(request.arrived_at) as f32;
            self.waits_s.push(waited_s);
            if request.deadline.is_some() {
                self.urgent_waits_s.push(waited_s);
            }
            self.missed += u64::from(request.deadline.is_some_and(|deadline| now > deadline));
        } else {
            second.refused += 1.0;
        }
    }

    #[allow(clippy::cast_possible_truncation, reason = "seconds of a run")]
    pub(super) fn ended(&mut self, request: &Request, now: MonoTime) {
        self.answers_s.push(now.seconds_since(request.sent_at) as f32);
    }

    /// Second by second.
    #[must_use]
    pub fn seconds(&self) -> &[Second] {
        &self.seconds
    }

    pub(super) fn gave_up(&mut self, request: &Request) {
        self.missed += u64::from(request.deadline.is_some());
    }

    pub(super) fn left_waiting(&mut self, request: &Request, end: MonoTime) {
        self.missed += u64::from(request.deadline.is_some_and(|deadline| end > deadline));
    }

    #[allow(clippy::cast_precision_loss, reason = "counts of a run")]
    pub(super) fn outcome(&self, scenario: &str, law: &str, seed: u64, oracle: &Self) -> Outcome {
        let ratio = |part: u64, of: u64| if of == 0 { 0.0 } else { part as f64 / of as f64 };
        let (got, could): (f64, f64) = (self.goodput.iter().sum(), oracle.goodput.iter().sum());
        let pairs = || self.goodput.iter().zip(&oracle.goodput);
        let off: f64 = pairs().map(|(got, could)| (got - could).abs()).sum();
        let parts: Vec<f64> = pairs().filter(|(_, could)| **could > 0.0).map(|(got, could)| got / could).collect();
        let (sum, squares): (f64, f64) = (parts.iter().sum(), parts.iter().map(|part| part * part).sum());
        let (others, kept) = self.others;
        Outcome {
            scenario: scenario.to_owned(),
            law: law.to_owned(),
            seed,
            efficiency: if could > 0.0 { got / could } else { 1.0 },
            throttled_ratio: ratio(self.refused, self.sent),
            throttled_after_event: self.event_s.map(|_| ratio(self.refused_after_event, self.sent_after_event)),
            unfairness: if could > 0.0 { off / 2.0 / could } else { 0.0 },
            jain: if squares > 0.0 { sum * sum / (parts.len() as f64 * squares) } else { 1.0 },
            wait_p50_s: below(&self.waits_s, 0.5),
            wait_p99_s: below(&self.waits_s, 0.99),
            urgent_wait_p99_s: below(&self.urgent_waits_s, 0.99),
            slo_miss_ratio: ratio(self.missed, self.impatient),
            convergence_s: self.convergence_s(oracle),
            others_kept: (others > 0).then(|| ratio(kept, others)),
            answer_p95_s: below(&self.answers_s, 0.95),
        }
    }

    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "seconds")]
    fn convergence_s(&self, oracle: &Self) -> Option<f64> {
        let event = self.event_s?.ceil() as usize;
        let of = |seconds: &[Second], at: usize, span: usize, what: fn(&Second) -> f64| {
            seconds.iter().skip(at).take(span).map(what).sum::<f64>()
        };
        let got = |books: &Self, at: usize| of(&books.seconds, at, MEAN_S, |second| second.got);
        let good = |at: usize| {
            let sent = of(&self.seconds, at, CALM_S, |second| second.sent);
            got(self, at) >= CONVERGED * got(oracle, at)
                && of(&self.seconds, at, CALM_S, |second| second.refused) <= CALM * sent.max(1.0)
        };
        let last = self.seconds.len().saturating_sub(CALM_S);
        (event..last).find(|at| good(*at)).map(|at| (at - event) as f64)
    }
}

/// What this part of them are below, 0–1; 0 of nothing.
#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index")]
fn below(all: &[f32], part: f64) -> f64 {
    let mut all = all.to_vec();
    all.sort_by(f32::total_cmp);
    let nth = (part * all.len() as f64) as usize;
    all.get(nth.min(all.len().saturating_sub(1))).map_or(0.0, |x| f64::from(*x))
}

impl Bands {
    /// Which numbers are outside, in a line each.
    #[must_use]
    pub fn outside(&self, outcome: &Outcome) -> Vec<String> {
        let least = |name: &str, is: Option<f64>, least: Option<f64>| match (is, least) {
            (Some(is), Some(least)) if is < least => Some(format!("{name} {is:.4}: expected {least} at least")),
            (None, Some(least)) => Some(format!("{name} is unknown: expected {least} at least")),
            _ => None,
        };
        let most = |name: &str, is: Option<f64>, most: Option<f64>| match (is, most) {
            (Some(is), Some(most)) if is > most => Some(format!("{name} {is:.4}: expected {most} at most")),
            (None, Some(most)) => Some(format!("{name} was never reached: expected {most} at most")),
            _ => None,
        };
        [
            least("efficiency", Some(outcome.efficiency), self.efficiency),
            most("throttled_ratio", Some(outcome.throttled_ratio), self.throttled_ratio),
            most("throttled_after_event", outcome.throttled_after_event, self.throttled_after_event),
            most("unfairness", Some(outcome.unfairness), self.unfairness),
            most("wait_p99_s", Some(outcome.wait_p99_s), self.wait_p99_s),
            most("urgent_wait_p99_s", Some(outcome.urgent_wait_p99_s), self.urgent_wait_p99_s),
            most("convergence_s", outcome.convergence_s, self.convergence_s),
            least("others_kept", outcome.others_kept, self.others_kept),
            most("answer_p95_s", Some(outcome.answer_p95_s), self.answer_p95_s),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}
