//! Reads over REST (docs/protocol.md#rest).

use std::net::SocketAddr;

use serde::Deserialize;

use crate::{
    http::{Http, Response},
    launch::Service,
    message::{Snapshot, Update},
};

/// Reads from one gateway.
#[derive(Clone, Debug)]
pub struct Rest {
    http: Http,
    base: String,
}

/// The response to `GET /api/markets/{id}/odds/updates`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Updates {
    /// The market.
    pub market_id: u64,
    /// `since_seq`.
    pub from_seq: u64,
    /// The seq of the last update, or `from_seq`.
    pub to_seq: u64,
    /// The oldest update first.
    pub updates: Vec<Update>,
    /// The epoch.
    pub epoch: u64,
    /// The seq of the latest position.
    pub latest_seq: u64,
    /// Whether there are more updates than `limit`.
    pub has_more: bool,
    /// Whether every update after `since_seq` was still kept.
    pub complete: bool,
}

/// The response to `GET /api/ws/health`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Health {
    /// Open connections.
    pub connections: u64,
    /// Markets with a subscriber.
    pub topics: u64,
    /// Messages delivered since the start.
    pub messages_sent: u64,
}

impl Rest {
    /// Reads from this gateway.
    #[must_use]
    pub fn of(gateway: &Service) -> Self {
        Self::at(gateway.api)
    }

    /// Reads from the gateway at this address.
    #[must_use]
    pub fn at(gateway: SocketAddr) -> Self {
        Self { http: Http::default(), base: format!("http://{gateway}") }
    }

    /// The market's snapshot.
    pub async fn snapshot(&self, market: u64) -> Snapshot {
        self.get(&format!("/api/markets/{market}/odds/snapshot")).await.ok()
    }

    /// The market's updates; `query` is `since_seq=…&limit=…`.
    pub async fn updates(&self, market: u64, query: &str) -> Updates {
        self.get(&format!("/api/markets/{market}/odds/updates?{query}")).await.ok()
    }

    /// The pod's counters.
    pub async fn health(&self) -> Health {
        self.get("/api/ws/health").await.ok()
    }

    /// `GET` any path.
    pub async fn get(&self, path: &str) -> Response {
        self.http.get(&format!("{}{path}", self.base)).await
    }
}
