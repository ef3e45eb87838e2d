//! The emulated provider's streams: server-sent events as both providers write them, in their time.

use std::time::Duration;

use reqwest::{Response, StatusCode};
use serde_json::{Value, json};
use tidegate::quota::{Meter, Unit, Window};
use tokio::time::Instant;

use crate::emulator::{DEADLINE, QUICK, Running, header};

const OPENAI: &str = "/v1/chat/completions";
const ANTHROPIC: &str = "/v1/messages";
const OUTPUT: Meter = Meter { unit: Unit::OutputTokens, window: Window::Minute };

fn hello() -> Value {
    json!({
        "model": "demo",
        "max_tokens": 100,
        "stream": true,
        "messages": [{"role": "user", "content": "hello"}],
    })
}

fn of_length(max_tokens: u64) -> Value {
    let mut body = hello();
    body["max_tokens"] = json!(max_tokens);
    body
}

async fn openai(arguments: &[&str]) -> Running {
    Running::start(arguments).await
}

async fn anthropic(arguments: &[&str]) -> Running {
    Running::start(&[&["--dialect", "anthropic"], arguments].concat()).await
}

/// An event's name, empty where it has none, and its data.
type Event = (String, String);

/// The next event; none at the end. The reader may find a chunk in two pieces, but never two chunks in one piece: that
/// a piece with an event's end in it ends there says that each event is a chunk of its own.
async fn next(response: &mut Response) -> Option<Event> {
    let mut text = String::new();
    while !text.contains("\n\n") {
        let piece = tokio::time::timeout(DEADLINE, response.chunk()).await.expect("in time").expect("unbroken");
        let Some(piece) = piece else {
            assert_eq!(text, "", "the stream ended within an event");
            return None;
        };
        text.push_str(std::str::from_utf8(&piece).expect("UTF-8"));
    }
    let (event, rest) = text.split_once("\n\n").expect("an event's end");
    assert_eq!(rest, "", "two events in one chunk");
    let (name, data) = match event.split_once('\n') {
        Some((name, data)) => (name.strip_prefix("event: ").expect("a name"), data),
        None => ("", event),
    };
    Some((name.to_owned(), data.strip_prefix("data: ").expect("one line of data").to_owned()))
}

async fn all(mut response: Response) -> Vec<Event> {
    let mut events = Vec::new();
    while let Some(event) = next(&mut response).await {
        events.push(event);
    }
    events
}

fn parsed(data: &str) -> Value {
    serde_json::from_str(data).expect("JSON")
}

fn assert_is_stream(response: &Response) {
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(header(response, "content-type"), "text/event-stream; charset=utf-8");
}

#[tokio::test]
async fn an_openai_stream_is_a_role_then_tokens_then_its_end() {
    let emulator = openai(&QUICK).await;
    let response = emulator.post(OPENAI, of_length(3)).await;
    assert_is_stream(&response);
    assert_eq!(header(&response, "x-ratelimit-remaining-requests"), "599");
    let events = all(response).await;
    let (last, chunks) = events.split_last().expect("events");
    assert_eq!(*last, (String::new(), "[DONE]".to_owned()));
    let chunks: Vec<Value> = chunks.iter().map(|(_, data)| parsed(data)).collect();
    for chunk in &chunks {
        assert_eq!((&chunk["object"], &chunk["model"]), (&json!("chat.completion.chunk"), &json!("demo")));
        assert_eq!(chunk["id"], chunks[0]["id"]);
        assert!(chunk.get("usage").is_none(), "usage was not asked for: {chunk}");
    }
    let choices: Vec<Value> = chunks.iter().map(|chunk| chunk["choices"][0].clone()).collect();
    assert_eq!(
        choices,
        [
            json!({"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": null}),
            json!({"index": 0, "delta": {"content": "tide"}, "finish_reason": null}),
            json!({"index": 0, "delta": {"content": " tide"}, "finish_reason": null}),
            json!({"index": 0, "delta": {"content": " tide"}, "finish_reason": null}),
            json!({"index": 0, "delta": {}, "finish_reason": "length"}),
        ]
    );
}

#[tokio::test]
async fn an_openai_stream_tells_its_usage_when_asked() {
    let emulator = openai(&QUICK).await;
    let mut body = of_length(2);
    body["stream_options"] = json!({"include_usage": true});
    let events = all(emulator.post(OPENAI, body).await).await;
    let chunks: Vec<Value> = events[..events.len() - 1].iter().map(|(_, data)| parsed(data)).collect();
    let (last, before) = chunks.split_last().expect("chunks");
    assert!(before.iter().all(|chunk| chunk.get("usage") == Some(&Value::Null)), "null until it is known");
    assert_eq!(last["choices"], json!([]));
    assert_eq!(last["usage"]["completion_tokens"], 2);
}

#[tokio::test]
async fn an_anthropic_stream_is_a_message_s_start_its_block_and_its_end() {
    let emulator = anthropic(&QUICK).await;
    let response = emulator.post(ANTHROPIC, of_length(2)).await;
    assert_is_stream(&response);
    assert_eq!(header(&response, "anthropic-ratelimit-requests-remaining"), "599");
    let events = all(response).await;
    let names: Vec<&str> = events.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(
        names,
        [
            "message_start",
            "content_block_start",
            "ping",
            "content_block_delta",
            "content_block_delta",
            "content_block_stop",
            "message_delta",
            "message_stop"
        ]
    );
    let data: Vec<Value> = events.iter().map(|(_, data)| parsed(data)).collect();
    assert!(names.iter().zip(&data).all(|(name, data)| data["type"] == *name));
    let message = &data[0]["message"];
    assert_eq!((&message["content"], &message["stop_reason"]), (&json!([]), &Value::Null));
    assert!(message["usage"]["input_tokens"].as_u64().is_some_and(|tokens| tokens > 0));
    assert_eq!(data[1]["content_block"], json!({"type": "text", "text": ""}));
    assert_eq!(data[3]["delta"], json!({"type": "text_delta", "text": "tide"}));
    assert_eq!(data[4]["delta"], json!({"type": "text_delta", "text": " tide"}));
    assert_eq!(data[6]["delta"], json!({"stop_reason": "max_tokens", "stop_sequence": null}));
    assert_eq!(data[6]["usage"], json!({"output_tokens": 2}));
}

#[tokio::test]
async fn the_same_seed_streams_what_it_would_answer_whole() {
    for (dialect, path) in [("openai", OPENAI), ("anthropic", ANTHROPIC)] {
        let (mut whole, mut streamed) = (String::new(), String::new());
        for is_stream in [false, true] {
            let emulator = Running::start(&[&QUICK[..], &["--dialect", dialect, "--seed", "7"]].concat()).await;
            let mut body = hello();
            body["stream"] = json!(is_stream);
            let response = emulator.post(path, body).await;
            if is_stream {
                for (_, data) in all(response).await.iter().filter(|(_, data)| data != "[DONE]") {
                    let event = parsed(data);
                    let text = event["choices"][0]["delta"]["content"].as_str().or(event["delta"]["text"].as_str());
                    streamed.push_str(text.unwrap_or_default());
                }
            } else {
                let answer: Value = response.json().await.expect("JSON");
                let text = answer["choices"][0]["message"]["content"].as_str();
                whole = text.or(answer["content"][0]["text"].as_str()).expect("text").to_owned();
            }
        }
        assert!(whole.len() > "tide tide".len());
        assert_eq!(whole, streamed);
    }
}

#[tokio::test]
async fn a_stream_begins_before_its_first_token_and_keeps_its_pace() {
    let emulator = openai(&["--ttft-ms", "0", "--ms-per-token", "100"]).await;
    let mut response = emulator.post(OPENAI, of_length(5)).await;
    let begun = Instant::now();
    let (_, first) = next(&mut response).await.expect("a role");
    assert_eq!(parsed(&first)["choices"][0]["delta"]["role"], "assistant");
    assert_eq!(all(response).await.len(), 7);
    // Five tokens, and the head was a little on its way.
    assert!(begun.elapsed() >= Duration::from_millis(400), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_client_that_goes_away_pays_for_what_was_written() {
    let emulator = anthropic(&["--ttft-ms", "0", "--ms-per-token", "2000", "--output-tokens", "90000"]).await;
    let mut response = emulator.post(ANTHROPIC, of_length(40_000)).await;
    for _ in 0..3 {
        next(&mut response).await.expect("the opening");
    }
    let refused = emulator.post(ANTHROPIC, of_length(30_000)).await;
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    drop(response);
    let charged = async {
        while emulator.state().await.levels[&OUTPUT] < 39_000.0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        emulator.state().await.truth.total.admitted_tokens
    };
    let charged = tokio::time::timeout(DEADLINE, charged).await.expect("settled in time");
    assert!(charged < 1_000, "the input and a few tokens, not {charged}");
}

#[tokio::test]
async fn a_stream_may_end_in_an_error_after_status_200() {
    let faulty = [&QUICK[..], &["--stream-error-rate", "1"]].concat();
    let emulator = anthropic(&faulty).await;
    let response = emulator.post(ANTHROPIC, hello()).await;
    assert_is_stream(&response);
    let events = all(response).await;
    let (name, data) = events.last().expect("events");
    assert_eq!(name, "error");
    let overloaded = json!({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}});
    assert_eq!(parsed(data), overloaded);
    assert!(events.iter().all(|(name, _)| name != "message_stop"));
    let written = events.iter().filter(|(name, _)| name == "content_block_delta").count() as u64;
    let input = parsed(&events[0].1)["message"]["usage"]["input_tokens"].as_u64().expect("a count");
    let charged = async {
        loop {
            let truth = emulator.state().await.truth.total;
            if truth.admitted_tokens == input + written {
                return truth.broken_streams;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert_eq!(tokio::time::timeout(DEADLINE, charged).await.expect("settled in time"), 1);

    let emulator = openai(&faulty).await;
    let events = all(emulator.post(OPENAI, hello()).await).await;
    let (_, data) = events.last().expect("events");
    assert_eq!(parsed(data)["error"]["message"], "The server is overloaded or not ready yet.");
    assert_eq!(emulator.state().await.truth.total.broken_streams, 1);
}

#[tokio::test]
async fn sigterm_lets_streams_under_way_finish() {
    let mut emulator = openai(&["--ttft-ms", "0", "--ms-per-token", "300"]).await;
    let response = emulator.post(OPENAI, of_length(2)).await;
    let (status, events) = tokio::join!(emulator.process.terminate(), all(response));
    assert_eq!(status.expect("reaped").code(), Some(0));
    assert_eq!(events.last().expect("events").1, "[DONE]");
}
