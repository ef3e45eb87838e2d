//! How a client stands, to be looked at: in a health check, or by whoever is on call.

use std::collections::BTreeMap;
use std::time::Duration;

use super::heard::MemberState;
use super::member::PoolView;
use super::process::Core;
use crate::plan::Mode;
use crate::plan::keyspace::LeaderRecord;
use crate::quota::PoolId;

/// How a client stands.
#[derive(Debug, Clone, PartialEq)]
pub struct ClientStatus {
    /// This process's name among the members.
    pub instance: String,
    /// Its own word on whether limits hold, stronger than every pool's policy.
    pub mode: Option<Mode>,
    /// Who leads, as far as is known.
    pub leader: Option<LeaderRecord>,
    /// The leader's term, 0 before any was seen.
    pub term: u64,
    /// How long ago the store last said anything; `None` before it ever did. It gives a sign of life every 3 s, and above
    /// 9 s what is enforced may be out of date.
    pub store_silence: Option<Duration>,
    /// Its pools.
    pub pools: BTreeMap<PoolId, PoolStatus>,
}

/// How a client stands in a pool.
#[derive(Debug, Clone, PartialEq)]
pub struct PoolStatus {
    /// How it stands to the leader.
    pub state: MemberState,
    /// What becomes of the limits here.
    pub mode: Mode,
    /// How long ago the last pulse came that counts; `None` before any did.
    pub pulse_age: Option<Duration>,
}

/// How it stands now.
pub(super) fn status(core: &Core) -> ClientStatus {
    let now = core.clock.now();
    let pools = {
        let views = core.views.lock();
        let pool = |(id, view): (&PoolId, &PoolView)| {
            let pulse_age = view.pulse_at().map(|at| now.since(at));
            (id.clone(), PoolStatus { state: view.state(now), mode: core.mode_of(view), pulse_age })
        };
        views.iter().map(pool).collect()
    };
    let session = core.session.lock();
    ClientStatus {
        instance: core.instance.clone(),
        mode: core.mode,
        leader: session.leader().cloned(),
        term: session.term(),
        store_silence: session.silence(now),
        pools,
    }
}
