//! The provider of the world: a bucket for each pool.

use std::collections::BTreeMap;

use tidegate::clock::MonoTime;
use tidegate::quota::PoolId;

/// The provider: a limit of each pool, and what it says of it.
#[derive(Debug)]
pub struct Provider {
    limits: BTreeMap<PoolId, (f64, f64, MonoTime)>,
    headers: bool,
}

impl Provider {
    /// A provider that takes this many requests a minute in each pool, and says so or not.
    pub fn new(pools: &[PoolId], limit: f64, headers: bool, now: MonoTime) -> Self {
        Self { limits: pools.iter().map(|pool| (pool.clone(), (limit, limit / 10.0, now))).collect(), headers }
    }

    /// It takes more, or less, from now on.
    pub fn set_limit(&mut self, pool: &PoolId, limit: f64) {
        if let Some(known) = self.limits.get_mut(pool) {
            known.0 = limit;
        }
    }

    /// Answers a request: status and headers.
    pub fn answer(&mut self, pool: &PoolId, now: MonoTime) -> (u16, Vec<(String, Vec<u8>)>) {
        let Some((limit, level, at)) = self.limits.get_mut(pool) else { return (404, Vec::new()) };
        let burst = *limit / 10.0;
        *level = (*level + *limit / 60.0 * now.seconds_since(*at)).min(burst);
        *at = now;
        let status = if *level >= 1.0 { 200 } else { 429 };
        if status == 200 {
            *level -= 1.0;
        }
        let head = |name: &str, value: String| (format!("x-ratelimit-{name}-requests"), value.into_bytes());
        let headers = if self.headers {
            let reset_s = (burst - *level) / (*limit / 60.0);
            vec![
                head("limit", format!("{limit:.0}")),
                head("remaining", format!("{:.0}", level.floor())),
                head("reset", format!("{:.0}ms", reset_s * 1e3)),
            ]
        } else {
            Vec::new()
        };
        (status, headers)
    }
}
