//! Checkpoints: copies of this node's directory, made while it serves.
//!
//! ```text
//! checkpoints/NAME/   IDENTITY     as it was before the data was copied: it claims no more than the data holds
//!                     data/        tables by hard links, a manifest of their own, no log
//!                     CLOCK        a mark that was on disk after that: above every timestamp in the data
//!                     CHECKPOINT   what it is, as JSON, and its CRC-32: there once the copy is whole
//! ```
//!
//! Made as `.making-NAME` and renamed, so that a name is a whole copy or none. Hints are not part of it: they are other
//! nodes' writes, and would be delivered twice.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::{Semaphore, oneshot};

use super::directory::{CLOCK, DATA, IDENTITY};
use crate::engine::{self, Engine};
use crate::env::vfs::{read_file, remove_tree, replace_file};
use crate::env::{Env, Lane};
use crate::hlc::ClockKeeper;
use crate::replication::identity::IdentityFile;
use crate::replication::{CheckpointError, CheckpointInfo, CheckpointName, Checkpoints, Standing};
use crate::rpc::BoxFuture;
use crate::types::NodeId;

/// Where they lie in a data directory.
const FOLDER: &str = "checkpoints";
/// What a copy says of itself.
pub(super) const MARKER: &str = "CHECKPOINT";
/// Before the names of copies that are being made or removed: no name given by a client begins with a dot.
const MAKING: &str = ".making-";
const REMOVING: &str = ".removing-";

/// Copies one node's directory. A clone is the same.
#[derive(Debug, Clone)]
pub(super) struct NodeCheckpoints {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    env: Env,
    folder: PathBuf,
    node: NodeId,
    engine: Engine,
    identity: IdentityFile,
    clock: ClockKeeper,
    /// One at a time: each flushes the memtable.
    turn: Semaphore,
}

impl NodeCheckpoints {
    pub fn new(
        env: &Env,
        dir: &Path,
        node: NodeId,
        engine: Engine,
        identity: IdentityFile,
        clock: ClockKeeper,
    ) -> Self {
        // Whoever asks may stand in another directory than this process.
        let dir = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
        let (env, folder) = (env.clone(), dir.join(FOLDER));
        Self {
            inner: Arc::new(Inner { env, folder, node, engine, identity, clock, turn: Semaphore::new(1) }),
        }
    }

    /// Runs a job where flushes and compactions run: short, and not in the way of commits and reads.
    async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Inner) -> Result<T, CheckpointError> + Send + 'static,
    ) -> Result<T, CheckpointError> {
        let inner = self.inner.clone();
        self.inner.env.pool.run(Lane::Background, move || job(&inner)).await
    }

    async fn make(self, name: CheckpointName) -> Result<CheckpointInfo, CheckpointError> {
        let _turn = self.inner.turn.try_acquire().map_err(|_| CheckpointError::Busy)?;
        let inner = &self.inner;
        let identity = inner.identity.with(Clone::clone);
        let wanted = name.clone();
        self.run(move |inner| inner.check_free(&wanted)).await?;
        let (sender, flushed) = oneshot::channel();
        inner.engine.start_flush(Box::new(move |outcome| drop(sender.send(outcome))));
        flushed.await.unwrap_or(Err(engine::Error::Closed)).map_err(|error| failed_engine(&error))?;
        self.run(move |inner| inner.copy(&name, &identity)).await
    }
}

impl Checkpoints for NodeCheckpoints {
    fn make(&self, name: CheckpointName) -> BoxFuture<Result<CheckpointInfo, CheckpointError>> {
        Box::pin(self.clone().make(name))
    }

    fn list(&self) -> BoxFuture<Result<Vec<CheckpointInfo>, CheckpointError>> {
        let own = self.clone();
        Box::pin(async move { own.run(Inner::list).await })
    }

    fn remove(&self, name: CheckpointName) -> BoxFuture<Result<(), CheckpointError>> {
        let own = self.clone();
        Box::pin(async move {
            let _turn = own.inner.turn.try_acquire().map_err(|_| CheckpointError::Busy)?;
            own.run(move |inner| inner.remove(&name)).await
        })
    }
}

impl Inner {
    fn path(&self, name: &CheckpointName) -> PathBuf {
        self.folder.join(name.as_str())
    }

    fn check_free(&self, name: &CheckpointName) -> Result<(), CheckpointError> {
        match self.env.fs.exists(&self.path(name)) {
            Ok(false) => Ok(()),
            Ok(true) => Err(CheckpointError::Exists),
            Err(error) => Err(failed(&error)),
        }
    }

    /// Everything but the flush.
    fn copy(
        &self,
        name: &CheckpointName,
        identity: &crate::replication::identity::Identity,
    ) -> Result<CheckpointInfo, CheckpointError> {
        let fs = &*self.env.fs;
        let making = self.folder.join(format!("{MAKING}{name}"));
        self.make_folder().and_then(|()| self.remove_leftovers()).map_err(|error| failed(&error))?;
        fs.create_dir_all(&making).map_err(|error| failed(&error))?;
        let held = self.engine.link_tables(&making.join(DATA)).map_err(|error| failed_engine(&error))?;
        let info = CheckpointInfo {
            name: name.as_str().to_owned(),
            path: String::new(),
            node: self.node.as_str().to_owned(),
            uuid: uuid::Uuid::from_u128(identity.uuid).to_string(),
            taken_micros: self.env.clock.wall_micros(),
            voting: identity.standing == Standing::Voting,
            tables: held.tables,
            bytes: held.bytes,
            records: held.records,
            tombstones: held.tombstones,
        };
        let written = || {
            identity.write(&self.env, &making.join(IDENTITY))?;
            ClockKeeper::create(&self.env, &making.join(CLOCK), self.clock.mark())?;
            replace_file(fs, &making.join(MARKER), encode(&info).as_bytes())?;
            fs.sync_dir(&making)?;
            fs.rename(&making, &self.path(name))?;
            fs.sync_dir(&self.folder)
        };
        written().map_err(|error: io::Error| failed(&error))?;
        tracing::info!(%name, tables = info.tables, bytes = info.bytes, "checkpoint made");
        Ok(CheckpointInfo { path: self.path(name).to_string_lossy().into_owned(), ..info })
    }

    fn make_folder(&self) -> io::Result<()> {
        let fs = &*self.env.fs;
        if fs.exists(&self.folder)? {
            return Ok(());
        }
        fs.create_dir_all(&self.folder)?;
        self.folder.parent().map_or(Ok(()), |dir| fs.sync_dir(dir))
    }

    /// What a crash left half made or half removed.
    fn remove_leftovers(&self) -> io::Result<()> {
        let fs = &*self.env.fs;
        for name in fs.list(&self.folder)? {
            if name.starts_with(MAKING) || name.starts_with(REMOVING) {
                remove_tree(fs, &self.folder.join(name))?;
            }
        }
        Ok(())
    }

    fn list(&self) -> Result<Vec<CheckpointInfo>, CheckpointError> {
        let fs = &*self.env.fs;
        if !fs.exists(&self.folder).map_err(|error| failed(&error))? {
            return Ok(Vec::new());
        }
        let names = fs.list(&self.folder).map_err(|error| failed(&error))?;
        let infos = names.iter().filter_map(|name| CheckpointName::new(name)).map(|name| {
            let path = self.path(&name);
            let info = read(&self.env, &path).unwrap_or_else(|error| {
                tracing::warn!(%name, error, "a checkpoint that does not say what it is");
                CheckpointInfo { name: name.as_str().to_owned(), ..CheckpointInfo::default() }
            });
            CheckpointInfo { path: path.to_string_lossy().into_owned(), ..info }
        });
        Ok(infos.collect())
    }

    fn remove(&self, name: &CheckpointName) -> Result<(), CheckpointError> {
        let fs = &*self.env.fs;
        let path = self.path(name);
        if !fs.exists(&path).map_err(|error| failed(&error))? {
            return Err(CheckpointError::Missing);
        }
        let removing = self.folder.join(format!("{REMOVING}{name}"));
        let removed = self.remove_leftovers().and_then(|()| {
            fs.rename(&path, &removing)?;
            fs.sync_dir(&self.folder)?;
            remove_tree(fs, &removing)?;
            fs.sync_dir(&self.folder)
        });
        removed.map_err(|error| failed(&error))
    }
}

/// A line of JSON, and a line with its CRC-32.
fn encode(info: &CheckpointInfo) -> String {
    let json = serde_json::to_string(info).expect("our own structures have string keys and finite numbers");
    format!("{json}\n{:08x}\n", crc32fast::hash(json.as_bytes()))
}

/// Reads what a copy says of itself.
///
/// # Errors
/// In words: it is missing, or not as it was written.
pub(super) fn read(env: &Env, checkpoint: &Path) -> Result<CheckpointInfo, String> {
    let bytes = read_file(&*env.fs, &checkpoint.join(MARKER)).map_err(|error| error.to_string())?;
    let text = std::str::from_utf8(&bytes).map_err(|_| "expected text")?;
    let (json, crc) = text.split_once('\n').ok_or("expected two lines")?;
    if crc != format!("{:08x}\n", crc32fast::hash(json.as_bytes())) {
        return Err("expected a checksum that fits".to_owned());
    }
    serde_json::from_str(json).map_err(|error| error.to_string())
}

fn failed(error: &io::Error) -> CheckpointError {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => CheckpointError::NoSpace,
        _ => CheckpointError::Failed(error.to_string()),
    }
}

fn failed_engine(error: &engine::Error) -> CheckpointError {
    match error {
        engine::Error::Closed | engine::Error::Busy { .. } => CheckpointError::Busy,
        error if error.is_no_space() => CheckpointError::NoSpace,
        error => CheckpointError::Failed(error.to_string()),
    }
}
