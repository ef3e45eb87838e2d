//! The order of published records.

use serde::{Deserialize, Serialize};

/// (term, epoch), ordered lexicographically per pool: an older one never replaces a newer one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Stamp {
    /// The leader key's create revision.
    pub term: u64,
    /// A counter per pool, from 1 in each term.
    pub epoch: u64,
}
