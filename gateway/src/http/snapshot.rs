//! `GET /api/markets/{id}/odds/snapshot`: a market's state.

use std::{collections::BTreeMap, sync::Arc};

use axum::{extract::State, response::Response};
use protocol::{Epoch, MarketId, MarketState, Payload, Position, Seq};
use serde::{Serialize, Serializer};
use utoipa::ToSchema;

use super::{
    problem::Problem,
    read::{MarketRead, failed, in_memory},
    respond::{JsonText, is_false, respond},
};
use crate::state::Gateway;

/// Responds with the state in memory, as fresh as the log, or else in the backbone.
pub(super) async fn snapshot(
    State(gateway): State<Arc<Gateway>>,
    MarketRead { market, .. }: MarketRead,
) -> Result<Response, Problem> {
    if let Some((followed, stale)) = in_memory(&gateway, market).await
        && let Some(state) = followed.state()
    {
        return respond(&Snapshot::new(market, &state, stale));
    }
    let loaded = gateway.backbone.load(&[market], 0).await.map_err(|error| failed(&error))?;
    let state = loaded.into_iter().next().unwrap_or_default().state;
    respond(&Snapshot::new(market, &state, false))
}

#[derive(Serialize, ToSchema)]
#[schema(description = "A market's state.")]
pub(super) struct Snapshot<'a> {
    #[serde(flatten)]
    #[schema(inline)]
    state: Lines<'a>,
    /// `true` when the pod cannot be sure that this is as fresh as the log; else absent.
    #[serde(skip_serializing_if = "is_false")]
    #[schema(required = false)]
    stale: bool,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(description = "A market's state: every line as last set.")]
struct Lines<'a> {
    /// The market's id.
    market_id: MarketId,
    /// The seq of the last update in the state; 0 before the first.
    seq: Seq,
    /// Unix milliseconds at which that update was accepted; 0 before the first.
    ts: u64,
    /// All lines.
    #[serde(serialize_with = "as_object")]
    #[schema(value_type = Payload)]
    payload: &'a BTreeMap<Box<str>, Box<str>>,
    /// The log's epoch.
    epoch: Epoch,
}

impl<'a> Snapshot<'a> {
    fn new(market_id: MarketId, state: &'a MarketState, stale: bool) -> Self {
        let MarketState { position: Position { epoch, seq }, ts, lines } = state;
        Self { state: Lines { market_id, seq: *seq, ts: *ts, payload: lines, epoch: *epoch }, stale }
    }
}

fn as_object<S: Serializer>(lines: &BTreeMap<Box<str>, Box<str>>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(lines.iter().map(|(name, text)| (name, JsonText(text))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_has_its_lines_byte_for_byte() {
        let market = MarketId::new(1001).unwrap();
        let mut state = MarketState::default();
        let json =
            |state: &MarketState, stale| serde_json::to_string(&Snapshot::new(market, state, stale)).unwrap();
        assert_eq!(json(&state, false), r#"{"marketId":1001,"seq":0,"ts":0,"payload":{},"epoch":0}"#);
        let payload = Payload::parse(r#"{"total":{ "over":1.90 },"a\"b":{"home":2.10,"x":null}}"#).unwrap();
        state.apply(Position::new(7, 3), 1_710_001_113_000, &payload);
        assert_eq!(
            json(&state, true),
            r#"{"marketId":1001,"seq":3,"ts":1710001113000,"payload":{"a\"b":{"home":2.10,"x":null},"total":{ "over":1.90 }},"epoch":7,"stale":true}"#
        );
    }
}
