//! A quorum register of a few dozen lines, to test the simulator and the checkers themselves.
//!
//! Three replicas, W = R = 2, last writer wins, one log file each. It is right as it stands; each [`Bug`] makes it
//! wrong in a way that the checkers must see.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kvstore::env::{Env, Lane, VfsFile};
use kvstore::hlc::Hlc;
use kvstore::replication::api::{Mutation, ReplicaState};
use kvstore::rpc::{
    BoxFuture, Handler, Refusal, ReplicaRequest, ReplicaResponse, Request, Response, Transport, WriteOrigin,
};
use kvstore::types::{Key, NodeId, Record, Timestamp, Value};
use kvstore::util::coding::{Reader, put_bytes};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use super::history::Outcome;
use super::member::{Health, How, Member, Start, Starter};
use super::shape::name_of;

const QUORUM: usize = 2;
const PATIENCE: Duration = Duration::from_millis(400);
/// How long [`Bug::RetryUnderNewTimestamp`] waits.
const IMPATIENCE: Duration = Duration::from_millis(8);

/// What is wrong with a register, if anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// Nothing.
    None,
    /// A replica answers before its log is synced.
    AckBeforeSync,
    /// The log's name is not synced.
    DirectoryNotSynced,
    /// A read answers with the newest record though only one replica may hold it.
    NoWriteBack,
    /// One replica is enough for a write.
    QuorumOfOne,
    /// A deletion is no tombstone: it leaves nothing.
    NoTombstones,
    /// A write that is slow to be acknowledged is sent again under a later timestamp.
    RetryUnderNewTimestamp,
}

/// One node of the register. A clone is the same node.
#[derive(Clone)]
struct Toy {
    shared: Arc<Shared>,
}

struct Shared {
    own: NodeId,
    peers: Vec<NodeId>,
    env: Env,
    transport: Arc<dyn Transport>,
    hlc: Hlc,
    log: Arc<dyn VfsFile>,
    records: Mutex<BTreeMap<Key, Record>>,
    bug: Bug,
}

impl std::fmt::Debug for Toy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Toy {}", self.shared.own)
    }
}

/// Starts registers with a bug.
pub fn starter(bug: Bug) -> Starter {
    Arc::new(move |start| {
        Box::pin(async move {
            let member = Toy::open(start, bug).map_err(|error| error.to_string())?;
            Ok(Arc::new(member) as Arc<dyn Member>)
        })
    })
}

impl Toy {
    fn open(start: Start, bug: Bug) -> std::io::Result<Self> {
        let Start { node, options, env, transport, .. } = start;
        let path = Path::new("/log");
        let log = if env.fs.exists(path)? { env.fs.open_write(path)? } else { env.fs.create(path)? };
        if bug != Bug::DirectoryNotSynced {
            env.fs.sync_dir(Path::new("/"))?;
        }
        let mut bytes = vec![0; log.len()? as usize];
        log.read_exact_at(&mut bytes, 0)?;
        let mut records = BTreeMap::new();
        let mut newest = Timestamp::ZERO;
        let mut reader = Reader::new(&bytes);
        while let Ok((key, record)) = decode(&mut reader) {
            newest = newest.max(record.timestamp());
            apply(&mut records, key, record, bug);
        }
        let hlc = Hlc::unlimited(env.clock.clone(), Duration::from_secs(60));
        hlc.follow(newest);
        let peers = (0..options.shape.nodes.len()).map(name_of).collect();
        let records = Mutex::new(records);
        Ok(Self {
            shared: Arc::new(Shared { own: name_of(node), peers, env, transport, hlc, log, records, bug }),
        })
    }

    /// Stores records on this replica; says whether they are durable.
    async fn store(&self, items: Vec<(Key, Record)>) -> bool {
        let mut bytes = Vec::new();
        for (key, record) in &items {
            let mut frame = Vec::new();
            put_bytes(&mut frame, key.as_bytes());
            record.encode(&mut frame);
            put_bytes(&mut bytes, &frame);
            bytes.extend(crc32fast::hash(&frame).to_le_bytes());
        }
        let (log, early) = (self.shared.log.clone(), self.shared.bug == Bug::AckBeforeSync);
        let job = move || log.append(&bytes).is_ok() && (early || log.sync().is_ok());
        let durable = self.shared.env.pool.run(Lane::Commit, job).await;
        if durable {
            let mut records = self.shared.records.lock();
            for (key, record) in items {
                apply(&mut records, key, record, self.shared.bug);
            }
        }
        durable
    }

    async fn serve(self, request: Request) -> Response {
        let _ = self.shared.hlc.observe(request.clock);
        let body = match request.body {
            ReplicaRequest::Write { items, .. } => {
                if self.store(items).await {
                    ReplicaResponse::Written { voting: true, overtaken: Vec::new() }
                } else {
                    ReplicaResponse::Refused(Refusal::Poisoned)
                }
            }
            ReplicaRequest::Read { key } => ReplicaResponse::Record {
                voting: true,
                record: self.shared.records.lock().get(&key).cloned(),
            },
            _ => ReplicaResponse::Refused(Refusal::NotReady),
        };
        Response { clock: self.shared.hlc.now(), body }
    }

    /// Asks all replicas; their answers come as they come.
    fn ask(&self, body: &ReplicaRequest) -> mpsc::Receiver<(NodeId, ReplicaResponse)> {
        let (sender, receiver) = mpsc::channel(8);
        for peer in &self.shared.peers {
            let request = Request { clock: self.shared.hlc.now(), body: body.clone() };
            let (sender, peer, toy) = (sender.clone(), peer.clone(), self.clone());
            self.shared.env.tasks.spawn(async move {
                let answered = if peer == toy.shared.own {
                    Ok(toy.clone().serve(request).await)
                } else {
                    toy.shared.transport.call(&peer, request, PATIENCE).await
                };
                if let Ok(response) = answered {
                    let _ = toy.shared.hlc.observe(response.clock);
                    let _ = sender.send((peer, response.body)).await;
                }
            });
        }
        receiver
    }

    /// Stores records on `needed` replicas; says whether it did so in time.
    async fn store_on(&self, needed: usize, items: Vec<(Key, Record)>, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let mut answers = self.ask(&ReplicaRequest::Write { origin: WriteOrigin::Client, items });
        let mut durable = 0;
        while durable < needed {
            match timeout_at(deadline, answers.recv()).await {
                Ok(Some((_, ReplicaResponse::Written { .. }))) => durable += 1,
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => return false,
            }
        }
        true
    }

    async fn write(self, items: Vec<(Key, Mutation)>) -> Vec<Outcome> {
        let needed = if self.shared.bug == Bug::QuorumOfOne { 1 } else { QUORUM };
        let stamped = self.stamp(&items);
        let outcomes = acknowledged(&stamped);
        if self.shared.bug == Bug::RetryUnderNewTimestamp {
            if self.store_on(needed, stamped, IMPATIENCE).await {
                return outcomes;
            }
            let stamped = self.stamp(&items);
            let outcomes = acknowledged(&stamped);
            return if self.store_on(needed, stamped, PATIENCE).await { outcomes } else { unknown(&items) };
        }
        if self.store_on(needed, stamped, PATIENCE).await { outcomes } else { unknown(&items) }
    }

    fn stamp(&self, items: &[(Key, Mutation)]) -> Vec<(Key, Record)> {
        let stamp = |(key, mutation): &(Key, Mutation)| {
            let timestamp = self.shared.hlc.tick().expect("unlimited");
            let record = match mutation {
                // Its clients write nothing for a time: it knows no expiry.
                Mutation::Put(value) | Mutation::PutFor(value, _) => Record::value(timestamp, value.clone()),
                Mutation::Delete => Record::tombstone(timestamp),
            };
            (key.clone(), record)
        };
        items.iter().map(stamp).collect()
    }

    async fn read(self, key: Key) -> Result<Option<Record>, String> {
        let deadline = Instant::now() + PATIENCE;
        let mut answers = self.ask(&ReplicaRequest::Read { key: key.clone() });
        let mut seen: Vec<Option<Record>> = Vec::new();
        while seen.len() < QUORUM {
            match timeout_at(deadline, answers.recv()).await {
                Ok(Some((_, ReplicaResponse::Record { record, .. }))) => seen.push(record),
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => return Err("too few answers".to_owned()),
            }
        }
        let agreed = seen.windows(2).all(|pair| pair[0] == pair[1]);
        let winner = seen.into_iter().flatten().max_by(Record::precedence);
        match winner {
            Some(record) if !agreed && self.shared.bug != Bug::NoWriteBack => {
                let stored = self.store_on(QUORUM, vec![(key, record.clone())], PATIENCE).await;
                if stored { Ok(Some(record)) } else { Err("not written back".to_owned()) }
            }
            winner => Ok(winner),
        }
    }
}

fn apply(records: &mut BTreeMap<Key, Record>, key: Key, record: Record, bug: Bug) {
    match records.get(&key) {
        Some(held) if !record.supersedes(held) => {}
        _ if bug == Bug::NoTombstones && record.is_tombstone() => drop(records.remove(&key)),
        _ => drop(records.insert(key, record)),
    }
}

fn decode(reader: &mut Reader<'_>) -> Result<(Key, Record), ()> {
    let frame = reader.bytes().map_err(drop)?;
    if reader.u32().map_err(drop)? != crc32fast::hash(frame) {
        return Err(());
    }
    let mut fields = Reader::new(frame);
    let key = Key::new(Bytes::copy_from_slice(fields.bytes().map_err(drop)?)).map_err(drop)?;
    Ok((key, Record::decode(&Bytes::copy_from_slice(fields.rest())).map_err(drop)?))
}

fn acknowledged(stamped: &[(Key, Record)]) -> Vec<Outcome> {
    let outcome =
        |record: &Record| Outcome::Acknowledged { at_least: record.timestamp(), at_most: record.timestamp() };
    stamped.iter().map(|(_, record)| outcome(record)).collect()
}

fn unknown(items: &[(Key, Mutation)]) -> Vec<Outcome> {
    vec![Outcome::Unknown; items.len()]
}

impl Handler for Toy {
    fn handle(&self, _: &NodeId, request: Request) -> BoxFuture<Response> {
        Box::pin(self.clone().serve(request))
    }
}

impl Member for Toy {
    fn handler(&self) -> Arc<dyn Handler> {
        Arc::new(self.clone())
    }

    fn write(&self, items: Vec<(Key, Mutation)>, _: How) -> BoxFuture<Vec<Outcome>> {
        Box::pin(self.clone().write(items))
    }

    fn read(&self, key: Key, _: How) -> BoxFuture<Result<Option<Record>, String>> {
        Box::pin(self.clone().read(key))
    }

    fn scan(&self, _: How) -> BoxFuture<Result<Vec<(Key, Value)>, String>> {
        Box::pin(async { Err("a register knows no scans".to_owned()) })
    }

    fn explain(&self, key: Key) -> BoxFuture<Vec<ReplicaState>> {
        let toy = self.clone();
        Box::pin(async move {
            let mut answers = toy.ask(&ReplicaRequest::Read { key });
            let mut states = Vec::new();
            while let Some((_, body)) = answers.recv().await {
                states.push(match body {
                    ReplicaResponse::Record { record: Some(record), .. } => ReplicaState::Holds(record),
                    _ => ReplicaState::Missing,
                });
            }
            states
        })
    }

    fn clock(&self) -> Timestamp {
        self.shared.hlc.now()
    }

    fn health(&self) -> Health {
        Health { voting: true, ..Health::default() }
    }

    fn stop(&self) -> BoxFuture<()> {
        Box::pin(async {})
    }
}
