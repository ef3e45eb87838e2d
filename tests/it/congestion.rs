//! Concurrency from what the far side tells: the law against a server that queues, and what the planner makes of signals.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use tidegate::clock::{MonoTime, UnixMillis};
use tidegate::controller::TenantParams;
use tidegate::controller::law::{CongestionLaw, CongestionParams, CongestionStep, CutBy};
use tidegate::controller::planner::PoolPlanner;
use tidegate::controller::signal::{Counts, Measured, Outside, Pressure};
use tidegate::observation::{Counters, PoolReport, Reading, TenantReport, ThrottleKind, UnitCounts};
use tidegate::plan::{Grant, Rate};
use tidegate::quota::{Grantee, Meter};

use super::planner::{pool, tenant, tick};

const RPM: Meter = Meter::REQUESTS_PER_MINUTE;
const WALL: UnixMillis = UnixMillis(1_795_464_000_000);

fn at(second: u64) -> MonoTime {
    MonoTime::from_millis(second * 1_000)
}

fn pressure(counts: Counts, aim: f64, lag_s: u64, told: Reading<Measured>) -> Pressure {
    Pressure { query: "waiting".into(), counts, aim, lag: Duration::from_secs(lag_s), told }
}

/// A server with so many slots, asked by enough to fill whatever they may; scraped every so many seconds.
struct Server {
    slots: f64,
    scrape_s: u64,
    counts: Counts,
    aim: f64,
    in_flight: f64,
    scraped: Option<Measured>,
}

impl Server {
    fn new(slots: f64, scrape_s: u64) -> Self {
        Self { slots, scrape_s, counts: Counts::Requests, aim: 2.0, in_flight: 0.0, scraped: None }
    }

    /// A second: what is in flight moves towards what is allowed, up at once, down as calls end.
    fn second(&mut self, law: &mut CongestionLaw, second: u64, wanted: f64, silent: bool) -> CongestionStep {
        if second.is_multiple_of(self.scrape_s) {
            let value = match self.counts {
                Counts::Requests => (self.in_flight - self.slots).max(0.0),
                Counts::Part => self.in_flight / self.slots,
            };
            self.scraped = Some(Measured { at: at(second), value });
        }
        let told = match self.scraped {
            // Asked each second, whatever the scrape: the answer is as of the question, its sample is not.
            Some(scraped) if !silent => Reading::Fresh(Measured { at: at(second), ..scraped }),
            _ => Reading::Missing,
        };
        let pressure = pressure(self.counts, self.aim, self.scrape_s + 1, told);
        let step = law.step(at(second), Some(self.in_flight), &[pressure]);
        // A part of a place is nobody's.
        let allowed = step.places.map_or(f64::INFINITY, f64::floor).min(wanted);
        self.in_flight = if allowed > self.in_flight { allowed } else { allowed.max(self.in_flight * 0.7) };
        step
    }
}

#[test]
fn a_server_that_queues_is_driven_at_its_slots_and_a_few_that_wait() {
    for (slots, scrape_s) in [(24.0, 1), (24.0, 5), (24.0, 15), (400.0, 5), (4.0, 5)] {
        let (mut server, mut law) = (Server::new(slots, scrape_s), CongestionLaw::new(CongestionParams::default()));
        let mut seen = Vec::new();
        for second in 0..300 {
            server.second(&mut law, second, 20.0 * slots, false);
            if second > 60 {
                seen.push(server.in_flight);
            }
        }
        let least = seen.iter().copied().fold(f64::INFINITY, f64::min);
        let most = seen.iter().copied().fold(0.0, f64::max);
        assert!(least >= slots, "{slots} slots, scraped every {scrape_s} s: {least} in flight leave some idle");
        // It overshoots by as much as grows between two scrapes.
        let growth = (0.03 * slots).max(0.5) * (2 * scrape_s + 2) as f64;
        assert!(most <= slots + 2.0 + growth, "{slots} slots, scraped every {scrape_s} s: {most} in flight");
    }
}

#[test]
fn with_half_a_request_to_wait_it_stays_at_the_slots_but_for_tries_that_become_rare() {
    for slots in [1.0, 4.0, 16.0, 40.0] {
        let mut server = Server { aim: 0.5, ..Server::new(slots, 1) };
        let mut law = CongestionLaw::new(CongestionParams::default());
        let mut tries = Vec::new();
        let mut before = slots;
        for second in 0..600 {
            server.second(&mut law, second, 400.0, false);
            let now = server.in_flight;
            assert!(
                second < 60 || (slots..=slots + 1.0).contains(&now),
                "{slots} slots: {now} in flight at {second} s"
            );
            if now > slots && before <= slots {
                tries.push(second);
            }
            before = now;
        }
        // Half a place at a tenth, halved three times, of what it grows by otherwise.
        let growth = (0.03 * slots).max(0.5);
        let between = 0.5 * 10.0 * 8.0 / growth;
        let late = tries.iter().filter(|second| **second >= 200).count() as f64;
        assert!(late <= 400.0 / between && late >= 0.7 * 400.0 / between, "{slots} slots: tries at {tries:?} s");
        // What is freed after ten minutes of that is found by the next of them.
        server.slots = 3.0 * slots;
        let found = (600..900).find(|second| {
            server.second(&mut law, *second, 400.0, false);
            server.in_flight >= server.slots
        });
        let documented = between + 10.0 + 2.0 * slots / growth;
        assert!(found.is_some_and(|found| (found - 600) as f64 <= documented), "{slots} slots: {found:?}");
    }
}

#[test]
fn the_first_answer_cuts_to_what_is_worked_at_however_large_the_surplus() {
    let mut law = CongestionLaw::new(CongestionParams::default());
    let told = |value, second| Reading::Fresh(Measured { at: at(second), value });
    assert_eq!(law.step(at(0), Some(500.0), &[pressure(Counts::Requests, 2.0, 6, Reading::Missing)]).places, None);
    let step = law.step(at(1), Some(500.0), &[pressure(Counts::Requests, 2.0, 6, told(476.0, 1))]);
    assert_eq!(step.places, Some(26.0));
    assert_eq!(step.by, Some(CutBy { query: "waiting".into(), told: 476.0, aim: 2.0, is_silent: false }));
    // The same answer again, while those in flight are on their way out, is no second congestion.
    let step = law.step(at(2), Some(300.0), &[pressure(Counts::Requests, 2.0, 6, told(476.0, 1))]);
    assert_eq!(step.places, Some(26.0));
    // Nor is a later one of an older sample: as many were in flight a scrape ago.
    let step = law.step(at(3), Some(100.0), &[pressure(Counts::Requests, 2.0, 6, told(276.0, 3))]);
    assert_eq!(step.places, Some(26.0));
}

#[test]
fn slots_that_come_and_go_are_followed() {
    let (mut server, mut law) = (Server::new(64.0, 5), CongestionLaw::new(CongestionParams::default()));
    for second in 0..120 {
        server.second(&mut law, second, 400.0, false);
    }
    server.slots = 32.0;
    for second in 120..150 {
        server.second(&mut law, second, 400.0, false);
    }
    assert!((32.0..=40.0).contains(&server.in_flight), "half a minute after half of them went: {}", server.in_flight);
    server.slots = 64.0;
    for second in 150..210 {
        server.second(&mut law, second, 400.0, false);
    }
    assert!((64.0..=76.0).contains(&server.in_flight), "a minute after they came back: {}", server.in_flight);
}

#[test]
fn a_part_that_is_full_is_held_at_its_aim() {
    let mut server = Server { counts: Counts::Part, aim: 0.9, ..Server::new(100.0, 5) };
    let mut law = CongestionLaw::new(CongestionParams::default());
    for second in 0..200 {
        server.second(&mut law, second, 400.0, false);
    }
    assert!((75.0..=100.0).contains(&server.in_flight), "{}", server.in_flight);
}

#[test]
fn without_a_signal_what_it_taught_holds_and_it_says_that_it_is_blind() {
    let (mut server, mut law) = (Server::new(24.0, 1), CongestionLaw::new(CongestionParams::default()));
    let mut before = CongestionStep::default();
    for second in 0..60 {
        before = server.second(&mut law, second, 400.0, false);
    }
    assert!(before.by.as_ref().is_some_and(|by| !by.is_silent));
    let mut step = CongestionStep::default();
    for second in 60..600 {
        step = server.second(&mut law, second, 400.0, true);
    }
    assert!(step.by.as_ref().is_some_and(|by| by.is_silent));
    assert_eq!(step.places, before.places, "neither grown nor cut in nine minutes");
    // It comes back, and goes on from there.
    for second in 600..660 {
        step = server.second(&mut law, second, 400.0, false);
    }
    assert!((24.0..=29.0).contains(&server.in_flight), "{step:?}");
}

#[test]
fn what_nobody_uses_limits_nobody_and_a_query_that_is_gone_neither() {
    let (mut server, mut law) = (Server::new(24.0, 1), CongestionLaw::new(CongestionParams::default()));
    for second in 0..60 {
        server.second(&mut law, second, 400.0, false);
    }
    let mut last = CongestionStep::default();
    for second in 60..100 {
        last = server.second(&mut law, second, 3.0, false);
    }
    assert_eq!(last.places, None, "30 s of a few calls");
    for second in 100..160 {
        last = server.second(&mut law, second, 400.0, false);
    }
    assert!(last.places.is_some());
    assert_eq!(
        law.step(at(161), Some(20.0), &[]),
        CongestionStep::default(),
        "the query was taken out of the configuration"
    );
}

#[test]
fn a_small_server_that_gets_more_slots_is_given_more() {
    for slots in [1.0, 2.0, 3.0, 4.0] {
        let (mut server, mut law) = (Server::new(slots, 1), CongestionLaw::new(CongestionParams::default()));
        for second in 0..60 {
            server.second(&mut law, second, 100.0, false);
        }
        server.slots = 12.0;
        for second in 60..120 {
            server.second(&mut law, second, 100.0, false);
        }
        assert!((12.0..=16.0).contains(&server.in_flight), "{slots} slots that became 12: {}", server.in_flight);
    }
}

#[test]
fn a_new_leader_keeps_what_was_allowed_until_all_have_told_and_who_hears_nobody_cuts_nothing() {
    let told = |value, second| Reading::Fresh(Measured { at: at(second), value });
    let mut law = CongestionLaw::new(CongestionParams::default());
    law.resume(50.0, at(3));
    // Prometheus answers before any member reports.
    assert_eq!(law.step(at(0), None, &[pressure(Counts::Requests, 1.0, 6, told(3.0, 0))]).places, Some(50.0));
    assert_eq!(law.step(at(1), Some(10.0), &[pressure(Counts::Requests, 1.0, 6, told(3.0, 1))]).places, Some(50.0));
    assert_eq!(law.step(at(4), Some(50.0), &[pressure(Counts::Requests, 1.0, 6, told(3.0, 4))]).places, Some(48.0));
    // All members are cut off from it.
    for second in 5..60 {
        let step = law.step(at(second), None, &[pressure(Counts::Requests, 1.0, 6, told(3.0, second))]);
        assert_eq!(step.places, Some(48.0));
    }
}

#[test]
fn an_old_answer_of_one_query_is_not_acted_on_again_when_another_answers() {
    let mut law = CongestionLaw::new(CongestionParams::default());
    let named = |query: &str, value, second| Pressure {
        query: query.into(),
        ..pressure(Counts::Requests, 1.0, 5, Reading::Fresh(Measured { at: at(second), value }))
    };
    law.step(at(0), Some(100.0), &[named("slow", 50.0, 0), named("quick", 0.0, 0)]);
    let mut step = CongestionStep::default();
    for second in 1..100 {
        step = law.step(at(second), Some(51.0), &[named("slow", 50.0, 0), named("quick", 0.0, second)]);
    }
    assert_eq!(step.places, Some(51.0), "and it does not grow while that one still says that some wait");
    // One that never tells anything holds nobody up but who was cut by it.
    let silent = Pressure { query: "gone".into(), ..pressure(Counts::Part, 0.9, 5, Reading::Missing) };
    for second in 100..110 {
        step = law.step(at(second), Some(51.0), &[silent.clone(), named("slow", 0.0, second)]);
    }
    assert!(step.places.is_some_and(|places| places > 55.0), "{step:?}");
}

#[test]
fn it_grows_only_for_a_while_after_an_answer() {
    let mut law = CongestionLaw::new(CongestionParams::default());
    let told = |value, second| pressure(Counts::Requests, 1.0, 60, Reading::Fresh(Measured { at: at(second), value }));
    law.step(at(0), Some(60.0), &[told(21.0, 0)]);
    let mut in_flight = 40.0;
    for second in 1..60 {
        in_flight = law.step(at(second), Some(in_flight), &[told(0.0, 1)]).places.expect("limited").floor();
    }
    assert!((40.0..=52.0).contains(&in_flight), "one answer a minute is no leave to grow for a minute: {in_flight}");
}

#[test]
fn to_a_queue_of_others_some_is_left_and_it_is_given_way_to_once_within_its_lag() {
    let mut law = CongestionLaw::new(CongestionParams::default());
    let told = |second| pressure(Counts::Requests, 1.0, 10, Reading::Fresh(Measured { at: at(second), value: 50.0 }));
    let places: Vec<f64> =
        (0..25).map(|second| law.step(at(second), Some(10.0), &[told(second)]).places.expect("limited")).collect();
    assert_eq!((places[0], places[10]), (7.0, 7.0));
    assert!((4.8..=5.0).contains(&places[11]) && places[22] < 4.0, "{places:?}");
}

#[test]
fn when_others_have_gone_their_room_is_found_as_soon_as_any() {
    let mut law = CongestionLaw::new(CongestionParams::default());
    let told = |value, second| pressure(Counts::Requests, 0.5, 2, Reading::Fresh(Measured { at: at(second), value }));
    let mut places = 16.0_f64;
    for second in 0..60 {
        places = law.step(at(second), Some(places.floor()), &[told(50.0, second)]).places.expect("limited");
    }
    assert_eq!(places, 1.0, "given way to, again and again");
    let two = (60..200).find(|second| {
        places = law.step(at(*second), Some(places.floor()), &[told(0.0, *second)]).places.expect("limited");
        places >= 2.0
    });
    assert!(two.is_some_and(|second| second <= 82), "{two:?}");
}

/// An average, or a part: what is cut to is hardly ever a whole place.
#[test]
fn tries_become_rare_wherever_between_two_places_the_cut_leads() {
    for surplus in [0.51, 0.55, 0.75, 0.99] {
        let mut law = CongestionLaw::new(CongestionParams::default());
        let told =
            |value, second| pressure(Counts::Requests, 0.5, 2, Reading::Fresh(Measured { at: at(second), value }));
        let (mut in_flight, mut tries) = (17.0, Vec::new());
        for second in 0..900 {
            let value = if in_flight > 16.0 { surplus } else { 0.0 };
            let places = law.step(at(second), Some(in_flight), &[told(value, second)]).places.expect("limited");
            if in_flight <= 16.0 && places >= 17.0 {
                tries.push(second);
            }
            in_flight = places.floor();
        }
        let late: Vec<_> = tries.windows(2).map(|two| two[1] - two[0]).skip(4).collect();
        assert!(!late.is_empty() && late.iter().all(|between| *between >= 80), "{surplus}: tries at {tries:?}");
    }
}

#[test]
fn places_are_numbers_within_their_bounds_whatever_is_told() {
    let mut random = fastrand::Rng::with_seed(8);
    let values = [0.0, 1e-9, 0.5, 1.0, 2.0, 100.0, 1e12, f64::MAX];
    for _ in 0..200 {
        let mut law = CongestionLaw::new(CongestionParams::default());
        let mut pick = || values[random.usize(..values.len())];
        let history: VecDeque<(f64, f64)> = (0..40).map(|_| (pick(), pick())).collect();
        for (second, (in_flight, value)) in history.iter().enumerate() {
            let second = second as u64;
            let told = Reading::Fresh(Measured { at: at(second), value: *value });
            for counts in Counts::ALL {
                let step = law.step(at(second), Some(*in_flight), &[pressure(counts, 0.9, 6, told)]);
                assert!(step.places.is_none_or(|places| places.is_finite() && places >= 1.0), "{history:?}: {step:?}");
            }
        }
    }
}

// === the planner ===

/// A member's report of tenants: attempts so far, waiting, in flight.
fn report(sequence: u64, tenants: &[(&str, u64, u32, u32)]) -> PoolReport {
    let row = |(name, attempts, waiting, in_flight): &(&str, u64, u32, u32)| {
        let reserved = UnitCounts { requests: *attempts, ..UnitCounts::default() };
        let counters =
            Counters { attempts: *attempts, admitted: *attempts, sent: *attempts, reserved, ..Counters::default() };
        (tenant(name), TenantReport { counters, waiting: *waiting, in_flight: *in_flight, ..TenantReport::default() })
    };
    PoolReport { sequence, tenants: tenants.iter().map(row).collect(), ..PoolReport::default() }
}

/// Two tenants that ask for 5 requests a second each of a pool of 8, for a while; then what is granted.
fn granted(outside: &Outside, ceiling: Option<f64>) -> BTreeMap<Grantee, Grant> {
    let mut params = pool(480.0, &["acme", "blue"]);
    if let Some(ceiling) = ceiling {
        let with = TenantParams { ceiling: BTreeMap::from([(RPM, ceiling)]), ..TenantParams::default() };
        params.tenants.insert("acme".parse().unwrap(), with);
    }
    let mut planner = PoolPlanner::new(params, 7, BTreeMap::new(), None, at(0));
    let mut grants = BTreeMap::new();
    for second in 0..40 {
        planner.report(
            "m",
            "b",
            &report(second, &[("acme", 5 * second, 0, 2), ("blue", 2 * second, 0, 1)]),
            at(second),
        );
        planner.hear(outside.clone());
        grants.extend(tick(&mut planner, second * 1_000).grants);
    }
    grants
}

fn rate(grants: &BTreeMap<Grantee, Grant>, name: &str) -> f64 {
    grants[&tenant(name)].thresholds.rates[&RPM].rate
}

#[test]
fn the_tenant_with_the_queue_gets_more_within_its_ceiling() {
    let nothing = granted(&Outside::default(), None);
    let queue = Outside { queued: BTreeMap::from([(tenant("blue"), 100.0)]), ..Outside::default() };
    let queued = granted(&queue, None);
    assert!(
        rate(&queued, "blue") > 1.2 * rate(&nothing, "blue"),
        "{} of {}",
        rate(&queued, "blue"),
        rate(&nothing, "blue")
    );
    let queue = Outside { queued: BTreeMap::from([(tenant("acme"), 1e6)]), ..Outside::default() };
    let bounded = granted(&queue, Some(200.0));
    assert_eq!(rate(&bounded, "acme"), 200.0, "not beyond the ceiling, however long the queue");
    // A tenant that is not declared queues for those that share what the others have.
    let strange = Outside { queued: BTreeMap::from([(tenant("nobody"), 100.0)]), ..Outside::default() };
    let strange = granted(&strange, None);
    let default = |grants: &BTreeMap<Grantee, Grant>| grants[&Grantee::Default].thresholds.rates[&RPM].rate;
    assert!(default(&strange) > default(&nothing));
}

#[test]
fn a_queue_without_a_call_sent_does_not_take_what_others_use() {
    // Its service is stuck: a thousand wait there, and nothing is asked for here.
    let queue = Outside { queued: BTreeMap::from([(Grantee::Default, 1_000.0)]), ..Outside::default() };
    let stuck = granted(&queue, None);
    let nothing = granted(&Outside::default(), None);
    let kept = rate(&stuck, "acme") / rate(&nothing, "acme");
    assert!(kept > 0.8, "{kept} of what it had");
}

#[test]
fn a_told_capacity_is_followed_at_once_and_never_exceeded_and_holds_when_it_is_silent() {
    let mut planner = PoolPlanner::new(pool(480.0, &["acme"]), 7, BTreeMap::new(), None, at(0));
    let mut capacity = |second: u64, told: Option<f64>| {
        planner.report("m", "b", &report(second, &[("acme", 100 * second, 50, 20)]), at(second));
        planner.hear(Outside { capacity: told.map(|told| (RPM, told)).into_iter().collect(), ..Outside::default() });
        tick(&mut planner, second * 1_000).pulse.capacity[&RPM]
    };
    assert!(capacity(0, Some(1_200.0)) <= 1_200.0);
    for second in 1..30 {
        let now = capacity(second, Some(1_200.0));
        assert!((1_199.0..=1_200.0).contains(&now), "used to the full it does not grow: {now}");
    }
    assert_eq!(capacity(30, Some(300.0)), 300.0, "three replicas of four are gone");
    for second in 31..60 {
        assert_eq!(capacity(second, None), 300.0, "silent: what was told holds");
    }
    assert_eq!(capacity(60, Some(900.0)), 900.0);
}

#[test]
fn a_told_capacity_that_trembles_does_not_forget_what_429s_have_taught() {
    let mut planner = PoolPlanner::new(pool(480.0, &["acme"]), 7, BTreeMap::new(), None, at(0));
    let mut capacities = Vec::new();
    for second in 0..60_u64 {
        let mut report = report(second, &[("acme", 20 * second, 50, 20)]);
        if let Some(told) = report.tenants.get_mut(&tenant("acme")) {
            // It takes half of what is said of it.
            told.counters.throttled.insert(ThrottleKind::Requests, if second < 30 { 10 * second } else { 300 });
            told.counters.succeeded = 10 * second;
        }
        planner.report("m", "b", &report, at(second));
        let told = 1_200.0 + if second.is_multiple_of(2) { 30.0 } else { 0.0 };
        planner.hear(Outside { capacity: BTreeMap::from([(RPM, told)]), ..Outside::default() });
        capacities.push(tick(&mut planner, second * 1_000).pulse.capacity[&RPM]);
    }
    assert!(capacities[5..29].iter().all(|capacity| *capacity < 900.0), "{capacities:?}");
}

#[test]
fn places_are_divided_by_need_and_the_reason_names_the_signal() {
    let params = pool(60_000.0, &["acme", "blue"]);
    let _: &Rate = &params.capacity[&RPM];
    let mut planner = PoolPlanner::new(params, 7, BTreeMap::new(), None, at(0));
    let mut grants = BTreeMap::new();
    for second in 0..10 {
        planner.report(
            "m",
            "b",
            &report(second, &[("acme", 5 * second, 60, 30), ("blue", 5 * second, 0, 10)]),
            at(second),
        );
        let told = Reading::Fresh(Measured { at: at(second), value: if second < 5 { 18.0 } else { 1.0 } });
        planner.hear(Outside { pressures: vec![pressure(Counts::Requests, 2.0, 6, told)], ..Outside::default() });
        grants.extend(tick(&mut planner, second * 1_000).grants);
    }
    let places = |name: &str| grants[&tenant(name)].thresholds.concurrency.expect("limited");
    let all: u32 = grants.values().map(|grant| grant.thresholds.concurrency.expect("limited")).sum();
    assert!((24..=26).contains(&all), "40 in flight, 18 of them waiting, and 2 may: {all}");
    assert!(places("acme") > places("blue") && places("blue") >= 9, "{} and {}", places("acme"), places("blue"));
    let reason = planner.reason();
    assert_eq!(reason.code, "congestion");
    assert!(reason.text.contains("waiting told 18.0, more than 2: at most 24 at a time"), "{}", reason.text);
    let told = planner.account(at(10), WALL);
    assert_eq!((told.places, told.in_flight), (Some(24.0), 40));
}
