//! A client's read: R answers that count, the winner on enough disks, then the answer; mending afterwards.
//!
//! ```text
//!  `quick_read`: R copies alike? ──yes──> answered
//!     │ no, or not known
//!  ask R replicas for records (itself, then the fastest)
//!     │
//!     ├─ failed, damaged, not voting ──> the next one not asked yet ──none left──> 504 (500: all damage)
//!     ├─ none for a while ─────────────> hedged: one more is asked
//!     │
//!  R answers
//!     │
//!     ├─ all agree, or N − R + 1 hold the winner ────────────────> answer
//!     └─ otherwise: the winner is written back, one after another ─> answer, or 504 if nobody is left
//!
//!  afterwards, in the background: the others' versions are compared (`late_versions`), whoever is behind or damaged is
//!  sent the winner
//! ```
//!
//! A replica that was written back is asked once more before it counts as a holder. It may have taken a newer write since it
//! first answered: acknowledged before the winner's began, with a clock that was ahead. To answer with the winner then and
//! with the newer one to the next read would be a read that goes back in time for whoever knows no timestamps.
//!
//! Writing back before the answer keeps reads from going back: any later R answers include one from a replica that
//! holds the winner or something newer. Until then the read runs inside its request, so it ends with its client.

use std::cmp::Reverse;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout};

use super::api::{NotSent, ReadError, ReplicaState};
use super::late_versions::LateVersions;
use super::peers::Failure;
use super::quick_read::{self, Outcome};
use super::read_repair::{ReadRepair, Said};
use super::replica::{Applied, Held, look_up, look_up_at_once};
use super::shared::{Outlook, PerReplica, Shared, count};
use super::write::{causes_line, write_to};
use crate::cluster::{RangeId, Token};
use crate::env::Mistake;
use crate::rpc::{self, BoxFuture, HeldVersion, Refusal, ReplicaRequest, ReplicaResponse, WriteOrigin};
use crate::types::{Key, NodeId, Record, Version};
use crate::util::few::Few;

/// What a read weighs in flight, in bytes, whatever it will find.
const READ_WEIGHT: usize = 1024;
/// A replica is given at least so long before another is asked in its place.
const PATIENCE_MIN: Duration = Duration::from_millis(5);
/// A replica is slow when it takes so many times what it took of late.
const PATIENCE_FACTOR: u32 = 3;

/// What is asked of a replica.
#[derive(Debug, Clone)]
enum Ask {
    Record,
    Version,
    /// Make this durable: the winner.
    WriteBack(Record),
}

/// What a replica answered.
enum Answer {
    Record { voting: bool, record: Option<Record> },
    Version { voting: bool, version: Option<Version> },
    WrittenBack { voting: bool },
}

impl From<Held> for Answer {
    fn from(Held { voting, record }: Held) -> Self {
        Self::Record { voting, record }
    }
}

/// Asks one replica, named by its place among the primaries.
async fn ask(shared: Arc<Shared>, range: RangeId, replica: usize, key: Key, ask: Ask) -> Event {
    let node = &shared.ring.primaries(range)[replica];
    let is_read = !matches!(ask, Ask::WriteBack(_));
    let outcome = match ask {
        Ask::WriteBack(record) => {
            let written = write_to(&shared, node, WriteOrigin::Repair, vec![(key, record)]).await;
            written.map(|Applied { voting, .. }| Answer::WrittenBack { voting })
        }
        Ask::Record | Ask::Version if *node == shared.own => {
            look_up(&shared, &key).await.map(Answer::from).map_err(Failure::from)
        }
        Ask::Record => ask_peer(&shared, node, ReplicaRequest::Read { key }).await,
        Ask::Version => ask_peer(&shared, node, ReplicaRequest::ReadVersions { keys: vec![key] }).await,
    };
    Event { replica, is_read, outcome }
}

async fn ask_peer(shared: &Shared, node: &NodeId, request: ReplicaRequest) -> Result<Answer, Failure> {
    match shared.peers.call_timed(node, request, shared.settings.network_timeout).await? {
        ReplicaResponse::Record { voting, record } => Ok(Answer::Record { voting, record }),
        ReplicaResponse::Versions { voting, held } => match held[..] {
            [HeldVersion::Nothing] => Ok(Answer::Version { voting, version: None }),
            [HeldVersion::Version(version)] => Ok(Answer::Version { voting, version: Some(version) }),
            [HeldVersion::Damaged] => Err(Refusal::Damaged.into()),
            _ => Err(Failure::Confused),
        },
        _ => Err(Failure::Confused),
    }
}

struct Event {
    replica: usize,
    is_read: bool,
    outcome: Result<Answer, Failure>,
}

/// The winner, sent to a replica before the answer.
#[derive(Debug, Clone, Copy)]
struct WriteBack {
    replica: usize,
    version: Version,
    /// Whether it ended, well or not: well once the replica has said what it holds since.
    ended: bool,
}

/// What a read does next.
enum Next {
    Answer,
    Wait,
    Fail,
}

/// One read under way. A replica is named by its place among the primaries.
struct ReadOp {
    shared: Arc<Shared>,
    key: Key,
    range: RangeId,
    repair: ReadRepair,
    /// Replicas not asked yet, the best last.
    unasked: PerReplica<usize>,
    /// Whether each replica was asked for anything.
    asked: Vec<bool>,
    /// Replicas that were asked for their record because their version won.
    fetched: Vec<usize>,
    write_backs: Vec<WriteBack>,
    /// Write-backs beyond what is needed, because those under way are slow.
    write_backs_extra: usize,
    causes: Vec<(usize, Failure)>,
    steps: Few<BoxFuture<Event>>,
}

/// Returns the newest record that R replicas know.
pub(super) async fn get(shared: &Arc<Shared>, key: Key, needed: usize) -> Result<Option<Record>, ReadError> {
    shared.check_serving()?;
    let started = Instant::now();
    let range = shared.ring.range_of(Token::of(key.as_bytes()));
    let replicas = shared.ring.primaries(range);
    let outlooks = shared.outlooks(replicas, started);
    let reachable = outlooks.iter().filter(|outlook| **outlook == Outlook::Counts).count();
    if reachable < needed {
        return Err(NotSent::TooFewReplicas { needed, reachable, total: replicas.len() }.into());
    }
    let permit = shared.admit(READ_WEIGHT + key.as_bytes().len())?;
    let candidates = candidates(shared, replicas, &outlooks);
    let heard = match quick_read::get(shared, &key, replicas, &candidates, needed).await {
        Outcome::Agreed(record) => return Ok(record),
        Outcome::Undecided(heard) => heard,
    };
    let mut op = ReadOp::new(shared, key, range, needed);
    op.unasked = candidates;
    op.hear(&heard.told);
    let at_once = needed.max(heard.asked) - heard.told.len();
    let deadline = started + shared.settings.network_timeout;
    // Boxed, so that a read that agrees carries none of this about.
    Box::pin(async move {
        op.start(at_once);
        let answer = match op.run(deadline).await {
            Ok(answer) => answer,
            Err(error) => {
                if shared.env.planted.has(Mistake::InflightBytesLeaked) {
                    std::mem::forget(permit);
                }
                return Err(error);
            }
        };
        op.leave_to_background();
        Ok(answer)
    })
    .await
}

/// How long a read of `node` may take before another is asked beside it.
pub(super) fn patience(shared: &Shared, node: &NodeId) -> Duration {
    let of_late = shared.peers.latency(node) * PATIENCE_FACTOR;
    of_late.clamp(PATIENCE_MIN, PATIENCE_MIN.max(shared.settings.network_timeout / 2))
}

/// Brings the replicas of a key in line: hears all that are not believed down, and sends the newest record to whoever
/// is behind or damaged.
pub(super) async fn mend(shared: Arc<Shared>, key: Key) {
    let range = shared.ring.range_of(Token::of(key.as_bytes()));
    let replicas = shared.ring.primaries(range);
    let mut op = ReadOp::new(&shared, key, range, replicas.len());
    for (replica, node) in replicas.iter().enumerate() {
        if !shared.is_known_down(node) {
            op.push(replica, Ask::Version);
        }
    }
    op.mend().await;
}

/// What every replica of a key holds, in the order of the primaries.
pub(super) async fn ask_all(shared: &Arc<Shared>, key: &Key) -> Vec<(NodeId, ReplicaState)> {
    let range = shared.ring.range_of(Token::of(key.as_bytes()));
    let replicas = shared.ring.primaries(range);
    let silent = ReplicaState::Unreachable("no answer in time".to_owned());
    let mut states: Vec<_> = replicas.iter().map(|node| (node.clone(), silent.clone())).collect();
    let mut steps = Few::with_capacity(replicas.len());
    for replica in 0..replicas.len() {
        steps.push(Box::pin(ask(shared.clone(), range, replica, key.clone(), Ask::Record)));
    }
    let collect = async {
        while let Some(Event { replica, outcome, .. }) = steps.next().await {
            states[replica].1 = match outcome {
                Ok(Answer::Record { record: Some(record), .. }) => ReplicaState::Holds(record),
                Ok(_) => ReplicaState::Missing,
                Err(failure) => ReplicaState::Unreachable(failure.to_string()),
            };
        }
    };
    let _ = timeout(shared.settings.network_timeout, collect).await; // who was silent is shown as such
    states
}

/// Who is asked, the best last: nobody believed down; those that vote before others, this node before peers, the
/// fast before the slow.
fn candidates(shared: &Shared, replicas: &[NodeId], outlooks: &[Outlook]) -> PerReplica<usize> {
    let mut ranked: PerReplica<_> = replicas
        .iter()
        .zip(outlooks)
        .enumerate()
        .filter(|(_, (_, outlook))| **outlook != Outlook::Down)
        .map(|(replica, (node, outlook))| {
            let own = *node == shared.own;
            let latency = if own { Duration::ZERO } else { shared.peers.latency(node) };
            (*outlook, own, Reverse(latency), Reverse(replica))
        })
        .collect();
    ranked.sort_unstable();
    ranked.into_iter().map(|(.., Reverse(replica))| replica).collect()
}

impl ReadOp {
    fn new(shared: &Arc<Shared>, key: Key, range: RangeId, needed: usize) -> Self {
        let replica_count = shared.ring.primaries(range).len();
        Self {
            shared: shared.clone(),
            key,
            range,
            repair: ReadRepair::new(replica_count, needed),
            unasked: PerReplica::new(),
            asked: vec![false; replica_count],
            fetched: Vec::new(),
            write_backs: Vec::new(),
            write_backs_extra: 0,
            causes: Vec::new(),
            steps: Few::with_capacity(replica_count),
        }
    }

    /// Takes in what replicas said before.
    fn hear(&mut self, told: &[(usize, Option<Version>)]) {
        for (replica, version) in told {
            self.unasked.retain(|unasked| unasked != replica);
            self.asked[*replica] = true;
            self.repair.on_said(*replica, Said::Tells(*version));
        }
    }

    /// Asks so many replicas for records.
    fn start(&mut self, count: usize) {
        for _ in 0..count {
            let Some(replica) = self.unasked.pop() else { return };
            if self.replicas()[replica] == self.shared.own && self.try_memory(replica) {
                continue;
            }
            self.push(replica, Ask::Record);
        }
    }

    /// Reads this node's copy if it is in memory: the common case needs no future.
    fn try_memory(&mut self, replica: usize) -> bool {
        let Some(found) = look_up_at_once(&self.shared, &self.key) else { return false };
        let outcome = found.map(Answer::from).map_err(Failure::from);
        self.take_in(Event { replica, is_read: true, outcome });
        true
    }

    async fn run(&mut self, deadline: Instant) -> Result<Option<Record>, ReadError> {
        let hedge_after = self.hedge_after();
        let mut timer = pin!(sleep_until(deadline.min(Instant::now() + hedge_after)));
        loop {
            match self.advance() {
                Next::Answer => return Ok(self.repair.winner().cloned()),
                Next::Fail => return Err(self.error()),
                Next::Wait => {}
            }
            tokio::select! { biased;
                Some(event) = self.steps.next() => self.take_in(event),
                () = &mut timer => {
                    let now = Instant::now();
                    if now >= deadline {
                        return Err(self.error());
                    }
                    self.hedge();
                    timer.as_mut().reset(deadline.min(now + hedge_after));
                }
            }
        }
    }

    /// Does what can be done without waiting.
    fn advance(&mut self) -> Next {
        if self.repair.is_answered() {
            if let Some(replica) = self.repair.to_fetch() {
                self.fetch(replica);
            } else if self.repair.is_settled() || self.shared.env.planted.has(Mistake::NoWriteBack) {
                return Next::Answer;
            } else {
                self.ask_the_rest();
                self.write_back();
            }
        }
        if self.steps.is_empty() { Next::Fail } else { Next::Wait }
    }

    fn take_in(&mut self, Event { replica, is_read, outcome }: Event) {
        // What it holds after a write-back may be newer: a write that was acknowledged since it was asked.
        if let Ok(Answer::WrittenBack { voting: true }) = outcome {
            if self.shared.env.planted.has(Mistake::NoSecondQuestionAfterWriteBack) {
                self.end_write_back(replica);
                let written = self.repair.winner().cloned();
                return self.repair.on_record(replica, written);
            }
            return self.push(replica, Ask::Record);
        }
        if !matches!(outcome, Ok(Answer::Version { .. })) {
            self.end_write_back(replica); // a version was asked for besides, and may have been on its way before
        }
        match outcome {
            Ok(Answer::Record { voting: true, record }) => self.repair.on_record(replica, record),
            Ok(Answer::Version { voting: true, version }) => {
                self.repair.on_said(replica, Said::Tells(version));
            }
            Ok(Answer::Record { voting: false, .. } | Answer::Version { voting: false, .. }) => {
                self.repair.on_said(replica, Said::NotVoting);
                self.causes.push((replica, Failure::NotVoting));
                self.ask_next();
            }
            Ok(Answer::WrittenBack { .. }) => {}
            Err(failure) => {
                if is_read {
                    let damaged = failure == Failure::Refused(Refusal::Damaged);
                    self.repair.on_said(replica, if damaged { Said::Damaged } else { Said::Failed });
                    self.ask_next();
                }
                self.causes.push((replica, failure));
            }
        }
    }

    /// Asks one more replica, unless enough have answered.
    fn ask_next(&mut self) {
        if !self.repair.is_answered()
            && let Some(replica) = self.unasked.pop()
        {
            self.push(replica, Ask::Record);
        }
    }

    fn fetch(&mut self, replica: usize) {
        if !self.fetched.contains(&replica) {
            self.fetched.push(replica);
            self.push(replica, Ask::Record);
        }
    }

    /// Whoever was not asked may hold the winner already.
    fn ask_the_rest(&mut self) {
        while let Some(replica) = self.unasked.pop() {
            self.push(replica, Ask::Version);
        }
    }

    /// Sends the winner to as many replicas as still must hold it; each is tried once.
    fn write_back(&mut self) {
        let (Some(winner), Some(version)) = (self.repair.winner().cloned(), self.repair.version()) else {
            return; // nobody holds anything, so nobody disagrees
        };
        loop {
            let under_way =
                self.write_backs.iter().filter(|one| one.version == version && !one.ended).count();
            let wanted = self.repair.holders_needed() + self.write_backs_extra;
            if self.repair.holders() + under_way >= wanted {
                return;
            }
            let Some(replica) = self.next_for_write_back(version) else { return };
            if self.write_backs.is_empty() {
                count(&self.shared.counters.write_backs, 1);
            }
            self.write_backs.push(WriteBack { replica, version, ended: false });
            self.push(replica, Ask::WriteBack(winner.clone()));
        }
    }

    /// Who is sent the winner next: who said that it is behind, then who has said nothing, then who failed to say.
    fn next_for_write_back(&self, version: Version) -> Option<usize> {
        let replicas = self.replicas();
        let rank = |replica: usize| match self.repair.said(replica) {
            _ if self.repair.is_behind(replica) => Some(0),
            Said::Unheard => Some(1),
            Said::Failed => Some(2),
            Said::Tells(_) | Said::Holds(_) | Said::NotVoting | Said::Damaged => None,
        };
        let tried = |replica: usize| {
            self.write_backs.iter().any(|one| one.replica == replica && one.version == version)
        };
        (0..replicas.len())
            .filter(|replica| !tried(*replica) && !self.shared.is_known_down(&replicas[*replica]))
            .filter_map(|replica| rank(replica).map(|rank| (rank, replica)))
            .min()
            .map(|(_, replica)| replica)
    }

    fn end_write_back(&mut self, replica: usize) {
        for one in self.write_backs.iter_mut().filter(|one| one.replica == replica) {
            one.ended = true;
        }
    }

    fn hedge_after(&self) -> Duration {
        let asked = (0..self.replicas().len()).filter(|replica| self.asked[*replica]);
        asked.map(|replica| patience(&self.shared, &self.replicas()[replica])).max().unwrap_or(PATIENCE_MIN)
    }

    /// Somebody is slow: one more is asked, or sent the winner.
    fn hedge(&mut self) {
        if self.repair.is_answered() {
            self.write_backs_extra += 1;
        } else if let Some(replica) = self.unasked.pop() {
            count(&self.shared.counters.hedged_reads, 1);
            self.push(replica, Ask::Record);
        }
    }

    fn error(&self) -> ReadError {
        let mut causes = self.causes.clone();
        // Who has said nothing has no failure yet, and whether its call or this read ends first is chance.
        let silent =
            |replica: &usize| self.repair.said(*replica) == Said::Unheard && !self.unasked.contains(replica);
        causes.extend((0..self.replicas().len()).filter(silent).map(|replica| {
            (replica, if self.asked[replica] { rpc::Error::TimedOut.into() } else { Failure::KnownDown })
        }));
        let causes = causes_line(self.replicas(), &causes);
        if !self.repair.is_answered() && self.repair.is_all_damage() {
            return ReadError::Damaged { causes };
        }
        let needed = self.repair.needed();
        if self.repair.is_answered() {
            let causes = format!("the newest record could not be written back: {causes}");
            return ReadError::Unanswered { answered: self.repair.answers(), needed, causes };
        }
        ReadError::Unanswered { answered: self.repair.answers(), needed, causes }
    }

    /// Has the replicas that were not asked compared, and leaves what is still under way, and what is to be mended, to
    /// a task of its own.
    fn leave_to_background(self) {
        let unasked = self.unasked.iter().map(|replica| &self.replicas()[*replica]);
        LateVersions::note(&self.shared, unasked, &self.key, self.repair.version());
        let replica_count = self.replicas().len();
        if self.steps.is_empty() && !(0..replica_count).any(|replica| self.repair.is_behind(replica)) {
            return;
        }
        let Ok(permit) = self.shared.repairs.clone().try_acquire_owned() else {
            return; // so much is being mended already: a later read will see to this key
        };
        let tasks = self.shared.env.tasks.clone();
        tasks.spawn(async move {
            let leaks = self.shared.env.planted.has(Mistake::RepairPermitLeaked);
            self.mend().await;
            if leaks {
                permit.forget();
            }
        });
    }

    /// Hears who is late, and sends the winner to whoever is behind.
    async fn mend(mut self) {
        loop {
            while let Some(event) = self.steps.next().await {
                self.take_in(event);
            }
            match self.repair.to_fetch() {
                Some(replica) if !self.fetched.contains(&replica) => self.fetch(replica),
                _ => break,
            }
        }
        let (Some(winner), Some(version)) = (self.repair.winner().cloned(), self.repair.version()) else {
            return;
        };
        for replica in 0..self.replicas().len() {
            let sent = |one: &WriteBack| one.replica == replica && one.version == version;
            if self.repair.is_behind(replica) && !self.write_backs.iter().any(sent) {
                count(&self.shared.counters.read_repairs, 1);
                self.push(replica, Ask::WriteBack(winner.clone()));
            }
        }
        while self.steps.next().await.is_some() {}
    }

    fn replicas(&self) -> &[NodeId] {
        self.shared.ring.primaries(self.range)
    }

    fn push(&mut self, replica: usize, what: Ask) {
        self.asked[replica] = true;
        let asked = ask(self.shared.clone(), self.range, replica, self.key.clone(), what);
        self.steps.push(Box::pin(asked));
    }
}
