//! The positions that a publisher remembers.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
};

use protocol::{ids::MarketId, position::Position};

/// Remembers the highest position that was seen in each market's log: one entry per market.
///
/// A log whose latest position is lower has lost history (`append.lua`).
#[derive(Default)]
pub(super) struct Remembered {
    positions: Mutex<HashMap<MarketId, Position>>,
    /// Markets whose position has increased since [`Self::take_changed`].
    changed: Mutex<BTreeSet<MarketId>>,
}

impl Remembered {
    /// Remembers a position unless a higher one is known. Returns true if the market is new.
    pub(super) fn record(&self, market: MarketId, position: Position) -> bool {
        let mut positions = self.positions();
        let known = positions.get(&market).copied();
        if known.is_none_or(|known| known < position) {
            positions.insert(market, position);
            self.changed().insert(market);
        }
        known.is_none()
    }

    /// Returns the remembered position of a market; [`Position::ORIGIN`] if there is none.
    pub(super) fn position(&self, market: MarketId) -> Position {
        self.positions().get(&market).copied().unwrap_or(Position::ORIGIN)
    }

    /// Returns every remembered market with its position.
    pub(super) fn all(&self) -> Vec<(MarketId, Position)> {
        self.positions().iter().map(|(market, position)| (*market, *position)).collect()
    }

    /// Returns every remembered market.
    pub(super) fn markets(&self) -> Vec<MarketId> {
        self.positions().keys().copied().collect()
    }

    /// Takes the markets whose position has increased since the last call.
    pub(super) fn take_changed(&self) -> BTreeSet<MarketId> {
        std::mem::take(&mut *self.changed())
    }

    fn positions(&self) -> MutexGuard<'_, HashMap<MarketId, Position>> {
        self.positions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self) -> MutexGuard<'_, BTreeSet<MarketId>> {
        self.changed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
