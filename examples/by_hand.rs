//! Without any middleware: admit, call, observe, conclude, settle; and what to do on each refusal. This is what to do
//! around a client that is not reqwest's, or in a worker that would rather do something else than wait.
//!
//! ```sh
//! tidegate emulate                      # in one terminal: a provider, at http://127.0.0.1:8787
//! cargo run --example by_hand           # in another
//! ```
//!
//! `TIDEGATE_PROVIDER` names another provider.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tidegate::client::{Client, ClientParams, Permit, Pool, PoolParams, Refusal, Usage};
use tidegate::plan::{Rate, Thresholds};
use tidegate::provider::{Dialect, Head};
use tidegate::quota::{Meter, TenantId};
use tidegate::store::MemoryStore;
use tidegate::telemetry::Telemetry;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let provider = std::env::var("TIDEGATE_PROVIDER").unwrap_or_else(|_| "http://127.0.0.1:8787".to_owned());

    // What holds until a controller says otherwise: one request a second, and none of more than 1,000 tokens, ever.
    let requests = (Meter::REQUESTS_PER_MINUTE, Rate { rate: 60.0, burst: 1.0 });
    let tokens = (Meter::TOKENS_PER_MINUTE, Rate { rate: 6_000.0, burst: 1_000.0 });
    let bootstrap = Thresholds { rates: [requests, tokens].into(), concurrency: None };
    let params = PoolParams { bootstrap, ..PoolParams::new("openai-gpt4o".parse()?, Dialect::OpenAi) };
    let params = ClientParams::new(vec![params]);
    let client = Client::start(params, Arc::new(MemoryStore::new()), Arc::new(Telemetry::new())).await;
    let pool = client.pool("openai-gpt4o")?;
    let acme: TenantId = "acme".parse()?;

    // The emulator is on this machine: no proxy on the way to it.
    let http = reqwest::Client::builder().no_proxy().build()?;
    let call = http.post(format!("{provider}/v1/chat/completions"));

    let prompts = ["one".to_owned(), "two".to_owned(), "far too long ".repeat(1_000), "three".to_owned()];
    let mut queue = VecDeque::from(prompts);
    while let Some(prompt) = queue.pop_front() {
        let name: String = prompt.chars().take(12).collect();
        let body = json!({ "model": "m", "user": "acme", "messages": [{ "role": "user", "content": prompt }] });
        let body = body.to_string();
        // What the provider will charge at once, as far as one can tell. `Cost::request(input, output)` is your own count.
        let dialect = pool.dialect();
        let cost = dialect.estimate(body.len(), dialect.max_output_tokens(body.as_bytes()));
        // Zero: an answer now, whatever it is. `admit` would wait for as long as the client's `max_wait`.
        match pool.admit_within(&acme, cost, Duration::ZERO).await {
            Ok(permit) => println!("{name}: {}", ask(&pool, permit, call.try_clone(), body).await?),
            // Its turn will come: do something else until then.
            Err(Refusal::WaitUntil { after, why }) => {
                println!("{name}: back into the queue, {why}");
                queue.push_back(prompt);
                tokio::time::sleep(after).await;
            }
            // Its turn will never come: no use in asking again.
            Err(Refusal::Never(never)) => println!("{name}: a cached answer instead; it {never}"),
        }
    }
    client.close().await;
    Ok(())
}

/// Sends one request; the permit learns from each way it can end.
async fn ask(
    pool: &Pool,
    mut permit: Permit,
    call: Option<reqwest::RequestBuilder>,
    body: String,
) -> Result<String, Box<dyn std::error::Error>> {
    let call = call.ok_or("a request without a body can be cloned")?.header("content-type", "application/json");
    let answer = match call.body(body).send().await {
        Ok(answer) => answer,
        Err(error) => {
            // No answer says nothing of the provider's limits.
            permit.failed();
            return Err(error.into());
        }
    };
    let status = answer.status();
    let observation = permit.observe(&Head { status: status.as_u16(), headers: answer.headers() });
    if !status.is_success() {
        // What a refusal means stands in its body: a rate limit holds the next request, a lack of credit does not.
        let body = answer.bytes().await?;
        permit.conclude(&pool.dialect().refine(observation, &body));
        return Ok(format!("{status}"));
    }
    // At once: a streamed answer may go on for minutes.
    permit.conclude(&observation);
    let answer: Value = answer.json().await?;
    let tokens = |name: &str| answer["usage"][name].as_u64().unwrap_or_default();
    let usage = Usage { input_tokens: tokens("prompt_tokens"), output_tokens: tokens("completion_tokens") };
    permit.settle(usage);
    Ok(format!("{status}, {} tokens in, {} out", usage.input_tokens, usage.output_tokens))
}
