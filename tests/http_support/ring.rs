//! A ring of nodes that clients and peers reach over TCP, each on a disk in memory that can hang, rot, be full, or
//! lose its power.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kvstore::cluster::Member;
use kvstore::config::Config;
use kvstore::env::vfs_fault::{FaultVfs, Verdict};
use kvstore::env::{Env, MemVfs, Vfs};
use kvstore::http::body::BodyLimits;
use kvstore::http::{ApiLimits, ServerLimits, bind};
use kvstore::types::NodeId;
use parking_lot::{Condvar, Mutex};

use super::{Server, Start, until};

/// Bounds that a busy machine does not reach.
pub const LIMITS: ApiLimits = ApiLimits {
    value_size_max: 8 << 20,
    body: BodyLimits { size_max: 64 << 20, grace: Duration::from_secs(10), rate_min: 16 << 10 },
    inflight_bytes_max: 64 << 20,
};

/// The ring. Its nodes stop when it is dropped.
pub struct Ring {
    seats: Vec<Seat>,
    config: Config,
}

/// A node's place: its port, its disk, and the node while it runs.
struct Seat {
    addr: SocketAddr,
    disk: MemVfs,
    gate: Arc<Gate>,
    server: Option<Server>,
}

/// What stands between a node and its disk.
#[derive(Default)]
struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Open,
    /// No operation ends.
    Shut,
    /// The node is gone: what it still wants to do is not done.
    Gone,
}

impl Gate {
    fn set(&self, state: State) {
        *self.state.lock() = state;
        self.changed.notify_all();
    }

    /// Waits while the disk hangs.
    fn pass(&self) -> Verdict {
        let mut state = self.state.lock();
        while *state == State::Shut {
            self.changed.wait(&mut state);
        }
        if *state == State::Gone { Verdict::Halt } else { Verdict::Pass }
    }
}

impl Ring {
    /// Starts a ring, and waits until each node believes that all are up and vote. W and R are majorities.
    pub fn start(nodes: usize) -> Self {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let listeners: Vec<_> = (0..nodes).map(|_| bind(any, false).unwrap()).collect();
        let addrs: Vec<_> = listeners.iter().map(|listener| listener.local_addr().unwrap()).collect();
        let member = |addr: &SocketAddr| Member {
            id: NodeId::from_canonical(&addr.to_string()),
            weight: 10,
            zone: None,
        };
        let mut members: Vec<_> = addrs.iter().map(member).collect();
        members.sort_by(|a, b| a.id.cmp(&b.id));
        let quorum = nodes.min(3) / 2 + 1;
        let config = Config {
            members,
            dir: PathBuf::from("/node"),
            memtable_size: 4 << 20,
            range_count: 64,
            write_quorum: quorum,
            read_quorum: quorum,
            ..Config::default()
        };
        let seat = |addr| Seat { addr, disk: MemVfs::new(), gate: Arc::default(), server: None };
        let mut ring = Self { seats: addrs.into_iter().map(seat).collect(), config };
        for (node, listener) in listeners.into_iter().enumerate() {
            ring.run(node, listener);
        }
        ring.until_all_are_up();
        ring
    }

    fn run(&mut self, node: usize, listener: std::net::TcpListener) {
        let seat = &mut self.seats[node];
        let (faults, gate) = (FaultVfs::new(Arc::new(seat.disk.clone())), Arc::<Gate>::default());
        seat.gate = gate.clone();
        faults.set_rule(move |_| gate.pass());
        let start = Start {
            config: Config { advertise_addr: seat.addr.to_string(), ..self.config.clone() },
            env: Env { fs: Arc::new(faults), ..Env::real() },
            meets_peers: true,
        };
        seat.server = Some(Server::serve_on(listener, ServerLimits::default(), LIMITS, Some(start)));
    }

    /// Starts a node again, on the disk and the port that it had.
    pub fn restart(&mut self, node: usize) {
        let mut listener = None;
        until("its port is free", || {
            listener = bind(self.seats[node].addr, false).ok();
            listener.is_some()
        });
        self.run(node, listener.expect("just bound"));
    }

    /// Stops a node gracefully: what it holds is in tables afterwards.
    pub fn stop(&mut self, node: usize) {
        self.seats[node].server.take().expect("it runs").stop();
    }

    /// Cuts a node's power: what was not synced is lost.
    pub fn cut_power(&mut self, node: usize) {
        let seat = &mut self.seats[node];
        seat.server.take().expect("it runs").kill();
        seat.gate.set(State::Gone);
        seat.disk.crash_lose_all();
    }

    /// Replaces the disk of a node that does not run by an empty one.
    pub fn wipe(&self, node: usize) {
        self.seats[node].disk.wipe();
    }

    /// From now on no operation on a node's disk ends.
    pub fn hang(&self, node: usize) {
        self.seats[node].gate.set(State::Shut);
    }

    /// Lets all go on that hangs.
    pub fn let_go(&self, node: usize) {
        self.seats[node].gate.set(State::Open);
    }

    /// Leaves no space on a node's disk, or as much as anybody could want.
    pub fn fill(&self, node: usize, is_full: bool) {
        self.seats[node].disk.set_capacity(is_full.then_some(0));
    }

    /// Inverts a byte of a stopped node's tables at each of the places that `places` picks for a table of so many bytes.
    pub fn rot(&self, node: usize, places: impl Fn(u64) -> Vec<u64>) {
        let (disk, dir) = (&self.seats[node].disk, Path::new("/node/data"));
        let names = disk.list(dir).unwrap();
        let is_table = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "sst");
        let paths: Vec<_> = names.iter().map(|name| dir.join(name)).filter(is_table).collect();
        assert!(!paths.is_empty(), "{names:?}");
        for path in paths {
            let len = disk.open(&path).unwrap().len().unwrap();
            for place in places(len) {
                disk.flip_byte(&path, place).unwrap();
            }
        }
    }

    /// A running node's doors.
    pub fn at(&self, node: usize) -> &Server {
        self.seats[node].server.as_ref().expect("it runs")
    }

    /// A node's name.
    pub fn name(&self, node: usize) -> String {
        self.seats[node].addr.to_string()
    }

    /// What one node says of another in `/cluster/status`.
    pub fn status(&self, asked: usize, of: usize) -> serde_json::Value {
        let status = self.at(asked).get("/cluster/status").json();
        let name = self.name(of);
        let nodes = status["nodes"].as_array().unwrap();
        nodes.iter().find(|node| node["name"] == name.as_str()).unwrap().clone()
    }

    /// What a node's own disk holds of a key, as one of the running nodes hears it.
    pub fn held(&self, asked: usize, of: usize, key: &str) -> serde_json::Value {
        let explained = self.at(asked).get(&format!("/explain?key={key}")).json();
        let name = self.name(of);
        let replicas = explained["replicas"].as_array().unwrap();
        replicas.iter().find(|replica| replica["node"] == name.as_str()).unwrap().clone()
    }

    /// Waits until every running node believes that all nodes are up and vote.
    pub fn until_all_are_up(&self) {
        let count = self.seats.len();
        until("all are up", || {
            (0..count).filter(|node| self.seats[*node].server.is_some()).all(|asked| {
                self.at(asked).get("/readyz").code == 200
                    && (0..count).all(|of| self.status(asked, of)["state"] == "up")
            })
        });
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        for seat in &self.seats {
            seat.gate.set(State::Open); // a node waits for its disk when it stops
        }
    }
}
