//! A ring in a box: seeded clocks, disks and network, real nodes, and checkers that read what clients saw.
//!
//! ```text
//! workload ──writes, reads──> Member (real node, toy register) ──Transport──> SimNet ──Handler──> Member
//!    │                           │ Env: MemVfs under FaultVfs, SimClock, Pool::simulated, Tasks::abortable
//!    └──> History                faults: crash, pause, cut off, lose, repeat, skew, wipe, rot, set back, swap, fill, slow down
//!            │                   shape: 1 to 7 nodes, N = 3 or 5, zones, weights, each node's own W, R and timeout
//!            ├──> checker_versions, checker_values ──> violations, with the seed that shows them
//!    checks ─┴─ acknowledgements against disks, availability, convergence before any read, nothing held at rest
//! ```
//!
//! One current-thread runtime with paused time runs everything, so a seed decides every order and every
//! failure; a trace hash proves it. The idea is `FoundationDB`'s.

pub mod checker_values;
pub mod checker_versions;
pub mod checks;
pub mod clock;
#[cfg(feature = "planted-mistakes")]
pub mod directed;
pub mod faults;
pub mod history;
pub mod member;
pub mod net;
pub mod real_node;
pub mod run;
pub mod shape;
pub mod shrink;
pub mod sweep;
pub mod toy_register;
pub mod trace;
pub mod workload;
pub mod world;
