//! What is wrong with a file: every mistake on a line of its own, with the line number and the key.

use std::fmt;
use std::io;

/// Why a configuration was not taken.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("{file}: cannot be read: {source}")]
    Read {
        /// The file, as it was named.
        file: String,
        /// What the system said.
        source: io::Error,
    },
    /// The file was read, and these are its mistakes.
    #[error("{0}")]
    Mistakes(Mistakes),
}

/// One mistake: `config/tidegate.toml:12: pools.a.concurrency: found 0, expected …`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mistake {
    /// The line, from 1.
    pub line: usize,
    /// The key, dotted from the top of the file; empty for the file itself.
    pub key: String,
    /// What was found and what is allowed.
    pub text: String,
}

/// All mistakes of a file, by line. Never empty in an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistakes {
    /// The file, as it was named.
    pub file: String,
    /// The mistakes, by line.
    pub list: Vec<Mistake>,
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, Mistake { line, key, text }) in self.list.iter().enumerate() {
            let (newline, colon) = (if n > 0 { "\n" } else { "" }, if key.is_empty() { "" } else { ": " });
            write!(f, "{newline}{}:{line}: {key}{colon}{text}", self.file)?;
        }
        Ok(())
    }
}
