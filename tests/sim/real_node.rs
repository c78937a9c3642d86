//! The real node as a member of the simulated world: nothing of it is replaced but what it stands on.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kvstore::config::Config;
use kvstore::engine::{Engine, Options as EngineOptions};
use kvstore::env::{Env, ManualClock, MemVfs, Planted, Pool, Rng, Tasks};
use kvstore::node::Node;
use kvstore::replication::CheckpointName;
use kvstore::replication::Coordinator;
use kvstore::replication::api::{
    BatchReceipt, Mutation, ReadOptions, ReplicaState, ScanOptions, WriteError, WriteOptions,
};
use kvstore::rpc::{BoxFuture, Handler};
use kvstore::types::{Key, KeyRange, NodeId, Record, Timestamp, Value};

use super::history::Outcome;
use super::member::{Health, How, Member, Start, Starter};
use super::run::Options;
use super::shape::name_of;

/// Where a node's data lies on its machine.
pub const DIR: &str = "/node";

/// A node and the coordinator that clients ask.
struct RealNode {
    node: Arc<Node>,
    coordinator: Coordinator,
    /// Whether a clock that was read earlier is a lower bound of timestamps given later.
    clocks_run_forward: bool,
    /// Rows of a page of a scan.
    rows_max: usize,
}

/// Starts real nodes.
pub fn starter() -> Starter {
    Arc::new(|start| {
        Box::pin(async move {
            let Start { node, dir, options, env, transport } = start;
            let started = Node::start(config(node, dir, &options), env, transport)
                .map_err(|error| error.to_string())?;
            Ok(Arc::new(RealNode {
                coordinator: started.coordinator(),
                node: Arc::new(started),
                clocks_run_forward: !options.faults.moves_clocks(),
                rows_max: if options.keys <= 32 { 3 } else { 25 },
            }) as Arc<dyn Member>)
        })
    })
}

/// What a node is configured with.
pub fn config(node: usize, dir: PathBuf, options: &Options) -> Config {
    let settings = &options.shape.nodes[node];
    Config {
        advertise_addr: name_of(node).as_str().to_owned(),
        members: options.shape.members(),
        dir,
        memtable_size: options.memtable_size,
        l0_files_max: 3,
        sparse_index_interval: 8,
        block_cache_size: 256 << 10,
        range_count: options.shape.range_count,
        replication_factor: options.shape.replication_factor,
        write_quorum: settings.write_quorum,
        read_quorum: settings.read_quorum,
        network_timeout: settings.network_timeout,
        clock_skew_max: options.clock_skew_max,
        hints_bytes_max: options.hints_bytes_max,
        ..Config::default()
    }
}

/// A world around a disk whose node does not run.
pub fn env_of(disk: MemVfs, planted: Planted) -> Env {
    let (tasks, rng) = (Tasks::abortable(), Rng::from_seed(0));
    let pool = Pool::simulated(tasks.clone(), rng.fork(), Duration::from_millis(1));
    Env { fs: Arc::new(disk), clock: Arc::new(ManualClock::at(1)), pool, rng, tasks, planted }
}

/// What a disk holds of a key after a machine stopped: `keep_all` as after `kill -9`, otherwise only what was synced.
pub fn held_on_disk(disk: &MemVfs, dir: &Path, keep_all: bool, key: &Key) -> Result<Option<Record>, String> {
    let copy = disk.fork();
    if keep_all {
        copy.crash_keep_all();
    } else {
        copy.crash_lose_all();
    }
    let env = env_of(copy, Planted::default());
    let options = EngineOptions { memtable_size: 64 << 10, ..EngineOptions::default() };
    let opened = Engine::open(&env, &dir.join("data"), options);
    let (engine, _) = opened.map_err(|error| error.to_string())?;
    let held = engine.get(key).map_err(|error| error.to_string());
    env.tasks.abort_all();
    held
}

impl Member for RealNode {
    fn handler(&self) -> Arc<dyn Handler> {
        self.node.handler()
    }

    fn write(&self, items: Vec<(Key, Mutation)>, how: How) -> BoxFuture<Vec<Outcome>> {
        let coordinator = self.coordinator.clone();
        let options = WriteOptions { write_quorum: how.quorum, sloppy: how.sloppy };
        let at_least = if self.clocks_run_forward { coordinator.clock() } else { Timestamp::ZERO };
        Box::pin(async move {
            if items.len() > 1 {
                let keys: Vec<Key> = items.iter().map(|(key, _)| key.clone()).collect();
                let receipt = coordinator.batch(items, options).await;
                return keys.iter().map(|key| outcome_of_item(key, &receipt, at_least)).collect();
            }
            let mut outcomes = Vec::new();
            for (key, mutation) in items {
                outcomes.push(match coordinator.write(key, mutation, options).await {
                    Ok(receipt) => {
                        Outcome::Acknowledged { at_least: receipt.timestamp, at_most: receipt.timestamp }
                    }
                    Err(error) => outcome_of(&error),
                });
            }
            outcomes
        })
    }

    fn read(&self, key: Key, how: How) -> BoxFuture<Result<Option<Record>, String>> {
        let coordinator = self.coordinator.clone();
        let options = ReadOptions { read_quorum: how.quorum };
        Box::pin(async move { coordinator.get(key, options).await.map_err(|error| error.to_string()) })
    }

    fn scan(&self, how: How) -> BoxFuture<Result<Vec<(Key, Value)>, String>> {
        let (coordinator, rows_max) = (self.coordinator.clone(), self.rows_max);
        Box::pin(async move {
            let mut items = Vec::new();
            let mut range = KeyRange::default();
            loop {
                let options = ScanOptions {
                    range: range.clone(),
                    read_quorum: how.quorum,
                    rows_max,
                    bytes_max: 4 << 20,
                    examined_max: 1000,
                };
                let page = coordinator.scan_page(options).await.map_err(|error| error.to_string())?;
                items.extend(page.values().map(|(key, value)| (key.clone(), value.clone())));
                match page.resume {
                    Some(resume) => range.start = Some(resume),
                    None => return Ok(items),
                }
            }
        })
    }

    fn explain(&self, key: Key) -> BoxFuture<Vec<ReplicaState>> {
        let coordinator = self.coordinator.clone();
        Box::pin(async move {
            let explanation = coordinator.explain(key).await;
            explanation.replicas.into_iter().map(|(_, state)| state).collect()
        })
    }

    fn clock(&self) -> Timestamp {
        self.coordinator.clock()
    }

    fn health(&self) -> Health {
        let problems: Vec<(&str, String)> = self
            .coordinator
            .readiness()
            .into_iter()
            .filter_map(|check| check.problem.map(|problem| (check.name, problem)))
            .collect();
        let has = |name: &str| problems.iter().any(|(problem, _)| *problem == name);
        let (stats, hints) = (self.coordinator.stats(), self.node.hints());
        Health {
            poisoned: self.coordinator.engine_stats().poisoned
                || self.node.hints().engine_stats().poisoned
                || problems.iter().any(|(name, why)| *name == "disk" && why.contains("failed")),
            voting: !has("voting"),
            hints: hints.targets().iter().map(|target| hints.pending(target).0).sum(),
            hints_dropped: stats.hints_dropped,
            held: vec![("bytes in flight", stats.inflight_bytes), ("repairs", stats.repairs_running)],
            problems: problems.iter().map(|(name, problem)| format!("{name}: {problem}")).collect(),
        }
    }

    fn stop(&self) -> BoxFuture<()> {
        let node = self.node.clone();
        Box::pin(async move { node.stop().await })
    }

    fn checkpoint(&self, name: String) -> BoxFuture<bool> {
        let coordinator = self.coordinator.clone();
        let name = CheckpointName::new(&name).expect("a name");
        Box::pin(async move { coordinator.checkpoint(name).await.is_ok() })
    }

    fn holds(&self, key: &Key) -> Option<Option<Record>> {
        self.node.engine().get(key).ok()
    }

    fn hint(&self, target: &NodeId, key: &Key) -> Option<Record> {
        let hints = self.node.hints().page(target, None, usize::MAX, usize::MAX).ok()?;
        hints.into_iter().find(|hint| hint.key == *key).map(|hint| hint.record)
    }
}

fn outcome_of_item(key: &Key, receipt: &BatchReceipt, at_least: Timestamp) -> Outcome {
    match receipt.failed.iter().find(|failed| failed.key == *key) {
        Some(failed) => outcome_of(&failed.error),
        None => Outcome::Acknowledged { at_least, at_most: receipt.timestamp },
    }
}

fn outcome_of(error: &WriteError) -> Outcome {
    match error {
        WriteError::NotSent(_) | WriteError::NoSpace => Outcome::NotSent,
        WriteError::Unknown { .. } => Outcome::Unknown,
    }
}
