//! What a gateway does at intervals: announces stale prices, sets gauges, and drops old rates and revocations.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use protocol::{server_message, time::unix_ms};
use service::http::ops;
use tokio::time::{Instant, interval};

use crate::{frame, metrics as names, state::Gateway};

/// How often staleness is checked and gauges are set.
const TICK: Duration = Duration::from_millis(250);
/// How often whole rates and expired revocations are dropped.
const FORGET_EVERY: Duration = Duration::from_secs(1);

/// Runs until it is dropped.
pub async fn run(gateway: Arc<Gateway>) {
    let mut ticks = interval(TICK);
    let mut forget_at = Instant::now() + FORGET_EVERY;
    loop {
        let now = ticks.tick().await;
        announce_staleness(&gateway);
        set_gauges(&gateway);
        if now >= forget_at {
            forget_at = now + FORGET_EVERY;
            gateway.access.forget_old_rates();
            gateway.tokens.forget(unix_ms());
        }
    }
}

/// Sends every client a `status` message when prices go stale, and when they are fresh again.
fn announce_staleness(gateway: &Gateway) {
    if let Some((stale, since_ms)) = gateway.health.review() {
        tracing::warn!(stale, since_ms, "clients are told whether prices are fresh");
        let message = frame::text(&server_message::status(stale, ops::BACKBONE_UNREACHABLE, since_ms));
        for shard in &gateway.shards {
            shard.announce(stale, &message);
        }
    }
}

fn set_gauges(gateway: &Gateway) {
    #[expect(clippy::cast_precision_loss, reason = "gauges are floats; counts stay far below 2^52")]
    let gauge = |name, value: usize| metrics::gauge!(name).set(value as f64);
    gauge(names::CONNECTIONS, gateway.stats.connections.load(Ordering::Relaxed));
    gauge(names::MARKETS, gateway.markets.len());
    gauge(names::REVOCATIONS, gateway.tokens.known().len());
    gauge(names::STALE, usize::from(gateway.health.stale_since().is_some()));
}
