//! Figures of a node, read from its Prometheus text.

use std::collections::BTreeMap;

/// Bounds of how long something takes, in microseconds; `None`: longer than was told apart.
pub type Bound = Option<u64>;

/// What `/metrics` says.
#[derive(Debug, Clone, Default)]
pub struct Figures {
    /// Name with labels as they stand, and value.
    values: BTreeMap<String, f64>,
}

impl Figures {
    /// Reads the text; lines that are no samples are skipped.
    pub fn parse(text: &str) -> Self {
        let samples = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        });
        Self { values: samples.collect() }
    }

    /// A figure without labels, rounded down.
    pub fn get(&self, name: &str) -> Option<u64> {
        self.values.get(name).map(|value| *value as u64)
    }

    /// Whether a flag is up.
    pub fn is_on(&self, name: &str) -> bool {
        self.get(name).is_some_and(|value| value > 0)
    }

    /// How many a histogram of seconds counted, and the bounds below which `quantiles` of them lie.
    pub fn quantiles<const COUNT: usize>(
        &self,
        name: &str,
        quantiles: [f64; COUNT],
    ) -> (u64, [Bound; COUNT]) {
        let prefix = format!("{name}_bucket{{le=\"");
        let bound = |name: &str| name.strip_prefix(&prefix)?.strip_suffix("\"}")?.parse::<f64>().ok();
        let mut buckets: Vec<_> =
            self.values.iter().filter_map(|(name, count)| Some((bound(name)?, *count))).collect();
        buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        let total = buckets.last().map_or(0.0, |(_, count)| *count);
        let at = |quantile: f64| {
            let bucket = buckets.iter().find(|(_, count)| *count >= quantile * total)?;
            bucket.0.is_finite().then_some((bucket.0 * 1e6).round() as u64)
        };
        (total as u64, quantiles.map(at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_flags_and_quantiles_are_read() {
        let figures = Figures::parse(
            "# HELP a b\nkvstore_x 3\nkvstore_on 1\nlevel{level=\"0\"} 2\nlevel{level=\"1\"} 5\nnonsense\n\
             t_bucket{le=\"0.001\"} 8\nt_bucket{le=\"0.01\"} 9\nt_bucket{le=\"+Inf\"} 10\nt_sum 1\nt_count 10\n",
        );
        assert_eq!((figures.get("kvstore_x"), figures.get("none")), (Some(3), None));
        assert!(figures.is_on("kvstore_on") && !figures.is_on("none"));
        assert_eq!(figures.quantiles("t", [0.5, 0.9, 0.99]), (10, [Some(1_000), Some(10_000), None]));
        assert_eq!(figures.quantiles("none", [0.5]), (0, [None]));
    }
}
