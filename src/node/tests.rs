//! Rings of whole nodes in memory: first starts, rebuilds, and what they do when a peer is away or damaged.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, sleep, timeout};

use super::Node;
use crate::cluster::Member;
use crate::config::Config;
use crate::env::vfs_mem::MemVfs;
use crate::env::{Clock, Env, Planted, Pool, Rng, Tasks, Vfs as _};
use crate::replication::{NodeState, ReadOptions, WriteOptions};
use crate::rpc::{self, BoxFuture, Handler, Request, Response, Transport};
use crate::types::{Key, NodeId, Value};

/// Virtual time as a wall clock.
#[derive(Debug)]
struct VirtualClock {
    started: Instant,
}

impl Clock for VirtualClock {
    fn wall_micros(&self) -> u64 {
        1_700_000_000_000_000 + self.started.elapsed().as_micros() as u64
    }
}

/// The network: messages take up to 3 ms each way, and some share of them is lost.
#[derive(Debug)]
struct Net {
    rng: Rng,
    lost: f64,
    handlers: Mutex<Vec<Option<Arc<dyn Handler>>>>,
    /// Whether nothing reaches a node or leaves it.
    cut: Mutex<Vec<bool>>,
}

impl Net {
    fn is_cut(&self, from: usize, to: usize) -> bool {
        let cut = self.cut.lock();
        cut[from] || cut[to]
    }

    async fn travel(&self) {
        if self.rng.chance(self.lost) {
            std::future::pending::<()>().await;
        }
        sleep(Duration::from_micros(self.rng.below(100..3000))).await;
    }
}

#[derive(Debug)]
struct Wire {
    net: Arc<Net>,
    own: usize,
}

impl Transport for Wire {
    #[allow(clippy::disallowed_methods)] // the network is no node's task
    fn call(
        &self,
        to: &NodeId,
        request: Request,
        patience: Duration,
    ) -> BoxFuture<Result<Response, rpc::Error>> {
        let (net, from) = (self.net.clone(), self.own);
        let to = index_of(to);
        let arrived = tokio::spawn(async move {
            let handler = net.handlers.lock()[to].clone();
            let Some(handler) = handler.filter(|_| !net.is_cut(from, to)) else {
                return Err(rpc::Error::Unreachable("nobody is there".to_owned()));
            };
            net.travel().await;
            let response = handler.handle(&name(from), request).await;
            net.travel().await;
            if net.is_cut(from, to) {
                std::future::pending::<()>().await;
            }
            Ok(response)
        });
        Box::pin(async move {
            match timeout(patience, arrived).await {
                Ok(joined) => joined.unwrap_or_else(|_| Err(rpc::Error::Disconnected("ended".to_owned()))),
                Err(_) => Err(rpc::Error::TimedOut),
            }
        })
    }
}

fn name(node: usize) -> NodeId {
    NodeId::from_canonical(&format!("10.0.0.{}:8081", node + 1))
}

fn index_of(name: &NodeId) -> usize {
    let host = name.as_str().split(':').next().unwrap();
    host.rsplit('.').next().unwrap().parse::<usize>().unwrap() - 1
}

/// A ring whose nodes are started, stopped and wiped one by one.
struct Ring {
    net: Arc<Net>,
    rng: Rng,
    config: Config,
    clock: Arc<VirtualClock>,
    seats: Vec<Seat>,
}

struct Seat {
    disk: MemVfs,
    tasks: Tasks,
    node: Option<Arc<Node>>,
}

const DIR: &str = "/node";

impl Ring {
    fn new(nodes: usize, seed: u64, lost: f64) -> Self {
        let rng = Rng::from_seed(seed);
        let member = |node| Member { id: name(node), weight: 10, zone: None };
        let config = Config {
            members: (0..nodes).map(member).collect(),
            dir: PathBuf::from(DIR),
            memtable_size: 1 << 20,
            block_cache_size: 1 << 20,
            sparse_index_interval: 8,
            range_count: 64,
            write_quorum: 2,
            read_quorum: 2,
            ..Config::default()
        };
        let net = Net {
            rng: rng.fork(),
            lost,
            handlers: Mutex::new(vec![None; nodes]),
            cut: Mutex::new(vec![false; nodes]),
        };
        let seat = |_| Seat { disk: MemVfs::new(), tasks: Tasks::abortable(), node: None };
        Self {
            net: Arc::new(net),
            rng,
            config,
            clock: Arc::new(VirtualClock { started: Instant::now() }),
            seats: (0..nodes).map(seat).collect(),
        }
    }

    fn start(&mut self, node: usize) {
        let seat = &mut self.seats[node];
        seat.tasks = Tasks::abortable();
        let rng = self.rng.fork();
        let env = Env {
            fs: Arc::new(seat.disk.clone()),
            clock: self.clock.clone(),
            pool: Pool::simulated(seat.tasks.clone(), rng.fork(), Duration::from_millis(2)),
            rng,
            tasks: seat.tasks.clone(),
            planted: Planted::default(),
        };
        let config = Config { advertise_addr: name(node).to_string(), ..self.config.clone() };
        let wire = Wire { net: self.net.clone(), own: node };
        let started = Node::start(config, env, Arc::new(wire)).unwrap();
        self.net.handlers.lock()[node] = Some(started.handler());
        seat.node = Some(Arc::new(started));
    }

    /// Stops a node in good order: what it holds is in tables afterwards.
    async fn stop(&mut self, node: usize) {
        let stopping = self.seats[node].node.take().unwrap();
        stopping.stop().await;
        self.kill(node);
    }

    fn kill(&mut self, node: usize) {
        self.net.handlers.lock()[node] = None;
        self.seats[node].tasks.abort_all();
        self.seats[node].node = None;
        self.seats[node].disk.crash_keep_all();
    }

    fn cut(&self, node: usize, cut: bool) {
        self.net.cut.lock()[node] = cut;
    }

    fn at(&self, node: usize) -> &Node {
        self.seats[node].node.as_ref().unwrap()
    }

    /// Why a node is not ready; empty when it is.
    fn not_ready(&self, node: usize) -> String {
        let checks = self.at(node).coordinator().readiness();
        checks.into_iter().filter_map(|check| check.problem).collect::<Vec<_>>().join("; ")
    }

    /// Waits until these nodes are ready and know that of each other; says whether they were within `patience`.
    async fn all_serve(&self, nodes: &[usize], patience: Duration) -> bool {
        let latest = Instant::now() + patience;
        loop {
            let knows = |at: usize| {
                let seen = self.at(at).coordinator().nodes();
                nodes.iter().all(|of| seen[position(&seen, *of)].state == NodeState::Up)
            };
            if nodes.iter().all(|node| self.not_ready(*node).is_empty() && knows(*node)) {
                return true;
            }
            if Instant::now() >= latest {
                return false;
            }
            sleep(Duration::from_millis(5)).await;
        }
    }

    async fn put(&self, at: usize, key: &str, value: &str, write_quorum: Option<usize>) -> bool {
        let options = WriteOptions { write_quorum, ..WriteOptions::default() };
        let (key, value) = (Key::new(key.to_owned()).unwrap(), Value::new(value.to_owned()));
        self.at(at).coordinator().put(key, value, options).await.is_ok()
    }

    async fn get(&self, at: usize, key: &str) -> Option<String> {
        let coordinator = self.at(at).coordinator();
        let read = coordinator.get(Key::new(key.to_owned()).unwrap(), ReadOptions::default());
        let record = read.await.unwrap()?;
        Some(String::from_utf8(record.as_value()?.as_bytes().to_vec()).unwrap())
    }

    /// Inverts a byte in the first data block of each of a stopped node's tables.
    fn rot(&self, node: usize) {
        let (disk, dir) = (&self.seats[node].disk, Path::new("/node/data"));
        let names = disk.list(dir).unwrap();
        let is_table = |name: &&String| Path::new(name).extension().is_some_and(|end| end == "sst");
        let tables: Vec<_> = names.iter().filter(is_table).map(|name| dir.join(name)).collect();
        assert!(!tables.is_empty(), "{names:?}");
        for table in tables {
            disk.flip_byte(&table, 3).unwrap();
        }
    }
}

fn position(seen: &[crate::replication::NodeStatus], node: usize) -> usize {
    seen.iter().position(|status| status.node == name(node)).unwrap()
}

/// Starts some nodes of a new ring at various moments; the time from the last start until all of them serve.
async fn first_start(nodes: usize, starting: usize, seed: u64, lost: f64) {
    let mut ring = Ring::new(nodes, seed, lost);
    let mut order: Vec<usize> = (0..nodes).collect();
    for place in (1..nodes).rev() {
        order.swap(place, ring.rng.below(0..place as u64 + 1) as usize);
    }
    order.truncate(starting);
    for node in &order {
        // Nearly at once, a little apart, or so late that the others have given up waiting.
        let apart = [1, 30, 400, 3000][ring.rng.below(0..4) as usize];
        sleep(Duration::from_millis(ring.rng.below(0..apart + 1))).await;
        ring.start(*node);
    }
    let serve = ring.all_serve(&order, Duration::from_secs(2)).await;
    let reasons: Vec<_> = order.iter().map(|node| ring.not_ready(*node)).collect();
    assert!(serve, "seed {seed}: {starting} of {nodes} do not all serve after two seconds: {reasons:?}");
    if nodes == 3 && lost == 0.0 {
        for node in &order {
            // A ping that was overtaken by a later one may still say that its sender does not vote, until the next one.
            let latest = Instant::now() + Duration::from_millis(500);
            while !ring.put(*node, "k", "v", None).await {
                assert!(Instant::now() < latest, "seed {seed}");
                sleep(Duration::from_millis(20)).await;
            }
        }
    }
    for node in 0..nodes {
        ring.kill(node);
    }
}

/// Once one empty node voted, "nobody has ever voted" was false for the others, and their rebuild wanted peers that were
/// not there: 4 of 40 rings of three and 8 of 20 rings of five never served.
#[tokio::test(start_paused = true)]
async fn a_first_start_of_any_majority_serves_within_two_seconds() {
    for seed in 0..40 {
        first_start(3, 2, seed, 0.0).await;
        first_start(3, 3, 1000 + seed, 0.0).await;
    }
    for seed in 0..20 {
        for starting in 3..=5 {
            first_start(5, starting, 2000 + seed * 10 + starting as u64, 0.0).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_first_start_serves_although_messages_are_lost() {
    for seed in 0..20 {
        first_start(3, 2, 3000 + seed, 0.1).await;
        first_start(5, 3, 4000 + seed, 0.1).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_founder_that_crashes_before_its_first_vote_votes_when_it_is_back() {
    let mut ring = Ring::new(3, 1, 0.0);
    ring.start(0);
    ring.start(1);
    // Node 0 votes as soon as it has heard node 1, which is killed in that moment.
    while !ring.not_ready(0).is_empty() && !ring.not_ready(1).is_empty() {
        sleep(Duration::from_micros(100)).await;
    }
    let late = usize::from(ring.not_ready(0).is_empty());
    ring.kill(late);
    sleep(Duration::from_secs(5)).await;
    ring.start(late);
    assert!(ring.all_serve(&[0, 1], Duration::from_secs(2)).await, "{}", ring.not_ready(late));
}

#[tokio::test(start_paused = true)]
async fn a_wiped_node_does_not_pass_for_one_that_is_new() {
    for seed in 0..20 {
        let mut ring = Ring::new(3, seed, 0.0);
        (0..3).for_each(|node| ring.start(node));
        assert!(ring.all_serve(&[0, 1, 2], Duration::from_secs(2)).await);
        assert!(ring.put(0, "k", "v", None).await);
        ring.kill(2);
        ring.seats[2].disk.wipe();
        ring.kill(1); // it comes back later: what it remembers of node 2 is needed
        ring.start(2);
        sleep(Duration::from_secs(10)).await;
        assert_ne!(ring.not_ready(2), "", "seed {seed}: an empty disk votes");
        ring.start(1);
        assert!(ring.all_serve(&[0, 1, 2], Duration::from_secs(5)).await, "seed {seed}");
        assert_eq!(ring.get(2, "k").await.as_deref(), Some("v"), "seed {seed}");
    }
}

/// A rebuild trusted this node's own W: with 3 of 5 it read from three others, although the write had been asked for
/// with `?w=2` and lay on the fourth alone.
#[tokio::test(start_paused = true)]
async fn a_rebuild_reads_every_other_replica_since_a_request_may_have_chosen_a_smaller_w() {
    let mut ring = Ring::new(5, 7, 0.0);
    ring.config.replication_factor = 5;
    (ring.config.write_quorum, ring.config.read_quorum) = (3, 3);
    (0..5).for_each(|node| ring.start(node));
    assert!(ring.all_serve(&[0, 1, 2, 3, 4], Duration::from_secs(2)).await);
    (2..5).for_each(|node| ring.cut(node, true));
    assert!(ring.put(0, "k", "v", Some(2)).await, "nodes 0 and 1 have it on disk");
    ring.kill(1);
    ring.seats[1].disk.wipe();
    ring.kill(0); // and with it the hints for the others
    (2..5).for_each(|node| ring.cut(node, false));
    ring.start(1);
    sleep(Duration::from_secs(30)).await;
    let reason = ring.not_ready(1);
    assert!(reason.contains("10.0.0.1:8081 cannot be read"), "{reason}");
    ring.start(0);
    assert!(ring.all_serve(&[0, 1, 2, 3, 4], Duration::from_secs(10)).await, "{}", ring.not_ready(1));
    let held = ring.at(1).shared.store.get(&Key::new("k").unwrap()).await.unwrap();
    assert!(held.is_some(), "the rebuilt node has what it acknowledged");
}

/// One block that could not be read kept the whole page, and so the rebuild, from ever ending.
#[tokio::test(start_paused = true)]
async fn a_rebuild_goes_round_a_damaged_block_of_a_peer_and_takes_its_keys_from_the_third_copy() {
    let mut ring = Ring::new(3, 9, 0.0);
    (0..3).for_each(|node| ring.start(node));
    assert!(ring.all_serve(&[0, 1, 2], Duration::from_secs(2)).await);
    let keys: Vec<_> = (0..200).map(|n| format!("k{n:03}")).collect();
    for key in &keys {
        assert!(ring.put(0, key, "v", Some(3)).await);
    }
    ring.stop(0).await;
    ring.rot(0);
    ring.start(0);
    ring.kill(2);
    ring.seats[2].disk.wipe();
    ring.start(2);
    assert!(ring.all_serve(&[0, 1, 2], Duration::from_secs(10)).await, "{}", ring.not_ready(2));
    for key in &keys {
        let held = ring.at(2).shared.store.get(&Key::new(key.clone()).unwrap()).await.unwrap();
        assert!(held.is_some(), "{key}");
    }
}
