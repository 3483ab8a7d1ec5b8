//! `GET /api/markets/{id}/odds/updates?since_seq=1000&limit=200`: the updates that a client missed.

use std::sync::Arc;

use axum::{extract::State, response::Response};
use protocol::{
    Epoch, MarketId, Position, Seq,
    ids::MAX_SAFE_INTEGER,
    server_message::{self, OddsUpdate},
};
use serde::{Serialize, Serializer};
use utoipa::ToSchema;

use super::{
    problem::Problem,
    read::{MarketRead, failed, in_memory},
    respond::{JsonText, is_false, respond},
};
use crate::{market::Page, state::Gateway};

/// Responds from memory, as fresh as the log, where the updates are kept there, or else from the backbone.
pub(super) async fn updates(
    State(gateway): State<Arc<Gateway>>,
    MarketRead { market, query }: MarketRead,
) -> Result<Response, Problem> {
    let since = Seq::new(query.number("since_seq", 0..=MAX_SAFE_INTEGER, None)?);
    let limit = query.limit()?;
    if let Some((followed, stale)) = in_memory(&gateway, market).await
        && let Page::Updates(updates, latest) = followed.page(since, limit)
    {
        return respond(&UpdatesPage::new(market, since, &updates, since.next(), latest, stale));
    }
    let page = gateway.backbone.read_after(market, since, limit).await.map_err(|error| failed(&error))?;
    let first = page.updates.first().map_or(since.next(), |update| update.position.seq);
    let updates: Vec<String> =
        page.updates.iter().map(|update| server_message::odds_update(market, update)).collect();
    respond(&UpdatesPage::new(market, since, &updates, first, page.latest, false))
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Updates, description = "Part of a market's log.")]
pub(super) struct UpdatesPage<'a> {
    /// The market's id.
    market_id: MarketId,
    /// `since_seq`.
    from_seq: Seq,
    /// The last update's seq, or `fromSeq` when there is none.
    to_seq: Seq,
    /// Oldest first.
    #[serde(serialize_with = "as_array")]
    #[schema(value_type = Vec<OddsUpdate>)]
    updates: &'a [String],
    /// The log's epoch.
    epoch: Epoch,
    /// The log's last seq.
    latest_seq: Seq,
    /// Whether `toSeq` is below `latestSeq`.
    has_more: bool,
    /// `false`: some updates after `since_seq` are no longer kept, or history was lost. Read the snapshot.
    complete: bool,
    /// `true` when the pod cannot be sure that this is as fresh as the log; else absent.
    #[serde(skip_serializing_if = "is_false")]
    #[schema(required = false)]
    stale: bool,
}

impl<'a> UpdatesPage<'a> {
    /// `first` is the seq of the first of `updates`.
    fn new(
        market_id: MarketId,
        from_seq: Seq,
        updates: &'a [String],
        first: Seq,
        latest: Position,
        stale: bool,
    ) -> Self {
        let Position { epoch, seq: latest_seq } = latest;
        let to_seq =
            if updates.is_empty() { from_seq } else { Seq::new(first.get() + updates.len() as u64 - 1) };
        // A client above the latest position has updates that were lost. A client whose next update is gone misses some.
        // Both need the snapshot.
        let complete = from_seq <= latest_seq
            && first == from_seq.next()
            && (!updates.is_empty() || from_seq == latest_seq);
        let has_more = to_seq < latest_seq;
        Self { market_id, from_seq, to_seq, updates, epoch, latest_seq, has_more, complete, stale }
    }
}

fn as_array<S: Serializer>(updates: &[String], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(updates.iter().map(|update| JsonText(update)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_has_its_updates_byte_for_byte() {
        let page = |from, updates: &[String], stale| {
            let market = MarketId::new(1001).unwrap();
            let (from, latest) = (Seq::new(from), Position::new(7, 5));
            serde_json::to_string(&UpdatesPage::new(market, from, updates, from.next(), latest, stale))
        };
        let updates = [r#"{"seq":4,"payload":{ "a":{"home":2.10} }}"#, r#"{"seq":5}"#].map(str::to_owned);
        assert_eq!(
            page(3, &updates, false).unwrap(),
            r#"{"marketId":1001,"fromSeq":3,"toSeq":5,"updates":[{"seq":4,"payload":{ "a":{"home":2.10} }},{"seq":5}],"epoch":7,"latestSeq":5,"hasMore":false,"complete":true}"#
        );
        assert_eq!(
            page(9, &[], true).unwrap(),
            r#"{"marketId":1001,"fromSeq":9,"toSeq":9,"updates":[],"epoch":7,"latestSeq":5,"hasMore":false,"complete":false,"stale":true}"#
        );
        assert!(page(4, &["{".to_owned()], false).is_err(), "text that is not JSON");
    }
}
