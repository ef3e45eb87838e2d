//! The control loop: reports in, thresholds out.

mod params;

pub use params::{Params, PoolParams, TenantParams};
