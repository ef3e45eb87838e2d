//! An etcd with authentication on: the README's three roles, each with a store of its own, and what a token's end does.

use std::process::Command;
use std::sync::Arc;

use serde_json::Value;
use tidegate::client::{Client, ClientParams, MemberState, Pool, PoolParams};
use tidegate::config::Config;
use tidegate::controller::Controller;
use tidegate::plan::Stamp;
use tidegate::plan::keyspace::{Key, Keyspace};
use tidegate::provider::Dialect;
use tidegate::sim::Etcd;
use tidegate::store::{EtcdAccess, EtcdStore, EtcdUser, Select, Source, Store, StoreError, Txn};
use tidegate::telemetry::Telemetry;

use super::by_hand::{grantee, target};
use super::world::{eventually, tidegate};

const README: &str = include_str!("../../README.md");

/// The commands that README has for pasting, without their program.
fn pasted() -> impl Iterator<Item = Vec<&'static str>> {
    let section = README.split("\n## ").find(|section| section.starts_with("An etcd with users")).expect("a section");
    let lines = section.lines().filter_map(|line| line.strip_prefix("etcdctl "));
    lines.map(|line| line.split_whitespace().collect())
}

async fn guarded() -> Etcd {
    let etcd = Etcd::start().await.expect("etcd starts");
    let mut commands = 0;
    for arguments in pasted() {
        let output = etcd.etcdctl().expect("it is there").args(&arguments).output().expect("it runs");
        assert!(output.status.success(), "etcdctl {arguments:?}: {output:?}");
        commands += 1;
    }
    assert!(commands > 20, "{commands} commands");
    etcd
}

fn user(role: &str, password: &str) -> EtcdUser {
    EtcdUser { name: format!("tidegate-{role}"), password: password.to_owned() }
}

async fn store(etcd: &Etcd, user: Option<EtcdUser>) -> Arc<EtcdStore> {
    Arc::new(
        EtcdStore::connect_with(&[etcd.endpoint().to_owned()], EtcdAccess { user, tls: None })
            .await
            .expect("an endpoint"),
    )
}

/// A controller as its role, its password in a file as its configuration has it.
async fn controller(etcd: &Etcd) -> Controller {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), "secret-c\n").expect("written");
    let text = format!(
        "[controller]\nlisten = \"127.0.0.1:0\"\n[etcd]\nendpoints = [\"{}\"]\nuser = \"tidegate-controller\"\n\
         password_file = \"{}\"\n[pools.pool]\ndialect = \"openai\"\ncapacity = {{ \"requests/minute\" = 600 }}\n\
         [pools.pool.tenants.acme]\n",
        etcd.endpoint(),
        file.path().display()
    );
    let config = Config::parse("t.toml", &text).expect("good");
    let (name, password) = config.etcd.expect("named").sign_in().expect("readable").expect("a user");
    let store = store(etcd, Some(EtcdUser { name, password })).await;
    Controller::start(config.controller, store, Arc::new(Telemetry::new())).await.expect("it starts")
}

fn override_set(etcd: &Etcd, password: &str, action: &[&str]) -> Command {
    let mut command = tidegate(&["override", "set", "pool", "acme", "--reason", "r", "--by", "mori", "--json"]);
    command.args(action).args(["--etcd", etcd.endpoint(), "--etcd-user", "tidegate-operator"]);
    command.env("TIDEGATE_ETCD_PASSWORD", password);
    command
}

/// Waits for a pulse after `seen`.
async fn active(pool: &Pool, seen: Stamp) {
    eventually("the member hears a leader", async || {
        let tuning = pool.tuning();
        let granted = tuning.state == MemberState::Active && tuning.limits.contains_key(&grantee("acme"));
        (granted && tuning.stamp > seen).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_roles_are_enough_and_whoever_is_signed_in_stays_so() {
    let mut etcd = guarded().await;
    let leading = controller(&etcd).await;
    let members = store(&etcd, Some(user("member", "secret-m"))).await;
    let params = ClientParams::new(vec![PoolParams::new("pool".parse().expect("valid"), Dialect::OpenAi)]);
    let client = Client::start(params, members.clone(), Arc::new(Telemetry::new())).await;
    let pool = client.pool("pool").expect("named");
    active(&pool, Stamp::default()).await;

    // The operator's command; the leader judges it, the member enforces it.
    let output = override_set(&etcd, "secret-o", &["--block"]).output().expect("it runs");
    let said: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    assert_eq!(said["status"], "accepted", "{output:?}");
    let blocked = || pool.tuning().limits.get(&grantee("acme")).is_some_and(|limits| limits.blocked);
    eventually("a block is in force", async || blocked().then_some(())).await;
    let status = tidegate(&["status", "--json", "--etcd", etcd.endpoint(), "--etcd-user", "tidegate-operator"])
        .env("TIDEGATE_ETCD_PASSWORD", "secret-o")
        .output()
        .expect("it runs");
    let told: Value = serde_json::from_slice(&status.stdout).unwrap_or_else(|_| panic!("{status:?}"));
    assert_eq!((status.status.code(), told["members"][0]["instance"].as_str()), (Some(0), Some(client.instance())));

    // Tokens that etcd gives die with it. Nobody is told, and everybody goes on.
    etcd.restart().await.expect("it comes back");
    active(&pool, pool.tuning().stamp).await;
    // So do those of an older list of roles.
    let root = ["--user", "root:secret-r", "role", "add", "another"];
    assert!(etcd.etcdctl().expect("there").args(root).status().expect("it runs").success());
    let key = Keyspace::default().key(&Key::Member("by-hand".to_owned()));
    members.commit(Txn::put(key, b"{}".to_vec())).await.expect("signed in again");
    client.close().await;
    leading.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_role_writes_what_is_not_its_own() {
    let etcd = guarded().await;
    let keys = Keyspace::default();
    let pool = || "pool".parse().expect("valid");
    let all = [
        Key::Leader,
        Key::Limits(pool(), grantee("acme")),
        Key::Pulse(pool()),
        Key::Override(pool(), target("acme")),
        Key::OverrideStatus(pool(), target("acme")),
        Key::Policy(pool()),
        Key::PolicyStatus(pool()),
        Key::Member("m".to_owned()),
        Key::Audit { at: tidegate::clock::UnixMillis(1), id: 1 },
    ];
    let own = |role: &str, key: &Key| match role {
        "member" => matches!(key, Key::Member(_)),
        "operator" => matches!(key, Key::Override(..) | Key::Policy(_) | Key::Audit { .. }),
        _ => true,
    };
    for (role, password) in [("member", "secret-m"), ("operator", "secret-o"), ("controller", "secret-c")] {
        let store = store(&etcd, Some(user(role, password))).await;
        for key in &all {
            let put = store.commit(Txn::put(keys.key(key), b"{}".to_vec())).await;
            match put {
                Ok(_) => assert!(own(role, key), "{role} writes {key:?}"),
                Err(error) => {
                    assert_eq!(error, StoreError::Rejected("etcdserver: permission denied".to_owned()));
                    assert!(!own(role, key), "{role} cannot write {key:?}");
                }
            }
        }
        let beyond = store.list(&[Select::Prefix("/other/".to_owned())]).await;
        assert!(matches!(beyond, Err(StoreError::Rejected(_))), "{role} reads {beyond:?}");
    }
    let wrong = store(&etcd, Some(user("member", "secret"))).await.list(&[Select::Key(keys.key(&Key::Leader))]).await;
    let refused = "etcdserver: authentication failed, invalid user ID or password";
    assert_eq!(wrong, Err(StoreError::Rejected(refused.to_owned())));
    let nobody = store(&etcd, None).await.list(&[Select::Key(keys.key(&Key::Leader))]).await;
    assert_eq!(nobody, Err(StoreError::Rejected("etcdserver: user name is empty".to_owned())));
    let shown = format!("{:?}", user("member", "secret-m"));
    assert!(!shown.contains("secret"), "{shown}");
}
