//! Internal keys: how one record of a key is told from, and ordered among, all records of all keys.
//!
//! ```text
//! encoded   user key: 1 to 5,120 bytes │ !timestamp u64 big-endian │ kind u8 (0 tombstone, 1 value, 2 typed value, 3 expiring)
//! order     user key ascending, then the last nine bytes ascending: newest first, a tombstone before a value
//! ties      equal in all that, or of kinds 1 to 3: what ends first, then the greater value, then the greater type
//! ```
//!
//! The user key and the nine bytes behind it are compared apart: compared as one string, a key would mix with
//! longer keys that it begins. The order is `Record::supersedes`: of all records of a key the one to keep comes
//! first, and a late, older record lands behind it. There is no sequence number.

use std::cmp::Ordering;

use crate::types::{Expiry, Timestamp};

/// What is stored of a record beside its key and timestamp, taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stored<'a> {
    /// The value; `None` for a tombstone, and for a value that has expired.
    pub value: Option<&'a [u8]>,
    /// The value's content type, if it has one.
    pub content_type: Option<&'a [u8]>,
    /// When the value ends, or ended.
    pub expires_at: Option<Expiry>,
}

/// Bytes before content type and value of a [`Kind::Expiring`]: what follows (1 = a value, 2 = its type before it), and
/// the expiry.
pub const EXPIRY_LEN: usize = 9;

impl<'a> Stored<'a> {
    const HAS_VALUE: u8 = 1;
    const HAS_TYPE: u8 = 2;

    /// Takes apart what is stored of a record of some kind; `None` when that is no such record.
    #[inline]
    pub fn split(kind: Kind, stored: &'a [u8]) -> Option<Self> {
        match kind {
            Kind::Tombstone => stored.is_empty().then(Self::default),
            Kind::Value => Some(Self { value: Some(stored), ..Self::default() }),
            Kind::TypedValue => {
                let (content_type, value) = split_typed(stored)?;
                Some(Self { value: Some(value), content_type: Some(content_type), expires_at: None })
            }
            Kind::Expiring => Self::split_expiring(stored),
        }
    }

    fn split_expiring(stored: &'a [u8]) -> Option<Self> {
        let (head, rest) = stored.split_first_chunk::<EXPIRY_LEN>()?;
        let [has, expiry @ ..] = *head;
        let expires_at = Some(Expiry::from_u64(u64::from_le_bytes(expiry))?);
        match has {
            0 => rest.is_empty().then_some(Self { expires_at, ..Self::default() }),
            Self::HAS_VALUE => Some(Self { value: Some(rest), content_type: None, expires_at }),
            3 => {
                let (content_type, value) = split_typed(rest)?;
                Some(Self { value: Some(value), content_type: Some(content_type), expires_at })
            }
            _ => None,
        }
    }

    /// The bytes before content type and value, where there is an expiry.
    pub fn expiry_head(&self) -> Option<[u8; EXPIRY_LEN]> {
        let mut head = [0; EXPIRY_LEN];
        head[0] = self.value.map_or(0, |_| Self::HAS_VALUE) | self.content_type.map_or(0, |_| Self::HAS_TYPE);
        head[1..].copy_from_slice(&self.expires_at?.as_u64().to_le_bytes());
        Some(head)
    }
}

/// Splits what is stored of a [`Kind::TypedValue`] into content type and value; `None` when it is cut short.
fn split_typed(stored: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = stored.split_first()?;
    rest.split_at_checked(usize::from(*len))
}

/// Bytes behind the user key: the timestamp and the kind.
pub const SUFFIX_LEN: usize = 9;

/// What a record is. Stored: never renumber.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Kind {
    /// The key was deleted.
    Tombstone = 0,
    /// The key has a value.
    Value = 1,
    /// The key has a value with a content type, which stands before the value: its length in a byte, then itself.
    TypedValue = 2,
    /// The key has a value with an expiry, or had one that has expired. [`EXPIRY_LEN`] bytes come first, then what a value
    /// or a typed value has.
    Expiring = 3,
}

/// An internal key taken apart, borrowed from where it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InternalKey<'a> {
    /// What the client calls the key.
    pub user_key: &'a [u8],
    /// When the record was written.
    pub timestamp: Timestamp,
    /// Whether it is a value or a tombstone.
    pub kind: Kind,
}

impl<'a> InternalKey<'a> {
    /// Takes an encoded key apart; `None` when it is too short or of no known kind.
    pub fn decode(encoded: &'a [u8]) -> Option<Self> {
        let (user_key, suffix) = encoded.split_last_chunk::<SUFFIX_LEN>()?;
        let (timestamp, kind) = decode_suffix(suffix)?;
        Some(Self { user_key, timestamp, kind })
    }

    /// Appends the encoded key.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.user_key);
        out.extend_from_slice(&encode_suffix(self.timestamp, self.kind));
    }
}

/// The nine bytes that follow the user key.
pub fn encode_suffix(timestamp: Timestamp, kind: Kind) -> [u8; SUFFIX_LEN] {
    let mut suffix = [0; SUFFIX_LEN];
    suffix[..8].copy_from_slice(&(!timestamp.as_u64()).to_be_bytes());
    suffix[8] = kind as u8;
    suffix
}

/// Reads the nine bytes that follow the user key; `None` for a kind that this version does not know.
pub fn decode_suffix(suffix: &[u8; SUFFIX_LEN]) -> Option<(Timestamp, Kind)> {
    let (inverted, kind) = suffix.split_first_chunk::<8>().expect("a suffix has nine bytes");
    let kind = match kind[0] {
        0 => Kind::Tombstone,
        1 => Kind::Value,
        2 => Kind::TypedValue,
        3 => Kind::Expiring,
        _ => return None,
    };
    Some((Timestamp::from_u64(!u64::from_be_bytes(*inverted)), kind))
}

/// The user key of an encoded key, which must hold the nine bytes behind it.
pub fn user_key_of(encoded: &[u8]) -> &[u8] {
    &encoded[..encoded.len() - SUFFIX_LEN]
}

/// Orders two encoded keys. Ties are broken by the values, which only the caller has.
pub fn compare(a: &[u8], b: &[u8]) -> Ordering {
    let (a_key, a_suffix) = a.split_at(a.len() - SUFFIX_LEN);
    let (b_key, b_suffix) = b.split_at(b.len() - SUFFIX_LEN);
    a_key.cmp(b_key).then_with(|| a_suffix.cmp(b_suffix))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Record, Value};
    use proptest::prelude::*;

    fn encoded(user_key: &[u8], record: &Record) -> Vec<u8> {
        let kind = if record.is_tombstone() { Kind::Tombstone } else { Kind::Value };
        let mut out = Vec::new();
        InternalKey { user_key, timestamp: record.timestamp(), kind }.encode(&mut out);
        out
    }

    fn any_record() -> impl Strategy<Value = Record> {
        (any::<u64>(), any::<bool>()).prop_map(|(timestamp, dead)| {
            let timestamp = Timestamp::from_u64(timestamp);
            if dead { Record::tombstone(timestamp) } else { Record::value(timestamp, Value::new("v")) }
        })
    }

    proptest! {
        #[test]
        fn of_one_key_the_record_that_supersedes_comes_first(key: Vec<u8>, a in any_record(), b in any_record()) {
            prop_assert_eq!(compare(&encoded(&key, &a), &encoded(&key, &b)), b.precedence(&a));
        }

        #[test]
        fn different_keys_are_ordered_bytewise_whatever_follows_them(
            a in proptest::collection::vec(any::<u8>(), 0..4), x in any_record(),
            b in proptest::collection::vec(any::<u8>(), 0..4), y in any_record(),
        ) {
            prop_assume!(a != b);
            prop_assert_eq!(compare(&encoded(&a, &x), &encoded(&b, &y)), a.cmp(&b));
        }

        #[test]
        fn a_key_decodes_as_encoded(key: Vec<u8>, record in any_record()) {
            let bytes = encoded(&key, &record);
            let decoded = InternalKey::decode(&bytes).unwrap();
            prop_assert_eq!(decoded.user_key, &key[..]);
            prop_assert_eq!(decoded.timestamp, record.timestamp());
            prop_assert_eq!(decoded.kind == Kind::Tombstone, record.is_tombstone());
        }
    }

    #[test]
    fn a_kind_of_a_later_version_is_refused() {
        assert_eq!(InternalKey::decode(&[b'k', 0, 0, 0, 0, 0, 0, 0, 0, 4]), None);
        assert_eq!(InternalKey::decode(&[0; 8]), None);
    }
}
