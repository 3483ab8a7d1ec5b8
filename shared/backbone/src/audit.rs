//! Entries of a market's audit, and their ids.

use std::{fmt, str::FromStr};

use protocol::{ids::MarketId, position::Position};

use crate::StreamId;

/// One override as the audit keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditEntry {
    /// The entry's own id.
    pub id: AuditId,
    /// The position of the override's update in the log.
    pub position: Position,
    /// Unix milliseconds at which the override was accepted.
    pub ts: u64,
    /// The person or program that made the override: the `sub` of its token.
    pub actor: String,
    /// Why, in the actor's words.
    pub reason: String,
    /// The touched lines as they were, as a JSON object. A line that did not exist is absent.
    pub before: String,
    /// The payload as it was received.
    pub after: String,
    /// The id of the HTTP request that brought the override.
    pub request_id: String,
}

/// An audit entry's id, `<market>-<Unix ms>-<n>`. It is unique over all markets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AuditId {
    /// The market whose audit has the entry.
    pub market: MarketId,
    /// The entry's id in that market's audit stream.
    pub entry: StreamId,
}

impl fmt::Display for AuditId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.market, self.entry)
    }
}

impl FromStr for AuditId {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (market, entry) = text.split_once('-')?;
            Some(Self { market: market.parse().ok()?, entry: entry.parse().ok()? })
        };
        parse().ok_or("an audit id looks like 1001-1710001113000-0")
    }
}
