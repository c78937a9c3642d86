//! Standing: whether this node's disk may count for R and W.
//!
//! ```text
//!          all peers heard, or half a second                a peer remembers another directory
//!          and a majority of members                        or a later mark
//!  on disk: voting ──────────────────────────────> Voting ──────────────────┐
//!                                                     ^                     v
//!  on disk: rebuilding, or empty, or damaged ─────────┼──────────────> Rebuilding
//!                                                     └── has read its ranges, or is empty and certain that no
//!                                                         directory of its name has voted; first on disk
//! ```
//!
//! A replica that lost what it acknowledged must not vote: a quorum that counts it may miss the write. So a
//! node whose disk is empty, foreign, older than its peers remember or damaged stores and serves, and counts
//! neither for R nor for W, until it has read its ranges from enough peers (`rebuild`); that it has not yet is on
//! disk before anything else, so that a crash in the middle does not forget it.
//!
//! An empty directory may vote at once if none before it under its name has ever counted ([`first_vote`]): then it lacks
//! nothing that it acknowledged, only what every replica may lack that missed a write. Two things show that:
//!
//! - *Founding.* A majority of the members is there, itself included, and none of them has voted, or those that have met
//!   this very directory before they did (they remember that, durably). So any majority of a new ring gets to vote, in
//!   whatever order its nodes start and find each other.
//! - *Admission.* More than half of the other members remember this very directory, durably, and none another one. Any
//!   directory of the same name that voted before was remembered by one of them.
//!
//! Source: Michael et al., "Recovering Shared Objects Without Stable Storage" (2017), for why a disk that lost
//! data must not count; the marks that peers remember are our own.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::facts::{FactsKeeper, Met};
use super::identity::{Identity, IdentityFile, NotSaved};
use super::rebuild::Rebuild;
use super::shared::Shared;
use crate::env::Mistake;
use crate::hlc::majority::Verdict;
use crate::util::shutdown::ShutdownListener;

/// Whether a replica's disk may count for R and W.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It holds what it acknowledged: its answers count.
    Voting = 0,
    /// It may lack what it once acknowledged, or what was acknowledged without it: it stores and serves, but
    /// its answers do not count until it has read its ranges from enough peers.
    Rebuilding = 1,
}

/// The standing of one node, shared by whoever asks and the one who changes it.
#[derive(Debug, Clone)]
pub struct StandingCell {
    /// Acquire and release: who reads `Voting` also sees what the rebuild wrote before it was set.
    standing: Arc<AtomicU8>,
}

impl StandingCell {
    /// Starts at `standing`.
    pub fn new(standing: Standing) -> Self {
        Self { standing: Arc::new(AtomicU8::new(standing as u8)) }
    }

    /// What holds now.
    pub fn get(&self) -> Standing {
        if self.is_voting() { Standing::Voting } else { Standing::Rebuilding }
    }

    /// Whether this node's disk counts now.
    pub fn is_voting(&self) -> bool {
        self.standing.load(Ordering::Acquire) == Standing::Voting as u8
    }

    /// Changes it. What makes the change true must be durable before.
    pub fn set(&self, standing: Standing) {
        self.standing.store(standing as u8, Ordering::Release);
    }
}

/// How long a node that was voting when it stopped listens to all of its peers; then a majority of the members will do.
const HEAR_OUT: Duration = Duration::from_millis(500);
/// How old a peer's word may be for an empty node to rely on it.
const FRESH: Duration = Duration::from_secs(1);

/// Whether the peers heard and this node are more than half of all members.
fn is_majority(members: usize, met: Met) -> bool {
    met.heard + 1 > members / 2
}

/// Why a node that has never voted may vote without reading from its peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FirstVote {
    /// The cluster begins with it.
    Founding,
    /// The cluster has begun, and no other directory has voted under its name.
    Admission,
}

/// Whether a node that has never voted may vote without reading from its peers, and why. `alarm`: a peer remembers
/// another directory under its name, or more of this one than it holds.
pub fn first_vote(members: usize, met: Met, alarm: bool) -> Option<FirstVote> {
    let others = members.saturating_sub(1);
    if alarm {
        None
    } else if met.founders == met.heard && is_majority(members, met) {
        Some(FirstVote::Founding)
    } else if met.remembering > others / 2 {
        Some(FirstVote::Admission)
    } else {
        None
    }
}

/// Decides when this node votes: listens, rebuilds, and falls back when a peer's memory speaks against its disk.
#[derive(Debug)]
pub struct StandingKeeper {
    shared: Arc<Shared>,
    facts: FactsKeeper,
    identity: IdentityFile,
    rebuild: Rebuild,
    /// Members but this node.
    peers: usize,
}

impl StandingKeeper {
    /// For the node that `shared` belongs to.
    pub fn new(shared: Arc<Shared>, facts: FactsKeeper, identity: IdentityFile) -> Self {
        let peers = shared.ring.membership().members().len().saturating_sub(1);
        let rebuild = Rebuild::new(shared.clone(), identity.clone());
        Self { shared, facts, identity, rebuild, peers }
    }

    /// Runs until told to stop.
    pub async fn run(self, mut stop: ShutdownListener) {
        tokio::select! {
            biased;
            () = stop.signalled() => {}
            () = self.keep() => {}
        }
    }

    async fn keep(&self) {
        let begun = Instant::now();
        if self.votes_on_disk() && !self.shared.env.planted.has(Mistake::VotesWithoutListening) {
            let _ = timeout(HEAR_OUT, self.all_heard()).await;
            self.majority_heard().await;
        }
        loop {
            if self.votes_on_disk() && self.facts.alarm().is_none() {
                self.shared.standing.set(Standing::Voting);
                self.shared.detector.announce();
                self.alarmed().await;
            }
            if self.stop_voting().await.is_err() {
                return; // no rebuild could be remembered: the node stores and serves, and counts for nothing
            }
            tokio::select! {
                biased;
                () = self.first_vote() => {}
                () = self.settle_then_rebuild(begun) => {}
                () = self.set_back() => continue, // how far the rebuild had come was set back too
            }
            if self.facts.settle_and_vote().await.is_err() {
                return;
            }
        }
    }

    fn votes_on_disk(&self) -> bool {
        self.identity.with(|identity| identity.standing == Standing::Voting)
    }

    async fn all_heard(&self) {
        while self.facts.met(HEAR_OUT).heard < self.peers && self.facts.alarm().is_none() {
            self.facts.changed().await;
        }
    }

    /// A node that has heard nobody cannot know whether its disk was set back or swapped, nor what time it is.
    async fn majority_heard(&self) {
        let heard = || {
            is_majority(self.peers + 1, self.facts.met(FRESH))
                && self.shared.clocks.verdict() != Verdict::Unchecked
        };
        while !heard() && self.facts.alarm().is_none() {
            self.facts.changed().await;
        }
    }

    async fn alarmed(&self) {
        while self.facts.alarm().is_none() {
            self.facts.changed().await;
        }
    }

    /// Counts for nothing from now on, and durably, unless that is on disk already.
    async fn stop_voting(&self) -> Result<(), NotSaved> {
        self.shared.standing.set(Standing::Rebuilding);
        if !self.votes_on_disk() && !self.facts.is_set_back() {
            return Ok(());
        }
        let reason = self.facts.alarm().map(|alarm| alarm.to_string());
        tracing::warn!(reason, "this node's disk cannot be trusted: it rebuilds from its peers");
        self.identity.update_once_there_is_room(Identity::fall).await
    }

    /// Waits until a peer's memory says that this disk was set back, unless that was known before.
    async fn set_back(&self) {
        if self.facts.is_set_back() {
            std::future::pending::<()>().await;
        }
        while !self.facts.is_set_back() {
            self.facts.changed().await;
        }
    }

    /// Waits until this node, which has never voted, may do so as it is.
    async fn first_vote(&self) {
        if self.identity.with(|identity| identity.has_voted) {
            std::future::pending::<()>().await;
        }
        if self.shared.env.planted.has(Mistake::EmptyVotesBeforeMajority) && self.facts.met(FRESH).heard == 0
        {
            return;
        }
        loop {
            match first_vote(self.peers + 1, self.facts.met(FRESH), self.facts.alarm().is_some()) {
                Some(FirstVote::Founding) => return self.facts.note_founders(FRESH),
                Some(FirstVote::Admission) => return,
                None => self.facts.changed().await,
            }
        }
    }

    /// Rebuilds; where this disk may have acknowledged writes in an earlier life, not before those that counted
    /// its acknowledgement have been decided, so that the peers hold them by then.
    async fn settle_then_rebuild(&self, begun: Instant) {
        let settled = tokio::time::sleep_until(begun + self.shared.settings.network_timeout);
        if self.shared.env.planted.has(Mistake::NoSettlingBeforeRebuild) {
            return self.rebuild.run().await;
        }
        if self.identity.with(|identity| identity.has_voted)
            || timeout(HEAR_OUT, self.all_heard()).await.is_err()
            || self.facts.alarm().is_some()
        {
            settled.await;
        }
        self.rebuild.run().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn met(heard: usize, founders: usize, remembering: usize) -> Met {
        Met { heard, founders, remembering }
    }

    #[test]
    fn an_empty_node_votes_alone_or_among_a_majority_that_founds_the_cluster_with_it() {
        let founding = Some(FirstVote::Founding);
        assert_eq!(first_vote(1, met(0, 0, 0), false), founding);
        assert_eq!(first_vote(3, met(0, 0, 0), false), None);
        assert_eq!(first_vote(3, met(1, 1, 0), false), founding);
        assert_eq!(first_vote(3, met(2, 0, 0), false), None, "both others have voted");
        assert_eq!(first_vote(4, met(1, 1, 0), false), None, "half is no majority");
        assert_eq!(first_vote(4, met(2, 2, 0), false), founding);
        assert_eq!(first_vote(3, met(2, 1, 1), false), None, "one has voted, and may have forgotten us");
    }

    #[test]
    fn an_empty_node_that_comes_late_votes_once_more_than_half_of_the_others_remember_it() {
        assert_eq!(first_vote(3, met(1, 0, 1), false), None, "the other may know of another directory");
        assert_eq!(first_vote(3, met(2, 0, 2), false), Some(FirstVote::Admission));
        assert_eq!(first_vote(5, met(2, 0, 2), false), None);
        assert_eq!(first_vote(5, met(3, 0, 3), false), Some(FirstVote::Admission));
    }

    #[test]
    fn a_majority_includes_this_node() {
        for (members, heard) in [(1, 0), (2, 1), (3, 1), (4, 2), (5, 2), (7, 3)] {
            assert!(is_majority(members, met(heard, 0, 0)), "{heard} peers of {members} members");
            assert!(heard == 0 || !is_majority(members, met(heard - 1, 0, 0)), "{members} members");
        }
    }

    #[test]
    fn an_empty_node_whose_name_has_voted_before_does_not_vote() {
        assert_eq!(first_vote(3, met(2, 2, 2), true), None);
    }
}
