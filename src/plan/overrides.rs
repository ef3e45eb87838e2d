//! The override: `overrides/<pool>/<tenant>`, an operator's record, always stronger than the law.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};

use super::{Rate, RecordError};
use crate::clock::UnixMillis;
use crate::quota::{Grantee, Meter, QuotaError, TenantId};

/// Largest `scale`.
const SCALE_MAX: f64 = 10.0;

/// Whom an override is for.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Target {
    /// The pool itself (`@capacity`): takes `set` or `scale`.
    Capacity,
    /// Each tenant of the pool (`*`).
    Every,
    /// One tenant, or the undeclared ones together (`@default`).
    One(Grantee),
}

impl From<TenantId> for Target {
    fn from(tenant: TenantId) -> Self {
        Self::One(Grantee::Tenant(tenant))
    }
}

const CAPACITY: &str = "@capacity";
const EVERY: &str = "*";

/// As in keys: a tenant's name is percent-encoded.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Capacity => f.write_str(CAPACITY),
            Self::Every => f.write_str(EVERY),
            Self::One(grantee) => grantee.fmt(f),
        }
    }
}

impl FromStr for Target {
    type Err = QuotaError;

    fn from_str(segment: &str) -> Result<Self, QuotaError> {
        match segment {
            CAPACITY => Ok(Self::Capacity),
            EVERY => Ok(Self::Every),
            other => other.parse().map(Self::One),
        }
    }
}

/// What an override does to a tenant's base thresholds.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Replaces the rate.
    Set(BTreeMap<Meter, Amount>),
    /// Multiplies every rate and burst, 0–10.
    Scale(f64),
    /// At least this rate.
    Floor(BTreeMap<Meter, Amount>),
    /// At most this rate.
    Ceiling(BTreeMap<Meter, Amount>),
    /// Keeps the last base; it does not lapse.
    Freeze,
    /// Nothing is admitted.
    Block,
}

impl Action {
    /// Its name in a record.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Set(_) => "set",
            Self::Scale(_) => "scale",
            Self::Floor(_) => "floor",
            Self::Ceiling(_) => "ceiling",
            Self::Freeze => "freeze",
            Self::Block => "block",
        }
    }

    /// The meters that it names, and what of each.
    #[must_use]
    pub fn amounts(&self) -> Option<&BTreeMap<Meter, Amount>> {
        match self {
            Self::Set(map) | Self::Floor(map) | Self::Ceiling(map) => Some(map),
            Self::Scale(_) | Self::Freeze | Self::Block => None,
        }
    }
}

/// A number (units per window; the burst keeps the base's ratio, at least 1) or a whole rate.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Amount {
    /// Units per window.
    Number(f64),
    /// Rate and burst.
    Rate(Rate),
}

impl From<f64> for Amount {
    fn from(rate: f64) -> Self {
        Self::Number(rate)
    }
}

impl Amount {
    /// The rate and burst this stands for, given the base it applies to.
    #[must_use]
    pub fn resolve(self, base: Option<Rate>) -> Rate {
        match self {
            Self::Number(rate) => Rate::with_ratio_of(rate, base),
            Self::Rate(rate) => rate,
        }
    }

    /// Units per window.
    #[must_use]
    pub fn rate(self) -> f64 {
        match self {
            Self::Number(rate) => rate,
            Self::Rate(rate) => rate.rate,
        }
    }
}

/// By hand, so that a mistake in either form is named; an untagged enum would only say that no form fitted.
impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Form;
        impl<'de> Visitor<'de> for Form {
            type Value = Amount;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("units per window, as a number or as {\"rate\":…,\"burst\":…}")
            }

            fn visit_f64<E: de::Error>(self, n: f64) -> Result<Amount, E> {
                Ok(Amount::Number(n))
            }

            #[allow(clippy::cast_precision_loss, reason = "limits stay far below 2^53")]
            fn visit_u64<E: de::Error>(self, n: u64) -> Result<Amount, E> {
                Ok(Amount::Number(n as f64))
            }

            #[allow(clippy::cast_precision_loss, reason = "negative amounts are refused whatever their size")]
            fn visit_i64<E: de::Error>(self, n: i64) -> Result<Amount, E> {
                Ok(Amount::Number(n as f64))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Amount, A::Error> {
                Rate::deserialize(MapAccessDeserializer::new(map)).map(Amount::Rate)
            }
        }
        deserializer.deserialize_any(Form)
    }
}

/// An operator's record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Wire", into = "Wire")]
pub struct Override {
    /// What it does.
    pub action: Action,
    /// Who put it.
    pub by: Option<String>,
    /// Why.
    pub reason: Option<String>,
    /// When it ends, by each reader's own clock.
    pub expires_at: Option<Timestamp>,
}

/// The record as written: exactly one of six fields.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    set: Option<BTreeMap<Meter, Amount>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    scale: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    floor: Option<BTreeMap<Meter, Amount>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ceiling: Option<BTreeMap<Meter, Amount>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    freeze: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    block: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    by: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires_at: Option<String>,
}

impl TryFrom<Wire> for Override {
    type Error = RecordError;

    fn try_from(wire: Wire) -> Result<Self, RecordError> {
        let flag = |name: &str, value: Option<bool>, action: Action| match value {
            None => Ok(None),
            Some(true) => Ok(Some(action)),
            Some(false) => Err(RecordError::Range(format!("{name} is false: expected true, or no {name} at all"))),
        };
        let given = [
            wire.set.map(|map| amounts("set", map).map(Action::Set)).transpose()?,
            wire.scale.map(scale).transpose()?,
            wire.floor.map(|map| amounts("floor", map).map(Action::Floor)).transpose()?,
            wire.ceiling.map(|map| amounts("ceiling", map).map(Action::Ceiling)).transpose()?,
            flag("freeze", wire.freeze, Action::Freeze)?,
            flag("block", wire.block, Action::Block)?,
        ];
        let mut given = given.into_iter().flatten();
        match (given.next(), given.next()) {
            (Some(action), None) => {
                let expires_at = wire.expires_at.as_deref().map(instant).transpose()?;
                Ok(Self { action, by: wire.by, reason: wire.reason, expires_at })
            }
            _ => Err(RecordError::Range("expected exactly one of set, scale, floor, ceiling, freeze and block".into())),
        }
    }
}

impl From<Override> for Wire {
    fn from(record: Override) -> Self {
        let mut wire = Self {
            set: None,
            scale: None,
            floor: None,
            ceiling: None,
            freeze: None,
            block: None,
            by: record.by,
            reason: record.reason,
            expires_at: record.expires_at.map(|end| end.to_string()),
        };
        match record.action {
            Action::Set(map) => wire.set = Some(map),
            Action::Scale(factor) => wire.scale = Some(factor),
            Action::Floor(map) => wire.floor = Some(map),
            Action::Ceiling(map) => wire.ceiling = Some(map),
            Action::Freeze => wire.freeze = Some(true),
            Action::Block => wire.block = Some(true),
        }
        wire
    }
}

fn amounts(name: &str, map: BTreeMap<Meter, Amount>) -> Result<BTreeMap<Meter, Amount>, RecordError> {
    if map.is_empty() {
        return Err(RecordError::Range(format!("{name}: expected at least one meter")));
    }
    for (meter, amount) in &map {
        let what = format!("{name} {meter}");
        match *amount {
            Amount::Rate(rate) => drop(rate.check(&what)?),
            Amount::Number(n) if n.is_finite() && n >= 0.0 => {}
            Amount::Number(n) => {
                return Err(RecordError::Range(format!("{what} is {n}: expected a finite number, 0 or more")));
            }
        }
    }
    Ok(map)
}

fn instant(text: &str) -> Result<Timestamp, RecordError> {
    text.parse().map_err(|_| {
        let text: String = text.chars().take(64).collect();
        RecordError::Range(format!("expires_at {text:?}: expected a time with its offset, as 2026-11-24T00:00:00Z"))
    })
}

fn scale(factor: f64) -> Result<Action, RecordError> {
    if factor.is_finite() && (0.0..=SCALE_MAX).contains(&factor) {
        Ok(Action::Scale(factor))
    } else {
        Err(RecordError::Range(format!("scale is {factor}: expected 0 to {SCALE_MAX}")))
    }
}

impl Override {
    /// A record without an end; better one with: [`Override::until`].
    #[must_use]
    pub const fn new(action: Action) -> Self {
        Self { action, by: None, reason: None, expires_at: None }
    }

    /// Says who put it.
    #[must_use]
    pub fn by(self, by: impl Into<String>) -> Self {
        Self { by: Some(by.into()), ..self }
    }

    /// Says why.
    #[must_use]
    pub fn because(self, reason: impl Into<String>) -> Self {
        Self { reason: Some(reason.into()), ..self }
    }

    /// Says when it ends; a time after the year 9999 is no end.
    #[must_use]
    pub fn until(self, end: UnixMillis) -> Self {
        Self { expires_at: end.timestamp(), ..self }
    }

    /// The record as it is written under `target`'s key.
    ///
    /// # Errors
    /// [`RecordError`] when no reader would take it, in the words that readers would say it in.
    pub fn to_json(&self, target: &Target) -> Result<Vec<u8>, RecordError> {
        let value = serde_json::to_vec(self)?;
        Self::parse(&value, target).map(|_| value)
    }

    /// Reads a record meant for `target`.
    ///
    /// # Errors
    /// [`RecordError`] when it is malformed, has an unknown field, or does what its target cannot take.
    pub fn parse(value: &[u8], target: &Target) -> Result<Self, RecordError> {
        let record: Self = serde_json::from_slice(value)?;
        match (target, &record.action) {
            (Target::Capacity, Action::Set(_) | Action::Scale(_)) | (Target::Every | Target::One(_), _) => Ok(record),
            (Target::Capacity, _) => Err(RecordError::Range("@capacity: expected set or scale".into())),
        }
    }

    /// Whether it has ended by the reader's own clock.
    #[must_use]
    pub fn expired(&self, wall: UnixMillis) -> bool {
        self.expires_at.is_some_and(|end| UnixMillis::from(end) <= wall)
    }
}

/// What the leader says of an override: `overrides-status/<pool>/<tenant>`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OverrideStatus {
    /// Whether the record now under the key is in force.
    pub accepted: bool,
    /// The store's revision of the record that is spoken of.
    #[serde(default)]
    pub revision: u64,
    /// What is wrong with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What is odd about it, though it is in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warning: Option<String>,
    /// The last good record: the one in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub applied: Option<Override>,
    /// When the record was first seen, by the leader's wall clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since_unix_ms: Option<UnixMillis>,
}
