//! Code that waits for a store, run by hand: a simulation answers its calls when it pleases.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::lossy::{Answer, Ask};
use crate::store::{LeaseId, Listing, Outcome, Select, Source, Store, StoreError, Txn, Watch};

/// Where the answer to a call goes.
pub type Waits = oneshot::Sender<Result<Answer, StoreError>>;

/// A store whose calls lie there until somebody answers them. It has no watches: who drives one by hand tells what happens.
#[derive(Debug, Clone, Default)]
pub struct Counter {
    calls: Arc<Mutex<Vec<(Ask, Waits)>>>,
}

impl Counter {
    /// The calls since this was last asked, in order.
    #[must_use]
    pub fn take(&self) -> Vec<(Ask, Waits)> {
        std::mem::take(&mut *self.calls.lock())
    }

    async fn ask(&self, ask: Ask) -> Result<Answer, StoreError> {
        let (waits, answer) = oneshot::channel();
        self.calls.lock().push((ask, waits));
        answer.await.unwrap_or_else(|_| Err(mixed_up()))
    }
}

fn mixed_up() -> StoreError {
    StoreError::Rejected("the simulation gave another answer than was asked for".to_owned())
}

#[async_trait]
impl Source for Counter {
    async fn list(&self, selects: &[Select]) -> Result<Listing, StoreError> {
        match self.ask(Ask::List(selects.to_vec())).await? {
            Answer::Listed(listing) => Ok(listing),
            _ => Err(mixed_up()),
        }
    }

    async fn watch(&self, _selects: &[Select], _from_revision: u64) -> Result<Watch, StoreError> {
        Err(StoreError::Rejected("not to be watched".to_owned()))
    }
}

#[async_trait]
impl Store for Counter {
    async fn commit(&self, txn: Txn) -> Result<Outcome, StoreError> {
        match self.ask(Ask::Commit(txn)).await? {
            Answer::Done(outcome) => Ok(outcome),
            _ => Err(mixed_up()),
        }
    }

    async fn lease(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        match self.ask(Ask::Lease(ttl)).await? {
            Answer::Leased(lease) => Ok(lease),
            _ => Err(mixed_up()),
        }
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.ask(Ask::KeepAlive(lease)).await.map(drop)
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.ask(Ask::Revoke(lease)).await.map(drop)
    }
}

/// Something under way.
pub struct Errand<T>(Pin<Box<dyn Future<Output = T> + Send>>);

impl<T> fmt::Debug for Errand<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Errand")
    }
}

impl<T> Errand<T> {
    /// Sets out; nothing happens until it is first gone on with.
    pub fn new(work: impl Future<Output = T> + Send + 'static) -> Self {
        Self(Box::pin(work))
    }

    /// Goes on as far as can be without another answer; what came of it, when it is done. Not to be called again then.
    pub fn go_on(&mut self) -> Option<T> {
        match self.0.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(done) => Some(done),
            Poll::Pending => None,
        }
    }
}
