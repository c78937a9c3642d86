//! `VersionSet`: the current [`Version`], and the manifest that makes it durable.
//!
//! ```text
//! flush      memtable ──build──> table ──┐
//! compaction tables ──rewrite──> tables ─┴─> install: edit to the manifest, synced ──> new current version
//!                                                      one lock                          readers swap over
//! ```
//!
//! Tables are built outside every lock. Installing takes the manifest's lock, which no reader wants: the current
//! version is swapped, and whoever holds the old one goes on with it. A manifest that failed to be written or
//! synced is not written any more: what is durable is unknown until the directory is opened anew. Not so where a full
//! disk refused a write before anything was synced: the edit is not there, and installing it can be tried again.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arc_swap::ArcSwap;
use bytes::Bytes;
use parking_lot::Mutex;

use super::manifest::{self, ManifestWriter, manifest_number, sync_dir};
use super::{LEVELS, Level, Version, VersionEdit};
use crate::engine::compact::picker::{self, CompactionPicker, Garbage, Limits, Plan, Targets};
use crate::engine::compact::run::{Compactor, build_settings, merge_inputs};
use crate::engine::compact::steps::{self, Step};
use crate::engine::iter::{EntryRef, InternalIterator};
use crate::engine::sst::{SstMeta, SstReader, TableCache, table_path};
use crate::engine::{Checkpoint, EngineStats, Error, Options, TombstonePolicy};
use crate::env::{Env, Mistake};
use crate::types::{KeyRange, Timestamp};

/// A manifest is replaced by a new one when it has grown to this many bytes.
const MANIFEST_BYTES_MAX: u64 = 4 << 20;

/// What [`VersionSet::open`] found.
#[derive(Debug, Clone, Default)]
pub struct Opened {
    /// Logs below this number are in tables already.
    pub log_number: u64,
    /// The newest timestamp in any table.
    pub newest: Timestamp,
    /// Tables found.
    pub tables: usize,
    /// Whether there was nothing before.
    pub created: bool,
    /// What was lost to damage: one line each. Empty unless `Options::drop_damaged` let it be dropped.
    pub damage: Vec<String>,
}

/// A compaction that was picked. While it exists no other is.
#[derive(Debug)]
pub struct Compaction {
    plan: Plan<Arc<SstReader>>,
    _slot: Slot,
}

/// The one compaction that may be under way; dropping it makes room.
#[derive(Debug)]
struct Slot(Arc<AtomicBool>);

impl Slot {
    fn take(busy: &Arc<AtomicBool>) -> Option<Self> {
        (!busy.swap(true, Ordering::AcqRel)).then(|| Self(busy.clone()))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// All methods may be called from any thread.
#[derive(Debug)]
pub struct VersionSet {
    env: Env,
    dir: PathBuf,
    options: Options,
    limits: Limits,
    cache: Arc<TableCache>,
    current: ArcSwap<Version>,
    next_file_number: AtomicU64,
    installing: Mutex<Installing>,
    compacting: Arc<AtomicBool>,
    stop: AtomicBool,
    /// Figures: relaxed, they order nothing.
    flushes: AtomicU64,
    compactions: AtomicU64,
    bytes_read: AtomicU64,
    bytes_written: AtomicU64,
    expired: AtomicU64,
}

/// What the manifest's lock protects; `current` changes only under it too.
#[derive(Debug)]
struct Installing {
    /// Where edits go; none yet if there was no space for one at the opening: the next install makes one.
    manifest: Option<ManifestWriter>,
    log_number: u64,
    pointers: [Bytes; LEVELS],
    /// The manifest failed: nothing is written to it any more.
    is_poisoned: bool,
}

/// What a manifest adds up to.
#[derive(Debug, Default)]
pub(in crate::engine) struct Replayed {
    pub log_number: u64,
    pub next_file_number: u64,
    pointers: [Bytes; LEVELS],
    pub tables: BTreeMap<(Level, u64), SstMeta>,
}

impl Replayed {
    pub fn of(edits: Vec<VersionEdit>) -> Self {
        let mut replayed = Self::default();
        for edit in edits {
            replayed.log_number = edit.log_number.unwrap_or(replayed.log_number);
            replayed.next_file_number = edit.next_file_number.unwrap_or(replayed.next_file_number);
            for (level, key) in edit.compact_pointers {
                replayed.pointers[level.number()] = key;
            }
            for removed in edit.removed {
                replayed.tables.remove(&removed);
            }
            for (level, meta) in edit.added {
                replayed.tables.insert((level, meta.number), meta);
            }
        }
        replayed
    }
}

impl VersionSet {
    /// Opens the manifest in `dir`, which must exist, or makes the first. Removes tables that no version knows.
    ///
    /// # Errors
    /// `Corruption` if manifest or tables are damaged, unless `Options::drop_damaged`: then every table is read
    /// whole, what is damaged is set aside as `NNNNNN.sst.damaged`, and [`Opened::damage`] says so.
    pub fn open(env: &Env, dir: &Path, options: &Options) -> Result<(Self, Opened), Error> {
        let names = env.fs.list(dir).map_err(|error| Error::io("list", dir, error))?;
        let mut opened = Opened::default();
        let replayed = read_manifest(env, dir, &names, options, &mut opened)?;
        let limits = Limits::of(options);
        let cache = Arc::new(TableCache::new(options.block_cache_size, options.open_files_max, &env.rng));
        let version = open_tables(env, dir, options, &cache, &replayed, &mut opened)?;
        opened.log_number = replayed.log_number;
        opened.tables = version.tables().count();
        opened.newest = version.tables().map(|(_, table)| table.meta().newest).max().unwrap_or_default();

        // Numbers that were given and never recorded are in names: none of them is given again.
        let in_names = names.iter().filter_map(|name| number_in(name)).max();
        let number = replayed.next_file_number.max(in_names.map_or(1, |number| number.saturating_add(1)));
        let snapshot = snapshot(&version, &replayed.pointers, replayed.log_number, number + 1);
        let manifest = match new_manifest(env, dir, number, &snapshot) {
            Ok(manifest) => Some(manifest),
            // What is there can be read all the same.
            Err(error) if error.is_clean_no_space() && !opened.created => {
                tracing::warn!(%error, "no space for a new manifest: nothing can be flushed yet");
                None
            }
            Err(error) => return Err(error),
        };
        let log = Installing {
            manifest,
            log_number: replayed.log_number,
            pointers: replayed.pointers,
            is_poisoned: false,
        };
        if log.manifest.is_some() {
            remove_leftovers(env, dir, &names, number, &version);
        }
        let set = Self {
            env: env.clone(),
            dir: dir.to_owned(),
            options: options.clone(),
            limits,
            cache,
            current: ArcSwap::from_pointee(version),
            next_file_number: (number + 1).into(),
            installing: Mutex::new(log),
            compacting: Arc::default(),
            stop: AtomicBool::new(false),
            flushes: AtomicU64::new(0),
            compactions: AtomicU64::new(0),
            bytes_read: AtomicU64::new(0),
            bytes_written: AtomicU64::new(0),
            expired: AtomicU64::new(0),
        };
        Ok((set, opened))
    }

    /// The tables as they are now.
    pub fn current(&self) -> Arc<Version> {
        self.current.load_full()
    }

    /// A file number never given before: for logs and tables alike. Above every number in the directory's names.
    pub fn new_file_number(&self) -> u64 {
        self.next_file_number.fetch_add(1, Ordering::Relaxed)
    }

    /// Records durably that logs below `log_number` are not needed any more (when there was nothing to flush).
    pub fn set_log_number(&self, log_number: u64) -> Result<(), Error> {
        self.install(VersionEdit { log_number: Some(log_number), ..VersionEdit::default() }, &[]).map(|_| ())
    }

    /// Writes a sealed memtable to a table of level 0 and installs it, together with the number of the oldest log
    /// still needed. Memtables must be flushed oldest first, one at a time. `share` says how much of the thread's time
    /// that may take, up to 1.
    ///
    /// # Errors
    /// `Io` while building leaves nothing behind and may be tried again. Once the manifest failed, the first
    /// caller gets its error and all later ones `Poisoned`.
    pub fn flush(
        &self,
        memtable: &mut dyn InternalIterator,
        log_number_after: u64,
        share: &dyn Fn() -> f64,
    ) -> Result<(), Error> {
        let compactor = Compactor {
            env: &self.env,
            dir: &self.dir,
            settings: build_settings(&self.options, &self.limits, Level::L0, Level::LAST, 0),
            limits: &self.limits,
            range: &KeyRange::all(),
            is_l0: true,
            grandparents: &[],
            horizon: self.options.horizon.now(),
            expired: &self.expired,
            stop: &AtomicBool::new(false), // a flush is never given up: closing waits for it
            share,
        };
        let metas = compactor.write(memtable, |_| true, || self.new_file_number())?;
        let added = self.open_outputs(Level::L0, &metas)?;
        self.install(VersionEdit { log_number: Some(log_number_after), ..VersionEdit::default() }, &added)?;
        self.flushes.fetch_add(1, Ordering::Relaxed);
        self.remove_obsolete();
        Ok(())
    }

    /// Picks the compaction most wanted, if one is wanted, none is under way and [`VersionSet::stop`] was not called.
    /// `oldest_in_memory` as for [`VersionSet::run`], at this moment; `is_idle` tells that nobody writes.
    pub fn pick(&self, oldest_in_memory: Option<Timestamp>, is_idle: bool) -> Option<Compaction> {
        let pointers = self.installing.lock().pointers.clone();
        let garbage = Garbage {
            horizon: self.options.horizon.now(),
            drops_tombstones: self.options.tombstones == TombstonePolicy::DropWhenUncovered,
            oldest_in_memory,
            is_idle,
        };
        let picker = CompactionPicker { limits: &self.limits, pointers: &pointers, garbage };
        self.pick_with(|version| picker.pick(version.levels()))
    }

    /// Picks a compaction that moves tombstones towards what they hide: where space is short, that makes some.
    pub fn pick_for_space(&self) -> Option<Compaction> {
        let picker = CompactionPicker {
            limits: &self.limits,
            pointers: &Default::default(),
            garbage: Garbage::default(),
        };
        self.pick_with(|version| picker.pick_for_space(version.levels()))
    }

    /// Picks a compaction of everything into one level; `None` when there is nothing to do or one is under way.
    pub fn pick_all(&self) -> Option<Compaction> {
        let drops = self.options.tombstones == TombstonePolicy::DropWhenUncovered;
        self.pick_with(|version| picker::pick_all(version.levels(), drops))
    }

    fn pick_with(&self, pick: impl FnOnce(&Version) -> Option<Plan<Arc<SstReader>>>) -> Option<Compaction> {
        if self.stop.load(Ordering::Relaxed) {
            return None;
        }
        let slot = Slot::take(&self.compacting)?;
        pick(&self.current()).map(|plan| Compaction { plan, _slot: slot })
    }

    /// Whether files of replaced tables wait to be removed.
    pub fn has_obsolete(&self) -> bool {
        !self.cache.obsolete().is_empty()
    }

    /// Closes and removes the files of replaced tables that nobody reads any more. Flushes and compactions end with this;
    /// a reader that held one of them for longer leaves it to the next call. Blocks on the disk: for background threads.
    pub fn remove_obsolete(&self) {
        self.cache.obsolete().remove_all(&*self.env.fs);
    }

    /// To be called when the directory is about to be given up: from then on no file in it is removed.
    pub fn close(&self) {
        self.cache.obsolete().close(&*self.env.fs);
    }

    /// Carries a compaction out. `oldest_in_memory` gives the oldest timestamp in memtables, logs not yet in
    /// tables and the queue of writers (`None`: they are empty); asked before each tombstone that might go. `share` as for
    /// [`VersionSet::flush`].
    ///
    /// # Errors
    /// `Corruption`: the inputs stay, and are not picked again. `Closed` after [`VersionSet::stop`]. `NoSpace` if it would
    /// not fit: nothing was begun. Otherwise as for [`VersionSet::flush`].
    pub fn run(
        &self,
        compaction: Compaction,
        oldest_in_memory: &dyn Fn() -> Option<Timestamp>,
        share: &dyn Fn() -> f64,
    ) -> Result<(), Error> {
        let result = self.carry_out(compaction, oldest_in_memory, share);
        self.remove_obsolete(); // now that this compaction does not hold its inputs any more
        result
    }

    fn carry_out(
        &self,
        compaction: Compaction,
        oldest_in_memory: &dyn Fn() -> Option<Timestamp>,
        share: &dyn Fn() -> f64,
    ) -> Result<(), Error> {
        let Compaction { plan, _slot } = compaction;
        let source = plan.inputs.iter().map(|(level, _)| *level).min().unwrap_or(Level::L0);
        let from_source = plan.inputs.iter().filter(|(level, _)| *level == source);
        let pointer = from_source.map(|(_, table)| table.meta().largest.clone()).max().unwrap_or_default();
        let free = if plan.is_move { u64::MAX } else { self.free_space()? };
        let steps = steps::steps(&plan, free, self.limits.step_bytes())
            .map_err(|needed| Error::NoSpace { free, needed })?;
        let Plan { mut inputs, output, is_move } = plan;
        let read: u64 = inputs.iter().map(|(_, table)| table.meta().size).sum();
        let mut written = 0;
        for Step { range, done } in steps {
            let added: Vec<_> = if is_move {
                inputs.iter().map(|(_, table)| (output, table.clone())).collect()
            } else {
                let metas = self.rewrite(&inputs, output, &range, oldest_in_memory, share)?;
                self.open_outputs(output, &metas)?
            };
            written += added.iter().map(|(_, table)| table.meta().size).sum::<u64>();
            // Held any longer, they would keep their space.
            inputs.retain(|(level, table)| !done.contains(&(*level, table.meta().number)));
            let edit = VersionEdit {
                removed: done,
                compact_pointers: vec![(source, pointer.clone())],
                ..VersionEdit::default()
            };
            if !self.install(edit, &added)? {
                return Ok(());
            }
            self.remove_obsolete();
        }
        if !is_move {
            self.bytes_read.fetch_add(read, Ordering::Relaxed);
            self.bytes_written.fetch_add(written, Ordering::Relaxed);
        }
        self.compactions.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn free_space(&self) -> Result<u64, Error> {
        let free = self.env.fs.free_space(&self.dir);
        free.map_err(|error| Error::io("ask for free space", &self.dir, error))
    }

    /// Merges the records of a range of the inputs into new tables, which are not installed yet.
    fn rewrite(
        &self,
        inputs: &[(Level, Arc<SstReader>)],
        output: Level,
        range: &KeyRange,
        oldest_in_memory: &dyn Fn() -> Option<Timestamp>,
        share: &dyn Fn() -> f64,
    ) -> Result<Vec<SstMeta>, Error> {
        let version = self.current();
        let base = Targets::of(version.levels(), &self.limits).base;
        let last_bytes = version.level(Level::LAST).iter().map(|table| table.meta().size).sum();
        let compactor = Compactor {
            env: &self.env,
            dir: &self.dir,
            settings: build_settings(&self.options, &self.limits, output, base, last_bytes),
            limits: &self.limits,
            range,
            is_l0: output == Level::L0,
            grandparents: output.below().map_or(&[], |level| version.level(level)),
            horizon: self.options.horizon.now(),
            expired: &self.expired,
            stop: &self.stop,
            share,
        };
        let forgets_expired = self.env.planted.has(Mistake::ExpiredForgotten);
        let numbers: BTreeSet<u64> = inputs.iter().map(|(_, table)| table.meta().number).collect();
        let keep = |entry: &EntryRef<'_>| {
            if forgets_expired && entry.value.is_none() && entry.expires_at.is_some() {
                return false;
            }
            entry.value.is_some()
                || self.options.tombstones == TombstonePolicy::Keep
                // Memory first: what leaves it in between is in the version that is looked at next.
                || oldest_in_memory().is_some_and(|oldest| oldest <= entry.timestamp)
                || self.current.load().may_hold_hidden(entry.key, entry.timestamp, &numbers)
        };
        compactor.write(&mut merge_inputs(inputs), keep, || self.new_file_number())
    }

    /// Makes a running compaction end early, and none be picked any more.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Opens tables that were just written; on failure all of them are removed.
    fn open_outputs(&self, level: Level, metas: &[SstMeta]) -> Result<Vec<(Level, Arc<SstReader>)>, Error> {
        let opened: Result<Vec<_>, Error> = metas
            .iter()
            .map(|meta| {
                let table = SstReader::open(&self.env.fs, &self.dir, meta.number, &self.cache)?;
                Ok((level, Arc::new(table)))
            })
            .collect();
        if opened.is_err() {
            for meta in metas {
                let _ = self.env.fs.remove(&table_path(&self.dir, meta.number)); // else an orphan
            }
        }
        opened
    }

    /// Makes an edit durable and current. `Ok(false)`: tables it removes are not current any more, nothing was
    /// done and `added` is dropped.
    fn install(&self, mut edit: VersionEdit, added: &[(Level, Arc<SstReader>)]) -> Result<bool, Error> {
        let current; // dropped after the lock: files that go with it are not removed under it
        let mut log = self.installing.lock();
        if log.is_poisoned {
            discard(&edit, added);
            return Err(Error::Poisoned);
        }
        current = self.current();
        let there: BTreeSet<_> =
            current.tables().map(|(level, table)| (level, table.meta().number)).collect();
        let is_current = edit.removed.iter().all(|removed| there.contains(removed));
        edit.added = added.iter().map(|(level, table)| (*level, table.meta().clone())).collect();
        let Some(next) = is_current.then(|| current.apply(&edit.removed, added)).flatten() else {
            discard(&edit, added);
            return Ok(false);
        };
        edit.next_file_number = Some(self.next_file_number.load(Ordering::Relaxed));
        if let Err(error) = self.append(&mut log, &edit) {
            // What passes was met before the edit was appended: a manifest could not be made.
            if error.is_clean() || error.is_passing() {
                discard(&edit, added);
            } else {
                log.is_poisoned = true; // the tables stay: the edit may be durable
            }
            return Err(error);
        }
        log.log_number = edit.log_number.unwrap_or(log.log_number);
        for (level, key) in &edit.compact_pointers {
            log.pointers[level.number()] = key.clone();
        }
        self.current.store(Arc::new(next));
        let stays: BTreeSet<u64> = edit.added.iter().map(|(_, meta)| meta.number).collect();
        let keeps_all = self.env.planted.has(Mistake::ObsoleteTablesKept);
        let is_obsolete = |number: &u64| !stays.contains(number) && !keeps_all;
        for (level, number) in edit.removed.iter().filter(|(_, number)| is_obsolete(number)) {
            for table in current.level(*level).iter().filter(|table| table.meta().number == *number) {
                table.mark_obsolete();
            }
        }
        if log.manifest.as_ref().is_some_and(|manifest| manifest.len() > MANIFEST_BYTES_MAX) {
            self.roll(&mut log)?;
        }
        Ok(true)
    }

    /// Makes an edit durable, in a manifest that is made if there is none.
    fn append(&self, log: &mut Installing, edit: &VersionEdit) -> Result<(), Error> {
        let manifest = match log.manifest.take() {
            Some(manifest) => manifest,
            None => self.new_manifest(log)?,
        };
        log.manifest.insert(manifest).append(edit)
    }

    /// Begins a new manifest and removes the old.
    fn roll(&self, log: &mut Installing) -> Result<(), Error> {
        match self.new_manifest(log) {
            Ok(manifest) => {
                if let Some(old) = log.manifest.replace(manifest) {
                    let path = manifest::manifest_path(&self.dir, old.number());
                    let _ = self.env.fs.remove(&path); // else a leftover
                }
                Ok(())
            }
            Err(error) if error.is_clean() => {
                tracing::warn!(%error, "a new manifest cannot be made: the old one grows on");
                Ok(())
            }
            // Which of the two a crash would find is unknown, but as yet they say the same: both stay, and the next edit
            // goes to a third.
            Err(error) if error.is_passing() => {
                tracing::warn!(%error, "a new manifest is not durably named: the next edit begins another");
                log.manifest = None;
                Ok(())
            }
            Err(error) => {
                log.is_poisoned = true; // which of the two a crash would find is unknown
                Err(error)
            }
        }
    }

    /// A manifest that begins with the tables as they are now, and is the current one.
    fn new_manifest(&self, log: &Installing) -> Result<ManifestWriter, Error> {
        let number = self.new_file_number();
        let next = self.next_file_number.load(Ordering::Relaxed);
        let snapshot = snapshot(&self.current(), &log.pointers, log.log_number, next);
        new_manifest(&self.env, &self.dir, number, &snapshot)
    }

    /// Hard-links all tables into `dir`, which must be empty or not exist, and writes a manifest there. Durable.
    pub fn checkpoint_into(&self, dir: &Path) -> Result<Checkpoint, Error> {
        let fs = &*self.env.fs;
        fs.create_dir_all(dir).map_err(|error| Error::io("create", dir, error))?;
        if !fs.list(dir).map_err(|error| Error::io("list", dir, error))?.is_empty() {
            return Err(Error::io("checkpoint into", dir, io::ErrorKind::AlreadyExists.into()));
        }
        let (version, snapshot, number) = {
            let log = self.installing.lock(); // version and log number belong together
            let number = self.new_file_number();
            let version = self.current();
            let snapshot = snapshot(&version, &log.pointers, log.log_number, number + 1);
            (version, snapshot, number)
        };
        // The version keeps its tables from being removed meanwhile.
        for (_, table) in version.tables() {
            let copy = table_path(dir, table.meta().number);
            fs.hard_link(table.path(), &copy).map_err(|error| Error::io("link", copy, error))?;
        }
        ManifestWriter::create(&self.env, dir, number, &snapshot)?;
        manifest::set_current(&self.env, dir, number)?;
        dir.parent().map_or(Ok(()), |parent| sync_dir(&self.env, parent))?;
        let metas = || version.tables().map(|(_, table)| table.meta());
        Ok(Checkpoint {
            tables: metas().count(),
            bytes: metas().map(|meta| meta.size).sum(),
            records: metas().map(|meta| meta.entries).sum(),
            tombstones: metas().map(|meta| meta.tombstones).sum(),
        })
    }

    /// Opens the tables that the manifest in `dir` names, and changes nothing there.
    ///
    /// # Errors
    /// As [`VersionSet::open`]; `Corruption` too if there is no manifest.
    pub fn look(env: &Env, dir: &Path, options: &Options) -> Result<(Version, Opened), Error> {
        let names = env.fs.list(dir).map_err(|error| Error::io("list", dir, error))?;
        let mut opened = Opened::default();
        let replayed = read_manifest(env, dir, &names, options, &mut opened)?;
        if opened.created {
            return Err(Error::corruption(dir.join("CURRENT"), 0, "it is missing: there is no engine here"));
        }
        let cache = Arc::new(TableCache::new(options.block_cache_size, options.open_files_max, &env.rng));
        let version = open_tables(env, dir, options, &cache, &replayed, &mut opened)?;
        opened.log_number = replayed.log_number;
        opened.tables = version.tables().count();
        opened.newest = version.tables().map(|(_, table)| table.meta().newest).max().unwrap_or_default();
        Ok((version, opened))
    }

    /// Fills in what tables, cache and compactions know.
    pub fn fill_stats(&self, stats: &mut EngineStats) {
        let version = self.current();
        for level in Level::all() {
            let tables = version.level(level);
            stats.level_files[level.number()] = tables.len();
            stats.level_bytes[level.number()] = tables.iter().map(|table| table.meta().size).sum();
        }
        stats.table_records = version.tables().map(|(_, table)| table.meta().entries).sum();
        stats.oldest_table = version.tables().map(|(_, table)| table.meta().number).min();
        stats.tombstones = version.tables().map(|(_, table)| table.meta().tombstones).sum();
        stats.flushes = self.flushes.load(Ordering::Relaxed);
        stats.expired = self.expired.load(Ordering::Relaxed);
        stats.compactions = self.compactions.load(Ordering::Relaxed);
        stats.compaction_bytes =
            (self.bytes_read.load(Ordering::Relaxed), self.bytes_written.load(Ordering::Relaxed));
        stats.cache_hits = self.cache.hits();
        stats.cache_misses = self.cache.misses();
        stats.cache_bytes = self.cache.bytes();
        stats.corruptions = self.cache.corruptions();
    }
}

/// Makes a manifest and names it the current one.
///
/// # Errors
/// After an [`Error::is_clean`] the one before is still current.
fn new_manifest(env: &Env, dir: &Path, number: u64, snapshot: &VersionEdit) -> Result<ManifestWriter, Error> {
    let made = ManifestWriter::create(env, dir, number, snapshot)
        // Nothing names it yet, so even a failed sync of it leaves nothing in doubt.
        .map_err(|error| error.during("make a new manifest"))
        .and_then(|manifest| manifest::set_current(env, dir, number).map(|()| manifest));
    if made.as_ref().is_err_and(Error::is_clean) {
        let _ = env.fs.remove(&manifest::manifest_path(dir, number)); // else a leftover
    }
    made
}

/// Has new tables that will not be installed removed; one that only was to move stays where it is.
fn discard(edit: &VersionEdit, added: &[(Level, Arc<SstReader>)]) {
    for (_, table) in added {
        if !edit.removed.iter().any(|(_, number)| *number == table.meta().number) {
            table.mark_obsolete();
        }
    }
}

/// An edit that makes a version from nothing.
fn snapshot(version: &Version, pointers: &[Bytes; LEVELS], log_number: u64, next: u64) -> VersionEdit {
    let pointers = Level::all().map(|level| (level, pointers[level.number()].clone()));
    VersionEdit {
        log_number: Some(log_number),
        next_file_number: Some(next),
        compact_pointers: pointers.filter(|(_, key)| !key.is_empty()).collect(),
        removed: Vec::new(),
        added: version.tables().map(|(level, table)| (level, table.meta().clone())).collect(),
    }
}

/// Reads the manifest, if there is one.
fn read_manifest(
    env: &Env,
    dir: &Path,
    names: &[String],
    options: &Options,
    opened: &mut Opened,
) -> Result<Replayed, Error> {
    let read = manifest::read_current(&*env.fs, dir).and_then(|number| match number {
        Some(number) => Ok(Some(Replayed::of(manifest::read(&*env.fs, dir, number)?))),
        // The first manifest is durable before the first table is made.
        None if names.iter().any(|name| table_number(name).is_some()) => {
            Err(Error::corruption(dir.join("CURRENT"), 0, "it is missing, and there are tables"))
        }
        None => Ok(None),
    });
    match read {
        Ok(Some(replayed)) => Ok(replayed),
        Ok(None) => {
            opened.created = true;
            Ok(Replayed::default())
        }
        Err(error @ Error::Corruption { .. }) if options.drop_damaged => {
            opened.damage.push(format!("{error}: every table found is taken instead"));
            Ok(salvage(env, dir, names))
        }
        Err(error) => Err(error),
    }
}

/// All tables that can be opened, as if just flushed. Right as to what is newest, since timestamps decide that;
/// what a lost edit had removed may be back.
fn salvage(env: &Env, dir: &Path, names: &[String]) -> Replayed {
    let cache = Arc::new(TableCache::new(0, 1, &env.rng));
    let numbers = names.iter().filter_map(|name| table_number(name));
    let tables = numbers.filter_map(|number| SstReader::open(&env.fs, dir, number, &cache).ok());
    Replayed {
        tables: tables.map(|table| ((Level::L0, table.meta().number), table.meta().clone())).collect(),
        ..Replayed::default()
    }
}

/// Opens the tables of a replayed.
fn open_tables(
    env: &Env,
    dir: &Path,
    options: &Options,
    cache: &Arc<TableCache>,
    replayed: &Replayed,
    opened: &mut Opened,
) -> Result<Version, Error> {
    let mut added = Vec::new();
    for ((level, number), meta) in &replayed.tables {
        match open_table(env, dir, options, cache, meta) {
            Ok(table) => added.push((*level, Arc::new(table))),
            Err(error @ Error::Corruption { .. }) if options.drop_damaged => {
                opened.damage.push(error.to_string());
                let path = table_path(dir, *number);
                let aside = path.with_extension("sst.damaged");
                if let Err(error) = env.fs.rename(&path, &aside)
                    && error.kind() != io::ErrorKind::NotFound
                {
                    return Err(Error::io("rename", path, error));
                }
            }
            Err(error) => return Err(error),
        }
    }
    Version::empty(Limits::of(options))
        .apply(&[], &added)
        .ok_or_else(|| Error::corruption(dir.join("CURRENT"), 0, "tables of one level overlap"))
}

fn open_table(
    env: &Env,
    dir: &Path,
    options: &Options,
    cache: &Arc<TableCache>,
    meta: &SstMeta,
) -> Result<SstReader, Error> {
    let table = SstReader::open(&env.fs, dir, meta.number, cache)?;
    if table.meta() != meta {
        return Err(Error::corruption(table.path(), 0, "the table is not the one that the manifest means"));
    }
    if options.drop_damaged {
        table.verify()?;
    }
    Ok(table)
}

/// Removes what a crash left behind: half-written files, tables no edit names, manifests that are not current.
fn remove_leftovers(env: &Env, dir: &Path, names: &[String], manifest: u64, version: &Version) {
    let known: BTreeSet<u64> = version.tables().map(|(_, table)| table.meta().number).collect();
    for name in names {
        let is_leftover = name.ends_with(".sst.tmp")
            || name.ends_with(".tmp.log")
            || name == "CURRENT.tmp"
            || table_number(name).is_some_and(|number| !known.contains(&number))
            || manifest_number(name).is_some_and(|number| number != manifest);
        if is_leftover {
            let _ = env.fs.remove(&dir.join(name)); // harmless if it stays: the next opening tries again
        }
    }
}

/// The number of a table's file name, if it is one.
pub(in crate::engine) fn table_number(name: &str) -> Option<u64> {
    name.strip_suffix(".sst")?.parse().ok()
}

/// The number in any file name of ours: `000012.sst`, `000012.log`, `MANIFEST-000012`.
fn number_in(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("MANIFEST-").unwrap_or(name);
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    digits[..end].parse().ok()
}

#[cfg(test)]
mod tests;
