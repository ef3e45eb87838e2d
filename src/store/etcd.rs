//! A store in etcd, 3.4 or newer.
//!
//! Owns the connections and how long anything may take: 2 s for a call, 1 s to connect, 9 s of silence on a watch.
//! Connections are lazy, so a store may be made before its etcd is there, and heal by themselves. Each endpoint has a
//! client of its own instead of one that balances: after a failure the next call goes to the next endpoint, and what
//! is harmless to repeat is repeated there at once. Where etcd wants a user, one signs in with the first call, and again
//! whenever etcd does not know the token any more: it has expired, etcd was restarted, or roles were changed. What was refused
//! for that was not done, so it is repeated whatever it was.

use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use etcd_client::{
    Certificate, Client, Compare, CompareOp, ConnectOptions, Error, EventType, GetOptions, Identity, KeyValue,
    PutOptions, TlsOptions, TxnOp, TxnOpResponse, WatchOptions, WatchRequestSender, WatchResponse, WatchResponseStream,
};
use parking_lot::Mutex;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout_at};

use super::pem::pem;
use super::{
    ALIVE_EVERY, CALL_TIMEOUT, Change, Condition, Entry, Health, LeaseId, Listing, Op, Outcome, Select, Source, Store,
    StoreError, TXN_OPS_MAX, Txn, WATCH_SILENT_MAX, Watch, WatchEvent, WatchSender, disjoint,
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Keys of one page of a list.
const PAGE: i64 = 1_000;
/// The largest message taken; gRPC's own 4 MiB are less than the first pages of a few full prefixes.
const MESSAGE_MAX: usize = 64 << 20;

/// Who one is to etcd.
#[derive(Clone, PartialEq, Eq)]
pub struct EtcdUser {
    /// The user's name.
    pub name: String,
    /// The password.
    pub password: String,
}

impl std::fmt::Debug for EtcdUser {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The password is nobody's business.
        f.debug_struct("EtcdUser").field("name", &self.name).finish_non_exhaustive()
    }
}

/// How one speaks TLS to etcd. Held as read: files that change are read at the next start.
#[derive(Clone)]
pub struct EtcdTls {
    options: TlsOptions,
    /// Whether there is a certificate of one's own among them.
    shows_certificate: bool,
}

impl std::fmt::Debug for EtcdTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // A key is nobody's business.
        f.debug_struct("EtcdTls").finish_non_exhaustive()
    }
}

impl EtcdTls {
    /// Trusts what these authorities have signed: PEM, one certificate or several.
    #[must_use]
    pub fn new(authorities_pem: impl AsRef<[u8]>) -> Self {
        Self {
            options: TlsOptions::new().ca_certificate(Certificate::from_pem(authorities_pem)),
            shows_certificate: false,
        }
    }

    /// The same from files: the authorities', and those of a certificate of one's own and its key.
    ///
    /// # Errors
    /// [`StoreError::File`].
    pub fn from_files(authorities: &Path, identity: Option<(&Path, &Path)>) -> Result<Self, StoreError> {
        let tls = Self::new(pem(authorities)?);
        match identity {
            Some((certificate, key)) => Ok(tls.with_identity(pem(certificate)?, pem(key)?)),
            None => Ok(tls),
        }
    }

    /// Shows this certificate (PEM, with those that lead to its authority) to an etcd that asks for one.
    #[must_use]
    pub fn with_identity(self, certificate_pem: impl AsRef<[u8]>, key_pem: impl AsRef<[u8]>) -> Self {
        Self { options: self.options.identity(Identity::from_pem(certificate_pem, key_pem)), shows_certificate: true }
    }
}

/// How one is known to etcd, and etcd to one.
#[derive(Debug, Clone, Default)]
pub struct EtcdAccess {
    /// For an etcd with authentication on. Name and password are sent as they are: without TLS, over networks that nobody else
    /// reads.
    pub user: Option<EtcdUser>,
    /// For endpoints that begin with `https://`, and for no others.
    pub tls: Option<EtcdTls>,
}

/// A store in etcd. A clone shares the connections.
#[derive(Clone)]
pub struct EtcdStore {
    shared: Arc<Shared>,
}

struct Shared {
    nodes: Vec<Node>,
    access: EtcdAccess,
    /// Held by the one who signs in: etcd takes long over a password.
    signing_in: tokio::sync::Mutex<()>,
    /// The node that answered last, or the one after the one that did not.
    current: AtomicUsize,
    /// Which cluster was listed last; 0 before any.
    listed: AtomicU64,
    /// All endpoints, for messages.
    endpoints: String,
}

struct Node {
    endpoint: String,
    client: Mutex<Client>,
    /// Whether the client has given its name, where etcd would else go by the one in the certificate.
    introduced: AtomicBool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Repeat {
    Harmless,
    Never,
}

impl std::fmt::Debug for EtcdStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EtcdStore").field("endpoints", &self.shared.endpoints).finish_non_exhaustive()
    }
}

impl EtcdStore {
    /// A store at `endpoints`, each `http://host:port`. Nothing is sent yet, so etcd need not be there.
    ///
    /// # Errors
    /// [`StoreError::NoEndpoints`] and [`StoreError::Endpoint`].
    pub async fn connect(endpoints: &[String]) -> Result<Self, StoreError> {
        Self::connect_with(endpoints, EtcdAccess::default()).await
    }

    /// The same with a user, or over TLS, or both; then each endpoint is `https://host:port`.
    ///
    /// # Errors
    /// As of [`EtcdStore::connect`], a certificate that cannot be read among them. A wrong password or authority is told by the
    /// first call.
    pub async fn connect_with(endpoints: &[String], access: EtcdAccess) -> Result<Self, StoreError> {
        if endpoints.is_empty() {
            return Err(StoreError::NoEndpoints);
        }
        let mut nodes = Vec::with_capacity(endpoints.len());
        for endpoint in endpoints {
            let endpoint = valid_endpoint(endpoint, access.tls.is_some())?;
            let client = Mutex::new(lazy_client(&endpoint, access.tls.as_ref()).await?);
            nodes.push(Node { endpoint, client, introduced: AtomicBool::new(false) });
        }
        let endpoints = nodes.iter().map(|node| node.endpoint.as_str()).collect::<Vec<_>>().join(", ");
        let (signing_in, current, listed) = (tokio::sync::Mutex::new(()), AtomicUsize::new(0), AtomicU64::new(0));
        Ok(Self { shared: Arc::new(Shared { nodes, access, signing_in, current, listed, endpoints }) })
    }
}

fn valid_endpoint(endpoint: &str, tls: bool) -> Result<String, StoreError> {
    let wrong = |detail: String| StoreError::Endpoint { endpoint: endpoint.to_owned(), detail };
    let scheme = if tls { "https" } else { "http" };
    let uri: http::Uri = endpoint.parse().map_err(|_| wrong(format!("not a URL; expected {scheme}://host:port")))?;
    match (uri.scheme_str(), tls) {
        (Some("http"), false) | (Some("https"), true) => {}
        (Some("https"), false) => {
            return Err(wrong(
                "needs the authority that signed etcd's certificate: --etcd-ca, etcd.ca_file or EtcdTls".into(),
            ));
        }
        (Some("http"), true) => return Err(wrong("would go without TLS; expected https://host:port".into())),
        _ => return Err(wrong(format!("expected {scheme}://host:port"))),
    }
    let plain = uri.path() == "/"
        && uri.query().is_none()
        && uri.authority().is_some_and(|a| !a.as_str().contains('@') && !a.host().is_empty());
    if plain {
        Ok(endpoint.trim_end_matches('/').to_owned())
    } else {
        Err(wrong(format!("expected {scheme}://host:port alone")))
    }
}

async fn lazy_client(endpoint: &str, tls: Option<&EtcdTls>) -> Result<Client, StoreError> {
    // A member cut off from its cluster still answers; requiring a leader makes it say so instead.
    let mut options = ConnectOptions::new().with_connect_timeout(CONNECT_TIMEOUT).with_require_leader(true);
    if let Some(tls) = tls {
        options = options.with_tls(tls.options.clone());
    }
    Client::connect([endpoint], Some(options))
        .await
        .map_err(|error| StoreError::Endpoint { endpoint: endpoint.to_owned(), detail: root_cause(&error) })
}

impl Shared {
    /// Makes one call, within the time for it; at the other endpoints too if repeating it is harmless.
    async fn call<T, F, C>(&self, repeat: Repeat, call: F) -> Result<T, StoreError>
    where
        F: Fn(Client) -> C,
        C: Future<Output = Result<T, Error>>,
    {
        let deadline = Instant::now() + CALL_TIMEOUT;
        let mut untried = if repeat == Repeat::Harmless { self.nodes.len() } else { 1 };
        loop {
            let index = self.current.load(Ordering::Relaxed);
            let node = &self.nodes[index];
            let client = node.client.lock().clone();
            let (error, late) = match timeout_at(deadline, self.signed_in(node, client, &call)).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => (self.explain(&error), false),
                Err(_) => (self.unavailable(format!("{}: no answer within {CALL_TIMEOUT:?}", node.endpoint)), true),
            };
            if !matches!(error, StoreError::Unavailable { .. }) {
                return Err(error);
            }
            if late {
                // The connection may be to a host that is no more; TCP would take minutes to notice.
                if let Ok(fresh) = lazy_client(&node.endpoint, self.access.tls.as_ref()).await {
                    *node.client.lock() = fresh;
                    node.introduced.store(false, Ordering::Relaxed);
                }
            }
            let next = (index + 1) % self.nodes.len();
            let moved = self.current.compare_exchange(index, next, Ordering::Relaxed, Ordering::Relaxed).is_ok();
            if moved && next != index {
                tracing::debug!(failed = node.endpoint, next = self.nodes[next].endpoint, "trying the next endpoint");
            }
            untried -= 1;
            if untried == 0 || Instant::now() >= deadline {
                return Err(error);
            }
        }
    }

    /// Makes a call, and signs in for it where etcd does not know who asks.
    async fn signed_in<T, F, C>(&self, node: &Node, mut client: Client, call: &F) -> Result<T, Error>
    where
        F: Fn(Client) -> C,
        C: Future<Output = Result<T, Error>>,
    {
        self.introduce(node, &mut client).await?;
        let (mut alone, mut signed) = (None, false);
        loop {
            // Of many kinds of calls this is the largest part of each one, and none is so frequent that the heap matters.
            let answer = Box::pin(call(client.clone())).await;
            let refused = !signed && answer.as_ref().is_err_and(is_unknown);
            let Some(user) = self.access.user.as_ref().filter(|_| refused) else { return answer };
            if alone.is_none() {
                // Another may have signed in before it is our turn: asked again first.
                alone = Some(self.signing_in.lock().await);
            } else {
                client.update_user(Some((user.name.clone(), user.password.clone()))).await?;
                signed = true;
            }
        }
    }

    /// Signs in before the first call, where a certificate is shown: etcd would take one for whoever that names, and never ask.
    async fn introduce(&self, node: &Node, client: &mut Client) -> Result<(), Error> {
        let certified = self.access.tls.as_ref().is_some_and(|tls| tls.shows_certificate);
        let Some(user) = self.access.user.as_ref().filter(|_| certified) else { return Ok(()) };
        if node.introduced.load(Ordering::Relaxed) {
            return Ok(());
        }
        let _alone = self.signing_in.lock().await;
        if !node.introduced.load(Ordering::Relaxed) {
            match client.update_user(Some((user.name.clone(), user.password.clone()))).await {
                Err(error) if !knows_no_users(&error) => return Err(error),
                _ => node.introduced.store(true, Ordering::Relaxed),
            }
        }
        Ok(())
    }

    fn unavailable(&self, detail: String) -> StoreError {
        StoreError::Unavailable { endpoints: self.endpoints.clone(), detail }
    }

    fn explain(&self, error: &Error) -> StoreError {
        let status = match error {
            Error::GRpcStatus(status) => status,
            Error::LeaseKeepAliveError(detail) if detail.contains("lease not found") => return StoreError::LeaseLost,
            Error::InvalidArgs(_) | Error::InvalidUri(_) | Error::Utf8Error(_) | Error::InvalidMetadataValue(_) => {
                return StoreError::Rejected(error.to_string());
            }
            _ => return self.unavailable(root_cause(error)),
        };
        let message = status.message();
        // etcd says most things in words only; the number tells whether another attempt may help.
        if message.contains("database space exceeded") {
            StoreError::NoSpace
        } else if message.contains("requested lease not found") {
            StoreError::LeaseLost
        } else if message.contains("required revision has been compacted") {
            StoreError::Compacted { revision: 0 }
        } else if message.contains("too many requests") {
            self.unavailable(message.to_owned())
        } else {
            match status.code() as i32 {
                // Invalid argument, not found, exists already, no permission, exhausted, failed precondition,
                // out of range, not implemented, not authenticated.
                3 | 5..=9 | 11 | 12 | 16 => StoreError::Rejected(message.to_owned()),
                _ => self.unavailable(root_cause(error)),
            }
        }
    }
}

/// Whether etcd refused to do anything because it does not know who asks.
fn is_unknown(error: &Error) -> bool {
    let Error::GRpcStatus(status) = error else { return false };
    ["invalid auth token", "user name is empty", "revision of auth store is old"]
        .iter()
        .any(|words| status.message().contains(words))
}

/// Whether etcd has authentication off.
fn knows_no_users(error: &Error) -> bool {
    matches!(error, Error::GRpcStatus(status) if status.message().contains("authentication is not enabled"))
}

/// The message with the reason beneath it: gRPC says "transport error" and leaves "connection refused" to its source.
fn root_cause(error: &Error) -> String {
    let (text, mut cause) = match error {
        Error::GRpcStatus(status) => (status.message().to_owned(), std::error::Error::source(status)),
        Error::TransportError(transport) => (transport.to_string(), std::error::Error::source(transport)),
        other => (other.to_string(), None),
    };
    let mut root = None;
    while let Some(error) = cause {
        root = Some(error.to_string());
        cause = error.source();
    }
    match root {
        Some(root) if root != text => format!("{text}: {root}"),
        _ => text,
    }
}

/// etcd's revisions are positive.
fn revision(raw: i64) -> u64 {
    u64::try_from(raw).unwrap_or(0)
}

/// Sizes too.
fn size(bytes: i64) -> u64 {
    u64::try_from(bytes).unwrap_or(0)
}

fn raw(revision: u64) -> i64 {
    i64::try_from(revision).unwrap_or(i64::MAX)
}

fn key_text(kv: &KeyValue) -> Option<String> {
    let key = kv.key_str().ok().map(str::to_owned);
    if key.is_none() {
        tracing::warn!(key = ?kv.key(), "a key that is not UTF-8 is ignored");
    }
    key
}

fn entry(kv: &KeyValue) -> Option<Entry> {
    Some(Entry {
        key: key_text(kv)?,
        value: kv.value().to_vec(),
        create_revision: revision(kv.create_revision()),
        mod_revision: revision(kv.mod_revision()),
    })
}

/// The first key behind all that begin with `prefix`.
fn prefix_end(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    // UTF-8 has no byte 0xff, so the last one can always be raised.
    if let Some(last) = end.last_mut() {
        *last = last.saturating_add(1);
    }
    end
}

fn first_page(select: &Select, pinned: i64) -> TxnOp {
    match select {
        Select::Key(key) => TxnOp::get(key.as_str(), Some(GetOptions::new().with_revision(pinned))),
        Select::Prefix(prefix) => {
            let options = GetOptions::new().with_prefix().with_limit(PAGE).with_revision(pinned);
            TxnOp::get(prefix.as_str(), Some(options))
        }
    }
}

impl Shared {
    /// What a prefix has from the key behind `last` on, at the pinned revision.
    async fn rest(&self, prefix: &str, last: &[u8], pinned: i64, into: &mut Vec<Entry>) -> Result<(), StoreError> {
        let end = prefix_end(prefix);
        let mut from = last.to_vec();
        loop {
            // The next key there can be.
            from.push(0);
            let options = GetOptions::new().with_range(end.clone()).with_limit(PAGE).with_revision(pinned);
            let page = self
                .call(Repeat::Harmless, |client| {
                    let (from, options) = (from.clone(), options.clone());
                    async move {
                        let mut kv = client.kv_client().max_decoding_message_size(MESSAGE_MAX);
                        kv.get(from, Some(options)).await
                    }
                })
                .await?;
            into.extend(page.kvs().iter().filter_map(entry));
            match page.kvs().last() {
                Some(kv) if page.more() => from = kv.key().to_vec(),
                _ => return Ok(()),
            }
        }
    }

    /// Reads all selects at one revision, into an empty listing.
    async fn read(&self, selects: &[Select], listing: &mut Listing) -> Result<(), StoreError> {
        // Without selects too: the revision and the cluster are worth an answer.
        let mut chunks: Vec<&[Select]> = selects.chunks(TXN_OPS_MAX).collect();
        if chunks.is_empty() {
            chunks.push(&[]);
        }
        for chunk in chunks {
            // 0 for the first: whatever the revision is then; the others read the same one.
            let pinned = raw(listing.revision);
            let reads = chunk.iter().map(|select| first_page(select, pinned)).collect::<Vec<_>>();
            let answer = self
                .call(Repeat::Harmless, |client| {
                    let txn = etcd_client::Txn::new().and_then(reads.clone());
                    async move { client.kv_client().max_decoding_message_size(MESSAGE_MAX).txn(txn).await }
                })
                .await?;
            let header = answer.header().ok_or_else(|| self.unavailable("an answer without a header".to_owned()))?;
            if listing.revision == 0 {
                listing.revision = revision(header.revision());
                listing.cluster_id = header.cluster_id();
                self.listed.store(listing.cluster_id, Ordering::Relaxed);
            }
            for (select, page) in chunk.iter().zip(answer.op_responses()) {
                let TxnOpResponse::Get(page) = page else {
                    return Err(self.unavailable("an answer of another kind than asked for".to_owned()));
                };
                listing.entries.extend(page.kvs().iter().filter_map(entry));
                if let (Select::Prefix(prefix), Some(kv), true) = (select, page.kvs().last(), page.more()) {
                    self.rest(prefix, kv.key(), raw(listing.revision), &mut listing.entries).await?;
                }
            }
        }
        listing.entries.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(())
    }
}

#[async_trait]
impl Source for EtcdStore {
    async fn list(&self, selects: &[Select]) -> Result<Listing, StoreError> {
        let mut listing = Listing { entries: Vec::new(), revision: 0, cluster_id: 0 };
        match self.shared.read(&disjoint(selects)?, &mut listing).await {
            Ok(()) => Ok(listing),
            // Between two pages; etcd does not say up to where.
            Err(StoreError::Compacted { .. }) => Err(StoreError::Compacted { revision: listing.revision }),
            Err(error) => Err(error),
        }
    }

    async fn watch(&self, selects: &[Select], from_revision: u64) -> Result<Watch, StoreError> {
        let mut selects = disjoint(selects)?.into_iter();
        let Some(first) = selects.next() else {
            return Err(StoreError::Rejected("a watch of nothing".to_owned()));
        };
        // 0 would mean *now* to etcd.
        let from = raw(from_revision.max(1));
        let (client, stream) = self
            .shared
            .call(Repeat::Harmless, |client| {
                let (key, options) = watch_of(&first, from);
                async move {
                    let mut watch = client.watch_client().max_decoding_message_size(MESSAGE_MAX);
                    let stream = watch.watch(key, Some(options)).await?;
                    Ok((client, stream))
                }
            })
            .await?;
        let (requests, responses) = stream.split();
        let listed = Listed { cluster_id: self.shared.listed.load(Ordering::Relaxed), revision: from - 1 };
        let shared = Arc::clone(&self.shared);
        Ok(Watch::driven(|sender| async move {
            // One task for both directions: a server that waits for its answers to be read takes no more requests.
            let error = tokio::select! {
                error = ask(&shared, requests, selects.collect(), from) => error,
                ended = hear(&shared, responses, listed, &sender) => match ended {
                    Some(error) => error,
                    None => return,
                },
            };
            drop(client);
            let _ = sender.send(Err(error)).await;
        }))
    }
}

/// What a watch goes on from.
#[derive(Clone, Copy)]
struct Listed {
    /// 0 when nothing was listed.
    cluster_id: u64,
    revision: i64,
}

fn watch_of(select: &Select, from: i64) -> (String, WatchOptions) {
    let options = WatchOptions::new().with_start_revision(from).with_progress_notify().with_fragment();
    match select {
        Select::Key(key) => (key.clone(), options),
        Select::Prefix(prefix) => (prefix.clone(), options.with_prefix()),
    }
}

/// Asks for the other selects on the same stream, then again and again for a sign of life.
async fn ask(shared: &Shared, mut requests: WatchRequestSender, selects: Vec<Select>, from: i64) -> StoreError {
    for select in &selects {
        let (key, options) = watch_of(select, from);
        if let Err(error) = requests.watch(key, Some(options)).await {
            return shared.explain(&error);
        }
    }
    let mut tick = interval(ALIVE_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        if let Err(error) = requests.request_progress().await {
            return shared.explain(&error);
        }
    }
}

/// Passes on what comes, until something ends the watch; `None` when nobody listens any more.
async fn hear(
    shared: &Shared,
    mut responses: WatchResponseStream,
    listed: Listed,
    sender: &WatchSender,
) -> Option<StoreError> {
    loop {
        // Counted from here, behind the send: a slow reader is not a silent store.
        let silence = Instant::now() + WATCH_SILENT_MAX;
        let response = tokio::select! {
            biased;
            response = responses.message() => response,
            () = sleep_until(silence) => return Some(StoreError::Silent { seconds: WATCH_SILENT_MAX.as_secs() }),
        };
        let event = match response {
            Ok(Some(response)) => {
                if let Some(header) = response.header() {
                    let other = ![0, header.cluster_id()].contains(&listed.cluster_id);
                    // The node that was listed had all of it. Another may have yet to catch up: to list once more does no harm.
                    // What tells of an end may tell of no revision.
                    let behind = (1..listed.revision).contains(&header.revision());
                    if other || behind {
                        return Some(StoreError::Restored);
                    }
                }
                event(&response)
            }
            Ok(None) => Err(shared.unavailable("the watch's stream ended".to_owned())),
            Err(error) => Err(shared.explain(&error)),
        };
        match event {
            Ok(event) => sender.send(Ok(event)).await.ok()?,
            Err(error) => return Some(error),
        }
    }
}

fn event(response: &WatchResponse) -> Result<WatchEvent, StoreError> {
    if response.compact_revision() > 0 {
        return Err(StoreError::Compacted { revision: revision(response.compact_revision()) });
    }
    if response.canceled() {
        let reason = match response.cancel_reason() {
            "" => "no reason given",
            reason => reason,
        };
        return Err(StoreError::Rejected(format!("watch canceled: {reason}")));
    }
    let changes: Vec<Change> = response
        .events()
        .iter()
        .filter_map(|event| {
            let kv = event.kv()?;
            Some(match event.event_type() {
                EventType::Put => Change::Put(entry(kv)?),
                EventType::Delete => Change::Delete { key: key_text(kv)?, mod_revision: revision(kv.mod_revision()) },
            })
        })
        .collect();
    // Not the header's revision: that of a progress answer, or of events caught up with, is ahead of them.
    Ok(match changes.last() {
        Some(Change::Put(Entry { mod_revision, .. }) | Change::Delete { mod_revision, .. }) => {
            let revision = *mod_revision;
            WatchEvent::Changes { changes, revision }
        }
        None => WatchEvent::Alive,
    })
}

#[async_trait]
impl Store for EtcdStore {
    async fn commit(&self, txn: Txn) -> Result<Outcome, StoreError> {
        txn.check()?;
        let compare = |Condition { key, create_revision, value }: Condition| {
            let value = value.map(|value| Compare::value(key.clone(), CompareOp::Equal, value));
            [Compare::create_revision(key, CompareOp::Equal, raw(create_revision))].into_iter().chain(value)
        };
        let compares = txn.conditions.into_iter().flat_map(compare).collect::<Vec<_>>();
        let ops = txn.ops.into_iter().map(write).collect::<Vec<_>>();
        let txn = etcd_client::Txn::new().when(compares).and_then(ops);
        let answer = self
            .shared
            .call(Repeat::Never, |client| {
                let txn = txn.clone();
                async move { client.kv_client().txn(txn).await }
            })
            .await?;
        let revision = answer.header().map_or(0, |header| revision(header.revision()));
        Ok(if answer.succeeded() { Outcome::Committed { revision } } else { Outcome::Refused { revision } })
    }

    async fn lease(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        let seconds = ttl.as_secs().saturating_add(u64::from(ttl.subsec_nanos() > 0));
        let seconds = raw(seconds.max(1));
        // One granted twice is not used by anybody and expires.
        let call = |client: Client| async move { client.lease_client().grant(seconds, None).await };
        Ok(LeaseId(self.shared.call(Repeat::Harmless, call).await?.id()))
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        let call = |client: Client| async move { client.lease_client().keep_alive(lease.0).await };
        self.shared.call(Repeat::Harmless, call).await.map(drop)
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        let call = |client: Client| async move { client.lease_client().revoke(lease.0).await };
        match self.shared.call(Repeat::Harmless, call).await {
            Ok(_) | Err(StoreError::LeaseLost) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn health(&self) -> Result<Option<Health>, StoreError> {
        let call = |client: Client| async move { client.maintenance_client().status().await };
        let status = self.shared.call(Repeat::Harmless, call).await?;
        Ok(Some(Health {
            version: status.version().to_owned(),
            file_bytes: size(status.db_size()),
            used_bytes: size(status.raft_used_db_size()),
            quota_bytes: u64::try_from(status.db_size_quota()).ok().filter(|bytes| *bytes > 0),
            errors: status.errors().to_vec(),
        }))
    }
}

fn write(op: Op) -> TxnOp {
    match op {
        Op::Put { key, value, lease } => {
            let options = lease.map(|lease| PutOptions::new().with_lease(lease.0));
            TxnOp::put(key, value, options)
        }
        Op::Delete { key } => TxnOp::delete(key, None),
    }
}
