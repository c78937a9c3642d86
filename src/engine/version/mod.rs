//! Versions: which tables make up the engine, now and for each reader that is still looking.
//!
//! ```text
//! L0   tables as they were flushed; they may overlap      at most a few: reads look at each
//! …    empty               ─┐
//! L4   a tenth of L5        ├ tables of one level never overlap: reads look at one a level
//! L5   a tenth of L6        │
//! L6   nearly everything   ─┘
//! ```
//!
//! A [`Version`] never changes: a reader holds one and waits for nobody; a table that a compaction replaced is
//! removed when the last version that has it goes. Records are ordered by their timestamps alone, so *where* a
//! record lies says nothing about its age: a lookup may skip a table only because of the table's newest timestamp.

pub mod edit;
pub mod level;
pub mod manifest;
pub mod set;

use std::collections::BTreeSet;
use std::sync::Arc;

pub use edit::VersionEdit;
pub use set::{Compaction, Opened, VersionSet};

use self::level::LevelIterator;
use super::Error;
use super::compact::picker::{self, Limits};
use super::iter::InternalIterator;
use super::sst::reader::{Lookup, Patience};
use super::sst::{SkippedBlocks, SstReader, TableIterator};
use crate::types::{KeyRange, Record, Timestamp};

/// How many levels there are.
pub const LEVELS: usize = 7;

/// A level of the tree, 0 to 6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Level(u8);

impl Level {
    /// Where flushed memtables go.
    pub const L0: Self = Self(0);
    /// The deepest level.
    pub const LAST: Self = Self(LEVELS as u8 - 1);

    /// The level of this number, if there is one.
    pub fn new(number: usize) -> Option<Self> {
        (number < LEVELS).then_some(Self(number as u8))
    }

    /// All of them, L0 first.
    pub fn all() -> impl DoubleEndedIterator<Item = Self> {
        (0..LEVELS as u8).map(Self)
    }

    /// Its number.
    pub fn number(self) -> usize {
        usize::from(self.0)
    }

    /// The level below, unless this is the last.
    pub fn below(self) -> Option<Self> {
        Self::new(self.number() + 1)
    }

    /// The level above this one.
    pub fn above(self) -> Option<Self> {
        self.0.checked_sub(1).map(Self)
    }
}

/// An immutable set of tables.
///
/// Invariants: L0 is sorted by newest timestamp, the newest first; every other level by key, and its tables do
/// not overlap. A table holds one record of a key at most.
#[derive(Debug)]
pub struct Version {
    levels: [Vec<Arc<SstReader>>; LEVELS],
    limits: Limits,
}

impl Version {
    pub(crate) fn empty(limits: Limits) -> Self {
        Self { levels: Default::default(), limits }
    }

    /// The version after some tables went and some came; `None` if tables of one deeper level would overlap.
    pub(crate) fn apply(&self, removed: &[(Level, u64)], added: &[(Level, Arc<SstReader>)]) -> Option<Self> {
        let gone: BTreeSet<_> = removed.iter().copied().collect();
        let mut levels: [Vec<Arc<SstReader>>; LEVELS] = Default::default();
        for level in Level::all() {
            let stays = |table: &&Arc<SstReader>| !gone.contains(&(level, table.meta().number));
            levels[level.number()] = self.level(level).iter().filter(stays).cloned().collect();
        }
        for (level, table) in added {
            levels[level.number()].push(table.clone());
        }
        let [l0, deeper @ ..] = &mut levels;
        l0.sort_by_key(|table| std::cmp::Reverse((table.meta().newest, table.meta().number)));
        for tables in deeper {
            tables.sort_by(|a, b| a.meta().smallest.cmp(&b.meta().smallest));
            if tables.windows(2).any(|pair| pair[0].meta().largest >= pair[1].meta().smallest) {
                return None;
            }
        }
        Some(Self { levels, limits: self.limits })
    }

    /// Returns the newest record of a key in the tables, if it supersedes `newest_so_far`; `None` otherwise. `hash` is
    /// [`super::sst::bloom::hash`] of the key.
    ///
    /// # Errors
    /// `Corruption` if a table that may hold it is damaged there: another replica must be asked.
    pub fn get(
        &self,
        user_key: &[u8],
        hash: u64,
        newest_so_far: Option<&Record>,
    ) -> Result<Option<Record>, Error> {
        match self.find(user_key, hash, newest_so_far, Patience::Disk)? {
            Lookup::Found(record) => Ok(Some(record)),
            Lookup::Absent => Ok(None),
            Lookup::NotInMemory => unreachable!("a lookup that may read the disk does not give up"),
        }
    }

    /// Like [`Version::get`] from memory alone; `None` where it would have to read a disk.
    pub fn try_get(
        &self,
        user_key: &[u8],
        hash: u64,
        newest_so_far: Option<&Record>,
    ) -> Option<Result<Option<Record>, Error>> {
        match self.find(user_key, hash, newest_so_far, Patience::MemoryOnly) {
            Ok(Lookup::Found(record)) => Some(Ok(Some(record))),
            Ok(Lookup::Absent) => Some(Ok(None)),
            Ok(Lookup::NotInMemory) => None,
            Err(error) => Some(Err(error)),
        }
    }

    /// Looks into every table that may hold something newer than `newest_so_far`.
    fn find(
        &self,
        user_key: &[u8],
        hash: u64,
        newest_so_far: Option<&Record>,
        patience: Patience,
    ) -> Result<Lookup, Error> {
        let [l0, deeper @ ..] = &self.levels;
        let in_l0 = l0.iter().filter(|table| table.meta().covers(user_key));
        let below = deeper.iter().filter_map(|tables| table_of(tables, user_key));
        let mut best: Option<Record> = None;
        for table in in_l0.chain(below) {
            let newest = best.as_ref().or(newest_so_far);
            // Strictly lower: at equal timestamps the other record may still be the one to keep.
            if newest.is_some_and(|newest| table.meta().newest < newest.timestamp()) {
                continue;
            }
            match table.get(user_key, hash, patience)? {
                Lookup::Found(record) if newest.is_none_or(|newest| record.supersedes(newest)) => {
                    best = Some(record);
                }
                Lookup::Found(_) | Lookup::Absent => {}
                Lookup::NotInMemory => return Ok(Lookup::NotInMemory),
            }
        }
        Ok(best.map_or(Lookup::Absent, Lookup::Found))
    }

    /// Iterators which together hold every entry of `range`, and may hold more. They keep their tables open.
    pub fn iterators(&self, range: &KeyRange) -> Vec<Box<dyn InternalIterator>> {
        self.iterators_skipping(range, None)
    }

    /// [`Version::iterators`] which go round damaged blocks and note them in `skipped`, if there is one.
    pub(crate) fn iterators_skipping(
        &self,
        range: &KeyRange,
        skipped: Option<&SkippedBlocks>,
    ) -> Vec<Box<dyn InternalIterator>> {
        let [l0, deeper @ ..] = &self.levels;
        let in_range = |table: &&Arc<SstReader>| {
            range.start.as_ref().is_none_or(|start| table.meta().largest >= start)
                && range.end.as_ref().is_none_or(|end| table.meta().smallest < end)
        };
        let mut iterators: Vec<Box<dyn InternalIterator>> = Vec::new();
        for table in l0.iter().filter(in_range) {
            iterators.push(Box::new(TableIterator::new(table.clone()).skipping(skipped.cloned())));
        }
        for tables in deeper {
            let tables: Vec<_> = tables.iter().filter(in_range).cloned().collect();
            if !tables.is_empty() {
                iterators.push(Box::new(LevelIterator::new(tables).skipping(skipped.cloned())));
            }
        }
        iterators
    }

    /// Whether a table not among `except` may hold a record of the key that a tombstone of this timestamp hides.
    pub(crate) fn may_hold_hidden(
        &self,
        user_key: &[u8],
        tombstone: Timestamp,
        except: &BTreeSet<u64>,
    ) -> bool {
        let [l0, deeper @ ..] = &self.levels;
        let in_l0 = l0.iter().filter(|table| table.meta().covers(user_key));
        in_l0
            .chain(deeper.iter().filter_map(|tables| table_of(tables, user_key)))
            // Not only older ones: of the same timestamp, a tombstone hides a value.
            .any(|table| table.meta().oldest <= tombstone && !except.contains(&table.meta().number))
    }

    /// The tables of a level.
    pub fn level(&self, level: Level) -> &[Arc<SstReader>] {
        &self.levels[level.number()]
    }

    pub(crate) fn levels(&self) -> &[Vec<Arc<SstReader>>; LEVELS] {
        &self.levels
    }

    /// Every table, with its level.
    pub fn tables(&self) -> impl Iterator<Item = (Level, &Arc<SstReader>)> {
        Level::all().flat_map(|level| self.level(level).iter().map(move |table| (level, table)))
    }

    /// Tables in level 0.
    pub fn l0_files(&self) -> usize {
        self.levels[0].len()
    }

    /// Their bytes.
    pub fn l0_bytes(&self) -> u64 {
        self.levels[0].iter().map(|table| table.meta().size).sum()
    }

    /// How badly a compaction is wanted: from 1.0 on there is something to pick.
    pub fn score(&self) -> f64 {
        Level::all().map(|level| picker::score(&self.levels, level, &self.limits)).fold(0.0, f64::max)
    }
}

/// The one table of a deeper level that may hold a key.
fn table_of<'a>(tables: &'a [Arc<SstReader>], user_key: &[u8]) -> Option<&'a Arc<SstReader>> {
    let at = tables.partition_point(|table| &table.meta().largest[..] < user_key);
    tables.get(at).filter(|table| table.meta().covers(user_key))
}
