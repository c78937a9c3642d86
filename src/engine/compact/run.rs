//! `Compactor`: writes sorted entries to tables; flushes and compactions alike.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::picker::Limits;
use crate::engine::iter::{EntryRef, InternalIterator, MergingIterator, VisibleIterator};
use crate::engine::options::is_beyond;
use crate::engine::sst::{
    BloomBits, BuildSettings, Compression, SstBuilder, SstMeta, SstReader, TableIterator, table_path,
};
use crate::engine::version::level::LevelIterator;
use crate::engine::version::{LEVELS, Level};
use crate::engine::{Error, Options};
use crate::env::Env;
use crate::types::{KeyRange, Timestamp};

/// Entries between two looks at whether to rest, or to stop: some tens of microseconds.
const STEP: u64 = 64;
/// The same in bytes of values, where those are large.
const STEP_BYTES: usize = 256 << 10;
/// A table is ended early when it overlaps this many tables' worth of the level below its own, which bounds
/// what its own compaction will have to rewrite.
const GRANDPARENT_TABLES_MAX: u64 = 10;

/// How tables of a level are built. `base` is where compactions of L0 go, `last_bytes` what the last level holds.
pub fn build_settings(
    options: &Options,
    limits: &Limits,
    level: Level,
    base: Level,
    last_bytes: u64,
) -> BuildSettings {
    let in_all = match level {
        Level::L0 => options.bloom_size_l0,
        level if level == base => options.bloom_size_l1,
        _ => None,
    };
    // A store of few memtables is rewritten too often to be worth a costly codec.
    let is_settled = level == Level::LAST && last_bytes > limits.base_bytes;
    BuildSettings {
        sparse_index_interval: options.sparse_index_interval.max(1),
        compression: if is_settled { Compression::Zstd } else { Compression::Lz4 },
        bloom: in_all.map_or(BloomBits::PerKey(options.bloom_bits_per_key), BloomBits::InAll),
    }
}

/// Merges the inputs of a compaction, without filling the cache.
pub fn merge_inputs(inputs: &[(Level, Arc<SstReader>)]) -> MergingIterator<'static> {
    let mut iterators: Vec<Box<dyn InternalIterator>> = Vec::new();
    let mut deeper: [Vec<Arc<SstReader>>; LEVELS] = Default::default();
    for (level, table) in inputs {
        match *level {
            Level::L0 => iterators.push(Box::new(TableIterator::new(table.clone()))),
            level => deeper[level.number()].push(table.clone()),
        }
    }
    for tables in deeper.into_iter().filter(|tables| !tables.is_empty()) {
        iterators.push(Box::new(LevelIterator::new(tables)));
    }
    MergingIterator::new(iterators)
}

/// Writes tables.
pub struct Compactor<'a> {
    /// The world.
    pub env: &'a Env,
    /// Where tables are made.
    pub dir: &'a Path,
    /// How they are built.
    pub settings: BuildSettings,
    /// How large they become.
    pub limits: &'a Limits,
    /// Which of the records.
    pub range: &'a KeyRange,
    /// All goes to one table, however large: in L0 each table costs every reader.
    pub is_l0: bool,
    /// Tables of the level below the output's, sorted by key.
    pub grandparents: &'a [Arc<SstReader>],
    /// Values that expired before this are written as tombstones that say when.
    pub horizon: Timestamp,
    /// Counts them.
    pub expired: &'a AtomicU64,
    /// Set by whoever wants it to end early.
    pub stop: &'a AtomicBool,
    /// How much of its thread's time it may use, up to 1.
    pub share: &'a dyn Fn() -> f64,
}

impl Compactor<'_> {
    /// Writes the newest record of each key that `keep` wants; a value that has expired is a tombstone to `keep` too. Of
    /// each key one record goes to one table, so the tables do not overlap.
    ///
    /// # Errors
    /// What was written is removed again.
    pub fn write(
        &self,
        entries: &mut dyn InternalIterator,
        mut keep: impl FnMut(&EntryRef<'_>) -> bool,
        mut new_file_number: impl FnMut() -> u64,
    ) -> Result<Vec<SstMeta>, Error> {
        let mut done = Outputs { compactor: self, metas: Vec::new() };
        let mut newest = VisibleIterator::new(entries, self.range.clone());
        newest.seek_to_first()?;
        let mut open: Option<SstBuilder> = None;
        let mut seam = Seam::new(self.grandparents);
        let (mut seen, mut seen_bytes) = (0u64, 0usize); // since the last look
        let mut pacer = self.env.pool.pacer();
        while let Some(entry) = newest.current() {
            let entry = self.aged(entry);
            seen += 1;
            seen_bytes += entry.stored_len();
            if seen >= STEP || seen_bytes >= STEP_BYTES {
                (seen, seen_bytes) = (0, 0);
                if self.stop.load(Ordering::Relaxed) {
                    return Err(Error::Closed);
                }
                pacer.step(self.share);
            }
            if keep(&entry) {
                seam.pass(entry.key);
                let full = open.as_ref().is_some_and(|builder| self.is_full(builder, &seam));
                if let Some(builder) = open.take_if(|_| full) {
                    done.metas.push(builder.finish()?);
                    seam.crossed = 0;
                }
                let mut builder = match open.take() {
                    Some(builder) => builder,
                    None => SstBuilder::create(self.env, self.dir, new_file_number(), self.settings)?,
                };
                builder.add(&entry)?;
                open = Some(builder);
            }
            newest.next()?;
        }
        if let Some(builder) = open {
            done.metas.push(builder.finish()?);
        }
        Ok(std::mem::take(&mut done.metas))
    }

    fn aged<'e>(&self, entry: EntryRef<'e>) -> EntryRef<'e> {
        let has_expired = entry.value.is_some()
            && entry.expires_at.is_some_and(|expires_at| is_beyond(self.horizon, expires_at));
        if !has_expired {
            return entry;
        }
        self.expired.fetch_add(1, Ordering::Relaxed);
        entry.expired()
    }

    fn is_full(&self, builder: &SstBuilder, seam: &Seam<'_>) -> bool {
        let grandparents_max = self.limits.table_bytes.saturating_mul(GRANDPARENT_TABLES_MAX);
        !self.is_l0 && (builder.size() >= self.limits.table_bytes || seam.crossed > grandparents_max)
    }
}

/// How many bytes of grandparents lie beside the table being written.
struct Seam<'a> {
    grandparents: &'a [Arc<SstReader>],
    at: usize,
    crossed: u64,
}

impl<'a> Seam<'a> {
    fn new(grandparents: &'a [Arc<SstReader>]) -> Self {
        Self { grandparents, at: 0, crossed: 0 }
    }

    fn pass(&mut self, user_key: &[u8]) {
        while let Some(table) =
            self.grandparents.get(self.at).filter(|table| &table.meta().largest[..] < user_key)
        {
            self.crossed += table.meta().size;
            self.at += 1;
        }
    }
}

/// Finished tables, removed unless they are taken out.
struct Outputs<'a> {
    compactor: &'a Compactor<'a>,
    metas: Vec<SstMeta>,
}

impl Drop for Outputs<'_> {
    fn drop(&mut self) {
        for meta in &self.metas {
            // If that fails the table is an orphan, and gone after the next opening.
            let _ = self.compactor.env.fs.remove(&table_path(self.compactor.dir, meta.number));
        }
    }
}
