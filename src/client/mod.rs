//! The thin client: what a service embeds.
//!
//! It watches the store, swaps what it enforces, admits or refuses requests in microseconds without a network, holds
//! at once what a provider refused, and reports what it saw to the leader. It never deletes a shared key, and it goes
//! on with what it has when store or leader are gone.
//!
//! # With the middleware
//!
//! Admission, response heads, 429s, usage and the permit's life are taken care of, of streamed answers too:
//!
//! ```no_run
//! # async fn run(store: std::sync::Arc<dyn tidegate::store::Store>) -> Result<(), Box<dyn std::error::Error>> {
//! use std::sync::Arc;
//!
//! use tidegate::client::{Client, ClientParams, Limited, PoolParams, Refusal};
//! use tidegate::provider::Dialect;
//! use tidegate::quota::TenantId;
//! use tidegate::telemetry::Telemetry;
//!
//! let params = ClientParams::new(vec![PoolParams::new("claude-sonnet".parse()?, Dialect::Anthropic)]);
//! let client = Client::start(params, store, Arc::new(Telemetry::new())).await;
//! let limited = Limited::new(client.pool("claude-sonnet")?, "acme".parse()?);
//! let http = reqwest_middleware::ClientBuilder::new(reqwest::Client::new()).with(limited).build();
//!
//! let body = r#"{"model":"claude-sonnet-4-5","max_tokens":200,"stream":true,"messages":[…]}"#;
//! // Another tenant's request through the same client:
//! let globex: TenantId = "globex".parse()?;
//! match http.post("https://api.anthropic.com/v1/messages").with_extension(globex).body(body).send().await {
//!     Ok(mut answer) => {
//!         // In flight until the stream ends, or the answer is dropped.
//!         while let Some(events) = answer.chunk().await? {
//!             println!("{} bytes", events.len());
//!         }
//!     }
//!     Err(error) => match Refusal::of(&error) {
//!         Some(Refusal::WaitUntil { after, .. }) => println!("try again in {after:?}"),
//!         Some(Refusal::Never(never)) => println!("not at this size: it {never}"),
//!         None => return Err(error.into()),
//!     },
//! }
//! # Ok(()) }
//! ```
//!
//! [`Fallbacks`] give a refused call an answer all the same: one from before, a receipt for a queue, another pool's.
//!
//! # With tower
//!
//! [`LimitLayer`] does the same for tower services, reqwest's or of another HTTP library. It has no fallbacks: tower's own
//! layers turn a refusal into something else.
//!
//! # By hand
//!
//! [`Pool::admit`] gives a [`Permit`]; with reqwest, [`Permit::attach`] does the rest; with another HTTP library,
//! [`Permit::attach_to`] where it speaks `http-body`, else [`Permit::observe`] the head, [`Permit::conclude`] and
//! [`Permit::settle`] it:
//!
//! ```no_run
//! # async fn run(pool: tidegate::client::Pool) -> Result<(), Box<dyn std::error::Error>> {
//! use std::time::Duration;
//!
//! let request = reqwest::Client::new().post("https://api.openai.com/v1/chat/completions").body("{…}").build()?;
//! let permit = pool.admit_within(&"acme".parse()?, pool.cost_of(&request), Duration::from_secs(2)).await?;
//! let answer = permit.attach(reqwest::Client::new().execute(request).await?).await;
//! println!("{}", answer.text().await?);
//! # Ok(()) }
//! ```
//!
//! # Counting together
//!
//! Where a pool's policy says that a meter is `shared`, members ask a store that counts for all of them
//! ([`ClientParams::tally`], in Redis by the feature `redis`), one question for each request, and go by their shares while it is
//! away: see [`Tally`].
//!
//! # What holds when
//!
//! Until a controller has granted anything, [`PoolParams::bootstrap`] holds: one request at a time, 10 a minute, unless you say
//! otherwise. [`Pool::tuning`] tells what is enforced now, [`Pool::traffic`] what this process did and is doing.
//!
//! # Within
//!
//! ```text
//! store ─► drive ─► session ─► member (PoolView) ─► gates ─► gate ─► admission ─► Permit ─► middleware, layer
//!            │                                                  ▲                    │              └► fallback
//!            └──► report ─► leader ─► shares ─► member          ├── swap ◄── reflex holds
//!                                                               └── together ─► where members count together
//! ```
//!
//! Limits are pushed to the gates that they concern; what holds for a whole pool is swapped, and read by each decision.

mod admission;
mod answer;
pub mod cells;

mod drive;
mod fallback;
pub mod gate;
mod gates;
mod heads;
mod heard;
mod last_known;
mod layer;
mod leader_http;
mod member;
mod middleware;
mod params;
mod permit;
mod pool;
mod process;
mod report;
mod rota;
mod session;
mod status;
pub mod swap;
mod terms;
mod together;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::JoinHandle;

use gates::Gates;

pub use admission::{Admission, Ask, Asked, Place, Refusal, Why};
pub use answer::Attached;
pub use fallback::{
    AnswerCache, AnswerStore, CacheKey, CacheParams, FALLBACK_HEADER, Fallbacks, KeptAnswer, NotQueued, Requeue,
    Requeued, keep_answer,
};
pub use gate::{LINE_MAX, Traffic};
pub use heard::{MemberState, PULSE_QUIET};
pub use layer::{BoxError, Limit, LimitLayer};
pub(crate) use leader_http::LeaderHttp;
pub use leader_http::{NoToken, ReportTls, ReportTlsError, ReportToken};
pub use member::{Changes, Order, PoolView, Remembered};
pub use middleware::Limited;
pub use params::{ClientParams, MODE_VARIABLE, PoolParams};
pub use permit::Permit;
pub use process::Core;
pub use session::{Notice, OldTerm, Session, TENANTS_FOLLOWED_MAX};
pub use status::{ClientStatus, PoolStatus};
pub use swap::Tuning;
pub use terms::{MeterTerms, Terms};
pub use together::{Breaker, Stance, TALLY_TIMEOUT, Tally, Uncounted};

use crate::clock::SystemClock;
pub use crate::limiter::Priority;
use crate::plan::keyspace::Key;
use crate::provider::Dialect;
pub use crate::provider::Usage;
use crate::quota::{Cost, Grantee, PoolId, TenantId};
use crate::store::{LeaseId, Store};
use crate::telemetry::{Sample, Telemetry};

/// How long a starting client waits for its first shares.
const JOIN_WAIT: Duration = Duration::from_millis(250);

/// How long a closing client takes to tell where members count together what it has not told yet.
const FAREWELL_TO_TALLY: Duration = Duration::from_millis(250);

/// Why a client has no such pool.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("pool {0:?} is not one of this client's: name it in ClientParams")]
pub struct UnknownPool(String);

/// A client: one per process. Its tasks run as long as it, or one of its pools, lives: a pool without them would keep
/// enforcing a share that has long been given to others.
pub struct Client {
    core: Arc<Core>,
    store: Arc<dyn Store>,
    max_wait: Duration,
    report_url: Option<String>,
    leader_http: LeaderHttp,
    notebook: Option<Arc<last_known::Notebook>>,
    lease: Arc<Mutex<Option<LeaseId>>>,
    tasks: Arc<Tasks>,
}

/// The client's tasks; dropping them stops them.
#[derive(Debug)]
struct Tasks(Mutex<Vec<JoinHandle<()>>>);

impl Drop for Tasks {
    fn drop(&mut self) {
        self.0.lock().iter().for_each(JoinHandle::abort);
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("instance", &self.core.instance).finish_non_exhaustive()
    }
}

impl Client {
    /// Starts the client's tasks and waits up to 250 ms for the first shares. It starts without a store and without a
    /// leader too: the bootstrap thresholds hold until they answer.
    pub async fn start(params: ClientParams, store: Arc<dyn Store>, telemetry: Arc<Telemetry>) -> Self {
        let boot = format!("{:016x}", fastrand::u64(..));
        let instance =
            if params.instance.is_empty() { format!("{}-{}", std::process::id(), &boot[..8]) } else { params.instance };
        let params = ClientParams { instance, mode: process::own_mode(params.mode), ..params };
        let core = Core::new(&params, boot, fastrand::f64(), Arc::new(SystemClock::new()), telemetry);

        let leader_http = LeaderHttp::new(params.report_token.clone(), params.report_tls.as_ref());
        let lease = Arc::new(Mutex::new(None));
        let key = params.keyspace.key(&Key::Member(core.instance.clone()));
        let mut tasks = vec![
            tokio::spawn(drive::watch(core.clone(), store.clone())),
            tokio::spawn(drive::housekeeping(core.clone())),
            tokio::spawn(drive::reporting(core.clone(), leader_http.clone(), params.report_url.clone())),
            tokio::spawn(drive::presence(core.clone(), store.clone(), key, lease.clone())),
            tokio::spawn(drive::counting(core.clone())),
        ];
        let notebook = params.last_known.map(|file| Arc::new(last_known::Notebook::new(file, &core.boot)));
        tasks.extend(notebook.clone().map(|notebook| tokio::spawn(last_known::keep(core.clone(), notebook))));
        drive::joined(&core, JOIN_WAIT).await;
        let tasks = Arc::new(Tasks(Mutex::new(tasks)));
        let ClientParams { max_wait, report_url, .. } = params;
        Self { core, store, max_wait, report_url, leader_http, notebook, lease, tasks }
    }

    /// One of the client's pools.
    ///
    /// # Errors
    /// [`UnknownPool`] for one that was not named in the parameters.
    pub fn pool(&self, id: &str) -> Result<Pool, UnknownPool> {
        let gates = self.core.pools.get().and_then(|pools| pools.get(id)).cloned();
        gates
            .map(|gates| Pool { gates, max_wait: self.max_wait, _tasks: self.tasks.clone() })
            .ok_or_else(|| UnknownPool(id.chars().take(crate::quota::POOL_ID_BYTES_MAX).collect()))
    }

    /// How this process stands: to the store, to the leader, and in each pool.
    #[must_use]
    pub fn status(&self) -> ClientStatus {
        status::status(&self.core)
    }

    /// Every metric of this process with its value now, for a health page or a metrics system of one's own. For Prometheus, a
    /// service registers a `TelemetryCollector` of the same [`Telemetry`] (feature `metrics`).
    #[must_use]
    pub fn stats(&self) -> Vec<Sample> {
        self.core.stats()
    }

    /// This process's name among the members.
    #[must_use]
    pub fn instance(&self) -> &str {
        &self.core.instance
    }

    /// Stops, gives this process's shares back, and takes its own presence away at once. Shared records stay. Pools that are
    /// still held enforce a part of the safe thresholds: close a client when its work is done.
    pub async fn close(self) {
        let tasks = std::mem::take(&mut *self.tasks.0.lock());
        for task in tasks {
            task.abort();
            // Only a task that has ended cannot announce the presence once more.
            let _ = task.await;
        }
        if self.core.together.decides() {
            let told = async {
                self.core.tell_tally(true).await;
                self.core.together.send_settlements().await;
            };
            // What is not told in time ends by itself, on the safe side.
            let _ = tokio::time::timeout(FAREWELL_TO_TALLY, told).await;
        }
        if let Some(notebook) = &self.notebook {
            last_known::note(&self.core, notebook).await;
        }
        drive::farewell(&self.core, &self.leader_http, self.report_url.as_deref()).await;
        let lease = self.lease.lock().take();
        if let Some(lease) = lease {
            // Without a store the lease runs out by itself.
            let _ = tokio::time::timeout(Duration::from_secs(1), self.store.revoke(lease)).await;
        }
    }
}

/// One pool of a client; cheap to clone.
#[derive(Debug, Clone)]
pub struct Pool {
    gates: Arc<Gates>,
    max_wait: Duration,
    _tasks: Arc<Tasks>,
}

impl Pool {
    /// Waits for admission as long as the client's `max_wait`.
    ///
    /// # Errors
    /// [`Refusal`]: *wait until*, when it cannot be in time; *never*, when no wait helps.
    pub async fn admit(&self, tenant: &TenantId, cost: Cost) -> Result<Permit, Refusal> {
        self.admit_within(tenant, cost, self.max_wait).await
    }

    /// Waits for admission at most `max_wait`; zero asks without waiting.
    ///
    /// # Errors
    /// [`Refusal`], see [`Pool::admit`].
    pub async fn admit_within(&self, tenant: &TenantId, cost: Cost, max_wait: Duration) -> Result<Permit, Refusal> {
        let ask = Ask { max_wait, ..self.asking(cost) };
        self.gates.admit(tenant, &ask).await
    }

    /// Asks for admission without waiting, and without a runtime.
    ///
    /// # Errors
    /// [`Refusal`], see [`Pool::admit`].
    pub fn try_admit(&self, tenant: &TenantId, cost: Cost) -> Result<Permit, Refusal> {
        self.gates.try_admit(tenant, cost)
    }

    /// What [`Pool::admit`] asks for a request of this cost: change what should be otherwise, and [request](Pool::request) it.
    #[must_use]
    pub fn asking(&self, cost: Cost) -> Ask {
        Ask { cost, priority: Priority::default(), max_wait: self.max_wait }
    }

    /// A request on its way to admission, which can tell [where it stands](Admission::place) while it waits.
    #[must_use]
    pub fn request(&self, tenant: &TenantId, ask: &Ask) -> Admission {
        Admission::new(self.gates.clone(), tenant.clone(), ask)
    }

    /// The pool's id.
    #[must_use]
    pub fn id(&self) -> &PoolId {
        &self.gates.pool.id
    }

    /// How the pool's provider writes limits.
    #[must_use]
    pub fn dialect(&self) -> Dialect {
        self.gates.pool.dialect
    }

    /// What this process did, and is doing, for each tenant that it uses: those without limits of their own count together,
    /// as `@default`. Who has been idle for a while is not among them, and begins again at zero.
    #[must_use]
    pub fn traffic(&self) -> BTreeMap<Grantee, Traffic> {
        self.gates.traffic()
    }

    /// What is enforced now, for every tenant: to look at, not to ask before each request.
    #[must_use]
    pub fn tuning(&self) -> Tuning {
        self.gates.tuning()
    }
}
