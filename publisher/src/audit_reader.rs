//! Reads a page of the audit: from its copy in Postgres if there is one, else from the backbone.

use std::time::Duration;

use backbone::{AuditId, Backbone, BackboneError, StreamId};
use protocol::MarketId;
use tokio::time::timeout;

use crate::{
    archive::ArchiveError,
    audit::{AuditRequest, Page},
    export::{AuditCopy, CopyError},
};

/// Entries that are read at once when a filter leaves some of them out.
const SCAN: usize = 500;
/// The most entries that are examined for one page.
const MAX_SCANNED: usize = 5000;
/// How long the backbone may take to reply.
const READ_TIMEOUT: Duration = Duration::from_secs(8);

/// Reads one page, newest first, and returns it with its source. The next page is `before` [`Page::next`].
///
/// If the copy cannot be read, the backbone answers for a single market with the entries that it still has.
///
/// # Errors
/// [`AuditError`].
pub(crate) async fn read(
    backbone: &dyn Backbone,
    copy: Option<&AuditCopy>,
    request: &AuditRequest,
) -> Result<(Page, Source), AuditError> {
    let error = match copy {
        Some(copy) => match read_copy(copy, request).await {
            Ok(page) => return Ok((page, Source::Postgres)),
            Err(error) => error,
        },
        None => CopyError::NoCopy,
    };
    let market = request.market.ok_or(AuditError::Copy(error))?;
    Ok((read_backbone(backbone, market, request).await?, Source::Redis))
}

/// Where a page was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// The backbone, which keeps about `AUDIT_LEN` entries per market.
    Redis,
    /// The copy.
    Postgres,
}

impl Source {
    /// Returns the value of the header `X-Audit-Source`.
    #[must_use]
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Redis => "redis",
            Self::Postgres => "postgres",
        }
    }
}

/// Why a page cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AuditError {
    #[error("the backbone did not reply in time")]
    TimedOut,
    #[error(transparent)]
    Backbone(#[from] BackboneError),
    /// The copy cannot be read, and only the copy has the audit of all markets.
    #[error(transparent)]
    Copy(CopyError),
    /// A publisher of another version, or another program, wrote the entry.
    #[error("an audit entry is not JSON: {0}")]
    Malformed(serde_json::Error),
}

/// Reads from Postgres. A page of a single market has every entry that was acknowledged before this call.
async fn read_copy(copy: &AuditCopy, request: &AuditRequest) -> Result<Page, CopyError> {
    if copy.archive.is_unreachable() {
        return Err(ArchiveError::Unreachable.into());
    }
    if let Some(market) = request.market {
        copy.catch_up(market).await?;
    }
    Ok(copy.archive.page(request).await?)
}

/// Reads from the backbone. With a filter, it examines at most [`MAX_SCANNED`] entries. The page may then be short, and
/// still have a next one.
async fn read_backbone(
    backbone: &dyn Backbone,
    market: MarketId,
    request: &AuditRequest,
) -> Result<Page, AuditError> {
    let AuditRequest { before, limit, actor, since, until, .. } = request;
    let mut cursor = *before;
    if let Some(until) = until {
        // No entry has this id. All entries up to `until` are before it.
        let end = AuditId { market, entry: StreamId { ms: until.saturating_add(1), n: 0 } };
        cursor = cursor.filter(|before| before.entry < end.entry).or(Some(end));
    }
    let mut page = Page { market: Some(market), entries: Vec::new(), next: None };
    let mut scanned = 0;
    // One entry more than the page has tells whether there are older ones.
    let at_once = if actor.is_some() { SCAN } else { limit + 1 };
    loop {
        let read = timeout(READ_TIMEOUT, backbone.audit(market, cursor, at_once));
        let entries = read.await.map_err(|_| AuditError::TimedOut)??;
        let is_last = entries.len() < at_once;
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
