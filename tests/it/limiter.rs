//! The limiter: exact levels, honest waits, and no way to more units than were promised.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;
use tidegate::clock::MonoTime;
use tidegate::limiter::{
    Alignment, Bound, Bucket, Counting, Decision, Denial, Hold, Limiter, Limits, MeterLimit, Reservation, Wait,
};
use tidegate::plan::Rate;
use tidegate::quota::{Cost, Meter, Unit, Window};

const RPM: Meter = Meter::REQUESTS_PER_MINUTE;
const TPM: Meter = Meter::TOKENS_PER_MINUTE;
const REQUEST: Cost = Cost::request(0, 0);

fn ms(ms: u64) -> MonoTime {
    MonoTime::from_millis(ms)
}

/// Limits with a rate per second, a burst and an undivided burst per meter.
fn limits(meters: &[(Meter, f64, f64, f64)]) -> Limits {
    let meters = meters.iter().map(|(meter, per_s, burst, undivided)| {
        let rate = Rate { rate: per_s * meter.window.seconds(), burst: *burst };
        (*meter, MeterLimit { rate, largest_request: *undivided, counting: Counting::TokenBucket, together: None })
    });
    Limits { meters: meters.collect(), ..Limits::default() }
}

fn ask(limiter: &mut Limiter, cost: Cost, now: MonoTime) -> Decision {
    limiter.decide(&cost, now)
}

fn admitted(limiter: &mut Limiter, cost: Cost, now: MonoTime) -> Reservation {
    match ask(limiter, cost, now) {
        Ok(reservation) => reservation,
        other => panic!("expected to be admitted at {now:?}: {other:?}"),
    }
}

fn wait(limiter: &mut Limiter, cost: Cost, now: MonoTime) -> Option<MonoTime> {
    match ask(limiter, cost, now) {
        Err(Denial::WaitUntil(wait)) => wait.at,
        other => panic!("expected to wait at {now:?}: {other:?}"),
    }
}

fn expected(limiter: &Limiter, ahead: &Cost, cost: &Cost, now: MonoTime) -> Option<MonoTime> {
    limiter.expected(ahead, cost, now).at
}

#[test]
fn a_bucket_starts_with_one_second_of_rate_and_refills_to_its_burst() {
    let bucket = Bucket::new(2.0, 10.0, ms(0));
    assert_eq!(bucket.level_at(ms(0)), 2.0);
    assert_eq!(bucket.level_at(ms(1_500)), 5.0);
    assert_eq!(bucket.level_at(ms(60_000)), 10.0);
    assert_eq!(Bucket::new(20.0, 10.0, ms(0)).level_at(ms(0)), 10.0, "never above the burst");
}

#[test]
fn nothing_is_admitted_a_moment_early_by_one_whom_nothing_has_refused_yet() {
    for spent in 1..=3 {
        let mut limiter = Limiter::new(&limits(&[(RPM, 1.0, 10.0, 10.0)]), ms(0));
        let _sent: Vec<Reservation> = (0..spent).map(|n| admitted(&mut limiter, REQUEST, ms(n * 1_000))).collect();
        assert_eq!(wait(&mut limiter, REQUEST, ms(spent * 1_000 - 1)), Some(ms(spent * 1_000)));
    }
}

#[test]
fn debt_is_paid_at_the_rate_and_a_refund_never_exceeds_the_burst() {
    let mut bucket = Bucket::new(2.0, 10.0, ms(0));
    bucket.take(8.0, ms(0));
    assert_eq!(bucket.level_at(ms(0)), -6.0);
    assert_eq!(bucket.reaches_at(0.0, ms(0)), Some(ms(3_000)));
    bucket.retune(4.0, 5.0, ms(1_000));
    assert_eq!(bucket.level_at(ms(1_000)), -4.0, "a retune forgives nothing");
    bucket.give_back(100.0, ms(1_000));
    assert_eq!(bucket.level_at(ms(1_000)), 5.0);
}

#[test]
fn a_retune_accrues_at_the_old_rate_first_and_keeps_the_level() {
    let mut limiter = Limiter::new(&limits(&[(RPM, 1.0, 10.0, 10.0)]), ms(0));
    limiter.retune(&limits(&[(RPM, 100.0, 50.0, 50.0)]), ms(2_000));
    assert_eq!(limiter.level_at(RPM, ms(2_000)), Some(3.0));
    limiter.retune(&limits(&[(RPM, 1.0, 2.0, 50.0)]), ms(2_000));
    assert_eq!(limiter.level_at(RPM, ms(2_000)), Some(2.0), "lowered to the new burst");
    limiter.retune(&limits(&[(RPM, 1.0, 50.0, 50.0)]), ms(2_000));
    assert_eq!(limiter.level_at(RPM, ms(2_000)), Some(2.0), "and not raised by a larger one");
}

#[test]
fn an_added_meter_starts_with_one_second_of_rate() {
    let mut limiter = Limiter::new(&limits(&[(RPM, 1.0, 10.0, 10.0)]), ms(0));
    limiter.retune(&limits(&[(RPM, 1.0, 10.0, 10.0), (TPM, 7.0, 1_000.0, 1_000.0)]), ms(500));
    assert_eq!(limiter.level_at(TPM, ms(500)), Some(7.0));
}

#[test]
fn a_removed_meter_that_returns_within_its_window_has_not_refilled() {
    let (both, one) = (limits(&[(RPM, 1.0, 10.0, 10.0), (TPM, 10.0, 100.0, 100.0)]), limits(&[(RPM, 1.0, 10.0, 10.0)]));
    let mut limiter = Limiter::new(&both, ms(0));
    drop(admitted(&mut limiter, Cost::request(10, 0), ms(0)));
    limiter.retune(&one, ms(100));
    limiter.retune(&both, ms(59_000));
    assert_eq!(limiter.level_at(TPM, ms(59_000)), Some(1.0), "what flowed in before it was removed, no more");
    limiter.retune(&one, ms(60_000));
    limiter.retune(&both, ms(120_000));
    assert_eq!(limiter.level_at(TPM, ms(120_000)), Some(10.0), "after a window it is a new meter");
}

#[test]
fn a_reservation_older_than_a_meter_gets_nothing_back_from_it() {
    let (both, one) =
        (limits(&[(RPM, 1.0, 10.0, 10.0), (TPM, 10.0, 1_000.0, 1_000.0)]), limits(&[(RPM, 1.0, 10.0, 10.0)]));
    let mut limiter = Limiter::new(&one, ms(0));
    let reservation = admitted(&mut limiter, Cost::request(900, 0), ms(0));
    limiter.retune(&both, ms(0));
    limiter.settle(reservation, Some(Cost::request(0, 0)), ms(0));
    assert_eq!(limiter.level_at(TPM, ms(0)), Some(10.0));
}

#[test]
fn an_oversize_request_settled_while_its_meter_is_away_frees_its_place() {
    let (both, one) =
        (limits(&[(RPM, 10.0, 10.0, 10.0), (TPM, 10.0, 10.0, 100.0)]), limits(&[(RPM, 10.0, 10.0, 10.0)]));
    let mut limiter = Limiter::new(&both, ms(0));
    let reservation = admitted(&mut limiter, Cost::request(20, 0), ms(0));
    limiter.retune(&one, ms(0));
    limiter.settle(reservation, None, ms(0));
    limiter.retune(&both, ms(0));
    drop(admitted(&mut limiter, Cost::request(20, 0), ms(2_000)));
}

#[test]
fn all_meters_admit_or_none_is_touched() {
    let mut limiter = Limiter::new(&limits(&[(RPM, 5.0, 5.0, 5.0), (TPM, 10.0, 10.0, 10.0)]), ms(0));
    drop(admitted(&mut limiter, Cost::request(8, 0), ms(0)));
    assert_eq!(wait(&mut limiter, Cost::request(0, 8), ms(0)), Some(ms(600)));
    assert_eq!(limiter.level_at(RPM, ms(0)), Some(4.0));
    assert_eq!(limiter.level_at(TPM, ms(0)), Some(2.0));
    assert_eq!(limiter.in_flight(), 1);
}

/// Litellm counted tokens and never refused by them when no requests limit was set.
#[test]
fn a_tenant_with_a_tokens_limit_only_is_held_to_it() {
    let mut limiter = Limiter::new(&limits(&[(TPM, 10.0, 10.0, 10.0)]), ms(0));
    drop(admitted(&mut limiter, Cost::request(4, 4), ms(0)));
    assert_eq!(wait(&mut limiter, Cost::request(4, 4), ms(0)), Some(ms(600)));
}

#[test]
fn never_is_judged_by_the_largest_request_alone() {
    let mut limiter = Limiter::new(&limits(&[(TPM, 10.0, 10.0, 100.0)]), ms(0));
    let Err(Denial::Never(never)) = ask(&mut limiter, Cost::request(101, 0), ms(0)) else { panic!("101 > 100") };
    assert_eq!((never.meter, never.needed, never.largest_request), (TPM, 101.0, 100.0));
    drop(admitted(&mut limiter, Cost::request(100, 0), ms(0)));
    assert_eq!(limiter.level_at(TPM, ms(0)), Some(-90.0));
}

/// A share of a burst is a float: what it lacks in its last places is not missing, and never changes the answer.
#[test]
fn a_burst_a_billionth_short_of_a_request_is_one_for_it() {
    let short = 99.999_999_999_5;
    for largest in [short, 1_000.0] {
        let mut limiter = Limiter::new(&limits(&[(TPM, 1.0, short, largest)]), ms(0));
        let needed = Cost::request(100, 0);
        assert_eq!(limiter.never(&needed), None);
        assert_eq!(wait(&mut limiter, needed, ms(0)), Some(ms(99_000)), "in time, and not never");
        let reservation = admitted(&mut limiter, needed, ms(99_000));
        let next = wait(&mut limiter, needed, ms(99_000));
        assert!(next.is_some_and(|at| at <= ms(199_001)), "and not as one that flies alone: {next:?}");
        limiter.settle(reservation, None, ms(99_000));
    }
}

#[test]
fn an_oversize_request_needs_a_full_bucket_and_flies_alone() {
    let mut limiter = Limiter::new(&limits(&[(TPM, 10.0, 20.0, 100.0)]), ms(0));
    assert_eq!(wait(&mut limiter, Cost::request(50, 0), ms(0)), Some(ms(1_000)), "not from half a bucket");
    let reservation = admitted(&mut limiter, Cost::request(50, 0), ms(1_000));
    assert_eq!(wait(&mut limiter, Cost::request(50, 0), ms(90_000)), None, "one in flight");
    drop(admitted(&mut limiter, Cost::request(20, 0), ms(90_000)));
    limiter.settle(reservation, None, ms(90_000));
    assert_eq!(wait(&mut limiter, Cost::request(50, 0), ms(90_000)), Some(ms(92_000)));
}

#[test]
fn a_member_without_a_share_admits_nothing_and_does_not_spin() {
    let mut limiter = Limiter::new(&limits(&[(TPM, 0.0, 0.0, 100.0)]), ms(0));
    assert_eq!(wait(&mut limiter, Cost::request(50, 0), ms(0)), None);
    assert_eq!(expected(&limiter, &Cost::default(), &Cost::request(50, 0), ms(0)), None);
    let mut limiter = Limiter::new(&limits(&[(RPM, 0.0, 1.0, 10.0)]), ms(0));
    assert_eq!(wait(&mut limiter, REQUEST, ms(1_000_000)), None);
}

#[test]
fn without_any_grant_the_first_request_need_not_wait_and_the_second_does() {
    let bootstrap = limits(&[(RPM, 10.0, 1.0, 1.0)]);
    let mut limiter = Limiter::new(&bootstrap, ms(0));
    limiter.top_up_to_one_request(ms(0));
    drop(admitted(&mut limiter, REQUEST, ms(0)));
    assert_eq!(wait(&mut limiter, REQUEST, ms(0)), Some(ms(100)));
    // Where nothing flows, nothing is given.
    let mut limiter = Limiter::new(&limits(&[(RPM, 0.0, 1.0, 10.0)]), ms(0));
    limiter.top_up_to_one_request(ms(0));
    assert_eq!(wait(&mut limiter, REQUEST, ms(1_000_000)), None);
}

#[test]
fn concurrency_block_and_holds_refuse_in_their_own_way() {
    let mut tight = limits(&[(RPM, 10.0, 10.0, 10.0)]);
    tight.concurrency = Some(1);
    let mut limiter = Limiter::new(&tight, ms(0));
    let reservation = admitted(&mut limiter, REQUEST, ms(0));
    assert_eq!(wait(&mut limiter, REQUEST, ms(0)), None, "only a settled request helps");
    limiter.settle(reservation, None, ms(0));
    limiter.hold(&[Hold { meter: RPM, until: ms(700) }], ms(0));
    let held = limiter.decide(&REQUEST, ms(0));
    assert_eq!(held, Err(Denial::WaitUntil(Wait { at: Some(ms(700)), by: Bound::Hold(RPM) })));
    drop(admitted(&mut limiter, REQUEST, ms(700)));
    tight.blocked = true;
    limiter.retune(&tight, ms(700));
    assert_eq!(wait(&mut limiter, REQUEST, ms(9_000)), None);
    assert_eq!(expected(&limiter, &Cost::default(), &REQUEST, ms(9_000)), None);
}

#[test]
fn unknown_usage_counts_as_fully_used_and_known_usage_is_settled_both_ways() {
    let mut limiter = Limiter::new(&limits(&[(TPM, 100.0, 100.0, 100.0)]), ms(0));
    let first = admitted(&mut limiter, Cost::request(40, 0), ms(0));
    limiter.settle(first, None, ms(0));
    assert_eq!(limiter.level_at(TPM, ms(0)), Some(60.0));
    let second = admitted(&mut limiter, Cost::request(40, 0), ms(0));
    limiter.settle(second, Some(Cost::request(10, 0)), ms(0));
    assert_eq!(limiter.level_at(TPM, ms(0)), Some(50.0));
    let third = admitted(&mut limiter, Cost::request(40, 0), ms(0));
    limiter.settle(third, Some(Cost::request(70, 0)), ms(0));
    assert_eq!(limiter.level_at(TPM, ms(0)), Some(-20.0));
}

#[test]
fn the_expected_wait_is_the_wait_a_newcomer_has() {
    let mut limiter = Limiter::new(&limits(&[(RPM, 10.0, 10.0, 10.0), (TPM, 10.0, 10.0, 100.0)]), ms(0));
    let ahead = Cost::request(10, 0);
    assert_eq!(expected(&limiter, &Cost::default(), &ahead, ms(0)), Some(ms(0)));
    assert_eq!(expected(&limiter, &ahead, &Cost::request(5, 0), ms(0)), Some(ms(500)));
    assert_eq!(expected(&limiter, &ahead, &Cost::request(50, 0), ms(0)), Some(ms(1_000)), "from a full bucket");
    drop(admitted(&mut limiter, Cost::request(100, 0), ms(0)));
    assert_eq!(
        expected(&limiter, &Cost::default(), &REQUEST, ms(0)),
        Some(ms(0)),
        "a debt in tokens does not hold what needs none"
    );
    drop(admitted(&mut limiter, REQUEST, ms(0)));
}

/// A bucket counted in billionths of a unit, a millisecond at a time. One `rate` is 1/1000 unit per second.
struct SlowBucket {
    rate: u64,
    burst: i64,
    level: i64,
}

impl SlowBucket {
    fn step(&mut self) {
        self.level = (self.level + i64::try_from(self.rate).unwrap() * 1_000).min(self.burst);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, rng_seed: proptest::test_runner::RngSeed::Fixed(7), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_bucket_agrees_with_one_counted_in_milliseconds(
        rate in 1_u64..50_000, burst in 1_u32..200,
        steps in prop::collection::vec((0_u64..400, 0_u32..30, any::<bool>()), 1..40),
    ) {
        #[allow(clippy::cast_precision_loss)]
        let per_s = rate as f64 / 1e3;
        let mut bucket = Bucket::new(per_s, f64::from(burst), ms(0));
        let burst = i64::from(burst) * 1_000_000_000;
        let mut slow = SlowBucket { rate, burst, level: (i64::try_from(rate).unwrap() * 1_000_000).min(burst) };
        let mut now = 0;
        for (span, units, give) in steps {
            now += span;
            (0..span).for_each(|_| slow.step());
            let amount = i64::from(units) * 1_000_000_000;
            if give {
                bucket.give_back(f64::from(units), ms(now));
                slow.level = (slow.level + amount).min(slow.burst);
            } else {
                bucket.take(f64::from(units), ms(now));
                slow.level -= amount;
            }
            #[allow(clippy::cast_precision_loss)]
            let expected = slow.level as f64 / 1e9;
            prop_assert!((bucket.level_at(ms(now)) - expected).abs() < 1e-6);
        }
    }

    #[test]
    fn a_wait_is_exact_refused_before_it_and_admitted_at_it(
        rate in 0.01_f64..5_000.0, burst in 1.0_f64..1e6, first in 1_u64..1_000_000, second in 1_u64..1_000_000,
        part in 0.0_f64..1.0, start in 0_u64..1_000_000,
    ) {
        let mut limiter = Limiter::new(&limits(&[(TPM, rate, burst, 2e6)]), ms(start));
        let mut now = ms(start);
        for tokens in [first, second] {
            let cost = Cost::request(tokens, 0);
            let reservation = match ask(&mut limiter, cost, now) {
                Err(Denial::WaitUntil(Wait { at: Some(at), .. })) => {
                    // A billionth of the units is slack, so "before" is a little more than a billionth of the way.
                    let slack = MonoTime(0).after_seconds(2e-9 * burst.max(1.0) / rate).0 + 2;
                    let span = (at.0 - now.0).saturating_sub(slack);
                    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
                    let earlier = MonoTime(now.0 + (span as f64 * part) as u64);
                    if earlier < MonoTime(at.0.saturating_sub(slack)) {
                        let Err(Denial::WaitUntil(Wait { at: Some(again), .. })) = ask(&mut limiter, cost, earlier) else {
                            panic!("admitted before {at:?}, at {earlier:?}")
                        };
                        prop_assert!(again.0.abs_diff(at.0) <= slack, "{again:?} {at:?}");
                    }
                    now = at;
                    admitted(&mut limiter, cost, at)
                }
                Ok(reservation) => reservation,
                other => panic!("{other:?}"),
            };
            limiter.settle(reservation, None, now);
        }
    }

    /// The promise: by any moment, what was admitted and not given back is at most the first second of rate, what
    /// flowed in, and one oversize request beyond.
    #[test]
    fn no_sequence_of_retunes_and_settlements_creates_units(
        steps in prop::collection::vec(
            (0_u64..3_000, 0.0_f64..20.0, 1.0_f64..50.0, 1_u64..60, prop::option::of(0_u64..80), 0_u8..8), 1..120),
    ) {
        const UNDIVIDED: f64 = 60.0;
        let mut limiter = Limiter::new(&limits(&[(TPM, 5.0, 10.0, UNDIVIDED)]), ms(0));
        let (mut rate, mut now, mut promised) = (5.0, 0_u64, 5.0);
        let mut used: f64 = 0.0;
        let mut flying: Vec<(Reservation, u64)> = Vec::new();
        for (span, new_rate, burst, tokens, charged, what) in steps {
            now += span;
            #[allow(clippy::cast_precision_loss)]
            { promised += rate * span as f64 / 1e3; }
            match what {
                0 | 1 => {
                    limiter.retune(&limits(&[(TPM, new_rate, burst, UNDIVIDED)]), ms(now));
                    rate = new_rate;
                }
                2 | 3 if !flying.is_empty() => {
                    let (reservation, reserved) = flying.swap_remove(0);
                    limiter.settle(reservation, charged.map(|n| Cost::request(n, 0)), ms(now));
                    #[allow(clippy::cast_precision_loss)]
                    { used += charged.map_or(0.0, |n| n as f64 - reserved as f64); }
                }
                _ => if let Ok(reservation) = ask(&mut limiter, Cost::request(tokens, 0), ms(now)) {
                    // Before it was admitted nothing was owed but a settled underestimate and one oversize request.
                    #[allow(clippy::cast_precision_loss)]
                    { used += tokens as f64; }
                    flying.push((reservation, tokens));
                    prop_assert!(used <= promised + UNDIVIDED + 1e-6, "{used} of {promised}");
                },
            }
            // Exact bookkeeping: the level is never above what is left of the promise.
            let level = limiter.level_at(TPM, ms(now)).unwrap();
            prop_assert!(level <= promised - used + 1e-6, "level {level}, {used} of {promised}");
        }
    }

    #[test]
    fn a_meter_that_flaps_creates_no_units(
        steps in prop::collection::vec((0_u64..2_000, 1_u64..20, 0_u8..5), 1..80),
    ) {
        let both = limits(&[(RPM, 100.0, 100.0, 100.0), (TPM, 5.0, 20.0, 20.0)]);
        let one = limits(&[(RPM, 100.0, 100.0, 100.0)]);
        let mut limiter = Limiter::new(&both, ms(0));
        let (mut there, mut now, mut promised, mut used) = (true, 0_u64, 5.0, 0.0);
        let mut flying = Vec::new();
        for (span, tokens, what) in steps {
            now += span;
            #[allow(clippy::cast_precision_loss)]
            if there { promised += 5.0 * span as f64 / 1e3; }
            match what {
                0 => {
                    there = !there;
                    limiter.retune(if there { &both } else { &one }, ms(now));
                }
                1 if !flying.is_empty() => {
                    let (reservation, counted): (Reservation, f64) = flying.remove(0);
                    // Used nothing: all of it comes back, if it was taken here.
                    limiter.settle(reservation, Some(Cost::default()), ms(now));
                    used -= counted;
                }
                _ => if let Ok(reservation) = ask(&mut limiter, Cost::request(tokens, 0), ms(now)) {
                    #[allow(clippy::cast_precision_loss)]
                    let counted = if there { tokens as f64 } else { 0.0 };
                    used += counted;
                    flying.push((reservation, counted));
                },
            }
            if let Some(level) = limiter.level_at(TPM, ms(now)) {
                prop_assert!(level <= promised - used + 1e-6, "level {level}, {used} of {promised}");
            }
        }
    }
}

/// A request that waits for the next window closes the running one to nobody, and those who waited for it go at a pace.
#[test]
fn those_who_wait_for_a_window_are_spread_over_its_beginning_and_hold_up_nobody_before() {
    let counting = Counting::FixedWindow(Alignment::EndsAt(ms(60_000)));
    let limit =
        MeterLimit { rate: Rate { rate: 600.0, burst: 600.0 }, largest_request: 600.0, counting, together: None };
    let limits = Limits { meters: BTreeMap::from([(TPM, limit)]), ..Limits::default() };
    let mut limiter = Limiter::new(&limits, ms(0));
    let first = admitted(&mut limiter, Cost::request(500, 0), ms(0));
    assert_eq!(
        wait(&mut limiter, Cost::request(200, 0), ms(0)),
        Some(ms(62_000)),
        "100 a second, from the next window on"
    );
    drop(admitted(&mut limiter, Cost::request(90, 0), ms(1_000)));
    limiter.settle(first, Some(Cost::request(50, 0)), ms(2_000));
    drop(admitted(&mut limiter, Cost::request(450, 0), ms(3_000)));
    assert!(wait(&mut limiter, Cost::request(20, 0), ms(60_000)).is_some());
    limiter.retune(&limits, ms(60_500));
    let flown: u64 = (0..100).filter(|n| ask(&mut limiter, Cost::request(1, 0), ms(60_500 + n)).is_ok()).count() as u64;
    assert!(flown <= 60, "{flown} within the first 0.6 s");
    // What was reserved and not used does not count against the pace either.
    let reservation = admitted(&mut limiter, Cost::request(100, 0), ms(62_000));
    let before = wait(&mut limiter, Cost::request(100, 0), ms(62_000)).expect("paced");
    limiter.settle(reservation, Some(Cost::request(0, 0)), ms(62_000));
    assert!(before > ms(62_000));
    drop(admitted(&mut limiter, Cost::request(100, 0), ms(62_000)));
}

fn window_limits(units: f64) -> Limits {
    let counting = Counting::FixedWindow(Alignment::EndsAt(ms(60_000)));
    let limit =
        MeterLimit { rate: Rate { rate: units, burst: units }, largest_request: units, counting, together: None };
    Limits { meters: BTreeMap::from([(TPM, limit)]), ..Limits::default() }
}

fn window_of_600() -> Limiter {
    Limiter::new(&window_limits(600.0), ms(0))
}

/// How many of one token each are admitted from then on, one a millisecond, within `span_ms`.
fn flown(limiter: &mut Limiter, from_ms: u64, span_ms: u64) -> usize {
    (0..span_ms).filter(|n| ask(limiter, Cost::request(1, 0), ms(from_ms + n)).is_ok()).count()
}

#[test]
fn a_window_after_one_that_was_paced_is_paced_too() {
    let mut limiter = window_of_600();
    drop(admitted(&mut limiter, Cost::request(600, 0), ms(0)));
    assert!(wait(&mut limiter, Cost::request(1, 0), ms(1_000)).is_some());
    // A line of long waiters takes all of each window at its pace, and the next one asks at once when it is used up.
    assert_eq!(flown(&mut limiter, 60_000, 7_000), 600);
    assert!(wait(&mut limiter, Cost::request(1, 0), ms(67_000)) >= Some(ms(120_000)));
    assert!(flown(&mut limiter, 120_000, 600) <= 61);
}

#[test]
fn a_hold_that_ends_before_a_window_does_leaves_the_windows_pace_alone() {
    for asks_again in [true, false] {
        let mut limiter = window_of_600();
        drop(admitted(&mut limiter, Cost::request(600, 0), ms(0)));
        assert!(wait(&mut limiter, Cost::request(1, 0), ms(1_000)).is_some());
        limiter.hold(&[Hold { meter: TPM, until: ms(22_000) }], ms(20_000));
        limiter.hold(&[], ms(23_000));
        assert!(!asks_again || wait(&mut limiter, Cost::request(1, 0), ms(23_000)).is_some());
        assert!(flown(&mut limiter, 60_000, 600) <= 61, "asks again: {asks_again}");
    }
}

#[test]
fn a_retune_changes_the_pace_that_runs() {
    let mut limiter = window_of_600();
    drop(admitted(&mut limiter, Cost::request(600, 0), ms(0)));
    assert!(wait(&mut limiter, Cost::request(1, 0), ms(1_000)).is_some());
    // 100 a second, then 1,000.
    assert!(flown(&mut limiter, 60_000, 100) <= 11);
    limiter.retune(&window_limits(6_000.0), ms(60_100));
    assert!(flown(&mut limiter, 60_100, 500) >= 450);
}

#[test]
fn what_was_taken_before_a_hold_is_not_given_back_to_the_pace_after_it() {
    let mut limiter = window_of_600();
    let before = admitted(&mut limiter, Cost::request(100, 0), ms(0));
    limiter.hold(&[Hold { meter: TPM, until: ms(10_000) }], ms(1));
    limiter.settle(before, Some(Cost::request(0, 0)), ms(10_000));
    assert_eq!(limiter.level_at(TPM, ms(10_000)), Some(600.0));
    assert!(flown(&mut limiter, 10_000, 30) <= 4, "100 a second");
}

/// A call may take six seconds, which are six slices.
fn one_place() -> Limiter {
    let limits = Limits { concurrency: Some(1), ..Limits::default() };
    Limiter::with_call_max(&limits, Duration::from_secs(6), ms(0))
}

#[test]
fn a_place_is_given_back_once_by_its_call_or_by_time() {
    // In time, to the last slice.
    let mut limiter = one_place();
    let late = admitted(&mut limiter, REQUEST, ms(0));
    limiter.settle(late, None, ms(6_500));
    assert_eq!((limiter.in_flight(), limiter.expired()), (0, 0));
    // Too late; and it takes nothing from the one who has the place now.
    let gone = admitted(&mut limiter, REQUEST, ms(7_000));
    let next = admitted(&mut limiter, REQUEST, ms(20_000));
    limiter.settle(gone, None, ms(20_000));
    assert_eq!((limiter.in_flight(), limiter.expired()), (1, 1));
    // Too late, where nothing has looked at the time since.
    limiter.settle(next, None, ms(40_000));
    assert_eq!((limiter.in_flight(), limiter.expired()), (0, 2));
}

#[test]
fn a_place_that_was_given_back_does_not_expire_in_the_stead_of_another() {
    let mut limiter = one_place();
    let first = admitted(&mut limiter, REQUEST, ms(0));
    limiter.settle(first, None, ms(1_000));
    let _second = admitted(&mut limiter, REQUEST, ms(1_000));
    limiter.expire(ms(7_500));
    assert_eq!((limiter.in_flight(), limiter.expired()), (1, 0));
    limiter.expire(ms(8_000));
    assert_eq!((limiter.in_flight(), limiter.expired()), (0, 1));
}

#[test]
fn a_bucket_that_is_not_full_is_not_as_good_as_new() {
    let limiter = Limiter::new(&limits(&[(RPM, 1.0, 10.0, 10.0)]), ms(0));
    assert!(!limiter.is_fresh_at(ms(8_999)));
    assert!(limiter.is_fresh_at(ms(9_000)));
}

/// Holds of others that come more often than its rate gives a request must not keep a tenant out for ever.
#[test]
fn one_who_saves_for_a_request_is_admitted_however_often_others_are_held() {
    let mut limiter = Limiter::new(&limits(&[(RPM, 1.0 / 30.0, 1.0, 1.0)]), ms(0));
    let mut when = None;
    for round in 0..20_u64 {
        let began = round * 20_000;
        limiter.hold(&[Hold { meter: RPM, until: ms(began + 500) }], ms(began));
        if ask(&mut limiter, REQUEST, ms(began + 19_999)).is_ok() {
            when = Some(round);
            break;
        }
    }
    assert!(when.is_some_and(|round| round <= 5), "{when:?}");
    // One with more rate starts at its pace: what it had stored, six seconds' worth, is gone.
    let mut limiter = Limiter::new(&limits(&[(RPM, 10.0, 60.0, 60.0)]), ms(0));
    limiter.hold(&[Hold { meter: RPM, until: ms(20_500) }], ms(20_000));
    let sent = (0..40).filter(|_| ask(&mut limiter, REQUEST, ms(20_500)).is_ok()).count();
    assert!(sent <= 3, "{sent}");
}

#[test]
fn the_limits_of_a_tenant_without_meters_admit_everything() {
    let mut limiter = Limiter::new(&Limits { meters: BTreeMap::new(), ..Limits::default() }, ms(0));
    drop(admitted(&mut limiter, Cost::request(1_000_000, 0), ms(0)));
}

#[test]
fn two_limiters_decide_together_and_take_from_both_or_from_neither() {
    let mut child = Limiter::new(&limits(&[(RPM, 10.0, 10.0, 10.0)]), ms(0));
    let mut parent = Limiter::new(&limits(&[(RPM, 2.0, 2.0, 2.0)]), ms(0));
    for left in [1.0, 0.0] {
        assert!(child.decide_both(&mut parent, &REQUEST, ms(0)).is_ok());
        assert_eq!(parent.level_at(RPM, ms(0)), Some(left));
    }
    let refused = child.decide_both(&mut parent, &REQUEST, ms(0)).expect_err("the parent has none left");
    assert_eq!(refused, Denial::WaitUntil(Wait { at: Some(ms(500)), by: Bound::Meter(RPM) }));
    assert_eq!((child.level_at(RPM, ms(0)), parent.level_at(RPM, ms(0))), (Some(8.0), Some(0.0)));
}

#[test]
fn of_more_meters_than_are_usual_each_can_be_the_one_that_refuses() {
    let tokens = |unit: Unit, window: Window| Meter { unit, window };
    let meters = [
        RPM,
        tokens(Unit::Requests, Window::Second),
        TPM,
        tokens(Unit::Tokens, Window::Day),
        tokens(Unit::OutputTokens, Window::Minute),
    ];
    let cost = Cost::request(10, 5);
    for tight in meters {
        let per_s = |meter: Meter| if meter == tight { 1.5 * cost.of(meter.unit) } else { 1e6 };
        let all = meters.map(|meter| (meter, per_s(meter), 1e6, 1e6));
        let mut limiter = Limiter::new(&limits(&all), ms(0));
        let _sent = admitted(&mut limiter, cost, ms(0));
        let refused = ask(&mut limiter, cost, ms(1)).expect_err("spent");
        assert!(matches!(refused, Denial::WaitUntil(Wait { by: Bound::Meter(by), .. }) if by == tight), "{refused:?}");
    }
}

#[test]
fn a_window_of_another_length_begins_with_what_the_old_one_has_counted() {
    let counted = |window: Window, counting: Counting| {
        let meter = Meter { unit: Unit::Requests, window };
        let limit =
            MeterLimit { rate: Rate { rate: 10.0, burst: 10.0 }, largest_request: 10.0, counting, together: None };
        Limits { meters: BTreeMap::from([(meter, limit)]), ..Limits::default() }
    };
    for counting in [Counting::FixedWindow(Alignment::FirstUse), Counting::SlidingWindow, Counting::SlidingLog] {
        let mut limiter = Limiter::new(&counted(Window::Minute, counting), ms(0));
        let take = |limiter: &mut Limiter, now| (0..20).filter(|_| ask(limiter, REQUEST, now).is_ok()).count();
        // Where one is new, others may have used the window.
        assert_eq!(take(&mut limiter, ms(60_000)), 10, "{counting:?}");
        limiter.retune(&counted(Window::Hour, counting), ms(61_000));
        assert_eq!(take(&mut limiter, ms(62_000)), 0, "{counting:?}");
    }
}

#[test]
fn what_was_told_while_a_hold_ran_is_not_the_last_word_after_it() {
    let mut limiter = Limiter::new(&limits(&[(TPM, 1.0, 100.0, 100.0)]), ms(0));
    let cost = Cost::request(45, 0);
    // 45 will be there at 44 s.
    limiter.hold(&[Hold { meter: TPM, until: ms(40_000) }], ms(30_000));
    assert_eq!(wait(&mut limiter, cost, ms(30_000)), Some(ms(44_000)));
    // What was stored is let go slowly.
    let later = wait(&mut limiter, cost, ms(42_000)).expect("it will be there");
    assert!(later > ms(44_000), "{later:?}");
}

#[test]
fn a_fixed_window_goes_slowly_too_after_a_hold() {
    let counting = Counting::FixedWindow(Alignment::EndsAt(ms(60_000)));
    let limit = MeterLimit { rate: Rate { rate: 60.0, burst: 60.0 }, largest_request: 60.0, counting, together: None };
    let mut limiter = Limiter::new(&Limits { meters: BTreeMap::from([(RPM, limit)]), ..Limits::default() }, ms(0));
    limiter.hold(&[Hold { meter: RPM, until: ms(10_000) }], ms(0));
    let at_once = (0..60).filter(|_| ask(&mut limiter, REQUEST, ms(10_001)).is_ok()).count();
    assert!(at_once <= 1, "{at_once} at once");
    let sent = (11..60).filter(|s| ask(&mut limiter, REQUEST, ms(s * 1_000)).is_ok()).count();
    assert!(sent > 40, "{sent} in time");
}
