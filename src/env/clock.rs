//! Wall time, for the hybrid logical clock alone: whoever measures a duration uses `tokio::time`.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

/// A wall clock: it may jump, drift and run backwards.
pub trait Clock: Send + Sync + fmt::Debug {
    /// Microseconds since 1970.
    fn wall_micros(&self) -> u64;
}

/// The machine's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[allow(clippy::disallowed_methods)] // here is where the world comes in
    fn wall_micros(&self) -> u64 {
        std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |since| u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
    }
}

/// A clock that a test sets.
#[derive(Debug, Default)]
pub struct ManualClock {
    micros: AtomicU64,
}

impl ManualClock {
    /// Starts at `micros` since 1970.
    pub fn at(micros: u64) -> Self {
        Self { micros: AtomicU64::new(micros) }
    }

    /// Sets it, backwards too.
    pub fn set(&self, micros: u64) {
        self.micros.store(micros, Ordering::Relaxed); // one value, nothing else is published by it
    }

    /// Moves it forward.
    pub fn advance(&self, micros: u64) {
        self.micros.fetch_add(micros, Ordering::Relaxed);
    }
}

impl Clock for ManualClock {
    fn wall_micros(&self) -> u64 {
        self.micros.load(Ordering::Relaxed)
    }
}
