//! `GET /api/ws/health`: counts of this gateway, for people and load balancers.

use std::sync::{Arc, atomic::Ordering};

use axum::{extract::State, response::Response};
use serde::Serialize;
use service::http::json;
use utoipa::ToSchema;

use crate::state::Gateway;

#[derive(Serialize, ToSchema)]
#[schema(as = Health, description = "Counts of this pod.")]
pub(super) struct Counts {
    /// Open connections.
    connections: usize,
    /// Markets with a subscriber.
    topics: usize,
    /// Updates and snapshots delivered since the pod started.
    messages_sent: u64,
}

/// Responds with the counts, ready or not.
pub(super) async fn health(State(gateway): State<Arc<Gateway>>) -> Response {
    json(&Counts {
        connections: gateway.stats.connections.load(Ordering::Relaxed),
        topics: gateway.markets.watched(),
        messages_sent: gateway.stats.messages_sent.load(Ordering::Relaxed),
    })
}
