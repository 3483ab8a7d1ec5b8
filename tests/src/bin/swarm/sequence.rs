//! Rule 1 of the contract's section 3, checked for one market on one connection.

use std::ops::RangeInclusive;

/// What one subscription has seen: `seq` must go up by exactly 1 from the ack's position, or jump through a snapshot.
#[derive(Debug, Default, Clone)]
pub(crate) struct Sequence {
    last: Option<u64>,
    /// Skipped numbers, kept to tell a late update from a duplicate. Empty (and unallocated) unless something is wrong.
    missing: Vec<RangeInclusive<u64>>,
}

/// What an update's `seq` says about the delivery.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub(crate) enum Verdict {
    /// The one after the last.
    InOrder,
    /// This many updates were skipped.
    Hole(u64),
    /// Was received before, or lies before the position the subscription started at.
    Duplicate,
    /// Was skipped before and arrives now.
    Reordered,
    /// Arrived before the ack that says where delivery starts.
    BeforeAck,
}

impl Sequence {
    /// The ack's position, or a snapshot's `seq`: what is expected next is the one after it.
    pub(crate) fn start_after(&mut self, seq: u64) {
        self.last = Some(seq);
        self.missing = Vec::new();
    }

    /// Judges an update. A hole is reported once; counting goes on from the update that revealed it.
    pub(crate) fn update(&mut self, seq: u64) -> Verdict {
        let Some(last) = self.last else { return Verdict::BeforeAck };
        if seq == last + 1 {
            self.last = Some(seq);
            return Verdict::InOrder;
        }
        if seq > last {
            self.last = Some(seq);
            self.missing.push(last + 1..=seq - 1);
            return Verdict::Hole(seq - last - 1);
        }
        if self.take_missing(seq) { Verdict::Reordered } else { Verdict::Duplicate }
    }

    /// The `seq` of the newest update or snapshot; `None` before the ack.
    pub(crate) fn last(&self) -> Option<u64> {
        self.last
    }

    fn take_missing(&mut self, seq: u64) -> bool {
        let Some(at) = self.missing.iter().position(|range| range.contains(&seq)) else { return false };
        let (start, end) = self.missing.swap_remove(at).into_inner();
        self.missing.extend(
            [start..=seq.saturating_sub(1), seq + 1..=end].into_iter().filter(|rest| !rest.is_empty()),
        );
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn started_after(seq: u64) -> Sequence {
        let mut sequence = Sequence::default();
        sequence.start_after(seq);
        sequence
    }

    #[test]
    fn seq_goes_up_by_one_from_the_acks_position() {
        let mut sequence = started_after(1030);
        assert_eq!(sequence.update(1031), Verdict::InOrder);
        assert_eq!(sequence.update(1032), Verdict::InOrder);
        assert_eq!(sequence.last(), Some(1032));
    }

    #[test]
    fn a_market_nobody_has_published_starts_at_one() {
        assert_eq!(started_after(0).update(1), Verdict::InOrder);
    }

    #[test]
    fn an_update_before_the_ack_is_wrong() {
        assert_eq!(Sequence::default().update(1), Verdict::BeforeAck);
    }

    #[test]
    fn a_hole_counts_what_was_skipped_and_only_once() {
        let mut sequence = started_after(10);
        assert_eq!(sequence.update(14), Verdict::Hole(3));
        assert_eq!(sequence.update(15), Verdict::InOrder);
    }

    #[test]
    fn the_same_update_again_is_a_duplicate() {
        let mut sequence = started_after(10);
        assert_eq!(sequence.update(11), Verdict::InOrder);
        assert_eq!(sequence.update(11), Verdict::Duplicate);
        assert_eq!(sequence.update(10), Verdict::Duplicate, "what the ack's position covers was not missed");
        assert_eq!(sequence.update(12), Verdict::InOrder);
    }

    #[test]
    fn a_late_update_is_a_reordering_and_the_second_time_a_duplicate() {
        let mut sequence = started_after(10);
        assert_eq!(sequence.update(14), Verdict::Hole(3));
        assert_eq!(sequence.update(12), Verdict::Reordered);
        assert_eq!(sequence.update(12), Verdict::Duplicate);
        assert_eq!(sequence.update(11), Verdict::Reordered);
        assert_eq!(sequence.update(13), Verdict::Reordered);
        assert_eq!(sequence.update(13), Verdict::Duplicate);
        assert_eq!(sequence.update(15), Verdict::InOrder);
    }

    #[test]
    fn a_snapshot_jumps_and_delivery_goes_on_from_there() {
        let mut sequence = started_after(10);
        sequence.start_after(500);
        assert_eq!(sequence.update(501), Verdict::InOrder);
        assert_eq!(sequence.update(500), Verdict::Duplicate);
    }
}
