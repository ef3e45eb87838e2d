//! Walks a parsed TOML table by its specification: takes known keys, checks each value, and notes every mistake with
//! its place and key.
//!
//! *Why not serde alone*: it stops at the first mistake and does not know where in the tree it is. Here one run
//! names them all. *Unknown keys* are mistakes: what is left in a [`Section`] at its end was not asked for.

use std::cell::{Cell, RefCell};
use std::fmt::Write as _;
use std::ops::Range;

use toml::de::{DeTable, DeValue};

use super::error::{Mistake, Mistakes, Severity};
use super::keys::{HOMES, ROOT};
use super::names::{Names, nearest};
use super::spec::{Absent, Key, Shape, Table, either};

/// Errors quote at most this much of a value.
const QUOTE_CHARS_MAX: usize = 60;
/// More mistakes than this are counted, not listed.
const MISTAKES_MAX: usize = 1_000;

/// The file that is read: its text, for places and quotes, and its mistakes so far.
pub(super) struct Document<'a> {
    name: &'a str,
    text: &'a str,
    /// Where each line begins.
    lines: Vec<usize>,
    mistakes: RefCell<Vec<Mistake>>,
    /// Mistakes that were one too many to list.
    more: Cell<usize>,
}

/// Where something stands in the file.
#[derive(Clone)]
pub(super) struct Place<'a> {
    document: &'a Document<'a>,
    key: String,
    span: Range<usize>,
}

/// A table with the keys that were not taken yet.
pub(super) struct Section<'a> {
    place: Place<'a>,
    table: DeTable<'a>,
    keys: &'static Table,
}

/// A value, its place, and what it can be.
pub(super) struct Field<'a> {
    pub(super) place: Place<'a>,
    value: DeValue<'a>,
    shape: &'static Shape,
}

/// What is said of a mistake.
#[derive(Default)]
struct Note {
    message: String,
    found: Option<String>,
    expected: Option<String>,
    suggestion: Option<String>,
}

// === impl Document ===

impl<'a> Document<'a> {
    pub(super) fn new(name: &'a str, text: &'a str) -> Self {
        let newlines = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at + 1);
        let lines = std::iter::once(0).chain(newlines).collect();
        Self { name, text, lines, mistakes: RefCell::default(), more: Cell::default() }
    }

    /// The file's top table, unless the text is no TOML.
    pub(super) fn root(&'a self) -> Result<Section<'a>, Mistakes> {
        let (table, errors) = DeTable::parse_recoverable(self.text);
        let mut line = 0;
        for error in &errors {
            let place = self.at(error.span().unwrap_or_default());
            // What follows on the same line is mostly confusion about the first.
            if place.line() > line {
                line = place.line();
                place.no_toml(error.message());
            }
        }
        // What was saved of a broken file would be judged by what is missing from it.
        if errors.is_empty() {
            Ok(Section { place: self.at(0..0), table: table.into_inner(), keys: &ROOT })
        } else {
            Err(self.end())
        }
    }

    /// A place in the file that is no key's.
    pub(super) fn at(&'a self, span: Range<usize>) -> Place<'a> {
        Place { document: self, key: String::new(), span }
    }

    /// The mistakes that were noted, in the order of the file.
    pub(super) fn end(&self) -> Mistakes {
        let mut list = self.mistakes.borrow().clone();
        list.sort();
        let more = self.more.get();
        if more > 0 {
            let message = format!("too many mistakes; {more} more are not listed");
            list.push(Mistake::of_file(self.name, message));
        }
        Mistakes { list }
    }
}

// === impl Place ===

impl Place<'_> {
    /// Notes a mistake that one sentence tells.
    pub(super) fn mistake(&self, message: impl Into<String>) {
        self.note(Severity::Error, Note { message: message.into(), ..Note::default() });
    }

    /// Notes that what stands here is not what is `expected`.
    pub(super) fn expected(&self, expected: &str) {
        self.found(Severity::Error, expected, None);
    }

    /// Notes that what stands here is allowed but not what is `expected`.
    pub(super) fn warning(&self, expected: &str) {
        self.found(Severity::Warning, expected, None);
    }

    /// Notes that what stands here is no table; a key that belongs in one is told which.
    fn expected_table(&self, expected: &str) {
        let (found, name) = (self.quote(), self.key.rsplit('.').next().unwrap_or_default());
        let known = HOMES.iter().any(|(known, _)| *known == name);
        let (suggestion, said) = if known { elsewhere(name) } else { (None, String::new()) };
        let message = format!("found {found}, expected {expected}{said}");
        let note = Note { message, found: Some(found), expected: Some(expected.to_owned()), suggestion };
        self.note(Severity::Error, note);
    }

    fn found(&self, severity: Severity, expected: &str, suggestion: Option<String>) {
        let found = self.quote();
        let meant = suggestion.as_ref().map(|meant| format!("; did you mean {meant}?")).unwrap_or_default();
        let message = format!("found {found}, expected {expected}{meant}");
        self.note(severity, Note { message, found: Some(found), expected: Some(expected.to_owned()), suggestion });
    }

    /// Notes that the name that stands here is refused; `error` says what was found and what is allowed.
    pub(super) fn name_refused(&self, names: Names, name: &str, error: &str) {
        let suggestion = names.meant(name);
        let meant = suggestion.as_ref().map(|meant| format!("; did you mean {meant:?}?")).unwrap_or_default();
        let expected = error.split_once(": expected ").map(|(_, expected)| expected.to_owned());
        let message = format!("{error}{meant}");
        self.note(Severity::Error, Note { message, found: Some(self.quote()), expected, suggestion });
    }

    fn missing(&self, key: &Key) {
        let expected = key.shape.expected();
        let message =
            format!("\"{}\" is missing, expected {expected}, such as {} = {}", key.name, key.name, key.example);
        let suggestion = Some(format!("{} = {}", key.name, key.example));
        self.note(Severity::Error, Note { message, expected: Some(expected), suggestion, ..Note::default() });
    }

    /// Notes that the text is no TOML here; `error` is what the parser says.
    fn no_toml(&self, error: &str) {
        let Document { text, lines, .. } = self.document;
        let begin = lines.get(self.line() - 1).copied().unwrap_or_default();
        let found = clip(text.get(begin..).unwrap_or_default().lines().next().unwrap_or_default().trim());
        let after = text.get(self.span.start..).unwrap_or_default().lines().next().unwrap_or_default().trim();
        let error = error.lines().collect::<Vec<_>>().join(", ");
        let (what, expected) = match error.split_once(", expected ") {
            Some(("string values must be quoted", _)) if after.is_empty() => ("no value", "one after the ="),
            Some((what @ "string values must be quoted", _)) => (what, "quotes, a number, true, false, [ or {"),
            Some((what @ "invalid unquoted key", _)) => {
                (what, "letters, digits, - and _, or quotes, such as \"requests/minute\"")
            }
            Some((what, "nothing")) => (what, ""),
            Some((what, expected)) => (what, expected),
            None => (error.as_str(), ""),
        };
        let expected = Some(expected.to_owned()).filter(|expected| !expected.is_empty());
        let said = expected.as_ref().map(|expected| format!(", expected {expected}")).unwrap_or_default();
        let message = format!("not TOML: found {found}: {what}{said}");
        self.note(Severity::Error, Note { message, found: Some(found), expected, suggestion: None });
    }

    fn note(&self, severity: Severity, note: Note) {
        let mut mistakes = self.document.mistakes.borrow_mut();
        if severity == Severity::Error && mistakes.len() >= MISTAKES_MAX {
            self.document.more.set(self.document.more.get() + 1);
            return;
        }
        let Note { message, found, expected, suggestion } = note;
        let (line, column) = self.position();
        mistakes.push(Mistake {
            file: self.document.name.to_owned(),
            line: Some(line),
            column: Some(column),
            severity,
            key: self.key.clone(),
            found,
            expected,
            suggestion,
            message,
        });
    }

    /// Line, and column in characters, from 1.
    fn position(&self) -> (usize, usize) {
        let Document { text, lines, .. } = self.document;
        let line = lines.partition_point(|begin| *begin <= self.span.start).max(1);
        let begin = lines.get(line - 1).copied().unwrap_or_default();
        let before = text.get(begin..self.span.start).unwrap_or_default();
        (line, 1 + before.chars().count())
    }

    /// What stands here, as written, on one line.
    fn quote(&self) -> String {
        clip(self.document.text.get(self.span.clone()).unwrap_or_default())
    }

    pub(super) fn line(&self) -> usize {
        self.position().0
    }

    fn below(&self, name: &str, span: Range<usize>) -> Self {
        let bare = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'));
        let mut key = self.key.clone();
        if !key.is_empty() {
            key.push('.');
        }
        let written = if bare { write!(key, "{name}") } else { write!(key, "{name:?}") };
        debug_assert!(written.is_ok(), "writing to a string does not fail");
        Self { document: self.document, key, span }
    }
}

/// The beginning of a text, on one line.
fn clip(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    let mut quote: String = line.chars().take(QUOTE_CHARS_MAX).collect();
    if quote.len() < text.len() {
        quote.push('…');
    }
    quote
}

// === impl Section ===

impl<'a> Section<'a> {
    /// The value of `key`; its default when it is absent; `None` when it has none, which is noted if it must be there.
    pub(super) fn take(&mut self, key: &'static Key) -> Option<Field<'a>> {
        debug_assert!(self.keys.keys.iter().any(|known| std::ptr::eq(*known, key)), "{} is no key here", key.name);
        if let Some(value) = self.table.remove(key.name) {
            let place = self.place.below(key.name, value.span());
            return Some(Field { place, value: value.into_inner(), shape: &key.shape });
        }
        match key.absent {
            Absent::Refused => {
                // A misspelt one is not missing too.
                if !self.unknown().any(|(name, _)| self.meant(name) == Some(key.name)) {
                    self.place.missing(key);
                }
                None
            }
            Absent::Reads(default) => {
                let value = DeValue::parse(default).ok()?.into_inner();
                Some(Field { place: self.place.below(key.name, self.place.span.clone()), value, shape: &key.shape })
            }
            Absent::Means(_) | Absent::Instead(_) => None,
        }
    }

    /// Whether `key` is there.
    pub(super) fn has(&self, key: &'static Key) -> bool {
        self.table.contains_key(key.name)
    }

    /// Notes what was not taken as unknown.
    pub(super) fn end(self) {
        let mut unknown: Vec<_> = self.unknown().collect();
        unknown.sort_by_key(|(_, span)| span.start);
        for (name, span) in unknown {
            let place = self.place.below(name, span);
            let meters = |key: &&&Key| matches!(key.shape, Shape::Entries { names: Names::Meters, .. });
            let here: Vec<String> = self.keys.keys.iter().filter(meters).map(|key| key.name.to_owned()).collect();
            let (suggestion, said) = if let Some(meant) = self.meant(name) {
                (Some(meant.to_owned()), format!("; did you mean \"{meant}\"?"))
            } else if name.contains('/') && !here.is_empty() {
                let belongs = either(here);
                let said = format!("; a meter belongs in {belongs}");
                (Some(belongs), said)
            } else {
                elsewhere(name)
            };
            let expected = either(self.names().map(str::to_owned));
            let message = format!("unknown key, expected {expected}{said}");
            let note = Note { message, found: Some(name.to_owned()), expected: Some(expected), suggestion };
            place.note(Severity::Error, note);
        }
    }

    fn unknown(&self) -> impl Iterator<Item = (&str, Range<usize>)> {
        let all = self.table.keys().map(|key| (key.get_ref().as_ref(), key.span()));
        all.filter(|(name, _)| !self.names().any(|known| known == *name))
    }

    fn names(&self) -> impl Iterator<Item = &'static str> {
        self.keys.keys.iter().map(|key| key.name)
    }

    /// The key of this table that a misspelt one was meant to be. A key that exists is not misspelt, only lost; unless it is all
    /// but a letter of one that is expected here.
    fn meant(&self, name: &str) -> Option<&'static str> {
        let lost = HOMES.iter().any(|(known, _)| *known == name);
        nearest(name, self.names()).filter(|meant| !lost || strsim::levenshtein(name, meant) == 1)
    }
}

/// Where a key belongs that its table does not know: for the record, and for the sentence.
fn elsewhere(name: &str) -> (Option<String>, String) {
    let known = || HOMES.iter().map(|(known, _)| *known);
    let Some(known) = known().find(|known| *known == name).or_else(|| nearest(name, known())) else {
        return (None, String::new());
    };
    let tables = either(HOMES.iter().filter(|(name, _)| *name == known).map(|(_, home)| home.clone()));
    let said = format!("; \"{known}\" belongs in {tables}");
    (Some(tables), said)
}

// === impl Field ===

impl<'a> Field<'a> {
    /// The table.
    pub(super) fn section(self) -> Option<Section<'a>> {
        if let (DeValue::Table(table), Shape::Table(keys) | Shape::KeyOr(_, keys)) = (self.value, self.shape) {
            return Some(Section { place: self.place, table, keys });
        }
        self.place.expected_table(&self.shape.expected());
        None
    }

    /// Every entry in the order of the file, for a table whose keys are names: name and place, and the value.
    pub(super) fn entries(self) -> Option<Vec<(String, Place<'a>, Field<'a>)>> {
        let (DeValue::Table(table), Shape::Entries { entry: shape, least, .. }) = (self.value, self.shape) else {
            self.place.expected_table(&self.shape.expected());
            return None;
        };
        let place = self.place;
        if table.len() < *least {
            place.expected(&self.shape.expected());
        }
        let mut entries: Vec<_> = table.into_iter().collect();
        entries.sort_by_key(|(key, _)| key.span().start);
        let mut read = Vec::with_capacity(entries.len());
        for (key, value) in entries {
            let at = |span| place.below(key.get_ref(), span);
            let (of_key, of_value) = (at(key.span()), at(value.span()));
            read.push((
                key.into_inner().into_owned(),
                of_key,
                Field { place: of_value, value: value.into_inner(), shape },
            ));
        }
        Some(read)
    }

    /// The values of an array.
    pub(super) fn items(self) -> Option<Vec<Field<'a>>> {
        if let (DeValue::Array(items), Shape::List { item: shape, .. }) = (self.value, self.shape) {
            if items.is_empty() {
                self.place.expected(&self.shape.expected());
            }
            let at = |span| Place { span, ..self.place.clone() };
            let item =
                |item: toml::Spanned<DeValue<'a>>| Field { place: at(item.span()), value: item.into_inner(), shape };
            return Some(items.into_iter().map(item).collect());
        }
        self.place.expected(&self.shape.expected());
        None
    }

    pub(super) fn is_table(&self) -> bool {
        self.value.is_table()
    }

    /// The text, if `read` takes it.
    pub(super) fn text<T>(&self, read: impl FnOnce(&str) -> Option<T>) -> Option<T> {
        self.value.as_str().and_then(read).or_else(|| self.refused())
    }

    /// The number, if it lies in the range.
    pub(super) fn number(&self) -> Option<f64> {
        let (Shape::Number { min, max, .. } | Shape::KeyOr(Key { shape: Shape::Number { min, max, .. }, .. }, _)) =
            self.shape
        else {
            return self.refused();
        };
        number(&self.value).filter(|number| (*min..=*max).contains(number)).or_else(|| self.refused())
    }

    /// The whole number, if it lies in the range.
    pub(super) fn count(&self) -> Option<u32> {
        let Shape::Count { min, max, .. } = self.shape else { return self.refused() };
        let number = self.value.as_integer();
        let number = number.and_then(|number| u32::from_str_radix(number.as_str(), number.radix()).ok());
        number.filter(|number| (*min..=*max).contains(number)).or_else(|| self.refused())
    }

    /// `true` or `false`.
    pub(super) fn truth(&self) -> Option<bool> {
        self.value.as_bool().or_else(|| self.refused())
    }

    /// Notes that the value is not what is allowed, and what was probably meant.
    fn refused<T>(&self) -> Option<T> {
        let text = self.value.as_str().unwrap_or_default();
        let meant = match self.shape {
            Shape::OneOf(words) | Shape::KeyOr(Key { shape: Shape::OneOf(words), .. }, _) => {
                nearest(text, words.iter().copied()).map(|word| format!("\"{word}\""))
            }
            // A number in quotes.
            Shape::Number { .. } | Shape::KeyOr(..) | Shape::Count { .. } => {
                text.parse::<f64>().ok().filter(|number| number.is_finite()).map(|_| text.to_owned())
            }
            _ => None,
        };
        self.place.found(Severity::Error, &self.shape.expected(), meant);
        None
    }
}

fn number(value: &DeValue<'_>) -> Option<f64> {
    match value {
        DeValue::Float(number) => number.as_str().parse().ok(),
        // An integer is read as one first: `0x10` is a number too.
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix()).ok().map(to_f64),
        _ => None,
    }
}

#[allow(clippy::cast_precision_loss, reason = "a limit above 2^53 is out of every range anyway")]
fn to_f64(number: i64) -> f64 {
    number as f64
}
