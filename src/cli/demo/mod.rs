//! `tidegate demo`: the closed loop with real processes, beside static limits, in about a minute.
//!
//! A real etcd, two provider emulators, two controllers as in production, and two services that embed the thin client.
//! Each request is sent twice at the same moment: through tidegate to one provider, through static limits to the other.
//! The demo changes both providers' limits unannounced, puts and removes an operator's override with `etcdctl`, and
//! kills the leading controller. What happened is judged by the providers' own counts, not by what tidegate believes.
//!
//! ```text
//! script ─► stage (processes) ─► sample ─► record ─┬─► screen, while it runs
//!                                                  └─► verdict ─► table or JSON, chart (SVG)
//! ```

mod chart;
mod record;
mod screen;
mod script;
mod service;
mod stage;
mod verdict;

use std::fs::OpenOptions;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::Failure;
use super::signals::Signals;
use super::terminal::{Keys, Screen};
use crate::provider::parse_go_duration;
use record::{Event, Record};
use screen::View;
use script::{LONGEST, Phase, SHORTEST};
pub(super) use service::{ServiceArgs, service};
use stage::{Stage, StageError};
use verdict::Verdict;

/// How often everything is looked at.
const SAMPLE_EVERY: Duration = Duration::from_millis(250);

/// Arguments of `tidegate demo`.
#[derive(Debug, clap::Args)]
pub(super) struct DemoArgs {
    /// How long it runs, such as 20s or 2m [range: 20s–10m].
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = duration)]
    duration: Duration,
    /// Where the picture of the run is written.
    #[arg(long, value_name = "FILE", default_value = "tidegate-demo.svg")]
    svg: PathBuf,
    /// Print the result as JSON, and nothing else on stdout.
    #[arg(long)]
    json: bool,
    /// Print a line for each phase, also where a terminal could show the live view.
    #[arg(long)]
    plain: bool,
}

fn duration(text: &str) -> Result<Duration, String> {
    let expected =
        || format!("expected {}s to {}m, such as 20s, 90s or 2m", SHORTEST.as_secs(), LONGEST.as_secs() / 60);
    parse_go_duration(text).filter(|span| (SHORTEST..=LONGEST).contains(span)).ok_or_else(expected)
}

/// Runs the demo.
pub(super) async fn demo(args: DemoArgs) -> Result<(), Failure> {
    let mut signals = Signals::watch()?;
    tokio::select! {
        outcome = play(&args) => outcome,
        () = signals.received() => {
            // The play was dropped, and with it every child.
            let _ = writeln!(std::io::stderr(), "\nevery process of the demo is stopped");
            Err(Failure::Interrupted)
        }
    }
}

/// How the run is shown while it lasts.
enum Show {
    /// One screen, drawn anew with each sample.
    Live(Box<Screen>),
    /// A line for each phase and each event.
    Lines,
    /// Not at all: stdout is for a program.
    Silent,
}

async fn play(args: &DemoArgs) -> Result<(), Failure> {
    // Before a minute is spent on a picture that cannot be kept; one that is there stays until the new one is drawn.
    OpenOptions::new().append(true).create(true).open(&args.svg).map_err(|error| unwritable(&args.svg, &error))?;
    let live = !args.json && !args.plain && std::io::stdout().is_terminal();
    let mut show = if args.json { Show::Silent } else { Show::Lines };
    show.line("starting etcd, two provider emulators, two controllers and two services …");
    let mut stage = Stage::set().await?;
    if !stage.swept().is_nothing() {
        show.line(&stage.swept().to_string());
    }
    for line in stage.addresses() {
        show.line(&line);
    }
    show.line("");
    if live {
        let screen =
            Screen::open(Keys::Left).map_err(|error| Failure::Run(format!("the terminal: {error}; try --plain")))?;
        show = Show::Live(Box::new(screen));
    }
    let record = run(&mut stage, &mut show, args.duration).await?;
    if live {
        // The terminal's own screen again: what follows stays there.
        show = Show::Lines;
    }
    stage.strike().await;

    let verdict = Verdict::of(&record);
    let picture =
        chart::svg(&record, &verdict).map_err(|error| Failure::Run(format!("cannot draw the run: {error}")))?;
    write(&args.svg, &picture)?;
    if args.json {
        return print_json(&verdict, &args.svg);
    }
    if live {
        for (played, event) in record.played().iter().zip(record.events()) {
            show.begun(&played.phase, event, verdict.seconds);
        }
        show.line("");
    }
    for line in verdict::table(&verdict).iter().chain([&String::new()]).chain(&verdict::legend()) {
        show.line(line);
    }
    show.line("");
    show.line(&format!("the run as a picture: {}", args.svg.display()));
    Ok(())
}

async fn run(stage: &mut Stage, show: &mut Show, duration: Duration) -> Result<Record, Failure> {
    let phases = script::phases(duration);
    let total_s = phases.iter().map(|phase| phase.seconds).sum();
    let mut record = Record::default();
    let mut ends = Instant::now();
    for phase in phases {
        let command = stage.act(phase.act).await?;
        record.begin(phase, stage.sample().await?);
        let event = Event { at_s: record.elapsed_s(), words: phase.words, command, mark: phase.mark };
        show.begun(&phase, &event, total_s);
        record.note(event);
        ends += Duration::from_secs_f64(phase.seconds);
        loop {
            show.draw(&View { record: &record, phase: &phase, total_s })?;
            let next = Instant::now() + SAMPLE_EVERY;
            sleep_until(next.min(ends)).await;
            record.add(stage.sample().await?);
            if next >= ends {
                break;
            }
        }
    }
    Ok(record)
}

impl Show {
    fn line(&self, line: &str) {
        if matches!(self, Self::Lines) {
            // Nobody reading is no reason to stop: the picture is written all the same.
            let _ = writeln!(std::io::stdout(), "{line}");
        }
    }

    fn begun(&self, phase: &Phase, event: &Event, total_s: f64) {
        self.line(&format!("[{:>3.0}/{total_s:.0} s] {:<9} {}", event.at_s, phase.name, phase.words));
        if let Some(command) = &event.command {
            self.line(&format!("$ {command}"));
        }
    }

    fn draw(&mut self, view: &View<'_>) -> Result<(), Failure> {
        match self {
            Self::Live(screen) => screen
                .draw(|frame| screen::draw(frame, view))
                .map_err(|error| Failure::Run(format!("the terminal: {error}; try --plain"))),
            Self::Lines | Self::Silent => Ok(()),
        }
    }
}

impl From<StageError> for Failure {
    fn from(error: StageError) -> Self {
        Self::Run(error.to_string())
    }
}

fn unwritable(file: &Path, error: &std::io::Error) -> Failure {
    Failure::Usage(format!("--svg {}: cannot write: {error}", file.display()))
}

fn write(file: &Path, text: &str) -> Result<(), Failure> {
    std::fs::write(file, text).map_err(|error| unwritable(file, &error))
}

fn print_json(verdict: &Verdict, svg: &Path) -> Result<(), Failure> {
    #[derive(serde::Serialize)]
    struct Result<'a> {
        #[serde(flatten)]
        verdict: &'a Verdict,
        svg: &'a Path,
    }
    let json =
        serde_json::to_string_pretty(&Result { verdict, svg }).map_err(|error| Failure::Run(error.to_string()))?;
    let _ = writeln!(std::io::stdout(), "{json}");
    Ok(())
}
