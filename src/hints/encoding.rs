//! How hints lie in their engine: keys, and records as values.
//!
//! ```text
//! hint      key    varint len ++ target's name ++ user key
//!           value  0x10 ++ value's bytes, with its content type and expiry        a value
//!                  0x11, with its expiry                                          a value that has expired
//!                  0x12, with the expiry 1                                        a tombstone
//!           before a value was the encoded record (its flags, the first byte, are below 0x10); still read
//! dirty     key    0 ++ 'd' ++ varint len ++ target's name ++ range u16 big-endian        value    empty
//! damage    key    0 ++ 'x' ++ table u64 big-endian ++ offset u64 big-endian             value    empty
//! ```
//!
//! A hint is stored as a *value* at the hinted record's own timestamp, whatever the record is. So a key's newer hint replaces
//! the older, and a tombstone at the same timestamp deletes a delivered hint. Of two hints at one timestamp the engine
//! keeps the one whose value supersedes, and values are made so that this is the one whose *record* supersedes: what ends
//! first has the lesser expiry, and what has ended has the greater first byte.

use bytes::{Bytes, BytesMut};

use super::store::{Error, Hint};
use crate::engine::SkippedBlock;
use crate::types::{Expiry, Key, NodeId, Record, Value};
use crate::util::coding::{Reader, put_bytes};

// The first byte of a hint's value. Never renumber.
const VALUE: u8 = 0x10;
const EXPIRED: u8 = 0x11;
const TOMBSTONE: u8 = 0x12;

/// What a key of the hints' engine stands for.
pub(crate) enum Decoded {
    Hint { target: NodeId, prefix_len: usize },
    Dirty { target: NodeId, range: u16 },
    Damage { table: u64, offset: u64 },
}

pub(crate) fn decode_key(key: &Key) -> Option<Decoded> {
    let mut reader = Reader::new(key.as_bytes());
    let first = reader.text().ok()?;
    if !first.is_empty() {
        let prefix_len = key.as_bytes().len() - reader.rest().len();
        return Some(Decoded::Hint { target: NodeId::from_canonical(first), prefix_len });
    }
    let decoded = match reader.u8().ok()? {
        b'd' => {
            let target = NodeId::from_canonical(reader.text().ok()?);
            let range = u16::from_be_bytes(reader.take(2).ok()?.try_into().ok()?);
            Decoded::Dirty { target, range }
        }
        b'x' => {
            let table = u64::from_be_bytes(reader.take(8).ok()?.try_into().ok()?);
            let offset = u64::from_be_bytes(reader.take(8).ok()?.try_into().ok()?);
            Decoded::Damage { table, offset }
        }
        _ => return None,
    };
    reader.is_empty().then_some(decoded)
}

/// No target has an empty name, so these keys begin as no hint's does.
pub(crate) fn dirty_key(target: &NodeId, range: u16) -> Result<Key, Error> {
    let mut bytes = vec![0, b'd'];
    put_bytes(&mut bytes, target.as_str().as_bytes());
    bytes.extend_from_slice(&range.to_be_bytes());
    Key::internal(bytes).map_err(|_| Error::KeyTooLong)
}

/// Says that a damaged block is known, and its hints counted.
pub(super) fn damage_key(block: &SkippedBlock) -> Key {
    let bytes = [&[0, b'x'][..], &block.table.to_be_bytes(), &block.offset.to_be_bytes()].concat();
    Key::internal(bytes).expect("18 bytes are no long key")
}

pub(super) fn target_prefix(target: &NodeId) -> Vec<u8> {
    let mut bytes = Vec::new();
    put_bytes(&mut bytes, target.as_str().as_bytes());
    bytes
}

pub(crate) fn hint_key(target: &NodeId, key: &Key) -> Result<Key, Error> {
    let mut bytes = target_prefix(target);
    bytes.extend_from_slice(key.as_bytes());
    Key::internal(bytes).map_err(|_| Error::KeyTooLong)
}

/// What is stored for a hinted record.
pub(crate) fn encode_record(record: &Record) -> Value {
    let (kind, content, content_type, expires_at) = match record {
        Record::Value { value, .. } => {
            (VALUE, value.as_bytes(), value.content_type().cloned(), value.expires_at())
        }
        Record::Expired { expires_at, .. } => (EXPIRED, &[][..], None, Some(*expires_at)),
        Record::Tombstone { .. } => (TOMBSTONE, &[][..], None, Expiry::from_u64(1)),
    };
    let mut bytes = BytesMut::with_capacity(1 + content.len());
    bytes.extend_from_slice(&[kind]);
    bytes.extend_from_slice(content);
    Value::new(bytes.freeze()).of_type(content_type).expiring(expires_at)
}

/// The hint that an entry of the engine is.
pub(crate) fn decode_hint(prefix: &[u8], key: &Key, stored: &Record) -> Option<Hint> {
    let user_key: Bytes = key.to_bytes().slice(prefix.len()..);
    let value = stored.as_value()?;
    let timestamp = stored.timestamp();
    let bytes = value.to_bytes();
    let record = match (bytes.first(), value.expires_at()) {
        (Some(&VALUE), expires_at) => {
            let value = Value::new(bytes.slice(1..)).of_type(value.content_type().cloned());
            Ok(Record::value(timestamp, value.expiring(expires_at)))
        }
        (Some(&EXPIRED), Some(expires_at)) => Ok(Record::Expired { timestamp, expires_at }),
        (Some(&TOMBSTONE), _) => Ok(Record::tombstone(timestamp)),
        _ => Record::decode(&bytes),
    };
    if let (Ok(key), Ok(record)) = (Key::new(user_key), record) {
        return Some(Hint { key, record });
    }
    tracing::warn!(?key, "a hint that cannot be read");
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::types::{ContentType, Timestamp};

    fn any_record() -> impl Strategy<Value = Record> {
        let content_type = prop_oneof![Just(None), "[a-c]{1,3}".prop_map(Some)];
        let expiry = prop_oneof![Just(0u64), 2u64..5];
        let value = prop::option::of(prop::collection::vec(0u8..3, 0..4));
        (1u64..3, value, content_type, expiry).prop_map(|(timestamp, value, content_type, expiry)| {
            let timestamp = Timestamp::from_u64(timestamp);
            match (value, Expiry::from_u64(expiry)) {
                (None, None) => Record::tombstone(timestamp),
                (None, Some(expires_at)) => Record::Expired { timestamp, expires_at },
                (Some(value), expires_at) => {
                    let content_type = content_type.and_then(|text| ContentType::new(text.as_bytes()));
                    Record::value(timestamp, Value::new(value).of_type(content_type).expiring(expires_at))
                }
            }
        })
    }

    fn stored(record: &Record) -> Record {
        Record::value(record.timestamp(), encode_record(record))
    }

    proptest! {
        #[test]
        fn a_hint_supersedes_another_as_its_record_supersedes_the_others(a in any_record(), b in any_record()) {
            prop_assert_eq!(stored(&a).supersedes(&stored(&b)), a.supersedes(&b));
        }

        #[test]
        fn a_hint_reads_back_as_stored_and_a_tombstone_deletes_it(record in any_record()) {
            let target = NodeId::from_canonical("b:1");
            let key = Key::new("k").unwrap();
            let (prefix, hint_key) = (target_prefix(&target), hint_key(&target, &key).unwrap());
            let hint = decode_hint(&prefix, &hint_key, &stored(&record));
            prop_assert_eq!(hint, Some(Hint { key: key.clone(), record: record.clone() }));
            prop_assert!(Record::tombstone(record.timestamp()).supersedes(&stored(&record)));
            let mut encoded = Vec::new();
            record.encode(&mut encoded);
            let old = Record::value(record.timestamp(), Value::new(encoded));
            prop_assert_eq!(decode_hint(&prefix, &hint_key, &old), Some(Hint { key, record }));
        }
    }
}
