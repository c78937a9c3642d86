//! Transport and server over TCP: one port for clients and peers, many requests in flight on few connections.
//!
//! ```text
//! worker ── Link ── Connection ──> peer's HTTP port: GET /internal/rpc, Upgrade: kvstore-rpc/1
//!                                  then hellos and verdicts (tcp::hello), then frames (rpc::frame)
//! call ── encode ─> Outbox ─ one write ─────────> Incoming ── Handler ── on the spot, or a task
//!      <─ taker by request id ── Incoming <────── one write ─ Outbox <─┘
//! ```
//!
//! A node opens one connection from each of its workers to each peer, and serves what peers open to it; requests
//! go one way on a connection, answers the other. Nothing here waits in silence: without a connection a call
//! fails at once, beyond its bounds it is refused, and when a connection ends all who wait on it learn it. Whether a silent peer
//! lives is not decided here (`gossip` does), and the frames are neither encrypted nor signed: TLS beneath them does both
//! (`tls`), where it is on.
#![allow(clippy::disallowed_methods)] // sockets live here, and with them the world

mod connection;
mod handshake;
mod hello;
mod incoming;
mod link;
mod outbox;
mod problems;
mod server;
#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dashmap::DashMap;
use tokio::net::TcpStream;

use self::hello::Hello;
use self::link::Link;
use self::problems::Problems;
use super::{BoxFuture, Error, Request, Response, Transport, WIRE_VERSIONS};
use crate::cluster::Ring;
use crate::env::Env;
use crate::env::rng::SeededHasher;
use crate::tls::Tls;
use crate::types::NodeId;
use crate::util::shutdown::Shutdown;

pub use server::Server;

/// Where peers knock on the port that serves clients.
pub const UPGRADE_PATH: &str = "/internal/rpc";
/// What they ask for there.
pub const UPGRADE_PROTOCOL: &str = "kvstore-rpc/1";

/// Requests in flight on one connection, at most; beyond: [`Error::Overloaded`].
pub const REQUESTS_IN_FLIGHT_MAX: usize = 8192;
/// Bytes of requests queued for one connection, at most; one request may exceed it alone.
pub const QUEUE_BYTES_MAX: usize = 64 << 20;
/// Bytes of answers queued for one connection; while there are more, no further request is read from it.
pub const ANSWER_BYTES_MAX: usize = 16 << 20;
/// Requests of one connection being served at once: so many units, of which each takes one for every
/// [`SERVED_UNIT`] bytes begun, and a read [`READ_UNITS`]. While all are taken no further request is read.
pub const SERVED_UNITS_MAX: usize = 8192;
/// What a read, of a record, of versions or of a page, takes while it waits for the disk, which is more than its request weighs. So
/// at most 512 of them wait on one connection.
pub const READ_UNITS: usize = 16;
/// 8 KiB, so that 64 MiB of requests are being served at most.
pub const SERVED_UNIT: usize = 8 << 10;
/// Connections that peers may have open to this node: 16 workers of 60 nodes.
pub const CONNECTIONS_MAX: usize = 1024;
/// From the first packet to the last verdict.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(2);
/// Sent bytes may stay unacknowledged for so long before the connection is given up: after a partition a
/// new connection works sooner than an old one's next retransmission.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(3);
/// A connection silent for so long is probed: its other end may have gone without a word.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(15);
/// The seed of `xxh3_64` that places keys ([`crate::cluster::Token`]).
const HASH_SEED: u64 = 0;

thread_local! {
    static WORKER: Cell<u16> = const { Cell::new(0) };
}

/// Says which worker this thread is: its calls use connections of its own, driven by its own runtime. Without it a
/// thread is worker 0. Two runtimes must not share a slot.
pub fn set_worker(slot: u16) {
    WORKER.set(slot);
}

/// Who this node is to its peers. Shown without the secret.
#[derive(Clone)]
pub struct TcpSettings {
    /// Its own name.
    pub own: NodeId,
    /// `CLUSTER_NAME`.
    pub cluster_name: String,
    /// The ring: its members with weights and zones, N and Q are compared with the peers'.
    pub ring: Arc<Ring>,
    /// `CLUSTER_SECRET`.
    pub secret: Option<String>,
    /// Certificates by which the nodes know each other; `None`: they speak plaintext.
    pub tls: Option<Arc<Tls>>,
}

impl fmt::Debug for TcpSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { own, cluster_name, ring: _, secret: _, tls } = self;
        f.debug_struct("TcpSettings")
            .field("own", own)
            .field("cluster_name", cluster_name)
            .field("tls", tls)
            .finish_non_exhaustive()
    }
}

/// Sends requests to peers over TCP. Dropping it closes all of its connections.
#[derive(Debug)]
pub struct TcpTransport {
    shared: Arc<Shared>,
    shutdown: Shutdown,
}

#[derive(Debug)]
struct Shared {
    settings: TcpSettings,
    env: Env,
    problems: Problems,
    counters: Arc<Counters>,
    /// One a worker and peer, made when first wanted.
    links: DashMap<(u16, NodeId), Arc<Link>, SeededHasher>,
}

/// What has happened since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TcpStats {
    /// Connections opened to peers.
    pub dialled: u64,
    /// Attempts that failed or were refused.
    pub dials_failed: u64,
    /// Connections taken from peers.
    pub accepted: u64,
    /// Connections of peers or strangers refused.
    pub handshakes_refused: u64,
    /// Frames that could not be read; each closed its connection.
    pub bad_frames: u64,
    /// Answers that nobody waited for any more.
    pub late_answers: u64,
    /// Requests refused because too much was in flight.
    pub overloaded: u64,
    /// Requests whose time was over before they were sent.
    pub expired_unsent: u64,
    /// Requests of peers whose time was over before they were served.
    pub expired_unserved: u64,
}

#[derive(Debug, Default)]
struct Counters {
    dialled: Counter,
    dials_failed: Counter,
    accepted: Counter,
    handshakes_refused: Counter,
    bad_frames: Counter,
    late_answers: Counter,
    overloaded: Counter,
    expired_unsent: Counter,
    expired_unserved: Counter,
}

/// Counts up. Relaxed: it orders nothing.
#[derive(Debug, Default)]
struct Counter(AtomicU64);

impl Counter {
    fn inc(&self) {
        self.add(1);
    }

    fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl TcpTransport {
    /// A transport without connections yet: a worker opens its own when it first calls a peer, or by
    /// [`TcpTransport::connect`].
    pub fn new(settings: TcpSettings, env: Env) -> Self {
        let members = settings.ring.membership().members().iter().map(|member| member.id.clone());
        let problems = Problems::new(members);
        let links = DashMap::with_hasher_and_shard_amount(env.rng.hasher(), LINK_SHARDS);
        let shared = Shared { settings, env, problems, counters: Arc::default(), links };
        Self { shared: Arc::new(shared), shutdown: Shutdown::default() }
    }

    /// Begins to open this worker's connections to all peers, so that its first calls find them.
    pub fn connect(&self) {
        for member in self.shared.settings.ring.membership().members() {
            let _ = self.link(&member.id);
        }
    }

    /// What has happened since the start.
    pub fn stats(&self) -> TcpStats {
        let counters = &self.shared.counters;
        TcpStats {
            dialled: counters.dialled.get(),
            dials_failed: counters.dials_failed.get(),
            accepted: counters.accepted.get(),
            handshakes_refused: counters.handshakes_refused.get(),
            bad_frames: counters.bad_frames.get(),
            late_answers: counters.late_answers.get(),
            overloaded: counters.overloaded.get(),
            expired_unsent: counters.expired_unsent.get(),
            expired_unserved: counters.expired_unserved.get(),
        }
    }

    /// Closes every connection, also those that peers opened, once what they asked for is answered. Calls fail
    /// from now on.
    pub fn close(&self) {
        self.shutdown.signal();
    }

    /// This worker's link to a peer; made if there is none. `None` for who is no peer.
    fn link(&self, peer: &NodeId) -> Option<Arc<Link>> {
        let worker = WORKER.get();
        let key = (worker, peer.clone());
        if let Some(link) = self.shared.links.get(&key) {
            return Some(link.clone());
        }
        let settings = &self.shared.settings;
        let is_member = settings.ring.membership().members().iter().any(|member| member.id == *peer);
        if !is_member || *peer == settings.own {
            return None;
        }
        let link = self.shared.links.entry(key).or_insert_with(|| {
            let link = Link::new(peer.clone(), worker);
            let run = link.clone().run(self.shared.clone(), self.shutdown.listener());
            self.shared.env.tasks.spawn(run);
            link
        });
        Some(link.clone())
    }
}

impl Transport for TcpTransport {
    fn call(&self, to: &NodeId, request: Request, timeout: Duration) -> BoxFuture<Result<Response, Error>> {
        match self.link(to) {
            Some(link) => link.call(&request, timeout),
            None => Box::pin(std::future::ready(Err(Error::Unreachable(format!("{to} is no peer"))))),
        }
    }

    fn mismatch(&self, peer: &NodeId) -> Option<String> {
        self.shared.problems.of(peer)
    }
}

impl Shared {
    /// What this node says of itself to `to`, with a fresh nonce: proofs must not be foreseeable, so it does not
    /// come from the node's own generator.
    fn hello(&self, to: NodeId, worker: u16) -> Hello {
        let TcpSettings { own, cluster_name, ring, secret, tls: _ } = &self.settings;
        Hello {
            nonce: rand::random(),
            wire_versions: WIRE_VERSIONS,
            from: own.clone(),
            to,
            cluster_name: cluster_name.clone(),
            worker,
            has_secret: secret.is_some(),
            replication_factor: ring.replication_factor() as u32,
            range_count: ring.range_count(),
            hash_seed: HASH_SEED,
            members: ring.membership().members().to_vec(),
        }
    }

    /// Something has changed between us and `peer`: every worker's link to it looks again.
    fn hurry(&self, peer: &NodeId) {
        for link in &self.links {
            if link.key().1 == *peer {
                link.hurry();
            }
        }
    }
}

/// Locks over the links: as good as none a worker, and every call takes one.
const LINK_SHARDS: usize = 16;

/// Sets what every connection between nodes has. A socket that refuses works all the same, only slower.
fn tune(stream: &TcpStream) {
    let _ = stream.set_nodelay(true);
    let socket = socket2::SockRef::from(stream);
    let _ = socket.set_tcp_keepalive(&socket2::TcpKeepalive::new().with_time(KEEPALIVE_AFTER));
    #[cfg(any(target_os = "linux", target_os = "android"))]
    let _ = socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED_MAX));
}
