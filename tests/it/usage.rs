//! Usage, read as an answer passes. The streams are of the forms the providers document.

use proptest::prelude::*;
use serde_json::{Value, json};
use tidegate::provider::{Usage, UsageReader};

const JSON: Option<&str> = Some("application/json");
const EVENTS: Option<&str> = Some("text/event-stream; charset=utf-8");
const AWS: Option<&str> = Some("application/vnd.amazon.eventstream");

const OPENAI_STREAM: &str = "data: {\"id\":\"c\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"Grüße 🎉\"}}],\"usage\":null}\n\n\
    data: {\"id\":\"c\",\"choices\":[{\"delta\":{\"content\":\"{\\\"usage\\\":{\\\"prompt_tokens\\\":1,\\\"completion_tokens\\\":1}}\"}}]}\n\n\
    data: {\"id\":\"c\",\"choices\":[],\"usage\":{\"prompt_tokens\":19,\"completion_tokens\":10,\"total_tokens\":29,\
    \"prompt_tokens_details\":{\"cached_tokens\":5},\"completion_tokens_details\":{\"reasoning_tokens\":3}}}\n\ndata: [DONE]\n\n";

const ANTHROPIC_STREAM: &str = "event: message_start\r\ndata: {\"type\":\"message_start\",\"message\":{\"id\":\"m\",\"role\":\"assistant\",\
    \"content\":[],\"usage\":{\"input_tokens\":25,\"cache_creation_input_tokens\":100,\"cache_read_input_tokens\":7000,\
    \"cache_creation\":{\"ephemeral_5m_input_tokens\":100},\"output_tokens\":1}}}\r\n\r\n: a comment\r\nevent: ping\r\ndata: {\"type\": \"ping\"}\r\n\r\n\
    event: content_block_delta\r\ndata: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"text_delta\",\"text\":\"Grüße 🎉\"}}\r\n\r\n\
    event: message_delta\r\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":null},\"usage\":{\"output_tokens\":9}}\r\n\r\n\
    event: message_delta\r\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"},\"usage\":{\"output_tokens\":15}}\r\n\r\n\
    event: message_stop\r\ndata: {\"type\":\"message_stop\"}\r\n\r\n";

const OVERLOADED: &str = "event: error\ndata: {\"type\": \"error\", \"error\": {\"type\": \"overloaded_error\", \"message\": \"Overloaded\"}}\n\n";

/// Gemini without `alt=sse`: an array that is written as it is made.
const GEMINI_ARRAY: &str = "[{\n  \"candidates\": [{\"content\": {\"parts\": [{\"text\": \"Grüße }],[{ 🎉\"}]}}],\n  \"usageMetadata\": \
    {\"promptTokenCount\": 9,\"thoughtsTokenCount\": 5,\"promptTokensDetails\": [{\"modality\": \"TEXT\",\"tokenCount\": 9}]}\n}\n,\r\n\
    {\n  \"candidates\": [{\"finishReason\": \"STOP\"}],\n  \"usageMetadata\": {\"promptTokenCount\": 9,\"candidatesTokenCount\": 4,\
    \"thoughtsTokenCount\": 8,\"totalTokenCount\": 21}\n}\n]";

fn whole(form: Option<&str>, text: &str) -> UsageReader {
    let mut reader = UsageReader::new(form);
    reader.feed(text.as_bytes());
    reader
}

fn usage(form: Option<&str>, text: &str) -> Option<(u64, u64)> {
    whole(form, text).usage().map(|usage| (usage.input_tokens, usage.output_tokens))
}

#[test]
fn an_openai_stream_tells_in_its_last_chunk() {
    assert_eq!(usage(EVENTS, OPENAI_STREAM), Some((19, 10)));
    let (before, _) = OPENAI_STREAM.split_once("\"usage\":{").unwrap();
    assert_eq!(usage(EVENTS, before), None, "a caller that did not ask for usage, or left early");
}

#[test]
fn an_anthropic_stream_tells_input_first_and_output_last() {
    // What was read from the cache does not count against the limit.
    assert_eq!(usage(EVENTS, ANTHROPIC_STREAM), Some((125, 15)));
    let (begun, _) = ANTHROPIC_STREAM.split_once("event: message_delta").unwrap();
    assert_eq!(usage(EVENTS, begun), None, "the one token it begins with is not the output");
}

#[test]
fn a_responses_stream_tells_in_its_last_event() {
    let text = "event: response.created\ndata: {\"type\":\"response.created\",\"response\":{\"usage\":null}}\n\n\
        event: response.completed\ndata: {\"type\":\"response.completed\",\"response\":{\"output\":[{\"usage\":{\"input_tokens\":9}}],\
        \"usage\":{\"input_tokens\":37,\"input_tokens_details\":{\"cached_tokens\":0},\"output_tokens\":11}}}\n\n";
    assert_eq!(usage(EVENTS, text), Some((37, 11)));
}

#[test]
fn geminis_metadata_counts_cached_thought_and_tool_tokens_once() {
    let told = json!({"candidates": [{"content": {}}], "usageMetadata": {
        "promptTokenCount": 100, "cachedContentTokenCount": 60, "toolUsePromptTokenCount": 7,
        "candidatesTokenCount": 20, "thoughtsTokenCount": 300, "totalTokenCount": 427,
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 100}],
    }});
    assert_eq!(usage(JSON, &told.to_string()), Some((107, 320)));
    let stream = "data: {\"usageMetadata\":{\"promptTokenCount\":9,\"thoughtsTokenCount\":5}}\r\n\r\n\
        data: {\"usageMetadata\":{\"promptTokenCount\":9,\"candidatesTokenCount\":4,\"thoughtsTokenCount\":8}}\r\n\r\n";
    assert_eq!(usage(EVENTS, stream), Some((9, 12)));
    let (thinking, _) = stream.split_once("\r\n").unwrap();
    assert_eq!(usage(EVENTS, &format!("{thinking}\r\n\r\n")), Some((9, 5)));
}

#[test]
fn an_array_of_documents_tells_as_their_events_would() {
    assert_eq!(usage(JSON, GEMINI_ARRAY), Some((9, 12)));
    let (first, _) = GEMINI_ARRAY.split_once(",\r\n").unwrap();
    assert_eq!(usage(JSON, first), Some((9, 5)), "a caller that left early");
    // An array in it is no document, nor is what stands beside the documents.
    let inner = r#"[[{"usage":{"input_tokens":7,"output_tokens":7}}],"usage",3,{"usage":{"input_tokens":1,"output_tokens":2}}]"#;
    assert_eq!(usage(JSON, inner), Some((1, 2)));
    let unavailable = r#",{"error":{"code":503,"message":"The model is overloaded.","status":"UNAVAILABLE"}}]"#;
    let reader = whole(JSON, &format!("{first}{unavailable}"));
    assert_eq!((reader.overloaded(), reader.usage().is_some()), (true, true));
    // One document's type does not go with another's message.
    assert!(!whole(JSON, r#"[{"error":{"type":"api_error"}},{"error":{"message":"Overloaded"}}]"#).overloaded());
}

#[test]
fn whole_answers_tell_too() {
    let openai = json!({"choices": [{"message": {"content": "x\"}{["}}], "usage": {"prompt_tokens": 19, "completion_tokens": 10}});
    assert_eq!(usage(JSON, &openai.to_string()), Some((19, 10)));
    let anthropic = json!({"content": [{"type": "text", "text": "\\"}], "usage": {"input_tokens": 2095,
        "cache_creation_input_tokens": 5, "cache_read_input_tokens": 99, "output_tokens": 503}});
    assert_eq!(usage(JSON, &anthropic.to_string()), Some((2_100, 503)));
    assert_eq!(usage(JSON, &serde_json::to_string_pretty(&anthropic).unwrap()), Some((2_100, 503)));
    let embeddings = json!({"data": [], "usage": {"prompt_tokens": 8, "total_tokens": 8}});
    assert_eq!(usage(JSON, &embeddings.to_string()), None, "no output is told");
}

#[test]
fn a_number_that_no_answer_can_have_used_is_none() {
    for absurd in ["18446744073709551615", "99999999999999999999999", "-5", "1e3", "1000000000000001"] {
        let body = format!("{{\"usage\":{{\"input_tokens\":3,\"output_tokens\":{absurd}}}}}");
        assert_eq!(usage(JSON, &body), None, "{absurd}");
    }
}

#[test]
fn a_whole_answer_of_any_size_is_read() {
    let text = "x\\\"[{".repeat(1_000_000);
    let body = format!("{{\"content\":\"{text}\",\"usage\":{{\"input_tokens\":3,\"output_tokens\":4}}}}");
    assert_eq!(usage(JSON, &body), Some((3, 4)));
    let line = format!("data: {body}\n\n");
    assert_eq!(usage(EVENTS, &line), Some((3, 4)), "no line is too long");
    assert!(std::mem::size_of::<UsageReader>() <= 256, "and none of it is kept");
}

#[test]
fn data_in_several_lines_is_one_text_and_an_empty_line_ends_it() {
    let text = "data: {\"usage\":\ndata:{\"input_tokens\":1,\n: between\ndata: \"output_tokens\":\ndata:2}}\n\n";
    assert_eq!(usage(EVENTS, text), Some((1, 2)));
    assert_eq!(usage(EVENTS, &text.replace('\n', "\r")), Some((1, 2)));
    // A broken event does not spoil the next.
    let broken = "data: {\"usage\":{\"a\":[\"\n\ndata: {\"usage\":{\"input_tokens\":1,\"output_tokens\":2}}\n\n";
    assert_eq!(usage(EVENTS, broken), Some((1, 2)));
    for other in ["dat: ", "datas: ", " data: ", "event: ", "DATA: "] {
        let text = format!("{other}{{\"usage\":{{\"input_tokens\":1,\"output_tokens\":2}}}}\n\n");
        assert_eq!(usage(EVENTS, &text), None, "{other:?}");
    }
}

#[test]
fn only_json_and_events_are_read() {
    let body = r#"{"usage":{"input_tokens":1,"output_tokens":2}}"#;
    for form in ["application/json", "Application/JSON; charset=utf-8", " application/json ;x"] {
        assert_eq!(usage(Some(form), body), Some((1, 2)), "{form}");
    }
    for form in [None, Some(""), Some("text/plain"), Some("audio/mpeg"), Some("application/jsonl")] {
        assert_eq!(usage(form, body), None, "{form:?}");
    }
}

#[test]
fn what_is_no_count_is_not_taken_for_one() {
    for count in ["-1", "1.5", "1e3", "null", "true", "\"7\"", "[7]", "{\"a\":7}", "18446744073709551616", ""] {
        let body = format!("{{\"usage\":{{\"input_tokens\":{count},\"output_tokens\":2}}}}");
        assert_eq!(usage(JSON, &body), None, "{count}");
    }
    for body in [
        r#"[[{"usage":{"input_tokens":1,"output_tokens":2}}]]"#,
        r#"{"a":{"usage":{"input_tokens":1,"output_tokens":2}}}"#,
        r#"{"usage":[{"input_tokens":1,"output_tokens":2}]}"#,
        r#"{"usage":{"x":{"input_tokens":1,"output_tokens":2}}}"#,
        r#"{"u\u0073age":{"input_tokens":1,"output_tokens":2}}"#,
        r#"}}]]{"usage"#,
        r#"{"usage":{"input_tokens":1,"output_tokens":2"#,
    ] {
        assert_eq!(usage(JSON, body), None, "{body}");
    }
}

#[test]
fn a_late_overload_is_seen() {
    let started = ANTHROPIC_STREAM.split_once("event: message_delta").unwrap().0;
    assert!(!whole(EVENTS, ANTHROPIC_STREAM).overloaded());
    let reader = whole(EVENTS, &format!("{started}{OVERLOADED}"));
    assert_eq!((reader.overloaded(), reader.usage()), (true, None));
    let swapped = r#"data: {"error":{"message":"Overloaded","type":"api_error"},"type":"error"}"#;
    assert!(whole(EVENTS, swapped).overloaded());
    let other = r#"data: {"type":"error","error":{"type":"api_error","message":"Internal server error"}}"#;
    assert!(!whole(EVENTS, other).overloaded());
    // One event's type does not go with another's message.
    let two = "data: {\"error\":{\"type\":\"api_error\"}}\n\ndata: {\"error\":{\"message\":\"Overloaded\"}}\n\n";
    assert!(!whole(EVENTS, two).overloaded());
    let quoted = r#"data: {"delta":{"text":"{\"error\":{\"type\":\"overloaded_error\"}}"}}"#;
    assert!(!whole(EVENTS, quoted).overloaded());
}

/// An error that is no answer's beginning says of what kind it is by its type, code or status.
#[test]
fn a_late_refusal_is_seen_whatever_names_it() {
    let told = |error: &str| {
        whole(EVENTS, &format!("data: {{\"id\":\"c\",\"error\":{error},\"choices\":[]}}\n\n")).overloaded()
    };
    for error in [
        // OpenRouter, as a number, and written anew as a text.
        r#"{"code":429,"message":"Rate limit exceeded"}"#,
        r#"{"message":"Provider returned error","code":"429"}"#,
        r#"{"code":503,"message":"No."}"#,
        r#"{"code":"temporarily_unavailable"}"#,
        r#"{"code":"capacity_exhausted","availability":{"retry_after":3}}"#,
        // Google.
        r#"{"code":503,"message":"The model is overloaded.","status":"UNAVAILABLE"}"#,
        r#"{"message":"Resource exhausted.","status":"RESOURCE_EXHAUSTED","details":[{"type":"x"}]}"#,
    ] {
        assert!(told(error), "{error}");
    }
    for error in [
        r#"{"code":"server_error","message":"429"}"#,
        r#"{"code":500,"message":"UNAVAILABLE","status":"INTERNAL"}"#,
        r#"{"code":4290}"#,
        r#"{"details":{"code":429,"status":"UNAVAILABLE"}}"#,
        r#"{"code":402,"message":"Insufficient credits"}"#,
        r#"{"code":"insufficient_quota"}"#,
        r#"[{"code":429}]"#,
        "\"UNAVAILABLE\"",
        "null",
    ] {
        assert!(!told(error), "{error}");
    }
    let beside = r#"{"code":429,"status":"UNAVAILABLE","type":"overloaded_error","usage":{"prompt_tokens":1}}"#;
    assert!(!whole(JSON, beside).overloaded(), "only in an error");
}

/// A message of AWS's: headers of text, and a payload.
fn message(headers: &[(&str, &str)], payload: &[u8]) -> Vec<u8> {
    let header = |(name, value): &(&str, &str)| {
        let length = (value.len() as u16).to_be_bytes();
        [&[name.len() as u8][..], name.as_bytes(), &[7], &length, value.as_bytes()].concat()
    };
    let headers: Vec<u8> = headers.iter().flat_map(header).collect();
    let length = (16 + headers.len() + payload.len()) as u32;
    let numbers = [length.to_be_bytes(), (headers.len() as u32).to_be_bytes(), *b"crc1"].concat();
    [&numbers[..], &headers, payload, b"crc2"].concat()
}

fn exception(name: &str) -> Vec<u8> {
    let headers = [(":exception-type", name), (":content-type", "application/json"), (":message-type", "exception")];
    message(&headers, br#"{"message":"Too many requests, please wait before trying again."}"#)
}

fn bedrock_stream() -> Vec<u8> {
    let event = [(":event-type", "chunk"), (":content-type", "application/json"), (":message-type", "event")];
    let chunk = message(&event, br#"{"bytes":"e30=","p":":exception-type throttlingException"}"#);
    [&chunk[..], &message(&[], b""), &chunk].concat()
}

#[test]
fn an_exception_in_bedrocks_stream_is_seen() {
    let told = |name: &str| told_in_parts(AWS, &[&bedrock_stream(), &exception(name)]).1;
    for name in ["throttlingException", "serviceUnavailableException"] {
        assert!(told(name), "{name}");
    }
    for name in ["modelTimeoutException", "validationException", "throttlingExceptions", "throttlingExceptio", ""] {
        assert!(!told(name), "{name}");
    }
    assert_eq!(told_in_parts(AWS, &[&bedrock_stream()]), (None, false), "text about it is none");
    // Values of all types stand before it.
    let mut typed = Vec::new();
    for (kind, length) in [(0_u8, 0), (1, 0), (2, 1), (3, 2), (4, 4), (5, 8), (8, 8), (9, 16)] {
        typed.extend([&[1, b'x', kind][..], &vec![7; length]].concat());
    }
    typed.extend([1, b'x', 6, 0, 2, 7, 7, 1, b'x', 7, 0, 0]);
    let named = [&[15][..], b":exception-type", &[7, 0, 19], b"throttlingException"].concat();
    typed.extend(&named);
    let with = |headers: &[u8], length: u32| {
        let numbers = [length.to_be_bytes(), (headers.len() as u32).to_be_bytes(), *b"crc1"].concat();
        [&numbers[..], headers, b"crc2"].concat()
    };
    let good = with(&typed, 16 + typed.len() as u32);
    assert!(told_in_parts(AWS, &[&good]).1);
    // What is no such stream is not read on: a message too short for its headers, a type that is none.
    assert!(!told_in_parts(AWS, &[&with(&typed, 15 + typed.len() as u32), &good]).1);
    let odd = [&[1, b'x', 10][..], &named].concat();
    assert!(!told_in_parts(AWS, &[&with(&odd, 16 + odd.len() as u32), &good]).1);
    assert!(!told_in_parts(AWS, &[&[0xff; 12], &good]).1);
}

// === whatever comes ===

fn any_json() -> impl Strategy<Value = Value> {
    let word = prop_oneof![
        Just("usage".to_owned()),
        Just("message".to_owned()),
        Just("response".to_owned()),
        Just("input_tokens".to_owned()),
        Just("output_tokens".to_owned()),
        Just("prompt_tokens".to_owned()),
        "[a-z\"\\\\{}\\[\\],:ü🎉]{0,6}",
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        (0_u64..100).prop_map(Value::from),
        (-9_i64..0).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        word.clone().prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 48, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(word.clone(), inner, 0..6)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// The slow obvious way: of one document, or of an array of them.
fn looked_up(body: &Value) -> Option<Usage> {
    let documents = body.as_array().map_or(std::slice::from_ref(body), Vec::as_slice);
    let count = |place: &str, names: &[&str]| {
        let at = |name: &&str| format!("{place}/{name}");
        let told = names.iter().flat_map(|name| {
            documents.iter().filter(|one| one.is_object()).filter_map(move |one| one.pointer(&at(name))?.as_u64())
        });
        told.filter(|count| *count <= Usage::TOKENS_MAX).max()
    };
    let input = ["/usage", "/response/usage", "/message/usage"]
        .iter()
        .filter_map(|at| count(at, &["input_tokens", "prompt_tokens"]));
    let output = ["/usage", "/response/usage"].iter().filter_map(|at| count(at, &["output_tokens"]));
    Some(Usage { input_tokens: input.max()?, output_tokens: output.max()? })
}

/// A text, cut at some places.
fn cut(bytes: &[u8], at: Vec<usize>) -> Vec<&[u8]> {
    let mut at: Vec<usize> = at.into_iter().map(|at| at % (bytes.len() + 1)).collect();
    at.extend([0, bytes.len()]);
    at.sort_unstable();
    at.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect()
}

fn told_in_parts(form: Option<&str>, parts: &[&[u8]]) -> (Option<Usage>, bool) {
    let mut reader = UsageReader::new(form);
    for part in parts {
        reader.feed(part);
    }
    (reader.usage(), reader.overloaded())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn however_a_stream_is_cut_it_tells_the_same(at in prop::collection::vec(any::<usize>(), 0..40)) {
        let overloaded = format!("{ANTHROPIC_STREAM}{OVERLOADED}");
        let throttled = [bedrock_stream(), exception("throttlingException")].concat();
        let texts = [
            (EVENTS, OPENAI_STREAM.as_bytes(), false),
            (EVENTS, ANTHROPIC_STREAM.as_bytes(), false),
            (EVENTS, overloaded.as_bytes(), true),
            (JSON, GEMINI_ARRAY.as_bytes(), false),
            (AWS, &throttled[..], true),
        ];
        for (form, text, broke_off) in texts {
            let told = told_in_parts(form, &cut(text, at.clone()));
            prop_assert_eq!(told, told_in_parts(form, &[text]));
            prop_assert_eq!(told.1, broke_off);
        }
    }

    #[test]
    fn however_garbage_is_cut_it_tells_the_same(
        bytes in prop::collection::vec(prop_oneof![any::<u8>(), prop::sample::select(b"data: \r\n{}\":,\\u0".to_vec())], 0..200),
        at in prop::collection::vec(any::<usize>(), 0..40),
    ) {
        for form in [JSON, EVENTS] {
            let usage = br#"{"usage":{"input_tokens":1,"output_tokens":2}}"#;
            let bytes = [&bytes[..], b"\n\ndata: ", usage].concat();
            prop_assert_eq!(told_in_parts(form, &cut(&bytes, at.clone())), told_in_parts(form, &[&bytes]));
        }
        let bytes = [&bedrock_stream()[..], &bytes, &exception("throttlingException")].concat();
        prop_assert_eq!(told_in_parts(AWS, &cut(&bytes, at)), told_in_parts(AWS, &[&bytes]));
    }

    #[test]
    fn any_json_is_read_as_a_parser_reads_it(
        bodies in prop::collection::vec((any_json(), any_json()), 1..4),
        listed in any::<bool>(),
        pretty in any::<bool>(),
    ) {
        let mut documents: Vec<Value> = bodies.into_iter().map(|(mut body, inner)| {
            if let Some(body) = body.as_object_mut() {
                body.insert("usage".to_owned(), inner);
            }
            body
        }).collect();
        let body = if listed { Value::from(documents) } else { documents.swap_remove(0) };
        let text = if pretty { serde_json::to_string_pretty(&body) } else { serde_json::to_string(&body) }.unwrap();
        prop_assert_eq!(whole(JSON, &text).usage(), looked_up(&body), "{}", text);
    }
}

#[test]
fn cut_into_single_bytes_it_tells_the_same() {
    for (form, text) in [(EVENTS, OPENAI_STREAM), (EVENTS, ANTHROPIC_STREAM), (JSON, GEMINI_ARRAY)] {
        let bytes: Vec<&[u8]> = text.as_bytes().chunks(1).collect();
        assert_eq!(told_in_parts(form, &bytes), told_in_parts(form, &[text.as_bytes()]));
    }
}
