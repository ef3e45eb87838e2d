//! What a client is told when it starts.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::leader_http::{ReportTls, ReportToken};
use super::together::Tally;
use crate::limiter::CALL_MAX;
use crate::plan::keyspace::Keyspace;
use crate::plan::{Mode, Rate, Thresholds};
use crate::provider::Dialect;
use crate::quota::{Meter, PoolId, TenantId};

/// Names the environment variable that holds a process's own mode: `enforce`, `observe` or `off`. Read when a client starts.
pub const MODE_VARIABLE: &str = "TIDEGATE_MODE";

/// A client's parameters.
#[derive(Debug, Clone)]
pub struct ClientParams {
    /// This process's name, unique among live members; made up when empty.
    pub instance: String,
    /// Where the keys live.
    pub keyspace: Keyspace,
    /// The pools this process uses.
    pub pools: Vec<PoolParams>,
    /// Where reports go; when absent, where the `leader` key says.
    pub report_url: Option<String>,
    /// What to show to a controller that asks who reports: it has the token's digest under `[controller.reporters]`.
    pub report_token: Option<ReportToken>,
    /// How to speak TLS to a controller that has `[controller.tls]`, or to the proxy before it: then `https://` alone.
    pub report_tls: Option<ReportTls>,
    /// How long a request waits for admission unless the caller says otherwise.
    pub max_wait: Duration,
    /// This process's own word on whether limits hold, stronger than every pool's policy and in need of nobody; the
    /// environment's [`MODE_VARIABLE`] is stronger still.
    pub mode: Option<Mode>,
    /// A file of this process's own, where what it enforces is kept: a process that starts without store and controller begins
    /// with half of that, if it is no older than 24 hours, and not with the bootstrap thresholds. Two processes need two files.
    pub last_known: Option<PathBuf>,
    /// Where members count together the meters that a pool's policy says are `shared`; without it this process goes by its shares.
    pub tally: Option<Arc<dyn Tally>>,
    /// After how long without a request the process forgets what it kept of a tenant, once the tenant owes nothing and has
    /// saved up all that it may.
    pub idle_after: Duration,
}

/// One pool as a client is told of it.
#[derive(Debug, Clone)]
pub struct PoolParams {
    /// Its id.
    pub id: PoolId,
    /// How its provider writes limits.
    pub dialect: Dialect,
    /// What holds until the first grant arrives.
    pub bootstrap: Thresholds,
    /// The pool over this one, such as an account over several models: a request is admitted by both or by neither. One of
    /// the client's pools, itself without a parent; another name is no parent.
    pub parent: Option<PoolId>,
    /// The tenants that this process serves, where it knows them: then it follows their grants alone, one by one, if they are
    /// at most [`TENANTS_FOLLOWED_MAX`](super::TENANTS_FOLLOWED_MAX); requests of others count as `@default`'s.
    /// Empty: all tenants' grants are followed.
    pub tenants: BTreeSet<TenantId>,
    /// How long a call may last before its place in flight is given to another, and is counted as expired.
    pub call_max: Duration,
}

impl PoolParams {
    /// A pool with the default bootstrap thresholds: one request at a time, 10 requests/minute.
    #[must_use]
    pub fn new(id: PoolId, dialect: Dialect) -> Self {
        let rates = [(Meter::REQUESTS_PER_MINUTE, Rate { rate: 10.0, burst: 1.0 })].into();
        let bootstrap = Thresholds { rates, concurrency: Some(1) };
        Self { id, dialect, bootstrap, parent: None, tenants: BTreeSet::new(), call_max: CALL_MAX }
    }
}

impl ClientParams {
    /// Parameters with the defaults for these pools: keys under `/tidegate/v1`, waits of at most 10 s.
    #[must_use]
    pub fn new(pools: Vec<PoolParams>) -> Self {
        Self {
            instance: String::new(),
            keyspace: Keyspace::default(),
            pools,
            report_url: None,
            report_token: None,
            report_tls: None,
            max_wait: Duration::from_secs(10),
            mode: None,
            last_known: None,
            tally: None,
            idle_after: Duration::from_secs(60),
        }
    }
}
