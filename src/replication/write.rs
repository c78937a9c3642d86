//! `WriteOp`: one write of a group of items, from their timestamps to the last straggler.
//!
//! ```text
//!  replicas ──believed down──> hint, synced before the answer
//!     │
//!     └──sent──┬─ written ──────────────> counts (if that disk votes)
//!              ├─ refused, lost, late ──> hint          (refused for want of space: only once it is clear
//!              └─ …                                      that somebody stored it, for else it is 507)
//!
//!  W counted ──────────────────> answered; the rest goes on until the deadline, then as hints
//!  W can no longer be counted ─> 504 at once ┐  the hints are kept: the write may surface yet,
//!  deadline ───────────────────> 504         ┘  and must then surface everywhere
//! ```
//!
//! The operation is a task of its own: it ends when every replica has the write or a hint, whether or not the client is
//! still there. One task, one timer.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};

use super::api::{Acks, NotSent, WriteError};
use super::peers::Failure;
use super::quorum::{QuorumMode, QuorumTracker, Reply, Verdict};
use super::replica::{Applied, apply, restamp};
use super::shared::{InflightPermit, Shared, count};
use crate::cluster::RangeId;
use crate::engine::Written;
use crate::env::Mistake;
use crate::rpc::{Refusal, ReplicaRequest, ReplicaResponse, WriteOrigin};
use crate::types::{Key, NodeId, Record, Timestamp};
use crate::util::few::Few;

/// One write under way: of items of one turn (`write_groups`) or of a batch.
#[derive(Debug)]
pub(super) struct WriteOp {
    /// The node it is coordinated on.
    pub shared: Arc<Shared>,
    /// A range whose replicas all of the items have.
    pub range: RangeId,
    /// What to write: at least one item.
    pub items: Vec<(Key, Record)>,
    /// W.
    pub needed: usize,
    /// What counts.
    pub mode: QuorumMode,
    /// Its part of the bytes in flight.
    pub _permit: InflightPermit,
}

/// A write that met its quorum.
#[derive(Debug)]
pub(super) struct Met {
    /// Where it stood.
    pub acks: Acks,
    /// Items that met a newer record, by their places, and the newest timestamp that each met.
    pub overtaken: BTreeMap<u32, Timestamp>,
}

/// What is told where a task ended before its answer. Only a node that is torn down does that; what was sent is unknown.
pub(super) fn torn_down() -> WriteError {
    WriteError::Unknown {
        timestamp: Timestamp::ZERO,
        acks: Acks::default(),
        needed: 0,
        causes: "the node is stopping".to_owned(),
    }
}

/// How long the operation has waited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Replicas may answer yet.
    Patient,
    /// Those that have not get hints; the hints may count yet (sloppy mode only).
    GivenUp,
    /// The client has its answer.
    Overdue,
}

/// What is waited for. A replica is named by its place among the primaries.
enum Step<'a> {
    Write { replica: usize, items: &'a [(Key, Record)] },
    Hint { replica: usize, holder: &'a NodeId, awaited: bool },
}

/// What came of it.
enum Event<'a> {
    Written { replica: usize, outcome: Result<Applied, Failure> },
    Hinted { replica: usize, holder: &'a NodeId, awaited: bool, stored: bool },
}

/// What has become known so far.
struct Progress<'a> {
    tracker: QuorumTracker<'a>,
    /// Replicas that refused for want of space and have no hint yet.
    out_of_space: Vec<usize>,
    /// Hints for replicas that were believed down: the answer waits for them.
    hints_awaited: usize,
    causes: Vec<(usize, Failure)>,
    /// Items that met a newer record, by their places, and the newest timestamp that each met.
    overtaken: BTreeMap<u32, Timestamp>,
    /// Nodes that were asked to hold a hint.
    holders: Vec<&'a NodeId>,
    answer: Option<oneshot::Sender<Result<Met, WriteError>>>,
}

impl Progress<'_> {
    /// Whether all that replied refused for want of space, and the others may yet.
    fn may_be_out_of_space(&self) -> bool {
        let acks = self.tracker.acks();
        acks.failed == self.out_of_space.len() && acks.pending > 0 && acks.durable + acks.hinted == 0
    }
}

impl WriteOp {
    /// Starts the operation; the future resolves to its answer. Dropping the future stops nothing.
    pub fn start(self) -> impl Future<Output = Result<Met, WriteError>> + Send {
        let (answer, receiver) = oneshot::channel();
        let tasks = self.shared.env.tasks.clone();
        tasks.spawn(self.run(answer));
        async move { receiver.await.unwrap_or_else(|_| Err(torn_down())) }
    }

    async fn run(self, answer: oneshot::Sender<Result<Met, WriteError>>) {
        let shared = &*self.shared;
        let replicas = shared.ring.primaries(self.range);
        let again = OnceLock::new();
        let mut progress = Progress {
            tracker: QuorumTracker::new(replicas, self.needed, self.counting()),
            out_of_space: Vec::new(),
            hints_awaited: 0,
            causes: Vec::new(),
            overtaken: BTreeMap::new(),
            holders: Vec::new(),
            answer: Some(answer),
        };
        let mut steps = Few::with_capacity(replicas.len());
        for (replica, node) in replicas.iter().enumerate() {
            if shared.is_known_down(node) {
                progress.tracker.on_reply(replica, Reply::Failed);
                progress.causes.push((replica, Failure::KnownDown));
                progress.hints_awaited += 1;
                let holder = self.next_holder(&mut progress);
                steps.push(Box::pin(self.carry_out(Step::Hint { replica, holder, awaited: true })));
            } else {
                steps.push(Box::pin(self.carry_out(Step::Write { replica, items: &self.items })));
            }
        }
        let mut deadline = pin!(sleep(self.patience()));
        let mut stage = Stage::Patient;
        loop {
            for replica in self.decide(&mut progress, stage) {
                let holder = self.next_holder(&mut progress);
                steps.push(Box::pin(self.carry_out(Step::Hint { replica, holder, awaited: false })));
            }
            if steps.is_empty() {
                return;
            }
            tokio::select! { biased;
                Some(event) = steps.next() => {
                    if let Some(step) = self.take_in(&mut progress, event) {
                        steps.push(Box::pin(self.carry_out(step)));
                    }
                }
                () = &mut deadline => {
                    if shared.env.planted.has(Mistake::RetryUnderNewTimestamp)
                        && again.get().is_none()
                        && progress.answer.is_some()
                    {
                        let items = again.get_or_init(|| self.restamped());
                        for replica in 0..replicas.len() {
                            steps.push(Box::pin(self.carry_out(Step::Write { replica, items })));
                        }
                        deadline.as_mut().reset(Instant::now() + shared.settings.network_timeout);
                        continue;
                    }
                    let Some((next, lasts)) = self.next_stage(stage) else {
                        return; // what is still under way by now waits for a disk that does not come back
                    };
                    stage = next;
                    deadline.as_mut().reset(Instant::now() + lasts);
                    for replica in 0..replicas.len() {
                        if progress.tracker.is_pending(replica) {
                            progress.tracker.on_reply(replica, Reply::Failed);
                            progress.causes.push((replica, crate::rpc::Error::TimedOut.into()));
                            if shared.env.planted.has(Mistake::NoHintForLateReplica) {
                                continue;
                            }
                            let holder = self.next_holder(&mut progress);
                            steps.push(Box::pin(self.carry_out(Step::Hint { replica, holder, awaited: false })));
                        }
                    }
                }
            }
        }
    }

    /// What counts. Where a hint is mistaken for an acknowledgement, hints are waited for like acknowledgements.
    fn counting(&self) -> QuorumMode {
        if self.shared.env.planted.has(Mistake::HintCountsAsAck) { QuorumMode::Sloppy } else { self.mode }
    }

    /// How long replicas are waited for before they get hints. In sloppy mode those must count in time too.
    fn patience(&self) -> Duration {
        let timeout = self.shared.settings.network_timeout;
        if self.shared.env.planted.has(Mistake::RetryUnderNewTimestamp) {
            return timeout / 4;
        }
        match self.mode {
            QuorumMode::Strict => timeout,
            QuorumMode::Sloppy => timeout / 2,
        }
    }

    /// What follows a stage, and how long it lasts.
    fn next_stage(&self, stage: Stage) -> Option<(Stage, Duration)> {
        let timeout = self.shared.settings.network_timeout;
        match (stage, self.mode) {
            (Stage::Patient, QuorumMode::Sloppy) => Some((Stage::GivenUp, timeout / 2)),
            (Stage::Patient, QuorumMode::Strict) | (Stage::GivenUp, _) => Some((Stage::Overdue, timeout)),
            (Stage::Overdue, _) => None,
        }
    }

    async fn carry_out<'a>(&'a self, step: Step<'a>) -> Event<'a> {
        let shared = &*self.shared;
        match step {
            Step::Write { replica, items } => {
                let node = &shared.ring.primaries(self.range)[replica];
                let outcome = write_to(shared, node, WriteOrigin::Client, items.to_vec()).await;
                Event::Written { replica, outcome }
            }
            Step::Hint { replica, holder, awaited } => {
                let target = &shared.ring.primaries(self.range)[replica];
                let stored = self.store_hint(target, holder).await;
                Event::Hinted { replica, holder, awaited, stored }
            }
        }
    }

    async fn store_hint(&self, target: &NodeId, holder: &NodeId) -> bool {
        let shared = &*self.shared;
        if *target == shared.own && shared.ring.replication_factor() == 1 {
            return false; // the only copy failed: there is nothing that it could be brought in line with
        }
        let mut items = self.items.clone();
        let planted = shared.env.planted;
        if planted.has(Mistake::NoHintForDeletion) {
            items.retain(|(_, record)| !record.is_tombstone());
        }
        if planted.has(Mistake::HintsNotStored) || items.is_empty() {
            return true;
        }
        if *holder == shared.own {
            let stored = shared.hints.store(target, items).await;
            if let Err(error) = &stored {
                tracing::debug!(%target, %error, "a hint was not stored"); // the store says so aloud, once
            }
            return stored.is_ok();
        }
        let request = ReplicaRequest::StoreHints { target: target.clone(), items };
        let answer = shared.peers.call(holder, request, shared.settings.network_timeout).await;
        matches!(answer, Ok(ReplicaResponse::HintsStored))
    }

    /// Who holds the next hint: this node; in sloppy mode the next fallback that is not in use.
    fn next_holder<'a>(&'a self, progress: &mut Progress<'a>) -> &'a NodeId {
        let shared = &*self.shared;
        if self.mode == QuorumMode::Strict {
            return &shared.own;
        }
        let fallbacks = shared.ring.preference_list(self.range);
        let free = fallbacks
            .fallbacks()
            .iter()
            .find(|node| !progress.holders.contains(node) && !shared.is_known_down(node));
        let members = shared.ring.membership().members();
        let holder = free
            .and_then(|free| members.iter().find(|member| member.id == *free))
            .map_or(&shared.own, |member| &member.id);
        progress.holders.push(holder);
        holder
    }

    /// Takes in what came; returns what must follow.
    fn take_in<'a>(&'a self, progress: &mut Progress<'a>, event: Event<'a>) -> Option<Step<'a>> {
        match event {
            Event::Written { replica, outcome: Ok(Applied { voting, written }) } => {
                for (place, newer) in written.overtaken {
                    let newest = progress.overtaken.entry(place).or_insert(newer);
                    *newest = newer.max(*newest);
                }
                let voting = voting || self.shared.env.planted.has(Mistake::NonVotingAckCounts);
                progress.tracker.on_reply(replica, Reply::Written { voting });
                None
            }
            Event::Written { replica, outcome: Err(failure) } => {
                if !progress.tracker.is_pending(replica) {
                    return None; // it was given up before, and has its hint
                }
                progress.tracker.on_reply(replica, Reply::Failed);
                let out_of_space = failure == Failure::Refused(Refusal::NoSpace);
                progress.causes.push((replica, failure));
                if out_of_space && self.mode == QuorumMode::Strict {
                    progress.out_of_space.push(replica);
                    return None;
                }
                let holder = self.next_holder(progress);
                Some(Step::Hint { replica, holder, awaited: false })
            }
            Event::Hinted { replica, holder, awaited, stored } => {
                if !stored && *holder != self.shared.own {
                    let holder = self.next_holder(progress);
                    return Some(Step::Hint { replica, holder, awaited });
                }
                progress.hints_awaited -= usize::from(awaited);
                let reply = match stored {
                    true if self.shared.env.planted.has(Mistake::HintCountsAsAck) => {
                        Reply::Written { voting: true }
                    }
                    true if self.mode == QuorumMode::Sloppy
                        && self.shared.env.planted.has(Mistake::HintsOnOneNodeCountTwice) =>
                    {
                        Reply::Written { voting: true }
                    }
                    true => Reply::Hinted { holder: holder.clone() },
                    false => Reply::HintLost,
                };
                progress.tracker.on_reply(replica, reply);
                None
            }
        }
    }

    /// Answers if it is time to; returns the replicas that now need a hint.
    fn decide(&self, progress: &mut Progress<'_>, stage: Stage) -> Vec<usize> {
        if progress.answer.is_none() {
            return std::mem::take(&mut progress.out_of_space);
        }
        let result = match progress.tracker.verdict() {
            Verdict::Met if progress.hints_awaited == 0 || stage == Stage::Overdue => Ok(self.met(progress)),
            Verdict::Unreachable if self.shared.env.planted.has(Mistake::UnmetQuorumAcknowledged) => {
                Ok(self.met(progress))
            }
            Verdict::Unreachable if !progress.may_be_out_of_space() => Err(self.error(progress)),
            Verdict::Pending | Verdict::Unreachable if stage == Stage::Overdue => Err(self.error(progress)),
            Verdict::Met | Verdict::Pending | Verdict::Unreachable => return Vec::new(),
        };
        if matches!(result, Err(WriteError::NoSpace)) {
            progress.out_of_space.clear(); // nobody has it, so nobody shall get it
        }
        if let Some(answer) = progress.answer.take() {
            let _ = answer.send(result); // the client is gone: the write goes on
        }
        std::mem::take(&mut progress.out_of_space)
    }

    fn met(&self, progress: &mut Progress<'_>) -> Met {
        count(&self.shared.counters.overtaken, progress.overtaken.len() as u64);
        Met { acks: progress.tracker.acks(), overtaken: std::mem::take(&mut progress.overtaken) }
    }

    fn error(&self, progress: &Progress<'_>) -> WriteError {
        let replicas = self.shared.ring.primaries(self.range);
        if progress.out_of_space.len() == replicas.len() {
            return WriteError::NoSpace;
        }
        if self.shared.env.planted.has(Mistake::TimedOutWriteToldNotSent) {
            return NotSent::Overloaded.into();
        }
        WriteError::Unknown {
            timestamp: self.newest(),
            acks: progress.tracker.acks(),
            needed: self.needed,
            causes: causes_line(replicas, &progress.causes),
        }
    }

    /// The highest timestamp of the items.
    fn newest(&self) -> Timestamp {
        self.items.iter().map(|(_, record)| record.timestamp()).max().unwrap_or_default()
    }

    fn restamped(&self) -> Vec<(Key, Record)> {
        let mut items = self.items.clone();
        restamp(&self.shared, &mut items);
        items
    }
}

/// Makes records durable on a node, this one or a peer. What a coordinator sends, and what delivers its hints.
pub async fn write_to(
    shared: &Shared,
    node: &NodeId,
    origin: WriteOrigin,
    items: Vec<(Key, Record)>,
) -> Result<Applied, Failure> {
    if *node == shared.own {
        return Ok(apply(shared, origin, items).await?);
    }
    let request = ReplicaRequest::Write { origin, items };
    match shared.peers.call(node, request, shared.settings.network_timeout).await? {
        ReplicaResponse::Written { voting, overtaken } => {
            Ok(Applied { voting, written: Written { overtaken } })
        }
        _ => Err(Failure::Confused),
    }
}

/// Which replica failed how, in one line.
pub(super) fn causes_line(replicas: &[NodeId], causes: &[(usize, Failure)]) -> String {
    if causes.is_empty() {
        return "the others have not answered".to_owned();
    }
    let lines: Vec<_> =
        causes.iter().map(|(replica, failure)| format!("{}: {failure}", replicas[*replica])).collect();
    lines.join("; ")
}
