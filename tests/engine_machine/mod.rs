//! A simulated machine for the engine's tests: its disk survives, its process can be killed.
#![allow(dead_code)] // each test file uses its part

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kvstore::engine::{Engine, Error, Options, Recovery, WriteBatch, Written};
use kvstore::env::vfs_fault::FaultVfs;
use kvstore::env::{Env, ManualClock, MemVfs, Planted, Pool, Rng, Tasks};

/// Where the engine lives.
pub const DIR: &str = "/node/data";

/// A machine: its disk, and a process that can be killed.
pub struct Machine {
    /// Survives.
    pub disk: MemVfs,
    /// What the process sees of it.
    pub faults: FaultVfs,
    env: Env,
}

impl Machine {
    /// Starts a process on a disk. The same seed runs the same way.
    pub fn boot(disk: MemVfs, seed: u64, planted: Planted) -> Self {
        let faults = FaultVfs::new(Arc::new(disk.clone()));
        let (tasks, rng) = (Tasks::abortable(), Rng::from_seed(seed));
        let env = Env {
            fs: Arc::new(faults.clone()),
            clock: Arc::new(ManualClock::at(1)),
            pool: Pool::simulated(tasks.clone(), rng.fork(), Duration::from_millis(2)),
            rng,
            tasks,
            planted,
        };
        Self { disk, faults, env }
    }

    /// Opens the engine. Needs a runtime, as everything that hands jobs to a simulated pool does.
    pub fn open(&self, options: Options) -> Result<(Engine, Recovery), Error> {
        Engine::open(&self.env, Path::new(DIR), options)
    }

    /// The process is gone; the disk has not lost anything yet.
    pub fn kill(self) -> MemVfs {
        self.env.tasks.abort_all();
        self.disk
    }
}

/// Writes a batch and waits for the outcome without blocking the thread.
pub async fn write(engine: &Engine, batch: WriteBatch) -> Result<Written, Error> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    engine.submit(batch, Box::new(move |outcome| drop(sender.send(outcome))));
    receiver.await.expect("every write is told of its outcome while the process lives")
}

/// Closes an engine without blocking the thread.
pub async fn close(engine: &Engine) -> Result<(), Error> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    engine.shutdown(Box::new(move |outcome| drop(sender.send(outcome))));
    receiver.await.expect("a shutdown is told of its outcome")
}

/// Runs a future on virtual time.
pub fn simulate<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without input and output needs nothing")
        .block_on(future)
}
