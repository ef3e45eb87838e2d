//! The queue when workers and Redis are killed at any moment: nothing that was taken is lost, and each tenant's order holds.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Path;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use parking_lot::Mutex;
use tidegate::client::Requeue;
use tidegate::redis::{Delivered, QueueParams, Worker, WorkerParams};
use tidegate::sim::process::Process;
use tidegate::sim::{RedisServer, RedisSetup};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::middleware::{http, serve};
use super::requeue::{Side, patient, quick, requeued, wide};
use super::world::eventually;

/// How long nothing may happen before the test fails.
const STALLED: Duration = Duration::from_secs(60);
/// Where a worker's process finds Redis; without it, it is no worker's process.
const REDIS: &str = "TIDEGATE_TEST_REDIS";
/// Where it tells of answers.
const DONE: &str = "TIDEGATE_TEST_DONE";
const TENANTS: usize = 40;
const WORKERS: usize = 3;

/// A worker in a process of its own, for the tests below: this very program, told so by its environment. Otherwise nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_workers_process() {
    let (Ok(redis), Ok(done_url)) = (std::env::var(REDIS), std::env::var(DONE)) else { return };
    let side = Side::open(&redis, wide(), patient()).await;
    let telling = http();
    let done = move |delivered: Delivered, answer: reqwest::Response| {
        let (telling, url) = (telling.clone(), format!("{done_url}/{}", String::from_utf8_lossy(&delivered.body)));
        async move {
            answer.bytes().await?;
            telling.post(url).send().await?.error_for_status()?;
            Ok(())
        }
    };
    // Kills are no fault of a request's: it takes many of them to give one up.
    let params = WorkerParams { tries_max: 30, lease: Duration::from_millis(700), ..quick() };
    Worker::new(&side.queue, params, side.pool.clone(), http(), done).run(std::future::pending()).await;
}

fn worker(redis: &str, done: &str) -> Process {
    let mut command = Command::new(std::env::current_exe().expect("its own path"));
    command.args(["requeue_storm::a_workers_process", "--exact", "--nocapture"]).env(REDIS, redis).env(DONE, done);
    Process::spawn("worker", command, None).expect("it starts")
}

/// What the provider and the receiver of answers have seen; a message is `<tenant>-<number>`.
#[derive(Default)]
struct Seen {
    /// How often each was answered with success.
    answered: BTreeMap<String, usize>,
    /// Ids that each was sent with.
    ids: BTreeMap<String, BTreeSet<String>>,
    /// Of each tenant, in the order of the first success.
    order: BTreeMap<String, Vec<usize>>,
    failed: usize,
    /// How often the answer to each was handed on.
    done: BTreeMap<String, usize>,
}

impl Seen {
    fn answer(&mut self, message: &str, id: String) -> StatusCode {
        let (whose, number) = parts(message);
        self.ids.entry(message.to_owned()).or_default().insert(id);
        if is_bad(number) {
            return StatusCode::BAD_REQUEST;
        }
        if fastrand::u8(..) < 12 {
            self.failed += 1;
            return StatusCode::SERVICE_UNAVAILABLE;
        }
        let times = self.answered.entry(message.to_owned()).or_default();
        *times += 1;
        if *times == 1 {
            self.order.entry(whose.to_owned()).or_default().push(number);
        }
        StatusCode::OK
    }
}

/// The number of a message that the provider refuses for good.
fn is_bad(number: usize) -> bool {
    number % 50 == 7
}

fn parts(message: &str) -> (&str, usize) {
    let (whose, number) = message.split_once('-').expect("a tenant and a number");
    (whose, number.parse().expect("a number"))
}

async fn provider(seen: Arc<Mutex<Seen>>) -> String {
    let (calls, dones) = (seen.clone(), seen);
    let answer = move |headers: HeaderMap, body: String| {
        let seen = calls.clone();
        let answered = async move {
            tokio::time::sleep(Duration::from_millis(fastrand::u64(0..40))).await;
            let id = headers["idempotency-key"].to_str().expect("text").to_owned();
            seen.lock().answer(&body, id)
        };
        // Whoever asked may be dead by then: it is worked at, and charged, all the same.
        async move { tokio::spawn(answered).await.expect("it does not panic") }
    };
    let done = move |Path(message): Path<String>| {
        let seen = dones.clone();
        async move { *seen.lock().done.entry(message).or_default() += 1 }
    };
    serve(Router::new().route("/v1", post(answer)).route("/done/{message}", post(done))).await
}

/// Adds all messages, each tenant's in order, and each until it is taken; how often one was not.
async fn add_all(redis: &str, url: &str, messages: usize) -> usize {
    let mut adding = JoinSet::new();
    let params = QueueParams { length_max: messages + 1_000, ..QueueParams::new("main") };
    let side = Arc::new(Side::open(redis, wide(), params).await);
    for tenant in 0..TENANTS {
        let (side, url) = (side.clone(), url.to_owned());
        adding.spawn(async move {
            let mut refused = 0;
            for number in (0..messages).filter(|n| n % TENANTS == tenant) {
                let message = format!("t{tenant}-{}", number / TENANTS);
                let (whose, url) = (format!("t{tenant}"), format!("{url}/v1?message={message}"));
                while side.queue.requeue(requeued(&whose, &url, &message)).await.is_err() {
                    refused += 1;
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
            refused
        });
    }
    adding.join_all().await.into_iter().sum()
}

/// So many messages, so many kills of workers and of Redis, spread over the run.
async fn storm(messages: usize, worker_kills: usize, redis_kills: usize) {
    let began = Instant::now();
    let setup = RedisSetup { appendonly: true, ..RedisSetup::default() };
    let mut redis = RedisServer::start_as(&setup).await.expect("redis starts");
    let seen: Arc<Mutex<Seen>> = Arc::default();
    let url = provider(seen.clone()).await;
    let done_url = format!("{url}/done");
    let mut workers: Vec<Process> = (0..WORKERS).map(|_| worker(&redis.url(), &done_url)).collect();
    let (redis_url, adding_url) = (redis.url(), url.clone());
    let adding = tokio::spawn(async move { add_all(&redis_url, &adding_url, messages).await });

    let good = (0..messages).filter(|n| !is_bad(n / TENANTS)).count();
    let (progress, mut progressed) = watch::channel(0);
    let looking = seen.clone();
    let look = tokio::spawn(async move {
        loop {
            progress.send_replace(looking.lock().done.len());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    let mut until = async |count: usize| {
        while *progressed.borrow() < count {
            let before = *progressed.borrow();
            let more = tokio::time::timeout(STALLED, progressed.wait_for(|now| *now > before)).await;
            assert!(more.is_ok(), "nothing has been done for {STALLED:?}, after {before} of {good}");
        }
    };
    // Each falls due when so many are done, and comes a moment later, whatever is going on then.
    let each = |kills: usize, kind: usize| (1..=kills).map(move |n| (n * good / (kills + 1), kind));
    let mut due: Vec<(usize, usize)> = each(worker_kills, 0).chain(each(redis_kills, 1)).collect();
    due.sort_unstable();
    for (count, kind) in due {
        until(count).await;
        tokio::time::sleep(Duration::from_micros(fastrand::u64(0..50_000))).await;
        if kind == 1 {
            redis.kill().expect("killed");
            redis.start_again().await.expect("redis starts again");
        } else {
            let at = fastrand::usize(0..WORKERS);
            workers[at].kill().expect("killed");
            workers[at] = worker(&redis.url(), &done_url);
        }
    }
    until(good).await;
    let refused = adding.await.expect("all were taken");
    let side = Side::wide_at(&redis.url()).await;
    eventually("the queue is empty", async || {
        (side.queue.lengths().await.expect("redis answers").waiting == 0).then_some(())
    })
    .await;
    look.abort();
    let took = began.elapsed();
    for mut process in workers {
        process.check_running().expect("a worker's process fails for nothing");
        process.kill().expect("killed");
    }

    let dead = side.queue.dead_letters(None, 2 * messages).await.expect("redis answers");
    let seen = seen.lock();
    let all = |bad: bool| {
        let numbers = (0..messages).filter(move |n| is_bad(n / TENANTS) == bad);
        numbers.map(|n| format!("t{}-{}", n % TENANTS, n / TENANTS)).collect::<BTreeSet<String>>()
    };
    assert!(seen.done.keys().eq(all(false).iter()), "all are answered, and nothing that was not asked");
    for (whose, order) in &seen.order {
        assert!(order.is_sorted(), "{whose}: {order:?}");
    }
    assert!(dead.iter().all(|letter| letter.reason == "status 400"), "{dead:?}");
    let buried: BTreeSet<&str> = dead.iter().filter_map(|letter| Some(letter.request.split_once('=')?.1)).collect();
    assert!(buried.iter().copied().eq(all(true).iter().map(String::as_str)), "the bad ones, and no others: {buried:?}");
    let twice = |counts: &BTreeMap<String, usize>| counts.values().filter(|count| **count > 1).count();
    let added_twice = seen.ids.values().filter(|ids| ids.len() > 1).count();
    println!(
        "{messages} messages in {took:.1?}, {worker_kills} workers and {redis_kills} Redis killed: {} answered, {} dead \
         letters, 0 lost; {} answered more than once, {} handed on more than once, {added_twice} of them added twice by \
         callers who were told no ({refused} times); {} failures of the provider",
        seen.done.len(),
        buried.len(),
        twice(&seen.answered),
        twice(&seen.done),
        seen.failed,
    );
    // Only what was in flight when somebody was killed, a request of each tenant at most, or was added twice.
    let in_flight = TENANTS * (worker_kills + redis_kills);
    assert!(twice(&seen.answered) <= in_flight + added_twice);
}

#[tokio::test(flavor = "multi_thread")]
async fn five_hundred_messages_survive_kills_of_workers_and_of_redis() {
    storm(500, 4, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "minutes: make test-full"]
async fn ten_thousand_messages_survive_kills_of_workers_and_of_redis() {
    storm(10_000, 40, 15).await;
}
