//! A leaderless, durable key-value store.

pub mod cli;
pub mod cluster;
pub mod config;
pub mod engine;
pub mod env;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
pub mod gossip;
pub mod hints;
pub mod hlc;
pub mod http;
pub mod node;
pub mod replication;
pub mod rpc;
pub mod tls;
pub mod types;
pub mod util;
