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
use super::internal_key::{EXPIRY_LEN, Kind, Stored};
use crate::types::{ContentType, Expiry, Record, Timestamp, Value};

/// One record of one key, borrowed from an iterator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryRef<'a> {
    /// The user key.
    pub key: &'a [u8],
    /// When the record was written.
    pub timestamp: Timestamp,
    /// The value; `None` for a tombstone, and for a value that has expired.
    pub value: Option<&'a [u8]>,
    /// The value's content type, if it has one.
    pub content_type: Option<&'a [u8]>,
    /// When the value ends, or ended.
    pub expires_at: Option<Expiry>,
}

impl<'a> EntryRef<'a> {
    /// The entry of a key's record.
    pub fn of(key: &'a [u8], record: &'a Record) -> Self {
        Self {
            key,
            timestamp: record.timestamp(),
            value: record.as_value().map(Value::as_bytes),
            content_type: record.content_type().map(ContentType::as_bytes),
            expires_at: record.expires_at(),
        }
    }

    /// The entry of what is stored of a key's record.
    #[inline]
    pub fn of_stored(key: &'a [u8], timestamp: Timestamp, stored: Stored<'a>) -> Self {
        let Stored { value, content_type, expires_at } = stored;
        Self { key, timestamp, value, content_type, expires_at }
    }

    /// What is stored of it beside key and timestamp.
    pub fn stored(&self) -> Stored<'a> {
        Stored { value: self.value, content_type: self.content_type, expires_at: self.expires_at }
    }

    /// What it becomes once its value has expired: the mirror of [`Record::expired`].
    #[must_use]
    pub fn expired(self) -> Self {
        if self.expires_at.is_some() { Self { value: None, content_type: None, ..self } } else { self }
    }

    /// What it is, as it is stored.
    pub fn kind(&self) -> Kind {
        match (self.value, self.content_type) {
            _ if self.expires_at.is_some() => Kind::Expiring,
            (None, _) => Kind::Tombstone,
            (Some(_), None) => Kind::Value,
            (Some(_), Some(_)) => Kind::TypedValue,
        }
    }

    /// Bytes of value, content type and expiry as they are stored.
    pub fn stored_len(&self) -> usize {
        self.expires_at.map_or(0, |_| EXPIRY_LEN) + self.content_len()
    }

    /// Bytes of value and content type as they are stored: what goes when the value has expired.
    pub fn content_len(&self) -> usize {
        self.content_type.map_or(0, |content_type| 1 + content_type.len()) + self.value.map_or(0, <[u8]>::len)
    }

    /// When its value ends, as a number: at once for a tombstone, never for a value without an expiry.
    fn end(&self) -> u64 {
        match (self.expires_at, self.value) {
            (Some(expires_at), _) => expires_at.as_u64(),
            (None, None) => 0,
            (None, Some(_)) => u64::MAX,
        }
    }

    /// Orders entries as iterators give them: key ascending, then the record that supersedes first.
    pub fn order(&self, other: &Self) -> Ordering {
        self.key.cmp(other.key).then_with(|| self.order_of_records(other))
    }

    /// The order of two entries of one key: the record that supersedes comes first.
    pub fn order_of_records(&self, other: &Self) -> Ordering {
        other.timestamp.cmp(&self.timestamp).then_with(|| {
            self.end().cmp(&other.end()).then_with(|| match (self.value, other.value) {
                (None, None) => Ordering::Equal,
                (None, Some(_)) => Ordering::Less,
                (Some(_), None) => Ordering::Greater,
                (Some(mine), Some(theirs)) => {
                    theirs.cmp(mine).then_with(|| other.content_type.cmp(&self.content_type))
                }
            })
        })
    }

    /// Copies the record out.
    pub fn to_record(&self) -> Record {
        match (self.value, self.expires_at) {
            (Some(value), _) => self.record_of(Bytes::copy_from_slice(value)),
            (None, Some(expires_at)) => Record::Expired { timestamp: self.timestamp, expires_at },
            (None, None) => Record::tombstone(self.timestamp),
        }
    }

    /// The record with this entry's timestamp, content type and expiry, and these bytes of value.
    pub fn record_of(&self, value: Bytes) -> Record {
        // Checked when it came in, and under a checksum since.
        let content_type = self.content_type.and_then(ContentType::new);
        let value = Value::new(value).of_type(content_type).expiring(self.expires_at);
        Record::value(self.timestamp, value)
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
