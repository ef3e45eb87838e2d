//! What goes through etcd: how soon it is in force, and what etcd, controller and members take for it.
//!
//! Each part has a real etcd of its own: `watch` and `publishing` against bare calls of `etcd-client` in the same run,
//! `fleet` and `members` against bounds. `members` runs controller and members in processes of their own.
//!
//! `make bench AREA=protocol`; one part: `cargo bench --bench protocol -- fleet`.

mod fleet;
#[path = "../goal/mod.rs"]
mod goal;
mod members;
mod publishing;
mod watch;

use std::process::ExitCode;

use tidegate::config::Config;
use tidegate::controller::Params;
use tidegate::quota::TenantId;
use tidegate::sim::Etcd;
use tidegate::store::EtcdStore;
use tokio::runtime::Runtime;

use goal::Goals;

/// A part and its name.
type Part = (&'static str, fn(&mut Goals));

const PARTS: [Part; 4] = [
    ("watch", watch::watch),
    ("fleet", fleet::fleet),
    ("publishing", publishing::publishing),
    ("members", members::members),
];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    if let [process, rest @ ..] = args.as_slice()
        && process == members::PROCESS
    {
        members::process(rest);
        return ExitCode::SUCCESS;
    }
    if let Some(unknown) = args.iter().find(|arg| PARTS.iter().all(|(name, _)| name != arg)) {
        eprintln!("no part {unknown}: expected one of {}", PARTS.map(|(name, _)| name).join(", "));
        return ExitCode::FAILURE;
    }
    let mut goals = Goals::default();
    for (_, part) in PARTS.iter().filter(|(name, _)| args.is_empty() || args.iter().any(|arg| arg == name)) {
        part(&mut goals);
    }
    goals.verdict()
}

/// A runtime of so many threads, with an etcd that nobody else uses.
fn with_etcd(threads: usize) -> (Runtime, Etcd) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let etcd = runtime.block_on(Etcd::start()).expect("etcd starts");
    (runtime, etcd)
}

async fn connect(endpoint: &str) -> EtcdStore {
    EtcdStore::connect(&[endpoint.to_owned()]).await.expect("a valid endpoint")
}

fn pool_name(pool: usize) -> String {
    format!("pool-{pool}")
}

/// Of all pools, each by another name.
fn tenant_name(tenant: usize) -> String {
    format!("tenant-{tenant:05}")
}

fn tenant(n: usize) -> TenantId {
    tenant_name(n).parse().expect("valid")
}

/// The controller's file: so many pools, and as many tenants in each.
fn file(endpoint: &str, pools: usize, tenants: usize, per_minute: f64) -> String {
    let pool = |pool: usize| {
        let head = format!("[pools.{}]\ndialect = \"openai\"\n{}\n", pool_name(pool), capacity(per_minute));
        let table = |n: usize| format!("[pools.{}.tenants.{}]\n", pool_name(pool), tenant_name(pool * tenants + n));
        head + &(0..tenants).map(table).collect::<String>()
    };
    let pools: String = (0..pools).map(pool).collect();
    format!("[controller]\nlisten = \"127.0.0.1:0\"\n[etcd]\nendpoints = [\"{endpoint}\"]\n{pools}")
}

fn capacity(per_minute: f64) -> String {
    format!("capacity = {{ \"requests/minute\" = {per_minute}, \"tokens/minute\" = {} }}", per_minute * 1e3)
}

fn params(file: &str) -> Params {
    Config::parse("protocol", file).expect("valid").controller
}

/// What `part` of the figures is at most.
fn percentile(figures: &mut [f64], part: f64) -> f64 {
    figures.sort_by(f64::total_cmp);
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        clippy::cast_sign_loss,
        reason = "thousands"
    )]
    let at = (part * figures.len() as f64) as usize;
    figures[at.min(figures.len() - 1)]
}
