//! Who overrode what, and how it was before (contract, section 5).

use std::time::Duration;

use backbone::{AuditEntry, AuditId, Backbone, BackboneError, StreamId};
use protocol::{Epoch, MarketId, Payload, Seq, ids::InvalidMarketId, schema::limit};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::time::timeout;
use utoipa::{
    IntoParams, ToSchema,
    openapi::{Object, RefOr, Schema, Type},
};

use crate::export::{AuditCopy, CopyError};

/// Entries of a page when the query does not say.
pub const DEFAULT_LIMIT: usize = 50;
/// The most entries of a page.
pub const MAX_LIMIT: usize = 500;
/// Entries that are read at once where some are left out.
const SCAN: usize = 500;
/// The most entries that are looked at for one page.
pub const MAX_SCANNED: usize = 5000;
/// How long the backbone may take.
const READ_TIMEOUT: Duration = Duration::from_secs(8);

/// `?marketId=1001&before=<audit id>&limit=50&actor=&since=&until=&format=`, as it came. An empty value is an absent one.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", default)]
#[into_params(rename_all = "camelCase")]
pub struct AuditQuery {
    /// Whose audit. Required, but where `DATABASE_URL` is set: absent there for all markets.
    #[param(required = false, value_type = MarketId)]
    market_id: String,
    /// Only entries older than this one of the market's: where the page before ended.
    #[param(required = false, schema_with = before_taken)]
    before: String,
    /// How many at most.
    #[param(required = false, schema_with = limit_taken)]
    limit: String,
    /// Only what this one did.
    #[param(required = false)]
    actor: String,
    /// Only entries of this moment and later, Unix milliseconds.
    #[param(required = false, value_type = u64)]
    since: String,
    /// Only entries of this moment and earlier, Unix milliseconds.
    #[param(required = false, value_type = u64)]
    until: String,
    /// How the page is written; absent: as `Accept` says.
    #[param(required = false, schema_with = format_taken)]
    format: String,
}

fn before_taken() -> RefOr<Schema> {
    Object::builder()
        .schema_type(Type::String)
        .pattern(Some("^([1-9][0-9]{0,14}-(0|[1-9][0-9]{0,17})-(0|[1-9][0-9]{0,17}))?$"))
        .examples(["1001-1710001113000-0"])
        .into()
}

fn limit_taken() -> RefOr<Schema> {
    limit(DEFAULT_LIMIT, MAX_LIMIT)
}

fn format_taken() -> RefOr<Schema> {
    Object::builder().schema_type(Type::String).enum_values(Some(["json", "csv"])).into()
}

/// How a page is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `{"marketId":…,"entries":[…],"hasMore":…}`.
    Json,
    /// RFC 4180, a row an entry.
    Csv,
}

/// What a query asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditRequest {
    /// Whose audit; of all markets without.
    pub market: Option<MarketId>,
    /// Only entries older than this one.
    pub before: Option<AuditId>,
    /// How many, 1 … [`MAX_LIMIT`].
    pub limit: usize,
    /// Only what this one did.
    pub actor: Option<String>,
    /// Only entries of this moment and later, Unix ms.
    pub since: Option<u64>,
    /// Only entries of this moment and earlier, Unix ms.
    pub until: Option<u64>,
}

impl AuditQuery {
    /// What it asks. It has to name a market unless `all_can_be_asked`.
    ///
    /// # Errors
    /// [`InvalidQuery`] names the parameter.
    pub fn parse(&self, all_can_be_asked: bool) -> Result<AuditRequest, InvalidQuery> {
        let market: Option<MarketId> = match &*self.market_id {
            "" if all_can_be_asked => None,
            "" => return Err(InvalidQuery::NoMarket),
            id => Some(id.parse()?),
        };
        let before: Option<AuditId> = if self.before.is_empty() {
            None
        } else {
            Some(self.before.parse().map_err(InvalidQuery::Before)?)
        };
        if before.as_ref().zip(market).is_some_and(|(id, market)| id.market != market) {
            return Err(InvalidQuery::OtherMarket);
        }
        let limit = if self.limit.is_empty() { Some(DEFAULT_LIMIT) } else { self.limit.parse().ok() };
        let limit = limit.filter(|limit| (1..=MAX_LIMIT).contains(limit)).ok_or(InvalidQuery::Limit)?;
        let moment = |text: &str, invalid| match text {
            "" => Ok(None),
            text => text.parse().map(Some).map_err(|_| invalid),
        };
        let since = moment(&self.since, InvalidQuery::Since)?;
        let until = moment(&self.until, InvalidQuery::Until)?;
        let actor = Some(self.actor.clone()).filter(|actor| !actor.is_empty());
        Ok(AuditRequest { market, before, limit, actor, since, until })
    }

    /// How the page is to be written: as `format` says, else as the header `Accept` does.
    ///
    /// # Errors
    /// [`InvalidQuery::Format`].
    pub fn format(&self, accept: Option<&str>) -> Result<Format, InvalidQuery> {
        match &*self.format {
            "csv" => Ok(Format::Csv),
            "" if accept.is_some_and(|accept| accept.contains("text/csv")) => Ok(Format::Csv),
            "" | "json" => Ok(Format::Json),
            _ => Err(InvalidQuery::Format),
        }
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
    /// Not a moment.
    #[error("since: Unix milliseconds")]
    Since,
    /// Not a moment.
    #[error("until: Unix milliseconds")]
    Until,
    /// Not a format.
    #[error("format: json or csv")]
    Format,
}

/// One page, newest first, and where it was read. The next one is asked for with `before` = [`Page::next`].
///
/// # Errors
/// [`AuditError`] when it cannot be read.
pub async fn page(
    backbone: &dyn Backbone,
    copy: Option<&AuditCopy>,
    request: &AuditRequest,
) -> Result<(Page, Source), AuditError> {
    let error = match copy {
        Some(copy) => match copy.page(request).await {
            Ok(page) => return Ok((page, Source::Postgres)),
            Err(error) => error,
        },
        None => CopyError::None,
    };
    let market = request.market.ok_or(AuditError::Copy(error))?;
    Ok((read(backbone, market, request).await?, Source::Backbone))
}

/// Where a page was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Where overrides go: all that is kept there.
    Backbone,
    /// The copy.
    Postgres,
}

/// Where entries are left out, at most [`MAX_SCANNED`] are looked at: a page may then be short, and have a next one.
async fn read(backbone: &dyn Backbone, market: MarketId, request: &AuditRequest) -> Result<Page, AuditError> {
    let AuditRequest { before, limit, actor, since, until, .. } = request;
    let mut cursor = *before;
    if let Some(until) = until {
        // No entry stands there, but all of `until` and earlier are before it.
        let end = AuditId { market, entry: StreamId { ms: until.saturating_add(1), n: 0 } };
        cursor = cursor.filter(|before| before.entry < end.entry).or(Some(end));
    }
    let mut page = Page { market: Some(market), entries: Vec::new(), next: None };
    let mut scanned = 0;
    // One more than asked tells whether there is more.
    let part = if actor.is_some() { SCAN } else { limit + 1 };
    loop {
        let read = timeout(READ_TIMEOUT, backbone.audit(market, cursor, part));
        let entries = read.await.map_err(|_| AuditError::TimedOut)??;
        let is_last = entries.len() < part;
        scanned += entries.len();
        cursor = entries.last().map(|entry| entry.id);
        for entry in entries {
            if since.is_some_and(|since| entry.id.entry.ms < since) {
                return Ok(page);
            }
            if actor.as_ref().is_some_and(|actor| *actor != entry.actor) {
                continue;
            }
            if page.entries.len() == *limit {
                page.next = page.entries.last().map(|last| last.id);
                return Ok(page);
            }
            page.entries.push(entry);
        }
        if is_last {
            return Ok(page);
        }
        if scanned >= MAX_SCANNED {
            page.next = cursor;
            return Ok(page);
        }
    }
}

/// Part of an audit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// Whose; of all markets without.
    pub market: Option<MarketId>,
    /// Newest first.
    pub entries: Vec<AuditEntry>,
    /// Where older ones go on, if there may be any.
    pub next: Option<AuditId>,
}

impl Page {
    /// `{"marketId":1001,"entries":[…],"hasMore":true,"before":"…"}`; `before` with `hasMore` only, and no `marketId`
    /// of all markets.
    ///
    /// # Errors
    /// [`AuditError::Malformed`].
    pub fn json(&self) -> Result<String, AuditError> {
        let entries = self.entries.iter().map(Entry::new).collect::<Result<_, _>>()?;
        let before = self.next.as_ref().map(AuditId::to_string);
        serde_json::to_string(&AuditPage {
            market_id: self.market,
            entries,
            has_more: before.is_some(),
            before,
        })
        .map_err(AuditError::Malformed)
    }

    /// A table with a head, for a spreadsheet.
    #[must_use]
    pub fn csv(&self) -> String {
        let mut csv = String::from("auditId,marketId,epoch,seq,ts,actor,reason,before,after,requestId\r\n");
        for entry in &self.entries {
            let AuditEntry { id, position, ts, actor, reason, before, after, request_id } = entry;
            let (id, market) = (id.to_string(), id.market.to_string());
            let (epoch, seq, ts) = (position.epoch.to_string(), position.seq.to_string(), ts.to_string());
            let cells = [&id, &market, &epoch, &seq, &ts, actor, reason, before, after, request_id];
            csv.push_str(&cells.map(|cell| csv_cell(cell)).join(","));
            csv.push_str("\r\n");
        }
        csv
    }
}

/// A cell of a table (RFC 4180). What a spreadsheet would take for a formula is made plain text.
fn csv_cell(text: &str) -> String {
    let guard = if text.starts_with(['=', '+', '-', '@', '\t', '\r']) { "'" } else { "" };
    if text.contains(['"', ',', '\r', '\n']) {
        format!("\"{guard}{}\"", text.replace('"', "\"\""))
    } else {
        format!("{guard}{text}")
    }
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
    /// The copy cannot be asked, and nobody else knows.
    #[error(transparent)]
    Copy(#[from] CopyError),
    /// An entry that this version did not write.
    #[error("an audit entry is not JSON: {0}")]
    Malformed(serde_json::Error),
}

/// A page as JSON.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(description = "Part of a market's audit.")]
pub(crate) struct AuditPage<'a> {
    /// The market's; absent of all markets.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    market_id: Option<MarketId>,
    /// Newest first.
    entries: Vec<Entry<'a>>,
    /// Whether there may be older ones.
    has_more: bool,
    /// With `hasMore` only: where they go on.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    before: Option<String>,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = AuditEntry, description = "An override: who, why, and what it replaced.")]
struct Entry<'a> {
    /// `<market>-<Unix ms>-<n>`, unique over all markets.
    #[schema(example = "1001-1710001113000-0")]
    audit_id: String,
    /// The market's.
    market_id: MarketId,
    /// The log's.
    epoch: Epoch,
    /// The update's.
    seq: Seq,
    /// Unix milliseconds at which it was accepted.
    ts: u64,
    /// The `sub` of the token.
    actor: &'a str,
    /// Empty when none was given.
    reason: &'a str,
    /// The lines that were touched, as they stood; one that did not exist is absent.
    #[schema(value_type = Payload)]
    before: &'a RawValue,
    /// The payload as it came.
    #[schema(value_type = Payload)]
    after: &'a RawValue,
    /// The request's `X-Request-Id`.
    request_id: &'a str,
}

impl<'a> Entry<'a> {
    fn new(entry: &'a AuditEntry) -> Result<Self, AuditError> {
        let raw = |text: &'a str| serde_json::from_str(text).map_err(AuditError::Malformed);
        Ok(Self {
            audit_id: entry.id.to_string(),
            market_id: entry.id.market,
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
        let [market_id, before, limit] = [market_id, before, limit].map(str::to_owned);
        AuditQuery { market_id, before, limit, ..AuditQuery::default() }.parse(false)
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
        let all = AuditRequest {
            market: Some(market),
            before: None,
            limit: DEFAULT_LIMIT,
            actor: None,
            since: None,
            until: None,
        };
        assert_eq!(query("1", "", ""), Ok(all));
        let asked = query("1", "1-2-3", "500").unwrap();
        assert_eq!((asked.before.unwrap().entry.to_string().as_str(), asked.limit), ("2-3", 500));
    }

    #[test]
    fn where_all_markets_can_be_asked_none_needs_to_be_named() {
        let query = AuditQuery { before: "2-3-4".into(), ..AuditQuery::default() };
        assert_eq!(query.parse(false), Err(InvalidQuery::NoMarket));
        let asked = query.parse(true).unwrap();
        assert_eq!((asked.market, asked.before.unwrap().to_string()), (None, "2-3-4".to_owned()));
    }

    #[test]
    fn a_cell_is_quoted_where_it_must_be_and_never_a_formula() {
        for (text, cell) in [
            ("", ""),
            ("desk-1", "desk-1"),
            ("a,b", "\"a,b\""),
            ("say \"x\"", "\"say \"\"x\"\"\""),
            ("two\nlines", "\"two\nlines\""),
            ("=1+1", "'=1+1"),
            ("+1", "'+1"),
            ("-1", "'-1"),
            ("@SUM(A1)", "'@SUM(A1)"),
            ("\t=1", "'\t=1"),
            ("=HYPERLINK(\"x\",\"y\")", "\"'=HYPERLINK(\"\"x\"\",\"\"y\"\")\""),
            ("1.85", "1.85"),
        ] {
            assert_eq!(csv_cell(text), cell, "{text:?}");
        }
    }

    #[test]
    fn the_format_is_what_the_query_says_or_else_the_header() {
        let asked = |format: &str, accept| {
            AuditQuery { format: format.to_owned(), ..AuditQuery::default() }.format(accept)
        };
        assert_eq!(asked("", None), Ok(Format::Json));
        assert_eq!(asked("", Some("application/json, text/csv")), Ok(Format::Csv));
        assert_eq!(asked("json", Some("text/csv")), Ok(Format::Json));
        assert_eq!(asked("csv", None), Ok(Format::Csv));
        assert_eq!(asked("xml", None), Err(InvalidQuery::Format));
    }
}
