//! Reports, and what sources tell beside them ([`Outside`]), turned into what the law and the division need: rates, endings since the last decrease, the newest reading.
//!
//! Counters are cumulative, so a lost report loses nothing; a new boot id starts a member's counters again, and a
//! counter that runs backwards counts as no change. Ages are relative to receipt: no clocks are compared.

mod outside;
mod pool;
mod rate;
mod readings;

pub use outside::{Counts, Measured, Outside, Pressure, Role};
pub(super) use pool::DEMAND_OF_ONE_WAITING;
pub(super) use pool::MEMBER_SILENT_MAX;
pub use pool::{Asked, PoolSignal, Urgency};
pub use rate::SmoothRate;
pub use readings::DoubtedLimit;
