//! `tidegate simulate`: lives through scenarios under laws, and says how each did.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::available_parallelism;

use parking_lot::Mutex;
use tracing::subscriber::NoSubscriber;

use super::table::{NONE, table};
use super::{Failure, print, print_json, say};
use crate::sim::world::{self, Outcome, Run, Scenario, laws};

const ORACLE: &str = laws::NAMES[0];
const SEEDS_MAX: u64 = 10_000;

/// Arguments of `tidegate simulate`.
#[derive(Debug, clap::Args)]
pub(super) struct SimulateArgs {
    /// Scenario files.
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// A law; repeat it for more. All of them when absent.
    #[arg(long = "law", value_name = "NAME", value_parser = clap::builder::PossibleValuesParser::new(laws::NAMES))]
    laws: Vec<String>,
    /// The first seed, instead of the file's.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// So many seeds, one after the other.
    #[arg(long, value_name = "K", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=SEEDS_MAX))]
    seeds: u64,
    /// Print JSON: an array, an object for each run.
    #[arg(long)]
    json: bool,
}

/// Runs everything, prints it, and fails when an outcome is outside its file's bands.
pub(super) fn simulate(args: &SimulateArgs) -> Result<(), Failure> {
    let scenarios = args.files.iter().map(|file| Scenario::load(file)).collect::<Result<Vec<_>, _>>();
    let scenarios = scenarios.map_err(|error| Failure::Usage(error.to_string()))?;
    let laws: Vec<&str> =
        if args.laws.is_empty() { laws::NAMES.to_vec() } else { args.laws.iter().map(String::as_str).collect() };
    let seeds = |scenario: &Scenario| {
        let first = args.seed.unwrap_or(scenario.seed);
        first..first.saturating_add(args.seeds)
    };
    let worlds: Vec<(&Scenario, u64)> = scenarios.iter().flat_map(|s| seeds(s).map(move |seed| (s, seed))).collect();
    let outcomes = outcomes(&worlds, &laws)?;
    if args.json {
        print_json(&outcomes)?;
    } else {
        print(&table(&HEAD, &rows(&outcomes, args.seeds)))?;
    }
    let mut outside = 0;
    for outcome in &outcomes {
        let bands = scenarios.iter().find(|s| s.name == outcome.scenario).and_then(|s| s.accept.get(&outcome.law));
        for line in bands.into_iter().flat_map(|bands| bands.outside(outcome)) {
            say(&format!("{} under {}, seed {}: {line}", outcome.scenario, outcome.law, outcome.seed));
            outside += 1;
        }
    }
    if outside == 0 { Ok(()) } else { Err(Failure::Run(format!("{outside} numbers are outside their bands"))) }
}

/// Every world under every law, on all cores; in the order of worlds, then of laws, however many threads there are.
fn outcomes(worlds: &[(&Scenario, u64)], laws: &[&str]) -> Result<Vec<Outcome>, Failure> {
    let next = AtomicUsize::new(0);
    let done: Mutex<BTreeMap<usize, Result<Vec<Outcome>, String>>> = Mutex::default();
    let threads = available_parallelism().map_or(1, usize::from).min(worlds.len());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let nth = next.fetch_add(1, Ordering::Relaxed);
                    let Some((scenario, seed)) = worlds.get(nth).copied() else { return };
                    // What a simulated member says is nobody's log.
                    let silent = NoSubscriber::default();
                    let of_world = tracing::subscriber::with_default(silent, || of_world(scenario, seed, laws));
                    done.lock().insert(nth, of_world);
                }
            });
        }
    });
    let all: Result<Vec<Vec<Outcome>>, String> = done.into_inner().into_values().collect();
    Ok(all.map_err(Failure::Run)?.into_iter().flatten().collect())
}

fn of_world(scenario: &Scenario, seed: u64, laws: &[&str]) -> Result<Vec<Outcome>, String> {
    let live = |law: &str| -> Result<Run, String> {
        let run = world::run(scenario, seed, &mut *laws::law(law, scenario)?);
        run.map_err(|error| format!("{}: {error}", scenario.name))
    };
    let oracle = live(ORACLE)?;
    laws.iter()
        .map(|law| if *law == ORACLE { Ok(oracle.outcome(&oracle)) } else { Ok(live(law)?.outcome(&oracle)) })
        .collect()
}

const HEAD: [&str; 13] = [
    "SCENARIO",
    "LAW",
    "SEED",
    "EFFICIENCY",
    "429S",
    "AFTER",
    "UNFAIR",
    "JAIN",
    "P50",
    "P99",
    "MISSED",
    "CONVERGED",
    "OTHERS",
];

/// A line for each run; of several seeds, for each law the mean.
fn rows(outcomes: &[Outcome], seeds: u64) -> Vec<Vec<String>> {
    let mut groups: Vec<(String, Vec<&Outcome>)> = Vec::new();
    for outcome in outcomes {
        let key = format!("{}\0{}", outcome.scenario, outcome.law);
        match groups.iter_mut().find(|(known, _)| *known == key) {
            Some((_, group)) => group.push(outcome),
            None => groups.push((key, vec![outcome])),
        }
    }
    groups.into_iter().map(|(_, group)| row(&group, seeds)).collect()
}

#[allow(clippy::cast_precision_loss, reason = "a number of seeds")]
fn row(group: &[&Outcome], seeds: u64) -> Vec<String> {
    let mean = |of: &dyn Fn(&Outcome) -> Option<f64>| {
        let all: Vec<f64> = group.iter().filter_map(|outcome| of(outcome)).collect();
        (!all.is_empty()).then(|| all.iter().sum::<f64>() / all.len() as f64)
    };
    let percent = |of: &dyn Fn(&Outcome) -> Option<f64>| {
        mean(of).map_or_else(|| NONE.to_owned(), |mean| format!("{:.2} %", 100.0 * mean))
    };
    let seconds =
        |of: &dyn Fn(&Outcome) -> Option<f64>| mean(of).map_or_else(|| NONE.to_owned(), |mean| format!("{mean:.1} s"));
    let first = group[0];
    vec![
        first.scenario.clone(),
        first.law.clone(),
        if seeds == 1 { first.seed.to_string() } else { format!("{} of them", group.len()) },
        percent(&|o| Some(o.efficiency)),
        percent(&|o| Some(o.throttled_ratio)),
        percent(&|o| o.throttled_after_event),
        percent(&|o| Some(o.unfairness)),
        mean(&|o| Some(o.jain)).map_or_else(|| NONE.to_owned(), |mean| format!("{mean:.3}")),
        seconds(&|o| Some(o.wait_p50_s)),
        seconds(&|o| Some(o.wait_p99_s)),
        percent(&|o| Some(o.slo_miss_ratio)),
        seconds(&|o| o.convergence_s),
        percent(&|o| o.others_kept),
    ]
}
