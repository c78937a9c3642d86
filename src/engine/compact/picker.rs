//! `CompactionPicker`: which tables to rewrite next. Pure.
//!
//! ```text
//! score   L0: tables / l0_files_max *)   deeper: bytes / target      the highest from 1.0 on is picked
//! target  L6: none      above it: a tenth of the level below, down to the *base* level      above the base: nothing
//!
//! L0      ├──a──┤  ├───c───┤             a and what overlaps it, and what overlaps that, go together to the
//!            ├──b──┤          ├─d─┤      base level (a, b, c), with what they overlap there
//! deeper  the first table behind the level's pointer, round and round, with what it overlaps below
//! ```
//!
//! *) half as many more while the base level is the last and has outgrown two of what a base level holds at least: a compaction of L0 then
//! rewrites the whole store.
//!
//! The sizes follow from the last level's, so that nearly everything lies there and at most a ninth of it above, whatever there is.
//! The base level is the uppermost whose target is at least four memtables: a small store has only L0 and L6. Levels above
//! the base hold something only after the store has shrunk, or was written by a version that filled levels from the top; they are
//! emptied. (Source: Dong et al., "Optimizing Space Amplification in RocksDB", CIDR 2017, section 3.2.1.)
//!
//! A table that nothing below overlaps is moved, not rewritten, unless a good part of it is garbage that can go.
//!
//! # Garbage
//!
//! Sizes alone do not find all that can go: a table of tombstones that overlaps nothing is small and in nobody's way, and values
//! expire without a write. So when no level is too large, a table is rewritten for its own sake, at its own level, once a
//! quarter of it is garbage and *certain* to go:
//!
//! ```text
//! expired values   become tombstones, always
//! tombstones       go if TombstonePolicy lets them, nothing in memory is as old as anything in the table, and no other
//!                  table that overlaps it is
//! ```
//!
//! So each rewrite makes progress, and a table whose tombstones must stay is not picked again and again. Where older
//! records stand in the way, tables must be merged first, which costs more than it frees while others write: that is
//! done only while the engine is idle. Each of these compactions moves records to a deeper level or removes garbage, so they come to an end.
//!
//! # Damage
//!
//! A table with a damaged block is left alone, since
//! trying again would find the same damage, and so are tables of a deeper level that could only be compacted together
//! with it. Of L0 the others go on without it, into L0 where they must: writers stop when L0 has too many tables,
//! and damage alone should not stop them. (Where a record lies says nothing about its age, so any tables may be
//! compacted without any others, as long as those of one deeper level do not come to overlap.)
//!
//! Source: leveldb's `doc/impl.md`.

use std::sync::Arc;

use bytes::Bytes;

use crate::engine::Options;
use crate::engine::sst::{SstMeta, SstReader};
use crate::engine::version::{LEVELS, Level};
use crate::types::Timestamp;

/// How much larger each level is than the one above.
const LEVEL_FACTOR: u64 = 10;
/// Memtables that the base level holds at least, unless it is the last.
const BASE_MEMTABLES: u64 = 4;
/// A table is rewritten for the sake of its garbage once one part in this many of it is garbage.
const GARBAGE_PART: u64 = 4;
/// An idle engine brings down what lies above the last level once that is more than one part in this many of it.
const UPPER_PART: u64 = 8;
/// A compaction installs what it has written every so many tables.
const STEP_TABLES: u64 = 2;
/// No table that a compaction writes is larger, but for one with a single huge value.
const TABLE_BYTES_MAX: u64 = 64 << 20;

/// The sizes that compaction keeps to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// L0 is compacted from this many tables on.
    pub l0_files_max: usize,
    /// The least that a level between L0 and the last is worth having for, in bytes.
    pub base_bytes: u64,
    /// Bytes of a table that a compaction writes.
    pub table_bytes: u64,
}

impl Limits {
    /// Sizes that go with a memtable's.
    pub fn of(options: &Options) -> Self {
        let memtable = (options.memtable_size as u64).max(1);
        Self {
            l0_files_max: options.l0_files_max.max(1),
            base_bytes: memtable.saturating_mul(BASE_MEMTABLES),
            table_bytes: memtable.min(TABLE_BYTES_MAX),
        }
    }

    /// Bytes of a level that a compaction rewrites before it installs what it has: the space it needs for itself.
    pub fn step_bytes(&self) -> u64 {
        self.table_bytes.saturating_mul(STEP_TABLES)
    }
}

/// What the picker needs to know of a table.
pub trait Pickable: Clone {
    /// Its keys and sizes.
    fn meta(&self) -> &SstMeta;
    /// Whether compactions should leave it alone.
    fn is_damaged(&self) -> bool;
}

impl Pickable for Arc<SstReader> {
    fn meta(&self) -> &SstMeta {
        SstReader::meta(self)
    }

    fn is_damaged(&self) -> bool {
        SstReader::is_damaged(self)
    }
}

/// Tables to be rewritten, and where to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan<T> {
    /// What goes in, by level.
    pub inputs: Vec<(Level, T)>,
    /// Where it goes.
    pub output: Level,
    /// The one input needs no rewriting: nothing in `output` overlaps it.
    pub is_move: bool,
}

/// How much each level should hold, as it follows from how much there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Targets {
    /// Where compactions of L0 go. Levels between L0 and it should be empty.
    pub base: Level,
    /// L0 is compacted from this many tables on.
    l0_files: usize,
    /// Bytes of each level from the base on; of the last one there is no bound.
    bytes: [u64; LEVELS],
}

impl Targets {
    /// The targets that go with these tables.
    pub fn of<T: Pickable>(levels: &[Vec<T>; LEVELS], limits: &Limits) -> Self {
        let largest = levels[1..].iter().map(|tables| bytes(tables)).max().unwrap_or(0);
        let (l0_files, mut target) = (limits.l0_files_max, largest);
        let mut targets = Self { base: Level::LAST, l0_files, bytes: [0; LEVELS] };
        targets.bytes[Level::LAST.number()] = u64::MAX;
        while let Some(above) = targets.base.above().filter(|above| *above > Level::L0) {
            target /= LEVEL_FACTOR;
            if target < limits.base_bytes {
                break;
            }
            targets.base = above;
            targets.bytes[above.number()] = target;
        }
        if targets.base == Level::LAST && largest > limits.base_bytes.saturating_mul(2) {
            targets.l0_files += limits.l0_files_max / 2; // each compaction of L0 rewrites all there is
        }
        targets
    }

    /// Where tables of a level are compacted to; nothing for the last.
    pub fn output(&self, level: Level) -> Option<Level> {
        level.below().map(|below| below.max(self.base))
    }
}

/// How badly a level wants a compaction: from 1.0 on.
pub fn score<T: Pickable>(levels: &[Vec<T>; LEVELS], level: Level, limits: &Limits) -> f64 {
    let tables = &levels[level.number()];
    let targets = Targets::of(levels, limits);
    if level == Level::L0 {
        return tables.len() as f64 / targets.l0_files as f64;
    }
    if level < targets.base {
        let held = bytes(tables);
        return if held == 0 { 0.0 } else { 1.0 + held as f64 / limits.base_bytes as f64 };
    }
    bytes(tables) as f64 / targets.bytes[level.number()] as f64
}

fn bytes<T: Pickable>(tables: &[T]) -> u64 {
    tables.iter().map(|table| table.meta().size).sum()
}

/// What may go of a table beside what newer records hide.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Garbage {
    /// Values that expired before this may become tombstones.
    pub horizon: Timestamp,
    /// Whether tombstones may go once nothing older of their keys is left.
    pub drops_tombstones: bool,
    /// The oldest record in memory or on its way there, if there is any.
    pub oldest_in_memory: Option<Timestamp>,
    /// Nobody writes, so that even costly compactions are in nobody's way.
    pub is_idle: bool,
}

impl Garbage {
    /// Whether enough of a table has expired for rewriting it.
    fn has_expired(&self, meta: &SstMeta) -> bool {
        let ended = meta.expiries.ended(self.horizon);
        ended.values > 0
            && (is_worth_rewriting(ended.values, meta.entries)
                || is_worth_rewriting(ended.bytes, meta.content_bytes))
    }

    /// Whether there are enough tombstones in a table for rewriting it, as far as this policy lets any go.
    fn has_tombstones(&self, meta: &SstMeta) -> bool {
        self.drops_tombstones && meta.tombstones > 0 && is_worth_rewriting(meta.tombstones, meta.entries)
    }

    /// Whether memory may hold what a tombstone of this table hides.
    fn is_held_by_memory(&self, meta: &SstMeta) -> bool {
        self.oldest_in_memory.is_some_and(|oldest| oldest <= meta.newest)
    }
}

fn is_worth_rewriting(garbage: u64, all: u64) -> bool {
    garbage.saturating_mul(GARBAGE_PART) >= all
}

/// Chooses compactions.
#[derive(Debug, Clone, Copy)]
pub struct CompactionPicker<'a> {
    /// The sizes to keep to.
    pub limits: &'a Limits,
    /// Per level, the last key that was compacted.
    pub pointers: &'a [Bytes; LEVELS],
    /// What may go.
    pub garbage: Garbage,
}

impl CompactionPicker<'_> {
    /// The compaction most wanted, if any is.
    pub fn pick<T: Pickable>(&self, levels: &[Vec<T>; LEVELS]) -> Option<Plan<T>> {
        let mut wanted: Vec<(f64, Level)> = Level::all()
            .map(|level| (score(levels, level, self.limits), level))
            .filter(|(score, _)| *score >= 1.0)
            .collect();
        wanted.sort_by(|(a, _), (b, _)| b.total_cmp(a)); // stable: of equals the upper level
        let by_size = wanted.iter().find_map(|(_, level)| match *level {
            Level::L0 => self.pick_l0(levels),
            level => self.pick_deeper(levels, level),
        });
        by_size.or_else(|| self.pick_garbage(levels)).or_else(|| self.pick_upper(levels))
    }

    /// While nobody writes: what lies above the last level, if that is much beside what lies there. It may all be newer
    /// records of keys that the last level has, too.
    fn pick_upper<T: Pickable>(&self, levels: &[Vec<T>; LEVELS]) -> Option<Plan<T>> {
        let [upper @ .., last] = levels;
        let held: u64 = upper.iter().map(|tables| bytes(tables)).sum();
        if !self.garbage.is_idle || held.saturating_mul(UPPER_PART) < bytes(last) {
            return None;
        }
        Level::all().find_map(|level| match level {
            Level::L0 => {
                let tables = whole_tables_of_l0(levels);
                tables.iter().find_map(|start| self.plan(levels, level, overlapping_group(&tables, start)))
            }
            level => self.pick_deeper(levels, level),
        })
    }

    fn pick_deeper<T: Pickable>(&self, levels: &[Vec<T>; LEVELS], level: Level) -> Option<Plan<T>> {
        let tables = &levels[level.number()];
        let pointer = &self.pointers[level.number()];
        let first = tables.partition_point(|table| table.meta().smallest <= pointer);
        let (before, behind) = tables.split_at(first);
        behind.iter().chain(before).find_map(|table| self.plan(levels, level, vec![table.clone()]))
    }

    /// A table of L0, the first flushed first, with all that must go along; damaged ones stay.
    fn pick_l0<T: Pickable>(&self, levels: &[Vec<T>; LEVELS]) -> Option<Plan<T>> {
        let tables = whole_tables_of_l0(levels);
        tables
            .iter()
            .find_map(|start| self.plan(levels, Level::L0, overlapping_group(&tables, start)))
            .or_else(|| pick_inside_l0(tables))
    }

    /// A table with much garbage: one whose garbage is certain to go, else one that something must be merged with first.
    fn pick_garbage<T: Pickable>(&self, levels: &[Vec<T>; LEVELS]) -> Option<Plan<T>> {
        let tables = || {
            let of_level = |level: Level| levels[level.number()].iter().map(move |table| (level, table));
            Level::all().flat_map(of_level).filter(|(_, table)| !table.is_damaged())
        };
        let certain = tables().find(|(_, table)| self.can_lose_garbage(levels, *table));
        if let Some((level, table)) = certain {
            return Some(Plan { inputs: vec![(level, table.clone())], output: level, is_move: false });
        }
        if !self.garbage.is_idle {
            return None;
        }
        let held_by_tables = |(_, table): &(Level, &T)| {
            self.garbage.has_tombstones(table.meta()) && !self.garbage.is_held_by_memory(table.meta())
        };
        tables().filter(held_by_tables).find_map(|(level, table)| self.plan_merge(levels, level, table))
    }

    /// Whether rewriting a table alone is certain to free enough.
    fn can_lose_garbage<T: Pickable>(&self, levels: &[Vec<T>; LEVELS], table: &T) -> bool {
        let meta = table.meta();
        self.garbage.has_expired(meta)
            || (self.garbage.has_tombstones(meta)
                && !self.garbage.is_held_by_memory(meta)
                && obstacles(levels, meta).next().is_none())
    }

    /// Brings a table whose tombstones may hide something together with what they hide.
    fn plan_merge<T: Pickable>(&self, levels: &[Vec<T>; LEVELS], level: Level, table: &T) -> Option<Plan<T>> {
        let deepest = obstacles(levels, table.meta()).map(|(level, _)| level).max()?;
        if level == Level::L0 {
            let group = overlapping_group(&whole_tables_of_l0(levels), table);
            return self.plan(levels, Level::L0, group);
        }
        if deepest > level {
            return self.plan(levels, level, vec![table.clone()]); // down, towards what it hides
        }
        // What it may hide lies above: that comes down, level by level, until they meet.
        let mut above: Vec<_> =
            obstacles(levels, table.meta()).filter(|(_, table)| !table.is_damaged()).collect();
        above.sort_by_key(|(level, table)| (std::cmp::Reverse(*level), table.meta().number));
        above.into_iter().find_map(|(level, obstacle)| match level {
            Level::L0 => self.plan(levels, level, overlapping_group(&whole_tables_of_l0(levels), obstacle)),
            level => self.plan(levels, level, vec![obstacle.clone()]),
        })
    }

    /// The table with the largest share of tombstones above the deepest level, with what goes along; `None` when there is no
    /// such table. Each such compaction brings tombstones one level nearer to what they hide, so there is a last one.
    pub fn pick_for_space<T: Pickable>(&self, levels: &[Vec<T>; LEVELS]) -> Option<Plan<T>> {
        let share = |table: &T| table.meta().tombstones as f64 / table.meta().entries.max(1) as f64;
        let mut holders: Vec<(f64, Level, &T)> = Level::all()
            .filter(|level| levels[level.number()..].iter().map(Vec::len).sum::<usize>() > 1)
            .filter(|level| {
                *level == Level::L0 || levels[level.number() + 1..].iter().any(|below| !below.is_empty())
            })
            .flat_map(|level| levels[level.number()].iter().map(move |table| (level, table)))
            .filter(|(_, table)| table.meta().tombstones > 0 && !table.is_damaged())
            .map(|(level, table)| (share(table), level, table))
            .collect();
        holders.sort_by(|(a, _, _), (b, _, _)| b.total_cmp(a)); // stable: of equals the upper level
        holders.into_iter().find_map(|(_, level, table)| {
            if level == Level::L0 {
                let group = overlapping_group(&whole_tables_of_l0(levels), table);
                return self.plan(levels, level, group);
            }
            self.plan(levels, level, vec![table.clone()])
        })
    }

    /// Adds what `tables` overlap in the level that they go to; `None` if a table involved is damaged.
    fn plan<T: Pickable>(&self, levels: &[Vec<T>; LEVELS], level: Level, tables: Vec<T>) -> Option<Plan<T>> {
        let output = Targets::of(levels, self.limits).output(level)?;
        let smallest = tables.iter().map(|table| &table.meta().smallest).min()?;
        let largest = tables.iter().map(|table| &table.meta().largest).max()?;
        let below: Vec<T> = levels[output.number()]
            .iter()
            .filter(|table| table.meta().overlaps(smallest, largest))
            .cloned()
            .collect();
        let is_move = tables.len() == 1 && below.is_empty() && !self.can_lose_garbage(levels, &tables[0]);
        let inputs: Vec<_> = tables
            .into_iter()
            .map(|table| (level, table))
            .chain(below.into_iter().map(|table| (output, table)))
            .collect();
        if inputs.iter().any(|(_, table)| table.is_damaged()) {
            return None;
        }
        Some(Plan { inputs, output, is_move })
    }
}

/// Other tables that may hold what a tombstone of this one hides.
fn obstacles<'a, T: Pickable>(
    levels: &'a [Vec<T>; LEVELS],
    meta: &'a SstMeta,
) -> impl Iterator<Item = (Level, &'a T)> {
    let is_one = |other: &SstMeta| {
        other.number != meta.number
            && other.oldest <= meta.newest
            && other.overlaps(&meta.smallest, &meta.largest)
    };
    Level::all().flat_map(move |level| {
        let tables = levels[level.number()].iter().filter(move |table| is_one(table.meta()));
        tables.map(move |table| (level, table))
    })
}

/// The tables of L0 that are not damaged, the first flushed first.
fn whole_tables_of_l0<T: Pickable>(levels: &[Vec<T>; LEVELS]) -> Vec<T> {
    let mut tables: Vec<T> = levels[0].iter().filter(|table| !table.is_damaged()).cloned().collect();
    tables.sort_by_key(|table| table.meta().number);
    tables
}

/// Makes one table of several of L0: all the smallest ones, of which none outweighs those before it by far, so
/// that a record is rewritten a number of times that grows with the logarithm of what gathers there.
fn pick_inside_l0<T: Pickable>(mut tables: Vec<T>) -> Option<Plan<T>> {
    tables.sort_by_key(|table| (table.meta().size, table.meta().number));
    let mut sum = 0u64;
    let alike = tables.iter().position(|table| {
        let outweighs = sum > 0 && table.meta().size > sum.saturating_mul(2);
        sum = sum.saturating_add(table.meta().size);
        outweighs
    });
    tables.truncate(alike.unwrap_or(tables.len()).max(2));
    let inputs: Vec<_> = tables.into_iter().map(|table| (Level::L0, table)).collect();
    (inputs.len() >= 2).then_some(Plan { inputs, output: Level::L0, is_move: false })
}

/// `start`, what overlaps it, what overlaps that, and so on.
fn overlapping_group<T: Pickable>(tables: &[T], start: &T) -> Vec<T> {
    let (mut smallest, mut largest) = (&start.meta().smallest, &start.meta().largest);
    loop {
        let group: Vec<&T> = tables.iter().filter(|table| table.meta().overlaps(smallest, largest)).collect();
        let low = group.iter().map(|table| &table.meta().smallest).min().expect("start overlaps itself");
        let high = group.iter().map(|table| &table.meta().largest).max().expect("start overlaps itself");
        if low == smallest && high == largest {
            return group.into_iter().cloned().collect();
        }
        (smallest, largest) = (low, high);
    }
}

/// Everything, into the last level; `None` when it lies in one deeper level already.
pub fn pick_all<T: Pickable>(levels: &[Vec<T>; LEVELS], drop_tombstones: bool) -> Option<Plan<T>> {
    let deepest = Level::all().rev().find(|level| !levels[level.number()].is_empty())?;
    let alone = Level::all().all(|level| level == deepest || levels[level.number()].is_empty());
    let tombstones = levels.iter().flatten().any(|table| table.meta().tombstones > 0);
    if alone && deepest != Level::L0 && !(drop_tombstones && tombstones) {
        return None;
    }
    let inputs = Level::all()
        .flat_map(|level| levels[level.number()].iter().map(move |table| (level, table.clone())))
        .collect();
    Some(Plan { inputs, output: Level::LAST, is_move: false })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::sst::Expiries;
    use proptest::prelude::*;

    #[derive(Debug, Clone, PartialEq, Eq)]
    struct Drawn {
        meta: SstMeta,
        is_damaged: bool,
    }

    impl Pickable for Drawn {
        fn meta(&self) -> &SstMeta {
            &self.meta
        }
        fn is_damaged(&self) -> bool {
            self.is_damaged
        }
    }

    const LIMITS: Limits = Limits { l0_files_max: 3, base_bytes: 100, table_bytes: 25 };

    fn table(number: u64, smallest: u8, largest: u8, size: u64) -> Drawn {
        let meta = SstMeta {
            number,
            size,
            entries: 1,
            tombstones: 0,
            oldest: Timestamp::ZERO,
            newest: Timestamp::ZERO,
            smallest: vec![smallest].into(),
            largest: vec![largest].into(),
            expiries: Expiries::default(),
            content_bytes: 0,
        };
        Drawn { meta, is_damaged: false }
    }

    /// Tables of a level: drawn ends, sorted, taken two by two.
    fn any_level(number: usize) -> impl Strategy<Value = Vec<Drawn>> {
        proptest::collection::btree_map(any::<u8>(), (1u64..90, proptest::bool::weighted(0.1)), 0..12)
            .prop_map(move |ends| {
                let ends: Vec<_> = ends.into_iter().collect();
                let tables = ends.chunks_exact(2).enumerate().map(|(i, pair)| Drawn {
                    is_damaged: pair[0].1.1,
                    ..table((number * 100 + i) as u64, pair[0].0, pair[1].0, pair[0].1.0)
                });
                tables.collect()
            })
    }

    fn any_levels() -> impl Strategy<Value = [Vec<Drawn>; LEVELS]> {
        let l0 = proptest::collection::vec(
            (any::<u8>(), any::<u8>(), 1u64..90, proptest::bool::weighted(0.1)),
            0..6,
        );
        let l0 = l0.prop_map(|drawn| {
            let tables = drawn.into_iter().enumerate().map(|(i, (a, b, size, is_damaged))| Drawn {
                is_damaged,
                ..table(i as u64, a.min(b), a.max(b), size)
            });
            tables.collect::<Vec<_>>()
        });
        (l0, any_level(1), any_level(2), any_level(3))
            .prop_map(|(l0, l1, l2, l3)| [l0, l1, l2, l3, Vec::new(), Vec::new(), Vec::new()])
    }

    fn overlap(a: &Drawn, b: &Drawn) -> bool {
        a.meta.overlaps(&b.meta.smallest, &b.meta.largest)
    }

    proptest! {
        #[test]
        fn what_stays_behind_overlaps_nothing_that_was_picked(levels in any_levels(), pointer: u8) {
            let pointers: [Bytes; LEVELS] = std::array::from_fn(|_| vec![pointer].into());
            let picker = CompactionPicker { limits: &LIMITS, pointers: &pointers, garbage: Garbage::default() };
            let wanted = Level::all().any(|level| score(&levels, level, &LIMITS) >= 1.0);
            let Some(plan) = picker.pick(&levels) else {
                let damage = levels.iter().flatten().any(|table| table.is_damaged);
                prop_assert!(!wanted || damage, "something is wanted and nothing is in the way");
                let whole = levels[0].iter().filter(|table| !table.is_damaged).count();
                prop_assert!(score(&levels, Level::L0, &LIMITS) < 1.0 || whole < 2, "writers would stop for good");
                return Ok(());
            };
            prop_assert!(wanted);
            prop_assert!(plan.inputs.iter().all(|(_, table)| !table.is_damaged));
            let source = plan.inputs[0].0;
            if plan.output == Level::L0 {
                prop_assert!(plan.inputs.len() >= 2 && plan.inputs.iter().all(|(level, _)| *level == Level::L0));
                prop_assert!(levels.iter().flatten().any(|table| table.is_damaged), "only where damage is in the way");
                return Ok(());
            }
            prop_assert_eq!(Targets::of(&levels, &LIMITS).output(source), Some(plan.output));
            prop_assert!(score(&levels, source, &LIMITS) >= 1.0);
            let picked = |level: Level, table: &Drawn| plan.inputs.contains(&(level, table.clone()));
            let from_source: Vec<_> = plan.inputs.iter().filter(|(level, _)| *level == source).map(|(_, t)| t).collect();
            let low = from_source.iter().map(|t| t.meta.smallest.clone()).min().unwrap();
            let high = from_source.iter().map(|t| t.meta.largest.clone()).max().unwrap();
            for left in levels[plan.output.number()].iter().filter(|table| !picked(plan.output, table)) {
                prop_assert!(!left.meta.overlaps(&low, &high), "outputs would overlap it");
            }
            if source == Level::L0 {
                for left in levels[0].iter().filter(|table| !table.is_damaged && !picked(Level::L0, table)) {
                    prop_assert!(from_source.iter().all(|table| !overlap(table, left)));
                }
            }
            prop_assert_eq!(plan.is_move, plan.inputs.len() == 1);
        }

        #[test]
        fn a_compaction_of_everything_leaves_one_level(levels in any_levels()) {
            match pick_all(&levels, false) {
                Some(plan) => {
                    prop_assert_eq!(plan.inputs.len(), levels.iter().map(Vec::len).sum::<usize>());
                    prop_assert!(plan.output > Level::L0);
                    prop_assert!(Level::all().skip(plan.output.number() + 1).all(|l| levels[l.number()].is_empty()));
                }
                None => prop_assert!(levels[0].is_empty() && levels.iter().filter(|l| !l.is_empty()).count() <= 1),
            }
        }
    }

    fn levels_with(l0: Vec<Drawn>, last: Vec<Drawn>) -> [Vec<Drawn>; LEVELS] {
        let mut levels: [Vec<Drawn>; LEVELS] = Default::default();
        (levels[0], levels[Level::LAST.number()]) = (l0, last);
        levels
    }

    fn levels_with_l1(l1: Vec<Drawn>) -> [Vec<Drawn>; LEVELS] {
        let mut levels: [Vec<Drawn>; LEVELS] = Default::default();
        levels[1] = l1;
        levels
    }

    fn numbers(plan: &Plan<Drawn>) -> Vec<u64> {
        plan.inputs.iter().map(|(_, table)| table.meta.number).collect()
    }

    #[test]
    fn tables_of_l0_that_overlap_through_others_go_together() {
        let l0 = vec![table(1, 10, 20, 1), table(2, 18, 30, 1), table(3, 29, 40, 1), table(4, 50, 60, 1)];
        let levels = levels_with(l0, vec![table(5, 0, 5, 1), table(6, 35, 55, 1)]);
        let picker =
            CompactionPicker { limits: &LIMITS, pointers: &Default::default(), garbage: Garbage::default() };
        assert_eq!(numbers(&picker.pick(&levels).unwrap()), [1, 2, 3, 6]);
    }

    #[test]
    fn a_level_is_compacted_round_and_round() {
        let l1 = vec![table(1, 10, 20, 90), table(2, 30, 40, 90), table(3, 50, 60, 90)];
        let levels = levels_with_l1(l1);
        for (pointer, picked) in [(0, 1), (20, 2), (40, 3), (60, 1)] {
            let pointers: [Bytes; LEVELS] = std::array::from_fn(|_| vec![pointer].into());
            let plan = CompactionPicker { limits: &LIMITS, pointers: &pointers, garbage: Garbage::default() }
                .pick(&levels)
                .unwrap();
            assert_eq!((numbers(&plan), plan.is_move), (vec![picked], true));
        }
    }

    #[test]
    fn a_damaged_table_does_not_keep_others_from_being_compacted() {
        let mut l1 = vec![table(1, 10, 20, 90), table(2, 30, 40, 90)];
        l1[0].is_damaged = true;
        let levels = levels_with_l1(l1.clone());
        let picker =
            CompactionPicker { limits: &LIMITS, pointers: &Default::default(), garbage: Garbage::default() };
        assert_eq!(numbers(&picker.pick(&levels).unwrap()), [2]);
        l1[1].is_damaged = true;
        assert_eq!(picker.pick(&levels_with_l1(l1)), None);
    }

    #[test]
    fn tables_that_damage_below_keeps_in_l0_become_one() {
        let mut below = table(1, 0, 99, 90);
        below.is_damaged = true;
        let mut l0 =
            vec![table(2, 10, 20, 10), table(3, 10, 20, 10), table(4, 10, 20, 11), table(5, 10, 20, 900)];
        l0[1].is_damaged = true;
        let levels = levels_with(l0, vec![below]);
        let picker =
            CompactionPicker { limits: &LIMITS, pointers: &Default::default(), garbage: Garbage::default() };
        let plan = picker.pick(&levels).unwrap();
        assert_eq!((numbers(&plan), plan.output), (vec![2, 4], Level::L0));
    }

    /// What a compaction would do: nothing is ever hidden by something newer, and tombstones go only where that is certain.
    fn carry_out(levels: &mut [Vec<Drawn>; LEVELS], plan: &Plan<Drawn>, next: &mut u64) {
        for (level, table) in &plan.inputs {
            levels[level.number()].retain(|other| other != table);
        }
        let metas = || plan.inputs.iter().map(|(_, table)| &table.meta);
        let output = &mut levels[plan.output.number()];
        if plan.is_move {
            output.extend(plan.inputs.iter().map(|(_, table)| table.clone()));
        } else {
            let is_alone = plan.inputs.len() == 1 && plan.inputs[0].0 == plan.output;
            let low = metas().map(|meta| meta.smallest[0]).min().unwrap();
            let high = metas().map(|meta| meta.largest[0]).max().unwrap();
            let bytes: u64 = metas().map(|meta| meta.size).sum();
            let wanted = if plan.output == Level::L0 { 1 } else { bytes.div_ceil(LIMITS.table_bytes) };
            let tables = wanted.clamp(1, (u64::from(high - low) / 2).max(1));
            let tombstones = if is_alone { 0 } else { metas().map(|meta| meta.tombstones).sum::<u64>() };
            let entries = metas().map(|meta| meta.entries).sum::<u64>().max(tombstones);
            let bound = |part: u64| low + (u64::from(high - low) * part / tables) as u8;
            for part in 0..tables {
                *next += 1;
                let start = bound(part) + u8::from(part > 0);
                let mut made = table(*next, start, bound(part + 1), (bytes / tables).max(1));
                made.meta.entries = (entries / tables).max(1);
                made.meta.tombstones = (tombstones / tables).min(made.meta.entries);
                made.meta.oldest = metas().map(|meta| meta.oldest).min().unwrap();
                made.meta.newest = metas().map(|meta| meta.newest).max().unwrap();
                output.push(made);
            }
        }
        if plan.output != Level::L0 {
            output.sort_by(|a, b| a.meta.smallest.cmp(&b.meta.smallest));
            assert!(output.windows(2).all(|pair| pair[0].meta.largest < pair[1].meta.smallest), "{output:?}");
        }
    }

    proptest! {
        /// A store that tables are flushed to, busy at first and idle in the end.
        #[test]
        fn picking_comes_to_an_end_with_every_level_within_its_target(
            flushes in proptest::collection::vec((any::<u8>(), any::<u8>(), 1u64..90, 0u64..11, 0u64..50), 1..60),
            drops_tombstones: bool, begun in any_levels(),
        ) {
            // What an earlier version left: levels filled from the top.
            let mut levels = begun;
            for table in levels.iter_mut().flatten() {
                table.is_damaged = false;
            }
            let (mut next, mut compactions) = (1_000, 0);
            let count = flushes.len();
            for (number, (a, b, size, tombstones, age)) in flushes.into_iter().enumerate() {
                next += 1;
                let mut flushed = table(next, a.min(b), a.max(b), size);
                (flushed.meta.entries, flushed.meta.tombstones) = (10, tombstones.min(10));
                flushed.meta.newest = Timestamp::from_u64(100 + number as u64);
                flushed.meta.oldest = Timestamp::from_u64(100 + number as u64 - age);
                levels[0].push(flushed);
                let garbage = Garbage { drops_tombstones, is_idle: number + 1 == count, ..Garbage::default() };
                let pointers: [Bytes; LEVELS] = Default::default();
                let picker = CompactionPicker { limits: &LIMITS, pointers: &pointers, garbage };
                let mut steps = 0;
                while let Some(plan) = picker.pick(&levels) {
                    carry_out(&mut levels, &plan, &mut next);
                    steps += 1;
                    prop_assert!(steps < 1_000, "it does not come to an end");
                }
                compactions += steps;
            }
            let targets = Targets::of(&levels, &LIMITS);
            for level in Level::all() {
                prop_assert!(score(&levels, level, &LIMITS) < 1.0, "{level:?} in {levels:?}");
                prop_assert!(level == Level::L0 || level >= targets.base || levels[level.number()].is_empty());
            }
            let [upper @ .., last] = &levels;
            let above: u64 = upper.iter().map(|tables| bytes(tables)).sum();
            prop_assert!(above * UPPER_PART < bytes(last) || above == 0, "{above} above {}", bytes(last));
            if drops_tombstones {
                let left = levels.iter().flatten().find(|table| table.meta.tombstones * GARBAGE_PART >= table.meta.entries.max(1));
                prop_assert!(left.is_none(), "tombstones are left in {left:?}");
            }
            prop_assert!(compactions < 40 * count + 100, "{compactions} compactions for {count} tables");
        }
    }

    #[test]
    fn the_base_level_is_the_uppermost_that_is_worth_having() {
        let held = |size| levels_with(Vec::new(), vec![table(1, 0, 9, size)]);
        let base = |size| Targets::of(&held(size), &LIMITS).base.number();
        assert_eq!([0, 999, 1_000, 9_999, 10_000, 1 << 40].map(base), [6, 6, 5, 5, 4, 1]);
        let targets = Targets::of(&held(12_345), &LIMITS);
        assert_eq!((targets.bytes[4], targets.bytes[5]), (123, 1_234));
        assert_eq!(targets.output(Level::L0), Level::new(4));
        assert_eq!(
            targets.output(Level::new(2).unwrap()),
            Level::new(4),
            "what lies above the base is brought there"
        );
        assert_eq!(
            (targets.output(Level::new(5).unwrap()), targets.output(Level::LAST)),
            (Some(Level::LAST), None)
        );
    }
}
