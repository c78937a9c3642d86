//! Where work that may wait for a disk runs: threads of a machine, or the simulation's turn.
//!
//! A job is plain code without `async`. Lanes keep kinds of work from waiting for each other: a commit never
//! stands behind a compaction. On a machine every lane has a fixed number of threads and a queue whose length
//! its users bound (a commit queue hands over one job at a time, reads hold a permit, the compactor runs one
//! job); in simulation a job waits a seeded while and then runs in place.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{Pacer, Rng, Tasks};

/// Threads for flushes and compactions. Such a job rests most of its time and keeps its thread meanwhile, so there is one for
/// each that a node may run side by side: a flush and a compaction of its data, the same of its hints, and one for a checkpoint
/// or for cleaning up.
const BACKGROUND_THREADS: usize = 5;

/// A piece of work.
pub type Job = Box<dyn FnOnce() + Send>;

/// Which queue a job stands in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// Group commits of the data engine: append, sync, insert.
    Commit,
    /// Group commits of everything else: hints, clock marks, identities.
    Aside,
    /// Reads that missed every cache.
    Read,
    /// Flushes and compactions.
    Background,
}

/// A handle to the threads, or to the simulation. Cheap to clone.
#[derive(Clone)]
pub struct Pool {
    kind: Kind,
}

#[derive(Clone)]
enum Kind {
    Threads(Arc<Lanes>),
    Simulated { tasks: Tasks, rng: Rng, pace: SimulatedPace },
}

/// How fast the disk of a simulated machine is. A clone is the same setting.
#[derive(Debug, Clone)]
pub struct SimulatedPace {
    inner: Arc<Pace>,
}

#[derive(Debug)]
struct Pace {
    /// Relaxed, like `hung`: a simulation runs on one thread.
    delay_max_micros: AtomicU64,
    hung: AtomicBool,
    released: Notify,
}

impl SimulatedPace {
    /// Every job waits up to `delay_max` before it runs.
    pub fn new(delay_max: Duration) -> Self {
        let pace = Pace {
            delay_max_micros: AtomicU64::new(0),
            hung: AtomicBool::new(false),
            released: Notify::new(),
        };
        let pace = Self { inner: Arc::new(pace) };
        pace.set_delay_max(delay_max);
        pace
    }

    /// From now on every job waits up to `delay_max`.
    pub fn set_delay_max(&self, delay_max: Duration) {
        let micros = u64::try_from(delay_max.as_micros()).unwrap_or(u64::MAX);
        self.inner.delay_max_micros.store(micros.max(1), Ordering::Relaxed);
    }

    /// From now on no job runs before [`SimulatedPace::release`].
    pub fn hang(&self) {
        self.inner.hung.store(true, Ordering::Relaxed);
    }

    /// Lets jobs run again, those that were held up first.
    pub fn release(&self) {
        self.inner.hung.store(false, Ordering::Relaxed);
        self.inner.released.notify_waiters();
    }

    async fn wait(&self, rng: &Rng) {
        let micros = rng.below(0..self.inner.delay_max_micros.load(Ordering::Relaxed));
        tokio::time::sleep(Duration::from_micros(micros)).await;
        while self.inner.hung.load(Ordering::Relaxed) {
            self.inner.released.notified().await;
        }
    }
}

struct Lanes {
    commit: mpsc::Sender<Job>,
    aside: mpsc::Sender<Job>,
    read: mpsc::Sender<Job>,
    background: mpsc::Sender<Job>,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            Kind::Threads(_) => "Pool::threads",
            Kind::Simulated { .. } => "Pool::simulated",
        })
    }
}

impl Pool {
    /// Threads of this machine. They end once every handle is gone and their queues are empty.
    pub fn threads() -> Self {
        Self {
            kind: Kind::Threads(Arc::new(Lanes {
                commit: lane("kv-commit", 1),
                aside: lane("kv-aside", 1),
                read: lane("kv-read", 2),
                background: lane("kv-background", BACKGROUND_THREADS),
            })),
        }
    }

    /// Every job waits up to `delay_max` of virtual time and then runs in place, as one of `tasks`.
    pub fn simulated(tasks: Tasks, rng: Rng, delay_max: Duration) -> Self {
        Self::simulated_at(tasks, rng, SimulatedPace::new(delay_max))
    }

    /// The same at a pace that can be changed while it runs.
    pub fn simulated_at(tasks: Tasks, rng: Rng, pace: SimulatedPace) -> Self {
        Self { kind: Kind::Simulated { tasks, rng, pace } }
    }

    /// For a long job that is to use a share of its thread's time.
    pub fn pacer(&self) -> Pacer {
        Pacer::new(matches!(self.kind, Kind::Threads(_)))
    }

    /// Hands over a job. It runs after all that its lane was given before it, or beside them.
    pub fn submit(&self, on: Lane, job: impl FnOnce() + Send + 'static) {
        match &self.kind {
            Kind::Threads(lanes) => {
                let lane = match on {
                    Lane::Commit => &lanes.commit,
                    Lane::Aside => &lanes.aside,
                    Lane::Read => &lanes.read,
                    Lane::Background => &lanes.background,
                };
                lane.send(Box::new(job)).expect("a lane's threads outlive every handle to it");
            }
            Kind::Simulated { tasks, rng, pace } => {
                let (rng, pace) = (rng.clone(), pace.clone());
                tasks.spawn(async move {
                    pace.wait(&rng).await;
                    job();
                });
            }
        }
    }

    /// Runs `job` in a lane and waits for its result.
    ///
    /// # Panics
    /// If the job panicked: its result is gone, and what it left behind is unknown.
    pub async fn run<T: Send + 'static>(&self, on: Lane, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        self.submit(on, move || {
            let _ = sender.send(job()); // nobody waits any more: the caller was cancelled
        });
        receiver.await.expect("a job runs to its end")
    }
}

fn lane(name: &str, threads: usize) -> mpsc::Sender<Job> {
    let (sender, receiver) = mpsc::channel::<Job>();
    let receiver = Arc::new(Mutex::new(receiver));
    for _ in 0..threads {
        let receiver = receiver.clone();
        #[allow(clippy::disallowed_types)] // here is where threads come from
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                loop {
                    let next = receiver.lock().recv(); // the lock is held by whoever waits, not by who works
                    match next {
                        Ok(job) => job(),
                        Err(mpsc::RecvError) => return,
                    }
                }
            })
            .expect("a new process can start a handful of threads");
    }
    sender
}
