//! `tidegate policy`, through the binary, against a real etcd and a real controller.

use std::io::Write;
use std::path::PathBuf;
use std::process::Stdio;

use serde_json::{Value, json};

use super::operators::{CONFIG, Office, POOL, Said};

const KEY: &str = "/tidegate/v1/policy/openai-gpt4o";

/// What the file says of the pool.
fn of_file() -> Value {
    json!({
        "dialect": "openai", "concurrency": 12, "capacity": { "requests/minute": 600, "tokens/minute": 150_000 },
        "tenants": { "acme": { "weight": 3 }, "globex": { "ceiling": { "requests/minute": 30 } } },
    })
}

struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    fn write(&self, name: &str, text: &str) -> String {
        let path: PathBuf = self.0.path().join(name);
        std::fs::write(&path, text).expect("written");
        path.to_str().expect("text").to_owned()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_is_put_judged_compared_audited_and_cleared() {
    let (office, files) = (Office::led().await, Files::new());
    let config = files.write("tidegate.toml", CONFIG);
    office.run(&["policy", "get"]).ended(0, "no policies in etcd: those of the controller's file hold\n", "");
    let said = office.run(&["policy", "get", POOL]);
    assert!(said.code == 1 && said.err.contains("openai-gpt4o has no policy in etcd"), "{said:?}");
    office.run(&["policy", "diff", &config]).ended(0, "openai-gpt4o: not in etcd, the file's holds\n", "");

    // As in the file, from the file.
    let said = office.run(&["policy", "put", POOL, &config, "--reason", "to etcd"]);
    assert!(said.code == 0 && said.out.ends_with("accepted by the leader\n"), "{said:?}");
    assert_eq!(office.record(KEY), Some(of_file()));
    office.run(&["policy", "diff", &config]).ended(0, "openai-gpt4o: the same in etcd\n", "");

    let mut record = of_file();
    record["mode"] = json!("observe");
    record["capacity"]["requests/minute"] = json!(300.0);
    record["tenants"].as_object_mut().expect("tenants").remove("acme");
    let file = files.write("pool.json", &record.to_string());
    let put = ["policy", "put", POOL, &file, "--reason", "smaller", "--by", "ops"];
    let rows = "  KEY                           BEFORE  NOW\n  capacity.\"requests/minute\"    600     300.0\n  \
                mode                          -       \"observe\"\n  tenants.acme.weight           3       -\n";
    let wide = "openai-gpt4o\n";
    let said = office.run(&[&put[..], &["--dry-run"]].concat());
    assert_eq!(said.code, 0, "{said:?}");
    let shown: Vec<Vec<&str>> = said.out.lines().map(|line| line.split_whitespace().collect()).collect();
    let expected = format!("{wide}{rows}nothing is written: a dry run\n");
    assert_eq!(shown, expected.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).collect::<Vec<_>>());
    assert_eq!(office.record(KEY), Some(of_file()), "a dry run");
    let told = office.json(&put);
    assert_eq!(
        (&told["status"], &told["before"], &told["record"], &told["warnings"]),
        (&json!("accepted"), &of_file(), &record, &json!([]))
    );

    let said = office.run(&["policy", "diff", &config]);
    assert_eq!((said.code, said.err.as_str()), (1, "tidegate: etcd's policy differs from the file's: openai-gpt4o\n"));
    assert!(
        said.out.lines().nth(1).is_some_and(|line| line.split_whitespace().eq(["KEY", "FILE", "ETCD"])),
        "{said:?}"
    );
    let said = office.run(&["policy", "diff", &config, POOL, "--json"]);
    let diff: Value = serde_json::from_str(&said.out).expect("JSON");
    assert_eq!(diff[POOL][1], json!({ "key": "mode", "file": null, "etcd": "observe" }));

    let said = office.run(&["policy", "get"]);
    assert_eq!(said.out, "POOL          MODE     STATUS\nopenai-gpt4o  observe  accepted\n");
    let said = office.run(&["policy", "get", POOL]);
    assert_eq!((said.code, serde_json::from_str(&said.out).ok()), (0, Some(record.clone())));
    let status = office.run(&["status", "--json"]);
    let told: Value = serde_json::from_str(&status.out).expect("JSON");
    assert_eq!(told["pools"][POOL]["policy"], "etcd");

    let said = office.run(&["policy", "clear", POOL, "--reason", "back"]);
    assert!(said.code == 0 && said.out.starts_with("openai-gpt4o: cleared;"), "{said:?}");
    assert_eq!(office.record(KEY), None);
    let said = office.run(&["policy", "clear", POOL, "--reason", "back"]);
    said.ended(1, "", "tidegate: openai-gpt4o has no policy in etcd\n");
    let audit = office.json(&["audit"]);
    let whats: Vec<_> =
        audit.as_array().expect("a list").iter().map(|a| (&a["what"], &a["by"], &a["reason"])).collect();
    let row = |what: &'static str, by: &'static str, reason: &'static str| (json!(what), json!(by), json!(reason));
    let rows = [
        row("policy_put", "mori", "to etcd"),
        row("policy_put", "ops", "smaller"),
        row("policy_clear", "mori", "back"),
    ];
    assert_eq!(whats, rows.iter().map(|(what, by, reason)| (what, by, reason)).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_are_all_told_and_nothing_is_written_and_one_put_by_hand_is_shown_as_rejected() {
    let (office, files) = (Office::led().await, Files::new());
    let put = |text: &str, args: &[&str]| {
        let mut command = office.command(&[&["policy", "put", POOL, "-", "--reason", "r"], args].concat());
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it runs");
        child.stdin.take().expect("piped").write_all(text.as_bytes()).expect("read");
        Said::of(&child.wait_with_output().expect("it ends"))
    };
    put(r#"{"dialect":"opanai","capacity":{"rpm":1}}"#, &[]).ended(
        2,
        "",
        "tidegate: policy/openai-gpt4o: pools.openai-gpt4o.capacity.rpm: meter \"rpm\": expected <unit>/<window> with \
         unit requests, tokens, input_tokens or output_tokens and window second, minute, hour, day, month or <n>s, for \
         example \"requests/minute\"; did you mean \"requests/minute\"?\ntidegate: policy/openai-gpt4o: \
         pools.openai-gpt4o.dialect: found \"opanai\", expected \"openai\", \"azure\", \"anthropic\" or another of the 30 \
         that `tidegate schema --reference` lists, or { name, refill, reset_form, headers }; did you mean \"openai\"?\n\
         tidegate: 2 mistakes; nothing is written\n",
    );
    assert_eq!((office.record(KEY), office.json(&["audit"])), (None, json!([])));
    let broken = files.write("t.toml", "[pools");
    let said = office.run(&["policy", "put", POOL, &broken, "--reason", "r"]);
    assert!(said.code == 2 && said.err.contains("t.toml: not TOML"), "{said:?}");
    let other = files.write("o.toml", "[pools.other]\n");
    let said = office.run(&["policy", "put", POOL, &other, "--reason", "r"]);
    assert!(said.code == 2 && said.err.contains("o.toml: has no [pools.openai-gpt4o]"), "{said:?}");
    let said = office.run(&["policy", "put", POOL, "no-such.json", "--reason", "r"]);
    assert!(said.code == 2 && said.err.contains("cannot be read"), "{said:?}");

    // By hand, past the check.
    office.etcdctl(&[
        "put",
        KEY,
        &json!({ "dialect": "openai", "capacity": { "requests/minute": 1 }, "mode": "of" }).to_string(),
    ]);
    super::world::eventually("the leader rejects it", async || {
        (office.json(&["policy", "get", POOL])["error"].as_str()?.contains("did you mean \"off\"")).then_some(())
    })
    .await;
    let said = office.run(&["policy", "get"]);
    assert!(said.out.contains("rejected: pools.openai-gpt4o.mode: found \"of\""), "{said:?}");
    let status = office.run(&["status"]);
    assert!(status.out.contains("warning the policy of openai-gpt4o is rejected: "), "{status:?}");
    let said = office.run(&["export"]);
    assert!(said.code == 1 && said.err.contains("the policy of openai-gpt4o is left out: "), "{said:?}");

    // Without a leader it is written all the same.
    let mut office = office;
    office.controller.take().expect("is led").stop().await;
    let file = files.write("pool.json", &of_file().to_string());
    let said = office.run(&["policy", "put", POOL, &file, "--reason", "r"]);
    assert!(said.code == 0 && said.out.ends_with("written; no leader answers: it holds when one does\n"), "{said:?}");
    assert_eq!(office.json(&["policy", "get", POOL])["status"], "unanswered");
}
