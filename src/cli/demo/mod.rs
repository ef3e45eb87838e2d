//! `tidegate demo`: the closed loop with real processes, in about a minute.
//!
//! A real etcd, the emulator, the controller as in production, and two services that embed the thin client. The demo
//! halves the provider's limit unannounced, restores it, and puts and removes an operator's override with `etcdctl`.
//! What happened is judged by the emulator's own account of itself, not by what tidegate believes.

mod service;
mod stage;
mod table;

use std::io::{IsTerminal, Write};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::Failure;
use super::signals::Signals;
pub(super) use service::{ServiceArgs, service};
use stage::{Offer, Stage};
use table::{Outcome, print_table};

/// The provider's limit, in requests per minute.
const LIMIT: u64 = 1_200;
/// The operator's override, in requests per minute.
const OVERRIDE: u64 = 120;
const TENANTS: [Offer; 3] = [
    Offer { tenant: "alpha", weight: 3.0, per_s: 16.0 },
    Offer { tenant: "beta", weight: 1.0, per_s: 3.0 },
    Offer { tenant: "noisy", weight: 1.0, per_s: 13.0 },
];

/// Arguments of `tidegate demo`.
#[derive(Debug, clap::Args)]
pub(super) struct DemoArgs {}

/// What is done at the start of a phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    Nothing,
    /// The limit becomes this; of the bucket's contents, so many requests are gone.
    Limit(u64, u64),
    Override,
    Lift,
}

/// One phase of the run.
#[derive(Debug, Clone, Copy)]
struct Phase {
    name: &'static str,
    seconds: u64,
    act: Act,
    limit: u64,
    overridden: bool,
    now: &'static str,
}

const PHASES: [Phase; 6] = [
    Phase {
        name: "ramp-up",
        seconds: 10,
        act: Act::Nothing,
        limit: LIMIT,
        overridden: false,
        now: "members join; the controller's file knows of half the provider's limit",
    },
    Phase {
        name: "steady",
        seconds: 14,
        act: Act::Nothing,
        limit: LIMIT,
        overridden: false,
        now: "three tenants offer 1.6 x the limit",
    },
    Phase {
        name: "halved",
        seconds: 12,
        act: Act::Limit(LIMIT / 2, LIMIT),
        limit: LIMIT / 2,
        overridden: false,
        now: "the provider has halved its limit, unannounced, and its bucket is empty",
    },
    Phase {
        name: "restored",
        seconds: 10,
        act: Act::Limit(LIMIT, 0),
        limit: LIMIT,
        overridden: false,
        now: "the provider has restored its limit",
    },
    Phase {
        name: "override",
        seconds: 8,
        act: Act::Override,
        limit: LIMIT,
        overridden: true,
        now: "an operator has put noisy at 120 requests/minute",
    },
    Phase {
        name: "lifted",
        seconds: 6,
        act: Act::Lift,
        limit: LIMIT,
        overridden: false,
        now: "the operator has removed the override",
    },
];

/// Runs the demo.
pub(super) async fn demo(_args: DemoArgs) -> Result<(), Failure> {
    let mut signals = Signals::watch()?;
    tokio::select! {
        outcome = play() => outcome,
        () = signals.received() => {
            // The play was dropped, and with it every child.
            eprintln!("\ninterrupted: every process of the demo is stopped");
            Err(Failure::Interrupted)
        }
    }
}

async fn play() -> Result<(), Failure> {
    let failed = |error: stage::StageError| Failure::Run(error.to_string());
    println!("starting etcd, the provider emulator, the controller and two services …");
    let mut stage = Stage::set(LIMIT, &TENANTS).await.map_err(failed)?;
    println!("etcd       {}   (look: etcdctl --endpoints {0} get --prefix /tidegate/v1/)", stage.etcd_endpoint());
    println!("provider   {}   {LIMIT} requests/minute", stage.provider_url());
    println!("controller {}   metrics under /metrics", stage.controller_url());
    println!();

    let total: u64 = PHASES.iter().map(|phase| phase.seconds).sum();
    let began = Instant::now();
    let mut outcomes = Vec::new();
    let mut elapsed = 0;
    for phase in PHASES {
        match phase.act {
            Act::Nothing => stage.mark().await.map_err(failed)?,
            Act::Limit(limit, spent) => stage.change_limit(limit, spent).await.map_err(failed)?,
            Act::Override => {
                let command = stage.put_override("noisy", OVERRIDE).await.map_err(failed)?;
                progress_end();
                println!("$ {command}");
            }
            Act::Lift => {
                let command = stage.remove_override("noisy").await.map_err(failed)?;
                progress_end();
                println!("$ {command}");
            }
        }
        let before = stage.state().await.map_err(failed)?;
        for second in 0..phase.seconds {
            progress(elapsed + second, total, &phase);
            sleep_until(began + Duration::from_secs(elapsed + second + 1)).await;
            stage.collect().map_err(failed)?;
        }
        elapsed += phase.seconds;
        let after = stage.state().await.map_err(failed)?;
        let retunes = stage.retunes_since_mark();
        outcomes.push(Outcome::judge(
            phase.name,
            phase.limit,
            phase.overridden.then_some(OVERRIDE),
            phase.act != Act::Nothing,
            &TENANTS,
            &before,
            &after,
            &retunes,
        ));
    }
    progress_end();
    stage.strike().await;
    println!();
    print_table(&outcomes, &TENANTS);
    Ok(())
}

fn progress(second: u64, total: u64, phase: &Phase) {
    let mut out = std::io::stdout().lock();
    let line = format!("[{second:>2}/{total} s] {:<9} {}", phase.name, phase.now);
    // A terminal shows one line that changes; a log gets a line a phase.
    let _ = if out.is_terminal() {
        write!(out, "\r\x1b[2K{line}")
    } else if second_is_first(second) {
        writeln!(out, "{line}")
    } else {
        Ok(())
    };
    let _ = out.flush();
}

fn second_is_first(second: u64) -> bool {
    let mut start = 0;
    PHASES.iter().any(|phase| {
        let first = start == second;
        start += phase.seconds;
        first
    })
}

fn progress_end() {
    let mut out = std::io::stdout().lock();
    if out.is_terminal() {
        let _ = writeln!(out);
    }
}
