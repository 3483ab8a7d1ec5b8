//! Hears of revocations: asks every quarter of a second whether there are others than before.

use std::{sync::Arc, time::Duration};

use backbone::{Backbone, StreamId};
use protocol::time::unix_ms;
use tokio::time::{MissedTickBehavior, interval};

use super::{
    BACKOFF,
    health::{Health, Source},
};
use crate::tokens::Tokens;

/// How often to ask: one small answer each time, unless there is news.
const ASK_EVERY: Duration = Duration::from_millis(250);

/// Keeps `tokens` up to date for ever, and tells when there is news for open connections. While the backbone is away,
/// what is known holds.
pub async fn follow_revocations(
    tokens: Arc<Tokens>,
    backbone: Arc<dyn Backbone>,
    health: Arc<Health>,
    tell: impl Fn() + Send,
) {
    let mut known = StreamId::ZERO;
    let mut backoff = BACKOFF;
    let mut ticks = interval(ASK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        health.began(Source::Revocations);
        match backbone.revocations(known).await {
            Ok(news) => {
                if let Some(news) = news {
                    known = news.newest;
                    if tokens.learn(&news.all, unix_ms()) {
                        tell();
                    }
                }
                backoff.reset();
                health.succeeded(Source::Revocations);
            }
            Err(error) => {
                health.failed(Source::Revocations, &error);
                // Whoever answers next may have others, of which the newest is the same.
                known = StreamId::ZERO;
                tokio::time::sleep(backoff.failed()).await;
            }
        }
    }
}
