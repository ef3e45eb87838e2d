//! What is seen of the leader over time: its last account, a short past of each pool, and what is selected. Pure: `now` is
//! an argument.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::history::{PoolHistory, waiting};
use crate::cli::table::span;
use crate::clock::MonoTime;
use crate::controller::law::Headers;
use crate::controller::{LeaderAccount, PoolAccount};
use crate::quota::PoolId;

/// Reports come twice a second: who is silent for so long is worth a word.
const REPORTS_LATE: Duration = Duration::from_secs(3);
/// Beyond three times the pace: an answer may take as long.
const STALE_SLACK: Duration = Duration::from_secs(2);

/// What there is to see.
#[derive(Debug)]
pub(super) struct State {
    every: Duration,
    /// The pool that was asked for, until it is there.
    wanted: Option<PoolId>,
    seen: Option<(LeaderAccount, MonoTime)>,
    /// Why there was no answer the last time.
    trouble: Option<String>,
    pools: BTreeMap<PoolId, PoolHistory>,
    selected: Option<PoolId>,
    paused: bool,
}

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Problem {
    /// Whether somebody has to look now.
    pub severe: bool,
    /// In a line.
    pub text: String,
}

/// What the screen is about.
#[derive(Debug, Clone, Copy)]
pub(super) struct Selected<'a> {
    /// The pool's name.
    pub id: &'a PoolId,
    /// What the leader told of it.
    pub told: &'a PoolAccount,
    /// Its past.
    pub past: &'a PoolHistory,
}

impl State {
    /// Nothing seen yet. The leader is asked so often; `wanted` is selected at first.
    pub(super) fn new(every: Duration, wanted: Option<PoolId>) -> Self {
        Self { every, wanted, seen: None, trouble: None, pools: BTreeMap::new(), selected: None, paused: false }
    }

    /// Takes an account that came now.
    pub(super) fn update(&mut self, account: LeaderAccount, now: MonoTime) {
        let goes_on = self.seen.as_ref().is_some_and(|(before, _)| {
            before.term == account.term && before.name == account.name && before.led_for_ms <= account.led_for_ms
        });
        self.pools.retain(|id, _| account.pools.contains_key(id));
        for (id, told) in &account.pools {
            let past = self.pools.entry(id.clone()).or_default();
            if !goes_on {
                past.begin_anew();
            }
            past.add(told, account.led_for_ms, now);
        }
        if let Some(wanted) = self.wanted.take_if(|wanted| account.pools.contains_key(wanted)) {
            self.selected = Some(wanted);
        }
        if self.selected.as_ref().is_none_or(|id| !account.pools.contains_key(id)) {
            // The one for which most wait; of equals the first by name.
            let neediest = account.pools.iter().rev().max_by_key(|(_, told)| waiting(told));
            self.selected = neediest.map(|(id, _)| id.clone());
        }
        self.trouble = None;
        self.seen = Some((account, now));
    }

    /// There was no answer.
    pub(super) fn failed(&mut self, why: String) {
        self.trouble = Some(why);
    }

    /// Why there was no answer the last time.
    pub(super) fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// The last account, and when it came.
    pub(super) fn seen(&self) -> Option<(&LeaderAccount, MonoTime)> {
        self.seen.as_ref().map(|(account, at)| (account, *at))
    }

    /// The pool that was asked for and is not there.
    pub(super) fn missing(&self) -> Option<&PoolId> {
        self.wanted.as_ref()
    }

    /// Whether nobody is asked at the moment.
    pub(super) fn paused(&self) -> bool {
        self.paused
    }

    /// Stops asking, or goes on.
    pub(super) fn pause(&mut self) {
        self.paused = !self.paused;
    }

    /// Selects the pool so many places further down, as far as there is one.
    pub(super) fn step(&mut self, by: isize) {
        let Some((account, _)) = &self.seen else { return };
        let at = account.pools.keys().position(|id| Some(id) == self.selected.as_ref()).unwrap_or(0);
        let to = at.saturating_add_signed(by).min(account.pools.len().saturating_sub(1));
        // Chosen by hand: what was asked for at first does not matter any more.
        self.wanted = None;
        self.selected = account.pools.keys().nth(to).cloned();
    }

    /// Shows the selected pool's next meter.
    pub(super) fn next_meter(&mut self) {
        let (Some((account, _)), Some(id)) = (&self.seen, &self.selected) else { return };
        if let (Some(told), Some(past)) = (account.pools.get(id), self.pools.get_mut(id)) {
            past.next_meter(told);
        }
    }

    /// The past of a pool that is told of.
    pub(super) fn past(&self, id: &PoolId) -> Option<&PoolHistory> {
        self.pools.get(id)
    }

    /// The selected pool.
    pub(super) fn selected(&self) -> Option<Selected<'_>> {
        let (account, _) = self.seen.as_ref()?;
        let (id, told) = account.pools.get_key_value(self.selected.as_ref()?)?;
        Some(Selected { id, told, past: self.pools.get(id)? })
    }

    /// How many members there are, each counted once.
    pub(super) fn members(&self) -> usize {
        let pools = self.seen.iter().flat_map(|(account, _)| account.pools.values());
        pools.flat_map(|pool| &pool.members).map(|member| member.member.as_str()).collect::<BTreeSet<_>>().len()
    }

    /// How old the last account is.
    pub(super) fn age(&self, now: MonoTime) -> Option<Duration> {
        self.seen.as_ref().map(|(_, at)| now.since(*at))
    }

    /// Whether the last account is older than it should be.
    pub(super) fn stale(&self, now: MonoTime) -> bool {
        let late = !self.paused && self.age(now).is_some_and(|age| age > self.every * 3 + STALE_SLACK);
        self.trouble.is_some() || late
    }

    /// What is not as it should be, the worst first.
    pub(super) fn problems(&self, now: MonoTime) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut tell = |severe: bool, text: String| problems.push(Problem { severe, text });
        let age = self.age(now).map(seconds);
        match (&self.trouble, age) {
            (Some(why), Some(age)) => tell(true, format!("data {age} old: {why}")),
            (Some(why), None) => tell(true, why.clone()),
            (None, Some(age)) if self.stale(now) => tell(true, format!("data {age} old: no answer yet")),
            (None, Some(_)) => {}
            (None, None) => tell(false, "looking for the leader".to_owned()),
        }
        let Some((account, _)) = &self.seen else { return problems };
        for (name, signal) in &account.signals {
            let why = signal.error.as_ref().map_or_else(String::new, |error| format!(": {error}"));
            match signal.state.as_str() {
                "fresh" if signal.error.is_some() => tell(false, format!("signal {name} fails{why}")),
                "fresh" => {}
                "stale" => tell(false, format!("signal {name} is stale{why}")),
                other => tell(true, format!("signal {name} is {other}{why}")),
            }
        }
        if let Some(wanted) = &self.wanted {
            tell(false, format!("the leader has no pool {wanted}"));
        }
        for (id, told) in &account.pools {
            for (meter, _) in told.meters.iter().filter(|(_, of)| of.headers == Some(Headers::Contradicted)) {
                tell(false, format!("{id}: 429s contradict the headers on {meter}"));
            }
            let newest = told.members.iter().map(|member| member.report_age_ms).min();
            match newest.map(Duration::from_millis) {
                Some(age) if age > REPORTS_LATE => tell(false, format!("{id}: no report for {}", seconds(age))),
                Some(_) => {}
                None => tell(false, format!("{id}: no member reports")),
            }
            if let Some(words) = told.by_share() {
                tell(false, format!("{id}: {words}"));
            }
            if !told.mode.enforces() {
                tell(false, format!("{id}: limits are not enforced ({})", told.mode.as_str()));
            }
        }
        problems.sort_by_key(|problem| !problem.severe);
        problems
    }
}

/// A span in whole seconds, or in larger units.
pub(super) fn seconds(span_of: Duration) -> String {
    match span_of.as_secs() {
        seconds @ 0..10 => format!("{seconds}s"),
        seconds => span(i64::try_from(seconds).unwrap_or(i64::MAX).saturating_mul(1_000)),
    }
}
