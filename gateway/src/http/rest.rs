//! REST reads: from memory where the market is followed and its past is kept, else from the backbone; never older
//! than the log at the time of the request.

use std::{collections::HashMap, fmt::Write, sync::Arc, sync::atomic::Ordering, time::Duration};

use axum::{
    body::Bytes,
    extract::{FromRequestParts, Path, Query, State},
    http::{HeaderMap, Uri, request::Parts},
    response::Response,
};
use serde::Serialize;
use shared::{
    MarketId, Position, Seq,
    backbone::BackboneError,
    http::{json, json_text},
    protocol::{error::ErrorCode, server},
    token::{WsClaims, bearer},
};
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::timeout,
};

use super::{Gateway, error::Problem};
use crate::market::{Market, Page};

/// How long an answer from memory waits to be as fresh as the log.
const FRESHEN_TIMEOUT: Duration = Duration::from_millis(500);
/// Updates, or markets, in an answer when the client does not say.
const DEFAULT_LIMIT: usize = 200;
/// In an answer at most.
const MAX_LIMIT: usize = 1000;
/// Up to so many bytes an answer is given in any case.
const SHORT_ANSWER_BYTES: usize = 64 * 1024;
/// Bytes of all longer ones that are on their way, of which a single one may have 16 MiB.
const MAX_UNSENT_BYTES: usize = 128 * 1024 * 1024;
static UNSENT: Semaphore = Semaphore::const_new(MAX_UNSENT_BYTES);

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
    answer(format!("{{{}{stale}}}", server::state_members(market, &state)))
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
        return answer(page_json(market, since, &updates, since.next(), top, stale));
    }
    let page = gateway.backbone.read_after(market, since, limit).await.map_err(|error| unread(&error))?;
    let first = page.updates.first().map_or(since.next(), |update| update.position.seq);
    let updates: Vec<String> =
        page.updates.iter().map(|update| server::odds_update(market, update)).collect();
    answer(page_json(market, since, &updates, first, page.top, ""))
}

/// The answer, if there is room for it until the kernel has taken all of it.
///
/// That many are not made at once is bounded already: by the runtime's threads, none of which waits between the read and
/// this, and for what comes from Redis by its connections.
fn answer(mut json: String) -> Result<Response, Problem> {
    if json.len() <= SHORT_ANSWER_BYTES {
        return Ok(json_text(json));
    }
    json.shrink_to_fit();
    let room = u32::try_from(json.len()).ok().and_then(|bytes| UNSENT.try_acquire_many(bytes).ok());
    let room = room.ok_or_else(|| {
        let message = "too many long answers are on their way: retry, or ask for less";
        Problem(ErrorCode::ServiceUnavailable, message.to_owned())
    })?;
    Ok(json_text(Bytes::from_owner(Unsent { json, _room: room })))
}

/// A long answer on its way. The connection drops it once it is sent, or when it ends.
struct Unsent {
    json: String,
    _room: SemaphorePermit<'static>,
}

impl AsRef<[u8]> for Unsent {
    fn as_ref(&self) -> &[u8] {
        self.json.as_bytes()
    }
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

#[derive(Serialize)]
struct Counts {
    connections: usize,
    topics: usize,
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
