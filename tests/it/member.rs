//! What a member enforces, from records and time alone.

use std::collections::BTreeMap;

use tidegate::client::{Changes, MemberState, PoolView};
use tidegate::clock::{MonoTime, UnixMillis};
use tidegate::limiter::{Limits, MeterLimit};
use tidegate::plan::{Pulse, Rate, Share, Target, Thresholds};
use tidegate::quota::Grantee;

use super::by_hand::{RPM, TPM, grant, grantee, pulse, rates, stamp, target};

const WALL: UnixMillis = UnixMillis(1_000_000_000_000);

fn at_ms(ms: u64) -> MonoTime {
    MonoTime::from_millis(3_600_000 + ms)
}

fn bootstrap() -> Thresholds {
    Thresholds { concurrency: Some(1), ..rates(&[(RPM, 10.0, 1.0)]) }
}

fn fresh() -> PoolView {
    PoolView::new(bootstrap(), at_ms(0))
}

/// `acme` has 120 requests/minute with a burst of 12, and the whole of it as its share until 1,000 s; pulse at 0.
fn active() -> PoolView {
    let mut view = fresh();
    view.on_grant(grantee("acme"), grant(stamp(7, 10), rates(&[(RPM, 120.0, 12.0)])));
    view.on_pulse(pulse(stamp(7, 10)), true, at_ms(0));
    view.on_reply(whole(), at_ms(1_000_000));
    view
}

fn whole() -> BTreeMap<Grantee, Share> {
    [(grantee("acme"), Share { share: 1.0, concurrency: None, with_one_more: None })].into()
}

fn limits(view: &PoolView, name: &str, ms: u64) -> Limits {
    view.limits(at_ms(ms), WALL)[&grantee(name)].clone()
}

fn rpm(view: &PoolView, ms: u64) -> f64 {
    limits(view, "acme", ms).meters[&RPM].rate.rate
}

fn put(view: &mut PoolView, target: Target, record: &str) {
    view.on_override(target, Some(record.as_bytes())).expect("a good record");
}

/// Rounded to thousandths, so that tables can be written.
fn round(x: f64) -> f64 {
    (x * 1e3).round() / 1e3
}

// === states ===

#[test]
fn a_member_goes_from_bootstrap_to_active_to_braking_to_lapsed() {
    let mut view = fresh();
    assert_eq!(view.state(at_ms(0)), MemberState::Bootstrap);
    assert_eq!(limits(&view, "@default", 0).meters[&RPM].rate, Rate { rate: 10.0, burst: 1.0 });
    assert_eq!(limits(&view, "@default", 0).concurrency, Some(1));

    view.on_grant(grantee("acme"), grant(stamp(7, 10), rates(&[(RPM, 120.0, 12.0)])));
    assert_eq!(view.state(at_ms(0)), MemberState::Lapsed, "a grant without a pulse has no life");
    view.on_pulse(pulse(stamp(7, 10)), true, at_ms(0));
    let table = [
        (0, MemberState::Active),
        (3_000, MemberState::Active),
        (3_001, MemberState::Braking),
        (15_000, MemberState::Braking),
        (15_001, MemberState::Lapsed),
    ];
    for (ms, state) in table {
        assert_eq!(view.state(at_ms(ms)), state, "at {ms} ms");
    }
    view.on_pulse(pulse(stamp(7, 11)), true, at_ms(20_000));
    assert_eq!(view.state(at_ms(20_000)), MemberState::Active);
}

#[test]
fn a_member_brakes_by_the_second_and_is_released_slowly() {
    let mut view = active();
    // At (s): a 429 before it or not; what is enforced then, of 120.
    let table = [
        (1, true, 120.0), // the leader lives: it is the one to cut
        (2, false, 120.0),
        (3, false, 120.0),
        (4, true, 84.0),
        (5, true, 58.8),
        (6, false, 58.8),
        (7, true, 41.16),
        (8, false, 41.16),
        (14, false, 41.16),
        (15, false, 42.36), // 8 clean seconds; +1 % of the base for the second since the last look
    ];
    for second in 1..=15 {
        let row = table.iter().find(|row| row.0 == second);
        for quarter in 1..=4 {
            // Looked at four times a second, as the client does.
            let now = at_ms((second - 1) * 1_000 + quarter * 250);
            if quarter == 2 && row.is_some_and(|row| row.1) {
                view.on_throttled(now);
            }
            view.brake(now);
        }
        if let Some((_, _, enforced)) = row {
            assert_eq!(round(rpm(&view, second * 1_000)), *enforced, "after {second} s");
        }
    }
}

#[test]
fn the_brake_never_releases_above_the_base_and_ends_with_the_next_pulse() {
    let mut view = active();
    view.on_throttled(at_ms(4_500));
    view.brake(at_ms(5_000));
    assert_eq!(round(rpm(&view, 5_000)), 84.0);
    // Within its validity the pulse keeps the base whole.
    for second in 6..15 {
        view.brake(at_ms(second * 1_000));
    }
    assert!(rpm(&view, 15_000) > 84.0 && rpm(&view, 15_000) < 120.0);
    let mut long = active();
    long.on_pulse(Pulse { valid_for_ms: 1_000_000, ..pulse(stamp(7, 11)) }, true, at_ms(0));
    long.on_throttled(at_ms(4_500));
    for second in 5..200 {
        long.brake(at_ms(second * 1_000));
        assert!(rpm(&long, second * 1_000) <= 120.0);
    }
    assert_eq!(rpm(&long, 200_000), 120.0);

    view.on_pulse(pulse(stamp(7, 11)), true, at_ms(15_500));
    view.brake(at_ms(16_000));
    assert_eq!(rpm(&view, 16_000), 120.0);
}

#[test]
fn a_process_that_slept_brakes_once_not_for_every_second_it_slept() {
    let mut view = active();
    view.brake(at_ms(4_000));
    view.on_throttled(at_ms(4_100));
    view.brake(at_ms(14_000));
    assert_eq!(round(rpm(&view, 14_000)), 84.0);
}

#[test]
fn lapsed_grants_fall_to_the_safe_thresholds_with_tau_30_s() {
    let view = active();
    // In steps of a hundredth: each is a retune of every tenant.
    let kept = |late_s: f64| round(60.0 + 60.0 * ((-late_s / 30.0).exp() * 100.0).round() / 100.0);
    assert_eq!(rpm(&view, 15_000), 120.0);
    assert_eq!(round(rpm(&view, 30_000)), kept(15.0));
    assert_eq!(round(rpm(&view, 45_000)), kept(30.0));
    assert_eq!(round(rpm(&view, 600_000)), 60.0);
}

#[test]
fn a_day_meter_lapses_too_and_every_meter_has_its_own_safe_part() {
    let mut view = fresh();
    let mut granted = grant(stamp(7, 1), rates(&[(RPM, 120.0, 12.0), (TPM, 1_000.0, 100.0)]));
    granted.safe = rates(&[(RPM, 30.0, 3.0), (TPM, 500.0, 50.0)]);
    view.on_grant(grantee("acme"), granted);
    view.on_pulse(pulse(stamp(7, 1)), true, at_ms(0));
    view.on_reply(whole(), at_ms(1_000_000));
    let late = limits(&view, "acme", 900_000);
    assert_eq!(round(late.meters[&RPM].rate.rate), 30.0);
    assert_eq!(round(late.meters[&TPM].rate.rate), 500.0);
}

// === pulses and grants ===

#[test]
fn a_known_pulse_renews_nothing_and_an_older_one_neither() {
    let mut view = active();
    view.on_pulse(pulse(stamp(7, 10)), true, at_ms(10_000));
    view.on_pulse(pulse(stamp(7, 9)), true, at_ms(10_000));
    view.on_pulse(pulse(stamp(6, 99)), true, at_ms(10_000));
    assert_eq!(view.state(at_ms(15_001)), MemberState::Lapsed);
    assert_eq!(view.pulse().map(|pulse| pulse.stamp), Some(stamp(7, 10)));
}

#[test]
fn an_older_grant_never_replaces_a_newer_one() {
    let mut view = active();
    for older in [stamp(7, 9), stamp(6, 99), stamp(7, 10)] {
        view.on_grant(grantee("acme"), grant(older, rates(&[(RPM, 999.0, 9.0)])));
        assert_eq!(rpm(&view, 0), 120.0);
    }
    view.on_grant(grantee("acme"), grant(stamp(8, 1), rates(&[(RPM, 90.0, 9.0)])));
    assert_eq!(rpm(&view, 0), 90.0);
}

#[test]
fn a_pulse_without_a_living_leader_renews_nothing_but_ends_nothing_either() {
    let mut found = fresh();
    found.on_grant(grantee("acme"), grant(stamp(7, 10), rates(&[(RPM, 120.0, 12.0)])));
    found.on_pulse(pulse(stamp(7, 10)), false, at_ms(0));
    found.on_reply(whole(), at_ms(1_000_000));
    assert_eq!(found.state(at_ms(0)), MemberState::Lapsed);
    assert_eq!(rpm(&found, 0), 60.0, "safe at once: nobody knows how old the grant is");

    // Listed between two leaders: the pulse that did count goes on counting.
    let mut between = active();
    between.on_pulse(pulse(stamp(7, 12)), false, at_ms(5_000));
    assert_eq!(between.state(at_ms(5_000)), MemberState::Braking);
    assert_eq!(between.state(at_ms(15_001)), MemberState::Lapsed);
    assert_eq!(rpm(&between, 5_000), 120.0);
}

#[test]
fn a_cut_applies_to_older_grants_only() {
    let mut view = active();
    view.on_grant(grantee("newer"), grant(stamp(7, 11), rates(&[(RPM, 60.0, 6.0)])));
    let cut = Pulse { scale: [(RPM, 0.5)].into(), scale_epoch: Some(11), ..pulse(stamp(7, 12)) };
    view.on_pulse(cut, true, at_ms(100));
    assert_eq!(rpm(&view, 100), 60.0);
    // No share: safe ÷ (members + 1), and no cut on it.
    assert_eq!(round(limits(&view, "newer", 100).meters[&RPM].rate.rate), 10.0);
    view.on_grant(grantee("acme"), grant(stamp(7, 12), rates(&[(RPM, 60.0, 6.0)])));
    assert_eq!(rpm(&view, 100), 60.0, "the new grant contains the cut already");
}

#[test]
fn a_removed_grant_sends_its_tenant_to_the_others_never_to_the_open() {
    let mut view = active();
    view.on_grant(Grantee::Default, grant(stamp(7, 10), rates(&[(RPM, 6.0, 1.0)])));
    view.on_grant_removed(&grantee("acme"));
    let limits = view.limits(at_ms(0), WALL);
    assert_eq!(limits.keys().collect::<Vec<_>>(), [&Grantee::Default]);
    view.on_grant_removed(&Grantee::Default);
    assert_eq!(view.state(at_ms(0)), MemberState::Bootstrap);
    assert_eq!(view.limits(at_ms(0), WALL)[&Grantee::Default].meters[&RPM].rate.rate, 10.0);
}

// === overrides ===

#[test]
fn capacity_overrides_scale_every_base_with_the_controller_dead_too() {
    let mut view = active();
    put(&mut view, Target::Capacity, r#"{"set":{"requests/minute":300}}"#);
    assert_eq!(rpm(&view, 0), 60.0);
    assert_eq!(rpm(&view, 10_000), 60.0, "braking");
    assert_eq!(round(rpm(&view, 600_000)), 30.0, "lapsed");
    put(&mut view, Target::Capacity, r#"{"set":{"requests/minute":6000}}"#);
    assert_eq!(rpm(&view, 0), 120.0, "never above the base");
    put(&mut view, Target::Capacity, r#"{"scale":0.25}"#);
    assert_eq!(rpm(&view, 0), 30.0);
}

#[test]
fn what_an_operator_sets_is_neither_braked_nor_does_it_lapse() {
    let mut view = active();
    put(&mut view, target("acme"), r#"{"set":{"requests/minute":300}}"#);
    for second in 4..8 {
        view.on_throttled(at_ms(second * 1_000 - 1));
        view.brake(at_ms(second * 1_000));
    }
    for ms in [0, 8_000, 20_000, 900_000] {
        assert_eq!(rpm(&view, ms), 300.0, "at {ms} ms");
    }
    // Without a share it is divided like anything else: it is the tenant's whole.
    let mut alone = fresh();
    alone.on_grant(grantee("acme"), grant(stamp(7, 10), rates(&[(RPM, 120.0, 12.0)])));
    put(&mut alone, target("acme"), r#"{"set":{"requests/minute":300}}"#);
    assert_eq!(rpm(&alone, 0), 100.0);
}

#[test]
fn a_ceiling_holds_when_lapsed_and_limits_a_meter_without_a_base() {
    let mut view = active();
    put(&mut view, target("acme"), r#"{"ceiling":{"requests/minute":40,"tokens/minute":{"rate":900,"burst":90}}}"#);
    for ms in [0, 10_000, 900_000] {
        assert!(rpm(&view, ms) <= 40.0, "at {ms} ms");
        let tokens = limits(&view, "acme", ms).meters[&TPM].rate;
        assert_eq!(tokens, Rate { rate: 900.0, burst: 90.0 }, "at {ms} ms: only the operator limits it");
    }
}

#[test]
fn a_block_at_either_level_wins_in_every_state() {
    for at in [Target::Every, target("acme")] {
        let mut view = active();
        put(&mut view, at.clone(), r#"{"block":true}"#);
        for ms in [0, 10_000, 900_000] {
            assert!(limits(&view, "acme", ms).blocked, "{at:?} at {ms} ms");
        }
        view.on_override(at, None).expect("a removal");
        assert!(!limits(&view, "acme", 0).blocked);
    }
}

#[test]
fn operators_are_obeyed_before_any_grant_was_written() {
    let mut view = fresh();
    put(&mut view, Target::Every, r#"{"block":true}"#);
    assert!(limits(&view, "@default", 0).blocked);
    put(&mut view, Target::Every, r#"{"set":{"requests/minute":60}}"#);
    assert_eq!(limits(&view, "@default", 0).meters[&RPM].rate.rate, 60.0);
    put(&mut view, Target::Every, r#"{"freeze":true}"#);
    put(&mut view, Target::Capacity, r#"{"scale":0.5}"#);
    assert_eq!(limits(&view, "@default", 0).meters[&RPM].rate, Rate { rate: 5.0, burst: 1.0 });
    // A tenant without a grant can be blocked, but no record gives it capacity of its own.
    put(&mut view, target("loud"), r#"{"set":{"requests/minute":6000}}"#);
    assert!(!view.limits(at_ms(0), WALL).contains_key(&grantee("loud")));
    put(&mut view, target("loud"), r#"{"block":true}"#);
    assert!(limits(&view, "loud", 0).blocked);
}

#[test]
fn a_frozen_base_does_not_lapse() {
    let mut view = active();
    put(&mut view, target("acme"), r#"{"freeze":true}"#);
    for ms in [0, 10_000, 900_000] {
        assert_eq!(rpm(&view, ms), 120.0, "at {ms} ms");
    }
}

#[test]
fn an_override_ends_by_the_readers_own_wall_clock() {
    let mut view = active();
    // 2001-09-09T01:46:40Z is the millisecond after which WALL is counted.
    put(&mut view, target("acme"), r#"{"set":{"requests/minute":300},"expires_at":"2001-09-09T01:46:41Z"}"#);
    let at_wall = |ms: u64| view.limits(at_ms(0), UnixMillis(WALL.0 + ms))[&grantee("acme")].meters[&RPM].rate.rate;
    assert_eq!(at_wall(999), 300.0);
    assert_eq!(at_wall(1_000), 120.0);
}

#[test]
fn a_malformed_override_changes_nothing() {
    let mut view = active();
    put(&mut view, target("acme"), r#"{"set":{"requests/minute":300}}"#);
    for bad in ["", "{}", r#"{"set":{"requests/minute":-1}}"#, r#"{"scale":11}"#, r#"{"block":true,"freeze":true}"#] {
        view.on_override(target("acme"), Some(bad.as_bytes())).expect_err(bad);
        assert_eq!(rpm(&view, 0), 300.0, "after {bad:?}");
    }
}

// === shares ===

#[test]
fn a_member_without_a_share_enforces_its_part_of_safe() {
    let mut view = fresh();
    let mut granted = grant(stamp(7, 10), Thresholds { concurrency: Some(16), ..rates(&[(RPM, 120.0, 12.0)]) });
    granted.members = 4;
    view.on_grant(grantee("acme"), granted);
    view.on_pulse(Pulse { valid_for_ms: 1_000_000, ..pulse(stamp(7, 10)) }, true, at_ms(0));
    // Never held one: 60 ÷ 5, and ⌊8 ÷ 5⌋ at a time.
    assert_eq!((rpm(&view, 0), limits(&view, "acme", 0).concurrency), (12.0, Some(1)));
    // Of 120 that it may be given in a moment, as long as somebody leads who would.
    assert_eq!([0, 3_000, 3_001].map(|ms| limits(&view, "acme", ms).share_to_come), [Some(10.0), Some(10.0), None]);
    // None is on its way from a leader who does not answer.
    view.take_changes(at_ms(0), WALL);
    view.on_no_reply();
    assert!(!view.take_changes(at_ms(0), WALL).all, "one may be lost");
    view.on_no_reply();
    assert!(view.take_changes(at_ms(0), WALL).all);
    assert_eq!(limits(&view, "acme", 0).share_to_come, None);
    view.on_reply(BTreeMap::new(), at_ms(5_000));
    assert_eq!(limits(&view, "acme", 0).share_to_come, Some(10.0));
    let share = Share { share: 0.25, concurrency: Some(7), with_one_more: None };
    view.on_reply([(grantee("acme"), share)].into(), at_ms(5_000));
    assert_eq!((rpm(&view, 4_999), limits(&view, "acme", 4_999).concurrency), (30.0, Some(7)));
    assert_eq!(view.share_at(&grantee("acme"), at_ms(4_999)), Some(share));
    assert_eq!(limits(&view, "acme", 0).share_to_come, None);
    // One that has a share is told what one more waiting request would bring.
    view.on_reply([(grantee("acme"), Share { with_one_more: Some(0.75), ..share })].into(), at_ms(5_000));
    assert_eq!(limits(&view, "acme", 0).share_to_come, Some(3.0));
    view.take_changes(at_ms(0), WALL);
    view.on_reply([(grantee("acme"), Share { with_one_more: Some(0.7), ..share })].into(), at_ms(5_000));
    assert_eq!(view.take_changes(at_ms(0), WALL), Changes::default(), "little less is no news");
    // Expired: 60 ÷ 4, and ⌊8 ÷ 4⌋ at a time.
    assert_eq!((rpm(&view, 5_000), limits(&view, "acme", 5_000).concurrency), (15.0, Some(2)));
    assert_eq!(view.share_at(&grantee("acme"), at_ms(5_000)), None);
}

#[test]
fn nobody_is_left_without_one_request_at_a_time() {
    let mut view = fresh();
    let mut granted = grant(stamp(7, 10), Thresholds { concurrency: Some(2), ..rates(&[(RPM, 6.0, 2.0)]) });
    granted.members = 100;
    view.on_grant(grantee("acme"), granted);
    let enforced = limits(&view, "acme", 0);
    assert_eq!(enforced.concurrency, Some(1));
    let MeterLimit { rate, largest_request, .. } = enforced.meters[&RPM];
    assert_eq!((rate.burst, largest_request), (1.0, 2.0));
    assert!(rate.rate < 0.1, "the burst is whole, the rate is not");
}

#[test]
fn a_share_outside_0_to_1_changes_nothing() {
    let mut view = active();
    for share in [-0.1, 1.1, f64::NAN, f64::INFINITY] {
        view.on_reply(
            [(grantee("acme"), Share { share, concurrency: None, with_one_more: None })].into(),
            at_ms(2_000_000),
        );
        assert_eq!(rpm(&view, 0), 120.0, "share {share}");
    }
}

#[test]
fn a_large_request_is_never_refused_for_being_large_while_the_pool_could_take_it() {
    let mut view = PoolView::new(Thresholds::default(), MonoTime::from_millis(0));
    let thresholds = Thresholds { rates: [(RPM, Rate { rate: 6.0, burst: 1.0 })].into(), concurrency: None };
    view.on_grant(grantee("acme"), grant(stamp(7, 1), thresholds));
    view.on_pulse(pulse(stamp(7, 2)), true, MonoTime::from_millis(0));
    let largest = |view: &PoolView| {
        view.limits(MonoTime::from_millis(0), UnixMillis(0))[&grantee("acme")].meters[&RPM].largest_request
    };
    assert_eq!(largest(&view), 600.0, "what the pulse says the pool takes");
    view.on_pulse(Pulse { capacity: [(RPM, 30.0)].into(), ..pulse(stamp(7, 3)) }, true, MonoTime::from_millis(0));
    assert_eq!(largest(&view), 600.0, "a cut makes no request impossible");
}

/// What changed is told exactly: who keeps the limits of all and renews those that are told has the limits of all.
#[test]
fn limits_renewed_as_changes_tell_are_the_limits_of_all() {
    for seed in 0..400 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut view = PoolView::new(Thresholds::default(), at_ms(0));
        let mut kept = BTreeMap::new();
        let (mut now, mut wall, mut epoch) = (1_000, 1_000_000, 1);
        let names = ["a", "b", "c"].map(grantee);
        for _ in 0..40 {
            now += rng.u64(0..3_000);
            wall += rng.u64(0..3_000);
            epoch += 1;
            let who = names[rng.usize(..3)].clone();
            let target = [Target::One(who.clone()), Target::Every, Target::Capacity][rng.usize(..3)].clone();
            match rng.u8(..9) {
                0 | 1 => drop(view.on_grant(who, grant(stamp(1, epoch), rates(&[(RPM, rng.f64() * 100.0, 5.0)])))),
                2 => view.on_grant_removed(&who),
                3 => {
                    let scale = if rng.bool() { [(RPM, rng.f64())].into() } else { BTreeMap::new() };
                    let capacity = [(RPM, rng.f64() * 600.0)].into();
                    let window_left_ms = if rng.bool() { [(RPM, rng.u64(0..60_000))].into() } else { BTreeMap::new() };
                    let told =
                        Pulse { scale, scale_epoch: Some(epoch), capacity, window_left_ms, ..pulse(stamp(1, epoch)) };
                    view.on_pulse(told, rng.u8(..4) > 0, at_ms(now));
                }
                4 => {
                    let share = Share { share: f64::from(rng.u8(..4)) / 4.0, concurrency: None, with_one_more: None };
                    view.on_reply([(who, share)].into(), at_ms(now + rng.u64(0..4_000)));
                }
                5 => {
                    let until =
                        jiff::Timestamp::from_millisecond(i64::try_from(wall + rng.u64(0..4_000)).expect("small"));
                    let until = until.expect("in range");
                    let record = format!(
                        r#"{{"set":{{"requests/minute":{}}},"by":"x","reason":"y","expires_at":"{until}"}}"#,
                        rng.u8(..)
                    );
                    let _ = view.on_override(target, Some(record.as_bytes()));
                }
                6 => view.on_override(target, None).expect("removing cannot fail"),
                7 => view
                    .on_override(Target::One(who), Some(br#"{"block":true,"by":"x","reason":"y"}"#))
                    .expect("well formed"),
                _ => view.on_throttled(at_ms(now)),
            }
            view.brake(at_ms(now));
            let wall = UnixMillis(wall);
            let changes = view.take_changes(at_ms(now), wall);
            let all = view.limits(at_ms(now), wall);
            let told = |who: &Grantee| changes.all || changes.some.contains(who);
            for who in names.iter().chain([&Grantee::Default]).filter(|who| told(who)) {
                match view.limits_of(who, at_ms(now), wall) {
                    Some(limits) => drop(kept.insert(who.clone(), limits)),
                    None => drop(kept.remove(who)),
                }
            }
            assert_eq!(kept.len(), all.len(), "seed {seed}");
            for (who, limits) in &all {
                assert_eq!(kept.get(who), Some(limits), "seed {seed}: {who} at {now}");
            }
        }
    }
}
