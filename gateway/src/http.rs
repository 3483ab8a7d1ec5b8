//! What clients reach over HTTP: the router, and what its handlers stand on.

mod address;
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

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Instant,
};

use axum::{
    Router,
    extract::{MatchedPath, Request},
    http::{HeaderMap, Method, header},
    middleware::{self, Next},
    response::Response,
    routing::{get, post},
};
use backbone::Backbone;
use protocol::{Secret, error::ErrorCode};
use service::{
    http::{openapi as documents, refusal, serve::Peer},
    rotation::Live,
};
use tower_http::cors::{AllowOrigin, CorsLayer};

use self::address::ClientKey;
use crate::{
    limits::{ConnectionPermits, KeyedRate, Rate},
    markets::Markets,
    metrics as names,
    settings::{Origins, Settings},
    shard::{ShardHandle, Stats},
    tail::Health,
    tokens::Tokens,
};

/// What the handlers stand on.
pub struct Gateway {
    /// What is not in memory.
    pub backbone: Arc<dyn Backbone>,
    /// What is.
    pub markets: Arc<Markets>,
    /// Who owns the sockets.
    pub shards: Vec<Arc<ShardHandle>>,
    /// Their counts.
    pub stats: Arc<Stats>,
    /// Room for connections.
    pub permits: Arc<ConnectionPermits>,
    /// Whether prices are fresh.
    pub health: Arc<Health>,
    /// No new sockets.
    pub draining: AtomicBool,
    /// Which tokens are good.
    pub tokens: Arc<Tokens>,
    token_api_key: Option<Live<Secret>>,
    read_auth: bool,
    allowed_origins: Origins,
    addresses: address::Addresses,
    handshake_rate: Option<KeyedRate<ClientKey>>,
    /// Of requests for tokens that no API key vouches for.
    stranger_rate: Option<KeyedRate<ClientKey>>,
    /// Of tokens, by user.
    token_rate: Option<KeyedRate<String>>,
    /// The rates count milliseconds from here.
    started: Instant,
    next_shard: AtomicUsize,
    listing: markets::Listing,
}

impl Gateway {
    /// A gateway as `settings` say, over what is given.
    #[must_use]
    pub fn new(
        settings: &Settings,
        max_connections: usize,
        backbone: Arc<dyn Backbone>,
        markets: Arc<Markets>,
        tokens: Arc<Tokens>,
        (shards, stats): (Vec<Arc<ShardHandle>>, Arc<Stats>),
        health: Arc<Health>,
    ) -> Arc<Self> {
        let rate = |limit: u32, per: fn(u32) -> Rate| (limit > 0).then(|| per(limit));
        Arc::new(Self {
            backbone,
            markets,
            shards,
            stats,
            permits: ConnectionPermits::new(max_connections, settings.max_connections_per_user),
            health,
            draining: AtomicBool::new(false),
            tokens,
            token_api_key: settings.token_api_key.clone(),
            read_auth: settings.read_auth,
            allowed_origins: settings.allowed_origins.clone(),
            addresses: address::Addresses::new(settings.trusted_proxies.clone()),
            handshake_rate: rate(settings.handshake_rate_limit, Rate::per_second).map(KeyedRate::new),
            stranger_rate: rate(settings.handshake_rate_limit, Rate::per_second).map(KeyedRate::new),
            token_rate: rate(settings.token_rate_limit, Rate::per_minute).map(KeyedRate::new),
            started: Instant::now(),
            next_shard: AtomicUsize::new(0),
            listing: markets::Listing::default(),
        })
    }

    /// Forgets rates of clients that have not been heard of lately, so that they do not pile up.
    pub fn forget_old_rates(&self) {
        let now_ms = self.now_ms();
        for rate in [&self.handshake_rate, &self.stranger_rate].into_iter().flatten() {
            rate.forget(now_ms);
        }
        if let Some(rate) = &self.token_rate {
            rate.forget(now_ms);
        }
    }

    /// Whether the client behind `peer` has one left of `rate`.
    fn allows(&self, rate: Option<&KeyedRate<ClientKey>>, peer: Peer, headers: &HeaderMap) -> bool {
        rate.is_none_or(|rate| rate.take(&self.addresses.client(peer.0.ip(), headers), self.now_ms()))
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn pick_shard(&self) -> &ShardHandle {
        &self.shards[self.next_shard.fetch_add(1, Ordering::Relaxed) % self.shards.len()]
    }
}

/// Every route for clients; `more` are routes that share the listener.
pub fn router(gateway: Arc<Gateway>, cors_origins: &Origins, more: Router) -> Router {
    Router::new()
        .route("/api/markets", get(markets::list))
        .route("/api/markets/{id}/odds/snapshot", get(snapshot::snapshot))
        .route("/api/markets/{id}/odds/updates", get(updates::updates))
        .route("/api/openapi.json", get(async || documents::serve(&openapi::DOCUMENT)))
        .route("/api/ws/health", get(health::health))
        .route("/api/ws/token", post(token::issue))
        // Before the layer: a preflight request ends there, and it is an OPTIONS that no route has.
        .method_not_allowed_fallback(method_not_allowed)
        .layer(cors(cors_origins))
        .route("/ws/odds", get(ws::upgrade))
        .layer(middleware::from_fn(count))
        .with_state(gateway)
        .merge(more)
        .fallback(async || refusal(ErrorCode::NotFound, "no such path"))
        .method_not_allowed_fallback(method_not_allowed)
}

/// Counts an answer.
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
