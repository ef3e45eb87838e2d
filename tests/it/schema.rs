//! The JSON schema and the reference file: as committed, and of one mind with the reader.

use std::fs;
use std::path::{Path, PathBuf};

use regex::Regex;
use serde_json::{Map, Value};
use tidegate::config::{Config, reference, schema};

fn config(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config").join(file)
}

fn golden(file: &str, now: &str) {
    if std::env::var_os("UPDATE").is_some() {
        fs::write(config(file), now).expect("writes");
    }
    let committed = fs::read_to_string(config(file)).expect("is there");
    assert!(committed == now, "config/{file} is not what the keys say; if meant, run with UPDATE=1");
}

#[test]
fn the_committed_schema_and_reference_are_what_the_keys_say() {
    golden("reference.toml", &reference());
    golden("tidegate.schema.json", &(serde_json::to_string_pretty(&schema()).expect("writes") + "\n"));
}

#[test]
fn the_shipped_files_name_the_schema_beside_them() {
    for file in ["tidegate.toml", "reference.toml"] {
        let text = fs::read_to_string(config(file)).expect("is there");
        assert_eq!(text.lines().next(), Some("#:schema ./tidegate.schema.json"), "{file}");
        assert_eq!(verdict(&text), Vec::<String>::new(), "{file}");
    }
}

/// The schema's examples and defaults are values that it takes itself.
#[test]
fn the_schema_takes_its_own_examples_and_defaults() {
    fn walk(schema: &Value, seen: &mut usize) {
        let examples = schema.get("examples").and_then(Value::as_array).into_iter().flatten();
        for value in examples.chain(schema.get("default")) {
            let mut refused = Vec::new();
            judge(schema, value, "", &mut refused);
            assert_eq!(refused, Vec::<String>::new(), "{value} in {schema}");
            *seen += 1;
        }
        let named = ["properties", "patternProperties"].map(|keyword| schema.get(keyword).and_then(Value::as_object));
        named.into_iter().flatten().flat_map(Map::values).for_each(|below| walk(below, seen));
        schema.get("anyOf").and_then(Value::as_array).into_iter().flatten().for_each(|below| walk(below, seen));
        schema.get("items").into_iter().for_each(|below| walk(below, seen));
    }
    let mut seen = 0;
    walk(&schema(), &mut seen);
    assert!(seen >= 25, "{seen} values were seen");
}

const POOL: &str = "[pools.a]\ndialect = \"openai\"\ncapacity = { \"requests/minute\" = 600 }\n";

#[test]
fn what_the_reader_refuses_in_one_place_the_schema_refuses_too() {
    let pool = |from: &str, to: &str| POOL.replace(from, to);
    let also = |text: &str| format!("{POOL}{text}");
    for text in [
        String::new(),
        "[pools]\n".to_owned(),
        "pools = 5\n".to_owned(),
        pool("pools.a", "pools.GPT"),
        pool("dialect", "dialct"),
        pool("\"openai\"", "\"opnai\""),
        pool("\"openai\"", "1"),
        pool("dialect = \"openai\"\n", ""),
        pool("{ \"requests/minute\" = 600 }", "{}"),
        pool("600", "0"),
        pool("600", "-1"),
        pool("600", "1e13"),
        pool("600", "\"600\""),
        pool("600", "true"),
        pool("600", "{ burst = 5 }"),
        pool("600", "{ rate = 5, burst = 0.5 }"),
        pool("600", "{ rate = 5, window = 1 }"),
        pool("600", "{ rate = 5, algorithm = \"leaky_bucket\" }"),
        pool("600", "{ rate = 5, algorithm = \"fixed_window\", alignment = \"\" }"),
        pool("600", "{ rate = 5, enforcement = \"redis\" }"),
        pool("600", "{ enforcement = \"shared\" }"),
        pool("600", "{ rate = 5, algorithm = \"fixed_window\", alignment = \"/etc/localtime\" }"),
        pool("requests/minute", "rpm"),
        pool("requests/minute", "requests/0s"),
        pool("requests/minute", "concurrency"),
        pool("dialect", "concurrency = 0\ndialect"),
        pool("dialect", "concurrency = 1.5\ndialect"),
        pool("dialect", "concurrency = 1000001\ndialect"),
        pool("dialect", "weight = 1\ndialect"),
        also("[metrics]\n"),
        also("[pools.a.tenants.\"\"]\n"),
        also("[pools.a.tenants.\"a\\tb\"]\n"),
        also("[pools.a.default]\nweight = 0\n"),
        also("[pools.a.default]\nfloor = { \"requests/minute\" = -1 }\n"),
        also("[pools.a.default]\nceiling = { \"requests/minute\" = 0 }\n"),
        also("[controller]\nname = \"\"\n"),
        also("[controller]\nlisten = \"localhost\"\n"),
        also("[controller.reporters]\n"),
        also("[controller.reporters.\"a b\"]\n"),
        also("[controller.reporters.a]\ntoken_sha256 = [\"secret\"]\n"),
        also("[controller.reporters.a]\nread = 1\n"),
        also("[controller.tls]\ncert_file = \"c.pem\"\n"),
        also("[controller]\nadvertise_url = \"10.0.0.5\"\n"),
        also("[keys]\nprefix = \"tidegate\"\n"),
        also("[keys]\nprefix = \"/tidegate/\"\n"),
        also("[etcd]\n"),
        also("[etcd]\nendpoints = []\n"),
        also("[etcd]\nendpoints = [\"ftp://b:2379\"]\n"),
        also("[etcd]\nendpoints = [7]\n"),
    ] {
        assert!(Config::parse("t.toml", &text).is_err(), "the reader takes {text}");
        assert!(!verdict(&text).is_empty(), "the schema takes {text}");
    }
}

#[test]
fn what_the_reader_takes_the_schema_takes_too() {
    let pool = |from: &str, to: &str| POOL.replace(from, to);
    let also = |text: &str| format!("{POOL}{text}");
    for text in [
        POOL.to_owned(),
        also("[etcd]\nendpoints = [\"https://b:2379\"]\nca_file = \"ca.pem\"\n"),
        pool("\"openai\"", "\"anthropic\""),
        pool("600", "0.001"),
        pool("600", "{ rate = 1e12, burst = 1 }"),
        pool("600", "{ rate = 1000, algorithm = \"sliding_log\" }"),
        pool("600", "{ rate = 5, enforcement = \"shared\" }"),
        pool("600", "{ rate = 5, algorithm = \"sliding_log\", enforcement = \"local\" }"),
        pool("600", "{ rate = 5, algorithm = \"fixed_window\", alignment = \"first_use\" }"),
        pool("600", "{ rate = 5, algorithm = \"fixed_window\", alignment = \"Etc/GMT+5\" }"),
        pool("600", "{ rate = 5, algorithm = \"fixed_window\", alignment = \"America/Argentina/Ushuaia\" }"),
        pool("requests/minute", "output_tokens/86400s"),
        pool("pools.a", "pools.\"0gpt-4.1_x\""),
        pool("dialect", "concurrency = 1000000\ndialect"),
        also("[pools.a.tenants.\"Ärger & Söhne *@\"]\nweight = 0.001\n"),
        also("[pools.a.default]\nfloor = { \"requests/minute\" = 0 }\n"),
        also("[controller]\nlisten = \"[::1]:0\"\nadvertise_url = \"https://gate.example:1/x\"\n"),
        also("[controller]\nlisten = \"127.1.2.3:65535\"\nname = \"Größe 1\"\n"),
        also(
            "[controller]\nlisten = \"10.0.0.5:7676\"\n[controller.reporters.a]\npools = [\"openai-*\"]\nread = true\n",
        ),
        also("[keys]\nprefix = \"/a\"\n"),
        also("[etcd]\nendpoints = [\"http://a:1\", \"http://[::1]:2\"]\n"),
    ] {
        assert!(Config::parse("t.toml", &text).is_ok(), "the reader refuses {text}");
        assert_eq!(verdict(&text), Vec::<String>::new(), "{text}");
    }
}

// === The part of JSON Schema that the schema uses ===

/// What the schema refuses in a file.
fn verdict(text: &str) -> Vec<String> {
    let file: Map<String, Value> = toml::from_str(text).expect("is TOML");
    let mut refused = Vec::new();
    judge(&schema(), &Value::Object(file), "", &mut refused);
    refused
}

/// Judges a value; a keyword that this does not know fails the test, so that none is silently not judged.
fn judge(schema: &Value, value: &Value, at: &str, refused: &mut Vec<String>) {
    let of = |key: &str| schema.get(key).and_then(Value::as_object);
    let number = |limit: &Value| limit.as_f64().expect("a number");
    for (keyword, rule) in schema.as_object().expect("a schema") {
        let good = match keyword.as_str() {
            "$schema" | "title" | "description" | "default" | "examples" => true,
            // Judged below, all three together.
            "properties" | "patternProperties" | "additionalProperties" => continue,
            "type" => match rule.as_str().expect("a type") {
                "object" => value.is_object(),
                "array" => value.is_array(),
                "string" => value.is_string(),
                "boolean" => value.is_boolean(),
                "integer" => value.is_u64() || value.is_i64(),
                "number" => value.is_number(),
                other => panic!("the type {other}"),
            },
            "minimum" => value.as_f64().is_none_or(|value| value >= number(rule)),
            "maximum" => value.as_f64().is_none_or(|value| value <= number(rule)),
            "enum" => rule.as_array().expect("a list").contains(value),
            "pattern" => value.as_str().is_none_or(|text| matches(rule.as_str().expect("a pattern"), text)),
            "minItems" => value.as_array().is_none_or(|items| items.len() as f64 >= number(rule)),
            "minProperties" => value.as_object().is_none_or(|object| object.len() as f64 >= number(rule)),
            "required" => value.as_object().is_none_or(|object| {
                rule.as_array().expect("a list").iter().all(|key| object.contains_key(key.as_str().expect("a name")))
            }),
            "items" => {
                value.as_array().into_iter().flatten().for_each(|item| judge(rule, item, &format!("{at}[]"), refused));
                true
            }
            "anyOf" => rule.as_array().expect("a list").iter().any(|schema| {
                let mut refused = Vec::new();
                judge(schema, value, at, &mut refused);
                refused.is_empty()
            }),
            other => panic!("the keyword {other}"),
        };
        if !good {
            refused.push(format!("{at}: {keyword} {rule}"));
        }
    }
    for (key, value) in value.as_object().into_iter().flatten() {
        let at = format!("{at}.{key}");
        let named = of("properties").and_then(|properties| properties.get(key));
        let alike =
            || of("patternProperties")?.iter().find(|(pattern, _)| matches(pattern, key)).map(|(_, below)| below);
        match named.or_else(alike) {
            Some(below) => judge(below, value, &at, refused),
            None if schema.get("additionalProperties") == Some(&Value::Bool(false)) => {
                refused.push(format!("{at}: no such key"));
            }
            None => {}
        }
    }
}

fn matches(pattern: &str, text: &str) -> bool {
    Regex::new(pattern).expect("a pattern").is_match(text)
}
