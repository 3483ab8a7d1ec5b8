//! Where something stands in a market's log.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::ids::parse_decimal;

/// Number of an update in its market's log: 1, 2, 3 … without holes; 0 means nothing yet (contract, section 1).
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
    /// Before the first update.
    pub const ZERO: Self = Self(0);

    /// The seq with this number.
    #[must_use]
    pub const fn new(value: u64) -> Self {
        Self(value)
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The one after this.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// How many updates lie between `earlier` and this one; 0 when `earlier` is not earlier.
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

/// One unbroken history of a market's log: Unix seconds of its creation; 0 = no log yet (contract, section 1).
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
    /// No log yet.
    pub const NONE: Self = Self(0);

    /// The epoch that began at these Unix seconds.
    #[must_use]
    pub const fn new(unix_seconds: u64) -> Self {
        Self(unix_seconds)
    }

    /// Unix seconds of the log's creation.
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

/// A place in a log. As text it is the Redis stream entry id, `<epoch>-<seq>` (contract, section 6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Position {
    /// Which history.
    pub epoch: Epoch,
    /// The last update at or before this place.
    pub seq: Seq,
}

impl Position {
    /// Before everything: a market that nobody has published yet.
    pub const ORIGIN: Self = Self { epoch: Epoch::NONE, seq: Seq::ZERO };

    /// The place of update `seq` of `epoch`.
    #[must_use]
    pub const fn new(epoch: u64, seq: u64) -> Self {
        Self { epoch: Epoch::new(epoch), seq: Seq::new(seq) }
    }

    /// Whether an update at `self` comes right after `before`, with nothing lost in between.
    ///
    /// The first log of a market continues the state "nothing yet".
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

/// A stream entry id that is not `<epoch>-<seq>`.
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
