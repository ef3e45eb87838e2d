//! `tidegate top`: pools, tenants, overrides and signals as the leader sees them now, on one page.
//!
//! ```text
//! leader ─► ask, once a second ─► state (short pasts) ─► draw ─┬─► the terminal's other screen
//!                                    ▲ keys                    └─► plain text, with --once
//! ```

mod cell;
mod draw;
mod history;
mod keys;
mod state;

use std::io::{self, IsTerminal};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval, sleep};

use self::draw::View;
use self::keys::{Press, presses};
use self::state::State;
use super::reach::{Leader, LeaderArgs, NoAnswer, Reach, ReachArgs};
use super::signals::Signals;
use super::terminal::{Keys, Screen};
use super::{Failure, print};
use crate::client::LeaderHttp;
use crate::clock::{Clock, MonoTime, SystemClock};
use crate::controller::LeaderAccount;
use crate::quota::PoolId;

/// The pace that may be asked for, in seconds.
const EVERY_S: std::ops::RangeInclusive<f64> = 0.2..=60.0;
/// A leader that answers is still looked up again: it may be one that has not noticed yet that another leads.
const LOOKED_UP_EVERY: Duration = Duration::from_secs(5);
/// How often the data's age is drawn anew.
const DRAWN_EVERY: Duration = Duration::from_millis(500);

/// Arguments of `tidegate top`.
#[derive(Debug, clap::Args)]
pub(super) struct TopArgs {
    /// The pool whose tenants are shown at first; else the one for which most calls wait.
    #[arg(value_name = "POOL")]
    pool: Option<PoolId>,
    /// How often the leader is asked, 0.2 to 60.
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = pace)]
    every: Duration,
    /// Look twice, print one page of 80 × 24 as plain text, and end.
    #[arg(long)]
    once: bool,
    #[command(flatten)]
    reach: ReachArgs,
    #[command(flatten)]
    leader: LeaderArgs,
}

fn pace(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().ok().filter(|seconds| EVERY_S.contains(seconds));
    seconds.map(Duration::from_secs_f64).ok_or_else(|| "expected 0.2 to 60 seconds".to_owned())
}

/// Shows what the leader tells, until it is enough.
pub(super) async fn top(args: TopArgs) -> Result<(), Failure> {
    if !args.once && !io::stdout().is_terminal() {
        return Err(Failure::Usage("stdout is no terminal: --once prints one page as plain text".to_owned()));
    }
    let http = args.leader.http()?;
    let reach = Reach::open(&args.reach).await?;
    let clock = SystemClock::new();
    let asker = Asker { reach, http, leader: None, looked_at: MonoTime::default(), clock: clock.clone() };
    let state = State::new(args.every, args.pool);
    if args.once { once(asker, state, &clock, args.every).await } else { live(asker, state, &clock, args.every).await }
}

/// Who asks the leader, and finds the next one.
struct Asker {
    reach: Reach,
    http: LeaderHttp,
    leader: Option<Leader>,
    looked_at: MonoTime,
    clock: SystemClock,
}

impl Asker {
    /// What the leader tells, or why it does not.
    async fn ask(&mut self) -> Result<LeaderAccount, String> {
        let now = self.clock.now();
        if self.leader.is_none() || now.since(self.looked_at) >= LOOKED_UP_EVERY {
            self.looked_at = now;
            match self.reach.leader().await {
                Ok(found) => self.leader = found,
                // Without the store the leader that is known may tell all the same.
                Err(_) if self.leader.is_some() => {}
                Err(failure) => return Err(failure.to_string()),
            }
        }
        let leader = self.leader.as_ref().ok_or("nobody leads")?;
        let answer = leader.ask(&self.http, "/v1/status").await;
        if answer.is_err() {
            self.leader = None;
        }
        answer.map_err(|error| match error {
            // The reason first: a line has room for little more.
            NoAnswer::Silent { url, why } => format!("the leader gives no answer: {why} ({url})"),
            other => other.to_string(),
        })
    }
}

/// One page. What is counted per second takes two looks.
async fn once(mut asker: Asker, mut state: State, clock: &SystemClock, every: Duration) -> Result<(), Failure> {
    let failed = |why: &str| Failure::Run(cell::safe(why));
    let account = asker.ask().await.map_err(|why| failed(&why))?;
    state.update(account, clock.now());
    if let Some(pool) = state.missing() {
        return Err(Failure::Run(format!("the leader has no pool {pool}")));
    }
    sleep(every).await;
    match asker.ask().await {
        Ok(account) => state.update(account, clock.now()),
        Err(why) => state.failed(why),
    }
    // What came just now is not older for being drawn.
    let now = state.seen().filter(|_| state.trouble().is_none()).map_or_else(|| clock.now(), |(_, at)| at);
    print(&draw::text(&View { state: &state, now, wall: clock.wall(), keys: false }))?;
    state.trouble().map_or(Ok(()), |why| Err(failed(why)))
}

/// The page, again and again.
async fn live(asker: Asker, mut state: State, clock: &SystemClock, every: Duration) -> Result<(), Failure> {
    let terminal = |error: io::Error| Failure::Run(format!("the terminal: {error}; try --once"));
    let mut signals = Signals::watch()?;
    let (told, mut answers) = mpsc::channel(1);
    let (pause, paused) = watch::channel(false);
    let mut screen = Screen::open(Keys::Taken).map_err(terminal)?;
    let asking = tokio::spawn(keep_asking(asker, every, told, paused));
    let mut keys = presses();
    let ended = loop {
        let view = View { state: &state, now: clock.now(), wall: clock.wall(), keys: true };
        if let Err(error) = screen.draw(|frame| draw::draw(frame, &view)) {
            break Err(terminal(error));
        }
        tokio::select! {
            () = signals.received() => break Ok(()),
            Some(press) = keys.recv() => match press {
                Press::Quit => break Ok(()),
                Press::Up => state.step(-1),
                Press::Down => state.step(1),
                Press::Meter => state.next_meter(),
                Press::Pause => {
                    state.pause();
                    pause.send_replace(state.paused());
                }
                Press::Resized => {}
            },
            answer = answers.recv() => match answer {
                // What was asked before the pause is not shown in it.
                Some(_) if state.paused() => {}
                Some(Ok(account)) => state.update(account, clock.now()),
                Some(Err(why)) => state.failed(why),
                None => break Err(Failure::Run("nobody asks the leader any more".to_owned())),
            },
            () = sleep(DRAWN_EVERY) => {}
        }
    };
    asking.abort();
    ended
}

/// Asks at a pace, but in a pause, until nobody listens. A late answer is not made up for.
async fn keep_asking(
    mut asker: Asker,
    every: Duration,
    told: mpsc::Sender<Result<LeaderAccount, String>>,
    mut paused: watch::Receiver<bool>,
) {
    let mut pace = interval(every);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        pace.tick().await;
        if paused.wait_for(|paused| !paused).await.is_err() || told.send(asker.ask().await).await.is_err() {
            return;
        }
    }
}
