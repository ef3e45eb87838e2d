//! All tests that need more than one module.

#![allow(unreachable_pub, reason = "the crate is a test: nothing is reachable, and pub says what a file offers")]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "counts of a test stay small"
)]
#![allow(clippy::items_after_statements, reason = "a table's row type stands beside the table")]
#![allow(clippy::too_many_lines, reason = "a story is told in one piece, a table of cases too")]

mod admission;
mod anthropic;
mod anthropic_emulator;
mod answers_in_redis;
mod apportion;
mod architecture;
mod by_hand;
mod closed_loop;
mod commands;
mod config;
mod congestion;
mod corpus;
mod dashboards;
mod demo;
mod emulated;
mod emulator;
mod etcd_auth;
mod etcd_faults;
mod etcd_tls;
mod examples;
mod fallback;
mod fuzz;
mod gate;
mod gate_model;
mod history;
mod knee;
mod last_known;
mod law;
mod law_parts;
mod layer;
mod leader_faults;
mod limiter;
mod limiter_twin;
mod line;
mod measuring;
mod member;
mod middleware;
mod mistaken;
mod mode;
mod operators;
mod peers;
mod peers_store;
mod outbox;
mod planner;
mod policy;
mod policy_commands;
mod policy_live;
mod print;
mod provider;
mod provider_bodies;
mod provider_facts;
mod provider_quirks;
mod provider_rows;
mod real_prometheus;
mod real_worlds;
mod records;
mod reporters;
mod seat;
mod reports;
mod requeue;
mod requeue_storm;
mod schema;
mod sdk;
mod self_hosted;
mod session;
mod shares;
mod sight;
mod signals;
mod simulation;
mod slow_ways;
mod stand;
mod store;
mod streams;
mod tally;
mod tally_fleet;
mod tally_member;
mod telemetry;
mod together;
mod top;
mod usage;
mod windows;
mod windows_by_clock;
mod world;
mod worlds;
