//! Waits between attempts of something that fails.

use std::time::Duration;

/// Doubling waits with jitter, so that the clients of a server that failed do not all come back at once.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    failures: u32,
}

impl Backoff {
    /// Begins with a wait of `first`. No wait is longer than `longest`.
    #[must_use]
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, failures: 0 }
    }

    /// Counts a failure. Returns how long to wait.
    pub fn failed(&mut self) -> Duration {
        let most = self.first.saturating_mul(1 << self.failures.min(10)).min(self.longest);
        self.failures += 1;
        most.mul_f64(rand::random_range(0.5..=1.0))
    }

    /// Ends a row of failures: the next wait is the first one again.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// Returns the number of failures in a row.
    #[must_use]
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest_and_start_over_after_a_reset() {
        let (first, longest) = (Duration::from_millis(100), Duration::from_secs(1));
        let mut backoff = Backoff::new(first, longest);
        let between = |wait: Duration, most: Duration| wait >= most / 2 && wait <= most;
        for (times, most) in [(1, first), (2, first * 2), (3, first * 4), (4, first * 8), (5, longest)] {
            assert!(between(backoff.failed(), most), "{times}");
        }
        for _ in 0..100 {
            assert!(backoff.failed() <= longest);
        }
        assert_eq!(backoff.failures(), 105);
        backoff.reset();
        assert!(between(backoff.failed(), first));
    }
}
