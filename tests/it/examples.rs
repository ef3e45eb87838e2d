//! Each example runs as a stranger would run it: against `tidegate emulate`, and a real etcd where it needs one.

use std::path::PathBuf;
use std::process::Command;

use tidegate::client::Refusal;
use tidegate::sim::Etcd;
use tidegate::sim::emulator::EmulatorState;
use tidegate::sim::process::Process;

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

/// Runs an example to its end; what it printed, and what the provider says of it.
async fn run(name: &str, etcd: Option<&Etcd>) -> (Vec<String>, EmulatorState) {
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
    if let Some(etcd) = etcd {
        command.env("TIDEGATE_ETCD", etcd.endpoint());
    }
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
    let (lines, state) = run("middleware", None).await;
    // Two at once and one a second later; the others would wait longer than they may.
    let sent = lines.iter().filter(|line| line.contains(": 200 OK, ")).count();
    let refused = lines.iter().filter(|line| line.contains(": not sent, not before ")).count();
    assert_eq!((sent, refused), (3, 2), "{lines:?}");
    let (users, throttled) = counted(&state);
    assert_eq!((users.iter().map(|(_, n)| n).sum::<u64>(), throttled), (3, 0), "{users:?}");
}

#[tokio::test]
async fn the_tower_example_sends_one_and_refuses_the_next() {
    let (lines, state) = run("tower", None).await;
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines[0].starts_with("200 OK, "), "{lines:?}");
    assert!(lines[1].starts_with("not sent, not before 5.") || lines[1].starts_with("not sent, not before 6."));
    assert_eq!(counted(&state), (vec![("acme", 1)], 0));
}

#[tokio::test]
async fn the_example_by_hand_settles_requeues_and_answers_from_its_cache() {
    let (lines, state) = run("by_hand", None).await;
    for part in
        ["one: 200 OK, ", "two: 200 OK, ", "three: back into the queue, the limit is used up", "three: 200 OK, "]
    {
        assert!(lines.iter().any(|line| line.starts_with(part)), "{part:?} in {lines:?}");
    }
    assert!(lines.iter().any(|line| line.starts_with("far too long: a cached answer instead; it needs ")), "{lines:?}");
    assert!(!lines.iter().any(|line| line.contains(" 0 tokens in") || line.contains(" 0 out")), "{lines:?}");
    assert_eq!(counted(&state), (vec![("acme", 3)], 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_override_example_is_obeyed_and_leaves_nothing_behind() {
    let etcd = Etcd::start().await.expect("etcd starts");
    let (lines, state) = run("override_from_code", Some(&etcd)).await;
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
    let left = etcdctl.args(["get", "--prefix", "--keys-only", "/tidegate/"]).output().expect("etcdctl runs");
    assert_eq!(String::from_utf8_lossy(&left.stdout).trim(), "");
}

#[test]
fn only_a_refusal_of_ours_is_taken_out_of_a_middleware_s_error() {
    let other = reqwest_middleware::Error::middleware(std::io::Error::other("another middleware's"));
    assert_eq!(Refusal::of(&other), None);
}
