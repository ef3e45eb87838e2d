//! What is wrong with a file: every mistake on a line of its own, with its place, the key and what is allowed.

use std::fmt;

use serde::Serialize;

/// So many mistakes are told where there is one line for them.
const TOLD_MAX: usize = 3;

/// Whether a file with it is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// It is not.
    Error,
    /// It is, but somebody should look.
    Warning,
    /// It is, and might be better so.
    Advice,
}

/// One mistake: `config/tidegate.toml:12:15: pools.a.concurrency: found 0, expected …`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Mistake {
    /// The file, as it was named.
    pub file: String,
    /// The line, from 1; `None` when it is the file itself.
    pub line: Option<usize>,
    /// The column in characters, from 1.
    pub column: Option<usize>,
    /// Whether the file is taken in spite of it.
    pub severity: Severity,
    /// The key, dotted from the top of the file; empty for the file itself.
    pub key: String,
    /// What was found, as written.
    pub found: Option<String>,
    /// What is allowed.
    pub expected: Option<String>,
    /// What was probably meant: a name, a value, or the table where it belongs.
    pub suggestion: Option<String>,
    /// All of it in one sentence.
    pub message: String,
}

/// The mistakes of a file, in the order of the file.
#[derive(Debug, Clone, Default, PartialEq, Eq, thiserror::Error)]
pub struct Mistakes {
    /// The mistakes.
    pub list: Vec<Mistake>,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        for number in [self.line, self.column].into_iter().flatten() {
            write!(f, ":{number}")?;
        }
        f.write_str(": ")?;
        f.write_str(match self.severity {
            Severity::Error => "",
            Severity::Warning => "warning: ",
            Severity::Advice => "advice: ",
        })?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, mistake) in self.list.iter().enumerate() {
            write!(f, "{}{mistake}", if n > 0 { "\n" } else { "" })?;
        }
        Ok(())
    }
}

impl Mistakes {
    /// How many keep the file from being taken.
    #[must_use]
    pub fn errors(&self) -> usize {
        self.list.iter().filter(|mistake| mistake.severity == Severity::Error).count()
    }

    /// The first few, where there is one line for them, and the file need not be named.
    #[must_use]
    pub fn in_one_line(&self) -> String {
        let told = self.list.iter().take(TOLD_MAX).map(|mistake| match mistake.key.as_str() {
            "" => mistake.message.clone(),
            key => format!("{key}: {}", mistake.message),
        });
        let mut told: Vec<String> = told.collect();
        let more = self.list.len().saturating_sub(TOLD_MAX);
        if more > 0 {
            told.push(format!("and {more} more"));
        }
        told.join("; ")
    }
}

impl Mistake {
    /// A mistake of the file as a whole.
    /// Something that the file cannot say: what it names is not there.
    #[must_use]
    pub fn of_what_it_names(file: &str, key: &str, message: String) -> Self {
        Self { severity: Severity::Warning, key: key.to_owned(), ..Self::of_file(file, message) }
    }

    pub(super) fn of_file(file: &str, message: String) -> Self {
        let file = file.to_owned();
        let (line, column, found, expected, suggestion) = (None, None, None, None, None);
        Self { file, line, column, severity: Severity::Error, key: String::new(), found, expected, suggestion, message }
    }
}
