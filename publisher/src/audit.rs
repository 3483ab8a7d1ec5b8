//! Requests for the audit: who overrode what, and what it replaced (`GET /admin/audit`). [`Page`] is a page of it.

mod page;

use backbone::AuditId;
use protocol::{MarketId, ids::InvalidMarketId, schema};
use serde::Deserialize;
use utoipa::{
    IntoParams,
    openapi::{Object, RefOr, Schema, Type},
};

pub(crate) use self::page::{AuditPage, Page};

/// Entries of a page when the query has no limit.
const DEFAULT_LIMIT: usize = 50;
/// The most entries of a page.
const MAX_LIMIT: usize = 500;

/// `?marketId=1001&before=<audit id>&limit=50&actor=&since=&until=&format=`, as received. An empty parameter counts as
/// absent.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", default)]
#[into_params(rename_all = "camelCase")]
pub(crate) struct AuditQuery {
    /// The market whose audit to read. Required without `DATABASE_URL`; with it, absent means all markets.
    #[param(required = false, value_type = MarketId)]
    market_id: String,
    /// Only entries older than this one: `before` of the page before.
    #[param(required = false, schema_with = before_schema)]
    before: String,
    /// The most entries of the page.
    #[param(required = false, schema_with = limit_schema)]
    limit: String,
    /// Only entries of this actor.
    #[param(required = false)]
    actor: String,
    /// Only entries of this moment or later, in Unix milliseconds.
    #[param(required = false, value_type = u64)]
    since: String,
    /// Only entries of this moment or earlier, in Unix milliseconds.
    #[param(required = false, value_type = u64)]
    until: String,
    /// The format of the page. Without it, the header `Accept` decides.
    #[param(required = false, schema_with = format_schema)]
    format: String,
}

fn before_schema() -> RefOr<Schema> {
    Object::builder()
        .schema_type(Type::String)
        .pattern(Some("^([1-9][0-9]{0,14}-(0|[1-9][0-9]{0,17})-(0|[1-9][0-9]{0,17}))?$"))
        .examples(["1001-1710001113000-0"])
        .into()
}

fn limit_schema() -> RefOr<Schema> {
    schema::limit(DEFAULT_LIMIT, MAX_LIMIT)
}

fn format_schema() -> RefOr<Schema> {
    Object::builder().schema_type(Type::String).enum_values(Some(["json", "csv"])).into()
}

/// The format of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Json,
    Csv,
}

/// The entries that a query selects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AuditRequest {
    /// `None`: all markets.
    pub(crate) market: Option<MarketId>,
    /// Only entries older than this one.
    pub(crate) before: Option<AuditId>,
    /// The most entries, 1 … [`MAX_LIMIT`].
    pub(crate) limit: usize,
    /// Only entries of this actor.
    pub(crate) actor: Option<String>,
    /// Only entries of this moment or later, Unix ms.
    pub(crate) since: Option<u64>,
    /// Only entries of this moment or earlier, Unix ms.
    pub(crate) until: Option<u64>,
}

impl AuditQuery {
    /// Checks the parameters. The query may leave out the market only if the audit of all markets `is_copied`.
    ///
    /// # Errors
    /// [`InvalidAuditQuery`] names the parameter.
    pub(crate) fn parse(&self, is_copied: bool) -> Result<AuditRequest, InvalidAuditQuery> {
        let market: Option<MarketId> = match &*self.market_id {
            "" if is_copied => None,
            "" => return Err(InvalidAuditQuery::NoMarket),
            id => Some(id.parse()?),
        };
        let before: Option<AuditId> = if self.before.is_empty() {
            None
        } else {
            Some(self.before.parse().map_err(InvalidAuditQuery::Before)?)
        };
        if before.as_ref().zip(market).is_some_and(|(id, market)| id.market != market) {
            return Err(InvalidAuditQuery::OtherMarket);
        }
        let limit = if self.limit.is_empty() { Some(DEFAULT_LIMIT) } else { self.limit.parse().ok() };
        let limit = limit.filter(|limit| (1..=MAX_LIMIT).contains(limit)).ok_or(InvalidAuditQuery::Limit)?;
        let moment = |text: &str, invalid| match text {
            "" => Ok(None),
            text => text.parse().map(Some).map_err(|_| invalid),
        };
        let since = moment(&self.since, InvalidAuditQuery::Since)?;
        let until = moment(&self.until, InvalidAuditQuery::Until)?;
        let actor = Some(self.actor.clone()).filter(|actor| !actor.is_empty());
        Ok(AuditRequest { market, before, limit, actor, since, until })
    }

    /// Returns the format that the query or, without one, the header `Accept` names.
    ///
    /// # Errors
    /// [`InvalidAuditQuery::Format`].
    pub(crate) fn format(&self, accept: Option<&str>) -> Result<Format, InvalidAuditQuery> {
        match &*self.format {
            "csv" => Ok(Format::Csv),
            "" if accept.is_some_and(|accept| accept.contains("text/csv")) => Ok(Format::Csv),
            "" | "json" => Ok(Format::Json),
            _ => Err(InvalidAuditQuery::Format),
        }
    }
}

/// Why a query is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvalidAuditQuery {
    #[error("marketId: missing")]
    NoMarket,
    #[error("marketId: {0}")]
    Market(#[from] InvalidMarketId),
    #[error("before: {0}")]
    Before(&'static str),
    #[error("before: belongs to another market")]
    OtherMarket,
    #[error("limit: an integer from 1 to {MAX_LIMIT}")]
    Limit,
    #[error("since: Unix milliseconds")]
    Since,
    #[error("until: Unix milliseconds")]
    Until,
    #[error("format: json or csv")]
    Format,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(market_id: &str, before: &str, limit: &str) -> Result<AuditRequest, InvalidAuditQuery> {
        let [market_id, before, limit] = [market_id, before, limit].map(str::to_owned);
        AuditQuery { market_id, before, limit, ..AuditQuery::default() }.parse(false)
    }

    #[test]
    fn an_invalid_query_names_the_parameter() {
        for (market, before, limit, wrong) in [
            ("", "", "", InvalidAuditQuery::NoMarket),
            ("0", "", "", InvalidAuditQuery::Market(InvalidMarketId)),
            ("abc", "", "", InvalidAuditQuery::Market(InvalidMarketId)),
            ("1", "2-3-4", "", InvalidAuditQuery::OtherMarket),
            ("1", "", "0", InvalidAuditQuery::Limit),
            ("1", "", "501", InvalidAuditQuery::Limit),
            ("1", "", "-1", InvalidAuditQuery::Limit),
            ("1", "", "all", InvalidAuditQuery::Limit),
        ] {
            assert_eq!(query(market, before, limit), Err(wrong), "{market:?} {before:?} {limit:?}");
        }
        assert!(matches!(query("1", "yesterday", ""), Err(InvalidAuditQuery::Before(_))));
    }

    #[test]
    fn a_query_has_a_default_limit() {
        let market = MarketId::new(1).unwrap();
        let all = AuditRequest {
            market: Some(market),
            before: None,
            limit: DEFAULT_LIMIT,
            actor: None,
            since: None,
            until: None,
        };
        assert_eq!(query("1", "", ""), Ok(all));
        let parsed = query("1", "1-2-3", "500").unwrap();
        assert_eq!((parsed.before.unwrap().entry.to_string().as_str(), parsed.limit), ("2-3", 500));
    }

    #[test]
    fn a_query_needs_a_market_unless_the_audit_is_copied() {
        let query = AuditQuery { before: "2-3-4".into(), ..AuditQuery::default() };
        assert_eq!(query.parse(false), Err(InvalidAuditQuery::NoMarket));
        let parsed = query.parse(true).unwrap();
        assert_eq!((parsed.market, parsed.before.unwrap().to_string()), (None, "2-3-4".to_owned()));
    }

    #[test]
    fn the_query_decides_the_format_or_else_the_header() {
        let format = |format: &str, accept| {
            AuditQuery { format: format.to_owned(), ..AuditQuery::default() }.format(accept)
        };
        assert_eq!(format("", None), Ok(Format::Json));
        assert_eq!(format("", Some("application/json, text/csv")), Ok(Format::Csv));
        assert_eq!(format("json", Some("text/csv")), Ok(Format::Json));
        assert_eq!(format("csv", None), Ok(Format::Csv));
        assert_eq!(format("xml", None), Err(InvalidAuditQuery::Format));
    }
}
