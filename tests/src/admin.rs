//! The desk: a client of the admin API.

use std::cell::Cell;

use serde::Deserialize;
use serde_json::Value;
use service::token::Role;

use crate::{
    http::{Answer, Http},
    tokens,
};

/// Sends overrides to one publisher.
#[derive(Clone, Debug)]
pub struct Admin {
    http: Http,
    base: String,
    authorization: String,
}

/// `200` to an override.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Accepted {
    /// Which market.
    pub market_id: u64,
    /// Which history.
    pub epoch: u64,
    /// The update's number.
    pub seq: u64,
    /// When it was accepted, Unix milliseconds.
    pub ts: u64,
    /// Its audit entry.
    pub audit_id: String,
    /// Who has it.
    pub durability: String,
}

/// One page of the audit.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct AuditPage {
    /// Whose; 0 of all markets.
    #[serde(default)]
    pub market_id: u64,
    /// Newest first.
    pub entries: Vec<AuditEntry>,
    /// Whether there are older ones.
    pub has_more: bool,
    /// Where they go on.
    pub before: Option<String>,
}

/// One entry of the audit.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[expect(missing_docs, reason = "contract, section 5, names them")]
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
    /// A client of the admin API at `base` (`http://ADDRESS`), as a trader.
    #[must_use]
    pub fn new(base: String) -> Self {
        Self::with_token(base, &tokens::admin(Role::Trader))
    }

    /// A client with this token.
    #[must_use]
    pub fn with_token(base: String, token: &str) -> Self {
        Self { http: Http::default(), base, authorization: format!("Bearer {token}") }
    }

    /// Publishes `payload` (JSON text), which must be accepted.
    pub async fn publish(&self, market: u64, payload: &str) -> Accepted {
        self.send(&override_body(market, payload)).await.ok()
    }

    /// Publishes `count` updates, one batch for each thousand, each setting the line `win` to its own seq; the market
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

    /// Publishes one update after the other ([`numbered`], from `*next` on) until `until` is done.
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

    /// Publishes `payload`; `None` when the publisher is gone before it has answered.
    pub async fn try_publish(&self, market: u64, payload: &str) -> Option<Accepted> {
        Some(self.try_send(&[], &override_body(market, payload)).await?.ok())
    }

    /// [`Self::send_with_key`]; `None` when the publisher is gone before it has answered.
    pub async fn try_send_with_key(&self, key: &str, body: &str) -> Option<Answer> {
        self.try_send(&[("idempotency-key", key)], body).await
    }

    async fn try_send(&self, headers: &[(&str, &str)], body: &str) -> Option<Answer> {
        let mut all =
            vec![("authorization", self.authorization.as_str()), ("content-type", "application/json")];
        all.extend(headers);
        self.http.try_post_with(&format!("{}/admin/odds/override", self.base), &all, body).await
    }

    /// `POST /admin/odds/override` with this body.
    pub async fn send(&self, body: &str) -> Answer {
        self.post("/admin/odds/override", &[], body).await
    }

    /// `POST /admin/odds/override` with this body and `Idempotency-Key`.
    pub async fn send_with_key(&self, key: &str, body: &str) -> Answer {
        self.post("/admin/odds/override", &[("idempotency-key", key)], body).await
    }

    /// `POST /admin/odds/batch` with this JSON array.
    pub async fn batch(&self, body: &str) -> Answer {
        self.post("/admin/odds/batch", &[], body).await
    }

    /// `POST` JSON, or what a `content-type` among `headers` says.
    pub async fn post(&self, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        let mut all = vec![("authorization", self.authorization.as_str())];
        if !headers.iter().any(|(name, _)| *name == "content-type") {
            all.push(("content-type", "application/json"));
        }
        all.extend(headers);
        self.http.post_with(&format!("{}{path}", self.base), &all, body).await
    }

    /// `POST /admin/tokens/revoke` with this body.
    pub async fn revoke(&self, body: &str) -> Answer {
        self.post("/admin/tokens/revoke", &[], body).await
    }

    /// `GET /admin/audit?query`.
    pub async fn audit(&self, query: &str) -> Answer {
        self.get(&format!("/admin/audit?{query}")).await
    }

    /// `GET` a path with its query.
    pub async fn get(&self, path: &str) -> Answer {
        self.http.get_with(&format!("{}{path}", self.base), &[("authorization", &self.authorization)]).await
    }
}

/// The body of an override.
#[must_use]
pub fn override_body(market: u64, payload: &str) -> String {
    format!(r#"{{"marketId":{market},"payload":{payload},"reason":"test"}}"#)
}

/// A payload that says which seq it has, with a trailing zero that a float would lose.
#[must_use]
pub fn numbered(seq: u64) -> String {
    format!(r#"{{"win":{{"n":{seq}.0}}}}"#)
}
