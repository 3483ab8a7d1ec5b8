//! A client of the admin API.

use std::cell::Cell;

use serde::Deserialize;
use serde_json::Value;
use service::token::Role;

use crate::{
    http::{Http, Response},
    tokens,
};

/// Sends overrides to one publisher.
#[derive(Clone, Debug)]
pub struct Admin {
    http: Http,
    base: String,
    authorization: String,
}

/// The 200 response to an override.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Accepted {
    /// The market.
    pub market_id: u64,
    /// The epoch.
    pub epoch: u64,
    /// The update's seq.
    pub seq: u64,
    /// When the publisher accepted it, in Unix milliseconds.
    pub ts: u64,
    /// The id of its audit entry.
    pub audit_id: String,
    /// How durable the update is.
    pub durability: String,
}

/// One page of the audit.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct AuditPage {
    /// The market; 0 for all markets.
    #[serde(default)]
    pub market_id: u64,
    /// The newest entry first.
    pub entries: Vec<AuditEntry>,
    /// Whether older entries exist.
    pub has_more: bool,
    /// The `before` of the next page.
    pub before: Option<String>,
}

/// One entry of the audit.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[expect(missing_docs, reason = "docs/protocol.md#admin-api describes them")]
pub struct AuditEntry {
    pub audit_id: String,
    pub market_id: u64,
    pub epoch: u64,
    pub seq: u64,
    pub ts: u64,
    pub actor: String,
    pub reason: Option<String>,
    pub before: Value,
    pub after: Value,
    pub request_id: Option<String>,
}

impl Admin {
    /// A trader's client of the admin API at `base` (`http://ADDRESS`).
    #[must_use]
    pub fn new(base: String) -> Self {
        Self::with_token(base, &tokens::admin(Role::Trader))
    }

    /// A client with this token.
    #[must_use]
    pub fn with_token(base: String, token: &str) -> Self {
        Self { http: Http::default(), base, authorization: format!("Bearer {token}") }
    }

    /// Publishes `payload` (JSON text). Panics unless the publisher accepts it.
    pub async fn publish(&self, market: u64, payload: &str) -> Accepted {
        self.send(&override_body(market, payload)).await.ok()
    }

    /// Publishes `count` updates in batches of a thousand. Each sets the line `win` to its own seq, so the market
    /// must be at `from`.
    pub async fn publish_many(&self, market: u64, from: u64, count: u64) {
        let seqs: Vec<u64> = (from + 1..=from + count).collect();
        for seqs in seqs.chunks(1000) {
            let items: Vec<String> = seqs.iter().map(|seq| override_body(market, &numbered(*seq))).collect();
            let results: Vec<Value> = self.batch(&format!("[{}]", items.join(","))).await.ok();
            assert!(
                results.iter().map(|result| result["seq"].as_u64()).eq(seqs.iter().copied().map(Some)),
                "{results:?}"
            );
        }
    }

    /// Publishes one update after the other ([`numbered`], from `*next` on) until `until` completes.
    pub async fn keep_publishing<T>(&self, market: u64, next: &mut u64, until: impl Future<Output = T>) -> T {
        let done = Cell::new(false);
        let waiting = async {
            let result = until.await;
            done.set(true);
            result
        };
        let publishing = async {
            while !done.get() {
                let accepted = self.publish(market, &numbered(*next)).await;
                assert_eq!(accepted.seq, *next);
                *next += 1;
            }
        };
        tokio::join!(waiting, publishing).0
    }

    /// Publishes `payload`. Returns `None` if the connection breaks before the response.
    pub async fn try_publish(&self, market: u64, payload: &str) -> Option<Accepted> {
        Some(self.try_send(&[], &override_body(market, payload)).await?.ok())
    }

    /// Like [`Self::send_with_key`], but returns `None` if the connection breaks before the response.
    pub async fn try_send_with_key(&self, key: &str, body: &str) -> Option<Response> {
        self.try_send(&[("idempotency-key", key)], body).await
    }

    async fn try_send(&self, headers: &[(&str, &str)], body: &str) -> Option<Response> {
        let mut all =
            vec![("authorization", self.authorization.as_str()), ("content-type", "application/json")];
        all.extend(headers);
        self.http.try_post_with(&format!("{}/admin/odds/override", self.base), &all, body).await
    }

    /// `POST /admin/odds/override` with this body.
    pub async fn send(&self, body: &str) -> Response {
        self.post("/admin/odds/override", &[], body).await
    }

    /// `POST /admin/odds/override` with this body and `Idempotency-Key`.
    pub async fn send_with_key(&self, key: &str, body: &str) -> Response {
        self.post("/admin/odds/override", &[("idempotency-key", key)], body).await
    }

    /// `POST /admin/odds/batch` with this JSON array.
    pub async fn batch(&self, body: &str) -> Response {
        self.post("/admin/odds/batch", &[], body).await
    }

    /// `POST` with these headers; the body is JSON unless a `content-type` is among them.
    pub async fn post(&self, path: &str, headers: &[(&str, &str)], body: &str) -> Response {
        let mut all = vec![("authorization", self.authorization.as_str())];
        if !headers.iter().any(|(name, _)| *name == "content-type") {
            all.push(("content-type", "application/json"));
        }
        all.extend(headers);
        self.http.post_with(&format!("{}{path}", self.base), &all, body).await
    }

    /// `POST /admin/tokens/revoke` with this body.
    pub async fn revoke(&self, body: &str) -> Response {
        self.post("/admin/tokens/revoke", &[], body).await
    }

    /// `GET /admin/audit?query`.
    pub async fn audit(&self, query: &str) -> Response {
        self.get(&format!("/admin/audit?{query}")).await
    }

    /// `GET` a path with its query.
    pub async fn get(&self, path: &str) -> Response {
        self.http.get_with(&format!("{}{path}", self.base), &[("authorization", &self.authorization)]).await
    }
}

/// Returns the body of an override.
#[must_use]
pub fn override_body(market: u64, payload: &str) -> String {
    format!(r#"{{"marketId":{market},"payload":{payload},"reason":"test"}}"#)
}

/// Returns a payload that contains its seq, with a trailing zero that a float would lose.
#[must_use]
pub fn numbered(seq: u64) -> String {
    format!(r#"{{"win":{{"n":{seq}.0}}}}"#)
}
