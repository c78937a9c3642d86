//! What the world knows of a node, be it real or a toy.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use kvstore::env::Env;
use kvstore::replication::api::{Mutation, ReplicaState};
use kvstore::rpc::{BoxFuture, Handler, Transport};
use kvstore::types::{Key, NodeId, Record, Timestamp, Value};

use super::history::Outcome;
use super::run::Options;

/// How a request is to be answered: by its own W or R, or by its node's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct How {
    /// W or R of this request; `None`: its node's.
    pub quorum: Option<usize>,
    /// Whether hints count towards W.
    pub sloppy: bool,
}

/// A node that runs.
pub trait Member: Send + Sync {
    /// What serves its peers.
    fn handler(&self) -> Arc<dyn Handler>;
    /// Writes items as one request; one outcome an item.
    fn write(&self, items: Vec<(Key, Mutation)>, how: How) -> BoxFuture<Vec<Outcome>>;
    /// Reads a key; why not, if not.
    fn read(&self, key: Key, how: How) -> BoxFuture<Result<Option<Record>, String>>;
    /// Reads all keys, page by page; why not, if not.
    fn scan(&self, how: How) -> BoxFuture<Result<Vec<(Key, Value)>, String>>;
    /// What every replica of a key holds.
    fn explain(&self, key: Key) -> BoxFuture<Vec<ReplicaState>>;
    /// The reading of its clock.
    fn clock(&self) -> Timestamp;
    /// How it is.
    fn health(&self) -> Health;
    /// Stops it in good order.
    fn stop(&self) -> BoxFuture<()>;
    /// Makes a copy of its directory on its own disk; says whether it did.
    fn checkpoint(&self, _name: String) -> BoxFuture<bool> {
        Box::pin(async { false })
    }
    /// What its disk holds of a key, without asking it as a replica; `None` where that cannot be told.
    #[allow(clippy::option_option)] // that nobody can tell is not that there is nothing
    fn holds(&self, _key: &Key) -> Option<Option<Record>> {
        None
    }
    /// The hint that its disk holds of a key for `target`.
    fn hint(&self, _target: &NodeId, _key: &Key) -> Option<Record> {
        None
    }
}

/// How a node is.
#[derive(Clone, Default)]
pub struct Health {
    /// Its disk failed: it must be restarted.
    pub poisoned: bool,
    /// Its disk counts for R and W.
    pub voting: bool,
    /// Hints that it holds for others.
    pub hints: u64,
    /// Hints that it dropped since it started.
    pub hints_dropped: u64,
    /// What must be nothing while it does nothing, and is not: names and amounts.
    pub held: Vec<(&'static str, u64)>,
    /// What keeps it from being ready, in words.
    pub problems: Vec<String>,
}

impl fmt::Debug for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { poisoned, voting, hints, problems, .. } = self;
        write!(f, "voting {voting}, poisoned {poisoned}, {hints} hints, {problems:?}")
    }
}

/// What a node is started with.
pub struct Start {
    pub node: usize,
    /// Where its data lies.
    pub dir: PathBuf,
    pub options: Options,
    pub env: Env,
    pub transport: Arc<dyn Transport>,
}

/// Starts a node; why not, if not.
pub type Starter = Arc<dyn Fn(Start) -> BoxFuture<Result<Arc<dyn Member>, String>> + Send + Sync>;
