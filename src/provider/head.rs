//! A response's head, of whatever HTTP library.

use std::fmt;

/// A response's headers.
pub trait Headers: fmt::Debug {
    /// Hands over each line in order: its name in lower case, and its value. A repeated header is several lines.
    fn for_each<'a>(&'a self, each: &mut dyn FnMut(&'a str, &'a [u8]));
}

/// What is read before the body arrives.
#[derive(Debug, Clone, Copy)]
pub struct Head<'a> {
    /// The status code.
    pub status: u16,
    /// The headers.
    pub headers: &'a dyn Headers,
}

/// Lines as they came; names must be in lower case.
impl Headers for Vec<(String, Vec<u8>)> {
    fn for_each<'a>(&'a self, each: &mut dyn FnMut(&'a str, &'a [u8])) {
        for (name, value) in self {
            each(name, value);
        }
    }
}
