//! How fast worlds are simulated: simulated seconds in a second of one core, of config/scenarios/steady.toml, every part of it
//! the production code. The best of all rounds: whatever else runs on a machine only takes time away.
//!
//! `make bench AREA=law`

use std::path::Path;
use std::process::ExitCode;

use tidegate::clock::{Clock, SystemClock};
use tidegate::sim::world::laws::law;
use tidegate::sim::world::{Scenario, run};

const SPEED_MIN: f64 = 3_000.0;
const ROUNDS: u64 = 15;

fn main() -> ExitCode {
    let scenario = Scenario::load(Path::new("config/scenarios/steady.toml")).expect("a scenario");
    let mut best = 0.0_f64;
    for seed in 0..ROUNDS {
        let clock = SystemClock::new();
        let begins = clock.now();
        run(&scenario, seed, &mut *law("ours", &scenario).expect("ours")).expect("a world");
        best = best.max(scenario.seconds / clock.now().seconds_since(begins));
    }
    println!("law_worlds ours={best:.0}x goal>={SPEED_MIN:.0}x");
    if best >= SPEED_MIN { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
