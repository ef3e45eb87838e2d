//! A lane as the worker that holds it has it in hand: what is to be sent, by tenant and in order, and who is at it.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;

use super::letter::read_cost;
use super::scripts::Entry;
use crate::quota::Cost;

/// Nothing more is begun in this lane.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stopped;

/// An entry that is to be sent.
#[derive(Debug, Clone)]
pub(super) struct Item {
    pub id: String,
    /// None when it cannot be read.
    pub cost: Option<Cost>,
}

/// A lane that is held.
#[derive(Debug)]
pub(super) struct Lane {
    pub number: usize,
    /// By which it is held.
    pub token: String,
    held: watch::Sender<bool>,
    hand: Mutex<Hand>,
}

#[derive(Debug, Default)]
struct Hand {
    /// Of each tenant what is to be sent, the next first. A tenant is here as long as somebody serves it.
    tenants: HashMap<Vec<u8>, VecDeque<Item>>,
    /// All of that, oldest first.
    order: BTreeSet<(u64, u64)>,
    /// How many tenants are being served.
    serving: usize,
}

impl Lane {
    pub(super) fn new(number: usize, token: String) -> Arc<Self> {
        Arc::new(Self { number, token, held: watch::Sender::new(true), hand: Mutex::default() })
    }

    /// Takes entries in, and gives the tenants that nobody serves yet, each with its guard.
    pub(super) fn take_in(self: &Arc<Self>, entries: Vec<Entry>) -> Vec<(Vec<u8>, Serving)> {
        let mut hand = self.hand.lock();
        let mut idle = Vec::new();
        for (id, tenant, cost) in entries {
            // Seen already: it was read again after an answer that did not come.
            if !hand.order.insert(order(&id)) {
                continue;
            }
            let item = Item { id, cost: read_cost(&cost) };
            if let Some(items) = hand.tenants.get_mut(&tenant) {
                items.push_back(item);
            } else {
                hand.tenants.insert(tenant.clone(), VecDeque::from([item]));
                hand.serving += 1;
                idle.push((tenant, Serving(self.clone())));
            }
        }
        idle
    }

    /// A tenant's next entry; when there is none, nobody serves the tenant any more.
    pub(super) fn next(&self, tenant: &[u8]) -> Option<Item> {
        let mut hand = self.hand.lock();
        let next = hand.tenants.get(tenant).and_then(VecDeque::front).cloned();
        if next.is_none() {
            hand.tenants.remove(tenant);
        }
        next
    }

    /// The tenant's next entry is done with.
    pub(super) fn done(&self, tenant: &[u8]) {
        let mut hand = self.hand.lock();
        let item = hand.tenants.get_mut(tenant).and_then(VecDeque::pop_front);
        if let Some(item) = item {
            hand.order.remove(&order(&item.id));
        }
    }

    /// When the oldest entry in hand was added, in ms since 1970.
    pub(super) fn oldest_ms(&self) -> Option<u64> {
        self.hand.lock().order.first().map(|(ms, _)| *ms)
    }

    /// How many tenants are being served.
    pub(super) fn serving(&self) -> usize {
        self.hand.lock().serving
    }

    /// Whether entries are begun with.
    pub(super) fn is_held(&self) -> bool {
        *self.held.borrow()
    }

    /// Begins with no more; what is being sent is brought to its end.
    pub(super) fn stop(&self) {
        self.held.send_replace(false);
    }

    /// What comes of `future`, unless the lane is stopped before.
    pub(super) async fn unless_stopped<T>(&self, future: impl Future<Output = T>) -> Result<T, Stopped> {
        let mut held = self.held.subscribe();
        tokio::select! {
            biased;
            _ = held.wait_for(|held| !held) => Err(Stopped),
            came = future => Ok(came),
        }
    }
}

/// That a tenant of the lane is being served, as long as this is there.
#[derive(Debug)]
pub(super) struct Serving(Arc<Lane>);

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.hand.lock().serving -= 1;
        // Whoever served it is no more, and its tenant would wait for ever: another turn at the lane finds it.
        if std::thread::panicking() {
            self.0.stop();
        }
    }
}

/// An entry's place among all.
fn order(id: &str) -> (u64, u64) {
    let number = |text: &str| text.parse().unwrap_or(0);
    id.split_once('-').map_or((0, 0), |(ms, n)| (number(ms), number(n)))
}
