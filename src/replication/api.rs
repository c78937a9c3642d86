//! What the doors (HTTP, tests, the simulation) ask of a coordinator, and what it answers.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;

use crate::types::{Key, KeyRange, NodeId, Record, Timestamp, Ttl, Value};

/// How a write is to be made.
#[derive(Debug, Clone, Copy, Default)]
pub struct WriteOptions {
    /// W for this request, 1 to N; `None`: the ring's.
    pub write_quorum: Option<usize>,
    /// Whether hints on other nodes count towards W.
    pub sloppy: bool,
}

/// How a read is to be made.
#[derive(Debug, Clone, Copy, Default)]
pub struct ReadOptions {
    /// R for this request, 1 to N; `None`: the ring's.
    pub read_quorum: Option<usize>,
}

/// What a write does to its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mutation {
    /// Gives it a value.
    Put(Value),
    /// Gives it a value that ends so long after the write's timestamp.
    PutFor(Value, Ttl),
    /// Deletes it.
    Delete,
}

impl Mutation {
    /// Gives it a value, for so long or for ever.
    pub fn put(value: Value, ttl: Option<Ttl>) -> Self {
        match ttl {
            Some(ttl) => Self::PutFor(value, ttl),
            None => Self::Put(value),
        }
    }
}

/// Where a write stood when it was answered. The four add up to N.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Acks {
    /// Replicas that have it on disk.
    pub durable: usize,
    /// Replicas for which a hint is on disk.
    pub hinted: usize,
    /// Replicas that failed and have no hint yet.
    pub failed: usize,
    /// Replicas that have not answered.
    pub pending: usize,
}

impl fmt::Display for Acks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { durable, hinted, failed, pending } = self;
        write!(f, "durable={durable} hinted={hinted} failed={failed} pending={pending}")
    }
}

/// A write that met its quorum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WriteReceipt {
    /// The write's one timestamp.
    pub timestamp: Timestamp,
    /// Where it stood.
    pub acks: Acks,
    /// A newer timestamp that a replica already had.
    pub overtaken: Option<Timestamp>,
}

/// Why nothing was sent to any replica.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotSent {
    /// Fewer replicas than the quorum are known to be reachable and voting.
    #[error("{reachable} of {total} replicas are reachable and voting, {needed} are needed")]
    TooFewReplicas {
        /// The quorum.
        needed: usize,
        /// How many could have been asked.
        reachable: usize,
        /// N.
        total: usize,
    },
    /// This node's clock is ahead of a majority's by more than `MAX_CLOCK_SKEW`: what it stamped would win against
    /// later writes of others.
    #[error("this node's clock is {:.1} s ahead of a majority's", .0.as_secs_f64())]
    ClockAhead(Duration),
    /// The node is starting or stopping.
    #[error("not ready: {0}")]
    NotReady(String),
    /// `MAX_INFLIGHT_BYTES` are in flight.
    #[error("too much in flight")]
    Overloaded,
}

/// Why a write was not acknowledged.
#[derive(Debug, Clone, thiserror::Error)]
pub enum WriteError {
    /// No replica was sent anything: safe to retry. HTTP 503.
    #[error("{0}")]
    NotSent(#[from] NotSent),
    /// Every replica refused for want of space before storing. HTTP 507.
    #[error("out of space on every replica")]
    NoSpace,
    /// Some replicas may have it, and hints may deliver it yet. HTTP 504.
    #[error("{} of {needed} replicas acknowledged in time; some may have the write all the same ({causes})", .acks.durable)]
    Unknown {
        /// The write's timestamp.
        timestamp: Timestamp,
        /// Where it stood.
        acks: Acks,
        /// The quorum.
        needed: usize,
        /// Which replica failed how, in one line.
        causes: String,
    },
}

/// Why a read was not answered.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReadError {
    /// HTTP 503.
    #[error("{0}")]
    NotSent(#[from] NotSent),
    /// Too few replicas answered in time, or the winner could not be written back. HTTP 504.
    #[error("{answered} of {needed} replicas answered in time ({causes})")]
    Unanswered {
        /// How many did.
        answered: usize,
        /// The quorum.
        needed: usize,
        /// Which replica failed how, in one line.
        causes: String,
    },
    /// Every reachable copy is damaged. HTTP 500.
    #[error("every reachable copy is damaged ({causes})")]
    Damaged {
        /// Which replica said what.
        causes: String,
    },
}

/// An item of a batch that was not acknowledged.
#[derive(Debug, Clone)]
pub struct FailedItem {
    /// Its key.
    pub key: Key,
    /// Why.
    pub error: WriteError,
}

/// What became of a batch.
#[derive(Debug, Clone, Default)]
pub struct BatchReceipt {
    /// The highest timestamp given to an item; zero for an empty batch.
    pub timestamp: Timestamp,
    /// The worst of its groups: the fewest durable copies. `None` for an empty batch.
    pub acks: Option<Acks>,
    /// A newer timestamp that a replica already had for some item.
    pub overtaken: Option<Timestamp>,
    /// The items that were not acknowledged, in the order they were given.
    pub failed: Vec<FailedItem>,
}

/// Which part of a scan a page is to hold.
#[derive(Debug, Clone, Default)]
pub struct ScanOptions {
    /// Which keys.
    pub range: KeyRange,
    /// R for this request.
    pub read_quorum: Option<usize>,
    /// Values a page, at most.
    pub rows_max: usize,
    /// Bytes a page, at most.
    pub bytes_max: usize,
    /// Entries examined a page, at most.
    pub examined_max: usize,
}

/// A page of a scan: values only, in key order.
#[derive(Debug, Clone, Default)]
pub struct ValuePage {
    /// The keys and their newest records, each of them a value.
    pub items: Vec<(Key, Record)>,
    /// Where the next page starts; `None` when the range is exhausted.
    pub resume: Option<Bytes>,
    /// Keys that were looked at, deleted ones included.
    pub examined: usize,
}

impl ValuePage {
    /// The keys and their values.
    pub fn values(&self) -> impl Iterator<Item = (&Key, &Value)> {
        self.items.iter().filter_map(|(key, record)| Some((key, record.as_value()?)))
    }
}

/// What one replica holds of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplicaState {
    /// A record: a value or a tombstone.
    Holds(Record),
    /// Nothing.
    Missing,
    /// It did not answer, or refused; why.
    Unreachable(String),
}

/// Every replica's view of a key, and who wins.
#[derive(Debug, Clone)]
pub struct Explanation {
    /// The winner, if any replica holds a record.
    pub winner: Option<NodeId>,
    /// Each primary and what it holds.
    pub replicas: Vec<(NodeId, ReplicaState)>,
}

/// What a node believes of a member. Belief, not decision: membership is the ring's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeState {
    /// Answers, and its disk counts.
    Up,
    /// Answers, but its disk does not count yet.
    Rebuilding,
    /// Has not answered for a moment.
    Suspect,
    /// Has not answered for a second, or refuses our handshake.
    Down,
}

/// One member as this node sees it.
#[derive(Debug, Clone)]
pub struct NodeStatus {
    /// Its name.
    pub node: NodeId,
    /// What this node believes of it.
    pub state: NodeState,
    /// The part of all vnodes that it owns, 0 to 1.
    pub share: f64,
    /// Hints that this node holds for it: how many, and their bytes.
    pub hints_pending: u64,
    /// Bytes of those hints.
    pub hint_bytes: u64,
    /// Its clock minus ours, in milliseconds, as of the last ping.
    pub clock_offset_ms: Option<i64>,
    /// By how many milliseconds its clock was last seen out of bounds within the last hour, and how long ago.
    pub clock_was_off: Option<(i64, Duration)>,
    /// Why it counts as unreachable though it answers (another ring, another secret).
    pub mismatch: Option<String>,
}

/// One condition of readiness.
#[derive(Debug, Clone)]
pub struct Check {
    /// Its name: `recovered`, `voting`, `clock`, `disk`.
    pub name: &'static str,
    /// What is wrong, if anything.
    pub problem: Option<String>,
}

/// What the request path has done since the node started.
#[derive(Debug, Clone, Default)]
pub struct ReplicationStats {
    /// Hints stored, by now delivered, and dropped at the cap or of old age.
    pub hints_stored: u64,
    /// Hints delivered.
    pub hints_delivered: u64,
    /// Hints dropped, at the cap or of old age.
    pub hints_dropped: u64,
    /// Records sent to replicas that a read found behind.
    pub read_repairs: u64,
    /// Reads that wrote the winner back before they answered.
    pub write_backs: u64,
    /// Acknowledged writes that met a newer record.
    pub overtaken: u64,
    /// Timestamps refused because they were too far ahead.
    pub timestamps_refused: u64,
    /// Requests to peers that failed or timed out.
    pub peer_failures: u64,
    /// Reads sent to one more replica because one was slow.
    pub hedged_reads: u64,
    /// Records received by rebuilds.
    pub rebuilt_records: u64,
    /// Times this node found that a value of its disk had expired.
    pub expired: u64,
    /// Bytes of requests in flight.
    pub inflight_bytes: u64,
    /// Background repairs under way.
    pub repairs_running: u64,
}
