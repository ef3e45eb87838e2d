//! The operators' commands, through the binary, against a real etcd and a real controller: what they print, write and
//! how they end.

use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use serde_json::{Value, json};
use tidegate::config::Config;
use tidegate::controller::Controller;
use tidegate::sim::Etcd;
use tidegate::sim::process::Process;
use tidegate::store::EtcdStore;
use tidegate::telemetry::Telemetry;

use crate::world::{PATIENCE, eventually, listening, tidegate};

pub const CONFIG: &str = r#"
[controller]
name = "north"
listen = "127.0.0.1:0"
[etcd]
endpoints = ["http://127.0.0.1:1"]
[pools.openai-gpt4o]
dialect = "openai"
concurrency = 12
capacity = { "requests/minute" = 600, "tokens/minute" = 150000 }
[pools.openai-gpt4o.tenants.acme]
weight = 3
[pools.openai-gpt4o.tenants.globex]
ceiling = { "requests/minute" = 30 }
"#;
pub const POOL: &str = "openai-gpt4o";
const KEY: &str = "/tidegate/v1/overrides/openai-gpt4o/acme";

/// An etcd, and a controller if there is one.
pub struct Office {
    pub etcd: Etcd,
    pub controller: Option<Controller>,
}

impl Office {
    pub async fn empty() -> Self {
        Self { etcd: Etcd::start().await.expect("etcd starts"), controller: None }
    }

    /// With a controller that has granted.
    pub async fn led() -> Self {
        let mut office = Self::empty().await;
        office.lead().await;
        office
    }

    async fn lead(&mut self) {
        let config = Config::parse("t.toml", CONFIG).expect("it is good");
        let store = Arc::new(EtcdStore::connect(&[self.etcd.endpoint().to_owned()]).await.expect("a store"));
        let controller = Controller::start(config.controller, store, Arc::new(Telemetry::new())).await;
        self.controller = Some(controller.expect("it starts"));
        eventually("the controller grants", async || {
            let key = "/tidegate/v1/limits/openai-gpt4o/globex";
            (!self.etcdctl(&["get", "--print-value-only", key]).trim().is_empty()).then_some(())
        })
        .await;
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = tidegate(args);
        for name in ["TIDEGATE_ETCD", "TIDEGATE_PREFIX", "TIDEGATE_LOG"] {
            command.env_remove(name);
        }
        command.args(["--etcd", self.etcd.endpoint()]).env("USER", "mori").stdin(Stdio::null());
        command
    }

    pub fn run(&self, args: &[&str]) -> Said {
        Said::of(&self.command(args).output().expect("it runs"))
    }

    /// What it prints for programs, having ended well.
    pub fn json(&self, args: &[&str]) -> Value {
        let said = self.run(&[args, &["--json"]].concat());
        assert_eq!(said.code, 0, "{args:?}: {said:?}");
        serde_json::from_str(&said.out).expect("JSON and nothing else")
    }

    pub fn etcdctl(&self, args: &[&str]) -> String {
        let output = self.etcd.etcdctl().expect("etcdctl is there").args(args).output().expect("it runs");
        assert!(output.status.success(), "etcdctl {args:?}: {output:?}");
        String::from_utf8(output.stdout).expect("text")
    }

    pub fn record(&self, key: &str) -> Option<Value> {
        let text = self.etcdctl(&["get", "--print-value-only", key]);
        (!text.trim().is_empty()).then(|| serde_json::from_str(&text).expect("a record is JSON"))
    }
}

/// How a command ended.
#[derive(Debug)]
pub struct Said {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Said {
    pub fn of(output: &Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text");
        Self { code: output.status.code().expect("no signal"), out: text(&output.stdout), err: text(&output.stderr) }
    }

    #[track_caller]
    pub fn ended(&self, code: i32, out: &str, err: &str) {
        assert_eq!((self.code, self.out.as_str(), self.err.as_str()), (code, out, err));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_override_is_put_judged_listed_audited_and_cleared() {
    let office = Office::led().await;
    let set = ["override", "set", POOL, "acme"];
    let said = office.run(&[&set[..], &["--set", "requests/minute=60", "--reason", "incident 42"]].concat());
    let first = "set requests/minute 60, by mori: incident 42";
    said.ended(0, &format!("{POOL} acme\n  now  {first}\naccepted by the leader\n"), "");
    let record = json!({ "set": { "requests/minute": 60.0 }, "by": "mori", "reason": "incident 42" });
    assert_eq!(office.record(KEY), Some(record.clone()));

    // One that ends is bound to a lease that outlives it.
    let shown =
        office.json(&[&set[..], &["--scale", "0.5", "--for", "30m", "--reason", "less", "--by", "ops"]].concat());
    assert_eq!((&shown["status"], &shown["before"], &shown["warnings"]), (&json!("accepted"), &record, &json!([])));
    assert!(shown["record"]["expires_at"].is_string(), "{shown}");
    let leases = office.etcdctl(&["lease", "list"]);
    let ttls = leases.lines().skip(1).map(|id| office.etcdctl(&["lease", "timetolive", id, "--keys"]));
    let ttl = ttls.into_iter().find(|ttl| ttl.contains(KEY)).expect("a lease holds it");
    assert!(ttl.contains("granted with TTL(1860s)"), "{ttl}");

    let said = office.run(&["override", "list"]);
    let lines: Vec<&str> = said.out.lines().collect();
    assert_eq!((said.code, lines.len()), (0, 2), "{said:?}");
    assert!(lines[0].starts_with("POOL          TARGET  ACTION     BY   ENDS"), "{said:?}");
    assert!(lines[1].starts_with("openai-gpt4o  acme    scale 0.5  ops  ends in 29m"), "{said:?}");
    assert!(lines[1].ends_with("accepted  less"), "{said:?}");

    let said = office.run(&["override", "clear", POOL, "acme", "--reason", "over"]);
    assert_eq!((said.code, said.out.lines().last()), (0, Some("cleared")), "{said:?}");
    assert_eq!(office.record(KEY), None);
    office.run(&["override", "clear", POOL, "acme", "--reason", "over"]).ended(
        1,
        "",
        "tidegate: openai-gpt4o acme has no override\n",
    );
    office.run(&["override", "list", POOL]).ended(0, "no overrides\n", "");
    assert_eq!(office.json(&["override", "list"]), json!([]));

    let audit = office.json(&["audit", "--since", "1h"]);
    let told: Vec<_> = audit.as_array().expect("a list").iter().map(|a| (&a["what"], &a["by"], &a["reason"])).collect();
    let row = |what: &'static str, by: &'static str, reason: &'static str| (json!(what), json!(by), json!(reason));
    let rows = [
        row("override_set", "mori", "incident 42"),
        row("override_set", "ops", "less"),
        row("override_clear", "mori", "over"),
    ];
    assert_eq!(told, rows.iter().map(|(what, by, reason)| (what, by, reason)).collect::<Vec<_>>());
    assert_eq!((audit[0].get("from"), &audit[1]["from"], audit[2].get("to")), (None, &record, None));
    let table = office.run(&["audit"]);
    assert!(table.out.lines().nth(3).is_some_and(|line| line.contains("override_clear") && line.ends_with("over")));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_override_for_what_is_not_there_warns_with_the_nearest_and_the_leader_rejects_a_pool_it_has_not() {
    let office = Office::led().await;
    let said = office.run(&["override", "set", "openai-gpt40", "acme", "--block", "--reason", "r"]);
    assert_eq!(said.code, 1, "{said:?}");
    assert!(
        said.err.contains("warning: no controller has a pool openai-gpt40; did you mean openai-gpt4o?"),
        "{said:?}"
    );
    assert!(said.err.contains("rejected: no pool openai-gpt40: expected one of openai-gpt4o"), "{said:?}");
    let shown = office.json(&["override", "set", POOL, "acmee", "--scale", "2", "--reason", "r", "--dry-run"]);
    assert_eq!(shown["status"], "dry_run");
    let warning = "acmee has no grant in openai-gpt4o, so only a block reaches it; did you mean acme?";
    assert_eq!(shown["warnings"], json!([warning]));
    assert_eq!(office.record("/tidegate/v1/overrides/openai-gpt4o/acmee"), None);
    // A record that etcdctl wrote badly is listed with what is wrong.
    office.etcdctl(&["put", KEY, r#"{"scale":11}"#]);
    let list = office.json(&["override", "list", POOL]);
    assert_eq!(
        (&list[0]["status"], &list[0]["error"]),
        (&json!("rejected"), &json!("not valid: scale is 11: expected 0 to 10"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_operators_at_once_each_changes_what_it_has_seen_or_nothing() {
    let office = Office::empty().await;
    office.etcdctl(&["put", KEY, r#"{"scale":9}"#]);
    let scales: Vec<String> = (1..=8).map(|n| format!("0.{n}")).collect();
    let set = |scale: &String| {
        let mut command =
            office.command(&["override", "set", POOL, "acme", "--scale", scale, "--reason", "all at once"]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it runs")
    };
    let all: Vec<_> = scales.iter().map(set).collect();
    let said: Vec<Said> = all.into_iter().map(|child| Said::of(&child.wait_with_output().expect("it ends"))).collect();
    for said in said.iter().filter(|said| said.code != 0) {
        assert!(said.err.ends_with("somebody else changed a record just now: look again\n"), "{said:?}");
    }
    // What each says that it replaced was written by another that has said so, and by one alone.
    let audit = office.json(&["audit"]);
    let audit = audit.as_array().expect("a list");
    assert_eq!(audit.len(), said.iter().filter(|said| said.code == 0).count());
    let scale = |side: &str| audit.iter().map(|record| record[side]["scale"].to_string()).collect::<Vec<_>>();
    let (mut from, mut to) = (scale("from"), scale("to"));
    to.push("9".to_owned());
    let last = office.record(KEY).expect("a record")["scale"].to_string();
    to.retain(|scale| *scale != last);
    from.sort();
    to.sort();
    assert_eq!(from, to);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_leader_an_override_is_written_all_the_same() {
    let office = Office::empty().await;
    let said = office.run(&["override", "set", POOL, "*", "--block", "--reason", "key leaked"]);
    assert_eq!(said.code, 0, "{said:?}");
    assert!(said.out.ends_with("written; no leader answers, and it reaches nobody as far as is known\n"), "{said:?}");
    assert!(said.err.contains("no controller has a pool openai-gpt4o"), "{said:?}");
    office.etcdctl(&["put", "/tidegate/v1/pulse/openai-gpt4o", "{}"]);
    let said = office.run(&["override", "set", POOL, "*", "--block", "--reason", "key leaked"]);
    assert_eq!((said.code, said.err.as_str()), (0, ""), "{said:?}");
    assert!(said.out.ends_with("written; no leader answers: members apply it all the same\n"), "{said:?}");
    let list = office.json(&["override", "list"]);
    assert_eq!((&list[0]["target"], &list[0]["status"]), (&json!("*"), &json!("unanswered")));
    // One whose key is still there, and which says nothing.
    office.etcdctl(&["put", "/tidegate/v1/leader", r#"{"name":"gone","report_url":"http://127.0.0.1:1"}"#]);
    let shown = office.json(&["override", "set", POOL, "*", "--scale", "0.5", "--reason", "better"]);
    assert_eq!(shown["status"], "unanswered");
    let told = office.run(&["status"]);
    assert!(told.out.contains("warning the leader at http://127.0.0.1:1 gives no answer: "), "{told:?}");
}

#[test]
fn wrong_input_is_told_in_a_line_and_nothing_is_asked_of_etcd() {
    let cases: &[(&[&str], &str)] = &[
        (&["override", "set", POOL, "acme", "--reason", "r"], "required arguments were not provided"),
        (&["override", "set", POOL, "acme", "--block", "--freeze"], "cannot be used with"),
        (&["override", "set", "GPT 4o", "acme", "--block"], "pool id \"GPT 4o\": expected 1–64 of a–z"),
        (&["override", "set", POOL, "@capcity", "--scale", "1"], "did you mean @capacity?"),
        (&["override", "set", POOL, "acme", "--set", "rpm=60"], "meter \"rpm\": expected <unit>/<window>"),
        (&["override", "set", POOL, "acme", "--set", "requests/minute=inf"], "expected a number of units, 0 or more"),
        (&["override", "set", POOL, "acme", "--block", "--for=-5m"], "expected a span such as 30m"),
        (&["override", "set", POOL, "acme", "--block", "--by", "x"], "--reason is missing, and there is no terminal"),
        (&["override", "set", POOL, "acme", "--scale", "11", "--reason", "r"], "scale is 11: expected 0 to 10"),
        (&["override", "set", POOL, "@capacity", "--block", "--reason", "r"], "@capacity: expected set or scale"),
        (&["override", "set", POOL, "acme", "--block", "--reason", "r", "--for", "900d"], "more than 366 days ahead"),
        (
            &["override", "set", POOL, "acme", "--block", "--reason", "r", "--until", "2001-01-01T00:00:00Z"],
            "2001-01-01T00:00:00Z is not ahead",
        ),
        (&["override", "set", POOL, "acme", "--block", "--reason", "a\nb"], "--reason: expected a line of 1 to 500"),
        (
            &["override", "set", POOL, "a", "--set", "requests/60s=1", "--set", "requests/minute=2", "--reason", "r"],
            "a meter is given twice",
        ),
        (
            &["override", "list", "--etcd", "https://x:1"],
            "needs the authority that signed etcd's certificate: --etcd-ca",
        ),
        (&["override", "list", "--prefix", "x/"], "key prefix \"x/\": expected an absolute path"),
        (&["override", "list", "--config", "no/such.toml"], "no/such.toml: cannot be read"),
        (&["audit", "--since", "yesterday"], "expected a span such as 30m"),
    ];
    for (args, part) in cases {
        let mut command = tidegate(args);
        command.env("TIDEGATE_ETCD", "http://127.0.0.1:1").env("USER", "mori").stdin(Stdio::null());
        let said = Said::of(&command.output().expect("it runs"));
        assert!(said.code == 2 && said.out.is_empty() && said.err.contains(part), "{args:?}: {said:?}");
    }
    // Where nobody is logged in, as in a container.
    let mut command = tidegate(&["override", "clear", POOL, "acme", "--reason", "r"]);
    let said = Said::of(&command.env_remove("USER").stdin(Stdio::null()).output().expect("it runs"));
    assert_eq!((said.code, said.err.as_str()), (2, "tidegate: --by is missing, and USER is not set\n"));
    let mut command = tidegate(&["override", "list"]);
    let said = Said::of(&command.env("TIDEGATE_ETCD", "http://127.0.0.1:1").output().expect("it runs"));
    assert_eq!((said.code, said.out.as_str()), (1, ""));
    assert!(said.err.starts_with("tidegate: store at http://127.0.0.1:1 is unavailable: "), "{said:?}");
}

impl Office {
    /// Offers the leader a member's report, as the client does.
    async fn report(&self, instance: &str, attempts: u64) -> Value {
        let url = format!("http://{}/v1/observations", self.controller.as_ref().expect("is led").local_addr());
        let counters = json!({
            "attempts": attempts, "admitted": attempts, "waited": 0, "refused": 0, "sent": attempts,
            "succeeded": attempts, "ignored": 0,
            "reserved": { "requests": attempts, "input_tokens": 100 * attempts, "output_tokens": 0 },
            "settled": { "requests": 0, "input_tokens": 0, "output_tokens": 0 },
            "ttfb_log_ms": { "n": 0, "sum": 0.0, "sum_sq": 0.0 }, "tpot_log_ms": { "n": 0, "sum": 0.0, "sum_sq": 0.0 },
            "in_flight": 0, "waiting": 0,
        });
        let meters = json!({ "requests/minute": { "limit": 400.0, "remaining": 20.0, "level": 20.0, "age_ms": 50 } });
        let report = json!({
            "schema": 1, "instance": instance, "boot": "b1",
            "pools": { POOL: { "meters": meters, "tenants": { "acme": counters } } },
        });
        let http = reqwest::Client::builder().no_proxy().build().expect("an HTTP client");
        http.post(url).json(&report).send().await.expect("it answers").json().await.expect("a reply")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_are_told_term_by_term_as_members_enforce_them() {
    let office = Office::led().await;
    // The member that reports last holds what the other one left.
    eventually("a member holds a share", async || {
        office.report("checkout-1", 5).await;
        office.report("checkout-2", 5).await;
        let told = office.json(&["limits", "get", POOL, "acme", "--effective", "--member", "checkout-1"]);
        (told["tenants"][0]["effective"]["meters"]["requests/minute"]["share"] == 0.5).then_some(())
    })
    .await;
    let set = ["override", "set", POOL];
    let put = |args: &[&str]| office.json(&[&set[..], args, &["--reason", "r"]].concat());
    put(&["acme", "--set", "tokens/minute=6000:100"]);
    put(&["@capacity", "--scale", "0.5"]);
    let told = office.json(&["limits", "get", POOL, "acme", "--effective"]);
    let granted = office.record("/tidegate/v1/limits/openai-gpt4o/acme").expect("a grant");
    assert_eq!((&told["state"], &told["leader"]["name"]), (&json!("active"), &json!("north")));
    let tenant = &told["tenants"][0];
    let near = |what: &Value, expected: f64| {
        let found = what.as_f64().unwrap_or(f64::NAN);
        assert!((found / expected - 1.0).abs() < 1e-9, "{what}: expected {expected} in {told}");
    };
    let requests = &tenant["effective"]["meters"]["requests/minute"];
    let base = tenant["granted"]["thresholds"]["requests/minute"]["rate"].as_f64().expect("a rate");
    assert!(base > 0.0 && granted["thresholds"]["requests/minute"]["rate"].is_f64(), "{granted}");
    near(&requests["base"]["rate"], base);
    near(&requests["rate"], base * requests["pulse"].as_f64().expect("a factor") * 0.5);
    assert_eq!((&requests["share"], &requests["overridden"]), (&json!(1.0), &Value::Null));
    let tokens = &tenant["effective"]["meters"]["tokens/minute"];
    assert_eq!((&tokens["rate"], &tokens["burst"]), (&json!(6_000.0), &json!(100.0)));
    assert_eq!(tokens["overridden"], json!({ "rate": 6_000.0, "burst": 100.0 }));
    assert_eq!(
        tenant["overrides"],
        json!(["acme: set tokens/minute 6000 burst 100, by mori: r", "@capacity: scale 0.5, by mori: r"])
    );
    assert_eq!(tenant["effective"]["concurrency"], granted["thresholds"]["concurrency"]);

    let text = office.run(&["limits", "get", POOL, "acme", "--effective"]);
    let head = "TENANT  METER            BASE";
    assert!(text.code == 0 && text.out.starts_with(head), "{text:?}");
    for part in
        ["share     the whole tenant", "state     active; north leads", "override  acme: set tokens/minute 6000"]
    {
        assert!(text.out.contains(part), "{part}: {text:?}");
    }
    let text = office.run(&["limits", "get", POOL]);
    assert!(text.out.starts_with("TENANT    METER            RATE") && text.out.contains("globex"), "{text:?}");

    let said = office.run(&["limits", "get", "openai-gpt40"]);
    let sentence = "nothing is granted: members serve their bootstrap thresholds; did you mean openai-gpt4o?";
    said.ended(1, "", &format!("tidegate: openai-gpt40: {sentence}\n"));
    let said = office.run(&["limits", "get", POOL, "glbex", "--json"]);
    assert_eq!(
        said.err,
        "tidegate: warning: glbex has no grant in openai-gpt4o: it shares @default's; did you mean globex?\n"
    );
    let said = office.run(&["limits", "get", POOL, "acme", "--effective", "--member", "checkout"]);
    assert!(said.code == 1 && said.err.contains("no member checkout reports for openai-gpt4o; did you mean checkout-"));
    // With nobody leading, what members fall to.
    let mut office = office;
    office.controller.take().expect("is led").stop().await;
    let told = office.json(&["limits", "get", POOL, "globex", "--effective"]);
    let globex = &told["tenants"][0]["effective"]["meters"]["requests/minute"];
    assert_eq!((&told["state"], &told["leader"]), (&json!("lapsed"), &Value::Null));
    assert!(globex["kept"].as_f64().is_some_and(|kept| kept <= 0.5), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_are_told_as_they_happen_until_a_signal() {
    let office = Office::led().await;
    let command = office.command(&["limits", "watch", POOL, "globex", "--effective", "--json"]);
    let mut watch = Process::spawn("watch", command, None).expect("it starts");
    let line = |part: &'static str| move |line: &str| line.contains(part);
    watch.wait_for_line(line(r#""meter":"requests/minute""#), PATIENCE).await.expect("what holds is told first");
    office.json(&["override", "set", POOL, "globex", "--set", "requests/minute=7", "--reason", "r"]);
    let told = watch.wait_for_line(line(r#""rate":7.0"#), PATIENCE).await.expect("the change is told");
    let told: Value = serde_json::from_str(&told).expect("a JSON object a line");
    assert_eq!(told["overrides"], json!(["globex: set requests/minute 7, by mori: r"]));
    assert!(told["was"]["rate"].as_f64().is_some_and(|was| was > 7.0), "{told}");
    let ended = Command::new("kill").args(["-INT", &watch.pid().to_string()]).status().expect("kill runs");
    assert!(ended.success());
    assert_eq!(watch.wait(PATIENCE).await.expect("it ends").code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn status_is_a_health_check() {
    let mut office = Office::empty().await;
    let said = office.run(&["status"]);
    assert!(said.out.starts_with("leader  nobody\netcd    3."), "{said:?}");
    assert_eq!((said.code, said.err.as_str()), (1, "tidegate: nobody leads\n"));

    office.lead().await;
    office.report("checkout-1", 5).await;
    office.etcdctl(&["put", "/tidegate/v1/members/checkout-1", r#"{"boot":"b1","pools":["openai-gpt4o"]}"#]);
    office.json(&["override", "set", POOL, "acme", "--scale", "0.5", "--reason", "r"]);
    let told = office.json(&["status"]);
    assert_eq!((&told["problems"], &told["warnings"]), (&json!([]), &json!([])));
    assert_eq!(told["leader"]["name"], "north");
    let pool = &told["pools"][POOL];
    assert_eq!((&pool["stale"], &pool["overrides"], &pool["tenants"]), (&json!(false), &json!(1), &json!(3)));
    assert_eq!(pool["dialect"], "openai");
    assert_eq!(pool["meters"]["requests/minute"]["limit"], 400.0);
    let member = &told["members"][0];
    assert!(member["instance"] == "checkout-1" && member["report_age_ms"].is_u64(), "{member}");
    let etcd = &told["etcd"];
    assert!(etcd["quota_bytes"] == json!(2_147_483_648_u64) && etcd["file_bytes"].as_u64() > Some(0), "{etcd}");
    assert_eq!(etcd["compacted_revision"], Value::Null);
    let said = office.run(&["status"]);
    assert!(
        said.out.contains("\nPOOL          MODE     POLICY  DIALECT  TENANTS") && said.out.contains("\ncheckout-1  "),
        "{said:?}"
    );
    // Half of a quota is worth a word, and history that is gone is told.
    office.etcdctl(&["compact", &etcd["revision"].to_string()]);
    let told = office.json(&["status", "--etcd-quota", "1000000"]);
    assert_eq!(told["etcd"]["compacted_revision"], etcd["revision"]);

    // A pulse that nobody renews is stale, whatever its time says.
    office.controller.take().expect("is led").stop().await;
    let wall = tidegate::clock::Clock::wall(&tidegate::clock::SystemClock::new()).0;
    let hour_ago = wall - 3_600_000;
    let pulse = format!(r#"{{"schema":1,"term":1,"epoch":1,"valid_for_ms":15000,"unix_ms":{hour_ago}}}"#);
    office.etcdctl(&["put", "/tidegate/v1/pulse/openai-gpt4o", &pulse]);
    let said = office.run(&["status"]);
    assert_eq!((said.code, said.err.as_str()), (1, "tidegate: nobody leads; the pulse of openai-gpt4o is 1h old\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_decisions_are_explained_with_their_inputs() {
    let office = Office::led().await;
    let told = eventually("a step with a reading", async || {
        office.report("checkout-1", 5).await;
        let told = office.json(&["explain", POOL, "globex", "--last", "64"]);
        let steps = told["steps"].as_array().expect("steps").clone();
        let read = |step: &Value| step["meters"]["requests/minute"]["reading"]["fresh"]["limit"] == 400.0;
        steps.iter().any(|step| read(step) && step["thresholds"].is_object()).then_some(told)
    })
    .await;
    let first = &told["steps"][0];
    assert_eq!(first["meters"]["requests/minute"]["reading"], "missing");
    assert_eq!(
        (&first["meters"]["requests/minute"]["mode"], &first["reason"]["code"]),
        (&json!("hold"), &json!("aimd_hold"))
    );
    assert_eq!((&told["tenant"], &told["now"]["requests/minute"]["by"]), (&json!("globex"), &json!("policy")));
    office.json(&["override", "set", POOL, "globex", "--block", "--reason", "r"]);
    let told = office.json(&["explain", POOL, "globex"]);
    let now = &told["now"]["requests/minute"];
    assert_eq!(
        (&now["by"], &now["effective"]["rate"], &now["base"]["rate"]),
        (&json!("override"), &json!(0.0), &json!(30.0))
    );
    assert_eq!(told["overrides"]["globex"]["block"], true);
    let said = office.run(&["explain", POOL, "globex", "--last", "1"]);
    assert!(
        said.out.contains("override in force  globex: block, by mori: r\n") && said.out.contains(" epoch "),
        "{said:?}"
    );

    let nobody = |args: &[&str], part: &str| {
        let said = office.run(args);
        assert_eq!((said.code, said.out.as_str(), said.err), (1, "", format!("tidegate: {part}\n")));
    };
    nobody(&["explain", POOL, "globx"], "no tenant globx; did you mean globex?");
    nobody(&["explain", "openai-gpt", "acme"], "no pool openai-gpt; did you mean openai-gpt4o?");
    let mut office = office;
    office.controller.take().expect("is led").stop().await;
    let said = office.run(&["explain", POOL, "acme"]);
    assert!(said.code == 1 && said.err.contains("no leader: members brake by themselves"), "{said:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_exported_is_imported_elsewhere_and_all_of_it_is_checked_first() {
    let (from, to) = tokio::join!(Office::empty(), Office::empty());
    from.etcdctl(&["put", KEY, r#"{"set":{"requests/minute":60},"by":"mori"}"#]);
    from.etcdctl(&["put", "/tidegate/v1/overrides/openai-gpt4o/a%20b", r#"{"block":true}"#]);
    from.etcdctl(&[
        "put",
        "/tidegate/v1/policy/openai-gpt4o",
        r#"{"capacity":{"requests/minute":600},"dialect":"openai","mode":"observe"}"#,
    ]);
    let document = from.run(&["export"]);
    assert_eq!((document.code, document.err.as_str()), (0, ""));
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("operators.json");
    std::fs::write(&file, &document.out).expect("written");
    let path = file.to_str().expect("text");

    let diff = to.json(&["import", path, "--dry-run"]);
    assert_eq!(diff.as_array().map(Vec::len), Some(3));
    let said = to.run(&["import", path]);
    assert!(said.code == 2 && said.out.contains("  + {") && said.err.contains("no terminal to ask on"), "{said:?}");
    assert_eq!(to.record(KEY), None);
    let said = to.run(&["import", path, "--yes"]);
    assert!(said.code == 0 && said.out.ends_with("3 written\n"), "{said:?}");
    assert_eq!(to.run(&["export"]).out, document.out);
    to.run(&["import", path, "--yes"]).ended(0, "nothing to change\n", "");
    let audit = to.json(&["audit"]);
    let whats: Vec<_> = audit.as_array().expect("a list").iter().map(|audit| &audit["what"]).collect();
    assert_eq!(whats, ["import", "import", "import"]);
    assert_eq!(audit[0]["reason"], format!("import of {path}"));

    // One mistake, and nothing is written.
    let bad = json!({ "schema": 1, "overrides": { POOL: {
        "acme": { "scale": 2 }, "x": { "scale": 11 }, "a b": { "block": true },
        "y": { "block": true, "expires_at": "2001-01-01T00:00:00Z" },
    } }, "policy": { POOL: 3 } });
    std::fs::write(&file, bad.to_string()).expect("written");
    let said = to.run(&["import", path, "--yes"]);
    assert_eq!((said.code, said.out.as_str()), (2, ""));
    for part in [
        "\"y\" has ended, and is left out",
        "\"x\": not valid: scale is 11",
        "\"a b\": tenant segment",
        "policy/openai-gpt4o: pools.openai-gpt4o: found 3, expected a table",
        "3 mistakes",
    ] {
        assert!(said.err.contains(part), "{part}: {said:?}");
    }
    assert_eq!(to.record(KEY), from.record(KEY));
    // A record that is none is left out, and said.
    from.etcdctl(&["put", KEY, "{}"]);
    let said = from.run(&["export"]);
    assert!(said.code == 1 && said.err.contains("the override of openai-gpt4o acme is left out"), "{said:?}");
    // More than fits in one transaction.
    let many: serde_json::Map<String, Value> = (0..200).map(|n| (format!("t{n}"), json!({ "scale": 0.5 }))).collect();
    std::fs::write(&file, json!({ "schema": 1, "overrides": { POOL: many } }).to_string()).expect("written");
    assert!(to.run(&["import", path, "--yes", "--reason", "many"]).out.ends_with("200 written\n"));
    assert_eq!(to.json(&["override", "list"]).as_array().map(Vec::len), Some(202));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_leader_deletes_audit_records_that_are_too_old_and_no_others() {
    let mut office = Office::empty().await;
    let record = r#"{"at":"2020-01-01T00:00:00Z","by":"m","what":"import","key":"k","reason":"r"}"#;
    for n in 0..150 {
        office.etcdctl(&["put", &format!("/tidegate/v1/audit/2020-01-01T00:00:00.000Z-{n:08x}"), record]);
    }
    office.etcdctl(&["put", "/tidegate/v1/audit/odd", "no record of ours"]);
    office.json(&["override", "set", POOL, "acme", "--block", "--reason", "young"]);
    office.lead().await;
    eventually("the old ones are gone", async || {
        let keys = office.etcdctl(&["get", "--prefix", "--keys-only", "/tidegate/v1/audit/"]);
        (keys.split_whitespace().count() == 2).then_some(())
    })
    .await;
    let said = office.run(&["audit"]);
    assert!(said.out.contains("young") && said.err.contains("/tidegate/v1/audit/odd is no audit record"), "{said:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_half_full_is_spoken_of_by_the_leader_and_by_status() {
    let office = Office::empty().await;
    let value = "x".repeat(100_000);
    for n in 0..6 {
        office.etcdctl(&["put", &format!("/other/{n}"), &value]);
    }
    eventually("etcd counts what it was given", async || {
        let told: Value = serde_json::from_str(&office.run(&["status", "--json"]).out).expect("JSON");
        told["etcd"]["file_bytes"].as_u64().filter(|bytes| *bytes > 600_000)
    })
    .await;
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("t.toml");
    let etcd = format!("\"{}\"]\nquota_bytes = 1000000", office.etcd.endpoint());
    std::fs::write(&file, CONFIG.replace("\"http://127.0.0.1:1\"]", &etcd)).expect("written");
    let mut command = tidegate(&["run", "--config"]);
    command.arg(&file);
    let mut controller = Process::spawn("controller", command, None).expect("it starts");
    let url = listening(&mut controller).await;
    controller.wait_for_line(|line| line.contains("more than half full"), PATIENCE).await.expect("it says so");
    let http = reqwest::Client::builder().no_proxy().build().expect("an HTTP client");
    let metrics = http.get(format!("{url}/metrics")).send().await.expect("metrics").text().await.expect("a text");
    let bytes = metrics.lines().find_map(|line| line.strip_prefix("tidegate_store_bytes ")).expect("it is there");
    assert!(bytes.parse::<f64>().is_ok_and(|bytes| bytes > 600_000.0), "{bytes}");
    let mut command = tidegate(&["status", "--json", "--config"]);
    let told = Said::of(&command.arg(&file).output().expect("it runs"));
    let told: Value = serde_json::from_str(&told.out).expect("JSON");
    assert_eq!(told["etcd"]["quota_bytes"], 1_000_000);
    assert!(told["warnings"][0].as_str().is_some_and(|line| line.contains("of 1000000 bytes")), "{told}");
}
