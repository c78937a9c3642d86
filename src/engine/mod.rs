//! One node's storage: a log-structured merge tree. Synchronous, knows no cluster; usable on its own
//! (`examples/embedded.rs`).
//!
//! What it promises. A write whose completion was called with `Ok` is on disk, names of files included, and is there
//! after any crash, of the process or of the machine, at any moment, during recovery too. A batch is there whole or not
//! at all. Nothing that was not written is ever read, and bytes that fail their checksum never are. After
//! [`Error::Io`] a write may or may not be there; after every other error it is not. Of two records of a key the one that
//! [`supersedes`](crate::types::Record::supersedes) is read, in whatever order they were written.
//!
//! What it does not. Readers may see part of a batch that is being written. [`Durability::Buffered`] promises no more
//! than the operating system does. Damage to the last group of a log, with no later frame to witness that it was
//! synced, looks like a write that was cut short by a crash, and so does a last log that is missing altogether.
//!
//! The life of a write:
//!
//! ```text
//! submit ──► CommitQueue ──one job a group──► log: append, sync ──► memtable: insert ──► done(Ok)
//!               │ too many bytes: Busy             │ failed: Io, then Poisoned for all until a reopen
//!               │ disk nearly full: NoSpace        ▼         (deletes have a reserve: `space`)
//!               │ compaction far behind: waits   nothing is visible before its sync
//!
//! memtable full ──► sealed, a new log begun ──flush──► table in L0 ──compaction──► L1 … L6
//!                                              └─► manifest: the log is not needed any more ──► recycled
//! ```
//!
//! The life of a read:
//!
//! ```text
//! get ──► active memtable ──► sealed ones, newest first ──► L0, newest first ──► L1 ──► … ──► L6
//!           every step is skipped if its newest timestamp lies below that of the record found so far
//! try_get: the same, and `None` where a block would have to be read from disk
//! scan:    all of them merged, the winner of each key, tombstones too
//! ```
//!
//! A value may have an expiry. Nothing here looks at it when it is read: whoever reads knows what time it is. Flushes and
//! compactions replace what [`Horizon`] says has expired for good by a tombstone that says when
//! ([`Record::Expired`](crate::types::Record::Expired)), and tombstones they let go as [`TombstonePolicy`] allows.
//!
//! The order of records is that of their timestamps, given by whoever writes; there is no second clock and no sequence
//! number. So a write needs no read before it, and a late, older record lands in its right place.
//!
//! A directory that no engine has open can be read without a byte being changed (`read_only`), checked down to the last
//! checksum (`verify`), and looked at file by file (`files`).
//!
//! Where to read on: `db` (the handle), `commit` (the write path), `recovery`, `background` (flush and compaction),
//! `wal`, `skiplist`, `key_index`; then `sst`, `version`, `compact`. Source of the shape: google/leveldb `doc/impl.md`.

mod arena;
mod background;
mod commit;
mod commit_queue;
pub mod compact;
pub mod db;
pub mod duplicate;
mod error;
pub mod files;
#[cfg(test)]
mod interleave;
pub mod internal_key;
pub mod iter;
mod key_index;
mod memtable;
mod options;
pub mod read_only;
mod recovery;
mod skiplist;
mod space;
pub mod sst;
mod sync;
mod sync_times;
pub mod verify;
pub mod version;
mod waiters;
pub(crate) mod wal;
mod write_batch;

pub use db::{Engine, EngineScan};
pub use error::Error;
pub use options::{Durability, Horizon, Options, TombstonePolicy};
pub use read_only::ReadOnlyEngine;
pub use sst::{SkippedBlock, SkippedBlocks};
pub use sync_times::SyncTimes;
pub use write_batch::WriteBatch;

use crate::types::Timestamp;

/// What a write that is now durable found in its way.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Written {
    /// Which of the batch's records met a newer one of their key in memory, by their places, and its timestamp: not all that
    /// were overtaken, perhaps.
    pub overtaken: Vec<(u32, Timestamp)>,
}

/// What a checkpoint holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Checkpoint {
    /// Tables.
    pub tables: usize,
    /// Their bytes. They are links: they take space of their own only once the engine has replaced them.
    pub bytes: u64,
    /// Records in them, tombstones and older ones of a key too.
    pub records: u64,
    /// Tombstones among those.
    pub tombstones: u64,
}

/// Called once with the outcome of a write, from whichever thread carried it out; must not block.
pub type Completion = Box<dyn FnOnce(Result<Written, Error>) + Send>;

/// What opening a directory found.
#[derive(Debug, Clone, Default)]
pub struct Recovery {
    /// Log frames replayed into memory.
    pub frames_replayed: u64,
    /// Tables found.
    pub tables: usize,
    /// The newest timestamp held.
    pub newest: Timestamp,
    /// Whether the directory was empty before.
    pub created: bool,
    /// What was lost to damage: one line each. Empty unless [`Options::drop_damaged`] let it be dropped.
    pub damage: Vec<String>,
}

/// Figures of a running engine. Counters count since it was opened.
#[derive(Debug, Clone, Default)]
pub struct EngineStats {
    /// Batches written.
    pub batches_written: u64,
    /// Records written.
    pub records_written: u64,
    /// Syncs of the log.
    pub wal_syncs: u64,
    /// How long they took.
    pub sync_times: SyncTimes,
    /// Bytes free on the disk when it was last looked at; `None` before that.
    pub free_bytes: Option<u64>,
    /// Bytes appended to the log.
    pub wal_bytes: u64,
    /// Memtables flushed.
    pub flushes: u64,
    /// Compactions run.
    pub compactions: u64,
    /// Bytes read and written by compactions.
    pub compaction_bytes: (u64, u64),
    /// Tables in each level.
    pub level_files: [usize; 7],
    /// Bytes in each level.
    pub level_bytes: [u64; 7],
    /// Bytes of the entries in the active memtable and in the sealed ones; their indexes come on top.
    pub memtable_bytes: usize,
    /// Sealed memtables waiting for their flush.
    pub memtables_sealed: usize,
    /// Records in memtables, older ones of a key too.
    pub memtable_records: u64,
    /// Bytes of records in logs whose memtables are not flushed yet, without what frames them.
    pub log_bytes: u64,
    /// The number of the log that takes writes.
    pub log_number: u64,
    /// Records in the tables, tombstones and older ones of a key too.
    pub table_records: u64,
    /// The lowest number of a table; `None` without tables.
    pub oldest_table: Option<u64>,
    /// Tombstones in the tables, those that expired values left among them.
    pub tombstones: u64,
    /// Expired values whose bytes flushes and compactions let go.
    pub expired: u64,
    /// Blocks and rows found in the block cache.
    pub cache_hits: u64,
    /// Blocks that had to be read.
    pub cache_misses: u64,
    /// Bytes of blocks and rows in the block cache.
    pub cache_bytes: u64,
    /// Records that met a newer one in memory.
    pub overtaken: u64,
    /// Blocks found damaged.
    pub corruptions: u64,
    /// Whether writers are held back now because compaction is behind.
    pub throttled: bool,
    /// How often writers were held back.
    pub throttles: u64,
    /// Whether writes are refused until the engine is opened anew.
    pub poisoned: bool,
    /// Whether values are refused for want of space, deletes perhaps too.
    pub out_of_space: bool,
    /// Why the directory could not be looked at the last time, if it could not: writes are refused while it lasts.
    pub disk_error: Option<String>,
}

impl EngineStats {
    /// Bytes of data held: the tables, and the records of logs that are not in tables yet. What every door, page and
    /// command means by the size of a node's data.
    pub fn held_bytes(&self) -> u64 {
        self.log_bytes + self.level_bytes.iter().sum::<u64>()
    }
}
