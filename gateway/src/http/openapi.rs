//! What clients reach over HTTP, as an OpenAPI document. `docs/openapi/gateway.json` is a copy of it, which a test renews.

use std::sync::LazyLock;

use protocol::{MarketId, error::ErrorCode, ids::MAX_SAFE_INTEGER, schema::limit};
use serde_json::{Value, json};
use service::http::openapi::{Document, Operation, header};
use utoipa::PartialSchema;

use super::{markets, rest, token};

/// What `GET /api/openapi.json` answers.
pub(super) static DOCUMENT: LazyLock<String> = LazyLock::new(|| {
    let description = "Reads of markets, tokens, and the handshake of the socket with live prices, whose messages \
        `docs/protocol.md` describes.\n\n\
        Prices are decimal text, and come out byte for byte as they were published. Members may be added. A request \
        that is no HTTP is answered 400, and one whose head is far too long 431, without a body.";
    let security = json!({
        "clientToken": {
            "type": "http",
            "scheme": "bearer",
            "bearerFormat": "JWT",
            "description": "From `POST /api/ws/token`. Reads need it where `READ_AUTH=token`.",
        },
        "clientTokenInQuery": {
            "type": "apiKey",
            "in": "query",
            "name": "token",
            "description": "The same token, where headers cannot be set.",
        },
        "tokenApiKey": {
            "type": "http",
            "scheme": "bearer",
            "description": "`TOKEN_API_KEY`, where it is set.",
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
        "description": "Only markets above this one: the last one of the page before.",
        "schema": { "type": "integer", "minimum": 0, "maximum": MAX_SAFE_INTEGER },
    });
    reads("listMarkets", "Which markets there are", "Those that were ever published; at most a second old.")
        .parameter(after)
        .parameter(how_many())
        .answers::<markets::Page<'_>>(
            "A page, of the token's scope if it has one.",
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
    reads("readSnapshot", "A market's state", "Never older than the log, unless it says `stale`.")
        .parameter(market())
        .answers::<rest::Snapshot>("Every line as last set.", &json!({}), &example)
        .refuses(&[ErrorCode::Forbidden, ErrorCode::NotFound])
}

fn read_updates() -> Operation {
    let since = json!({
        "name": "since_seq",
        "in": "query",
        "required": true,
        "description": "Where the client is.",
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
    reads("readUpdates", "What was missed", "Never older than the log, unless it says `stale`.")
        .parameter(market())
        .parameter(since)
        .parameter(how_many())
        .answers::<rest::UpdatesPage<'_>>("Updates after `since_seq`, oldest first.", &json!({}), &example)
        .refuses(&[ErrorCode::Forbidden, ErrorCode::NotFound])
}

fn read_health() -> Operation {
    Operation::new(
        "readHealth",
        "What this pod has",
        "Not whether it is ready: that is on the operators' listener.",
    )
    .answers::<rest::Counts>(
        "Since it started.",
        &json!({}),
        &json!({ "connections": 0, "topics": 3, "messages_sent": 128 }),
    )
}

fn issue_token() -> Operation {
    let no_store = header(&json!({ "const": "no-store" }));
    let description = "For the application's backend. Without `TOKEN_API_KEY` everyone may ask.";
    Operation::new("issueToken", "A token for a client", description)
        .security(json!([{}, { "tokenApiKey": [] }]))
        .body::<token::Asked>(&json!({ "userId": 1, "scopeMarkets": [1001, "1002"], "ttlSeconds": 600 }))
        .answers::<token::Issued>(
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
    let description = "A WebSocket handshake (RFC 6455). A token may also be offered as a subprotocol: \
        `kmarket.v1, token.<jwt>`.";
    let text = || json!({ "type": "string" });
    let switching = json!({
        "description": "Live prices from here on.",
        "headers": {
            "Upgrade": header(&json!({ "const": "websocket" })),
            "Connection": header(&json!({ "const": "Upgrade" })),
            "Sec-WebSocket-Accept": header(&text()),
            "Sec-WebSocket-Protocol": {
                "description": "There when it was offered.", "schema": { "const": "kmarket.v1" },
            },
        },
    });
    Operation::new("openSocket", "Live prices", description)
        .security(json!([{ "clientToken": [] }, { "clientTokenInQuery": [] }]))
        .answer(101, switching)
        .refuses(&[
            ErrorCode::BadRequest,
            ErrorCode::Unauthorized,
            ErrorCode::Forbidden,
            ErrorCode::UpgradeRequired,
            ErrorCode::RateLimited,
        ])
}

/// A read, which is public or needs a client's token.
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
        "description": "How many at most.",
        "schema": limit(rest::DEFAULT_LIMIT, rest::MAX_LIMIT),
    })
}
