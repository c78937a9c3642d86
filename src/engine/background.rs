//! Flushes and compactions: jobs of the pool, at most one of each at a time.
//!
//! ```text
//! sealed memtable ──flush──► table of level 0, in the manifest ──► its log is recycled, writers go on
//! version, score ≥ 1 ──pick──► run ──► new version, writers go on
//! ```
//!
//! Whatever ends here looks for the next thing to do, and kicks the commit queue, which may have been waiting.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Error;
use super::commit_queue::FlushDone;
use super::db::{Memory, Shared};
use super::memtable::Memtable;
use super::version::Compaction;
use super::wal;
use crate::env::Lane;
use crate::types::Timestamp;

/// Logs kept to be used again.
const RECYCLED_MAX: usize = 2;

/// What is going on beside the commits.
#[derive(Default)]
pub(super) struct Background {
    pub flush_running: bool,
    pub compaction_running: bool,
    /// A flush or a compaction failed for want of space: none is begun until there is some.
    pub is_paused: bool,
    /// A compaction failed: none is begun before a flush has been done, or writers were refused for want of one.
    pub compaction_failed: bool,
    /// No more compactions: the engine is shutting down.
    pub is_stopping: bool,
    /// Logs in the directory that hold what is not in tables, in order.
    pub logs: Vec<u64>,
    /// Files of logs that are in tables by now.
    pub recycled: Vec<PathBuf>,
    /// Told once the memtable of this log, and all before it, is in tables.
    flush_waiters: Vec<(u64, FlushDone)>,
    /// Told once no key lies in two levels any more.
    compact_waiters: Vec<FlushDone>,
    /// Told once nothing runs any more.
    stop_waiters: Vec<Box<dyn FnOnce() + Send>>,
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
        !self.flush_running && !self.compaction_running
    }
}

impl Shared {
    /// Begins the flush and the compaction that are due, unless they run already.
    pub fn schedule_background(self: &Arc<Self>) {
        let mut background = self.background.lock();
        if background.is_paused || self.health.poisoned.load(Ordering::Acquire) {
            return;
        }
        if !background.flush_running
            && let Some(oldest) = self.memory.load().sealed.last().cloned()
        {
            background.flush_running = true;
            let shared = self.clone();
            self.env.pool.submit(Lane::Background, move || shared.flush_job(&oldest));
        }
        if !background.compaction_running && !background.compaction_failed && !background.is_stopping {
            self.schedule_compaction(&mut background);
        }
    }

    fn schedule_compaction(self: &Arc<Self>, background: &mut Background) {
        let wants_all = !background.compact_waiters.is_empty();
        let picked = if wants_all { self.versions.pick_all() } else { self.versions.pick() };
        if let Some(compaction) = picked {
            background.compaction_running = true;
            let shared = self.clone();
            self.env.pool.submit(Lane::Background, move || shared.compaction_job(compaction));
        }
    }

    /// Whether a flush or a compaction is running or can be begun: whoever waits for progress will see some.
    pub fn has_background_work(self: &Arc<Self>) -> bool {
        self.schedule_background();
        !self.background.lock().is_idle()
    }

    /// Tries again what failed.
    pub fn resume_background(self: &Arc<Self>) {
        {
            let mut background = self.background.lock();
            background.is_paused = false;
            background.compaction_failed = false;
        }
        self.schedule_background();
    }

    fn flush_job(self: Arc<Self>, memtable: &Arc<Memtable>) {
        let log_number_after = {
            let memory = self.memory.load();
            let newer = memory.sealed.iter().rev().nth(1).unwrap_or(&memory.active);
            newer.log_number()
        };
        let result = self.versions.flush(&mut memtable.entries(), log_number_after, &|| self.flush_share());
        match &result {
            Ok(()) => self.take_flushed(memtable, log_number_after),
            Err(error) => self.on_flush_error(error),
        }
        let told = {
            let mut background = self.background.lock();
            background.flush_running = false;
            let log = memtable.log_number();
            let is_told = |waiter: &mut (u64, FlushDone)| result.is_err() || waiter.0 <= log;
            background.flush_waiters.extract_if(.., is_told).collect::<Vec<_>>()
        };
        self.after_background();
        for (_, done) in told {
            done(result.clone());
        }
    }

    /// How much of its thread's time a flush may take now: more as the active memtable fills.
    fn flush_share(&self) -> f64 {
        let is_awaited = {
            let background = self.background.lock();
            background.is_stopping || !background.flush_waiters.is_empty()
        };
        let memory = self.memory.load();
        let fill = memory.active.bytes() as f64 / self.options.memtable_size.max(1) as f64;
        flush_share(is_awaited || memory.sealed.len() > 1, fill)
    }

    /// How much of its thread's time a compaction may take now: more as tables gather in level 0.
    fn compaction_share(&self) -> f64 {
        let is_awaited = !self.background.lock().compact_waiters.is_empty();
        compaction_share(is_awaited, self.versions.current().l0_files(), self.options.l0_files_max)
    }

    /// Lets go of a memtable that is in a table by now, and of its log.
    fn take_flushed(&self, memtable: &Arc<Memtable>, log_number_after: u64) {
        self.counters.flushes.fetch_add(1, Ordering::Relaxed);
        let obsolete: Vec<u64> = {
            let mut background = self.background.lock();
            let memory = self.memory.load();
            background.compaction_failed = false;
            let sealed =
                memory.sealed.iter().filter(|other| !Arc::ptr_eq(other, memtable)).cloned().collect();
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
            if is_usual && background.recycled.len() < RECYCLED_MAX && !background.is_stopping {
                background.recycled.push(path);
                return;
            }
        }
        if let Err(error) = self.env.fs.remove(&path) {
            tracing::warn!(path = %path.display(), %error, "an obsolete log stays until the engine is opened again");
        }
    }

    fn compaction_job(self: Arc<Self>, compaction: Compaction) {
        let result = self.versions.run(compaction, &|| self.oldest_in_memory(), &|| self.compaction_share());
        if let Err(error) = &result {
            self.on_compaction_error(error);
        }
        let told = {
            let mut background = self.background.lock();
            background.compaction_running = false;
            if result.is_err() { std::mem::take(&mut background.compact_waiters) } else { Vec::new() }
        };
        self.after_background();
        for done in told {
            done(result.clone());
        }
    }

    /// The oldest timestamp of what is in memory or on its way there.
    fn oldest_in_memory(&self) -> Option<Timestamp> {
        let queued = self.queue.oldest(); // first: from there records go to memory, and none goes back
        let memory = self.memory.load();
        let in_memory = memory.tables().filter_map(|memtable| memtable.oldest());
        in_memory.chain(queued).min()
    }

    /// A full disk may have room later; anything else makes what is durable doubtful.
    fn on_flush_error(&self, error: &Error) {
        if error.is_no_space() {
            self.wait_for_space("flush", error);
        } else {
            self.poison(error);
        }
    }

    /// The inputs of a compaction that failed stay where they are, so only a failed manifest is a reason to stop
    /// writing; damaged inputs are not picked again, and reads tell who meets the damage.
    fn on_compaction_error(&self, error: &Error) {
        match error {
            Error::Closed => {}
            Error::Poisoned => self.poison(error),
            error if error.is_no_space() => self.wait_for_space("compaction", error),
            error => {
                tracing::error!(%error, dir = %self.dir.display(), "a compaction failed");
                // Damage is worked around at once; whatever else it was may still be so.
                self.background.lock().compaction_failed = !matches!(error, Error::Corruption { .. });
            }
        }
    }

    fn wait_for_space(&self, what: &'static str, error: &Error) {
        tracing::warn!(%error, what, "waiting for space");
        self.background.lock().is_paused = true;
        self.health.out_of_space.store(true, Ordering::Relaxed);
    }

    /// A job has ended: begins what is due now, and tells who waited for that.
    fn after_background(self: &Arc<Self>) {
        self.schedule_background();
        let (compacted, stopped) = {
            let mut background = self.background.lock();
            let is_compacted = !background.compaction_running;
            let compacted =
                if is_compacted { std::mem::take(&mut background.compact_waiters) } else { Vec::new() };
            let stopped =
                if background.is_idle() { std::mem::take(&mut background.stop_waiters) } else { Vec::new() };
            (compacted, stopped)
        };
        for done in compacted {
            done(Ok(()));
        }
        for done in stopped {
            done();
        }
        self.kick();
    }

    /// Has `waiters` told once all memtables that are sealed now are in tables.
    pub fn when_flushed(self: &Arc<Self>, waiters: Vec<FlushDone>) {
        let told = {
            let mut background = self.background.lock();
            background.is_paused = false; // whoever asks for a flush wants it tried
            match self.memory.load().sealed.first() {
                Some(newest) => {
                    let log = newest.log_number();
                    background.flush_waiters.extend(waiters.into_iter().map(|done| (log, done)));
                    Vec::new()
                }
                None => waiters,
            }
        };
        for done in told {
            done(Ok(()));
        }
        self.schedule_background();
    }

    /// Has `done` told once everything in tables lies in the last level.
    pub fn when_compacted(self: &Arc<Self>, done: FlushDone) {
        self.background.lock().compact_waiters.push(done);
        self.after_background();
    }

    /// Ends compactions, and has `done` told once nothing runs any more.
    pub fn stop_background(self: &Arc<Self>, done: impl FnOnce() + Send + 'static) {
        self.versions.stop();
        {
            let mut background = self.background.lock();
            background.is_stopping = true;
            background.stop_waiters.push(Box::new(done));
        }
        self.after_background();
    }

    /// Refuses all writes from now on: what is durable is unknown. Reads go on.
    pub fn poison(&self, error: &Error) {
        self.health.poisoned.store(true, Ordering::Release);
        tracing::error!(%error, dir = %self.dir.display(), "writes are refused until the engine is opened anew");
        let (flushes, compactions) = {
            let mut background = self.background.lock();
            (std::mem::take(&mut background.flush_waiters), std::mem::take(&mut background.compact_waiters))
        };
        for done in flushes.into_iter().map(|(_, done)| done).chain(compactions) {
            done(Err(Error::Poisoned));
        }
        self.queue.refuse_all(&Error::Poisoned);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
