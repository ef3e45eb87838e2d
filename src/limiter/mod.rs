//! Admission: what counts on each meter (a token bucket, a fixed window, a sliding one or an exact log), the all-or-nothing
//! decision over several meters, holds, places in flight, and the line of those who wait.
//!
//! Every function takes `now` and returns a value; nothing here sleeps, locks or reads a clock. A bucket's state is a
//! *level* in units, so that a retune can keep it: no retune hands out a burst.
//!
//! ```
//! use std::collections::BTreeMap;
//!
//! use tidegate::clock::MonoTime;
//! use tidegate::limiter::{Bound, Counting, Denial, Limiter, Limits, MeterLimit, Wait};
//! use tidegate::plan::Rate;
//! use tidegate::quota::{Cost, Meter};
//!
//! // 60 requests a minute, two at once; and 600 LLM tokens a minute, at most 100 of them at once.
//! let limit = |rate, burst| MeterLimit {
//!     rate: Rate { rate, burst },
//!     largest_request: burst,
//!     counting: Counting::TokenBucket,
//!     together: None,
//! };
//! let meters = BTreeMap::from([
//!     (Meter::REQUESTS_PER_MINUTE, limit(60.0, 2.0)),
//!     (Meter::TOKENS_PER_MINUTE, limit(600.0, 100.0)),
//! ]);
//! let limits = Limits { meters, ..Limits::default() };
//! // A bucket begins with what a second gives; after ten it is full.
//! let mut limiter = Limiter::new(&limits, MonoTime::from_millis(0));
//! let now = MonoTime::from_millis(10_000);
//!
//! let Ok(first) = limiter.decide(&Cost::request(90, 0), now) else { panic!("there is room") };
//! // Room for a request, but not for its tokens: neither is taken, and the wait is for 80 tokens of 10 a second.
//! let second = limiter.decide(&Cost::request(90, 0), now);
//! let tokens = Bound::Meter(Meter::TOKENS_PER_MINUTE);
//! assert_eq!(second, Err(Denial::WaitUntil(Wait { at: Some(MonoTime::from_millis(18_000)), by: tokens })));
//! // No wait makes this one fit.
//! assert!(matches!(limiter.decide(&Cost::request(101, 0), now), Err(Denial::Never(_))));
//! // The provider charged less than was reserved: the rest is back.
//! limiter.settle(first, Some(Cost::request(30, 0)), now);
//! assert!(matches!(limiter.decide(&Cost::request(60, 0), now), Ok(_)));
//! ```

mod bucket;
mod concurrency;
mod counter;
mod decision;
mod fixed;
mod hold;
mod limits;
mod line;
mod log;
mod multi;
mod owed;
mod reach;
mod sliding;
mod tally;

pub use bucket::Bucket;
pub use decision::{Bound, Decision, Denial, Never, Wait};
pub use fixed::{Alignment, FixedWindow};
pub use hold::Hold;
pub use limits::{Counting, Limits, MeterLimit, Together};
pub use line::{Ahead, BATCH_STEPS_BACK, Line, Priority, Ticket};
pub use log::{ENTRIES_MAX, SlidingLog};
pub use multi::{CALL_MAX, Claimed, Limiter, Reservation, Stored};
pub use sliding::SlidingWindow;
pub use tally::{Count, Question, Settlement, Taken, Tallies, TallyRule};
