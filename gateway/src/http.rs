//! What clients reach over HTTP: the router.

mod health;
mod markets;
mod openapi;
mod problem;
mod query;
mod read;
mod respond;
mod snapshot;
mod token;
mod updates;
mod ws;

use std::{sync::Arc, time::Instant};

use axum::{
    Router,
    extract::{MatchedPath, Request},
    http::{Method, header},
    middleware::{self, Next},
    response::Response,
    routing::{get, post},
};
use protocol::error::ErrorCode;
use service::http::{openapi as documents, refusal};
use tower_http::cors::{AllowOrigin, CorsLayer};

use crate::{access::Origins, metrics as names, state::Gateway};

/// Returns every route for clients. `more` are routes that share the listener.
pub fn router(gateway: Arc<Gateway>, cors_origins: &Origins, more: Router) -> Router {
    Router::new()
        .route("/api/markets", get(markets::list))
        .route("/api/markets/{id}/odds/snapshot", get(snapshot::snapshot))
        .route("/api/markets/{id}/odds/updates", get(updates::updates))
        .route("/api/openapi.json", get(async || documents::serve(&openapi::DOCUMENT)))
        .route("/api/ws/health", get(health::health))
        .route("/api/ws/token", post(token::issue))
        // Before the CORS layer, which answers preflight requests: those are OPTIONS, which no route has.
        .method_not_allowed_fallback(method_not_allowed)
        .layer(cors(cors_origins))
        .route("/ws/odds", get(ws::upgrade))
        .layer(middleware::from_fn(count))
        .with_state(gateway)
        .merge(more)
        .fallback(async || refusal(ErrorCode::NotFound, "no such path"))
        .method_not_allowed_fallback(method_not_allowed)
}

/// Counts a request, and measures the time to its response.
async fn count(route: Option<MatchedPath>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let response = next.run(request).await;
    let route = route.map_or("other".to_owned(), |path| path.as_str().to_owned());
    let status = response.status().as_str().to_owned();
    metrics::histogram!(names::HTTP_SECONDS, "route" => route.clone()).record(started.elapsed());
    metrics::counter!(names::HTTP_REQUESTS, "route" => route, "status" => status).increment(1);
    response
}

async fn method_not_allowed() -> Response {
    refusal(ErrorCode::MethodNotAllowed, "this path has no such method")
}

fn cors(origins: &Origins) -> CorsLayer {
    let origins = match origins {
        Origins::Any => AllowOrigin::any(),
        Origins::Only(list) => AllowOrigin::list(list.clone()),
    };
    CorsLayer::new()
        .allow_origin(origins)
        .allow_methods([Method::GET, Method::POST])
        .allow_headers([header::AUTHORIZATION, header::CONTENT_TYPE])
}
