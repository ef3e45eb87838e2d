//! The emulated provider as a server of one's own: so many requests at a time, the others in a line, all of them slower
//! when there are many. Who gets a slot when is waited for, never timed; times are lower bounds.

use std::collections::BTreeMap;
use std::time::Duration;

use reqwest::{Client, Response, StatusCode};
use serde_json::{Value, json};
use tidegate::sim::emulator::latency::Draw;
use tidegate::sim::emulator::slots::{SLOTS_MAX, Slots};
use tidegate::sim::emulator::{EmulatorState, ServerParams};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::emulator::{DEADLINE, QUICK, Running, header, spawn_emulator};

const OPENAI: &str = "/v1/chat/completions";
const ANTHROPIC: &str = "/v1/messages";
/// The head comes with the slot, the end of the answer not before the test's.
const HELD: [&str; 6] = ["--ttft-ms", "0", "--ms-per-token", "10000", "--output-tokens", "1000"];

fn hello(is_stream: bool) -> Value {
    json!({
        "model": "demo",
        "max_tokens": 1_000,
        "stream": is_stream,
        "messages": [{"role": "user", "content": "hello"}],
    })
}

// === The arithmetic ===

#[test]
fn nobody_is_passed_by_and_no_slot_is_idle_or_given_twice() {
    let mut random = fastrand::Rng::with_seed(3);
    let mut slots = Slots::new(ServerParams { slots: Some(4), crowding: 1.0 }).expect("valid");
    // The model: places by who has them, in the order of joining.
    let (mut waiting, mut running) = (BTreeMap::new(), BTreeMap::new());
    let (mut limit, mut seen_full, mut seen_above) = (4, false, false);
    for guest in 0..20_000_u32 {
        match random.u8(0..20) {
            0 => {
                limit = random.u32(1..9);
                slots.change(ServerParams { slots: Some(limit), crowding: 1.0 });
            }
            1..=3 if !waiting.is_empty() => {
                let gone = *random.choice(waiting.keys().collect::<Vec<_>>()).expect("somebody");
                slots.leave(waiting.remove(&gone).expect("waits"));
            }
            4..=10 if !running.is_empty() => {
                let done = *random.choice(running.keys().collect::<Vec<_>>()).expect("somebody");
                slots.leave(running.remove(&done).expect("runs"));
            }
            _ => drop(waiting.insert(guest, slots.join(guest))),
        }
        while let Some((called, slowness)) = slots.call() {
            let (first, place) = waiting.pop_first().expect("somebody waits");
            assert_eq!(called, first, "the first in the line");
            running.insert(called, place);
            let taken = u32::try_from(running.len()).expect("small");
            assert!(taken <= limit, "{taken} of {limit}");
            assert_eq!(slowness, 1.0 + f64::from(taken) / f64::from(limit));
        }
        assert_eq!((slots.running() as usize, slots.queued() as usize), (running.len(), waiting.len()));
        assert!(waiting.is_empty() || slots.running() >= limit, "a slot is idle");
        assert_eq!(slots.usage(), Some((f64::from(slots.running()) / f64::from(limit)).min(1.0)));
        seen_full |= !waiting.is_empty();
        seen_above |= slots.running() > limit;
    }
    assert!(seen_full && seen_above, "the test must see a line, and fewer slots than are taken");
}

#[test]
fn without_slots_all_run_and_none_is_slower() {
    let mut slots = Slots::new(ServerParams::default()).expect("valid");
    for guest in 0..1_000 {
        slots.join(guest);
        assert_eq!(slots.call(), Some((guest, 1.0)));
    }
    assert_eq!((slots.running(), slots.queued(), slots.usage()), (1_000, 0, None));
}

#[test]
fn throughput_grows_ever_slower_up_to_the_slots() {
    let server = ServerParams { slots: Some(16), crowding: 1.5 };
    // Of n at a time, each so many times slower than alone.
    let throughput = |running: u32| f64::from(running) / server.slowness(running);
    let gains: Vec<f64> = (1..=16).map(|running| throughput(running) - throughput(running - 1)).collect();
    assert!(gains.iter().all(|gain| *gain > 0.0), "{gains:?}");
    assert!(gains.windows(2).all(|pair| pair[1] < pair[0]), "{gains:?}");
    assert_eq!((server.slowness(0), server.slowness(16)), (1.0, 2.5));
    assert_eq!(ServerParams { crowding: 0.0, ..server }.slowness(16), 1.0);
}

#[test]
fn a_slower_answer_is_the_same_answer_later() {
    let (to_head, head_to_body) = (Duration::from_millis(300), Duration::from_millis(200));
    let draw = Draw { to_head, head_to_body, output_tokens: 40, is_cut: true };
    let slowed = draw.slowed(2.5);
    assert_eq!((slowed.to_head, slowed.head_to_body), (Duration::from_millis(750), Duration::from_millis(500)));
    assert_eq!((slowed.output_tokens, slowed.is_cut), (40, true));
    assert_eq!(slowed.head_to_token(20), Duration::from_millis(250));
    assert_eq!(draw.slowed(1.0), draw);
}

#[test]
fn settings_outside_their_range_are_named() {
    let usual = ServerParams::default();
    for (params, line) in [
        (ServerParams { slots: Some(0), ..usual }, "slots 0: expected a whole number, 1–100000"),
        (ServerParams { slots: Some(SLOTS_MAX + 1), ..usual }, "slots 100001: expected a whole number, 1–100000"),
        (ServerParams { crowding: -0.5, ..usual }, "crowding -0.5: expected 0–100"),
        (ServerParams { crowding: f64::NAN, ..usual }, "crowding NaN: expected 0–100"),
    ] {
        assert_eq!(params.validate().expect_err("out of range").to_string(), line);
        assert!(Slots::<u32>::new(params).is_err());
    }
    assert!(ServerParams { slots: Some(SLOTS_MAX), crowding: 100.0 }.validate().is_ok());
}

// === The server ===

/// Whose answer has begun, and the rest of it.
type Begun = (usize, Response);

/// An emulator and those who call it, numbered in the order in which they came.
struct Callers {
    emulator: Running,
    path: &'static str,
    http: Client,
    calls: Vec<JoinHandle<()>>,
    tell: mpsc::UnboundedSender<Begun>,
    begun: mpsc::UnboundedReceiver<Begun>,
}

impl Callers {
    async fn start(path: &'static str, arguments: &[&str]) -> Self {
        let http = Client::builder().no_proxy().build().expect("a client");
        let emulator = Running::start(arguments).await;
        let (tell, begun) = mpsc::unbounded_channel();
        Self { emulator, path, http, calls: Vec::new(), tell, begun }
    }

    /// Calls, and does not wait for the answer.
    fn call(&mut self, body: &Value) {
        let request = self.http.post(format!("{}{}", self.emulator.url, self.path)).json(body);
        let (number, tell) = (self.calls.len(), self.tell.clone());
        self.calls.push(tokio::spawn(async move {
            let response = request.send().await.expect("an answer");
            assert_eq!(response.status(), StatusCode::OK);
            // A test that has ended wants no more.
            let _ = tell.send((number, response));
        }));
    }

    /// The next answer that begins.
    async fn next(&mut self) -> Begun {
        tokio::time::timeout(DEADLINE, self.begun.recv()).await.expect("in time").expect("a sender is here")
    }

    /// The next answer to begin is that of this caller.
    async fn begins(&mut self, number: usize) -> Response {
        let (found, response) = self.next().await;
        assert_eq!(found, number, "answered in the order of coming");
        response
    }

    /// A caller goes away before it is answered.
    fn leave(&self, number: usize) {
        self.calls[number].abort();
    }

    /// Waits until so many run and so many are in the line.
    async fn until(&self, running: u32, queued: u32) -> EmulatorState {
        let mut seen = (0, 0);
        let poll = async {
            loop {
                let state = self.emulator.state().await;
                seen = (state.running, state.queued);
                if seen == (running, queued) {
                    return state;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let found = tokio::time::timeout(DEADLINE, poll).await;
        found.unwrap_or_else(|_| panic!("expected {running} running and {queued} queued, last seen {seen:?}"))
    }

    async fn metrics(&self) -> String {
        self.emulator.get("/metrics").await.text().await.expect("text")
    }

    async fn assert_metrics(&self, lines: &[&str]) {
        let metrics = self.metrics().await;
        for line in lines {
            assert!(metrics.lines().any(|found| found == *line), "{line} in {metrics}");
        }
    }
}

#[tokio::test]
async fn two_are_answered_at_a_time_and_the_others_in_the_order_of_coming() {
    for is_stream in [true, false] {
        let mut callers = Callers::start(OPENAI, &[&HELD[..], &["--slots", "2"]].concat()).await;
        let mut answers = Vec::new();
        for number in 0..6 {
            callers.call(&hello(is_stream));
            // One after the other, so that the order is known.
            let came = u32::try_from(number).expect("small") + 1;
            callers.until(came.min(2), came.saturating_sub(2)).await;
            if number < 2 {
                answers.push(callers.begins(number).await);
            }
        }
        callers
            .assert_metrics(&[
                "tidegate_emulator_running 2",
                "tidegate_emulator_queued 4",
                "vllm:num_requests_running{model_name=\"emulated\"} 2",
                "vllm:num_requests_waiting{model_name=\"emulated\"} 4",
                "vllm:gpu_cache_usage_perc{model_name=\"emulated\"} 1",
            ])
            .await;
        for number in 2..6 {
            // Whoever goes in the middle of its answer makes room for exactly one.
            drop(answers.remove(0));
            answers.push(callers.begins(number).await);
            callers.until(2, 5 - u32::try_from(number).expect("small")).await;
            assert!(callers.begun.is_empty(), "a third is answered");
        }
        answers.clear();
        let state = callers.until(0, 0).await;
        assert_eq!((state.truth.total.admitted_requests, state.truth.total.refused_requests), (6, 0));
        callers.assert_metrics(&["vllm:gpu_cache_usage_perc{model_name=\"emulated\"} 0"]).await;
    }
}

#[tokio::test]
async fn whole_answers_and_streams_give_their_slot_back_at_their_end() {
    for (path, dialect) in [(OPENAI, "openai"), (ANTHROPIC, "anthropic")] {
        let arguments = [&QUICK[..], &["--dialect", dialect, "--slots", "1", "--output-tokens", "3"]].concat();
        let mut callers = Callers::start(path, &arguments).await;
        for number in 0..20 {
            callers.call(&hello(number % 2 == 0));
        }
        for _ in 0..20 {
            let (_, response) = callers.next().await;
            assert!(response.text().await.expect("whole").contains("tide"));
        }
        callers.until(0, 0).await;
    }
}

#[tokio::test]
async fn a_caller_that_leaves_the_line_is_passed_by_and_pays_for_no_output() {
    let mut callers =
        Callers::start(ANTHROPIC, &[&HELD[..], &["--dialect", "anthropic", "--slots", "1"]].concat()).await;
    callers.call(&hello(true));
    let first = callers.begins(0).await;
    for queued in 1..=3 {
        callers.call(&hello(true));
        callers.until(1, queued).await;
    }
    let before = callers.emulator.state().await.truth.total.admitted_tokens;
    callers.leave(1);
    let after = callers.until(1, 2).await.truth.total.admitted_tokens;
    assert_eq!(before - after, 1_000, "what was charged for its output is given back");
    drop(first);
    let _second = callers.begins(2).await;
    callers.until(1, 1).await;
}

#[tokio::test]
async fn a_whole_answer_under_way_is_given_up_when_its_caller_leaves() {
    // Anthropic's sends nothing before its end: only the connection's end tells.
    let arguments = [&HELD[..], &["--dialect", "anthropic", "--slots", "1"]].concat();
    let mut callers = Callers::start(ANTHROPIC, &arguments).await;
    callers.call(&hello(false));
    callers.until(1, 0).await;
    callers.call(&hello(true));
    callers.until(1, 1).await;
    callers.leave(0);
    let _second = callers.begins(1).await;
    callers.until(1, 0).await;
}

#[tokio::test]
async fn slots_are_raised_lowered_and_taken_away_while_it_runs() {
    let mut callers = Callers::start(OPENAI, &[&HELD[..], &["--slots", "1"]].concat()).await;
    for number in 0..4 {
        callers.call(&hello(true));
        callers.until(1, number).await;
    }
    let first = callers.begins(0).await;
    assert_eq!(callers.emulator.patch(json!({"slots": 3})).await.status(), StatusCode::OK);
    let (second, third) = (callers.next().await, callers.next().await);
    assert_eq!(second.0 + third.0, 1 + 2, "the line moves by two");
    callers.until(3, 1).await;

    let lowered: EmulatorState = callers.emulator.patch(json!({"slots": 1})).await.json().await.expect("a state");
    assert_eq!(lowered.server, ServerParams { slots: Some(1), crowding: 1.0 });
    assert_eq!((lowered.running, lowered.queued), (3, 1), "those under way go on");
    callers.assert_metrics(&["vllm:gpu_cache_usage_perc{model_name=\"emulated\"} 1"]).await;
    drop((first, second));
    callers.until(1, 1).await;
    drop(third);
    let _fourth = callers.begins(3).await;

    for queued in 1..=2 {
        callers.call(&hello(true));
        callers.until(1, queued).await;
    }
    let unlimited: EmulatorState = callers.emulator.patch(json!({"slots": null})).await.json().await.expect("a state");
    assert_eq!((unlimited.server.slots, unlimited.running, unlimited.queued), (None, 3, 0));
    let metrics = callers.metrics().await;
    assert!(!metrics.contains("vllm:") && !metrics.contains("tidegate_emulator_running"), "{metrics}");
}

#[tokio::test]
async fn answers_take_longer_the_more_run() {
    let settings = ["--ttft-ms", "40", "--ttft-sigma", "0", "--slots", "4", "--crowding", "3"];
    let mut callers = Callers::start(OPENAI, &[&HELD[2..], &settings].concat()).await;
    // 1 + 3 × running ÷ 4, the new one among the running; then without crowding.
    let mut answers = Vec::new();
    for (number, expected_ms) in [(0, 70), (1, 100), (2, 130), (3, 40)] {
        if number == 3 {
            assert_eq!(callers.emulator.patch(json!({"crowding": 0})).await.status(), StatusCode::OK);
        }
        let called_at = Instant::now();
        callers.call(&hello(true));
        let response = callers.begins(number).await;
        assert!(called_at.elapsed() >= Duration::from_millis(expected_ms), "{number} came too early");
        assert_eq!(header(&response, "openai-processing-ms"), expected_ms.to_string());
        answers.push(response);
    }
}

#[tokio::test]
async fn tokens_take_longer_the_more_run() {
    let arguments = ["--ttft-ms", "0", "--ms-per-token", "100", "--slots", "1", "--crowding", "4"];
    let mut callers = Callers::start(OPENAI, &arguments).await;
    for (number, is_stream) in [true, false].into_iter().enumerate() {
        let mut one_token = hello(is_stream);
        one_token["max_tokens"] = json!(1);
        let called_at = Instant::now();
        callers.call(&one_token);
        let answer = callers.begins(number).await.text().await.expect("whole");
        assert!(answer.contains("tide"), "{answer}");
        assert!(called_at.elapsed() >= Duration::from_millis(500), "five times 100 ms");
    }
}

#[tokio::test]
async fn without_slots_nothing_is_said_of_them() {
    let emulator = Running::start(&QUICK).await;
    assert_eq!(emulator.post(OPENAI, hello(false)).await.status(), StatusCode::OK);
    let metrics = emulator.get("/metrics").await.text().await.expect("text");
    assert!(!metrics.contains("vllm:") && !metrics.contains("tidegate_emulator_running"), "{metrics}");
    assert!(metrics.contains("tidegate_emulator_requests_total{status=\"200\"} 1"), "{metrics}");
    let state: Value = emulator.get("/admin/state").await.json().await.expect("JSON");
    assert_eq!(state["server"], json!({"crowding": 1.0}));
}

#[tokio::test]
async fn with_slots_each_metric_has_its_type_and_its_help() {
    let emulator = Running::start(&[&QUICK[..], &["--slots", "8"]].concat()).await;
    assert_eq!(emulator.post(OPENAI, hello(false)).await.status(), StatusCode::OK);
    let metrics = emulator.get("/metrics").await.text().await.expect("text");
    for (name, kind) in [
        ("tidegate_emulator_requests_total", "counter"),
        ("tidegate_emulator_admitted_units_total", "counter"),
        ("tidegate_emulator_level_units", "gauge"),
        ("tidegate_emulator_limit_units", "gauge"),
        ("tidegate_emulator_running", "gauge"),
        ("tidegate_emulator_queued", "gauge"),
        ("vllm:num_requests_running", "gauge"),
        ("vllm:num_requests_waiting", "gauge"),
        ("vllm:gpu_cache_usage_perc", "gauge"),
    ] {
        let count = |start: &str| metrics.lines().filter(|line| line.starts_with(start)).count();
        assert_eq!(count(&format!("# TYPE {name} {kind}")), 1, "{name} in {metrics}");
        assert_eq!(count(&format!("# HELP {name} ")), 1, "{name} in {metrics}");
        assert!(count(&format!("{name}{{")) + count(&format!("{name} ")) > 0, "{name} in {metrics}");
    }
}

#[tokio::test]
async fn wrong_values_are_refused_in_one_line() {
    for (arguments, part) in [
        (&["--slots", "0"][..], "slots 0: expected a whole number, 1–100000"),
        (&["--slots", "100001"], "slots 100001: expected a whole number, 1–100000"),
        (&["--slots", "4", "--crowding", "101"], "crowding 101: expected 0–100"),
        (&["--slots", "4", "--crowding", "NaN"], "crowding NaN: expected 0–100"),
    ] {
        let mut process = spawn_emulator(arguments);
        assert_eq!(process.wait(DEADLINE).await.expect("ends").code(), Some(2));
        assert_eq!(process.lines(), [format!("tidegate: {part}")]);
    }
    // Crowding of what?
    let mut process = spawn_emulator(&["--crowding", "2"]);
    assert_eq!(process.wait(DEADLINE).await.expect("ends").code(), Some(2));
    assert!(process.lines().iter().any(|line| line.contains("--slots <N>")), "{:?}", process.lines());

    let emulator = Running::start(&[&QUICK[..], &["--slots", "4"]].concat()).await;
    for (body, line) in [
        (json!({"crowding": 2, "slots": 0}), "slots 0: expected a whole number, 1–100000"),
        (json!({"slots": 1.5}), "slots 1.5: expected a whole number, 1–100000, or null"),
        (json!({"slots": 5_000_000_000_u64}), "slots 5000000000: expected a whole number, 1–100000, or null"),
        (json!({"slots": 5, "crowding": -1}), "crowding -1: expected 0–100"),
        (json!({"crowding": "much"}), "crowding \"much\": expected a number"),
    ] {
        let response = emulator.patch(body).await;
        assert_eq!(response.status(), StatusCode::BAD_REQUEST);
        assert_eq!(response.text().await.expect("text"), format!("{line}\n"));
    }
    assert_eq!(emulator.state().await.server, ServerParams { slots: Some(4), crowding: 1.0 });
}
