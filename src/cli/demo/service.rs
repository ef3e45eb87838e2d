//! One of the demo's services: offers load for several tenants, and says on stdout, a JSON line at a time, what it
//! enforces and who waits.
//!
//! Each arrival is sent twice at the same moment: through the adaptive limits to one provider, and, where it is told of
//! static ones, through those to another. Both ways wait as long, and both obey what a 429 asks.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use reqwest_middleware::ClientWithMiddleware;
use serde::{Deserialize, Serialize};
use tokio::time::sleep;

use crate::cli::Failure;
use crate::cli::signals::Signals;
use crate::client::{Client, ClientParams, Limited, Pool, PoolParams};
use crate::clock::{Clock, SystemClock};
use crate::exposition::TelemetryCollector;
use crate::plan::{Rate, Stamp, Thresholds};
use crate::provider::Dialect;
use crate::quota::{Grantee, Meter, TenantId};
use crate::store::{EtcdStore, MemoryStore, Store};
use crate::telemetry::Telemetry;

/// How often the service looks whether its limits have moved: the resolution of the times it tells.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// How often it says how many wait, in looks.
const TELL_EVERY: u32 = 20;
/// How long a request waits, either way.
const MAX_WAIT: Duration = Duration::from_secs(2);

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
    /// The base URL of the provider that is called through static limits.
    #[arg(long, requires = "quotas")]
    static_provider: Option<String>,
    /// Static limits of this process: `<tenant>=<requests per minute>`, repeated.
    #[arg(long = "static-quota", id = "quotas", value_parser = offer)]
    quotas: Vec<(TenantId, f64)>,
    /// Where /metrics is served.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Seed of the arrivals.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn offer(text: &str) -> Result<(TenantId, f64), String> {
    let (tenant, rate) = text.split_once('=').ok_or("expected <tenant>=<requests per second or minute>")?;
    let rate: f64 = rate.parse().map_err(|_| "expected a number of requests")?;
    let tenant = tenant.parse().map_err(|error: crate::quota::QuotaError| error.to_string())?;
    if rate.is_finite() && rate > 0.0 { Ok((tenant, rate)) } else { Err("expected a rate above 0".into()) }
}

/// What this member enforces, and who waits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Told {
    /// When, by the wall clock.
    pub unix_ms: u64,
    /// The pulse it rests on.
    #[serde(flatten)]
    pub stamp: Stamp,
    /// How the member stands to the leader.
    pub state: String,
    /// Requests per minute that this member enforces, by tenant.
    pub requests_per_minute: BTreeMap<String, f64>,
    /// Requests that wait here, by tenant.
    pub waiting: BTreeMap<String, usize>,
}

/// One way to a provider.
#[derive(Debug, Clone)]
struct Way {
    http: ClientWithMiddleware,
    url: String,
}

/// Offers load until a signal.
pub(crate) async fn service(args: ServiceArgs) -> Result<(), Failure> {
    let mut signals = Signals::watch()?;
    let usage = |error: &dyn std::fmt::Display| Failure::Usage(error.to_string());
    let store = EtcdStore::connect(std::slice::from_ref(&args.etcd)).await.map_err(|error| usage(&error))?;
    let id = args.pool.parse().map_err(|error| usage(&error))?;
    let telemetry = Arc::new(Telemetry::new());
    let client =
        start(&args.name, vec![PoolParams::new(id, Dialect::OpenAi)], Arc::new(store), telemetry.clone()).await;
    let pool = client.pool(&args.pool).map_err(|error| usage(&error))?;
    // Nobody publishes into this store, so what its pools begin with holds for good: static limits.
    let quotas = args.quotas.iter().map(|(tenant, per_minute)| static_pool(tenant, *per_minute));
    let quotas: Vec<PoolParams> = quotas.collect::<Result<_, _>>().map_err(|error| usage(&error))?;
    let fixed = Arc::new(Telemetry::new());
    let fixed = start(&format!("{}-static", args.name), quotas, Arc::new(MemoryStore::new()), fixed).await;

    let http = reqwest::Client::builder().no_proxy().build().map_err(|error| Failure::Run(error.to_string()))?;
    let way = |provider: &str, pool: Pool, tenant: &TenantId| Way {
        http: reqwest_middleware::ClientBuilder::new(http.clone()).with(Limited::new(pool, tenant.clone())).build(),
        url: format!("{provider}/v1/chat/completions"),
    };
    let mut tasks = tokio::task::JoinSet::new();
    for (slot, (tenant, per_s)) in args.offers.iter().enumerate() {
        let mut ways = vec![way(&args.provider, pool.clone(), tenant)];
        if let Some(provider) = &args.static_provider
            && let Ok(pool) = fixed.pool(&static_pool_id(tenant))
        {
            ways.push(way(provider, pool, tenant));
        }
        let seed = args.seed.wrapping_mul(1_000).wrapping_add(slot as u64);
        tasks.spawn(offer_load(ways, tenant.clone(), *per_s, seed));
    }
    tasks.spawn(tell(pool));
    serve_metrics(args.listen, telemetry, &mut tasks).await?;
    signals.received().await;
    tasks.shutdown().await;
    client.close().await;
    fixed.close().await;
    Ok(())
}

/// Serves what a member counts, as a service would beside its own metrics.
async fn serve_metrics(
    listen: SocketAddr,
    telemetry: Arc<Telemetry>,
    tasks: &mut tokio::task::JoinSet<()>,
) -> Result<(), Failure> {
    let failed = |error: &dyn std::fmt::Display| Failure::Run(format!("cannot serve /metrics: {error}"));
    let collector = TelemetryCollector::try_new(telemetry).map_err(|error| failed(&error))?;
    let registry = prometheus::Registry::new();
    registry.register(Box::new(collector)).map_err(|error| failed(&error))?;
    let metrics = async move || {
        let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather());
        ([("content-type", "text/plain; version=0.0.4")], text.unwrap_or_default())
    };
    let listener = tokio::net::TcpListener::bind(listen).await.map_err(|error| failed(&error))?;
    let addr = listener.local_addr().map_err(|error| failed(&error))?;
    let app = axum::Router::new().route("/metrics", axum::routing::get(metrics));
    println(&format!("service listening on http://{addr}"));
    tasks.spawn(async move { drop(axum::serve(listener, app).await) });
    Ok(())
}

/// Whether anybody still reads.
fn println(line: &str) -> bool {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").is_ok() && out.flush().is_ok()
}

async fn start(instance: &str, pools: Vec<PoolParams>, store: Arc<dyn Store>, telemetry: Arc<Telemetry>) -> Client {
    let mut params = ClientParams::new(pools);
    instance.clone_into(&mut params.instance);
    params.max_wait = MAX_WAIT;
    Client::start(params, store, telemetry).await
}

fn static_pool_id(tenant: &TenantId) -> String {
    format!("static-{tenant}")
}

/// A tenant's quota as services without a controller have it: a bucket of one second's worth in each process.
fn static_pool(tenant: &TenantId, per_minute: f64) -> Result<PoolParams, crate::quota::QuotaError> {
    let meter = Meter::REQUESTS_PER_MINUTE;
    let rate = Rate { rate: per_minute, burst: meter.per_second(per_minute).max(1.0) };
    let bootstrap = Thresholds { rates: [(meter, rate)].into(), concurrency: None };
    Ok(PoolParams { bootstrap, ..PoolParams::new(static_pool_id(tenant).parse()?, Dialect::OpenAi) })
}

/// Arrivals at random within equal slots, open loop: a refused request is not offered again. Not Poisson, so that a phase
/// of ten seconds offers what it is said to offer.
async fn offer_load(ways: Vec<Way>, tenant: TenantId, per_s: f64, seed: u64) {
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
        for Way { http, url } in &ways {
            let request = http.post(url).header("content-type", "application/json").body(body.clone());
            calls.spawn(async move {
                // Refusals and errors are what the demo is about; the emulator and the client count them.
                if let Ok(response) = request.send().await {
                    let _ = response.bytes().await;
                }
            });
        }
    }
}

async fn tell(pool: Pool) {
    let clock = SystemClock::new();
    let mut told = None;
    for look in 0_u32.. {
        let tuning = pool.tuning();
        let news = Some((tuning.generation, tuning.state));
        if news != told || look % TELL_EVERY == 0 {
            told = news;
            let rate = |limits: &crate::limiter::Limits| {
                let meter = limits.meters.get(&Meter::REQUESTS_PER_MINUTE).filter(|_| !limits.blocked);
                meter.map_or(0.0, |limit| limit.rate.rate)
            };
            let by_tenant = |(grantee, limits): (&Grantee, _)| (grantee.to_string(), rate(limits));
            let waiting = pool.traffic().into_iter().filter(|(_, traffic)| traffic.waiting > 0);
            let event = Told {
                unix_ms: clock.wall().0,
                stamp: tuning.stamp,
                state: tuning.state.as_str().to_owned(),
                requests_per_minute: tuning.limits.iter().map(by_tenant).collect(),
                waiting: waiting.map(|(grantee, traffic)| (grantee.to_string(), traffic.waiting)).collect(),
            };
            if let Ok(line) = serde_json::to_string(&event)
                && !println(&line)
            {
                return;
            }
        }
        sleep(LOOK_EVERY).await;
    }
}
