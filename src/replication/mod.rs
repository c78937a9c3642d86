//! The request path of Dynamo: any node coordinates any request, over the N replicas of its key.
//!
//! # The life of a put (and of a delete, which writes a tombstone)
//!
//! ```text
//! Coordinator::put
//!   │ not serving, clock ahead of a majority, MAX_INFLIGHT_BYTES taken,
//!   ├──────── fewer than W replicas reachable and voting ──────────────────> NotSent (503): nothing was sent
//!   │ one timestamp, once: Hlc::tick (waits for the clock's mark on disk where it must)
//!   v
//! WriteGroups: with the others of this turn of the runtime that go to the same replicas
//!   v
//! WriteOp, a task of its own                    the clients may leave: the write goes on
//!   ├─ replica believed down ──> hint, synced before the answer
//!   ├─ this node's own copy ───> LocalStore ──> Engine: log, sync, memtable
//!   └─ every other replica ────> Peers ──> Replica there ──> its LocalStore
//!        │
//!        ├─ durable, and that disk votes ──> counts ──W of them──────────> receipt (200)
//!        ├─ durable, not voting ──> needs no hint, counts for nothing
//!        └─ refused, lost, late ──> hint on this node (sloppy: on a fallback, which counts then)
//!                │
//!                ├─ too few left for W, or NETWORK_TIMEOUT ──────────────> Unknown (504): hints are kept
//!                └─ all N refused for want of space ─────────────────────> NoSpace (507): no hints
//! ```
//!
//! # The life of a get
//!
//! ```text
//! Coordinator::get
//!   ├──────── fewer than R replicas reachable and voting ──────────────────> NotSent (503)
//!   v
//! quick_read: own copy from memory, versions from R − 1 others, many reads a message
//!   ├─ all alike ───────────────────────────────────────────────────────────> record or nothing (200, 404)
//!   v anything else
//! ReadOp, inside the request                    the client leaves: so does the read
//!   ├─ records from R replicas, itself first, then the fastest
//!   ├─ failed, damaged, not voting ──> the next one;  slow ──> one more beside it
//!   │      └─ nobody left, or NETWORK_TIMEOUT ─────────> Unanswered (504); all was damage: Damaged (500)
//!   v R voting answers
//! ReadRepair decides
//!   ├─ all agree, or N − R + 1 hold the winner ─────────────────────────────> record or nothing (200, 404)
//!   └─ they differ ──> write the winner back to N − R + 1, one after another ──> record (200)
//!          └─ nobody left, or NETWORK_TIMEOUT ──────────────────────────────> Unanswered (504)
//! afterwards, in the background: the versions of the others are compared; whoever is behind or damaged is sent the winner
//! ```
//!
//! # Who is who
//!
//! - [`Shared`] holds what all parts hang on; [`LocalStore`] is this node's disk, [`Peers`] are the others'.
//! - [`quorum`] and [`read_repair`] decide, without I/O; `write`, `read`, `quick_read`, `write_groups` and `batch` carry out.
//! - [`Replica`] serves what other coordinators ask. [`standing`] says whether this disk counts.
//!
//! What is *not* promised: writes of one key by two clients at once are ordered by their timestamps alone, and
//! the earlier one is lost though both were acknowledged (`X-KV-Overtaken` tells where it is seen).
//! With R + W ≤ N a read may miss an acknowledged write.
//!
//! Source: DeCandia et al., "Dynamo" (SOSP 2007), sections 4.5 to 4.7; the write-back before the answer is from
//! Attiya, Bar-Noy and Dolev (1995), which Dynamo leaves out.

pub mod api;
mod batch;
pub mod checkpoint;
pub mod clocks;
pub mod coordinator;
mod expiry;
pub mod facts;
pub mod hot_keys;
pub mod identity;
mod late_versions;
pub mod local_store;
pub mod peers;
mod quick_read;
pub mod quorum;
mod read;
pub mod read_repair;
pub mod rebuild;
pub mod replica;
pub mod scan;
pub mod shared;
pub mod standing;
mod write;
mod write_groups;

pub use crate::engine::{EngineStats, SyncTimes}; // for the doors, which know no engine
pub use api::*;
pub use checkpoint::{CheckpointError, CheckpointInfo, CheckpointName, Checkpoints};
pub use clocks::Clocks;
pub use coordinator::Coordinator;
pub use hot_keys::{HotKey, Hottest};
pub use local_store::LocalStore;
pub use peers::{Failure, Peers};
pub use replica::Replica;
pub use shared::{ClockKeeper, FactsSource, InflightPermit, LoadSource, Parts, Phase, Settings, Shared};
pub use standing::{Standing, StandingCell};
pub use write::write_to;

#[cfg(test)]
mod tests;
