//! A self-hosted server that sends no limits and queues what it has no slot for: driven at its knee by what it tells Prometheus.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::json;
use tidegate::client::{Client, ClientParams, MemberState, Permit, Pool, PoolParams, Usage};
use tidegate::provider::{Dialect, Head};
use tidegate::quota::{Cost, TenantId};
use tidegate::sim::process::Process;
use tidegate::sim::{Etcd, Seat};
use tidegate::store::EtcdStore;
use tidegate::telemetry::Telemetry;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::real_prometheus::RealPrometheus;
use super::world::{eventually, listening, tidegate};

/// Where the emulated server's throughput stops growing.
const SLOTS: usize = 16;
/// Workers that always have something to ask: four times as many as it can answer.
const WORKERS: usize = 64;
/// The last of the servers at which ours and the best static limit are compared; each is named by the seed of its answers.
const SERVERS: u64 = 4;
/// What the median of three ratios of p99s, of some 1,500 answers each, may be above that of two equals.
const NOISE: f64 = 0.03;
/// A call that takes longer has timed out. Without a limit of concurrency one takes 2.4 s, in the long test 0.6 s.
const CALL_TIMEOUT: Duration = Duration::from_secs(8);
/// Static limits whose throughput is this part of the most are as good as the best: so much two runs of one differ.
const AS_GOOD: f64 = 0.96;

/// What came back: of each answer how long the call took, from its admission on.
#[derive(Debug, Default)]
struct Answers {
    took: Vec<Duration>,
    failed: usize,
}

#[derive(Debug)]
struct Run {
    per_s: f64,
    p99: Duration,
    failed: usize,
}

impl std::fmt::Display for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.2} answers/s, p99 {:.0} ms, {} failed", self.per_s, self.p99.as_secs_f64() * 1e3, self.failed)
    }
}

/// How a worker gets its turn, and asks.
#[derive(Clone)]
enum Way {
    /// So many at a time.
    Static(reqwest::Client, Arc<Semaphore>),
    /// As tidegate admits.
    Ours(reqwest::Client, Pool),
}

struct Load {
    url: String,
    way: Way,
    stop: Arc<AtomicBool>,
    answers: Arc<Mutex<Answers>>,
    workers: Vec<tokio::task::JoinHandle<()>>,
}

impl Load {
    fn start(url: &str, way: &Way) -> Self {
        let (stop, answers) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Answers::default())));
        let mut load = Self { url: url.to_owned(), way: way.clone(), stop, answers, workers: Vec::new() };
        for _ in 0..WORKERS {
            let worker = work(load.url.clone(), load.way.clone(), load.stop.clone(), load.answers.clone());
            load.workers.push(tokio::spawn(worker));
        }
        load
    }

    /// What comes back within a while.
    async fn measure(&self, span: Duration) -> Run {
        *self.answers.lock() = Answers::default();
        let began = Instant::now();
        tokio::time::sleep(span).await;
        let mut answers = std::mem::take(&mut *self.answers.lock());
        let seconds = began.elapsed().as_secs_f64();
        answers.took.sort();
        let p99 = answers.took.get(answers.took.len() * 99 / 100).copied().unwrap_or_default();
        Run { per_s: answers.took.len() as f64 / seconds, p99, failed: answers.failed }
    }

    async fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        for worker in self.workers {
            worker.await.expect("a worker ends well");
        }
    }
}

async fn work(url: String, way: Way, stop: Arc<AtomicBool>, answers: Arc<Mutex<Answers>>) {
    let body =
        json!({ "model": "llama", "messages": [{ "role": "user", "content": "How high is the tide?" }] }).to_string();
    let acme: TenantId = "acme".parse().unwrap();
    while !stop.load(Ordering::Relaxed) {
        // From its admission on: how long one waits for that is a matter of how many ask, not of the limit.
        let took = match &way {
            Way::Static(http, places) => {
                let _place = places.acquire().await.expect("never closed");
                timed(call(http, &url, &body, None)).await
            }
            Way::Ours(http, pool) => match pool.admit(&acme, Cost::request(20, 40)).await {
                Ok(permit) => timed(call(http, &url, &body, Some(permit))).await,
                Err(_) => Err(()),
            },
        };
        let mut answers = answers.lock();
        match took {
            Ok(took) => answers.took.push(took),
            Err(()) => answers.failed += 1,
        }
    }
}

async fn timed(call: impl Future<Output = Result<(), ()>>) -> Result<Duration, ()> {
    let began = Instant::now();
    call.await.map(|()| began.elapsed())
}

/// Asks, and reads the answer to its end.
async fn call(http: &reqwest::Client, url: &str, body: &str, permit: Option<Permit>) -> Result<(), ()> {
    let request = http.post(url).header("content-type", "application/json").body(body.to_owned());
    let answer = match (request.send().await, permit) {
        (Ok(answer), Some(mut permit)) => {
            let observation = permit.observe(&Head { status: answer.status().as_u16(), headers: answer.headers() });
            permit.conclude(&observation);
            let read = answer.bytes().await;
            permit.settle(Usage { input_tokens: 20, output_tokens: 40 });
            return read.map(drop).map_err(drop);
        }
        (Ok(answer), None) => answer,
        (Err(_), permit) => {
            if let Some(mut permit) = permit {
                permit.failed();
            }
            return Err(());
        }
    };
    answer.bytes().await.map(drop).map_err(drop)
}

/// The emulated server, and what watches it.
struct Farm {
    provider: String,
    prometheus: RealPrometheus,
    _emulator: Process,
}

impl Farm {
    /// One whose answers are drawn by this seed, and take so many times as long as the long test's, some 0.17 s each.
    async fn new(seed: u64, times: f64) -> Self {
        let seed = seed.to_string();
        let [first, each] = [25.0, 1.25].map(|ms| (times * ms).to_string());
        let slots = SLOTS.to_string();
        let arguments = ["emulate", "--listen", "127.0.0.1:0", "--no-headers", "--slots", &slots, "--crowding", "1"];
        let much = ["--requests-per-minute", "1000000000", "--tokens-per-minute", "1000000000"];
        let answers = ["--ttft-ms", &first, "--ms-per-token", &each, "--output-tokens", "40", "--seed", &seed];
        let arguments: Vec<&str> = arguments.into_iter().chain(much).chain(answers).collect();
        let mut emulator = Process::spawn("emulator", tidegate(&arguments), None).expect("emulator starts");
        let provider = listening(&mut emulator).await;
        let prometheus = RealPrometheus::start(&[("vllm", &provider)], None).await;
        prometheus.until("the server is scraped", "sum(vllm:num_requests_waiting)", |_| true).await;
        Self { provider, prometheus, _emulator: emulator }
    }

    fn url(&self) -> String {
        format!("{}/v1/chat/completions", self.provider)
    }

    async fn of_static(&self, places: usize, warm: Duration, span: Duration) -> Run {
        let http = http();
        let load = Load::start(&self.url(), &Way::Static(http, Arc::new(Semaphore::new(places))));
        tokio::time::sleep(warm).await;
        let run = load.measure(span).await;
        load.stop().await;
        run
    }
}

fn http() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().timeout(CALL_TIMEOUT).build().expect("an HTTP client")
}

/// A controller that asks Prometheus, and a client whose calls it steers.
struct Steered {
    client: Client,
    way: Way,
    status_url: String,
    controller: Process,
    _etcd: Etcd,
    _seat: Seat,
}

impl Steered {
    async fn new(farm: &Farm) -> Self {
        let etcd = Etcd::start().await.expect("etcd starts");
        let seat = Seat::take().expect("a seat");
        let config = seat.folder("knee").expect("a folder").join("tidegate.toml");
        let text = format!(
            "[controller]\nlisten = \"127.0.0.1:0\"\n[etcd]\nendpoints = [\"{}\"]\n[prometheus]\nurl = \"{}\"\n\
             [prometheus.queries.waiting]\nquery = \"sum(vllm:num_requests_waiting)\"\nrole = \"congestion\"\n\
             pool = \"llama\"\nevery_s = 1\nscrape_s = 1\n[pools.llama]\ndialect = \"self-hosted\"\n\
             [pools.llama.capacity]\n\"requests/minute\" = 60000\n[pools.llama.tenants.acme]\n[pools.llama.default]\n",
            etcd.endpoint(),
            farm.prometheus.url
        );
        std::fs::write(&config, text).expect("written");
        let mut command = tidegate(&["run", "--config"]);
        command.arg(&config);
        let mut controller = Process::spawn("controller", command, None).expect("controller starts");
        let status_url = format!("{}/v1/status", listening(&mut controller).await);
        let store = EtcdStore::connect(&[etcd.endpoint().to_owned()]).await.expect("etcd is there");
        let params = ClientParams {
            max_wait: Duration::from_secs(30),
            ..ClientParams::new(vec![PoolParams::new("llama".parse().unwrap(), Dialect::SelfHosted)])
        };
        let client = Client::start(params, Arc::new(store), Arc::new(Telemetry::new())).await;
        eventually("the member is active", async || {
            let status = client.status();
            (status.pools.values().all(|pool| pool.state == MemberState::Active)).then_some(())
        })
        .await;
        let way = Way::Ours(http(), client.pool("llama").expect("named"));
        Self { client, way, status_url, controller, _etcd: etcd, _seat: seat }
    }

    async fn status(&self) -> serde_json::Value {
        http().get(&self.status_url).send().await.expect("it answers").json().await.expect("JSON")
    }

    /// Places that the leader allows now.
    async fn places(&self) -> Option<f64> {
        self.status().await["pools"]["llama"]["places"].as_f64()
    }

    async fn close(mut self) {
        self.client.close().await;
        self.controller.terminate().await.expect("it stops");
    }
}

/// Ours for a while, then with Prometheus killed for another.
async fn ours(farm: &mut Farm, warm: Duration, span: Duration) -> (Run, Run) {
    let steered = Steered::new(farm).await;
    let load = Load::start(&farm.url(), &steered.way);
    eventually("it has found the knee", async || {
        let places = steered.places().await;
        places.is_some_and(|places| places < 2.0 * SLOTS as f64).then_some(())
    })
    .await;
    tokio::time::sleep(warm).await;
    let seeing = load.measure(span).await;
    println!("ours: {seeing}, at most {:.1} at a time", steered.places().await.expect("limited"));
    farm.prometheus.process.kill().expect("killed");
    let blind = load.measure(span).await;
    let status = steered.status().await;
    let signal = &status["signals"]["waiting"];
    println!("ours, Prometheus killed: {blind}; it says: {signal}; {}", status["pools"]["llama"]["reason"]["text"]);
    assert!(signal["error"].is_string(), "it says so: {signal}");
    load.stop().await;
    steered.close().await;
    (seeing, blind)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_queues_is_driven_near_its_knee_without_a_time_out_and_so_when_prometheus_is_killed() {
    // Slow ones, as other tests take their time of the machine.
    let mut farm = Farm::new(1, 4.0).await;
    let (warm, span) = (Duration::from_secs(1), Duration::from_secs(6));
    let at_knee = farm.of_static(SLOTS, warm, span).await;
    println!("static {SLOTS}: {at_knee}");
    let (seeing, blind) = ours(&mut farm, warm, span).await;
    for run in [&seeing, &blind] {
        // The long test below measures closely, beside nothing.
        assert!(run.per_s >= 0.85 * at_knee.per_s, "{run} against {at_knee}");
        assert_eq!(run.failed, 0, "no call timed out");
    }
}

/// Static limits of concurrency, one after the other, against the law. Of some hundred answers the slowest hundredth scatters by more
/// than one limit differs from the next, so the best one and ours are measured by turns, at servers whose answers are drawn anew, and
/// what counts is the median of their ratios.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "minutes: make test-full"]
async fn throughput_at_the_knee_is_that_of_the_best_static_limit() {
    let farm = Farm::new(1, 1.0).await;
    let (warm, span) = (Duration::from_secs(3), Duration::from_secs(15));
    let mut runs = Vec::new();
    for places in [8, 12, 16, 20, 24, 32] {
        let run = farm.of_static(places, warm, span).await;
        println!("static {places:>2}: {run}");
        runs.push((places, run));
    }
    drop(farm);
    let most = runs.iter().map(|(_, run)| run.per_s).fold(0.0, f64::max);
    // Of those that do as well the one with the fewest, which answers soonest.
    let (places, best) = runs.into_iter().find(|(_, run)| run.per_s >= AS_GOOD * most).expect("one does most");
    println!("best static: {places}: {best}");
    // The law tries for more, less often each time that it comes to nothing: after this it has seldom to.
    let settling = Duration::from_secs(30);
    let (mut seeing, mut blind) = (Vec::new(), Vec::new());
    for seed in 2..=SERVERS {
        let mut farm = Farm::new(seed, 1.0).await;
        let before = farm.of_static(places, warm, span).await;
        let (with_sight, without) = ours(&mut farm, settling, span).await;
        let after = farm.of_static(places, warm, span).await;
        println!("static {places}: before {before}, after {after}");
        let p99 = (before.p99 + after.p99) / 2;
        let per_s = f64::midpoint(before.per_s, after.per_s);
        for (run, ratios) in [(with_sight, &mut seeing), (without, &mut blind)] {
            ratios.push((run.per_s / per_s, ratio(run.p99, p99)));
            assert_eq!(run.failed, 0, "no call timed out");
        }
    }
    for (name, ratios) in [("ours", seeing), ("ours, Prometheus killed", blind)] {
        println!("{name} ÷ best static, server by server (throughput, p99): {ratios:.3?}");
        // Throughput against the most of any, p99 against the one with the fewest places that does as well.
        let (throughput, p99) = (median(&ratios, |of| of.0) * best.per_s / most, median(&ratios, |of| of.1));
        println!("{name} ÷ best static, median: throughput {throughput:.3}, p99 {p99:.3}");
        assert!(throughput >= 0.95, "{name}: {throughput}");
        assert!(p99 <= 1.0 + NOISE, "{name}: {p99}");
    }
}

fn median(ratios: &[(f64, f64)], of: impl Fn(&(f64, f64)) -> f64) -> f64 {
    let mut all: Vec<f64> = ratios.iter().map(of).collect();
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

fn ratio(ours: Duration, theirs: Duration) -> f64 {
    ours.as_secs_f64() / theirs.as_secs_f64()
}
