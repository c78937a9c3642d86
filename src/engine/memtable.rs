//! Memtable: what was written last, sorted in memory, beside the log that holds the same on disk.
//!
//! ```text
//! active    takes writes; its log grows with it
//!   │ sealed when it is full, once its log's last group is synced and inserted
//! sealed    only read; waits for its flush
//!   │ flushed to a table of level 0, installed in the manifest
//! gone      its log is recycled
//! ```
//!
//! It is full somewhere between three quarters of `memtable_size` and all of it, by chance: replicas are given the same writes, and
//! would else all begin their flushes at the same moment. One that flushes while the others do not is hidden by the quorum.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use smallvec::SmallVec;

use super::Error;
use super::iter::{EntryRef, InternalIterator};
use super::skiplist::{SIDE_BY_SIDE, SkipCursor, SkipList};
use crate::types::{Key, Record, Timestamp};

/// A skiplist of records, the number of its log, and the timestamps between which they lie.
#[derive(Debug)]
pub struct Memtable {
    list: Arc<SkipList>,
    log_number: u64,
    /// Bytes that make it full.
    full_at: usize,
    /// The newest timestamp in it; zero while empty. Relaxed: whoever was told of a write by its `done` has
    /// synchronised with it, and for others before or after is the same.
    newest: AtomicU64,
    /// The oldest one; `u64::MAX` while empty.
    oldest: AtomicU64,
    /// Bytes of keys and records, as its log holds them. Relaxed: a figure.
    record_bytes: AtomicU64,
    /// Records that are tombstones. Relaxed: a figure.
    tombstones: AtomicU64,
}

impl Memtable {
    /// An empty one for at most about `size` bytes, backed by the log of this number. Chance is drawn from `seed`.
    pub fn new(log_number: u64, size: usize, seed: u64) -> Self {
        let spared = seed % (size as u64 / 4 + 1);
        Self {
            list: Arc::new(SkipList::new(size, seed)),
            log_number,
            full_at: size - spared as usize,
            newest: AtomicU64::new(0),
            oldest: AtomicU64::new(u64::MAX),
            record_bytes: AtomicU64::new(0),
            tombstones: AtomicU64::new(0),
        }
    }

    /// Adds records, one after another. Returns those whose key's newest record here wins over them, by their places, with that
    /// one's timestamp.
    pub fn insert(&self, items: &[(Key, Record)]) -> Vec<(u32, Timestamp)> {
        self.widen(items);
        let mut overtaken = Vec::new();
        for (chunk, items) in items.chunks(SIDE_BY_SIDE).enumerate() {
            let entries: SmallVec<[_; SIDE_BY_SIDE]> =
                items.iter().map(|(key, record)| EntryRef::of(key.as_bytes(), record)).collect();
            for (place, inserted) in self.list.insert(&entries).iter().enumerate() {
                if let Some(newer) = inserted.overtaken_by {
                    overtaken.push(((chunk * SIDE_BY_SIDE + place) as u32, newer));
                }
            }
        }
        overtaken
    }

    /// Takes records into account that are about to be inserted: before they can be found, so that no reader skips this memtable
    /// for being too old.
    fn widen(&self, items: &[(Key, Record)]) {
        let timestamps = items.iter().map(|(_, record)| record.timestamp().as_u64());
        self.newest.fetch_max(timestamps.clone().max().unwrap_or(0), Ordering::Relaxed);
        self.oldest.fetch_min(timestamps.min().unwrap_or(u64::MAX), Ordering::Relaxed);
        let bytes: usize =
            items.iter().map(|(key, record)| key.as_bytes().len() + record.encoded_len()).sum();
        self.record_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        let tombstones = items.iter().filter(|(_, record)| record.is_tombstone()).count();
        if tombstones > 0 {
            self.tombstones.fetch_add(tombstones as u64, Ordering::Relaxed);
        }
    }

    /// The newest record of a key here, tombstones too; `hash` is [`super::sst::bloom::hash`] of the key.
    pub fn get(&self, key: &[u8], hash: u64) -> Option<Record> {
        self.list.get(key, hash).map(|entry| entry.to_record())
    }

    /// Walks all entries, older records of a key too.
    pub fn entries(&self) -> MemtableIterator {
        MemtableIterator { cursor: SkipCursor::new(self.list.clone()) }
    }

    /// Whether an iterator walks it.
    pub fn is_read(&self) -> bool {
        Arc::strong_count(&self.list) > 1
    }

    /// The number of the log that holds the same records.
    pub fn log_number(&self) -> u64 {
        self.log_number
    }

    /// The newest timestamp in it; zero while it is empty.
    pub fn newest(&self) -> Timestamp {
        Timestamp::from_u64(self.newest.load(Ordering::Relaxed))
    }

    /// The oldest timestamp in it; nothing while it is empty.
    pub fn oldest(&self) -> Option<Timestamp> {
        (!self.is_empty()).then(|| Timestamp::from_u64(self.oldest.load(Ordering::Relaxed)))
    }

    /// Whether it is to be sealed.
    pub fn is_full(&self) -> bool {
        self.bytes() >= self.full_at
    }

    /// Bytes that its entries take in memory.
    pub fn bytes(&self) -> usize {
        self.list.bytes()
    }

    /// Bytes of keys and records that were written to it.
    pub fn record_bytes(&self) -> u64 {
        self.record_bytes.load(Ordering::Relaxed)
    }

    /// How many tombstones were written to it.
    pub fn tombstones(&self) -> u64 {
        self.tombstones.load(Ordering::Relaxed)
    }

    /// How many records it holds, older ones of a key too.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether nothing was written to it.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }
}

/// Walks a memtable, which it keeps alive. Never fails.
#[derive(Debug)]
pub struct MemtableIterator {
    cursor: SkipCursor,
}

impl InternalIterator for MemtableIterator {
    fn seek_to_first(&mut self) -> Result<(), Error> {
        self.cursor.seek_to_first();
        Ok(())
    }

    fn seek(&mut self, user_key: &[u8]) -> Result<(), Error> {
        self.cursor.seek(user_key);
        Ok(())
    }

    fn next(&mut self) -> Result<(), Error> {
        self.cursor.next();
        Ok(())
    }

    fn current(&self) -> Option<EntryRef<'_>> {
        self.cursor.current()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::sst::bloom::hash;
    use crate::types::Value;

    fn key(text: &'static str) -> Key {
        Key::new(text).unwrap()
    }

    fn at(timestamp: u64) -> Timestamp {
        Timestamp::from_u64(timestamp)
    }

    #[test]
    fn a_late_older_record_changes_no_answer() {
        let memtable = Memtable::new(1, 64 << 20, 1);
        assert_eq!(memtable.insert(&[(key("k"), Record::tombstone(at(9)))]), []);
        assert_eq!(memtable.insert(&[(key("k"), Record::value(at(4), Value::new("old")))]), [(0, at(9))]);
        assert_eq!(memtable.get(b"k", hash(b"k")), Some(Record::tombstone(at(9))));
        assert_eq!((memtable.newest(), memtable.oldest()), (at(9), Some(at(4))));
    }

    #[test]
    fn a_new_memtable_holds_nothing_and_weighs_next_to_nothing() {
        let memtable = Memtable::new(1, 64 << 20, 1);
        assert!(memtable.is_empty());
        assert_eq!(memtable.get(b"k", hash(b"k")), None);
        assert_eq!((memtable.oldest(), memtable.newest()), (None, Timestamp::ZERO));
        assert!(memtable.bytes() < 256);
        assert!(!memtable.is_full());
    }

    #[test]
    fn memtables_that_take_the_same_writes_are_full_at_different_moments() {
        let size = 64 << 10;
        let full_after: Vec<_> = (0..20)
            .map(|seed: u64| {
                let memtable = Memtable::new(1, size, seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
                let key_of = |n: u64| Key::new(format!("{n:05}")).unwrap();
                let writes = (1..10_000).find(|n| {
                    memtable.insert(&[(key_of(*n), Record::value(at(*n), Value::new("v")))]);
                    memtable.is_full()
                });
                assert!(memtable.bytes() >= size / 4 * 3 && memtable.bytes() < size + 256);
                writes.unwrap()
            })
            .collect();
        let (least, most) = (full_after.iter().min().unwrap(), full_after.iter().max().unwrap());
        assert!(most * 5 > least * 6, "{least} to {most} writes");
    }
}
