//! REST reads: from memory where the market is followed and its past is kept, else from the backbone; never older
//! than the log at the time of the request.

use std::{collections::HashMap, fmt::Write, sync::Arc, sync::atomic::Ordering, time::Duration};

use axum::{
    extract::{FromRequestParts, Path, Query, State},
    http::{HeaderMap, Uri, request::Parts},
    response::Response,
};
use serde::Serialize;
use shared::{
    Epoch, MarketId, Position, Seq,
    backbone::BackboneError,
    http::{json, json_text},
    protocol::{
        error::ErrorCode,
        server::{self, OddsUpdate, State as MarketState},
    },
    token::{WsClaims, bearer},
};

use tokio::time::timeout;
use utoipa::ToSchema;

use super::{Gateway, error::Problem};
use crate::market::{Market, Page};

/// How long an answer from memory waits to be as fresh as the log.
const FRESHEN_TIMEOUT: Duration = Duration::from_millis(500);
/// Updates, or markets, in an answer when the client does not say.
pub(super) const DEFAULT_LIMIT: usize = 200;
/// In an answer at most.
pub(super) const MAX_LIMIT: usize = 1000;

/// A read of one market that may be done.
pub(super) struct MarketRead {
    market: MarketId,
    query: HashMap<String, String>,
}

impl FromRequestParts<Arc<Gateway>> for MarketRead {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, gateway: &Arc<Gateway>) -> Result<Self, Problem> {
        let Path(id) = Path::<String>::from_request_parts(parts, gateway)
            .await
            .map_err(|error| Problem(ErrorCode::BadRequest, format!("market id: {error}")))?;
        let market =
            id.parse().map_err(|error| Problem(ErrorCode::BadRequest, format!("market id: {error}")))?;
        let query = read_query(&parts.uri)?;
        authorize(gateway, market, &query, &parts.headers)?;
        Ok(Self { market, query })
    }
}

/// `GET /api/markets/{id}/odds/snapshot`
pub(super) async fn snapshot(
    State(gateway): State<Arc<Gateway>>,
    MarketRead { market, .. }: MarketRead,
) -> Result<Response, Problem> {
    let (state, stale) = match followed(&gateway, market).await {
        Some((followed, stale)) => (followed.state(), stale),
        None => (None, ""),
    };
    let state = match state {
        Some(state) => state,
        None => {
            let loaded = gateway.backbone.load(&[market], 0).await.map_err(|error| unread(&error))?;
            loaded.into_iter().next().unwrap_or_default().state
        }
    };
    Ok(json_text(format!("{{{}{stale}}}", server::state_members(market, &state))))
}

/// `GET /api/markets/{id}/odds/updates?since_seq=1000&limit=200`
pub(super) async fn updates(
    State(gateway): State<Arc<Gateway>>,
    MarketRead { market, query }: MarketRead,
) -> Result<Response, Problem> {
    let since = Seq::new(number(&query, "since_seq", 0..=shared::ids::MAX_SAFE_INTEGER, None)?);
    let limit = page_limit(&query)?;
    if let Some((followed, stale)) = followed(&gateway, market).await
        && let Page::Updates(updates, top) = followed.page(since, limit)
    {
        return Ok(json_text(page_json(market, since, &updates, since.next(), top, stale)));
    }
    let page = gateway.backbone.read_after(market, since, limit).await.map_err(|error| unread(&error))?;
    let first = page.updates.first().map_or(since.next(), |update| update.position.seq);
    let updates: Vec<String> =
        page.updates.iter().map(|update| server::odds_update(market, update)).collect();
    Ok(json_text(page_json(market, since, &updates, first, page.top, "")))
}

/// The market if it is in memory, as fresh as the log is now, with what its answer adds when nobody can say that it
/// is.
async fn followed(gateway: &Gateway, market: MarketId) -> Option<(Arc<Market>, &'static str)> {
    let market = gateway.markets.get(market)?;
    let known_stale = gateway.health.stale_since().is_some();
    let fresh = !known_stale && timeout(FRESHEN_TIMEOUT, gateway.markets.freshen(&market)).await.is_ok();
    Some((market, if fresh { "" } else { r#","stale":true"# }))
}

/// `first` is the seq of the first of `updates`.
fn page_json(
    market: MarketId,
    since: Seq,
    updates: &[String],
    first: Seq,
    top: Position,
    mark: &str,
) -> String {
    let to = if updates.is_empty() { since } else { Seq::new(first.get() + updates.len() as u64 - 1) };
    let has_more = to < top.seq;
    // A client above the top has what was lost, and one whose next update is not there has lost it: the snapshot it is.
    let complete = since <= top.seq && first == since.next() && (!updates.is_empty() || since == top.seq);
    let mut json = format!(r#"{{"marketId":{market},"fromSeq":{since},"toSeq":{to},"updates":["#);
    for (index, update) in updates.iter().enumerate() {
        let comma = if index > 0 { "," } else { "" };
        let _ = write!(json, "{comma}{update}");
    }
    let Position { epoch, seq } = top;
    let _ = write!(
        json,
        r#"],"epoch":{epoch},"latestSeq":{seq},"hasMore":{has_more},"complete":{complete}{mark}}}"#
    );
    json
}

#[derive(Serialize, ToSchema)]
#[schema(as = Health, description = "What this pod has.")]
pub(super) struct Counts {
    /// Open connections.
    connections: usize,
    /// Markets with a subscriber.
    topics: usize,
    /// Updates and snapshots delivered since it started.
    messages_sent: u64,
}

/// `GET /api/ws/health`
pub(super) async fn health(State(gateway): State<Arc<Gateway>>) -> Response {
    json(&Counts {
        connections: gateway.stats.connections.load(Ordering::Relaxed),
        topics: gateway.markets.watched(),
        messages_sent: gateway.stats.messages_sent.load(Ordering::Relaxed),
    })
}

pub(super) fn read_query(uri: &Uri) -> Result<HashMap<String, String>, Problem> {
    let Query(pairs) = Query::<Vec<(String, String)>>::try_from_uri(uri)
        .map_err(|_| Problem(ErrorCode::BadRequest, "the query is not name=value pairs".to_owned()))?;
    let count = pairs.len();
    let query: HashMap<String, String> = pairs.into_iter().collect();
    if query.len() < count {
        return Err(Problem(ErrorCode::BadRequest, "a parameter of the query stands twice".to_owned()));
    }
    Ok(query)
}

/// `limit`: how many are wanted.
pub(super) fn page_limit(query: &HashMap<String, String>) -> Result<usize, Problem> {
    let limit = number(query, "limit", 1..=MAX_LIMIT as u64, Some(DEFAULT_LIMIT as u64))?;
    Ok(usize::try_from(limit).unwrap_or(MAX_LIMIT))
}

pub(super) fn number(
    query: &HashMap<String, String>,
    name: &str,
    range: std::ops::RangeInclusive<u64>,
    default: Option<u64>,
) -> Result<u64, Problem> {
    let value = match query.get(name) {
        Some(text) => text
            .parse()
            .ok()
            .filter(|value| range.contains(value) && text.bytes().all(|b| b.is_ascii_digit())),
        None => default,
    };
    value.ok_or_else(|| {
        Problem(
            ErrorCode::BadRequest,
            format!("{name}: an integer from {} to {}", range.start(), range.end()),
        )
    })
}

fn authorize(
    gateway: &Gateway,
    market: MarketId,
    query: &HashMap<String, String>,
    headers: &HeaderMap,
) -> Result<(), Problem> {
    let scope = reader(gateway, query, headers)?.and_then(|claims| claims.markets);
    if scope.is_some_and(|markets| !markets.contains(&market)) {
        return Err(Problem(ErrorCode::Forbidden, format!("market {market} is not in the token's scope")));
    }
    Ok(())
}

/// With `READ_AUTH=token`: whose token it is, the same as the socket's.
pub(super) fn reader(
    gateway: &Gateway,
    query: &HashMap<String, String>,
    headers: &HeaderMap,
) -> Result<Option<WsClaims>, Problem> {
    if !gateway.read_auth {
        return Ok(None);
    }
    let authorization = headers.get("authorization").and_then(|value| value.to_str().ok()).and_then(bearer);
    let token = query.get("token").map(String::as_str).or(authorization).unwrap_or_default();
    if !gateway.health.knows_revocations() {
        let message = "which tokens are revoked is not known yet: retry".to_owned();
        return Err(Problem(ErrorCode::ServiceUnavailable, message));
    }
    let verified = gateway.tokens.verify(token);
    verified.map(Some).map_err(|error| Problem(ErrorCode::Unauthorized, error.to_string()))
}

/// What the backbone says is for the log, not for clients.
fn unread(error: &BackboneError) -> Problem {
    tracing::warn!(%error, "a read could not be answered");
    unavailable("the market")
}

/// `503`
pub(super) fn unavailable(what: &str) -> Problem {
    Problem(ErrorCode::ServiceUnavailable, format!("{what} cannot be read now: retry"))
}
