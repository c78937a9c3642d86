//! `OfflineNode`: a data directory without its node, to be filled while nobody serves it.
//!
//! Opened in the order in which a node opens it, so that lock, identity, clock and engine hold what they hold there: a
//! record is given the clock's next timestamp, below a mark that is on disk, and is newer than all the directory has.

use std::path::{Path, PathBuf};

use tokio::sync::oneshot;

use super::directory::{self, DATA, IDENTITY, Opened};
use super::{StartError, part, ring_of};
use crate::config::Config;
use crate::engine::{self, Engine, WriteBatch};
use crate::env::{Env, VfsLock};
use crate::hlc::{ClockKeeper, MarkFailed};
use crate::replication::identity::Identity;
use crate::types::{Key, NodeId, Value};

/// A directory of a node that is alone. To be closed: what is not closed is recovered at the next start.
#[derive(Debug)]
pub struct OfflineNode {
    engine: Engine,
    clock: ClockKeeper,
    _lock: Box<dyn VfsLock>,
}

/// Why records were not written.
#[derive(Debug, thiserror::Error)]
pub enum WriteFailed {
    /// The engine could not. Some may be there.
    #[error(transparent)]
    Engine(#[from] engine::Error),
    /// No timestamps could be given.
    #[error(transparent)]
    Clock(#[from] MarkFailed),
}

impl OfflineNode {
    /// Opens a directory as the cluster it was made for, or makes one for the node that `config` describes. Blocks; to
    /// be called on a runtime.
    ///
    /// # Errors
    /// As for a node that starts; and if the directory is one of several members'.
    pub fn open(config: &Config, env: &Env) -> Result<Self, StartError> {
        let mut config = config.clone();
        if let Ok(identity) = Identity::read(env, &part(&config.dir, IDENTITY)) {
            // What is damaged is told by the opening below.
            let founding = identity.founding;
            config.cluster_name = founding.cluster_name;
            config.range_count = founding.range_count;
            config.replication_factor = founding.replication_factor;
            config.members = founding.members;
            if let Some(only) = config.members.first() {
                config.advertise_addr = only.id.as_str().to_owned();
            }
        }
        let own = NodeId::from_canonical(&config.advertise_addr);
        let ring = ring_of(&config, &own);
        let members = ring.membership().members().len();
        if members > 1 {
            return Err(StartError::SeveralMembers { dir: config.dir, members });
        }
        let Opened { lock, clock, engine, .. } = directory::open(&config, env, &own, &ring)?;
        Ok(Self { engine, clock, _lock: lock })
    }

    /// Writes values under rising timestamps; they are durable when it returns. Of two of one key the later wins, also
    /// when they were handed over in two calls, one after the other.
    pub async fn write(&self, items: Vec<(Key, Value)>) -> Result<(), WriteFailed> {
        if items.is_empty() {
            return Ok(());
        }
        let mut batch = WriteBatch::default();
        for (key, value) in items {
            batch.put(key, value, self.clock.tick().await?);
        }
        let (sender, written) = oneshot::channel();
        self.engine.submit(batch, Box::new(move |outcome| drop(sender.send(outcome))));
        written.await.unwrap_or(Err(engine::Error::Closed))?;
        Ok(())
    }

    /// Writes memory to tables and a last mark, and lets go of the directory.
    pub async fn close(self) -> Result<(), WriteFailed> {
        let (sender, closed) = oneshot::channel();
        self.engine.shutdown(Box::new(move |outcome| drop(sender.send(outcome))));
        closed.await.unwrap_or(Ok(()))?;
        self.clock.close().await?;
        Ok(())
    }
}

/// Where the engine of a node's directory lies, or of a checkpoint's: `data` in it; or the directory itself, if it is an
/// engine's.
pub fn engine_dir(env: &Env, dir: &Path) -> PathBuf {
    let is_engine = env.fs.exists(&part(dir, "CURRENT")).unwrap_or(false);
    if is_engine { dir.to_owned() } else { part(dir, DATA) }
}
