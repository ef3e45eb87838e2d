//! A grant is put into etcd: when is the bucket retuned, against when a bare watch of the same key hears of it.
//!
//! A bucket that is retuned is seen as its users see it: by a caller that waits at a narrow limit, and is admitted under the
//! wide one. So that a client's line and its wake-up are in our time, and not in the peer's.

use std::collections::BTreeMap;
use std::time::Duration;

use etcd_client::{EventType, WatchOptions};
use tidegate::client::{Client, ClientParams, Pool, PoolParams};
use tidegate::plan::keyspace::{Key, Keyspace};
use tidegate::plan::{GRANT_SCHEMA, Grant, Rate, Reason, Stamp, Thresholds};
use tidegate::provider::Dialect;
use tidegate::quota::{Cost, Grantee, Meter};
use tokio::runtime::Runtime;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::{Instant, sleep};

use super::goal::{Bounds, Goals, ROUNDS};
use super::{connect, percentile, pool_name, tenant, with_etcd};

/// Puts that are measured in a round.
const PUTS: usize = 150;
const BOUNDS: Bounds = Bounds { goal: 1.2, must: 1.3 };
const NARROW: Rate = Rate { rate: 1.0, burst: 1.0 };
const WIDE: Rate = Rate { rate: 6e10, burst: 1e6 };
/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(3_600);

fn value(epoch: u64, rate: Rate) -> Vec<u8> {
    let rates = [Meter::REQUESTS_PER_MINUTE, Meter::TOKENS_PER_MINUTE].map(|meter| (meter, rate)).into();
    let thresholds = Thresholds { rates, concurrency: None };
    let grant = Grant {
        schema: GRANT_SCHEMA,
        stamp: Stamp { term: 1, epoch },
        safe: thresholds.scaled(0.5),
        thresholds,
        algorithms: BTreeMap::new(),
        bounded: std::collections::BTreeSet::new(),
        members: 1,
        reason: Reason {
            code: "headers_capacity".into(),
            text: "provider limit 600 requests/minute, others use 0 %".into(),
        },
    };
    serde_json::to_vec(&grant).expect("serialises")
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// Waits at the narrow limit, says so, and tells when it was admitted under the wide one; again and again.
async fn ours(endpoint: String, waits: UnboundedSender<()>, admitted: UnboundedSender<Instant>) {
    let params = ClientParams::new(vec![PoolParams::new(pool_name(0).parse().expect("valid"), Dialect::OpenAi)]);
    let client = Client::start(params, std::sync::Arc::new(connect(&endpoint).await), std::sync::Arc::default()).await;
    let (pool, tenant): (Pool, _) = (client.pool(&pool_name(0)).expect("named"), tenant(0));
    let one = Cost::request(0, 0);
    loop {
        let narrow = || {
            let tuning = pool.tuning();
            tuning.limits_of(&tenant).is_some_and(|limits| limits.meters[&Meter::REQUESTS_PER_MINUTE].rate.burst <= 1.0)
        };
        while !narrow() {
            sleep(Duration::from_millis(1)).await;
        }
        while pool.try_admit(&tenant, one).is_ok() {}
        let admission = pool.admit_within(&tenant, one, PATIENCE);
        let said = async {
            while pool.traffic().get(&Grantee::Tenant(tenant.clone())).is_none_or(|traffic| traffic.waiting == 0) {
                tokio::task::yield_now().await;
            }
            waits.send(())
        };
        let (permit, said) = tokio::join!(async { (pool_admitted(admission).await, Instant::now()) }, said);
        if said.is_err() || admitted.send(permit.1).is_err() {
            return;
        }
    }
}

async fn pool_admitted<E: std::fmt::Debug>(
    admission: impl Future<Output = Result<tidegate::client::Permit, E>>,
) -> tidegate::client::Permit {
    admission.await.expect("it waits for as long as it takes")
}

/// Tells when each put was heard of.
async fn peer(endpoint: String, key: String, watching: UnboundedSender<()>, heard: UnboundedSender<Instant>) {
    let mut client = etcd_client::Client::connect([endpoint], None).await.expect("etcd is there");
    let mut watch = client.watch(key, Some(WatchOptions::new())).await.expect("a watch");
    let _ = watching.send(());
    // Until etcd ends.
    while let Ok(Some(answer)) = watch.message().await {
        let at = Instant::now();
        let puts = answer.events().iter().filter(|event| event.event_type() == EventType::Put);
        if puts.map(|_| heard.send(at)).any(|sent| sent.is_err()) {
            return;
        }
    }
}

/// The ends of both sides.
struct Sides {
    waits: UnboundedReceiver<()>,
    admitted: UnboundedReceiver<Instant>,
    heard: UnboundedReceiver<Instant>,
}

impl Sides {
    /// Each side on a thread of its own, as in a process of its own.
    async fn start(endpoint: &str, key: &str) -> Self {
        let (waiting, waits) = unbounded_channel();
        let (admitting, admitted) = unbounded_channel();
        let (hearing, heard) = unbounded_channel();
        let (watching, mut watched) = unbounded_channel();
        let (ours_at, peers_at, key) = (endpoint.to_owned(), endpoint.to_owned(), key.to_owned());
        std::thread::spawn(move || runtime().block_on(ours(ours_at, waiting, admitting)));
        std::thread::spawn(move || runtime().block_on(peer(peers_at, key, watching, hearing)));
        watched.recv().await.expect("it watches");
        Self { waits, admitted, heard }
    }
}

/// Both sides' times of one round's puts, in µs.
async fn round(put: &mut etcd_client::Client, key: &str, sides: &mut Sides, epoch: &mut u64) -> [Vec<f64>; 2] {
    let mut times = [Vec::with_capacity(PUTS), Vec::with_capacity(PUTS)];
    for _ in 0..PUTS {
        *epoch += 2;
        put.put(key, value(*epoch - 1, NARROW), None).await.expect("etcd takes it");
        sides.heard.recv().await.expect("it watches");
        sides.waits.recv().await.expect("a caller waits");
        let wide = value(*epoch, WIDE);
        let asked = Instant::now();
        put.put(key, wide, None).await.expect("etcd takes it");
        for (ends, times) in [&mut sides.admitted, &mut sides.heard].into_iter().zip(&mut times) {
            let end = ends.recv().await.expect("it is told");
            times.push(end.duration_since(asked).as_secs_f64() * 1e6);
        }
    }
    times
}

pub(crate) fn watch(goals: &mut Goals) {
    let (runtime, etcd) = with_etcd(1);
    let grantee = Grantee::Tenant(tenant(0));
    let key = Keyspace::default().key(&Key::Limits(pool_name(0).parse().expect("valid"), grantee));
    let rounds = runtime.block_on(async {
        let mut put = etcd_client::Client::connect([etcd.endpoint()], None).await.expect("etcd is there");
        let mut sides = Sides::start(etcd.endpoint(), &key).await;
        let (mut rounds, mut epoch) = (Vec::new(), 0);
        for measured in 0..=ROUNDS {
            let times = round(&mut put, &key, &mut sides, &mut epoch).await;
            // The first one warms up.
            if measured > 0 {
                rounds.push(times);
            }
        }
        rounds
    });
    for (name, part) in [("protocol_watch_p50", 0.5), ("protocol_watch_p99", 0.99)] {
        let at = |[ours, peer]: &mut [Vec<f64>; 2]| (percentile(ours, part), percentile(peer, part));
        let rounds: Vec<(f64, f64)> = rounds.clone().iter_mut().map(at).collect();
        goals.tell(name, "us", Some(BOUNDS), &rounds);
    }
}
