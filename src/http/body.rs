//! Bodies: how a request's is read within bounds, and what an answer's may be.
//!
//! ```text
//! Content-Length over the limit ─────────────────────────> 413, nothing read
//! frames ──count──> over the limit? 413 · budget spent? 503 · slower than the least rate? 408
//!        └────────> one frame: its bytes as they came; more: gathered in one buffer
//! ```
//!
//! The budget is charged with what is kept in memory, as it grows, and not with what was announced: a peer that announces
//! much and sends nothing holds nothing.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body as _, Frame, Incoming, SizeHint};
use tokio::time::{Instant, timeout_at};

use super::status::Fault;
use crate::util::request_id::RequestId;

/// Bytes that bodies and values in flight may take together (`MAX_INFLIGHT_BYTES`). A clone is the same budget.
#[derive(Debug, Clone)]
pub struct Budget {
    shared: Arc<BudgetShared>,
}

#[derive(Debug)]
struct BudgetShared {
    bytes_max: usize,
    /// Relaxed: a sum that publishes nothing else.
    taken: AtomicUsize,
}

/// A part of a [`Budget`], given back when dropped.
#[derive(Debug)]
pub struct Reservation {
    shared: Arc<BudgetShared>,
    bytes: usize,
}

impl Budget {
    /// A budget of `bytes_max`, all of it free.
    pub fn new(bytes_max: usize) -> Self {
        Self { shared: Arc::new(BudgetShared { bytes_max, taken: AtomicUsize::new(0) }) }
    }

    /// Bytes taken.
    pub fn taken(&self) -> usize {
        self.shared.taken.load(Ordering::Relaxed)
    }

    /// A reservation of nothing, to be grown.
    pub fn reserve_none(&self) -> Reservation {
        Reservation { shared: self.shared.clone(), bytes: 0 }
    }
}

impl Reservation {
    /// Takes `more` bytes, or says that the budget is spent.
    pub fn grow(&mut self, more: usize) -> Result<(), Fault> {
        let before = self.shared.taken.fetch_add(more, Ordering::Relaxed);
        self.bytes += more; // given back on drop in either case
        if before.saturating_add(more) > self.shared.bytes_max {
            return Err(Fault::Overloaded);
        }
        Ok(())
    }
}

/// Bytes on their way out, and what they take of the budget.
struct Reserved {
    bytes: Bytes,
    _reservation: Reservation,
}

impl AsRef<[u8]> for Reserved {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Reservation {
    /// Holds the reservation for as long as anybody holds the bytes: the connection does until they are written.
    pub fn hold(self, bytes: Bytes) -> Bytes {
        Bytes::from_owner(Reserved { bytes, _reservation: self })
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.shared.taken.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// How a request's body may come.
#[derive(Debug, Clone, Copy)]
pub struct BodyLimits {
    /// `MAX_BODY_SIZE`, bytes.
    pub size_max: usize,
    /// How long a body may take before its rate counts.
    pub grace: Duration,
    /// Bytes a second that a body must bring on average once the grace is over.
    pub rate_min: usize,
}

/// A request's body, whole, and what it takes of the budget for as long as it is held.
#[derive(Debug)]
pub struct WholeBody {
    /// The bytes; keys and values are slices of them.
    pub bytes: Bytes,
    /// Given back when the request has been answered.
    pub reservation: Reservation,
}

/// Reads a request's body.
///
/// # Errors
/// [`Fault::BodyTooLarge`], [`Fault::Overloaded`], [`Fault::TooSlow`], or [`Fault::BadRequest`] when it breaks off.
pub async fn read(mut body: Incoming, limits: BodyLimits, budget: &Budget) -> Result<WholeBody, Fault> {
    let announced = body.size_hint().exact().map(|len| usize::try_from(len).unwrap_or(usize::MAX));
    if announced.is_some_and(|len| len > limits.size_max) {
        return Err(Fault::BodyTooLarge { limit: limits.size_max });
    }
    let started = Instant::now();
    let mut gathered = Gathered::new(announced.unwrap_or(limits.size_max), budget);
    loop {
        let received = gathered.len();
        let patience = limits.grace + Duration::from_secs((received / limits.rate_min.max(1)) as u64);
        let Some(frame) = timeout_at(started + patience, body.frame()).await.map_err(|_| Fault::TooSlow)?
        else {
            return Ok(gathered.whole());
        };
        let frame = frame.map_err(|broken| Fault::BadRequest(format!("body broke off: {broken}")))?;
        let Ok(data) = frame.into_data() else { continue }; // trailers say nothing to us
        if received + data.len() > limits.size_max {
            return Err(Fault::BodyTooLarge { limit: limits.size_max });
        }
        gathered.push(data)?;
    }
}

/// What has come of a body: one frame as it is, more in one buffer.
struct Gathered {
    first: Bytes,
    rest: Vec<u8>,
    /// The body will not be longer.
    len_max: usize,
    /// What the buffer takes, filled or not.
    reservation: Reservation,
}

impl Gathered {
    fn new(len_max: usize, budget: &Budget) -> Self {
        Self { first: Bytes::new(), rest: Vec::new(), len_max, reservation: budget.reserve_none() }
    }

    fn len(&self) -> usize {
        if self.rest.is_empty() { self.first.len() } else { self.rest.len() }
    }

    fn push(&mut self, data: Bytes) -> Result<(), Fault> {
        if self.len() == 0 {
            self.reservation.grow(data.len())?;
            self.first = data;
            return Ok(());
        }
        self.make_room(self.len() + data.len())?;
        if self.rest.is_empty() {
            self.rest.extend_from_slice(&std::mem::take(&mut self.first));
        }
        self.rest.extend_from_slice(&data);
        Ok(())
    }

    /// Grows by halves from what is here: what was announced need not come.
    fn make_room(&mut self, len: usize) -> Result<(), Fault> {
        let capacity = self.rest.capacity();
        if len <= capacity {
            return Ok(());
        }
        let wanted = (capacity + capacity / 2).min(self.len_max).max(len);
        self.reservation.grow(wanted - capacity.max(self.first.len()))?;
        self.rest.reserve_exact(wanted - self.rest.len());
        Ok(())
    }

    fn whole(self) -> WholeBody {
        let bytes = if self.rest.is_empty() { self.first } else { Bytes::from(self.rest) };
        WholeBody { bytes, reservation: self.reservation }
    }
}

/// Why an answer's body ends before it is complete: the connection is cut, so that the peer notices.
#[derive(Debug, thiserror::Error)]
#[error("the answer was cut short: {0}")]
pub struct CutShort(pub String);

/// A body that is made piece by piece.
pub type Pieces = Pin<Box<dyn hyper::body::Body<Data = Bytes, Error = CutShort> + Send>>;

/// An answer's body.
pub enum Body {
    /// All of it at once; `None` when it was taken.
    Whole(Option<Bytes>),
    /// Made piece by piece.
    Streamed(Pieces),
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Whole(bytes) => write!(f, "Whole({} bytes)", bytes.as_ref().map_or(0, Bytes::len)),
            Self::Streamed(_) => f.write_str("Streamed"),
        }
    }
}

impl Body {
    /// A body of these bytes.
    pub fn whole(bytes: impl Into<Bytes>) -> Self {
        Self::Whole(Some(bytes.into()))
    }

    /// The same, whose log lines are about this request: a streamed one is made after its request was answered.
    #[must_use]
    pub fn of_request(self, id: RequestId) -> Self {
        match self {
            Self::Streamed(pieces) => Self::Streamed(Box::pin(OfRequest { id, pieces })),
            whole @ Self::Whole(_) => whole,
        }
    }

    /// A body without bytes.
    pub fn empty() -> Self {
        Self::Whole(None)
    }
}

/// A streamed body and the request it answers.
struct OfRequest {
    id: RequestId,
    pieces: Pieces,
}

impl hyper::body::Body for OfRequest {
    type Data = Bytes;
    type Error = CutShort;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, CutShort>>> {
        let this = self.get_mut();
        this.id.clone().sync_scope(|| this.pieces.as_mut().poll_frame(cx))
    }

    fn is_end_stream(&self) -> bool {
        self.pieces.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.pieces.size_hint()
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = CutShort;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, CutShort>>> {
        match self.get_mut() {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Streamed(pieces) => pieces.as_mut().poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.as_ref().is_none_or(Bytes::is_empty),
            Self::Streamed(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Streamed(_) => SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn frames_make_up_the_body_and_the_budget_is_charged_with_what_they_take(
            frames in proptest::collection::vec(0usize..3000, 0..40),
            is_announced: bool,
        ) {
            let sent: Vec<u8> = (0..frames.iter().sum::<usize>()).map(|n| (n % 251) as u8).collect();
            let budget = Budget::new(1 << 20);
            let len_max = if is_announced { sent.len() } else { 1 << 20 };
            let mut gathered = Gathered::new(len_max, &budget);
            let mut at = 0;
            for len in frames {
                gathered.push(Bytes::copy_from_slice(&sent[at..at + len])).unwrap();
                at += len;
                prop_assert_eq!(gathered.len(), at);
                let kept = gathered.rest.capacity() + gathered.first.len();
                prop_assert_eq!(budget.taken(), kept);
                prop_assert!(kept <= len_max.min(at + at / 2).max(at));
            }
            let body = gathered.whole();
            prop_assert_eq!(&body.bytes[..], &sent[..]);
            drop(body);
            prop_assert_eq!(budget.taken(), 0);
        }
    }

    #[test]
    fn a_body_that_the_budget_has_no_room_for_is_given_back_whole() {
        let budget = Budget::new(10_000);
        let mut gathered = Gathered::new(1 << 20, &budget);
        let refused = (0..).find_map(|_| gathered.push(Bytes::from_static(&[0; 1000])).err());
        assert!(matches!(refused, Some(Fault::Overloaded)));
        assert!(gathered.len() >= 6000, "{}", gathered.len());
        drop(gathered);
        assert_eq!(budget.taken(), 0);
    }
}
