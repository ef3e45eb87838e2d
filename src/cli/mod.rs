//! The commands.

mod audit;
mod change;
mod check;
mod completions;
mod demo;
mod emulate;
mod explain;
mod headers;
mod help;
mod limits;
mod overrides;
mod policy;
mod reach;
mod recording;
mod replay;
mod run;
mod schema;
mod signals;
mod simulate;
mod status;
mod table;
mod terminal;
mod token;
mod top;
mod transfer;

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

/// Why a command ended badly: one line for the terminal, and an exit code.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// The user's input is wrong; exit code 2.
    #[error("{0}")]
    Usage(String),
    /// Something outside failed; exit code 1.
    #[error("{0}")]
    Run(String),
    /// A signal ended it before it was done; exit code 130, as shells have it.
    #[error("interrupted")]
    Interrupted,
}

/// Adaptive limit controller for services that share LLM provider accounts.
#[derive(Debug, Parser)]
#[command(name = "tidegate", version, about, after_long_help = help::TIDEGATE)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the controller: read reports, compute thresholds, publish them.
    #[command(long_about = help::RUN_ABOUT, after_long_help = help::RUN)]
    Run(run::RunArgs),
    /// Who leads, who is there, how pools and etcd are; fails when something is wrong.
    #[command(long_about = help::STATUS_ABOUT, after_long_help = help::STATUS)]
    Status(status::StatusArgs),
    /// Pools, tenants, overrides and signals as they are now, on one live page.
    #[command(long_about = help::TOP_ABOUT, after_long_help = help::TOP)]
    Top(top::TopArgs),
    /// What tenants are granted, and term by term what is enforced.
    #[command(subcommand, long_about = help::LIMITS_ABOUT, after_long_help = help::LIMITS)]
    Limits(limits::LimitsCommand),
    /// The last decisions on a tenant: from what, why, and by whom.
    #[command(long_about = help::EXPLAIN_ABOUT, after_long_help = help::EXPLAIN)]
    Explain(explain::ExplainArgs),
    /// Put, clear and list operators' overrides.
    #[command(subcommand, long_about = help::OVERRIDE_ABOUT, after_long_help = help::OVERRIDE)]
    Override(overrides::OverrideCommand),
    /// Look at pools' policies in etcd, put them, take them away, compare them with a file.
    #[command(subcommand, long_about = help::POLICY_ABOUT, after_long_help = help::POLICY)]
    Policy(policy::PolicyCommand),
    /// List who changed what, and why.
    #[command(long_about = help::AUDIT_ABOUT, after_long_help = help::AUDIT)]
    Audit(audit::AuditArgs),
    /// Print all overrides and policies as one document.
    #[command(long_about = help::EXPORT_ABOUT, after_long_help = help::EXPORT)]
    Export(transfer::ExportArgs),
    /// Put the overrides and policies of a document, after showing what would change.
    #[command(long_about = help::IMPORT_ABOUT, after_long_help = help::IMPORT)]
    Import(transfer::ImportArgs),
    /// Check a configuration: all its mistakes, or what it says.
    #[command(long_about = help::CHECK_ABOUT, after_long_help = help::CHECK)]
    Check(check::CheckArgs),
    /// Print the configuration's JSON schema for editors, or a reference of every key.
    #[command(long_about = help::SCHEMA_ABOUT, after_long_help = help::SCHEMA)]
    Schema(schema::SchemaArgs),
    /// Make a token for a reporter, and its digest for the configuration.
    #[command(long_about = help::TOKEN_ABOUT, after_long_help = help::TOKEN)]
    Token(token::TokenArgs),
    /// Read a response's head: what its limits say, and what of it says nothing.
    #[command(long_about = help::tools::HEADERS_ABOUT, after_long_help = help::tools::HEADERS)]
    Headers(headers::HeadersArgs),
    /// Print a recording of responses as series: each meter as it moved.
    #[command(long_about = help::tools::REPLAY_ABOUT, after_long_help = help::tools::REPLAY)]
    Replay(replay::ReplayArgs),
    /// Emulate an LLM provider: real limits, real headers, real 429s.
    #[command(long_about = help::tools::EMULATE_ABOUT, after_long_help = help::tools::EMULATE)]
    Emulate(emulate::EmulateArgs),
    /// Live through scenarios in simulated worlds, under our law and others.
    #[command(long_about = help::tools::SIMULATE_ABOUT, after_long_help = help::tools::SIMULATE)]
    Simulate(simulate::SimulateArgs),
    /// Print scenarios and laws as a Markdown table.
    #[command(long_about = help::tools::COMPARE_ABOUT, after_long_help = help::tools::COMPARE)]
    Compare(simulate::CompareArgs),
    /// Show the closed loop with real processes, in about a minute.
    #[command(long_about = help::tools::DEMO_ABOUT, after_long_help = help::tools::DEMO)]
    Demo(demo::DemoArgs),
    /// Print completions for a shell.
    #[command(long_about = help::COMPLETIONS_ABOUT, after_long_help = help::COMPLETIONS)]
    Completions(completions::CompletionsArgs),
    /// One of the demo's services.
    #[command(hide = true)]
    DemoService(demo::ServiceArgs),
}

/// Parses the arguments and runs the command.
///
/// Exit codes: 0 done, 1 something outside failed, 2 wrong input, 130 interrupted.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = match log_filter(std::env::var("TIDEGATE_LOG").ok().as_deref()) {
        Ok(filter) => filter,
        Err(failure) => return failed(&failure),
    };
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_target(false).with_ansi(colour);
    // A log that nobody reads any more is no reason to stop.
    log.with_writer(std::io::stderr).log_internal_errors(false).init();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            return failed(&Failure::Run(format!("cannot start: {error}")));
        }
    };
    let outcome = runtime.block_on(async {
        match cli.command {
            Command::Run(args) => run::run(args).await,
            Command::Status(args) => status::status(args).await,
            Command::Top(args) => top::top(args).await,
            Command::Limits(command) => limits::limits(command).await,
            Command::Explain(args) => explain::explain(args).await,
            Command::Override(command) => overrides::overrides(command).await,
            Command::Policy(command) => policy::policies(command).await,
            Command::Audit(args) => audit::audit(args).await,
            Command::Export(args) => transfer::export(args).await,
            Command::Import(args) => transfer::import(args).await,
            Command::Check(args) => check::check(args).await,
            Command::Schema(args) => schema::schema(&args),
            Command::Token(args) => token::token(&args),
            Command::Completions(args) => completions::completions(&args),
            Command::Headers(args) => headers::headers(&args),
            Command::Replay(args) => replay::replay(&args),
            Command::Emulate(args) => emulate::emulate(args).await,
            Command::Simulate(args) => simulate::simulate(&args),
            Command::Compare(args) => simulate::compare(&args),
            Command::Demo(args) => demo::demo(args).await,
            Command::DemoService(args) => demo::service(args).await,
        }
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failed(&failure),
    }
}

/// Writes to stdout. Whoever closes it has read enough.
fn print(text: &str) -> Result<(), Failure> {
    is_read(text).map(drop)
}

/// Writes to stdout, and tells whether anybody still reads it.
fn is_read(text: &str) -> Result<bool, Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Failure::Run(format!("cannot write to stdout: {error}"))),
    }
}

/// Writes JSON for programs to stdout.
fn print_json(value: &impl serde::Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).map_err(|error| Failure::Run(error.to_string()))?;
    print(&format!("{text}\n"))
}

/// Says something beside the output, on stderr.
fn say(line: &str) {
    // Whoever closed stderr does not want to know.
    let _ = writeln!(io::stderr(), "tidegate: {line}");
}

fn failed(failure: &Failure) -> ExitCode {
    say(&failure.to_string());
    match failure {
        Failure::Usage(_) => ExitCode::from(2),
        Failure::Run(_) => ExitCode::FAILURE,
        Failure::Interrupted => ExitCode::from(130),
    }
}

/// How much is logged: a bare level is tidegate's own, the libraries below it say only what is wrong.
fn log_filter(wanted: Option<&str>) -> Result<EnvFilter, Failure> {
    let wanted = wanted.unwrap_or("info");
    let directives = match wanted.parse::<tracing::Level>() {
        Ok(level) => format!("warn,tidegate={level}"),
        Err(_) if wanted == "off" => "off".to_owned(),
        Err(_) => wanted.to_owned(),
    };
    EnvFilter::try_new(directives).map_err(|error| {
        Failure::Usage(format!(
            "TIDEGATE_LOG {wanted:?}: {error}; expected error, warn, info, debug, trace, off, or directives such as \
             tidegate=debug,h2=warn"
        ))
    })
}
