//! Who overrode what, and how it was before (contract, section 5).

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use shared::{
    Epoch, MarketId, Seq,
    backbone::{AuditEntry, AuditId, Backbone, BackboneError},
    ids::InvalidMarketId,
};
use tokio::time::timeout;

/// Entries of a page when the query does not say.
pub const DEFAULT_LIMIT: usize = 50;
/// The most entries of a page.
pub const MAX_LIMIT: usize = 500;
/// How long the backbone may take.
const READ_TIMEOUT: Duration = Duration::from_secs(8);

/// `?marketId=1001&before=<audit id>&limit=50`, as it came. An empty value is an absent one.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AuditQuery {
    market_id: String,
    before: String,
    limit: String,
}

/// What a query asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditRequest {
    /// Whose audit.
    pub market: MarketId,
    /// Only entries older than this one.
    pub before: Option<AuditId>,
    /// How many, 1 … [`MAX_LIMIT`].
    pub limit: usize,
}

impl AuditQuery {
    /// What it asks.
    ///
    /// # Errors
    /// [`InvalidQuery`] names the parameter.
    pub fn parse(&self) -> Result<AuditRequest, InvalidQuery> {
        if self.market_id.is_empty() {
            return Err(InvalidQuery::NoMarket);
        }
        let market = self.market_id.parse()?;
        let before: Option<AuditId> = if self.before.is_empty() {
            None
        } else {
            Some(self.before.parse().map_err(InvalidQuery::Before)?)
        };
        if before.as_ref().is_some_and(|id| id.market() != market) {
            return Err(InvalidQuery::OtherMarket);
        }
        let limit = if self.limit.is_empty() { Some(DEFAULT_LIMIT) } else { self.limit.parse().ok() };
        let limit = limit.filter(|limit| (1..=MAX_LIMIT).contains(limit)).ok_or(InvalidQuery::Limit)?;
        Ok(AuditRequest { market, before, limit })
    }
}

/// Why a query cannot be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidQuery {
    /// Whose audit is not said.
    #[error("marketId: missing")]
    NoMarket,
    /// Not a market id.
    #[error("marketId: {0}")]
    Market(#[from] InvalidMarketId),
    /// Not an audit id.
    #[error("before: {0}")]
    Before(&'static str),
    /// An entry of another market's audit.
    #[error("before: belongs to another market")]
    OtherMarket,
    /// Not a number in range.
    #[error("limit: an integer from 1 to {MAX_LIMIT}")]
    Limit,
}

/// One page as JSON: `{"marketId":1001,"entries":[…],"hasMore":true}`, newest first. The next one is asked for with
/// `before` = the last entry's `auditId`.
///
/// # Errors
/// [`AuditError`] when it cannot be read.
pub async fn page(backbone: &dyn Backbone, request: AuditRequest) -> Result<String, AuditError> {
    let AuditRequest { market, before, limit } = request;
    // One more than asked tells whether there is more.
    let entries = timeout(READ_TIMEOUT, backbone.audit(market, before, limit + 1))
        .await
        .map_err(|_| AuditError::TimedOut)??;
    let has_more = entries.len() > limit;
    let entries = entries.iter().take(limit).map(Entry::new).collect::<Result<_, _>>()?;
    serde_json::to_string(&Page { market_id: market, entries, has_more }).map_err(AuditError::Malformed)
}

/// Why a page cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The backbone did not answer in time.
    #[error("the audit did not answer in time")]
    TimedOut,
    /// The backbone answered with an error.
    #[error(transparent)]
    Backbone(#[from] BackboneError),
    /// An entry that this version did not write.
    #[error("an audit entry is not JSON: {0}")]
    Malformed(serde_json::Error),
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Page<'a> {
    market_id: MarketId,
    entries: Vec<Entry<'a>>,
    has_more: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Entry<'a> {
    audit_id: String,
    market_id: MarketId,
    epoch: Epoch,
    seq: Seq,
    ts: u64,
    actor: &'a str,
    reason: &'a str,
    before: &'a RawValue,
    after: &'a RawValue,
    request_id: &'a str,
}

impl<'a> Entry<'a> {
    fn new(entry: &'a AuditEntry) -> Result<Self, AuditError> {
        let raw = |text: &'a str| serde_json::from_str(text).map_err(AuditError::Malformed);
        Ok(Self {
            audit_id: entry.id.to_string(),
            market_id: entry.id.market(),
            epoch: entry.position.epoch,
            seq: entry.position.seq,
            ts: entry.ts,
            actor: &entry.actor,
            reason: &entry.reason,
            before: raw(&entry.before)?,
            after: raw(&entry.after)?,
            request_id: &entry.request_id,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(market_id: &str, before: &str, limit: &str) -> Result<AuditRequest, InvalidQuery> {
        AuditQuery { market_id: market_id.into(), before: before.into(), limit: limit.into() }.parse()
    }

    #[test]
    fn a_query_says_what_is_wrong_with_it() {
        for (market, before, limit, wrong) in [
            ("", "", "", InvalidQuery::NoMarket),
            ("0", "", "", InvalidQuery::Market(InvalidMarketId)),
            ("abc", "", "", InvalidQuery::Market(InvalidMarketId)),
            ("1", "2-3-4", "", InvalidQuery::OtherMarket),
            ("1", "", "0", InvalidQuery::Limit),
            ("1", "", "501", InvalidQuery::Limit),
            ("1", "", "-1", InvalidQuery::Limit),
            ("1", "", "all", InvalidQuery::Limit),
        ] {
            assert_eq!(query(market, before, limit), Err(wrong), "{market:?} {before:?} {limit:?}");
        }
        assert!(matches!(query("1", "yesterday", ""), Err(InvalidQuery::Before(_))));
    }

    #[test]
    fn a_query_has_a_default_limit() {
        let market = MarketId::new(1).unwrap();
        assert_eq!(query("1", "", ""), Ok(AuditRequest { market, before: None, limit: DEFAULT_LIMIT }));
        let asked = query("1", "1-2-3", "500").unwrap();
        assert_eq!((asked.before.unwrap().entry(), asked.limit), ("2-3", 500));
    }
}
