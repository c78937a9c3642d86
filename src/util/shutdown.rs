//! One signal to stop, and many listeners.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::ticker::{Ticker, Ticks};

/// The side that gives the signal. Dropping it gives the signal too.
#[derive(Debug, Default)]
pub struct Shutdown {
    given: Arc<AtomicBool>,
    ticker: Ticker,
}

/// The side that hears it. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ShutdownListener {
    given: Arc<AtomicBool>,
    ticks: Ticks,
}

impl Shutdown {
    /// Returns one more listener.
    pub fn listener(&self) -> ShutdownListener {
        ShutdownListener { given: self.given.clone(), ticks: self.ticker.listener() }
    }

    /// Tells every listener to stop. Telling twice is the same as once.
    pub fn signal(&self) {
        self.given.store(true, Ordering::Release);
        self.ticker.tick();
    }
}

impl Drop for Shutdown {
    fn drop(&mut self) {
        self.signal();
    }
}

impl ShutdownListener {
    /// Whether the signal has been given.
    pub fn is_signalled(&self) -> bool {
        self.given.load(Ordering::Acquire)
    }

    /// Waits until the signal is given; returns at once if it was. Cancel-safe.
    pub async fn signalled(&mut self) {
        while !self.is_signalled() {
            self.ticks.changed().await;
        }
    }
}
