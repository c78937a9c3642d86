//! Peers: the transport, with the clock on every message and an eye on who answers, and how fast.
//!
//! Every request carries this node's hybrid logical clock and moves it past the answer's. An answer whose
//! clock is not believed ([`Clocks::hear`]) counts as none: what it carries may be stamped by that clock. How long reads take is
//! kept per peer as a moving average, so that the fastest is asked first and a slow one is noticed.

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
    /// Moving average of a read's time, microseconds; 0 before the first. Relaxed: a hint for choosing.
    latencies: BTreeMap<NodeId, AtomicU64>,
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
    /// A new average keeps this many parts of eight of the old one.
    const LATENCY_KEEPS: u64 = 7;

    /// Speaks to `members` (all but this node) over `transport`.
    pub fn new<'a>(
        transport: Arc<dyn Transport>,
        hlc: Arc<Hlc>,
        detector: FailureDetector,
        members: impl IntoIterator<Item = &'a NodeId>,
    ) -> Self {
        let latencies: BTreeMap<_, _> =
            members.into_iter().map(|node| (node.clone(), AtomicU64::new(0))).collect();
        let counters = Arc::<Counters>::default();
        let clocks = Clocks::new(hlc, detector.clone(), counters.clone(), latencies.len() + 1);
        Self { inner: Arc::new(Inner { transport, clocks, detector, counters, latencies }) }
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
        if let Some(average) = self.inner.latencies.get(to) {
            let micros = started.elapsed().as_micros() as u64;
            let old = average.load(Ordering::Relaxed);
            let new = if old == 0 { micros } else { (old * Self::LATENCY_KEEPS + micros) / 8 };
            average.store(new.max(1), Ordering::Relaxed);
        }
        answer
    }

    /// Why a peer that answers counts as unreachable (another ring, another secret), if it does.
    pub fn mismatch(&self, node: &NodeId) -> Option<String> {
        self.inner.transport.mismatch(node)
    }

    /// How long a read of this peer takes, going by the last ones; zero before the first.
    pub fn latency(&self, node: &NodeId) -> Duration {
        Duration::from_micros(
            self.inner.latencies.get(node).map_or(0, |average| average.load(Ordering::Relaxed)),
        )
    }
}
