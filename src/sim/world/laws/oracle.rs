//! Who sees the account: sends whatever fits, of the tenant that has had least for its weight.
//!
//! *Fair.* Weighted fair queueing by what was served; who comes back has no credit for the time that it was away.
//! *In order.* First who is below its floor, then those for whom somebody waits, then batch work.
//! *Polite.* It leaves what others use in the next half second, and three standard deviations more.
//! *Paced.* In fixed windows it spreads what is left over the time that is left, so that nobody waits for a window.
//! *At the knee.* It has no more in flight than the server works on at full speed.

use std::collections::VecDeque;
use std::time::Duration;

use super::Law;
use crate::clock::MonoTime;
use crate::provider::Refill;
use crate::quota::Cost;
use crate::sim::world::plant::Verdict;
use crate::sim::world::run::{Moment, Order};
use crate::sim::world::scenario::{Happening, Scenario};

/// For how long it leaves others room, in seconds.
const POLITE_S: f64 = 0.5;
/// It does not look again sooner.
const LOOK_MIN: Duration = Duration::from_millis(1);
const WINDOW_S: f64 = 60.0;

/// The oracle.
#[derive(Debug)]
pub struct Oracle {
    weights: Vec<f64>,
    batch: Vec<bool>,
    /// Every how many seconds a request of a tenant goes first, where it has a floor, and when the next one does.
    floors: Vec<Option<(f64, MonoTime)>>,
    served: Vec<f64>,
    lines: Vec<VecDeque<usize>>,
    in_flight: usize,
    slots: Option<u32>,
    others_per_second: f64,
    windowed: bool,
    next_at: MonoTime,
    wakes_at: MonoTime,
}

impl Oracle {
    /// An oracle of this world.
    #[must_use]
    pub fn new(scenario: &Scenario) -> Self {
        let provider = &scenario.provider;
        let tenants = scenario.tenants.len();
        let refill = provider.dialect.dialect().semantics().refill;
        Self {
            weights: scenario.tenants.values().map(|tenant| tenant.weight).collect(),
            batch: scenario.tenants.values().map(|tenant| tenant.batch).collect(),
            floors: scenario
                .tenants
                .values()
                .map(|tenant| tenant.floor.map(|floor| (60.0 / floor, MonoTime::default())))
                .collect(),
            served: vec![0.0; tenants],
            lines: vec![VecDeque::new(); tenants],
            in_flight: 0,
            slots: provider.slots,
            others_per_second: provider.others_per_second,
            windowed: refill == Refill::FixedWindow && !provider.sliding_log,
            next_at: MonoTime::default(),
            wakes_at: MonoTime::default(),
        }
    }

    /// What must be free for a request to be sent.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a few requests")]
    fn room(&self, cost: Cost) -> Cost {
        let others = self.others_per_second * POLITE_S;
        let polite = if others > 0.0 { (others + 3.0 * others.sqrt()).ceil() as u32 } else { 0 };
        // In tokens as many times over as in requests.
        let times = 1 + polite;
        Cost {
            requests: cost.requests * times,
            input_tokens: cost.input_tokens * u64::from(times),
            output_tokens: cost.output_tokens * u64::from(times),
        }
    }

    /// In how many seconds the next may go, by the pace of a window.
    fn pace(&self, moment: &mut Moment<'_>) -> f64 {
        if !self.windowed {
            return 0.0;
        }
        let (left, left_s) = self.left(moment);
        if left < 1.0 { left_s } else { self.next_at.seconds_since(moment.now).min(left_s / left * 2.0) }
    }

    /// What is left of a window, less what others will use of it, and for how many seconds it is to last.
    fn left(&self, moment: &mut Moment<'_>) -> (f64, f64) {
        // Windows begin with the world, at a whole minute.
        let left_s = WINDOW_S - moment.now.seconds_since(MonoTime::default()) % WINDOW_S;
        let level = moment.plant.requests_left(moment.now);
        ((level - self.others_per_second * left_s).max(0.0), left_s)
    }

    fn go(&mut self, moment: &mut Moment<'_>) {
        let now = moment.now;
        for line in &mut self.lines {
            while let Some(late) = line.front().filter(|id| moment.requests[**id].deadline.is_some_and(|d| now > d)) {
                moment.orders.push(Order::GiveUp(*late));
                line.pop_front();
            }
        }
        if self.slots.is_some_and(|slots| slots > 0 && self.in_flight >= slots as usize) {
            return;
        }
        let behind = |n: &usize| self.served[*n] / self.weights[*n];
        let waiting = (0..self.lines.len()).filter(|n| !self.lines[*n].is_empty());
        let class = |n: &usize| match self.floors[*n] {
            Some((_, at)) if at <= now => 0,
            _ if self.batch[*n] => 2,
            _ => 1,
        };
        let first = |a: &usize, b: &usize| class(a).cmp(&class(b)).then(behind(a).total_cmp(&behind(b)));
        let Some(next) = waiting.min_by(first) else { return };
        let Some(id) = self.lines[next].front().copied() else { return };
        let room = self.room(moment.requests[id].cost);
        let wait_s = moment.plant.seconds_to_fit(&room, now).min(WINDOW_S).max(self.pace(moment));
        if wait_s > 0.0 {
            self.wake(now.after_seconds(wait_s).max(now + LOOK_MIN), moment);
            return;
        }
        self.lines[next].pop_front();
        self.served[next] += 1.0;
        if let Some((every_s, at)) = &mut self.floors[next] {
            *at = now.max(*at).after_seconds(*every_s);
        }
        self.in_flight += 1;
        if self.windowed {
            let (left, left_s) = self.left(moment);
            self.next_at = now.after_seconds(left_s / left.max(1.0));
        }
        // One at a time: what is sent changes what fits.
        moment.send(id);
        self.wake(now, moment);
    }

    fn wake(&mut self, at: MonoTime, moment: &mut Moment<'_>) {
        if self.wakes_at <= moment.now || at < self.wakes_at {
            self.wakes_at = at;
            moment.wake_at(at, at.0);
        }
    }
}

impl Law for Oracle {
    fn name(&self) -> &'static str {
        "oracle"
    }

    fn begin(&mut self, _moment: &mut Moment<'_>) {}

    fn arrived(&mut self, request: usize, moment: &mut Moment<'_>) {
        let tenant = moment.requests[request].tenant;
        if self.lines[tenant].is_empty() {
            // No credit for the time that it was away.
            let busy = (0..self.lines.len()).filter(|n| !self.lines[*n].is_empty());
            let least = busy.map(|n| self.served[n] / self.weights[n]).min_by(f64::total_cmp);
            if let Some(least) = least {
                self.served[tenant] = self.served[tenant].max(least * self.weights[tenant]);
            }
        }
        self.lines[tenant].push_back(request);
        self.go(moment);
    }

    fn refused(&mut self, request: usize, _verdict: &Verdict, moment: &mut Moment<'_>) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.lines[moment.requests[request].tenant].push_front(request);
        self.go(moment);
    }

    fn answered(&mut self, _request: usize, _sent_at: MonoTime, _verdict: &Verdict, _moment: &mut Moment<'_>) {}

    fn ended(&mut self, _request: usize, moment: &mut Moment<'_>) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.go(moment);
    }

    fn woken(&mut self, word: u64, moment: &mut Moment<'_>) {
        if word == self.wakes_at.0 {
            self.wakes_at = MonoTime::default();
            self.go(moment);
        }
    }

    fn happened(&mut self, what: &Happening, moment: &mut Moment<'_>) {
        match what {
            Happening::OthersPerSecond(per_second) => self.others_per_second = *per_second,
            Happening::Slots(slots) => self.slots = Some(*slots),
            _ => {}
        }
        self.go(moment);
    }
}
