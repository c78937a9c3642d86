//! Shared: what every part of the request path hangs on, in one place, behind one `Arc`.
//!
//! ```text
//!              Coordinator ──┐                        ┌── LocalStore ── Engine
//!   Replica (rpc::Handler) ──┼── Arc<Shared> ─────────┼── Peers ── Transport, Hlc, latencies
//!   rebuild, scan ───────────┘   own, ring, settings  ├── FailureDetector
//!                                standing, phase      ├── HintStore
//!                                counters, in flight  └── ClockKeeper, FactsSource (given by the node)
//! ```
//!
//! Nothing here waits: it is state and small questions about it.

use std::fmt;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use smallvec::SmallVec;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::api::{NotSent, ReplicationStats};
use super::checkpoint::{CheckpointError, Checkpoints};
use super::hot_keys::HotKeys;
use super::late_versions::LateVersions;
use super::quick_read::QuickReads;
use super::rebuild::RebuildWatch;
use super::write_groups::WriteGroups;
use super::{Clocks, LocalStore, Peers, StandingCell};
use crate::cluster::{Ring, Token};
use crate::env::{Env, Rng};
use crate::gossip::{FailureDetector, Liveness};
use crate::hints::HintStore;
use crate::hlc::{self, Hlc, MarkFailed};
use crate::rpc::{BoxFuture, Facts};
use crate::types::{NodeId, Timestamp};

/// The figures of the request path.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// W, 1 to N.
    pub write_quorum: usize,
    /// R, 1 to N.
    pub read_quorum: usize,
    /// The longest a request waits for its quorum, and its stragglers for their end.
    pub network_timeout: Duration,
    /// For which share of reads the replicas beyond R are asked too, 0 to 1.
    pub read_repair_chance: f64,
    /// Groups of one batch in flight, at most.
    pub batch_concurrency: usize,
    /// Bytes of clients' requests in flight, at most.
    pub inflight_bytes_max: usize,
}

/// Whether clients' requests are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Not yet: recovery is under way.
    Starting = 0,
    /// Yes.
    Serving = 1,
    /// No longer. Peers are still answered until the engine is closed.
    Stopping = 2,
}

/// Raises the clock's mark on disk when the clock has run up to it. Implemented by the node.
pub trait ClockKeeper: Send + Sync + fmt::Debug {
    /// Gives the next timestamp, waiting for a higher mark to be synced first if need be.
    ///
    /// # Errors
    /// [`MarkFailed`] once a mark could not be written: nothing was given, and nothing will be until a restart.
    fn tick(&self) -> BoxFuture<Result<Timestamp, MarkFailed>>;
    /// Starts to write a higher mark. Does not wait.
    fn raise(&self);
    /// Whether it has come to that.
    fn has_failed(&self) -> bool;
}

impl ClockKeeper for hlc::ClockKeeper {
    fn tick(&self) -> BoxFuture<Result<Timestamp, MarkFailed>> {
        let keeper = self.clone();
        Box::pin(async move { keeper.tick().await })
    }

    fn raise(&self) {
        self.raise();
    }

    fn has_failed(&self) -> bool {
        self.has_failed()
    }
}

/// What this node tells a peer about itself, and where it hears what peers tell. Implemented by the node.
pub trait FactsSource: Send + Sync + fmt::Debug {
    /// What `peer` is told about this node.
    fn facts_for(&self, peer: &NodeId) -> Facts;
    /// Hears what `peer` told of itself in a ping.
    fn on_facts(&self, peer: &NodeId, facts: &Facts);
    /// Whether what must be remembered can no longer be written. Costs no I/O.
    fn has_failed(&self) -> bool {
        false
    }
}

/// Says how busy this node is. Implemented by `http`, which counts the requests, and asked only while somebody looks.
pub trait LoadSource: Send + Sync + fmt::Debug {
    /// JSON for the status page.
    fn load(&self) -> Bytes;
}

/// What the node hands to [`Shared::new`].
#[derive(Debug)]
pub struct Parts {
    /// This node's name.
    pub own: NodeId,
    /// Who holds what.
    pub ring: Arc<Ring>,
    /// The figures.
    pub settings: Settings,
    /// The world.
    pub env: Env,
    /// The data engine.
    pub store: LocalStore,
    /// The other nodes.
    pub peers: Peers,
    /// Who is believed to be alive.
    pub detector: FailureDetector,
    /// Writes kept for others.
    pub hints: HintStore,
    /// Whether this node's disk counts.
    pub standing: StandingCell,
    /// The clock.
    pub hlc: Arc<Hlc>,
    /// Raises the clock's mark.
    pub clock_keeper: Arc<dyn ClockKeeper>,
    /// What this node says of itself.
    pub facts: Arc<dyn FactsSource>,
}

/// What every part of the request path hangs on.
#[derive(Debug)]
pub struct Shared {
    /// This node's name.
    pub own: NodeId,
    /// Who holds what.
    pub ring: Arc<Ring>,
    /// The figures.
    pub settings: Settings,
    /// The world: chance, tasks, planted mistakes.
    pub env: Env,
    /// The data engine.
    pub store: LocalStore,
    /// The other nodes.
    pub peers: Peers,
    /// Who is believed to be alive.
    pub detector: FailureDetector,
    /// Writes kept for others.
    pub hints: HintStore,
    /// Whether this node's disk counts.
    pub standing: StandingCell,
    /// The clock.
    pub hlc: Arc<Hlc>,
    /// Whose clock is believed, how far.
    pub clocks: Clocks,
    /// Raises the clock's mark.
    pub clock_keeper: Arc<dyn ClockKeeper>,
    /// What this node says of itself.
    pub facts: Arc<dyn FactsSource>,
    /// What has been done.
    pub counters: Arc<Counters>,
    /// One permit a background repair: [`Shared::REPAIRS_MAX`] at once; beyond it a read mends nothing afterwards.
    pub repairs: Arc<Semaphore>,
    /// What reads found, to be compared with the replicas that they did not ask.
    pub(super) late_versions: LateVersions,
    /// What reads of this turn of the runtime want to know of other replicas.
    pub(super) quick_reads: QuickReads,
    /// Writes of this turn of the runtime.
    pub(super) write_groups: WriteGroups,
    /// What clients of this node ask for most.
    pub hot_keys: HotKeys,
    /// How the rebuild under way stands, if there is one.
    pub rebuild_watch: RebuildWatch,
    load: OnceLock<Arc<dyn LoadSource>>,
    checkpoints: OnceLock<Arc<dyn Checkpoints>>,
    phase: AtomicU8,
    inflight_bytes: AtomicUsize,
}

/// Something for each replica of a key; no memory of its own while there are as few as there usually are.
pub type PerReplica<T> = SmallVec<[T; 5]>;

/// What is expected of a replica before it is asked; the best last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outlook {
    /// Asking it would only cost time.
    Down,
    /// It may answer, and its answer may not count.
    MayAnswer,
    /// It is expected to answer, and its answer to count.
    Counts,
}

/// Counters since the node started. Relaxed everywhere: each is a figure of its own.
#[derive(Debug, Default)]
pub struct Counters {
    /// Records sent to replicas that a read found behind.
    pub read_repairs: AtomicU64,
    /// Reads that wrote the winner back before they answered.
    pub write_backs: AtomicU64,
    /// Acknowledged writes that met a newer record.
    pub overtaken: AtomicU64,
    /// Timestamps refused because they were too far ahead.
    pub timestamps_refused: AtomicU64,
    /// Requests to peers that failed or timed out.
    pub peer_failures: AtomicU64,
    /// Reads sent to one more replica because one was slow.
    pub hedged_reads: AtomicU64,
    /// Records received by rebuilds.
    pub rebuilt_records: AtomicU64,
    /// Times this node found that a value of its disk had expired.
    pub expired: AtomicU64,
}

/// Adds to a counter.
pub fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

/// Bytes of requests in flight. Given back when dropped.
#[derive(Debug)]
pub struct InflightPermit {
    shared: Arc<Shared>,
    bytes: usize,
}

impl InflightPermit {
    /// How many.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds another of the same node to it.
    pub fn take_over(&mut self, mut other: Self) {
        self.bytes += std::mem::take(&mut other.bytes);
    }

    /// Moves up to `bytes` of it to a permit of its own.
    #[must_use]
    pub fn split(&mut self, bytes: usize) -> Self {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        Self { shared: self.shared.clone(), bytes }
    }
}

impl Drop for InflightPermit {
    fn drop(&mut self) {
        self.shared.inflight_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Shared {
    /// Background repairs at once: enough to never be short while peers are fast, and few when one is slow.
    pub const REPAIRS_MAX: usize = 1024;

    /// Puts the parts together. The phase is [`Phase::Starting`].
    pub fn new(parts: Parts) -> Arc<Self> {
        let Parts {
            own,
            ring,
            settings,
            env,
            store,
            peers,
            detector,
            hints,
            standing,
            hlc,
            clock_keeper,
            facts,
        } = parts;
        let (counters, clocks) = (peers.counters().clone(), peers.clocks().clone());
        // Not drawn from the world's chance: which keys are looked at decides nothing.
        let others = ring.membership().members().iter().map(|member| &member.id).filter(|node| **node != own);
        let (late_versions, quick_reads) = (LateVersions::new(others.clone()), QuickReads::new(others));
        let hot_keys_rng = Rng::from_seed(Token::of(own.as_str().as_bytes()).0);
        Arc::new(Self {
            own,
            ring,
            settings,
            env,
            store,
            peers,
            detector,
            hints,
            standing,
            hlc,
            clocks,
            clock_keeper,
            facts,
            counters,
            repairs: Arc::new(Semaphore::new(Self::REPAIRS_MAX)),
            late_versions,
            quick_reads,
            write_groups: WriteGroups::default(),
            hot_keys: HotKeys::new(hot_keys_rng),
            rebuild_watch: RebuildWatch::default(),
            load: OnceLock::new(),
            checkpoints: OnceLock::new(),
            phase: AtomicU8::new(Phase::Starting as u8),
            inflight_bytes: AtomicUsize::new(0),
        })
    }

    /// Whether clients' requests are taken.
    pub fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Acquire) {
            0 => Phase::Starting,
            1 => Phase::Serving,
            _ => Phase::Stopping,
        }
    }

    /// Moves on to another phase.
    pub fn set_phase(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Release);
    }

    /// # Errors
    /// [`NotSent::NotReady`] unless clients' requests are taken.
    pub fn check_serving(&self) -> Result<(), NotSent> {
        match self.phase() {
            Phase::Serving => Ok(()),
            Phase::Starting => Err(NotSent::NotReady("starting".to_owned())),
            Phase::Stopping => Err(NotSent::NotReady("stopping".to_owned())),
        }
    }

    /// Takes `bytes` out of `MAX_INFLIGHT_BYTES`. One request may fill it, however large: the doors bound it.
    ///
    /// # Errors
    /// [`NotSent::Overloaded`] when others have taken it.
    pub fn admit(self: &Arc<Self>, bytes: usize) -> Result<InflightPermit, NotSent> {
        let max = self.settings.inflight_bytes_max;
        let bytes = bytes.min(max);
        let taken = self.inflight_bytes.fetch_add(bytes, Ordering::Relaxed);
        let permit = InflightPermit { shared: self.clone(), bytes };
        if taken + bytes > max {
            return Err(NotSent::Overloaded); // dropping the permit gives the bytes back
        }
        Ok(permit)
    }

    /// What is expected of each of these nodes now.
    pub fn outlooks(&self, nodes: &[NodeId], now: Instant) -> PerReplica<Outlook> {
        let beliefs = self.detector.beliefs(nodes, now).into_iter();
        let outlook = |(node, (liveness, votes)): (&NodeId, (Liveness, bool))| {
            if *node == self.own {
                return if self.standing.is_voting() { Outlook::Counts } else { Outlook::MayAnswer };
            }
            match liveness {
                Liveness::Dead => Outlook::Down,
                _ if votes => Outlook::Counts,
                Liveness::Alive | Liveness::Suspect => Outlook::MayAnswer,
            }
        };
        nodes.iter().zip(beliefs).map(outlook).collect()
    }

    /// Whether a node's answers are expected to come and to count.
    pub fn is_reachable_and_voting(&self, node: &NodeId) -> bool {
        if *node == self.own { self.standing.is_voting() } else { self.detector.is_voting(node) }
    }

    /// Whether asking a node would only cost time.
    pub fn is_known_down(&self, node: &NodeId) -> bool {
        *node != self.own && self.detector.liveness(node) == Liveness::Dead
    }

    /// From now on `source` says how busy this node is. The first one stays.
    pub fn set_load_source(&self, source: Arc<dyn LoadSource>) {
        let _ = self.load.set(source);
    }

    /// From now on `checkpoints` makes copies of this node's directory. The first one stays.
    pub fn set_checkpoints(&self, checkpoints: Arc<dyn Checkpoints>) {
        let _ = self.checkpoints.set(checkpoints);
    }

    /// What makes copies of this node's directory.
    pub fn checkpoints(&self) -> Result<&Arc<dyn Checkpoints>, CheckpointError> {
        self.checkpoints.get().ok_or(CheckpointError::Busy)
    }

    /// How busy this node is; empty before anybody can say.
    pub fn own_load(&self) -> Bytes {
        self.load.get().map(|source| source.load()).unwrap_or_default()
    }

    /// What the request path has done.
    pub fn stats(&self) -> ReplicationStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &self.counters;
        let hints = self.hints.stats();
        ReplicationStats {
            hints_stored: hints.stored,
            hints_delivered: hints.delivered,
            hints_dropped: hints.dropped,
            read_repairs: read(&counters.read_repairs),
            write_backs: read(&counters.write_backs),
            overtaken: read(&counters.overtaken),
            timestamps_refused: read(&counters.timestamps_refused),
            peer_failures: read(&counters.peer_failures),
            hedged_reads: read(&counters.hedged_reads),
            rebuilt_records: read(&counters.rebuilt_records),
            expired: read(&counters.expired),
            inflight_bytes: self.inflight_bytes.load(Ordering::Relaxed) as u64,
            repairs_running: Self::REPAIRS_MAX.saturating_sub(self.repairs.available_permits()) as u64,
        }
    }
}
