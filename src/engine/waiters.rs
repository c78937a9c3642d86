//! `Waiters`: the completions of those who wait for background work, in one place.
//!
//! ```text
//! flush waiter     told Ok once its memtable and all older ones are in tables
//! compact waiter   handed to the compaction that serves it; told here only if none will be begun
//! stop waiter      told once nothing runs
//! ```
//!
//! The rule is level-triggered: [`Waiters::take_ready`] looks at the state as it is, not at the event that led there,
//! and a waiter stays only while something is running that will lead to another look. So it does not matter in which
//! order a failure, a pause, a close and a registration happen, as long as each of them is followed by a look under the
//! same lock. Pure: it calls nothing; the caller calls what was taken after it has released its lock.

use super::Error;
use super::commit_queue::FlushDone;

/// What background work is doing at the moment of a look.
#[derive(Debug, Clone, Copy)]
pub struct Activity<'a> {
    /// The log of the oldest memtable that is not in tables yet.
    pub oldest_sealed: Option<u64>,
    /// A flush is running.
    pub flushing: bool,
    /// A compaction is running.
    pub compacting: bool,
    /// Something else is running.
    pub cleaning: bool,
    /// Why no flush is begun.
    pub flush_refused: Option<&'a Error>,
    /// Why no compaction is begun.
    pub compaction_refused: Option<&'a Error>,
}

/// A completion and its outcome.
pub type Ready = (FlushDone, Result<(), Error>);

/// Those who wait.
#[derive(Default)]
pub struct Waiters {
    /// Each with the log of the newest memtable that it waits for.
    flush: Vec<(u64, FlushDone)>,
    /// For a compaction of everything.
    compact: Vec<FlushDone>,
    /// For the end of all background work.
    stop: Vec<FlushDone>,
}

impl Waiters {
    /// `done` waits until the memtable of this log is in tables.
    pub fn add_flush(&mut self, log_number: u64, done: FlushDone) {
        self.flush.push((log_number, done));
    }

    /// `done` waits for a compaction of everything.
    pub fn add_compact(&mut self, done: FlushDone) {
        self.compact.push(done);
    }

    /// `done` waits until nothing runs.
    pub fn add_stop(&mut self, done: FlushDone) {
        self.stop.push(done);
    }

    /// Whether somebody waits for a flush.
    pub fn wants_flush(&self) -> bool {
        !self.flush.is_empty()
    }

    /// Whether somebody waits for a compaction of everything to begin.
    pub fn wants_compaction(&self) -> bool {
        !self.compact.is_empty()
    }

    /// Whether somebody waits until nothing runs.
    pub fn wants_stop(&self) -> bool {
        !self.stop.is_empty()
    }

    /// Those whom the compaction of everything that is about to begin serves. Its job must tell them.
    pub fn take_compact(&mut self) -> Vec<FlushDone> {
        std::mem::take(&mut self.compact)
    }

    /// Takes out whoever has nothing left to wait for.
    pub fn take_ready(&mut self, activity: &Activity<'_>) -> Vec<Ready> {
        let mut ready: Vec<Ready> = Vec::new();
        let is_flushed = |log: u64| activity.oldest_sealed.is_none_or(|oldest| oldest > log);
        ready.extend(self.flush.extract_if(.., |(log, _)| is_flushed(*log)).map(|(_, done)| (done, Ok(()))));
        if !activity.flushing
            && let Some(error) = activity.flush_refused
        {
            ready.extend(self.flush.drain(..).map(|(_, done)| (done, Err(error.clone()))));
        }
        if !activity.compacting
            && let Some(error) = activity.compaction_refused
        {
            ready.extend(self.compact.drain(..).map(|done| (done, Err(error.clone()))));
        }
        if !activity.flushing && !activity.compacting && !activity.cleaning {
            ready.extend(self.stop.drain(..).map(|done| (done, Ok(()))));
        }
        ready
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;

    use super::*;

    type Log = Arc<Mutex<Vec<(&'static str, bool)>>>;

    fn done(log: &Log, name: &'static str) -> FlushDone {
        let log = log.clone();
        Box::new(move |outcome| log.lock().push((name, outcome.is_ok())))
    }

    fn all(log: &Log) -> Waiters {
        let mut waiters = Waiters::default();
        waiters.add_flush(4, done(log, "old flush"));
        waiters.add_flush(7, done(log, "new flush"));
        waiters.add_compact(done(log, "compact"));
        waiters.add_stop(done(log, "stop"));
        waiters
    }

    fn look(waiters: &mut Waiters, activity: Activity<'_>) {
        for (done, outcome) in waiters.take_ready(&activity) {
            done(outcome);
        }
    }

    const BUSY: Activity<'static> = Activity {
        oldest_sealed: Some(4),
        flushing: true,
        compacting: true,
        cleaning: true,
        flush_refused: None,
        compaction_refused: None,
    };

    #[test]
    fn a_flush_waiter_is_told_once_its_memtable_is_in_tables_and_the_others_wait() {
        let log = Log::default();
        let mut waiters = all(&log);
        look(&mut waiters, BUSY);
        assert_eq!(*log.lock(), []);
        look(&mut waiters, Activity { oldest_sealed: Some(5), ..BUSY });
        assert_eq!(*log.lock(), [("old flush", true)]);
        look(&mut waiters, Activity { oldest_sealed: None, ..BUSY });
        assert_eq!(*log.lock(), [("old flush", true), ("new flush", true)]);
    }

    #[test]
    fn nobody_waits_for_work_that_is_neither_running_nor_will_be_begun() {
        let log = Log::default();
        let mut waiters = all(&log);
        let refused = Activity {
            flush_refused: Some(&Error::Poisoned),
            compaction_refused: Some(&Error::Poisoned),
            ..BUSY
        };
        look(&mut waiters, refused);
        assert_eq!(*log.lock(), [], "what runs may still serve them");
        look(&mut waiters, Activity { flushing: false, oldest_sealed: Some(5), ..refused });
        assert_eq!(*log.lock(), [("old flush", true), ("new flush", false)]);
        look(&mut waiters, Activity { flushing: false, compacting: false, ..refused });
        assert_eq!(log.lock()[2..], [("compact", false)], "something runs");
        look(&mut waiters, Activity { flushing: false, compacting: false, cleaning: false, ..refused });
        assert_eq!(log.lock()[3..], [("stop", true)]);
        look(&mut waiters, Activity { flushing: false, compacting: false, cleaning: false, ..refused });
        assert_eq!(log.lock().len(), 4, "each is told once");
    }
}
