//! `tidegate check`: what is wrong with a configuration, or what it says.

use std::collections::BTreeSet;
use std::path::PathBuf;

use super::{Failure, print};
use crate::config::{Config, Mistakes};
use crate::quota::Meter;

/// So many names stand in the summary's line.
const NAMED_MAX: usize = 8;

/// Arguments of `tidegate check`.
#[derive(Debug, clap::Args)]
pub(super) struct CheckArgs {
    /// The configuration file; - reads standard input.
    #[arg(value_name = "FILE", default_value = "config/tidegate.toml")]
    file: PathBuf,
    /// Print the mistakes as a JSON array; it is empty when there are none.
    #[arg(long)]
    json: bool,
}

/// Prints the mistakes, or one line that says what was understood.
pub(super) fn check(args: &CheckArgs) -> Result<(), Failure> {
    let checked = Config::load(&args.file);
    let mistakes = match &checked {
        Ok(config) => &config.warnings,
        Err(mistakes) => mistakes,
    };
    if args.json {
        let list = serde_json::to_string_pretty(&mistakes.list).map_err(|error| Failure::Run(error.to_string()))?;
        print(&format!("{list}\n"))?;
    } else if !mistakes.list.is_empty() {
        print(&format!("{mistakes}\n"))?;
    }
    match &checked {
        Ok(_) if args.json => Ok(()),
        Ok(config) => print(&format!("{}: good: {}\n", args.file.display(), understood(config))),
        Err(mistakes) => Err(Failure::Usage(count(mistakes))),
    }
}

/// How many mistakes there are.
pub(super) fn count(mistakes: &Mistakes) -> String {
    number(mistakes.errors(), "mistake")
}

fn understood(config: &Config) -> String {
    let pools = &config.controller.pools;
    let tenants: usize = pools.iter().map(|pool| pool.tenants.len()).sum();
    let meters: BTreeSet<Meter> = pools.iter().flat_map(|pool| pool.capacity.keys().copied()).collect();
    let etcd = config.etcd.as_ref().map_or_else(
        || "no etcd (records in this process's memory)".to_owned(),
        |etcd| format!("etcd at {}", some(etcd.endpoints.iter().cloned())),
    );
    let tls = if config.controller.tls.is_some() { " over TLS" } else { "" };
    let of = match config.controller.reporters.len() {
        0 => String::new(),
        count => format!(" of {}", number(count, "reporter")),
    };
    let pools_named = pools.iter().map(|pool| format!("{}: {}", pool.id, pool.dialect));
    format!(
        "{} ({}), {}, {} ({}), reports{of} at {}{tls}, {etcd}",
        number(pools.len(), "pool"),
        some(pools_named),
        number(tenants, "tenant"),
        number(meters.len(), "meter"),
        some(meters.iter().map(Meter::to_string)),
        config.controller.listen,
    )
}

fn number(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// The first few of a list.
fn some(names: impl ExactSizeIterator<Item = String>) -> String {
    let more = names.len().saturating_sub(NAMED_MAX);
    let mut first: Vec<String> = names.take(NAMED_MAX).collect();
    if more > 0 {
        first.push(format!("and {more} more"));
    }
    first.join(", ")
}
