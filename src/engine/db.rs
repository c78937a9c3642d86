//! Engine: the handle that all threads share, and the read path.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arc_swap::ArcSwap;
use bytes::Bytes;
use parking_lot::{Condvar, Mutex};

use super::background::Background;
use super::commit::Log;
use super::commit_queue::CommitQueue;
use super::iter::{InternalIterator, MergingIterator, VisibleIterator};
use super::memtable::Memtable;
use super::recovery::{self, Recovered};
use super::sst::{SkippedBlocks, bloom};
use super::sync_times::SyncCounter;
use super::version::{Opened, VersionSet};
use super::wal;
use super::{Checkpoint, Completion, EngineStats, Error, Options, Recovery, WriteBatch, Written};
use crate::env::{Env, Lane, Mistake, VfsLock, at_full_speed};
use crate::types::{Key, KeyRange, Record, Timestamp, Value};

/// The file whose lock a process holds while it has the directory open.
pub(super) const LOCK: &str = "LOCK";

/// One node's storage. A clone is the same engine.
#[derive(Clone)]
pub struct Engine {
    pub(super) shared: Arc<Shared>,
}

/// What the handles, the commit job and the background jobs share.
///
/// Locks are taken in this order, and briefly: `log`, `background`, then whatever `queue` and `versions` have inside.
pub(super) struct Shared {
    pub env: Env,
    pub dir: PathBuf,
    pub options: Options,
    pub versions: VersionSet,
    pub queue: CommitQueue,
    /// Held through append and sync, by the one commit job.
    pub log: Mutex<Log>,
    /// What reads look at first. Replaced whole, under the lock of `background`.
    pub memory: ArcSwap<Memory>,
    pub background: Mutex<Background>,
    pub health: Health,
    pub counters: Counters,
    /// The directory's lock, until the engine is shut down.
    directory: Mutex<Option<Box<dyn VfsLock>>>,
}

/// The memtables at one moment.
#[derive(Debug)]
pub(super) struct Memory {
    /// Takes writes.
    pub active: Arc<Memtable>,
    /// Wait for their flush, newest first.
    pub sealed: Vec<Arc<Memtable>>,
}

impl Memory {
    /// All memtables, newest first.
    pub fn tables(&self) -> impl Iterator<Item = &Arc<Memtable>> {
        std::iter::once(&self.active).chain(&self.sealed)
    }
}

/// What keeps the engine from writing.
#[derive(Debug, Default)]
pub(super) struct Health {
    /// A write or a sync failed; release and acquire, so that whoever sees it also sees why.
    pub poisoned: AtomicBool,
    /// Shut down.
    pub closed: AtomicBool,
    /// The last look at the disk found too little space for values.
    pub out_of_space: AtomicBool,
    /// Bytes of deletes taken since there was space for values.
    pub deletes_taken: AtomicU64,
    /// Why the last look at the disk failed, if it did.
    pub disk_error: Mutex<Option<String>>,
    /// Compaction is behind.
    pub throttled: AtomicBool,
}

/// Figures since opening; relaxed, as they order nothing.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub batches_written: AtomicU64,
    pub records_written: AtomicU64,
    pub wal_syncs: AtomicU64,
    pub sync_times: SyncCounter,
    /// Bytes free when they were last looked at, and one more; 0 before that.
    pub free_bytes: AtomicU64,
    /// Somebody is looking at it.
    pub measuring: AtomicBool,
    pub wal_bytes: AtomicU64,
    pub flushes: AtomicU64,
    pub overtaken: AtomicU64,
    pub throttles: AtomicU64,
}

impl Counters {
    pub fn free_space(&self) -> Option<u64> {
        self.free_bytes.load(Ordering::Relaxed).checked_sub(1)
    }

    pub fn note_free_space(&self, bytes: u64) {
        self.free_bytes.store(bytes.saturating_add(1), Ordering::Relaxed);
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("dir", &self.shared.dir).finish_non_exhaustive()
    }
}

impl Engine {
    /// Opens a directory, making it if need be, and recovers what was acknowledged. May take as long as writing
    /// a memtable out does.
    ///
    /// # Errors
    /// `Locked` when another process, or another engine of this one, has it open; `Corruption` when what was
    /// acknowledged is damaged (see [`Options::drop_damaged`]); `Io`.
    pub fn open(env: &Env, dir: &Path, options: Options) -> Result<(Self, Recovery), Error> {
        make_directory(env, dir)?;
        let lock_path = dir.join(LOCK);
        let lock = env.fs.lock(&lock_path).map_err(|error| match error.kind() {
            std::io::ErrorKind::WouldBlock => Error::Locked { path: dir.to_owned() },
            _ => Error::io("lock", &lock_path, error),
        })?;
        let (versions, opened) = VersionSet::open(env, dir, &options)?;
        let recovered = recovery::recover(env, dir, opened.log_number, &options, env.rng.u64())?;
        let active = Memtable::new(versions.new_file_number(), options.memtable_size, env.rng.u64());
        let shared = Arc::new(Shared {
            queue: CommitQueue::new(options.queue_bytes_max, options.wal_batch_max),
            log: Mutex::default(),
            memory: ArcSwap::from_pointee(Memory { active: Arc::new(active), sealed: Vec::new() }),
            background: Mutex::default(),
            health: Health::default(),
            counters: Counters::default(),
            directory: Mutex::new(Some(lock)),
            env: env.clone(),
            dir: dir.to_owned(),
            versions,
            options,
        });
        let recovery = shared.settle(recovered, opened)?;
        let _ = shared.look_at_disk(); // a disk that is full at the start says so at once
        shared.background.lock().look_for_compaction();
        shared.advance_background();
        Ok((Self { shared }, recovery))
    }

    /// Returns the newest record of a key, a tombstone too. May wait for a disk.
    ///
    /// # Errors
    /// `Corruption` when a table that may hold the key is damaged; `Io`; `Closed`.
    pub fn get(&self, key: &Key) -> Result<Option<Record>, Error> {
        self.check_open()?;
        let hash = bloom::hash(key.as_bytes());
        let in_memory = self.shared.get_in_memory(key.as_bytes(), hash);
        let in_tables = self.shared.versions.current().get(key.as_bytes(), hash, in_memory.as_ref())?;
        Ok(in_tables.or(in_memory))
    }

    /// Like [`Engine::get`], but answers `None` where it would have to wait for a disk.
    pub fn try_get(&self, key: &Key) -> Option<Result<Option<Record>, Error>> {
        if let Err(closed) = self.check_open() {
            return Some(Err(closed));
        }
        let hash = bloom::hash(key.as_bytes());
        let in_memory = self.shared.get_in_memory(key.as_bytes(), hash);
        let in_tables = self.shared.versions.current().try_get(key.as_bytes(), hash, in_memory.as_ref())?;
        Some(in_tables.map(|found| found.or(in_memory)))
    }

    /// Queues a write and starts its commit; `done` is called once with the outcome.
    pub fn submit(&self, batch: WriteBatch, done: Completion) {
        self.enqueue(batch, done);
        self.kick();
    }

    /// Queues a write without starting its commit: [`Engine::kick`] must follow.
    pub fn enqueue(&self, batch: WriteBatch, done: Completion) {
        if self.shared.health.poisoned.load(Ordering::Acquire) {
            done(Err(Error::Poisoned));
        } else if let Err((error, done)) = self.shared.queue.push(batch, done) {
            done(Err(error));
        }
    }

    /// Starts a commit of what is queued, unless one is running.
    pub fn kick(&self) {
        self.shared.kick();
    }

    /// Writes a batch and waits until it is durable. Blocks: for library use.
    ///
    /// # Errors
    /// As told in [`Error`]: after `Io` it may or may not have been written, after all others it was not.
    pub fn write(&self, batch: WriteBatch) -> Result<Written, Error> {
        wait_for(|done| self.submit(batch, done))
    }

    /// Writes a value and waits until it is durable.
    pub fn put(&self, key: Key, value: Value, timestamp: Timestamp) -> Result<Written, Error> {
        self.write(WriteBatch::one(key, Record::value(timestamp, value)))
    }

    /// Writes a tombstone and waits until it is durable.
    pub fn delete(&self, key: Key, timestamp: Timestamp) -> Result<Written, Error> {
        self.write(WriteBatch::one(key, Record::tombstone(timestamp)))
    }

    /// Walks a range in key order: the newest record of each key, tombstones too. The iterator sees everything
    /// that was written when it was made, and may see what is written meanwhile. May wait for a disk at each step;
    /// ends after an error.
    pub fn scan(&self, range: &KeyRange) -> EngineScan {
        self.scan_with(range, None)
    }

    /// Walks a range like [`Engine::scan`], but goes round damaged blocks of tables and notes them in `skipped`. Keys of those
    /// blocks are missing, or shown as an older record that lies elsewhere: for copies that are compared with others.
    pub fn scan_around_damage(&self, range: &KeyRange, skipped: &SkippedBlocks) -> EngineScan {
        self.scan_with(range, Some(skipped))
    }

    fn scan_with(&self, range: &KeyRange, skipped: Option<&SkippedBlocks>) -> EngineScan {
        if let Err(closed) = self.check_open() {
            return EngineScan { state: ScanState::Failed(closed) };
        }
        let mut inputs: Vec<Box<dyn InternalIterator>> = Vec::new();
        for memtable in self.shared.memory.load().tables() {
            inputs.push(Box::new(memtable.entries()));
        }
        // After the memtables: one that was flushed in between is met twice rather than not at all.
        inputs.extend(self.shared.versions.current().iterators_skipping(range, skipped));
        EngineScan::over(inputs, range)
    }

    /// Seals the memtable and waits until all of it is in tables. Blocks.
    pub fn flush(&self) -> Result<(), Error> {
        wait_for(|done| self.start_flush(done))
    }

    /// Seals the memtable; `done` is called once all of it is in tables. Does not block.
    pub fn start_flush(&self, done: Box<dyn FnOnce(Result<(), Error>) + Send>) {
        self.shared.queue.push_seal(done);
        self.kick();
    }

    /// Flushes, compacts until no key lies in two levels, and waits. Blocks.
    pub fn compact(&self) -> Result<(), Error> {
        self.flush()?;
        wait_for(|done| self.shared.when_compacted(done))
    }

    /// Makes a consistent copy in a new directory on the same file system, by hard links. Blocks.
    ///
    /// It holds everything acknowledged before the call, and opens as an engine of its own.
    pub fn checkpoint(&self, dir: &Path) -> Result<Checkpoint, Error> {
        self.check_open()?;
        self.flush()?;
        self.link_tables(dir)
    }

    /// The second half of [`Engine::checkpoint`], for who has flushed already: what memory holds is left out. Blocks
    /// for a few links and a sync.
    pub fn link_tables(&self, dir: &Path) -> Result<Checkpoint, Error> {
        self.check_open()?;
        self.shared.versions.checkpoint_into(dir)
    }

    /// Does in the background what no write asks for: closes and removes the files of replaced tables, and frees
    /// memtables, that readers held on to until now; rewrites tables with many values that have expired, and with
    /// tombstones that may go. To be called every second or so: an engine of which nothing was written between two calls
    /// counts as idle. Does not block.
    pub fn maintain(&self) {
        self.shared.maintain();
    }

    /// Figures.
    pub fn stats(&self) -> EngineStats {
        let Shared { counters, health, memory, versions, .. } = &*self.shared;
        let memory = memory.load();
        let mut stats = EngineStats::default();
        versions.fill_stats(&mut stats);
        stats.batches_written = counters.batches_written.load(Ordering::Relaxed);
        stats.records_written = counters.records_written.load(Ordering::Relaxed);
        stats.wal_syncs = counters.wal_syncs.load(Ordering::Relaxed);
        stats.sync_times = counters.sync_times.read();
        stats.free_bytes = counters.free_space();
        stats.wal_bytes = counters.wal_bytes.load(Ordering::Relaxed);
        stats.flushes = counters.flushes.load(Ordering::Relaxed);
        stats.overtaken = counters.overtaken.load(Ordering::Relaxed);
        stats.throttles = counters.throttles.load(Ordering::Relaxed);
        stats.throttled = health.throttled.load(Ordering::Relaxed);
        stats.poisoned = health.poisoned.load(Ordering::Relaxed);
        stats.out_of_space =
            health.out_of_space.load(Ordering::Relaxed) || self.shared.background.lock().is_flush_held();
        stats.disk_error.clone_from(&health.disk_error.lock());
        stats.memtable_bytes = memory.tables().map(|memtable| memtable.bytes()).sum();
        stats.memtable_records = memory.tables().map(|memtable| memtable.len() as u64).sum();
        stats.log_bytes = memory.tables().map(|memtable| memtable.record_bytes()).sum();
        stats.log_number = memory.tables().map(|memtable| memtable.log_number()).max().unwrap_or_default();
        stats.memtables_sealed = memory.sealed.len();
        stats
    }

    /// Has the disk looked at, which every write does too: for its free space, for whether it can be used at all, and for
    /// whether what waits for space can be tried again. Does not wait.
    pub fn measure_space(&self) {
        if self.shared.counters.measuring.swap(true, Ordering::Relaxed) {
            return; // a disk that hangs is not asked twice
        }
        let shared = self.shared.clone();
        self.shared.env.pool.submit(Lane::Aside, move || {
            if let Ok(look) = shared.look_at_disk() {
                shared.retry_held(look.free);
            }
            shared.counters.measuring.store(false, Ordering::Relaxed);
        });
    }

    /// Refuses new writes, lets queued ones finish, flushes memory to tables, stops background work, lets go of
    /// the directory, then calls `done`. Does not block: works in simulation too.
    ///
    /// What could not be flushed is in the log; the error says why, and nothing acknowledged is lost by it.
    pub fn shutdown(&self, done: Box<dyn FnOnce(Result<(), Error>) + Send>) {
        self.shared.queue.close();
        let shared = self.shared.clone();
        self.shared.queue.push_seal(Box::new(move |flushed| {
            let closing = shared.clone();
            shared.stop_background(Box::new(move |_| {
                let was_closed = closing.health.closed.swap(true, Ordering::AcqRel);
                closing.versions.close();
                *closing.directory.lock() = None;
                done(if was_closed { Ok(()) } else { flushed });
            }));
        }));
        self.kick();
    }

    /// [`Engine::shutdown`] and wait. Blocks.
    pub fn close(&self) -> Result<(), Error> {
        wait_for(|done| self.shutdown(done))
    }

    fn check_open(&self) -> Result<(), Error> {
        if self.shared.health.closed.load(Ordering::Acquire) { Err(Error::Closed) } else { Ok(()) }
    }
}

impl Shared {
    /// The newest record of a key in memory. A memtable whose newest timestamp lies below what was found is skipped.
    fn get_in_memory(&self, key: &[u8], hash: u64) -> Option<Record> {
        let mut found: Option<Record> = None;
        for memtable in self.memory.load().tables() {
            if found.as_ref().is_some_and(|found| found.timestamp() > memtable.newest()) {
                continue;
            }
            if let Some(record) = memtable.get(key, hash)
                && found.as_ref().is_none_or(|found| record.supersedes(found))
            {
                found = Some(record);
            }
        }
        found
    }

    /// Puts what the logs held into a table, so that all that is served from now on is durable, and removes them.
    fn settle(&self, recovered: Recovered, opened: Opened) -> Result<Recovery, Error> {
        let Recovered { memtable, frames, mut damage, last, logs } = recovered;
        let newest = memtable.newest().max(opened.newest);
        damage.splice(0..0, opened.damage);
        let log_number_after = self.memory.load().active.log_number();
        let settled = if memtable.is_empty() {
            if logs.is_empty() { Ok(()) } else { self.versions.set_log_number(log_number_after) }
        } else {
            self.versions.flush(&mut memtable.entries(), log_number_after, &at_full_speed)
        };
        match settled {
            Ok(()) => {
                for log in logs {
                    let path = self.dir.join(wal::file_name(log));
                    if let Err(error) = self.env.fs.remove(&path) {
                        tracing::warn!(path = %path.display(), %error, "an obsolete log stays until the next opening");
                    }
                }
            }
            // Reads must go on all the same, from memory; writes are refused until there is space.
            Err(error) if error.is_no_space() => {
                self.sync_logs(&logs)?;
                let active = self.memory.load().active.clone();
                let needed = memtable.record_bytes();
                tracing::warn!(%error, needed, dir = %self.dir.display(), "what the logs held waits in memory for space");
                let sealed = if memtable.is_empty() { Vec::new() } else { vec![Arc::new(memtable)] };
                self.memory.store(Arc::new(Memory { active, sealed }));
                self.log.lock().last = last;
                let mut background = self.background.lock();
                background.hold_flush(error, needed);
                background.logs = logs;
            }
            Err(error) => return Err(error),
        }
        Ok(Recovery {
            frames_replayed: frames,
            tables: opened.tables,
            newest,
            created: opened.created,
            damage,
        })
    }

    /// The best that can be done for what was read back while it cannot be written anew.
    fn sync_logs(&self, logs: &[u64]) -> Result<(), Error> {
        for log in logs {
            let path = self.dir.join(wal::file_name(*log));
            let synced = self.env.fs.open_write(&path).and_then(|file| file.sync());
            synced.map_err(|e| Error::io("sync log", &path, e))?;
        }
        Ok(())
    }
}

/// Makes the directory and those above it, durably.
fn make_directory(env: &Env, dir: &Path) -> Result<(), Error> {
    let exists = |path: &Path| env.fs.exists(path).map_err(|e| Error::io("look for", path, e));
    let mut made = Vec::new();
    for path in dir.ancestors().take_while(|path| !path.as_os_str().is_empty()) {
        if exists(path)? {
            break;
        }
        made.push(path);
    }
    env.fs.create_dir_all(dir).map_err(|e| Error::io("make directory", dir, e))?;
    if env.planted.has(Mistake::DirectoryNotSynced) {
        return Ok(());
    }
    for path in made {
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        env.fs.sync_dir(parent).map_err(|e| Error::io("sync directory", parent, e))?;
    }
    Ok(())
}

/// Starts something and waits until it calls its `done`.
fn wait_for<T: Send + 'static>(start: impl FnOnce(Box<dyn FnOnce(T) + Send>)) -> T {
    let waiting = Arc::new((Mutex::new(None), Condvar::new()));
    let told = waiting.clone();
    start(Box::new(move |outcome| {
        *told.0.lock() = Some(outcome);
        told.1.notify_one();
    }));
    let mut outcome = waiting.0.lock();
    loop {
        if let Some(outcome) = outcome.take() {
            return outcome;
        }
        waiting.1.wait(&mut outcome);
    }
}

/// What [`Engine::scan`] returns. Keeps the memtables and tables alive that it reads.
pub struct EngineScan {
    state: ScanState,
}

enum ScanState {
    Unsought(VisibleIterator<MergingIterator<'static>>),
    Walking(VisibleIterator<MergingIterator<'static>>),
    Failed(Error),
    Ended,
}

impl fmt::Debug for EngineScan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EngineScan").finish_non_exhaustive()
    }
}

impl EngineScan {
    /// The newest record of each key of `range` in all of `inputs`.
    pub(super) fn over(inputs: Vec<Box<dyn InternalIterator>>, range: &KeyRange) -> Self {
        let visible = VisibleIterator::new(MergingIterator::new(inputs), range.clone());
        Self { state: ScanState::Unsought(visible) }
    }

    /// Moves to the next entry and copies it out.
    fn step(
        entries: &mut VisibleIterator<MergingIterator<'static>>,
        is_first: bool,
    ) -> Result<Option<(Key, Record)>, Error> {
        if is_first {
            entries.seek_to_first()?;
        } else {
            entries.next()?;
        }
        Ok(entries.current().map(|entry| {
            let key = Key::internal(Bytes::copy_from_slice(entry.key)).expect("only keys are written");
            (key, entry.to_record())
        }))
    }
}

impl Iterator for EngineScan {
    type Item = Result<(Key, Record), Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let (mut entries, is_first) = match std::mem::replace(&mut self.state, ScanState::Ended) {
            ScanState::Unsought(entries) => (entries, true),
            ScanState::Walking(entries) => (entries, false),
            ScanState::Failed(error) => return Some(Err(error)),
            ScanState::Ended => return None,
        };
        match Self::step(&mut entries, is_first) {
            Ok(Some(item)) => {
                self.state = ScanState::Walking(entries);
                Some(Ok(item))
            }
            Ok(None) => None,
            Err(error) => Some(Err(error)),
        }
    }
}
