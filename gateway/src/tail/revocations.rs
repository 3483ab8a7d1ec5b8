//! Keeps the revoked tokens up to date, by polling.

use std::{sync::Arc, time::Duration};

use backbone::{Backbone, StreamId};
use protocol::time::unix_ms;
use tokio::time::{MissedTickBehavior, interval};

use super::{
    BACKOFF,
    health::{Health, Source},
};
use crate::tokens::Tokens;

/// Time between polls. Each costs one short reply, unless there are new revocations.
const POLL_EVERY: Duration = Duration::from_millis(250);

/// Polls the revocations forever and gives them to `tokens`. Calls `changed` after each change, so that open connections
/// are checked. While the backbone is unreachable, the known revocations stay valid.
pub async fn follow_revocations(
    tokens: Arc<Tokens>,
    backbone: Arc<dyn Backbone>,
    health: Arc<Health>,
    changed: impl Fn() + Send,
) {
    let mut known = StreamId::ZERO;
    let mut backoff = BACKOFF;
    let mut ticks = interval(POLL_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        health.began(Source::Revocations);
        match backbone.revocations(known).await {
            Ok(news) => {
                if let Some(news) = news {
                    known = news.newest;
                    if tokens.learn(&news.all, unix_ms()) {
                        changed();
                    }
                }
                backoff.reset();
                health.succeeded(Source::Revocations);
            }
            Err(error) => {
                health.failed(Source::Revocations, &error);
                // After a failover the newest revocation may have the same id and others may be missing: read them all.
                known = StreamId::ZERO;
                tokio::time::sleep(backoff.failed()).await;
            }
        }
    }
}
