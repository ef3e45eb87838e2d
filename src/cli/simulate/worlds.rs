//! Which worlds, under which laws; and living through them, on all cores.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::available_parallelism;

use parking_lot::Mutex;
use tracing::subscriber::NoSubscriber;

use crate::cli::Failure;
use crate::sim::world::{self, Outcome, Run, Scenario, laws};

pub(super) const ORACLE: &str = laws::NAMES[0];
const SEEDS_MAX: u64 = 10_000;

/// Which worlds, and under which laws.
#[derive(Debug, clap::Args)]
pub(super) struct WorldsArgs {
    /// Scenario files.
    #[arg(value_name = "FILE", required_unless_present = "random")]
    files: Vec<PathBuf>,
    /// So many worlds drawn at random, one for each seed, instead of files.
    #[arg(long, value_name = "N", conflicts_with_all = ["files", "seeds"], value_parser = clap::value_parser!(u64).range(1..=SEEDS_MAX))]
    random: Option<u64>,
    /// A law; repeat it for more. All of them when absent.
    #[arg(long = "law", value_name = "NAME", value_parser = clap::builder::PossibleValuesParser::new(laws::NAMES))]
    laws: Vec<String>,
    /// The first seed, instead of the file's; 0 for random worlds.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// So many seeds of each file, one after the other.
    #[arg(long, value_name = "K", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=SEEDS_MAX))]
    seeds: u64,
}

impl WorldsArgs {
    /// Whether the worlds are drawn at random.
    pub(super) fn is_random(&self) -> bool {
        self.random.is_some()
    }

    pub(super) fn seeds(&self) -> u64 {
        self.seeds
    }

    pub(super) fn laws(&self) -> Vec<&str> {
        if self.laws.is_empty() { laws::NAMES.to_vec() } else { self.laws.iter().map(String::as_str).collect() }
    }

    /// The worlds, each with its seed.
    pub(super) fn worlds(&self) -> Result<Vec<(Scenario, u64)>, Failure> {
        if let Some(count) = self.random {
            let first = self.seed.unwrap_or(0);
            return Ok((first..first.saturating_add(count)).map(|seed| (world::random(seed), seed)).collect());
        }
        let scenarios = self.files.iter().map(|file| Scenario::load(file)).collect::<Result<Vec<_>, _>>();
        let scenarios = scenarios.map_err(|error| Failure::Usage(error.to_string()))?;
        let seeds = |scenario: Scenario| {
            let first = self.seed.unwrap_or(scenario.seed);
            (first..first.saturating_add(self.seeds)).map(move |seed| (scenario.clone(), seed))
        };
        Ok(scenarios.into_iter().flat_map(seeds).collect())
    }
}

/// Every world under every law, on all cores; in the order of worlds, then of laws, however many threads there are.
pub(super) fn outcomes(worlds: &[(Scenario, u64)], laws: &[&str]) -> Result<Vec<Outcome>, Failure> {
    let next = AtomicUsize::new(0);
    let done: Mutex<BTreeMap<usize, Result<Vec<Outcome>, String>>> = Mutex::default();
    let threads = available_parallelism().map_or(1, usize::from).min(worlds.len());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let nth = next.fetch_add(1, Ordering::Relaxed);
                    let Some((scenario, seed)) = worlds.get(nth) else { return };
                    let of_world = silently(|| of_world(scenario, *seed, laws));
                    let mut done = done.lock();
                    done.insert(nth, of_world);
                    tell(done.len(), worlds.len());
                }
            });
        }
    });
    let all: Result<Vec<Vec<Outcome>>, String> = done.into_inner().into_values().collect();
    Ok(all.map_err(Failure::Run)?.into_iter().flatten().collect())
}

/// How far it is, to people who wait for it.
fn tell(done: usize, all: usize) {
    let mut err = io::stderr().lock();
    if all > 1 && err.is_terminal() {
        let end = if done == all { "\r\x1b[K".to_owned() } else { format!("\r{done} of {all} worlds") };
        // Whoever closed stderr does not want to know.
        let _ = err.write_all(end.as_bytes()).and_then(|()| err.flush());
    }
}

/// What a simulated member says is nobody's log.
fn silently<T>(call: impl FnOnce() -> T) -> T {
    tracing::subscriber::with_default(NoSubscriber::default(), call)
}

/// A world under each law.
pub(super) fn runs(scenario: &Scenario, seed: u64, laws: &[&str]) -> Result<Vec<Run>, Failure> {
    silently(|| laws.iter().map(|law| live(scenario, seed, law)).collect::<Result<_, _>>()).map_err(Failure::Run)
}

fn live(scenario: &Scenario, seed: u64, law: &str) -> Result<Run, String> {
    let run = world::run(scenario, seed, &mut *laws::law(law, scenario)?);
    run.map_err(|error| format!("{}: {error}", scenario.name))
}

fn of_world(scenario: &Scenario, seed: u64, laws: &[&str]) -> Result<Vec<Outcome>, String> {
    let oracle = live(scenario, seed, ORACLE)?;
    laws.iter()
        .map(
            |law| {
                if *law == ORACLE {
                    Ok(oracle.outcome(&oracle))
                } else {
                    Ok(live(scenario, seed, law)?.outcome(&oracle))
                }
            },
        )
        .collect()
}
