//! The provider's account: what it admits, what it says about it, and the truth that a test judges by.
//!
//! *Meters.* What an account counts is its provider's matter: [`Emulated::meters`].
//!
//! *Admission.* Each meter counts what is `used`. With continuous refill, use leaks away at limit ÷ window per second,
//! and a bucket holds `burst_seconds` of a minute's; with fixed windows it is forgotten when the window ends, and the
//! window holds its limit. Windows begin by the clock: minutes and days of UTC, Gemini's days in California. A request
//! is admitted if every meter has room for it, and then charged on every meter; a refused request is charged on none.
//!
//! *Settlement.* Where output was charged before it was known, the charge is corrected when the answer ends.
//!
//! *Change of limits.* `used` stays. After a halving the level, burst − used, may be below zero: refusals begin at
//! once and last until the surplus has leaked away, or the window ends, as with the real provider.
//!
//! *Hidden use.* Somebody else on the same account: a constant rate added to `used`, never above the burst, so it
//! can starve us but not overdraw the account.
//!
//! *What is shown.* `limit` is units per window, L over W. With continuous refill `reset` is (L − level)/L·W, so that a
//! reader's `level = L − reset·L/W` gives the bucket's true level for any burst; with a burst of 60 s it is the time to
//! full that OpenAI prints. A level above L (burst longer than 60 s) prints `0s`. Of a fixed window it is the time until
//! its end. A refusal's wait is the time until this request would fit, with continuous refill far shorter than the
//! reset; like the real provider's it does not foresee hidden use.
//!
//! *Truth.* What was admitted and refused, for whom, and how many units refill offered beyond hidden use.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::emulated::Emulated;
use super::meter::{Calendar, Tally};
use crate::clock::{MonoTime, UnixMillis};
use crate::provider::Shown;
use crate::quota::{Cost, Meter, Unit, Window};

/// Users counted by name; the rest are counted together.
pub const USERS_MAX: usize = 64;
/// Longest user name counted by name, in bytes.
pub const USER_BYTES_MAX: usize = 128;
/// The name under which requests without a user, with too long a name, or of the 65th user on are counted.
pub const OTHER_USERS: &str = "other";
/// Highest limit, in units per window, and highest hidden use, in units per minute.
pub const UNITS_MAX: u64 = 1_000_000_000;
/// Body bytes that count as one input LLM token.
pub const BODY_BYTES_PER_TOKEN: usize = 4;

/// The account's limits and who else uses it. Which limits it must have is its provider's matter: [`Emulated::meters`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccountParams {
    /// Limit in requests per minute, 1–1,000,000,000.
    pub requests_per_minute: u64,
    /// Limit in requests per day, 1–1,000,000,000; Groq, Gemini, fixed windows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_per_day: Option<u64>,
    /// Limit in LLM tokens per minute, input and output together, 1–1,000,000,000; OpenAI, Azure, Groq.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_per_minute: Option<u64>,
    /// Limit in LLM tokens per day, input and output together, 1–1,000,000,000; fixed windows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_per_day: Option<u64>,
    /// Limit in input LLM tokens per minute, 1–1,000,000,000; Anthropic, Gemini.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input_tokens_per_minute: Option<u64>,
    /// Limit in output LLM tokens per minute, 1–1,000,000,000; Anthropic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_tokens_per_minute: Option<u64>,
    /// What the buckets of a minute hold, in seconds of refill, 0.1–86,400; those of a day hold the same part of their
    /// limit. Never less than one unit. A fixed window holds its limit, whatever this says.
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

/// A setting outside its range.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{field} {found}: expected {range}")]
pub struct OutOfRange {
    /// The setting's name.
    pub field: &'static str,
    /// What was given.
    pub found: String,
    /// What is allowed.
    pub range: Cow<'static, str>,
}

/// `value` if `valid`, else the error that names the field and its range. Not-a-number is never in range.
pub(super) fn in_range(
    field: &'static str,
    value: f64,
    allowed: std::ops::RangeInclusive<f64>,
    range: &'static str,
) -> Result<(), OutOfRange> {
    if allowed.contains(&value) {
        Ok(())
    } else {
        Err(OutOfRange { field, found: value.to_string(), range: range.into() })
    }
}

impl AccountParams {
    /// A middling account of this provider, not shared with anybody.
    #[must_use]
    pub const fn of(emulated: Emulated) -> Self {
        let none = Self {
            requests_per_minute: 600,
            requests_per_day: None,
            tokens_per_minute: None,
            tokens_per_day: None,
            input_tokens_per_minute: None,
            output_tokens_per_minute: None,
            burst_seconds: 60.0,
            hidden_requests_per_minute: 0.0,
            hidden_tokens_per_minute: None,
            hidden_input_tokens_per_minute: None,
            hidden_output_tokens_per_minute: None,
        };
        match emulated {
            Emulated::OpenAi | Emulated::Azure => Self { tokens_per_minute: Some(200_000), ..none },
            Emulated::Anthropic => {
                Self { input_tokens_per_minute: Some(200_000), output_tokens_per_minute: Some(40_000), ..none }
            }
            Emulated::Groq => Self { requests_per_day: Some(14_400), tokens_per_minute: Some(200_000), ..none },
            Emulated::Gemini => Self { requests_per_day: Some(10_000), input_tokens_per_minute: Some(200_000), ..none },
            Emulated::FixedWindow => Self { requests_per_day: Some(12_000), tokens_per_day: Some(20_000_000), ..none },
        }
    }

    /// The limits, each with its name, none where it is not set.
    const fn limits(&self) -> [(Meter, &'static str, Option<u64>); 6] {
        const fn meter(unit: Unit, window: Window) -> Meter {
            Meter { unit, window }
        }
        [
            (meter(Unit::Requests, Window::Minute), "requests_per_minute", Some(self.requests_per_minute)),
            (meter(Unit::Requests, Window::Day), "requests_per_day", self.requests_per_day),
            (meter(Unit::Tokens, Window::Minute), "tokens_per_minute", self.tokens_per_minute),
            (meter(Unit::Tokens, Window::Day), "tokens_per_day", self.tokens_per_day),
            (meter(Unit::InputTokens, Window::Minute), "input_tokens_per_minute", self.input_tokens_per_minute),
            (meter(Unit::OutputTokens, Window::Minute), "output_tokens_per_minute", self.output_tokens_per_minute),
        ]
    }

    /// What somebody else uses, each with its name, none where it is not set.
    const fn hidden(&self) -> [(Unit, &'static str, Option<f64>); 4] {
        [
            (Unit::Requests, "hidden_requests_per_minute", Some(self.hidden_requests_per_minute)),
            (Unit::Tokens, "hidden_tokens_per_minute", self.hidden_tokens_per_minute),
            (Unit::InputTokens, "hidden_input_tokens_per_minute", self.hidden_input_tokens_per_minute),
            (Unit::OutputTokens, "hidden_output_tokens_per_minute", self.hidden_output_tokens_per_minute),
        ]
    }

    /// The names of the settings that an account of this provider has.
    pub(super) fn names(emulated: Emulated) -> Vec<&'static str> {
        let usual = Self::of(emulated);
        let limits = usual.limits().into_iter().filter(|(meter, ..)| emulated.meters().contains(meter));
        let hidden = usual.hidden().into_iter().filter(|(unit, ..)| counts(emulated, *unit));
        limits.map(|(_, name, _)| name).chain(hidden.map(|(_, name, _)| name)).chain(["burst_seconds"]).collect()
    }

    /// Checks every range, and that the limits are those of the provider.
    ///
    /// # Errors
    /// The first setting that is outside its range, missing, or another provider's.
    pub fn validate(&self, emulated: Emulated) -> Result<(), OutOfRange> {
        let most = units(UNITS_MAX);
        let foreign = |field, found: Option<String>| {
            let meters: Vec<String> = emulated.meters().iter().map(Meter::to_string).collect();
            let range = format!("none: an account of {emulated} counts {}", meters.join(", "));
            found.map_or(Ok(()), |found| Err(OutOfRange { field, found, range: range.into() }))
        };
        for (meter, field, limit) in self.limits() {
            if emulated.meters().contains(&meter) {
                in_range(field, units(limit.unwrap_or(0)), 1.0..=most, "a whole number, 1–1000000000")?;
            } else {
                foreign(field, limit.map(|limit| limit.to_string()))?;
            }
        }
        for (unit, field, hidden) in self.hidden() {
            if counts(emulated, unit) {
                in_range(field, hidden.unwrap_or(0.0), 0.0..=most, "0–1000000000")?;
            } else {
                foreign(field, hidden.map(|hidden| hidden.to_string()))?;
            }
        }
        in_range("burst_seconds", self.burst_seconds, 0.1..=86_400.0, "0.1–86400 seconds")
    }

    fn put_to(&self, tally: &mut Tally) {
        let meter = tally.meter;
        let limit = self.limits().into_iter().find(|(known, ..)| *known == meter).and_then(|(.., limit)| limit);
        let hidden = self.hidden().into_iter().find(|(unit, ..)| *unit == meter.unit).and_then(|(.., hidden)| hidden);
        tally.set(units(limit.unwrap_or(1)), hidden.unwrap_or(0.0) / 60.0, self.burst_seconds / 60.0);
    }
}

fn counts(emulated: Emulated, unit: Unit) -> bool {
    emulated.meters().iter().any(|meter| meter.unit == unit)
}

/// The LLM tokens that a request's body counts as before a tokenizer has seen it.
#[must_use]
pub fn input_tokens(body_bytes: usize) -> u64 {
    u64::try_from(body_bytes.div_ceil(BODY_BYTES_PER_TOKEN)).unwrap_or(u64::MAX)
}

/// Why a request was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// The meter with the longest wait, or the one that the request is too large for.
    pub meter: Meter,
    /// That meter's limit in units per window; for a request too large, the most that can ever be admitted.
    pub limit: u64,
    /// Units in use, as far as the limit is concerned: limit − level.
    pub used: u64,
    /// Units this request asked for.
    pub requested: u64,
    /// Time until this request would fit, in milliseconds; none if it never does.
    pub retry_after_ms: Option<u64>,
}

/// The account's answer to one request, with what it shows beside it.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// Why it was refused; none if it was admitted and charged.
    pub refusal: Option<Refusal>,
    /// The numbers of each meter, after the charge; those too of which no header tells.
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
    /// By meter: what was on offer.
    pub meters: BTreeMap<Meter, MeterTruth>,
}

/// The true levels, in units; below zero when a change of limits left the account overdrawn.
pub type Levels = BTreeMap<Meter, f64>;

/// The account. Every method takes `now`; a `now` that lies behind counts as no time passed.
#[derive(Debug, Clone)]
pub struct Account {
    emulated: Emulated,
    params: AccountParams,
    meters: Vec<Tally>,
    updated_at: MonoTime,
    total: UserTruth,
    users: BTreeMap<String, UserTruth>,
    marked_at: MonoTime,
    first_refusal_at: Option<MonoTime>,
}

impl Account {
    /// A full account, at `now`, which is `unix` by the provider's clock: its windows go by that.
    ///
    /// # Errors
    /// A setting is outside its range.
    pub fn new(emulated: Emulated, params: AccountParams, now: MonoTime, unix: UnixMillis) -> Result<Self, OutOfRange> {
        let calendar = Calendar { began_at: now, began_unix: unix, semantics: emulated.semantics() };
        Self::counting(emulated, params, now, |meter| Tally::new(meter, emulated.refill(meter), calendar))
    }

    /// A full account where what was used within the last window counts, whatever its provider does.
    ///
    /// # Errors
    /// A setting is outside its range.
    pub fn sliding(emulated: Emulated, params: AccountParams, now: MonoTime) -> Result<Self, OutOfRange> {
        let calendar = Calendar { began_at: now, began_unix: UnixMillis::default(), semantics: emulated.semantics() };
        Self::counting(emulated, params, now, |meter| Tally::sliding(meter, calendar))
    }

    fn counting(
        emulated: Emulated,
        params: AccountParams,
        now: MonoTime,
        tally: impl Fn(Meter) -> Tally,
    ) -> Result<Self, OutOfRange> {
        let mut account = Self {
            emulated,
            params,
            meters: emulated.meters().iter().copied().map(tally).collect(),
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
        params.validate(self.emulated)?;
        self.advance(now);
        self.params = params;
        for tally in &mut self.meters {
            params.put_to(tally);
        }
        Ok(())
    }

    /// New limits from now on; what is left in a bucket stays left, as where a provider keeps that and not what was used. A full
    /// one stays full.
    ///
    /// # Errors
    /// A setting is outside its range; nothing changed.
    pub fn change_around_levels(&mut self, params: AccountParams, now: MonoTime) -> Result<(), OutOfRange> {
        self.advance(now);
        let before: Vec<Option<f64>> =
            self.meters.iter().map(|tally| tally.is_touched().then(|| tally.level())).collect();
        self.change(params, now)?;
        for (tally, level) in self.meters.iter_mut().zip(before) {
            tally.keep_level(level.unwrap_or(f64::INFINITY));
        }
        Ok(())
    }

    /// Somebody else spends this many requests at one moment, as far as they are there.
    pub fn spend_requests(&mut self, units: f64) {
        for requests in self.meters.iter_mut().filter(|tally| tally.meter.unit == Unit::Requests) {
            requests.spend(units);
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
            for tally in &mut self.meters {
                tally.charge(cost.of(tally.meter.unit), now);
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

    /// For how long this request would have to wait for room as it is now, in seconds; the largest number when it never fits.
    #[must_use]
    pub fn seconds_to_fit(&self, cost: &Cost) -> f64 {
        let wait = |tally: &Tally| {
            let cost = cost.of(tally.meter.unit);
            if tally.is_too_large(cost) { f64::MAX } else { tally.seconds_to_fit(cost, self.updated_at) }
        };
        self.meters.iter().map(wait).fold(0.0, f64::max)
    }

    /// An admitted request's output is known: what was charged for it becomes what it really was.
    pub fn settle(&mut self, user: Option<&str>, charged_tokens: u64, output_tokens: u64, now: MonoTime) {
        self.advance(now);
        let counts_output = |tally: &&mut Tally| matches!(tally.meter.unit, Unit::Tokens | Unit::OutputTokens);
        for tally in self.meters.iter_mut().filter(counts_output) {
            tally.correct(units(charged_tokens), units(output_tokens));
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
        let tallies = || self.meters.iter().map(|tally| (tally, cost.of(tally.meter.unit)));
        if let Some((tally, cost)) = tallies().find(|(tally, cost)| tally.is_too_large(*cost)) {
            return Some(tally.refusal(cost, None));
        }
        tallies()
            .filter(|(tally, cost)| !tally.fits(*cost))
            .map(|(tally, cost)| (tally, cost, tally.seconds_to_fit(cost, self.updated_at)))
            .max_by(|(.., a), (.., b)| a.total_cmp(b))
            .map(|(tally, cost, seconds)| tally.refusal(cost, Some(seconds)))
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

    /// The numbers of each meter, as of the last request or [`Account::advance`].
    #[must_use]
    pub fn shown(&self) -> Vec<Shown> {
        self.meters.iter().map(|tally| tally.shown(self.updated_at)).collect()
    }

    /// The true levels, in units; below zero when overdrawn by a change of limits.
    #[must_use]
    pub fn levels(&self) -> Levels {
        self.meters.iter().map(|tally| (tally.meter, tally.level())).collect()
    }

    /// Everything counted so far.
    #[must_use]
    pub fn truth(&self) -> Truth {
        let meters = self.meters.iter().map(|tally| (tally.meter, tally.truth)).collect();
        Truth { total: self.total, users: self.users.clone(), meters }
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

    /// Gives back what is to be, and takes hidden use, up to `now`.
    pub fn advance(&mut self, now: MonoTime) {
        let now = self.updated_at.max(now);
        for tally in &mut self.meters {
            tally.advance(self.updated_at, now);
        }
        self.updated_at = now;
    }
}

#[allow(clippy::cast_precision_loss, reason = "limits and token counts stay far below 2^53")]
pub(super) const fn units(count: u64) -> f64 {
    count as f64
}
