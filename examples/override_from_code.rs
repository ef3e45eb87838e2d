//! An operator's override, written from code: what `etcdctl put /tidegate/v1/overrides/…` does, with the crate's own
//! types. A member obeys it within milliseconds, with no controller running too.
//!
//! ```sh
//! tidegate emulate                               # in one terminal: a provider, at http://127.0.0.1:8787
//! etcd                                           # in another, at http://127.0.0.1:2379
//! cargo run --example override_from_code         # in a third
//! ```
//!
//! `TIDEGATE_PROVIDER` and `TIDEGATE_ETCD` name others.

use std::sync::Arc;
use std::time::Duration;

use tidegate::client::{Client, ClientParams, Limited, Pool, PoolParams};
use tidegate::clock::{Clock, SystemClock};
use tidegate::plan::keyspace::{Key, Keyspace};
use tidegate::plan::{Action, Override, Target};
use tidegate::provider::Dialect;
use tidegate::quota::{Meter, PoolId, TenantId};
use tidegate::store::{EtcdStore, Store, Txn};
use tidegate::telemetry::Telemetry;

/// Etcd and the member answer within milliseconds; who waits longer waits in vain.
const PATIENCE: Duration = Duration::from_secs(10);

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address = |name: &str, default: &str| std::env::var(name).unwrap_or_else(|_| default.to_owned());
    let provider = address("TIDEGATE_PROVIDER", "http://127.0.0.1:8787");
    let store = Arc::new(EtcdStore::connect(&[address("TIDEGATE_ETCD", "http://127.0.0.1:2379")]).await?);

    // A member, as it is in any service: without a controller, 10 requests a minute.
    let id: PoolId = "openai-gpt4o".parse()?;
    let mut params = ClientParams::new(vec![PoolParams::new(id.clone(), Dialect::OpenAi)]);
    // Keys of its own: what this writes must not reach services that use the same etcd.
    let keys = Keyspace::new("/tidegate-example/v1")?;
    params.keyspace = keys.clone();
    let client = Client::start(params, store.clone(), Arc::new(Telemetry::new())).await;
    let pool = client.pool("openai-gpt4o")?;
    let acme: TenantId = "acme".parse()?;
    let before = enforced(&pool, &acme);
    println!("before:  {before} requests/minute");

    // For each tenant of the pool; `acme.into()` would be for this one, once a controller has granted it something.
    let target = Target::Every;
    let action = Action::Set([(Meter::REQUESTS_PER_MINUTE, 120.0.into())].into());
    let in_five_minutes = SystemClock::new().wall() + Duration::from_secs(300);
    let record = Override::new(action).by("mori").because("incident 42").until(in_five_minutes);
    let key = keys.key(&Key::Override(id, target.clone()));
    store.commit(Txn::put(key.clone(), record.to_json(&target)?)).await?;
    until("the override is obeyed", || enforced(&pool, &acme) != before).await?;
    println!("obeyed:  {} requests/minute", enforced(&pool, &acme));

    // Two calls in half a second; before, the second one would have waited for 6.
    let http = reqwest::Client::builder().no_proxy().build()?;
    let http = reqwest_middleware::ClientBuilder::new(http).with(Limited::new(pool.clone(), acme.clone())).build();
    for _ in 0..2 {
        let call = http.post(format!("{provider}/v1/chat/completions")).header("content-type", "application/json");
        let body = r#"{"model":"m","user":"acme","messages":[{"role":"user","content":"hello"}]}"#;
        println!("called:  {}", call.body(body).send().await?.status());
    }

    store.commit(Txn::delete(key)).await?;
    until("the override is lifted", || enforced(&pool, &acme) == before).await?;
    println!("removed: {} requests/minute", enforced(&pool, &acme));
    client.close().await;
    Ok(())
}

/// What this member lets a tenant send; a controller that leads may move it at any time.
fn enforced(pool: &Pool, tenant: &TenantId) -> f64 {
    let tuning = pool.tuning();
    let limit = tuning.limits_of(tenant).and_then(|limits| limits.meters.get(&Meter::REQUESTS_PER_MINUTE));
    limit.map_or(0.0, |limit| limit.rate.rate)
}

async fn until(what: &str, condition: impl Fn() -> bool) -> Result<(), String> {
    let look = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, look).await.map_err(|_| format!("{what}: not within {PATIENCE:?}"))
}
