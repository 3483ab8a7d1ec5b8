//! What reads of logs return.

use protocol::{
    ids::MarketId,
    position::Position,
    update::{MarketState, Update},
};

use crate::BackboneError;

/// A section of a log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogPage {
    /// The log's latest position at that moment; [`Position::ORIGIN`] if the log is empty.
    pub latest: Position,
    /// Consecutive updates, oldest first.
    pub updates: Vec<Update>,
}

/// What a read of several logs brought.
#[derive(Debug, Default)]
pub struct Tails {
    /// New updates by market. A market without any is left out.
    pub updates: Vec<(MarketId, Vec<Update>)>,
    /// Markets that could not be read now.
    pub unread: Vec<MarketId>,
    /// Why these could not be read.
    pub error: Option<BackboneError>,
}

/// A market's state and recent history.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loaded {
    /// Every line as last set.
    pub state: MarketState,
    /// The updates that led to the state, oldest first and without a hole. The last one has the state's position.
    pub updates: Vec<Update>,
}
