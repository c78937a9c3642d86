//! Hints: writes that a replica missed, kept on another node's disk until they can be delivered.
//!
//! ```text
//! a write for A, B, C      A ok, B ok, C down ─> hint for C on the coordinator's disk (HintStore)
//! C answers again          hints for C in batches ─> C acknowledges ─> those hints are deleted (HintReplayer)
//! ```
//!
//! A hint is no copy: it counts towards no quorum unless the request asks for a sloppy one. It brings a
//! replica up to date soon after its return; reads that find it behind, and later anti-entropy, mend the rest.
//!
//! Hints are bounded per target in bytes and in age. What the bounds drop is counted, and the range of the
//! dropped key is marked dirty, durably: its replicas are known to differ.
//!
//! Source: DeCandia et al., "Dynamo" (2007), section 4.6; `docs/dev/hinted_handoff_design.md` of scylladb. Unlike
//! there, a key's newer hint replaces the older one, so a counter written a million times is one hint.

mod age;
pub(crate) mod encoding;
pub mod replay;
pub mod store;

pub use replay::{Delivery, HintReplayer, Outcome};
pub use store::{Error, Hint, HintStats, HintStore, Settings};
