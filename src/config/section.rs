//! Walks a parsed TOML table: takes known keys, checks each value, and notes every mistake with its line and key.
//!
//! *Why not serde alone*: it stops at the first mistake and does not know where in the tree it is. Here one run
//! names them all. *Unknown keys* are mistakes: what is left in a [`Section`] at its end was not asked for.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::ops::{Range, RangeInclusive};

use toml::de::{DeTable, DeValue};

use super::error::{Mistake, Mistakes};

/// Names this near are offered for a misspelt one (Jaro–Winkler, 0–1): one slip in a word of five letters.
const ALIKE_MIN: f64 = 0.8;
/// Errors quote at most this much of a value.
const QUOTE_CHARS_MAX: usize = 60;

/// The file that is read: its text, for line numbers and quotes, and its mistakes so far.
pub(super) struct Document<'a> {
    name: &'a str,
    text: &'a str,
    mistakes: RefCell<Vec<Mistake>>,
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
    pub(super) place: Place<'a>,
    table: DeTable<'a>,
    known: Vec<&'static str>,
}

/// A value and its place.
pub(super) struct Field<'a> {
    pub(super) place: Place<'a>,
    value: DeValue<'a>,
}

// === impl Document ===

impl<'a> Document<'a> {
    pub(super) fn new(name: &'a str, text: &'a str) -> Self {
        Self { name, text, mistakes: RefCell::default() }
    }

    /// The file's top table, unless the text is no TOML.
    pub(super) fn root(&'a self) -> Result<Section<'a>, Mistakes> {
        let place = |span| Place { document: self, key: String::new(), span };
        match DeTable::parse(self.text) {
            Ok(table) => Ok(Section { place: place(0..0), table: table.into_inner(), known: Vec::new() }),
            Err(error) => {
                let text = error.message().lines().collect::<Vec<_>>().join(", ");
                place(error.span().unwrap_or(0..0)).mistake(format!("not TOML: {text}"));
                Err(self.so_far())
            }
        }
    }

    /// The end of reading: good when no mistake was noted.
    pub(super) fn end(&self) -> Result<(), Mistakes> {
        let mistakes = self.so_far();
        if mistakes.list.is_empty() { Ok(()) } else { Err(mistakes) }
    }

    fn so_far(&self) -> Mistakes {
        let mut list = self.mistakes.borrow().clone();
        list.sort();
        Mistakes { file: self.name.to_owned(), list }
    }
}

// === impl Place ===

impl Place<'_> {
    pub(super) fn mistake(&self, text: impl Into<String>) {
        let before = self.document.text.get(..self.span.start).unwrap_or_default();
        let line = 1 + before.bytes().filter(|byte| *byte == b'\n').count();
        self.document.mistakes.borrow_mut().push(Mistake { line, key: self.key.clone(), text: text.into() });
    }

    /// Notes that what stands here is not what is `expected`.
    pub(super) fn expected(&self, expected: &str) {
        self.mistake(format!("found {}, expected {expected}", self.quote()));
    }

    /// What stands here, as written, on one line.
    fn quote(&self) -> String {
        let written = self.document.text.get(self.span.clone()).unwrap_or_default();
        let line = written.lines().next().unwrap_or_default();
        let mut quote: String = line.chars().take(QUOTE_CHARS_MAX).collect();
        if quote.len() < written.len() {
            quote.push('…');
        }
        quote
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

// === impl Section ===

impl<'a> Section<'a> {
    /// The value of `key`, if it is there.
    pub(super) fn take(&mut self, key: &'static str) -> Option<Field<'a>> {
        self.known.push(key);
        let value = self.table.remove(key)?;
        Some(Field { place: self.place.below(key, value.span()), value: value.into_inner() })
    }

    /// The table under `key`; `None` when it is absent, or no table, which is noted.
    pub(super) fn take_section(&mut self, key: &'static str) -> Option<Section<'a>> {
        self.take(key)?.into_section("a table")
    }

    /// Notes what was not taken as unknown.
    pub(super) fn end(mut self) {
        self.known.sort_unstable();
        for (key, _) in &self.table {
            let key = (key.get_ref(), key.span());
            let near = |known: &&&str| strsim::jaro_winkler(known, key.0);
            let nearest = self.known.iter().max_by(|a, b| near(a).total_cmp(&near(b)));
            let guess = match nearest.filter(|known| near(known) >= ALIKE_MIN) {
                Some(known) => format!("did you mean \"{known}\"? Allowed"),
                None => "allowed".to_owned(),
            };
            let place = self.place.below(key.0, key.1);
            place.mistake(format!("unknown key; {guess}: {}", self.known.join(", ")));
        }
    }

    /// Every entry in the order of the file, for a table whose keys are names: the key and its place, and the value.
    pub(super) fn entries(self) -> impl Iterator<Item = (String, Place<'a>, Field<'a>)> {
        let Self { place, table, .. } = self;
        let mut entries: Vec<_> = table.into_iter().collect();
        entries.sort_by_key(|(key, _)| key.span().start);
        entries.into_iter().map(move |(key, value)| {
            let at = |span| place.below(key.get_ref(), span);
            let (of_key, of_value) = (at(key.span()), at(value.span()));
            (key.into_inner().into_owned(), of_key, Field { place: of_value, value: value.into_inner() })
        })
    }
}

// === impl Field ===

impl<'a> Field<'a> {
    pub(super) fn into_section(self, expected: &str) -> Option<Section<'a>> {
        if let DeValue::Table(table) = self.value {
            return Some(Section { place: self.place, table, known: Vec::new() });
        }
        self.place.expected(expected);
        None
    }

    /// The values of an array.
    pub(super) fn into_items(self, expected: &str) -> Option<Vec<Field<'a>>> {
        if let DeValue::Array(items) = self.value {
            let at = |span| Place { span, ..self.place.clone() };
            let item = |item: toml::Spanned<DeValue<'a>>| Field { place: at(item.span()), value: item.into_inner() };
            return Some(items.into_iter().map(item).collect());
        }
        self.place.expected(expected);
        None
    }

    pub(super) fn is_table(&self) -> bool {
        self.value.is_table()
    }

    /// The text, if `read` takes it.
    pub(super) fn text<T>(&self, expected: &str, read: impl FnOnce(&str) -> Option<T>) -> Option<T> {
        let value = self.value.as_str().and_then(read);
        if value.is_none() {
            self.place.expected(expected);
        }
        value
    }

    /// The number, if it lies in `range`.
    pub(super) fn number(&self, expected: &str, range: &RangeInclusive<f64>) -> Option<f64> {
        let number = match &self.value {
            DeValue::Float(number) => number.as_str().parse().ok(),
            // An integer is read as one first: `0x10` is a number too.
            DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix()).ok().map(to_f64),
            _ => None,
        };
        let number = number.filter(|number| range.contains(number));
        if number.is_none() {
            self.place.expected(expected);
        }
        number
    }

    /// The whole number, if it lies in `range`.
    pub(super) fn count(&self, expected: &str, range: &RangeInclusive<u32>) -> Option<u32> {
        let number = self.value.as_integer();
        let number = number.and_then(|number| u32::from_str_radix(number.as_str(), number.radix()).ok());
        let number = number.filter(|number| range.contains(number));
        if number.is_none() {
            self.place.expected(expected);
        }
        number
    }
}

#[allow(clippy::cast_precision_loss, reason = "a limit above 2^53 is out of every range anyway")]
fn to_f64(number: i64) -> f64 {
    number as f64
}
