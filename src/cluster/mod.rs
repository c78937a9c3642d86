//! Who is in the cluster and which keys are whose.
//!
//! ```text
//! key ─ token ─ range ─ row of the ring ─ preference list
//!                            │
//!  membership ─ share ─ assign ┘     how many ranges each node should hold, then which
//!                         │
//!                        flow          with the fewest moves
//! ```
//!
//! Pure: no async, no I/O, no clock, no opinion on who is alive. Every node computes the same ring from the same
//! member list, in whatever order it was written, so that a ring needs no peer to be up and nobody to hand it out.
//!
//! Source: DeCandia et al., "Dynamo" (SOSP 2007), strategy 3 of section 6.2: Q equal ranges fixed when the cluster
//! is made, each placed whole. We place them by quota instead of at random.

pub mod assign;
pub mod flow;
pub mod membership;
pub mod preference_list;
pub mod ring;
pub mod share;
pub mod token;

pub use assign::assign;
pub use membership::{Member, MemberError, Membership};
pub use preference_list::PreferenceList;
pub use ring::{ReplicaSetId, Ring, RingEpoch, RingSettings, Vnode};
pub use token::{RangeId, Token, TokenRange};
