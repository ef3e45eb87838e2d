//! `tidegate explain`: the last steps of a tenant: what the leader was told, what it decided, and who decided it.

use std::fmt::Write as _;

use super::limits::parse_tenant;
use super::overrides::{describe, tenant_name};
use super::reach::{LeaderArgs, Reach, ReachArgs};
use super::table::{NONE, number, span, table};
use super::{Failure, print, print_json};
use crate::clock::{Clock, SystemClock, UnixMillis};
use crate::controller::history::{Decided, DecidedBy, Explained, MeterDecided, ReadingTold, StepTold};
use crate::controller::law::{Headers, Mode};
use crate::quota::{Grantee, PoolId};

/// More of what lies idle is lent than is worth a line.
const LENT_SAID: f64 = 1.005;

/// Arguments of `tidegate explain`.
#[derive(Debug, clap::Args)]
pub(super) struct ExplainArgs {
    /// The pool.
    #[arg(value_name = "POOL")]
    pool: PoolId,
    /// The tenant, or @default.
    #[arg(value_name = "TENANT", value_parser = parse_tenant)]
    tenant: Grantee,
    /// So many steps, the last ones; the leader remembers 64.
    #[arg(long, value_name = "STEPS", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=64))]
    last: u16,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reach: ReachArgs,
    #[command(flatten)]
    leader: LeaderArgs,
}

/// Asks the leader, and prints what it says; the oldest step first.
pub(super) async fn explain(args: ExplainArgs) -> Result<(), Failure> {
    let http = args.leader.http()?;
    let reach = Reach::open(&args.reach).await?;
    let nobody = || {
        let instead = format!("tidegate limits get {} --effective", args.pool);
        Failure::Run(format!("no leader: members brake by themselves and fall to the safe thresholds; see `{instead}`"))
    };
    let leader = reach.leader().await?.ok_or_else(nobody)?;
    let mut told: Explained = leader.ask(&http, &format!("/v1/explain/{}/{}", args.pool, args.tenant)).await?;
    let surplus = told.steps.len().saturating_sub(usize::from(args.last));
    told.steps.drain(..surplus);
    if args.json { print_json(&told) } else { print(&text(&told, SystemClock::new().wall())) }
}

fn text(told: &Explained, wall: UnixMillis) -> String {
    let mut text = format!("{} {}\n", told.pool, tenant_name(&told.tenant));
    if !told.mode.enforces() {
        let _ = writeln!(text, "mode {}: none of it is enforced", told.mode.as_str());
    }
    for (target, record) in &told.overrides {
        let _ = writeln!(text, "override in force  {target}: {}", describe(record, wall));
    }
    if let Some(queued) = told.queued {
        let _ = writeln!(text, "demand signal      {} requests wait elsewhere to be sent", number(queued));
    }
    for (target, record) in &told.elsewhere {
        let _ = writeln!(text, "taken out before   {target}: {}", describe(record, wall));
    }
    let now = told.now.iter().map(|(meter, of)| {
        vec![meter.to_string(), number(of.base.rate), number(of.effective.rate), by(of.by).to_owned()]
    });
    let _ = write!(text, "\n{}", table(&["METER", "BASE NOW", "EFFECTIVE", "DECIDED BY"], &now.collect::<Vec<_>>()));
    if told.steps.is_empty() {
        text += "\nnothing has changed since this leader began\n";
    }
    for step in &told.steps {
        text += &step_text(step, wall);
    }
    text
}

fn step_text(step: &StepTold, wall: UnixMillis) -> String {
    let decided = &step.decided;
    let ago_ms = i64::try_from(wall.0.saturating_sub(decided.unix_ms.0)).unwrap_or(i64::MAX);
    let when = decided.unix_ms.timestamp().map_or_else(|| NONE.to_owned(), |time| format!("{time:.3}"));
    let (term, epoch) = (decided.stamp.term, decided.stamp.epoch);
    let mut text = format!("\n{when}, {} ago, term {term} epoch {epoch}\n", span(ago_ms));
    let _ = writeln!(text, "{}: {}", decided.reason.code, decided.reason.text);
    for (meter, of, bucket) in decided.meters.iter().filter_map(|(meter, of)| Some((meter, of, of.shared?))) {
        let _ = writeln!(
            text,
            "counted together in Redis: the pool's bucket of {meter} gives {}, {} at once; thresholds add up to {} × CAPACITY, \
             a constant, for the bucket keeps them within it",
            number(bucket.rate),
            number(bucket.burst),
            number(of.overcommit)
        );
    }
    for (meter, of) in decided.meters.iter().filter(|(_, of)| of.shared.is_none() && of.overcommit > LENT_SAID) {
        let _ = writeln!(
            text,
            "lent, for part lies idle: thresholds of {meter} add up to {} × CAPACITY",
            number(of.overcommit)
        );
    }
    text += &beside(decided);
    for (meter, factor) in &decided.scale {
        let _ = writeln!(text, "cut ahead of the grants: {meter} × {}", number(*factor));
    }
    let rows: Vec<Vec<String>> = decided
        .meters
        .iter()
        .map(|(meter, of)| {
            let threshold = step.thresholds.get(meter);
            let shown = |text: Option<String>| text.unwrap_or_else(|| NONE.to_owned());
            vec![
                meter.to_string(),
                reading(&of.reading),
                number(of.used),
                number(of.demand),
                // Below zero where the limit is better than told: nobody else uses any.
                shown(of.others.map(|others| number(others.max(0.0)))),
                format!("{}/{}", of.refused, of.ended),
                law(of).to_owned(),
                number(of.capacity),
                shown(threshold.map(|t| number(t.base.rate))),
                shown(threshold.map(|t| number(t.effective.rate))),
                shown(threshold.map(|t| by(t.by).to_owned())),
            ]
        })
        .collect();
    let head =
        ["METER", "READING", "USED", "ASKED", "OTHERS", "429S", "LAW", "CAPACITY", "BASE", "EFFECTIVE", "DECIDED BY"];
    text + &table(&head, &rows)
}

/// What signals told, and how many were allowed at a time.
fn beside(decided: &Decided) -> String {
    let mut text = String::new();
    if !decided.pressures.is_empty() {
        let told = |(query, value): (&String, &Option<f64>)| match value {
            Some(value) => format!("{query} {}", number(*value)),
            None => format!("{query} silent"),
        };
        let told: Vec<String> = decided.pressures.iter().map(told).collect();
        let _ = writeln!(text, "congestion signals: {}", told.join(", "));
    }
    if let Some(places) = decided.places {
        let _ = writeln!(
            text,
            "at most {} at a time, {} were in flight",
            number(places.floor()),
            number(decided.in_flight)
        );
    }
    for (meter, told) in decided.meters.iter().filter_map(|(meter, of)| Some((meter, of.told?))) {
        let _ = writeln!(text, "told capacity of {meter}: {}", number(told));
    }
    text
}

fn reading(reading: &ReadingTold) -> String {
    let age = |ms: u64| span(i64::try_from(ms).unwrap_or(i64::MAX));
    match reading {
        ReadingTold::Fresh { limit, level, age_ms } => {
            format!("{} of {}, {} old", number(*level), number(*limit), age(*age_ms))
        }
        ReadingTold::Stale { age_ms } => format!("stale, {} old", age(*age_ms)),
        ReadingTold::Missing => "missing".to_owned(),
    }
}

fn law(of: &MeterDecided) -> &'static str {
    match (of.mode, of.headers) {
        (Mode::Headers, _) => "headers",
        (Mode::Increase, Headers::Coarse) => "grows, headers coarse",
        (Mode::Cut, Headers::Coarse) => "cuts, headers coarse",
        (Mode::Hold, Headers::Coarse) => "holds, headers coarse",
        (Mode::Increase, Headers::Contradicted) => "grows, headers wrong",
        (Mode::Cut, Headers::Contradicted) => "cuts, headers wrong",
        (Mode::Hold, Headers::Contradicted) => "holds, headers wrong",
        (Mode::Increase, _) => "grows",
        (Mode::Cut, _) => "cuts",
        (Mode::Hold, _) => "holds",
    }
}

fn by(by: DecidedBy) -> &'static str {
    match by {
        DecidedBy::Law => "law",
        DecidedBy::Policy => "policy",
        DecidedBy::Override => "override",
    }
}
