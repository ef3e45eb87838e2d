//! What is to be controlled: the provider's account with its headers, and how long answers take.
//!
//! The account is the emulator's, so that a world and a run against `tidegate emulate` count alike. Here its headers are made
//! as bad as a scenario wants them, and a server that slows down under load is added: *processor sharing*, where n requests
//! on K slots each advance at min(1, K/n) of their speed.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use super::scenario::{Headers, Provider};
use crate::clock::{MonoTime, UnixMillis};
use crate::provider::{Head, ResetMeaning, Shown, TokenCharge};
use crate::quota::{Cost, Meter, Unit};
use crate::sim::emulator::{Account, AccountParams, Emulated};

/// Limits that never matter.
const AMPLE: u64 = 1_000_000_000;
/// The user that others are in the account's books.
const OTHERS: &str = "others";

/// What the provider made of a request.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// Whether it was admitted.
    pub admitted: bool,
    /// After how many seconds a refusal says to come again.
    pub retry_after_s: Option<f64>,
    /// What its headers tell, if there are any.
    pub shown: Vec<Shown>,
}

/// The provider's account.
#[derive(Debug)]
pub struct Plant {
    provider: Provider,
    account: Account,
    /// What headers told last, and when that was.
    cached: Option<(MonoTime, Vec<Shown>)>,
    others_admitted: u64,
    others_offered: u64,
}

impl Plant {
    /// A full account.
    ///
    /// # Errors
    /// A number that the account cannot have.
    pub fn new(provider: &Provider, now: MonoTime) -> Result<Self, String> {
        let params = params(provider, 1.0);
        // Windows begin with the world: every seed sees the same part of one.
        let account = if provider.sliding_log {
            Account::sliding(provider.dialect, params, now)
        } else {
            Account::new(provider.dialect, params, now, UnixMillis(0))
        };
        let account = account.map_err(|error| error.to_string())?;
        Ok(Self { provider: provider.clone(), account, cached: None, others_admitted: 0, others_offered: 0 })
    }

    /// Its limits are so many times what they were at the beginning; what its bucket held it still holds.
    pub fn scale(&mut self, factor: f64, now: MonoTime) {
        // The factor was checked: nothing is outside its range.
        let _ = self.account.change_around_levels(params(&self.provider, factor), now);
    }

    /// A request arrives.
    pub fn request(&mut self, cost: &Cost, now: MonoTime) -> Verdict {
        let verdict = self.account.request(None, cost, now);
        let refusal = verdict.refusal;
        if refusal.is_some() && self.provider.charges_refused {
            self.account.spend_requests(1.0);
        }
        let wait_s =
            refusal.and_then(|refusal| refusal.retry_after_ms).map(|ms| Duration::from_millis(ms).as_secs_f64().ceil());
        Verdict {
            admitted: refusal.is_none(),
            retry_after_s: wait_s.filter(|_| self.provider.retry_after),
            shown: self.told(verdict.shown, now),
        }
    }

    /// Somebody else's request arrives.
    pub fn others(&mut self, cost: &Cost, now: MonoTime) {
        self.others_offered += 1;
        let verdict = self.account.request(Some(OTHERS), cost, now);
        self.others_admitted += u64::from(verdict.refusal.is_none());
    }

    /// How many requests others have made, and how many were admitted.
    #[must_use]
    pub fn others_kept(&self) -> (u64, u64) {
        (self.others_offered, self.others_admitted)
    }

    /// An admitted request's output is known: some providers correct what they charged.
    pub fn settle(&mut self, charged_tokens: u64, output_tokens: u64, now: MonoTime) {
        if self.provider.dialect.dialect().semantics().token_charge == TokenCharge::Corrected {
            self.account.settle(None, charged_tokens, output_tokens, now);
        }
    }

    /// How many requests there is room for now.
    pub fn requests_left(&mut self, now: MonoTime) -> f64 {
        self.account.advance(now);
        self.account.levels().get(&Meter::REQUESTS_PER_MINUTE).copied().unwrap_or(0.0)
    }

    /// For how long a request would have to wait for room, in seconds.
    pub fn seconds_to_fit(&mut self, cost: &Cost, now: MonoTime) -> f64 {
        self.account.advance(now);
        self.account.seconds_to_fit(cost)
    }

    /// What the headers tell of what is there.
    fn told(&mut self, exact: Vec<Shown>, now: MonoTime) -> Vec<Shown> {
        // The time until a bucket is full would tell its level.
        let to_full = self.provider.dialect.dialect().semantics().reset == ResetMeaning::ToFull;
        let honest = |reset: Option<Duration>| reset.filter(|_| !to_full);
        match self.provider.headers {
            Headers::Exact => exact,
            Headers::None => Vec::new(),
            Headers::Rounded(part) => {
                let round = |shown: Shown| {
                    let step = (part * shown.limit).max(1.0);
                    Shown { remaining: (shown.remaining / step).floor() * step, reset: honest(shown.reset), ..shown }
                };
                exact.into_iter().map(round).collect()
            }
            Headers::Lying(factor) => {
                let lie = |shown: Shown| Shown {
                    limit: (shown.limit * factor).round(),
                    remaining: (shown.remaining * factor).floor(),
                    reset: honest(shown.reset),
                    ..shown
                };
                exact.into_iter().map(lie).collect()
            }
            Headers::Cached(seconds) => match &self.cached {
                Some((at, shown)) if now.seconds_since(*at) < seconds => shown.clone(),
                _ => {
                    self.cached = Some((now, exact.clone()));
                    exact
                }
            },
        }
    }
}

/// The account's settings.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked: 1 to 1e9, times a factor")]
fn params(provider: &Provider, factor: f64) -> AccountParams {
    let limit = |per_minute: f64| ((per_minute * factor).round() as u64).clamp(1, AMPLE);
    let ample = |usual: Option<u64>| usual.map(|_| AMPLE);
    let tokens = provider.tokens_per_minute.map(limit);
    let usual = AccountParams::of(provider.dialect);
    AccountParams {
        requests_per_minute: limit(provider.requests_per_minute),
        requests_per_day: ample(usual.requests_per_day),
        tokens_per_day: ample(usual.tokens_per_day),
        tokens_per_minute: usual.tokens_per_minute.map(|_| tokens.unwrap_or(AMPLE)),
        input_tokens_per_minute: usual.input_tokens_per_minute.map(|_| tokens.unwrap_or(AMPLE)),
        output_tokens_per_minute: ample(usual.output_tokens_per_minute),
        burst_seconds: provider.burst_seconds,
        ..usual
    }
}

/// A head as a client reads it.
#[must_use]
pub fn headers(dialect: Emulated, verdict: &Verdict) -> Vec<(String, Vec<u8>)> {
    let told: Vec<Shown> = verdict.shown.iter().filter(|shown| shown.limit < AMPLE_SHOWN).copied().collect();
    let mut lines: Vec<(String, Vec<u8>)> = Vec::new();
    for (name, value) in dialect.dialect().print(&told, UnixMillis(0)) {
        lines.push((name, value.into_bytes()));
    }
    if let Some(seconds) = verdict.retry_after_s {
        lines.push(("retry-after".to_owned(), format!("{seconds:.0}").into_bytes()));
    }
    lines
}

/// A limit that never matters is not told of: the pool has no such meter.
#[allow(clippy::cast_precision_loss, reason = "a thousand million")]
const AMPLE_SHOWN: f64 = AMPLE as f64 / 10.0;

/// A head, for as long as its lines live.
#[must_use]
pub fn head(admitted: bool, lines: &Vec<(String, Vec<u8>)>) -> Head<'_> {
    Head { status: if admitted { 200 } else { 429 }, headers: lines }
}

/// Whether a world's pool has a limit on this unit that matters.
#[must_use]
pub fn limits(provider: &Provider, unit: Unit) -> bool {
    match unit {
        Unit::Requests => true,
        Unit::Tokens | Unit::InputTokens => provider.tokens_per_minute.is_some(),
        Unit::OutputTokens => false,
    }
}

/// A server whose requests share its processors. Work is in seconds at full speed.
#[derive(Debug, Default)]
pub struct Server {
    /// 0: any number.
    slots: u32,
    /// Work done by each that is there, since the beginning.
    done: f64,
    at: MonoTime,
    /// When each has done its work, by that measure; as bits, which order as positive numbers do.
    jobs: BinaryHeap<Reverse<(u64, u64)>>,
}

impl Server {
    /// A server with so many slots; 0 for any number.
    #[must_use]
    pub fn new(slots: u32, now: MonoTime) -> Self {
        Self { slots, at: now, ..Self::default() }
    }

    /// It has another number of slots.
    pub fn resize(&mut self, slots: u32, now: MonoTime) {
        self.advance(now);
        self.slots = slots;
    }

    /// Begins a job.
    pub fn begin(&mut self, job: u64, work_s: f64, now: MonoTime) {
        self.advance(now);
        self.jobs.push(Reverse(((self.done + work_s).to_bits(), job)));
    }

    /// A job that is done, if any is.
    pub fn finished(&mut self, now: MonoTime) -> Option<u64> {
        self.advance(now);
        let Reverse((work, job)) = *self.jobs.peek()?;
        (f64::from_bits(work) <= self.done + 1e-9).then(|| {
            self.jobs.pop();
            job
        })
    }

    /// When the next one is done, if nothing changes before.
    #[must_use]
    pub fn next(&self) -> Option<MonoTime> {
        let Reverse((work, _)) = self.jobs.peek()?;
        Some(self.at.after_seconds((f64::from_bits(*work) - self.done).max(0.0) / self.speed()))
    }

    fn speed(&self) -> f64 {
        let n = u32::try_from(self.jobs.len()).unwrap_or(u32::MAX);
        if self.slots == 0 || n <= self.slots { 1.0 } else { f64::from(self.slots) / f64::from(n) }
    }

    fn advance(&mut self, now: MonoTime) {
        self.done += now.seconds_since(self.at) * self.speed();
        self.at = self.at.max(now);
    }
}
