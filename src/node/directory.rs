//! The data directory: opening it in the right order, and telling the new, the own, the foreign and the damaged apart.

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::{StartError, engine_options, part};
use crate::cluster::Ring;
use crate::config::Config;
use crate::engine::{self, Engine};
use crate::env::{Env, Mistake, VfsLock, vfs};
use crate::hlc::{ClockKeeper, Hlc, keeper};
use crate::replication::Standing;
use crate::replication::identity::{self, Founding, Identity, IdentityFile};
use crate::types::{NodeId, Timestamp};

pub(super) const LOCK: &str = "LOCK";
pub(super) const CLOCK: &str = "CLOCK";
pub(super) const IDENTITY: &str = "IDENTITY";
pub(super) const DATA: &str = "data";
pub(super) const HINTS: &str = "hints";

/// What a start finds.
pub(super) struct Opened {
    pub lock: Box<dyn VfsLock>,
    pub clock: ClockKeeper,
    pub identity: IdentityFile,
    pub engine: Engine,
}

/// Opens the directory, making it if need be.
pub(super) fn open(config: &Config, env: &Env, own: &NodeId, ring: &Ring) -> Result<Opened, StartError> {
    let dir = &config.dir;
    make(env, dir).map_err(|source| io_error("making the data directory", dir, source))?;
    let lock = lock(env, dir)?;
    let founding = founding_of(config, ring);
    let replicated = ring.replication_factor() > 1;
    let found = read_identity(env, dir, replicated)?;
    if let Some(identity) = &found
        && let Some(difference) = identity.founding.difference(&founding)
    {
        return Err(StartError::OtherCluster { dir: dir.clone(), difference });
    }
    let is_new = found.is_none();
    let mut identity = found.unwrap_or_else(|| Identity::new(new_uuid(env), founding));
    let clock = open_clock(config, env, replicated, &mut identity)?;
    identity.boot += 1;
    if env.planted.has(Mistake::EmptyDiskVotes) && identity.boot == 1 {
        (identity.standing, identity.has_voted) = (Standing::Voting, true);
    }
    match identity.write(env, &part(dir, IDENTITY)) {
        Ok(()) => {}
        // What is there can be read all the same; the start is counted with the next change that finds space.
        Err(error) if !is_new && vfs::is_no_space(&error) => {
            tracing::error!(%error, "no space to write IDENTITY: the node starts without counting this start");
        }
        Err(source) => return Err(io_error("writing IDENTITY", dir, source)),
    }
    let (engine, newest) = open_engine(config, env, ring, clock.hlc(), &mut identity)?;
    if !replicated && identity.standing != Standing::Voting {
        // There is nobody to read from: what this disk has is all there is.
        (identity.standing, identity.has_voted) = (Standing::Voting, true);
        save(env, dir, &identity)?;
    }
    if !env.planted.has(Mistake::TimestampReusedAfterRestart) {
        clock.hlc().follow(newest);
    }
    tracing::info!(node = %own, boot = identity.boot, standing = ?identity.standing, "directory opened");
    let identity = IdentityFile::new(env, part(dir, IDENTITY), identity);
    Ok(Opened { lock, clock, identity, engine })
}

/// Gives up what is damaged in a directory that no node is using, and says what that was.
///
/// A node that has replicas rebuilds by itself; one that is alone asks for this. Blocks.
pub fn recover_drop_damaged(config: &Config, env: &Env) -> Result<Vec<String>, StartError> {
    let dir = &config.dir;
    let _lock = lock(env, dir)?;
    let mut told = Vec::new();
    match Identity::read(env, &part(dir, IDENTITY)) {
        Ok(mut identity) => {
            identity.fall(); // where there are replicas, this disk counts again only after a rebuild
            save(env, dir, &identity)?;
        }
        Err(identity::Error::Io { source, .. }) if source.kind() != io::ErrorKind::NotFound => {
            return Err(io_error("reading IDENTITY", dir, source));
        }
        Err(error) => {
            told.push(format!("{error}: made anew"));
            let own = NodeId::from_canonical(&config.advertise_addr);
            let founding = founding_of(config, &super::ring_of(config, &own));
            // It may have voted: where there are replicas it must not pass for a new one.
            let identity = Identity { has_voted: true, ..Identity::new(new_uuid(env), founding) };
            save(env, dir, &identity)?;
        }
    }
    let mut newest = Timestamp::from_micros(env.clock.wall_micros());
    for name in [DATA, HINTS] {
        let options = engine::Options { drop_damaged: true, ..engine::Options::default() };
        let path = part(dir, name);
        let (engine, recovery) =
            Engine::open(env, &path, options).map_err(|source| engine_error(&path, source))?;
        newest = newest.max(recovery.newest);
        told.extend(recovery.damage);
        engine.close().map_err(|source| engine_error(&path, source))?;
    }
    if let Err(keeper::OpenError::Damaged { .. }) =
        ClockKeeper::open(env, &part(dir, CLOCK), config.clock_skew_max)
    {
        told.push(
            "CLOCK: both slots are damaged: made anew from the newest record and the wall clock".to_owned(),
        );
        remove(env, dir, CLOCK)?;
        ClockKeeper::create(env, &part(dir, CLOCK), newest)
            .and_then(|()| env.fs.sync_dir(dir))
            .map_err(|source| io_error("making CLOCK", dir, source))?;
    }
    Ok(told)
}

/// Makes the directory and those above it, and their names durable.
pub(super) fn make(env: &Env, dir: &Path) -> io::Result<()> {
    if env.fs.exists(dir)? {
        return Ok(());
    }
    env.fs.create_dir_all(dir)?;
    for (above, parent) in dir.ancestors().skip(1).enumerate() {
        let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        match env.fs.sync_dir(parent) {
            Err(error) if above == 0 => return Err(error),
            _ => {} // further up the names most likely existed, and may not be ours to sync
        }
    }
    Ok(())
}

pub(super) fn lock(env: &Env, dir: &Path) -> Result<Box<dyn VfsLock>, StartError> {
    env.fs.lock(&part(dir, LOCK)).map_err(|source| match source.kind() {
        io::ErrorKind::WouldBlock => StartError::Locked { dir: dir.to_owned() },
        _ => io_error("locking the data directory", dir, source),
    })
}

/// The identity found; `None` for a new directory, and for one that must be taken for a new one.
fn read_identity(env: &Env, dir: &Path, replicated: bool) -> Result<Option<Identity>, StartError> {
    let path = part(dir, IDENTITY);
    let exists = |name| env.fs.exists(&part(dir, name)).map_err(|source| io_error("looking", dir, source));
    let detail = if exists(IDENTITY)? {
        match Identity::read(env, &path) {
            Ok(identity) => return Ok(Some(identity)),
            Err(identity::Error::Io { source, .. }) => return Err(io_error("reading IDENTITY", dir, source)),
            Err(error @ identity::Error::Damaged { .. }) => error.to_string(),
        }
    } else if exists(DATA)? {
        // IDENTITY is there before the first record is.
        format!("{} is missing beside data", path.display())
    } else {
        return Ok(None);
    };
    if !replicated {
        return Err(StartError::Damaged { dir: dir.to_owned(), detail });
    }
    tracing::warn!(detail, "identity lost: the node rebuilds under a new one");
    Ok(None)
}

fn open_clock(
    config: &Config,
    env: &Env,
    replicated: bool,
    identity: &mut Identity,
) -> Result<ClockKeeper, StartError> {
    let (dir, path) = (&config.dir, part(&config.dir, CLOCK));
    let lost = identity.boot > 0
        && !env.fs.exists(&path).map_err(|source| io_error("looking for CLOCK", dir, source))?;
    match ClockKeeper::open(env, &path, config.clock_skew_max) {
        Ok(clock) if !lost => Ok(clock),
        Err(keeper::OpenError::Io { source, .. }) => Err(io_error("opening CLOCK", dir, source)),
        damaged => {
            let detail = damaged.map_or_else(|e| e.to_string(), |_| format!("{} is missing", path.display()));
            if !replicated {
                if lost {
                    remove(env, dir, CLOCK)?; // made just now: the next start is to find it missing too
                }
                return Err(StartError::Damaged { dir: dir.clone(), detail });
            }
            tracing::warn!(detail, "clock mark lost: the node rebuilds");
            identity.fall();
            save(env, dir, identity)?; // before the damaged file goes
            remove(env, dir, CLOCK)?;
            ClockKeeper::open(env, &path, config.clock_skew_max)
                .map_err(|error| StartError::Damaged { dir: dir.clone(), detail: error.to_string() })
        }
    }
}

fn open_engine(
    config: &Config,
    env: &Env,
    ring: &Ring,
    hlc: &Arc<Hlc>,
    identity: &mut Identity,
) -> Result<(Engine, Timestamp), StartError> {
    let path = part(&config.dir, DATA);
    let options = engine_options(config, env, ring, hlc);
    if identity.has_voted && !has_data(env, &config.dir)? && !env.planted.has(Mistake::EmptyDiskVotes) {
        // An engine would be made anew here, and an empty one must not vote.
        let detail = format!("{} is gone, and this disk has voted", path.display());
        if ring.replication_factor() <= 1 {
            return Err(StartError::Damaged { dir: config.dir.clone(), detail });
        }
        tracing::warn!(detail, "data lost: the node rebuilds from its peers");
        identity.fall();
        save(env, &config.dir, identity)?; // before the engine is made, which hides that it was not there
    }
    let (engine, recovery) = match Engine::open(env, &path, options.clone()) {
        Ok(opened) => opened,
        Err(error @ engine::Error::Corruption { .. }) if ring.replication_factor() > 1 => {
            tracing::warn!(%error, "data damaged: the node rebuilds from its peers");
            identity.fall();
            if !env.planted.has(Mistake::FallNotWrittenFirst) {
                save(env, &config.dir, identity)?; // before anything is dropped
            }
            let options = engine::Options { drop_damaged: true, ..options };
            Engine::open(env, &path, options).map_err(|source| engine_error(&path, source))?
        }
        Err(source) => return Err(engine_error_in(&config.dir, &path, source)),
    };
    for line in &recovery.damage {
        tracing::warn!(damage = line, "given up, to be read from the peers");
    }
    tracing::info!(tables = recovery.tables, batches_replayed = recovery.frames_replayed, "data recovered");
    Ok((engine, recovery.newest))
}

/// Whether the engine's directory holds an engine: one that was opened once has a manifest.
fn has_data(env: &Env, dir: &Path) -> Result<bool, StartError> {
    let current = part(&part(dir, DATA), "CURRENT");
    env.fs.exists(&current).map_err(|source| io_error("looking for data", dir, source))
}

fn founding_of(config: &Config, ring: &Ring) -> Founding {
    Founding {
        cluster_name: config.cluster_name.clone(),
        range_count: ring.range_count(),
        replication_factor: ring.replication_factor(),
        members: ring.membership().members().to_vec(),
    }
}

fn save(env: &Env, dir: &Path, identity: &Identity) -> Result<(), StartError> {
    identity.write(env, &part(dir, IDENTITY)).map_err(|source| io_error("writing IDENTITY", dir, source))
}

fn remove(env: &Env, dir: &Path, name: &str) -> Result<(), StartError> {
    let path = part(dir, name);
    let gone = match env.fs.exists(&path) {
        Ok(true) => env.fs.remove(&path).and_then(|()| env.fs.sync_dir(dir)),
        Ok(false) => Ok(()),
        Err(error) => Err(error),
    };
    gone.map_err(|source| io_error("removing a damaged file", dir, source))
}

fn new_uuid(env: &Env) -> u128 {
    let mut bytes = [0; 16];
    env.rng.fill(&mut bytes);
    uuid::Builder::from_random_bytes(bytes).into_uuid().as_u128()
}

pub(super) fn io_error(what: &'static str, dir: &Path, source: io::Error) -> StartError {
    StartError::Io { what, dir: dir.to_owned(), source }
}

/// Says what an engine that did not open means for its node.
pub(super) fn engine_error(dir: &Path, source: engine::Error) -> StartError {
    engine_error_in(dir.parent().unwrap_or(dir), dir, source)
}

fn engine_error_in(dir: &Path, engine: &Path, source: engine::Error) -> StartError {
    match source {
        engine::Error::Locked { .. } => StartError::Locked { dir: dir.to_owned() },
        engine::Error::Corruption { .. } => {
            StartError::Damaged { dir: dir.to_owned(), detail: source.to_string() }
        }
        source => StartError::Engine { dir: engine.to_owned(), source },
    }
}
