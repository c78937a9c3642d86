//! Ticker: tells many listeners that something changed.
//!
//! In place of tokio's `watch`, which wakes its receivers in an order that the runtime draws for itself: here
//! they wake in the order in which they began to wait, so that a simulation's seed decides everything.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

/// The side that tells. A clone is the same side.
#[derive(Debug, Clone, Default)]
pub struct Ticker {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Release and acquire: who sees a tick sees what was done before it.
    ticks: AtomicU64,
    ticked: Notify,
}

/// The side that listens. A clone has seen what its original has seen.
#[derive(Debug, Clone)]
pub struct Ticks {
    shared: Arc<Shared>,
    seen: u64,
}

impl Ticker {
    /// Tells every listener. Ticks that a listener did not wait for are one to it.
    pub fn tick(&self) {
        self.shared.ticks.fetch_add(1, Ordering::Release);
        self.shared.ticked.notify_waiters();
    }

    /// Returns one more listener, which has seen all ticks so far.
    pub fn listener(&self) -> Ticks {
        Ticks { shared: self.shared.clone(), seen: self.shared.ticks.load(Ordering::Acquire) }
    }
}

impl Ticks {
    /// Whether there was a tick that this listener has not seen.
    pub fn has_changed(&self) -> bool {
        self.shared.ticks.load(Ordering::Acquire) != self.seen
    }

    /// Counts all ticks so far as seen.
    pub fn mark_unchanged(&mut self) {
        self.seen = self.shared.ticks.load(Ordering::Acquire);
    }

    /// Waits for a tick that was not seen yet, and counts it as seen. Never ends once nobody ticks. Cancel-safe.
    pub async fn changed(&mut self) {
        loop {
            let mut ticked = pin!(self.shared.ticked.notified());
            ticked.as_mut().enable(); // before the look, so that a tick in between is not missed
            if self.has_changed() {
                break;
            }
            ticked.await;
        }
        self.mark_unchanged();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use parking_lot::Mutex;
    use tokio::time::timeout;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_tick_is_seen_once_whether_it_was_waited_for_or_not() {
        let ticker = Ticker::default();
        let mut ticks = ticker.listener();
        assert!(timeout(Duration::from_secs(1), ticks.changed()).await.is_err());
        ticker.tick();
        ticker.tick();
        assert!(ticks.has_changed());
        ticks.changed().await;
        assert!(timeout(Duration::from_secs(1), ticks.changed()).await.is_err());
        ticker.tick();
        ticks.mark_unchanged();
        assert!(!ticks.has_changed());
    }

    #[tokio::test(start_paused = true)]
    #[allow(clippy::disallowed_methods)] // a test's own tasks
    async fn listeners_wake_in_the_order_in_which_they_began_to_wait() {
        let ticker = Ticker::default();
        let woken = Arc::new(Mutex::new(Vec::new()));
        let tasks: Vec<_> = (0..50)
            .map(|number| {
                let (mut ticks, woken) = (ticker.listener(), woken.clone());
                tokio::spawn(async move {
                    ticks.changed().await;
                    woken.lock().push(number);
                })
            })
            .collect();
        tokio::task::yield_now().await;
        ticker.tick();
        for task in tasks {
            task.await.unwrap();
        }
        assert!(woken.lock().is_sorted());
    }
}
