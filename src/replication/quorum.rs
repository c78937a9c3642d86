//! `QuorumTracker`: counts the replies to one write and gives a verdict. Pure.
//!
//! ```text
//!              Written, voting ──────────────> Durable   counts
//! Pending ──┬─ Written, not voting ──────────> Stored    on disk, but that disk does not count: still pending
//!           └─ Failed ──> Failed ──┬─ Hinted ─> Hinted   counts in sloppy mode, once for each holder
//!                                  └─ HintLost ─> Lost
//! ```
//!
//! Strict: met by W replicas that vote and have the write on disk. Hints count for nothing.
//! Sloppy: met by W distinct nodes that have it on disk, as voting replica or as holder of a hint; a node that
//! is both counts once.
//! Unreachable: not even if everything that is still open went well.
//!
//! Source: Dynamo (SOSP 2007), section 4.6; counting hints only on demand is Riak's `W` against `PW`.

use super::api::Acks;
use crate::types::NodeId;

/// What counts towards W.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum QuorumMode {
    /// Replicas only.
    Strict,
    /// Holders of hints too.
    Sloppy,
}

/// What became known of one replica of a write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// The replica has it on disk.
    Written {
        /// Whether that disk counts.
        voting: bool,
    },
    /// The replica failed, refused, or did not answer in time. A hint may follow.
    Failed,
    /// A hint for the replica is on this node's disk.
    Hinted {
        /// Who holds it.
        holder: NodeId,
    },
    /// No hint could be stored for the replica.
    HintLost,
}

/// How the quorum stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It may be met yet.
    Pending,
    /// It is met, and stays so.
    Met,
    /// It can no longer be met by what is under way.
    Unreachable,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Pending,
    Durable,
    Stored,
    Failed,
    Hinted,
    Lost,
}

/// Counts the replies to one write.
///
/// Invariant: a replica that was `Durable` stays so, whatever comes later; so `Met` is never taken back.
#[derive(Debug)]
pub struct QuorumTracker<'a> {
    replicas: &'a [NodeId],
    states: Vec<State>,
    /// Distinct nodes that hold a hint.
    holders: Vec<NodeId>,
    needed: usize,
    mode: QuorumMode,
}

impl<'a> QuorumTracker<'a> {
    /// Nobody has replied yet. `needed` is W, 1 to the number of replicas.
    pub fn new(replicas: &'a [NodeId], needed: usize, mode: QuorumMode) -> Self {
        Self { replicas, states: vec![State::Pending; replicas.len()], holders: Vec::new(), needed, mode }
    }

    /// Takes in what became known of the replica at this place of the list.
    pub fn on_reply(&mut self, replica: usize, reply: Reply) -> Verdict {
        let state = self.states[replica];
        self.states[replica] = match (state, reply) {
            (State::Durable, Reply::Hinted { holder }) => {
                self.add_holder(holder);
                State::Durable
            }
            (State::Durable, _) | (_, Reply::Written { voting: true }) => State::Durable,
            (_, Reply::Written { voting: false }) => State::Stored,
            (_, Reply::Hinted { holder }) => {
                self.add_holder(holder);
                State::Hinted
            }
            (State::Stored | State::Hinted, Reply::Failed | Reply::HintLost) => state,
            (_, Reply::Failed) => State::Failed,
            (_, Reply::HintLost) => State::Lost,
        };
        self.verdict()
    }

    /// How the quorum stands.
    pub fn verdict(&self) -> Verdict {
        let durable = self.count(State::Durable);
        let open = self.count(State::Pending);
        let (have, may) = match self.mode {
            QuorumMode::Strict => (durable, open),
            QuorumMode::Sloppy => (durable + self.holders_apart(), open + self.count(State::Failed)),
        };
        if have >= self.needed {
            Verdict::Met
        } else if have + may < self.needed {
            Verdict::Unreachable
        } else {
            Verdict::Pending
        }
    }

    /// Whether this replica's reply is still awaited.
    pub fn is_pending(&self, replica: usize) -> bool {
        self.states[replica] == State::Pending
    }

    /// The counts for the answer. They add up to N; a replica whose disk does not count is pending.
    pub fn acks(&self) -> Acks {
        Acks {
            durable: self.count(State::Durable),
            hinted: self.count(State::Hinted),
            failed: self.count(State::Failed) + self.count(State::Lost),
            pending: self.count(State::Pending) + self.count(State::Stored),
        }
    }

    fn count(&self, state: State) -> usize {
        self.states.iter().filter(|other| **other == state).count()
    }

    fn add_holder(&mut self, holder: NodeId) {
        if !self.holders.contains(&holder) {
            self.holders.push(holder);
        }
    }

    /// Holders of hints that do not count as replicas already.
    fn holders_apart(&self) -> usize {
        let counts = |holder: &NodeId| {
            self.replicas
                .iter()
                .zip(&self.states)
                .any(|(node, state)| node == holder && *state == State::Durable)
        };
        self.holders.iter().filter(|holder| !counts(holder)).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn node(name: &str) -> NodeId {
        NodeId::from_canonical(name)
    }

    fn abc() -> Vec<NodeId> {
        ["a", "b", "c"].map(node).to_vec()
    }

    const VOTES: Reply = Reply::Written { voting: true };

    #[test]
    fn a_strict_quorum_is_met_by_w_voting_replicas() {
        let nodes = abc();
        let mut tracker = QuorumTracker::new(&nodes, 2, QuorumMode::Strict);
        assert_eq!(tracker.on_reply(0, VOTES), Verdict::Pending);
        assert_eq!(tracker.on_reply(2, VOTES), Verdict::Met);
        assert_eq!(tracker.acks(), Acks { durable: 2, hinted: 0, failed: 0, pending: 1 });
    }

    #[test]
    fn one_replica_counts_once() {
        let nodes = abc();
        let mut tracker = QuorumTracker::new(&nodes, 2, QuorumMode::Strict);
        tracker.on_reply(0, VOTES);
        assert_eq!(tracker.on_reply(0, VOTES), Verdict::Pending);
    }

    #[test]
    fn a_replica_that_does_not_vote_is_pending_and_does_not_count() {
        let nodes = abc();
        let mut tracker = QuorumTracker::new(&nodes, 2, QuorumMode::Strict);
        tracker.on_reply(0, VOTES);
        assert_eq!(tracker.on_reply(1, Reply::Written { voting: false }), Verdict::Pending);
        assert_eq!(tracker.acks(), Acks { durable: 1, hinted: 0, failed: 0, pending: 2 });
        assert_eq!(tracker.on_reply(2, Reply::Failed), Verdict::Unreachable);
    }

    #[test]
    fn a_quorum_is_unreachable_once_too_few_replicas_are_left() {
        let nodes = abc();
        let mut tracker = QuorumTracker::new(&nodes, 2, QuorumMode::Strict);
        assert_eq!(tracker.on_reply(0, Reply::Failed), Verdict::Pending);
        assert_eq!(tracker.on_reply(1, Reply::Failed), Verdict::Unreachable);
        assert_eq!(tracker.on_reply(2, VOTES), Verdict::Unreachable);
    }

    #[test]
    fn a_hint_does_not_count_in_strict_mode() {
        let nodes = abc();
        let mut tracker = QuorumTracker::new(&nodes, 2, QuorumMode::Strict);
        tracker.on_reply(0, VOTES);
        tracker.on_reply(1, Reply::Failed);
        assert_eq!(tracker.on_reply(1, Reply::Hinted { holder: node("d") }), Verdict::Pending);
        assert_eq!(tracker.acks(), Acks { durable: 1, hinted: 1, failed: 0, pending: 1 });
    }

    #[test]
    fn a_hint_on_a_distinct_node_counts_in_sloppy_mode() {
        let nodes = abc();
        let mut tracker = QuorumTracker::new(&nodes, 2, QuorumMode::Sloppy);
        tracker.on_reply(0, VOTES);
        tracker.on_reply(1, Reply::Failed);
        assert_eq!(tracker.on_reply(1, Reply::Hinted { holder: node("a") }), Verdict::Pending);
        assert_eq!(tracker.on_reply(2, Reply::Failed), Verdict::Pending, "its hint may come yet");
        assert_eq!(tracker.on_reply(2, Reply::Hinted { holder: node("d") }), Verdict::Met);
    }

    #[test]
    fn two_hints_on_one_node_count_once() {
        let nodes = abc();
        let mut tracker = QuorumTracker::new(&nodes, 2, QuorumMode::Sloppy);
        for replica in [0, 1] {
            tracker.on_reply(replica, Reply::Failed);
            tracker.on_reply(replica, Reply::Hinted { holder: node("d") });
        }
        assert_eq!(tracker.verdict(), Verdict::Pending);
        tracker.on_reply(2, Reply::Failed);
        assert_eq!(tracker.on_reply(2, Reply::HintLost), Verdict::Unreachable);
    }

    #[test]
    fn a_late_acknowledgement_replaces_a_failure_and_a_failure_never_replaces_it() {
        let nodes = abc();
        let mut tracker = QuorumTracker::new(&nodes, 1, QuorumMode::Strict);
        for replica in 0..3 {
            tracker.on_reply(replica, Reply::Failed);
        }
        assert_eq!(tracker.verdict(), Verdict::Unreachable);
        assert_eq!(tracker.on_reply(1, VOTES), Verdict::Met);
        assert_eq!(tracker.on_reply(1, Reply::Failed), Verdict::Met);
    }

    fn any_reply() -> impl Strategy<Value = Reply> {
        prop_oneof![
            any::<bool>().prop_map(|voting| Reply::Written { voting }),
            Just(Reply::Failed),
            Just(Reply::HintLost),
            (0u8..6).prop_map(|n| Reply::Hinted { holder: node(&n.to_string()) }),
        ]
    }

    proptest! {
        #[test]
        fn met_means_w_voting_disks_or_in_sloppy_mode_w_distinct_disks(
            needed in 1usize..=5,
            sloppy: bool,
            replies in proptest::collection::vec((0usize..5, any_reply()), 0..24),
        ) {
            let nodes: Vec<_> = (0..5).map(|n| node(&n.to_string())).collect();
            let mode = if sloppy { QuorumMode::Sloppy } else { QuorumMode::Strict };
            let mut tracker = QuorumTracker::new(&nodes, needed, mode);
            let mut disks = std::collections::BTreeSet::new();
            for (replica, reply) in replies {
                match &reply {
                    Reply::Written { voting: true } => drop(disks.insert(nodes[replica].clone())),
                    Reply::Hinted { holder } if sloppy => drop(disks.insert(holder.clone())),
                    _ => {}
                }
                let verdict = tracker.on_reply(replica, reply);
                prop_assert_eq!(verdict == Verdict::Met, disks.len() >= needed);
                let Acks { durable, hinted, failed, pending } = tracker.acks();
                prop_assert_eq!(durable + hinted + failed + pending, 5);
            }
        }
    }
}
