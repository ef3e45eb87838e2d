//! The bugs of others that a limiter can have, each named with where it was reported. What they did wrong is in the name of
//! the test; what is right is in the test.

use std::collections::BTreeMap;

use tidegate::clock::MonoTime;
use tidegate::limiter::{Alignment, Bucket, Counting, Denial, FixedWindow, Hold, Limiter, Limits, MeterLimit, Wait};
use tidegate::plan::Rate;
use tidegate::quota::{Cost, Meter, Unit, Window};

const RPM: Meter = Meter::REQUESTS_PER_MINUTE;
const TPM: Meter = Meter::TOKENS_PER_MINUTE;
const ONE: Cost = Cost::request(0, 0);

fn ms(ms: u64) -> MonoTime {
    MonoTime::from_millis(ms)
}

/// Limits of so many a minute with so large a burst, counted so.
fn limits(meters: &[(Meter, f64, f64)], counting: Counting) -> Limits {
    let limit = |rate, burst| MeterLimit { rate: Rate { rate, burst }, largest_request: 1e9, counting, together: None };
    let meters: BTreeMap<_, _> = meters.iter().map(|(meter, rate, burst)| (*meter, limit(*rate, *burst))).collect();
    Limits { meters, ..Limits::default() }
}

fn bucket(meters: &[(Meter, f64, f64)]) -> Limits {
    limits(meters, Counting::TokenBucket)
}

/// How many of so many requests that come at once are admitted.
fn admitted(limiter: &mut Limiter, requests: usize, now: MonoTime) -> usize {
    (0..requests).filter(|_| limiter.decide(&ONE, now).is_ok()).count()
}

#[test]
fn governor_39_a_limiter_made_anew_for_a_new_quota_lets_a_burst_through() {
    let mut limiter = Limiter::new(&bucket(&[(RPM, 60.0, 10.0)]), ms(0));
    assert_eq!(admitted(&mut limiter, 100, ms(60_000)), 10);
    for round in 1..50_u32 {
        limiter.retune(&bucket(&[(RPM, 60.0 + f64::from(round), 10.0 + f64::from(round))]), ms(60_000));
        assert_eq!(admitted(&mut limiter, 100, ms(60_000)), 0, "swaps that come faster than decisions");
    }
}

#[test]
fn governor_117_a_chain_of_limiters_takes_from_the_first_when_the_second_refuses() {
    let mut limiter = Limiter::new(&bucket(&[(RPM, 600.0, 10.0), (TPM, 600.0, 10.0)]), ms(0));
    assert!(limiter.decide(&Cost::request(10, 0), ms(0)).is_ok());
    for _ in 0..100 {
        assert!(limiter.decide(&Cost::request(5, 0), ms(0)).is_err());
    }
    assert_eq!(limiter.level_at(RPM, ms(0)), Some(9.0));
}

#[test]
fn governor_102_what_is_left_is_wrong_when_time_goes_back() {
    let mut bucket = Bucket::new(1.0, 10.0, ms(5_000));
    bucket.take(3.0, ms(9_000));
    let left = bucket.level_at(ms(9_000));
    assert_eq!(bucket.level_at(ms(1_000)), left);
    bucket.take(1.0, ms(2_000));
    assert_eq!(bucket.level_at(ms(9_000)), left - 1.0, "nor does going back and forth fill it");
}

#[test]
fn governor_107_one_cell_too_many_after_a_full_wait() {
    let mut limiter = Limiter::new(&bucket(&[(RPM, 60.0, 3.0)]), ms(0));
    assert_eq!(admitted(&mut limiter, 10, ms(100_000)), 3);
    assert_eq!(admitted(&mut limiter, 10, ms(100_999)), 0);
    assert_eq!(admitted(&mut limiter, 10, ms(101_000)), 1);
}

#[test]
fn gubernator_37_a_changed_limit_is_ignored_until_the_window_ends() {
    for counting in [Counting::TokenBucket, Counting::FixedWindow(Alignment::FirstUse), Counting::SlidingWindow] {
        let mut limiter = Limiter::new(&limits(&[(RPM, 60_000.0, 1_000.0)], counting), ms(0));
        assert!(admitted(&mut limiter, 100, ms(1)) == 100);
        limiter.retune(&limits(&[(RPM, 1.0, 1.0)], counting), ms(2));
        assert!(admitted(&mut limiter, 100, ms(3)) <= 1, "{counting:?}");
    }
}

#[test]
fn litellm_14204_a_window_that_every_request_prolongs_never_ends() {
    let mut limiter = Limiter::new(&limits(&[(RPM, 10.0, 10.0)], Counting::FixedWindow(Alignment::FirstUse)), ms(0));
    let per_second = |limiter: &mut Limiter, seconds: std::ops::Range<u64>| -> usize {
        seconds.map(|second| admitted(limiter, 5, ms(second * 1_000))).sum()
    };
    assert_eq!(per_second(&mut limiter, 0..60), 10);
    assert_eq!(per_second(&mut limiter, 60..120), 10, "a minute later there is a new window");
    // Fewer than the limit, and never a minute without one.
    let steady = (20..80).filter(|n| limiter.decide(&ONE, ms(n * 10_000)).is_ok()).count();
    assert_eq!(steady, 60);
}

#[test]
fn agentclash_1217_what_comes_back_late_is_credit_in_a_later_window() {
    for alignment in [Alignment::FirstUse, Alignment::EndsAt(ms(60_000))] {
        let mut window = FixedWindow::new(100.0, 60.0, alignment, ms(0));
        window.take(80.0, ms(1_000));
        window.take(5.0, ms(62_000));
        window.give_back(80.0, ms(1_000), ms(62_000));
        assert_eq!(window.level_at(ms(62_000)), 95.0, "and the count does not go below nothing");
    }
}

#[test]
fn litellm_35422_a_limit_on_tokens_alone_is_never_enforced() {
    let mut limiter = Limiter::new(&bucket(&[(TPM, 600.0, 10.0)]), ms(0));
    assert!(limiter.decide(&Cost::request(10, 0), ms(0)).is_ok());
    assert!(limiter.decide(&Cost::request(10, 0), ms(0)).is_err());
}

#[test]
fn wso2_2932_a_limit_on_tokens_is_charged_one_a_call() {
    let mut limiter = Limiter::new(&bucket(&[(TPM, 60_000.0, 1_000.0)]), ms(0));
    assert!(limiter.decide(&Cost::request(600, 300), ms(0)).is_ok());
    assert_eq!(limiter.level_at(TPM, ms(0)), Some(100.0));
}

#[test]
fn litellm_40130_a_second_hold_that_is_shorter_replaces_the_first() {
    let wide: tidegate::client::swap::Swap<_> =
        tidegate::client::swap::Swap::new(tidegate::client::swap::PoolWide::new(tidegate::client::MemberState::Active));
    wide.hold(&[(RPM, ms(9_000))]);
    wide.hold(&[(RPM, ms(3_000))]);
    assert_eq!(wide.load().all_holds(), [Hold { meter: RPM, until: ms(9_000) }]);
}

#[test]
fn smithy_a_sleep_of_less_than_a_nanosecond_is_a_spin() {
    // A rate so high that the missing part of a unit flows in within a fraction of a nanosecond.
    let mut limiter = Limiter::new(&bucket(&[(TPM, 6e13, 1e6)]), ms(0));
    assert!(limiter.decide(&Cost::request(1_000_000, 0), ms(0)).is_ok());
    let mut now = ms(0);
    let mut asked = 0;
    loop {
        asked += 1;
        match limiter.decide(&Cost::request(1, 0), now) {
            Ok(_) => break,
            Err(Denial::WaitUntil(Wait { at: Some(at), .. })) => {
                assert!(at > now, "a wait goes on");
                now = at;
            }
            Err(other) => panic!("{other:?}"),
        }
    }
    assert_eq!(asked, 2, "refused once, and admitted when it was told to ask");
}

#[test]
fn token_throttle_usage_that_nobody_knows_counts_as_used() {
    let mut limiter = Limiter::new(&bucket(&[(TPM, 6_000.0, 100.0)]), ms(0));
    let reservation = limiter.decide(&Cost::request(100, 0), ms(0)).expect("there is room");
    limiter.settle(reservation, None, ms(0));
    assert_eq!(limiter.level_at(TPM, ms(0)), Some(0.0));
}

#[test]
fn agentgateway_use_above_the_estimate_is_forgiven_at_zero() {
    let mut limiter = Limiter::new(&bucket(&[(TPM, 6_000.0, 100.0)]), ms(0));
    let reservation = limiter.decide(&Cost::request(100, 0), ms(0)).expect("there is room");
    limiter.settle(reservation, Some(Cost::request(1_100, 0)), ms(0));
    assert_eq!(limiter.level_at(TPM, ms(0)), Some(-1_000.0));
    let refused = limiter.decide(&Cost::request(100, 0), ms(0)).expect_err("the debt comes first");
    assert!(matches!(refused, Denial::WaitUntil(Wait { at: Some(at), .. }) if at == ms(11_000)), "{refused:?}");
}

#[test]
fn tensorzero_a_changed_rule_resets_what_was_used() {
    let day = Meter { unit: Unit::Requests, window: Window::Day };
    let counting = Counting::FixedWindow(Alignment::EndsAt(ms(86_400_000)));
    let mut limiter = Limiter::new(&limits(&[(day, 100.0, 100.0)], counting), ms(0));
    assert_eq!(admitted(&mut limiter, 60, ms(0)), 60);
    limiter.retune(&limits(&[(day, 101.0, 101.0)], counting), ms(1_000));
    assert!(admitted(&mut limiter, 100, ms(2_000)) <= 41);
}

#[test]
fn omniroute_9763_a_refusal_drops_the_limiter_and_the_next_is_fresh() {
    let mut limiter = Limiter::new(&bucket(&[(RPM, 60.0, 5.0)]), ms(0));
    assert_eq!(admitted(&mut limiter, 10, ms(60_000)), 5);
    limiter.hold(&[Hold { meter: RPM, until: ms(61_000) }], ms(60_000));
    limiter.hold(&[], ms(60_500));
    assert_eq!(admitted(&mut limiter, 10, ms(60_500)), 0);
}

#[test]
fn bifrost_125_what_was_stored_while_held_is_let_go_at_once() {
    let mut limiter = Limiter::new(&bucket(&[(RPM, 6_000.0, 300.0)]), ms(0));
    limiter.hold(&[Hold { meter: RPM, until: ms(60_000) }], ms(1_000));
    assert_eq!(admitted(&mut limiter, 1_000, ms(59_999)), 0);
    assert_eq!(admitted(&mut limiter, 1_000, ms(60_000)), 25, "a quarter of a second's rate");
    let next_second: usize = (1..=100).map(|n| admitted(&mut limiter, 1_000, ms(60_000 + n * 10))).sum();
    assert_eq!(next_second, 100, "then as it flows");
}
