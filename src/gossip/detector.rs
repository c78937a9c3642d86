//! `FailureDetector`: what this node believes of its peers, from when they last answered.
//!
//! ```text
//! answer ────────────────────────────> Alive
//! no answer for 500 ms ──────────────> Suspect        also: never heard yet, or unreachable once
//! no answer for 1 s ─────────────────> Dead           also: unreachable twice in a row
//! ```
//!
//! Only an *answer* shows that a peer can be reached: a ping that comes in shows the other direction, and a link
//! may fail one way. It is a cue to ping back at once, so that a peer's return is noticed sooner than by turn.
//!
//! Beliefs follow from times by [`Evidence::liveness`], which is pure. Nothing here talks: `gossip::ping` does.
//! The detector is not a vote: two nodes may believe differently, and a slow node may be believed dead.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::hlc::majority::Reading;
use crate::rpc::Facts;
use crate::types::NodeId;
use crate::util::ticker::{Ticker, Ticks};

/// Silence after which a peer is suspected: two pings and a half.
pub const SUSPECT_AFTER: Duration = Duration::from_millis(500);
/// Silence after which a peer is believed dead: a dead peer costs nobody a timeout after the first second.
pub const DEAD_AFTER: Duration = Duration::from_secs(1);
/// So many times in a row the transport must find a peer unreachable for it to be believed dead at once.
pub const UNREACHABLE_MAX: u32 = 2;
/// Failures closer together count as one: all that wait on a connection see it break at the same moment.
pub const UNREACHABLE_APART: Duration = Duration::from_millis(20);

/// What a node believes of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Liveness {
    /// It answers.
    Alive,
    /// It has not answered for a moment: worth asking, not worth waiting for.
    Suspect,
    /// It has not answered for a second, or cannot be reached.
    Dead,
}

/// When a peer answered and when it could not be reached: all that a belief rests on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Evidence {
    /// The last answer; before the first one, when we began to listen.
    heard: Instant,
    /// Whether it ever answered.
    ever: bool,
    /// How often in a row it could not be reached since, and when last.
    unreachable: Option<(u32, Instant)>,
}

impl Evidence {
    /// Nothing is known yet.
    pub fn none(now: Instant) -> Self {
        Self { heard: now, ever: false, unreachable: None }
    }

    /// It answered.
    pub fn on_answer(&mut self, now: Instant) {
        *self = Self { heard: now, ever: true, unreachable: None };
    }

    /// It could not be reached.
    pub fn on_unreachable(&mut self, now: Instant) {
        self.unreachable = match self.unreachable {
            None => Some((1, now)),
            Some((count, last)) if now.duration_since(last) >= UNREACHABLE_APART => {
                Some((count.saturating_add(1), now))
            }
            before => before,
        };
    }

    /// What to believe now.
    pub fn liveness(&self, now: Instant) -> Liveness {
        let silence = now.duration_since(self.heard);
        let unreachable = self.unreachable.map_or(0, |(count, _)| count);
        if silence >= DEAD_AFTER || unreachable >= UNREACHABLE_MAX {
            Liveness::Dead
        } else if silence >= SUSPECT_AFTER || unreachable > 0 || !self.ever {
            Liveness::Suspect
        } else {
            Liveness::Alive
        }
    }
}

/// A peer's wall clock minus ours, as of its last answer to a ping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClockOffset {
    /// The estimate: its answer is taken to have been made in the middle of the round trip.
    pub micros: i64,
    /// Half the round trip: how far off the estimate can be.
    pub uncertainty_micros: i64,
}

impl ClockOffset {
    /// Estimates from both wall clocks: ours when the ping left, theirs when they answered, in microseconds.
    pub fn estimate(our_micros: u64, their_micros: u64, round_trip: Duration) -> Self {
        let signed = |micros: u64| i64::try_from(micros).unwrap_or(i64::MAX);
        let half = signed(u64::try_from(round_trip.as_micros() / 2).unwrap_or(u64::MAX));
        let middle = signed(our_micros).saturating_add(half);
        Self { micros: signed(their_micros).saturating_sub(middle), uncertainty_micros: half }
    }

    /// How far the peer's clock is ahead of ours at least; zero or less when it may not be ahead at all.
    pub fn ahead_at_least_micros(self) -> i64 {
        self.micros.saturating_sub(self.uncertainty_micros)
    }
}

/// A peer's wall clock as it was at a moment of ours. The monotonic clock carries it on, so that a jump of this node's own
/// wall clock changes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct PeerClock {
    micros: u64,
    at: Instant,
    /// How far off it can be.
    uncertainty: Duration,
}

impl PeerClock {
    /// A reading this good is better than any older one.
    const GOOD: Duration = Duration::from_millis(20);
    /// A worse one replaces it after this time.
    const KEPT: Duration = Duration::from_secs(5);

    fn of_answer(micros: u64, sent: Instant, answered: Instant) -> Self {
        let half = answered.duration_since(sent) / 2;
        Self { micros, at: sent + half, uncertainty: half }
    }

    /// Whether this one is to be relied on instead of an earlier one: an answer that was long under way says little.
    fn replaces(&self, before: &Self) -> bool {
        self.uncertainty <= before.uncertainty.max(Self::GOOD)
            || self.at.saturating_duration_since(before.at) >= Self::KEPT
    }

    fn reading(&self, now: Instant) -> Reading {
        let signed =
            i128::from(self.micros) + now.saturating_duration_since(self.at).as_micros().cast_signed();
        let uncertainty = self.uncertainty.as_micros().cast_signed();
        let clamp = |micros: i128| u64::try_from(micros.max(0)).unwrap_or(u64::MAX);
        Reading { earliest: clamp(signed - uncertainty), latest: clamp(signed + uncertainty) }
    }
}

/// What this node believes of its peers. A clone is the same detector.
#[derive(Debug, Clone)]
pub struct FailureDetector {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Ordered, so that whoever walks it does so in the same order in every run of a simulation.
    peers: Mutex<BTreeMap<NodeId, Peer>>,
    /// Ticks when a belief changes.
    changes: Ticker,
    /// Peers to ping out of turn; at most all of them.
    cues: Mutex<BTreeSet<NodeId>>,
    cued: Notify,
}

#[derive(Debug)]
struct Peer {
    evidence: Evidence,
    /// What was believed when somebody last looked, so that a change is told once.
    believed: Liveness,
    facts: Option<(Facts, Instant)>,
    clock_offset: Option<ClockOffset>,
    clock: Option<PeerClock>,
}

impl FailureDetector {
    /// Begins to listen to `peers`. Of nodes that are not among them it believes nothing good.
    pub fn new(peers: impl IntoIterator<Item = NodeId>) -> Self {
        let now = Instant::now();
        let evidence = Evidence::none(now);
        let believed = evidence.liveness(now);
        let peer = || Peer { evidence, believed, facts: None, clock_offset: None, clock: None };
        let shared = Shared {
            peers: Mutex::new(peers.into_iter().map(|node| (node, peer())).collect()),
            changes: Ticker::default(),
            cues: Mutex::default(),
            cued: Notify::new(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// The peers, sorted by name.
    pub fn peers(&self) -> Vec<NodeId> {
        self.shared.peers.lock().keys().cloned().collect()
    }

    /// What is believed of `nodes` now, and of each whether it also said of late that its disk counts. One look for all: every
    /// request asks it for its replicas.
    pub fn beliefs(&self, nodes: &[NodeId], now: Instant) -> SmallVec<[(Liveness, bool); 5]> {
        let peers = self.shared.peers.lock();
        let belief = |node| {
            peers.get(node).map_or((Liveness::Dead, false), |peer| {
                let liveness = peer.evidence.liveness(now);
                (liveness, liveness == Liveness::Alive && peer.votes())
            })
        };
        nodes.iter().map(belief).collect()
    }

    /// What is believed of `node` now.
    pub fn liveness(&self, node: &NodeId) -> Liveness {
        let now = Instant::now();
        self.shared.peers.lock().get(node).map_or(Liveness::Dead, |peer| peer.evidence.liveness(now))
    }

    /// Whether `node` is alive and said of late that its disk counts.
    pub fn is_voting(&self, node: &NodeId) -> bool {
        let now = Instant::now();
        self.shared.peers.lock().get(node).is_some_and(|peer| {
            peer.evidence.liveness(now) == Liveness::Alive
                && peer.facts.as_ref().is_some_and(|(facts, _)| facts.voting)
        })
    }

    /// What `node` last said of itself, and when we heard it.
    pub fn facts(&self, node: &NodeId) -> Option<(Facts, Instant)> {
        self.shared.peers.lock().get(node)?.facts.clone()
    }

    /// How far `node`'s wall clock is from ours.
    pub fn clock_offset(&self, node: &NodeId) -> Option<ClockOffset> {
        self.shared.peers.lock().get(node)?.clock_offset
    }

    /// `node` told us about itself: in its ping or in its answer to ours. Of itself no sign that it can be reached;
    /// when it is not believed alive it is pinged at once.
    pub fn on_facts(&self, node: &NodeId, facts: Facts) {
        let now = Instant::now();
        let alive = self.with(node, now, |peer| {
            peer.facts = Some((facts, now));
            peer.evidence.liveness(now) == Liveness::Alive
        });
        if alive == Some(false) && self.shared.cues.lock().insert(node.clone()) {
            self.shared.cued.notify_one();
        }
    }

    /// `node` answered a call, whatever the answer.
    pub fn note_alive(&self, node: &NodeId) {
        let now = Instant::now();
        self.with(node, now, |peer| peer.evidence.on_answer(now));
    }

    /// The transport could not reach `node`: nothing was sent (`rpc::Error::Unreachable`). A call that merely got no
    /// answer is no failure here: silence is counted by itself.
    pub fn on_failure(&self, node: &NodeId) {
        let now = Instant::now();
        self.with(node, now, |peer| peer.evidence.on_unreachable(now));
    }

    /// Has all peers pinged at once: this node has news of itself, and until they hear it they count without it.
    pub fn announce(&self) {
        self.shared.cues.lock().extend(self.peers());
        self.shared.cued.notify_one();
    }

    /// A receiver that ticks when any belief changes.
    pub fn subscribe(&self) -> Ticks {
        self.shared.changes.listener()
    }

    /// Looks which beliefs time alone has changed, and tells. The ping loop does it every turn.
    pub fn refresh(&self) {
        let now = Instant::now();
        let mut changed = false;
        for peer in self.shared.peers.lock().values_mut() {
            changed |= peer.believe(now);
        }
        self.tell(changed);
    }

    /// What the wall clocks of the peers that are alive say now.
    pub fn clock_readings(&self) -> Vec<Reading> {
        let now = Instant::now();
        let peers = self.shared.peers.lock();
        let alive = peers.values().filter(|peer| peer.evidence.liveness(now) == Liveness::Alive);
        alive.filter_map(|peer| Some(peer.clock?.reading(now))).collect()
    }

    /// What `node`'s wall clock says now, going by what was heard last.
    pub fn clock_reading(&self, node: &NodeId) -> Option<Reading> {
        Some(self.shared.peers.lock().get(node)?.clock?.reading(Instant::now()))
    }

    /// `node` answered now what was sent at `sent`: our wall clock then, its wall clock when it answered, in microseconds.
    pub fn on_clock(&self, node: &NodeId, ours: u64, theirs: u64, sent: Instant) {
        let now = Instant::now();
        let offset = ClockOffset::estimate(ours, theirs, now.duration_since(sent));
        let clock = PeerClock::of_answer(theirs, sent, now);
        self.with(node, now, |peer| {
            peer.clock_offset = Some(offset);
            if peer.clock.is_none_or(|before| clock.replaces(&before)) {
                peer.clock = Some(clock);
            }
        });
    }

    /// Waits for peers to be pinged out of turn. Cancel-safe.
    pub(super) async fn cues(&self) -> BTreeSet<NodeId> {
        loop {
            let cues = std::mem::take(&mut *self.shared.cues.lock());
            if !cues.is_empty() {
                return cues;
            }
            self.shared.cued.notified().await;
        }
    }

    /// Changes what is known of a peer, and tells if that changes a belief.
    fn with<T>(&self, node: &NodeId, now: Instant, change: impl FnOnce(&mut Peer) -> T) -> Option<T> {
        let (result, changed) = {
            let mut peers = self.shared.peers.lock();
            let peer = peers.get_mut(node)?;
            let voting = peer.votes();
            let result = change(peer);
            let changed = peer.believe(now) | (peer.votes() != voting);
            (result, changed)
        };
        self.tell(changed);
        Some(result)
    }

    fn tell(&self, changed: bool) {
        if changed {
            self.shared.changes.tick();
        }
    }
}

impl Peer {
    /// Brings the belief up to date; says whether it changed.
    fn believe(&mut self, now: Instant) -> bool {
        let before = std::mem::replace(&mut self.believed, self.evidence.liveness(now));
        before != self.believed
    }

    /// Whether it says that its disk counts.
    fn votes(&self) -> bool {
        self.facts.as_ref().is_some_and(|(facts, _)| facts.voting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn heard_at(start: Instant) -> Evidence {
        let mut evidence = Evidence::none(start);
        evidence.on_answer(start);
        evidence
    }

    #[test]
    fn silence_makes_a_peer_suspect_and_then_dead() {
        let start = Instant::now();
        let evidence = heard_at(start);
        assert_eq!(evidence.liveness(start + ms(499)), Liveness::Alive);
        assert_eq!(evidence.liveness(start + ms(500)), Liveness::Suspect);
        assert_eq!(evidence.liveness(start + ms(999)), Liveness::Suspect);
        assert_eq!(evidence.liveness(start + ms(1000)), Liveness::Dead);
    }

    #[test]
    fn a_peer_never_heard_is_suspect_for_a_second_only() {
        let start = Instant::now();
        let evidence = Evidence::none(start);
        assert_eq!(evidence.liveness(start), Liveness::Suspect);
        assert_eq!(evidence.liveness(start + ms(1000)), Liveness::Dead);
    }

    #[test]
    fn a_peer_unreachable_twice_in_a_row_is_dead_at_once() {
        let start = Instant::now();
        let mut evidence = heard_at(start);
        evidence.on_unreachable(start + ms(10));
        assert_eq!(evidence.liveness(start + ms(10)), Liveness::Suspect);
        evidence.on_unreachable(start + ms(40));
        assert_eq!(evidence.liveness(start + ms(40)), Liveness::Dead);
        evidence.on_answer(start + ms(50));
        assert_eq!(evidence.liveness(start + ms(50)), Liveness::Alive);
    }

    #[test]
    fn an_answer_between_two_failures_starts_the_count_anew() {
        let start = Instant::now();
        let mut evidence = heard_at(start);
        evidence.on_unreachable(start + ms(10));
        evidence.on_answer(start + ms(20));
        evidence.on_unreachable(start + ms(60));
        assert_eq!(evidence.liveness(start + ms(60)), Liveness::Suspect);
    }

    #[test]
    fn a_burst_of_failures_counts_once() {
        let start = Instant::now();
        let mut evidence = heard_at(start);
        for _ in 0..100 {
            evidence.on_unreachable(start + ms(10));
        }
        assert_eq!(evidence.liveness(start + ms(10)), Liveness::Suspect);
    }

    #[test]
    fn a_clock_ahead_by_less_than_half_the_round_trip_may_not_be_ahead_at_all() {
        let offset = ClockOffset::estimate(1_000_000, 1_000_300, ms(1));
        assert_eq!(offset, ClockOffset { micros: -200, uncertainty_micros: 500 });
        let offset = ClockOffset::estimate(1_000_000, 3_000_500, ms(1));
        assert_eq!(offset.micros, 2_000_000);
        assert_eq!(offset.ahead_at_least_micros(), 1_999_500);
        let offset = ClockOffset::estimate(3_000_000, 1_000_500, ms(1));
        assert_eq!(offset.micros, -2_000_000);
    }

    #[test]
    fn a_peers_clock_runs_on_and_an_answer_that_was_long_under_way_does_not_blur_it() {
        let start = Instant::now();
        let clock = PeerClock::of_answer(1_000_000, start, start + ms(2));
        let reading = clock.reading(start + ms(11));
        assert_eq!(reading, Reading { earliest: 1_009_000, latest: 1_011_000 });
        let slow = PeerClock::of_answer(1_500_000, start, start + ms(900));
        assert!(clock.replaces(&slow) && !slow.replaces(&clock));
        let later = PeerClock::of_answer(9_000_000, start + ms(5000), start + ms(5900));
        assert!(later.replaces(&clock), "better than nothing for long");
    }

    fn node(name: &str) -> NodeId {
        NodeId::from_canonical(name)
    }

    fn facts(voting: bool) -> Facts {
        crate::gossip::ping::tests::facts(voting)
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_votes_only_while_it_is_alive_and_says_so() {
        let a = node("a:1");
        let detector = FailureDetector::new([a.clone()]);
        detector.on_facts(&a, facts(true));
        assert!(!detector.is_voting(&a), "a ping that came in is no answer");
        detector.note_alive(&a);
        assert!(detector.is_voting(&a));
        detector.on_facts(&a, facts(false));
        assert!(!detector.is_voting(&a));
        detector.on_facts(&a, facts(true));
        tokio::time::advance(SUSPECT_AFTER).await;
        assert!(!detector.is_voting(&a));
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_of_belief_ticks_once() {
        let a = node("a:1");
        let detector = FailureDetector::new([a.clone()]);
        let mut changes = detector.subscribe();
        detector.note_alive(&a);
        assert!(changes.has_changed());
        changes.mark_unchanged();
        detector.note_alive(&a);
        detector.refresh();
        assert!(!changes.has_changed());
        tokio::time::advance(DEAD_AFTER).await;
        detector.refresh();
        assert!(changes.has_changed());
        assert_eq!(detector.liveness(&a), Liveness::Dead);
    }

    #[test]
    fn a_stranger_is_dead_and_does_not_vote() {
        let detector = FailureDetector::new([]);
        let stranger = node("b:1");
        detector.note_alive(&stranger);
        detector.on_facts(&stranger, facts(true));
        assert_eq!(detector.liveness(&stranger), Liveness::Dead);
        assert!(!detector.is_voting(&stranger));
    }
}
