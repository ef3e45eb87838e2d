//! Admission: a token bucket per meter, the all-or-nothing decision over several of them, and the line of those who wait.
//!
//! Every function takes `now` and returns a value; nothing here sleeps, locks or reads a clock. A bucket's state is a
//! *level* in units, so that a retune can keep it: no retune hands out a burst.

mod bucket;
mod line;
mod multi;

pub use bucket::Bucket;
pub use line::{Line, Ticket};
pub use multi::{Decision, Limiter, Limits, MeterLimit, Never, Reservation};
