//! The keys, built and parsed here alone.
//!
//! | key | value |
//! |---|---|
//! | `leader` | [`LeaderRecord`] |
//! | `limits/<pool>/<tenant>` | [`Grant`](super::Grant) |
//! | `pulse/<pool>` | [`Pulse`](super::Pulse) |
//! | `overrides/<pool>/<tenant>` | [`Override`](super::Override); tenant `*` and `@capacity` too |
//! | `overrides-status/<pool>/<tenant>` | [`OverrideStatus`](super::OverrideStatus) |
//! | `policy/<pool>` | a pool's policy: the keys of the file's `[pools.<id>]` as JSON |
//! | `policy-status/<pool>` | [`PolicyStatus`](super::PolicyStatus) |
//! | `members/<instance>` | [`Presence`] |
//! | `state/<pool>` | what a leader tells the next one of a pool |
//! | `audit/<time>-<id>` | [`Audit`](super::Audit) |

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Mode;
use super::overrides::Target;
use crate::clock::UnixMillis;
use crate::quota::{Grantee, PoolId, decode_segment, encode_segment};

/// Where the keys live unless configured otherwise.
pub const DEFAULT_PREFIX: &str = "/tidegate/v1";

/// The leader's record, bound to its lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaderRecord {
    /// The leader's name.
    pub name: String,
    /// Where reports go, e.g. `http://127.0.0.1:7676`.
    pub report_url: String,
}

/// A member's record under `members/<instance>`, bound to its lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Presence {
    /// Random per process start.
    pub boot: String,
    /// The pools it uses.
    #[serde(default)]
    pub pools: Vec<PoolId>,
    /// Its own word on whether limits hold, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
}

/// A parsed key.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    /// `leader`.
    Leader,
    /// `limits/<pool>/<tenant>`.
    Limits(PoolId, Grantee),
    /// `pulse/<pool>`.
    Pulse(PoolId),
    /// `overrides/<pool>/<tenant>`.
    Override(PoolId, Target),
    /// `overrides-status/<pool>/<tenant>`.
    OverrideStatus(PoolId, Target),
    /// `policy/<pool>`.
    Policy(PoolId),
    /// `policy-status/<pool>`.
    PolicyStatus(PoolId),
    /// `members/<instance>`.
    Member(String),
    /// `state/<pool>`.
    State(PoolId),
    /// `audit/<time>-<id>`: in the order of time.
    Audit {
        /// When something was changed.
        at: UnixMillis,
        /// Tells changes of one millisecond apart.
        id: u32,
    },
}

/// The keyspace under one prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keyspace {
    prefix: String,
}

/// Why a prefix was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("key prefix {0:?}: expected an absolute path of 2–128 printable ASCII characters without a trailing slash")]
pub struct PrefixError(String);

impl Default for Keyspace {
    fn default() -> Self {
        Self { prefix: DEFAULT_PREFIX.to_owned() }
    }
}

impl Keyspace {
    /// A keyspace under `prefix`.
    ///
    /// # Errors
    /// [`PrefixError`] unless it begins with `/`, does not end with one, and is printable ASCII.
    pub fn new(prefix: &str) -> Result<Self, PrefixError> {
        let valid = (2..=128).contains(&prefix.len())
            && prefix.starts_with('/')
            && !prefix.ends_with('/')
            && prefix.bytes().all(|b| b.is_ascii_graphic());
        if valid { Ok(Self { prefix: prefix.to_owned() }) } else { Err(PrefixError(prefix.to_owned())) }
    }

    /// What all keys begin with.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// A key as written in the store.
    #[must_use]
    pub fn key(&self, key: &Key) -> String {
        let prefix = &self.prefix;
        match key {
            Key::Leader => format!("{prefix}/leader"),
            Key::Limits(pool, grantee) => format!("{prefix}/limits/{pool}/{grantee}"),
            Key::Pulse(pool) => format!("{prefix}/pulse/{pool}"),
            Key::Override(pool, target) => format!("{prefix}/overrides/{pool}/{target}"),
            Key::OverrideStatus(pool, target) => format!("{prefix}/overrides-status/{pool}/{target}"),
            Key::Policy(pool) => format!("{prefix}/policy/{pool}"),
            Key::PolicyStatus(pool) => format!("{prefix}/policy-status/{pool}"),
            Key::Member(instance) => format!("{prefix}/members/{}", encode_segment(instance)),
            Key::State(pool) => format!("{prefix}/state/{pool}"),
            Key::Audit { at, id } => format!("{prefix}/audit/{}", audit_segment(*at, *id)),
        }
    }

    /// The prefix of a pool's grants.
    #[must_use]
    pub fn limits_of(&self, pool: &PoolId) -> String {
        format!("{}/limits/{pool}/", self.prefix)
    }

    /// The prefix of all pulses: one for each pool.
    #[must_use]
    pub fn pulses(&self) -> String {
        format!("{}/pulse/", self.prefix)
    }

    /// The prefix of the pools' policies.
    #[must_use]
    pub fn policies(&self) -> String {
        format!("{}/policy/", self.prefix)
    }

    /// The prefix of what the leader says of policies.
    #[must_use]
    pub fn policy_statuses(&self) -> String {
        format!("{}/policy-status/", self.prefix)
    }

    /// The prefix of all overrides.
    #[must_use]
    pub fn overrides(&self) -> String {
        format!("{}/overrides/", self.prefix)
    }

    /// The prefix of a pool's overrides.
    #[must_use]
    pub fn overrides_of(&self, pool: &PoolId) -> String {
        format!("{}/overrides/{pool}/", self.prefix)
    }

    /// The prefix of all override statuses.
    #[must_use]
    pub fn override_statuses(&self) -> String {
        format!("{}/overrides-status/", self.prefix)
    }

    /// The prefix of a pool's override statuses.
    #[must_use]
    pub fn override_statuses_of(&self, pool: &PoolId) -> String {
        format!("{}/overrides-status/{pool}/", self.prefix)
    }

    /// The prefix of the members' presence.
    #[must_use]
    pub fn members(&self) -> String {
        format!("{}/members/", self.prefix)
    }

    /// The prefix of the audit records.
    #[must_use]
    pub fn audits(&self) -> String {
        format!("{}/audit/", self.prefix)
    }

    /// Reads a key; `None` for one that is not of this keyspace or not well formed.
    #[must_use]
    pub fn parse(&self, key: &str) -> Option<Key> {
        let rest = key.strip_prefix(&self.prefix)?.strip_prefix('/')?;
        let mut segments = rest.split('/');
        let parsed = match (segments.next()?, segments.next(), segments.next()) {
            ("leader", None, None) => Key::Leader,
            ("limits", Some(pool), Some(grantee)) => Key::Limits(pool.parse().ok()?, grantee.parse().ok()?),
            ("pulse", Some(pool), None) => Key::Pulse(pool.parse().ok()?),
            ("overrides", Some(pool), Some(target)) => Key::Override(pool.parse().ok()?, target.parse().ok()?),
            ("overrides-status", Some(pool), Some(target)) => {
                Key::OverrideStatus(pool.parse().ok()?, target.parse().ok()?)
            }
            ("policy", Some(pool), None) => Key::Policy(pool.parse().ok()?),
            ("policy-status", Some(pool), None) => Key::PolicyStatus(pool.parse().ok()?),
            ("members", Some(instance), None) if !instance.is_empty() => Key::Member(decode_segment(instance)?),
            ("state", Some(pool), None) => Key::State(pool.parse().ok()?),
            ("audit", Some(segment), None) => parse_audit(segment)?,
            _ => return None,
        };
        segments.next().is_none().then_some(parsed)
    }
}

/// Sorts as the times do: each is written to the millisecond, in UTC.
fn audit_segment(at: UnixMillis, id: u32) -> String {
    format!("{:.3}-{id:08x}", at.timestamp().unwrap_or(Timestamp::MAX))
}

fn parse_audit(segment: &str) -> Option<Key> {
    let (time, id) = segment.rsplit_once('-')?;
    let at = UnixMillis::from(time.parse::<Timestamp>().ok()?);
    let id = u32::from_str_radix(id, 16).ok()?;
    (audit_segment(at, id) == segment).then_some(Key::Audit { at, id })
}
