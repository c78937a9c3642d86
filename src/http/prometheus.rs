//! Prometheus text: the figures in the exposition format, version 0.0.4.

use std::fmt::Write as _;

use hdrhistogram::Histogram;

use super::figures::{Figure, Kind};
use super::metrics::{CODES, Totals};
use super::router::{Operation, Route};
use crate::replication::{EngineStats, SyncTimes};

/// Upper bounds of the latency buckets, in microseconds.
const BUCKETS: [u64; 14] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    2_500_000,
];

/// Renders everything.
pub fn render(totals: &Totals, figures: &[Figure], labelled: &[Family]) -> String {
    let mut out = String::with_capacity(16 << 10);
    for figure in figures {
        head(&mut out, figure.prometheus, figure.help, figure.kind);
        line(&mut out, figure.prometheus, "", figure.value);
    }
    for family in labelled {
        head(&mut out, family.name, family.help, family.kind);
        for (label, value) in &family.values {
            let label = label.replace('\\', r"\\").replace('"', "\\\"").replace('\n', "\\n");
            line(&mut out, family.name, &format!("{{{}=\"{label}\"}}", family.label), *value);
        }
    }
    requests(&mut out, totals);
    durations(&mut out, totals);
    out
}

/// A metric with one label.
#[derive(Debug)]
pub struct Family {
    /// Its name.
    pub name: &'static str,
    /// What it says.
    pub help: &'static str,
    /// Whether it only rises.
    pub kind: Kind,
    /// The label's name.
    pub label: &'static str,
    /// The label's values and theirs.
    pub values: Vec<(String, f64)>,
}

fn head(out: &mut String, name: &str, help: &str, kind: Kind) {
    let kind = match kind {
        Kind::Counter => "counter",
        Kind::Gauge => "gauge",
    };
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}"); // writing to memory does not fail
}

fn line(out: &mut String, name: &str, labels: &str, value: impl std::fmt::Display) {
    let _ = writeln!(out, "{name}{labels} {value}");
}

fn requests(out: &mut String, totals: &Totals) {
    const NAME: &str = "kvstore_http_requests_total";
    head(out, NAME, "Requests answered, by route and status code.", Kind::Counter);
    for (route, row) in Route::ALL.iter().zip(&totals.answers) {
        for (code, count) in CODES.iter().zip(row).filter(|(_, count)| **count > 0) {
            let route = route.name();
            let _ = writeln!(out, "{NAME}{{route=\"{route}\",code=\"{code}\"}} {count}");
        }
    }
}

/// What a route does, whatever its door.
fn operation(route: Route) -> &'static str {
    match route.row().operation {
        Operation::Write => "write",
        Operation::Read => "read",
        Operation::Batch => "batch",
        Operation::Scan => "scan",
        Operation::Delete => "delete",
        Operation::Other => "other",
    }
}

fn durations(out: &mut String, totals: &Totals) {
    const NAME: &str = "kvstore_http_request_duration_seconds";
    let _ = writeln!(
        out,
        "# HELP {NAME} Time from a request's head to its answer's head.\n# TYPE {NAME} histogram"
    );
    for (route, histogram) in Route::ALL.iter().zip(&totals.latencies) {
        let Some(histogram) = histogram else { continue };
        let labels = format!("operation=\"{}\",route=\"{}\"", operation(*route), route.name());
        for bound in BUCKETS {
            let count = histogram.count_between(0, bound);
            let _ = writeln!(out, "{NAME}_bucket{{{labels},le=\"{}\"}} {count}", bound as f64 / 1e6);
        }
        let count = histogram.len();
        let _ = writeln!(out, "{NAME}_bucket{{{labels},le=\"+Inf\"}} {count}");
        let _ = writeln!(out, "{NAME}_sum{{{labels}}} {}", sum_micros(histogram) / 1e6);
        let _ = writeln!(out, "{NAME}_count{{{labels}}} {count}");
    }
}

/// Appends what the engine says of its disk.
pub fn render_disk(out: &mut String, engine: &EngineStats) {
    const NAME: &str = "kvstore_wal_sync_duration_seconds";
    if let Some(free) = engine.free_bytes {
        const FREE: &str = "kvstore_disk_free_bytes";
        head(out, FREE, "Bytes free on the disk of the data directory.", Kind::Gauge);
        line(out, FREE, "", free);
    }
    let _ = writeln!(out, "# HELP {NAME} Time that a sync of the log takes.\n# TYPE {NAME} histogram");
    let (times, mut count) = (&engine.sync_times, 0);
    for (bound, more) in SyncTimes::BOUNDS.iter().zip(times.counts) {
        count += more;
        let _ = writeln!(out, "{NAME}_bucket{{le=\"{}\"}} {count}", *bound as f64 / 1e6);
    }
    let _ = writeln!(out, "{NAME}_bucket{{le=\"+Inf\"}} {}", times.count());
    let _ = writeln!(out, "{NAME}_sum {}\n{NAME}_count {}", times.micros as f64 / 1e6, times.count());
}

fn sum_micros(histogram: &Histogram<u64>) -> f64 {
    histogram.mean() * histogram.len() as f64
}
