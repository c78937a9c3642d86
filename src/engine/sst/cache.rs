//! `TableCache`: what lookups keep of tables in memory, bounded in bytes: data blocks, and single records. Beside them it
//! keeps the open files of tables, bounded in number.
//!
//! ```text
//! key ──> row there? ──yes──> record
//!            └─no──> block there? ──no──> disk
//!                       └──> record, which becomes a row
//! ```
//!
//! A block is decompressed and checked. A row is one record: where what is asked for lies scattered, a row takes a hundredth
//! of its block's memory, and is found in two waits for memory instead of a dozen. Both belong to a table, which never changes,
//! so neither is ever out of date: a record that supersedes lies in another table or in memory, where it is looked for first.
//!
//! Sharded, so that readers on several cores rarely meet at a lock. Index and bloom filter of a table are not
//! in it: they stay with the open reader. Scans and compactions look into the cache but do not fill it: one walk over
//! the whole store would push out what lookups need, and take all the memory that the cache may have.
//!
//! Source: facebook/rocksdb has rows by table and key, too (`db/table_cache.cc`, "row cache"), in a cache of their own.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};

use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{Equivalent, OptionsBuilder, Weighter};

use super::BLOCK_SIZE;
use super::block::Block;
use super::obsolete::ObsoleteTables;
use super::open_files::OpenFiles;
use crate::env::rng::{Rng, SeededHasher};
use crate::types::Record;

/// What a block weighs beside its bytes.
const BLOCK_OVERHEAD: u64 = 96;
/// What a row weighs beside the bytes of its key and its record.
const ROW_OVERHEAD: u64 = 224;
/// A value of at least this size makes no row: its block holds little else.
const ROW_VALUE_LEN_MAX: usize = 2048;
/// Rows have one part in this many of the cache.
const ROWS_PART: usize = 4;
/// What a row is expected to weigh.
const ROW_WEIGHT: usize = 512;
/// A fixed number: the machine's cores must not decide what a simulation evicts.
const SHARDS_MAX: usize = 16;

/// A block's file number and offset.
type BlockId = (u64, u64);

/// A key in a table: the file's number, the key's hash, and the key, its own or borrowed.
#[derive(Debug, Clone, PartialEq, Eq)]
struct RowId<Key = Box<[u8]>> {
    table: u64,
    hash: u64,
    key: Key,
}

impl<Key> Hash for RowId<Key> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.table, self.hash).hash(state);
    }
}

impl Equivalent<RowId> for RowId<&[u8]> {
    fn equivalent(&self, row: &RowId) -> bool {
        (self.table, self.hash) == (row.table, row.hash) && *self.key == *row.key
    }
}

#[derive(Debug, Clone, Copy)]
struct ByBytes;

impl Weighter<BlockId, Block> for ByBytes {
    fn weight(&self, _: &BlockId, block: &Block) -> u64 {
        block.len() as u64 + BLOCK_OVERHEAD
    }
}

impl Weighter<RowId, Record> for ByBytes {
    fn weight(&self, row: &RowId, record: &Record) -> u64 {
        (row.key.len() + record.encoded_len()) as u64 + ROW_OVERHEAD
    }
}

/// Blocks by file number and offset, records by file number and key. All methods may be called from any thread.
pub struct TableCache {
    blocks: Cache<BlockId, Block, ByBytes, SeededHasher>,
    rows: Cache<RowId, Record, ByBytes, SeededHasher>,
    files: OpenFiles,
    /// Figures: relaxed, they order nothing.
    hits: AtomicU64,
    misses: AtomicU64,
    corruptions: AtomicU64,
    obsolete: ObsoleteTables,
}

impl fmt::Debug for TableCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TableCache").field("bytes", &self.bytes()).finish_non_exhaustive()
    }
}

impl TableCache {
    /// A cache of at most `capacity` bytes and `files_max` open files.
    pub fn new(capacity: usize, files_max: usize, rng: &Rng) -> Self {
        let rows = capacity / ROWS_PART;
        Self {
            blocks: cache(capacity - rows, BLOCK_SIZE / 2, rng),
            rows: cache(rows, ROW_WEIGHT, rng),
            files: OpenFiles::new(files_max),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            corruptions: AtomicU64::new(0),
            obsolete: ObsoleteTables::default(),
        }
    }

    /// Files of the tables that share this cache which are to be closed and removed in the background.
    pub fn obsolete(&self) -> &ObsoleteTables {
        &self.obsolete
    }

    /// The files of tables that are open.
    pub(crate) fn files(&self) -> &OpenFiles {
        &self.files
    }

    /// A block of table `number`.
    pub(crate) fn block(&self, number: u64, offset: u64) -> Option<Block> {
        let block = self.blocks.get(&(number, offset))?;
        self.hits.fetch_add(1, Ordering::Relaxed);
        Some(block)
    }

    /// Keeps a block.
    pub(crate) fn insert_block(&self, number: u64, offset: u64, block: Block) {
        self.blocks.insert((number, offset), block);
    }

    /// The newest record of a key in table `number`.
    pub(crate) fn row(&self, number: u64, key: &[u8], hash: u64) -> Option<Record> {
        let record = self.rows.get(&RowId { table: number, hash, key })?;
        self.hits.fetch_add(1, Ordering::Relaxed);
        Some(record)
    }

    /// Keeps the newest record of a key in table `number`, if it is a small one.
    pub(crate) fn insert_row(&self, number: u64, key: &[u8], hash: u64, record: &Record) {
        if record.value_len() < ROW_VALUE_LEN_MAX {
            self.rows.insert(RowId { table: number, hash, key: key.into() }, record.clone());
        }
    }

    /// Notes that a block had to be read.
    pub(crate) fn missed(&self) {
        self.misses.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes that a block was found damaged.
    pub(crate) fn corrupted(&self) {
        self.corruptions.fetch_add(1, Ordering::Relaxed);
    }

    /// Blocks and rows found in memory.
    pub fn hits(&self) -> u64 {
        self.hits.load(Ordering::Relaxed)
    }

    /// Blocks that had to be read.
    pub fn misses(&self) -> u64 {
        self.misses.load(Ordering::Relaxed)
    }

    /// Bytes held.
    pub fn bytes(&self) -> u64 {
        self.blocks.weight() + self.rows.weight()
    }

    /// Damage found by readers of the tables that share this cache.
    pub fn corruptions(&self) -> u64 {
        self.corruptions.load(Ordering::Relaxed)
    }
}

/// A cache of at most `capacity` bytes for what weighs about `weight`.
fn cache<Key: Eq + Hash, Kept: Clone>(
    capacity: usize,
    weight: usize,
    rng: &Rng,
) -> Cache<Key, Kept, ByBytes, SeededHasher>
where
    ByBytes: Weighter<Key, Kept>,
{
    // A shard smaller than a few of the largest would turn most of them away.
    let shards = (capacity / (16 * BLOCK_SIZE)).clamp(1, SHARDS_MAX).next_power_of_two();
    let options = OptionsBuilder::new()
        .shards(shards)
        .estimated_items_capacity((capacity / weight).max(16))
        .weight_capacity(capacity as u64)
        .build()
        .expect("all that is required was given");
    Cache::with_options(options, ByBytes, rng.hasher(), DefaultLifecycle::default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Timestamp, Value};
    use bytes::Bytes;

    fn block(len: usize) -> Block {
        let mut bytes = vec![0; len - 8];
        bytes.extend_from_slice(&0u32.to_le_bytes());
        bytes.extend_from_slice(&1u32.to_le_bytes());
        Block::new(Bytes::from(bytes)).unwrap()
    }

    #[test]
    fn the_cache_never_holds_more_bytes_than_it_may() {
        for capacity in [0, 1000, 100_000, 1 << 20] {
            let cache = TableCache::new(capacity, 64, &Rng::from_seed(1));
            for n in 0..1000u64 {
                cache.insert_block(n % 7, n, block(100 + 20 * n as usize));
                assert!(cache.bytes() <= capacity as u64, "{} > {capacity}", cache.bytes());
            }
        }
    }

    #[test]
    fn blocks_of_the_same_offset_in_different_files_are_kept_apart() {
        let cache = TableCache::new(1 << 20, 64, &Rng::from_seed(1));
        cache.insert_block(1, 0, block(100));
        cache.insert_block(2, 0, block(200));
        assert_eq!(cache.block(1, 0).unwrap().len(), 100);
        assert_eq!(cache.block(2, 0).unwrap().len(), 200);
        assert!(cache.block(1, 1).is_none());
        assert_eq!(cache.hits(), 2);
    }

    fn record(text: &str) -> Record {
        Record::value(Timestamp::from_u64(1), Value::new(Bytes::copy_from_slice(text.as_bytes())))
    }

    #[test]
    fn rows_of_other_tables_and_of_keys_with_the_same_hash_are_kept_apart() {
        let cache = TableCache::new(1 << 20, 64, &Rng::from_seed(1));
        cache.insert_row(1, b"a", 7, &record("a of 1"));
        cache.insert_row(2, b"a", 7, &record("a of 2"));
        cache.insert_row(1, b"b", 7, &record("b of 1"));
        assert_eq!(cache.row(1, b"a", 7), Some(record("a of 1")));
        assert_eq!(cache.row(2, b"a", 7), Some(record("a of 2")));
        assert_eq!(cache.row(1, b"b", 7), Some(record("b of 1")));
        assert_eq!((cache.row(2, b"b", 7), cache.row(3, b"a", 7)), (None, None));
        assert_eq!(cache.hits(), 3);
    }

    #[test]
    fn rows_stay_within_their_part_and_large_values_make_none() {
        let capacity = 1 << 20;
        let cache = TableCache::new(capacity, 64, &Rng::from_seed(1));
        for n in 0..20_000u64 {
            cache.insert_row(1, &n.to_be_bytes(), n, &record(&"v".repeat(n as usize % 300)));
            assert!(cache.bytes() <= (capacity / ROWS_PART) as u64);
        }
        assert!(cache.bytes() > (capacity / ROWS_PART / 2) as u64, "{}", cache.bytes());
        cache.insert_row(2, b"large", 1, &record(&"v".repeat(ROW_VALUE_LEN_MAX)));
        assert_eq!(cache.row(2, b"large", 1), None);
    }
}
