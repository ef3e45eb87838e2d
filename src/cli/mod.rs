//! The commands.

mod emulate;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Why a command ended badly: one line for the terminal, and an exit code.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The user's input is wrong; exit code 2.
    #[error("{0}")]
    Usage(String),
    /// Something outside failed; exit code 1.
    #[error("{0}")]
    Run(String),
}

/// Adaptive limit controller for services that share LLM provider accounts.
#[derive(Debug, Parser)]
#[command(name = "tidegate", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Emulate an LLM provider: real limits, real headers, real 429s.
    Emulate(emulate::EmulateArgs),
}

/// Parses the arguments and runs the command.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("tidegate: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let outcome = runtime.block_on(async {
        match cli.command {
            Command::Emulate(args) => emulate::emulate(args).await,
        }
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("tidegate: {failure}");
            match failure {
                Failure::Usage(_) => ExitCode::from(2),
                Failure::Run(_) => ExitCode::FAILURE,
            }
        }
    }
}
