//! Who is in the world, and what can happen to them.

use std::collections::BTreeSet;
use std::fmt;

use tidegate::observation::Report;
use tidegate::plan::{Reply, Target};
use tidegate::quota::PoolId;
use tidegate::sim::lossy::{Client, WatchId, Wire};
use tidegate::store::{Change, LeaseId};

/// What somebody is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Member,
    Controller,
    Operator,
}

/// Somebody, in one of its lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Of {
    pub kind: Kind,
    pub who: usize,
    pub life: usize,
}

impl Of {
    /// Its number at the store.
    pub fn client(self) -> Client {
        (self.kind as usize * 100 + self.who) * 100 + self.life
    }
}

impl fmt::Display for Of {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Member => "member",
            Kind::Controller => "controller",
            Kind::Operator => "operator",
        };
        write!(f, "{kind} {}", self.who)?;
        if self.life > 0 { write!(f, "'{}", self.life) } else { Ok(()) }
    }
}

/// A member's timers.
#[derive(Debug, Clone, Copy)]
pub enum Timer {
    House,
    Reopen,
    Report,
    ReportGivenUp(u64),
    Presence,
    Load,
    Ends(u64),
}

/// A controller's.
#[derive(Debug, Clone, Copy)]
pub enum Duty {
    Campaign,
    Keep(LeaseId),
    Tick(LeaseId),
    EarlyTick(LeaseId),
}

/// What a trouble leaves to be mended.
#[derive(Debug, Clone, Copy)]
pub enum Mend {
    Weather(Of),
    Roads(usize),
    Down,
    Full,
    Stalled(WatchId),
    Controller(usize),
    Member(usize),
}

/// What happens.
#[derive(Debug)]
pub enum Event {
    Wire(Wire),
    Member(Of, Timer),
    Controller(Of, Duty),
    /// Somebody between store and member tells once more, and late, of records that were told of before.
    Late {
        to: Of,
        watch: WatchId,
        restored: usize,
        changes: Vec<Change>,
    },
    /// A report reaches a controller.
    Report {
        to: usize,
        from: Of,
        nth: u64,
        report: Box<Report>,
    },
    /// Its answer reaches the member.
    Reply {
        to: Of,
        nth: u64,
        reply: Result<Reply, Option<String>>,
    },
    Operator,
    /// An operator tries once more what failed.
    Again,
    Trouble,
    Mend(Mend),
    /// An override was written a while ago.
    IsInForce {
        pool: PoolId,
        target: Target,
        revision: u64,
        watches: BTreeSet<(Of, WatchId)>,
    },
}

impl From<Wire> for Event {
    fn from(wire: Wire) -> Self {
        Self::Wire(wire)
    }
}
