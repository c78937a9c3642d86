//! `HintStore`: an engine keyed by target and key, bounded per target.
//!
//! ```text
//! store      what lies there already? ──in memory──> counted ──> the engine ──> durable
//!                 └─ in a table: read first, on the pool ──┘
//! dropped    cap, age, unwanted, damaged, disk ──> counted, told once, the key's range is marked dirty, durably
//! ```
//!
//! `encoding` says how hints lie in the engine. Counts and bytes per target are kept in memory, counted anew when the store
//! is opened; a key that is hinted again counts once, whether its hint is in memory, in a table or on its way. They are set
//! right once a target's hints have all gone ([`HintStore::settle`]), should they have drifted.
//!
//! A damaged block of a table costs the hints in it and no others: walks go round it, and the ranges of the targets it may
//! have held hints for are marked dirty. Its table stays until the directory is made anew.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::age::AgeClock;
use super::encoding::{
    Decoded, damage_key, decode_hint, decode_key, dirty_key, encode_record, hint_key, target_prefix,
};
use crate::engine::{
    self, Engine, Options, SkippedBlock, SkippedBlocks, TombstonePolicy, WriteBatch, Written,
};
use crate::env::{Clock, Env, Lane, Mistake, Planted, Pool};
use crate::types::{Key, KeyRange, NodeId, Record, Timestamp, Value};
use crate::util::ticker::{Ticker, Ticks};

/// Memory that hints may take before they go to a table.
const MEMTABLE_SIZE: usize = 8 << 20;
/// Hints are read once, by the replayer: a cache for them is of little use.
const BLOCK_CACHE_SIZE: usize = 4 << 20;
/// Files of tables that are open at a time.
pub const OPEN_FILES_MAX: usize = 8;
/// What a hint weighs beside its key and value, for the cap.
const HINT_OVERHEAD: u64 = 32;

/// Why hints were not stored.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The target's cap is reached: the write has no hint, and its range is marked dirty.
    #[error("{bytes} bytes of hints are waiting for {target} already")]
    Full {
        /// Who should have had them.
        target: NodeId,
        /// What waits for it.
        bytes: u64,
    },
    /// The hints' engine could not.
    #[error("hints: {0}")]
    Engine(#[from] engine::Error),
    /// The key and the target's name are too long together, which no accepted name makes them.
    #[error("a hint's key is too long")]
    KeyTooLong,
}

/// Says in which of the ring's ranges a key lies.
pub type RangeOf = Arc<dyn Fn(&[u8]) -> u16 + Send + Sync>;
/// Says of which of the ring's ranges a node is a primary.
pub type RangesOf = Arc<dyn Fn(&NodeId) -> Vec<u16> + Send + Sync>;

/// How hints are bounded, and how keys fall into ranges.
#[derive(Clone)]
pub struct Settings {
    /// Bytes of hints a target, at most.
    pub bytes_max: u64,
    /// How old a hint may grow.
    pub age_max: Duration,
    /// Bytes of hints that may wait for their commit.
    pub queue_bytes_max: usize,
    /// Whom hints may be for.
    pub targets: Vec<NodeId>,
    /// The ring's range of a key: what is marked dirty when its hint is dropped.
    pub range_of: RangeOf,
    /// All ranges of a node: what is marked dirty when it is not known which hints were lost.
    pub ranges_of: RangesOf,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { bytes_max, age_max, queue_bytes_max, targets, range_of: _, ranges_of: _ } = self;
        f.debug_struct("Settings")
            .field("bytes_max", bytes_max)
            .field("age_max", age_max)
            .field("queue_bytes_max", queue_bytes_max)
            .field("targets", targets)
            .finish_non_exhaustive()
    }
}

/// A write kept for `target`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hint {
    /// Which key.
    pub key: Key,
    /// What the target should hold.
    pub record: Record,
}

/// What waits for one target.
#[derive(Debug, Clone, Copy, Default)]
struct Pending {
    count: u64,
    bytes: u64,
}

/// What a batch of hints adds to what waits: a hint that replaces a larger one takes bytes away.
#[derive(Debug, Clone, Copy, Default)]
struct Added {
    count: u64,
    bytes: i64,
}

/// What lies in the store under a hint's key.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Held {
    Nothing,
    /// A hint: the timestamp and the weight of its record.
    Hint {
        timestamp: Timestamp,
        weight: u64,
    },
    /// The hint of this timestamp was delivered or dropped.
    Gone {
        timestamp: Timestamp,
    },
}

impl Held {
    fn timestamp(&self) -> Timestamp {
        match self {
            Self::Nothing => Timestamp::ZERO,
            Self::Hint { timestamp, .. } | Self::Gone { timestamp } => *timestamp,
        }
    }
}

/// What is on its way into the engine under one key.
#[derive(Debug)]
struct InFlight {
    batches: u32,
    /// What will be found there.
    held: Held,
}

/// Hints counted since the store was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HintStats {
    /// Made durable.
    pub stored: u64,
    /// Acknowledged by their targets.
    pub delivered: u64,
    /// Dropped at the cap, of old age, because the target does not want them, or lost to the disk.
    pub dropped: u64,
    /// Ranges marked dirty, of all targets together, earlier runs included.
    pub dirty_ranges: u64,
}

/// Durable hints. A clone is the same store.
#[derive(Debug, Clone)]
pub struct HintStore {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    engine: Engine,
    pool: Pool,
    clock: Arc<dyn Clock>,
    settings: Settings,
    planted: Planted,
    /// Counts whenever hints were stored: wakes the replayers.
    changes: Ticker,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    targets: BTreeMap<NodeId, TargetState>,
    stats: HintStats,
    age: AgeClock,
    /// What is on its way into the engine, by the engine's keys.
    in_flight: BTreeMap<Key, InFlight>,
    /// Ranges marked dirty that are not on disk yet.
    unsaved_dirty: BTreeSet<(NodeId, u16)>,
    /// Damaged blocks whose hints were counted as dropped, by table and offset.
    known_damage: BTreeSet<(u64, u64)>,
}

#[derive(Debug, Default)]
struct TargetState {
    pending: Pending,
    /// Counts stores begun, and those not ended yet: `settle` must not forget a hint that is on its way.
    begun: u64,
    in_flight: u64,
    /// What `begun` was before the last walk that ended with no hint left.
    settled: u64,
    dirty: BTreeSet<u16>,
    /// Whether it was told that hints are dropped, since the last time that none waited.
    told: bool,
}

/// Says that no hint was on its way when it was taken ([`HintStore::settle`]).
#[derive(Debug, Clone, Copy)]
pub struct Quiet {
    begun: Option<u64>,
}

impl HintStore {
    /// Opens the hints' engine and counts what waits. Blocks.
    ///
    /// Damage costs hints, not the node: what is damaged is left out, counted and told in the log.
    pub fn open(env: &Env, dir: &Path, settings: Settings) -> Result<Self, engine::Error> {
        let options = Options {
            memtable_size: MEMTABLE_SIZE,
            block_cache_size: BLOCK_CACHE_SIZE,
            open_files_max: OPEN_FILES_MAX,
            queue_bytes_max: settings.queue_bytes_max,
            tombstones: TombstonePolicy::DropWhenUncovered,
            commit_lane: Lane::Aside,
            ..Options::default()
        };
        let (engine, lost) = match Engine::open(env, dir, options.clone()) {
            Ok((engine, _)) => (engine, Vec::new()),
            Err(error @ engine::Error::Corruption { .. }) => {
                tracing::warn!(%error, "the hints are damaged: what cannot be read is dropped");
                let (engine, recovery) = Engine::open(env, dir, Options { drop_damaged: true, ..options })?;
                (engine, recovery.damage)
            }
            Err(error) => return Err(error),
        };
        let skipped = SkippedBlocks::default();
        let wall = Timestamp::from_micros(env.clock.wall_micros());
        let state = count(&engine, &skipped, wall)?;
        let shared = Shared {
            engine,
            pool: env.pool.clone(),
            clock: env.clock.clone(),
            settings,
            planted: env.planted,
            changes: Ticker::default(),
            state: Mutex::new(state),
        };
        let store = Self { shared: Arc::new(shared) };
        store.shared.note_lost_files(&lost);
        store.shared.note_damage(&skipped.all());
        Ok(store)
    }

    /// Does in the background what no write asks for, as [`Engine::maintain`] tells.
    pub fn maintain(&self) {
        self.shared.engine.maintain();
    }

    /// Stores hints for `target`; durable when the future resolves to `Ok`. Nothing need poll it: the write is
    /// under way when the call returns.
    ///
    /// # Errors
    /// [`Error::Full`] when the target's cap is reached: none of these hints was stored.
    pub fn store(
        &self,
        target: &NodeId,
        items: Vec<(Key, Record)>,
    ) -> impl Future<Output = Result<(), Error>> + Send + use<> {
        let (sender, receiver) = oneshot::channel();
        self.shared.clone().begin_store(target.clone(), items, sender);
        // The engine drops a completion only when it is torn down.
        async move { receiver.await.unwrap_or_else(|_| Err(engine::Error::Closed.into())) }
    }

    /// How many hints wait for `target`, and their bytes.
    pub fn pending(&self, target: &NodeId) -> (u64, u64) {
        let state = self.shared.state.lock();
        state.targets.get(target).map_or((0, 0), |state| (state.pending.count, state.pending.bytes))
    }

    /// Every target for which hints wait.
    pub fn targets(&self) -> Vec<NodeId> {
        let state = self.shared.state.lock();
        state.targets.iter().filter(|(_, state)| state.pending.count > 0).map(|(id, _)| id.clone()).collect()
    }

    /// The ranges of `target` of which a hint was dropped.
    pub fn dirty_ranges(&self, target: &NodeId) -> Vec<u16> {
        let state = self.shared.state.lock();
        state.targets.get(target).map(|state| state.dirty.iter().copied().collect()).unwrap_or_default()
    }

    /// Ticks whenever hints were stored.
    pub fn subscribe(&self) -> Ticks {
        self.shared.changes.listener()
    }

    /// What has been done since the store was opened.
    pub fn stats(&self) -> HintStats {
        let state = self.shared.state.lock();
        let dirty_ranges = state.targets.values().map(|target| target.dirty.len() as u64).sum();
        HintStats { dirty_ranges, ..state.stats }
    }

    /// The engine's figures.
    pub fn engine_stats(&self) -> engine::EngineStats {
        self.shared.engine.stats()
    }

    /// Reads the hints for `target` behind the key `after`, in key order: at most `rows_max` and about
    /// `bytes_max`, one at least. Hints that grew too old are among them: see [`HintStore::is_too_old`]. Blocks.
    pub fn page(
        &self,
        target: &NodeId,
        after: Option<&Key>,
        rows_max: usize,
        bytes_max: usize,
    ) -> Result<Vec<Hint>, engine::Error> {
        let prefix = target_prefix(target);
        let mut range = KeyRange::prefix(&prefix);
        if let Some(after) = after {
            let mut start = prefix.clone();
            start.extend_from_slice(after.as_bytes());
            start.push(0); // the first key beyond it
            range.start = Some(start.into());
        }
        let (mut hints, mut bytes) = (Vec::new(), 0);
        let skipped = SkippedBlocks::default();
        for item in self.shared.engine.scan_around_damage(&range, &skipped) {
            let (key, record) = item?;
            let Some(hint) = decode_hint(&prefix, &key, &record) else { continue };
            bytes += weight(&hint.key, &hint.record) as usize;
            if !hints.is_empty() && bytes > bytes_max {
                break;
            }
            hints.push(hint);
            if hints.len() >= rows_max {
                break;
            }
        }
        self.shared.note_damage(&skipped.all());
        Ok(hints)
    }

    /// Whether a hint has outlived its use.
    pub fn is_too_old(&self, hint: &Hint) -> bool {
        self.shared.age_clock().since(hint.record.timestamp()) > self.shared.settings.age_max
    }

    /// To be called every few seconds: keeps the clock of the hints' age on its way, and writes down what could not be before.
    pub fn tick(&self) {
        self.shared.age_clock();
        self.shared.save_dirty();
    }

    /// Deletes hints that their target has acknowledged. A newer hint of the same key stays.
    pub fn delivered(
        &self,
        target: &NodeId,
        hints: &[Hint],
    ) -> impl Future<Output = Result<(), Error>> + Send + use<> {
        self.shared.state.lock().stats.delivered += hints.len() as u64;
        self.delete(target, hints)
    }

    /// Deletes hints that grew too old or that their target does not want, and marks their ranges dirty.
    pub fn discard(
        &self,
        target: &NodeId,
        hints: &[Hint],
        why: &str,
    ) -> impl Future<Output = Result<(), Error>> + Send + use<> {
        self.shared.note_dropped(target, hints.iter().map(|hint| &hint.key), why);
        self.delete(target, hints)
    }

    fn delete(
        &self,
        target: &NodeId,
        hints: &[Hint],
    ) -> impl Future<Output = Result<(), Error>> + Send + use<> {
        let shared = self.shared.clone();
        let mut batch = WriteBatch::default();
        let mut keys = Vec::new();
        {
            let mut state = shared.state.lock();
            let mut gone = Pending::default();
            for hint in hints {
                let Ok(key) = hint_key(target, &hint.key) else { continue };
                let timestamp = hint.record.timestamp();
                match state.held(&shared.engine, &key) {
                    // Another record of the same timestamp: deleting the one would delete the other.
                    Some(Held::Hint { timestamp: newest, .. })
                        if newest == timestamp && !shared.is_still(target, &key, hint, &state) =>
                    {
                        continue;
                    }
                    Some(Held::Hint { timestamp: newest, .. }) if newest > timestamp => {}
                    Some(Held::Nothing | Held::Gone { .. }) => {}
                    Some(Held::Hint { .. }) | None => {
                        gone.count += 1;
                        gone.bytes += weight(&hint.key, &hint.record);
                        state.fly(&key, Held::Nothing, Held::Gone { timestamp });
                        keys.push(key.clone());
                    }
                }
                let is_planted = shared.planted.has(Mistake::NewerHintDeletedWithOlder);
                let now = Timestamp::from_micros(shared.clock.wall_micros());
                batch.delete(key, if is_planted { now } else { timestamp });
            }
            let pending = &mut state.target(target).pending;
            pending.count = pending.count.saturating_sub(gone.count);
            pending.bytes = pending.bytes.saturating_sub(gone.bytes);
        }
        let (sender, receiver) = oneshot::channel();
        if batch.is_empty() {
            let _ = sender.send(Ok(Written::default()));
        } else {
            let weak = Arc::downgrade(&shared);
            shared.engine.submit(
                batch,
                Box::new(move |outcome| {
                    if let Some(shared) = weak.upgrade() {
                        shared.state.lock().land(&keys);
                    }
                    let _ = sender.send(outcome); // the asker may have gone
                }),
            );
        }
        async move {
            receiver.await.unwrap_or(Err(engine::Error::Closed))?;
            Ok(())
        }
    }

    /// Taken before a walk over a target's hints, for [`HintStore::settle`] after it.
    pub fn quiet(&self, target: &NodeId) -> Quiet {
        let state = self.shared.state.lock();
        let begun = state.targets.get(target).map_or((0, 0), |state| (state.begun, state.in_flight));
        Quiet { begun: (begun.1 == 0).then_some(begun.0) }
    }

    /// Whether a walk over the target's hints may find one.
    ///
    /// The count alone does not tell: a hint that replaced another while that one was being delivered adds nothing
    /// to it, and the delivery takes one away.
    pub fn is_waiting(&self, target: &NodeId) -> bool {
        let state = self.shared.state.lock();
        state.targets.get(target).is_some_and(|state| {
            state.pending.count > 0 || state.in_flight > 0 || state.begun != state.settled
        })
    }

    /// Sets the count of a target to zero: a walk that began at `quiet` found no hint.
    pub fn settle(&self, target: &NodeId, quiet: Quiet) {
        let mut state = self.shared.state.lock();
        let counted = state.target(target);
        if quiet.begun == Some(counted.begun) {
            counted.pending = Pending::default();
            counted.settled = counted.begun;
            counted.told = false;
        }
    }

    /// Has the engine look at the disk, and try again what waits for space. Does not wait.
    pub fn measure_space(&self) {
        self.shared.engine.measure_space();
    }

    /// Refuses new hints, flushes, and waits until all is in tables.
    pub async fn close(&self) -> Result<(), engine::Error> {
        let (sender, receiver) = oneshot::channel();
        self.shared.engine.shutdown(Box::new(move |outcome| drop(sender.send(outcome))));
        receiver.await.unwrap_or(Ok(()))
    }
}

impl Shared {
    /// Wall time as it is for the age of hints.
    fn age_clock(&self) -> Timestamp {
        let wall = Timestamp::from_micros(self.clock.wall_micros());
        self.state.lock().age.read(wall)
    }

    /// Looks up what lies under the hints' keys, in memory or on the pool, and goes on to [`Shared::submit`].
    fn begin_store(
        self: Arc<Self>,
        target: NodeId,
        items: Vec<(Key, Record)>,
        sender: oneshot::Sender<Result<(), Error>>,
    ) {
        let mut hints = Vec::with_capacity(items.len());
        for (key, record) in items {
            match hint_key(&target, &key) {
                Ok(hint_key) => hints.push((hint_key, key, record)),
                Err(error) => return drop(sender.send(Err(error))),
            }
        }
        let unknown: Vec<Key> = {
            let mut state = self.state.lock();
            let counted = state.target(&target);
            counted.begun += 1;
            counted.in_flight += 1;
            let keys = hints.iter().map(|(hint_key, ..)| hint_key);
            keys.filter(|key| state.held(&self.engine, key).is_none()).cloned().collect()
        };
        if unknown.is_empty() {
            return self.submit(&target, hints, &BTreeMap::new(), sender);
        }
        let shared = self.clone();
        self.pool.submit(Lane::Read, move || {
            let on_disk = unknown.into_iter().map(|key| {
                let held =
                    shared.engine.get(&key).map_or(Held::Nothing, |found| held_of(&key, found.as_ref()));
                (key, held)
            });
            let on_disk = on_disk.collect();
            shared.submit(&target, hints, &on_disk, sender);
        });
    }

    /// Counts hints and hands them to the engine. `on_disk` is what was found in tables; what is on its way counts more.
    fn submit(
        self: &Arc<Self>,
        target: &NodeId,
        hints: Vec<(Key, Key, Record)>,
        on_disk: &BTreeMap<Key, Held>,
        sender: oneshot::Sender<Result<(), Error>>,
    ) {
        let mut batch = WriteBatch::default();
        let mut added = Added::default();
        let stored = hints.len() as u64;
        let keys: Vec<Key> = hints.iter().map(|(_, key, _)| key.clone()).collect();
        let hint_keys: Vec<Key> = hints.iter().map(|(hint_key, ..)| hint_key.clone()).collect();
        {
            let mut state = self.state.lock();
            for (hint_key, key, record) in &hints {
                let (timestamp, weight) = (record.timestamp(), weight(key, record));
                let held = state.held(&self.engine, hint_key);
                match held.as_ref().or_else(|| on_disk.get(hint_key)) {
                    // It will lie hidden below what is there, or be the same again.
                    Some(Held::Hint { timestamp: newest, .. } | Held::Gone { timestamp: newest })
                        if *newest >= timestamp => {}
                    Some(Held::Hint { weight: replaced, .. }) => {
                        added.bytes += weight.cast_signed() - replaced.cast_signed();
                    }
                    _ => {
                        added.count += 1;
                        added.bytes += weight.cast_signed();
                    }
                }
                let before = held.or_else(|| on_disk.get(hint_key).cloned()).unwrap_or(Held::Nothing);
                state.fly(hint_key, before, Held::Hint { timestamp, weight });
            }
            let counted = state.target(target);
            let waiting = counted.pending.bytes;
            if waiting.saturating_add_signed(added.bytes) > self.settings.bytes_max && added.bytes > 0 {
                counted.in_flight -= 1;
                state.land(&hint_keys);
                drop(state);
                self.note_dropped(target, keys.iter(), "as many bytes of hints wait for it as may");
                return drop(sender.send(Err(Error::Full { target: target.clone(), bytes: waiting })));
            }
            counted.pending.count += added.count;
            counted.pending.bytes = waiting.saturating_add_signed(added.bytes);
        }
        for (hint_key, _, record) in hints {
            batch.put(hint_key, encode_record(&record), record.timestamp());
        }
        let (weak, target) = (Arc::downgrade(self), target.clone());
        self.engine.submit(
            batch,
            Box::new(move |outcome| {
                if let Some(shared) = weak.upgrade() {
                    shared.state.lock().land(&hint_keys);
                    shared.stored(&target, stored, added, outcome.is_ok());
                    if let Err(error) = &outcome {
                        shared.note_dropped(&target, keys.iter(), &error.to_string());
                    }
                }
                let _ = sender.send(outcome.map(drop).map_err(Error::from)); // the asker may have gone
            }),
        );
    }

    /// A batch of hints ended, well or not.
    fn stored(&self, target: &NodeId, stored: u64, added: Added, ok: bool) {
        let mut state = self.state.lock();
        let counted = state.target(target);
        counted.in_flight -= 1;
        if ok {
            state.stats.stored += stored;
            drop(state);
            self.changes.tick();
        } else {
            counted.pending.count = counted.pending.count.saturating_sub(added.count);
            counted.pending.bytes = counted.pending.bytes.saturating_add_signed(-added.bytes);
        }
    }

    /// Whether the hint found in memory under a key is the one given, as far as memory tells.
    fn is_still(&self, target: &NodeId, key: &Key, hint: &Hint, state: &State) -> bool {
        if state.in_flight.contains_key(key) {
            return false; // another one is on its way
        }
        let Some(Ok(Some(stored))) = self.engine.try_get(key) else { return true };
        decode_hint(&target_prefix(target), key, &stored).is_none_or(|held| held.record == hint.record)
    }

    /// Counts hints of these keys as dropped, says so once a target, and marks their ranges dirty.
    fn note_dropped<'a>(self: &Arc<Self>, target: &NodeId, keys: impl Iterator<Item = &'a Key>, why: &str) {
        let ranges: Vec<u16> = keys.map(|key| (self.settings.range_of)(key.as_bytes())).collect();
        self.note_dropped_of(target, ranges.len() as u64, ranges.iter().copied(), why);
    }

    fn note_dropped_of(
        self: &Arc<Self>,
        target: &NodeId,
        count: u64,
        ranges: impl Iterator<Item = u16>,
        why: &str,
    ) {
        let mut state = self.state.lock();
        state.stats.dropped += count;
        let counted = state.target(target);
        let told = std::mem::replace(&mut counted.told, true);
        let new: Vec<u16> = ranges.filter(|range| counted.dirty.insert(*range)).collect();
        state.unsaved_dirty.extend(new.into_iter().map(|range| (target.clone(), range)));
        drop(state);
        if !told {
            tracing::warn!(
                %target, count, why,
                "hints are dropped: it is brought in line by reads only (told once until none wait)"
            );
        }
        self.save_dirty();
    }

    /// Counts the hints in damaged blocks as dropped, unless they were before. Any target's between the block's first and its
    /// last key may have been among them.
    fn note_damage(self: &Arc<Self>, blocks: &[SkippedBlock]) {
        for block in blocks {
            if !self.state.lock().known_damage.insert((block.table, block.offset)) {
                continue;
            }
            tracing::warn!(error = block.error, hints = block.entries, "hints lost to damage");
            let now = Timestamp::from_micros(self.clock.wall_micros());
            let mut batch = WriteBatch::default();
            batch.put(damage_key(block), Value::default(), now);
            self.engine.submit(batch, Box::new(|_| {})); // without it they are counted again after a restart
            let mut count = block.entries;
            for target in &self.settings.targets {
                let of_target = KeyRange::prefix(&target_prefix(target));
                let begins = of_target.start.is_none_or(|start| start <= block.high);
                let ends = of_target.end.is_none_or(|end| end > block.low);
                if begins && ends {
                    let ranges = (self.settings.ranges_of)(target);
                    self.note_dropped_of(
                        target,
                        std::mem::take(&mut count),
                        ranges.into_iter(),
                        &block.error,
                    );
                }
            }
        }
    }

    /// Files that could not be opened may have held hints for anybody; how many is not known.
    fn note_lost_files(self: &Arc<Self>, damage: &[String]) {
        for line in damage {
            tracing::warn!(damage = line, "hints lost to damage");
        }
        let mut count = damage.len() as u64;
        for target in self.settings.targets.iter().filter(|_| !damage.is_empty()) {
            let ranges = (self.settings.ranges_of)(target);
            self.note_dropped_of(
                target,
                std::mem::take(&mut count),
                ranges.into_iter(),
                "their files are damaged",
            );
        }
    }

    /// Brings marks to disk that are not there yet. What fails is tried again at the next drop or tick.
    fn save_dirty(self: &Arc<Self>) {
        let unsaved = std::mem::take(&mut self.state.lock().unsaved_dirty);
        if unsaved.is_empty() {
            return;
        }
        let now = Timestamp::from_micros(self.clock.wall_micros());
        let mut batch = WriteBatch::default();
        for (target, range) in &unsaved {
            if let Ok(key) = dirty_key(target, *range) {
                batch.put(key, Value::default(), now);
            }
        }
        let weak = Arc::downgrade(self);
        self.engine.submit(
            batch,
            Box::new(move |outcome| {
                if let (Err(error), Some(shared)) = (outcome, weak.upgrade()) {
                    tracing::debug!(%error, "dirty ranges are not on disk yet");
                    shared.state.lock().unsaved_dirty.extend(unsaved);
                }
            }),
        );
    }
}

impl State {
    fn target(&mut self, target: &NodeId) -> &mut TargetState {
        if !self.targets.contains_key(target) {
            self.targets.insert(target.clone(), TargetState::default());
        }
        self.targets.get_mut(target).expect("it was put there if it was missing")
    }
}

impl State {
    /// What will be found under a key: what is on its way, or else what memory tells. `None`: only a disk could tell.
    fn held(&self, engine: &Engine, key: &Key) -> Option<Held> {
        match self.in_flight.get(key) {
            Some(in_flight) => Some(in_flight.held.clone()),
            None => engine.try_get(key).map(|found| held_of(key, found.unwrap_or_default().as_ref())),
        }
    }

    /// Something is on its way under a key, where `before` is held now.
    fn fly(&mut self, key: &Key, before: Held, held: Held) {
        let in_flight = self.in_flight.entry(key.clone()).or_insert(InFlight { batches: 0, held: before });
        in_flight.batches += 1;
        if held.timestamp() >= in_flight.held.timestamp() {
            in_flight.held = held;
        }
    }

    /// It has arrived, or never will.
    fn land(&mut self, keys: &[Key]) {
        for key in keys {
            if let Some(in_flight) = self.in_flight.get_mut(key) {
                in_flight.batches -= 1;
                if in_flight.batches == 0 {
                    self.in_flight.remove(key);
                }
            }
        }
    }
}

/// What an entry of the engine says about a hint's key.
fn held_of(key: &Key, found: Option<&Record>) -> Held {
    match found {
        None => Held::Nothing,
        Some(record @ Record::Value { timestamp, .. }) => {
            let prefix_len = match decode_key(key) {
                Some(Decoded::Hint { prefix_len, .. }) => prefix_len,
                _ => 0,
            };
            let weight = stored_weight(key.as_bytes().len() - prefix_len, record.value_len());
            Held::Hint { timestamp: *timestamp, weight }
        }
        Some(record) => Held::Gone { timestamp: record.timestamp() },
    }
}

/// Walks the whole store once, round what is damaged.
fn count(engine: &Engine, skipped: &SkippedBlocks, wall: Timestamp) -> Result<State, engine::Error> {
    let mut state = State {
        targets: BTreeMap::new(),
        stats: HintStats::default(),
        age: AgeClock::new(wall, None),
        in_flight: BTreeMap::new(),
        unsaved_dirty: BTreeSet::new(),
        known_damage: BTreeSet::new(),
    };
    let mut oldest: Option<Timestamp> = None;
    for item in engine.scan_around_damage(&KeyRange::all(), skipped) {
        let (key, record) = item?;
        if record.is_tombstone() {
            continue;
        }
        match decode_key(&key) {
            Some(Decoded::Hint { target, prefix_len }) => {
                oldest = oldest.into_iter().chain([record.timestamp()]).min();
                let pending = &mut state.target(&target).pending;
                pending.count += 1;
                pending.bytes += stored_weight(key.as_bytes().len() - prefix_len, record.value_len());
            }
            Some(Decoded::Dirty { target, range }) => drop(state.target(&target).dirty.insert(range)),
            Some(Decoded::Damage { table, offset }) => drop(state.known_damage.insert((table, offset))),
            None => tracing::warn!(?key, "an entry among the hints that is none"),
        }
    }
    state.age = AgeClock::new(wall, oldest);
    Ok(state)
}

fn weight(key: &Key, record: &Record) -> u64 {
    stored_weight(key.as_bytes().len(), 1 + record.value_len())
}

/// [`weight`] of a hint that is stored already: one byte of its value says what its record is.
fn stored_weight(key_len: usize, value_len: usize) -> u64 {
    (key_len + value_len.saturating_sub(1)) as u64 + HINT_OVERHEAD
}

#[cfg(test)]
mod tests;
