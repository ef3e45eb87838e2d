//! What services do by themselves: each process limits each tenant's requests, or its own, by what it alone has seen.

use std::collections::VecDeque;
use std::time::Duration;

use super::Law;
use crate::clock::MonoTime;
use crate::sim::events::Dice;
use crate::sim::world::plant::Verdict;
use crate::sim::world::run::{Moment, Order};
use crate::sim::world::scenario::{Happening, Scenario};

/// The first retry after this, the next ones after twice as long each,
const BACKOFF: Duration = Duration::from_millis(500);
/// but not longer than this,
const BACKOFF_MAX: Duration = Duration::from_secs(8);
/// and up to this part earlier, at random: as OpenAI's and Anthropic's client libraries do it.
const BACKOFF_JITTER: f64 = 0.25;
/// What a refusal asks to wait is kept up to this.
const RETRY_AFTER_MAX_S: f64 = 60.0;

/// One limiter of a process.
pub trait Client {
    /// The law's name.
    const NAME: &'static str;
    /// Whether each tenant has one of its own in each process, or all tenants share one.
    const OF_A_TENANT: bool;
    /// Whether a refused request backs off by itself, or goes back to the head of the line.
    const BACKS_OFF: bool = true;

    /// One of a process; its part is what the operator would configure for it, in requests a second.
    fn new(part_per_s: f64) -> Self;
    /// When the next request may go; now, or before, is now.
    fn ready_at(&mut self, in_flight: usize, now: MonoTime) -> MonoTime;
    /// A request goes.
    fn sent(&mut self, now: MonoTime);
    /// An answer began, so long after its request was sent.
    fn answered(&mut self, took: Duration, in_flight: usize, now: MonoTime);
    /// The provider refused.
    fn refused(&mut self, retry_after_s: Option<f64>, now: MonoTime);
}

#[derive(Debug)]
struct Seat<C> {
    client: C,
    line: VecDeque<usize>,
    in_flight: usize,
    backing_off: usize,
    wakes_at: Option<MonoTime>,
}

/// All clients of a world.
#[derive(Debug)]
pub struct Clients<C> {
    seats: Vec<Seat<C>>,
    tenants: usize,
    workers: usize,
    attempts: Vec<u32>,
    up: Vec<bool>,
    dice: Dice,
}

/// Asks to send a request again; with its number.
const AGAIN: u64 = 1 << 63;

impl<C: Client> Clients<C> {
    /// The clients of this world.
    #[must_use]
    #[allow(clippy::cast_precision_loss, reason = "a number of processes")]
    pub fn new(scenario: &Scenario) -> Self {
        let members = scenario.members.split.len();
        let weights: Vec<f64> = scenario.tenants.values().map(|tenant| tenant.weight).collect();
        let all: f64 = weights.iter().sum();
        let each_per_s = scenario.configured() / 60.0 / members as f64;
        let of_member = || {
            let parts: Vec<f64> = if C::OF_A_TENANT { weights.iter().map(|w| w / all).collect() } else { vec![1.0] };
            parts.into_iter().map(|part| Seat {
                client: C::new(part * each_per_s),
                line: VecDeque::new(),
                in_flight: 0,
                backing_off: 0,
                wakes_at: None,
            })
        };
        Self {
            seats: (0..members).flat_map(|_| of_member()).collect(),
            tenants: if C::OF_A_TENANT { weights.len() } else { 1 },
            workers: scenario.members.workers,
            attempts: Vec::new(),
            up: vec![true; members],
            dice: Dice::new(scenario.seed ^ 0x00C1_1E47),
        }
    }

    fn seat_of(&self, request: usize, moment: &Moment<'_>) -> usize {
        let request = &moment.requests[request];
        request.member * self.tenants + if C::OF_A_TENANT { request.tenant } else { 0 }
    }

    fn go(&mut self, seat: usize, moment: &mut Moment<'_>) {
        let now = moment.now;
        let known = &mut self.seats[seat];
        while known.in_flight + known.backing_off < self.workers
            && let Some(id) = known.line.front().copied()
        {
            if moment.requests[id].deadline.is_some_and(|deadline| now > deadline) {
                moment.orders.push(Order::GiveUp(id));
                known.line.pop_front();
                continue;
            }
            let at = known.client.ready_at(known.in_flight, now);
            if at > now {
                if known.wakes_at.is_none_or(|wakes_at| wakes_at <= now || at < wakes_at) {
                    known.wakes_at = Some(at);
                    moment.wake_at(at, seat as u64);
                }
                return;
            }
            known.line.pop_front();
            known.in_flight += 1;
            known.client.sent(now);
            moment.send(id);
        }
    }
}

impl<C: Client> Law for Clients<C> {
    fn name(&self) -> &'static str {
        C::NAME
    }

    fn begin(&mut self, _moment: &mut Moment<'_>) {}

    fn arrived(&mut self, request: usize, moment: &mut Moment<'_>) {
        self.attempts.resize(request + 1, 0);
        let seat = self.seat_of(request, moment);
        self.seats[seat].line.push_back(request);
        self.go(seat, moment);
    }

    fn refused(&mut self, request: usize, verdict: &Verdict, moment: &mut Moment<'_>) {
        let seat = self.seat_of(request, moment);
        let known = &mut self.seats[seat];
        known.in_flight = known.in_flight.saturating_sub(1);
        known.client.refused(verdict.retry_after_s, moment.now);
        if C::BACKS_OFF {
            known.backing_off += 1;
            let nth = self.attempts[request];
            self.attempts[request] += 1;
            let backoff = (BACKOFF * 2_u32.saturating_pow(nth.min(8))).min(BACKOFF_MAX);
            let asked = verdict.retry_after_s.filter(|s| *s <= RETRY_AFTER_MAX_S).map(Duration::from_secs_f64);
            let wait = asked.unwrap_or_else(|| backoff.mul_f64(1.0 - BACKOFF_JITTER * self.dice.part()));
            moment.wake_after(wait, AGAIN | request as u64);
        } else {
            known.line.push_front(request);
        }
        self.go(seat, moment);
    }

    fn answered(&mut self, request: usize, sent_at: MonoTime, _verdict: &Verdict, moment: &mut Moment<'_>) {
        let seat = self.seat_of(request, moment);
        let known = &mut self.seats[seat];
        known.client.answered(moment.now.since(sent_at), known.in_flight, moment.now);
    }

    fn ended(&mut self, request: usize, moment: &mut Moment<'_>) {
        let seat = self.seat_of(request, moment);
        self.seats[seat].in_flight = self.seats[seat].in_flight.saturating_sub(1);
        self.go(seat, moment);
    }

    #[allow(clippy::cast_possible_truncation, reason = "an index")]
    fn woken(&mut self, word: u64, moment: &mut Moment<'_>) {
        if word & AGAIN == 0 {
            self.seats[word as usize].wakes_at = None;
            self.go(word as usize, moment);
            return;
        }
        let request = (word & !AGAIN) as usize;
        let seat = self.seat_of(request, moment);
        let known = &mut self.seats[seat];
        if known.backing_off > 0 && self.up[moment.requests[request].member] {
            known.backing_off -= 1;
            known.line.push_front(request);
        }
        self.go(seat, moment);
    }

    fn happened(&mut self, what: &Happening, _moment: &mut Moment<'_>) {
        match what {
            Happening::Kill(member) => {
                self.up[*member] = false;
                for seat in &mut self.seats[member * self.tenants..(member + 1) * self.tenants] {
                    seat.line.clear();
                    seat.backing_off = 0;
                }
            }
            Happening::Start(member) => self.up[*member] = true,
            _ => {}
        }
    }
}
