//! Outbox: frames waiting for the one writer of a connection, which sends them in one write.
//!
//! Whoever has a frame encodes it at the end of the shared buffer. The writer is woken only when the buffer was
//! empty, and yields once before it takes the buffer whole: all that the runtime's turn has to send goes
//! out in one system call. Frames written one by one cost half of all throughput (`docs/design.md`, cost of a
//! request).

use std::io;
use std::time::Duration;

use bytes::BytesMut;
use parking_lot::Mutex;
use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::rpc::frame::{Frame, TooLarge, deadline_ms};

/// A buffer that grew beyond this for once is given back, in bytes.
const BUFFER_KEPT_MAX: usize = 1 << 20;
/// A frame that waited longer is looked at again before it is sent: whether there is time left, and how much.
const STALE_AFTER: Duration = Duration::from_millis(20);

/// Why a frame was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rejected {
    /// The connection is gone.
    Closed,
    /// Too many bytes are waiting.
    Full,
    /// It would be larger than any frame may be.
    TooLarge(TooLarge),
}

/// Frames on their way out.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    queue: Mutex<Queue>,
    /// The queue is no longer empty, or was closed.
    filled: Notify,
    /// The writer took what there was.
    drained: Notify,
}

#[derive(Debug, Default)]
struct Queue {
    bytes: BytesMut,
    /// The frames in `bytes` from the front on, where they have a deadline (requests have, answers have not).
    deadlines: Vec<Deadline>,
    state: State,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Open,
    /// What is queued is still sent.
    Finishing,
    Closed,
}

#[derive(Debug, Clone, Copy)]
struct Deadline {
    len: usize,
    queued: Instant,
    timeout: Duration,
}

impl Outbox {
    /// Queues a frame that `encode` appends. Beyond `bytes_max` nothing is taken, but into an empty queue.
    ///
    /// `patience`: when it was made and how long its sender waits for an answer; it is not sent later than that.
    pub fn push(
        &self,
        patience: Option<(Instant, Duration)>,
        bytes_max: usize,
        encode: impl FnOnce(&mut BytesMut) -> Result<(), TooLarge>,
    ) -> Result<(), Rejected> {
        let was_empty = {
            let mut queue = self.queue.lock();
            if queue.state == State::Closed {
                return Err(Rejected::Closed);
            }
            let before = queue.bytes.len();
            if before > bytes_max {
                return Err(Rejected::Full);
            }
            encode(&mut queue.bytes).map_err(Rejected::TooLarge)?;
            let len = queue.bytes.len() - before;
            if let Some((queued, timeout)) = patience {
                queue.deadlines.push(Deadline { len, queued, timeout });
            }
            before == 0
        };
        if was_empty {
            self.filled.notify_one();
        }
        Ok(())
    }

    /// Takes nothing more, and sends nothing more.
    pub fn close(&self) {
        let mut queue = self.queue.lock();
        queue.state = State::Closed;
        queue.bytes = BytesMut::new();
        queue.deadlines = Vec::new();
        drop(queue);
        self.filled.notify_one();
        self.drained.notify_waiters();
    }

    /// Ends [`Outbox::write_to`] once all that is queued is sent.
    pub fn finish(&self) {
        let mut queue = self.queue.lock();
        if queue.state == State::Open {
            queue.state = State::Finishing;
        }
        drop(queue);
        self.filled.notify_one();
    }

    /// Waits while more than `bytes_max` are queued.
    pub async fn below(&self, bytes_max: usize) {
        loop {
            let drained = self.drained.notified();
            if self.queue.lock().bytes.len() <= bytes_max {
                return;
            }
            drained.await;
        }
    }

    /// Sends what is queued, and what will be, until closed. Returns how many frames were too late to be sent.
    pub async fn write_to(&self, io: &mut (impl AsyncWrite + Unpin)) -> io::Result<u64> {
        let mut batch = BytesMut::new();
        let mut expired = 0;
        loop {
            self.filled.notified().await;
            // Let the rest of this turn's tasks add to the batch.
            tokio::task::yield_now().await;
            loop {
                match self.take(&mut batch, &mut expired) {
                    Taken::Batch => {}
                    Taken::Nothing => break,
                    Taken::End => return Ok(expired),
                }
                self.drained.notify_waiters();
                io.write_all(&batch).await?;
                io.flush().await?;
                batch.clear();
                if batch.capacity() > BUFFER_KEPT_MAX {
                    batch = BytesMut::new();
                }
            }
        }
    }

    /// Swaps the queue for the empty `batch`.
    fn take(&self, batch: &mut BytesMut, expired: &mut u64) -> Taken {
        let mut queue = self.queue.lock();
        if queue.bytes.is_empty() {
            return if queue.state == State::Open { Taken::Nothing } else { Taken::End };
        }
        std::mem::swap(batch, &mut queue.bytes);
        let now = Instant::now();
        if queue.deadlines.first().is_some_and(|oldest| now.duration_since(oldest.queued) >= STALE_AFTER) {
            let (kept, dropped) = without_expired(batch, &queue.deadlines, now);
            *batch = kept;
            *expired += dropped;
        }
        queue.deadlines.clear();
        Taken::Batch
    }
}

#[derive(Debug)]
enum Taken {
    Batch,
    Nothing,
    End,
}

/// The frames whose senders still wait, each saying how much time is left now; and how many were dropped.
fn without_expired(batch: &mut BytesMut, deadlines: &[Deadline], now: Instant) -> (BytesMut, u64) {
    let mut kept = BytesMut::with_capacity(batch.len());
    let mut dropped = 0;
    for deadline in deadlines {
        let mut frame = batch.split_to(deadline.len);
        let left = deadline.timeout.saturating_sub(now.duration_since(deadline.queued));
        if left.is_zero() {
            dropped += 1;
        } else {
            Frame::set_deadline(&mut frame, deadline_ms(left));
            kept.extend_from_slice(&frame);
        }
    }
    (kept, dropped)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::frame::{FRAME_LEN_MAX, Kind};
    use crate::types::Timestamp;
    use std::pin::Pin;
    use std::sync::Arc;
    use std::task::{Context, Poll};

    /// Takes every write whole and counts them.
    #[derive(Default)]
    struct Wire {
        writes: Arc<Mutex<Vec<Vec<u8>>>>,
    }

    impl AsyncWrite for Wire {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            self.writes.lock().push(bytes.to_vec());
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn push(outbox: &Outbox, id: u64, timeout: Duration) -> Result<(), Rejected> {
        outbox.push(Some((Instant::now(), timeout)), 1000, |out| {
            Frame::encode(id, Kind::Read, deadline_ms(timeout), Timestamp::ZERO, out, |_| {})
        })
    }

    fn frames(bytes: &[u8]) -> Vec<Frame> {
        let mut bytes = BytesMut::from(bytes);
        std::iter::from_fn(|| Frame::take(&mut bytes, FRAME_LEN_MAX).unwrap()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn what_one_turn_queues_goes_out_in_one_write() {
        let outbox = Arc::new(Outbox::default());
        let mut wire = Wire::default();
        let writes = wire.writes.clone();
        let writer = outbox.clone();
        let writer = crate::env::Tasks::default().spawn(async move { writer.write_to(&mut wire).await });
        tokio::task::yield_now().await;
        let tasks = crate::env::Tasks::default();
        for id in 0..20 {
            let outbox = outbox.clone();
            tasks.spawn(async move { push(&outbox, id, Duration::from_secs(1)) });
        }
        tasks.wait(Duration::from_secs(1)).await;
        outbox.finish();
        assert_eq!(writer.await.unwrap().unwrap(), 0);
        let writes = writes.lock();
        assert_eq!(writes.len(), 1);
        assert_eq!(frames(&writes[0]).len(), 20);
    }

    #[tokio::test(start_paused = true)]
    async fn a_frame_that_waited_too_long_is_not_sent_and_the_others_say_what_time_is_left() {
        let outbox = Outbox::default();
        push(&outbox, 1, Duration::from_millis(50)).unwrap();
        push(&outbox, 2, Duration::from_millis(500)).unwrap();
        tokio::time::advance(Duration::from_millis(100)).await;
        outbox.finish();
        let mut wire = Wire::default();
        assert_eq!(outbox.write_to(&mut wire).await.unwrap(), 1);
        let sent = frames(&wire.writes.lock().concat());
        assert_eq!(sent.len(), 1);
        assert_eq!((sent[0].request_id, sent[0].deadline_ms), (2, 400));
    }

    #[test]
    fn a_full_queue_takes_nothing_more_and_a_closed_one_nothing_at_all() {
        let outbox = Outbox::default();
        let big = |out: &mut BytesMut| {
            Frame::encode(1, Kind::Read, 0, Timestamp::ZERO, out, |out| out.resize(out.len() + 2000, 0))
        };
        outbox.push(None, 1000, big).unwrap();
        assert_eq!(outbox.push(None, 1000, big), Err(Rejected::Full));
        outbox.close();
        assert_eq!(outbox.push(None, 1000, big), Err(Rejected::Closed));
    }
}
