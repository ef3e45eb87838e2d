//! `tidegate audit`: who changed what, from what to what, and why.

use jiff::SignedDuration;

use super::overrides::parse_span;
use super::reach::{Reach, ReachArgs};
use super::table::{NONE, table};
use super::{Failure, print, print_json, say};
use crate::clock::{Clock, SystemClock, UnixMillis};
use crate::plan::Audit;
use crate::plan::keyspace::Key;
use crate::store::Select;

/// Arguments of `tidegate audit`.
#[derive(Debug, clap::Args)]
pub(super) struct AuditArgs {
    /// How far back, such as 2h or 2d; the leader keeps 30 days.
    #[arg(long, value_name = "SPAN", value_parser = parse_span, default_value = "30d")]
    since: SignedDuration,
    /// Print a JSON array.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reach: ReachArgs,
}

/// Prints the audit, the oldest first.
pub(super) async fn audit(args: AuditArgs) -> Result<(), Failure> {
    let reach = Reach::open(&args.reach).await?;
    let wall = SystemClock::new().wall();
    let since_ms = u64::try_from(args.since.as_millis()).unwrap_or(u64::MAX);
    let from = UnixMillis(wall.0.saturating_sub(since_ms));
    let mut found: Vec<Audit> = Vec::new();
    for entry in reach.list(&[Select::Prefix(reach.keys.audits())]).await?.entries {
        match (reach.keys.parse(&entry.key), serde_json::from_slice(&entry.value)) {
            (Some(Key::Audit { at, .. }), _) if at < from => {}
            (Some(Key::Audit { .. }), Ok(audit)) => found.push(audit),
            _ => say(&format!("warning: {} is no audit record", entry.key.escape_debug())),
        }
    }
    if args.json {
        return print_json(&found);
    }
    if found.is_empty() {
        return print("no changes\n");
    }
    print(&table(&["TIME", "BY", "WHAT", "KEY", "FROM", "TO", "REASON"], &found.iter().map(row).collect::<Vec<_>>()))
}

fn row(audit: &Audit) -> Vec<String> {
    let record =
        |value: &Option<serde_json::Value>| value.as_ref().map_or_else(|| NONE.to_owned(), ToString::to_string);
    vec![
        format!("{:.0}", audit.at),
        audit.by.clone(),
        audit.what.as_str().to_owned(),
        audit.key.clone(),
        record(&audit.from),
        record(&audit.to),
        audit.reason.clone(),
    ]
}
