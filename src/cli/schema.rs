//! `tidegate schema`: the configuration's JSON schema, or its reference file.

use super::{Failure, print};
use crate::config;

/// Arguments of `tidegate schema`.
#[derive(Debug, clap::Args)]
pub(super) struct SchemaArgs {
    /// Print a TOML file with every key, its text, range, default and an example instead.
    #[arg(long)]
    reference: bool,
}

/// Prints the schema or the reference.
pub(super) fn schema(args: &SchemaArgs) -> Result<(), Failure> {
    if args.reference {
        return print(&config::reference());
    }
    let schema = serde_json::to_string_pretty(&config::schema()).map_err(|error| Failure::Run(error.to_string()))?;
    print(&format!("{schema}\n"))
}
