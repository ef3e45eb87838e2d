//! `tidegate token`: a token for a reporter, and its digest for the controller's configuration.

use std::fmt::Write as _;
use std::path::PathBuf;

use ring::rand::{SecureRandom, SystemRandom};
use serde::Serialize;

use super::{Failure, print, print_json};
use crate::client::ReportToken;
use crate::controller::access::TokenDigest;

/// More than anybody can try out.
const TOKEN_BYTES: usize = 32;

/// Arguments of `tidegate token`.
#[derive(Debug, clap::Args)]
pub(super) struct TokenArgs {
    /// The digest of the token in this file instead of a new one.
    #[arg(long, value_name = "FILE")]
    of: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Made {
    token: Option<String>,
    token_sha256: String,
}

/// Prints a token and its digest.
pub(super) fn token(args: &TokenArgs) -> Result<(), Failure> {
    let made = match &args.of {
        None => {
            let token = random()?;
            Made { token_sha256: TokenDigest::of(token.as_bytes()).to_string(), token: Some(token) }
        }
        Some(file) => {
            let wrong = |error: &dyn std::fmt::Display| Failure::Usage(format!("{}: {error}", file.display()));
            let text = std::fs::read_to_string(file).map_err(|error| wrong(&error))?;
            ReportToken::new(&text).map_err(|error| wrong(&error))?;
            let token = text.trim_end_matches(['\r', '\n']);
            Made { token: None, token_sha256: TokenDigest::of(token.as_bytes()).to_string() }
        }
    };
    if args.json {
        return print_json(&made);
    }
    let token = made.token.map(|token| format!("{token}\n")).unwrap_or_default();
    print(&format!("{token}token_sha256 = [\"{}\"]\n", made.token_sha256))
}

fn random() -> Result<String, Failure> {
    let mut bytes = [0; TOKEN_BYTES];
    let none = |_| Failure::Run("the operating system gives no random bytes".into());
    SystemRandom::new().fill(&mut bytes).map_err(none)?;
    Ok(bytes.iter().fold(String::new(), |mut token, byte| {
        // Writing to a string does not fail.
        let _ = write!(token, "{byte:02x}");
        token
    }))
}
