//! Facts: what this node tells its peers about itself, what it remembers of them, and what their memory says
//! about its own disk.
//!
//! ```text
//! this node ── Facts{uuid, run, mark, explained, …} ──────> peer keeps (uuid, highest mark, run) for our name
//!           <─ Facts{remembered: (uuid, mark), …} ───────── peer
//!                 └─ another uuid: this disk is not the one that voted under our name (wiped or swapped)
//!                 └─ a higher mark than ours: this disk was set back (a snapshot restored)
//! ```
//!
//! Directories are remembered once they have voted, and by a node that has voted also before they do, since they may
//! then vote because of it (`standing`).
//!
//! What is remembered of a peer moves on only along one history of its disk, so that a disk that lost a part of its
//! history hears of it whenever it first meets somebody who knows (`Past` decides, and is pure):
//!
//! ```text
//! same run as the mark was heard in            its marks only rise: the mark moves on
//! another run, explained ≥ remembered mark     an honest restart, or the loss has been made up for: moves on
//! another run, explained < remembered mark     set back, and does not know it yet: stays as it is
//! another directory                            stays until that one has answered for a while that it votes, which
//!                                              it may only after a rebuild once it has heard what we remember
//! ```
//!
//! The run is a number drawn by chance and written down beside the mark. A count of starts would not do: two runs that
//! begin from copies of one directory have the same count and the same first mark.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::StandingCell;
use super::identity::{IdentityFile, Remembered};
use super::shared::FactsSource;
use crate::env::{Env, Mistake};
use crate::hints::HintStore;
use crate::hlc::ClockKeeper;
use crate::rpc::Facts;
use crate::types::{NodeId, Timestamp};
use crate::util::shutdown::ShutdownListener;

/// A peer's other directory is believed after it has said in this many answers to our pings (five come a second) that it
/// votes. Each ping tells what we remember, so that it has heard that first, should it be a stranger's.
const ADOPT_AFTER: u32 = 20;
/// How often what is remembered of peers goes to disk, if it has changed.
const SAVE_EVERY: Duration = Duration::from_secs(5);

/// What speaks against this node's disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Alarm {
    /// A peer remembers another directory under our name.
    #[error("a peer remembers another directory under this name: this disk was wiped or swapped")]
    Foreign {
        /// The directory it remembers.
        uuid: u128,
        /// And that one's mark.
        mark: Timestamp,
    },
    /// A peer remembers a later state of this directory.
    #[error("a peer remembers a later state of this directory: this disk was set back")]
    SetBack {
        /// The mark it remembers.
        mark: Timestamp,
    },
}

/// What a claim is judged by.
#[derive(Debug, Clone, Copy)]
struct Own {
    uuid: u128,
    /// Marks up to it are explained: found on the disk at the start, or made up for by a rebuild.
    explained: Timestamp,
    /// Marks up to it are made up for, of whichever directory a peer remembers under this name.
    settled: Timestamp,
    /// The mark on disk now.
    mark: Timestamp,
}

/// Judges what a peer remembers of this node. `ours`: whether it is a mark that this run has written, or comes
/// from a peer whose memory was found sound before.
fn judge(claim: (u128, Timestamp), own: Own, is_former: bool, ours: bool) -> Option<Alarm> {
    let (uuid, mark) = claim;
    if uuid != own.uuid {
        // A former directory may have been used again since, while this one was in another machine.
        return (!is_former || mark > own.settled).then_some(Alarm::Foreign { uuid, mark });
    }
    let sound = mark <= own.explained || (ours && mark <= own.mark);
    (!sound).then_some(Alarm::SetBack { mark })
}

/// Tells facts, and hears them. A clone is the same.
#[derive(Debug, Clone)]
pub struct FactsKeeper {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    env: Env,
    identity: IdentityFile,
    clock: ClockKeeper,
    standing: StandingCell,
    hints: HintStore,
    /// This run of the node; never zero.
    run: u64,
    /// Ticks at every fact heard.
    heard: Notify,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    peers: BTreeMap<NodeId, Heard>,
    /// What the peers' claims speak of that is not settled yet.
    alarm: Option<Alarm>,
    /// What a rebuild under way will make up for.
    former: Vec<u128>,
    claimed_mark: Timestamp,
    /// Whether a peer has spoken of a mark that this disk should have and has not.
    set_back: bool,
    /// What is remembered of peers has changed since it was saved.
    unsaved: bool,
    /// Directories that were not known before and are not on disk yet: their nodes are not told that they are remembered.
    new_directories: BTreeMap<NodeId, u128>,
}

#[derive(Debug)]
struct Heard {
    at: Instant,
    /// Its directory.
    uuid: u128,
    has_voted: bool,
    /// It says that the cluster began with it and with this directory.
    founded_with: bool,
    /// It remembers this directory, and would notice another one under our name.
    remembers_us: bool,
    /// Its memory of this run was found sound.
    sound: bool,
    /// In how many answers in a row another directory than the remembered one has said that it votes.
    stranger: u32,
}

/// How what a peer's directory tells of itself stands to what is remembered of that peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Past {
    /// Nothing is remembered.
    Unknown,
    /// It goes on from what is remembered.
    GoesOn,
    /// It has lost what it held when the remembered mark was heard, and has not made up for it.
    SetBack,
    /// It is another directory.
    OfAnother,
}

impl Past {
    fn of(facts: &Facts, remembered: Option<&Remembered>) -> Self {
        match remembered {
            None => Self::Unknown,
            Some(remembered) if remembered.uuid != facts.uuid => Self::OfAnother,
            // Of an unknown run nothing can be said: honest peers are many, and one that was set back just while
            // this node was given a new version still hears what is remembered in the first ping.
            Some(Remembered { run, .. }) if *run == facts.run || *run == 0 => Self::GoesOn,
            // An honest disk never starts from a lower mark than anybody has heard from it.
            Some(remembered) if remembered.mark <= facts.explained => Self::GoesOn,
            Some(_) => Self::SetBack,
        }
    }
}

/// What is known of the other members, for [`super::standing::first_vote`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Met {
    /// Peers heard within the time asked for.
    pub heard: usize,
    /// Those of them that have never voted, or that met this directory before they first did.
    pub founders: usize,
    /// Those of them that remember this directory.
    pub remembering: usize,
}

impl FactsKeeper {
    /// Puts together what facts are made of.
    pub fn new(
        env: &Env,
        identity: IdentityFile,
        clock: ClockKeeper,
        standing: StandingCell,
        hints: HintStore,
    ) -> Self {
        let inner = Inner {
            env: env.clone(),
            identity,
            clock,
            standing,
            hints,
            run: env.rng.u64().max(1),
            heard: Notify::new(),
            state: Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// What speaks against this disk, if anything.
    pub fn alarm(&self) -> Option<Alarm> {
        self.inner.state.lock().alarm
    }

    /// Whether a peer remembers more of this disk than it holds.
    pub fn is_set_back(&self) -> bool {
        self.inner.state.lock().set_back
    }

    /// Hears what `peer` told of itself in its answer to a ping.
    pub fn on_pong(&self, peer: &NodeId, facts: &Facts) {
        self.inner.hear(peer, facts, Told::InAnswer);
    }

    /// Waits until a peer told something. May wake without news.
    pub async fn changed(&self) {
        self.inner.heard.notified().await;
    }

    /// Which peers were heard within `patience`.
    pub fn met(&self, patience: Duration) -> Met {
        let now = Instant::now();
        let state = self.inner.state.lock();
        let fresh = state.peers.values().filter(|heard| now.duration_since(heard.at) <= patience);
        fresh.fold(Met::default(), |met, heard| Met {
            heard: met.heard + 1,
            founders: met.founders + usize::from(!heard.has_voted || heard.founded_with),
            remembering: met.remembering + usize::from(heard.remembers_us),
        })
    }

    /// Notes the peers heard within `patience` that have not voted yet as founders of the cluster, as this node is about to
    /// vote as one. They may then vote although this node has, and another directory under one of their names is noticed.
    /// [`FactsKeeper::settle_and_vote`] makes it durable.
    pub fn note_founders(&self, patience: Duration) {
        let now = Instant::now();
        let state = self.inner.state.lock();
        let fresh = state.peers.iter().filter(|(_, heard)| now.duration_since(heard.at) <= patience);
        self.inner.identity.note(|identity| {
            for (peer, heard) in fresh.filter(|(_, heard)| !heard.has_voted) {
                let first = Remembered { uuid: heard.uuid, mark: Timestamp::ZERO, run: 0 };
                let remembered = identity.peers.entry(peer.clone()).or_insert(first);
                if remembered.uuid == heard.uuid {
                    identity.founders.insert(peer.clone());
                }
            }
        });
    }

    /// Takes over what a rebuild has made up for, durably, and that this directory votes.
    pub async fn settle_and_vote(&self) -> Result<(), super::identity::NotSaved> {
        let (former, claimed) = {
            let mut state = self.inner.state.lock();
            (state.alarm, state.set_back) = (None, false);
            (std::mem::take(&mut state.former), state.claimed_mark)
        };
        self.inner
            .identity
            .update_once_there_is_room(move |identity| {
                identity.standing = super::Standing::Voting;
                identity.has_voted = true;
                identity.rebuild.clear();
                identity.former.extend(former);
                identity.settled_mark = identity.settled_mark.max(claimed);
            })
            .await
    }

    /// Writes down now and then what is remembered of peers, until told to stop, and then once more.
    pub async fn run(self, mut stop: ShutdownListener) {
        loop {
            let stopping = tokio::select! {
                biased;
                () = stop.signalled() => true,
                () = self.due() => false,
            };
            let (unsaved, directories) = {
                let mut state = self.inner.state.lock();
                (std::mem::take(&mut state.unsaved), state.new_directories.clone())
            };
            if unsaved && self.inner.identity.update(|_| {}).await.is_err() {
                if self.inner.identity.has_failed() {
                    return; // told in the log; peers will merely remember less
                }
                self.inner.state.lock().unsaved = true; // the disk is full: tried again with the next round
            }
            self.inner.state.lock().new_directories.retain(|peer, uuid| directories.get(peer) != Some(uuid));
            if stopping {
                return;
            }
        }
    }

    async fn due(&self) {
        let latest = Instant::now() + SAVE_EVERY;
        while self.inner.state.lock().new_directories.is_empty() {
            if tokio::time::timeout_at(latest, self.changed()).await.is_err() {
                return;
            }
        }
    }
}

impl FactsSource for FactsKeeper {
    fn has_failed(&self) -> bool {
        self.inner.identity.has_failed()
    }

    fn facts_for(&self, peer: &NodeId) -> Facts {
        let inner = &*self.inner;
        let ((uuid, settled, has_voted), remembered, founded_with) = inner.identity.with(|identity| {
            let own = (identity.uuid, identity.settled_mark, identity.has_voted);
            (own, identity.peers.get(peer).copied(), identity.founders.contains(peer))
        });
        let state = inner.state.lock();
        let remembered = remembered.filter(|_| !state.new_directories.contains_key(peer));
        let heard = state.peers.get(peer).map(|heard| heard.uuid);
        let founded_with =
            founded_with && has_voted && remembered.is_some_and(|remembered| Some(remembered.uuid) == heard);
        drop(state);
        Facts {
            uuid,
            run: inner.run,
            explained: inner.clock.boot_mark().max(settled),
            mark: inner.clock.mark(),
            voting: inner.standing.is_voting(),
            has_voted,
            wall: inner.clock.hlc().wall(),
            remembered: remembered.map(|remembered| (remembered.uuid, remembered.mark)),
            hints_waiting: inner.hints.pending(peer).1,
            founded_with,
        }
    }

    fn on_facts(&self, peer: &NodeId, facts: &Facts) {
        self.inner.hear(peer, facts, Told::Unasked);
    }
}

/// How facts came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    /// In a peer's ping: it may not hear us.
    Unasked,
    /// In the answer to a ping of ours: it has heard what we remember of it.
    InAnswer,
}

impl State {
    fn hear(&mut self, inner: &Inner, peer: &NodeId, facts: &Facts, told: Told) {
        let now = Instant::now();
        let heard = self.peers.entry(peer.clone()).or_insert(Heard {
            at: now,
            uuid: facts.uuid,
            has_voted: false,
            founded_with: false,
            remembers_us: false,
            sound: false,
            stranger: 0,
        });
        heard.at = now;
        (heard.uuid, heard.has_voted, heard.founded_with) = (facts.uuid, facts.has_voted, facts.founded_with);
        let (own, have_voted) = inner.identity.with(|identity| (identity.uuid, identity.has_voted));
        heard.remembers_us = facts.remembered.is_some_and(|(uuid, _)| uuid == own);
        if let Some(claim) = facts.remembered {
            let alarm = inner.judge(claim, heard.sound);
            heard.sound |= alarm.is_none() && claim.0 == own;
            self.note(alarm);
        } else {
            heard.sound = true; // it has never known us: whatever it will remember is of this run
        }
        // One that has not voted may do so once enough of those that have remember it (`standing::first_vote`).
        if facts.has_voted || have_voted {
            self.remember(inner, peer, facts, told);
        }
    }

    fn note(&mut self, alarm: Option<Alarm>) {
        match alarm {
            Some(Alarm::Foreign { uuid, mark }) => {
                if !self.former.contains(&uuid) {
                    self.former.push(uuid);
                }
                self.claimed_mark = self.claimed_mark.max(mark);
            }
            Some(Alarm::SetBack { mark }) => {
                self.claimed_mark = self.claimed_mark.max(mark);
                self.set_back = true;
            }
            _ => {}
        }
        self.alarm = self.alarm.or(alarm);
    }

    /// Moves on what is remembered of a peer.
    fn remember(&mut self, inner: &Inner, peer: &NodeId, facts: &Facts, told: Told) {
        let heard = self.peers.get_mut(peer).expect("it was heard just now");
        let now = Remembered { uuid: facts.uuid, mark: facts.mark, run: facts.run };
        let changed = inner.identity.note(|identity| {
            let remembered = identity.peers.get(peer).copied();
            let past = Past::of(facts, remembered.as_ref());
            if past == Past::OfAnother && facts.voting {
                heard.stranger += u32::from(told == Told::InAnswer);
            } else {
                heard.stranger = 0;
            }
            let (next, changed) = match (past, remembered) {
                (Past::GoesOn, Some(Remembered { mark, .. })) => {
                    (Remembered { mark: mark.max(now.mark), ..now }, Changed::Mark)
                }
                (Past::SetBack, _) => return Changed::Nothing,
                (Past::OfAnother, _) if heard.stranger < ADOPT_AFTER => return Changed::Nothing,
                _ => (now, Changed::Directory),
            };
            if remembered == Some(next) {
                return Changed::Nothing;
            }
            heard.stranger = 0;
            identity.peers.insert(peer.clone(), next);
            changed
        });
        self.unsaved |= changed != Changed::Nothing;
        if changed == Changed::Directory {
            inner.identity.note(|identity| identity.founders.remove(peer)); // that was the directory before
            self.new_directories.insert(peer.clone(), facts.uuid);
        }
    }
}

#[derive(PartialEq, Eq)]
enum Changed {
    Nothing,
    Mark,
    Directory,
}

impl Inner {
    fn hear(&self, peer: &NodeId, facts: &Facts, told: Told) {
        self.state.lock().hear(self, peer, facts, told);
        self.heard.notify_waiters();
    }

    fn judge(&self, claim: (u128, Timestamp), sound_before: bool) -> Option<Alarm> {
        // A node that makes these mistakes knows nothing of its disk's past.
        let planted = self.env.planted;
        if planted.has(Mistake::EmptyDiskVotes) || planted.has(Mistake::RebuildMarkForgotten) {
            return None;
        }
        let (own, is_former) = self.identity.with(|identity| {
            let explained = self.clock.boot_mark().max(identity.settled_mark);
            let (settled, mark) = (identity.settled_mark, self.clock.mark());
            let own = Own { uuid: identity.uuid, explained, settled, mark };
            (own, identity.former.contains(&claim.0))
        });
        let alarm = judge(claim, own, is_former, sound_before || self.clock.wrote(claim.1));
        alarm.filter(|alarm| match alarm {
            Alarm::Foreign { .. } => !planted.has(Mistake::ForeignDiskNotNoticed),
            Alarm::SetBack { .. } => !planted.has(Mistake::SetBackDiskNotNoticed),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> Own {
        Own {
            uuid: 1,
            explained: Timestamp::from_u64(10),
            settled: Timestamp::from_u64(5),
            mark: Timestamp::from_u64(20),
        }
    }

    fn at(mark: u64) -> (u128, Timestamp) {
        (1, Timestamp::from_u64(mark))
    }

    #[test]
    fn what_was_on_the_disk_at_the_start_is_no_alarm() {
        assert_eq!(judge(at(10), own(), false, false), None);
    }

    #[test]
    fn a_mark_between_the_one_found_and_the_one_written_is_a_lost_past_unless_this_run_wrote_it() {
        let mark = Timestamp::from_u64(15);
        assert_eq!(judge(at(15), own(), false, false), Some(Alarm::SetBack { mark }));
        assert_eq!(judge(at(15), own(), false, true), None);
    }

    #[test]
    fn a_mark_never_written_is_a_lost_past_whoever_remembers_it() {
        let mark = Timestamp::from_u64(21);
        assert_eq!(judge(at(21), own(), false, true), Some(Alarm::SetBack { mark }));
    }

    #[test]
    fn another_directory_is_foreign_unless_a_rebuild_has_made_up_for_it() {
        let claim = (2, Timestamp::ZERO);
        assert_eq!(judge(claim, own(), false, true), Some(Alarm::Foreign { uuid: 2, mark: Timestamp::ZERO }));
        assert_eq!(judge(claim, own(), true, false), None);
    }

    fn facts(uuid: u128, run: u64, explained: u64) -> Facts {
        Facts {
            uuid,
            run,
            explained: Timestamp::from_u64(explained),
            mark: Timestamp::from_u64(60),
            voting: true,
            has_voted: true,
            wall: Timestamp::ZERO,
            remembered: None,
            hints_waiting: 0,
            founded_with: false,
        }
    }

    #[test]
    fn a_peer_goes_on_from_what_is_remembered_in_the_same_run_or_from_a_mark_that_covers_it() {
        let remembered = Remembered { uuid: 1, mark: Timestamp::from_u64(50), run: 7 };
        let past = |facts: &Facts| Past::of(facts, Some(&remembered));
        assert_eq!(
            past(&facts(1, 7, 30)),
            Past::GoesOn,
            "our own restart makes nothing of its run suspicious"
        );
        assert_eq!(past(&facts(1, 8, 50)), Past::GoesOn);
        assert_eq!(past(&facts(1, 8, 49)), Past::SetBack);
        assert_eq!(past(&facts(2, 7, 90)), Past::OfAnother);
        assert_eq!(Past::of(&facts(1, 8, 0), None), Past::Unknown);
        let before = Remembered { run: 0, ..remembered };
        assert_eq!(Past::of(&facts(1, 8, 30), Some(&before)), Past::GoesOn, "heard by an older version");
    }

    #[test]
    fn a_disk_that_returns_to_a_machine_has_not_made_up_for_what_was_written_there_meanwhile() {
        // Two machines changed disks, were rebuilt, and changed them back: each disk remembered that it had made up for the
        // other, voted at once, and lacked what its machine had acknowledged in between.
        let at = |mark| (2, Timestamp::from_u64(mark));
        assert_eq!(judge(at(5), own(), true, false), None);
        let alarm = Alarm::Foreign { uuid: 2, mark: Timestamp::from_u64(6) };
        assert_eq!(judge(at(6), own(), true, true), Some(alarm));
    }
}
