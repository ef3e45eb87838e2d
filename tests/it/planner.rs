//! Signals and planner, driven by reports and ticks: what is published, when, and for whom.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use jiff::tz::TimeZone;

use tidegate::clock::{MonoTime, UnixMillis};
use tidegate::controller::checkpoint::Checkpoint;
use tidegate::controller::law::{LawParams, Mode as LawMode, OvercommitParams, Step};
use tidegate::controller::planner::PoolPlanner;
use tidegate::controller::signal::{PoolSignal, SmoothRate, Urgency};
use tidegate::controller::{PoolParams, TenantParams};
use tidegate::limiter::{Counting, Limiter, Limits, MeterLimit};
use tidegate::observation::{Counters, MeterReport, PoolReport, Reading, TenantReport, ThrottleKind, UnitCounts};
use tidegate::plan::{
    Algorithm, Grant, Mode, OverrideBook, Pulse, Rate, Share, Stamp, Target, Thresholds, capacity_factor, effective,
};
use tidegate::provider::Dialect;
use tidegate::quota::{Cost, Grantee, Meter, Unit, Window};

use super::by_hand::grant;

const RPM: Meter = Meter::REQUESTS_PER_MINUTE;
const WALL: UnixMillis = UnixMillis(1_795_464_000_000);

fn ms(ms: u64) -> MonoTime {
    MonoTime::from_millis(ms)
}

pub fn tenant(name: &str) -> Grantee {
    Grantee::Tenant(name.parse().unwrap())
}

pub fn pool(per_minute: f64, names: &[&str]) -> PoolParams {
    PoolParams {
        id: "pool".parse().unwrap(),
        dialect: Dialect::OpenAi,
        mode: Mode::Enforce,
        capacity: BTreeMap::from([(RPM, Rate { rate: per_minute, burst: per_minute })]),
        algorithms: BTreeMap::new(),
        shared: BTreeSet::new(),
        zones: BTreeMap::new(),
        concurrency: None,
        tenants: names.iter().map(|name| (name.parse().unwrap(), TenantParams::default())).collect(),
        law: LawParams { overcommit: NOTHING_LENT, ..LawParams::default() },
        default_tenant: TenantParams::default(),
    }
}

/// Thresholds add up to the capacity: what most tests here are about.
const NOTHING_LENT: OvercommitParams =
    OvercommitParams { gain_per_s: 0.0, most: 1.0, most_stored: 1.0, decay_per_s: 0.0 };

fn planner(per_minute: f64, names: &[&str]) -> PoolPlanner {
    PoolPlanner::new(pool(per_minute, names), 7, BTreeMap::new(), None, ms(0))
}

fn counters(n: u64) -> Counters {
    let reserved = UnitCounts { requests: n, ..UnitCounts::default() };
    Counters { attempts: n, admitted: n, sent: n, succeeded: n, reserved, ..Counters::default() }
}

fn report_of(tenants: &[(&str, Counters)]) -> PoolReport {
    let tenants = tenants
        .iter()
        .map(|(name, counters)| (tenant(name), TenantReport { counters: counters.clone(), ..TenantReport::default() }));
    PoolReport { tenants: tenants.collect(), ..PoolReport::default() }
}

fn with_reading(mut report: PoolReport, limit: f64, level: f64, age_ms: u64) -> PoolReport {
    let reading = MeterReport { limit: Some(limit), remaining: None, level: Some(level), reset_ms: None, age_ms };
    report.meters.insert(RPM, reading);
    report
}

/// What one tick wrote.
pub struct Publication {
    pub pulse: Pulse,
    pub grants: BTreeMap<Grantee, Grant>,
    removed: Vec<Grantee>,
}

/// Ticks, and writes all of it; `heard` is whether the store's answers arrive.
fn tick_with(planner: &mut PoolPlanner, at: u64, heard: bool) -> Publication {
    let pulse = planner.tick(ms(at), WALL);
    planner.pulsed(pulse.clone());
    let (mut grants, mut removed) = (BTreeMap::new(), Vec::new());
    loop {
        let batch = planner.outbox_mut().take(128);
        if batch.is_empty() {
            return Publication { pulse, grants, removed };
        }
        for (grantee, grant) in &batch {
            match grant {
                Some(grant) => drop(grants.insert(grantee.clone(), grant.clone())),
                None => removed.push(grantee.clone()),
            }
        }
        if heard {
            planner.granted(batch, ms(at));
        }
    }
}

pub fn tick(planner: &mut PoolPlanner, at: u64) -> Publication {
    tick_with(planner, at, true)
}

/// The last step of the requests.
fn step(planner: &PoolPlanner) -> Step {
    *planner.steps().find(|(meter, _)| **meter == RPM).expect("there is one").1
}

fn rate(planner: &PoolPlanner, name: &str) -> f64 {
    planner.outbox().published()[&tenant(name)].thresholds.rates[&RPM].rate
}

const OUTPUT: Meter = Meter { unit: Unit::OutputTokens, window: Window::Minute };

/// Anthropic's way: output is limited apart, reserved by `max_tokens`, and given back when the answer ends.
fn output_pool(per_minute: f64) -> PoolParams {
    let capacity = BTreeMap::from([(OUTPUT, Rate { rate: per_minute, burst: per_minute })]);
    PoolParams { dialect: Dialect::Anthropic, capacity, ..pool(600.0, &["a", "b"]) }
}

#[test]
fn a_tenant_that_was_never_admitted_gets_its_part_of_an_output_limit_that_another_uses_up() {
    let mut planner = PoolPlanner::new(output_pool(6_000.0), 7, BTreeMap::new(), None, ms(0));
    for s in 1..=20_u64 {
        let units = UnitCounts { requests: 5 * s, input_tokens: 500 * s, output_tokens: 2_000 * s };
        let busy = Counters { attempts: 10 * s, reserved: units, ..counters(5 * s) };
        let mut report = report_of(&[("a", busy), ("b", Counters { attempts: 10, ..Counters::default() })]);
        for name in ["a", "b"] {
            report.tenants.get_mut(&tenant(name)).unwrap().waiting = 20;
        }
        planner.report("m", "boot", &report, ms(1_000 * s));
        tick(&mut planner, 1_000 * s);
    }
    let [a, b] = ["a", "b"].map(|name| planner.outbox().published()[&tenant(name)].thresholds.rates[&OUTPUT].rate);
    assert!(b >= 0.3 * (a + b), "equal weights, both waiting: {a} and {b}");
}

#[test]
fn where_more_is_reserved_than_used_the_bursts_add_up_to_what_the_provider_holds() {
    let mut planner = PoolPlanner::new(output_pool(40_000.0), 7, BTreeMap::new(), None, ms(0));
    let units = |n| UnitCounts { requests: n, input_tokens: 100 * n, output_tokens: 300 * n };
    for s in 1..=20_u64 {
        let a = Counters { reserved: units(2 * s), ..counters(2 * s) };
        planner.report("m", "boot", &report_of(&[("a", a)]), ms(1_000 * s));
        tick(&mut planner, 1_000 * s);
    }
    let grants = planner.outbox().published();
    let burst = |name: &str| grants[&tenant(name)].thresholds.rates[&OUTPUT].burst;
    // Room for one answer of 8,192 tokens beside others, though a second's rate is 667.
    assert!(burst("a") >= 8_192.0, "{}", burst("a"));
    let sum: f64 = grants.values().map(|grant| grant.thresholds.rates[&OUTPUT].burst).sum();
    assert!(sum <= 1.5 * 40_000.0, "{sum}");
}

#[test]
fn what_a_leaving_member_held_is_free_for_the_next_one_at_once() {
    let mut planner = planner(600.0, &["a"]);
    let a = || report_of(&[("a", counters(10))]);
    let share = |answer: (BTreeMap<Grantee, Share>, Urgency)| answer.0.get(&tenant("a")).map(|share| share.share);
    tick(&mut planner, 0);
    assert_eq!(share(planner.report("old", "boot", &a(), ms(100))), Some(1.0));
    assert_eq!(share(planner.report("new", "boot", &a(), ms(200))), None, "the old one holds it all");
    planner.report("old", "boot", &a(), ms(300));
    planner.leave("old", "boot");
    assert_eq!(share(planner.report("new", "boot", &a(), ms(310))), Some(1.0));
    assert_eq!(planner.members(ms(310)), 1);
}

// === signal ===

#[test]
fn a_rate_settles_at_the_mean_however_arrivals_fall_and_reports_are_cut() {
    for per_s in [0.5, 3.0, 40.0] {
        let mut rng = fastrand::Rng::with_seed(5);
        let (mut smooth, mut sum) = (SmoothRate::default(), 0.0);
        for i in 0..8_000_u64 {
            let span = 0.25;
            let count = (0..1_000).filter(|_| rng.f64() < per_s * span / 1_000.0).count();
            #[allow(clippy::cast_precision_loss)]
            smooth.add(count as f64, ms(i * 250));
            if i >= 400 {
                sum += smooth.per_s();
            }
        }
        let bias = sum / 7_600.0 / per_s;
        assert!((0.95..1.0 + 0.5 / per_s.sqrt()).contains(&bias), "{per_s}/s: {bias}");
    }
}

#[test]
fn counts_that_come_at_the_same_instant_are_not_lost() {
    let mut smooth = SmoothRate::default();
    for s in 0..60 {
        smooth.add(1.0, ms(s * 1_000));
        smooth.add(1.0, ms(s * 1_000));
    }
    assert!((smooth.per_s() - 2.0).abs() < 0.6, "{}", smooth.per_s());
}

#[test]
fn what_was_counted_before_a_member_was_first_heard_is_not_news() {
    let mut signal = PoolSignal::default();
    let urgency = signal.ingest("m", &report_of(&[("a", counters(1_000))]), ms(0));
    assert!(!urgency.throttled);
    assert_eq!(signal.own_at(Unit::Requests, ms(0)), 0.0);
    signal.ingest("m", &report_of(&[("a", counters(1_003))]), ms(1_000));
    assert_eq!(signal.own_at(Unit::Requests, ms(1_000)), 3.0);
    assert_eq!(signal.own_at(Unit::Requests, ms(500)), 1.5, "on a straight line between reports");
}

#[test]
fn a_restarted_member_is_another_member_and_what_the_old_one_had_sent_stays() {
    let mut signal = PoolSignal::default();
    signal.ingest("m/one", &report_of(&[("a", counters(0))]), ms(0));
    signal.ingest("m/one", &report_of(&[("a", counters(10))]), ms(1_000));
    signal.ingest("m/two", &report_of(&[("a", counters(4))]), ms(2_000));
    signal.ingest("m/two", &report_of(&[("a", counters(5))]), ms(11_500));
    assert_eq!(signal.own_at(Unit::Requests, ms(11_500)), 11.0);
}

#[test]
fn a_report_overtaken_by_a_later_one_changes_nothing() {
    let mut signal = PoolSignal::default();
    for (sequence, n, at) in [(1, 0, 0), (3, 10, 1_000), (2, 6, 1_100), (4, 11, 2_000)] {
        signal.ingest("m", &PoolReport { sequence, ..report_of(&[("a", counters(n))]) }, ms(at));
    }
    assert_eq!(signal.own_at(Unit::Requests, ms(2_000)), 11.0);
}

/// Reports that a member gave up still came to a leader that had been stopped: each echoed a share that was not in force any more,
/// and what the member did hold was given to another.
#[test]
fn a_report_overtaken_by_a_later_one_gives_no_share_back() {
    let mut planner = planner(600.0, &["a"]);
    let report = |sequence: u64, n: u64, share: Option<f64>| {
        let mut report = PoolReport { sequence, ..report_of(&[("a", counters(n))]) };
        report.tenants.get_mut(&tenant("a")).unwrap().share = share;
        report
    };
    let share = |answer: (BTreeMap<Grantee, Share>, Urgency)| answer.0.get(&tenant("a")).map(|share| share.share);
    assert_eq!(share(planner.report("one", "boot", &report(1, 1, None), ms(0))), Some(1.0));
    assert_eq!(share(planner.report("one", "boot", &report(5, 1, Some(1.0)), ms(1_000))), Some(1.0));
    assert_eq!(share(planner.report("other", "boot", &report(1, 100, None), ms(1_100))), None);
    for sequence in [2, 3] {
        planner.report("one", "boot", &report(sequence, 1, Some(0.1)), ms(1_200 + sequence));
    }
    assert_eq!(share(planner.report("other", "boot", &report(2, 200, None), ms(1_300))), None, "one has it still");
}

/// A member drops the gate of a tenant that nobody uses, and counts the next one's from nothing.
#[test]
fn a_tenant_that_is_counted_anew_is_heard_again() {
    let mut signal = PoolSignal::default();
    for (sequence, n) in [(1, 100_000), (2, 100_000), (3, 0), (4, 5), (5, 10)] {
        let told = PoolReport { sequence, ..report_of(&[("a", counters(n))]) };
        signal.ingest("m", &told, ms(sequence * 1_000));
    }
    assert_eq!(signal.own_at(Unit::Requests, ms(5_000)), 10.0);
    let before = signal.member_demand("m", &tenant("a"));
    for (sequence, n) in [(6, 500), (7, 1_000)] {
        signal.ingest("m", &PoolReport { sequence, ..report_of(&[("a", counters(n))]) }, ms(sequence * 1_000));
    }
    assert!(signal.member_demand("m", &tenant("a")) > before);
}

/// Of a meter, what a member says is the limit, sent `age_ms` ago; and whether that was doubted.
fn tell_limit(signal: &mut PoolSignal, member: &str, limit: f64, age_ms: u64, at: u64) -> bool {
    signal.ingest(member, &with_reading(PoolReport::default(), limit, 5.0, age_ms), ms(at)).doubted.is_some()
}

fn limit_per_min(signal: &PoolSignal, at: u64) -> f64 {
    signal.sample(RPM, Dialect::OpenAi.semantics(), ms(at)).fresh().expect("a reading").limit_per_s * 60.0
}

#[test]
fn one_reporter_does_not_steer_a_pool_whose_limit_another_tells_of_too() {
    let mut signal = PoolSignal::default();
    for (member, at) in [("honest", 10_000), ("liar", 10_100)] {
        assert!(!tell_limit(&mut signal, member, 600.0, 0, at));
    }
    for (n, lie) in [60_000.0, 6.0].into_iter().flat_map(|lie| [lie; 10]).enumerate() {
        let at = 10_300 + 250 * n as u64;
        assert!(tell_limit(&mut signal, "liar", lie, 0, at), "{lie} at {at}");
        assert!(!tell_limit(&mut signal, "honest", 600.0, 0, at + 50));
        assert_eq!(limit_per_min(&signal, at + 50), 600.0);
    }
    // Twice as much or half is within what providers do from one answer to the next.
    assert!(!tell_limit(&mut signal, "liar", 1_200.0, 0, 20_000));
    assert_eq!(limit_per_min(&signal, 20_000), 1_200.0);
}

#[test]
fn a_limit_that_is_far_off_takes_three_readings_of_two_members() {
    let mut signal = PoolSignal::default();
    tell_limit(&mut signal, "a", 600.0, 0, 10_000);
    tell_limit(&mut signal, "b", 600.0, 0, 10_100);
    assert!(tell_limit(&mut signal, "a", 60.0, 0, 10_300), "the first");
    assert!(tell_limit(&mut signal, "a", 60.0, 245, 10_550), "the same one, told again");
    assert!(tell_limit(&mut signal, "b", 61.0, 0, 10_600), "the second");
    assert_eq!(limit_per_min(&signal, 10_600), 600.0);
    assert!(!tell_limit(&mut signal, "a", 60.0, 0, 10_800), "the third");
    assert_eq!(limit_per_min(&signal, 10_800), 60.0);
}

/// Where the pulse could not be written, a cut in it must not be overtaken by what was planned with it.
#[test]
fn grants_wait_for_the_pulse_that_they_were_planned_with() {
    let mut planner = planner(60.0, &["a"]);
    let pulse = planner.tick(ms(0), WALL);
    assert!(!planner.may_grant(), "it is not written yet");
    planner.pulsed(pulse);
    assert!(planner.may_grant());
    planner.tick(ms(1_000), WALL);
    assert!(!planner.may_grant(), "nor is the next one");
}

/// A process with a wrong key that starts again and again is one instance.
#[test]
fn two_starts_of_one_instance_are_not_two_members() {
    let mut signal = PoolSignal::default();
    tell_limit(&mut signal, "honest/1", 600.0, 0, 10_000);
    tell_limit(&mut signal, "wrong/1", 600.0, 0, 10_100);
    for (boot, at) in [(2, 10_300), (3, 10_600), (4, 10_900), (5, 11_200)] {
        assert!(tell_limit(&mut signal, &format!("wrong/{boot}"), 60.0, 0, at), "start {boot}");
    }
}

#[test]
fn a_member_that_is_alone_with_its_traffic_is_believed_at_once() {
    let mut signal = PoolSignal::default();
    tell_limit(&mut signal, "idle", 600.0, 0, 10_000);
    tell_limit(&mut signal, "busy", 600.0, 0, 10_100);
    assert!(tell_limit(&mut signal, "busy", 60.0, 0, 19_900));
    // The other one tells of what it last sent, which is long ago by now.
    assert!(!tell_limit(&mut signal, "idle", 600.0, 10_150, 20_150));
    assert!(!tell_limit(&mut signal, "busy", 60.0, 0, 20_200));
    assert_eq!(limit_per_min(&signal, 20_200), 60.0);
}

#[test]
fn what_is_given_back_counts_as_not_taken_even_before_the_member_was_heard_of() {
    let mut signal = PoolSignal::default();
    let at = |n: u64, reserved: u64, returned: u64| {
        let output = |output_tokens| UnitCounts { output_tokens, ..UnitCounts::default() };
        let reserved = UnitCounts { requests: n, ..output(reserved) };
        report_of(&[("a", Counters { reserved, returned: output(returned), ..counters(n) })])
    };
    signal.ingest("m", &at(2, 8_000, 0), ms(0));
    signal.ingest("m", &at(2, 8_000, 7_000), ms(1_000));
    assert_eq!(signal.own_at(Unit::OutputTokens, ms(1_000)), -7_000.0);
    assert_eq!(signal.own_at(Unit::OutputTokens, ms(500)), -3_500.0);
    signal.ingest("m", &at(4, 16_000, 14_000), ms(2_000));
    assert_eq!(signal.own_at(Unit::OutputTokens, ms(2_000)), -6_000.0);
    assert_eq!(signal.own_at(Unit::Tokens, ms(2_000)), -6_000.0);
    // Two thousand tokens for four requests: demand is reckoned in what is charged in the end.
    let (_, asked) = signal.asked().find(|(who, _)| **who == tenant("a")).expect("it was told of");
    assert_eq!(asked.cost(Unit::OutputTokens), 500.0);
}

#[test]
fn the_newest_sent_reading_wins_whatever_order_answers_come_in() {
    let mut signal = PoolSignal::default();
    signal.ingest("a", &with_reading(PoolReport::default(), 600.0, 50.0, 200), ms(10_000));
    signal.ingest("b", &with_reading(PoolReport::default(), 600.0, 90.0, 5_000), ms(10_100));
    let Reading::Fresh(sample) = signal.sample(RPM, Dialect::OpenAi.semantics(), ms(10_100)) else { panic!("fresh") };
    assert_eq!((sample.level, sample.sent_at), (50.0, ms(9_800)));
    assert!(matches!(signal.sample(RPM, Dialect::OpenAi.semantics(), ms(30_000)), Reading::Stale { .. }));
}

#[test]
fn two_reports_close_together_do_not_make_a_steep_line() {
    let mut signal = PoolSignal::default();
    for i in 0..=8_u64 {
        signal.ingest("m", &report_of(&[("a", counters(i))]), ms(i * 250));
    }
    // A push right after a regular report, with three more.
    signal.ingest("m", &report_of(&[("a", counters(11))]), ms(2_020));
    let ahead = signal.own_at(Unit::Requests, ms(2_520)) - 11.0;
    assert!(ahead <= 5.0, "about three more in half a second, not {ahead}");
}

#[test]
fn a_pool_whose_members_are_gone_does_not_grow() {
    let mut planner = planner(600.0, &["a"]);
    for i in 0..40_u64 {
        planner.report("m", "boot", &report_of(&[("a", counters(i * 5))]), ms(i * 500));
        if i % 2 == 0 {
            tick(&mut planner, i * 500);
        }
    }
    tick(&mut planner, 32_000);
    let before = step(&planner).capacity_per_s;
    (33..600).for_each(|s| drop(tick(&mut planner, s * 1_000)));
    assert_eq!(step(&planner).capacity_per_s, before);
    assert_eq!(planner.members(ms(600_000)), 0);
}

// === planner ===

#[test]
fn stamps_only_grow_and_a_pulse_is_older_than_the_grants_of_its_tick() {
    let mut planner = planner(600.0, &["a", "b"]);
    let mut last = 0;
    for i in 0..30_u64 {
        planner.report("m", "boot", &report_of(&[("a", counters(i * i))]), ms(i * 400));
        let publication = tick(&mut planner, i * 400);
        assert_eq!(publication.pulse.stamp.term, 7);
        assert!(publication.pulse.stamp.epoch > last);
        last = publication.pulse.stamp.epoch;
        for grant in publication.grants.values() {
            assert!(grant.stamp > publication.pulse.stamp);
            last = last.max(grant.stamp.epoch);
        }
    }
}

#[test]
fn grants_are_written_at_most_once_a_second() {
    let mut planner = planner(600.0, &["a", "b"]);
    let mut written: Vec<u64> = Vec::new();
    for i in 0..200_u64 {
        let n = if i % 20 < 10 { i * 10 } else { i * 2 + 2_000 };
        planner.report("m", "boot", &report_of(&[("a", counters(n)), ("b", counters(i))]), ms(i * 100));
        if !tick(&mut planner, i * 100).grants.is_empty() {
            written.push(i * 100);
        }
    }
    assert!(written.len() > 3 && written.windows(2).all(|pair| pair[1] - pair[0] >= 950), "{written:?}");
}

#[test]
fn what_was_not_committed_is_planned_again() {
    let mut planner = planner(600.0, &["a"]);
    let first = tick_with(&mut planner, 0, false);
    assert_eq!(first.grants.len(), 2, "the tenant and the undeclared ones");
    let again = tick(&mut planner, 100);
    assert_eq!(again.grants.len(), 2);
    assert!(again.pulse.stamp > first.grants[&tenant("a")].stamp);
    assert!(tick(&mut planner, 1_100).grants.is_empty());
}

/// A planner at 600/min with readings, one second after its last grants.
fn with_headers() -> PoolPlanner {
    let mut planner = planner(600.0, &["a", "b"]);
    for s in 0..20_u64 {
        let report = report_of(&[("a", counters(s * 5)), ("b", counters(s * 5))]);
        planner.report("m", "boot", &with_reading(report, 600.0, 30.0, 10), ms(s * 1_000));
        tick(&mut planner, s * 1_000);
    }
    planner
}

/// A provider's bucket of 600 a minute that others take four a second from, and a pool that uses all it is granted.
struct Bucket {
    level: f64,
    own: f64,
    at_s: u64,
}

impl Bucket {
    /// Goes on for so many seconds under this planner; what was the capacity after each, per second.
    fn under(&mut self, planner: &mut PoolPlanner, seconds: u64) -> Vec<f64> {
        let second = |_| {
            self.at_s += 1;
            let granted = planner.steps().next().map_or(10.0, |(_, step)| step.capacity_per_s);
            self.own += granted;
            self.level = (self.level + 10.0 - 4.0 - granted).clamp(0.0, 600.0);
            let report = report_of(&[("a", counters(self.own as u64)), ("b", counters(0))]);
            let mut report = with_reading(report, 600.0, self.level.floor(), 0);
            report.tenants.get_mut(&tenant("a")).unwrap().waiting = 100;
            planner.report("m", "boot", &report, ms(self.at_s * 1_000));
            tick(planner, self.at_s * 1_000);
            step(planner).capacity_per_s
        };
        (0..seconds).map(second).collect()
    }
}

#[test]
fn a_new_leader_goes_on_with_what_the_earlier_one_had_learned_of_others() {
    let run = |age: Option<u64>| {
        let mut bucket = Bucket { level: 30.0, own: 0.0, at_s: 0 };
        let mut first = planner(600.0, &["a", "b"]);
        let before = *bucket.under(&mut first, 120).last().unwrap();
        assert!((before - 6.0).abs() < 0.3, "ten less the four of others: {before}");
        let now = ms(bucket.at_s * 1_000);
        let pulse = first.tick(now, WALL);
        let left = first.outbox().published().clone();
        let mut next = PoolPlanner::new(pool(600.0, &["a", "b"]), 8, left, Some(&pulse), now);
        if let Some(age) = age {
            let record = serde_json::to_vec(&first.checkpoint(now, WALL)).unwrap();
            let checkpoint = Checkpoint::parse(&record).unwrap();
            next.resume(&checkpoint, now, UnixMillis(WALL.0 + age));
        }
        tick(&mut next, bucket.at_s * 1_000);
        let after = bucket.under(&mut next, 30);
        after.into_iter().map(|capacity| (capacity / before - 1.0).abs()).fold(0.0, f64::max)
    };
    let resumed = run(Some(10_000));
    assert!(resumed < 0.1, "no threshold moves more than in an ordinary step: {resumed}");
    // It makes the difference; one that is too old makes none.
    for anew in [run(None), run(Some(61_000))] {
        assert!(anew > 0.5, "{anew}");
    }
}

/// Above the limit is what the account's bucket holds: a new leader that had heard of nobody yet cut it to the limit that the
/// earlier one had learned, and gave it back with the first reading.
#[test]
fn a_new_leader_cuts_nothing_before_members_had_time_to_tell_what_they_read() {
    let mut bucket = Bucket { level: 600.0, own: 0.0, at_s: 0 };
    let mut first = planner(600.0, &["a", "b"]);
    let before = *bucket.under(&mut first, 3).last().unwrap();
    assert!(before > 12.0, "ten and some of the bucket's: {before}");
    let now = 3_000;
    let pulse = first.tick(ms(now), WALL);
    let left = first.outbox().published().clone();
    let mut next = PoolPlanner::new(pool(600.0, &["a", "b"]), 8, left, Some(&pulse), ms(now));
    next.resume(&first.checkpoint(ms(now), WALL), ms(now), WALL);
    for (at, least, most) in
        [(now, 0.9 * before, before), (now + 2_000, 0.9 * before, before), (now + 3_000, 9.9, 10.0)]
    {
        tick(&mut next, at);
        let capacity = step(&next).capacity_per_s;
        assert!((least..=most).contains(&capacity), "{capacity} of {before} at {at}");
    }
}

#[test]
fn where_no_headers_tell_a_new_leader_does_not_grow_as_if_it_were_the_first() {
    let grown = |resumed: bool| {
        let mut first = planner(600.0, &["a"]);
        let refusals = Counters { throttled: BTreeMap::from([(ThrottleKind::Requests, 20)]), ..counters(100) };
        first.report("m", "boot", &report_of(&[("a", counters(1))]), ms(0));
        first.report("m", "boot", &report_of(&[("a", refusals)]), ms(1_000));
        let pulse = first.tick(ms(1_000), WALL);
        assert_eq!(step(&first).mode, LawMode::Cut);
        let thresholds = Thresholds { rates: [(RPM, Rate { rate: 300.0, burst: 30.0 })].into(), concurrency: None };
        let left = BTreeMap::from([(tenant("a"), grant(Stamp { term: 7, epoch: 1 }, thresholds))]);
        let mut next = PoolPlanner::new(pool(600.0, &["a"]), 8, left, Some(&pulse), ms(1_000));
        if resumed {
            next.resume(&first.checkpoint(ms(1_000), WALL), ms(1_000), WALL);
        }
        for s in 2..12_u64 {
            // All that is granted is used, and more is wanted.
            let mut report = report_of(&[("a", counters(100 + s * 12))]);
            report.tenants.get_mut(&tenant("a")).unwrap().waiting = 200;
            next.report("m", "boot", &report, ms(s * 1_000));
            tick(&mut next, s * 1_000);
        }
        step(&next).capacity_per_s / 5.0
    };
    let (anew, resumed) = (grown(false), grown(true));
    assert!(anew > 2.0, "slow start: {anew}");
    assert!((1.05..1.5).contains(&resumed), "2 % of the nominal ten a second: {resumed}");
}

#[test]
fn a_checkpoint_that_cannot_be_is_named_and_none_is_read_beyond_its_size() {
    let with = |learned: &str| format!(r#"{{"schema":1,"unix_ms":0,"meters":{{"requests/minute":{learned}}}}}"#);
    let cases = [
        ("[]".to_owned(), "not valid: invalid length 0"),
        (r#"{"schema":2,"unix_ms":0,"meters":{}}"#.to_owned(), "schema 2: this version reads 1"),
        (
            with(r#"{"learned":{"limit_per_s":-1,"others_per_s":0,"burst":0}}"#),
            "limit_per_s and burst: expected finite",
        ),
        (with(r#"{"learned":{"limit_per_s":1,"others_per_s":1e999,"burst":0}}"#), "not valid: number out of range"),
        (" ".repeat(65_537), "65537 bytes: expected at most 65536"),
    ];
    for (record, part) in cases {
        let error = Checkpoint::parse(record.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
    let plain = Checkpoint::parse(with("{}").as_bytes()).unwrap();
    let ages = [(0, Some(0)), (60_000, Some(60)), (60_001, None)];
    for (wall, age) in ages {
        assert_eq!(plain.age(UnixMillis(wall)), age.map(Duration::from_secs));
    }
    let ahead = Checkpoint { unix_ms: UnixMillis(100_000), ..plain };
    assert_eq!(ahead.age(UnixMillis(70_000)), Some(Duration::ZERO), "another machine's clock");
    assert_eq!(ahead.age(UnixMillis(1)), None);
}

#[test]
fn a_halved_limit_scales_everyone_at_once_and_rewrites_all_grants() {
    let mut planner = with_headers();
    let report = report_of(&[("a", counters(100)), ("b", counters(100))]);
    planner.report("m", "boot", &with_reading(report, 300.0, 15.0, 10), ms(20_000));
    let due = tick(&mut planner, 20_000);
    assert!((0.4..0.6).contains(&due.pulse.scale[&RPM]), "{:?}", due.pulse.scale);
    assert_eq!(due.pulse.scale_epoch, Some(due.pulse.stamp.epoch));
    assert_eq!(due.grants.len(), 3);
    assert!(due.grants.values().all(|grant| due.pulse.scale_for(grant.stamp, RPM) == 1.0), "they contain it");
    let next = tick(&mut planner, 21_000).pulse.scale.get(&RPM).copied().unwrap_or(1.0);
    assert!(next > 0.85, "and the next pulse drops it: {next}");
}

#[test]
fn on_an_early_tick_the_cut_goes_out_in_the_pulse_alone() {
    let mut planner = with_headers();
    let old = planner.outbox().published().clone();
    // Something is written at 20 s, so the grants are not due at 20.3 s.
    planner.overrides_mut().put(Target::One(tenant("a")), br#"{"set":{"requests/minute":60}}"#).unwrap();
    assert!(!tick(&mut planner, 20_000).grants.is_empty());
    let report = report_of(&[("a", counters(100)), ("b", counters(100))]);
    planner.report("m", "boot", &with_reading(report, 300.0, 15.0, 10), ms(20_300));
    let early = tick(&mut planner, 20_300);
    assert!(early.grants.is_empty() && early.pulse.scale[&RPM] < 0.7);
    assert!(old.values().all(|grant| early.pulse.scale_for(grant.stamp, RPM) < 0.7));
    let due = tick(&mut planner, 21_000);
    assert_eq!(due.grants.len(), 3);
}

#[test]
fn a_429_asks_for_an_early_tick_but_a_daily_one_does_not() {
    let mut planner = planner(600.0, &["a"]);
    let with = |kind, n| Counters { throttled: BTreeMap::from([(kind, n)]), ..counters(1) };
    planner.report("m", "boot", &report_of(&[("a", counters(1))]), ms(0));
    assert!(!planner.report("m", "boot", &report_of(&[("a", with(ThrottleKind::Daily, 1))]), ms(10)).1.throttled);
    let both =
        Counters { throttled: BTreeMap::from([(ThrottleKind::Daily, 1), (ThrottleKind::Requests, 1)]), ..counters(1) };
    assert!(planner.report("m", "boot", &report_of(&[("a", both)]), ms(20)).1.throttled);
}

/// What members make of the grants: factor of `@capacity`, then overrides.
fn effective_sum(planner: &mut PoolPlanner, publication: &Publication, book: &OverrideBook) -> f64 {
    let told = publication.pulse.capacity[&RPM];
    let factor = capacity_factor(book.at(&Target::Capacity, WALL), Some(told), RPM);
    planner
        .outbox()
        .published()
        .iter()
        .map(|(grantee, grant)| {
            let (star, own) = book.for_tenant(grantee, WALL);
            let used = effective(&grant.thresholds.scaled(factor), star, own);
            if used.blocked { 0.0 } else { used.thresholds.rates[&RPM].rate }
        })
        .sum()
}

#[test]
fn with_any_override_all_tenants_together_stay_within_the_capacity() {
    let cases: [&[(&str, &str)]; 8] = [
        &[("a", r#"{"set":{"requests/minute":400}}"#)],
        &[("a", r#"{"block":true}"#)],
        &[("a", r#"{"scale":3}"#)],
        &[("a", r#"{"floor":{"requests/minute":500}}"#), ("b", r#"{"ceiling":{"requests/minute":10}}"#)],
        &[("@capacity", r#"{"scale":0.5}"#)],
        &[("@capacity", r#"{"set":{"requests/minute":300}}"#)],
        &[("@capacity", r#"{"set":{"requests/minute":300}}"#), ("a", r#"{"set":{"requests/minute":100}}"#)],
        &[("@capacity", r#"{"scale":0.5}"#), ("a", r#"{"scale":2}"#)],
    ];
    for records in cases {
        let mut planner = planner(600.0, &["a", "b", "c"]);
        let mut book = OverrideBook::default();
        for (name, record) in records {
            let target = if *name == "@capacity" { Target::Capacity } else { Target::One(tenant(name)) };
            planner.overrides_mut().put(target.clone(), record.as_bytes()).unwrap();
            book.put(target, record.as_bytes()).unwrap();
        }
        for s in 0..10_u64 {
            let busy = [("a", counters(s * 9)), ("b", counters(s * 9)), ("c", counters(s * 9))];
            planner.report("m", "boot", &report_of(&busy), ms(s * 1_000));
            tick(&mut planner, s * 1_000);
        }
        let last = tick(&mut planner, 10_000);
        let told = last.pulse.capacity[&RPM];
        let capacity = told * capacity_factor(book.at(&Target::Capacity, WALL), Some(told), RPM);
        let sum = effective_sum(&mut planner, &last, &book);
        // The tolerance of rewriting: grants that moved by less than 2 % stay.
        assert!(sum <= capacity * 1.02 && sum >= capacity * 0.95, "{records:?}: {sum} of {capacity}");
    }
}

#[test]
fn what_lies_idle_is_lent_but_never_more_than_an_operator_set() {
    let sum_of = |capacity: Option<&str>| {
        let mut planner = PoolPlanner::new(
            PoolParams { law: LawParams::default(), ..pool(600.0, &["a", "b"]) },
            7,
            BTreeMap::new(),
            None,
            ms(0),
        );
        if let Some(record) = capacity {
            planner.overrides_mut().put(Target::Capacity, record.as_bytes()).unwrap();
        }
        // Much more is asked for than is sent.
        for s in 0..30_u64 {
            let asked = |sent: u64| Counters { attempts: 40 * s, ..counters(sent * s) };
            planner.report("m", "boot", &report_of(&[("a", asked(3)), ("b", asked(2))]), ms(s * 1_000));
            tick(&mut planner, s * 1_000);
        }
        let capacity = step(&planner).capacity_per_s * 60.0;
        let grants = planner.outbox().published().values();
        grants.map(|grant| grant.thresholds.rates[&RPM].rate).sum::<f64>() / capacity
    };
    let lent = sum_of(None);
    assert!((1.5..1.61).contains(&lent), "{lent}");
    let set = sum_of(Some(r#"{"set":{"requests/minute":300}}"#));
    assert!((0.97..1.03).contains(&set), "{set}");
}

#[test]
fn a_frozen_tenant_keeps_its_grant_and_the_others_share_the_rest() {
    let mut planner = planner(600.0, &["a", "b"]);
    let drive = |planner: &mut PoolPlanner, from: u64, a: u64, b: u64| {
        for s in from..from + 30 {
            let busy = [("a", counters(1_000 + s * a)), ("b", counters(1_000 + s * b))];
            planner.report("m", "boot", &report_of(&busy), ms(s * 1_000));
            tick(planner, s * 1_000);
        }
    };
    drive(&mut planner, 0, 8, 8);
    let before = planner.outbox().published()[&tenant("a")].thresholds.clone();
    planner.overrides_mut().put(Target::One(tenant("a")), br#"{"freeze":true}"#).unwrap();
    drive(&mut planner, 30, 8, 30);
    assert_eq!(planner.outbox().published()[&tenant("a")].thresholds, before);
    let sum: f64 = planner.outbox().published().values().map(|g| g.thresholds.rates[&RPM].rate).sum();
    assert!(sum <= step(&planner).capacity_per_s * 60.0 * 1.02, "{sum}");
}

#[test]
fn a_tenant_that_is_not_declared_any_more_is_removed_once() {
    let mut left = BTreeMap::new();
    let mut before = planner(600.0, &["a", "gone"]);
    left.extend(tick(&mut before, 0).grants);
    let mut planner = PoolPlanner::new(pool(600.0, &["a"]), 8, left, None, ms(0));
    assert_eq!(tick(&mut planner, 0).removed, vec![tenant("gone")]);
    assert!(tick(&mut planner, 1_000).removed.is_empty());
    assert!(planner.outbox().published().contains_key(&Grantee::Default));
}

#[test]
fn under_another_policy_the_planner_goes_on_with_what_it_has_learned() {
    let mut planner = with_headers();
    let (learned, epoch) = (step(&planner), planner.outbox().epoch());
    // What headers tell is known better than a capacity that somebody wrote.
    let changed = PoolParams { mode: Mode::Observe, ..pool(60.0, &["a", "c"]) };
    planner.adopt(changed.clone());
    assert_eq!(planner.params(), &changed);
    let written = tick(&mut planner, 20_000);
    assert_eq!(written.pulse.mode, Mode::Observe);
    assert!(written.pulse.stamp.epoch > epoch, "the order goes on");
    assert!(
        (step(&planner).capacity_per_s / learned.capacity_per_s - 1.0).abs() < 0.1,
        "{learned:?} {:?}",
        step(&planner)
    );
    assert_eq!(written.removed, [tenant("b")]);
    assert!(written.grants.contains_key(&tenant("c")), "{:?}", written.grants.keys());
}

#[test]
fn without_headers_a_changed_capacity_is_begun_from_anew_and_meters_come_and_go() {
    let mut planner = planner(600.0, &["a"]);
    tick(&mut planner, 0);
    let granted = |planner: &PoolPlanner| planner.outbox().published()[&tenant("a")].thresholds.rates.clone();
    let before = granted(&planner)[&RPM].rate;
    let mut changed = pool(60.0, &["a"]);
    changed.capacity.insert(OUTPUT, Rate { rate: 1_000.0, burst: 100.0 });
    planner.adopt(changed);
    tick(&mut planner, 1_000);
    let after = granted(&planner);
    assert!((after[&RPM].rate - before / 10.0).abs() < 0.5, "{before} {after:?}");
    assert!(after.contains_key(&OUTPUT));
    // The same again: what was learned since stays.
    let mut params = planner.params().clone();
    params.capacity.remove(&OUTPUT);
    planner.adopt(params);
    tick(&mut planner, 2_000);
    assert_eq!(granted(&planner).keys().copied().collect::<Vec<_>>(), [RPM]);
    assert_eq!(granted(&planner)[&RPM], after[&RPM]);
}

#[test]
fn a_new_leader_goes_on_from_the_grants_it_finds() {
    let mut old = planner(600.0, &["a", "b", "c"]);
    for s in 0..30_u64 {
        old.report("m", "boot", &report_of(&[("a", counters(s * 20)), ("b", counters(s))]), ms(s * 1_000));
        tick(&mut old, s * 1_000);
    }
    let left = old.outbox().published().clone();
    assert!(rate(&old, "a") > 1.3 * rate(&old, "b"));
    let mut new = PoolPlanner::new(pool(600.0, &["a", "b", "c"]), 8, left.clone(), None, ms(100_000));
    for s in 100..105_u64 {
        // One of two members is heard; the other has the demand.
        new.report("n", "boot", &report_of(&[("b", counters(s))]), ms(s * 1_000));
        tick(&mut new, s * 1_000);
        for (grantee, grant) in &left {
            let (was, is) =
                (grant.thresholds.rates[&RPM].rate, new.outbox().published()[grantee].thresholds.rates[&RPM].rate);
            assert!((is / was - 1.0).abs() < 0.1, "{grantee} from {was} to {is}");
        }
    }
}

#[test]
fn safe_is_at_most_half_and_at_most_the_static_part() {
    let mut planner = planner(600.0, &["a", "b"]);
    for s in 0..120_u64 {
        let report = report_of(&[("a", counters(s * 40))]);
        planner.report("m", "boot", &with_reading(report, 6_000.0, 300.0, 10), ms(s * 1_000));
        tick(&mut planner, s * 1_000);
    }
    assert!(rate(&planner, "a") > 1_000.0, "{}", rate(&planner, "a"));
    for grant in planner.outbox().published().values() {
        let (safe, whole) = (grant.safe.rates[&RPM], grant.thresholds.rates[&RPM]);
        assert!(safe.rate <= 0.5 * whole.rate + 1e-9 && safe.burst <= 0.5 * whole.burst + 1e-9);
        assert!(safe.rate <= 600.0 / 3.0 + 1e-3, "a third of the static capacity: {}", safe.rate);
    }
}

#[test]
fn many_idle_tenants_do_not_starve_the_busy_one_of_a_small_pool() {
    let names: Vec<String> = (0..20).map(|i| format!("idle{i}")).collect();
    let mut all: Vec<&str> = names.iter().map(String::as_str).collect();
    all.push("busy");
    let mut planner = planner(60.0, &all);
    for s in 0..60_u64 {
        planner.report("m", "boot", &report_of(&[("busy", counters(s * 2))]), ms(s * 1_000));
        tick(&mut planner, s * 1_000);
    }
    assert!(rate(&planner, "busy") >= 0.85 * 60.0, "{}", rate(&planner, "busy"));
}

// === a tenant that is not the bottleneck ===

/// Two members, a hungry tenant and one with 3 requests a second; a provider that takes everything at `capacity`.
struct Fleet {
    planner: PoolPlanner,
    members: Vec<FleetMember>,
    now: u64,
    level: f64,
    per_s: f64,
    depth: f64,
}

struct FleetMember {
    name: String,
    gates: BTreeMap<Grantee, Gate>,
    shares: BTreeMap<Grantee, Share>,
}

struct Gate {
    limiter: Limiter,
    line: VecDeque<u64>,
    counters: Counters,
    waited_ms: Vec<u64>,
}

impl Fleet {
    fn new(per_s: f64, depth: f64, members: usize) -> Self {
        let mut params = pool(per_s * 60.0, &["steady", "hungry", "idle"]);
        params.capacity.insert(RPM, Rate { rate: per_s * 60.0, burst: depth });
        let member = |i: usize| FleetMember {
            name: format!("m{i}"),
            shares: BTreeMap::new(),
            gates: ["steady", "hungry"]
                .into_iter()
                .map(|name| {
                    let limiter = Limiter::new(&Limits { blocked: true, ..Limits::default() }, ms(0));
                    let gate =
                        Gate { limiter, line: VecDeque::new(), counters: Counters::default(), waited_ms: Vec::new() };
                    (tenant(name), gate)
                })
                .collect(),
        };
        let members = (0..members).map(member).collect();
        let planner = PoolPlanner::new(params, 1, BTreeMap::new(), None, ms(0));
        Self { planner, members, now: 1_000_000, level: depth, per_s, depth }
    }

    fn step(&mut self, rng: &mut fastrand::Rng, arrivals: &[(&str, f64)]) {
        self.now += 10;
        self.level = (self.level + self.per_s / 100.0).min(self.depth);
        let now = ms(self.now);
        if self.now.is_multiple_of(1_000) {
            tick(&mut self.planner, self.now);
        }
        let grants: BTreeMap<Grantee, Grant> = self.planner.outbox().published().clone();
        for (i, member) in self.members.iter_mut().enumerate() {
            if self.now % 250 == (i as u64) * 50 {
                let reports = member.gates.iter().map(|(grantee, gate)| {
                    let report = TenantReport {
                        counters: gate.counters.clone(),
                        waiting: u32::try_from(gate.line.len()).unwrap(),
                        share: member.shares.get(grantee).map(|s| s.share),
                        ..TenantReport::default()
                    };
                    (grantee.clone(), report)
                });
                let report = PoolReport { tenants: reports.collect(), ..PoolReport::default() };
                let report = with_reading(report, self.per_s * 60.0, self.level.floor(), 10);
                member.shares = self.planner.report(&member.name, "boot", &report, now).0;
            }
            for (grantee, gate) in &mut member.gates {
                let (Some(grant), Some(share)) = (grants.get(grantee), member.shares.get(grantee)) else { continue };
                let whole = grant.thresholds.rates[&RPM];
                let mine = whole.scaled(share.share);
                let limit = MeterLimit {
                    rate: Rate { burst: mine.burst.max(1.0), ..mine },
                    largest_request: whole.burst,
                    counting: Counting::TokenBucket,
                    together: None,
                };
                gate.limiter.retune(&Limits { meters: BTreeMap::from([(RPM, limit)]), ..Limits::default() }, now);
                let per_s = arrivals.iter().find(|(name, _)| tenant(name) == *grantee).map_or(0.0, |(_, x)| *x);
                #[allow(clippy::cast_precision_loss)]
                if rng.f64() < per_s / 100.0 / 2.0 && gate.line.len() < 60 {
                    gate.counters.attempts += 1;
                    gate.line.push_back(self.now);
                }
                while let Some(came) = gate.line.front().copied() {
                    let Ok(reservation) = gate.limiter.decide(&Cost::request(0, 0), now) else {
                        break;
                    };
                    gate.limiter.settle(reservation, None, now);
                    gate.line.pop_front();
                    gate.counters =
                        Counters { attempts: gate.counters.attempts, ..counters(gate.counters.admitted + 1) };
                    gate.waited_ms.push(self.now - came);
                    self.level -= 1.0;
                }
            }
        }
    }

    fn steady(&self) -> (u64, u64, Vec<u64>) {
        let gates: Vec<&Gate> = self.members.iter().map(|m| &m.gates[&tenant("steady")]).collect();
        let mut waits: Vec<u64> = gates.iter().flat_map(|g| g.waited_ms.iter().copied()).collect();
        waits.sort_unstable();
        (gates.iter().map(|g| g.counters.attempts).sum(), gates.iter().map(|g| g.counters.admitted).sum(), waits)
    }
}

#[test]
fn a_steady_tenant_below_its_fair_share_is_granted_its_demand_within_seconds_and_never_starved() {
    for (depth, seed) in [(30.0, 1), (30.0, 2), (600.0, 3), (10.0, 4)] {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut fleet = Fleet::new(10.0, depth, 2);
        let arrivals = [("steady", 3.0), ("hungry", 30.0)];
        let (mut least, mut lowest_level) = (f64::INFINITY, f64::INFINITY);
        for i in 0..12_000_u64 {
            fleet.step(&mut rng, &arrivals);
            if i > 300 && fleet.planner.outbox().published().contains_key(&tenant("steady")) {
                least = least.min(rate(&fleet.planner, "steady") / 60.0);
                lowest_level = lowest_level.min(fleet.level);
            }
        }
        let (asked, got, waits) = fleet.steady();
        #[allow(clippy::cast_precision_loss)]
        let part = got as f64 / asked as f64;
        let p95 = waits[waits.len() * 95 / 100];
        assert!(least >= 2.2, "depth {depth}: granted {least}/s at the least");
        assert!(part >= 0.98, "depth {depth}: {got} of {asked}");
        assert!(p95 <= 2_000, "depth {depth}: p95 {p95} ms");
    }
}

#[test]
fn holds_are_told_to_all_and_end() {
    let mut planner = planner(600.0, &["a"]);
    let report = PoolReport { hold_ms: BTreeMap::from([(RPM, 90_000)]), ..PoolReport::default() };
    planner.report("m", "boot", &report, ms(0));
    assert_eq!(tick(&mut planner, 1_000).pulse.hold_ms[&RPM], 89_000);
    assert!(tick(&mut planner, 90_000).pulse.hold_ms.is_empty());
    assert_eq!(Duration::from_millis(tick(&mut planner, 91_000).pulse.valid_for_ms), Duration::from_secs(15));
}

#[test]
fn grants_say_how_meters_count_and_the_pulse_when_their_windows_end() {
    let mut params = pool(600.0, &["a"]);
    let day = Meter { unit: Unit::Requests, window: Window::Day };
    params.capacity.insert(day, Rate { rate: 10_000.0, burst: 10.0 });
    params.algorithms = BTreeMap::from([(RPM, Algorithm::SlidingWindow), (day, Algorithm::FixedWindow)]);
    params.zones = BTreeMap::from([(day, TimeZone::get("America/Los_Angeles").unwrap())]);
    let mut planner = PoolPlanner::new(params.clone(), 7, BTreeMap::new(), None, ms(0));
    let first = tick(&mut planner, 0);
    assert_eq!(first.grants.len(), 2);
    assert!(first.grants.values().all(|grant| grant.algorithms == params.algorithms));
    // 2026-11-23T20:00:00Z is noon in Los Angeles.
    assert_eq!(WALL, UnixMillis(1_795_464_000_000));
    assert_eq!(first.pulse.window_left_ms, BTreeMap::from([(day, 12 * 3_600_000)]));
    // Another policy is a reason to rewrite the grants, though no number moves.
    params.algorithms.remove(&RPM);
    let left = planner.outbox().published().clone();
    let mut next = PoolPlanner::new(params.clone(), 8, left, None, ms(1_000));
    assert!(tick(&mut next, 1_000).grants.values().all(|grant| grant.algorithms == params.algorithms));
}
