//! Keys and values: any bytes, cheap to clone, their length checked once; and of what type a value says it is, and until when.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use super::Expiry;

/// A key: 1 to [`Key::MAX_LEN`] bytes of any kind. Ordered bytewise. A clone shares the bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Bytes);

/// Why some bytes are not a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// There were none.
    #[error("key is empty")]
    Empty,
    /// There were more than [`Key::MAX_LEN`].
    #[error("key has {0} bytes; at most {max} are allowed", max = Key::MAX_LEN)]
    TooLong(usize),
}

impl Key {
    /// The longest key a client may use, in bytes.
    pub const MAX_LEN: usize = 4096;
    /// The longest key an engine holds, in bytes: hints put a target's name before a client's key.
    pub const MAX_INTERNAL_LEN: usize = Self::MAX_LEN + 1024;

    /// Checks the length of a client's key.
    pub fn new(bytes: impl Into<Bytes>) -> Result<Self, KeyError> {
        let bytes = bytes.into();
        match bytes.len() {
            0 => Err(KeyError::Empty),
            1..=Self::MAX_LEN => Ok(Self(bytes)),
            len => Err(KeyError::TooLong(len)),
        }
    }

    /// Makes a key of our own, up to [`Key::MAX_INTERNAL_LEN`] bytes long: for hints, and for what an engine reads back.
    pub fn internal(bytes: impl Into<Bytes>) -> Result<Self, KeyError> {
        let bytes = bytes.into();
        match bytes.len() {
            0 => Err(KeyError::Empty),
            1..=Self::MAX_INTERNAL_LEN => Ok(Self(bytes)),
            len => Err(KeyError::TooLong(len)),
        }
    }

    /// The key's bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The key's bytes, shared.
    pub fn to_bytes(&self) -> Bytes {
        self.0.clone()
    }
}

impl AsRef<[u8]> for Key {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Borrow<[u8]> for Key {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

/// The media type that a writer gave a value, as it was written: 1 to [`ContentType::MAX_LEN`] printable ASCII
/// characters. A clone shares them.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentType(Arc<[u8]>);

impl ContentType {
    /// The longest type, in bytes: its length is stored in one.
    pub const MAX_LEN: usize = 255;

    /// Checks what was written; `None` when it is empty, too long, or no printable ASCII.
    pub fn new(text: &[u8]) -> Option<Self> {
        let is_valid =
            (1..=Self::MAX_LEN).contains(&text.len()) && text.iter().all(|c| matches!(c, b' '..=b'~'));
        is_valid.then(|| Self(text.into()))
    }

    /// The characters.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for ContentType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}

/// A value: any bytes, none included, and perhaps what type they are of and until when it holds. A clone shares them.
///
/// Ordered by the bytes, then by the type, a value without one first, then by the expiry; [`super::Record`] looks at that
/// before all else.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Value {
    bytes: Bytes,
    content_type: Option<ContentType>,
    expires_at: Option<Expiry>,
}

impl Value {
    /// Wraps bytes. Their length is checked where they come in: `MAX_VALUE_SIZE` is a setting.
    pub fn new(bytes: impl Into<Bytes>) -> Self {
        Self { bytes: bytes.into(), content_type: None, expires_at: None }
    }

    /// The same bytes, of this type.
    #[must_use]
    pub fn of_type(self, content_type: Option<ContentType>) -> Self {
        Self { content_type, ..self }
    }

    /// The same value, until then; `None`: for ever.
    #[must_use]
    pub fn expiring(self, expires_at: Option<Expiry>) -> Self {
        Self { expires_at, ..self }
    }

    /// The value's bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The value's bytes, shared.
    pub fn to_bytes(&self) -> Bytes {
        self.bytes.clone()
    }

    /// The type its writer gave it.
    pub fn content_type(&self) -> Option<&ContentType> {
        self.content_type.as_ref()
    }

    /// When it ends, if its writer said so.
    pub fn expires_at(&self) -> Option<Expiry> {
        self.expires_at
    }

    /// How many bytes there are.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.bytes.get(..33) {
            None => write!(f, "\"{}\"", self.bytes.escape_ascii())?,
            Some(start) => write!(f, "\"{}\"… {} bytes", start[..32].escape_ascii(), self.bytes.len())?,
        }
        self.content_type.as_ref().map_or(Ok(()), |content_type| write!(f, " ({content_type:?})"))?;
        self.expires_at.map_or(Ok(()), |expires_at| write!(f, " until {expires_at:?}"))
    }
}

/// A stretch of keys: from `start` (included) to `end` (excluded); an absent bound is open.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct KeyRange {
    /// The first key that may be in the range.
    pub start: Option<Bytes>,
    /// The first key beyond the range.
    pub end: Option<Bytes>,
}

impl KeyRange {
    /// Every key.
    pub fn all() -> Self {
        Self::default()
    }

    /// From `start` to `end`, both included: the smallest key beyond `end` is `end` and a zero byte.
    pub fn inclusive(start: Option<Bytes>, end: Option<Bytes>) -> Self {
        let end = end.map(|end| {
            let mut beyond = Vec::with_capacity(end.len() + 1);
            beyond.extend_from_slice(&end);
            beyond.push(0);
            Bytes::from(beyond)
        });
        Self { start, end }
    }

    /// Every key that begins with `prefix`.
    pub fn prefix(prefix: &[u8]) -> Self {
        let mut beyond = prefix.to_vec();
        while beyond.pop_if(|last| *last == 0xff).is_some() {}
        let end = beyond.last_mut().map(|last| *last += 1).map(|()| Bytes::from(beyond));
        Self { start: Some(Bytes::copy_from_slice(prefix)), end }
    }

    /// What lies in both ranges.
    #[must_use]
    pub fn intersect(self, other: Self) -> Self {
        let start = self.start.into_iter().chain(other.start).max();
        let end = self.end.into_iter().chain(other.end).min();
        Self { start, end }
    }

    /// Whether no key can be in the range.
    pub fn is_empty(&self) -> bool {
        match (&self.start, &self.end) {
            (Some(start), Some(end)) => start >= end,
            (None, Some(end)) => end.is_empty(),
            _ => false,
        }
    }

    /// Whether `key` lies in the range.
    pub fn contains(&self, key: &[u8]) -> bool {
        self.start.as_ref().is_none_or(|start| key >= &start[..])
            && self.end.as_ref().is_none_or(|end| key < &end[..])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_key_has_a_byte_at_least_and_4096_at_most() {
        assert_eq!(Key::new(""), Err(KeyError::Empty));
        assert!(Key::new(vec![0; 4096]).is_ok());
        assert_eq!(Key::new(vec![0; 4097]), Err(KeyError::TooLong(4097)));
    }

    #[test]
    fn a_content_type_is_1_to_255_printable_characters() {
        assert!(ContentType::new(b"text/html; charset=utf-8").is_some());
        assert!(ContentType::new(&[b'a'; 255]).is_some());
        for bad in [&b""[..], &[b'a'; 256], b"text/\r\n", "text/\u{e9}".as_bytes()] {
            assert!(ContentType::new(bad).is_none(), "{bad:?}");
        }
    }

    #[test]
    fn a_prefix_of_ff_bytes_has_no_end() {
        assert_eq!(KeyRange::prefix(b"a\xff").end.as_deref(), Some(&b"b"[..]));
        assert_eq!(KeyRange::prefix(b"\xff\xff").end, None);
        assert_eq!(KeyRange::prefix(b"").end, None);
    }

    proptest! {
        #[test]
        fn a_prefix_range_holds_the_keys_with_that_prefix(prefix: Vec<u8>, key: Vec<u8>) {
            prop_assert_eq!(KeyRange::prefix(&prefix).contains(&key), key.starts_with(&prefix));
        }

        #[test]
        fn an_inclusive_range_holds_both_its_ends(start: Vec<u8>, end: Vec<u8>, key: Vec<u8>) {
            let range = KeyRange::inclusive(Some(start.clone().into()), Some(end.clone().into()));
            prop_assert_eq!(range.contains(&key), key >= start && key <= end);
            prop_assert_eq!(range.is_empty(), start > end);
        }
    }
}
