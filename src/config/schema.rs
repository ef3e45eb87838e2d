//! The JSON schema of the file, for editors, from the table of keys.

use serde_json::{Map, Value, json};

use super::keys::ROOT;
use super::spec::{Absent, Key, Shape, Table};

/// The schema (JSON Schema, draft 2020-12). It knows shapes, ranges and names; what depends on two places at once (a
/// floor above its ceiling, say) only the reader knows.
#[must_use]
pub fn schema() -> Value {
    let mut root = Map::new();
    root.insert("$schema".into(), json!("https://json-schema.org/draft/2020-12/schema"));
    root.insert("title".into(), json!("tidegate"));
    root.insert("description".into(), json!("What the controller is told: pools, their limits, and their tenants."));
    root.extend(table(&ROOT));
    Value::Object(root)
}

fn table(table: &Table) -> Map<String, Value> {
    let required: Vec<&str> =
        table.keys.iter().filter(|key| matches!(key.absent, Absent::Refused)).map(|key| key.name).collect();
    let properties: Map<String, Value> = table.keys.iter().map(|key| (key.name.to_owned(), property(key))).collect();
    let mut schema = object(json!({ "type": "object", "additionalProperties": false, "properties": properties }));
    if !required.is_empty() {
        schema.insert("required".into(), json!(required));
    }
    schema
}

fn property(key: &Key) -> Value {
    let mut schema = shape(&key.shape);
    schema.insert("description".into(), json!(format!("{}\n\n{}", key.doc, key.facts())));
    if let Absent::Reads(default) = key.absent {
        schema.insert("default".into(), value(default));
    }
    schema.insert("examples".into(), json!([value(key.example)]));
    Value::Object(schema)
}

fn shape(of: &Shape) -> Map<String, Value> {
    object(match of {
        Shape::Number { min, max, .. } => {
            json!({ "type": "number", "minimum": value(&min.to_string()), "maximum": value(&max.to_string()) })
        }
        Shape::Count { min, max, .. } => json!({ "type": "integer", "minimum": min, "maximum": max }),
        Shape::Truth => json!({ "type": "boolean" }),
        Shape::Text { pattern, .. } => json!({ "type": "string", "pattern": pattern }),
        Shape::OneOf(words) => json!({ "type": "string", "enum": words }),
        Shape::List { item, .. } => json!({ "type": "array", "minItems": 1, "items": shape(item) }),
        Shape::Table(keys) => Value::Object(table(keys)),
        Shape::KeyOr(key, keys) => json!({ "anyOf": [shape(&key.shape), table(keys)] }),
        Shape::Entries { names, entry, least, .. } => json!({
            "type": "object",
            "additionalProperties": false,
            "minProperties": least,
            "patternProperties": { names.pattern(): shape(entry) },
        }),
    })
}

/// A value written as TOML.
fn value(toml: &str) -> Value {
    let file = toml::from_str::<Map<String, Value>>(&format!("value = {toml}"));
    file.ok().and_then(|mut file| file.remove("value")).unwrap_or_default()
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(object) => object,
        _ => Map::new(),
    }
}
