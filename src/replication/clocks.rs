//! Clocks: whose clock is believed, how far.
//!
//! ```text
//! pong ──a peer's wall clock──> detector ──readings of the peers that live──> Span (pure) ──> Hlc: how far our own clock counts
//! message's clock ── explained by the majority's time, or reached already? ── yes ──> followed
//!                    no: is the sender's own clock in bounds? ── yes ──> followed: the ring is ahead for good reason
//!                                                             └─ no, or not known ──> refused, counted, logged
//! write of a client ── our clock ahead of a majority's? ── yes ──> 503 before it has a timestamp: nothing is stored anywhere
//! ```
//!
//! A node refuses *itself* at its own door; that is what keeps a wrong clock out of the records. That peers refuse it,
//! too, is the second line, for one that does not know better: what it stamps is not followed while its clock is ahead
//! by more than twice `MAX_CLOCK_SKEW`. Twice, so that nobody refuses what a peer that sees the same clocks a little
//! differently has let pass.
//!
//! Nothing here decides what is durable or what wins: promises hold whatever clocks do. Clocks decide who takes writes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::shared::{Counters, count};
use crate::gossip::FailureDetector;
use crate::hlc::majority::{Reading, Span, Verdict};
use crate::hlc::{Hlc, TooFarAhead};
use crate::types::{NodeId, Timestamp};

/// How long it is remembered that a member's clock was out of bounds.
const REMEMBERED_FOR: Duration = Duration::from_secs(3600);

/// Whose clock is believed, how far. A clone is the same.
#[derive(Debug, Clone)]
pub struct Clocks {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    hlc: Arc<Hlc>,
    detector: FailureDetector,
    counters: Arc<Counters>,
    /// All of them, this node too.
    members: usize,
    /// What was logged last of this node's clock.
    told: Mutex<Told>,
    /// Whether it was logged that the ring is ahead of its wall clocks.
    told_ahead: AtomicBool,
    /// Members whose clocks were out of bounds: by how many milliseconds, and when last.
    off: Mutex<BTreeMap<NodeId, (i64, Instant)>>,
}

/// What a log line says of this node's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    InBounds,
    Ahead,
    Behind,
}

impl Clocks {
    /// For the clock of a node among so many members.
    pub fn new(hlc: Arc<Hlc>, detector: FailureDetector, counters: Arc<Counters>, members: usize) -> Self {
        let inner = Inner {
            hlc,
            detector,
            counters,
            members,
            told: Mutex::new(Told::InBounds),
            told_ahead: AtomicBool::new(false),
            off: Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// The clock itself.
    pub fn hlc(&self) -> &Arc<Hlc> {
        &self.inner.hlc
    }

    /// Where this node's wall clock stands to a majority's.
    pub fn verdict(&self) -> Verdict {
        self.inner.hlc.verdict()
    }

    /// A peer answered a ping: the detector has a newer reading of its clock.
    pub fn on_pong(&self, peer: &NodeId) {
        let inner = &*self.inner;
        let readings = inner.detector.clock_readings();
        if let Some(span) = Span::of(&readings, inner.members) {
            inner.hlc.set_bounds(span);
        }
        self.note_off(peer);
        self.tell();
    }

    /// Moves past the clock that a message of `peer` carried, or a timestamp in it.
    ///
    /// # Errors
    /// [`TooFarAhead`]: the clock stays where it was, and nothing that is stamped so is to be stored.
    pub fn hear(&self, peer: &NodeId, clock: Timestamp) -> Result<(), TooFarAhead> {
        let inner = &*self.inner;
        let Err(too_far) = inner.hlc.observe(clock) else { return Ok(()) };
        if self.is_in_bounds(peer) {
            inner.hlc.follow(clock);
            return Ok(());
        }
        count(&inner.counters.timestamps_refused, 1);
        tracing::warn!(%peer, error = %too_far, "a peer's timestamp was refused: its clock is ahead, or not known yet");
        Err(too_far)
    }

    /// Whether a peer's wall clock is known and not so far ahead of the majority's that its timestamps are refused.
    fn is_in_bounds(&self, peer: &NodeId) -> bool {
        let inner = &*self.inner;
        let allowed = inner.hlc.majority_time().plus(2 * inner.hlc.skew_max());
        let reading = inner.detector.clock_reading(peer);
        reading.is_some_and(|reading| Timestamp::from_micros(reading.earliest) <= allowed)
    }

    /// How far the ring's time is ahead of the wall clocks, where that is more than restarts and skew explain.
    pub fn ring_ahead(&self) -> Option<Duration> {
        let hlc = &self.inner.hlc;
        (self.verdict() != Verdict::Unchecked && hlc.runs_ahead()).then(|| hlc.lead())
    }

    /// By how many milliseconds a member's clock was last seen out of bounds within the last hour, and how long ago.
    pub fn was_off(&self, node: &NodeId) -> Option<(i64, Duration)> {
        let (millis, at) = *self.inner.off.lock().get(node)?;
        let ago = at.elapsed();
        (ago <= REMEMBERED_FOR).then_some((millis, ago))
    }

    fn note_off(&self, peer: &NodeId) {
        let inner = &*self.inner;
        if self.verdict() == Verdict::Unchecked {
            return;
        }
        let Some(Reading { earliest, latest }) = inner.detector.clock_reading(peer) else { return };
        let time = inner.hlc.majority_time().micros();
        let skew_max = inner.hlc.skew_max().as_micros() as u64;
        let millis = if earliest > time + skew_max {
            ((earliest - time) / 1000).cast_signed()
        } else if latest + skew_max < time {
            -((time - latest) / 1000).cast_signed()
        } else {
            return;
        };
        inner.off.lock().insert(peer.clone(), (millis, Instant::now()));
    }

    /// Logs what has changed.
    fn tell(&self) {
        let inner = &*self.inner;
        let (now, by) = match self.verdict() {
            Verdict::Unchecked => return,
            Verdict::InBounds => (Told::InBounds, Duration::ZERO),
            Verdict::Ahead(by) => (Told::Ahead, by),
            Verdict::Behind(by) => (Told::Behind, by),
        };
        let seconds = by.as_secs_f64();
        if std::mem::replace(&mut *inner.told.lock(), now) != now {
            match now {
                Told::InBounds => {
                    tracing::info!("this node's clock is within MAX_CLOCK_SKEW of a majority's again");
                }
                Told::Ahead => tracing::warn!(
                    seconds,
                    "this node's clock is ahead of a majority's: it takes no writes until the clock is put right"
                ),
                Told::Behind => {
                    tracing::warn!(seconds, "this node's clock is behind a majority's: it follows theirs");
                }
            }
        }
        self.tell_ahead();
    }

    /// Logs that the ring's time is ahead of the wall clocks, or no longer is.
    pub fn tell_ahead(&self) {
        let ahead = self.ring_ahead();
        if self.inner.told_ahead.swap(ahead.is_some(), Ordering::Relaxed) == ahead.is_some() {
            return;
        }
        if let Some(ahead) = ahead {
            tracing::warn!(
                seconds = ahead.as_secs_f64(),
                "timestamps given before are ahead of the wall clocks, which were ahead once: the clock goes on from there"
            );
        } else {
            tracing::info!("the wall clocks have caught up with the timestamps given before");
        }
    }
}
