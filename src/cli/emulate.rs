//! `tidegate emulate`: an LLM provider to test against.

/// Arguments of `tidegate emulate`.
#[derive(Debug, clap::Args)]
pub struct EmulateArgs {}

/// Serves until a signal.
pub async fn emulate(_args: EmulateArgs) -> Result<(), super::Failure> {
    Ok(())
}
