//! Restore: a data directory made from a checkpoint.
//!
//! ```text
//! one node set back       IDENTITY says: rebuilding, has voted     the others have written since; it reads its ranges
//!                                                                  from them before it counts (replication::rebuild)
//! the whole ring set back IDENTITY as it was, peers forgotten      nobody has more: each counts at once
//! ```
//!
//! The checkpoint stays as it is. IDENTITY is written before the data and `CURRENT` last of all, so that a crash in
//! between leaves a directory that a node does not take for a whole one.

use std::io;
use std::path::{Path, PathBuf};

use super::directory::{self, CLOCK, DATA, IDENTITY, LOCK};
use super::{StartError, part};
use crate::engine::Checkpoint;
use crate::engine::duplicate::duplicate;
use crate::engine::verify::Verified;
use crate::env::{Env, Mistake};
use crate::hlc::{ClockKeeper, keeper};
use crate::replication::Standing;
use crate::replication::identity::Identity;

/// What a restored directory holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Restored {
    /// What lies in its tables.
    pub held: Checkpoint,
    /// How it will start.
    pub standing: Standing,
    /// Members of its cluster.
    pub members: usize,
}

/// Why nothing was restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The checkpoint is damaged: take another.
    #[error("the checkpoint is damaged; nothing was restored")]
    Damaged(Box<Verified>),
    /// There is something in the directory already.
    #[error("{} is not empty; name one that is empty or does not exist", .0.display())]
    NotEmpty(PathBuf),
    /// A directory could not be used.
    #[error(transparent)]
    Directory(#[from] StartError),
}

/// Makes `to` a data directory of what the checkpoint `from` holds, after it has checked all of that. Blocks.
pub fn restore(
    env: &Env,
    from: &Path,
    to: &Path,
    whole_ring: bool,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Restored, RestoreError> {
    check_empty(env, to)?;
    let verified = super::verify(env, from, progress)?;
    if !verified.is_clean() {
        return Err(RestoreError::Damaged(Box::new(verified)));
    }
    let io = |what| move |source| directory::io_error(what, to, source);
    directory::make(env, to).map_err(io("making the directory"))?;
    let _lock = directory::lock(env, to)?;
    let mut identity = Identity::read(env, &part(from, IDENTITY))
        .map_err(|error| StartError::Damaged { dir: from.to_owned(), detail: error.to_string() })?;
    if whole_ring {
        identity.peers.clear(); // of the copies that were made later than theirs they would say: set back
    } else if !env.planted.has(Mistake::RestoredDiskVotes) {
        identity.fall();
    }
    identity.has_voted = true; // it must not pass for an empty one of a new cluster
    identity.write(env, &part(to, IDENTITY)).map_err(io("writing IDENTITY"))?;
    let slots = keeper::slots(env, &part(from, CLOCK)).map_err(io("reading the checkpoint's CLOCK"))?;
    let mark = slots.into_iter().flatten().map(|slot| slot.mark).max().unwrap_or_default();
    ClockKeeper::create(env, &part(to, CLOCK), mark).map_err(io("writing CLOCK"))?;
    env.fs.sync_dir(to).map_err(io("syncing the directory"))?;
    let held = duplicate(env, &part(from, DATA), &part(to, DATA))
        .map_err(|error| directory::engine_error(&part(to, DATA), error))?;
    env.fs.sync_dir(to).map_err(io("syncing the directory"))?;
    let members = identity.founding.members.len();
    Ok(Restored { held, standing: identity.standing, members })
}

/// A new file system has one directory of its own, and a node that never ran may have left its lock.
fn check_empty(env: &Env, to: &Path) -> Result<(), RestoreError> {
    let names = match env.fs.list(to) {
        Ok(names) => names,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(directory::io_error("looking into the directory", to, source).into()),
    };
    if names.iter().any(|name| name != "lost+found" && name != LOCK) {
        return Err(RestoreError::NotEmpty(to.to_owned()));
    }
    Ok(())
}
