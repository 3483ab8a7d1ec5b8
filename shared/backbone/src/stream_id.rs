//! The ids of entries in the audit and revocation streams.

use std::{fmt, str::FromStr};

use protocol::ids::parse_decimal;

/// The id of an audit entry or a revocation: the Unix millisecond at which it was added, and a number within that
/// millisecond.
///
/// The entries of a market's log have no such id: they have a [`protocol::Position`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId {
    /// Unix milliseconds.
    pub ms: u64,
    /// The entry's number among those of the same millisecond, from 0.
    pub n: u64,
}

impl StreamId {
    /// The lowest id. No entry has it.
    pub const ZERO: Self = Self { ms: 0, n: 0 };
    /// The highest id.
    pub const MAX: Self = Self { ms: u64::MAX, n: u64::MAX };
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.ms, self.n)
    }
}

/// The text is not `<ms>-<n>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a stream entry's id is written <ms>-<n>")]
pub struct InvalidStreamId;

impl FromStr for StreamId {
    type Err = InvalidStreamId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (ms, n) = text.split_once('-')?;
            Some(Self { ms: parse_decimal(ms)?, n: parse_decimal(n)? })
        };
        parse().ok_or(InvalidStreamId)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_stream_id_round_trips_and_orders_as_redis_does(a: (u64, u64), b: (u64, u64)) {
            let id = |(ms, n)| StreamId { ms, n };
            prop_assert_eq!(id(a).to_string().parse::<StreamId>(), Ok(id(a)));
            prop_assert_eq!(id(a).cmp(&id(b)), a.cmp(&b));
        }
    }

    #[test]
    fn an_id_has_only_one_spelling() {
        for text in ["1", "1-", "-1", "01-1", "1-2-3", "+1-2", "1710001113000-x"] {
            assert!(text.parse::<StreamId>().is_err(), "{text:?}");
        }
    }
}
