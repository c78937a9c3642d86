//! `kill -9` of real processes, again and again, in the same directories: after each restart every key holds its last
//! acknowledged write or one that was sent after it, and nothing else.
//!
//! A cycle starts the nodes, verifies every key, writes for a random while and kills. One cycle in five kills during the
//! start, so that recovery is interrupted, too. Memtables are small, so that flushes and compactions are cut short.
//!
//! - `KILL_CYCLES=10000 cargo test --test kill_cycles` runs the long form; `KILL_SEED=s` chooses another sequence.
#![cfg(unix)]
#![allow(clippy::disallowed_methods, clippy::disallowed_types)] // clients live in the real world

mod http_support;

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use http_support::{Client, says_that_it_runs};
use kvstore::env::Rng;

/// Keys of one writer. No key has two writers, so that the order of its writes is known.
const KEYS: usize = 40;
const WRITERS: usize = 3;
/// How long a node may take from its start until it is ready.
const START_PATIENCE: Duration = Duration::from_secs(60);

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// What a key may hold: `None` is a deletion, or never written.
type State = Option<String>;

/// One key as its writer knows it.
#[derive(Debug)]
struct Key {
    name: String,
    /// The last acknowledged write, and all later ones whose outcome is unknown.
    possible: BTreeSet<State>,
    version: u64,
}

impl Key {
    fn new(writer: usize, number: usize) -> Self {
        Self { name: format!("w{writer}-k{number}"), possible: BTreeSet::from([None]), version: 0 }
    }

    /// The next value, of a length that depends on the seed: now and then one that spans several pages.
    fn next_value(&mut self, rng: &Rng) -> String {
        self.version += 1;
        let padding = if rng.chance(0.05) { rng.below(1000..20_000) } else { rng.below(0..300) } as usize;
        format!("{}-{}-{}", self.name, self.version, "x".repeat(padding))
    }

    fn on_sent(&mut self, state: State) {
        self.possible.insert(state);
    }

    fn on_acknowledged(&mut self, state: State) {
        self.possible.clear();
        self.possible.insert(state);
    }
}

/// A node in a process of its own.
struct Node {
    child: Option<Child>,
    addr: SocketAddr,
    dir: tempfile::TempDir,
}

impl Node {
    fn new() -> Self {
        let addr = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap();
        Self { child: None, addr, dir: tempfile::tempdir().unwrap() }
    }

    fn spawn(&self, peers: &str) -> Child {
        Command::new(env!("CARGO_BIN_EXE_kvstore"))
            .args(["-port", &self.addr.port().to_string(), "-dir", "data", "-peers", peers])
            .env_clear()
            .envs([("MEMTABLE_SIZE", "64KiB"), ("MAX_L0_FILES", "2"), ("NETWORK_TIMEOUT", "10s")])
            .envs([("BLOCK_CACHE_SIZE", "1MiB"), ("RUST_LOG", "warn")])
            .current_dir(self.dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }

    /// Starts it and waits until it runs. Its port may have been taken by an outgoing connection meanwhile.
    fn start(&mut self, peers: &str) {
        let latest = Instant::now() + START_PATIENCE;
        loop {
            let mut child = self.spawn(peers);
            if says_that_it_runs(&mut child) {
                self.child = Some(child);
                return;
            }
            let status = child.wait().unwrap();
            let log = std::fs::read_to_string(self.dir.path().join("data/node.log")).unwrap_or_default();
            let last: Vec<&str> = log.lines().rev().take(5).collect();
            assert!(Instant::now() < latest, "the node does not start: {status}\n{}", last.join("\n"));
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    fn until_ready(&self) {
        let latest = Instant::now() + START_PATIENCE;
        while Client::try_to(self.addr)
            .ok()
            .and_then(|mut client| client.try_ask("GET", "/readyz", &[], b""))
            .is_none_or(|answer| answer.code != 200)
        {
            assert!(Instant::now() < latest, "the node is not ready within {START_PATIENCE:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill(); // it may have ended by itself, which the next start will tell
            let _ = child.wait();
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

/// One node, or a ring of three.
struct Ring {
    nodes: Vec<Node>,
}

impl Ring {
    fn new(count: usize) -> Self {
        Self { nodes: (0..count).map(|_| Node::new()).collect() }
    }

    fn peers(&self) -> String {
        self.nodes.iter().map(|node| node.addr.to_string()).collect::<Vec<_>>().join(",")
    }

    /// Starts every node that is down; returns once all are ready.
    fn start(&mut self) {
        let peers = self.peers();
        for node in self.nodes.iter_mut().filter(|node| node.child.is_none()) {
            node.start(&peers);
        }
        for node in &self.nodes {
            node.until_ready();
        }
    }

    /// Starts nodes that are down and kills them before they are done.
    fn interrupt_start(&mut self, rng: &Rng) {
        let peers = self.peers();
        for node in self.nodes.iter_mut().filter(|node| node.child.is_none()) {
            node.child = Some(node.spawn(&peers));
        }
        std::thread::sleep(Duration::from_millis(rng.below(0..80)));
        self.nodes.iter_mut().for_each(Node::kill);
    }

    /// Kills all nodes, or one of them.
    fn kill(&mut self, rng: &Rng) {
        if rng.chance(0.5) {
            let victim = rng.below(0..self.nodes.len() as u64) as usize;
            self.nodes[victim].kill();
        } else {
            self.nodes.iter_mut().for_each(Node::kill);
        }
    }

    /// Holds every key against what its writer knows.
    fn verify(&self, cycle: u64, rng: &Rng, writers: &mut [Vec<Key>]) {
        let through = rng.below(0..self.nodes.len() as u64) as usize;
        let mut client = Client::to(self.nodes[through].addr);
        for key in writers.iter_mut().flatten() {
            let found = read(&mut client, &key.name);
            let version =
                |state: &State| state.as_ref().map(|text| text.split("-x").next().unwrap().to_owned());
            assert!(
                key.possible.contains(&found),
                "cycle {cycle}: {} holds {:?} and may hold {:?}",
                key.name,
                version(&found),
                key.possible.iter().map(version).collect::<Vec<_>>(),
            );
            // On one node what was read is durable. In a ring an unknown write may still arrive from a hint.
            if self.nodes.len() == 1 {
                key.on_acknowledged(found);
            }
        }
    }
}

/// Reads a key at the default quorum through any node. A node that has just become ready may not have met its peers.
fn read(client: &mut Client, key: &str) -> State {
    let latest = Instant::now() + START_PATIENCE;
    loop {
        let answer = client
            .try_ask("GET", &format!("/get?key={key}"), &[], b"")
            .expect("a node that nobody kills answers");
        match answer.code {
            200 => return Some(answer.text().to_owned()),
            404 => return None,
            _ => assert!(Instant::now() < latest, "{key}: {} {}", answer.code, answer.text()),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Writes to its own keys until the node is killed or the time is up.
fn write(addr: SocketAddr, keys: &mut [Key], rng: &Rng, stop: &AtomicBool) -> u64 {
    let mut acknowledged = 0;
    let Ok(mut client) = Client::try_to(addr) else { return 0 };
    while !stop.load(Ordering::Relaxed) {
        let count = if rng.chance(0.2) { rng.below(2..12) as usize } else { 1 };
        let first = rng.below(0..(KEYS - count) as u64) as usize;
        let chosen = &mut keys[first..first + count];
        let is_delete = count == 1 && rng.chance(0.2);
        let states: Vec<State> =
            chosen.iter_mut().map(|key| (!is_delete).then(|| key.next_value(rng))).collect();
        for (key, state) in chosen.iter_mut().zip(&states) {
            key.on_sent(state.clone());
        }
        let item = |(key, state): (&Key, &State)| serde_json::json!({"key": key.name, "value": state});
        let answer = if is_delete {
            client.try_ask("POST", &format!("/delete?key={}", chosen[0].name), &[], b"")
        } else if count == 1 {
            client.try_ask("POST", "/put", &[], item((&chosen[0], &states[0])).to_string().as_bytes())
        } else {
            let items: Vec<_> = chosen.iter().zip(&states).map(item).collect();
            client.try_ask("POST", "/batch", &[], serde_json::json!({"items": items}).to_string().as_bytes())
        };
        match answer {
            Some(answer) if answer.code == 200 && answer.complete => {
                acknowledged += count as u64;
                for (key, state) in chosen.iter_mut().zip(states) {
                    key.on_acknowledged(state);
                }
            }
            // An error of a ring in trouble: the outcome is unknown, and a failed write may be retried by nobody.
            Some(_) => std::thread::sleep(Duration::from_millis(2)),
            None => return acknowledged,
        }
    }
    acknowledged
}

fn cycles(nodes: usize, cycles: u64, seed: u64) {
    let rng = Rng::from_seed(seed);
    let mut ring = Ring::new(nodes);
    let mut writers: Vec<Vec<Key>> =
        (0..WRITERS).map(|writer| (0..KEYS).map(|number| Key::new(writer, number)).collect()).collect();
    let began = Instant::now();
    let (mut acknowledged, mut interrupted) = (0, 0);
    for cycle in 0..cycles {
        while rng.chance(0.2) {
            ring.interrupt_start(&rng);
            interrupted += 1;
        }
        ring.start();
        ring.verify(cycle, &rng, &mut writers);
        let stop = AtomicBool::new(false);
        let while_writing = Duration::from_millis(rng.below(5..120));
        acknowledged += std::thread::scope(|scope| {
            let running: Vec<_> = writers
                .iter_mut()
                .enumerate()
                .map(|(number, keys)| {
                    let (addr, rng, stop) = (ring.nodes[number % nodes].addr, rng.fork(), &stop);
                    scope.spawn(move || write(addr, keys, &rng, stop))
                })
                .collect();
            std::thread::sleep(while_writing);
            ring.kill(&rng);
            stop.store(true, Ordering::Relaxed);
            running.into_iter().map(|writer| writer.join().unwrap()).sum::<u64>()
        });
        if cycle % 500 == 499 {
            println!("{} cycles, {acknowledged} acknowledged, {:?}", cycle + 1, began.elapsed());
        }
    }
    ring.start();
    ring.verify(cycles, &rng, &mut writers);
    println!(
        "{nodes} nodes, seed {seed}: {cycles} cycles, {interrupted} starts interrupted, {acknowledged} writes acknowledged, \
         none lost, {:?}",
        began.elapsed(),
    );
    assert!(acknowledged > cycles, "hardly anything was written");
}

#[test]
fn one_node_killed_again_and_again_loses_no_acknowledged_write() {
    cycles(1, number("KILL_CYCLES", 12), number("KILL_SEED", 1));
}

#[test]
fn a_ring_whose_nodes_are_killed_again_and_again_loses_no_acknowledged_write() {
    cycles(3, number("KILL_CYCLES", 24) / 4, number("KILL_SEED", 1));
}
