//! What a load run saw: a tally a connection, merged into a report.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use hdrhistogram::Histogram;

use super::BenchArgs;

/// What a request did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    Put,
    Get,
}

const QUANTILES: [(&str, f64); 4] = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999)];

/// Answers of one operation.
struct Latencies {
    /// Microseconds.
    histogram: Histogram<u64>,
    failed: u64,
}

impl Default for Latencies {
    fn default() -> Self {
        Self { histogram: Histogram::new(3).expect("three digits are allowed"), failed: 0 }
    }
}

/// What one connection saw, or all of them.
#[derive(Default)]
pub(super) struct Tally {
    put: Latencies,
    get: Latencies,
    /// Failures by what was said.
    problems: BTreeMap<String, u64>,
    /// When answers came, in milliseconds since the start: one bit a millisecond, for the longest gap.
    answered_at: Vec<u64>,
}

impl Tally {
    fn of(&mut self, operation: Operation) -> &mut Latencies {
        match operation {
            Operation::Put => &mut self.put,
            Operation::Get => &mut self.get,
        }
    }

    pub(super) fn answered_after(&mut self, operation: Operation, latency: Duration, since_start: Duration) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        let histogram = &mut self.of(operation).histogram;
        histogram.record(micros).expect("a histogram that grows by itself takes any value");
        let (word, bit) = (since_start.as_millis() as usize / 64, since_start.as_millis() % 64);
        if self.answered_at.len() <= word {
            self.answered_at.resize(word + 1, 0);
        }
        self.answered_at[word] |= 1 << bit;
    }

    pub(super) fn failed(&mut self, operation: Operation, problem: String) {
        self.of(operation).failed += 1;
        *self.problems.entry(problem).or_default() += 1;
    }

    pub(super) fn merge(&mut self, other: &Self) {
        for (mine, theirs) in [(&mut self.put, &other.put), (&mut self.get, &other.get)] {
            mine.histogram.add(&theirs.histogram).expect("both have the same precision, and the sum resizes");
            mine.failed += theirs.failed;
        }
        for (problem, count) in &other.problems {
            *self.problems.entry(problem.clone()).or_default() += count;
        }
        if self.answered_at.len() < other.answered_at.len() {
            self.answered_at.resize(other.answered_at.len(), 0);
        }
        for (mine, theirs) in self.answered_at.iter_mut().zip(&other.answered_at) {
            *mine |= theirs;
        }
    }

    /// Requests answered as they should be.
    pub(super) fn answered(&self) -> u64 {
        self.put.histogram.len() + self.get.histogram.len()
    }

    /// The longest time without an answer on any connection, in whole milliseconds.
    fn longest_gap(&self, elapsed: Duration) -> Duration {
        let (mut longest, mut since) = (0, 0);
        let end = elapsed.as_millis() as u64;
        for (word, bits) in self.answered_at.iter().enumerate() {
            let mut bits = *bits;
            while bits != 0 {
                let at = word as u64 * 64 + u64::from(bits.trailing_zeros());
                longest = longest.max(at.saturating_sub(since));
                since = at;
                bits &= bits - 1;
            }
        }
        Duration::from_millis(longest.max(end.saturating_sub(since)))
    }
}

/// A run, ready to be printed.
pub(super) struct Report<'a> {
    args: &'a BenchArgs,
    targets: &'a [String],
    tally: &'a Tally,
    elapsed: Duration,
}

impl<'a> Report<'a> {
    pub(super) fn new(
        args: &'a BenchArgs,
        targets: &'a [String],
        tally: &'a Tally,
        elapsed: Duration,
    ) -> Self {
        Self { args, targets, tally, elapsed }
    }

    fn operations(&self) -> impl Iterator<Item = (&'static str, &Latencies)> {
        [("put", &self.tally.put), ("get", &self.tally.get)]
            .into_iter()
            .filter(|(_, latencies)| !latencies.histogram.is_empty() || latencies.failed > 0)
    }

    fn per_second(&self, count: u64) -> f64 {
        count as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    fn items_per_second(&self, batch: u32) -> f64 {
        self.per_second(self.tally.put.histogram.len()) * f64::from(batch)
    }

    /// For people.
    pub(super) fn text(&self) -> String {
        let mut out = String::new();
        let _ = writeln!(
            out,
            "{:.1} s, {} connections, {}% reads, {}-byte values, {}",
            self.elapsed.as_secs_f64(),
            self.args.connections,
            self.args.read_percent,
            self.args.value_size,
            self.targets.join(" ")
        );
        for (name, latencies) in self.operations() {
            let histogram = &latencies.histogram;
            let _ = write!(
                out,
                "{name}  {:>9} ok {:>6} failed {:>9.0}/s ",
                histogram.len(),
                latencies.failed,
                self.per_second(histogram.len())
            );
            for (label, quantile) in QUANTILES {
                let _ = write!(out, "  {label} {}", millis(histogram.value_at_quantile(quantile)));
            }
            let _ = writeln!(out, "  max {}", millis(histogram.max()));
        }
        if let Some(batch) = self.args.batch {
            let _ = writeln!(out, "items written: {:.0}/s", self.items_per_second(batch));
        }
        let _ = writeln!(
            out,
            "longest time without an answer: {} ms",
            self.tally.longest_gap(self.elapsed).as_millis()
        );
        for (problem, count) in &self.tally.problems {
            let _ = writeln!(out, "failed {count} times: {problem}");
        }
        out
    }

    /// For programs. Latencies in microseconds.
    pub(super) fn json(&self) -> serde_json::Value {
        let operations: serde_json::Map<_, _> = self
            .operations()
            .map(|(name, latencies)| {
                let histogram = &latencies.histogram;
                let mut fields = serde_json::json!({
                    "ok": histogram.len(),
                    "failed": latencies.failed,
                    "per_second": self.per_second(histogram.len()),
                    "mean_us": histogram.mean(),
                    "max_us": histogram.max(),
                });
                for (label, quantile) in QUANTILES {
                    fields[format!("{label}_us")] = histogram.value_at_quantile(quantile).into();
                }
                (name.to_owned(), fields)
            })
            .collect();
        serde_json::json!({
            "seconds": self.elapsed.as_secs_f64(),
            "connections": self.args.connections,
            "read_percent": self.args.read_percent,
            "value_size": self.args.value_size,
            "targets": self.targets,
            "operations": operations,
            "items_per_second": self.args.batch.map(|batch| self.items_per_second(batch)),
            "longest_gap_ms": self.tally.longest_gap(self.elapsed).as_millis() as u64,
            "problems": self.tally.problems,
        })
    }
}

fn millis(micros: u64) -> String {
    format!("{:.2} ms", micros as f64 / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_gap_counts_the_start_and_the_end() {
        let mut tally = Tally::default();
        for at in [100, 150, 400] {
            tally.answered_after(Operation::Get, Duration::from_millis(1), Duration::from_millis(at));
        }
        assert_eq!(tally.longest_gap(Duration::from_millis(500)), Duration::from_millis(250));
        assert_eq!(tally.longest_gap(Duration::from_millis(900)), Duration::from_millis(500));
    }

    #[test]
    fn merged_tallies_count_what_both_saw() {
        let (mut a, mut b) = (Tally::default(), Tally::default());
        a.answered_after(Operation::Put, Duration::from_micros(900), Duration::from_millis(1));
        b.answered_after(Operation::Put, Duration::from_micros(1100), Duration::from_millis(200));
        b.failed(Operation::Get, "503".to_owned());
        a.merge(&b);
        assert_eq!((a.put.histogram.len(), a.get.failed, a.problems["503"]), (2, 1, 1));
        assert_eq!(a.longest_gap(Duration::from_millis(200)), Duration::from_millis(199));
    }

    #[test]
    fn a_slow_answer_is_shown_as_slow_as_it_was() {
        // A histogram that saturates in place of growing once showed two milliseconds for everything slower.
        let mut tally = Tally::default();
        tally.answered_after(Operation::Put, Duration::from_secs(9), Duration::from_secs(9));
        assert!(tally.put.histogram.max() >= 8_990_000);
    }
}
