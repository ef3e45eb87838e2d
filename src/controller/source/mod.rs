//! Sources of signals beside the members' reports. `board` keeps what each query told last, `answer` reads answers: both are
//! pure; `prometheus` asks.

mod answer;
mod board;
mod prometheus;

pub use answer::{Fed, Misfit, Told};
pub(super) use board::Board;
pub(super) use prometheus::watch;
pub use prometheus::{AskError, Prometheus, PrometheusParams, PrometheusTls, SignIn};

use std::time::Duration;

use super::signal::{Counts, Role};
use crate::quota::{Grantee, Meter, PoolId};

/// A query, and what its answers are for.
#[derive(Debug, Clone, PartialEq)]
pub struct QueryParams {
    /// PromQL, as an instant query.
    pub query: String,
    /// What for.
    pub role: Role,
    /// Whose pool a series is of.
    pub pool: Named<PoolId>,
    /// Whose queue a series is, for [`Role::Demand`].
    pub tenant: Named<Grantee>,
    /// Which meter's capacity a series is, for [`Role::Capacity`].
    pub meter: Option<Meter>,
    /// What congestion counts.
    pub counts: Counts,
    /// What congestion is to be, above 0.
    pub aim: f64,
    /// How often it is asked.
    pub every: Duration,
    /// An answer that takes longer is none.
    pub timeout: Duration,
    /// What is told is acted on for so long.
    pub fresh_for: Duration,
    /// What is told may have been so this long before: Prometheus' scrape interval.
    pub scrape: Duration,
}

/// Where a series' pool or tenant stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Named<T> {
    /// It is this one.
    Fixed(T),
    /// It is the value of this label.
    Label(String),
}
