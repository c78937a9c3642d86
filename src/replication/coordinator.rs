//! `Coordinator`: get, put, delete, batch and scan for clients. `replication` draws what becomes of each.
//!
//! This file decides whether a request may start (503 if not: nothing was sent), gives a write its one
//! timestamp, and hands over to `WriteOp`, `read` or `batch`.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, timeout};

use super::api::{
    BatchReceipt, Check, Explanation, Mutation, NodeState, NodeStatus, NotSent, ReadError, ReadOptions,
    ReplicaState, ReplicationStats, ScanOptions, ValuePage, WriteError, WriteOptions, WriteReceipt,
};
use super::checkpoint::{CheckpointError, CheckpointInfo, CheckpointName};
use super::hot_keys::{Access, Hottest};
use super::quorum::QuorumMode;
use super::shared::{LoadSource, Outlook, Phase, Shared};
use super::{batch, read, scan, write_groups};
use crate::cluster::{RangeId, Ring, Token};
use crate::engine::EngineStats;
use crate::env::Mistake;
use crate::gossip::Liveness;
use crate::hlc::majority::Verdict;
use crate::rpc::{ReplicaRequest, ReplicaResponse};
use crate::types::{Expiry, Key, NodeId, Record, Timestamp, Value};

/// Serves clients' requests on one node. A clone is the same coordinator.
#[derive(Debug, Clone)]
pub struct Coordinator {
    shared: Arc<Shared>,
}

impl Coordinator {
    /// Serves for the node that `shared` belongs to.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Gives a key a value; returns once W replicas have it on disk. Dropping the future does not stop the write.
    pub async fn put(
        &self,
        key: Key,
        value: Value,
        options: WriteOptions,
    ) -> Result<WriteReceipt, WriteError> {
        self.write(key, Mutation::Put(value), options).await
    }

    /// Deletes a key; returns once W replicas have the tombstone on disk. Dropping the future does not stop it.
    pub async fn delete(&self, key: Key, options: WriteOptions) -> Result<WriteReceipt, WriteError> {
        self.write(key, Mutation::Delete, options).await
    }

    /// Changes a key; returns once W replicas have that on disk. Dropping the future does not stop it.
    pub async fn write(
        &self,
        key: Key,
        mutation: Mutation,
        options: WriteOptions,
    ) -> Result<WriteReceipt, WriteError> {
        let shared = &self.shared;
        shared.hot_keys.note(&key, Access::Write);
        let how = self.how(options);
        let range = shared.ring.range_of(Token::of(key.as_bytes()));
        shared.check_serving()?;
        shared.check_writable(range, how.needed, how.mode)?;
        let permit = shared.admit(batch::weight(&key, &mutation))?;
        let record = mutation.at(self.tick().await?);
        write_groups::write(shared, range, how, (key, record), permit).await
    }

    /// Writes many items; each is answered for by itself in [`BatchReceipt::failed`]. Not atomic across keys.
    /// Dropping the future does not stop it.
    pub async fn batch(&self, items: Vec<(Key, Mutation)>, options: WriteOptions) -> BatchReceipt {
        let shared = &self.shared;
        let weight = items.iter().map(|(key, mutation)| batch::weight(key, mutation)).sum();
        let permit = match shared.check_serving().and_then(|()| shared.admit(weight)) {
            Ok(permit) => permit,
            Err(why) => return batch::not_sent(&items, &why),
        };
        let chunks = batch::plan(&shared.ring, &items);
        let mut stamped = Vec::with_capacity(items.len());
        let mut items = items.into_iter();
        while let Some((key, mutation)) = items.next() {
            shared.hot_keys.note(&key, Access::Write);
            match self.tick().await {
                Ok(timestamp) => stamped.push((key, mutation.at(timestamp))),
                Err(why) => {
                    let mut all: Vec<_> =
                        stamped.into_iter().map(|(key, _)| (key, Mutation::Delete)).collect();
                    all.push((key, mutation));
                    all.extend(items);
                    return batch::not_sent(&all, &why);
                }
            }
        }
        if shared.env.planted.has(Mistake::BatchOfOneTimestamp) {
            batch::stamp_alike(&mut stamped);
        }
        let (how, items) = (self.how(options), Arc::new(stamped));
        let run = batch::run(shared.clone(), items.clone(), chunks, how, permit);
        shared.env.tasks.spawn(run).await.unwrap_or_else(|_| batch::cut_short(&items, how.needed))
    }

    /// Returns the newest record that R replicas know, a tombstone too.
    pub async fn get(&self, key: Key, options: ReadOptions) -> Result<Option<Record>, ReadError> {
        self.shared.hot_keys.note(&key, Access::Read);
        read::get(&self.shared, key, self.read_quorum(options.read_quorum)).await
    }

    /// Returns one page of a scan.
    pub async fn scan_page(&self, options: ScanOptions) -> Result<ValuePage, ReadError> {
        self.shared.check_serving()?;
        scan::page(&self.shared, options).await
    }

    /// Asks every replica of a key what it holds.
    pub async fn explain(&self, key: Key) -> Explanation {
        let replicas = read::ask_all(&self.shared, &key).await;
        let mut winner: Option<(&NodeId, &Record)> = None;
        for (node, state) in &replicas {
            if let ReplicaState::Holds(record) = state
                && winner.is_none_or(|(_, best)| record.supersedes(best))
            {
                winner = Some((node, record));
            }
        }
        Explanation { winner: winner.map(|(node, _)| node.clone()), replicas }
    }

    /// This node's name.
    pub fn own(&self) -> &NodeId {
        &self.shared.own
    }

    /// The ring.
    pub fn ring(&self) -> &Arc<Ring> {
        &self.shared.ring
    }

    /// W and R where a request does not say otherwise.
    pub fn quorums(&self) -> (usize, usize) {
        (self.shared.settings.write_quorum, self.shared.settings.read_quorum)
    }

    /// What must hold before the node takes requests; ready when no check has a problem. Costs no I/O.
    pub fn readiness(&self) -> Vec<Check> {
        let shared = &self.shared;
        let recovered = match shared.phase() {
            Phase::Starting => Some("recovery is under way"),
            Phase::Serving => None,
            Phase::Stopping => Some("the node is stopping"),
        };
        let voting = (!shared.standing.is_voting()).then(|| {
            let rebuilding = "this disk is being rebuilt from its peers";
            match shared.rebuild_watch.problem() {
                Some(problem) => format!("{rebuilding}: {problem}"),
                None => rebuilding.to_owned(),
            }
        });
        let clock = match shared.clocks.verdict() {
            Verdict::InBounds => None,
            Verdict::Unchecked => Some("not compared with the clocks of a majority yet".to_owned()),
            Verdict::Ahead(by) => Some(format!(
                "{:.1} s ahead of the clocks of a majority: no writes are taken until it is put right",
                by.as_secs_f64()
            )),
            Verdict::Behind(by) => Some(format!(
                "{:.1} s behind the clocks of a majority: clock behind; this node goes by theirs",
                by.as_secs_f64()
            )),
        };
        let (data, hints) = (shared.store.engine().stats(), shared.hints.engine_stats());
        let disk = if data.poisoned
            || hints.poisoned
            || shared.clock_keeper.has_failed()
            || shared.facts.has_failed()
        {
            Some("an earlier write or sync failed: writes are refused until a restart".to_owned())
        } else if let Some(error) = data.disk_error.or(hints.disk_error) {
            Some(format!("the disk cannot be used: {error}"))
        } else {
            data.out_of_space.then(|| "out of space: values are refused, deletes make room".to_owned())
        };
        let said = |problem: Option<&str>| problem.map(str::to_owned);
        [("recovered", said(recovered)), ("voting", voting), ("clock", clock), ("disk", disk)]
            .map(|(name, problem)| Check { name, problem })
            .to_vec()
    }

    /// Every member as this node sees it, itself included, sorted by name. Costs no I/O.
    pub fn nodes(&self) -> Vec<NodeStatus> {
        let members = self.shared.ring.membership().members();
        members.iter().map(|member| self.node_status(&member.id)).collect()
    }

    fn node_status(&self, node: &NodeId) -> NodeStatus {
        let shared = &self.shared;
        let own = *node == shared.own;
        let (hints_pending, hint_bytes) = shared.hints.pending(node);
        let clock_offset_ms = shared.detector.clock_offset(node).map(|offset| offset.micros / 1000);
        NodeStatus {
            node: node.clone(),
            state: match if own { Liveness::Alive } else { shared.detector.liveness(node) } {
                Liveness::Alive if shared.is_reachable_and_voting(node) => NodeState::Up,
                Liveness::Alive => NodeState::Rebuilding,
                Liveness::Suspect => NodeState::Suspect,
                Liveness::Dead => NodeState::Down,
            },
            share: shared.ring.share(node),
            hints_pending,
            hint_bytes,
            clock_offset_ms: if own { Some(0) } else { clock_offset_ms },
            clock_was_off: shared.clocks.was_off(node),
            mismatch: shared.peers.mismatch(node),
        }
    }

    /// What clients of this node ask for most.
    pub fn hottest_keys(&self, limit: usize) -> Hottest {
        self.shared.hot_keys.hottest(limit)
    }

    /// Hints that this node holds for a member.
    pub fn hints_for(&self, node: &NodeId) -> u64 {
        self.shared.hints.pending(node).0
    }

    /// From now on `source` says how busy this node is. The first one stays.
    pub fn set_load_source(&self, source: Arc<dyn LoadSource>) {
        self.shared.set_load_source(source);
    }

    /// How busy a member says it is, as JSON for the status page. `None` if it is believed dead, or says nothing
    /// within `patience`.
    pub async fn load_of(&self, node: &NodeId, patience: Duration) -> Option<Bytes> {
        let shared = &self.shared;
        let load = if *node == shared.own {
            shared.own_load()
        } else if shared.is_known_down(node) {
            return None;
        } else {
            match shared.peers.call(node, ReplicaRequest::AskLoad, patience).await {
                Ok(ReplicaResponse::Load(load)) => load,
                _ => return None,
            }
        };
        (!load.is_empty()).then_some(load)
    }

    /// Copies this node's directory while it serves.
    pub async fn checkpoint(&self, name: CheckpointName) -> Result<CheckpointInfo, CheckpointError> {
        self.shared.check_serving().map_err(|_| CheckpointError::Busy)?;
        self.shared.checkpoints()?.make(name).await
    }

    /// The copies there are, by name.
    pub async fn checkpoints(&self) -> Result<Vec<CheckpointInfo>, CheckpointError> {
        self.shared.checkpoints()?.list().await
    }

    /// Removes a copy.
    pub async fn remove_checkpoint(&self, name: CheckpointName) -> Result<(), CheckpointError> {
        self.shared.checkpoints()?.remove(name).await
    }

    /// What the request path has done.
    pub fn stats(&self) -> ReplicationStats {
        self.shared.stats()
    }

    /// What the data engine has done.
    pub fn engine_stats(&self) -> EngineStats {
        self.shared.store.engine().stats()
    }

    /// Has the disk looked at for its free space, for whoever asks for [`Coordinator::engine_stats`] next. Does not wait.
    pub fn measure_space(&self) {
        self.shared.store.engine().measure_space();
    }

    /// The clock's reading.
    pub fn clock(&self) -> Timestamp {
        self.shared.hlc.now()
    }

    /// How far the ring's time is ahead of its wall clocks, where they were ahead once and were put right.
    pub fn ring_ahead(&self) -> Option<Duration> {
        self.shared.clocks.ring_ahead()
    }

    /// How far a clock may be from a majority's.
    pub fn clock_skew_max(&self) -> Duration {
        self.shared.hlc.skew_max()
    }

    fn how(&self, options: WriteOptions) -> batch::How {
        let planted = self.shared.env.planted;
        let asked = options.write_quorum.filter(|_| !planted.has(Mistake::WriteQuorumOfRequestIgnored));
        let needed = asked.unwrap_or(self.shared.settings.write_quorum);
        batch::How {
            needed: needed.clamp(1, self.shared.ring.replication_factor()),
            mode: if options.sloppy { QuorumMode::Sloppy } else { QuorumMode::Strict },
        }
    }

    fn read_quorum(&self, asked: Option<usize>) -> usize {
        let planted = self.shared.env.planted;
        let asked = asked.filter(|_| !planted.has(Mistake::ReadQuorumOfRequestIgnored));
        let needed = asked.unwrap_or(self.shared.settings.read_quorum);
        needed.clamp(1, self.shared.ring.replication_factor())
    }

    /// The next timestamp. Where the clock has reached its mark on disk, it waits for a higher one.
    async fn tick(&self) -> Result<Timestamp, NotSent> {
        let shared = &self.shared;
        if let Ok(timestamp) = shared.hlc.tick() {
            if shared.hlc.wants_mark() {
                shared.clock_keeper.raise(); // in time, so that hardly any write waits for it
            }
            return Ok(timestamp);
        }
        match timeout(shared.settings.network_timeout, shared.clock_keeper.tick()).await {
            Ok(Ok(timestamp)) => Ok(timestamp),
            Ok(Err(error)) => Err(NotSent::NotReady(error.to_string())),
            Err(_) => Err(NotSent::NotReady("the clock's mark waits for the disk".to_owned())),
        }
    }
}

impl Mutation {
    /// The record that it makes at `timestamp`.
    fn at(self, timestamp: Timestamp) -> Record {
        match self {
            Self::Put(value) => Record::value(timestamp, value),
            // By the write's own clock, so that whoever is told the timestamp and the ttl knows the end.
            Self::PutFor(value, ttl) => {
                Record::value(timestamp, value.expiring(Some(Expiry::after(timestamp, ttl))))
            }
            Self::Delete => Record::tombstone(timestamp),
        }
    }
}

impl Shared {
    /// Whether a write to the replicas of a range may start.
    ///
    /// # Errors
    /// Fewer nodes than the quorum are known to be reachable and to count, or this clock is ahead of a majority's.
    pub(super) fn check_writable(
        &self,
        range: RangeId,
        needed: usize,
        mode: QuorumMode,
    ) -> Result<(), NotSent> {
        let verdict = self.clocks.verdict();
        if let Verdict::Ahead(by) = verdict {
            return Err(NotSent::ClockAhead(by));
        }
        let replicas = self.ring.primaries(range);
        let outlooks = self.outlooks(replicas, Instant::now());
        let mut reachable = outlooks.iter().filter(|outlook| **outlook == Outlook::Counts).count();
        if reachable < needed && mode == QuorumMode::Sloppy {
            let list = self.ring.preference_list(range);
            reachable += list.fallbacks().iter().filter(|node| !self.is_known_down(node)).count();
        }
        if reachable < needed && !self.env.planted.has(Mistake::HintCountsAsAck) {
            return Err(NotSent::TooFewReplicas { needed, reachable, total: replicas.len() });
        }
        if verdict == Verdict::Unchecked {
            let why = "the clock has not been compared with the clocks of a majority yet";
            return Err(NotSent::NotReady(why.to_owned()));
        }
        Ok(())
    }
}
