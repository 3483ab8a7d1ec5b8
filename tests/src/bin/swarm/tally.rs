//! Everything the receiving thread counts.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;

use crate::markets::Markets;
use crate::message::{Position, Update};
use crate::sequence::{Sequence, Verdict};

/// Counts and times of all connections together, and the state of the checks.
pub(crate) struct Tally {
    /// What is subscribed to.
    pub(crate) markets: Markets,
    /// What clients have already of each market, by its index, when they resume instead of subscribing.
    offsets: Option<Vec<u64>>,
    sequences: Vec<Sequence>,
    /// Resumed markets whose missed updates come first.
    pub(crate) recovered: u64,
    /// What comes from then on is measured.
    pub(crate) measure_from_us: u64,

    /// Updates received, of anybody.
    pub(crate) deliveries: u64,
    /// Updates received since then.
    pub(crate) measured: u64,
    /// From intended to received, of those.
    pub(crate) latency: Times,
    /// When counting them began: at `measure_from_us`, or later if nothing was published until then.
    pub(crate) measured_from_us: u64,
    /// When the last measured one came.
    pub(crate) last_measured_us: u64,
    /// Broken promises about order and completeness.
    pub(crate) checks: Checks,

    /// Snapshots, and how many of them said `conflated` or `reset`.
    pub(crate) snapshots: u64,
    /// See `snapshots`.
    pub(crate) conflated: u64,
    /// See `snapshots`.
    pub(crate) resets: u64,
    /// `status` messages with `stale: true`.
    pub(crate) stale: u64,
    /// `error` messages by code.
    pub(crate) errors: BTreeMap<String, u64>,
    /// Connections that ended, by reason.
    pub(crate) ended: BTreeMap<String, u64>,

    /// `ping` messages received.
    pub(crate) ping_messages: u64,
    /// Ping frames received.
    pub(crate) ping_frames: u64,
    /// Heartbeats answered.
    pub(crate) answered: u64,
    /// From `ping` sent to `pong` received.
    pub(crate) round_trip: Times,
    /// From connect to 101.
    pub(crate) handshake: Times,
    /// From subscribe to ack.
    pub(crate) subscribe: Times,
}

/// Violations of the contract's section 3, rules 1 and 2.
#[derive(Debug, Default, Clone, serde::Serialize)]
pub(crate) struct Checks {
    /// Updates that were skipped and did not come later.
    pub(crate) holes: u64,
    /// Updates that came again.
    pub(crate) duplicates: u64,
    /// Updates that came after a later one.
    pub(crate) reordered: u64,
    /// Updates before the ack, or for a market that is not subscribed to.
    pub(crate) unexpected: u64,
    /// Snapshots that went back without `reset`.
    pub(crate) backward: u64,
    /// What was wrong first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) first: Option<String>,
}

impl Checks {
    /// How many promises were broken.
    pub(crate) fn broken(&self) -> u64 {
        self.holes + self.duplicates + self.reordered + self.unexpected + self.backward
    }

    /// What to say when one was.
    pub(crate) fn failure(&self) -> Option<String> {
        let first = self.first.as_deref().unwrap_or_default();
        let broken = self.broken();
        (broken > 0).then(|| format!("{broken} updates out of order, doubled or skipped; first: {first}"))
    }
}

impl Tally {
    /// Nothing counted yet; nothing is measured until `measure_from_us` is set.
    pub(crate) fn new(markets: Markets, connections: usize) -> Self {
        Self {
            markets,
            offsets: None,
            recovered: 0,
            sequences: vec![Sequence::default(); connections * markets.per_connection],
            measure_from_us: u64::MAX,
            deliveries: 0,
            measured: 0,
            latency: Times::default(),
            measured_from_us: 0,
            last_measured_us: 0,
            checks: Checks::default(),
            snapshots: 0,
            conflated: 0,
            resets: 0,
            stale: 0,
            errors: BTreeMap::new(),
            ended: BTreeMap::new(),
            ping_messages: 0,
            ping_frames: 0,
            answered: 0,
            round_trip: Times::default(),
            handshake: Times::default(),
            subscribe: Times::default(),
        }
    }

    /// The same for clients that resume, after these offsets by market index.
    pub(crate) fn resuming(markets: Markets, connections: usize, offsets: Vec<u64>) -> Self {
        Self { offsets: Some(offsets), ..Self::new(markets, connections) }
    }

    /// Whether clients resume instead of subscribing.
    pub(crate) fn is_resuming(&self) -> bool {
        self.offsets.is_some()
    }

    /// The offset from which clients resume a market; `None` when they subscribe.
    pub(crate) fn offset(&self, market: u64) -> Option<u64> {
        self.offsets.as_ref()?.get(self.markets.index(market)?).copied()
    }

    /// Notes where a connection's delivery of a market starts. `false`: it has not subscribed to it.
    pub(crate) fn start(&mut self, connection: usize, market: u64, position: Position) -> bool {
        let Some(slot) = self.markets.slot(connection, market) else { return false };
        let recovered = self.offset(market).filter(|_| position.recovered == Some(true));
        self.recovered += u64::from(recovered.is_some());
        self.sequences[slot].start_after(recovered.unwrap_or(position.seq));
        true
    }

    /// Begins to measure anew, with what comes from then on.
    pub(crate) fn measure_anew(&mut self, from_us: u64) {
        self.measure_from_us = from_us;
        self.measured = 0;
        self.latency = Times::default();
    }

    /// Checks and counts an update.
    pub(crate) fn update(&mut self, connection: usize, update: Update, now_us: u64) {
        let Update { market, seq, intended_us } = update;
        self.deliveries += 1;
        if now_us >= self.measure_from_us {
            if self.measured == 0 {
                self.measured_from_us = intended_us.unwrap_or(now_us).max(self.measure_from_us);
            }
            self.measured += 1;
            self.last_measured_us = now_us;
            if let Some(intended_us) = intended_us {
                self.latency.record(now_us.saturating_sub(intended_us));
            }
        }
        let Some(slot) = self.markets.slot(connection, market) else {
            self.checks.unexpected += 1;
            return self.first(connection, market, seq, "not subscribed");
        };
        let sequence = &mut self.sequences[slot];
        let before = sequence.last();
        match sequence.update(seq) {
            Verdict::InOrder => return,
            Verdict::Hole(skipped) => self.checks.holes += skipped,
            Verdict::Duplicate => self.checks.duplicates += 1,
            Verdict::Reordered => {
                self.checks.holes -= 1;
                self.checks.reordered += 1;
            }
            Verdict::BeforeAck => self.checks.unexpected += 1,
        }
        let before = before.map_or_else(|| "no ack".to_owned(), |last| format!("seq {last}"));
        self.first(connection, market, seq, &format!("after {before}"));
    }

    /// Notes a snapshot: delivery goes on from its `seq`.
    pub(crate) fn snapshot(
        &mut self,
        connection: usize,
        market: u64,
        seq: u64,
        reset: bool,
        conflated: bool,
    ) {
        self.snapshots += 1;
        self.resets += u64::from(reset);
        self.conflated += u64::from(conflated);
        let Some(slot) = self.markets.slot(connection, market) else {
            self.checks.unexpected += 1;
            return self.first(connection, market, seq, "a snapshot, not subscribed");
        };
        if let Some(last) = self.sequences[slot].last().filter(|&last| seq < last && !reset) {
            self.checks.backward += 1;
            self.first(connection, market, seq, &format!("a snapshot after seq {last}"));
        }
        self.sequences[slot].start_after(seq);
    }

    /// How many updates the given connections have not got of those up to `tops` (by market index).
    pub(crate) fn undelivered(&self, connections: impl Iterator<Item = usize>, tops: &[u64]) -> u64 {
        connections
            .flat_map(|connection| self.markets.of(connection).map(move |market| (connection, market)))
            .filter_map(|(connection, market)| {
                let top = tops[self.markets.index(market)?];
                let last = self.sequences[self.markets.slot(connection, market)?].last()?;
                Some(top.saturating_sub(last))
            })
            .sum()
    }

    fn first(&mut self, connection: usize, market: u64, seq: u64, what: &str) {
        self.checks
            .first
            .get_or_insert_with(|| format!("connection {connection}, market {market}: seq {seq}, {what}"));
    }
}

/// Times in microseconds, in a histogram of three significant digits that reaches ten minutes.
#[derive(Clone)]
pub(crate) struct Times(Histogram<u64>);

impl Times {
    const HIGHEST_US: u64 = 600_000_000;

    /// Adds one time.
    pub(crate) fn record(&mut self, us: u64) {
        self.0.saturating_record(us);
    }

    /// Adds all of another's times.
    pub(crate) fn add(&mut self, other: &Self) {
        self.0.add(&other.0).expect("all have the same bounds");
    }

    /// The histogram itself.
    pub(crate) fn histogram(&self) -> &Histogram<u64> {
        &self.0
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

    fn tally() -> Tally {
        let mut tally = Tally::new(Markets { first: 1, count: 4, per_connection: 2 }, 2);
        for (connection, market) in [(0, 1), (0, 2), (1, 3), (1, 4)] {
            assert!(tally.start(connection, market, Position { seq: 10, recovered: None }));
        }
        tally
    }

    fn update(market: u64, seq: u64, intended_us: u64) -> Update {
        Update { market, seq, intended_us: Some(intended_us) }
    }

    #[test]
    fn connections_and_markets_are_checked_apart() {
        let mut tally = tally();
        tally.update(0, update(1, 11, 0), 0);
        tally.update(0, update(2, 11, 0), 0);
        tally.update(1, update(3, 11, 0), 0);
        assert_eq!((tally.deliveries, tally.checks.broken()), (3, 0));
    }

    #[test]
    fn what_is_recovered_comes_from_the_offset_on_and_what_is_not_from_the_top() {
        let markets = Markets { first: 1, count: 2, per_connection: 2 };
        let mut tally = Tally::resuming(markets, 1, vec![8, 8]);
        tally.start(0, 1, Position { seq: 10, recovered: Some(true) });
        tally.start(0, 2, Position { seq: 10, recovered: Some(false) });
        assert_eq!((tally.recovered, tally.undelivered([0].into_iter(), &[10, 10])), (1, 2));
        tally.update(0, update(1, 9, 0), 0);
        tally.update(0, update(1, 10, 0), 0);
        tally.update(0, update(2, 11, 0), 0);
        assert_eq!((tally.checks.broken(), tally.undelivered([0].into_iter(), &[10, 11])), (0, 0));
    }

    #[test]
    fn a_late_update_fills_its_hole_and_counts_as_reordered() {
        let mut tally = tally();
        tally.update(0, update(1, 13, 0), 0);
        assert_eq!(tally.checks.holes, 2);
        tally.update(0, update(1, 12, 0), 0);
        assert_eq!((tally.checks.holes, tally.checks.reordered), (1, 1));
        assert_eq!(tally.checks.first.as_deref(), Some("connection 0, market 1: seq 13, after seq 10"));
    }

    #[test]
    fn an_update_for_a_strangers_market_is_unexpected() {
        let mut tally = tally();
        tally.update(0, update(3, 11, 0), 0);
        tally.update(0, update(77, 11, 0), 0);
        assert_eq!(tally.checks.unexpected, 2);
    }

    #[test]
    fn only_what_comes_in_the_measured_time_is_measured() {
        let mut tally = tally();
        tally.measure_from_us = 1_000;
        tally.update(0, update(1, 11, 800), 900);
        tally.update(0, update(1, 12, 999), 1_500);
        tally.update(0, update(1, 13, 1_000), 1_600);
        assert_eq!((tally.deliveries, tally.measured), (3, 2));
        assert_eq!((tally.measured_from_us, tally.last_measured_us), (1_000, 1_600));
        assert_eq!((tally.latency.histogram().min(), tally.latency.histogram().max()), (501, 600));
    }

    #[test]
    fn what_never_arrived_is_counted_against_the_published_tops() {
        let mut tally = tally();
        tally.update(0, update(1, 11, 0), 0);
        assert_eq!(tally.undelivered([0, 1].into_iter(), &[12, 10, 15, 0]), 1 + 5);
        tally.snapshot(1, 3, 15, false, true);
        assert_eq!(tally.undelivered([0, 1].into_iter(), &[12, 10, 15, 0]), 1);
        assert_eq!((tally.conflated, tally.checks.broken()), (1, 0));
    }

    #[test]
    fn a_snapshot_may_go_back_only_as_a_reset() {
        let mut tally = tally();
        tally.snapshot(0, 1, 3, true, false);
        assert_eq!(tally.checks.broken(), 0);
        tally.snapshot(0, 1, 2, false, false);
        assert_eq!(tally.checks.backward, 1);
    }
}
