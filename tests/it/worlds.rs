//! Simulated worlds: what they are made of, the laws that are compared in them, and how ours does.

use std::path::Path;
use std::time::Duration;

use tidegate::clock::MonoTime;
use tidegate::controller::law::{LawParams, ObserverParams};
use tidegate::sim::emulator::Emulated;
use tidegate::sim::world::laws::{Aimd, Arc, AwsAdaptive, Client, Cooldown, Fixed, NAMES, Ours, law};
use tidegate::sim::world::scenario::Headers;
use tidegate::sim::world::{Outcome, Scenario, Server, random, run};

fn scenario(name: &str) -> Scenario {
    Scenario::load(Path::new(&format!("config/scenarios/{name}.toml"))).expect("it is one")
}

fn outcome(scenario: &Scenario, seed: u64, name: &str) -> Outcome {
    let live = |name: &str| run(scenario, seed, &mut *law(name, scenario).expect("a law")).expect("a world");
    live(name).outcome(&live("oracle"))
}

/// What ours is to come to is in the files.
#[test]
fn every_scenario_is_within_its_bands() {
    let files = std::fs::read_dir("config/scenarios").expect("the folder").map(|file| file.expect("a file").path());
    let files = files.filter(|path| path.extension().is_some_and(|end| end == "toml"));
    let scenarios: Vec<Scenario> = files.map(|path| Scenario::load(&path).expect("a scenario")).collect();
    let worlds: Vec<(&Scenario, u64)> = scenarios.iter().flat_map(|scenario| [(scenario, 0), (scenario, 1)]).collect();
    let next = std::sync::atomic::AtomicUsize::new(0);
    let outside = parking_lot::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some((scenario, seed)) = worlds.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)) {
                    assert!(scenario.accept.contains_key("ours"), "{}: no bands", scenario.name);
                    for (law, bands) in &scenario.accept {
                        let lines = bands.outside(&outcome(scenario, *seed, law));
                        let said = |line| format!("{} under {law}, seed {seed}: {line}", scenario.name);
                        outside.lock().extend(lines.into_iter().map(said));
                    }
                }
            });
        }
    });
    let outside = outside.into_inner();
    assert!(outside.is_empty(), "{}", outside.join("\n"));
}

#[test]
fn who_hammers_takes_what_others_have_and_makes_a_slow_server_slower() {
    let hammering = outcome(&scenario("others"), 0, "retry");
    assert!(hammering.others_kept.is_some_and(|kept| kept < 0.6), "{hammering:?}");
    let hammering = outcome(&scenario("inflated"), 0, "retry");
    assert!(hammering.answer_p95_s > 25.0, "{hammering:?}");
}

/// Other seeds than those that anything was tuned on, and few: the whole table is `tidegate simulate --random 200`.
#[test]
fn in_worlds_drawn_at_random_ours_holds_too() {
    let all: Vec<Outcome> = (50_000..50_016).map(|seed| outcome(&random(seed), seed, "ours")).collect();
    let mean = |of: fn(&Outcome) -> f64| all.iter().map(of).sum::<f64>() / 16.0;
    let (efficiency, throttled, jain) =
        (mean(|o| o.efficiency.min(1.0)), mean(|o| o.throttled_ratio), mean(|o| o.jain));
    assert!(efficiency >= 0.96 && throttled <= 0.008 && jain >= 0.985, "{efficiency} {throttled} {jain}");
}

#[test]
fn a_seed_draws_the_same_world_and_each_is_a_scenario() {
    for seed in 0..500 {
        let scenario = random(seed);
        assert_eq!(scenario.check(), Ok(()), "seed {seed}");
        assert_eq!(scenario, random(seed));
    }
    let kinds: Vec<Scenario> = (0..200).map(random).collect();
    let count = |of: fn(&Scenario) -> bool| kinds.iter().filter(|scenario| of(scenario)).count();
    assert!((25..75).contains(&count(|s| s.provider.dialect == Emulated::FixedWindow)));
    assert!((20..65).contains(&count(|s| s.provider.headers == Headers::None)));
    assert!((65..135).contains(&count(|s| s.configured() == s.provider.requests_per_minute)));
}

#[test]
fn the_same_seed_is_the_same_world_under_each_law() {
    let scenario = Scenario { seconds: 60.0, ..scenario("noisy") };
    let scenario = Scenario { events: Vec::new(), ..scenario };
    for name in NAMES {
        let (first, second) = (outcome(&scenario, 7, name), outcome(&scenario, 7, name));
        assert_eq!(first, second);
        assert_eq!(first.law, name);
    }
    assert_ne!(outcome(&scenario, 8, "ours").wait_p99_s, outcome(&scenario, 7, "ours").wait_p99_s);
}

#[test]
fn every_scenario_is_one_and_says_why() {
    let mut names = Vec::new();
    for file in std::fs::read_dir("config/scenarios").expect("the folder") {
        let path = file.expect("a file").path();
        if path.extension().is_some_and(|end| end == "toml") {
            let scenario = Scenario::load(&path).expect("a scenario");
            assert!(scenario.about.trim().len() > 40, "{}: {}", scenario.name, scenario.about);
            names.push(scenario.name);
        }
    }
    assert!(names.len() >= 30, "{names:?}");
}

#[test]
fn what_is_wrong_with_a_scenario_is_told_in_a_line() {
    let tenants = "about = \"a\"\n[tenants.a]\nper_second = 1\n";
    let cases = [
        ("seconds = 5\n", "seconds is 5: expected 10–86400"),
        ("[provider]\nheaders = { rounded = 2 }\n", "provider.headers.rounded is 2: expected 0.001–0.5"),
        ("[members]\nsplit = [0.5, 0.4]\n", "the sum of members.split is 0.9: expected 0.999999–1.000001"),
        ("[[event]]\nat_s = 1\n", "the event at 1 s: expected at_s and one thing that happens"),
        ("[[event]]\nat_s = 2\ntenant = \"a\"\n", "the event at 2 s: tenant and per_second belong together"),
        ("[[event]]\nat_s = 1\nstart = 0\n", "event at 1 s: process 0 lives"),
        ("[accept.our]\nefficiency = 0.9\n", "accept.our: expected one of oracle, ours, "),
        ("[accept.ours]\nefficiency = 98\n", "accept.ours.efficiency is 98: expected 0–2"),
        ("[[event]]\nat_s = 1\ntenant = \"x\"\nper_second = 1\n", "event at 1 s: no tenant x"),
        ("[[event]]\nat_s = 1\nkill = 9\n", "event at 1 s: no member 9: expected 0–2"),
        ("[provider]\nlimit = 1\n", "unknown field `limit`"),
    ];
    for (text, part) in cases {
        let text = if text.starts_with("seconds") { format!("{text}{tenants}") } else { format!("{tenants}{text}") };
        let wrong = Scenario::parse("t", &text).expect_err(part);
        assert!(wrong.contains(part) && !wrong.contains('\n'), "{wrong}");
    }
    assert!(Scenario::parse("t", "about = 1").expect_err("no text").starts_with("line 1: "));
}

// === what the others are by their papers ===

/// RFC 9438 and the AWS SDKs: at the end of K the rate is that of the last refusal, and it begins at β of it.
#[test]
fn aws_adaptive_grows_as_cubic_does() {
    for most in [1.0, 10.0, 200.0_f64] {
        let k = (most * 0.3 / 0.4).cbrt();
        assert!((AwsAdaptive::cubic(most, 0.0) - 0.7 * most).abs() < 1e-9);
        assert!((AwsAdaptive::cubic(most, k) - most).abs() < 1e-9);
        assert!((AwsAdaptive::cubic(most, 2.0 * k) - 1.3 * most).abs() < 1e-9);
    }
}

/// Vector: one more for each round trip while the limit is reached and trips are not longer than before; a tenth less when
/// refused.
#[test]
fn vector_arc_adds_one_and_takes_a_tenth() {
    let at = |ms: u64| MonoTime::from_millis(ms);
    let mut arc = Arc::new(1.0);
    let trip = Duration::from_millis(100);
    for n in 0..30 {
        let now = at(1_000 + 200 * n);
        assert!(arc.ready_at(arc.limit(), now) > now, "the limit is reached");
        arc.answered(trip, arc.limit(), now);
    }
    let grown = arc.limit();
    assert!((25..=31).contains(&grown), "{grown}");
    arc.refused(None, at(10_000));
    assert_eq!(arc.limit(), (grown as f64 * 0.9) as usize);
}

/// Chiu & Jain 1989: a ≥ 0 and b = 1 up, a = 0 and b < 1 down; parties under common feedback come to the same rate.
#[test]
fn aimd_comes_to_fair_parts_from_any_start() {
    let mut parties = [Aimd::new(8.0), Aimd::new(8.0)];
    let at = |second: u64| MonoTime::from_millis(1_000 * second);
    // One had a bad start.
    for second in 1..4 {
        parties[1].refused(None, at(second));
        parties[1].ready_at(0, at(second + 1));
    }
    assert!(parties[1].per_s() < 0.3 * parties[0].per_s());
    for second in 10..400 {
        let sum: f64 = parties.iter().map(Aimd::per_s).sum();
        for party in &mut parties {
            let before = party.per_s();
            if sum > 12.0 {
                party.refused(None, at(second));
            }
            party.ready_at(0, at(second));
            let step = party.per_s() - before;
            let (up, down) = ((step - 0.4).abs() < 1e-9, (party.per_s() - 0.5 * before).abs() < 1e-9);
            assert!(step == 0.0 || up || down, "{before} {}", party.per_s());
        }
    }
    let [a, b] = parties.map(|party| party.per_s());
    assert!((a / b - 1.0).abs() < 0.05, "{a} {b}");
}

/// `LiteLLM`'s router: a deployment that refused is out for 5 s, or for as long as it asked.
#[test]
fn a_cooldown_lasts_five_seconds_or_as_long_as_asked() {
    let at = MonoTime::from_millis(10_000);
    for (asked, waits_ms) in [(None, 5_000), (Some(2.0), 2_000), (Some(30.0), 30_000)] {
        let mut cooldown = Cooldown::new(1.0);
        assert!(cooldown.ready_at(99, at) <= at);
        cooldown.refused(asked, at);
        assert_eq!(cooldown.ready_at(0, at), at + Duration::from_millis(waits_ms));
    }
}

/// Static weighted parts: a bucket of a second of its part, whatever the provider says.
#[test]
fn static_parts_stay_what_they_are() {
    let mut fixed = Fixed::new(5.0);
    let begin = MonoTime::from_millis(10_000);
    let count = |fixed: &mut Fixed, now: MonoTime| {
        let mut count = 0;
        while fixed.ready_at(0, now) <= now {
            fixed.sent(now);
            count += 1;
        }
        count
    };
    assert_eq!(count(&mut fixed, begin), 5);
    for second in 1..20 {
        fixed.refused(Some(60.0), begin);
        assert_eq!(count(&mut fixed, begin + Duration::from_secs(second)), 5);
    }
}

/// The SDKs' back-off, 0.5 s doubled up to 8 s with a jitter of a quarter: of a provider that refuses all, so many are sent.
#[test]
fn retries_back_off() {
    let text = "about = \"a\"\nseconds = 60\n[provider]\nrequests_per_minute = 1\nretry_after = false\n[members]\nsplit = [1.0]\nworkers = 1\n[tenants.a]\nper_second = 1\n";
    let scenario = Scenario::parse("t", text).expect("a scenario");
    let run = run(&scenario, 1, &mut *law("retry", &scenario).expect("a law")).expect("a world");
    let refused: f64 = run.books.seconds().iter().map(|second| second.refused).sum();
    // 0.5 + 1 + 2 + 4 + 8 + 8 … s, less up to a quarter, with a tenth of a second of refusal each.
    assert!((8.0..=13.0).contains(&refused), "{refused}");
}

/// Where it begins to swing: the gain of the level at which use varies, and the delay of grants at which it does. What is set
/// is at half of either, or less.
#[test]
fn the_default_gain_is_far_from_where_it_swings() {
    let scenario = Scenario { seconds: 200.0, ..scenario("others") };
    let refused = |level_gain: f64, grant_ms: f64| {
        let mut scenario = scenario.clone();
        (scenario.network.grant_ms, scenario.provider.burst_seconds) = (grant_ms, 20.0);
        let observer = ObserverParams { level_gain, ..ObserverParams::default() };
        let mut ours =
            Ours::new(&scenario, "ours", true).expect("ours").with_law(LawParams { observer, ..LawParams::default() });
        let run = run(&scenario, 0, &mut ours).expect("a world");
        let sum = |of: fn(&tidegate::sim::world::Second) -> f64| run.books.seconds().iter().map(of).sum::<f64>();
        sum(|s| s.refused) / sum(|s| s.sent)
    };
    let (gain, delay_ms) = (ObserverParams::default().level_gain, 1_000.0);
    assert!(refused(2.0 * gain, delay_ms) < 0.01, "twice the gain");
    assert!(refused(gain, 2.0 * delay_ms) < 0.01, "twice the delay");
    assert!(refused(8.0 * gain, 4.0 * delay_ms) > 0.01, "it does swing somewhere");
}

/// n jobs on K slots each advance at K/n of their speed.
#[test]
fn a_server_is_shared_evenly() {
    let mut server = Server::new(2, MonoTime::default());
    for job in 0..4 {
        server.begin(job, 1.0, MonoTime::default());
    }
    assert_eq!(server.next(), Some(MonoTime::from_millis(2_000)));
    assert_eq!(server.finished(MonoTime::from_millis(1_999)), None);
    let done: Vec<u64> = std::iter::from_fn(|| server.finished(MonoTime::from_millis(2_000))).collect();
    assert_eq!(done.len(), 4);
    server.begin(9, 1.0, MonoTime::from_millis(2_000));
    assert_eq!(server.next(), Some(MonoTime::from_millis(3_000)), "alone, at full speed");
}
