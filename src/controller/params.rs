//! What the controller is told: pools, tenants, where to listen. Built by `config`, checked there.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use jiff::tz::TimeZone;

use super::access::ReporterParams;
use super::law::LawParams;
use super::source::PrometheusParams;
use super::tls::TlsParams;
use crate::limiter::Priority;
use crate::plan::keyspace::Keyspace;
use crate::plan::{Algorithm, Mode, Rate};
use crate::provider::Dialect;
use crate::quota::{Grantee, Meter, PoolId, TenantId};

/// The controller's parameters.
#[derive(Debug, Clone)]
pub struct Params {
    /// This controller's name in the `leader` key.
    pub name: String,
    /// Where reports and `/metrics` are served; off loopback with reporters or a client authority only.
    pub listen: SocketAddr,
    /// Who may report and read, by name; none: whoever reaches the port.
    pub reporters: BTreeMap<String, ReporterParams>,
    /// TLS on the port.
    pub tls: Option<TlsParams>,
    /// The URL members are told; the listen address when absent.
    pub advertise_url: Option<String>,
    /// Where the keys live.
    pub keyspace: Keyspace,
    /// How much the store may hold before it takes no more writes, where it does not tell by itself.
    pub store_quota_bytes: u64,
    /// The pools.
    pub pools: Vec<PoolParams>,
    /// What is asked of Prometheus.
    pub prometheus: Option<PrometheusParams>,
    /// Reads a pool's policy as it stands in the store.
    pub read_policy: ReadPolicy,
}

/// Reads and checks a pool's policy, by the rules of the configuration file; what is wrong with it, in one line.
pub type ReadPolicy = fn(&PoolId, &[u8]) -> Result<PoolParams, String>;

/// One pool.
#[derive(Debug, Clone, PartialEq)]
pub struct PoolParams {
    /// Its id.
    pub id: PoolId,
    /// How its provider writes limits.
    pub dialect: Dialect,
    /// What members make of its limits.
    pub mode: Mode,
    /// The static capacity per meter: what is assumed before anything is seen.
    pub capacity: BTreeMap<Meter, Rate>,
    /// How meters count, those that are no token buckets.
    pub algorithms: BTreeMap<Meter, Algorithm>,
    /// The meters that all members count together, in Redis; of the others each member enforces its share.
    pub shared: BTreeSet<Meter>,
    /// By which zone's clock fixed windows end; those not named begin with their first use.
    pub zones: BTreeMap<Meter, TimeZone>,
    /// Requests in flight at a time, over all tenants; `None` is no limit.
    pub concurrency: Option<u32>,
    /// The law's constants.
    pub law: LawParams,
    /// The declared tenants.
    pub tenants: BTreeMap<TenantId, TenantParams>,
    /// The undeclared tenants together.
    pub default_tenant: TenantParams,
}

impl PoolParams {
    /// What is told of a tenant, or of the undeclared ones; `None` of one that is not declared.
    #[must_use]
    pub(super) fn of(&self, grantee: &Grantee) -> Option<&TenantParams> {
        match grantee {
            Grantee::Default => Some(&self.default_tenant),
            Grantee::Tenant(id) => self.tenants.get(id),
        }
    }
}

/// One tenant of a pool.
#[derive(Debug, Clone, PartialEq)]
pub struct TenantParams {
    /// Its part in the division, against the other weights. Above 0.
    pub weight: f64,
    /// Units per window it gets before others get more.
    pub floor: BTreeMap<Meter, f64>,
    /// Units per window it never gets more than.
    pub ceiling: BTreeMap<Meter, f64>,
    /// Beyond its floor batch work gets what is left when those for whom somebody waits have what they ask for.
    pub priority: Priority,
}

impl Default for TenantParams {
    fn default() -> Self {
        Self { weight: 1.0, floor: BTreeMap::new(), ceiling: BTreeMap::new(), priority: Priority::Interactive }
    }
}
