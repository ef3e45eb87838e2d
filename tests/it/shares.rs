//! Shares as leases: whatever is lost, delayed, joins or dies, members together never enforce more than the whole.

use std::collections::BTreeMap;
use std::time::Duration;

use tidegate::clock::MonoTime;
use tidegate::controller::shares::{SHARE_VALID, Shares, Wish};
use tidegate::plan::Share;

fn ms(ms: u64) -> MonoTime {
    MonoTime::from_millis(ms)
}

/// A member holds what it was told from the time it asked.
#[derive(Default, Clone)]
struct Member {
    lease: Option<(f64, Option<u32>, MonoTime)>,
    demand: f64,
}

impl Member {
    fn holds(&self, now: MonoTime) -> Option<(f64, Option<u32>)> {
        self.lease.filter(|(_, _, until)| *until > now).map(|(share, places, _)| (share, places))
    }

    fn wish(&self, now: MonoTime) -> Wish {
        let held = self.holds(now);
        Wish {
            demand: self.demand,
            echoed: held.map(|h| h.0),
            echoed_concurrency: held.and_then(|h| h.1),
            waiting: self.demand > 2.0,
            of_one_more: 0.2,
        }
    }
}

const PLACES: u32 = 7;

/// Asks and, unless the reply is lost, takes the answer; `travel` is how long the report was on its way.
fn round(
    shares: &mut Shares,
    name: &str,
    member: &mut Member,
    sent: MonoTime,
    travel: u64,
    lost: bool,
    learning: Option<MonoTime>,
) {
    let arrives = sent + Duration::from_millis(travel);
    let answer = shares.answer(name, member.wish(sent), Some(PLACES), arrives, learning);
    if let Some(answer) = answer.filter(|_| !lost) {
        member.lease = Some((answer.share, answer.concurrency, sent + SHARE_VALID));
    }
}

fn check(members: &BTreeMap<String, Member>, now: MonoTime, what: &str) {
    let share: f64 = members.values().filter_map(|m| m.holds(now)).map(|(share, _)| share).sum();
    let places: u32 = members.values().filter_map(|m| m.holds(now)?.1).sum();
    assert!(share <= 1.0 + 1e-9, "{what}: shares add up to {share} at {now:?}");
    assert!(places <= PLACES, "{what}: {places} places at {now:?}");
}

#[test]
fn members_together_never_hold_more_than_the_whole() {
    for seed in 0..400 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut shares = Shares::default();
        let mut members: BTreeMap<String, Member> = BTreeMap::new();
        let (mut now, mut learning) = (10_000_u64, None);
        let loss = rng.f64() * 0.5;
        for _ in 0..400 {
            now += rng.u64(1..300);
            match rng.u8(0..40) {
                0 => drop(members.insert(format!("m{}", rng.u8(0..8)), Member::default())),
                1 => {
                    // Dies: what it held is not enforced any more, and not told.
                    let name = format!("m{}", rng.u8(0..8));
                    members.remove(&name);
                }
                2 => now += rng.u64(0..6_000),
                3 => {
                    shares = Shares::default();
                    learning = Some(ms(now) + SHARE_VALID);
                }
                _ => {
                    let names: Vec<String> = members.keys().cloned().collect();
                    let Some(name) = names.get(rng.usize(0..names.len().max(1))) else { continue };
                    let member = members.get_mut(name).unwrap();
                    if rng.u8(0..5) == 0 {
                        member.demand = 5.0 * rng.f64();
                    }
                    let travel = rng.u64(0..50);
                    round(&mut shares, name, member, ms(now), travel, rng.f64() < loss, learning);
                    now += travel;
                }
            }
            check(&members, ms(now), &format!("seed {seed}"));
        }
    }
}

#[test]
fn shares_come_to_their_target_within_a_few_rounds() {
    let mut shares = Shares::default();
    let mut members: BTreeMap<String, Member> = BTreeMap::new();
    members.insert("a".into(), Member { demand: 3.0, ..Member::default() });
    round(&mut shares, "a", members.get_mut("a").unwrap(), ms(0), 1, false, None);
    assert_eq!(members["a"].holds(ms(1)), Some((1.0, Some(PLACES))), "alone it has everything");
    members.insert("b".into(), Member { demand: 1.0, ..Member::default() });
    for i in 0..4_u64 {
        for name in ["a", "b"] {
            round(&mut shares, name, members.get_mut(name).unwrap(), ms(250 * (i + 1)), 1, false, None);
        }
        check(&members, ms(250 * (i + 1) + 2), "joining");
    }
    let [a, b] = ["a", "b"].map(|name| members[name].holds(ms(1_100)).unwrap().0);
    assert!((a - 0.7).abs() < 1e-9 && (b - 0.3).abs() < 1e-9, "an even fifth, the rest by demand: {a} {b}");
}

#[test]
fn a_joiner_gets_nothing_before_another_has_said_that_it_gave_way() {
    let mut shares = Shares::default();
    let (mut a, mut b) = (Member { demand: 1.0, ..Member::default() }, Member { demand: 1.0, ..Member::default() });
    round(&mut shares, "a", &mut a, ms(0), 0, false, None);
    round(&mut shares, "b", &mut b, ms(10), 0, false, None);
    assert_eq!(b.holds(ms(11)), None, "it goes on with its part of the safe thresholds");
    round(&mut shares, "a", &mut a, ms(250), 0, false, None);
    round(&mut shares, "b", &mut b, ms(260), 0, false, None);
    assert_eq!(b.holds(ms(261)), None, "a was lowered, but has not said so");
    round(&mut shares, "a", &mut a, ms(500), 0, false, None);
    round(&mut shares, "b", &mut b, ms(510), 0, false, None);
    assert_eq!(b.holds(ms(511)).map(|h| h.0), Some(0.5));
}

#[test]
fn a_dead_members_share_is_free_when_its_lease_has_ended() {
    let mut shares = Shares::default();
    let (mut a, mut b) = (Member { demand: 1.0, ..Member::default() }, Member { demand: 1.0, ..Member::default() });
    round(&mut shares, "a", &mut a, ms(0), 0, false, None);
    // A member may notice the end of its lease a second late.
    round(&mut shares, "b", &mut b, ms(5_999), 0, false, None);
    assert_eq!(b.holds(ms(5_999)), None);
    round(&mut shares, "b", &mut b, ms(6_000), 0, false, None);
    assert_eq!(b.holds(ms(6_001)).map(|h| h.0), Some(1.0));
    assert_eq!(shares.outstanding(ms(6_001)), 1.0);
}

#[test]
fn a_learning_leader_gives_nobody_more_than_it_echoes() {
    let mut shares = Shares::default();
    let learning = Some(ms(5_000));
    let wish = |echoed| Wish { demand: 1.0, of_one_more: 0.2, echoed, echoed_concurrency: Some(2), waiting: true };
    let given = shares.answer("a", wish(Some(0.3)), Some(PLACES), ms(0), learning).expect("a share");
    assert_eq!((given.share, given.concurrency, given.with_one_more), (0.3, Some(2), None));
    // A lease of nothing would take the safe thresholds from a member that holds no lease.
    assert_eq!(shares.answer("b", wish(None), Some(PLACES), ms(10), learning), None);
    let later = shares.answer("a", wish(Some(0.3)), Some(PLACES), ms(5_000), learning).expect("a share");
    assert!(later.share > 0.3);
}

#[test]
fn a_learning_leader_takes_nothing_from_a_member_whose_demand_it_has_not_heard_of() {
    let mut shares = Shares::default();
    let learning = Some(ms(5_000));
    let wish =
        |demand| Wish { demand, of_one_more: 0.0, echoed: Some(0.5), echoed_concurrency: Some(3), waiting: false };
    shares.answer("a", wish(8.0), Some(PLACES), ms(0), learning);
    // Its second report tells the demand; this is its first. Lowered now, it could not be raised again for five seconds.
    let given = shares.answer("b", wish(0.0), Some(PLACES), ms(10), learning).expect("a share");
    assert_eq!((given.share, given.concurrency), (0.5, Some(3)));
    let given = shares.answer("a", wish(8.0), Some(PLACES), ms(20), learning).expect("a share");
    assert_eq!((given.share, given.concurrency), (0.5, Some(3)));
}

#[test]
fn a_learning_leader_leaves_members_that_held_a_share_and_no_places_to_their_part_of_the_safe_ones() {
    let mut shares = Shares::default();
    let learning = Some(ms(5_000));
    let wish = Wish { demand: 1.0, of_one_more: 0.0, echoed: Some(0.5), echoed_concurrency: None, waiting: false };
    shares.answer("a", wish, Some(PLACES), ms(0), learning);
    shares.answer("b", wish, Some(PLACES), ms(10), learning);
    let places =
        |shares: &mut Shares, name, at| shares.answer(name, wish, Some(PLACES), at, learning).unwrap().concurrency;
    // The places may be held by one that has not been heard of yet.
    assert_eq!((places(&mut shares, "a", ms(20)), places(&mut shares, "b", ms(30))), (None, None));
    let c = Wish { echoed: Some(0.0), echoed_concurrency: Some(PLACES), ..wish };
    assert_eq!(shares.answer("c", c, Some(PLACES), ms(40), learning).unwrap().concurrency, Some(PLACES));
    shares.leave("c");
    let (a, b) = (places(&mut shares, "a", ms(5_000)).unwrap(), places(&mut shares, "b", ms(5_010)).unwrap());
    assert!(a >= 1 && a + b <= PLACES, "{a} and {b} of {PLACES}");
}

#[test]
fn a_member_is_told_what_one_more_waiting_request_would_bring_where_that_is_much() {
    let of = |demands: [f64; 2]| {
        let (mut shares, mut given) = (Shares::default(), [None; 2]);
        // Until both have echoed what they have.
        for nth in [0, 1, 0, 1, 0, 1] {
            let echoed = given[nth].map(|share: Share| share.share);
            let (demand, of_one_more) = (demands[nth], 0.2);
            let wish = Wish { demand, of_one_more, echoed, echoed_concurrency: None, waiting: false };
            given[nth] = shares.answer(["first", "second"][nth], wish, None, ms(0), None).or(given[nth]);
        }
        let second = given[1].expect("a share");
        ((second.share * 1e3).round(), second.with_one_more)
    };
    // 0.1 + 0.8 × 0.1 of 0.4, or 0.3 of 0.6.
    assert_eq!(of([0.3, 0.1]), (300.0, Some(0.5)));
    // 0.1 + 0.8 × 0.3 of 0.9, much more than 0.1 + 0.8 × 0.1 of 0.7; two digits are told.
    assert_eq!(of([0.6, 0.1]), (214.0, Some(0.37)));
    // One more of a hundred is not worth a word.
    assert_eq!(of([100.0, 100.0]), (500.0, None));
}
