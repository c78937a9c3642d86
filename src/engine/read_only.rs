//! `ReadOnlyEngine`: reads a directory that no engine has open, and leaves every byte of it as it is.
//!
//! ```text
//! Engine::open     log ──> memtable ──> table ──> manifest      the directory is settled: files come and go
//! ReadOnlyEngine   log ──> memtable                             stays in memory, as large as the logs are
//! ```
//!
//! For exports, and for copies on disks that nobody may write to.

use std::fmt;
use std::io;
use std::path::Path;

use super::iter::InternalIterator;
use super::memtable::Memtable;
use super::version::{Version, VersionSet};
use super::{EngineScan, Error, Options, recovery};
use crate::env::{Env, VfsLock};
use crate::types::{KeyRange, Timestamp};

/// Bytes of blocks kept in memory: a walk reads each once.
const BLOCK_CACHE_SIZE: usize = 1 << 20;

/// A directory as it was left. Holds its lock, so that no engine opens it meanwhile.
pub struct ReadOnlyEngine {
    version: Version,
    memtable: Memtable,
    _lock: Option<Box<dyn VfsLock>>,
}

impl fmt::Debug for ReadOnlyEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadOnlyEngine").finish_non_exhaustive()
    }
}

impl ReadOnlyEngine {
    /// Opens the tables and reads the logs. Blocks.
    ///
    /// # Errors
    /// `Locked` when an engine has it open; `Corruption` when it is damaged, or no engine's directory; `Io`.
    pub fn open(env: &Env, dir: &Path) -> Result<Self, Error> {
        let lock = lock(env, dir)?;
        let options = Options { block_cache_size: BLOCK_CACHE_SIZE, ..Options::default() };
        let (version, opened) = VersionSet::look(env, dir, &options)?;
        let recovered = recovery::recover(env, dir, opened.log_number, &options, env.rng.u64())?;
        Ok(Self { version, memtable: recovered.memtable, _lock: lock })
    }

    /// Walks a range in key order, as [`super::Engine::scan`] does.
    pub fn scan(&self, range: &KeyRange) -> EngineScan {
        let mut inputs: Vec<Box<dyn InternalIterator>> = vec![Box::new(self.memtable.entries())];
        inputs.extend(self.version.iterators(range));
        EngineScan::over(inputs, range)
    }

    /// Records in tables and logs, tombstones and older ones of a key too: an upper bound of its keys.
    pub fn records(&self) -> u64 {
        let in_tables: u64 = self.version.tables().map(|(_, table)| table.meta().entries).sum();
        in_tables + self.memtable.len() as u64
    }

    /// The newest timestamp held.
    pub fn newest(&self) -> Timestamp {
        let in_tables = self.version.tables().map(|(_, table)| table.meta().newest).max();
        self.memtable.newest().max(in_tables.unwrap_or_default())
    }
}

/// Keeps engines out of a directory while it is looked at. A copy that was never opened has no lock file, and gets
/// none; one that may not be written to needs none.
///
/// # Errors
/// `Locked` when an engine has it open.
pub fn lock(env: &Env, dir: &Path) -> Result<Option<Box<dyn VfsLock>>, Error> {
    let path = dir.join("LOCK");
    if !env.fs.exists(&path).map_err(|error| Error::io("look for", &path, error))? {
        return Ok(None);
    }
    match env.fs.lock(&path) {
        Ok(lock) => Ok(Some(lock)),
        Err(error) => match error.kind() {
            io::ErrorKind::WouldBlock => Err(Error::Locked { path: dir.to_owned() }),
            io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => Ok(None),
            _ => Err(Error::io("lock", &path, error)),
        },
    }
}
