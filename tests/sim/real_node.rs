//! The real node as a member of the simulated world: nothing of it is replaced but what it stands on.

use std::path::PathBuf;
use std::sync::Arc;

use kvstore::cluster::Member as ClusterMember;
use kvstore::config::Config;
use kvstore::node::Node;
use kvstore::replication::Coordinator;
use kvstore::replication::api::{
    BatchReceipt, Mutation, ReadOptions, ReplicaState, ScanOptions, WriteError, WriteOptions,
};
use kvstore::rpc::{BoxFuture, Handler};
use kvstore::types::{Key, KeyRange, NodeId, Record, Timestamp, Value};

use super::history::Outcome;
use super::member::{Health, Member, Start, Starter};
use super::run::Options;

/// Where a node's data lies on its machine.
pub const DIR: &str = "/node";

/// A node and the coordinator that clients ask.
struct RealNode {
    node: Arc<Node>,
    coordinator: Coordinator,
    /// Whether a clock that was read earlier is a lower bound of timestamps given later.
    clocks_run_forward: bool,
}

/// Starts real nodes.
pub fn starter() -> Starter {
    Arc::new(|start| {
        Box::pin(async move {
            let Start { node, options, env, transport } = start;
            let started =
                Node::start(config(node, &options), env, transport).map_err(|error| error.to_string())?;
            Ok(Arc::new(RealNode {
                coordinator: started.coordinator(),
                node: Arc::new(started),
                clocks_run_forward: !options.faults.clock_jumps,
            }) as Arc<dyn Member>)
        })
    })
}

fn config(node: usize, options: &Options) -> Config {
    let name = |node: usize| format!("10.0.0.{}:8081", node + 1);
    let member =
        |node: usize| ClusterMember { id: NodeId::from_canonical(&name(node)), weight: 10, zone: None };
    Config {
        advertise_addr: name(node),
        members: (0..options.nodes).map(member).collect(),
        dir: PathBuf::from(DIR),
        memtable_size: options.memtable_size,
        l0_files_max: 3,
        sparse_index_interval: 8,
        block_cache_size: 256 << 10,
        range_count: 16,
        replication_factor: 3,
        write_quorum: 2,
        read_quorum: 2,
        network_timeout: options.network_timeout,
        clock_skew_max: options.clock_skew_max,
        ..Config::default()
    }
}

impl Member for RealNode {
    fn handler(&self) -> Arc<dyn Handler> {
        self.node.handler()
    }

    fn write(&self, items: Vec<(Key, Mutation)>) -> BoxFuture<Vec<Outcome>> {
        let coordinator = self.coordinator.clone();
        let at_least = if self.clocks_run_forward { coordinator.clock() } else { Timestamp::ZERO };
        Box::pin(async move {
            if items.len() > 1 {
                let keys: Vec<Key> = items.iter().map(|(key, _)| key.clone()).collect();
                let receipt = coordinator.batch(items, WriteOptions::default()).await;
                return keys.iter().map(|key| outcome_of_item(key, &receipt, at_least)).collect();
            }
            let mut outcomes = Vec::new();
            for (key, mutation) in items {
                outcomes.push(match coordinator.write(key, mutation, WriteOptions::default()).await {
                    Ok(receipt) => {
                        Outcome::Acknowledged { at_least: receipt.timestamp, at_most: receipt.timestamp }
                    }
                    Err(error) => outcome_of(&error),
                });
            }
            outcomes
        })
    }

    fn read(&self, key: Key) -> BoxFuture<Result<Option<Record>, String>> {
        let coordinator = self.coordinator.clone();
        Box::pin(async move {
            coordinator.get(key, ReadOptions::default()).await.map_err(|error| error.to_string())
        })
    }

    fn scan(&self) -> BoxFuture<Result<Vec<(Key, Value)>, String>> {
        let coordinator = self.coordinator.clone();
        Box::pin(async move {
            let mut items = Vec::new();
            let mut range = KeyRange::default();
            loop {
                let options = ScanOptions {
                    range: range.clone(),
                    read_quorum: None,
                    rows_max: 3,
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
        Health {
            poisoned: has("disk") || self.coordinator.engine_stats().poisoned,
            voting: !has("voting"),
            hints: self.coordinator.nodes().iter().map(|status| status.hints_pending).sum(),
            problems: problems.iter().map(|(name, problem)| format!("{name}: {problem}")).collect(),
        }
    }

    fn stop(&self) -> BoxFuture<()> {
        let node = self.node.clone();
        Box::pin(async move { node.stop().await })
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
