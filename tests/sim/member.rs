//! What the world knows of a node, be it real or a toy.

use std::fmt;
use std::sync::Arc;

use kvstore::env::Env;
use kvstore::replication::api::{Mutation, ReplicaState};
use kvstore::rpc::{BoxFuture, Handler, Transport};
use kvstore::types::{Key, Record, Timestamp, Value};

use super::history::Outcome;
use super::run::Options;

/// A node that runs.
pub trait Member: Send + Sync {
    /// What serves its peers.
    fn handler(&self) -> Arc<dyn Handler>;
    /// Writes items as one request; one outcome an item.
    fn write(&self, items: Vec<(Key, Mutation)>) -> BoxFuture<Vec<Outcome>>;
    /// Reads a key; why not, if not.
    fn read(&self, key: Key) -> BoxFuture<Result<Option<Record>, String>>;
    /// Reads all keys, page by page; why not, if not.
    fn scan(&self) -> BoxFuture<Result<Vec<(Key, Value)>, String>>;
    /// What every replica of a key holds.
    fn explain(&self, key: Key) -> BoxFuture<Vec<ReplicaState>>;
    /// The reading of its clock.
    fn clock(&self) -> Timestamp;
    /// How it is.
    fn health(&self) -> Health;
    /// Stops it in good order.
    fn stop(&self) -> BoxFuture<()>;
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
    /// What else keeps it from serving, in words.
    pub problems: Vec<String>,
}

impl fmt::Debug for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { poisoned, voting, hints, problems } = self;
        write!(f, "voting {voting}, poisoned {poisoned}, {hints} hints, {problems:?}")
    }
}

/// What a node is started with.
pub struct Start {
    pub node: usize,
    pub options: Options,
    pub env: Env,
    pub transport: Arc<dyn Transport>,
}

/// Starts a node; why not, if not.
pub type Starter = Arc<dyn Fn(Start) -> BoxFuture<Result<Arc<dyn Member>, String>> + Send + Sync>;
