//! The closed loop with real processes: what an operator sees when limits move and when things die.

use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::world::{Measured, POOL, World, eventually, listening, tidegate, total};
use tidegate::sim::process::Process;
use tokio::time::Instant;

const OVERLOAD: [&str; 2] = ["alpha=12", "beta=6"];

fn is_active(tuning: &Value) -> bool {
    tuning["state"] == "active"
}

/// A world in overload with one controller and two active members that hold shares.
async fn running() -> (World, Process) {
    let mut world = World::new(1_200).await;
    let (controller, _) = world.controller("controller").await;
    world.join("one", &OVERLOAD);
    world.join("two", &OVERLOAD);
    world.all_members("members are active", is_active).await;
    eventually("members hold most of the capacity", async || {
        let sum: f64 = world.tunings().iter().flatten().map(total).sum();
        (sum > 0.9 * 1_200.0).then_some(())
    })
    .await;
    eventually("the grants know both members and the provider's limit", async || {
        let grant = world.etcdctl(&["get", "--print-value-only", "/tidegate/v1/limits/demo/alpha"]);
        let grant: Value = serde_json::from_str(&grant).expect("a grant is JSON");
        let text = grant["reason"]["text"].as_str().unwrap_or_default();
        (grant["members"] == 2 && text.contains("provider limit 1200 requests/minute")).then_some(())
    })
    .await;
    (world, controller)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_halved_limit_reaches_every_member_within_three_seconds_and_steady_use_is_full_without_429s() {
    let (world, _controller) = running().await;
    // The reserve fills while shares settle, and what lies idle is lent; then the loop must hold both ends.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let mut steady = world.measure(Duration::from_secs(8)).await;
    let fair = [("alpha", 15.0), ("beta", 5.0)];
    let got = |measured: &Measured, tenant: &str| measured.by_tenant[tenant] as f64 / measured.seconds;
    let is_fair = |measured: &Measured| fair.iter().all(|(t, fair)| (got(measured, t) / fair - 1.0).abs() <= 0.1);
    if steady.per_s() < 0.9 * 20.0 || !is_fair(&steady) {
        steady = world.measure(Duration::from_secs(8)).await;
    }
    assert!(steady.per_s() >= 0.9 * 20.0, "use of 20/s: {steady:?}");
    assert!(steady.refused_part() <= 0.01, "429s: {steady:?}");
    assert!(is_fair(&steady), "of their fair {fair:?} a second: {steady:?}");

    let before: Vec<f64> = world.tunings().iter().flatten().map(total).collect();
    world.patch(json!({ "requests_per_minute": 600, "spend_requests": 1_200 })).await;
    let halved_at = Instant::now();
    eventually("every member has halved", async || {
        let now: Vec<f64> = world.tunings().iter().flatten().map(total).collect();
        now.iter().zip(&before).all(|(now, was)| *now <= 0.75 * was).then_some(())
    })
    .await;
    assert!(halved_at.elapsed() <= Duration::from_secs(3), "took {:?}", halved_at.elapsed());
    assert!(world.state().await.first_refusal.is_some(), "a real 429 told of it");
}

#[tokio::test(flavor = "multi_thread")]
async fn records_are_readable_and_an_override_holds_within_a_second_with_the_controller_killed_too() {
    let (world, mut controller) = running().await;
    let records = world.etcdctl(&["get", "--prefix", "/tidegate/v1/"]);
    for key in ["/leader", "/limits/demo/alpha", "/limits/demo/@default", "/pulse/demo", "/members/one"] {
        assert!(records.contains(&format!("/tidegate/v1{key}\n")), "{key} is there:\n{records}");
    }

    let alpha = |tuning: &Value| tuning["requests_per_minute"]["alpha"].as_f64().unwrap_or(f64::NAN);
    let key = format!("/tidegate/v1/overrides/{POOL}/alpha");
    let put = async |world: &World, rate: f64| {
        world.etcdctl(&["put", &key, &format!(r#"{{"set":{{"requests/minute":{rate}}},"by":"test"}}"#)]);
        let put_at = Instant::now();
        eventually("the override is in force everywhere", async || {
            let sum: f64 = world.tunings().iter().flatten().map(alpha).sum();
            ((sum / rate - 1.0).abs() < 0.05).then_some(())
        })
        .await;
        assert!(put_at.elapsed() <= Duration::from_secs(1), "took {:?}", put_at.elapsed());
    };
    put(&world, 120.0).await;
    let status_key = format!("/tidegate/v1/overrides-status/{POOL}/alpha");
    eventually("the leader says that it is accepted", async || {
        let status = world.etcdctl(&["get", "--print-value-only", &status_key]);
        status.contains(r#""accepted":true"#).then_some(())
    })
    .await;
    // A malformed record changes nothing, and the leader says what is wrong with it.
    world.etcdctl(&["put", &key, r#"{"set":{"requests/minute":60},"expires":"soon"}"#]);
    let status = eventually("the leader says that it is rejected", async || {
        let status = world.etcdctl(&["get", "--print-value-only", &status_key]);
        status.contains(r#""accepted":false"#).then_some(status)
    })
    .await;
    assert!(status.contains("unknown field `expires`") && status.contains("120"), "{status}");
    let sum: f64 = world.tunings().iter().flatten().map(alpha).sum();
    assert!((sum / 120.0 - 1.0).abs() < 0.05, "the last good override stays: {sum}");

    let typo = format!("/tidegate/v1/overrides/{POOL}-typo/alpha");
    world.etcdctl(&["put", &typo, r#"{"block":true}"#]);
    let status = eventually("the leader says that there is no such pool", async || {
        let status = world.etcdctl(&["get", "--print-value-only", &typo.replace("overrides", "overrides-status")]);
        (!status.trim().is_empty()).then_some(status)
    })
    .await;
    assert!(status.contains("no pool demo-typo: expected one of demo"), "{status}");

    controller.kill().expect("kill -9");
    put(&world, 60.0).await;
    world.etcdctl(&["put", &key, r#"{"block":true,"by":"test"}"#]);
    let put_at = Instant::now();
    eventually("the block is in force everywhere", async || {
        world.tunings().iter().flatten().all(|tuning| alpha(tuning) == 0.0).then_some(())
    })
    .await;
    assert!(put_at.elapsed() <= Duration::from_secs(1), "took {:?}", put_at.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_controller_brakes_and_lapses_members_while_traffic_goes_on_and_another_takes_over() {
    let (mut world, mut controller) = running().await;
    let (_second, _) = {
        controller.kill().expect("kill -9");
        let killed_at = Instant::now();
        world.all_members("members brake", |tuning| tuning["state"] == "braking").await;
        let braking = killed_at.elapsed();
        assert!((2.0..6.0).contains(&braking.as_secs_f64()), "braking after {braking:?}");
        world.all_members("members lapse", |tuning| tuning["state"] == "lapsed").await;
        let lapsed = killed_at.elapsed();
        assert!((14.0..19.0).contains(&lapsed.as_secs_f64()), "lapsed after {lapsed:?}");

        let alone = world.measure(Duration::from_secs(3)).await;
        assert!(alone.admitted > 0, "traffic goes on: {alone:?}");
        assert!(alone.per_s() <= 0.6 * 20.0, "at no more than the safe half: {alone:?}");
        assert_eq!(alone.refused, 0, "{alone:?}");
        // A member that joins now finds grants but no leader.
        world.join("three", &OVERLOAD);
        world.all_members("the joiner is lapsed, not active", |tuning| tuning["state"] == "lapsed").await;
        world.controller("second").await
    };
    world.all_members("members are active under the new leader", is_active).await;
    eventually("the new leader hands the capacity out again", async || {
        let sum: f64 = world.tunings().iter().flatten().map(total).sum();
        (sum > 0.9 * 1_200.0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standing_by_controller_takes_over_within_ttl_plus_a_second_and_at_once_on_sigterm() {
    let (world, mut first) = running().await;
    let (mut second, _) = world.controller("second").await;
    second
        .wait_for_line(|line| line.contains("standing by"), crate::world::PATIENCE)
        .await
        .expect("the second stands by");
    first.kill().expect("kill -9");
    let killed_at = Instant::now();
    second.wait_for_line(|line| line.contains("leading"), crate::world::PATIENCE).await.expect("it takes over");
    assert!(killed_at.elapsed() <= Duration::from_secs(5), "took {:?}", killed_at.elapsed());
    world.all_members("members are active", is_active).await;

    let (mut third, _) = world.controller("third").await;
    third
        .wait_for_line(|line| line.contains("standing by"), crate::world::PATIENCE)
        .await
        .expect("the third stands by");
    let asked_at = Instant::now();
    assert!(second.terminate().await.expect("it stops").success());
    third.wait_for_line(|line| line.contains("leading"), crate::world::PATIENCE).await.expect("it takes over");
    assert!(asked_at.elapsed() <= Duration::from_secs(2), "took {:?}", asked_at.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_etcd_stops_no_traffic_and_its_return_brings_no_burst() {
    let (mut world, _controller) = running().await;
    // What is lent while shares settle is asked for here, and goes on for some seconds without a leader: until it is little.
    eventually("little is lent", async || {
        let pulse = world.etcdctl(&["get", "--print-value-only", "/tidegate/v1/pulse/demo"]);
        let pulse: Value = serde_json::from_str(&pulse).expect("a pulse");
        (pulse["overcommit"]["requests/minute"].as_f64().unwrap_or(1.0) <= 1.05).then_some(())
    })
    .await;
    world.etcd.kill().expect("kill -9");
    let outage = world.measure(Duration::from_secs(8)).await;
    assert!(outage.admitted > 0, "traffic goes on: {outage:?}");
    assert!(outage.per_s() <= 1.05 * 20.0, "limits hold: {outage:?}");
    // What was lent of idle parts is asked for here, and given up within 6 s; the provider stores 3 s.
    assert!(outage.refused_part() <= 0.08, "{outage:?}");
    world.all_members("members notice", |tuning| tuning["state"] != "active").await;

    world.etcd.restart().await.expect("etcd comes back");
    let back = world.measure(Duration::from_secs(4)).await;
    assert!(back.refused_part() <= 0.02, "no burst on return: {back:?}");
    assert!(back.per_s() <= 1.15 * 20.0, "no burst on return: {back:?}");
    assert!(back.per_s() >= 0.2 * 20.0, "no gap on return, while the new term learns what members hold: {back:?}");
    world.all_members("members catch up", is_active).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_etcd_the_controller_waits_and_says_so_and_members_serve_their_bootstrap() {
    let mut world = World::new(1_200).await;
    world.etcd.kill().expect("kill -9");
    let (mut controller, url) = world.controller("controller").await;
    controller
        .wait_for_line(|line| line.contains("waiting for the store"), crate::world::PATIENCE)
        .await
        .expect("it says that it waits");
    let report = json!({"schema":1,"instance":"a","boot":"b","pools":{}});
    let http = reqwest::Client::builder().no_proxy().build().expect("an HTTP client");
    let answer = http.post(format!("{url}/v1/observations")).json(&report).send().await.expect("up");
    assert_eq!(answer.status(), 503, "nobody leads");

    world.join("one", &["alpha=5"]);
    eventually("the bootstrap thresholds serve", async || {
        (world.state().await.truth.total.admitted_requests >= 1).then_some(())
    })
    .await;
    assert_eq!(world.tunings()[0].as_ref().expect("told")["state"], "bootstrap");
    world.etcd.restart().await.expect("etcd comes up");
    world.all_members("the member is active", is_active).await;
    let waits = controller.lines().iter().filter(|line| line.contains("waiting for the store")).count();
    assert_eq!(waits, 1, "said once per outage: {:?}", controller.lines());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_report_gets_one_clear_line_and_changes_nothing() {
    let world = World::new(1_200).await;
    let (controller, url) = world.controller("controller").await;
    // A server may close the connection of a body that it did not read to its end: each call has its own.
    let http = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).build().expect("an HTTP client");
    let post = async |body: String| {
        let answer = http.post(format!("{url}/v1/observations")).body(body).send().await.expect("it answers");
        (answer.status().as_u16(), answer.text().await.expect("a text"))
    };
    for (body, status, part) in [
        ("garbage".to_owned(), 400, "report is not valid"),
        ("{}".to_owned(), 400, "missing field"),
        (r#"{"schema":9,"instance":"a","boot":"b","pools":{}}"#.to_owned(), 400, "schema 9: expected 1"),
        (r#"{"schema":1,"instance":"a","boot":"b","pools":{"Bad Pool":{}}}"#.to_owned(), 400, "pool id"),
        (r#"{"schema":1,"instance":"","boot":"b","pools":{}}"#.to_owned(), 400, "instance: expected 1–128 bytes"),
        ("x".repeat(2 * 1024 * 1024), 413, ""),
    ] {
        let (got, text) = post(body).await;
        assert_eq!(got, status, "{text}");
        assert!(text.contains(part) && text.trim_end().lines().count() <= 1, "{part:?} in {text:?}");
    }
    // On a connection of its own: the last one was closed with the rest of a body unread.
    let http = reqwest::Client::builder().no_proxy().build().expect("an HTTP client");
    let metrics = http.get(format!("{url}/metrics")).send().await.expect("metrics").text().await.expect("a text");
    assert!(metrics.contains(r#"tidegate_reports_refused_total{why="malformed"} 5"#), "{metrics}");
    assert!(!controller.lines().iter().any(|line| line.contains("panic")), "{:?}", controller.lines());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_in_use_or_off_loopback_stops_the_start_with_one_line() {
    let world = World::new(1_200).await;
    let (_controller, url) = world.controller("controller").await;
    let port = url.rsplit(':').next().expect("a port");
    let text = std::fs::read_to_string(&world.config).expect("the config");
    for (listen, code, part) in
        [(format!("127.0.0.1:{port}"), 1, "cannot listen on 127.0.0.1:"), ("0.0.0.0:7676".to_owned(), 2, "loopback")]
    {
        let file = world.config.with_file_name("other.toml");
        std::fs::write(&file, text.replace("127.0.0.1:0", &listen)).expect("written");
        let output = tidegate(&["run", "--config"]).arg(&file).output().expect("it runs");
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        let said: Vec<&str> = error.lines().filter(|line| line.starts_with("tidegate:")).collect();
        assert_eq!(output.status.code(), Some(code), "{error}");
        // A mistake of the configuration is told as `tidegate check` tells it, by file and line.
        assert!(said.len() == 1 && error.lines().any(|line| line.contains(part)), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_demo_stops_every_child() {
    for signal in ["-TERM", "-HUP", "-QUIT"] {
        stopped_by(signal).await;
    }
}

async fn stopped_by(signal: &str) {
    let folder = tempfile::tempdir().expect("a folder");
    let svg = folder.path().join("run.svg");
    std::fs::write(&svg, "the last run").expect("written");
    let mut command = tidegate(&["demo", "--svg"]);
    command.arg(&svg);
    let mut demo = Process::spawn("demo", command, None).expect("the demo starts");
    demo.wait_for_line(|line| line.contains("ramp-up"), crate::world::PATIENCE).await.expect("it runs");
    let urls: Vec<String> = demo
        .lines()
        .iter()
        .flat_map(|line| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
        .filter(|word| word.starts_with("http://127.0.0.1:"))
        .collect();
    assert!(urls.len() >= 3, "{urls:?}");
    let told = Command::new("kill").args([signal, &demo.pid().to_string()]).status().expect("kill runs");
    assert!(told.success());
    let status = demo.wait(crate::world::PATIENCE).await.expect("it ends");
    assert_eq!(status.code(), Some(130), "{signal}");
    assert_eq!(std::fs::read_to_string(&svg).expect("it is there"), "the last run");
    for url in urls {
        let addr = url.trim_start_matches("http://").to_owned();
        assert!(std::net::TcpStream::connect(&addr).is_err(), "{addr} still answers");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_etcd_table_the_controller_runs_on_the_embedded_store() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = folder.path().join("tidegate.toml");
    let text = "[controller]\nlisten = \"127.0.0.1:0\"\n[pools.p]\ndialect = \"openai\"\n[pools.p.capacity]\n\"requests/minute\" = 60\n";
    std::fs::write(&config, text).expect("written");
    let mut command = tidegate(&["run", "--config"]);
    command.arg(&config);
    let mut controller = Process::spawn("controller", command, None).expect("it starts");
    let url = listening(&mut controller).await;
    controller.wait_for_line(|line| line.contains("leading"), crate::world::PATIENCE).await.expect("it leads");
    let report = json!({"schema":1,"instance":"a","boot":"b","pools":{"p":{},"typo":{}}});
    let http = reqwest::Client::builder().no_proxy().build().expect("an HTTP client");
    let reply: Value = http
        .post(format!("{url}/v1/observations"))
        .json(&report)
        .send()
        .await
        .expect("it answers")
        .json()
        .await
        .expect("a reply");
    assert!(reply["term"].as_u64().is_some_and(|term| term > 0) && reply["shares"]["p"].is_object(), "{reply}");
    controller
        .wait_for_line(
            |line| line.contains("a pool that is not configured") && line.contains("typo"),
            crate::world::PATIENCE,
        )
        .await
        .expect("a mistyped pool is spoken of");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_headers_429s_and_demand_alone_find_the_limit() {
    let (world, _controller) = running().await;
    // The provider falls silent and halves its limit; the static capacity is twice what it gives now.
    world.patch(json!({ "headers": false, "requests_per_minute": 600, "spend_requests": 1_200 })).await;
    let silent_at = Instant::now();
    let before: f64 = world.tunings().iter().flatten().map(total).sum();
    eventually("429s alone have cut the thresholds", async || {
        let now: f64 = world.tunings().iter().flatten().map(total).sum();
        (now <= 0.75 * before).then_some(())
    })
    .await;
    // Long before the last reading is too old to steer.
    assert!(silent_at.elapsed() <= Duration::from_secs(5), "took {:?}", silent_at.elapsed());
    tokio::time::sleep(Duration::from_secs(5)).await;
    let steady = world.measure(Duration::from_secs(15)).await;
    assert!(steady.per_s() >= 0.7 * 10.0, "use of 10/s: {steady:?}");
    assert!(steady.refused_part() <= 0.1, "429s: {steady:?}");
    let grant = world.etcdctl(&["get", "--print-value-only", "/tidegate/v1/limits/demo/alpha"]);
    assert!(grant.contains("no headers"), "{grant}");
}
