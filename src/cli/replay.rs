//! `tidegate replay`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::ops::ControlFlow;
use std::path::PathBuf;

use clap::Args;

use super::recording::{Response, for_each_row, plain};
use super::{Failure, print};
use crate::provider::Dialect;

#[derive(Debug, Args)]
pub(super) struct ReplayArgs {
    /// The recording, a response a line; - is standard input.
    #[arg(value_name = "FILE.jsonl")]
    file: PathBuf,
}

/// Host and model, and the lines of one series.
type Series = BTreeMap<(String, String), Vec<String>>;

pub(super) fn replay(args: &ReplayArgs) -> Result<(), Failure> {
    let mut series = Series::new();
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    let rows = for_each_row(&args.file, |row| {
        let host = row.host.clone().unwrap_or_default();
        let model = row.request.as_ref().and_then(|request| request.model.clone()).unwrap_or_default();
        let date = row.date.clone().unwrap_or_else(|| "-".to_owned());
        let response = Response::from(row);
        let finding = response.read(None);
        let class = finding.observation.class.as_str();
        let dialect = finding.dialect.map_or("-", Dialect::as_str);
        let date = plain(&date);
        let mut line = format!("  {date}  {} {class}  {dialect}", response.status);
        for reading in finding.readings() {
            let told = |n: Option<f64>| n.map_or_else(|| "?".to_owned(), |n| n.to_string());
            // Writing to a string does not fail.
            let _ = write!(line, "  {} {}/{}", reading.meter, told(reading.level), told(reading.limit));
            if let Some(seconds) = reading.reset_s {
                let _ = write!(line, " reset {seconds}s");
            }
        }
        if let Some(hold) = finding.hold {
            let _ = write!(line, "  hold {}s", hold.as_secs_f64());
        }
        series.entry((plain(&host).into_owned(), plain(&model).into_owned())).or_default().push(line);
        *counts.entry(class.to_owned()).or_default() += 1;
        for missing in &finding.observation.missing {
            *counts.entry(format!("missing: {}", missing.reason)).or_default() += 1;
        }
        Ok(ControlFlow::Continue(()))
    })?;
    let mut out = String::new();
    for ((host, model), lines) in &series {
        let _ = writeln!(out, "{host} {model}");
        for line in lines {
            let _ = writeln!(out, "{line}");
        }
    }
    let counts: Vec<String> = counts.iter().map(|(what, n)| format!("{n} {what}")).collect();
    let _ = writeln!(out, "{} series: {}", series.len(), counts.join(", "));
    print(&out)?;
    rows.all_read(&args.file)
}
