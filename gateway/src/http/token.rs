//! `POST /api/ws/token`: a token for a client (docs/protocol.md#tokens).

use std::sync::Arc;

use axum::{
    body::Body,
    extract::{Extension, State},
    http::{
        HeaderMap,
        header::{AUTHORIZATION, CACHE_CONTROL},
    },
    response::{IntoResponse, Response},
};
use protocol::{
    MarketId,
    error::ErrorCode,
    json::json_problem,
    schema::{market_id, nullable},
    time::unix_ms,
    user::{read_user_id, user_id_schema},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use service::{
    http::{body, json, serve::Peer},
    token::{MAX_TTL_S, WsClaims, bearer},
};
use utoipa::{
    ToSchema,
    openapi::{Object, RefOr, Schema, Type, schema::Array},
};

use super::problem::Problem;
use crate::{access::ApiKey, state::Gateway};

/// The longest request body, bytes: enough for a scope of some thousand markets.
const MAX_BODY_BYTES: usize = 64 * 1024;
/// The most markets in a scope. Their token still fits into a handshake's header.
const MAX_SCOPE: usize = 500;
/// The lifetime of a token whose request names none.
const DEFAULT_TTL_S: u64 = 600;

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(description = "The token's user, scope and lifetime. Other members are ignored.")]
pub(super) struct TokenRequest {
    #[serde(default)]
    #[schema(schema_with = user_id_schema, required)]
    user_id: Value,
    #[serde(default)]
    #[schema(schema_with = scope_markets)]
    scope_markets: Value,
    #[serde(default)]
    #[schema(schema_with = ttl_seconds)]
    ttl_seconds: Value,
}

fn scope_markets() -> RefOr<Schema> {
    let markets = Array::builder().items(market_id()).max_items(Some(MAX_SCOPE));
    nullable(markets, "The markets that the token allows; absent: all.")
}

fn ttl_seconds() -> RefOr<Schema> {
    let seconds = Object::builder().schema_type(Type::Integer).minimum(Some(1_u64)).maximum(Some(MAX_TTL_S));
    nullable(seconds, &format!("The token's lifetime; absent: {DEFAULT_TTL_S}."))
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Token, description = "A client's token.")]
pub(super) struct Issued {
    /// A JWT.
    token: String,
    /// Unix milliseconds.
    expires_at: u64,
}

/// Signs a token for the user that the request names.
pub(super) async fn issue(
    State(gateway): State<Arc<Gateway>>,
    Extension(peer): Extension<Peer>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let given = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()).and_then(bearer);
    let key = gateway.access.check_api_key(given);
    // The application's backend requests the tokens of all its users from one address.
    if key != ApiKey::Right && !gateway.access.allows_keyless_request(peer, &headers) {
        let message = "too many requests for tokens from this address: retry later";
        return Err(Problem::new(ErrorCode::RateLimited, message));
    }
    if key == ApiKey::Wrong {
        let message = "Authorization: Bearer <TOKEN_API_KEY> is required here";
        return Err(Problem::new(ErrorCode::Unauthorized, message));
    }
    let claims = read_claims(&body::read(body, MAX_BODY_BYTES).await?)
        .map_err(|message| Problem::new(ErrorCode::BadRequest, message))?;
    if !gateway.access.allows_token(&claims.sub) {
        let message = "too many tokens for this user: use the one you have, or retry later";
        return Err(Problem::new(ErrorCode::RateLimited, message));
    }
    let issued = Issued { token: gateway.tokens.sign(&claims), expires_at: claims.exp * 1000 };
    Ok(([(CACHE_CONTROL, "no-store")], json(&issued)).into_response())
}

fn read_claims(body: &[u8]) -> Result<WsClaims, String> {
    let TokenRequest { user_id, scope_markets, ttl_seconds } = serde_json::from_slice(body)
        .map_err(|error| format!("the body must be a JSON object: {}", json_problem(&error)))?;
    let sub = read_user_id(&user_id)?;
    let markets: Option<Vec<MarketId>> = serde_json::from_value(scope_markets)
        .map_err(|error| format!("scopeMarkets: {}", json_problem(&error)))?;
    if markets.as_ref().is_some_and(|markets| markets.len() > MAX_SCOPE) {
        return Err(format!("scopeMarkets: at most {MAX_SCOPE}; leave it out for all markets"));
    }
    let ttl_s = match ttl_seconds {
        Value::Null => DEFAULT_TTL_S,
        ttl => ttl
            .as_u64()
            .filter(|ttl| (1..=MAX_TTL_S).contains(ttl))
            .ok_or_else(|| format!("ttlSeconds: an integer from 1 to {MAX_TTL_S}"))?,
    };
    let now_s = unix_ms() / 1000;
    let jti = format!("{:032x}", rand::random::<u128>());
    Ok(WsClaims { sub, markets, iat: now_s, exp: now_s + ttl_s, jti: Some(jti) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_user_id_is_required() {
        let claims = read_claims(br#"{"userId":1}"#).unwrap();
        assert_eq!((claims.sub.as_str(), &claims.markets, claims.exp - claims.iat), ("1", &None, 600));
        let claims =
            read_claims(br#"{"userId":"u","scopeMarkets":["1001",1002],"ttlSeconds":1,"new":true}"#).unwrap();
        assert_eq!((claims.sub.as_str(), claims.exp - claims.iat), ("u", 1));
        assert_eq!(claims.markets.unwrap().len(), 2);
    }

    #[test]
    fn a_bad_request_s_field_is_named() {
        for (body, field) in [
            ("", "JSON"),
            ("5", "JSON"),
            ("{}", "userId"),
            (r#"{"userId":null}"#, "userId"),
            (r#"{"userId":""}"#, "userId"),
            (r#"{"userId":1.5}"#, "userId"),
            (r#"{"userId":"a\u0000"}"#, "userId"),
            (r#"{"userId":1,"userId":2}"#, "userId"),
            (r#"{"userId":1,"scopeMarkets":[0]}"#, "scopeMarkets"),
            (r#"{"userId":1,"scopeMarkets":"1001"}"#, "scopeMarkets"),
            (r#"{"userId":1,"ttlSeconds":0}"#, "ttlSeconds"),
            (r#"{"userId":1,"ttlSeconds":3601}"#, "ttlSeconds"),
            (r#"{"userId":1,"ttlSeconds":1.5}"#, "ttlSeconds"),
            (r#"{"userId":1,"ttlSeconds":"600"}"#, "ttlSeconds"),
        ] {
            let error = read_claims(body.as_bytes()).unwrap_err();
            assert!(error.contains(field), "{body}: {error}");
        }
    }
}
