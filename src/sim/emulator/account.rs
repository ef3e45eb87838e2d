//! The provider's account: what it admits, what it says about it, and the truth that a test judges by.
//!
//! *Meters.* An OpenAI account counts requests/minute and tokens/minute; an Anthropic account requests/minute,
//! input tokens/minute and output tokens/minute.
//!
//! *Admission.* Each meter counts what is `used`; use leaks away at limit/60 per second, and a bucket holds
//! `burst_seconds` of that. A request is admitted if every meter has room for it, and then charged on every meter; a
//! refused request is charged on none.
//!
//! *Settlement.* Where output was charged before it was known, the charge is corrected when the answer ends.
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
use crate::provider::Dialect;
use crate::quota::{Cost, Unit};

/// Users counted by name; the rest are counted together.
pub const USERS_MAX: usize = 64;
/// Longest user name counted by name, in bytes.
pub const USER_BYTES_MAX: usize = 128;
/// The name under which requests without a user, with too long a name, or of the 65th user on are counted.
pub const OTHER_USERS: &str = "other";
/// Highest limit and highest hidden use, in units per minute.
pub const PER_MINUTE_MAX: u64 = 1_000_000_000;
/// Body bytes that count as one input LLM token.
pub const BODY_BYTES_PER_TOKEN: usize = 4;

const WINDOW_SECONDS: f64 = 60.0;
/// Below this, a difference in units is floating-point dust.
const DUST_UNITS: f64 = 1e-6;

/// The account's limits and who else uses it. The limits that are set are its meters; which ones it must have is the
/// dialect's matter ([`meters`]).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccountParams {
    /// Limit in requests per minute, 1–1,000,000,000.
    pub requests_per_minute: u64,
    /// Limit in LLM tokens per minute, input and output together, 1–1,000,000,000; OpenAI.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_per_minute: Option<u64>,
    /// Limit in input LLM tokens per minute, 1–1,000,000,000; Anthropic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input_tokens_per_minute: Option<u64>,
    /// Limit in output LLM tokens per minute, 1–1,000,000,000; Anthropic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_tokens_per_minute: Option<u64>,
    /// What the buckets hold, in seconds of refill, 0.1–86,400; never less than one unit.
    pub burst_seconds: f64,
    /// Use by somebody else, in requests per minute, 0–1,000,000,000.
    pub hidden_requests_per_minute: f64,
    /// Use by somebody else, in LLM tokens per minute, 0–1,000,000,000; none is 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hidden_tokens_per_minute: Option<f64>,
    /// Use by somebody else, in input LLM tokens per minute, 0–1,000,000,000; none is 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hidden_input_tokens_per_minute: Option<f64>,
    /// Use by somebody else, in output LLM tokens per minute, 0–1,000,000,000; none is 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hidden_output_tokens_per_minute: Option<f64>,
}

/// What an account of this dialect counts.
#[must_use]
pub const fn meters(dialect: Dialect) -> &'static [Unit] {
    match dialect {
        Dialect::Anthropic => &[Unit::Requests, Unit::InputTokens, Unit::OutputTokens],
        _ => &[Unit::Requests, Unit::Tokens],
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
    /// A middling account of this dialect, not shared with anybody.
    #[must_use]
    pub const fn of(dialect: Dialect) -> Self {
        let none = Self {
            requests_per_minute: 600,
            tokens_per_minute: None,
            input_tokens_per_minute: None,
            output_tokens_per_minute: None,
            burst_seconds: 60.0,
            hidden_requests_per_minute: 0.0,
            hidden_tokens_per_minute: None,
            hidden_input_tokens_per_minute: None,
            hidden_output_tokens_per_minute: None,
        };
        match dialect {
            Dialect::Anthropic => {
                Self { input_tokens_per_minute: Some(200_000), output_tokens_per_minute: Some(40_000), ..none }
            }
            _ => Self { tokens_per_minute: Some(200_000), ..none },
        }
    }

    /// One meter's settings: limit and hidden use, each with its name and none where it is not set.
    const fn of_unit(&self, unit: Unit) -> [(&'static str, Option<f64>); 2] {
        let (limit, hidden) = match unit {
            Unit::Requests => (Some(self.requests_per_minute), Some(self.hidden_requests_per_minute)),
            Unit::Tokens => (self.tokens_per_minute, self.hidden_tokens_per_minute),
            Unit::InputTokens => (self.input_tokens_per_minute, self.hidden_input_tokens_per_minute),
            Unit::OutputTokens => (self.output_tokens_per_minute, self.hidden_output_tokens_per_minute),
        };
        let limit = match limit {
            Some(limit) => Some(units(limit)),
            None => None,
        };
        let [limit_name, hidden_name] = match unit {
            Unit::Requests => ["requests_per_minute", "hidden_requests_per_minute"],
            Unit::Tokens => ["tokens_per_minute", "hidden_tokens_per_minute"],
            Unit::InputTokens => ["input_tokens_per_minute", "hidden_input_tokens_per_minute"],
            Unit::OutputTokens => ["output_tokens_per_minute", "hidden_output_tokens_per_minute"],
        };
        [(limit_name, limit), (hidden_name, hidden)]
    }

    /// Checks every range, and that the meters are those of the dialect.
    ///
    /// # Errors
    /// The first setting that is outside its range, missing, or another dialect's.
    pub fn validate(&self, dialect: Dialect) -> Result<(), OutOfRange> {
        let most = units(PER_MINUTE_MAX);
        let foreign = match dialect {
            Dialect::Anthropic => {
                "requests, input tokens or output tokens per minute, all that an anthropic account counts"
            }
            _ => "requests or tokens per minute, all that an openai account counts",
        };
        for unit in Unit::ALL {
            let [(limit_name, limit), (hidden_name, hidden)] = self.of_unit(unit);
            if meters(dialect).contains(&unit) {
                in_range(limit_name, limit.unwrap_or(0.0), 1.0..=most, "a whole number, 1–1000000000")?;
                in_range(hidden_name, hidden.unwrap_or(0.0), 0.0..=most, "0–1000000000")?;
            } else {
                for (field, value) in [(limit_name, limit), (hidden_name, hidden)] {
                    value.map_or(Ok(()), |v| Err(OutOfRange { field, found: v.to_string(), range: foreign }))?;
                }
            }
        }
        in_range("burst_seconds", self.burst_seconds, 0.1..=86_400.0, "0.1–86400 seconds")
    }
}

/// The LLM tokens that a request's body counts as before a tokenizer has seen it.
#[must_use]
pub fn input_tokens(body_bytes: usize) -> u64 {
    u64::try_from(body_bytes.div_ceil(BODY_BYTES_PER_TOKEN)).unwrap_or(u64::MAX)
}

/// What the headers say about one meter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shown {
    /// What it counts.
    pub unit: Unit,
    /// Units per minute.
    pub limit: u64,
    /// The level after this request, rounded down, never below zero.
    pub remaining: u64,
    /// (limit − level)/limit·60 s, to the millisecond, never below zero.
    pub reset_ms: u64,
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
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Why it was refused; none if it was admitted and charged.
    pub refusal: Option<Refusal>,
    /// The header numbers of each meter, after the charge.
    pub shown: Vec<Shown>,
}

/// What happened to one user's requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct UserTruth {
    /// Requests admitted.
    pub admitted_requests: u64,
    /// LLM tokens charged for them; output that was charged before it was known is corrected when the answer ends.
    pub admitted_tokens: u64,
    /// Requests refused for want of room (429).
    pub refused_requests: u64,
    /// Requests refused because they never fit (429 too).
    pub too_large_requests: u64,
    /// Requests answered "overloaded" (503, 529), charged on no meter.
    #[serde(default)]
    pub overloaded_requests: u64,
    /// Admitted requests whose stream ended in an error.
    #[serde(default)]
    pub broken_streams: u64,
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
    /// By the user that the request body names; at most [`USERS_MAX`] and [`OTHER_USERS`].
    pub users: BTreeMap<String, UserTruth>,
    /// Requests per minute: what was on offer.
    pub requests: MeterTruth,
    /// LLM tokens per minute: what was on offer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<MeterTruth>,
    /// Input LLM tokens per minute: what was on offer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input_tokens: Option<MeterTruth>,
    /// Output LLM tokens per minute: what was on offer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_tokens: Option<MeterTruth>,
}

/// The true levels, in units; below zero when a change of limits left the account overdrawn.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Levels {
    /// Requests.
    pub requests: f64,
    /// LLM tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<f64>,
    /// Input LLM tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input_tokens: Option<f64>,
    /// Output LLM tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_tokens: Option<f64>,
}

/// One leaky meter.
#[derive(Debug, Clone)]
struct LeakyMeter {
    unit: Unit,
    limit_per_minute: f64,
    hidden_per_minute: f64,
    burst: f64,
    used: f64,
    truth: MeterTruth,
}

impl LeakyMeter {
    const fn empty(unit: Unit) -> Self {
        let truth = MeterTruth { capacity_units: 0.0, hidden_units: 0.0 };
        Self { unit, limit_per_minute: 1.0, hidden_per_minute: 0.0, burst: 1.0, used: 0.0, truth }
    }

    fn set(&mut self, params: &AccountParams) {
        let [(_, limit), (_, hidden)] = params.of_unit(self.unit);
        self.limit_per_minute = limit.unwrap_or(1.0);
        self.hidden_per_minute = hidden.unwrap_or(0.0);
        self.burst = (params.burst_seconds * self.rate()).max(1.0);
    }

    /// Units per second.
    fn rate(&self) -> f64 {
        self.limit_per_minute / WINDOW_SECONDS
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
        self.burst.min(self.limit_per_minute)
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
        let limit = self.limit_per_minute;
        let reset_seconds = (limit - self.level()) / limit * WINDOW_SECONDS;
        Shown {
            unit: self.unit,
            limit: whole(limit),
            remaining: whole((self.level() + DUST_UNITS).floor()),
            reset_ms: whole((reset_seconds * 1_000.0).round()),
        }
    }

    fn refusal(&self, cost: f64, retry_after_ms: Option<u64>) -> Refusal {
        let limit = self.limit_per_minute;
        Refusal {
            unit: self.unit,
            limit: whole(if retry_after_ms.is_some() { limit } else { self.largest().floor() }),
            used: whole((limit - self.level()).ceil()),
            requested: whole(cost),
            retry_after_ms,
        }
    }
}

/// The account. Every method takes `now`; a `now` that lies behind counts as no time passed.
#[derive(Debug, Clone)]
pub struct Account {
    dialect: Dialect,
    params: AccountParams,
    meters: Vec<LeakyMeter>,
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
    pub fn new(dialect: Dialect, params: AccountParams, now: MonoTime) -> Result<Self, OutOfRange> {
        let mut account = Self {
            dialect,
            params,
            meters: meters(dialect).iter().map(|unit| LeakyMeter::empty(*unit)).collect(),
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
        params.validate(self.dialect)?;
        self.advance(now);
        self.params = params;
        for meter in &mut self.meters {
            meter.set(&params);
        }
        Ok(())
    }

    /// Somebody else spends this many requests at one moment, as far as they are there.
    pub fn spend_requests(&mut self, units: f64) {
        for requests in self.meters.iter_mut().filter(|meter| meter.unit == Unit::Requests) {
            let taken = units.min(requests.burst - requests.used).max(0.0);
            requests.used += taken;
            requests.truth.hidden_units += taken;
            requests.truth.capacity_units -= taken;
        }
    }

    /// The limits in force.
    #[must_use]
    pub const fn params(&self) -> AccountParams {
        self.params
    }

    /// Admits and charges one request, or refuses it.
    pub fn request(&mut self, user: Option<&str>, cost: &Cost, now: MonoTime) -> Verdict {
        self.advance(now);
        let refusal = self.refusal(cost);
        if refusal.is_none() {
            for meter in &mut self.meters {
                meter.used += cost.of(meter.unit);
            }
        }
        self.count(user, |truth| match &refusal {
            None => {
                let tokens = cost.input_tokens.saturating_add(cost.output_tokens);
                truth.admitted_requests += 1;
                truth.admitted_tokens = truth.admitted_tokens.saturating_add(tokens);
            }
            Some(Refusal { retry_after_ms: Some(_), .. }) => truth.refused_requests += 1,
            Some(_) => truth.too_large_requests += 1,
        });
        if refusal.is_some_and(|refusal| refusal.retry_after_ms.is_some()) {
            self.first_refusal_at.get_or_insert(self.updated_at);
        }
        Verdict { refusal, shown: self.shown() }
    }

    /// An admitted request's output is known: what was charged for it becomes what it really was. What leaked away
    /// meanwhile stays away: a bucket is never more than full.
    pub fn settle(&mut self, user: Option<&str>, charged_tokens: u64, output_tokens: u64, now: MonoTime) {
        self.advance(now);
        for meter in self.meters.iter_mut().filter(|meter| matches!(meter.unit, Unit::Tokens | Unit::OutputTokens)) {
            meter.used = (meter.used + units(output_tokens) - units(charged_tokens)).max(0.0);
        }
        self.count(user, |truth| {
            truth.admitted_tokens = truth.admitted_tokens.saturating_add(output_tokens).saturating_sub(charged_tokens);
        });
    }

    /// A request was answered "overloaded": it cost nothing.
    pub fn overloaded(&mut self, user: Option<&str>) {
        self.count(user, |truth| truth.overloaded_requests += 1);
    }

    /// An admitted request's stream ended in an error.
    pub fn stream_broken(&mut self, user: Option<&str>) {
        self.count(user, |truth| truth.broken_streams += 1);
    }

    fn refusal(&self, cost: &Cost) -> Option<Refusal> {
        let meters = || self.meters.iter().map(|meter| (meter, cost.of(meter.unit)));
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

    fn count(&mut self, user: Option<&str>, event: impl Fn(&mut UserTruth)) {
        let known = user.filter(|user| {
            user.len() <= USER_BYTES_MAX && (self.users.contains_key(*user) || self.named_users() < USERS_MAX)
        });
        event(&mut self.total);
        event(self.users.entry(known.unwrap_or(OTHER_USERS).to_owned()).or_default());
    }

    fn named_users(&self) -> usize {
        self.users.len() - usize::from(self.users.contains_key(OTHER_USERS))
    }

    /// The header numbers of each meter, as of the last request or [`Account::advance`].
    #[must_use]
    pub fn shown(&self) -> Vec<Shown> {
        self.meters.iter().map(LeakyMeter::shown).collect()
    }

    /// The true levels, in units; below zero when overdrawn by a change of limits.
    #[must_use]
    pub fn levels(&self) -> Levels {
        let level = |unit| self.meters.iter().find(|meter| meter.unit == unit).map(LeakyMeter::level);
        Levels {
            requests: level(Unit::Requests).unwrap_or_default(),
            tokens: level(Unit::Tokens),
            input_tokens: level(Unit::InputTokens),
            output_tokens: level(Unit::OutputTokens),
        }
    }

    /// Everything counted so far.
    #[must_use]
    pub fn truth(&self) -> Truth {
        let truth = |unit| self.meters.iter().find(|meter| meter.unit == unit).map(|meter| meter.truth);
        Truth {
            total: self.total,
            users: self.users.clone(),
            requests: truth(Unit::Requests).unwrap_or_default(),
            tokens: truth(Unit::Tokens),
            input_tokens: truth(Unit::InputTokens),
            output_tokens: truth(Unit::OutputTokens),
        }
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
