//! `GET /api/markets?after=1001&limit=200`: the list of markets.

use std::sync::Arc;

use axum::{
    extract::State,
    http::{HeaderMap, Uri},
    response::Response,
};
use protocol::{MarketId, ids::MAX_SAFE_INTEGER};
use serde::Serialize;
use service::http::json;
use utoipa::ToSchema;

use super::{problem::Problem, query::Query, read::authorize};
use crate::state::Gateway;

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Markets, description = "A page of the list of markets.")]
pub(super) struct Page<'a> {
    /// Ascending.
    markets: &'a [MarketId],
    /// Whether there are markets after the last one.
    has_more: bool,
}

/// Responds with the markets after `after`, of the token's scope if it has one.
pub(super) async fn list(
    State(gateway): State<Arc<Gateway>>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let query = Query::of(&uri)?;
    let after = query.number("after", 0..=MAX_SAFE_INTEGER, Some(0))?;
    let limit = query.limit()?;
    let scope = authorize(&gateway, &query, &headers)?.and_then(|claims| claims.markets);
    let all = gateway.listing.get(&*gateway.backbone).await;
    let all = all.ok_or_else(|| Problem::unreadable("the list of markets"))?;
    let after = &all[all.partition_point(|id| id.get() <= after)..];
    let Some(scope) = scope else { return Ok(page(after, limit)) };
    let in_scope: Vec<MarketId> = after.iter().copied().filter(|id| scope.contains(id)).collect();
    Ok(page(&in_scope, limit))
}

fn page(markets: &[MarketId], limit: usize) -> Response {
    let has_more = markets.len() > limit;
    json(&Page { markets: &markets[..limit.min(markets.len())], has_more })
}
