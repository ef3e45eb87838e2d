//! `tidegate headers`.

use std::fmt::Write as _;
use std::io::{self, BufWriter, Write};
use std::ops::ControlFlow;
use std::path::PathBuf;

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};

use super::recording::{Finding, Response, for_each_row, plain, read_all};
use super::{Failure, print};
use crate::config::Config;
use crate::provider::{Dialect, LimitOf, Refill, RemainingCounts, Semantics};
use crate::quota::PoolId;

#[derive(Debug, Args)]
pub(super) struct HeadersArgs {
    /// What curl -i printed; - is standard input.
    #[arg(value_name = "FILE", default_value = "-")]
    file: PathBuf,
    /// A recording instead, a response a line.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["file", "json"])]
    jsonl: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Read it as this dialect, whatever it looks like.
    #[arg(long, value_name = "NAME", value_parser = dialects())]
    dialect: Option<Dialect>,
    /// Read it as a pool of this controller's configuration does, whose dialect may be one that the file teaches.
    #[arg(long, value_name = "FILE", requires = "pool", conflicts_with = "dialect")]
    config: Option<PathBuf>,
    /// Which pool of --config.
    #[arg(long, value_name = "POOL", requires = "config")]
    pool: Option<PoolId>,
}

impl HeadersArgs {
    /// The dialect that was named, by itself or by a pool.
    fn named(&self) -> Result<Option<Dialect>, Failure> {
        let (Some(file), Some(id)) = (&self.config, &self.pool) else { return Ok(self.dialect) };
        let config = Config::load(file).map_err(|mistakes| Failure::Usage(mistakes.to_string()))?;
        let pool = config.controller.pools.iter().find(|pool| pool.id == *id);
        let pool = pool.ok_or_else(|| Failure::Usage(format!("{}: has no [pools.{id}]", file.display())))?;
        Ok(Some(pool.dialect))
    }
}

fn dialects() -> impl TypedValueParser<Value = Dialect> {
    PossibleValuesParser::new(Dialect::ALL.map(Dialect::as_str)).try_map(|name| name.parse::<Dialect>())
}

pub(super) fn headers(args: &HeadersArgs) -> Result<(), Failure> {
    let dialect = args.named()?;
    if let Some(path) = &args.jsonl {
        let mut out = BufWriter::new(io::stdout().lock());
        let mut open = true;
        let rows = for_each_row(path, |row| {
            let finding = Response::from(row).read(dialect).shown();
            let line = serde_json::to_string(&finding).map_err(|error| Failure::Run(error.to_string()))?;
            open = !written(writeln!(out, "{line}"))?;
            Ok(if open { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
        })?;
        return if open && !written(out.flush())? { rows.all_read(path) } else { Ok(()) };
    }
    let text = read_all(&args.file)?;
    let response = Response::parse(&text).map_err(Failure::Usage)?;
    let finding = response.read(dialect);
    if args.json {
        let json = serde_json::to_string(&finding.shown()).map_err(|error| Failure::Run(error.to_string()))?;
        return print(&format!("{json}\n"));
    }
    print(&told(&response, &finding))
}

/// Whether nobody reads any more; whoever closes the output has read enough.
fn written(result: io::Result<()>) -> Result<bool, Failure> {
    match result {
        Ok(()) => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(true),
        Err(error) => Err(Failure::Run(format!("cannot write to stdout: {error}"))),
    }
}

/// Line by line, then all together.
fn told(response: &Response, finding: &Finding) -> String {
    let mut out = String::new();
    let observation = &finding.observation;
    let missing = || observation.missing.iter().chain(&finding.unread.foreign);
    for (name, value) in &response.headers {
        let became = match () {
            () if missing().any(|missing| missing.header == *name) => {
                let reasons = missing().filter(|missing| missing.header == *name);
                reasons.map(|missing| format!("missing: {}", missing.reason.explained())).collect::<Vec<_>>().join("; ")
            }
            () if finding.unread.unknown.contains(name) => "unread: no rule takes it".to_owned(),
            () if finding.unread.taken.contains(name) => "read".to_owned(),
            () => continue,
        };
        line(&mut out, format_args!("{}: {}", plain(name), plain(&String::from_utf8_lossy(value))));
        line(&mut out, format_args!("    {became}"));
    }
    if !out.is_empty() {
        out.push('\n');
    }
    let dialect = finding.dialect.map_or("not told by anything", Dialect::as_str);
    line(&mut out, format_args!("dialect  {dialect}"));
    line(&mut out, format_args!("status   {}: {}", response.status, observation.class.as_str()));
    if let Some(scope) = finding.scope() {
        line(&mut out, format_args!("refused  by {scope}"));
    }
    for reading in finding.readings() {
        let parts = [("limit", reading.limit), ("remaining", reading.remaining), ("level", reading.level)];
        let mut told: Vec<String> = parts.into_iter().filter_map(|(name, n)| Some(format!("{name} {}", n?))).collect();
        told.extend(reading.reset_s.map(|seconds| format!("reset {seconds} s")));
        line(&mut out, format_args!("meter    {}: {}", reading.meter, told.join(", ")));
    }
    match finding.hold {
        Some(hold) => line(&mut out, format_args!("hold     {} s", hold.as_secs_f64())),
        None => line(&mut out, format_args!("hold     nothing says to wait")),
    }
    if let Some(dialect) = finding.dialect {
        line(&mut out, format_args!("meaning  {}", meaning(dialect.semantics())));
    }
    out
}

/// What the dialect's words mean.
fn meaning(semantics: &Semantics) -> String {
    let refill = match semantics.refill {
        Refill::Continuous => "refills all the time",
        Refill::FixedWindow => "refills when a window begins",
    };
    let remaining = match semantics.remaining {
        RemainingCounts::This => "remaining counts this request",
        RemainingCounts::Lately => "remaining lags",
        RemainingCounts::About => "remaining is approximate",
    };
    let of = match semantics.limit_of {
        LimitOf::Model => "a limit for each model",
        LimitOf::Account => "a limit for the account",
        LimitOf::Deployment => "a limit for the deployment",
    };
    let hidden: Vec<String> = semantics.hidden.iter().map(ToString::to_string).collect();
    let hidden = if hidden.is_empty() { String::new() } else { format!("; in no header: {}", hidden.join(", ")) };
    format!("{refill}; {remaining}; {of}{hidden}")
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    let written = writeln!(out, "{text}");
    debug_assert!(written.is_ok(), "writing to a string does not fail");
}
