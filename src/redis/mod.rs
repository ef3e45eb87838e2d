//! Redis, for members that must agree at each request: counting together, requests for later, answers from before.
//!
//! Nothing here is needed to run: a member without Redis, or one that cannot reach it, goes by its share.
//!
//! One server, a cluster, or one that sentinels watch; with TLS and a user (ACL): all by the `redis` crate.

mod answers;
mod connection;
mod queue;
mod tally;

pub use answers::{AnswersInRedis, AnswersParams};
pub use connection::{Redis, RedisParams, RedisTls, Topology, Unreachable};
pub use queue::{
    DeadLetter, Delivered, Done, NotRevived, QueueError, QueueLengths, QueueParams, RequeueStream, Worker, WorkerParams,
};
pub use tally::RedisTally;
