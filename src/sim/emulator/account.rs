//! The provider's account: what it admits, what it says about it, and the truth that a test judges by.
//!
//! *Admission.* Each meter (requests/minute, tokens/minute) counts what is `used`; use leaks away at limit/60 per
//! second, and a bucket holds `burst_seconds` of that. A request is admitted if every meter has room for it, and then
//! charged on every meter; a refused request is charged on none.
//!
//! *Change of limits.* `used` stays. After a halving the level, burst − used, may be below zero: refusals begin at
//! once and last until the surplus has leaked away, as with the real provider.
//!
//! *Hidden use.* Somebody else on the same account: a constant rate added to `used`, never above the burst, so it
//! can starve us but not overdraw the account.
//!
//! *What is shown.* `limit` is units per minute, L. `reset` is (L − level)/L·60 s, so that a reader's
//! `level = L − reset·L/60` gives the bucket's true level for any burst; with a burst of 60 s it is the time to full
//! that OpenAI prints. A level above L (burst longer than 60 s) prints `0s`. A refusal's wait is the time until this
//! request would fit, far shorter than the reset; like the real provider's it does not foresee hidden use.
//!
//! *Truth.* What was admitted and refused, for whom, and how many units refill offered beyond hidden use.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::clock::MonoTime;
use crate::quota::Unit;

/// Users counted by name; the rest are counted together.
pub const USERS_MAX: usize = 64;
/// Longest user name counted by name, in bytes.
pub const USER_BYTES_MAX: usize = 128;
/// The name under which requests without a user, with too long a name, or of the 65th user on are counted.
pub const OTHER_USERS: &str = "other";
/// Highest limit and highest hidden use, in units per minute.
pub const PER_MINUTE_MAX: u64 = 1_000_000_000;
/// Body bytes that count as one LLM token before the answer is known.
pub const BODY_BYTES_PER_TOKEN: usize = 4;

const WINDOW_SECONDS: f64 = 60.0;
/// Below this, a difference in units is floating-point dust.
const DUST_UNITS: f64 = 1e-6;

/// The account's limits and who else uses it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccountParams {
    /// Limit in requests per minute, 1–1,000,000,000.
    pub requests_per_minute: u64,
    /// Limit in LLM tokens per minute, 1–1,000,000,000.
    pub tokens_per_minute: u64,
    /// What the buckets hold, in seconds of refill, 0.1–86,400; never less than one unit.
    pub burst_seconds: f64,
    /// Use by somebody else, in requests per minute, 0–1,000,000,000.
    pub hidden_requests_per_minute: f64,
    /// Use by somebody else, in LLM tokens per minute, 0–1,000,000,000.
    pub hidden_tokens_per_minute: f64,
}

impl Default for AccountParams {
    fn default() -> Self {
        Self {
            requests_per_minute: 600,
            tokens_per_minute: 200_000,
            burst_seconds: 60.0,
            hidden_requests_per_minute: 0.0,
            hidden_tokens_per_minute: 0.0,
        }
    }
}

/// A setting outside its range.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{field} {found}: expected {range}")]
pub struct OutOfRange {
    /// The setting's name.
    pub field: &'static str,
    /// What was given.
    pub found: String,
    /// What is allowed.
    pub range: &'static str,
}

/// `value` if `valid`, else the error that names the field and its range. Not-a-number is never in range.
pub(super) fn in_range(
    field: &'static str,
    value: f64,
    allowed: std::ops::RangeInclusive<f64>,
    range: &'static str,
) -> Result<(), OutOfRange> {
    if allowed.contains(&value) { Ok(()) } else { Err(OutOfRange { field, found: value.to_string(), range }) }
}

impl AccountParams {
    /// Checks every range.
    ///
    /// # Errors
    /// The first setting outside its range.
    pub fn validate(&self) -> Result<(), OutOfRange> {
        let most = units(PER_MINUTE_MAX);
        let limit = "a whole number, 1–1000000000";
        in_range("requests_per_minute", units(self.requests_per_minute), 1.0..=most, limit)?;
        in_range("tokens_per_minute", units(self.tokens_per_minute), 1.0..=most, limit)?;
        in_range("burst_seconds", self.burst_seconds, 0.1..=86_400.0, "0.1–86400 seconds")?;
        let hidden = "0–1000000000";
        in_range("hidden_requests_per_minute", self.hidden_requests_per_minute, 0.0..=most, hidden)?;
        in_range("hidden_tokens_per_minute", self.hidden_tokens_per_minute, 0.0..=most, hidden)
    }
}

/// The LLM tokens charged at arrival, before the answer is known: body bytes / 4, plus `max_tokens` where the account
/// charges for it.
#[must_use]
pub fn precharge_tokens(body_bytes: usize, max_tokens: Option<u64>) -> u64 {
    let estimate = u64::try_from(body_bytes.div_ceil(BODY_BYTES_PER_TOKEN)).unwrap_or(u64::MAX);
    estimate.saturating_add(max_tokens.unwrap_or(0))
}

/// What the headers say about one meter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shown {
    /// Units per minute.
    pub limit: u64,
    /// The level after this request, rounded down, never below zero.
    pub remaining: u64,
    /// (limit − level)/limit·60 s, to the millisecond, never below zero.
    pub reset_ms: u64,
}

/// What the headers say about both meters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShownMeters {
    /// Requests per minute.
    pub requests: Shown,
    /// LLM tokens per minute.
    pub tokens: Shown,
}

/// Why a request was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// The meter with the longest wait, or the one that the request is too large for.
    pub unit: Unit,
    /// That meter's limit in units per minute; for a request too large, the most that can ever be admitted.
    pub limit: u64,
    /// Units in use, as far as the limit is concerned: limit − level.
    pub used: u64,
    /// Units this request asked for.
    pub requested: u64,
    /// Time until this request would fit, in milliseconds; none if it never does.
    pub retry_after_ms: Option<u64>,
}

/// The account's answer to one request, with what it shows beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// Why it was refused; none if it was admitted and charged.
    pub refusal: Option<Refusal>,
    /// The header numbers, after the charge.
    pub shown: ShownMeters,
}

/// What happened to one user's requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct UserTruth {
    /// Requests admitted.
    pub admitted_requests: u64,
    /// LLM tokens charged for them.
    pub admitted_tokens: u64,
    /// Requests refused for want of room (429).
    pub refused_requests: u64,
    /// Requests refused because they never fit (429 too).
    pub too_large_requests: u64,
}

/// What one meter really offered.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct MeterTruth {
    /// ∫ capacity dt: units that refill offered (a full bucket's overflow included) minus `hidden_units`. Falls while
    /// hidden use eats what the bucket had stored.
    pub capacity_units: f64,
    /// Units that hidden use took.
    pub hidden_units: f64,
}

/// Everything to judge a client by, since the account began.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Truth {
    /// All users together.
    pub total: UserTruth,
    /// By the request body's `user`; at most [`USERS_MAX`] and [`OTHER_USERS`].
    pub users: BTreeMap<String, UserTruth>,
    /// Requests per minute: what was on offer.
    pub requests: MeterTruth,
    /// LLM tokens per minute: what was on offer.
    pub tokens: MeterTruth,
}

/// One leaky meter.
#[derive(Debug, Clone)]
struct LeakyMeter {
    unit: Unit,
    limit_per_minute: u64,
    hidden_per_minute: f64,
    burst: f64,
    used: f64,
    truth: MeterTruth,
}

impl LeakyMeter {
    const fn empty(unit: Unit) -> Self {
        let truth = MeterTruth { capacity_units: 0.0, hidden_units: 0.0 };
        Self { unit, limit_per_minute: 1, hidden_per_minute: 0.0, burst: 1.0, used: 0.0, truth }
    }

    fn set(&mut self, limit_per_minute: u64, hidden_per_minute: f64, burst_seconds: f64) {
        self.limit_per_minute = limit_per_minute;
        self.hidden_per_minute = hidden_per_minute;
        self.burst = (burst_seconds * self.rate()).max(1.0);
    }

    /// Units per second.
    fn rate(&self) -> f64 {
        units(self.limit_per_minute) / WINDOW_SECONDS
    }

    fn level(&self) -> f64 {
        self.burst - self.used
    }

    fn fits(&self, cost: f64) -> bool {
        self.used + cost <= self.burst + DUST_UNITS
    }

    fn is_too_large(&self, cost: f64) -> bool {
        cost > self.largest() + DUST_UNITS
    }

    fn largest(&self) -> f64 {
        self.burst.min(units(self.limit_per_minute))
    }

    fn seconds_to_fit(&self, cost: f64) -> f64 {
        (self.used + cost - self.burst).max(0.0) / self.rate()
    }

    /// Moves `seconds` ahead, exactly: the rates are constant in between, only the two bounds cut the path in pieces.
    fn advance(&mut self, seconds: f64) {
        let leak = self.rate();
        let hidden = self.hidden_per_minute / WINDOW_SECONDS;
        let mut left = seconds;
        let mut taken = 0.0;
        // Overdrawn: hidden use finds no room.
        if self.used > self.burst {
            let alone = ((self.used - self.burst) / leak).min(left);
            self.used = (self.used - leak * alone).max(self.burst);
            left -= alone;
        }
        if hidden > leak {
            // Fills up, then takes just what leaks away.
            let filling = ((self.burst - self.used).max(0.0) / (hidden - leak)).min(left);
            self.used = (self.used + (hidden - leak) * filling).min(self.burst.max(self.used));
            taken += hidden * filling + leak * (left - filling);
        } else {
            self.used = (self.used - (leak - hidden) * left).max(0.0);
            taken += hidden * left;
        }
        self.truth.hidden_units += taken;
        self.truth.capacity_units += leak * seconds - taken;
    }

    fn shown(&self) -> Shown {
        let limit = units(self.limit_per_minute);
        let reset_seconds = (limit - self.level()) / limit * WINDOW_SECONDS;
        Shown {
            limit: self.limit_per_minute,
            remaining: whole((self.level() + DUST_UNITS).floor()),
            reset_ms: whole((reset_seconds * 1_000.0).round()),
        }
    }

    fn refusal(&self, cost: f64, retry_after_ms: Option<u64>) -> Refusal {
        let limit = units(self.limit_per_minute);
        Refusal {
            unit: self.unit,
            limit: if retry_after_ms.is_some() { self.limit_per_minute } else { whole(self.largest().floor()) },
            used: whole((limit - self.level()).ceil()),
            requested: whole(cost),
            retry_after_ms,
        }
    }
}

/// The account. Every method takes `now`; a `now` that lies behind counts as no time passed.
#[derive(Debug, Clone)]
pub struct Account {
    params: AccountParams,
    meters: [LeakyMeter; 2],
    updated_at: MonoTime,
    total: UserTruth,
    users: BTreeMap<String, UserTruth>,
    marked_at: MonoTime,
    first_refusal_at: Option<MonoTime>,
}

impl Account {
    /// A full account.
    ///
    /// # Errors
    /// A setting is outside its range.
    pub fn new(params: AccountParams, now: MonoTime) -> Result<Self, OutOfRange> {
        let mut account = Self {
            params,
            meters: [LeakyMeter::empty(Unit::Requests), LeakyMeter::empty(Unit::Tokens)],
            updated_at: now,
            total: UserTruth::default(),
            users: BTreeMap::new(),
            marked_at: now,
            first_refusal_at: None,
        };
        account.change(params, now)?;
        Ok(account)
    }

    /// New limits from now on; what has been used stays used.
    ///
    /// # Errors
    /// A setting is outside its range; nothing changed.
    pub fn change(&mut self, params: AccountParams, now: MonoTime) -> Result<(), OutOfRange> {
        params.validate()?;
        self.advance(now);
        self.params = params;
        let [requests, tokens] = &mut self.meters;
        requests.set(params.requests_per_minute, params.hidden_requests_per_minute, params.burst_seconds);
        tokens.set(params.tokens_per_minute, params.hidden_tokens_per_minute, params.burst_seconds);
        Ok(())
    }

    /// Somebody else spends this many requests at one moment, as far as they are there.
    pub fn spend_requests(&mut self, units: f64) {
        let [requests, _] = &mut self.meters;
        let taken = units.min(requests.burst - requests.used).max(0.0);
        requests.used += taken;
        requests.truth.hidden_units += taken;
        requests.truth.capacity_units -= taken;
    }

    /// The limits in force.
    #[must_use]
    pub const fn params(&self) -> AccountParams {
        self.params
    }

    /// Admits and charges one request with this many LLM tokens, or refuses it.
    pub fn request(&mut self, user: Option<&str>, tokens: u64, now: MonoTime) -> Verdict {
        self.advance(now);
        let costs = [1.0, units(tokens)];
        let refusal = self.refusal(costs);
        if refusal.is_none() {
            for (meter, cost) in self.meters.iter_mut().zip(costs) {
                meter.used += cost;
            }
        }
        self.count(user, tokens, refusal.as_ref());
        Verdict { refusal, shown: self.shown() }
    }

    fn refusal(&self, costs: [f64; 2]) -> Option<Refusal> {
        let meters = || self.meters.iter().zip(costs);
        if let Some((meter, cost)) = meters().find(|(meter, cost)| meter.is_too_large(*cost)) {
            return Some(meter.refusal(cost, None));
        }
        meters()
            .filter(|(meter, cost)| !meter.fits(*cost))
            .max_by(|(a, a_cost), (b, b_cost)| a.seconds_to_fit(*a_cost).total_cmp(&b.seconds_to_fit(*b_cost)))
            .map(|(meter, cost)| {
                let ms = (meter.seconds_to_fit(cost) * 1_000.0 - DUST_UNITS).ceil().max(1.0);
                meter.refusal(cost, Some(whole(ms)))
            })
    }

    fn count(&mut self, user: Option<&str>, tokens: u64, refusal: Option<&Refusal>) {
        let known = user.filter(|user| {
            user.len() <= USER_BYTES_MAX && (self.users.contains_key(*user) || self.named_users() < USERS_MAX)
        });
        let of_user = self.users.entry(known.unwrap_or(OTHER_USERS).to_owned()).or_default();
        for truth in [&mut self.total, of_user] {
            match refusal {
                None => {
                    truth.admitted_requests += 1;
                    truth.admitted_tokens = truth.admitted_tokens.saturating_add(tokens);
                }
                Some(Refusal { retry_after_ms: Some(_), .. }) => truth.refused_requests += 1,
                Some(_) => truth.too_large_requests += 1,
            }
        }
        if refusal.is_some_and(|refusal| refusal.retry_after_ms.is_some()) {
            self.first_refusal_at.get_or_insert(self.updated_at);
        }
    }

    fn named_users(&self) -> usize {
        self.users.len() - usize::from(self.users.contains_key(OTHER_USERS))
    }

    /// The header numbers as of the last request or [`Account::advance`].
    #[must_use]
    pub fn shown(&self) -> ShownMeters {
        let [requests, tokens] = &self.meters;
        ShownMeters { requests: requests.shown(), tokens: tokens.shown() }
    }

    /// The true levels in units, requests then LLM tokens; below zero when overdrawn by a change of limits.
    #[must_use]
    pub fn levels(&self) -> [f64; 2] {
        let [requests, tokens] = &self.meters;
        [requests.level(), tokens.level()]
    }

    /// Everything counted so far.
    #[must_use]
    pub fn truth(&self) -> Truth {
        let [requests, tokens] = &self.meters;
        Truth { total: self.total, users: self.users.clone(), requests: requests.truth, tokens: tokens.truth }
    }

    /// All users together.
    #[must_use]
    pub const fn total(&self) -> UserTruth {
        self.total
    }

    /// Forgets the first refusal, so that the next one is the first since now.
    pub fn mark(&mut self, now: MonoTime) {
        self.advance(now);
        self.marked_at = self.updated_at;
        self.first_refusal_at = None;
    }

    /// When [`Account::mark`] was last called; the beginning if never.
    #[must_use]
    pub const fn marked_at(&self) -> MonoTime {
        self.marked_at
    }

    /// The first refusal for want of room since the mark.
    #[must_use]
    pub const fn first_refusal_at(&self) -> Option<MonoTime> {
        self.first_refusal_at
    }

    /// Leaks, and takes hidden use, up to `now`.
    pub fn advance(&mut self, now: MonoTime) {
        let seconds = now.seconds_since(self.updated_at);
        for meter in &mut self.meters {
            meter.advance(seconds);
        }
        self.updated_at = self.updated_at.max(now);
    }
}

#[allow(clippy::cast_precision_loss, reason = "limits and token counts stay far below 2^53")]
const fn units(count: u64) -> f64 {
    count as f64
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "float-to-int casts saturate at 0 and MAX")]
const fn whole(value: f64) -> u64 {
    value as u64
}
