//! Adaptive limits for services that share LLM provider accounts.
//!
//! Many services, replicas and tenants share a few accounts whose limits change without notice. tidegate reads what the
//! provider says in response heads and 429s, estimates what each account can take now, divides it among tenants, and
//! publishes thresholds to etcd; the thin client in each service watches them and retunes its buckets, without a restart
//! and without handing out a burst.
//!
//! # Where to begin
//!
//! | you want to | read |
//! |---|---|
//! | limit a service's calls | [`client`]: the middleware, calls by hand, streams, refusals |
//! | run the controller | `tidegate run --help`, `tidegate check --help`, `config/reference.toml` |
//! | change pools and tenants without a restart, try limits, turn them off | `tidegate policy --help`; [`plan::Mode`], [`client::MODE_VARIABLE`] |
//! | override a limit, by hand or from code | `tidegate override --help`; [`plan`], with the record's fields; [`store`] to write it |
//! | see what holds, and why | `tidegate status --help`, `tidegate limits --help`, `tidegate explain --help` |
//! | try a law in a simulated world | [`sim::world`], or `tidegate simulate` |
//! | test against a provider that says no | [`sim::emulator`], or `tidegate emulate` |
//! | read a provider's headers without the rest | [`provider`] |
//! | limit something with `now` as an argument | [`limiter`] |
//! | keep refused requests for later, and answers for others, in Redis | [`redis::RequeueStream`], [`redis::Worker`], [`redis::AnswersInRedis`] |
//! | know what is counted | [`telemetry::Metric`] |
//!
//! `examples/` has whole programs: the reqwest middleware, the tower layer, fallbacks, a queue and its worker, a
//! call by hand, an override from code.
//!
//! # How it works
//!
//! ```text
//!             ┌──────────────── a service, or many ────────────────┐        ┌────────── controller ──────────┐
//!             │                                                    │ report │                                │
//!  provider ◄─┼─ call ◄─ permit ◄─ limiter ◄─ swap ◄─ watch        ├───────►│ signal ─► law ─► apportion     │
//!     │       │            │                         ▲             │◄───────┤ shares        └► planner       │
//!     └───────┼─► head ─► observation ─► hold        │             │ reply  │                       │        │
//!             └──────────────────────────────────────┼─────────────┘        └───────────────────────┼────────┘
//!                                                    │                                      publish │ fenced
//!                  operators: overrides ────────►  etcd  ◄──────────────────────────────────────────┘
//! ```
//!
//! Two speeds. *Reflex*: a 429 holds the member's own bucket at once, in microseconds, with no network between, for as
//! long as the provider's physics says. *Loop*: once a second, and at once on the first 429 after quiet, the controller
//! estimates capacity, divides it and publishes; a cut goes out as one small record, so that it reaches every member in
//! milliseconds whatever the number of tenants.
//!
//! Without a controller, or without etcd, members go on: with their shares for 5 s, then with safe thresholds, at most half;
//! 429s brake them further. An override holds all the same.
//!
//! # Architecture
//!
//! A folder is a feature, and imports point one way: up the list of modules below. `tests/it/architecture.rs` reads the
//! source and holds these:
//!
//! 1. Imports follow a table, and there is no circle. [`client`] and [`controller`] never import each other: they meet in
//!    [`observation`] on the way up and in [`plan`] on the way down.
//! 2. What decides is pure. [`quota`], [`clock`], [`observation`], [`plan`], [`provider`], [`limiter`] and [`telemetry`] do
//!    no I/O, are not async, and read no clock but in [`clock`]: `now` is an argument, so every decision can be replayed.
//! 3. `cfg(feature)` stands in `lib.rs` only: features add, they never alter.
//! 4. The thin client (`--no-default-features --features client`) pulls in nothing of the controller's; the list of its
//!    dependencies is a golden file.
//! 5. No `unsafe`, no glob imports, no orphan files, no file above 700 lines, no module that is a grab bag.
//!
//! What a run holds, each a test:
//!
//! 6. A request is admitted on all its meters or on none.
//! 7. A retune keeps the level: no swap, however often, hands out a burst, and debt stays.
//! 8. The shares of one tenant never add up to more than its threshold: they are leases, and nobody is raised before
//!    another has said that it gave way.
//! 9. An older (term, epoch) never replaces a newer one, and a leader that was deposed writes nothing: each of its writes
//!    is fenced by its term.
//! 10. No shared key is deleted because somebody stops. A tenant whose grant is gone goes to `@default`, never open.
//! 11. An unreadable header, report, record or policy is counted, said once and ignored.
//! 12. A provider's key is never stored, logged or put in a metric.
//!
//! # Words
//!
//! | word | meaning |
//! |---|---|
//! | provider, dialect | who answers; its way of writing limits in headers |
//! | pool | what one provider limit applies to: account × model (family) |
//! | tenant | whose traffic it is; has a weight, a floor, a ceiling |
//! | unit, window, meter | what is counted (requests, tokens, input or output tokens); over what time; both: `requests/minute` |
//! | limit | what the provider says |
//! | capacity | the controller's estimate of what the pool can take now |
//! | threshold | what a tenant is granted on one meter, all members together |
//! | grant | one published record: thresholds, safe thresholds, term, epoch, reason |
//! | policy, mode | what holds for a pool: capacity, tenants; whether its limits are enforced, observed or off |
//! | override | an operator's record, always stronger than the law |
//! | base, effective | what a tenant is granted without its override; with it |
//! | level | what is in a bucket, in units; refilled at a *rate*, up to a *burst* |
//! | token | an LLM token, never a bucket's contents |
//! | reservation | units taken before a call; *settled* with the real usage after it |
//! | member | a live client process |
//! | pulse | the leader's heartbeat for a pool; grants live by it |
//! | enforcement | who counts a meter: each member its share (local), or all together in Redis (shared) |
//! | share | the part of a tenant's threshold that one member enforces; a lease |
//! | hold | a meter on which a member does not send for a while, because the provider refused |
//! | admit, wait until, never | the three answers of a limiter |

#![forbid(unsafe_code)]

// Always compiled; pure.
pub mod quota;
pub mod clock;
pub mod observation;
pub mod plan;
pub mod provider;
pub mod limiter;
pub mod telemetry;

// What does I/O.
#[cfg(feature = "store")]
pub mod store;
#[cfg(any(feature = "client", feature = "controller"))]
mod https;
#[cfg(feature = "client")]
pub mod client;
#[cfg(feature = "redis")]
pub mod redis;
#[cfg(feature = "metrics")]
#[path = "telemetry/exposition.rs"]
pub mod exposition;
#[cfg(feature = "controller")]
pub mod controller;
#[cfg(feature = "sim")]
pub mod sim;
#[cfg(feature = "cli")]
pub mod config;
#[cfg(feature = "cli")]
pub mod cli;

/// The README's example, compiled.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct Readme;
