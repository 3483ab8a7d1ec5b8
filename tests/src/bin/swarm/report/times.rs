//! Times in microseconds, and their percentiles.

use hdrhistogram::Histogram;

use super::figure::{Figure, Labelled};

/// A histogram of three significant digits that reaches ten minutes.
#[derive(Clone, Debug)]
pub(crate) struct Times(Histogram<u64>);

impl Times {
    const HIGHEST_US: u64 = 600_000_000;

    pub(crate) fn record(&mut self, us: u64) {
        self.0.saturating_record(us);
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.0.add(&other.0).expect("all have the same bounds");
    }

    pub(crate) fn count(&self) -> u64 {
        self.0.len()
    }

    pub(crate) fn max_us(&self) -> u64 {
        self.0.max()
    }

    pub(crate) fn p99_us(&self) -> u64 {
        self.0.value_at_quantile(0.99)
    }

    pub(crate) fn figures(&self) -> Vec<Labelled> {
        if self.count() == 0 {
            return vec![("", "nothing measured".into())];
        }
        let quantiles = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999)];
        let figure = |(label, quantile)| (label, Figure::Time(self.0.value_at_quantile(quantile)));
        let rest = [("max", Figure::Time(self.max_us())), ("of", self.count().into())];
        quantiles.into_iter().map(figure).chain(rest).collect()
    }
}

impl Default for Times {
    fn default() -> Self {
        Self(Histogram::new_with_bounds(1, Self::HIGHEST_US, 3).expect("the bounds are valid"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_come_from_the_histogram() {
        let mut times = Times::default();
        (1..=1000).for_each(|us| times.record(us));
        let figures: Vec<_> =
            times.figures().iter().map(|(label, figure)| format!("{label} {figure}")).collect();
        assert_eq!(
            figures,
            ["p50 500 µs", "p90 900 µs", "p99 990 µs", "p99.9 999 µs", "max 1.00 ms", "of 1000"]
        );
    }
}
