//! Sync times: how long syncs of the log took, counted by bounds.

use std::sync::atomic::{AtomicU64, Ordering};

/// How many syncs took how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SyncTimes {
    /// Syncs that took at most the bound of the same place in [`SyncTimes::BOUNDS`] and more than the one before; the last
    /// are those beyond all bounds.
    pub counts: [u64; SyncTimes::BOUNDS.len() + 1],
    /// Microseconds of all together.
    pub micros: u64,
}

impl SyncTimes {
    /// In microseconds.
    pub const BOUNDS: [u64; 14] = [
        100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
        2_500_000,
    ];

    /// Syncs counted.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }
}

/// Counts. Relaxed: sums that order nothing.
#[derive(Debug, Default)]
pub(super) struct SyncCounter {
    counts: [AtomicU64; SyncTimes::BOUNDS.len() + 1],
    micros: AtomicU64,
}

impl SyncCounter {
    pub fn record(&self, micros: u64) {
        let place = SyncTimes::BOUNDS.iter().position(|bound| micros <= *bound);
        self.counts[place.unwrap_or(SyncTimes::BOUNDS.len())].fetch_add(1, Ordering::Relaxed);
        self.micros.fetch_add(micros, Ordering::Relaxed);
    }

    pub fn read(&self) -> SyncTimes {
        SyncTimes {
            counts: std::array::from_fn(|at| self.counts[at].load(Ordering::Relaxed)),
            micros: self.micros.load(Ordering::Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sync_counts_at_the_first_bound_that_holds_it() {
        let counter = SyncCounter::default();
        for micros in [0, 100, 101, 2_500_000, 9_000_000] {
            counter.record(micros);
        }
        let times = counter.read();
        assert_eq!((times.counts[0], times.counts[1], times.counts[13], times.counts[14]), (2, 1, 1, 1));
        assert_eq!((times.count(), times.micros), (5, 11_500_201));
    }
}
