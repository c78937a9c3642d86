//! The log of slow requests: which took longer than `SLOW_REQUEST_TIME`.
//!
//! A line has the request's route, status, time and id; the key is not in it, since keys may say who somebody is. When all
//! requests are slow the log must not make them slower: so many lines a second, and the next one says how many were left out.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hyper::{Method, StatusCode};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::router::Route;

/// Lines a second, at most.
const LINES_MAX: u32 = 10;

/// Logs slow requests of all doors.
#[derive(Debug)]
pub struct SlowLog {
    /// `SLOW_REQUEST_TIME`; zero: nothing is slow.
    threshold: Duration,
    /// Relaxed: a figure.
    count: AtomicU64,
    recent: Mutex<Recent>,
}

#[derive(Debug, Default)]
struct Recent {
    second_began: Option<Instant>,
    lines: u32,
    left_out: u64,
}

impl Recent {
    /// Whether a line may be written; then how many were left out before it.
    fn admit(&mut self, now: Instant) -> Option<u64> {
        if self.second_began.is_none_or(|began| now - began >= Duration::from_secs(1)) {
            (self.second_began, self.lines) = (Some(now), 0);
        }
        if self.lines == LINES_MAX {
            self.left_out += 1;
            return None;
        }
        self.lines += 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

impl SlowLog {
    /// Calls slow what takes longer than `threshold`; zero: nothing.
    pub fn new(threshold: Duration) -> Self {
        Self { threshold, count: AtomicU64::new(0), recent: Mutex::default() }
    }

    /// How many were slow.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Whether a request that took so long is slow.
    pub fn is_slow(&self, took: Duration) -> bool {
        took > self.threshold && !self.threshold.is_zero()
    }

    /// Counts a slow request, and logs it if it may.
    #[cold]
    pub fn note(&self, route: Route, method: &Method, status: StatusCode, took: Duration, peer: SocketAddr) {
        self.count.fetch_add(1, Ordering::Relaxed);
        let Some(left_out) = self.recent.lock().admit(Instant::now()) else { return };
        let (route, status, millis) = (route.name(), status.as_u16(), took.as_millis() as u64);
        tracing::warn!(route, %method, status, millis, %peer, left_out, "slow request");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn so_many_lines_a_second_and_the_next_says_what_was_left_out() {
        let mut recent = Recent::default();
        let admitted = (0..100).filter(|_| recent.admit(Instant::now()) == Some(0)).count();
        assert_eq!(admitted as u32, LINES_MAX);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(recent.admit(Instant::now()), Some(90));
        assert_eq!(recent.admit(Instant::now()), Some(0));
    }

    #[test]
    fn zero_means_that_nothing_is_slow() {
        assert!(!SlowLog::new(Duration::ZERO).is_slow(Duration::MAX));
        let log = SlowLog::new(Duration::from_millis(5));
        assert!(log.is_slow(Duration::from_millis(6)) && !log.is_slow(Duration::from_millis(5)));
    }
}
