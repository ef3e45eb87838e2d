//! The mode: whether limits are enforced. A pool's policy says it to all members; a member's own word is stronger.

use serde::{Deserialize, Serialize};

/// What members make of a pool's limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Limits hold.
    #[default]
    Enforce,
    /// Each request is decided and counted, and all are admitted.
    Observe,
    /// All are admitted, and nothing is counted.
    Off,
}

impl Mode {
    /// All modes.
    pub const ALL: [Self; 3] = [Self::Enforce, Self::Observe, Self::Off];

    /// Its name in records, configuration and the environment.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Enforce => "enforce",
            Self::Observe => "observe",
            Self::Off => "off",
        }
    }

    /// The mode of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mode| mode.as_str() == name)
    }

    /// Whether limits hold.
    #[must_use]
    pub fn enforces(&self) -> bool {
        *self == Self::Enforce
    }

    /// Its place in [`Mode::ALL`], as metrics show it.
    #[must_use]
    pub fn number(self) -> f64 {
        match self {
            Self::Enforce => 0.0,
            Self::Observe => 1.0,
            Self::Off => 2.0,
        }
    }
}
