//! `QuickRead`: a read whose replicas agree, as nearly all do, at the price of a lookup and a share of a message.
//!
//! ```text
//!  reads of one turn of the runtime            this node                     a peer
//!     ├─ own copy, from memory
//!     └─ key ──ask──> waiting, a list for each peer ──taken whole──> ReadVersions, many keys a message
//!  own version == what R − 1 peers hold? ──yes──> answered      <──── versions, one for each key
//!     ├─ slow ──> one more peer is asked in the same way; who answers first counts
//!     └─ no, failed, damaged, not voting ──> the long way: `ReadOp`, with what was heard
//! ```
//!
//! Versions rather than records: answers have a bounded size whatever the values have, and a value that this node has need not
//! travel. A message, an answer, a timer and a task for each read would cost more than all else that a read does.
//!
//! That all R hold the same version is the first of the two ways in which [`ReadRepair`](super::read_repair) calls a read
//! settled; whatever else may come is decided there, and only there.

use std::collections::BTreeMap;
use std::future::Future;
use std::iter::repeat_with;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::late_versions::LateVersions;
use super::peers::Failure;
use super::read::patience;
use super::replica::{Held, look_up_at_once};
use super::shared::{PerReplica, Shared, count};
use crate::rpc::{HeldVersion, ReplicaRequest, ReplicaResponse};
use crate::types::{Key, NodeId, Record, Version};
use crate::util::few::Few;

/// Keys in one message, at most.
const KEYS_MAX: usize = 256;

/// What came of it.
#[derive(Debug)]
pub(super) enum Outcome {
    /// R replicas agree on this.
    Agreed(Option<Record>),
    /// It takes more than this.
    Undecided(Heard),
}

/// What was learned on the way.
#[derive(Debug, Default)]
pub(super) struct Heard {
    /// Replicas other than this node that said what they hold.
    pub told: PerReplica<(usize, Option<Version>)>,
    /// How many replicas were asked, this node and those among them.
    pub asked: usize,
}

/// What a peer said of a key.
#[derive(Debug)]
enum Told {
    /// Its disk counts, and holds this.
    Holds(Option<Version>),
    /// Nothing as soon as it usually does. What it says yet comes from here.
    Slow(oneshot::Receiver<Told>),
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
    let mut heard = Heard::default();
    let Some((own, mut unasked)) = candidates.split_last() else { return Outcome::Undecided(heard) };
    if replicas[*own] != shared.own {
        return Outcome::Undecided(heard);
    }
    let Some(Ok(Held { voting: true, record })) = look_up_at_once(shared, key) else {
        return Outcome::Undecided(heard);
    };
    let version = record.as_ref().map(Record::version);
    let mut answers = Few::with_capacity(needed - 1);
    let mut ask_next = || {
        let (next, rest) = unasked.split_last()?;
        unasked = rest;
        ask(shared, &replicas[*next], key).map(|told| Answer { replica: *next, told })
    };
    (1..needed).filter_map(|_| ask_next()).for_each(|answer| answers.push(answer));
    while heard.told.len() + 1 < needed {
        let is_over = match answers.next().await {
            Some((replica, Told::Holds(held))) => {
                heard.told.push((replica, held));
                held != version
            }
            Some((replica, Told::Slow(told))) => {
                answers.push(Answer { replica, told });
                if let Some(answer) = ask_next() {
                    count(&shared.counters.hedged_reads, 1);
                    answers.push(answer);
                }
                false
            }
            Some((_, Told::Other)) | None => true,
        };
        if is_over {
            heard.asked = candidates.len() - unasked.len();
            return Outcome::Undecided(heard);
        }
    }
    // A replica that was asked and is slow is compared too: what it answers yet, nobody hears.
    let is_told = |replica: &usize| heard.told.iter().any(|(told, _)| told == replica);
    let others = candidates.iter().filter(|replica| *replica != own && !is_told(replica));
    let late: PerReplica<&NodeId> = others.map(|replica| &replicas[*replica]).collect();
    LateVersions::note(shared, late.iter().copied(), key, version);
    Outcome::Agreed(record)
}

/// What a replica will have said.
struct Answer {
    replica: usize,
    told: oneshot::Receiver<Told>,
}

impl Future for Answer {
    type Output = (usize, Told);

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let told = ready!(Pin::new(&mut self.told).poll(context));
        Poll::Ready((self.replica, told.unwrap_or(Told::Other)))
    }
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
        let asked = waiting.drain(..count).filter(|asked| !asked.answer.is_closed());
        asked.map(|asked| (asked.key, asked.answer)).unzip()
    };
    if keys.is_empty() {
        return; // an earlier message took them along, or nobody waits any more
    }
    let request = ReplicaRequest::ReadVersions { keys };
    let mut call = pin!(shared.peers.call_timed(&node, request, shared.settings.network_timeout));
    let Ok(told) = timeout(patience(&shared, &node), call.as_mut()).await else {
        let answers = answers.into_iter().map(say_slow).collect();
        return tell_all(answers, call.await);
    };
    tell_all(answers, told);
}

/// Tells one who asked that the answer will take a while; it goes to whom is returned.
fn say_slow(answer: oneshot::Sender<Told>) -> oneshot::Sender<Told> {
    let (later, yet) = oneshot::channel();
    tell(answer, Told::Slow(yet));
    later
}

/// Tells those who asked, in their order, what the peer answered.
fn tell_all(answers: Vec<oneshot::Sender<Told>>, answer: Result<ReplicaResponse, Failure>) {
    let held = match answer {
        Ok(ReplicaResponse::Versions { voting: true, held }) if held.len() == answers.len() => held,
        _ => Vec::new(),
    };
    let told = held.into_iter().map(Told::from).chain(repeat_with(|| Told::Other));
    for (answer, told) in answers.into_iter().zip(told) {
        tell(answer, told);
    }
}

/// Tells one who asked; who does not wait any more was a client that has gone.
fn tell(answer: oneshot::Sender<Told>, told: Told) {
    let _ = answer.send(told);
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
