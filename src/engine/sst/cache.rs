//! Block cache: data blocks in memory, decompressed and checked, bounded in bytes.
//!
//! Sharded, so that readers on several cores rarely meet at a lock. Index and bloom filter of a table are not
//! in it: they stay with the open reader. Scans and compactions look into the cache but do not fill it: one walk over
//! the whole store would push out what lookups need, and take all the memory that the cache may have.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{OptionsBuilder, Weighter};

use super::BLOCK_SIZE;
use super::block::Block;
use crate::env::rng::{Rng, SeededHasher};

/// What an entry weighs beside its block's bytes.
const OVERHEAD: u64 = 96;
/// A fixed number: the machine's cores must not decide what a simulation evicts.
const SHARDS_MAX: usize = 16;

/// A block's file number and offset.
type BlockId = (u64, u64);

#[derive(Debug, Clone, Copy)]
struct ByBytes;

impl Weighter<BlockId, Block> for ByBytes {
    fn weight(&self, _: &BlockId, block: &Block) -> u64 {
        block.len() as u64 + OVERHEAD
    }
}

/// Blocks by file number and offset. All methods may be called from any thread.
pub struct BlockCache {
    blocks: Cache<BlockId, Block, ByBytes, SeededHasher>,
    /// Figures: relaxed, they order nothing.
    hits: AtomicU64,
    misses: AtomicU64,
    corruptions: AtomicU64,
}

impl fmt::Debug for BlockCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockCache").field("bytes", &self.bytes()).finish_non_exhaustive()
    }
}

impl BlockCache {
    /// A cache of at most `capacity` bytes.
    pub fn new(capacity: usize, rng: &Rng) -> Self {
        // A shard smaller than a few blocks would turn most of them away.
        let shards = (capacity / (16 * BLOCK_SIZE)).clamp(1, SHARDS_MAX).next_power_of_two();
        let options = OptionsBuilder::new()
            .shards(shards)
            .estimated_items_capacity((capacity / (BLOCK_SIZE / 2)).max(16))
            .weight_capacity(capacity as u64)
            .build()
            .expect("all that is required was given");
        Self {
            blocks: Cache::with_options(options, ByBytes, rng.hasher(), DefaultLifecycle::default()),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            corruptions: AtomicU64::new(0),
        }
    }

    pub(crate) fn get(&self, number: u64, offset: u64) -> Option<Block> {
        let block = self.blocks.get(&(number, offset))?;
        self.hits.fetch_add(1, Ordering::Relaxed);
        Some(block)
    }

    /// Notes that a block had to be read.
    pub(crate) fn missed(&self) {
        self.misses.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn insert(&self, number: u64, offset: u64, block: Block) {
        self.blocks.insert((number, offset), block);
    }

    /// Notes that a block was found damaged.
    pub(crate) fn corrupted(&self) {
        self.corruptions.fetch_add(1, Ordering::Relaxed);
    }

    /// Blocks found in memory.
    pub fn hits(&self) -> u64 {
        self.hits.load(Ordering::Relaxed)
    }

    /// Blocks that had to be read.
    pub fn misses(&self) -> u64 {
        self.misses.load(Ordering::Relaxed)
    }

    /// Bytes held.
    pub fn bytes(&self) -> u64 {
        self.blocks.weight()
    }

    /// Damage found by readers of the tables that share this cache.
    pub fn corruptions(&self) -> u64 {
        self.corruptions.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
            let cache = BlockCache::new(capacity, &Rng::from_seed(1));
            for n in 0..1000u64 {
                cache.insert(n % 7, n, block(100 + 20 * n as usize));
                assert!(cache.bytes() <= capacity as u64, "{} > {capacity}", cache.bytes());
            }
        }
    }

    #[test]
    fn blocks_of_the_same_offset_in_different_files_are_kept_apart() {
        let cache = BlockCache::new(1 << 20, &Rng::from_seed(1));
        cache.insert(1, 0, block(100));
        cache.insert(2, 0, block(200));
        assert_eq!(cache.get(1, 0).unwrap().len(), 100);
        assert_eq!(cache.get(2, 0).unwrap().len(), 200);
        assert!(cache.get(1, 1).is_none());
        assert_eq!(cache.hits(), 2);
    }
}
