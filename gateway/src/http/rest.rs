//! REST reads: from memory where the market is followed and its past is kept, else from the backbone; never older
//! than the log at the time of the request.

use std::{
    collections::HashMap,
    fmt::Write,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use axum::{
    body::Bytes,
    extract::{FromRequestParts, Path, Query, State},
    http::{HeaderMap, Uri, request::Parts},
    response::Response,
};
use backbone::BackboneError;
use protocol::{
    Epoch, MarketId, Position, Seq,
    error::ErrorCode,
    server_message::{self, OddsUpdate},
};
use serde::Serialize;
use service::{
    http::{json, json_text},
    token::{WsClaims, bearer},
};
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::timeout,
};
use utoipa::ToSchema;

use super::{Gateway, error::Problem};
use crate::market::{Market, Page};

/// How long an answer from memory waits to be as fresh as the log.
const FRESHEN_TIMEOUT: Duration = Duration::from_millis(500);
/// Updates, or markets, in an answer when the client does not say.
pub(super) const DEFAULT_LIMIT: usize = 200;
/// In an answer at most.
pub(super) const MAX_LIMIT: usize = 1000;
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
        None => (None, false),
    };
    let state = match state {
        Some(state) => state,
        None => {
            let loaded = gateway.backbone.load(&[market], 0).await.map_err(|error| unread(&error))?;
            loaded.into_iter().next().unwrap_or_default().state
        }
    };
    answer(format!("{{{}{}}}", server_message::state_members(market, &state), mark(stale)))
}

/// `GET /api/markets/{id}/odds/updates?since_seq=1000&limit=200`
pub(super) async fn updates(
    State(gateway): State<Arc<Gateway>>,
    MarketRead { market, query }: MarketRead,
) -> Result<Response, Problem> {
    let since = Seq::new(number(&query, "since_seq", 0..=protocol::ids::MAX_SAFE_INTEGER, None)?);
    let limit = page_limit(&query)?;
    if let Some((followed, stale)) = followed(&gateway, market).await
        && let Page::Updates(updates, latest) = followed.page(since, limit)
    {
        return answer(UpdatesPage::new(market, since, &updates, since.next(), latest, stale).json());
    }
    let page = gateway.backbone.read_after(market, since, limit).await.map_err(|error| unread(&error))?;
    let first = page.updates.first().map_or(since.next(), |update| update.position.seq);
    let updates: Vec<String> =
        page.updates.iter().map(|update| server_message::odds_update(market, update)).collect();
    answer(UpdatesPage::new(market, since, &updates, first, page.latest, false).json())
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

/// The market if it is in memory, as fresh as the log is now, or with `true` when nobody can say that it is.
async fn followed(gateway: &Gateway, market: MarketId) -> Option<(Arc<Market>, bool)> {
    let market = gateway.markets.get(market)?;
    let known_stale = gateway.health.stale_since().is_some();
    let fresh = !known_stale && timeout(FRESHEN_TIMEOUT, market.freshen()).await.is_ok();
    Some((market, !fresh))
}

/// What [`snapshot`] answers.
#[derive(ToSchema)]
#[schema(description = "A market's state.")]
#[expect(dead_code, reason = "it is written as text: the state's members, and the mark")]
pub(super) struct Snapshot {
    #[schema(inline)]
    #[serde(flatten)]
    state: server_message::State,
    /// `true` when the pod cannot make sure that this is not older than the log; else absent.
    #[schema(required = false)]
    stale: bool,
}

/// What [`updates`] answers.
#[derive(ToSchema)]
#[schema(as = Updates, description = "Part of a market's log.", rename_all = "camelCase")]
pub(super) struct UpdatesPage<'a> {
    /// The market's.
    market_id: MarketId,
    /// `since_seq`.
    from_seq: Seq,
    /// The last update's seq, or `fromSeq` when there is none.
    to_seq: Seq,
    /// Oldest first.
    #[schema(value_type = Vec<OddsUpdate>)]
    updates: &'a [String],
    /// The log's.
    epoch: Epoch,
    /// The log's last seq.
    latest_seq: Seq,
    /// Whether `toSeq` is below `latestSeq`.
    has_more: bool,
    /// `false`: some after `since_seq` are no longer kept, or history was lost. Take the snapshot.
    complete: bool,
    /// `true` when the pod cannot make sure that this is not older than the log; else absent.
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
        // A client above the top has what was lost, and one whose next update is not there has lost it: the snapshot it is.
        let complete = from_seq <= latest_seq
            && first == from_seq.next()
            && (!updates.is_empty() || from_seq == latest_seq);
        let has_more = to_seq < latest_seq;
        Self { market_id, from_seq, to_seq, updates, epoch, latest_seq, has_more, complete, stale }
    }

    fn json(&self) -> String {
        let Self { market_id, from_seq, to_seq, updates, epoch, latest_seq, has_more, complete, stale } =
            self;
        let mut json =
            format!(r#"{{"marketId":{market_id},"fromSeq":{from_seq},"toSeq":{to_seq},"updates":["#);
        for (index, update) in updates.iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            let _ = write!(json, "{comma}{update}");
        }
        let mark = mark(*stale);
        let _ = write!(
            json,
            r#"],"epoch":{epoch},"latestSeq":{latest_seq},"hasMore":{has_more},"complete":{complete}{mark}}}"#
        );
        json
    }
}

/// What an answer adds when nobody can say that it is as fresh as the log.
fn mark(stale: bool) -> &'static str {
    if stale { r#","stale":true"# } else { "" }
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
