//! `CommitQueue`: group commit; one sync serves many writers.
//!
//! ```text
//! writers ──push──► waiting │ one job at a time ──take──► a group ──► append, sync, insert, done
//!                           └── whoever waits while a sync is running shares the next one
//! ```
//!
//! Pure bookkeeping: it knows no disk and no pool. A job is handed to the pool by whoever [`CommitQueue::start`]
//! answers `true`, carries out one [`CommitQueue::take`], and asks [`CommitQueue::finish`] whether another job is
//! due. A group is a job, so that in simulation delays and crashes fall between groups.
//!
//! No write ever waits for others to join its group: while one group is synced the next one gathers, and a delay on
//! top of that was measured to cost throughput under load and latency alone (docs/performance.md).

use std::collections::VecDeque;

use super::sync::Mutex;
use super::{Completion, Error, WriteBatch};
use crate::types::Timestamp;

/// Called once when what was written before is in tables, or with why it is not.
pub type FlushDone = Box<dyn FnOnce(Result<(), Error>) + Send>;

/// A batch that waits for its commit.
pub struct Write {
    /// The records.
    pub batch: WriteBatch,
    /// Told of the outcome.
    pub done: Completion,
    /// [`WriteBatch::weight`].
    weight: usize,
}

/// What stands in the queue.
enum Item {
    Write(Write),
    Seal(FlushDone),
}

/// What is next in the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Writes to be committed.
    Writes,
    /// The memtable is to be sealed.
    Seal,
    /// Nothing.
    Nothing,
}

/// The writers that wait for their commit, in order.
pub struct CommitQueue {
    state: Mutex<State>,
    /// Bytes that may wait.
    bytes_max: usize,
    /// Batches a group.
    batch_max: usize,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Item>,
    /// Weight of the batches in `waiting`.
    bytes: usize,
    /// Whether a job has been handed to the pool and has not finished.
    running: bool,
    /// Whether new writes are refused.
    closed: bool,
    /// No older timestamp is waiting or being committed; reset whenever the queue runs dry.
    oldest: Option<Timestamp>,
}

/// A group takes no further batch beyond this many bytes, so that one sync does not make the next writers wait long.
pub const GROUP_BYTES_MAX: usize = 4 << 20;

impl CommitQueue {
    /// An empty queue.
    pub fn new(bytes_max: usize, batch_max: usize) -> Self {
        Self { state: Mutex::default(), bytes_max, batch_max: batch_max.max(1) }
    }

    /// Queues a write.
    ///
    /// # Errors
    /// `Busy` beyond the queue's bytes, `Closed` after [`CommitQueue::close`]; the completion comes back uncalled.
    pub fn push(&self, batch: WriteBatch, done: Completion) -> Result<(), (Error, Completion)> {
        let weight = batch.weight();
        let mut state = self.state.lock();
        if state.closed {
            return Err((Error::Closed, done));
        }
        // One that is larger than the queue by itself is taken by an empty one.
        if state.bytes > 0 && state.bytes + weight > self.bytes_max {
            return Err((Error::Busy { queued: state.bytes }, done));
        }
        let oldest = batch.items().iter().map(|(_, record)| record.timestamp()).min();
        state.oldest = state.oldest.into_iter().chain(oldest).min();
        state.bytes += weight;
        state.waiting.push_back(Item::Write(Write { batch, done, weight }));
        Ok(())
    }

    /// Queues a request to seal the memtable and flush all that was written before it.
    pub fn push_seal(&self, done: FlushDone) {
        self.state.lock().waiting.push_back(Item::Seal(done));
    }

    /// Refuses writes from now on; those queued stay.
    pub fn close(&self) {
        self.state.lock().closed = true;
    }

    /// Whether a job must be handed to the pool now: there is work, and none is running.
    pub fn start(&self) -> bool {
        let mut state = self.state.lock();
        let is_due = !state.running && !state.waiting.is_empty();
        state.running |= is_due;
        is_due
    }

    /// A job has carried out what it took: whether another one must be handed over now.
    pub fn finish(&self) -> bool {
        let mut state = self.state.lock();
        state.running = !state.waiting.is_empty();
        if !state.running {
            state.oldest = None;
        }
        state.running
    }

    /// A job leaves the queue as it is, until someone calls [`CommitQueue::start`] again.
    pub fn park(&self) {
        self.state.lock().running = false;
    }

    /// Bytes that are waiting.
    pub fn bytes(&self) -> usize {
        self.state.lock().bytes
    }

    /// A timestamp that nothing waiting or being committed is older than; nothing if there is none of either.
    pub fn oldest(&self) -> Option<Timestamp> {
        self.state.lock().oldest
    }

    /// What the running job would find.
    pub fn peek(&self) -> Next {
        match self.state.lock().waiting.front() {
            Some(Item::Write(_)) => Next::Writes,
            Some(Item::Seal(_)) => Next::Seal,
            None => Next::Nothing,
        }
    }

    /// Takes the next group: the writes in front, at least one if there is one, up to the next seal, to the
    /// batches a group may have, and to `bytes_max`.
    pub fn take_group(&self, bytes_max: usize) -> Vec<Write> {
        let mut state = self.state.lock();
        let (mut group, mut bytes) = (Vec::new(), 0);
        while let Some(Item::Write(write)) = state.waiting.front() {
            bytes += write.weight;
            if !group.is_empty() && (bytes > bytes_max || group.len() >= self.batch_max) {
                break;
            }
            state.bytes -= write.weight;
            let Some(Item::Write(write)) = state.waiting.pop_front() else { break };
            group.push(write);
        }
        group
    }

    /// Takes out every write that is more than deletes.
    pub fn take_values(&self) -> Vec<Write> {
        let mut state = self.state.lock();
        let (mut values, mut others) = (Vec::new(), VecDeque::new());
        for item in std::mem::take(&mut state.waiting) {
            match item {
                Item::Write(write) if !write.batch.is_deletes() => {
                    state.bytes -= write.weight;
                    values.push(write);
                }
                other => others.push_back(other),
            }
        }
        state.waiting = others;
        values
    }

    /// Takes the seals in front: one sealing serves them all.
    pub fn take_seals(&self) -> Vec<FlushDone> {
        let mut state = self.state.lock();
        let mut seals = Vec::new();
        while let Some(Item::Seal(_)) = state.waiting.front() {
            let Some(Item::Seal(done)) = state.waiting.pop_front() else { break };
            seals.push(done);
        }
        seals
    }

    /// Refuses everything queued. The completions are called without the queue's lock.
    pub fn refuse_all(&self, error: &Error) {
        let items = {
            let mut state = self.state.lock();
            state.bytes = 0;
            std::mem::take(&mut state.waiting)
        };
        for item in items {
            match item {
                Item::Write(write) => (write.done)(Err(error.clone())),
                Item::Seal(done) => done(Err(error.clone())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::engine::interleave::{Work, explore};
    use crate::engine::sync::AtomicUsize;
    use crate::types::{Key, Record, Value};

    fn batch(len: usize) -> WriteBatch {
        let record = Record::value(Timestamp::from_u64(1), Value::new(vec![0; len]));
        WriteBatch::one(Key::new("k").unwrap(), record)
    }

    fn queue_of(lens: &[usize], batch_max: usize) -> CommitQueue {
        let queue = CommitQueue::new(10_000, batch_max);
        for len in lens {
            queue.push(batch(*len), Box::new(|_| {})).map_err(|(error, _)| error).unwrap();
        }
        queue
    }

    #[test]
    fn a_group_ends_at_its_batches_at_its_bytes_and_at_a_seal() {
        let queue = queue_of(&[10; 5], 2);
        assert_eq!(queue.take_group(GROUP_BYTES_MAX).len(), 2);
        assert_eq!(queue.take_group(1).len(), 1, "one batch always goes");
        queue.push_seal(Box::new(|_| {}));
        queue.push(batch(1), Box::new(|_| {})).map_err(|(error, _)| error).unwrap();
        assert_eq!(queue.take_group(GROUP_BYTES_MAX).len(), 2);
        assert_eq!(queue.peek(), Next::Seal);
        assert_eq!(queue.take_seals().len(), 1);
        assert_eq!(queue.take_group(GROUP_BYTES_MAX).len(), 1);
        assert_eq!(queue.peek(), Next::Nothing);
    }

    #[test]
    fn values_are_taken_out_and_deletes_and_seals_stay_in_order() {
        let queue = queue_of(&[10, 20], 8);
        let tombstone = Record::tombstone(Timestamp::from_u64(1));
        let delete = WriteBatch::one(Key::new("k").unwrap(), tombstone);
        queue.push(delete.clone(), Box::new(|_| {})).map_err(|(error, _)| error).unwrap();
        queue.push_seal(Box::new(|_| {}));
        queue.push(batch(30), Box::new(|_| {})).map_err(|(error, _)| error).unwrap();
        assert_eq!(queue.take_values().len(), 3);
        assert_eq!(queue.bytes(), delete.weight());
        let left = queue.take_group(GROUP_BYTES_MAX);
        assert_eq!((left.len(), left[0].batch == delete, queue.peek()), (1, true, Next::Seal));
    }

    #[test]
    fn one_job_runs_at_a_time_and_none_without_work() {
        let queue = queue_of(&[], 8);
        assert!(!queue.start());
        queue.push_seal(Box::new(|_| {}));
        assert!(queue.start());
        assert!(!queue.start(), "one is running");
        queue.take_seals();
        assert!(!queue.finish());
        assert!(!queue.start());
    }

    #[test]
    fn what_was_queued_goes_on_when_there_is_room_again() {
        let queue = queue_of(&[9_000], 8);
        assert!(matches!(queue.push(batch(2_000), Box::new(|_| {})), Err((Error::Busy { .. }, _))));
        queue.take_group(GROUP_BYTES_MAX);
        assert!(queue.push(batch(2_000), Box::new(|_| {})).is_ok());
        queue.close();
        assert!(matches!(queue.push(batch(1), Box::new(|_| {})), Err((Error::Closed, _))));
    }

    /// What the commit job does, with a pace that the background opens. Returns when no job is due.
    fn work(queue: &CommitQueue, is_open: &AtomicUsize) {
        loop {
            if is_open.load(Ordering::SeqCst) == 0 {
                queue.park();
                // Progress made before the line above found a job running and kicked nothing.
                if is_open.load(Ordering::SeqCst) == 0 || !queue.start() {
                    return;
                }
                continue;
            }
            for write in queue.take_group(GROUP_BYTES_MAX) {
                (write.done)(Ok(crate::engine::Written::default()));
            }
            if !queue.finish() {
                return;
            }
        }
    }

    /// Two writers, and a background that makes progress at any moment: every write is committed, by whoever kicked last.
    #[test]
    fn no_write_is_left_waiting_in_any_order_of_steps() {
        let runs = explore(
            2,
            || {
                let queue = Arc::new(CommitQueue::new(10_000, 8));
                let (is_open, told) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
                let writer = || -> Work {
                    let (queue, is_open, told) = (queue.clone(), is_open.clone(), told.clone());
                    Box::new(move || {
                        let done = Box::new(move |_| {
                            told.fetch_add(1, Ordering::SeqCst);
                        });
                        queue.push(batch(1), done).map_err(|(error, _)| error).unwrap();
                        if queue.start() {
                            work(&queue, &is_open);
                        }
                    })
                };
                let background: Work = {
                    let (queue, is_open) = (queue.clone(), is_open.clone());
                    Box::new(move || {
                        is_open.store(1, Ordering::SeqCst);
                        if queue.start() {
                            work(&queue, &is_open);
                        }
                    })
                };
                let works = vec![writer(), writer(), background];
                ((queue, told), works)
            },
            |(queue, told)| {
                assert_eq!(told.load(Ordering::SeqCst), 2, "a writer waits for ever");
                assert_eq!((queue.peek(), queue.bytes(), queue.oldest()), (Next::Nothing, 0, None));
            },
        );
        assert!(runs > 100, "{runs} runs");
    }
}
