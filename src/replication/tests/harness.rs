//! A ring of real nodes without sockets: engines in memory, a network that a test rules, paused time.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{sleep, timeout};

use crate::cluster::{Member, Membership, RingSettings, assign};
use crate::engine::{Engine, Options};
use crate::env::vfs_mem::MemVfs;
use crate::env::{Env, ManualClock, Planted, Pool, Rng, Tasks};
use crate::gossip::FailureDetector;
use crate::hints::{self, HintStore};
use crate::hlc::{Hlc, keeper::MarkFailed};
use crate::replication::{
    ClockKeeper, Coordinator, FactsSource, LocalStore, Parts, Peers, Phase, ReadOptions, Replica, Settings,
    Shared, Standing, StandingCell, WriteOptions,
};
use crate::rpc::{
    self, BoxFuture, Facts, Handler, Refusal, ReplicaRequest, ReplicaResponse, Request, Response, Transport,
};
use crate::types::{Key, NodeId, Record, Timestamp, Value};

/// What the network does with a request.
#[derive(Debug, Clone)]
pub enum Fate {
    Deliver,
    /// Nothing is sent.
    Unreachable,
    /// Sent, but lost: the asker hears nothing.
    LoseRequest,
    /// It arrives; the answer is lost.
    LoseAnswer,
    /// It arrives this much later.
    Delay(Duration),
    /// The receiver refuses.
    Refuse(Refusal),
}

type Rule = Box<dyn Fn(&NodeId, &NodeId, &ReplicaRequest) -> Fate + Send>;

/// The network. Every message takes a millisecond each way.
#[derive(Clone, Default)]
pub struct Net {
    state: Arc<Mutex<NetState>>,
}

#[derive(Default)]
struct NetState {
    handlers: BTreeMap<NodeId, Arc<Replica>>,
    rule: Option<Rule>,
    sent: Vec<(NodeId, NodeId, ReplicaRequest)>,
}

#[derive(Clone)]
struct Link {
    from: NodeId,
    net: Net,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "link of {}", self.from)
    }
}

impl Transport for Link {
    #[allow(clippy::disallowed_methods)] // the network is no node's task
    fn call(
        &self,
        to: &NodeId,
        request: Request,
        patience: Duration,
    ) -> BoxFuture<Result<Response, rpc::Error>> {
        let mut state = self.net.state.lock();
        state.sent.push((self.from.clone(), to.clone(), request.body.clone()));
        let fate = state.rule.as_ref().map_or(Fate::Deliver, |rule| rule(&self.from, to, &request.body));
        let handler = state.handlers[to].clone();
        let from = self.from.clone();
        let arrived = tokio::spawn(async move {
            match &fate {
                Fate::Unreachable => return Err(rpc::Error::Unreachable("cut".to_owned())),
                Fate::LoseRequest => return std::future::pending().await,
                Fate::Refuse(refusal) => {
                    sleep(Duration::from_millis(1)).await;
                    return Ok(Response {
                        clock: request.clock,
                        body: ReplicaResponse::Refused(refusal.clone()),
                    });
                }
                Fate::Delay(delay) => sleep(*delay).await,
                Fate::Deliver | Fate::LoseAnswer => {}
            }
            sleep(Duration::from_millis(1)).await;
            let response = handler.handle(&from, request).await;
            sleep(Duration::from_millis(1)).await;
            if matches!(fate, Fate::LoseAnswer) {
                std::future::pending::<()>().await;
            }
            Ok(response)
        });
        Box::pin(async move {
            match timeout(patience, arrived).await {
                Ok(joined) => joined.expect("the handler does not panic"),
                Err(_) => Err(rpc::Error::TimedOut),
            }
        })
    }
}

#[derive(Debug)]
struct Keeper(Arc<Hlc>);

impl ClockKeeper for Keeper {
    fn tick(&self) -> BoxFuture<Result<Timestamp, MarkFailed>> {
        let tick = self.0.tick().map_err(|_| MarkFailed);
        Box::pin(async move { tick })
    }

    fn raise(&self) {}

    fn has_failed(&self) -> bool {
        false
    }
}

#[derive(Debug)]
struct Plain;

impl FactsSource for Plain {
    fn facts_for(&self, _: &NodeId) -> Facts {
        facts(true)
    }

    fn on_facts(&self, _: &NodeId, _: &Facts) {}
}

pub fn facts(voting: bool) -> Facts {
    Facts {
        uuid: 1,
        run: 1,
        explained: Timestamp::ZERO,
        mark: Timestamp::ZERO,
        voting,
        has_voted: voting,
        wall: Timestamp::ZERO,
        remembered: None,
        hints_waiting: 0,
        founded_with: false,
    }
}

/// One node.
pub struct TestNode {
    pub shared: Arc<Shared>,
    pub coordinator: Coordinator,
    pub fs: MemVfs,
    pub clock: Arc<ManualClock>,
}

/// Some nodes and the network between them.
pub struct TestRing {
    pub nodes: Vec<TestNode>,
    pub net: Net,
}

/// How a test ring is made.
#[derive(Clone, Copy)]
pub struct Shape {
    pub nodes: usize,
    pub replication_factor: usize,
    pub settings: Settings,
    pub planted: Planted,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            nodes: 3,
            replication_factor: 3,
            settings: Settings {
                write_quorum: 2,
                read_quorum: 2,
                network_timeout: Duration::from_secs(2),
                read_repair_chance: 1.0,
                batch_concurrency: 4,
                inflight_bytes_max: 64 << 20,
            },
            planted: Planted::default(),
        }
    }
}

pub fn node(name: &str) -> NodeId {
    NodeId::from_canonical(name)
}

pub fn key(text: &str) -> Key {
    Key::new(text.to_owned()).unwrap()
}

pub fn value(text: &str) -> Value {
    Value::new(text.to_owned())
}

impl TestRing {
    pub fn new(shape: Shape) -> Self {
        let names: Vec<_> =
            (0..shape.nodes).map(|n| node(&format!("{}:1", (b'a' + n as u8) as char))).collect();
        let member = |id: &NodeId| Member { id: id.clone(), weight: 10, zone: None };
        let membership = Membership::new(names.iter().map(member).collect());
        let ring_settings = RingSettings { range_count: 64, replication_factor: shape.replication_factor };
        let ring = Arc::new(assign(None, &membership, ring_settings));
        let net = Net::default();
        let nodes = names.iter().enumerate().map(|(seed, own)| {
            let tasks = Tasks::abortable();
            let rng = Rng::from_seed(seed as u64);
            let fs = MemVfs::new();
            let clock = Arc::new(ManualClock::at(1_000_000_000));
            let env = Env {
                fs: Arc::new(fs.clone()),
                clock: clock.clone(),
                pool: Pool::simulated(tasks.clone(), rng.fork(), Duration::from_millis(1)),
                rng,
                tasks,
                planted: shape.planted,
            };
            let options = Options { memtable_size: 1 << 20, block_cache_size: 1 << 20, ..Options::default() };
            let (engine, _) = Engine::open(&env, Path::new("/data"), options).unwrap();
            let hint_settings = hints::Settings {
                bytes_max: 1 << 20,
                age_max: Duration::from_secs(3600),
                queue_bytes_max: 128 << 20,
                targets: Vec::new(),
                range_of: Arc::new(|_| 0),
                ranges_of: Arc::new(|_| vec![0]),
            };
            let hints = HintStore::open(&env, Path::new("/hints"), hint_settings).unwrap();
            env.fs.sync_dir(Path::new("/")).unwrap();
            let peers: Vec<_> = names.iter().filter(|name| *name != own).cloned().collect();
            let detector = FailureDetector::new(peers.clone());
            let hlc = Arc::new(Hlc::unlimited(clock.clone(), Duration::from_millis(500)));
            let link = Arc::new(Link { from: own.clone(), net: net.clone() });
            let shared = Shared::new(Parts {
                own: own.clone(),
                ring: ring.clone(),
                settings: shape.settings,
                store: LocalStore::new(engine, &env),
                peers: Peers::new(link, hlc.clone(), detector.clone(), &peers),
                detector,
                hints,
                standing: StandingCell::new(Standing::Voting),
                clock_keeper: Arc::new(Keeper(hlc.clone())),
                hlc,
                facts: Arc::new(Plain),
                env,
            });
            shared.set_phase(Phase::Serving);
            net.state.lock().handlers.insert(own.clone(), Arc::new(Replica::new(shared.clone())));
            TestNode { coordinator: Coordinator::new(shared.clone()), shared, fs, clock }
        });
        let ring = Self { nodes: nodes.collect(), net: net.clone() };
        ring.all_alive();
        ring
    }

    /// Everybody hears that everybody else is there and votes (or not, as it stands).
    pub fn all_alive(&self) {
        for at in &self.nodes {
            for other in self.nodes.iter().filter(|other| other.shared.own != at.shared.own) {
                at.shared.detector.note_alive(&other.shared.own);
                at.shared.detector.on_facts(&other.shared.own, facts(other.shared.standing.is_voting()));
            }
        }
    }

    /// Everybody goes on hearing everybody else.
    #[allow(clippy::disallowed_methods)] // a test's task
    pub fn keep_alive(&self) {
        let nodes: Vec<_> = self.nodes.iter().map(|node| node.shared.clone()).collect();
        tokio::spawn(async move {
            loop {
                for at in &nodes {
                    for other in &nodes {
                        at.detector.note_alive(&other.own);
                    }
                }
                sleep(Duration::from_millis(200)).await;
            }
        });
    }

    /// Node `at` believes that `down` is dead.
    pub async fn believe_dead(&self, at: usize, down: usize) {
        let (at, down) = (&self.nodes[at].shared, &self.nodes[down].shared.own);
        at.detector.on_failure(down);
        sleep(Duration::from_millis(30)).await;
        at.detector.on_failure(down);
        assert!(at.is_known_down(down));
    }

    /// Rules the network from now on.
    pub fn rule(&self, rule: impl Fn(&NodeId, &NodeId, &ReplicaRequest) -> Fate + Send + 'static) {
        self.net.state.lock().rule = Some(Box::new(rule));
    }

    /// Everything is delivered again.
    pub fn heal(&self) {
        self.net.state.lock().rule = None;
    }

    /// What was sent since the last call.
    pub fn take_sent(&self) -> Vec<(NodeId, NodeId, ReplicaRequest)> {
        std::mem::take(&mut self.net.state.lock().sent)
    }

    pub fn name(&self, index: usize) -> NodeId {
        self.nodes[index].shared.own.clone()
    }

    /// What a node's disk holds of a key.
    pub fn held(&self, index: usize, text: &str) -> Option<Record> {
        self.nodes[index].shared.store.engine().get(&key(text)).unwrap()
    }

    /// The value that a node's disk holds, as text.
    pub fn held_text(&self, index: usize, text: &str) -> Option<String> {
        let record = self.held(index, text)?;
        record.as_value().map(|value| String::from_utf8(value.as_bytes().to_vec()).unwrap())
    }

    /// Writes straight to a node's disk.
    pub async fn plant(&self, index: usize, text: &str, record: Record) {
        let batch = crate::engine::WriteBatch::one(key(text), record);
        self.nodes[index].shared.store.write(batch).await.unwrap();
    }

    pub fn hints(&self, at: usize, target: usize) -> u64 {
        self.nodes[at].shared.hints.pending(&self.name(target)).0
    }

    pub async fn put(
        &self,
        at: usize,
        text: &str,
        what: &str,
    ) -> Result<crate::replication::WriteReceipt, crate::replication::WriteError> {
        self.nodes[at].coordinator.put(key(text), value(what), WriteOptions::default()).await
    }

    pub async fn get(&self, at: usize, text: &str) -> Result<Option<String>, crate::replication::ReadError> {
        let record = self.nodes[at].coordinator.get(key(text), ReadOptions::default()).await?;
        Ok(record.and_then(|record| {
            record.as_value().map(|value| String::from_utf8(value.as_bytes().to_vec()).unwrap())
        }))
    }

    /// Until what is under way has come to rest.
    pub async fn settle(&self) {
        sleep(Duration::from_secs(6)).await;
        self.all_alive();
    }
}
