//! Blocks: prefix-compressed entries with restart points; the builder beside the reader.
//!
//! ```text
//! entries    shared varint │ unshared varint │ value length varint │ key bytes not shared │ value
//!            "shared" bytes are taken from the key before; a key is an encoded internal key
//!            a typed value has before it its type's length, in a byte, and its type; one with an expiry has that before
//!            all else (`engine::internal_key`); the value length counts them too
//! restarts   offset u32 of every entry that shares nothing │ … │ how many u32
//! ```
//!
//! Every sixteenth entry is a restart point, where a search begins. Reading copies keys into one buffer that
//! the cursor keeps, and values not at all.

use bytes::{BufMut, Bytes};

use crate::engine::internal_key::{Kind, SUFFIX_LEN, Stored, decode_suffix, encode_suffix};
use crate::engine::iter::EntryRef;
use crate::types::{Record, Timestamp};
use crate::util::coding::{Reader, put_varint};

/// Entries from one restart point to the next.
pub const RESTART_INTERVAL: usize = 16;
/// A value of at least this size shares its block's bytes; a smaller one is copied, so as not to pin the block.
const SHARED_VALUE_LEN: usize = 4096;

/// Collects sorted entries.
#[derive(Debug, Default)]
pub struct BlockBuilder {
    out: Vec<u8>,
    restarts: Vec<u32>,
    /// The key before, encoded.
    last_key: Vec<u8>,
    /// The key being added; swapped with `last_key`.
    key: Vec<u8>,
    entries: usize,
}

impl BlockBuilder {
    /// Adds the next entry, which must not come before the last.
    pub fn add(&mut self, entry: &EntryRef<'_>) {
        self.key.clear();
        self.key.extend_from_slice(entry.key);
        self.key.extend_from_slice(&encode_suffix(entry.timestamp, entry.kind()));
        let shared = if self.entries.is_multiple_of(RESTART_INTERVAL) {
            self.restarts.push(self.out.len() as u32);
            0
        } else {
            self.key.iter().zip(&self.last_key).take_while(|(a, b)| a == b).count()
        };
        let value = entry.value.unwrap_or_default();
        put_varint(&mut self.out, shared as u64);
        put_varint(&mut self.out, (self.key.len() - shared) as u64);
        put_varint(&mut self.out, entry.stored_len() as u64);
        self.out.extend_from_slice(&self.key[shared..]);
        if let Some(head) = entry.stored().expiry_head() {
            self.out.extend_from_slice(&head);
        }
        if let Some(content_type) = entry.content_type {
            self.out.push(content_type.len() as u8); // at most ContentType::MAX_LEN
            self.out.extend_from_slice(content_type);
        }
        self.out.extend_from_slice(value);
        std::mem::swap(&mut self.key, &mut self.last_key);
        self.entries += 1;
    }

    /// Entries added since the last reset.
    pub fn entries(&self) -> usize {
        self.entries
    }

    /// Bytes the block would have now.
    pub fn len(&self) -> usize {
        self.out.len() + 4 * self.restarts.len() + 4
    }

    /// Whether nothing was added.
    pub fn is_empty(&self) -> bool {
        self.entries == 0
    }

    /// Ends the block and gives its bytes; [`BlockBuilder::reset`] must follow.
    pub fn finish(&mut self) -> &[u8] {
        for restart in &self.restarts {
            self.out.put_u32_le(*restart);
        }
        self.out.put_u32_le(self.restarts.len() as u32);
        &self.out
    }

    /// Starts the next block, keeping the memory.
    pub fn reset(&mut self) {
        self.out.clear();
        self.restarts.clear();
        self.entries = 0;
    }
}

/// A block in memory. A clone shares the bytes.
#[derive(Debug, Clone)]
pub struct Block {
    bytes: Bytes,
    /// Where the entries end and the restart points begin.
    entries_end: usize,
    restart_count: usize,
}

/// What is wrong with a block whose checksum is right.
pub type Malformed = &'static str;

impl Block {
    /// Checks that the restart points are there.
    pub fn new(bytes: Bytes) -> Result<Self, Malformed> {
        let Some((rest, count)) = bytes.split_last_chunk::<4>() else {
            return Err("a block has no restarts");
        };
        let restart_count = u32::from_le_bytes(*count) as usize;
        let entries_end = restart_count.checked_mul(4).and_then(|len| rest.len().checked_sub(len));
        match entries_end {
            Some(entries_end) if restart_count > 0 && entries_end > 0 => {
                Ok(Self { bytes, entries_end, restart_count })
            }
            _ => Err("a block's restart points do not fit it"),
        }
    }

    /// Bytes in memory.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Never: a block has an entry at least.
    pub fn is_empty(&self) -> bool {
        false
    }

    fn restart(&self, index: usize) -> usize {
        let at = self.entries_end + 4 * index;
        let bytes = self.bytes[at..at + 4].try_into().expect("the slice has four bytes");
        u32::from_le_bytes(bytes) as usize
    }

    /// The user key of the entry at a restart point.
    fn restart_key(&self, index: usize) -> Result<&[u8], Malformed> {
        let head = EntryHead::read(&self.bytes[..self.entries_end], self.restart(index))?;
        if head.shared != 0 || head.unshared < SUFFIX_LEN {
            return Err("a restart point is no whole key");
        }
        Ok(&self.bytes[head.key_at..head.key_at + head.unshared - SUFFIX_LEN])
    }
}

/// Lengths of one entry, checked against the bytes that are there.
struct EntryHead {
    shared: usize,
    unshared: usize,
    key_at: usize,
    value_at: usize,
    end: usize,
}

impl EntryHead {
    #[inline]
    fn read(entries: &[u8], at: usize) -> Result<Self, Malformed> {
        const CUT: Malformed = "an entry is cut short";
        let rest = entries.get(at..).ok_or(CUT)?;
        let (shared, unshared, value_len, head_len) = match rest {
            // Nearly always: three lengths of one byte each.
            [a, b, c, ..] if (a | b | c) & 0x80 == 0 => {
                (usize::from(*a), usize::from(*b), usize::from(*c), 3)
            }
            _ => {
                let mut reader = Reader::new(rest);
                let mut length = || usize::try_from(reader.varint().map_err(|_| CUT)?).map_err(|_| CUT);
                let lengths = (length()?, length()?, length()?);
                (lengths.0, lengths.1, lengths.2, rest.len() - reader.rest().len())
            }
        };
        let key_at = at + head_len;
        let value_at = key_at.checked_add(unshared).ok_or(CUT)?;
        let end = value_at.checked_add(value_len).ok_or(CUT)?;
        if end > entries.len() {
            return Err(CUT);
        }
        Ok(Self { shared, unshared, key_at, value_at, end })
    }
}

/// A cursor over a block.
#[derive(Debug)]
pub struct BlockCursor {
    block: Block,
    /// The encoded key it stands at.
    key: Vec<u8>,
    timestamp: Timestamp,
    kind: Kind,
    value_at: usize,
    /// Where the next entry begins; where the value ends.
    next_at: usize,
    valid: bool,
}

impl BlockCursor {
    /// Stands before the first entry.
    pub fn new(block: Block) -> Self {
        let key = Vec::with_capacity(64);
        Self {
            block,
            key,
            timestamp: Timestamp::ZERO,
            kind: Kind::Value,
            value_at: 0,
            next_at: 0,
            valid: false,
        }
    }

    /// Goes over to another block, before its first entry, keeping the memory.
    pub fn reset(&mut self, block: Block) {
        self.block = block;
        self.key.clear();
        self.next_at = 0;
        self.valid = false;
    }

    /// Moves to the first entry.
    pub fn seek_to_first(&mut self) -> Result<(), Malformed> {
        self.key.clear();
        self.next_at = 0;
        self.advance()
    }

    /// Moves to the first entry whose user key is `user_key` or greater.
    pub fn seek(&mut self, user_key: &[u8]) -> Result<(), Malformed> {
        // The last restart point before `user_key`: all entries up to it are too small, and an equal one may
        // have older records of its key before it.
        let (mut low, mut high) = (0, self.block.restart_count);
        while high - low > 1 {
            let middle = usize::midpoint(low, high);
            if self.block.restart_key(middle)? < user_key { low = middle } else { high = middle }
        }
        self.key.clear();
        self.next_at = self.block.restart(low);
        loop {
            self.advance()?;
            match self.current() {
                Some(entry) if entry.key < user_key => {}
                _ => return Ok(()),
            }
        }
    }

    /// Moves to the next entry.
    pub fn advance(&mut self) -> Result<(), Malformed> {
        self.valid = false;
        if self.next_at >= self.block.entries_end {
            return Ok(());
        }
        let bytes = &self.block.bytes[..self.block.entries_end];
        let head = EntryHead::read(bytes, self.next_at)?;
        if head.shared > self.key.len() {
            return Err("an entry shares more than the key before it has");
        }
        self.key.truncate(head.shared);
        self.key.extend_from_slice(&bytes[head.key_at..head.value_at]);
        let Some(suffix) = self.key.last_chunk::<SUFFIX_LEN>() else { return Err("a key is too short") };
        let Some((timestamp, kind)) = decode_suffix(suffix) else {
            return Err("a record of an unknown kind");
        };
        if kind != Kind::Value && Stored::split(kind, &bytes[head.value_at..head.end]).is_none() {
            return Err("what is stored of a record does not fit its kind");
        }
        (self.timestamp, self.kind) = (timestamp, kind);
        (self.value_at, self.next_at) = (head.value_at, head.end);
        self.valid = true;
        Ok(())
    }

    /// The entry it stands at.
    pub fn current(&self) -> Option<EntryRef<'_>> {
        if !self.valid {
            return None;
        }
        let stored = &self.block.bytes[self.value_at..self.next_at];
        let stored = Stored::split(self.kind, stored).unwrap_or_default(); // `advance` has checked it
        let key = &self.key[..self.key.len() - SUFFIX_LEN];
        Some(EntryRef::of_stored(key, self.timestamp, stored))
    }

    /// The record it stands at; a large value shares the block's bytes.
    pub fn record(&self) -> Option<Record> {
        let entry = self.current()?;
        Some(match entry.value {
            Some(value) if value.len() >= SHARED_VALUE_LEN => {
                entry.record_of(self.block.bytes.slice_ref(value))
            }
            _ => entry.to_record(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Error;
    use crate::engine::iter::InternalIterator;
    use crate::engine::iter::model::{any_entries, check, entry_ref, sorted};
    use proptest::prelude::*;

    impl InternalIterator for BlockCursor {
        fn seek_to_first(&mut self) -> Result<(), Error> {
            self.seek_to_first().map_err(|detail| Error::corruption("block", 0, detail))
        }
        fn seek(&mut self, user_key: &[u8]) -> Result<(), Error> {
            self.seek(user_key).map_err(|detail| Error::corruption("block", 0, detail))
        }
        fn next(&mut self) -> Result<(), Error> {
            self.advance().map_err(|detail| Error::corruption("block", 0, detail))
        }
        fn current(&self) -> Option<EntryRef<'_>> {
            self.current()
        }
    }

    fn build(entries: &[(Vec<u8>, Record)]) -> Vec<u8> {
        let mut builder = BlockBuilder::default();
        for entry in entries {
            builder.add(&entry_ref(entry));
        }
        let expected = builder.len();
        let bytes = builder.finish().to_vec();
        assert_eq!(bytes.len(), expected);
        bytes
    }

    proptest! {
        #[test]
        fn a_block_gives_back_what_was_added(entries in any_entries(100), seeks in any_entries(5)) {
            let entries = sorted(entries);
            prop_assume!(!entries.is_empty());
            let block = Block::new(Bytes::from(build(&entries))).unwrap();
            check(&mut BlockCursor::new(block), &entries, &seeks);
        }

        #[test]
        fn a_block_of_any_bytes_neither_panics_nor_runs_on(
            entries in any_entries(40), at in any::<prop::sample::Index>(), to: u8, key: Vec<u8>,
        ) {
            let entries = sorted(entries);
            prop_assume!(!entries.is_empty());
            let mut bytes = build(&entries);
            let at = at.index(bytes.len());
            bytes[at] = to;
            if let Ok(block) = Block::new(Bytes::from(bytes)) {
                let mut cursor = BlockCursor::new(block);
                let _ = cursor.seek(&key);
                let mut steps = 0;
                let mut go = cursor.seek_to_first();
                while go.is_ok() && cursor.current().is_some() {
                    steps += 1;
                    prop_assert!(steps < 10_000);
                    go = cursor.advance();
                }
            }
        }
    }
}
