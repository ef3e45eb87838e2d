//! `tidegate compare`: scenarios × laws as Markdown, and a picture of each.

use std::fmt::Write as _;
use std::path::PathBuf;

use super::summary::{EFFICIENCY, Of, THROTTLED, UNFAIRNESS, groups, mean, quantile};
use super::worlds::{WorldsArgs, outcomes};
use super::{RANDOM_HEAD, chart, random_rows};
use crate::cli::{Failure, print};
use crate::sim::world::Outcome;

/// Arguments of `tidegate compare`.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct CompareArgs {
    #[command(flatten)]
    worlds: WorldsArgs,
    /// Draw each world of its first seed into this folder.
    #[arg(long, value_name = "FOLDER")]
    pictures: Option<PathBuf>,
}

/// Prints the table.
pub(in crate::cli) fn compare(args: &CompareArgs) -> Result<(), Failure> {
    let (worlds, laws) = (args.worlds.worlds()?, args.worlds.laws());
    if let Some(folder) = &args.pictures {
        std::fs::create_dir_all(folder)
            .map_err(|error| Failure::Run(format!("{}: cannot be made: {error}", folder.display())))?;
    }
    let outcomes = outcomes(&worlds, &laws)?;
    if let Some(folder) = &args.pictures {
        let mut drawn: Option<&str> = None;
        for (scenario, seed) in &worlds {
            if drawn != Some(&scenario.name) {
                chart::write(&folder.join(format!("{}.svg", scenario.name)), scenario, *seed, &laws)?;
            }
            drawn = Some(&scenario.name);
        }
    }
    if args.worlds.is_random() {
        return print(&markdown(&RANDOM_HEAD, &random_rows(&outcomes)));
    }
    let mut text = markdown(&[&["scenario"], &laws[..]].concat(), &rows(&outcomes, &laws));
    text += "\nEach cell: efficiency / 429s / unfairness, in percent; the mean of all seeds.\n\n";
    text += &markdown(&SUMMARY_HEAD, &summary_rows(&outcomes));
    print(&text)
}

/// A line for each scenario.
fn rows(outcomes: &[Outcome], laws: &[&str]) -> Vec<Vec<String>> {
    let cells = groups(outcomes, |outcome| (&outcome.scenario, &outcome.law));
    cells
        .chunks(laws.len())
        .map(|row| {
            let cell = |(_, group): &((&str, &str), Vec<&Outcome>)| {
                let part = |of: Of| 100.0 * mean(group, of).unwrap_or(0.0);
                let efficiency = part(|outcome| Some(outcome.efficiency));
                format!("{efficiency:.1} / {:.2} / {:.1}", part(THROTTLED), part(UNFAIRNESS))
            };
            let name = row.first().map_or("", |((scenario, _), _)| scenario);
            std::iter::once(name.to_owned()).chain(row.iter().map(cell)).collect()
        })
        .collect()
}

const SUMMARY_HEAD: [&str; 7] = ["law", "efficiency", "worst", "429s", "median", "worst", "unfairness"];

/// A line for each law, over all runs.
fn summary_rows(outcomes: &[Outcome]) -> Vec<Vec<String>> {
    let row = |((_, law), group): ((&str, &str), Vec<&Outcome>)| {
        let percent = |of: Option<f64>| format!("{:.2}", 100.0 * of.unwrap_or(0.0));
        vec![
            law.to_owned(),
            percent(mean(&group, EFFICIENCY)),
            percent(quantile(&group, 0.0, EFFICIENCY)),
            percent(mean(&group, THROTTLED)),
            percent(quantile(&group, 0.5, THROTTLED)),
            percent(quantile(&group, 1.0, THROTTLED)),
            percent(mean(&group, UNFAIRNESS)),
        ]
    };
    groups(outcomes, |outcome| ("", &outcome.law)).into_iter().map(row).collect()
}

fn markdown(head: &[&str], rows: &[Vec<String>]) -> String {
    let mut text = format!("| {} |\n|{}\n", head.join(" | "), "---|".repeat(head.len()));
    for row in rows {
        let _ = writeln!(text, "| {} |", row.join(" | "));
    }
    text
}
