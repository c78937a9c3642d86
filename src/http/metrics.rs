//! Metrics: what clients asked of this node, and how long it took.
//!
//! Each worker thread has a [`Recorder`] of its own, so that counting a request touches no memory of another core; a
//! reader adds them up. A latency is the time from a request's head to its answer's head.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hdrhistogram::Histogram;
use hyper::StatusCode;
use parking_lot::Mutex;

use super::router::{Operation, Route};

/// The longest latency told apart, in microseconds: ten minutes.
const LATENCY_MAX_MICROS: u64 = 600_000_000;
/// Significant digits kept of a latency: within 1%, at 30 KiB a histogram.
const LATENCY_DIGITS: u8 = 2;
/// Routes × status codes counted.
const ROUTES: usize = Route::ALL.len();

/// Status codes that this server gives; others count under the last.
pub const CODES: [u16; 23] = [
    200, 101, 201, 204, 206, 304, 400, 401, 403, 404, 405, 408, 412, 413, 415, 416, 426, 500, 501, 503, 504,
    507, 0,
];

/// What one worker thread has answered.
#[derive(Debug)]
pub struct Recorder {
    /// Answers by route and code. Relaxed: sums that publish nothing else.
    answers: [[AtomicU64; CODES.len()]; ROUTES],
    latencies: [Mutex<Option<Histogram<u64>>>; ROUTES],
}

impl Recorder {
    fn new() -> Self {
        Self {
            answers: std::array::from_fn(|_| std::array::from_fn(|_| AtomicU64::new(0))),
            latencies: std::array::from_fn(|_| Mutex::new(None)),
        }
    }

    /// Counts an answer.
    pub fn record(&self, route: Route, code: StatusCode, latency: Duration) {
        let column = CODES.iter().position(|known| *known == code.as_u16()).unwrap_or(CODES.len() - 1);
        self.answers[route as usize][column].fetch_add(1, Ordering::Relaxed);
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        let mut histogram = self.latencies[route as usize].lock();
        histogram.get_or_insert_with(new_histogram).saturating_record(micros.max(1));
    }
}

fn new_histogram() -> Histogram<u64> {
    let histogram = Histogram::new_with_bounds(1, LATENCY_MAX_MICROS, LATENCY_DIGITS);
    histogram.expect("1 to ten minutes at two digits is a range the library accepts")
}

/// The recorders of all worker threads.
#[derive(Debug, Default)]
pub struct Metrics {
    recorders: Mutex<Vec<Arc<Recorder>>>,
}

/// What all worker threads together have answered, as of one moment.
#[derive(Debug)]
pub struct Totals {
    /// Answers by route and code, in the orders of [`Route::ALL`] and [`CODES`].
    pub answers: [[u64; CODES.len()]; ROUTES],
    /// Latencies in microseconds by route; `None` where nothing was asked.
    pub latencies: [Option<Histogram<u64>>; ROUTES],
}

impl Metrics {
    /// One more recorder, for one more worker thread.
    pub fn recorder(&self) -> Arc<Recorder> {
        let recorder = Arc::new(Recorder::new());
        self.recorders.lock().push(recorder.clone());
        recorder
    }

    /// Adds all recorders up.
    pub fn totals(&self) -> Totals {
        let recorders = self.recorders.lock().clone();
        let mut totals =
            Totals { answers: [[0; CODES.len()]; ROUTES], latencies: std::array::from_fn(|_| None) };
        for recorder in &recorders {
            for (row, counted) in totals.answers.iter_mut().zip(&recorder.answers) {
                for (sum, one) in row.iter_mut().zip(counted) {
                    *sum += one.load(Ordering::Relaxed);
                }
            }
            for (sum, one) in totals.latencies.iter_mut().zip(&recorder.latencies) {
                let one = one.lock().clone();
                match (sum.as_mut(), one) {
                    (_, None) => {}
                    (None, Some(one)) => *sum = Some(one),
                    (Some(sum), Some(one)) => {
                        sum.add(one).expect("all recorders have the same bounds");
                    }
                }
            }
        }
        totals
    }
}

impl Totals {
    /// Requests of a route, whatever was answered.
    pub fn requests(&self, route: Route) -> u64 {
        self.answers[route as usize].iter().sum()
    }

    /// Requests that asked for an operation, through whatever door.
    pub fn operations(&self, operation: Operation) -> u64 {
        let routes = Route::ALL.into_iter().filter(|route| route.row().operation == operation);
        routes.map(|route| self.requests(route)).sum()
    }

    /// Answers of 500 and above.
    pub fn errors(&self) -> u64 {
        let rows = self.answers.iter().flat_map(|row| row.iter().zip(CODES));
        rows.filter(|(_, code)| *code >= 500).map(|(count, _)| count).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recorders_add_up_and_errors_are_answers_of_500_and_above() {
        let metrics = Metrics::default();
        let (one, other) = (metrics.recorder(), metrics.recorder());
        one.record(Route::Put, StatusCode::OK, Duration::from_micros(100));
        other.record(Route::Put, StatusCode::OK, Duration::from_micros(300));
        other.record(Route::Put, StatusCode::GATEWAY_TIMEOUT, Duration::from_secs(2));
        other.record(Route::Get, StatusCode::BAD_REQUEST, Duration::ZERO);
        let totals = metrics.totals();
        one.record(Route::VikdbPut, StatusCode::OK, Duration::ZERO);
        assert_eq!(totals.requests(Route::Put), 3);
        assert_eq!(metrics.totals().operations(Operation::Write), 4, "whatever the door");
        assert_eq!(totals.errors(), 1);
        let puts = totals.latencies[Route::Put as usize].as_ref().unwrap();
        assert_eq!(puts.len(), 3);
        assert!((295..=305).contains(&puts.value_at_quantile(0.5)));
        assert!(totals.latencies[Route::Scan as usize].is_none());
    }
}
