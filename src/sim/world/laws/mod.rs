//! Laws: who decides which request is sent when. Ours is the production code; the others are what it is measured against.

mod baselines;
mod clients;
mod elsewhere;
mod oracle;
mod ours;

use super::plant::Verdict;
use super::run::Moment;
use super::scenario::{Happening, Scenario};
use crate::clock::MonoTime;

pub use baselines::{Aimd, Arc, AwsAdaptive, Cooldown, Fixed, Retry};
pub use clients::{Client, Clients};
pub use oracle::Oracle;
pub use ours::Ours;

/// Who decides. What is to be done it says by the [`Moment`]'s orders.
pub trait Law {
    /// What it is called.
    fn name(&self) -> &'static str;
    /// The world begins.
    fn begin(&mut self, moment: &mut Moment<'_>);
    /// A request has come.
    fn arrived(&mut self, request: usize, moment: &mut Moment<'_>);
    /// The provider refused it: it is still to be sent, or to be given up.
    fn refused(&mut self, request: usize, verdict: &Verdict, moment: &mut Moment<'_>);
    /// The first byte of its answer is there.
    fn answered(&mut self, request: usize, sent_at: MonoTime, verdict: &Verdict, moment: &mut Moment<'_>);
    /// Its answer is there.
    fn ended(&mut self, request: usize, moment: &mut Moment<'_>);
    /// What [`Moment::wake_at`] was asked for.
    fn woken(&mut self, word: u64, moment: &mut Moment<'_>);
    /// Something has happened to the world. Most of it nobody is told of.
    fn happened(&mut self, what: &Happening, moment: &mut Moment<'_>);
}

/// The laws by name, the oracle first.
pub const NAMES: [&str; 10] = [
    "oracle",
    "ours",
    "ours_shared",
    "aimd_fair",
    "aimd",
    "aws_adaptive",
    "retry",
    "static",
    "litellm_cooldown",
    "vector_arc",
];

/// A law of a world.
///
/// # Errors
/// What there is, when there is no such law; what is wrong with the world.
pub fn law(name: &str, scenario: &Scenario) -> Result<Box<dyn Law>, String> {
    Ok(match name {
        "oracle" => Box::new(Oracle::new(scenario)),
        "ours" => Box::new(Ours::new(scenario, "ours", true)?),
        "ours_shared" => Box::new(Ours::new(scenario, "ours_shared", true)?.counting_together()),
        "aimd_fair" => Box::new(Ours::new(scenario, "aimd_fair", false)?),
        "aimd" => Box::new(Clients::<Aimd>::new(scenario)),
        "aws_adaptive" => Box::new(Clients::<AwsAdaptive>::new(scenario)),
        "retry" => Box::new(Clients::<Retry>::new(scenario)),
        "static" => Box::new(Clients::<Fixed>::new(scenario)),
        "litellm_cooldown" => Box::new(Clients::<Cooldown>::new(scenario)),
        "vector_arc" => Box::new(Clients::<Arc>::new(scenario)),
        _ => return Err(format!("no law {name}: expected one of {}", NAMES.join(", "))),
    })
}
