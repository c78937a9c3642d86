//! `Few`: a handful of futures, waited for side by side.
//!
//! Whenever its task is woken all of them are polled, in order. For the three or five replicas of a key that is cheaper than
//! telling which of them woke it, which costs an allocation and a queue entry each (`FuturesUnordered`); for more than a
//! dozen it is not.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;

/// A handful of futures.
#[derive(Debug)]
pub struct Few<F> {
    futures: Vec<F>,
}

impl<F: Future + Unpin> Few<F> {
    /// None yet; room for so many.
    pub fn with_capacity(capacity: usize) -> Self {
        Self { futures: Vec::with_capacity(capacity) }
    }

    /// One more.
    pub fn push(&mut self, future: F) {
        self.futures.push(future);
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.futures.is_empty()
    }

    /// Waits for one to end, the first in order if several have; `None` at once if there are none. Cancel-safe.
    pub async fn next(&mut self) -> Option<F::Output> {
        poll_fn(|context| {
            for place in 0..self.futures.len() {
                if let Poll::Ready(output) = Pin::new(&mut self.futures[place]).poll(context) {
                    drop(self.futures.remove(place));
                    return Poll::Ready(Some(output));
                }
            }
            if self.futures.is_empty() { Poll::Ready(None) } else { Poll::Pending }
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot;

    #[tokio::test]
    async fn outputs_come_as_futures_end_and_then_none() {
        let (first, second) = (oneshot::channel(), oneshot::channel());
        let mut few = Few::with_capacity(2);
        few.push(first.1);
        few.push(second.1);
        second.0.send(2).unwrap();
        assert_eq!(few.next().await, Some(Ok(2)));
        assert!(!few.is_empty());
        first.0.send(1).unwrap();
        assert_eq!(few.next().await, Some(Ok(1)));
        assert_eq!(few.next().await, None);
    }

    #[tokio::test]
    async fn one_that_is_pushed_while_another_waits_is_polled_too() {
        let (_never, waiting) = oneshot::channel::<u8>();
        let (done, ready) = oneshot::channel::<u8>();
        let mut few = Few::with_capacity(1);
        few.push(waiting);
        done.send(7).unwrap();
        few.push(ready);
        assert_eq!(few.next().await, Some(Ok(7)));
        assert!(!few.is_empty());
    }
}
