//! What operators get wrong at three in the morning: names, meters, prefixes, files. Each is told where they look next.

use std::process::Stdio;

use serde_json::{Value, json};
use tidegate::sim::process::Process;

use crate::operators::{CONFIG, Office, POOL, Said};
use crate::world::{PATIENCE, eventually, listening, tidegate};

const OVERRIDES: &str = "/tidegate/v1/overrides/openai-gpt4o";

impl Office {
    /// Puts a record with nothing but etcdctl, and waits for the leader's word on it.
    async fn put_by_hand(&self, target: &str, record: &str) -> Value {
        let key = format!("{OVERRIDES}/{target}");
        self.etcdctl(&["put", &key, record]);
        eventually("the leader speaks of it", async || {
            let list = self.json(&["override", "list", POOL]);
            let found = list.as_array()?.iter().find(|one| one["target"] == *target && one["status"] != "unanswered");
            found.cloned()
        })
        .await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_override_that_reaches_nobody_is_accepted_with_a_warning_wherever_it_is_shown() {
    let office = Office::led().await;
    let typo = office.put_by_hand("acmee", r#"{"scale":0.5}"#).await;
    let warning = "acmee is no declared tenant, so only a block reaches it; did you mean acme?";
    assert_eq!(
        (&typo["status"], &typo["warning"], &typo["error"]),
        (&json!("accepted"), &json!(warning), &Value::Null)
    );
    let hour = office.put_by_hand("acme", r#"{"ceiling":{"requests/hour":60}}"#).await;
    assert_eq!(hour["warning"], "the pool has no meter requests/hour; did you mean requests/minute?");
    let block = office.put_by_hand("initech", r#"{"block":true}"#).await;
    assert_eq!((&block["status"], &block["warning"]), (&json!("accepted"), &Value::Null));
    let status = office.json(&["status"]);
    let warned = format!("the override of {POOL} acmee: {warning}");
    assert!(status["warnings"].as_array().expect("a list").contains(&json!(warned)), "{status}");
    let row = office.run(&["override", "list"]);
    assert!(row.out.contains(&format!("accepted: {warning}")), "{row:?}");
    // Put by the command, it is warned of once.
    let said = office.run(&["override", "set", POOL, "acme", "--ceiling", "requests/hour=9", "--reason", "r"]);
    assert_eq!((said.code, said.err.matches("warning: ").count()), (0, 1), "{said:?}");
    let said = office.run(&["override", "set", POOL, "acmee", "--scale", "0.4", "--reason", "r"]);
    assert_eq!((said.code, said.err.matches("warning: ").count()), (0, 1), "{said:?}");
    // Who declares the tenant settles it.
    let policy = json!({ "dialect": "openai", "capacity": { "requests/minute": 600 }, "tenants": { "acmee": {} } });
    office.etcdctl(&["put", "/tidegate/v1/policy/openai-gpt4o", &policy.to_string()]);
    eventually("it is judged again", async || {
        let list = office.json(&["override", "list", POOL]);
        list.as_array()?.iter().find(|one| one["target"] == "acmee" && one["warning"].is_null()).map(drop)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_malformed_is_told_at_its_tenant_and_what_holds_instead() {
    let office = Office::led().await;
    let told = |office: &Office| office.json(&["limits", "get", POOL, "acme"])["tenants"][0]["overrides"].clone();
    let never_good = office.put_by_hand("acme", r#"{"scale":11}"#).await;
    assert_eq!((&never_good["status"], &never_good["applied"]), (&json!("rejected"), &Value::Null));
    let rejected = "acme: rejected: not valid: scale is 11: expected 0 to 10";
    assert_eq!(told(&office), json!([rejected]));
    office.put_by_hand("acme", r#"{"scale":0.5,"by":"mori"}"#).await;
    assert_eq!(told(&office), json!(["acme: scale 0.5, by mori"]));
    office.put_by_hand("acme", r#"{"scale":11}"#).await;
    assert_eq!(told(&office), json!([rejected, "acme: scale 0.5, by mori"]));
    let list = office.run(&["override", "list"]);
    assert!(list.out.contains("rejected: not valid: scale is 11: expected 0 to 10; in force: scale 0.5"), "{list:?}");
    let over = office.run(&["override", "clear", POOL, "acme", "--reason", "r"]);
    assert!(over.out.contains("was  a record that is not well formed; in force: scale 0.5, by mori"), "{over:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blocked_tenant_that_nobody_declared_is_shown_as_blocked() {
    let office = Office::led().await;
    office.put_by_hand("initech", r#"{"block":true,"by":"mori"}"#).await;
    let told = office.json(&["limits", "get", POOL, "initech", "--effective"]);
    let tenant = &told["tenants"][0];
    assert_eq!((&tenant["tenant"], &tenant["effective"]["blocked"]), (&json!("initech"), &json!(true)));
    assert_eq!(tenant["overrides"], json!(["initech: block, by mori"]));
    assert_eq!(told["warnings"], json!(["initech has no grant in openai-gpt4o: it shares @default's"]));
    let said = office.run(&["limits", "get", POOL, "initech", "--effective"]);
    let row = said.out.lines().nth(1).expect("a row");
    assert!(row.starts_with("initech ") && row.contains(" blocked "), "{said:?}");
    // Another one has what undeclared tenants have.
    let told = office.json(&["limits", "get", POOL, "hooli", "--effective"]);
    let effective = &told["tenants"][0]["effective"];
    assert_eq!(effective["blocked"], false);
    assert!(effective["meters"]["requests/minute"]["rate"].as_f64() > Some(0.0), "{told}");

    let told = office.json(&["explain", POOL, "initech"]);
    let now = &told["now"]["requests/minute"];
    assert_eq!((&now["effective"]["rate"], &now["by"]), (&json!(0.0), &json!("override")));
    assert_eq!(told["overrides"]["initech"]["block"], true);
    // One that reaches nobody is named, and changes nothing.
    office.put_by_hand("hooli", r#"{"scale":0.5}"#).await;
    let now = &office.json(&["explain", POOL, "hooli"])["now"]["requests/minute"];
    assert_eq!((&now["effective"], &now["by"]), (&now["base"], &json!("law")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_of_the_whole_pool_and_what_others_take_are_explained_at_each_tenant() {
    let office = Office::led().await;
    let put = |args: &[&str]| office.json(&[&["override", "set", POOL][..], args, &["--reason", "r"]].concat());
    put(&["@capacity", "--scale", "0.5"]);
    put(&["globex", "--set", "requests/minute=200"]);
    let told = office.json(&["explain", POOL, "acme"]);
    let now = &told["now"]["requests/minute"];
    let rate = |of: &Value| of["rate"].as_f64().expect("a rate");
    assert!((rate(&now["effective"]) / rate(&now["base"]) - 0.5).abs() < 1e-9, "{now}");
    assert_eq!(now["by"], "override");
    assert_eq!(told["overrides"].as_object().expect("a table").keys().collect::<Vec<_>>(), ["@capacity"]);
    assert_eq!(told["elsewhere"]["globex"]["set"]["requests/minute"], 200.0);
    let said = office.run(&["explain", POOL, "acme"]);
    assert!(said.out.contains("\ntaken out before   globex: set requests/minute 200, by mori: r\n"), "{said:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_prefix_is_no_outage() {
    let office = Office::led().await;
    let elsewhere = ["--prefix", "/tidegat/v1"];
    let said = office.run(&[&["limits", "get", POOL][..], &elsewhere].concat());
    let hint = "no pool has grants under /tidegat/v1: is it the right --prefix?";
    assert!(said.code == 1 && said.err.ends_with(&format!("{hint}\n")), "{said:?}");
    let set = ["override", "set", POOL, "acme", "--block", "--reason", "r"];
    let said = office.run(&[&set[..], &elsewhere].concat());
    assert!(said.err.contains("nobody has granted anything under /tidegat/v1: is it the right --prefix?"), "{said:?}");
    assert!(said.out.ends_with("written; no leader answers, and it reaches nobody as far as is known\n"), "{said:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nothing_is_enforced_the_limits_say_so() {
    let office = Office::led().await;
    let policy = json!({ "dialect": "openai", "capacity": { "requests/minute": 600 }, "mode": "observe" });
    office.etcdctl(&["put", "/tidegate/v1/policy/openai-gpt4o", &policy.to_string()]);
    eventually("members hear of it", async || {
        let said = office.run(&["limits", "get", POOL, "--effective"]);
        said.out.contains("\nmode      observe: none of it is enforced\n").then_some(())
    })
    .await;
    assert_eq!(office.json(&["limits", "get", POOL])["mode"], "observe");
    let explained = office.run(&["explain", POOL, "@default"]);
    assert!(explained.out.contains("\nmode observe: none of it is enforced\n"), "{explained:?}");
    // An operator who blocks in need must hear that nothing is blocked.
    let blocked = office.run(&["override", "set", POOL, "@default", "--block", "--reason", "leak"]);
    let warning = "warning: the pool's mode is observe: members enforce none of its limits, nor this";
    assert!(blocked.err.contains(warning), "{blocked:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_whose_old_key_still_stands_sends_nobody_to_itself() {
    let office = Office::empty().await;
    let url = "http://127.0.0.1:9";
    let leader = |url: &str| json!({ "name": "north", "report_url": url }).to_string();
    office.etcdctl(&["put", "/tidegate/v1/leader", &leader(url)]);
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("t.toml");
    let config = CONFIG.replace("http://127.0.0.1:1", office.etcd.endpoint());
    let listen = "listen = \"127.0.0.1:0\"\n";
    let config = config.replace(listen, &format!("{listen}advertise_url = \"{url}\"\n"));
    std::fs::write(&file, config).expect("written");
    let mut command = tidegate(&["run", "--config"]);
    command.arg(&file);
    let mut controller = Process::spawn("controller", command, None).expect("it starts");
    let at = listening(&mut controller).await;
    let said = |line: &str| line.contains("the leader's key is of an earlier term of this controller");
    controller.wait_for_line(said, PATIENCE).await.expect("it stands by");
    let http = reqwest::Client::builder().no_proxy().build().expect("an HTTP client");
    let answer = http.get(format!("{at}/v1/status")).send().await.expect("it answers");
    assert_eq!(answer.status().as_u16(), 503);
}

#[test]
fn check_reads_the_files_that_a_configuration_names() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("t.toml");
    let tls = "[controller.tls]\ncert_file = \"no/cert.pem\"\nkey_file = \"no/key.pem\"\n[etcd]\nuser = \"u\"\npassword_file = \"no/word\"\n";
    std::fs::write(&file, CONFIG.replace("[etcd]\n", tls)).expect("written");
    let check = |args: &[&str]| {
        let mut command = tidegate(args);
        Said::of(&command.arg(&file).stdin(Stdio::null()).output().expect("it runs"))
    };
    let said = check(&["check"]);
    let lines: Vec<&str> = said.out.lines().collect();
    assert_eq!((said.code, lines.len()), (0, 3), "{said:?}");
    assert!(lines[0].contains("warning: controller.tls: ") && lines[0].contains("no/cert.pem"), "{said:?}");
    assert!(lines[1].contains("warning: etcd: etcd.password_file: no/word"), "{said:?}");
    let told: Value = serde_json::from_str(&check(&["check", "--json"]).out).expect("JSON");
    assert_eq!((&told[0]["severity"], &told[0]["key"]), (&json!("warning"), &json!("controller.tls")));
}
