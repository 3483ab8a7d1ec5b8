//! `GET /api/markets`: which markets there are, read once a second however many ask.

use std::{sync::Arc, time::Duration};

use axum::{
    extract::State,
    http::{HeaderMap, Uri},
    response::Response,
};
use backbone::Backbone;
use protocol::MarketId;
use serde::Serialize;
use service::http::json;
use tokio::{sync::Mutex, time::Instant};
use utoipa::ToSchema;

use super::{Gateway, problem::Problem, query::Query, read::authorize};

/// How old an answer may be.
const KEPT: Duration = Duration::from_secs(1);

/// All markets as they were last read, at most [`KEPT`] ago.
#[derive(Default)]
pub(super) struct Listing(Mutex<Option<(Instant, Answer)>>);

/// `None`: they could not be read.
type Answer = Option<Arc<[MarketId]>>;

impl Listing {
    /// Whoever comes while somebody else reads waits, and has the same answer; also that there is none, so that Redis,
    /// when it is slow to fail, is not asked by one after the other.
    async fn get(&self, backbone: &dyn Backbone) -> Result<Arc<[MarketId]>, Problem> {
        let mut last = self.0.lock().await;
        let known =
            last.as_ref().filter(|(ended, _)| ended.elapsed() < KEPT).map(|(_, answer)| answer.clone());
        let answer = match known {
            Some(answer) => answer,
            None => {
                let read = backbone.markets().await.inspect_err(|error| {
                    tracing::warn!(%error, "which markets there are cannot be read");
                });
                let answer: Answer = read.ok().map(Into::into);
                *last = Some((Instant::now(), answer.clone()));
                answer
            }
        };
        answer.ok_or_else(|| Problem::unreadable("the list of markets"))
    }
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Markets, description = "Which markets there are.")]
pub(super) struct Page<'a> {
    /// Ascending.
    markets: &'a [MarketId],
    /// Whether there are more behind the last one.
    has_more: bool,
}

/// `GET /api/markets?after=1001&limit=200`
pub(super) async fn list(
    State(gateway): State<Arc<Gateway>>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let query = Query::of(&uri)?;
    let after = query.number("after", 0..=protocol::ids::MAX_SAFE_INTEGER, Some(0))?;
    let limit = query.limit()?;
    let scope = authorize(&gateway, &query, &headers)?.and_then(|claims| claims.markets);
    let all = gateway.listing.get(&*gateway.backbone).await?;
    let behind = &all[all.partition_point(|id| id.get() <= after)..];
    let Some(scope) = scope else { return Ok(page(behind, limit)) };
    let in_scope: Vec<MarketId> = behind.iter().copied().filter(|id| scope.contains(id)).collect();
    Ok(page(&in_scope, limit))
}

fn page(markets: &[MarketId], limit: usize) -> Response {
    let has_more = markets.len() > limit;
    json(&Page { markets: &markets[..limit.min(markets.len())], has_more })
}
