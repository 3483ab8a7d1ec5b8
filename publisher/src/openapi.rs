//! The admin API as an OpenAPI document. A test compares `docs/openapi/publisher.json` with it, and can rewrite that file.

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
    batch::MAX_ITEMS,
    markets::{MarketsPage, MarketsQuery, StatusRequest},
    problem::ProblemBody,
    request::{MAX_IDEMPOTENCY_KEY, MAX_REQUEST_ID},
    response::{AppendedBody, BatchItem, StatusResult},
    revoke::{RevocationBody, RevocationRequest},
};

/// The response to `GET /admin/openapi.json`.
pub(crate) static DOCUMENT: LazyLock<String> = LazyLock::new(|| {
    let description = "Publishes overrides, lists and suspends markets, reads the audit, and revokes clients' tokens. The \
        publisher serves this API. In the embedded system the gateway's own listener serves it.\n\n\
        Prices are decimal text and pass through byte for byte. `docs/protocol.md` has the rules in full. The response \
        to a request that is not HTTP is 400, and to one with a far too long head 431, both without a body.";
    let id =
        json!({ "type": "string", "description": "The request's own id if it is valid, else a new one." });
    let token = json!({
        "adminToken": {
            "type": "http",
            "scheme": "bearer",
            "bearerFormat": "JWT",
            "description": "Signed with `ADMIN_JWT_SECRET`. The role is viewer, trader or admin; each may do what the one \
                before it may do. `publisher token` makes such a token.",
        },
    });
    Document::new("KMarket admin API", description, json!({ "X-Request-Id": header(&id) }), &token)
        .with("post", "/admin/odds/override", override_one())
        .with("post", "/admin/odds/batch", override_many())
        .with("get", "/admin/audit", read_audit())
        .with("get", "/admin/markets", read_markets())
        .with(
            "post",
            "/admin/markets/suspend",
            set_status("suspendMarkets", "Suspends markets: no bets are taken"),
        )
        .with("post", "/admin/markets/open", set_status("openMarkets", "Opens markets: bets are taken again"))
        .with("post", "/admin/tokens/revoke", revoke_tokens())
        .with("get", "/admin/openapi.json", Operation::document("readAdminOpenapi"))
        .text()
});

fn override_one() -> Operation {
    let replayed = json!({
        "description": "There if this is the first response to this `Idempotency-Key` again.",
        "schema": { "const": "true" },
    });
    let description = "200 means that the override is in the log, the state and the audit, written in one atomic step. The \
        message of a 503 tells what happened: \"nothing was appended\", or \"outcome unknown\". After either, it is safe to \
        send the same request again with the same `Idempotency-Key`.";
    // `currentSeq`, which other errors do not have.
    let mut conflict = refusal::<ProblemBody<'_>>(ErrorCode::Conflict);
    conflict["content"]["application/json"]["schema"]["required"] = json!(["currentSeq"]);
    operation("overrideOdds", "Publishes prices", description, Role::Trader)
        .parameter(idempotency_key("For 24 hours, the same request gets the first response again."))
        .body::<Override>(&json!({
            "marketId": 1001,
            "payload": { "moneyline": { "home": 1.85, "away": 2.15 } },
            "reason": "line move",
        }))
        .ok::<AppendedBody>(
            "The override is in the log.",
            &json!({ "Idempotent-Replayed": replayed }),
            &appended(),
        )
        .refuses(&[ErrorCode::PayloadTooLarge, ErrorCode::Unprocessable])
        .response(409, conflict)
        .schemas::<ProblemBody<'_>>()
}

fn override_many() -> Operation {
    let description = "Appends the overrides in order. Each succeeds or fails alone, also an item that is not a valid \
        override. A `CONFLICT` adds `currentSeq`.";
    let one = json!({ "marketId": 1001, "payload": { "moneyline": { "home": 1.85, "away": 2.15 } } });
    let result = json!([
        { "ok": true, "marketId": 1001, "epoch": 1_710_000_000, "seq": 1026, "ts": 1_710_001_113_000_u64,
          "auditId": "1001-1710001113000-1", "durability": "memory" },
        { "ok": false, "code": "UNPROCESSABLE", "message": "payload.moneyline.home: must be decimal odds" },
    ]);
    let anything = json!({ "description": "An item that is not a valid override fails alone." });
    let array = json!({
        "type": "array",
        "maxItems": MAX_ITEMS,
        "items": { "anyOf": [reference::<Override>(), anything] },
    });
    let lines = json!({
        "description": format!("One override per line, at most {MAX_ITEMS}; blank lines are skipped."),
    });
    let results = json!({
        "description": "One result per override, in order, in the same format.",
        "content": {
            "application/json": {
                "schema": { "type": "array", "items": reference::<BatchItem>() },
                "example": result,
            },
            "application/x-ndjson": {
                "schema": { "type": "string", "description": "One result per line, as in the array." },
            },
        },
    });
    operation("overrideOddsBatch", "Publishes prices of many markets", description, Role::Trader)
        .parameter(idempotency_key("Item *i*, from 0, has the key `<this key>#<i>`."))
        .body_as("application/json", json!({ "schema": array, "example": [one] }))
        .body_as("application/x-ndjson", json!({ "schema": lines, "example": format!("{one}\n") }))
        .response(200, results)
        .schemas::<Override>()
        .schemas::<BatchItem>()
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
        "description": "With CSV, if there are more entries: `before` of the next page.",
        "schema": { "type": "string" },
    });
    let name = json!({ "description": "With CSV: the name of the file.", "schema": { "type": "string" } });
    let source = json!({
        "description": "With `DATABASE_URL`: where the page was read.", "schema": { "enum": ["postgres", "redis"] },
    });
    let page = json!({
        "description": "A page, newest first. For the next page, pass its `before`.",
        "headers": { "X-Next-Before": next, "Content-Disposition": name, "X-Audit-Source": source },
        "content": {
            "application/json": { "schema": reference::<AuditPage<'_>>(), "example": example },
            "text/csv": { "schema": { "type": "string", "description": "A header row and one row per entry (RFC 4180)." } },
        },
    });
    operation("readAudit", "Who overrode what", "An empty parameter counts as absent.", Role::Viewer)
        .parameters(AuditQuery::into_params(|| Some(ParameterIn::Query)))
        .response(200, page)
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
    operation("readMarkets", "Markets and their states", "An empty parameter counts as absent.", Role::Viewer)
        .parameters(MarketsQuery::into_params(|| Some(ParameterIn::Query)))
        .ok::<MarketsPage>(
            "A page. For the next page, pass its last `marketId` as `after`.",
            &json!({}),
            &example,
        )
        .refuses(&[ErrorCode::Internal])
}

fn set_status(id: &str, summary: &str) -> Operation {
    let description = "Sets the line `status` of the markets with these ids, or of all markets that are not closed. Each \
        succeeds or fails alone. `changed` is `false` if the market had this status already.";
    let results = json!({
        "description": "One result per market, in order.",
        "content": {
            "application/json": { "schema": { "type": "array", "items": reference::<StatusResult>() } },
        },
    });
    operation(id, summary, description, Role::Trader)
        .body::<StatusRequest>(&json!({ "marketIds": [1001], "reason": "goal" }))
        .response(200, results)
        .schemas::<StatusResult>()
        .refuses(&[ErrorCode::PayloadTooLarge, ErrorCode::Unprocessable, ErrorCode::Internal])
}

fn revoke_tokens() -> Operation {
    let description = "Within a second, every gateway that reaches Redis closes the sockets concerned and refuses the \
        tokens. Revoking again does no harm.";
    let example = json!({
        "userId": "42", "revokedAt": 1_730_908_800_000_u64, "expiresAt": 1_730_912_465_000_u64,
    });
    operation("revokeTokens", "Revokes clients' tokens", description, Role::Admin)
        .body::<RevocationRequest>(&json!({ "userId": 42 }))
        .ok::<RevocationBody>("The revocation is stored.", &json!({}), &example)
        .refuses(&[ErrorCode::PayloadTooLarge])
}

/// Returns an operation that needs `role`.
fn operation(id: &str, summary: &str, description: &str, role: Role) -> Operation {
    let description = format!("For the role {}. {description}", role.as_str());
    let request_id = format!(
        "Repeated in the response and kept in the audit, if it is 1 to {MAX_REQUEST_ID} visible ASCII characters."
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
