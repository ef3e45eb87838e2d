//! A store whose answers are timed.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::clock::{Clock, SystemClock};
use crate::store::{Health, LeaseId, Listing, Outcome, Select, Source, Store, StoreError, Txn, Watch};
use crate::telemetry::{Metric, Telemetry};

/// The controller's store: each question counts, how long its answer took and whether there was one.
pub(super) struct Timed {
    store: Arc<dyn Store>,
    clock: SystemClock,
    telemetry: Arc<Telemetry>,
}

impl Timed {
    pub(super) fn new(store: Arc<dyn Store>, telemetry: Arc<Telemetry>) -> Self {
        Self { store, clock: SystemClock::new(), telemetry }
    }

    async fn time<T>(
        &self,
        op: &'static str,
        question: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let asked_at = self.clock.now();
        let answer = question.await;
        self.telemetry.observe(Metric::StoreSeconds, &[op], self.clock.now().seconds_since(asked_at));
        if answer.is_err() {
            self.telemetry.add(Metric::StoreErrors, &[op], 1.0);
        }
        answer
    }
}

#[async_trait]
impl Source for Timed {
    async fn list(&self, selects: &[Select]) -> Result<Listing, StoreError> {
        self.time("list", self.store.list(selects)).await
    }

    async fn watch(&self, selects: &[Select], from_revision: u64) -> Result<Watch, StoreError> {
        self.time("watch", self.store.watch(selects, from_revision)).await
    }
}

#[async_trait]
impl Store for Timed {
    async fn commit(&self, txn: Txn) -> Result<Outcome, StoreError> {
        self.time("commit", self.store.commit(txn)).await
    }

    async fn lease(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.time("lease", self.store.lease(ttl)).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.time("keep_alive", self.store.keep_alive(lease)).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.time("revoke", self.store.revoke(lease)).await
    }

    async fn health(&self) -> Result<Option<Health>, StoreError> {
        self.time("health", self.store.health()).await
    }
}
