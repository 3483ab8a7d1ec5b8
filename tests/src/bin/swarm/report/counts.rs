//! Everything that the receiving thread counts.

use std::{collections::BTreeMap, ops::Range};

use super::figure::{Figure, per_second};
use super::{delivery_check::DeliveryCheck, table::Report, times::Times};
use crate::markets::Markets;

/// Counts and times of all connections together.
#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) check: DeliveryCheck,
    pub(crate) deliveries: u64,
    /// When updates are measured.
    window_us: Range<u64>,
    /// Updates received in that time.
    pub(crate) measured: u64,
    /// From due to received, of those and of later ones.
    pub(crate) latency: Times,
    /// When the first and the last measured update came, or the first was due if that is in the window.
    measured_us: Range<u64>,
    pub(crate) snapshots: u64,
    pub(crate) conflated: u64,
    pub(crate) resets: u64,
    /// `status` messages with `stale: true`.
    pub(crate) stale: u64,
    /// `error` and `bye` messages by code.
    pub(crate) errors: BTreeMap<String, u64>,
    /// Connections that ended, by reason.
    pub(crate) ended: BTreeMap<String, u64>,
    pub(crate) ping_messages: u64,
    pub(crate) ping_frames: u64,
    /// Heartbeats replied to.
    pub(crate) pongs: u64,
    /// From `ping` sent to `pong` received.
    pub(crate) round_trip: Times,
    /// From connect to 101.
    pub(crate) handshake: Times,
    /// From subscribe to ack.
    pub(crate) subscribe: Times,
}

impl Counts {
    /// Counts of clients that subscribe. Nothing is measured before [`Self::measure`].
    pub(crate) fn new(markets: Markets, connections: usize) -> Self {
        let check = DeliveryCheck::new(markets, connections, None);
        Self { check, window_us: u64::MAX..u64::MAX, ..Self::default() }
    }

    /// Counts of clients that resume after these offsets, by market index.
    pub(crate) fn resuming(markets: Markets, connections: usize, offsets: Vec<u64>) -> Self {
        let check = DeliveryCheck::new(markets, connections, Some(offsets));
        Self { check, ..Self::new(markets, connections) }
    }

    /// Measures in this time, and forgets what was measured before.
    pub(crate) fn measure(&mut self, window_us: Range<u64>) {
        self.window_us = window_us;
        self.measured = 0;
        self.latency = Times::default();
    }

    pub(crate) fn measured_for_us(&self) -> u64 {
        self.measured_us.end.saturating_sub(self.measured_us.start)
    }

    /// Checks and counts an update, with the time at which it was due if a swarm sent it.
    pub(crate) fn update(
        &mut self,
        connection: usize,
        (market, seq): (u64, u64),
        due_us: Option<u64>,
        now_us: u64,
    ) {
        self.deliveries += 1;
        if let Some(due_us) = due_us.filter(|_| now_us >= self.window_us.start) {
            self.latency.record(now_us.saturating_sub(due_us));
        }
        if self.window_us.contains(&now_us) {
            if self.measured == 0 {
                self.measured_us.start = due_us.unwrap_or(now_us).max(self.window_us.start);
            }
            self.measured += 1;
            self.measured_us.end = now_us;
        }
        self.check.update(connection, market, seq);
    }

    /// What was wrong, in words.
    pub(crate) fn failures(&self) -> impl Iterator<Item = String> {
        let ended = (!self.ended.is_empty()).then(|| format!("connections ended: {:?}", self.ended));
        self.check.failure().into_iter().chain(ended)
    }

    /// Adds how long these clients took to connect and to subscribe.
    pub(crate) fn report_ramp(&self, report: &mut Report, live: usize, took_us: u64) {
        let per_second = per_second(live as u64, took_us);
        let connected = [("", live.into()), ("in", Figure::Time(took_us)), ("per second", per_second.into())];
        report.row("connected", connected);
        report.times("handshake", &self.handshake);
        report.times("subscribe to ack", &self.subscribe);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_comes_in_the_measured_time_is_measured() {
        let mut counts = Counts::new(Markets { first: 1, ..Markets::new(1, 1) }, 1);
        counts.measure(1_000..1_700);
        for (seq, due_us, now_us) in
            [(11, 800, 900), (12, 999, 1_500), (13, 1_000, 1_600), (14, 1_600, 1_700)]
        {
            counts.update(0, (1, seq), Some(due_us), now_us);
        }
        assert_eq!((counts.deliveries, counts.measured), (4, 2));
        assert_eq!(counts.measured_us, 1_000..1_600);
        let latency: Vec<_> = counts.latency.figures().iter().map(|(_, figure)| figure.to_string()).collect();
        assert_eq!(latency, ["501 µs", "600 µs", "600 µs", "600 µs", "600 µs", "3"]);
    }
}
