//! Checkpoints: what the doors ask of whoever can copy this node's directory. `node` can; nobody here knows a disk.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::rpc::BoxFuture;

/// A checkpoint's name: what a client may say about where it goes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct CheckpointName(String);

impl CheckpointName {
    /// The longest name.
    pub const MAX_LEN: usize = 64;

    /// Checks a name: letters, digits, `.`, `_` and `-`, and no dot in front. It is one name in one directory and cannot
    /// lead anywhere else.
    pub fn new(text: &str) -> Option<Self> {
        let is_name = (1..=Self::MAX_LEN).contains(&text.len())
            && !text.starts_with('.')
            && text.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'_' | b'-'));
        is_name.then(|| Self(text.to_owned()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for CheckpointName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a checkpoint holds. Stored in it too, as JSON: names are added, never changed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointInfo {
    /// Its name.
    pub name: String,
    /// Where it lies, on the node's machine.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub path: String,
    /// The node that it is a copy of.
    pub node: String,
    /// That node's directory.
    pub uuid: String,
    /// When it was made: microseconds since 1970, by the node's clock.
    pub taken_micros: u64,
    /// Whether the node's disk counted then.
    pub voting: bool,
    /// Tables.
    pub tables: usize,
    /// Their bytes; links, so they take space of their own only once the node has replaced them.
    pub bytes: u64,
    /// Records in them, tombstones and older ones of a key too.
    pub records: u64,
    /// Tombstones among those.
    pub tombstones: u64,
}

/// Why there is no checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CheckpointError {
    /// The name is taken. HTTP 409.
    #[error("a checkpoint of that name exists")]
    Exists,
    /// There is none of that name. HTTP 404.
    #[error("no such checkpoint")]
    Missing,
    /// Another one is being made, or the node is starting or stopping: try again. HTTP 503.
    #[error("another checkpoint is being made, or the node is not ready; try again")]
    Busy,
    /// There is no space. HTTP 507.
    #[error("out of space")]
    NoSpace,
    /// The disk refused; half a copy may be left, under a name of its own, for the next one to remove. HTTP 500.
    #[error("{0}")]
    Failed(String),
}

/// Makes copies of a node's directory, lists and removes them.
pub trait Checkpoints: Send + Sync + fmt::Debug {
    /// Makes one. It holds everything acknowledged before the call.
    fn make(&self, name: CheckpointName) -> BoxFuture<Result<CheckpointInfo, CheckpointError>>;
    /// Those there are, by name.
    fn list(&self) -> BoxFuture<Result<Vec<CheckpointInfo>, CheckpointError>>;
    /// Removes one.
    fn remove(&self, name: CheckpointName) -> BoxFuture<Result<(), CheckpointError>>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_leads_nowhere_else() {
        for good in ["a", "2026-11-21T10.30.00", "nightly_7", &"x".repeat(64)] {
            assert!(CheckpointName::new(good).is_some(), "{good}");
        }
        for bad in
            ["", ".", "..", ".hidden", "a/b", "../a", "a\\b", "a b", "a\0", "ä", "a\n", &"x".repeat(65)]
        {
            assert!(CheckpointName::new(bad).is_none(), "{bad:?}");
        }
    }
}
