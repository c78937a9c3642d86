//! `VersionEdit`: one change to the set of tables, and its codec.
//!
//! ```text
//! fields, each behind its tag u8, in any order:
//! 1  log number       varint                          logs below it are in tables
//! 2  next file number varint
//! 3  compact pointer  level u8 │ key                  where the next compaction of a level begins
//! 4  removed table    level u8 │ number varint
//! 5  added table      level u8 │ number varint │ size varint │ properties, as in the table
//! 6  the same, of a table whose properties tell of expiries
//! ```

use bytes::{BufMut, Bytes};

use super::Level;
use crate::engine::sst::SstMeta;
use crate::util::coding::{DecodeError, Reader, put_bytes, put_varint};

/// Tags of an edit's fields. Stored: never renumber.
const LOG_NUMBER: u8 = 1;
const NEXT_FILE_NUMBER: u8 = 2;
const COMPACT_POINTER: u8 = 3;
const REMOVED: u8 = 4;
const ADDED: u8 = 5;
const ADDED_EXPIRING: u8 = 6;

/// What changes from one version to the next. Carried out whole or not at all.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct VersionEdit {
    /// The oldest log still needed, if it changes.
    pub log_number: Option<u64>,
    /// No file of this number or above was made.
    pub next_file_number: Option<u64>,
    /// Where the next compaction of a level begins: behind this key.
    pub compact_pointers: Vec<(Level, Bytes)>,
    /// Tables that go.
    pub removed: Vec<(Level, u64)>,
    /// Tables that come. One that moves to another level is in both lists.
    pub added: Vec<(Level, SstMeta)>,
}

impl VersionEdit {
    /// Appends the edit.
    pub fn encode(&self, out: &mut Vec<u8>) {
        for (tag, number) in [(LOG_NUMBER, self.log_number), (NEXT_FILE_NUMBER, self.next_file_number)] {
            if let Some(number) = number {
                out.put_u8(tag);
                put_varint(out, number);
            }
        }
        for (level, key) in &self.compact_pointers {
            put_tag(out, COMPACT_POINTER, *level);
            put_bytes(out, key);
        }
        for (level, number) in &self.removed {
            put_tag(out, REMOVED, *level);
            put_varint(out, *number);
        }
        for (level, meta) in &self.added {
            put_tag(out, if meta.expiries.is_empty() { ADDED } else { ADDED_EXPIRING }, *level);
            put_varint(out, meta.number);
            put_varint(out, meta.size);
            meta.encode_properties(out);
        }
    }

    /// Reads an edit that fills `bytes`.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut edit = Self::default();
        let mut reader = Reader::new(bytes);
        while !reader.is_empty() {
            match reader.u8()? {
                LOG_NUMBER => edit.log_number = Some(reader.varint()?),
                NEXT_FILE_NUMBER => edit.next_file_number = Some(reader.varint()?),
                COMPACT_POINTER => {
                    let level = level(&mut reader)?;
                    edit.compact_pointers.push((level, Bytes::copy_from_slice(reader.bytes()?)));
                }
                REMOVED => edit.removed.push((level(&mut reader)?, reader.varint()?)),
                tag @ (ADDED | ADDED_EXPIRING) => {
                    let level = level(&mut reader)?;
                    let (number, size) = (reader.varint()?, reader.varint()?);
                    let meta = SstMeta::decode_properties(number, size, tag == ADDED_EXPIRING, &mut reader)?;
                    edit.added.push((level, meta));
                }
                _ => return Err(DecodeError("a field of an edit that this version knows")),
            }
        }
        Ok(edit)
    }
}

fn put_tag(out: &mut Vec<u8>, tag: u8, level: Level) {
    out.put_u8(tag);
    out.put_u8(level.number() as u8);
}

fn level(reader: &mut Reader<'_>) -> Result<Level, DecodeError> {
    Level::new(usize::from(reader.u8()?)).ok_or(DecodeError("a level from 0 to 6"))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::engine::sst::expiries::tests::any_expiries;
    use crate::types::Timestamp;
    use proptest::prelude::*;

    fn any_level() -> impl Strategy<Value = Level> {
        (0usize..7).prop_map(|number| Level::new(number).unwrap())
    }

    pub(in crate::engine::version) fn any_meta() -> impl Strategy<Value = SstMeta> {
        let numbers = any::<(u64, u64, u32, u32, u64, u32)>();
        (numbers, any::<Vec<u8>>(), any::<Vec<u8>>(), any_expiries(), any::<u64>()).prop_map(
            |((number, size, tombstones, values, oldest, span), a, b, expiries, content_bytes)| SstMeta {
                number,
                size,
                entries: u64::from(tombstones) + u64::from(values),
                tombstones: u64::from(tombstones),
                oldest: Timestamp::from_u64(oldest),
                newest: Timestamp::from_u64(oldest.saturating_add(u64::from(span))),
                smallest: a.clone().min(b.clone()).into(),
                largest: a.max(b).into(),
                content_bytes: if expiries.is_empty() { 0 } else { content_bytes },
                expiries,
            },
        )
    }

    pub(in crate::engine::version) fn any_edit() -> impl Strategy<Value = VersionEdit> {
        use proptest::collection::vec;
        (
            any::<Option<u64>>(),
            any::<Option<u64>>(),
            vec((any_level(), any::<Vec<u8>>().prop_map(Bytes::from)), 0..3),
            vec((any_level(), any::<u64>()), 0..3),
            vec((any_level(), any_meta()), 0..3),
        )
            .prop_map(|(log_number, next_file_number, compact_pointers, removed, added)| {
                VersionEdit { log_number, next_file_number, compact_pointers, removed, added }
            })
    }

    proptest! {
        #[test]
        fn an_edit_decodes_as_encoded(edit in any_edit()) {
            let mut bytes = Vec::new();
            edit.encode(&mut bytes);
            prop_assert_eq!(VersionEdit::decode(&bytes), Ok(edit));
        }

        #[test]
        fn any_bytes_decode_or_are_refused(bytes: Vec<u8>) {
            let _ = VersionEdit::decode(&bytes);
        }
    }
}
