//! The commit job: takes a group of writers through append, sync and insert, and seals memtables.
//!
//! ```text
//! look at disk ─► pace ─► seal if full ─► stage, make room ─► append ─► sync ─► insert ─► done, done, done
//!    │no            │stop                     │no                 │failed
//!    ▼              ▼                         ▼                   ▼
//! NoSpace        parked: progress           NoSpace             Io; the engine is poisoned: all later writes
//! (deletes go    of the background                              are refused until it is opened anew. Not if a full
//! on for a while) kicks it again                                disk refused the append: then the log alone is given up
//! ```
//!
//! One job runs at a time (`CommitQueue`), and a job is one group. Nothing that failed is tried again for the same
//! writers: what a failed write or sync left on disk is unknown, and a second sync proves nothing.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::commit_queue::{GROUP_BYTES_MAX, Next, Write};
use super::db::{LOCK, Memory, Shared};
use super::memtable::Memtable;
use super::space::{Demand, Room};
use super::wal::writer::{LogWriter, NewLog};
use super::wal::{self, Opening};
use super::{Durability, Error, Written};
use crate::env::Mistake;

/// The log of the active memtable, and what came before it. Held by the commit job alone.
#[derive(Debug, Default)]
pub(super) struct Log {
    /// Absent until the first write after opening or sealing.
    pub writer: Option<LogWriter>,
    /// The log before: what the next one's opening frame says.
    pub last: Opening,
    /// A full disk refused an append: behind its end the log may hold a part of that group. It takes no more, and the
    /// opening frame of the next one says where it ended.
    pub is_spoilt: bool,
}

/// Sealed memtables that may wait for their flush before the next one must.
const SEALED_MAX: usize = 2;
/// From this multiple of `l0_files_max` on, groups are made smaller the further compaction is behind.
const SLOWDOWN_FACTOR: usize = 2;
/// At this multiple of `l0_files_max` writers wait until compaction has made progress.
const STOP_FACTOR: usize = 3;
/// A slowed-down group has at least this many bytes.
const SLOW_BYTES_MIN: usize = 16 << 10;

/// How fast writers may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pace {
    /// Groups of this many bytes.
    Go(usize),
    /// Groups of this few bytes: compaction is behind.
    Slow(usize),
    /// Not at all until a flush or a compaction is done.
    Stop,
}

/// Decides how fast writers may go.
fn pace(l0_files: usize, l0_files_max: usize, sealed: usize, is_full: bool) -> Pace {
    let slowdown = l0_files_max.max(1) * SLOWDOWN_FACTOR;
    if l0_files >= l0_files_max.max(1) * STOP_FACTOR || (is_full && sealed >= SEALED_MAX) {
        return Pace::Stop;
    }
    match l0_files.checked_sub(slowdown) {
        None => Pace::Go(GROUP_BYTES_MAX),
        Some(behind) => Pace::Slow((GROUP_BYTES_MAX >> (4 + behind.min(8))).max(SLOW_BYTES_MIN)),
    }
}

/// What a look at the disk says.
#[derive(Debug, Clone, Copy)]
pub(super) struct Look {
    /// Bytes free.
    pub free: u64,
    /// Bytes that must be free for all writes.
    needed: u64,
    room: Room,
}

impl Look {
    fn no_space(&self) -> Error {
        Error::NoSpace { free: self.free, needed: self.needed }
    }
}

fn refuse(group: Vec<Write>, error: &Error) {
    for write in group {
        (write.done)(Err(error.clone()));
    }
}

/// What a job has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// What it took from the queue is finished.
    Taken,
    /// Nothing: writers must wait for the background.
    Stalled,
}

impl Shared {
    /// Starts a commit of what is queued, unless one is running.
    pub fn kick(self: &Arc<Self>) {
        if self.queue.start() {
            self.hand_over_commit();
        }
    }

    fn hand_over_commit(self: &Arc<Self>) {
        let shared = self.clone();
        self.env.pool.submit(self.options.commit_lane, move || shared.commit_job());
    }

    fn commit_job(self: Arc<Self>) {
        match self.commit_next() {
            Step::Taken => {
                if self.queue.finish() {
                    self.hand_over_commit();
                }
            }
            Step::Stalled => {
                self.queue.park();
                // What ended before the line above found a job running and kicked nothing.
                if self.pace(self.is_full()) != Pace::Stop || !self.has_background_work() {
                    self.kick();
                }
            }
        }
    }

    fn commit_next(self: &Arc<Self>) -> Step {
        if let Some(error) = self.ended() {
            self.queue.refuse_all(&error);
            return Step::Taken;
        }
        match self.queue.peek() {
            Next::Nothing => Step::Taken,
            Next::Seal => {
                self.seal_on_request();
                Step::Taken
            }
            Next::Writes => self.commit_group(),
        }
    }

    fn commit_group(self: &Arc<Self>) -> Step {
        let look = match self.look_at_disk() {
            Ok(look) => look,
            Err(error) => {
                refuse(self.queue.take_group(GROUP_BYTES_MAX), &error);
                return Step::Taken;
            }
        };
        let refused = match look.room {
            Room::Plenty => Vec::new(),
            Room::DeletesOnly => self.queue.take_values(),
            Room::Nothing => self.queue.take_group(GROUP_BYTES_MAX),
        };
        if !refused.is_empty() {
            refuse(refused, &look.no_space());
            self.retry_held(look.free);
            self.give_up_recycled();
            self.flush_deletes();
        }
        match self.queue.peek() {
            Next::Writes if look.room != Room::Nothing => self.commit_within(&look),
            _ => Step::Taken,
        }
    }

    fn commit_within(self: &Arc<Self>, look: &Look) -> Step {
        let is_full = self.is_full(); // only this job fills and seals it
        let pace = self.pace(is_full);
        let was_throttled = self.health.throttled.swap(!matches!(pace, Pace::Go(_)), Ordering::Relaxed);
        if !was_throttled && !matches!(pace, Pace::Go(_)) {
            self.counters.throttles.fetch_add(1, Ordering::Relaxed);
        }
        let pace = match pace {
            Pace::Stop if self.has_background_work() => return Step::Stalled,
            Pace::Stop => self.pace(is_full), // what was running may have ended between the two looks: then there is room
            pace => pace,
        };
        let (Pace::Go(bytes_max) | Pace::Slow(bytes_max)) = pace else {
            // Nothing is running that could let these writers go on, so they must not wait. What failed is tried again for
            // those who come later.
            let group = self.queue.take_group(GROUP_BYTES_MAX);
            if self.background.lock().is_held_for_space() {
                refuse(group, &look.no_space());
                self.retry_held(look.free);
            } else {
                refuse(group, &Error::Busy { queued: self.queue.bytes() });
                self.resume_background();
            }
            return Step::Taken;
        };
        self.retry_held(look.free);
        self.write_group(bytes_max, is_full);
        Step::Taken
    }

    /// Somebody was refused for want of space: has deletes that are in memory alone take effect, unless work that makes
    /// room is under way. So the more is deleted meanwhile, the more each such round brings.
    fn flush_deletes(self: &Arc<Self>) {
        let memory = self.memory.load();
        if memory.active.tombstones() == 0 || !memory.sealed.is_empty() || self.has_background_work() {
            return;
        }
        if let Err(failure) = self.seal() {
            self.poison(&failure.error);
        }
    }

    pub fn pace(&self, is_full: bool) -> Pace {
        let sealed = self.memory.load().sealed.len();
        pace(self.versions.current().l0_files(), self.options.l0_files_max, sealed, is_full)
    }

    /// Whether the active memtable or its log has reached its size.
    fn is_full(&self) -> bool {
        let (log_len, is_spoilt) = {
            let log = self.log.lock();
            (log.writer.as_ref().map_or(0, LogWriter::written), log.is_spoilt)
        };
        let active = self.memory.load().active.clone();
        is_spoilt || (!active.is_empty() && (active.is_full() || log_len >= self.options.log_size_max()))
    }

    /// Looks at the disk, and keeps in mind what it says: whether it can be used, and which writes there is space for.
    ///
    /// # Errors
    /// The directory cannot be looked at: it is gone, say, or its file system takes no writes.
    pub fn look_at_disk(&self) -> Result<Look, Error> {
        let lock = self.dir.join(LOCK); // this directory's, and not what lies below a volume that is gone
        let looked = self.env.fs.free_space(&lock).map_err(|e| Error::io("ask for free space", &lock, e));
        let problem = looked.as_ref().err().map(Error::with_source);
        let before = std::mem::replace(&mut *self.health.disk_error.lock(), problem.clone());
        match (&before, &problem) {
            (None, Some(problem)) => {
                tracing::error!(error = problem, "the disk cannot be used: writes are refused");
            }
            (Some(_), None) => tracing::info!(dir = %self.dir.display(), "the disk can be used again"),
            _ => {}
        }
        let free = looked?;
        self.counters.note_free_space(free);
        let demand = self.demand();
        let deletes = self.health.deletes_taken.load(Ordering::Relaxed);
        let look = Look { free, needed: demand.for_values(), room: demand.room(free, deletes) };
        let is_out = look.room != Room::Plenty;
        if !is_out {
            self.health.deletes_taken.store(0, Ordering::Relaxed);
        }
        match (self.health.out_of_space.swap(is_out, Ordering::Relaxed), is_out) {
            (false, true) => tracing::error!(
                free,
                needed = look.needed,
                dir = %self.dir.display(),
                "out of space: values are refused, deletes are taken from a reserve"
            ),
            (true, false) => tracing::info!(free, dir = %self.dir.display(), "there is space again"),
            _ => {}
        }
        Ok(look)
    }

    /// The space that writes need now.
    fn demand(&self) -> Demand {
        Demand {
            memtable_size: self.options.memtable_size as u64,
            log_step: self.options.log_step(),
            in_memory: self.memory.load().tables().map(|memtable| memtable.record_bytes()).sum(),
            in_l0: self.versions.current().l0_bytes(),
        }
    }

    /// Takes a group all the way; seals what is full first.
    fn write_group(self: &Arc<Self>, bytes_max: usize, is_full: bool) {
        if is_full && let Err(failure) = self.seal() {
            return self.fail_group(self.queue.take_group(bytes_max), &failure);
        }
        let group = self.queue.take_group(bytes_max);
        if let Err(failure) = self.append_group(&group) {
            return self.fail_group(group, &failure);
        }
        let active = self.memory.load().active.clone();
        let written: Vec<Written> = group.iter().map(|write| self.insert(&active, write)).collect();
        if self.health.out_of_space.load(Ordering::Relaxed) {
            let bytes: usize = group.iter().map(|write| write.batch.weight()).sum();
            self.health.deletes_taken.fetch_add(bytes as u64, Ordering::Relaxed);
        }
        for (write, written) in group.into_iter().zip(written) {
            (write.done)(Ok(written));
        }
        if self.env.planted.has(Mistake::AckBeforeSync) {
            self.sync_later();
        }
    }

    /// Makes a group durable, as far as that was asked for.
    fn append_group(&self, group: &[Write]) -> Result<(), Failure> {
        let mut log = self.log.lock();
        let mut writer = match log.writer.take() {
            Some(writer) => writer,
            None => self.new_log(log.last)?,
        };
        for write in group.iter().filter(|write| !write.batch.is_empty()) {
            writer.stage(&write.batch);
        }
        if let Err(error) = writer.make_room() {
            writer.unstage();
            log.writer = Some(writer);
            return Err(self.in_making_room(error));
        }
        let bytes = match writer.append() {
            Ok(bytes) => bytes,
            // A part of the group may be in the file, and a crash before the next log is begun would bring it back: so
            // these writers are told that it is unknown. All before it is synced, and the next log says so.
            Err(error) if error.is_clean() => {
                writer.unstage();
                (log.writer, log.is_spoilt) = (Some(writer), true);
                return Err(Failure { error, is_fatal: false });
            }
            // The log is in an unknown state, so it is not put back.
            Err(error) => return Err(Failure::fatal(error)),
        };
        self.counters.wal_bytes.fetch_add(bytes, Ordering::Relaxed);
        let is_planted = self.env.planted.has(Mistake::AckBeforeSync);
        if bytes > 0 && self.options.durability == Durability::Synced && !is_planted {
            self.sync_timed(&mut writer).map_err(Failure::fatal)?;
        }
        log.writer = Some(writer);
        Ok(())
    }

    fn sync_timed(&self, writer: &mut LogWriter) -> Result<(), Error> {
        let began = self.env.clock.wall_micros();
        writer.sync()?;
        self.counters.sync_times.record(self.env.clock.wall_micros().saturating_sub(began));
        self.counters.wal_syncs.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// The planted mistake: the sync comes in a job of its own, after the acknowledgement.
    fn sync_later(self: &Arc<Self>) {
        let shared = self.clone();
        self.env.pool.submit(self.options.commit_lane, move || {
            if let Some(writer) = &mut shared.log.lock().writer {
                let _ = writer.sync(); // a mistake has no better answer
            }
        });
    }

    fn insert(&self, active: &Memtable, write: &Write) -> Written {
        let written = Written { overtaken: active.insert(write.batch.items()) };
        self.counters.batches_written.fetch_add(1, Ordering::Relaxed);
        self.counters.records_written.fetch_add(write.batch.items().len() as u64, Ordering::Relaxed);
        self.counters.overtaken.fetch_add(written.overtaken.len() as u64, Ordering::Relaxed);
        written
    }

    /// Tells a group that it failed. A fatal failure poisons the engine: whatever is queued is refused, too.
    fn fail_group(self: &Arc<Self>, group: Vec<Write>, failure: &Failure) {
        if failure.is_fatal {
            self.begin_poison();
        }
        for write in group {
            (write.done)(Err(failure.error.clone()));
        }
        if failure.is_fatal {
            self.poison(&failure.error);
        }
    }

    /// Begins the log of the active memtable.
    fn new_log(&self, opening: Opening) -> Result<LogWriter, Failure> {
        let number = self.memory.load().active.log_number();
        let begun = self.dir.join(wal::file_name(number));
        let recycled = self.background.lock().recycled.pop();
        let step = self.options.log_step();
        let new = NewLog { number, opening, step, recycled: recycled.as_deref() };
        match LogWriter::create(&self.env, &self.dir, &new) {
            Ok(writer) => {
                self.background.lock().logs.push(number);
                Ok(writer)
            }
            Err(error) => {
                // Best effort: they may fill a disk that is full as it is. Recovery skips what is left of a log that nothing
                // was written to.
                for path in std::iter::once(begun).chain(recycled) {
                    let _ = self.env.fs.remove(&path);
                }
                Err(self.in_making_room(error))
            }
        }
    }

    /// Nothing of a group was written; a full disk, or a shortage that may pass, is no reason to stop for good.
    fn in_making_room(&self, error: Error) -> Failure {
        if error.is_passing() {
            tracing::warn!(%error, "a group of writes was refused");
            return Failure { error, is_fatal: false };
        }
        if !error.is_no_space() {
            return Failure::fatal(error);
        }
        let free = self.counters.free_space().unwrap_or_default();
        Failure { error: Error::NoSpace { free, needed: self.demand().for_values() }, is_fatal: false }
    }

    /// Seals the active memtable, all of which is synced and inserted, and lets it be flushed. The next write
    /// begins a new log.
    fn seal(self: &Arc<Self>) -> Result<(), Failure> {
        {
            let mut log = self.log.lock();
            if let Some(mut writer) = log.writer.take() {
                if !writer.is_synced() {
                    self.sync_timed(&mut writer).map_err(Failure::fatal)?; // buffered: the next log will say so
                }
                log.last = Opening { previous: writer.number(), previous_end: writer.written() };
            }
            log.is_spoilt = false;
        }
        let (number, size) = (self.versions.new_file_number(), self.options.memtable_size);
        let fresh = Arc::new(Memtable::new(number, size, self.env.rng.u64()));
        {
            let _background = self.background.lock(); // the other one who changes `memory`
            let memory = self.memory.load();
            let sealed = std::iter::once(&memory.active).chain(&memory.sealed).cloned().collect();
            self.memory.store(Arc::new(Memory { active: fresh, sealed }));
        }
        self.advance_background();
        Ok(())
    }

    /// Seals what was written, if anything was, and has the waiters told once it is all in tables.
    fn seal_on_request(self: &Arc<Self>) {
        let waiters = self.queue.take_seals();
        if !self.memory.load().active.is_empty()
            && let Err(failure) = self.seal()
        {
            self.poison(&failure.error);
            for done in waiters {
                done(Err(failure.error.clone()));
            }
            return;
        }
        self.when_flushed(waiters);
    }
}

/// Why a group was not written.
#[derive(Debug)]
struct Failure {
    error: Error,
    /// Whether the engine must be opened anew before it writes again.
    is_fatal: bool,
}

impl Failure {
    /// What is on disk is unknown.
    fn fatal(error: Error) -> Self {
        Self { error, is_fatal: true }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writers_go_slower_the_further_compaction_is_behind_and_stop_in_the_end() {
        let at = |l0_files| pace(l0_files, 4, 0, false);
        assert_eq!(at(7), Pace::Go(GROUP_BYTES_MAX));
        let (Pace::Slow(first), Pace::Slow(last)) = (at(8), at(11)) else {
            panic!("slowed down from 8 to 11")
        };
        assert!(GROUP_BYTES_MAX > first && first > last && last >= SLOW_BYTES_MIN);
        assert_eq!(at(12), Pace::Stop);
    }

    #[test]
    fn a_full_memtable_waits_while_two_are_waiting_for_their_flush() {
        assert_eq!(pace(0, 4, 2, true), Pace::Stop);
        assert_eq!(pace(0, 4, 2, false), Pace::Go(GROUP_BYTES_MAX));
        assert_eq!(pace(0, 4, 1, true), Pace::Go(GROUP_BYTES_MAX));
    }
}
