//! `tidegate simulate` and `tidegate compare`: scenarios under laws, and how each did.

mod chart;
mod compare;
mod summary;
mod worlds;

use std::path::PathBuf;

pub(super) use compare::{CompareArgs, compare};

use self::summary::{EFFICIENCY, JAIN, MISSED, OTHERS, Of, THROTTLED, UNFAIRNESS, groups, mean, quantile};
use self::worlds::{WorldsArgs, outcomes};
use super::table::{NONE, table};
use super::{Failure, print, print_json, say};
use crate::sim::world::{Outcome, Scenario};

/// Arguments of `tidegate simulate`.
#[derive(Debug, clap::Args)]
pub(super) struct SimulateArgs {
    #[command(flatten)]
    worlds: WorldsArgs,
    /// Draw the first world, second by second under each law: an SVG file.
    #[arg(long, value_name = "OUT.svg", value_parser = chart::svg)]
    plot: Option<PathBuf>,
    /// Print JSON: an array, an object for each run.
    #[arg(long)]
    json: bool,
}

/// Runs everything, prints it, and fails when an outcome is outside its file's bands.
pub(super) fn simulate(args: &SimulateArgs) -> Result<(), Failure> {
    let (worlds, laws) = (args.worlds.worlds()?, args.worlds.laws());
    let outcomes = outcomes(&worlds, &laws)?;
    if args.json {
        print_json(&outcomes)?;
    } else if args.worlds.is_random() {
        print(&table(&RANDOM_HEAD, &random_rows(&outcomes)))?;
    } else {
        print(&table(&HEAD, &rows(&outcomes, args.worlds.seeds())))?;
    }
    let outside = say_outside(&worlds, &outcomes);
    if let (Some(path), Some((scenario, seed))) = (&args.plot, worlds.first()) {
        chart::write(path, scenario, *seed, &laws)?;
    }
    if outside == 0 { Ok(()) } else { Err(Failure::Run(format!("{outside} numbers are outside their bands"))) }
}

/// Says which outcomes are outside of what their files accept; how many numbers.
fn say_outside(worlds: &[(Scenario, u64)], outcomes: &[Outcome]) -> usize {
    let mut outside = 0;
    for outcome in outcomes {
        let scenario = worlds.iter().find(|(scenario, _)| scenario.name == outcome.scenario);
        let bands = scenario.and_then(|(scenario, _)| scenario.accept.get(&outcome.law));
        for line in bands.into_iter().flat_map(|bands| bands.outside(outcome)) {
            say(&format!("{} under {}, seed {}: {line}", outcome.scenario, outcome.law, outcome.seed));
            outside += 1;
        }
    }
    outside
}

const HEAD: [&str; 15] = [
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
    "URGENT",
    "MISSED",
    "CONVERGED",
    "OTHERS",
    "ANSWER",
];

fn percent(of: Option<f64>) -> String {
    of.map_or_else(|| NONE.to_owned(), |part| format!("{:.2} %", 100.0 * part))
}

fn decimal(of: Option<f64>) -> String {
    of.map_or_else(|| NONE.to_owned(), |x| format!("{x:.3}"))
}

/// A line for each run; of several seeds, for each law the mean.
fn rows(outcomes: &[Outcome], seeds: u64) -> Vec<Vec<String>> {
    let row = |((scenario, law), group): ((&str, &str), Vec<&Outcome>)| {
        let part = |of: Of| percent(mean(&group, of));
        let seconds = |of: Of| mean(&group, of).map_or_else(|| NONE.to_owned(), |mean| format!("{mean:.1} s"));
        vec![
            scenario.to_owned(),
            law.to_owned(),
            if seeds == 1 { group[0].seed.to_string() } else { format!("{} of them", group.len()) },
            part(|o| Some(o.efficiency)),
            part(THROTTLED),
            part(|o| o.throttled_after_event),
            part(UNFAIRNESS),
            decimal(mean(&group, JAIN)),
            seconds(|o| Some(o.wait_p50_s)),
            seconds(|o| Some(o.wait_p99_s)),
            mean(&group, |o| Some(o.urgent_wait_p99_s)).map_or_else(|| NONE.to_owned(), |mean| format!("{mean:.2} s")),
            part(MISSED),
            seconds(|o| o.convergence_s),
            part(OTHERS),
            seconds(|o| Some(o.answer_p95_s)),
        ]
    };
    groups(outcomes, |outcome| (&outcome.scenario, &outcome.law)).into_iter().map(row).collect()
}

const RANDOM_HEAD: [&str; 11] =
    ["LAW", "WORLDS", "EFFICIENCY", "P10", "429S", "MEDIAN", "P90", "UNFAIR", "JAIN", "MISSED", "OTHERS"];

/// A line for each law.
fn random_rows(outcomes: &[Outcome]) -> Vec<Vec<String>> {
    let row = |((_, law), group): ((&str, &str), Vec<&Outcome>)| {
        vec![
            law.to_owned(),
            group.len().to_string(),
            percent(mean(&group, EFFICIENCY)),
            percent(quantile(&group, 0.1, EFFICIENCY)),
            percent(mean(&group, THROTTLED)),
            percent(quantile(&group, 0.5, THROTTLED)),
            percent(quantile(&group, 0.9, THROTTLED)),
            percent(mean(&group, UNFAIRNESS)),
            decimal(mean(&group, JAIN)),
            percent(mean(&group, MISSED)),
            percent(mean(&group, OTHERS)),
        ]
    };
    groups(outcomes, |outcome| ("", &outcome.law)).into_iter().map(row).collect()
}
