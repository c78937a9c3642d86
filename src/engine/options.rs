//! How an engine is set up.

use std::fmt;
use std::sync::Arc;

use super::wal::BATCHES_AT;
use crate::types::{Expiry, Timestamp};

/// Tells which values have expired so long ago that nobody can doubt it. The engine itself has no clock.
#[derive(Clone)]
pub struct Horizon(Arc<dyn Fn() -> Timestamp + Send + Sync>);

impl Horizon {
    /// `now` gives the moment before which an expiry must lie. It must never go back, not by a restart either: what
    /// had expired once has expired.
    pub fn new(now: impl Fn() -> Timestamp + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    /// The moment as it is now.
    pub fn now(&self) -> Timestamp {
        (self.0)()
    }
}

impl Default for Horizon {
    /// Nothing ever expires.
    fn default() -> Self {
        Self::new(|| Timestamp::ZERO)
    }
}

impl fmt::Debug for Horizon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Horizon").field(&self.now()).finish()
    }
}

/// Whether a value has expired for good by a [`Horizon`]'s reading.
pub(super) fn is_beyond(horizon: Timestamp, expires_at: Expiry) -> bool {
    expires_at.timestamp() < horizon
}

/// When a write becomes visible and is acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// After the sync that covers it.
    #[default]
    Synced,
    /// After the append: a crash of the machine may lose it. For library use and benchmarks.
    Buffered,
}

/// Whether compaction may let tombstones go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TombstonePolicy {
    /// Never: nobody vouches that every replica has them.
    #[default]
    Keep,
    /// Once nothing older of the key can be left in this engine: there is no other replica.
    DropWhenUncovered,
}

/// The settings of one engine. Sizes in bytes.
#[derive(Debug, Clone)]
pub struct Options {
    /// A memtable is sealed at this size or, by chance, up to a quarter below it.
    pub memtable_size: usize,
    /// Level 0 is compacted from this many tables on.
    pub l0_files_max: usize,
    /// Keys a block, at most.
    pub sparse_index_interval: usize,
    /// Bytes of blocks and rows kept in memory.
    pub block_cache_size: usize,
    /// Files of tables that are open at a time; of others the next read opens them again.
    pub open_files_max: usize,
    /// Batches a commit group, at most.
    pub wal_batch_max: usize,
    /// Bits of bloom filter a key.
    pub bloom_bits_per_key: usize,
    /// Bits of bloom filter of a table in level 0, in place of `bloom_bits_per_key`.
    pub bloom_size_l0: Option<usize>,
    /// Bits of bloom filter of a table in the first level below level 0, in place of `bloom_bits_per_key`.
    pub bloom_size_l1: Option<usize>,
    /// When a write is acknowledged.
    pub durability: Durability,
    /// Whether tombstones may go.
    pub tombstones: TombstonePolicy,
    /// Which values flushes and compactions may take for expired, and let their bytes go.
    pub horizon: Horizon,
    /// Open a damaged directory by dropping what is damaged, and report it in [`super::Recovery::damage`].
    pub drop_damaged: bool,
    /// Bytes of batches that may wait for their commit; beyond it writers get [`super::Error::Busy`].
    pub queue_bytes_max: usize,
    /// Which lane of the pool commits run in.
    pub commit_lane: crate::env::Lane,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            memtable_size: 64 << 20,
            l0_files_max: 4,
            sparse_index_interval: 128,
            block_cache_size: 256 << 20,
            open_files_max: 1024,
            wal_batch_max: 512,
            bloom_bits_per_key: 10,
            bloom_size_l0: None,
            bloom_size_l1: None,
            durability: Durability::Synced,
            tombstones: TombstonePolicy::Keep,
            horizon: Horizon::default(),
            drop_damaged: false,
            queue_bytes_max: 128 << 20,
            commit_lane: crate::env::Lane::Commit,
        }
    }
}

impl Options {
    /// A log is zero-filled ahead by this many bytes at a time, so that a new one costs its first writer little.
    const LOG_STEP_MAX: u64 = 1 << 20;

    /// At this size of its log a memtable is sealed, however small it is.
    pub(super) fn log_size_max(&self) -> u64 {
        let memtable_size = self.memtable_size as u64;
        memtable_size + memtable_size / 4 + 4096 + BATCHES_AT as u64
    }

    /// By how much a log's file grows.
    pub(super) fn log_step(&self) -> u64 {
        self.log_size_max().min(Self::LOG_STEP_MAX)
    }
}
