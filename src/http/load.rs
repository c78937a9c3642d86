//! Load: how busy a node is, as JSON for the status page of whichever node is looked at.
//!
//! Rates and latencies are those of the interval since the sample before. A sample is kept for most of a second, so
//! that several who ask share one interval; where nobody asked for a while, the next sample says what stands now and
//! leaves out what happened in between.

use std::collections::BTreeMap;
use std::sync::Weak;
use std::time::Duration;

use bytes::Bytes;
use hdrhistogram::Histogram;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::time::Instant;

use super::api::{Api, Shared};
use super::metrics::Totals;
use super::router::{Operation, Route};
use super::{admin, process};
use crate::replication::{Coordinator, LoadSource};

/// How long a sample is shared: less than the second after which a viewer wants the next.
const SAMPLE_KEPT: Duration = Duration::from_millis(900);
/// An interval longer than this says nothing of the present.
const INTERVAL_MAX: Duration = Duration::from_secs(5);

/// What requests do, as the page names it.
const OPERATIONS: [(&str, Operation); 5] = [
    ("reads", Operation::Read),
    ("writes", Operation::Write),
    ("deletes", Operation::Delete),
    ("batches", Operation::Batch),
    ("scans", Operation::Scan),
];

/// Takes samples of one node.
#[derive(Debug, Default)]
pub struct Sampler {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    before: Option<Reading>,
    made: Option<(Instant, Bytes)>,
}

/// Counters as of one moment.
#[derive(Debug)]
struct Reading {
    at: Instant,
    /// Processor time that the process has used.
    cpu: Duration,
    errors: u64,
    latencies: [Option<Histogram<u64>>; OPERATIONS.len()],
}

impl Reading {
    fn of(totals: &Totals) -> Self {
        Self {
            at: Instant::now(),
            cpu: process::cpu(),
            errors: totals.errors(),
            latencies: OPERATIONS.map(|(_, operation)| joined(totals, operation)),
        }
    }
}

/// The latencies of an operation through whatever door.
fn joined(totals: &Totals, operation: Operation) -> Option<Histogram<u64>> {
    let routes = Route::ALL.into_iter().filter(|route| route.row().operation == operation);
    let mut histograms = routes.filter_map(|route| totals.latencies[route as usize].as_ref());
    let mut sum = histograms.next()?.clone();
    for histogram in histograms {
        sum.add(histogram).expect("all recorders have the same bounds");
    }
    Some(sum)
}

#[derive(Serialize)]
struct Load<'a> {
    version: &'static str,
    uptime_seconds: u64,
    ready: bool,
    reasons: Vec<String>,
    /// The interval that the rates are of; absent where there was no sample before.
    interval_ms: Option<u64>,
    operations: BTreeMap<&'static str, Pace>,
    errors_per_second: f64,
    /// Processor cores kept busy.
    cpu_cores: Option<f64>,
    bytes_in_flight: u64,
    /// Hints that this node holds, by the node they are for.
    hints: BTreeMap<&'a str, u64>,
    engine: Engine,
}

#[derive(Serialize)]
struct Pace {
    per_second: f64,
    p50_micros: u64,
    p99_micros: u64,
}

#[derive(Serialize)]
struct Engine {
    flushes: u64,
    compactions: u64,
    wal_syncs: u64,
    held_bytes: u64,
    memtable_bytes: usize,
    memtables_sealed: usize,
    level_files: [usize; 7],
    level_bytes: [u64; 7],
    tombstones: u64,
    cache_hits: u64,
    cache_misses: u64,
    throttled: bool,
    poisoned: bool,
    out_of_space: bool,
}

impl Engine {
    fn of(coordinator: &Coordinator) -> Self {
        let stats = coordinator.engine_stats();
        Self {
            flushes: stats.flushes,
            compactions: stats.compactions,
            wal_syncs: stats.wal_syncs,
            held_bytes: stats.held_bytes(),
            memtable_bytes: stats.memtable_bytes,
            memtables_sealed: stats.memtables_sealed,
            level_files: stats.level_files,
            level_bytes: stats.level_bytes,
            tombstones: stats.tombstones,
            cache_hits: stats.cache_hits,
            cache_misses: stats.cache_misses,
            throttled: stats.throttled,
            poisoned: stats.poisoned,
            out_of_space: stats.out_of_space,
        }
    }
}

impl Sampler {
    /// How busy the node is, as JSON; the sample that is there if it is fresh.
    pub fn sample(&self, api: &Api, coordinator: &Coordinator) -> Bytes {
        let mut state = self.state.lock();
        if let Some((at, sample)) = &state.made
            && at.elapsed() < SAMPLE_KEPT
        {
            return sample.clone();
        }
        let now = Reading::of(&api.shared.metrics.totals());
        let before = state.before.take().filter(|before| now.at - before.at < INTERVAL_MAX);
        let load = load(api, coordinator, before.as_ref(), &now);
        let sample = Bytes::from(serde_json::to_vec(&load).expect("string keys and finite numbers"));
        state.made = Some((now.at, sample.clone()));
        state.before = Some(now);
        sample
    }
}

fn load<'a>(api: &Api, coordinator: &'a Coordinator, before: Option<&Reading>, now: &Reading) -> Load<'a> {
    let interval = before.map(|before| (now.at - before.at).max(Duration::from_millis(1)));
    let per_second =
        |count: u64| interval.map_or(0.0, |interval| rounded(count as f64 / interval.as_secs_f64()));
    let operations = OPERATIONS.iter().enumerate().filter_map(|(index, (name, _))| {
        let histogram = during(now.latencies[index].as_ref()?, before?.latencies[index].as_ref());
        let pace = Pace {
            per_second: per_second(histogram.len()),
            p50_micros: histogram.value_at_quantile(0.5),
            p99_micros: histogram.value_at_quantile(0.99),
        };
        Some((*name, pace))
    });
    let reasons = admin::problems(&admin::checks_of(api));
    let members = coordinator.ring().membership().members();
    let hints = members.iter().map(|member| (member.id.as_str(), coordinator.hints_for(&member.id)));
    Load {
        version: env!("CARGO_PKG_VERSION"),
        uptime_seconds: api.shared.started.elapsed().as_secs(),
        ready: reasons.is_empty(),
        reasons,
        interval_ms: interval.map(|interval| interval.as_millis() as u64),
        operations: operations.collect(),
        errors_per_second: per_second(before.map_or(0, |before| now.errors - before.errors)),
        cpu_cores: before.zip(interval).map(|(before, interval)| {
            rounded(now.cpu.saturating_sub(before.cpu).as_secs_f64() / interval.as_secs_f64())
        }),
        bytes_in_flight: api.shared.budget.taken() as u64,
        hints: hints.filter(|(_, count)| *count > 0).collect(),
        engine: Engine::of(coordinator),
    }
}

/// What came to a histogram since.
fn during(now: &Histogram<u64>, before: Option<&Histogram<u64>>) -> Histogram<u64> {
    let mut since = now.clone();
    if let Some(before) = before {
        since.subtract(before).expect("a recorder's counts only rise");
    }
    since
}

/// Two digits after the point are enough to look at.
fn rounded(number: f64) -> f64 {
    (number * 100.0).round() / 100.0
}

/// Answers peers whose status page is looked at. Weak: the node's parts must not keep each other alive.
#[derive(Debug)]
pub struct OwnLoad {
    shared: Weak<Shared>,
}

impl OwnLoad {
    /// The load of the node that `api` belongs to.
    pub fn new(api: &Api) -> Self {
        Self { shared: std::sync::Arc::downgrade(&api.shared) }
    }
}

impl LoadSource for OwnLoad {
    fn load(&self) -> Bytes {
        let Some(shared) = self.shared.upgrade() else { return Bytes::new() };
        let api = Api { shared };
        match api.opened() {
            Some(coordinator) => api.shared.sampler.sample(&api, coordinator),
            None => Bytes::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn histogram(values: &[u64]) -> Histogram<u64> {
        let mut histogram = Histogram::new_with_bounds(1, 1_000_000, 2).unwrap();
        for value in values {
            histogram.record(*value).unwrap();
        }
        histogram
    }

    #[test]
    fn an_intervals_latencies_are_its_own() {
        let before = histogram(&[100, 100, 100]);
        let now = histogram(&[100, 100, 100, 9_000]);
        let since = during(&now, Some(&before));
        assert_eq!(since.len(), 1);
        assert!(since.value_at_quantile(0.5) > 8_000, "{}", since.value_at_quantile(0.5));
        assert_eq!(during(&now, None).len(), 4);
    }
}
