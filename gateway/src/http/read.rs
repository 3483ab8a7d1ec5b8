//! What the reads of markets share: who may read, and the market as fresh as its log.

use std::{sync::Arc, time::Duration};

use axum::{
    extract::{FromRequestParts, Path},
    http::{HeaderMap, header::AUTHORIZATION, request::Parts},
};
use backbone::BackboneError;
use protocol::{MarketId, error::ErrorCode};
use service::token::{WsClaims, bearer};
use tokio::time::timeout;

use super::{problem::Problem, query::Query};
use crate::{access::ReadAuth, market::Market, state::Gateway};

/// How long a response from memory waits to be as fresh as the log.
const FRESHEN_TIMEOUT: Duration = Duration::from_millis(500);

/// A request to read one market, which its client may read.
pub(super) struct MarketRead {
    pub(super) market: MarketId,
    pub(super) query: Query,
}

impl FromRequestParts<Arc<Gateway>> for MarketRead {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, gateway: &Arc<Gateway>) -> Result<Self, Problem> {
        let bad_id = |error: &dyn std::fmt::Display| {
            Problem::new(ErrorCode::BadRequest, format!("market id: {error}"))
        };
        let Path(id) =
            Path::<String>::from_request_parts(parts, gateway).await.map_err(|error| bad_id(&error))?;
        let market: MarketId = id.parse().map_err(|error| bad_id(&error))?;
        let query = Query::of(&parts.uri)?;
        let claims = authorize(gateway, &query, &parts.headers)?;
        if let Some(scope) = claims.and_then(|claims| claims.markets)
            && !scope.contains(&market)
        {
            let message = format!("market {market} is not in the token's scope");
            return Err(Problem::new(ErrorCode::Forbidden, message));
        }
        Ok(Self { market, query })
    }
}

/// Returns the claims of the request's token, or `None` where reads need no token.
pub(super) fn authorize(
    gateway: &Gateway,
    query: &Query,
    headers: &HeaderMap,
) -> Result<Option<WsClaims>, Problem> {
    if gateway.access.read_auth() == ReadAuth::None {
        return Ok(None);
    }
    let in_header = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()).and_then(bearer);
    let token = query.get("token").or(in_header).unwrap_or_default();
    if !gateway.health.knows_revocations() {
        let message = "which tokens are revoked is not known yet: retry";
        return Err(Problem::new(ErrorCode::ServiceUnavailable, message));
    }
    let verified = gateway.tokens.verify(token);
    verified.map(Some).map_err(|error| Problem::new(ErrorCode::Unauthorized, error.to_string()))
}

/// Returns the market if it is in memory, and whether it may be older than the log.
pub(super) async fn in_memory(gateway: &Gateway, market: MarketId) -> Option<(Arc<Market>, bool)> {
    let market = gateway.markets.get(market)?;
    let is_known_stale = gateway.health.stale_since().is_some();
    let is_fresh = !is_known_stale && timeout(FRESHEN_TIMEOUT, market.freshen()).await.is_ok();
    Some((market, !is_fresh))
}

/// Logs the backbone's error, which clients do not get to see, and returns the response to it.
pub(super) fn failed(error: &BackboneError) -> Problem {
    tracing::warn!(%error, "a market cannot be read from the backbone");
    Problem::unreadable("the market")
}
