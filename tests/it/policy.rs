//! Policy as values: what a record in the store says, by the rules of the file; and which one holds.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tidegate::config::{Config, policy};
use tidegate::controller::PoolParams;
use tidegate::controller::policies::{Policies, Standing};
use tidegate::plan::{Mode, POLICY_BYTES_MAX, PolicyStatus};
use tidegate::quota::{Meter, PoolId};

use super::by_hand::pool;

const FILE: &str = r#"
[pools.pool]
dialect = "openai"
mode = "observe"
concurrency = 12
[pools.pool.capacity]
"requests/minute" = 600
"requests/10s" = { rate = 100, enforcement = "shared" }
"tokens/day" = { rate = 1e6, algorithm = "fixed_window", alignment = "clock" }
[pools.pool.tenants.acme]
weight = 3
floor = { "requests/minute" = 60 }
[pools.pool.tenants."a b\"c"]
[pools.pool.default]
ceiling = { "requests/minute" = 30.5 }
"#;

fn record() -> Value {
    json!({
        "dialect": "openai", "mode": "observe", "concurrency": 12,
        "capacity": {
            "requests/minute": 600, "requests/10s": { "rate": 100, "enforcement": "shared" },
            "tokens/day": { "rate": 1e6, "algorithm": "fixed_window", "alignment": "clock" },
        },
        "tenants": { "acme": { "weight": 3, "floor": { "requests/minute": 60 } }, "a b\"c": {} },
        "default": { "ceiling": { "requests/minute": 30.5 } },
    })
}

fn bytes(value: &Value) -> Vec<u8> {
    value.to_string().into_bytes()
}

fn file() -> Config {
    Config::parse("t.toml", FILE).expect("good")
}

#[track_caller]
fn mistakes(value: &[u8]) -> String {
    policy(&pool(), value).expect_err("has mistakes").to_string()
}

#[test]
fn a_record_says_what_the_same_table_in_the_file_says() {
    let (read, warnings) = policy(&pool(), &bytes(&record())).expect("good");
    assert_eq!(warnings.list, []);
    assert_eq!([read], file().controller.pools[..]);
}

#[test]
fn mistakes_are_those_of_the_file_all_of_them_and_without_lines_that_nobody_wrote() {
    let file = r#"
[pools.pool]
dialect = "opanai"
concurency = 4
capacity = { "rpm" = 600, "requests/minute" = -1 }
[pools.pool.tenants.acme]
weight = "3"
"#;
    let record = json!({
        "dialect": "opanai", "concurency": 4, "capacity": { "rpm": 600, "requests/minute": -1 },
        "tenants": { "acme": { "weight": "3" } },
    });
    let told = |mistakes: tidegate::config::Mistakes| {
        let mut told: Vec<_> = mistakes.list.into_iter().map(|one| (one.key, one.message)).collect();
        told.sort();
        told
    };
    let of_file = told(Config::parse("t.toml", file).expect_err("has mistakes"));
    let of_record = told(policy(&pool(), &bytes(&record)).expect_err("has mistakes"));
    assert_eq!(of_file, of_record);
    assert_eq!(of_file.len(), 5, "{of_file:#?}");
    let first = mistakes(&bytes(&record)).lines().next().unwrap_or_default().to_owned();
    assert!(first.starts_with("policy/pool: pools.pool"), "{first}");
}

#[test]
fn what_is_no_policy_is_refused_in_one_clear_line() {
    let large = vec![b' '; POLICY_BYTES_MAX + 1];
    let cases: [(&[u8], &str); 8] = [
        (b"", "policy/pool: not JSON that can be a policy: EOF while parsing a value at line 1 column 0"),
        (b"{} {}", "policy/pool: not JSON that can be a policy: trailing characters at line 1 column 4"),
        (b"[]", "policy/pool: pools.pool: found [], expected a table"),
        (b"5", "policy/pool: pools.pool: found 5, expected a table"),
        (br#"{"dialect":null}"#, "policy/pool: not JSON that can be a policy: found null; leave the key out instead"),
        (
            br#"{"mode":"off","mode":"off"}"#,
            "policy/pool: not JSON that can be a policy: the key \"mode\" is given twice",
        ),
        (b"\xff", "policy/pool: not JSON that can be a policy: expected value at line 1 column 1"),
        (&large, "policy/pool: found 65537 bytes, expected at most 65536"),
    ];
    for (value, said) in cases {
        assert!(mistakes(value).starts_with(said), "{said}\nnot\n{}", mistakes(value));
    }
    let odd =
        json!({ "dialect": "openai", "capacity": { "requests/minute": 6 }, "tenants": { "a\u{7f}": {}, "b\n": {} } });
    let said = mistakes(&bytes(&odd));
    assert_eq!(said.lines().count(), 2, "names that TOML must escape are read, and refused as names: {said}");
    let deep = format!("{}1{}", "[".repeat(100), "]".repeat(100));
    assert!(!mistakes(deep.as_bytes()).is_empty());
}

#[test]
fn floors_that_do_not_fit_are_a_warning_as_in_the_file() {
    let record = json!({
        "dialect": "openai", "capacity": { "requests/minute": 60 }, "default": { "floor": { "requests/minute": 61 } },
    });
    let (_, warnings) = policy(&pool(), &bytes(&record)).expect("taken");
    assert_eq!((warnings.list.len(), warnings.errors()), (1, 0));
}

// === which one holds ===

fn id(name: &str) -> PoolId {
    name.parse().expect("valid")
}

/// The file's, what stands in the store, and the book of both.
struct Book {
    policies: Policies,
    standing: BTreeMap<PoolId, Standing>,
    revision: u64,
}

impl Book {
    fn new() -> Self {
        let config = file().controller;
        let policies = Policies::new(&config.pools, config.read_policy);
        Self { policies, standing: BTreeMap::new(), revision: 10 }
    }

    /// Puts a record; what is wrong with it.
    fn put(&mut self, name: &str, value: &[u8]) -> Vec<(PoolId, String)> {
        self.revision += 1;
        let standing = Standing { value: value.to_vec(), revision: self.revision };
        self.standing.insert(id(name), standing);
        self.policies.judge(&self.standing)
    }

    fn take_away(&mut self, name: &str) {
        self.standing.remove(&id(name));
        assert_eq!(self.policies.judge(&self.standing), []);
    }

    fn in_force(&self, name: &str) -> Option<PoolParams> {
        self.policies.in_force().get(&id(name)).map(|params| (*params).clone())
    }

    fn mode(&self, name: &str) -> Option<Mode> {
        self.in_force(name).map(|params| params.mode)
    }

    /// What is said now, and only once.
    fn say(&mut self) -> BTreeMap<PoolId, Option<PolicyStatus>> {
        let said = self.policies.unsaid();
        self.policies.said(&said);
        assert_eq!(self.policies.unsaid(), []);
        said.into_iter().collect()
    }
}

fn small(mode: &str) -> Value {
    json!({ "dialect": "openai", "mode": mode, "capacity": { "requests/minute": 60 } })
}

#[test]
fn the_stores_policy_replaces_the_files_as_a_whole_until_it_is_taken_away() {
    let mut book = Book::new();
    assert_eq!(book.mode("pool"), Some(Mode::Observe));
    assert_eq!(book.put("pool", &bytes(&small("enforce"))), []);
    let params = book.in_force("pool").expect("holds");
    assert_eq!(
        (params.mode, params.tenants.len(), params.capacity[&Meter::REQUESTS_PER_MINUTE].rate),
        (Mode::Enforce, 0, 60.0)
    );
    let status = PolicyStatus { accepted: true, revision: 11, error: None, applied: Some(small("enforce")) };
    assert_eq!(book.say(), [(id("pool"), Some(status))].into());
    book.take_away("pool");
    assert_eq!(book.in_force("pool"), file().controller.pools.pop());
    assert_eq!(book.say(), [(id("pool"), None)].into());
}

#[test]
fn a_pool_that_the_file_has_not_comes_and_goes_with_its_policy() {
    let mut book = Book::new();
    book.put("other", &bytes(&small("off")));
    assert_eq!((book.mode("other"), book.mode("pool")), (Some(Mode::Off), Some(Mode::Observe)));
    book.take_away("other");
    assert_eq!(book.mode("other"), None);
}

#[test]
fn a_malformed_policy_changes_nothing_but_what_is_said() {
    let mut book = Book::new();
    // Without a good one before, the file's holds.
    let rejected = book.put("pool", b"{}");
    let error = "pools.pool: \"dialect\" is missing";
    assert!(rejected.len() == 1 && rejected[0].1.starts_with(error), "{rejected:?}");
    assert_eq!(book.mode("pool"), Some(Mode::Observe));
    assert_eq!(book.policies.judge(&book.standing), [], "said once");
    let said = book.say().remove(&id("pool")).flatten().expect("said");
    assert_eq!((said.accepted, said.applied, said.revision), (false, None, 11));

    book.put("pool", &bytes(&small("off")));
    assert_eq!(book.put("pool", b"{").len(), 1);
    assert_eq!(book.mode("pool"), Some(Mode::Off));
    let said = book.say().remove(&id("pool")).flatten().expect("said");
    assert_eq!((said.accepted, said.revision, &said.applied), (false, 13, &Some(small("off"))));

    // The next leader finds the malformed one, and what the last one said.
    let mut next = Book::new();
    next.standing.clone_from(&book.standing);
    next.policies.restore(
        [
            (id("pool"), said),
            (id("gone"), PolicyStatus { accepted: true, revision: 2, error: None, applied: Some(small("off")) }),
        ]
        .into(),
    );
    assert_eq!(next.policies.judge(&next.standing).len(), 1);
    assert_eq!((next.mode("pool"), next.mode("gone")), (Some(Mode::Off), None), "a removed policy does not come back");
    let said = next.say();
    assert_eq!(said[&id("gone")], None);
    assert_eq!(said[&id("pool")].as_ref().and_then(|said| said.applied.clone()), Some(small("off")));
}

#[test]
fn what_could_not_be_said_is_said_later_and_the_newest_only() {
    let mut book = Book::new();
    book.put("pool", &bytes(&small("off")));
    let first = book.policies.unsaid();
    book.put("pool", &bytes(&small("enforce")));
    // The answer to the first comes late.
    book.policies.said(&first);
    let said = book.say().remove(&id("pool")).flatten().expect("said");
    assert_eq!((said.revision, said.applied), (12, Some(small("enforce"))));
}
