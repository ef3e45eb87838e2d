//! What was seen, and when: readings of a provider's limits, how requests ended, and the report that carries both
//! from a member to the leader.
//!
//! Absence is a value: [`Reading`] is `Fresh`, `Stale` or `Missing`, never NaN and never a default 0.

mod reading;
mod report;

pub use reading::{MeterReading, Reading};
pub use report::{
    Counters, Ending, HOLD_MS_MAX, LogSums, MeterReport, PoolReport, REPORT_BYTES_MAX, REPORT_SCHEMA, Report,
    ReportError, TOKEN_BYTES_MAX, TenantReport, ThrottleKind, UnitCounts,
};
