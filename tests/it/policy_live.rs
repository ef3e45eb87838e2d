//! Policy in a real etcd: operators put it with etcdctl, a running controller follows, and running members with it.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Value, json};
use tidegate::client::{Client, ClientParams, MemberState, PoolParams};
use tidegate::config::Config;
use tidegate::controller::Controller;
use tidegate::limiter::Limits;
use tidegate::plan::keyspace::{Key, Keyspace};
use tidegate::plan::{Mode, PolicyStatus};
use tidegate::provider::Dialect;
use tidegate::quota::{Grantee, Meter, PoolId};
use tidegate::sim::Etcd;
use tidegate::store::{
    EtcdStore, LeaseId, Listing, MemoryStore, Outcome, Select, Source, Store, StoreError, Txn, Watch,
};
use tidegate::telemetry::{Metric, Telemetry};

use super::by_hand::{grantee, tenant};
use super::world::eventually;

const CONFIG: &str = r#"
[controller]
name = "north"
listen = "127.0.0.1:0"
[pools.main]
dialect = "openai"
capacity = { "requests/minute" = 600 }
[pools.main.tenants.acme]
"#;

/// An etcd and one member of the pools `main` and `extra`.
struct Stage {
    etcd: Etcd,
    client: Client,
    telemetry: Arc<Telemetry>,
}

impl Stage {
    async fn open() -> Self {
        let etcd = Etcd::start().await.expect("etcd starts");
        let store = Arc::new(EtcdStore::connect(&[etcd.endpoint().to_owned()]).await.expect("a store"));
        let pools = ["main", "extra"].map(|id| PoolParams::new(id.parse().expect("valid"), Dialect::OpenAi));
        let telemetry = Arc::new(Telemetry::new());
        let client = Client::start(ClientParams::new(pools.into()), store, telemetry.clone()).await;
        Self { etcd, client, telemetry }
    }

    async fn controller(&self) -> Controller {
        let config = Config::parse("t.toml", CONFIG).expect("good");
        let store = Arc::new(EtcdStore::connect(&[self.etcd.endpoint().to_owned()]).await.expect("a store"));
        Controller::start(config.controller, store, self.telemetry.clone()).await.expect("it starts")
    }

    fn etcdctl(&self, args: &[&str]) -> String {
        let output = self.etcd.etcdctl().expect("etcdctl is there").args(args).output().expect("it runs");
        assert!(output.status.success(), "etcdctl {args:?}: {output:?}");
        String::from_utf8(output.stdout).expect("text")
    }

    fn put(&self, pool: &str, policy: &str) {
        self.etcdctl(&["put", &format!("/tidegate/v1/policy/{pool}"), policy]);
    }

    fn delete(&self, pool: &str) {
        self.etcdctl(&["del", &format!("/tidegate/v1/policy/{pool}")]);
    }

    /// What the leader says of the record as it stands now.
    async fn verdict(&self, pool: &str) -> PolicyStatus {
        let revision = |text: &str| -> u64 {
            let found: Value = serde_json::from_str(text).expect("JSON");
            found["kvs"][0]["mod_revision"].as_u64().expect("it stands")
        };
        let stands = revision(&self.etcdctl(&["get", "-w", "json", &format!("/tidegate/v1/policy/{pool}")]));
        eventually("the leader speaks of the policy", async || {
            let key = format!("/tidegate/v1/policy-status/{pool}");
            let status: PolicyStatus =
                serde_json::from_str(&self.etcdctl(&["get", "--print-value-only", &key])).ok()?;
            (status.revision == stands).then_some(status)
        })
        .await
    }

    /// What the member enforces for a tenant of its own.
    fn limits(&self, pool: &str, name: &str) -> Option<Limits> {
        self.client.pool(pool).expect("its own").tuning().limits.get(&grantee(name)).cloned()
    }

    fn state(&self, pool: &str) -> MemberState {
        self.client.pool(pool).expect("its own").tuning().state
    }

    fn rejected(&self) -> f64 {
        let of = |sample: &tidegate::telemetry::Sample| sample.metric == Metric::PoliciesRejected;
        self.telemetry.snapshot().iter().filter(|sample| of(sample)).map(|sample| sample.value.number()).sum()
    }

    async fn member(&self, what: &str, check: impl Fn() -> bool) {
        eventually(what, async || check().then_some(())).await;
    }
}

fn policy(tenants: &[&str]) -> String {
    let tenants: serde_json::Map<String, Value> = tenants.iter().map(|name| ((*name).to_owned(), json!({}))).collect();
    json!({ "dialect": "openai", "capacity": { "requests/minute": 600 }, "tenants": tenants }).to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn pools_and_tenants_come_and_go_while_controller_and_members_run() {
    let stage = Stage::open().await;
    let north = stage.controller().await;
    stage.member("the file's policy holds", || stage.limits("main", "acme").is_some()).await;
    assert_eq!((stage.limits("main", "globex"), stage.state("extra")), (None, MemberState::Bootstrap));

    stage.put("main", &policy(&["acme", "globex"]));
    assert!(stage.verdict("main").await.accepted);
    stage.member("a tenant comes", || stage.limits("main", "globex").is_some()).await;

    // A pool that the file has not; gone, and there again within one term.
    for _ in 0..2 {
        stage.put("extra", &policy(&["acme"]));
        stage.member("a pool comes", || stage.state("extra") == MemberState::Active).await;
        let mode = || stage.client.status().pools["extra"].mode;
        stage.put("extra", &policy(&["acme"]).replacen('{', "{\"mode\":\"off\",", 1));
        stage.member("its limits are off", || mode() == Mode::Off).await;
        assert!(stage.limits("extra", "acme").is_some());
        // What the next leader would be told is not written every second.
        stage.etcdctl(&["put", "/tidegate/v1/state/extra", "{}"]);
        stage.delete("extra");
        stage.member("a pool goes", || stage.state("extra") == MemberState::Bootstrap).await;
        stage.member("a pool that is gone is not open", || mode() == Mode::Enforce).await;
        assert_eq!(stage.limits("extra", "acme"), None, "its tenants are among all others");
        let left = stage.client.pool("extra").expect("its own").tuning();
        let rate = left.limits_of(&tenant("acme")).expect("never open").meters[&Meter::REQUESTS_PER_MINUTE].rate.rate;
        assert_eq!(rate, 10.0, "the bootstrap thresholds hold");
        eventually("nothing of the pool is left", async || {
            let keys = ["limits/extra/", "pulse/extra", "state/extra", "policy-status/extra"];
            let left =
                keys.map(|key| stage.etcdctl(&["get", "--prefix", "--keys-only", &format!("/tidegate/v1/{key}")]));
            left.concat().trim().is_empty().then_some(())
        })
        .await;
    }

    stage.put("main", r#"{"dialect":"openai","capacity":{"requests/minute":"many"}}"#);
    let verdict = stage.verdict("main").await;
    let error = verdict.error.expect("told");
    assert!(
        !verdict.accepted && error.starts_with("pools.main.capacity.\"requests/minute\": found \"many\""),
        "{error}"
    );
    assert_eq!(verdict.applied.map(|applied| applied.to_string()), Some(policy(&["acme", "globex"])));
    assert_eq!(stage.rejected(), 1.0);
    assert!(stage.limits("main", "globex").is_some(), "the last good one holds");

    // The next leader finds a malformed policy, and the last good one in what was said of it.
    let term = || stage.client.pool("main").expect("its own").tuning().stamp.term;
    let norths = term();
    north.stop().await;
    let south = stage.controller().await;
    stage.member("the next leader has pulsed", || term() > norths).await;
    assert_eq!(stage.rejected(), 2.0);
    assert!(stage.limits("main", "globex").is_some(), "the last good one still holds");

    stage.delete("main");
    stage.member("the file's policy holds again", || stage.limits("main", "globex").is_none()).await;
    assert!(stage.limits("main", "acme").is_some());
    south.stop().await;
    stage.client.close().await;
}

/// A store that answers everything but what operators wrote, once a term has begun: the loop's own list.
#[derive(Debug, Clone)]
struct HardOfHearing(MemoryStore);

#[async_trait]
impl Source for HardOfHearing {
    async fn list(&self, selects: &[Select]) -> Result<Listing, StoreError> {
        if selects.contains(&Select::Prefix(Keyspace::default().overrides())) {
            return Err(StoreError::Silent { seconds: 1 });
        }
        self.0.list(selects).await
    }

    async fn watch(&self, selects: &[Select], from_revision: u64) -> Result<Watch, StoreError> {
        self.0.watch(selects, from_revision).await
    }
}

#[async_trait]
impl Store for HardOfHearing {
    async fn commit(&self, txn: Txn) -> Result<Outcome, StoreError> {
        self.0.commit(txn).await
    }

    async fn lease(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.0.lease(ttl).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.0.keep_alive(lease).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.0.revoke(lease).await
    }
}

/// The pulse does not wait for what operators wrote later; but it is never by the file where the store has a policy.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_leader_plans_by_the_stores_policy_from_its_first_pulse_on() {
    let (store, keys) = (MemoryStore::new(), Keyspace::default());
    let main: PoolId = "main".parse().expect("valid");
    let record = policy(&["globex"]).into_bytes();
    store.commit(Txn::put(keys.key(&Key::Policy(main.clone())), record)).await.expect("memory");
    let config = Config::parse("t.toml", CONFIG).expect("good");
    let deaf = Arc::new(HardOfHearing(store.clone()));
    let controller = Controller::start(config.controller, deaf, Arc::new(Telemetry::new())).await.expect("it starts");
    let granted = eventually("it grants", async || {
        let entries = store.list(&[Select::Prefix(keys.limits_of(&main))]).await.expect("memory").entries;
        (!entries.is_empty()).then(|| entries.into_iter().map(|entry| entry.key).collect::<Vec<_>>())
    })
    .await;
    let expected = [Grantee::Default, grantee("globex")].map(|grantee| keys.key(&Key::Limits(main.clone(), grantee)));
    assert_eq!(granted, expected);
    controller.stop().await;
}
