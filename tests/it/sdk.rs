//! The providers' own client libraries against the emulator: what they accept is what services will see.
//!
//! They come from the Python package index, so this is not for every run: `make test-full`.

use std::path::Path;
use std::process::Command;

use crate::world::{listening, tidegate};
use tidegate::sim::process::Process;

const SCRIPT: &str = r#"
import sys
import anthropic, openai

openai_url, anthropic_url, full_url = sys.argv[1:]
ask = [{"role": "user", "content": "How high does the tide run tonight?"}]

client = openai.OpenAI(base_url=openai_url + "/v1", api_key="none", max_retries=0)
whole = client.chat.completions.create(model="m", messages=ask, max_tokens=20)
assert whole.choices[0].message.content and whole.usage.completion_tokens > 0, whole
usage, text = None, ""
options = {"include_usage": True}
for chunk in client.chat.completions.create(model="m", messages=ask, max_tokens=20, stream=True, stream_options=options):
    text += "".join(choice.delta.content or "" for choice in chunk.choices)
    usage = chunk.usage or usage
assert text and usage.completion_tokens > 0, (text, usage)
print("openai answers")

client = anthropic.Anthropic(base_url=anthropic_url, api_key="none", max_retries=0)
whole = client.messages.create(model="m", messages=ask, max_tokens=20)
assert whole.content[0].text and whole.usage.output_tokens > 0, whole
with client.messages.stream(model="m", messages=ask, max_tokens=20) as stream:
    text = "".join(stream.text_stream)
    final = stream.get_final_message()
assert text and final.usage.output_tokens > 0 and final.stop_reason, final
print("anthropic answers")

client = openai.OpenAI(base_url=full_url + "/v1", api_key="none", max_retries=0)
try:
    for _ in range(3):
        client.chat.completions.create(model="m", messages=ask)
    sys.exit("expected a refusal")
except openai.RateLimitError as error:
    assert error.response.headers["retry-after-ms"], error.response.headers
    assert error.type == "requests", error
print("openai refuses")
"#;

fn emulator(args: &[&str]) -> Process {
    let mut command = tidegate(&["emulate", "--listen", "127.0.0.1:0", "--ttft-ms", "1", "--ms-per-token", "1"]);
    command.args(args);
    Process::spawn("emulator", command, None).expect("the emulator starts")
}

/// A Python of its own with the libraries in it.
fn python(folder: &Path) -> std::path::PathBuf {
    let run = |command: &mut Command, what: &str| {
        let output = command.output().unwrap_or_else(|error| panic!("{what}: {error}; apt-get install python3-venv"));
        assert!(output.status.success(), "{what}: {}", String::from_utf8_lossy(&output.stderr));
    };
    run(Command::new("python3").args(["-m", "venv"]).arg(folder), "python3 -m venv (apt-get install python3-venv)");
    run(Command::new(folder.join("bin/pip")).args(["install", "-q", "openai", "anthropic"]), "pip install");
    folder.join("bin/python")
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "installs client libraries from a package index: make test-full"]
async fn the_providers_own_libraries_are_served_and_refused_as_by_the_providers() {
    let folder = tempfile::tempdir().expect("a folder");
    let python = python(folder.path());
    let (mut openai, mut anthropic) = (emulator(&[]), emulator(&["--dialect", "anthropic"]));
    let mut full = emulator(&["--requests-per-minute", "1", "--burst-seconds", "1"]);
    let mut urls = Vec::new();
    for emulator in [&mut openai, &mut anthropic, &mut full] {
        urls.push(listening(emulator).await);
    }
    let mut script = Command::new(python);
    // Proxies are for the package index, not for loopback.
    let script = script.args(["-c", SCRIPT]).args(urls).env("NO_PROXY", "127.0.0.1");
    let output = script.output().expect("it runs");
    let (said, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{error}");
    assert_eq!(said.lines().collect::<Vec<_>>(), ["openai answers", "anthropic answers", "openai refuses"]);
}
