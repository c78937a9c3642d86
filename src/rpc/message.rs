//! `ReplicaRequest`, `ReplicaResponse`: what replicas ask each other and answer. `rpc::codec` puts them on the wire.

use bytes::Bytes;

use crate::types::{Key, KeyRange, NodeId, Record, Timestamp, Version};

/// A request and the sender's clock.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// The sender's hybrid logical clock.
    pub clock: Timestamp,
    /// What is asked.
    pub body: ReplicaRequest,
}

/// An answer and the answerer's clock.
#[derive(Debug, Clone, PartialEq)]
pub struct Response {
    /// The answerer's hybrid logical clock.
    pub clock: Timestamp,
    /// What is answered.
    pub body: ReplicaResponse,
}

/// Records in one message, at most: of a write, of hints, of a page. Whoever has more sends several messages.
pub const ITEMS_MAX: usize = 16_384;

/// Bytes of keys and records that one message of several items should stay under. One record may exceed it alone;
/// small enough that a group of a large batch does not hold up the requests behind it.
pub const GROUP_BYTES_MAX: usize = 1 << 20;

/// Why records are being written. Numbered on the wire: never renumber.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteOrigin {
    /// A client's write.
    Client = 0,
    /// A hint delivered.
    Hint = 1,
    /// Read repair: the winner, sent to a replica that was behind.
    Repair = 2,
}

/// What one replica asks another.
#[derive(Debug, Clone, PartialEq)]
pub enum ReplicaRequest {
    /// Are you there, and who are you? Facts go both ways.
    Ping(Facts),
    /// Store these records durably, all in one frame of the log.
    Write {
        /// Why.
        origin: WriteOrigin,
        /// The records; each key's replicas include the receiver.
        items: Vec<(Key, Record)>,
    },
    /// Keep these records durably as hints for `target`.
    StoreHints {
        /// Who should have them.
        target: NodeId,
        /// The records.
        items: Vec<(Key, Record)>,
    },
    /// The newest record of a key, whole.
    Read {
        /// Which key.
        key: Key,
    },
    /// The versions of the newest records of some keys.
    ReadVersions {
        /// Which keys, at most [`ITEMS_MAX`].
        keys: Vec<Key>,
    },
    /// A page of records in key order, tombstones included.
    Scan(ScanRequest),
    /// How busy are you? Asked while somebody looks at the status page.
    AskLoad,
}

/// Which records a scan wants, and where a page ends.
#[derive(Debug, Clone, PartialEq)]
pub struct ScanRequest {
    /// Which keys.
    pub range: KeyRange,
    /// Only keys of which both this node and the receiver are primaries; `None`: all keys the receiver is a primary of.
    pub shared_with: Option<NodeId>,
    /// Records a page, at most.
    pub rows_max: u32,
    /// Bytes of keys and values a page, at most (one record may exceed it alone).
    pub bytes_max: u32,
    /// Entries looked at for a page, at most.
    pub examined_max: u32,
}

/// What a replica answers.
#[derive(Debug, Clone, PartialEq)]
pub enum ReplicaResponse {
    /// To `Ping`.
    Pong(Facts),
    /// To `Write`: all is durable here.
    Written {
        /// Whether this replica counts towards W.
        voting: bool,
        /// Which items met a newer record, by their places, and its timestamp.
        overtaken: Vec<(u32, Timestamp)>,
    },
    /// To `StoreHints`: the hints are durable here.
    HintsStored,
    /// To `Read`.
    Record {
        /// Whether this replica counts towards R.
        voting: bool,
        /// The newest record, if there is any.
        record: Option<Record>,
    },
    /// To `ReadVersions`.
    Versions {
        /// Whether this replica counts towards R.
        voting: bool,
        /// What is held of each key, in the order asked.
        held: Vec<HeldVersion>,
    },
    /// To `Scan`.
    Page(ScanPage),
    /// To `AskLoad`: JSON for the status page, which alone knows what is in it; empty while the doors are closed.
    Load(Bytes),
    /// Nothing was done, and why.
    Refused(Refusal),
}

/// What a replica holds of a key, told without the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeldVersion {
    /// Nothing.
    Nothing,
    /// A record of this version.
    Version(Version),
    /// Something that cannot be read.
    Damaged,
}

/// A page of a scan.
#[derive(Debug, Clone, PartialEq)]
pub struct ScanPage {
    /// Whether this replica counts towards R.
    pub voting: bool,
    /// Records in key order, tombstones included, the newest of each key.
    pub items: Vec<(Key, Record)>,
    /// Where the next page starts; `None` when the range is exhausted.
    pub resume: Option<Bytes>,
    /// Whether the page lacks keys because blocks that hold them are damaged. Only pages for another node
    /// ([`ScanRequest::shared_with`]) go round such blocks; others are refused.
    pub damaged: bool,
}

/// Why a replica did nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The disk is full.
    #[error("out of space")]
    NoSpace,
    /// Too much is waiting already.
    #[error("busy")]
    Busy,
    /// A record's timestamp, or the sender's clock, is too far ahead.
    #[error("timestamp is {ahead_ms} ms ahead of this node's clock")]
    TooFarAhead {
        /// How far, in milliseconds.
        ahead_ms: u64,
    },
    /// What was asked for is damaged here.
    #[error("damaged")]
    Damaged,
    /// The disk failed; the node takes no writes until it is restarted.
    #[error("disk failed: read-only until restarted")]
    Poisoned,
    /// The node is starting or stopping.
    #[error("not ready")]
    NotReady,
    /// The receiver is no primary of a key: the rings differ.
    #[error("not a replica of the key")]
    NotAReplica,
}

/// What a node tells another about itself with every ping, and what it remembers of the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Identity of the sender's directory.
    pub uuid: u128,
    /// Drawn by chance at the sender's start: tells its runs apart, also two that began from copies of one directory.
    pub run: u64,
    /// The clock's high-water mark that the sender found on its disk when it started, or the highest mark that a
    /// rebuild has made up for since, whichever is higher: what it acknowledged under marks up to this one it holds.
    pub explained: Timestamp,
    /// The mark that is on its disk now: never goes back on an honest disk.
    pub mark: Timestamp,
    /// Whether its disk counts for R and W.
    pub voting: bool,
    /// Whether its disk has ever counted.
    pub has_voted: bool,
    /// The sender's wall clock.
    pub wall: Timestamp,
    /// The receiver's directory as the sender last knew it, and the highest mark it heard from it.
    pub remembered: Option<(u128, Timestamp)>,
    /// Bytes of hints that the sender holds for the receiver.
    pub hints_waiting: u64,
    /// Whether the sender met the receiver's present directory, which had never voted, before it cast its own first
    /// vote: the cluster began with both of them.
    pub founded_with: bool,
}
