//! Node: builds every part in order, stops them in reverse; the one place that knows them all.
//!
//! ```text
//! start   LOCK ─> CLOCK, IDENTITY ─> data/, hints/ recovered ─> Shared ─> loops: pings, standing, hints, marks
//! stop    no new requests ─> those in flight ─> loops ─> memory to tables ─> a last mark ─> LOCK released
//! ```
//!
//! The data directory:
//!
//! ```text
//! LOCK       held while a process uses the directory
//! IDENTITY   whose data it is, and whether it votes (replication::identity)
//! CLOCK      the clock's high-water mark (hlc::keeper)
//! data/      the engine of this node's own replicas
//! hints/     the engine of writes kept for others
//! checkpoints/  copies of all this but the hints, made while the node runs
//! node.log   what the node had to say; node.log.1 … are older
//! ```
//!
//! The order within a start matters twice: the mark found on disk is read before anything extends it, and
//! that a damaged directory rebuilds is on disk before what is damaged is dropped.

mod checkpoints;
mod delivery;
mod directory;
mod restore;
mod stopped;
#[cfg(test)]
mod tests;
mod verify;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use crate::cluster::{Member, Membership, Ring, RingSettings, Token, assign};
use crate::config::{Bounds, Config};
use crate::engine::{self, Engine, TombstonePolicy};
use crate::env::{Env, Mistake, VfsLock};
use crate::gossip::{FailureDetector, PingLoop, Pings};
use crate::hints::{self, HintReplayer, HintStore};
use crate::hlc::{ClockKeeper, Hlc};
use crate::replication::facts::FactsKeeper;
use crate::replication::identity::IdentityFile;
use crate::replication::replica::Replica;
use crate::replication::standing::StandingKeeper;
use crate::replication::{
    Clocks, Coordinator, FactsSource as _, LocalStore, Parts, Peers, Phase, Settings, Shared, Standing,
    StandingCell,
};
use crate::rpc::{Facts, Handler, Transport};
use crate::types::{NodeId, Timestamp};
use crate::util::shutdown::{Shutdown, ShutdownListener};

pub use directory::recover_drop_damaged;
pub use restore::{RestoreError, Restored, restore};
pub use stopped::{StoppedNode, WriteFailed, engine_dir};
pub use verify::verify;

/// How often the mark is raised while writes are stored: what a peer remembers of this disk is at most so old.
const MARK_EVERY: Duration = Duration::from_millis(200);
/// How often the disk is looked at while nobody writes: that it is full, gone or read-only is known within this time, and
/// what waits for space is tried again.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often a stop looks whether requests are still in flight.
const DRAIN_LOOK: Duration = Duration::from_millis(5);
/// How long a stop waits for memory to be written to tables. Everything acknowledged is in the log by then, so giving up
/// costs a longer start and no data.
const CLOSE_TIME_MAX: Duration = Duration::from_secs(20);

/// Why a node did not start. Its text is one line for whoever started it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// Another process has the directory.
    #[error("{} is in use by another process", .dir.display())]
    Locked {
        /// Which directory.
        dir: PathBuf,
    },
    /// There is no node's data in the directory.
    #[error("{} holds no node's data; name the directory that a node was started with (-dir)", .dir.display())]
    NoNode {
        /// Which directory.
        dir: PathBuf,
    },
    /// The directory belongs to another cluster, or to this one with other figures.
    #[error("{} holds other data: {difference}", .dir.display())]
    OtherCluster {
        /// Which directory.
        dir: PathBuf,
        /// What differs, with both values.
        difference: String,
    },
    /// What is on the disk is not what was written, and there is no other replica to mend it from.
    #[error("{detail}; restore {dir} from a copy, or give up what is damaged: kvstore recover --drop-damaged {dir}", dir = .dir.display())]
    Damaged {
        /// Which directory.
        dir: PathBuf,
        /// Which file, and what is wrong with it.
        detail: String,
    },
    /// Records written to this disk alone would not be on W disks.
    #[error("{} belongs to one of {members} members: what is written to it alone would be on one disk and no quorum; import through a running node", .dir.display())]
    SeveralMembers {
        /// Which directory.
        dir: PathBuf,
        /// How many there are.
        members: usize,
    },
    /// The settings contradict each other.
    #[error("{0}")]
    Setting(String),
    /// The operating system refused.
    #[error("{what} in {}: {source}", .dir.display())]
    Io {
        /// What was being done.
        what: &'static str,
        /// Which directory.
        dir: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The storage engine could not be opened.
    #[error("{}: {source}", .dir.display())]
    Engine {
        /// Which directory.
        dir: PathBuf,
        /// Why.
        source: engine::Error,
    },
}

/// One node: its disk, its clock, its part of the ring. Dropped without [`Node::stop`], it is as good as killed.
#[derive(Debug)]
pub struct Node {
    shared: Arc<Shared>,
    coordinator: Coordinator,
    handler: Arc<Replica>,
    clock: ClockKeeper,
    stop: Shutdown,
    loops: Mutex<Vec<JoinHandle<()>>>,
    lock: Mutex<Option<Box<dyn VfsLock>>>,
}

impl Node {
    /// Recovers the directory and starts the node's loops on the current runtime. Waits for the disk, for nobody else.
    #[allow(clippy::needless_pass_by_value)] // the node takes its settings over
    pub fn start(config: Config, env: Env, transport: Arc<dyn Transport>) -> Result<Self, StartError> {
        let own = NodeId::from_canonical(&config.advertise_addr);
        let ring = Arc::new(ring_of(&config, &own));
        let directory::Opened { lock, clock, identity, engine } =
            directory::open(&config, &env, &own, &ring)?;
        let hints = open_hints(&config, &env, &ring)?;
        // A disk that counted goes on counting only after its node has listened to its peers.
        let alone = ring.membership().members().len() == 1;
        let standing = StandingCell::new(if alone { Standing::Voting } else { Standing::Rebuilding });
        if env.planted.has(Mistake::EmptyDiskVotes) {
            standing.set(Standing::Voting);
        }
        let members = ring.membership().members();
        if !alone && !env.planted.has(Mistake::PeerSkewNotChecked) {
            let place = members.iter().position(|member| member.id == own);
            clock.hlc().join_ring(place.expect("this node is a member"));
        }
        let peers: Vec<_> = members.iter().map(|m| m.id.clone()).filter(|id| *id != own).collect();
        let detector = FailureDetector::new(peers.iter().cloned());
        let facts = FactsKeeper::new(&env, identity.clone(), clock.clone(), standing.clone(), hints.clone());
        let checkpoints = checkpoints::NodeCheckpoints::new(
            &env,
            &config.dir,
            own.clone(),
            engine.clone(),
            identity.clone(),
            clock.clone(),
        );
        let shared = Shared::new(Parts {
            own,
            settings: settings_of(&config, &ring),
            store: LocalStore::new(engine, &env),
            peers: Peers::new(transport.clone(), clock.hlc().clone(), detector.clone(), &peers),
            detector,
            hints,
            standing,
            hlc: clock.hlc().clone(),
            clock_keeper: Arc::new(clock.clone()),
            facts: Arc::new(facts.clone()),
            ring,
            env,
        });
        shared.set_checkpoints(Arc::new(checkpoints));
        shared.clocks.tell_ahead(); // in a ring not before clocks were compared
        let stop = Shutdown::default();
        let loops = start_loops(&shared, &clock, &facts, identity, transport, peers, &stop);
        shared.set_phase(Phase::Serving);
        Ok(Self {
            coordinator: Coordinator::new(shared.clone()),
            handler: Arc::new(Replica::new(shared.clone())),
            shared,
            clock,
            stop,
            loops: Mutex::new(loops),
            lock: Mutex::new(Some(lock)),
        })
    }

    /// What serves other nodes.
    pub fn handler(&self) -> Arc<dyn Handler> {
        self.handler.clone()
    }

    /// What serves clients.
    pub fn coordinator(&self) -> Coordinator {
        self.coordinator.clone()
    }

    /// The engine of this node's own replicas, for tools and tests that look at the disk itself.
    pub fn engine(&self) -> &Engine {
        self.shared.store.engine()
    }

    /// The writes that this node keeps for others, for tools and tests that look at the disk itself.
    pub fn hints(&self) -> &HintStore {
        &self.shared.hints
    }

    /// Refuses new requests, lets those in flight end within `NETWORK_TIMEOUT`, and closes everything. What was
    /// acknowledged is on disk whether this is called or not. Ends within a bounded time even if the disk hangs.
    pub async fn stop(&self) {
        let shared = &self.shared;
        shared.set_phase(Phase::Stopping);
        let latest = Instant::now() + shared.settings.network_timeout;
        let is_planted = shared.env.planted.has(Mistake::StopForgetsStragglers);
        while shared.stats().inflight_bytes > 0 && Instant::now() < latest && !is_planted {
            sleep(DRAIN_LOOK).await;
        }
        self.stop.signal();
        let loops = std::mem::take(&mut *self.loops.lock());
        for task in loops {
            let _ = timeout(shared.settings.network_timeout, task).await; // whatever it still does is harmless
        }
        if timeout(CLOSE_TIME_MAX, self.close_stores()).await.is_err() {
            tracing::warn!(
                "the disk did not answer in time: stopped without a flush, and the log will be replayed"
            );
        }
        self.lock.lock().take();
    }

    /// Flushes and closes data and hints, then writes a last mark of the clock.
    async fn close_stores(&self) {
        let (sender, receiver) = oneshot::channel();
        self.shared.store.engine().shutdown(Box::new(move |outcome| drop(sender.send(outcome))));
        let (data, hints) = tokio::join!(biased; receiver, self.shared.hints.close());
        for (part, outcome) in [("data", data.unwrap_or(Ok(()))), ("hints", hints)] {
            if let Err(error) = outcome {
                tracing::warn!(part, %error, "not flushed at the stop: the log will be replayed");
            }
        }
        if let Err(error) = self.clock.close().await {
            tracing::warn!(%error, "no last mark at the stop");
        }
    }
}

fn ring_of(config: &Config, own: &NodeId) -> Ring {
    let mut members = config.members.clone();
    if members.iter().all(|member| member.id != *own) {
        members.push(Member { id: own.clone(), weight: 10, zone: None });
    }
    let settings =
        RingSettings { range_count: config.range_count, replication_factor: config.replication_factor };
    assign(None, &Membership::new(members), settings)
}

fn settings_of(config: &Config, ring: &Ring) -> Settings {
    let in_force = |quorum: usize| quorum.clamp(1, ring.replication_factor());
    Settings {
        write_quorum: in_force(config.write_quorum),
        read_quorum: in_force(config.read_quorum),
        network_timeout: config.network_timeout,
        read_repair_chance: config.read_repair_chance,
        batch_concurrency: config.batch_concurrency,
        inflight_bytes_max: config.inflight_bytes_max,
    }
}

fn open_hints(config: &Config, env: &Env, ring: &Arc<Ring>) -> Result<HintStore, StartError> {
    let (of_key, of_node) = (ring.clone(), ring.clone());
    let settings = hints::Settings {
        bytes_max: config.hints_bytes_max,
        age_max: config.hints_age_max,
        queue_bytes_max: Bounds::of(config).hint_queue,
        targets: ring.membership().members().iter().map(|member| member.id.clone()).collect(),
        range_of: Arc::new(move |key| of_key.range_of(Token::of(key)).0),
        ranges_of: Arc::new(move |node| of_node.ranges_of(node).map(|range| range.0).collect()),
    };
    let dir = config.dir.join(directory::HINTS);
    HintStore::open(env, &dir, settings).map_err(|source| directory::engine_error(&dir, source))
}

/// Whether compaction may let tombstones go: only where this node is all there is.
fn tombstones(ring: &Ring) -> TombstonePolicy {
    tombstones_of(ring.membership().members().len())
}

fn tombstones_of(members: usize) -> TombstonePolicy {
    // With N = 1 among several nodes, a hint on another node may still bring an older value.
    match members {
        0 | 1 => TombstonePolicy::DropWhenUncovered,
        _ => TombstonePolicy::Keep,
    }
}

/// Before when a value must have expired for its bytes to go: `MAX_CLOCK_SKEW` before what this clock has reached.
///
/// With peers, by what it gave or heard from them, not by its own wall clock: that may be wrong, and bytes that went do not
/// come back. Alone, there is only the wall clock, and nobody who could disagree.
fn horizon(hlc: &Arc<Hlc>, ring: &Ring) -> engine::Horizon {
    let (hlc, alone) = (hlc.clone(), ring.membership().members().len() <= 1);
    engine::Horizon::new(move || {
        let reached = if alone { hlc.now() } else { hlc.vouched() };
        reached.minus(hlc.skew_max())
    })
}

fn engine_options(config: &Config, env: &Env, ring: &Ring, hlc: &Arc<Hlc>) -> engine::Options {
    let tombstones = if env.planted.has(Mistake::TombstonesDroppedWithReplicas) {
        TombstonePolicy::DropWhenUncovered
    } else {
        tombstones(ring)
    };
    engine::Options {
        memtable_size: config.memtable_size,
        l0_files_max: config.l0_files_max,
        sparse_index_interval: config.sparse_index_interval,
        block_cache_size: config.block_cache_size,
        open_files_max: config.open_tables_max,
        wal_batch_max: config.wal_batch_max,
        queue_bytes_max: Bounds::of(config).commit_queue,
        bloom_bits_per_key: config.bloom_bits_per_key,
        bloom_size_l0: config.bloom_size_l0,
        bloom_size_l1: config.bloom_size_l1,
        tombstones,
        horizon: horizon(hlc, ring),
        ..engine::Options::default()
    }
}

fn start_loops(
    shared: &Arc<Shared>,
    clock: &ClockKeeper,
    facts: &FactsKeeper,
    identity: IdentityFile,
    transport: Arc<dyn Transport>,
    peers: Vec<NodeId>,
    stop: &Shutdown,
) -> Vec<JoinHandle<()>> {
    let tasks = &shared.env.tasks;
    let mut loops =
        vec![tasks.spawn(raise_marks(clock.clone(), shared.store.engine().clone(), stop.listener()))];
    loops.push(tasks.spawn(look_after_engines(shared.clone(), stop.listener())));
    if peers.is_empty() {
        return loops;
    }
    let pings = Arc::new(NodePings { clocks: shared.clocks.clone(), facts: facts.clone() });
    loops.push(tasks.spawn(PingLoop::new(shared.detector.clone(), transport, pings).run(stop.listener())));
    loops.push(tasks.spawn(facts.clone().run(stop.listener())));
    let keeper = StandingKeeper::new(shared.clone(), facts.clone(), identity);
    loops.push(tasks.spawn(keeper.run(stop.listener())));
    let delivery = Arc::new(delivery::PeerDelivery::new(shared));
    let replayer = HintReplayer::new(shared.hints.clone(), delivery, shared.env.pool.clone());
    // This node itself is a target too: its own copy may have been refused while others took the write.
    let targets = peers.into_iter().chain([shared.own.clone()]);
    loops.extend(replayer.start(tasks, targets, &stop.listener()));
    loops
}

/// Raises the mark while this node stores writes, its own or others': peers remember it, and so notice when
/// the disk is set back, whoever gave the timestamps.
async fn raise_marks(clock: ClockKeeper, engine: Engine, mut stop: ShutdownListener) {
    let mut written = engine.stats().records_written;
    while timeout(MARK_EVERY, stop.signalled()).await.is_err() {
        let now = engine.stats().records_written;
        if now != written {
            written = now;
            clock.raise();
        }
    }
}

/// Has both engines look at the disk and do in the background what no write asks for, whether somebody writes or not.
async fn look_after_engines(shared: Arc<Shared>, mut stop: ShutdownListener) {
    while timeout(LOOK_EVERY, stop.signalled()).await.is_err() {
        shared.store.engine().measure_space();
        shared.hints.measure_space();
        shared.store.engine().maintain();
        shared.hints.maintain();
    }
}

/// What the ping loop asks of this node.
#[derive(Debug)]
struct NodePings {
    clocks: Clocks,
    facts: FactsKeeper,
}

impl Pings for NodePings {
    fn clock(&self) -> Timestamp {
        self.clocks.hlc().now()
    }

    fn facts_for(&self, peer: &NodeId) -> Facts {
        self.facts.facts_for(peer)
    }

    fn on_pong(&self, peer: &NodeId, clock: Timestamp, facts: &Facts) {
        self.clocks.on_pong(peer);
        let _ = self.clocks.hear(peer, clock); // refused: the peer itself learns why from our answers
        self.facts.on_pong(peer, facts);
    }
}

/// Where a directory's parts lie.
fn part(dir: &Path, name: &str) -> PathBuf {
    dir.join(name)
}
