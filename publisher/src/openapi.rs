//! The admin API as an OpenAPI document. `docs/openapi/publisher.json` is a copy of it, which a test renews.

use std::sync::LazyLock;

use protocol::{error::ErrorCode, overrides::Override};
use serde_json::{Value, json};
use service::{
    http::openapi::{Document, Operation, header, reference, refusal},
    token::Role,
};
use utoipa::{IntoParams, openapi::path::ParameterIn};

use crate::{
    audit::{AuditPage, AuditQuery},
    batch::{ItemResult, MAX_ITEMS},
    http::{Answer, MAX_IDEMPOTENCY_KEY, MAX_REQUEST_ID, ProblemBody},
    markets::{MarketsPage, MarketsQuery, StatusRequest, StatusResult},
    revoke,
};

/// What `GET /admin/openapi.json` answers.
pub static DOCUMENT: LazyLock<String> = LazyLock::new(|| {
    let description = "Overrides, who did what, and taking clients' tokens back. The publisher serves it; without Redis \
        the gateway does, on its own listener.\n\n\
        Prices are decimal text, and pass through byte for byte. `docs/protocol.md` has the rules in full. A request \
        that is no HTTP is answered 400, and one whose head is far too long 431, without a body.";
    let id = json!({ "type": "string", "description": "The request's own, if it is one, else a new one." });
    let token = json!({
        "adminToken": {
            "type": "http",
            "scheme": "bearer",
            "bearerFormat": "JWT",
            "description": "Signed with `ADMIN_JWT_SECRET`; each role may do what the one before may: viewer, trader, \
                admin. `publisher token` makes one.",
        },
    });
    Document::new("KMarket admin API", description, json!({ "X-Request-Id": header(&id) }), &token)
        .with("post", "/admin/odds/override", override_one())
        .with("post", "/admin/odds/batch", override_many())
        .with("get", "/admin/audit", read_audit())
        .with("get", "/admin/markets", read_markets())
        .with("post", "/admin/markets/suspend", set_status("suspendMarkets", "Stops the taking of bets"))
        .with("post", "/admin/markets/open", set_status("openMarkets", "Lets bets be taken again"))
        .with("post", "/admin/tokens/revoke", revoke_tokens())
        .with("get", "/admin/openapi.json", Operation::document("readAdminOpenapi"))
        .text()
});

fn override_one() -> Operation {
    let replayed = json!({
        "description": "There when the first answer to this `Idempotency-Key` is given again.",
        "schema": { "const": "true" },
    });
    let description = "200 means: it is in the log, the state and the audit, in one atomic step. 503 says what is known: \
        \"nothing was appended\", or \"outcome unknown\", after which the same request with the same `Idempotency-Key` \
        is safe.";
    // More than every error has.
    let mut conflict = refusal::<ProblemBody<'_>>(ErrorCode::Conflict);
    conflict["content"]["application/json"]["schema"]["required"] = json!(["currentSeq"]);
    asks("overrideOdds", "Publishes prices", description, Role::Trader)
        .parameter(idempotency_key("The same request is answered as the first time, for 24 hours."))
        .body::<Override>(&json!({
            "marketId": 1001,
            "payload": { "moneyline": { "home": 1.85, "away": 2.15 } },
            "reason": "line move",
        }))
        .answers::<Answer>("It is in the log.", &json!({ "Idempotent-Replayed": replayed }), &appended())
        .refuses(&[ErrorCode::PayloadTooLarge, ErrorCode::Unprocessable])
        .answer(409, conflict)
        .schemas::<ProblemBody<'_>>()
}

fn override_many() -> Operation {
    let description = "They are appended in order, and each succeeds or fails alone: an item that is no override has a \
        result that says so. A `CONFLICT` adds `currentSeq`.";
    let one = json!({ "marketId": 1001, "payload": { "moneyline": { "home": 1.85, "away": 2.15 } } });
    let result = json!([
        { "ok": true, "marketId": 1001, "epoch": 1_710_000_000, "seq": 1026, "ts": 1_710_001_113_000_u64,
          "auditId": "1001-1710001113000-1", "durability": "memory" },
        { "ok": false, "code": "UNPROCESSABLE", "message": "payload.moneyline.home: must be decimal odds" },
    ]);
    let anything = json!({ "description": "Anything else fails alone." });
    let array = json!({
        "type": "array",
        "maxItems": MAX_ITEMS,
        "items": { "anyOf": [reference::<Override>(), anything] },
    });
    let lines = json!({
        "description": format!("An override a line, at most {MAX_ITEMS}; blank lines are skipped."),
    });
    let results = json!({
        "description": "A result for each, in order, in the same format.",
        "content": {
            "application/json": {
                "schema": { "type": "array", "items": reference::<ItemResult>() },
                "example": result,
            },
            "application/x-ndjson": {
                "schema": { "type": "string", "description": "A result a line, as in the array." },
            },
        },
    });
    asks("overrideOddsBatch", "Publishes prices of many markets", description, Role::Trader)
        .parameter(idempotency_key("Item *i*, from 0, has the key `<this>#<i>`."))
        .body_as("application/json", json!({ "schema": array, "example": [one] }))
        .body_as("application/x-ndjson", json!({ "schema": lines, "example": format!("{one}\n") }))
        .answer(200, results)
        .schemas::<Override>()
        .schemas::<ItemResult>()
        .refuses(&[ErrorCode::PayloadTooLarge])
}

fn read_audit() -> Operation {
    let entry = json!({
        "auditId": "1001-1710001113000-0",
        "marketId": 1001,
        "epoch": 1_710_000_000,
        "seq": 1025,
        "ts": 1_710_001_113_000_u64,
        "actor": "desk-1",
        "reason": "line move",
        "before": { "moneyline": { "home": 1.8, "away": 2.15 } },
        "after": { "moneyline": { "home": 1.85, "away": 2.15 } },
        "requestId": "a-1",
    });
    let example = json!({
        "marketId": 1001, "entries": [entry], "hasMore": true, "before": "1001-1710001113000-0",
    });
    let next = json!({
        "description": "Of a table that goes on: `before` of its next page.",
        "schema": { "type": "string" },
    });
    let name = json!({ "description": "Of a table: its file's name.", "schema": { "type": "string" } });
    let source = json!({
        "description": "With `DATABASE_URL`: who was asked.", "schema": { "enum": ["postgres", "redis"] },
    });
    let page = json!({
        "description": "A page, newest first. The next one is asked for with its `before`.",
        "headers": { "X-Next-Before": next, "Content-Disposition": name, "X-Audit-Source": source },
        "content": {
            "application/json": { "schema": reference::<AuditPage<'_>>(), "example": example },
            "text/csv": { "schema": { "type": "string", "description": "A row an entry, under a head (RFC 4180)." } },
        },
    });
    asks("readAudit", "Who did what", "An empty parameter is an absent one.", Role::Viewer)
        .parameters(AuditQuery::into_params(|| Some(ParameterIn::Query)))
        .answer(200, page)
        .schemas::<AuditPage<'_>>()
        .refuses(&[ErrorCode::Internal])
}

fn read_markets() -> Operation {
    let market = json!({
        "marketId": 1001,
        "epoch": 1_710_000_000,
        "seq": 1025,
        "ts": 1_710_001_113_000_u64,
        "payload": { "moneyline": { "home": 1.85, "away": 2.15 } },
    });
    let example = json!({ "markets": [market], "hasMore": false, "now": 1_710_001_115_000_u64 });
    asks("readMarkets", "Markets and their states", "An empty parameter is an absent one.", Role::Viewer)
        .parameters(MarketsQuery::into_params(|| Some(ParameterIn::Query)))
        .answers::<MarketsPage>(
            "A page. The next one is asked for with `after` = its last id.",
            &json!({}),
            &example,
        )
        .refuses(&[ErrorCode::Internal])
}

fn set_status(id: &str, summary: &str) -> Operation {
    let description = "Sets the line `status` of each market: of those that are named, or of all that are not closed. \
        Each succeeds or fails alone, and is answered for in the order asked; `changed` is `false` where it was so already.";
    let results = json!({
        "description": "A result for each.",
        "content": {
            "application/json": { "schema": { "type": "array", "items": reference::<StatusResult>() } },
        },
    });
    asks(id, summary, description, Role::Trader)
        .body::<StatusRequest>(&json!({ "marketIds": [1001], "reason": "goal" }))
        .answer(200, results)
        .schemas::<StatusResult>()
        .refuses(&[ErrorCode::PayloadTooLarge, ErrorCode::Unprocessable, ErrorCode::Internal])
}

fn revoke_tokens() -> Operation {
    let description = "Every gateway that reaches Redis closes the sockets concerned and refuses the tokens within a \
        second. Revoking again does no harm.";
    let example = json!({
        "userId": "42", "revokedAt": 1_730_908_800_000_u64, "expiresAt": 1_730_912_465_000_u64,
    });
    asks("revokeTokens", "Takes clients' tokens back", description, Role::Admin)
        .body::<revoke::Asked>(&json!({ "userId": 42 }))
        .answers::<revoke::Answer>("It is kept.", &json!({}), &example)
        .refuses(&[ErrorCode::PayloadTooLarge])
}

/// What `role` may ask.
fn asks(id: &str, summary: &str, description: &str, role: Role) -> Operation {
    let description = format!("For the role {}. {description}", role.as_str());
    let request_id = format!(
        "Named in the answer and the audit, if it is 1 to {MAX_REQUEST_ID} visible ASCII characters."
    );
    Operation::new(id, summary, &description)
        .security(json!([{ "adminToken": [] }]))
        .parameter(json!({
            "name": "X-Request-Id", "in": "header", "description": request_id, "schema": { "type": "string" },
        }))
        .refuses(&[ErrorCode::BadRequest, ErrorCode::Unauthorized, ErrorCode::Forbidden])
}

fn idempotency_key(description: &str) -> Value {
    json!({
        "name": "Idempotency-Key",
        "in": "header",
        "description": description,
        "schema": {
            "type": "string", "minLength": 1, "maxLength": MAX_IDEMPOTENCY_KEY, "pattern": "^[!-~]*$",
        },
    })
}

fn appended() -> Value {
    json!({
        "marketId": 1001,
        "epoch": 1_710_000_000,
        "seq": 1025,
        "ts": 1_710_001_113_000_u64,
        "auditId": "1001-1710001113000-0",
        "durability": "memory",
    })
}
