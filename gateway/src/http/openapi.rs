//! The routes for clients as an OpenAPI document. `docs/openapi/gateway.json` is a copy of it (CONTRIBUTING.md#build-and-test).

use std::sync::LazyLock;

use protocol::{MarketId, error::ErrorCode, ids::MAX_SAFE_INTEGER, schema::limit};
use serde_json::{Value, json};
use service::http::openapi::{Document, Operation, header};
use utoipa::PartialSchema;

use super::{
    health, markets,
    query::{DEFAULT_LIMIT, MAX_LIMIT},
    snapshot, token, updates,
};

/// The text that `GET /api/openapi.json` serves.
pub(super) static DOCUMENT: LazyLock<String> = LazyLock::new(|| {
    let description = "Reads of markets, tokens for clients, and the handshake of the socket with live prices. \
        `docs/protocol.md` describes the socket's messages.\n\n\
        Prices are decimal text, and are returned byte for byte as they were published. Members may be added. Two \
        responses have no body: the 400 to a request that is not HTTP, and the 431 to a header far beyond the limit.";
    let security = json!({
        "clientToken": {
            "type": "http",
            "scheme": "bearer",
            "bearerFormat": "JWT",
            "description": "From `POST /api/ws/token`. Reads need it with `READ_AUTH=token`.",
        },
        "clientTokenInQuery": {
            "type": "apiKey",
            "in": "query",
            "name": "token",
            "description": "The same token, for clients that cannot set headers.",
        },
        "tokenApiKey": {
            "type": "http",
            "scheme": "bearer",
            "description": "`TOKEN_API_KEY`, if it is set.",
        },
    });
    Document::new("KMarket gateway", description, json!({}), &security)
        .with("get", "/api/markets", list_markets())
        .with("get", "/api/markets/{id}/odds/snapshot", read_snapshot())
        .with("get", "/api/markets/{id}/odds/updates", read_updates())
        .with("get", "/api/ws/health", read_health())
        .with("post", "/api/ws/token", issue_token())
        .with("get", "/ws/odds", open_socket())
        .with("get", "/api/openapi.json", Operation::document("readOpenapi"))
        .text()
});

fn list_markets() -> Operation {
    let after = json!({
        "name": "after",
        "in": "query",
        "description": "Only markets above this id: the last one of the previous page.",
        "schema": { "type": "integer", "minimum": 0, "maximum": MAX_SAFE_INTEGER },
    });
    reads(
        "listMarkets",
        "List markets",
        "All markets that were ever published. The list is at most a second old.",
    )
    .parameter(after)
    .parameter(how_many())
    .ok::<markets::Page<'_>>(
        "A page of the list, of the token's scope if it has one.",
        &json!({}),
        &json!({ "markets": [1001, 1002], "hasMore": false }),
    )
}

fn read_snapshot() -> Operation {
    let example = json!({
        "marketId": 1001,
        "seq": 1030,
        "ts": 1_710_001_113_000_u64,
        "payload": { "moneyline": { "home": 1.85, "away": 2.15 } },
        "epoch": 1_710_000_000,
    });
    reads("readSnapshot", "Read a market's state", "Never older than the log, unless it has `stale`.")
        .parameter(market())
        .ok::<snapshot::Snapshot<'_>>("Every line as last set.", &json!({}), &example)
        .refuses(&[ErrorCode::Forbidden, ErrorCode::NotFound])
}

fn read_updates() -> Operation {
    let since = json!({
        "name": "since_seq",
        "in": "query",
        "required": true,
        "description": "The seq of the last update that the client has.",
        "schema": { "type": "integer", "minimum": 0, "maximum": MAX_SAFE_INTEGER },
        "example": 1024,
    });
    let update = json!({
        "type": "odds_update",
        "marketId": 1001,
        "seq": 1025,
        "ts": 1_710_001_113_000_u64,
        "payload": { "moneyline": { "home": 1.85, "away": 2.15 } },
    });
    let example = json!({
        "marketId": 1001,
        "fromSeq": 1024,
        "toSeq": 1025,
        "updates": [update],
        "epoch": 1_710_000_000,
        "latestSeq": 1025,
        "hasMore": false,
        "complete": true,
    });
    reads("readUpdates", "Read missed updates", "Never older than the log, unless it has `stale`.")
        .parameter(market())
        .parameter(since)
        .parameter(how_many())
        .ok::<updates::UpdatesPage<'_>>("Updates after `since_seq`, oldest first.", &json!({}), &example)
        .refuses(&[ErrorCode::Forbidden, ErrorCode::NotFound])
}

fn read_health() -> Operation {
    Operation::new(
        "readHealth",
        "Count connections and markets",
        "Counts of this pod. Whether it is ready is on the operators' listener: `GET /readyz`.",
    )
    .ok::<health::Counts>(
        "The counts.",
        &json!({}),
        &json!({ "connections": 0, "topics": 3, "messages_sent": 128 }),
    )
}

fn issue_token() -> Operation {
    let no_store = header(&json!({ "const": "no-store" }));
    let description = "For the application's backend. Without `TOKEN_API_KEY` the endpoint is open.";
    Operation::new("issueToken", "Get a token for a client", description)
        .security(json!([{}, { "tokenApiKey": [] }]))
        .body::<token::TokenRequest>(&json!({ "userId": 1, "scopeMarkets": [1001, "1002"], "ttlSeconds": 600 }))
        .ok::<token::Issued>(
            "A new token.",
            &json!({ "Cache-Control": no_store }),
            &json!({ "token": "eyJ0eXAiOiJKV1QiLCJhbGciOiJIUzI1NiJ9.e30.AA", "expiresAt": 1_730_908_800_000_u64 }),
        )
        .refuses(&[
            ErrorCode::BadRequest,
            ErrorCode::Unauthorized,
            ErrorCode::PayloadTooLarge,
            ErrorCode::RateLimited,
        ])
}

fn open_socket() -> Operation {
    let description = "A WebSocket handshake (RFC 6455). A client may also offer its token as a subprotocol: \
        `kmarket.v1, token.<jwt>`.";
    let text = || json!({ "type": "string" });
    let switching = json!({
        "description": "The connection is a WebSocket from here on.",
        "headers": {
            "Upgrade": header(&json!({ "const": "websocket" })),
            "Connection": header(&json!({ "const": "Upgrade" })),
            "Sec-WebSocket-Accept": header(&text()),
            "Sec-WebSocket-Protocol": {
                "description": "Present if it was offered.", "schema": { "const": "kmarket.v1" },
            },
        },
    });
    Operation::new("openSocket", "Open a socket for live prices", description)
        .security(json!([{ "clientToken": [] }, { "clientTokenInQuery": [] }]))
        .response(101, switching)
        .refuses(&[
            ErrorCode::BadRequest,
            ErrorCode::Unauthorized,
            ErrorCode::Forbidden,
            ErrorCode::UpgradeRequired,
            ErrorCode::RateLimited,
        ])
}

/// Begins a read, which is public or needs a client's token.
fn reads(id: &str, summary: &str, description: &str) -> Operation {
    Operation::new(id, summary, description)
        .security(json!([{}, { "clientToken": [] }, { "clientTokenInQuery": [] }]))
        .refuses(&[ErrorCode::BadRequest, ErrorCode::Unauthorized])
}

fn market() -> Value {
    json!({ "name": "id", "in": "path", "required": true, "schema": MarketId::schema(), "example": 1001 })
}

fn how_many() -> Value {
    json!({
        "name": "limit",
        "in": "query",
        "description": "The most items in the response.",
        "schema": limit(DEFAULT_LIMIT, MAX_LIMIT),
    })
}
