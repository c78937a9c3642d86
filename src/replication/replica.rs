//! `Replica`: serves what peers ask of this node's disk (implements [`rpc::Handler`](Handler)).
//!
//! ```text
//! request ── clock not believed (`clocks`)? ──> Refused(TooFarAhead), counted; nothing is touched, the clock stays
//!    │
//!    ├─ Write       every key ours? ─no─> NotAReplica      stored and synced, whatever our standing: a
//!    │              every timestamp believed? ─no─> TooFarAhead    rebuilding node must not miss new writes
//!    ├─ Read, ReadVersions   damaged? ─> Damaged: the asker goes to another replica and mends us
//!    ├─ StoreHints  synced before the answer
//!    └─ Scan, Ping
//! ```
//!
//! Every answer says whether this disk counts (`voting`); who asks decides what that means. A read must have
//! been voting before and after it looked; a write when it became durable.

use std::sync::Arc;

use futures_util::stream::{self, StreamExt as _};

use super::shared::Shared;
use super::{expiry, scan};
use crate::engine::{Error, WriteBatch, Written};
use crate::env::Mistake;
use crate::hints;
use crate::rpc::{
    BoxFuture, Handler, HeldVersion, Refusal, ReplicaRequest, ReplicaResponse, Request, Response, WriteOrigin,
};
use crate::types::{Key, NodeId, Record, Timestamp};

/// Keys of one message that wait for a disk at once.
const SIDE_BY_SIDE: usize = 8;

/// Serves what peers ask of this node's disk.
#[derive(Debug, Clone)]
pub struct Replica {
    shared: Arc<Shared>,
}

/// A write that is durable on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// Whether this disk counts.
    pub voting: bool,
    /// What it met.
    pub written: Written,
}

/// What this node holds of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// Whether this disk counts.
    pub voting: bool,
    /// The newest record.
    pub record: Option<Record>,
}

impl Replica {
    /// Serves for the node that `shared` belongs to.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    async fn serve(
        shared: &Arc<Shared>,
        from: &NodeId,
        request: Request,
    ) -> Result<ReplicaResponse, Refusal> {
        if let ReplicaRequest::Ping(facts) = request.body {
            // A ping is answered whatever its clock says: that is how a node learns that its own is wrong.
            let _ = shared.clocks.hear(from, request.clock);
            // What was remembered of the peer before it spoke is what it must hear.
            let told = shared.facts.facts_for(from);
            shared.facts.on_facts(from, &facts);
            shared.detector.on_facts(from, facts);
            return Ok(ReplicaResponse::Pong(told));
        }
        observe(shared, from, request.clock)?;
        match request.body {
            ReplicaRequest::Ping(_) => unreachable!("answered above"),
            ReplicaRequest::Write { origin, items } => {
                check_items(shared, from, &items)?;
                let Applied { voting, written } = apply(shared, origin, items).await?;
                Ok(ReplicaResponse::Written { voting, overtaken: written.overtaken })
            }
            ReplicaRequest::StoreHints { target, items } => {
                observe_newest(shared, from, &items)?;
                shared.hints.store(&target, items).await.map_err(|error| refusal_of_hints(&error))?;
                Ok(ReplicaResponse::HintsStored)
            }
            ReplicaRequest::Read { key } => {
                let Held { voting, record } = look_up(shared, &key).await?;
                Ok(ReplicaResponse::Record { voting, record })
            }
            ReplicaRequest::ReadVersions { keys } => look_up_versions(shared, &keys).await,
            ReplicaRequest::Scan(request) => {
                scan::serve_page(shared, request).await.map(ReplicaResponse::Page)
            }
            ReplicaRequest::AskLoad => Ok(ReplicaResponse::Load(shared.own_load())),
        }
    }
}

impl Handler for Replica {
    fn handle(&self, from: &NodeId, request: Request) -> BoxFuture<Response> {
        let (shared, from) = (self.shared.clone(), from.clone());
        Box::pin(async move {
            let body = Self::serve(&shared, &from, request).await.unwrap_or_else(ReplicaResponse::Refused);
            Response { clock: shared.hlc.now(), body }
        })
    }
}

/// Makes records durable on this node, for a peer or for its own coordinator.
pub(super) async fn apply(
    shared: &Shared,
    origin: WriteOrigin,
    mut items: Vec<(Key, Record)>,
) -> Result<Applied, Refusal> {
    if shared.env.planted.has(Mistake::ReplicaStampsItsOwnTime) && origin == WriteOrigin::Client {
        restamp(shared, &mut items);
    }
    let written = shared.store.write(WriteBatch::from(items)).await.map_err(|error| refusal(&error))?;
    Ok(Applied { voting: shared.standing.is_voting(), written })
}

/// Whether what this disk holds counts for reads.
fn reads_count(shared: &Shared) -> bool {
    shared.standing.is_voting() || shared.env.planted.has(Mistake::NonVotingReadCounts)
}

/// Looks up a key on this node, for a peer or for its own coordinator.
pub(super) async fn look_up(shared: &Shared, key: &Key) -> Result<Held, Refusal> {
    let voting = reads_count(shared);
    let record = shared.store.get(key).await.map_err(|error| damage(shared, key, &error))?;
    let record = expiry::as_of_now(shared, record).await;
    Ok(Held { voting: voting && reads_count(shared), record })
}

/// [`look_up`] for who does not wait: `None` where it would have to.
pub(super) fn look_up_at_once(shared: &Shared, key: &Key) -> Option<Result<Held, Refusal>> {
    let voting = reads_count(shared);
    Some(match shared.store.try_get(key)? {
        Ok(record) => Ok(Held { voting, record: expiry::at_once(shared, record)? }),
        Err(error) => Err(damage(shared, key, &error)),
    })
}

/// Looks up the versions of many keys: what is in memory on the spot, of the rest a few side by side. Lets go of each record before
/// it holds many of them: values may be large.
async fn look_up_versions(shared: &Shared, keys: &[Key]) -> Result<ReplicaResponse, Refusal> {
    let mut found: Vec<_> =
        keys.iter().map(|key| look_up_at_once(shared, key).map(|found| found.map(version_of))).collect();
    let waiting = found.iter_mut().zip(keys).filter(|(found, _)| found.is_none());
    stream::iter(waiting)
        .for_each_concurrent(SIDE_BY_SIDE, async |(found, key)| {
            *found = Some(look_up(shared, key).await.map(version_of));
        })
        .await;
    let mut voting = reads_count(shared);
    let mut held = Vec::with_capacity(keys.len());
    for found in found.into_iter().flatten() {
        held.push(match found {
            Ok((then, version)) => {
                voting &= then;
                version
            }
            Err(Refusal::Damaged) => HeldVersion::Damaged,
            Err(refusal) => return Err(refusal),
        });
    }
    Ok(ReplicaResponse::Versions { voting, held })
}

/// Whether the disk counted that a record is from, and the record's version.
fn version_of(Held { voting, record }: Held) -> (bool, HeldVersion) {
    (voting, record.map_or(HeldVersion::Nothing, |record| HeldVersion::Version(record.version())))
}

/// Logs that a read failed here, and says so.
pub(super) fn damage(shared: &Shared, key: &Key, error: &Error) -> Refusal {
    match error {
        Error::Closed => Refusal::NotReady,
        error => {
            tracing::error!(node = %shared.own, ?key, %error, "this node's copy cannot be read");
            Refusal::Damaged
        }
    }
}

/// Gives every record a timestamp of this node's own: only as a planted mistake.
pub(super) fn restamp(shared: &Shared, items: &mut [(Key, Record)]) {
    for (_, record) in items {
        let Ok(own) = shared.hlc.tick() else { continue };
        match record {
            Record::Value { timestamp, .. }
            | Record::Tombstone { timestamp }
            | Record::Expired { timestamp, .. } => *timestamp = own,
        }
    }
}

fn observe(shared: &Shared, from: &NodeId, clock: Timestamp) -> Result<(), Refusal> {
    if shared.env.planted.has(Mistake::PeerSkewNotChecked) {
        shared.hlc.follow(clock);
        return Ok(());
    }
    let heard = shared.clocks.hear(from, clock);
    heard.map_err(|too_far| Refusal::TooFarAhead { ahead_ms: too_far.ahead.as_millis() as u64 })
}

fn observe_newest(shared: &Shared, from: &NodeId, items: &[(Key, Record)]) -> Result<(), Refusal> {
    let newest = items.iter().map(|(_, record)| record.timestamp()).max();
    newest.map_or(Ok(()), |newest| observe(shared, from, newest))
}

fn check_items(shared: &Shared, from: &NodeId, items: &[(Key, Record)]) -> Result<(), Refusal> {
    let ours = |key: &Key| shared.ring.primaries_of_key(key.as_bytes()).contains(&shared.own);
    if !items.iter().all(|(key, _)| ours(key)) {
        return Err(Refusal::NotAReplica);
    }
    observe_newest(shared, from, items)
}

/// What a peer is told about a write that the engine did not take.
fn refusal(error: &Error) -> Refusal {
    match error {
        Error::NoSpace { .. } => Refusal::NoSpace,
        error if error.is_passing() => Refusal::Busy,
        Error::Busy { .. } => Refusal::Busy,
        Error::Closed | Error::Locked { .. } => Refusal::NotReady,
        Error::Corruption { .. } => Refusal::Damaged,
        Error::Io { .. } | Error::Poisoned => Refusal::Poisoned,
    }
}

fn refusal_of_hints(error: &hints::Error) -> Refusal {
    match error {
        hints::Error::Engine(error) => refusal(error),
        hints::Error::Full { .. } => Refusal::NoSpace,
        hints::Error::KeyTooLong => Refusal::NotAReplica,
    }
}
