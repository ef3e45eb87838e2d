//! Each example runs as a stranger would run it: against `tidegate emulate`, and a real etcd or Redis where it needs one.

use std::path::PathBuf;
use std::process::Command;

use tidegate::sim::emulator::EmulatorState;
use tidegate::sim::process::Process;
use tidegate::sim::{Etcd, RedisServer};

use crate::world::{PATIENCE, listening, tidegate};

/// An example's program, which `cargo test` builds beside the tests.
fn example(name: &str) -> Command {
    let test = std::env::current_exe().expect("its own path");
    let profile = test.parent().and_then(|deps| deps.parent()).expect("target/<profile>/deps/it-…");
    let path: PathBuf = profile.join("examples").join(name);
    let how = "`cargo build --examples` (with the profile of the test) builds it, as a whole `cargo test` does";
    assert!(path.is_file(), "{} is missing: {how}", path.display());
    Command::new(path)
}

/// Runs an example to its end, with more in its environment; what it printed, and what the provider says of it.
async fn run(name: &str, environment: &[(&str, &str)]) -> (Vec<String>, EmulatorState) {
    let mut emulator = Process::spawn(
        "emulator",
        tidegate(&[
            "emulate",
            "--listen",
            "127.0.0.1:0",
            "--ttft-ms",
            "20",
            "--ttft-sigma",
            "0",
            "--ms-per-token",
            "0",
        ]),
        None,
    )
    .expect("the emulator starts");
    let provider = listening(&mut emulator).await;
    let mut command = example(name);
    command.env("TIDEGATE_PROVIDER", &provider);
    command.envs(environment.iter().copied());
    let mut process = Process::spawn(name, command, None).expect("the example starts");
    let status = process.wait(PATIENCE).await.expect("it ends");
    let lines = process.lines();
    assert!(status.success(), "{name}: {status}: {lines:?}");
    let http = reqwest::Client::builder().no_proxy().build().expect("an HTTP client");
    let state = http.get(format!("{provider}/admin/state")).send().await.expect("an answer");
    (lines, state.json().await.expect("its state"))
}

/// Requests that the provider admitted, by user, and refused.
fn counted(state: &EmulatorState) -> (Vec<(&str, u64)>, u64) {
    let users = state.truth.users.iter().map(|(name, user)| (name.as_str(), user.admitted_requests)).collect();
    (users, state.truth.total.refused_requests)
}

#[tokio::test]
async fn the_middleware_example_sends_what_is_in_time_and_tells_of_the_rest() {
    let (lines, state) = run("middleware", &[]).await;
    // Five at once at one a second: one goes, one can wait, the last cannot; those between by how fast the machine is.
    let sent = lines.iter().filter(|line| line.contains(": 200 OK, ")).count();
    let refused = lines.iter().filter(|line| line.contains(": not sent, not before ")).count();
    assert!(sent >= 2 && refused >= 1 && sent + refused == 5, "{lines:?}");
    let (users, throttled) = counted(&state);
    assert_eq!((users.iter().map(|(_, n)| n).sum::<u64>(), throttled), (sent as u64, 0), "{users:?}");
}

#[tokio::test]
async fn the_tower_example_sends_two_in_turn_and_refuses_the_one_that_is_too_large() {
    let (lines, state) = run("tower", &[]).await;
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert!(lines[..2].iter().all(|line| line.starts_with("200 OK, ")), "{lines:?}");
    assert!(lines[2].starts_with("not sent, never: needs 3"), "{lines:?}");
    assert_eq!(counted(&state), (vec![("acme", 2)], 0));
}

#[tokio::test]
async fn the_fallback_example_answers_from_its_cache_from_another_pool_and_from_its_queue() {
    let (lines, state) = run("fallback", &[]).await;
    let expected = [
        "hello: 200 OK by a provider, large",
        "hello: 200 OK by cached, large",
        "good day: 200 OK by a provider, small",
        "good night: 202 Accepted by requeued, not answered yet",
        "from the queue: 200 OK",
        "good night: 200 OK by cached, large",
    ];
    assert_eq!(lines, expected);
    assert_eq!(counted(&state), (vec![("acme", 3)], 0));
}

#[tokio::test]
async fn the_worker_example_sends_what_was_refused_and_keeps_its_answer() {
    let redis = RedisServer::start().await.expect("redis starts");
    let (lines, state) = run("requeue_worker", &[("TIDEGATE_REDIS", &redis.url())]).await;
    let expected = [
        "in the queue before: 0",
        "good morning: 200 OK by a provider",
        "good day: 202 Accepted by requeued",
        "good night: 202 Accepted by requeued",
        "from the queue: 200 OK, try 1, answered",
        "from the queue: 200 OK, try 1, answered",
        "left in the queue: 0",
        "good night: 200 OK by cached",
    ];
    assert_eq!(lines, expected);
    assert_eq!(counted(&state), (vec![("acme", 3)], 0));
}

#[tokio::test]
async fn the_example_by_hand_settles_requeues_and_answers_from_its_cache() {
    let (lines, state) = run("by_hand", &[]).await;
    let has = |part: &str| lines.iter().any(|line| line.contains(part));
    for part in
        ["one: 200 OK, ", "two: 200 OK, ", "three: 200 OK, ", ": back into the queue, no room in requests/minute"]
    {
        assert!(has(part), "{part:?} in {lines:?}");
    }
    assert!(has("far too long: a cached answer instead; it needs 3"), "{lines:?}");
    assert!(!has(" 0 tokens in") && !has(" 0 out"), "{lines:?}");
    assert_eq!(counted(&state), (vec![("acme", 3)], 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_override_example_is_obeyed_and_leaves_nothing_behind() {
    let etcd = Etcd::start().await.expect("etcd starts");
    let (lines, state) = run("override_from_code", &[("TIDEGATE_ETCD", etcd.endpoint())]).await;
    let expected = [
        "before:  10 requests/minute",
        "obeyed:  120 requests/minute",
        "called:  200 OK",
        "called:  200 OK",
        "removed: 10 requests/minute",
    ];
    assert_eq!(lines, expected);
    assert_eq!(counted(&state), (vec![("acme", 2)], 0));
    let mut etcdctl = etcd.etcdctl().expect("installed");
    let left = etcdctl.args(["get", "--prefix", "--keys-only", "/tidegate"]).output().expect("etcdctl runs");
    assert_eq!(String::from_utf8_lossy(&left.stdout).trim(), "");
}
