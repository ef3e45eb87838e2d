//! The leader's desk: what the tick loop and the report server share while this process leads.
//!
//! The desk is empty while another leads. It answers reports only as long as the lease is fresh by its own clock, so
//! a leader that lost its store falls silent before another can begin.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::Notify;
use tracing::warn;

use super::account::LeaderAccount;
use super::nearest;
use super::planner::PoolPlanner;
use crate::clock::{MonoTime, UnixMillis};
use crate::observation::Report;
use crate::plan::{Reply, keyspace::LeaderRecord};
use crate::quota::{Meter, PoolId};
use crate::telemetry::{Metric, Sample, Telemetry};

use super::shares::SHARE_VALID;
use super::signal::{DoubtedLimit, MEMBER_SILENT_MAX};
use super::source::Board;

/// A loop that has not ticked for this long counts as hung: twice what one tick may wait for its store.
const TICK_SILENT_MAX: Duration = Duration::from_secs(10);
/// Members report at least this often.
const REPORT_EVERY_MIN_MS: u64 = 250;
/// Twice within a share's life: after a report that fails the next one comes sooner.
const REPORT_EVERY_MAX_MS: u64 = 2_500;

/// A term of leadership: what the leader knows, without its store and its clock.
#[derive(Debug)]
pub struct Office {
    /// The leader key's create revision.
    pub term: u64,
    /// When it began.
    pub(super) began_at: MonoTime,
    /// The last keep-alive that the store confirmed.
    pub(super) confirmed_at: MonoTime,
    /// The last tick that was done.
    ticked_at: MonoTime,
    /// The pools; none while what the earlier leader left is being read.
    pub pools: BTreeMap<PoolId, PoolPlanner>,
    replies: u64,
    /// When each member last reported, whatever its pools.
    heard: BTreeMap<String, MonoTime>,
    /// Of which a limit was doubted, as far as that was said.
    doubted: BTreeSet<(PoolId, Meter)>,
    /// Pools that members use and nobody has configured, as far as they were spoken of.
    strange: BTreeSet<PoolId>,
}

/// Unknown pools are spoken of up to this number.
const STRANGE_MAX: usize = 100;

impl Office {
    /// A new term.
    #[must_use]
    pub fn new(term: u64, confirmed_at: MonoTime) -> Self {
        Self {
            term,
            began_at: confirmed_at,
            confirmed_at,
            ticked_at: confirmed_at,
            pools: BTreeMap::new(),
            replies: 0,
            heard: BTreeMap::new(),
            doubted: BTreeSet::new(),
            strange: BTreeSet::new(),
        }
    }

    /// Takes a report, and answers it with shares; says whether it asks for a tick before its time.
    pub fn take(&mut self, report: &Report, now: MonoTime, telemetry: &Telemetry) -> (Reply, bool) {
        let mut early = false;
        let mut shares = BTreeMap::new();
        let member = format!("{}/{}", report.instance, report.boot);
        for (id, pool_report) in &report.pools {
            let Some(pool) = self.pools.get_mut(id) else {
                telemetry.add(Metric::ReportsRefused, &["unknown_pool"], 1.0);
                // Once each, and no more than a mistake makes: anyone may report any name.
                if self.strange.len() < STRANGE_MAX && self.strange.insert(id.clone()) {
                    let member = report.instance.as_str();
                    warn!(pool = %id, member, "a member uses a pool that is not configured: its bootstrap thresholds hold");
                }
                continue;
            };
            let (answered, urgency) = pool.report(&report.instance, &report.boot, pool_report, now);
            if urgency.throttled {
                early = true;
            }
            if let Some(DoubtedLimit { meter, told, accepted }) = urgency.doubted {
                telemetry.add(Metric::LimitsDoubted, &[id.as_str()], 1.0);
                if self.doubted.insert((id.clone(), meter)) {
                    let member = report.instance.as_str();
                    warn!(pool = %id, %meter, member, told, accepted, "a limit that others do not tell of: another account's key?");
                }
            }
            if report.leaving {
                pool.leave(&report.instance, &report.boot);
                continue;
            }
            shares.insert(id.clone(), answered);
        }
        if report.leaving {
            self.heard.remove(&member);
        } else if !shares.is_empty() {
            // Who uses no pool that there is does not slow the others down.
            self.heard.insert(member, now);
        }
        self.replies += 1;
        telemetry.add(Metric::ReportsAccepted, &[], 1.0);
        // Some 1,000 posts a second: as many members as that report once a second. Above 2,500 members it is their shares that
        // say how often.
        let members = u64::try_from(self.heard.len()).unwrap_or(u64::MAX);
        let next_report_ms = members.clamp(REPORT_EVERY_MIN_MS, REPORT_EVERY_MAX_MS);
        let share_valid_ms = u64::try_from(SHARE_VALID.as_millis()).unwrap_or(u64::MAX);
        (Reply { term: self.term, epoch: self.replies, share_valid_ms, next_report_ms, shares }, early)
    }

    /// A tick is done.
    pub(super) fn ticked(&mut self, now: MonoTime) {
        self.ticked_at = now;
        self.heard.retain(|_, at| now.since(*at) <= MEMBER_SILENT_MAX);
    }
}

/// Why a report was not answered with shares.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotLeading {
    /// Another leads.
    #[error("not the leader; reports go to {0}")]
    Other(String),
    /// Nobody is known to lead, or this leader's lease is not fresh.
    #[error("no leader at the moment")]
    Nobody,
}

/// A name that the leader does not know, and what may have been meant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Unknown {
    error: String,
    nearest: Vec<String>,
}

/// So many names are offered for one that is not known.
const NEAREST_MAX: usize = 3;
/// A name is anyone's text: so much of it is said back.
const NAME_CHARS_SHOWN: usize = 128;

impl Unknown {
    /// No such thing among the known ones.
    pub(super) fn new<'a>(what: &str, name: &str, known: impl IntoIterator<Item = &'a str>) -> Self {
        let name: String = name.chars().take(NAME_CHARS_SHOWN).collect();
        let nearest = nearest(&name, known, NEAREST_MAX).into_iter().map(str::to_owned).collect();
        Self { error: format!("no {what} {name}"), nearest }
    }
}

/// The desk.
#[derive(Debug)]
pub(super) struct Desk {
    office: Mutex<Option<Office>>,
    leader: Mutex<Option<LeaderRecord>>,
    /// Asks for a tick before its time.
    pub early: Notify,
    /// What Prometheus told.
    pub board: Board,
    lease_fresh_for: Duration,
    telemetry: Arc<Telemetry>,
}

impl Desk {
    /// An empty desk; a lease counts as fresh for `lease_fresh_for` after its last confirmed keep-alive.
    #[must_use]
    pub(super) fn new(lease_fresh_for: Duration, board: Board, telemetry: Arc<Telemetry>) -> Self {
        let (office, leader) = (Mutex::new(None), Mutex::new(None));
        Self { office, leader, early: Notify::new(), board, lease_fresh_for, telemetry }
    }

    /// Begins a term.
    pub(super) fn take_office(&self, office: Office) {
        *self.office.lock() = Some(office);
    }

    /// Ends the term.
    pub(super) fn leave_office(&self) {
        *self.office.lock() = None;
    }

    /// Who leads, when another does.
    pub(super) fn set_leader(&self, leader: Option<LeaderRecord>) {
        *self.leader.lock() = leader;
    }

    /// The store confirmed the lease.
    pub(super) fn confirmed(&self, now: MonoTime) {
        if let Some(office) = self.office.lock().as_mut() {
            office.confirmed_at = office.confirmed_at.max(now);
        }
    }

    /// Whether this process leads with a fresh lease.
    #[must_use]
    pub(super) fn leads(&self, now: MonoTime) -> bool {
        self.office.lock().as_ref().is_some_and(|office| self.fresh(office, now))
    }

    /// Whether the tick loop is alive.
    #[must_use]
    pub(super) fn ticks(&self, now: MonoTime) -> bool {
        self.office.lock().as_ref().is_some_and(|office| now.since(office.ticked_at) < TICK_SILENT_MAX)
    }

    fn fresh(&self, office: &Office, now: MonoTime) -> bool {
        now.since(office.confirmed_at) < self.lease_fresh_for
    }

    /// Works on the office, while in office.
    pub(super) fn with_office<T>(&self, work: impl FnOnce(&mut Office) -> T) -> Option<T> {
        self.office.lock().as_mut().map(work)
    }

    /// Works on the office while the lease is fresh and the pools are read.
    fn leading<T>(&self, now: MonoTime, work: impl FnOnce(&mut Office) -> T) -> Result<T, NotLeading> {
        let mut office = self.office.lock();
        if let Some(office) = office.as_mut().filter(|office| self.fresh(office, now) && !office.pools.is_empty()) {
            return Ok(work(office));
        }
        let other = self.leader.lock().as_ref().map(|leader| leader.report_url.clone());
        Err(other.map_or(NotLeading::Nobody, NotLeading::Other))
    }

    /// What the leader called `name` tells of itself and its pools.
    ///
    /// # Errors
    /// [`NotLeading`] with where to go instead.
    pub(super) fn account(&self, name: &str, now: MonoTime, wall: UnixMillis) -> Result<LeaderAccount, NotLeading> {
        self.leading(now, |office| LeaderAccount {
            name: name.to_owned(),
            term: office.term,
            led_for_ms: u64::try_from(now.since(office.began_at).as_millis()).unwrap_or(u64::MAX),
            pools: office.pools.iter().map(|(id, pool)| (id.clone(), pool.account(now, wall))).collect(),
            signals: self.board.account(now),
        })
    }

    /// What there is to measure now; of a leader alone.
    pub(super) fn measure(&self, now: MonoTime, wall: UnixMillis) -> Vec<Sample> {
        let pools = self.leading(now, |office| {
            let measure = |pool: &PoolPlanner| pool.measure(now, wall, &self.telemetry);
            office.pools.values().flat_map(measure).collect::<Vec<Sample>>()
        });
        pools.map_or_else(|_| Vec::new(), |samples| samples.into_iter().chain(self.board.measure(now)).collect())
    }

    /// Looks at a pool.
    ///
    /// # Errors
    /// [`NotLeading`] with where to go instead; within, the nearest names when there is no such pool.
    pub(super) fn look<T>(
        &self,
        pool: &str,
        now: MonoTime,
        look: impl FnOnce(&PoolPlanner) -> Result<T, Unknown>,
    ) -> Result<Result<T, Unknown>, NotLeading> {
        self.leading(now, |office| match office.pools.get(pool) {
            Some(planner) => look(planner),
            None => Err(Unknown::new("pool", pool, office.pools.keys().map(PoolId::as_str))),
        })
    }

    /// Takes a report and answers with shares.
    ///
    /// # Errors
    /// [`NotLeading`] with where to go instead.
    pub(super) fn answer(&self, report: &Report, now: MonoTime) -> Result<Reply, NotLeading> {
        let (reply, early) = self.leading(now, |office| office.take(report, now, &self.telemetry))?;
        if early {
            self.early.notify_one();
        }
        Ok(reply)
    }
}
