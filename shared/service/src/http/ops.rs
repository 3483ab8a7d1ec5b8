//! The operators' routes, on a listener of their own: `GET /livez`, `/readyz` and `/metrics`
//! (`docs/operations.md#health`).

use std::{net::SocketAddr, sync::Arc, time::Duration};

use async_trait::async_trait;
use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::get,
};
use metrics_exporter_prometheus::PrometheusHandle;
use protocol::error::ErrorCode;
use serde_json::json;

use super::refusal;
use crate::{
    settings::Setting,
    telemetry::{self, Histogram},
};

/// How often the recorder adds its samples to its histograms, also when it is not scraped.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);

/// The operators' listener. Each service has its own default.
pub const OPS_LISTEN: Setting<SocketAddr> =
    Setting::new("OPS_LISTEN", "", "address of /livez, /readyz and /metrics");

/// The reason of a service that is not ready because it is about to end.
pub const DRAINING: &str = "DRAINING";
/// The reason of a service that is not ready because it cannot read or write prices. `status` messages have it too.
pub const BACKBONE_UNREACHABLE: &str = "BACKBONE_UNREACHABLE";

/// Knows whether a service can do its work now.
#[async_trait]
pub trait Readiness: Send + Sync + 'static {
    /// Returns why the service is not ready, within about a second. Empty if it is ready.
    async fn reasons(&self) -> Vec<String>;
}

#[derive(Clone)]
struct Ops {
    readiness: Arc<dyn Readiness>,
    metrics: PrometheusHandle,
    histograms: &'static [&'static Histogram],
}

/// Serves the three routes. Liveness depends on the process alone. `histograms` are those that are not in the recorder.
pub fn router(
    readiness: Arc<dyn Readiness>,
    metrics: PrometheusHandle,
    histograms: &'static [&'static Histogram],
) -> Router {
    Router::new()
        .route("/livez", get(async || Json(json!({ "live": true }))))
        .route("/readyz", get(readyz))
        .route("/metrics", get(render_metrics))
        .fallback(async || refusal(ErrorCode::NotFound, "no such path: /livez, /readyz or /metrics"))
        .method_not_allowed_fallback(async || refusal(ErrorCode::MethodNotAllowed, "only GET"))
        .with_state(Ops { readiness, metrics, histograms })
}

/// Keeps the recorder's memory bounded, forever.
pub async fn upkeep(metrics: PrometheusHandle) {
    let mut ticks = tokio::time::interval(UPKEEP_EVERY);
    loop {
        ticks.tick().await;
        metrics.run_upkeep();
    }
}

async fn readyz(State(ops): State<Ops>) -> Response {
    let reasons = ops.readiness.reasons().await;
    if reasons.is_empty() {
        Json(json!({ "ready": true })).into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "ready": false, "reasons": reasons }))).into_response()
    }
}

/// Responds with all metrics in Prometheus text format 0.0.4.
async fn render_metrics(State(ops): State<Ops>) -> impl IntoResponse {
    let text = telemetry::render_metrics(&ops.metrics, ops.histograms);
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text)
}
