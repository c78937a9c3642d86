//! `PingLoop`: asks every peer five times a second whether it is there, and hands its answers to the detector.
//!
//! Who is not believed alive is asked twenty times a second: a ring that starts, or a peer that comes back, should not
//! refuse requests for the rest of a turn. A call to a peer without a connection costs nothing.
//!
//! A ping carries this node's [`Facts`] for that peer, its answer carries the peer's. The loop knows neither where
//! facts come from nor what else they are good for: its node says so by [`Pings`].

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::time::{Instant, Interval, MissedTickBehavior};

use super::detector::{DEAD_AFTER, FailureDetector, Liveness};
use crate::rpc::{Error, Facts, ReplicaRequest, ReplicaResponse, Request, Transport};
use crate::types::{NodeId, Timestamp};
use crate::util::shutdown::ShutdownListener;

/// Between two pings of a peer.
pub const PING_INTERVAL: Duration = Duration::from_millis(200);
/// Between two pings of a peer that is not believed alive.
pub const ABSENT_PING_INTERVAL: Duration = Duration::from_millis(50);
/// How long an answer is waited for: as long as silence is borne. So at most 20 pings of a peer are in flight.
pub const PING_TIMEOUT: Duration = DEAD_AFTER;

/// What the ping loop asks of its node.
pub trait Pings: Send + Sync + fmt::Debug {
    /// The node's clock, which every message carries.
    fn clock(&self) -> Timestamp;

    /// What the node tells `peer` about itself now.
    fn facts_for(&self, peer: &NodeId) -> Facts;

    /// A peer answered: its clock and what it says about itself. The detector knows the facts already.
    fn on_pong(&self, peer: &NodeId, clock: Timestamp, facts: &Facts);
}

/// The loop that pings; [`PingLoop::run`] is a task of the node.
#[derive(Debug)]
pub struct PingLoop {
    detector: FailureDetector,
    transport: Arc<dyn Transport>,
    node: Arc<dyn Pings>,
}

impl PingLoop {
    /// Pings the peers of `detector` over `transport`.
    pub fn new(detector: FailureDetector, transport: Arc<dyn Transport>, node: Arc<dyn Pings>) -> Self {
        Self { detector, transport, node }
    }

    /// Pings until told to stop.
    pub async fn run(self, mut shutdown: ShutdownListener) {
        let peers = self.detector.peers();
        let mut turns = interval(PING_INTERVAL);
        let mut short_turns = interval(ABSENT_PING_INTERVAL);
        short_turns.reset(); // the first turn asks everybody
        let mut in_flight = FuturesUnordered::new();
        loop {
            tokio::select! { biased;
                () = shutdown.signalled() => return,
                Some(()) = in_flight.next(), if !in_flight.is_empty() => {}
                cues = self.detector.cues() => in_flight.extend(cues.iter().map(|peer| self.ping(peer))),
                _ = turns.tick() => {
                    self.detector.refresh();
                    in_flight.extend(peers.iter().map(|peer| self.ping(peer)));
                }
                _ = short_turns.tick() => {
                    let absent = peers.iter().filter(|peer| self.detector.liveness(peer) != Liveness::Alive);
                    in_flight.extend(absent.map(|peer| self.ping(peer)));
                }
            }
        }
    }

    /// Sends a ping at once; the future waits for its answer.
    fn ping(&self, peer: &NodeId) -> impl Future<Output = ()> + use<> {
        let facts = self.node.facts_for(peer);
        let our_wall = facts.wall;
        let request = Request { clock: self.node.clock(), body: ReplicaRequest::Ping(facts) };
        let sent = Instant::now();
        let answer = self.transport.call(peer, request, PING_TIMEOUT);
        let (detector, node, peer) = (self.detector.clone(), self.node.clone(), peer.clone());
        async move {
            let response = match answer.await {
                Ok(response) => response,
                Err(Error::Unreachable(_)) => return detector.on_failure(&peer),
                Err(Error::Overloaded | Error::TimedOut | Error::Disconnected(_)) => return,
            };
            detector.note_alive(&peer);
            if let ReplicaResponse::Pong(facts) = response.body {
                detector.on_clock(&peer, our_wall.micros(), facts.wall.micros(), sent);
                detector.on_facts(&peer, facts.clone());
                node.on_pong(&peer, response.clock, &facts);
            }
        }
    }
}

/// After a pause one tick will do.
fn interval(period: Duration) -> Interval {
    let mut ticks = tokio::time::interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

#[cfg(test)]
pub(super) mod tests {
    use parking_lot::Mutex;

    use super::*;
    use crate::gossip::ClockOffset;
    use crate::rpc::{BoxFuture, Response};
    use crate::util::shutdown::Shutdown;

    pub(crate) fn facts(voting: bool) -> Facts {
        Facts {
            uuid: 1,
            run: 1,
            explained: Timestamp::ZERO,
            mark: Timestamp::ZERO,
            voting,
            has_voted: voting,
            wall: Timestamp::from_micros(5_000_000),
            remembered: None,
            hints_waiting: 0,
            founded_with: false,
        }
    }

    /// What the only peer does with calls.
    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Mood {
        Answers,
        Silent,
        Gone,
    }

    #[derive(Debug)]
    struct OnePeer {
        mood: Mutex<Mood>,
        calls: Mutex<u32>,
    }

    impl Transport for OnePeer {
        fn call(&self, _: &NodeId, _: Request, timeout: Duration) -> BoxFuture<Result<Response, Error>> {
            *self.calls.lock() += 1;
            let mood = *self.mood.lock();
            Box::pin(async move {
                match mood {
                    Mood::Gone => Err(Error::Unreachable("refused".to_owned())),
                    Mood::Silent => {
                        tokio::time::sleep(timeout).await;
                        Err(Error::TimedOut)
                    }
                    Mood::Answers => {
                        tokio::time::sleep(Duration::from_millis(2)).await;
                        let mut facts = facts(true);
                        facts.wall = Timestamp::from_micros(5_701_000);
                        Ok(Response { clock: Timestamp::from_u64(9), body: ReplicaResponse::Pong(facts) })
                    }
                }
            })
        }
    }

    #[derive(Debug, Default)]
    struct OwnNode {
        pongs: Mutex<Vec<Timestamp>>,
    }

    impl Pings for OwnNode {
        fn clock(&self) -> Timestamp {
            Timestamp::from_u64(8)
        }

        fn facts_for(&self, _: &NodeId) -> Facts {
            facts(false)
        }

        fn on_pong(&self, _: &NodeId, clock: Timestamp, _: &Facts) {
            self.pongs.lock().push(clock);
        }
    }

    struct Setting {
        peer: NodeId,
        network: Arc<OnePeer>,
        node: Arc<OwnNode>,
        detector: FailureDetector,
        /// Dropping it stops the loop.
        _shutdown: Shutdown,
    }

    fn start(mood: Mood) -> Setting {
        let peer = NodeId::from_canonical("b:1");
        let network = Arc::new(OnePeer { mood: Mutex::new(mood), calls: Mutex::new(0) });
        let node = Arc::new(OwnNode::default());
        let detector = FailureDetector::new([peer.clone()]);
        let shutdown = Shutdown::default();
        let pings = PingLoop::new(detector.clone(), network.clone(), node.clone());
        crate::env::Tasks::default().spawn(pings.run(shutdown.listener()));
        Setting { peer, network, node, detector, _shutdown: shutdown }
    }

    async fn after(ms: u64) {
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_answers_is_alive_and_its_facts_and_clock_are_known() {
        let setting = start(Mood::Answers);
        after(1001).await;
        assert_eq!(setting.detector.liveness(&setting.peer), Liveness::Alive);
        assert!(setting.detector.is_voting(&setting.peer));
        assert_eq!(*setting.network.calls.lock(), 6);
        assert_eq!(setting.node.pongs.lock()[0], Timestamp::from_u64(9));
        let offset = setting.detector.clock_offset(&setting.peer).unwrap();
        assert_eq!(offset, ClockOffset { micros: 700_000, uncertainty_micros: 1000 });
    }

    #[tokio::test(start_paused = true)]
    async fn news_is_told_out_of_turn() {
        let setting = start(Mood::Answers);
        after(210).await;
        let calls = *setting.network.calls.lock();
        setting.detector.announce();
        after(1).await;
        assert_eq!(*setting.network.calls.lock(), calls + 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_falls_silent_is_dead_after_a_second_and_alive_with_its_next_answer() {
        let setting = start(Mood::Answers);
        after(1001).await; // its last answer comes a millisecond from now
        after(10).await;
        *setting.network.mood.lock() = Mood::Silent;
        after(985).await;
        assert_eq!(setting.detector.liveness(&setting.peer), Liveness::Suspect);
        after(10).await;
        assert_eq!(setting.detector.liveness(&setting.peer), Liveness::Dead);
        *setting.network.mood.lock() = Mood::Answers;
        after(210).await;
        assert_eq!(setting.detector.liveness(&setting.peer), Liveness::Alive);
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_is_gone_is_dead_with_the_second_ping() {
        let setting = start(Mood::Answers);
        after(310).await;
        *setting.network.mood.lock() = Mood::Gone;
        after(100).await;
        assert_eq!(setting.detector.liveness(&setting.peer), Liveness::Suspect);
        after(200).await;
        assert_eq!(setting.detector.liveness(&setting.peer), Liveness::Dead);
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_comes_back_without_a_word_is_noticed_within_a_quarter_of_a_turn() {
        let setting = start(Mood::Gone);
        after(1010).await;
        *setting.network.mood.lock() = Mood::Answers;
        after(55).await;
        assert_eq!(setting.detector.liveness(&setting.peer), Liveness::Alive);
    }

    #[tokio::test(start_paused = true)]
    async fn a_dead_peer_that_pings_us_is_pinged_back_at_once() {
        let setting = start(Mood::Gone);
        after(1010).await;
        assert_eq!(setting.detector.liveness(&setting.peer), Liveness::Dead);
        *setting.network.mood.lock() = Mood::Answers;
        setting.detector.on_facts(&setting.peer, facts(true));
        after(5).await;
        assert_eq!(setting.detector.liveness(&setting.peer), Liveness::Alive);
    }
}
