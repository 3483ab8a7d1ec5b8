//! Which connection subscribes to which markets.

use std::fmt;

/// `count` markets from `first` on. Every connection subscribes to `per_connection` neighbours, wrapping around. The
/// next connection starts where it ended, so that all markets get about the same number of subscribers.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Markets {
    pub(crate) first: u64,
    pub(crate) count: usize,
    /// At most `count`.
    pub(crate) per_connection: usize,
}

/// The default of `--first-market`, far from the markets that people bet on.
pub(crate) const FIRST_MARKET: u64 = 900_000_001;

impl Markets {
    pub(crate) fn new(count: usize, per_connection: usize) -> Self {
        Self { first: FIRST_MARKET, count, per_connection }
    }

    /// The id of the market with this index, counted from 0 and wrapping around.
    pub(crate) fn id(&self, index: usize) -> u64 {
        self.first + (index % self.count) as u64
    }

    /// The index of a market id, if it is one of these.
    pub(crate) fn index(&self, market: u64) -> Option<usize> {
        let index = usize::try_from(market.checked_sub(self.first)?).ok()?;
        (index < self.count).then_some(index)
    }

    pub(crate) fn of(&self, connection: usize) -> impl Iterator<Item = u64> {
        let start = self.start(connection);
        (start..start + self.per_connection).map(|index| self.id(index))
    }

    /// The index of a market among all subscriptions of all connections; `None` if the connection has not subscribed
    /// to it.
    pub(crate) fn slot(&self, connection: usize, market: u64) -> Option<usize> {
        let start = self.start(connection);
        let index = self.index(market)?;
        let offset = if index >= start { index - start } else { index + self.count - start };
        (offset < self.per_connection).then_some(connection * self.per_connection + offset)
    }

    fn start(&self, connection: usize) -> usize {
        connection * self.per_connection % self.count
    }
}

impl fmt::Display for Markets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} markets each", self.per_connection, self.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_market_has_its_own_slot_and_strangers_have_none() {
        for (count, per_connection) in [(1, 1), (5, 3), (7, 7), (10, 4)] {
            let markets = Markets { first: 1001, ..Markets::new(count, per_connection) };
            let mut slots = Vec::new();
            for connection in 0..9 {
                slots.extend(markets.of(connection).map(|market| markets.slot(connection, market).unwrap()));
                let known = (0..2000).filter(|market| markets.slot(connection, *market).is_some()).count();
                assert_eq!(known, per_connection);
            }
            assert_eq!(slots, (0..9 * per_connection).collect::<Vec<_>>());
        }
    }

    #[test]
    fn subscribers_are_spread_evenly() {
        let markets = Markets::new(10, 3);
        let mut subscribers = [0; 10];
        let all = (0..10).flat_map(|connection| markets.of(connection));
        all.for_each(|id| subscribers[markets.index(id).unwrap()] += 1);
        assert_eq!(subscribers, [3; 10]);
    }
}
