//! Flushes and compactions: jobs of the pool, at most one of each at a time.
//!
//! ```text
//! sealed memtable ──flush──► table of level 0, in the manifest ──► its log is recycled, writers go on
//! version, score ≥ 1 ──pick──► run ──► new version, writers go on
//! ```
//!
//! Whatever ends here looks for the next thing to do, and kicks the commit queue, which may have been waiting.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Error;
use super::commit::Pace;
use super::commit_queue::FlushDone;
use super::db::{Memory, Shared};
use super::memtable::Memtable;
use super::version::Compaction;
use super::waiters::{Activity, Ready, Waiters};
use super::wal;
use crate::env::Lane;
use crate::types::Timestamp;

/// Logs kept to be used again.
const RECYCLED_MAX: usize = 2;
/// So many where space is short: the next log then takes none.
const RECYCLED_MAX_WHEN_SHORT: usize = 1;

/// What is going on beside the commits, who waits for it, and what ends it: all under one lock, so that no waiter can be
/// registered between the end of the work and the look that would have told it.
#[derive(Default)]
pub(super) struct Background {
    flush_running: bool,
    compaction_running: bool,
    /// The tables may have changed since a compaction was last looked for.
    compaction_due: bool,
    /// Keeps flushes from being begun after one that found no space.
    flush_hold: Hold,
    /// Keeps compactions from being begun after one that failed. Lifted when a flush has been done, too.
    compaction_hold: Hold,
    /// No more compactions: the engine is shutting down.
    is_stopping: bool,
    /// Why nothing is begun any more: the engine is poisoned or closed.
    ended: Option<Error>,
    /// Logs in the directory that hold what is not in tables, in order.
    pub logs: Vec<u64>,
    /// Files of logs that are in tables by now.
    pub recycled: Vec<PathBuf>,
    waiters: Waiters,
    /// Memtables that are in tables by now. Kept here so that their memory is freed in the background, and not by the
    /// last of their readers.
    retired: Vec<Arc<Memtable>>,
    /// A job is removing what readers have let go.
    cleanup_running: bool,
    /// How many records had been written when [`Shared::maintain`] was last called.
    records_written: u64,
    /// None were written between its last two calls.
    is_quiet: bool,
}

/// After this many failures in a row the looks between two tries are not doubled any more.
const DOUBLINGS_MAX: u32 = 6;

/// Keeps work of one kind from being begun after it failed, until a try is worth it: once there is as much space as it
/// is known to need, and then after a number of looks at the disk that doubles with each failure in a row.
#[derive(Debug, Default)]
struct Hold {
    held: Option<Held>,
    failures: u32,
}

#[derive(Debug)]
struct Held {
    error: Error,
    /// Free bytes before which no try is worth it.
    needed: u64,
    /// Looks at the disk since.
    looks: u32,
}

impl Hold {
    fn fail(&mut self, error: Error, needed: u64) {
        self.failures = self.failures.saturating_add(1);
        self.held = Some(Held { error, needed, looks: 0 });
    }

    fn succeed(&mut self) {
        *self = Self::default();
    }

    /// Lets it be tried, whatever the last failure was.
    fn lift(&mut self) {
        self.held = None;
    }

    /// Somebody has looked at the disk; says whether that lifts the hold.
    fn look(&mut self, free: u64) -> bool {
        let looks_needed = 1 << self.failures.saturating_sub(1).min(DOUBLINGS_MAX);
        let Some(held) = &mut self.held else { return false };
        held.looks = held.looks.saturating_add(1);
        let is_worth_it = free >= held.needed && held.looks >= looks_needed;
        if is_worth_it {
            self.held = None;
        }
        is_worth_it
    }

    fn error(&self) -> Option<&Error> {
        self.held.as_ref().map(|held| &held.error)
    }
}

/// The share of time for work that nobody waits for.
const SHARE_MIN: f64 = 0.125;

/// A flush has until the active memtable is full; with half of that gone it goes as fast as it can.
fn flush_share(is_awaited: bool, fill: f64) -> f64 {
    if is_awaited { 1.0 } else { (SHARE_MIN + 2.0 * fill * (1.0 - SHARE_MIN)).min(1.0) }
}

/// Compaction has until level 0 makes writers slow down, at twice `l0_files_max`; before that it doubles its share with
/// each table.
fn compaction_share(is_awaited: bool, l0_files: usize, l0_files_max: usize) -> f64 {
    let beyond = l0_files.saturating_sub(l0_files_max).min(3);
    if is_awaited || l0_files >= 2 * l0_files_max { 1.0 } else { SHARE_MIN * f64::from(1u32 << beyond) }
}

impl Background {
    fn is_idle(&self) -> bool {
        !self.flush_running && !self.compaction_running && !self.cleanup_running
    }

    /// Takes out the memtables that nobody reads any more.
    fn unread(&mut self) -> Vec<Arc<Memtable>> {
        self.retired
            .extract_if(.., |memtable| Arc::strong_count(memtable) == 1 && !memtable.is_read())
            .collect()
    }

    /// Has no flush begun before there are `needed` bytes.
    pub fn hold_flush(&mut self, error: Error, needed: u64) {
        self.flush_hold.fail(error, needed);
    }

    /// Whether flushes wait for space.
    pub fn is_flush_held(&self) -> bool {
        self.flush_hold.error().is_some()
    }

    /// Whether what is held back failed for want of space.
    pub fn is_held_for_space(&self) -> bool {
        let held = [self.flush_hold.error(), self.compaction_hold.error()];
        held.into_iter().flatten().any(Error::is_no_space)
    }

    /// Has the tables looked at for a compaction that is due.
    pub fn look_for_compaction(&mut self) {
        self.compaction_due = true;
    }

    /// Takes out whoever has nothing left to wait for. When a stop is over, nothing is begun any more.
    fn take_ready(&mut self, memory: &Memory) -> Vec<Ready> {
        if self.is_idle() && self.waiters.wants_stop() {
            self.ended.get_or_insert(Error::Closed);
        }
        let closed = self.is_stopping.then_some(&Error::Closed);
        let activity = Activity {
            oldest_sealed: memory.sealed.last().map(|oldest| oldest.log_number()),
            flushing: self.flush_running,
            compacting: self.compaction_running,
            cleaning: self.cleanup_running,
            flush_refused: self.ended.as_ref().or(self.flush_hold.error()),
            compaction_refused: self.ended.as_ref().or(closed).or(self.compaction_hold.error()),
        };
        self.waiters.take_ready(&activity)
    }
}

fn tell(ready: Vec<Ready>) {
    for (done, outcome) in ready {
        done(outcome);
    }
}

impl Shared {
    /// Begins what is due, and tells whoever has nothing left to wait for. Follows every change of what decides that.
    pub fn advance_background(self: &Arc<Self>) {
        let ready = {
            let mut background = self.background.lock();
            self.begin_due(&mut background);
            background.take_ready(&self.memory.load())
        };
        tell(ready);
    }

    fn begin_due(self: &Arc<Self>, background: &mut Background) {
        if background.ended.is_some() {
            return;
        }
        if !background.flush_running
            && background.flush_hold.held.is_none()
            && let Some(oldest) = self.memory.load().sealed.last().cloned()
        {
            background.flush_running = true;
            let shared = self.clone();
            self.env.pool.submit(Lane::Background, move || shared.flush_job(oldest));
        }
        let is_wanted = background.compaction_due || background.waiters.wants_compaction();
        if is_wanted
            && !background.compaction_running
            && background.compaction_hold.held.is_none()
            && !background.is_stopping
        {
            background.compaction_running = true;
            background.compaction_due = false;
            let served = background.waiters.take_compact();
            let shared = self.clone();
            self.env.pool.submit(Lane::Background, move || shared.compaction_job(served));
        }
    }

    /// Whether a flush or a compaction is running or has just been begun: whoever waits for progress will see some.
    pub fn has_background_work(self: &Arc<Self>) -> bool {
        self.advance_background();
        !self.background.lock().is_idle()
    }

    /// Tries again what failed.
    pub fn resume_background(self: &Arc<Self>) {
        {
            let mut background = self.background.lock();
            background.flush_hold.lift();
            background.compaction_hold.lift();
            background.compaction_due = true;
        }
        self.advance_background();
    }

    /// Tries again what failed, where a disk with `free` bytes makes that worth it.
    pub fn retry_held(self: &Arc<Self>, free: u64) {
        let is_lifted = {
            let mut background = self.background.lock();
            let flush = background.flush_hold.look(free);
            let compaction = background.compaction_hold.look(free);
            background.compaction_due |= compaction;
            flush || compaction
        };
        if is_lifted {
            self.advance_background();
        }
    }

    /// Why writes are refused for good, if they are.
    pub fn ended(&self) -> Option<Error> {
        self.background.lock().ended.clone()
    }

    /// Does in the background what no write asks for: lets go what readers held on to, what has expired, and what was deleted.
    pub fn maintain(self: &Arc<Self>) {
        {
            let mut background = self.background.lock();
            let written = self.counters.records_written.load(Ordering::Relaxed);
            background.is_quiet = written == background.records_written && self.queue.bytes() == 0;
            background.records_written = written;
            background.compaction_due = true; // time passes: values expire
            let has_garbage = self.versions.has_obsolete()
                || !background.retired.is_empty()
                || (background.is_quiet && !background.recycled.is_empty());
            if has_garbage && !background.cleanup_running && !background.is_stopping {
                background.cleanup_running = true;
                let shared = self.clone();
                self.env.pool.submit(Lane::Background, move || shared.cleanup_job());
            }
        }
        self.advance_background();
    }

    fn cleanup_job(self: Arc<Self>) {
        self.versions.remove_obsolete();
        self.free_memtables();
        let is_short = self.health.out_of_space.load(Ordering::Relaxed); // then the next log must find its space here
        let unused = {
            let mut background = self.background.lock();
            if background.is_quiet && !is_short {
                std::mem::take(&mut background.recycled)
            } else {
                Vec::new()
            }
        };
        for path in unused {
            self.remove_log(&path);
        }
        self.background.lock().cleanup_running = false;
        self.after_background();
    }

    /// Frees the memory of memtables that nobody reads any more.
    fn free_memtables(&self) {
        let unread = self.background.lock().unread();
        drop(unread); // without the lock: an arena of many blocks takes a while
    }

    fn flush_job(self: Arc<Self>, memtable: Arc<Memtable>) {
        let log_number_after = {
            let memory = self.memory.load();
            let newer = memory.sealed.iter().rev().nth(1).unwrap_or(&memory.active);
            newer.log_number()
        };
        let result = self.versions.flush(&mut memtable.entries(), log_number_after, &|| self.flush_share());
        match &result {
            Ok(()) => self.take_flushed(&memtable, log_number_after),
            Err(error) => self.on_flush_error(error, memtable.record_bytes()),
        }
        drop(memtable);
        self.free_memtables();
        self.background.lock().flush_running = false;
        self.after_background();
    }

    /// How much of its thread's time a flush may take now: more as the active memtable fills.
    fn flush_share(&self) -> f64 {
        let is_awaited = {
            let background = self.background.lock();
            background.is_stopping || background.waiters.wants_flush()
        };
        let memory = self.memory.load();
        let fill = memory.active.bytes() as f64 / self.options.memtable_size.max(1) as f64;
        flush_share(is_awaited || memory.sealed.len() > 1, fill)
    }

    /// How much of its thread's time a compaction may take now: more as tables gather in level 0.
    fn compaction_share(&self, is_awaited: bool) -> f64 {
        let is_awaited = is_awaited || self.background.lock().waiters.wants_compaction();
        compaction_share(is_awaited, self.versions.current().l0_files(), self.options.l0_files_max)
    }

    /// Lets go of a memtable that is in a table by now, and of its log.
    fn take_flushed(&self, memtable: &Arc<Memtable>, log_number_after: u64) {
        self.counters.flushes.fetch_add(1, Ordering::Relaxed);
        let obsolete: Vec<u64> = {
            let mut background = self.background.lock();
            let memory = self.memory.load();
            background.flush_hold.succeed();
            background.compaction_hold.lift();
            background.compaction_due = true;
            let sealed =
                memory.sealed.iter().filter(|other| !Arc::ptr_eq(other, memtable)).cloned().collect();
            background.retired.push(memtable.clone()); // first, so that it is never held by readers alone
            self.memory.store(Arc::new(Memory { active: memory.active.clone(), sealed }));
            background.logs.extract_if(.., |number| *number < log_number_after).collect()
        };
        for number in obsolete {
            self.recycle(number);
        }
    }

    /// Keeps the file of a log for the next one, or removes it.
    fn recycle(&self, number: u64) {
        let path = self.dir.join(wal::file_name(number));
        let is_usual = self.env.fs.open(&path).and_then(|file| file.len()).is_ok_and(|len| {
            len <= self.options.log_size_max() + self.options.log_step() // one that a huge batch grew is let go
        });
        {
            let mut background = self.background.lock();
            if is_usual && background.recycled.len() < self.recycled_max() && !background.is_stopping {
                background.recycled.push(path);
                return;
            }
        }
        self.remove_log(&path);
    }

    fn remove_log(&self, path: &Path) {
        if let Err(error) = self.env.fs.remove(path) {
            tracing::warn!(path = %path.display(), %error, "an obsolete log stays until the engine is opened again");
        }
    }

    fn recycled_max(&self) -> usize {
        let is_short = self.health.out_of_space.load(Ordering::Relaxed);
        if is_short { RECYCLED_MAX_WHEN_SHORT } else { RECYCLED_MAX }
    }

    /// Space is short: removes the files of old logs that are kept beyond need.
    pub fn give_up_recycled(&self) {
        let given_up = {
            let mut background = self.background.lock();
            let kept = background.recycled.len().min(self.recycled_max());
            background.recycled.split_off(kept)
        };
        for path in given_up {
            let _ = self.env.fs.remove(&path); // else it stays until the engine is opened again
        }
    }

    /// Picks a compaction and runs it. For those whom it is to serve it is one of everything, once: what is written
    /// meanwhile is not theirs to wait for.
    fn compaction_job(self: Arc<Self>, served: Vec<FlushDone>) {
        let picked = if served.is_empty() { self.pick_compaction() } else { self.versions.pick_all() };
        let is_picked = picked.is_some();
        let result = match picked {
            Some(compaction) => {
                let share = || self.compaction_share(!served.is_empty());
                self.versions.run(compaction, &|| self.oldest_in_memory(), &share)
            }
            None if self.background.lock().is_stopping => Err(Error::Closed),
            None => Ok(()),
        };
        if let Err(error) = &result {
            self.on_compaction_error(error);
        }
        {
            let mut background = self.background.lock();
            if result.is_ok() && is_picked {
                background.compaction_hold.succeed();
            }
            background.compaction_running = false;
            background.compaction_due |= is_picked || !served.is_empty();
        }
        self.after_background();
        for done in served {
            done(result.clone());
        }
    }

    fn pick_compaction(&self) -> Option<Compaction> {
        let is_short = self.health.out_of_space.load(Ordering::Relaxed);
        let is_quiet = self.background.lock().is_quiet;
        let picked = self.versions.pick(self.oldest_in_memory(), is_quiet);
        picked.or_else(|| if is_short { self.versions.pick_for_space() } else { None })
    }

    /// The oldest timestamp of what is in memory or on its way there.
    fn oldest_in_memory(&self) -> Option<Timestamp> {
        let queued = self.queue.oldest(); // first: from there records go to memory, and none goes back
        let memory = self.memory.load();
        let in_memory = memory.tables().filter_map(|memtable| memtable.oldest());
        in_memory.chain(queued).min()
    }

    /// A full disk may have room later, and a shortage of descriptors may pass; anything else makes what is durable
    /// doubtful.
    fn on_flush_error(self: &Arc<Self>, error: &Error, needed: u64) {
        if error.is_no_space() {
            tracing::warn!(%error, needed, dir = %self.dir.display(), "a flush waits for space");
            self.background.lock().hold_flush(error.clone(), needed);
        } else if error.is_passing() {
            tracing::warn!(%error, dir = %self.dir.display(), "a flush failed, and is tried again");
            self.background.lock().hold_flush(error.clone(), 0);
        } else {
            self.poison(error);
        }
    }

    /// The inputs of a compaction that failed stay where they are, so only a failed manifest is a reason to stop
    /// writing; damaged inputs are not picked again, and reads tell who meets the damage.
    fn on_compaction_error(self: &Arc<Self>, error: &Error) {
        match error {
            Error::Closed => {}
            Error::Poisoned => self.poison(error),
            // Damage is worked around at once.
            Error::Corruption { .. } => {
                tracing::error!(%error, dir = %self.dir.display(), "a compaction failed");
            }
            error => {
                if error.is_no_space() {
                    tracing::warn!(%error, dir = %self.dir.display(), "a compaction waits for space");
                } else {
                    tracing::error!(%error, dir = %self.dir.display(), "a compaction failed");
                }
                let needed = if let Error::NoSpace { needed, .. } = error { *needed } else { 0 };
                self.background.lock().compaction_hold.fail(error.clone(), needed);
            }
        }
    }

    /// A job has ended: begins what is due now, tells who waited for that, and lets writers go on.
    fn after_background(self: &Arc<Self>) {
        self.advance_background();
        let is_full = self.memory.load().active.is_full();
        if matches!(self.pace(is_full), Pace::Go(_)) {
            self.health.throttled.store(false, Ordering::Relaxed);
        }
        if self.health.out_of_space.load(Ordering::Relaxed) {
            let _ = self.look_at_disk(); // it may have made room; what goes wrong is noted there
        }
        self.kick();
    }

    /// Has `waiters` told once all memtables that are sealed now are in tables.
    pub fn when_flushed(self: &Arc<Self>, waiters: Vec<FlushDone>) {
        {
            let mut background = self.background.lock();
            background.flush_hold.lift(); // whoever asks for a flush wants it tried
            let newest = self.memory.load().sealed.first().map_or(0, |newest| newest.log_number());
            for done in waiters {
                background.waiters.add_flush(newest, done);
            }
        }
        self.advance_background();
    }

    /// Has `done` told once everything that is in tables now has been compacted into one level.
    pub fn when_compacted(self: &Arc<Self>, done: FlushDone) {
        {
            let mut background = self.background.lock();
            background.compaction_hold.lift(); // as above
            background.waiters.add_compact(done);
        }
        self.advance_background();
    }

    /// Ends compactions, and has `done` told once nothing runs any more and nothing will be begun.
    pub fn stop_background(self: &Arc<Self>, done: FlushDone) {
        self.versions.stop();
        {
            let mut background = self.background.lock();
            background.is_stopping = true;
            background.waiters.add_stop(done);
        }
        self.advance_background();
    }

    /// Refuses all writes from now on: what is durable is unknown. Reads go on.
    pub fn poison(self: &Arc<Self>, error: &Error) {
        self.begin_poison();
        tracing::error!(%error, dir = %self.dir.display(), "writes are refused until the engine is opened anew");
        self.advance_background();
        self.queue.refuse_all(&Error::Poisoned);
    }

    /// The first half of [`Shared::poison`]: whoever is told of a failure from now on sees it.
    pub fn begin_poison(&self) {
        let mut background = self.background.lock();
        background.ended.get_or_insert(Error::Poisoned);
        self.health.poisoned.store(true, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::path::Path;
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;
    use crate::engine::{Engine, Options, WriteBatch};
    use crate::env::vfs_fault::{Op, Operation, Verdict};
    use crate::env::{Env, FaultVfs, MemVfs};
    use crate::types::{Key, Record, Value};

    /// A completion, and the one outcome that it is called with; panics if it is not called within a minute.
    fn awaited() -> (FlushDone, impl FnOnce() -> Result<(), Error>) {
        let (sender, receiver) = mpsc::channel();
        let told = move || receiver.recv_timeout(Duration::from_secs(60)).expect("every waiter is told");
        (Box::new(move |outcome| sender.send(outcome).unwrap()), told)
    }

    fn no_space_for_tables(operation: &Operation<'_>) -> Verdict {
        let is_table = operation.op == Op::Create
            && operation.path.extension().is_some_and(|extension| extension == "tmp");
        if is_table { Verdict::Fail(ErrorKind::StorageFull) } else { Verdict::Pass }
    }

    /// An engine on real threads that has a record in memory, and whose tables find no space.
    fn engine_without_space() -> (Engine, FaultVfs) {
        let faults = FaultVfs::new(Arc::new(MemVfs::new()));
        let env = Env { fs: Arc::new(faults.clone()), ..Env::real() };
        let (engine, _) = Engine::open(&env, Path::new("/engine"), Options::default()).unwrap();
        write(&engine, 1);
        faults.set_rule(no_space_for_tables);
        (engine, faults)
    }

    fn write(engine: &Engine, number: u64) {
        let record = Record::value(Timestamp::from_u64(number), Value::new("v"));
        engine.write(WriteBatch::one(Key::new(format!("key-{number}")).unwrap(), record)).unwrap();
    }

    /// A flush that found the engine healthy registered its waiter after the engine had been poisoned and had told all
    /// waiters: nobody told this one, and `flush`, `checkpoint` and `shutdown` never returned.
    #[test]
    fn a_waiter_that_is_registered_after_the_engine_was_poisoned_is_told() {
        let (engine, _faults) = engine_without_space();
        assert!(engine.flush().unwrap_err().is_no_space());
        engine.shared.poison(&Error::Poisoned);
        let (flushed, flush_outcome) = awaited();
        engine.shared.when_flushed(vec![flushed]);
        assert!(matches!(flush_outcome(), Err(Error::Poisoned)));
        let (compacted, compact_outcome) = awaited();
        engine.shared.when_compacted(compacted);
        assert!(matches!(compact_outcome(), Err(Error::Poisoned)));
        assert!(matches!(engine.close(), Err(Error::Poisoned)));
        engine.close().unwrap();
    }

    #[test]
    fn without_space_a_flush_and_a_compaction_say_so_until_there_is_some() {
        let (engine, faults) = engine_without_space();
        assert!(engine.flush().unwrap_err().is_no_space());
        assert!(engine.compact().unwrap_err().is_no_space());
        faults.clear_rule();
        engine.compact().unwrap();
        for number in 2..5 {
            write(&engine, number);
            engine.flush().unwrap();
        }
        faults.set_rule(no_space_for_tables);
        let error = engine.compact().expect_err("nothing was compacted");
        assert!(error.is_no_space(), "{error}");
        faults.clear_rule();
        engine.compact().unwrap();
        assert_eq!(engine.stats().level_files.iter().sum::<usize>(), 1);
        engine.close().unwrap();
    }

    #[test]
    fn after_a_close_nothing_is_begun_in_the_directory_and_everybody_is_told() {
        let (engine, faults) = engine_without_space();
        assert!(engine.close().unwrap_err().is_no_space(), "it is in the log");
        faults.clear_rule();
        let before = faults.operations();
        assert!(matches!(engine.flush(), Err(Error::Closed)));
        assert!(matches!(engine.compact(), Err(Error::Closed)));
        assert!(matches!(engine.checkpoint(Path::new("/copy")), Err(Error::Closed)));
        engine.close().unwrap();
        assert_eq!(faults.operations(), before);
    }

    /// Compacting everything was repeated until nothing newer was in the way: for ever beside a writer, and for ever with
    /// one older record in memory, because of which no tombstone could go.
    #[test]
    fn compacting_everything_is_done_once_for_each_who_asks() {
        let faults = FaultVfs::new(Arc::new(MemVfs::new()));
        let env = Env { fs: Arc::new(faults), ..Env::real() };
        let options =
            Options { tombstones: crate::engine::TombstonePolicy::DropWhenUncovered, ..Options::default() };
        let (engine, _) = Engine::open(&env, Path::new("/engine"), options).unwrap();
        let at = |timestamp| Timestamp::from_u64(timestamp);
        engine.put(Key::new("a").unwrap(), Value::new("v"), at(5)).unwrap();
        engine.delete(Key::new("a").unwrap(), at(10)).unwrap();
        engine.flush().unwrap();
        engine.put(Key::new("b").unwrap(), Value::new("v"), at(1)).unwrap(); // stays in memory, and is older
        let (compacted, outcome) = awaited();
        engine.shared.when_compacted(compacted);
        outcome().unwrap();
        assert!(engine.stats().compactions <= 2, "{:?}", engine.stats());
        engine.close().unwrap();
    }

    #[test]
    fn what_failed_is_tried_again_once_there_is_space_and_ever_less_often() {
        let mut hold = Hold::default();
        let tries = |hold: &mut Hold, free: u64| (0..200).filter(|_| hold.look(free)).count();
        assert_eq!(tries(&mut hold, 100), 0, "nothing is held");
        hold.fail(Error::Poisoned, 50);
        assert_eq!((tries(&mut hold, 49), tries(&mut hold, 50)), (0, 1));
        let looks = |hold: &mut Hold| {
            hold.fail(Error::Poisoned, 0);
            (1..1_000).find(|_| hold.look(0)).unwrap()
        };
        assert_eq!([0; 7].map(|_| looks(&mut hold)), [2, 4, 8, 16, 32, 64, 64]);
        hold.succeed();
        assert_eq!(looks(&mut hold), 1);
    }

    fn eighths(share: f64) -> u32 {
        (share * 8.0).round() as u32
    }

    #[test]
    fn a_flush_takes_more_time_the_fuller_the_memtable_after_it() {
        let shares = [0.0, 0.25, 0.5, 2.0].map(|fill| eighths(flush_share(false, fill)));
        assert_eq!(shares, [1, 5, 8, 8]);
        assert_eq!(eighths(flush_share(true, 0.0)), 8);
    }

    #[test]
    fn a_compaction_takes_all_the_time_before_writers_must_slow_down() {
        let shares: Vec<_> = (0..=8).map(|tables| eighths(compaction_share(false, tables, 4))).collect();
        assert_eq!(shares, [1, 1, 1, 1, 1, 2, 4, 8, 8]);
        assert_eq!(eighths(compaction_share(false, 2, 1)), 8);
        assert_eq!(eighths(compaction_share(true, 0, 4)), 8);
    }
}
