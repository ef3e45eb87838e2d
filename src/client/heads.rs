//! Heads of `http` and all that is built on it, as `provider` reads them: the one place where the two meet.

use crate::provider::Headers;

impl Headers for http::HeaderMap {
    fn for_each<'a>(&'a self, each: &mut dyn FnMut(&'a str, &'a [u8])) {
        for (name, value) in self {
            each(name.as_str(), value.as_bytes());
        }
    }
}
