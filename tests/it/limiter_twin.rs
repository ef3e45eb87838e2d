//! The token bucket and the decision over several meters against slow, obvious twins that count in whole numbers: rates are
//! whole units a millisecond and all happens at whole milliseconds, so there is one right answer and no rounding.

#![allow(clippy::needless_range_loop, reason = "one index for all that a meter has")]

use std::collections::BTreeMap;

use fastrand::Rng;
use tidegate::clock::MonoTime;
use tidegate::limiter::{Bound, Bucket, Counting, Denial, Hold, Limiter, Limits, MeterLimit, Never, Reservation, Wait};
use tidegate::plan::Rate;
use tidegate::quota::{Cost, Meter, Unit, Window};

const SEQUENCES: u64 = 50_000;
const REQUESTS: Meter = Meter { unit: Unit::Requests, window: Window::Second };
const TOKENS: Meter = Meter { unit: Unit::Tokens, window: Window::Second };
const METERS: [Meter; 2] = [REQUESTS, TOKENS];

fn ms(ms: i64) -> MonoTime {
    MonoTime::from_millis(ms.unsigned_abs())
}

/// A token bucket that goes from millisecond to millisecond.
#[derive(Debug, Clone, Copy)]
struct SlowBucket {
    per_ms: i64,
    burst: i64,
    level: i64,
    at_ms: i64,
}

impl SlowBucket {
    fn new(per_ms: i64, burst: i64, at_ms: i64) -> Self {
        Self { per_ms, burst, level: (per_ms * 1_000).min(burst), at_ms }
    }

    fn go_to(&mut self, now_ms: i64) {
        while self.at_ms < now_ms {
            self.level = (self.level + self.per_ms).min(self.burst);
            self.at_ms += 1;
        }
    }

    /// How many milliseconds until it holds so many: tried one by one.
    fn until(&self, units: i64) -> Option<i64> {
        let mut later = *self;
        if self.level < units && (self.per_ms == 0 || units > self.burst) {
            return None;
        }
        while later.level < units {
            later.go_to(later.at_ms + 1);
        }
        Some(later.at_ms - self.at_ms)
    }
}

#[test]
fn a_bucket_agrees_with_one_that_goes_millisecond_by_millisecond() {
    for seed in 0..SEQUENCES {
        let mut rng = Rng::with_seed(seed);
        let mut now = rng.i64(0..1_000);
        let (per_ms, burst) = (rng.i64(0..5), rng.i64(1..400));
        let mut bucket = Bucket::new(per_ms as f64 * 1e3, burst as f64, ms(now));
        let mut slow = SlowBucket::new(per_ms, burst, now);
        for _ in 0..rng.usize(1..20) {
            now += if rng.u8(..8) == 0 { rng.i64(0..400) } else { rng.i64(0..20) };
            slow.go_to(now);
            match rng.u8(..5) {
                0 => {
                    let (per_ms, burst) = (rng.i64(0..5), rng.i64(1..400));
                    bucket.retune(per_ms as f64 * 1e3, burst as f64, ms(now));
                    (slow.per_ms, slow.burst, slow.level) = (per_ms, burst, slow.level.min(burst));
                }
                1 => {
                    let units = rng.i64(-50..200);
                    bucket.give_back(units as f64, ms(now));
                    slow.level = (slow.level + units).min(slow.burst);
                }
                2 => {
                    bucket.drain(0.004, 0.03, ms(now), ms(now));
                    slow.level = slow.level.min((slow.per_ms * 4).max(slow.level - slow.per_ms * 30));
                }
                _ => {
                    let units = rng.i64(0..300);
                    bucket.take(units as f64, ms(now));
                    slow.level -= units;
                }
            }
            assert!((bucket.level_at(ms(now)) - slow.level as f64).abs() < 1e-6, "seed {seed}: {bucket:?} {slow:?}");
            let wanted = rng.i64(1..400);
            // A wait is at whole milliseconds or just before one: the millisecond in which it is.
            let wait = bucket.reaches_at(wanted as f64, ms(now));
            let in_ms = wait.map(|at| (at.0 - ms(now).0).div_ceil(1_000_000).cast_signed());
            assert_eq!(in_ms, slow.until(wanted), "seed {seed}: {wanted} of {bucket:?} {slow:?}");
        }
    }
}

/// What is in flight in the twin.
#[derive(Debug, Clone, Copy)]
struct Flight {
    cost: [i64; 2],
    oversize: [bool; 2],
    /// Which of each meter's lives it took from.
    lives: [u32; 2],
}

#[derive(Debug)]
struct SlowLimiter {
    buckets: [Option<SlowBucket>; 2],
    /// Removed, and when: remembered for a window, one second.
    removed: [Option<(SlowBucket, i64)>; 2],
    lives: [u32; 2],
    largest: i64,
    concurrency: Option<usize>,
    blocked: bool,
    flights: Vec<Flight>,
    /// Until when each meter is held, and whether its end has been acted on.
    holds: [Option<i64>; 2],
}

#[derive(Debug, PartialEq)]
enum Right {
    Admit,
    In(Option<i64>),
    Never(usize),
}

impl SlowLimiter {
    fn go_to(&mut self, now_ms: i64) {
        for bucket in self.buckets.iter_mut().flatten() {
            bucket.go_to(now_ms);
        }
    }

    /// Ends holds at the moment they end: levels there are lowered to a quarter of a second's rate, by twelve seconds' rate at
    /// the most.
    fn release(&mut self, now_ms: i64) {
        for n in 0..2 {
            if let Some(until) = self.holds[n].filter(|until| *until <= now_ms) {
                self.holds[n] = None;
                if let Some(bucket) = &mut self.buckets[n] {
                    // One that was touched since is lowered then.
                    bucket.go_to(until.max(bucket.at_ms));
                    let left = bucket.per_ms * (250 + bucket.at_ms - until);
                    bucket.level = bucket.level.min(left.max(bucket.level - bucket.per_ms * 12_000));
                }
            }
        }
    }

    fn decide(&mut self, cost: [i64; 2], now_ms: i64) -> Right {
        for n in 0..2 {
            if self.buckets[n].is_some() && cost[n] > self.largest {
                return Right::Never(n);
            }
        }
        self.release(now_ms);
        self.go_to(now_ms);
        let mut wait = Some(0);
        let mut not_before = |at: Option<i64>| wait = wait.zip(at).map(|(a, b)| a.max(b));
        let mut oversize = [false; 2];
        for n in 0..2 {
            if let Some(until) = self.holds[n].filter(|_| cost[n] > 0) {
                not_before(Some(until - now_ms));
            }
            let Some(bucket) = &self.buckets[n] else { continue };
            if cost[n] == 0 {
                continue;
            }
            oversize[n] = cost[n] > bucket.burst;
            let flies = self.flights.iter().any(|flight| flight.oversize[n]);
            not_before(if oversize[n] && flies { None } else { bucket.until(cost[n].min(bucket.burst)) });
        }
        if self.concurrency.is_some_and(|most| self.flights.len() >= most) || self.blocked {
            not_before(None);
        }
        if wait != Some(0) {
            return Right::In(wait);
        }
        for n in 0..2 {
            if let Some(bucket) = &mut self.buckets[n] {
                bucket.level -= cost[n];
            }
        }
        self.flights.push(Flight { cost, oversize, lives: self.lives });
        Right::Admit
    }

    fn settle(&mut self, place: usize, charged: Option<[i64; 2]>, now_ms: i64) {
        self.go_to(now_ms);
        let flight = self.flights.swap_remove(place);
        let Some(charged) = charged else { return };
        for n in 0..2 {
            if let Some(bucket) = self.buckets[n].as_mut().filter(|_| flight.lives[n] == self.lives[n]) {
                bucket.level = (bucket.level + flight.cost[n] - charged[n]).min(bucket.burst);
            }
        }
    }

    fn retune(&mut self, new: [Option<(i64, i64)>; 2], now_ms: i64) {
        self.go_to(now_ms);
        for n in 0..2 {
            match (&mut self.buckets[n], new[n]) {
                (Some(bucket), Some((per_ms, burst))) => {
                    (bucket.per_ms, bucket.burst, bucket.level) = (per_ms, burst, bucket.level.min(burst));
                }
                (None, Some((per_ms, burst))) => {
                    let known = self.removed[n].take().filter(|(_, at)| now_ms - at < 1_000);
                    let mut bucket = known.map_or(SlowBucket::new(per_ms, burst, now_ms), |(bucket, _)| bucket);
                    (bucket.per_ms, bucket.burst, bucket.at_ms) = (per_ms, burst, now_ms);
                    bucket.level = bucket.level.min(burst);
                    self.buckets[n] = Some(bucket);
                    self.lives[n] += 1;
                }
                (known @ Some(_), None) => self.removed[n] = known.take().map(|bucket| (bucket, now_ms)),
                (None, None) => {}
            }
        }
    }
}

fn random_limits(rng: &mut Rng) -> [Option<(i64, i64)>; 2] {
    [0, 1].map(|_| (rng.u8(..6) > 0).then(|| (rng.i64(0..4), rng.i64(1..60))))
}

fn limits_of(new: [Option<(i64, i64)>; 2], slow: &SlowLimiter) -> Limits {
    let meter = |(meter, limit): (Meter, Option<(i64, i64)>)| {
        let (per_ms, burst) = limit?;
        let rate = Rate { rate: per_ms as f64 * 1e3, burst: burst as f64 };
        let counting = Counting::TokenBucket;
        Some((meter, MeterLimit { rate, largest_request: slow.largest as f64, counting, together: None }))
    };
    let meters: BTreeMap<Meter, MeterLimit> = METERS.into_iter().zip(new).filter_map(meter).collect();
    let concurrency = slow.concurrency.map(|most| u32::try_from(most).expect("small"));
    Limits { meters, concurrency, blocked: slow.blocked, ..Limits::default() }
}

fn cost_of(cost: [i64; 2]) -> Cost {
    Cost { requests: cost[0] as u32, input_tokens: cost[1].unsigned_abs(), output_tokens: 0 }
}

#[test]
fn the_decision_over_meters_agrees_with_one_that_looks_at_all_of_them_in_turn() {
    let mut seen = BTreeMap::<&str, u64>::new();
    for seed in 0..SEQUENCES {
        let mut rng = Rng::with_seed(seed);
        let mut now = 10;
        let mut slow = SlowLimiter {
            buckets: [None; 2],
            removed: [None; 2],
            lives: [0; 2],
            largest: 80,
            concurrency: None,
            blocked: false,
            flights: Vec::new(),
            holds: [None; 2],
        };
        let first = random_limits(&mut rng);
        slow.retune(first, now);
        let mut limiter = Limiter::new(&limits_of(first, &slow), ms(now));
        let mut flying: Vec<Reservation> = Vec::new();
        for _ in 0..rng.usize(1..25) {
            now += if rng.u8(..8) == 0 { rng.i64(0..1_500) } else { rng.i64(0..12) };
            match rng.u8(..10) {
                0 => {
                    slow.concurrency = (rng.u8(..3) > 0).then(|| rng.usize(0..4));
                    slow.blocked = rng.u8(..8) == 0;
                    let new = random_limits(&mut rng);
                    // A hold that ended ended before the limits changed.
                    slow.go_to(now);
                    slow.release(now);
                    slow.retune(new, now);
                    limiter.retune(&limits_of(new, &slow), ms(now));
                }
                1 => {
                    slow.go_to(now);
                    slow.release(now);
                    let until = now + rng.i64(1..40);
                    let which = rng.usize(0..2);
                    slow.holds[which] = Some(slow.holds[which].map_or(until, |known| known.max(until)));
                    let holds = METERS.iter().zip(slow.holds);
                    let told = holds.filter_map(|(meter, until)| Some(Hold { meter: *meter, until: ms(until?) }));
                    limiter.hold(&told.collect::<Vec<_>>(), ms(now));
                }
                2 | 3 if !flying.is_empty() => {
                    let place = rng.usize(0..flying.len());
                    let charged = (rng.u8(..3) > 0).then(|| [rng.i64(0..3), rng.i64(0..90)]);
                    slow.go_to(now);
                    slow.release(now);
                    slow.settle(place, charged, now);
                    limiter.settle(flying.swap_remove(place), charged.map(cost_of), ms(now));
                }
                _ => {
                    let cost = [rng.i64(0..3), if rng.bool() { rng.i64(0..20) } else { rng.i64(0..90) }];
                    let right = slow.decide(cost, now);
                    let ours = match limiter.decide(&cost_of(cost), ms(now)) {
                        Ok(reservation) => {
                            flying.push(reservation);
                            Right::Admit
                        }
                        Err(Denial::WaitUntil(Wait { at, by })) => {
                            assert_eq!(by == Bound::Block, slow.blocked, "seed {seed}");
                            Right::In(at.map(|at| (at.0 - ms(now).0).div_ceil(1_000_000).cast_signed()))
                        }
                        Err(Denial::Never(Never { meter, .. })) => {
                            Right::Never(METERS.iter().position(|known| *known == meter).expect("one of them"))
                        }
                    };
                    assert_eq!(ours, right, "seed {seed} at {now}: {cost:?} {slow:?} {limiter:?}");
                    let word = match right {
                        Right::Admit => "admit",
                        Right::In(Some(_)) => "wait",
                        Right::In(None) => "wait for a change",
                        Right::Never(_) => "never",
                    };
                    *seen.entry(word).or_default() += 1;
                }
            }
            slow.go_to(now);
            for (n, meter) in METERS.into_iter().enumerate() {
                let (level, right) =
                    (limiter.level_at(meter, ms(now)), slow.buckets[n].map(|bucket| bucket.level as f64));
                // One whose hold has ended is lowered when somebody asks.
                if slow.holds[n].is_none_or(|until| until > now) {
                    assert_eq!(level.is_some(), right.is_some(), "seed {seed}");
                    let apart = level.zip(right).map_or(0.0, |(level, right)| (level - right).abs());
                    assert!(apart < 1e-6, "seed {seed} at {now}: {meter} {level:?} {right:?} {slow:?} {limiter:?}");
                }
            }
            assert_eq!(limiter.in_flight() as usize, slow.flights.len(), "seed {seed}");
        }
    }
    assert_eq!(seen.len(), 4, "every answer was asked for: {seen:?}");
    assert!(seen.values().all(|times| *times > 5_000), "{seen:?}");
}
