//! Peers: the transport, with the clock on every message and an eye on who answers, and how fast.
//!
//! Every request carries this node's hybrid logical clock and moves it past the answer's. An answer whose
//! clock is not believed ([`Clocks::hear`]) counts as none: what it carries may be stamped by that clock. How long reads take is
//! kept per peer as a moving average, so that the fastest is asked first and a slow one is noticed. A failure counts as a
//! slow read, however quickly it came; and the average fades while no read refreshes it, so that a peer that was slow for a
//! moment is tried again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::Clocks;
use super::shared::{Counters, count};
use crate::gossip::FailureDetector;
use crate::hlc::Hlc;
use crate::rpc::{self, Refusal, ReplicaRequest, ReplicaResponse, Request, Transport};
use crate::types::NodeId;

/// The other nodes. A clone is the same.
#[derive(Debug, Clone)]
pub struct Peers {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    transport: Arc<dyn Transport>,
    clocks: Clocks,
    detector: FailureDetector,
    counters: Arc<Counters>,
    /// When this began: latencies are noted at times since then.
    started: Instant,
    latencies: BTreeMap<NodeId, Latency>,
}

/// How long reads of one peer take. Relaxed: a hint for choosing.
#[derive(Debug, Default)]
struct Latency {
    /// Moving average in microseconds; 0 before the first read.
    average_micros: AtomicU64,
    /// When it was last refreshed, in microseconds.
    refreshed_micros: AtomicU64,
}

impl Latency {
    /// A new average keeps this many parts of eight of the old one.
    const KEEPS: u64 = 7;
    /// What a read that failed is taken to have lasted, at least.
    const FAILURE: Duration = Duration::from_millis(100);
    /// The average halves in this time without a read.
    const HALVES_IN: Duration = Duration::from_secs(2);

    fn note(&self, now_micros: u64, took: Duration, failed: bool) {
        let took = if failed { took.max(Self::FAILURE) } else { took };
        let micros = (took.as_micros() as u64).max(1);
        let old = self.at(now_micros);
        let new = if old == 0 { micros } else { (old * Self::KEEPS + micros) / 8 };
        self.average_micros.store(new.max(1), Ordering::Relaxed);
        self.refreshed_micros.store(now_micros, Ordering::Relaxed);
    }

    /// What the average has faded to, in microseconds.
    fn at(&self, now_micros: u64) -> u64 {
        let age = now_micros.saturating_sub(self.refreshed_micros.load(Ordering::Relaxed));
        let halvings = age / Self::HALVES_IN.as_micros() as u64;
        self.average_micros.load(Ordering::Relaxed) >> halvings.min(63)
    }
}

/// Why a replica did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// No answer came.
    #[error("{0}")]
    Rpc(#[from] rpc::Error),
    /// It refused. Nothing was done.
    #[error("{0}")]
    Refused(#[from] Refusal),
    /// Its clock is too far ahead: its answer was not used.
    #[error("its clock is {ahead_ms} ms ahead")]
    ClockAhead {
        /// How far.
        ahead_ms: u64,
    },
    /// It answered something else than was asked.
    #[error("answered something else")]
    Confused,
    /// It answered, but its disk does not count yet.
    #[error("rebuilding")]
    NotVoting,
    /// It is believed to be down and was not asked.
    #[error("down")]
    KnownDown,
}

impl Peers {
    /// Speaks to `members` (all but this node) over `transport`.
    pub fn new<'a>(
        transport: Arc<dyn Transport>,
        hlc: Arc<Hlc>,
        detector: FailureDetector,
        members: impl IntoIterator<Item = &'a NodeId>,
    ) -> Self {
        let latencies: BTreeMap<_, _> =
            members.into_iter().map(|node| (node.clone(), Latency::default())).collect();
        let counters = Arc::<Counters>::default();
        let clocks = Clocks::new(hlc, detector.clone(), counters.clone(), latencies.len() + 1);
        let started = Instant::now();
        Self { inner: Arc::new(Inner { transport, clocks, detector, counters, started, latencies }) }
    }

    /// The counters that this side adds to.
    pub fn counters(&self) -> &Arc<Counters> {
        &self.inner.counters
    }

    /// Whose clock is believed, how far.
    pub fn clocks(&self) -> &Clocks {
        &self.inner.clocks
    }

    /// Asks a peer, waiting at most `timeout`. A refusal is a failure.
    pub async fn call(
        &self,
        to: &NodeId,
        body: ReplicaRequest,
        timeout: Duration,
    ) -> Result<ReplicaResponse, Failure> {
        let inner = &*self.inner;
        let request = Request { clock: inner.clocks.hlc().now(), body };
        match inner.transport.call(to, request, timeout).await {
            Ok(response) => {
                inner.detector.note_alive(to);
                if let Err(too_far) = inner.clocks.hear(to, response.clock) {
                    return Err(Failure::ClockAhead { ahead_ms: too_far.ahead.as_millis() as u64 });
                }
                match response.body {
                    ReplicaResponse::Refused(refusal) => Err(refusal.into()),
                    body => Ok(body),
                }
            }
            Err(error) => {
                count(&inner.counters.peer_failures, 1);
                if matches!(error, rpc::Error::Unreachable(_)) {
                    inner.detector.on_failure(to);
                }
                Err(error.into())
            }
        }
    }

    /// Like [`Peers::call`], and takes the time.
    pub async fn call_timed(
        &self,
        to: &NodeId,
        body: ReplicaRequest,
        timeout: Duration,
    ) -> Result<ReplicaResponse, Failure> {
        let started = Instant::now();
        let answer = self.call(to, body, timeout).await;
        if let Some(latency) = self.inner.latencies.get(to) {
            latency.note(self.inner.now_micros(), started.elapsed(), answer.is_err());
        }
        answer
    }

    /// Why a peer that answers counts as unreachable (another ring, another secret), if it does.
    pub fn mismatch(&self, node: &NodeId) -> Option<String> {
        self.inner.transport.mismatch(node)
    }

    /// How long a read of this peer takes, going by the last ones; zero before the first, and less and less while there is
    /// none.
    pub fn latency(&self, node: &NodeId) -> Duration {
        let inner = &*self.inner;
        Duration::from_micros(inner.latencies.get(node).map_or(0, |latency| latency.at(inner.now_micros())))
    }
}

impl Inner {
    fn now_micros(&self) -> u64 {
        self.started.elapsed().as_micros() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000;

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn a_peer_that_refuses_at_once_does_not_look_fast() {
        let (good, refusing) = (Latency::default(), Latency::default());
        for n in 0..20 {
            good.note(n * 1000, millis(3), false);
            refusing.note(n * 1000, Duration::from_micros(50), true);
        }
        assert!(refusing.at(20_000) > good.at(20_000));
    }

    #[test]
    fn a_peer_that_stalled_once_is_tried_again_before_long() {
        let (steady, stalled) = (Latency::default(), Latency::default());
        stalled.note(0, millis(2000), true);
        steady.note(0, millis(1), false);
        assert!(stalled.at(0) > steady.at(0));
        steady.note(30 * SECOND, millis(1), false);
        assert!(stalled.at(30 * SECOND) < steady.at(30 * SECOND), "its turn has come");
        stalled.note(30 * SECOND, millis(1), false);
        assert!(stalled.at(30 * SECOND) <= 1000 * 2, "and it counts as it is now");
    }
}
