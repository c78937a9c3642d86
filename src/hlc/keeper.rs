//! `ClockKeeper`: keeps the clock's high-water mark on disk ahead of use.
//!
//! ```text
//! CLOCK    slot 0, 4 KiB │ slot 1, 4 KiB
//! slot     magic "KVCLOCK1" │ sequence u64 │ mark u64 │ crc32 u32 of all before it │ zeros
//! ```
//!
//! The slots are overwritten in turn, each write synced before its mark is used, so that a torn write leaves
//! the other slot: the last mark whose sync returned. Nothing is written while nobody asks for a timestamp.
//!
//! A write or sync that failed ends all ticks until the node is restarted: what is on disk is unknown then,
//! and a second sync proves nothing.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::Hlc;
use crate::env::{Env, Lane, Mistake, Pool, Vfs, VfsFile, vfs};
use crate::types::Timestamp;
use crate::util::coding::Reader;

const MAGIC: &[u8; 8] = b"KVCLOCK1";
/// A slot is one block, so that a torn write of one leaves the other whole.
const SLOT_LEN: u64 = 4096;
const SLOT_USED: usize = 28;
/// How many of the marks of this run are remembered: at most five are written a second.
const MARKS_KEPT: usize = 1024;

/// The clock's mark could not be made durable: no timestamps are given until the node is restarted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the clock's mark on disk could not be raised")]
pub struct MarkFailed;

/// Why the clock file could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The operating system refused.
    #[error("clock file {}", .path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Neither slot is whole, which no crash can do.
    #[error("clock file {} is damaged", .path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
    },
}

/// Gives timestamps below the mark that is on disk, and raises it in time. A clone is the same keeper.
#[derive(Debug, Clone)]
pub struct ClockKeeper {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    hlc: Arc<Hlc>,
    pool: Pool,
    file: Arc<dyn VfsFile>,
    /// The mark found on disk at the start.
    boot_mark: Timestamp,
    /// Wakes whoever waits for a higher limit.
    written: Notify,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    writing: bool,
    failed: bool,
    /// Of the slot written last.
    sequence: u64,
    /// The mark that is on disk.
    durable: Timestamp,
    /// Marks made durable since the start, the latest last.
    marks: VecDeque<Timestamp>,
}

/// What one slot says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// Counts the marks written.
    pub sequence: u64,
    /// The mark.
    pub mark: Timestamp,
}

/// Reads both slots of a clock file, `None` for one that is not whole, and changes nothing.
pub fn slots(env: &Env, path: &Path) -> io::Result<[Option<Slot>; 2]> {
    read_slots(&*env.fs.open(path)?)
}

/// Whether bytes begin as a clock file does, in one slot or the other.
pub fn is_clock(bytes: &[u8]) -> bool {
    [0, SLOT_LEN as usize].iter().any(|at| bytes.get(*at..).is_some_and(|slot| slot.starts_with(MAGIC)))
}

impl Slot {
    fn encode(self) -> [u8; SLOT_LEN as usize] {
        let mut bytes = [0; SLOT_LEN as usize];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..16].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.mark.as_u64().to_le_bytes());
        let crc = crc32fast::hash(&bytes[..24]);
        bytes[24..SLOT_USED].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8; SLOT_USED]) -> Option<Self> {
        let mut reader = Reader::new(bytes);
        let magic = reader.take(8).ok()?;
        let (sequence, mark) = (reader.u64().ok()?, reader.u64().ok()?);
        let crc = reader.u32().ok()?;
        let whole = magic == MAGIC && crc == crc32fast::hash(&bytes[..24]);
        whole.then(|| Self { sequence, mark: Timestamp::from_u64(mark) })
    }

    fn offset(self) -> u64 {
        (self.sequence % 2) * SLOT_LEN
    }
}

impl ClockKeeper {
    /// Opens the clock file, or makes one, and a clock that starts at its mark. Blocks.
    ///
    /// The name of a new file is durable once the caller has synced its directory.
    pub fn open(env: &Env, path: &Path, skew_max: std::time::Duration) -> Result<Self, OpenError> {
        let io = |source| OpenError::Io { path: path.to_owned(), source };
        let (file, slot) = if env.fs.exists(path).map_err(io)? {
            read(&*env.fs, path)?
        } else {
            create(&*env.fs, path, Timestamp::ZERO).map_err(io)?
        };
        let reused = env.planted.has(Mistake::TimestampReusedAfterRestart);
        let start = if reused { Timestamp::ZERO } else { slot.mark };
        let hlc = Arc::new(Hlc::new(env.clock.clone(), start, skew_max));
        if reused {
            hlc.raise_limit(Timestamp::MAX);
        }
        let state = State {
            writing: false,
            failed: false,
            sequence: slot.sequence,
            durable: slot.mark,
            marks: VecDeque::new(),
        };
        Ok(Self {
            shared: Arc::new(Shared {
                hlc,
                pool: env.pool.clone(),
                file,
                boot_mark: slot.mark,
                written: Notify::new(),
                state: Mutex::new(state),
            }),
        })
    }

    /// Makes a clock file that starts at `mark`: in place of one that is lost. Blocks.
    pub fn create(env: &Env, path: &Path, mark: Timestamp) -> io::Result<()> {
        create(&*env.fs, path, mark).map(drop)
    }

    /// The clock itself: for reading it and for moving past what messages carry.
    pub fn hlc(&self) -> &Arc<Hlc> {
        &self.shared.hlc
    }

    /// Gives the next timestamp, waiting for the mark on disk where need be. Cancel-safe.
    ///
    /// # Errors
    /// [`MarkFailed`]: this node takes no writes any more.
    pub async fn tick(&self) -> Result<Timestamp, MarkFailed> {
        loop {
            // Registered before the attempt, so that a mark written in between is not missed.
            let written = self.shared.written.notified();
            if self.has_failed() {
                return Err(MarkFailed);
            }
            if let Ok(timestamp) = self.shared.hlc.tick() {
                if self.shared.hlc.wants_mark() {
                    self.raise();
                }
                return Ok(timestamp);
            }
            self.raise(); // the limit is reached
            written.await;
        }
    }

    /// Starts to write the next mark, unless that is under way or has failed. Does not wait.
    pub fn raise(&self) {
        let slot = {
            let mut state = self.shared.state.lock();
            if state.writing || state.failed {
                return;
            }
            state.writing = true;
            // The clock may have been set back since, or stand still: a mark rises all the same, since peers tell
            // by it what this disk has lived through.
            let mark = self.shared.hlc.next_mark().max(state.durable.next());
            Slot { sequence: state.sequence + 1, mark }
        };
        let shared = self.shared.clone();
        self.shared.pool.submit(Lane::Aside, move || shared.write(slot));
    }

    /// Writes a last mark at a graceful stop and waits for it.
    pub async fn close(&self) -> Result<(), MarkFailed> {
        // Another one, not a higher one: a clock that was set back has no higher one to give.
        let before = self.sequence();
        loop {
            let written = self.shared.written.notified();
            if self.has_failed() {
                return Err(MarkFailed);
            }
            if self.sequence() > before {
                return Ok(());
            }
            self.raise();
            written.await;
        }
    }

    /// Whether a mark could not be written: no more timestamps are given.
    pub fn has_failed(&self) -> bool {
        self.shared.state.lock().failed
    }

    /// The mark that was on disk when the clock was opened.
    pub fn boot_mark(&self) -> Timestamp {
        self.shared.boot_mark
    }

    /// The mark that is on disk now.
    pub fn mark(&self) -> Timestamp {
        self.shared.state.lock().durable
    }

    fn sequence(&self) -> u64 {
        self.shared.state.lock().sequence
    }

    /// Whether `mark` is one of the latest that this run of the node has written.
    pub fn wrote(&self, mark: Timestamp) -> bool {
        self.shared.state.lock().marks.contains(&mark)
    }
}

impl Shared {
    /// Runs in the pool.
    fn write(&self, slot: Slot) {
        let outcome = self.file.write_at(&slot.encode(), slot.offset()).and_then(|()| self.file.sync());
        let mut state = self.state.lock();
        state.writing = false;
        match outcome {
            Ok(()) => {
                state.sequence = slot.sequence;
                state.durable = slot.mark;
                if state.marks.len() == MARKS_KEPT {
                    state.marks.pop_front();
                }
                state.marks.push_back(slot.mark);
                self.hlc.raise_limit(slot.mark);
            }
            // Not synced, so not in doubt: whoever waits for the mark asks for it again.
            Err(error) if vfs::is_passing(&error) => tracing::warn!(%error, "clock mark not written yet"),
            Err(error) => {
                state.failed = true;
                tracing::error!(%error, "clock mark not written: no more writes are taken");
            }
        }
        drop(state);
        self.written.notify_waiters();
    }
}

fn create(fs: &dyn Vfs, path: &Path, mark: Timestamp) -> io::Result<(Arc<dyn VfsFile>, Slot)> {
    let slot = Slot { sequence: 0, mark };
    // Under another name until it is whole, so that a crash leaves no clock file without a slot.
    let temporary = path.with_extension("tmp");
    if fs.exists(&temporary)? {
        fs.remove(&temporary)?;
    }
    let file = fs.create(&temporary)?;
    file.allocate(2 * SLOT_LEN)?;
    file.write_at(&slot.encode(), slot.offset())?;
    file.sync()?;
    fs.rename(&temporary, path)?;
    // The handle of before the rename is not used: a Vfs names its files by path.
    Ok((fs.open_write(path)?, slot))
}

fn read(fs: &dyn Vfs, path: &Path) -> Result<(Arc<dyn VfsFile>, Slot), OpenError> {
    let io = |source| OpenError::Io { path: path.to_owned(), source };
    let file = fs.open_write(path).map_err(io)?;
    let newest = read_slots(&*file).map_err(io)?.into_iter().flatten().max_by_key(|slot| slot.sequence);
    let slot = newest.ok_or_else(|| OpenError::Damaged { path: path.to_owned() })?;
    Ok((file, slot))
}

fn read_slots(file: &dyn VfsFile) -> io::Result<[Option<Slot>; 2]> {
    let mut slots = [None; 2];
    for (slot, offset) in slots.iter_mut().zip([0, SLOT_LEN]) {
        let mut bytes = [0; SLOT_USED];
        if file.read_at(&mut bytes, offset)? == SLOT_USED {
            *slot = Slot::decode(&bytes).filter(|slot| slot.offset() == offset);
        }
    }
    Ok(slots)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::ManualClock;
    use std::time::Duration;

    const SKEW: Duration = Duration::from_millis(500);

    fn env_at(micros: u64) -> (Arc<ManualClock>, Env, tempfile::TempDir) {
        let clock = Arc::new(ManualClock::at(micros));
        let env = Env { clock: clock.clone(), ..Env::real() };
        (clock, env, tempfile::tempdir().unwrap())
    }

    #[tokio::test]
    async fn no_timestamp_comes_twice_when_the_clock_is_set_back_over_a_restart() {
        let (clock, env, dir) = env_at(50_000_000);
        let path = dir.path().join("CLOCK");
        let keeper = ClockKeeper::open(&env, &path, SKEW).unwrap();
        let mut last = Timestamp::ZERO;
        for _ in 0..20 {
            clock.advance(100_000);
            let next = keeper.tick().await.unwrap();
            assert!(next > last && next < keeper.hlc().limit());
            last = next;
        }
        drop(keeper);
        clock.set(1);
        let keeper = ClockKeeper::open(&env, &path, SKEW).unwrap();
        assert!(keeper.boot_mark() > last);
        assert!(keeper.tick().await.unwrap() > last);
    }

    #[tokio::test]
    async fn a_keeper_whose_clock_was_set_back_can_be_closed() {
        // It once waited for a higher mark, which such a clock never gives: the simulation's node did not stop.
        let (clock, env, dir) = env_at(50_000_000);
        let keeper = ClockKeeper::open(&env, &dir.path().join("CLOCK"), SKEW).unwrap();
        keeper.tick().await.unwrap();
        clock.set(40_000_000);
        tokio::time::timeout(Duration::from_secs(10), keeper.close()).await.expect("it ends").unwrap();
    }

    #[tokio::test]
    async fn many_who_wait_for_the_mark_are_all_served_by_one_write() {
        let (_, env, dir) = env_at(50_000_000);
        let keeper = ClockKeeper::open(&env, &dir.path().join("CLOCK"), SKEW).unwrap();
        let ticks = futures_util::future::join_all((0..100).map(|_| keeper.tick())).await;
        let mut given: Vec<_> = ticks.into_iter().map(Result::unwrap).collect();
        given.dedup();
        assert_eq!(given.len(), 100);
        assert_eq!(keeper.shared.state.lock().sequence, 1);
    }

    #[tokio::test]
    async fn a_torn_slot_leaves_the_other_and_two_are_damage() {
        let (clock, env, dir) = env_at(50_000_000);
        let path = dir.path().join("CLOCK");
        let keeper = ClockKeeper::open(&env, &path, SKEW).unwrap();
        keeper.tick().await.unwrap();
        let first = keeper.mark();
        clock.advance(1_000_000);
        keeper.tick().await.unwrap();
        assert!(keeper.mark() > first);
        drop(keeper);

        let file = env.fs.open_write(&path).unwrap();
        file.write_at(b"torn", 16).unwrap(); // sequence 2 lies in slot 0
        let reopened = ClockKeeper::open(&env, &path, SKEW).unwrap();
        assert_eq!(reopened.boot_mark(), first);
        file.write_at(b"torn", SLOT_LEN).unwrap();
        assert!(matches!(ClockKeeper::open(&env, &path, SKEW), Err(OpenError::Damaged { .. })));
    }
}
