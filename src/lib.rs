//! Adaptive limits for services that share LLM provider accounts.

#![forbid(unsafe_code)]

pub mod quota;
pub mod clock;
pub mod observation;
pub mod plan;
