//! The world a node lives in: disk, wall clock, threads, chance and tasks, handed down at construction.
//!
//! Nothing outside this folder, the socket adapters and the command line reaches the world another way
//! (`clippy.toml` holds that), so the same node runs on a machine and inside a simulated ring, where a seed
//! decides everything. Timers are tokio's: virtual when a simulation pauses them.

pub mod clock;
pub mod mistake;
pub mod pacer;
pub mod pool;
pub mod rng;
pub mod tasks;
pub mod vfs;
pub mod vfs_disk;
pub mod vfs_fault;
pub mod vfs_mem;

use std::sync::Arc;

pub use clock::{Clock, ManualClock, SystemClock};
pub use mistake::{Mistake, Planted};
pub use pacer::{Pacer, at_full_speed};
pub use pool::{Lane, Pool, SimulatedPace};
pub use rng::Rng;
pub use tasks::Tasks;
pub use vfs::{Vfs, VfsFile, VfsLock};
pub use vfs_disk::DiskVfs;
pub use vfs_fault::FaultVfs;
pub use vfs_mem::MemVfs;

/// Everything outside that a node touches, but the network (`rpc::Transport`). Cheap to clone.
#[derive(Debug, Clone)]
pub struct Env {
    /// The file system.
    pub fs: Arc<dyn Vfs>,
    /// Wall time.
    pub clock: Arc<dyn Clock>,
    /// Where work that may wait for a disk runs.
    pub pool: Pool,
    /// Chance.
    pub rng: Rng,
    /// The only way to spawn.
    pub tasks: Tasks,
    /// Mistakes planted by a test of the tests; none in any other build.
    pub planted: Planted,
}

impl Env {
    /// The real world: this machine's disk, clock, threads and entropy.
    pub fn real() -> Self {
        Self {
            fs: Arc::new(DiskVfs),
            clock: Arc::new(SystemClock),
            pool: Pool::threads(),
            rng: Rng::from_entropy(),
            tasks: Tasks::default(),
            planted: Planted::default(),
        }
    }
}
