//! One of the demo's services: offers load for several tenants through the thin client's middleware, and says on
//! stdout, a JSON line an event, when its limits were retuned.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use reqwest_middleware::ClientWithMiddleware;
use serde::{Deserialize, Serialize};
use tokio::time::sleep;

use crate::cli::Failure;
use crate::cli::signals::Signals;
use crate::client::{Client, ClientParams, Limited, Pool, PoolParams};
use crate::clock::{Clock, SystemClock};
use crate::plan::Stamp;
use crate::provider::Dialect;
use crate::quota::{Grantee, Meter, TenantId};
use crate::store::EtcdStore;
use crate::telemetry::Telemetry;

/// How often the service looks whether its limits have moved: the resolution of the times it tells.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Arguments of a demo service.
#[derive(Debug, clap::Args)]
pub(crate) struct ServiceArgs {
    /// This service's name.
    #[arg(long)]
    name: String,
    /// etcd's client URL.
    #[arg(long)]
    etcd: String,
    /// The provider's base URL.
    #[arg(long)]
    provider: String,
    /// The pool.
    #[arg(long)]
    pool: String,
    /// Offered load: `<tenant>=<requests per second>`, repeated.
    #[arg(long = "offer", value_parser = offer)]
    offers: Vec<(TenantId, f64)>,
    /// Seed of the arrivals.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn offer(text: &str) -> Result<(TenantId, f64), String> {
    let (tenant, rate) = text.split_once('=').ok_or("expected <tenant>=<requests per second>")?;
    let rate: f64 = rate.parse().map_err(|_| "expected a number of requests per second")?;
    let tenant = tenant.parse().map_err(|error: crate::quota::QuotaError| error.to_string())?;
    if rate.is_finite() && rate > 0.0 { Ok((tenant, rate)) } else { Err("expected a rate above 0".into()) }
}

/// A change of what this member enforces.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Retuned {
    /// When, by the wall clock.
    pub unix_ms: u64,
    /// The pulse it rests on.
    #[serde(flatten)]
    pub stamp: Stamp,
    /// How the member stands to the leader.
    pub state: String,
    /// Requests per minute that this member enforces, by tenant.
    pub requests_per_minute: BTreeMap<String, f64>,
}

/// Offers load until a signal.
pub(crate) async fn service(args: ServiceArgs) -> Result<(), Failure> {
    let mut signals = Signals::watch()?;
    let usage = |error: &dyn std::fmt::Display| Failure::Usage(error.to_string());
    let store = EtcdStore::connect(std::slice::from_ref(&args.etcd)).await.map_err(|error| usage(&error))?;
    let id = args.pool.parse().map_err(|error| usage(&error))?;
    let mut params = ClientParams::new(vec![PoolParams::new(id, Dialect::OpenAi)]);
    params.instance.clone_from(&args.name);
    params.max_wait = Duration::from_secs(2);
    let client = Client::start(params, Arc::new(store), Arc::new(Telemetry::new())).await;
    let pool = client.pool(&args.pool).map_err(|error| usage(&error))?;

    let http = reqwest::Client::new();
    let url = format!("{}/v1/chat/completions", args.provider);
    let mut tasks = tokio::task::JoinSet::new();
    for (slot, (tenant, per_s)) in args.offers.iter().enumerate() {
        let limited = Limited::new(pool.clone(), tenant.clone());
        let http = reqwest_middleware::ClientBuilder::new(http.clone()).with(limited).build();
        let seed = args.seed.wrapping_mul(1_000).wrapping_add(slot as u64);
        tasks.spawn(offer_load(http, url.clone(), tenant.clone(), *per_s, seed));
    }
    tasks.spawn(tell_retunes(pool));
    signals.received().await;
    tasks.shutdown().await;
    client.close().await;
    Ok(())
}

/// Arrivals at random within equal slots, open loop: a refused request is not offered again. Not Poisson, so that a phase
/// of ten seconds offers what it is said to offer.
async fn offer_load(http: ClientWithMiddleware, url: String, tenant: TenantId, per_s: f64, seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let body = serde_json::json!({
        "model": "gpt-demo",
        "user": tenant.as_str(),
        "messages": [{ "role": "user", "content": "How high does the tide run at the harbour gate tonight?" }],
    })
    .to_string();
    let clock = SystemClock::new();
    let start = clock.now();
    let mut slot = 0.0;
    let mut calls = tokio::task::JoinSet::new();
    loop {
        sleep(start.after_seconds((slot + random.f64()) / per_s).since(clock.now())).await;
        slot += 1.0;
        while calls.try_join_next().is_some() {}
        let request = http.post(&url).header("content-type", "application/json").body(body.clone());
        calls.spawn(async move {
            // Refusals and errors are what the demo is about; the emulator and the client count them.
            if let Ok(response) = request.send().await {
                let _ = response.bytes().await;
            }
        });
    }
}

async fn tell_retunes(pool: Pool) {
    let clock = SystemClock::new();
    let mut told = None;
    loop {
        let tuning = pool.tuning();
        let news = Some((tuning.generation, tuning.state));
        if news != told {
            told = news;
            let rate = |limits: &crate::limiter::Limits| {
                let meter = limits.meters.get(&Meter::REQUESTS_PER_MINUTE).filter(|_| !limits.blocked);
                meter.map_or(0.0, |limit| limit.rate.rate)
            };
            let by_tenant = |(grantee, limits): (&Grantee, _)| (grantee.to_string(), rate(limits));
            let event = Retuned {
                unix_ms: clock.wall().0,
                stamp: tuning.stamp,
                state: tuning.state.as_str().to_owned(),
                requests_per_minute: tuning.limits.iter().map(by_tenant).collect(),
            };
            let mut out = std::io::stdout().lock();
            if let Ok(line) = serde_json::to_string(&event)
                && (writeln!(out, "{line}").is_err() || out.flush().is_err())
            {
                return;
            }
        }
        sleep(LOOK_EVERY).await;
    }
}
