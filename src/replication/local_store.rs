//! `LocalStore`: this node's engine, as tasks use it.
//!
//! ```text
//!  write ──enqueue──> commit queue of the engine            kick: once a turn of the runtime, by the driver,
//!    │                        ▲                             which yields first: the writes of one turn of the
//!    └──first one wakes──> driver ──yield, kick──┘          runtime become one group and share one sync
//!  answer <──oneshot── driver <──one wake a group── completions, from the thread that committed
//! ```
//!
//! The driver is one task. It is spawned by the first write and ends once no write is under way, so an idle node has none.
//! Completions come from the committing thread: all of a group are put into one list and the driver is woken
//! once; waking each writer from there would cost a system call each.
//!
//! Reads answer on the spot from memory; those that must wait for a disk go to the pool, at most
//! [`LocalStore::DISK_READS_MAX`] at once.

use std::future::Future;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore, oneshot};

use crate::engine::{Engine, Error, WriteBatch, Written};
use crate::env::{Env, Lane, Pool, Tasks};
use crate::types::{Key, Record};

/// This node's engine, as tasks use it. A clone is the same store.
#[derive(Debug, Clone)]
pub struct LocalStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    engine: Engine,
    pool: Pool,
    tasks: Tasks,
    disk_reads: Semaphore,
    wake: Notify,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Whether the driver runs. It does whenever `under_way` is not zero, but for the moment in which it is spawned.
    driven: bool,
    /// Whether something was queued since the last kick.
    kick_wanted: bool,
    /// Writes whose outcome has not been passed on.
    under_way: usize,
    /// Outcomes to be passed on.
    completed: Vec<(oneshot::Sender<Outcome>, Outcome)>,
}

type Outcome = Result<Written, Error>;

impl LocalStore {
    /// Reads waiting for a disk at once: more only queue up before the same two threads.
    pub const DISK_READS_MAX: usize = 64;

    /// Wraps an engine.
    pub fn new(engine: Engine, env: &Env) -> Self {
        Self {
            inner: Arc::new(Inner {
                engine,
                pool: env.pool.clone(),
                tasks: env.tasks.clone(),
                disk_reads: Semaphore::new(Self::DISK_READS_MAX),
                wake: Notify::new(),
                state: Mutex::default(),
            }),
        }
    }

    /// The engine itself: for scans, statistics and the end.
    pub fn engine(&self) -> &Engine {
        &self.inner.engine
    }

    /// Writes a batch: queued when the call is made, durable and visible when the future answers `Ok`.
    /// Dropping the future gives up the answer, not the write.
    pub fn write(&self, batch: WriteBatch) -> impl Future<Output = Outcome> + Send + use<> {
        let (sender, receiver) = oneshot::channel();
        self.inner.state.lock().under_way += 1;
        let inner = self.inner.clone();
        let done = Box::new(move |outcome| inner.on_completion(sender, outcome));
        self.inner.engine.enqueue(batch, done);
        self.want_kick();
        async move { receiver.await.unwrap_or(Err(Error::Closed)) }
    }

    /// Answers from memory; `None` where it would have to wait for a disk.
    pub fn try_get(&self, key: &Key) -> Option<Result<Option<Record>, Error>> {
        self.inner.engine.try_get(key)
    }

    /// The newest record of a key, a tombstone too.
    pub async fn get(&self, key: &Key) -> Result<Option<Record>, Error> {
        if let Some(answer) = self.try_get(key) {
            return answer;
        }
        self.get_from_disk(key).await
    }

    /// Like [`LocalStore::get`], for who has tried memory already.
    pub async fn get_from_disk(&self, key: &Key) -> Result<Option<Record>, Error> {
        let _permit = self.inner.disk_reads.acquire().await.expect("the semaphore is never closed");
        let (engine, key) = (self.inner.engine.clone(), key.clone());
        self.inner.pool.run(Lane::Read, move || engine.get(&key)).await
    }

    fn want_kick(&self) {
        let mut state = self.inner.state.lock();
        if !state.driven {
            state.driven = true;
            state.kick_wanted = true;
            drop(state);
            let driver = Driver { inner: self.inner.clone(), ended: false };
            self.inner.tasks.spawn(driver.run());
        } else if !state.kick_wanted {
            state.kick_wanted = true;
            drop(state);
            self.inner.wake.notify_one();
        }
    }
}

impl Inner {
    fn on_completion(&self, sender: oneshot::Sender<Outcome>, outcome: Outcome) {
        let mut state = self.state.lock();
        let first = state.completed.is_empty();
        state.completed.push((sender, outcome));
        drop(state);
        if first {
            self.wake.notify_one();
        }
    }
}

/// The task that kicks the engine and passes outcomes on.
struct Driver {
    inner: Arc<Inner>,
    /// Whether it has said itself that it no longer runs; a successor may run by now.
    ended: bool,
}

impl Driver {
    async fn run(mut self) {
        let mut passing = Vec::new();
        loop {
            // First let every task that is ready queue its write, so that one kick serves them all.
            tokio::task::yield_now().await;
            let kick = {
                let mut state = self.inner.state.lock();
                std::mem::swap(&mut passing, &mut state.completed);
                state.under_way -= passing.len();
                if state.under_way == 0 && !state.kick_wanted && passing.is_empty() {
                    state.driven = false;
                    self.ended = true;
                    return;
                }
                std::mem::take(&mut state.kick_wanted)
            };
            if kick {
                self.inner.engine.kick();
            }
            let passed = !passing.is_empty();
            for (sender, outcome) in passing.drain(..) {
                let _ = sender.send(outcome); // nobody waits any more: the write is durable all the same
            }
            if !passed {
                self.inner.wake.notified().await;
            }
        }
    }
}

impl Drop for Driver {
    /// A driver that was ended with its runtime is replaced by the next write.
    fn drop(&mut self) {
        if !self.ended {
            self.inner.state.lock().driven = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use super::*;
    use crate::engine::Options;
    use crate::env::vfs_mem::MemVfs;
    use crate::env::{Lane, Rng};
    use crate::types::{Record, Timestamp, Value};

    fn store() -> LocalStore {
        let tasks = Tasks::abortable();
        let rng = Rng::from_seed(1);
        let pool = Pool::simulated(tasks.clone(), rng.fork(), Duration::from_millis(3));
        let env = Env { fs: Arc::new(MemVfs::new()), pool, rng, tasks, ..Env::real() };
        let options = Options { memtable_size: 1 << 20, commit_lane: Lane::Commit, ..Options::default() };
        LocalStore::new(Engine::open(&env, Path::new("/data"), options).unwrap().0, &env)
    }

    fn batch(n: u64) -> WriteBatch {
        let key = Key::new(format!("k{n}")).unwrap();
        WriteBatch::one(key, Record::value(Timestamp::from_micros(n + 1), Value::new("v")))
    }

    #[tokio::test(start_paused = true)]
    async fn the_writes_of_one_turn_share_one_sync() {
        let store = store();
        store.write(batch(0)).await.unwrap();
        let before = store.engine().stats().wal_syncs;
        let writes = (1..=100).map(|n| store.write(batch(n)));
        for outcome in futures_util::future::join_all(writes).await {
            outcome.unwrap();
        }
        assert_eq!(store.engine().stats().wal_syncs - before, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_is_seen_once_it_is_answered_and_not_before() {
        let store = store();
        let key = Key::new("k7").unwrap();
        let write = store.write(batch(7));
        assert_eq!(store.get(&key).await.unwrap(), None);
        write.await.unwrap();
        assert!(store.get(&key).await.unwrap().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn no_task_is_left_when_nothing_is_under_way() {
        let store = store();
        store.write(batch(1)).await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(!store.inner.state.lock().driven);
        store.write(batch(2)).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_nobody_waits_for_is_made_all_the_same() {
        let store = store();
        drop(store.write(batch(3)));
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(store.get(&Key::new("k3").unwrap()).await.unwrap().is_some());
    }
}
