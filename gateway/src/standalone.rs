//! The whole system in one process: memory instead of Redis, and the admin API on the gateway's own listener.

use std::{sync::Arc, time::Duration};

use axum::Router;
use publisher::{auth, http::Admin};
use shared::{
    MarketId, Payload,
    backbone::{Append, Backbone, MemoryBackbone, Retention},
    token::{Keyring, Role},
};

use crate::settings::Settings;

/// How long the printed admin token is good for.
const ADMIN_TOKEN_TTL: Duration = Duration::from_hours(12);
/// How often a demo market changes.
const DEMO_EVERY: Duration = Duration::from_millis(400);
/// The invented markets: id, home price, away price, in hundredths.
const DEMO_MARKETS: [(u64, u32, u32); 4] =
    [(1001, 185, 210), (1002, 152, 265), (1003, 340, 134), (1004, 198, 194)];

/// An empty backbone in memory, and the admin API over it.
pub fn embed(settings: &Settings) -> (Arc<dyn Backbone>, Router) {
    publisher::metrics::describe();
    let retention = Retention { history_len: settings.history_len, ..Retention::default() };
    let backbone: Arc<dyn Backbone> = Arc::new(MemoryBackbone::new(retention));
    let admin = Admin { backbone: Arc::clone(&backbone), keys: settings.admin_keys.clone() };
    (backbone, publisher::http::router(admin))
}

/// Says what a new user needs to know: what does not last, and a token for the admin API.
pub fn introduce(admin_keys: &Keyring) {
    tracing::warn!(
        adminToken = auth::mint(admin_keys, "local", Role::Admin, ADMIN_TOKEN_TTL),
        "embedded: everything is in memory and nothing survives a restart; set REDIS_URL for the real thing"
    );
}

/// Publishes invented prices for as long as it is polled.
pub async fn demo(backbone: Arc<dyn Backbone>) {
    let mut prices = DEMO_MARKETS;
    let mut ticks = tokio::time::interval(DEMO_EVERY);
    loop {
        ticks.tick().await;
        let (market, home, away) = &mut prices[rand::random_range(0..DEMO_MARKETS.len())];
        for price in [&mut *home, &mut *away] {
            *price = price.saturating_add_signed(rand::random_range(-5..=5)).clamp(105, 900);
        }
        let decimal = |hundredths: u32| format!("{}.{:02}", hundredths / 100, hundredths % 100);
        let text = format!(r#"{{"moneyline":{{"home":{},"away":{}}}}}"#, decimal(*home), decimal(*away));
        let (Ok(market), Ok(payload)) = (MarketId::new(*market), Payload::parse(&text)) else { continue };
        let append = Append {
            market,
            payload,
            expected_seq: None,
            idempotency: None,
            actor: "demo".to_owned(),
            reason: "invented".to_owned(),
            request_id: "demo".to_owned(),
            trace: None,
        };
        backbone.append(vec![append]).await;
    }
}
