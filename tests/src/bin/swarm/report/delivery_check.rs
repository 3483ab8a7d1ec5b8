//! Checks that every connection gets every update of its markets once and in order (docs/protocol.md#rules).

use std::ops::RangeInclusive;

use crate::markets::Markets;

/// The sequences of all subscriptions of all connections, and what was wrong with them.
#[derive(Default)]
pub(crate) struct DeliveryCheck {
    pub(crate) markets: Markets,
    /// By market index: what clients that resume have already. `None`: they subscribe.
    offsets: Option<Vec<u64>>,
    sequences: Vec<Sequence>,
    /// Resumed markets whose missed updates come first.
    pub(crate) recovered: u64,
    /// Updates that were skipped and did not come later.
    pub(crate) holes: u64,
    pub(crate) duplicates: u64,
    /// Updates that came after a later one.
    pub(crate) reordered: u64,
    /// Updates before the ack, or of a market without a subscription.
    pub(crate) unexpected: u64,
    /// Snapshots that went back without `reset`.
    pub(crate) backward: u64,
    /// The first of these faults.
    pub(crate) first: Option<String>,
}

impl DeliveryCheck {
    /// For connections that subscribe or, with offsets by market index, resume.
    pub(crate) fn new(markets: Markets, connections: usize, offsets: Option<Vec<u64>>) -> Self {
        let sequences = vec![Sequence::default(); connections * markets.per_connection];
        Self { markets, offsets, sequences, ..Self::default() }
    }

    pub(crate) fn is_resuming(&self) -> bool {
        self.offsets.is_some()
    }

    /// The offset from which clients resume a market; `None` when they subscribe.
    pub(crate) fn offset(&self, market: u64) -> Option<u64> {
        self.offsets.as_ref()?.get(self.markets.index(market)?).copied()
    }

    /// Notes the position of an ack. Returns false if the connection has not subscribed to the market.
    pub(crate) fn start(&mut self, connection: usize, market: u64, seq: u64, recovered: bool) -> bool {
        let Some(slot) = self.markets.slot(connection, market) else { return false };
        let offset = self.offset(market).filter(|_| recovered);
        self.recovered += u64::from(offset.is_some());
        self.sequences[slot].start_after(offset.unwrap_or(seq));
        true
    }

    pub(crate) fn update(&mut self, connection: usize, market: u64, seq: u64) {
        let Some(slot) = self.markets.slot(connection, market) else {
            self.unexpected += 1;
            return self.fault(connection, market, seq, "not subscribed");
        };
        let sequence = &mut self.sequences[slot];
        let before = sequence.last;
        match sequence.update(seq) {
            Verdict::InOrder => return,
            Verdict::Hole(skipped) => self.holes += skipped,
            Verdict::Duplicate => self.duplicates += 1,
            Verdict::Reordered => {
                self.holes -= 1;
                self.reordered += 1;
            }
            Verdict::BeforeAck => self.unexpected += 1,
        }
        let before = before.map_or_else(|| "no ack".to_owned(), |last| format!("seq {last}"));
        self.fault(connection, market, seq, &format!("after {before}"));
    }

    /// Notes a snapshot: delivery continues from its `seq`.
    pub(crate) fn snapshot(&mut self, connection: usize, market: u64, seq: u64, reset: bool) {
        let Some(slot) = self.markets.slot(connection, market) else {
            self.unexpected += 1;
            return self.fault(connection, market, seq, "a snapshot, not subscribed");
        };
        if let Some(last) = self.sequences[slot].last.filter(|&last| seq < last && !reset) {
            self.backward += 1;
            self.fault(connection, market, seq, &format!("a snapshot after seq {last}"));
        }
        self.sequences[slot].start_after(seq);
    }

    /// How many updates these connections miss of those up to `latest` (by market index), where that is known.
    pub(crate) fn undelivered(&self, connections: impl Iterator<Item = usize>, latest: &[u64]) -> u64 {
        connections
            .flat_map(|connection| self.markets.of(connection).map(move |market| (connection, market)))
            .filter_map(|(connection, market)| {
                let latest = *latest.get(self.markets.index(market)?)?;
                let last = self.sequences[self.markets.slot(connection, market)?].last?;
                Some(latest.saturating_sub(last))
            })
            .sum()
    }

    pub(crate) fn broken(&self) -> u64 {
        self.holes + self.duplicates + self.reordered + self.unexpected + self.backward
    }

    pub(crate) fn failure(&self) -> Option<String> {
        let (broken, first) = (self.broken(), self.first.as_deref().unwrap_or_default());
        (broken > 0).then(|| format!("{broken} updates out of order, doubled or skipped; first: {first}"))
    }

    fn fault(&mut self, connection: usize, market: u64, seq: u64, what: &str) {
        self.first
            .get_or_insert_with(|| format!("connection {connection}, market {market}: seq {seq}, {what}"));
    }
}

/// The updates of one subscription: `seq` must go up by exactly 1 from the ack's position, or jump through a snapshot.
#[derive(Debug, Default, Clone)]
struct Sequence {
    /// The `seq` of the newest update or snapshot; `None` before the ack.
    last: Option<u64>,
    /// Skipped numbers, to tell a late update from a duplicate. Empty (and unallocated) unless something is wrong.
    missing: Vec<RangeInclusive<u64>>,
}

#[derive(Debug, PartialEq, Eq, Clone, Copy)]
enum Verdict {
    InOrder,
    Hole(u64),
    /// It came before, or is not above the position at which the subscription started.
    Duplicate,
    Reordered,
    BeforeAck,
}

impl Sequence {
    /// After the position of an ack or the `seq` of a snapshot, the next number is expected.
    fn start_after(&mut self, seq: u64) {
        *self = Self { last: Some(seq), missing: Vec::new() };
    }

    /// Judges an update. A hole is reported once; counting goes on from the update that revealed it.
    fn update(&mut self, seq: u64) -> Verdict {
        let Some(last) = self.last else { return Verdict::BeforeAck };
        if seq <= last {
            return if self.take_missing(seq) { Verdict::Reordered } else { Verdict::Duplicate };
        }
        self.last = Some(seq);
        if seq == last + 1 {
            return Verdict::InOrder;
        }
        self.missing.push(last + 1..=seq - 1);
        Verdict::Hole(seq - last - 1)
    }

    fn take_missing(&mut self, seq: u64) -> bool {
        let Some(at) = self.missing.iter().position(|range| range.contains(&seq)) else { return false };
        let (start, end) = self.missing.swap_remove(at).into_inner();
        let rest = [start..=seq.saturating_sub(1), seq + 1..=end];
        self.missing.extend(rest.into_iter().filter(|rest| !rest.is_empty()));
        true
    }
}

#[cfg(test)]
mod tests {
    use Verdict::{BeforeAck, Duplicate, Hole, InOrder, Reordered};

    use super::*;

    #[test]
    fn seq_goes_up_by_one_from_the_acks_position() {
        for (start, updates) in [
            (None, &[(1, BeforeAck)][..]),
            // A market without updates starts at one.
            (Some(0), &[(1, InOrder)]),
            (Some(1030), &[(1031, InOrder), (1032, InOrder)]),
            // A hole counts what was skipped, and only once.
            (Some(10), &[(14, Hole(3)), (15, InOrder)]),
            // What the ack's position covers was not missed.
            (Some(10), &[(11, InOrder), (11, Duplicate), (10, Duplicate), (12, InOrder)]),
            // A late update is a reordering, and the second time a duplicate.
            (Some(10), &[(14, Hole(3)), (12, Reordered), (12, Duplicate), (11, Reordered), (13, Reordered)]),
            (Some(10), &[(12, Hole(1)), (11, Reordered), (11, Duplicate), (13, InOrder)]),
        ] {
            let mut sequence = Sequence { last: start, missing: Vec::new() };
            for &(seq, verdict) in updates {
                assert_eq!(sequence.update(seq), verdict, "{seq} in {updates:?} after {start:?}");
            }
        }
    }

    #[test]
    fn a_snapshot_jumps_and_delivery_goes_on_from_there() {
        let mut sequence = Sequence::default();
        sequence.start_after(10);
        sequence.start_after(500);
        assert_eq!([sequence.update(501), sequence.update(500)], [InOrder, Duplicate]);
    }

    /// Two connections with two of four markets each, at seq 10.
    fn check() -> DeliveryCheck {
        let mut check = DeliveryCheck::new(Markets { first: 1, ..Markets::new(4, 2) }, 2, None);
        for (connection, market) in [(0, 1), (0, 2), (1, 3), (1, 4)] {
            assert!(check.start(connection, market, 10, false));
        }
        check
    }

    #[test]
    fn connections_and_markets_are_checked_apart() {
        let mut check = check();
        for (connection, market) in [(0, 1), (0, 2), (1, 3)] {
            check.update(connection, market, 11);
        }
        assert_eq!(check.broken(), 0);
    }

    #[test]
    fn recovered_markets_continue_from_the_offset_and_others_from_the_acks_position() {
        let markets = Markets { first: 1, ..Markets::new(2, 2) };
        let mut check = DeliveryCheck::new(markets, 1, Some(vec![8, 8]));
        check.start(0, 1, 10, true);
        check.start(0, 2, 10, false);
        assert_eq!((check.recovered, check.undelivered(0..1, &[10, 10])), (1, 2));
        for (market, seq) in [(1, 9), (1, 10), (2, 11)] {
            check.update(0, market, seq);
        }
        assert_eq!((check.broken(), check.undelivered(0..1, &[10, 11])), (0, 0));
    }

    #[test]
    fn a_late_update_fills_its_hole_and_counts_as_reordered() {
        let mut check = check();
        check.update(0, 1, 13);
        assert_eq!(check.holes, 2);
        check.update(0, 1, 12);
        assert_eq!((check.holes, check.reordered), (1, 1));
        assert_eq!(check.first.as_deref(), Some("connection 0, market 1: seq 13, after seq 10"));
    }

    #[test]
    fn an_update_for_a_strangers_market_is_unexpected() {
        let mut check = check();
        check.update(0, 3, 11);
        check.update(0, 77, 11);
        assert_eq!(check.unexpected, 2);
    }

    #[test]
    fn what_never_arrived_is_counted_against_what_was_published() {
        let mut check = check();
        check.update(0, 1, 11);
        assert_eq!(check.undelivered(0..2, &[12, 10, 15, 0]), 1 + 5);
        check.snapshot(1, 3, 15, false);
        assert_eq!((check.undelivered(0..2, &[12, 10, 15, 0]), check.broken()), (1, 0));
    }

    #[test]
    fn a_snapshot_may_go_back_only_as_a_reset() {
        let mut check = check();
        check.snapshot(0, 1, 3, true);
        assert_eq!(check.broken(), 0);
        check.snapshot(0, 1, 2, false);
        assert_eq!(check.backward, 1);
    }
}
