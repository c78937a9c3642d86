//! Iterators: the contract of seek and next that memtables, blocks, tables, levels and their merges share.
//!
//! ```text
//! visible      newest record of each key           one per scan
//!    │
//! merging      many sorted inputs as one
//!    ├── memtable, sealed memtables
//!    ├── table      one a table of level 0
//!    └── level      one a deeper level: its tables one after the other
//!           └── table: index ── block: restart points, prefix-compressed entries
//! ```
//!
//! Forward only. Entries come in the order of internal keys (see `engine::internal_key`): of one key the record
//! to keep comes first. An entry is borrowed from the iterator: nothing is allocated for it.

mod merging;
#[cfg(test)]
pub(crate) mod model;
mod visible;

use std::cmp::Ordering;

use bytes::Bytes;

pub use merging::MergingIterator;
pub use visible::VisibleIterator;

use super::Error;
use super::internal_key::Kind;
use crate::types::{ContentType, Record, Timestamp, Value};

/// One record of one key, borrowed from an iterator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryRef<'a> {
    /// The user key.
    pub key: &'a [u8],
    /// When the record was written.
    pub timestamp: Timestamp,
    /// The value; `None` for a tombstone.
    pub value: Option<&'a [u8]>,
    /// The value's content type, if it has one.
    pub content_type: Option<&'a [u8]>,
}

impl<'a> EntryRef<'a> {
    /// The entry of a key's record.
    pub fn of(key: &'a [u8], record: &'a Record) -> Self {
        Self {
            key,
            timestamp: record.timestamp(),
            value: record.as_value().map(Value::as_bytes),
            content_type: record.content_type().map(ContentType::as_bytes),
        }
    }

    /// What it is, as it is stored.
    pub fn kind(&self) -> Kind {
        match (self.value, self.content_type) {
            (None, _) => Kind::Tombstone,
            (Some(_), None) => Kind::Value,
            (Some(_), Some(_)) => Kind::TypedValue,
        }
    }

    /// Bytes of value and content type as they are stored.
    pub fn stored_len(&self) -> usize {
        self.content_type.map_or(0, |content_type| 1 + content_type.len()) + self.value.map_or(0, <[u8]>::len)
    }

    /// Orders entries as iterators give them: key ascending, then the record that supersedes first.
    pub fn order(&self, other: &Self) -> Ordering {
        self.key.cmp(other.key).then_with(|| self.order_of_records(other))
    }

    /// The order of two entries of one key: the record that supersedes comes first.
    pub fn order_of_records(&self, other: &Self) -> Ordering {
        other.timestamp.cmp(&self.timestamp).then_with(|| match (self.value, other.value) {
            (None, None) => Ordering::Equal,
            (None, Some(_)) => Ordering::Less,
            (Some(_), None) => Ordering::Greater,
            (Some(mine), Some(theirs)) => {
                theirs.cmp(mine).then_with(|| other.content_type.cmp(&self.content_type))
            }
        })
    }

    /// Copies the record out.
    pub fn to_record(&self) -> Record {
        match self.value {
            Some(value) => self.record_of(Bytes::copy_from_slice(value)),
            None => Record::tombstone(self.timestamp),
        }
    }

    /// The record with this entry's timestamp and content type, and these bytes of value.
    pub fn record_of(&self, value: Bytes) -> Record {
        // Checked when it came in, and under a checksum since.
        let content_type = self.content_type.and_then(ContentType::new);
        Record::value(self.timestamp, Value::new(value).of_type(content_type))
    }
}

/// A cursor over sorted entries, which starts before the first one: seek before reading.
///
/// After an error it stands at no entry until it is sought anew, so that nothing is read past a hole.
pub trait InternalIterator: Send {
    /// Moves to the first entry.
    fn seek_to_first(&mut self) -> Result<(), Error>;
    /// Moves to the first entry whose user key is `user_key` or greater.
    fn seek(&mut self, user_key: &[u8]) -> Result<(), Error>;
    /// Moves to the next entry; at the end it stays there.
    fn next(&mut self) -> Result<(), Error>;
    /// The entry it stands at; `None` at the end.
    fn current(&self) -> Option<EntryRef<'_>>;
}

impl<I: InternalIterator + ?Sized> InternalIterator for Box<I> {
    fn seek_to_first(&mut self) -> Result<(), Error> {
        (**self).seek_to_first()
    }

    fn seek(&mut self, user_key: &[u8]) -> Result<(), Error> {
        (**self).seek(user_key)
    }

    fn next(&mut self) -> Result<(), Error> {
        (**self).next()
    }

    fn current(&self) -> Option<EntryRef<'_>> {
        (**self).current()
    }
}

impl<I: InternalIterator + ?Sized> InternalIterator for &mut I {
    fn seek_to_first(&mut self) -> Result<(), Error> {
        (**self).seek_to_first()
    }

    fn seek(&mut self, user_key: &[u8]) -> Result<(), Error> {
        (**self).seek(user_key)
    }

    fn next(&mut self) -> Result<(), Error> {
        (**self).next()
    }

    fn current(&self) -> Option<EntryRef<'_>> {
        (**self).current()
    }
}
