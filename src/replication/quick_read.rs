//! `QuickRead`: a read whose replicas agree, as nearly all do, at the price of a lookup and a share of a message.
//!
//! ```text
//!  reads of one turn of the runtime            this node                     a peer
//!     ├─ own copy, from memory
//!     └─ key ──ask──> waiting, a list for each peer ──taken whole──> ReadVersions, many keys a message
//!  own version == what R − 1 peers hold? ──yes──> answered      <──── versions, one for each key
//!     └─ no, failed, damaged, not voting, slow ──> the long way: `ReadOp`, from its beginning
//! ```
//!
//! Versions rather than records: answers have a bounded size whatever the values have, and a value that this node has need not
//! travel. A message, an answer, a timer and a task for each read would cost more than all else that a read does.
//!
//! That all R hold the same version is the first of the two ways in which [`ReadRepair`](super::read_repair) calls a read
//! settled; whatever else may come is decided there, and only there.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;

use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::late_versions::LateVersions;
use super::read::patience;
use super::replica::{Held, look_up_at_once};
use super::shared::Shared;
use crate::rpc::{HeldVersion, ReplicaRequest, ReplicaResponse};
use crate::types::{Key, NodeId, Record, Version};

/// Keys in one message, at most.
const KEYS_MAX: usize = 256;

/// What came of it.
#[derive(Debug)]
pub(super) enum Outcome {
    /// R replicas agree on this.
    Agreed(Option<Record>),
    /// One of them has not answered as soon as it usually does.
    Slow,
    /// It takes more than this.
    Undecided,
}

/// What a peer said of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    /// Its disk counts, and holds this.
    Holds(Option<Version>),
    /// Nothing yet.
    Slow,
    /// Nothing that counts.
    Other,
}

/// A key whose version is wanted, and by whom.
#[derive(Debug)]
struct Asked {
    key: Key,
    answer: oneshot::Sender<Told>,
}

/// The keys that each peer is to be asked for.
///
/// Invariant: of every [`KEYS_MAX`] that wait for a peer the first has a task that will send them.
#[derive(Debug)]
pub struct QuickReads {
    waiting: BTreeMap<NodeId, Mutex<Vec<Asked>>>,
}

impl QuickReads {
    /// Nothing to ask `peers` for yet.
    pub fn new<'a>(peers: impl Iterator<Item = &'a NodeId>) -> Self {
        Self { waiting: peers.map(|node| (node.clone(), Mutex::default())).collect() }
    }
}

/// Reads `key` if this node, a voting replica, has its copy in memory, and R − 1 of the others hold the same.
///
/// `candidates` are those of `replicas` that may be asked, the best last.
pub(super) async fn get(
    shared: &Arc<Shared>,
    key: &Key,
    replicas: &[NodeId],
    candidates: &[usize],
    needed: usize,
) -> Outcome {
    let Some((own, others)) = candidates.split_last() else { return Outcome::Undecided };
    if replicas[*own] != shared.own || others.len() + 1 < needed {
        return Outcome::Undecided;
    }
    let (unasked, asked) = others.split_at(others.len() + 1 - needed);
    let Some(Ok(Held { voting: true, record })) = look_up_at_once(shared, key) else {
        return Outcome::Undecided;
    };
    let version = record.as_ref().map(Record::version);
    let mut answers: SmallVec<[_; 2]> = SmallVec::new();
    for replica in asked.iter().rev() {
        let Some(answer) = ask(shared, &replicas[*replica], key) else { return Outcome::Undecided };
        answers.push(answer);
    }
    for answer in answers {
        match answer.await {
            Ok(Told::Holds(held)) if held == version => {}
            Ok(Told::Slow) => return Outcome::Slow,
            Ok(Told::Holds(_) | Told::Other) | Err(_) => return Outcome::Undecided,
        }
    }
    LateVersions::note(shared, unasked.iter().map(|replica| &replicas[*replica]), key, version);
    Outcome::Agreed(record)
}

/// Has `node` asked for its version of a key, together with what else this turn of the runtime wants of it.
fn ask(shared: &Arc<Shared>, node: &NodeId, key: &Key) -> Option<oneshot::Receiver<Told>> {
    let (answer, receiver) = oneshot::channel();
    let begins_message = {
        let mut waiting = shared.quick_reads.waiting.get(node)?.lock();
        waiting.push(Asked { key: key.clone(), answer });
        waiting.len() % KEYS_MAX == 1
    };
    if begins_message {
        shared.env.tasks.spawn(send(shared.clone(), node.clone()));
    }
    Some(receiver)
}

/// Sends `node` a message of what waits, and tells who asked.
async fn send(shared: Arc<Shared>, node: NodeId) {
    // First let the reads of this turn of the runtime add theirs.
    tokio::task::yield_now().await;
    let (keys, answers): (Vec<_>, Vec<_>) = {
        let mut waiting = shared.quick_reads.waiting[&node].lock();
        let count = waiting.len().min(KEYS_MAX);
        waiting.drain(..count).map(|asked| (asked.key, asked.answer)).unzip()
    };
    if keys.is_empty() {
        return; // an earlier message took them along
    }
    let request = ReplicaRequest::ReadVersions { keys };
    let mut call = pin!(shared.peers.call_timed(&node, request, shared.settings.network_timeout));
    match timeout(patience(&shared, &node), call.as_mut()).await {
        Ok(Ok(ReplicaResponse::Versions { voting: true, held })) if held.len() == answers.len() => {
            for (answer, held) in answers.into_iter().zip(held) {
                tell(answer, held.into());
            }
        }
        Ok(_) => tell_all(answers, Told::Other),
        Err(_) => {
            tell_all(answers, Told::Slow);
            let _ = call.await; // so that it is known how slow it is
        }
    }
}

/// Tells one who asked; who does not wait any more was a client that has gone.
fn tell(answer: oneshot::Sender<Told>, told: Told) {
    let _ = answer.send(told);
}

fn tell_all(answers: Vec<oneshot::Sender<Told>>, told: Told) {
    for answer in answers {
        tell(answer, told);
    }
}

impl From<HeldVersion> for Told {
    fn from(held: HeldVersion) -> Self {
        match held {
            HeldVersion::Nothing => Self::Holds(None),
            HeldVersion::Version(version) => Self::Holds(Some(version)),
            HeldVersion::Damaged => Self::Other,
        }
    }
}
