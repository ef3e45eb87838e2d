//! Sixteen processes at one limit that they count together, and what faults make of it. Whatever is admitted is counted at the
//! emulated provider, here a socket for each process: a byte for a request.

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use redis::aio::MultiplexedConnection;
use serde::{Deserialize, Serialize};
use tidegate::clock::{Clock, SystemClock};
use tidegate::plan::Algorithm;
use tidegate::quota::{Cost, Meter};
use tidegate::redis::{Redis, RedisParams, RedisTally};
use tidegate::sim::process::Process;
use tidegate::sim::{RedisServer, RedisSetup};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep};

use super::by_hand::tenant;
use super::tally::{Plan, Side, raw};
use super::world::eventually;

const MEMBERS: usize = 16;
/// Tells this program that it is a member.
const MEMBER: &str = "TIDEGATE_TALLY_MEMBER";

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Membership {
    redis: String,
    provider: String,
    meter: Meter,
    rate: f64,
    burst: f64,
    algorithm: Algorithm,
    workers: usize,
    /// How many share what may be leased; very many, and nothing is.
    lessees: u32,
}

/// A member's process: asks for as much as it gets, until it is killed.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "a process that other tests start"]
async fn a_member() {
    let Ok(membership) = std::env::var(MEMBER) else { return };
    let told: Membership = serde_json::from_str(&membership).expect("a membership");
    let plan =
        Plan { meters: vec![(told.meter, told.rate, told.burst)], algorithm: told.algorithm, members: told.lessees };
    let tally = RedisTally::new(Redis::new(RedisParams::new(&told.redis)).expect("a URL"));
    let tally = Arc::new(tally);
    let side = Side::open(&plan, 1, || Some(tally.clone())).await;
    let provider = Arc::new(tokio::sync::Mutex::new(TcpStream::connect(&told.provider).await.expect("it listens")));
    println!("member up");
    let workers = (0..told.workers).map(|_| {
        let (pool, provider) = (side.pools[0].clone(), provider.clone());
        tokio::spawn(async move {
            loop {
                let permit = pool.admit_within(&tenant("acme"), Cost::request(0, 0), Duration::from_secs(5)).await;
                if permit.is_ok() && provider.lock().await.write_all(b"r").await.is_err() {
                    return;
                }
            }
        })
    });
    let workers: Vec<_> = workers.collect();
    for worker in workers {
        worker.await.expect("it ends with the provider");
    }
}

fn unix_ms() -> u64 {
    SystemClock::new().wall().0
}

/// What came when: milliseconds since 1970, and how many requests.
type Timeline = Arc<Mutex<Vec<(u64, usize)>>>;

struct Provider {
    address: String,
    seen: Timeline,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Provider {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Provider {
    async fn open() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("it has one").to_string();
        let seen = Timeline::default();
        let tell = seen.clone();
        let task = tokio::spawn(async move {
            loop {
                let Ok((mut socket, _)) = listener.accept().await else { return };
                let tell = tell.clone();
                tokio::spawn(async move {
                    let mut bytes = [0; 4096];
                    while let Ok(n) = socket.read(&mut bytes).await {
                        if n == 0 {
                            return;
                        }
                        tell.lock().push((unix_ms(), n));
                    }
                });
            }
        });
        Self { address, seen, task }
    }

    fn total(&self) -> usize {
        self.seen.lock().iter().map(|(_, n)| n).sum()
    }

    /// The most in any span of so many milliseconds that begins then or later.
    fn most_in(&self, span_ms: u64, from_ms: u64) -> usize {
        let seen = self.seen.lock().clone();
        let begins = seen.iter().map(|(at, _)| *at).filter(|at| *at >= from_ms);
        let within =
            |begin: u64| seen.iter().filter(|(at, _)| (begin..begin + span_ms).contains(at)).map(|(_, n)| n).sum();
        begins.map(within).max().unwrap_or(0)
    }

    fn between(&self, from_ms: u64, to_ms: u64) -> usize {
        self.seen.lock().iter().filter(|(at, _)| (from_ms..to_ms).contains(at)).map(|(_, n)| n).sum()
    }
}

struct Fleet {
    membership: Membership,
    provider: Provider,
    members: Vec<Process>,
}

impl Fleet {
    async fn start(
        server: &RedisServer,
        meter: &str,
        rate: f64,
        burst: f64,
        algorithm: Algorithm,
        workers: usize,
    ) -> Self {
        let provider = Provider::open().await;
        let meter = meter.parse().expect("a meter");
        let (redis, address) = (server.url(), provider.address.clone());
        let lessees = u32::try_from(MEMBERS).expect("few");
        let membership = Membership { redis, provider: address, meter, rate, burst, algorithm, workers, lessees };
        Self::of(membership, provider).await
    }

    async fn of(membership: Membership, provider: Provider) -> Self {
        let mut fleet = Self { membership, provider, members: Vec::new() };
        for nth in 0..MEMBERS {
            fleet.members.push(fleet.spawn(nth));
        }
        for member in &mut fleet.members {
            member
                .wait_for_line(|line| line.contains("member up"), Duration::from_secs(60))
                .await
                .expect("a member is up");
        }
        fleet
    }

    fn spawn(&self, nth: usize) -> Process {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.args(["--exact", "tally_fleet::a_member", "--ignored", "--nocapture", "--test-threads=1"]);
        command.env(MEMBER, serde_json::to_string(&self.membership).expect("serialises"));
        Process::spawn(&format!("member {nth}"), command, None).expect("this program runs")
    }

    /// Kills so many with -9, wherever they are, and starts others.
    async fn replace(&mut self, first: usize, many: usize) {
        for nth in first..first + many {
            self.members[nth].kill().expect("killed");
            self.members[nth] = self.spawn(nth);
        }
        for nth in first..first + many {
            self.members[nth]
                .wait_for_line(|line| line.contains("member up"), Duration::from_secs(60))
                .await
                .expect("a member is up");
        }
    }

    fn stop(&mut self) {
        for member in &mut self.members {
            let _ = member.kill();
        }
    }
}

/// When the pool's windows end, as Redis has it: looked at all the time.
struct Windows {
    ends: Arc<Mutex<BTreeMap<u64, u64>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Windows {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Windows {
    /// Of the pool's own tally, not a tenant's.
    fn watch(server: &RedisServer, meter: &str) -> Self {
        let key = format!("tidegate:1:{{pool}}:f:pool:{meter}");
        let ends = Arc::new(Mutex::new(BTreeMap::new()));
        let (told, url) = (ends.clone(), server.url());
        let task = tokio::spawn(async move {
            let client = redis::Client::open(url).expect("a URL");
            let mut connection: Option<MultiplexedConnection> = None;
            loop {
                sleep(Duration::from_millis(10)).await;
                if connection.is_none() {
                    connection = client.get_multiplexed_async_connection().await.ok();
                }
                let Some(asked) = &mut connection else { continue };
                let mut pipe = redis::pipe();
                pipe.atomic().cmd("TIME").cmd("PTTL").arg(&key).cmd("GET").arg(&key);
                type Answer = ((u64, u64), i64, Option<u64>);
                match pipe.query_async::<Answer>(asked).await {
                    Ok(((s, us), left, Some(count))) if left > 0 => {
                        let end = s * 1000 + us / 1000 + left.unsigned_abs();
                        let mut ends = told.lock();
                        // The same to the millisecond or two.
                        let known = ends.range(end - 3..=end + 3).next().map_or(end, |(known, _)| *known);
                        let most = ends.entry(known).or_insert(0);
                        *most = (*most).max(count);
                    }
                    Ok(_) => {}
                    Err(_) => connection = None,
                }
            }
        });
        Self { ends, task }
    }

    /// Those that are over: their ends, and the most that was counted in each.
    fn over(&self) -> Vec<(u64, u64)> {
        let now = unix_ms();
        self.ends.lock().iter().filter(|(end, _)| **end < now).map(|(end, most)| (*end, *most)).collect()
    }
}

/// What was admitted in each window that began in a span: from its own end back by its length, to the next one's beginning.
fn per_window(fleet: &Fleet, windows: &Windows, window_ms: u64, from_ms: u64) -> Vec<usize> {
    let over = windows.over();
    let begins: Vec<u64> = over.iter().map(|(end, _)| end - window_ms).filter(|begin| *begin >= from_ms).collect();
    // The last one's next has not begun yet.
    begins.windows(2).map(|pair| fleet.provider.between(pair[0], pair[1])).collect()
}

async fn windows_over(windows: &Windows, from_ms: u64, window_ms: u64, many: usize) {
    eventually("some windows are over", async || {
        let over = windows.over().iter().filter(|(end, _)| *end >= from_ms + window_ms).count();
        (over >= many).then_some(())
    })
    .await;
}

async fn a_table_of_faults(meter: &str, limit: usize, window_ms: u64, setup: RedisSetup) {
    let loses = !setup.appendonly;
    let mut server = RedisServer::start_as(&setup).await.expect("redis starts");
    let mut fleet = Fleet::start(&server, meter, limit as f64, limit as f64, Algorithm::FixedWindow, 4).await;
    let windows = Windows::watch(&server, meter);
    let mut table: Vec<(&str, Vec<usize>, usize, usize)> = Vec::new();
    for fault in
        ["none", "members killed -9", "script cache flushed", "FLUSHALL", "redis stopped for 1 s", "redis killed -9"]
    {
        let from = unix_ms();
        windows_over(&windows, from, window_ms, 1).await;
        match fault {
            "members killed -9" => fleet.replace(0, 3).await,
            "script cache flushed" => {
                let _: () =
                    redis::cmd("SCRIPT").arg("FLUSH").query_async(&mut raw(&server).await).await.expect("flushed");
            }
            "FLUSHALL" => {
                let _: () = redis::cmd("FLUSHALL").query_async(&mut raw(&server).await).await.expect("flushed");
            }
            "redis stopped for 1 s" => {
                server.pause().expect("stopped");
                sleep(Duration::from_secs(1)).await;
                server.resume().expect("goes on");
            }
            "redis killed -9" => {
                server.kill().expect("killed");
                server.start_again().await.expect("redis starts");
            }
            _ => {}
        }
        windows_over(&windows, unix_ms(), window_ms, 3).await;
        let exact = matches!(fault, "none" | "members killed -9" | "script cache flushed");
        let counts = per_window(&fleet, &windows, window_ms, from);
        table.push((fault, counts, fleet.provider.most_in(window_ms, from), if exact { limit } else { 2 * limit }));
    }
    fleet.stop();
    println!("{} members, {limit} {meter}, {}:", MEMBERS, if loses { "nothing written down" } else { "appendonly" });
    for (fault, counts, in_span, bound) in &table {
        let most = counts.iter().max().unwrap_or(&0);
        println!(
            "{fault:>22}: most in a window {most}, in any span of its length {in_span}, bound {bound}: {counts:?}"
        );
    }
    for (fault, counts, in_span, bound) in &table {
        assert!(counts.len() >= 3, "{fault}: {counts:?}");
        assert!(counts.iter().all(|count| count <= bound), "{fault}: {counts:?}, at most {bound}");
        // Any span of that length has parts of two windows; and while Redis is away, half a limit goes by the safe shares beside.
        let by_shares = if fault.starts_with("redis") { limit / 2 } else { 0 };
        assert!(*in_span <= 2 * limit + by_shares, "{fault}: {in_span} in a window's length");
        // Shares are less, while the store is away; and on a busy machine it is too late for a moment.
        let used = counts.iter().sum::<usize>() as f64 / (counts.len() * limit) as f64;
        assert!(used >= 0.5, "{fault}: it is used: {counts:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sixteen_processes_admit_what_one_may_and_no_fault_makes_it_more_than_twice_that() {
    let written_down = RedisSetup { appendonly: true, ..RedisSetup::default() };
    a_table_of_faults("requests/second", 100, 1_000, written_down).await;
}

/// As a whole: what goes through a bucket in a span is its burst and what flowed in.
#[tokio::test(flavor = "multi_thread")]
async fn sixteen_processes_take_no_more_from_a_bucket_than_flows_into_it() {
    let server = RedisServer::start().await.expect("redis starts");
    let fleet = &mut Fleet::start(&server, "requests/second", 40.0, 20.0, Algorithm::TokenBucket, 4).await;
    let began = Instant::now();
    let before = fleet.provider.total();
    sleep(Duration::from_secs(4)).await;
    let (took, after) = (began.elapsed().as_secs_f64(), fleet.provider.total());
    fleet.stop();
    let (admitted, most) = ((after - before) as f64, 20.0 + 40.0 * took);
    println!("bucket: {admitted} admitted in {took:.2} s, at most {most:.1}");
    assert!(admitted <= most + 1.0, "{admitted} of {most}");
    assert!(admitted >= 0.9 * 40.0 * took, "{admitted} of {most}");
}

/// The limits that the issue of exactness is about, each for some windows; and leases, within their bound.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "minutes: make test-full"]
async fn a_hundred_a_minute_and_ten_thousand_a_second_through_sixteen_processes() {
    for (meter, limit, window_ms, lessees, workers) in [
        ("requests/second", 10_000_usize, 1_000, u32::MAX, 8),
        ("requests/second", 10_000, 1_000, 16, 8),
        ("requests/minute", 100, 60_000, 16, 4),
    ] {
        let server = RedisServer::start().await.expect("redis starts");
        let provider = Provider::open().await;
        let membership = Membership {
            redis: server.url(),
            provider: provider.address.clone(),
            meter: meter.parse().expect("a meter"),
            rate: limit as f64,
            burst: limit as f64,
            algorithm: Algorithm::FixedWindow,
            workers,
            lessees,
        };
        let mut fleet = Fleet::of(membership, provider).await;
        let windows = Windows::watch(&server, meter);
        let from = unix_ms();
        let many = if window_ms > 10_000 { 3 } else { 12 };
        let wanted = Instant::now() + Duration::from_millis(window_ms * (many + 3));
        while windows.over().iter().filter(|(end, _)| *end >= from + window_ms).count() < many as usize {
            assert!(Instant::now() < wanted + Duration::from_secs(60), "windows end");
            sleep(Duration::from_millis(50)).await;
        }
        let counts = per_window(&fleet, &windows, window_ms, from);
        let counted: Vec<u64> = windows.over().iter().map(|(_, most)| *most).collect();
        fleet.stop();
        let bound = if lessees == 16 && limit > 1_000 { limit + limit / 20 } else { limit };
        let kind = if lessees == 16 && limit > 1_000 { "with leases" } else { "exact" };
        println!("{MEMBERS} members, {limit} {meter}, {kind}, bound {bound}: {counts:?}");
        assert!(counts.len() >= 2, "{counts:?}");
        // What was counted just before a window's end is seen in the next one: no more than the one before lacks.
        let lacked = std::iter::once(0).chain(counts.iter().map(|count| limit.saturating_sub(*count)));
        let within = counts.iter().zip(lacked).all(|(count, lacked)| *count <= bound + lacked);
        assert!(within, "{counts:?}, at most {bound}");
        assert!(counted.iter().all(|count| *count <= limit as u64), "counted {counted:?}");
    }
}
