//! Positions in a market's log: epoch and seq (`docs/protocol.md#terms`).

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::ids::parse_decimal;

/// An update's number in its market's log: 1, 2, 3 … without holes. 0 means that there is no update yet.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema,
)]
#[serde(transparent)]
#[schema(
    description = "An update's number in its market: 1, 2, 3 … without holes; 0: nothing yet.",
    example = 1025
)]
pub struct Seq(u64);

impl Seq {
    /// The seq before the first update.
    pub const ZERO: Self = Self(0);

    /// Makes a seq of a number.
    #[must_use]
    pub const fn new(value: u64) -> Self {
        Self(value)
    }

    /// Returns the number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Returns the seq after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// Returns the number of updates from `earlier` to this one; 0 if `earlier` is not earlier.
    #[must_use]
    pub const fn distance_from(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One unbroken history of a market's log: the Unix second in which it began. 0 means that there is no log yet.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema,
)]
#[serde(transparent)]
#[schema(
    description = "One unbroken history of a market's log: the Unix second in which it began; 0: no log yet.",
    example = 1_710_000_000
)]
pub struct Epoch(u64);

impl Epoch {
    /// The epoch of a market without a log.
    pub const NONE: Self = Self(0);

    /// Makes the epoch that began at these Unix seconds.
    #[must_use]
    pub const fn new(unix_seconds: u64) -> Self {
        Self(unix_seconds)
    }

    /// Returns the Unix seconds of the log's beginning.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An update's position in its market's log. As text it is the id of a Redis stream entry, `<epoch>-<seq>`
/// (`docs/protocol.md#redis-keys`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Position {
    /// The log's epoch.
    pub epoch: Epoch,
    /// The update's seq; 0 before the first.
    pub seq: Seq,
}

impl Position {
    /// The position of a market that has never been published.
    pub const ORIGIN: Self = Self { epoch: Epoch::NONE, seq: Seq::ZERO };

    /// Makes the position of update `seq` of `epoch`.
    #[must_use]
    pub const fn new(epoch: u64, seq: u64) -> Self {
        Self { epoch: Epoch::new(epoch), seq: Seq::new(seq) }
    }

    /// Returns true if `self` is the next position after `before`, so that no update is missing between them.
    ///
    /// The first update of a market's first log follows [`Position::ORIGIN`].
    #[must_use]
    pub fn follows(self, before: Self) -> bool {
        self.seq == before.seq.next() && (self.epoch == before.epoch || before == Self::ORIGIN)
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.epoch, self.seq)
    }
}

/// A text is not `<epoch>-<seq>`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a log position: expected <epoch>-<seq>")]
pub struct InvalidPosition(pub String);

impl FromStr for Position {
    type Err = InvalidPosition;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (epoch, seq) = text.split_once('-')?;
            Some(Self::new(parse_decimal(epoch)?, parse_decimal(seq)?))
        };
        parse().ok_or_else(|| InvalidPosition(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_entry_id_round_trips(epoch: u64, seq: u64) {
            let position = Position::new(epoch, seq);
            prop_assert_eq!(position.to_string().parse::<Position>().unwrap(), position);
        }

        #[test]
        fn order_is_the_stream_s_order(a: (u64, u64), b: (u64, u64)) {
            prop_assert_eq!(Position::new(a.0, a.1).cmp(&Position::new(b.0, b.1)), a.cmp(&b));
        }
    }

    #[test]
    fn only_the_next_of_the_same_history_follows() {
        assert!(Position::new(7, 3).follows(Position::new(7, 2)));
        assert!(!Position::new(7, 4).follows(Position::new(7, 2)));
        assert!(!Position::new(8, 3).follows(Position::new(7, 2)));
        assert!(Position::new(7, 1).follows(Position::ORIGIN));
        assert!(!Position::new(7, 31).follows(Position::ORIGIN));
        for text in ["1", "1-", "-1", "1-01", "a-b", "1-2-3", "+1-2"] {
            assert!(text.parse::<Position>().is_err(), "{text:?}");
        }
    }
}
