//! Records as the leader writes them, put by hand.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use tidegate::clock::UnixMillis;
use tidegate::plan::keyspace::{Key, Keyspace, LeaderRecord};
use tidegate::plan::{GRANT_SCHEMA, Grant, Mode, PULSE_SCHEMA, Pulse, Rate, Reason, Stamp, Target, Thresholds};
use tidegate::quota::{Grantee, Meter, PoolId, TenantId};
use tidegate::store::{MemoryStore, Store, Txn};

pub const RPM: Meter = Meter::REQUESTS_PER_MINUTE;
pub const TPM: Meter = Meter::TOKENS_PER_MINUTE;
pub const POOL: &str = "pool";

pub fn pool() -> PoolId {
    POOL.parse().expect("valid")
}

pub fn tenant(name: &str) -> TenantId {
    name.parse().expect("valid")
}

pub fn grantee(name: &str) -> Grantee {
    name.parse().expect("valid")
}

pub fn target(name: &str) -> Target {
    Target::One(grantee(name))
}

pub fn stamp(term: u64, epoch: u64) -> Stamp {
    Stamp { term, epoch }
}

pub fn rates(rates: &[(Meter, f64, f64)]) -> Thresholds {
    let rates = rates.iter().map(|(meter, rate, burst)| (*meter, Rate { rate: *rate, burst: *burst })).collect();
    Thresholds { rates, concurrency: None }
}

/// A grant of `thresholds`, half of them safe, for two members.
pub fn grant(stamp: Stamp, thresholds: Thresholds) -> Grant {
    let safe = thresholds.scaled(0.5);
    let reason = Reason { code: "test".to_owned(), text: "by hand".to_owned() };
    Grant {
        schema: GRANT_SCHEMA,
        stamp,
        thresholds,
        safe,
        algorithms: BTreeMap::new(),
        bounded: BTreeSet::new(),
        members: 2,
        reason,
    }
}

/// A pulse valid for 15 s that tells of 600 requests/minute.
pub fn pulse(stamp: Stamp) -> Pulse {
    Pulse {
        schema: PULSE_SCHEMA,
        stamp,
        valid_for_ms: 15_000,
        capacity: [(RPM, 600.0)].into(),
        overcommit: BTreeMap::new(),
        shared: BTreeMap::new(),
        scale: BTreeMap::new(),
        scale_epoch: None,
        hold_ms: BTreeMap::new(),
        window_left_ms: BTreeMap::new(),
        mode: Mode::Enforce,
        unix_ms: UnixMillis(0),
    }
}

/// The keys of one pool in a store.
#[derive(Debug, Clone)]
pub struct Hand {
    pub store: MemoryStore,
    pub keys: Keyspace,
}

impl Hand {
    pub fn new() -> Self {
        Self { store: MemoryStore::new(), keys: Keyspace::default() }
    }

    async fn commit(&self, txn: Txn) {
        self.store.commit(txn).await.expect("memory");
    }

    pub async fn put(&self, key: &Key, value: &[u8]) {
        self.commit(Txn::put(self.keys.key(key), value.to_vec())).await;
    }

    pub async fn put_json(&self, key: &Key, value: &impl Serialize) {
        self.put(key, &serde_json::to_vec(value).expect("serialises")).await;
    }

    pub async fn delete(&self, key: &Key) {
        self.commit(Txn::delete(self.keys.key(key))).await;
    }

    pub async fn lead(&self, report_url: &str) {
        let leader = LeaderRecord { name: "hand".to_owned(), report_url: report_url.to_owned() };
        self.put_json(&Key::Leader, &leader).await;
    }

    pub async fn grant(&self, name: &str, grant: &Grant) {
        self.put_json(&Key::Limits(pool(), grantee(name)), grant).await;
    }

    pub async fn pulse(&self, pulse: &Pulse) {
        self.put_json(&Key::Pulse(pool()), pulse).await;
    }

    pub async fn override_of(&self, target: Target, record: &str) {
        self.put(&Key::Override(pool(), target), record.as_bytes()).await;
    }
}
