//! The client's tasks: watch the store, report to the leader, keep presence.
//!
//! What happens inside is decided by [`Core`]; here are only the sockets and the timers.

use std::sync::Arc;
use std::time::Duration;

use http::Method;
use parking_lot::Mutex;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout};
use tracing::{info, warn};

use super::leader_http::{LeaderHttp, NoAnswer};
use super::process::{Core, REPORT_GAP_MIN};
use super::together::Stance;
use crate::plan::Reply;
use crate::store::{LeaseId, Op, Store, StoreError, Txn, WatchEvent};
use crate::telemetry::Metric;

/// How often brake, lapse and expiries are looked at, at least.
const HOUSEKEEPING_EVERY: Duration = Duration::from_millis(250);
/// How often what is owed is told where members count together, and idle leases end.
const COUNTING_EVERY: Duration = Duration::from_millis(100);
const REPORT_TIMEOUT: Duration = Duration::from_secs(2);
/// A process that closes does not wait for a leader that is slow.
const FAREWELL_TIMEOUT: Duration = Duration::from_millis(500);
/// When to report next while no leader says so.
const REPORT_EVERY: Duration = Duration::from_millis(500);
const REOPEN_AFTER_MIN: Duration = Duration::from_millis(100);
const REOPEN_AFTER_MAX: Duration = Duration::from_secs(2);
const PRESENCE_TTL: Duration = Duration::from_secs(10);
const PRESENCE_EVERY: Duration = Duration::from_secs(3);

/// Lists, watches, and does so again whenever the watch breaks.
pub(super) async fn watch(core: Arc<Core>, store: Arc<dyn Store>) {
    let mut pause = REOPEN_AFTER_MIN;
    let mut complained = false;
    loop {
        let error = match follow(&core, &*store, &mut || {
            pause = REOPEN_AFTER_MIN;
            complained = false;
        })
        .await
        {
            Ok(never) => match never {},
            Err(error) => error,
        };
        let why = match &error {
            StoreError::Compacted { .. } => "compacted",
            StoreError::Silent { .. } => "silent",
            StoreError::Restored => "restored",
            StoreError::Unavailable { .. } => "unavailable",
            _ => "other",
        };
        core.telemetry.add(Metric::WatchReopened, &[why], 1.0);
        if !complained {
            warn!("store: {error}; members go on with what they have");
            complained = true;
        }
        // Spread: after an outage not all members list at one instant.
        sleep(pause.mul_f64(0.5 + fastrand::f64())).await;
        pause = (pause * 2).min(REOPEN_AFTER_MAX);
    }
}

async fn follow(
    core: &Core,
    store: &dyn Store,
    opened: &mut (dyn FnMut() + Send),
) -> Result<std::convert::Infallible, StoreError> {
    let (list, selects) = core.selects();
    let listing = store.list(&list).await?;
    let from = core.on_list(&listing);
    // As large as all the records together: not to be kept as long as the watch lasts.
    drop(listing);
    core.urgent.notify_one();
    let mut watch = store.watch(&selects, from).await?;
    loop {
        let event = watch.next().await?;
        // Only now: a store that lists but refuses to be watched is not listed ten times a second.
        opened();
        core.on_word();
        if let WatchEvent::Changes { changes, revision } = event {
            core.on_changes(&changes, revision);
        }
    }
}

/// Looks after what time alone changes.
pub(super) async fn housekeeping(core: Arc<Core>) {
    loop {
        // What ends by itself is not enforced any longer than it holds, which matters most where nobody leads.
        let ends = core.keep_house().unwrap_or(HOUSEKEEPING_EVERY);
        sleep(ends.min(HOUSEKEEPING_EVERY)).await;
    }
}

/// Tells where members count together what was not told with a request: what is owed, what goes back; and sees whether a store
/// that was away is back.
pub(super) async fn counting(core: Arc<Core>) {
    if !core.together.is_there() {
        return;
    }
    let mut looked = Instant::now();
    loop {
        tokio::select! {
            () = core.together.work.notified() => {}
            () = sleep_until(looked + COUNTING_EVERY) => {}
        }
        if looked.elapsed() >= COUNTING_EVERY {
            looked = Instant::now();
            if core.together.look().await {
                core.tell_tally(false).await;
            }
        }
        if core.together.stance() != Some(Stance::Away) {
            core.together.send_settlements().await;
        }
    }
}

/// Reports to the leader, at the pace the leader asks for; refusals at once.
pub(super) async fn reporting(core: Arc<Core>, http: LeaderHttp, report_url: Option<String>) {
    // Where a follower sent us; forgotten as soon as that fails.
    let mut redirected: Option<String> = None;
    let mut next = Duration::ZERO;
    // After a report that failed no longer than after one that did not: a share may end meanwhile.
    let mut pause = REPORT_EVERY;
    // Said once per outage: a member that cannot report has no share, and somebody should know.
    let mut complained = false;
    // When the last two reports went: one right behind another is well, so that no 429 waits because the last report was a
    // moment ago, but no third.
    let (mut last, mut before_last) = (None::<Instant>, None::<Instant>);
    loop {
        tokio::select! {
            () = sleep(next) => {}
            () = core.urgent.notified() => {}
        }
        if let Some(before_last) = before_last {
            sleep_until(before_last + 2 * REPORT_GAP_MIN).await;
        }
        next = REPORT_EVERY.min(pause);
        let leader = core.leader().map(|leader| leader.report_url);
        let was_redirected = redirected.is_some();
        let Some(url) = redirected.clone().or_else(|| report_url.clone()).or(leader) else { continue };
        before_last = last.replace(Instant::now());
        match post(&core, &http, &url).await {
            Ok(asked) => {
                if std::mem::take(&mut complained) {
                    info!(url, "reports are answered again");
                }
                (pause, next) = (asked, asked);
            }
            Err(PostError::Elsewhere(other)) => {
                core.telemetry.add(Metric::ReportFailures, &["follower"], 1.0);
                if was_redirected || report_url.is_some() {
                    core.on_no_reply();
                }
                // A configured address is the operator's word.
                redirected = Some(other).filter(|_| report_url.is_none());
                // On at once, but followers that send us to each other see us at the ordinary pace.
                next = if was_redirected { REPORT_EVERY } else { REPORT_GAP_MIN };
            }
            Err(PostError::Failed(why, said)) => {
                core.on_no_reply();
                core.telemetry.add(Metric::ReportFailures, &[why], 1.0);
                if !std::mem::replace(&mut complained, true) {
                    warn!(url, "reports are not answered ({why}{said}): without a share the safe thresholds hold");
                }
                redirected = None;
            }
        }
    }
}

/// The last report: what this process held is free at once, and not when its leases run out, so that one that takes its
/// place, in a deployment say, need not wait for them.
pub(super) async fn farewell(core: &Core, http: &LeaderHttp, report_url: Option<&str>) {
    let body = serde_json::to_vec(&core.leave()).unwrap_or_default();
    let leader = core.leader().map(|leader| leader.report_url);
    let Some(url) = report_url.map(str::to_owned).or(leader) else { return };
    // Whoever does not hear it waits for the leases.
    if http.ask(Method::POST, &observations(&url), body, FAREWELL_TIMEOUT).await.is_err() {
        core.telemetry.add(Metric::ReportFailures, &["farewell"], 1.0);
    }
}

enum PostError {
    Elsewhere(String),
    /// The word for it in metrics, and more of it for the log.
    Failed(&'static str, String),
}

fn failed(why: &'static str) -> PostError {
    PostError::Failed(why, String::new())
}

fn observations(url: &str) -> String {
    format!("{}/v1/observations", url.trim_end_matches('/'))
}

/// Reports; returns how long to wait until the next report.
async fn post(core: &Core, http: &LeaderHttp, url: &str) -> Result<Duration, PostError> {
    let (report, asked_at) = core.tell();
    let body = serde_json::to_vec(&report).unwrap_or_default();
    let answer = http.ask(Method::POST, &observations(url), body, REPORT_TIMEOUT).await;
    let (status, body) = answer.map_err(|error| {
        let why = if matches!(error, NoAnswer::Scheme(_)) { "tls" } else { "unreachable" };
        PostError::Failed(why, format!(": {error}"))
    })?;
    match status.as_u16() {
        200 => {}
        421 => {
            let body: serde_json::Value = serde_json::from_slice(&body).map_err(|_| failed("malformed_reply"))?;
            let leader = body.get("leader").and_then(serde_json::Value::as_str);
            return Err(leader.map_or(failed("malformed_reply"), |url| PostError::Elsewhere(url.to_owned())));
        }
        401 => {
            let what = ": give ClientParams::report_token a token whose digest stands in [controller.reporters] there";
            return Err(PostError::Failed("unauthorized", what.to_owned()));
        }
        403 => {
            let what = ": no pool of this process is in the globs of its token in [controller.reporters] there";
            return Err(PostError::Failed("unauthorized", what.to_owned()));
        }
        503 => return Err(failed("no_leader")),
        _ => return Err(failed("refused")),
    }
    let reply: Reply = serde_json::from_slice(&body).map_err(|_| failed("malformed_reply"))?;
    core.on_reply(&reply, asked_at).map_err(|_| failed("old_term"))
}

/// Keeps `members/<instance>` alive: one key, one lease.
pub(super) async fn presence(core: Arc<Core>, store: Arc<dyn Store>, key: String, lease: Arc<Mutex<Option<LeaseId>>>) {
    let mut every = interval(PRESENCE_EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        let held = *lease.lock();
        let alive = match held {
            Some(id) => store.keep_alive(id).await.is_ok(),
            None => false,
        };
        if !alive && announce(&core, &*store, &key, &lease).await.is_err() {
            // An outage is said by the watch; presence just comes back.
            *lease.lock() = None;
        }
    }
}

async fn announce(core: &Core, store: &dyn Store, key: &str, lease: &Mutex<Option<LeaseId>>) -> Result<(), StoreError> {
    let granted = store.lease(PRESENCE_TTL).await?;
    // Known before the key is there, so that a client closed in between takes the key away.
    *lease.lock() = Some(granted);
    let value = serde_json::to_vec(&core.presence()).unwrap_or_default();
    let put = Op::Put { key: key.to_owned(), value, lease: Some(granted) };
    store.commit(Txn { conditions: Vec::new(), ops: vec![put] }).await.map(drop)
}

/// Waits until the first shares have come, but not long: without a leader the bootstrap thresholds hold.
pub(super) async fn joined(core: &Core, at_most: Duration) {
    let _ = timeout(at_most, core.joined.notified()).await;
}
