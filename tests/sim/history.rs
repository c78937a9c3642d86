//! What clients asked and what they were told, in the order of real time.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kvstore::types::{Expiry, Key, Timestamp, Ttl, Value};
use parking_lot::Mutex;

/// Values are unique, so that a read names the write it saw.
pub type ValueId = u64;

/// Set in the number of a value that is written for a time.
const EXPIRING: ValueId = 1 << 63;

/// The number of a value that is written for a time.
pub fn expiring(id: ValueId) -> ValueId {
    id | EXPIRING
}

/// For how long the value of a number is written, if not for ever: 200 to 6,000 milliseconds.
pub fn ttl_of(id: ValueId) -> Option<Ttl> {
    let millis = 200 + (id.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 33) % 5800;
    (id & EXPIRING != 0).then(|| Ttl::new(Duration::from_millis(millis)).expect("within bounds"))
}

/// How many replicas an operation was to be answered by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quorum {
    /// W or R.
    pub needed: usize,
    /// N.
    pub replicas: usize,
    /// Whether hints counted too.
    pub sloppy: bool,
}

impl Quorum {
    /// A strict one.
    pub fn new(needed: usize, replicas: usize) -> Self {
        Self { needed: needed.clamp(1, replicas), replicas, sloppy: false }
    }

    /// Whether every later read by `later` must see a write that this one acknowledged.
    pub fn binds(self, later: Self) -> bool {
        !self.sloppy && self.needed + later.needed > self.replicas
    }

    /// Whether a later read by `later` must not see less than a read by this one did.
    ///
    /// A read whose replicas agree leaves its winner on R of them, one that saw disagreement on N − min(R, majority) + 1.
    pub fn binds_reads(self, later: Self) -> bool {
        let majority = self.replicas / 2 + 1;
        self.needed + later.needed > self.replicas && later.needed >= self.needed.min(majority)
    }

    /// Whether every read by a majority must see a write that this one acknowledged.
    pub fn binds_majorities(self) -> bool {
        self.binds(Self::new(self.replicas / 2 + 1, self.replicas))
    }
}

/// One write or read of one key; the items of a batch are operations of their own.
#[derive(Clone)]
pub struct Operation {
    /// Its number in the trace.
    pub number: usize,
    /// Which node was asked.
    pub node: usize,
    /// Of which key.
    pub key: usize,
    /// What was asked.
    pub action: Action,
    /// Of how many replicas.
    pub quorum: Quorum,
    /// When it was asked: a place in the one order of all starts and ends.
    pub start: u64,
    /// When it was answered, if it was.
    pub end: Option<u64>,
    /// What was answered.
    pub outcome: Outcome,
}

impl fmt::Debug for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { number, node, key, action, quorum, start, end, outcome } = self;
        let Quorum { needed, replicas, sloppy } = quorum;
        let sloppy = if *sloppy { " sloppy" } else { "" };
        let end = end.map_or("…".to_owned(), |end| end.to_string());
        write!(
            f,
            "[{number} at node {node}, {start} to {end}: {action:?} key {key}, {needed} of {replicas}{sloppy}: {outcome:?}]"
        )
    }
}

/// What is asked of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Put(ValueId),
    Delete,
    Get,
}

/// What the client was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The write is acknowledged. Its timestamp lies between the two, which are equal but for items of a batch.
    Acknowledged { at_least: Timestamp, at_most: Timestamp },
    /// The read saw this record, or none.
    Seen(Option<Seen>),
    /// Nothing was sent: the write has no effect, now or later.
    NotSent,
    /// No answer, or an answer that says so: it may take effect at any later time, or never.
    Unknown,
}

/// A record as a reader sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Its timestamp.
    pub timestamp: Timestamp,
    /// Its value; `None` for a tombstone, and for a value that has expired.
    pub value: Option<ValueId>,
    /// When the value ends, or ended.
    pub expires_at: Option<Expiry>,
}

/// A page of a scan over all keys: each was current at some moment between start and end.
#[derive(Debug, Clone)]
pub struct Scanned {
    /// By how many replicas of each range.
    pub quorum: Quorum,
    /// When it was asked.
    pub start: u64,
    /// When it was answered.
    pub end: u64,
    /// The value of each key, by number of the key.
    pub values: Vec<Option<ValueId>>,
}

/// All operations of a run. A clone is the same history.
#[derive(Debug, Clone, Default)]
pub struct History {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    moment: u64,
    operations: Vec<Operation>,
    scans: Vec<Scanned>,
}

impl History {
    /// Notes that an operation starts; returns its number.
    pub fn begin(&self, node: usize, key: usize, action: Action, quorum: Quorum) -> usize {
        let mut state = self.state.lock();
        state.moment += 1;
        let start = state.moment;
        let number = state.operations.len();
        let outcome = Outcome::Unknown;
        state.operations.push(Operation { number, node, key, action, quorum, start, end: None, outcome });
        number
    }

    /// Notes an answer.
    pub fn end(&self, number: usize, outcome: Outcome) {
        let mut state = self.state.lock();
        state.moment += 1;
        let end = state.moment;
        let operation = &mut state.operations[number];
        operation.end = Some(end);
        operation.outcome = outcome;
    }

    /// A moment in the one order of all starts and ends.
    pub fn moment(&self) -> u64 {
        let mut state = self.state.lock();
        state.moment += 1;
        state.moment
    }

    /// Notes a scan that was asked at `start` and is answered now.
    pub fn scanned(&self, start: u64, quorum: Quorum, values: Vec<Option<ValueId>>) {
        let mut state = self.state.lock();
        state.moment += 1;
        let end = state.moment;
        state.scans.push(Scanned { quorum, start, end, values });
    }

    /// The operations, in the order they started.
    pub fn operations(&self) -> Vec<Operation> {
        self.state.lock().operations.clone()
    }

    /// The scans, in the order they ended.
    pub fn scans(&self) -> Vec<Scanned> {
        self.state.lock().scans.clone()
    }
}

/// The key of a number. Some hold bytes that need care in text.
pub fn key_of(number: usize) -> Key {
    let text = match number % 4 {
        0 => format!("key{number}"),
        1 => format!("k/{number} &+%"),
        2 => format!("\0{number}"),
        _ => format!("key{number}\n\u{e9}"),
    };
    Key::new(text.into_bytes()).expect("short")
}

/// The value of a number: the number, and bytes that follow from it.
pub fn value_of(id: ValueId, len_max: usize) -> Value {
    let len = 8 + (id.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40) as usize % len_max.max(1);
    let mut bytes = id.to_be_bytes().to_vec();
    let mut state = id | 1;
    while bytes.len() < len {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bytes.push((state >> 56) as u8);
    }
    Value::new(Bytes::from(bytes))
}

/// Which number a value is of; `None` when no number has these bytes.
pub fn id_of(value: &Value, len_max: usize) -> Option<ValueId> {
    let id = ValueId::from_be_bytes(*value.as_bytes().first_chunk()?);
    let is_right = value_of(id, len_max).as_bytes() == value.as_bytes()
        && ttl_of(id).is_some() == value.expires_at().is_some();
    is_right.then_some(id)
}

/// Builds a history by hand, for tests of checkers.
#[cfg(test)]
pub mod by_hand {
    use super::*;

    /// An acknowledged write at `timestamp`.
    pub fn put(start: u64, end: u64, value: ValueId, timestamp: u64) -> Operation {
        let timestamp = Timestamp::from_u64(timestamp);
        let outcome = Outcome::Acknowledged { at_least: timestamp, at_most: timestamp };
        let (action, quorum, end) = (Action::Put(value), Quorum::new(2, 3), Some(end));
        Operation { number: 0, node: 0, key: 0, action, quorum, start, end, outcome }
    }

    /// An acknowledged deletion at `timestamp`.
    pub fn delete(start: u64, end: u64, timestamp: u64) -> Operation {
        Operation { action: Action::Delete, ..put(start, end, 0, timestamp) }
    }

    /// A write without an answer.
    pub fn lost(start: u64, value: ValueId) -> Operation {
        Operation { end: None, outcome: Outcome::Unknown, ..put(start, 0, value, 0) }
    }

    /// A read that saw a value at `timestamp`.
    pub fn get(start: u64, end: u64, value: ValueId, timestamp: u64) -> Operation {
        let timestamp = Timestamp::from_u64(timestamp);
        let expires_at = ttl_of(value).map(|ttl| Expiry::after(timestamp, ttl));
        let seen = Seen { timestamp, value: Some(value), expires_at };
        Operation { action: Action::Get, outcome: Outcome::Seen(Some(seen)), ..put(start, end, 0, 0) }
    }

    /// A read that saw nothing.
    pub fn miss(start: u64, end: u64) -> Operation {
        Operation { action: Action::Get, outcome: Outcome::Seen(None), ..put(start, end, 0, 0) }
    }

    /// A read that saw a tombstone.
    pub fn gone(start: u64, end: u64, timestamp: u64) -> Operation {
        let seen = Seen { timestamp: Timestamp::from_u64(timestamp), value: None, expires_at: None };
        Operation { action: Action::Get, outcome: Outcome::Seen(Some(seen)), ..put(start, end, 0, 0) }
    }

    /// A read that saw that the value of a number, written at `timestamp`, has expired.
    pub fn expired(start: u64, end: u64, value: ValueId, timestamp: u64) -> Operation {
        let timestamp = Timestamp::from_u64(timestamp);
        let expires_at = ttl_of(value).map(|ttl| Expiry::after(timestamp, ttl));
        let seen = Seen { timestamp, value: None, expires_at };
        Operation { action: Action::Get, outcome: Outcome::Seen(Some(seen)), ..put(start, end, 0, 0) }
    }
}
