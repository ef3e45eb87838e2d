//! Worlds in which laws are judged: tenants' requests, the processes that they go through, and a provider with its moods.
//!
//! [`run`] lives through a [`Scenario`] under a [`Law`], in virtual time and from one seed: the same requests come at the same
//! moments whatever the law. [`Run::outcome`] compares what came of it with what an [oracle](laws::Oracle) made of the same
//! world, who sees the account.

pub mod laws;
mod measure;
mod plant;
mod random;
mod run;
pub mod scenario;

pub use laws::Law;
pub use measure::{Books, Outcome, Second};
pub use plant::{Plant, Server, Verdict, head, headers, limits};
pub use random::random;
pub use run::{Moment, Order, Request, Run, run};
pub use scenario::{Bands, Scenario};
