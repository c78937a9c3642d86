//! A ring of real nodes in one process, over a network of function calls, a file system in memory and virtual
//! time. Tests that want one fault at a time use it; the simulation (`tests/sim`) has the whole zoo.
#![allow(dead_code)] // each test binary uses its part

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use kvstore::cluster::Member;
use kvstore::config::Config;
use kvstore::env::vfs_mem::MemVfs;
use kvstore::env::{Clock, Env, Planted, Pool, Rng, Tasks};
use kvstore::node::{Node, StartError};
use kvstore::replication::{Coordinator, Mutation, ReadOptions, ScanOptions, WriteOptions};
use kvstore::rpc::{BoxFuture, Error, Handler, ReplicaRequest, Request, Response, Transport};
use kvstore::types::{Key, NodeId, Record, Ttl, Value};
use parking_lot::Mutex;
use tokio::time::Instant;

/// Wall time that follows virtual time.
#[derive(Debug)]
pub struct VirtualClock {
    started: Instant,
    micros: u64,
}

impl Clock for VirtualClock {
    fn wall_micros(&self) -> u64 {
        self.micros + self.started.elapsed().as_micros() as u64
    }
}

/// A node's own clock, which may be off.
#[derive(Debug)]
struct NodeClock {
    right: Arc<VirtualClock>,
    /// By how many microseconds it is ahead.
    offset: AtomicI64,
}

impl Clock for NodeClock {
    fn wall_micros(&self) -> u64 {
        self.right.wall_micros().saturating_add_signed(self.offset.load(Ordering::Relaxed))
    }
}

/// Who answers whom.
#[derive(Debug, Default)]
struct Wires {
    handlers: BTreeMap<NodeId, Arc<dyn Handler>>,
    /// From, to: nothing passes.
    cut: BTreeSet<(NodeId, NodeId)>,
    /// Requests that passed, by kind and receiver.
    passed: BTreeMap<(&'static str, NodeId), u64>,
}

/// The network. A clone is the same.
#[derive(Debug, Clone, Default)]
pub struct Network {
    wires: Arc<Mutex<Wires>>,
}

#[derive(Debug)]
struct Wire {
    network: Network,
    from: NodeId,
}

const LATENCY: Duration = Duration::from_micros(300);

fn kind(request: &ReplicaRequest) -> &'static str {
    match request {
        ReplicaRequest::Ping(_) => "ping",
        ReplicaRequest::Write { .. } => "write",
        ReplicaRequest::StoreHints { .. } => "hints",
        ReplicaRequest::Read { .. } => "read",
        ReplicaRequest::ReadVersions { .. } => "versions",
        ReplicaRequest::Scan(_) => "scan",
        ReplicaRequest::AskLoad => "load",
    }
}

impl Transport for Wire {
    fn call(&self, to: &NodeId, request: Request, timeout: Duration) -> BoxFuture<Result<Response, Error>> {
        let (network, from, to) = (self.network.clone(), self.from.clone(), to.clone());
        Box::pin(async move {
            let answer = async {
                tokio::time::sleep(LATENCY).await;
                let handler = network.find(&from, &to)?;
                *network.wires.lock().passed.entry((kind(&request.body), to.clone())).or_default() += 1;
                let answer = handler.handle(&from, request).await;
                tokio::time::sleep(LATENCY).await;
                network.find(&to, &from)?;
                Ok(answer)
            };
            tokio::time::timeout(timeout, answer).await.unwrap_or(Err(Error::TimedOut))
        })
    }
}

impl Network {
    fn find(&self, from: &NodeId, to: &NodeId) -> Result<Arc<dyn Handler>, Error> {
        let wires = self.wires.lock();
        if wires.cut.contains(&(from.clone(), to.clone())) {
            return Err(Error::Unreachable("cut".to_owned()));
        }
        wires.handlers.get(to).cloned().ok_or_else(|| Error::Unreachable("down".to_owned()))
    }
}

struct Running {
    node: Node,
    tasks: Tasks,
}

/// The ring.
pub struct Ring {
    pub network: Network,
    pub names: Vec<NodeId>,
    pub disks: Vec<MemVfs>,
    pub configs: Vec<Config>,
    pub planted: Planted,
    clocks: Vec<Arc<NodeClock>>,
    running: Vec<Option<Running>>,
    starts: u64,
}

impl Ring {
    /// Prepares nodes; none is started.
    pub fn new(nodes: usize) -> Self {
        let names: Vec<_> =
            (0..nodes).map(|n| NodeId::from_canonical(&format!("127.0.0.1:{}", 9001 + n))).collect();
        let members: Vec<_> =
            names.iter().map(|id| Member { id: id.clone(), weight: 10, zone: None }).collect();
        let quorum = nodes.min(3) / 2 + 1;
        let config = |name: &NodeId| Config {
            advertise_addr: name.as_str().to_owned(),
            members: members.clone(),
            dir: PathBuf::from("/node"),
            memtable_size: 256 << 10,
            block_cache_size: 1 << 20,
            range_count: 64,
            write_quorum: quorum,
            read_quorum: quorum,
            ..Config::default()
        };
        let right = Arc::new(VirtualClock { started: Instant::now(), micros: 1_700_000_000_000_000 });
        let clock = || Arc::new(NodeClock { right: right.clone(), offset: AtomicI64::new(0) });
        Self {
            network: Network::default(),
            clocks: names.iter().map(|_| clock()).collect(),
            configs: names.iter().map(config).collect(),
            disks: names.iter().map(|_| MemVfs::new()).collect(),
            running: names.iter().map(|_| None).collect(),
            names,
            planted: Planted::default(),
            starts: 0,
        }
    }

    /// Prepares nodes and starts them, and waits until all vote.
    pub async fn started(nodes: usize) -> Self {
        let mut ring = Self::new(nodes);
        for node in 0..nodes {
            ring.start(node).unwrap();
        }
        for node in 0..nodes {
            ring.until_voting(node, Duration::from_secs(2)).await;
        }
        ring
    }

    /// The world of one node's next run.
    pub fn env(&self, node: usize) -> Env {
        let rng = Rng::from_seed(1000 * (node as u64 + 1) + self.starts);
        let tasks = Tasks::abortable();
        Env {
            fs: Arc::new(self.disks[node].clone()),
            clock: self.clocks[node].clone(),
            pool: Pool::simulated(tasks.clone(), rng.fork(), Duration::from_micros(200)),
            rng,
            tasks,
            planted: self.planted,
        }
    }

    /// The network as one of them sees it.
    pub fn transport(&self, node: usize) -> Arc<dyn Transport> {
        Arc::new(Wire { network: self.network.clone(), from: self.names[node].clone() })
    }

    /// Starts one.
    pub fn start(&mut self, node: usize) -> Result<(), StartError> {
        self.starts += 1;
        let env = self.env(node);
        let tasks = env.tasks.clone();
        let name = self.names[node].clone();
        let wire = Arc::new(Wire { network: self.network.clone(), from: name.clone() });
        let started = Node::start(self.configs[node].clone(), env, wire)?;
        self.network.wires.lock().handlers.insert(name, started.handler());
        self.running[node] = Some(Running { node: started, tasks });
        Ok(())
    }

    /// Stops one gracefully.
    pub async fn stop(&mut self, node: usize) {
        let running = self.running[node].take().expect("it runs");
        self.network.wires.lock().handlers.remove(&self.names[node]);
        running.node.stop().await;
        running.tasks.abort_all();
    }

    /// Cuts the power of one: what was not synced may be gone.
    pub async fn crash(&mut self, node: usize) {
        let running = self.running[node].take().expect("it runs");
        self.network.wires.lock().handlers.remove(&self.names[node]);
        running.tasks.abort_all();
        drop(running);
        tokio::task::yield_now().await; // aborted tasks are dropped by the runtime
        tokio::time::sleep(Duration::from_millis(1)).await;
        self.disks[node].crash_lose_all();
    }

    /// Cuts the power of one and replaces its disk by an empty one.
    pub async fn wipe(&mut self, node: usize) {
        self.crash(node).await;
        self.disks[node] = MemVfs::new();
    }

    /// Sets a node's clock so that it is this many milliseconds ahead.
    pub fn set_clock_ahead(&self, node: usize, millis: i64) {
        self.clocks[node].offset.store(millis * 1000, Ordering::Relaxed);
    }

    /// Lets nothing pass between two nodes.
    pub fn cut(&self, a: usize, b: usize) {
        let mut wires = self.network.wires.lock();
        wires.cut.insert((self.names[a].clone(), self.names[b].clone()));
        wires.cut.insert((self.names[b].clone(), self.names[a].clone()));
    }

    /// Lets everything pass again.
    pub fn heal(&self) {
        self.network.wires.lock().cut.clear();
    }

    /// How many requests of a kind a node has got.
    pub fn passed(&self, kind: &'static str, node: usize) -> u64 {
        self.network.wires.lock().passed.get(&(kind, self.names[node].clone())).copied().unwrap_or(0)
    }

    /// One node's coordinator.
    pub fn at(&self, node: usize) -> Coordinator {
        self.running[node].as_ref().expect("it runs").node.coordinator()
    }

    /// One node's handler, for asking its disk alone.
    pub fn handler(&self, node: usize) -> Arc<dyn Handler> {
        self.running[node].as_ref().expect("it runs").node.handler()
    }

    /// Whether a node votes, by its own word.
    pub fn is_voting(&self, node: usize) -> bool {
        self.at(node).readiness().iter().all(|check| check.name != "voting" || check.problem.is_none())
    }

    /// Waits until a node votes.
    pub async fn until_voting(&self, node: usize, patience: Duration) {
        until(patience, "votes", || self.is_voting(node)).await;
    }

    /// Waits until every node believes every other to be up and voting.
    pub async fn until_all_see_all(&self) {
        let all_up = || {
            (0..self.names.len()).filter(|node| self.running[*node].is_some()).all(|node| {
                self.at(node).nodes().iter().all(|status| status.state == kvstore::replication::NodeState::Up)
            })
        };
        until(Duration::from_secs(5), "all see all", all_up).await;
    }

    /// Writes one value at the default quorum.
    pub async fn put(&self, node: usize, key: &str, value: &str) {
        let value = Value::new(value.as_bytes().to_vec());
        self.at(node)
            .put(key_of(key), value, WriteOptions::default())
            .await
            .expect("the write is acknowledged");
    }

    /// Writes one value that ends after so many milliseconds, at the default quorum.
    pub async fn put_for(&self, node: usize, key: &str, value: &str, millis: u64) {
        let value = Value::new(value.as_bytes().to_vec());
        let mutation = Mutation::put(value, Ttl::new(Duration::from_millis(millis)));
        let written = self.at(node).write(key_of(key), mutation, WriteOptions::default()).await;
        written.expect("the write is acknowledged");
    }

    /// Deletes one key at the default quorum.
    pub async fn delete(&self, node: usize, key: &str) {
        self.at(node).delete(key_of(key), WriteOptions::default()).await.expect("the delete is acknowledged");
    }

    /// Reads one value at the default quorum.
    pub async fn get(&self, node: usize, key: &str) -> Option<String> {
        let record =
            self.at(node).get(key_of(key), ReadOptions::default()).await.expect("the read is answered");
        record.and_then(|record| record.as_value().map(text))
    }

    /// What one node's disk holds of a key.
    pub async fn held(&self, node: usize, key: &str) -> Option<Record> {
        let request = Request {
            clock: kvstore::types::Timestamp::ZERO,
            body: ReplicaRequest::Read { key: key_of(key) },
        };
        match self.handler(node).handle(&self.names[node], request).await.body {
            kvstore::rpc::ReplicaResponse::Record { record, .. } => record,
            other => panic!("{other:?}"),
        }
    }

    /// Scans everything, page by page of at most `rows`.
    pub async fn scan(&self, node: usize, rows: usize) -> BTreeMap<String, String> {
        let mut found = BTreeMap::new();
        let mut range = kvstore::types::KeyRange::all();
        loop {
            let options = ScanOptions {
                range: range.clone(),
                read_quorum: None,
                rows_max: rows,
                bytes_max: 1 << 20,
                examined_max: 1000,
            };
            let page = self.at(node).scan_page(options).await.expect("the scan is answered");
            assert!(page.items.len() <= rows);
            for (key, value) in page.values() {
                let key = String::from_utf8(key.as_bytes().to_vec()).unwrap();
                assert!(found.last_key_value().is_none_or(|(last, _)| *last < key), "in order, none twice");
                found.insert(key, text(value));
            }
            match page.resume {
                Some(next) => range.start = Some(next),
                None => return found,
            }
        }
    }
}

/// A key of text.
pub fn key_of(key: &str) -> Key {
    Key::new(key.as_bytes().to_vec()).unwrap()
}

fn text(value: &Value) -> String {
    String::from_utf8(value.as_bytes().to_vec()).unwrap()
}

/// Waits until something holds.
pub async fn until(patience: Duration, what: &str, mut holds: impl FnMut() -> bool) {
    let latest = Instant::now() + patience;
    while !holds() {
        assert!(Instant::now() < latest, "not within {patience:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
