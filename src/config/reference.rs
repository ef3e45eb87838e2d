//! The reference file: every key with its text, its range, its default and an example, from the table of keys.

use std::fmt::Write as _;

use super::keys::ROOT;
use super::spec::{Absent, Key, Shape, Table};

/// Where a comment's lines end.
const COLUMNS: usize = 120;

const HEAD: &str = "\
#:schema ./tidegate.schema.json
#
# Every key of tidegate's configuration, each set to an example; those that stand instead of another are comments. The file is made from the same table as the parser
# (`tidegate schema --reference`); to start from, tidegate.toml beside it is shorter. A key that is not known is an
# error: `tidegate check FILE` tells all that is wrong with a file.
";

/// The reference file, which loads as it is.
#[must_use]
pub fn reference() -> String {
    let mut out = HEAD.to_owned();
    table(&mut out, "", &ROOT, &mut Vec::new());
    out
}

/// Keys of a table; without their text when it was told before.
fn table(out: &mut String, path: &str, table: &'static Table, told: &mut Vec<*const Table>) {
    let known = told.contains(&std::ptr::from_ref(table));
    told.push(table);
    // In TOML a table's own values stand above its tables.
    let (sections, values): (Vec<_>, Vec<_>) = table.keys.iter().partition(|key| section(&key.shape).is_some());
    for (n, key) in values.into_iter().enumerate() {
        if !known {
            out.push_str(if n > 0 { "\n" } else { "" });
            describe(out, key);
        }
        let mark = if matches!(key.absent, Absent::Instead(_)) { "# " } else { "" };
        line(out, &format!("{mark}{} = {}", key.name, key.example));
    }
    for key in sections {
        let Some((name, keys)) = section(&key.shape) else { continue };
        let dots = [path, key.name, name].iter().filter(|part| !part.is_empty()).copied().collect::<Vec<_>>().join(".");
        out.push('\n');
        describe(out, key);
        line(out, &format!("[{dots}]"));
        self::table(out, &dots, keys, told);
    }
}

/// A table that has a header of its own: the example of its name, if names are its keys, and its keys.
fn section(shape: &Shape) -> Option<(&'static str, &'static Table)> {
    match shape {
        Shape::Table(keys) => Some(("", keys)),
        Shape::Entries { names, entry: Shape::Table(keys), .. } => Some((names.example(), keys)),
        _ => None,
    }
}

fn describe(out: &mut String, key: &Key) {
    comment(out, "", key.doc);
    comment(out, "", &key.facts());
    if let Shape::Entries { entry: &Shape::KeyOr(_, keys), .. } | Shape::KeyOr(_, keys) = key.shape {
        for key in keys.keys {
            comment(out, "  ", &format!("{}: {} {}", key.name, key.doc, key.facts()));
        }
    }
}

/// Words in lines of comment.
fn comment(out: &mut String, indent: &str, text: &str) {
    let begin = format!("#{indent}");
    let mut now = begin.clone();
    for word in text.split_whitespace() {
        if now.chars().count() + 1 + word.chars().count() > COLUMNS {
            line(out, &now);
            now.clone_from(&begin);
        }
        now.push(' ');
        now.push_str(word);
    }
    line(out, &now);
}

fn line(out: &mut String, text: &str) {
    let written = writeln!(out, "{text}");
    debug_assert!(written.is_ok(), "writing to a string does not fail");
}
