//! A page of the audit, and how it is written: as JSON for programs, as CSV for spreadsheets.

use backbone::{AuditEntry, AuditId};
use protocol::{Epoch, MarketId, Payload, Seq};
use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;

/// Part of an audit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Page {
    /// `None`: all markets.
    pub(crate) market: Option<MarketId>,
    /// Newest first.
    pub(crate) entries: Vec<AuditEntry>,
    /// The `before` of the next page, if there may be older entries.
    pub(crate) next: Option<AuditId>,
}

impl Page {
    /// Returns `{"marketId":1001,"entries":[…],"hasMore":true,"before":"…"}`. `before` is there with `hasMore` only,
    /// `marketId` only on a page of one market.
    ///
    /// # Errors
    /// If an entry has something else than JSON.
    pub(crate) fn json(&self) -> Result<String, serde_json::Error> {
        let entries = self.entries.iter().map(Entry::new).collect::<Result<_, _>>()?;
        let before = self.next.as_ref().map(AuditId::to_string);
        serde_json::to_string(&AuditPage {
            market_id: self.market,
            entries,
            has_more: before.is_some(),
            before,
        })
    }

    /// Returns a table with a header row (RFC 4180).
    #[must_use]
    pub(crate) fn csv(&self) -> String {
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

/// Quotes a cell (RFC 4180). An apostrophe in front keeps a spreadsheet from taking the cell for a formula.
fn csv_cell(text: &str) -> String {
    let guard = if text.starts_with(['=', '+', '-', '@', '\t', '\r']) { "'" } else { "" };
    if text.contains(['"', ',', '\r', '\n']) {
        format!("\"{guard}{}\"", text.replace('"', "\"\""))
    } else {
        format!("{guard}{text}")
    }
}

/// A page as JSON.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(description = "Part of the audit of one market, or of all markets.")]
pub(crate) struct AuditPage<'a> {
    /// Absent on a page of all markets.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    market_id: Option<MarketId>,
    /// Newest first.
    entries: Vec<Entry<'a>>,
    /// Whether there may be older entries.
    has_more: bool,
    /// With `hasMore` only: the parameter `before` of the next page.
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
    /// The market of the override.
    market_id: MarketId,
    /// The epoch of the market's log.
    epoch: Epoch,
    /// The update's number in the log.
    seq: Seq,
    /// Unix milliseconds at which the override was accepted.
    ts: u64,
    /// The `sub` of the token.
    actor: &'a str,
    /// Empty if the override had none.
    reason: &'a str,
    /// The touched lines as they were; a line that did not exist is absent.
    #[schema(value_type = Payload)]
    before: &'a RawValue,
    /// The payload as it was sent.
    #[schema(value_type = Payload)]
    after: &'a RawValue,
    /// The request's `X-Request-Id`.
    request_id: &'a str,
}

impl<'a> Entry<'a> {
    fn new(entry: &'a AuditEntry) -> Result<Self, serde_json::Error> {
        Ok(Self {
            audit_id: entry.id.to_string(),
            market_id: entry.id.market,
            epoch: entry.position.epoch,
            seq: entry.position.seq,
            ts: entry.ts,
            actor: &entry.actor,
            reason: &entry.reason,
            before: serde_json::from_str(&entry.before)?,
            after: serde_json::from_str(&entry.after)?,
            request_id: &entry.request_id,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
