//! The same worlds once more with everything real: etcd, the emulator over HTTP, a controller and members as processes. What
//! comes of them is what the simulator says.

use std::time::Duration;

use serde_json::json;
use tidegate::sim::world::laws::law;
use tidegate::sim::world::{Run, Scenario, Second, run};

use crate::world::{Measured, World};

/// What holds before and after the event, from when it has settled, in seconds.
const WINDOWS: [(usize, usize); 2] = [(10, 30), (36, 60)];
/// Real and simulated goodput are within this of each other, as a part of the oracle's.
const CLOSE: f64 = 0.02;
/// So many simulated worlds are one.
const SEEDS: u64 = 20;
/// So many of a hundred requests more than simulated may be refused.
const REFUSED_MORE: f64 = 0.01;

/// What is got in a window, in requests a second, and which part of what is sent is refused.
#[derive(Debug, Clone, Copy)]
struct Got {
    per_s: f64,
    refused: f64,
}

/// The provider and the members of `World`, and what happens after 30 s: what we get in both windows, and the oracle.
fn simulated(event: &str) -> [[Got; 2]; 2] {
    let text = format!(
        r#"
about = "What `World` starts."
seconds = 60
[provider]
burst_seconds = 3
ttft_ms = 100
ttft_sigma = 0
others_even = true
ms_per_token = 1
[requests]
output_tokens = 20
output_sigma = 0
max_output_tokens = 20
[members]
split = [0.5, 0.5]
[tenants.alpha]
weight = 3
per_second = 24
patience_s = 2
[tenants.beta]
per_second = 12
patience_s = 2
{event}
"#
    );
    let scenario = Scenario::parse("real", &text).expect("a scenario");
    let live = |name: &str, seed| run(&scenario, seed, &mut *law(name, &scenario).expect("a law")).expect("a world");
    ["ours", "oracle"].map(|name| {
        let runs: Vec<Run> = (0..SEEDS).map(|seed| live(name, seed)).collect();
        WINDOWS.map(|window| of_window(&runs, window))
    })
}

fn of_window(runs: &[Run], (from, to): (usize, usize)) -> Got {
    let seconds = runs.iter().flat_map(|run| &run.books.seconds()[from..to]);
    let sum = |of: fn(&Second) -> f64| seconds.clone().map(of).sum::<f64>();
    Got {
        per_s: sum(|s| s.got) / ((to - from) * runs.len()) as f64,
        refused: sum(|s| s.refused) / sum(|s| s.sent).max(1.0),
    }
}

/// Returns what is not as simulated.
async fn compare(name: &str, event: &str, happens: impl AsyncFnOnce(&mut World)) -> Vec<String> {
    let mut world = World::new(1_200).await;
    let (_controller, _) = world.controller("first").await;
    world.join("one", &["alpha=12", "beta=6"]);
    world.join("two", &["alpha=12", "beta=6"]);
    world.all_members("members are active", |tuning| tuning["state"] == "active").await;
    tokio::time::sleep(Duration::from_secs(WINDOWS[0].0 as u64)).await;
    let span = |(from, to): (usize, usize)| Duration::from_secs((to - from) as u64);
    let before = world.measure(span(WINDOWS[0])).await;
    happens(&mut world).await;
    tokio::time::sleep(Duration::from_secs((WINDOWS[1].0 - WINDOWS[0].1) as u64)).await;
    let after = world.measure(span(WINDOWS[1])).await;
    let [ours, oracle] = simulated(event);
    let compared = [before, after].into_iter().zip(WINDOWS).zip(ours.into_iter().zip(oracle));
    compared.filter_map(|((real, window), (ours, oracle))| is_otherwise(name, window, &real, ours, oracle)).collect()
}

fn is_otherwise(name: &str, window: (usize, usize), real: &Measured, ours: Got, oracle: Got) -> Option<String> {
    let (is, should) = (real.per_s() / oracle.per_s, ours.per_s / oracle.per_s);
    let said = format!(
        "{name}, {}-{} s: efficiency real {:.1} %, simulated {:.1} %; refused real {:.2} %, simulated {:.2} %",
        window.0,
        window.1,
        100.0 * is,
        100.0 * should,
        100.0 * real.refused_part(),
        100.0 * ours.refused
    );
    println!("{said}");
    let close = (is - should).abs() <= CLOSE && real.refused_part() <= ours.refused + REFUSED_MORE;
    (!close).then_some(said)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a minute of four whole worlds at a time: make test-full"]
async fn worlds_of_real_processes_are_as_the_simulator_says() {
    let (a, b, c, d) = tokio::join!(
        compare("steady", "", async |_| ()),
        compare("halved", "[[event]]\nat_s = 30\nlimit = 0.5", async |world| {
            // What was used stays used here; in a scenario a bucket stays as full as it was. With the depth kept it does.
            world.patch(json!({"requests_per_minute": 600, "burst_seconds": 6})).await;
        }),
        compare("others", "[[event]]\nat_s = 30\nothers_per_second = 8", async |world| {
            world.patch(json!({"hidden_requests_per_minute": 480})).await;
        }),
        compare("noisy", "[[event]]\nat_s = 30\ntenant = \"beta\"\nper_second = 60", async |world| {
            world.join("three", &["beta=48"]);
        }),
    );
    let otherwise = [a, b, c, d].concat();
    assert!(otherwise.is_empty(), "{}", otherwise.join("\n"));
}
