//! The commands around the configuration, through the binary: what they print where, and how they end.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::world::tidegate;

/// A good pool, on lines 1–3.
const POOL: &str = "[pools.a]\ndialect = \"openai\"\ncapacity = { \"requests/minute\" = 600 }\n";

/// Runs `tidegate check t.toml` with this text in the file.
fn check(text: impl AsRef<[u8]>, args: &[&str]) -> Output {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("t.toml"), text).expect("written");
    let mut command = tidegate(&["check", "t.toml"]);
    command.args(args).current_dir(folder.path()).output().expect("it runs")
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("text")
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("text")
}

/// What is wrong, the file, and each line that is printed.
const WRONG: &[(&str, &str, &[&str])] = &[
    (
        "a misspelt key",
        "[pools.a]\ndialect = \"openai\"\nconcurency = 8\ncapacity = { \"requests/minute\" = 600 }\n",
        &[
            "t.toml:3:1: pools.a.concurency: unknown key, expected dialect, mode, concurrency, capacity, tenants or default; did \
           you mean \"concurrency\"?",
        ],
    ),
    (
        "a key in the wrong table",
        "[pools.a]\ndialect = \"openai\"\nweight = 3\ncapacity = { \"requests/minute\" = 600 }\n",
        &[
            "t.toml:3:1: pools.a.weight: unknown key, expected dialect, mode, concurrency, capacity, tenants or default; \
           \"weight\" belongs in [pools.<id>.tenants.<name>] or [pools.<id>.default]",
        ],
    ),
    (
        "a number out of its range",
        "[pools.a]\ndialect = \"openai\"\ncapacity = { \"requests/minute\" = -600 }\n",
        &[
            "t.toml:3:34: pools.a.capacity.\"requests/minute\": found -600, expected a number from 0.001 to 1e12 (units \
           per window), or { rate, burst, algorithm, alignment, enforcement }",
        ],
    ),
    (
        "a number in quotes",
        "[pools.a]\ndialect = \"openai\"\nconcurrency = \"64\"\ncapacity = { \"requests/minute\" = 600 }\n",
        &[
            "t.toml:3:15: pools.a.concurrency: found \"64\", expected a whole number from 1 to 1000000 (calls in flight); \
           did you mean 64?",
        ],
    ),
    (
        "a misspelt dialect",
        "[pools.a]\ndialect = \"antropic\"\ncapacity = { \"requests/minute\" = 600 }\n",
        &[
            "t.toml:2:11: pools.a.dialect: found \"antropic\", expected \"openai\", \"azure\", \"anthropic\" or another of the 30 that `tidegate schema --reference` lists, or { name, refill, reset_form, headers }; did you mean \
           \"anthropic\"?",
        ],
    ),
    (
        "a missing key",
        "[pools.a]\ncapacity = { \"requests/minute\" = 600 }\n",
        &[
            "t.toml:1:1: pools.a: \"dialect\" is missing, expected \"openai\", \"azure\", \"anthropic\" or another of the 30 that `tidegate schema --reference` lists, or { name, refill, reset_form, headers }, such as dialect = \
           \"openai\"",
        ],
    ),
    (
        "a meter by its nickname, and one given twice",
        "[pools.a]\ndialect = \"openai\"\n[pools.a.capacity]\nTPM = 1000\n\"requests/minute\" = 600\n\"requests/60s\" = 600\n",
        &[
            "t.toml:4:1: pools.a.capacity.TPM: meter \"TPM\": expected <unit>/<window> with unit requests, tokens, \
             input_tokens or output_tokens and window second, minute, hour, day, month or <n>s, for example \
             \"requests/minute\"; did you mean \"tokens/minute\"?",
            "t.toml:6:1: pools.a.capacity.\"requests/60s\": the meter requests/minute is given twice, first on line 5",
        ],
    ),
    (
        "a floor above its ceiling, and fewer places than tenants",
        "[pools.a]\ndialect = \"openai\"\nconcurrency = 1\ncapacity = { \"requests/minute\" = 600 }\n\
         [pools.a.tenants.acme]\nfloor = { \"requests/minute\" = 60 }\nceiling = { \"requests/minute\" = 40 }\n",
        &[
            "t.toml:3:15: pools.a.concurrency: found 1, expected at least 2 (one for each tenant and one for the \
             default)",
            "t.toml:6:31: pools.a.tenants.acme.floor.\"requests/minute\": found 60, expected at most the ceiling, 40",
        ],
    ),
    (
        "floors above the capacity beside a mistake",
        "[pools.a]\ndialect = \"openai\"\ncapacity = { \"requests/minute\" = 600 }\n\
         [pools.a.tenants.acme]\nfloor = { \"requests/minute\" = 700 }\nwieght = 3\n",
        &[
            "t.toml:3:34: warning: pools.a.capacity.\"requests/minute\": found 600, expected at least 700, the sum of \
             the floors; with less, all floors shrink in proportion",
            "t.toml:6:1: pools.a.tenants.acme.wieght: unknown key, expected weight, priority, floor or ceiling; did you mean \
             \"weight\"?",
        ],
    ),
    (
        "an address off loopback, and TLS without an authority",
        "[controller]\nlisten = \"0.0.0.0:7676\"\n[etcd]\nendpoints = [\"https://etcd:2379\"]\n[pools.a]\n\
         dialect = \"openai\"\ncapacity = { \"requests/minute\" = 600 }\n",
        &[
            "t.toml:2:10: controller.listen: found \"0.0.0.0:7676\", expected a loopback address, or \
             [controller.reporters.<name>] to say who may report, or client_ca_file in [controller.tls]: whoever reaches \
             this port could steer the limits",
            "t.toml:4:14: etcd.endpoints: found \"https://etcd:2379\", expected a URL of host and port, such \
             as \"http://127.0.0.1:2379\"; https:// with a ca_file, http:// without",
        ],
    ),
    (
        "an id that is none",
        "[pools.\"GPT 4o\"]\ndialect = \"openai\"\ncapacity = { \"requests/minute\" = 600 }\n",
        &[
            "t.toml:1:8: pools.\"GPT 4o\": pool id \"GPT 4o\": expected 1–64 of a–z, 0–9, '.', '_', '-', beginning with a \
           letter or digit; did you mean \"gpt-4o\"?",
        ],
    ),
    (
        "no TOML, twice",
        "[pools.a.capacity]\nrequests/minute = 600\n[controller]\nlisten = localhost\n",
        &[
            "t.toml:2:9: not TOML: found requests/minute = 600: invalid unquoted key, expected letters, digits, - and \
             _, or quotes, such as \"requests/minute\"",
            "t.toml:4:10: not TOML: found listen = localhost: string values must be quoted, expected quotes, a number, \
             true, false, [ or {",
        ],
    ),
];

#[test]
fn each_wrong_configuration_is_told_in_full() {
    for (what, text, expected) in WRONG {
        let output = check(text, &[]);
        assert_eq!(lines_of(&stdout(&output)), *expected, "{what}");
        assert_eq!(output.status.code(), Some(2), "{what}");
        let mistakes = expected.iter().filter(|line| !line.contains("warning: ")).count();
        let count = format!("tidegate: {mistakes} mistake{}\n", if mistakes == 1 { "" } else { "s" });
        assert_eq!(stderr(&output), count, "{what}");
    }
}

#[test]
fn the_controller_refuses_to_start_with_the_same_lines() {
    for (what, text, expected) in WRONG {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("t.toml"), text).expect("written");
        let mut command = tidegate(&["run", "--config", "t.toml"]);
        let output = command.current_dir(folder.path()).output().expect("it runs");
        let said = stderr(&output);
        let (lines, last) = said.trim_end().rsplit_once('\n').expect("has lines");
        assert_eq!(lines_of(lines), *expected, "{what}");
        assert!(last.ends_with("; the controller is not started"), "{what}: {last}");
        assert_eq!((output.status.code(), stdout(&output).as_str()), (Some(2), ""), "{what}");
    }
}

fn lines_of(text: &str) -> Vec<&str> {
    text.lines().collect()
}

#[test]
fn a_good_configuration_gives_one_line() {
    let text = format!(
        "{POOL}[pools.a.tenants.acme]\n[pools.b]\ndialect = \"anthropic\"\n[pools.b.capacity]\n\"input_tokens/minute\" = 90000\n\
         [etcd]\nendpoints = [\"http://127.0.0.1:2379\"]\n"
    );
    let output = check(text, &[]);
    assert_eq!(
        stdout(&output),
        "t.toml: good: 2 pools (a: openai, b: anthropic), 1 tenant, 2 meters (requests/minute, input_tokens/minute), \
         reports at 127.0.0.1:7676, etcd at http://127.0.0.1:2379\n"
    );
    assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""));
}

#[test]
fn a_warning_is_printed_and_the_configuration_is_good() {
    let output = check(format!("{POOL}[pools.a.default]\nfloor = {{ \"requests/minute\" = 601 }}\n"), &[]);
    let said = stdout(&output);
    let lines = lines_of(&said);
    assert_eq!((output.status.code(), lines.len()), (Some(0), 2), "{lines:?}");
    assert!(lines[0].starts_with("t.toml:3:34: warning: ") && lines[1].starts_with("t.toml: good: "), "{lines:?}");
}

/// What is printed of sizes, without the last line.
fn advised(capacity: &str, args: &[&str]) -> Vec<String> {
    let text = format!(
        "[pools.\"a.b\"]\ndialect = \"openai\"\n[pools.\"a.b\".tenants.acme]\n[pools.\"a.b\".capacity]\n{capacity}"
    );
    let output = check(text, args);
    assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""), "{output:?}");
    let said = stdout(&output);
    let mut lines: Vec<String> = said.lines().map(str::to_owned).collect();
    let last = lines.pop().unwrap_or_default();
    assert!(last.starts_with("t.toml: good: "), "{said}");
    lines
}

#[test]
fn a_threshold_too_small_for_its_processes_is_told() {
    let none: [String; 0] = [];
    let to_share = "enforcement = \"shared\" counts it together, in Redis";
    // Half of it is acme's, half the default's.
    let key = "pools.\"a.b\".capacity.\"requests/minute\"";
    assert_eq!(advised("\"requests/minute\" = 40\n", &[]), none);
    assert_eq!(
        advised("\"requests/minute\" = 30\n", &[]),
        [format!(
            "t.toml: advice: {key}: acme gets 15 requests/minute: from 8 processes on that is less than 2 each; {to_share}"
        )]
    );
    assert_eq!(advised("\"requests/minute\" = 30\n", &["--members", "7"]), none);
    assert_eq!(
        advised("\"requests/minute\" = 30\n", &["--members", "8"]),
        [format!(
            "t.toml: warning: {key}: acme gets 15 requests/minute among 8 processes: less than 2 each; {to_share}"
        )]
    );
    // One that is counted together is well as it is.
    let shared = "\"requests/minute\" = { rate = 30, enforcement = \"shared\" }\n";
    assert_eq!(advised(shared, &["--members", "8"]), none);
    // Tokens are no requests.
    let few = advised("\"tokens/minute\" = 12000\n", &["--members", "6"]);
    assert_eq!(few.len(), 0, "{few:?}");
    let few = advised("\"tokens/minute\" = 6000\n", &["--members", "7"]);
    assert!(
        few[0].contains("acme gets 3000 tokens/minute among 7 processes: less than 1000 each, two short"),
        "{few:?}"
    );

    let output = check(format!("{}\n", POOL.replace("600", "4")), &["--json"]);
    let list: Value = serde_json::from_slice(&output.stdout).expect("JSON and nothing else");
    assert_eq!(list.as_array().map(Vec::len), Some(1), "{list}");
    assert_eq!(
        (&list[0]["severity"], &list[0]["file"], &list[0]["key"], &list[0]["suggestion"]),
        (
            &"advice".into(),
            &"t.toml".into(),
            &"pools.a.capacity.\"requests/minute\"".into(),
            &"enforcement = \"shared\"".into()
        )
    );
}

#[test]
fn a_round_trip_that_buys_nothing_is_told_unless_another_meter_of_the_pool_needs_it() {
    let none: [String; 0] = [];
    let ample = "\"requests/minute\" = { rate = 50000, enforcement = \"shared\" }\n";
    assert_eq!(
        advised(ample, &[]),
        [
            "t.toml: advice: pools.\"a.b\".capacity.\"requests/minute\": acme gets 25000 requests/minute, 2500 for each of \
          10 processes: a round trip to Redis for each request buys nothing; enforcement = \"local\" does as well"
        ]
    );
    assert_eq!(advised(ample, &["--members", "25"]), none);
    let told = advised(ample, &["--members", "24"]);
    assert!(told.len() == 1 && told[0].contains("1041 for each of 24 processes"), "{told:?}");
    let beside = format!("{ample}\"requests/second\" = {{ rate = 20, enforcement = \"shared\" }}\n");
    assert_eq!(advised(&beside, &[]), none);
}

#[test]
fn standard_input_is_a_file_too() {
    let mut command = tidegate(&["check", "-"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("runs");
    child.stdin.take().expect("is piped").write_all(b"[pool.a]\n").expect("is read");
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(
        stdout(&output),
        "<stdin>:1:2: pool: unknown key, expected controller, keys, etcd, prometheus or pools; did you mean \"pools\"?\n"
    );
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn json_has_every_mistake_with_its_parts() {
    let output = check("[pools.a]\ndialect = \"opnai\"\nweight = 1\n", &["--json"]);
    let list: Value = serde_json::from_slice(&output.stdout).expect("JSON and nothing else");
    assert_eq!(output.status.code(), Some(2));
    let list = list.as_array().expect("a list");
    let lines: Vec<_> = list.iter().map(|mistake| mistake["line"].as_u64().expect("a line")).collect();
    assert_eq!(lines, [1, 2, 3]);
    assert_eq!(
        list[1],
        serde_json::json!({
            "file": "t.toml",
            "line": 2,
            "column": 11,
            "severity": "error",
            "key": "pools.a.dialect",
            "found": "\"opnai\"",
            "expected": "\"openai\", \"azure\", \"anthropic\" or another of the 30 that `tidegate schema --reference` lists, or { name, refill, reset_form, headers }",
            "suggestion": "\"openai\"",
            "message": "found \"opnai\", expected \"openai\", \"azure\", \"anthropic\" or another of the 30 that `tidegate schema --reference` lists, or { name, refill, reset_form, headers }; did you mean \"openai\"?",
        })
    );
    assert_eq!(list[2]["suggestion"], "[pools.<id>.tenants.<name>] or [pools.<id>.default]");
    let output = check(POOL, &["--json"]);
    assert_eq!((output.status.code(), stdout(&output).as_str()), (Some(0), "[]\n"));
}

#[test]
fn a_file_that_is_no_text_is_told_in_one_line() {
    let output = check(b"# h\xc3\xa9llo \xff\n", &[]);
    assert_eq!(stdout(&output), "t.toml:1:9: found the byte 0xff, expected UTF-8 text\n");
    let output = check(vec![b'#'; 4 * 1024 * 1024 + 1], &[]);
    assert_eq!(stdout(&output), "t.toml: found more than 4194304 bytes, expected at most so many\n");
    for (file, said) in [
        (".", ".: found a directory, expected a file\n"),
        ("no/such.toml", "no/such.toml: cannot be read: No such file or directory (os error 2)\n"),
    ] {
        let output = tidegate(&["check", file]).output().expect("it runs");
        assert_eq!((output.status.code(), stdout(&output).as_str()), (Some(2), said));
    }
}

/// A pipe that nobody reads.
fn into_closed_pipe(command: &mut Command) -> Output {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    command.stdout(writer).output().expect("it runs")
}

#[test]
fn a_closed_pipe_is_no_failure_and_a_full_disk_is_one() {
    for args in [&["schema"][..], &["schema", "--reference"], &["completions", "zsh"], &["check"]] {
        let mut command = tidegate(args);
        let output = into_closed_pipe(command.current_dir(env!("CARGO_MANIFEST_DIR")));
        assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""), "{args:?}");
    }
    let full = fs::File::options().write(true).open("/dev/full").expect("is there");
    let output = tidegate(&["schema"]).stdout(full).output().expect("it runs");
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).starts_with("tidegate: cannot write to stdout: "), "{}", stderr(&output));
}

#[test]
fn completions_know_the_commands_and_not_the_hidden_one() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let output = tidegate(&["completions", shell]).output().expect("it runs");
        let script = stdout(&output);
        assert_eq!(output.status.code(), Some(0), "{shell}");
        for word in ["check", "emulate", "reference", "config"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
        assert!(!script.contains("demo-service"), "{shell}");
    }
    assert_eq!(tidegate(&["completions", "tcsh"]).output().expect("it runs").status.code(), Some(2));
}

/// What `tidegate headers` prints of this on its standard input.
fn headers_of(head: &str, args: &[&str]) -> Output {
    let mut command = tidegate(&["headers"]);
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("it runs");
    let written = child.stdin.take().expect("is piped").write_all(head.as_bytes());
    let output = child.wait_with_output().expect("it ends");
    // Whoever refuses its arguments reads nothing, and may be gone before.
    assert!(written.is_ok() || output.status.code() == Some(2), "{written:?}");
    output
}

const REFUSED: &str = "HTTP/1.1 100 Continue\r\n\r\nHTTP/2 429 \r\nOpenAI-Version: 1\r\nx-ratelimit-limit-requests: 60\r\n\
    x-ratelimit-remaining-requests: 0\r\nx-ratelimit-reset-requests: 59.75s\r\nx-ratelimit-limit-tokens: REDACTED\r\n\
    retry-after-ms: 750\r\nacme-ratelimit-left: 3\r\n\r\n{\"error\":{\"type\":\"requests\"}}";

#[test]
fn a_pasted_head_is_told_line_by_line() {
    let output = headers_of(REFUSED, &[]);
    assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""));
    assert_eq!(
        stdout(&output),
        "x-ratelimit-limit-requests: 60\n    read\n\
         x-ratelimit-remaining-requests: 0\n    read\n\
         x-ratelimit-reset-requests: 59.75s\n    read\n\
         x-ratelimit-limit-tokens: REDACTED\n    missing: it is not a number as this dialect writes them\n\
         retry-after-ms: 750\n    read\n\
         acme-ratelimit-left: 3\n    unread: no rule takes it\n\n\
         dialect  openai\nstatus   429: throttled\nrefused  by requests/minute\n\
         meter    requests/minute: limit 60, remaining 0, level 0.25, reset 59.75 s\nhold     0.75 s\n\
         meaning  refills all the time; remaining counts this request; a limit for each model; in no header: \
         requests/second\n"
    );
    let json: Value = serde_json::from_slice(&headers_of(REFUSED, &["--json"]).stdout).expect("JSON");
    assert_eq!(
        json,
        serde_json::json!({
            "dialect": "openai",
            "class": "throttled",
            "readings":
                [{"meter": "requests/minute", "limit": 60.0, "remaining": 0.0, "level": 0.25, "reset_s": 59.75}],
            "hold_s": 0.75,
            "scope": "requests/minute",
            "missing": [{"header": "x-ratelimit-limit-tokens", "reason": "not_a_number"}],
            "unread": ["acme-ratelimit-left"],
        })
    );
    let named = stdout(&headers_of(REFUSED, &["--dialect", "anthropic"]));
    assert!(named.contains("missing: it is of another dialect, so of somebody in between"), "{named}");
    for (head, said) in [
        ("", "tidegate: found nothing, expected the head of a response\n"),
        ("\n\n", "tidegate: found nothing, expected the head of a response\n"),
        ("HTTP/2 ok\n", "tidegate: found \"HTTP/2 ok\", expected a status line such as HTTP/2 200\n"),
        ("{}\n", "tidegate: found \"{}\", expected a header such as retry-after: 2\n"),
    ] {
        let output = headers_of(head, &[]);
        assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(2), said), "{head:?}");
    }
}

#[test]
fn a_head_is_read_as_the_dialect_that_a_configuration_teaches() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("t.toml");
    let taught = r#"
        [pools.newai]
        capacity = { "requests/minute" = 60 }
        [pools.newai.dialect]
        name = "newai"
        headers = { "requests/minute" = { limit = "newai-limit", remaining = "newai-left", reset = "newai-again" } }
    "#;
    fs::write(&file, taught).expect("written");
    let path = file.to_str().expect("text");
    let head = "HTTP/1.1 200 OK\nnewai-limit: 60\nnewai-left: 7\nnewai-again: 30\n\n";
    let told = stdout(&headers_of(head, &["--config", path, "--pool", "newai"]));
    assert!(
        told.starts_with("newai-limit: 60\n    read\n")
            && told.contains("\ndialect  newai\nstatus   200: ok\nmeter    requests/minute: limit 60, remaining 7, "),
        "{told}"
    );
    // Nothing of it is known without the file.
    assert!(stdout(&headers_of(head, &[])).starts_with("dialect  not told by anything\n"));
    fs::write(folder.path().join("r.jsonl"), "{\"headers\":{\"newai-left\":\"7\"}}\n").expect("written");
    let rows = folder.path().join("r.jsonl");
    let rows = headers_of("", &["--config", path, "--pool", "newai", "--jsonl", rows.to_str().expect("text")]);
    assert!(stdout(&rows).starts_with("{\"dialect\":\"newai\","), "{rows:?}");
    let output = headers_of(head, &["--config", path, "--pool", "oldai"]);
    assert_eq!((output.status.code(), stderr(&output)), (Some(2), format!("tidegate: {path}: has no [pools.oldai]\n")));
    for alone in
        [&["--config", path][..], &["--pool", "newai"], &["--config", path, "--pool", "newai", "--dialect", "azure"]]
    {
        assert_eq!(headers_of(head, alone).status.code(), Some(2), "{alone:?}");
    }
}

/// Rows as recordings have them: a request that never fits, a wait that a success asks for, and placeholders.
const RECORDING: &str = r#"{"host":"a","status":429,"headers":{"x-ratelimit-limit-tokens":"7000"},"error_body":"{\"error\":{\"message\":\"Limit 7000, Used 0, Requested ~12903\"}}"}

{"host":"b","status":200,"date":"Thu, 09 Oct 2025 21:49:43 GMT","headers":{"retry-after":"30","anthropic-ratelimit-requests-limit":"50","anthropic-ratelimit-requests-remaining":"49","anthropic-ratelimit-requests-reset":"2025-10-09T21:49:44Z"},"usage":{"input_tokens":9},"request":{"model":"m","body_bytes":40}}
{"host":"b","headers":{"x-ratelimit-limit-requests":["7","7"],"retry-after":"REDACTED"}}
"#;

#[test]
fn a_recording_is_read_row_by_row_and_replayed_as_series() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("r.jsonl");
    fs::write(&file, RECORDING).expect("written");
    let path = file.to_str().expect("text");
    let output = tidegate(&["headers", "--jsonl", path]).output().expect("it runs");
    let said = stdout(&output);
    let rows: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let fields = |name: &str| rows.iter().map(|row| row[name].clone()).collect::<Vec<_>>();
    assert_eq!(fields("class"), ["too_large", "ok", "ok"]);
    assert_eq!(fields("hold_s"), [Value::Null, Value::Null, Value::Null]);
    assert_eq!(fields("dialect"), ["xai", "anthropic", "xai"]);
    assert_eq!((rows[1]["readings"][0]["reset_s"].as_f64(), output.status.code()), (Some(1.0), Some(0)));
    let output = tidegate(&["replay", path]).output().expect("it runs");
    let said = stdout(&output);
    assert!(
        said.contains("b m\n  Thu, 09 Oct 2025 21:49:43 GMT  200 ok  anthropic  requests/minute 49/50 reset 1s\n"),
        "{said}"
    );
    assert!(said.ends_with("3 series: 2 ok, 1 too_large\n"), "{said}");
    fs::write(&file, format!("{RECORDING}[]\n")).expect("written");
    let output = tidegate(&["replay", path]).output().expect("it runs");
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("r.jsonl:5: no row of a recording: "), "{}", stderr(&output));
}

#[test]
fn a_bad_row_is_told_with_its_number_and_the_others_are_read() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("r.jsonl");
    let bad = "{\"headers\":\n";
    fs::write(&file, format!("{bad}{RECORDING}")).expect("written");
    for command in [&["headers", "--jsonl"][..], &["replay"]] {
        let output = tidegate(command).arg(&file).output().expect("it runs");
        assert_eq!(output.status.code(), Some(2), "{command:?}");
        assert!(stdout(&output).lines().count() >= 3, "{command:?}: {}", stdout(&output));
        let said = stderr(&output);
        let lines: Vec<&str> = said.lines().collect();
        assert!(lines.len() == 2 && lines[0].contains("r.jsonl:1: no row of a recording: "), "{said}");
        assert!(lines[1].ends_with("r.jsonl: 1 line was left out"), "{said}");
    }
}

#[test]
fn whoever_closes_the_output_ends_the_reading_of_an_endless_recording() {
    let mut child = tidegate(&["headers", "--jsonl", "-"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("it starts");
    drop(child.stdout.take());
    let mut input = child.stdin.take().expect("piped");
    let row = "{\"headers\":{\"x-ratelimit-limit-requests\":\"7\"}}\n".repeat(100);
    // It ends while rows still come, so that writing them fails; 100 MB are more than any buffer.
    let refused = (0..20_000).any(|_| std::io::Write::write_all(&mut input, row.as_bytes()).is_err());
    drop(input);
    let output = child.wait_with_output().expect("it ends");
    assert_eq!((refused, output.status.code(), stderr(&output).as_str()), (true, Some(0), ""));
}

#[test]
fn control_characters_of_headers_and_recordings_do_not_reach_the_terminal() {
    let output = headers_of("HTTP/1.1 429 No\nx-ratelimit-limit-requests: \u{1b}[2J7\u{9b}m\n\n", &[]);
    let said = stdout(&output);
    assert!(said.contains("\\u{1b}[2J7\\u{9b}m"), "{said}");
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("r.jsonl");
    fs::write(&file, r#"{"host":"a\u001b[2J","date":"\u0007","headers":{}}"#).expect("written");
    let said = stdout(&tidegate(&["replay"]).arg(&file).output().expect("it runs"));
    assert!(said.contains("a\\u{1b}[2J") && said.contains("\\u{7}"), "{said}");
    assert!(!said.contains(|c: char| c.is_control() && c != '\n'), "{said:?}");
}

#[test]
fn the_long_help_of_each_command_tells_how_it_is_used_and_ends() {
    let help = |args: &[&str]| stdout(&tidegate(args).output().expect("it runs"));
    let brief = help(&["-h"]);
    let listed = brief.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let commands: Vec<&str> = listed.filter_map(|line| line.split_whitespace().next()).collect();
    let operators = ["status", "top", "limits", "explain", "override", "policy", "audit", "export", "import"];
    let others =
        ["check", "schema", "token", "headers", "replay", "emulate", "simulate", "compare", "demo", "completions"];
    assert_eq!(commands, [&["run"], &operators[..], &others, &["help"]].concat());
    let within = ["limits get", "limits watch", "override set", "override clear", "override list"];
    let policy = ["policy get", "policy put", "policy clear", "policy diff"];
    for command in ["run", ""].iter().chain(&operators).chain(&others).chain(&within).chain(&policy) {
        let args = |flag| command.split_whitespace().chain([flag]).collect::<Vec<_>>();
        let (long, short) = (help(&args("--help")), help(&args("-h")));
        for section in ["\nExamples", "\nExit codes:\n", "\nEnvironment:\n", "TIDEGATE_LOG"] {
            assert!(long.contains(section), "{command}: {section} in {long}");
        }
        assert!(!short.contains("Examples") && short.len() < long.len(), "{command}: {short}");
        let own = long.lines().filter(|line| !line.starts_with("          "));
        assert_eq!(own.filter(|line| line.chars().count() > 120).collect::<Vec<_>>(), Vec::<&str>::new(), "{command}");
    }
    let alone = tidegate(&[]).output().expect("it runs");
    assert!(stderr(&alone).contains("Commands:"), "{}", stderr(&alone));
}

#[test]
fn the_example_configuration_is_good_where_a_newcomer_runs_it() {
    let output = tidegate(&["check"]).current_dir(Path::new(env!("CARGO_MANIFEST_DIR"))).output().expect("it runs");
    assert_eq!(output.status.code(), Some(0), "{}", stdout(&output));
    assert!(stdout(&output).starts_with("config/tidegate.toml: good: 1 pool"), "{}", stdout(&output));
}
