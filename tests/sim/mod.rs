//! A ring in a box: seeded clocks, disks and network, real nodes, and checkers that read what clients saw.
//!
//! ```text
//! workload ──writes, reads──> Member (real node, toy register) ──Transport──> SimNet ──Handler──> Member
//!    │                           │ Env: MemVfs under FaultVfs, SimClock, Pool::simulated, Tasks::abortable
//!    └──> History                faults: crash, cut off, lose, repeat, skew, wipe, rot, fail a sync
//!            └──> checker_versions, checker_values ──> violations, with the seed that shows them
//! ```
//!
//! One current-thread runtime with paused time runs everything, so a seed decides every order and every
//! failure; a trace hash proves it. The idea is `FoundationDB`'s.

pub mod checker_values;
pub mod checker_versions;
pub mod clock;
pub mod faults;
pub mod history;
pub mod member;
pub mod net;
pub mod real_node;
pub mod run;
pub mod toy_register;
pub mod trace;
pub mod workload;
pub mod world;
