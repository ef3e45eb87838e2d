//! The law: one test per claim of the sources it relies on, and the observer against a simulated provider.

use std::collections::VecDeque;
use std::time::Duration;

use statrs::distribution::{Binomial, DiscreteCDF};
use tidegate::clock::MonoTime;
use tidegate::controller::law::{
    Aimd, AimdParams, Inputs, LawParams, MeterLaw, Mode, Observer, ObserverParams, Refilled, Sample, Traffic,
};
use tidegate::observation::Reading;
use tidegate::plan::Rate;

fn ms(ms: u64) -> MonoTime {
    MonoTime::from_millis(ms)
}

fn sample(at_ms: u64, limit_per_s: f64, level: f64, own: f64) -> Sample {
    Sample { sent_at: ms(at_ms), limit_per_s, level, slack: 0.0, own, refill: Refilled::Always }
}

fn used(per_s: f64) -> Traffic {
    Traffic { demand_per_s: 2.0 * per_s, sent_per_s: per_s, use_is_known: true, resolved: 100, refused: 0 }
}

fn throttled(per_s: f64) -> Traffic {
    Traffic { refused: 20, ..used(per_s) }
}

/// An AIMD past its first congestion, stepped once, so that the next step has a span.
fn after_congestion(start_per_s: f64) -> Aimd {
    let mut aimd = Aimd::new(start_per_s * 2.0, AimdParams::default());
    assert_eq!(aimd.step(ms(0), start_per_s, &throttled(start_per_s * 2.0)), Mode::Cut);
    aimd.step(ms(1_999), start_per_s, &used(0.0));
    aimd
}

// === Chiu & Jain 1989 ===

/// §: a > 0 and b = 1 on the way up.
#[test]
fn the_increase_is_additive_the_same_at_any_rate() {
    for rate in [2.0, 5.0, 9.0] {
        let mut aimd = after_congestion(rate);
        assert_eq!(aimd.step(ms(2_999), 10.0, &used(rate)), Mode::Increase);
        assert!((aimd.rate_per_s() - rate - 0.2).abs() < 1e-9, "2 %/s of the nominal 10/s from {rate}");
    }
}

/// §: a = 0 and b < 1 on the way down.
#[test]
fn the_decrease_is_multiplicative_and_comes_at_most_once_in_two_seconds() {
    let mut aimd = Aimd::new(8.0, AimdParams::default());
    assert_eq!(aimd.step(ms(0), 8.0, &throttled(8.0)), Mode::Cut);
    assert_eq!(aimd.rate_per_s(), 4.0);
    for at in [1, 500, 1_000, 1_999] {
        assert_eq!(aimd.step(ms(at), 8.0, &throttled(8.0)), Mode::Hold);
    }
    assert_eq!(aimd.step(ms(2_000), 8.0, &throttled(8.0)), Mode::Cut);
    assert_eq!(aimd.rate_per_s(), 2.0);
}

/// A rate that grew far beyond what was asked for is not what the provider refused: what was used is halved, but no cut leaves less
/// than a quarter, for reports may be missing.
#[test]
fn of_a_rate_that_was_not_used_what_was_used_is_halved() {
    for (sent, left) in [(80.0, 40.0), (48.0, 30.0), (40.0, 25.0), (32.0, 20.0), (0.0, 20.0)] {
        let mut aimd = Aimd::new(80.0, AimdParams::default());
        assert_eq!(aimd.step(ms(0), 10.0, &throttled(sent)), Mode::Cut);
        assert!((aimd.rate_per_s() - left).abs() < 1e-9, "{sent} of 80 used: {} left", aimd.rate_per_s());
    }
}

/// §: from any start, parties under common feedback come to the same rate.
#[test]
fn two_parties_come_to_fair_parts() {
    let mut parties = [after_congestion(9.0), after_congestion(1.0)];
    for tick in 2..600_u64 {
        let sum: f64 = parties.iter().map(Aimd::rate_per_s).sum();
        for party in &mut parties {
            let rate = party.rate_per_s();
            let traffic = if sum > 10.0 { throttled(rate) } else { used(rate) };
            party.step(ms(tick * 1_000), 5.0, &traffic);
        }
    }
    let [a, b] = parties.map(|party| party.rate_per_s());
    assert!((a / b - 1.0).abs() < 0.05, "{a} {b}");
}

// === CONTROL §2.4 ===

#[test]
fn a_single_429_never_cuts() {
    let aimd = Aimd::new(1.0, AimdParams::default());
    for resolved in [1, 2, 10, 1_000] {
        assert!(!aimd.congested(&Traffic { resolved, refused: 1, ..Traffic::default() }));
    }
}

#[test]
fn congestion_is_what_chance_at_one_percent_does_not_explain() {
    let aimd = Aimd::new(1.0, AimdParams::default());
    for resolved in 2..400_u64 {
        for refused in 2..12_u64.min(resolved) {
            // The plain sum instead of the survival function.
            let chance = Binomial::new(0.01, resolved).unwrap();
            let at_least = 1.0 - chance.cdf(refused - 1);
            if (at_least - 0.01).abs() > 1e-9 {
                let traffic = Traffic { resolved, refused, ..Traffic::default() };
                assert_eq!(aimd.congested(&traffic), at_least < 0.01, "{refused} of {resolved}: {at_least}");
            }
        }
    }
    assert!(aimd.congested(&Traffic { resolved: 0, refused: 2, ..Traffic::default() }), "refusals ended too");
}

#[test]
fn a_rate_that_is_not_used_does_not_grow_even_with_a_backlog() {
    for (sent, demand) in [(0.0, 0.0), (7.9, 9.0), (0.0, 50.0), (5.9, 50.0)] {
        let mut aimd = Aimd::new(10.0, AimdParams::default());
        let traffic = Traffic { demand_per_s: demand, sent_per_s: sent, use_is_known: true, resolved: 9, refused: 0 };
        (0..60).for_each(|s| assert_eq!(aimd.step(ms(s * 1_000), 10.0, &traffic), Mode::Hold));
        assert_eq!(aimd.rate_per_s(), 10.0);
    }
}

#[test]
fn slow_start_ends_with_the_first_congestion() {
    let mut aimd = Aimd::new(10.0, AimdParams::default());
    aimd.step(ms(0), 10.0, &used(10.0));
    aimd.step(ms(1_000), 10.0, &used(10.0));
    assert!((aimd.rate_per_s() - 11.5).abs() < 1e-9);
    aimd.step(ms(2_000), 10.0, &throttled(11.5));
    aimd.step(ms(4_000), 10.0, &used(5.75));
    let before = aimd.rate_per_s();
    aimd.step(ms(5_000), 10.0, &used(before));
    assert!((aimd.rate_per_s() - before - 0.2).abs() < 1e-9);
}

#[test]
fn the_rate_never_falls_below_one_unit_a_minute() {
    let mut aimd = Aimd::new(1.0, AimdParams::default());
    for i in 0..60 {
        aimd.step(ms(i * 2_000), 1.0, &throttled(1.0));
    }
    assert_eq!(aimd.rate_per_s(), 1.0 / 60.0);
}

// === the observer, CONTROL §2.3 ===

/// A provider's bucket with continuous refill, in 10 ms steps; its readings come back late.
struct World {
    now: u64,
    limit: f64,
    depth: f64,
    level: f64,
    others: f64,
    own: f64,
    empties: u32,
    overflow: f64,
    law: MeterLaw,
    capacity: f64,
    delay: u64,
    /// Levels are told rounded to this.
    grain: f64,
    flying: VecDeque<Sample>,
    newest: Option<Sample>,
}

impl World {
    fn new(limit: f64, depth: f64, others: f64, delay: u64) -> Self {
        Self {
            now: 100_000,
            limit,
            depth,
            level: depth,
            others,
            own: 0.0,
            empties: 0,
            overflow: 0.0,
            law: MeterLaw::new(limit, LawParams::default()),
            capacity: limit,
            delay,
            grain: 0.0,
            flying: VecDeque::new(),
            newest: None,
        }
    }

    fn run(&mut self, seconds: u64, headers: bool) {
        for _ in 0..seconds * 100 {
            self.now += 10;
            let before = self.level + self.limit / 100.0;
            self.overflow += (before - self.depth).max(0.0);
            self.level = before.min(self.depth) - (self.others + self.capacity) / 100.0;
            self.own += self.capacity / 100.0;
            if self.level < 0.0 {
                self.empties += 1;
                self.level = 0.0;
            }
            if self.now.is_multiple_of(250) && headers {
                let level = if self.grain > 0.0 { (self.level / self.grain).round() * self.grain } else { self.level };
                let (sent_at, slack) = (ms(self.now), self.grain / 2.0);
                let sample =
                    Sample { sent_at, limit_per_s: self.limit, level, slack, own: self.own, refill: Refilled::Always };
                self.flying.push_back(sample);
            }
            while self.flying.front().is_some_and(|s| self.now >= s.sent_at.0 / 1_000_000 + self.delay) {
                self.newest = self.flying.pop_front();
            }
            if self.now.is_multiple_of(1_000) {
                self.tick();
            }
        }
    }

    fn tick(&mut self) -> tidegate::controller::law::Step {
        let fresh = self.newest.filter(|s| ms(self.now).since(s.sent_at) < Duration::from_secs(15));
        let step = self.law.step(&Inputs {
            told_per_s: None,
            now: ms(self.now),
            sample: fresh.map_or(Reading::Missing, Reading::Fresh),
            own_now: self.own,
            traffic: Traffic { resolved: 50, ..used(self.capacity) },
            nominal_per_s: Rate { rate: self.limit, burst: self.depth },
        });
        self.capacity = step.capacity_per_s;
        step
    }
}

#[test]
fn with_headers_all_of_the_limit_is_used_and_the_bucket_never_runs_dry() {
    for (limit, depth, others, delay) in
        [(10.0, 600.0, 0.0, 300), (10.0, 600.0, 4.0, 2_000), (100.0, 300.0, 30.0, 1_000), (1.0, 60.0, 0.4, 4_000)]
    {
        let mut world = World::new(limit, depth, others, delay);
        world.run(300, true);
        (world.own, world.overflow, world.empties) = (world.own, 0.0, 0);
        let before = world.own;
        world.run(200, true);
        let usable = (limit - others) * 200.0;
        let use_part = (world.own - before) / usable;
        assert!(use_part >= 0.97, "{limit} {others} {delay}: {use_part}");
        assert_eq!(world.empties, 0, "{limit} {others} {delay}");
    }
}

/// Anthropic tells LLM tokens in thousands, whether the limit is 2,000,000 a minute or 4,000.
#[test]
fn levels_told_in_thousands_are_used_in_full_and_never_run_dry() {
    for (per_minute, others_part, delay) in [
        (2_000_000.0, 0.3, 1_000),
        (400_000.0, 0.0, 300),
        (80_000.0, 0.3, 1_000),
        (20_000.0, 0.3, 1_000),
        (8_000.0, 0.0, 300),
        (8_000.0, 0.3, 2_000),
        (8_000.0, 0.6, 1_000),
        (4_000.0, 0.0, 300),
        (4_000.0, 0.3, 1_000),
    ] {
        let limit = per_minute / 60.0;
        let mut world = World::new(limit, per_minute, others_part * limit, delay);
        world.grain = 1_000.0;
        world.run(300, true);
        (world.overflow, world.empties) = (0.0, 0);
        let before = world.own;
        let (mut least, mut most) = (f64::INFINITY, 0.0_f64);
        for _ in 0..300 {
            world.run(1, true);
            (least, most) = (least.min(world.capacity / limit), most.max(world.capacity / limit));
        }
        let usable = limit * (1.0 - others_part);
        let used = (world.own - before) / (usable * 300.0);
        let (least, most) = (least * limit / usable, most * limit / usable);
        let case = format!("{per_minute} {others_part} {delay}: {used} within {least}..{most}");
        assert!(used >= 0.97, "{case}");
        assert_eq!(world.empties, 0, "{case}");
        // A rounding is not chased up and down.
        assert!(least > 0.5 && most < 1.5, "{case}");
    }
}

#[test]
fn what_others_use_is_known_within_thirty_seconds() {
    for (others, delay) in [(4.0, 500), (7.0, 500), (2.0, 2_000)] {
        let mut world = World::new(10.0, 600.0, 0.0, delay);
        world.run(200, true);
        world.others = others;
        world.run(30, true);
        let seen = world.tick().others_per_s.unwrap();
        assert!((seen - others).abs() <= 0.05 * 10.0, "{others}: {seen}");
        assert_eq!(world.empties, 0);
    }
}

#[test]
fn a_new_limit_is_fed_forward_in_the_same_tick() {
    let mut world = World::new(10.0, 600.0, 0.0, 100);
    world.run(300, true);
    (world.limit, world.depth, world.level) = (5.0, 300.0, world.level.min(300.0));
    let sample = sample(world.now + 1, 5.0, world.level, world.own);
    world.newest = Some(sample);
    world.now += 100;
    let step = world.tick();
    assert_eq!(step.limit_per_s, Some(5.0));
    assert!(step.capacity_per_s < 8.5, "{}", step.capacity_per_s);
    assert_eq!(step.others_per_s, Some(0.0), "what was learned against the old limit is forgotten");
}

#[test]
fn a_sample_that_was_sent_earlier_changes_nothing() {
    let newer = sample(5_000, 10.0, 100.0, 0.0);
    let mut observer = Observer::new(&newer, ObserverParams::default());
    let before = observer.capacity_per_s(ms(5_000), 0.0);
    observer.update(&sample(4_000, 2.0, 0.0, 0.0));
    observer.update(&sample(5_000, 2.0, 0.0, 0.0));
    assert_eq!((observer.capacity_per_s(ms(5_000), 0.0), observer.limit_per_s()), (before, 10.0));
}

#[test]
fn a_limit_of_nothing_and_back_leaves_numbers() {
    let mut observer = Observer::new(&sample(0, 10.0, 100.0, 0.0), ObserverParams::default());
    observer.update(&sample(1_000, 0.0, 0.0, 0.0));
    assert_eq!(observer.capacity_per_s(ms(1_000), 0.0), 0.0);
    observer.update(&sample(2_000, 10.0, 50.0, 0.0));
    observer.update(&sample(3_000, 10.0, 55.0, 5.0));
    assert!(observer.capacity_per_s(ms(3_000), 5.0).is_finite() && observer.burst() >= 55.0);
}

/// A pool in full use never shows its depth; it must not be forgotten, or reserve and largest request go with it.
#[test]
fn hours_of_full_use_do_not_wear_the_depth_away() {
    let mut world = World::new(10.0, 600.0, 0.0, 300);
    world.run(4 * 3_600, true);
    assert!(world.tick().burst > 599.0);
    assert_eq!(world.empties, 0);
}

#[test]
fn losing_the_headers_moves_the_capacity_by_less_than_five_percent() {
    let mut world = World::new(10.0, 600.0, 4.0, 300);
    world.run(300, true);
    let before = world.tick().capacity_per_s;
    world.newest = None;
    world.flying.clear();
    world.now += 1_000;
    let step = world.tick();
    assert!(matches!(step.mode, Mode::Hold | Mode::Increase), "stale headers leave it to AIMD");
    assert!((step.capacity_per_s / before - 1.0).abs() < 0.05, "{before} {}", step.capacity_per_s);
    world.run(600, false);
    assert!(world.tick().capacity_per_s <= 10.0, "the last known limit stays the cap");
}
