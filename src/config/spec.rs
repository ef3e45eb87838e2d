//! What a key can be: its shape, its range, what it means when it is absent. The data are in `keys`.
//!
//! *Why a table and not attributes*: three read it (the walker, the JSON schema and the reference file), so a key, its
//! text and its range stand in the source once, and a key that one of them does not know cannot be.

use super::names::Names;

/// A table whose keys are known.
pub(super) struct Table {
    pub(super) keys: &'static [&'static Key],
}

/// A key.
pub(super) struct Key {
    pub(super) name: &'static str,
    /// What it means, for whoever writes the file.
    pub(super) doc: &'static str,
    pub(super) shape: Shape,
    pub(super) absent: Absent,
    /// A good value, as TOML.
    pub(super) example: &'static str,
}

/// What the absence of a key is.
pub(super) enum Absent {
    /// A mistake.
    Refused,
    /// The same as this value, as TOML.
    Reads(&'static str),
    /// Something that no value says.
    Means(&'static str),
    /// The same, of a key that does not go with all others: the reference shows it as a comment.
    Instead(&'static str),
}

/// What a value can be.
pub(super) enum Shape {
    /// A number; the unit is for the reader, empty when it has none.
    Number { min: f64, max: f64, unit: &'static str },
    /// A whole number.
    Count { min: u32, max: u32, unit: &'static str },
    /// `true` or `false`.
    Truth,
    /// Text that code reads. The pattern is for editors: it takes all that the code takes, and little else.
    Text { expected: &'static str, pattern: &'static str },
    /// One of some words.
    OneOf(&'static [&'static str]),
    /// At least one text.
    List { expected: &'static str, item: &'static Self },
    /// A table with known keys.
    Table(&'static Table),
    /// The value of this key alone, or a table.
    KeyOr(&'static Key, &'static Table),
    /// A table whose keys are names.
    Entries { expected: &'static str, names: Names, entry: &'static Self, least: usize },
}

impl Key {
    /// What is allowed, and what its absence means, in sentences.
    pub(super) fn facts(&self) -> String {
        let mut expected = self.shape.expected_in_full() + ". ";
        if let Some(first) = expected.get_mut(..1) {
            first.make_ascii_uppercase();
        }
        if matches!(self.shape, Shape::Table(_)) {
            expected.clear();
        }
        match self.absent {
            Absent::Refused => format!("{expected}Required."),
            Absent::Reads("{}") => format!("{expected}May be absent."),
            Absent::Reads(default) => format!("{expected}Default: {default}."),
            Absent::Means(what) | Absent::Instead(what) => format!("{expected}When absent: {what}."),
        }
    }
}

impl Shape {
    /// What is allowed, with every word of a long list.
    fn expected_in_full(&self) -> String {
        match self {
            Self::OneOf(words) => listed(words),
            Self::KeyOr(Key { shape: Self::OneOf(words), .. }, table) => {
                format!("{}, or {}", listed(words), braced(table))
            }
            _ => self.expected(),
        }
    }

    /// What is allowed, as the end of "expected …". A long list is cut short: what was meant is offered beside it.
    pub(super) fn expected(&self) -> String {
        let unit = |unit: &str| if unit.is_empty() { String::new() } else { format!(" ({unit})") };
        match self {
            Self::Number { min, max, unit: of } => {
                format!("a number from {} to {}{}", written(*min), written(*max), unit(of))
            }
            Self::Count { min, max, unit: of } => format!("a whole number from {min} to {max}{}", unit(of)),
            Self::Entries { expected, entry, .. } if !matches!(entry, Self::Table(_)) => {
                format!("{expected}, for each {}", entry.expected())
            }
            Self::Text { expected, .. } | Self::List { expected, .. } | Self::Entries { expected, .. } => {
                (*expected).to_owned()
            }
            Self::OneOf(words) if words.len() > WORDS_TOLD_MAX => {
                let first = words.iter().take(3).map(|word| format!("\"{word}\"")).collect::<Vec<_>>().join(", ");
                format!("{first} or another of the {} that `tidegate schema --reference` lists", words.len())
            }
            Self::OneOf(words) => listed(words),
            Self::Truth => "true or false".to_owned(),
            Self::Table(_) => "a table".to_owned(),
            Self::KeyOr(key, table) => format!("{}, or {}", key.shape.expected(), braced(table)),
        }
    }
}

/// More words than these are not all told in a message.
const WORDS_TOLD_MAX: usize = 8;

fn listed(words: &[&str]) -> String {
    either(words.iter().map(|word| format!("\"{word}\"")))
}

/// `{ rate, burst }`.
fn braced(table: &Table) -> String {
    let names: Vec<&str> = table.keys.iter().map(|key| key.name).collect();
    format!("{{ {} }}", names.join(", "))
}

/// `a`, `a or b`, `a, b or c`.
pub(super) fn either(names: impl IntoIterator<Item = String>) -> String {
    let mut names: Vec<String> = names.into_iter().collect();
    match names.pop() {
        Some(last) if names.is_empty() => last,
        Some(last) => format!("{} or {last}", names.join(", ")),
        None => String::new(),
    }
}

/// A bound as a person writes it.
fn written(number: f64) -> String {
    if number >= 1e7 { format!("{number:e}") } else { number.to_string() }
}

/// Every key below `root` and the table that it belongs in, with placeholders for names: `[pools.<id>.default]`.
pub(super) fn homes(root: &'static Table) -> Vec<(&'static str, String)> {
    fn walk(table: &'static Table, path: &str, homes: &mut Vec<(&'static str, String)>) {
        for key in table.keys {
            if !path.is_empty() {
                homes.push((key.name, format!("[{path}]")));
            }
            let dot = if path.is_empty() { "" } else { "." };
            let path = format!("{path}{dot}{}", key.name);
            match &key.shape {
                Shape::Table(table) => walk(table, &path, homes),
                Shape::Entries { names, entry: Shape::Table(table) | Shape::KeyOr(_, table), .. } => {
                    walk(table, &format!("{path}.{}", names.placeholder()), homes);
                }
                _ => {}
            }
        }
    }
    let mut homes = Vec::new();
    walk(root, "", &mut homes);
    homes
}
