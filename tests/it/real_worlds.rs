//! The same worlds once more with everything real: etcd, the emulator over HTTP, a controller and members as processes. What
//! comes of them is what the simulator says.

use std::time::Duration;

use serde_json::json;
use tidegate::sim::world::laws::law;
use tidegate::sim::world::{Run, Scenario, run};

use crate::world::{Measured, World};

/// What holds before and after the event, from when it has settled, in seconds.
const WINDOWS: [(usize, usize); 2] = [(10, 30), (36, 60)];
/// Real and simulated goodput are within this of each other, as a part of the oracle's.
const CLOSE: f64 = 0.02;
/// So many of a hundred requests more than simulated may be refused.
const REFUSED_MORE: f64 = 0.01;

/// The provider and the members of `World`, and what happens after 30 s.
fn simulated(event: &str) -> (Run, Run) {
    let text = format!(
        r#"
about = "What `World` starts."
seconds = 60
[provider]
burst_seconds = 3
ttft_ms = 100
ttft_sigma = 0
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
    let live = |name: &str| run(&scenario, 3, &mut *law(name, &scenario).expect("a law")).expect("a world");
    (live("ours"), live("oracle"))
}

/// What was got in a window, in requests a second, and which part of what was sent was refused.
fn of_window(run: &Run, (from, to): (usize, usize)) -> (f64, f64) {
    let seconds = &run.books.seconds()[from..to];
    let sum = |of: fn(&tidegate::sim::world::Second) -> f64| seconds.iter().map(of).sum::<f64>();
    (sum(|s| s.got) / (to - from) as f64, sum(|s| s.refused) / sum(|s| s.sent).max(1.0))
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
    let (ours, oracle) = simulated(event);
    let compared = WINDOWS.into_iter().zip([before, after]);
    compared.filter_map(|(window, real)| is_otherwise(name, window, &real, &ours, &oracle)).collect()
}

fn is_otherwise(name: &str, window: (usize, usize), real: &Measured, ours: &Run, oracle: &Run) -> Option<String> {
    let ((got, refused), (could, _)) = (of_window(ours, window), of_window(oracle, window));
    let (is, should) = (real.per_s() / could, got / could);
    let said = format!(
        "{name}, {}-{} s: efficiency real {:.1} %, simulated {:.1} %; refused real {:.2} %, simulated {:.2} %",
        window.0,
        window.1,
        100.0 * is,
        100.0 * should,
        100.0 * real.refused_part(),
        100.0 * refused
    );
    println!("{said}");
    let close = (is - should).abs() <= CLOSE && real.refused_part() <= refused + REFUSED_MORE;
    (!close).then_some(said)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a minute of four whole worlds at a time: make test-full"]
async fn worlds_of_real_processes_are_as_the_simulator_says() {
    let (a, b, c, d) = tokio::join!(
        compare("steady", "", async |_| ()),
        compare("halved", "[[event]]\nat_s = 30\nlimit = 0.5", async |world| {
            world.patch(json!({"requests_per_minute": 600})).await;
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
