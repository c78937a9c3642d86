//! `StoppedNode`: the data directory of a node that does not run, opened to be read and written by hand.
//!
//! What is written here is this replica's alone until its node runs again: reads then spread it, as they do any write that
//! reached one replica. A record is given the clock's next timestamp, below a mark that is on disk, and is newer than all
//! that the directory has.

use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::directory::{self, CLOCK, DATA, IDENTITY, Opened};
use super::{StartError, part, ring_of, tombstones_of};
use crate::config::Config;
use crate::engine::{self, Engine, WriteBatch};
use crate::env::{Env, VfsLock};
use crate::hlc::{ClockKeeper, MarkFailed};
use crate::replication::Standing;
use crate::replication::identity::{self, Identity};
use crate::types::{Key, NodeId, Timestamp, Value};

/// The directory of a node that does not run. Holds its lock until it is closed or dropped; what is not closed is recovered at
/// the next start.
#[derive(Debug)]
pub struct StoppedNode {
    engine: Engine,
    clock: ClockKeeper,
    identity: Identity,
    lock: Mutex<Option<Box<dyn VfsLock>>>,
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

impl StoppedNode {
    /// Opens the directory; nothing is made anew or given up. Blocks; may take as long as writing a memtable out does.
    ///
    /// # Errors
    /// `Locked` while its node runs; `NoNode` when it is not a node's; `Damaged`.
    pub fn open(env: &Env, dir: &Path) -> Result<Self, StartError> {
        let exists =
            |path: &Path| env.fs.exists(path).map_err(|source| directory::io_error("looking", dir, source));
        if !exists(&part(dir, IDENTITY))? {
            return Err(StartError::NoNode { dir: dir.to_owned() });
        }
        let lock = directory::lock(env, dir)?;
        let damaged = |detail: String| StartError::Damaged { dir: dir.to_owned(), detail };
        let identity = Identity::read(env, &part(dir, IDENTITY)).map_err(|error| match error {
            identity::Error::Io { source, .. } => directory::io_error("reading IDENTITY", dir, source),
            identity::Error::Damaged { .. } => damaged(error.to_string()),
        })?;
        // What is not there is not made: that it is missing is what its node must find.
        for path in [part(dir, CLOCK), part(&part(dir, DATA), "CURRENT")] {
            if !exists(&path)? {
                return Err(damaged(format!("{} is missing", path.display())));
            }
        }
        let skew_max = Config::default().clock_skew_max; // nobody else's timestamps come in here
        let clock = ClockKeeper::open(env, &part(dir, CLOCK), skew_max)
            .map_err(|error| damaged(error.to_string()))?;
        let options = engine::Options {
            tombstones: tombstones_of(identity.founding.members.len()),
            ..engine::Options::default()
        };
        let data = part(dir, DATA);
        let (engine, recovery) =
            Engine::open(env, &data, options).map_err(|source| directory::engine_error(&data, source))?;
        clock.hlc().follow(recovery.newest);
        Ok(Self { engine, clock, identity, lock: Mutex::new(Some(lock)) })
    }

    /// Opens the directory of a node that is alone as the cluster it was made for, or makes one for the node that `config`
    /// describes. Blocks; to be called on a runtime.
    ///
    /// # Errors
    /// As for a node that starts; and if the directory is one of several members'.
    pub fn open_or_make(config: &Config, env: &Env) -> Result<Self, StartError> {
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
        let Opened { lock, clock, identity, engine } = directory::open(&config, env, &own, &ring)?;
        let identity = identity.with(Identity::clone);
        Ok(Self { engine, clock, identity, lock: Mutex::new(Some(lock)) })
    }

    /// Its records.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Whether all that it acknowledged is here: otherwise it was being rebuilt when it stopped.
    pub fn is_whole(&self) -> bool {
        self.identity.standing == Standing::Voting
    }

    /// The cluster it belongs to, and how many members that has.
    pub fn cluster(&self) -> (&str, usize) {
        (&self.identity.founding.cluster_name, self.identity.founding.members.len())
    }

    /// A timestamp above all that this directory has seen and all that its node has ever given.
    ///
    /// # Errors
    /// [`MarkFailed`]: nothing can be written any more.
    pub async fn tick(&self) -> Result<Timestamp, MarkFailed> {
        self.clock.tick().await
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

    /// Writes memory to tables and a last mark of the clock, and lets go of the directory.
    ///
    /// # Errors
    /// What was written is safe in the log all the same.
    pub async fn close(&self) -> Result<(), engine::Error> {
        let (sender, receiver) = oneshot::channel();
        self.engine.shutdown(Box::new(move |outcome| drop(sender.send(outcome))));
        let outcome = receiver.await.unwrap_or(Ok(()));
        let _ = self.clock.close().await; // the mark before it holds as well
        self.lock.lock().take();
        outcome
    }
}

/// Where the engine of a node's directory lies, or of a checkpoint's: `data` in it; or the directory itself, if it is an
/// engine's.
pub fn engine_dir(env: &Env, dir: &Path) -> PathBuf {
    let is_engine = env.fs.exists(&part(dir, "CURRENT")).unwrap_or(false);
    if is_engine { dir.to_owned() } else { part(dir, DATA) }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)] // the files are real
mod tests {
    use std::sync::Arc;

    use super::*;
    /// A directory as a node leaves it.
    async fn left_by_a_node(dir: &Path) {
        let config = Config { dir: dir.to_owned(), ..Config::default() };
        let node = super::super::Node::start(config, Env::real(), Arc::new(Nobody)).unwrap();
        node.stop().await;
    }

    #[derive(Debug)]
    struct Nobody;

    impl crate::rpc::Transport for Nobody {
        fn call(
            &self,
            _: &NodeId,
            _: crate::rpc::Request,
            _: std::time::Duration,
        ) -> crate::rpc::BoxFuture<Result<crate::rpc::Response, crate::rpc::Error>> {
            Box::pin(std::future::ready(Err(crate::rpc::Error::TimedOut)))
        }
    }

    #[tokio::test]
    async fn timestamps_rise_above_what_the_store_and_the_mark_have_seen() {
        let dir = tempfile::tempdir().unwrap();
        left_by_a_node(dir.path()).await;
        let ahead = Timestamp::from_micros(Env::real().clock.wall_micros())
            .plus(std::time::Duration::from_secs(3600));
        let key = Key::new("k").unwrap();
        let first = StoppedNode::open(&Env::real(), dir.path()).unwrap();
        first.engine().put(key.clone(), Value::new("1"), ahead).unwrap();
        assert!(matches!(StoppedNode::open(&Env::real(), dir.path()), Err(StartError::Locked { .. })));
        first.close().await.unwrap();

        let second = StoppedNode::open(&Env::real(), dir.path()).unwrap();
        let given = second.tick().await.unwrap();
        assert!(given > ahead, "a store that has seen the future goes on from there");
        assert!(second.clock.mark() > given, "the mark is on disk before");
        second.close().await.unwrap();

        let third = StoppedNode::open(&Env::real(), dir.path()).unwrap();
        assert!(third.tick().await.unwrap() > given);
    }

    #[tokio::test]
    async fn what_is_no_node_or_lacks_a_part_is_refused_and_nothing_is_made() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(StoppedNode::open(&Env::real(), dir.path()), Err(StartError::NoNode { .. })));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        left_by_a_node(dir.path()).await;
        std::fs::remove_file(dir.path().join("CLOCK")).unwrap();
        assert!(matches!(StoppedNode::open(&Env::real(), dir.path()), Err(StartError::Damaged { .. })));
        assert!(!dir.path().join("CLOCK").exists());
    }
}
