//! Many seeds, on all threads: each has a world of its own.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::run::Report;

/// How many threads run seeds.
const THREADS: usize = 2;

/// Runs seeds until one is wrong; returns the wrong one with the lowest number, and all others.
pub fn sweep(seeds: Range<u64>, run: impl Fn(u64) -> Report + Sync) -> (Vec<Report>, Option<Report>) {
    let next = AtomicU64::new(seeds.start);
    let wrong_seed = AtomicU64::new(u64::MAX);
    let reports = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end || seed > wrong_seed.load(Ordering::Relaxed) {
                        return;
                    }
                    let report = run(seed);
                    if !report.wrong.is_empty() {
                        wrong_seed.fetch_min(seed, Ordering::Relaxed);
                    }
                    reports.lock().push(report);
                }
            });
        }
    });
    let mut reports = reports.into_inner();
    reports.sort_by_key(|report| report.options.seed);
    let wrong = reports.iter().position(|report| !report.wrong.is_empty()).map(|at| reports.remove(at));
    (reports, wrong)
}

/// What is wrong with a run, under which options, after which events.
pub fn explain(report: &Report) -> String {
    let Report { options, wrong, last, .. } = report;
    let (shown, seed) = (wrong.len().min(10), options.seed);
    format!(
        "{}\n\n{options:#?}\n\n{} things are wrong, {shown} of them are:\n{}\n\nrerun: cargo run --example sim -- --seed {seed}",
        last.join("\n"),
        wrong.len(),
        wrong[..shown].join("\n"),
    )
}
