//! etcd behind a network that loses and delays, as its clients find it at the worst: for simulations.
//!
//! *What it keeps to*, because etcd does: one order of revisions, transactions that happen whole or not at all, leases that take
//! their keys with them, and the events of each select of a watch in order. *What it does not promise*, because etcd does not:
//! that an answer comes, that what was asked without an answer was not done, that two selects of a watch are told in step, that
//! a watch lives, that history is kept, that a store that comes back is the one that went.
//!
//! It is driven by a [`Timeline`]: a client [asks](LossyStore::ask), what then happens is planned as [`Wire`], and what reaches
//! the client comes out of [`LossyStore::on_wire`].

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::Duration;

use super::events::{Dice, Timeline};
use crate::clock::MonoTime;
use crate::store::{
    ALIVE_EVERY, CALL_TIMEOUT, Change, Kv, LeaseId, Listing, Outcome, Select, StoreError, Txn, WATCH_SILENT_MAX,
    WatchEvent,
};

const LEASES_LOOKED_AT_EVERY: Duration = Duration::from_millis(500);

/// A client, numbered by who runs the simulation.
pub type Client = usize;

/// A call, numbered from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Call(u64);

/// A watch, numbered from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct WatchId(u64);

/// What a client asks.
#[derive(Debug, Clone)]
pub enum Ask {
    /// See [`Kv::list`].
    List(Vec<Select>),
    /// See [`Kv::commit`].
    Commit(Txn),
    /// See [`Kv::lease`].
    Lease(Duration),
    /// See [`Kv::keep_alive`].
    KeepAlive(LeaseId),
    /// See [`Kv::revoke`].
    Revoke(LeaseId),
}

/// What is answered.
#[derive(Debug, Clone)]
pub enum Answer {
    /// To [`Ask::List`].
    Listed(Listing),
    /// To [`Ask::Commit`].
    Done(Outcome),
    /// To [`Ask::Lease`].
    Leased(LeaseId),
    /// To [`Ask::KeepAlive`] and [`Ask::Revoke`].
    Well,
}

/// What happens on the way between clients and store.
#[derive(Debug, Clone)]
pub enum Wire {
    /// A call reaches the store.
    Arrives(Client, Call, Ask),
    /// An answer reaches the client.
    Answers(Client, Call, Result<Answer, StoreError>),
    /// A message of a watch reaches the client.
    Tells(WatchId, Result<WatchEvent, StoreError>),
    /// The store sends watches what they have not been sent.
    Feeds,
    /// The store looks for leases that have run out.
    LooksAtLeases,
    /// Quiet watches say that they are alive; their clients close those that have been silent for too long.
    Breathes,
}

/// What reaches a client.
#[derive(Debug)]
pub enum Reached {
    /// The answer to a call.
    Answer(Client, Call, Result<Answer, StoreError>),
    /// A message of a watch; after an error it is over.
    Told(Client, WatchId, Result<WatchEvent, StoreError>),
    /// Something was written, for those who look at the store itself.
    Written(Vec<Change>),
}

/// How a client's network is.
#[derive(Debug, Clone, PartialEq)]
pub struct Weather {
    /// How long a message is on its way.
    pub delay: Range<Duration>,
    /// How often a call is lost, or its answer: each with this probability.
    pub loss: f64,
    /// How often a message of a watch comes twice.
    pub twice: f64,
    /// Nothing gets through, either way.
    pub cut: bool,
}

impl Weather {
    /// A good network: a millisecond or two.
    #[must_use]
    pub fn fair() -> Self {
        Self { delay: Duration::from_micros(200)..Duration::from_millis(2), loss: 0.0, twice: 0.0, cut: false }
    }
}

#[derive(Debug)]
struct Open {
    client: Client,
    selects: Vec<Select>,
    /// What was not sent yet begins here.
    from: u64,
    /// When the last message of each select arrives: the next one does not overtake it.
    last_at: Vec<MonoTime>,
    /// When the client last heard of it.
    heard_at: MonoTime,
    /// The store does not get round to it.
    stalled: bool,
    /// Its connection is, and the client does not know yet.
    lost: bool,
}

/// etcd and its clients' networks.
#[derive(Debug)]
pub struct LossyStore {
    kv: Kv,
    weather: BTreeMap<Client, Weather>,
    watches: BTreeMap<WatchId, Open>,
    calls: u64,
    opened: u64,
    /// Which cluster each client listed last.
    listed: BTreeMap<Client, u64>,
    /// Calls that wait for their answer, until they are given up.
    waiting: BTreeSet<Call>,
    down: bool,
    full: bool,
    feeding: bool,
    /// The revision up to which changes were told to those who look at the store itself.
    looked: u64,
}

impl LossyStore {
    /// An empty store that answers.
    pub fn new<E: From<Wire>>(cluster_id: u64, timeline: &mut Timeline<E>) -> Self {
        timeline.after(LEASES_LOOKED_AT_EVERY, Wire::LooksAtLeases);
        timeline.after(ALIVE_EVERY, Wire::Breathes);
        Self {
            kv: Kv::new(cluster_id),
            weather: BTreeMap::new(),
            watches: BTreeMap::new(),
            calls: 0,
            opened: 0,
            listed: BTreeMap::new(),
            waiting: BTreeSet::new(),
            down: false,
            full: false,
            feeding: false,
            looked: 1,
        }
    }

    /// To whom something on the way is going; `None` when it goes to the store.
    #[must_use]
    pub fn addressee(&self, wire: &Wire) -> Option<Client> {
        match wire {
            Wire::Answers(client, ..) => Some(*client),
            Wire::Tells(watch, _) => self.watches.get(watch).map(|open| open.client),
            _ => None,
        }
    }

    /// What is stored.
    #[must_use]
    pub fn kv(&self) -> &Kv {
        &self.kv
    }

    /// A client's network, to be changed.
    pub fn weather(&mut self, client: Client) -> &mut Weather {
        self.weather.entry(client).or_insert_with(Weather::fair)
    }

    /// Whether a client's network and the store itself let calls through now.
    #[must_use]
    pub fn reaches(&self, client: Client) -> bool {
        !self.down && !self.weather.get(&client).is_some_and(|weather| weather.cut)
    }

    /// Whether a client's network loses and delays nothing to speak of, and brings nothing twice.
    #[must_use]
    pub fn is_fair(&self, client: Client) -> bool {
        self.weather.get(&client).is_none_or(|weather| *weather == Weather::fair())
    }

    /// Whether the store does not get round to a watch, or its connection is lost.
    #[must_use]
    pub fn is_stalled(&self, watch: WatchId) -> bool {
        self.watches.get(&watch).is_none_or(|open| open.stalled || open.lost)
    }

    /// Whether what was sent to a watch in worse weather is still on its way: nothing that is sent now overtakes it.
    #[must_use]
    pub fn is_behind(&self, watch: WatchId, now: MonoTime) -> bool {
        let soon = now + Weather::fair().delay.end;
        self.watches.get(&watch).is_some_and(|open| open.last_at.iter().any(|at| *at > soon))
    }

    /// Asks; the answer is [`Reached::Answer`], an error after [`CALL_TIMEOUT`] at the latest.
    pub fn ask<E: From<Wire>>(
        &mut self,
        client: Client,
        ask: Ask,
        timeline: &mut Timeline<E>,
        dice: &mut Dice,
    ) -> Call {
        self.calls += 1;
        let call = Call(self.calls);
        self.waiting.insert(call);
        timeline.after(CALL_TIMEOUT, Wire::Answers(client, call, Err(unavailable("no answer in time"))));
        let weather = self.weather(client).clone();
        if !weather.cut && !dice.chance(weather.loss) {
            timeline.after(dice.span(&weather.delay), Wire::Arrives(client, call, ask));
        }
        call
    }

    /// Opens a watch; its messages are [`Reached::Told`].
    pub fn watch<E: From<Wire>>(
        &mut self,
        client: Client,
        selects: Vec<Select>,
        from: u64,
        timeline: &mut Timeline<E>,
    ) -> WatchId {
        self.opened += 1;
        let id = WatchId(self.opened);
        let now = timeline.now();
        let last_at = vec![now; selects.len()];
        self.watches.insert(id, Open { client, selects, from, last_at, heard_at: now, stalled: false, lost: false });
        self.feed_soon(timeline);
        id
    }

    /// The client closes a watch: nothing more comes of it.
    pub fn close(&mut self, watch: WatchId) {
        self.watches.remove(&watch);
    }

    /// The watches that are open.
    #[must_use]
    pub fn watches(&self) -> Vec<WatchId> {
        self.watches.keys().copied().collect()
    }

    /// What happens on the way; what follows is planned, what reaches a client is returned.
    pub fn on_wire<E: From<Wire>>(
        &mut self,
        wire: Wire,
        timeline: &mut Timeline<E>,
        dice: &mut Dice,
    ) -> Option<Reached> {
        match wire {
            Wire::Arrives(client, call, ask) => {
                if self.down || self.weather(client).cut {
                    return None;
                }
                let answer = self.execute(ask, timeline.now());
                if let Ok(Answer::Listed(listing)) = &answer {
                    self.listed.insert(client, listing.cluster_id);
                }
                let weather = self.weather(client).clone();
                if !dice.chance(weather.loss) {
                    timeline.after(dice.span(&weather.delay), Wire::Answers(client, call, answer));
                }
                self.written(timeline)
            }
            Wire::Answers(client, call, answer) => {
                // What comes late is an answer all the same, as long as its client has not given up.
                if !self.waiting.contains(&call) || self.weather(client).cut && answer.is_ok() {
                    return None;
                }
                self.waiting.remove(&call);
                Some(Reached::Answer(client, call, answer))
            }
            Wire::Tells(watch, event) => {
                let open = self.watches.get_mut(&watch)?;
                let client = open.client;
                if event.is_err() {
                    // A client learns of the end of its connection by itself, in time.
                    self.watches.remove(&watch);
                } else if open.lost || self.weather.get(&client).is_some_and(|weather| weather.cut) {
                    // A connection loses nothing from its middle: it is lost itself, and the client waits in vain.
                    open.lost = true;
                    return None;
                } else {
                    open.heard_at = timeline.now();
                }
                Some(Reached::Told(client, watch, event))
            }
            Wire::Feeds => {
                self.feed(timeline, dice);
                None
            }
            Wire::LooksAtLeases => {
                timeline.after(LEASES_LOOKED_AT_EVERY, Wire::LooksAtLeases);
                if !self.down {
                    let now = since_zero(timeline.now());
                    let over = |lease: &LeaseId| self.kv.lease_ends(*lease).is_some_and(|end| end <= now);
                    let over: Vec<LeaseId> = self.kv.leases().into_iter().filter(over).collect();
                    for lease in over {
                        self.kv.revoke(lease);
                    }
                }
                self.written(timeline)
            }
            Wire::Breathes => {
                timeline.after(ALIVE_EVERY, Wire::Breathes);
                self.breathe(timeline, dice);
                None
            }
        }
    }

    // === Faults ===

    /// The store stops, with all that it keeps; or comes back with it.
    pub fn set_down<E: From<Wire>>(&mut self, down: bool, timeline: &mut Timeline<E>) {
        if down != self.down {
            self.down = down;
            self.kv.restart(since_zero(timeline.now()));
            self.break_watches(timeline);
        }
    }

    /// It takes no writes any more, or does again.
    pub fn set_full(&mut self, full: bool) {
        self.full = full;
    }

    /// A watch breaks.
    pub fn break_watch<E: From<Wire>>(&mut self, watch: WatchId, timeline: &mut Timeline<E>) {
        timeline.after(Duration::ZERO, Wire::Tells(watch, Err(unavailable("watch canceled"))));
    }

    /// The store does not get round to a watch, or does again.
    pub fn set_stalled<E: From<Wire>>(&mut self, watch: WatchId, stalled: bool, timeline: &mut Timeline<E>) {
        if let Some(open) = self.watches.get_mut(&watch) {
            open.stalled = stalled;
        }
        self.feed_soon(timeline);
    }

    /// Forgets all history. Watches that were sent all of it do not notice; others are told.
    pub fn compact<E: From<Wire>>(&mut self, timeline: &mut Timeline<E>) {
        self.kv.compact(self.kv.revision());
        self.feed_soon(timeline);
    }

    /// Somebody revokes a lease by hand.
    pub fn revoke<E: From<Wire>>(&mut self, lease: LeaseId, timeline: &mut Timeline<E>) -> Option<Reached> {
        self.kv.revoke(lease);
        self.written(timeline)
    }

    /// The store is replaced by what it was, perhaps as another cluster: its leases have their whole time again.
    pub fn restore<E: From<Wire>>(&mut self, snapshot: Kv, timeline: &mut Timeline<E>) {
        self.kv = snapshot;
        self.kv.restart(since_zero(timeline.now()));
        self.looked = self.kv.revision();
        self.break_watches(timeline);
    }

    // === Within ===

    fn execute(&mut self, ask: Ask, now: MonoTime) -> Result<Answer, StoreError> {
        let now = since_zero(now);
        match ask {
            Ask::List(selects) => self.kv.list(&selects).map(Answer::Listed),
            Ask::Commit(_) | Ask::Lease(_) if self.full => Err(StoreError::NoSpace),
            Ask::Commit(txn) => self.kv.commit(txn, now).map(Answer::Done),
            Ask::Lease(ttl) => Ok(Answer::Leased(self.kv.lease(ttl, now))),
            Ask::KeepAlive(lease) => self.kv.keep_alive(lease, now).map(|()| Answer::Well),
            Ask::Revoke(lease) => {
                self.kv.revoke(lease);
                Ok(Answer::Well)
            }
        }
    }

    /// Tells those who look at the store itself, and soon the watches.
    fn written<E: From<Wire>>(&mut self, timeline: &mut Timeline<E>) -> Option<Reached> {
        if self.kv.revision() == self.looked {
            return None;
        }
        let all = [Select::Prefix("/".to_owned())];
        let changes = self.kv.since(self.looked + 1, &all).unwrap_or_default();
        self.looked = self.kv.revision();
        self.feed_soon(timeline);
        Some(Reached::Written(changes))
    }

    fn feed_soon<E: From<Wire>>(&mut self, timeline: &mut Timeline<E>) {
        if !std::mem::replace(&mut self.feeding, true) {
            timeline.after(Duration::ZERO, Wire::Feeds);
        }
    }

    fn feed<E: From<Wire>>(&mut self, timeline: &mut Timeline<E>, dice: &mut Dice) {
        self.feeding = false;
        for id in self.elsewhere() {
            if let Some(open) = self.watches.get_mut(&id) {
                open.lost = true;
            }
            timeline.after(Duration::ZERO, Wire::Tells(id, Err(StoreError::Restored)));
        }
        let ids: Vec<WatchId> = self.watches.keys().copied().collect();
        for id in ids {
            let Some(open) = self.watches.get_mut(&id).filter(|open| !open.stalled && !open.lost && !self.down) else {
                continue;
            };
            let weather = self.weather.entry(open.client).or_insert_with(Weather::fair).clone();
            if weather.cut {
                continue;
            }
            let from = open.from;
            open.from = from.max(self.kv.revision() + 1);
            for (select, last_at) in open.selects.iter().zip(&mut open.last_at) {
                let found = self.kv.since(from, std::slice::from_ref(select));
                let event = match found {
                    Ok(changes) if changes.is_empty() => continue,
                    Ok(changes) => {
                        let revision = changes.last().map_or(from, Change::mod_revision);
                        Ok(WatchEvent::Changes { changes, revision })
                    }
                    Err(error) => Err(error),
                };
                *last_at = (*last_at).max(timeline.now() + dice.span(&weather.delay));
                if dice.chance(weather.twice) {
                    timeline.at(*last_at, Wire::Tells(id, event.clone()));
                }
                timeline.at(*last_at, Wire::Tells(id, event));
            }
        }
    }

    fn breathe<E: From<Wire>>(&mut self, timeline: &mut Timeline<E>, dice: &mut Dice) {
        let now = timeline.now();
        let mut silent = BTreeSet::new();
        for (id, open) in &self.watches {
            let weather = self.weather.get(&open.client).cloned().unwrap_or_else(Weather::fair);
            if now.since(open.heard_at) >= WATCH_SILENT_MAX {
                silent.insert(*id);
            } else if !weather.cut && !self.down && !open.stalled && !open.lost {
                timeline.after(dice.span(&weather.delay), Wire::Tells(*id, Ok(WatchEvent::Alive)));
            }
        }
        for id in silent {
            let silent = StoreError::Silent { seconds: WATCH_SILENT_MAX.as_secs() };
            timeline.after(Duration::ZERO, Wire::Tells(id, Err(silent)));
        }
    }

    /// Watches of another store than was listed, or of one that is behind it.
    fn elsewhere(&self) -> Vec<WatchId> {
        let is_elsewhere = |open: &Open| {
            let other = self.listed.get(&open.client).is_some_and(|listed| *listed != self.kv.cluster_id());
            other || self.kv.revision() + 1 < open.from
        };
        self.watches.iter().filter(|(_, open)| !open.lost && is_elsewhere(open)).map(|(id, _)| *id).collect()
    }

    fn break_watches<E: From<Wire>>(&mut self, timeline: &mut Timeline<E>) {
        for id in self.watches() {
            self.set_stalled(id, true, timeline);
            self.break_watch(id, timeline);
        }
    }
}

fn unavailable(detail: &str) -> StoreError {
    StoreError::Unavailable { endpoints: "the simulated store".to_owned(), detail: detail.to_owned() }
}

fn since_zero(now: MonoTime) -> Duration {
    Duration::from_nanos(now.0)
}
