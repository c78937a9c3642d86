//! Records: what replicas store and exchange, and the one rule by which two of them are compared.
//!
//! ```text
//! encoded   flags u8 │ timestamp u64 │ [length u8 │ content type] │ value: the rest (none for a tombstone)
//! flags     bit 0: 1 = value, 0 = tombstone
//!           bit 1: 1 = a content type is there (values only); the others announce further fields and are 0 today
//! ```
//!
//! A value is any bytes: no marker inside it means "deleted". Unknown flags are refused, not skipped, so a
//! field added later (an expiry) cannot be dropped by a node that does not know it.

use std::cmp::Ordering;

use bytes::{BufMut, Bytes};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::{ContentType, Timestamp, Value};
use crate::util::coding::{DecodeError, Reader};

/// A value or a tombstone at a timestamp.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// The key has this value.
    Value {
        /// When it was written, by its coordinator's clock.
        timestamp: Timestamp,
        /// Any bytes.
        value: Value,
    },
    /// The key was deleted. Stored and repaired like a value, so that older values stay hidden.
    Tombstone {
        /// When it was deleted, by its coordinator's clock.
        timestamp: Timestamp,
    },
}

/// What tells two records of a key apart without their bytes: 16 bytes in place of a value.
///
/// Two records are the same when their versions are equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Version {
    /// The record's timestamp.
    pub timestamp: Timestamp,
    /// [`Record::content_hash`].
    pub hash: u64,
}

impl Record {
    const FLAG_VALUE: u8 = 1;
    const FLAG_CONTENT_TYPE: u8 = 2;

    /// Makes a record with a value.
    pub fn value(timestamp: Timestamp, value: Value) -> Self {
        Self::Value { timestamp, value }
    }

    /// Makes a tombstone.
    pub fn tombstone(timestamp: Timestamp) -> Self {
        Self::Tombstone { timestamp }
    }

    /// When it was written.
    pub fn timestamp(&self) -> Timestamp {
        match self {
            Self::Value { timestamp, .. } | Self::Tombstone { timestamp } => *timestamp,
        }
    }

    /// The value, unless it is a tombstone.
    pub fn as_value(&self) -> Option<&Value> {
        match self {
            Self::Value { value, .. } => Some(value),
            Self::Tombstone { .. } => None,
        }
    }

    /// Whether it is a tombstone.
    pub fn is_tombstone(&self) -> bool {
        matches!(self, Self::Tombstone { .. })
    }

    /// The type its writer gave its value.
    pub fn content_type(&self) -> Option<&ContentType> {
        self.as_value().and_then(Value::content_type)
    }

    /// Bytes of value: what it weighs beside its key.
    pub fn value_len(&self) -> usize {
        self.as_value().map_or(0, Value::len)
    }

    /// Whether this record is the one to keep when `other` is there too.
    ///
    /// The only place two records are compared: the higher timestamp wins; at equal timestamps a tombstone
    /// beats a value, then the greater bytes, then the greater content type. Total and the same on every node; false for equal records.
    pub fn supersedes(&self, other: &Self) -> bool {
        self.precedence(other) == Ordering::Greater
    }

    /// [`Record::supersedes`] as an ordering: `Greater` when `self` wins.
    pub fn precedence(&self, other: &Self) -> Ordering {
        self.timestamp().cmp(&other.timestamp()).then_with(|| match (self.as_value(), other.as_value()) {
            (None, None) => Ordering::Equal,
            (None, Some(_)) => Ordering::Greater,
            (Some(_), None) => Ordering::Less,
            (Some(mine), Some(theirs)) => mine.cmp(theirs),
        })
    }

    /// `xxh3_64` of the value's bytes, seeded with that of its content type if it has one; 0 for a tombstone.
    pub fn content_hash(&self) -> u64 {
        self.as_value().map_or(0, |value| {
            let hash = match value.content_type() {
                None => xxh3_64(value.as_bytes()),
                Some(content_type) => xxh3_64_with_seed(value.as_bytes(), xxh3_64(content_type.as_bytes())),
            };
            hash | 1
        })
    }

    /// What tells this record apart from others of its key.
    pub fn version(&self) -> Version {
        Version { timestamp: self.timestamp(), hash: self.content_hash() }
    }

    /// How many bytes [`Record::encode`] appends.
    pub fn encoded_len(&self) -> usize {
        9 + self.content_type().map_or(0, |content_type| 1 + content_type.as_bytes().len()) + self.value_len()
    }

    /// Appends the record. It does not say where it ends: whoever stores it keeps its length.
    pub fn encode(&self, out: &mut impl BufMut) {
        let content_type = self.content_type();
        let value_flag = if self.is_tombstone() { 0 } else { Self::FLAG_VALUE };
        out.put_u8(value_flag | content_type.map_or(0, |_| Self::FLAG_CONTENT_TYPE));
        out.put_u64_le(self.timestamp().as_u64());
        if let Some(content_type) = content_type {
            out.put_u8(content_type.as_bytes().len() as u8); // at most 255
            out.put_slice(content_type.as_bytes());
        }
        if let Some(value) = self.as_value() {
            out.put_slice(value.as_bytes());
        }
    }

    /// Reads a record that fills `bytes`; the value shares them.
    pub fn decode(bytes: &Bytes) -> Result<Self, DecodeError> {
        const WITH_TYPE: u8 = Record::FLAG_VALUE | Record::FLAG_CONTENT_TYPE;
        let mut reader = Reader::new(bytes);
        let flags = reader.u8()?;
        let timestamp = Timestamp::from_u64(reader.u64()?);
        let content_type = match flags {
            0 if reader.is_empty() => return Ok(Self::Tombstone { timestamp }),
            0 => return Err(DecodeError("a tombstone without a value")),
            Self::FLAG_VALUE => None,
            WITH_TYPE => {
                let len = usize::from(reader.u8()?);
                let content_type = ContentType::new(reader.take(len)?);
                Some(content_type.ok_or(DecodeError("a content type of printable characters"))?)
            }
            _ => return Err(DecodeError("record flags that this version knows")),
        };
        let value = Value::new(bytes.slice_ref(reader.rest())).of_type(content_type);
        Ok(Self::Value { timestamp, value })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_record() -> impl Strategy<Value = Record> {
        let value = proptest::collection::vec(0u8..3, 0..3);
        let content_type = proptest::option::of("[ab]{1,2}");
        (0u64..4, proptest::option::of((value, content_type))).prop_map(|(ts, value)| {
            let timestamp = Timestamp::from_u64(ts);
            value.map_or(Record::tombstone(timestamp), |(value, content_type)| {
                let content_type = content_type.and_then(|text| ContentType::new(text.as_bytes()));
                Record::value(timestamp, Value::new(value).of_type(content_type))
            })
        })
    }

    proptest! {
        #[test]
        fn of_two_different_records_exactly_one_supersedes(a in any_record(), b in any_record()) {
            prop_assert_eq!(a.supersedes(&b) ^ b.supersedes(&a), a != b);
        }

        #[test]
        fn supersedes_is_transitive(a in any_record(), b in any_record(), c in any_record()) {
            if a.supersedes(&b) && b.supersedes(&c) {
                prop_assert!(a.supersedes(&c));
            }
        }

        #[test]
        fn a_record_decodes_as_encoded(record in any_record()) {
            let mut out = Vec::new();
            record.encode(&mut out);
            prop_assert_eq!(out.len(), record.encoded_len());
            prop_assert_eq!(Record::decode(&Bytes::from(out)), Ok(record));
        }

        #[test]
        fn versions_are_equal_exactly_for_equal_records(a in any_record(), b in any_record()) {
            prop_assert_eq!(a.version() == b.version(), a == b);
        }
    }

    #[test]
    fn a_deletion_beats_a_value_of_the_same_timestamp() {
        let at = Timestamp::from_micros(7);
        assert!(Record::tombstone(at).supersedes(&Record::value(at, Value::new("zzz"))));
    }

    #[test]
    fn flags_of_a_later_version_are_refused() {
        for flags in [2, 4, 5, 7, 255] {
            assert!(
                Record::decode(&Bytes::copy_from_slice(&[flags, 0, 0, 0, 0, 0, 0, 0, 0, 0])).is_err(),
                "{flags}"
            );
        }
    }

    #[test]
    fn a_record_is_encoded_as_drawn() {
        let typed = Value::new("v").of_type(ContentType::new(b"a/b"));
        let cases = [
            (Record::tombstone(Timestamp::from_u64(2)), &[0, 2, 0, 0, 0, 0, 0, 0, 0][..]),
            (Record::value(Timestamp::from_u64(2), Value::new("v")), &[1, 2, 0, 0, 0, 0, 0, 0, 0, b'v']),
            (
                Record::value(Timestamp::from_u64(2), typed),
                &[3, 2, 0, 0, 0, 0, 0, 0, 0, 3, b'a', b'/', b'b', b'v'],
            ),
        ];
        for (record, bytes) in cases {
            let mut out = Vec::new();
            record.encode(&mut out);
            assert_eq!(out, bytes, "{record:?}");
            assert_eq!(Record::decode(&Bytes::from(out)), Ok(record));
        }
    }

    #[test]
    fn a_content_type_that_is_cut_short_or_no_text_is_refused() {
        for tail in [&[][..], &[2, b'a'], &[0, b'v'], &[1, b'\n']] {
            let bytes = [&[3, 0, 0, 0, 0, 0, 0, 0, 0][..], tail].concat();
            assert!(Record::decode(&Bytes::from(bytes)).is_err(), "{tail:?}");
        }
    }
}
