//! The offset that a primary's replication stream had some time ago.

use std::time::{Duration, Instant};

/// The age of the offset that a replica must have reached to keep up. Replicas report their offsets once per second.
pub(super) const MAX_LAG: Duration = Duration::from_secs(4);

/// Remembers two offsets of a primary's replication stream.
#[derive(Default)]
pub(super) struct PastOffset {
    /// The offset at a moment that is at least [`MAX_LAG`] ago.
    past: u64,
    /// A later offset, and its moment.
    later: Option<(Instant, u64)>,
}

impl PastOffset {
    /// Notes the current offset. Returns the offset that a replica must have reached.
    pub(super) fn record(&mut self, now: Instant, offset: u64) -> u64 {
        match self.later {
            Some((at, _)) if now.duration_since(at) < MAX_LAG => {}
            later => {
                self.past = later.map_or(0, |(_, offset)| offset);
                self.later = Some((now, offset));
            }
        }
        self.past
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_must_have_reached_what_its_primary_had_a_while_ago() {
        let (start, mut offsets) = (Instant::now(), PastOffset::default());
        assert_eq!(offsets.record(start, 100), 0);
        assert_eq!(offsets.record(start + MAX_LAG / 2, 200), 0);
        assert_eq!(offsets.record(start + MAX_LAG, 300), 100);
        assert_eq!(offsets.record(start + MAX_LAG * 3 / 2, 400), 100);
        assert_eq!(offsets.record(start + MAX_LAG * 2, 500), 300);
    }
}
