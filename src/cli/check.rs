//! `tidegate check`: what is wrong with a configuration, or what it says; on request, what Prometheus would tell it.

use std::collections::BTreeSet;
use std::path::PathBuf;

mod asked;
mod sizing;

use super::reach::access_of;
use super::table::counted;
use super::{Failure, print};
use crate::config::{Config, Mistake, Mistakes};
use crate::controller::source::Prometheus;
use crate::quota::Meter;
use sizing::{Members, advice};

/// So many names stand in the summary's line.
const NAMED_MAX: usize = 8;

/// Arguments of `tidegate check`.
#[derive(Debug, clap::Args)]
pub(super) struct CheckArgs {
    /// The configuration file; - reads standard input.
    #[arg(value_name = "FILE", default_value = "config/tidegate.toml")]
    file: PathBuf,
    /// Ask Prometheus each query once, and show which pool and tenant each of its series would feed; ask etcd how many
    /// processes use each pool. Nothing else is asked.
    #[arg(long)]
    ask: bool,
    /// How many processes will use each pool: a threshold too small to be shared out among them is a warning.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    members: Option<u32>,
    /// Print the mistakes as a JSON array, which is empty when there are none; with --ask what was answered.
    #[arg(long)]
    json: bool,
}

/// Prints the mistakes, or one line that says what was understood.
pub(super) async fn check(args: CheckArgs) -> Result<(), Failure> {
    let mut checked = Config::load(&args.file);
    if let Ok(config) = &mut checked {
        let file = args.file.display().to_string();
        let mut found = absent(config, &file);
        let members = match args.members {
            Some(members) => Members::Planned(members),
            None if args.ask => asked::members(config, &file, &mut found).await,
            None => Members::Unknown,
        };
        found.extend(advice(&config.controller.pools, &file, &members));
        config.warnings.list.extend(found);
        if args.ask {
            return asked::ask(config, &members, args.json, &file).await;
        }
    }
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

/// What the files are that it names and that are not good here: perhaps they are where it is to run.
fn absent(config: &Config, file: &str) -> Vec<Mistake> {
    let tls = config.controller.tls.as_ref().and_then(|tls| tls.check().err());
    let etcd = config.etcd.as_ref().and_then(|etcd| access_of(etcd).err()).map(|failure| failure.to_string());
    let prometheus = config.controller.prometheus.as_ref().and_then(|prometheus| Prometheus::new(prometheus).err());
    let named = [("controller.tls", tls), ("etcd", etcd), ("prometheus", prometheus)].into_iter();
    let absent = named.filter_map(|(key, error)| {
        Some(Mistake::of_what_it_names(file, key, format!("{}: here it would not start", error?)))
    });
    absent.collect()
}

/// How many mistakes there are.
pub(super) fn count(mistakes: &Mistakes) -> String {
    counted(mistakes.errors(), "mistake")
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
        count => format!(" of {}", counted(count, "reporter")),
    };
    let pools_named = pools.iter().map(|pool| format!("{}: {}", pool.id, pool.dialect));
    let queries = config.controller.prometheus.as_ref().map_or_else(String::new, |prometheus| {
        format!(", {} to Prometheus at {}", queries(prometheus.queries.len()), prometheus.url)
    });
    format!(
        "{} ({}), {}, {} ({}), reports{of} at {}{tls}, {etcd}{queries}",
        counted(pools.len(), "pool"),
        some(pools_named),
        counted(tenants, "tenant"),
        counted(meters.len(), "meter"),
        some(meters.iter().map(Meter::to_string)),
        config.controller.listen,
    )
}

fn queries(count: usize) -> String {
    if count == 1 { "1 query".to_owned() } else { format!("{count} queries") }
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
