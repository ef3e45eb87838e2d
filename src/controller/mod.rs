//! The control loop: reports in, thresholds out.
//!
//! ```text
//! serve ─► desk ─► planner: signal ─► law ─► apportion ─► outbox ─► publish ─► store
//!            └──► shares (the reply)    ▲ source: Prometheus              ▲ lead: campaign, lease, ticks
//! ```
//!
//! `signal` turns reports and what a `source` tells into rates and readings, `law` estimates what each meter can take, `division` makes
//! everybody's grants of that, by `apportion`, `together` the pool's own buckets of what members count together,
//! `shares` splits it over members, `joined` walks two sorted lists at once, `alignment` knows where windows end, `history` remembers what was decided and from what,
//! `checkpoint` is what the next leader is told of it, `policies` knows which policy holds, `account` is what is told to who asks,
//! `access` knows who may report and ask, `lease` the times of the leader's. These and the planner are pure; `lead`, `overseer`
//! (what operators and members write, and records of pools that nobody knows), `upkeep` (checkpoints, old audit records, how full the
//! store is), `publish`, `serve`, `tls` and `connections` (how many, and how long one may be silent) do the I/O.

pub mod access;
mod account;
pub mod alignment;
pub mod apportion;
pub mod checkpoint;
mod connections;
mod desk;
mod division;
pub mod history;
mod joined;
pub mod law;
mod lead;
mod lease;
mod nearest;
pub mod outbox;
mod overseer;
mod params;
pub mod planner;
pub mod policies;
mod publish;
mod serve;
pub mod shares;
pub mod signal;
pub mod source;
mod timed;
mod tls;
mod together;
mod upkeep;

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinHandle;

pub use account::{
    LeaderAccount, MemberAccount, MeterAccount, OverrideAccount, PoolAccount, SignalAccount, TENANTS_TOLD_MAX,
    TenantAccount,
};
pub use desk::{NotLeading, Office};
pub use lead::{EARLY_TICK_GAP, Ended, Leading, Reign, TICK_EVERY, Won};
pub use lease::{KEEP_ALIVE_EVERY, LEADER_TTL};
pub use nearest::nearest;
pub use params::{Params, PoolParams, ReadPolicy, TenantParams};
pub use serve::ListenError;
pub use tls::TlsParams;
pub use together::SHARED_HEADROOM;
pub use upkeep::AUDIT_KEPT;

use access::Access;
use source::Prometheus;
use timed::Timed;

use crate::clock::{Clock, SystemClock};
use crate::store::Store;
use crate::telemetry::Telemetry;

/// A running controller.
#[derive(Debug)]
pub struct Controller {
    local_addr: SocketAddr,
    is_tls: bool,
    stop: watch::Sender<bool>,
    leading: JoinHandle<()>,
    serving: JoinHandle<()>,
}

impl Controller {
    /// Starts listening and campaigning. Without a reachable store it waits and says so.
    ///
    /// # Errors
    /// [`ListenError`] when the report address cannot be had.
    pub async fn start(params: Params, store: Arc<dyn Store>, telemetry: Arc<Telemetry>) -> Result<Self, ListenError> {
        let prometheus =
            params.prometheus.as_ref().map(Prometheus::new).transpose().map_err(ListenError::Prometheus)?;
        let port = serve::bind(&params, &telemetry).await?;
        let (local_addr, is_tls) = (port.local_addr(), port.is_tls());
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let (stop, stopped) = watch::channel(false);

        let report_url = params.advertise_url.clone().unwrap_or_else(|| format!("{}://{local_addr}", scheme(is_tls)));
        let (name, access) = (params.name.clone(), Access::new(&params.reporters));
        let store = Arc::new(Timed::new(store, telemetry.clone()));
        let mut leading = Leading::new(params, report_url, store, clock.clone(), telemetry.clone());
        leading.prometheus = prometheus;
        let front = serve::Front::new(name, access, leading.desk.clone(), clock, telemetry);
        let serving = tokio::spawn(port.serve(serve::router(Arc::new(front)), stopped.clone()));
        let leading = tokio::spawn(leading.run(stopped));
        Ok(Self { local_addr, is_tls, stop, leading, serving })
    }

    /// Where reports and metrics are served.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// The same as a URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("{}://{}", scheme(self.is_tls), self.local_addr)
    }

    /// Waits until the controller has ended by itself, which only a bug can cause.
    pub async fn ended(&mut self) {
        let _ = (&mut self.leading).await;
    }

    /// Resigns, so that another can lead at once, and stops. Published records stay.
    pub async fn stop(self) {
        let _ = self.stop.send(true);
        let _ = self.leading.await;
        // Members keep connections open; they lose nothing by having them closed.
        self.serving.abort();
        let _ = self.serving.await;
    }
}

fn scheme(is_tls: bool) -> &'static str {
    if is_tls { "https" } else { "http" }
}
