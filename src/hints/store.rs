//! `HintStore`: an engine keyed by target and key, bounded per target.
//!
//! ```text
//! hint    key    varint len ++ target's name ++ user key        value    the record, encoded
//! dirty   key    0 ++ 'd' ++ varint len ++ target's name ++ range u16 big-endian        value    empty
//! ```
//!
//! A hint is stored as a *value* at the hinted record's own timestamp, whatever the record is: so a key's newer
//! hint replaces the older by the rule that all records follow, and a tombstone at the same timestamp deletes
//! exactly the hint that was delivered, and never a newer one.
//!
//! Counts and bytes per target are kept in memory, counted anew when the store is opened. They are exact once a
//! target's hints have all gone ([`HintStore::settle`]); before, a hint that replaced one on disk counts twice.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::engine::{self, Engine, Options, TombstonePolicy, WriteBatch};
use crate::env::{Clock, Env, Lane, Mistake, Planted};
use crate::types::{Key, KeyRange, NodeId, Record, Timestamp, Value};
use crate::util::coding::{Reader, put_bytes};
use crate::util::ticker::{Ticker, Ticks};

/// Memory that hints may take before they go to a table.
const MEMTABLE_SIZE: usize = 8 << 20;
/// Hints are read once, by the replayer: a cache for them is of little use.
const BLOCK_CACHE_SIZE: usize = 4 << 20;
/// Bytes of hints that may wait for their commit.
const QUEUE_BYTES_MAX: usize = 32 << 20;
/// What [`Record::encode`] puts before a value.
const RECORD_HEAD: usize = 9;
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

/// How hints are bounded, and how keys fall into ranges.
#[derive(Clone)]
pub struct Settings {
    /// Bytes of hints a target, at most.
    pub bytes_max: u64,
    /// How old a hint may grow.
    pub age_max: Duration,
    /// The ring's range of a key: what is marked dirty when its hint is dropped.
    pub range_of: RangeOf,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { bytes_max, age_max, .. } = self;
        f.debug_struct("Settings").field("bytes_max", bytes_max).field("age_max", age_max).finish()
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

/// Hints counted since the store was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HintStats {
    /// Made durable.
    pub stored: u64,
    /// Acknowledged by their targets.
    pub delivered: u64,
    /// Dropped at the cap, of old age, or because the target does not want them.
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
    clock: Arc<dyn Clock>,
    settings: Settings,
    planted: Planted,
    /// Counts whenever hints were stored: wakes the replayers.
    changes: Ticker,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    targets: BTreeMap<NodeId, TargetState>,
    stats: HintStats,
}

#[derive(Debug, Default)]
struct TargetState {
    pending: Pending,
    /// Counts stores begun, and those not ended yet: `settle` must not forget a hint that is on its way.
    begun: u64,
    in_flight: u64,
    /// What `begun` was before the last walk that ended with no hint left.
    settled: u64,
    dirty: Vec<u16>,
}

/// Says that no hint was on its way when it was taken ([`HintStore::settle`]).
#[derive(Debug, Clone, Copy)]
pub struct Quiet {
    begun: Option<u64>,
}

impl HintStore {
    /// Opens the hints' engine and counts what waits. Blocks.
    ///
    /// Damage costs hints, not the node: what is damaged is dropped and told in the log.
    pub fn open(env: &Env, dir: &Path, settings: Settings) -> Result<Self, engine::Error> {
        let options = Options {
            memtable_size: MEMTABLE_SIZE,
            block_cache_size: BLOCK_CACHE_SIZE,
            queue_bytes_max: QUEUE_BYTES_MAX,
            tombstones: TombstonePolicy::DropWhenUncovered,
            drop_damaged: true,
            commit_lane: Lane::Aside,
            ..Options::default()
        };
        let (engine, recovery) = Engine::open(env, dir, options)?;
        for line in &recovery.damage {
            tracing::warn!(damage = line, "hints lost to damage");
        }
        let state = count(&engine)?;
        let changes = Ticker::default();
        let shared = Shared {
            engine,
            clock: env.clock.clone(),
            settings,
            planted: env.planted,
            changes,
            state: Mutex::new(state),
        };
        Ok(Self { shared: Arc::new(shared) })
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
    #[allow(clippy::needless_pass_by_value)] // callers are done with them
    pub fn store(
        &self,
        target: &NodeId,
        items: Vec<(Key, Record)>,
    ) -> impl Future<Output = Result<(), Error>> + Send + 'static {
        let submitted = self.submit(target, &items);
        async move {
            match submitted?.await {
                Ok(outcome) => outcome,
                // The engine drops a completion only when it is torn down.
                Err(oneshot::error::RecvError { .. }) => Err(engine::Error::Closed.into()),
            }
        }
    }

    fn submit(
        &self,
        target: &NodeId,
        items: &[(Key, Record)],
    ) -> Result<oneshot::Receiver<Result<(), Error>>, Error> {
        let mut batch = WriteBatch::default();
        let mut added = Added::default();
        for (key, record) in items {
            let hint_key = hint_key(target, key)?;
            let bytes = weight(key, record);
            match self.shared.engine.try_get(&hint_key) {
                // It will lie hidden below the newer hint, or be the same again.
                Some(Ok(Some(Record::Value { timestamp, .. }))) if timestamp >= record.timestamp() => {}
                Some(Ok(Some(Record::Value { value, .. }))) => {
                    let replaced = stored_weight(key.as_bytes().len(), value.len());
                    added.bytes += bytes.cast_signed() - replaced.cast_signed();
                }
                _ => {
                    added.count += 1;
                    added.bytes += bytes.cast_signed();
                }
            }
            let mut encoded = Vec::with_capacity(record.encoded_len());
            record.encode(&mut encoded);
            batch.put(hint_key, Value::new(encoded), record.timestamp());
        }
        let stored = items.len() as u64;
        {
            let mut state = self.shared.state.lock();
            let waiting = state.target(target).pending.bytes;
            if waiting.saturating_add_signed(added.bytes) > self.shared.settings.bytes_max {
                state.stats.dropped += stored;
                drop(state);
                self.mark_dirty(target, items.iter().map(|(key, _)| key));
                return Err(Error::Full { target: target.clone(), bytes: waiting });
            }
            let counted = state.target(target);
            counted.pending.count += added.count;
            counted.pending.bytes = counted.pending.bytes.saturating_add_signed(added.bytes);
            counted.begun += 1;
            counted.in_flight += 1;
        }
        let (sender, receiver) = oneshot::channel();
        let (shared, target) = (Arc::downgrade(&self.shared), target.clone());
        let keys: Vec<Key> = items.iter().map(|(key, _)| key.clone()).collect();
        self.shared.engine.submit(
            batch,
            Box::new(move |outcome| {
                if let Some(shared) = shared.upgrade() {
                    shared.stored(&target, stored, added, outcome.is_ok());
                    if outcome.is_err() {
                        shared.lost(&target, &keys);
                    }
                }
                let _ = sender.send(outcome.map(drop).map_err(Error::from)); // the asker may have gone
            }),
        );
        Ok(receiver)
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
        self.shared.state.lock().targets.get(target).map(|state| state.dirty.clone()).unwrap_or_default()
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
        for item in self.shared.engine.scan(&range) {
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
        Ok(hints)
    }

    /// Whether a hint has outlived its use.
    pub fn is_too_old(&self, hint: &Hint) -> bool {
        let now = Timestamp::from_micros(self.shared.clock.wall_micros());
        now.since(hint.record.timestamp()) > self.shared.settings.age_max
    }

    /// Deletes hints that their target has acknowledged. A newer hint of the same key stays.
    pub fn delivered(
        &self,
        target: &NodeId,
        hints: &[Hint],
    ) -> impl Future<Output = Result<(), Error>> + Send + 'static {
        self.shared.state.lock().stats.delivered += hints.len() as u64;
        self.delete(target, hints)
    }

    /// Deletes hints that grew too old or that their target does not want, and marks their ranges dirty.
    pub fn discard(
        &self,
        target: &NodeId,
        hints: &[Hint],
    ) -> impl Future<Output = Result<(), Error>> + Send + 'static {
        self.shared.state.lock().stats.dropped += hints.len() as u64;
        self.mark_dirty(target, hints.iter().map(|hint| &hint.key));
        self.delete(target, hints)
    }

    fn delete(
        &self,
        target: &NodeId,
        hints: &[Hint],
    ) -> impl Future<Output = Result<(), Error>> + Send + 'static {
        let mut batch = WriteBatch::default();
        let mut gone = Pending::default();
        for hint in hints {
            let Ok(key) = hint_key(target, &hint.key) else { continue };
            let is_planted = self.shared.planted.has(Mistake::NewerHintDeletedWithOlder);
            let now = Timestamp::from_micros(self.shared.clock.wall_micros());
            batch.delete(key, if is_planted { now } else { hint.record.timestamp() });
            gone.count += 1;
            gone.bytes += weight(&hint.key, &hint.record);
        }
        {
            let mut state = self.shared.state.lock();
            let pending = &mut state.target(target).pending;
            pending.count = pending.count.saturating_sub(gone.count);
            pending.bytes = pending.bytes.saturating_sub(gone.bytes);
        }
        let (sender, receiver) = oneshot::channel();
        self.shared.engine.submit(batch, Box::new(move |outcome| drop(sender.send(outcome))));
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

    /// Notes, in memory at once and on disk soon, that hints of these keys were dropped.
    fn mark_dirty<'a>(&self, target: &NodeId, keys: impl Iterator<Item = &'a Key>) {
        let mut batch = WriteBatch::default();
        {
            let mut state = self.shared.state.lock();
            let dirty = &mut state.target(target).dirty;
            for key in keys {
                let range = (self.shared.settings.range_of)(key.as_bytes());
                if let Err(at) = dirty.binary_search(&range) {
                    dirty.insert(at, range);
                    if let Ok(key) = dirty_key(target, range) {
                        let now = Timestamp::from_micros(self.shared.clock.wall_micros());
                        batch.put(key, Value::default(), now);
                    }
                }
            }
        }
        if batch.is_empty() {
            return;
        }
        let target = target.clone();
        self.shared.engine.submit(
            batch,
            Box::new(move |outcome| {
                if let Err(error) = outcome {
                    tracing::warn!(%target, %error, "dirty range not noted on disk");
                }
            }),
        );
    }
}

impl Shared {
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

    /// Hints that the engine refused are gone: counted, and their ranges dirty as long as this process remembers.
    fn lost(&self, target: &NodeId, keys: &[Key]) {
        let mut state = self.state.lock();
        state.stats.dropped += keys.len() as u64;
        let dirty = &mut state.target(target).dirty;
        for key in keys {
            let range = (self.settings.range_of)(key.as_bytes());
            if let Err(at) = dirty.binary_search(&range) {
                dirty.insert(at, range);
            }
        }
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

/// Walks the whole store once.
fn count(engine: &Engine) -> Result<State, engine::Error> {
    let mut state = State::default();
    for item in engine.scan(&KeyRange::all()) {
        let (key, record) = item?;
        if record.is_tombstone() {
            continue;
        }
        match decode_key(&key) {
            Some(Decoded::Hint { target, prefix_len }) => {
                let pending = &mut state.target(&target).pending;
                pending.count += 1;
                pending.bytes += stored_weight(key.as_bytes().len() - prefix_len, record.value_len());
            }
            Some(Decoded::Dirty { target, range }) => state.target(&target).dirty.push(range),
            None => tracing::warn!(?key, "an entry among the hints that is none"),
        }
    }
    Ok(state)
}

enum Decoded {
    Hint { target: NodeId, prefix_len: usize },
    Dirty { target: NodeId, range: u16 },
}

fn decode_key(key: &Key) -> Option<Decoded> {
    let mut reader = Reader::new(key.as_bytes());
    let first = reader.text().ok()?;
    if !first.is_empty() {
        let prefix_len = key.as_bytes().len() - reader.rest().len();
        return Some(Decoded::Hint { target: NodeId::from_canonical(first), prefix_len });
    }
    let kind = reader.u8().ok()?;
    let target = NodeId::from_canonical(reader.text().ok()?);
    let range = u16::from_be_bytes(reader.take(2).ok()?.try_into().ok()?);
    (kind == b'd' && reader.is_empty()).then_some(Decoded::Dirty { target, range })
}

/// No target has an empty name, so dirty keys begin as no hint does.
fn dirty_key(target: &NodeId, range: u16) -> Result<Key, Error> {
    let mut bytes = vec![0, b'd'];
    put_bytes(&mut bytes, target.as_str().as_bytes());
    bytes.extend_from_slice(&range.to_be_bytes());
    Key::internal(bytes).map_err(|_| Error::KeyTooLong)
}

fn target_prefix(target: &NodeId) -> Vec<u8> {
    let mut bytes = Vec::new();
    put_bytes(&mut bytes, target.as_str().as_bytes());
    bytes
}

fn hint_key(target: &NodeId, key: &Key) -> Result<Key, Error> {
    let mut bytes = target_prefix(target);
    bytes.extend_from_slice(key.as_bytes());
    Key::internal(bytes).map_err(|_| Error::KeyTooLong)
}

fn decode_hint(prefix: &[u8], key: &Key, record: &Record) -> Option<Hint> {
    let user_key: Bytes = key.to_bytes().slice(prefix.len()..);
    let hinted = Record::decode(&record.as_value()?.to_bytes());
    if let (Ok(key), Ok(record)) = (Key::new(user_key), hinted) {
        return Some(Hint { key, record });
    }
    tracing::warn!(?key, "a hint that cannot be read");
    None
}

fn weight(key: &Key, record: &Record) -> u64 {
    stored_weight(key.as_bytes().len(), record.encoded_len())
}

/// [`weight`] of a hint that is stored already: the head of the encoded record counts as overhead.
fn stored_weight(key_len: usize, encoded_len: usize) -> u64 {
    (key_len + encoded_len.saturating_sub(RECORD_HEAD)) as u64 + HINT_OVERHEAD
}

#[cfg(test)]
mod tests;
