//! A pool's policy as it stands in the store: the keys of the file's table `[pools.<id>]`, as JSON.
//!
//! It is written as TOML and read by the file's own reader, so that both have the same rules and the same messages.

use std::collections::BTreeSet;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use super::error::{Mistake, Mistakes};
use super::section::{Document, Field};
use super::{keys, pools};
use crate::controller::PoolParams;
use crate::plan::POLICY_BYTES_MAX;
use crate::quota::PoolId;

/// Reads and checks a policy; with it, what somebody should look at though it is taken.
///
/// # Errors
/// [`Mistakes`]: all of them, as of a file, but without lines.
pub fn policy(pool: &PoolId, value: &[u8]) -> Result<(PoolParams, Mistakes), Mistakes> {
    let name = format!("policy/{pool}");
    let refused = |message: String| Mistakes { list: vec![Mistake::of_file(&name, message)] };
    if value.len() > POLICY_BYTES_MAX {
        return Err(refused(format!("found {} bytes, expected at most {POLICY_BYTES_MAX}", value.len())));
    }
    let table = to_toml(value).map_err(|error| refused(format!("not JSON that can be a policy: {error}")))?;
    let text = format!("{} = {{ \"{pool}\" = {table} }}", keys::POOLS.name);
    let document = Document::new(&name, &text);
    let read = document.root()?.take(&keys::POOLS).and_then(Field::entries);
    let read = read.and_then(|entries| entries.into_iter().next());
    let read = read.and_then(|(id, at, field)| pools::pool(&id, &at, field));
    let mut mistakes = document.end();
    for mistake in &mut mistakes.list {
        // Places in a text that nobody wrote.
        (mistake.line, mistake.column) = (None, None);
    }
    match read {
        Some(read) if mistakes.errors() == 0 => Ok((read, mistakes)),
        _ => Err(mistakes),
    }
}

/// The same for a controller: what is wrong, in one line.
pub(super) fn read(pool: &PoolId, value: &[u8]) -> Result<PoolParams, String> {
    policy(pool, value).map(|(read, _)| read).map_err(|mistakes| mistakes.in_one_line())
}

/// JSON as a TOML value on one line.
fn to_toml(value: &[u8]) -> Result<String, serde_json::Error> {
    let mut text = String::new();
    let mut json = serde_json::Deserializer::from_slice(value);
    Inline(&mut text).deserialize(&mut json)?;
    json.end()?;
    Ok(text)
}

/// Writes what it visits.
struct Inline<'o>(&'o mut String);

impl Inline<'_> {
    fn write(&mut self, text: &str) {
        self.0.push_str(text);
    }

    /// JSON's escapes are TOML's too, but for one character that JSON need not escape.
    fn write_quoted<E: Error>(&mut self, text: &str) -> Result<(), E> {
        let quoted = serde_json::to_string(text).map_err(E::custom)?;
        self.write(&quoted.replace('\u{7f}', "\\u007f"));
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Inline<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Inline<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        Err(E::custom("found null; leave the key out instead"))
    }

    fn visit_bool<E: Error>(mut self, value: bool) -> Result<(), E> {
        self.write(if value { "true" } else { "false" });
        Ok(())
    }

    fn visit_i64<E: Error>(mut self, value: i64) -> Result<(), E> {
        self.write(&value.to_string());
        Ok(())
    }

    fn visit_u64<E: Error>(mut self, value: u64) -> Result<(), E> {
        self.write(&value.to_string());
        Ok(())
    }

    fn visit_f64<E: Error>(mut self, value: f64) -> Result<(), E> {
        // With a point or an exponent, as TOML wants it.
        self.write(&format!("{value:?}"));
        Ok(())
    }

    fn visit_str<E: Error>(mut self, value: &str) -> Result<(), E> {
        self.write_quoted(value)
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut items: A) -> Result<(), A::Error> {
        self.write("[");
        while items.next_element_seed(Inline(self.0))?.is_some() {
            self.write(",");
        }
        self.write("]");
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut entries: A) -> Result<(), A::Error> {
        let mut seen = BTreeSet::new();
        self.write("{");
        while let Some(key) = entries.next_key::<String>()? {
            if !seen.is_empty() {
                self.write(", ");
            }
            self.write_quoted(&key)?;
            self.write(" = ");
            entries.next_value_seed(Inline(self.0))?;
            if let Some(key) = seen.replace(key) {
                return Err(A::Error::custom(format!("the key {key:?} is given twice")));
            }
        }
        self.write("}");
        Ok(())
    }
}
