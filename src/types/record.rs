//! Records: what replicas store and exchange, and the one rule by which two of them are compared.
//!
//! ```text
//! encoded   flags u8 │ timestamp u64 │ [expiry u64] │ [length u8 │ content type] │ value: the rest (none for a tombstone)
//! flags     bit 0: 1 = value, 0 = tombstone
//!           bit 1: 1 = a content type is there (values only)
//!           bit 2: 1 = an expiry is there; without bit 0: the value has expired, and its bytes are gone
//!           the others announce further fields and are 0 today
//! ```
//!
//! A value is any bytes: no marker inside it means "deleted". Unknown flags are refused, not skipped, so a
//! field added later cannot be dropped by a node that does not know it.
//!
//! A value with an expiry is, once that has passed, a tombstone at its own timestamp: it still hides what it overwrote.
//! Nothing in here knows what time it is. Who does (`replication::expiry`, compaction) replaces it by
//! [`Record::expired`], which wins over the value it was made of and stands to every other record as that value did.

use std::cmp::Ordering;

use bytes::{BufMut, Bytes};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::{ContentType, Expiry, Timestamp, Value};
use crate::util::coding::{DecodeError, Reader};

/// A value or a tombstone at a timestamp. A value that has expired is a tombstone that says when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// The key has this value.
    Value {
        /// When it was written, by its coordinator's clock.
        timestamp: Timestamp,
        /// Any bytes, and perhaps an expiry.
        value: Value,
    },
    /// The key was deleted. Stored and repaired like a value, so that older values stay hidden.
    Tombstone {
        /// When it was deleted, by its coordinator's clock.
        timestamp: Timestamp,
    },
    /// The key had a value, which has expired. As good as a tombstone; no clock needs to be asked any more.
    Expired {
        /// When the value was written, by its coordinator's clock.
        timestamp: Timestamp,
        /// When it ended.
        expires_at: Expiry,
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
    const FLAG_EXPIRY: u8 = 4;

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
            Self::Value { timestamp, .. }
            | Self::Tombstone { timestamp }
            | Self::Expired { timestamp, .. } => *timestamp,
        }
    }

    /// What it becomes once its value has expired; a record without an expiry stays what it is.
    #[must_use]
    pub fn expired(self) -> Self {
        let timestamp = self.timestamp();
        self.expires_at().map_or(self, |expires_at| Self::Expired { timestamp, expires_at })
    }

    /// When its value ends, or has ended.
    pub fn expires_at(&self) -> Option<Expiry> {
        match self {
            Self::Value { value, .. } => value.expires_at(),
            Self::Tombstone { .. } => None,
            Self::Expired { expires_at, .. } => Some(*expires_at),
        }
    }

    /// When its value ends, if it has not been found to have ended: a clock must be asked.
    pub fn pending_expiry(&self) -> Option<Expiry> {
        self.as_value().and_then(Value::expires_at)
    }

    /// When its value ends, as a number: at once for a tombstone, never for a value without an expiry.
    fn end(&self) -> u64 {
        match self {
            Self::Value { value, .. } => value.expires_at().map_or(u64::MAX, Expiry::as_u64),
            Self::Tombstone { .. } => 0,
            Self::Expired { expires_at, .. } => expires_at.as_u64(),
        }
    }

    /// The value, unless it is a tombstone.
    pub fn as_value(&self) -> Option<&Value> {
        match self {
            Self::Value { value, .. } => Some(value),
            Self::Tombstone { .. } | Self::Expired { .. } => None,
        }
    }

    /// The value, unless it is a tombstone or has ended by `now`.
    pub fn value_at(&self, now: Timestamp) -> Option<&Value> {
        self.as_value().filter(|value| value.expires_at().is_none_or(|end| end.timestamp() > now))
    }

    /// Whether it is a tombstone: of a deletion, or of a value that has expired.
    pub fn is_tombstone(&self) -> bool {
        matches!(self, Self::Tombstone { .. } | Self::Expired { .. })
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
    /// The only place two records are compared: the higher timestamp wins; at equal timestamps the one that ends first (a
    /// tombstone has ended, a value without an expiry never does), then one whose value has expired, then the greater
    /// bytes, then the greater content type. Total and the same on every node; false for equal records.
    pub fn supersedes(&self, other: &Self) -> bool {
        self.precedence(other) == Ordering::Greater
    }

    /// [`Record::supersedes`] as an ordering: `Greater` when `self` wins.
    pub fn precedence(&self, other: &Self) -> Ordering {
        self.timestamp().cmp(&other.timestamp()).then_with(|| {
            // Were it the bytes before the end, a value could win over one that later, expired, wins over it.
            other.end().cmp(&self.end()).then_with(|| match (self.as_value(), other.as_value()) {
                (None, None) => Ordering::Equal,
                (None, Some(_)) => Ordering::Greater,
                (Some(_), None) => Ordering::Less,
                (Some(mine), Some(theirs)) => mine.cmp(theirs),
            })
        })
    }

    /// `xxh3_64` of the value's bytes, seeded with that of its content type if it has one (itself seeded with the expiry,
    /// if there is one), with its lowest bit set. That of the expiry, with its two lowest bits 2, when the value has expired;
    /// 0 for a tombstone.
    pub fn content_hash(&self) -> u64 {
        let value = match self {
            Self::Value { value, .. } => value,
            Self::Tombstone { .. } => return 0,
            Self::Expired { expires_at, .. } => return xxh3_64(&expires_at.as_u64().to_le_bytes()) & !3 | 2,
        };
        let hash = match (value.content_type(), value.expires_at()) {
            (None, None) => xxh3_64(value.as_bytes()),
            (Some(content_type), None) => {
                xxh3_64_with_seed(value.as_bytes(), xxh3_64(content_type.as_bytes()))
            }
            (content_type, Some(expires_at)) => {
                let content_type = content_type.map(ContentType::as_bytes).unwrap_or_default();
                let seed = xxh3_64_with_seed(content_type, expires_at.as_u64());
                xxh3_64_with_seed(value.as_bytes(), seed)
            }
        };
        hash | 1
    }

    /// What tells this record apart from others of its key.
    pub fn version(&self) -> Version {
        Version { timestamp: self.timestamp(), hash: self.content_hash() }
    }

    /// How many bytes [`Record::encode`] appends.
    pub fn encoded_len(&self) -> usize {
        let expiry_len = self.expires_at().map_or(0, |_| 8);
        let type_len = self.content_type().map_or(0, |content_type| 1 + content_type.as_bytes().len());
        9 + expiry_len + type_len + self.value_len()
    }

    /// Appends the record. It does not say where it ends: whoever stores it keeps its length.
    pub fn encode(&self, out: &mut impl BufMut) {
        let (content_type, expires_at) = (self.content_type(), self.expires_at());
        let value_flag = if self.is_tombstone() { 0 } else { Self::FLAG_VALUE };
        let expiry_flag = expires_at.map_or(0, |_| Self::FLAG_EXPIRY);
        out.put_u8(value_flag | content_type.map_or(0, |_| Self::FLAG_CONTENT_TYPE) | expiry_flag);
        out.put_u64_le(self.timestamp().as_u64());
        if let Some(expires_at) = expires_at {
            out.put_u64_le(expires_at.as_u64());
        }
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
        let expires_at = if flags & Self::FLAG_EXPIRY == 0 {
            None
        } else {
            Some(Expiry::from_u64(reader.u64()?).ok_or(DecodeError("an expiry after 1970 began"))?)
        };
        let content_type = match flags & !Self::FLAG_EXPIRY {
            0 if reader.is_empty() => {
                return Ok(match expires_at {
                    None => Self::Tombstone { timestamp },
                    Some(expires_at) => Self::Expired { timestamp, expires_at },
                });
            }
            0 => return Err(DecodeError("a tombstone without a value")),
            Self::FLAG_VALUE => None,
            WITH_TYPE => {
                let len = usize::from(reader.u8()?);
                let content_type = ContentType::new(reader.take(len)?);
                Some(content_type.ok_or(DecodeError("a content type of printable characters"))?)
            }
            _ => return Err(DecodeError("record flags that this version knows")),
        };
        let value = Value::new(bytes.slice_ref(reader.rest())).of_type(content_type).expiring(expires_at);
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
        let expiry = proptest::option::of(1u64..4);
        (0u64..4, proptest::option::of((value, content_type)), expiry).prop_map(|(ts, value, expiry)| {
            let timestamp = Timestamp::from_u64(ts);
            let expires_at = expiry.and_then(Expiry::from_u64);
            match (value, expires_at) {
                (None, None) => Record::tombstone(timestamp),
                (None, Some(expires_at)) => Record::Expired { timestamp, expires_at },
                (Some((value, content_type)), expires_at) => {
                    let content_type = content_type.and_then(|text| ContentType::new(text.as_bytes()));
                    let value = Value::new(value).of_type(content_type).expiring(expires_at);
                    Record::value(timestamp, value)
                }
            }
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

        /// Two replicas, of which one has let a value go that has expired, agree about every other record, but for one
        /// that ends at the same time: and of those both have ended.
        #[test]
        fn a_value_that_has_expired_stands_to_others_as_it_did_before(a in any_record(), b in any_record()) {
            prop_assume!(a.pending_expiry().is_some());
            let same_end = a.timestamp() == b.timestamp() && a.expires_at() == b.expires_at();
            let expired = a.clone().expired();
            prop_assert!(expired.supersedes(&a) && expired.is_tombstone());
            if !same_end {
                prop_assert_eq!(expired.supersedes(&b), a.supersedes(&b));
                prop_assert_eq!(b.supersedes(&expired), b.supersedes(&a));
            }
            prop_assert_eq!(expired.clone().expired(), expired);
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
        for flags in (0..=255).filter(|flags| ![0, 1, 3, 4, 5, 7].contains(flags)) {
            let mut bytes = vec![1; 40];
            bytes[0] = flags;
            assert!(Record::decode(&Bytes::from(bytes)).is_err(), "{flags}");
        }
    }

    #[test]
    fn an_expiry_that_is_cut_short_or_zero_or_a_value_behind_one_that_expired_is_refused() {
        for tail in [&[][..], &[1; 7], &[0; 8], &[1; 9]] {
            let bytes = [&[4, 0, 0, 0, 0, 0, 0, 0, 0][..], tail].concat();
            assert!(Record::decode(&Bytes::from(bytes)).is_err(), "{tail:?}");
        }
    }

    #[test]
    fn of_two_values_of_one_timestamp_the_one_that_ends_first_wins() {
        let at = Timestamp::from_micros(7);
        let until = |end| Record::value(at, Value::new("a").expiring(Expiry::from_u64(end)));
        assert!(until(8).supersedes(&until(9)));
        assert!(until(9).supersedes(&Record::value(at, Value::new("z"))));
        assert!(Record::tombstone(at).supersedes(&until(8).expired()));
    }

    #[test]
    fn a_record_is_encoded_as_drawn() {
        let typed = Value::new("v").of_type(ContentType::new(b"a/b"));
        let expires_at = Expiry::from_u64(0x0102).unwrap();
        let cases = [
            (Record::tombstone(Timestamp::from_u64(2)), &[0, 2, 0, 0, 0, 0, 0, 0, 0][..]),
            (Record::value(Timestamp::from_u64(2), Value::new("v")), &[1, 2, 0, 0, 0, 0, 0, 0, 0, b'v']),
            (
                Record::value(Timestamp::from_u64(2), typed.clone()),
                &[3, 2, 0, 0, 0, 0, 0, 0, 0, 3, b'a', b'/', b'b', b'v'],
            ),
            (
                Record::Expired { timestamp: Timestamp::from_u64(2), expires_at },
                &[4, 2, 0, 0, 0, 0, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0],
            ),
            (
                Record::value(Timestamp::from_u64(2), Value::new("v").expiring(Some(expires_at))),
                &[5, 2, 0, 0, 0, 0, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0, b'v'],
            ),
            (
                Record::value(Timestamp::from_u64(2), typed.expiring(Some(expires_at))),
                &[7, 2, 0, 0, 0, 0, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 3, b'a', b'/', b'b', b'v'],
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
