//! What was seen of a run, sample by sample: the one source of the screen, the table and the chart.

use std::collections::BTreeMap;

use super::script::Phase;
use super::service::Told;
use crate::sim::emulator::EmulatorState;

/// A curve's value is a mean over this long, in seconds: a few requests more or less must not look like news, and a cut
/// must not look slow.
const MEAN_OVER_S: f64 = 1.0;

/// A way to a provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// Through limits that tidegate retunes.
    Adaptive,
    /// Through limits that were set once.
    Static,
}

/// Both, in the order of every array here that has one of each.
pub(super) const WAYS: [Way; 2] = [Way::Adaptive, Way::Static];

impl Way {
    /// Its name.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Adaptive => "adaptive",
            Self::Static => "static",
        }
    }
}

/// How a tenant stands.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct TenantNow {
    /// What the members enforce together on the adaptive way, in requests per minute.
    pub threshold: f64,
    /// Requests that wait for admission there.
    pub waiting: usize,
    /// Its static quota, in requests per minute.
    pub quota: f64,
}

/// How things stood at one moment.
#[derive(Debug, Clone)]
pub(super) struct Sample {
    /// Each provider's account of itself, by way.
    pub ways: [EmulatorState; 2],
    /// By tenant.
    pub tenants: BTreeMap<&'static str, TenantNow>,
    /// Why the thresholds are what they are, in the controller's words.
    pub reason: String,
    /// Who leads.
    pub leader: Option<String>,
    /// What each member has said since the sample before.
    pub told: Vec<Vec<Told>>,
}

/// Something that was done.
#[derive(Debug, Clone)]
pub(super) struct Event {
    /// When, in seconds since the run began.
    pub at_s: f64,
    /// What, in words.
    pub words: &'static str,
    /// The command that did it, where an operator would have typed one.
    pub command: Option<String>,
    /// For the chart.
    pub mark: [&'static str; 2],
}

/// A phase that was played, or is being played.
#[derive(Debug, Clone, Copy)]
pub(super) struct Played {
    /// The script's.
    pub phase: Phase,
    /// The number of its first sample, taken when its act was done.
    pub first: usize,
    /// The number of its last one.
    pub last: usize,
}

/// One point of the curves, in requests per minute.
#[derive(Debug, Clone, Copy)]
pub(super) struct Point {
    /// Seconds since the run began.
    pub at_s: f64,
    /// The provider's limit.
    pub limit: f64,
    /// What the members may send, all tenants together.
    pub threshold: f64,
    /// What reached the provider.
    pub sent: f64,
    /// What of it was answered 429.
    pub refused: f64,
}

/// A run so far.
#[derive(Debug, Default)]
pub(super) struct Record {
    samples: Vec<Sample>,
    played: Vec<Played>,
    events: Vec<Event>,
}

impl Record {
    /// A phase begins with this sample.
    pub(super) fn begin(&mut self, phase: Phase, sample: Sample) {
        let first = self.samples.len();
        self.samples.push(sample);
        self.played.push(Played { phase, first, last: first });
    }

    /// One more sample of the phase under way.
    pub(super) fn add(&mut self, sample: Sample) {
        self.samples.push(sample);
        if let Some(played) = self.played.last_mut() {
            played.last = self.samples.len() - 1;
        }
    }

    /// Something was done.
    pub(super) fn note(&mut self, event: Event) {
        self.events.push(event);
    }

    /// The phases so far.
    pub(super) fn played(&self) -> &[Played] {
        &self.played
    }

    /// What was done so far.
    pub(super) fn events(&self) -> &[Event] {
        &self.events
    }

    /// The newest sample.
    pub(super) fn last(&self) -> Option<&Sample> {
        self.samples.last()
    }

    /// The first and the last sample of a phase.
    pub(super) fn ends(&self, played: &Played) -> (&Sample, &Sample) {
        (&self.samples[played.first], &self.samples[played.last])
    }

    /// The samples of a phase.
    pub(super) fn samples_of(&self, played: &Played) -> &[Sample] {
        &self.samples[played.first..=played.last]
    }

    /// What each member enforced when a phase began, and what it said from then to the phase's end.
    pub(super) fn told_in(&self, played: &Played) -> Vec<(Option<&Told>, Vec<&Told>)> {
        let began_ms = self.samples[played.first].ways[0].marked.unix_ms;
        let members = self.samples[played.first].told.len();
        (0..members)
            .map(|member| {
                let said = || self.samples[..=played.last].iter().flat_map(|sample| &sample.told[member]);
                let before = said().rfind(|told| told.unix_ms < began_ms);
                (before, said().filter(|told| told.unix_ms >= began_ms).collect())
            })
            .collect()
    }

    /// How long the run has lasted, in seconds.
    pub(super) fn elapsed_s(&self) -> f64 {
        self.samples.len().checked_sub(1).map_or(0.0, |last| self.seconds(last))
    }

    /// One way's curves.
    pub(super) fn curves(&self, way: Way) -> Vec<Point> {
        (0..self.samples.len()).map(|n| self.point(way, self.mean_from(n), n)).collect()
    }

    /// What a tenant got lately, in requests per minute: admitted, and answered 429.
    pub(super) fn tenant_now(&self, way: Way, tenant: &str) -> [f64; 2] {
        let Some(last) = self.samples.len().checked_sub(1) else { return [0.0; 2] };
        let from = self.mean_from(last);
        let minutes = self.minutes(from, last);
        let user = |n: usize| self.samples[n].ways[way as usize].truth.users.get(tenant).copied().unwrap_or_default();
        let (was, is) = (user(from), user(last));
        [
            precise(is.admitted_requests - was.admitted_requests) / minutes,
            precise(is.refused_requests - was.refused_requests) / minutes,
        ]
    }

    /// The sample from which a mean that ends with sample `n` is taken.
    fn mean_from(&self, n: usize) -> usize {
        (0..n).rev().find(|from| self.seconds(n) - self.seconds(*from) >= MEAN_OVER_S).unwrap_or(0)
    }

    fn point(&self, way: Way, from: usize, to: usize) -> Point {
        let minutes = self.minutes(from, to);
        let state = |n: usize| &self.samples[n].ways[way as usize];
        let total = |n: usize| state(n).truth.total;
        let (was, is) = (total(from), total(to));
        let refused = precise(is.refused_requests - was.refused_requests) / minutes;
        let tenants = self.samples[to].tenants.values();
        Point {
            at_s: self.seconds(to),
            limit: precise(state(to).account.requests_per_minute),
            threshold: match way {
                Way::Adaptive => tenants.map(|tenant| tenant.threshold).sum(),
                Way::Static => tenants.map(|tenant| tenant.quota).sum(),
            },
            sent: precise(is.admitted_requests - was.admitted_requests) / minutes + refused,
            refused,
        }
    }

    /// When a sample was taken, in seconds since the first one, by the adaptive way's provider.
    fn seconds(&self, n: usize) -> f64 {
        let uptime_ms = |n: usize| self.samples[n].ways[0].now.uptime_ms;
        precise(uptime_ms(n) - uptime_ms(0)) / 1e3
    }

    /// Between two samples; never zero.
    fn minutes(&self, from: usize, to: usize) -> f64 {
        ((self.seconds(to) - self.seconds(from)) / 60.0).max(1e-6)
    }
}

#[allow(clippy::cast_precision_loss, reason = "counts and milliseconds of ten minutes")]
pub(super) fn precise(n: u64) -> f64 {
    n as f64
}
