//! The law's parts beside AIMD and the observer of buckets: fixed windows, the quality of readings, what is lent, latency; and
//! what holds of every step.

use std::time::Duration;

use proptest::prelude::*;
use tidegate::clock::MonoTime;
use tidegate::controller::law::{
    Inputs, Latencies, LatencyLaw, LatencyParams, LawParams, MeterLaw, Observer, ObserverParams, OpenWindow,
    Overcommit, OvercommitParams, Quality, QualityParams, Refilled, Room, Sample, Traffic,
};
use tidegate::observation::{LogSums, Reading};
use tidegate::plan::Rate;

fn s(seconds: f64) -> MonoTime {
    MonoTime::default().after_seconds(seconds)
}

/// A reading of a bucket of 10 a second.
fn reading(at_s: f64, level: f64, own: f64) -> Sample {
    Sample { sent_at: s(at_s), limit_per_s: 10.0, level, slack: 0.0, own, refill: Refilled::Always }
}

/// A reading of a window of 600 a minute that ends then.
fn in_window(at_s: f64, level: f64, own: f64, ends_s: f64) -> Sample {
    let window = OpenWindow { ends_at: s(ends_s), length: Duration::from_secs(60) };
    Sample { refill: Refilled::AtEndOf(window), ..reading(at_s, level, own) }
}

// === fixed windows ===

#[test]
fn what_is_left_of_a_window_is_spread_over_what_is_left_of_its_time() {
    let observer = Observer::new(&in_window(0.0, 600.0, 0.0, 60.0), ObserverParams::default());
    // 1 % is kept.
    assert!((observer.capacity_per_s(s(0.0), 0.0) - 594.0 / 60.0).abs() < 1e-9);
    assert!((observer.capacity_per_s(s(30.0), 300.0) - 294.0 / 30.0).abs() < 1e-9);
    // Nothing was used: twice the limit, not more.
    assert!((observer.capacity_per_s(s(50.0), 0.0) - 20.0).abs() < 1e-9);
    // All was used: a little is sent, as nothing else tells of the next window.
    assert!((observer.capacity_per_s(s(30.0), 600.0) - 0.5).abs() < 1e-9);
}

#[test]
fn of_a_window_that_nobody_has_told_of_no_more_than_the_limit_is_sent() {
    let mut observer = Observer::new(&in_window(0.0, 600.0, 0.0, 60.0), ObserverParams::default());
    assert!(!observer.is_over(s(59.9)) && observer.is_over(s(60.0)));
    assert_eq!(observer.capacity_per_s(s(61.0), 594.0), 10.0);
    observer.update(&in_window(60.5, 599.0, 594.0, 120.0));
    assert!(!observer.is_over(s(61.0)));
    assert!((observer.level_at(s(60.5), 594.0) - 599.0).abs() < 1e-9, "all is there again at once");
}

#[test]
fn others_are_seen_in_windows_too_and_outlast_them() {
    let mut observer = Observer::new(&in_window(0.0, 600.0, 0.0, 60.0), ObserverParams::default());
    // We send 5 a second, others 3.
    for second in 1..60 {
        let at = f64::from(second);
        observer.update(&in_window(at, 600.0 - 8.0 * at, 5.0 * at, 60.0));
    }
    assert!((observer.others_per_s() - 3.0).abs() < 0.1, "{}", observer.others_per_s());
    observer.update(&in_window(60.5, 600.0, 302.5, 120.0));
    assert!((observer.others_per_s() - 3.0).abs() < 0.1);
    assert!((observer.capacity_per_s(s(60.5), 302.5) - (594.0 / 59.5 - 3.0)).abs() < 0.2);
}

#[test]
fn an_end_that_is_told_a_little_differently_is_the_same_window() {
    let mut observer = Observer::new(&in_window(0.0, 600.0, 0.0, 60.4), ObserverParams::default());
    for (at, ends) in [(1.0, 59.6), (2.0, 61.0), (3.0, 60.0)] {
        // Somebody else took all of it: within one window the level is estimated, not believed at once.
        observer.update(&in_window(at, 0.0, 0.0, ends));
    }
    assert!(observer.level_at(s(3.0), 0.0) > 50.0);
}

// === quality ===

#[test]
fn rounding_is_found_by_its_multiples() {
    let mut quality = Quality::new(QualityParams::default());
    for (n, level) in [300.0, 240.0, 180.0, 120.0].into_iter().enumerate() {
        #[allow(clippy::cast_precision_loss, reason = "a few seconds")]
        let taken = quality.take(&reading(n as f64 + 1.0, level, 0.0), Some(level), s(n as f64 + 1.0)).expect("news");
        let half = if n == 0 { 0.0 } else { 30.0 };
        assert_eq!((taken.level, taken.slack), (level + half, half), "half of 60 is hidden, once two levels differ");
    }
    assert!(quality.is_too_coarse(119.0, 10.0) && !quality.is_too_coarse(121.0, 10.0), "twice the rounding");
    quality.take(&reading(5.0, 181.0, 0.0), Some(181.0), s(5.0));
    assert!(!quality.is_too_coarse(11.0, 10.0), "no rounding after all");
}

#[test]
fn a_level_that_does_not_move_with_our_use_tells_nothing() {
    let mut quality = Quality::new(QualityParams::default());
    assert!(quality.take(&reading(0.5, 300.0, 0.0), Some(300.0), s(0.5)).is_some());
    assert!(quality.take(&reading(1.0, 300.0, 10.0), Some(299.0), s(1.0)).is_some(), "as was thought");
    assert!(quality.take(&reading(1.0, 300.0, 10.0), Some(299.0), s(1.1)).is_none(), "the same once more");
    for at in [2.0, 3.0, 4.0, 5.0] {
        let taken = quality.take(&reading(at, 300.0, 40.0), Some(290.0), s(at));
        assert!(taken.is_none(), "ten are missing of it");
    }
    // It stood still for 4 s since it was last news: 40 of refill are hidden.
    assert!(quality.is_too_coarse(39.0, 10.0) && !quality.is_too_coarse(41.0, 10.0));
    assert!(quality.take(&reading(6.0, 250.0, 50.0), Some(280.0), s(6.0)).is_some());
    assert!(quality.take(&reading(7.0, 250.0, 90.0), None, s(7.0)).is_some(), "nobody knows where it should be");
}

#[test]
fn a_full_bucket_and_another_limit_or_window_cannot_be_predicted() {
    let observer = Observer::new(&reading(0.0, 300.0, 0.0), ObserverParams::default());
    assert_eq!(observer.predicted(&reading(2.0, 200.0, 100.0)), Some(220.0));
    assert_eq!(observer.predicted(&reading(2.0, 299.0, 100.0)), None);
    assert_eq!(observer.predicted(&Sample { limit_per_s: 5.0, ..reading(2.0, 200.0, 100.0) }), None);
    let windowed = Observer::new(&in_window(0.0, 600.0, 0.0, 60.0), ObserverParams::default());
    assert_eq!(windowed.predicted(&in_window(61.0, 400.0, 500.0, 120.0)), None);
}

#[test]
fn a_reading_of_the_window_before_teaches_nothing() {
    let mut observer = Observer::new(&in_window(60.0, 600.0, 600.0, 120.0), ObserverParams::default());
    let before = (observer.level_at(s(62.0), 600.0), observer.others_per_s());
    observer.update(&in_window(61.0, 3.0, 600.0, 60.5));
    assert_eq!((observer.level_at(s(62.0), 600.0), observer.others_per_s()), before);
}

#[test]
fn readings_that_come_late_do_not_steer_a_shallow_bucket() {
    let mut quality = Quality::new(QualityParams::default());
    for n in 0..60 {
        let sent = f64::from(n);
        quality.take(&reading(sent, 300.0 + sent, 0.0), Some(300.0 + sent), s(sent + 5.0));
    }
    assert!(quality.is_too_coarse(50.0, 10.0) && !quality.is_too_coarse(70.0, 10.0), "1.2 × 5 s × 10/s");
}

// === over-commitment ===

fn asked(demand_per_s: f64, sent_per_s: f64) -> Traffic {
    Traffic { demand_per_s, sent_per_s, use_is_known: true, resolved: 10, refused: 0 }
}

/// The factor after so many seconds.
fn lent(seconds: u32, traffic: &Traffic, room: Room) -> f64 {
    let mut overcommit = Overcommit::new(OvercommitParams::default());
    (0..=seconds).map(|at| overcommit.step(s(f64::from(at)), 10.0, traffic, room)).last().unwrap_or(0.0)
}

#[test]
fn what_lies_idle_is_lent_within_bounds() {
    assert!((lent(1, &asked(20.0, 8.0), Room::Above(0.0)) - 1.05).abs() < 1e-9, "1 + 0.25·0.2");
    assert_eq!(lent(100, &asked(20.0, 8.0), Room::Above(0.0)), 1.6);
    assert_eq!(lent(100, &asked(20.0, 8.0), Room::Above(25.0)), 2.5, "what is stored lasts for that");
    assert_eq!(lent(100, &asked(20.0, 8.0), Room::Above(900.0)), 4.0);
    assert_eq!(lent(100, &asked(20.0, 10.0), Room::Above(900.0)), 1.0, "all is used");
    assert_eq!(lent(100, &asked(9.0, 5.0), Room::Above(900.0)), 1.0, "nobody asks for more");
    assert_eq!(lent(100, &asked(20.0, 8.0), Room::Little), 1.0);
}

#[test]
fn what_is_lent_is_taken_back() {
    let mut overcommit = Overcommit::new(OvercommitParams::default());
    let mut step = |at: f64, traffic: &Traffic, room| overcommit.step(s(at), 10.0, traffic, room);
    let busy = asked(20.0, 5.0);
    step(0.0, &busy, Room::Above(0.0));
    let before = (1..20).map(|at| step(f64::from(at), &busy, Room::Above(0.0))).last().expect("steps");
    assert_eq!(before, 1.6);
    assert!((step(20.0, &asked(5.0, 5.0), Room::Above(0.0)) - 1.54).abs() < 1e-9, "a tenth a second");
    assert_eq!(step(21.0, &busy, Room::Short), 1.0, "at once");
}

#[test]
fn where_it_is_fixed_nothing_is_learned_and_what_was_is_forgotten() {
    let mut overcommit = Overcommit::new(OvercommitParams::default());
    let busy = asked(20.0, 5.0);
    let step = |overcommit: &mut Overcommit, at: u32| overcommit.step(s(f64::from(at)), 10.0, &busy, Room::Above(0.0));
    assert_eq!((0..20).map(|at| step(&mut overcommit, at)).last(), Some(1.6));
    overcommit.fix(Some(1.2));
    assert!((20..40).all(|at| step(&mut overcommit, at) == 1.2));
    assert_eq!(overcommit.step(s(40.0), 10.0, &busy, Room::Short), 1.2);
    overcommit.fix(None);
    let free = step(&mut overcommit, 41);
    assert!((1.0..1.2).contains(&free), "it begins at nothing: {free}");
}

// === latency ===

/// Answers whose logarithms are normal: told by their sums, as members tell them.
#[derive(Default)]
struct Answers {
    told: Latencies,
    dice: fastrand::Rng,
}

impl Answers {
    fn new() -> Self {
        Self { dice: fastrand::Rng::with_seed(7), ..Self::default() }
    }

    fn come(&mut self, count: u32, median_ms: f64) {
        for _ in 0..count {
            // About normal.
            let normal: f64 = (0..12).map(|_| self.dice.f64()).sum::<f64>() - 6.0;
            self.told.ttfb.add(median_ms * (0.4 * normal).exp());
        }
    }
}

#[test]
fn slow_answers_lower_the_concurrency_in_two_windows_and_it_comes_back() {
    let mut law = LatencyLaw::new(LatencyParams::default());
    let mut answers = Answers::new();
    answers.told.in_flight = 100.0;
    let mut places = Vec::new();
    for second in 0..200 {
        // Processor sharing: beyond 60 in flight each is slowed down by as much, between 60 s and 120 s.
        let limit = places.last().copied().flatten().unwrap_or(100.0_f64).min(100.0);
        answers.told.in_flight = limit;
        let slow = if (60..120).contains(&second) { (limit / 60.0).max(1.0) } else { 1.0 };
        answers.come(20, 500.0 * slow);
        places.push(law.step(s(f64::from(second)), &answers.told).places);
    }
    assert!(places[..60].iter().all(Option::is_none), "usual answers limit nothing");
    let cut = places.iter().position(Option::is_some).expect("a cut");
    assert!((66..=78).contains(&cut), "two windows of 6 s after 60 s, and not one: {cut}");
    let held = places[100].expect("a limit");
    assert!((55.0..85.0).contains(&held), "about the knee: {held}");
    assert!(places[199].is_none_or(|places| places > 95.0), "{:?}", places[199]);
}

/// Less is in flight by itself once answers are fast again: a limit that is not used must not stay.
#[test]
fn a_limit_that_does_not_bind_ends() {
    let mut law = LatencyLaw::new(LatencyParams::default());
    let mut answers = Answers::new();
    let mut places = None;
    for second in 0..200 {
        let slow = (60..90).contains(&second);
        answers.told.in_flight = if slow { 90.0 } else { 30.0 };
        answers.come(20, if slow { 1_500.0 } else { 500.0 });
        places = law.step(s(f64::from(second)), &answers.told).places;
        assert!(second != 89 || places.is_some());
    }
    assert_eq!(places, None);
}

#[test]
fn where_cuts_do_not_help_it_is_not_our_load() {
    let mut law = LatencyLaw::new(LatencyParams::default());
    let mut answers = Answers::new();
    let mut least = f64::INFINITY;
    let mut places = None;
    for second in 0..300 {
        answers.told.in_flight = places.unwrap_or(100.0);
        answers.come(20, if second < 60 { 500.0 } else { 1_500.0 });
        places = law.step(s(f64::from(second)), &answers.told).places;
        least = least.min(places.unwrap_or(f64::INFINITY));
    }
    assert!(least >= 30.0, "never below a third of what was in flight: {least}");
    assert_eq!(places, None, "three times as slow is usual now");
}

#[test]
fn what_is_usual_is_never_called_slow() {
    for seed in 0..20 {
        let mut law = LatencyLaw::new(LatencyParams::default());
        let mut answers = Answers { dice: fastrand::Rng::with_seed(seed), ..Answers::default() };
        answers.told.in_flight = 50.0;
        for second in 0..600 {
            answers.come(3, 500.0);
            assert_eq!(law.step(s(f64::from(second)), &answers.told).places, None, "seed {seed}, second {second}");
        }
    }
}

#[test]
fn without_answers_nothing_is_decided() {
    let mut law = LatencyLaw::new(LatencyParams::default());
    for second in 0..100 {
        let step = law.step(s(f64::from(second)), &Latencies::default());
        assert_eq!((step.places, step.slowness), (None, None));
    }
    // Sums that run backwards, as of a process that was started anew.
    let mut told = Latencies { ttfb: LogSums { n: 900, sum: 1.0, sum_sq: f64::MAX }, ..Latencies::default() };
    law.step(s(100.0), &told);
    told.ttfb = LogSums { n: 3, sum: f64::MIN, sum_sq: 0.0 };
    (101..200).for_each(|second| assert_eq!(law.step(s(f64::from(second)), &told).places, None));
}

// === what holds of every step ===

fn any_number() -> impl Strategy<Value = f64> {
    prop_oneof![0.0..1e9_f64, Just(0.0), Just(1e-9), Just(1e15)]
}

prop_compose! {
    fn any_reading()(
        ago_ms in 0_u64..20_000,
        limit_per_s in any_number(),
        level in prop_oneof![any_number(), any_number().prop_map(|x| -x)],
        own in any_number(),
        slack in 0.0..1_000.0_f64,
        window in proptest::option::of(0_u64..60_000),
        untold in any::<bool>(),
    ) -> (u64, Sample) {
        let length = Duration::from_secs(60);
        let refill = match window {
            Some(ms) => Refilled::AtEndOf(OpenWindow { ends_at: MonoTime::from_millis(ms), length }),
            None if untold => Refilled::Untold,
            None => Refilled::Always,
        };
        (ago_ms, Sample { sent_at: MonoTime::default(), limit_per_s, level, slack, own, refill })
    }
}

prop_compose! {
    fn any_traffic()(
        demand_per_s in any_number(),
        sent_per_s in prop_oneof![any_number(), any_number().prop_map(|x| -x)],
        resolved in 0_u64..1_000,
        refused in 0_u64..1_000,
    ) -> Traffic {
        Traffic { demand_per_s, sent_per_s, use_is_known: true, resolved, refused }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// No input makes a step that is no number, out of its bounds, or another one the second time.
    #[test]
    fn every_step_is_a_number_within_its_bounds(
        start in any_number(),
        nominal in any_number(),
        ticks in proptest::collection::vec((proptest::option::of(any_reading()), any_traffic(), any_number(), 1_u64..5_000), 1..20),
    ) {
        let mut law = MeterLaw::new(start, LawParams::default());
        let mut twin = law.clone();
        let mut now = MonoTime::from_millis(100_000);
        for (told, traffic, own_now, ms) in ticks {
            now += Duration::from_millis(ms);
            let sample = told.map_or(Reading::Missing, |(ago_ms, sample)| {
                Reading::Fresh(Sample { sent_at: now.before(Duration::from_millis(ago_ms)), ..sample })
            });
            let nominal_per_s = Rate { rate: nominal, burst: nominal };
            let inputs = Inputs { now, sample, own_now, traffic, nominal_per_s, told_per_s: None };
            let step = law.step(&inputs);
            prop_assert!(step.capacity_per_s.is_finite() && step.capacity_per_s >= 0.0, "{step:?}");
            prop_assert!((1.0..=4.0).contains(&step.overcommit), "{step:?}");
            prop_assert!(step.burst.is_finite() && step.burst >= 0.0, "{step:?}");
            if let (Some(limit), Some(others)) = (step.limit_per_s, step.others_per_s) {
                prop_assert!(step.capacity_per_s <= 2.0 * (limit - others.min(0.0)) * (1.0 + 1e-9), "{step:?}");
                prop_assert!(others.abs() <= limit, "{step:?}");
            }
            prop_assert_eq!(step, twin.step(&inputs));
        }
    }
}
